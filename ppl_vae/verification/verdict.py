"""verify: hold an estimator against the linear-Gaussian model, where value and gradient are known."""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from pyro.infer import ELBO, RenyiELBO
from torch import Tensor
from torch.distributions import Independent, MultivariateNormal, kl_divergence

from ..elbo import estimator as estimator_of
from ..models import LinearGaussian
from ..streams import seeded, stream_seed
from ..variant import Variant
from .exact_pair import gaussian_guide, linear_gaussian, linear_pair
from .repeated_draws import frozen, parameters, replicates, spans

__all__ = ["LIMIT", "TARGETS", "Truth", "Verdict", "hold_against_truth", "target_of", "truth", "verify"]

LIMIT = 5.0  # |z| above it fails: one in two million for a normal error
FEWEST = 100  # draws of a verdict, a fifth of them on the part of the data
ROUNDING = 1e-12  # error of sums in double precision, relative to the value: what counts where there is no variance
PART = 5  # the share of the data, 1 / PART, on which the scale of the plate is tried
BATCHES = 50  # of a long run, at the least: their spread is its error
CODES, NUMBERS = 40_000, 4_000_000  # at the most in one of them: codes, and numbers of x


class Terms(NamedTuple):
    """Log densities [draws, K, rows], or their expectations where ``draws`` and K are 1.

    Attributes:
        likelihood: Log p(x | z).
        kl: Log q(z | x) - log p(z).
        kl_per_dim: KL(q || p) of each coordinate in closed form, [rows, z_dim], where torch knows one.
    """

    likelihood: Tensor
    kl: Tensor
    kl_per_dim: Tensor | None

    @property
    def log_weight(self) -> Tensor:
        return self.likelihood - self.kl


def _log_mean(log_weight: Tensor, dim: int = 1) -> Tensor:
    return log_weight.logsumexp(dim) - math.log(log_weight.shape[dim])


def _grouped(terms: Terms, groups: int) -> Tensor:
    return _log_mean(terms.log_weight.unflatten(1, (-1, groups))).mean(1)


def _floored(terms: Terms, floor: float) -> Tensor:
    if terms.kl_per_dim is None:
        raise ValueError("free bits are held against a KL in closed form for each coordinate, and this pair has none")
    return terms.likelihood.mean(1) - terms.kl_per_dim.mean(0).clamp_min(floor).sum()


# What estimators are held against, written out a second time: the bounds [draws, rows] whose gradients the model and
# the guide follow.
TARGETS: dict[str, Callable[[Terms, Any], tuple[Tensor, Tensor]]] = {
    "elbo": lambda terms, e: (terms.log_weight.mean(1),) * 2,
    "beta": lambda terms, e: ((terms.likelihood - e.beta * terms.kl).mean(1),) * 2,
    "free_bits": lambda terms, e: (_floored(terms, e.floor),) * 2,
    "iwae": lambda terms, e: (_log_mean(terms.log_weight),) * 2,
    "miwae": lambda terms, e: (_grouped(terms, e.groups),) * 2,
    "piwae": lambda terms, e: (_log_mean(terms.log_weight), _grouped(terms, e.groups)),
    "ciwae": lambda terms, e: (e.beta * terms.log_weight.mean(1) + (1 - e.beta) * _log_mean(terms.log_weight),) * 2,
    "renyi": lambda terms, e: (_log_mean((1 - e.alpha) * terms.log_weight) / (1 - e.alpha),) * 2,
}
IN_EXPECTATION = ("elbo", "beta", "free_bits")  # linear in the draws' terms: exact where their expectations are


class Truth(NamedTuple):
    """Value and gradient of a loss, with their standard errors; ``exact`` where there are none.

    Attributes:
        value, value_error: In nats summed over the data set.
        gradient, gradient_error: [parameters].
        exact: Whether it is a closed form.
    """

    value: float
    value_error: float
    gradient: Tensor
    gradient_error: Tensor
    exact: bool


def _instance(estimator: ELBO | str) -> ELBO:
    found: Any = estimator_of(estimator) if isinstance(estimator, str) else estimator
    if not isinstance(found, ELBO) or not hasattr(found, "loss_and_grads"):
        name = found.__name__ if isinstance(found, type) else type(found).__name__
        raise ValueError(f"verify wants a pyro.infer.ELBO with loss_and_grads, an instance or a name, got {name}")
    return found


