"""Verification itself is held against closed forms that are written out here."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import ELBO, RenyiELBO, Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from pyro.util import get_rng_state
from torch import Tensor, nn

from ppl_vae import VARIANTS, Variant, compare_estimators, pair
from ppl_vae.elbo import IWAE, MIWAE, PIWAE, BetaELBO, DReG, FreeBits, PathwiseELBO, StickingTheLanding
from ppl_vae.elbo.reading import Reading
from ppl_vae.guides import ConstantVariance, FullRank, Guide, MeanField, PointMass
from ppl_vae.models import (
    Bernoulli,
    Gaussian,
    Heteroscedastic,
    Laplace,
    LearnedSigma,
    LinearGaussian,
    Mixture,
    OptimalSigma,
    StandardNormal,
    StudentT,
    spectrally_normalised,
)
from ppl_vae.streams import seeded
from ppl_vae.verification.exact_pair import as_linear_gaussian, gaussian_guide, linear_pair
from ppl_vae.verification.repeated_draws import Replicate, frozen, parameters, replicates, spans
from ppl_vae.verification.targets import TARGETS, Estimand, Target, Terms, Truth, estimand_of, truth
from ppl_vae.verification.verdict import LIMIT, Verdict, hold_against_truth, largest_z_score, verify

X_DIM, Z_DIM, ROWS, SIZE = 5, 2, 6, 48


def problem() -> tuple[LinearGaussian, Tensor]:
    exact = LinearGaussian(torch.randn(X_DIM, Z_DIM), torch.randn(X_DIM), torch.tensor(0.6))
    return exact, 1.5 * torch.randn(ROWS, X_DIM)


def posterior(exact: LinearGaussian, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [rows, z_dim] and covariance [z_dim, z_dim] of p(z | x), by conditioning the joint Gaussian."""
    covariance = exact.loading @ exact.loading.mT + exact.sigma**2 * torch.eye(X_DIM)
    gain = exact.loading.mT @ torch.linalg.inv(covariance)
    return (x - exact.loc) @ gain.mT, torch.eye(Z_DIM) - gain @ exact.loading


def log_evidence(exact: LinearGaussian, x: Tensor) -> Tensor:
    covariance = exact.loading @ exact.loading.mT + exact.sigma**2 * torch.eye(X_DIM)
    square = ((x - exact.loc) @ torch.linalg.inv(covariance) * (x - exact.loc)).sum(-1)
    return -0.5 * (square + torch.logdet(covariance) + X_DIM * math.log(2 * math.pi))


def terms(variant: Variant, x: Tensor) -> tuple[Tensor, Tensor]:
    """E_q log p(x | z) [rows] and the KL [rows, z_dim] of a mean-field pair, written out."""
    loc, log_scale = (head(x) for head in variant.guide.heads)
    decoder, sigma = variant.model.decoder, variant.model.likelihood.scale
    error = (x - decoder(loc)).square().sum(-1) + ((2 * log_scale).exp() * decoder.weight.square().sum(0)).sum(-1)
    expected = -0.5 * error / sigma**2 - X_DIM * (sigma.log() + 0.5 * math.log(2 * math.pi))
    return expected, 0.5 * (loc**2 + (2 * log_scale).exp() - 1) - log_scale


def slopes(variant: Variant, loss: Tensor) -> Tensor:
    held = [parameter for group in parameters(variant).values() for parameter in group]
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss, held)])


# The truth.


def truth_of(variant: Variant, x: Tensor, loss: Any, target: str | None = None, **settings: Any) -> Truth:
    return truth(variant, x, SIZE, estimand_of(loss, target), **settings)


CLOSED: dict[str, tuple[Any, Callable[[Tensor, Tensor], Tensor]]] = {
    "elbo": (Trace_ELBO(), lambda likelihood, kl: (likelihood - kl.sum(-1)).sum()),
    "beta": (BetaELBO(2.5), lambda likelihood, kl: (likelihood - 2.5 * kl.sum(-1)).sum()),
    "free_bits": (FreeBits(0.4), lambda likelihood, kl: likelihood.sum() - ROWS * kl.mean(0).clamp_min(0.4).sum()),
}


