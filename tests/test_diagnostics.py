"""Calibration, collapse and predictive checks: they agree with the linear-Gaussian model, and they find faults."""

import math

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from ppl_vae import VARIANTS, Variant, ex_post, pair, sample, with_prior
from ppl_vae.diagnosis.calibration import FALSE_ALARMS, Ranks, mean_in_errors, rank_log_mass, sbc, uniformity_p_values
from ppl_vae.diagnosis.code_usage import collapse
from ppl_vae.diagnosis.noise_verdict import judge_noise
from ppl_vae.diagnosis.predictive import Check, prior_predictive, replicated_statistics
from ppl_vae.diagnosis.residuals import noise_calibration
from ppl_vae.diagnosis.verdicts import judge_codes, judge_data, judge_prior
from ppl_vae.estimate import Number, share_over_data
from ppl_vae.evaluation.evaluation import evaluate
from ppl_vae.guides import FullRank, Laplace
from ppl_vae.models import (
    Bernoulli,
    ContinuousBernoulli,
    DiscretizedNormal,
    Gaussian,
    Heteroscedastic,
    Laplace as LaplaceNoise,
    LearnedSigma,
    LinearGaussian,
    Mixture,
    Scale,
    StandardNormal,
    StudentT,
)
from ppl_vae.streams import stream_seed
from ppl_vae.verification.exact_pair import linear_pair

X_DIM, Z_DIM = 4, 2
COORDINATES = ["z[0]", "z[1]"]
LOADING = torch.tensor([[1.2, 0.9], [0.8, 1.1], [-0.4, 0.2], [0.9, 0.7]])  # columns far from orthogonal


def model_of(sigma: float = 0.6) -> LinearGaussian:
    return LinearGaussian(LOADING.double(), torch.linspace(-1, 1, X_DIM), torch.tensor(sigma))


def drawn_from(model: LinearGaussian, rows: int, seed: int = 1) -> Tensor:
    noise = torch.randn(rows, Z_DIM + X_DIM, generator=torch.Generator().manual_seed(seed))
    return noise[:, :Z_DIM] @ model.loading.mT + model.loc + model.sigma * noise[:, Z_DIM:]


def program(model: LinearGaussian, covariance: Tensor | None = None, shift: float = 0.0) -> Variant:
    """The model as a pair; its guide has the exact mean, plus ``shift`` in the first code, and this covariance."""
    decoder = nn.Linear(Z_DIM, X_DIM)
    decoder.weight.data, decoder.bias.data = model.loading.clone(), model.loc.clone()
    likelihood = Gaussian(model.sigma.item())
    variant = pair((X_DIM,), Z_DIM, likelihood=likelihood, guide=FullRank, encoder=nn.Identity(), decoder=decoder)
    zero = model.posterior(torch.zeros(1, X_DIM))
    factor = torch.linalg.cholesky(zero.covariance_matrix[0] if covariance is None else covariance)
    loc, log_diagonal, below = variant.guide.heads
    for head in variant.guide.heads:
        head.weight.data.zero_()
    loc.weight.data = (model.posterior(torch.eye(X_DIM)).loc - zero.loc).mT
    loc.bias.data = zero.loc[0] + torch.tensor([shift, 0.0])
    log_diagonal.bias.data, below.bias.data = factor.diagonal().log(), factor[1:, 0].clone()
    return variant


def covariance(model: LinearGaussian) -> Tensor:
    return model.posterior(torch.zeros(1, X_DIM)).covariance_matrix[0]


# Simulation-based calibration.


def test_ranks_are_uniform_where_the_guide_is_the_posterior() -> None:
    found = sbc(program(model_of()), simulations=2000)

    assert found.names == (*COORDINATES, "log p(x, z)", "log p(x | z)")
    assert found.ranks.shape == (2000, 4)
    assert (found.ranks.amin(0) == 0).all()
    assert (found.ranks.amax(0) == 99).all()
    assert found.off == {}
    assert found.skew.abs().max() < 4
    assert found.spread.abs().max() < 4


