"""The outcome of a cell: a result, or the reason why there is none."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from ..data.data_set import Data
from ..estimate import Number
from ..evaluation.evaluation import Evaluation
from ..models import Mixture
from ..training.fitting import Fit
from ..variant import Variant

__all__ = ["Refused", "Result"]


@dataclass(frozen=True)
class Result:
    """A pair that was trained and judged.

    Attributes:
        name: Name of the contestant.
        fit: The fit, with the trained pair and the data it was trained on.
        mixture: The ex-post density.
        evaluation: The numbers on held-out data.
        seed: The seed of the training.
        extra: Further numbers by name, from a function of the study's author.
        reason: Always empty; see ``Refused``.
    """

    name: str
    fit: Fit
    mixture: Mixture
    evaluation: Evaluation
    seed: int = 0
    extra: Mapping[str, Number] = field(default_factory=dict)
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

    @property
    def has_bound(self) -> bool:
        """Whether the numbers have a bound of log p(x)."""
        return self.variant.has_bound


@dataclass(frozen=True)
class Refused:
    """A cell without a result: its likelihood does not support the data, its training diverged, or an error came.

    Attributes:
        name: Name of the contestant.
        data: The data it was to be trained on.
        reason: The message of the error.
        seed: The seed of the training.
        measure: Always empty.
        evaluation: Always None; see ``Result``.
    """

    name: str
    data: Data
    reason: str
    seed: int = 0
    measure: ClassVar[str] = ""
    evaluation: ClassVar[None] = None
