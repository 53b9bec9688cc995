"""The outcome of a comparison for one variant: a result, or the reason why there is none."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ..catalogue import VARIANTS
from ..data.data_set import Data
from ..drawing import COLOURS
from ..evaluation.evaluation import Evaluation
from ..models import Mixture
from ..training.fitting import Fit
from ..variant import Variant

__all__ = ["Refused", "Result", "by_measure", "colour"]


@dataclass(frozen=True)
class Result:
    """A variant that was trained and judged.

    Attributes:
        name: Name of the variant in the catalogue.
        fit: The fit, with the trained pair and the data it was trained on.
        mixture: The ex-post density.
        evaluation: The numbers on held-out data.
        reason: Always empty; see ``Refused``.
    """

    name: str
    fit: Fit
    mixture: Mixture
    evaluation: Evaluation
    reason: ClassVar[str] = ""

    @property
    def variant(self) -> Variant:
        """The trained pair."""
        return self.fit.variant

    @property
    def data(self) -> Data:
        """The data that it was trained on. Grey values are binarized if the likelihood is binary."""
        return self.fit.data

    @property
    def measure(self) -> str:
        """The kind of quantity that is bounded. Bounds can be compared only if they have the same measure."""
        if not self.variant.has_bound:
            return "MAP objective (no bound)"
        kind = "mass" if self.variant.support.is_discrete else "density"
        return f"{kind} of {self.data.note.partition(':')[0]} x" if self.data.note else kind

    def as_row(self) -> dict[str, Any]:
        """A row of the table, with errors beside values."""
        return {
            **_heading(self.name, self.data, self.measure),
            "best_epoch": self.fit.best_epoch,
            "seconds": self.fit.rows[-1]["seconds"],
            **self.evaluation.as_row(),
        }

    def details(self) -> dict[str, Any]:
        """The parts of a row that are not in its cells: reasons for empty cells, notes, and the receipt."""
        numbers = self.evaluation.numbers
        return {
            "empty": {name: number.reason for name, number in numbers.items() if number.value is None},
            "notes": self.evaluation.notes,
            "receipt": self.fit.receipt().splitlines(),
        }


@dataclass(frozen=True)
class Refused:
    """A variant without a result: its likelihood does not support the data, or its training diverged.

    Attributes:
        name: Name of the variant in the catalogue.
        data: The data it was to be trained on.
        reason: The message of the error.
        measure: Always empty.
        evaluation: Always None; see ``Result``.
    """

    name: str
    data: Data
    reason: str
    measure: ClassVar[str] = ""
    evaluation: ClassVar[None] = None

    def as_row(self) -> dict[str, Any]:
        """A row of the table, with the reason in the place of the numbers."""
        return {**_heading(self.name, self.data, self.measure), "reason": self.reason}

    def details(self) -> dict[str, Any]:
        """The entries of ``Result.details``, all empty."""
        return {"empty": {}, "notes": [], "receipt": None}


def _heading(name: str, data: Data, measure: str) -> dict[str, Any]:
    """The cells that every row begins with."""
    return {"variant": name, "data": data.note or "as they are", "measure": measure}


def by_measure(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Results in groups of comparable bounds, by a title that names the bounded quantity. MAP objectives are last."""
    kinds: dict[str, list[Result]] = {}
    for result in sorted(results, key=lambda result: not result.variant.has_bound):
        title = f"Bounds of the log {result.measure}" if result.variant.has_bound else "MAP objectives (no bounds)"
        kinds.setdefault(title, []).append(result)
    return kinds


def colour(name: str) -> str:
    """The colour that stands for a variant in every plot of every report."""
    names = list(VARIANTS)
    index = names.index(name) if name in names else sum(map(ord, name))
    return COLOURS[index % len(COLOURS)]
