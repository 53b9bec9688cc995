"""``ppl-vae sample``: new data from a checkpoint."""

from pathlib import Path
from typing import Annotated

import typer

from ..checkpoint import load
from ..coding import sample as samples_of
from ..evaluation import ex_post as density
from ..files import writable
from .options import COMPONENTS, Components, Run, RunData, Seed, components_of
from .records import expanded

__all__ = ["sample"]


@expanded
def sample(
    run: Run,
    *,
    count: Annotated[int, typer.Option(min=1, help="Number of samples.")] = 64,
    out: Annotated[Path, typer.Option(help="A .npy file, or a .png file for a grid of images.")] = Path("samples.npy"),
    ex_post: Annotated[
        bool,
        typer.Option("--ex-post", help="Draw codes from an ex-post mixture, not from the prior."),
    ] = False,
    components: Components = COMPONENTS,
    mean: Annotated[
        bool, typer.Option("--mean", help="Write the means of p(x | z), or the modes of categories.")
    ] = False,
    run_data: RunData,
    seed: Seed = 0,
) -> None:
    """Draw samples from a checkpoint, in the units of its data.

    With --ex-post, the codes come from a mixture that is fitted on codes of the data. The options of the data and
    --components are used only then.
    """
    from ..report.pictures import write_samples

    if out.suffix not in (".npy", ".png"):
        raise typer.BadParameter(f"wanted a file ending in .npy or .png, got {out}", param_hint="--out")
    if ex_post:
        variant, data = run_data.opened(run)
        prior = density.fit(variant, data, components_of(components), seed)
    else:
        variant, prior = load(run), None
    writable(out.parent)
    write_samples(out, variant, samples_of(variant, count, prior=prior, mean=mean, seed=seed))
    typer.echo(f"{count} samples from the {'ex-post mixture' if ex_post else 'prior'}: {out}")
