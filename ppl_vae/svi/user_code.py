"""The code of a user: its classes and methods, and the variables that its functions read."""

import dis
import functools
from collections.abc import Callable
from types import CodeType, FunctionType
from typing import Any

__all__ = [
    "UNBOUND",
    "content",
    "free_values",
    "global_names",
    "is_from_torch",
    "is_own",
    "neighbours",
    "own_classes",
    "own_methods",
]

UNBOUND = object()  # the content of a closure's variable that has no value yet


def is_own(module: str | None) -> bool:
    """Whether the user wrote the module of this name. torch, Pyro and this library do not change between steps."""
    return (module or "").partition(".")[0] not in ("torch", "pyro", "builtins", "ppl_vae", "numpy", "typing")


def is_from_torch(hook: Callable[..., Any]) -> bool:
    """Whether torch itself made a hook, as spectral normalisation does. Such a hook computes with tensors alone."""
    module = getattr(hook, "__module__", None) or type(hook).__module__
    return module.startswith("torch.nn.utils.")


def own_classes(owner: Any) -> dict[str, Any]:
    """The classes of an object that the user wrote, by name. They may hold attributes that the object reads."""
    return {family.__name__: family for family in type(owner).__mro__ if is_own(family.__module__)}


def own_methods(owner: Any) -> list[Any]:
    """All attributes of the classes that ``own_classes`` finds, methods included."""
    return [value for family in own_classes(owner).values() for value in vars(family).values()]


def neighbours(function: FunctionType) -> list[FunctionType]:
    """The functions of the same package that a function wraps, or reads from its closure or its globals."""
    package = _package(function)
    values = [getattr(function, "__wrapped__", None), *free_values(function)]
    return [value for value in values if isinstance(value, FunctionType) and _package(value) == package]


def _package(function: FunctionType) -> str:
    return (function.__module__ or "").partition(".")[0]


def free_values(function: FunctionType) -> list[Any]:
    """The values that a function reads from its closure and then from its globals, by the names in its code."""
    space = function.__globals__
    from_closure = [content(cell) for cell in function.__closure__ or ()]
    return from_closure + [space.get(name) for name in global_names(function.__code__)]


def content(cell: Any) -> Any:
    """The value of a closure's variable, or ``UNBOUND``."""
    try:
        return cell.cell_contents
    except ValueError:
        return UNBOUND


@functools.cache
def global_names(code: CodeType) -> tuple[str, ...]:
    """The globals that the code of a function reads, including those that its inner functions read."""
    read = [line.argval for line in dis.get_instructions(code) if line.opname in ("LOAD_GLOBAL", "LOAD_NAME")]
    inner = [name for part in code.co_consts if isinstance(part, CodeType) for name in global_names(part)]
    return tuple(dict.fromkeys([*read, *inner]))
