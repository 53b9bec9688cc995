"""``ppl-vae compare``: variants trained and evaluated on the same data."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..catalogue import VARIANTS
from ..evaluation.metrics import COLUMNS
from .names import known_variants
from .options import AsJson, Components, FeatureSpace, NumParticles, Quiet, TrainingOptions, components_of
from .records import expanded

if TYPE_CHECKING:
    from ..report.results import Refused, Result

__all__ = ["compare"]

SHOWN = ("bound", "importance_weighted", "bound_ex_post", "rmse", "active_units", "sigma", "frechet_floor",
         "frechet_reconstructions", "frechet_prior", "frechet_ex_post")  # fmt: skip


@expanded
def compare(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="VARIANT", callback=known_variants, help="Names of variants. By default, all of them."),
    ] = None,
    *,
    options: TrainingOptions,
    num_particles: NumParticles = 100,
    components: Components = "10",
    features: FeatureSpace = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the comparison. By default, runs/DATA.")] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train and evaluate several variants on the same data.

    Each variant gets a checkpoint. A report and a table compare them on the same held-out data.
    """
    from ..report.comparison import as_json as table_as_json, compare as comparison_of

    names = names or list(VARIANTS)
    assigned = options.assigned(names)
    data = options.prepared()
    for name in names:  # a value that cannot be used is then refused before any training
        options.built(name, data.x_shape, assigned)
    folder = out or Path("runs") / data.name
    results = comparison_of(
        names,
        data,
        folder,
        z_dim=options.z_dim,
        components=components_of(components),
        num_particles=num_particles,
        features=features,
        estimator=options.estimator,
        options=assigned,
        progress=not quiet,
        command=" ".join(["ppl-vae", *sys.argv[1:]]),
        **options.fit_arguments(),
    )
    if as_json:
        typer.echo(table_as_json(results, {"report": str(folder / "report.html")}))
    else:
        print_table(results)
        typer.echo(f"report: {folder / 'report.html'}")
    if any(result.reason for result in results):
        raise typer.Exit(1)


def print_table(results: Sequence["Result | Refused"]) -> None:
    """Print values and standard errors, one row per variant."""
    from rich.console import Console
    from rich.table import Table

    noise = next((result.evaluation.noise for result in results if result.evaluation is not None), lambda name: "")
    table = Table("variant", "bound of", *(COLUMNS[name].title + noise(name) for name in SHOWN))
    for result in results:
        if result.evaluation is None:
            table.add_row(result.name, result.reason)
        else:
            table.add_row(result.name, result.measure, *(str(result.evaluation[name]) for name in SHOWN))
    console = Console()
    console.width = max(console.width, 200)
    console.print(table)
    typer.echo("± is a standard error. Bounds are in nats per datum, in the data's units.")
    typer.echo("Compare bounds only between rows that have the same 'bound of'.")
