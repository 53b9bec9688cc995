"""The Laplace approximation of p(z | x) as a guide, which gives a bound to a model trained with a point mass."""

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ..models.half import positive
from ..models.latent_variable import LatentVariableModel
from ..models.likelihoods import moment, of_coordinate, scale_of_law
from ..models.rounding import readable_factor
from .guide import Guide

__all__ = ["Laplace"]


class _Code(nn.Module):
    """A network that returns the code of a guide: from x [rows, *x_shape] to the mean of q(z | x), [rows, z_dim]."""

    def __init__(self, guide: Guide) -> None:
        super().__init__()
        self.guide = guide

    def forward(self, x: Tensor) -> Tensor:
        return self.guide.posterior(x).mean


class Laplace(Guide):
    """``z ~ Normal(loc(x), inflation * H^-1)`` with ``H = J^T V^-1 J + P^-1`` at the code ``loc(x)``.

    J is the Jacobian of the decoder's mean, V the variance of p(x | z), and P the variance of p(z). Where p(x | z) has
    no finite variance, for example Student's t with few degrees of freedom, V is the square of its scale. For a
    likelihood on a grid of values, V is at least the variance of a uniform distribution on one cell.

    With a linear decoder and Gaussians, H is the exact precision of p(z | x). For other models the default
    ``inflation=2`` doubles the variance, so that the importance weights stay bounded. With ``inflation=1`` the guide
    approximates the posterior itself. The guide is not trained.

    Args:
        guide: The guide that gives the centre ``loc(x)``, the mean of its q(z | x). It needs no density.
        model: The model whose posterior is approximated, with the prior under which bounds are wanted.
        inflation: The factor on the variance.

    Raises:
        ValueError: If ``inflation`` is not positive and finite. ``posterior`` raises it if p(x | z) has no mean, or if
            p(x | z) or p(z) has no variance.

    References:
        MacKay, Information Theory, Inference, and Learning Algorithms, 2003, chapter 27 (the approximation), chapter
        29.2 (why a proposal has to be wider than its target).
    """

    has_density = True

    def __init__(self, guide: Guide, model: LatentVariableModel, inflation: float = 2.0) -> None:
        super().__init__(_Code(guide), guide.x_shape, guide.z_dim, heads=[nn.Identity()])
        positive("inflation", inflation)
        self.model, self.inflation = model, inflation

    @property
    def formula(self) -> str:
        return f"Normal(loc(x), {self.inflation:.4g} H**-1), H the precision of z at loc(x)"

    def distribution(self, loc: Tensor) -> dist.MultivariateNormal:
        law: Any = self.model.x_given_z(loc)
        noise = _noise(of_coordinate(law), loc).flatten(1)  # [batch, x_dim]
        columns = self.model.jacobian(loc).flatten(2)  # [z_dim, batch, x_dim]
        precision = torch.einsum("ibx,bx,jbx->bij", columns, 1 / noise, columns)
        precision = precision + torch.diag_embed(1 / _needed(self.model.prior(), "variance", loc))
        precision = (precision + precision.mT) / 2  # the product is symmetric only up to rounding
        factor = dist.MultivariateNormal(loc, precision_matrix=precision / self.inflation).scale_tril
        return dist.MultivariateNormal(loc, scale_tril=readable_factor(loc, factor))


def _needed(law: Any, name: str, like: Tensor) -> Tensor:
    """The mean or the variance of a distribution.

    Raises:
        ValueError: If the distribution does not have it.
    """
    found = moment(law, name, like)
    if bool(found.isnan().any()):
        raise ValueError(
            f"the Laplace proposal needs a {name} of {type(law).__name__}, which has none: "
            "train a guide with a density, for example MeanField, or give the distribution this property"
        )
    return found


def _noise(law: Any, like: Tensor) -> Tensor:
    """The variance V of p(x | z) for each coordinate, finite and positive."""
    _needed(law, "mean", like)  # the Jacobian J is that of the mean
    scale = scale_of_law(law)
    variance = _needed(law, "variance", like)
    if scale is not None:
        variance = torch.where(variance.isfinite(), variance, scale.square())
    levels = getattr(law, "levels", None)  # on a grid, V is at least the variance of a uniform distribution on one cell
    least = torch.finfo(variance.dtype).tiny if levels is None else 1 / (12 * (levels - 1) ** 2)
    return variance.clamp_min(least)
