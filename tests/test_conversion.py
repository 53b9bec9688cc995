"""convert: the same inputs, the same outputs, another objective."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from ppl_vae import VARIANTS, Variant, bounds, convert, encode, fit, load, pair, prepare, reconstruct, save
from ppl_vae.elbo import PathwiseELBO
from ppl_vae.evaluation.lower_bounds import held_out
from ppl_vae.guides import ConstantVariance, FullRank, Guide, MeanField, PointMass
from ppl_vae.models import Gaussian, Mixture, StandardNormal
from ppl_vae.streams import seeded
from ppl_vae.variant import evaluating

X_DIM, Z_DIM, ROWS = 6, 3, 12
SHAPES = {"vector": (X_DIM,), "image": (2, 9, 8)}
AUTOENCODERS = [name for name in VARIANTS if not VARIANTS[name]((X_DIM,), Z_DIM).has_bound]
MEAN_FIELD = [name for name in VARIANTS if type(VARIANTS[name]((X_DIM,), Z_DIM).guide) is MeanField]

every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def binary(*shape: int) -> Tensor:
    """Data that every likelihood supports."""
    return torch.randint(2, (ROWS, *shape)).double()


def used(name: str, shape: tuple[int, ...], **options: Any) -> Variant:
    """A variant after two steps, so that no weight is where a constructor leaves it."""
    variant = VARIANTS[name](shape, Z_DIM, **options)
    fit(variant, binary(*shape), epochs=2, lr=1e-2, validation=None, progress=False)
    return variant


def loss_of(variant: Variant, x: Tensor) -> float:
    """What is optimised, nats summed over x: in training mode, where penalties and weights act."""
    variant.model.train()
    variant.guide.train()
    return variant.loss(variant.model, variant.guide)(x).item()


def tensors(variant: Variant) -> list[Tensor]:
    return [tensor for half in variant[:2] for tensor in half.state_dict().values()]


# From an autoencoder to a VAE.


@every_shape
@pytest.mark.parametrize("name", AUTOENCODERS)
def test_an_autoencoder_becomes_a_vae_that_reconstructs_alike(name: str, shape: tuple[int, ...]) -> None:
    """Bit for bit: q(z | x) is centred where the code was, with a standard deviation of .1 to start with."""
    autoencoder, x = used(name, shape), binary(*shape)

    vae = convert(autoencoder)

    q = vae.guide.posterior(vae.in_model_units(x))
    assert torch.equal(encode(vae, x), encode(autoencoder, x))
    assert torch.equal(reconstruct(vae, x), reconstruct(autoencoder, x))
    assert torch.allclose(q.stddev, torch.full((ROWS, Z_DIM), 0.1), rtol=1e-12)
    assert vae.has_bound


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_the_loss_becomes_minus_the_bound(name: str) -> None:
    """In training mode: penalties and weights of the KL are left behind. The same seed, the same draws."""
    autoencoder, x = used(name, (X_DIM,)), binary(X_DIM)
    vae = convert(autoencoder)

    with seeded(3):
        loss = loss_of(vae, x)
    with seeded(3), evaluating(vae):
        bound = held_out(vae, vae.in_model_units(x), 1).sum().item()

    assert loss == pytest.approx(-bound, rel=1e-10)


@pytest.mark.parametrize("name", [*AUTOENCODERS, *MEAN_FIELD])
def test_a_converted_pair_shares_no_storage_with_the_one_that_came(name: str) -> None:
    variant = used(name, (X_DIM,))
    before = [tensor.clone() for tensor in tensors(variant)]

    converted = convert(variant)

    mine = {tensor.untyped_storage().data_ptr() for tensor in tensors(converted)}
    assert mine.isdisjoint(tensor.untyped_storage().data_ptr() for tensor in tensors(variant))
    for tensor in tensors(converted):
        tensor.zero_()
    assert all(torch.equal(a, b) for a, b in zip(tensors(variant), before, strict=True))


@pytest.mark.parametrize("name", ["ae", "rae_l2"])
def test_fine_tuning_improves_the_bound_of_held_out_data(name: str) -> None:
    """By more than 4 standard errors of the paired difference, on handwritten digits."""
    data = prepare(load_digits().data / 16, limit=600)
    autoencoder = VARIANTS[name](data.x_shape, 8)
    fit(autoencoder, data, epochs=5, validation=None, progress=False)
    vae = convert(autoencoder)
    with seeded(0):
        before = bounds(vae, data.test, 10).elbo

    fit(vae, data, epochs=5, validation=None, progress=False)

    with seeded(0):
        gain = bounds(vae, data.test, 10).elbo - before
    assert gain.mean() > 4 * gain.std() / math.sqrt(len(gain))
    assert not torch.equal(vae.guide.heads[1].weight, torch.zeros_like(vae.guide.heads[1].weight))


def test_units_prior_and_likelihood_come_along() -> None:
    x = 5 + 3 * torch.randn(40, X_DIM)
    data = prepare(x, scale="standardize")
    autoencoder = VARIANTS["rae"](data.x_shape, Z_DIM, sigma=0.3, prior=StandardNormal(Z_DIM, scale=2.0))
    fit(autoencoder, data, epochs=2, progress=False)

    vae = convert(autoencoder)

    assert torch.equal(vae.model.scale.width, data.scale.width)
    assert torch.equal(reconstruct(vae, x), reconstruct(autoencoder, x))
    assert vae.model.prior().stddev.tolist() == [2.0] * Z_DIM
    assert vae.model.likelihood.scale.item() == 0.3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_converted_pair_keeps_its_dtype(dtype: torch.dtype) -> None:
    autoencoder = VARIANTS["rae"]((X_DIM,), Z_DIM)
    autoencoder.model.to(dtype)
    autoencoder.guide.to(dtype)

    parameters = [parameter for half in convert(autoencoder)[:2] for parameter in half.parameters()]
    assert {parameter.dtype for parameter in parameters} == {dtype}


# From a VAE to a regularised autoencoder.


@every_shape
@pytest.mark.parametrize("name", ["bernoulli_vae", "optimal_sigma_vae", "heteroscedastic_vae", "beta_vae"])
def test_a_vae_becomes_an_autoencoder_that_reconstructs_alike(name: str, shape: tuple[int, ...]) -> None:
    vae, x = used(name, shape), binary(*shape)

    autoencoder = convert(vae)

    assert type(autoencoder.guide) is PointMass
    assert not autoencoder.has_bound
    assert torch.equal(encode(autoencoder, x), encode(vae, x))
    assert torch.equal(reconstruct(autoencoder, x), reconstruct(vae, x))


@pytest.mark.parametrize("name", ["gaussian_vae", "beta_vae"])
def test_the_loss_becomes_minus_the_log_joint_at_the_code(name: str) -> None:
    """RAE's, by scalar normals; of a weighted KL too, whose weight is left behind."""
    vae, x = used(name, (X_DIM,), sigma=0.2), binary(X_DIM)

    loss = loss_of(convert(vae), x)

    z, loc = encode(vae, x), reconstruct(vae, x)
    joint = dist.Normal(0.0, 1.0).log_prob(z).sum() + dist.Normal(loc, 0.2).log_prob(x).sum()
    assert loss == pytest.approx(-joint.item(), rel=1e-10)


