"""Bounds that weigh draws by ``w = p(x, z) / q(z | x)``, one weight per draw and datum, on unscaled log densities."""

import math

from torch import Tensor

from .per_datum import PerDatumELBO, whole
from .reading import Reading

__all__ = ["IWAE", "MIWAE", "Renyi", "grouped", "log_mean", "whole_groups"]


def log_mean(log_weight: Tensor) -> Tensor:
    """Log of the mean weight: [num_particles, *data] to [*data]."""
    return log_weight.logsumexp(0) - math.log(len(log_weight))


def grouped(log_weight: Tensor, groups: int) -> Tensor:
    """Draws in groups: [num_particles, *data] to [num_particles / groups, groups, *data]."""
    return log_weight.unflatten(0, (-1, groups))


def whole_groups(groups: int, num_particles: int) -> int:
    """A number of groups that so many draws can be cut into."""
    if num_particles % whole("groups", groups):
        raise ValueError(f"groups must divide num_particles, got {groups!r} and {num_particles!r}")
    return whole("groups", groups)


class IWAE(PerDatumELBO):
    """``log mean_k w_k``: a lower bound of log p(x) that grows with K (Burda et al., 2016, eq. 8).

    Its gradient for the guide has a signal-to-noise ratio of order ``1 / sqrt(K)`` (Rainforth et al., 2018, theorem 1);
    ``DReG`` has the same value and none of that.
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
        """Of log weights [num_particles, *data]: [*data]."""
        return log_mean(log_weight)


class MIWAE(IWAE):
    """``mean_m log mean_k w_mk``: M bounds of K / M draws each, averaged (Rainforth et al., 2018, section 4).

    Args:
        num_particles: Draws of a datum in all, M times those of one bound.
        groups: Bounds M.
        max_plate_nesting: As in Pyro.
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
    """``log(mean_k w_k**(1 - alpha)) / (1 - alpha)``, in nats per datum (Li and Turner, 2016, eq. 9).

    Its limit for K to infinity is Renyi's bound ``R_alpha = log E_q[w**(1 - alpha)] / (1 - alpha)``. It falls as alpha
    rises: log p(x) at alpha = 0, the ELBO for alpha to 1, and below the ELBO for alpha above 1. For K = 1 the
    expectation is the ELBO, whatever alpha is, and it goes from there to ``R_alpha`` as K grows, since the logarithm
    is concave and ``1 - alpha`` has a sign:

    * alpha from 0 to 1: from below, up; a lower bound of log p(x) for every K, above the ELBO.
    * alpha above 1: from above, down; a lower bound of log p(x) for every K, below the ELBO. More draws make it looser.
    * alpha below 0: from below, up; ``R_alpha`` is an upper bound of log p(x), so that the value passes log p(x) as K
      grows and is no bound for a given K.

    Args:
        alpha: The order, finite and not 1.
        num_particles: Draws K of each datum.
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
            raise ValueError(f"alpha must be finite and not 1, where the bound is the ELBO: got {alpha!r}")
        self.alpha = alpha
        self.caution = "Renyi's with alpha < 0 passes log p(x) as K grows" if alpha < 0 else ""

    @property
    def formula(self) -> str:
        return f"log(mean_k w_k**(1 - alpha)) / (1 - alpha) (alpha = {self.alpha:.4g}, K = {self.num_particles})"

    def bound(self, log_weight: Tensor) -> Tensor:
        order = 1.0 - self.alpha
        return log_mean(order * log_weight) / order
