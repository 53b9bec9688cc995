"""The loop: an epoch of steps, and the row of the history that it leaves behind."""

import math
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from ..estimate import mean_over_data
from ..evaluation.lower_bounds import held_out
from ..models.steps import one_step
from ..noise import noise_scale
from ..snapshot import Snapshot
from ..streams import seeded, set_stream_states, stream_states
from ..svi import Step
from ..svi.precision import TOLERANCES, networks_in_bf16, products_in_bf16
from ..variant import Variant, evaluating, log_jacobian, set_mode
from .batches import Batches
from .divergence import Diverged, broken_term, is_sound
from .optimizers import optimizer_of
from .options import FitOptions

__all__ = ["Loop"]


class Loop:
    """The state of a training run.

    Args:
        variant: The pair, on the device of the training.
        batches: The training data.
        validation: Held-out data [rows, *x_shape] in the model's units, or None.
        options: The options of the training.

    Attributes:
        rows: The history, a dictionary per epoch.
        epoch: How many epochs have been completed.
        step: How many steps have been taken.
        best_epoch: The epoch of the best held-out objective so far.
        precision_error: The absolute change of the first loss by a lowered precision, in nats per datum; None in full
            precision.
    """

    def __init__(self, variant: Variant, batches: Batches, validation: Tensor | None, options: FitOptions) -> None:
        self.variant, self.batches, self.validation, self.options = variant, batches, validation, options
        self.total = options.epochs * len(batches)
        self.precision = options.precision
        self.loss: nn.Module = variant.loss(variant.model, variant.guide)
        parameters = [parameter for parameter in self.loss.parameters() if parameter.requires_grad]
        self.optimizer = optimizer_of(options.optimizer, parameters, options.lr)
        tolerance = TOLERANCES[options.precision]
        self.descend = Step(
            self.objective, self.optimizer, self.loss.modules(), options.runs_on, variant.loss, tolerance=tolerance
        )
        self.descend.looks_always = self.descend.surroundings.has_foreign_parts
        self.rows: list[dict[str, Any]] = []
        self.epoch, self.step, self.best_epoch = 0, 0, 0
        self.precision_error: float | None = None
        self.best: Snapshot | None = None
        self.last_batch = torch.empty(0)
        self.started = time.perf_counter()

    @property
    def goes_on(self) -> bool:
        """Whether epochs are left, and the held-out objective has improved within the last ``patience`` epochs."""
        since_best = self.epoch - self.best_epoch
        patience = self.options.patience
        is_stale = patience is not None and self.best is not None and since_best >= patience
        return self.epoch < self.options.epochs and not is_stale

    def run_epoch(self) -> dict[str, Any]:
        """Train for one epoch, score the held-out data, and return the row of the history.

        Raises:
            Diverged: If a loss, a weight or the held-out objective is not finite. The last good weights are in place.
        """
        set_mode(self.variant, training=True)
        self.descend.has_looked = False  # parts of this library change only between epochs
        before, first_step = Snapshot(self.variant, self.optimizer), self.step
        losses = []
        try:
            for y in self.batches:
                losses.append(self.take_step(y) * len(y))
        except ValueError as error:
            raise Diverged(refusal(self, error, before)) from None
        total = torch.stack(losses)
        was_sound = is_sound(self.variant, total)
        row = self.summary(float(total.sum()) / self.batches.rows)
        if not was_sound or not math.isfinite(row["held_out_loss"] or 0.0):
            before.restore(self.variant, self.optimizer)
            self.step = first_step
            raise Diverged(replay(self))
        self.keep(row)
        return row

    def take_step(self, y: Tensor) -> Tensor:
        """Take one step on a batch [rows, *x_shape]. Return the loss [] in nats per datum without waiting for it."""
        share = self.step / self.total
        for half in self.variant[:2]:
            half.advance(self.step, self.total)
        for group in self.optimizer.param_groups:
            group["lr"] = self.options.rate(share)
        if self.step == 0 and self.precision != "full":
            self.precision_error = error_of_precision(self, y)
        with self.kernels():
            loss = self.descend(y)
        self.step += 1
        self.last_batch = y
        return loss / self.weight(y)

    def objective(self, y: Tensor) -> Tensor:
        """The objective [] that a step lowers: the loss in nats per datum, times the weight of the batch."""
        model, guide, _ = self.variant
        networks = [guide.encoder, *guide.heads, model.decoder] if self.precision == "bf16" else []
        # The checks of Pyro take a fifth of the time of an eager step, so they run only in the first step.
        with pyro.validation_enabled(self.step == 0), networks_in_bf16(networks), one_step():
            return self.loss(y, self.batches.rows) / self.batches.rows * self.weight(y)

    def weight(self, y: Tensor) -> float:
        """The weight of a batch: every row counts the same, in a short batch too."""
        return len(y) / self.batches.batch_size

    def kernels(self) -> AbstractContextManager[None]:
        """The context that a step runs in."""
        return products_in_bf16() if self.precision == "bf16_matmul" else nullcontext()

    def summary(self, loss: float) -> dict[str, Any]:
        """The row of the history for the epoch that has just ended."""
        score, error = None, None
        with evaluating(self.variant), seeded(0):  # the same draws each epoch, so that epochs differ only in weights
            shift = float(log_jacobian(self.variant))
            if self.validation is not None:
                values = held_out(self.variant, self.validation)
                score, error = -float(values.mean()), mean_over_data(values).error
            sigma = noise_scale(self.variant, self.last_batch if self.validation is None else self.validation)
        return {
            "epoch": self.epoch + 1,
            "loss": loss - shift,
            "held_out_loss": score,
            "held_out_error": error,
            "kl_weight": self.variant.kl_weight,
            "sigma": sigma,
            "seconds": time.perf_counter() - self.started,
        }

    def keep(self, row: dict[str, Any]) -> None:
        """Enter an epoch into the history, and keep its weights if it is the best one so far."""
        self.epoch += 1
        self.rows.append(row)
        score = row["held_out_loss"]
        if score is not None and (self.best is None or score < self.rows[self.best_epoch - 1]["held_out_loss"]):
            self.best, self.best_epoch = Snapshot(self.variant), self.epoch

    def finish(self) -> None:
        """Put the best weights in place, in eval mode."""
        if self.best is None:
            self.best_epoch = self.epoch
        else:
            self.best.restore(self.variant)
        self.variant.model.eval()
        self.variant.guide.eval()


