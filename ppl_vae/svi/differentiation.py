"""One pass over an objective: the loss and its gradients as tensors, without reading their values."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .capture import NotStatic

__all__ = ["Pass", "differentiate"]


class Pass(NamedTuple):
    """The result of one pass.

    Attributes:
        outputs: The loss, of shape [], and after it one gradient for each parameter in ``moved``.
        moved: The parameters that have a gradient.
        idle: The parameters that have none.
    """

    outputs: list[Tensor]
    moved: list[Tensor]
    idle: list[Tensor]


def differentiate(objective: Callable[[], Any], parameters: Callable[[], Iterable[Tensor]], elbo: Any) -> Pass:
    """Compute a loss and its gradients.

    Args:
        objective: A function that computes the loss.
        parameters: A function that returns the parameters. It is called after the loss is computed. Parameters that
            require no gradient are left out.
        elbo: The estimator of Pyro inside the objective, or None.

    Raises:
        NotStatic: If the loss is not a tensor that requires a gradient.
    """
    with torch.enable_grad(), _values_unread(elbo):
        loss: Any = objective()
        if not isinstance(loss, Tensor) or not loss.requires_grad:
            raise NotStatic("the loss has no gradient")
        wanted = [parameter for parameter in parameters() if parameter.requires_grad]
        gradients = torch.autograd.grad(loss, wanted, allow_unused=True)
    pairs: list[tuple[Tensor, Any]] = list(zip(wanted, gradients, strict=True))
    found = [(parameter, gradient) for parameter, gradient in pairs if gradient is not None]
    laid_out = [_in_layout_of(parameter, gradient) for parameter, gradient in found]
    moved = [parameter for parameter, _ in found]
    idle = [parameter for parameter, gradient in pairs if gradient is None]
    return Pass([loss.detach(), *laid_out], moved, idle)


def _in_layout_of(parameter: Tensor, gradient: Tensor) -> Tensor:
    """A gradient in the memory layout of its parameter, as ``.grad`` has it. The fused kernel needs equal layouts."""
    return gradient if gradient.stride() == parameter.stride() else torch.empty_like(parameter).copy_(gradient)


@contextmanager
def _values_unread(elbo: Any) -> Iterator[None]:
    """Replace the functions with which Pyro's estimators read the value of a loss, or look for a NaN in it."""
    replacements = {
        "torch_item": lambda value: value.detach() if isinstance(value, Tensor) else value,
        "warn_if_nan": lambda value, *_, **__: value,
    }
    spaces = [vars(sys.modules[family.__module__]) for family in type(elbo).__mro__]
    before = [(space, name, space[name]) for space in spaces for name in replacements if name in space]
    try:
        for space, name, _ in before:
            space[name] = replacements[name]
        yield
    finally:
        for space, name, function in reversed(before):
            space[name] = function
