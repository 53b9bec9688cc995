"""Record a function of tensors as a graph of the operations it ran, and prove that the graph is the function.

The contract is that of ``jax.jit``: what changes from call to call is a tensor. Python values are frozen.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from operator import getitem
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

from ..seeding import seeded, set_streams, streams

__all__ = ["NotStatic", "Recording", "capture", "record"]

aten = torch.ops.aten
Function = Callable[..., list[Tensor]]

# The same kernel under a name whose schema says that it writes the running statistics.
_DECLARED = {aten.native_batch_norm.default: aten._native_batch_norm_legit.default}


class NotStatic(RuntimeError):
    """The function cannot be replayed from a graph; the message says why."""


class Recording(TorchDispatchMode):
    """What a function did, as a graph from its arguments and the tensors it holds to its outputs.

    Attributes:
        inputs: The arguments.
        graph: Operations of aten, the random and the in-place ones among them, in their order.
        outputs: What the recorded call returned: a recording is a call like any other.
        held: Tensors from outside (parameters, buffers), by object: the graph's further inputs.
        before: Their values before the call.
        constants: Tensors that the function makes from Python numbers, by name.
    """

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self.inputs, self.outputs, self.graph = list(inputs), list[Tensor](), Graph()
        self.held, self.before = list[Tensor](), list[Tensor]()
        self.constants = dict[str, Tensor]()
        self.nodes = WeakIdKeyDictionary()
        for index, tensor in enumerate(inputs):
            self._name(tensor, self.graph.placeholder(f"input_{index}"))
        self.start = self.graph.call_function(print)  # where the inputs end

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is aten.lift_fresh.default:
            return self._constant(args[0])
        if _reads(func, args):
            raise NotStatic(f"{func} makes a Python value or a shape of a tensor's values")
        func = _DECLARED.get(func, func)
        inputs = tree_map_only(Tensor, self.node, (args, kwargs))
        out = func(*args, **kwargs)
        self._name(out, self.graph.call_function(func, *inputs))
        return out

    def node(self, tensor: Tensor) -> Node:
        """Where a tensor comes from; from outside if the graph has not made it."""
        if tensor not in self.nodes:
            with self.graph.inserting_before(self.start):
                self._name(tensor, self.graph.placeholder(f"held_{len(self.held)}"))
            self.held.append(tensor)
            self.before.append(tensor.detach().clone())
        return self.nodes[tensor]

    def _constant(self, tensor: Tensor) -> Tensor:
        name = f"constant_{len(self.constants)}"
        self.constants[name] = tensor.clone()
        self._name(self.constants[name], constant := self.graph.get_attr(name))
        self._name(tensor, self.graph.call_function(aten.clone.default, (constant,)))
        return tensor

    def _name(self, out: Any, node: Node) -> None:
        if isinstance(out, Tensor):
            node.meta["like"] = out.shape, out.stride(), out.dtype, out.device
            self.nodes[out] = node
        elif isinstance(out, tuple | list):
            for index, part in enumerate(out):
                if isinstance(part, Tensor):
                    self._name(part, self.graph.call_function(getitem, (node, index)))

    def close(self, outputs: list[Tensor]) -> None:
        """End the graph at what the function returned."""
        self.outputs = outputs
        self.graph.output(tuple(self.node(out) for out in outputs))
        self.graph.erase_node(self.start)

    def rewind(self) -> None:
        """Give the held tensors the values they had before the call."""
        copy(self.before, self.held)


def _reads(func: Any, args: Any) -> bool:
    """Whether an operation needs to know values; an index does where it is a mask."""
    if func is aten.index.Tensor:
        return any(index is not None and not index.dtype.is_signed for index in args[1])
    return not {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}.isdisjoint(func.tags)


@torch.no_grad()
def copy(values: Sequence[Tensor], tensors: Sequence[Tensor]) -> None:
    """Write values into tensors, in place, where they differ: an expanded tensor cannot be written, nor has it been."""
    for value, tensor in zip(values, tensors, strict=True):
        if not torch.equal(value, tensor):
            tensor.copy_(value)


def record(function: Function, inputs: Sequence[Tensor]) -> Recording:
    """Call ``function(*inputs)`` and record it.

    Raises:
        NotStatic: If the function reads a value; what it had changed until then is put back.
    """
    recording, before = Recording(inputs), streams()
    try:
        with recording:
            outputs = function(*inputs)
        recording.close(outputs)
    except Exception as error:
        recording.rewind()
        set_streams(before)
        raise NotStatic(_line(error)) from error
    return recording


def _same_graph(one: Recording, two: Recording) -> None:
    reason = "two recordings under different seeds and data part"
    for ours, theirs in zip_longest(one.graph.nodes, two.graph.nodes):
        a, b = (None if n is None else f"{n.target}{n.args}{n.kwargs or ''}" for n in (ours, theirs))
        if a != b:
            raise NotStatic(f"{reason}: {a} in one, {b} in the other")
    for name, value in one.constants.items():
        if not _close([value], [two.constants[name]]):
            raise NotStatic(
                f"{reason}: a constant is {value.tolist()} in one, {two.constants[name].tolist()} in the other"
            )
    if any(ours is not theirs for ours, theirs in zip(one.held, two.held, strict=True)):
        raise NotStatic(f"{reason}: a tensor was replaced by another object; write in place, and draw with torch")


def _close(ours: Sequence[Tensor], theirs: Sequence[Tensor], tolerance: float = 0.0) -> bool:
    """Whether tensors agree: to the last bit, NaN to NaN, or in the norm of them all."""
    if tolerance == 0.0:
        return all(torch.allclose(a, b, rtol=0, atol=0, equal_nan=True) for a, b in zip(ours, theirs, strict=True))
    pairs = [(a.detach().double(), b.detach().double()) for a, b in zip(ours, theirs, strict=True)]
    error = sum(float((a - b).square().sum()) for a, b in pairs)
    bound = tolerance**2 * sum(float(b.square().sum()) for _, b in pairs)
    return error <= bound or math.isnan(bound)


def _repeats(recording: Recording, outputs: Sequence[Tensor], values: Sequence[Tensor], tolerance: float) -> bool:
    """Whether a call has done what the recorded one did: the loss, the gradients and what was written, each apart."""
    pairs = list(zip(recording.held, values, recording.before, strict=True))
    written = [(held, value) for held, value, before in pairs if not torch.equal(value, before)]
    kept = [(held, value) for held, value, before in pairs if torch.equal(value, before)]
    return (
        _close(outputs[:1], recording.outputs[:1], tolerance)
        and _close(outputs[1:], recording.outputs[1:], tolerance)
        and _close([held for held, _ in written], [value for _, value in written], tolerance)
        and _close([held for held, _ in kept], [value for _, value in kept])
    )


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def _states(state: tuple[Any, list[Tensor]]) -> list[Tensor]:
    host, devices = state
    return [host["torch"], *devices]


@torch.no_grad()
def _shake(tensors: Sequence[Tensor]) -> None:
    """Change values a little, so that one that is read behind torch's back, by NumPy, is seen to differ."""
    for tensor in tensors:
        if tensor.is_floating_point() and 0 not in tensor.stride():
            tensor.mul_(1.001)


