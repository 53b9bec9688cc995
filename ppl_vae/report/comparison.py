"""compare: train variants on one data set, judge them on the same held-out data, and write a report."""

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
from torch import Tensor

from ..catalogue import VARIANTS, check_options, own_options
from ..checkpoint import refuse_other, save
from ..contracts import check_support
from ..data.data_set import Data
from ..evaluation import ex_post
from ..evaluation.evaluation import evaluate
from ..evaluation.features import Features, features_for
from ..evaluation.metrics import COLUMNS
from ..files import writable, write_text
from ..streams import seeded
from ..training.divergence import Diverged
from ..training.fitting import fit
from ..training.options import FitOptions
from ..variant import Variant
from .document import comparison_page
from .results import Refused, Result

__all__ = ["Judging", "as_csv", "as_json", "compare", "run_variant"]


@dataclass(frozen=True)
class Judging:
    """How every variant of a comparison is judged.

    Attributes:
        components: Number of components of the ex-post mixture, or how they are chosen; see ``ex_post.fit``.
        num_particles: Draws K of the bounds.
        features: The feature space of the Frechet distances.
        seed: Seed of the mixture and of every draw.
    """

    components: int | str
    num_particles: int
    features: Features
    seed: int = 0


def run_variant(
    name: str, data: Data, judging: Judging, *, z_dim: int, options: Mapping[str, Any], **training: Any
) -> Result | Refused:
    """Build, train and judge one variant.

    If the likelihood is binary and the data are grey values in [0, 1], the variant is trained on fresh Bernoulli draws
    of them, and its row says so.

    Args:
        name: Name of the variant in ``VARIANTS``.
        data: The data, as ``prepare`` returns them.
        judging: How the variant is judged. Its seed is also the seed of the initial weights.
        z_dim: Size of a code.
        options: Options of the variant's builder.
        training: Arguments of ``fit``.

    Returns:
        A ``Result``, or a ``Refused`` with the reason if the variant could not be trained or judged.
    """
    with seeded(judging.seed):
        variant = VARIANTS[name](data.x_shape, z_dim, **options)
    data = _suited(variant, data, judging.seed)
    try:
        check_support(variant, data.scale(data.test))
        trained = fit(variant, data, **training)
        mixture = ex_post.fit(variant, data, judging.components, judging.seed)
        evaluation = evaluate(
            variant,
            data,
            judging.num_particles,
            train=data.resident,
            ex_post=mixture,
            features=judging.features,
            seed=judging.seed,
        )
    except (Diverged, ValueError) as error:
        return Refused(name, data, str(error))
    return Result(name, trained, mixture, evaluation)


def _suited(variant: Variant, data: Data, seed: int) -> Data:
    """The data, or Bernoulli draws of them if the data are grey values in [0, 1] and only the draws are supported."""
    y = data.scale(data.test)
    grey = bool(((y >= 0) & (y <= 1)).all()) and isinstance(data.train, Tensor)
    if not grey or _supports(variant, y):
        return data
    drawn = data.binarized("dynamic", seed)
    return drawn if _supports(variant, drawn.test) else data


def _supports(variant: Variant, y: Tensor) -> bool:
    """Whether y, in the model's units, lies in the support of the likelihood."""
    try:
        check_support(variant, y)
    except ValueError:
        return False
    return True


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
) -> list[Result | Refused]:
    """Train and judge variants on one data set, with the same networks, optimizer, epochs and seed for all.

    Args:
        names: Names of variants in ``VARIANTS``.
        data: The data, as ``prepare`` returns them.
        out: A folder, which gets a checkpoint per variant, ``table.csv``, ``table.json`` and ``report.html``.
        z_dim: Size of a code.
        components: Number of components of the ex-post mixture, ``"held_out"`` or ``"bic"``.
        num_particles: Draws K of the bounds.
        features: ``"pca"``, ``"classifier"``, ``"inception"`` or an ONNX file. By default it depends on the data.
        estimator: Estimator of the bound for all variants, such as ``"dreg:num_particles=16"``. By default every
            variant has its own.
        options: Options of variants by name, such as ``{"beta": 2}``. Each is given to the variants that have it.
        progress: Whether to show the loss and the time left.
        command: The command that was typed, for the report.
        training: Arguments of ``fit``.

    Returns:
        One ``Result`` per variant, or a ``Refused`` with the reason if it could not be trained or judged.

    Raises:
        ValueError: If a name is unknown, no variant has an option, or the folder cannot be written.
    """
    _check_names(names)
    options = dict(options or {})
    check_options(names, options)
    loss = {} if estimator is None else {"loss": estimator}
    out = writable(out)
    for name in names:
        refuse_other(out / name)
    seed = int(training.get("seed", FitOptions.seed))
    space = features_for(data.scale(data.resident), data.labels, features, seed)
    judging = Judging(components, num_particles, space, seed)
    results: list[Result | Refused] = []
    for index, name in enumerate(names, 1):
        label = f"{index}/{len(names)} {name}" if progress else False
        own = own_options(name, options) | loss
        result = run_variant(name, data, judging, z_dim=z_dim, options=own, progress=label, **training)
        if isinstance(result, Result):
            save(out / name, result.variant, {"data": result.data.origin, "fit": result.fit.settings})
        results.append(result)
    settings = {"z_dim": z_dim, "components": components, "K": num_particles, "features": space.name, **training}
    settings |= {} if estimator is None else {"estimator": estimator}
    settings |= {"options": options} if options else {}
    settings |= {"command": command, "versions": versions(), "data": data.name, "scale": repr(data.scale)}
    write_text(out / "table.csv", as_csv(results))
    write_text(out / "table.json", as_json(results, settings))
    write_text(out / "report.html", comparison_page(results, data, settings))
    return results


def _check_names(names: Sequence[str]) -> None:
    unknown = [name for name in names if name not in VARIANTS]
    if unknown:
        raise ValueError(f"unknown variant {', '.join(map(repr, unknown))}: wanted one of {', '.join(VARIANTS)}")
    if not names:
        raise ValueError(f"no variant to compare: wanted some of {', '.join(VARIANTS)}")


def versions() -> dict[str, str]:
    """The versions of the software that a report was made with."""
    return {"python": platform.python_version(), "torch": torch.__version__, "pyro": pyro.__version__}


def as_csv(results: Sequence[Result | Refused]) -> str:
    """The table as CSV, a row per variant. A cell is empty if there is no legitimate number for it."""
    header = ["variant", "data", "measure", "best_epoch", "seconds"]
    header += [part for name in COLUMNS for part in (name, f"{name}_error")] + ["reason"]
    text = io.StringIO()
    writer = csv.DictWriter(text, header, lineterminator="\n")
    writer.writeheader()
    writer.writerows(result.as_row() for result in results)
    return text.getvalue()


def as_json(results: Sequence[Result | Refused], settings: Mapping[str, Any]) -> str:
    """The table as JSON, with the units of its columns, the settings of the run, and the receipt of each fit."""
    columns = {name: column._asdict() for name, column in COLUMNS.items()}
    rows = [{**result.as_row(), **result.details()} for result in results]
    return json.dumps({"settings": settings, "columns": columns, "rows": rows}, indent=2, default=str) + "\n"
