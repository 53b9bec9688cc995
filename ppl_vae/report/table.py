"""The table of a report: printed numbers in rows, and rows in groups of comparable bounds."""

from collections.abc import Sequence
from typing import NamedTuple

from ..estimate import Number, rounded
from ..evaluation.metrics import COLUMNS
from .results import Refused, Result, by_measure, colour

__all__ = ["Cell", "Group", "Row", "groups_of", "printed"]


class Cell(NamedTuple):
    """A number as it is printed, with its error, or the reason why there is no number."""

    value: str
    error: str = ""
    reason: str = ""
    best: bool = False


class Row(NamedTuple):
    """The cells of one variant, or the reason why it has none."""

    name: str
    colour: str
    cells: Sequence[Cell] = ()
    reason: str = ""


class Group(NamedTuple):
    """Rows with comparable bounds, under a title that names the bounded quantity."""

    title: str
    text: str
    rows: Sequence[Row]


def printed(number: Number, *, best: bool = False) -> Cell:
    """Round a number to two digits of its error, or to four digits if it has none.

    Args:
        number: A number, its error, and the reason if there is no value.
        best: Whether it is the best of its column, which is printed in bold.

    Example:
        >>> from ppl_vae.estimate import Number
        >>> printed(Number(12.3456, 0.0789))
        Cell(value='12.346', error='0.079', reason='', best=False)
    """
    if number.value is None:
        return Cell("", reason=number.reason)
    return Cell(*rounded(number.value, number.error), best=best)


def groups_of(results: Sequence[Result | Refused]) -> list[Group]:
    """The rows of all variants in their groups. Variants that were refused or diverged come last."""
    judged = [result for result in results if isinstance(result, Result)]
    groups = [_group(title, some) for title, some in by_measure(judged).items()]
    refused = [
        Row(result.name, colour(result.name), reason=result.reason) for result in results if isinstance(result, Refused)
    ]
    return [*groups, Group("Refused or diverged", "no numbers", refused)] if refused else groups


def _group(title: str, results: Sequence[Result]) -> Group:
    """One group, with the best number of each column marked."""
    best = {name: _best(results, name) for name in COLUMNS}
    rows = []
    for result in results:
        numbers = {name: result.evaluation[name] for name in COLUMNS}
        cells = [printed(number, best=number is best[name]) for name, number in numbers.items()]
        rows.append(Row(result.name, colour(result.name), cells))
    notes = dict.fromkeys(result.data.note for result in results if result.data.note)
    return Group(title, "; ".join(notes), rows)


def _best(results: Sequence[Result], name: str) -> Number | None:
    """The best number of a column. None if no direction is better, or if there are fewer than two numbers."""
    numbers = [number for result in results if (number := result.evaluation[name]).value is not None]
    up = COLUMNS[name].up
    if up is None or len(numbers) < 2 or name == "log_joint":  # MAP objectives cannot be compared
        return None
    return (max if up else min)(numbers, key=lambda number: number.value or 0.0)
