"""A Gaussian guide q(z | x) with a full covariance."""

import pyro.distributions as dist
import torch
from torch import Tensor

from ..models.half import in_range
from ..models.rounding import readable_factor
from .guide import Guide

__all__ = ["FullRank"]


class FullRank(Guide):
    """``z ~ Normal(loc(x), L(x) L(x)^T)``, where L is lower triangular with a positive diagonal.

    In eval mode the log diagonal is kept in a finite range, as in ``MeanField``. Where log q(z | x) would suffer from
    the rounding of z, only the diagonal of L is used (see ``models.rounding.readable_factor``).
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
            factor = readable_factor(loc, factor)
        return dist.MultivariateNormal(loc, scale_tril=factor)