def test_an_exact_guide_is_rarely_accused() -> None:
    """5 % of 60 panels are 3, and 4 standard errors above it is 9."""
    accused = [bool(sbc(program(model_of()), simulations=100, num_particles=19, seed=seed).off) for seed in range(60)]

    assert FALSE_ALARMS == 0.05
    assert sum(accused) <= 9


@pytest.mark.parametrize(("shift", "how"), [(-0.3, "draws lie too low"), (0.3, "draws lie too high")])
def test_a_shifted_guide_is_skewed_in_the_coordinate_that_is_shifted(shift: float, how: str) -> None:
    found = sbc(program(model_of(), shift=shift), simulations=1000)

    assert found.off["z[0]"] == how
    assert found.skew[0] * shift < 0


@pytest.mark.parametrize(("stretch", "how"), [(0.5, "draws are too narrow"), (2.0, "draws are too wide")])
def test_the_width_of_a_guide_shows_as_a_u_or_a_hump(stretch: float, how: str) -> None:
    model = model_of()
    found = sbc(program(model, stretch * covariance(model)), simulations=1000)

    assert [found.off.get(name) for name in COORDINATES] == [how, how]
    thirds = torch.histc(found.ranks[:, 0].double(), 3, 0, 99)
    assert (thirds[0] > thirds[1]) == (stretch < 1)


@pytest.mark.parametrize(
    ("shift", "stretch", "width"),
    [
        (0.5, 1.0, ""),
        (1.0, 0.5, " and are too narrow"),
        (2.0, 2.0, " and are too wide"),
        (3.0, 1.0, ""),
        (5.0, 0.5, ""),
    ],
)
def test_a_shifted_guide_is_called_shifted_whatever_its_width(shift: float, stretch: float, width: str) -> None:
    """Ranks that pile up at one end do not mean a narrow guide. If no draw reaches the truth, the width is unknown."""
    model = LinearGaussian(torch.ones(4, 1), torch.zeros(4), torch.tensor(0.4))
    sd = float(model.posterior(torch.zeros(1, 4)).covariance_matrix.squeeze().sqrt())

    found = sbc(linear_pair(model, FullRank, shift=shift * sd, stretch=stretch)).departures["z[0]"]

    if shift < 5:
        assert found.how == f"draws lie too high{width}"
        assert found.shift == pytest.approx(shift, rel=0.15)
        assert found.width == pytest.approx(stretch, rel=0.25)
    else:
        assert found.how.startswith("draws lie too high")
        assert found.shift > 3


@pytest.mark.parametrize(("shift", "width"), [(0.0, 1.0), (0.7, 1.0), (-1.5, 0.4), (2.0, 3.0)])
def test_the_law_of_ranks_has_the_mean_that_is_known(shift: float, width: float) -> None:
    """E rank / K = P(guide's draw < z) = Phi(-shift / sqrt(1 + width**2)). The posterior itself has uniform ranks."""
    mass = rank_log_mass(20, torch.tensor([shift]), torch.tensor([width]).log())[0].exp()

    mean = float(mass @ torch.arange(21).double()) / 20
    assert math.isclose(float(mass.sum()), 1, rel_tol=1e-4)
    assert math.isclose(mean, 0.5 * math.erfc(shift / math.sqrt(2 * (1 + width**2))), rel_tol=1e-3)
    if (shift, width) == (0.0, 1.0):
        assert torch.allclose(mass, torch.full_like(mass, 1 / 21), rtol=1e-3)


def test_the_distance_of_ranks_is_kolmogorov_s() -> None:
    """A mean that is k standard deviations off has the distance ``2 Phi(k / 2) - 1``."""
    found = sbc(program(model_of(), shift=float(covariance(model_of())[0, 0].sqrt())), simulations=2000)

    distance, error = found.distance
    assert abs(float(distance[0]) - math.erf(0.5 / math.sqrt(2))) < 4 * float(error[0]) + 0.01
    assert 0 < float(error[0]) <= 0.5 / math.sqrt(2000)


