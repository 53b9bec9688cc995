"""What a pair says of itself is read from its parts."""

from functools import partial
from typing import Any

import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from ppl_vae import VARIANTS, convert, elbo, guides, models, pair, recipes
from ppl_vae.catalogue import entries
from ppl_vae.description import describe


class Own(nn.Module):
    """A likelihood, a prior or a penalty of one's own, without a formula."""

    outputs, per_datum = 1, True

    def forward(self, *_: Any) -> Any:
        return torch.distributions.Normal(0.0, 1.0)


class OwnWithFormula(Own):
    formula = "Gumbel(loc(z), 1)"


POINT_MASS = {"guide": guides.PointMass}
MODELS: dict[str, tuple[dict[str, Any], str]] = {
    "gaussian": ({"likelihood": models.Gaussian(0.3)}, "x ~ Normal(loc(z), sigma), sigma = 0.3"),
    "student": ({"likelihood": models.StudentT(3.5)}, "x ~ StudentT(3.5, loc(z), scale), scale learned"),
    "laplace": ({"likelihood": models.Laplace()}, "x ~ Laplace(loc(z), scale), scale learned"),
    "optimal": ({"likelihood": models.OptimalSigma()}, "x ~ Normal(loc(z), sigma), sigma in closed form"),
    "stages": (
        {"likelihood": models.Heteroscedastic(stage=0.25)},
        "x ~ Normal(loc(z), sigma(z)), one sigma for the first 25 % of training",
    ),
    "levels": (
        {"likelihood": models.DiscretizedLogistic(levels=16)},
        "x ~ DiscretizedLogistic(loc(z), scale) on 16 levels, scale learned",
    ),
    "own": ({"likelihood": Own()}, "x ~ Own"),
    "own-formula": ({"likelihood": OwnWithFormula()}, "x ~ Gumbel(loc(z), 1)"),
    "wide-prior": ({"prior": models.StandardNormal(2, scale=3.0)}, "z ~ Normal(0, 3)"),
    "mixture": ({"prior": models.Mixture(2, 4)}, "z ~ mixture of 4 normals"),
    "decoder": (
        {"decoder": nn.Sequential(weight_norm(nn.Linear(2, 4)), models.spectrally_normalised(nn.Linear(4, 5)))},
        "SpectralNorm on the weights of the decoder; WeightNorm on the weights of the decoder",
    ),
}
GUIDES: dict[str, tuple[Any, str]] = {
    "full-rank": (guides.FullRank, "Normal(loc(x), covariance(x))"),
    "constant": (partial(guides.ConstantVariance, scale=0.2), "Normal(loc(x), scale), scale = 0.2"),
    "point-mass": (guides.PointMass, "point mass at loc(x)"),
}
LOSSES: dict[str, tuple[dict[str, Any], str]] = {
    "bound": ({}, "-ELBO"),
    "annealed": ({"kl_weight": models.KLWeight(models.linear(end=2.5))}, "-ELBO (KL times 0 to 2.5)"),
    "masked": ({"kl_weight": models.Masked()}, "-ELBO (KL times 0)"),
    "map": (POINT_MASS, "-log p(x, z), MAP"),
    "map-masked": ({**POINT_MASS, "kl_weight": models.Masked()}, "-log p(x | z), MAP"),
    "map-weighted": (
        {**POINT_MASS, "kl_weight": models.KLWeight(models.constant(3.0))},
        "-log p(x, z) (log p(z) times 3), MAP",
    ),
    "penalties": (
        {"penalties": [models.WeightPrior(0.5, ("decoder", "prior")), models.MMD(7.0), Own()]},
        "-ELBO + 2 |decoder and prior weights|**2 + 7 MMD**2(q(z), p(z)) + Own",
    ),
    "jacobian": ({"penalties": [models.JacobianNorm(0.3)]}, "-ELBO + 0.3 |J(z)|_F**2"),
    "pyro": ({"loss": Trace_ELBO()}, "-Trace_ELBO"),
    "iwae": ({"loss": elbo.IWAE(5)}, "-log mean_k w_k (K = 5)"),
    "dreg": ({"loss": elbo.DReG(5)}, "-log mean_k w_k (K = 5, doubly reparameterised)"),
    "miwae": ({"loss": elbo.MIWAE(6, 2)}, "-mean_m log mean_k w_mk (K = 6, M = 2)"),
    "piwae": ({"loss": elbo.PIWAE(6, 2)}, "-log mean_k w_k (K = 6, 2 groups of draws for the guide)"),
    "ciwae": ({"loss": elbo.CIWAE(0.25, 6)}, "-(0.25 ELBO + 0.75 log mean_k w_k) (K = 6)"),
    "renyi": (
        {"loss": elbo.Renyi(0.3, 6)},
        "-log(mean_k w_k**(1 - alpha)) / (1 - alpha) (alpha = 0.3, K = 6)",
    ),
    "beta": ({"loss": elbo.BetaELBO(3.0)}, "-ELBO (KL times 3)"),
    "dip": (
        {"loss": elbo.DIP(1, 2.0)},
        "-ELBO (less 2 sum of C_ij**2 and 20 sum of (C_ii - 1)**2, C = Cov(E[z given x]))",
    ),
    "free-bits": ({"loss": elbo.FreeBits(0.2)}, "-ELBO (KL of a coordinate at least 0.2)"),
}


@pytest.mark.parametrize(("parts", "wanted"), MODELS.values(), ids=MODELS)
def test_the_generative_process_is_that_of_the_swapped_part(parts: dict[str, Any], wanted: str) -> None:
    said = describe(VARIANTS["sigma_vae"]((5,), 2, **parts)).model

    assert wanted in said
    assert said.startswith("z ~ ")


@pytest.mark.parametrize(("guide", "wanted"), GUIDES.values(), ids=GUIDES)
def test_the_guide_is_the_swapped_one(guide: Any, wanted: str) -> None:
    assert describe(VARIANTS["sigma_vae"]((5,), 2, guide=guide)).guide == wanted


@pytest.mark.parametrize(("parts", "wanted"), LOSSES.values(), ids=LOSSES)
def test_the_loss_follows_from_guide_estimator_weight_and_penalties(parts: dict[str, Any], wanted: str) -> None:
    assert describe(pair((5,), 2, likelihood=models.Gaussian(), **parts)).loss == wanted


def test_a_proposal_and_a_converted_pair_describe_themselves() -> None:
    autoencoder = VARIANTS["wae_mmd"]((5,), 2)
    proposal = autoencoder._replace(guide=guides.Laplace(autoencoder.guide, autoencoder.model, inflation=3.0))

    assert describe(proposal).guide == "Normal(loc(x), 3 H**-1), H the precision of z at loc(x)"
    assert describe(convert(autoencoder))[1:] == describe(VARIANTS["gaussian_vae"]((5,), 2))[1:]


@pytest.mark.parametrize("name", [*recipes.PARTS, *recipes.FAMILIES])
def test_every_part_of_the_library_has_a_formula(name: str) -> None:
    assert hasattr({**recipes.PARTS, **recipes.FAMILIES}[name], "formula")


def test_printing_the_catalogue_leaves_the_random_stream_alone() -> None:
    before = torch.get_rng_state()

    assert [entry["variant"] for entry in entries()] == list(VARIANTS)
    assert torch.equal(torch.get_rng_state(), before)
