"""What runs a recorded step: torch's own kernels one by one, a compiler's, or one launch of a CUDA graph."""

import logging
import os
import shutil
import warnings
from collections.abc import Callable, Sequence
from types import BuiltinFunctionType, MethodDescriptorType
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from .adam import Adam
from .capture import Function, Recording
from .clean import clean

__all__ = ["BACKENDS", "CudaGraph", "backend_for", "fx", "inductor"]

BACKENDS = ("auto", "eager", "fx", "inductor", "cudagraph")


def backend_for(name: str) -> str:
    """The backend that a name asks for: ``auto`` is ``fx``, and a compiler that is absent is replaced by ``fx``.

    Raises:
        ValueError: If there is no such backend, or no CUDA device for ``cudagraph``.
    """
    if name not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {name!r}")
    if name == "cudagraph" and not torch.cuda.is_available():
        raise ValueError("backend 'cudagraph' was asked for, but this torch sees no CUDA device: use fx or inductor")
    if name == "inductor" and shutil.which(os.environ.get("CXX", "g++")) is None and shutil.which("clang++") is None:
        logging.getLogger(__name__).warning("backend inductor needs a C++ compiler and finds none: fx runs instead")
        return "fx"
    return "fx" if name == "auto" else name


def fx(recording: Recording) -> Function:
    """The shortened graph, run by torch's kernels: every bit as it was recorded."""
    constants, graph = clean(recording)
    for node in graph.nodes:
        _bind(node)
    run: Function = GraphModule(constants, graph).forward
    return run


def _bind(node: Node) -> None:
    """Call an operation under the name that Python has for it: a microsecond less than by way of its schema."""
    name = getattr(getattr(node.target, "_schema", None), "name", "").removeprefix("aten::")
    if not name or node.kwargs:
        return
    bound = (getattr(space, name, None) for space in (torch, torch._C._nn))
    function = next((found for found in bound if isinstance(found, BuiltinFunctionType)), None)
    if function is not None:
        node.target = function
    elif isinstance(getattr(Tensor, name, None), MethodDescriptorType):
        node.op, node.target = "call_method", name


def inductor(recording: Recording) -> Function:
    """The same graph, compiled: sums in another order, the random stream that of eager torch."""
    from torch._decomp import get_decompositions
    from torch._inductor import config

    with config.patch(compile_threads=1):  # no pool of processes, which would wait beside the steps
        from torch._inductor.compile_fx import compile_fx
        from torch._inductor.decomposition import select_decomp_table

    aten = torch.ops.aten
    # As arithmetic batch norm is faster than the library's kernel, and keeps digits that the kernel loses.
    norms = get_decompositions([aten._native_batch_norm_legit, aten.native_batch_norm_backward])
    module = GraphModule(*clean(recording))
    inputs = [*recording.inputs, *recording.held]
    with torch.no_grad(), config.patch(fallback_random=True, compile_threads=1), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's deprecations are no news to who calls it
        run: Any = compile_fx(module, inputs, decompositions={**select_decomp_table(), **norms})  # type: ignore[dict-item]
    return run


class CudaGraph:
    """A whole step, loss, gradients and optimizer, as one launch: its inputs are copied into place."""

    def __init__(self, step: Callable[..., Tensor], inputs: Sequence[Tensor], optimizer: Adam) -> None:
        self.inputs, self.optimizer, self.state = [tensor.clone() for tensor in inputs], optimizer, optimizer.state
        (group,) = optimizer.param_groups
        rate, device = group["lr"], group["params"][0].device
        self.graph, self.lr = torch.cuda.CUDAGraph(), torch.tensor(rate, dtype=torch.float32, device=device)
        try:
            group["lr"] = self.lr  # the kernel reads it at each launch
            with torch.cuda.graph(self.graph):
                self.loss = step(*self.inputs)
        finally:
            group["lr"] = rate

    def __call__(self, *inputs: Tensor) -> Tensor:
        self.lr.fill_(self.optimizer.param_groups[0]["lr"])
        torch._foreach_copy_(self.inputs, inputs)
        self.graph.replay()
        return self.loss.clone()
