"""How strong is the signal of a gradient, and how noisy is it? Means and variances from sums over draws."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Moments", "jackknife_error", "signal_to_noise", "snr_floor"]


@dataclass(frozen=True)
class Moments:
    """The number of draws, their sum and the sum of their squares. Moments can be added, so no draw has to be kept.

    Attributes:
        count: Number of draws, [..., 1].
        total: Sum of the draws, [..., coordinates].
        square: Sum of the squared draws, [..., coordinates].
    """

    count: Tensor
    total: Tensor
    square: Tensor

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(self.count + other.count, self.total + other.total, self.square + other.square)

    def __sub__(self, other: "Moments") -> "Moments":
        return Moments(self.count - other.count, self.total - other.total, self.square - other.square)

    def pooled(self) -> "Moments":
        """The sum over the first axis."""
        return Moments(self.count.sum(0), self.total.sum(0), self.square.sum(0))

    @property
    def mean(self) -> Tensor:
        """Mean of each coordinate."""
        return self.total / self.count

    @property
    def variance(self) -> Tensor:
        """Unbiased variance of each coordinate, for one draw."""
        mean_square = self.square / self.count
        return (mean_square - self.mean.square()).clamp_min(0) * self.count / (self.count - 1)


def signal_to_noise(moments: Moments, rounding: float) -> Tensor:
    """``|mean| / sd``, [...], averaged over the coordinates whose standard deviation is above ``rounding``."""
    variance = moments.variance
    is_noisy = variance > rounding**2
    sd = torch.where(is_noisy, variance, 1.0).sqrt()
    ratio = torch.where(is_noisy, moments.mean.abs() / sd, 0.0)
    return ratio.sum(-1) / is_noisy.sum(-1).clamp_min(1)


def snr_floor(draws: int) -> float:
    """The mean of ``|mean| / sd`` over ``draws`` normal numbers of mean 0: ``sqrt(2 / (pi draws))`` to first order."""
    return math.sqrt(2 / (math.pi * draws))


def jackknife_error(left_out: Tensor) -> Tensor:
    """Standard error of a figure, from values [batches], each computed from the draws of all batches but one."""
    return left_out.std(correction=0) * math.sqrt(len(left_out) - 1)
