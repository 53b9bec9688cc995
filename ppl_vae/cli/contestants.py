"""Contestants as they are typed: ``VARIANT``, or ``NAME=VARIANT:option=value,option=value``."""

import re
from collections.abc import Sequence

import typer

from ..report.contestants import contestants_of
from ..studies import Contestant
from .names import known_variant
from .options import read_value

__all__ = ["typed_contestants"]

WANTED = "wanted VARIANT or NAME=VARIANT:option=value,option=value"


def typed_contestants(typed: Sequence[str]) -> dict[str, Contestant]:
    """The contestants by name.

    Raises:
        typer.BadParameter: If one cannot be read, its variant is unknown, or two have the same name.

    Example:
        >>> found = typed_contestants(["rae", "wide=beta_vae:beta=2,sigma=0.2"])
        >>> found["rae"].options, found["wide"].build, found["wide"].options
        ({}, 'beta_vae', {'beta': 2, 'sigma': 0.2})
    """
    found: dict[str, Contestant] = {}
    for text in typed:
        name, contestant = _read(text)
        if name in found:
            raise typer.BadParameter(f"two contestants are called {name!r}: give each its own name, NAME={text}")
        found[name] = contestant
    return found


def _read(text: str) -> tuple[str, Contestant]:
    head, colon, rest = text.partition(":")
    name, _, variant = head.rpartition("=")
    if name != name.strip() or not variant or (colon and not rest) or head.startswith("="):
        raise typer.BadParameter(f"cannot read {text!r}: {WANTED}")
    options = dict(_assignment(text, each) for each in re.split(r",(?=\w+=)", rest)) if rest else {}
    name = name or text
    try:
        return name, contestants_of({name: known_variant(variant)}, options)[name]
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _assignment(text: str, each: str) -> tuple[str, object]:
    option, equals, value = each.partition("=")
    if not equals or not option.isidentifier():
        raise typer.BadParameter(f"cannot read {each!r} in {text!r}: {WANTED}")
    return option, read_value(value)
