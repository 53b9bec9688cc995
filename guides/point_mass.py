"""A guide q(z | x) without noise, for autoencoders."""

import pyro.distributions as dist
from torch import Tensor

from .guide import Guide

__all__ = ["PointMass"]


class PointMass(Guide):
    """``z = loc(x)``, as in an autoencoder. The loss is ``-log p(x, z)``, a MAP objective. There is no bound."""

    has_density = False
    formula = "point mass at loc(x)"

    def distribution(self, loc: Tensor) -> dist.Delta:
        return dist.Delta(loc, event_dim=1)
