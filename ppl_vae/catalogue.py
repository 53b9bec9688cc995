"""VARIANTS: every named variant, declared once.

A builder says which parts a variant is made of, and nothing else. Any keyword of ``pair`` swaps a part of any of them.
"""

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from torch import nn

from .elbo import IWAE, DReG
from .guides import ConstantVariance, PointMass
from .models import (
    MMD,
    Bernoulli,
    ContinuousBernoulli,
    Gaussian,
    Heteroscedastic,
    JacobianNorm,
    KLWeight,
    LearnedSigma,
    Masked,
    OptimalSigma,
    WeightPrior,
    constant,
    cyclical,
    linear,
    spectrally_normalised,
)
from .models.schedules import Curve
from .recipes import recipe
from .variant import Variant, pair

__all__ = [
    "VARIANTS",
    "Entry",
    "ae",
    "bernoulli_vae",
    "beta_vae",
    "check_options",
    "continuous_bernoulli_vae",
    "cv_vae",
    "dreg_vae",
    "gaussian_vae",
    "heteroscedastic_vae",
    "iwae",
    "l2_vae",
    "optimal_sigma_vae",
    "own_options",
    "rae",
    "rae_gp",
    "rae_l2",
    "rae_sn",
    "sigma_vae",
    "wae_mmd",
]


Builder = Callable[..., Variant]


class Entry(NamedTuple):
    """A row of the catalogue."""

    build: Builder
    model: str
    guide: str
    loss: str
    source: str


class Variants(dict[str, Builder]):
    """Builders by name; an unknown name is told the known ones."""

    def __missing__(self, name: str) -> Builder:
        raise KeyError(f"unknown variant {name!r}: wanted one of {', '.join(self)}")


VARIANTS: dict[str, Builder] = Variants()
CATALOGUE: dict[str, Entry] = {}
BOUND, MAP = "-ELBO", "-log p(x, z), MAP"
NORMAL, POINT = "Normal(loc(x), scale(x))", "point mass loc(x)"


def _declare(model: str, guide: str, loss: str, source: str) -> Callable[[Builder], Builder]:
    """Enter a builder under its own name; what it builds remembers how, so that a checkpoint can build it again."""

    def enter(build: Builder) -> Builder:
        @functools.wraps(build)
        def recorded(x_shape: Any, z_dim: int, **options: Any) -> Variant:
            variant = build(x_shape, z_dim, **options)
            variant.model.recipe = recipe(build.__name__, variant.model.x_shape, z_dim, options)
            return variant

        VARIANTS[build.__name__] = recorded
        CATALOGUE[build.__name__] = Entry(recorded, model, guide, loss, source)
        return recorded

    return enter


@_declare("x ~ Bernoulli(logits(z)), x in {0, 1}", NORMAL, BOUND, "Kingma and Welling, 2014")
def bernoulli_vae(x_shape: tuple[int, ...], z_dim: int, **parts: Any) -> Variant:
    """Binary data: ``x ~ Bernoulli(logits(z))``."""
    return pair(x_shape, z_dim, **{"likelihood": Bernoulli(), **parts})


@_declare("x ~ ContinuousBernoulli(logits(z)), x in [0, 1]", NORMAL, BOUND, "Loaiza-Ganem and Cunningham, 2019")
def continuous_bernoulli_vae(x_shape: tuple[int, ...], z_dim: int, **parts: Any) -> Variant:
    """Grey values in [0, 1], scored by a density that integrates to one: ``x ~ ContinuousBernoulli(logits(z))``."""
    return pair(x_shape, z_dim, **{"likelihood": ContinuousBernoulli(), **parts})


@_declare("x ~ Normal(loc(z), sigma), sigma stated", NORMAL, BOUND, "Kingma and Welling, 2014")
def gaussian_vae(x_shape: tuple[int, ...], z_dim: int, *, sigma: float = 0.1, **parts: Any) -> Variant:
    """Real data and a stated noise level: ``x ~ Normal(loc(z), sigma)``.

    ``sigma**2`` is the weight of the KL against half the squared error; a loss ``mean(error**2) + w KL`` over D
    coordinates is ``sigma**2 = w D / 2``.
    """
    return pair(x_shape, z_dim, **{"likelihood": Gaussian(sigma), **parts})


@_declare("x ~ Normal(loc(z), sigma), sigma learned", NORMAL, BOUND, "Rybkin et al., 2021")
def sigma_vae(x_shape: tuple[int, ...], z_dim: int, **parts: Any) -> Variant:
    """Real data, one noise level learned by gradient: ``x ~ Normal(loc(z), sigma)``."""
    return pair(x_shape, z_dim, **{"likelihood": LearnedSigma(), **parts})


