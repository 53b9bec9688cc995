"""compare: train variants on one data set, judge them on the same held-out data, keep and report them."""

import csv
import io
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro
import torch

from ..catalogue import VARIANTS, check_options, own_options
from ..checkpoint import refuse_other, save
from ..contracts.support import check_support
from ..data.data_set import Data
from ..evaluation import ex_post
from ..evaluation.evaluation import Evaluation, evaluate
from ..evaluation.features import Features, features_for
from ..evaluation.metrics import COLUMNS
from ..files import writable, write_text
from ..models import Mixture
from ..streams import seeded
from ..training.divergence import Diverged
from ..training.fitting import Fit, fit

__all__ = ["Result", "compare", "run_variant"]


@dataclass(frozen=True)
class Result:
    """One variant: its fit, its ex-post density and its figures; or, refused or diverged, the reason.

    Attributes:
        name: In the catalogue.
        data: What it was trained on: binarised where its likelihood is binary and the data are grey.
        trained: The fit.
        mixture: The ex-post density.
        evaluation: On the held-out data.
        reason: Why there is no fit, else empty.
    """

    name: str
    data: Data
    trained: Fit | None = None
    mixture: Mixture | None = None
    evaluation: Evaluation | None = None
    reason: str = ""

    @property
    def measure(self) -> str:
        """What the bound is a bound of: bounds compare only where this is the same."""
        if self.trained is None:
            return ""
        if not self.trained.variant.has_bound:
            return "MAP, no bound"
        kind = "mass" if self.trained.variant.support.is_discrete else "density"
        return f"{kind} of {self.data.note.partition(':')[0]} x" if self.data.note else kind

    def as_row(self) -> dict[str, Any]:
        """A row of the table, errors beside values."""
        row: dict[str, Any] = {"variant": self.name, "data": self.data.note or "as they are", "measure": self.measure}
        if self.trained is None or self.evaluation is None:
            return row | {"reason": self.reason}
        row |= {"best_epoch": self.trained.best_epoch, "seconds": self.trained.rows[-1]["seconds"]}
        return row | self.evaluation.as_row()


def run_variant(
    name: str,
    data: Data,
    *,
    z_dim: int,
    components: int | str,
    num_particles: int,
    features: Features,
    options: dict[str, Any],
    **training: Any,
) -> Result:
    """Build, train, fit the ex-post density and evaluate one variant.

    Where the likelihood is binary and the data are grey values in [0, 1], it is trained on fresh Bernoulli draws of
    them, which its row says.
    """
    seed = int(training.get("seed", 0))
    with seeded(seed):
        variant = VARIANTS[name](data.x_shape, z_dim, **options)
    data = _suited(name, data, seed)
    try:
        check_support(variant, data.scale(data.test))
        trained = fit(variant, data, **training)
        mixture = ex_post.fit(variant, data, components, seed)
        evaluation = evaluate(
            variant,
            data.test,
            num_particles,
            train=data.resident,
            ex_post=mixture,
            features=features,
            pictures=data.pictures,
            seed=seed,
        )
    except (Diverged, ValueError) as error:
        return Result(name, data, reason=str(error))
    return Result(name, data, trained, mixture, evaluation)


def _suited(name: str, data: Data, seed: int) -> Data:
    """The data, or Bernoulli draws of them where the likelihood wants {0, 1} and they are grey in [0, 1]."""
    with seeded(seed):
        variant = VARIANTS[name](data.x_shape, 1)
    y = data.scale(data.test)
    try:
        check_support(variant, y)
    except ValueError:
        if bool(((y >= 0) & (y <= 1)).all()) and isinstance(data.train, torch.Tensor):
            drawn = data.binarized("dynamic", seed)
            try:
                check_support(variant, drawn.test)
            except ValueError:
                return data
            return drawn
    return data


