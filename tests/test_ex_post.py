"""The ex-post mixture: what is fitted, in which units, on which codes, and what it is good for as a prior."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from ppl_vae import VARIANTS, Variant, bounds, encode, ex_post, pair, prepare, sample, with_prior
from ppl_vae.guides import FullRank, Guide, MeanField, PointMass
from ppl_vae.models import Gaussian, LinearGaussian

REGULARISATION = 1e-6  # what scikit-learn adds to a covariance of standardised codes
SPREADS = {"alike": (1.0, 1.0, 1.0), "apart": (1e-3, 1.0, 1e3)}

every_spread = pytest.mark.parametrize("spread", SPREADS.values(), ids=SPREADS)


def coded(x_dim: int) -> Variant:
    """An autoencoder whose code is x itself, and whose decoder gives it back."""
    own, parrot = partial(PointMass, heads=[nn.Identity()]), nn.Linear(x_dim, x_dim, bias=False)
    nn.init.eye_(parrot.weight)
    return pair((x_dim,), x_dim, likelihood=Gaussian(), guide=own, encoder=nn.Identity(), decoder=parrot)


def correlated(rows: int, spread: tuple[float, ...], seed: int = 1) -> Tensor:
    """Codes with a covariance that is no diagonal, each coordinate at a scale and a place of its own."""
    stream = torch.Generator().manual_seed(seed)
    mixing = torch.tensor([[1.0, 0.8, -0.3], [0.0, 0.6, 0.5], [0.0, 0.0, 0.7]])
    z = torch.randn(rows, 3, generator=stream) @ mixing
    return (z + torch.tensor([3.0, -1.0, 0.5])) * torch.tensor(spread)


def clusters(count: int, rows: int, z_dim: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Codes of ``count`` clusters 12 standard deviations apart, their centres, and which cluster each row is of."""
    stream = torch.Generator().manual_seed(2)
    turn = 2 * math.pi * torch.arange(count) / count
    centres = 6 / math.sin(math.pi / max(count, 2)) * torch.stack([turn.cos(), turn.sin()], -1)
    centres = torch.cat([centres, torch.zeros(count, z_dim - 2)], 1)
    labels = torch.arange(rows) % (count + 1) % count  # the first one twice as large
    return centres[labels] + torch.randn(rows, z_dim, generator=stream), centres, labels


# One component is the normal distribution of the codes.