def test_a_guide_with_only_the_margins_right_is_seen_by_the_log_densities_only() -> None:
    """The guide has the posterior's means and variances, but not its correlation of -0.8. No coordinate shows it."""
    model = model_of()
    exact = covariance(model)
    assert exact[0, 1] / exact.diagonal().prod().sqrt() < -0.75

    found = sbc(program(model, torch.diag(exact.diagonal())), simulations=2000)

    assert not set(COORDINATES) & set(found.off)
    assert {"log p(x, z)", "log p(x | z)"} <= set(found.off)


def test_the_best_mean_field_guide_is_too_narrow() -> None:
    model = model_of()
    narrow = model.mean_field_posterior(torch.zeros(1, X_DIM)).covariance_matrix

    found = sbc(program(model, narrow.reshape(Z_DIM, Z_DIM)), simulations=1000)

    assert [found.off.get(name) for name in COORDINATES] == ["draws are too narrow"] * 2


def test_ties_are_broken_at_random() -> None:
    """x is one binary number from a decoder that ignores z, so log p(x | z) is the same for every draw."""
    variant = pair((1,), 1, likelihood=Bernoulli(), encoder=nn.Identity(), decoder=nn.Linear(1, 1))
    variant.model.decoder.weight.data.zero_()

    found = sbc(variant, simulations=2000, num_particles=9)

    assert "log p(x | z)" not in found.off
    assert len(found.ranks[:, -1].unique()) == 10


def test_a_hand_made_panel_has_the_moments_and_the_p_value_of_its_ranks() -> None:
    """With K = 1, 60 ranks are 0 and 40 are 1: 2 standard errors, and chi-square 4 with 1 degree of freedom."""
    ranks = torch.tensor([0] * 60 + [1] * 40).unsqueeze(1)

    assert math.isclose(float(mean_in_errors(ranks.double(), torch.arange(2).double())), -2.0, rel_tol=1e-12)
    assert math.isclose(float(uniformity_p_values(ranks, 1)), math.erfc(2 / math.sqrt(2)), rel_tol=1e-9)


@pytest.mark.parametrize("settings", [{"simulations": 10}, {"num_particles": 0}])
def test_too_little_to_calibrate_with_is_refused(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 50 simulations and 1 draw"):
        sbc(program(model_of()), **settings)


def test_a_point_mass_is_not_calibrated_and_its_doubled_proposal_is_too_wide() -> None:
    variant = VARIANTS["rae"]((X_DIM,), Z_DIM)
    with pytest.raises(ValueError, match=r"point-mass guide has no density.*Laplace"):
        sbc(variant)

    model = model_of()
    point = pair((X_DIM,), Z_DIM, likelihood=Gaussian(model.sigma.item()), encoder=nn.Identity())
    point.model.decoder = program(model).model.decoder
    exact = program(model).guide
    proposal = Laplace(exact, point.model)
    found = sbc(point._replace(guide=proposal), simulations=1000)
    assert [found.off.get(name) for name in COORDINATES] == ["draws are too wide"] * 2


def test_calibration_leaves_the_caller_s_stream_and_repeats() -> None:
    variant, before = program(model_of()), torch.get_rng_state()

    one, same = sbc(variant, simulations=60), sbc(variant, simulations=60)

    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.ranks, same.ranks)
    assert isinstance(one, Ranks)


# Collapse.


