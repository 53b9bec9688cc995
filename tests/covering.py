"""Combinations of parts that are few, and hold every pair of values."""

from collections.abc import Hashable, Iterable
from itertools import combinations, product

__all__ = ["covering"]

Row = tuple[Hashable, ...]


def covering(*factors: Iterable[Hashable]) -> list[Row]:
    """Rows with one value of each factor, in which any two values of two factors stand together at least once.

    A wrong line depends on one part, or on how two parts meet, so that these rows notice what all combinations would.
    Each row is the first one that adds the most pairs which are not there yet.
    """
    rows = list(product(*factors))
    missing = {pair for row in rows for pair in _pairs(row)}
    chosen = []
    while missing:
        best = max(rows, key=lambda row: len(missing & _pairs(row)))
        chosen.append(best)
        missing -= _pairs(best)
    return chosen


def _pairs(row: Row) -> set[Hashable]:
    return set(combinations(enumerate(row), 2))
