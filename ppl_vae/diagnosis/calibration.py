"""Simulation-based calibration: is q(z | x) the posterior of data that the model itself made?"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..elbo.reading import Draws
from ..streams import seeded
from ..variant import Variant, densities, evaluating, needs_density

__all__ = ["FALSE_ALARMS", "Ranks", "sbc"]

FALSE_ALARMS = 0.05  # chance that a panel of tests, all of them together, accuses what is right
BINS = 20
CLEAR = 4.5  # gain in log likelihood that a shift or a width has to bring to be named: three standard errors


class Departure(NamedTuple):
    """How the ranks of one quantity differ from uniform ones, read as a normal guide of a normal posterior.

    Attributes:
        shift: By how much the guide's draws lie too high, in standard deviations of the posterior; below 0 too low. It
            is infinite where every draw of every simulation lies on one side of the truth.
        width: Standard deviation of the guide over that of the posterior.
        how: What is wrong, in words: the location, the width, both, or another shape.
    """

    shift: float
    width: float
    how: str


class Ranks(NamedTuple):
    """Ranks of what a model drew among draws of the guide: uniform on 0, ..., K where q(z | x) is p(z | x).

    Attributes:
        ranks: [simulations, quantities], ties broken at random.
        names: Of the quantities: each coordinate of z, then ``log p(x, z)`` and ``log p(x | z)``.
        num_particles: Draws K per simulated datum.
        p_values: Of uniformity, chi-square over at most 20 bins, [quantities].
        skew: Mean rank against K / 2, in standard errors, [quantities]: above 0 where the guide's draws lie too low.
        spread: Mean squared distance of the rank from K / 2, in standard errors, [quantities]: above 0, ranks pile up
            at the ends, because the guide is too narrow or because it is shifted; below 0 it is too wide.
        departures: By name, the quantities that are not calibrated; all of them together are accused wrongly 1 time in
            20.
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
        """Quantities that are not calibrated, and how, in words."""
        return {name: found.how for name, found in self.departures.items()}

    @property
    def distance(self) -> tuple[Tensor, Tensor]:
        """Largest distance over r between the share of ranks up to r and its expectation, and its standard error.

        Both are [quantities]. The distance is what the curves of the page reach (Kolmogorov's); the error is that of
        the share where it is reached. A normal guide whose mean is k standard deviations off shows
        ``2 Phi(k / 2) - 1``; one that is half or twice as wide as the posterior shows 0.16.
        """
        values = self.num_particles + 1
        each = torch.arange(values, device=self.ranks.device)
        share = (self.ranks.unsqueeze(-1) <= each).double().mean(0)
        found, where = (share - (each + 1) / values).abs().max(-1)
        there = share.gather(-1, where[:, None]).squeeze(-1)
        return found, (there * (1 - there) / len(self.ranks)).sqrt()


