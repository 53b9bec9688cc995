"""The objective: properties that it has, and formulas from print that do not have them."""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.integrate
import scipy.optimize
import scipy.special
import scipy.stats
import torch
from pyro import poutine
from pyro.infer import ELBO, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn

from ppl_vae import VARIANTS, Variant, pair
from ppl_vae.elbo import PathwiseELBO
from ppl_vae.guides import ConstantVariance, FullRank, Guide, MeanField, PointMass
from ppl_vae.models import (
    Bernoulli,
    ContinuousBernoulli,
    Gaussian,
    Heteroscedastic,
    JacobianNorm,
    KLWeight,
    Laplace,
    LearnedSigma,
    Scale,
    StandardNormal,
    WeightPrior,
    constant,
    cyclical,
    linear,
    switch,
)

SIGMA, X = 0.5, 1.0  # z ~ Normal(0, 1), x ~ Normal(z, SIGMA), one datum x = X
BEST = X / (1 + SIGMA**2), SIGMA / math.sqrt(1 + SIGMA**2)  # loc and scale of p(z | x)
EVIDENCE = scipy.stats.norm.logpdf(X, 0, math.sqrt(1 + SIGMA**2))
GUIDES = [(0.9, 0.1), (-0.3, 1.4), (0.2, 0.7), (2.0, 0.05), BEST]


def of_one_code(loc: float = 0.0, scale: float = 1.0, *, likelihood: nn.Module | None = None, **parts: Any) -> Variant:
    """A pair with one code coordinate and one data coordinate, and q(z | x) = Normal(loc, scale) for every x."""
    decoder = nn.Linear(1, 1)
    decoder.weight.data.fill_(1.0)
    decoder.bias.data.zero_()
    variant = pair(
        (1,),
        1,
        **{"likelihood": likelihood or Gaussian(SIGMA), "encoder": nn.Identity(), "decoder": decoder, **parts},
    )
    for head, value in zip(variant.guide.heads, (loc, math.log(scale)), strict=False):
        head.weight.data.zero_()
        head.bias.data.fill_(value)
    return variant


def sites(variant: Variant, x: Tensor, z: Tensor) -> tuple[Any, Any, Any]:
    """The sites q(z | x), p(z) and p(x | z) in Pyro's traces at given codes, with their log_prob per datum."""
    given = {"z": z}
    guide = poutine.trace(poutine.condition(variant.guide, given)).get_trace(x)
    model = poutine.trace(poutine.condition(variant.model, given)).get_trace(x)
    guide.compute_log_prob()
    model.compute_log_prob()
    return guide.nodes["z"], model.nodes["z"], model.nodes["x"]


class Terms(NamedTuple):
    """Expectations under q, in nats."""

    log_q: Tensor
    log_prior: Tensor
    log_x: Tensor

    @property
    def kl(self) -> Tensor:
        return self.log_q - self.log_prior

    @property
    def bound(self) -> Tensor:
        return self.log_x - self.kl


def expected(variant: Variant, x: float = X) -> Terms:
    """The terms of the objective by Gauss-Hermite quadrature, without random draws. Each row of the batch is a node."""
    nodes, weights = (torch.as_tensor(part) for part in np.polynomial.hermite_e.hermegauss(40))
    data = torch.full((40, 1), x)
    q = variant.guide.posterior(data)
    traced = sites(variant, data, (q.mean + q.stddev * nodes.unsqueeze(1)).detach())
    return Terms(*(weights @ site["log_prob"] / weights.sum() for site in traced))


def integral(function: Callable[[float], float], low: float, high: float) -> float:
    return scipy.integrate.quad(function, low, high, epsabs=1e-11, epsrel=1e-11, limit=200)[0]


def close(value: Any, truth: Any, tolerance: float = 1e-8) -> bool:
    """Whether values are equal up to an absolute tolerance. NaN is never close."""
    return bool(np.all(np.abs(np.asarray(value, float) - np.asarray(truth, float)) < tolerance))


# A table of mutations. Each has a property, a form of the library that has it, and a form from print that lacks it.


class Mutation(NamedTuple):
    holds: Callable[[Any], bool]
    right: Any
    wrong: Any
    also_right: Any = None  # a form from print that is right, to test the property itself


MUTATIONS: dict[str, Callable[[], Mutation]] = {}


def mutation(build: Callable[[], Mutation]) -> Callable[[], Mutation]:
    MUTATIONS[build.__name__] = build
    return build


def kl(loc: float, scale: float) -> float:
    """KL(q || p) from the traces."""
    return expected(of_one_code(loc, scale)).kl.item()


def kl_by_quadrature(loc: float, scale: float) -> float:
    q, p = scipy.stats.norm(loc, scale), scipy.stats.norm()
    return integral(lambda z: q.pdf(z) * (q.logpdf(z) - p.logpdf(z)), loc - 12 * scale, loc + 12 * scale)


def is_the_kl(form: Callable[[float, float], float]) -> bool:
    return all(close(form(*at), kl_by_quadrature(*at)) for at in [(1.0, 0.5), (-0.7, 2.0), (0.2, 0.1), (0.0, 1.0)])


