"""Record a function of tensors as a graph of the operations that it calls.

The contract is that of ``jax.jit``: a value that changes from call to call has to be a tensor. Python values are
frozen.
"""

from collections.abc import Callable, Sequence
from operator import getitem
from typing import Any

import torch
from torch import Generator, Tensor
from torch.fx import Graph, Node
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

from ..streams import set_stream_states, stream_states

__all__ = ["Function", "NotStatic", "Recording", "equal", "first_line", "put_back", "record"]

aten = torch.ops.aten
Function = Callable[..., list[Tensor]]

# Kernels that are recorded under another name, whose schema says that they write the running statistics.
DECLARED = {aten.native_batch_norm.default: aten._native_batch_norm_legit.default}
# Kernels whose gradient needs a tensor that torch does not show to a recording.
HIDDEN = {aten.mkldnn_rnn_layer.default: "the CPU kernel of nn.LSTM cannot be recorded (the kernel of nn.GRU can)"}
# Methods that give the values of a tensor to Python without an operation that a recording could see.
UNRECORDED = {"numpy", "tolist", "__array__", "__dlpack__", "data_ptr", "untyped_storage", "_to_dlpack", "to_dlpack"}


class NotStatic(RuntimeError):
    """The function cannot be run from a graph. The message says why."""


class _Guard(TorchFunctionMode):
    """Refuse ``tensor.numpy()``, ``tensor.tolist()`` and the like: a graph would keep the values of the first call."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in UNRECORDED:
            raise NotStatic(f"Tensor.{name} turns the values of a tensor into Python values")
        return func(*args, **(kwargs or {}))


class Recording(TorchDispatchMode):
    """The operations of one call of a function, as a graph.

    The inputs of the graph are the arguments of the call and the tensors from outside that the function reads.

    Attributes:
        inputs: The arguments.
        graph: The operations of aten in their order, random and in-place operations included.
        outputs: The tensors that the call returned. They are those of a call that is not recorded.
        held: The tensors from outside, such as parameters and buffers. They are further inputs of the graph.
        before: The values that arguments and held tensors had before the call.
        constants: Tensors that the function makes from Python numbers, by name.
        start, end: The states of the random streams before and after the call.
    """

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self.inputs = list(inputs)
        self.outputs: list[Tensor] = []
        self.graph = Graph()
        self.held: list[Tensor] = []
        self.before = [tensor.detach().clone() for tensor in inputs]
        self.constants: dict[str, Tensor] = {}
        self.nodes = WeakIdKeyDictionary()
        self.start, self.end = stream_states(), stream_states()
        # An argument may also be an attribute of the model, and only the argument changes in the next call. An alias
        # of the argument tells the two apart.
        self.aliases = [tensor.detach() for tensor in inputs]
        for index, tensor in enumerate(self.aliases):
            self._assign(tensor, self.graph.placeholder(f"input_{index}"))
        self.first = self.graph.call_function(print)  # marks the end of the inputs; ``close`` removes it

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is aten.lift_fresh.default:
            return self._constant(args[0])
        if func in HIDDEN:
            raise NotStatic(HIDDEN[func])
        if _reads_values(func, args):
            doing = "makes a Python value or a shape from the values of a tensor, as .item(), if and masks do"
            raise NotStatic(f"{func} {doing}")
        if any(isinstance(leaf, Generator) for leaf in tree_leaves((args, kwargs))):
            raise NotStatic("the step draws from its own torch.Generator, which a graph cannot hold")
        func = DECLARED.get(func, func)
        inputs = tree_map_only(Tensor, self.node, (args, kwargs))
        out = func(*args, **kwargs)
        self._assign(out, self.graph.call_function(func, *inputs))
        return out

    def node(self, tensor: Tensor) -> Node:
        """The node that gives a tensor. A tensor that the graph has not made becomes a new input."""
        if tensor not in self.nodes:
            with self.graph.inserting_before(self.first):
                self._assign(tensor, self.graph.placeholder(f"held_{len(self.held)}"))
            self.held.append(tensor)
            self.before.append(tensor.detach().clone())
        return self.nodes[tensor]

    def _constant(self, tensor: Tensor) -> Tensor:
        """Keep a tensor that is made from Python numbers; the graph starts from a copy, which it may write."""
        name = f"constant_{len(self.constants)}"
        constant = self.graph.get_attr(name)
        self.constants[name] = tensor.clone()
        self._assign(self.constants[name], constant)
        self._assign(tensor, self.graph.call_function(aten.clone.default, (constant,)))
        return tensor

    def _assign(self, out: Any, node: Node) -> None:
        """Note that a node gives a tensor, or several tensors."""
        if isinstance(out, Tensor):
            node.meta["like"] = out.shape, out.stride(), out.dtype, out.device
            self.nodes[out] = node
        elif isinstance(out, tuple | list):
            for index, part in enumerate(out):
                if isinstance(part, Tensor):
                    self._assign(part, self.graph.call_function(getitem, (node, index)))

    def close(self, outputs: list[Tensor]) -> None:
        """End the graph with the tensors that the function returned."""
        self.outputs, self.end = outputs, stream_states()
        self.graph.output(tuple(self.node(out) for out in outputs))
        self.graph.erase_node(self.first)

    @property
    def tensors(self) -> list[Tensor]:
        """The arguments and the held tensors, which are all tensors that the call may have written."""
        return [*self.inputs, *self.held]

    def rewind(self) -> None:
        """Put back the values of arguments and held tensors, and the random streams, as they were before the call."""
        put_back(self.before, self.tensors)
        set_stream_states(self.start)

    def forget(self) -> None:
        """Release the values. A comparison with a later recording needs only the graph."""
        self.inputs, self.outputs, self.before, self.aliases = [], [], [], []


def _reads_values(func: Any, args: Any) -> bool:
    """Whether an operation has to know the values of a tensor. Indexing has to know them if an index is a mask."""
    if func is aten.index.Tensor:
        return any(index is not None and not index.dtype.is_signed for index in args[1])
    return not {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}.isdisjoint(func.tags)


def record(function: Function, inputs: Sequence[Tensor], restore: Callable[[], None] = lambda: None) -> Recording:
    """Call ``function(*inputs)`` and record it.

    Args:
        function: A function from tensors to tensors. It may draw from torch's random streams and write tensors in
            place.
        inputs: The arguments of the call.
        restore: A function that undoes what the call changed in Python objects. It is called if the call fails.

    Raises:
        NotStatic: If the function needs the values of a tensor, or if it fails. All changes of the call are undone.
    """
    recording = Recording(inputs)
    torch.clear_autocast_cache()  # a weight that was cast before the recording would look like a tensor from outside
    try:
        with _Guard(), recording:
            outputs = function(*recording.aliases)
        recording.close(outputs)
    except Exception as error:
        recording.rewind()
        restore()
        raise NotStatic(first_line(error)) from error
    return recording


@torch.no_grad()
def put_back(values: Sequence[Tensor], tensors: Sequence[Tensor]) -> None:
    """Write values into tensors, in place.

    A tensor that already has its value is not written, because it may be an expanded tensor, which cannot be written.
    """
    for value, tensor in zip(values, tensors, strict=True):
        if not equal(value, tensor):
            tensor.copy_(value)


def equal(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal to the last bit, where NaN equals NaN."""
    return torch.equal(a, b) or (a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True))


def first_line(error: Exception) -> str:
    """The first line of an error's message, or the name of its class if it has no message."""
    return str(error).partition("\n")[0] or type(error).__name__
