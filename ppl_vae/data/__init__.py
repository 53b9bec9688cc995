"""What is x, and in which units?

The files follow the way of the data: ``sources`` reads a named set or a file, ``arrays`` and ``items`` make a checked
tensor of whatever holds numbers, ``splits`` holds rows out, ``units`` finds the scale, and ``prepared`` puts them
together in ``Data``, which stands in ``data_set``.
"""

from .data_set import Data, tensor_of
from .prepared import prepare

__all__ = ["Data", "prepare", "tensor_of"]
