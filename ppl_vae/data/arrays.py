"""Whatever holds rows of numbers, as a tensor that was checked."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..streams import chosen

__all__ = [
    "SPACINGS",
    "all_of",
    "check_length",
    "columns",
    "finite_numbers",
    "is_streamed",
    "item_of",
    "names_of",
    "numbers",
    "part_of",
    "stack_of",
    "tensor_from",
]

SPACINGS = 100  # spacings of floats that the spread of a column has to span, for its digits to be there


def numbers(source: Any, name: str) -> Tensor:
    """An array, or what NumPy makes one of, as a tensor of float32 or float64.

    Whole numbers take the default dtype where it holds each of them exactly, else float64.
    """
    if isinstance(source, np.ma.MaskedArray) and np.ma.is_masked(source):
        raise ValueError(f"{name} has masked values: wanted finite numbers, drop or fill them")
    if hasattr(source, "toarray"):
        raise ValueError(f"{name} is a sparse matrix, {type(source).__name__}: pass {name}.toarray()")
    try:
        array = np.asarray(source)
    except ValueError:
        raise ValueError(f"{name} is ragged: wanted rows of equal length") from None
    except (TypeError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{name} is no array of numbers, {type(source).__name__}: {reason}") from None
    if array.dtype.kind not in "biuf":
        wanted = "wanted real numbers, rows of equal length"
        if array.dtype.kind in "Mm":
            wanted = f"wanted real numbers: pass seconds, ({name} - {name}.min()) / np.timedelta64(1, 's')"
        raise ValueError(f"{name} holds values of type {array.dtype}: {wanted}")
    if array.dtype.kind == "f":
        kept = np.float32 if array.dtype.itemsize <= 4 else np.float64
        return torch.from_numpy(np.array(array, dtype=kept, order="C"))  # a copy: of any layout, byte order, permission
    return _whole_numbers(array, name)


def _whole_numbers(array: Any, name: str) -> Tensor:
    """Whole numbers in the default dtype where it holds each exactly, else in float64."""
    for place, column in enumerate(array.reshape(len(array), -1).T if array.ndim > 1 else ()):
        _told_apart(column, f"column {place} of {name}")
    default = torch.get_default_dtype()
    exact = array.size == 0 or max(int(array.max()), -int(array.min())) <= 2 / torch.finfo(default).eps
    kept = np.float32 if exact and default == torch.float32 else np.float64
    return torch.from_numpy(np.array(array, dtype=kept, order="C")).to(default if exact else torch.float64)


def _told_apart(column: Any, name: str) -> None:
    """Refuse whole numbers, beyond 2**53, whose differences float64 does not show."""
    if len(column) == 0 or column.dtype.itemsize < 8:
        return
    low, high = int(column.min()), int(column.max())
    spacing = float(np.spacing(float(max(high, -low))))
    if spacing > 1 and 0 < high - low < SPACINGS * spacing:
        raise ValueError(
            f"{name} holds whole numbers from {low} to {high}, where float64 has one number in {spacing:g}: "
            "subtract an offset from it first, as whole numbers"
        )


def names_of(frame: Any) -> tuple[str, ...]:
    """The names of the columns of a data frame."""
    return tuple(str(column) for column in frame.columns)


def columns(frame: Any, name: str) -> Tensor:
    """The numbers of a data frame, [rows, columns], in float64; a column of anything else is refused by name."""
    if len(frame) == 0:
        raise ValueError(f"{name} has no rows")
    other = [pair for pair in zip(names_of(frame), frame.dtypes, strict=True) if pair[1].kind not in "biuf"]
    if other:
        listed = ", ".join(column for column, _ in other[:5])
        remedy = "drop or encode them"
        if all(dtype.kind in "Mm" for _, dtype in other):
            remedy = "of dates pass seconds, (column - column.min()).dt.total_seconds()"
        raise ValueError(f"{name}: columns {listed} are not real numbers: {remedy}")
    for place, column in enumerate(names_of(frame)):
        kind = frame.dtypes.iloc[place].kind
        if kind in "iu":
            whole = frame.iloc[:, place].dropna().to_numpy(np.int64 if kind == "i" else np.uint64)
            _told_apart(whole, f"{name}: column {column!r}")
    values = frame.to_numpy(dtype=np.float64, na_value=np.nan)
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        row, column = bad[0]
        raise ValueError(
            f"{name}: column {str(frame.columns[column])!r} holds {values[row, column]} in data row {row + 1}: "
            "wanted finite numbers, drop or fill them"
        )
    return numbers(values, name)


RESIDENT = 2**31  # bytes up to which a Dataset is read into memory
PART = 10_000  # rows of a larger Dataset that are read where a part is enough, at most
PART_NUMBERS = 2**28  # numbers in these rows, at most: 1 GB in single precision


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
    shapes = {tuple(row.shape) for row in rows}
    if len(shapes) > 1:
        raise ValueError(f"items of the Dataset have shapes {' and '.join(map(str, map(list, sorted(shapes)[:2])))}")
    return torch.stack(rows)


def all_of(dataset: Any) -> Tensor:
    """Every item of a Dataset, [rows, *x_shape]."""
    return stack_of([dataset[row] for row in range(len(dataset))])


def part_of(dataset: Dataset[Any], count: int = PART, seed: int = 0) -> Tensor:
    """Rows of a Dataset drawn at random by ``seed``, [count, *x_shape]; fewer where they are too large to hold."""
    held = max(2, PART_NUMBERS // max(1, item_of(dataset[0]).numel()))
    rows = chosen(len(dataset), min(count, held), seed)  # type: ignore[arg-type]
    return stack_of([dataset[int(row)] for row in rows])


def tensor_from(source: Any, name: str) -> Tensor:
    """The numbers of an array, a tensor, a data frame or a list."""
    if hasattr(source, "columns") and hasattr(source, "iloc"):
        return columns(source, name)
    if isinstance(source, list | tuple) and source and all(isinstance(row, Tensor) for row in source):
        if len({row.shape for row in source}) > 1:
            raise ValueError(f"{name} is ragged: wanted rows of equal length")
        source = torch.stack(list(source))
    if not isinstance(source, Tensor):
        return numbers(source, name)
    kinds = {
        "is a nested tensor: wanted rows of equal length": source.is_nested,
        f"is a sparse tensor, {source.layout}: pass {name}.to_dense()": source.layout != torch.strided,
        f"is a quantized tensor: pass {name}.dequantize()": source.is_quantized,
        "is on the device 'meta', where tensors hold no numbers": source.is_meta,
        "holds complex numbers: wanted real ones": source.is_complex(),
    }
    for wrong, is_so in kinds.items():
        if is_so:
            raise ValueError(f"{name} {wrong}")
    x = source.detach()
    return x if x.is_floating_point() else numbers(x.cpu().numpy(), name).to(x.device)


def finite_numbers(x: Tensor, name: str) -> Tensor:
    """At least one row and one column, all of it finite."""
    if x.ndim < 2 or x.numel() == 0:
        raise ValueError(f"{name} has shape {list(x.shape)}: wanted [rows, ...], at least one row and one column")
    if not bool(x.isfinite().all()):
        row, *place = (~x.isfinite()).nonzero()[0].tolist()
        value = float(x[(row, *place)])
        raise ValueError(f"{name} holds {value} in row {row}, place {place}: wanted finite numbers, drop or fill them")
    return x


def check_length(dataset: Any, fewest: int = 1) -> None:
    """Refuse a Dataset without a length, or with fewer items than ``fewest``."""
    if not hasattr(dataset, "__len__"):
        raise ValueError(f"{type(dataset).__name__} has no length: wanted a map-style Dataset")
    if len(dataset) < fewest:
        raise ValueError(f"the Dataset has {len(dataset)} items: wanted at least {fewest}")


def is_streamed(dataset: Any) -> bool:
    """Whether a Dataset, which has to have a length and an item, is too large to be read into memory."""
    check_length(dataset)
    return len(dataset) * item_of(dataset[0]).numel() * 4 > RESIDENT
