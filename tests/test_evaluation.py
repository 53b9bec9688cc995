"""evaluate: every figure against another route to it, and what may not be touched on the way."""

import copy
import itertools
import math
import random
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import scipy.linalg
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, kl_divergence

import ppl_vae
from ppl_vae import VARIANTS, Variant, bounds, encode, evaluate, ex_post, fit, pair, prepare, reconstruct, with_prior
from ppl_vae.estimate import mean_over_data
from ppl_vae.evaluation.distances import _first_order, frechet, frechet_with_error, nearest
from ppl_vae.evaluation.features import Features, classifier, features_for, from_file, inception, principal_components
from ppl_vae.evaluation.interpolation import _pair, interpolate, pairs, slerp
from ppl_vae.evaluation.lower_bounds import held_out
from ppl_vae.evaluation.metrics import COLUMNS
from ppl_vae.guides import ConstantVariance, FullRank, Guide, MeanField, PointMass
from ppl_vae.models import (
    Bernoulli,
    DiscretizedLogistic,
    DiscretizedNormal,
    Gaussian,
    Heteroscedastic,
    LearnedSigma,
    Mixture,
    Scale,
    StandardNormal,
)
from ppl_vae.variant import evaluating

X_DIM, Z_DIM, ROWS = 5, 2, 40
HAS_BOUND = [name for name in VARIANTS if VARIANTS[name]((X_DIM,), Z_DIM).has_bound]
POINT_MASS = [name for name in VARIANTS if name not in HAS_BOUND]


def binary(rows: int = ROWS) -> Tensor:
    """Data that every likelihood supports."""
    return torch.randint(2, (rows, X_DIM)).double()


# What is evaluated is left as it was.


def state(variant: Variant) -> dict[str, Any]:
    """Tensors, gradients and training modes, by name."""
    found: dict[str, Any] = {}
    for side, half in zip("pq", variant[:2], strict=True):
        found |= {f"{side}.{name}": value.clone() for name, value in half.state_dict().items()}
        found |= {f"{side}.{name}.grad": copy.deepcopy(value.grad) for name, value in half.named_parameters()}
        found |= {f"{side}.{name}.training": module.training for name, module in half.named_modules()}
    return found


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(a[name], b[name]) if isinstance(a[name], Tensor) else a[name] == b[name] for name in a
    )


def stream_states() -> tuple[Any, ...]:
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002 - the global stream is what may not move
    return torch.get_rng_state().tolist(), random.getstate(), kind, keys.tolist(), *rest


def with_decoder(layer: nn.Module) -> Variant:
    return pair((X_DIM,), Z_DIM, likelihood=Gaussian(), decoder=nn.Sequential(nn.Linear(Z_DIM, X_DIM), layer))


JUDGED: dict[str, Callable[[], Variant]] = {
    **{name: partial(VARIANTS[name], (X_DIM,), Z_DIM) for name in VARIANTS},
    "dropout": lambda: with_decoder(nn.Dropout(0.5)),
    "batch_norm": lambda: with_decoder(nn.BatchNorm1d(X_DIM)),
}


@pytest.mark.parametrize(
    ("build", "training"), list(zip(JUDGED.values(), itertools.cycle([True, False]), strict=False)), ids=JUDGED
)
def test_parameters_buffers_modes_and_random_streams_are_left_bit_for_bit(
    build: Callable[[], Variant], training: bool
) -> None:
    variant, x, train = build(), binary(), binary()
    mixture = Mixture(Z_DIM, 2)
    variant.model.train(training)
    variant.guide.train(not training)  # a mixed state, so that setting one mode for all would show
    before, drawn = state(variant), stream_states()

    evaluate(variant, x, 3, train=train, ex_post=mixture)

    assert stream_states() == drawn
    assert same(state(variant), before)


FIRST = """
import random, numpy, torch
from ppl_vae import VARIANTS, evaluate, ex_post

def stream_states():
    return random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

variant, x = VARIANTS["sigma_vae"]((5,), 2), torch.randn(30, 5)
before = stream_states()
evaluate(variant, x, 2)
assert stream_states() == before, "evaluate"
ex_post.fit(variant, x, components=2)
assert stream_states() == before, "ex_post.fit"
"""


@pytest.mark.process
def test_the_first_call_of_a_process_leaves_the_random_streams_too() -> None:
    """A library that is imported on first use may draw while it is imported."""
    root = Path(ppl_vae.__file__).parents[1]

    done = subprocess.run([sys.executable, "-c", FIRST], cwd=root, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["sigma_vae", "bernoulli_vae", "iwae", "rae_gp", "wae_mmd"])
def test_seeds_repeat_whatever_came_before(name: str) -> None:
    variant, x = VARIANTS[name]((X_DIM,), Z_DIM), binary()

    one = evaluate(variant, x, 3, train=x, seed=5)
    torch.rand(7)
    variant.model.train(not variant.model.training)
    same_seed, other = evaluate(variant, x, 3, train=x, seed=5), evaluate(variant, x, 3, train=x, seed=6)

    assert same_seed == one
    assert other["frechet_prior"] != one["frechet_prior"]


# A figure, or the reason why there is none.

EXACT = {"active_units", "sigma"}  # a count and a parameter: figures of these data, with no error to state


@pytest.mark.parametrize(("name", "extras"), list(zip(VARIANTS, itertools.cycle([True, False]), strict=False)))
def test_every_number_has_a_finite_value_with_its_error_or_a_reason(name: str, extras: bool) -> None:
    variant, x = VARIANTS[name]((X_DIM,), Z_DIM), binary()
    more = {"train": binary(), "ex_post": ex_post.fit(variant, x, components=2)} if extras else {}

    found = evaluate(variant, x, 3, **more)

    assert list(found.numbers) == list(COLUMNS)
    for column, number in found.numbers.items():
        if number.value is None:
            assert number.reason
            assert number.error is None
        else:
            assert math.isfinite(number.value)
            assert not number.reason
            assert (number.error is None) == (column in EXACT)
            assert number.error is None or (math.isfinite(number.error) and number.error >= 0)
    empty = {column for column, number in found.numbers.items() if number.value is None}
    assert empty.isdisjoint({"frechet_floor", "frechet_ex_post", "nearest_held_out", "nearest_ex_post"}) == extras