def _other(tensor: Tensor) -> Tensor:
    return torch.rand_like(tensor) if tensor.is_floating_point() else tensor.flip(tuple(range(tensor.ndim)))


@contextmanager
def _attributes_kept(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Put attributes and buffers of modules back where they were bound: a Python counter must not count twice."""
    kept = [(dict(module.__dict__), dict(module._buffers)) for module in modules]
    try:
        yield
    finally:
        for module, (attributes, buffers) in zip(modules, kept, strict=True):
            module._buffers.update(buffers)
            module.__dict__.clear()
            module.__dict__.update(attributes)


def capture(
    function: Function,
    inputs: Sequence[Tensor],
    build: Callable[[Recording], Function],
    modules: Sequence[nn.Module] = (),
    tolerance: float = 0.0,
) -> tuple[list[Tensor], Function | NotStatic]:
    """Call a function and, if it can be proved right, return what repeats it.

    A second recording under another seed, other data and weights has to be the same graph, and what was built has to
    repeat the recorded call: outputs, held tensors, streams. All of them are left as the one call leaves them.

    Args:
        function: From tensors to tensors, a draw from torch's generators and in-place writes allowed.
        inputs: With what to call it.
        build: From a recording to a function of inputs and held tensors.
        modules: Whose Python attributes the function may move.
        tolerance: Relative, of the first output, of the norm of the others, and of that of what is written.

    Returns:
        The outputs of the call, and a function of the inputs, or why there is none.

    Raises:
        NotStatic: If the call itself reads a value; nothing has happened then.
    """
    before = streams()
    recording = record(function, inputs)
    after, values = streams(), [tensor.detach().clone() for tensor in recording.held]
    try:
        recording.rewind()
        with seeded(1), _attributes_kept(modules):
            _shake(recording.held)
            other = record(function, [_other(tensor) for tensor in inputs])
            other.rewind()
        _same_graph(recording, other)
        run = build(recording)
        recording.rewind()
        set_streams(before)
        with torch.no_grad():
            outputs = run(*inputs, *recording.held)
        drawn = _close(_states(streams()), _states(after))
        if not drawn or not _repeats(recording, outputs, values, tolerance):
            raise NotStatic("the graph does not repeat the recorded step")
    except Exception as error:  # noqa: BLE001  a compiler has errors of many kinds; the call itself is done
        return recording.outputs, NotStatic(_line(error))
    finally:
        copy(values, recording.held)
        set_streams(after)
    held = recording.held
    return recording.outputs, lambda *inputs: run(*inputs, *held)
