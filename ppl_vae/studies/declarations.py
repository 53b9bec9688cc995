"""What declares a cell: its builder, options, data and seed as plain JSON, and the key that is computed from them."""

import functools
import hashlib
import importlib
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..recipes import NotOurs, described

__all__ = ["address", "declared", "is_importable", "key_of"]


def address(function: Callable[..., Any]) -> str:
    """The import path of a function or a class, ``module:name``. For a partial, it is that of its function."""
    function = _inner(function)
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return f"{getattr(function, '__module__', type(function).__module__)}:{name}"


def _inner(function: Any) -> Any:
    return _inner(function.func) if isinstance(function, functools.partial) else function


def is_importable(function: Callable[..., Any]) -> bool:
    """Whether another process can import a function by its address: not a lambda, nor a function of ``__main__``."""
    function = _inner(function)
    module, _, name = address(function).partition(":")
    if module == "__main__":
        return False
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError):
        return False
    return found is function


def declared(value: Any) -> Any:
    """A value as plain JSON.

    Parts of this library are written as in a checkpoint, a part of your own by its import path and ``extra_repr``, a
    function by its import path, and an array by the digest of its numbers. The weights of a module are left out,
    because the seed of the cell moves them.

    Raises:
        TypeError: If the value is none of these.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(name): declared(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [declared(item) for item in value]
    if isinstance(value, Tensor | np.ndarray):
        return {"numbers": digest_of(torch.as_tensor(value))}
    try:
        return described(value)
    except NotOurs:
        return _of_your_own(value)


def _of_your_own(value: Any) -> Any:
    if isinstance(value, functools.partial):
        given = {"arguments": declared(value.args), "keywords": declared(value.keywords)}
        return {"partial": address(value), **given}
    if isinstance(value, nn.Module):
        return {"module": address(type(value)), "numbers": value.extra_repr()}
    if callable(value):
        return {"function": address(value)}
    raise TypeError(f"{value!r} cannot be declared: wanted numbers, texts, arrays, modules or functions")


def digest_of(x: Tensor) -> str:
    """The SHA-256 of the numbers, the shape and the dtype of a tensor."""
    found = hashlib.sha256(f"{x.dtype} {list(x.shape)}".encode())
    found.update(x.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def key_of(declaration: Mapping[str, Any]) -> str:
    """The key of a declaration, 16 hexadecimal digits of its SHA-256."""
    text = json.dumps(declaration, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
