"""The number of rows that a network is given at once outside training."""

import math
from collections.abc import Iterable

__all__ = ["rows_at_once"]

ROWS = 1000  # at most this many rows at once, because larger temporaries do not fit into the cache
NUMBERS = 2**22  # at most this many numbers in these rows: 16 MB in single precision, or 21 pictures of 3 x 256 x 256


def rows_at_once(x_shape: Iterable[int]) -> int:
    """The number of data of this shape that a network is given at once outside training, at least 1.

    It depends on the shape alone, because draws are made block by block, and other blocks would give other draws.
    """
    fitting = NUMBERS // max(1, math.prod(x_shape))
    return max(1, min(ROWS, fitting))
