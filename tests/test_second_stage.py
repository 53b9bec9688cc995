"""The second VAE as p(z): its density against a linear model that is known, and two trainings that do not touch."""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from ppl_vae import VARIANTS, Variant, bounds, check, convert, fit, pair, sample
from ppl_vae.assembly import with_prior
from ppl_vae.checkpoint import load, save
from ppl_vae.description import describe
from ppl_vae.diagnosis.calibration import sbc
from ppl_vae.evaluation.annealing import annealed, bracket
from ppl_vae.evaluation.inference_gaps import gaps
from ppl_vae.evaluation.kl_terms import kl_from_prior
from ppl_vae.evaluation.lower_bounds import bounds_under
from ppl_vae.guides import FullRank, Laplace
from ppl_vae.models import Gaussian, LearnedSigma, Mixture, SecondStage, SecondStageBound, StandardNormal
from ppl_vae.streams import seeded
from ppl_vae.variant import evaluating

X_DIM, Z_DIM, ROWS = 5, 3, 6


def linear(layer: nn.Linear, weight: Tensor, bias: Tensor) -> nn.Linear:
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    return layer


def known(shift: float = 0.0, stretch: float = 1.0) -> tuple[SecondStage, MultivariateNormal]:
    """A second VAE with linear networks, and its exact p(z). The guide of u is the posterior, moved and stretched.

    ``z = W u + b + gamma e``, where the columns of W are orthogonal. The posterior of u has independent coordinates.
    """
    gamma, bias = 0.4, torch.randn(Z_DIM)
    lengths = torch.tensor([0.5, 1.0, 2.0])
    loading = torch.linalg.qr(torch.randn(Z_DIM, Z_DIM))[0] * lengths
    stage = SecondStage(Z_DIM).eval()
    stage.likelihood.set_scale(gamma)
    stage.decoder = linear(nn.Linear(Z_DIM, Z_DIM), loading, bias)
    variance = 1 / (1 + lengths**2 / gamma**2)
    to_loc = variance[:, None] * loading.mT / gamma**2
    log_scale = variance.log() / 2 + math.log(stretch)
    weight = torch.cat([to_loc, torch.zeros(Z_DIM, Z_DIM)])
    stage.encoder = linear(
        nn.Linear(Z_DIM, 2 * Z_DIM), weight, torch.cat([shift * variance.sqrt() - to_loc @ bias, log_scale])
    )
    return stage, MultivariateNormal(bias, loading @ loading.mT + gamma**2 * torch.eye(Z_DIM))


# The density.


def test_where_q_of_u_is_the_posterior_every_draw_gives_the_exact_density() -> None:
    stage, exact = known()
    z = 2 * torch.randn(50, Z_DIM)

    for _ in range(3):
        assert torch.allclose(stage().log_prob(z), exact.log_prob(z), rtol=0, atol=1e-10)


def errors_of_the_density(stage: SecondStage, exact: MultivariateNormal, draws: int = 100_000) -> Tensor:
    """How many standard errors the mean of ``exp(log_prob)`` is off at five codes."""
    z = exact.sample((5,))
    ratio = (stage().log_prob(z.expand(draws, 5, Z_DIM)) - exact.log_prob(z)).exp().detach()
    return (ratio.mean(0) - 1) / (ratio.std(0) / math.sqrt(draws))


def test_the_exponential_of_log_prob_has_the_density_as_its_mean() -> None:
    """The guide of u is off: half a standard deviation, and 1.2 times as wide."""
    stage, exact = known(shift=0.5, stretch=1.2)

    assert (errors_of_the_density(stage, exact).abs() < 4).all()
    log_ratio = stage().log_prob(z := exact.sample((20_000,))) - exact.log_prob(z)
    assert log_ratio.mean() < -4 * log_ratio.std() / math.sqrt(20_000)  # the mean of log_prob is below
    assert log_ratio.std() > 0.1


def without_q(self: SecondStage, z: Tensor) -> Tensor:
    """The density of q is forgotten."""
    u = self.u_given_z(z).rsample()
    return self.first_stage().log_prob(u) + self.z_given_u(u).log_prob(z)


