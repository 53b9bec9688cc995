"""Record a function of tensors as a graph of the operations it ran, and prove that the graph is the function.

The contract is that of ``jax.jit``: what changes from call to call is a tensor. Python values are frozen.
"""

import math
from collections.abc import Callable, Sequence
from itertools import zip_longest
from operator import getitem
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor
from torch.fx import Graph, Node
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

from ..streams import set_streams, streams

__all__ = ["NotStatic", "Recording", "agree", "copy", "prove", "record", "same_streams"]

aten = torch.ops.aten
Function = Callable[..., list[Tensor]]

# The same kernel under a name whose schema says that it writes the running statistics.
_DECLARED = {aten.native_batch_norm.default: aten._native_batch_norm_legit.default}
# A kernel whose gradient torch computes from a tensor that no recording is given.
_UNSEEN = {aten.mkldnn_rnn_layer.default: "the CPU's kernel of nn.LSTM cannot be recorded (that of nn.GRU can)"}
# What hands the values of a tensor to Python without an operation that a recording would see.
_HANDED_OVER = {"numpy", "tolist", "__array__", "__dlpack__", "data_ptr", "untyped_storage", "_to_dlpack", "to_dlpack"}


class NotStatic(RuntimeError):
    """The function cannot be replayed from a graph; the message says why."""


class _NothingHandedOver(TorchFunctionMode):
    """Refuse ``tensor.numpy()``, ``tensor.tolist()`` and the like, of which a graph would keep the first values."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in _HANDED_OVER:
            raise NotStatic(f"Tensor.{name} makes Python values of a tensor's values")
        return func(*args, **(kwargs or {}))


class Recording(TorchDispatchMode):
    """What a function did, as a graph from its arguments and the tensors it holds to its outputs.

    Attributes:
        inputs: The arguments.
        graph: Operations of aten, the random and the in-place ones among them, in their order.
        outputs: What the recorded call returned: a recording is a call like any other.
        held: Tensors from outside (parameters, buffers), by object: the graph's further inputs.
        before: Their values before the call, and those of the arguments.
        constants: Tensors that the function makes from Python numbers, by name.
        start, end: Where torch's random streams stood before the call and after it.
    """

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self.inputs, self.outputs, self.graph = list(inputs), list[Tensor](), Graph()
        self.held, self.before = list[Tensor](), [tensor.detach().clone() for tensor in inputs]
        self.constants = dict[str, Tensor]()
        self.nodes = WeakIdKeyDictionary()
        self.start, self.end = streams(), streams()
        # Aliases: an argument that is also an attribute of the pair is two things, and only one of them will change.
        self.aliases = [tensor.detach() for tensor in inputs]
        for index, tensor in enumerate(self.aliases):
            self._name(tensor, self.graph.placeholder(f"input_{index}"))
        self.first = self.graph.call_function(print)  # where the inputs end

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is aten.lift_fresh.default:
            return self._constant(args[0])
        if func in _UNSEEN:
            raise NotStatic(_UNSEEN[func])
        if _reads(func, args):
            raise NotStatic(f"{func} makes a Python value or a shape of a tensor's values")
        if any(isinstance(leaf, Generator) for leaf in tree_leaves((args, kwargs))):
            raise NotStatic("the step draws from a torch.Generator of its own, which a graph cannot hold")
        func = _DECLARED.get(func, func)
        inputs = tree_map_only(Tensor, self.node, (args, kwargs))
        out = func(*args, **kwargs)
        self._name(out, self.graph.call_function(func, *inputs))
        return out

    def node(self, tensor: Tensor) -> Node:
        """Where a tensor comes from; from outside if the graph has not made it."""
        if tensor not in self.nodes:
            with self.graph.inserting_before(self.first):
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
        self.outputs, self.end = outputs, streams()
        self.graph.output(tuple(self.node(out) for out in outputs))
        self.graph.erase_node(self.first)

    @property
    def tensors(self) -> list[Tensor]:
        """The arguments and the held tensors: what the call may have written."""
        return [*self.inputs, *self.held]

    def rewind(self) -> None:
        """Give the arguments, the held tensors and the random streams what they had before the call."""
        copy(self.before, self.tensors)
        set_streams(self.start)

    def forget(self) -> None:
        """Let go of the values: only the graph is compared with a later one."""
        self.inputs, self.outputs, self.before, self.aliases = [], [], [], []


def _reads(func: Any, args: Any) -> bool:
    """Whether an operation needs to know values; an index does where it is a mask."""
    if func is aten.index.Tensor:
        return any(index is not None and not index.dtype.is_signed for index in args[1])
    return not {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}.isdisjoint(func.tags)


@torch.no_grad()
def copy(values: Sequence[Tensor], tensors: Sequence[Tensor]) -> None:
    """Write values into tensors, in place, where they differ: an expanded tensor cannot be written, nor has it been."""
    for value, tensor in zip(values, tensors, strict=True):
        if not _equal(value, tensor):
            tensor.copy_(value)


def record(function: Function, inputs: Sequence[Tensor], restore: Callable[[], None] = lambda: None) -> Recording:
    """Call ``function(*inputs)`` and record it.

    Args:
        function: From tensors to tensors; draws from torch's generators and in-place writes are allowed.
        inputs: With what to call it.
        restore: Called after a call that fails, to put back what it changed on the Python side.

    Raises:
        NotStatic: If the function reads a value or fails; what it had changed until then is put back.
    """
    recording = Recording(inputs)
    torch.clear_autocast_cache()  # a weight that was cast before the recording would be a tensor from outside
    try:
        with _NothingHandedOver(), recording:
            outputs = function(*recording.aliases)
        recording.close(outputs)
    except Exception as error:
        recording.rewind()
        restore()
        raise NotStatic(_line(error)) from error
    return recording


def _same_graph(one: Recording, two: Recording) -> None:
    """Raise where two recorded steps are not the same computation of other numbers."""
    for ours, theirs in zip_longest(one.graph.nodes, two.graph.nodes):
        a, b = (None if n is None else f"{n.target}{n.args}{n.kwargs or ''}" for n in (ours, theirs))
        if a != b:
            raise NotStatic(f"two recorded steps part: {a} in one, {b} in the other")
    for name, value in one.constants.items():
        other = two.constants[name]
        if not _equal(value, other):
            raise NotStatic(f"two recorded steps part: a constant is {value.tolist()} in one, {other.tolist()} in two")
    if any(ours is not theirs for ours, theirs in zip_longest(one.held, two.held)):
        raise NotStatic("a tensor was replaced by another object between two recorded steps: write it in place")


def prove(one: Recording, two: Recording, build: Callable[[Recording], Function], tolerance: float = 0.0) -> Function:
    """Make a function of the inputs of what two calls recorded, and prove that it repeats the second call.

    The two recordings have to be the same graph. What is built has to repeat the outputs of the second call, what it
    wrote, and its random streams. All tensors and streams are left as the second call left them.

    Args:
        one, two: Recordings of two calls, with other data, noise and weights.
        build: From a recording to a function of inputs and held tensors.
        tolerance: Relative, of the first output, of the norm of the others, and of that of what is written.

    Raises:
        NotStatic: If the graph is not proved; the message says why.
    """
    values = [tensor.detach().clone() for tensor in two.tensors]
    try:
        stream = _drawn_from(two.start[0], two.end[0])
        if stream is not None:
            raise NotStatic(f"the step draws from {stream} random stream, which a graph cannot: draw with torch")
        _same_graph(one, two)
        run = build(two)
        two.rewind()
        with torch.no_grad():
            outputs = run(*two.inputs, *two.held)
        if not same_streams(streams(), two.end) or not _repeats(two, outputs, values, tolerance):
            raise NotStatic("the graph does not repeat the recorded step")
    except NotStatic:
        raise
    except Exception as error:  # a compiler has errors of many kinds; the call itself is done
        raise NotStatic(_line(error)) from error
    finally:
        copy(values, two.tensors)
        set_streams(two.end)
    held = two.held
    return lambda *inputs: run(*inputs, *held)


def same_streams(ours: Any, theirs: Any) -> bool:
    """Whether random streams stand at the same place: torch's, on the devices too, Python's and NumPy's."""
    (host, devices), (other_host, other_devices) = ours, theirs
    return _drawn_from(host, other_host) is None and agree(
        [host["torch"], *devices], [other_host["torch"], *other_devices]
    )


