"""fit: train a variant by SVI, the loss being what its traces say."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..contracts.training_pass import preflight
from ..data.arrays import stack_of
from ..data.data_set import Data, tensor_of
from ..data.prepared import whole
from ..progress import Progress
from ..streams import chosen, seeded
from ..svi.backends import backend_for
from ..svi.precision import PRECISIONS
from ..variant import Variant
from .batches import Batches
from .loop import Loop, kernels_last, threads_for
from .receipts import receipt
from .split import hold_out

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
        train, kept_back = hold_out(variant, data, validation)
        batches = Batches(variant, train, batch_size, draw=data.binarize is not None)
        preflight(variant, _first(variant, train, draw=data.binarize is not None))
        loop = Loop(variant, batches, kept_back, lr, factor, epochs * len(batches), backend, precision)
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