def information(model: LinearGaussian, q: Tensor, shift: float) -> tuple[float, float]:
    """I(x; z) and KL(q(z) || p(z)) for x from the model and a guide of covariance q whose mean is off by ``shift``."""
    aggregate = torch.eye(Z_DIM) - covariance(model) + q  # covariance of the means, plus q
    mutual = 0.5 * (torch.logdet(aggregate) - torch.logdet(q))
    loc = torch.tensor([shift, 0.0])
    normal = MultivariateNormal(torch.zeros(Z_DIM), torch.eye(Z_DIM))
    return float(mutual), float(torch.distributions.kl_divergence(MultivariateNormal(loc, aggregate), normal))


def close(number: Number, exact: float, bias: float = 0.0) -> bool:
    assert number.value is not None
    assert number.error is not None
    return abs(number.value - exact) < 4 * number.error + bias


@pytest.mark.parametrize(("stretch", "shift"), [(1.0, 0.0), (1.5, 0.8)])
def test_mutual_information_and_aggregate_kl_are_those_of_gaussians(stretch: float, shift: float) -> None:
    """Up to four standard errors and a bias of about exp(I) / (2 rows)."""
    model = model_of(sigma=1.0)
    variant, x = program(model, stretch * covariance(model), shift), drawn_from(model, 1500)

    found = collapse(variant, x)

    mutual, aggregate = information(model, stretch * covariance(model), shift)
    assert close(found.mutual_information, mutual, bias=math.exp(mutual) / len(x))
    assert close(found.aggregate_kl, aggregate, bias=math.exp(mutual) / len(x))
    assert not close(found.mutual_information, mutual + 0.3)  # the test has the power to tell


@pytest.mark.parametrize("name", ["sigma_vae", "cv_vae", "bernoulli_vae"])
def test_the_kl_is_information_and_the_aggregate_together(name: str) -> None:
    variant, x = VARIANTS[name]((X_DIM,), Z_DIM), torch.randint(2, (50, X_DIM)).double()

    found = collapse(variant, x)

    parts = found.mutual_information.value + found.aggregate_kl.value  # type: ignore[operator]
    assert abs(found.kl.value - parts) < 1e-10  # type: ignore[operator]


@pytest.mark.parametrize(("stretch", "shift"), [(2.5, 0.0), (1.5, 0.8)])
def test_two_moments_of_each_unit_bound_the_aggregate_kl(stretch: float, shift: float) -> None:
    """The bound is ``sum_j (s_j**2 + m_j**2 - 1 - log s_j**2) / 2``, below KL because the units are correlated."""
    model = model_of(sigma=1.0)
    found = collapse(program(model, stretch * covariance(model), shift), drawn_from(model, 1000)).aggregate_kl_least

    second = (torch.eye(Z_DIM) + (stretch - 1) * covariance(model)).diagonal()
    exact = float((second - 1 - second.log()).sum() + shift**2) / 2
    assert close(found, exact)
    assert exact <= information(model, stretch * covariance(model), shift)[1] + 1e-12


@pytest.mark.parametrize(
    ("sigma", "rows", "shift", "grade"),
    [(0.6, 500, 0.0, "good"), (0.6, 500, 1.5, "look"), (0.6, 500, 3.0, "bad"), (0.01, 40, 0.0, "left out")],
)
def test_codes_outside_the_prior_are_graded_by_a_bound_and_not_by_its_bias(
    sigma: float, rows: int, shift: float, grade: str
) -> None:
    """Shifts of 1.5 and 3 are 1.1 and 4.5 nats. Narrow codes of 40 data only seem to be nats away from p(z)."""
    model = model_of(sigma)
    found = collapse(program(model, shift=shift), drawn_from(model, rows))

    assert judge_prior(found, rows).grade == grade


def test_units_of_two_data_are_not_judged() -> None:
    model = model_of()
    found = collapse(program(model), drawn_from(model, 2))

    assert judge_codes(found, noise_calibration(program(model), drawn_from(model, 2)), 2).grade == "look"
    assert min(found.variance_error) > 0


