"""The command line: ``ppl-vae variants | train | evaluate | sample | compare | estimators | diagnose``."""

import json
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

__all__ = ["main"]

app = typer.Typer(
    help="Variational and regularised autoencoders as Pyro programs: train, judge, sample and compare them.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _known(name: str) -> str:
    from .catalogue import VARIANTS

    if name not in VARIANTS:
        raise typer.BadParameter(f"unknown variant {name!r}: wanted one of {', '.join(VARIANTS)}")
    return name


def _all_known(names: list[str] | None) -> list[str] | None:
    return [_known(name) for name in names] if names else names


def _readable(source: str | None) -> str | None:
    from .data.sources import FILES, SETS

    if source is not None and source not in SETS and Path(source).suffix.lower() not in FILES:
        raise typer.BadParameter(f"unknown data {source!r}: wanted {', '.join(SETS)}, or a file in {', '.join(FILES)}")
    return source


def _spelled(name: str | None) -> str | None:
    from .elbo import estimator

    try:
        return name if name is None else repr(estimator(name)) and name
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


Source = Annotated[
    str,
    typer.Option(
        "--data",
        callback=_readable,
        help="digits, mnist, fashion_mnist, cifar10, celeba, or a FILE of real numbers: .npy, .npz, .csv, .parquet.",
    ),
]
Root = Annotated[
    Path | None,
    typer.Option("--data-root", envvar="PPL_VAE_DATA", help="Where image sets are, or are downloaded to."),
]
Scale = Annotated[
    Literal["auto", "none", "unit", "standardize"],
    typer.Option(help="Units of the model; auto is unit for images, standardize for tables."),
]
Binary = Annotated[
    Literal["dynamic", "static", "threshold"] | None,
    typer.Option(help="Make values in [0, 1] binary: a fresh draw per batch, one draw, or x > 1/2."),
]
Limit = Annotated[int | None, typer.Option(min=2, help="Train on so many data at most; the test set in proportion.")]
Split = Annotated[
    Literal["random", "tail"],
    typer.Option(help="Without a test set, hold rows out at random, or the last ones: data in the order of time."),
]
Seed = Annotated[int, typer.Option(min=0, help="Of the split, the weights, the order and the noise.")]
Epochs = Annotated[int, typer.Option(min=1, help="Passes over the training data.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Rows per step.")]
Rate = Annotated[float, typer.Option("--lr", help="Learning rate of Adam.")]
Schedule = Annotated[Literal["constant", "cosine"], typer.Option(help="How the learning rate moves.")]
Patience = Annotated[int | None, typer.Option(min=1, help="Stop after so many epochs without a better held-out value.")]
Place = Annotated[Literal["auto", "cpu", "cuda"], typer.Option("--device", help="auto is CUDA where there is one.")]
Backend = Annotated[
    Literal["auto", "eager", "fx", "inductor", "cudagraph"],
    typer.Option(help="What runs a step: auto is fx, the eager step from a graph, to the last bit."),
]
Precision = Annotated[
    Literal["full", "bf16", "bf16_matmul"],
    typer.Option(help="bf16: networks in bfloat16; bf16_matmul: a CPU's matrix products alone."),
]
Codes = Annotated[int, typer.Option("--z-dim", min=1, help="Size of a code.")]
Particles = Annotated[int, typer.Option("--num-particles", "-K", min=1, help="Draws a datum for the bounds.")]
Estimator = Annotated[
    str | None,
    typer.Option(
        "--estimator",
        metavar="NAME[:OPTION=VALUE,...]",
        callback=_spelled,
        help="Of the bound, in training: dreg:num_particles=16, say; ppl-vae estimators lists them. The variant's own "
        "unless given.",
    ),
]
Components = Annotated[str, typer.Option(help="Components of the ex-post mixture: a number, held_out or bic.")]
FeatureSpace = Annotated[
    str | None, typer.Option("--features", help="Of the Frechet distance: pca, classifier, inception, or a FILE.onnx.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress.")]
Options = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="An option of the variant: --set beta=2.")
]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="A checkpoint folder, as train and compare write it.")]


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _options(variant: str, pairs: list[str] | None) -> dict[str, Any]:
    """``beta=2`` and the like, values read as JSON where they are; parts are objects and cannot be set here."""
    import inspect

    from .catalogue import VARIANTS

    known = [p.name for p in inspect.signature(VARIANTS[variant]).parameters.values() if p.kind is p.KEYWORD_ONLY]
    split = [pair.partition("=") for pair in pairs or []]
    wrong = [name for name, equals, _ in split if not equals]
    if wrong:
        raise typer.BadParameter(f"{wrong[0]!r} is not NAME=VALUE", param_hint="--set")
    unknown = [name.strip() for name, _, _ in split if name.strip() not in known]
    if unknown:
        wanted = ", ".join(known) or "none"
        raise typer.BadParameter(f"{variant} has no option {unknown[0]!r}; it has: {wanted}", param_hint="--set")
    return {name.strip(): _value(value) for name, _, value in split}


