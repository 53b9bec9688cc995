"""Data that a model makes against data that were held out: statistics of whole sets, and the noise of each number."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..bounds import draws
from ..data import tensor_of
from ..evaluation import Number, mean_over_data
from ..seeding import seeded
from ..variant import Variant, evaluating, sample

__all__ = ["CENTRAL", "Check", "NoiseCalibration", "noise_calibration", "prior_predictive"]

CENTRAL = (0.5, 0.9)  # masses of the intervals whose coverage is counted
BINS = 20  # of quantiles: they end where both intervals do
REPLICAS = 99  # draws of p(x | z) that a number is ranked among where there is no distribution function
NUMBERS = 2**23  # of replicas held at once


class Check(NamedTuple):
    """One statistic of held-out data beside that of as many data from the model.

    Attributes:
        statistic: Its name; all are in the model's units.
        observed: Of the held-out data.
        replicated: Mean over replicates.
        spread: Standard deviation over replicates.
        p_value: Two-sided: twice the smaller share of replicates, the held-out data counted among them.
    """

    statistic: str
    observed: float
    replicated: float
    spread: float
    p_value: float


def statistics(y: Tensor) -> dict[str, float]:
    """Of one data set y [rows, *x_shape]: of all its numbers, and over data of a datum's mean and energy."""
    y = y.flatten(1).double()
    energy = y.square().mean(1)  # of a datum: its mean square
    found = {
        "mean": y.mean(),
        "standard deviation": y.std(),
        "minimum": y.min(),
        "maximum": y.max(),
        "median energy of a datum": energy.median(),
        "sd over data of the energy": energy.std(),
        "sd over data of the mean": y.mean(1).std(),
    }
    return {name: float(value) for name, value in found.items()}


def prior_predictive(
    variant: Variant, x: Tensor, *, ex_post: nn.Module | None = None, replicates: int = 399, seed: int = 0
) -> list[Check]:
    """Compare held-out data with data sets of the same size from the model, z ~ p(z) and x ~ p(x | z).

    Where the data are the model's own, a p-value is below any level with at most that probability.

    Args:
        variant: A pair with any guide, which is not used.
        x: Held-out data [rows, *x_shape], in the data's units.
        ex_post: Another p(z), as ``ex_post.fit`` returns it.
        replicates: Data sets that are drawn: no p-value is below ``2 / (replicates + 1)``.
        seed: Of the draws.

    Raises:
        ValueError: If there are fewer than 2 rows, or no replicate.

    References:
        Box, Sampling and Bayes' Inference in Scientific Modelling and Robustness, 1980 (prior predictive checks).
    """
    x = tensor_of(x)
    if len(x) < 2 or replicates < 1:
        raise ValueError(f"wanted at least 2 data and 1 replicate, got {len(x)} and {replicates!r}")
    observed = statistics(variant.in_model_units(x))
    made = torch.tensor(
        [list(found.values()) for found in _replicated(variant, len(x), ex_post, replicates, seed)], dtype=torch.float64
    )
    value = torch.tensor(list(observed.values()), dtype=torch.float64)
    tails = torch.stack([(made <= value).sum(0), (made >= value).sum(0)]).amin(0) + 1
    p_values = (2 * tails.double() / (replicates + 1)).clamp_max(1)
    spread = made.std(0, correction=0)
    columns = (value.tolist(), made.mean(0).tolist(), spread.tolist(), p_values.tolist())
    return [Check(name, *row) for name, *row in zip(observed, *columns, strict=True)]


