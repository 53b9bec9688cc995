"""Where a training step begins and ends, for parts with a running statistic that moves once per step."""

from weakref import WeakKeyDictionary, WeakSet

from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _PYRO_STACK
from torch import nn

__all__ = ["collects_parameters", "first_of_step", "one_step"]

_SEEN: WeakKeyDictionary[Messenger, WeakSet[nn.Module]] = WeakKeyDictionary()  # the parts that moved in each step


class one_step(Messenger):
    """A context whose passes belong to one training step, so that a running statistic moves once.

    An estimator that loops over its draws runs a pair once per draw. ``fit``, the estimators of this library and
    ``SVI.step`` (Pyro's or ours) mark their steps themselves. Use this context in a training loop of your own around
    Pyro's estimators with ``num_particles`` above 1.
    """


def _is_collecting(handler: Messenger) -> bool:
    return bool(getattr(handler, "param_only", False))


def collects_parameters() -> bool:
    """Whether Pyro is collecting parameters, in a trace with ``param_only=True`` such as that of ``SVI.step``."""
    return any(_is_collecting(handler) for handler in _PYRO_STACK)


def _current_step() -> Messenger | None:
    """The outermost ``one_step`` or trace of ``SVI.step``, which marks the current step, or None outside a step."""
    for handler in _PYRO_STACK:
        if isinstance(handler, one_step) or _is_collecting(handler):
            return handler
    return None


def first_of_step(part: nn.Module, *, enter: bool = False) -> bool:
    """Whether ``part`` has not moved yet in the current training step. Outside a step, every pass counts as a step.

    Args:
        part: A module with a running statistic.
        enter: Whether to record that the part moves now.
    """
    step = _current_step()
    if step is None:
        return True
    seen = _SEEN.setdefault(step, WeakSet())
    first = part not in seen
    if enter:
        seen.add(part)
    return first
