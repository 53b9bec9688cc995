"""torch's fused Adam kernel without the bookkeeping of ``torch.optim``.

For a small network this bookkeeping takes as long as the gradients do.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

__all__ = ["Adam", "is_hooked"]


def is_hooked(optimizer: Any) -> bool:
    """Whether a hook is registered on ``optimizer.step()``, so that this method has to be called."""
    own = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
    return bool(own or _global_optimizer_pre_hooks or _global_optimizer_post_hooks)


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
        """Update the parameters with the gradients. The caller has switched gradients off.

        A call with the same sequence object as the last call is fast, because the kernel's lists are kept.
        """
        if self.moved is not parameters:
            self.moved, self.kinds = parameters, self._kinds(parameters)
        for group, places, moved, averages, squares, steps in self.kinds:
            counters = {id(step): step for step in steps}  # a counter that several parameters share counts once
            torch._foreach_add_(list(counters.values()), 1)
            torch._fused_adam_(
                moved,
                [gradients[place] for place in places],
                averages,
                squares,
                [],
                steps,
                lr=group["lr"],
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                amsgrad=False,
                maximize=False,
            )

    def _kinds(self, parameters: Sequence[Tensor]) -> list[Any]:
        """The lists that the kernel takes: one set of lists per parameter group, data type and device."""
        counters: dict[Any, Tensor] = {}
        kinds: dict[Any, tuple[Any, ...]] = {}
        group_of = {p: index for index, group in enumerate(self.param_groups) for p in group["params"]}
        for place, parameter in enumerate(parameters):
            state = self.state[parameter]
            index = group_of[parameter]
            kind = (index, parameter.dtype, parameter.device)
            if not state:
                zero = torch.zeros((), dtype=torch.float32, device=parameter.device)
                averages = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
                state.update({"step": counters.setdefault(kind, zero), **averages})
            elif len(parameters) < len(self.state):  # not all parameters move, so that counters differ from now on
                state["step"] = state["step"].clone()
            lists = kinds.setdefault(kind, (self.param_groups[index], [], [], [], [], []))
            row = (place, parameter, state["exp_avg"], state["exp_avg_sq"], state["step"])
            for column, entry in zip(lists[1:], row, strict=True):
                column.append(entry)
        return list(kinds.values())
