"""The model whose answers are known: closed forms against each other, and Pyro's traces against the closed forms."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import ELBO, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from ppl_vae import Variant, pair
from ppl_vae.elbo import PathwiseELBO
from ppl_vae.guides import FullRank, Guide, MeanField
from ppl_vae.models import Gaussian, LinearGaussian

ROWS, X_DIM, Z_DIM = 9, 5, 2
ESTIMATORS = {"trace": Trace_ELBO, "mean_field": TraceMeanField_ELBO, "pathwise": PathwiseELBO}
every_estimator = pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=ESTIMATORS)


def problem(*, orthogonal: bool = False) -> tuple[LinearGaussian, Tensor]:
    """A model and data drawn from it; with orthogonal columns its posterior has independent coordinates."""
    loading = torch.randn(X_DIM, Z_DIM)
    if orthogonal:
        loading = torch.linalg.qr(loading)[0] * torch.tensor([2.0, 0.7])
    model = LinearGaussian(loading, torch.randn(X_DIM), torch.tensor(0.6))
    noise = model.sigma * torch.randn(ROWS, X_DIM)
    return model, torch.randn(ROWS, Z_DIM) @ loading.mT + model.loc + noise


def any_gaussian(shape: tuple[int, ...]) -> MultivariateNormal:
    """A guide with nothing to do with the data: a full covariance, for each datum or for all."""
    root = torch.randn(*shape, Z_DIM, Z_DIM)
    return MultivariateNormal(torch.randn(*shape, Z_DIM), root @ root.mT + 0.1 * torch.eye(Z_DIM))


# Closed forms against each other.


@pytest.mark.parametrize("shape", [(ROWS,), ()], ids=["a_guide_a_datum", "one_guide"])
def test_the_bound_and_its_gap_add_up_to_the_log_evidence(shape: tuple[int, ...]) -> None:
    model, x = problem()
    guide = any_gaussian(shape)

    bound, gap = model.bound(x, guide), model.gap(x, guide)

    assert torch.allclose(bound + gap, model.log_evidence(x), rtol=0, atol=1e-10)
    assert gap.min() > 1e-3


def test_the_log_evidence_is_the_integral_over_codes() -> None:
    """By Gauss and Hermite, with no formula of the model but p(z) and p(x | z)."""
    model = LinearGaussian(torch.tensor([[1.0], [0.4]]), torch.tensor([0.3, -0.2]), torch.tensor(0.8))
    x = torch.randn(4, 2)
    nodes, weights = (torch.as_tensor(part) for part in np.polynomial.hermite_e.hermegauss(80))

    x_given_z = dist.Normal(nodes[:, None, None] @ model.loading.mT + model.loc, model.sigma)
    log_p = torch.logsumexp(x_given_z.log_prob(x).sum(-1) + (weights / weights.sum()).log()[:, None], 0)

    assert torch.allclose(model.log_evidence(x), log_p, rtol=0, atol=1e-10)


def test_the_bound_is_tight_at_the_posterior() -> None:
    model, x = problem()

    assert torch.allclose(model.bound(x, model.posterior(x)), model.log_evidence(x), rtol=0, atol=1e-10)


def test_the_best_guide_with_independent_coordinates_has_its_gap_in_closed_form() -> None:
    """``(sum log M_jj - log det M) / 2``, the same for each datum, and no diagonal guide is better."""
    model, x = problem()
    m = model.loading.mT @ model.loading + model.sigma**2 * torch.eye(Z_DIM)
    closed = (m.diagonal().log().sum() - torch.logdet(m)) / 2
    best = model.mean_field_posterior(x)

    assert torch.allclose(model.gap(x, best), closed.expand(ROWS), rtol=0, atol=1e-10)
    loc, log_scale = best.loc.clone().requires_grad_(), best.variance.log().div(2).requires_grad_()
    bound = model.bound(x, MultivariateNormal(loc, scale_tril=log_scale.exp().diag_embed())).sum()
    for slope in torch.autograd.grad(bound, (loc, log_scale)):
        assert slope.abs().max() < 1e-10
    assert closed > 1e-3


def test_orthogonal_loadings_leave_no_gap_to_independent_coordinates() -> None:
    model, x = problem(orthogonal=True)

    assert model.gap(x, model.mean_field_posterior(x)).abs().max() < 1e-12


# Maximum likelihood.


def fitted(rows: int = 200) -> tuple[LinearGaussian, Tensor, Tensor]:
    """The best fit to data of full rank, the data, and the eigenvalues of their covariance, descending."""
    x = torch.randn(rows, Z_DIM) @ torch.randn(Z_DIM, X_DIM) + 0.6 * torch.randn(rows, X_DIM) + 1
    return LinearGaussian.maximum_likelihood(x, Z_DIM), x, torch.linalg.eigvalsh(torch.cov(x.mT, correction=0)).flip(0)


def test_maximum_likelihood_is_a_stationary_point_of_the_log_evidence() -> None:
    model, x, _ = fitted()
    loading, loc, log_sigma = (t.clone().requires_grad_() for t in (model.loading, model.loc, model.sigma.log()))

    evidence = LinearGaussian(loading, loc, log_sigma.exp()).log_evidence(x).mean()

    for slope in torch.autograd.grad(evidence, (loading, loc, log_sigma)):
        assert slope.abs().max() < 1e-10


def test_maximum_likelihood_has_the_evidence_of_probabilistic_principal_components() -> None:
    model, x, eigenvalues = fitted()
    kept, variance = eigenvalues[:Z_DIM], eigenvalues[Z_DIM:].mean()
    formula = X_DIM * math.log(2 * math.pi) + kept.log().sum() + (X_DIM - Z_DIM) * variance.log() + X_DIM

    assert model.log_evidence(x).mean().item() == pytest.approx(-formula.item() / 2, abs=1e-10)
    assert model.sigma.square().item() == pytest.approx(variance.item(), rel=1e-12)
    nearby = LinearGaussian(model.loading * 1.01, model.loc, model.sigma)
    assert nearby.log_evidence(x).mean() < model.log_evidence(x).mean()


@pytest.mark.parametrize("z_dim", [0, -1, X_DIM, X_DIM + 1])
def test_as_many_codes_as_columns_are_refused(z_dim: int) -> None:
    with pytest.raises(ValueError, match=f"z_dim must be from 1 to {X_DIM - 1}.*got {z_dim}"):
        LinearGaussian.maximum_likelihood(torch.randn(10, X_DIM), z_dim)


def test_the_expected_squared_error_reproduces_the_noise_and_that_of_the_mean_does_not() -> None:
    model, x, eigenvalues = fitted()
    posterior, variance = model.posterior(x), model.sigma.square()
    of_the_mean = (x - model.loc - posterior.loc @ model.loading.mT).square().mean()
    spread = torch.trace(model.loading @ posterior.covariance_matrix[0] @ model.loading.mT) / X_DIM
    shrunk = ((X_DIM - Z_DIM) * variance + (variance**2 / eigenvalues[:Z_DIM]).sum()) / X_DIM

    assert (of_the_mean + spread).item() == pytest.approx(variance.item(), rel=1e-12)
    assert of_the_mean.item() == pytest.approx(shrunk.item(), rel=1e-12)
    assert of_the_mean < 0.8 * variance


def test_only_directions_above_the_noise_are_worth_a_code() -> None:
    """At a stated sigma, the slope of the evidence in a closed loading is ``eigenvalue - sigma**2``, up to a factor."""
    _, x, eigenvalues = fitted()
    vectors = torch.linalg.eigh(torch.cov(x.mT, correction=0))[1].flip(1)
    for j, eigenvalue in enumerate(eigenvalues):
        for variance in (0.9 * eigenvalue, 1.1 * eigenvalue):
            size = torch.tensor(1e-4, requires_grad=True)
            model = LinearGaussian(size * vectors[:, j : j + 1], x.mean(0), variance.sqrt())
            (slope,) = torch.autograd.grad(model.log_evidence(x).mean(), size)
            assert (slope > 0) == (eigenvalue > variance)


# Pyro's traces against the closed forms.


def set_guide(guide: Guide, loc: tuple[Tensor, Tensor], scale_tril: Tensor) -> None:
    """Make q(z | x) ``Normal(x loc[0]^T + loc[1], scale_tril scale_tril^T)``, by hand."""
    below = scale_tril[torch.tril_indices(Z_DIM, Z_DIM, -1).unbind()]
    for parameter in guide.parameters():
        parameter.detach().zero_()
    guide.heads[0].weight.data, guide.heads[0].bias.data = loc
    for head, bias in zip(guide.heads[1:], (scale_tril.diagonal().log(), below), strict=False):
        head.bias.data = bias


def program(model: LinearGaussian, family: type[Guide], loss: ELBO) -> Variant:
    """The model as a Pyro pair, its guide the exact posterior: the best one that the family holds."""
    decoder = nn.Linear(Z_DIM, X_DIM)
    decoder.weight.data, decoder.bias.data = model.loading.clone(), model.loc.clone()
    likelihood = Gaussian(model.sigma.item())
    variant = pair(
        (X_DIM,), Z_DIM, likelihood=likelihood, guide=family, encoder=nn.Identity(), decoder=decoder, loss=loss
    )
    zero = torch.zeros(1, X_DIM)
    rotation = model.posterior(torch.eye(X_DIM)).loc - model.posterior(zero).loc
    best = model.mean_field_posterior(zero) if family is not FullRank else model.posterior(zero)
    set_guide(variant.guide, (rotation.mT.contiguous(), best.loc[0]), best.scale_tril.reshape(-1, Z_DIM, Z_DIM)[0])
    return variant


class SigmaPoints(dist.Normal):
    """A normal whose 2 d draws are placed so that the average of any quadratic function is its expectation."""

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        points = math.sqrt(Z_DIM) * torch.cat([torch.eye(Z_DIM), -torch.eye(Z_DIM)])
        return self.loc + self.scale * points.unsqueeze(1)


class Exact(MeanField):
    """``MeanField`` without Monte Carlo error, for 2 d particles in one call."""

    def distribution(self, loc: Tensor, log_scale: Tensor) -> Any:
        return SigmaPoints(loc, log_scale.exp()).expand((2 * Z_DIM, *loc.shape)).to_event(1)


EXACT: dict[str, Any] = {"num_particles": 2 * Z_DIM, "vectorize_particles": True, "max_plate_nesting": 1}


POSTERIORS = {"full_rank": (FullRank, False), "full_rank_orthogonal": (FullRank, True), "mean_field": (MeanField, True)}


@pytest.mark.parametrize(("family", "orthogonal"), POSTERIORS.values(), ids=POSTERIORS)
def test_every_weight_is_the_log_evidence_where_the_guide_is_the_posterior(
    family: type[Guide], orthogonal: bool
) -> None:
    """Of any draw: there is no Monte Carlo error to tolerate."""
    model, x = problem(orthogonal=orthogonal)
    variant = program(model, family, Trace_ELBO())
    guide = poutine.trace(variant.guide).get_trace(x)
    joint = poutine.trace(poutine.replay(variant.model, trace=guide)).get_trace(x)
    guide.compute_log_prob()
    joint.compute_log_prob()

    weights = joint.nodes["z"]["log_prob"] + joint.nodes["x"]["log_prob"] - guide.nodes["z"]["log_prob"]

    assert torch.allclose(weights, model.log_evidence(x), rtol=0, atol=1e-10)


@every_estimator
def test_the_loss_of_any_draw_is_minus_the_log_evidence_where_the_guide_is_the_posterior(
    estimator: Callable[..., ELBO],
) -> None:
    """Of a full-rank guide: with independent coordinates, the analytic KL leaves the noise of the rest."""
    model, x = problem()
    variant = program(model, FullRank, estimator())

    loss = variant.loss.loss(variant.model, variant.guide, x)

    assert loss == pytest.approx(-model.log_evidence(x).sum().item(), rel=1e-12)


@every_estimator
def test_the_loss_is_minus_the_bound_whatever_the_guide(estimator: Callable[..., ELBO]) -> None:
    model, x = problem()
    variant = program(model, Exact, estimator(**EXACT))
    rotation, shift, scale = torch.randn(Z_DIM, X_DIM), torch.randn(Z_DIM), torch.tensor([0.3, 1.7])
    set_guide(variant.guide, (rotation, shift), scale.diag())
    bound = model.bound(x, MultivariateNormal(x @ rotation.mT + shift, scale.square().diag())).sum()

    assert variant.loss.loss(variant.model, variant.guide, x) == pytest.approx(-bound.item(), rel=1e-12)
    assert variant.loss(variant.model, variant.guide)(x).item() == pytest.approx(-bound.item(), rel=1e-12)


@every_estimator
def test_the_loss_of_a_batch_counts_for_the_whole_set(estimator: Callable[..., ELBO]) -> None:
    model, x = problem()
    variant = program(model, Exact, estimator(**EXACT))
    bound = model.bound(x[:3], model.mean_field_posterior(x[:3])).sum()

    loss = variant.loss.loss(variant.model, variant.guide, x[:3], 60)

    assert loss == pytest.approx(-20 * bound.item(), rel=1e-12)


@every_estimator
def test_the_decoder_moves_with_the_log_evidence_where_the_guide_is_the_posterior(
    estimator: Callable[..., ELBO],
) -> None:
    """The evidence is a constant for the guide alone; to hold it constant for the decoder would leave it at rest."""
    model, x = problem(orthogonal=True)
    variant = program(model, Exact, estimator(**EXACT))
    loading, loc = model.loading.clone().requires_grad_(), model.loc.clone().requires_grad_()
    truth = torch.autograd.grad(LinearGaussian(loading, loc, model.sigma).log_evidence(x).sum(), (loading, loc))

    loss = variant.loss(variant.model, variant.guide)(x)
    slopes = torch.autograd.grad(loss, (variant.model.decoder.weight, variant.model.decoder.bias), retain_graph=True)

    for slope, wanted in zip(slopes, truth, strict=True):
        assert torch.allclose(-slope, wanted, rtol=1e-10, atol=1e-10)
        assert wanted.abs().max() > 0.1
    for slope in torch.autograd.grad(loss, list(variant.guide.parameters())):
        assert slope.abs().max() < 1e-9


def test_the_posterior_drawn_by_the_full_rank_guide_has_its_covariance() -> None:
    """Scale for variance, or a factor transposed, would show here."""
    model, x = problem()
    variant = program(model, FullRank, Trace_ELBO())

    q = variant.guide.posterior(x)
    draws = q.sample((40_000,))[:, 0]

    exact = model.posterior(x)
    assert torch.allclose(q.mean, exact.mean, rtol=0, atol=1e-12)
    assert torch.allclose(q.covariance_matrix, exact.covariance_matrix.expand(ROWS, -1, -1), rtol=0, atol=1e-12)
    deviations = draws - exact.mean[0]
    products = deviations.unsqueeze(-1) * deviations.unsqueeze(-2)
    error = 4 * products.std(0) / math.sqrt(len(draws))
    assert ((products.mean(0) - exact.covariance_matrix.reshape(-1, Z_DIM, Z_DIM)[0]).abs() < error).all()
