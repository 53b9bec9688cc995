"""What should an estimator give? The targets of estimators, and the value and gradient of each for a pair and data.

Nothing here uses the code of an estimator. Each bound is written out a second time, as a formula in ``TARGETS``.
"""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from pyro.infer import ELBO
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from ..elbo import target_of
from ..elbo.kl import kl_per_unit
from ..estimate import standard_error
from ..streams import seeded
from ..variant import Variant
from .exact_pair import as_linear_gaussian, gaussian_guide
from .repeated_draws import parameters

__all__ = ["TARGETS", "Estimand", "Target", "Terms", "Truth", "estimand_of", "truth"]

BATCHES = 50  # the fewest batches of a long run; the spread between them gives its error
CODES = 40_000  # the most codes in one batch of a long run
NUMBERS = 4_000_000  # the most numbers of x in one batch of a long run


class Terms(NamedTuple):
    """The terms that a formula reads: log densities [draws, K, rows], or their expectations [1, 1, rows], in nats.

    Attributes:
        likelihood: log p(x | z).
        kl: log q(z | x) - log p(z).
        kl_per_dim: KL(q || p) of each coordinate in closed form, [rows, z_dim]; None if torch has no closed form.
        q: q(z | x), of batch shape [rows]; None if it is not normal.
    """

    likelihood: Tensor
    kl: Tensor
    kl_per_dim: Tensor | None
    q: MultivariateNormal | None

    @property
    def log_weight(self) -> Tensor:
        """The log weight, log p(x, z) - log q(z | x)."""
        return self.likelihood - self.kl


Formula = Callable[..., Tensor]