def _replicated(
    variant: Variant, rows: int, ex_post: nn.Module | None, replicates: int, seed: int
) -> Iterator[dict[str, float]]:
    """Statistics of data sets from the model, as many of them drawn at once as a network sees."""
    for index, some in enumerate(torch.arange(replicates).split(max(1, variant.at_once // rows))):
        x = sample(variant, len(some) * rows, prior=ex_post, seed=seed + index)
        yield from map(statistics, variant.in_model_units(x).split(rows))


class NoiseCalibration(NamedTuple):
    """Whether the noise of p(x | z), z ~ q(z | x), is as wide as what it has to explain. Standard errors are over data.

    Where data are the model's own and q is the posterior, ``ratio`` is 1, coverages are 0.5 and 0.9, ``pit`` is flat.

    Attributes:
        sigma: Root mean variance of p(x | z), in the model's units.
        residual: Root mean square of x - E[x | z], in the model's units.
        ratio: Their quotient: above 1, the noise is too small.
        coverage: Share of numbers inside the central 50 % and 90 % of p(x | z).
        pit: Shares of numbers by twentieths of p(x | z), [20]: low at both ends where the noise is too wide.
        reason: Why all of it is empty, else "".
    """

    sigma: Number
    residual: Number
    ratio: Number
    coverage: tuple[Number, ...] = ()
    pit: tuple[float, ...] = ()
    reason: str = ""


def noise_calibration(variant: Variant, x: Tensor, *, num_particles: int = 10, seed: int = 0) -> NoiseCalibration:
    """Compare the noise of p(x | z) with residuals, under draws of z from q(z | x).

    Each number is placed in p(x | z) by its distribution function, or, in a family without one, by its rank among 99
    draws: shares are then some hundredth closer to calibration than they should be.

    Args:
        variant: A pair whose guide has a density.
        x: Held-out data [rows, *x_shape], in the data's units.
        num_particles: Draws of z a datum.
        seed: Of the draws.

    Raises:
        ValueError: If the guide is a point mass, or there are fewer than 2 rows.

    References:
        Dawid, The Prequential Approach, 1984 (the transform). Rybkin et al., 2021, section 3 (sigma is the error).
    """
    x = tensor_of(x)
    if len(x) < 2:
        raise ValueError(f"noise_calibration needs at least 2 data for its standard errors, got {len(x)}")
    if variant.support.is_discrete:
        reason = "p(x | z) is a mass of discrete values: no intervals of it hold 50 % or 90 %"
        none = Number(None, reason="a mass")
        return NoiseCalibration(none, none, none, reason=reason)
    z = draws(variant, x, num_particles, seed=seed).z
    size = max(1, NUMBERS // (num_particles * x[0].numel()))
    with evaluating(variant), seeded(seed):
        chunks = zip(variant.in_model_units(x).split(size), z.split(size, 1), strict=True)
        parts = [_noise(variant, rows, codes) for rows, codes in chunks]
    variance, square, pit = (torch.cat(part) for part in zip(*parts, strict=True))
    inside = [pit[:, 5:15].sum(1), pit[:, 1:19].sum(1)]  # the central 50 % and 90 %
    one = torch.ones_like(square)
    return NoiseCalibration(
        _root_of_quotient(variance, one),
        _root_of_quotient(square, one),
        _root_of_quotient(square, variance),
        tuple(map(mean_over_data, inside)),
        tuple(pit.mean(0).tolist()),
    )


def _noise(variant: Variant, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean variance and squared residual of each datum, [rows], and shares of its numbers by quantile, [rows, 20]."""
    law = variant.model.x_given_z(z)
    place = (BINS * _quantile(law, y)).long().clamp(0, BINS - 1)
    shares = torch.stack([(place == bin_).double().movedim(1, 0).flatten(1).mean(1) for bin_ in range(BINS)], -1)
    square = (y - law.mean).square()
    variance, square = (part.double().movedim(1, 0).flatten(1).mean(1) for part in (law.variance, square))
    return variance, square, shares


def _quantile(law: Any, y: Tensor) -> Tensor:
    """Where each number of y lies in p(x | z), from 0 to 1; by its rank among draws if there is no formula."""
    try:
        found: Tensor = law.base_dist.cdf(y)
    except NotImplementedError:
        below = sum(law.sample() < y for _ in range(REPLICAS))
        found = (below + torch.rand_like(law.mean)) / (REPLICAS + 1)
    return found


def _root_of_quotient(top: Tensor, bottom: Tensor) -> Number:
    """Root of a quotient of means over the same data, its standard error by the delta method."""
    ratio = top.mean() / bottom.mean()
    error = (top - ratio * bottom).std() / (bottom.mean() * math.sqrt(len(top)))
    return Number(float(ratio.sqrt()), float(error / (2 * ratio.sqrt())) or None)