@mutation
def kl_without_half() -> Mutation:
    return Mutation(
        is_the_kl,
        right=kl,
        wrong=lambda m, s: m**2 + s**2 - math.log(s**2) - 1,
        also_right=lambda m, s: (m**2 + s**2 - 2 * math.log(s) - 1) / 2,
    )


@mutation
def kl_with_log_scale_for_log_variance() -> Mutation:
    return Mutation(is_the_kl, right=kl, wrong=lambda m, s: (m**2 + s**2 - math.log(s) - 1) / 2)


@mutation
def kl_of_a_product_of_squares() -> Mutation:
    def holds(form: Callable[[float, float], float]) -> bool:
        positive = all(form(*at) > 0 for at in [(1.0, 0.5), (-2.0, 0.9), (0.3, 3.0), (0.01, 1.0)])
        in_loc = form(0, 1.1) < form(0.5, 1.1) < form(-3, 1.1) < form(100, 1.1)
        in_scale = form(0, 1e-4) > form(0, 0.1) > 0.5 and 1 < form(0, 3) < form(0, 100)
        return close(form(0, 1), 0) and positive and in_loc and in_scale

    return Mutation(
        holds,
        right=kl,
        wrong=lambda m, s: s**2 * m**2 - math.log(s) - 1,
        also_right=lambda m, s: (m**2 + s**2 - 2 * math.log(s) - 1) / 2,
    )


@mutation
def kl_of_the_raw_output() -> Mutation:
    """The KL is that of the distribution of the codes, not of the network output before it becomes a scale."""

    def drawn(raw: float) -> float:
        return of_one_code(0.0, math.exp(raw)).guide.posterior(torch.zeros(1, 1)).stddev.item()

    def holds(form: Callable[[float], float]) -> bool:
        return all(close(form(raw), kl_by_quadrature(0, drawn(raw))) and drawn(raw) > 0 for raw in (-3, -2, 0.4))

    return Mutation(
        holds, right=lambda raw: kl(0, math.exp(raw)), wrong=lambda raw: (raw**2 - math.log(raw**2) - 1) / 2
    )


@mutation
def variance_as_a_scale() -> Mutation:
    def holds(law: Callable[[float], Any]) -> bool:
        """Whether the draws have the variance ``exp(log_var)``, up to 4 standard errors."""
        error = 4 * math.sqrt(2 / 100_000)
        return all(abs(law(lv).sample((100_000,)).var() / math.exp(lv) - 1) < error for lv in (-2.0, 0.0, 1.0))

    return Mutation(
        holds,
        right=lambda log_var: of_one_code(0.3, math.exp(log_var / 2)).guide.posterior(torch.zeros(1, 1)),
        wrong=lambda log_var: dist.Normal(0.3, math.exp(log_var)),
    )


def is_a_bound(form: Callable[[float, float], float]) -> bool:
    """Whether a form is never above the log evidence, and equals it at the posterior."""
    return all(form(*at) <= EVIDENCE + 1e-10 for at in GUIDES) and close(form(*BEST), EVIDENCE, 1e-10)


def bound(loc: float, scale: float) -> float:
    return expected(of_one_code(loc, scale)).bound.item()


@mutation
def bound_with_a_plus() -> Mutation:
    def plus(loc: float, scale: float) -> float:
        terms = expected(of_one_code(loc, scale))
        return (terms.log_x + terms.kl).item()

    return Mutation(is_a_bound, right=bound, wrong=plus)


def log_posterior(loc: float, scale: float) -> float:
    """E_q log p(z | x), in closed form."""
    return scipy.stats.norm.logpdf(loc, *BEST) - scale**2 / (2 * BEST[1] ** 2)


@mutation
def bound_with_the_posterior_for_the_likelihood() -> Mutation:
    return Mutation(is_a_bound, right=bound, wrong=lambda m, s: log_posterior(m, s) - kl(m, s))


def kl_to_posterior(loc: float, scale: float) -> float:
    p = scipy.stats.norm(*BEST)
    return -scipy.stats.norm(loc, scale).entropy() - p.logpdf(loc) + scale**2 / (2 * BEST[1] ** 2)


@mutation
def evidence_from_a_sum_of_the_wrong_sign() -> Mutation:
    def free_energy(loc: float, scale: float) -> float:
        """E_q log q(z) - E_q log p(z, x)."""
        terms = expected(of_one_code(loc, scale))
        return (terms.log_q - terms.log_prior - terms.log_x).item()

    return Mutation(
        lambda form: all(close(form(*at), EVIDENCE, 1e-9) for at in GUIDES),
        right=lambda m, s: bound(m, s) + kl_to_posterior(m, s),
        wrong=lambda m, s: kl_to_posterior(m, s) + free_energy(m, s),
        also_right=lambda m, s: kl_to_posterior(m, s) - free_energy(m, s),
    )


@mutation
def evidence_is_a_constant() -> Mutation:
    def evidence(weight: float) -> float:
        return scipy.stats.norm.logpdf(X, 0, math.sqrt(weight**2 + SIGMA**2))

    def slope() -> float:
        """The derivative of the bound with respect to the decoder's weight, at the posterior."""
        variant = of_one_code(*BEST)
        return torch.autograd.grad(expected(variant).bound, variant.model.decoder.weight)[0].item()

    return Mutation(
        lambda form: close(form(), (evidence(1 + 1e-5) - evidence(1 - 1e-5)) / 2e-5), right=slope, wrong=lambda: 0.0
    )


