"""``ppl-vae estimators``: estimators of the bound, listed or compared on a checkpoint."""

import json
from pathlib import Path
from typing import Annotated

import typer

from ..elbo import ESTIMATORS
from ..files import writable, write_text
from ..streams import chosen
from ..verification.estimator_table import DEFAULT, compare_estimators
from .names import known_estimators
from .options import AsJson, Quiet, RunData, Seed
from .records import expanded

__all__ = ["estimators"]


@expanded
def estimators(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME[:OPTION=VALUE,...]",
            callback=known_estimators,
            help=f"Estimators to compare, spelled as for train --estimator. By default, {', '.join(DEFAULT)}.",
        ),
    ] = None,
    *,
    run: Annotated[
        Path | None, typer.Option(help="Folder of a checkpoint. Without one, the estimators are listed.")
    ] = None,
    run_data: RunData,
    rows: Annotated[int, typer.Option(min=1, help="Number of held-out data in the batch.")] = 64,
    draws: Annotated[
        int, typer.Option(min=20, help="Number of values and gradients that each estimator draws.")
    ] = 1000,
    seed: Seed = 0,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the table and the plot. By default, the folder of the checkpoint.")
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Compare estimators of the bound on a checkpoint.

    The table has bias, variance, signal-to-noise ratio, time and memory. Without --run, the estimators are listed.
    """
    if run is None:
        _list_estimators(as_json=as_json)
        return
    variant, data = run_data.opened(run)
    folder = writable(out or run)
    batch = data.test[chosen(len(data.test), rows, seed)]
    compared = compare_estimators(variant, batch, names or DEFAULT, draws=draws, seed=seed, progress=not quiet)
    write_text(folder / "estimators.csv", compared.table.to_csv())
    compared.plot(folder / "estimators.png")
    if as_json:
        typer.echo(json.dumps({"rows": compared.rows, "draws": draws, "data": compared.data}, indent=2))
    else:
        typer.echo(f"{compared}\n\ntable: {folder / 'estimators.csv'}\nplot: {folder / 'estimators.png'}")


def _list_estimators(*, as_json: bool) -> None:
    """Print the name and the first line of the docstring of each estimator."""
    lines = {name: str(estimator.__doc__).partition("\n")[0] for name, estimator in ESTIMATORS.items()}
    typer.echo(
        json.dumps(lines, indent=2) if as_json else "\n".join(f"{name:<12}{line}" for name, line in lines.items())
    )