@pytest.mark.parametrize("rows", [2, 3, 11])
def test_few_data_have_finite_figures(rows: int) -> None:
    """Two are the fewest that have a standard error."""
    found = evaluate(VARIANTS["sigma_vae"]((X_DIM,), Z_DIM), torch.randn(rows, X_DIM), 3)

    figures = [figure for figure in found.as_row().values() if figure is not None]
    assert all(math.isfinite(figure) for figure in figures)


@pytest.mark.parametrize("name", POINT_MASS)
def test_a_point_mass_says_map_where_a_bound_would_stand(name: str) -> None:
    variant, x = VARIANTS[name]((X_DIM,), Z_DIM), binary()

    found = evaluate(variant, x, 3, ex_post=ex_post.fit(variant, x, components=2))

    for column in ("bound", "importance_weighted", "bound_ex_post", "bits_per_dim", "kl"):
        assert found[column] == (None, None, "MAP")
    assert found.bound_per_datum == found.kl_per_dim == []
    scored = name not in ("ae", "wae_mmd")
    with evaluating(variant):
        joint = held_out(variant, x).mean().item()
    assert found["log_joint"].value == (pytest.approx(joint, rel=1e-10) if scored else None)
    assert found["log_joint"].reason == ("" if scored else "p(z) not in the objective")


def test_the_share_of_heavy_tails_counts_data_above_the_threshold() -> None:
    """A guide far too narrow has heavy tails, a wide one has bounded weights: k near 1 and below 0."""
    x, shares = torch.randn(ROWS, X_DIM), {}
    for spread in (0.05, 1.5):
        variant = VARIANTS["cv_vae"]((X_DIM,), Z_DIM, spread=spread, decoder=nn.Linear(Z_DIM, X_DIM))
        shares[spread] = evaluate(variant, x, 200, seed=1)["heavy_tails"].value
        counted = (bounds(variant, x, 200, seed=1).k_hat > 1 - 1 / math.log10(200)).double().mean().item()
        assert shares[spread] == pytest.approx(counted, abs=1e-12)

    assert shares[0.05] > 0.9
    assert shares[1.5] < 0.1
    assert evaluate(variant, x, 20)["heavy_tails"].reason == "too few draws"


@pytest.mark.parametrize("name", ["bernoulli_vae", "sigma_vae", "beta_vae", "cv_vae", "iwae"])
def test_the_bound_is_that_of_bounds_with_its_error_over_data(name: str) -> None:
    variant, x = VARIANTS[name]((X_DIM,), Z_DIM), binary()
    mixture = ex_post.fit(variant, x, components=2)

    found = evaluate(variant, x, 7, ex_post=mixture, seed=3)

    alone = bounds(variant, x, 7, seed=3)
    under_the_mixture = bounds(with_prior(variant, mixture), x, 7, seed=3).elbo
    bounds_of = {
        "bound": alone.elbo,
        "importance_weighted": alone.importance_weighted,
        "bound_ex_post": under_the_mixture,
    }
    for column, values in bounds_of.items():
        assert found[column].value == pytest.approx(values.mean().item(), rel=1e-12)
        assert found[column].error == pytest.approx(values.std().item() / math.sqrt(ROWS), rel=1e-12)
    assert found.bound_per_datum == alone.elbo.tolist()
    assert found.num_particles == 7
    assert found["log_joint"] == (None, None, "has a bound")


MASSES: dict[str, Callable[[], nn.Module]] = {
    "bernoulli": Bernoulli,
    "discretized_normal": DiscretizedNormal,
    "discretized_logistic": DiscretizedLogistic,
}


