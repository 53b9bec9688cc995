"""Claims of the literature: each is held, reversed or undecided by paired seeds, with its figure."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from ..estimate import p_value, rounded, standard_error
from ..models.half import positive
from .summary import holm, is_decided

__all__ = ["Claim", "Verdict", "judged", "plain"]


class Claim(NamedTuple):
    """A claim about a difference, written so that it holds if the difference is positive.

    Attributes:
        name: The number of the claim, such as ``"RAE.2"``.
        text: What is claimed, in words, with its scale.
        differences: The difference for each seed.
        error_over_data: The standard error of the mean difference for other data, or None where it is not known.
        unit: The unit of the difference.
        margin: For a claim of equality, the largest difference that still counts as equal, written down before the
            run. None for a claim with a sign.
        family: The claims of one family share Holm's correction. By default, these are the claims of one name.
    """

    name: str
    text: str
    differences: Mapping[int, float]
    error_over_data: float | None = None
    unit: str = ""
    margin: float | None = None
    family: str = ""


class Verdict(NamedTuple):
    """The verdict on a claim.

    Attributes:
        name, text, unit: As in the claim.
        verdict: ``"held"``: the mean difference has the claimed sign, and is beyond Student's quantile at 5 % after
            Holm's correction and beyond twice its error over data. ``"reversed"``: the same with the other sign.
            ``"undecided"``: else. A claim of equality is held if the difference is inside the margin by so much, and
            reversed if it is outside by so much.
        difference: The mean over seeds.
        error_over_seeds: Its standard error over seeds, or None for a single seed.
        error_over_data: Its standard error over data, or None.
        seeds: The number of seeds.
        p: The p-value after Holm's correction over the claims of the same family.
        margin: The margin of a claim of equality, or None.
    """

    name: str
    text: str
    verdict: str
    difference: float
    error_over_seeds: float | None
    error_over_data: float | None
    seeds: int
    p: float
    unit: str
    margin: float | None

    @property
    def figure(self) -> str:
        """The figure of the verdict, with both errors and the number of seeds."""
        value, error = rounded(self.difference, self.error_over_seeds)
        text = f"{value} ± {error}" if error else value
        text += f" {self.unit}" if self.unit else ""
        if self.error_over_data is not None:
            text += f", ± {rounded(self.difference, self.error_over_data)[1] or '0'} over data"
        within = "" if self.margin is None else f"; equal means within {self.margin:.3g}"
        return f"{text}; {self.seeds} seed{'' if self.seeds == 1 else 's'}{within}"


def judged(claims: Sequence[Claim]) -> list[Verdict]:
    """Give the verdict on each claim, with Holm's correction among the claims of one family.

    Raises:
        ValueError: If a difference is not finite, or a margin is not positive.

    Example:
        >>> claim = Claim("X.1", "a is above b", {0: 1.0, 1: 1.2, 2: 0.9, 3: 1.1, 4: 1.0})
        >>> judged([claim])[0].verdict
        'held'
    """
    for claim in claims:
        _check(claim)
    found = [_tested(claim) for claim in claims]
    verdicts: dict[int, Verdict] = {}
    families = [claim.family or claim.name for claim in claims]
    for family in dict.fromkeys(families):
        places = [place for place, one in enumerate(families) if one == family]
        adjusted = holm([found[place][3] for place in places])
        for place, p in zip(places, adjusted, strict=True):
            verdicts[place] = _verdict(claims[place], *found[place][:3], p)
    return [verdicts[place] for place in range(len(claims))]


def _check(claim: Claim) -> None:
    broken = [seed for seed, difference in claim.differences.items() if not math.isfinite(difference)]
    if broken:
        raise ValueError(f"{claim.name}: the difference of seed {broken[0]} is not finite: leave this seed out")
    if claim.margin is not None:
        positive(f"{claim.name}: the margin", claim.margin)


def _tested(claim: Claim) -> tuple[float, float | None, float, float]:
    """The mean difference, its error over seeds, the statistic whose sign decides, and its p-value."""
    values = torch.tensor(list(claim.differences.values()), dtype=torch.float64)
    if len(values) == 0:
        return math.nan, None, 0.0, 1.0
    mean = float(values.mean())
    error = float(standard_error(values)) if len(values) > 1 else None
    statistic = mean if claim.margin is None else claim.margin - abs(mean)
    return mean, error, statistic, p_value(statistic, error, len(values))


def _verdict(claim: Claim, mean: float, error: float | None, statistic: float, p: float) -> Verdict:
    side = "held" if statistic > 0 else "reversed"
    word = side if is_decided(statistic, p, claim.error_over_data) else "undecided"
    seeds = len(claim.differences)
    return Verdict(claim.name, claim.text, word, mean, error, claim.error_over_data, seeds, p, claim.unit, claim.margin)


def plain(claim: Claim) -> dict[str, Any]:
    """A claim for JSON."""
    return {**claim._asdict(), "differences": {str(seed): value for seed, value in claim.differences.items()}}
