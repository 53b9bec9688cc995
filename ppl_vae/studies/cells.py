"""Cells: what one fit and its evaluation are declared by, and the grid of contestants, data sets and seeds."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from ..assembly import pair
from ..catalogue import VARIANTS
from ..data.data_set import Data
from ..estimate import Number
from ..evaluation.ex_post import RULES
from ..evaluation.features import Features
from ..models.half import whole
from ..training.fitting import Fit, fit
from ..training.options import FitOptions, Speed
from ..variant import Variant
from .declarations import declared, key_of
from .results import Result

__all__ = ["Z_DIM", "Cell", "Contestant", "Contestants", "Judging", "contestants_named", "grid"]

Z_DIM = 8  # the size of a code, unless a study says otherwise
SEEDS = 2**32  # NumPy takes seeds below this number


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

    def __post_init__(self) -> None:
        if isinstance(self.components, str) and self.components not in RULES:
            raise ValueError(f"components must be a whole number or one of {RULES}, got {self.components!r}")
        if not isinstance(self.components, str):
            whole("components", self.components)
        whole("num_particles", self.num_particles)
        _check_seed(self.seed)


@dataclass(frozen=True)
class Contestant:
    """What a study compares: a builder with its options, and how its pair is trained.

    Attributes:
        build: The name of a variant in the catalogue, or a function ``(x_shape, z_dim, **options) -> Variant``. A
            function that has an argument ``seed`` is given the seed of the cell.
        options: The options of the builder. A module among them is copied for each cell, and starts with the weights
            that it has, for every seed. Make it inside the builder if the seed is to move its weights.
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
        for name, function in (("train", self.train), ("extra", self.extra or fit)):
            if not callable(function):
                raise ValueError(f"{name} must be a function, got {function!r}")
        self._check_options()

    def _check_options(self) -> None:
        """Refuse an option that the builder does not have, before anything is trained."""
        known = dict(inspect.signature(self.builder).parameters)
        if isinstance(self.build, str):
            known |= inspect.signature(pair).parameters
        takes_any = not isinstance(self.build, str) and _takes_any(self.builder)
        own = list(known)[2:]  # without the shapes
        for option in self.options:
            if option == "seed" and "seed" in known:
                raise ValueError("seed is no option: every cell gives its own seed to the builder")
            if option not in own and not takes_any:
                name = self.build if isinstance(self.build, str) else getattr(self.build, "__name__", "the builder")
                raise ValueError(f"{name} has no option {option!r}: wanted one of {', '.join(own)}")

    @property
    def builder(self) -> Callable[..., Variant]:
        """The function that builds the pair."""
        return VARIANTS[self.build] if isinstance(self.build, str) else self.build

    @property
    def takes_seed(self) -> bool:
        """Whether the builder has an argument ``seed``."""
        return "seed" in inspect.signature(self.builder).parameters


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

    def __post_init__(self) -> None:
        if not isinstance(self.data, Data):
            raise ValueError(f"{self.name}: data must be what prepare returns, got {type(self.data).__name__}")
        _check_seed(self.seed)
        whole("z_dim", self.z_dim)
        _check_training(self.contestant.train, self.training)

    @cached_property
    def declaration(self) -> dict[str, Any]:
        """Everything that the numbers of the cell depend on, as plain JSON. The default dtype is among them.

        Raises:
            TypeError: If an option is neither JSON, nor an array, nor a part or a function.
        """
        contestant = self.contestant
        found = {
            "build": contestant.build,
            "options": contestant.options,
            "version": contestant.version,
            "train": contestant.train,
            "extra": contestant.extra,
            "data": self.data.digest,
            "seed": self.seed,
            "z_dim": self.z_dim,
            "judging": vars(self.judging),
            "training": self.training,
            "dtype": str(torch.get_default_dtype()).removeprefix("torch."),
        }
        try:
            return {name: declared(value) for name, value in found.items()}
        except RecursionError:
            raise TypeError(f"{self.name} cannot be declared: an option refers to itself") from None

    @cached_property
    def key(self) -> str:
        """The digest of the declaration. A finished cell with the same key is not run again."""
        return key_of(self.declaration)

    @property
    def label(self) -> str:
        """The name of the cell in a message."""
        return f"{self.data.name}-{self.name}-{self.seed}"


Contestants = Mapping[str, Contestant | str | Callable[..., Variant]] | Iterable[str]


def contestants_named(given: Contestants) -> dict[str, Contestant]:
    """The contestants by name, from the names of variants or from a table as ``grid`` takes it.

    Raises:
        ValueError: If a name is unknown or given twice, or there is no contestant.
    """
    if isinstance(given, str):
        raise ValueError(f"contestants must be a list of names or a table, got the text {given!r}: write [{given!r}]")
    names = list(given)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"two contestants are called {twice[0]}: give each its own name, NAME={twice[0]}")
    if not names:
        raise ValueError(f"no contestant to compare: wanted some of {', '.join(VARIANTS)}")
    builds = given if isinstance(given, Mapping) else {name: name for name in names}
    return {name: one if isinstance(one, Contestant) else Contestant(one) for name, one in builds.items()}


def grid(
    contestants: Contestants,
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
    named = contestants_named(contestants)
    sets = [data] if isinstance(data, Data) else list(data)
    seeds = list(range(whole("seeds", seeds, least=0))) if isinstance(seeds, int) else list(seeds)
    _check(sets, seeds)
    FitOptions(**{name: value for name, value in training.items() if name in vars(FitOptions())})
    judging = Judging() if judging is None else judging
    return [
        Cell(name, one, some, seed, z_dim, judging, {**training, **one.training})
        for seed in seeds
        for some in sets
        for name, one in named.items()
    ]


def _check(sets: list[Data], seeds: list[int]) -> None:
    if not sets or not seeds:
        raise ValueError(f"a study needs data and a seed, got {len(sets)} data sets and {len(seeds)} seeds")
    for one in sets:
        if not isinstance(one, Data):
            raise ValueError(f"data must be what prepare returns, got {type(one).__name__}")
    for what, values in (("data sets", [one.name for one in sets]), ("seeds", [str(seed) for seed in seeds])):
        twice = {value for value in values if values.count(value) > 1}
        if twice:
            raise ValueError(f"two {what} have the same name, {min(twice)}: give each its own")


def _check_seed(seed: Any) -> None:
    if whole("a seed", seed, least=0) >= SEEDS:
        raise ValueError(f"a seed must be below {SEEDS:,}, got {seed!r}")


def _takes_any(function: Callable[..., Any]) -> bool:
    kinds = [parameter.kind for parameter in inspect.signature(function).parameters.values()]
    return inspect.Parameter.VAR_KEYWORD in kinds


def _check_training(train: Callable[..., Fit], training: Mapping[str, Any]) -> None:
    """Refuse an argument that the training does not have, or that the study gives itself."""
    for name in training:
        if name in ("seed", "progress"):
            raise ValueError(f"{name} is no argument of the training of a study, which gives it itself")
    known = [*list(inspect.signature(train).parameters)[2:], *Speed.__annotations__]
    if train is not fit and _takes_any(train):
        return
    for name in training:
        if name not in known:
            raise ValueError(f"the training has no argument {name!r}: wanted one of {', '.join(known)}")
