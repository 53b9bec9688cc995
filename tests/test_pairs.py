"""Every pair of a likelihood, a prior, a guide and a shape of x: what must hold of it, whatever it is made of."""

import copy
import inspect
import itertools
import math
import pickle
import re
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from covering import covering
from pyro import poutine
from pyro.infer import ELBO, SVI, Trace_ELBO
from torch import Tensor, nn

from ppl_vae import VARIANTS, Variant, encode, evaluate, fit, pair, reconstruct
from ppl_vae.assembly import with_prior
from ppl_vae.elbo import PathwiseELBO
from ppl_vae.guides import ConstantVariance, FullRank, Guide, MeanField, PointMass
from ppl_vae.models import (
    MMD,
    Bernoulli,
    Categorical,
    ContinuousBernoulli,
    DiscretizedLogistic,
    DiscretizedNormal,
    Gaussian,
    Heteroscedastic,
    JacobianNorm,
    KLWeight,
    Laplace,
    LearnedSigma,
    Masked,
    Mixture,
    OptimalSigma,
    StandardNormal,
    StudentT,
    WeightPrior,
    constant,
    cyclical,
    linear,
    switch,
)
from ppl_vae.streams import seeded
from ppl_vae.variant import evaluating

Z_DIM, ROWS = 3, 6
LIKELIHOODS: dict[str, Callable[[], nn.Module]] = {
    "bernoulli": Bernoulli,
    "continuous_bernoulli": ContinuousBernoulli,
    "categorical": lambda: Categorical(2),
    "gaussian": Gaussian,
    "learned_sigma": LearnedSigma,
    "optimal_sigma": OptimalSigma,
    "laplace": Laplace,
    "student_t": StudentT,
    "heteroscedastic": lambda: Heteroscedastic(stage=0.0),
    "discretized_normal": DiscretizedNormal,
    "discretized_logistic": DiscretizedLogistic,
}
PRIORS: dict[str, Callable[[], nn.Module]] = {
    "normal": lambda: StandardNormal(Z_DIM),
    "mixture": lambda: Mixture(Z_DIM, components=2),
}
GUIDES: dict[str, type[Guide]] = {
    "mean_field": MeanField,
    "full_rank": FullRank,
    "constant_variance": ConstantVariance,
    "point_mass": PointMass,
}
SHAPES = {"vector": (5,), "image": (2, 9, 8)}
every_combination = pytest.mark.parametrize("names", covering(LIKELIHOODS, PRIORS, GUIDES, SHAPES), ids="-".join)
every_point_mass = pytest.mark.parametrize("names", covering(LIKELIHOODS, PRIORS, ["point_mass"], SHAPES), ids="-".join)
every_variant = pytest.mark.parametrize("name", VARIANTS)


def build(names: tuple[str, str, str, str], **parts: Any) -> tuple[Variant, Tensor]:
    """The pair of these parts, and data that every likelihood supports: 0 and 1."""
    likelihood, prior, guide, shape = names
    parts = {"likelihood": LIKELIHOODS[likelihood](), "prior": PRIORS[prior](), "guide": GUIDES[guide], **parts}
    return pair(SHAPES[shape], Z_DIM, **parts), torch.randint(2, (ROWS, *SHAPES[shape])).double()


def named(name: str, **options: Any) -> Variant:
    """A variant of the catalogue, for vectors; one that trains in stages has its second stage at once."""
    return VARIANTS[name](
        SHAPES["vector"], Z_DIM, **({"stage": 0.0} if name == "heteroscedastic_vae" else {}), **options
    )


def parameters(variant: Variant) -> dict[str, nn.Parameter]:
    """By name; the heads of a full-rank guide for codes of one coordinate may be empty."""
    return {f"{i}.{name}": p for i, half in enumerate(variant[:2]) for name, p in half.named_parameters() if p.numel()}


def loss_of(variant: Variant, x: Tensor, size: int | None = None) -> float:
    return variant.loss.loss(variant.model, variant.guide, x, size)


def quiet(variant: Variant) -> Variant:
    """In eval mode: p(x, z) and q(z | x), and nothing that moves."""
    variant.model.eval()
    variant.guide.eval()
    return variant


def log_joint(variant: Variant, x: Tensor) -> tuple[float, float]:
    """What Pyro scores at the guide's mean, and log p(z) + log p(x | z) by the distributions alone.

    A p(z) that is estimated by draws gets the same draws both times.
    """
    z = variant.guide.posterior(x).mean
    trace = poutine.trace(poutine.condition(variant.model, {"z": z})).get_trace(x)
    model = variant.model
    with seeded(0):
        traced = trace.log_prob_sum()
    with seeded(0):
        by_hand = model.prior().log_prob(z).sum() + model.likelihood(*model.outputs(z)).log_prob(x).sum()
    return traced.item(), by_hand.item()


