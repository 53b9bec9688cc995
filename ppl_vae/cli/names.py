"""Checks of names on the command line. A known name is returned. For any other name, the error lists the known ones."""

from pathlib import Path

import typer

from ..catalogue import VARIANTS
from ..data.sources import FILES, SETS
from ..elbo import estimator

__all__ = ["known_data", "known_estimator", "known_estimators", "known_variant"]


def known_variant(name: str) -> str:
    """Return a name if it is in ``VARIANTS``, or raise ``typer.BadParameter``."""
    if name not in VARIANTS:
        raise typer.BadParameter(f"unknown variant {name!r}: wanted one of {', '.join(VARIANTS)}")
    return name


def known_data(source: str | None) -> str | None:
    """Return the name of a data set or a path with the suffix of a data file, or raise ``typer.BadParameter``."""
    if source is not None and source not in SETS and Path(source).suffix.lower() not in FILES:
        raise typer.BadParameter(f"unknown data {source!r}: wanted {', '.join(SETS)}, or a file in {', '.join(FILES)}")
    return source


def known_estimator(spelled: str | None) -> str | None:
    """Return an estimator's ``NAME`` or ``NAME:OPTION=VALUE,...``, or raise ``typer.BadParameter``."""
    if spelled is not None:
        try:
            estimator(spelled)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
    return spelled


def known_estimators(spelled: list[str] | None) -> list[str] | None:
    """Return estimators if each of them passes ``known_estimator``."""
    for each in spelled or []:
        known_estimator(each)
    return spelled
