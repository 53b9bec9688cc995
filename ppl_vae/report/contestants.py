"""The contestants of a comparison: their names, and the options that each of them is given."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..catalogue import options_of
from ..studies.cells import Contestant, Contestants, contestants_named

__all__ = ["contestants_of"]


def contestants_of(
    given: Contestants, options: Mapping[str, Any] | None = None, estimator: str | None = None
) -> dict[str, Contestant]:
    """The contestants by name, each with its options.

    Args:
        given: The names of variants; or a table from the name of a contestant to the name of a variant, to a builder,
            or to a ``Contestant``.
        options: Options by name. ``beta`` is given to every contestant that has it. ``NAME.beta`` is given to the
            contestant NAME, or, if none is called so, to every contestant of the variant NAME. An option for one
            contestant counts more than what the contestant brings, which counts more than an option for several.
        estimator: The estimator of the bound for all contestants that do not bring their own.

    Raises:
        ValueError: If a name is unknown or given twice, no contestant has an option, or a builder of your own takes no
            estimator.

    Example:
        >>> found = contestants_of({"plain": "beta_vae", "rae": "rae"}, {"sigma": 0.2, "plain.beta": 1.0})
        >>> found["plain"].options, found["rae"].options
        ({'sigma': 0.2, 'beta': 1.0}, {'sigma': 0.2})
    """
    named = contestants_named(given)
    options = dict(options or {})
    for option in options:
        _check_option(option, named)
    return {name: replace(one, options=_laid(name, named, options, estimator)) for name, one in named.items()}


def _addressed(option: str, named: Mapping[str, Contestant]) -> tuple[list[str], str]:
    """The contestants that an option is for, and its name without theirs."""
    target, _, word = option.rpartition(".")
    if not target:
        return list(named), word
    return [target] if target in named else [name for name, one in named.items() if one.build == target], word


def _check_option(option: str, named: Mapping[str, Contestant]) -> None:
    names, word = _addressed(option, named)
    if not names:
        raise ValueError(f"{option!r} is for no contestant: wanted NAME.{word} for a NAME among {', '.join(named)}")
    known = list(dict.fromkeys(known for name in names for known in options_of(named[name].builder)))
    if word not in known:
        raise ValueError(f"{word!r} is not an option of {', '.join(names)}: wanted {', '.join(known) or 'none'}")


def _laid(
    name: str, named: Mapping[str, Contestant], options: Mapping[str, Any], estimator: str | None
) -> dict[str, Any]:
    """The options of one contestant: those for all, for its variant, its own, and those for it alone."""
    one = named[name]
    own = options_of(one.builder)
    for_all, for_variant, for_it = _loss(name, one, estimator), dict[str, Any](), dict[str, Any]()
    for option, value in options.items():
        names, word = _addressed(option, named)
        if name in names and word in own:
            layer = for_all if option == word else for_it if option == f"{name}.{word}" else for_variant
            layer[word] = value
    return {**for_all, **for_variant, **one.options, **for_it}


def _loss(name: str, one: Contestant, estimator: str | None) -> dict[str, Any]:
    """The option that sets the estimator. Every variant of the catalogue has it."""
    if estimator is None:
        return {}
    if not isinstance(one.build, str) and "loss" not in options_of(one.builder):
        raise ValueError(f"the builder of {name} has no argument loss, so it takes no estimator {estimator!r}")
    return {"loss": estimator}
