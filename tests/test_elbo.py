"""Estimators of the bound: values and gradients draw by draw against formulas by hand, and what each must refuse."""

import copy
import itertools
import math
import pickle
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import ExpandedDistribution
from pyro.distributions.transforms import AffineTransform
from pyro.infer import ELBO, SVI, RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn

from ppl_vae import VARIANTS, Variant, fit, pair
from ppl_vae.elbo import (
    CIWAE,
    DIP,
    ESTIMATORS,
    IWAE,
    MIWAE,
    PIWAE,
    BetaELBO,
    DReG,
    FreeBits,
    MeanFieldELBO,
    PathwiseELBO,
    PerDatumELBO,
    Renyi,
    StickingTheLanding,
    estimator,
)
from ppl_vae.elbo.path import Weights
from ppl_vae.elbo.reading import Reading
from ppl_vae.guides import FullRank, Guide, PointMass
from ppl_vae.models import Gaussian, KLWeight, LinearGaussian, Masked, WeightPrior, constant
from ppl_vae.streams import seeded
from ppl_vae.verification.exact_pair import linear_pair
from ppl_vae.verification.targets import TARGETS
from ppl_vae.verification.verdict import hold_against_truth, verify

X_DIM, Z_DIM, ROWS, SIZE = 5, 2, 4, 30
Functions = tuple[Callable[[], None], Callable[[], None]]  # a model and a guide
HALF_LOG_TAU = 0.5 * math.log(2 * math.pi)
PATH = (StickingTheLanding, DReG, CIWAE, PIWAE)
WEIGHING = (IWAE, MIWAE, Renyi, DReG, CIWAE, PIWAE)
OURS = (*WEIGHING, StickingTheLanding, MeanFieldELBO, BetaELBO, FreeBits, DIP)


def problem() -> tuple[LinearGaussian, Tensor]:
    exact = LinearGaussian(torch.randn(X_DIM, Z_DIM), torch.randn(X_DIM), torch.tensor(0.6))
    return exact, torch.randn(ROWS, X_DIM)


def off() -> tuple[Variant, Tensor]:
    """A pair whose guide is away from the posterior, and a batch."""
    exact, x = problem()
    return linear_pair(exact, shift=0.3, stretch=1.3), x


def normal(value: Tensor, loc: Tensor | float, log_scale: Tensor | float) -> Tensor:
    """Log density by hand, the last dimension summed."""
    log_scale = torch.as_tensor(log_scale)
    return (-0.5 * ((value - loc) / log_scale.exp()) ** 2 - log_scale - HALF_LOG_TAU).sum(-1)


class Hand(NamedTuple):
    """Log densities [K, rows] of the draws that an estimator takes under the same seed, in plain torch."""

    x: Tensor
    z: Tensor
    q: Tensor
    kl: Tensor  # of each coordinate in closed form, [rows, z_dim]
    covariance: Tensor  # of the draws of all rows together, [z_dim, z_dim]

    @property
    def w(self) -> Tensor:
        return self.x + self.z - self.q


def by_hand(variant: Variant, x: Tensor, count: int, *, held: bool = False, fixed: bool = False) -> Hand:
    """``held``: the parameters of log q take no gradient. ``fixed``: z takes none."""
    loc, log_scale = (head(x) for head in variant.guide.heads)
    with seeded(7):
        noise = torch.normal(torch.zeros(count, *loc.shape), torch.ones(count, *loc.shape))
    z = loc + log_scale.exp() * noise
    z = z.detach() if fixed else z
    kl = 0.5 * (loc**2 + (2 * log_scale).exp() - 1) - log_scale
    law = (loc.detach(), log_scale.detach()) if held else (loc, log_scale)
    decoder, log_sigma = variant.model.decoder, variant.model.likelihood.scale.log()
    second_moment = (loc.mT @ loc + (2 * log_scale).exp().sum(0).diag()) / len(loc)
    covariance = second_moment - loc.mean(0)[:, None] * loc.mean(0)
    log_likelihood = normal(x, z @ decoder.weight.mT + decoder.bias, log_sigma)
    return Hand(log_likelihood, normal(z, 0.0, 0.0), normal(z, *law), kl, covariance)


def distance(covariance: Tensor, off_diagonal: float, diagonal: float) -> Tensor:
    """The weighted squares of C - I, one entry after the other."""
    cells = [(i, j) for i in range(Z_DIM) for j in range(Z_DIM)]
    weights = {True: diagonal, False: off_diagonal}
    return sum(weights[i == j] * (covariance[i, j] - int(i == j)) ** 2 for i, j in cells)


def lme(log_weight: Tensor) -> Tensor:
    """Log of the mean of the exponentials over the first dimension, the long way."""
    top = log_weight.max(0).values
    return top + (log_weight - top).exp().mean(0).log()


def v(log_weight: Tensor) -> Tensor:
    """Normalised weights over the first dimension, held."""
    weight = (log_weight - log_weight.max(0).values).exp().detach()
    return weight / weight.sum(0)


def groups(log_weight: Tensor, count: int) -> list[Tensor]:
    return [log_weight[first::count] for first in range(count)]


VALUES: dict[str, tuple[Callable[[int], ELBO], Callable[[Hand], Tensor]]] = {
    "trace": (lambda k: PathwiseELBO(k, 1, vectorize_particles=True), lambda h: h.w.mean(0)),
    "mean_field": (MeanFieldELBO, lambda h: h.x.mean(0) - h.kl.sum(-1)),
    "stl": (StickingTheLanding, lambda h: h.w.mean(0)),
    "iwae": (IWAE, lambda h: lme(h.w)),
    "dreg": (DReG, lambda h: lme(h.w)),
    "renyi": (lambda k: Renyi(0.3, k), lambda h: lme(0.7 * h.w) / 0.7),
    "renyi_below_0": (lambda k: Renyi(-2.0, k), lambda h: lme(3.0 * h.w) / 3.0),
    "ciwae": (lambda k: CIWAE(0.2, k), lambda h: 0.2 * h.w.mean(0) + 0.8 * lme(h.w)),
    "miwae": (lambda k: MIWAE(k, 2), lambda h: sum(map(lme, groups(h.w, 2))) / 2),
    "piwae": (lambda k: PIWAE(k, 2), lambda h: lme(h.w)),
    "free_bits": (lambda k: FreeBits(0.4, k), lambda h: h.x.mean(0) - h.kl.mean(0).clamp_min(0.4).sum()),
    "beta": (lambda k: BetaELBO(3.0, k), lambda h: (h.x + 3 * (h.z - h.q)).mean(0)),
    "dip": (lambda k: DIP(2, 0.5, 2.0, k), lambda h: h.w.mean(0) - distance(h.covariance, 0.5, 2.0)),
}
# What differs from the plain gradient of the value: for the guide, log q held or not, and the weights by hand.
PATHS: dict[str, Callable[[Hand, Hand], Tensor]] = {
    "stl": lambda h, held: held.w.mean(0),
    "dreg": lambda h, held: (v(h.w) ** 2 * held.w).sum(0),
    "ciwae": lambda h, held: 0.2 * held.w.mean(0) + 0.8 * (v(h.w) ** 2 * held.w).sum(0),
    "piwae": lambda h, held: sum(map(lme, groups(h.w, 2))) / 2,
}


