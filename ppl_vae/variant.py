"""A variant, what is trained, and what one does with it: encode, reconstruct, sample."""

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import pyro
import torch
from pyro.infer import ELBO
from torch import Tensor, nn

from .blocks import rows_at_once
from .data.data_set import chunks_of, tensor_of
from .elbo import PathwiseELBO, estimator
from .elbo.reading import Draws, read
from .guides import Guide, MeanField, encoder as encoder_for
from .models import LatentVariableModel, Masked, StandardNormal, decoder as decoder_for
from .models.half import is_point_mass, of_pyro
from .models.likelihoods import moment, of_coordinate
from .models.networks import WIDTH
from .recipes import PAIR, recipe, with_part
from .streams import seeded

__all__ = [
    "Variant",
    "decode",
    "densities",
    "draw_data",
    "encode",
    "evaluating",
    "frozen_parts",
    "in_data_units",
    "in_mode",
    "log_jacobian",
    "mean_codes",
    "mean_data",
    "missing_mean",
    "needs_density",
    "pair",
    "reconstruct",
    "sample",
    "set_mode",
    "with_prior",
]

GuideFamily = Callable[[nn.Module, tuple[int, ...], int], Guide]


class Variant(NamedTuple):
    """A model p(x, z), a guide q(z | x), and the loss that trains them, in nats summed over the data set.

    Both of these train it: ``SVI(optim=..., **variant._asdict())`` with stock Pyro, and
    ``variant.loss(variant.model, variant.guide)`` as a module under any torch optimizer.
    """

    model: LatentVariableModel
    guide: Guide
    loss: ELBO

    @property
    def z_dim(self) -> int:
        """Size of a code."""
        event_shape = self.model.prior().event_shape
        if len(event_shape) != 1:
            remedy = "prior.forward makes coordinates an event: .to_event(1)"
            raise ValueError(f"p(z) has event shape {list(event_shape)}, wanted [z_dim] ({remedy})")
        return int(event_shape[0])

    @property
    def name(self) -> str:
        """Its name in the catalogue, or the names of its parts."""
        recipe = self.model.recipe
        name = PAIR if recipe is None else str(recipe["variant"])
        return f"{type(self.model.likelihood).__name__}, {type(self.guide).__name__}" if name == PAIR else name

    @property
    def kl_weight(self) -> float:
        """The current weight of the KL: 1 unless it is scheduled, 0 where p(z) is not in the objective."""
        return float(getattr(self.model.kl_weight, "value", self.codes_are_scored))

    @property
    def has_bound(self) -> bool:
        """Whether q(z | x) has a density, so that there is a bound of log p(x).

        The guide declares it, ``has_density``, and ``check`` holds the declaration against its posterior. The posterior
        is asked where a guide declares nothing. A point mass (``Delta``) has no density. What trains it is a MAP
        objective.
        """
        declared: bool | None = getattr(self.guide, "has_density", None)
        if declared is not None:
            return declared
        with evaluating(self), pyro.validation_enabled(False):
            parameter = next(self.model.parameters())
            return not is_point_mass(self.guide.posterior(torch.zeros(2, *self.model.x_shape).to(parameter)))

    @property
    def codes_are_scored(self) -> bool:
        """Whether log p(z) is part of the training objective; it is not in a plain autoencoder or WAE."""
        return not isinstance(self.model.kl_weight, Masked)

    @property
    def noise(self) -> Any:
        """p(x | z) of each coordinate, in the model's units, at the code 0: of batch shape [1, *x_shape]."""
        parameter = next(self.model.parameters())
        with evaluating(self), pyro.validation_enabled(False):
            outputs = self.model.outputs(torch.zeros(2, self.z_dim).to(parameter))
            law: Any = self.model.law(*(output[:1] for output in outputs))  # one row fits all
        return of_coordinate(law)

    @property
    def support(self) -> Any:
        """Where a coordinate of x given z can lie, in the model's units; discrete for a mass, else a density."""
        return self.noise.support

    @property
    def at_once(self) -> int:
        """How many data, or codes, the networks are given at once outside training: fewer where a datum is large."""
        return rows_at_once(self.model.x_shape)

    def admit(self, x: Any, name: str = "x") -> Tensor:
        """Check data and convert them to the model's units: the one door of every function that judges data.

        Args:
            x: Data [rows, *x_shape] in their own units: an array, a tensor, a data frame, a list of rows, a Dataset, or
                ``Data``, which stands for its test part.
            name: What to call the data in a message.

        Returns:
            ``y`` [rows, *x_shape], in the model's units and dtype and on its device. Inner functions take ``y``.

        Raises:
            ValueError: If x is empty, not numeric, holds NaN or infinities, or has another shape than the model's data.
        """
        return self.in_model_units(tensor_of(x, name))

    def in_model_units(self, x: Tensor) -> Tensor:
        """Convert a checked tensor [rows, *x_shape] from the data's units to the model's units, dtype and device.

        The shift and the division are in float64. ``admit`` checks x first.
        """
        if tuple(x.shape[1:]) != self.model.x_shape:
            raise ValueError(f"a datum has shape {list(x.shape[1:])}, the model wants {list(self.model.x_shape)}")
        parameter, scale = next(self.model.parameters()), self.model.scale
        if scale.is_identity or len(x) == 0:
            return x.to(parameter)
        return torch.cat([scale(rows.double()).to(parameter) for rows in x.split(self.at_once)])


