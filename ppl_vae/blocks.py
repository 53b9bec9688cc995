"""How many rows a network is given at once outside training."""

import math
from collections.abc import Iterable

__all__ = ["rows_at_once"]

ROWS = 1000  # rows that a network sees at once outside training, at most: larger temporaries fall out of the cache
NUMBERS = 2**22  # numbers of x in these rows, at most: 16 MB in single precision, 21 pictures of 3 x 256 x 256


def rows_at_once(x_shape: Iterable[int]) -> int:
    """How many data of this shape a network is given at once outside training.

    Random streams that are cut into blocks are cut by this number, so it depends on the shape alone.
    """
    return max(1, min(ROWS, NUMBERS // max(1, math.prod(x_shape))))
