"""q(z | x) with independent coordinates."""

import pyro.distributions as dist
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from .guide import Guide

__all__ = ["MeanField"]


class MeanField(Guide):
    """``z ~ Normal(loc(x), scale(x))``, coordinates independent (Kingma and Welling, 2014, eq. 9)."""

    outputs = 2

    def distribution(self, loc: Tensor, log_scale: Tensor) -> TorchDistributionMixin:
        return dist.Normal(loc, log_scale.exp()).to_event(1)