def _drawn_from(before: dict[str, Any], after: dict[str, Any]) -> str | None:
    """Which of the streams that are not torch's has moved."""
    if before["random"] != after["random"]:
        return "Python's"
    return None if all(map(np.array_equal, before["numpy"], after["numpy"])) else "NumPy's"


def agree(ours: Sequence[Tensor], theirs: Sequence[Tensor], tolerance: float = 0.0) -> bool:
    """Whether tensors agree: to the last bit, NaN to NaN, or in the norm of them all."""
    if tolerance == 0.0:
        return all(_equal(a, b) for a, b in zip(ours, theirs, strict=True))
    pairs = [(a.detach(), b.detach()) for a, b in zip(ours, theirs, strict=True)]
    error = sum(float((a - b).norm()) ** 2 for a, b in pairs if a.is_floating_point())
    bound = tolerance**2 * sum(float(b.norm()) ** 2 for _, b in pairs if b.is_floating_point())
    whole = all(_equal(a, b) for a, b in pairs if not a.is_floating_point())  # counts
    return whole and (error <= bound or math.isnan(bound))


def _equal(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are the same to the last bit, NaN to NaN."""
    return torch.equal(a, b) or (a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True))


def _repeats(recording: Recording, outputs: Sequence[Tensor], values: Sequence[Tensor], tolerance: float) -> bool:
    """Whether a call has done what the recorded one did: the loss, the gradients and what was written, each apart."""
    triples = list(zip(recording.tensors, values, recording.before, strict=True))
    written = [(tensor, value) for tensor, value, before in triples if not _equal(value, before)]
    kept = [(tensor, value) for tensor, value, before in triples if _equal(value, before)]
    return (
        agree(outputs[:1], recording.outputs[:1], tolerance)
        and agree(outputs[1:], recording.outputs[1:], tolerance)
        and agree([tensor for tensor, _ in written], [value for _, value in written], tolerance)
        and agree([tensor for tensor, _ in kept], [value for _, value in kept])
    )


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
