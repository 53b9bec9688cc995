"""``bounds``, compared with the linear-Gaussian model, for which log p(x), the bound and the gap are known exactly."""

import importlib
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from ppl_vae import VARIANTS, Variant, bounds, encode, evaluate, pair, reconstruct, with_prior
from ppl_vae.elbo.reading import Draws
from ppl_vae.evaluation.lower_bounds import BLOCK, Bounds, bounds_of, draws, held_out
from ppl_vae.guides import ConstantVariance, FullRank, Guide, MeanField, PointMass
from ppl_vae.models import (
    MMD,
    Bernoulli,
    ContinuousBernoulli,
    DiscretizedLogistic,
    DiscretizedNormal,
    Gaussian,
    Heteroscedastic,
    JacobianNorm,
    KLWeight,
    LearnedSigma,
    LinearGaussian,
    Masked,
    Mixture,
    OptimalSigma,
    Scale,
    WeightPrior,
    constant,
)
from ppl_vae.models.half import in_range
from ppl_vae.streams import seeded
from ppl_vae.variant import evaluating
from ppl_vae.verification.exact_pair import linear_pair

X_DIM, Z_DIM = 5, 2
module = importlib.import_module("ppl_vae.evaluation.lower_bounds")


def problem(rows: int = 9) -> tuple[LinearGaussian, Tensor]:
    """A model and data drawn from it."""
    model = LinearGaussian(torch.randn(X_DIM, Z_DIM), torch.randn(X_DIM), torch.tensor(0.6))
    return model, torch.randn(rows, Z_DIM) @ model.loading.mT + model.loc + model.sigma * torch.randn(rows, X_DIM)


def program(model: LinearGaussian, shift: float = 0.0, stretch: float = 1.0) -> Variant:
    """The model as a pair. Its guide is the posterior with a shifted mean and a covariance times ``stretch``."""
    return linear_pair(model, FullRank, shift=shift, stretch=math.sqrt(stretch))


def law(variant: Variant, x: Tensor) -> MultivariateNormal:
    with torch.no_grad():
        return variant.guide.posterior(x)


def levels(found: Bounds) -> tuple[Tensor, Tensor]:
    return found.elbo, found.importance_weighted


def agree(found: Tensor, truth: Tensor) -> bool:
    """Whether the mean of ``found - truth`` over data is within 4 standard errors of 0."""
    difference = found - truth
    return bool(difference.mean().abs() < 4 * difference.std() / math.sqrt(len(difference)))


# If the guide is the posterior, there is no Monte Carlo error.


@pytest.mark.parametrize(("num_particles", "rows_at_once"), [(1, 60), (7, 1000), (1000, 60), (2500, 1000)])
def test_both_bounds_are_the_log_evidence_where_the_guide_is_the_posterior(
    num_particles: int, rows_at_once: int
) -> None:
    """This holds for every K and every ``at_once``. A wrong number of draws would add a logarithm."""
    model, x = problem()

    found = bounds(program(model), x[:3], num_particles, at_once=rows_at_once)

    for bound in levels(found):
        assert torch.allclose(bound, model.log_evidence(x[:3]), rtol=0, atol=1e-9)


def test_the_bounds_of_a_part_of_the_data_are_the_part_of_the_bounds() -> None:
    model, x = problem(1500)
    variant = program(model)

    whole = bounds(variant, x, 2)
    parts = [bounds(variant, rows, 2) for rows in x.split([1, 700, 799])]

    for name in ("elbo", "importance_weighted"):
        assert torch.allclose(getattr(whole, name), torch.cat([getattr(part, name) for part in parts]), atol=1e-10)


def test_a_mixture_of_one_component_as_the_prior_has_the_evidence_of_the_moved_model() -> None:
    """With z = m + L u ~ Normal(m, L L^T), the model of u has loading W L, loc b + W m and the same log p(x)."""
    model, x = problem()
    tril, centre = torch.tensor([[0.7, 0.0], [0.4, 1.6]]), torch.tensor([0.5, -1.0])
    moved = LinearGaussian(model.loading @ tril, model.loc + model.loading @ centre, model.sigma)
    prior = Mixture.of(torch.ones(1), centre.unsqueeze(0), (tril @ tril.mT).unsqueeze(0))
    variant = with_prior(program(model), prior)
    u = moved.posterior(torch.zeros(1, X_DIM))
    rotation = moved.posterior(torch.eye(X_DIM)).loc - u.loc
    factor = torch.linalg.cholesky(tril @ u.covariance_matrix[0] @ tril.mT)
    loc, log_diagonal, below = variant.guide.heads
    loc.weight.data, loc.bias.data = tril @ rotation.mT, centre + tril @ u.loc[0]
    log_diagonal.bias.data, below.bias.data = factor.diagonal().log(), factor[1:, 0].clone()

    found = bounds(variant, x, 5)
    for bound in levels(found):
        assert torch.allclose(bound, moved.log_evidence(x), rtol=0, atol=1e-10)