@pytest.mark.parametrize("name", CLOSED)
def test_the_truth_of_a_linear_gaussian_pair_is_its_closed_form(name: str) -> None:
    exact, x = problem()
    variant = frozen(linear_pair(exact, shift=0.3, stretch=1.3))
    loss, bound = CLOSED[name]

    found = truth_of(variant, x, loss, name)

    expected = -SIZE / ROWS * bound(*terms(variant, x))
    assert found.exact
    assert found.value_error == 0
    assert not found.gradient_error.any()
    assert math.isclose(found.value, float(expected.detach()), rel_tol=1e-10)
    assert torch.allclose(found.gradient, slopes(variant, expected), rtol=1e-10, atol=1e-10)


def test_the_truth_of_the_elbo_where_the_guide_is_the_posterior_is_the_evidence() -> None:
    exact, x = problem()
    variant = frozen(linear_pair(exact, FullRank))

    found = truth_of(variant, x, Trace_ELBO())

    model = LinearGaussian(variant.model.decoder.weight, variant.model.decoder.bias, variant.model.likelihood.scale)
    loss = -SIZE / ROWS * log_evidence(model, x).sum()
    held = [parameter for name, group in parameters(variant).items() if name != "encoder" for parameter in group]
    expected = torch.cat([part.flatten() for part in torch.autograd.grad(loss, held)])
    assert math.isclose(found.value, float(loss.detach()), rel_tol=1e-10)
    assert found.gradient[spans(variant)["encoder"]].abs().max() < 1e-9
    assert torch.allclose(found.gradient[spans(variant)["decoder"].start :], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["iwae", "miwae", "piwae", "ciwae", "renyi"])
def test_a_long_run_of_one_draw_agrees_with_the_closed_form_of_the_elbo(name: str) -> None:
    exact, x = problem()
    variant = frozen(linear_pair(exact, shift=0.3, stretch=1.3))
    options = {"groups": 1, "beta": 0.3, "alpha": 0.6}

    estimand = Estimand(name, 1, tuple((option, options[option]) for option in TARGETS[name].options))
    found = truth(variant, x, SIZE, estimand)

    expected = truth_of(variant, x, Trace_ELBO())
    assert not found.exact
    assert 0 < found.value_error < 0.05 * abs(found.value)
    assert abs(found.value - expected.value) < 4 * found.value_error
    assert ((found.gradient - expected.gradient).abs() < LIMIT * found.gradient_error).all()


def test_a_long_run_where_the_guide_is_the_posterior_is_the_evidence_without_error() -> None:
    exact, x = problem()

    found = truth_of(frozen(linear_pair(exact, FullRank)), x, IWAE(7))

    assert math.isclose(found.value, -SIZE / ROWS * float(log_evidence(exact, x).sum()), rel_tol=1e-10)
    assert found.value_error < 1e-9


def test_the_truth_of_piwae_is_the_model_of_iwae_and_the_guide_of_miwae() -> None:
    exact, x = problem()
    variant = frozen(linear_pair(exact, shift=0.3))

    piwae, iwae, miwae = (truth_of(variant, x, loss) for loss in (PIWAE(6, 3), IWAE(6), MIWAE(6, 3)))

    encoder = spans(variant)["encoder"]
    assert piwae.value == iwae.value != miwae.value
    assert torch.equal(piwae.gradient[encoder], miwae.gradient[encoder])
    assert torch.equal(piwae.gradient[encoder.stop :], iwae.gradient[encoder.stop :])


def test_an_error_shrinks_with_the_root_of_the_draws_and_covers() -> None:
    exact, x = problem()
    variant = frozen(linear_pair(exact, shift=0.3))
    few, many = (truth_of(variant, x, IWAE(5), draws=draws) for draws in (2000, 32_000))

    assert 3 < few.value_error / many.value_error < 5.5
    assert abs(few.value - many.value) < 4 * few.value_error


def test_free_bits_without_a_closed_form_have_no_truth() -> None:
    exact, x = problem()
    with pytest.raises(ValueError, match="free bits have a truth only if the KL of each coordinate"):
        truth_of(frozen(linear_pair(exact, FullRank)), x, FreeBits(0.1))


def test_a_pair_that_is_not_linear_has_a_long_run() -> None:
    """This holds for the ELBO too, and in the dtype of the pair."""
    variant = frozen(pair((X_DIM,), Z_DIM, likelihood=Bernoulli()))
    y = torch.randint(2, (ROWS, X_DIM)).double()

    found = truth_of(variant, y, Trace_ELBO())

    values = torch.tensor([one.value for one in replicates(variant, Trace_ELBO(), (y, SIZE), 144, 3)])
    assert not found.exact
    assert abs(found.value - values.mean()) < 4 * math.hypot(found.value_error, float(values.std()) / 12)


