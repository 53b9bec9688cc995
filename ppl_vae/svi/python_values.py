"""Python values that a graph freezes: stand-ins that show whether a value has changed."""

from collections import deque
from typing import Any

import torch

__all__ = ["CONTAINERS", "frozen", "is_plain"]

NUMBERS = (bool, int, str, bytes, type(None), torch.dtype, torch.device, torch.Size)
CONTAINERS = (list, dict, set, deque)


def is_plain(value: Any) -> bool:
    """Whether a Python value is immutable: a number, a string, or a tuple of such values."""
    if type(value) is tuple:
        return all(map(is_plain, value))
    return isinstance(value, (*NUMBERS, float, complex))


def frozen(value: Any) -> Any:
    """A hashable stand-in for a Python value.

    Two equal stand-ins mean that the values are equal, or that they are the same object. The stand-in of a container
    that can change in place is its type.
    """
    if isinstance(value, float | complex):
        return type(value), repr(value)  # by repr, NaN equals NaN, and -0.0 differs from 0.0
    if isinstance(value, tuple):
        return type(value), *map(frozen, value)
    if isinstance(value, NUMBERS):
        return type(value), value
    return type(value) if isinstance(value, CONTAINERS) else id(value)
