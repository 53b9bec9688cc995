"""What every guide shares: encoder, heads, plate, site. A family is one method."""

from collections.abc import Callable, Iterable
from typing import Any

import pyro
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from ..models.half import Half, of_pyro
from .networks import encoded, width_of

__all__ = ["Guide"]


class Guide(Half):
    """``z ~ q(z | x)``, q from an encoder and a linear head for each parameter of the family.

    A family says how many parameters a code coordinate has (``outputs``) and makes a distribution of them. It may
    declare whether that distribution has a density (``has_density``); the distribution is asked unless it does.

        class LaplaceGuide(Guide):
            outputs = 2

            def distribution(self, loc, log_scale):
                return dist.Laplace(loc, log_scale.exp()).to_event(1)

    Args:
        encoder: Module from [rows, *x_shape] to [rows, width].
        x_shape: Shape of one datum.
        z_dim: Size of a code.
        heads: Modules from [rows, width] to the parameters, the first to ``loc`` [rows, z_dim]; linear unless given.

    Raises:
        ValueError: If the encoder returns anything else than one tensor with a row for each datum.
    """

    outputs = 1
    has_density: bool | None = None
    distribution: Callable[..., TorchDistributionMixin]  # from the heads' outputs, [batch, size] each, to q

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
        """Numbers that each head makes a datum; the first makes ``loc``."""
        return [self.z_dim] * self.outputs

    def posterior(self, x: Tensor) -> TorchDistributionMixin:
        """q(z | x) for x [batch, *x_shape] in the model's units."""
        h = encoded(self.encoder, x)
        return of_pyro("the guide", self.distribution(*(head(h) for head in self.heads)))

    def forward(self, x: Tensor, size: int | None = None) -> Any:
        """Draw ``z`` [..., batch, z_dim] from q(z | x); ``size`` as in the model."""
        with pyro.plate("data", len(x) if size is None else size, subsample=x), self.weighted():
            return pyro.sample("z", self.posterior(x))