def test_the_estimate_of_information_is_at_most_the_log_of_the_rows() -> None:
    """For narrow codes that are far apart, the estimate approaches log rows from below, and the truth is larger."""
    model = model_of(sigma=0.001)
    found = collapse(program(model), drawn_from(model, 40))

    assert math.isclose(found.log_rows, math.log(40))
    assert found.log_rows - 1e-3 < found.mutual_information.value <= found.log_rows + 1e-9  # type: ignore[operator]
    assert information(model, covariance(model), 0.0)[0] > 2 * found.log_rows


def test_the_estimate_of_information_is_too_low_on_average() -> None:
    model = model_of(sigma=0.3)
    values = torch.tensor(
        [collapse(program(model), drawn_from(model, 20, s), seed=s).mutual_information.value for s in range(60)]
    )

    exact = information(model, covariance(model), 0.0)[0]
    assert values.mean() + 4 * values.std() / math.sqrt(60) < exact


def test_active_units_are_those_of_evaluate() -> None:
    variant, x = VARIANTS["sigma_vae"]((X_DIM,), 5), drawn_from(model_of(), 100)
    variant.guide.heads[0].weight.data[3:] *= 1e-4  # two units whose mean hardly moves

    found, judged = collapse(variant, x), evaluate(variant, x, 2)

    assert found.active == judged["active_units"].value
    assert torch.allclose(torch.tensor(sorted(found.kl_per_dim, reverse=True)), torch.tensor(judged.kl_per_dim))


def test_a_unit_that_no_datum_uses_is_collapsed() -> None:
    variant, x = VARIANTS["sigma_vae"]((X_DIM,), 3), drawn_from(model_of(), 200)
    for head in variant.guide.heads:
        head.weight.data[0], head.bias.data[0] = 0.0, 0.0  # q(z_0 | x) = Normal(0, 1) = p(z_0)
    variant.guide.heads[0].bias.data[1:] = 2.0

    found = collapse(variant, x)

    assert found.collapsed == 1
    assert abs(found.kl_per_dim[0]) < 1e-12


def test_a_full_covariance_has_no_kl_by_unit() -> None:
    found = collapse(program(model_of()), drawn_from(model_of(), 20))

    assert found.kl_per_dim == []
    assert found.collapsed is None


# Data from the model.


def test_the_model_s_own_data_pass_in_every_statistic() -> None:
    model = model_of()

    found = prior_predictive(program(model), drawn_from(model, 200))

    assert all(check.p_value > FALSE_ALARMS / len(found) for check in found)
    assert all(abs(check.observed - check.replicated) < 5 * check.spread for check in found)


@pytest.mark.parametrize(
    ("change", "seen"),
    [
        (lambda x: x + 0.5, "mean"),
        (lambda x: 1.3 * x, "standard deviation"),
        (lambda x: torch.cat([x[1:], x[:1] - 20]), "minimum"),
        (lambda x: torch.cat([x[1:], x[:1] + 20]), "maximum"),
        (lambda x: x * torch.rand(len(x), 1).mul(2), "sd over data of the energy"),
        (lambda x: torch.stack([c[torch.randperm(len(x))] for c in x.unbind(1)], 1), "sd over data of the mean"),
    ],
    ids=["shifted", "stretched", "one_low", "one_high", "uneven", "columns_shuffled"],
)
def test_data_that_are_not_the_model_s_are_seen(change: object, seen: str) -> None:
    model = model_of()

    found = prior_predictive(program(model), change(drawn_from(model, 200)))  # type: ignore[operator]

    assert {check.statistic: check.p_value for check in found}[seen] < FALSE_ALARMS / len(found)


def test_p_values_reject_the_model_s_own_data_no_more_often_than_their_level() -> None:
    """At the level 0.1, for each statistic over 25 data sets, up to 4 standard errors of a share."""
    model = model_of()
    variant = program(model)
    found = [prior_predictive(variant, drawn_from(model, 30, s), replicates=99, seed=1000 * s) for s in range(25)]

    for checks in zip(*found, strict=True):
        share = sum(check.p_value <= 0.1 for check in checks) / len(found)
        assert share < 0.1 + 4 * math.sqrt(0.1 * 0.9 / len(found))
    assert min(check.p_value for checks in found for check in checks) >= 2 / 100


