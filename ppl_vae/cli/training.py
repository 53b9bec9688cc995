"""``ppl-vae train``: one variant, trained and saved."""

import json
from pathlib import Path
from typing import Annotated

import typer

from ..checkpoint import refuse_other, save
from ..files import writable, write_text
from ..training.fitting import fit
from .names import known_variant
from .options import AsJson, Quiet, TrainingOptions
from .records import expanded

__all__ = ["train"]


@expanded
def train(
    variant: Annotated[
        str,
        typer.Argument(
            metavar="VARIANT", callback=known_variant, help="Name of a variant; ppl-vae variants lists them."
        ),
    ],
    *,
    options: TrainingOptions,
    out: Annotated[Path | None, typer.Option(help="Folder of the checkpoint. By default, runs/DATA-VARIANT.")] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train one variant and save it as a checkpoint.

    The history of the training and its receipt are written to the same folder.
    """
    contestant = options.contestants([variant])[variant]
    data = options.prepared()
    pair = options.built(contestant, data.x_shape)
    folder = out or Path("runs") / f"{data.name}-{variant}"
    writable(folder.parent)
    refuse_other(folder)
    if folder.exists():
        typer.echo(f"replacing the checkpoint in {folder}", err=True)
    trained = fit(pair, data, progress=not quiet, **options.fit_arguments())
    notes = {"data": data.origin, "fit": trained.settings}
    save(folder, trained.variant, notes)
    write_text(folder / "history.csv", trained.history.to_csv())
    write_text(folder / "receipt.txt", trained.receipt() + "\n")
    if as_json:
        typer.echo(json.dumps({"checkpoint": str(folder), **notes, "history": trained.rows}, indent=2))
    else:
        typer.echo(f"{trained.receipt()}\n\ncheckpoint: {folder}")
