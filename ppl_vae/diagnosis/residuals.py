"""Residuals compared with the noise of p(x | z): is sigma as large as the residuals?"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..estimate import Number, share_over_data
from ..evaluation.lower_bounds import draws
from ..models.likelihoods import moment, of_coordinate, scale_of_law
from ..noise import at_floor
from ..streams import seeded, stream_seed
from ..variant import Variant, evaluating

__all__ = ["CENTRAL", "DRAWS", "NoiseCalibration", "noise_calibration", "noise_of"]

DRAWS = 10  # draws of z per datum by default
CENTRAL = (0.5, 0.9)  # masses of the intervals whose coverage is counted
BINS = 20  # bins of quantiles; both intervals end where a bin ends
REPLICAS = 99  # draws of p(x | z) that a number is ranked among if there is no distribution function
NUMBERS = 2**23  # numbers of x that are held at once, over all draws of z
STREAM = 500_000  # the stream of these draws, which is not the stream of z


class NoiseCalibration(NamedTuple):
    """Whether the noise of p(x | z), z ~ q(z | x), is as wide as the residuals. Standard errors are over data.

    If the data are the model's own and q is the posterior, ``ratio`` is 1, the coverages are 0.5 and 0.9, and ``pit``
    is flat.

    Attributes:
        sigma: Root mean variance of p(x | z), in the model's units. It is empty if there is no finite variance.
        residual: Root mean square of x - E[x | z], in the model's units. It is empty if there is no mean.
        ratio: ``residual / sigma``. It is above 1 if the noise is too small, or if a few residuals are far too large
            for it. If p(x | z) has no fourth moment, like Student's t with 4 degrees of freedom or fewer, the ratio has
            no error, because the error of the mean square of such residuals is not finite.
        coverage: Shares of numbers inside the central 50 % and 90 % of p(x | z).
        pit: Shares of numbers in each twentieth of p(x | z), [20]. It is low at both ends if the noise is too wide.
        reason: Why all of the above is empty, or an empty string.
        likelihood: The name of the likelihood module.
        learned: Whether its scale is learned, or None if it has no scale.
        floor: A sentence that says that the scale is at its floor, with the remedy. It is empty if it is not.
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


def noise_calibration(variant: Variant, x: Any, *, num_particles: int = DRAWS, seed: int = 0) -> NoiseCalibration:
    """Compare the noise of p(x | z) with the residuals, under draws of z from q(z | x).

    Each number is placed in p(x | z) by its distribution function. If a distribution has no such function, the number
    is placed by its rank among 99 draws, which moves shares about 0.01 closer to calibration than they should be.
    Neither method needs a mean or a variance.

    Args:
        variant: A pair whose guide has a density.
        x: Held-out data [rows, *x_shape], in the data's units.
        num_particles: Number of draws of z per datum.
        seed: Seed of the draws.

    Returns:
        The widths, the coverages and the shares by quantile; see ``NoiseCalibration``.

    Raises:
        ValueError: If the guide is a point mass, or there are fewer than 2 rows.

    References:
        Dawid, The Prequential Approach, 1984 (the transform). Rybkin et al., 2021, section 3 (sigma is the error).
    """
    y = variant.admit(x)
    if len(y) < 2:
        raise ValueError(f"noise_calibration needs at least 2 data for its standard errors, got {len(y)}")
    return noise_of(variant, y, draws(variant, y, num_particles, seed=seed).z, seed)