class LaplacePrior(nn.Module):
    def forward(self) -> Any:
        return dist.Laplace(torch.zeros(1), 1.0).to_event(1)


@mutation
def prior_that_gives_the_squared_error() -> Mutation:
    reference = {"normal": scipy.stats.norm.logpdf(X, 0.4, SIGMA), "laplace": scipy.stats.laplace.logpdf(X, 0.4, SIGMA)}

    def reconstruction(prior: str, likelihood: str) -> float:
        parts = {"normal": (StandardNormal(1), Gaussian(SIGMA)), "laplace": (LaplacePrior(), Laplace(SIGMA))}
        variant = of_one_code(prior=parts[prior][0], likelihood=parts[likelihood][1])
        return sites(variant, torch.full((1, 1), X), torch.full((1, 1), 0.4))[2]["log_prob"].item()

    return Mutation(
        lambda form: all(close(form(prior, name), reference[name]) for prior in reference for name in reference),
        right=reconstruction,
        wrong=lambda prior, likelihood: reference[prior],
    )


@mutation
def loss_called_a_bound() -> Mutation:
    variant = of_one_code(*BEST)
    loss = variant.loss.loss(variant.model, variant.guide, torch.full((1, 1), X))
    return Mutation(lambda value: close(value, EVIDENCE, 1e-10), right=-loss, wrong=loss)


@mutation
def kl_only_on_the_unit_interval() -> Mutation:
    """The KL is between distributions of z. Other units of x do not change it, and shift log p(x | z) by ``-log a``."""

    def rescaled(a: float) -> tuple[float, float]:
        variant = of_one_code(0.9, 0.1, likelihood=Gaussian(a * SIGMA))
        variant.model.decoder.weight.data.fill_(a)
        variant.model.decoder.bias.data.fill_(7.0)
        terms = expected(variant, a * X + 7.0)
        return terms.kl.item(), terms.log_x.item()

    def between_grey_values(a: float) -> tuple[float, float]:
        x, y = a * X / 2, a * 0.9 / 2
        kl = x * np.log(x / y) + (1 - x) * np.log(np.abs((1 - x) / (1 - y)))
        return kl, rescaled(a)[1]

    def holds(form: Callable[[float], tuple[float, float]]) -> bool:
        kl, log_x = form(1.0)
        return all(close(form(a), (kl, log_x - math.log(a)), 1e-9) for a in (0.1, 3.0, 255.0))

    return Mutation(holds, right=rescaled, wrong=between_grey_values)


@mutation
def squashed_without_its_jacobian() -> Mutation:
    """A density in the units of the data integrates to one over the data."""
    scale, p = Scale((), 3.0, 4.0), ContinuousBernoulli()(torch.tensor(0.7))

    def in_data_units(x: float) -> float:
        return (p.log_prob(scale(torch.tensor(x))) + scale.log_jacobian()).exp().item()

    def squashed(x: float) -> float:
        return p.log_prob(torch.tensor((x - 3) / 4)).exp().item()

    return Mutation(lambda density: close(integral(density, 3, 7), 1), right=in_data_units, wrong=squashed)


def prior_costs(rows: int, size: int | None = None) -> tuple[float, float]:
    """-log p(z) and -log p(weights) in the loss of ``rows`` equal data."""
    variant = of_one_code(penalties=[WeightPrior(0.3)])
    x = torch.full((rows, 1), X)
    trace = poutine.trace(poutine.condition(variant.model, {"z": 0.8 * x})).get_trace(x, size)
    trace.compute_log_prob()
    return -trace.nodes["z"]["log_prob_sum"].item(), -trace.nodes["penalty_0"]["log_prob_sum"].item()


@mutation
def code_penalty_as_a_weight_penalty() -> Mutation:
    """The prior of codes counts once per datum, that of weights once: with more data, it counts less."""

    def holds(form: Callable[[int], tuple[float, float]]) -> bool:
        codes, weights = form(3)
        return close(form(6), (2 * codes, weights)) and close(form(60), (20 * codes, weights))

    return Mutation(holds, right=prior_costs, wrong=lambda rows: prior_costs(3))


@mutation
def weight_decay_as_a_term_of_each_datum() -> Mutation:
    truth = -scipy.stats.norm.logpdf(1.0, scale=0.3)  # the only weight of the decoder is 1

    def holds(form: Callable[[int, int], float]) -> bool:
        return all(close(form(rows, size), truth) for rows in (1, 4) for size in (4, 60_000))

    return Mutation(holds, right=lambda rows, size: prior_costs(rows, size)[1], wrong=lambda rows, size: size * truth)