# Everything trains.


@every_combination
def test_the_loss_is_finite_and_every_parameter_has_a_gradient(names: tuple[str, str, str, str]) -> None:
    variant, x = build(names)

    loss = variant.loss(variant.model, variant.guide)(x)
    loss.backward()

    assert loss.isfinite()
    without = [name for name, p in parameters(variant).items() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


def steps(variant: Variant, x: Tensor, count: int = 1) -> None:
    """Train with stock Pyro, in whatever store is open."""
    svi = SVI(optim=pyro.optim.Adam({"lr": 2e-3}), **variant._asdict())
    for _ in range(count):
        svi.step(x)


def unmoved(variant: Variant, before: dict[str, Tensor]) -> list[str]:
    """Names of the parameters that are as they were."""
    return [name for name, p in parameters(variant).items() if torch.equal(p, before[name])]


def values(variant: Variant) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in parameters(variant).items()}


@every_variant
def test_stock_pyro_trains_every_parameter_of_every_variant(name: str) -> None:
    variant = named(name)
    before = values(variant)

    with pyro.get_param_store().scope():
        steps(variant, torch.randint(2, (ROWS, 5)).double(), 2)  # a layer below one that starts at 0 moves second

    assert unmoved(variant, before) == []


@pytest.mark.parametrize("name", ["bernoulli_vae", "beta_vae", "dreg_vae", "rae_l2", "wae_mmd"])
def test_stock_pyro_lowers_the_loss_of_every_kind_of_objective(name: str) -> None:
    """By more than 4 standard errors of the paired difference, the same 20 seeds before and after."""
    variant, x = named(name), torch.randint(2, (ROWS, 5)).double()

    def losses() -> Tensor:
        found = []
        for seed in range(20):
            frozen = copy.deepcopy(variant)
            pyro.set_rng_seed(seed)
            found.append(loss_of(frozen, x))
        return torch.tensor(found)

    before = losses()
    with pyro.get_param_store().scope():
        steps(variant, x, 50)
    gain = before - losses()

    assert gain.mean() > 4 * gain.std() / math.sqrt(20)


def test_a_second_pair_is_refused_in_the_store_of_the_first() -> None:
    """It would train the first one's tensors, without a word."""
    x = torch.randn(ROWS, 5)
    first, second = named("sigma_vae"), named("sigma_vae")
    with pyro.get_param_store().scope():
        steps(first, x)
        before = values(second)
        with pytest.raises(ValueError, match=r"already holds another .*scope\(\)"):
            steps(second, x)

    assert len(unmoved(second, before)) == len(before)


def test_two_pairs_train_in_stores_of_their_own() -> None:
    x = torch.randn(ROWS, 5)
    for variant in (named("sigma_vae"), named("sigma_vae")):
        before = values(variant)
        with pyro.get_param_store().scope():
            steps(variant, x)
        assert unmoved(variant, before) == []


def test_a_module_under_a_torch_optimiser_leaves_pyros_store_alone() -> None:
    variant, x = named("sigma_vae"), torch.randn(ROWS, 5)
    before, module = values(variant), variant.loss(variant.model, variant.guide)
    optimiser = torch.optim.Adam(module.parameters(), 1e-2)

    module(x).backward()
    optimiser.step()

    assert unmoved(variant, before) == []
    assert list(pyro.get_param_store().keys()) == []


@pytest.mark.parametrize("guide", GUIDES.values(), ids=GUIDES)
def test_codes_may_be_single_numbers(guide: type[Guide]) -> None:
    variant, x = pair((5,), 1, likelihood=Bernoulli(), guide=guide), torch.randint(2, (ROWS, 5)).double()

    variant.loss(variant.model, variant.guide)(x).backward()

    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in parameters(variant).values())


# The sum over data.


