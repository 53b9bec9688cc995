"""q(z | x) with a full covariance."""

import pyro.distributions as dist
import torch
from torch import Tensor

from .guide import Guide

__all__ = ["FullRank"]


class FullRank(Guide):
    """``z ~ Normal(loc(x), L(x) L(x)^T)``, L lower triangular with a positive diagonal."""

    def head_sizes(self) -> list[int]:
        return [self.z_dim, self.z_dim, self.z_dim * (self.z_dim - 1) // 2]

    def distribution(self, loc: Tensor, log_diagonal: Tensor, below: Tensor) -> dist.MultivariateNormal:
        rows, columns = torch.tril_indices(self.z_dim, self.z_dim, -1, device=loc.device)
        factor = log_diagonal.exp().diag_embed()
        factor[..., rows, columns] = below
        return dist.MultivariateNormal(loc, scale_tril=factor)