@pytest.mark.parametrize("likelihood", MASSES.values(), ids=MASSES)
@pytest.mark.parametrize("shape", [(X_DIM,), (2, 9, 8)], ids=["vector", "image"])
def test_bits_of_a_mass_are_minus_the_bound_over_d_log_two(
    likelihood: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    variant = pair(shape, Z_DIM, likelihood=likelihood())

    found = evaluate(variant, torch.randint(2, (12, *shape)).double(), 3)

    nats = math.prod(shape) * math.log(2)
    assert found["bits_per_dim"].value == pytest.approx(-found["bound"].value / nats, rel=1e-12)
    assert found["bits_per_dim"].error == pytest.approx(found["bound"].error / nats, rel=1e-12)
    assert found["bits_per_dim"].value > 0


@pytest.mark.parametrize("name", ["sigma_vae", "continuous_bernoulli_vae"])
def test_a_density_has_no_bits(name: str) -> None:
    found = evaluate(VARIANTS[name]((X_DIM,), Z_DIM), binary(), 3)

    assert found["bits_per_dim"] == (None, None, "a density")


# Reconstructions.


def test_the_rmse_is_numpys_in_the_models_units() -> None:
    """Of the mean of p(x | z) at the mean of q(z | x), by matrices; its error is that of a root."""
    variant = pair((X_DIM,), Z_DIM, likelihood=Gaussian(), encoder=nn.Identity(), decoder=nn.Linear(Z_DIM, X_DIM))
    shift, width = torch.randn(X_DIM), torch.rand(X_DIM) + 0.5
    variant.model.scale = Scale((X_DIM,), shift, width)
    x = torch.randn(ROWS, X_DIM)

    found = evaluate(variant, x, 3)["rmse"]

    head, decoder = variant.guide.heads[0], variant.model.decoder
    weights = [p.detach().numpy() for p in (head.weight, head.bias, decoder.weight, decoder.bias)]
    y = ((x - shift) / width).numpy()
    square = np.square((y @ weights[0].T + weights[1]) @ weights[2].T + weights[3] - y).mean(1)
    assert found.value == pytest.approx(np.sqrt(square.mean()), rel=1e-12)
    assert found.error == pytest.approx(square.std(ddof=1) / math.sqrt(ROWS) / (2 * np.sqrt(square.mean())), rel=1e-12)


def test_sigma_is_the_root_mean_square_of_the_likelihoods_scale() -> None:
    x = torch.randn(ROWS, X_DIM)
    variant = pair((X_DIM,), Z_DIM, likelihood=Heteroscedastic(stage=0.0))
    with torch.no_grad():
        scale = variant.model.x_given_z(encode(variant, x)).base_dist.scale

    assert evaluate(variant, x, 3)["sigma"].value == pytest.approx(scale.square().mean().sqrt().item(), rel=1e-12)
    assert evaluate(pair((X_DIM,), Z_DIM, likelihood=Gaussian(0.3)), x, 3)["sigma"].value == pytest.approx(0.3)
    assert evaluate(VARIANTS["bernoulli_vae"]((X_DIM,), Z_DIM), binary(), 3)["sigma"] == (None, None, "none")


def everything(variant: Variant, x: Tensor, train: Tensor) -> dict[str, Any]:
    mixture = Mixture.of(torch.ones(1), torch.zeros(1, Z_DIM), torch.eye(Z_DIM).unsqueeze(0))
    return evaluate(variant, x, 3, train=train, ex_post=mixture).numbers


def test_units_move_the_bounds_and_no_other_figure() -> None:
    variant, x, train = VARIANTS["sigma_vae"]((X_DIM,), Z_DIM), torch.randn(ROWS, X_DIM), torch.randn(90, X_DIM)
    one = everything(variant, x, train)
    variant.model.scale = Scale((X_DIM,), 3.0, 10.0)

    ten = everything(variant, 3 + 10 * x, 3 + 10 * train)

    for column, number in one.items():
        if number.value is not None:
            shift = X_DIM * math.log(10) if "nats" in COLUMNS[column].unit and column != "kl" else 0.0
            assert ten[column].value == pytest.approx(number.value - shift, rel=1e-8, abs=1e-8)


# Codes.


def normals(loc: Tensor, scale: Tensor, prior: float) -> Tensor:
    """``KL(Normal(loc, scale) || Normal(0, prior))``, a coordinate."""
    return math.log(prior) - scale.log() + (scale**2 + loc**2) / (2 * prior**2) - 0.5


@pytest.mark.parametrize("prior", [1.0, 2.5])
@pytest.mark.parametrize("guide", [MeanField, ConstantVariance])
def test_the_kl_of_each_coordinate_has_its_closed_form(guide: type[Guide], prior: float) -> None:
    variant = pair((X_DIM,), 3, likelihood=Gaussian(), guide=guide, prior=StandardNormal(3, scale=prior))
    x = 3 * torch.randn(2300, X_DIM)  # more rows than a network is shown at once

    found = evaluate(variant, x, 1)

    with torch.no_grad():
        q = variant.guide.posterior(x)
    kl = normals(q.mean, q.stddev, prior)
    assert found.kl_per_dim == pytest.approx(kl.mean(0).sort(descending=True).values.tolist(), rel=1e-10)
    assert found["kl"].value == pytest.approx(kl.sum(1).mean().item(), rel=1e-10)
    assert found["kl"].error == pytest.approx(kl.sum(1).std().item() / math.sqrt(len(x)), rel=1e-10)


@pytest.mark.parametrize(
    ("guide", "mixture", "rows"), [(FullRank, False, 300), (FullRank, True, 2300), (MeanField, True, 300)]
)
def test_a_sampled_kl_agrees_with_the_truth(guide: type[Guide], mixture: bool, rows: int) -> None:
    """A mixture of one component is a normal distribution, of which the KL is known; 100 draws per datum."""
    normal = MultivariateNormal(torch.zeros(Z_DIM), torch.eye(Z_DIM))
    if mixture:
        normal = MultivariateNormal(torch.tensor([1.0, -0.5]), torch.tensor([[2.0, 0.6], [0.6, 0.5]]))
    of_one = Mixture.of(torch.ones(1), normal.loc.unsqueeze(0), normal.covariance_matrix.unsqueeze(0))
    variant = pair((X_DIM,), Z_DIM, likelihood=Gaussian(), guide=guide, prior=of_one if mixture else None)
    x = torch.randn(rows, X_DIM) * torch.linspace(0.1, 5, rows).unsqueeze(1)  # in no random order

    found = evaluate(variant, x, 1)

    with torch.no_grad():
        q = variant.guide.posterior(x)
        z = q.sample((100,))
        q = q if guide is FullRank else MultivariateNormal(q.mean, q.variance.diag_embed())
        truth, draws = kl_divergence(q, normal), q.log_prob(z) - normal.log_prob(z)
    error = 4 * draws.var(0).mean().sqrt().item() / math.sqrt(100 * rows)
    assert found["kl"].value == pytest.approx(truth.mean().item(), abs=error)
    assert found["kl"].error == pytest.approx(truth.std().item() / math.sqrt(rows), rel=0.1)  # draws add a little
    assert error < 0.1 * truth.mean()
    assert found.kl_per_dim == []


def whitened(rows: int, x_dim: int) -> Tensor:
    """Data whose (biased) covariance is the identity, exactly."""
    z = torch.randn(rows, x_dim)
    return torch.linalg.qr(z - z.mean(0))[0] * math.sqrt(rows)


def test_a_unit_is_active_when_its_mean_varies_by_more_than_a_hundredth() -> None:
    """Exactly: codes are scaled coordinates of white data, in the variance with n - 1."""
    rows = 500
    variances = torch.tensor([0.0, 0.0099, 0.0101, 0.5, 3.0])
    x = whitened(rows, X_DIM) * math.sqrt((rows - 1) / rows)
    variant = pair((X_DIM,), X_DIM, likelihood=Gaussian(), encoder=nn.Identity())
    variant.guide.heads[0].weight.data = variances.sqrt().diag()

    found = evaluate(variant, x, 1)

    assert found["active_units"].value == 3
    assert torch.allclose(encode(variant, x).var(0), variances, atol=1e-12)


SPECTRUM = torch.tensor([2.25, 1.0, 0.5, 0.15, 0.04, 0.01])


def test_a_linear_vae_keeps_the_directions_whose_variance_is_above_the_noise() -> None:
    """Posterior collapse, exactly where ``eigenvalue <= sigma**2``: of 4 units, the others carry nothing."""
    sigma, kept = 0.85, 2
    assert int((sigma**2 < SPECTRUM).sum()) == kept
    rotation = torch.linalg.qr(torch.randn(6, 6))[0]
    x = whitened(1000, 6) * SPECTRUM.sqrt() @ rotation
    linear = {"encoder": nn.Identity(), "decoder": nn.Linear(4, 6)}
    variant = VARIANTS["gaussian_vae"]((6,), 4, sigma=sigma, **linear)
    fit(variant, x, epochs=250, batch_size=250, lr=2e-2, schedule="cosine", validation=None, progress=False)

    found = evaluate(variant, x, 1)

    assert found["active_units"].value == kept
    assert sum(kl > 0.01 for kl in found.kl_per_dim) == kept


# The Frechet distance.


def gaussian_sample(rows: int, loc: Tensor, covariance: Tensor) -> Tensor:
    """A sample whose mean and (unbiased) covariance are these, exactly."""
    white = whitened(rows, len(loc)) * math.sqrt((rows - 1) / rows)
    return loc + white @ torch.linalg.cholesky(covariance).mT


def covariance_of(dim: int) -> Tensor:
    root = torch.randn(dim, dim)
    return root @ root.mT + 0.1 * torch.eye(dim)


@pytest.mark.parametrize("rows", [200, 15], ids=["full_rank", "fewer_rows_than_features"])
def test_the_frechet_distance_is_scipys(rows: int) -> None:
    a, b = torch.randn(rows, 20) @ torch.randn(20, 20), 1.3 * torch.randn(rows + 7, 20) + 0.5
    shifted = (a.mean(0) - b.mean(0)).square().sum().item()
    covariances = [torch.cov(sample.mT) for sample in (a, b)]
    regular = [covariance.numpy() + (0 if rows > 20 else 1e-13) * np.eye(20) for covariance in covariances]
    root = scipy.linalg.sqrtm(regular[0] @ regular[1]).real
    truth = shifted + sum(covariance.trace().item() for covariance in covariances) - 2 * root.trace()

    assert frechet(a, b).item() == pytest.approx(truth, abs=1e-8 if rows > 20 else 1e-4)


def test_the_frechet_distance_of_commuting_covariances_has_its_closed_form() -> None:
    """``|m - n|**2 + sum (sqrt(s_i) - sqrt(t_i))**2`` for variances s and t along the same axes."""
    axes = torch.linalg.qr(torch.randn(4, 4))[0]
    s, t = torch.tensor([4.0, 1.0, 0.3, 1e-4]), torch.tensor([1.0, 9.0, 0.3, 2.0])
    m, n = torch.randn(2, 4)
    a, b = (gaussian_sample(50, loc, axes * spread @ axes.mT) for loc, spread in ((m, s), (n, t)))

    closed = (m - n).square().sum() + (s.sqrt() - t.sqrt()).square().sum()

    assert frechet(a, b).item() == pytest.approx(closed.item(), rel=1e-10)


def test_the_frechet_distance_of_single_numbers_is_that_of_two_normals() -> None:
    a, b = gaussian_sample(30, torch.ones(1), 4 * torch.eye(1)), gaussian_sample(20, torch.zeros(1), torch.eye(1))

    assert frechet(a, b).item() == pytest.approx(2.0, rel=1e-10)


@pytest.mark.parametrize("dim", [1, 3, 30])
def test_the_frechet_distance_is_a_distance(dim: int) -> None:
    """Nothing from a sample to itself, the same both ways, never negative, and its root obeys the triangle."""
    a, b, c = (gaussian_sample(40, torch.randn(dim), covariance_of(dim)) for _ in range(3))

    assert frechet(a, a).item() == pytest.approx(0, abs=1e-10)
    assert frechet(a, b).item() == pytest.approx(frechet(b, a).item(), rel=1e-10)
    assert frechet(a, b) > 0
    assert frechet(a, c).sqrt() <= frechet(a, b).sqrt() + frechet(b, c).sqrt()


def independent(rows: int) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, 4), torch.randn(rows, 4) @ torch.diag(torch.tensor([1.0, 1.5, 0.5, 1.0])) + 0.4


