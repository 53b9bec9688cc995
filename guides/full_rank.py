"""q(z | x) with a full covariance."""

import pyro.distributions as dist
import torch
from torch import Tensor

from .guide import Guide

__all__ = ["FullRank"]


class FullRank(Guide):
    """``z ~ Normal(loc(x), L(x) L(x)^T)``, L lower triangular with a positive diagonal."""

    def head_sizes(self) -> list[int]:
        below = self.z_dim * (self.z_dim - 1) // 2
        return [self.z_dim, self.z_dim, *[below] * (below > 0)]

    def distribution(self, loc: Tensor, log_diagonal: Tensor, *below: Tensor) -> dist.MultivariateNormal:
        factor = log_diagonal.exp().diag_embed()
        rows, columns = torch.tril_indices(self.z_dim, self.z_dim, -1, device=loc.device)
        for entries in below:  # none where a code is a single number
            factor[..., rows, columns] = entries
        return dist.MultivariateNormal(loc, scale_tril=factor)
