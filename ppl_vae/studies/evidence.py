"""The rows of a study, from the study itself or from its JSON, as evidence for claims."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .claims import Claim

__all__ = ["Evidence"]


class Evidence:
    """The rows of a finished study.

    Args:
        rows: The rows, as a file of results holds them.
    """

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.rows = rows

    def sets(self) -> list[str]:
        """The names of the data sets."""
        return list(dict.fromkeys(row["data"] for row in self.rows))

    def contestants(self, data: str) -> list[str]:
        """The names of the contestants that have numbers on a data set."""
        return list(dict.fromkeys(row["variant"] for row in self.rows if row["data"] == data and not row.get("reason")))

    def values(self, data: str, name: str, column: str) -> dict[int, float]:
        """The values of a contestant in a column by seed. Seeds without a value are left out."""
        found = {row["seed"]: row.get(column) for row in self.rows if (row["data"], row["variant"]) == (data, name)}
        return {int(seed): float(value) for seed, value in found.items() if value is not None}

    def error(self, data: str, name: str, column: str) -> float | None:
        """The standard error over data of a contestant in a column, averaged over seeds, or None if it is unknown."""
        column = f"{column}_error"
        errors = [row.get(column) for row in self.rows if (row["data"], row["variant"]) == (data, name)]
        known = [float(error) for error in errors if error is not None]
        return math.fsum(known) / len(known) if known else None

    def path(self, data: str, name: str, column: str) -> dict[int, list[float]]:
        """A column of the history of a contestant, a number per epoch, by seed. Only the file of results has it."""
        rows = [row for row in self.rows if (row["data"], row["variant"]) == (data, name) and "history" in row]
        found = {int(row["seed"]): row["history"].get(column) for row in rows}
        return {seed: [float(value) for value in path] for seed, path in found.items() if path}

    def claim(
        self,
        name: str,
        text: str,
        data: str,
        more: tuple[str, str],
        less: tuple[str, str],
        *,
        factor: float = 1.0,
        share: float | None = None,
        unit: str = "",
        family: str = "",
    ) -> Claim:
        """The claim that one number is larger than another, paired over seeds.

        The error over data is computed as if each contestant had data of its own. For numbers of the same data it is
        too large, so that a claim may be undecided that a paired error would decide.

        Args:
            name: The number of the claim.
            text: What is claimed, in words.
            data: The data set.
            more: A contestant and a column, whose number is claimed to be the larger one.
            less: Another contestant and column.
            factor: A factor on the larger number. With 1.1, the claim is that ``less`` is at most 10 % above ``more``.
            share: For a claim of equality, the share of the mean of ``more`` that is the margin.
            unit: The unit of the difference.
            family: The family for Holm's correction, by default the name and the data.
        """
        high, low = self.values(data, *more), self.values(data, *less)
        seeds = [seed for seed in high if seed in low]
        errors = [self.error(data, *more), self.error(data, *less)]
        over_data = None if None in errors else math.hypot(factor * (errors[0] or 0.0), errors[1] or 0.0)
        margin = None if share is None else share * abs(math.fsum(high.values())) / max(1, len(high))
        differences = {seed: factor * high[seed] - low[seed] for seed in seeds}
        return Claim(name, f"{data}: {text}", differences, over_data, unit, margin, family or f"{name} {data}")
