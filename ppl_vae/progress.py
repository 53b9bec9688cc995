"""Progress, with the loss and the time that is left: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from typing import Any

__all__ = ["Progress", "say"]

LINES = 5  # about this many plain lines are printed during a training


class Progress:
    """A context that shows how many epochs, or other units of work, are done.

    Args:
        label: The name of the work.
        epochs: The number of epochs or units.
        shown: Whether to show anything.
        unit: The name of a unit, in the singular.
    """

    def __init__(self, label: str, epochs: int, *, shown: bool = True, unit: str = "epoch") -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress as Bar, TextColumn, TimeRemainingColumn

        self.label, self.epochs, self.shown, self.unit = label, epochs, shown, unit
        self.console = Console(file=sys.stderr)
        self.started = time.perf_counter()
        count = "{task.completed:,.0f}/{task.total:,.0f} " + unit + "s"
        self.bar = Bar(
            TextColumn("{task.description:<24}"),
            BarColumn(),
            TextColumn(count + "  {task.fields[status]}"),
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
        """Show that an epoch is done, given its row of the history."""
        epoch, status = row["epoch"], f"loss {row['loss']:.4g}"
        if row["held_out_loss"] is not None:
            status += f"  held-out loss {row['held_out_loss']:.4g}"
        every = max(1, self.epochs // LINES)
        self.advance(epoch, status, line=epoch % every == 0 or epoch == self.epochs)

    def advance(self, done: int, status: str = "", *, line: bool = True) -> None:
        """Show that ``done`` units are done, on the bar of a terminal or as a plain line elsewhere.

        Args:
            done: The number of units that are done, at least 1.
            status: Text that is shown beside the number.
            line: Whether a plain line is printed where there is no bar.
        """
        self.bar.update(self.task, completed=done, status=status)
        if line and self.shown and not self.console.is_terminal:
            elapsed = time.perf_counter() - self.started
            left = elapsed * (self.epochs - done) / done
            say(f"{self.label}: {self.unit} {done:,}/{self.epochs:,}  {status}  {left:.0f} s left")


def say(text: str) -> None:
    """Show a line of text where progress is shown."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201 - this module prints progress