def halves(variant: Variant) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    return list(variant.model.parameters()), list(variant.guide.parameters())


def gradients(loss: Tensor, parameters: list[nn.Parameter]) -> Tensor:
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
    return torch.cat([part.flatten() for part in found])


def found_by(loss: ELBO, variant: Variant, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Value, gradient for the model, gradient for the guide: of the draws by hand."""
    with seeded(7):
        value = loss.differentiable_loss(variant.model, variant.guide, *args)
    return value.detach(), *(gradients(value, half) for half in halves(variant))


def same(one: Any, other: Any, within: float = 1e-10) -> bool:
    return all(torch.allclose(a, b, rtol=within, atol=within) for a, b in zip(one, other, strict=True))


# Values and gradients, draw by draw.


@pytest.mark.parametrize(("num_particles", "size"), [(2, None), (6, SIZE)])
@pytest.mark.parametrize("name", VALUES)
def test_a_value_and_its_gradients_are_those_of_the_formula_draw_by_draw(
    name: str, num_particles: int, size: int | None
) -> None:
    """The formula is summed over data, and scaled after the logarithm.

    The gradient of DReG is Tucker's equation 8: one call of autograd for the model, another for the guide.
    """
    variant, x = off()
    of, formula = VALUES[name]

    value, *found = found_by(of(num_particles), variant, x, size)

    hand, held = (by_hand(variant, x, num_particles, held=held) for held in (False, True))
    losses = [-(size or ROWS) / ROWS * formula(hand).sum()] * 2
    assert same([value], [losses[0].detach()])
    if name in PATHS:
        losses[1] = -(size or ROWS) / ROWS * PATHS[name](hand, held).sum()
    expected = [gradients(loss, half) for loss, half in zip(losses, halves(variant), strict=True)]
    assert same(found, expected)
    assert all(part.norm() > 1 for part in found)


@pytest.mark.parametrize("name", [name for name in VALUES if name not in ("miwae", "piwae")])
def test_one_draw_needs_no_plate_of_draws(name: str) -> None:
    variant, x = off()
    of, formula = VALUES[name]

    value, *_ = found_by(of(1), variant, x)

    assert same([value], [-formula(by_hand(variant, x, 1)).sum().detach()])


IDENTITIES: dict[str, tuple[ELBO, ELBO]] = {
    "one draw of DReG is STL": (DReG(1), StickingTheLanding(1)),
    "CIWAE without ELBO is DReG": (CIWAE(0.0, 6), DReG(6)),
    "CIWAE without IWAE is STL": (CIWAE(1.0, 6), StickingTheLanding(6)),
    "as many groups as draws are the ELBO": (MIWAE(6, 6), BetaELBO(1.0, 6)),
    "one group is IWAE": (MIWAE(6, 1), IWAE(6)),
    "PIWAE of one group is IWAE": (PIWAE(6, 1), IWAE(6)),
    "Renyi of order 0 is IWAE": (Renyi(0.0, 6), IWAE(6)),
    "Renyi towards 0 is IWAE": (Renyi(1e-9, 6), IWAE(6)),
    "one draw of Renyi is the ELBO": (Renyi(-3.0, 1), BetaELBO(1.0, 1)),
    "beta 1 is Trace_ELBO": (BetaELBO(1.0), Trace_ELBO()),
    "no floor is MeanField": (FreeBits(0.0, 6), MeanFieldELBO(6)),
    "MeanField is Pyro's": (MeanFieldELBO(1), TraceMeanField_ELBO()),
    "MeanField is Pyro's for many draws": (
        MeanFieldELBO(6),
        TraceMeanField_ELBO(num_particles=6, max_plate_nesting=1, vectorize_particles=True),
    ),
}


@pytest.mark.parametrize(("one", "other"), IDENTITIES.values(), ids=IDENTITIES)
def test_estimators_that_are_one_agree_draw_by_draw(one: ELBO, other: ELBO) -> None:
    variant, x = off()
    within = 1e-6 if getattr(one, "alpha", 0.0) == 1e-9 else 1e-10

    assert same(found_by(one, variant, x, SIZE), found_by(other, variant, x, SIZE), within)


def test_renyi_close_to_1_is_close_to_the_elbo() -> None:
    variant, x = off()
    for a, b in zip(found_by(Renyi(0.9999, 6), variant, x), found_by(BetaELBO(1.0, 6), variant, x), strict=True):
        assert 0 < (a - b).norm() < 2e-3 * b.norm()


def test_piwae_takes_its_model_from_iwae_and_its_guide_from_miwae() -> None:
    variant, x = off()

    value, model, guide = found_by(PIWAE(6, 3), variant, x, SIZE)

    all_draws, groups_of_draws = found_by(IWAE(6), variant, x, SIZE), found_by(MIWAE(6, 3), variant, x, SIZE)
    assert same([value, model, guide], [*all_draws[:2], groups_of_draws[2]])
    assert not same([guide], [all_draws[2]], 1e-3)


@pytest.mark.parametrize("name", ["trace", "stl", "iwae", "dreg", "renyi", "ciwae", "miwae", "piwae"])
def test_where_the_guide_is_the_posterior_every_draw_is_the_log_evidence(name: str) -> None:
    """And a sum over batches is the whole."""
    exact, x = problem()
    variant = linear_pair(exact, FullRank)
    covariance = exact.loading @ exact.loading.mT + 0.36 * torch.eye(X_DIM)
    evidence = torch.distributions.MultivariateNormal(exact.loc, covariance).log_prob(x)
    loss = VALUES[name][0](6)

    whole, *_ = found_by(loss, variant, x)
    parts = [found_by(loss, variant, rows)[0] for rows in x.split([1, 3])]

    assert same([whole, sum(parts)], [-evidence.sum()] * 2)
    assert math.isclose(loss.loss(variant.model, variant.guide, x, SIZE), -SIZE / ROWS * float(evidence.sum()))


@pytest.mark.parametrize("loss", [StickingTheLanding(4), DReG(4), CIWAE(0.5, 4)], ids=repr)
def test_a_path_gradient_for_the_guide_is_0_at_the_posterior(loss: ELBO) -> None:
    exact, x = problem()
    *_, guide = found_by(loss, linear_pair(exact, FullRank), x)
    *_, plain = found_by(Trace_ELBO(), linear_pair(exact, FullRank), x)

    assert guide.abs().max() < 1e-10
    assert plain.abs().max() > 1


@pytest.mark.parametrize("name", ["dreg", "ciwae", "piwae"])
def test_weights_that_underflow_leave_finite_gradients(name: str) -> None:
    exact, x = problem()
    variant = linear_pair(exact, shift=100.0, stretch=5.0)

    assert all(part.isfinite().all() for part in found_by(VALUES[name][0](6), variant, 30 * x))


# The Kullback-Leibler term.


def test_free_bits_hold_a_floor_under_the_mean_of_a_batch() -> None:
    """KLs [[.01, 2], [.03, 4]] and a floor of .1: .1 + 3 a datum, and the first coordinate gets no gradient."""
    loc = nn.Parameter((2 * torch.tensor([[0.01, 2.0], [0.03, 4.0]])).sqrt())

    def guide() -> None:
        with pyro.plate("data", 2):
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    def model() -> None:
        with pyro.plate("data", 2):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    loss = FreeBits(0.1).differentiable_loss(model, guide)

    loss.backward()
    assert same([loss], [torch.tensor(2 * 3.1)])
    assert (loc.grad[:, 0] == 0).all()
    assert same([loc.grad[:, 1]], [loc[:, 1].detach()])


@pytest.mark.parametrize("beta", [0.25, 4.0])
def test_beta_is_the_kl_weight_of_the_pair_and_multiplies_it(beta: float) -> None:
    variant, x = off()
    once, twice = (found_by(BetaELBO(weight, 6), variant, x, SIZE) for weight in (beta, beta**2))
    variant.model.kl_weight = variant.guide.kl_weight = KLWeight(constant(beta))

    assert same(found_by(BetaELBO(1.0, 6), variant, x, SIZE), once)
    assert same(found_by(PathwiseELBO(6, 1, vectorize_particles=True), variant, x, SIZE), once)
    assert same(found_by(BetaELBO(beta, 6), variant, x, SIZE), twice)


def test_a_kl_weight_acts_on_the_closed_form_and_on_the_path() -> None:
    variant, x = off()
    hand, held = (by_hand(variant, x, 6, held=held) for held in (False, True))
    variant.model.kl_weight = variant.guide.kl_weight = KLWeight(constant(3.0))

    closed = found_by(MeanFieldELBO(6), variant, x)
    path = found_by(StickingTheLanding(6), variant, x)

    losses = [-(h.x + 3 * (h.z - h.q)).mean(0).sum() for h in (hand, held)]
    assert same(closed[:1], [(3 * hand.kl.sum() - hand.x.mean(0).sum()).detach()])
    assert same(path[:1], [losses[0].detach()])
    assert same(path[1:], map(gradients, losses, halves(variant)))


LAWS: dict[str, Callable[[], Any]] = {
    "normal": lambda: dist.Normal(torch.zeros(2), 1.5).to_event(1),
    "laplace": lambda: dist.Laplace(torch.zeros(2), 1.5).to_event(1),
    "student": lambda: dist.StudentT(4.0, torch.zeros(2), 1.5).to_event(1),
    "full": lambda: dist.MultivariateNormal(torch.zeros(2), torch.eye(2)),
    "low_rank": lambda: dist.LowRankMultivariateNormal(torch.zeros(2), torch.ones(2, 1), torch.ones(2)),
    "moved": lambda: dist.TransformedDistribution(LAWS["normal"](), [AffineTransform(1.0, 2.0)]),
    "mixture": lambda: dist.MixtureSameFamily(
        dist.Categorical(torch.ones(3)), dist.Normal(torch.zeros(3, 2), 1.0).to_event(1)
    ),
    "point": lambda: dist.Delta(torch.full((2,), 0.3), event_dim=1),
}
KNOWN = {("normal", "normal"), ("normal", "full"), ("normal", "laplace"), ("full", "full"), ("low_rank", "full")}
KNOWN |= {("full", "low_rank"), ("point", "normal"), ("point", "student"), ("low_rank", "low_rank")}


@pytest.mark.parametrize(
    ("q", "prior"),
    [
        ("normal", "normal"),
        ("normal", "laplace"),
        ("normal", "mixture"),
        ("normal", "moved"),
        ("full", "low_rank"),
        ("full", "student"),
        ("low_rank", "full"),
        ("point", "normal"),
        ("point", "mixture"),
    ],
)
def test_the_kl_says_whether_it_is_in_closed_form_and_is_the_elbo_either_way(q: str, prior: str) -> None:
    """As Pyro decides it, which does so without a word; and over many draws it is what Trace_ELBO gives."""
    x = torch.zeros(3, 2)

    def guide() -> None:
        with pyro.plate("data", 3):
            pyro.sample("z", LAWS[q]())

    def model() -> None:
        with pyro.plate("data", 3):
            z = pyro.sample("z", LAWS[prior]())
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    found = MeanFieldELBO().kl_terms(model, guide)["z"]

    closed = (q, prior) in KNOWN or q == "point"
    assert found == ("closed form" if closed else "sampled")
    means = []
    for loss in (MeanFieldELBO(20_000), Trace_ELBO(20_000, 1, vectorize_particles=True)):
        with seeded(3):
            means.append(loss.loss(model, guide))
    assert abs(means[0] - means[1]) < (0.15 if closed and q != "point" else 1e-9)


def chain(x: Tensor) -> Functions:
    """Two latents: q(a | x) q(b | a), p(b) p(a | b)."""

    def guide() -> None:
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(x[:, 0], 0.7))
            pyro.sample("b", dist.Normal(0.5 * a, 0.8))

    def model() -> None:
        with pyro.plate("data", len(x)):
            b = pyro.sample("b", dist.Normal(torch.zeros(()), 1.0))
            a = pyro.sample("a", dist.Normal(b, 0.5))
            pyro.sample("x", dist.Normal(a, 1.0), obs=x[:, 0])

    return model, guide


def test_several_latents_are_sampled_where_kls_of_sites_do_not_add_up() -> None:
    """Pyro's TraceMeanField_ELBO adds them up, and is wrong by more than a hundred errors."""
    model, guide = chain(torch.ones(4, 1))
    trace, ours = (
        loss(20_000, 1).loss(model, guide)
        for loss in (lambda k, n: Trace_ELBO(k, n, vectorize_particles=True), MeanFieldELBO)
    )
    with pytest.warns(UserWarning, match="mean field restriction"):
        pyros = TraceMeanField_ELBO(20_000, 1, vectorize_particles=True).loss(model, guide)

    assert MeanFieldELBO().kl_terms(model, guide) == {"a": "sampled", "b": "sampled"}
    assert abs(ours - trace) < 0.2
    assert abs(pyros - trace) > 1


def test_several_latents_make_one_weight() -> None:
    x = torch.randn(4, 1)
    model, guide = chain(x)
    with seeded(7):
        a = x[:, 0] + 0.7 * torch.normal(torch.zeros(6, 4), torch.ones(6, 4))
        b = 0.5 * a + 0.8 * torch.normal(torch.zeros(6, 4), torch.ones(6, 4))

    with seeded(7):
        loss = IWAE(6).loss(model, guide)

    log_normal = [(b, 0.0, 1.0), (a, b, 0.5), (x[:, 0], a, 1.0), (a, x[:, 0], 0.7), (b, 0.5 * a, 0.8)]
    terms = [normal(value[..., None], torch.as_tensor(mean)[..., None], math.log(sd)) for value, mean, sd in log_normal]
    assert math.isclose(loss, -float(lme(sum(terms[:3]) - sum(terms[3:])).sum()), rel_tol=1e-10)


# Plates and programs of every kind.


def shallow(x: Tensor, *, by_pixel: bool, pixels: Tensor | None = None) -> Functions:
    """A pair of functions; x [rows, X_DIM] is an event, or stands in an inner plate that z has not."""

    def guide() -> None:
        slope = pyro.param("slope", lambda: torch.linspace(-0.5, 1.0, X_DIM))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x @ slope, 0.6))

    def model() -> None:
        loading = pyro.param("loading", lambda: torch.linspace(-1.0, 1.0, X_DIM))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            if by_pixel:
                with pyro.plate("pixels", X_DIM, dim=-2, subsample=pixels) as chosen:
                    loc = z * loading[chosen][:, None]
                    pyro.sample("x", dist.Normal(loc, 1.0), obs=x.mT[chosen])
            else:
                pyro.sample("x", dist.Normal(z[..., None] * loading, 1.0).to_event(1), obs=x)

    return model, guide


