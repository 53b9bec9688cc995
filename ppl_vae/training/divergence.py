"""What a loss that is not finite means: the error to raise, and the term that broke."""

from typing import Any

import pyro
import torch
from torch import Tensor

from ..elbo.reading import traces
from ..variant import Variant

__all__ = ["Diverged", "broken_term", "is_sound"]


class Diverged(ArithmeticError):
    """The loss became NaN or infinite. The variant holds the last good weights."""


def is_sound(variant: Variant, losses: Tensor) -> bool:
    """Whether every loss of the epoch and every weight after it is finite, in one read from the device."""
    weights = [parameter.isfinite().all() for half in variant[:2] for parameter in half.parameters()]
    return bool(torch.stack([losses.isfinite().all(), *weights]).all())


@torch.no_grad()
def broken_term(variant: Variant, y: Tensor, size: int) -> str:
    """Name the first site whose log density is not finite, with its value.

    Args:
        variant: The pair.
        y: The batch on which the loss broke, [rows, *x_shape] in the model's units.
        size: The number of rows of the training data.
    """
    with pyro.validation_enabled(False):
        guide, model = traces(variant.model, variant.guide, y, size)
    for letter, trace in (("q", guide), ("p", model)):
        for name, site in trace.nodes.items():
            total: Any = site.get("log_prob_sum")
            if isinstance(total, Tensor) and not bool(total.isfinite()):
                return f"log {letter} of site {name!r} is {float(total)}"
    return "the gradient is not finite, while every term is"