def test_the_ex_post_mixture_is_checked_instead_of_the_prior() -> None:
    """The codes of the data do not follow the prior. The mixture with their law passes, and the prior does not."""
    model = model_of()
    elsewhere = MultivariateNormal(torch.tensor([3.0, -2.0]), 0.2 * torch.eye(Z_DIM))
    x = elsewhere.sample((300,)) @ model.loading.mT + model.loc + model.sigma * torch.randn(300, X_DIM)
    prior = Mixture.of(torch.ones(1), elsewhere.loc[None], elsewhere.covariance_matrix[None])

    under, plain = prior_predictive(program(model), x, ex_post=prior), prior_predictive(program(model), x)

    assert all(check.p_value > FALSE_ALARMS / len(under) for check in under)
    assert sum(check.p_value < FALSE_ALARMS / len(plain) for check in plain) >= 3


def test_neighbouring_seeds_share_no_replicate() -> None:
    variant = program(model_of())
    means = [found["mean"] for seed in range(3) for found in replicated_statistics(variant, 1200, None, 20, seed)]

    assert len(set(means)) == 60
    assert len({stream_seed(seed, index) for seed in range(20) for index in (*range(500), 999_999)}) == 20 * 501


def test_statistics_that_differ_by_rounding_are_equal() -> None:
    """Eleven grey values in three units. The largest is one unit in the last place above what the model makes."""
    variant = pair((3,), 1, likelihood=DiscretizedNormal(11, 1.0))
    variant.model.scale = Scale((3,), torch.tensor([0.1, -3.3, 7.7]), torch.tensor([7.0, 13.0, 21.0]))
    x = sample(variant, 300, seed=7)
    highest, lowest = x.amax(0), x.amin(0)
    x = torch.where(x == highest, torch.nextafter(x, x + 1), torch.where(x == lowest, torch.nextafter(x, x - 1), x))

    found = {check.statistic: check.p_value for check in prior_predictive(variant, x, replicates=99)}

    assert (found["minimum"], found["maximum"]) == (1.0, 1.0)


def test_statistics_are_in_the_model_s_units() -> None:
    model, variant = model_of(), program(model_of())
    x = drawn_from(model, 50)
    plain = prior_predictive(variant, x, replicates=20)
    variant.model.scale = Scale((X_DIM,), 100.0, 10.0)

    moved = prior_predictive(variant, 100 + 10 * x, replicates=20)

    assert all(torch.allclose(torch.tensor(a[1:]), torch.tensor(b[1:])) for a, b in zip(plain, moved, strict=True))


@pytest.mark.parametrize(
    ("shift", "p_of_mean", "p_of_minimum", "grade", "remedy"),
    [
        (0.3, 1.0, 1.0, "good", ""),
        (0.6, 1.0, 1.0, "look", ""),  # the replicates explain it, but it could hide a bad difference
        (0.3, 0.001, 1.0, "look", "larger decoder"),
        (0.6, 0.001, 1.0, "bad", "larger decoder"),
        (0.3, 1.0, 0.001, "bad", "other tails"),  # the minimum is 2 standard deviations off
    ],
)
def test_data_are_graded_by_the_difference_in_standard_deviations(
    shift: float, p_of_mean: float, p_of_minimum: float, grade: str, remedy: str
) -> None:
    checks = [
        Check("mean", 2 * shift, 0.0, 0.02, p_of_mean),
        Check("standard deviation", 2.0, 2.0, 0.02, 1.0),
        Check("minimum", -9.0, -5.0, 0.02, p_of_minimum),
    ]

    found = judge_data(checks, "p(z)", 100)

    assert found.grade == grade
    assert remedy in found.remedy
    assert (found.remedy == "") == (remedy == "")


