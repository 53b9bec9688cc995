"""The optimizer of a training: how a user's maker is called and checked, and how a receipt names the optimizer."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from ..svi.adam import Adam

__all__ = ["Maker", "name_of", "optimizer_of"]

Maker = Callable[[list[Tensor]], Optimizer]
REMEDY = "a class such as torch.optim.AdamW, or functools.partial(torch.optim.AdamW, weight_decay=1e-2)"


def optimizer_of(maker: Maker | None, parameters: Sequence[Tensor], lr: float) -> Optimizer:
    """The optimizer of a training.

    Args:
        maker: A callable from a list of parameters to an optimizer of torch, or None for the library's Adam.
        parameters: The parameters that require a gradient.
        lr: The learning rate. The training sets that of every parameter group in each step.

    Raises:
        ValueError: If the maker returns no optimizer, or one whose step needs a closure.
    """
    if maker is None:
        return Adam(parameters, lr)
    made: Any = maker(list(parameters))
    if not isinstance(made, Optimizer):
        raise ValueError(f"optimizer must return a torch.optim.Optimizer, got {made!r}: wanted {REMEDY}")
    closure = inspect.signature(type(made).step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise ValueError(
            f"{type(made).__name__} evaluates the loss several times in a step through a closure, and fit evaluates it "
            f"once, with one draw of the noise: wanted {REMEDY}"
        )
    return made


def name_of(optimizer: Optimizer) -> str:
    """The name of an optimizer with its settings, such as ``"AdamW(weight_decay=0.01)"``.

    A setting is named if it differs from the default of its class. ``weight_decay`` is named whenever it is not 0. The
    learning rate is left out, because the training sets it. Parameter groups with different settings are named one
    after another.
    """
    settings = [_settings(type(optimizer), group) for group in optimizer.param_groups]
    texts = list(dict.fromkeys(", ".join(found) for found in settings))
    name = type(optimizer).__name__
    return name if texts == [""] else f"{name}({'; '.join(texts)})"


def _settings(kind: type[Optimizer], group: dict[str, Any]) -> list[str]:
    """The settings of a parameter group that are named."""
    defaults = {name: parameter.default for name, parameter in inspect.signature(kind).parameters.items()}
    found = []
    for name, value in group.items():
        is_decay = name == "weight_decay" and value != 0
        is_set = name in defaults and name not in ("params", "lr") and value != defaults[name]
        if is_decay or is_set:
            found.append(f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value!r}")
    return found
