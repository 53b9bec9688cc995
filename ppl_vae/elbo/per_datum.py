"""The base class of the estimators: an objective per datum from its draws, scaled to the whole data set."""

import inspect
from collections.abc import Iterator
from typing import Any, SupportsFloat

import torch
from pyro.infer import ELBO
from torch import Tensor, nn

from ..models.half import is_point_mass
from .reading import Program, Reading, is_weighted, read, traces

__all__ = ["PerDatumELBO", "whole_number", "with_gradients"]


def whole_number(name: str, value: Any) -> int:
    """A count as an integer, from a number of any type.

    Raises:
        ValueError: If the value is not a whole number of at least 1.
    """
    if not isinstance(value, SupportsFloat) or not float(value).is_integer() or float(value) < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    return int(float(value))


def with_gradients(loss: Any) -> float:
    """The value of a loss of shape []. Its gradients, if it has any, are added to those of the parameters."""
    if loss.requires_grad:
        loss.backward()
    value: float = loss.item()
    return value


class PerDatumELBO(ELBO):
    """The loss ``-(N / B) sum_n objective_n``, where objective_n is a function of the K draws of datum n.

    N is the number of data in the whole set and B that of the batch. Factors (``pyro.factor``) are averaged over the
    draws and added. A subclass defines ``objective``, in nats per datum. The gradient of the objective is the gradient
    of the estimator.

    Args:
        num_particles: The number K of draws per datum, taken in one pass. Networks see [K, batch, ...] for K > 1.
        max_plate_nesting: The number of plates inside each other, as in Pyro.

    Raises:
        ValueError: If the estimator is called on a pair for which it is not valid. The message gives the reason and a
            remedy.
    """

    target: str  # the name in ``verification.TARGETS`` of the quantity that it estimates without bias
    weighs_draws = False  # whether draws count by their importance weights
    caution = ""  # the reason why the objective is not a bound, if it is not

    def __init__(self, num_particles: int = 1, max_plate_nesting: int = 1) -> None:
        num_particles = whole_number("num_particles", num_particles)
        nesting = whole_number("max_plate_nesting", max_plate_nesting)
        super().__init__(num_particles, nesting, vectorize_particles=True)
        self.max_plate_nesting = nesting  # Pyro's constructor adds the plate of the draws, which is not counted here

    def objective(self, reading: Reading) -> Tensor:
        """The objective per datum, [*data], in nats."""
        raise NotImplementedError

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """The negative objective in nats, summed over the data set, as a tensor of shape [] with its graph."""
        reading = self.read(model, guide, *args, **kwargs)
        self.refuse(model, guide, reading)
        return -(reading.scale * self.objective(reading).sum() + reading.penalty)

    def read(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Reading:
        """The log densities of ``num_particles`` draws per datum."""
        return read(model, guide, *args, num_particles=self.num_particles, nesting=self.max_plate_nesting, **kwargs)

    def _get_trace(self, model: Program, guide: Program, args: Any, kwargs: Any) -> Any:
        nesting = self.max_plate_nesting + (self.num_particles > 1)
        guide_trace, model_trace = traces(model, guide, *args, nesting=nesting, **kwargs)
        return model_trace, guide_trace

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """The value of ``differentiable_loss``, computed without a graph."""
        with torch.no_grad():
            return float(self.differentiable_loss(model, guide, *args, **kwargs))

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """The value of ``differentiable_loss``. Its gradients are added to those of the parameters."""
        return with_gradients(self.differentiable_loss(model, guide, *args, **kwargs))

    def refuse(self, model: Program, guide: Program, reading: Reading) -> None:
        """Check that this estimator is valid for a pair.

        Raises:
            ValueError: If it is not. The message gives the reason and a remedy.
        """
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
    """The reasons why a pair has no importance weight per datum and per draw, each with a remedy."""
    for latent in reading.latents:
        if is_point_mass(latent.q):
            remedy = "use a guide with a density, for example guides.Laplace, or Trace_ELBO"
            yield f"a point mass has no density: every K gives log p(x, z) ({remedy})"
        if latent.mask is not None:
            yield f"site {latent.name!r} is masked (use Trace_ELBO)"
    for site, weight in reading.weights.items():
        if is_weighted(weight):
            count = float(torch.as_tensor(weight).max())
            yield f"site {site!r} counts {count:.4g} times (leave the KL weight at 1, subsample only plates of data)"
    for module in _modules(model, guide):
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            yield f"{type(module).__name__} in training mode mixes draws (put it in eval mode, or use GroupNorm)"


def _modules(*programs: Program) -> Iterator[nn.Module]:
    """Yield all modules of the programs. A program that is a plain function has none."""
    for program in programs:
        if isinstance(program, nn.Module):
            yield from program.modules()
