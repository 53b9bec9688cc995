"""evaluate: every number with what it is, its unit and its error; a number that is not legitimate is left empty."""

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..contracts.support import check_support
from ..data.data_set import Data, tensor_of
from ..estimate import Number, mean_over_data, share_over_data
from ..models.networks import is_image
from ..noise import at_floor, noise_scale
from ..streams import chosen, seeded
from ..variant import Variant, encode, evaluating, missing_mean, reconstruct, sample
from .codes import ACTIVE, divergence
from .distances import frechet_with_error, nearest
from .features import Features, principal_components
from .interpolation import interpolate, pairs
from .lower_bounds import bounds_under, held_out
from .pareto import k_threshold

__all__ = ["COLUMNS", "Column", "Evaluation", "evaluate"]
MOST = 5000  # data that a Frechet distance takes at the most
NO_MEAN = Number(None, reason="no mean")


class Column(NamedTuple):
    """What a figure is: title, unit, whether larger is better (None for neither), one line of explanation."""

    title: str
    unit: str
    up: bool | None
    text: str


COLUMNS = {
    "bound": Column("bound", "nats", True, "ELBO of held-out data, per datum, in the data's units"),
    "importance_weighted": Column("IW bound", "nats", True, "importance-weighted bound, K draws per datum"),
    "heavy_tails": Column(
        "k-hat high", "share", False, "of data whose K weights tell too little to trust their IW bound"
    ),
    "bound_ex_post": Column("bound, ex post", "nats", True, "ELBO with the fitted mixture as the prior"),
    "log_joint": Column("MAP", "nats", True, "log p(x, z) at the code of a point mass: no bound, comparable to none"),
    "bits_per_dim": Column("bits/dim", "bits", False, "-bound / (D log 2), of a probability mass only"),
    "rmse": Column("RMSE", "scaled x", False, "root mean squared error of the reconstruction at the posterior mean"),
    "active_units": Column("active", "units", None, f"codes whose posterior mean varies by more than {ACTIVE}"),
    "kl": Column("KL", "nats", None, "KL(q(z | x) || p(z)), mean over held-out data"),
    "sigma": Column("sigma", "scaled x", None, "root mean square of the likelihood's scale"),
    "frechet_floor": Column("F real", "F", None, "Frechet distance of held-out from training data: the floor"),
    "frechet_reconstructions": Column(
        "F rec.", "F", False, "of reconstructions from the held-out data themselves; means of p(x | z), no noise"
    ),
    "frechet_prior": Column("F prior", "F", False, "of samples from the prior; of images, means of p(x | z), no noise"),
    "frechet_ex_post": Column(
        "F ex post", "F", False, "of samples from the fitted mixture; of images, means of p(x | z), no noise"
    ),
    "frechet_interpolations": Column(
        "F interp.",
        "F",
        False,
        "of spherical midpoints of distinct held-out pairs; means of p(x | z), no noise. The pairs are made of the "
        "data they are compared with, so that the distance is smaller than between independent samples",
    ),
    "nearest_held_out": Column("near real", "scaled x", None, "held-out data to the nearest training datum"),
    "nearest_ex_post": Column(
        "near ex post", "scaled x", None, "ex-post samples to it: far below, they copy; of images, means, no noise"
    ),
}
ALWAYS_MEANS = ("frechet_reconstructions", "frechet_interpolations")  # made without observation noise
MEANS_OF_IMAGES = ("frechet_prior", "frechet_ex_post", "nearest_ex_post")  # so made where x is an image
NO_NOISE = " (means, no noise)"


@dataclass(frozen=True)
class Evaluation:
    """Figures of one variant on held-out data.

    Attributes:
        numbers: By the names of ``COLUMNS``.
        num_particles: Draws K of the bounds.
        rows: Held-out data.
        features: Name of the feature space of the Frechet distances.
        kl_per_dim: [z_dim], nats, sorted from large to small; empty where q or p(z) does not factorise.
        bound_per_datum: [rows], nats; empty for a point mass.
        means: Whether samples are means of p(x | z), without observation noise, as they are for images.
        notes: Sentences that belong beside the figures: how many of the data were trained on, say.
        active_per_dim: [z_dim], whether each unit is active, in the order of ``kl_per_dim``; empty where that is.
    """

    numbers: dict[str, Number]
    num_particles: int
    rows: int
    features: str
    kl_per_dim: list[float] = field(default_factory=list)
    bound_per_datum: list[float] = field(default_factory=list)
    means: bool = False
    notes: list[str] = field(default_factory=list)
    active_per_dim: list[bool] = field(default_factory=list)

    def __getitem__(self, name: str) -> Number:
        return self.numbers[name]

    def as_row(self) -> dict[str, Any]:
        """Values and errors as plain numbers, for a table or JSON."""
        row: dict[str, Any] = {}
        for name, number in self.numbers.items():
            row[name], row[f"{name}_error"] = number.value, number.error
        return row

    def __str__(self) -> str:
        lines = [f"{self.rows} held-out data; K = {self.num_particles}; F in {self.features}"]
        for name, number in self.numbers.items():
            beside = self.noise(name) + (f" ({number.reason})" if number.reason else "")
            told = "" if number.value is None else f"{COLUMNS[name].unit}{beside}"
            lines.append(f"{COLUMNS[name].title:<16}{number!s:<24}{told}")
        return "\n".join([*lines, *self.notes])

    def noise(self, name: str) -> str:
        """What a figure says of observation noise: that it is of means of p(x | z), or nothing."""
        return NO_NOISE if name in ALWAYS_MEANS or (self.means and name in MEANS_OF_IMAGES) else ""


