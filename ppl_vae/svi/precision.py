"""Lower precision where it saves most time: networks in bfloat16, or matrix products alone."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

__all__ = ["PRECISIONS", "TOLERANCES", "Precision", "networks_in_bf16", "products_in_bf16"]

Precision = Literal["full", "bf16", "bf16_matmul"]
PRECISIONS: tuple[str, ...] = get_args(Precision)
# The relative error that a compiled step may have. Eager networks in bfloat16 round each intermediate result, and a
# compiler rounds fewer of them.
TOLERANCES = {"full": 1e-3, "bf16": 0.1, "bf16_matmul": 0.1}
RECURRENT = (nn.RNNBase, nn.RNNCellBase)


@contextmanager
def networks_in_bf16(networks: Iterable[nn.Module]) -> Iterator[None]:
    """Run networks under autocast inside the block. Their outputs have the type of their inputs.

    Densities, sums and weights stay in full precision, because an autocast around the whole loss would add it up in
    bfloat16. Recurrent layers stay in full precision too: a state that is rounded at each step drifts, and some CPUs
    have no kernel for them.
    """
    with ExitStack() as replaced:
        for network in networks:
            for layer in network.modules():
                if isinstance(layer, RECURRENT):
                    replaced.enter_context(_forward(layer, partial(_in_full, layer.forward, layer)))
            replaced.enter_context(_forward(network, partial(_lowered, network.forward)))
        yield


@contextmanager
def _forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Replace the ``forward`` of a module inside the block."""
    before = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if before is not None:
            module.forward = before


def _lowered(forward: Callable[..., Tensor], x: Tensor) -> Tensor:
    """The output of a network under autocast, in the type of ``x``."""
    with torch.autocast(x.device.type, torch.bfloat16):
        return forward(x).to(x.dtype)


def _in_full(forward: Callable[..., Any], layer: nn.Module, x: Any, *state: Any) -> Any:
    """The output of a recurrent layer without autocast. Input and state are cast to the type of its weights."""
    weight = next(layer.parameters())
    with torch.autocast(weight.device.type, enabled=False):
        return forward(*(_as(weight, value) for value in (x, *state)))


def _as(weight: Tensor, value: Any) -> Any:
    """Cast a tensor, a packed sequence or a tuple of tensors to the type of ``weight``."""
    if hasattr(value, "to"):
        return value.to(weight.dtype)
    return tuple(_as(weight, part) for part in value) if isinstance(value, tuple) else value


@contextmanager
def products_in_bf16() -> Iterator[None]:
    """Multiply float32 matrices in bfloat16 and add up in float32 inside the block, by oneDNN on a CPU."""
    products: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = products.fp32_precision
    try:
        products.fp32_precision = "bf16"
        yield
    finally:
        products.fp32_precision = before