def target_of(estimator: ELBO, target: str | None = None) -> str:
    """The name in ``TARGETS`` of what an estimator estimates; Pyro's are known, others carry it or are told.

    Raises:
        ValueError: If the name is unknown.
    """
    inferred = "renyi" if isinstance(estimator, RenyiELBO) else getattr(estimator, "target", "elbo")
    name = inferred if target is None else target
    if name not in TARGETS:
        raise ValueError(f"unknown target {name!r}: wanted one of {', '.join(TARGETS)}")
    return name


def truth(
    variant: Variant, y: Tensor, size: int, estimator: ELBO, target: str, *, seed: int = 0, draws: int = 2000
) -> Truth:
    """What an estimator should give: in closed form for a linear-Gaussian pair, else by a long run without its code.

    The long run is the plain gradient of the target's formula at draws of the guide, from the distributions of the
    pair: no traces, no plates, no reweighted paths.

    Args:
        variant: A ``frozen`` pair.
        y: [rows, *x_shape], in the model's units.
        size: Data in the whole set.
        estimator: For its number of draws and its options.
        target: Of ``TARGETS``.
        seed: Of the long run.
        draws: Replicates of the long run.
    """
    with seeded(seed):
        exact = _expectations(variant, y) if target in IN_EXPECTATION else None
        many = _long_run(variant, y, estimator.num_particles, draws) if exact is None else iter([exact])
        found = [_value_and_gradient(variant, terms, estimator, target, size / len(y)) for terms in many]
    values, gradients = torch.stack([value for value, _ in found]), torch.stack([gradient for _, gradient in found])
    if exact is not None:
        return Truth(float(values), 0.0, gradients[0], torch.zeros_like(gradients[0]), True)
    root = math.sqrt(len(found))
    return Truth(float(values.mean()), float(values.std() / root), gradients.mean(0), gradients.std(0) / root, False)


def _expectations(variant: Variant, y: Tensor) -> Terms | None:
    model, q = linear_gaussian(variant), gaussian_guide(variant, y)
    if model is None or q is None:
        return None
    prior = MultivariateNormal(torch.zeros_like(q.loc), scale_tril=torch.eye(q.loc.shape[1]).to(q.loc))
    kl = kl_divergence(q, prior)
    return Terms((model.bound(y.flatten(1), q) + kl)[None, None], kl[None, None], _kl_per_dim(variant, y))