def evaluate(
    variant: Variant,
    x: Any,
    num_particles: int = 100,
    *,
    train: Any = None,
    ex_post: nn.Module | None = None,
    features: Features | None = None,
    pictures: Any = None,
    seed: int = 0,
) -> Evaluation:
    """Judge a trained variant on held-out data. Parameters, buffers, modes and random streams are left as they were.

    Args:
        variant: A trained pair.
        x: Held-out data [rows, *x_shape], in the data's units: an array, a tensor, a data frame; or ``Data``, for its
            test part and its pictures.
        num_particles: Draws K for each datum's bounds; exactly so many are used.
        train: Training data in the data's units: the reference of the floor and of nearest neighbours, and what is
            searched for rows of x. ``Data`` stands for its training part; of a Dataset too large to hold, 10,000 rows
            are drawn at random.
        ex_post: The density ``ex_post.fit`` returns, for samples and a bound under it.
        features: Feature space of the Frechet distances, a map from data in the model's units; principal components of
            ``train`` (or of x) unless given.
        pictures: What x is compared with as pictures, where x is a binary draw of them: the grey values.
        seed: Of every draw; of the 5000 data that a Frechet distance takes, where there are more.

    A mean over data is empty, with the reason, if some datum has no finite value; the reason names the rows.

    Raises:
        ValueError: If x has the wrong shape, holds NaN, lies outside the likelihood's support, or has under 2 rows.
    """
    pictures = x.pictures if pictures is None and isinstance(x, Data) else pictures
    x = tensor_of(x)
    if len(x) < 2:
        raise ValueError(f"evaluate needs at least 2 data for its standard errors, got {len(x)}")
    check_support(variant, variant.in_model_units(x), x)
    all_rows = None if train is None else _rows_of(train)
    train = None if train is None else tensor_of(train, "train", part=True)
    real = variant.in_model_units(x if pictures is None else tensor_of(pictures, "pictures"))
    notes = [] if train is None else _notes(real, variant.in_model_units(train), all_rows or len(train))
    with evaluating(variant), seeded(seed):
        if features is None:
            features = principal_components(real if train is None else variant.in_model_units(train))
        numbers, per_datum = _densities(variant, x, num_particles, ex_post, seed)
        numbers["rmse"], numbers["sigma"] = _reconstruction(variant, x)
        numbers["active_units"], numbers["kl"], kl_per_dim, active = _codes(variant, x)
        numbers |= _pictures(variant, x, real, train, ex_post, features, seed)
    ordered = {name: numbers[name] for name in COLUMNS}
    means = is_image(variant.model.x_shape)
    return Evaluation(ordered, num_particles, len(x), features.name, kl_per_dim, per_datum, means, notes, active)


def _rows_of(train: Any) -> int | None:
    """How many rows there are in training data, where they say it."""
    train = train.train if isinstance(train, Data) else train
    return len(train) if hasattr(train, "__len__") else None


def _notes(y: Tensor, train: Tensor, rows: int) -> list[str]:
    """What has to be said of held-out data y and training data, of ``rows`` altogether, both in the model's units."""
    notes = []
    if len(train) < rows:
        notes.append(f"train: {len(train)} of {rows} rows, drawn at random")
    seen = [row.tobytes() for row in (train + 0.0).flatten(1).cpu().numpy()]  # + 0: -0 is 0
    known = set(seen)
    repeats = sum(row.tobytes() in known for row in (y + 0.0).flatten(1).cpu().numpy())
    if repeats:
        line = f"{repeats} of {len(y)} held-out rows also stand among the training rows"
        within = 1 - len(known) / len(seen)
        usual = f": so do {within:.0%} of the training rows among themselves, as is usual where values are few"
        notes.append(line + (usual if within >= repeats / len(y) / 2 else ": figures of these flatter the model"))
    return notes


