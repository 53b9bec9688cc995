"""gaps: held against the linear-Gaussian model, where log p(x), the best guide and both gaps are known exactly."""

import importlib
import math
from functools import partial

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from ppl_vae import pair
from ppl_vae.assembly import GuideFamily
from ppl_vae.evaluation.inference_gaps import Gaps, gaps
from ppl_vae.evaluation.lower_bounds import bounds
from ppl_vae.guides import ConstantVariance, FullRank, Guide, Laplace, MeanField, PointMass
from ppl_vae.models import Bernoulli, Gaussian, LinearGaussian, Scale
from ppl_vae.variant import Variant

module = importlib.import_module("ppl_vae.evaluation.inference_gaps")
X_DIM, Z_DIM, ROWS = 5, 2, 20
SCALE = 0.35  # of the guide whose scale is fixed
WALK = 2e-3  # nats that Adam's last steps stay away from the optimum
FAMILIES: dict[str, GuideFamily] = {
    "mean_field": MeanField,
    "full_rank": FullRank,
    "constant_variance": partial(ConstantVariance, scale=SCALE),
}


def problem() -> tuple[LinearGaussian, Tensor]:
    """A model whose codes are correlated in the posterior, and data drawn from it."""
    loading = torch.tensor([[1.0, 0.8], [0.5, 0.9], [0.0, 0.3], [0.7, 0.1], [-0.4, -0.6]])
    model = LinearGaussian(loading, torch.randn(X_DIM), torch.tensor(0.6))
    return model, torch.randn(ROWS, Z_DIM) @ loading.mT + model.loc + model.sigma * torch.randn(ROWS, X_DIM)


def best(model: LinearGaussian, family: str, x: Tensor) -> MultivariateNormal:
    """The best member of a family for each datum: the exact mean in each of them."""
    if family == "full_rank":
        return model.posterior(x)
    if family == "mean_field":
        return model.mean_field_posterior(x)
    return MultivariateNormal(model.posterior(x).loc, SCALE**2 * torch.eye(Z_DIM))


def program(model: LinearGaussian, family: str, shift: float = 0.0, stretch: float = 1.0) -> Variant:
    """The model as a pair; its affine encoder makes the best of the family, off by ``shift`` and stretched."""
    decoder = nn.Linear(Z_DIM, X_DIM)
    decoder.weight.data, decoder.bias.data = model.loading.clone(), model.loc.clone()
    variant = pair(
        (X_DIM,),
        Z_DIM,
        likelihood=Gaussian(model.sigma.item()),
        guide=FAMILIES[family],
        encoder=nn.Identity(),
        decoder=decoder,
    )
    zero = best(model, family, torch.zeros(1, X_DIM))
    loc, *spread = variant.guide.heads
    loc.weight.data = (model.posterior(torch.eye(X_DIM)).loc - zero.loc).mT.contiguous()
    loc.bias.data = zero.loc[0] + shift
    tril = math.sqrt(stretch) * torch.linalg.cholesky(zero.covariance_matrix.reshape(-1, Z_DIM, Z_DIM)[0])
    for head, bias in zip(spread, (tril.diagonal().log(), tril[1:, 0]), strict=False):
        head.weight.data.zero_()
        head.bias.data.copy_(bias)
    return variant


def law(variant: Variant, x: Tensor) -> MultivariateNormal:
    with torch.no_grad():
        q = variant.guide.posterior(x)
    return q if isinstance(q, MultivariateNormal) else MultivariateNormal(q.mean, torch.diag_embed(q.variance))


def agree(found: Tensor, truth: Tensor | float, error: Tensor, slack: float = 0.0) -> bool:
    """Whether the mean over data is right to 4 of its standard errors, and each datum to 5 of its own."""
    off = (found - truth).abs()
    return bool((off < 5 * error + slack).all()) and bool(
        (found - truth).mean().abs() < 4 * error.square().sum().sqrt() / len(found) + slack
    )


# The closed forms.


def test_an_encoder_at_the_optimum_leaves_nothing_to_amortisation() -> None:
    """And what the family cannot do is KL(best member || posterior), for the mean field half a log determinant."""
    model, x = problem()
    found = gaps(program(model, "mean_field"), x, 2000, log_evidence=model.log_evidence(x), steps=500)

    exact = model.gap(x, best(model, "mean_field", x))
    assert found.evidence == "given"
    assert agree(found.approximation, exact, found.approximation_error, WALK)
    assert agree(found.amortisation, 0.0, found.amortisation_error, WALK)
    assert found.amortisation.abs().max() < 0.01
    m = model.loading.mT @ model.loading + model.sigma**2 * torch.eye(Z_DIM)
    assert torch.allclose(exact, (m.diagonal().log().sum() - torch.logdet(m)) / 2)
    assert exact.min() > 0.1