def _all_spelled(names: list[str] | None) -> list[str] | None:
    return [str(_spelled(name)) for name in names] if names else names


def _components(text: str) -> int | str:
    return int(text) if text.isdigit() else text


def _say(text: str) -> None:
    typer.echo(text)


@app.command()
def variants(*, as_json: AsJson = False) -> None:
    """List the catalogue: name, generative process, guide, loss, source."""
    from .catalogue import CATALOGUE

    rows = [
        {"variant": name, "model": row.model, "guide": row.guide, "loss": row.loss, "source": row.source}
        for name, row in CATALOGUE.items()
    ]
    if as_json:
        _say(json.dumps(rows, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(*(name for name in rows[0]), show_lines=False)
    for row in rows:
        table.add_row(*row.values())
    console = Console()
    console.width = max(console.width, 150)
    console.print(table)


@app.command()
def train(
    variant: Annotated[str, typer.Argument(metavar="VARIANT", callback=_known, help="See: ppl-vae variants.")],
    *,
    data: Source = "digits",
    data_root: Root = None,
    scale: Scale = "auto",
    binarize: Binary = None,
    limit: Limit = None,
    split: Split = "random",
    z_dim: Codes = 8,
    estimator: Estimator = None,
    epochs: Epochs = 40,
    batch_size: BatchSize = 64,
    lr: Rate = 2e-3,
    schedule: Schedule = "cosine",
    patience: Patience = None,
    seed: Seed = 0,
    device: Place = "auto",
    backend: Backend = "auto",
    precision: Precision = "full",
    options: Options = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the checkpoint: runs/DATA/VARIANT unless given.")] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train one variant and write a checkpoint, its history and its receipt."""
    from .catalogue import VARIANTS
    from .checkpoint import refuse_other, save
    from .data.prepared import prepare
    from .files import writable, write_text
    from .streams import seeded
    from .training.fitting import fit

    prepared = prepare(data, scale=scale, binarize=binarize, limit=limit, split=split, seed=seed, root=data_root)
    folder = out or Path("runs") / prepared.name / variant
    loss = {} if estimator is None else {"loss": estimator}
    writable(folder.parent)
    refuse_other(folder)
    if folder.exists():
        typer.echo(f"replacing {folder}, and what stands in it", err=True)
    try:
        with seeded(seed):
            pair = VARIANTS[variant](prepared.x_shape, z_dim, **_options(variant, options), **loss)
    except TypeError as error:
        raise typer.BadParameter(str(error), param_hint="--set") from None
    trained = fit(
        pair,
        prepared,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        schedule=schedule,
        patience=patience,
        seed=seed,
        device=device,
        progress=not quiet,
        backend=backend,
        precision=precision,
    )
    notes = {"data": prepared.origin, "fit": trained.settings}
    save(folder, trained.variant, notes)
    write_text(folder / "history.csv", trained.history.to_csv())
    write_text(folder / "receipt.txt", trained.receipt() + "\n")
    if as_json:
        _say(json.dumps({"checkpoint": str(folder), **notes, "history": trained.rows}, indent=2))
    else:
        _say(f"{trained.receipt()}\n\ncheckpoint: {folder}")


def _reopened(run: Path, root: Path | None, **changes: Any) -> tuple[Any, Any]:
    """A checkpoint and the data it was trained on, or others."""
    from .checkpoint import load, notes_of
    from .data.prepared import prepare

    variant, origin = load(run), notes_of(run).get("data") or {}
    origin |= {name: value for name, value in changes.items() if value is not None}
    if "source" not in origin:
        raise ValueError(f"{run} does not say what it was trained on: name --data")
    return variant, prepare(origin.pop("source"), root=root, **origin)


@app.command()
def evaluate(
    run: Run,
    *,
    data: Annotated[
        str | None, typer.Option(callback=_readable, help="Other data than it was trained on, as for train.")
    ] = None,
    data_root: Root = None,
    binarize: Binary = None,
    limit: Limit = None,
    seed: Seed = 0,
    num_particles: Particles = 100,
    components: Components = "10",
    features: FeatureSpace = None,
    as_json: AsJson = False,
) -> None:
    """Judge a checkpoint on held-out data: bounds, reconstruction, collapse, Frechet distances, with errors."""
    from .evaluation import ex_post
    from .evaluation.evaluation import evaluate as judge
    from .evaluation.features import features_for

    variant, found = _reopened(run, data_root, source=data, binarize=binarize, limit=limit)
    space = features_for(variant.in_model_units(found.resident), found.labels, features, seed)
    figures = judge(
        variant,
        found.test,
        num_particles,
        train=found.resident,
        ex_post=ex_post.fit(variant, found, _components(components), seed),
        features=space,
        pictures=found.pictures,
        seed=seed,
    )
    row = {"run": str(run), "features": space.name, "K": num_particles, **figures.as_row(), "notes": figures.notes}
    _say(json.dumps(row, indent=2) if as_json else str(figures))


@app.command()
def sample(
    run: Run,
    *,
    count: Annotated[int, typer.Option(min=1, help="How many.")] = 64,
    out: Annotated[Path, typer.Option(help="A .npy file, or a .png grid for images.")] = Path("samples.npy"),
    ex_post: Annotated[
        bool, typer.Option("--ex-post", help="From the mixture fitted on codes, not from the prior.")
    ] = False,
    components: Components = "10",
    mean: Annotated[bool, typer.Option("--mean", help="Means of p(x | z), without observation noise.")] = False,
    data_root: Root = None,
    seed: Seed = 0,
) -> None:
    """Draw data from a checkpoint, in the units of its training data."""
    from .checkpoint import load
    from .evaluation import ex_post as density
    from .files import writable
    from .report.pictures import write_samples
    from .variant import sample as draw

    if out.suffix not in (".npy", ".png"):
        raise typer.BadParameter(f"wanted a file ending in .npy or .png, got {out}", param_hint="--out")
    prior = None
    variant = load(run)
    if ex_post:
        variant, found = _reopened(run, data_root)
        prior = density.fit(variant, found, _components(components), seed)
    writable(out.parent)
    write_samples(out, variant, draw(variant, count, prior=prior, mean=mean, seed=seed))
    _say(f"{count} samples from the {'ex-post mixture' if ex_post else 'prior'}: {out}")


@app.command()
def diagnose(
    run: Annotated[Path | None, typer.Argument(metavar="RUN", help="A checkpoint folder.")] = None,
    *,
    named: Annotated[Path | None, typer.Option("--run", help="The checkpoint folder, named.")] = None,
    data: Annotated[
        str | None, typer.Option(callback=_readable, help="Other data than it was trained on, as for train.")
    ] = None,
    data_root: Root = None,
    binarize: Binary = None,
    limit: Limit = None,
    rows: Annotated[int, typer.Option(min=2, help="Held-out data that are looked at, at the most.")] = 500,
    seed: Seed = 0,
    num_particles: Particles = 1000,
    temperatures: Annotated[
        int | None, typer.Option(min=1, help="Steps of annealed importance sampling, on 20 data; without it, none.")
    ] = None,
    components: Annotated[
        str | None, typer.Option(help="Judge under an ex-post mixture too: a number, held_out or bic.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the page, the numbers and the draws: RUN's.")] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Say whether a checkpoint's numbers can be trusted: diagnosis.html, diagnosis.json, and draws.nc for arviz."""
    from .diagnosis import diagnose as examine, write_diagnosis
    from .evaluation import ex_post
    from .files import writable
    from .streams import chosen

    given = [one for one in (run, named) if one is not None]
    if len(given) != 1:
        raise typer.BadParameter(f"wanted one folder, got {len(given)}: ppl-vae diagnose RUN", param_hint="--run")
    variant, found = _reopened(given[0], data_root, source=data, binarize=binarize, limit=limit)
    folder = writable(out or given[0])
    diagnosis = examine(
        variant,
        found.test[chosen(len(found.test), rows, seed)],
        ex_post=None if components is None else ex_post.fit(variant, found, _components(components), seed),
        num_particles=num_particles,
        temperatures=temperatures,
        seed=seed,
        progress=not quiet,
    )
    page = write_diagnosis(diagnosis, folder)
    _say(json.dumps(diagnosis.as_dict(), indent=2) if as_json else f"{diagnosis}\n\npage: {page}")


@app.command()
def compare(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[VARIANT]...", callback=_all_known, help="All of them unless named.")
    ] = None,
    *,
    data: Source = "digits",
    data_root: Root = None,
    scale: Scale = "auto",
    binarize: Binary = None,
    limit: Limit = None,
    split: Split = "random",
    z_dim: Codes = 8,
    epochs: Epochs = 40,
    batch_size: BatchSize = 64,
    lr: Rate = 2e-3,
    schedule: Schedule = "cosine",
    patience: Patience = None,
    seed: Seed = 0,
    device: Place = "auto",
    estimator: Estimator = None,
    num_particles: Particles = 100,
    components: Components = "10",
    features: FeatureSpace = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run: runs/DATA unless given.")] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train variants on the same data, judge them on the same held-out data, write a report."""
    from .catalogue import VARIANTS
    from .data.prepared import prepare
    from .report.comparison import as_json as table_json, compare as run_all

    prepared = prepare(data, scale=scale, binarize=binarize, limit=limit, split=split, seed=seed, root=data_root)
    folder = out or Path("runs") / prepared.name
    results = run_all(
        names or list(VARIANTS),
        prepared,
        folder,
        z_dim=z_dim,
        components=_components(components),
        num_particles=num_particles,
        features=features,
        estimator=estimator,
        progress=not quiet,
        command=" ".join(["ppl-vae", *sys.argv[1:]]),
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        schedule=schedule,
        patience=patience,
        seed=seed,
        device=device,
    )
    if as_json:
        _say(table_json(results, {"report": str(folder / "report.html")}))
    else:
        print_table(results)
        _say(f"report: {folder / 'report.html'}")
    if any(result.reason for result in results):
        raise typer.Exit(1)


@app.command()
def estimators(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME[:OPTION=VALUE,...]]...", callback=_all_spelled, help="As --estimator of train."),
    ] = None,
    *,
    run: Annotated[Path | None, typer.Option(help="A checkpoint folder; without one, estimators are listed.")] = None,
    data: Annotated[str | None, typer.Option(callback=_readable, help="Other data than it was trained on.")] = None,
    data_root: Root = None,
    rows: Annotated[int, typer.Option(min=1, help="Held-out data in the batch.")] = 64,
    draws: Annotated[int, typer.Option(min=20, help="Values and gradients of each estimator.")] = 1000,
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option(help="Folder of the table and the plot: RUN unless given.")] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Compare estimators of the bound on a checkpoint: bias, variance, signal over noise, time, memory."""
    from .elbo import ESTIMATORS
    from .files import writable, write_text
    from .streams import chosen
    from .verification.estimator_table import DEFAULT, compare_estimators

    if run is None:
        lines = {name: str(each.__doc__).partition("\n")[0] for name, each in ESTIMATORS.items()}
        _say(json.dumps(lines, indent=2) if as_json else "\n".join(f"{name:<12}{line}" for name, line in lines.items()))
        return
    variant, found = _reopened(run, data_root, source=data)
    folder = writable(out or run)
    some = found.test[chosen(len(found.test), rows, seed)]
    compared = compare_estimators(variant, some, names or DEFAULT, draws=draws, seed=seed, progress=not quiet)
    write_text(folder / "estimators.csv", compared.table.to_csv())
    compared.plot(folder / "estimators.png")
    if as_json:
        _say(json.dumps({"rows": compared.rows, "draws": draws, "data": compared.data}, indent=2))
    else:
        _say(f"{compared}\n\ntable: {folder / 'estimators.csv'}\nplot: {folder / 'estimators.png'}")


SHOWN = ("bound", "importance_weighted", "bound_ex_post", "rmse", "active_units", "sigma", "frechet_floor",
         "frechet_reconstructions", "frechet_prior", "frechet_ex_post")  # fmt: skip


def print_table(results: Any) -> None:
    """The table on a terminal: values and standard errors, a row per variant."""
    from rich.console import Console
    from rich.table import Table

    from .evaluation.evaluation import COLUMNS

    noise = next((result.evaluation.noise for result in results if result.evaluation is not None), lambda name: "")
    table = Table("variant", "bound of", *(COLUMNS[name].title + noise(name) for name in SHOWN))
    for result in results:
        if result.evaluation is None:
            table.add_row(result.name, result.reason)
        else:
            table.add_row(result.name, result.measure, *(str(result.evaluation[name]) for name in SHOWN))
    console = Console()
    console.width = max(console.width, 200)
    console.print(table)
    _say("± is a standard error. Bounds in nats per datum, in the data's units; they compare within one kind alone.")


def main() -> None:
    """Run a command: exit 0, 2 for a usage error, 1 for a failure, each with a clear line."""
    warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated", category=FutureWarning)
    try:
        app()
    except (ValueError, OSError, ArithmeticError) as error:
        typer.echo(f"ppl-vae: {error}", err=True)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
