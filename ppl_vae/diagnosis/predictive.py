"""Data that a model makes against data that were held out: statistics of whole sets, and the noise of each number."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..coding import sample
from ..data.data_set import tensor_of
from ..estimate import Number, share_over_data
from ..evaluation.lower_bounds import draws
from ..models.likelihoods import moment, of_coordinate, scale_of_law
from ..noise import at_floor
from ..streams import seeded, stream_seed
from ..variant import Variant, evaluating

__all__ = ["CENTRAL", "Check", "NoiseCalibration", "noise_calibration", "prior_predictive"]

CENTRAL = (0.5, 0.9)  # masses of the intervals whose coverage is counted
BINS = 20  # of quantiles: they end where both intervals do
REPLICAS = 99  # draws of p(x | z) that a number is ranked among where there is no distribution function
NUMBERS = 2**23  # of replicas held at once
FIRST = (
    500_000  # first stream of the replicates: stream i of seed 0 is ``sample(seed=i)``, which may have made the data
)


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

    Where the data are the model's own, a p-value is below any level with at most that probability. Statistics that
    differ by rounding alone are counted as equal, on both sides.

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
    y = variant.in_model_units(x)
    observed = statistics(y)
    made = torch.tensor(
        [list(found.values()) for found in _replicated(variant, len(x), ex_post, replicates, seed)], dtype=torch.float64
    )
    value = torch.tensor(list(observed.values()), dtype=torch.float64)
    slack = _rounding(variant, y)
    tails = torch.stack([(made <= value + slack).sum(0), (made >= value - slack).sum(0)]).amin(0) + 1
    p_values = (2 * tails.double() / (replicates + 1)).clamp_max(1)
    spread = made.std(0, correction=0)
    columns = (value.tolist(), made.mean(0).tolist(), spread.tolist(), p_values.tolist())
    return [Check(name, *row) for name, *row in zip(observed, *columns, strict=True)]


def _rounding(variant: Variant, y: Tensor) -> float:
    """What a statistic of y [rows, *x_shape] can be off by rounding, and that of a replicate which equals y.

    A replicate went into the data's units and back. What this does to y is measured; an energy multiplies it by twice
    the number.
    """
    returned = variant.in_model_units(variant.model.scale.inverse(y))
    largest = float(y.abs().max())
    error = float((returned - y).abs().max()) + torch.finfo(y.dtype).eps * largest
    return 8 * error * max(1.0, 2 * largest)


def _replicated(
    variant: Variant, rows: int, ex_post: nn.Module | None, replicates: int, seed: int
) -> Iterator[dict[str, float]]:
    """Statistics of data sets from the model, as many of them drawn at once as a network sees."""
    for index, some in enumerate(torch.arange(replicates).split(max(1, variant.at_once // rows)), FIRST):
        x = sample(variant, len(some) * rows, prior=ex_post, seed=stream_seed(seed, index))
        yield from map(statistics, variant.in_model_units(x).split(rows))


class NoiseCalibration(NamedTuple):
    """Whether the noise of p(x | z), z ~ q(z | x), is as wide as what it has to explain. Standard errors are over data.

    Where data are the model's own and q is the posterior, ``ratio`` is 1, coverages are 0.5 and 0.9, ``pit`` is flat.

    Attributes:
        sigma: Root mean variance of p(x | z), in the model's units; empty where there is no finite variance.
        residual: Root mean square of x - E[x | z], in the model's units; empty where there is no mean.
        ratio: Their quotient: above 1, the noise is too small, or a few residuals are far too large for it. It has no
            error where p(x | z) has no fourth moment, as Student's t with 4 degrees of freedom or fewer: such residuals
            do not tell the error of their mean square.
        coverage: Share of numbers inside the central 50 % and 90 % of p(x | z).
        pit: Shares of numbers by twentieths of p(x | z), [20]: low at both ends where the noise is too wide.
        reason: Why all of it is empty, else "".
        likelihood: Name of the module of p(x | z).
        learned: Whether its scale is learned; None where it has none.
        floor: That the scale stands at its floor, with the remedy, in words; empty where it does not.
    """

    sigma: Number
    residual: Number
    ratio: Number
    coverage: tuple[Number, ...] = ()
    pit: tuple[float, ...] = ()
    reason: str = ""
    likelihood: str = ""
    learned: bool | None = None
    floor: str = ""


def noise_calibration(variant: Variant, x: Tensor, *, num_particles: int = 10, seed: int = 0) -> NoiseCalibration:
    """Compare the noise of p(x | z) with residuals, under draws of z from q(z | x).

    Each number is placed in p(x | z) by its distribution function, or, in a family without one, by its rank among 99
    draws: shares are then some hundredth closer to calibration than they should be. This needs neither a mean nor a
    variance.

    Args:
        variant: A pair whose guide has a density.
        x: Held-out data [rows, *x_shape], in the data's units.
        num_particles: Draws of z per datum.
        seed: Of the draws.

    Raises:
        ValueError: If the guide is a point mass, or there are fewer than 2 rows.

    References:
        Dawid, The Prequential Approach, 1984 (the transform). Rybkin et al., 2021, section 3 (sigma is the error).
    """
    x = tensor_of(x)
    if len(x) < 2:
        raise ValueError(f"noise_calibration needs at least 2 data for its standard errors, got {len(x)}")
    z = draws(variant, variant.in_model_units(x), num_particles, seed=seed).z
    with evaluating(variant):
        law: Any = variant.model.x_given_z(z[:1, : variant.at_once])
    facts = _scale_of(variant, law, variant.in_model_units(x))
    if variant.support.is_discrete:
        reason = "p(x | z) is a mass of discrete values: no intervals of it hold 50 % or 90 %"
        none = Number(None, reason="a mass")
        return NoiseCalibration(none, none, none, reason=reason, **facts)
    size = max(1, NUMBERS // (num_particles * x[0].numel()))
    with evaluating(variant), seeded(stream_seed(seed, FIRST)):  # not the stream that z came from
        chunks = zip(variant.in_model_units(x).split(size), z.split(size, 1), strict=True)
        parts = [_noise(variant, rows, codes) for rows, codes in chunks]
    variance, square, pit = (torch.cat(part) for part in zip(*parts, strict=True))
    inside = [pit[:, 5:15].sum(1), pit[:, 1:19].sum(1)]  # the central 50 % and 90 %
    return NoiseCalibration(
        *_widths(variance, square, law),
        tuple(map(share_over_data, inside)),
        tuple(pit.mean(0).tolist()),
        **facts,
    )


def _noise(variant: Variant, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean variance and squared residual of each datum, [rows], and shares of its numbers by quantile, [rows, 20].

    Variances and residuals are NaN where p(x | z) has none.
    """
    law = variant.model.x_given_z(z)
    place = (BINS * _quantile(law, y)).long().clamp(0, BINS - 1)
    shares = torch.stack([(place == bin_).double().movedim(1, 0).flatten(1).mean(1) for bin_ in range(BINS)], -1)
    square = (y - moment(law, "mean", y)).square()
    parts = (part.expand(place.shape).double() for part in (moment(law, "variance", y), square))
    variance, square = (part.movedim(1, 0).flatten(1).mean(1) for part in parts)
    return variance, square, shares