def test_targets_are_inferred_told_or_refused() -> None:
    foreign = {Trace_ELBO(): "elbo", TraceMeanField_ELBO(): "elbo", RenyiELBO(0.5): "renyi"}
    ours = {DReG(): "iwae", PIWAE(): "piwae", PathwiseELBO(): "elbo", FreeBits(): "free_bits"}
    assert all(estimand_of(loss).target == name for loss, name in (foreign | ours).items())
    assert estimand_of(Trace_ELBO(), "iwae").target == "iwae"
    with pytest.raises(ValueError, match=rf"unknown target 'evidence': wanted one of {', '.join(TARGETS)}"):
        estimand_of(Trace_ELBO(), "evidence")


class Fractional(BetaELBO):
    """``E_q[power log p(x | z)] - KL``, which has an option that no other target has."""

    target = "fractional"

    def __init__(self, power: float) -> None:
        super().__init__(1.0)
        self.power = power

    def objective(self, reading: Reading) -> Tensor:
        return (self.power * reading.likelihood + reading.prior - reading.guide).mean(0)


@pytest.fixture
def fractional(monkeypatch: pytest.MonkeyPatch) -> None:
    def formula(terms: Terms, power: float) -> Tensor:
        return (power * terms.likelihood - terms.kl).mean(1)

    monkeypatch.setitem(TARGETS, "fractional", Target(formula, exact=True))


@pytest.mark.usefixtures("fractional")
def test_estimators_that_differ_in_an_option_of_their_target_share_no_truth() -> None:
    """Each is unbiased for its own truth, and far from that of the other."""
    exact, x = problem()

    compared = compare_estimators(linear_pair(exact, shift=0.3), x, [Fractional(0.5), Fractional(0.9)], 100)

    half, most = compared.rows
    assert abs(half["value_bias"]) < LIMIT * half["value_bias_error"]
    assert abs(most["value_bias"]) < LIMIT * most["value_bias_error"]
    assert abs(half["value"] - most["value"]) > 2 * LIMIT * most["value_bias_error"]
    assert verify(Fractional(0.5), draws=100).passed


def test_estimators_that_differ_in_another_option_share_a_truth() -> None:
    """A target depends on the arguments of its formulas and on the number of draws, and on nothing else."""
    assert estimand_of(BetaELBO(2.0), "elbo") == estimand_of(BetaELBO(3.0), "elbo")
    assert estimand_of(MIWAE(8, 2)) != estimand_of(MIWAE(8, 4)) != estimand_of(MIWAE(16, 4))
    assert estimand_of(PIWAE(8, 2)).options == (("groups", 2),)


@pytest.mark.usefixtures("fractional")
def test_an_estimator_without_an_option_of_its_target_is_refused() -> None:
    with pytest.raises(ValueError, match="the target 'fractional' depends on power, which Trace_ELBO does not have"):
        verify(Trace_ELBO(), target="fractional")


# Replicates.


def every_gradient(found: list[Replicate]) -> Tensor:
    return torch.stack([one.gradient for one in found])


def test_a_replicate_is_a_function_of_the_seed_and_its_number_alone() -> None:
    exact, x = problem()
    variant = frozen(linear_pair(exact))
    few, many, other = (
        list(replicates(variant, Trace_ELBO(), (x, SIZE), count, seed)) for count, seed in ((2, 3), (5, 3), (2, 4))
    )

    assert [one.value for one in few] == [one.value for one in many[:2]]
    assert torch.equal(every_gradient(few), every_gradient(many[:2]))
    assert len({one.value for one in [*many, *other]}) == 7
    assert all(one.seconds > 0 for one in many)


@pytest.mark.parametrize(
    "other", [PathwiseELBO(), TraceGraph_ELBO(), BetaELBO(1.0), RenyiELBO(0.0, 1)], ids=lambda loss: type(loss).__name__
)
def test_estimators_get_the_same_noise(other: ELBO) -> None:
    exact, x = problem()
    variant = frozen(linear_pair(exact, shift=0.3))
    ours, others = (list(replicates(variant, loss, (x,), 3, 0)) for loss in (Trace_ELBO(), other))

    assert all(math.isclose(a.value, b.value, rel_tol=1e-10) for a, b in zip(ours, others, strict=True))
    assert torch.allclose(every_gradient(ours), every_gradient(others), rtol=1e-10, atol=1e-10)