def _densities(
    variant: Variant, x: Tensor, num_particles: int, ex_post: nn.Module | None, seed: int
) -> tuple[dict[str, Number], list[float]]:
    if not variant.has_bound:
        none = Number(None, reason="MAP")
        joint = Number(None, reason="codes not scored")
        if variant.codes_are_scored:
            joint = mean_over_data(held_out(variant, variant.in_model_units(x), 1))
        names = ("bound", "importance_weighted", "heavy_tails", "bound_ex_post", "bits_per_dim")
        return {**dict.fromkeys(names, none), "log_joint": joint}, []
    priors = [variant.model.prior] if ex_post is None else [variant.model.prior, ex_post]
    found, *under = bounds_under(variant, priors, x, num_particles, seed=seed)
    bound = mean_over_data(found.elbo)
    numbers = {
        "bound": bound,
        "importance_weighted": mean_over_data(found.importance_weighted),
        "heavy_tails": _heavy_tails(found.k_hat, num_particles),
        "bound_ex_post": Number(None, reason="no mixture"),
        "log_joint": Number(None, reason="has a bound"),
        "bits_per_dim": Number(None, reason="a density"),
    }
    if ex_post is not None:
        numbers["bound_ex_post"] = mean_over_data(under[0].elbo)
    if variant.support.is_discrete:
        per_dim = -1 / (x[0].numel() * math.log(2))
        numbers["bits_per_dim"] = mean_over_data(found.elbo * per_dim)
    return numbers, found.elbo.tolist()


def _heavy_tails(k_hat: Tensor, num_particles: int) -> Number:
    """The share of data above the threshold of the tail index."""
    if bool(torch.isposinf(k_hat).all()):
        return Number(None, reason="too few draws")
    return share_over_data((k_hat > k_threshold(num_particles)).double())


def _reconstruction(variant: Variant, x: Tensor) -> tuple[Number, Number]:
    y = variant.in_model_units(x)
    scale = noise_scale(variant, y)
    sigma = Number(scale, reason="none" if scale is None else at_floor(variant, y[: variant.at_once]) or "")
    if missing_mean(variant, encode(variant, x[: variant.at_once])) is not None:
        return NO_MEAN, sigma
    square = (variant.in_model_units(reconstruct(variant, x)) - y).square().flatten(1).mean(1)
    mean = mean_over_data(square)
    if mean.value is None or mean.error is None:
        return mean, sigma
    rmse = math.sqrt(mean.value)
    return Number(rmse, mean.error / (2 * max(rmse, 1e-300))), sigma


def _codes(variant: Variant, x: Tensor) -> tuple[Number, Number, list[float], list[bool]]:
    active = encode(variant, x).var(0) > ACTIVE
    count = Number(float(active.sum()))
    if not variant.has_bound:
        return count, Number(None, reason="MAP"), [], []
    kl, per_dim = divergence(variant, x)
    if per_dim is None:
        return count, mean_over_data(kl), [], []
    kl_per_dim, order = per_dim.mean(0).sort(descending=True)
    return count, mean_over_data(kl), kl_per_dim.tolist(), active[order].tolist()


def _pictures(
    variant: Variant,
    x: Tensor,
    real: Tensor,
    train: Tensor | None,
    ex_post: nn.Module | None,
    features: Features,
    seed: int,
) -> dict[str, Number]:
    """Distances, in the model's units, of what the variant makes from real data; every sample has the same size."""
    count = min(len(x), MOST, MOST if train is None else len(train))
    some = chosen(len(x), count, seed)
    x, real = x[some], real[some]
    means = is_image(variant.model.x_shape)  # of images, people look at means; a table without its noise is none
    has_mean = missing_mean(variant, encode(variant, x[: variant.at_once])) is None
    made = {}
    if has_mean:
        made["frechet_reconstructions"] = reconstruct(variant, x)
        made["frechet_interpolations"] = interpolate(variant, *pairs(x, seed), 0.5)
    if has_mean or not means:
        made["frechet_prior"] = sample(variant, count, mean=means, seed=seed)
        if ex_post is not None:
            made["frechet_ex_post"] = sample(variant, count, prior=ex_post, mean=means, seed=seed)
    made = {name: variant.in_model_units(data) for name, data in made.items()}
    target = features.apply(real)
    numbers = dict.fromkeys((*ALWAYS_MEANS, *MEANS_OF_IMAGES), NO_MEAN)
    if ex_post is None:
        numbers |= {name: Number(None, reason="no mixture") for name in ("frechet_ex_post", "nearest_ex_post")}
    numbers |= {name: Number(None, reason="no train") for name in ("frechet_floor", "nearest_held_out")}
    numbers |= {name: _distance(target, features.apply(data)) for name, data in made.items()}
    if train is not None:
        train = variant.in_model_units(train)
        some = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:count].to(train.device)
        numbers["frechet_floor"] = _distance(target, features.apply(train[some]))
        rows = max(1, variant.at_once // 2)  # each beside its five closest
        numbers["nearest_held_out"] = mean_over_data(nearest(real, train, rows))
        if "frechet_ex_post" in made:
            numbers["nearest_ex_post"] = mean_over_data(nearest(made["frechet_ex_post"], train, rows))
    return numbers


def _distance(a: Tensor, b: Tensor) -> Number:
    """The Frechet distance of two samples of features [rows, d], where all of them are finite."""
    if not bool(a.isfinite().all() and b.isfinite().all()):
        return Number(None, reason="features not finite")
    rows, features = min(len(a), len(b)), a.shape[1]
    distance, error = frechet_with_error(a, b)
    return Number(
        distance, error, f"its error is rough: {rows} rows, {features} features" if rows < 2 * features else ""
    )
