"""A Gaussian guide q(z | x) with independent coordinates."""

import pyro.distributions as dist
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from ..models.half import in_range
from ..models.rounding import least_scale
from .guide import Guide

__all__ = ["MeanField"]


class MeanField(Guide):
    """``z ~ Normal(loc(x), scale(x))`` with independent coordinates (Kingma and Welling, 2014, eq. 9).

    In eval mode ``log scale`` is kept in a finite range, so that data far from the training data have finite bounds.
    There, ``scale`` is at least as large as the rounding of z allows (see ``models.rounding.least_scale``). In training
    mode neither holds, so that a loss that overflows stops the training with an error.
    """

    outputs = 2
    has_density = True
    formula = "Normal(loc(x), scale(x))"

    def distribution(self, loc: Tensor, log_scale: Tensor) -> TorchDistributionMixin:
        scale = log_scale.exp() if self.training else in_range(log_scale).exp().maximum(least_scale(loc))
        return dist.Normal(loc, scale).to_event(1)