@_declare("x ~ Normal(loc(z), sigma*), sigma* in closed form", NORMAL, BOUND, "Rybkin et al., 2021; Lin et al., 2019")
def optimal_sigma_vae(x_shape: tuple[int, ...], z_dim: int, **parts: Any) -> Variant:
    """Real data, the noise level set to its optimum, in alternation with the weights, from training data alone."""
    return pair(x_shape, z_dim, **{"likelihood": OptimalSigma(), **parts})


@_declare("x ~ Normal(loc(z), sigma(z)), in two stages", NORMAL, BOUND, "Lin et al., 2019")
def heteroscedastic_vae(x_shape: tuple[int, ...], z_dim: int, *, stage: float = 0.5, **parts: Any) -> Variant:
    """A noise level for each coordinate and code; global for the share ``stage`` of training, then ``sigma(z)``."""
    return pair(x_shape, z_dim, **{"likelihood": Heteroscedastic(stage=stage), **parts})


@_declare("x ~ Normal(loc(z), sigma)", NORMAL, "-(E log p(x | z) - beta KL)", "Higgins et al., 2017; Fu et al., 2019")
def beta_vae(
    x_shape: tuple[int, ...],
    z_dim: int,
    *,
    beta: float = 4.0,
    anneal: str | Curve = "constant",
    sigma: float = 0.1,
    **parts: Any,
) -> Variant:
    """A KL weight other than 1 in training; the bound is reported without it.

    Args:
        x_shape, z_dim, parts: As in ``pair``.
        beta: The weight reached. With a Gaussian likelihood it is the same as sigma alone at ``sqrt(beta) * sigma``.
        anneal: ``"constant"``, ``"linear"``, ``"cyclical"``, or the weight as a function ``(step, total) -> float``.
        sigma: Standard deviation of the likelihood, stated.
    """
    curves = {"constant": constant(beta), "linear": linear(end=beta), "cyclical": cyclical(end=beta)}
    if isinstance(anneal, str) and anneal not in curves:
        raise ValueError(f"anneal must be one of {', '.join(curves)} or a function of (step, total), got {anneal!r}")
    curve = curves[anneal] if isinstance(anneal, str) else anneal
    return pair(x_shape, z_dim, **{"likelihood": Gaussian(sigma), "kl_weight": KLWeight(curve), **parts})


@_declare("x ~ Normal(loc(z), sigma), sigma learned", "Normal(loc(x), s), s stated", BOUND, "Ghosh et al., 2020")
def cv_vae(x_shape: tuple[int, ...], z_dim: int, *, spread: float = 0.5, **parts: Any) -> Variant:
    """A guide of one constant ``spread`` for all data: the step between a VAE and RAE."""
    guide = partial(ConstantVariance, scale=spread)
    return pair(x_shape, z_dim, **{"likelihood": LearnedSigma(), "guide": guide, **parts})


@_declare("as sigma_vae", NORMAL, "-log mean_k w_k", "Burda et al., 2016")
def iwae(x_shape: tuple[int, ...], z_dim: int, *, num_particles: int = 8, **parts: Any) -> Variant:
    """Trained on the importance-weighted bound of ``num_particles`` draws, ``w = p(x, z) / q(z | x)``."""
    return pair(x_shape, z_dim, **{"likelihood": LearnedSigma(), "loss": IWAE(num_particles), **parts})


@_declare("as sigma_vae", NORMAL, "-log mean_k w_k, doubly reparameterised", "Tucker et al., 2019")
def dreg_vae(x_shape: tuple[int, ...], z_dim: int, *, num_particles: int = 8, **parts: Any) -> Variant:
    """As iwae, with the gradient whose signal for the guide does not drown as ``num_particles`` grows."""
    return pair(x_shape, z_dim, **{"likelihood": LearnedSigma(), "loss": DReG(num_particles), **parts})


@_declare("x ~ Normal(loc(z), sigma); p(z) not scored", POINT, "-log p(x | z), MAP", "Hinton and Salakhutdinov, 2006")
def ae(x_shape: tuple[int, ...], z_dim: int, *, sigma: float = 0.1, **parts: Any) -> Variant:
    """A plain autoencoder: point-mass guide, no penalty on codes or weights."""
    return pair(x_shape, z_dim, **{"likelihood": Gaussian(sigma), "guide": PointMass, "kl_weight": Masked(), **parts})


def _rae(x_shape: tuple[int, ...], z_dim: int, sigma: float, *penalties: nn.Module, **parts: Any) -> Variant:
    return pair(
        x_shape,
        z_dim,
        **{"likelihood": Gaussian(sigma), "guide": PointMass, "penalties": penalties, **parts},
    )


