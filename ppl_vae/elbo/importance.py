"""Importance-weighted bounds, with one weight ``w = p(x, z) / q(z | x)`` per datum and per draw."""

import math

from torch import Tensor

from .per_datum import PerDatumELBO, whole_number
from .reading import Reading

__all__ = ["IWAE", "MIWAE", "Renyi", "grouped", "log_mean", "whole_groups"]


def log_mean(log_weight: Tensor, dim: int = 0) -> Tensor:
    """The log of the mean weight over the axis of the draws, by default [*data] from [num_particles, *data]."""
    return log_weight.logsumexp(dim) - math.log(log_weight.shape[dim])


def grouped(log_weight: Tensor, groups: int) -> Tensor:
    """Log weights [num_particles, *data] in groups of draws, [num_particles / groups, groups, *data]."""
    return log_weight.unflatten(0, (-1, groups))


def whole_groups(groups: int, num_particles: int) -> int:
    """The number of groups as an integer.

    Raises:
        ValueError: If it is not a whole number of at least 1 that divides ``num_particles``.
    """
    count = whole_number("groups", groups)
    if num_particles % count:
        raise ValueError(f"groups must divide num_particles, got {groups!r} and {num_particles!r}")
    return count


class IWAE(PerDatumELBO):
    """``log mean_k w_k``, a lower bound of log p(x) that grows with K (Burda et al., 2016, eq. 8).

    The signal-to-noise ratio of its gradient for the guide falls as ``1 / sqrt(K)`` (Rainforth et al., 2018, theorem
    1). ``DReG`` has the same value without this defect.
    """

    target = "iwae"
    weighs_draws = True

    def __init__(self, num_particles: int = 8, max_plate_nesting: int = 1) -> None:
        super().__init__(num_particles, max_plate_nesting)

    @property
    def formula(self) -> str:
        return f"log mean_k w_k (K = {self.num_particles})"

    def objective(self, reading: Reading) -> Tensor:
        return self.bound(reading.log_weight)

    def bound(self, log_weight: Tensor) -> Tensor:
        """The bound per datum, [*data], from log weights [num_particles, *data]."""
        return log_mean(log_weight)


class MIWAE(IWAE):
    """``mean_m log mean_k w_mk``, the mean of M bounds of K / M draws each (Rainforth et al., 2018, section 4).

    Args:
        num_particles: The number K of draws per datum, over all M bounds.
        groups: The number M of bounds. It divides K.
        max_plate_nesting: As in Pyro.

    Raises:
        ValueError: If ``groups`` is not a whole number of at least 1 that divides ``num_particles``.
    """

    target = "miwae"

    def __init__(self, num_particles: int = 16, groups: int = 4, max_plate_nesting: int = 1) -> None:
        super().__init__(num_particles, max_plate_nesting)
        self.groups = whole_groups(groups, self.num_particles)

    @property
    def formula(self) -> str:
        return f"mean_m log mean_k w_mk (K = {self.num_particles}, M = {self.groups})"

    def bound(self, log_weight: Tensor) -> Tensor:
        return log_mean(grouped(log_weight, self.groups)).mean(0)


class Renyi(IWAE):
    """Renyi's bound ``log(mean_k w_k**(1 - alpha)) / (1 - alpha)``, in nats per datum (Li and Turner, 2016, eq. 9).

    For K to infinity it tends to ``R_alpha = log E_q[w**(1 - alpha)] / (1 - alpha)``, which falls as alpha rises. At
    alpha = 0 this limit is log p(x), for alpha to 1 it is the ELBO, and for alpha above 1 it is below the ELBO. For
    K = 1 the expected value of the bound is the ELBO for any alpha. As K grows, this value moves from the ELBO to
    ``R_alpha``:

    * For alpha from 0 to 1 it rises. It is a lower bound of log p(x) for every K, above the ELBO.
    * For alpha above 1 it falls. It is a lower bound of log p(x) for every K, below the ELBO. More draws make it
      looser.
    * For alpha below 0 it rises, and ``R_alpha`` is an upper bound of log p(x). The value passes log p(x) at some K, so
      it is not a bound.

    Args:
        alpha: The order, finite and not 1.
        num_particles: The number K of draws per datum.
        max_plate_nesting: As in Pyro.

    Raises:
        ValueError: If alpha is 1 or not finite.

    References:
        Li and Turner, Renyi Divergence Variational Inference, 2016, theorems 1 and 2. https://arxiv.org/abs/1602.02311
    """

    target = "renyi"

    def __init__(self, alpha: float = 0.5, num_particles: int = 8, max_plate_nesting: int = 1) -> None:
        super().__init__(num_particles, max_plate_nesting)
        if not -math.inf < alpha < math.inf or alpha == 1.0:
            raise ValueError(f"alpha must be finite and not 1 (at 1 the bound is the ELBO), got {alpha!r}")
        self.alpha = alpha
        self.caution = "Renyi's bound with alpha < 0 passes log p(x) as K grows" if alpha < 0 else ""

    @property
    def formula(self) -> str:
        return f"log(mean_k w_k**(1 - alpha)) / (1 - alpha) (alpha = {self.alpha:.4g}, K = {self.num_particles})"

    def bound(self, log_weight: Tensor) -> Tensor:
        order = 1.0 - self.alpha
        return log_mean(order * log_weight) / order
