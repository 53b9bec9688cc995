"""What Ctrl-C and the signal TERM do to a command that keeps what is done."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer

__all__ = ["ended_in_one_line"]

INTERRUPTED, TERMINATED = 130, 143  # 128 and the number of the signal, as shells have it


class Terminated(KeyboardInterrupt):
    """Raised where the signal TERM finds the program, so that it ends as Ctrl-C ends it."""


@contextmanager
def ended_in_one_line() -> Iterator[None]:
    """End with one line on the standard error if the block is stopped: with 130 by Ctrl-C, with 143 by TERM."""
    earlier = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    except KeyboardInterrupt as stop:
        typer.echo(f"ppl-vae: {str(stop) or 'stopped'}", err=True)
        raise typer.Exit(TERMINATED if isinstance(stop, Terminated) else INTERRUPTED) from None
    finally:
        signal.signal(signal.SIGTERM, earlier)


def _terminate(*_: Any) -> None:
    raise Terminated