# If the guide is not the posterior, expectations are known.

OFF = {"shift": 0.12, "stretch": 1.3}  # wider than the posterior, so that the weights have a finite variance


def moment(order: int, model: LinearGaussian, guide: MultivariateNormal, x: Tensor) -> Tensor:
    """The moment ``E_q[(p(z | x) / q(z)) ** order]`` of a weight divided by p(x), in closed form, [rows]."""
    exact, less = model.posterior(x), order - 1
    p, q = torch.linalg.inv(exact.covariance_matrix), torch.linalg.inv(guide.covariance_matrix)
    joint, gap = order * p - less * q, guide.loc - exact.loc
    slope = less * (q @ gap.unsqueeze(-1)).squeeze(-1)
    square = (slope * torch.linalg.solve(joint, slope)).sum(-1) + (slope * gap).sum(-1)
    return ((square + order * torch.logdet(p) - less * torch.logdet(q) - torch.logdet(joint)) / 2).exp()


@pytest.mark.parametrize(("num_particles", "rows_at_once"), [(1, 500), (8, 4000), (90, 500)])
def test_the_elbo_is_the_closed_form_bound(num_particles: int, rows_at_once: int) -> None:
    """This holds on average over draws, for every ``at_once``."""
    model, x = problem(2000)
    variant = program(model, **OFF)

    found = bounds(variant, x, num_particles, at_once=rows_at_once)

    exact = model.bound(x, law(variant, x))
    assert agree(found.elbo, exact)
    assert not agree(found.elbo, exact + 0.3 / math.sqrt(num_particles))  # the test can tell them apart
    assert (found.importance_weighted >= found.elbo - 1e-12).all()  # Jensen's inequality, for the same draws


@pytest.mark.parametrize("num_particles", [1, 64, 5000])
def test_weights_are_averaged_in_log_space(num_particles: int) -> None:
    """The weights differ by 200 orders of magnitude, around -10,000 nats."""
    log_weight = 100 * torch.randn(num_particles, 4) - 1e4
    zero = torch.zeros_like(log_weight)

    found = bounds_of(Draws(zero, log_weight, zero, zero))

    assert torch.allclose(found.elbo, log_weight.mean(0), rtol=1e-12)
    exact = log_weight.logsumexp(0) - math.log(num_particles)
    assert torch.allclose(found.importance_weighted, exact, rtol=1e-12)


@pytest.mark.parametrize(("num_particles", "at_once"), [(1, 1), (7, 5), (7, 64), (64, 10_000)])
def test_the_bounds_of_a_datum_are_the_same_however_the_work_is_cut(num_particles: int, at_once: int) -> None:
    """This holds for each draw, because every block of data has a random stream of its own."""
    model, x = problem(70)
    variant = program(model, **OFF)

    whole, cut = draws(variant, x, num_particles, seed=3), draws(variant, x, num_particles, seed=3, at_once=at_once)
    found = bounds(variant, x, num_particles, seed=3, at_once=at_once)

    assert torch.equal(whole.z, cut.z)
    assert torch.allclose(whole.log_weight, cut.log_weight, rtol=0, atol=1e-11)
    for name in ("elbo", "importance_weighted", "ess", "importance_weighted_error"):
        assert torch.allclose(getattr(found, name), getattr(bounds_of(whole), name), rtol=0, atol=1e-9, equal_nan=True)
    assert not torch.equal(draws(variant, x, num_particles, seed=4).z, whole.z)
    assert len(whole.z.flatten().unique()) == whole.z.numel()  # no stream is used twice


def test_draws_of_neighbouring_data_are_uncorrelated() -> None:
    """A correlation of 4000 pairs has standard error 4000 ** -1/2. All 2 x 2 are below 5 standard errors."""
    model, x = problem(1)
    z = draws(program(model), x.expand(4000 + BLOCK, -1), 1).z[0]

    for lag in (1, BLOCK):
        pairs = torch.cat([z[:4000], z[lag : 4000 + lag]], 1)
        assert torch.corrcoef(pairs.mT)[:2, 2:].abs().max() < 5 / math.sqrt(4000)