def needs_density(variant: Variant) -> None:
    """Refuse what only a guide with a density has.

    Raises:
        ValueError: If q(z | x) is a point mass.
    """
    if not variant.has_bound:
        raise ValueError(
            "a point-mass guide has no density, so there is no bound: log p(x, z) is a MAP objective. "
            "For a bound of its model give it a proposal, variant._replace(guide=Laplace(variant.guide, variant.model))"
        )


def densities(variant: Variant, y: Tensor, num_particles: int, z: Tensor | None = None) -> Draws:
    """Read draws of z for each datum, and the log densities that the two halves give them.

    Call it under ``evaluating``, where the pair is p(x, z) and nothing else.

    Args:
        variant: The pair.
        y: Data [rows, *x_shape], in the model's units.
        num_particles: The number of draws per datum.
        z: Codes [num_particles, rows, z_dim] to be scored; the guide draws them unless they are given.

    Raises:
        ValueError: If a latent stands outside the plate of the data, so that there is no density per datum.
    """
    with pyro.validation_enabled(False):
        return read(variant.model, variant.guide, y, num_particles=num_particles, z=z)


def log_jacobian(variant: Variant) -> Tensor:
    """What turns a log density in the model's units into one in the data's, nats per datum; 0 for a mass."""
    scale = variant.model.scale.log_jacobian()
    return torch.zeros_like(scale) if variant.support.is_discrete else scale


def pair(
    x_shape: Iterable[int],
    z_dim: int,
    *,
    likelihood: nn.Module,
    guide: GuideFamily = MeanField,
    prior: nn.Module | None = None,
    encoder: nn.Module | None = None,
    decoder: nn.Module | None = None,
    penalties: Iterable[nn.Module] = (),
    kl_weight: nn.Module | None = None,
    loss: ELBO | str | None = None,
    width: int | None = None,
) -> Variant:
    """Put a model and a guide together from parts; every builder of the catalogue calls it.

    Args:
        x_shape: Shape of one datum, without the batch: ``(3, 32, 32)``.
        z_dim: Size of a code.
        likelihood: p(x | z), a module with ``outputs``; see ``ppl_vae.models``.
        guide: Family of q(z | x): a class, or any callable ``(encoder, x_shape, z_dim) -> Guide``.
        prior: p(z), of event shape [z_dim]; a standard normal unless given.
        encoder: Module from [rows, *x_shape] to [rows, width]; chosen by ``x_shape`` unless given.
        decoder: Module from [rows, z_dim] to ``likelihood.outputs * x_dim`` numbers per row; chosen unless given.
        penalties: Explicit regularisers of the training objective.
        kl_weight: ``KLWeight`` or ``Masked``, which acts on the site z of the model and of the guide in training.
        loss: The estimator of the bound, or its name and options, ``"dreg:num_particles=16"``. It is ``PathwiseELBO``
            with one draw unless given.
        width: Units of a hidden layer in the networks that are chosen by ``x_shape``; 256 unless given.

    Raises:
        ValueError: If a shape is empty, the prior's event shape is not [z_dim], or a part is of the wrong kind.
    """
    parts: dict[str, Any] = {
        "likelihood": likelihood,
        "guide": guide,
        "prior": prior,
        "encoder": encoder,
        "decoder": decoder,
        "penalties": tuple(penalties),
        "kl_weight": kl_weight,
        "loss": loss,
        "width": width,
    }
    x_shape = _checked_shape(x_shape, z_dim)
    _check_parts(parts)

    units = WIDTH if width is None else width
    prior = _checked_prior(StandardNormal(z_dim) if prior is None else prior, z_dim)
    encoder = encoder_for(x_shape, units) if encoder is None else encoder
    outputs: int = likelihood.outputs  # type: ignore[assignment]
    decoder = decoder_for(z_dim, x_shape, outputs, units) if decoder is None else decoder

    model = LatentVariableModel(prior, decoder, likelihood, x_shape, parts["penalties"])
    inference = guide(encoder, x_shape, z_dim)
    model.kl_weight = inference.kl_weight = kl_weight
    given = {keyword: part for keyword, part in parts.items() if part is not None}
    model.recipe = recipe(PAIR, x_shape, z_dim, given)
    return Variant(model, inference, _estimator(loss))