@every_combination
def test_particles_at_once_are_scored_as_each_alone(names: tuple[str, str, str, str]) -> None:
    """Convolutions, flattening and covariances must not mix particles with data."""
    variant, x = build(names)
    quiet(variant)
    with pyro.plate("particles", 2, dim=-2):
        guide = poutine.trace(variant.guide).get_trace(x)
        model = poutine.trace(poutine.replay(variant.model, trace=guide)).get_trace(x)
    guide.compute_log_prob()
    model.compute_log_prob()
    z = guide.nodes["z"]["value"].expand(2, ROWS, Z_DIM)

    for particle in (0, 1):
        alone = poutine.trace(poutine.condition(variant.model, {"z": z[particle]})).get_trace(x)
        alone.compute_log_prob()
        for site in ("z", "x"):
            together = model.nodes[site]["log_prob"].expand(2, ROWS)[particle]
            assert torch.allclose(together, alone.nodes[site]["log_prob"], rtol=1e-10, atol=1e-10)
        log_q = variant.guide.posterior(x).log_prob(z[particle])
        assert torch.allclose(guide.nodes["z"]["log_prob"].expand(2, ROWS)[particle], log_q, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("estimator", [Trace_ELBO, PathwiseELBO])
@pytest.mark.parametrize("shape", SHAPES)
def test_eight_vectorised_particles_of_a_point_mass_are_one(shape: str, estimator: Callable[..., ELBO]) -> None:
    """Of equal particles, the mean is each: a sum would be eight times as much."""
    variant, x = build(("laplace", "mixture", "point_mass", shape))
    quiet(variant)
    loss = estimator(num_particles=8, vectorize_particles=True, max_plate_nesting=1)

    together = loss.differentiable_loss(variant.model, variant.guide, x)

    assert together.item() == pytest.approx(loss_of(variant, x), rel=1e-10)


@every_variant
def test_eight_vectorised_particles_train_every_variant(name: str) -> None:
    loss = Trace_ELBO(num_particles=8, vectorize_particles=True, max_plate_nesting=1)
    variant = named(name)._replace(loss=loss)
    before = values(variant)

    with pyro.get_param_store().scope():
        steps(variant, torch.randint(2, (ROWS, 5)).double(), 2)  # a layer below one that starts at 0 moves second

    assert unmoved(variant, before) == []


@every_point_mass
def test_the_loss_of_a_set_is_the_sum_over_its_batches(names: tuple[str, str, str, str]) -> None:
    """Of unequal batches too; and each, counted for the whole set, averages to the loss by its rows."""
    variant, x = build(names)
    quiet(variant)
    whole = loss_of(variant, x)

    batches = x.split([1, 3, 2])

    assert sum(loss_of(variant, batch) for batch in batches) == pytest.approx(whole, rel=1e-10)
    shares = [len(batch) / ROWS * loss_of(variant, batch, ROWS) for batch in batches]
    assert sum(shares) == pytest.approx(whole, rel=1e-10)


@pytest.mark.parametrize("guide", GUIDES)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_batch_counts_for_the_whole_set_on_both_sides(guide: str, shape: str) -> None:
    """The same draw: a scale on one side only would leave the ratio."""
    variant, x = build(("laplace", "mixture", guide, shape))
    pyro.set_rng_seed(3)
    once = loss_of(variant, x)
    pyro.set_rng_seed(3)

    assert loss_of(variant, x, 10 * ROWS) == pytest.approx(10 * once, rel=1e-10)


# Types and shapes.


@every_combination
def test_a_pair_in_float32_stays_there_and_agrees_with_float64(names: tuple[str, str, str, str]) -> None:
    """The log joint at the guide's mean: no noise, and the rounding of some 1000 terms."""
    variant, x = build(names)
    quiet(variant)
    wanted, _ = log_joint(variant, x)
    variant.model.float()
    variant.guide.float()

    loss = variant.loss(variant.model, variant.guide)(x.float())
    loss.backward()

    assert {loss.dtype} | {p.grad.dtype for p in parameters(variant).values() if p.grad is not None} == {torch.float32}
    assert log_joint(variant, x.float())[0] == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_decoder_with_the_wrong_number_of_outputs_is_refused_with_both_shapes(shape: tuple[int, ...]) -> None:
    """Heteroscedastic wants two numbers per coordinate; broadcasting one would be another model."""
    numbers = math.prod(shape)
    variant = pair(shape, Z_DIM, likelihood=Heteroscedastic(), decoder=nn.Linear(Z_DIM, numbers))
    came, wanted = rf"\[{ROWS}, {numbers}\]", rf"\[{ROWS}, 2, {', '.join(map(str, shape))}\]"

    with pytest.raises(ValueError, match=rf"into {came}; Heteroscedastic wants {wanted}"):
        loss_of(variant, torch.randn(ROWS, *shape))


class Told(nn.Module):
    """A decoder that says the same numbers for every code."""

    def __init__(self, numbers: Tensor) -> None:
        super().__init__()
        self.numbers = numbers

    def forward(self, z: Tensor) -> Tensor:
        return self.numbers.expand(len(z), *self.numbers.shape)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_outputs_of_a_decoder_come_one_after_the_other(shape: tuple[int, ...]) -> None:
    """First every loc, then every head; flat, as channels, or on an axis of their own: the same numbers."""
    loc, head = torch.randn(2, *shape)
    layouts = [torch.stack([loc, head]), torch.cat([loc, head]), torch.cat([loc.flatten(), head.flatten()])]
    for numbers in layouts:
        likelihood = Heteroscedastic(0.4, floor=-40.0, stage=0.0)
        model = pair(shape, Z_DIM, likelihood=likelihood, decoder=Told(numbers)).model

        p = model.x_given_z(torch.randn(7, ROWS, Z_DIM))

        assert tuple(p.batch_shape + p.event_shape) == (7, ROWS, *shape)
        assert torch.equal(p.mean, loc.expand(7, ROWS, *shape))
        assert torch.allclose(p.stddev, 0.4 * head.exp().expand(7, ROWS, *shape), rtol=1e-12, atol=0)


@pytest.mark.parametrize(("x_shape", "z_dim"), [((), 2), ((5, 0), 2), ((5,), 0), ((-1,), 2), ((5,), -2)])
def test_empty_shapes_are_refused(x_shape: tuple[int, ...], z_dim: int) -> None:
    with pytest.raises(ValueError, match="x_shape and z_dim must be positive, got"):
        pair(x_shape, z_dim, likelihood=Gaussian())


def test_a_prior_of_another_event_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"event shape \[4\], wanted \[3\]"):
        pair((5,), 3, likelihood=Gaussian(), prior=StandardNormal(4))


