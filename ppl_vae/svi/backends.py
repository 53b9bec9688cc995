"""The backends that run a recorded step.

``fx`` calls torch's own kernels one by one, ``inductor`` compiles the graph, and ``cudagraph`` launches the whole step
at once on a CUDA device.
"""

import logging
import os
import shutil
import warnings
from collections.abc import Callable, Sequence
from types import BuiltinFunctionType, MethodDescriptorType
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from .adam import Adam
from .capture import Function, Recording
from .shortening import shorten

__all__ = ["BACKENDS", "Backend", "CudaGraph", "backend_for", "fx", "inductor"]

Backend = Literal["auto", "eager", "fx", "inductor", "cudagraph"]
BACKENDS: tuple[str, ...] = get_args(Backend)


def backend_for(name: str) -> str:
    """The backend that a name stands for. ``auto`` stands for ``fx``, and so does ``inductor`` without a C++ compiler.

    Raises:
        ValueError: If there is no backend of that name, or if ``cudagraph`` finds no CUDA device.
    """
    if name not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {name!r}")
    if name == "cudagraph" and not torch.cuda.is_available():
        raise ValueError("backend 'cudagraph' needs a CUDA device, and torch sees none: use fx or inductor")
    if name == "inductor" and not _has_compiler():
        message = "backend 'inductor' needs a C++ compiler and finds none: backend 'fx' is used instead"
        logging.getLogger(__name__).warning(message)
        return "fx"
    return "fx" if name == "auto" else name


def _has_compiler() -> bool:
    """Whether a C++ compiler that inductor would take is on the path."""
    chosen = os.environ.get("CXX", "g++")
    return shutil.which(chosen) is not None or shutil.which("clang++") is not None


def fx(recording: Recording) -> Function:
    """Run the shortened graph with torch's kernels. The result equals the recorded one to the last bit."""
    constants, graph = shorten(recording)
    for node in graph.nodes:
        _call_directly(node)
    run: Function = GraphModule(constants, graph).forward
    return run


def _call_directly(node: Node) -> None:
    """Let a node call torch's Python function, which takes a microsecond less than the operation of aten.

    The Python functions refuse None in a list of indices, as in ``x[..., rows, columns] = y``.
    """
    schema = getattr(node.target, "_schema", None)
    name = getattr(schema, "name", "").removeprefix("aten::")
    has_gaps = any(isinstance(argument, list | tuple) and None in argument for argument in node.args)
    if not name or node.kwargs or has_gaps:
        return
    candidates = (getattr(space, name, None) for space in (torch, torch._C._nn))
    function = next((found for found in candidates if isinstance(found, BuiltinFunctionType)), None)
    if function is not None:
        node.target = function
    elif isinstance(getattr(Tensor, name, None), MethodDescriptorType):
        node.op, node.target = "call_method", name


def inductor(recording: Recording) -> Function:
    """Compile the shortened graph. It adds in another order than eager torch, and its random draws are the same."""
    from torch._decomp import get_decompositions
    from torch._inductor import config

    with config.patch(compile_threads=1):  # a pool of compiler processes would slow the steps
        from torch._inductor.compile_fx import compile_fx
        from torch._inductor.decomposition import select_decomp_table

    aten = torch.ops.aten
    # Batch norm written as arithmetic is faster than torch's kernel, and loses fewer digits.
    norms = get_decompositions([aten._native_batch_norm_legit, aten.native_batch_norm_backward])
    decompositions = {**select_decomp_table(), **norms}
    constants, graph = shorten(recording)
    inputs = [*recording.inputs, *recording.held]
    with torch.no_grad(), config.patch(fallback_random=True, compile_threads=1), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the caller can do nothing about deprecations inside the compiler
        run: Any = compile_fx(GraphModule(constants, graph), inputs, decompositions=decompositions)
    return run


class CudaGraph:
    """One launch on a CUDA device for a whole step: the loss, its gradients and the optimizer.

    A call copies its inputs and the present learning rate into the tensors that the launch reads.

    Args:
        step: The step to capture. It takes the inputs and returns the loss.
        inputs: Tensors with the shapes of the inputs of every call.
        optimizer: The optimizer that the step calls. It has one parameter group.
    """

    def __init__(self, step: Callable[..., Tensor], inputs: Sequence[Tensor], optimizer: Adam) -> None:
        self.inputs = [tensor.clone() for tensor in inputs]
        self.optimizer = optimizer
        self.state = optimizer.state  # the launch writes these tensors, so they have to stay alive
        (group,) = optimizer.param_groups
        rate, device = group["lr"], group["params"][0].device
        self.lr = torch.tensor(rate, dtype=torch.float32, device=device)
        self.graph = torch.cuda.CUDAGraph()
        try:
            group["lr"] = self.lr  # the kernel reads this tensor at each launch
            with torch.cuda.graph(self.graph):
                self.loss = step(*self.inputs)
        finally:
            group["lr"] = rate

    def __call__(self, *inputs: Tensor) -> Tensor:
        self.lr.fill_(self.optimizer.param_groups[0]["lr"])
        torch._foreach_copy_(self.inputs, inputs)
        self.graph.replay()
        return self.loss.clone()
