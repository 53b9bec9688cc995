"""What a training asks of the machine: the number of threads, and the layout of the kernels of convolutions."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..variant import Variant

__all__ = ["GRAIN", "kernels_last", "threads_for"]

GRAIN = 32768  # the fewest elements that torch gives to a thread


@contextmanager
def threads_for(elements: int) -> Iterator[None]:
    """Use one thread inside the block if a batch has fewer elements than ``GRAIN``. More threads would be idle."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if elements < GRAIN else before)
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def kernels_last(variant: Variant, *, on: bool) -> Iterator[None]:
    """Hold the kernels of convolutions in the layout channels_last. The parameters remain the same objects."""
    kernels = [parameter for half in variant[:2] for parameter in half.parameters() if on and parameter.ndim == 4]

    def lay_out(layout: torch.memory_format) -> None:
        for kernel in kernels:
            kernel.data = kernel.data.contiguous(memory_format=layout)

    lay_out(torch.channels_last)
    try:
        yield
    finally:
        lay_out(torch.contiguous_format)
