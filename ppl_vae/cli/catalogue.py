"""``ppl-vae variants``: the catalogue."""

import json
from typing import Any

import typer

from ..catalogue import CATALOGUE
from .options import AsJson

__all__ = ["variants"]


def variants(*, as_json: AsJson = False) -> None:
    """List the variants of the catalogue.

    Each is shown with its generative process, its guide, its loss and its source.
    """
    rows = [
        {"variant": name, "model": row.model, "guide": row.guide, "loss": row.loss, "source": row.source}
        for name, row in CATALOGUE.items()
    ]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
    else:
        print_rows(rows)


def print_rows(rows: list[dict[str, Any]]) -> None:
    """Print the catalogue as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*rows[0], show_lines=False)
    for row in rows:
        table.add_row(*row.values())
    console = Console()
    console.width = max(console.width, 150)
    console.print(table)