def compare(
    names: Sequence[str],
    data: Data,
    out: str | Path,
    *,
    z_dim: int = 8,
    components: int | str = 10,
    num_particles: int = 100,
    features: str | None = None,
    estimator: str | None = None,
    options: Mapping[str, Any] | None = None,
    progress: bool = True,
    command: str = "",
    **training: Any,
) -> list[Result]:
    """Train and judge variants on one data set, with the same networks, optimizer, epochs and seed for all.

    Args:
        names: Of ``VARIANTS``.
        data: What ``prepare`` returns.
        out: A folder: it gets a checkpoint per variant, ``table.csv``, ``table.json`` and ``report.html``.
        z_dim: Size of a code.
        components: Of the ex-post mixture.
        num_particles: Draws K of the bounds.
        features: ``"pca"``, ``"classifier"``, ``"inception"`` or an ONNX file; chosen by the data unless given.
        estimator: Of the bound, for all variants, ``"dreg:num_particles=16"`` say; each one's own unless given.
        options: Options of variants by name, ``{"beta": 2}`` say; each is given to the variants that have it.
        progress: Show loss and time left.
        command: For the report: what was typed.
        training: Arguments of ``fit``.

    Raises:
        ValueError: If a name is unknown, no variant has an option, or the folder cannot be written.
    """
    from .document import report

    unknown = [name for name in names if name not in VARIANTS]
    if unknown or not names:
        raise ValueError(f"unknown variant {', '.join(map(repr, unknown))}: wanted {', '.join(VARIANTS)}")
    options = dict(options or {})
    check_options(names, options)
    loss = {} if estimator is None else {"loss": estimator}
    out = writable(out)
    for name in names:
        refuse_other(out / name)
    space = features_for(data.scale(data.resident), data.labels, features, int(training.get("seed", 0)))
    results = []
    for index, name in enumerate(names, 1):
        label = f"{index}/{len(names)} {name}" if progress else False
        result = run_variant(
            name,
            data,
            z_dim=z_dim,
            components=components,
            num_particles=num_particles,
            features=space,
            options=own_options(name, options) | loss,
            progress=label,
            **training,
        )
        if result.trained is not None:
            save(out / name, result.trained.variant, {"data": result.data.origin, "fit": result.trained.settings})
        results.append(result)
    settings = {"z_dim": z_dim, "components": components, "K": num_particles, "features": space.name, **training}
    settings |= {} if estimator is None else {"estimator": estimator}
    settings |= {"options": options} if options else {}
    settings |= {"command": command, "versions": versions(), "data": data.name, "scale": repr(data.scale)}
    write_text(out / "table.csv", as_csv(results))
    write_text(out / "table.json", as_json(results, settings))
    write_text(out / "report.html", report(results, data, settings))
    return results


def versions() -> dict[str, str]:
    """What the figures were made with."""
    return {"python": platform.python_version(), "torch": torch.__version__, "pyro": pyro.__version__}


def as_csv(results: Sequence[Result]) -> str:
    """The table, a row per variant; an empty cell is a number that is not legitimate."""
    rows = [result.as_row() for result in results]
    head = ["variant", "data", "measure", "best_epoch", "seconds"]
    head += [part for name in COLUMNS for part in (name, f"{name}_error")] + ["reason"]
    text = io.StringIO()
    writer = csv.DictWriter(text, head, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def as_json(results: Sequence[Result], settings: dict[str, Any]) -> str:
    """Table, units, settings and receipts."""
    columns = {name: column._asdict() for name, column in COLUMNS.items()}
    rows = [
        {
            **result.as_row(),
            "empty": {} if result.evaluation is None else _reasons(result.evaluation),
            "notes": [] if result.evaluation is None else result.evaluation.notes,
            "receipt": None if result.trained is None else result.trained.receipt().splitlines(),
        }
        for result in results
    ]
    return json.dumps({"settings": settings, "columns": columns, "rows": rows}, indent=2, default=str) + "\n"


def _reasons(evaluation: Evaluation) -> dict[str, str]:
    return {name: number.reason for name, number in evaluation.numbers.items() if number.value is None}
