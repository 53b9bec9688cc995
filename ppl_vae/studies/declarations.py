"""What declares a cell: its builder, options, data and seed as plain JSON, and the key that is computed from them."""

import enum
import functools
import hashlib
import importlib
import json
import math
import types
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..digests import digest_of
from ..recipes import NotOurs, described

__all__ = ["ADDRESSES", "address", "declared", "is_importable", "key_of"]

ADDRESSES = ("function", "module", "object", "enum")  # the keys under which declarations hold import paths
OF_EVERY_MODULE = frozenset(vars(nn.Module()))  # the attributes that torch itself gives to a module


def address(function: Callable[..., Any]) -> str:
    """The import path of a function or a class, ``module:name``. For a partial, it is that of its function."""
    function = _inner(function)
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return f"{getattr(function, '__module__', type(function).__module__)}:{name}"


def _inner(function: Any) -> Any:
    return _inner(function.func) if isinstance(function, functools.partial) else function


def is_importable(function: Callable[..., Any]) -> bool:
    """Whether a function is found by its address: it is not a lambda, nor inside another function."""
    function = _inner(function)
    module, _, name = address(function).partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError):
        return False
    return found is function or (isinstance(found, types.MethodType) and found == function)


def declared(value: Any) -> Any:
    """A value as plain JSON, the same in every process.

    * An array is written as the digest of its numbers.
    * A function or a class is written as its import path. A lambda, or a function inside another one, has no path that
      tells it from the next one: its code and the values that it refers to are written too.
    * A part of this library is written as in a checkpoint, and another module as its attributes and the modules inside
      it. The weights that a module has are added as a digest, because training starts from them.
    * Another object is written as its class and its attributes.

    Raises:
        TypeError: If the value is none of these.
    """
    for kind, write in WRITTEN:
        if isinstance(value, kind):
            return write(value)
    try:
        return described(value)
    except NotOurs:
        return _of_your_own(value)


def _of_float(value: Any) -> Any:
    return float(value) if math.isfinite(value) else {"number": str(float(value))}


def _of_mapping(value: Mapping[Any, Any]) -> Any:
    if all(isinstance(name, str) for name in value):
        return {name: declared(item) for name, item in value.items()}
    return {"items": _in_order([declared(name), declared(item)] for name, item in value.items())}


def _in_order(values: Any) -> list[Any]:
    """Plain values in the order of their JSON, because the order in a set differs between processes."""
    return sorted(values, key=lambda value: json.dumps(value, sort_keys=True))


def _of_module(value: nn.Module) -> Any:
    state = {name: tensor for name, tensor in value.state_dict().items() if isinstance(tensor, Tensor)}
    moved = [name for name, parameter in value.named_parameters() if parameter.requires_grad]
    return {**_structure(value), "weights": {name: digest_of(tensor) for name, tensor in state.items()}, "moved": moved}


def _structure(module: nn.Module) -> dict[str, Any]:
    """A module without its weights."""
    try:
        return dict(described(module))
    except NotOurs:
        pass
    kind = type(module)
    own = {name: item for name, item in vars(module).items() if name not in OF_EVERY_MODULE}
    if kind.__module__.partition(".")[0] == "torch":
        own = {}  # extra_repr has the arguments of torch's own modules
    children = {name: _structure(child) for name, child in module.named_children()}
    return {"module": address(kind), "says": module.extra_repr(), "own": declared(own), "children": children}


def _of_function(value: Any) -> Any:
    if is_importable(value):
        return {"function": address(value)}
    if isinstance(value, types.MethodType):
        return {"function": address(value), "of": declared(value.__self__)}
    cells = {
        name: _inside(cell) for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)
    }
    given = [declared(value.__defaults__), declared(value.__kwdefaults__)]
    return {"function": address(value), "code": _of_code(value.__code__), "cells": cells, "given": given}


def _inside(cell: Any) -> Any:
    try:
        found = cell.cell_contents
    except ValueError:  # the name has no value yet
        return None
    return declared(found)


def _of_code(code: types.CodeType) -> Any:
    """The compiled text of a function, without its line numbers."""
    constants = [_of_code(one) if isinstance(one, types.CodeType) else _constant(one) for one in code.co_consts]
    return [code.co_code.hex(), constants, list(code.co_names)]


def _constant(value: Any) -> Any:
    return declared(value) if isinstance(value, frozenset) else repr(value)


def _of_your_own(value: Any) -> Any:
    if isinstance(value, functools.partial):
        given = {"arguments": declared(value.args), "keywords": declared(value.keywords)}
        return {"partial": declared(value.func), **given}
    if isinstance(value, type | types.BuiltinFunctionType):
        return {"function": address(value)}
    if callable(value) and (hasattr(value, "__code__") or (hasattr(value, "__qualname__") and is_importable(value))):
        return _of_function(value)
    try:
        return {"object": address(type(value)), "has": declared(vars(value))}
    except TypeError:
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        raise TypeError(
            f"a value of type {kind} cannot be declared: wanted numbers, texts, arrays, modules, functions, or objects "
            "that hold these; make others inside the builder"
        ) from None


def key_of(declaration: Mapping[str, Any]) -> str:
    """The key of a declaration, 16 hexadecimal digits of its SHA-256."""
    text = json.dumps(declaration, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


WRITTEN: tuple[tuple[Any, Callable[[Any], Any]], ...] = (  # the first that fits counts
    (enum.Enum, lambda value: {"enum": address(type(value)), "name": value.name}),
    (bool | np.bool_, bool),
    (int | np.integer, int),
    (float | np.floating, _of_float),
    (str, str),
    (Mapping, _of_mapping),
    (list | tuple, lambda value: [declared(item) for item in value]),
    (set | frozenset, lambda value: {"set": _in_order(declared(item) for item in value)}),
    (PurePath, lambda value: {"path": value.as_posix()}),
    (torch.dtype | torch.device, str),
    (Tensor | np.ndarray, lambda value: {"numbers": digest_of(value)}),
    (nn.Module, _of_module),
    (types.MethodType, _of_function),
)
