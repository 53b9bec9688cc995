"""Likelihoods against scipy, quadrature and sums over the grid: densities integrate to one, means are means."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pyro
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
import torch
from covering import covering
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch import Tensor, nn

from ppl_vae import SVI, fit, pair
from ppl_vae.elbo import PathwiseELBO
from ppl_vae.guides import PointMass
from ppl_vae.models import (
    Bernoulli,
    ContinuousBernoulli,
    DiscretizedLogistic,
    DiscretizedNormal,
    Gaussian,
    Heteroscedastic,
    Laplace,
    LearnedSigma,
    OptimalSigma,
    StudentT,
)
from ppl_vae.models.distributions import log_normalizer
from ppl_vae.models.steps import one_step

LEVELS = 16
GRID = np.linspace(0, 1, LEVELS)
LINE, UNIT, BITS = (-math.inf, math.inf), (0.0, 1.0), np.array([0.0, 1.0])


class Case(NamedTuple):
    """A likelihood, where its x lives (an interval, or every value), and log p(x | outputs) by another route."""

    build: Callable[[], nn.Module]
    support: Any
    log_prob: Callable[..., Any]


def continuous_bernoulli(x: Any, logits: float) -> Any:
    """As printed by Loaiza-Ganem and Cunningham, in the probability and not in the logits."""
    p = scipy.special.expit(logits)
    log_c = math.log(2 * math.atanh(1 - 2 * p) / (1 - 2 * p)) if p != 0.5 else math.log(2)
    return x * np.log(p) + (1 - x) * np.log1p(-p) + log_c


def gathered(family: Any) -> Callable[..., Any]:
    """Mass that a distribution of scipy has in the cell around each grid point, the tails in the outermost cells."""

    def log_mass(x: Any, loc: float) -> Any:
        half = 0.5 / (LEVELS - 1)
        upper = np.where(x > 1 - half, np.inf, x + half)
        lower = np.where(x < half, -np.inf, x - half)
        below = family.cdf(upper, loc, 0.1) - family.cdf(lower, loc, 0.1)
        above = family.sf(lower, loc, 0.1) - family.sf(upper, loc, 0.1)
        return np.log(np.where(x < loc, below, above))

    return log_mass


CASES = {
    "bernoulli": Case(Bernoulli, BITS, lambda x, t: scipy.stats.bernoulli(scipy.special.expit(t)).logpmf(x)),
    "continuous_bernoulli": Case(ContinuousBernoulli, UNIT, continuous_bernoulli),
    "gaussian": Case(lambda: Gaussian(0.3), LINE, lambda x, loc: scipy.stats.norm.logpdf(x, loc, 0.3)),
    "learned_sigma": Case(lambda: LearnedSigma(0.4), LINE, lambda x, loc: scipy.stats.norm.logpdf(x, loc, 0.4)),
    "optimal_sigma": Case(lambda: OptimalSigma(0.5), LINE, lambda x, loc: scipy.stats.norm.logpdf(x, loc, 0.5)),
    "laplace": Case(lambda: Laplace(0.4), LINE, lambda x, loc: scipy.stats.laplace.logpdf(x, loc, 0.4)),
    "student_t": Case(lambda: StudentT(4.0, 0.4), LINE, lambda x, loc: scipy.stats.t.logpdf(x, 4, loc, 0.4)),
    "heteroscedastic": Case(
        lambda: Heteroscedastic(0.4, floor=-40.0, stage=0.0),
        LINE,
        lambda x, loc, head=0.7: scipy.stats.norm.logpdf(x, loc, 0.4 * math.exp(head)),
    ),
    "discretized_normal": Case(lambda: DiscretizedNormal(LEVELS, 0.1), GRID, gathered(scipy.stats.norm)),
    "discretized_logistic": Case(lambda: DiscretizedLogistic(LEVELS, 0.1), GRID, gathered(scipy.stats.logistic)),
}
LOCATIONS = [-1.3, 0.0, 0.04, 0.46, 0.9, 2.1]
every_likelihood = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def x_given(case: Case, loc: float) -> Any:
    """p(x | z) of shape [] when the decoder's outputs are ``loc`` and, where there is a second, 0.7."""
    likelihood = case.build()
    return likelihood(torch.tensor(loc), *[torch.tensor(0.7)] * (likelihood.outputs - 1))