@mutation
def squared_error_over_twice_the_scale() -> Mutation:
    def best_scale(form: Callable[..., float], residual: float) -> float:
        return math.exp(
            scipy.optimize.minimize_scalar(
                lambda t: form(residual, 0.0, math.exp(t)), (-9, 5), method="brent", options={"xtol": 1e-10}
            ).x
        )

    def holds(form: Callable[[float, float, float], float]) -> bool:
        masses = [integral(lambda x, s=s: math.exp(-form(x, 0.0, s)), -30 * s, 30 * s) for s in (0.1, 3.0)]
        covariant = all(close(best_scale(form, a * 0.4) / a, best_scale(form, 0.4), 1e-5) for a in (0.2, 7.0))
        return close(masses, 1) and covariant

    return Mutation(
        holds,
        right=lambda x, loc, s: -LearnedSigma(s, floor=-40.0)(torch.tensor(loc)).log_prob(torch.tensor(x)).item(),
        wrong=lambda x, loc, s: (x - loc) ** 2 / (2 * s) + math.log(s) + math.log(2 * math.pi) / 2,
    )


@mutation
def scale_that_sees_x() -> Mutation:
    """A scale may depend on the code, but not on the datum that it scores: the mass would then exceed one."""
    grid = torch.linspace(-1, 1, 40_001).unsqueeze(1)
    variant = of_one_code(
        likelihood=Heteroscedastic(0.1, stage=0.0), decoder=nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 2))
    )

    def mass(log_density: Tensor) -> float:
        return torch.trapezoid(log_density.exp(), grid[:, 0]).item()

    return Mutation(
        lambda log_density: mass(log_density) < 1 + 1e-6,
        right=sites(variant, grid, torch.full_like(grid, 0.3))[2]["log_prob"].detach(),
        wrong=dist.Normal(0.0, grid[:, 0].abs() + 0.01).log_prob(grid[:, 0]),
    )


@mutation
def mean_squared_error_as_a_density() -> Mutation:
    """A reconstruction term is minus a log density, and the density integrates to one over all x."""
    side = torch.linspace(-6, 6, 241)
    plane = torch.cartesian_prod(side, side)
    variant = VARIANTS["ae"]((2,), 1, sigma=0.4, decoder=nn.Linear(1, 2))
    z = torch.full((len(plane), 1), 0.3)
    (loc,) = variant.model.outputs(z[:1])

    return Mutation(
        lambda nll: close((-nll).exp().sum() * 0.05**2, 1),
        right=-sites(variant, plane, z)[2]["log_prob"].detach(),
        wrong=(plane - loc.detach()).square().mean(1),
    )


@mutation
def sum_of_squares_as_a_density() -> Mutation:
    case = mean_squared_error_as_a_density()
    return case._replace(wrong=2 * case.wrong)


@mutation
def likelihood_that_vanishes_with_the_noise_of_codes() -> Mutation:
    """When q narrows to a point, p(x | z) does not change. Only q loses its density."""

    def reconstruction(scale: float) -> float:
        return expected(of_one_code(0.6, 1.0, guide=lambda *args: ConstantVariance(*args, scale=scale))).log_x.item()

    return Mutation(
        lambda form: all(close(form(s), scipy.stats.norm.logpdf(X, 0.6, SIGMA), 1e-5) for s in (1e-3, 1e-6)),
        right=reconstruction,
        wrong=lambda scale: scipy.stats.norm.logpdf(X, 0.6, scale),
    )


def slopes_of(variant: Variant, loss: Tensor) -> Tensor:
    """All derivatives of a loss, as one vector."""
    parameters = [p for half in variant[:2] for p in half.parameters() if p.requires_grad]
    return torch.cat([slope.flatten() for slope in torch.autograd.grad(loss, parameters)])


def cosine_to_a_weighted_sum(likelihood: nn.Module, error: Callable[..., Tensor], weight: float, **parts: Any) -> float:
    """The cosine between the gradients of the loss and of ``error(x, decoded) + weight * KL``, summed over a batch."""
    x = torch.randint(2, (6, 5)).double()
    variant = pair((5,), 2, likelihood=likelihood, loss=TraceMeanField_ELBO(), **parts)
    pyro.set_rng_seed(3)
    ours = slopes_of(variant, variant.loss(variant.model, variant.guide)(x))
    pyro.set_rng_seed(3)
    z = variant.guide(x)
    q = variant.guide.posterior(x).base_dist
    kl = (q.loc.square() + q.scale.square() - 2 * q.scale.log() - 1).sum(1) / 2
    by_hand = slopes_of(variant, (error(x, variant.model.decoder(z)) + weight * kl).sum())
    return torch.nn.functional.cosine_similarity(ours, by_hand, dim=0).item()


def squares(share: float) -> Callable[[Tensor, Tensor], Tensor]:
    """A function that returns ``share`` times the squared error per datum."""
    return lambda x, y: share * (x - y).square().sum(1)


@mutation
def balance_without_a_noise_level() -> Mutation:
    """A mean over pixels plus ``w KL`` fixes the noise level at ``sigma**2 = w D / 2``."""
    w, x_dim = 1e-2, 5
    return Mutation(
        lambda sigma: close(cosine_to_a_weighted_sum(Gaussian(sigma), squares(1 / x_dim), w), 1, 1e-10),
        right=math.sqrt(w * x_dim / 2),
        wrong=1.0,
    )


@mutation
def mean_of_errors_beside_a_sum_of_kl() -> Mutation:
    variant = of_one_code(*BEST)

    def loss(x: Tensor) -> float:
        return variant.loss.loss(variant.model, variant.guide, x)

    def mixed(x: Tensor) -> float:
        return (x - BEST[0]).square().mean().item() + len(x) * kl(*BEST)

    once, twice = torch.full((3, 1), X), torch.full((6, 1), X)
    return Mutation(lambda form: close(form(twice), 2 * form(once)), right=loss, wrong=mixed)