OPTIONS: dict[str, Callable[[], Any]] = {
    "likelihood": Bernoulli,
    "guide": lambda: FullRank,
    "prior": lambda: Mixture(Z_DIM, 2),
    "encoder": lambda: nn.Linear(5, 7),
    "decoder": lambda: nn.Linear(Z_DIM, 5),
    "penalties": lambda: [JacobianNorm()],
    "kl_weight": lambda: KLWeight(constant(2.0)),
    "loss": Trace_ELBO,
}


@pytest.mark.parametrize(("name", "option"), list(zip(VARIANTS, itertools.cycle(OPTIONS), strict=False)))
def test_any_keyword_of_pair_swaps_a_part_of_any_variant(name: str, option: str) -> None:
    """Each variant with one of the keywords, since all builders hand them on by the same lines."""
    outputs = {"decoder": nn.Linear(Z_DIM, 10)} if name == "heteroscedastic_vae" and option == "decoder" else {}
    part = outputs.get(option) or OPTIONS[option]()

    variant = named(name, **{option: part})

    found = {
        "likelihood": variant.model.likelihood,
        "guide": type(variant.guide),
        "prior": variant.model.prior,
        "encoder": variant.guide.encoder,
        "decoder": variant.model.decoder,
        "penalties": list(variant.model.penalties),
        "kl_weight": variant.guide.kl_weight,
        "loss": variant.loss,
    }
    assert found[option] == part


NUMBERS: dict[str, tuple[str, dict[str, Any], Callable[[Variant], Any]]] = {
    "gaussian_vae": ("gaussian_vae", {"sigma": 0.3}, lambda v: v.model.likelihood.scale.item()),
    "beta_vae": ("beta_vae", {"beta": 2.5}, lambda v: v.guide.kl_weight.value.item()),
    "beta_vae_sigma": ("beta_vae", {"sigma": 0.3}, lambda v: v.model.likelihood.scale.item()),
    "cv_vae": ("cv_vae", {"spread": 0.2}, lambda v: v.guide.posterior(torch.zeros(1, 5)).stddev[0, 0].item()),
    "ae": ("ae", {"sigma": 0.3}, lambda v: v.model.likelihood.scale.item()),
    "rae_sn": ("rae_sn", {"sigma": 0.3}, lambda v: v.model.likelihood.scale.item()),
    "rae_l2": ("rae_l2", {"tau": 0.3}, lambda v: v.model.penalties[0].scale),
    "rae_gp": ("rae_gp", {"kappa": 0.3}, lambda v: v.model.penalties[0].weight),
    "rae_gp_probes": ("rae_gp", {"probes": 7}, lambda v: v.model.penalties[0].probes),
    "wae_mmd": ("wae_mmd", {"weight": 7.0}, lambda v: v.model.penalties[0].weight),
    "l2_vae": ("l2_vae", {"tau": 0.3}, lambda v: v.model.penalties[0].scale),
    "l2_vae_layers": ("l2_vae", {"layers": ("decoder.0",)}, lambda v: v.model.penalties[0].layers),
}


@pytest.mark.parametrize(("name", "option", "where"), NUMBERS.values(), ids=NUMBERS)
def test_a_number_given_to_a_builder_arrives_where_it_acts(
    name: str, option: dict[str, Any], where: Callable[[Variant], Any]
) -> None:
    (wanted,) = option.values()

    found, unasked = where(named(name, **option)), where(named(name))

    assert found == (pytest.approx(wanted, rel=1e-12) if isinstance(wanted, float) else wanted)
    assert unasked != found


