"""Penalties against brute force: full Jacobians, double loops, scipy's densities and singular values."""

import copy
import itertools
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import scipy.stats
import torch
from pyro import poutine
from torch import Tensor, nn

from ppl_vae import VARIANTS, Variant, check, fit, load, pair, save
from ppl_vae.guides import PointMass
from ppl_vae.models import (
    MMD,
    Bernoulli,
    ContinuousBernoulli,
    DiscretizedNormal,
    Gaussian,
    Heteroscedastic,
    JacobianNorm,
    Laplace,
    LearnedSigma,
    Mixture,
    StandardNormal,
    StudentT,
    WeightPrior,
    spectrally_normalised,
)
from ppl_vae.streams import seeded

SHAPES = {"vector": (5,), "image": (1, 8, 8)}


def auto(x_shape: tuple[int, ...], likelihood: nn.Module | None = None, **parts: Any) -> Variant:
    """A variant without noise: whatever varies in its loss, it is not the draw."""
    return pair(x_shape, 3, likelihood=likelihood or Gaussian(0.5), guide=PointMass, **parts)


def small(outputs: int) -> nn.Sequential:
    """A curved decoder from 3 numbers to ``outputs``."""
    return nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, outputs))


def loss(variant: Variant, x: Tensor, size: int | None = None) -> float:
    """In nats, summed over the data set."""
    return variant.loss.loss(variant.model, variant.guide, x, size)


# The Jacobian.

MEANS: dict[str, Callable[[], nn.Module]] = {
    "gaussian": Gaussian,
    "bernoulli": Bernoulli,
    "continuous_bernoulli": ContinuousBernoulli,
    "laplace": Laplace,
    "student_t": StudentT,
    "heteroscedastic": lambda: Heteroscedastic(stage=0.0),
    "discretized_normal": DiscretizedNormal,
}


