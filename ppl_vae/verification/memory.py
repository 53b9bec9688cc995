"""How many rows a network is given at once, and the largest number of bytes that tensors hold at once."""

import weakref
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["peak_bytes"]


class _Watch(TorchDispatchMode):
    """Counts storages as operations make them and as they are freed; those that came in are not counted."""

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor):
                self.held.setdefault(tensor.untyped_storage()._cdata, 0)
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in self.held:
                storage = tensor.untyped_storage()
                self.held[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self.held.pop, storage._cdata, None)
        self.peak = max(self.peak, sum(self.held.values()))
        return out


def peak_bytes(function: Callable[[], Any]) -> int:
    """Run ``function``, forward and backward passes and all; what its tensors took at most, in bytes.

    Exact and repeatable, for it counts tensors and not pages: what the allocator keeps in reserve is left out.
    """
    with _Watch() as watch:
        function()
    return watch.peak