def sbc(variant: Variant, *, simulations: int = 500, num_particles: int = 99, seed: int = 0) -> Ranks:
    """Rank (z, x) drawn from the model among draws from q(z | x).

    Beside the coordinates of z, log p(x, z) and log p(x | z) are ranked: a guide with the right margins and without
    their correlation is seen by these alone.

    Args:
        variant: A pair whose guide has a density. What is judged is q on data of the model, not on yours.
        simulations: Data that are drawn.
        num_particles: Draws K for each.
        seed: Of all draws; the caller's random streams are left as they were.

    Raises:
        ValueError: If the guide is a point mass, or there are too few simulations or draws to be tested.

    References:
        Talts et al., Validating Bayesian Inference Algorithms with Simulation-Based Calibration, 2018, theorem 1.
        Yao et al., Yes, but Did It Work?, 2018, section 3 (of variational guides). Modrak et al., Simulation-Based
        Calibration Checking for Bayesian Computation: The Choice of Test Quantities, 2023.
    """
    needs_density(variant)
    if simulations < 50 or num_particles < 1:
        raise ValueError(
            f"wanted at least 50 simulations and 1 draw for each, got {simulations!r} and {num_particles!r}: "
            "with fewer the test of uniformity sees nothing"
        )
    sizes = torch.arange(simulations).split(max(1, variant.at_once // num_particles))
    with evaluating(variant), seeded(seed):
        ranks = torch.cat([_ranked(variant, len(size), num_particles) for size in sizes])
    names = (*(f"z[{j}]" for j in range(variant.z_dim)), "log p(x, z)", "log p(x | z)")
    p_values = _uniformity(ranks, num_particles)
    off = (p_values < FALSE_ALARMS / len(names)).nonzero().flatten().tolist()
    each = torch.arange(num_particles + 1, device=ranks.device).double()
    middle, found = num_particles / 2, ranks.double()
    return Ranks(
        ranks,
        names,
        num_particles,
        p_values,
        _in_errors(found, each),
        _in_errors((found - middle).square(), (each - middle).square()),
        {names[index]: _departure(ranks[:, index], num_particles, code=index < variant.z_dim) for index in off},
    )


def _ranked(variant: Variant, rows: int, num_particles: int) -> Tensor:
    """Ranks for so many simulated data, [rows, quantities]."""
    z = variant.model.prior().sample((rows,))
    y = variant.model.x_given_z(z).sample().to(z)  # classes are drawn as integers
    true, drawn = _quantities(densities(variant, y, 1, z[None])), _quantities(densities(variant, y, num_particles))
    below, ties = (drawn < true).sum(0), (drawn == true).sum(0)
    return below + (torch.rand(ties.shape, device=z.device) * (ties + 1)).long()


def _quantities(drawn: Draws) -> Tensor:
    """Coordinates of z, log p(x, z) and log p(x | z): [num_particles, rows, z_dim + 2]."""
    return torch.cat([drawn.z, torch.stack([drawn.likelihood + drawn.prior, drawn.likelihood], -1)], -1)


def _in_errors(found: Tensor, each: Tensor) -> Tensor:
    """Mean of [simulations, quantities] less its expectation over ``each`` equally likely value, in standard errors."""
    width = each.std(correction=0) / math.sqrt(len(found))
    return torch.where(width > 0, (found.mean(0) - each.mean()) / width, torch.zeros(()).to(found))


def _uniformity(ranks: Tensor, num_particles: int) -> Tensor:
    """P-values of the chi-square test, [quantities], with at least 5 data expected in a bin."""
    simulations, values = len(ranks), num_particles + 1
    bins = min(BINS, values, simulations // 5)
    place = torch.arange(values, device=ranks.device) * bins // values
    expected = torch.bincount(place, minlength=bins).double() * simulations / values
    counts = torch.nn.functional.one_hot(place[ranks], bins).sum(0)
    statistic = ((counts - expected).square() / expected).sum(-1)
    return torch.special.gammaincc(torch.full_like(statistic, (bins - 1) / 2), statistic / 2)


def _departure(ranks: Tensor, num_particles: int, *, code: bool) -> Departure:
    """Describe ranks [simulations] by likelihood-ratio tests of a shift and of a width, each where the other is free.

    Of a log density, which is no ``code``, the width is not named: it says nothing about the width of the guide.
    """
    counts = torch.bincount(ranks.cpu(), minlength=num_particles + 1).double()
    if max(counts[0], counts[-1]) == len(ranks):
        low = bool(counts[-1] > 0)
        return Departure(-math.inf if low else math.inf, 1.0, "draws lie too low" if low else "draws lie too high")
    (both, shift, width), (centred, *_), (unstretched, only_shift, _) = (
        _fit(counts, shifted=shifted, stretched=stretched)
        for shifted, stretched in ((True, True), (False, True), (True, False))
    )
    is_shifted, is_stretched = both - centred > CLEAR, code and both - unstretched > CLEAR
    how = []
    if is_shifted:
        how.append("lie too high" if shift > 0 else "lie too low")
    if is_stretched:
        how.append("are too narrow" if width < 1 else "are too wide")
    if not is_stretched:
        shift, width = only_shift, 1.0
    return Departure(shift, width, f"draws {' and '.join(how) or 'have another shape'}")


def _fit(counts: Tensor, *, shifted: bool, stretched: bool) -> tuple[float, float, float]:
    """Log likelihood, shift and width of the normal guide of a standard normal posterior that fits ranks best.

    The maximum is found on a grid that closes in on it. ``counts`` [K + 1] is how often each rank was seen.
    """
    best, shift, log_width, reach = -math.inf, 0.0, 0.0, 1.0
    grid = torch.linspace(-1, 1, 17, dtype=torch.float64)
    for _ in range(8):
        shifts = shift + 8 * reach * grid if shifted else torch.zeros(1).double()
        log_widths = log_width + 3 * reach * grid if stretched else torch.zeros(1).double()
        pairs = torch.cartesian_prod(shifts, log_widths)
        found = _log_mass(len(counts) - 1, *pairs.unbind(-1)) @ counts
        best, (shift, log_width), reach = float(found.max()), pairs[found.argmax()].tolist(), reach / 4
    return best, shift, math.exp(log_width)


def _log_mass(num_particles: int, shift: Tensor, log_width: Tensor) -> Tensor:
    """Log P(rank = r), [guides, K + 1]: the rank of z ~ Normal(0, 1) among draws of Normal(shift, width), [guides].

    Given z the rank is binomial, with the guide's distribution function at z for its chance; over z it is integrated in
    cells of the guide's own units.
    """
    ends = torch.linspace(-9, 9, 401, dtype=torch.float64)
    below = torch.special.ndtr(shift[:, None] + log_width.exp()[:, None] * ends)
    middle = (ends[1:] + ends[:-1]) / 2
    rank = torch.arange(num_particles + 1, dtype=torch.float64)
    ways = math.lgamma(num_particles + 1) - torch.lgamma(rank + 1) - torch.lgamma(num_particles - rank + 1)
    log_chance = torch.special.log_ndtr(middle)[:, None] * rank
    log_chance = log_chance + torch.special.log_ndtr(-middle)[:, None] * (num_particles - rank)
    edges = torch.stack([below[:, 0], 1 - below[:, -1]], 1)  # beyond the cells every draw lies on one side
    mass = below.diff(dim=1) @ (ways + log_chance).exp()
    mass[:, 0] += edges[:, 0]
    mass[:, -1] += edges[:, 1]
    return mass.clamp_min(1e-300).log()
