"""The record of a variant (a model, a guide and a loss), its modes, and the densities of its draws."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import pyro
import torch
from pyro.infer import ELBO
from torch import Tensor, nn

from .blocks import rows_at_once
from .data.data_set import tensor_of
from .elbo.reading import Draws, read
from .guides import Guide
from .models import LatentVariableModel, Masked
from .models.half import is_point_mass
from .models.likelihoods import of_coordinate
from .recipes import PAIR

__all__ = [
    "Variant",
    "densities",
    "evaluating",
    "frozen_parts",
    "has_prior_density",
    "in_mode",
    "log_jacobian",
    "needs_density",
    "needs_prior_density",
    "set_mode",
]


class Variant(NamedTuple):
    """A model p(x, z), a guide q(z | x), and the loss that trains them, in nats summed over the data set.

    Besides ``fit``, two other ways train it: ``SVI(optim=..., **variant._asdict())`` of stock Pyro, and any optimizer
    of torch on ``variant.loss(variant.model, variant.guide)``, which is a module.

    Attributes:
        model: The model p(x, z).
        guide: The guide q(z | x).
        loss: The estimator of the bound.
    """

    model: LatentVariableModel
    guide: Guide
    loss: ELBO

    @property
    def z_dim(self) -> int:
        """Size of a code."""
        event_shape = self.model.prior().event_shape
        if len(event_shape) != 1:
            remedy = "prior.forward must end in .to_event(1)"
            raise ValueError(f"p(z) has event shape {list(event_shape)}, wanted [z_dim] ({remedy})")
        return int(event_shape[0])

    @property
    def name(self) -> str:
        """The name in the catalogue, or for a pair of your own the names of its likelihood and guide."""
        recipe = self.model.recipe
        if recipe is None or recipe["variant"] == PAIR:
            return f"{type(self.model.likelihood).__name__}, {type(self.guide).__name__}"
        return str(recipe["variant"])

    @property
    def kl_weight(self) -> float:
        """The current weight of the KL. Without a schedule it is 1, or 0 if p(z) is not in the objective."""
        return float(getattr(self.model.kl_weight, "value", self.codes_are_scored))

    @property
    def has_bound(self) -> bool:
        """Whether q(z | x) has a density, so that there is a bound of log p(x).

        A guide declares this as ``has_density``, and ``check`` compares the declaration with its posterior. For a guide
        without a declaration, the posterior itself is examined. A point mass (``Delta``) has no density, and its
        training objective is a MAP objective.
        """
        declared: bool | None = getattr(self.guide, "has_density", None)
        if declared is not None:
            return declared
        with evaluating(self), pyro.validation_enabled(False):
            parameter = next(self.model.parameters())
            return not is_point_mass(self.guide.posterior(torch.zeros(2, *self.model.x_shape).to(parameter)))

    @property
    def codes_are_scored(self) -> bool:
        """Whether log p(z) is part of the training objective. It is not in a plain autoencoder or in WAE."""
        return not isinstance(self.model.kl_weight, Masked)

    @property
    def noise(self) -> Any:
        """p(x | z) of each coordinate at the code 0, in the model's units, of batch shape [1, *x_shape]."""
        parameter = next(self.model.parameters())
        with evaluating(self), pyro.validation_enabled(False):
            outputs = self.model.outputs(torch.zeros(2, self.z_dim).to(parameter))
            law: Any = self.model.law(*(output[:1] for output in outputs))
        return of_coordinate(law)

    @property
    def support(self) -> Any:
        """The support of a coordinate of p(x | z), in the model's units. It is discrete for a probability mass."""
        return self.noise.support

    @property
    def at_once(self) -> int:
        """The number of data or codes that the networks get at once outside training. Large data give a smaller one."""
        return rows_at_once(self.model.x_shape)

    def admit(self, x: Any, name: str = "x") -> Tensor:
        """Check data and convert them to the model's units. A function that evaluates data does so once, at its start.

        Args:
            x: Data [rows, *x_shape] in their own units: an array, a tensor, a data frame, a list of rows or a Dataset.
                ``Data`` stands for its test part.
            name: The name of the data in a message.

        Returns:
            ``y`` [rows, *x_shape], in the model's units and dtype and on its device. Inner functions take ``y``.

        Raises:
            ValueError: If x is empty, not numeric, holds NaN or infinities, or has another shape than the model's data.
        """
        return self.in_model_units(tensor_of(x, name), name)

    def in_model_units(self, x: Tensor, name: str = "x") -> Tensor:
        """Convert a checked tensor [rows, *x_shape] from the data's units to the model's units, dtype and device.

        The shift and the division are in float64. Unlike ``admit``, this checks only the shape.

        Raises:
            ValueError: If x has another shape than the model's data.
        """
        if tuple(x.shape[1:]) != self.model.x_shape:
            found, wanted = list(x.shape[1:]), list(self.model.x_shape)
            raise ValueError(f"{name}: a datum has shape {found}, the model wants {wanted}")
        parameter, scale = next(self.model.parameters()), self.model.scale
        if scale.is_identity or len(x) == 0:
            return x.to(parameter)
        return torch.cat([scale(rows.double()).to(parameter) for rows in x.split(self.at_once)])


