"""The table of a study: one row per cell, the rankings over seeds, and the results behind the rows."""

import csv
import io
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyro
import torch

from ..estimate import Number
from ..evaluation.metrics import COLUMNS
from ..evaluation.pareto import k_threshold
from .cells import Cell
from .folder import StudyFolder
from .results import Refused, Result
from .summary import Measured, Ranking, ranked
from .work import DONE, numbers_of, restored

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Row", "Study", "measured", "versions"]


@dataclass(frozen=True, eq=False)
class Row:
    """A finished cell: its declaration, its record, and the folder of its checkpoint."""

    cell: Cell
    record: Mapping[str, Any]
    folder: Path

    @property
    def is_done(self) -> bool:
        """Whether there are numbers."""
        return bool(self.record["status"] == DONE)

    @property
    def reason(self) -> str:
        """Why there are no numbers, or an empty text."""
        return str(self.record["reason"])

    @property
    def group(self) -> tuple[str, str]:
        """The name of the data and the bounded quantity: bounds can be compared only within a group."""
        return self.cell.data.name, str(self.record["measure"])

    @cached_property
    def numbers(self) -> dict[str, Any]:
        """The numbers by name, with those of the study's author."""
        return {**numbers_of(self.record, "evaluation"), **numbers_of(self.record, "extra")} if self.is_done else {}

    def as_dict(self) -> dict[str, Any]:
        """The row as plain values, with errors beside values."""
        cell = self.cell
        note = self.record.get("note") or "as they are"
        row: dict[str, Any] = {"variant": cell.name, "data": cell.data.name, "values": note, "seed": cell.seed}
        row |= {"measure": self.record.get("measure", "")}
        if not self.is_done:
            return {**row, "reason": self.reason}
        row["best_epoch"] = self.record["best_epoch"]
        for name, number in self.numbers.items():
            row[name], row[f"{name}_error"] = number.value, number.error
        return row

    def details(self) -> dict[str, Any]:
        """The parts of a row that are not in its cells: reasons for empty cells, notes, and the receipt."""
        if not self.is_done:
            return {"empty": {}, "notes": [], "receipt": None}
        return {
            "empty": {name: number.reason for name, number in self.numbers.items() if number.value is None},
            "notes": self.record["evaluation"]["notes"],
            "receipt": self.record["receipt"],
        }

    def result(self) -> Result | Refused:
        """The result behind the row, with its pair, from the checkpoint."""
        return restored(self.cell, self.record, self.folder)


