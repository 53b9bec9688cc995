"""The metrics: one function each, with its title, unit and direction beside it.

A metric takes a ``Subject`` and returns a ``Number``. Where the number would not be valid, it returns the reason
instead. The docstring of the function is the text of its column, and the functions stand in the order of the table. To
add a metric, add a function.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..coding import draw_data, mean_codes, mean_data, missing_mean
from ..estimate import Number, mean_over_data, share_over_data
from ..models.likelihoods import is_nominal
from ..models.networks import is_image
from ..noise import at_floor, noise_scale
from ..streams import chosen, seeded
from ..variant import Variant, evaluating
from .distances import frechet_with_error, nearest
from .features import Features
from .interpolation import interpolate, pairs
from .kl_terms import ACTIVE, kl_from_prior
from .lower_bounds import Bounds, bounds_under, held_out
from .pareto import k_threshold

__all__ = ["COLUMNS", "Column", "Subject", "measure", "metric"]

MOST = 5000  # a Frechet distance takes at most this many data


class Column(NamedTuple):
    """The description of one column of the table.

    Attributes:
        title: A short name.
        unit: Its unit.
        up: Whether larger is better, or None where neither direction is better.
        text: One line of explanation.
        means: For which data the number describes means of p(x | z), without observation noise: ``"always"``,
            ``"images"``, or an empty text for none.
    """

    title: str
    unit: str
    up: bool | None
    text: str
    means: str = ""


@dataclass(frozen=True)
class Subject:
    """A trained variant and its held-out data. Values that several metrics need are computed once.

    All data here are in the model's units.

    Attributes:
        variant: The pair, under ``evaluating``.
        y: Held-out data [rows, *x_shape].
        real: The data that samples are compared with: ``y``, or the pictures of which it is a binary draw.
        train: Training data, where they were given.
        mixture: The ex-post density, where there is one.
        features: The space of the Frechet distances.
        num_particles: The number K of draws per datum for the bounds.
        seed: Seed of every draw.
    """

    variant: Variant
    y: Tensor
    real: Tensor
    train: Tensor | None
    mixture: nn.Module | None
    features: Features
    num_particles: int
    seed: int

    @cached_property
    def bounds(self) -> list[Bounds]:
        """Bounds under the model's own prior and, where there is one, under the mixture, from the same draws."""
        own = self.variant.model.prior
        priors = [own] if self.mixture is None else [own, self.mixture]
        return bounds_under(self.variant, priors, self.y, self.num_particles, seed=self.seed)

    @cached_property
    def codes(self) -> Tensor:
        """The means of q(z | x), [rows, z_dim]."""
        return mean_codes(self.variant, self.y)

    @cached_property
    def kl(self) -> tuple[Tensor, Tensor | None]:
        """KL(q(z | x) || p(z)) of each datum, and of each unit where both distributions factorise, in nats."""
        return kl_from_prior(self.variant, self.y)

    @cached_property
    def is_nominal(self) -> bool:
        """Whether x are codes of categories, between which no difference and no distance means anything."""
        return is_nominal(self.variant.noise)

    @cached_property
    def has_mean(self) -> bool:
        """Whether p(x | z) has a mean."""
        return not self.is_nominal and missing_mean(self.variant, self.codes[: self.variant.at_once]) is None

    @property
    def no_mean(self) -> Number:
        """The reason of a number that is left empty where ``has_mean`` or ``can_sample`` is False."""
        return CATEGORIES if self.is_nominal else NO_MEAN

    @property
    def shows_means(self) -> bool:
        """Whether samples are means of p(x | z), without noise. This is usual for images, but not for tables."""
        return is_image(self.variant.model.x_shape)

    @property
    def can_sample(self) -> bool:
        """Whether samples can be compared with data, which needs a mean of p(x | z) where samples are means."""
        return self.has_mean or not (self.shows_means or self.is_nominal)

    @cached_property
    def compared(self) -> Tensor:
        """The indices of the rows that are compared, at most 5000, chosen at random. Every sample has as many rows."""
        rows = len(self.y) if self.train is None else min(len(self.y), len(self.train))
        return chosen(len(self.y), min(rows, MOST), self.seed)

    @cached_property
    def reference(self) -> Tensor:
        """The features of the real data that are compared."""
        return self.features.apply(self.real[self.compared])

    @cached_property
    def of_mixture(self) -> Tensor:
        """Samples from the ex-post mixture."""
        return self.samples(self.mixture)

    def samples(self, prior: nn.Module | None) -> Tensor:
        """Draw as many samples as data are compared, from ``prior``, or from the model's prior if it is None."""
        count = len(self.compared)
        return draw_data(self.variant, count, prior=prior, mean=self.shows_means, seed=self.seed)

    def distance(self, made: Tensor) -> Number:
        """The Frechet distance between generated data and the real data that are compared."""
        features = self.features.apply(made)
        if not bool(features.isfinite().all() and self.reference.isfinite().all()):
            return Number(None, reason="features not finite")
        value, error = frechet_with_error(self.reference, features)
        rows, dimensions = min(len(self.reference), len(features)), features.shape[1]
        is_rough = rows < 2 * dimensions
        return Number(value, error, f"its error is rough: {rows} rows, {dimensions} features" if is_rough else "")

    def to_nearest_training_datum(self, made: Tensor) -> Number:
        """The mean distance from generated data to the closest training datum."""
        if self.train is None:
            return NO_TRAIN
        at_once = max(1, self.variant.at_once // 2)  # five close rows per row are in memory too
        return mean_over_data(nearest(made, self.train, at_once))


COLUMNS: dict[str, Column] = {}
METRICS: dict[str, Callable[[Subject], Number]] = {}
Metric = Callable[[Subject], Number]

MAP, NO_MIXTURE, NO_TRAIN, NO_MEAN, CATEGORIES = (
    Number(None, reason=reason) for reason in ("MAP", "no mixture", "no train", "no mean", "categories")
)


def metric(title: str, unit: str, *, up: bool | None, means: str = "") -> Callable[[Metric], Metric]:
    """A decorator that adds a function to the table under its own name, with the attributes of ``Column``."""

    def enter(function: Metric) -> Metric:
        name, text = function.__name__, " ".join(str(function.__doc__).split()).rstrip(".")
        COLUMNS[name], METRICS[name] = Column(title, unit, up, text, means), function
        return function

    return enter


def measure(subject: Subject) -> dict[str, Number]:
    """Compute every metric of a subject, by name. Each metric has its own random streams."""
    found = {}
    for name, function in METRICS.items():
        with evaluating(subject.variant), seeded(subject.seed):
            found[name] = function(subject)
    return found


@metric("bound", "nats", up=True)
def bound(subject: Subject) -> Number:
    """ELBO of held-out data, per datum, in the data's units."""
    if not subject.variant.has_bound:
        return MAP
    return mean_over_data(subject.bounds[0].elbo)


@metric("IW bound", "nats", up=True)
def importance_weighted(subject: Subject) -> Number:
    """Importance-weighted bound with K draws per datum."""
    if not subject.variant.has_bound:
        return MAP
    return mean_over_data(subject.bounds[0].importance_weighted)


@metric("k-hat high", "share", up=False)
def heavy_tails(subject: Subject) -> Number:
    """Share of the data whose IW bound cannot be trusted, because the k-hat of their K weights is too large."""
    if not subject.variant.has_bound:
        return MAP
    k_hat = subject.bounds[0].k_hat
    if bool(torch.isposinf(k_hat).all()):
        return Number(None, reason="too few draws")
    return share_over_data((k_hat > k_threshold(subject.num_particles)).double())


@metric("bound, ex post", "nats", up=True)
def bound_ex_post(subject: Subject) -> Number:
    """ELBO with the fitted mixture as the prior."""
    if not subject.variant.has_bound:
        return MAP
    if subject.mixture is None:
        return NO_MIXTURE
    return mean_over_data(subject.bounds[1].elbo)


@metric("MAP", "nats", up=True)
def log_joint(subject: Subject) -> Number:
    """Log p(x, z) at the code of a point mass. It is not a bound, and cannot be compared with bounds."""
    if subject.variant.has_bound:
        return Number(None, reason="has a bound")
    if not subject.variant.codes_are_scored:
        return Number(None, reason="p(z) not in the objective")
    return mean_over_data(held_out(subject.variant, subject.y, 1))


@metric("bits/dim", "bits", up=False)
def bits_per_dim(subject: Subject) -> Number:
    """-bound / (D log 2), only for a probability mass."""
    if not subject.variant.has_bound:
        return MAP
    if not subject.variant.support.is_discrete:
        return Number(None, reason="a density")
    per_dim = -1 / (subject.y[0].numel() * math.log(2))
    return mean_over_data(subject.bounds[0].elbo * per_dim)


@metric("RMSE", "scaled x", up=False)
def rmse(subject: Subject) -> Number:
    """Root mean squared error of the reconstruction at the posterior mean."""
    if not subject.has_mean:
        return subject.no_mean
    difference = mean_data(subject.variant, subject.codes) - subject.y
    square = mean_over_data(difference.square().flatten(1).mean(1))
    if square.value is None or square.error is None:
        return square
    root = math.sqrt(square.value)
    return Number(root, square.error / (2 * max(root, 1e-300)))  # by the delta method


@metric("active", "units", up=None)
def active_units(subject: Subject) -> Number:
    """Number of units of the code whose posterior mean has a variance above 0.01 over data."""
    return Number(float((subject.codes.var(0) > ACTIVE).sum()))


@metric("KL", "nats", up=None)
def kl(subject: Subject) -> Number:
    """KL(q(z | x) || p(z)), mean over held-out data."""
    return mean_over_data(subject.kl[0]) if subject.variant.has_bound else MAP


@metric("sigma", "scaled x", up=None)
def sigma(subject: Subject) -> Number:
    """Root mean square of the likelihood's scale."""
    scale = noise_scale(subject.variant, subject.y)
    if scale is None:
        return Number(None, reason="none")
    return Number(scale, reason=at_floor(subject.variant, subject.y[: subject.variant.at_once]) or "")


@metric("F real", "F", up=None)
def frechet_floor(subject: Subject) -> Number:
    """Frechet distance of held-out data from training data, which is the floor of the other distances."""
    if subject.is_nominal:
        return CATEGORIES
    if subject.train is None:
        return NO_TRAIN
    generator = torch.Generator().manual_seed(subject.seed)
    rows = torch.randperm(len(subject.train), generator=generator)[: len(subject.compared)]
    return subject.distance(subject.train[rows.to(subject.train.device)])


@metric("F rec.", "F", up=False, means="always")
def frechet_reconstructions(subject: Subject) -> Number:
    """Frechet distance of reconstructions from the held-out data. They are means of p(x | z), without noise."""
    if not subject.has_mean:
        return subject.no_mean
    return subject.distance(mean_data(subject.variant, subject.codes[subject.compared]))


@metric("F prior", "F", up=False, means="images")
def frechet_prior(subject: Subject) -> Number:
    """Frechet distance of samples from the prior. For images they are means of p(x | z), without noise."""
    return subject.distance(subject.samples(None)) if subject.can_sample else subject.no_mean


@metric("F ex post", "F", up=False, means="images")
def frechet_ex_post(subject: Subject) -> Number:
    """Frechet distance of samples from the fitted mixture. For images they are means of p(x | z), without noise."""
    if subject.mixture is None:
        return NO_MIXTURE
    return subject.distance(subject.of_mixture) if subject.can_sample else subject.no_mean


@metric("F interp.", "F", up=False, means="always")
def frechet_interpolations(subject: Subject) -> Number:
    """Frechet distance of spherical midpoints of distinct held-out pairs. They are means of p(x | z), without noise.

    The pairs come from the data that they are compared with, so the distance is smaller than between independent
    samples.
    """
    if not subject.has_mean:
        return subject.no_mean
    ends = pairs(subject.y[subject.compared], subject.seed)
    return subject.distance(interpolate(subject.variant, *ends, 0.5))


@metric("near real", "scaled x", up=None)
def nearest_held_out(subject: Subject) -> Number:
    """Distance of held-out data to the nearest training datum."""
    if subject.is_nominal:
        return CATEGORIES
    return subject.to_nearest_training_datum(subject.real[subject.compared])


@metric("near ex post", "scaled x", up=None, means="images")
def nearest_ex_post(subject: Subject) -> Number:
    """Distance of ex-post samples to the nearest training datum. For images they are means, without noise.

    Samples that are far nearer than held-out data are copies.
    """
    if subject.mixture is None:
        return NO_MIXTURE
    return subject.to_nearest_training_datum(subject.of_mixture) if subject.can_sample else subject.no_mean
