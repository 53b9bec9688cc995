"""Codes of categories: sums over every sequence, integrals over a single z, and what has no meaning between names."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.special
import torch
from torch import Tensor, nn

from ppl_vae import Variant, bounds, check, compare, convert, fit, load, pair, prepare, reconstruct, sample, save
from ppl_vae.diagnosis.predictive import prior_predictive
from ppl_vae.elbo.reading import Draws
from ppl_vae.guides import Laplace, MeanField, OneHot
from ppl_vae.guides.networks import width_of
from ppl_vae.models import Bernoulli, Categorical, JacobianNorm
from ppl_vae.models.likelihoods import is_nominal, mean_or_mode
from ppl_vae.variant import densities, evaluating

LEVELS, LENGTH = 3, 4
SEQUENCES = torch.tensor(list(itertools.product(range(LEVELS), repeat=LENGTH)), dtype=torch.float64)


def built(z_dim: int = 1, **parts: Any) -> Variant:
    return pair((LENGTH,), z_dim, likelihood=Categorical(LEVELS), width=8, **parts)


# The density.


def test_the_log_density_is_a_softmax_by_hand() -> None:
    logits, x = torch.randn(LEVELS, 5, LENGTH), torch.randint(LEVELS, (5, LENGTH)).double()

    found = Categorical(LEVELS)(*logits).log_prob(x)

    table = scipy.special.log_softmax(logits.numpy(), axis=0)
    expected = np.take_along_axis(table, x.long().numpy()[None], axis=0)[0]
    assert np.allclose(found.numpy(), expected, rtol=0, atol=1e-12)


def test_many_draws_are_scored_as_each_alone() -> None:
    logits, x = torch.randn(LEVELS, 3, 1, 5), torch.randint(LEVELS, (4, 5)).double()

    found = Categorical(LEVELS)(*logits).log_prob(x)

    alone = [Categorical(LEVELS)(*logits[:, i, 0]).log_prob(x[j]) for i in range(3) for j in range(4)]
    assert torch.allclose(found.reshape(12, 5), torch.stack(alone), rtol=0, atol=1e-14)


def test_the_probabilities_of_every_sequence_sum_to_one() -> None:
    variant = built(z_dim=2)
    with evaluating(variant):
        log_p = variant.model.x_given_z(torch.randn(7, 1, 2)).log_prob(SEQUENCES)

    assert log_p.shape == (7, LEVELS**LENGTH)
    assert torch.allclose(log_p.logsumexp(1), torch.zeros(7), rtol=0, atol=1e-12)


def test_the_classes_of_a_decoder_come_first_like_channels() -> None:
    """The decoder of a sequence ends in a convolution [rows, levels, length]."""
    decoder = nn.Sequential(nn.Linear(2, 5 * LENGTH), nn.Unflatten(1, (5, LENGTH)), nn.Conv1d(5, LEVELS, 3, padding=1))
    variant, z = built(z_dim=2, decoder=decoder), torch.randn(6, 2)
    with evaluating(variant):
        law: Any = variant.model.x_given_z(z)
        logits = decoder(z)

    assert torch.allclose(law.base_dist.logits, logits.log_softmax(1).mT, rtol=0, atol=1e-12)


# Bounds.


def constant_pair(logits: Tensor) -> Variant:
    """A pair whose decoder ignores z and gives logits [levels, length], and whose q(z | x) is p(z)."""
    networks = {"decoder": nn.Linear(1, LEVELS * LENGTH), "encoder": nn.Linear(LENGTH, 1)}
    variant = pair((LENGTH,), 1, likelihood=Categorical(LEVELS), **networks)
    with torch.no_grad():
        for half in variant[:2]:
            for parameter in half.parameters():
                parameter.zero_()
        variant.model.decoder.bias.copy_(logits.flatten())  # type: ignore[union-attr,operator]
    return variant


def test_the_bound_of_a_known_source_is_minus_its_entropy_and_the_divergence_of_the_model() -> None:
    """For data without z, ``E bound = -sum_t H(p_t) - sum_t KL(p_t || q_t)``, and it is largest for q = p."""
    log_p, log_q = (torch.randn(LEVELS, LENGTH).log_softmax(0) for _ in range(2))
    source = log_p[SEQUENCES.long(), torch.arange(LENGTH)].sum(1).exp()
    entropy = -(log_p.exp() * log_p).sum()
    divergence = (log_p.exp() * (log_p - log_q)).sum()

    exact, wrong = (source @ bounds(constant_pair(logits), SEQUENCES, 3).elbo for logits in (log_p, log_q))

    assert float(exact) == pytest.approx(-float(entropy), rel=1e-12)
    assert float(wrong) == pytest.approx(-float(entropy + divergence), rel=1e-12)
    assert wrong < exact


def by_quadrature(variant: Variant) -> Tensor:
    """``log p(x)`` of every sequence by Gauss and Hermite, for a z of one coordinate."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    with evaluating(variant):
        log_likelihood = variant.model.x_given_z(torch.tensor(nodes).reshape(-1, 1, 1)).log_prob(SEQUENCES)
    log_weights = torch.tensor(weights / weights.sum()).log()
    return torch.logsumexp(log_weights[:, None] + log_likelihood, 0)


