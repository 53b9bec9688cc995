"""``ppl-vae diagnose``: whether the numbers of a checkpoint can be trusted."""

import json
from pathlib import Path
from typing import Annotated

import typer

from ..diagnosis import diagnose as diagnosis_of, write_diagnosis
from ..evaluation import ex_post
from ..files import writable
from ..streams import chosen
from .options import AsJson, NumParticles, Quiet, RunData, Seed, components_of
from .records import expanded

__all__ = ["diagnose"]


@expanded
def diagnose(
    run: Annotated[Path | None, typer.Argument(metavar="RUN", help="Folder of a checkpoint.")] = None,
    *,
    named: Annotated[Path | None, typer.Option("--run", help="The same folder, given as an option.")] = None,
    run_data: RunData,
    rows: Annotated[int, typer.Option(min=2, help="Largest number of held-out data to look at.")] = 500,
    seed: Seed = 0,
    num_particles: NumParticles = 1000,
    temperatures: Annotated[
        int | None,
        typer.Option(min=1, help="Steps of annealed importance sampling on 20 data. By default, it is not run."),
    ] = None,
    components: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBER|held_out|bic",
            help="Look at an ex-post mixture too: its number of components, or the rule that chooses the number.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the three files. By default, RUN.")] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Say whether the numbers of a checkpoint can be trusted.

    It writes diagnosis.html, diagnosis.json, and draws.nc for arviz.
    """
    given = [folder for folder in (run, named) if folder is not None]
    if len(given) != 1:
        raise typer.BadParameter(f"wanted one folder, got {len(given)}: ppl-vae diagnose RUN", param_hint="--run")
    variant, data = run_data.opened(given[0])
    folder = writable(out or given[0])
    mixture = None if components is None else ex_post.fit(variant, data, components_of(components), seed)
    diagnosis = diagnosis_of(
        variant,
        data.test[chosen(len(data.test), rows, seed)],
        ex_post=mixture,
        num_particles=num_particles,
        temperatures=temperatures,
        seed=seed,
        progress=not quiet,
    )
    page = write_diagnosis(diagnosis, folder)
    if as_json:
        typer.echo(json.dumps(diagnosis.as_dict(), indent=2))
    else:
        typer.echo(f"{diagnosis}\n\npage: {page}")