LOGITS = torch.linspace(-6.1, 5.3, 20, dtype=torch.float64)


@mutation
def cross_entropy_of_grey_values() -> Mutation:
    def mass(form: Callable[[Tensor, Tensor], Tensor], t: Tensor) -> float:
        return integral(lambda x: form(t, torch.tensor(x)).exp().item(), 0, 1)

    return Mutation(
        lambda form: all(close(mass(form, t), 1) for t in LOGITS),
        right=lambda t, x: ContinuousBernoulli()(t).log_prob(x),
        wrong=lambda t, x: -nn.functional.binary_cross_entropy_with_logits(t, x),
    )


@mutation
def probability_as_a_reconstruction() -> Mutation:
    variant = of_one_code(likelihood=ContinuousBernoulli())

    def mean(t: Tensor) -> float:
        p = ContinuousBernoulli()(t)
        return integral(lambda x: x * p.log_prob(torch.tensor(x)).exp().item(), 0, 1)

    return Mutation(
        lambda form: all(close(form(t), mean(t)) for t in LOGITS),
        right=lambda t: variant.model.x_given_z(t.reshape(1, 1)).mean.item(),
        wrong=lambda t: torch.sigmoid(t).item(),
    )


@mutation
def one_noise_for_the_whole_batch() -> Mutation:
    """Two rows with equal data have different codes, which are uncorrelated over many draws."""
    variant, x = of_one_code(0.3, 0.8), torch.full((2, 1), X)

    def draws() -> Tensor:
        with pyro.plate("draws", 10_000, dim=-2):
            return variant.guide(x).squeeze(-1)

    return Mutation(
        lambda form: torch.corrcoef(form().mT)[0, 1].abs() < 4 / math.sqrt(10_000),
        right=draws,
        wrong=lambda: 0.3 + 0.8 * torch.randn(10_000, 1).expand(-1, 2),
    )


@mutation
def code_penalty_that_needs_no_penalty_on_weights() -> Mutation:
    """Codes / c and weights * c decode alike. Without a penalty on weights, the loss therefore has no minimum."""
    x, encoder, decoder = torch.randn(20, 4), torch.randn(2, 4), torch.randn(4, 2)

    def loss(name: str) -> Callable[[float], float]:
        def at(c: float) -> float:
            parts = {"encoder": nn.Identity(), "decoder": nn.Linear(2, 4, bias=False)}
            variant = VARIANTS[name]((4,), 2, **parts)
            parts["decoder"].weight.data = c * decoder
            variant.guide.heads[0].weight.data = encoder / c
            variant.guide.heads[0].bias.data.zero_()
            return variant.loss.loss(variant.model, variant.guide, x)

        return at

    return Mutation(lambda form: form(1e4) > form(1e2) > form(1.0), right=loss("rae_l2"), wrong=loss("rae"))


class Steps(nn.Module):
    """A decoder that is flat at the codes 0 and 1 and rises between them."""

    def forward(self, z: Tensor) -> Tensor:
        return z * z * (3 - 2 * z)


@mutation
def gradient_penalty_that_bounds_the_slope() -> Mutation:
    """The penalty is the squared norm of the Jacobian at the codes. It does not depend on the decoder between them."""
    variant = of_one_code(decoder=Steps())
    codes = torch.tensor([[0.0], [1.0], [0.1]])

    def exact(z: Tensor) -> float:
        return torch.autograd.functional.jacobian(variant.model.decoder, z.squeeze()).square().item()

    def steepest(z: Tensor) -> float:
        """The squared slope from the code to the code 0.5, where the decoder is steepest."""
        return (variant.model.decoder(z) - variant.model.decoder(torch.tensor([0.5]))).div(z - 0.5).square().item()

    return Mutation(
        lambda form: all(close(form(z), exact(z), 1e-10) for z in codes),
        right=lambda z: JacobianNorm().squared_norm(variant.model, z.unsqueeze(0)).item(),
        wrong=steepest,
    )


every_mutation = pytest.mark.parametrize("name", MUTATIONS)


@every_mutation
def test_the_library_has_the_property(name: str) -> None:
    case = MUTATIONS[name]()

    assert case.holds(case.right)


@every_mutation
def test_a_printed_form_lacks_it(name: str) -> None:
    case = MUTATIONS[name]()

    assert not case.holds(case.wrong)


RIGHT = ["kl_without_half", "kl_of_a_product_of_squares", "evidence_from_a_sum_of_the_wrong_sign"]


@pytest.mark.parametrize("name", RIGHT)
def test_a_printed_form_that_is_right_is_not_flagged(name: str) -> None:
    case = MUTATIONS[name]()

    assert case.holds(case.also_right)


# Weights that are chosen by hand, and the noise levels that they amount to.