def test_the_errors_are_the_spread_over_repetitions() -> None:
    """The spread is over 1500 equal data with 200 draws each, and has a relative standard error of 2 %."""
    model, x = problem(1)
    found = bounds(program(model, **OFF), x.expand(1500, -1), 200)

    for name in ("elbo", "importance_weighted"):
        stated, spread = getattr(found, f"{name}_error").square().mean().sqrt(), getattr(found, name).std()
        assert abs(stated / spread - 1) < 0.1
        assert stated > 1e-3


def test_draws_under_another_prior_are_the_draws_of_the_swapped_model_without_running_it() -> None:
    model, x = problem()
    variant = program(model, **OFF)
    mixture = Mixture.of(torch.ones(2) / 2, torch.randn(2, Z_DIM), torch.eye(Z_DIM).expand(2, -1, -1))
    found = draws(variant, x, 20)
    swapped, calls = draws(with_prior(variant, mixture), x, 20), []
    variant.model.decoder.register_forward_hook(lambda net, args, out: calls.append(len(out)))

    under = found.under(mixture)

    assert torch.allclose(under.log_weight, swapped.log_weight, rtol=0, atol=1e-10)
    assert calls == []


def test_the_importance_weighted_bound_is_below_the_evidence_and_rises_with_k() -> None:
    model, x = problem(4000)
    variant, evidence = program(model, shift=0.3, stretch=1.3), model.log_evidence(x)

    rising = [
        bounds(variant, x, num_particles, at_once=100_000).importance_weighted for num_particles in (1, 4, 16, 64)
    ]

    for low, high in zip(rising, [*rising[1:], evidence], strict=True):
        rise = high - low
        assert rise.mean() > 4 * rise.std() / math.sqrt(len(rise))


