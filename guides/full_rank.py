"""q(z | x) with a full covariance."""

import pyro.distributions as dist
import torch
from torch import Tensor

from ..models.half import in_range
from .guide import Guide

__all__ = ["FullRank"]

READABLE = 0.1  # error of a coordinate of the noise, in standard deviations, that the rounding of z may make


class FullRank(Guide):
    """``z ~ Normal(loc(x), L(x) L(x)^T)``, L lower triangular with a positive diagonal.

    In eval mode the log diagonal is kept in a finite range, as in ``MeanField``. For data so far out that the noise
    could not be read back from z (see ``_readable``), L is its diagonal alone. Any q gives a lower bound.
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
        for entries in below:  # none where a code is a single number
            factor[..., rows, columns] = entries
        if not self.training:
            factor = torch.where(_readable(loc, factor)[..., None, None], factor, diagonal)
        return dist.MultivariateNormal(loc, scale_tril=factor)


@torch.no_grad()
def _readable(loc: Tensor, factor: Tensor) -> Tensor:
    """Whether the noise e of ``z = loc + L e`` can be read back as ``L^-1 (z - loc)``: [...] from [..., z_dim].

    z is rounded by up to eps |z|, which L^-1 multiplies. Where L is far from a diagonal, the rounding outgrows e, log
    q(z | x) comes out far too low, and the bound far too high.
    """
    identity = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
    inverse = torch.linalg.solve_triangular(factor, identity.expand_as(factor), upper=False)
    rounding = torch.finfo(factor.dtype).eps * (loc.abs() + factor.abs().sum(-1))
    return ((inverse.abs() @ rounding.unsqueeze(-1)).squeeze(-1) <= READABLE).all(-1)