# There and back.


@pytest.mark.parametrize("name", ["ae", "rae_sn", "wae_mmd", "sigma_vae", "heteroscedastic_vae"])
def test_there_and_back_gives_the_same_codes(name: str) -> None:
    variant, x = used(name, (X_DIM,)), binary(X_DIM)

    back = convert(convert(variant))

    assert type(back.guide) is type(variant.guide)
    assert torch.equal(encode(back, x), encode(variant, x))
    assert torch.equal(reconstruct(back, x), reconstruct(variant, x))


# A user's own networks.


class Codes(nn.Module):
    """A convolutional encoder that ends in the code itself, [rows, z_dim, 1, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Conv2d(4, Z_DIM, (7, 6)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


OWN: dict[str, tuple[tuple[int, ...], Callable[[], nn.Module], Callable[[], nn.Module]]] = {
    "perceptrons": (
        (X_DIM,),
        lambda: nn.Sequential(nn.Linear(X_DIM, 8), nn.Tanh(), nn.Linear(8, Z_DIM)),
        lambda: nn.Sequential(nn.Linear(Z_DIM, 8), nn.Tanh(), nn.Linear(8, X_DIM)),
    ),
    "convolutions": ((2, 9, 8), Codes, lambda: nn.Sequential(nn.Linear(Z_DIM, 144), nn.Unflatten(1, (2, 9, 8)))),
}


@pytest.mark.parametrize(("x_shape", "encoder", "decoder"), OWN.values(), ids=OWN)
def test_networks_trained_in_plain_torch_become_a_vae_with_the_same_outputs(
    x_shape: tuple[int, ...], encoder: Callable[[], nn.Module], decoder: Callable[[], nn.Module]
) -> None:
    """A whole encoder gives z directly: the head of the point mass is the identity."""
    down, up, x = encoder(), decoder(), torch.randn(ROWS, *x_shape)
    optimizer = torch.optim.Adam([*down.parameters(), *up.parameters()], 1e-2)
    for _ in range(20):
        optimizer.zero_grad()
        (up(down(x).flatten(1)) - x).square().mean().backward()
        optimizer.step()
    with torch.no_grad():
        codes = down(x).flatten(1)
        outputs = up(codes)
    own = partial(PointMass, heads=[nn.Identity()])

    autoencoder = pair(x_shape, Z_DIM, likelihood=Gaussian(), guide=own, encoder=down, decoder=up)
    vae = convert(autoencoder)

    assert torch.equal(encode(vae, x), codes)
    assert torch.allclose(reconstruct(vae, x), outputs, rtol=0, atol=1e-12)
    trained = fit(vae, x, epochs=2, validation=None, progress=False).variant
    assert not torch.equal(reconstruct(trained, x), outputs)
    assert torch.equal(up(down(x).flatten(1)), outputs)  # the networks that came are as they were


# What cannot be converted.


class OwnGuide(Guide):
    def distribution(self, loc: Tensor) -> Any:
        return dist.Laplace(loc, 1.0).to_event(1)


@pytest.mark.parametrize("guide", [FullRank, ConstantVariance, OwnGuide])
def test_other_guides_are_refused_by_name(guide: type[Guide]) -> None:
    variant = pair((X_DIM,), Z_DIM, likelihood=Gaussian(), guide=guide)

    with pytest.raises(ValueError, match=f"PointMass and MeanField guides, got {guide.__name__}"):
        convert(variant)


def test_a_learned_prior_and_any_estimator_are_converted() -> None:
    """The estimator becomes the plain one; the mixture comes along, and its centres still train."""
    loss = pyro.infer.RenyiELBO(alpha=0, num_particles=3)
    variant = pair((X_DIM,), Z_DIM, likelihood=Gaussian(), prior=Mixture(Z_DIM, 2), loss=loss)

    autoencoder = convert(variant)

    assert type(autoencoder.loss) is PathwiseELBO
    assert torch.equal(autoencoder.model.prior.loc, variant.model.prior.loc)
    autoencoder.loss(autoencoder.model, autoencoder.guide)(torch.randn(ROWS, X_DIM)).backward()
    assert autoencoder.model.prior.loc.grad.abs().sum() > 0


# A converted pair in a checkpoint.


@pytest.mark.parametrize("name", [name for name in (*AUTOENCODERS, *MEAN_FIELD) if name != "rae_sn"])
def test_a_converted_pair_is_loaded_by_name(name: str, tmp_path: Path) -> None:
    variant = convert(used(name, (X_DIM,), width=7))

    again = load(save(tmp_path / "pair", variant))

    assert type(again.guide) is type(variant.guide)
    for half in ("model", "guide"):
        kept, found = getattr(variant, half).state_dict(), getattr(again, half).state_dict()
        assert kept.keys() == found.keys()
        assert all(torch.equal(kept[key], found[key]) for key in kept)


def test_networks_of_your_own_are_wanted_for_a_converted_pair_too(tmp_path: Path) -> None:
    variant = convert(VARIANTS["ae"]((X_DIM,), Z_DIM, encoder=nn.Linear(X_DIM, 5)))
    save(tmp_path / "pair", variant)

    with pytest.raises(ValueError, match=r"parts of your own \(encoder\)"):
        load(tmp_path / "pair")
    assert type(load(tmp_path / "pair", into=variant).guide) is MeanField
