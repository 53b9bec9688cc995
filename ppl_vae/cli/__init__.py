"""The command line: what can a person do without writing Python? Each command has its own module."""

import warnings

import typer

from .catalogue import variants
from .comparison import compare
from .diagnosis import diagnose
from .estimator_table import estimators
from .evaluation import evaluate
from .sampling import sample
from .training import train

__all__ = ["app", "main"]

app = typer.Typer(
    help="Train, evaluate, sample and compare variational and regularised autoencoders, which are Pyro programs.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (variants, train, evaluate, sample, diagnose, compare, estimators):
    app.command()(command)


def main() -> None:
    """Run a command. The exit status is 2 for a usage error, and 1 with one line of explanation for a failure."""
    warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated", category=FutureWarning)
    try:
        app()
    except (ValueError, OSError, ArithmeticError) as error:
        typer.echo(f"ppl-vae: {error}", err=True)
        raise SystemExit(1) from None