def _long_run(variant: Variant, y: Tensor, num_particles: int, draws: int) -> Iterator[Terms]:
    codes = num_particles * len(y)
    at_once = max(1, min(draws // BATCHES, min(CODES, NUMBERS // y[0].numel()) // codes))
    for _ in range(max(BATCHES, draws // at_once)):
        q, prior = variant.guide.posterior(y), variant.model.prior()
        z = q.rsample((at_once, num_particles))
        likelihood = variant.model.x_given_z(z).log_prob(y)
        yield Terms(likelihood, q.log_prob(z) - prior.log_prob(z), _kl_per_dim(variant, y))


def _kl_per_dim(variant: Variant, y: Tensor) -> Tensor | None:
    q, prior = variant.guide.posterior(y), variant.model.prior()
    if not isinstance(q, Independent) or not isinstance(prior, Independent):
        return None
    try:
        return kl_divergence(q.base_dist, prior.base_dist.expand(q.base_dist.batch_shape))
    except NotImplementedError:
        return None


def _value_and_gradient(
    variant: Variant, terms: Terms, estimator: ELBO, target: str, scale: float
) -> tuple[Tensor, Tensor]:
    losses = [-scale * bound.mean(0).sum() for bound in TARGETS[target](terms, estimator)]
    gradient = []
    for name, group in parameters(variant).items():
        loss = losses[name == "encoder"]
        parts = torch.autograd.grad(loss, group, retain_graph=True, allow_unused=True, materialize_grads=True)
        gradient += [part.flatten().double() for part in parts]
    return losses[0].detach().double(), torch.cat(gradient)


class Verdict(NamedTuple):
    """What ``verify`` found.

    Attributes:
        z: The largest z-score by what was compared: the value, and the gradient of each group of parameters; from the
            whole data set, and from a part of it that the plate scales up.
        draws: Replicates of the estimator.
    """

    z: dict[str, float]
    draws: int

    @property
    def passed(self) -> bool:
        """Whether every |z| is below 5."""
        return all(abs(z) < LIMIT for z in self.z.values())

    def __str__(self) -> str:
        lines = [f"{'passed' if self.passed else 'FAILED'}: {self.draws} draws, |z| below {LIMIT:g} wanted"]
        lines += [f"{name:<44}{z:+12.3g}{'' if abs(z) < LIMIT else '   FAILED'}" for name, z in self.z.items()]
        return "\n".join(lines)


def verify(estimator: ELBO | str, *, target: str | None = None, draws: int = 600, seed: int = 0) -> Verdict:
    """Hold an estimator's value and gradient against the truth on a linear-Gaussian pair.

    With as many draws as it takes unless told, an error of 5 % in the value, in its KL alone, or in the gradient is
    beyond 5 standard errors; so is a plate scale inside the weights.

    Args:
        estimator: Any ``pyro.infer.ELBO`` with ``loss_and_grads``, or a name as in ``pair``.
        target: What it estimates, of ``TARGETS``; its own ``target``, or the ELBO, unless given.
        draws: Replicates of the estimator.
        seed: Of all draws.

    Example:
        >>> from pyro.infer import Trace_ELBO
        >>> verify(Trace_ELBO()).passed
        True

    Raises:
        ValueError: If the target is unknown, or ``draws`` is below 100.
    """
    with seeded(seed):
        model = LinearGaussian(torch.randn(5, 2).double(), torch.randn(5).double(), torch.tensor(0.6).double())
        y = 2 * torch.randn(100, 5).double()
        variant = linear_pair(model, shift=0.3, stretch=1.3)
    return hold_against_truth(variant, y, estimator, target=target, draws=draws, seed=seed)


def hold_against_truth(
    variant: Variant, y: Tensor, estimator: ELBO | str, *, target: str | None = None, draws: int = 600, seed: int = 0
) -> Verdict:
    """``verify`` on a pair and data [rows, *x_shape] of one's choice, in the model's units; see there."""
    estimator = _instance(estimator)
    if draws < FEWEST:
        raise ValueError(f"draws must be at least {FEWEST}, fewer see too little, got {draws!r}")
    name, variant = target_of(estimator, target), frozen(variant)
    z: dict[str, float] = {}
    first = 3 * seed  # three seeds per verdict, so that the verdicts of neighbouring seeds share no draws
    for step, (label, part) in enumerate({"": 1, f", 1 / {PART} of the data": PART}.items()):
        size = part * len(y)
        found = list(replicates(variant, estimator, (y, size), draws // part, first + 1 + step))
        expected = truth(variant, y, size, estimator, name, seed=stream_seed(first + 3, 0))
        values = torch.tensor([replicate.value for replicate in found]).double()
        gradients = torch.stack([replicate.gradient for replicate in found])
        value, error = (torch.tensor([number]).double() for number in expected[:2])
        z[f"value{label}"] = _z(values[:, None], value, error)
        for group, span in spans(variant).items():
            z[f"gradient, {group}{label}"] = _z(
                gradients[:, span], expected.gradient[span], expected.gradient_error[span], abs(expected.value)
            )
    return Verdict(z, draws)


def _z(samples: Tensor, expected: Tensor, expected_error: Tensor, size: float = 0.0) -> float:
    """The largest z-score of the mean of samples [draws, n]: of a coordinate, or along what is expected [n].

    ``size`` is that of the numbers which the samples are differences of, where it is more than their own.
    The error is estimated too, so that the score is Student's; what is returned has a normal's tail probability
    (Wallace, Bounds on Normal Approximations to Student's and the Chi-Square Distributions, 1959).
    """
    tiny = torch.finfo(expected.dtype).tiny
    along = expected / expected.norm().clamp_min(tiny)
    samples = torch.cat([samples, (samples @ along)[:, None]], 1)
    expected_error = torch.cat([expected_error, (expected_error * along).norm()[None]])
    expected = torch.cat([expected, (expected @ along)[None]])
    error = (samples.var(0) / len(samples) + expected_error.square()).sqrt()
    score = (samples.mean(0) - expected) / (error + ROUNDING * expected.norm().clamp_min(size)).clamp_min(tiny)
    largest, free = score[score.abs().argmax()], len(samples) - 1
    normal = (free * (largest.square() / free).log1p()).sqrt() * (8 * free + 1) / (8 * free + 3)
    return float(largest.sign() * normal)