@pytest.mark.parametrize(
    ("share", "weight", "variance"),
    [(1, 1, 0.5), (0.5, 1, 1), (1 / 5, 0.1, 0.25), (1 / 30, 0.1, 1.5), (1 / 5, 0.1 / 2, 0.125)],
    ids=["sum", "half_the_sum", "mean_of_coordinates", "mean_of_all_beside_a_sum", "means_of_both"],
)
def test_a_weight_between_error_and_kl_is_a_noise_level(share: float, weight: float, variance: float) -> None:
    """``a SSE + w KL`` has the gradients of the loss at ``sigma**2 = w / (2 a)``. x is [6, 5], and z is [6, 2]."""
    assert variance == pytest.approx(weight / (2 * share))
    assert cosine_to_a_weighted_sum(Gaussian(math.sqrt(variance)), squares(share), weight) == pytest.approx(
        1, abs=1e-12
    )


def test_a_weight_between_mean_cross_entropy_and_kl_is_a_kl_weight() -> None:
    """A Bernoulli has no noise level: ``mean(BCE) + w KL`` over D coordinates amounts to a KL weight of ``w D``."""

    def entropy(x: Tensor, logits: Tensor) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(logits, x, reduction="none").mean(1)

    for weight, alike in ((0.1 * 5, True), (0.1, False)):
        cosine = cosine_to_a_weighted_sum(Bernoulli(), entropy, 0.1, kl_weight=KLWeight(constant(weight)))
        assert (abs(cosine - 1) < 1e-12) == alike


@pytest.mark.parametrize("beta", [0.3, 4.0])
def test_beta_and_sigma_act_as_one_noise_level(beta: float) -> None:
    x, slopes = torch.randn(6, 5), []
    weighted = VARIANTS["beta_vae"]((5,), 2, beta=beta, sigma=0.2)
    plain = VARIANTS["gaussian_vae"]((5,), 2, sigma=0.2 * math.sqrt(beta))
    for mine, other in zip(weighted[:2], plain[:2], strict=True):
        other.load_state_dict({k: v for k, v in mine.state_dict().items() if "kl_weight" not in k}, strict=False)
    plain.model.likelihood.scale.fill_(0.2 * math.sqrt(beta))
    for variant in (weighted, plain):
        pyro.set_rng_seed(3)
        slopes.append(slopes_of(variant, variant.loss(variant.model, variant.guide)(x)))

    assert torch.allclose(slopes[0], beta * slopes[1], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("spread", [0.1, 0.5, 2.0])
def test_a_guide_of_one_spread_has_its_kl_and_its_bound(spread: float) -> None:
    """The spread is a standard deviation. The bound is tight if the posterior has the same spread."""
    sigma = spread / math.sqrt(1 - spread**2) if spread < 1 else 1.0
    terms = expected(
        of_one_code(
            X / (1 + sigma**2),
            likelihood=Gaussian(sigma),
            guide=lambda *args: ConstantVariance(*args, scale=spread),
        )
    )
    evidence = scipy.stats.norm.logpdf(X, 0, math.sqrt(1 + sigma**2))

    assert terms.kl.item() == pytest.approx(kl_by_quadrature(X / (1 + sigma**2), spread), abs=1e-8)
    assert (abs(terms.bound.item() - evidence) < 1e-10) == (spread < 1)


# The weight of the KL, in the model and the guide or in one of them.


@pytest.mark.parametrize("both", [True, False], ids=["both_sides", "model_alone"])
def test_the_kl_weight_acts_on_both_sides(both: bool) -> None:
    """In the model alone, it would act as a narrower prior, ``beta log p(z)``, and leave the entropy unweighted."""
    beta, variant = 4.0, of_one_code(0.4, 0.6, kl_weight=KLWeight(constant(4.0)))
    plain = expected(of_one_code(0.4, 0.6))
    if not both:
        variant.guide.kl_weight = None
    kl = beta * kl_by_quadrature(0.4, 0.6) if both else (plain.log_q - beta * plain.log_prior).item()

    assert expected(variant).bound.item() == pytest.approx(plain.log_x.item() - kl, abs=1e-9)
    assert (abs(kl - beta * kl_by_quadrature(0.4, 0.6)) < 1e-8) == both


@pytest.mark.parametrize("loss", [Trace_ELBO, TraceMeanField_ELBO, PathwiseELBO])
def test_the_kl_weight_acts_in_training_alone(loss: Callable[[], ELBO]) -> None:
    """The same draw is scored. The difference is three times the KL, which is sampled or analytic as in the loss."""
    variant, x = of_one_code(0.4, 0.6, kl_weight=KLWeight(constant(4.0)), loss=loss()), torch.full((6, 1), X)
    losses = {}
    for training in (True, False):
        variant.model.train(training)
        variant.guide.train(training)
        pyro.set_rng_seed(3)
        losses[training] = variant.loss.loss(variant.model, variant.guide, x)
    pyro.set_rng_seed(3)
    q, prior, _ = sites(variant, x, variant.guide(x))
    ratio = (q["log_prob"] - prior["log_prob"]).sum().item()

    kl = 6 * kl_by_quadrature(0.4, 0.6) if loss is TraceMeanField_ELBO else ratio
    assert losses[True] - losses[False] == pytest.approx(3 * kl, abs=1e-8)


def weights_over_training(variant: Variant, steps: Sequence[int], total: int) -> list[float]:
    """The scale of the site z, which is equal in the model and the guide, at steps of training."""
    x, found = torch.zeros(1, 4), []
    for step in steps:
        variant.model.advance(step, total)
        traced = sites(variant, x, torch.zeros(1, 2))
        assert traced[0]["scale"] == traced[1]["scale"]
        found.append(float(traced[0]["scale"]))
    return found


STEPS = [0, 5, 10, 19, 20, 25, 40, 79, 80]
SCHEDULES: dict[str, tuple[Any, list[float]]] = {
    "constant": ("constant", [4] * 9),
    "linear": ("linear", [0, 0.5, 1, 1.9, 2, 2.5, 4, 4, 4]),
    "cyclical": ("cyclical", [0, 2, 4, 4, 0, 2, 0, 4, 4]),
    "users_own": (lambda step, total: (step / total) ** 2, [(step / 80) ** 2 for step in STEPS]),
}


@pytest.mark.parametrize(("anneal", "weights"), SCHEDULES.values(), ids=SCHEDULES)
def test_an_annealed_kl_weight_follows_its_schedule_on_both_sides(anneal: Any, weights: list[float]) -> None:
    """80 steps have a ramp of 40, or 4 cycles of 20 with ramps of 10. Scales are positive, so a weight of 0 is 1e-6."""
    variant = VARIANTS["beta_vae"]((4,), 2, beta=4.0, anneal=anneal)

    found = weights_over_training(variant, STEPS, 80)

    assert found == pytest.approx([max(weight, 1e-6) for weight in weights], rel=1e-12)


def test_schedules_have_their_values_exactly() -> None:
    assert [linear(0.5, 3.0)(step, 8) for step in range(9)] == [0, 0.75, 1.5, 2.25, 3, 3, 3, 3, 3]
    assert [cyclical(2, 0.5, 3.0)(step, 8) for step in range(9)] == [0, 1.5, 3, 3, 0, 1.5, 3, 3, 3]
    assert [constant(0.7)(step, 8) for step in (0, 8)] == [0.7, 0.7]
    assert [switch(0.5)(step, 8) for step in (0, 3, 4, 8)] == [0, 0, 1, 1]


@pytest.mark.parametrize("weight", [math.nan, math.inf, -0.1])
def test_a_kl_weight_that_is_negative_or_not_finite_is_refused(weight: float) -> None:
    with pytest.raises(ValueError, match=rf"must be finite and not negative, got {weight!r} at step 0 of 1"):
        KLWeight(constant(weight))


@pytest.mark.parametrize(
    "curve",
    [lambda: linear(0.0), lambda: linear(math.nan), lambda: cyclical(0), lambda: cyclical(4, math.nan)],
    ids=["linear_0", "linear_nan", "no_cycles", "cyclical_nan"],
)
def test_a_schedule_that_cannot_rise_is_refused(curve: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match=r"ramp|cycles"):
        KLWeight(curve())


def test_an_unknown_annealing_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"constant, linear, cyclical or a function.*got 'cosine'"):
        VARIANTS["beta_vae"]((4,), 2, anneal="cosine")