def test_a_learned_mixture_is_the_weighted_sum_of_its_normals_and_so_are_its_gradients() -> None:
    mixture, z = Mixture(2, components=3), torch.randn(4, 2)
    for parameter in mixture.parameters():
        torch.nn.init.normal_(parameter)
    weights, centres, factors = torch.softmax(mixture.logits, 0), mixture.loc, mixture.factor
    lower = factors.tril(-1) + torch.diag_embed(torch.diagonal(factors, dim1=1, dim2=2).exp())
    covariances = (lower @ lower.mT).detach().numpy()
    densities = [
        scipy.stats.multivariate_normal(c.numpy(), v) for c, v in zip(centres.detach(), covariances, strict=True)
    ]
    by_hand = sum(w * p.pdf(z.numpy()) for w, p in zip(weights.tolist(), densities, strict=True))

    assert mixture().log_prob(z).exp().tolist() == pytest.approx(by_hand.tolist(), rel=1e-10)
    assert torch.autograd.gradcheck(lambda *_: mixture().log_prob(z), tuple(mixture.parameters()))


def test_a_mixture_of_given_moments_has_them_and_is_held_fixed() -> None:
    weights, centres, roots = torch.tensor([0.2, 0.8]), torch.randn(2, 3), torch.randn(2, 3, 3)
    covariances = roots @ roots.mT + 0.1 * torch.eye(3)

    mixture = Mixture.of(weights, centres, covariances)

    parts = mixture()
    assert torch.allclose(parts.mixture_distribution.probs, weights, rtol=1e-12, atol=0)
    assert torch.allclose(parts.component_distribution.mean, centres, rtol=1e-12, atol=0)
    assert torch.allclose(parts.component_distribution.covariance_matrix, covariances, rtol=1e-10, atol=1e-12)
    assert not any(parameter.requires_grad for parameter in mixture.parameters())


@pytest.mark.parametrize("scale", [math.nan, math.inf, 0.0, -1.0])
def test_a_prior_without_a_spread_is_refused(scale: float) -> None:
    with pytest.raises(ValueError, match=rf"scale must be positive and finite, got {scale!r}"):
        StandardNormal(3, scale)


@pytest.mark.parametrize("components", [0, -1])
def test_a_mixture_of_nothing_is_refused(components: int) -> None:
    with pytest.raises(ValueError, match=f"at least one component, got {components}"):
        Mixture(3, components)


# Eval mode is p(x, z).

TRAINING: dict[str, Callable[[], dict[str, Any]]] = {
    "weights": lambda: {"penalties": [WeightPrior(0.1)]},
    "jacobian": lambda: {"penalties": [JacobianNorm(3.0)]},
    "mmd": lambda: {"penalties": [MMD(50.0)]},
    "kl_weight": lambda: {"kl_weight": KLWeight(constant(4.0))},
    "masked": lambda: {"kl_weight": Masked()},
    "all": lambda: {
        "penalties": [WeightPrior(0.1), JacobianNorm(3.0), MMD(50.0)],
        "kl_weight": KLWeight(constant(4.0)),
    },
}


@pytest.mark.parametrize(("likelihood", "extras"), list(zip(LIKELIHOODS, itertools.cycle(TRAINING), strict=False)))
def test_eval_mode_is_the_log_joint_whatever_acts_in_training(likelihood: str, extras: str) -> None:
    variant, x = build((likelihood, "mixture", "mean_field", "vector"), **TRAINING[extras]())

    traced, by_hand = log_joint(variant, x)
    assert abs(traced - by_hand) > 1e-3  # training mode: it acts
    traced, by_hand = log_joint(quiet(variant), x)
    assert traced == pytest.approx(by_hand, rel=1e-12)


@every_variant
def test_eval_mode_of_every_variant_is_its_log_joint(name: str) -> None:
    variant, x = quiet(named(name)), torch.randint(2, (ROWS, 5)).double()
    state = copy.deepcopy(variant.model.state_dict())

    traced, by_hand = log_joint(variant, x)

    assert traced == pytest.approx(by_hand, rel=1e-12)
    assert all(torch.equal(value, state[key]) for key, value in variant.model.state_dict().items())


@pytest.mark.parametrize("guide", GUIDES)
def test_eval_mode_of_a_guide_is_its_posterior(guide: str) -> None:
    variant, x = build(("gaussian", "normal", guide, "vector"), kl_weight=KLWeight(constant(4.0)))
    scores = {}
    for training in (True, False):
        variant.guide.train(training)
        trace = poutine.trace(variant.guide).get_trace(x)
        log_q = variant.guide.posterior(x).log_prob(trace.nodes["z"]["value"]).sum().item()
        scores[training] = trace.log_prob_sum().item(), log_q

    assert scores[False][0] == pytest.approx(scores[False][1], rel=1e-12)
    assert scores[True][0] == pytest.approx(4 * scores[True][1], rel=1e-12)