def paired(rows: int) -> tuple[Tensor, Tensor]:
    """Rows that belong together, as data and their reconstructions: their common part is no error."""
    a = torch.randn(rows, 4)
    return a, 0.7 * a + 0.3 + 0.2 * torch.randn(rows, 4)


def of_unequal_size(rows: int) -> tuple[Tensor, Tensor]:
    a, b = independent(rows)
    return a, b[: rows // 2]


def of_one_law(rows: int) -> tuple[Tensor, Tensor]:
    """Where all of the distance is bias, and the delta method states 1.4 times the error."""
    return torch.randn(rows, 15), torch.randn(rows, 15)


SAMPLES: dict[str, Callable[[int], tuple[Tensor, Tensor]]] = {
    "paired": paired,
    "of_unequal_size": of_unequal_size,
    "of_one_law": of_one_law,
}


@pytest.mark.parametrize("draw", SAMPLES.values(), ids=SAMPLES)
def test_the_error_of_the_frechet_distance_is_its_standard_deviation_over_samples(
    draw: Callable[[int], tuple[Tensor, Tensor]],
) -> None:
    """Over 400 repetitions, of which the standard deviation is known within 3.5 %: four of these and 5 % beside."""
    values, errors = torch.tensor([frechet_with_error(*draw(300)) for _ in range(400)]).T

    assert values.std() / errors.square().mean().sqrt() == pytest.approx(1, abs=0.19)


def test_the_influence_of_a_row_is_the_slope_of_the_distance_in_its_weight() -> None:
    """By central differences of the distance, the moments being those of the sample plus what the weight changes."""
    a, b = torch.randn(30, 4), 0.5 + torch.randn(25, 4) @ torch.randn(4, 4)

    def weighted(x: Tensor, row: int, more: float) -> tuple[Tensor, Tensor]:
        mean, apart = x.mean(0), x[row] - x.mean(0)
        biased = torch.cov(x.mT, correction=0)
        change = (1 - more) * biased + more * (1 - more) * torch.outer(apart, apart) - biased
        return mean + more * apart, torch.cov(x.mT) + change

    def distance(of_a: tuple[Tensor, Tensor], of_b: tuple[Tensor, Tensor]) -> float:
        pairs = [gaussian_sample(40, *moments) for moments in (of_a, of_b)]
        return frechet(*pairs).item()

    def slopes(x: Tensor, of: Callable[[float, int], float]) -> Tensor:
        return torch.tensor([(of(1e-5, row) - of(-1e-5, row)) / 2e-5 for row in range(len(x))])

    whole = weighted(a, 0, 0.0), weighted(b, 0, 0.0)
    of_a = slopes(a, lambda more, row: distance(weighted(a, row, more), whole[1]))
    of_b = slopes(b, lambda more, row: distance(whole[0], weighted(b, row, more)))
    both = (of_a.var() / 30 + of_b.var() / 25).item()
    assert _first_order(a, b).item() == pytest.approx(both, rel=1e-6)


def test_the_value_is_that_of_the_whole_samples() -> None:
    a, b = independent(55)

    assert frechet_with_error(a, b)[0] == frechet(a, b).item()


# Nearest neighbours: copies are seen.


@pytest.mark.parametrize("rows", [1, 7, 500])
def test_nearest_is_the_smallest_of_all_distances(rows: int) -> None:
    a, b = torch.randn(30, 2, 3), torch.randn(41, 2, 3)

    brute = [min((one - other).square().sum().sqrt().item() for other in b) for one in a]

    assert nearest(a, b, rows).tolist() == pytest.approx(brute, rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shift", [0.0, 100.0])
def test_a_copy_has_distance_zero(dtype: torch.dtype, shift: float) -> None:
    """Exactly, in any type and far from the origin: rounding may not look like a difference."""
    train = (shift + torch.rand(300, 784)).to(dtype)

    assert nearest(train[:60], train).tolist() == [0.0] * 60


class Memory(nn.Module):
    """A prior that hands out training data."""

    def __init__(self, train: Tensor) -> None:
        super().__init__()
        self.train_data = train

    def forward(self) -> dist.Empirical:
        return dist.Empirical(self.train_data, torch.zeros(len(self.train_data)))


def test_samples_that_copy_the_training_data_are_seen() -> None:
    """A decoder that gives codes back, and a density that remembers them: their distance is 0, that of new data not."""
    own, parrot = partial(PointMass, heads=[nn.Identity()]), nn.Linear(3, 3, bias=False)
    nn.init.eye_(parrot.weight)
    likelihood = LearnedSigma(scale=1.001 * math.exp(-6), floor=-6.0)
    variant = pair((3,), 3, likelihood=likelihood, guide=own, encoder=nn.Identity(), decoder=parrot)
    x, train = torch.randn(200, 3), torch.randn(300, 3)

    found = evaluate(variant, x, train=train, ex_post=Memory(train), features=Features("x", lambda y: y))

    noise = variant.model.likelihood.scale.item() * math.sqrt(3)  # samples of a table carry the noise of p(x | z)
    assert found["nearest_ex_post"].value < noise < 0.1 * found["nearest_held_out"].value
    assert found["nearest_held_out"].value == pytest.approx(nearest(x, train).mean().item(), rel=1e-10)


def test_copied_pictures_have_distance_zero() -> None:
    """Of images, the mean of p(x | z) is compared, so that nothing is left between a copy and what it copies."""
    shape = (1, 8, 8)
    own, parrot = partial(PointMass, heads=[nn.Identity()]), nn.Linear(64, 64, bias=False)
    nn.init.eye_(parrot.weight)
    variant = pair(shape, 64, likelihood=Gaussian(), guide=own, encoder=nn.Flatten(), decoder=parrot)
    x, train = torch.rand(30, *shape), torch.rand(40, *shape)

    found = evaluate(variant, x, train=train, ex_post=Memory(train.flatten(1)))

    assert found["nearest_ex_post"] == (0.0, 0.0, "")
    assert found["nearest_held_out"].value > 1
    assert found["rmse"].value == pytest.approx(0, abs=1e-12)
    assert found["frechet_reconstructions"].value == pytest.approx(0, abs=1e-6)  # roots of the rounding of 0


def test_the_floor_is_the_distance_of_training_data_of_the_same_number() -> None:
    """In the space of the principal components of the training data, unless another is given."""
    variant, x, train = VARIANTS["rae"]((X_DIM,), Z_DIM), torch.randn(ROWS, X_DIM), torch.randn(90, X_DIM)
    order = torch.randperm(90, generator=torch.Generator().manual_seed(7))[:ROWS]

    found = evaluate(variant, x, train=train, seed=7)

    space = principal_components(train)
    value, error = frechet_with_error(space.apply(x), space.apply(train[order]))
    assert found["frechet_floor"].value == pytest.approx(value, rel=1e-10)
    assert found["frechet_floor"].error == pytest.approx(error, rel=1e-8)
    value, _ = frechet_with_error(space.apply(x), space.apply(reconstruct(variant, x)))
    assert found["frechet_reconstructions"].value == pytest.approx(value, rel=1e-10)
    assert found.features == space.name


def test_figures_of_images_say_that_they_are_of_means_without_noise() -> None:
    x = torch.rand(20, 1, 8, 8)
    mixture = Mixture.of(torch.ones(1), torch.zeros(1, Z_DIM), torch.eye(Z_DIM).unsqueeze(0))
    image = str(evaluate(VARIANTS["sigma_vae"]((1, 8, 8), Z_DIM), x, 3, train=x, ex_post=mixture)).splitlines()
    table = str(evaluate(VARIANTS["sigma_vae"]((64,), Z_DIM), x.flatten(1), 3, train=x.flatten(1))).splitlines()

    def said(lines: list[str]) -> set[str]:
        return {line[:15].strip() for line in lines if "(means, no noise)" in line}

    assert said(image) == {"F rec.", "F interp.", "F prior", "F ex post", "near ex post"}
    assert said(table) == {"F rec.", "F interp."}


def test_a_mean_with_a_broken_datum_is_left_empty_and_names_it() -> None:
    values = torch.arange(9.0)
    assert mean_over_data(values) == (4.0, pytest.approx(math.sqrt(7.5 / 9)), "")
    for broken in (math.nan, -math.inf):
        values[4] = broken
        assert mean_over_data(values) == (None, None, "not finite in 1 of 9 rows: row 4")
    assert (
        mean_over_data(torch.full((9,), math.nan)).reason == "not finite in 9 of 9 rows: rows 0, 1, 2, 3, 4 and 4 more"
    )


def test_pictures_stand_for_x_in_what_is_compared_as_pictures() -> None:
    variant, grey = VARIANTS["bernoulli_vae"]((X_DIM,), Z_DIM), torch.rand(ROWS, X_DIM)
    x = (grey > 0.5).double()

    found = evaluate(variant, x, 3, train=x, pictures=grey)

    space = principal_components(x)
    floor = evaluate(variant, x, 3, train=x)["frechet_floor"]
    assert found["nearest_held_out"].value == pytest.approx(nearest(grey, x).mean().item(), rel=1e-10)
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(0))
    assert found["frechet_floor"].value == pytest.approx(frechet(space.apply(grey), space.apply(x[order])).item())
    assert floor.value == pytest.approx(0, abs=1e-10)


# Interpolation.


@pytest.mark.parametrize("t", [0.0, 0.25, 0.5, 1.0])
def test_spherical_interpolation_keeps_the_norm_and_turns_by_a_share_of_the_angle(t: float) -> None:
    a = torch.nn.functional.normalize(torch.randn(50, 64), dim=-1) * 3
    b = torch.nn.functional.normalize(torch.randn(50, 64), dim=-1) * 3

    between = slerp(a, b, t)

    def angle(c: Tensor, d: Tensor) -> Tensor:
        return torch.arccos(((c * d).sum(-1) / 9).clamp(-1, 1))

    assert torch.allclose(between.norm(dim=-1), torch.full((50,), 3.0), rtol=1e-10)
    assert torch.allclose(angle(a, between), t * angle(a, b), rtol=0, atol=1e-6)  # arccos near 1 has 8 digits


def test_the_ends_of_an_interpolation_are_its_ends() -> None:
    a, b = torch.randn(20, 5), 4 * torch.randn(20, 5)

    assert torch.allclose(slerp(a, b, 0.0), a, rtol=1e-12)
    assert torch.allclose(slerp(a, b, 1.0), b, rtol=1e-12)


PARALLEL: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "equal": lambda a: (a, a.clone()),
    "parallel": lambda a: (a, 3 * a),
    "nearly_equal": lambda a: (a, a * (1 + 1e-9 * torch.randn_like(a))),
    "opposite": lambda a: (a, -a),
    "one_at_the_origin": lambda a: (a, torch.zeros_like(a)),
    "both_at_the_origin": lambda a: (torch.zeros_like(a), torch.zeros_like(a)),
}


