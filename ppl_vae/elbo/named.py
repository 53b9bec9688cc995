"""Every estimator by its name, and the function that reads a name with options: ``"dreg:num_particles=16"``."""

import inspect
import json
from collections.abc import Callable

from pyro.infer import ELBO, RenyiELBO, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO

from .dip import DIP
from .importance import IWAE, MIWAE, Renyi
from .kl import BetaELBO, FreeBits, MeanFieldELBO
from .path import CIWAE, PIWAE, DReG, StickingTheLanding
from .pathwise import PathwiseELBO

__all__ = ["ESTIMATORS", "estimator", "target_of"]

ESTIMATORS: dict[str, Callable[..., ELBO]] = {
    "trace": PathwiseELBO,
    "mean_field": MeanFieldELBO,
    "stl": StickingTheLanding,
    "iwae": IWAE,
    "dreg": DReG,
    "renyi": Renyi,
    "ciwae": CIWAE,
    "piwae": PIWAE,
    "miwae": MIWAE,
    "free_bits": FreeBits,
    "beta": BetaELBO,
    "dip": DIP,
}


BIASED = "without the score of the guide, the gradient of an importance-weighted bound is biased for K > 1, use dreg"
REFUSED = {"stl_iwae": BIASED, "iwae_stl": BIASED}


def estimator(spelled: str) -> ELBO:
    """Build the estimator for a text ``NAME`` or ``NAME:OPTION=VALUE,...``.

    Example:
        >>> estimator("renyi:alpha=0.5,num_particles=16")
        Renyi(alpha=0.5, num_particles=16)

    Raises:
        ValueError: If the name or an option is unknown, or a value is not allowed.
    """
    name, _, rest = spelled.partition(":")
    if name in REFUSED:
        raise ValueError(f"estimator {name!r} is refused: {REFUSED[name]}")
    if name not in ESTIMATORS:
        raise ValueError(f"unknown estimator {name!r}: wanted one of {', '.join(ESTIMATORS)}")
    known = inspect.signature(ESTIMATORS[name]).parameters
    options = {}
    for spelled_option in filter(None, rest.split(",")):
        option, _, value = spelled_option.partition("=")
        if option not in known or not _is_like(value, known[option].default):
            wanted = ", ".join(f"{key}=NUMBER" for key in known)
            raise ValueError(f"estimator {name!r} cannot take {option}={value}: wanted {wanted}")
        options[option] = json.loads(value)
    return ESTIMATORS[name](**options)


# The targets of the estimators of Pyro. A class derived from one of them may have another target.
OF_PYRO: dict[type[ELBO], str] = {
    Trace_ELBO: "elbo",
    TraceEnum_ELBO: "elbo",
    TraceGraph_ELBO: "elbo",
    TraceMeanField_ELBO: "elbo",
    RenyiELBO: "renyi",
}


def target_of(estimator: ELBO) -> str | None:
    """The name of the quantity that an estimator estimates, or None where it is not known.

    It is the attribute ``target`` of the estimator, or the entry of an estimator of Pyro in ``OF_PYRO``.
    """
    return getattr(estimator, "target", OF_PYRO.get(type(estimator)))


def _is_like(text: str, default: object) -> bool:
    """Whether ``text`` is a number, or ``true`` or ``false`` where the default is a truth value."""
    try:
        value = json.loads(text)
    except ValueError:
        return False
    return isinstance(value, int | float) and isinstance(value, bool) == isinstance(default, bool)
