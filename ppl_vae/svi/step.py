"""One training step: a loss, its gradients and the optimizer, run from a graph where that is proved right."""

import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import is_
from typing import Any

import pyro
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..streams import set_streams, streams
from .adam import Adam, is_hooked
from .backends import CudaGraph, backend_for, fx, inductor
from .capture import Function, NotStatic, Recording, agree, copy, prove, record, same_streams
from .surroundings import Surroundings, changed, frozen, is_plain, modes, open_handlers

__all__ = ["Stale", "Step"]

GRAPHS = 16  # kinds of steps: shapes, modes and Python values; more of them are numbers in disguise
APART = 500  # steps between two proofs, at the most
SEEN = object()  # stands for a kind of step that has run once


class Stale(RuntimeError):
    """A graph no longer computes what the code does: something changed that no graph can see."""


@dataclass
class Graph:
    """A proved step.

    Attributes:
        run: From the tensors among the arguments to the loss and the gradients.
        launch: The whole step as one launch of a device, where the backend has that.
        moved: The parameters of the gradients, in their order.
        idle: Parameters of the pair that have no gradient in this kind of step.
        held: Tensors that the graph reads or writes beside its arguments.
        calls: Steps of this kind so far.
        due: The call at which the graph is proved again.
        proved: The step, of any kind, at which it last was.
    """

    run: Function
    launch: Callable[..., Tensor] | None
    moved: Sequence[Tensor]
    idle: Sequence[Tensor]
    held: Sequence[Tensor]
    proved: int
    calls: int = 3
    due: int = 4