def total(case: Case, loc: float, weight: Callable[[Any], Any] = np.ones_like) -> float:
    """``sum weight(x) p(x)`` or its integral, split at ``loc`` where p may have a kink."""
    p = x_given(case, loc)

    def summand(x: Any) -> Any:
        return weight(x) * p.log_prob(torch.as_tensor(x)).detach().exp().numpy()

    if isinstance(case.support, np.ndarray):
        return float(summand(case.support).sum())
    low, high = case.support
    ends = sorted({low, min(max(loc, low), high), high})
    return sum(scipy.integrate.quad(summand, *piece, epsabs=1e-12, epsrel=1e-12)[0] for piece in pairwise(ends))


@every_likelihood
def test_probability_is_one_in_total(case: Case) -> None:
    assert [total(case, loc) for loc in LOCATIONS] == pytest.approx([1] * len(LOCATIONS), abs=1e-9)


@every_likelihood
def test_log_prob_is_that_of_another_route(case: Case) -> None:
    intervals = {LINE: np.linspace(-3, 3, 9), UNIT: np.linspace(0, 1, 9)}
    x = case.support if isinstance(case.support, np.ndarray) else intervals[case.support]

    for loc in LOCATIONS:
        log_prob = x_given(case, loc).log_prob(torch.as_tensor(x)).detach().numpy()
        assert log_prob == pytest.approx(case.log_prob(x, loc), rel=1e-8, abs=1e-8), loc


@every_likelihood
def test_the_mean_is_the_mean(case: Case) -> None:
    """To rounding; of a discretised family of many levels, as its docstring says, to 5e-6 of a cell."""
    error = 5e-6 / (LEVELS - 1) if case.support is GRID else 2e-8

    means = [x_given(case, loc).mean.item() for loc in LOCATIONS]

    assert means == pytest.approx([total(case, loc, lambda x: x) for loc in LOCATIONS], abs=error)


@pytest.mark.parametrize("family", [DiscretizedNormal, DiscretizedLogistic])
@pytest.mark.parametrize(
    ("levels", "cells"), [(2, 1e-12), (3, 1e-12), (8, 1e-12), (17, 1e-12), (18, 5e-6), (256, 5e-6)]
)
def test_the_mean_of_a_discretised_law_is_the_sum_over_its_levels(family: Any, levels: int, cells: float) -> None:
    """And so is its slope, at scales from a hundredth of a cell to hundreds, and locations beyond both ends."""
    scales = torch.logspace(-2, 2.5, 12) / (levels - 1)
    loc, scale = torch.broadcast_tensors(torch.linspace(-0.3, 1.3, 97)[:, None], scales)
    loc, scale = loc.clone().requires_grad_(), scale.clone().requires_grad_()
    grey = torch.arange(levels) / (levels - 1)
    law = family.family
    expected = (law(loc[..., None], scale[..., None], levels).log_prob(grey).exp() * grey).sum(-1)

    mean = law(loc, scale, levels).mean

    assert (mean - expected).abs().max().item() < cells / (levels - 1)
    ours, theirs = (torch.autograd.grad(value.sum(), (loc, scale)) for value in (mean, expected))
    for one, other in zip(ours, theirs, strict=True):
        assert (one - other).abs().max().item() < 2 * cells + 1e-9  # a cell per cell
    single = law(loc.float(), scale.float(), levels).mean
    assert (single - expected).abs().max().item() < 2e-5  # a location is rounded to 6e-8, a hundredth of a cell to more


@pytest.mark.parametrize("loc", [0.04, 0.9])
@every_likelihood
def test_draws_agree_with_the_mean_and_lie_in_the_support(case: Case, loc: float) -> None:
    draws = x_given(case, loc).sample((20_000,)).double()

    mean = total(case, loc, lambda x: x)
    standard_error = math.sqrt(total(case, loc, lambda x: (x - mean) ** 2) / len(draws))
    assert abs(draws.mean() - mean) < 4 * standard_error + 1e-12  # an error of 1e-18 where one cell has all the mass
    if isinstance(case.support, np.ndarray):
        assert set(draws.unique().tolist()) <= set(case.support.tolist())
    else:
        assert case.support[0] <= draws.min() < draws.max() <= case.support[1]