# Another prior.


def test_another_prior_is_the_only_thing_that_differs() -> None:
    variant, x = build(("learned_sigma", "normal", "mean_field", "vector"), penalties=[WeightPrior(0.1)])
    quiet(variant)
    old, new = variant.model.prior, PRIORS["mixture"]()

    other = with_prior(variant, new)

    assert other.model.prior is new
    assert variant.model.prior is old
    assert other.guide is variant.guide
    assert other.loss is variant.loss
    mine, theirs = dict(variant.model.named_modules()), dict(other.model.named_modules())
    assert all(theirs[key] is module for key, module in mine.items() if key and not key.startswith("prior"))
    z = variant.guide.posterior(x).mean
    difference = new().log_prob(z).sum() - old().log_prob(z).sum()
    assert log_joint(other, x)[0] - log_joint(variant, x)[0] == pytest.approx(difference.item(), rel=1e-9)


def test_training_under_another_prior_trains_the_shared_decoder() -> None:
    variant, x = build(("learned_sigma", "normal", "mean_field", "vector"))
    other, before = with_prior(variant, PRIORS["mixture"]()), values(variant)

    with pyro.get_param_store().scope():
        steps(other, x)

    assert unmoved(variant, before) == []


def counting(outputs: Any, **declared: Any) -> nn.Module:
    """A Bernoulli that declares another number of outputs."""
    likelihood: Any = Bernoulli()
    for name, value in {"outputs": outputs, **declared}.items():
        setattr(likelihood, name, value)
    return likelihood


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"guide": "laplace"}, "guide must be a family"),
        ({"prior": "mixture"}, "prior must be an instance of nn.Module, got 'mixture'"),
        ({"likelihood": Gaussian}, "likelihood must be an instance of nn.Module"),
        ({"likelihood": nn.Identity()}, "Identity has no attribute outputs: set it to its number .* per coordinate"),
        ({"likelihood": counting(0)}, r"Bernoulli\.outputs is its number .* per coordinate, .* at least 1, got 0"),
        ({"likelihood": counting(2.0)}, "a whole number of at least 1, got 2.0"),
        ({"likelihood": counting(True)}, "a whole number of at least 1, got True"),
        ({"likelihood": counting("2", is_flat=True)}, "number of decoder outputs per datum, .* got '2'"),
        ({"likelihood": counting(None, is_flat=True)}, "no attribute outputs: set it to its number .* per datum"),
        ({"loss": PathwiseELBO}, "loss must be an instance of pyro.infer.ELBO or a name"),
        ({"loss": "elbow"}, "unknown estimator 'elbow': wanted one of trace"),
        ({"x_shape": 5}, "x_shape must be the shape of one datum"),
    ],
)
def test_a_part_of_another_kind_is_refused_in_one_line(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pair(**{"x_shape": (5,), "z_dim": 2, "likelihood": Gaussian(), **parts})


def test_an_unknown_variant_is_told_the_known_ones() -> None:
    with pytest.raises(KeyError, match="unknown variant 'vae': wanted one of bernoulli_vae"):
        VARIANTS["vae"]


def test_an_unknown_option_is_told_the_known_ones() -> None:
    with pytest.raises(
        TypeError, match="beta_vae has no option 'gamma': wanted one of beta, anneal, sigma, likelihood"
    ):
        VARIANTS["beta_vae"]((5,), Z_DIM, gamma=2.0)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_seed_gives_the_initial_weights_and_leaves_the_stream_of_the_caller(name: str) -> None:
    before = torch.get_rng_state()
    first, again, other = (VARIANTS[name]((5,), 2, seed=seed) for seed in (3, 3, 4))

    assert torch.equal(torch.get_rng_state(), before)
    for half in ("model", "guide"):
        weights = [getattr(variant, half).state_dict() for variant in (first, again, other)]
        assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
        assert not all(torch.equal(weights[0][key], weights[2][key]) for key in weights[0])
    assert "seed" not in first.model.recipe["options"]  # type: ignore[index]


def test_the_signature_of_a_builder_shows_shapes_options_and_parts() -> None:
    signature = inspect.signature(VARIANTS["rae_gp"])

    assert list(signature.parameters) == ["x_shape", "z_dim", "sigma", "kappa", "probes", "seed", "parts"]
    assert signature.parameters["kappa"].kind is inspect.Parameter.KEYWORD_ONLY
    assert signature.parameters["kappa"].default == 0.1


@every_variant
def test_a_builder_can_be_pickled_and_copied(name: str) -> None:
    build = VARIANTS[name]

    assert pickle.loads(pickle.dumps(build)) is build
    assert copy.deepcopy(build) is build


# Copies, networks and parts.


@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "rae_sn"])
def test_every_variant_and_its_fit_can_be_pickled(name: str) -> None:
    """Spectral normalisation apart: torch parametrises layers by classes made on the spot, and says so."""
    x = torch.randint(2, (40, 5)).double()
    trained = fit(VARIANTS[name]((5,), Z_DIM), x, epochs=1, progress=False)
    again = pickle.loads(pickle.dumps(trained))
    steps = [(step, 7) for step in range(8)]

    for old, new in zip(trained.variant[:2], again.variant[:2], strict=True):
        assert old.state_dict().keys() == new.state_dict().keys()
        assert all(torch.equal(value, new.state_dict()[key]) for key, value in old.state_dict().items())
    weights = [pair.model.kl_weight for pair in (trained.variant, again.variant)]
    if isinstance(weights[0], KLWeight):
        assert [weights[0].curve(*step) for step in steps] == [weights[1].curve(*step) for step in steps]  # type: ignore[union-attr]
    assert again.rows == trained.rows


