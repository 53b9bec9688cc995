"""``ppl-vae variants``: the catalogue."""

import json

import typer

from ..catalogue import entries
from .options import AsJson

__all__ = ["variants"]


def variants(*, as_json: AsJson = False) -> None:
    """List the variants of the catalogue.

    Each is shown with its generative process, its guide, its loss and its source.
    """
    rows = list(entries())
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
    else:
        print_rows(rows)


def print_rows(rows: list[dict[str, str]]) -> None:
    """Print the catalogue as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for title in rows[0]:
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*row.values())
    console = Console()
    console.width = max(console.width, 150)
    console.print(table)