def _checked_shape(x_shape: Iterable[int], z_dim: int) -> tuple[int, ...]:
    if isinstance(x_shape, str | int):
        raise ValueError(f"x_shape must be the shape of a datum, such as (1, 28, 28), got {x_shape!r}")
    shape = tuple(int(side) for side in x_shape)
    if not shape or min(shape) < 1 or z_dim < 1:
        raise ValueError(f"x_shape and z_dim must be positive, got {shape} and {z_dim}")
    return shape


def _check_parts(parts: dict[str, Any]) -> None:
    """Check the types of the parts, so that a wrong one is reported by its name."""
    for name in ("likelihood", "prior", "encoder", "decoder"):
        _check_module(name, parts[name])
    if not isinstance(getattr(parts["likelihood"], "outputs", None), int):
        name = type(parts["likelihood"]).__name__
        raise ValueError(f"{name} has no outputs: set it to the number of decoder outputs that it wants per coordinate")
    if not callable(parts["guide"]):
        raise ValueError(f"guide must be a family such as MeanField, got {parts['guide']!r}")
    if not isinstance(parts["loss"], ELBO | str | None):
        raise ValueError(f"loss must be an instance of pyro.infer.ELBO or a name such as 'dreg', got {parts['loss']!r}")
    _check_width(parts)


def _check_module(name: str, part: Any) -> None:
    if isinstance(part, torch.distributions.Distribution):
        raise ValueError(
            f"{name} is a distribution, {type(part).__name__}, wanted a module whose forward returns it: the module "
            "holds what is learned as nn.Parameter, and the transforms of a flow in nn.ModuleList"
        )
    if part is not None and not isinstance(part, nn.Module):
        raise ValueError(f"{name} must be an instance of nn.Module, got {part!r}")


def _check_width(parts: dict[str, Any]) -> None:
    width = parts["width"]
    if width is None:
        return
    if isinstance(width, bool) or not isinstance(width, int) or width < 1:
        raise ValueError(f"width must be a whole number of at least 1, got {width!r}")
    if parts["encoder"] is not None and parts["decoder"] is not None:
        raise ValueError("width is for networks chosen by x_shape, and both encoder and decoder were given: drop it")


def _checked_prior(prior: nn.Module, z_dim: int) -> nn.Module:
    event_shape = tuple(of_pyro("the prior", prior()).event_shape)
    if event_shape != (z_dim,):
        raise ValueError(f"the prior has event shape {list(event_shape)}, wanted [{z_dim}]: try .to_event(1)")
    return prior


def _estimator(loss: ELBO | str | None) -> ELBO:
    if loss is None:
        return PathwiseELBO()
    return estimator(loss) if isinstance(loss, str) else loss


def frozen_parts(variant: Variant) -> dict[str, nn.Module]:
    """The modules that have parameters of which none requires a gradient, by name; none inside another one."""
    found: dict[str, nn.Module] = {}
    for half, whole in zip(variant._fields, variant[:2], strict=False):
        for name, module in whole.named_modules(prefix=half):
            parameters = list(module.parameters())
            frozen = bool(parameters) and not any(parameter.requires_grad for parameter in parameters)
            if frozen and not any(name.startswith(f"{outer}.") for outer in found):
                found[name] = module
    return found


def set_mode(variant: Variant, *, training: bool) -> None:
    """Put a pair into training or eval mode; what is frozen stays in eval mode, so that its statistics do not move.

    Of a frozen model or guide this is said of its parts: in training mode itself, it is weighted as the other half is.
    """
    variant.model.train(training)
    variant.guide.train(training)
    for part in frozen_parts(variant).values() if training else ():
        for module in part.children() if part in variant[:2] else [part]:
            module.eval()


@contextmanager
def in_mode(variant: Variant, *, training: bool) -> Iterator[None]:
    """Training or eval mode, without gradients; every module's own mode is restored afterwards."""
    modes = [(module, module.training) for half in variant[:2] for module in half.modules()]
    try:
        with torch.no_grad():
            set_mode(variant, training=training)
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def evaluating(variant: Variant) -> AbstractContextManager[None]:
    """Eval mode, in which the model is p(x, z) and nothing else."""
    return in_mode(variant, training=False)


