"""Data sets: read, checked, split and scaled.

``sources`` reads a named set or a file. ``arrays`` and ``items`` convert arrays, data frames and Datasets to checked
tensors. ``splits`` holds rows out, and ``units`` finds the scale. ``prepared`` calls all of them and returns a
``Data``, which ``data_set`` defines.
"""

from .data_set import Data, tensor_of
from .prepared import prepare

__all__ = ["Data", "prepare", "tensor_of"]