# Point masses.


def test_the_loss_of_a_point_mass_is_minus_the_log_joint() -> None:
    variant, x = of_one_code(0.6, guide=PointMass), torch.full((3, 1), X)

    log_joint = scipy.stats.norm.logpdf(0.6) + scipy.stats.norm.logpdf(X, 0.6, SIGMA)

    for loss in (Trace_ELBO(), TraceMeanField_ELBO(), PathwiseELBO()):
        assert loss.loss(variant.model, variant.guide, x) == pytest.approx(-3 * log_joint, rel=1e-12)


def test_a_guide_that_narrows_to_a_point_loses_its_bound_and_says_so() -> None:
    """The KL grows by ``log 10`` if the scale is divided by 10. A point mass has no bound, and its loss is not one."""
    bounds = [bound(0.6, scale) for scale in (1e-3, 1e-4, 1e-5)]

    assert bounds[0] - bounds[1] == pytest.approx(math.log(10), abs=1e-4)
    assert bounds[1] - bounds[2] == pytest.approx(math.log(10), abs=1e-4)
    assert of_one_code(0.6, 1e-5).has_bound
    assert not of_one_code(0.6, guide=PointMass).has_bound


def rae_loss(variant: Variant, x: Tensor, beta: float, gamma: float, decay: float) -> float:
    """The printed loss: ``mean(|x - D(z)|**2 + beta/2 |z|**2 + gamma |J(z)|**2) + decay |weights|**2``."""
    decoder, z = variant.model.decoder, variant.guide.posterior(x).mean
    jacobians = torch.stack([torch.autograd.functional.jacobian(decoder, code) for code in z])
    a_datum = (x - decoder(z)).square().sum(1) + beta / 2 * z.square().sum(1) + gamma * jacobians.square().sum((1, 2))
    return (a_datum.mean() + decay * sum(p.square().sum() for p in decoder.parameters() if p.ndim > 1)).item()


