"""The common base of models and guides: Pyro finds their parameters, and training moves their schedules."""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pyro
import pyro.distributions as dist
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from .schedules import Schedule
from .steps import collects_parameters

__all__ = ["Half", "in_range", "is_point_mass", "of_pyro", "positive", "whole"]

LOWEST, HIGHEST = -20.0, 10.0  # log scales between these are left unchanged
ROOM = 5.0  # how far a log scale can get beyond them
REMEDY = "return one of pyro.distributions, or a class derived from pyro.distributions.TorchDistribution"


def of_pyro(name: str, made: Any) -> TorchDistributionMixin:
    """Check that a part returned a distribution that Pyro can sample, and return it.

    Args:
        name: The name of the part in the message.
        made: The value that the part returned.

    Raises:
        ValueError: If the value is anything else. Pyro only samples its own classes. Many of them have the name of a
            class of torch.
    """
    if isinstance(made, TorchDistributionMixin):
        return made
    kind = type(made)
    remedy = f"use pyro.distributions.{kind.__name__}" if hasattr(dist, kind.__name__) else REMEDY
    raise ValueError(f"{name} returned a {kind.__module__}.{kind.__name__}, wanted a Pyro distribution: {remedy}")


def positive(name: str, value: float) -> float:
    """Return a number that has to be positive and finite.

    Raises:
        ValueError: If it is not.
    """
    if not 0.0 < value < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {value!r}")
    return value


def whole(name: str, value: Any, least: int = 1) -> int:
    """Return a whole number that has to be at least ``least``.

    Raises:
        ValueError: If it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
    return value


def is_point_mass(law: Any) -> bool:
    """Whether a distribution is a ``Delta``, bare or inside ``to_event``, ``expand`` or ``mask``: it has no density."""
    while not isinstance(law, dist.Delta) and hasattr(law, "base_dist"):
        law = law.base_dist
    return isinstance(law, dist.Delta)


class Half(nn.Module):
    """The base class of the model p(x, z) and of the guide q(z | x): a plain module that stock Pyro can train.

    The parameters are declared to Pyro's global store only while Pyro collects parameters, as the step of
    ``pyro.infer.SVI`` does. If the store already holds another tensor under the name of a parameter, Pyro would train
    that tensor instead, so a ValueError is raised.

    Attributes:
        kl_weight: A module whose context scales or masks the site ``z`` in training mode. ``pair`` gives the same
            module to the model and to the guide.
    """

    kl_weight: nn.Module | None

    def __init__(self) -> None:
        super().__init__()
        self.kl_weight = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if collects_parameters():
            self._declare()
        return super().__call__(*args, **kwargs)

    def _declare(self) -> None:
        """Declare the parameters that require a gradient to Pyro's global store."""
        for name, parameter in self.named_parameters():
            stored = f"{type(self).__name__}.{name}"
            if parameter.requires_grad and pyro.param(stored, parameter) is not parameter:
                raise ValueError(
                    f"Pyro's parameter store already holds another {stored!r}, from another pair or from this one "
                    "before it was moved: train each pair inside `with pyro.get_param_store().scope():`"
                )

    def weighted(self) -> AbstractContextManager[Any]:
        """The context in which to sample ``z``: the KL weight acts in training mode, and nothing acts in eval mode."""
        if self.kl_weight is None or not self.training:
            return nullcontext()
        return self.kl_weight()

    def advance(self, step: int, total: int) -> None:
        """Set every schedule inside the module to the given step. Call it once per step, like a scheduler of torch.

        Args:
            step: The number of steps already taken, from 0.
            total: The number of steps of the whole run.
        """
        for module in self.modules():
            if isinstance(module, Schedule):
                module.advance(step, total)


def in_range(log_scale: Tensor) -> Tensor:
    """Keep a log scale in a range where its exponential is finite and positive.

    Between -20 and 10 a log scale is returned unchanged, to the last bit. Beyond that range it bends smoothly towards
    -25 or 15.

    A network extrapolates linearly. For a datum 1000 standard deviations from the others, ``exp(log_scale)`` would
    overflow or become 0 in single precision, and the bound of the datum would be NaN. Any q(z | x) gives a lower
    bound, so the bound of such a datum is still a lower bound, finite and very low.
    """
    inside = log_scale.clamp(LOWEST, HIGHEST)
    return inside + ROOM * ((log_scale - inside) / ROOM).tanh()