class Step:
    """``loss = step(*args)``: a step of an optimizer down the gradient of ``objective(*args)``, without reading it.

    A kind of step is the shapes of the arguments, the modes of torch and Pyro, and what Python shows of the pair (see
    ``Surroundings``). The first step of a kind runs eagerly. The second and third are recorded while they run, and have
    to be the same graph (see ``prove``). From the fourth on the graph runs. Its loss and gradients are compared with
    those of an eager pass at the calls 4, 8, 16 and so on, and at least every 500 calls. What cannot be proved runs
    eagerly.

    Args:
        objective: From tensors, and Python values that stay, to a loss of shape [].
        optimizer: Over the parameters to move; ``Adam`` of this package is the quick one.
        modules: Modules and other objects that the objective reads.
        backend: ``"auto"`` (fx), ``"eager"``, ``"fx"``, ``"inductor"`` or ``"cudagraph"``.
        elbo: The estimator inside the objective, if it is one of Pyro's that reads its loss back.
        tolerance: Of a compiled step beside the eager one, relative, in the norm of loss and gradients: a compiler adds
            in another order, and batch norm amplifies that.

    Attributes:
        reason: Why the last step ran eagerly; None where it need not.
        looks_always: Whether the surroundings are looked at in each step. Where it is False they are looked at in the
            next step after ``has_looked`` was set to False.

    Raises:
        Stale: In a step whose graph no longer gives the loss and the gradients of the eager pass.
    """

    def __init__(
        self,
        objective: Callable[..., Tensor],
        optimizer: Optimizer | None,
        modules: Iterable[Any] = (),
        backend: str = "auto",
        elbo: Any = None,
        tolerance: float = 1e-3,
    ) -> None:
        self.objective, self.optimizer, self.elbo = objective, optimizer, elbo
        self.backend = backend_for(backend)
        self.tolerance = tolerance if self.backend == "inductor" else 0.0
        self.surroundings = Surroundings([*modules, elbo])
        self.refused: str | None = "eager was asked for" if self.backend == "eager" else None
        self.passing: str | None = None
        self.runs: dict[Any, Any] = {}
        self.restless: Counter[str] = Counter()
        self.looks_always, self.has_looked = True, False
        self.steps = 0

    @property
    def reason(self) -> str | None:
        """Why the last step ran eagerly; None where it need not."""
        return self.refused or self.passing

    @property
    def parameters(self) -> list[Tensor]:
        """What the optimizer moves."""
        groups = [] if self.optimizer is None else self.optimizer.param_groups
        return [parameter for group in groups for parameter in group["params"]]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.steps += 1
        if self.refused is not None:
            return self._eagerly(args, kwargs)
        values = (*args, *kwargs.values()) if kwargs else args
        self.passing = self._obstacle(values)
        if self.passing is not None:
            return self._eagerly(args, kwargs)
        try:
            key = self._key(values, kwargs)
            known = self.runs.get(key)
            if isinstance(known, Graph):
                return self._run(known, args, kwargs, [value for value in values if isinstance(value, Tensor)])
            if known is not None:
                return self._record(key, known, args, kwargs)
        except NotStatic as error:
            self._refuse(str(error))
            return self._eagerly(args, kwargs)
        return self._meet(args, kwargs, values)

    def _obstacle(self, values: Sequence[Any]) -> str | None:
        """Why this one step has to run eagerly; None where it need not. It looks at the surroundings."""
        if not torch.is_grad_enabled() or torch.is_inference_mode_enabled():
            return "gradients are switched off around the step"
        if any(isinstance(value, Tensor) and value.requires_grad for value in values):
            return "an argument asks for a gradient, which a graph does not give it"
        last = self.surroundings.last
        if self.looks_always or not self.has_looked or last is None:
            last, self.has_looked = self.surroundings.look(), True
        return open_handlers() or last.hooked

    def _key(self, values: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        if len(self.runs) > GRAPHS:
            raise NotStatic(self._too_many())
        state = self._identity()
        return *map(_kind, values), *kwargs, state, self.surroundings.number, modes()

    def _identity(self) -> Any:
        """Which optimizer a graph would hold: one with a state that was loaded is another one."""
        return id(getattr(self.optimizer, "state", None))

    def _too_many(self) -> str:
        seen = [label for label, _ in self.surroundings.changes.most_common(3)]
        changes = f"{', '.join(seen)} changed: " if seen else ""
        return f"more than {GRAPHS} kinds of steps: {changes}a number that changes has to be a tensor"

    def _refuse(self, reason: str) -> None:
        self.refused = reason
        self.runs.clear()
        logging.getLogger(__name__).info("the step runs eagerly: %s", reason)

    # The first step of a kind.

    def _meet(self, args: tuple[Any, ...], kwargs: dict[str, Any], values: Sequence[Any]) -> Any:
        """Run the first step of a kind eagerly, and watch what it calls."""
        before = self.surroundings.look().state
        with self.surroundings.met():
            loss = self._eagerly(args, kwargs)
        self._watch_itself(before)
        if self.refused is None:
            self.runs.setdefault(self._key(values, kwargs), SEEN)  # again, for now the modules are known
        return loss

    def _watch_itself(self, before: dict[Any, Any]) -> None:
        """Refuse a pair that changes on the Python side in each step; what is made in a first step is made once."""
        after = self.surroundings.look().state
        moved = changed(before, after)
        self.restless.update(moved)
        again = [words for words in moved if self.restless[words] > 1]
        if again:
            self._refuse(f"{again[0]} is changed by the step itself: keep it in a buffer, and write that in place")

    def _eagerly(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Take a step as torch runs it."""
        if self.optimizer is not None:
            self.optimizer.zero_grad()
        loss = self.objective(*args, **kwargs)
        loss.backward()
        if self.optimizer is not None:
            self.optimizer.step()
            self.optimizer.zero_grad()
        return loss.detach()

    # The second and the third.

    def _record(self, key: Any, known: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """Take a step that is recorded; the second recording of a kind is proved."""
        if self.backend == "cudagraph" and self._whole() is None:
            raise NotStatic("a CUDA graph holds the optimizer too: it wants Adam, of one group, on a CUDA device")
        before, restore = self.surroundings.look().state, self.surroundings.snapshot()
        values = [*args, *kwargs.values()]
        places = [place for place, value in enumerate(values) if isinstance(value, Tensor)]
        parts: tuple[list[Tensor], list[Tensor]] = [], []

        def step(*tensors: Tensor) -> list[Tensor]:
            for place, tensor in zip(places, tensors, strict=True):
                values[place] = tensor
            with pyro.validation_enabled(False):
                outputs, *found = self._gradients(
                    values[: len(args)], dict(zip(kwargs, values[len(args) :], strict=True))
                )
            for part, tensors_of_it in zip(parts, found, strict=True):
                part[:] = tensors_of_it
            return outputs

        recording = record(step, [values[place] for place in places], restore)
        moved, idle = parts
        stranger = _stranger(recording, [*moved, *idle])
        if stranger is not None:
            recording.rewind()
            restore()
            raise NotStatic(stranger)
        loss, *gradients = recording.outputs
        graph = self._kept(key, known, recording, moved, idle)
        with torch.no_grad():
            self._move(moved, gradients, idle)
        if graph is not None and self.backend == "cudagraph":
            graph.launch = self._launch(graph, recording.inputs)
        self._watch_itself(before)
        return loss

    def _kept(
        self, key: Any, known: Any, recording: Recording, moved: list[Tensor], idle: list[Tensor]
    ) -> Graph | None:
        """Keep a recording, or the graph that two of them prove; the step that was recorded is right in any case."""
        if known is SEEN:
            recording.forget()
            self.runs[key] = recording, [*moved], [*idle]
            return None
        first, *parts = known
        try:
            if not all(map(_same_tensors, parts, (moved, idle))):
                raise NotStatic("two recorded steps part: other parameters have a gradient")
            run = prove(first, recording, inductor if self.backend == "inductor" else fx, self.tolerance)
            if not any(bool(gradient.any()) for gradient in recording.outputs[1:]):
                raise NotStatic("every gradient is zero: the parameters held are not those of the pair")
        except NotStatic as error:
            self._refuse(str(error))
            return None
        self.runs[key] = Graph(run, None, [*moved], [*idle], recording.held, self.steps)
        return self.runs[key]

    def _gradients(
        self, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """The loss and the gradients, the parameters of these, and those parameters that have none."""
        with torch.enable_grad(), _unread(self.elbo):
            loss: Any = self.objective(*args, **kwargs)
            if not isinstance(loss, Tensor) or not loss.requires_grad:
                raise NotStatic("the loss has no gradient")
            parameters = [parameter for parameter in self.parameters if parameter.requires_grad]
            found = torch.autograd.grad(loss, parameters, allow_unused=True)
        gradient_of: list[Any] = list(zip(parameters, found, strict=True))
        moved = [parameter for parameter, gradient in gradient_of if gradient is not None]
        idle = [parameter for parameter, gradient in gradient_of if gradient is None]
        gradients = [_laid_out(gradient, parameter) for parameter, gradient in gradient_of if gradient is not None]
        return [loss.detach(), *gradients], moved, idle

    def _whole(self) -> Any:
        """The one Adam, of one group, that a launch can hold; None where there is none."""
        alone = isinstance(self.optimizer, Adam) and len(self.optimizer.param_groups) == 1
        return self.optimizer if alone and self.parameters[0].is_cuda else None

    def _launch(self, graph: Graph, inputs: Sequence[Tensor]) -> Callable[..., Tensor] | None:
        @torch.no_grad()
        def advance(*inputs: Tensor) -> Tensor:
            loss, *gradients = graph.run(*inputs)
            self._move(graph.moved, gradients, graph.idle)
            return loss

        try:
            return CudaGraph(advance, inputs, self._whole())
        except RuntimeError as error:
            self._refuse(str(error))
            return None

    # All others.

    def _run(self, graph: Graph, args: tuple[Any, ...], kwargs: dict[str, Any], inputs: list[Tensor]) -> Tensor:
        """Take a step from its graph."""
        graph.calls += 1
        outputs: list[Tensor] = []
        if graph.calls >= graph.due:
            outputs, rewind = self._prove_again(graph, args, kwargs, inputs)
            graph.proved, graph.due = self.steps, min(2 * graph.calls, graph.calls + APART)
            if graph.launch is not None:
                rewind()
        if graph.launch is not None:
            return graph.launch(*inputs)
        with torch.no_grad():
            loss, *gradients = outputs or graph.run(*inputs)
            self._move(graph.moved, gradients, graph.idle)
        return loss

    def _prove_again(
        self, graph: Graph, args: tuple[Any, ...], kwargs: dict[str, Any], inputs: list[Tensor]
    ) -> tuple[list[Tensor], Callable[[], None]]:
        """Compare the graph with an eager pass from the same streams, of which nothing else is left.

        Returns:
            What the graph gave, and what puts back the tensors and the streams that it moved.
        """
        buffers = [tensor for module in self.surroundings.modules for tensor in module._buffers.values()]
        tensors = list({id(t): t for t in (*inputs, *graph.held, *buffers) if t is not None}.values())
        start, values = streams(), [tensor.detach().clone() for tensor in tensors]
        restore = self.surroundings.snapshot()

        def rewind() -> None:
            copy(values, tensors)
            set_streams(start)

        torch.clear_autocast_cache()
        try:
            with pyro.validation_enabled(False):  # as in the recordings: checks of values add in another order
                eager, moved, _ = self._gradients(args, kwargs)
            end = streams()
        finally:
            rewind()
            restore()
        with torch.no_grad():
            ours = graph.run(*inputs)
        same = _same_tensors(moved, graph.moved) and same_streams(streams(), end)
        if not (same and agree(ours[:1], eager[:1], self.tolerance) and self._agree(ours[1:], eager[1:])):
            rewind()
            self._refuse("the graph was found to be stale")
            raise Stale(
                f"step {self.steps}: the graph gives a loss of {float(ours[0]):.9g} and the code one of "
                f"{float(eager[0]):.9g}, or their gradients or draws differ. Something that the pair reads has changed "
                f"unseen. Both last agreed at step {graph.proved}, and weights may be wrong since then. Make what "
                "changes a tensor (an argument, or a buffer written in place), or choose backend='eager'"
            )
        return ours, rewind

    def _agree(self, ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> bool:
        """Whether gradients agree; a device may add in another order each time."""
        on_cpu = all(gradient.device.type == "cpu" for gradient in ours)
        return agree(ours, theirs, self.tolerance if on_cpu else max(self.tolerance, 1e-3))

    def _move(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor], idle: Sequence[Tensor]) -> None:
        """Move parameters by gradients; those that have none stay."""
        if isinstance(self.optimizer, Adam) and not is_hooked(self.optimizer):
            self.optimizer.move(parameters, gradients)
        elif self.optimizer is not None:
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            self.optimizer.step()
            self.optimizer.zero_grad()


def _kind(value: Any) -> Any:
    """What of an argument chooses a graph: the shape of a tensor, a Python value as it is."""
    if type(value) in (Tensor, nn.Parameter):
        if value.layout is not torch.strided:
            raise NotStatic(f"an argument is a tensor of layout {value.layout}")
        return value.shape, value.stride(), value.dtype, value.device
    if not is_plain(value):
        raise NotStatic(f"an argument of type {type(value).__name__} can change without notice")
    return frozen(value)


def _same_tensors(ours: Sequence[Any], theirs: Sequence[Any]) -> bool:
    """Whether two sequences hold the same objects."""
    return len(ours) == len(theirs) and all(map(is_, ours, theirs))


def _stranger(recording: Recording, parameters: Sequence[Tensor]) -> str | None:
    """Say that a tensor outside of the parameters would be given a gradient, which a graph does not do."""
    known = {id(parameter) for parameter in parameters}
    for tensor in recording.held:
        if tensor.requires_grad and tensor.is_leaf and id(tensor) not in known:
            return f"a tensor {list(tensor.shape)} that the optimizer does not move asks for a gradient"
    return None


def _laid_out(gradient: Tensor, parameter: Tensor) -> Tensor:
    """A gradient in its parameter's layout, as ``.grad`` has it: the fused kernel reads both side by side."""
    return gradient if gradient.stride() == parameter.stride() else torch.empty_like(parameter).copy_(gradient)


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