def test_a_gradient_is_laid_out_by_what_the_parameters_do() -> None:
    """Parameters that are not trained are left out."""
    exact, x = problem()
    variant = frozen(linear_pair(exact, shift=0.3))

    assert {name: span.stop - span.start for name, span in spans(variant).items()} == {
        "encoder": 2 * (Z_DIM * X_DIM + Z_DIM),
        "decoder": Z_DIM * X_DIM + X_DIM,
        "sigma": 1,
    }
    (one,) = replicates(variant, BetaELBO(1.0), (x, SIZE), 1, 0)
    with seeded(0):
        loss = BetaELBO(1.0).differentiable_loss(variant.model, variant.guide, x, SIZE)
    assert math.isclose(one.value, float(loss.detach()), rel_tol=1e-12)
    assert torch.allclose(one.gradient, slopes(variant, loss), rtol=1e-12, atol=1e-12)

    variant.guide.requires_grad_(requires_grad=False)
    variant.model.likelihood.requires_grad_(requires_grad=False)
    assert list(spans(variant)) == ["decoder"]
    (held,) = replicates(variant, BetaELBO(1.0), (x, SIZE), 1, 0)
    assert torch.allclose(held.gradient, one.gradient[24:39], rtol=1e-12, atol=1e-12)


def test_a_learned_prior_is_a_group_and_a_stated_sigma_is_none() -> None:
    variant = pair((X_DIM,), Z_DIM, likelihood=Gaussian(0.5), prior=Mixture(Z_DIM, 3))
    assert list(parameters(variant)) == ["encoder", "decoder", "prior"]


def test_a_frozen_pair_is_a_copy_in_eval_mode() -> None:
    variant = VARIANTS["beta_vae"]((X_DIM,), Z_DIM)
    copied = frozen(variant)

    assert not copied.model.training
    assert not copied.guide.training
    assert variant.model.training
    assert not {id(p) for p in copied.model.parameters()} & {id(p) for p in variant.model.parameters()}


def stream_states() -> list[Any]:
    """The states of the random streams of torch, NumPy and Python."""
    state = get_rng_state()
    return [state["torch"].tolist(), repr(state["numpy"]), state["random"]]


WORK: dict[str, Callable[[Variant, Tensor], Any]] = {
    "verify": lambda variant, x: verify(Trace_ELBO(), draws=100),
    "truth": lambda variant, x: truth_of(variant, x, IWAE(3), draws=100),
    "replicates": lambda variant, x: list(replicates(frozen(variant), IWAE(3), (x, SIZE), 3, 0)),
    "some replicates": lambda variant, x: next(replicates(frozen(variant), IWAE(3), (x, SIZE), 3, 0)),
}


@pytest.mark.parametrize("work", WORK.values(), ids=WORK)
def test_the_pair_the_store_and_the_streams_are_left_as_they_were(work: Callable[[Variant, Tensor], Any]) -> None:
    exact, x = problem()
    variant = linear_pair(exact, shift=0.3)
    before = copy.deepcopy([half.state_dict() for half in variant[:2]])
    with pyro.get_param_store().scope(), seeded(5):
        pyro.param("Guide.mine", torch.ones(()))
        expected = stream_states()

        work(variant, x)

        assert stream_states() == expected
        assert list(pyro.get_param_store().keys()) == ["Guide.mine"]
    for half, state in zip(variant[:2], before, strict=True):
        assert half.training
        assert all(torch.equal(value, state[name]) for name, value in half.state_dict().items())
        assert all(parameter.grad is None for parameter in half.parameters())


# verify.


def of_few_data(estimator: ELBO | str, seed: int = 0) -> Verdict:
    """The verdict on a small problem, the same for every seed of the draws."""
    torch.manual_seed(0)
    exact, x = problem()
    return hold_against_truth(linear_pair(exact, shift=0.3, stretch=1.3), x, estimator, draws=100, seed=seed)


@pytest.mark.parametrize(
    "loss", [Trace_ELBO(), TraceMeanField_ELBO(), TraceGraph_ELBO()], ids=lambda e: type(e).__name__
)
def test_estimators_of_pyro_pass(loss: ELBO) -> None:
    verdict = verify(loss, draws=100)

    assert verdict.passed
    assert str(verdict).startswith("passed: 100 draws, |z| below 5 wanted\nvalue ")
    assert list(verdict.z) == [
        f"{name}{part}"
        for part in ("", ", 1 / 5 of the data")
        for name in ("value", "gradient, encoder", "gradient, decoder", "gradient, sigma")
    ]