@pytest.mark.parametrize("loc", [-40.0, -0.5, 0.0, 3.0, 700.0])
def test_draws_of_the_continuous_bernoulli_have_its_distribution(loc: float) -> None:
    """Kolmogorov and Smirnov's distance, against the distribution function ``expm1(t x) / expm1(t)``."""

    def cdf(x: Any) -> Any:
        down = -abs(loc) or 1e-12
        y = np.expm1(down * (1 - x if loc > 0 else x)) / np.expm1(down)
        return 1 - y if loc > 0 else y

    draws = x_given(CASES["continuous_bernoulli"], loc).sample((5_000,)).numpy()

    assert scipy.stats.kstest(draws, cdf).pvalue > 1e-4


@pytest.mark.parametrize("loc", [-5.0, 1e-4, 0.7, 40.0])
def test_draws_of_the_continuous_bernoulli_move_with_its_mean(loc: float) -> None:
    """The average slope of a draw in the logits is that of the mean: the variance."""
    t = torch.full((20_000,), loc, requires_grad=True)
    (slopes,) = torch.autograd.grad(ContinuousBernoulli()(t).rsample().sum(), t)

    assert abs(slopes.mean() - truth(loc)[2]) < 4 * slopes.std() / math.sqrt(len(slopes))


@every_likelihood
def test_many_data_are_scored_as_each_alone(case: Case) -> None:
    likelihood, support = case.build(), torch.as_tensor(BITS)
    outputs = [torch.randn(3, 1, 5) for _ in range(likelihood.outputs)]
    x = support[torch.randint(2, (4, 5))]

    p = likelihood(*outputs)

    assert tuple(p.batch_shape) == (3, 1, 5)
    assert tuple(p.sample((2,)).shape) == (2, 3, 1, 5)
    alone = [likelihood(*(o[i, 0] for o in outputs)).log_prob(x[j]) for i in range(3) for j in range(4)]
    assert torch.equal(p.log_prob(x).reshape(12, 5), torch.stack(alone))


@pytest.mark.parametrize("name", ["learned_sigma", "laplace", "student_t", "heteroscedastic", "optimal_sigma"])
def test_data_in_other_units_are_scored_by_a_scale_in_those_units(name: str) -> None:
    """A variance in the place of a standard deviation would need ``255**2``."""
    families: dict[str, Callable[[float], nn.Module]] = {
        "learned_sigma": LearnedSigma,
        "laplace": Laplace,
        "student_t": lambda scale: StudentT(scale=scale),
        "heteroscedastic": lambda scale: Heteroscedastic(scale, floor=-40.0, stage=0.0),
        "optimal_sigma": OptimalSigma,
    }
    x, loc = torch.randn(7), torch.randn(7)
    head = [torch.randn(7)] * (name == "heteroscedastic")

    here = families[name](0.3)(loc, *head).log_prob(x)
    there = families[name](255 * 0.3)(255 * loc, *head).log_prob(255 * x)

    assert torch.allclose(there, here - math.log(255), rtol=0, atol=1e-10)


# The continuous Bernoulli over the whole range of logits.

MAGNITUDES = [1e-30, 1e-8, 1e-5, 1e-3, 0.1, 0.29, 0.31, 1.0, 5.0, 16.0, 20.0, 60.0, 300.0, 1000.0]
WIDE = [sign * magnitude for magnitude in MAGNITUDES for sign in (1, -1)]
SERIES = {torch.float32: 2e-6, torch.float64: 1e-7}  # rounding in float32, a series cut after t**6 in float64


def truth(t: float) -> tuple[float, float, float]:
    """Log C, the mean and the variance, from ``integral exp(x t) dx``: no term of the library's formulas."""
    a = abs(t)
    log_c = math.log1p(math.exp(-a)) - math.log(-math.expm1(-a) / a)
    if a > 30:
        return log_c, (1 - 1 / t if t > 0 else -1 / t), 1 / t**2
    nodes, weights = np.polynomial.legendre.leggauss(60)
    x = (nodes + 1) / 2
    p = weights * np.exp(t * (x - 0.5))
    mean = float((p * x).sum() / p.sum())
    return log_c, mean, float((p * (x - mean) ** 2).sum() / p.sum())


