"""Losses that are not finite: the error to raise, and the term of the loss that is not finite."""

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
    """Whether all losses of an epoch [steps] and all weights of the variant are finite, in one read from the device."""
    weights = [parameter.isfinite().all() for half in variant[:2] for parameter in half.parameters()]
    return bool(torch.stack([losses.isfinite().all(), *weights]).all())


@torch.no_grad()
def broken_term(variant: Variant, y: Tensor, size: int) -> str:
    """Say which site is the first whose log density is not finite, and give the value of this log density.

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
    return "every term is finite, but the gradient is not"
