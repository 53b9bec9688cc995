"""annealed and bracket: held against log p(x) of the linear-Gaussian model, and shown to notice a wrong move."""

import inspect
import math
import textwrap
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli as BernoulliLaw, MultivariateNormal, Normal

from ppl_vae import pair
from ppl_vae.evaluation import annealing as module
from ppl_vae.evaluation.annealing import Annealed, AnnealedPath, annealed, bracket, log_joint
from ppl_vae.guides import FullRank, Laplace, MeanField, PointMass
from ppl_vae.models import Bernoulli, Gaussian, LinearGaussian, Scale
from ppl_vae.streams import seeded
from ppl_vae.variant import Variant, evaluating
from ppl_vae.verification.exact_pair import linear_pair

X_DIM, Z_DIM = 5, 2
OFF = {"shift": 0.6, "stretch": 2.0}  # two standard deviations off, and wider, so that weights have a variance


def problem(rows: int) -> tuple[LinearGaussian, Tensor]:
    """A model and data drawn from it."""
    model = LinearGaussian(torch.randn(X_DIM, Z_DIM), torch.randn(X_DIM), torch.tensor(0.6))
    return model, torch.randn(rows, Z_DIM) @ model.loading.mT + model.loc + model.sigma * torch.randn(rows, X_DIM)


def program(model: LinearGaussian, shift: float = 0.0, stretch: float = 1.0) -> Variant:
    """The model as a pair; its guide is the exact posterior, off by ``shift`` and with its covariance stretched."""
    return linear_pair(model, FullRank, shift=shift, stretch=math.sqrt(stretch))


def score(values: Tensor, truth: float | Tensor) -> float:
    """Standard errors by which the mean of independent values is above what is true of it."""
    difference = values - truth
    return float(difference.mean() / difference.std() * math.sqrt(len(difference)))


def mutated(function: Callable[..., Any], right: str, wrong: str) -> Callable[..., Any]:
    """The function with one line changed."""
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(right) == 1
    names = dict(vars(module))
    exec(source.replace(right, wrong), names)
    return names[function.__name__]


# Where there is no error.


