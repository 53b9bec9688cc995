"""evaluate: every number with what it is, its unit and its error; a number that is not legitimate is left empty."""

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Independent, kl_divergence

from .bounds import bounds_under, held_out
from .data import Data, check_support, tensor_of
from .features import Features, principal_components
from .frechet import frechet_with_error, nearest
from .models.networks import is_image
from .psis import k_threshold
from .seeding import chosen, seeded
from .variant import Variant, decode, encode, evaluating, reconstruct, sample

__all__ = [
    "ACTIVE",
    "COLUMNS",
    "Column",
    "Evaluation",
    "Number",
    "divergence",
    "evaluate",
    "mean_over_data",
    "slerp",
]

ACTIVE = 0.01  # variance over data of a posterior mean above which a unit counts as active (Burda et al., 2016)
MOST = 5000  # data that a Frechet distance takes at the most


class Number(NamedTuple):
    """A figure with its standard error; without a value, ``reason`` says why there is none."""

    value: float | None
    error: float | None = None
    reason: str = ""

    def __str__(self) -> str:
        if self.value is None:
            return self.reason
        return f"{self.value:.5g}" if self.error is None else f"{self.value:.5g} ± {self.error:.2g}"


class Column(NamedTuple):
    """What a figure is: title, unit, whether larger is better (None for neither), one line of explanation."""

    title: str
    unit: str
    up: bool | None
    text: str


COLUMNS = {
    "bound": Column("bound", "nats", True, "ELBO of held-out data, a datum, in the data's units"),
    "importance_weighted": Column("IW bound", "nats", True, "importance-weighted bound, K draws, a datum"),
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
    "frechet_reconstructions": Column("F rec.", "F", False, "of reconstructions from held-out data"),
    "frechet_prior": Column("F prior", "F", False, "of samples from the prior"),
    "frechet_ex_post": Column("F ex post", "F", False, "of samples from the fitted mixture"),
    "frechet_interpolations": Column("F interp.", "F", False, "of spherical midpoints of held-out pairs"),
    "nearest_held_out": Column("near real", "scaled x", None, "held-out data to the nearest training datum"),
    "nearest_ex_post": Column("near ex post", "scaled x", None, "ex-post samples to it: far below, they copy"),
}


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
        notes: Sentences that belong beside the figures: how many of the data were trained on, say.
    """

    numbers: dict[str, Number]
    num_particles: int
    rows: int
    features: str
    kl_per_dim: list[float] = field(default_factory=list)
    bound_per_datum: list[float] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

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
            column = COLUMNS[name]
            lines.append(f"{column.title:<16}{number!s:<24}{column.unit if number.value is not None else ''}")
        return "\n".join([*lines, *self.notes])


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
        numbers["active_units"], numbers["kl"], kl_per_dim = _codes(variant, x)
        numbers |= _pictures(variant, x, real, train, ex_post, features, seed)
    ordered = {name: numbers[name] for name in COLUMNS}
    return Evaluation(ordered, num_particles, len(x), features.name, kl_per_dim, per_datum, notes)


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


def mean_over_data(values: Tensor) -> Number:
    """Mean over data and its standard error; empty, with the rows named, where some value is not finite."""
    wrong = (~values.isfinite()).nonzero().flatten().tolist()
    if wrong:
        listed = ", ".join(map(str, wrong[:5])) + ", ..." * (len(wrong) > 5)
        return Number(None, reason=f"not finite in {len(wrong)} of {len(values)} rows: {listed}")
    return Number(float(values.mean()), float(values.std() / math.sqrt(len(values))))


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
    return mean_over_data((k_hat > k_threshold(num_particles)).double())


def _reconstruction(variant: Variant, x: Tensor) -> tuple[Number, Number]:
    square = (variant.in_model_units(reconstruct(variant, x)) - variant.in_model_units(x)).square().flatten(1).mean(1)
    mean = mean_over_data(square)
    if mean.value is None or mean.error is None:
        return mean, _sigma(variant, encode(variant, x))
    rmse = math.sqrt(mean.value)
    return Number(rmse, mean.error / (2 * max(rmse, 1e-300))), _sigma(variant, encode(variant, x))


def _sigma(variant: Variant, z: Tensor) -> Number:
    """Root mean square of the likelihood's scale at codes z [rows, z_dim], where it has one."""
    total = 0.0
    for codes in z.split(variant.at_once):
        law = variant.model.x_given_z(codes)
        scale = getattr(getattr(law, "base_dist", law), "scale", None)
        if scale is None:
            return Number(None, reason="none")
        total += float(scale.square().mean()) * len(codes)
    return Number(math.sqrt(total / len(z)))


