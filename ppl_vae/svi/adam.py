"""torch's fused Adam kernel without the bookkeeping of ``torch.optim``.

For a small network this bookkeeping takes as long as the gradients do.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

__all__ = ["Adam", "is_hooked"]


def is_hooked(optimizer: Any) -> bool:
    """Whether a hook is registered on ``optimizer.step()``, so that this method has to be called."""
    own = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
    return bool(own or _global_optimizer_pre_hooks or _global_optimizer_post_hooks)


class _Lists(NamedTuple):
    """The kernel's lists for the parameters of one group, data type and device.

    Attributes:
        group: The parameter group, with the settings.
        places: The positions of these parameters in the sequence of all parameters that move.
        parameters: The parameters.
        averages: The running averages of their gradients.
        squares: The running averages of their squared gradients.
        counters: Their counters of steps.
    """

    group: dict[str, Any]
    places: list[int]
    parameters: list[Tensor]
    averages: list[Tensor]
    squares: list[Tensor]
    counters: list[Tensor]


class Adam(torch.optim.Optimizer):
    """The same updates as ``torch.optim.Adam(..., fused=True)``, to the last bit.

    The method ``move`` takes the gradients as an argument and does not read ``.grad``. Parameters that always move
    together share one counter of steps.

    Args:
        params: The parameters or parameter groups, as for every optimizer of torch.
        lr: The learning rate. It is a tensor if a CUDA graph has to see it change.
        betas: The decay rates of the two running averages.
        eps: The number that is added to the denominator.
        weight_decay: The factor of the L2 penalty that is added to the gradient.

    References:
        Kingma and Ba, Adam: A Method for Stochastic Optimization, 2015, algorithm 1. https://arxiv.org/abs/1412.6980
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        self.moved: Sequence[Tensor] = ()
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.moved = ()  # a loaded state consists of new tensors, so the lists are made again

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter with its ``.grad``."""
        parameters = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        with torch.no_grad():
            self.move(parameters, [p.grad for p in parameters])

    def move(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        """Update the parameters with the gradients, in the same order. Call it under ``torch.no_grad()``.

        A call with the same sequence object as the last call is fast, because the kernel's lists are kept.
        """
        if self.moved is not parameters:
            self.moved, self.lists = parameters, self._lists(parameters)
        for lists in self.lists:
            group = lists.group
            distinct = {id(counter): counter for counter in lists.counters}  # parameters may share a counter
            torch._foreach_add_(list(distinct.values()), 1)
            torch._fused_adam_(
                lists.parameters,
                [gradients[place] for place in lists.places],
                lists.averages,
                lists.squares,
                [],
                lists.counters,
                lr=group["lr"],
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                amsgrad=False,
                maximize=False,
            )

    def _lists(self, parameters: Sequence[Tensor]) -> list[_Lists]:
        """The kernel's lists. A parameter that moves for the first time gets a state."""
        lists: dict[Any, _Lists] = {}
        counters: dict[Any, Tensor] = {}
        group_of = {p: index for index, group in enumerate(self.param_groups) for p in group["params"]}
        for place, parameter in enumerate(parameters):
            index = group_of[parameter]
            kind = index, parameter.dtype, parameter.device
            state = self.state[parameter]
            if not state:
                zero = torch.zeros((), dtype=torch.float32, device=parameter.device)
                averages = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
                state.update({"step": counters.setdefault(kind, zero), **averages})
            elif len(parameters) < len(self.state):  # not all parameters move, so that counters differ from now on
                state["step"] = state["step"].clone()
            found = lists.setdefault(kind, _Lists(self.param_groups[index], [], [], [], [], []))
            found.places.append(place)
            found.parameters.append(parameter)
            found.averages.append(state["exp_avg"])
            found.squares.append(state["exp_avg_sq"])
            found.counters.append(state["step"])
        return list(lists.values())
