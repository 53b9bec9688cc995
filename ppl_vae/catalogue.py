"""VARIANTS: every named variant. Each is written as a function that takes its own options and returns its parts."""

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from functools import partial, wraps
from inspect import Parameter
from typing import Any

from torch import nn

from .assembly import pair
from .description import describe
from .elbo import DIP, IWAE, DReG
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
    SecondStage,
    SecondStageBound,
    WeightPrior,
    constant,
    cyclical,
    linear,
    spectrally_normalised,
)
from .models.networks import WIDTH
from .models.schedules import Curve
from .recipes import recipe
from .streams import seeded
from .variant import Variant

__all__ = [
    "VARIANTS",
    "ae",
    "bernoulli_vae",
    "beta_vae",
    "continuous_bernoulli_vae",
    "cv_vae",
    "dip_vae",
    "dreg_vae",
    "entries",
    "gaussian_vae",
    "heteroscedastic_vae",
    "iwae",
    "l2_vae",
    "optimal_sigma_vae",
    "options_of",
    "rae",
    "rae_gp",
    "rae_l2",
    "rae_sn",
    "sigma_vae",
    "two_stage_vae",
    "wae_mmd",
]

SEED = "seed"  # the keyword of a builder for the seed of its initial weights
Parts = dict[str, Any]  # keyword arguments of ``pair``
Builder = Callable[..., Variant]


class Variants(dict[str, Builder]):
    """Builders by name. The error for an unknown name lists the known ones."""

    def __missing__(self, name: str) -> Builder:
        raise KeyError(f"unknown variant {name!r}: wanted one of {', '.join(self)}")


VARIANTS: dict[str, Builder] = Variants()
SOURCES: dict[str, str] = {}  # the publication of each variant


def variant(
    source: str, decoder: Callable[[nn.Module], object] | None = None
) -> Callable[[Callable[..., Parts]], Builder]:
    """Register a function that returns parts as a builder ``(x_shape, z_dim, **parts)`` of pairs.

    The builder takes the options of the function and the keywords of ``pair``. Each keyword of ``pair`` replaces a
    part. The pair keeps a recipe of its arguments, so that a checkpoint can build it again. ``seed`` is the seed of the
    initial weights of the parts that the builder makes. Without it, they come from the caller's random stream.

    Args:
        source: The publication of the variant.
        decoder: A function that changes the decoder of the pair in place. That decoder may be the caller's own.
    """

    def register(parts_of: Callable[..., Parts]) -> Builder:
        name = parts_of.__name__
        options = inspect.signature(parts_of).parameters

        @wraps(parts_of)
        def build(x_shape: Iterable[int], z_dim: int, *, seed: int | None = None, **given: Any) -> Variant:
            _refuse_unknown(name, given, [*options])
            own = {keyword: value for keyword, value in given.items() if keyword in options}
            swapped = {keyword: value for keyword, value in given.items() if keyword not in options}
            with nullcontext() if seed is None else seeded(seed):
                built = pair(x_shape, z_dim, **{**parts_of(**own), **swapped})
                if decoder is not None:
                    decoder(built.model.decoder)
            built.model.recipe = recipe(name, built.model.x_shape, z_dim, given)
            return built

        build.__signature__ = _signature(options.values())  # type: ignore[attr-defined]
        VARIANTS[name] = build
        SOURCES[name] = source
        return build

    return register


def _refuse_unknown(name: str, given: dict[str, Any], options: list[str]) -> None:
    shapes = ("x_shape", "z_dim")
    parts = [keyword for keyword in inspect.signature(pair).parameters if keyword not in shapes]
    for keyword in given:
        if keyword not in (*options, *parts):
            raise TypeError(f"{name} has no option {keyword!r}: wanted one of {', '.join([*options, *parts])}")


def _signature(options: Iterable[Parameter]) -> inspect.Signature:
    """The signature of a builder: the shapes as in ``pair``, options and the seed as keywords, and ``**parts``."""
    of_pair = inspect.signature(pair).parameters
    by_keyword = [option.replace(kind=Parameter.KEYWORD_ONLY) for option in options]
    seed = Parameter(SEED, Parameter.KEYWORD_ONLY, default=None, annotation=int | None)
    parts = Parameter("parts", Parameter.VAR_KEYWORD, annotation=Any)
    every = [of_pair["x_shape"], of_pair["z_dim"], *by_keyword, seed, parts]
    return inspect.Signature(every, return_annotation=Variant)


