"""Progress with loss and time left: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from typing import Any

__all__ = ["Progress"]


class Progress:
    """A context that is told of each epoch, or of other units of work.

    Args:
        label: What is trained.
        epochs: How many there are.
        shown: Whether to show anything.
        unit: What is counted.
    """

    def __init__(self, label: str, epochs: int, *, shown: bool = True, unit: str = "epoch") -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress as Bar, TextColumn, TimeRemainingColumn

        self.label, self.epochs, self.shown, self.unit = label, epochs, shown, unit
        self.console = Console(file=sys.stderr)
        self.started = time.perf_counter()
        self.bar = Bar(
            TextColumn("{task.description:<24}"),
            BarColumn(),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f} " + unit + "s  {task.fields[status]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not (shown and self.console.is_terminal),
        )
        self.task = self.bar.add_task(label, total=epochs, status="")

    def __enter__(self) -> "Progress":
        self.bar.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.bar.stop()

    def update(self, row: dict[str, Any]) -> None:
        """Show an epoch's row of the history."""
        status = f"loss {row['loss']:.4g}"
        if row["held_out_loss"] is not None:
            status += f"  held-out loss {row['held_out_loss']:.4g}"
        tenth = max(1, self.epochs // 5)
        self.advance(row["epoch"], status, line=row["epoch"] % tenth == 0 or row["epoch"] == self.epochs)

    def advance(self, done: int, status: str = "", *, line: bool = True) -> None:
        """Say how much is done, and off a terminal, where there is no bar, print it if it is worth a ``line``."""
        self.bar.update(self.task, completed=done, status=status)
        if line and self.shown and not self.console.is_terminal:
            elapsed = time.perf_counter() - self.started
            left = elapsed * (self.epochs - done) / done
            text = f"{self.label}: {self.unit} {done:,}/{self.epochs:,}  {status}  {left:.0f} s left"
            print(text, file=sys.stderr, flush=True)  # noqa: T201 - progress is what this module prints