def without_the_prior_of_u(self: SecondStage, z: Tensor) -> Tensor:
    q = self.u_given_z(z)
    u = q.rsample()
    return self.z_given_u(u).log_prob(z) - q.log_prob(u)


def with_one_u(self: SecondStage, z: Tensor) -> Tensor:
    """The noise of u is shared by all codes."""
    law: Any = self.u_given_z(z)
    u = law.base_dist.loc + law.base_dist.scale * torch.randn(Z_DIM)
    return self.first_stage().log_prob(u) + self.z_given_u(u).log_prob(z) - law.log_prob(u)


@pytest.mark.parametrize("wrong", [without_q, without_the_prior_of_u, with_one_u])
def test_a_wrong_density_is_seen(wrong: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one shared draw the mean is wrong by far more than its standard error, which counts independent draws."""
    stage, exact = known(shift=0.5, stretch=1.2)
    monkeypatch.setattr(SecondStage, "log_weight", wrong)

    assert (errors_of_the_density(stage, exact).abs() > 4).any()


def test_every_code_has_a_u_of_its_own() -> None:
    stage, _ = known(shift=0.5, stretch=1.2)
    z = torch.randn(Z_DIM)

    assert stage().log_prob(z.expand(7, 5, Z_DIM)).unique().numel() == 35
    assert stage().expand([7, 5]).log_prob(z).shape == (7, 5)
    assert stage().expand([7, 5]).log_prob(z.expand(1, 5, Z_DIM)).unique().numel() == 35


def test_samples_have_the_moments_of_the_exact_marginal() -> None:
    stage, exact = known(shift=0.5, stretch=1.2)  # the guide of u has no part in them

    z = stage().expand([4]).sample((50_000,)).flatten(0, 1)

    error = z.std(0) / math.sqrt(len(z))
    products = torch.einsum("ni,nj->nij", z - exact.mean, z - exact.mean)
    assert ((z.mean(0) - exact.mean).abs() < 4 * error).all()
    spread = products.std(0) / math.sqrt(len(z))
    assert ((products.mean(0) - exact.covariance_matrix).abs() < 4 * spread).all()


@pytest.mark.parametrize("shape", [(), (4,), (2, 3)])
def test_shapes_are_those_of_a_prior(shape: tuple[int, ...]) -> None:
    law = known()[0]()
    wide = law.expand(shape)

    assert (law.batch_shape, law.event_shape) == ((), (Z_DIM,))
    assert (wide.batch_shape, wide.event_shape) == (shape, (Z_DIM,))
    assert wide.sample((7,)).shape == (7, *shape, Z_DIM)
    assert wide.log_prob(wide.sample((7,))).shape == (7, *shape)
    assert law.expand_by([2]).batch_shape == (2,)
    assert not wide.sample().requires_grad


@pytest.mark.parametrize("gamma", [0.1, 0.5, 0.9])
def test_the_second_vae_starts_as_the_standard_normal_with_its_posterior(gamma: float) -> None:
    """Its density is then exact, draw by draw, although u is drawn."""
    stage, z = SecondStage(Z_DIM, gamma=gamma).eval(), 2 * torch.randn(50, Z_DIM)
    standard = MultivariateNormal(torch.zeros(Z_DIM), torch.eye(Z_DIM))

    assert torch.allclose(stage().log_prob(z), standard.log_prob(z), rtol=0, atol=1e-10)
    assert torch.allclose(stage.z_given_u(z).stddev, torch.full((50, Z_DIM), gamma))


@pytest.mark.parametrize("gamma", [0.0, 1.0, -0.5, math.nan])
def test_a_gamma_that_leaves_nothing_to_u_or_to_the_noise_is_refused(gamma: float) -> None:
    with pytest.raises(ValueError, match="gamma must be between 0 and 1, the standard deviation of the codes, got"):
        SecondStage(Z_DIM, gamma=gamma)


# The bounds of a pair.


def linear_two_stages(shift: float = 0.0, stretch: float = 1.0) -> tuple[Variant, Tensor, Tensor]:
    """A pair with a known p(z), whose guide is p(z | x); data; and their log evidence."""
    stage, p_z = known(shift, stretch)
    loading, loc, sigma = torch.randn(X_DIM, Z_DIM), torch.randn(X_DIM), 0.6
    precision = torch.linalg.inv(p_z.covariance_matrix)
    covariance = torch.linalg.inv(precision + loading.mT @ loading / sigma**2)
    to_loc = covariance @ loading.mT / sigma**2
    at_zero = covariance @ precision @ p_z.mean - to_loc @ loc
    tril = torch.linalg.cholesky(covariance)
    variant = pair(
        (X_DIM,),
        Z_DIM,
        likelihood=Gaussian(sigma),
        prior=stage,
        guide=FullRank,
        encoder=nn.Identity(),
        decoder=linear(nn.Linear(Z_DIM, X_DIM), loading, loc),
        penalties=[SecondStageBound()],
    )
    below = tril[tuple(torch.tril_indices(Z_DIM, Z_DIM, -1))]
    outputs = [(to_loc, at_zero), (0 * to_loc, tril.diagonal().log()), (0 * to_loc, below)]
    for head, (weight, bias) in zip(variant.guide.heads, outputs, strict=True):
        linear(head, weight, bias)
    p_x = MultivariateNormal(
        loading @ p_z.mean + loc, loading @ p_z.covariance_matrix @ loading.mT + sigma**2 * torch.eye(X_DIM)
    )
    x = p_x.sample((ROWS,))
    return variant, x, p_x.log_prob(x)


def test_with_both_posteriors_exact_the_bound_is_the_log_evidence() -> None:
    variant, x, evidence = linear_two_stages()

    found = bounds(variant, x, 3)

    assert torch.allclose(found.elbo, evidence, rtol=0, atol=1e-9)
    assert torch.allclose(found.importance_weighted, evidence, rtol=0, atol=1e-9)


def test_with_another_q_of_u_both_bounds_are_below_the_log_evidence_and_more_draws_close_the_gap() -> None:
    variant, x, evidence = linear_two_stages(shift=0.5, stretch=1.2)

    few, many = bounds(variant, x, 200), bounds(variant, x, 20_000)

    assert ((evidence - few.elbo) > 4 * few.elbo_error).all()
    error = many.importance_weighted_error
    assert ((many.importance_weighted - evidence).abs() < 4 * error).all()
    assert (many.importance_weighted > many.elbo + 4 * error).all()


def test_the_gap_of_the_bound_is_the_kl_of_the_second_guide() -> None:
    """KL(q(u | z) || p(u | z)) of a guide that is shifted by s and stretched by t, for each unit."""
    shift, stretch = 0.5, 1.2
    variant, x, evidence = linear_two_stages(shift, stretch)
    kl = Z_DIM * ((stretch**2 + shift**2 - 1) / 2 - math.log(stretch))

    found = bounds(variant, x, 20_000)

    assert ((evidence - found.elbo - kl).abs() < 4 * found.elbo_error).all()


def test_the_draws_do_not_depend_on_how_many_codes_run_at_once() -> None:
    variant, x, _ = linear_two_stages(shift=0.5)

    one, other = (bounds(variant, x, 10, at_once=at_once) for at_once in (None, 7))

    assert torch.allclose(one.elbo, other.elbo, rtol=1e-12)
    assert torch.allclose(one.importance_weighted, other.importance_weighted, rtol=1e-12)


def test_calibration_holds_for_the_exact_guide_although_the_density_is_an_estimate() -> None:
    """The estimate is one more random quantity, with the same law at the truth and at the draws of the guide."""
    variant, _, _ = linear_two_stages(shift=0.5, stretch=1.2)

    assert sbc(variant, simulations=300, num_particles=19).off == {}


def test_the_kl_is_sampled() -> None:
    variant, x, _ = linear_two_stages()
    decoder, gamma = variant.model.prior.decoder, variant.model.prior.likelihood.scale
    with evaluating(variant):
        q = variant.guide.posterior(x)
        p = MultivariateNormal(decoder.bias, decoder.weight @ decoder.weight.mT + gamma**2 * torch.eye(Z_DIM))
        difference = q.log_prob(z := q.sample((10_000,))) - p.log_prob(z)
        kl, per_unit = kl_from_prior(variant, x)

    assert per_unit is None
    assert ((kl - difference.mean(0)).abs() < 4 * difference.std(0) / math.sqrt(100)).all()


# Training: two objectives that do not touch.


def side_by_side() -> tuple[Variant, Variant, Tensor]:
    """``two_stage_vae`` and ``sigma_vae`` with the same weights, and a batch."""
    two = VARIANTS["two_stage_vae"]((X_DIM,), Z_DIM, width=16)
    with torch.no_grad():
        for parameter in two.model.prior.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # the last layers start at 0
    one = VARIANTS["sigma_vae"]((X_DIM,), Z_DIM, width=16)
    for half in ("decoder", "likelihood"):
        getattr(one.model, half).load_state_dict(getattr(two.model, half).state_dict())
    one.guide.load_state_dict(two.guide.state_dict())
    return two, one, torch.randn(ROWS, X_DIM)


def slopes(variant: Variant, x: Tensor) -> dict[str, Tensor]:
    """The gradient of the loss for each parameter, with the same noise."""
    for half in variant[:2]:
        half.zero_grad()
    with seeded(3):
        variant.loss.differentiable_loss(variant.model, variant.guide, x).backward()
    named = [*variant.model.named_parameters(prefix="model"), *variant.guide.named_parameters(prefix="guide")]
    return {name: parameter.grad.clone() for name, parameter in named}


def first_gets_the_gradients_of_sigma_vae() -> bool:
    two, one, x = side_by_side()
    ours, theirs = slopes(two, x), slopes(one, x)
    assert {name for name in ours if not name.startswith("model.prior.")} == set(theirs)
    return all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_first_vae_gets_exactly_the_gradients_of_sigma_vae() -> None:
    assert first_gets_the_gradients_of_sigma_vae()


def test_a_code_that_is_not_held_fixed_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SecondStageBound, "forward", lambda self, model, x, z: model.prior.log_weight(z))

    assert not first_gets_the_gradients_of_sigma_vae()


def test_the_second_vae_gets_exactly_the_gradients_of_its_own_bound_on_the_codes() -> None:
    """They are the same whatever the decoder, the likelihood and the weights of x are."""
    two, _, x = side_by_side()
    found = slopes(two, x)
    with torch.no_grad():
        for parameter in [*two.model.decoder.parameters(), *two.model.likelihood.parameters()]:
            parameter.add_(1.0)
    again = slopes(two, x)
    with seeded(3), torch.no_grad():
        z = two.guide.posterior(x).sample()
        noise = torch.normal(torch.zeros(ROWS, Z_DIM), torch.ones(ROWS, Z_DIM))
    stage = two.model.prior
    loc, log_scale = stage.encoder(z).chunk(2, -1)
    u, gamma = loc + log_scale.exp() * noise, stage.likelihood.scale
    log_p = -(u.square() + ((z - stage.decoder(u)) / gamma) ** 2).sum() / 2 - ROWS * Z_DIM * gamma.log()
    loss = -(log_p + (log_scale + noise.square() / 2).sum())

    wanted = torch.autograd.grad(loss, list(stage.parameters()))

    for (name, _), slope in zip(stage.named_parameters(), wanted, strict=True):
        assert torch.allclose(found[f"model.prior.{name}"], slope, rtol=1e-8, atol=1e-10)
        assert torch.equal(found[f"model.prior.{name}"], again[f"model.prior.{name}"])
        assert slope.abs().sum() > 0


@pytest.mark.parametrize("loss", ["mean_field:num_particles=3", "iwae:num_particles=4", "stl"])
def test_any_estimator_trains_both(loss: str) -> None:
    variant = VARIANTS["two_stage_vae"]((X_DIM,), Z_DIM, loss=loss)

    assert check(variant, torch.randn(ROWS, X_DIM)) == []


def test_the_prior_is_the_standard_normal_in_training_and_the_second_vae_in_eval() -> None:
    variant, _, _ = side_by_side()
    z = torch.randn(4, Z_DIM)
    standard = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)

    assert torch.allclose(variant.model.train().prior().log_prob(z), standard)
    assert not torch.allclose(variant.model.eval().prior().log_prob(z), standard)


def test_a_frozen_second_vae_is_the_prior_of_the_first_and_no_longer_a_term_of_its_own() -> None:
    variant = VARIANTS["two_stage_vae"]((X_DIM,), Z_DIM)
    variant.model.prior.requires_grad_(False)
    before = copy.deepcopy(variant.model.prior.state_dict())

    trained = fit(variant, torch.randn(80, X_DIM), epochs=2, progress=False)

    assert all(torch.equal(value, before[name]) for name, value in trained.variant.model.prior.state_dict().items())
    assert "model.prior" in trained.receipt()


def test_with_the_first_vae_frozen_the_second_trains_on_its_codes_alone() -> None:
    """The order of the paper: first one VAE, then the other."""
    variant = VARIANTS["two_stage_vae"]((X_DIM,), Z_DIM, width=16, prior_width=16)
    x = torch.randn(200, 2) @ torch.randn(2, X_DIM)
    fit(variant, x, epochs=2, progress=False)
    for part in (variant.guide, variant.model.decoder, variant.model.likelihood):
        part.requires_grad_(False)
    before = copy.deepcopy([half.state_dict() for half in variant[:2]])

    fit(variant, x, epochs=2, validation=None, progress=False)

    moved = {
        name.startswith("prior.")
        for half, old in zip(variant[:2], before, strict=True)
        for name, value in half.state_dict().items()
        if not torch.equal(value, old[name])
    }
    assert moved == {True}


def test_trained_side_by_side_the_second_vae_is_the_better_prior_and_draws_codes_like_those_of_the_data() -> None:
    """Data on a ring: the codes of the first VAE are not normal, and half of N(0, I) has no data near it."""
    angle = 2 * math.pi * torch.rand(2000)
    ring = torch.stack([angle.cos(), angle.sin()], 1)
    x = ring + 0.05 * torch.randn(2000, 2)
    variant = VARIANTS["two_stage_vae"]((2,), 2, width=64, prior_width=64, likelihood=Gaussian(0.1))

    fitted = fit(variant, x[:1600], epochs=60, lr=3e-3, batch_size=100, validation=None, progress=False)

    assert fitted.settings["backend"] == "fx"
    y = variant.admit(x[1600:])
    under = bounds_under(variant, [variant.model.prior, variant.model.prior.first_stage], y, 20)
    gain = under[0].elbo - under[1].elbo
    assert gain.mean() > 4 * gain.std() / math.sqrt(len(gain))
    with torch.no_grad():
        codes = variant.guide.posterior(y).sample((10,)).flatten(0, 1)
        drawn, standard = (prior().sample((4000,)) for prior in (variant.model.prior, variant.model.prior.first_stage))
    radii = [float(z.norm(dim=1).std()) for z in (codes, drawn, standard)]
    assert abs(radii[1] - radii[0]) < 0.5 * abs(radii[2] - radii[0])
    assert sample(variant, 7).shape == (7, 2)


# Around it.


def test_a_checkpoint_loads_by_name(tmp_path: Path) -> None:
    variant, x = VARIANTS["two_stage_vae"]((X_DIM,), Z_DIM, prior_width=12), torch.randn(ROWS, X_DIM)
    fit(variant, torch.randn(60, X_DIM), epochs=1, progress=False)

    loaded, other = load(save(tmp_path / "run", variant)), VARIANTS["sigma_vae"]((X_DIM,), Z_DIM)
    variant.model.prior.likelihood.set_scale(1.5)  # above every initial gamma
    moved = load(save(tmp_path / "moved", with_prior(other, variant.model.prior)))

    assert moved.model.prior.likelihood.scale.item() == pytest.approx(1.5)
    variant.model.prior.likelihood.set_scale(loaded.model.prior.likelihood.scale.item())
    assert loaded.model.recipe["parts"] == []
    assert loaded.model.prior.width == 12
    assert torch.allclose(bounds(loaded, x, 5).elbo, bounds(variant, x, 5).elbo, rtol=1e-12)


def test_a_pair_of_ones_own_has_it_by_class_or_by_value(tmp_path: Path) -> None:
    parts = {"likelihood": LearnedSigma(), "penalties": [SecondStageBound()]}
    by_class = pair((X_DIM,), Z_DIM, prior=SecondStage, **parts)
    by_value = pair((X_DIM,), Z_DIM, prior=SecondStage(Z_DIM, 7), **parts)

    assert by_class.model.prior.z_dim == Z_DIM
    assert by_class.model.recipe["parts"] == by_value.model.recipe["parts"] == []
    assert load(save(tmp_path / "run", by_value)).model.prior.width == 7


def test_the_description_states_the_generative_process_and_both_objectives() -> None:
    said = describe(VARIANTS["two_stage_vae"]((X_DIM,), Z_DIM))

    assert said.model.startswith("z ~ second VAE: Normal(loc(u), gamma), u ~ Normal(0, 1), gamma learned; x ~ Normal(")
    assert said.loss == "-ELBO + (-ELBO of the second VAE, with z held fixed)"


def test_a_converted_pair_leaves_the_second_vae_behind() -> None:
    variant = VARIANTS["two_stage_vae"]((X_DIM,), Z_DIM)

    assert type(convert(variant).model.prior) is StandardNormal
    assert check(convert(convert(variant)), torch.randn(ROWS, X_DIM)) == []


# Refusals.

ESTIMATED = r"needs log p\(z\) as a function of z, and SecondStage estimates it.*use the importance-weighted bound"
REFUSED: dict[str, tuple[Callable[[Variant, Tensor], Any], str]] = {
    "annealed": (lambda variant, x: annealed(variant, x), f"annealed importance sampling {ESTIMATED}"),
    "bracket": (lambda variant, x: bracket(variant), f"annealed importance sampling {ESTIMATED}"),
    "ladder": (lambda variant, x: bounds(variant, x, 2, temperatures=3), f"annealed importance sampling {ESTIMATED}"),
    "gaps": (lambda variant, x: gaps(variant, x, 2, log_evidence=torch.zeros(ROWS)), f"gaps {ESTIMATED}"),
    "laplace": (
        lambda variant, x: bounds(variant._replace(guide=Laplace(variant.guide, variant.model)), x, 2),
        "the Laplace proposal needs a variance of SecondStageLaw, which has none: train a guide with a density",
    ),
    "other prior": (
        lambda variant, x: fit(with_prior(variant, Mixture(Z_DIM, 2)), x, epochs=1, validation=None, progress=False),
        "SecondStageBound trains the prior SecondStage, and the prior is Mixture: use prior=SecondStage",
    ),
    "no objective": (
        lambda variant, x: fit(
            VARIANTS["sigma_vae"]((X_DIM,), Z_DIM, prior=SecondStage), x, epochs=1, validation=None, progress=False
        ),
        r"second stage: the prior SecondStage is trained by a penalty that is missing \(add SecondStageBound\(\)",
    ),
}


@pytest.mark.parametrize(("use", "said"), REFUSED.values(), ids=REFUSED)
def test_what_needs_a_density_that_is_a_function_is_refused(use: Callable[..., Any], said: str) -> None:
    variant, x = VARIANTS["two_stage_vae"]((X_DIM,), Z_DIM), torch.randn(ROWS, X_DIM)
    with pytest.raises(ValueError, match=said) as raised:
        use(variant, x)
    said_by_us, *rest = str(raised.value).splitlines()
    assert said_by_us.endswith((")", "enough", "away", "property"))
    assert not rest or rest[0].lstrip().startswith("Trace Shapes")  # Pyro adds the sites to an error of the model
