"""What all experiments on studies share: their scales, their data, their command, and the file of their results."""

import importlib
import json
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..catalogue import VARIANTS
from ..data.data_set import Data
from ..data.public import public_set
from ..estimate import rounded
from ..files import whole_file, writable, write_text
from ..guides.networks import encoder_of, published_encoder
from ..models.networks import published_decoder
from ..models.outputs import outputs_of
from ..variant import Variant
from .cells import Cell, Contestant, Judging, grid
from .claims import Claim, Verdict, judged, plain
from .driver import study
from .evidence import Evidence
from .folder import is_study
from .summary import mean_of
from .table import Row, Study, measured, versions
from .work import threads_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["SCALES", "Experiment", "Scale", "cells_of", "main", "public_sets", "verdicts_of", "wide"]


SECONDS = "seconds.json"  # the seconds of each run of a study, because a study goes on after a stop


@dataclass(frozen=True)
class Scale:
    """How large an experiment is. All contestants of a table share it.

    Attributes:
        name: Its name on the command line.
        rows, test_rows: The largest numbers of training and of held-out data.
        epochs, batch_size: The training of each cell.
        seeds: The number of seeds.
        z_dim: The largest size of a code.
        judging: How each fit is judged.
        is_wide: Whether the networks have the width of the papers.
        training: Further arguments of ``fit``.
    """

    name: str
    rows: int
    test_rows: int
    epochs: int
    batch_size: int
    seeds: int
    z_dim: int
    judging: Judging
    is_wide: bool = False
    training: Mapping[str, Any] = field(default_factory=dict)


SCALES = {
    scale.name: scale
    for scale in (
        Scale("smoke", 120, 60, 1, 32, 2, 4, Judging(2, 5), training={"backend": "eager"}),
        Scale("reduced", 2000, 1000, 20, 32, 5, 64, Judging(10, 20)),
        Scale("full", 50_000, 10_000, 100, 100, 5, 64, Judging(10, 100), is_wide=True),
    )
}


@dataclass(frozen=True)
class Experiment:
    """A question, the cells that answer it, and the claims that it judges.

    Attributes:
        name: The name of its module and of its files.
        question: The question, in one sentence.
        sets: The data sets of a run, from the scale and the data folder. See ``public_sets``.
        cells: The cells on one data set, from the scale and the data.
        claims: The claims that it judges, from the rows.
        columns: The columns that are printed, by title.
        figure: The picture, from the rows.
        published: Published figures by data set and contestant, each a text, which are printed in a column of their
            own.
        scales: Its scales by name.
        exact: Further rows, from the scale, of numbers that need no training. Each has ``data``, ``variant``, ``seed``
            and its columns.
        texts: Lines from the finished study that are printed after the tables and kept in the results.
    """

    name: str
    question: str
    sets: Callable[[Scale, Path | None], list[Data]]
    cells: Callable[[Scale, Data], list[Cell]]
    claims: Callable[[Evidence], list[Claim]]
    columns: Mapping[str, str]
    figure: Callable[[Evidence], "Figure"]
    published: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    scales: Mapping[str, Scale] = field(default_factory=lambda: SCALES)
    exact: Callable[[Scale], list[dict[str, Any]]] | None = None
    texts: Callable[[Study], list[str]] | None = None


def wide(x_shape: tuple[int, ...], z_dim: int, *, variant: str, **options: Any) -> Variant:
    """A variant of the catalogue with networks of the width of the RAE paper.

    References:
        Ghosh et al., From Variational to Deterministic Autoencoders, 2020, appendix (networks for MNIST and CIFAR-10).
    """
    likelihood: Any = VARIANTS[variant](x_shape, 1, **options).model.likelihood
    networks = {
        "encoder": encoder_of(likelihood, x_shape, published_encoder),
        "decoder": published_decoder(z_dim, x_shape, outputs_of(likelihood)),
    }
    return VARIANTS[variant](x_shape, z_dim, **options, **networks)


def cells_of(
    contestants: Mapping[str, Contestant], scale: Scale, data: Data, *, z_dim: int, **training: Any
) -> list[Cell]:
    """The cells of contestants on one data set, with the training of the scale."""
    return grid(
        {name: _at(contestant, scale) for name, contestant in contestants.items()},
        data,
        scale.seeds,
        z_dim=min(z_dim, scale.z_dim),
        judging=scale.judging,
        **{"epochs": scale.epochs, "batch_size": scale.batch_size, **scale.training, **training},
    )


def _at(contestant: Contestant, scale: Scale) -> Contestant:
    """A contestant with the networks of the scale."""
    if not scale.is_wide or not isinstance(contestant.build, str):
        return contestant
    return replace(contestant, build=wide, options={"variant": contestant.build, **contestant.options})


