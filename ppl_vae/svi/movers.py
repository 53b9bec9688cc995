"""Move parameters as ``pyro.optim`` does, but all of them in one kernel. Pyro keeps one torch optimizer for each."""

from collections.abc import Callable, Sequence
from operator import is_, itemgetter
from typing import Any

import torch
from pyro.optim import PyroOptim
from pyro.optim.lr_scheduler import PyroLRScheduler
from torch import Tensor
from torch.optim import Optimizer

from .adam import Adam, is_hooked

__all__ = ["Joint", "Mover"]

# Settings of Adam that the fused kernel takes, and settings that have to be off for it.
SETTINGS = ("lr", "betas", "eps", "weight_decay")
SWITCHES = ("amsgrad", "maximize", "capturable", "differentiable", "decoupled_weight_decay")

_settings_of = itemgetter(*SETTINGS, "amsgrad", "maximize")


class Joint(PyroOptim):
    """One torch optimizer for all parameters, with the interface of ``pyro.optim``.

    Args:
        make: A function from a list of parameters to a ``torch.optim.Optimizer``.
    """

    def __init__(self, make: Callable[[list[Tensor]], Optimizer]) -> None:
        super().__init__(make, {})
        self.make = make
        self.optimizer: Optimizer | None = None

    def __call__(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Update every parameter with its ``.grad``. Parameters that are new are added to the optimizer."""
        new = [parameter for parameter in params if parameter not in self.optim_objs]
        if new and self.optimizer is None:
            self.optimizer = self.make(new)
            if self._state_waiting_to_be_consumed:
                self.optimizer.load_state_dict(self._state_waiting_to_be_consumed)
                self._state_waiting_to_be_consumed = {}
        elif new:
            self.optimizer.add_param_group({"params": new})  # type: ignore[union-attr]
        self.optim_objs |= dict.fromkeys(new, self.optimizer)
        if self.optimizer is not None:
            self.optimizer.step(*args, **kwargs)

    def get_state(self) -> dict[str, Any]:
        """The ``state_dict`` of the optimizer, which is empty before the first step."""
        return {} if self.optimizer is None else self.optimizer.state_dict()

    def set_state(self, state_dict: dict[str, Any]) -> None:
        """Load a state that ``get_state`` returned. Before the first step it waits until the optimizer is made."""
        if self.optimizer is None:
            self._state_waiting_to_be_consumed = dict(state_dict)
        else:
            self.optimizer.load_state_dict(state_dict)


class Mover:
    """Move parameters as an optimizer of Pyro does.

    If the optimizer is plain ``pyro.optim.Adam``, torch's fused kernel moves all parameters at once. This kernel rounds
    differently from the kernels that torch uses without ``fused=True``. Any other optimizer is called as Pyro calls it.
    The averages of Adam stay in the optimizers that Pyro keeps, so that ``get_state``, ``set_state``, ``save``,
    ``load`` and schedulers work as they do with ``pyro.infer.SVI``.

    Args:
        optim: An optimizer of ``pyro.optim``, or a ``Joint``.
    """

    def __init__(self, optim: PyroOptim) -> None:
        self.optim = optim
        is_plain_class = type(optim) in (PyroOptim, PyroLRScheduler)
        self.one_kernel = is_plain_class and optim.pt_optim_constructor is torch.optim.Adam
        # The Adam that moves ``parameters`` at once, and the optimizers, states and settings that it was made from.
        self.parameters: Sequence[Tensor] | None = None
        self.optimizers: list[Any] = []
        self.states: list[Any] = []
        self.groups: list[dict[str, Any]] = []
        self.settings: list[Any] = []
        self.adam: Adam | None = None

    def __call__(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        """Move the parameters. A call with the same sequence object of parameters as the last call is fast."""
        adam = self.fused(parameters)
        if adam is not None:
            adam.move(parameters, gradients)
            return
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        with torch.enable_grad():  # as Pyro calls it: the optimizer itself switches gradients off
            self.optim(list(parameters))
        for parameter in parameters:
            parameter.grad = None

    def fused(self, parameters: Sequence[Tensor]) -> Adam | None:
        """The Adam that moves these parameters at once, with their present settings. None if Pyro has to be called."""
        if not self.one_kernel:
            return self._joint_adam(parameters)
        if not self._are_arranged(parameters) or not self._as_seen():
            self._arrange(parameters)
        return self.adam

    def _are_arranged(self, parameters: Sequence[Tensor]) -> bool:
        """Whether the present Adam was made for these parameters, in this order. The sequence may be a new object."""
        if self.parameters is parameters:
            return True
        arranged = self.parameters or ()
        return len(arranged) == len(parameters) and all(map(is_, arranged, parameters))

    def _joint_adam(self, parameters: Sequence[Tensor]) -> Adam | None:
        """The Adam of a ``Joint`` that holds all these parameters. None if there is none."""
        adam = getattr(self.optim, "optimizer", None)
        holds = all(parameter in self.optim.optim_objs for parameter in parameters)
        return adam if holds and isinstance(adam, Adam) and not is_hooked(adam) else None

    def _as_seen(self) -> bool:
        """Whether the states and settings are those that the present Adam was made from."""
        return (
            [_settings_of(group) for group in self.groups] == self.settings
            and all(map(is_, [optimizer.state for optimizer in self.optimizers], self.states))
            and not any(map(is_hooked, self.optimizers))
        )

    def _arrange(self, parameters: Sequence[Tensor]) -> None:
        """Make the Adam that moves these parameters at once, or none if an optimizer is not plain Adam."""
        self.parameters, self.adam = parameters, None
        optimizers = [self._optimizer_of(parameter) for parameter in parameters]
        plain = all(map(_is_plain, optimizers, parameters))
        self.optimizers, self.states = optimizers, [optimizer.state for optimizer in optimizers]
        self.groups = [group for optimizer in optimizers for group in optimizer.param_groups] if plain else []
        self.settings = [_settings_of(group) for group in self.groups]
        clipped = any(self.optim.grad_clip[parameter] is not None for parameter in parameters)
        if clipped or not parameters or not plain:
            return
        groups: dict[Any, dict[str, Any]] = {}
        for parameter, optimizer in zip(parameters, optimizers, strict=True):
            settings = {name: optimizer.param_groups[0][name] for name in SETTINGS}
            groups.setdefault(repr(settings), {"params": [], **settings})["params"].append(parameter)
        self.adam = Adam(list(groups.values()))
        for parameter, optimizer in zip(parameters, optimizers, strict=True):
            self.adam.state[parameter] = _filled(optimizer.state[parameter], parameter)

    def _optimizer_of(self, parameter: Tensor) -> Any:
        """The torch optimizer that Pyro keeps for a parameter. A new one takes the state that waits for it."""
        if parameter not in self.optim.optim_objs:
            gradient, parameter.grad = parameter.grad, None
            self.optim([parameter])  # makes the optimizer; without a gradient nothing moves
            parameter.grad = gradient
        found = self.optim.optim_objs[parameter]
        return getattr(found, "optimizer", found)  # a scheduler holds its optimizer


def _is_plain(optimizer: Any, parameter: Tensor) -> bool:
    """Whether the fused kernel updates a parameter as its optimizer would."""
    group = optimizer.param_groups[0]
    return (
        type(optimizer) is torch.optim.Adam
        and not any(group.get(name) for name in SWITCHES)
        and isinstance(group["lr"], float | int)
        and not is_hooked(optimizer)
        and parameter.is_floating_point()
        and parameter.layout is torch.strided
    )


def _filled(state: dict[str, Any], parameter: Tensor) -> dict[str, Any]:
    """The state of Adam for a parameter, on the parameter's device. An empty state is filled in place."""
    if not state:
        averages = {name: torch.zeros_like(parameter, requires_grad=False) for name in ("exp_avg", "exp_avg_sq")}
        state.update({"step": torch.zeros((), dtype=torch.float32), **averages})
    state["step"] = torch.as_tensor(state["step"], dtype=torch.float32).to(parameter.device)
    return state