def with_slope(function: Callable[[Tensor], Tensor], t: Tensor) -> tuple[list[float], list[float]]:
    """The values of an elementwise function, and its derivatives."""
    t = t.clone().requires_grad_()
    value = function(t)
    (slope,) = torch.autograd.grad(value.sum(), t)
    return value.tolist(), slope.tolist()


@pytest.mark.parametrize("dtype", SERIES, ids=str)
def test_the_normaliser_is_exact_from_minus_to_plus_a_thousand(dtype: torch.dtype) -> None:
    value, slope = with_slope(log_normalizer, torch.tensor(WIDE, dtype=dtype))

    assert value == pytest.approx([truth(t)[0] for t in WIDE], rel=SERIES[dtype], abs=0)
    assert slope == pytest.approx([scipy.special.expit(t) - truth(t)[1] for t in WIDE], abs=SERIES[dtype])


@pytest.mark.parametrize("dtype", SERIES, ids=str)
@pytest.mark.parametrize("x", [0.0, 0.3, 1.0])
def test_the_slope_of_the_log_density_is_x_less_the_mean(x: float, dtype: torch.dtype) -> None:
    likelihood, observed = ContinuousBernoulli(), torch.tensor(x, dtype=dtype)
    _, slope = with_slope(lambda t: likelihood(t).log_prob(observed), torch.tensor(WIDE, dtype=dtype))

    assert slope == pytest.approx([x - truth(t)[1] for t in WIDE], abs=SERIES[dtype])


@pytest.mark.parametrize("dtype", SERIES, ids=str)
def test_the_slope_of_the_mean_is_the_variance(dtype: torch.dtype) -> None:
    likelihood = ContinuousBernoulli()
    mean, slope = with_slope(lambda t: likelihood(t).mean, torch.tensor(WIDE, dtype=dtype))

    assert mean == pytest.approx([truth(t)[1] for t in WIDE], abs=SERIES[dtype])
    assert slope == pytest.approx([truth(t)[2] for t in WIDE], abs=10 * SERIES[dtype])


def test_the_logits_of_zero_are_the_uniform_density() -> None:
    value, slope = with_slope(log_normalizer, torch.zeros(1))

    assert value == [math.log(2)]
    assert slope == [0.0]


# Discretised families far out.