@pytest.mark.parametrize("temperatures", [1, 30])
def test_from_the_posterior_every_weight_is_the_evidence(temperatures: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However chains move and data are cut."""
    monkeypatch.setattr("ppl_vae.blocks.ROWS", 20)
    model, x = problem(9)
    found = annealed(program(model), x, chains=5, temperatures=temperatures)

    evidence = model.log_evidence(x)
    assert torch.allclose(found.log_weight, evidence.expand(5, -1), rtol=0, atol=1e-9)
    for bound, error in ((found.bound, found.error), (found.mean, found.mean_error)):
        assert torch.allclose(bound, evidence, rtol=0, atol=1e-9)
        assert error.max() < 1e-7
    assert torch.allclose(found.effective_sample_size, torch.full((9,), 5.0))


def test_from_the_posterior_both_sides_of_a_bracket_are_the_evidence() -> None:
    model, _ = problem(2)
    found = bracket(program(model), rows=12, chains=3, temperatures=10)

    for bound in (found.lower, found.upper):
        assert torch.allclose(bound, model.log_evidence(found.x), rtol=0, atol=1e-9)
    assert found.gap == (pytest.approx(0, abs=1e-9), pytest.approx(0, abs=1e-9))


def test_what_is_reported_is_made_of_the_weights() -> None:
    log_weight = torch.randn(6, 3) - 1e4
    w = (log_weight + 1e4).exp()
    found = Annealed(log_weight, torch.ones(3))

    assert torch.allclose(found.bound, w.mean(0).log() - 1e4, rtol=0, atol=1e-10)
    assert torch.allclose(found.mean, log_weight.mean(0))
    assert torch.allclose(found.mean_error, log_weight.std(0) / math.sqrt(6))
    assert torch.allclose(found.error, w.std(0, correction=0) / math.sqrt(6) / w.mean(0), rtol=0, atol=1e-10)


def test_the_temperatures_are_the_sigmoid_from_0_to_1_and_symmetric() -> None:
    model, x = problem(2)
    with evaluating(variant := program(model)):
        betas = torch.tensor(AnnealedPath(variant, x, 50, 3).betas)

    assert betas[0] == 0
    assert betas[-1] == 1
    assert torch.allclose(betas + betas.flip(0), torch.ones(51))
    logit = (betas * (torch.sigmoid(torch.tensor(4.0)) - 0.5) * 2 + torch.sigmoid(torch.tensor(-4.0))).logit()
    assert torch.allclose(logit, torch.linspace(-4, 4, 51))


# Moves leave each density of the path as it is.


def moved(move: Callable[..., Any]) -> float:
    """Largest score, over moments of codes, of three moves from exact draws of a density in the middle of the path."""
    model, x = problem(1)
    variant = program(model, **OFF)
    with evaluating(variant), seeded(1):
        path = AnnealedPath(variant, x, 4, 3)
        guide, posterior = path.guide, model.posterior(x)
        precisions = [(1 - path.betas[2]) * guide.precision_matrix, path.betas[2] * posterior.precision_matrix]
        slope = sum((p @ q.loc.unsqueeze(-1)).squeeze(-1) for p, q in zip(precisions, (guide, posterior), strict=True))
        exact = MultivariateNormal(torch.linalg.solve(sum(precisions), slope), precision_matrix=sum(precisions))
        path.step_size.fill_(0.85)
        state = path.at(exact.sample((30_000,)))
        for _ in range(3):
            state, acceptance = move(path, state, 2)
    whitened = torch.linalg.solve_triangular(exact.scale_tril, (state.z - exact.loc).unsqueeze(-1), upper=False)
    u = whitened[:, 0, :, 0]
    assert 0.3 < acceptance < 0.95
    return max(abs(score(v, 0.0)) for v in (*u.unbind(1), *(u.square() - 1).unbind(1), u.prod(1)))


def test_a_move_leaves_its_density_as_it_is() -> None:
    assert moved(AnnealedPath.move) < 4


def test_a_trajectory_of_small_steps_conserves_energy() -> None:
    """The error of a trajectory is of second order in its steps: a first-order integrator would be rejected."""
    model, x = problem(20)
    variant = program(model, **OFF)
    with evaluating(variant), seeded(0):
        path = AnnealedPath(variant, x, 4, 10)
        path.step_size.fill_(0.02)
        state = path.at(path.guide.sample((50,)))
        right, wrong = (
            move(path, state, 2)[1].mean() for move in (AnnealedPath.move, mutated(AnnealedPath.move, "/ 2 * (", "* ("))
        )
    assert right > 0.999
    assert wrong < 0.99


# Weights are unbiased, and so their logarithms are below.


def weights(temperatures: int, chains: int = 2, rows: int = 20_000) -> tuple[Tensor, Tensor]:
    """Mean over chains of weights over p(x), for ``rows`` copies of a datum; and rates of acceptance."""
    torch.manual_seed(1)
    model, x = problem(1)
    found = annealed(
        program(model, **OFF), x.expand(rows, -1), chains=chains, temperatures=temperatures, leapfrogs=3, seed=2
    )
    return (found.log_weight - model.log_evidence(x)).exp().mean(0), found.acceptance


@pytest.mark.parametrize("temperatures", [1, 8])
def test_the_mean_weight_is_the_evidence_for_any_number_of_steps(
    temperatures: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ppl_vae.blocks.ROWS", 40_000)
    w, _ = weights(temperatures)
    assert abs(score(w, 1.0)) < 4
    assert score(w, 1.3) < -4  # it can tell


def test_bounds_are_below_the_evidence_and_rise_with_temperatures() -> None:
    model, x = problem(300)
    variant, evidence = program(model, **OFF), model.log_evidence(x)
    runs = [annealed(variant, x, chains=4, temperatures=temperatures, leapfrogs=4) for temperatures in (2, 8, 32)]

    for run in runs:
        assert (run.bound >= run.mean - 1e-12).all()  # Jensen
    for low, high in pairwise(runs):
        assert score(high.mean - low.mean, 0.0) > 4
    assert score(runs[0].bound, evidence) < -4
    assert score(runs[-1].mean, evidence) < -4
    with torch.no_grad():
        assert (evidence - runs[-1].mean).mean() < 0.2 * model.gap(x, variant.guide.posterior(x)).mean()


def test_a_linear_schedule_is_worse(monkeypatch: pytest.MonkeyPatch) -> None:
    """From a guide as wide as a prior: most of the way has to be gone at its beginning."""
    model, x = problem(200)
    variant = program(model, shift=2.0, stretch=30.0)
    sigmoid = annealed(variant, x, chains=4, temperatures=20, leapfrogs=4).mean
    monkeypatch.setattr(module, "DELTA", 1e-3)
    linear = annealed(variant, x, chains=4, temperatures=20, leapfrogs=4).mean

    assert score(sigmoid - linear, 0.0) > 6


def test_the_standard_error_is_that_of_repeated_runs() -> None:
    model, x = problem(1)
    found = annealed(program(model, shift=0.2, stretch=1.3), x.expand(500, -1), chains=16, temperatures=6, leapfrogs=3)

    assert found.bound.std() == pytest.approx(float(found.error.square().mean().sqrt()), rel=0.15)
    assert found.mean.std() == pytest.approx(float(found.mean_error.square().mean().sqrt()), rel=0.15)


def test_the_pilot_finds_steps_for_each_datum_which_the_run_then_keeps() -> None:
    """Guides a hundred times as wide as each other, with a posterior a tenth as wide."""
    model, x = problem(40)
    variant = program(model, stretch=100.0)
    with evaluating(variant), seeded(0):
        path = AnnealedPath(variant, x, 60, 10)
        path.tune(16)
        frozen = path.step_size.clone()
        acceptance = path.forward(16).acceptance

    assert torch.equal(path.step_size, frozen)
    assert (frozen[-2] < 0.3 * frozen[1]).all()
    assert acceptance.mean() == pytest.approx(0.65, abs=0.07)


# The bracket.


def test_a_bracket_holds_the_evidence_and_closes() -> None:
    torch.manual_seed(4)
    model, _ = problem(2)
    variant, gaps = program(model, **OFF), []
    for temperatures in (3, 40):
        found = bracket(variant, rows=300, chains=4, temperatures=temperatures, leapfrogs=4)
        evidence = model.log_evidence(found.x)
        gap, error = found.gap
        gaps.append(gap)
        assert gap > 4 * error
        for below, above in ((found.lower, evidence), (evidence, found.upper)):
            assert score(above - below, 0.0) > 3
        assert (found.reverse.log_weight.mean(0) >= found.upper - 1e-12).all()
    assert gaps[1] < 0.2 * gaps[0]


def test_the_mean_reciprocal_of_a_reverse_weight_is_that_of_the_evidence(monkeypatch: pytest.MonkeyPatch) -> None:
    """From a narrow guide, so that reciprocals have a variance. A start at the posterior mean, no draw, is noticed."""
    monkeypatch.setattr("ppl_vae.blocks.ROWS", 40_000)
    model, _ = problem(2)
    variant = program(model, shift=0.1, stretch=0.8)
    found = bracket(variant, rows=10_000, chains=2, temperatures=4, leapfrogs=3)
    ratio = (model.log_evidence(found.x) - found.reverse.log_weight).exp().mean(0)
    with evaluating(variant), seeded(0):
        path = AnnealedPath(variant, found.x, 4, 3)
        wrong = path.reverse(model.posterior(found.x).loc.expand(2, -1, -1)).log_weight

    assert abs(score(ratio, 1.0)) < 4
    assert abs(score((model.log_evidence(found.x) - wrong).exp().mean(0), 1.0)) > 6


def test_the_data_of_a_bracket_are_of_the_model() -> None:
    model, _ = problem(2)
    variant = program(model)
    variant.model.scale = Scale((X_DIM,), 3.0, 10.0)
    x = bracket(variant, rows=4000, chains=2, temperatures=1).x

    covariance = 100 * (model.loading @ model.loading.mT + model.sigma**2 * torch.eye(X_DIM))
    assert max(abs(score(column, mean)) for column, mean in zip(x.mT, 3 + 10 * model.loc, strict=True)) < 4
    assert torch.allclose(torch.cov(x.mT), covariance, rtol=0, atol=0.1 * float(covariance.max()))


# Models that are not Gaussian; units.


def test_the_evidence_of_a_mass_is_that_of_quadrature() -> None:
    """One code, so that log p(x) is an integral over a line."""
    decoder = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, X_DIM))
    decoder[2].weight.data *= 6
    variant = pair((X_DIM,), 1, likelihood=Bernoulli(), guide=MeanField, decoder=decoder)
    variant.model.scale = Scale((X_DIM,), 0.0, 255.0)
    x = torch.randint(2, (30, X_DIM)).double()
    found = annealed(variant, 255 * x, chains=32, temperatures=40)

    z = torch.linspace(-9, 9, 4001)
    with torch.no_grad():
        log_p = BernoulliLaw(logits=decoder(z[:, None])).log_prob(x[:, None]).sum(-1) + Normal(0.0, 1.0).log_prob(z)
    evidence = log_p.logsumexp(-1) + math.log(z[1] - z[0])
    assert abs(score((found.bound - evidence) / found.error, 0.0)) < 4
    assert found.error.max() < 0.2
    assert found.bound.max() < 0


def test_data_ten_times_as_large_lose_d_log_ten_and_nothing_else() -> None:
    model, x = problem(5)
    variant = program(model, **OFF)
    one = annealed(variant, x, temperatures=5)
    variant.model.scale = Scale((X_DIM,), width=10.0)
    ten = annealed(variant, 10 * x, temperatures=5)

    assert torch.allclose(ten.log_weight, one.log_weight - X_DIM * math.log(10), rtol=0, atol=1e-8)


def test_the_log_joint_is_the_prior_and_the_likelihood() -> None:
    model, x = problem(4)
    z = torch.randn(3, 4, Z_DIM)
    with evaluating(variant := program(model)):
        found = log_joint(variant, x, z)
    law = Normal(z @ model.loading.mT + model.loc, model.sigma)
    assert torch.allclose(found, law.log_prob(x).sum(-1) + Normal(0.0, 1.0).log_prob(z).sum(-1))


# Manners.


def test_a_variant_and_the_random_streams_are_left_as_they_were() -> None:
    variant, x = pair((X_DIM,), Z_DIM, likelihood=Gaussian()), torch.randn(6, X_DIM)
    variant.model.train()
    torch.manual_seed(3)
    expected = torch.randn(3)
    torch.manual_seed(3)
    found, again = (annealed(variant, x, temperatures=3, seed=5) for _ in range(2))
    other = annealed(variant, x, temperatures=3, seed=6)

    assert torch.equal(torch.randn(3), expected)
    assert torch.equal(found.log_weight, again.log_weight)
    assert not torch.equal(found.log_weight, other.log_weight)
    assert variant.model.training
    assert all(parameter.grad is None for half in variant[:2] for parameter in half.parameters())
    assert not found.log_weight.requires_grad


def test_progress_is_said_where_it_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    model, x = problem(3)
    annealed(program(model), x, temperatures=5)
    assert capsys.readouterr() == ("", "")
    annealed(program(model), x, temperatures=5, progress=True)
    assert "temperature 10/10" in capsys.readouterr().err


def test_a_point_mass_is_refused_and_the_remedy_is_good() -> None:
    variant, x = pair((X_DIM,), Z_DIM, likelihood=Gaussian(0.5), guide=PointMass), torch.randn(3, X_DIM)
    with pytest.raises(ValueError, match=r"point-mass guide has no density.* variant._replace\(guide=Laplace"):
        annealed(variant, x)
    with pytest.raises(ValueError, match="point-mass guide has no density"):
        bracket(variant)
    proposal = variant._replace(guide=Laplace(variant.guide, variant.model))
    assert annealed(proposal, x, temperatures=3).bound.isfinite().all()


@pytest.mark.parametrize("wrong", [{"chains": 1}, {"temperatures": 0}, {"leapfrogs": 0}])
def test_runs_of_nothing_are_refused(wrong: dict[str, int]) -> None:
    model, x = problem(2)
    with pytest.raises(ValueError, match="chains must be at least 2, temperatures and leapfrogs at least 1, got"):
        annealed(program(model), x, **wrong)
    with pytest.raises(ValueError, match="rows must be at least 2"):
        bracket(program(model), rows=1)
