"""A variant, what is trained: the record of a pair, its modes, and the densities that it gives to draws."""

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
    "in_mode",
    "log_jacobian",
    "needs_density",
    "set_mode",
]


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
