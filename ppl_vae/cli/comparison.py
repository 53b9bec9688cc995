"""``ppl-vae compare``: variants trained and evaluated on the same data."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..catalogue import VARIANTS
from ..evaluation.metrics import COLUMNS
from .contestants import typed_contestants
from .interruptions import ended_in_one_line
from .options import (
    COMPONENTS,
    NUM_PARTICLES,
    AsJson,
    Components,
    FeatureSpace,
    NumParticles,
    Quiet,
    TrainingOptions,
    components_of,
)
from .records import expanded

if TYPE_CHECKING:
    from ..report.table import Group
    from ..studies import Study

__all__ = ["compare"]

SHOWN = ("bound", "rmse", "frechet_ex_post")  # so many columns stay within 80 characters


@expanded
@ended_in_one_line()
def compare(
    contestants: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME=]VARIANT[:OPTION=VALUE,...]",
            help="Names of variants, or variants with options under a name of their own. By default, all variants.",
        ),
    ] = None,
    *,
    options: TrainingOptions,
    seeds: Annotated[
        int, typer.Option(min=1, help="Number of trainings of each contestant, with the seeds --seed, --seed + 1, ...")
    ] = 1,
    jobs: Annotated[int, typer.Option(min=1, help="Number of trainings at the same time.")] = 1,
    threads: Annotated[int, typer.Option(min=1, help="Number of threads of each training.")] = 1,
    num_particles: NumParticles = NUM_PARTICLES,
    components: Components = COMPONENTS,
    features: FeatureSpace = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the comparison. By default, runs/DATA.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Use a folder that holds something else.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train and evaluate several variants on the same data.

    Each training is kept with its checkpoint, and the same command goes on where an earlier one stopped. A report and a
    table compare the variants on the same held-out data, over seeds if there are several. The data split is that of
    --seed for all seeds.
    """
    from ..report.comparison import compare as comparison_of

    given = typed_contestants(contestants or list(VARIANTS))
    chosen = options.contestants(given)
    data = options.prepared()
    for contestant in chosen.values():  # a value that cannot be used is then refused before any training
        options.built(contestant, data.x_shape)
    training = options.fit_arguments()
    first = training.pop("seed")
    found = comparison_of(
        given,
        data,
        out or Path("runs") / data.name,
        seeds=range(first, first + seeds),
        jobs=jobs,
        threads=threads,
        z_dim=options.z_dim,
        components=components_of(components),
        num_particles=num_particles,
        features=features,
        estimator=options.estimator,
        options=options.assigned(),
        replace=force,
        progress=not quiet,
        command=" ".join(["ppl-vae", *sys.argv[1:]]),
        **training,
    )
    places = {
        "report": str(found.path / "report.html"),
        "checkpoints": str(found.path / "cells" / f"{data.name}-NAME-SEED-*"),
    }
    if as_json:
        typer.echo(found.as_json(places))
    else:
        print_findings(found)
        typer.echo("\n".join(f"{name}: {path}" for name, path in places.items()))
    if any(row.reason for row in found.rows):
        raise typer.Exit(1)


def print_findings(study: "Study") -> None:
    """Print what was found, and a table per group with means and their errors."""
    from ..report.table import findings, groups_of

    for sentence in findings(study):
        typer.echo(sentence)
    for group in groups_of(study):
        _print_group(group)
    seeds = len({row.cell.seed for row in study.rows})
    over = f"of the mean over {seeds} seeds" if seeds > 1 else "over held-out data, because there is one seed"
    typer.echo(f"\n± is the standard error {over}. Bounds are in nats per datum, in the data's units.")


def _print_group(group: "Group") -> None:
    """Print the lines of a group in columns, or its reasons."""
    typer.echo(f"\n{group.title}")
    names = [f"{line.name} ({line.seeds})" if line.seeds else line.name for line in group.lines]
    if not any(line.cells for line in group.lines):
        typer.echo("\n".join(f"{name}: {line.reason}" for name, line in zip(names, group.lines, strict=True)))
        return
    by_column = dict(zip(COLUMNS, zip(*(line.cells for line in group.lines), strict=True), strict=False))
    columns = [["contestant", *names]]
    for column in SHOWN:
        if any(cell.value for cell in by_column[column]):
            figures = [" ± ".join(filter(None, cell[:2])) or cell.reason for cell in by_column[column]]
            columns.append([COLUMNS[column].title, *figures])
    widths = [max(map(len, column)) for column in columns]
    for first, *rest in zip(*columns, strict=True):
        figures = [text.rjust(width) for text, width in zip(rest, widths[1:], strict=True)]
        typer.echo("  ".join([first.ljust(widths[0]), *figures]))