def test_an_estimator_told_another_target_fails() -> None:
    """One draw of IWAE is the ELBO; eight are not."""
    assert verify(IWAE(1), target="elbo", draws=100).passed
    verdict = verify(IWAE(8), target="elbo", draws=100)
    assert not verdict.passed
    assert str(verdict).startswith("FAILED: 100 draws")


def test_verdicts_of_neighbouring_seeds_share_no_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[int, set[int]] = {}
    for seed in (0, 1):
        seen = drawn[seed] = set()
        monkeypatch.setattr(
            "ppl_vae.verification.repeated_draws.seeded", lambda one, seen=seen: (seen.add(one), seeded(one))[1]
        )
        verify(Trace_ELBO(), draws=100, seed=seed)

    assert len(drawn[0]) == len(drawn[1]) == 120
    assert not drawn[0] & drawn[1]


def test_a_verdict_is_repeatable_and_has_a_seed() -> None:
    one, again, other = (of_few_data(Trace_ELBO(), seed) for seed in (1, 1, 2))
    assert one == again
    assert one.z != other.z


def test_z_scores_are_those_of_normal_errors() -> None:
    """The largest of eight scores is near 3 on average over seeds, and a right estimator never fails."""
    largest = torch.tensor([max(map(abs, of_few_data(BetaELBO(1.0), seed).z.values())) for seed in range(5)])
    assert 2 < largest.mean() < 3.5
    assert largest.max() < LIMIT


def test_verify_is_of_double_precision_whatever_the_default_is() -> None:
    double = verify(Trace_ELBO(), draws=100)
    torch.set_default_dtype(torch.float32)
    single = verify(Trace_ELBO(), draws=100)

    assert single.passed
    assert double.passed


@pytest.mark.parametrize("draws", [0, 99])
def test_too_few_draws_are_refused(draws: int) -> None:
    with pytest.raises(ValueError, match=f"draws must be at least 100, because .* got {draws}"):
        verify(Trace_ELBO(), draws=draws)


def test_a_z_score_is_the_largest_of_a_coordinate_or_along_the_truth() -> None:
    noise = torch.randn(400, 3)
    noise = (noise - noise.mean(0)) / noise.std(0)
    expected, still = torch.tensor([3.0, 4.0, 0.0]), torch.zeros(3)
    across = noise[:, :1] * torch.tensor([4.0, -3.0, 0.0])  # each coordinate is noisy, their sum along the truth is not

    third_moved = noise + expected + torch.tensor([0.0, 0.0, 0.1])
    assert largest_z_score(third_moved, expected, still) == pytest.approx(0.1 * 20, rel=0.01)
    assert largest_z_score(across + 1.001 * expected, expected, still) > LIMIT

    rounded, wrong = torch.full((9, 2), 1 + 1e-15), torch.full((9, 2), 1.001)  # without variance, rounding counts
    assert largest_z_score(rounded, torch.ones(2), torch.zeros(2)) < 0.01
    assert largest_z_score(wrong, torch.ones(2), torch.zeros(2)) > LIMIT


@pytest.mark.parametrize("draws", [20, 600])
@pytest.mark.parametrize("probability", [0.3, 1e-3, 1e-6])
def test_a_z_score_has_the_tail_probability_of_students_score(draws: int, probability: float) -> None:
    from scipy import stats

    score = float(stats.t.isf(probability, draws - 1))
    noise = torch.randn(draws, 1)
    samples = (noise - noise.mean()) / noise.std() + score / math.sqrt(draws)

    found = largest_z_score(samples, torch.zeros(1), torch.zeros(1))
    assert found == pytest.approx(stats.norm.isf(probability), abs=0.01)


# Pairs whose answers are known.


