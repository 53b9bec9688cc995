"""A number with its standard error, or the reason why there is none."""

import math
from typing import NamedTuple

from torch import Tensor

__all__ = ["Number", "mean_over_data", "rows_named", "share_over_data", "standard_error"]


class Number(NamedTuple):
    """A figure with its standard error.

    Without a value, ``reason`` says why there is none; beside a value, what a reader has to know of it.
    """

    value: float | None
    error: float | None = None
    reason: str = ""

    def __str__(self) -> str:
        if self.value is None:
            return self.reason
        return f"{self.value:.5g}" if self.error is None else f"{self.value:.5g} ± {self.error:.2g}"


def mean_over_data(values: Tensor) -> Number:
    """Mean over data of values [rows], and its standard error; no error for one datum.

    There is no mean where a value is infinite or NaN, and the reason names the rows.
    """
    broken = (~values.isfinite()).nonzero().flatten().tolist()
    if broken:
        return Number(None, reason=f"not finite in {len(broken)} of {len(values)} rows: {rows_named(broken)}")
    error = float(values.std() / math.sqrt(len(values))) if len(values) > 1 else None
    return Number(float(values.mean()), error)


def share_over_data(values: Tensor) -> Number:
    """Mean of shares [rows] and its standard error.

    Where all shares are equal, 0 of n data, say, their spread is 0 and the error is not: two standard errors then reach
    what a 95 % interval for such a share does, ``4 / (n + 4)`` (Wilson, 1927).
    """
    found = mean_over_data(values)
    return found if found.value is None or found.error else found._replace(error=2 / (len(values) + 4))


def rows_named(rows: list[int]) -> str:
    """Rows by number, in words: ``row 3``, or ``rows 3, 7, 9, 12, 15 and 4 more``."""
    listed = ", ".join(map(str, rows[:5])) + (f" and {len(rows) - 5} more" if len(rows) > 5 else "")
    return f"row{'s' * (len(rows) > 1)} {listed}"


def standard_error(values: Tensor, dim: int = 0) -> Tensor:
    """The standard error of the mean over the first axis, [...], of values [n, ...]."""
    return values.std(dim) / math.sqrt(values.shape[dim])
