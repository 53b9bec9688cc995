"""Recipes: what builds a pair again, in JSON. Parts of this library go by name, with the arguments of their class.

Nothing in a recipe is code. A name is looked up in the tables below, and what it names is called with numbers, texts
and other parts of the tables alone.
"""

import functools
import inspect
import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from . import guides, models
from .elbo import ESTIMATORS
from .models.schedules import CURVES, name_of_curve

__all__ = ["PAIR", "NotOurs", "built", "described", "recipe", "with_part"]

PAIR = "pair"  # the variant that a recipe names where ``pair`` built it, and no entry of the catalogue


def _exported(space: ModuleType, kind: type, but: tuple[type, ...]) -> dict[str, Callable[..., Any]]:
    """The classes of a kind that a package exports, by name."""
    found = {name: getattr(space, name) for name in space.__all__}
    return {
        n: made for n, made in found.items() if isinstance(made, type) and issubclass(made, kind) and made not in but
    }


PARTS = _exported(models, nn.Module, (models.Half, models.LatentVariableModel, models.Scale, models.Schedule))
PARTS |= {made.__name__: made for made in ESTIMATORS.values() if isinstance(made, type)}
FAMILIES = _exported(guides, guides.Guide, (guides.Guide, guides.Laplace))
TABLES = {"part": PARTS, "family": FAMILIES, "curve": CURVES}


class NotOurs(TypeError):
    """A value is neither JSON nor a part of this library: a file cannot build it."""


def recipe(name: str, x_shape: tuple[int, ...], z_dim: int, options: dict[str, Any]) -> dict[str, Any]:
    """What builds a pair again.

    Args:
        name: A variant of the catalogue, or ``PAIR``.
        x_shape: Shape of one datum.
        z_dim: Size of a code.
        options: The keyword arguments of the builder.

    Returns:
        A dictionary for JSON. Options that are parts of one's own are listed under ``"parts"``, by their keyword.
    """
    start = {"variant": name, "x_shape": list(x_shape), "z_dim": z_dim, "options": {}, "parts": []}
    return functools.reduce(lambda made, option: with_part(made, *option), options.items(), start)


def with_part(made: dict[str, Any], keyword: str, value: Any) -> dict[str, Any]:
    """A recipe with another value of one option."""
    options = {name: option for name, option in made["options"].items() if name != keyword}
    parts = [part for part in made["parts"] if part != keyword]
    try:
        options[keyword] = described(value)
    except NotOurs:
        parts.append(keyword)
    return {**made, "options": options, "parts": parts}


def described(value: Any) -> Any:
    """A value in JSON, from which ``built`` makes it again.

    As in scikit-learn, an instance keeps each argument of its class as an attribute of that name. A scale that is a
    tensor is written as a number: the exact one comes back with the tensors of a checkpoint.

    Raises:
        NotOurs: If the value, or one inside it, is neither plain nor a part of this library.
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
    found = {}
    for name, parameter in inspect.signature(type(part)).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue  # of a class without an __init__ of its own
        value = getattr(part, name)
        if isinstance(value, Tensor):
            value = float(value.detach().flatten()[0])
        if value != parameter.default or value not in (math.inf, -math.inf):  # infinity is no JSON, and a default
            found[name] = described(value)
    return found


def _of_partial(value: "functools.partial[Any]") -> dict[str, Any]:
    """A curve of ours, or a family of guides with keyword arguments."""
    curve = name_of_curve(value)
    if curve is not None:
        return {"curve": curve, "arguments": [described(option) for option in value.args]}
    if value.args:
        raise NotOurs(f"{value!r} has arguments without a name")
    arguments = {name: described(option) for name, option in value.keywords.items()}
    return {"family": _ours(value.func, FAMILIES), "arguments": arguments}


def _ours(value: Any, table: dict[str, Callable[..., Any]]) -> str:
    for name, known in table.items():
        if known is value:
            return name
    raise NotOurs(f"{value!r} is no part of this library")


def built(value: Any) -> Any:
    """What ``described`` put into JSON.

    Raises:
        ValueError: If a name is unknown, or the file is no recipe.
    """
    if isinstance(value, list):
        return [built(item) for item in value]
    if not isinstance(value, dict):
        return value
    for kind, table in TABLES.items():
        if kind in value:
            return _made(kind, table, value)
    raise ValueError(f"{sorted(value)} is the description of no part")


def _made(kind: str, table: dict[str, Callable[..., Any]], value: dict[str, Any]) -> Any:
    make, arguments = table.get(str(value[kind])), _built_arguments(value.get("arguments"))
    if make is None:
        raise ValueError(f"unknown {kind} {value[kind]!r}: wanted one of {', '.join(table)}")
    if isinstance(arguments, list):
        return make(*arguments)
    if kind == "family":
        return functools.partial(make, **arguments) if arguments else make
    return make(**arguments)


def _built_arguments(arguments: Any) -> Any:
    """Arguments by name or in order, those that are lists as the tuples they were."""
    if isinstance(arguments, list):
        return [built(item) for item in arguments]
    if not isinstance(arguments, dict):
        raise ValueError(f"the arguments of a part are {arguments!r}, wanted a table or a list")
    made = {name: built(option) for name, option in arguments.items()}
    return {name: tuple(option) if isinstance(option, list) else option for name, option in made.items()}
