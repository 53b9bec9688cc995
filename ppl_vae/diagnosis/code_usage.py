"""The information in the codes: KL by unit, active units, mutual information, and the aggregate of q beside p(z)."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Independent, Normal

from ..coding import mean_codes
from ..estimate import Number, mean_over_data, standard_error
from ..evaluation.kl_terms import ACTIVE, kl_from_prior
from ..evaluation.lower_bounds import draws
from ..streams import seeded
from ..variant import Variant, evaluating

__all__ = ["Collapse", "collapse", "usage_of"]

EPSILON = DELTA = 0.01  # a unit is collapsed if its KL is below EPSILON for a share 1 - DELTA of data (Lucas et al.)
NUMBERS = 2**22  # numbers that are held at once when codes are scored under the q of other data


class Collapse(NamedTuple):
    """Where the nats of the KL go: ``kl = mutual_information + aggregate_kl``, estimated by one draw of z per datum.

    Attributes:
        kl: E KL(q(z | x) || p(z)), nats, with its standard error over data. The next two fields have such errors too.
        mutual_information: I(x; z) under q and these data, the mean of ``log q(z_i | x_i) - log mean_j q(z_i | x_j)``.
            The term j = i is part of the inner mean. The estimate is therefore at most ``log_rows``, and on average it
            is below the mutual information under all data.
        aggregate_kl: KL(q(z) || p(z)), where q(z) is the mean of q(z | x) over these data. It is too large by the
            amount by which the mutual information is too small. This amount is unknown if the mutual information is
            close to ``log_rows``.
        aggregate_kl_least: A lower bound of KL(q(z) || p(z)), from the mean and the variance of each unit alone. It is
            the sum of KL(Normal(mean, variance) || p(z_j)), and is empty if p(z) is not a product of normal laws.
        log_rows: The largest mutual information that this number of data can show, nats.
        variance: The variance over data of the mean of q(z | x), [z_dim].
        variance_error: Its standard error, [z_dim], which is at least that of a normal law.
        kl_per_dim: The mean KL of each unit, [z_dim], nats. It is empty if q or p(z) does not factorise.
        collapsed: The number of units whose KL is below 0.01 for 99 % of the data. It is None if there is no KL by
            unit.
    """

    kl: Number
    mutual_information: Number
    aggregate_kl: Number
    aggregate_kl_least: Number
    log_rows: float
    variance: list[float]
    variance_error: list[float]
    kl_per_dim: list[float]
    collapsed: int | None

    @property
    def active(self) -> int:
        """The number of units whose variance is above ``evaluation.kl_terms.ACTIVE``."""
        return sum(variance > ACTIVE for variance in self.variance)


def collapse(variant: Variant, x: Any, *, seed: int = 0) -> Collapse:
    """Measure whether codes tell data apart, and whether all codes together fill the prior.

    Args:
        variant: A pair whose guide has a density.
        x: Held-out data [rows, *x_shape], in the data's units. The work grows with the square of the rows.
        seed: Seed of the draws.

    Returns:
        The parts of the KL, and how much each unit of the code is used; see ``Collapse``.

    Raises:
        ValueError: If the guide is a point mass, or there are fewer than 2 rows.

    References:
        Hoffman and Johnson, ELBO Surgery, 2016, eq. 7 (the identity). Burda et al., 2016, section 5 (active units).
        Lucas et al., Don't Blame the ELBO!, 2019, section 2 (collapse).

        Mutual information is concave in the law of x. Its value for a sample of data is therefore, on average, below
        its value for all data. Among laws with the same mean and variance, the normal one is nearest to a normal p(z),
        and a product p(z) is no nearer to q(z) than its margins are. Two moments of each unit therefore bound
        KL(q(z) || p(z)) from below.
    """
    y = variant.admit(x)
    if len(y) < 2:
        raise ValueError(f"collapse needs at least 2 data to tell apart, got {len(y)}")
    return usage_of(variant, y, seed)


def usage_of(variant: Variant, y: Tensor, seed: int = 0) -> Collapse:
    """``collapse`` for data y [rows, *x_shape] in the model's units."""
    drawn = draws(variant, y, 1, seed=seed)
    z = drawn.z[0]
    log_guide, log_prior = drawn.guide[0].double(), drawn.prior[0].double()
    with evaluating(variant), seeded(seed):
        log_aggregate = _log_aggregate(variant, y, z).double()
        _, kl_per_dim = kl_from_prior(variant, y)
    means = mean_codes(variant, y)
    return Collapse(
        kl=mean_over_data(log_guide - log_prior),
        mutual_information=mean_over_data(log_guide - log_aggregate),
        aggregate_kl=mean_over_data(log_aggregate - log_prior),
        aggregate_kl_least=_least_aggregate_kl(variant, z.double()),
        log_rows=math.log(len(y)),
        variance=means.var(0).tolist(),
        variance_error=_variance_error(means).tolist(),
        kl_per_dim=[] if kl_per_dim is None else kl_per_dim.mean(0).tolist(),
        collapsed=None if kl_per_dim is None else _collapsed(kl_per_dim),
    )


def _collapsed(kl_per_dim: Tensor) -> int:
    """The number of collapsed units, from the KL of each datum and unit [rows, z_dim]."""
    unused = (kl_per_dim < EPSILON).double().mean(0)  # the share of data that do not use the unit
    return int((unused >= 1 - DELTA).sum())


def _log_aggregate(variant: Variant, y: Tensor, z: Tensor) -> Tensor:
    """The log of the mean density of each code z [rows, z_dim] under the q of every datum, [rows]."""
    total = torch.full((len(z),), -math.inf).to(z)
    at_once = min(variant.at_once, max(1, NUMBERS // z.numel()))
    for rows in y.split(at_once):
        log_density = variant.guide.posterior(rows).log_prob(z[:, None])  # of each code under each q
        total = total.logaddexp(log_density.logsumexp(1))
    return total - math.log(len(z))


def _variance_error(means: Tensor) -> Tensor:
    """The standard error of the variance over data of means [rows, z_dim], [z_dim].

    A few data say little about their own fourth moment, and two say nothing. The error is therefore never below that of
    a normal law.
    """
    square = (means - means.mean(0)).square()
    normal_error = means.var(0) * math.sqrt(2 / (len(means) - 1))
    return torch.maximum(standard_error(square), normal_error)


def _least_aggregate_kl(variant: Variant, z: Tensor) -> Number:
    """A lower bound of KL(q(z) || p(z)) from two moments of codes z [rows, z_dim], with its error by the delta method.

    The estimate ``sum_j (s_j**2 + m_j**2 - 1 - log s_j**2) / 2`` is too large by ``1 / rows`` per unit on average.
    This amount is subtracted.
    """
    prior: Any = variant.model.prior()
    law = getattr(prior, "base_dist", None)
    if not isinstance(prior, Independent) or not isinstance(law, Normal):
        return Number(None, reason="p(z) is not a product of normal laws")
    rows, z_dim = z.shape
    z = (z - law.loc) / law.scale
    mean, variance = z.mean(0), z.var(0).clamp_min(torch.finfo(z.dtype).tiny)
    estimate = (variance + mean.square() - 1 - variance.log()).sum() / 2
    influence = (z.square() - (z - mean).square() / variance).sum(1) / 2
    return Number(float(estimate - z_dim / rows), float(standard_error(influence)))
