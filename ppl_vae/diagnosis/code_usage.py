"""What the codes carry: KL by unit, active units, mutual information, and the aggregate of q(z | x) against p(z)."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Independent, Normal

from ..coding import encode
from ..data.data_set import tensor_of
from ..estimate import Number, mean_over_data
from ..evaluation.codes import ACTIVE, divergence
from ..evaluation.lower_bounds import draws
from ..streams import seeded
from ..variant import Variant, evaluating

__all__ = ["Collapse", "collapse"]

EPSILON = DELTA = 0.01  # a unit is collapsed if its KL is below EPSILON for a share 1 - DELTA of data (Lucas et al.)
NUMBERS = 2**22  # of the densities of codes under the q of other data, at once


class Collapse(NamedTuple):
    """Where the nats of the KL go; ``kl = mutual_information + aggregate_kl``, by one draw of z per datum.

    Attributes:
        kl: E KL(q(z | x) || p(z)), nats, with its standard error over data, as the next two.
        mutual_information: I(x; z) under q and these data, the mean of ``log q(z_i | x_i) - log mean_j q(z_i | x_j)``.
            The own term is part of it: it is at most ``log_rows``, and on average below the I of all data.
        aggregate_kl: KL(q(z) || p(z)), q(z) the mean of q(z | x) over these data: too large by as much, and by any
            amount where the mutual information comes near to ``log_rows``.
        aggregate_kl_least: What the mean and the variance of each unit alone show of it, which is never more: the sum
            of KL(Normal(mean, variance) || p(z_j)). Empty where p(z) is not a product of normal laws.
        log_rows: The largest mutual information that so many data can show.
        variance: Of the mean of q(z | x) over data, [z_dim].
        variance_error: Its standard error, [z_dim], no less than that of a normal law.
        kl_per_dim: Mean KL by unit, [z_dim], nats; empty where q or p(z) does not factorise.
        collapsed: Units that no datum uses: KL below .01 for 99 % of them; None where there is no KL by unit.
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
        """Units whose variance is above the threshold of ``evaluation.ACTIVE``."""
        return sum(variance > ACTIVE for variance in self.variance)


def collapse(variant: Variant, x: Tensor, *, seed: int = 0) -> Collapse:
    """Ask whether codes tell data apart, and whether together they fill the prior.

    Args:
        variant: A pair whose guide has a density.
        x: Held-out data [rows, *x_shape], in the data's units. Work grows with the square of the rows.
        seed: Of the draws.

    Raises:
        ValueError: If the guide is a point mass, or there are fewer than 2 rows.

    References:
        Hoffman and Johnson, ELBO Surgery, 2016, eq. 7 (the identity). Burda et al., 2016, section 5 (active units).
        Lucas et al., Don't Blame the ELBO!, 2019, section 2 (collapse). Shannon information is concave in the law of x:
        this is why that of a sample of data is below that of all of them. Among laws with the same mean and variance
        the normal one is nearest to a normal p(z), and a product p(z) is no nearer to q(z) than its margins are: this
        is why two moments of each unit bound KL(q(z) || p(z)) from below.
    """
    x = tensor_of(x)
    if len(x) < 2:
        raise ValueError(f"collapse needs at least 2 data to tell apart, got {len(x)}")
    drawn = draws(variant, variant.in_model_units(x), 1, seed=seed)
    own, prior = drawn.guide[0].double(), drawn.prior[0].double()
    with evaluating(variant), seeded(seed):
        aggregate = _aggregate(variant, x, drawn.z[0]).double()
        _, per_dim = divergence(variant, variant.in_model_units(x))
    means = encode(variant, x)
    unused = None if per_dim is None else int(((per_dim < EPSILON).double().mean(0) >= 1 - DELTA).sum())
    return Collapse(
        mean_over_data(own - prior),
        mean_over_data(own - aggregate),
        mean_over_data(aggregate - prior),
        _least(variant, drawn.z[0].double()),
        math.log(len(x)),
        means.var(0).tolist(),
        _variance_error(means).tolist(),
        [] if per_dim is None else per_dim.mean(0).tolist(),
        unused,
    )


def _aggregate(variant: Variant, x: Tensor, z: Tensor) -> Tensor:
    """Log of the mean density of each code z [rows, z_dim] under the q of every datum, [rows]."""
    total = torch.full((len(z),), -math.inf).to(z)
    for rows in variant.in_model_units(x).split(min(variant.at_once, max(1, NUMBERS // z.numel()))):
        total = total.logaddexp(variant.guide.posterior(rows).log_prob(z[:, None]).logsumexp(1))
    return total - math.log(len(z))


def _variance_error(means: Tensor) -> Tensor:
    """Standard error of the variance over data of means [rows, z_dim], [z_dim].

    Few data say little of their own fourth moment, and two say nothing: the error of a normal law is the least.
    """
    square = (means - means.mean(0)).square()
    return torch.maximum(square.std(0) / math.sqrt(len(means)), means.var(0) * math.sqrt(2 / (len(means) - 1)))


def _least(variant: Variant, z: Tensor) -> Number:
    """A lower bound of KL(q(z) || p(z)) from the moments of codes z [rows, z_dim]; its error by the delta method.

    The estimate ``sum_j (s_j**2 + m_j**2 - 1 - log s_j**2) / 2`` is ``1 / rows`` per unit too large on average, which
    is taken off.
    """
    prior: Any = variant.model.prior()
    law = getattr(prior, "base_dist", None)
    if not isinstance(prior, Independent) or not isinstance(law, Normal):
        return Number(None, reason="p(z) is not a product of normal laws")
    z = (z - law.loc) / law.scale
    mean, variance = z.mean(0), z.var(0).clamp_min(torch.finfo(z.dtype).tiny)
    value = (variance + mean.square() - 1 - variance.log()).sum() / 2 - z.shape[1] / len(z)
    influence = (z.square() - (z - mean).square() / variance).sum(1) / 2
    return Number(float(value), float(influence.std() / math.sqrt(len(z))))