class Target(NamedTuple):
    """A bound that estimators are held against, given by formulas.

    A formula takes ``Terms`` and returns the bound [draws, rows] in nats. Its further arguments are the options that
    the bound depends on, and each receives the estimator's attribute of the same name. A formula sees nothing else of
    an estimator.

    Attributes:
        model: The bound that gives the value and the gradient for the model.
        guide: The bound that gives the gradient for the guide; None if it is that of the model.
        exact: Whether the bound is linear in the terms of the draws. Then the terms' expectations, where they are
            known, give the bound's expectation in closed form.
    """

    model: Formula
    guide: Formula | None = None
    exact: bool = False

    @property
    def options(self) -> tuple[str, ...]:
        """Names of the options that the formulas take."""
        formulas = [self.model] if self.guide is None else [self.model, self.guide]
        return tuple(sorted({option for formula in formulas for option in _options(formula)}))

    def bounds(self, terms: Terms, options: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """The bounds of the model and of the guide, [draws, rows] each."""
        model = _bound(self.model, terms, options)
        guide = model if self.guide is None else _bound(self.guide, terms, options)
        return model, guide


def _options(formula: Formula) -> list[str]:
    _, *options = inspect.signature(formula).parameters
    return options


def _bound(formula: Formula, terms: Terms, options: Mapping[str, Any]) -> Tensor:
    return formula(terms, **{name: options[name] for name in _options(formula)})


def _log_mean(log_weight: Tensor, dim: int = 1) -> Tensor:
    return log_weight.logsumexp(dim) - math.log(log_weight.shape[dim])


def _elbo(terms: Terms) -> Tensor:
    return terms.log_weight.mean(1)


def _beta(terms: Terms, beta: float) -> Tensor:
    return (terms.likelihood - beta * terms.kl).mean(1)


def _free_bits(terms: Terms, floor: float) -> Tensor:
    if terms.kl_per_dim is None:
        raise ValueError(
            "free bits have a truth only if the KL of each coordinate has a closed form, and this pair has none: "
            "use a guide and a prior whose coordinates are independent"
        )
    return terms.likelihood.mean(1) - terms.kl_per_dim.mean(0).clamp_min(floor).sum()


def _dip(terms: Terms, kind: int, off_diagonal: float, diagonal: float) -> Tensor:
    if terms.q is None:
        raise ValueError(
            "dip has a truth only if q(z | x) is normal, and that of this pair is not: use MeanField or FullRank"
        )
    means, identity = terms.q.loc, torch.eye(terms.q.loc.shape[1]).to(terms.q.loc)
    covariance = torch.cov(means.mT, correction=0).reshape(identity.shape)
    if kind == 2:
        covariance = covariance + terms.q.covariance_matrix.mean(0)
    weight = off_diagonal * (1 - identity) + diagonal * identity
    return _elbo(terms) - (weight * (covariance - identity) ** 2).sum()


def _iwae(terms: Terms) -> Tensor:
    return _log_mean(terms.log_weight)


def _miwae(terms: Terms, groups: int) -> Tensor:
    return _log_mean(terms.log_weight.unflatten(1, (-1, groups))).mean(1)


def _ciwae(terms: Terms, beta: float) -> Tensor:
    return beta * _elbo(terms) + (1 - beta) * _iwae(terms)


def _renyi(terms: Terms, alpha: float) -> Tensor:
    order = 1 - alpha
    return _log_mean(order * terms.log_weight) / order


TARGETS = {
    "elbo": Target(_elbo, exact=True),
    "beta": Target(_beta, exact=True),
    "free_bits": Target(_free_bits, exact=True),
    "dip": Target(_dip, exact=True),
    "iwae": Target(_iwae),
    "miwae": Target(_miwae),
    "piwae": Target(model=_iwae, guide=_miwae),
    "ciwae": Target(_ciwae),
    "renyi": Target(_renyi),
}


class Estimand(NamedTuple):
    """The quantity that an estimator estimates. Estimators of the same quantity share one ``truth``.

    Attributes:
        target: Name of the target in ``TARGETS``.
        num_particles: Draws K per datum.
        options: Name and value of each option of the target.
    """

    target: str
    num_particles: int
    options: tuple[tuple[str, Any], ...]


def estimand_of(estimator: ELBO, target: str | None = None) -> Estimand:
    """Return the quantity that an estimator estimates.

    Args:
        estimator: The estimator, from which the options of the target are read.
        target: Name of the target in ``TARGETS``. By default it is the estimator's attribute ``target``, Renyi's bound
            for Pyro's ``RenyiELBO``, and the ELBO for an estimator that names no target.

    Raises:
        ValueError: If the target is unknown, or the estimator lacks one of the target's options.
    """
    name = target or target_of(estimator) or "elbo"
    if name not in TARGETS:
        raise ValueError(f"unknown target {name!r}: wanted one of {', '.join(TARGETS)}")
    options = TARGETS[name].options
    missing = [option for option in options if not hasattr(estimator, option)]
    if missing:
        raise ValueError(
            f"the target {name!r} depends on {', '.join(missing)}, which {type(estimator).__name__} does not have: "
            "set an attribute of that name, or choose another target"
        )
    return Estimand(name, estimator.num_particles, tuple((option, getattr(estimator, option)) for option in options))


class Truth(NamedTuple):
    """The value and the gradient that an estimator of a loss should have on average.

    Attributes:
        value: The loss, in nats summed over the data set.
        value_error: Standard error of ``value``; 0 for a closed form.
        gradient: Gradient of the loss, [parameters], in the order of ``parameters``.
        gradient_error: Standard error of each coordinate of ``gradient``; 0 for a closed form.
        exact: Whether this is a closed form.
    """

    value: float
    value_error: float
    gradient: Tensor
    gradient_error: Tensor
    exact: bool


def truth(variant: Variant, y: Tensor, size: int, estimand: Estimand, *, seed: int = 0, draws: int = 2000) -> Truth:
    """Compute the value and gradient that an estimator should give, in closed form if there is one, else by a long run.

    There is a closed form for an ``exact`` target on a linear-Gaussian pair. A long run takes the plain gradient of the
    target's formula at draws of the guide. It reads the distributions of the pair, and uses no traces and no plates.

    Args:
        variant: A ``frozen`` pair.
        y: The data [rows, *x_shape], in the model's units.
        size: Number of data in the whole set.
        estimand: The quantity that is estimated; see ``estimand_of``.
        seed: Seed of the long run.
        draws: Replicates in the long run.

    Raises:
        ValueError: If the target is free bits, and the KL of each coordinate has no closed form.
    """
    scale = size / len(y)
    with seeded(seed):
        expectations = _expectations(variant, y) if TARGETS[estimand.target].exact else None
        if expectations is not None:
            value, gradient = _value_and_gradient(variant, expectations, estimand, scale)
            return Truth(float(value), 0.0, gradient, torch.zeros_like(gradient), exact=True)
        batches = [
            _value_and_gradient(variant, terms, estimand, scale)
            for terms in _long_run(variant, y, estimand.num_particles, draws)
        ]
    values = torch.stack([value for value, _ in batches])
    gradients = torch.stack([gradient for _, gradient in batches])
    value_error, gradient_error = float(standard_error(values)), standard_error(gradients)
    return Truth(float(values.mean()), value_error, gradients.mean(0), gradient_error, exact=False)


def _expectations(variant: Variant, y: Tensor) -> Terms | None:
    """Expectations of the terms in closed form, [1, 1, rows]; None unless the pair is linear-Gaussian."""
    model, q = as_linear_gaussian(variant), gaussian_guide(variant, y)
    if model is None or q is None:
        return None
    prior = MultivariateNormal(torch.zeros_like(q.loc), scale_tril=torch.eye(q.loc.shape[1]).to(q.loc))
    kl = kl_divergence(q, prior)
    likelihood = model.bound(y.flatten(1), q) + kl
    kl_per_dim = kl_per_unit(variant.guide.posterior(y), variant.model.prior())
    return Terms(likelihood[None, None], kl[None, None], kl_per_dim, q)


def _long_run(variant: Variant, y: Tensor, num_particles: int, draws: int) -> Iterator[Terms]:
    """Terms of at least ``draws`` replicates, in batches that fit into memory."""
    most_codes = min(CODES, NUMBERS // y[0].numel())
    codes_per_replicate = num_particles * len(y)
    at_once = max(1, min(draws // BATCHES, most_codes // codes_per_replicate))
    for _ in range(max(BATCHES, draws // at_once)):
        q, prior = variant.guide.posterior(y), variant.model.prior()
        z = q.rsample((at_once, num_particles))
        likelihood = variant.model.x_given_z(z).log_prob(y)
        kl = q.log_prob(z) - prior.log_prob(z)
        yield Terms(likelihood, kl, kl_per_unit(q, prior), gaussian_guide(variant, y))


def _value_and_gradient(variant: Variant, terms: Terms, estimand: Estimand, scale: float) -> tuple[Tensor, Tensor]:
    """The loss [] and its gradient [parameters], averaged over the draws of the terms."""
    bounds = TARGETS[estimand.target].bounds(terms, dict(estimand.options))
    loss_of_model, loss_of_guide = (-scale * bound.mean(0).sum() for bound in bounds)
    gradient = []
    for name, group in parameters(variant).items():
        loss = loss_of_guide if name == "encoder" else loss_of_model
        parts = torch.autograd.grad(loss, group, retain_graph=True, allow_unused=True, materialize_grads=True)
        gradient += [part.flatten().double() for part in parts]
    return loss_of_model.detach().double(), torch.cat(gradient)
