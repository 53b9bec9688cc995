"""The base class of guides: encoder, heads, plate and site. A family of q(z | x) adds one method."""

from collections.abc import Callable, Iterable
from typing import Any

import pyro
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from ..models.half import Half, of_pyro
from .networks import encoded, width_of

__all__ = ["Guide"]


class Guide(Half):
    """``z ~ q(z | x)``, where an encoder and one linear head per parameter of the family give q.

    A family sets ``outputs``, the number of its parameters per coordinate of z, and returns the distribution from
    ``distribution``. It may set ``has_density``, which says whether the distribution has a density. Where
    ``has_density`` is None, the distribution itself is examined.

        class LaplaceGuide(Guide):
            outputs = 2

            def distribution(self, loc, log_scale):
                return dist.Laplace(loc, log_scale.exp()).to_event(1)

    Args:
        encoder: A module from [rows, *x_shape] to [rows, width].
        x_shape: Shape of one datum.
        z_dim: Size of a code.
        heads: Modules from [rows, width] to the parameters of the family. The first one gives ``loc`` [rows, z_dim]. By
            default they are linear layers.

    Raises:
        ValueError: If the encoder does not return one tensor with one row per datum.
    """

    outputs = 1
    has_density: bool | None = None
    distribution: Callable[..., TorchDistributionMixin]  # from the outputs of the heads, [batch, size] each, to q

    def __init__(
        self, encoder: nn.Module, x_shape: Iterable[int], z_dim: int, heads: Iterable[nn.Module] | None = None
    ) -> None:
        super().__init__()
        self.encoder, self.x_shape, self.z_dim = encoder, tuple(x_shape), z_dim
        if heads is None:
            width = width_of(encoder, self.x_shape)
            heads = [nn.Linear(width, size) for size in self.head_sizes()]
        self.heads = nn.ModuleList(heads)

    def head_sizes(self) -> list[int]:
        """The number of outputs of each head, per datum. The first head gives ``loc``."""
        return [self.z_dim] * self.outputs

    def posterior(self, x: Tensor) -> TorchDistributionMixin:
        """The distribution q(z | x) for x [batch, *x_shape] in the model's units."""
        h = encoded(self.encoder, x)
        return of_pyro("the guide", self.distribution(*(head(h) for head in self.heads)))

    def forward(self, x: Tensor, size: int | None = None) -> Any:
        """Draw ``z`` [..., batch, z_dim] from q(z | x). ``size`` is as in ``LatentVariableModel.forward``."""
        with pyro.plate("data", len(x) if size is None else size, subsample=x), self.weighted():
            return pyro.sample("z", self.posterior(x))
