"""Options that commands share: a record for training, a record for the data of a checkpoint, and single options."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ..checkpoint import load, notes_of
from ..data.data_set import Binarization, Data
from ..data.prepared import prepare
from ..data.sources import FILES, SETS
from ..data.splits import Split
from ..data.units import ScaleName
from ..report.contestants import contestants_of
from ..streams import seeded
from ..studies import Contestant, Judging
from ..studies.cells import Z_DIM, Contestants
from ..svi.backends import Backend
from ..svi.precision import Precision
from ..training.options import FitOptions, Schedule
from ..variant import Variant
from .names import known_data, known_estimator

__all__ = [
    "COMPONENTS",
    "NUM_PARTICLES",
    "AsJson",
    "Binarize",
    "Components",
    "DataRoot",
    "FeatureSpace",
    "Limit",
    "NumParticles",
    "Quiet",
    "Run",
    "RunData",
    "Seed",
    "TrainingOptions",
    "components_of",
    "read_value",
]

DataRoot = Annotated[
    Path | None,
    typer.Option(envvar="PPL_VAE_DATA", help="Folder of the image sets; a set that is missing is downloaded to it."),
]
Binarize = Annotated[
    Binarization | None,
    typer.Option(
        help="Make values in [0, 1] binary: dynamic draws them anew for each batch, static draws them once, threshold "
        "asks whether x > 1/2."
    ),
]
Limit = Annotated[
    int | None, typer.Option(min=2, help="Largest number of training data; the test set is cut in proportion.")
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of all random draws.")]
COMPONENTS, NUM_PARTICLES = str(Judging.components), Judging.num_particles  # how fits are judged by default
NumParticles = Annotated[int, typer.Option("--num-particles", "-K", min=1, help="Draws per datum for the bounds.")]
Components = Annotated[
    str,
    typer.Option(
        metavar="NUMBER|held_out|bic",
        help="Components of the ex-post mixture: a number, or the rule that chooses the number.",
    ),
]
FeatureSpace = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|FILE",
        help="Feature space of the Frechet distances: pca, classifier, inception, or an .onnx file. By default, "
        "classifier if the data have labels, else pca.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Do not show progress.")]
Run = Annotated[
    Path, typer.Argument(metavar="RUN", help="Folder of a checkpoint, as train writes it, and compare in cells.")
]


def components_of(text: str) -> int | str:
    """The number of components or the name of a rule, as ``--components`` gives it."""
    return int(text) if text.isdigit() else text


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """Options of ``train`` and ``compare``: the data, the variant's parts and the training.

    Both commands take all of them. The defaults of the training are those of ``fit``.
    """

    data: Annotated[
        str,
        typer.Option(
            metavar="NAME|FILE",
            callback=known_data,
            help=f"A data set ({', '.join(SETS)}) or a file of real numbers ({', '.join(FILES)}).",
        ),
    ] = "digits"
    data_root: DataRoot = None
    scale: Annotated[
        ScaleName,
        typer.Option(
            help="Units of the model: none keeps those of the data, unit maps to [0, 1], standardize to mean 0 and "
            "standard deviation 1. auto is unit for images and binary data, standardize for tables."
        ),
    ] = "auto"
    binarize: Binarize = None
    limit: Limit = None
    split: Annotated[
        Split,
        typer.Option(
            help="Which rows are held out if the data have no test set: random ones, or the last ones (tail), for data "
            "in the order of time."
        ),
    ] = "random"
    z_dim: Annotated[int, typer.Option(min=1, help="Number of coordinates of a code.")] = Z_DIM
    estimator: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[:OPTION=VALUE,...]",
            callback=known_estimator,
            help="Estimator of the bound in training, for example dreg:num_particles=16. The command ppl-vae "
            "estimators lists them. By default, each variant has its own.",
        ),
    ] = None
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="OPTION=VALUE",
            help="Set an option of a variant, for example beta=2, for the variants that have it, or beta_vae.beta=2 "
            "for one. Can be given several times.",
        ),
    ] = None
    epochs: Annotated[int, typer.Option(min=1, help="Number of passes over the training data.")] = FitOptions.epochs
    batch_size: Annotated[int, typer.Option(min=1, help="Number of training data per step.")] = FitOptions.batch_size
    lr: Annotated[float, typer.Option(help="Learning rate of Adam.")] = FitOptions.lr
    schedule: Annotated[
        Schedule,
        typer.Option(help="Schedule of the learning rate: constant, or a cosine that ends at zero."),
    ] = FitOptions.schedule  # type: ignore[assignment]
    patience: Annotated[
        int | None,
        typer.Option(
            min=1, help="Stop after this number of epochs without a better held-out objective. By default, do not stop."
        ),
    ] = FitOptions.patience
    seed: Annotated[
        int, typer.Option(min=0, help="Seed of the data split, initial weights, batch order and noise.")
    ] = FitOptions.seed
    device: Annotated[
        Literal["auto", "cpu", "cuda"],
        typer.Option(help="Device for the training. auto is CUDA if there is a CUDA device, else the CPU."),
    ] = FitOptions.device  # type: ignore[assignment]
    backend: Annotated[
        Backend,
        typer.Option(
            help="How a training step is run. auto is fx, which replays the eager step from a graph and is equal to it "
            "to the last bit."
        ),
    ] = FitOptions.backend  # type: ignore[assignment]
    precision: Annotated[
        Precision,
        typer.Option(
            help="Precision of the training. bf16 runs the networks in bfloat16; bf16_matmul runs only matrix "
            "products in bfloat16, on a CPU."
        ),
    ] = FitOptions.precision  # type: ignore[assignment]

    def prepared(self) -> Data:
        """The data, read, split and scaled."""
        return prepare(
            self.data,
            scale=self.scale,
            binarize=self.binarize,
            limit=self.limit,
            split=self.split,
            seed=self.seed,
            root=self.data_root,
        )

    def assigned(self) -> dict[str, Any]:
        """The values that ``--set`` assigns to options, by name.

        Raises:
            typer.BadParameter: If an assignment is not ``OPTION=VALUE``.
        """
        values = {}
        for assignment in self.assignments or []:
            name, equals, value = assignment.partition("=")
            if not equals:
                raise typer.BadParameter(f"{assignment!r} is not OPTION=VALUE", param_hint="--set")
            values[name.strip()] = read_value(value)
        return values

    def contestants(self, given: Contestants) -> dict[str, Contestant]:
        """Variants or contestants with the options that ``--set`` and ``--estimator`` give them.

        Raises:
            typer.BadParameter: If none of them has an option that is set.
        """
        try:
            return contestants_of(given, self.assigned(), self.estimator)
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="--set") from None

    def built(self, contestant: Contestant, x_shape: tuple[int, ...]) -> Variant:
        """Build a variant, before training.

        Raises:
            typer.BadParameter: If a value has the wrong type.
            ValueError: If a value is out of range.
        """
        try:
            with seeded(self.seed):
                return contestant.builder(x_shape, self.z_dim, **contestant.options)
        except TypeError as error:
            raise typer.BadParameter(str(error), param_hint="--set") from None

    def fit_arguments(self) -> dict[str, Any]:
        """Arguments of ``fit``."""
        return {
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "lr": self.lr,
            "schedule": self.schedule,
            "patience": self.patience,
            "seed": self.seed,
            "device": self.device,
            "backend": self.backend,
            "precision": self.precision,
        }


def read_value(text: str) -> Any:
    """A value as it was typed: JSON if it is JSON, else text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


@dataclass(frozen=True, kw_only=True)
class RunData:
    """Options of the commands that read a checkpoint. By default, the data are those that it was trained on."""

    data: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            callback=known_data,
            help="Data set or file. By default, the data, --binarize and --limit are the same as in the training.",
        ),
    ] = None
    data_root: DataRoot = None
    binarize: Binarize = None
    limit: Limit = None

    def opened(self, run: Path) -> tuple[Variant, Data]:
        """The variant in a checkpoint's folder, and the data.

        Raises:
            ValueError: If the folder is not a checkpoint, or if neither the checkpoint nor these options name the data.
        """
        variant = load(run)
        changes = {"source": self.data, "binarize": self.binarize, "limit": self.limit}
        origin = notes_of(run).get("data") or {}
        origin |= {name: value for name, value in changes.items() if value is not None}
        if "source" not in origin:
            raise ValueError(f"{run} does not say what it was trained on: name --data")
        return variant, prepare(origin.pop("source"), root=self.data_root, **origin)
