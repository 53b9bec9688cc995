"""Compare contestants over seeds: means, paired differences, and which of them are decided."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import torch

from ..estimate import p_value, rounded, standard_error
from ..evaluation.stacking import paired

__all__ = ["ERRORS", "LEVEL", "Mean", "Measured", "Pair", "Ranking", "holm", "is_decided", "mean_of", "ranked"]

LEVEL = 0.05  # the share of pairs without a difference that are called decided, at most
ERRORS = 2.0  # a decided difference is beyond this many standard errors over data


class Measured(NamedTuple):
    """The values of one contestant in one column.

    Attributes:
        values: The value for each seed.
        errors: The standard error over data for each seed, where it is known.
        per_datum: The value of each datum for each seed, [rows], where the column is a mean over data.
    """

    values: Mapping[int, float]
    errors: Mapping[int, float | None]
    per_datum: Mapping[int, Sequence[float]] = {}


class Mean(NamedTuple):
    """The mean of a contestant over seeds.

    Attributes:
        name: The contestant.
        value: The mean over seeds.
        error_over_seeds: Its standard error for other seeds, or None for a single seed.
        error_over_data: The standard error for other data, or None where it is not known. The seeds share the data, so
            that it does not fall with their number.
        seeds: The number of seeds.
    """

    name: str
    value: float
    error_over_seeds: float | None
    error_over_data: float | None
    seeds: int


class Pair(NamedTuple):
    """The paired difference of two contestants, ``first - second``.

    Attributes:
        first, second: The contestants.
        difference: The mean over seeds of the difference of each seed.
        error_over_seeds: Its standard error over seeds, or None for a single seed.
        error_over_data: Its standard error over data. It is None where it is not known.
        seeds: The number of seeds that both have.
        p: The two-sided p-value of Student's test, after Holm's correction over the pairs of the ranking.
        decided: Whether p is below 5 %, and the difference is beyond twice its error over data.
    """

    first: str
    second: str
    difference: float
    error_over_seeds: float | None
    error_over_data: float | None
    seeds: int
    p: float
    decided: bool


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values by Holm's step-down correction, so that the chance of any false decision stays below the level.

    References:
        Holm, A Simple Sequentially Rejective Multiple Test Procedure, 1979, section 3.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    p_values = [1.0 if math.isnan(p) else p for p in p_values]
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, highest = [1.0] * len(p_values), 0.0
    for place, index in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - place) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def is_decided(difference: float, p: float, error_over_data: float | None) -> bool:
    """Whether a difference is decided: its p-value is below 5 %, and it is beyond twice its error over data.

    An error over data that is not known counts as 0.
    """
    return p < LEVEL and abs(difference) > ERRORS * (error_over_data or 0.0)


def mean_of(name: str, found: Measured) -> Mean:
    """The mean of a contestant over its seeds, with both errors."""
    values = torch.tensor(list(found.values.values()), dtype=torch.float64)
    known = [error for error in found.errors.values() if error is not None]
    over_data = math.fsum(known) / len(known) if len(known) == len(found.values) else None
    over_seeds = float(standard_error(values)) if len(values) > 1 else None
    return Mean(name, float(values.mean()), over_seeds, over_data, len(values))


def difference_of(first: Measured, second: Measured) -> tuple[float, float | None, float | None, int]:
    """The difference of two contestants on the seeds that both have.

    Where there is a value per datum, the difference is paired over data too. Elsewhere its error over data is taken
    from the errors of both sides as if they were independent. Both are computed on the same data, so that it is too
    large rather than too small.

    Returns:
        The mean difference, its error over seeds, its error over data, and the number of seeds.
    """
    seeds = [seed for seed in first.values if seed in second.values]
    if all(seed in first.per_datum and seed in second.per_datum for seed in seeds):
        one, other = (torch.tensor([side.per_datum[seed] for seed in seeds]).double() for side in (first, second))
        found = paired(one, other)
        return found.difference, found.error_over_seeds, found.error_over_data, len(seeds)
    differences = torch.tensor([first.values[seed] - second.values[seed] for seed in seeds], dtype=torch.float64)
    over_seeds = float(standard_error(differences)) if len(seeds) > 1 else None
    return float(differences.mean()), over_seeds, _independent(first, second, seeds), len(seeds)


def _independent(first: Measured, second: Measured, seeds: Sequence[int]) -> float | None:
    """The error over data of the mean difference, as if the errors of both sides were independent."""
    sides = [[side.errors[seed] for seed in seeds] for side in (first, second)]
    if any(error is None for side in sides for error in side):
        return None
    return math.hypot(*(math.fsum(side) / len(side) for side in sides))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Ranking:
    """Contestants in the order of one column, with the paired differences of all of them.

    Attributes:
        title: What the column measures.
        unit: Its unit.
        up: Whether larger is better.
        means: The means over seeds, the best first.
        pairs: Every pair, the better one first.
        where: The data set, if there are several. Each sentence begins with it.
    """

    title: str
    unit: str
    up: bool
    means: Sequence[Mean]
    pairs: Sequence[Pair]
    where: str = ""

    @property
    def best(self) -> list[str]:
        """The contestants that are not decided to be worse than the first.

        Where seeds are missing, the mean of the first can be the best although it lost on the seeds that both have.
        """
        first, sign = self.means[0].name, 1.0 if self.up else -1.0
        worse = {
            pair.second for pair in self.pairs if pair.first == first and pair.decided and sign * pair.difference > 0
        }
        return [mean.name for mean in self.means if mean.name not in worse]

    def sentences(self) -> list[str]:
        """What the ranking shows, in plain sentences.

        There is one sentence for each contestant that is decided to differ from the first, and one for all others.
        """
        first = self.means[0].name
        against_first = [pair for pair in self.pairs if pair.first == first]
        said = [self._decided(pair) for pair in against_first if pair.decided]
        open_ones = [pair for pair in against_first if not pair.decided]
        if open_ones and open_ones[0].seeds == 1:
            said = [f"One seed is no ranking: {first} has the best {self.title}, {self._gap(open_ones[0])}."]
        elif open_ones:
            said.append(self._undecided(first, open_ones))
        return [
            f"On {self.where}: {sentence[0].lower()}{sentence[1:]}" if self.where else sentence for sentence in said
        ]

    def _gap(self, pair: Pair) -> str:
        """The distance of a pair of one seed."""
        value, error = rounded(abs(pair.difference), pair.error_over_data)
        return f"{value}{f' ± {error}' if error else ''} {self.unit} from {pair.second} (± over data alone)"

    def _decided(self, pair: Pair) -> str:
        side = "above" if pair.difference > 0 else "below"
        figure, over_data = self._figure(pair)
        beside = f" ({over_data})" if over_data else ""
        return f"Over {pair.seeds} seeds, the {self.title} of {pair.first} is {figure}{beside} {side} {pair.second}'s."

    def _undecided(self, first: str, pairs: Sequence[Pair]) -> str:
        """One sentence on all contestants that are not told apart from the first, with the differences."""
        counts = sorted({pair.seeds for pair in pairs})
        seeds = " to ".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))
        named = [f"{pair.second} ({', '.join(filter(None, self._figure(pair)))})" for pair in pairs]
        others = " and ".join(filter(None, [", ".join(named[:-1]), named[-1]]))
        return f"Over {seeds} seeds, the {self.title} does not tell {first} apart from {others}."

    def _figure(self, pair: Pair) -> tuple[str, str]:
        """The size of a difference with its error over seeds, and its error over data."""
        value, error = rounded(abs(pair.difference), pair.error_over_seeds)
        over_data = pair.error_over_data
        beside = "" if over_data is None else f"± {rounded(pair.difference, over_data)[1] or '0'} over data"
        return f"{value} ± {error or '0'} {self.unit}".rstrip(), beside


def ranked(found: Mapping[str, Measured], *, title: str, unit: str, up: bool, where: str = "") -> Ranking:
    """Rank contestants by one column, and decide their differences.

    A difference is decided if it is beyond Student's quantile at 5 % for so many seeds, after Holm's correction over
    all pairs of the ranking, and beyond twice its error over data.

    Args:
        found: The values of each contestant.
        title: What the column measures.
        unit: Its unit.
        up: Whether larger is better.
        where: The data set, for the sentences, if there are several.
    """
    sign = 1.0 if up else -1.0
    means = sorted((mean_of(name, values) for name, values in found.items()), key=lambda mean: -sign * mean.value)
    order = [mean.name for mean in means]
    some = [
        (one, other, *difference_of(found[one], found[other]))
        for one, other in combinations(order, 2)
        if found[one].values.keys() & found[other].values.keys()
    ]
    adjusted = holm([p_value(difference, error, seeds) for _, _, difference, error, _, seeds in some])
    pairs = [Pair(*one, p, is_decided(one[2], p, one[4])) for one, p in zip(some, adjusted, strict=True)]
    return Ranking(title, unit, up, means, pairs, where)