def with_slopes(loss: ELBO, model: Callable[..., Any], guide: Callable[..., Any], *args: Any) -> list[Tensor]:
    """Value and gradients of a pair of functions, in a parameter store of their own."""
    with pyro.get_param_store().scope(), seeded(7), poutine.trace(param_only=True) as found:
        value = loss.loss_and_grads(model, guide, *args)
        slopes = {name: node["value"].unconstrained() for name, node in found.trace.nodes.items()}
    return [torch.tensor(value), *(slopes[name].grad for name in sorted(slopes))]


@pytest.mark.parametrize("name", [name for name in VALUES if name not in ("free_bits", "dip")])
def test_an_inner_plate_of_x_is_summed(name: str) -> None:
    x = torch.randn(ROWS, X_DIM)
    of, _ = VALUES[name]
    nested = of(6)
    nested.max_plate_nesting += 1

    assert same(with_slopes(nested, *shallow(x, by_pixel=True)), with_slopes(of(6), *shallow(x, by_pixel=False)))


@pytest.mark.parametrize("name", ["mean_field", "stl", "beta"])
def test_an_inner_plate_that_is_subsampled_is_scaled_up(name: str) -> None:
    """Pixel 0 alone, out of five: its terms count five times, those of the KL once."""
    x = torch.randn(ROWS, X_DIM)
    loss = ESTIMATORS[name](max_plate_nesting=2)
    values = {}
    for pixels in ([0], [1], [0, 1]):
        values[len(pixels), pixels[0]], *_ = with_slopes(loss, *shallow(x, by_pixel=True, pixels=torch.tensor(pixels)))

    assert same([values[2, 0]], [(values[1, 0] + values[1, 1]) / 2])
    trace = {"beta": BetaELBO(4.0, 1, 2)}.get(name, Trace_ELBO())
    if name != "mean_field":
        assert same([values[1, 0]], with_slopes(trace, *shallow(x, by_pixel=True, pixels=torch.tensor([0])))[:1])


