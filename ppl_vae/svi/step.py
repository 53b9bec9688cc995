"""One training step: a loss, its gradients and the optimizer, run from a graph where that is proved right."""

import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pyro
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .adam import Adam
from .backends import CudaGraph, backend_for, fx, inductor
from .capture import Function, NotStatic, capture

__all__ = ["Step"]

GRAPHS = 16  # kinds of arguments: shapes and modes; more of them are numbers in disguise


class Step:
    """``loss = step(*args)``: a step of an optimizer down the gradient of ``objective(*args)``, without reading it.

    The first call with arguments of some shapes, in some mode of training, runs eagerly; the second is recorded and
    proved (see ``capture``); those after it run from the graph. What cannot be proved runs eagerly, always.

    Args:
        objective: From tensors, and Python values that stay, to a loss of shape [].
        optimizer: Over the parameters to move; ``Adam`` of this package is the quick one.
        modules: Whose train and eval modes choose the graph.
        backend: ``"auto"`` (fx), ``"eager"``, ``"fx"``, ``"inductor"`` or ``"cudagraph"``.
        elbo: The estimator inside the objective, if it is one of Pyro's that reads its loss back.
        backward: What turns the eager loss into gradients.
        tolerance: Of a compiled step beside the eager one, relative, in the norm of loss and gradients: a compiler adds
            in another order, and batch norm amplifies that.

    Attributes:
        reason: Why the step runs eagerly; None where it need not.
    """

    def __init__(
        self,
        objective: Callable[..., Tensor],
        optimizer: Optimizer | None,
        modules: Iterable[nn.Module] = (),
        backend: str = "auto",
        elbo: Any = None,
        backward: Callable[[Tensor], None] = Tensor.backward,
        tolerance: float = 1e-3,
    ) -> None:
        self.objective, self.optimizer, self.elbo, self.backward = objective, optimizer, elbo, backward
        self.backend = backend_for(backend)
        self.modules, self.tolerance = dict.fromkeys(modules), tolerance
        self.reason: str | None = "eager was asked for" if self.backend == "eager" else None
        self.runs: dict[Any, Callable[..., Tensor] | None] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        if self.reason is not None:
            return self._eagerly(args, kwargs)
        values = (*args, *kwargs.values()) if kwargs else args
        try:
            key = self._key(values, kwargs)
            run = self.runs.get(key)
            if run is None and key in self.runs:
                return self._record(key, args, kwargs)
        except NotStatic as error:
            return self._refuse(error)._eagerly(args, kwargs)
        if run is not None:
            return run(*(value for value in values if isinstance(value, Tensor)))
        loss = self._eagerly(args, kwargs)
        self.runs[self._key(values, kwargs)] = None  # again, for now the modules are known
        return loss

    def _key(self, values: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if len(self.runs) > GRAPHS:
            raise NotStatic(f"more than {GRAPHS} kinds of arguments: a number that changes has to be a tensor")
        kinds = [
            (value.shape, value.stride(), value.dtype, value.device)
            if isinstance(value, Tensor)
            else (type(value), value)
            for value in values
        ]
        state = id(getattr(self.optimizer, "state", None))  # a state that was loaded is another one
        key = (*kinds, *kwargs, state, *[module.training for module in self.modules])
        try:
            hash(key)
        except TypeError as error:
            raise NotStatic(f"an argument can change without notice: {error}") from None
        return key

    def _refuse(self, error: Exception) -> "Step":
        self.reason = str(error)
        self.runs.clear()
        logging.getLogger(__name__).info("the step runs eagerly: %s", self.reason)
        return self

    @property
    def parameters(self) -> list[Tensor]:
        """What the optimizer moves."""
        groups = [] if self.optimizer is None else self.optimizer.param_groups
        return [parameter for group in groups for parameter in group["params"]]

    def _eagerly(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """A step as torch runs it."""
        if self.optimizer is not None:
            self.optimizer.zero_grad()
        with nullcontext() if self.reason else _met(self.modules):
            loss = self.objective(*args, **kwargs)
        self.backward(loss)
        if self.optimizer is not None:
            self.optimizer.step()
            self.optimizer.zero_grad()
        return loss.detach()

    def _record(self, key: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """A step that is recorded, and from then on run from its graph."""
        if any(getattr(parameter, "_post_accumulate_grad_hooks", None) for parameter in self.parameters):
            raise NotStatic("a parameter has a hook that waits for its .grad")
        alone = isinstance(self.optimizer, Adam) and len(self.optimizer.param_groups) == 1
        if self.backend == "cudagraph" and not (alone and self.parameters[0].is_cuda):
            raise NotStatic("a CUDA graph holds the optimizer too: it wants Adam, of one group, on a CUDA device")
        values = [*args, *kwargs.values()]
        places = [place for place, value in enumerate(values) if isinstance(value, Tensor)]
        moved: list[Tensor] = []

        def gradients(*tensors: Tensor) -> list[Tensor]:
            for place, tensor in zip(places, tensors, strict=True):
                values[place] = tensor
            with torch.enable_grad(), pyro.validation_enabled(False), _unread(self.elbo):
                loss = self.objective(*values[: len(args)], **dict(zip(kwargs, values[len(args) :], strict=True)))
                found = torch.autograd.grad(loss, self.parameters, allow_unused=True)
            gradient_of: list[Any] = list(zip(self.parameters, found, strict=True))
            moved[:] = [p for p, gradient in gradient_of if gradient is not None]
            return [loss.detach(), *(_laid_out(gradient, p) for p, gradient in gradient_of if gradient is not None)]

        inputs = [values[place] for place in places]
        build, tolerance = (inductor, self.tolerance) if self.backend == "inductor" else (fx, 0.0)
        outputs, run = capture(gradients, inputs, build, list(self.modules), tolerance)
        with torch.no_grad():
            self._move(moved, outputs[1:])
        if not isinstance(run, NotStatic) and not any(bool(gradient.any()) for gradient in outputs[1:]):
            run = NotStatic("every gradient is zero: the parameters held are not those of the pair")
        try:
            if isinstance(run, NotStatic):
                raise run
            self.runs[key] = self._advance(run, moved, inputs)
        except RuntimeError as error:  # a device's too
            self._refuse(error)
        return outputs[0]

    def _advance(self, run: Function, moved: list[Tensor], inputs: list[Tensor]) -> Callable[..., Tensor]:
        """From inputs to the loss, by way of the optimizer."""

        @torch.no_grad()
        def advance(*inputs: Tensor) -> Tensor:
            loss, *gradients = run(*inputs)
            self._move(moved, gradients)
            return loss

        held = self.backend == "cudagraph" and isinstance(self.optimizer, Adam)
        return CudaGraph(advance, inputs, self.optimizer) if held else advance  # type: ignore[arg-type]

    def _move(self, parameters: list[Tensor], gradients: list[Tensor]) -> None:
        if isinstance(self.optimizer, Adam):
            self.optimizer.move(parameters, gradients)
        elif self.optimizer is not None:
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            self.optimizer.step()
            self.optimizer.zero_grad()


def _laid_out(gradient: Tensor, parameter: Tensor) -> Tensor:
    """A gradient in its parameter's layout, as ``.grad`` has it: the fused kernel reads both side by side."""
    return gradient if gradient.stride() == parameter.stride() else torch.empty_like(parameter).copy_(gradient)


@contextmanager
def _met(modules: dict[nn.Module, None]) -> Iterator[None]:
    """Add the modules that are called to those whose mode is watched: a pair of functions names none."""

    def meet(module: nn.Module, *_: Any) -> None:
        modules.setdefault(module)

    with nn.modules.module.register_module_forward_pre_hook(meet):
        yield


@contextmanager
def _unread(elbo: Any) -> Iterator[None]:
    """Let Pyro's estimators keep the value of the loss a tensor, where they read it or warn of a NaN."""
    kept = {
        "torch_item": lambda value: value.detach() if isinstance(value, Tensor) else value,
        "warn_if_nan": lambda value, *_, **__: value,
    }
    spaces = [vars(sys.modules[family.__module__]) for family in type(elbo).__mro__]
    before = [(space, name, space[name]) for space in spaces for name in kept if name in space]
    try:
        for space, name, _ in before:
            space[name] = kept[name]
        yield
    finally:
        for space, name, value in reversed(before):
            space[name] = value