def brute_force(variant: Variant, z: Tensor) -> Tensor:
    """``|J|_F**2`` of the decoder's mean, one code [z_dim] and one output at a time."""

    def mean(code: Tensor) -> Tensor:
        return variant.model.x_given_z(code.unsqueeze(0)).mean.flatten()

    rows = [torch.autograd.functional.jacobian(mean, code).square().sum() for code in z.reshape(-1, z.shape[-1])]
    return torch.stack(rows).reshape(z.shape[:-1])


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("likelihood", MEANS.values(), ids=MEANS)
def test_the_jacobian_norm_is_that_of_the_full_jacobian(
    likelihood: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    variant, z = auto(shape, likelihood()), torch.randn(2, 4, 3)

    norm = JacobianNorm().squared_norm(variant.model, z)

    assert norm.shape == (2, 4)
    assert torch.allclose(norm, brute_force(variant, z), rtol=1e-10, atol=1e-10)
    assert norm.min() > 1e-6


def test_the_jacobian_norm_teaches_the_decoder_what_brute_force_would() -> None:
    variant, z = auto((5,), decoder=small(5)), torch.randn(4, 3, requires_grad=True)
    exact = JacobianNorm(0.7)(variant.model, torch.zeros(4, 5), z).sum()

    def full(code: Tensor) -> Tensor:
        return torch.autograd.functional.jacobian(variant.model.decoder, code, create_graph=True).square().sum()

    by_hand = -0.7 * torch.stack([full(code) for code in z]).sum()
    wanted = [z, *variant.model.decoder[0].parameters(), variant.model.decoder[2].weight]

    for ours, theirs in zip(torch.autograd.grad(exact, wanted), torch.autograd.grad(by_hand, wanted), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-12)


def test_the_jacobian_of_a_datum_does_not_depend_on_the_others_through_a_batch_norm() -> None:
    """In training, a batch norm uses its running statistics for the Jacobian, and they do not move."""
    decoder = nn.Sequential(nn.Linear(2, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)).double()
    variant = VARIANTS["rae_gp"]((3,), 2, decoder=decoder, kappa=1.0)
    decoder(torch.randn(30, 2).double())  # moves the running statistics from 0 and 1
    before = {name: tensor.clone() for name, tensor in decoder.state_dict().items()}
    z = torch.randn(4, 2).double()

    found = variant.model.penalties[0].squared_norm(variant.model, z)

    assert decoder.training
    assert all(module.training for module in decoder.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in decoder.state_dict().items())
    decoder.eval()
    brute = [torch.autograd.functional.jacobian(lambda code: decoder(code[None])[0], row).square().sum() for row in z]
    assert torch.allclose(found, torch.stack(brute), rtol=0, atol=1e-10)


def test_a_gradient_penalty_trains_a_decoder_with_a_batch_norm() -> None:
    decoder = nn.Sequential(nn.Linear(2, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3))
    variant = VARIANTS["rae_gp"]((3,), 2, decoder=decoder, probes=1)

    fit(variant, torch.randn(40, 3), epochs=1, progress=False)

    assert int(decoder[1].num_batches_tracked) == 1  # one step, and the penalty does not count as another
    assert float(decoder[1].running_mean.abs().sum()) > 0.0


def test_random_probes_estimate_the_jacobian_norm_without_bias() -> None:
    variant, z = auto((5,), decoder=small(5)), torch.randn(3)
    exact = brute_force(variant, z).item()

    estimates = JacobianNorm(probes=1).squared_norm(variant.model, z.repeat(20_000, 1))

    assert abs(estimates.mean() - exact) < 4 * estimates.std() / math.sqrt(20_000)
    assert estimates.std() > 0.05 * exact  # each code has a probe of its own


def test_many_probes_are_averaged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over all 2**3 vectors of signs the average is the norm, exactly."""
    signs = torch.tensor(list(itertools.product([0, 1], repeat=3)))
    monkeypatch.setattr(torch, "randint", lambda *args, **options: signs.unsqueeze(1).expand(8, 4, 3))
    variant, z = auto((5,), decoder=small(5)), torch.randn(4, 3)

    norm = JacobianNorm(probes=8).squared_norm(variant.model, z)

    assert torch.allclose(norm, brute_force(variant, z), rtol=1e-12, atol=0)


def test_one_probe_is_exact_where_codes_are_numbers() -> None:
    """Signs square to one; Gaussian probes would be noisy here."""
    variant = pair((5,), 1, likelihood=Bernoulli(), guide=PointMass)
    z = torch.randn(6, 1)

    norm = JacobianNorm(probes=1).squared_norm(variant.model, z)

    assert torch.allclose(norm, brute_force(variant, z), rtol=1e-12, atol=0)


class Circle(nn.Module):
    """From an angle to the circle: ``|J| = 1`` everywhere."""

    def forward(self, z: Tensor) -> Tensor:
        return torch.cat([z.cos(), z.sin()], -1)


def test_gradients_of_sums_are_not_the_jacobian_norm_on_a_circle() -> None:
    variant = pair((2,), 1, likelihood=Gaussian(), guide=PointMass, decoder=Circle())
    z = torch.linspace(0, 6, 50).unsqueeze(1).requires_grad_()
    y = Circle()(z)

    of_the_sum = torch.autograd.grad(y.sum(), z, retain_graph=True)[0].square().sum(-1)
    of_the_square = torch.autograd.grad(y.square().sum(), z)[0].square().sum(-1)

    assert torch.allclose(JacobianNorm().squared_norm(variant.model, z), torch.ones(50), rtol=0, atol=1e-12)
    assert of_the_square.max() < 1e-24  # 2 J^T y: blind, the circle is a level of |y|
    assert of_the_sum.min() < 0.01  # J^T 1: from 0
    assert of_the_sum.max() > 1.9  # to 2


def test_the_jacobian_penalty_is_paid_once_a_datum_in_nats() -> None:
    x = torch.randn(6, 5)
    parts = {"encoder": nn.Identity(), "decoder": small(5)}
    plain, penalised = auto((5,), **parts), auto((5,), penalties=[JacobianNorm(0.7)], **parts)
    penalised.guide.load_state_dict(plain.guide.state_dict())

    extra = loss(penalised, x, 60) - loss(plain, x, 60)

    norm = brute_force(plain, plain.guide.posterior(x).mean)
    assert extra == pytest.approx(10 * 0.7 * norm.sum().item(), rel=1e-10)


# MMD.


def kernel(a: Tensor, b: Tensor, scale: float) -> float:
    """Seven inverse multiquadrics at two codes."""
    square = sum((p - q) ** 2 for p, q in zip(a.tolist(), b.tolist(), strict=True))
    widths = [2 * len(a) * scale**2 * c for c in (0.1, 0.2, 0.5, 1, 2, 5, 10)]
    return sum(width / (width + square) for width in widths)


def double_loop(codes: Tensor, draws: Tensor, scale: float, *, diagonal: bool) -> float:
    """``MMD**2`` as printed by Tolstikhin et al.; with the pairs of a code and itself, where ``diagonal``."""
    n = len(codes)
    pairs = [(i, j) for i in range(n) for j in range(n) if diagonal or i != j]
    within = sum(kernel(a[i], a[j], scale) for a in (codes, draws) for i, j in pairs) / len(pairs)
    return within - 2 * sum(kernel(a, b, scale) for a in codes for b in draws) / n**2


@pytest.mark.parametrize(("n", "d", "scale"), [(2, 1, 1.0), (7, 3, 0.4), (5, 8, 2.0)])
def test_mmd_is_the_double_loop_without_the_diagonal(n: int, d: int, scale: float) -> None:
    codes, draws = torch.randn(n, d), scale * torch.randn(n, d)

    estimate = MMD.estimate(codes, draws, torch.tensor(scale))

    assert estimate.shape == (1,)
    assert estimate.item() == pytest.approx(double_loop(codes, draws, scale, diagonal=False), abs=1e-10)
    assert double_loop(codes, draws, scale, diagonal=True) - estimate.item() > 0.1


@pytest.mark.parametrize("n", [1, 2, 10])
def test_mmd_of_one_law_is_zero_on_average(n: int) -> None:
    """So that some estimates are negative; one code has no pair, and nothing to tell."""
    codes, draws = torch.randn(2, 4000, n, 3)

    estimates = MMD.estimate(codes, draws, torch.tensor(1.0))

    assert estimates.mean().abs() <= 4 * estimates.std() / math.sqrt(4000)
    assert n == 1 or 0.4 < (estimates < 0).double().mean() < 0.7


def test_mmd_of_two_laws_is_positive_and_reads_the_spread_of_the_prior() -> None:
    codes, draws = torch.randn(2, 500, 10, 3)

    apart = MMD.estimate(1 + codes, draws, torch.tensor(1.0)).squeeze(-1)
    wide = MMD.estimate(100 * (1 + codes), 100 * draws, torch.tensor(100.0)).squeeze(-1)

    assert apart.mean() > 4 * apart.std() / math.sqrt(500)
    assert torch.allclose(apart, wide, rtol=0, atol=1e-10)


@pytest.mark.parametrize("build", [lambda: StandardNormal(3, 2.0), lambda: Mixture(3, 2)], ids=["normal", "mixture"])
def test_the_mmd_penalty_compares_codes_with_draws_of_the_models_prior(build: Callable[[], nn.Module]) -> None:
    prior = build()
    variant, z = auto((5,), prior=prior), torch.randn(6, 3)
    state = torch.random.get_rng_state()
    penalty = MMD(5.0)(variant.model, torch.zeros(6, 5), z)
    torch.random.set_rng_state(state)
    draws = prior().sample((6,))

    scale = prior().variance.mean().sqrt().item()
    assert penalty.tolist() == pytest.approx([-5 * double_loop(z, draws, scale, diagonal=False)], rel=1e-10)


def test_the_mmd_penalty_is_paid_once_a_datum_in_nats() -> None:
    x, reconstruction = torch.randn(6, 5), VARIANTS["ae"]((5,), 3, sigma=0.1)
    variant = VARIANTS["wae_mmd"]((5,), 3, sigma=0.1, weight=7.0)
    reconstruction.model.load_state_dict(variant.model.state_dict())
    reconstruction.guide.load_state_dict(variant.guide.state_dict())
    state = torch.random.get_rng_state()
    extra = loss(variant, x, 60) - loss(reconstruction, x, 60)
    torch.random.set_rng_state(state)

    penalty = MMD(7.0)(variant.model, x, variant.guide.posterior(x).mean)

    assert extra == pytest.approx(-60 * penalty.item(), rel=1e-9)


# A prior on weights.


def weights_in(*networks: nn.Module) -> list[float]:
    """Every number of the weight matrices and kernels, without biases."""
    return [w for net in networks for p in net.parameters() if p.ndim > 1 for w in p.flatten().tolist()]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("scale", [0.05, 1.0, 3.0])
def test_the_weight_prior_is_the_sum_of_normal_log_densities(scale: float, shape: tuple[int, ...]) -> None:
    model = auto(shape).model
    truth = scipy.stats.norm.logpdf(weights_in(model.decoder), scale=scale).sum()

    log_prob = WeightPrior(scale)(model, torch.zeros(2, *shape), torch.zeros(2, 3))

    assert log_prob.shape == ()
    assert log_prob.item() == pytest.approx(truth, rel=1e-12)


def test_the_weight_prior_is_on_the_chosen_layers_alone() -> None:
    model = auto((5,), decoder=small(5)).model
    chosen = WeightPrior(0.3, layers=("decoder.0",))

    log_prob = chosen(model, torch.zeros(2, 5), torch.zeros(2, 3))

    assert log_prob.item() == pytest.approx(scipy.stats.norm.logpdf(weights_in(model.decoder[0]), scale=0.3).sum())


@pytest.mark.parametrize("layers", [("likelihood",), ("decoder", "likelihood"), ()], ids=len)
def test_a_weight_prior_on_a_layer_without_weights_is_refused(layers: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="no weights in"):
        WeightPrior(layers=layers)(auto((5,)).model, torch.zeros(2, 5), torch.zeros(2, 3))


LOSSES = (None, "trace:num_particles=3", "mean_field", "iwae:num_particles=4", "dreg:num_particles=4")


def on_heads(scale: float = 0.3, rows: int = 5, **parts: Any) -> Variant:
    """A VAE with the prior on the heads of its guide."""
    return VARIANTS["l2_vae"]((rows,), 2, tau=scale, layers=("guide.heads",), **{"width": 4, **parts})


def head_gradients(variant: Variant, x: Tensor, size: int) -> list[Tensor]:
    """The gradient of the loss over the whole data set, in nats, for every parameter of the heads."""
    heads = list(variant.guide.heads.parameters())
    with seeded(1):
        value = variant.loss(variant.model, variant.guide)(x, size)
    return list(torch.autograd.grad(value, heads))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("rows", "size"), [(12, 12), (4, 12), (1, 60_000)])
def test_a_penalty_on_the_heads_has_the_gradient_minus_w_over_its_variance(
    loss: str | None, rows: int, size: int
) -> None:
    """Once per data set, for any batch, estimator and number of draws: the loss has ``+w / scale**2``."""
    variant, x, scale = on_heads(0.3, loss=loss), torch.randn(rows, 5), 0.3
    found = head_gradients(variant, x, size)
    penalties, variant.model.penalties = variant.model.penalties, nn.ModuleList()
    without = head_gradients(variant, x, size)
    variant.model.penalties = penalties

    for weight, more, less in zip(variant.guide.heads.parameters(), found, without, strict=True):
        wanted = weight / scale**2 if weight.ndim > 1 else torch.zeros_like(weight)
        assert torch.allclose(more - less, wanted, rtol=1e-10, atol=1e-10 * float(more.abs().max() + 1))


def test_the_guide_is_no_part_of_a_model_with_a_penalty_on_it() -> None:
    variant, x = on_heads(), torch.randn(6, 5)
    own = {id(parameter) for parameter in variant.model.parameters()}

    assert own.isdisjoint(map(id, variant.guide.parameters()))
    assert not any("heads" in name for name in variant.model.state_dict())
    variant.model.eval()
    variant.guide.eval()
    assert {name for name in poutine.trace(variant.model).get_trace(x).nodes if name.startswith("penalty")} == set()


def test_a_pair_with_a_penalty_on_its_heads_passes_every_contract_and_has_a_graph() -> None:
    variant, x = on_heads(), torch.randn(64, 5)

    check(variant, x)

    assert fit(variant, x, epochs=2, batch_size=8, validation=None, progress=False).settings["backend"] == "fx"


def test_a_copy_of_a_pair_penalises_the_heads_of_the_copy() -> None:
    """Also the pair that a checkpoint builds."""
    variant = on_heads()
    for made in (copy.deepcopy(variant), pickle.loads(pickle.dumps(variant))):
        weights = made.model.penalties[0].weights(made.model)
        assert [id(one) for one in weights] == [id(head.weight) for head in made.guide.heads]


def test_a_checkpoint_keeps_a_penalty_on_the_heads(tmp_path: Path) -> None:
    variant, x = on_heads(), torch.randn(6, 5)

    again = load(save(tmp_path / "it", variant))

    again.model.train()
    again.guide.train()
    for one, other in zip(head_gradients(variant, x, 6), head_gradients(again, x, 6), strict=True):
        assert torch.equal(one, other)


def test_a_penalty_on_the_guide_of_another_pair_is_refused() -> None:
    """When the second pair is built, and when a pair gets another guide."""
    penalty = WeightPrior(0.3, ("guide.heads",))
    first = pair((5,), 2, likelihood=Gaussian(0.5), penalties=[penalty])
    with pytest.raises(ValueError, match=r"belongs to another pair: make one for each pair"):
        pair((5,), 2, likelihood=Gaussian(0.5), penalties=[penalty])

    other = pair((5,), 2, likelihood=Gaussian(0.5))
    with pytest.raises(ValueError, match=r"is not a parameter of the model or of the guide"):
        fit(first._replace(guide=other.guide), torch.randn(20, 5), epochs=1, progress=False)


@pytest.mark.parametrize("layers", [("guide.tails",), ("guide",), ("guide.heads.bias",)])
def test_a_layer_that_the_guide_lacks_is_refused(layers: tuple[str, ...]) -> None:
    variant = VARIANTS["l2_vae"]((5,), 2, layers=layers)
    with pytest.raises(ValueError, match=r"no weights in 'guide.*such as 'guide.heads'"):
        fit(variant, torch.randn(20, 5), epochs=1, progress=False)


def test_the_receipt_says_that_a_penalty_on_the_guide_is_no_prior() -> None:
    receipts = [
        fit(VARIANTS["l2_vae"]((5,), 2, layers=layers), torch.randn(20, 5), epochs=1, progress=False).receipt()
        for layers in [("guide.heads",), ("decoder", "guide.heads"), ("decoder",)]
    ]

    assert "minus an L2 penalty on guide.heads, which is no prior of p(x, z)" in receipts[0]
    assert "no prior of p(x, z), plus the log prior of the weights of decoder" in receipts[1]
    assert "a MAP objective of the penalised values" in receipts[2]


class InThePlate(WeightPrior):
    """The mutation: a weight prior that is paid by each datum."""

    per_datum = True


def cost_of(penalty: nn.Module, rows: int, size: int | None) -> float:
    """What a penalty adds to the loss of a batch, counted in ``-log p(weights)``."""
    x, decoder = torch.randn(rows, 5), small(5)
    variant = auto((5,), penalties=[penalty], encoder=nn.Identity(), decoder=decoder)
    with_penalty = loss(variant, x, size)
    variant.model.eval()
    once = -scipy.stats.norm.logpdf(weights_in(decoder), scale=0.3).sum()
    return (with_penalty - loss(variant, x, size)) / once


@pytest.mark.parametrize(("rows", "size"), [(1, None), (12, None), (4, 12), (4, 60_000)])
def test_the_weight_prior_is_paid_once_a_data_set_whatever_the_batch(rows: int, size: int | None) -> None:
    assert cost_of(WeightPrior(0.3), rows, size) == pytest.approx(1, rel=1e-8)


def test_a_weight_prior_inside_the_plate_would_be_paid_by_each_datum() -> None:
    assert cost_of(InThePlate(0.3), 4, 12) == pytest.approx(12, rel=1e-10)


@pytest.mark.parametrize("name", ["rae_l2", "rae_gp", "rae", "ae"])
def test_equal_batches_average_to_the_loss_of_the_whole_set(name: str) -> None:
    variant, x = VARIANTS[name]((5,), 3), torch.randn(12, 5)

    batches = [loss(variant, batch, 12) for batch in x.split(4)]

    assert sum(batches) / 3 == pytest.approx(loss(variant, x), rel=1e-10)


# Spectral normalisation.

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(7, 5),
    "conv1d": lambda: nn.Conv1d(3, 4, 3),
    "conv2d": lambda: nn.Conv2d(2, 4, 3),
    "transposed": lambda: nn.ConvTranspose2d(4, 2, 3),
}


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_the_largest_singular_value_of_the_reshaped_weight_converges_to_one(layer: Callable[[], nn.Module]) -> None:
    network = nn.Sequential(layer())
    with torch.no_grad():
        network[0].weight.mul_(30)

    assert spectrally_normalised(network) is network
    for _ in range(300):  # reading a weight in training mode is a step of power iteration
        weight = network[0].weight.detach()

    matrix = weight.transpose(0, 1) if isinstance(network[0], nn.ConvTranspose2d) else weight
    assert torch.linalg.matrix_norm(matrix.flatten(1), 2).item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_rae_sn_normalises_every_layer_of_its_decoder_and_none_of_its_encoder(shape: tuple[int, ...]) -> None:
    variant = VARIANTS["rae_sn"](shape, 3)

    layers = [m for m in variant.model.decoder.modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)]

    assert all(torch.nn.utils.parametrize.is_parametrized(layer, "weight") for layer in layers)
    assert len(layers) >= 3
    assert not any(torch.nn.utils.parametrize.is_parametrized(layer) for layer in variant.guide.modules())


# Every penalty.

PENALTIES: dict[str, Callable[[], nn.Module]] = {
    "weights": WeightPrior,
    "jacobian": JacobianNorm,
    "probes": lambda: JacobianNorm(probes=2),
    "mmd": MMD,
}


@pytest.mark.parametrize("penalty", PENALTIES.values(), ids=PENALTIES)
def test_a_penalty_is_a_factor_of_training_and_no_part_of_the_density(penalty: Callable[[], nn.Module]) -> None:
    variant, x = auto((5,), LearnedSigma(), penalties=[penalty()]), torch.randn(6, 5)
    sites = {}
    for training in (True, False):
        variant.model.train(training)
        trace = poutine.trace(variant.model).get_trace(x)
        sites[training] = {name for name in trace.stochastic_nodes + trace.observation_nodes if name != "data"}

    assert sites == {True: {"z", "x", "penalty_0"}, False: {"z", "x"}}


@pytest.mark.parametrize("penalty", [JacobianNorm, MMD])
@pytest.mark.parametrize("weight", [math.nan, math.inf, -0.1])
def test_a_weight_that_is_negative_or_not_finite_is_refused(penalty: Callable[..., nn.Module], weight: float) -> None:
    with pytest.raises(ValueError, match=rf"weight must be finite and not negative, got {weight!r}"):
        penalty(weight)


@pytest.mark.parametrize("scale", [math.nan, math.inf, 0.0, -1.0])
def test_a_weight_prior_without_a_spread_is_refused(scale: float) -> None:
    with pytest.raises(ValueError, match=rf"scale must be positive and finite, got {scale!r}"):
        WeightPrior(scale)


@pytest.mark.parametrize("probes", [0, -2])
def test_fewer_than_one_probe_are_refused(probes: int) -> None:
    with pytest.raises(ValueError, match=f"probes must be at least 1, got {probes}"):
        JacobianNorm(probes=probes)
