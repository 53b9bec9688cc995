"""Cells: what one fit and its evaluation are declared by, and the grid of contestants, data sets and seeds."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ..catalogue import VARIANTS
from ..data.data_set import Data
from ..estimate import Number
from ..evaluation.features import Features
from ..models.half import whole
from ..training.fitting import Fit, fit
from ..training.options import FitOptions
from ..variant import Variant
from .declarations import address, declared, is_importable, key_of
from .results import Result

__all__ = ["Z_DIM", "Cell", "Contestant", "Judging", "grid"]

Z_DIM = 8  # the size of a code, unless a study says otherwise


@dataclass(frozen=True)
class Judging:
    """How every fit of a study is judged.

    Attributes:
        components: Number of components of the ex-post mixture, or how they are chosen; see ``ex_post.fit``.
        num_particles: Draws K of the bounds.
        features: The feature space of the Frechet distances; see ``features_for``. The driver makes it once per data
            set and keeps it.
        seed: Seed of the mixture and of every draw of the evaluation. It is the same for all cells, so that all are
            judged on the same rows with the same draws.
    """

    components: int | str = 10
    num_particles: int = 100
    features: str | None = None
    seed: int = 0


@dataclass(frozen=True)
class Contestant:
    """What a study compares: a builder with its options, and how its pair is trained.

    Attributes:
        build: The name of a variant in the catalogue, or a function ``(x_shape, z_dim, **options) -> Variant``. A
            function that has an argument ``seed`` is given the seed of the cell.
        options: The options of the builder.
        version: The version of your own code. A study looks at the import path of a function, not at its text: raise
            the version when the text changes, so that its cells run again.
        training: Arguments of the training that differ from those of the study.
        train: How the pair is trained, with the arguments of ``fit``. By default it is ``fit``.
        extra: A function ``(result, features)`` of the ``Result`` and the feature space of its evaluation, which
            returns further numbers by name. They stand in the row of the cell.
    """

    build: str | Callable[..., Variant]
    options: Mapping[str, Any] = field(default_factory=dict)
    version: int = 1
    training: Mapping[str, Any] = field(default_factory=dict)
    train: Callable[..., Fit] = fit
    extra: Callable[[Result, Features], Mapping[str, Number]] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.build, str) and self.build not in VARIANTS:
            raise ValueError(f"unknown variant {self.build!r}: wanted one of {', '.join(VARIANTS)}")
        if not isinstance(self.build, str) and not callable(self.build):
            raise ValueError(f"build must be the name of a variant or a function, got {self.build!r}")

    @property
    def builder(self) -> Callable[..., Variant]:
        """The function that builds the pair."""
        return VARIANTS[self.build] if isinstance(self.build, str) else self.build

    @property
    def takes_seed(self) -> bool:
        """Whether the builder has an argument ``seed``."""
        return "seed" in inspect.signature(self.builder).parameters

    @property
    def travels(self) -> bool:
        """Whether another process can import every function. Otherwise, its cells run in the process of the study."""
        functions = [self.builder, self.train, self.extra, *filter(callable, self.options.values())]
        own = [function for function in functions if function is not None and hasattr(function, "__qualname__")]
        return all(map(is_importable, own))


@dataclass(frozen=True, eq=False)
class Cell:
    """One fit and its evaluation: a contestant, data and a seed.

    Attributes:
        name: The name of the contestant in tables.
        contestant: Its builder and options.
        data: The data, as ``prepare`` returns them. The test part is the same for every seed.
        seed: Seed of the initial weights, of the batch order, of the split for validation and of the noise.
        z_dim: Size of a code.
        judging: How the fit is judged.
        training: The arguments of the training, as for ``fit``.
    """

    name: str
    contestant: Contestant
    data: Data
    seed: int
    z_dim: int = Z_DIM
    judging: Judging = field(default_factory=Judging)
    training: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def declaration(self) -> dict[str, Any]:
        """Everything that the numbers of the cell depend on, as plain JSON.

        Raises:
            TypeError: If an option is neither JSON, nor an array, nor a part or a function.
        """
        contestant = self.contestant
        build = contestant.build
        return {
            "build": build if isinstance(build, str) else declared(build),
            "options": declared(contestant.options),
            "version": contestant.version,
            "train": address(contestant.train),
            "extra": None if contestant.extra is None else declared(contestant.extra),
            "data": self.data.digest,
            "seed": self.seed,
            "z_dim": self.z_dim,
            "judging": vars(self.judging),
            "training": declared(self.training),
        }

    @cached_property
    def key(self) -> str:
        """The digest of the declaration. A finished cell with the same key is not run again."""
        return key_of(self.declaration)

    @property
    def label(self) -> str:
        """The name of the cell in a message and of its folder."""
        readable = "".join(letter if letter.isalnum() or letter in "._=-" else "_" for letter in self.name)
        return f"{self.data.name}-{readable}-{self.seed}"


def grid(
    contestants: Mapping[str, Contestant | str | Callable[..., Variant]] | Iterable[str],
    data: Data | Iterable[Data],
    seeds: int | Iterable[int] = 5,
    *,
    z_dim: int = Z_DIM,
    judging: Judging | None = None,
    **training: Any,
) -> list[Cell]:
    """The cells of every contestant on every data set with every seed.

    Args:
        contestants: The names of variants; or a table from the name of a contestant to the name of a variant, to a
            builder, or to a ``Contestant``.
        data: The data sets, as ``prepare`` returns them, with different names.
        seeds: The seeds, or their number.
        z_dim: Size of a code.
        judging: How all fits are judged.
        training: Arguments of ``fit``, the same for all cells.

    Raises:
        ValueError: If there is nothing to compare, a name is unknown, or two data sets or two seeds are the same.

    Example:
        >>> import torch
        >>> from ppl_vae import prepare
        >>> data = prepare(torch.randn(40, 3))
        >>> cells = grid({"VAE": "sigma_vae", "weighted": Contestant("beta_vae", {"beta": 2.0})}, data, 3, epochs=2)
        >>> len(cells), cells[0].label
        (6, 'Tensor-VAE-0')
    """
    named = dict(contestants) if isinstance(contestants, Mapping) else {name: name for name in contestants}
    sets = [data] if isinstance(data, Data) else list(data)
    seeds = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    _check(named, sets, seeds)
    FitOptions(**{name: value for name, value in training.items() if name in vars(FitOptions())})
    judging = Judging() if judging is None else judging
    every = {name: one if isinstance(one, Contestant) else Contestant(one) for name, one in named.items()}
    return [
        Cell(name, one, some, seed, z_dim, judging, {**training, **one.training})
        for seed in seeds
        for some in sets
        for name, one in every.items()
    ]


def _check(named: Mapping[str, Any], sets: list[Data], seeds: list[int]) -> None:
    if not named or not sets or not seeds:
        raise ValueError(
            f"a study needs a contestant, data and a seed, got {len(named)} contestants, {len(sets)} data sets and "
            f"{len(seeds)} seeds"
        )
    for what, values in (("data sets", [one.name for one in sets]), ("seeds", [str(seed) for seed in seeds])):
        twice = {value for value in values if values.count(value) > 1}
        if twice:
            raise ValueError(f"two {what} have the same name, {min(twice)}: give each its own")
    for seed in seeds:
        whole("a seed", seed, least=0)