@pytest.mark.parametrize("rows", [2, 3, 4, 10, 101])
def test_midpoints_are_of_distinct_pairs_of_distinct_data(rows: int) -> None:
    """As many as there are rows, but for two rows, which are one pair."""
    first, last = pairs(torch.arange(rows).double(), seed=3)
    found = {tuple(sorted(ends)) for ends in zip(first.tolist(), last.tolist(), strict=True)}

    assert len(first) == rows
    assert len(found) == min(rows, rows * (rows - 1) // 2)
    assert bool((first != last).all())
    assert {_pair(index) for index in range(rows * (rows - 1) // 2)} == {(i, j) for i in range(rows) for j in range(i)}


def test_interpolations_are_judged_on_those_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Tensor] = []

    def spy(*arguments: Any) -> Tensor:
        made.append(interpolate(*arguments))
        return made[-1]

    monkeypatch.setattr("ppl_vae.evaluation.metrics.interpolate", spy)
    evaluate(VARIANTS["gaussian_vae"]((X_DIM,), Z_DIM), torch.randn(60, X_DIM), 3)

    assert len(torch.unique(made[0], dim=0)) == 60  # an even number of rows


@pytest.mark.parametrize("ends", PARALLEL.values(), ids=PARALLEL)
def test_between_parallel_codes_interpolation_is_linear(ends: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
    """Also where there is no angle: from a code to itself, to its opposite, and from the origin."""
    a, b = ends(torch.randn(20, 5))

    for t in (0.0, 0.3, 0.5, 1.0):
        assert torch.allclose(slerp(a, b, t), (1 - t) * a + t * b, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["sigma_vae", "rae"])
def test_interpolated_data_start_and_end_at_reconstructions(name: str) -> None:
    variant, a, b = VARIANTS[name]((X_DIM,), Z_DIM), torch.randn(20, X_DIM), torch.randn(20, X_DIM)

    assert torch.allclose(interpolate(variant, a, b, 0.0), reconstruct(variant, a), rtol=0, atol=1e-10)
    assert torch.allclose(interpolate(variant, a, b, 1.0), reconstruct(variant, b), rtol=0, atol=1e-10)


# Feature spaces.


def labelled(rows: int = 200) -> tuple[Tensor, Tensor]:
    """Three classes that a straight line tells apart, under labels that are no counting numbers."""
    labels = torch.tensor([3, 7, 11])[torch.arange(rows) % 3]
    return labels.unsqueeze(1) / 2 + 0.3 * torch.randn(rows, X_DIM), labels


def test_principal_components_keep_distances() -> None:
    """All of them are a rotation: the Frechet distance is that of the data; the first ones have the most variance."""
    a, b = torch.randn(60, X_DIM) @ torch.randn(X_DIM, X_DIM), torch.randn(70, X_DIM)

    whole, two = principal_components(a), principal_components(a, 2)

    assert frechet(whole.apply(a), whole.apply(b)).item() == pytest.approx(frechet(a, b).item(), rel=1e-8)
    eigenvalues = torch.linalg.eigvalsh(torch.cov(a.mT)).flip(0)
    assert torch.allclose(two.apply(a).var(0), eigenvalues[:2], rtol=1e-8)
    assert (whole.name, two.name) == ("5 principal components", "2 principal components")


def test_a_classifier_repeats_by_its_seed() -> None:
    x, labels = labelled()
    drawn = torch.get_rng_state()

    one, again, other = (classifier(x, labels, width=8, epochs=2, seed=seed).apply(x) for seed in (0, 0, 1))

    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert one.shape == (200, 8)
    assert torch.equal(torch.get_rng_state(), drawn)


def test_a_classifier_tells_the_classes_apart() -> None:
    x, labels = labelled()

    space = classifier(x, labels)

    right = float(space.name.split("(")[1].split("%")[0])
    assert right > 95
    features = space.apply(x)
    centres = torch.stack([features[labels == label].mean(0) for label in (3, 7, 11)])
    assert (torch.cdist(features, centres).argmin(1) == (labels - 3) // 4).double().mean() > 0.95


CHOICES: dict[str, tuple[str | None, Tensor | None, str]] = {
    "labels": (None, labelled()[1], "32 features of a classifier"),
    "no_labels": (None, None, "5 principal components"),
    "one_class": (None, torch.zeros(200), "5 principal components"),
    "pca_despite_labels": ("pca", labelled()[1], "5 principal components"),
    "classifier": ("classifier", labelled()[1], "32 features of a classifier"),
}


@pytest.mark.parametrize(("choice", "labels", "name"), CHOICES.values(), ids=CHOICES)
def test_the_feature_space_is_chosen_by_word_or_by_labels(choice: str | None, labels: Tensor | None, name: str) -> None:
    space = features_for(labelled()[0], labels, choice)

    assert space.name.startswith(name)
    assert space.distance == "Frechet distance"


def test_only_inceptions_features_give_a_fid() -> None:
    assert Features("Inception's 2048 pool features", lambda x: x).distance == "FID"


def test_a_classifier_without_labels_is_refused() -> None:
    with pytest.raises(ValueError, match="'classifier' needs labels, and these data have none: use 'pca'"):
        features_for(labelled()[0], None, "classifier")


@pytest.mark.parametrize("word", ["inceptoin", "weights.pt", "missing.onnx"])
def test_an_unknown_choice_of_features_is_refused(word: str) -> None:
    with pytest.raises(ValueError, match=rf"existing \.onnx file, got '{word}'"):
        features_for(labelled()[0], None, word)


def test_a_network_in_onnx_asks_for_onnxruntime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is not installed: an entry None in sys.modules is a module that cannot be found."""
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    network = tmp_path / "network.onnx"
    network.write_bytes(b"")

    for choose in (from_file, partial(features_for, labelled()[0], None)):
        with pytest.raises(ValueError, match=r"needs onnxruntime: pip install 'ppl_vae\[onnx\]'"):
            choose(str(network))


def test_inception_asks_for_torch_fidelity(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torch_fidelity", "torch_fidelity.feature_extractor_inceptionv3"):
        monkeypatch.setitem(sys.modules, name, None)

    for choose in (inception, partial(features_for, labelled()[0], None, "inception")):
        with pytest.raises(ValueError, match=r"FID needs torch-fidelity: pip install 'ppl_vae\[fid\]'"):
            choose()


def test_a_network_in_onnx_is_shown_the_data_and_its_output_taken_flat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stand-in for onnxruntime, whose network doubles what it is shown."""

    class Session:
        def __init__(self, path: str, providers: list[str]) -> None:
            assert Path(path).is_file()

        def get_inputs(self) -> list[Any]:
            return [type("Input", (), {"name": "pixels"})]

        def run(self, outputs: None, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
            return [2 * inputs["pixels"]]

    monkeypatch.setitem(sys.modules, "onnxruntime", type("Runtime", (), {"InferenceSession": Session}))
    (tmp_path / "network.onnx").write_bytes(b"")
    x = torch.randn(700, 2, 3, 4)

    space = from_file(tmp_path / "network.onnx")

    assert torch.equal(space.apply(x), 2 * x.float().flatten(1))
    assert space.name == "the network network.onnx"


# What cannot be judged.

REFUSED: dict[str, tuple[Tensor, str]] = {
    "one_row": (torch.zeros(1, X_DIM), "at least 2 data for its standard errors, got 1"),
    "another_shape": (torch.zeros(9, 4), r"a datum has shape \[4\], the model wants \[5\]"),
    "nan": (torch.full((9, X_DIM), math.nan), "holds nan in row 0"),
    "outside_the_support": (torch.full((9, X_DIM), 0.5), "outside the support of Bernoulli"),
}


@pytest.mark.parametrize(("x", "message"), REFUSED.values(), ids=REFUSED)
def test_data_that_cannot_be_judged_are_refused(x: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(VARIANTS["bernoulli_vae"]((X_DIM,), Z_DIM), x)


def test_codes_on_opposite_sides_meet_at_no_length_that_neither_has() -> None:
    """Nearly antipodal, of unlike lengths: the direction in between is one of either, the length their mean."""
    a, b = torch.tensor([[2.0, 0.0]]), torch.tensor([[-1.0, 0.01]])

    assert slerp(a, b, 0.5).norm().item() == pytest.approx((a.norm() + b.norm()).item() / 2, rel=1e-9)
    assert torch.allclose(slerp(a, -a, 0.5), torch.zeros(1, 2), atol=1e-12)  # opposite: a straight line


# Rows: which of them, and those without a number.


class Walled(dist.Normal):
    """A normal law that has no density beyond 3, though it does not say so."""

    def log_prob(self, value: Tensor) -> Tensor:
        return super().log_prob(value).where(value.abs() <= 3, -math.inf)


class Wall(nn.Module):
    """x | z ~ Walled(loc, 1)."""

    outputs = 1

    def forward(self, loc: Tensor) -> Any:
        return Walled(loc, 1.0)


def test_rows_without_a_finite_bound_are_named_and_the_mean_is_empty() -> None:
    """A mean of the others would be of easier data; a mean of all would be -inf, or NaN."""
    x = torch.rand(12, X_DIM)
    x[3], x[7, 0] = 5.0, -4.0
    found = evaluate(pair((X_DIM,), Z_DIM, likelihood=Wall()), x, 10, features=Features("none", lambda y: y.flatten(1)))

    for name in ("bound", "importance_weighted"):
        assert str(found[name]) == "not finite in 2 of 12 rows: rows 3, 7"
        assert found.as_row()[name] is None
    assert [row for row, bound in enumerate(found.bound_per_datum) if not math.isfinite(bound)] == [3, 7]
    assert "nan" not in str(found)


def test_rows_that_were_trained_on_are_said() -> None:
    x, train = torch.randn(30, X_DIM), torch.randn(60, X_DIM)
    x[4:11] = train[20:27]
    x[0, 0] = 0.0
    train[0] = x[0]
    x[0, 0] = -0.0  # the same number
    vae = VARIANTS["sigma_vae"]((X_DIM,), Z_DIM)

    assert evaluate(vae, x, 2).notes == evaluate(vae, x[11:], 2, train=train).notes == []
    assert evaluate(vae, x, 2, train=train).notes == [
        "8 of 30 held-out rows also stand among the training rows: their scores are too good"
    ]
    assert "8 of 30 held-out rows" in str(evaluate(vae, x, 2, train=train))


def test_repeats_of_data_with_few_values_are_said_to_be_usual() -> None:
    """Of 3 bits there are 8 rows: each of them stands in both parts."""
    x, train = torch.randint(2, (30, 3)).double(), torch.randint(2, (400, 3)).double()

    assert evaluate(VARIANTS["bernoulli_vae"]((3,), 1), x, 2, train=train).notes == [
        "30 of 30 held-out rows also stand among the training rows: 98% of the training rows repeat each other too, as "
        "in data with few distinct values"
    ]


def test_distances_take_rows_at_random_where_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of rows stored class by class the first ones are of one class, and far from the training data."""
    monkeypatch.setattr("ppl_vae.evaluation.metrics.MOST", 400)
    classes = 10 * torch.randn(10, X_DIM)
    x = classes.repeat_interleave(200, 0) + torch.randn(2000, X_DIM)
    train = classes[torch.randint(10, (2000,))] + torch.randn(2000, X_DIM)
    vae = VARIANTS["sigma_vae"]((X_DIM,), Z_DIM)
    same = Features("x", lambda y: y)
    stored, mixed = (evaluate(vae, rows, 2, train=train, features=same) for rows in (x, x[torch.randperm(2000)]))
    first = frechet(x[:400], train[:400])

    for found in (stored, mixed):
        value, error = found["frechet_floor"].value, found["frechet_floor"].error
        assert value is not None
        assert error is not None
        assert value < 0.1 * float(first)
    a, b = stored["frechet_floor"], mixed["frechet_floor"]
    assert abs((a.value or 0.0) - (b.value or 0.0)) < 4 * math.hypot(a.error or 0.0, b.error or 0.0)


def test_streamed_training_data_are_taken_in_part_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """README's own calls, on data too large to hold."""
    monkeypatch.setattr("ppl_vae.data.items.RESIDENT", 1)
    monkeypatch.setattr("ppl_vae.data.items.PART_NUMBERS", 30 * X_DIM)
    data = prepare(torch.utils.data.TensorDataset(torch.randn(100, X_DIM)))
    vae = VARIANTS["sigma_vae"](data.x_shape, Z_DIM)
    mixture = ex_post.fit(vae, data.train, components=1)

    for train in (data.train, data):
        found = evaluate(vae, data.test, 2, train=train, ex_post=mixture)
        assert found.notes == ["train: 30 of 80 rows, drawn at random"]
    assert encode(vae, data.train).shape == (80, Z_DIM)


def test_data_that_are_binary_draws_bring_their_pictures() -> None:
    data = prepare(torch.rand(60, 1, 4, 4), binarize="static")
    vae = VARIANTS["bernoulli_vae"](data.x_shape, Z_DIM)

    assert evaluate(vae, data, 2).numbers == evaluate(vae, data.test, 2, pictures=data.pictures).numbers