def test_a_spectrally_normalised_variant_is_copied_and_its_pickling_refused() -> None:
    variant = VARIANTS["rae_sn"]((5,), Z_DIM)
    copy.deepcopy(variant)

    with pytest.raises(RuntimeError, match="parametrized modules is only supported through state_dict"):
        pickle.dumps(variant)


@pytest.mark.parametrize("curve", [constant(2.0), linear(0.3, 2.0), cyclical(3, 0.4, 2.0), switch(0.5)])
def test_a_curve_of_a_schedule_can_be_pickled(curve: Callable[[int, int], float]) -> None:
    again = pickle.loads(pickle.dumps(curve))

    assert [again(step, 10) for step in range(11)] == [curve(step, 10) for step in range(11)]


class Returning(nn.Module):
    """An encoder that returns what it is told to."""

    def __init__(self, what: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.layer, self.what = nn.Linear(4, 3), what

    def forward(self, x: Tensor) -> Any:
        return self.what(self.layer(x))


HEADS = r"wanted one tensor \[rows, width\] .*its own heads.*heads=\[to_loc, to_log_scale\]"
ENCODERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "loc_and_scale": (lambda: Returning(lambda h: (h, h.exp())), (4,), f"returned a tuple of 2, {HEADS}"),
    "by_name": (lambda: Returning(lambda h: {"loc": h}), (4,), f"returned a dict of 1, {HEADS}"),
    "distribution": (lambda: Returning(lambda h: dist.Normal(h, 1.0)), (4,), f"returned a Normal, {HEADS}"),
    "nothing": (lambda: Returning(lambda h: None), (4,), "returned a NoneType, wanted"),
    "lstm": (lambda: nn.LSTM(4, 3, batch_first=True), (6, 4), r"a tuple of 2, .*outputs and state.*last state"),
    "gru_at_the_end": (lambda: nn.Sequential(nn.Linear(4, 4), nn.GRU(4, 3)), (6, 4), "outputs and state"),
    "rows_mixed_up": (lambda: Returning(lambda h: h.transpose(0, 1)), (6, 4), r"\[6, 2, 3\], wanted one row per datum"),
    "no_axis": (lambda: Returning(lambda h: h.sum(-1)), (4,), r"x \[2, 4\] into \[2\], wanted one row"),
}


@pytest.mark.parametrize(("encoder", "x_shape", "line"), ENCODERS.values(), ids=ENCODERS)
def test_an_encoder_that_returns_no_row_for_each_datum_is_refused_by_the_builder(
    encoder: Callable[[], nn.Module], x_shape: tuple[int, ...], line: str
) -> None:
    with pytest.raises(ValueError, match=f"^the encoder .*{line}"):
        VARIANTS["sigma_vae"](x_shape, Z_DIM, encoder=encoder())


def test_a_builder_leaves_the_mode_of_each_layer() -> None:
    encoder = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4))
    encoder[1].eval()
    VARIANTS["sigma_vae"]((5,), Z_DIM, encoder=encoder)

    assert [module.training for module in encoder.modules()] == [True, True, False]


@pytest.mark.parametrize(
    "prior", [dist.Normal(torch.zeros(Z_DIM), 1.0).to_event(1), torch.distributions.Normal(0.0, 1.0)]
)
def test_a_prior_that_is_a_distribution_is_told_to_be_a_module(prior: Any) -> None:
    with pytest.raises(ValueError, match=r"prior is a distribution, .*whose forward returns it.*nn\.ModuleList"):
        pair((5,), Z_DIM, likelihood=Gaussian(), prior=prior)


class OfTorch(nn.Module):
    def forward(self) -> Any:
        return torch.distributions.MultivariateNormal(torch.zeros(Z_DIM), torch.eye(Z_DIM))


