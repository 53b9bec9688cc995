"""A bound for autoencoders: importance weights under the Laplace proposal around the code."""

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from ppl_vae import VARIANTS, Variant, bounds, pair, with_prior
from ppl_vae.guides import Guide, Laplace, PointMass
from ppl_vae.models import Gaussian, LinearGaussian, Mixture, StudentT
from ppl_vae.models.distributions import DiscretizedLogistic, DiscretizedNormal

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


class Bent(Guide):
    """A point mass of one's own: two heads, and a code that is not the first of them."""

    outputs = 2

    def distribution(self, loc: Tensor, other: Tensor) -> dist.Delta:
        return dist.Delta(3 * torch.tanh(loc) + other, event_dim=1)


def test_it_stands_at_the_code_of_any_guide() -> None:
    variant = pair((5,), 2, likelihood=Gaussian(SIGMA), guide=Bent)
    x = torch.randn(4, 5)

    assert torch.equal(Laplace(variant.guide, variant.model).posterior(x).mean, variant.guide.posterior(x).mean)


def test_without_a_variance_the_scale_stands_in_its_place() -> None:
    """Student's t with 2 degrees of freedom, where ``J^T J / scale**2 + I`` is left."""
    variant = pair((5,), 2, likelihood=StudentT(2.0, SIGMA), guide=PointMass, decoder=nn.Linear(2, 5))
    weight = variant.model.decoder.weight
    precision = Laplace(variant.guide, variant.model, 1.0).posterior(torch.randn(1, 5)).precision_matrix

    assert torch.allclose(precision[0], weight.mT @ weight / SIGMA**2 + torch.eye(2))


class Cauchy(nn.Module):
    """A law without a mean."""

    outputs = 1

    def forward(self, loc: Tensor) -> dist.Cauchy:
        return dist.Cauchy(loc, 1.0)


def test_a_law_without_a_mean_is_refused_in_a_line() -> None:
    variant = pair((5,), 2, likelihood=Cauchy(), guide=PointMass)
    with pytest.raises(ValueError, match="the Laplace proposal needs a mean of Cauchy, which has none: train a guide"):
        Laplace(variant.guide, variant.model).posterior(torch.randn(1, 5))


@pytest.mark.parametrize("family", [DiscretizedNormal, DiscretizedLogistic])
@pytest.mark.parametrize("levels", [2, 5, 256])
def test_the_variance_of_a_discretised_law_is_that_of_its_masses(
    family: type[DiscretizedNormal | DiscretizedLogistic], levels: int
) -> None:
    """Summed over the grid, for locations in and outside [0, 1] and scales from far below a cell to far above one."""
    loc = torch.tensor([-3.0, -0.1, 0.0, 0.3, 0.5002, 0.77, 1.4])[:, None]
    law = family(loc, torch.tensor([1e-3, 0.01, 0.1, 2.0]), levels)
    values = torch.arange(levels)[:, None, None] / (levels - 1)
    mass = law.log_prob(values).exp()

    exact = (mass * (values - (mass * values).sum(0)).square()).sum(0)
    assert torch.allclose(law.variance, exact, rtol=1e-10, atol=1e-13)