def test_one_datum_is_too_few_for_predictive_checks() -> None:
    with pytest.raises(ValueError, match="at least 2 data and 1 replicate, got 1"):
        prior_predictive(program(model_of()), torch.randn(1, X_DIM))


# Noise.


def test_noise_is_calibrated_if_the_guide_is_the_posterior_and_the_data_are_the_model_s() -> None:
    """For z ~ p(z | x), x is Normal(loc(z), sigma) over the model's data. No factor corrects for fitted codes."""
    model = model_of()

    found = noise_calibration(program(model), drawn_from(model, 3000))

    assert found.reason == ""
    assert math.isclose(found.sigma.value, 0.6)  # type: ignore[arg-type]
    assert close(found.ratio, 1.0)
    assert close(found.coverage[0], 0.5)
    assert close(found.coverage[1], 0.9)
    assert math.isclose(sum(found.pit), 1.0)
    assert max(abs(20 * share - 1) for share in found.pit) < 0.1


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_the_ratio_is_the_factor_by_which_sigma_is_off(factor: float) -> None:
    """The guide stays the posterior under the right sigma, so the residuals do not change."""
    model = model_of()
    variant = program(model)
    variant.model.likelihood = Gaussian(0.6 * factor)

    found = noise_calibration(variant, drawn_from(model, 2000))

    normal = torch.distributions.Normal(0.0, 1.0)
    quantiles = [factor * normal.icdf(torch.tensor((1 + mass) / 2)) for mass in (0.5, 0.9)]
    assert close(found.ratio, 1 / factor)
    assert close(found.residual, 0.6)
    for share, quantile in zip(found.coverage, quantiles, strict=True):
        assert close(share, float(2 * normal.cdf(quantile) - 1))


def test_residuals_count_the_spread_of_the_guide() -> None:
    """E_q |x - loc(z)|**2 is the square at the mean plus the trace of W V W^T, as in the closed form of the bound."""
    model = model_of()
    variant, x = program(model, 3 * covariance(model)), drawn_from(model, 2000)

    found = noise_calibration(variant, x)

    at_mean = (x - model.loc - model.posterior(x).loc @ model.loading.mT).square().sum(-1).mean()
    spread = (model.loading @ (3 * covariance(model)) @ model.loading.mT).trace()
    assert close(found.residual, float(((at_mean + spread) / X_DIM).sqrt()))
    assert not close(found.residual, float((at_mean / X_DIM).sqrt()))  # the test has the power to tell


class Draws(dist.Normal):
    """A normal law without a distribution function."""

    def cdf(self, value: Tensor) -> Tensor:
        raise NotImplementedError


