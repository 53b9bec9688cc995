"""Fewer digits where they cost most: networks in bfloat16, or matrix products alone."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["PRECISIONS", "networks_in_bf16", "products_in_bf16"]

PRECISIONS = ("full", "bf16", "bf16_matmul")


@contextmanager
def networks_in_bf16(networks: Iterable[nn.Module]) -> Iterator[None]:
    """Run networks under autocast, and hand on what they return in the type of what they were given.

    Densities, sums and weights keep every digit: an autocast around the whole loss would add it up in bfloat16.
    """
    networks = list(networks)
    for network in networks:
        forward = network.forward

        def lowered(x: Tensor, forward: Any = forward) -> Tensor:
            with torch.autocast(x.device.type, torch.bfloat16):
                return forward(x).to(x.dtype)

        network.forward = lowered
    try:
        yield
    finally:
        for network in networks:
            del network.forward


@contextmanager
def products_in_bf16() -> Iterator[None]:
    """Let oneDNN, the CPU's library, multiply float32 matrices in bfloat16 and add up in float32."""
    products: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = products.fp32_precision
    try:
        products.fp32_precision = "bf16"
        yield
    finally:
        products.fp32_precision = before
