"""The table of a report: contestants in groups of comparable bounds, with their means over seeds and their ranking."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ..estimate import Number, rounded
from ..evaluation.metrics import COLUMNS, Column
from ..studies import Pair, Ranking, Study
from ..studies.summary import ERRORS, mean_of, ranked
from ..studies.table import Row, measured

__all__ = ["Cell", "Group", "Line", "Place", "columns_of", "findings", "groups_of", "is_told_apart", "printed"]


class Cell(NamedTuple):
    """A number as it is printed, with its error, or the reason why there is no number."""

    value: str
    error: str = ""
    reason: str = ""
    best: bool = False


class Line(NamedTuple):
    """The cells of one contestant, or the reason why it has none.

    Attributes:
        name: The contestant.
        cells: One cell for each column.
        seeds: Which seeds the line is about, unless it is about all of them.
        reason: Why there are no cells.
    """

    name: str
    cells: Sequence[Cell] = ()
    seeds: str = ""
    reason: str = ""


class Place(NamedTuple):
    """A contestant in a ranking.

    Attributes:
        number: Its place, from 1.
        name: The contestant.
        value: The mean over seeds.
        over_seeds, over_data: Its standard errors, or empty texts where they are not known.
        seeds: The number of seeds.
        open: The places of the contestants that it is not told apart from.
    """

    number: int
    name: str
    value: str
    over_seeds: str
    over_data: str
    seeds: int
    open: Sequence[int]


class Group(NamedTuple):
    """Contestants with comparable bounds.

    Attributes:
        title: It names the bounded quantity.
        text: What was done to the data.
        lines: One line per contestant.
        ranking: The ranking by the bound, or by the RMSE where there is no bound. None for a single contestant.
    """

    title: str
    text: str
    lines: Sequence[Line]
    ranking: Ranking | None = None

    @property
    def places(self) -> list[Place]:
        """The ranking as it is printed."""
        if self.ranking is None:
            return []
        numbers = {mean.name: number for number, mean in enumerate(self.ranking.means, 1)}
        apart = {frozenset(pair[:2]) for pair in self.ranking.pairs if is_told_apart(pair)}
        return [
            Place(
                numbers[mean.name],
                mean.name,
                rounded(mean.value, mean.error_over_seeds or mean.error_over_data)[0],
                rounded(mean.value, mean.error_over_seeds)[1],
                rounded(mean.value, mean.error_over_data)[1],
                mean.seeds,
                [numbers[name] for name in numbers if name != mean.name and {name, mean.name} not in apart],
            )
            for mean in self.ranking.means
        ]


def printed(number: Number, *, best: bool = False) -> Cell:
    """Round a number to two digits of its error, or to four digits if it has none.

    Args:
        number: A number, its error, and the reason if there is no value.
        best: Whether it is decided to be the best of its column, which is printed in bold.

    Example:
        >>> from ppl_vae.estimate import Number
        >>> printed(Number(12.3456, 0.0789))
        Cell(value='12.346', error='0.079', reason='', best=False)
    """
    if number.value is None:
        return Cell("", reason=number.reason)
    return Cell(*rounded(number.value, number.error), best=best)


def is_told_apart(pair: Pair) -> bool:
    """Whether two contestants are told apart.

    With several seeds this is ``pair.decided``. A single seed decides nothing about another training, and tells two
    fits apart if they differ by more than twice the error over data of their difference.
    """
    if pair.seeds > 1:
        return pair.decided
    return pair.error_over_data is not None and abs(pair.difference) > ERRORS * pair.error_over_data


def columns_of(study: Study) -> dict[str, Column]:
    """The columns of the table by name: those of every evaluation, and the further numbers of contestants."""
    own = dict.fromkeys(name for row in study.rows for name in row.numbers if name not in COLUMNS)
    return COLUMNS | {name: Column(name, "", None, "A further number of the contestant") for name in own}


def groups_of(study: Study) -> list[Group]:
    """All contestants in their groups. Groups without bounds come last, and then what was refused or diverged."""
    columns, seeds = columns_of(study), len({row.cell.seed for row in study.rows})
    kinds: dict[str, list[Row]] = {}
    for row in sorted((row for row in study.rows if row.is_done), key=lambda row: not row.record["has_bound"]):
        kinds.setdefault(row.record["measure"], []).append(row)
    groups = [_group(rows, columns, seeds) for rows in kinds.values()]
    refused = [
        Line(row.cell.name, seeds=f"seed {row.cell.seed}" if seeds > 1 else "", reason=row.reason)
        for row in study.rows
        if not row.is_done
    ]
    return [*groups, Group("Refused or diverged", "no numbers", refused)] if refused else groups


def findings(study: Study) -> list[str]:
    """What was found, one plain sentence per finding: those of ``Study``, and by RMSE where there are no bounds."""
    others = [
        group.ranking for group in groups_of(study) if group.ranking is not None and group.ranking.title != "bound"
    ]
    return [*study.sentences(), *(sentence for ranking in others for sentence in ranking.sentences())]


def _group(rows: Sequence[Row], columns: Mapping[str, Column], seeds: int) -> Group:
    """One group, with the number of each column marked that is decided to be the best."""
    record = rows[0].record
    title = f"Bounds of the log {record['measure']}" if record["has_bound"] else "MAP objectives (no bounds)"
    by_name: dict[str, list[Row]] = {}
    for row in rows:
        by_name.setdefault(row.cell.name, []).append(row)
    best = {column: _best(_ranking(rows, column, columns[column])) for column in columns if column != "log_joint"}
    lines = [
        Line(
            name,
            [_cell(own, column, seeds, best=best.get(column) == name) for column in columns],
            f"{len(own)} of {seeds} seeds" if len(own) < seeds else "",
        )
        for name, own in by_name.items()
    ]
    column = "bound" if record["has_bound"] else "rmse"
    notes = dict.fromkeys(row.record["note"] for row in rows if row.record["note"])
    return Group(title, "; ".join(notes), lines, _ranking(rows, column, columns[column]))


def _known(rows: Sequence[Row], column: str) -> list[Row]:
    """The rows that have a number in a column."""
    return [row for row in rows if column in row.numbers and row.numbers[column].value is not None]


def _cell(rows: Sequence[Row], column: str, seeds: int, *, best: bool) -> Cell:
    """The mean of a contestant over seeds, with its error: over seeds, or over data if the study has one seed."""
    known = _known(rows, column)
    if not known:
        return Cell("", reason=rows[0].numbers[column].reason if column in rows[0].numbers else "not asked")
    [found] = measured(known, column).values()
    mean = mean_of(rows[0].cell.name, found)
    return printed(Number(mean.value, mean.error_over_seeds if seeds > 1 else mean.error_over_data), best=best)


def _ranking(rows: Sequence[Row], column: str, about: Column) -> Ranking | None:
    """The ranking by a column. None if no direction is better, or if fewer than two contestants have a number."""
    known = _known(rows, column)
    if about.up is None or len({row.cell.name for row in known}) < 2:
        return None
    return ranked(measured(known, column), title=about.title, unit=about.unit, up=about.up)


def _best(ranking: Ranking | None) -> str | None:
    """The first of a ranking if it is told apart from all others, else None."""
    if ranking is None:
        return None
    first, *others = [mean.name for mean in ranking.means]
    beaten = {pair.second for pair in ranking.pairs if pair.first == first and is_told_apart(pair)}
    return first if beaten == set(others) else None