# The command.


def main(module: str) -> None:
    """Run the experiment of a module from the command line.

    Args:
        module: The full name of the module. It is imported under this name, so that other processes find its functions.
    """
    experiment: Experiment = importlib.import_module(module).EXPERIMENT

    def run(
        scale: Annotated[
            Literal["smoke", "reduced", "full"],
            typer.Option(help="smoke: seconds to minutes, no copies. reduced: two cores, an hour. full: one GPU."),
        ] = "reduced",
        jobs: Annotated[int, typer.Option(min=1, help="Number of local processes.")] = 1,
        data_root: Annotated[
            Path | None,
            typer.Option(
                envvar="PPL_VAE_DATA", help="Folder of your copies of the public sets, as docs/data.md has them."
            ),
        ] = None,
        out: Annotated[
            Path | None, typer.Option(help="Folder of the study. By default, runs/experiments/NAME-SCALE.")
        ] = None,
        results: Annotated[Path | None, typer.Option(help="Folder of NAME.json and NAME.png. By default, OUT.")] = None,
        quiet: Annotated[bool, typer.Option("--quiet", help="Do not show progress.")] = False,
    ) -> None:
        folder = out or Path("runs") / "experiments" / f"{experiment.name}-{scale}"
        _run(experiment, experiment.scales[scale], jobs, data_root, folder, results or folder, quiet=quiet)

    run.__doc__ = f"{experiment.question}\n\nA run that was stopped goes on with the same command."
    typer.run(run)


def _run(
    experiment: Experiment, scale: Scale, jobs: int, root: Path | None, folder: Path, results: Path, *, quiet: bool
) -> None:
    writable(results)
    sets = experiment.sets(scale, root)
    cells = [cell for data in sets for cell in experiment.cells(scale, data)]
    cells.sort(key=lambda cell: cell.seed)  # so that a study that is stopped has the first seeds of all
    typer.echo(f"{experiment.question}\n{len(cells)} fits, scale {scale.name}, in {folder}")
    started = time.perf_counter()
    try:
        found = study(cells, folder, jobs=jobs, progress=False if quiet else experiment.name)
    finally:  # a run that is stopped counts too
        seconds = _seconds_with(folder, time.perf_counter() - started)
    rows = [_row(row) for row in found.rows]
    if experiment.exact is not None:
        with threads_of(1):  # many small steps: threads would only wait for each other
            rows += experiment.exact(scale)
    evidence = Evidence(rows)
    claims = experiment.claims(evidence)
    verdicts = judged(claims)
    settings = {
        "experiment": experiment.name,
        "question": experiment.question,
        "command": f"python -m ppl_vae.experiments.{experiment.name} --scale {scale.name} --jobs {jobs}",
        "scale": {**vars(scale), "judging": vars(scale.judging)},
        "versions": versions(),
        "commit": _commit(),
        "wall_seconds": round(sum(seconds), 1),
        "cell_seconds": round(sum(row.record["seconds"] for row in found.rows), 1),
        "jobs": jobs,
        "data": {data.name: _described(data, found) for data in sets},
    }
    texts = [] if experiment.texts is None else experiment.texts(found)
    settings |= {"texts": texts} if texts else {}
    with whole_file(results / f"{experiment.name}.png") as part:
        experiment.figure(evidence).savefig(part, facecolor="white", metadata={"Software": None})
    write_text(results / f"{experiment.name}.json", _as_json(settings, rows, claims, verdicts))
    for data in sets:
        typer.echo(_table(experiment, found, data))
    typer.echo("\n".join(["", *texts] if texts else []))
    typer.echo("\n".join(["", *map(_said, verdicts), "", *_counted(claims, verdicts)]))
    typer.echo(f"results: {results / experiment.name}.json and .png")


def _seconds_with(folder: Path, last: float) -> list[float]:
    """The seconds of all runs of a study in a folder, the last one included, which are kept there."""
    path = folder / SECONDS
    before = json.loads(path.read_text()) if path.is_file() else []
    every = [*before, round(last, 1)]
    if is_study(folder):
        write_text(path, json.dumps(every) + "\n")
    return every


def public_sets(*names: str) -> Callable[[Scale, Path | None], list[Data]]:
    """The public sets of an experiment: a function of the scale and the data folder that reads those at hand.

    Digits take their place if none is at hand, and at the scale ``smoke``.
    """
    return partial(_public_sets, names)