def own_plate(x: Tensor) -> Functions:
    """Three codes per datum, in a plate that x has not."""

    def guide() -> None:
        slope = pyro.param("slope", lambda: torch.linspace(-0.5, 1.0, 3))
        with pyro.plate("data", len(x), dim=-1), pyro.plate("codes", 3, dim=-2):
            pyro.sample("z", dist.Normal(slope[:, None] * x[:, 0], 0.6))

    def model() -> None:
        loading = pyro.param("loading", lambda: torch.linspace(0.5, 1.0, 3))
        with pyro.plate("data", len(x), dim=-1):
            with pyro.plate("codes", 3, dim=-2):
                z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            loc = (loading[:, None] * z).sum(-2, keepdim=True)
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x[:, 0])

    return model, guide


def as_event(x: Tensor) -> Functions:
    """The same with a code that is one event."""

    def guide() -> None:
        slope = pyro.param("slope", lambda: torch.linspace(-0.5, 1.0, 3))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(slope * x[:, :1], 0.6).to_event(1))

    def model() -> None:
        loading = pyro.param("loading", lambda: torch.linspace(0.5, 1.0, 3))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal((loading * z).sum(-1), 1.0), obs=x[:, 0])

    return model, guide


@pytest.mark.parametrize("name", [name for name in VALUES if name not in ("free_bits", "dip")])
def test_a_plate_that_z_alone_has_is_summed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same numbers as an event, the noise drawn in the other order."""
    x, noise = torch.randn(ROWS, 1), torch.randn(6, ROWS, 3)
    by_shape = {noise.shape: noise, (6, 3, ROWS): noise.mT, (6, 1, 3, ROWS): noise.mT.unsqueeze(1)}
    monkeypatch.setattr("torch.distributions.normal._standard_normal", lambda shape, **_: by_shape[tuple(shape)])
    of, _ = VALUES[name]
    nested = of(6)
    nested.max_plate_nesting += 1

    assert same(with_slopes(nested, *own_plate(x)), with_slopes(of(6), *as_event(x)))


@pytest.mark.parametrize("name", VALUES)
def test_networks_see_draws_and_data_and_nothing_else(name: str) -> None:
    variant, x = off()
    shapes = []
    x_given_z = variant.model.outputs
    variant.model.outputs = lambda z: (shapes.append(list(z.shape)), x_given_z(z))[1]

    for num_particles in (6, 1) if name not in ("miwae", "piwae") else (6,):
        VALUES[name][0](num_particles).loss(variant.model, variant.guide, x)

    assert shapes[0] == [6, ROWS, Z_DIM]
    assert shapes[1:] in ([], [[ROWS, Z_DIM]])


@pytest.mark.parametrize("validated", [True, False])
def test_plates_deeper_than_was_said_are_no_draws(validated: bool) -> None:
    model, guide = shallow(torch.randn(ROWS, X_DIM), by_pixel=True)
    with pyro.validation_enabled(validated), pytest.raises(ValueError, match="max_plate_nesting"):
        with_slopes(IWAE(1), model, guide)


@pytest.mark.parametrize("name", ["trace", "stl", "iwae", "dreg", "miwae", "piwae", "ciwae", "renyi"])
def test_a_plate_that_subsamples_by_itself_does_so_once_for_all_draws(name: str) -> None:
    """At the posterior, where the loss is N / B times the log evidence of the chosen data, whatever the draws."""
    x, chosen = torch.randn(20), []

    def guide() -> None:
        with pyro.plate("data", 20, subsample_size=5) as index:
            pyro.sample("z", dist.Normal(x[index] / 2, math.sqrt(0.5)))

    def model() -> None:
        with pyro.plate("data", 20, subsample_size=5) as index:
            chosen.append(index)
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[index])

    found = VALUES[name][0](6).loss(model, guide)

    evidence = normal(x[chosen[-1]][:, None], 0.0, 0.5 * math.log(2))
    assert math.isclose(found, -4 * float(evidence.sum()), rel_tol=1e-10)


@pytest.mark.parametrize("name", ["iwae", "dreg", "stl", "trace", "beta"])
def test_missing_values_of_x_count_nothing(name: str) -> None:
    x, seen = torch.randn(ROWS, X_DIM), torch.rand(ROWS, X_DIM) < 0.5
    slope, loading = torch.linspace(-0.5, 1.0, X_DIM), torch.linspace(-1.0, 1.0, X_DIM)
    of, formula = VALUES[name]

    def guide() -> None:
        with pyro.plate("data", ROWS):
            pyro.sample("z", dist.Normal((seen * x) @ slope, 0.6))

    def model() -> None:
        with pyro.plate("data", ROWS):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            law = dist.Normal(z[..., None] * loading, 1.0).mask(seen).to_event(1)
            pyro.sample("x", law, obs=torch.where(seen, x, 1e6))

    with seeded(7):
        found = of(6).loss(model, guide)

    loc = ((seen * x) @ slope)[:, None]
    with seeded(7):
        z = loc + 0.6 * torch.normal(torch.zeros(6, ROWS), torch.ones(6, ROWS))[..., None]
    pixels = -0.5 * (x - z * loading) ** 2 - HALF_LOG_TAU
    unused = torch.zeros(())
    hand = Hand((seen * pixels).sum(-1), normal(z, 0.0, 0.0), normal(z, loc, math.log(0.6)), unused, unused)
    assert math.isclose(found, -float(formula(hand).sum()), rel_tol=1e-10)


# Factors stand outside the objective.


class Square(nn.Module):
    """A penalty of each datum that its code has a say in."""

    per_datum = True

    def forward(self, model: nn.Module, x: Tensor, z: Tensor) -> Tensor:
        return -3 * z.square().sum(-1)


PENALISED = [name for name in VALUES if name != "renyi_below_0"]


@pytest.mark.parametrize("name", PENALISED)
def test_a_prior_on_weights_is_counted_once(name: str) -> None:
    variant, x = off()
    loss = VALUES[name][0](6)
    before = found_by(loss, variant, x, SIZE)
    variant.model.penalties.append(WeightPrior(0.2))

    value, model, guide = found_by(loss, variant, x, SIZE)

    weight = variant.model.decoder.weight
    log_prior = normal(weight.flatten(), 0.0, math.log(0.2))
    assert same([value, model, guide], [
        before[0] - log_prior.detach(),
        before[1] - gradients(log_prior, halves(variant)[0]),
        before[2],
    ])  # fmt: skip


@pytest.mark.parametrize("name", PENALISED)
def test_a_penalty_of_each_datum_is_averaged_over_draws_and_so_is_its_gradient(name: str) -> None:
    """For the guide too: where paths are reweighted, those of a penalty are not."""
    variant, x = off()
    loss = VALUES[name][0](6)
    before = found_by(loss, variant, x, SIZE)
    variant.model.penalties.append(Square())

    found = found_by(loss, variant, x, SIZE)

    loc, log_scale = (head(x) for head in variant.guide.heads)
    with seeded(7):
        noise = torch.normal(torch.zeros(6, *loc.shape), torch.ones(6, *loc.shape))
    penalty = -SIZE / ROWS * 3 * (loc + log_scale.exp() * noise).square().sum((-2, -1)).mean()
    added = penalty.detach(), *(gradients(penalty, half) for half in halves(variant))
    assert same(found, [a - b for a, b in zip(before, added, strict=True)])
    assert added[2].norm() > 1


def test_factors_of_the_guide_are_taken_off_as_in_pyro() -> None:
    model, guide = shallow(torch.randn(ROWS, X_DIM), by_pixel=False)

    def with_factor() -> None:
        guide()
        pyro.factor("tilt", pyro.param("slope").sum(), has_rsample=True)

    assert same(with_slopes(BetaELBO(1.0), model, with_factor), with_slopes(Trace_ELBO(), model, with_factor))


def test_a_deterministic_site_is_no_datum() -> None:
    model, guide = shallow(torch.randn(ROWS, X_DIM), by_pixel=False)

    def named() -> None:
        pyro.deterministic("sigma", torch.ones(()))
        model()

    assert same(with_slopes(IWAE(6), named, guide), with_slopes(IWAE(6), model, guide))


# Wherever Pyro takes an ELBO.


def moved(variant: Variant, before: list[Tensor]) -> list[bool]:
    after = [torch.cat([parameter.detach().flatten() for parameter in half]) for half in halves(variant)]
    return [not torch.equal(a, b) for a, b in zip(after, before, strict=True)]


def still(variant: Variant) -> list[Tensor]:
    return [torch.cat([parameter.detach().flatten().clone() for parameter in half]) for half in halves(variant)]


@pytest.mark.parametrize(
    ("name", "kind"), list(zip(ESTIMATORS, itertools.cycle(["bernoulli_vae", "sigma_vae", "l2_vae"]), strict=False))
)
def test_an_estimator_trains_both_halves_in_svi_in_plain_torch_and_in_fit(name: str, kind: str) -> None:
    x, loss = torch.randint(2, (20, 6)).double(), estimator(f"{name}:num_particles=4")
    variant = VARIANTS[kind]((6,), 2, loss=loss)
    before = still(variant)
    with pyro.get_param_store().scope():
        SVI(optim=pyro.optim.Adam({"lr": 1e-3}), **variant._asdict()).step(x[:8], len(x))
    assert moved(variant, before) == [True, True]

    before, objective = still(variant), loss(variant.model, variant.guide)
    optimizer = torch.optim.Adam(objective.parameters(), 1e-3)
    objective(x[:8], len(x)).backward()
    optimizer.step()
    assert moved(variant, before) == [True, True]

    before = still(variant)
    fit(variant, x, epochs=1, batch_size=8, validation=None, progress=False)
    assert moved(variant, before) == [True, True]


@pytest.mark.parametrize("name", VALUES)
def test_an_estimator_is_copied_pickled_and_spelled(name: str) -> None:
    variant, x = off()
    loss = VALUES[name][0](4)

    copies = [copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))]
    if name != "trace":
        copies.append(eval(repr(loss)))

    for twin in copies:
        assert same(found_by(twin, variant, x), found_by(loss, variant, x))


@pytest.mark.parametrize("name", VALUES)
def test_a_value_needs_no_gradient(name: str) -> None:
    variant, x = off()
    loss = VALUES[name][0](4)
    with_gradient, *_ = found_by(loss, variant, x)
    with torch.no_grad(), seeded(7):
        value = loss.differentiable_loss(variant.model, variant.guide, x)
    with seeded(7):
        number = loss.loss(variant.model, variant.guide, x)

    assert not value.requires_grad
    assert same([value, torch.tensor(number)], [with_gradient] * 2)
    assert all(parameter.grad is None for half in halves(variant) for parameter in half)


@pytest.mark.parametrize("name", ["dreg", "piwae", "stl"])
def test_a_frozen_guide_takes_no_gradient_and_the_model_keeps_its_own(name: str) -> None:
    variant, x = off()
    _, model, _ = found_by(VALUES[name][0](4), variant, x)
    variant.guide.requires_grad_(requires_grad=False)
    with seeded(7):
        value = VALUES[name][0](4).differentiable_loss(variant.model, variant.guide, x)

    assert same([gradients(value, halves(variant)[0])], [model])


# Spelling.

SPELLED = {
    "iwae": "IWAE(num_particles=8)",
    "dreg:num_particles=64": "DReG(num_particles=64)",
    "renyi:alpha=-0.5,num_particles=2": "Renyi(alpha=-0.5, num_particles=2)",
    "miwae:num_particles=6,groups=3": "MIWAE(num_particles=6, groups=3)",
    "stl:num_particles=2.0": "StickingTheLanding(num_particles=2)",
    "dip:kind=2,off_diagonal=3": "DIP(kind=2, off_diagonal=3.0, diagonal=3.0, num_particles=1)",
    "beta:": "BetaELBO(beta=4.0, num_particles=1)",
    "free_bits:floor=1e-1": "FreeBits(floor=0.1, num_particles=1)",
    "trace:num_particles=3,vectorize_particles=true": "PathwiseELBO(num_particles=3)",
}
MISSPELLED = {
    "": "unknown estimator '': wanted one of trace, mean_field, stl",
    "Iwae": "unknown estimator 'Iwae': wanted one of",
    "iwae:k=3": r"'iwae' cannot take k=3: wanted num_particles=NUMBER, max_plate_nesting=NUMBER$",
    "iwae:num_particles": "'iwae' cannot take num_particles=: wanted",
    "iwae:num_particles=many": "'iwae' cannot take num_particles=many: wanted",
    "iwae:num_particles=true": "'iwae' cannot take num_particles=true: wanted",
    "iwae:num_particles=[2]": r"'iwae' cannot take num_particles=\[2\]: wanted",
    "iwae:num_particles=0": "num_particles must be a whole number of at least 1, got 0",
    "iwae:num_particles=2.5": "num_particles must be a whole number of at least 1, got 2.5",
    "iwae:num_particles=Infinity": "num_particles must be a whole number of at least 1, got inf",
    "stl:num_particles=NaN": "num_particles must be a whole number of at least 1, got nan",
    "trace:num_particles=1.5": "num_particles must be a whole number of at least 1, got 1.5",
    "dreg:max_plate_nesting=0": "max_plate_nesting must be a whole number of at least 1, got 0",
    "miwae:num_particles=6,groups=4": "groups must divide num_particles, got 4 and 6",
    "piwae:groups=0": "groups must be a whole number of at least 1, got 0",
    "piwae:num_particles=6,groups=4": "groups must divide num_particles, got 4 and 6",
    "renyi:alpha=1": "alpha must be finite and not 1 .at 1 the bound is the ELBO., got 1",
    "renyi:alpha=NaN": "alpha must be finite",
    "ciwae:beta=1.5": r"beta is a share in \[0, 1\], got 1.5",
    "beta:beta=-1": "beta must be finite and not negative, got -1",
    "dip:kind=3": "kind must be 1 .DIP-VAE-I. or 2 .DIP-VAE-II., got 3",
    "dip:diagonal=-1": "diagonal must be finite and not negative, got -1",
    "free_bits:floor=Infinity": "floor is in nats per coordinate, finite and not negative, got inf",
}


@pytest.mark.parametrize(("spelled", "meant"), SPELLED.items())
def test_a_name_and_options_spell_an_estimator(spelled: str, meant: str) -> None:
    assert repr(estimator(spelled)) == meant


@pytest.mark.parametrize(("spelled", "said"), MISSPELLED.items())
def test_what_spells_no_estimator_is_refused_in_one_line(spelled: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as raised:
        estimator(spelled)
    assert "\n" not in str(raised.value)


# Refusals.


class FromLaplace(Guide):
    """A draw without a path."""

    outputs = 1

    def distribution(self, loc: Tensor) -> Any:
        return _NoPath(loc, 1.0).to_event(1)


class _NoPath(dist.Normal):
    has_rsample = False


class Tilted(Guide):
    """Its parameters stand in a function, where nothing can hold them."""

    outputs = 1

    def distribution(self, loc: Tensor) -> Any:
        standard = dist.Normal(torch.zeros_like(loc), 1.0).to_event(1)
        transform = AffineTransform(0.0, 1.0, event_dim=1)
        transform._call = lambda z: z + loc
        transform._inverse = lambda z: z - loc
        return dist.TransformedDistribution(standard, [transform])


def built(**parts: Any) -> Variant:
    return pair((X_DIM,), Z_DIM, likelihood=Gaussian(0.5), **parts)


def batch_normed(*, training: bool) -> Variant:
    variant = built(decoder=nn.Sequential(nn.Linear(Z_DIM, X_DIM), nn.BatchNorm1d(X_DIM)))
    variant.model.train(training)
    return variant


REFUSED: dict[str, tuple[Callable[[], Variant], tuple[type[ELBO], ...], str]] = {
    "point mass": (
        lambda: built(guide=PointMass),
        WEIGHING,
        r"has no density: .*\(use a guide with a density",
    ),
    "weighted": (
        lambda: built(kl_weight=KLWeight(constant(4.0))),
        (*WEIGHING, FreeBits),
        "counts 4 times .leave the KL weight at 1|is weighted: use independent coordinates",
    ),
    "masked": (lambda: built(kl_weight=Masked()), (*WEIGHING, StickingTheLanding, FreeBits), "is masked"),
    "batch norm": (lambda: batch_normed(training=True), WEIGHING, "BatchNorm1d in training mode.* eval mode, or use"),
    "no path": (lambda: built(guide=FromLaplace), OURS, "path gradients, and q.z . x. is not repar.* use Trace_ELBO"),
    "out of reach": (lambda: built(guide=Tilted), PATH, "are inside functions .*: use IWAE or Trace_ELBO"),
    "full rank": (lambda: built(guide=FullRank), (FreeBits,), "does not factorise.* use independent coordinates"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_pair_that_an_estimator_is_not_meant_for_is_refused(name: str) -> None:
    build, losses, said = REFUSED[name]
    variant, x = build(), torch.randn(ROWS, X_DIM)
    for loss in losses:
        with pytest.raises(ValueError, match=said) as raised:
            loss().differentiable_loss(variant.model, variant.guide, x, SIZE)
        assert "\n" not in str(raised.value)


ACCEPTED: dict[str, tuple[Callable[[], Variant], tuple[type[ELBO], ...]]] = {
    "point mass": (lambda: built(guide=PointMass), (StickingTheLanding, MeanFieldELBO, BetaELBO)),
    "weight of 1": (lambda: built(kl_weight=KLWeight(constant(1.0))), OURS),
    "masked": (lambda: built(kl_weight=Masked()), (MeanFieldELBO, BetaELBO)),
    "batch norm that stands": (lambda: batch_normed(training=False), OURS),
    "full rank": (lambda: built(guide=FullRank), (*WEIGHING, StickingTheLanding, MeanFieldELBO)),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_a_pair_that_an_estimator_is_meant_for_is_not(name: str) -> None:
    build, losses = ACCEPTED[name]
    variant, x = build(), torch.randn(ROWS, X_DIM)
    values = {loss.__name__: loss().loss(variant.model, variant.guide, x, SIZE) for loss in losses}

    assert {loss: value for loss, value in values.items() if not math.isfinite(value)} == {}


@pytest.mark.parametrize("loss", [StickingTheLanding(3), MeanFieldELBO(3), BetaELBO(1.0, 3)], ids=repr)
def test_a_point_mass_and_a_masked_code_are_scored_as_by_trace_elbo(loss: ELBO) -> None:
    x = torch.randn(ROWS, X_DIM)
    for variant in (built(guide=PointMass), built(guide=PointMass, kl_weight=Masked())):
        if variant.codes_are_scored or not isinstance(loss, StickingTheLanding):
            assert same(found_by(loss, variant, x, SIZE), found_by(Trace_ELBO(), variant, x, SIZE))


@pytest.mark.parametrize("loss", PATH)
def test_path_estimators_follow_one_latent(loss: type[ELBO]) -> None:
    with pytest.raises(ValueError, match=r"follows the path of one latent, this pair draws \['a', 'b'\]: use IWAE"):
        loss().loss(*chain(torch.randn(ROWS, 1)))


def simple(**outside: Any) -> Functions:
    """A pair, and sites outside its plate: ``model`` and ``guide`` are called first."""
    nothing = tuple

    def guide() -> None:
        outside.get("guide", nothing)()
        with pyro.plate("data", 3), outside.get("guide_handler", poutine.block)(hide=[]):
            pyro.sample("z", dist.Normal(torch.zeros(3), 1.0))

    def model() -> None:
        outside.get("model", nothing)()
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=torch.zeros(3))

    return model, guide


def site(name: str, **options: Any) -> Callable[[], Any]:
    return lambda: pyro.sample(name, dist.Normal(torch.zeros(()), 1.0), **options)


STRANGE: dict[str, tuple[dict[str, Any], str]] = {
    "global latent": (
        {"model": site("g"), "guide": site("g")},
        "'g' stands outside .*with Pyro's Trace_ELBO",
    ),
    "global datum": ({"model": site("y", obs=torch.zeros(()))}, "'y' stands outside the plate of the data"),
    "drawn by the model": ({"model": site("g")}, r"draw the same sites, but only one of them has \['g'\]"),
    "observed by the guide": ({"guide": site("y", obs=torch.zeros(()))}, r"but only one of them has \['y'\]"),
    "scaled in the guide": (
        {"guide_handler": lambda hide: poutine.scale(scale=2.0)},
        "'z' has different scales in model and guide",
    ),
    "masked in the guide": (
        {"guide_handler": lambda hide: poutine.mask(mask=False)},
        "'z' has different masks in model and guide",
    ),
}


@pytest.mark.parametrize(("outside", "said"), STRANGE.values(), ids=STRANGE)
@pytest.mark.filterwarnings("ignore:Found vars in")
def test_sites_without_a_bound_a_datum_are_refused(outside: dict[str, Any], said: str) -> None:
    """By what every estimator reads its densities with."""
    with pyro.validation_enabled(False), pytest.raises(ValueError, match=said):
        BetaELBO().loss(*simple(**outside))


def test_a_guide_that_draws_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="must draw at least one site"):
        IWAE().loss(site("x", obs=torch.zeros(())), tuple)


def test_importance_weights_of_a_part_of_a_datum_are_refused() -> None:
    model, guide = shallow(torch.randn(ROWS, X_DIM), by_pixel=True, pixels=torch.tensor([0]))
    with pytest.raises(ValueError, match=r"site 'x' counts 5 times .*subsample only plates of data"):
        with_slopes(IWAE(max_plate_nesting=2), model, guide)


def test_a_mask_around_an_expanded_distribution_is_a_mask() -> None:
    """Pyro wraps a distribution that cannot expand itself."""

    def draw() -> Tensor:
        wrapped = ExpandedDistribution(dist.Normal(torch.tensor(0.5), 1.0), torch.Size([3]))
        with poutine.mask(mask=torch.tensor([True, False, True])):
            return pyro.sample("z", wrapped)

    def guide() -> None:
        with pyro.plate("data", 3):
            draw()

    def model() -> None:
        with pyro.plate("data", 3):
            pyro.sample("x", dist.Normal(draw(), 1.0), obs=torch.zeros(3))

    for loss in (IWAE(), StickingTheLanding()):
        with pytest.raises(ValueError, match="is masked"):
            loss.loss(model, guide)


def test_a_mask_of_the_distribution_is_a_mask() -> None:
    seen = torch.tensor([True, False, True])

    def program(obs: Tensor | None) -> Callable[[], None]:
        def run() -> None:
            with pyro.plate("data", 3):
                z = pyro.sample("z", dist.Normal(torch.full((3, 2), 0.5 * (obs is None)), 1.0).to_event(1).mask(seen))
                if obs is not None:
                    pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=obs)

        return run

    model, guide = program(torch.zeros(3, 2)), program(None)
    with seeded(7):
        ours = MeanFieldELBO().loss(model, guide)
    with seeded(7):
        pyros = TraceMeanField_ELBO().loss(model, guide)

    assert math.isclose(ours, pyros, rel_tol=1e-10)
    for loss in (IWAE(), DReG(), StickingTheLanding(), FreeBits()):
        with pytest.raises(ValueError, match="masked"):
            loss.loss(model, guide)


# verify: unbiased ones pass, mutations fail.

UNBIASED = (*ESTIMATORS, "free_bits:floor=0.4", "dip:kind=2,off_diagonal=5")


@pytest.mark.parametrize("spelled", UNBIASED)
def test_values_and_gradients_are_unbiased(spelled: str) -> None:
    exact, _ = problem()
    verdict = hold_against_truth(
        linear_pair(exact, shift=0.3, stretch=1.3), 2 * torch.randn(10, X_DIM), spelled, draws=100
    )
    assert verdict.passed, verdict


class Scaled(StickingTheLanding):
    """The value and the gradient of the ELBO, each times a number."""

    def __init__(self, value: float, gradient: float) -> None:
        super().__init__()
        self.value, self.gradient = value, gradient

    def objective(self, reading: Reading) -> Tensor:
        bound = super().objective(reading)
        return self.gradient * bound + (self.value - self.gradient) * bound.detach()


class HeavierKL(BetaELBO):
    target = "elbo"


class StuckIWAE(DReG):
    """STL inside IWAE: the score left out, the path counted v."""

    def weights(self, log_weight: Tensor) -> Weights:
        weight = log_weight.softmax(0)
        return Weights(weight, weight)


def failing(loss: ELBO, draws: int = 100) -> list[str]:
    return [name for name, z in verify(loss, draws=draws).z.items() if abs(z) >= 5]


def test_a_value_off_by_a_twentieth_is_seen() -> None:
    assert "value" in failing(Scaled(1.05, 1.0))


def test_a_gradient_off_by_a_twentieth_is_seen_in_every_group() -> None:
    found = failing(Scaled(1.0, 1.05), draws=600)
    assert {"gradient, encoder", "gradient, decoder", "gradient, sigma"} <= set(found)
    assert "value" not in found


def test_a_kl_off_by_a_twentieth_is_seen() -> None:
    assert "value" in failing(HeavierKL(1.05), draws=600)


def test_the_score_is_seen_to_be_left_out() -> None:
    assert set(failing(StuckIWAE(8))) == {"gradient, encoder", "gradient, encoder, 1 / 5 of the data"}


def test_a_scale_inside_the_logarithm_is_seen_on_a_part_of_the_data_alone() -> None:
    """Pyro's RenyiELBO has it there."""
    found = failing(RenyiELBO(0.0, 8, 1, vectorize_particles=True))
    assert "value, 1 / 5 of the data" in found
    assert all("1 / 5" in name for name in found)