@pytest.mark.parametrize("default", [torch.float32, torch.float64])
def test_the_full_rank_guide_is_the_posterior_and_then_moved(default: torch.dtype) -> None:
    """The guide has the precision of the model, whatever the default dtype is."""
    exact, x = problem()
    loc, covariance = posterior(exact, x)
    torch.set_default_dtype(default)

    for shift, stretch in ((0.0, 1.0), (0.3, 1.3)):
        variant = linear_pair(exact, FullRank, shift=shift, stretch=stretch)
        q = variant.guide.posterior(x)

        assert torch.allclose(q.loc, loc + shift, rtol=0, atol=1e-10)
        assert torch.allclose(q.covariance_matrix, stretch**2 * covariance.expand(ROWS, 2, 2), rtol=0, atol=1e-10)
        assert torch.allclose(variant.model.likelihood.scale, exact.sigma, rtol=1e-12)


def test_the_mean_field_guide_is_the_best_of_its_family() -> None:
    """The gradient for the guide is 0. The guide has the posterior's mean and the diagonal of its precision matrix."""
    exact, x = problem()
    loc, covariance = posterior(exact, x)
    variant = frozen(linear_pair(exact))

    q = variant.guide.posterior(x)

    assert torch.allclose(q.base_dist.loc, loc, rtol=0, atol=1e-10)
    assert torch.allclose(q.base_dist.scale**-2, torch.linalg.inv(covariance).diagonal().expand(ROWS, 2), rtol=1e-10)
    assert truth_of(variant, x, Trace_ELBO()).gradient[spans(variant)["encoder"]].abs().max() < 1e-9


class Residual(nn.Sequential):
    def forward(self, z: Tensor) -> Tensor:
        return super().forward(z) ** 2


class BentLinear(nn.Linear):
    def forward(self, z: Tensor) -> Tensor:
        return super().forward(z).tanh()


class BentPrior(StandardNormal):
    def forward(self) -> Any:
        return dist.Normal(self.loc + 1, self.scale).to_event(1)


class BentLikelihood(LearnedSigma):
    def forward(self, loc: Tensor) -> Any:
        return dist.Normal(loc.tanh(), self.scale)


class Doubled(LearnedSigma):
    def forward(self, loc: Tensor) -> Any:
        return dist.Normal(loc, 2 * self.scale)


class LogNormal(LearnedSigma):
    def forward(self, loc: Tensor) -> Any:
        return dist.LogNormal(loc, self.scale)


class ScaleOfEach(LearnedSigma):
    @property
    def scale(self) -> Tensor:
        return torch.linspace(0.1, 1.0, X_DIM)


