"""The modes and handlers that are open around a step and change what its code computes."""

from typing import Any

import torch
from pyro.poutine.runtime import _PYRO_STACK
from torch import nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

__all__ = ["modes", "open_handlers"]

GLOBAL_HOOKS = [
    value
    for name, value in vars(nn.modules.module).items()
    if name.startswith(("_global_forward", "_global_backward")) and isinstance(value, dict)
]


def modes() -> tuple[Any, ...]:
    """The modes of torch that choose a graph: autocast, the default type and the default device."""
    return (
        torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu"),
        torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda"),
        torch.get_default_dtype(),
        *[mode.device for mode in _function_modes() if isinstance(mode, DeviceContext)],
    )


def open_handlers() -> str | None:
    """A description of a handler, hook or mode that has to see each call of a step. None if there is none."""
    if _PYRO_STACK:
        return f"a handler of Pyro is open around the step ({type(_PYRO_STACK[-1]).__name__})"
    if any(GLOBAL_HOOKS):
        return "a hook is registered on all modules"
    others = [mode for mode in _function_modes() if not isinstance(mode, DeviceContext)]
    return f"a mode of torch is open around the step ({type(others[-1]).__name__})" if others else None


def _function_modes() -> list[Any]:
    return _get_current_function_mode_stack() if torch._C._len_torch_function_stack() else []
