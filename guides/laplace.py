"""q(z | x) around the code of a point mass: a proposal under which an autoencoder has a bound."""

import pyro.distributions as dist
import torch
from torch import Tensor

from ..models.latent_variable import LatentVariableModel
from .guide import Guide

__all__ = ["Laplace"]


class Laplace(Guide):
    """``z ~ Normal(loc(x), 2 H^-1)``, ``H = J^T V^-1 J + P^-1`` at the code ``loc(x)`` of a trained autoencoder.

    J is the Jacobian of the decoder's mean, V the variance of p(x | z) and P that of p(z). With a linear decoder and
    Gaussians H is the exact precision of p(z | x); twice its inverse keeps the importance weights bounded elsewhere.
    Nothing here is trained.

    Args:
        guide: The point mass whose code is the centre.
        model: The model whose posterior is meant, with the prior under which bounds are wanted.
        inflation: Factor on the variance.

    References:
        MacKay, Information Theory, Inference, and Learning Algorithms, 2003, chapter 27 (the approximation), chapter
        29.2 (why a proposal has to be wider than its target).
    """

    def __init__(self, guide: Guide, model: LatentVariableModel, inflation: float = 2.0) -> None:
        super().__init__(guide.encoder, guide.x_shape, guide.z_dim, heads=guide.heads)
        if not 0.0 < inflation < float("inf"):
            raise ValueError(f"inflation must be positive and finite, got {inflation!r}")
        self.model, self.inflation = model, inflation

    def distribution(self, loc: Tensor) -> dist.MultivariateNormal:
        columns = self.model.jacobian(loc).flatten(2)  # [z_dim, batch, x_dim]
        noise = self.model.x_given_z(loc).variance.flatten(1)
        precision = torch.einsum("ibx,bx,jbx->bij", columns, 1 / noise, columns)
        precision = precision + torch.diag(1 / self.model.prior().variance)
        precision = (precision + precision.mT) / 2  # in single precision a product is symmetric up to rounding only
        return dist.MultivariateNormal(loc, precision_matrix=precision / self.inflation)