@_declare("z ~ Normal(0, 1), x ~ Normal(loc(z), sigma)", POINT, MAP, "Ghosh et al., 2020")
def rae(x_shape: tuple[int, ...], z_dim: int, *, sigma: float = 0.1, **parts: Any) -> Variant:
    """A regularised autoencoder with its code penalty alone: the prior, ``beta = 2 sigma**2`` beside a squared error.

    Codes can shrink while the decoder grows, so that this objective alone has no minimiser: training is stopped, or a
    penalty on the decoder is added, as in ``rae_l2``, ``rae_gp`` and ``rae_sn``.
    """
    return _rae(x_shape, z_dim, sigma, **parts)


@_declare("as rae; decoder weights ~ Normal(0, tau)", POINT, "-log p(x, z, weights), MAP", "Ghosh et al., 2020")
def rae_l2(x_shape: tuple[int, ...], z_dim: int, *, sigma: float = 0.1, tau: float = 0.1, **parts: Any) -> Variant:
    """RAE with Tikhonov: a Gaussian prior on the decoder's weights, ``lambda = sigma**2 / (N tau**2)``."""
    return _rae(x_shape, z_dim, sigma, WeightPrior(tau), **parts)


@_declare("as rae; factor exp(-kappa |J(z)|_F**2)", POINT, "-log p(x, z) + kappa |J|_F**2, MAP", "Ghosh et al., 2020")
def rae_gp(
    x_shape: tuple[int, ...],
    z_dim: int,
    *,
    sigma: float = 0.1,
    kappa: float = 0.1,
    probes: int | None = None,
    **parts: Any,
) -> Variant:
    """RAE with the gradient penalty, ``gamma = 2 sigma**2 kappa``, exact unless random ``probes`` are asked for."""
    return _rae(x_shape, z_dim, sigma, JacobianNorm(kappa, probes), **parts)


@_declare("as rae; decoder spectrally normalised", POINT, MAP, "Ghosh et al., 2020; Miyato et al., 2018")
def rae_sn(x_shape: tuple[int, ...], z_dim: int, *, sigma: float = 0.1, **parts: Any) -> Variant:
    """RAE with spectral normalisation of the decoder. It cannot be pickled; see ``spectrally_normalised``."""
    variant = _rae(x_shape, z_dim, sigma, **parts)
    spectrally_normalised(variant.model.decoder)
    return variant


@_declare(
    "x ~ Normal(loc(z), sigma); factor exp(-weight MMD**2)",
    POINT,
    "-log p(x | z) + weight MMD**2",
    "Tolstikhin et al., 2018",
)
def wae_mmd(
    x_shape: tuple[int, ...], z_dim: int, *, sigma: float = 0.1, weight: float = 500.0, **parts: Any
) -> Variant:
    """A Wasserstein autoencoder: the aggregate of the codes is held to the prior by an unbiased MMD.

    ``weight`` is in nats per datum; beside a squared error, WAE's lambda is ``2 sigma**2 weight``: 10 as it stands.
    """
    penalties = (MMD(weight),)
    own = {"likelihood": Gaussian(sigma), "guide": PointMass, "penalties": penalties, "kl_weight": Masked()}
    return pair(x_shape, z_dim, **{**own, **parts})


@_declare(
    "as sigma_vae; chosen weights ~ Normal(0, tau)",
    NORMAL,
    "-ELBO - log p(weights)",
    "Kingma and Welling, 2014, app. F",
)
def l2_vae(
    x_shape: tuple[int, ...],
    z_dim: int,
    *,
    tau: float = 1.0,
    layers: tuple[str, ...] = ("decoder",),
    **parts: Any,
) -> Variant:
    """L2 on top of the KL: a Gaussian prior on the weights of chosen ``layers`` of the model, once per data set."""
    penalties = (WeightPrior(tau, tuple(layers)),)
    return pair(x_shape, z_dim, **{"likelihood": LearnedSigma(), "penalties": penalties, **parts})


def own_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that a variant declares itself; the parts, which every variant takes, are not among them."""
    return {option: value for option, value in options.items() if option in _declared(name)}


def check_options(names: Sequence[str], options: Iterable[str]) -> None:
    """Refuse an option that none of the named variants declares.

    Raises:
        ValueError: If there is one; the message lists the options that the variants declare.
    """
    known = list(dict.fromkeys(option for name in names for option in _declared(name)))
    unknown = [option for option in options if option not in known]
    if unknown:
        wanted = ", ".join(known) or "none"
        raise ValueError(f"{unknown[0]!r} is not an option of {', '.join(names)}: wanted {wanted}")


def _declared(name: str) -> list[str]:
    parameters = inspect.signature(VARIANTS[name]).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
