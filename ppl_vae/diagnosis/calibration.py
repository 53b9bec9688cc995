"""Simulation-based calibration: is q(z | x) the posterior, for data that the model itself makes?"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..elbo.reading import Draws
from ..streams import seeded
from ..variant import Variant, densities, evaluating, needs_density

__all__ = ["FALSE_ALARMS", "Departure", "Ranks", "sbc"]

FALSE_ALARMS = 0.05  # chance that any test of a panel finds a fault if there is none
BINS = 20
FEWEST_SIMULATIONS = 50
CLEAR = 4.5  # the gain in log likelihood that is needed to name a shift or a width: that of three standard errors


class Departure(NamedTuple):
    """How the ranks of one quantity differ from uniform ones, if guide and posterior are taken to be normal laws.

    Attributes:
        shift: How much too high the guide's draws lie, in standard deviations of the posterior; negative if they lie
            too low. It is infinite if all draws of all simulations lie on one side of the truth.
        width: The standard deviation of the guide over that of the posterior.
        how: What is wrong, in words: the location, the width, both, or another shape.
    """

    shift: float
    width: float
    how: str


class Ranks(NamedTuple):
    """Ranks of draws of the model among draws of the guide. They are uniform on 0, ..., K if q(z | x) is p(z | x).

    Attributes:
        ranks: [simulations, quantities], with ties broken at random.
        names: The names of the quantities: each coordinate of z, then ``log p(x, z)`` and ``log p(x | z)``.
        num_particles: Number of draws K per simulated datum.
        p_values: P-values of uniformity, [quantities], of a chi-square test with at most 20 bins.
        skew: The mean rank minus K / 2, in standard errors, [quantities]. It is positive if the guide's draws lie too
            low.
        spread: The mean squared distance of the rank from K / 2, minus its expectation, in standard errors,
            [quantities]. It is positive if ranks pile up at the ends, because the guide is too narrow or shifted. It is
            negative if the guide is too wide.
        departures: The quantities that are not calibrated, by name. A calibrated guide has none in 19 of 20 cases.
    """

    ranks: Tensor
    names: tuple[str, ...]
    num_particles: int
    p_values: Tensor
    skew: Tensor
    spread: Tensor
    departures: dict[str, Departure]

    @property
    def off(self) -> dict[str, str]:
        """What is wrong with each quantity that is not calibrated, in words."""
        return {name: found.how for name, found in self.departures.items()}

    @property
    def distance(self) -> tuple[Tensor, Tensor]:
        """The largest distance over r between the share of ranks up to r and its expectation, with its standard error.

        Both are [quantities]. The distance is Kolmogorov's, the largest height of a curve on the page. The error is the
        standard error of the share at this r. A normal guide whose mean is k standard deviations off has the distance
        ``2 Phi(k / 2) - 1``. A guide that is half or twice as wide as the posterior has the distance 0.16.
        """
        values = self.num_particles + 1
        each = torch.arange(values, device=self.ranks.device)
        share = (self.ranks.unsqueeze(-1) <= each).double().mean(0)  # [quantities, values]
        expected = (each + 1) / values
        distance, where = (share - expected).abs().max(-1)
        share_there = share.gather(-1, where[:, None]).squeeze(-1)
        error = (share_there * (1 - share_there) / len(self.ranks)).sqrt()
        return distance, error


def sbc(variant: Variant, *, simulations: int = 500, num_particles: int = 99, seed: int = 0) -> Ranks:
    """Rank (z, x) drawn from the model among draws from q(z | x).

    Besides the coordinates of z, log p(x, z) and log p(x | z) are ranked. Only these two reveal a guide whose margins
    are right and whose correlations are missing.

    Args:
        variant: A pair whose guide has a density. The guide is judged on data of the model, not on yours.
        simulations: Number of data that are drawn from the model.
        num_particles: Number of draws K from q(z | x) for each of them.
        seed: Seed of all draws. The caller's random streams are left as they were.

    Returns:
        The ranks of each quantity, with a test of uniformity; see ``Ranks``.

    Raises:
        ValueError: If the guide is a point mass, or there are too few simulations or draws for the test.

    References:
        Talts et al., Validating Bayesian Inference Algorithms with Simulation-Based Calibration, 2018, theorem 1.
        Yao et al., Yes, but Did It Work?, 2018, section 3 (of variational guides). Modrak et al., Simulation-Based
        Calibration Checking for Bayesian Computation: The Choice of Test Quantities, 2023.
    """
    needs_density(variant)
    if simulations < FEWEST_SIMULATIONS or num_particles < 1:
        raise ValueError(
            f"wanted at least {FEWEST_SIMULATIONS} simulations and 1 draw for each, got {simulations!r} and "
            f"{num_particles!r}: with fewer, the test of uniformity cannot find a fault"
        )
    sizes = torch.arange(simulations).split(max(1, variant.at_once // num_particles))
    with evaluating(variant), seeded(seed):
        ranks = torch.cat([_ranked(variant, len(size), num_particles) for size in sizes])
    codes = [f"z[{j}]" for j in range(variant.z_dim)]
    names = (*codes, "log p(x, z)", "log p(x | z)")
    p_values = uniformity_p_values(ranks, num_particles)
    off = (p_values < FALSE_ALARMS / len(names)).nonzero().flatten().tolist()
    each = torch.arange(num_particles + 1, device=ranks.device).double()  # the equally likely values of a rank
    middle = num_particles / 2
    return Ranks(
        ranks,
        names,
        num_particles,
        p_values,
        skew=mean_in_errors(ranks.double(), each),
        spread=mean_in_errors((ranks.double() - middle).square(), (each - middle).square()),
        departures={names[index]: _departure(ranks[:, index], num_particles, code=index < len(codes)) for index in off},
    )


def _ranked(variant: Variant, rows: int, num_particles: int) -> Tensor:
    """The ranks for this many simulated data, [rows, quantities]."""
    z = variant.model.prior().sample((rows,))
    y = variant.model.x_given_z(z).sample().to(z)  # classes are drawn as integers
    true = _quantities(densities(variant, y, 1, z[None]))
    drawn = _quantities(densities(variant, y, num_particles))
    below = (drawn < true).sum(0)
    ties = (drawn == true).sum(0)
    place_among_ties = (torch.rand(ties.shape, device=z.device) * (ties + 1)).long()
    return below + place_among_ties


def _quantities(drawn: Draws) -> Tensor:
    """The coordinates of z, log p(x, z) and log p(x | z), [num_particles, rows, z_dim + 2]."""
    log_densities = torch.stack([drawn.likelihood + drawn.prior, drawn.likelihood], -1)
    return torch.cat([drawn.z, log_densities], -1)


def mean_in_errors(found: Tensor, each: Tensor) -> Tensor:
    """The mean of found [simulations, quantities] minus its expectation, in standard errors, [quantities].

    The expectation is over the values ``each``, which are equally likely.
    """
    error = each.std(correction=0) / math.sqrt(len(found))
    difference = found.mean(0) - each.mean()
    return torch.where(error > 0, difference / error, torch.zeros(()).to(found))


def uniformity_p_values(ranks: Tensor, num_particles: int) -> Tensor:
    """P-values of the chi-square test, [quantities], with at least 5 data expected in each bin."""
    simulations, values = len(ranks), num_particles + 1
    bins = min(BINS, values, simulations // 5)
    bin_of_rank = torch.arange(values, device=ranks.device) * bins // values
    expected = torch.bincount(bin_of_rank, minlength=bins).double() * simulations / values
    counts = torch.nn.functional.one_hot(bin_of_rank[ranks], bins).sum(0)
    statistic = ((counts - expected).square() / expected).sum(-1)
    half_degrees = torch.full_like(statistic, (bins - 1) / 2)
    return torch.special.gammaincc(half_degrees, statistic / 2)


def _departure(ranks: Tensor, num_particles: int, *, code: bool) -> Departure:
    """Describe ranks [simulations] that are not uniform.

    A shift and a width are each named by a likelihood-ratio test in which the other one is free. The width is named
    only for a ``code``, because the width of a log density says nothing about the width of the guide.
    """
    counts = torch.bincount(ranks.cpu(), minlength=num_particles + 1).double()
    if counts[0] == len(ranks):
        return Departure(math.inf, 1.0, "draws lie too high")
    if counts[-1] == len(ranks):
        return Departure(-math.inf, 1.0, "draws lie too low")
    both = _fit(counts, shifted=True, stretched=True)
    only_stretched = _fit(counts, shifted=False, stretched=True)
    only_shifted = _fit(counts, shifted=True, stretched=False)
    is_shifted = both.log_likelihood - only_stretched.log_likelihood > CLEAR
    is_stretched = code and both.log_likelihood - only_shifted.log_likelihood > CLEAR
    how = []
    if is_shifted:
        how.append("lie too high" if both.shift > 0 else "lie too low")
    if is_stretched:
        how.append("are too narrow" if both.width < 1 else "are too wide")
    found = both if is_stretched else only_shifted
    return Departure(found.shift, found.width, f"draws {' and '.join(how) or 'have another shape'}")


class NormalFit(NamedTuple):
    """The normal guide of a standard normal posterior that fits ranks best."""

    log_likelihood: float
    shift: float
    width: float


def _fit(counts: Tensor, *, shifted: bool, stretched: bool) -> NormalFit:
    """Fit a shift, a width or both to ``counts`` [K + 1], which say how often each rank was seen.

    The maximum is found on a grid that closes in on it.
    """
    grid = torch.linspace(-1, 1, 17, dtype=torch.float64)
    fixed = torch.zeros(1).double()
    log_likelihood, shift, log_width, reach = -math.inf, 0.0, 0.0, 1.0
    for _ in range(8):
        shifts = shift + 8 * reach * grid if shifted else fixed
        log_widths = log_width + 3 * reach * grid if stretched else fixed
        pairs = torch.cartesian_prod(shifts, log_widths)
        found = rank_log_mass(len(counts) - 1, pairs[:, 0], pairs[:, 1]) @ counts
        log_likelihood = float(found.max())
        shift, log_width = pairs[found.argmax()].tolist()
        reach /= 4
    return NormalFit(log_likelihood, shift, math.exp(log_width))


def rank_log_mass(num_particles: int, shift: Tensor, log_width: Tensor) -> Tensor:
    """Log P(rank = r), [guides, K + 1], for z ~ Normal(0, 1) among K draws of Normal(shift, width), each [guides].

    Given z, the rank is binomial. Its success probability is the guide's distribution function at z. The integral over
    z is computed as a sum over cells in the guide's own units.
    """
    ends = torch.linspace(-9, 9, 401, dtype=torch.float64)
    below = torch.special.ndtr(shift[:, None] + log_width.exp()[:, None] * ends)
    middle = (ends[1:] + ends[:-1]) / 2
    rank = torch.arange(num_particles + 1, dtype=torch.float64)
    log_ways = math.lgamma(num_particles + 1) - torch.lgamma(rank + 1) - torch.lgamma(num_particles - rank + 1)
    log_chance = torch.special.log_ndtr(middle)[:, None] * rank
    log_chance = log_chance + torch.special.log_ndtr(-middle)[:, None] * (num_particles - rank)
    mass = below.diff(dim=1) @ (log_ways + log_chance).exp()
    mass[:, 0] += below[:, 0]  # if z is below the first cell, all draws lie above z
    mass[:, -1] += 1 - below[:, -1]
    return mass.clamp_min(1e-300).log()
