"""One training step: when it runs eagerly, when it is recorded, and when it runs from a proved graph."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from operator import is_
from typing import Any

import pyro
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..streams import set_stream_states, stream_states
from .adam import Adam, is_hooked
from .backends import CudaGraph, backend_for, fx, inductor
from .capture import Function, NotStatic, Recording, put_back, record
from .differentiation import Pass, differentiate
from .handlers import modes, open_handlers
from .precision import TOLERANCES
from .proof import agree, prove, same_streams
from .python_values import frozen, is_plain
from .surroundings import Surroundings, changed

__all__ = ["Stale", "Step"]

GRAPHS = 16  # the most kinds of steps; more of them mean that some Python number changes in each step
APART = 500  # the most calls of a graph between two proofs
SEEN = object()  # stands for a kind of step that has run once


class Stale(RuntimeError):
    """A graph no longer computes what the code computes, because something changed that Python cannot see."""


@dataclass
class Graph:
    """The proved graph of one kind of step.

    Attributes:
        run: A function from the tensors among the arguments to the loss and the gradients.
        launch: The whole step as one launch on a CUDA device. None for the other backends.
        moved: The parameters that have a gradient, in the order of the gradients.
        idle: The parameters that have no gradient in this kind of step.
        held: Tensors that the graph reads or writes besides its arguments.
        proved_at: The number of the step at which the graph was last proved. Steps of all kinds count.
        calls: The number of steps of this kind.
        due: The call at which the graph is proved again.
    """

    run: Function
    launch: Callable[..., Tensor] | None
    moved: Sequence[Tensor]
    idle: Sequence[Tensor]
    held: Sequence[Tensor]
    proved_at: int
    calls: int = 3
    due: int = 4


class Step:
    """One step of an optimizer: ``loss = step(*args)`` lowers ``objective(*args)`` without reading its value.

    Steps are of the same kind if the shapes of their arguments, the modes of torch and everything that Python sees of
    the model are the same (see ``Surroundings``). The first step of a kind runs eagerly. The second and the third are
    recorded while they run, and both recordings have to be the same graph (see ``prove``). From the fourth step on
    the graph runs. At the calls 4, 8, 16 and so on, and at least every 500 calls, its loss and gradients are compared
    with those of an eager pass. A step that cannot be proved runs eagerly.

    Args:
        objective: A function from tensors, and from Python values that do not change, to a loss of shape [].
        optimizer: The optimizer that moves the parameters. ``Adam`` of this package is the fastest.
        modules: Modules and other objects that the objective reads.
        backend: ``"auto"`` (which is fx), ``"eager"``, ``"fx"``, ``"inductor"`` or ``"cudagraph"``.
        elbo: The estimator inside the objective, if it is one of Pyro's.
        tolerance: The relative error that the loss and the gradients of a compiled step may have, each in its norm. A
            compiler adds in another order, and batch norm amplifies the difference.

    Attributes:
        reason: Why the last step ran eagerly. None if nothing speaks against a graph.
        looks_always: Whether each step looks at the surroundings. If it is False, a step looks at them only after
            ``has_looked`` was set to False.

    Raises:
        Stale: If a graph no longer gives the loss and the gradients of the eager pass.
    """

    def __init__(
        self,
        objective: Callable[..., Tensor],
        optimizer: Optimizer | None,
        modules: Iterable[Any] = (),
        backend: str = "auto",
        elbo: Any = None,
        tolerance: float = TOLERANCES["full"],
    ) -> None:
        self.objective = objective
        self.optimizer = optimizer
        self.elbo = elbo
        self.backend = backend_for(backend)
        self.tolerance = tolerance if self.backend == "inductor" else 0.0
        self.surroundings = Surroundings([*modules, elbo])
        self.refused: str | None = "the eager backend was chosen" if self.backend == "eager" else None
        self.passing: str | None = None  # why the last step ran eagerly, although the next may have a graph
        self.runs: dict[Any, Any] = {}  # by kind: SEEN, later a recording with its parameters, at last a Graph
        self.restless: Counter[str] = Counter()  # how often a step changed something in Python, by its name in words
        self.looks_always, self.has_looked = True, False
        self.steps = 0

    @property
    def reason(self) -> str | None:
        """Why the last step ran eagerly. None if nothing speaks against a graph."""
        return self.refused or self.passing

    @property
    def parameters(self) -> list[Tensor]:
        """The parameters that the optimizer moves."""
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
            kind = self._kind(values, kwargs)
            known = self.runs.get(kind)
            if isinstance(known, Graph):
                return self._run(known, args, kwargs, [value for value in values if isinstance(value, Tensor)])
            if known is not None:
                return self._record(kind, known, args, kwargs)
        except NotStatic as error:
            self._refuse(str(error))
            return self._eagerly(args, kwargs)
        return self._first(args, kwargs, values)

    def _obstacle(self, values: Sequence[Any]) -> str | None:
        """Look at the surroundings, and return why this one step has to run eagerly. None if a graph is possible."""
        if not torch.is_grad_enabled() or torch.is_inference_mode_enabled():
            return "gradients are switched off around the step"
        if any(isinstance(value, Tensor) and value.requires_grad for value in values):
            return "an argument requires a gradient, which a graph does not compute"
        last = self.surroundings.last
        if self.looks_always or not self.has_looked or last is None:
            last, self.has_looked = self.surroundings.look(), True
        return open_handlers() or last.hooked

    def _kind(self, values: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """The key under which the graph of a step is kept. It holds everything that the choice of a graph depends on.

        Raises:
            NotStatic: If there are too many kinds of steps, or an argument cannot be part of a graph.
        """
        if len(self.runs) > GRAPHS:
            raise NotStatic(self._too_many_kinds())
        return *map(_argument_kind, values), *kwargs, self._optimizer_kind(), self.surroundings.number, modes()

    def _optimizer_kind(self) -> Any:
        """The identity of the optimizer's state. A state that was loaded is another object."""
        return id(getattr(self.optimizer, "state", None))

    def _too_many_kinds(self) -> str:
        seen = [label for label, _ in self.surroundings.changes.most_common(3)]
        changes = f", because {', '.join(seen)} changed" if seen else ""
        return f"there are more than {GRAPHS} kinds of steps{changes}: a number that changes has to be a tensor"

    def _refuse(self, reason: str) -> None:
        """Take all later steps eagerly."""
        self.refused = reason
        self.runs.clear()
        logging.getLogger(__name__).info("the step runs eagerly: %s", reason)

    # The first step of a kind runs eagerly.

    def _first(self, args: tuple[Any, ...], kwargs: dict[str, Any], values: Sequence[Any]) -> Any:
        """Run the first step of a kind eagerly, and watch the modules that it calls."""
        before = self.surroundings.look().state
        with self.surroundings.watching_calls():
            loss = self._eagerly(args, kwargs)
        self._refuse_what_changes_itself(before)
        if self.refused is None:
            kind = self._kind(values, kwargs)  # the kind is known only now, after the modules were found
            self.runs.setdefault(kind, SEEN)
        return loss

    def _refuse_what_changes_itself(self, before: dict[Any, Any]) -> None:
        """Refuse a step that changes something in Python for the second time. A single change may be a set-up."""
        after = self.surroundings.look().state
        changes = changed(before, after)
        self.restless.update(changes)
        repeated = [words for words in changes if self.restless[words] > 1]
        if repeated:
            self._refuse(f"{repeated[0]} is changed by the step itself: keep it in a buffer that is written in place")

    def _eagerly(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Take a step without a graph."""
        if self.optimizer is not None:
            self.optimizer.zero_grad()
        loss = self.objective(*args, **kwargs)
        loss.backward()
        if self.optimizer is not None:
            self.optimizer.step()
            self.optimizer.zero_grad()
        return loss.detach()

    # The second and the third step are recorded.

    def _record(self, kind: Any, known: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """Take a step and record it. After the second recording of a kind the graph is proved."""
        if self.backend == "cudagraph" and self._whole_optimizer() is None:
            raise NotStatic("a CUDA graph holds the optimizer too: it needs one Adam with one group on a CUDA device")
        before, restore = self.surroundings.look().state, self.surroundings.snapshot()
        values = [*args, *kwargs.values()]
        places = [place for place, value in enumerate(values) if isinstance(value, Tensor)]
        passes: list[Pass] = []

        def step(*tensors: Tensor) -> list[Tensor]:
            for place, tensor in zip(places, tensors, strict=True):
                values[place] = tensor
            positional, named = values[: len(args)], dict(zip(kwargs, values[len(args) :], strict=True))
            with pyro.validation_enabled(False):
                passes.append(self._pass(positional, named))
            return passes[0].outputs

        recording = record(step, [values[place] for place in places], restore)
        found = passes[0]
        stranger = _stranger(recording, [*found.moved, *found.idle])
        if stranger is not None:
            recording.rewind()
            restore()
            raise NotStatic(stranger)
        loss, *gradients = found.outputs
        graph = self._keep(kind, known, recording, found)
        with torch.no_grad():
            self._move(found.moved, gradients, found.idle)
        if graph is not None and self.backend == "cudagraph":
            graph.launch = self._launch(graph, recording.inputs)
        self._refuse_what_changes_itself(before)
        return loss

    def _keep(self, kind: Any, known: Any, recording: Recording, found: Pass) -> Graph | None:
        """Keep the first recording of a kind, or the graph that the second one proves.

        The recorded step itself is correct even if the proof fails.
        """
        if known is SEEN:
            recording.forget()
            self.runs[kind] = recording, [*found.moved], [*found.idle]
            return None
        first, moved, idle = known
        try:
            if not _same_objects(moved, found.moved) or not _same_objects(idle, found.idle):
                raise NotStatic("two recorded steps differ: different parameters have a gradient")
            run = prove(first, recording, inductor if self.backend == "inductor" else fx, self.tolerance)
            if not any(bool(gradient.any()) for gradient in found.outputs[1:]):
                raise NotStatic("every gradient is zero: these are not the parameters that the loss depends on")
        except NotStatic as error:
            self._refuse(str(error))
            return None
        self.runs[kind] = Graph(run, None, moved, idle, recording.held, proved_at=self.steps)
        return self.runs[kind]

    def _pass(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Pass:
        """The loss and the gradients of one pass."""
        return differentiate(lambda: self.objective(*args, **kwargs), lambda: self.parameters, self.elbo)

    def _whole_optimizer(self) -> Any:
        """The Adam that one launch can hold, with one group on a CUDA device. None if there is no such optimizer."""
        has_one_group = isinstance(self.optimizer, Adam) and len(self.optimizer.param_groups) == 1
        return self.optimizer if has_one_group and self.parameters[0].is_cuda else None

    def _launch(self, graph: Graph, inputs: Sequence[Tensor]) -> Callable[..., Tensor] | None:
        """Capture the whole step, its optimizer included, as one launch. None if the device refuses it."""

        @torch.no_grad()
        def advance(*inputs: Tensor) -> Tensor:
            loss, *gradients = graph.run(*inputs)
            self._move(graph.moved, gradients, graph.idle)
            return loss

        try:
            return CudaGraph(advance, inputs, self._whole_optimizer())
        except RuntimeError as error:
            self._refuse(str(error))
            return None

    # All later steps run from the graph.

    def _run(self, graph: Graph, args: tuple[Any, ...], kwargs: dict[str, Any], inputs: list[Tensor]) -> Tensor:
        """Take a step from its graph, and prove the graph again if that is due."""
        graph.calls += 1
        outputs: list[Tensor] = []
        if graph.calls >= graph.due:
            outputs, rewind = self._prove_again(graph, args, kwargs, inputs)
            graph.proved_at = self.steps
            graph.due = min(2 * graph.calls, graph.calls + APART)
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
        """Compare the graph with an eager pass that starts from the same tensors and random streams.

        The eager pass is undone, and the run of the graph is not.

        Returns:
            The outputs of the graph, and a function that undoes the changes of this run.
        """
        buffers = [tensor for module in self.surroundings.modules for tensor in module._buffers.values()]
        written = {id(tensor): tensor for tensor in (*inputs, *graph.held, *buffers) if tensor is not None}
        tensors = list(written.values())
        start, values = stream_states(), [tensor.detach().clone() for tensor in tensors]
        restore = self.surroundings.snapshot()

        def rewind() -> None:
            put_back(values, tensors)
            set_stream_states(start)

        torch.clear_autocast_cache()
        try:
            with pyro.validation_enabled(False):  # as in the recordings, because validation changes the order of sums
                eager = self._pass(args, kwargs)
            end = stream_states()
        finally:
            rewind()
            restore()
        with torch.no_grad():
            ours = graph.run(*inputs)
        same = _same_objects(eager.moved, graph.moved) and same_streams(stream_states(), end)
        if not (same and self._agree(ours, eager.outputs)):
            rewind()
            self._refuse("the graph was found to be stale")
            raise Stale(
                f"step {self.steps}: the loss is {float(ours[0]):.9g} from the graph and {float(eager.outputs[0]):.9g} "
                "from the code, or their gradients or random draws differ. Something that the model or the guide reads "
                f"has changed unseen. Both last agreed at step {graph.proved_at}, and the weights may be wrong since "
                "then. Turn the value that changes into a tensor (an argument, or a buffer that is written in place), "
                "or choose backend='eager'"
            )
        return ours, rewind

    def _agree(self, ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> bool:
        """Whether two losses agree, and also their gradients. A CUDA device may add in another order each time."""
        on_cpu = all(gradient.device.type == "cpu" for gradient in ours[1:])
        tolerance = self.tolerance if on_cpu else max(self.tolerance, 1e-3)
        return agree(ours[:1], theirs[:1], self.tolerance) and agree(ours[1:], theirs[1:], tolerance)

    def _move(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor], idle: Sequence[Tensor]) -> None:
        """Move parameters by gradients. Idle parameters stay; a subclass may move them."""
        if isinstance(self.optimizer, Adam) and not is_hooked(self.optimizer):
            self.optimizer.move(parameters, gradients)
        elif self.optimizer is not None:
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            self.optimizer.step()
            self.optimizer.zero_grad()


def _argument_kind(value: Any) -> Any:
    """The part of an argument that chooses a graph: the layout of a tensor, or a Python value as it is."""
    if type(value) in (Tensor, nn.Parameter):
        if value.layout is not torch.strided:
            raise NotStatic(f"an argument is a tensor of layout {value.layout}, and a graph takes torch.strided")
        return value.shape, value.stride(), value.dtype, value.device
    if not is_plain(value):
        raise NotStatic(f"an argument of type {type(value).__name__} can change without notice")
    return frozen(value)


def _same_objects(ours: Sequence[Any], theirs: Sequence[Any]) -> bool:
    """Whether two sequences hold the same objects."""
    return len(ours) == len(theirs) and all(map(is_, ours, theirs))


def _stranger(recording: Recording, parameters: Sequence[Tensor]) -> str | None:
    """A description of a tensor that needs a gradient and is not among the parameters. None if there is none."""
    known = {id(parameter) for parameter in parameters}
    for tensor in recording.held:
        if tensor.requires_grad and tensor.is_leaf and id(tensor) not in known:
            return f"a tensor of shape {list(tensor.shape)} requires a gradient, and the optimizer does not move it"
    return None
