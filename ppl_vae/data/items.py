"""Map-style Datasets: their items as rows of a tensor, all of them or a part drawn at random."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from ..streams import chosen
from .arrays import numbers

__all__ = ["SCORED", "all_of", "check_length", "is_streamed", "item_of", "part_of", "rows_of", "stack_of"]

SCORED = 2000  # at most this many held-out rows of a streamed Dataset are read into memory

RESIDENT = 2**31  # a Dataset of at most this many bytes is read into memory


def is_streamed(dataset: Any) -> bool:
    """Whether a Dataset is too large to be read into memory.

    Raises:
        ValueError: If the Dataset has no length or no item.
    """
    check_length(dataset)
    return len(dataset) * item_of(dataset[0]).numel() * 4 > RESIDENT


def check_length(dataset: Any, fewest: int = 1) -> None:
    """Refuse a Dataset that has no length, or fewer items than ``fewest``."""
    if not hasattr(dataset, "__len__"):
        raise ValueError(f"{type(dataset).__name__} has no length: wanted a map-style Dataset")
    if len(dataset) < fewest:
        raise ValueError(f"the Dataset has {len(dataset)} items: wanted at least {fewest}")


def item_of(item: Any) -> Tensor:
    """The x of a Dataset's item: the item itself, the first of a pair, or the entry ``data`` or ``x``."""
    if isinstance(item, dict):
        if "data" not in item and "x" not in item:
            raise ValueError(f"an item of the Dataset has the keys {', '.join(map(str, item))}: wanted 'data' or 'x'")
        item = item.get("data", item.get("x"))
    elif isinstance(item, tuple | list):
        item = item[0]
    return item if isinstance(item, Tensor) else numbers(item, "an item of the Dataset")


def stack_of(items: list[Any]) -> Tensor:
    """Items of a Dataset as one tensor [rows, *x_shape]."""
    rows = [item_of(item) for item in items]
    shapes = sorted({tuple(row.shape) for row in rows})
    if len(shapes) > 1:
        raise ValueError(f"items of the Dataset have shapes {list(shapes[0])} and {list(shapes[1])}: wanted the same")
    return torch.stack(rows)


def all_of(dataset: Any) -> Tensor:
    """Every item of a Dataset, [rows, *x_shape]."""
    return stack_of([dataset[row] for row in range(len(dataset))])


PART = 10_000  # at most this many rows are read of a streamed Dataset where a part of it is enough
PART_NUMBERS = 2**28  # at most this many numbers in these rows: 1 GB in single precision


def part_of(dataset: Dataset[Any], count: int = PART, seed: int = 0) -> Tensor:
    """Draw rows of a Dataset at random by ``seed``, [count, *x_shape], or fewer rows if a row is large."""
    fitting = max(2, PART_NUMBERS // max(1, item_of(dataset[0]).numel()))
    rows = chosen(len(dataset), min(count, fitting), seed)  # type: ignore[arg-type]
    return stack_of([dataset[int(row)] for row in rows])


def rows_of(data: Tensor | Dataset[Any], rows: Tensor) -> Tensor | Dataset[Any]:
    """The rows of a tensor or of a Dataset with the given indices. No item of a Dataset is read yet."""
    return data[rows] if isinstance(data, Tensor) else Subset(data, rows.tolist())
