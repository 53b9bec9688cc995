"""fit: train a variant by SVI, the loss being what its traces say."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pyro
import torch
from torch import Tensor, nn

from .batches import Batches
from .bounds import held_out
from .data import (
    Data,
    check_density,
    check_spacing,
    check_support,
    held_back,
    part_of,
    stack_of,
    tensor_of,
    whole,
)
from .divergence import Diverged, Snapshot, broken_term, is_sound
from .evaluation import noise_scale
from .models.steps import one_step
from .preflight import preflight
from .progress import Progress
from .receipt import receipt
from .seeding import chosen, seeded, set_streams, streams
from .svi import Adam, Step
from .svi.backends import backend_for
from .svi.precision import PRECISIONS, networks_in_bf16, products_in_bf16
from .variant import Variant, evaluating, log_jacobian, set_mode

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Fit", "fit"]


@dataclass(frozen=True)
class Fit:
    """What ``fit`` returns.

    Attributes:
        variant: The trained pair, in eval mode, with the weights of ``best_epoch``.
        data: What it was trained on.
        rows: The history, a dictionary per epoch.
        best_epoch: The epoch of the best held-out objective; the last one where nothing was held out.
        settings: Numbers of the run: epochs, steps, batch_size, lr, seed; ``backend``, with the reason where it is
            eager; ``precision``, with ``precision_error`` where it is lowered: what that changes of the first loss, in
            nats per datum, the noise being the same.
    """

    variant: Variant
    data: Data
    rows: list[dict[str, Any]]
    best_epoch: int
    settings: dict[str, Any]

    @property
    def history(self) -> "pd.DataFrame":
        """A table, a row per epoch.

        Both losses are in nats per datum, in the data's units, and go down. Columns:

        * ``loss``, what was optimised, averaged over the steps of the epoch;
        * ``held_out_loss``, minus the bound of the held-out data, or minus the MAP objective where the guide is a point
          mass; no weight on the KL and no penalty is part of it;
        * ``held_out_error``, its standard error over data;
        * ``kl_weight``;
        * ``sigma``, the root mean square of the scale of p(x | z), in the model's units, as ``evaluate`` has it: over
          the held-out data, or over the last batch where nothing is held out;
        * ``seconds`` since the start.
        """
        import pandas as pd

        return pd.DataFrame(self.rows).set_index("epoch")

    def receipt(self) -> str:
        """The objective that was optimised, with its numbers in it."""
        train = self.data.resident
        some = train[chosen(len(train), self.variant.at_once, int(self.settings["seed"]))]
        y = self.variant.in_model_units(tensor_of(some))
        with seeded(0):
            y = torch.bernoulli(y) if self.data.binarize else y
        return receipt(self.variant, y, self.settings)


def fit(
    variant: Variant,
    data: Any,
    *,
    epochs: int = 100,
    batch_size: int = 128,
    lr: float = 1e-3,
    seed: int = 0,
    device: str = "auto",
    validation: Any = 0.1,
    schedule: str | Callable[[float], float] = "constant",
    patience: int | None = None,
    progress: bool | str = True,
    backend: str = "auto",
    precision: str = "full",
    channels_last: bool = False,
) -> Fit:
    """Train a variant, in place, with one fused Adam on the loss of its traces.

    Pyro's global parameter store and the caller's random streams are left alone.

    A module inside the model or the guide is frozen where all of its parameters have ``requires_grad=False``. It stays
    as it is: it runs in eval mode, whatever mode it came in, so that its running statistics do not move and its dropout
    does not act. The receipt names what is frozen.

    Args:
        variant: From a builder of ``VARIANTS``, or any ``Variant(model, guide, loss)``.
        data: What ``prepare`` returns; or an array, tensor, data frame or Dataset, in the units of the variant's scale.
        epochs: Passes over the data.
        batch_size: Rows per step; a short last batch counts by its rows. A last batch of one row joins the batch before
            where a batch norm could not train on it.
        lr: Learning rate.
        seed: Of the order of the data, the noise and the split.
        device: ``"auto"`` (CUDA where there is one), ``"cpu"``, ``"cuda"``, ``"cuda:1"``.
        validation: Share of the training rows to hold out, data to hold out instead, or None for neither. The rows are
            drawn at random; of data that ``prepare`` split by ``"tail"`` they are the last ones.
        schedule: ``"constant"``, ``"cosine"``, or the factor on ``lr`` as a function of the share of training done.
        patience: Stop after so many epochs without a better held-out objective.
        progress: Show loss and time left, under a label of its own if it is a string.
        backend: What runs a step, as for ``ppl_vae.svi.SVI``: ``"auto"`` is ``"fx"``, the eager one to the last bit;
            ``"eager"``; ``"inductor"``, compiled; ``"cudagraph"``. A pair that is not static runs eagerly.
        precision: ``"full"``; ``"bf16"``, encoder and decoder in bfloat16, densities, weights and recurrent layers in
            full; or ``"bf16_matmul"``, matrix products of the CPU in bfloat16 and nothing else.
        channels_last: Hold the kernels of convolutions in that layout while training, which CPUs are faster with.

    Raises:
        ValueError: If the data, an argument or the pair cannot be used; the message says what came, what was wanted.
        Diverged: If the loss turns non-finite: it names the step and the term; the last good weights are in place.

    Example:
        >>> import torch
        >>> from ppl_vae import VARIANTS, fit
        >>> variant = VARIANTS["sigma_vae"](x_shape=(6,), z_dim=2)
        >>> trained = fit(variant, torch.randn(200, 6), epochs=2, progress=False)
        >>> list(trained.history.columns)
        ['loss', 'held_out_loss', 'held_out_error', 'kl_weight', 'sigma', 'seconds']
    """
    _check_settings(epochs=epochs, batch_size=batch_size, patience=patience, lr=lr)
    factor = _schedule(schedule)
    place = _device(device)
    backend = backend_for(backend)
    _check_precision(precision, place)
    variant.model.to(place)
    variant.guide.to(place)
    data = data if isinstance(data, Data) else replace(whole(data), scale=variant.model.scale)
    variant.model.scale.load_state_dict(data.scale.state_dict())
    label = progress if isinstance(progress, str) else variant.name
    bar = Progress(label, epochs, shown=bool(progress))  # before the seed, for its import draws from Python's stream
    with seeded(seed):
        train, kept_back = _hold_out(variant, data, validation)
        batches = Batches(variant, train, batch_size, draw=data.binarize is not None)
        preflight(variant, _first(variant, train, draw=data.binarize is not None))
        loop = _Loop(variant, batches, kept_back, lr, factor, epochs * len(batches), backend, precision)
        elements = batch_size * math.prod(data.x_shape)
        with bar, threads_for(elements), kernels_last(variant, on=channels_last):
            while loop.epoch < epochs and not loop.stale(patience):
                bar.update(loop.run_epoch())
        loop.finish()
    settings = {
        "epochs": loop.epoch,
        "steps": loop.step,
        "batch_size": batch_size,
        "lr": lr,
        "seed": seed,
        "rows": batches.rows,
        "backend": f"eager: {loop.descend.reason}" if loop.descend.reason else backend,
        "precision": precision,
    }
    if loop.precision_error is not None:
        settings["precision_error"] = loop.precision_error
    return Fit(variant, data, loop.rows, loop.best_epoch, settings)


def _first(variant: Variant, train: Any, *, draw: bool) -> Tensor:
    """The first training data, in the model's units."""
    some = train[:8] if isinstance(train, Tensor) else stack_of([train[index] for index in range(min(8, len(train)))])
    y = variant.in_model_units(some)
    return torch.bernoulli(y) if draw else y