def test_pyros_renyi_elbo_of_a_part_of_the_data_is_above_the_log_evidence() -> None:
    """20 data in batches of 2, order 0, 10 draws, where the guide is off: ours stays below."""
    exact = LinearGaussian(torch.randn(4, 2), torch.zeros(4), torch.tensor(0.5))
    x = torch.randn(20, 2) @ exact.loading.mT + 0.5 * torch.randn(20, 4)
    variant, evidence = linear_pair(exact, FullRank, shift=0.2, stretch=1.4), float(exact.log_evidence(x).sum())

    def bounds_of(loss: ELBO) -> Iterator[float]:
        for _ in range(12):
            yield from (-loss.loss(variant.model, variant.guide, rows, 20) for rows in x.split(2))

    pyros, ours = (
        torch.tensor([*bounds_of(loss)]) for loss in (RenyiELBO(0.0, 10, 1, vectorize_particles=True), IWAE(10))
    )
    pyros, ours = (found.reshape(12, 10).mean(1) for found in (pyros, ours))
    assert pyros.mean() - evidence > 4 * pyros.std() / math.sqrt(12)
    assert evidence - ours.mean() > 4 * ours.std() / math.sqrt(12)


def test_every_estimator_says_what_it_estimates() -> None:
    for name in ESTIMATORS:
        loss = estimator(name)
        assert isinstance(loss, PerDatumELBO | PathwiseELBO)
        assert loss.target in TARGETS


@pytest.mark.parametrize("alpha", [-1.0, 0.5, 3.0])
def test_the_bound_of_renyi_goes_from_the_elbo_to_its_limit_as_draws_grow(alpha: float) -> None:
    """For log w ~ Normal(-s**2 / 2, s) the ELBO is -s**2 / 2, log p(x) is 0 and R_alpha is -alpha s**2 / 2."""
    spread, rows = 0.8, 200_000
    elbo, limit = -(spread**2) / 2, -alpha * spread**2 / 2
    means, errors = [], []
    for draws in (1, 2, 8):
        found = Renyi(alpha, draws).bound(elbo + spread * torch.randn(draws, rows))
        means.append(found.mean().item())
        errors.append(found.std().item() / math.sqrt(rows))

    assert abs(means[0] - elbo) < 4 * errors[0]
    way = [(mean - elbo) / (limit - elbo) for mean in means]  # 0 at the ELBO, 1 at the limit
    assert 0.2 < way[1] < way[2] < 1
    assert (means[2] < elbo) == (alpha > 1)