def test_the_weighted_bound_is_the_integral_over_z() -> None:
    """The mean of the weights is an unbiased estimate of p(x). The ELBO is below log p(x).

    The largest of 81 errors is within 5 standard errors.
    """
    variant = built(decoder=nn.Linear(1, LEVELS * LENGTH))
    log_p = by_quadrature(variant)
    assert float(log_p.exp().sum()) == pytest.approx(1.0, abs=1e-10)

    with evaluating(variant):
        drawn: Draws = densities(variant, SEQUENCES, 1000)
    weight = (drawn.log_weight - log_p).exp()  # [draws, sequences], each of mean 1
    error = weight.std(0) / math.sqrt(len(weight))
    assert float(((weight.mean(0) - 1).abs() / error).max()) < 5
    found = bounds(variant, SEQUENCES, 1000)
    assert torch.all((found.importance_weighted - log_p).abs() < 5 * error)
    assert torch.all(found.elbo < log_p + 5 * found.elbo_error)


# The encoder.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_hot_is_exact(dtype: torch.dtype) -> None:
    x = torch.randint(LEVELS, (6, 2, 5))

    found = OneHot(LEVELS)(x.to(dtype))

    assert found.dtype == dtype
    assert torch.equal(found, torch.nn.functional.one_hot(x, LEVELS).movedim(-1, 1).to(dtype))


@pytest.mark.parametrize("shape", [(LENGTH,), (5, 4), (2, 9, 8)])
def test_the_default_encoder_sees_one_number_per_category(shape: tuple[int, ...]) -> None:
    variant = pair(shape, 2, likelihood=Categorical(LEVELS), width=8)
    first = next(layer for layer in variant.guide.encoder.modules() if isinstance(layer, nn.Linear | nn.Conv2d))
    inputs = LEVELS * (shape[0] if len(shape) == 3 else math.prod(shape))

    assert first.weight.shape[1] == inputs  # an image is convolved, with the categories of a channel as channels
    assert isinstance(first, nn.Conv2d) == (len(shape) == 3)
    assert check(variant, torch.randint(LEVELS, (6, *shape)).double()) == []


def test_the_codes_of_an_encoder_of_ones_own_stay_as_they_are() -> None:
    network = nn.Sequential(OneHot(LEVELS), nn.Flatten(), nn.Linear(LEVELS * LENGTH, 8))

    assert built(encoder=network).guide.encoder is network
    assert width_of(network, (LENGTH,)) == 8
    assert built(encoder=nn.Linear(LENGTH, 8)).guide.encoder.weight.shape == (8, LENGTH)


# Training.


def test_a_step_is_a_graph_and_codes_carry_what_coordinates_share() -> None:
    """All coordinates are one of three equally likely categories, so log p(x) is -log 3, and -4 log 3 without z."""
    x = torch.randint(LEVELS, (300, 1)).double().expand(-1, LENGTH).contiguous()
    variant = pair((LENGTH,), 2, likelihood=Categorical(LEVELS), width=32)

    trained = fit(variant, x, epochs=40, batch_size=50, lr=1e-2, progress=False)

    assert trained.settings["backend"] == "fx"
    assert float(bounds(trained.variant, x, 100).elbo.mean()) > -2 * math.log(3)
    assert float((reconstruct(trained.variant, x) == x).double().mean()) > 0.99


def test_a_checkpoint_gives_the_same_densities(tmp_path: Path) -> None:
    variant = built(z_dim=2)

    again = load(save(tmp_path / "pair", variant))

    assert again.model.likelihood.levels == LEVELS
    assert torch.equal(bounds(again, SEQUENCES, 3).elbo, bounds(variant, SEQUENCES, 3).elbo)


# What is refused.

CODES = r"pass whole numbers 0 to 2 with scale='none', such as pandas' \.cat\.codes"
WRONG: dict[str, tuple[float, str]] = {
    "fraction": (1.5, rf"x holds 1\.5 .*outside the support of Categorical.*{CODES}$"),
    "missing": (-1.0, rf"x holds -1 .*{CODES}, in which -1 stands for a missing value$"),
    "too_large": (6.0, rf"x holds 6 .*{CODES}, or set levels to 7$"),
}


@pytest.mark.parametrize(("value", "line"), WRONG.values(), ids=WRONG)
def test_what_is_no_code_is_refused_in_a_line(value: float, line: str) -> None:
    x = SEQUENCES.clone()
    x[5, 2] = value

    with pytest.raises(ValueError, match=line):
        fit(built(), x, epochs=1, progress=False)
    with pytest.raises(ValueError, match=line):
        bounds_checked(built(), x)


def bounds_checked(variant: Variant, x: Tensor) -> None:
    """``check`` answers with the line that ``fit`` raises."""
    (failure,) = check(variant, x)
    raise ValueError(failure)


@pytest.mark.parametrize("scale", ["unit", "standardize", "auto"])
def test_scaled_codes_are_refused_with_the_remedy(scale: Any) -> None:
    data = prepare(SEQUENCES.numpy(), scale=scale)

    with pytest.raises(ValueError, match=r"x itself, in its own units, lies in the support: use scale='none'"):
        fit(built(), data, epochs=1, progress=False)


