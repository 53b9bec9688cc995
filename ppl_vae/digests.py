"""Digests of numbers: the same numbers have the same digest in every process."""

import hashlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["digest_of"]


def digest_of(x: Tensor | np.ndarray[Any, Any]) -> str:
    """The SHA-256 of the numbers, the shape and the dtype of an array.

    Raises:
        TypeError: If the array holds objects and not numbers.
    """
    found = hashlib.sha256(f"{x.dtype} {list(x.shape)}".encode())
    if isinstance(x, Tensor):
        found.update(x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    elif x.dtype.hasobject:
        raise TypeError("an array of objects cannot be declared: wanted an array of numbers")
    else:
        found.update(np.ascontiguousarray(x).tobytes())
    return found.hexdigest()
