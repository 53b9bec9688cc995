"""A Gaussian guide q(z | x) with the same scale for all data."""

from collections.abc import Iterable

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from ..models.half import positive
from ..models.rounding import least_scale
from .guide import Guide

__all__ = ["ConstantVariance"]


class ConstantVariance(Guide):
    """``z ~ Normal(loc(x), scale)`` with one fixed scale for all data: a guide between those of a VAE and of RAE.

    The KL to a standard normal is ``(|loc|**2 + d (scale**2 - 1 - 2 log scale)) / 2`` with d = ``z_dim``, so there is a
    bound of log p(x). In eval mode the scale is at least as large as the rounding of z allows (see
    ``models.rounding.least_scale``).

    Args:
        encoder, x_shape, z_dim, heads: As in ``Guide``.
        scale: The standard deviation of each coordinate of z.

    Raises:
        ValueError: If ``scale`` is not positive and finite.

    References:
        Ghosh et al., From Variational to Deterministic Autoencoders, 2020, section 3 (CV-VAE).
    """

    has_density = True
    scale: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        x_shape: Iterable[int],
        z_dim: int,
        heads: Iterable[nn.Module] | None = None,
        scale: float = 0.5,
    ) -> None:
        super().__init__(encoder, x_shape, z_dim, heads)
        positive("scale", scale)
        self.register_buffer("scale", torch.tensor(float(scale)))

    @property
    def formula(self) -> str:
        return f"Normal(loc(x), scale), scale = {float(self.scale):.4g}"

    def distribution(self, loc: Tensor) -> TorchDistributionMixin:
        scale = self.scale if self.training else self.scale.maximum(least_scale(loc))
        return dist.Normal(loc, scale).to_event(1)
