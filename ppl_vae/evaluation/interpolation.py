"""Spherical interpolation between the codes of two data."""

import math
import random

import torch
from torch import Tensor

from ..coding import mean_codes, mean_data
from ..variant import Variant

__all__ = ["interpolate", "pairs", "slerp"]


def slerp(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Interpolate codes [..., d] spherically: their directions on the sphere (Shoemake, 1985), their lengths linearly.

    The interpolation is linear where codes are parallel or opposite, or where one is at the origin.
    """
    lengths = a.norm(dim=-1, keepdim=True), b.norm(dim=-1, keepdim=True)
    tiny = torch.finfo(a.dtype).tiny  # a code at the origin has no direction
    here, there = (code / length.clamp_min(tiny) for code, length in zip((a, b), lengths, strict=True))
    angle = torch.arccos((here * there).sum(-1, keepdim=True).clamp(-1, 1))
    sine = torch.where(lengths[0] * lengths[1] > tiny, angle.sin(), 0.0)
    straight = sine < 1e-3  # the direction between them would come from rounding
    sine = torch.where(straight, 1.0, sine)
    direction = ((1 - t) * angle).sin() / sine * here + (t * angle).sin() / sine * there
    length = (1 - t) * lengths[0] + t * lengths[1]
    return torch.where(straight, (1 - t) * a + t * b, length * direction)


def interpolate(variant: Variant, a: Tensor, b: Tensor, t: float) -> Tensor:
    """Decode the spherical interpolation between the codes of two sets of data.

    The codes of a point mass need not lie near a sphere around 0, so they are standardised first.

    Args:
        variant: The pair.
        a, b: Data [rows, *x_shape], in the model's units.
        t: The position between the codes, from 0 at a to 1 at b.

    Returns:
        The decoded means [rows, *x_shape], in the model's units.
    """
    first, last = mean_codes(variant, a), mean_codes(variant, b)
    both = torch.cat([first, last])
    shift, width = (0.0, 1.0) if variant.has_bound else (both.mean(0), both.std(0).clamp_min(1e-6))
    between = slerp((first - shift) / width, (last - shift) / width, t)
    return mean_data(variant, between * width + shift)


def pairs(x: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Draw as many distinct pairs of distinct rows as there are rows.

    There are ``rows (rows - 1) / 2`` pairs. This is enough except for two rows, whose one pair is taken twice.

    Returns:
        The first rows of the pairs, and the second rows, in the shape of x.
    """
    rows = len(x)
    every = rows * (rows - 1) // 2
    chosen = random.Random(seed).sample(range(every), min(rows, every))
    ends = [_pair(index) for index in (chosen * 2)[:rows]]
    first, last = torch.tensor(ends, device=x.device).T
    return x[first], x[last]


def _pair(index: int) -> tuple[int, int]:
    """Number ``index`` of the pairs (1, 0), (2, 0), (2, 1), (3, 0), and so on."""
    first = (1 + math.isqrt(1 + 8 * index)) // 2
    return first, index - first * (first - 1) // 2