SCORED = 2000  # held-out rows of a streamed Dataset that are scored after each epoch
GRAIN = 32768  # elements that torch gives a thread at the least


@contextmanager
def threads_for(elements: int) -> Iterator[None]:
    """One thread where a batch is smaller than a grain of work: a second one would only be waited for."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if elements < GRAIN else before)
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def kernels_last(variant: Variant, *, on: bool) -> Iterator[None]:
    """Kernels of convolutions in the layout channels_last, the parameters being the same objects."""

    def lay_out(layout: torch.memory_format) -> None:
        for half in variant[:2]:
            for parameter in half.parameters() if on else ():
                if parameter.ndim == 4:
                    parameter.data = parameter.data.contiguous(memory_format=layout)

    lay_out(torch.channels_last)
    try:
        yield
    finally:
        lay_out(torch.contiguous_format)


class _Loop:
    """The state of a run, and an epoch of it on one screen."""

    def __init__(
        self,
        variant: Variant,
        batches: Batches,
        kept_back: Tensor | None,
        lr: float,
        schedule: Callable[[float], float],
        total: int,
        backend: str,
        precision: str,
    ) -> None:
        self.variant, self.batches, self.kept_back = variant, batches, kept_back
        self.lr, self.schedule, self.total = lr, schedule, total
        self.precision = precision
        self.precision_error: float | None = None
        self.loss: nn.Module = variant.loss(variant.model, variant.guide)
        parameters = [parameter for parameter in self.loss.parameters() if parameter.requires_grad]
        self.optimizer = Adam(parameters, lr)
        tolerance = 1e-3 if precision == "full" else 0.1  # a compiler rounds less often than bfloat16 networks do
        modules = self.loss.modules()
        self.descend = Step(self.objective, self.optimizer, modules, backend, variant.loss, tolerance=tolerance)
        self.descend.looks_always = self.descend.surroundings.has_foreign_parts
        self.rows: list[dict[str, Any]] = []
        self.epoch, self.step, self.best_epoch = 0, 0, 0
        self.best: Snapshot | None = None
        self.last_batch = torch.empty(0)
        self.started = time.perf_counter()

    def run_epoch(self) -> dict[str, Any]:
        """Train for one epoch, score the held-out rows, and return the epoch's row of the history."""
        set_mode(self.variant, training=True)
        self.descend.has_looked = False  # parts of the library change between epochs alone
        before, first_step = Snapshot(self.variant, self.optimizer), self.step
        try:
            losses = torch.stack([loss * len(y) for y, loss in map(self.run_step, self.batches)])
        except ValueError as error:
            raise Diverged(self.refused(error, before)) from None
        sound = is_sound(self.variant, losses)
        row = self.summary(float(losses.sum()) / self.batches.rows)
        if not sound or not math.isfinite(row["held_out_loss"] or 0.0):
            before.restore(self.variant, self.optimizer)
            self.step = first_step
            raise Diverged(self.replay())
        self.epoch += 1
        self.rows.append(row)
        score = row["held_out_loss"]
        if score is not None and (self.best is None or score < self.best_row["held_out_loss"]):
            self.best, self.best_epoch = Snapshot(self.variant), self.epoch
        return row

    def refused(self, error: ValueError, before: Snapshot) -> str:
        """What a distribution said of its parameters in the first step, where Pyro's checks are on."""
        line = str(error).partition("\n")[0].partition(", but found")[0]
        if "to satisfy the constraint" not in line:
            raise error
        before.restore(self.variant, self.optimizer)
        return f"step {self.step + 1} of {self.total}: {line}. Try scale='standardize', or a smaller lr"

    def run_step(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """One step on a batch [rows, *x_shape]: what was optimised, in nats per datum, without reading it."""
        for half in self.variant[:2]:
            half.advance(self.step, self.total)
        self.optimizer.param_groups[0]["lr"] = self.lr * self.schedule(self.step / self.total)
        if self.step == 0 and self.precision != "full":
            self.precision_error = self.error_of_precision(y)
        with self.kernels():
            loss = self.descend(y)
        self.step += 1
        self.last_batch = y
        return y, loss / self.weight(y)

    def weight(self, y: Tensor) -> float:
        """Every row weighs the same, in a short batch too."""
        return len(y) / self.batches.batch_size

    def objective(self, y: Tensor) -> Tensor:
        """What a step goes down: the loss, in nats per datum, by the weight of the batch."""
        model, guide, _ = self.variant
        networks = [guide.encoder, *guide.heads, model.decoder] if self.precision == "bf16" else []
        # Pyro's own checks cost a fifth of an eager step: once is enough.
        with pyro.validation_enabled(self.step == 0), networks_in_bf16(networks), one_step():
            return self.loss(y, self.batches.rows) / self.batches.rows * self.weight(y)

    def kernels(self) -> AbstractContextManager[None]:
        """What a step runs in."""
        return products_in_bf16() if self.precision == "bf16_matmul" else nullcontext()

    @torch.no_grad()
    def error_of_precision(self, y: Tensor) -> float:
        """How far the lowered precision moves the loss, in nats per datum, the noise being the same."""
        before, state, precision, losses = Snapshot(self.variant), streams(), self.precision, []
        for self.precision in ("full", precision):
            with self.kernels():
                losses.append(float(self.objective(y) / self.weight(y)))
            before.restore(self.variant)
            set_streams(state)
        return abs(losses[1] - losses[0])

    def replay(self) -> str:
        """Run a failed epoch again, step by step, up to the step that failed; say what it was."""
        set_mode(self.variant, training=True)
        good = before = Snapshot(self.variant)
        for y in self.batches:
            good, before = before, Snapshot(self.variant)
            _, loss = self.run_step(y)
            if not is_sound(self.variant, loss):
                before.restore(self.variant)
                break
        term = broken_term(self.variant, y, self.batches.rows)
        good.restore(self.variant)
        return (
            f"step {self.step} of {self.total} (epoch {self.epoch + 1}): the loss is {float(loss)}; {term}. "
            f"The last good weights are kept. Try a smaller lr (it is {self.lr:g}) or scale='standardize'"
        )

    def summary(self, loss: float) -> dict[str, Any]:
        """The row of the history for the epoch that has just ended."""
        score, error = None, None
        with evaluating(self.variant), seeded(0):  # the same draws each epoch: epochs differ by their weights alone
            shift = float(log_jacobian(self.variant))
            if self.kept_back is not None:
                values = held_out(self.variant, self.kept_back)
                score = -float(values.mean())
                error = float(values.std() / math.sqrt(len(values))) if len(values) > 1 else None
            sigma = noise_scale(self.variant, self.last_batch if self.kept_back is None else self.kept_back)
        return {
            "epoch": self.epoch + 1,
            "loss": loss - shift,
            "held_out_loss": score,
            "held_out_error": error,
            "kl_weight": self.variant.kl_weight,
            "sigma": sigma,
            "seconds": time.perf_counter() - self.started,
        }

    @property
    def best_row(self) -> dict[str, Any]:
        """The row of the best epoch so far."""
        return self.rows[self.best_epoch - 1]

    def stale(self, patience: int | None) -> bool:
        """Whether the held-out objective has not been beaten for ``patience`` epochs."""
        return patience is not None and self.best is not None and self.epoch - self.best_epoch >= patience

    def finish(self) -> None:
        """Leave the best weights in place, in eval mode."""
        if self.best is None:
            self.best_epoch = self.epoch
        else:
            self.best.restore(self.variant)
        self.variant.model.eval()
        self.variant.guide.eval()


def _check_settings(*, epochs: int, batch_size: int, patience: int | None, lr: float) -> None:
    counts = {"epochs": epochs, "batch_size": batch_size, "patience": 1 if patience is None else patience}
    for name, value in counts.items():
        if value != int(value) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    if not 0.0 < lr < math.inf:
        raise ValueError(f"lr must be positive and finite, got {lr!r}")


def _check_precision(precision: str, place: torch.device) -> None:
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    if precision == "bf16_matmul" and place.type != "cpu":
        raise ValueError(f"precision 'bf16_matmul' is of the CPU's library, the device is {place.type}: use bf16")


SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "cosine": lambda done: 0.5 * (1.0 + math.cos(math.pi * done)),
}


