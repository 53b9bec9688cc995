"""Compare fits on the same held-out data by a paired difference, or find their best mixture."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..estimate import rows_named, standard_error

__all__ = ["Paired", "Stacked", "log_mixture", "paired", "stack"]
CENTRING = 0.1  # a Newton step aims to shrink the product of a weight and its multiplier to this share
ITERATIONS = 100  # the largest number of Newton steps, of which about 15 are needed
TOLERANCE = 1e-10  # the log score may be this many nats below the best one


class Paired(NamedTuple):
    """The mean of ``a - b`` in nats per datum, which is above 0 if a is better.

    Attributes:
        difference: The mean over data, and over seeds where there are several.
        error_over_data: The standard error for these fits on other data of the same kind. Its replicates are the
            differences per datum, averaged over seeds.
        error_over_seeds: The standard error for other fits on these data. Its replicates are the differences per seed,
            averaged over data. It is None for one seed, which does not show the effect of another seed.
    """

    difference: float
    error_over_data: float
    error_over_seeds: float | None

    def __str__(self) -> str:
        seeds = "one seed" if self.error_over_seeds is None else f"{self.error_over_seeds:.2g} over seeds"
        return f"a - b = {self.difference:.5g} ± {self.error_over_data:.2g} nats per datum over data, {seeds}"


class Stacked(NamedTuple):
    """A mixture of fits, ``sum_m weight_m p_m(x)``.

    Attributes:
        weights: The weights of the models, [models]. Their sum is 1.
        log_density: The log density of the mixture, [rows], nats per datum. The weights were chosen on the same data.
        slack: An upper bound of how far the mean of ``log_density`` is below the best one, nats per datum.
    """

    weights: Tensor
    log_density: Tensor
    slack: float

    def __str__(self) -> str:
        score, error = self.log_score
        shares = ", ".join(f"{weight:.3f}" for weight in self.weights.tolist())
        return f"weights {shares}; log score of the mixture {score:.5g} ± {error:.2g} nats per datum"

    @property
    def log_score(self) -> tuple[float, float]:
        """The mean over data of ``log_density``, and its standard error."""
        return float(self.log_density.mean()), float(standard_error(self.log_density))


def paired(a: Any, b: Any) -> Paired:
    """Compare two fits by their bounds of the same held-out data.

    Bounds of one datum go up and down together, so that the error of a difference is far below that of either mean.

    Args:
        a, b: Bounds in nats, [rows] for one fit each, or [seeds, rows] for one fit per seed.

    Raises:
        ValueError: If the shapes do not fit, or a bound is infinite or NaN, so that its datum has no difference.
    """
    a, b = torch.as_tensor(a), torch.as_tensor(b)
    if a.shape != b.shape or a.ndim not in (1, 2) or a.shape[-1] < 2:
        wanted = "[rows] or [seeds, rows], the same for both, with 2 rows or more"
        raise ValueError(f"paired wants {wanted}, got {list(a.shape)} and {list(b.shape)}")
    for name, values in (("a", a), ("b", b)):
        broken = (~torch.atleast_2d(values).isfinite()).any(0).nonzero().flatten().tolist()
        if broken:
            named = rows_named(broken)
            raise ValueError(
                f"paired wants finite bounds, and {name} has none for {named}: leave these rows out of both"
            )
    differences = torch.atleast_2d(a.double() - b.double())
    per_datum, per_seed = differences.mean(0), differences.mean(1)
    over_seeds = float(standard_error(per_seed)) if len(per_seed) > 1 else None
    return Paired(float(per_datum.mean()), float(standard_error(per_datum)), over_seeds)


def log_mixture(log_densities: Tensor, weights: Tensor) -> Tensor:
    """The log density of a mixture, ``log sum_m weight_m p_m(x)``, [rows], nats, from log densities [models, rows]."""
    return (log_densities + weights.log().unsqueeze(1)).logsumexp(0)


def stack(log_densities: Tensor | Sequence[Any]) -> Stacked:
    """Find the weights of the mixture with the largest mean log density (stacking of predictive distributions).

    A primal-dual interior point method maximises ``mean_n log(sum_m w_m p_m(x_n)) - sum_m w_m`` over w >= 0. This is
    concave and has one unknown per model, and its optimum sums to one. At the optimum
    ``g_m = mean_n p_m(x_n) / mixture(x_n)`` is 1 where w_m > 0 and at most 1 elsewhere. For any other w, ``max g - 1``
    bounds the slack.

    Args:
        log_densities: Log p(x), or lower bounds of it, of held-out data under each model, nats, [models, rows]. With
            lower bounds the mixture is a lower bound too.

    Raises:
        ValueError: If the shape does not fit, a number is NaN, or a datum has no finite density under any model.

    References:
        Yao et al., Using Stacking to Average Bayesian Predictive Distributions, 2018, eq. 4.
        https://arxiv.org/abs/1704.02030
    """
    if not isinstance(log_densities, Tensor):
        log_densities = torch.stack([torch.as_tensor(row) for row in log_densities])
    log_p = log_densities.detach().double()
    wanted = "[models, rows], 2 rows or more, each with a finite density under some model and no NaN"
    if log_p.ndim != 2 or len(log_p) < 1 or log_p.shape[1] < 2:
        raise ValueError(f"stack wants {wanted}, got shape {list(log_p.shape)}")
    broken = (~log_p.amax(0).isfinite()).nonzero().flatten().tolist()
    if broken:
        raise ValueError(f"stack wants {wanted}, got shape {list(log_p.shape)} with none for {rows_named(broken)}")
    weights = _optimum((log_p - log_p.amax(0)).exp())
    log_density = log_mixture(log_p, weights)
    slack = float((log_p - log_density).exp().mean(1).max() - 1)
    return Stacked(weights.to(log_densities), log_density.to(log_densities), max(slack, 0.0))


def _optimum(p: Tensor) -> Tensor:
    """The best weights [models] for densities [models, rows]. All densities of a datum may share any factor."""
    weights, multipliers = torch.full_like(p[:, 0], 1 / len(p)), torch.ones_like(p[:, 0])
    for _ in range(ITERATIONS):
        share = p / (weights @ p)
        slope = share.mean(1)
        if float(slope.max()) - 1 < TOLERANCE and abs(float(weights.sum()) - 1) < TOLERANCE:
            break
        target = CENTRING * (weights @ multipliers) / len(p)  # the wanted product of each weight and its multiplier
        curvature = share @ share.mT / p.shape[1] + torch.diag(multipliers / weights)
        move = torch.linalg.solve(curvature, slope - 1 + target / weights)
        change = (target - multipliers * move) / weights - multipliers
        falls = torch.cat([-move / weights, -change / multipliers]).max()
        length = min(1.0, 0.95 / max(float(falls), 0.95))  # so that weights and multipliers stay positive
        weights, multipliers = weights + length * move, multipliers + length * change
    return weights / weights.sum()