def test_what_the_importance_weighted_bound_lacks_is_chi_squared_over_two_k() -> None:
    """The next term of the series is tested too. ``log_ratio.expm1()``, of expectation 0, is a control variate."""
    num_particles = 50
    model, x = problem(1_000_000 // num_particles)
    variant = program(model, **OFF)

    log_ratio = bounds(variant, x, num_particles, at_once=200_000).importance_weighted - model.log_evidence(x)

    second, third = (moment(order, model, law(variant, x), x) for order in (2, 3))
    chi, skew = second - 1, third - 3 * second + 2  # central moments of a weight divided by p(x)
    leading, following = chi / (2 * num_particles), (0.75 * chi**2 - skew / 3) / num_particles**2
    assert agree(log_ratio.expm1(), torch.zeros(()))
    lacks = log_ratio.expm1() - log_ratio
    assert agree(lacks, leading + following)
    assert not agree(lacks, 1.2 * leading + following)  # the test can tell them apart
    assert chi.min() > 0.1
    assert (following.abs() < 0.1 * leading).all()


# As many draws as were asked for, in bounded memory.


@pytest.mark.parametrize("num_particles", [1, 7, 1000, 2500])
def test_each_datum_gets_exactly_the_draws_that_were_asked_for(
    num_particles: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows that the decoder sees are counted, without those that test whether p(x | z) is a mass."""
    monkeypatch.setattr(module, "log_jacobian", lambda variant: torch.zeros(()))
    model, x = problem()
    variant, rows = program(model), []
    variant.model.decoder.register_forward_hook(lambda net, args, out: rows.append(len(out)))

    bounds(variant, x, num_particles)

    assert sum(rows) == num_particles * len(x)
    assert max(rows) <= 1000


@pytest.mark.parametrize("num_particles", [0, -3])
def test_no_draws_are_refused(num_particles: int) -> None:
    model, x = problem()
    with pytest.raises(ValueError, match=f"num_particles and at_once must be at least 1, got {num_particles}"):
        bounds(program(model), x, num_particles)


@pytest.mark.parametrize("name", [name for name in VARIANTS if not VARIANTS[name]((X_DIM,), Z_DIM).has_bound])
def test_a_point_mass_has_no_bound(name: str) -> None:
    with pytest.raises(ValueError, match=r"point-mass guide has no density, so there is no bound: .* MAP"):
        bounds(VARIANTS[name]((X_DIM,), Z_DIM), torch.randn(3, X_DIM))


# Units.


def rescaled(variant: Variant, width: float) -> Variant:
    variant.model.scale = Scale(variant.model.x_shape, width=width)
    return variant


@pytest.mark.parametrize("guide", [MeanField, FullRank, ConstantVariance])
def test_data_ten_times_as_large_lose_d_log_ten_and_nothing_else(guide: type[Guide]) -> None:
    """In units that are ten times as small, the model sees the same numbers. Only the log Jacobian changes."""
    variant, x = pair((X_DIM,), Z_DIM, likelihood=Gaussian(), guide=guide), torch.randn(20, X_DIM)
    with seeded(0):
        one, code, image = bounds(variant, x, 6), encode(variant, x), reconstruct(variant, x)
    ten_times = rescaled(variant, 10.0)
    with seeded(0):
        ten = bounds(ten_times, 10 * x, 6)

    for before, after in zip(levels(one), levels(ten), strict=True):
        assert torch.allclose(after, before - X_DIM * math.log(10), rtol=0, atol=1e-9)
    assert torch.allclose(encode(ten_times, 10 * x), code, rtol=0, atol=1e-12)
    assert torch.allclose(reconstruct(ten_times, 10 * x), 10 * image, rtol=0, atol=1e-11)


def test_units_of_each_coordinate_count_by_their_own_width() -> None:
    """The truth is the evidence of the linear-Gaussian model with its loading and loc in the data's units."""
    model, y = problem()
    shift, width = torch.randn(X_DIM), torch.tensor([0.01, 0.5, 1.0, 30.0, 2000.0])
    variant = program(model)
    variant.model.scale = Scale((X_DIM,), shift, width)
    covariance = width[:, None] * (model.loading @ model.loading.mT + model.sigma**2 * torch.eye(X_DIM)) * width
    evidence = MultivariateNormal(shift + width * model.loc, covariance).log_prob(shift + width * y)

    for bound in levels(bounds(variant, shift + width * y, 4)):
        assert torch.allclose(bound, evidence, rtol=0, atol=1e-8)


MASSES: dict[str, tuple[Callable[[], nn.Module], bool]] = {
    "bernoulli": (Bernoulli, True),
    "discretized_normal": (DiscretizedNormal, True),
    "discretized_logistic": (DiscretizedLogistic, True),
    "continuous_bernoulli": (ContinuousBernoulli, False),
    "gaussian": (Gaussian, False),
}


@pytest.mark.parametrize(("likelihood", "mass"), MASSES.values(), ids=MASSES)
def test_a_mass_has_no_units(likelihood: Callable[[], nn.Module], mass: bool) -> None:
    """Grey values of 0 and 255 have the same probability as 0 and 1, but not the same density."""
    variant, x = pair((X_DIM,), Z_DIM, likelihood=likelihood()), torch.randint(2, (8, X_DIM)).double()
    with seeded(0):
        one = bounds(variant, x, 6)
    with seeded(0):
        grey = bounds(rescaled(variant, 255.0), 255 * x, 6)

    shift = 0.0 if mass else X_DIM * math.log(255)
    for before, after in zip(levels(one), levels(grey), strict=True):
        assert torch.allclose(after, before - shift, rtol=0, atol=1e-9)
    assert not mass or one.elbo.max() < 0


# Weights and penalties of the training are not part of a reported number.


def weighted(variant: Variant, kl_weight: nn.Module | None, penalties: list[nn.Module]) -> Variant:
    variant.model.kl_weight = variant.guide.kl_weight = kl_weight
    variant.model.penalties = nn.ModuleList(penalties)
    return variant


WEIGHTS: dict[str, Callable[[], tuple[nn.Module | None, list[nn.Module]]]] = {
    "beta": lambda: (KLWeight(constant(4.0)), []),
    "warm_up": lambda: (KLWeight(constant(0.0)), []),
    "masked": lambda: (Masked(), []),
    "penalties": lambda: (None, [WeightPrior(0.1), JacobianNorm(3.0), MMD(50.0)]),
    "all": lambda: (KLWeight(constant(0.5)), [WeightPrior(0.1), JacobianNorm(3.0), MMD(50.0)]),
}


@pytest.mark.parametrize(
    ("weights", "training"), list(zip(WEIGHTS.values(), [True, False, True, False, True], strict=True)), ids=WEIGHTS
)
def test_training_weights_change_no_reported_bound(
    weights: Callable[[], tuple[nn.Module | None, list[nn.Module]]], training: bool
) -> None:
    """The bounds are equal to the last bit, in both modes of the pair, and the mode does not change."""
    variant, x = pair((X_DIM,), Z_DIM, likelihood=Gaussian()), torch.randn(20, X_DIM)

    def reported() -> list[Tensor]:
        with seeded(0):
            numbers = list(bounds(variant, x, 5)[:6])
        with seeded(0), evaluating(variant):
            numbers.append(held_out(variant, x, 5))
        found = evaluate(variant, x, 5)
        return [*numbers, *(torch.tensor(found[name].value) for name in ("bound", "importance_weighted", "kl"))]

    plain = reported()
    weighted(variant, *weights())
    variant.model.train(training)
    variant.guide.train(training)

    assert all(torch.equal(a, b) for a, b in zip(reported(), plain, strict=True))
    assert variant.model.training == variant.guide.training == training


def test_bounds_are_of_eval_mode_whatever_mode_the_pair_is_in() -> None:
    """Dropout and batch statistics have no effect, and a scale that is set in training does not change."""
    layers = nn.Linear(Z_DIM, X_DIM), nn.BatchNorm1d(X_DIM), nn.Dropout(0.5)
    variant, x = (
        pair((X_DIM,), Z_DIM, likelihood=OptimalSigma(), decoder=nn.Sequential(*layers)),
        torch.randn(20, X_DIM),
    )
    variant.model.eval()
    with seeded(0):
        still = bounds(variant, x, 5)
    before = {name: value.clone() for name, value in variant.model.state_dict().items()}
    variant.model.train()

    with seeded(0):
        moving = bounds(variant, x, 5)

    assert all(torch.equal(a, b) for a, b in zip(still[:6], moving[:6], strict=True))
    assert all(torch.equal(value, before[name]) for name, value in variant.model.state_dict().items())


# A point mass is scored by its log joint density.

SCORED: dict[str, tuple[dict[str, Any], bool]] = {
    "rae": ({}, True),
    "rae_weighted": ({"kl_weight": KLWeight(constant(3.0)), "penalties": [WeightPrior(0.1)]}, True),
    "autoencoder": ({"kl_weight": Masked()}, False),
    "wae": ({"kl_weight": Masked(), "penalties": [MMD(100.0)]}, False),
}


@pytest.mark.parametrize("num_particles", [1, 4])
@pytest.mark.parametrize(("parts", "codes_scored"), SCORED.values(), ids=SCORED)
def test_a_point_mass_is_scored_by_the_log_joint_of_each_datum(
    parts: dict[str, Any], codes_scored: bool, num_particles: int
) -> None:
    """The log densities are computed by hand in the data's units: that of the datum, and that of the code if scored."""
    variant = pair((X_DIM,), Z_DIM, likelihood=Gaussian(0.3), guide=PointMass, **parts)
    variant.model.scale = Scale((X_DIM,), 2.0, 5.0)
    x = 2 + 5 * torch.randn(1200, X_DIM)
    with evaluating(variant):
        found = held_out(variant, variant.in_model_units(x), num_particles)

    expected = dist.Normal(reconstruct(variant, x), 5 * 0.3).log_prob(x).sum(-1)
    if codes_scored:
        expected = expected + dist.Normal(0.0, 1.0).log_prob(encode(variant, x)).sum(-1)
    assert torch.allclose(found, expected, rtol=1e-10)


def test_held_out_scores_a_vae_by_its_bound() -> None:
    model, x = problem(1500)
    variant = program(model)
    with evaluating(variant):
        found = held_out(variant, x, 3)

    assert torch.allclose(found, model.log_evidence(x), rtol=0, atol=1e-10)


# Data far from all others.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_log_scale_is_bent_outside_the_ordinary_range_alone(dtype: torch.dtype) -> None:
    inside = torch.linspace(-20, 10, 10_001, dtype=dtype, requires_grad=True)
    (slope,) = torch.autograd.grad(in_range(inside).sum(), inside)
    outside = torch.tensor([-math.inf, -1e30, -20.1, 10.1, 1e4, 1e30, math.inf], dtype=dtype)
    bent = in_range(outside)

    assert torch.equal(in_range(inside), inside)
    assert torch.equal(slope, torch.ones_like(slope))
    assert bool((bent[1:] >= bent[:-1]).all())  # the order is kept
    assert bool(bent.exp().isfinite().all() and (bent.exp() > 0).all())
    torch.testing.assert_close(bent[[2, 3]], outside[[2, 3]], rtol=1e-5, atol=0)  # it is smooth: tanh u = u - u**3 / 3


@pytest.mark.parametrize("guide", [MeanField, FullRank])
@pytest.mark.parametrize(("likelihood", "seed"), [(LearnedSigma, 0), (Heteroscedastic, 1), (Heteroscedastic, 2)])
def test_data_far_out_have_finite_bounds_and_the_lower_the_farther(
    guide: type[Guide], likelihood: type[nn.Module], seed: int
) -> None:
    """In single precision, exp(log scale) of a linear head would overflow or be 0 for log scales beyond 100."""
    torch.manual_seed(seed)
    noise = likelihood()
    decoder = nn.Linear(3, int(noise.outputs) * X_DIM)  # type: ignore[arg-type]
    variant = pair((X_DIM,), 3, likelihood=noise, guide=guide, encoder=nn.Identity(), decoder=decoder)
    variant.model.advance(1, 1)
    variant.model.float()
    variant.guide.float()
    far = torch.tensor([1.0, 1e2, 1e3, 1e4, 1e6, 1e8])
    for x in (far[:, None] * torch.randn(X_DIM), -far[:, None] * torch.ones(X_DIM)):
        found = bounds(variant, x, 20)

        for bound in levels(found):
            assert bool(bound.isfinite().all())
            assert float(bound[1:].max()) < float(bound[0])
            assert float(bound[-1]) < -1e6
        assert bool(encode(variant, x).isfinite().all())
        assert evaluate(variant, x, 20)["bound"].value is not None


@pytest.mark.parametrize(("guide", "seed"), [(MeanField, 0), (FullRank, 0), (FullRank, 1), (FullRank, 2)])
def test_no_bound_is_above_the_evidence_far_out(guide: type[Guide], seed: int) -> None:
    """In single precision, log q of a full covariance is rounding error there, and could give bounds above 1e13."""
    torch.manual_seed(seed)
    model, _ = problem()
    variant = linear_pair(model, guide)
    with torch.no_grad():
        for head in list(variant.guide.heads)[1:]:
            head.weight.normal_()  # type: ignore[union-attr, operator]
    x = 10.0 ** torch.arange(1, 7)[:, None] * torch.randn(6, X_DIM)  # so far out that draws agree to many digits
    evidence = model.log_evidence(x)
    variant.model.float()
    variant.guide.float()

    for bound in levels(bounds(variant, x, 50)):
        assert bool((bound <= evidence + 1e-5 * evidence.abs()).all())


NARROW = [MeanField, FullRank, partial(ConstantVariance, scale=4e-11)]


@pytest.mark.parametrize("guide", NARROW, ids=["mean field", "full rank", "constant variance"])
def test_no_bound_is_above_its_limit_where_codes_are_rounded(guide: Any) -> None:
    """log p(x | z) is at most -D log(sigma sqrt(2 pi)), and so is every bound.

    Near 18, single precision has one number in 1.9e-6. A draw from a guide of width 4e-11 is 5e4 widths away from a
    mean that another batch rounds in another way, so that log q(z | x) of the draw is about -1e9.
    """
    with seeded(0):
        encoder = nn.Sequential(nn.Linear(X_DIM, 64), nn.Tanh())
        parts = {"guide": guide, "encoder": encoder, "decoder": nn.Linear(3, X_DIM)}
        variant = pair((X_DIM,), 3, likelihood=Gaussian(0.02), **parts)
        x = torch.randn(200, X_DIM)
    with torch.no_grad():
        variant.guide.heads[0].bias.fill_(18.0)  # type: ignore[operator, union-attr]
        for head in list(variant.guide.heads)[1:2]:
            head.weight.zero_()  # type: ignore[operator, union-attr]
            head.bias.fill_(math.log(4e-11))  # type: ignore[operator, union-attr]
    variant.model.float()
    variant.guide.float()

    limit = -X_DIM * math.log(0.02 * math.sqrt(2 * math.pi))
    assert all(bool((bound < limit).all()) for bound in levels(bounds(variant, x.float(), 100, at_once=100)))


def test_draws_are_cut_by_the_shape_of_x_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """If a datum is large, the blocks are smaller. The number of codes that are scored at once changes nothing."""
    monkeypatch.setattr("ppl_vae.blocks.NUMBERS", 4 * X_DIM)
    model, x = problem()
    variant = program(model, shift=0.3)

    whole, one_by_one = bounds(variant, x, 6, at_once=1000), bounds(variant, x, 6, at_once=1)
    torch.testing.assert_close(whole.elbo, one_by_one.elbo, rtol=1e-12, atol=0)
