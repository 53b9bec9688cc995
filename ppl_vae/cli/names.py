"""Names on the command line: each is returned if it is known; if not, the message lists the known ones."""

from pathlib import Path

import typer

from ..catalogue import VARIANTS
from ..data.sources import FILES, SETS
from ..elbo import estimator

__all__ = ["known_data", "known_estimator", "known_estimators", "known_variant", "known_variants"]


def known_variant(name: str) -> str:
    """A name of ``VARIANTS``."""
    if name not in VARIANTS:
        raise typer.BadParameter(f"unknown variant {name!r}: wanted one of {', '.join(VARIANTS)}")
    return name


def known_variants(names: list[str] | None) -> list[str] | None:
    """Names of ``VARIANTS``."""
    for name in names or []:
        known_variant(name)
    return names


def known_data(source: str | None) -> str | None:
    """The name of a data set, or a path that ends as a file of data does."""
    if source is not None and source not in SETS and Path(source).suffix.lower() not in FILES:
        raise typer.BadParameter(f"unknown data {source!r}: wanted {', '.join(SETS)}, or a file in {', '.join(FILES)}")
    return source


def known_estimator(spelled: str | None) -> str | None:
    """``NAME`` or ``NAME:OPTION=VALUE,...``, as ``ppl_vae.elbo.estimator`` reads it."""
    if spelled is not None:
        try:
            estimator(spelled)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
    return spelled


def known_estimators(spelled: list[str] | None) -> list[str] | None:
    """Estimators, each spelled as for ``known_estimator``."""
    for each in spelled or []:
        known_estimator(each)
    return spelled