def with_prior(variant: Variant, prior: nn.Module) -> Variant:
    """The same variant with another p(z), every other part shared: an ex-post mixture, say."""
    model = copy.copy(variant.model)
    model._modules = dict(variant.model._modules)
    model.prior = prior
    model.recipe = model.recipe and with_part(model.recipe, "prior", prior)
    return variant._replace(model=model)


def encode(variant: Variant, x: Any) -> Tensor:
    """The mean of q(z | x): x [rows, *x_shape] in the data's units to [rows, z_dim].

    Here and in every function that judges data, x is an array, a tensor, a data frame, a list of rows or a Dataset.
    ``Data`` stands for its test part. A Dataset that is too large to hold is encoded as a whole, some rows at a time.

    Raises:
        ValueError: If x is empty, not numeric, holds NaN or infinities, or has another shape than the model's data.
    """
    return torch.cat([mean_codes(variant, variant.in_model_units(rows)) for rows in chunks_of(x)])


def mean_codes(variant: Variant, y: Tensor) -> Tensor:
    """The mean of q(z | x): y [rows, *x_shape] in the model's units to [rows, z_dim]."""
    with evaluating(variant):
        return torch.cat([variant.guide.posterior(rows).mean for rows in y.split(variant.at_once)])


def decode(variant: Variant, z: Tensor) -> Tensor:
    """The mean of p(x | z): z [rows, z_dim] to [rows, *x_shape] in the data's units.

    Where p(x | z) has no mean, the result is NaN, and a UserWarning says so.
    """
    return in_data_units(variant, mean_data(variant, z))


def mean_data(variant: Variant, z: Tensor) -> Tensor:
    """The mean of p(x | z): z [rows, z_dim] to y [rows, *x_shape] in the model's units.

    Where p(x | z) has no mean, the result is NaN, and a UserWarning says so.
    """
    with evaluating(variant):
        means = torch.cat([moment(variant.model.x_given_z(rows), "mean", rows) for rows in z.split(variant.at_once)])
    missing = missing_mean(variant, z) if bool(means.isnan().any()) else None
    if missing is not None:
        warnings.warn(missing, stacklevel=3)
    return means


def in_data_units(variant: Variant, y: Tensor) -> Tensor:
    """Convert y [rows, *x_shape] from the model's units back to the data's units."""
    return torch.cat([variant.model.scale.inverse(rows) for rows in y.split(variant.at_once)])


def missing_mean(variant: Variant, z: Tensor) -> str | None:
    """Say that p(x | z) has no mean, where that is so at every one of the codes z [rows, z_dim]; else None."""
    with evaluating(variant), pyro.validation_enabled(False):
        outputs = variant.model.outputs(z[: variant.at_once])
        law: Any = variant.model.law(*outputs)
        mean = moment(law, "mean", z)
        if bool(mean.isfinite().any()) or not all(bool(output.isfinite().all()) for output in outputs):
            return None
    name = type(of_coordinate(law)).__name__
    return (
        f"p(x | z), a {name}, has no mean: reconstruct, RMSE and distances need one "
        "(give the distribution a mean, a mode say)"
    )


def reconstruct(variant: Variant, x: Any) -> Tensor:
    """The mean of p(x | z) at the mean of q(z | x): [rows, *x_shape] to the same, in the data's units.

    x is as for ``encode``, except that a Dataset which is too large to hold is refused, as its reconstruction would be
    too large as well.
    """
    return decode(variant, mean_codes(variant, variant.admit(x)))


def sample(
    variant: Variant, count: int, *, prior: nn.Module | None = None, mean: bool = False, seed: int = 0
) -> Tensor:
    """Draw data: ``z ~ prior``, then ``x ~ p(x | z)``.

    Args:
        variant: The pair to sample from.
        count: Number of data.
        prior: Another p(z), as ``ex_post.fit`` returns it; the model's own unless given.
        mean: Return the mean of p(x | z), a picture without observation noise, instead of a draw.
        seed: Seed of the draws; the caller's random stream is left as it was.

    Returns:
        [count, *x_shape], in the data's units. The dtype is float64 where these are far from 0, as unix seconds are,
        and that of the model otherwise.
    """
    return in_data_units(variant, draw_data(variant, count, prior=prior, mean=mean, seed=seed))


def draw_data(
    variant: Variant, count: int, *, prior: nn.Module | None = None, mean: bool = False, seed: int = 0
) -> Tensor:
    """``sample`` in the model's units, y [count, *x_shape]."""
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count!r}")
    variant = variant if prior is None else with_prior(variant, prior)
    with evaluating(variant), seeded(seed):
        z = variant.model.prior().sample((count,))
        if mean:
            return mean_data(variant, z)
        return torch.cat([variant.model.x_given_z(rows).sample() for rows in z.split(variant.at_once)])
