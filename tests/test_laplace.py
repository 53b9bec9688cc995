"""A bound for autoencoders: importance weights under the Laplace proposal around the code."""

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal

from ppl_vae import VARIANTS, Variant, bounds, with_prior
from ppl_vae.guides import Laplace
from ppl_vae.models import LinearGaussian, Mixture

SIGMA = 0.3


def linear_autoencoder() -> tuple[Variant, LinearGaussian]:
    """A point mass whose code is the exact posterior mean of its linear-Gaussian model."""
    variant = VARIANTS["rae"]((5,), 2, sigma=SIGMA, encoder=nn.Identity(), decoder=nn.Linear(2, 5))
    decoder, head = variant.model.decoder, variant.guide.heads[0]
    exact = LinearGaussian(decoder.weight.detach(), decoder.bias.detach(), torch.tensor(SIGMA))
    with torch.no_grad():
        head.bias.copy_(exact.posterior(torch.zeros(1, 5)).loc[0])
        head.weight.copy_((exact.posterior(torch.eye(5)).loc - head.bias).mT)
    return variant, exact


def test_one_draw_is_exact_where_the_posterior_is_gaussian() -> None:
    variant, exact = linear_autoencoder()
    x = torch.randn(7, 5)
    proposal = variant._replace(guide=Laplace(variant.guide, variant.model, inflation=1.0))
    assert torch.allclose(bounds(proposal, x, 1).importance_weighted, exact.log_evidence(x), rtol=1e-12)


def test_the_proposal_is_twice_as_wide_as_the_posterior_unless_told_otherwise() -> None:
    variant, exact = linear_autoencoder()
    x = torch.randn(7, 5)
    q, posterior = Laplace(variant.guide, variant.model).posterior(x), exact.posterior(x)
    assert torch.allclose(q.mean, posterior.loc)
    assert torch.allclose(q.covariance_matrix, 2 * posterior.covariance_matrix)


def test_it_bounds_the_model_with_the_prior_that_it_is_given() -> None:
    """Under one Gaussian component r, log p(x) is that of x ~ Normal(W m + b, W S W^T + sigma**2 I)."""
    variant, exact = linear_autoencoder()
    x, loc, covariance = torch.randn(7, 5), torch.randn(1, 2), 0.2 * torch.eye(2)[None]
    swapped = with_prior(variant, Mixture.of(torch.ones(1), loc, covariance))
    marginal = MultivariateNormal(
        exact.loc + exact.loading @ loc[0],
        exact.loading @ covariance[0] @ exact.loading.mT + SIGMA**2 * torch.eye(5),
    )
    found = bounds(swapped._replace(guide=Laplace(swapped.guide, swapped.model)), x, 4000).importance_weighted
    truth = marginal.log_prob(x)
    assert float((found - truth).mean()) == pytest.approx(0, abs=0.05)  # centred at the code, not at the new mode
    assert bool((bounds(swapped._replace(guide=Laplace(swapped.guide, swapped.model)), x, 4000).elbo < truth).all())


def test_without_a_proposal_a_point_mass_is_refused_with_the_remedy() -> None:
    variant, _ = linear_autoencoder()
    with pytest.raises(ValueError, match=r"no bound.*give it a proposal"):
        bounds(variant, torch.randn(3, 5))