def _schedule(schedule: str | Callable[[float], float]) -> Callable[[float], float]:
    if callable(schedule):
        return schedule
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)} or a function of the share, got {schedule!r}")
    return SCHEDULES[schedule]


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {name!r} was asked for, but this torch sees no CUDA device: use cpu")
    return device


def _hold_out(variant: Variant, data: Data, validation: Any) -> tuple[Any, Tensor | None]:
    """Split the training rows, check them against the likelihood, and put the held-out ones in the model's units."""
    train = data.train
    if isinstance(train, Tensor):
        train = tensor_of(train, data.name)
        _checked(variant, data, train)
    if validation is None:
        return train, None
    if isinstance(validation, float | int):
        train, validation = _shared_out(train, validation, data.split)
    return train, _checked(variant, data, tensor_of(validation, "validation"))


def _shared_out(train: Any, share: float, split: str) -> tuple[Any, Tensor]:
    """The training rows less a share of them, and that share; of a streamed Dataset, as many of it as are scored."""
    rows = len(train)
    if not 0.0 < share < 1.0:
        raise ValueError(f"validation is a share of the rows in (0, 1), got {share!r}")
    if rows < 2:
        raise ValueError(f"{rows} row cannot be split: pass validation=None")
    held_out, kept = held_back(rows, min(max(1, round(share * rows)), rows - 1), split)
    if isinstance(train, Tensor):
        return train[kept], train[held_out]
    return torch.utils.data.Subset(train, kept.tolist()), part_of(
        torch.utils.data.Subset(train, held_out.tolist()), SCORED
    )


def _checked(variant: Variant, data: Data, x: Tensor) -> Tensor:
    """Data in the model's units, in which they keep their digits and have a density; drawn where they are to be."""
    dtype = next(variant.model.parameters()).dtype
    for kind in {x.dtype, dtype} if data.scale.is_identity else {x.dtype}:
        check_spacing(x, kind, data.columns, data.name)
    y = variant.in_model_units(x)
    y = y if data.binarize is None else torch.bernoulli(y)
    check_support(variant, y, x)
    check_density(variant, y)
    return y