def _public_sets(names: Sequence[str], scale: Scale, root: Path | None) -> list[Data]:
    wanted = [] if scale.name == "smoke" else names
    sets = {name: public_set(name, root, rows=scale.rows, test_rows=scale.test_rows) for name in wanted}
    missing = [name for name, data in sets.items() if data is None]
    found = [data for data in sets.values() if data is not None]
    if missing:
        instead = "" if found else "; the experiment runs on digits"
        typer.echo(f"no copy of {', '.join(missing)} is at hand (name --data-root or set PPL_VAE_DATA){instead}")
    digits = public_set("digits", None, rows=scale.rows, test_rows=scale.test_rows)
    return found or ([] if digits is None else [digits])


def _described(data: Data, found: Study) -> dict[str, Any]:
    """The size of a data set, its digest, and the feature space of its distances."""
    spaces = [row.record["evaluation"]["features"] for row in found.rows if row.cell.data is data and row.is_done]
    return {
        "train": len(data.resident),
        "test": len(data.test),
        "x_shape": list(data.x_shape),
        "digest": data.digest,
        "features": spaces[0] if spaces else None,
    }


def _commit() -> str | None:
    """The commit of the checkout that this module is in, or None outside a checkout."""
    asked = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        ran = subprocess.run(asked, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return ran.stdout.strip() or None


# The results.


PATHS = ("held_out_loss", "sigma")  # columns of the history that are kept in the results


def _row(row: Row) -> dict[str, Any]:
    """A row of the results, without the numbers that are None, with two columns of its history."""
    found = {name: value for name, value in row.as_dict().items() if value is not None}
    history = row.record.get("history", ())
    kept = {name: [epoch[name] for epoch in history] for name in PATHS}
    return {**found, "history": {name: path for name, path in kept.items() if None not in path}}


def _as_json(
    settings: Mapping[str, Any], rows: Sequence[Any], claims: Sequence[Claim], verdicts: Sequence[Verdict]
) -> str:
    """The results as JSON, a line per row, claim and verdict."""
    lines = {
        "rows": rows,
        "claims": [plain(claim) for claim in claims],
        "verdicts": [{**verdict._asdict(), "figure": verdict.figure} for verdict in verdicts],
    }
    text = json.dumps(dict(settings), indent=1)[:-2]
    for name, items in lines.items():
        text += f',\n "{name}": [\n' + ",\n".join(json.dumps(item) for item in items) + "\n ]"
    return text + "\n}\n"


def verdicts_of(path: Path) -> list[Verdict]:
    """The verdicts that follow from the rows of a file of results, by the claims of its experiment."""
    found = json.loads(path.read_text())
    experiment: Experiment = importlib.import_module(f"ppl_vae.experiments.{found['experiment']}").EXPERIMENT
    return judged(experiment.claims(Evidence(found["rows"])))


WIDTH = 20  # letters of a column that is printed


def _table(experiment: Experiment, found: Study, data: Data) -> str:
    """The means over seeds with their standard errors, one line per contestant."""
    rows = [row for row in found.rows if row.cell.data is data]
    names = list(dict.fromkeys(row.cell.name for row in rows))
    width = max(map(len, names)) + 2
    lines = [f"\n{data.name}: mean ± standard error over seeds"]
    published = experiment.published.get(data.name, {})
    titles = [*experiment.columns.values(), *(["published"] if published else [])]
    lines.append(" " * width + "".join(f"{title:>{WIDTH}}" for title in titles))
    for name in names:
        some = [row for row in rows if row.cell.name == name and row.is_done]
        cells = [_cell(some, column) for column in experiment.columns]
        line = f"{name:<{width}}" + "".join(f"{cell:>{WIDTH}}" for cell in cells)
        lines.append(f"{line}  {published.get(name, '')}".rstrip())
    lines += [f"{row.cell.label}: {row.reason}" for row in rows if row.reason]
    return "\n".join(lines)


def _cell(rows: Sequence[Any], column: str) -> str:
    some = [row for row in rows if column in row.numbers and row.numbers[column].value is not None]
    if not some:
        return ""
    mean = mean_of("", next(iter(measured(some, column).values())))
    value, error = rounded(mean.value, mean.error_over_seeds)
    return f"{value} ± {error}" if error else value


def _said(verdict: Verdict) -> str:
    return f"{verdict.verdict:<10}{verdict.name:<8}{verdict.text}: {verdict.figure}"


def _counted(claims: Sequence[Claim], verdicts: Sequence[Verdict]) -> list[str]:
    """How many verdicts of each family are held, reversed and undecided, one line per family."""
    counts: dict[str, Counter[str]] = {}
    for claim, verdict in zip(claims, verdicts, strict=True):
        counts.setdefault(claim.family or claim.name, Counter())[verdict.verdict] += 1
    words = ("held", "reversed", "undecided")
    return [
        f"{family:<32}" + "  ".join(f"{count[word]:>3} {word}" for word in words) for family, count in counts.items()
    ]
