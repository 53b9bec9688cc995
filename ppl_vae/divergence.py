"""When a loss turns non-finite: go back to the last good weights, and say which step and which term it was."""

import copy
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.util import get_rng_state, set_rng_state
from torch import Tensor, nn

from .variant import Variant

__all__ = ["Diverged", "Snapshot", "broken_term", "is_sound"]


class Diverged(ArithmeticError):
    """The loss turned NaN or infinite; the variant holds the last good weights."""


class Snapshot:
    """Weights, buffers, optimizer and random streams at one moment of training."""

    def __init__(self, variant: Variant, optimizer: torch.optim.Optimizer | None = None) -> None:
        self.halves = [{name: t.clone() for name, t in half.state_dict().items()} for half in _halves(variant)]
        self.optimizer = None if optimizer is None else copy.deepcopy(optimizer.state_dict())
        self.host = get_rng_state()
        self.devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []

    def restore(self, variant: Variant, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Put weights and buffers back; with an optimizer, its state and the random streams too."""
        for half, state in zip(_halves(variant), self.halves, strict=True):
            half.load_state_dict(state)
        if optimizer is not None and self.optimizer is not None:
            optimizer.load_state_dict(self.optimizer)
            set_rng_state(self.host)
            if self.devices:
                torch.cuda.set_rng_state_all(self.devices)


def _halves(variant: Variant) -> list[nn.Module]:
    return [variant.model, variant.guide]


def is_sound(variant: Variant, losses: Tensor) -> bool:
    """Whether every loss of the epoch and every weight after it is finite: one read from the device."""
    weights = [parameter.isfinite().all() for half in _halves(variant) for parameter in half.parameters()]
    return bool(torch.stack([losses.isfinite().all(), *weights]).all())


@torch.no_grad()
def broken_term(variant: Variant, y: Tensor, size: int) -> str:
    """Name the first site of the traces whose log density is not finite, with its value."""
    with pyro.validation_enabled(False):
        guide = poutine.trace(variant.guide).get_trace(y, size)
        model = poutine.trace(poutine.replay(variant.model, trace=guide)).get_trace(y, size)
        for letter, trace in (("q", guide), ("p", model)):
            trace.compute_log_prob()
            for name, site in trace.nodes.items():
                total: Any = site.get("log_prob_sum")
                if isinstance(total, Tensor) and not bool(total.isfinite()):
                    return f"log {letter} of site {name!r} is {float(total)}"
    return "the gradient is not finite, while every term is"
