"""What a training step is, for a part whose running statistic moves once per step."""

from weakref import WeakKeyDictionary, WeakSet

from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _PYRO_STACK
from torch import nn

__all__ = ["first_of_step", "one_step"]

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