def options_of(builder: Builder) -> list[str]:
    """The options that a builder declares itself. The shapes, the seed and the parts are left out."""
    parameters = list(inspect.signature(builder).parameters.values())[2:]
    return [one.name for one in parameters if one.kind is not one.VAR_KEYWORD and one.name != SEED]


def entries() -> Iterator[dict[str, str]]:
    """Yield the catalogue as text: the name, model, guide, loss and source of each variant with its default options."""
    for name, build in VARIANTS.items():
        with seeded(0):  # leaves the caller's random stream as it was
            described = describe(build((1,), 1, width=1))
        yield {"variant": name, **described._asdict(), "source": SOURCES[name]}


@variant(source="Kingma and Welling, 2014")
def bernoulli_vae() -> Parts:
    """Binary data."""
    return {"likelihood": Bernoulli()}


@variant(source="Loaiza-Ganem and Cunningham, 2019")
def continuous_bernoulli_vae() -> Parts:
    """Grey values in [0, 1], under a density that integrates to one."""
    return {"likelihood": ContinuousBernoulli()}


@variant(source="Kingma and Welling, 2014")
def gaussian_vae(sigma: float = 0.1) -> Parts:
    """Real data with a fixed noise level ``sigma``.

    ``sigma**2`` is the weight of the KL against half the squared error. A loss ``mean(error**2) + w KL`` over D
    coordinates corresponds to ``sigma**2 = w D / 2``.
    """
    return {"likelihood": Gaussian(sigma)}


@variant(source="Rybkin et al., 2021")
def sigma_vae() -> Parts:
    """Real data with one noise level, which is learned by gradient."""
    return {"likelihood": LearnedSigma()}


@variant(source="Rybkin et al., 2021; Lin et al., 2019")
def optimal_sigma_vae() -> Parts:
    """Real data with one noise level, set to its optimum on the training data in alternation with the weights."""
    return {"likelihood": OptimalSigma()}


@variant(source="Lin et al., 2019")
def heteroscedastic_vae(stage: float = 0.5) -> Parts:
    """Real data with one noise level for the share ``stage`` of training, and then one per coordinate and code."""
    return {"likelihood": Heteroscedastic(stage=stage)}


@variant(source="Higgins et al., 2017; Fu et al., 2019")
def beta_vae(beta: float = 4.0, anneal: str | Curve = "constant", sigma: float = 0.1) -> Parts:
    """Real data with a KL weight other than 1 in training. The bound is reported without this weight.

    Args:
        beta: The KL weight at the end of training. With a Gaussian likelihood, the optimum is the same as with the
            weight 1 and the standard deviation ``sqrt(beta) * sigma``.
        anneal: ``"constant"``, ``"linear"``, ``"cyclical"``, or the weight as a function ``(step, total) -> float``.
        sigma: Standard deviation of the likelihood, fixed.
    """
    return {"likelihood": Gaussian(sigma), "kl_weight": KLWeight(_curve(anneal, beta))}


def _curve(anneal: str | Curve, beta: float) -> Curve:
    curves = {"constant": constant(beta), "linear": linear(end=beta), "cyclical": cyclical(end=beta)}
    if not isinstance(anneal, str):
        return anneal
    if anneal not in curves:
        raise ValueError(f"anneal must be one of {', '.join(curves)} or a function of (step, total), got {anneal!r}")
    return curves[anneal]


@variant(source="Ghosh et al., 2020")
def cv_vae(spread: float = 0.5) -> Parts:
    """A guide with one constant standard deviation ``spread`` for all data: the step between a VAE and RAE."""
    return {"likelihood": LearnedSigma(), "guide": partial(ConstantVariance, scale=spread)}


@variant(source="Burda et al., 2016")
def iwae(num_particles: int = 8) -> Parts:
    """A VAE that is trained on the importance-weighted bound of ``num_particles`` draws, ``w = p(x, z) / q(z | x)``."""
    return {"likelihood": LearnedSigma(), "loss": IWAE(num_particles)}


@variant(source="Tucker et al., 2019")
def dreg_vae(num_particles: int = 8) -> Parts:
    """The bound of ``iwae`` with a gradient for the guide whose signal-to-noise ratio does not fall as K grows."""
    return {"likelihood": LearnedSigma(), "loss": DReG(num_particles)}


