"""How many bytes do the tensors of a computation hold at once?"""

import weakref
from collections.abc import Callable
from typing import Any

from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["peak_bytes"]


class _Watch(TorchDispatchMode):
    """Count the bytes of the storages that operations make, until they are freed. Earlier storages do not count."""

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for storage in _storages((args, kwargs)):
            self._hold(storage, 0)
        for storage in _storages(out):
            self._hold(storage, storage.nbytes())
        self.peak = max(self.peak, sum(self.held.values()))
        return out

    def _hold(self, storage: UntypedStorage, size: int) -> None:
        """Note a new storage until it is freed. After that, another storage may have its address."""
        address = storage._cdata
        if address not in self.held:
            self.held[address] = size
            weakref.finalize(storage, self.held.pop, address, None)


def _storages(values: Any) -> list[UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def peak_bytes(function: Callable[[], Any]) -> int:
    """Run ``function`` and return the largest number of bytes that its tensors held at once.

    Tensors of the backward pass count too. The number is exact and repeatable, because it counts tensors, and not the
    memory that the allocator keeps in reserve.
    """
    with _Watch() as watch:
        function()
    return watch.peak
