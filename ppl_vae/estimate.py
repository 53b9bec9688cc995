"""A number with its standard error, or the reason why there is none."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "Number",
    "exponent",
    "mean_over_data",
    "p_value",
    "rounded",
    "rows_named",
    "share_over_data",
    "standard_error",
]

MINUS = "\N{MINUS SIGN}"
ROUNDING = 1e-9  # an error below this share of the value is rounding, and is not printed


class Number(NamedTuple):
    """A number with its standard error.

    Attributes:
        value: The number, or None where there is none.
        error: Its standard error, or None where it is not known.
        reason: The reason why there is no number. Beside a number, it is a remark for the reader.
    """

    value: float | None
    error: float | None = None
    reason: str = ""

    def __str__(self) -> str:
        if self.value is None:
            return self.reason
        return f"{self.value:.5g}" if self.error is None else f"{self.value:.5g} ± {self.error:.2g}"


def rounded(value: float, error: float | None = None) -> tuple[str, str]:
    """A value to two digits of its error, and the error; or a value to four digits, and an empty text, without one.

    Example:
        >>> rounded(12.3456, 0.0789)
        ('12.346', '0.079')
    """
    if error is None or not ROUNDING * max(1.0, abs(value)) < error < math.inf:
        return f"{value:.4g}".replace("-", MINUS), ""
    decimals = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{decimals}f}".replace("-", MINUS), f"{error:.{decimals}f}"


def standard_error(values: Tensor, dim: int = 0) -> Tensor:
    """The standard error of the mean along the axis ``dim``, which is left out of the result."""
    return values.std(dim) / math.sqrt(values.shape[dim])


def p_value(difference: float, error: float | None, count: int) -> float:
    """The two-sided p-value of Student's test that a mean difference of ``count`` replicates is 0.

    It is below 5 % beyond 2.78 errors for five replicates. A single replicate has no error and decides nothing, so it
    gives 1.
    """
    from scipy.special import stdtr  # type: ignore[import-untyped,unused-ignore]

    if error is None or difference == 0.0:
        return 1.0
    return float(2 * stdtr(count - 1, -abs(difference) / error)) if error > 0.0 else 0.0


def mean_over_data(values: Tensor) -> Number:
    """The mean over data of values [rows], with its standard error. A single datum gives no error.

    If a value is infinite or NaN, there is no mean, and the reason names the rows.
    """
    broken = (~values.isfinite()).nonzero().flatten().tolist()
    if broken:
        return Number(None, reason=f"not finite in {len(broken)} of {len(values)} rows: {rows_named(broken)}")
    error = float(standard_error(values)) if len(values) > 1 else None
    return Number(float(values.mean()), error)


def share_over_data(values: Tensor) -> Number:
    """The mean of shares [rows], with its standard error.

    Where all shares are equal, for example 0 for each of n data, their spread is 0, but the share still has an error.
    This error is then ``2 / (n + 4)``: two errors have the length of a 95 % interval for such a share (Wilson, 1927).
    """
    found = mean_over_data(values)
    all_equal = found.error == 0.0  # a single share has no error at all
    return found._replace(error=2 / (len(values) + 4)) if all_equal else found


def rows_named(rows: list[int]) -> str:
    """Rows by number, in words: ``row 3``, or ``rows 3, 7, 9, 12, 15 and 4 more``."""
    noun = "row" if len(rows) == 1 else "rows"
    listed = ", ".join(map(str, rows[:5]))
    rest = f" and {len(rows) - 5} more" if len(rows) > 5 else ""
    return f"{noun} {listed}{rest}"


def exponent(values: Iterable[float], at: Iterable[float]) -> float:
    """The exponent a of a power law ``values = c at**a``: the least-squares slope of the logs. All are positive."""
    y, x = (torch.tensor(list(side), dtype=torch.float64).log() for side in (values, at))
    x = x - x.mean()
    return float((x * y).sum() / x.square().sum())
