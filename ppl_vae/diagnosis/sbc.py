"""Simulation-based calibration: is q(z | x) the posterior of data that the model itself made?"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..bounds import Draws, terms
from ..seeding import seeded
from ..variant import Variant, evaluating, needs_density

__all__ = ["FALSE_ALARMS", "Ranks", "sbc"]

FALSE_ALARMS = 0.05  # chance that a panel of tests, all of them together, accuses what is right
BINS = 20


class Ranks(NamedTuple):
    """Ranks of what a model drew among draws of the guide: uniform on 0, ..., K where q(z | x) is p(z | x).

    Attributes:
        ranks: [simulations, quantities], ties broken at random.
        names: Of the quantities: each coordinate of z, then ``log p(x, z)`` and ``log p(x | z)``.
        num_particles: Draws K a simulated datum.
        p_values: Of uniformity, chi-square over at most 20 bins, [quantities].
        skew: Mean rank against K / 2, in standard errors, [quantities]: above 0 where the guide's draws lie too low.
        spread: Mean squared distance of the rank from K / 2, in standard errors, [quantities]: above 0, ranks pile up
            at both ends and the guide is too narrow; below 0 it is too wide.
    """

    ranks: Tensor
    names: tuple[str, ...]
    num_particles: int
    p_values: Tensor
    skew: Tensor
    spread: Tensor

    @property
    def off(self) -> dict[str, str]:
        """Quantities that are not calibrated, and how; all of them together are accused wrongly 1 time in 20."""
        named = zip(self.names, self.p_values.tolist(), self.skew.tolist(), self.spread.tolist(), strict=True)
        level = FALSE_ALARMS / len(self.names)
        return {name: _shape(skew, spread) for name, p_value, skew, spread in named if p_value < level}


def _shape(skew: float, spread: float) -> str:
    """What a histogram of ranks says, by the larger of its two moments."""
    if abs(skew) > abs(spread):
        return "draws lie too low" if skew > 0 else "draws lie too high"
    return "draws are too narrow" if spread > 0 else "draws are too wide"


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
    each = torch.arange(num_particles + 1, device=ranks.device).double()
    middle, found = num_particles / 2, ranks.double()
    return Ranks(
        ranks,
        names,
        num_particles,
        _uniformity(ranks, num_particles),
        _in_errors(found, each),
        _in_errors((found - middle).square(), (each - middle).square()),
    )


def _ranked(variant: Variant, rows: int, num_particles: int) -> Tensor:
    """Ranks for so many simulated data, [rows, quantities]."""
    z = variant.model.prior().sample((rows,))
    y = variant.model.x_given_z(z).sample()
    true, drawn = _quantities(terms(variant, y, 1, z[None])), _quantities(terms(variant, y, num_particles))
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