@pytest.mark.parametrize(("beta", "sigma"), [(0.01, 0.07), (0.5, 0.6)])
@pytest.mark.parametrize("name", ["rae", "rae_l2", "rae_gp"])
def test_a_regularised_autoencoder_is_its_printed_loss_and_constants(name: str, beta: float, sigma: float) -> None:
    """``beta = 2 sigma**2 / spread**2``, ``decay = sigma**2 / (N tau**2)`` and ``gamma = 2 sigma**2 kappa``."""
    x, (gamma, decay) = torch.randn(20, 5), {"rae": (0, 0), "rae_l2": (0, 0.02), "rae_gp": (0.3, 0)}[name]
    decoder = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 5))
    tau = sigma / math.sqrt(20 * decay) if decay else 1.0
    options = {"rae": {}, "rae_l2": {"tau": tau}, "rae_gp": {"kappa": gamma / (2 * sigma**2)}}[name]
    spread = sigma * math.sqrt(2 / beta)

    def loss(spread: float) -> float:
        prior = StandardNormal(3, spread)
        parts: dict[str, Any] = {"encoder": nn.Identity(), "decoder": decoder, "prior": prior}
        variant = VARIANTS[name]((5,), 3, sigma=sigma, **options, **parts)
        variant.guide.load_state_dict(guide)
        return variant.loss.loss(variant.model, variant.guide, x)

    reference = VARIANTS["rae"]((5,), 3, encoder=nn.Identity(), decoder=decoder)
    guide = reference.guide.state_dict()
    weights = sum(p.numel() for p in decoder.parameters() if p.ndim > 1) if decay else 0
    constants = 20 * 5 * math.log(sigma) + 20 * 3 * math.log(spread) + weights * math.log(tau)
    constants += (20 * 5 + 20 * 3 + weights) / 2 * math.log(2 * math.pi)
    printed = 20 / (2 * sigma**2) * rae_loss(reference, x, beta, gamma, decay) + constants

    assert loss(spread) == pytest.approx(printed, rel=1e-10)
    assert abs(loss(sigma / math.sqrt(beta)) - printed) > 1e-3  # the prior for beta |z|**2, without the factor 1/2


# The estimator.


def value_and_slopes(variant: Variant, loss: ELBO, x: Tensor) -> tuple[float, Tensor]:
    """The loss and its gradients for one seed. They are computed on a copy, because a loss can change buffers."""
    variant = copy.deepcopy(variant)
    pyro.set_rng_seed(5)
    value = loss(variant.model, variant.guide)(x)
    parameters = [p for half in variant[:2] for p in half.parameters()]
    slopes = torch.autograd.grad(value, parameters, allow_unused=True)
    return value.item(), torch.cat([slope.flatten() for slope in slopes if slope is not None])


PARTICLES: dict[str, dict[str, Any]] = {
    "one": {},
    "three_in_turn": {"num_particles": 3},
    "three_at_once": {"num_particles": 3, "vectorize_particles": True, "max_plate_nesting": 1},
}


def assert_equal_estimates(variant: Variant, x: Tensor, **particles: Any) -> None:
    """Assert that PathwiseELBO has the value and the gradients of Trace_ELBO."""
    value, slopes = value_and_slopes(variant, PathwiseELBO(**particles), x)
    wanted, wanted_slopes = value_and_slopes(variant, Trace_ELBO(**particles), x)

    assert value == pytest.approx(wanted, rel=1e-12)
    assert torch.allclose(slopes, wanted_slopes, rtol=1e-10, atol=1e-12 * float(wanted_slopes.abs().max()))
    assert slopes.abs().max() > 0


@pytest.mark.parametrize("name", VARIANTS)
def test_the_pathwise_estimate_is_that_of_pyro_for_every_variant(name: str) -> None:
    assert_equal_estimates(VARIANTS[name]((4,), 2), torch.randint(2, (6, 4)).double())


@pytest.mark.parametrize("particles", PARTICLES.values(), ids=PARTICLES)
@pytest.mark.parametrize("guide", [MeanField, FullRank, ConstantVariance, PointMass])
def test_the_pathwise_estimate_is_that_of_pyro_for_every_guide(guide: type[Guide], particles: dict[str, Any]) -> None:
    variant = pair((4,), 2, likelihood=LearnedSigma(), guide=guide, encoder=nn.Identity(), decoder=nn.Linear(2, 4))

    assert_equal_estimates(variant, torch.randn(6, 4), **particles)


class Stuck(dist.Normal):
    """A normal without reparameterised draws. Every draw is one scale above the mean."""

    has_rsample = False

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return (self.loc + self.scale).detach()


class NotReparameterised(MeanField):
    def distribution(self, loc: Tensor, log_scale: Tensor) -> Any:
        return Stuck(loc, log_scale.exp()).to_event(1)


def test_a_guide_that_is_not_reparameterised_gets_the_gradient_of_its_score() -> None:
    """The derivative of the loss at a fixed draw is not this gradient, because it lacks the loss times the score."""
    variant = of_one_code(0.4, 0.6, guide=NotReparameterised)
    x = torch.full((3, 1), X)

    assert_equal_estimates(variant, x)

    q, prior, likelihood = sites(variant, x, torch.full((3, 1), 1.0))
    at_a_fixed_draw = slopes_of(variant, (q["log_prob"] - prior["log_prob"] - likelihood["log_prob"]).sum())
    _, slopes = value_and_slopes(variant, PathwiseELBO(), x)
    assert (slopes - at_a_fixed_draw).abs().max() > 1