def _widths(variance: Tensor, square: Tensor, law: Any) -> tuple[Number, Number, Number]:
    """Sigma, residual and their ratio, from the variance and the squared residual of each datum, [rows]."""
    one = torch.ones_like(square)
    no_mean, no_variance = Number(None, reason="no mean"), Number(None, reason="no finite variance")
    has_mean, has_variance = bool(square.isfinite().all()), bool(variance.isfinite().all())
    sigma = _root_of_quotient(variance, one) if has_variance else no_variance
    residual = _root_of_quotient(square, one) if has_mean else no_mean
    if not has_mean or not has_variance:
        return sigma, residual, no_variance if has_mean else no_mean
    ratio = _root_of_quotient(square, variance)
    degrees = getattr(of_coordinate(law), "df", None)
    return sigma, residual, ratio if degrees is None or bool((degrees > 4).all()) else ratio._replace(error=None)


def _scale_of(variant: Variant, law: Any, y: Tensor) -> dict[str, Any]:
    """The last fields of ``NoiseCalibration``: whether the scale of p(x | z) is learned, and where it stands."""
    likelihood, scale = variant.model.likelihood, scale_of_law(law)
    name = type(likelihood).__name__
    if scale is None:
        return {"likelihood": name}
    fitted = any(parameter.requires_grad for parameter in likelihood.parameters()) or hasattr(likelihood, "observe")
    learned = fitted or bool(scale.min() < scale.max())  # one that differs between data comes from the decoder
    floor = at_floor(variant, y)
    return {"likelihood": name, "learned": learned, "floor": "" if floor is None else f"{floor}."}


def _quantile(law: Any, y: Tensor) -> Tensor:
    """Where each number of y lies in p(x | z), from 0 to 1; by its rank among draws if there is no formula."""
    try:
        found: Tensor = law.base_dist.cdf(y)
    except NotImplementedError:
        drawn = (law.sample() for _ in range(REPLICAS))
        below = sum((one < y).double() for one in drawn)
        found = (below + torch.rand_like(torch.as_tensor(below))) / (REPLICAS + 1)
    return found


def _root_of_quotient(top: Tensor, bottom: Tensor) -> Number:
    """Root of a quotient of means over the same data, its standard error by the delta method."""
    ratio = top.mean() / bottom.mean()
    if not ratio > 0:
        return Number(0.0)
    error = (top - ratio * bottom).std() / (bottom.mean() * math.sqrt(len(top)))
    return Number(float(ratio.sqrt()), float(error / (2 * ratio.sqrt())) or None)
