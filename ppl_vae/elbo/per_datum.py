"""What our estimators share: a bound for each datum from its draws, after which the plate scales."""

import inspect
from collections.abc import Iterator
from typing import Any, SupportsFloat

import torch
from pyro.infer import ELBO
from torch import Tensor, nn

from ..models.half import is_point_mass
from .reading import Program, Reading, is_weighted, read, traces

__all__ = ["PerDatumELBO", "whole", "with_gradients"]


def whole(name: str, value: Any) -> int:
    """A count of any type as an integer.

    Raises:
        ValueError: If it is no whole number of at least 1.
    """
    if not isinstance(value, SupportsFloat) or not float(value).is_integer() or float(value) < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    return int(float(value))


def with_gradients(loss: Any) -> float:
    """The value of a loss of shape []; its gradients, where it has any, are added to the parameters' own."""
    if loss.requires_grad:
        loss.backward()
    value: float = loss.item()
    return value


class PerDatumELBO(ELBO):
    """``-(N / B) sum_n objective_n``, objective_n a function of the K draws of datum n.

    Factors outside the objective are averaged over draws. A subclass gives ``objective``, in nats per datum; its
    gradient is the estimator.

    Args:
        num_particles: Draws K of each datum, taken in one pass: networks see [K, batch, ...] for K > 1.
        max_plate_nesting: Plates inside each other, as in Pyro.

    Raises:
        ValueError: When called on a pair that the estimator is not meant for; the message says why and what to do.
    """

    target: str  # what it estimates without bias, by its name in ``TARGETS``
    weighs_draws = False  # whether draws count by their importance weights
    caution = ""  # why the objective is not a bound to be reported, where it is not

    def __init__(self, num_particles: int = 1, max_plate_nesting: int = 1) -> None:
        num_particles, nesting = whole("num_particles", num_particles), whole("max_plate_nesting", max_plate_nesting)
        super().__init__(num_particles, nesting, vectorize_particles=True)
        self.max_plate_nesting = nesting  # without the plate of draws, which Pyro adds to it

    def objective(self, reading: Reading) -> Tensor:
        """In nats per datum, [*data]."""
        raise NotImplementedError

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """The negative objective, in nats summed over the data set: a tensor of shape [] with its graph."""
        reading = self.read(model, guide, *args, **kwargs)
        self.refuse(model, guide, reading)
        return -(reading.scale * self.objective(reading).sum() + reading.penalty)

    def read(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Reading:
        """The log densities of ``num_particles`` draws."""
        return read(model, guide, *args, num_particles=self.num_particles, nesting=self.max_plate_nesting, **kwargs)

    def _get_trace(self, model: Program, guide: Program, args: Any, kwargs: Any) -> Any:
        nesting = self.max_plate_nesting + (self.num_particles > 1)
        guide_trace, model_trace = traces(model, guide, *args, nesting=nesting, **kwargs)
        return model_trace, guide_trace

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """The value of ``differentiable_loss``."""
        with torch.no_grad():
            return float(self.differentiable_loss(model, guide, *args, **kwargs))

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """The value of ``differentiable_loss``; gradients are added to the parameters' own."""
        return with_gradients(self.differentiable_loss(model, guide, *args, **kwargs))

    def refuse(self, model: Program, guide: Program, reading: Reading) -> None:
        """Raise where the objective would not be what its name says."""
        for latent in reading.latents:
            if not latent.q.has_rsample:
                raise ValueError(
                    f"{type(self).__name__} has path gradients, and q({latent.name} | x) is not reparameterised: "
                    "use Trace_ELBO"
                )
        if self.weighs_draws:
            reason = next(_reasons(model, guide, reading), None)
            if reason is not None:
                raise ValueError(f"{type(self).__name__} weighs draws by p(x, z) / q(z | x), and {reason}")

    def __repr__(self) -> str:
        options = [option for option in inspect.signature(type(self)).parameters if option != "max_plate_nesting"]
        return f"{type(self).__name__}({', '.join(f'{option}={getattr(self, option)}' for option in options)})"


def _reasons(model: Program, guide: Program, reading: Reading) -> Iterator[str]:
    """Why a pair has no importance weights per datum."""
    for latent in reading.latents:
        if is_point_mass(latent.q):
            remedy = "use a guide with a density, guides.Laplace say, or Trace_ELBO"
            yield f"a point mass has no density: every K gives log p(x, z) ({remedy})"
        if latent.mask is not None:
            yield f"site {latent.name!r} is masked (use Trace_ELBO)"
    for site, weight in reading.weights.items():
        if is_weighted(weight):
            count = float(torch.as_tensor(weight).max())
            yield f"site {site!r} counts {count:.4g} times (leave the KL weight at 1, subsample plates of data alone)"
    halves = [half for half in (model, guide) if isinstance(half, nn.Module)]
    for module in (module for half in halves for module in half.modules()):
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            yield f"{type(module).__name__} in training mode mixes draws (put it in eval mode, or use GroupNorm)"
