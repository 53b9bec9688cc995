"""What a model and a guide have in common: how Pyro finds their parameters, their schedules, what a step is."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import pyro
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _PYRO_STACK
from torch import nn

from .schedules import Schedule

__all__ = ["Half", "first_of_step", "one_step"]

_SEEN: WeakKeyDictionary[Messenger, WeakSet[nn.Module]] = WeakKeyDictionary()  # by step: parts that have moved in it


class one_step(Messenger):
    """A context whose passes belong to one training step, so that a running statistic moves once.

    An estimator that loops over its draws runs a pair once per draw. ``fit``, our estimators and ``SVI.step``, Pyro's
    or ours, say by themselves where a step begins and ends; a loop of one's own around Pyro's estimators with
    ``num_particles`` above 1 can say it with this context.
    """


def _step() -> Messenger | None:
    """The step under way, the outermost one: this context, or the trace that ``SVI.step`` collects parameters with."""
    steps = (
        handler for handler in _PYRO_STACK if isinstance(handler, one_step) or getattr(handler, "param_only", False)
    )
    return next(steps, None)


def first_of_step(part: nn.Module, *, enter: bool = False) -> bool:
    """Whether ``part`` has not moved in the step under way; without a step, every pass is one of its own.

    Args:
        part: A module with a running statistic.
        enter: Note that it moves now.
    """
    step = _step()
    if step is None:
        return True
    seen = _SEEN.setdefault(step, WeakSet())
    first = part not in seen
    if enter:
        seen.add(part)
    return first


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
        """Set every schedule inside to where training stands: call it once a step, as a learning-rate scheduler.

        Args:
            step: Steps already taken, from 0.
            total: Steps of the whole run.
        """
        for module in self.modules():
            if isinstance(module, Schedule):
                module.advance(step, total)