def noise_of(variant: Variant, y: Tensor, z: Tensor, seed: int = 0) -> NoiseCalibration:
    """``noise_calibration`` for data y [rows, *x_shape] in the model's units and draws z [draws, rows, z_dim]."""
    with evaluating(variant):
        law: Any = variant.model.x_given_z(z[:1, : variant.at_once])
    facts = _scale_facts(variant, law, y)
    if variant.support.is_discrete:
        reason = "p(x | z) is a mass of discrete values, and no interval of it holds 50 % or 90 %"
        none = Number(None, reason="a mass")
        return NoiseCalibration(none, none, none, reason=reason, **facts)
    size = max(1, NUMBERS // (len(z) * y[0].numel()))
    with evaluating(variant), seeded(stream_seed(seed, STREAM)):
        chunks = zip(y.split(size), z.split(size, 1), strict=True)
        parts = [_noise(variant, rows, codes) for rows, codes in chunks]
    variance, square, shares = (torch.cat(part) for part in zip(*parts, strict=True))
    sigma, residual, ratio = _widths(variance, square, law)
    inner, outer = shares[:, 5:15].sum(1), shares[:, 1:19].sum(1)  # the central 50 % and 90 %
    return NoiseCalibration(
        sigma,
        residual,
        ratio,
        coverage=(share_over_data(inner), share_over_data(outer)),
        pit=tuple(shares.mean(0).tolist()),
        **facts,
    )


def _noise(variant: Variant, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The mean variance and the mean squared residual of each datum, [rows], and its shares by quantile, [rows, 20].

    All three are means over draws and coordinates. Variances and residuals are NaN if p(x | z) has none.
    """
    law = variant.model.x_given_z(z)
    place = (BINS * _quantile(law, y)).long().clamp(0, BINS - 1)
    shares = [_per_datum((place == bin_).double()) for bin_ in range(BINS)]
    variance = moment(law, "variance", y)
    square = (y - moment(law, "mean", y)).square()
    return (
        _per_datum(variance.expand(place.shape).double()),
        _per_datum(square.expand(place.shape).double()),
        torch.stack(shares, -1),
    )


def _per_datum(values: Tensor) -> Tensor:
    """Means over draws and coordinates, from [draws, rows, *x_shape] to [rows]."""
    return values.movedim(1, 0).flatten(1).mean(1)


def _widths(variance: Tensor, square: Tensor, law: Any) -> tuple[Number, Number, Number]:
    """Sigma, residual and their ratio, from the variance and the squared residual of each datum, [rows]."""
    one = torch.ones_like(square)
    no_mean, no_variance = Number(None, reason="no mean"), Number(None, reason="no finite variance")
    has_mean, has_variance = bool(square.isfinite().all()), bool(variance.isfinite().all())
    sigma = _root_of_quotient(variance, one) if has_variance else no_variance
    residual = _root_of_quotient(square, one) if has_mean else no_mean
    if not has_mean:
        return sigma, residual, no_mean
    if not has_variance:
        return sigma, residual, no_variance
    ratio = _root_of_quotient(square, variance)
    degrees = getattr(of_coordinate(law), "df", None)
    has_fourth_moment = degrees is None or bool((degrees > 4).all())
    return sigma, residual, ratio if has_fourth_moment else ratio._replace(error=None)


def _scale_facts(variant: Variant, law: Any, y: Tensor) -> dict[str, Any]:
    """The last fields of ``NoiseCalibration``: whether the scale of p(x | z) is learned, and whether at its floor."""
    likelihood, scale = variant.model.likelihood, scale_of_law(law)
    name = type(likelihood).__name__
    if scale is None:
        return {"likelihood": name}
    has_parameters = any(parameter.requires_grad for parameter in likelihood.parameters())
    is_fitted = hasattr(likelihood, "observe")
    is_decoded = bool(scale.min() < scale.max())  # a scale that differs between data comes from the decoder
    floor = at_floor(variant, y)
    return {
        "likelihood": name,
        "learned": has_parameters or is_fitted or is_decoded,
        "floor": "" if floor is None else f"{floor}.",
    }


def _quantile(law: Any, y: Tensor) -> Tensor:
    """Where each number of y lies in p(x | z), from 0 to 1.

    If p(x | z) has no distribution function, it is the rank among draws, plus a random place between two draws.
    """
    try:
        found: Tensor = law.base_dist.cdf(y)
    except NotImplementedError:
        drawn = (law.sample() for _ in range(REPLICAS))
        below = torch.as_tensor(sum((one < y).double() for one in drawn))
        found = (below + torch.rand_like(below)) / (REPLICAS + 1)
    return found


def _root_of_quotient(top: Tensor, bottom: Tensor) -> Number:
    """The root of a quotient of means over the same data, with its standard error by the delta method."""
    ratio = top.mean() / bottom.mean()
    if not ratio > 0:
        return Number(0.0)
    error = (top - ratio * bottom).std() / (bottom.mean() * math.sqrt(len(top)))
    return Number(float(ratio.sqrt()), float(error / (2 * ratio.sqrt())) or None)
