"""Scales of q(z | x) that the rounding of z cannot hide."""

import torch
from torch import Tensor

__all__ = ["least_scale", "readable_factor"]

READABLE = 0.1  # the largest error in the noise, in standard deviations, that the rounding of z may cause


def least_scale(loc: Tensor) -> Tensor:
    """The smallest standard deviation of z for which log q(z | x) survives the rounding of z, of the shape of ``loc``.

    z lies near ``loc`` and is rounded by up to eps ``|loc|``. Where a standard deviation is as small as that, a draw
    lands many standard deviations from ``loc``, or ``loc`` itself is rounded in another way in another batch. Then log
    q(z | x) is far too low, and an importance-weighted bound is far too high. Any q(z | x) gives a lower bound, so in
    eval mode the guides take this standard deviation instead.
    """
    return torch.finfo(loc.dtype).eps * loc.detach().abs() / READABLE


def readable_factor(loc: Tensor, factor: Tensor) -> Tensor:
    """A factor L of the covariance from which the noise e of ``z = loc + L e`` can be computed back.

    z is rounded by up to eps |z|, and L^-1 multiplies this error. Where L is far from diagonal, the error can be larger
    than e. There, only the diagonal of L is used, and each entry is at least ``least_scale``.

    Args:
        loc: The means [..., z_dim].
        factor: The lower triangular matrices L [..., z_dim, z_dim].
    """
    diagonal = factor.diagonal(dim1=-2, dim2=-1).maximum(least_scale(loc)).diag_embed()
    return torch.where(_is_readable(loc, factor)[..., None, None], factor, diagonal)


@torch.no_grad()
def _is_readable(loc: Tensor, factor: Tensor) -> Tensor:
    """Whether the noise can be computed back, [...]."""
    identity = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
    inverse = torch.linalg.solve_triangular(factor, identity.expand_as(factor), upper=False)
    rounding = torch.finfo(factor.dtype).eps * (loc.abs() + factor.abs().sum(-1))
    error = (inverse.abs() @ rounding.unsqueeze(-1)).squeeze(-1)
    return (error <= READABLE).all(-1)