def needs_density(variant: Variant) -> None:
    """Check that the guide of a variant has a density, so that there is a bound.

    Raises:
        ValueError: If q(z | x) is a point mass.
    """
    if not variant.has_bound:
        raise ValueError(
            "a point-mass guide has no density, so there is no bound: log p(x, z) is a MAP objective. For a bound of "
            "its model, give it a proposal with variant._replace(guide=Laplace(variant.guide, variant.model))"
        )


def has_prior_density(prior: nn.Module) -> bool:
    """Whether log p(z) of a prior is a function of z.

    It is not for a prior that estimates it with random draws, such as ``SecondStage``. Such a prior declares
    ``exact_density = False``.
    """
    return bool(getattr(prior, "exact_density", True))


def needs_prior_density(variant: Variant, name: str) -> None:
    """Check that log p(z) is a function of z, for a method that compares it at several z or takes its gradient.

    Args:
        variant: The pair.
        name: The name of the method in the message.

    Raises:
        ValueError: If log p(z) is an estimate.
    """
    prior = variant.model.prior
    if not has_prior_density(prior):
        raise ValueError(
            f"{name} needs log p(z) as a function of z, and {type(prior).__name__} estimates it anew in each call: use "
            "the importance-weighted bound, for which an unbiased estimate of p(z) is enough"
        )


def densities(variant: Variant, y: Tensor, num_particles: int, z: Tensor | None = None) -> Draws:
    """Draw z for each datum, and read the log densities of the draws under the model and the guide.

    Call it under ``evaluating``, so that the model is p(x, z) without training terms.

    Args:
        variant: The pair.
        y: Data [rows, *x_shape], in the model's units.
        num_particles: The number of draws per datum.
        z: Codes [num_particles, rows, z_dim] to be scored. By default the guide draws them.

    Raises:
        ValueError: If a latent stands outside the plate of the data, so that there is no density per datum.
    """
    with pyro.validation_enabled(False):
        return read(variant.model, variant.guide, y, num_particles=num_particles, z=z)


def log_jacobian(variant: Variant) -> Tensor:
    """The number, in nats per datum, to add to a log density of y to get that of x. It is 0 for a probability mass."""
    scale = variant.model.scale.log_jacobian()
    return torch.zeros_like(scale) if variant.support.is_discrete else scale


def frozen_parts(variant: Variant) -> dict[str, nn.Module]:
    """The frozen modules by name: they have parameters, and none of these requires a gradient.

    A module inside another frozen module is left out.
    """
    found: dict[str, nn.Module] = {}
    named = [*variant.model.named_modules(prefix="model"), *variant.guide.named_modules(prefix="guide")]
    for name, module in named:
        parameters = list(module.parameters())
        is_frozen = bool(parameters) and not any(parameter.requires_grad for parameter in parameters)
        is_inside = any(name.startswith(f"{outer}.") for outer in found)
        if is_frozen and not is_inside:
            found[name] = module
    return found


def set_mode(variant: Variant, *, training: bool) -> None:
    """Put a pair into training or eval mode. Frozen parts stay in eval mode, so that their statistics do not move.

    If the whole model or the whole guide is frozen, only its parts are put into eval mode. The module itself is in
    training mode, so that the KL weight acts in both the model and the guide.
    """
    variant.model.train(training)
    variant.guide.train(training)
    if not training:
        return
    for frozen in frozen_parts(variant).values():
        is_half = frozen in (variant.model, variant.guide)
        for module in frozen.children() if is_half else [frozen]:
            module.eval()


@contextmanager
def in_mode(variant: Variant, *, training: bool) -> Iterator[None]:
    """A context in training or eval mode, without gradients. The mode of each module is restored afterwards."""
    modes = [(module, module.training) for half in variant[:2] for module in half.modules()]
    try:
        with torch.no_grad():
            set_mode(variant, training=training)
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def evaluating(variant: Variant) -> AbstractContextManager[None]:
    """A context in eval mode without gradients, in which the model is p(x, z) without training terms."""
    return in_mode(variant, training=False)