@pytest.mark.parametrize("levels", [1, 0, -3, 2.0, True, "4"])
@pytest.mark.parametrize("part", [Categorical, OneHot])
def test_levels_are_a_whole_number_of_at_least_two(part: Callable[[Any], nn.Module], levels: Any) -> None:
    with pytest.raises(ValueError, match="levels must be a whole number of at least 2, got"):
        part(levels)


def test_what_needs_a_mean_is_refused_with_the_reason() -> None:
    line = "the Jacobian is that of the mean.*categories have no mean: use no JacobianNorm beside Categorical"
    variant = built()

    with pytest.raises(ValueError, match=line):
        variant.model.jacobian(torch.zeros(2, 1))
    with pytest.raises(ValueError, match=line):
        fit(built(penalties=[JacobianNorm()]), SEQUENCES, epochs=1, progress=False)
    proposing = variant._replace(guide=Laplace(convert(variant).guide, variant.model))
    with pytest.raises(ValueError, match="the Laplace proposal needs a mean of Categorical, which has none: train"):
        bounds(proposing, SEQUENCES, 2)


# In the place of a mean.


def test_only_categories_are_nominal() -> None:
    law = Categorical(LEVELS)(*torch.randn(LEVELS, 5, LENGTH))

    assert is_nominal(law)
    assert is_nominal(law.to_event(1))
    assert not is_nominal(Bernoulli()(torch.zeros(5)))
    assert torch.equal(mean_or_mode(law.to_event(1), torch.zeros(())), law.logits.argmax(-1).double())
    assert torch.equal(mean_or_mode(Bernoulli()(torch.zeros(5)), torch.zeros(())), torch.full((5,), 0.5))


def test_samples_are_codes_and_their_means_are_modes() -> None:
    variant = constant_pair(torch.tensor([[0.0] * LENGTH, [1.0] * LENGTH, [0.5] * LENGTH]))

    drawn, modes = sample(variant, 200), sample(variant, 5, mean=True)

    assert drawn.dtype == torch.float64
    assert set(drawn.unique().tolist()) == {0.0, 1.0, 2.0}
    assert torch.equal(modes, torch.ones(5, LENGTH))


def test_predictive_statistics_do_not_depend_on_the_numbers_of_the_categories() -> None:
    x, numbers = SEQUENCES[torch.randint(len(SEQUENCES), (30,))], torch.tensor([2.0, 0.0, 1.0])
    variant = built()

    first, second = (prior_predictive(variant, y, replicates=19) for y in (x, numbers[x.long()]))

    assert [one.statistic for one in first] == [one.statistic for one in second]
    assert [one.observed for one in first] == pytest.approx([one.observed for one in second], rel=1e-12)
    by_name = {one.statistic: one.observed for one in first}
    shares = torch.bincount(x.flatten().long()).double() / x.numel()
    assert by_name["entropy of the categories, nats"] == pytest.approx(-float((shares * shares.log()).sum()), rel=1e-12)
    different = [len(set(row)) for row in x.tolist()]
    assert by_name["different categories per datum"] == pytest.approx(np.mean(different), rel=1e-12)
    commonest = [max(row.count(code) for code in row) / LENGTH for row in x.tolist()]
    assert by_name["share of a datum's most common category"] == pytest.approx(np.mean(commonest), rel=1e-12)


# A study.


def contestant(x_shape: tuple[int, ...], z_dim: int) -> Variant:
    return pair(x_shape, z_dim, likelihood=Categorical(LEVELS), guide=MeanField, width=8)


def test_categories_are_compared_with_a_page_and_without_distances(tmp_path: Path) -> None:
    x = torch.randint(LEVELS, (60, LENGTH)).double()
    x[:, 1] = 2.0  # a constant column
    data = prepare(x.numpy(), scale="none")

    found = compare({"ours": contestant}, data, tmp_path / "out", z_dim=2, components=1, epochs=1, progress=False)

    (row,) = found.rows
    assert row.reason == ""
    assert row.numbers["bits_per_dim"].value is not None
    assert row.numbers["bound_ex_post"].value is not None
    assert {name for name, number in row.numbers.items() if number.reason == "categories"} == {
        *("rmse", "frechet_floor", "frechet_reconstructions", "frechet_prior", "frechet_ex_post"),
        *("frechet_interpolations", "nearest_held_out", "nearest_ex_post"),
    }
    assert "categories" in (tmp_path / "out" / "report.html").read_text()


def test_a_study_never_draws_codes_from_scaled_ones(tmp_path: Path) -> None:
    """Codes on the unit scale look like grey values, of which other likelihoods get Bernoulli draws."""
    data = prepare(torch.randint(LEVELS, (60, LENGTH)).double().numpy(), scale="unit")

    found = compare({"ours": contestant}, data, tmp_path / "out", epochs=1, progress=False)

    (row,) = found.rows
    assert "pass whole numbers 0 to 2 with scale='none'" in row.reason
