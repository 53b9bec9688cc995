"""Recipes: how to build a pair again, in JSON. A part of this library is written as its name and its arguments.

A recipe holds no code. Names are looked up in the tables below. The class or function of a name is called only with
numbers, texts and other parts from the tables.
"""

import functools
import importlib
import inspect
import math
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from .elbo import ESTIMATORS
from .guides import Guide, Laplace
from .models import Half, LatentVariableModel, Scale, Schedule
from .models.schedules import CURVES, name_of_curve

__all__ = ["PAIR", "NotOurs", "built", "described", "recipe", "with_part"]

PAIR = "pair"  # the name in a recipe of ``pair`` itself, which is not a variant of the catalogue


def _exported(package: str, kind: type, but: tuple[type, ...]) -> dict[str, Callable[..., Any]]:
    """The subclasses of ``kind`` that a package of this library exports, by name, except those in ``but``."""
    space = importlib.import_module(f".{package}", __package__)
    exported = {name: getattr(space, name) for name in space.__all__}
    classes = {name: found for name, found in exported.items() if isinstance(found, type)}
    return {name: found for name, found in classes.items() if issubclass(found, kind) and found not in but}


PARTS = _exported("models", nn.Module, (Half, LatentVariableModel, Scale, Schedule))
PARTS |= {made.__name__: made for made in ESTIMATORS.values() if isinstance(made, type)}
FAMILIES = _exported("guides", Guide, (Guide, Laplace))
TABLES = {"part": PARTS, "family": FAMILIES, "curve": CURVES}


class NotOurs(TypeError):
    """Raised for a value that is neither JSON nor a part of this library, so that no file can build it."""


def recipe(name: str, x_shape: tuple[int, ...], z_dim: int, options: dict[str, Any]) -> dict[str, Any]:
    """Write down how to build a pair again.

    Args:
        name: A variant of the catalogue, or ``PAIR``.
        x_shape: Shape of one datum.
        z_dim: Size of a code.
        options: The keyword arguments that the builder was given.

    Returns:
        A dictionary for JSON. Its list ``"parts"`` holds the keywords whose values are not parts of this library.
    """
    made = {"variant": name, "x_shape": list(x_shape), "z_dim": z_dim, "options": {}, "parts": []}
    for keyword, value in options.items():
        made = with_part(made, keyword, value)
    return made


def with_part(made: dict[str, Any], keyword: str, value: Any) -> dict[str, Any]:
    """A copy of a recipe in which one option has another value."""
    options = {name: option for name, option in made["options"].items() if name != keyword}
    parts = [part for part in made["parts"] if part != keyword]
    try:
        options[keyword] = described(value)
    except NotOurs:
        parts.append(keyword)
    return {**made, "options": options, "parts": parts}


def described(value: Any) -> Any:
    """Describe a value in JSON, so that ``built`` can make it again.

    As in scikit-learn, a part keeps each argument of its class as an attribute of the same name. A scale that is a
    tensor is written as a number, because its exact value is among the tensors of a checkpoint.

    Raises:
        NotOurs: If the value, or a value inside it, is neither JSON nor a part of this library.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, list | tuple):
        return [described(item) for item in value]
    if isinstance(value, functools.partial):
        return _of_partial(value)
    if isinstance(value, type):
        return {"family": _ours(value, FAMILIES), "arguments": {}}
    return {"part": _ours(type(value), PARTS), "arguments": _arguments(value)}


def _arguments(part: Any) -> dict[str, Any]:
    """The arguments that build a part again, read from its attributes."""
    found = {}
    for name, parameter in inspect.signature(type(part)).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue  # the class has no __init__ of its own
        value = getattr(part, name)
        if isinstance(value, Tensor):
            value = float(value.detach().flatten()[0])
        is_default = value == parameter.default
        if is_default and value in (math.inf, -math.inf):
            continue  # JSON has no infinity
        found[name] = described(value)
    return found


def _of_partial(value: "functools.partial[Any]") -> dict[str, Any]:
    """Describe a curve of this library, or a family of guides with keyword arguments."""
    curve = name_of_curve(value)
    if curve is not None:
        return {"curve": curve, "arguments": [described(option) for option in value.args]}
    if value.args:
        raise NotOurs(f"{value!r} has positional arguments: pass them by keyword")
    arguments = {name: described(option) for name, option in value.keywords.items()}
    return {"family": _ours(value.func, FAMILIES), "arguments": arguments}


def _ours(value: Any, table: dict[str, Callable[..., Any]]) -> str:
    """The name of a value in a table."""
    for name, known in table.items():
        if known is value:
            return name
    raise NotOurs(f"{value!r} is not a part of this library")


def built(value: Any) -> Any:
    """Make the value that ``described`` wrote.

    Raises:
        ValueError: If a name is unknown, or the JSON is not a description.
    """
    if isinstance(value, list):
        return [built(item) for item in value]
    if not isinstance(value, dict):
        return value
    for kind, table in TABLES.items():
        if kind in value:
            return _made(kind, table, value)
    raise ValueError(f"a part is described by one of the keys {', '.join(TABLES)}, got {sorted(value)}")


def _made(kind: str, table: dict[str, Callable[..., Any]], value: dict[str, Any]) -> Any:
    make = table.get(str(value[kind]))
    arguments = _built_arguments(value.get("arguments"))
    if make is None:
        raise ValueError(f"unknown {kind} {value[kind]!r}: wanted one of {', '.join(table)}")
    if isinstance(arguments, list):
        return make(*arguments)
    if kind == "family":
        return functools.partial(make, **arguments) if arguments else make
    return make(**arguments)


def _built_arguments(arguments: Any) -> Any:
    """Make arguments, a list or a table. In a table, each list becomes a tuple again."""
    if isinstance(arguments, list):
        return [built(item) for item in arguments]
    if not isinstance(arguments, dict):
        raise ValueError(f"the arguments of a part must be a table or a list, got {arguments!r}")
    made = {name: built(option) for name, option in arguments.items()}
    return {name: tuple(option) if isinstance(option, list) else option for name, option in made.items()}