@variant(source="Kumar et al., 2018")
def dip_vae(kind: int = 1, off_diagonal: float = 10.0, diagonal: float | None = None) -> Parts:
    """A VAE whose codes are pulled towards uncorrelated coordinates of variance 1 over all data. See ``elbo.DIP``.

    Args:
        kind: 1 for the covariance of the means of q(z | x), DIP-VAE-I; 2 for that of its draws, DIP-VAE-II.
        off_diagonal: The weight of each squared covariance, in nats per datum.
        diagonal: The weight of each ``(variance - 1)**2``, in nats per datum. By default it is ``10 off_diagonal`` for
            kind 1 and ``off_diagonal`` for kind 2.
    """
    return {"likelihood": LearnedSigma(), "loss": DIP(kind, off_diagonal, diagonal)}


@variant(source="Hinton and Salakhutdinov, 2006")
def ae(sigma: float = 0.1) -> Parts:
    """A plain autoencoder: a point-mass guide, and no penalty on codes or weights."""
    return {"likelihood": Gaussian(sigma), "guide": PointMass, "kl_weight": Masked()}


@variant(source="Ghosh et al., 2020")
def rae(sigma: float = 0.1) -> Parts:
    """A regularised autoencoder with one penalty, the prior on codes: ``beta = 2 sigma**2`` beside a squared error.

    This objective alone has no minimiser, because codes can shrink while the decoder grows. Stop the training early, or
    penalise the decoder too, as ``rae_l2``, ``rae_gp`` and ``rae_sn`` do.
    """
    return {"likelihood": Gaussian(sigma), "guide": PointMass}


@variant(source="Ghosh et al., 2020")
def rae_l2(sigma: float = 0.1, tau: float = 0.1) -> Parts:
    """RAE with a Gaussian prior on the decoder's weights (Tikhonov), ``lambda = sigma**2 / (N tau**2)``."""
    return {"likelihood": Gaussian(sigma), "guide": PointMass, "penalties": [WeightPrior(tau)]}


@variant(source="Ghosh et al., 2020")
def rae_gp(sigma: float = 0.1, kappa: float = 0.1, probes: int | None = None) -> Parts:
    """RAE with the gradient penalty, ``gamma = 2 sigma**2 kappa``. It is exact unless random ``probes`` are given."""
    return {"likelihood": Gaussian(sigma), "guide": PointMass, "penalties": [JacobianNorm(kappa, probes)]}


@variant(source="Ghosh et al., 2020; Miyato et al., 2018", decoder=spectrally_normalised)
def rae_sn(sigma: float = 0.1) -> Parts:
    """RAE with spectral normalisation of the decoder. It cannot be pickled (see ``spectrally_normalised``)."""
    return {"likelihood": Gaussian(sigma), "guide": PointMass}


@variant(source="Tolstikhin et al., 2018")
def wae_mmd(sigma: float = 0.1, weight: float = 500.0) -> Parts:
    """A Wasserstein autoencoder: an unbiased MMD pulls the aggregate of the codes towards the prior.

    ``weight`` is in nats per datum. Beside a squared error, WAE's lambda is ``2 sigma**2 weight``, 10 by default.
    """
    penalties = [MMD(weight)]
    return {"likelihood": Gaussian(sigma), "guide": PointMass, "penalties": penalties, "kl_weight": Masked()}


@variant(source="Kingma and Welling, 2014, app. F")
def l2_vae(tau: float = 1.0, layers: tuple[str, ...] = ("decoder",)) -> Parts:
    """A VAE with a Gaussian prior (L2) on the weights of chosen ``layers``, counted once per data set.

    ``"guide.heads"`` among the ``layers`` are the heads of the code. See ``models.WeightPrior``.
    """
    return {"likelihood": LearnedSigma(), "penalties": [WeightPrior(tau, tuple(layers))]}


@variant(source="Dai and Wipf, 2019")
def two_stage_vae(prior_width: int = WIDTH, gamma: float = 0.5) -> Parts:
    """A VAE whose p(z) is a second VAE on its codes, so that samples come from where the codes are.

    Both are trained side by side with separate gradients. See ``models.SecondStage``.

    Args:
        prior_width: Units of a hidden layer of the second VAE.
        gamma: The initial standard deviation of p(z | u) in the second VAE, between 0 and 1.
    """
    prior = partial(SecondStage, width=prior_width, gamma=gamma)
    return {"likelihood": LearnedSigma(), "prior": prior, "penalties": [SecondStageBound()]}