@torch.no_grad()
def error_of_precision(loop: Loop, y: Tensor) -> float:
    """The absolute change of the loss of a batch by the lowered precision, in nats per datum, with the same noise."""
    before, state, lowered = Snapshot(loop.variant), stream_states(), loop.precision
    losses = []
    for loop.precision in ("full", lowered):
        with loop.kernels():
            losses.append(float(loop.objective(y) / loop.weight(y)))
        before.restore(loop.variant)
        set_stream_states(state)
    return abs(losses[1] - losses[0])


def refusal(loop: Loop, error: ValueError, before: Snapshot) -> str:
    """The message of ``Diverged`` if a distribution refused its parameters in the first step, the one that Pyro checks.

    Raises:
        ValueError: The error itself, if it has another cause.
    """
    line = str(error).partition("\n")[0].partition(", but found")[0]
    if "to satisfy the constraint" not in line:
        raise error
    before.restore(loop.variant, loop.optimizer)
    return f"step {loop.step + 1} of {loop.total}: {line}. {remedy(loop)}"


def replay(loop: Loop) -> str:
    """Repeat a failed epoch step by step, and say which step failed and at which term.

    The weights that are left in place are those from before the step that preceded the failed one, because their loss
    was finite.
    """
    set_mode(loop.variant, training=True)
    good = before = Snapshot(loop.variant)
    for y in loop.batches:
        good, before = before, Snapshot(loop.variant)
        loss = loop.take_step(y)
        if not is_sound(loop.variant, loss):
            before.restore(loop.variant)
            break
    term = broken_term(loop.variant, y, loop.batches.rows)
    good.restore(loop.variant)
    return (
        f"step {loop.step} of {loop.total} (epoch {loop.epoch + 1}): the loss is {float(loss)}; {term}. "
        f"The last good weights are kept. {remedy(loop)}"
    )


def remedy(loop: Loop) -> str:
    """What a user can try after a divergence. The values of a probability mass must not be scaled."""
    smaller = f"Try a smaller lr (it is {loop.options.lr:g})"
    return smaller if loop.variant.support.is_discrete else f"{smaller} or scale='standardize'"