def far_out(family: Callable[..., nn.Module], scale: float, loc: list[float], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """The log masses [256, locs] of all 256 grey values, and the gradients of their sum in ``loc`` and in the scale."""
    likelihood = family(256, scale, floor=-12.0).to(dtype)
    where = torch.tensor(loc, dtype=dtype, requires_grad=True)
    log_mass = likelihood(where).log_prob(torch.linspace(0, 1, 256, dtype=dtype)[:, None])
    return log_mass.detach(), *torch.autograd.grad(log_mass.sum(), [where, *likelihood.parameters()])


@pytest.mark.parametrize(
    ("family", "scale", "reach", "dtype"),
    covering(
        [DiscretizedNormal, DiscretizedLogistic],
        [0.0005, 0.01, 0.1, 30.0],
        [5.0, 1000.0],
        [torch.float32, torch.float64],
    ),
)
def test_masses_sum_to_one_and_keep_a_gradient_far_out(
    family: Callable[..., nn.Module], scale: float, reach: float, dtype: torch.dtype
) -> None:
    log_mass, *gradients = far_out(family, scale, [-reach, -0.3, 0.0, 0.4981, 1.0, reach], dtype)

    rounding = 256 * torch.finfo(dtype).eps * max(1, 256 * scale)  # an inner mass is a difference of 1/(256 scale)
    assert log_mass.exp().sum(0).tolist() == pytest.approx([1] * 6, abs=rounding)
    assert log_mass.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert gradients[0][0] > 0 > gradients[0][-1]


@pytest.mark.parametrize("family", [DiscretizedNormal, DiscretizedLogistic])
def test_float32_has_the_gradient_of_float64_out_to_five_hundred_standard_deviations(
    family: Callable[..., nn.Module],
) -> None:
    """To 2%: torch's gradient of ``log_ndtr`` loses digits in float32 as the square of the distance."""
    (_, low, low_scale), (_, high, high_scale) = (
        far_out(family, 0.01, [-4.0, -0.3, 0.4, 0.9, 1.7, 5.0], dtype) for dtype in (torch.float32, torch.float64)
    )

    assert low.tolist() == pytest.approx(high.tolist(), rel=0.02)
    assert low_scale.item() == pytest.approx(high_scale.item(), rel=0.02)


# Scales that are learned by gradient.

LEARNED = {
    "learned_sigma": LearnedSigma,
    "laplace": Laplace,
    "student_t": lambda scale, **options: StudentT(4.0, scale, **options),
    "heteroscedastic": Heteroscedastic,
    "discretized_normal": lambda scale, **options: DiscretizedNormal(LEVELS, scale, **options),
    "discretized_logistic": lambda scale, **options: DiscretizedLogistic(LEVELS, scale, **options),
}
every_learned_scale = pytest.mark.parametrize("build", LEARNED.values(), ids=LEARNED)


def scale_of(likelihood: Any) -> Tensor:
    """The scale of the distribution that a likelihood returns at outputs of zero."""
    p = likelihood(*[torch.zeros(())] * likelihood.outputs)
    return getattr(p, "base_dist", p).scale


@every_learned_scale
def test_a_learned_scale_starts_where_it_was_told(build: Callable[..., nn.Module]) -> None:
    for scale in (0.003, 0.1, 1.0, 40.0):
        likelihood = build(scale)
        assert likelihood.scale.item() == pytest.approx(scale, rel=1e-12)
        assert scale_of(likelihood).item() == pytest.approx(scale, rel=1e-12)


@every_learned_scale
def test_a_learned_scale_meets_its_floor_and_can_return(build: Callable[..., nn.Module]) -> None:
    """Pushed down, it stops at ``exp(floor)``; within a hundredth of it, its slope has not vanished."""
    likelihood = build(0.1, floor=-3.0)
    (raw,) = likelihood.parameters()
    while scale_of(likelihood) > 1.01 * math.exp(-3.0):
        with torch.no_grad():
            raw -= 0.05

    (slope,) = torch.autograd.grad(scale_of(likelihood).log(), raw)
    assert scale_of(likelihood) > math.exp(-3.0)
    assert slope > 1e-3
    with torch.no_grad():
        raw.fill_(-1e4)
    assert scale_of(likelihood).item() == pytest.approx(math.exp(-3.0), rel=1e-12)


def slope_in_log_scale(likelihood: Any, loc: Tensor, x: Tensor) -> float:
    """Derivative of ``-log p(x | z)`` in the log scale, whatever parameter the log scale is a function of."""
    parameters = list(likelihood.parameters())
    (slope,) = torch.autograd.grad(-likelihood(loc).log_prob(x).sum(), parameters)
    (chain,) = torch.autograd.grad(likelihood.scale.log(), parameters)
    return (slope / chain).item()


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_the_gradient_of_the_log_scale_vanishes_at_the_root_mean_squared_error(factor: float) -> None:
    """It is ``D - SSE / scale**2`` a datum."""
    x, loc = torch.randn(6, 5), torch.randn(6, 5)
    likelihood = LearnedSigma(factor * (x - loc).square().mean().sqrt().item())

    assert slope_in_log_scale(likelihood, loc, x) == pytest.approx(x.numel() * (1 - factor**-2), abs=1e-10)


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_the_gradient_of_a_laplace_log_scale_vanishes_at_the_mean_absolute_error(factor: float) -> None:
    x, loc = torch.randn(6, 5), torch.randn(6, 5)
    likelihood = Laplace(factor * (x - loc).abs().mean().item())

    assert slope_in_log_scale(likelihood, loc, x) == pytest.approx(x.numel() * (1 - 1 / factor), abs=1e-10)


# The scale in closed form.


def sigma_points(loc: Tensor, covariance: Tensor) -> Tensor:
    """Draws [2 d, ...] whose average of any quadratic function is its expectation, exactly."""
    factor = torch.linalg.cholesky(covariance).mT * math.sqrt(len(covariance))
    return loc + torch.cat([factor, -factor]).unsqueeze(1)


def test_the_optimal_variance_is_the_expected_squared_error_and_not_that_of_the_mean() -> None:
    loading, covariance = torch.randn(5, 2), torch.tensor([[0.5, 0.2], [0.2, 0.3]])
    x, code = torch.randn(8, 5), torch.randn(8, 2)  # q(z | x) = Normal(code, covariance)
    at_the_mean = (x - code @ loading.mT).square().mean()
    expected = at_the_mean + torch.trace(loading @ covariance @ loading.mT) / 5
    likelihood = OptimalSigma()

    likelihood.observe(x, sigma_points(code, covariance) @ loading.mT)

    assert likelihood.scale.square().item() == pytest.approx(expected.item(), rel=1e-12)
    assert expected > 1.1 * at_the_mean


def test_the_optimal_scale_maximises_the_likelihood_of_what_it_has_seen() -> None:
    likelihood, x, loc = OptimalSigma(), torch.randn(8, 5), torch.randn(3, 8, 5)
    likelihood.observe(x, loc)
    log_scale = likelihood.scale.log().requires_grad_()

    (slope,) = torch.autograd.grad(torch.distributions.Normal(loc, log_scale.exp()).log_prob(x).sum(), log_scale)

    assert slope.item() == pytest.approx(0, abs=1e-10)


def test_the_optimal_scale_is_in_the_units_of_x() -> None:
    x, loc, (here, there) = torch.randn(8, 5), torch.randn(8, 5), (OptimalSigma(), OptimalSigma())
    here.observe(x, loc)
    there.observe(255 * x, 255 * loc)

    assert there.scale.item() == pytest.approx(255 * here.scale.item(), rel=1e-12)


def test_the_optimal_variance_is_a_running_average_in_which_the_first_batches_count_alike() -> None:
    likelihood, zero = OptimalSigma(momentum=0.3), torch.zeros(4, 2)
    variances = []
    for variance in (1.0, 4.0, 16.0, 64.0, 256.0):
        likelihood.observe(torch.full((4, 2), math.sqrt(variance)), zero)
        variances.append(likelihood.scale.square().item())

    fourth = 7 + 0.3 * (64 - 7)
    assert variances == pytest.approx([1, 2.5, 7, fourth, fourth + 0.3 * (256 - fourth)], rel=1e-12)


@pytest.mark.parametrize("sizes", [(64, 1), (1, 64), (64, 64, 1), (3, 64, 10)])
def test_in_the_optimal_variance_every_row_counts_alike(sizes: tuple[int, ...]) -> None:
    """A last batch of one row is no whole batch: it counts one part in 65."""
    likelihood, errors = OptimalSigma(), [(1 + 10 * index) * torch.randn(size, 5) for index, size in enumerate(sizes)]
    for error in errors:
        likelihood.observe(error, torch.zeros_like(error))

    assert likelihood.scale.square().item() == pytest.approx(torch.cat(errors).square().mean().item(), rel=1e-12)


def test_later_on_a_short_batch_has_its_part_of_the_momentum() -> None:
    likelihood, zero = OptimalSigma(momentum=0.1), torch.zeros(20, 2)
    for _ in range(10):
        likelihood.observe(torch.ones(20, 2), zero)
    likelihood.observe(torch.full((5, 2), 3.0), zero[:5])

    assert likelihood.scale.square().item() == pytest.approx(1 + 0.1 * 5 / 20 * (9 - 1), rel=1e-12)


def a_pyro_step(variant: Any, loss: Any, x: Tensor) -> None:
    with pyro.get_param_store().scope():
        pyro.infer.SVI(variant.model, variant.guide, pyro.optim.Adam({"lr": 1e-3}), loss).step(x)


def a_step_of_ours(variant: Any, loss: Any, x: Tensor) -> None:
    with pyro.get_param_store().scope():
        SVI(variant.model, variant.guide, pyro.optim.Adam({"lr": 1e-3}), loss).step(x)


def a_loss_of_ours(variant: Any, loss: Any, x: Tensor) -> None:
    ours = PathwiseELBO(loss.num_particles, 1, vectorize_particles=loss.vectorize_particles)
    ours(variant.model, variant.guide)(x)


def a_loop_of_ones_own(variant: Any, loss: Any, x: Tensor) -> None:
    with one_step():
        loss(variant.model, variant.guide)(x)


@pytest.mark.parametrize("vectorised", [True, False])
@pytest.mark.parametrize("step", [a_pyro_step, a_step_of_ours, a_loss_of_ours, a_loop_of_ones_own])
def test_the_optimal_scale_moves_once_a_step_by_the_mean_over_its_draws(
    step: Callable[[Any, Any, Tensor], None], vectorised: bool
) -> None:
    variant, x = optimal_pair()
    likelihood, seen = variant.model.likelihood, []
    likelihood.observe(3 * x, torch.zeros_like(x))  # a batch before, so that the share of the next one is a half
    before = likelihood.scale.clone()
    likelihood.register_forward_hook(lambda _, outputs, law: seen.append((outputs[0].detach(), law.scale.detach())))

    step(variant, Trace_ELBO(num_particles=4, max_plate_nesting=1, vectorize_particles=vectorised), x)

    assert len(seen) == (1 if vectorised else 4)
    assert all(bool((scale == before).all()) for _, scale in seen)
    error = torch.stack([(x - loc).square().mean() for loc, _ in seen]).mean()
    expected = (before.square() + error) / 2
    assert likelihood.scale.square().item() == pytest.approx(expected.item(), rel=1e-12)
    assert likelihood.rows.item() == 2 * len(x)


def test_a_fit_moves_the_optimal_scale_by_one_schedule_whatever_the_draws() -> None:
    """And from a graph: what is recorded are the passes of one step."""
    rows, reasons = [], []
    for draws in (1, 4):
        variant, x = optimal_pair()[0], torch.randn(70, 5)
        variant = variant._replace(loss=Trace_ELBO(num_particles=draws))
        trained = fit(variant, x, epochs=3, batch_size=16, validation=None, progress=False)
        rows.append(variant.model.likelihood.rows.item())
        reasons.append(trained.settings["backend"])

    assert rows == [210.0, 210.0]
    assert reasons == ["fx", "fx"]


def test_the_optimal_scale_of_an_older_checkpoint_starts_its_average_anew() -> None:
    likelihood, old = OptimalSigma(), {"scale": torch.tensor(0.3), "batches": torch.tensor(40.0)}
    likelihood.load_state_dict(old)

    assert likelihood.scale.item() == pytest.approx(0.3)
    assert old.keys() == {"scale", "batches"}
    likelihood.observe(torch.ones(4, 2), torch.zeros(4, 2))
    assert likelihood.scale.item() == 1.0


def optimal_pair() -> tuple[Any, Tensor]:
    """A variant with the optimal scale, whose guide is noisy, and data."""
    return pair((5,), 2, likelihood=OptimalSigma(), decoder=nn.Linear(2, 5), encoder=nn.Identity()), torch.randn(8, 5)


def test_training_moves_the_optimal_scale_to_the_error_of_the_draws_that_it_trained_on() -> None:
    variant, x = optimal_pair()
    guide = poutine.trace(variant.guide).get_trace(x)
    poutine.replay(variant.model, trace=guide)(x)

    error = x - variant.model.decoder(guide.nodes["z"]["value"])

    assert variant.model.likelihood.scale.square().item() == pytest.approx(error.square().mean().item(), rel=1e-12)


def test_a_batch_is_scored_with_the_optimal_scale_so_far_and_then_joins_it() -> None:
    variant, x = optimal_pair()
    guide = poutine.trace(variant.guide).get_trace(x)
    z = guide.nodes["z"]["value"]
    so_far = Gaussian(1.0)(variant.model.decoder(z)).log_prob(x).sum()

    training = poutine.trace(poutine.replay(variant.model, trace=guide)).get_trace(x)

    training.compute_log_prob()
    assert training.nodes["x"]["log_prob_sum"].item() == pytest.approx(so_far.item(), rel=1e-12)


def test_no_datum_moves_the_optimal_scale_in_eval_mode() -> None:
    variant, x = optimal_pair()
    Trace_ELBO().loss(variant.model, variant.guide, x)
    scale = variant.model.likelihood.scale.item()

    variant.model.eval()
    Trace_ELBO().loss(variant.model, variant.guide, 100 * x)

    assert variant.model.likelihood.scale.item() == scale
    assert scale != 1.0


# A scale for each coordinate and code.


def test_the_head_of_the_scale_is_shut_until_its_share_of_training_is_over() -> None:
    likelihood = Heteroscedastic(0.4, floor=-40.0, stage=0.5)
    variant = pair((5,), 2, likelihood=likelihood, guide=PointMass, encoder=nn.Identity(), decoder=nn.Linear(2, 10))
    loc, head = torch.zeros(6), torch.linspace(-2, 2, 6)
    scales = []
    for step in (0, 49, 50, 99):
        variant.model.advance(step, 100)
        scales.append(likelihood(loc, head).scale.detach())

    assert torch.equal(scales[0], scales[1])
    assert scales[0].tolist() == pytest.approx([0.4] * 6, rel=1e-12)
    assert torch.equal(scales[2], scales[3])
    assert scales[2].tolist() == pytest.approx((0.4 * head.exp()).tolist(), rel=1e-12)


def test_a_shut_head_has_no_gradient_and_an_open_one_has() -> None:
    likelihood = Heteroscedastic(0.4, stage=0.5)
    head = torch.zeros(6, requires_grad=True)
    slopes = []
    for step in (0, 50):
        likelihood.open.advance(step, 100)
        slopes.append(torch.autograd.grad(likelihood(torch.zeros(6), head).log_prob(torch.ones(6)).sum(), head)[0])

    assert (slopes[0] == 0).all()
    assert (slopes[1] != 0).all()


# What is refused.

BAD_SCALES = [math.nan, math.inf, -math.inf, 0.0, -1.0]
SCALED: dict[str, Callable[..., Any]] = {
    "gaussian": Gaussian,
    "optimal_sigma": OptimalSigma,
    **{name: build for name, build in LEARNED.items() if name in ("learned_sigma", "laplace", "heteroscedastic")},
    "student_t": lambda scale: StudentT(scale=scale),
    "discretized_normal": lambda scale: DiscretizedNormal(scale=scale),
    "discretized_logistic": lambda scale: DiscretizedLogistic(scale=scale),
}


@pytest.mark.parametrize("build", SCALED.values(), ids=SCALED)
def test_a_scale_that_is_not_positive_and_finite_is_refused(build: Callable[..., Any]) -> None:
    for scale in BAD_SCALES:
        with pytest.raises(ValueError, match=rf"scale must be positive and finite, got {scale!r}"):
            build(scale)


BAD: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "scale_below_floor": (
        lambda: LearnedSigma(0.001, floor=-6.0),
        r"above its floor exp\(-6.0\) = 0.002479, got 0.001",
    ),
    "floor_nan": (lambda: LearnedSigma(floor=math.nan), r"floor.*nan"),
    "floor_minus_inf": (lambda: LearnedSigma(floor=-math.inf), r"floor.*-inf"),
    "df_one": (lambda: StudentT(1.0), r"df must be finite and above 1.*got 1.0"),
    "df_nan": (lambda: StudentT(math.nan), r"df must be finite and above 1.*got nan"),
    "df_inf": (lambda: StudentT(math.inf), r"df must be finite and above 1.*got inf"),
    "stage_one": (lambda: Heteroscedastic(stage=1.0), r"stage is a share of training in \[0, 1\), got 1.0"),
    "stage_negative": (lambda: Heteroscedastic(stage=-0.1), r"stage is a share of training in \[0, 1\), got -0.1"),
    "stage_nan": (lambda: Heteroscedastic(stage=math.nan), r"stage is a share of training in \[0, 1\), got nan"),
    "levels_one": (lambda: DiscretizedNormal(1), "levels must be at least 2, got 1"),
    "levels_negative": (lambda: DiscretizedLogistic(-3), "levels must be at least 2, got -3"),
    "momentum_nan": (lambda: OptimalSigma(momentum=math.nan), "momentum.*got nan"),
    "momentum_negative": (lambda: OptimalSigma(momentum=-0.1), "momentum.*got -0.1"),
    "momentum_above_one": (lambda: OptimalSigma(momentum=1.5), "momentum.*got 1.5"),
}


@pytest.mark.parametrize(("build", "message"), BAD.values(), ids=BAD)
def test_a_bad_argument_is_refused_with_its_name_and_value(build: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    ("name", "x"),
    [
        ("bernoulli", 0.3),
        ("continuous_bernoulli", 1.2),
        ("continuous_bernoulli", -0.1),
        ("discretized_normal", 0.51),
        ("discretized_logistic", 1 + 1 / (LEVELS - 1)),
    ],
)
def test_data_outside_the_support_are_refused(name: str, x: float) -> None:
    with pytest.raises(ValueError, match="within the support"):
        x_given(CASES[name], 0.2).log_prob(torch.tensor(x))
