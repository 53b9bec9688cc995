"""The loop: an epoch of steps, what it leaves behind, and what happens where a loss turns non-finite."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from ..evaluation.lower_bounds import held_out
from ..models.steps import one_step
from ..noise import noise_scale
from ..snapshot import Snapshot
from ..streams import seeded, set_streams, streams
from ..svi import Step
from ..svi.adam import Adam
from ..svi.precision import networks_in_bf16, products_in_bf16
from ..variant import Variant, evaluating, log_jacobian, set_mode
from .batches import Batches
from .divergence import Diverged, broken_term, is_sound

__all__ = ["Loop", "kernels_last", "threads_for"]

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


class Loop:
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