def test_a_family_without_a_distribution_function_is_placed_by_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shares agree with those by the distribution function up to 0.01 and errors."""
    model = model_of()
    variant, x = program(model), drawn_from(model, 1000)
    variant.model.likelihood = Gaussian(0.3)
    exact = noise_calibration(variant, x)
    monkeypatch.setattr(Gaussian, "forward", lambda self, loc: Draws(loc, self.scale))

    by_draws = noise_calibration(variant, x)

    for one, other in zip(by_draws.coverage, exact.coverage, strict=True):
        assert close(one, other.value or 0.0, bias=0.01)
    assert by_draws.ratio == exact.ratio


@pytest.mark.parametrize("likelihood", [StudentT(3.0), ContinuousBernoulli(), LaplaceNoise(), Heteroscedastic()])
def test_the_noise_of_any_density_is_calibrated_on_its_own_data(likelihood: nn.Module) -> None:
    """The guide is far from the posterior, so the ratio and the coverage are only roughly right."""
    variant = pair((X_DIM,), Z_DIM, likelihood=likelihood)
    found = noise_calibration(variant, sample(variant, 200))

    assert 0.5 < (found.ratio.value or 0.0) < 2
    assert 0.3 < (found.coverage[0].value or 0.0) < 0.7


class Cauchy(nn.Module):
    """A law without a mean or a variance."""

    outputs = 1

    def forward(self, loc: Tensor) -> dist.Cauchy:
        return dist.Cauchy(loc, 0.5)


NORMAL, LAPLACE = dist.Normal(0.0, 1.0), dist.Laplace(0.0, 1.0)
UNIFORM = dist.Uniform(-math.sqrt(3), math.sqrt(3))  # of variance 1
HALF = 0.5  # the scale of every likelihood below


@pytest.mark.parametrize(
    ("likelihood", "residual", "width", "said"),
    [
        (LearnedSigma(HALF), NORMAL, HALF, ""),
        (LearnedSigma(HALF), NORMAL, 0.7, "too narrow. sigma was learned"),
        (LearnedSigma(HALF), NORMAL, 0.35, "too wide. sigma was learned"),
        (Gaussian(HALF), NORMAL, 0.7, "too narrow. sigma is fixed: learn it"),
        (Gaussian(HALF), NORMAL, 0.46, "too wide. sigma is fixed: learn it"),
        (LearnedSigma(HALF), LAPLACE, HALF / math.sqrt(2), "heavier tails (StudentT)"),
        (LearnedSigma(HALF), UNIFORM, HALF, "its tails are too heavy"),
        (LaplaceNoise(HALF), LAPLACE, HALF, ""),
        (LaplaceNoise(HALF), NORMAL, 0.7, "its tails are too heavy"),
        (StudentT(1.5, HALF), dist.StudentT(1.5), HALF, ""),
        (StudentT(2.0, HALF), dist.StudentT(2.0), 0.25, "too wide"),
        (StudentT(4.0, HALF), dist.StudentT(4.0), 1.0, "too narrow"),
        (Cauchy(), dist.Cauchy(0.0, 1.0), HALF, ""),
        (Cauchy(), dist.Cauchy(0.0, 1.0), 1.5, "too narrow"),
    ],
)
def test_the_verdict_on_the_noise_says_what_is_wrong_with_it(
    likelihood: nn.Module, residual: dist.TorchDistribution, width: float, said: str
) -> None:
    """The decoder ignores z, so the residuals are those that were drawn, whatever the guide."""
    variant = pair((8,), 2, likelihood=likelihood)
    decoder = variant.model.decoder = nn.Linear(2, 8)
    decoder.weight.data.zero_()
    decoder.bias.data.zero_()
    x = width * residual.sample((800, 8))

    calibration = noise_calibration(variant, x)
    found = judge_noise(calibration, len(x))

    assert (found.grade == "good") == (said == "")
    assert said in found.text
    assert "nan" not in str(calibration)
    assert not (calibration.learned and "learn it" in found.text)


def test_the_error_of_a_share_is_not_zero() -> None:
    """If all numbers of 96 data are inside the interval, two errors reach 4 / 100."""
    found = share_over_data(torch.ones(96))

    assert found == Number(1.0, 0.02)
    assert share_over_data(torch.ones(1)).error is None


def test_the_noise_of_a_mass_is_left_out() -> None:
    found = noise_calibration(VARIANTS["bernoulli_vae"]((X_DIM,), Z_DIM), torch.randint(2, (20, X_DIM)).double())

    assert "discrete" in found.reason
    assert (found.sigma.value, found.coverage, found.pit) == (None, (), ())


def test_calibration_and_collapse_take_an_ex_post_mixture_as_the_prior() -> None:
    """There is no closed form of its KL."""
    model = model_of()
    variant, x = program(model), drawn_from(model, 300)
    mixed = with_prior(variant, ex_post.fit(variant, x, 2))

    assert isinstance(sbc(mixed, simulations=60), Ranks)
    found = collapse(mixed, x)
    assert close(found.aggregate_kl, 0.0, bias=math.exp(3.0) / len(x))
    assert isinstance(variant.model.prior, StandardNormal)