def _codes(variant: Variant, x: Tensor) -> tuple[Number, Number, list[float]]:
    active = Number(float((encode(variant, x).var(0) > ACTIVE).sum()))
    if not variant.has_bound:
        return active, Number(None, reason="MAP"), []
    kl, per_dim = divergence(variant, x)
    return active, mean_over_data(kl), [] if per_dim is None else per_dim.mean(0).sort(descending=True).values.tolist()


def divergence(variant: Variant, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """KL(q(z | x) || p(z)) of each datum, [rows], and by code where both factorise, [rows, z_dim].

    In closed form where torch knows one, else by 100 draws.
    """
    prior, total, per_dim = variant.model.prior(), [], []
    for rows in variant.in_model_units(x).split(variant.at_once):
        q = variant.guide.posterior(rows)
        try:
            total.append(kl_divergence(q, prior.expand(q.batch_shape)))
            if isinstance(q, Independent) and isinstance(prior, Independent):
                per_dim.append(kl_divergence(q.base_dist, prior.base_dist.expand(q.base_dist.batch_shape)))
        except NotImplementedError:
            z = q.sample((100,))
            total.append((q.log_prob(z) - prior.log_prob(z)).mean(0))
    return torch.cat(total), torch.cat(per_dim) if per_dim else None


def slerp(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Spherical interpolation of codes [..., d]: of directions (Shoemake, 1985), and of lengths linearly.

    Linear where codes are parallel or opposite, or one is at the origin.
    """
    lengths = a.norm(dim=-1, keepdim=True), b.norm(dim=-1, keepdim=True)
    tiny = torch.finfo(a.dtype).tiny  # a code at the origin has no direction
    here, there = (code / length.clamp_min(tiny) for code, length in zip((a, b), lengths, strict=True))
    angle = torch.arccos((here * there).sum(-1, keepdim=True).clamp(-1, 1))
    sine = torch.where(lengths[0] * lengths[1] > tiny, angle.sin(), 0.0)
    straight = sine < 1e-3  # near it the direction in between is one of rounding
    sine = torch.where(straight, 1.0, sine)
    direction = ((1 - t) * angle).sin() / sine * here + (t * angle).sin() / sine * there
    length = (1 - t) * lengths[0] + t * lengths[1]
    return torch.where(straight, (1 - t) * a + t * b, length * direction)


def interpolate(variant: Variant, a: Tensor, b: Tensor, t: float) -> Tensor:
    """Decode the spherical interpolation between the codes of data a and b [rows, *x_shape].

    Codes of a point mass lie on no shell: they are standardised first.
    """
    first, last = encode(variant, a), encode(variant, b)
    both = torch.cat([first, last])
    shift, width = (0.0, 1.0) if variant.has_bound else (both.mean(0), both.std(0).clamp_min(1e-6))
    return decode(variant, slerp((first - shift) / width, (last - shift) / width, t) * width + shift)


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
    made = {
        "frechet_reconstructions": reconstruct(variant, x),
        "frechet_prior": sample(variant, count, mean=means, seed=seed),
        "frechet_interpolations": interpolate(variant, x, x.roll(count // 2, 0), 0.5),
    }
    if ex_post is not None:
        made["frechet_ex_post"] = sample(variant, count, prior=ex_post, mean=means, seed=seed)
    made = {name: variant.in_model_units(data) for name, data in made.items()}
    target = features.apply(real)
    numbers = {name: Number(None, reason="no mixture") for name in ("frechet_ex_post", "nearest_ex_post")}
    numbers |= {name: Number(None, reason="no train") for name in ("frechet_floor", "nearest_held_out")}
    numbers |= {name: _distance(target, features.apply(data)) for name, data in made.items()}
    if train is not None:
        train = variant.in_model_units(train)
        some = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:count].to(train.device)
        numbers["frechet_floor"] = _distance(target, features.apply(train[some]))
        rows = max(1, variant.at_once // 2)  # each beside its five closest
        numbers["nearest_held_out"] = mean_over_data(nearest(real, train, rows))
        if ex_post is not None:
            numbers["nearest_ex_post"] = mean_over_data(nearest(made["frechet_ex_post"], train, rows))
    return numbers


def _distance(a: Tensor, b: Tensor) -> Number:
    """The Frechet distance of two samples of features [rows, d], where all of them are finite."""
    if not bool(a.isfinite().all() and b.isfinite().all()):
        return Number(None, reason="features not finite")
    return Number(*frechet_with_error(a, b))
