"""How parameters are moved by their gradients under ``pyro.optim``, which keeps one torch optimizer per parameter."""

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

SETTINGS = ("lr", "betas", "eps", "weight_decay")
SWITCHES = ("amsgrad", "maximize", "capturable", "differentiable", "decoupled_weight_decay")


class Joint(PyroOptim):
    """One torch optimizer of all parameters, with the interface of ``pyro.optim``.

    Args:
        make: From a list of parameters to a ``torch.optim.Optimizer``.
    """

    def __init__(self, make: Callable[[list[Tensor]], Optimizer]) -> None:
        super().__init__(make, {})
        self.make = make
        self.optimizer: Optimizer | None = None

    def __call__(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Move every parameter by its ``.grad``."""
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
        """The state of the one optimizer, as torch gives it."""
        return {} if self.optimizer is None else self.optimizer.state_dict()

    def set_state(self, state_dict: dict[str, Any]) -> None:
        """Set a state from ``get_state``: at once, or when the first parameters are seen."""
        if self.optimizer is None:
            self._state_waiting_to_be_consumed = dict(state_dict)
        else:
            self.optimizer.load_state_dict(state_dict)


class Mover:
    """Move parameters as an optimizer of Pyro does; those of plain ``pyro.optim.Adam`` all at once.

    The moments stay in the optimizers that Pyro keeps, so that ``get_state``, ``set_state``, ``save``, ``load`` and
    schedulers work as they do under ``pyro.infer.SVI``. Plain Adam is torch's fused kernel, which rounds otherwise than
    the kernels that torch takes without ``fused=True``; any other optimizer is called as Pyro calls it.

    Args:
        optim: Of ``pyro.optim``, or ``Joint``.
    """

    def __init__(self, optim: PyroOptim) -> None:
        self.optim = optim
        known = type(optim) in (PyroOptim, PyroLRScheduler)
        self.one_kernel = known and optim.pt_optim_constructor is torch.optim.Adam
        self.parameters: Sequence[Tensor] | None = None
        self.optimizers: list[Any] = []
        self.states: list[Any] = []
        self.groups: list[dict[str, Any]] = []
        self.settings: list[Any] = []
        self.adam: Adam | None = None

    def __call__(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        """Move by gradients; the same sequence object as last time is the quick way."""
        adam = self.fused(parameters)
        if adam is not None:
            adam.move(parameters, gradients)
            return
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        with torch.enable_grad():  # as Pyro calls it: an optimizer opens its own no_grad
            self.optim(list(parameters))
        for parameter in parameters:
            parameter.grad = None

    def fused(self, parameters: Sequence[Tensor]) -> Adam | None:
        """The one Adam that moves these parameters, with the settings of now; None where Pyro has to be called."""
        if not self.one_kernel:
            return self._joint_adam(parameters)
        if self.parameters is not parameters or not self._as_seen():
            self._arrange(parameters)
        return self.adam

    def _joint_adam(self, parameters: Sequence[Tensor]) -> Adam | None:
        """The Adam of a ``Joint``, where it holds these parameters already."""
        adam = getattr(self.optim, "optimizer", None)
        holds = all(parameter in self.optim.optim_objs for parameter in parameters)
        return adam if holds and isinstance(adam, Adam) and not is_hooked(adam) else None

    def _as_seen(self) -> bool:
        """Whether states and settings are those that the one Adam was made of."""
        return (
            [_settings_of(group) for group in self.groups] == self.settings
            and all(map(is_, [optimizer.state for optimizer in self.optimizers], self.states))
            and not any(map(is_hooked, self.optimizers))
        )

    def _arrange(self, parameters: Sequence[Tensor]) -> None:
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
            self.adam.state[parameter] = _begun(optimizer.state[parameter], parameter)

    def _optimizer_of(self, parameter: Tensor) -> Any:
        """The torch optimizer that Pyro keeps for a parameter; one that is new takes the state that waits for it."""
        if parameter not in self.optim.optim_objs:
            gradient, parameter.grad = parameter.grad, None
            self.optim([parameter])  # nothing moves where there is no gradient
            parameter.grad = gradient
        found = self.optim.optim_objs[parameter]
        return getattr(found, "optimizer", found)  # of a scheduler


_settings_of = itemgetter(*SETTINGS, "amsgrad", "maximize")


def _is_plain(optimizer: Any, parameter: Tensor) -> bool:
    group = optimizer.param_groups[0]
    usual = type(optimizer) is torch.optim.Adam and not any(group.get(name) for name in SWITCHES)
    return (
        usual
        and isinstance(group["lr"], float | int)
        and not is_hooked(optimizer)
        and parameter.is_floating_point()
        and parameter.layout is torch.strided
    )


def _begun(state: dict[str, Any], parameter: Tensor) -> dict[str, Any]:
    """The state of Adam for a parameter, begun in place where there is none; its count where the kernel wants it."""
    if not state:
        averages = {name: torch.zeros_like(parameter, requires_grad=False) for name in ("exp_avg", "exp_avg_sq")}
        state.update({"step": torch.zeros((), dtype=torch.float32), **averages})
    state["step"] = torch.as_tensor(state["step"], dtype=torch.float32).to(parameter.device)
    return state