class Biased(LearnedSigma):
    """A mean with a bias that starts at 0."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(X_DIM))

    def forward(self, loc: Tensor) -> Any:
        return super().forward(loc + self.bias)


class Clamped(LearnedSigma):
    """A mean that is held between -100 and 100."""

    def forward(self, loc: Tensor) -> Any:
        return super().forward(loc.clamp(-100, 100))


def moved(prior: StandardNormal) -> StandardNormal:
    prior.loc.fill_(0.5)
    return prior


def trained(prior: StandardNormal) -> StandardNormal:
    loc = prior.loc
    del prior.loc
    prior.loc = nn.Parameter(loc)
    return prior


def built(likelihood: nn.Module | None = None, decoder: nn.Module | None = None, **parts: Any) -> Variant:
    parts = {"encoder": nn.Identity(), "decoder": nn.Linear(Z_DIM, X_DIM) if decoder is None else decoder} | parts
    return pair((X_DIM,), Z_DIM, likelihood=LearnedSigma() if likelihood is None else likelihood, **parts)


BENT: dict[str, Callable[[], Variant]] = {
    "perceptron": lambda: built(decoder=nn.Sequential(nn.Linear(Z_DIM, X_DIM), nn.Tanh())),
    "two layers": lambda: built(decoder=nn.Sequential(nn.Linear(Z_DIM, 3), nn.Linear(3, X_DIM))),
    "subclass of Sequential": lambda: built(decoder=Residual(nn.Linear(Z_DIM, X_DIM))),
    "subclass of Linear": lambda: built(decoder=BentLinear(Z_DIM, X_DIM)),
    "spectrally normalised": lambda: built(decoder=spectrally_normalised(nn.Linear(Z_DIM, X_DIM))),
    "heteroscedastic": lambda: built(Heteroscedastic(), nn.Linear(Z_DIM, 2 * X_DIM)),
    "Laplace": lambda: built(Laplace()),
    "Student": lambda: built(StudentT()),
    "log normal": lambda: built(LogNormal()),
    "Bernoulli": lambda: built(Bernoulli()),
    "a mean bent behind the decoder": lambda: built(BentLikelihood()),
    "another scale": lambda: built(Doubled()),
    "a scale of each coordinate": lambda: built(ScaleOfEach()),
    "prior of another scale": lambda: built(prior=StandardNormal(Z_DIM, 2.0)),
    "mixture prior": lambda: built(prior=Mixture(Z_DIM, 2)),
    "subclass of the prior": lambda: built(prior=BentPrior(Z_DIM)),
    "prior with a mean": lambda: built(prior=moved(StandardNormal(Z_DIM))),
    "prior that is trained": lambda: built(prior=trained(StandardNormal(Z_DIM))),
    "a bias of the likelihood, now 0": lambda: built(Biased()),
    "a mean that is clamped far away": lambda: built(Clamped()),
    "catalogue": lambda: VARIANTS["sigma_vae"]((X_DIM,), Z_DIM),
}


@pytest.mark.parametrize("build", BENT.values(), ids=BENT)
def test_a_pair_that_is_not_linear_gaussian_is_not_taken_for_one(build: Callable[[], Variant]) -> None:
    assert as_linear_gaussian(build()) is None


def test_under_a_prior_with_a_mean_the_truth_is_that_of_the_estimator() -> None:
    """Against Normal(m, I) the KL of a guide at 0 is larger by |m|**2 / 2, which a closed form without m would miss."""
    variant, x = built(prior=moved(StandardNormal(Z_DIM))), torch.randn(ROWS, X_DIM)

    assert hold_against_truth(variant, x, "trace", draws=200).passed


STRAIGHT: dict[str, Callable[[], Variant]] = {
    "learned sigma": built,
    "stated sigma": lambda: built(Gaussian(0.3)),
    "sigma in closed form": lambda: built(OptimalSigma(0.7)),
    "without bias": lambda: built(decoder=nn.Linear(Z_DIM, X_DIM, bias=False)),
    "in a row of layers": lambda: built(decoder=nn.Sequential(nn.Flatten(), nn.Identity(), nn.Linear(Z_DIM, X_DIM))),
    "pictures": lambda: pair((1, 2, 3), Z_DIM, likelihood=LearnedSigma(), decoder=nn.Linear(Z_DIM, 6)),
    "single precision": lambda: (lambda v: v._replace(model=v.model.float()))(built()),
}


@pytest.mark.parametrize("build", STRAIGHT.values(), ids=STRAIGHT)
def test_a_pair_that_is_linear_gaussian_is_recognised_with_the_graph_of_its_parameters(
    build: Callable[[], Variant],
) -> None:
    """The mean of p(x | z) and its scale agree at new codes."""
    variant = build()
    model = as_linear_gaussian(variant)

    assert model is not None
    z = torch.randn(7, Z_DIM).to(model.loading)
    law = variant.model.eval().x_given_z(z)
    assert torch.allclose((z @ model.loading.mT + model.loc).reshape(law.mean.shape), law.mean, rtol=1e-5, atol=1e-5)
    assert torch.allclose(law.variance, model.sigma**2)
    model.loading.sum().backward()
    assert next(p for p in variant.model.decoder.parameters() if p.ndim == 2).grad is not None


class Cauchy(Guide):
    outputs = 1

    def distribution(self, loc: Tensor) -> Any:
        return dist.Cauchy(loc, 1.0).to_event(1)


@pytest.mark.parametrize("guide", [MeanField, FullRank, ConstantVariance])
def test_a_gaussian_guide_is_a_multivariate_normal_with_its_graph(guide: type[Guide]) -> None:
    variant, x = built(guide=guide), torch.randn(ROWS, X_DIM)
    q, z = variant.guide.posterior(x), torch.randn(ROWS, Z_DIM)

    found = gaussian_guide(variant, x)

    assert torch.allclose(found.log_prob(z), q.log_prob(z), rtol=1e-10)
    found.loc.sum().backward()
    assert variant.guide.heads[0].weight.grad is not None


@pytest.mark.parametrize("guide", [PointMass, Cauchy])
def test_another_guide_is_none(guide: type[Guide]) -> None:
    assert gaussian_guide(built(guide=guide), torch.randn(ROWS, X_DIM)) is None


def test_a_name_is_an_estimator_and_a_class_is_none() -> None:
    assert of_few_data("stl").z == of_few_data(StickingTheLanding()).z
    with pytest.raises(ValueError, match=r"an instance of pyro\.infer\.ELBO .* got StickingTheLanding"):
        verify(StickingTheLanding)