@pytest.mark.parametrize("family", ["mean_field", "constant_variance"])
def test_a_guide_beside_the_optimum_lacks_exactly_its_divergence(family: str) -> None:
    model, x = problem()
    variant = program(model, family, shift=0.5, stretch=1.6)
    found = gaps(variant, x, 2000, log_evidence=model.log_evidence(x), steps=600)

    total, approximation = model.gap(x, law(variant, x)), model.gap(x, best(model, family, x))
    assert agree(found.total, total, found.total_error)
    assert agree(found.approximation, approximation, found.approximation_error, WALK)
    assert agree(found.amortisation, total - approximation, found.amortisation_error, WALK)
    assert (total - approximation).min() > 0.3
    assert torch.allclose(found.total, found.approximation + found.amortisation)


def test_a_refined_full_rank_guide_is_the_posterior() -> None:
    """The gradient sticks the landing: no noise is left at the optimum, and so no gap and no error."""
    model, x = problem()
    found = gaps(program(model, "full_rank", shift=0.3, stretch=1.5), x, 50, log_evidence=model.log_evidence(x))
    assert found.approximation.abs().max() < 1e-9
    assert found.approximation_error.max() < 1e-9


def test_unrefined_everything_is_laid_to_the_family() -> None:
    """Which is what a q* that has not converged does."""
    model, x = problem()
    variant = program(model, "mean_field", shift=0.5, stretch=1.6)
    none, some, all_of_them = (
        gaps(variant, x, 500, log_evidence=model.log_evidence(x), steps=steps) for steps in (0, 20, 500)
    )
    assert torch.equal(none.amortisation, torch.zeros(ROWS))
    assert torch.equal(none.amortisation_error, torch.zeros(ROWS))
    assert (none.approximation > some.approximation).all()
    assert (some.approximation > all_of_them.approximation).all()


# Log p(x) where nobody gives it.


def test_the_evidence_is_weighted_where_q_star_is_good() -> None:
    model, x = problem()
    found = gaps(program(model, "full_rank", shift=0.5), x, 500, chains=4, temperatures=5)
    exact = model.gap(x, law(program(model, "full_rank", shift=0.5), x))

    assert found.evidence == "importance-weighted"
    assert torch.allclose(found.log_evidence, model.log_evidence(x), rtol=0, atol=1e-6)
    assert agree(found.total, exact, found.total_error)


def test_the_evidence_is_annealed_where_weights_are_bad() -> None:
    """A family so narrow that weights have no variance: annealing gets there, and neither is above log p(x)."""
    model, x = problem()
    FAMILIES["narrow"] = partial(ConstantVariance, scale=0.05)
    try:
        variant = program(model, "narrow")
    finally:
        del FAMILIES["narrow"]
    found = gaps(variant, x, 200, steps=50, chains=16, temperatures=60)
    weighted = bounds(variant, x, 200).importance_weighted

    lacks = model.log_evidence(x) - found.log_evidence
    assert found.evidence == "annealed"
    assert lacks.mean() < 0.3 * (model.log_evidence(x) - weighted).mean()
    assert lacks.mean() > -4 * lacks.std() / math.sqrt(ROWS)


