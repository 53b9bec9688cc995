"""The colours of contestants, which are the same in every plot of a report."""

from collections.abc import Sequence

from ..catalogue import VARIANTS
from ..drawing import COLOURS

__all__ = ["colours_of"]


def colours_of(names: Sequence[str]) -> dict[str, str]:
    """The colour of each contestant of a report. No two have the same one while there are enough colours.

    A variant of the catalogue has its own colour in every report. Another name has a colour that depends on its
    letters, or the next one that is free.

    Example:
        >>> colours_of(["mine", "sigma_vae"])["sigma_vae"] == colours_of(["sigma_vae"])["sigma_vae"]
        True
    """
    places = {name: place for place, name in enumerate(VARIANTS) if name in names}
    for name in names:
        if name not in places:
            first = sum(map(ord, name))
            turns = [(first + turn) % len(COLOURS) for turn in range(len(COLOURS))]
            places[name] = next((place for place in turns if place not in places.values()), turns[0])
    return {name: COLOURS[places[name] % len(COLOURS)] for name in names}
