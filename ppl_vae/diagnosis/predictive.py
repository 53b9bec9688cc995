"""Prior predictive checks: statistics of held-out data beside those of data sets that the model makes."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..coding import sample
from ..models.likelihoods import is_nominal
from ..streams import stream_seed
from ..variant import Variant

__all__ = ["EXTREMES", "REPLICATES", "Check", "checks_of", "prior_predictive"]

REPLICATES = 399  # data sets that are drawn by default
FIRST_STREAM = 500_000  # not 0, because stream i of seed 0 is ``sample(seed=i)``, which may have made the data
EXTREMES = {"minimum", "maximum", "sd over data of the energy"}  # statistics that a few extreme numbers decide


class Check(NamedTuple):
    """One statistic of held-out data beside that of equally large data sets from the model.

    Attributes:
        statistic: The name of the statistic. All statistics are in the model's units.
        observed: The value for the held-out data.
        replicated: The mean over replicates.
        spread: The standard deviation over replicates.
        p_value: The two-sided p-value. It is twice the smaller of two shares: of the replicates that are not above the
            observed value, and of those that are not below it. The held-out data count as one more replicate.
    """

    statistic: str
    observed: float
    replicated: float
    spread: float
    p_value: float


def statistics_of(y: Tensor) -> dict[str, float]:
    """Statistics of one data set y [rows, *x_shape], by name.

    The first four statistics describe all numbers of y. The others describe how the energy (the mean square) and the
    mean of a datum are distributed over data.
    """
    y = y.flatten(1).double()
    energy = y.square().mean(1)
    found = {
        "mean": y.mean(),
        "standard deviation": y.std(),
        "minimum": y.min(),
        "maximum": y.max(),
        "median energy per datum": energy.median(),
        "sd over data of the energy": energy.std(),
        "sd over data of the mean": y.mean(1).std(),
    }
    return {name: float(value) for name, value in found.items()}


def statistics_of_categories(y: Tensor) -> dict[str, float]:
    """Statistics of one data set of codes y [rows, *x_shape], by name. Another numbering of the categories keeps them.

    A datum is described by the number of its different categories, and by the share of its most common one.
    """
    codes = y.flatten(1).long()
    counts = torch.zeros(len(y), int(codes.max()) + 1, dtype=torch.float64, device=y.device)  # [rows, categories]
    counts.scatter_add_(1, codes, torch.ones_like(codes, dtype=torch.float64))
    shares = counts.sum(0) / y.numel()
    different = (counts > 0).sum(1).double()
    commonest = counts.amax(1) / y[0].numel()
    found = {
        "entropy of the categories, nats": torch.special.entr(shares).sum(),
        "share of the most common category": shares.max(),
        "different categories per datum": different.mean(),
        "sd over data of the different categories": different.std(),
        "share of a datum's most common category": commonest.mean(),
    }
    return {name: float(value) for name, value in found.items()}


def prior_predictive(
    variant: Variant, x: Any, *, ex_post: nn.Module | None = None, replicates: int = REPLICATES, seed: int = 0
) -> list[Check]:
    """Compare held-out data with data sets of the same size from the model, z ~ p(z) and x ~ p(x | z).

    If the model made the data, the probability that a p-value is at most some level is at most this level. Statistics
    that differ only by rounding count as equal, on both sides. The statistics of categories are other ones than those
    of numbers, because their codes have no mean.

    Args:
        variant: A pair with any guide. The guide is not used.
        x: Held-out data [rows, *x_shape], in the data's units.
        ex_post: Another p(z), as ``ex_post.fit`` returns it.
        replicates: Number of data sets that are drawn. No p-value is below ``2 / (replicates + 1)``.
        seed: Seed of the draws.

    Returns:
        One ``Check`` per statistic.

    Raises:
        ValueError: If there are fewer than 2 rows, or no replicate.

    References:
        Box, Sampling and Bayes' Inference in Scientific Modelling and Robustness, 1980 (prior predictive checks).
    """
    y = variant.admit(x)
    if len(y) < 2 or replicates < 1:
        raise ValueError(f"wanted at least 2 data and 1 replicate, got {len(y)} and {replicates!r}")
    return checks_of(variant, y, ex_post, replicates, seed)


def checks_of(
    variant: Variant, y: Tensor, ex_post: nn.Module | None = None, replicates: int = REPLICATES, seed: int = 0
) -> list[Check]:
    """``prior_predictive`` for held-out data y [rows, *x_shape] in the model's units."""
    observed = _statistics_for(variant)(y)
    replicated = [list(made.values()) for made in replicated_statistics(variant, len(y), ex_post, replicates, seed)]
    values = torch.tensor(list(observed.values()), dtype=torch.float64)
    made = torch.tensor(replicated, dtype=torch.float64)  # [replicates, statistics]
    slack = _rounding(variant, y)
    not_above = (made <= values + slack).sum(0)
    not_below = (made >= values - slack).sum(0)
    tail = torch.minimum(not_above, not_below) + 1  # the held-out data are one more
    p_values = (2 * tail.double() / (replicates + 1)).clamp_max(1)
    columns = (values, made.mean(0), made.std(0, correction=0), p_values)
    rows = torch.stack(columns, 1).tolist()
    return [Check(name, *row) for name, row in zip(observed, rows, strict=True)]


def _statistics_for(variant: Variant) -> Callable[[Tensor], dict[str, float]]:
    """The function that gives the statistics of the data of a pair."""
    return statistics_of_categories if is_nominal(variant.noise) else statistics_of


def _rounding(variant: Variant, y: Tensor) -> float:
    """How far the statistics of y [rows, *x_shape] and of an equal replicate may differ by rounding.

    A replicate was converted to the data's units and back. The error of such a conversion is measured on y. If a number
    is squared for an energy, its error is multiplied by twice the number.
    """
    returned = variant.in_model_units(variant.model.scale.inverse(y))
    largest = float(y.abs().max())
    error = float((returned - y).abs().max()) + torch.finfo(y.dtype).eps * largest
    return 8 * error * max(1.0, 2 * largest)


def replicated_statistics(
    variant: Variant, rows: int, ex_post: nn.Module | None, replicates: int, seed: int
) -> Iterator[dict[str, float]]:
    """The statistics of each of several data sets from the model, with this many rows each.

    Data sets are drawn in groups, as many at once as the networks take. Each group has its own random stream.
    """
    together, statistics = max(1, variant.at_once // rows), _statistics_for(variant)
    for stream, some in enumerate(torch.arange(replicates).split(together), FIRST_STREAM):
        x = sample(variant, len(some) * rows, prior=ex_post, seed=stream_seed(seed, stream))
        yield from map(statistics, variant.in_model_units(x).split(rows))