@pytest.mark.parametrize("evidence", ["given", "importance-weighted", "annealed"])
def test_errors_are_those_of_repetition(evidence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One datum many times over; a q* without steps, so that only draws differ."""
    model, x = problem()
    x = x[:1].expand(400, -1)
    variant = program(model, "mean_field", shift=0.1, stretch=1.3)
    if evidence == "importance-weighted":  # of good draws, whose part in the evidence takes out most of the error
        variant = program(model, "full_rank", shift=0.1, stretch=1.4)
        found = gaps(variant, x, 100, steps=0, chains=2, temperatures=1)
    elif evidence == "annealed":
        found = gaps(variant, x, 2, steps=0, chains=32, temperatures=5)
    else:
        found = gaps(variant, x, 100, steps=0, log_evidence=model.log_evidence(x))

    assert found.evidence == evidence
    for gap, error in ((found.total, found.total_error), (found.approximation, found.approximation_error)):
        assert gap.std() == pytest.approx(float(error.square().mean().sqrt()), rel=0.2)


def test_draws_common_to_both_bounds_make_the_amortisation_gap_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small step away from the optimum: with draws of its own each bound's error would drown the difference."""
    model, x = problem()
    variant = program(model, "mean_field", shift=0.02)

    def found() -> Gaps:
        return gaps(variant, x, 500, log_evidence=model.log_evidence(x), steps=300)

    common, right = found(), module._log_weights
    noises = iter(range(1000))
    monkeypatch.setattr(module, "_log_weights", lambda *args: right(*args[:-1], next(noises)))
    separate = found()

    assert common.amortisation_error.mean() < 0.2 * separate.amortisation_error.mean()
    exact = model.gap(x, law(variant, x)) - model.gap(x, best(model, "mean_field", x))
    assert agree(common.amortisation, exact, common.amortisation_error, WALK)


# Other families and likelihoods, units, manners.


def test_units_move_the_bounds_and_no_gap() -> None:
    model, x = problem()
    variant = program(model, "mean_field", shift=0.3)
    one = gaps(variant, x, 50, steps=20, chains=2, temperatures=3)
    variant.model.scale = Scale((X_DIM,), width=10.0)
    ten = gaps(variant, 10 * x, 50, steps=20, chains=2, temperatures=3)

    for name in ("log_evidence", "refined", "bound"):
        assert torch.allclose(getattr(ten, name), getattr(one, name) - X_DIM * math.log(10), rtol=0, atol=1e-6)
    for name in ("total", "approximation", "amortisation"):
        assert torch.allclose(getattr(ten, name), getattr(one, name), rtol=0, atol=1e-6)


def test_a_mass_and_a_trained_network_have_gaps_too() -> None:
    """The bound is the one that is reported elsewhere, and the parts are in order."""
    variant, x = pair((X_DIM,), Z_DIM, likelihood=Bernoulli()), torch.randint(2, (30, X_DIM)).double()
    found = gaps(variant, x, 400, steps=300, chains=4, temperatures=10)
    reported = bounds(variant, x, 400)

    assert agree(found.bound, reported.elbo, torch.hypot(found.total_error, reported.elbo_error))
    assert (found.amortisation > -4 * found.amortisation_error).all()
    assert (found.approximation > -4 * found.approximation_error).all()
    assert found.amortisation.mean() > 0


def test_the_proposal_of_a_point_mass_can_be_refined() -> None:
    """Its centre, that is: the covariance follows from it."""
    model, x = problem()
    decoder = nn.Linear(Z_DIM, X_DIM)
    decoder.weight.data, decoder.bias.data = model.loading.clone(), model.loc.clone()
    variant = pair((X_DIM,), Z_DIM, likelihood=Gaussian(0.6), guide=PointMass, encoder=nn.Identity(), decoder=decoder)
    posterior, (head,) = model.posterior(x), variant.guide.heads
    zero = model.posterior(torch.zeros(1, X_DIM)).loc
    head.weight.data = (model.posterior(torch.eye(X_DIM)).loc - zero).mT.contiguous()
    head.bias.data = zero[0] + 0.2  # off by this much, which the steps take away
    proposal = variant._replace(guide=Laplace(variant.guide, variant.model))
    found = gaps(proposal, x, 500, log_evidence=model.log_evidence(x), steps=150, lr=0.03)
    wide = MultivariateNormal(posterior.loc, 2 * posterior.covariance_matrix)
    assert agree(found.approximation, model.gap(x, wide), found.approximation_error, 0.01)


def test_a_variant_and_the_random_streams_are_left_as_they_were() -> None:
    model, x = problem()
    variant = program(model, "mean_field")
    variant.model.train()
    before = [parameter.clone() for half in variant[:2] for parameter in half.parameters()]
    state = torch.get_rng_state()
    found, again = (gaps(variant, x, 20, steps=5, chains=2, temperatures=2, seed=3) for _ in range(2))
    other = gaps(variant, x, 20, steps=5, chains=2, temperatures=2, seed=4)

    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(found.total, again.total)
    assert not torch.equal(found.total, other.total)
    after = [parameter for half in variant[:2] for parameter in half.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    assert all(parameter.grad is None for parameter in after)
    assert not found.refined.requires_grad
    assert variant.model.training


class Stepped(Guide):
    """z given x ~ Poisson(exp(loc(x))): no reparametrised draws."""

    def distribution(self, loc: Tensor) -> dist.Independent:
        return dist.Poisson(loc.exp()).to_event(1)


class Own(Guide):
    """A guide that makes its density some other way."""

    def posterior(self, x: Tensor) -> dist.Independent:
        return dist.Normal(x[:, :Z_DIM], 1.0).to_event(1)


@pytest.mark.parametrize(
    ("guide", "message"),
    [
        (PointMass, "PointMass has none"),
        (Own, r"Own has none: wanted heads from which distribution\(\*parameters\)"),
        (Stepped, "Stepped has no reparametrised draws"),
    ],
)
def test_a_guide_that_cannot_be_refined_is_refused(guide: type[Guide], message: str) -> None:
    variant = pair((X_DIM,), Z_DIM, likelihood=Gaussian(), guide=guide)
    with pytest.raises(ValueError, match=message):
        gaps(variant, torch.randn(3, X_DIM))


def test_counts_and_shapes_are_checked() -> None:
    model, x = problem()
    variant = program(model, "mean_field")
    with pytest.raises(ValueError, match="num_particles must be at least 2, steps at least 0, got 1 and 5"):
        gaps(variant, x, 1, steps=5)
    with pytest.raises(ValueError, match=r"log_evidence has shape \[3\], wanted one number per datum, \[20\]"):
        gaps(variant, x, log_evidence=torch.zeros(3))