@dataclass(frozen=True, eq=False)
class Study:
    """The outcome of a study.

    Attributes:
        path: The folder of the study.
        rows: The finished cells, in the order of the cells.
    """

    path: Path
    rows: Sequence[Row]

    @classmethod
    def of(cls, folder: StudyFolder, cells: Sequence[Cell]) -> "Study":
        """Read the records of finished cells. A cell that failed by chance is a row with its reason."""
        found = folder.records({cell.key for cell in cells})
        rows = [Row(cell, found[cell.key][1], found[cell.key][0]) for cell in cells if cell.key in found]
        return cls(folder.path, rows)

    @property
    def frame(self) -> "pd.DataFrame":
        """The table as a data frame, one row per cell."""
        import pandas as pd

        return pd.DataFrame([row.as_dict() for row in self.rows], columns=self.columns)

    @property
    def columns(self) -> list[str]:
        """The names of the columns."""
        extra = dict.fromkeys(name for row in self.rows for name in row.numbers if name not in COLUMNS)
        numbers = [part for name in (*COLUMNS, *extra) for part in (name, f"{name}_error")]
        return ["variant", "data", "values", "seed", "measure", "best_epoch", *numbers, "reason"]

    @property
    def sets(self) -> list[str]:
        """The names of the data sets."""
        return list(dict.fromkeys(row.cell.data.name for row in self.rows))

    def of_set(self, data: str) -> list[Row]:
        """The rows on a data set that have numbers."""
        return [row for row in self.rows if row.cell.data.name == data and row.is_done]

    def ranking(self, column: str = "bound", data: str | None = None, *, up: bool | None = None) -> list[Ranking]:
        """Rank contestants by one column, for each group whose bounds can be compared.

        Args:
            column: The name of a column.
            data: The name of a data set. By default, every data set has its rankings.
            up: Whether larger is better. By default it is known from the column.

        Raises:
            ValueError: If there is no such column or data set, or neither direction is known to be better.
        """
        known = COLUMNS.get(column)
        up = known.up if up is None and known is not None else up
        if f"{column}_error" not in self.columns or up is None:
            ranked_ones = [name for name, one in COLUMNS.items() if one.up is not None]
            raise ValueError(f"cannot rank by {column!r}: wanted one of {', '.join(ranked_ones)}, or up=True or False")
        names = self.sets
        if data is not None and data not in names:
            raise ValueError(f"no data set is called {data!r}: wanted one of {', '.join(names)}")
        title, unit = (known.title, known.unit) if known is not None else (column, "")
        groups: dict[tuple[str, ...], list[Row]] = {}
        for row in self.rows:
            has_number = row.is_done and row.numbers.get(column, Number(None)).value is not None
            if has_number and data in (None, row.cell.data.name):
                groups.setdefault(self._comparable(row, column), []).append(row)
        return [
            ranked(measured(rows, column), title=title, unit=unit, up=up, where=group[0] if len(names) > 1 else "")
            for group, rows in groups.items()
            if len({row.cell.name for row in rows}) > 1
        ]

    @staticmethod
    def _comparable(row: Row, column: str) -> tuple[str, ...]:
        """The group in which a column can be compared: the same data, and for bounds the same measure."""
        data, measure = row.group
        is_bound = column in COLUMNS and COLUMNS[column].unit in ("nats", "bits")
        return (data, str(row.record["note"]), measure if is_bound else "")

    def sentences(self) -> list[str]:
        """What the study found, one plain sentence per finding."""
        said = [sentence for ranking in self.ranking() for sentence in ranking.sentences()]
        return [*said, *self._cautions()]

    def _cautions(self) -> list[str]:
        """Sentences on columns that should not be read."""
        shares = [row.numbers["heavy_tails"].value for row in self.rows if row.is_done]
        high = [share for share in shares if share is not None and share > 0.5]
        if not high:
            return []
        counts = {row.cell.judging.num_particles for row in self.rows}
        limit = k_threshold(min(counts))
        return [
            f'Do not read the importance-weighted bound ("{COLUMNS["importance_weighted"].title}"): in {len(high)} of '
            f"{len(self.rows)} rows, the k-hat of most data is above {limit:.2g}, so that neither this bound nor its "
            "error can be trusted."
        ]

    def results(self, seed: int | None = None) -> list[Result | Refused]:
        """The results with their pairs, of one seed. By default it is the first seed of each contestant."""
        first: dict[tuple[str, str], Row] = {}
        for row in self.rows:
            if seed in (None, row.cell.seed):
                first.setdefault((row.cell.data.name, row.cell.name), row)
        return [row.result() for row in first.values()]

    def as_csv(self) -> str:
        """The table as CSV. A cell is empty if there is no legitimate number for it."""
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(row.as_dict() for row in self.rows)
        return text.getvalue()

    def as_json(self, settings: Mapping[str, Any]) -> str:
        """The table as JSON, with the units of its columns, the settings of the run, and the rankings."""
        columns = {name: column._asdict() for name, column in COLUMNS.items()}
        rows = [{**row.as_dict(), **row.details()} for row in self.rows]
        summary = [summary_of(ranking) for ranking in self.ranking()]
        found = {"settings": settings, "columns": columns, "rows": rows, "summary": summary}
        found["sentences"] = self.sentences()
        return json.dumps(found, indent=2, default=str) + "\n"

    def __str__(self) -> str:
        done = sum(row.is_done for row in self.rows)
        return "\n".join([f"{done} of {len(self.rows)} cells have numbers, in {self.path}", *self.sentences()])


def measured(rows: Sequence[Row], column: str) -> dict[str, Measured]:
    """The values of a column by contestant. Those of the bound have a value per datum."""
    found: dict[str, Measured] = {}
    for row in rows:
        one = found.setdefault(row.cell.name, Measured({}, {}, {}))
        number, seed = row.numbers[column], row.cell.seed
        one.values[seed], one.errors[seed] = number.value, number.error  # type: ignore[index]
        if column == "bound":
            per_datum = [float(value) for value in row.record["evaluation"]["bound_per_datum"]]
            one.per_datum[seed] = per_datum  # type: ignore[index]
    return found


def summary_of(ranking: Ranking) -> dict[str, Any]:
    """A ranking for JSON."""
    return {
        "column": ranking.title,
        "unit": ranking.unit,
        "means": [mean._asdict() for mean in ranking.means],
        "pairs": [pair._asdict() for pair in ranking.pairs],
    }


def versions() -> dict[str, str]:
    """The versions of the software that a report was made with."""
    return {"python": platform.python_version(), "torch": torch.__version__, "pyro": pyro.__version__}
