"""A Gaussian guide q(z | x) with a full covariance."""

import pyro.distributions as dist
import torch
from torch import Tensor

from ..models.half import in_range
from .guide import Guide

__all__ = ["FullRank"]

READABLE = 0.1  # the largest error in the noise, in standard deviations, that the rounding of z may cause


class FullRank(Guide):
    """``z ~ Normal(loc(x), L(x) L(x)^T)``, where L is lower triangular with a positive diagonal.

    In eval mode the log diagonal is kept in a finite range, as in ``MeanField``. For data so far from the training data
    that log q(z | x) would suffer from rounding (see ``_is_readable``), only the diagonal of L is used. Any q gives a
    lower bound.
    """

    has_density = True
    formula = "Normal(loc(x), covariance(x))"

    def head_sizes(self) -> list[int]:
        below = self.z_dim * (self.z_dim - 1) // 2
        return [self.z_dim, self.z_dim, *[below] * (below > 0)]

    def distribution(self, loc: Tensor, log_diagonal: Tensor, *below: Tensor) -> dist.MultivariateNormal:
        log_diagonal = log_diagonal if self.training else in_range(log_diagonal)
        diagonal = log_diagonal.exp().diag_embed()
        factor = diagonal.clone()
        rows, columns = torch.tril_indices(self.z_dim, self.z_dim, -1, device=loc.device)
        for entries in below:  # one tensor, or none for z_dim = 1
            factor[..., rows, columns] = entries
        if not self.training:
            factor = torch.where(_is_readable(loc, factor)[..., None, None], factor, diagonal)
        return dist.MultivariateNormal(loc, scale_tril=factor)


@torch.no_grad()
def _is_readable(loc: Tensor, factor: Tensor) -> Tensor:
    """Whether the noise e of ``z = loc + L e`` can be computed back from z as ``L^-1 (z - loc)``.

    z is rounded by up to eps |z|, and L^-1 multiplies this error. Where L is far from diagonal, the error can be larger
    than e. Then log q(z | x) is far too low, and the bound is far too high.

    Args:
        loc: The means [..., z_dim].
        factor: The matrices L [..., z_dim, z_dim].

    Returns:
        One truth value per datum, [...].
    """
    identity = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
    inverse = torch.linalg.solve_triangular(factor, identity.expand_as(factor), upper=False)
    rounding = torch.finfo(factor.dtype).eps * (loc.abs() + factor.abs().sum(-1))
    error = (inverse.abs() @ rounding.unsqueeze(-1)).squeeze(-1)
    return (error <= READABLE).all(-1)