@every_spread
def test_one_component_has_the_mean_and_the_covariance_of_the_codes(spread: tuple[float, ...]) -> None:
    """The biased covariance; scikit-learn's 1e-6 is added to standardised codes, so to each variance its own share."""
    z = correlated(300, spread)

    prior = ex_post.fit(coded(3), z, components=1)()

    covariance = torch.cov(z.mT, correction=0)
    regularised = covariance + REGULARISATION * covariance.diagonal().diag()
    unit = torch.tensor(spread)
    assert torch.allclose(prior.mean / unit, z.mean(0) / unit, rtol=1e-10)
    found = prior.component_distribution.covariance_matrix[0]
    assert torch.allclose(found / unit / unit[:, None], regularised / unit / unit[:, None], rtol=1e-10, atol=1e-12)
    z_law = MultivariateNormal(z.mean(0), regularised)
    assert torch.allclose(prior.log_prob(z[:9]), z_law.log_prob(z[:9]), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("components", "spread"), [(1, SPREADS["apart"]), (3, SPREADS["alike"]), (3, SPREADS["apart"])]
)
def test_its_log_density_is_scikit_learns_with_the_jacobian_of_standardising(
    spread: tuple[float, ...], components: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the very mixture that scikit-learn fitted, kept as it came."""
    kept = []

    class Kept(GaussianMixture):
        def fit(self, codes: np.ndarray) -> GaussianMixture:
            kept.append(super().fit(codes))
            return self

    monkeypatch.setattr("sklearn.mixture.GaussianMixture", Kept)
    z = correlated(400, spread)

    ours = ex_post.fit(coded(3), z, components=components)().log_prob(z)

    (theirs,) = kept
    width = z.std(0, correction=0)
    scores = torch.as_tensor(theirs.score_samples(((z - z.mean(0)) / width).numpy()))
    assert torch.allclose(ours, scores - width.log().sum(), rtol=0, atol=1e-6)
    assert (theirs.n_components, theirs.covariance_type) == (components, "full")


def test_units_of_the_codes_do_not_matter() -> None:
    """Without standardising, a coordinate of standard deviation 1e-3 would be fitted with 1.4e-3."""
    alike, apart = (correlated(400, spread) for spread in SPREADS.values())

    densities = [ex_post.fit(coded(3), z, components=3)().log_prob(z) for z in (alike, apart)]

    shift = sum(math.log(width) for width in SPREADS["apart"])
    assert torch.allclose(densities[1], densities[0] - shift, rtol=0, atol=1e-6)


@pytest.mark.parametrize("components", [1, 2])
def test_a_unit_that_never_moves_leaves_the_others_as_they_are(components: int) -> None:
    z, _, _ = clusters(2, 300)
    dead = torch.cat([z, torch.full((len(z), 1), 0.7)], 1)

    alive, all_three = (ex_post.fit(coded(x.shape[1]), x, components=components)() for x in (z, dead))

    assert torch.allclose(all_three.mean, torch.cat([alive.mean, torch.tensor([0.7])]), atol=1e-9)
    found = all_three.component_distribution.covariance_matrix
    assert torch.allclose(found[:, :2, :2], alive.component_distribution.covariance_matrix, rtol=1e-9)
    assert all_three.log_prob(dead).isfinite().all()
    scale = math.sqrt(REGULARISATION) * z.std(0, correction=0).max()  # a thousandth of the widest unit's
    assert torch.allclose(all_three.variance[2].sqrt(), scale, rtol=1e-6)


def test_codes_that_never_move_at_all_are_fitted_too() -> None:
    draws = ex_post.fit(coded(3), torch.full((50, 3), 0.25), components=1)().sample((100,))

    assert torch.allclose(draws, torch.full((100, 3), 0.25), atol=1e-6)


# On draws of the guide, not on its means.


def optimum(rows: int) -> tuple[Variant, LinearGaussian, Tensor]:
    """Probabilistic principal components at maximum likelihood, as a pair with the exact posterior, and the data."""
    spectrum = torch.tensor([4.0, 2.5, 1.6, 1.0, 0.6])
    z = torch.randn(rows, 5)
    z = torch.linalg.qr(z - z.mean(0))[0] * math.sqrt(rows)  # covariance: the identity, exactly
    x = z * spectrum.sqrt() @ torch.linalg.qr(torch.randn(5, 5))[0] + 3
    model = LinearGaussian.maximum_likelihood(x, 2)
    decoder = nn.Linear(2, 5)
    decoder.weight.data, decoder.bias.data = model.loading.clone(), model.loc.clone()
    guide: dict[str, Any] = {"guide": MeanField, "encoder": nn.Identity()}
    variant = pair((5,), 2, likelihood=Gaussian(model.sigma.item()), decoder=decoder, **guide)
    zero = model.posterior(torch.zeros(1, 5))
    loc, log_scale = variant.guide.heads
    loc.weight.data, loc.bias.data = (model.posterior(torch.eye(5)).loc - zero.loc).mT.contiguous(), zero.loc[0]
    log_scale.weight.data.zero_()
    log_scale.bias.data = zero.covariance_matrix[0].diagonal().log() / 2
    return variant, model, x


def test_it_is_fitted_on_draws_whose_covariance_is_the_identity_at_the_optimum() -> None:
    """Means alone have variances ``1 - sigma**2 / eigenvalue``; what q spreads, ``sigma**2 / eigenvalue``, adds up."""
    rows = 10_000
    variant, model, x = optimum(rows)
    eigenvalues = torch.linalg.eigvalsh(torch.cov(x.mT, correction=0)).flip(0)[:2]

    fitted = ex_post.fit(variant, x, components=1)().component_distribution.covariance_matrix[0]

    of_means = torch.cov(encode(variant, x).mT, correction=0)
    assert torch.allclose(of_means, (1 - model.sigma**2 / eigenvalues).diag(), atol=1e-10)
    error = 4 * (1 + torch.eye(2)).sqrt() / math.sqrt(rows)  # of a sample covariance of normals, around the identity
    assert ((fitted - torch.eye(2)).abs() < error).all()
    assert (of_means.diagonal() < 1 - 2 * error.diagonal()).all()


def test_a_code_is_one_draw_a_datum_and_that_of_a_point_mass_itself() -> None:
    variant, model, x = optimum(5000)

    noise = ex_post.codes(variant, x, seed=3) - model.posterior(x).loc

    variance = model.posterior(x).covariance_matrix[0].diagonal()
    assert (noise.square().mean(0) / variance - 1).abs().max() < 4 * math.sqrt(2 / len(x))
    assert torch.equal(ex_post.codes(coded(3), x[:, :3]), x[:, :3])
    assert not torch.equal(ex_post.codes(variant, x, seed=4), ex_post.codes(variant, x, seed=3))


# As a prior.


def test_the_bound_under_one_component_has_its_closed_form() -> None:
    """z ~ Normal(m, L L^T) is z = m + L u, u standard: a linear-Gaussian model again, with the guide in terms of u."""
    variant, model, x = optimum(2000)
    fitted = ex_post.fit(variant, 2 * x + 1, components=1)  # of other data, so that it is far from the prior
    component = fitted().component_distribution
    centre, tril = component.loc[0], component.scale_tril[0]
    moved = LinearGaussian(model.loading @ tril, model.loc + model.loading @ centre, model.sigma)
    q, inverse = model.posterior(x), torch.linalg.inv(tril)
    in_terms_of_u = MultivariateNormal((q.loc - centre) @ inverse.mT, inverse @ q.covariance_matrix[0] @ inverse.mT)
    closed = moved.bound(x, in_terms_of_u)

    difference = bounds(with_prior(variant, fitted), x, 50).elbo - closed

    error = 4 * difference.std() / math.sqrt(len(x))
    assert difference.mean().abs() < error < 0.02
    assert (closed - model.bound(x, q)).mean().abs() > 0.5  # the prior it is no longer


def test_the_ex_post_prior_leaves_the_variant_as_it_is() -> None:
    variant, _, x = optimum(200)
    before = variant.model.prior

    other = with_prior(variant, ex_post.fit(variant, x, components=2))

    assert variant.model.prior is before
    assert other.model.decoder is variant.model.decoder
    assert all(not parameter.requires_grad for parameter in other.model.prior.parameters())


def test_draws_come_in_no_order_of_the_components() -> None:
    """Wald and Wolfowitz: the number of runs of one cluster among independent draws, and its standard deviation."""
    z, centres, _ = clusters(2, 400)
    variant = coded(2)

    drawn = sample(variant, 4000, prior=ex_post.fit(variant, z, components=2), mean=True)

    first = torch.cdist(drawn, centres).argmin(1) == 0
    ones, twos = int(first.sum()), int((~first).sum())
    runs = 1 + int((first[1:] != first[:-1]).sum())
    expected = 1 + 2 * ones * twos / (ones + twos)
    deviation = math.sqrt((expected - 1) * (expected - 2) / (ones + twos - 1))
    assert abs(runs - expected) < 4 * deviation
    share = (z @ centres[0] > z @ centres[1]).double().mean()
    assert abs(ones / 4000 - share) < 4 * math.sqrt(share * (1 - share) / 4000)


def binary(rows: int) -> Tensor:
    """Data that every likelihood supports."""
    return torch.randint(2, (rows, 5)).double()


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_has_a_mixture_to_sample_from(name: str) -> None:
    """Its samples are those of its own codes, and one with a bound has a bound under it, below its own evidence."""
    variant, x = VARIANTS[name]((5,), 2), binary(60)

    prior = ex_post.fit(variant, x, components=2)

    drawn = sample(variant, 30, prior=prior)
    assert drawn.shape == (30, 5)
    assert drawn.isfinite().all()
    if variant.has_bound:
        found = bounds(with_prior(variant, prior), x, 5)
        assert found.elbo.isfinite().all()
        assert (found.elbo <= found.importance_weighted + 1e-12).all()


@pytest.mark.parametrize("guide", [MeanField, FullRank, PointMass])
def test_seeds_repeat(guide: type[Guide]) -> None:
    variant, x = pair((5,), 2, likelihood=Gaussian(), guide=guide), torch.randn(200, 5)

    one, same, other = (ex_post.fit(variant, x, components=3, seed=seed).state_dict() for seed in (5, 5, 6))

    assert all(torch.equal(one[name], same[name]) for name in one)
    assert guide is PointMass or not torch.equal(one["loc"], other["loc"])  # codes of a point mass are no draws


@pytest.mark.parametrize("components", [3, "held_out"])
def test_the_random_streams_go_on_as_if_nothing_had_been_drawn(components: int | str) -> None:
    variant, x = pair((5,), 2, likelihood=Gaussian()), torch.randn(200, 5)
    stream, legacy = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002 - the global stream

    ex_post.fit(variant, x, components=components)

    assert np.random.get_state()[1].tolist() == legacy  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), stream)


def test_a_prepared_data_set_stands_for_its_training_rows() -> None:
    data = prepare(torch.randn(200, 5), scale="standardize")
    variant = pair((5,), 2, likelihood=Gaussian())

    of_data, of_rows = (ex_post.fit(variant, x, components=2).state_dict() for x in (data, data.train))

    assert all(torch.equal(of_data[name], of_rows[name]) for name in of_data)


# How many components.


@pytest.mark.parametrize(("count", "z_dim", "by"), [(2, 2, "held_out"), (5, 2, "bic"), (3, 6, "held_out")])
def test_clusters_are_found_with_their_shares(count: int, z_dim: int, by: str) -> None:
    """No component stands between two; by the criterion there is one a cluster, held-out data may keep a few more."""
    z, centres, labels = clusters(count, 420, z_dim)

    prior = ex_post.fit(coded(z_dim), z, components=by)()

    distance, nearest = torch.cdist(prior.component_distribution.loc[:, :2], centres[:, :2]).min(1)
    assert (distance < 3).all()  # of 12 from one cluster to the next
    found = torch.zeros(count).index_add(0, nearest, prior.mixture_distribution.probs)
    assert torch.allclose(found, labels.bincount().double() / len(labels), atol=1e-4)
    assert by == "held_out" or len(distance) == count


# What cannot be fitted.


@pytest.mark.parametrize(("rows", "components"), [(11, 3), (3, 1), (2, "bic"), (59, 15)])
def test_too_few_data_are_refused_with_the_remedy(rows: int, components: int | str) -> None:
    """A full covariance of d dimensions wants d + 1 data, each component its own."""
    with pytest.raises(ValueError, match=rf"need at least \d+ data.*got {rows} data: fewer components"):
        ex_post.fit(coded(3), torch.randn(rows, 3), components=components)


@pytest.mark.parametrize("components", [12, 4, 1])
def test_just_enough_data_are_not_refused(components: int) -> None:
    assert ex_post.fit(coded(3), torch.randn(4 * components, 3), components=components)().event_shape == (3,)


@pytest.mark.parametrize("components", ["aic", "10", 2.5, None])
def test_unknown_words_are_refused(components: Any) -> None:
    with pytest.raises(ValueError, match=rf"whole number, 'held_out' or 'bic', got {components!r}"):
        ex_post.fit(coded(3), torch.randn(50, 3), components=components)


@pytest.mark.parametrize("components", [0, -2])
def test_no_components_are_refused(components: int) -> None:
    with pytest.raises(ValueError, match="component"):
        ex_post.fit(coded(3), torch.randn(50, 3), components=components)


REFUSED: dict[str, tuple[Callable[[], Tensor], str]] = {
    "another_shape": (lambda: torch.randn(50, 4), r"a datum has shape \[4\], the model wants \[3\]"),
    "nan": (lambda: torch.full((50, 3), math.nan), "holds nan in row 0"),
}


@pytest.mark.parametrize(("data", "message"), REFUSED.values(), ids=REFUSED)
def test_data_that_cannot_be_coded_are_refused(data: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ex_post.fit(coded(3), data(), components=1)
