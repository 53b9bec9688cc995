"""What a model and a guide have in common: how Pyro finds their parameters, and how training moves their schedules."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pyro
import pyro.distributions as dist
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor, nn

from .schedules import Schedule

__all__ = ["Half", "in_range", "is_point_mass", "of_pyro"]

LOWEST, HIGHEST = -20.0, 10.0  # log scales that are left as they are, to the last bit
ROOM = 5.0  # how far beyond these a log scale can get


def of_pyro(name: str, made: Any) -> TorchDistributionMixin:
    """What a part returned, where it is a distribution that Pyro can sample.

    Args:
        name: What the part is called.
        made: What it returned.

    Raises:
        ValueError: If it is anything else: Pyro samples its own classes alone, which have the names of torch's.
    """
    if isinstance(made, TorchDistributionMixin):
        return made
    kind = type(made)
    remedy = f"pyro.distributions.{kind.__name__} is its class of that name" if hasattr(dist, kind.__name__) else REMEDY
    raise ValueError(f"{name} returned a {kind.__module__}.{kind.__name__}, wanted a distribution of Pyro's ({remedy})")


def is_point_mass(law: Any) -> bool:
    """Whether a distribution is ``Delta``, also inside ``to_event``, ``expand`` or ``mask``: it has no density."""
    while not isinstance(law, dist.Delta) and hasattr(law, "base_dist"):
        law = law.base_dist
    return isinstance(law, dist.Delta)


REMEDY = "return one of pyro.distributions, or a class derived from pyro.distributions.TorchDistribution"


class Half(nn.Module):
    """A model p(x, z) or a guide q(z | x): a plain module that stock Pyro can train.

    ``pyro.infer.SVI`` collects parameters in a trace with ``param_only=True``. Only then are they declared to Pyro's
    global store, and a name that already belongs to another tensor is an error instead of a pair that never trains.

    Attributes:
        kl_weight: Acts on the site ``z`` in training mode; the builder hands one object to both halves.
    """

    kl_weight: nn.Module | None

    def __init__(self) -> None:
        super().__init__()
        self.kl_weight = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if any(getattr(handler, "param_only", False) for handler in _PYRO_STACK):
            self._declare()
        return super().__call__(*args, **kwargs)

    def _declare(self) -> None:
        for name, parameter in self.named_parameters():
            stored = f"{type(self).__name__}.{name}"
            if parameter.requires_grad and pyro.param(stored, parameter) is not parameter:
                raise ValueError(
                    f"Pyro's parameter store already holds another {stored!r}, of another pair or of this one before "
                    "it was moved: train each pair inside `with pyro.get_param_store().scope():`"
                )

    def weighted(self) -> AbstractContextManager[Any]:
        """The context in which to sample ``z``: the KL weight in training mode, nothing in eval mode."""
        weight: AbstractContextManager[Any] = nullcontext()
        if self.training and self.kl_weight is not None:
            weight = self.kl_weight()
        return weight

    def advance(self, step: int, total: int) -> None:
        """Set every schedule inside to where training stands: call it once per step, as a learning-rate scheduler.

        Args:
            step: Steps already taken, from 0.
            total: Steps of the whole run.
        """
        for module in self.modules():
            if isinstance(module, Schedule):
                module.advance(step, total)


def in_range(log_scale: Tensor) -> Tensor:
    """Keep a log scale finite once it is exponentiated: between -20 and 10 it is returned as it is, to the last bit.

    A network extrapolates linearly: for a datum 1000 standard deviations out, ``exp(log_scale)`` overflows or becomes 0
    in single precision, and the bound of the datum would be NaN. Beyond the range ``log_scale`` bends smoothly towards
    -25 or 15. Any q(z | x) gives a lower bound, so the bound of such a datum remains one, finite and very low.
    """
    inside = log_scale.clamp(LOWEST, HIGHEST)
    return inside + ROOM * ((log_scale - inside) / ROOM).tanh()
