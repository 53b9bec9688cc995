"""Judge a trained variant on held-out data. Each number has a unit, and a standard error where it is known."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ..contracts import check_support
from ..data.data_set import Data, tensor_of
from ..estimate import Number
from ..streams import seeded
from ..variant import Variant
from .features import Features, principal_components
from .kl_terms import ACTIVE
from .metrics import COLUMNS, Subject, measure

__all__ = ["Evaluation", "evaluate"]

NO_NOISE = " (means, no noise)"


@dataclass(frozen=True)
class Evaluation:
    """The numbers of one variant on held-out data.

    Attributes:
        numbers: One number for each name in ``COLUMNS``.
        num_particles: The number K of draws per datum for the bounds.
        rows: The number of held-out data.
        features: The name of the feature space of the Frechet distances.
        kl_per_dim: The KL of each unit, [z_dim], nats, sorted from large to small. It is empty where q or p(z)
            does not factorise.
        bound_per_datum: The ELBO of each datum, [rows], in nats. It is empty for a point mass.
        means: Whether samples are means of p(x | z), without observation noise, as they are for images.
        notes: Sentences that belong beside the numbers, for example how many of the data were trained on.
        active_per_dim: Whether each unit is active, [z_dim], in the order of ``kl_per_dim``, or empty like it.
    """

    numbers: dict[str, Number]
    num_particles: int
    rows: int
    features: str
    kl_per_dim: list[float] = field(default_factory=list)
    bound_per_datum: list[float] = field(default_factory=list)
    means: bool = False
    notes: list[str] = field(default_factory=list)
    active_per_dim: list[bool] = field(default_factory=list)

    def __getitem__(self, name: str) -> Number:
        return self.numbers[name]

    def as_row(self) -> dict[str, Any]:
        """Values and errors as plain numbers, for a table or JSON."""
        row: dict[str, Any] = {}
        for name, number in self.numbers.items():
            row[name], row[f"{name}_error"] = number.value, number.error
        return row

    def __str__(self) -> str:
        lines = [f"{self.rows} held-out data; K = {self.num_particles}; F in {self.features}"]
        for name, number in self.numbers.items():
            beside = self.noise(name) + (f" ({number.reason})" if number.reason else "")
            told = "" if number.value is None else f"{COLUMNS[name].unit}{beside}"
            lines.append(f"{COLUMNS[name].title:<16}{number!s:<24}{told}")
        return "\n".join([*lines, *self.notes])

    def noise(self, name: str) -> str:
        """A note that a number describes means of p(x | z), without observation noise, or an empty text."""
        means = COLUMNS[name].means
        return NO_NOISE if means == "always" or (means == "images" and self.means) else ""


def evaluate(
    variant: Variant,
    x: Any,
    num_particles: int = 100,
    *,
    train: Any = None,
    ex_post: nn.Module | None = None,
    features: Features | None = None,
    pictures: Any = None,
    seed: int = 0,
) -> Evaluation:
    """Judge a trained variant on held-out data. Parameters, buffers, modes and random streams are left as they were.

    A mean over data is empty if some datum has no finite value. The reason then names the rows.

    Args:
        variant: A trained pair.
        x: Held-out data [rows, *x_shape], in the data's units: an array, a tensor or a data frame. ``Data`` stands for
            its test part and its pictures.
        num_particles: The number K of draws per datum for the bounds. Exactly K draws are used.
        train: Training data in the data's units. They are the reference of "F real" and of nearest neighbours, and
            they are searched for rows of x. ``Data`` stands for its training part. If a Dataset is too large for
            memory, 10,000 of its rows are drawn at random.
        ex_post: The density that ``ex_post.fit`` returns, for samples from it and a bound under it.
        features: The feature space of the Frechet distances, a map from data in the model's units. By default it is the
            principal components of ``train``, or of x without ``train``.
        pictures: The grey values, if x is a binary draw of pictures. Samples are compared with them.
        seed: Seed of every draw, and of the choice of the 5000 data that a Frechet distance takes where there are more.

    Raises:
        ValueError: If x has the wrong shape, holds NaN, lies outside the support of p(x | z), or has fewer than 2 rows.
    """
    pictures = x.pictures if pictures is None and isinstance(x, Data) else pictures
    x = tensor_of(x)
    if len(x) < 2:
        raise ValueError(f"evaluate needs at least 2 data for its standard errors, got {len(x)}")
    y = variant.in_model_units(x)
    check_support(variant, y, x)
    real = y if pictures is None else variant.admit(pictures, "pictures")
    seen = None if train is None else variant.in_model_units(tensor_of(train, "train", part=True), "train")
    if features is None:
        with seeded(seed):
            features = principal_components(real if seen is None else seen)
    subject = Subject(variant, y, real, seen, ex_post, features, num_particles, seed)
    numbers, (kl_per_dim, active_per_dim) = measure(subject), _units(subject)
    return Evaluation(
        numbers,
        num_particles,
        len(y),
        features.name,
        kl_per_dim,
        subject.bounds[0].elbo.tolist() if variant.has_bound else [],
        subject.shows_means,
        [] if seen is None else _notes(real, seen, _rows_of(train) or len(seen)),
        active_per_dim,
    )


def _units(subject: Subject) -> tuple[list[float], list[bool]]:
    """The mean KL of each unit from large to small, and whether it is active. Both are empty without a KL per unit."""
    per_dim = subject.kl[1] if subject.variant.has_bound else None
    if per_dim is None:
        return [], []
    kl, order = per_dim.mean(0).sort(descending=True)
    is_active = subject.codes.var(0) > ACTIVE
    return kl.tolist(), is_active[order].tolist()


def _rows_of(train: Any) -> int | None:
    """The number of rows in training data, or None where they have no length."""
    train = train.train if isinstance(train, Data) else train
    return len(train) if hasattr(train, "__len__") else None


def _notes(y: Tensor, train: Tensor, rows: int) -> list[str]:
    """Notes on held-out data y and training data ``train``, both in the model's units, for the reader of the numbers.

    ``train`` may be a part of all training data, whose number is ``rows``.
    """
    notes = []
    if len(train) < rows:
        notes.append(f"train: {len(train)} of {rows} rows, drawn at random")
    seen = [row.tobytes() for row in (train + 0.0).flatten(1).cpu().numpy()]  # + 0.0 turns -0 into 0
    known = set(seen)
    repeats = sum(row.tobytes() in known for row in (y + 0.0).flatten(1).cpu().numpy())
    if repeats:
        share_within = 1 - len(known) / len(seen)  # of the training rows, those that repeat another training row
        few_values = share_within >= repeats / len(y) / 2
        usual = f"{share_within:.0%} of the training rows repeat each other too, as in data with few distinct values"
        meaning = usual if few_values else "their scores are too good"
        notes.append(f"{repeats} of {len(y)} held-out rows also stand among the training rows: {meaning}")
    return notes
