"""q(z | x) around the code of a point mass: a proposal under which an autoencoder has a bound."""

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ..models.latent_variable import LatentVariableModel
from ..models.likelihoods import moment, of_coordinate, scale_of_law
from .guide import Guide

__all__ = ["Laplace"]


class _Code(nn.Module):
    """The code of a guide as a network, x [rows, *x_shape] to the mean of q(z | x) [rows, z_dim]."""

    def __init__(self, guide: Guide) -> None:
        super().__init__()
        self.guide = guide

    def forward(self, x: Tensor) -> Tensor:
        return self.guide.posterior(x).mean


class Laplace(Guide):
    """``z ~ Normal(loc(x), inflation * H^-1)``, ``H = J^T V^-1 J + P^-1`` at the code ``loc(x)``.

    J is the Jacobian of the decoder's mean, V the variance of p(x | z) and P that of p(z). Where p(x | z) has no finite
    variance, as Student's t with few degrees of freedom, V is the square of its scale; on a grid of values V is no less
    than the variance of a uniform law on one cell. With a linear decoder and Gaussians H is the exact precision of
    p(z | x). Twice its inverse keeps the importance weights bounded elsewhere; with ``inflation=1`` the guide stands
    for the posterior itself. Nothing here is trained.

    Args:
        guide: The guide whose code is the centre: the mean of its q(z | x), whether or not it has a density.
        model: The model whose posterior is meant, with the prior under which bounds are wanted.
        inflation: Factor on the variance.

    Raises:
        ValueError: If ``inflation`` is not positive and finite; when it is asked for q(z | x), if p(x | z) has no mean
            to take the Jacobian of, or if p(x | z) or p(z) has no variance.

    References:
        MacKay, Information Theory, Inference, and Learning Algorithms, 2003, chapter 27 (the approximation), chapter
        29.2 (why a proposal has to be wider than its target).
    """

    has_density = True

    def __init__(self, guide: Guide, model: LatentVariableModel, inflation: float = 2.0) -> None:
        super().__init__(_Code(guide), guide.x_shape, guide.z_dim, heads=[nn.Identity()])
        if not 0.0 < inflation < float("inf"):
            raise ValueError(f"inflation must be positive and finite, got {inflation!r}")
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
        precision = (precision + precision.mT) / 2  # in single precision a product is symmetric up to rounding only
        return dist.MultivariateNormal(loc, precision_matrix=precision / self.inflation)


def _needed(law: Any, name: str, like: Tensor) -> Tensor:
    """The mean or the variance of a distribution.

    Raises:
        ValueError: If the distribution does not have it.
    """
    found = moment(law, name, like)
    if bool(found.isnan().any()):
        raise ValueError(
            f"the Laplace proposal needs a {name} of {type(law).__name__}, which has none: "
            "train a guide with a density, MeanField say, or give the distribution this property"
        )
    return found


def _noise(law: Any, like: Tensor) -> Tensor:
    """V of p(x | z), coordinate by coordinate."""
    _needed(law, "mean", like)  # what J is the Jacobian of
    scale = scale_of_law(law)
    variance = _needed(law, "variance", like)
    if scale is not None:
        variance = torch.where(variance.isfinite(), variance, scale.square())
    levels = getattr(law, "levels", None)  # of a grid on [0, 1]; one cell hides where in it the mean is
    least = torch.finfo(variance.dtype).tiny if levels is None else 1 / (12 * (levels - 1) ** 2)
    return variance.clamp_min(least)
