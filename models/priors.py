"""Priors p(z): modules without inputs that return a distribution of event shape [z_dim]."""

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from .half import positive

__all__ = ["Mixture", "StandardNormal"]


class StandardNormal(nn.Module):
    """``z ~ Normal(0, scale)`` with independent coordinates.

    With a point-mass guide it is the code penalty of RAE, ``beta/2 |z|**2`` with ``beta = 2 sigma**2 / scale**2``
    beside a squared error. Only the ratio of the two scales matters.

    Args:
        z_dim: Size of a code.
        scale: The standard deviation.

    Raises:
        ValueError: If ``scale`` is not positive and finite.
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, z_dim: int, scale: float = 1.0) -> None:
        super().__init__()
        positive("scale", scale)
        self.z_dim = z_dim
        self.register_buffer("loc", torch.zeros(z_dim))
        self.register_buffer("scale", torch.full((z_dim,), float(scale)))

    @property
    def formula(self) -> str:
        return f"Normal(0, {float(self.scale[0]):.4g})"

    def forward(self) -> TorchDistributionMixin:
        return dist.Normal(self.loc, self.scale).to_event(1)

    def extra_repr(self) -> str:
        return f"{len(self.loc)}, scale={float(self.scale[0]):.4g}"


class Mixture(nn.Module):
    """``z ~ sum_c weight_c Normal(loc_c, covariance_c)`` with full covariances.

    It is learned together with the model, or fitted to the codes after training (``ex_post.fit``).

    Args:
        z_dim: Size of a code.
        components: The number of components C.

    Attributes:
        logits: The log weights up to a constant, [C].
        loc: The centres, [C, z_dim].
        factor: The Cholesky factors of the covariances, [C, z_dim, z_dim]. Each diagonal is stored as its logarithm.

    Raises:
        ValueError: If ``components`` is below 1.
    """

    def __init__(self, z_dim: int, components: int = 10) -> None:
        super().__init__()
        if components < 1:
            raise ValueError(f"a mixture needs at least one component, got {components!r}")
        self.z_dim, self.components = z_dim, components
        self.logits = nn.Parameter(torch.zeros(components))
        self.loc = nn.Parameter(torch.randn(components, z_dim))
        self.factor = nn.Parameter(torch.zeros(components, z_dim, z_dim))

    @classmethod
    @torch.no_grad()
    def of(cls, weights: Tensor, loc: Tensor, covariance: Tensor) -> "Mixture":
        """The fixed mixture with the given weights [C], centres [C, z_dim] and covariances [C, z_dim, z_dim]."""
        mixture = cls(loc.shape[1], len(loc)).to(loc).requires_grad_(requires_grad=False)
        tril = torch.linalg.cholesky(covariance)
        mixture.logits.copy_(weights.log())
        mixture.loc.copy_(loc)
        mixture.factor.copy_(tril.tril(-1) + tril.diagonal(dim1=-2, dim2=-1).log().diag_embed())
        return mixture

    @property
    def formula(self) -> str:
        return f"mixture of {self.components} normals"

    def forward(self) -> TorchDistributionMixin:
        tril = self.factor.tril(-1) + self.factor.diagonal(dim1=-2, dim2=-1).exp().diag_embed()
        return dist.MixtureSameFamily(
            dist.Categorical(logits=self.logits), dist.MultivariateNormal(self.loc, scale_tril=tril)
        )

    def extra_repr(self) -> str:
        return f"{self.loc.shape[1]}, components={len(self.loc)}"