def test_a_prior_of_torchs_own_is_told_its_name_in_pyro() -> None:
    with pytest.raises(
        ValueError,
        match=r"the prior returned a torch\..*wanted a Pyro .*: use pyro\.distributions\.MultivariateNormal$",
    ):
        pair((5,), Z_DIM, likelihood=Gaussian(), prior=OfTorch())


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_networks_are_as_wide_as_they_are_asked_to_be(shape: tuple[int, ...]) -> None:
    wide, usual = VARIANTS["sigma_vae"](shape, Z_DIM, width=300), VARIANTS["sigma_vae"](shape, Z_DIM)

    assert [variant.guide.heads[0].in_features for variant in (wide, usual)] == [300, 256]
    assert [variant.model.decoder[0].out_features for variant in (wide, usual)] == [300, 256]  # type: ignore[index, union-attr]
    assert wide.model.x_given_z(torch.zeros(2, Z_DIM)).event_shape == shape


@pytest.mark.parametrize("width", [0, 2.5, True, "wide"])
def test_a_width_that_is_no_count_is_refused(width: Any) -> None:
    with pytest.raises(ValueError, match="width must be a whole number of at least 1"):
        pair((5,), Z_DIM, likelihood=Gaussian(), width=width)


def test_a_width_beside_two_given_networks_is_refused() -> None:
    with pytest.raises(ValueError, match="both encoder and decoder were given: drop it"):
        pair((5,), 5, likelihood=Gaussian(), encoder=nn.Identity(), decoder=nn.Identity(), width=9)


# A likelihood without a mean.


class Tokens(nn.Module):
    outputs = 4

    def forward(self, *logits: Tensor) -> Any:
        return dist.Categorical(logits=torch.stack(logits, -1))


class Bounded(nn.Module):
    """Torch raises NotImplementedError where this one is asked for its mean."""

    outputs = 1

    def forward(self, loc: Tensor) -> Any:
        return dist.TransformedDistribution(dist.Normal(loc, 1.0), [dist.transforms.TanhTransform()])


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_without_a_mean_the_bounds_stay_and_the_rest_says_why_it_is_empty(shape: tuple[int, ...]) -> None:
    x = torch.rand(20, *shape) / 2
    variant = pair(shape, Z_DIM, likelihood=Bounded())
    fit(variant, x, epochs=1, progress=False)
    found = evaluate(variant, x, 10, train=x)
    pictures = ["frechet_prior"] * (shape == SHAPES["image"])  # samples of images are means, those of tables draws

    assert math.isfinite(found["bound"].value or math.nan)
    assert found["bits_per_dim"].reason == "a density"
    assert [name for name, number in found.numbers.items() if number.reason == "no mean"] == [
        "rmse",
        "frechet_reconstructions",
        *pictures,
        "frechet_interpolations",
    ]
    with pytest.warns(UserWarning, match=r"has no mean: reconstruct, RMSE and distances need one \(give"):
        assert bool(reconstruct(variant, x).isnan().all())


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_of_categories_the_bounds_and_modes_stay_and_no_distance_is_given(shape: tuple[int, ...]) -> None:
    """A likelihood of the user's own is nominal where it returns a Categorical."""
    x = torch.randint(4, (20, *shape)).double()
    variant = pair(shape, Z_DIM, likelihood=Tokens())
    fit(variant, x, epochs=1, progress=False)
    found = evaluate(variant, x, 10, train=x)

    assert math.isfinite(found["bound"].value or math.nan)
    assert found["bits_per_dim"].value == pytest.approx(
        -(found["bound"].value or math.nan) / (math.prod(shape) * math.log(2)), rel=1e-12
    )
    assert [name for name, number in found.numbers.items() if number.reason == "categories"] == [
        "rmse",
        "frechet_floor",
        "frechet_reconstructions",
        "frechet_prior",
        "frechet_interpolations",
        "nearest_held_out",
    ]
    with evaluating(variant):
        modes = variant.model.x_given_z(encode(variant, x)).base_dist.logits.argmax(-1).double()
    assert torch.equal(reconstruct(variant, x), modes)


def test_a_sigma_at_its_floor_is_said_beside_the_number_and_by_the_receipt() -> None:
    x = 1e-5 * torch.randn(40, 5)
    variant = pair((5,), Z_DIM, likelihood=LearnedSigma(0.003))
    trained = fit(variant, x, epochs=1, lr=1e-6, progress=False)
    line = r"sigma stands at its floor 0\.0025, 2\d\d times the spread of x: use scale='standardize'"

    assert re.search(line, str(evaluate(variant, x, 10)))
    assert re.search(f"caution +{line}", trained.receipt())
