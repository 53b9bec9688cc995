"""Arrays, tensors and data frames as tensors of finite real numbers."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "REAL",
    "SPACINGS",
    "column_names",
    "finite_numbers",
    "is_frame",
    "numbers",
    "numbers_of_frame",
    "reason_of",
    "tensor_from",
]

REAL = "biuf"  # NumPy's letters for the types of real numbers: booleans, whole numbers with and without sign, floats
DATES = "Mm"  # NumPy's letters for the types of dates and of time differences

SPACINGS = 100  # a column loses its digits if its spread is below this many spacings of floats


def reason_of(error: BaseException) -> str:
    """The first line of an error's message, or the type of the error where it has no message."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def tensor_from(source: Any, name: str) -> Tensor:
    """Convert an array, a tensor, a data frame or a list to a tensor of real numbers.

    Raises:
        ValueError: If the source does not hold real numbers in rows of equal length.
    """
    if is_frame(source):
        return numbers_of_frame(source, name)
    if isinstance(source, list | tuple) and source and all(isinstance(row, Tensor) for row in source):
        source = _stacked(source, name)
    if not isinstance(source, Tensor):
        return numbers(source, name)
    _check_layout(source, name)
    x = source.detach()
    return x if x.is_floating_point() else numbers(x.cpu().numpy(), name).to(x.device)


def finite_numbers(x: Tensor, name: str) -> Tensor:
    """Check that x has at least one row and one column, and that every number is finite, and return it.

    Raises:
        ValueError: If this is not so. The message names the first number that is not finite.
    """
    if x.ndim < 2 or x.numel() == 0:
        raise ValueError(f"{name} has shape {list(x.shape)}: wanted [rows, ...], at least one row and one column")
    if not bool(x.isfinite().all()):
        row, *place = (~x.isfinite()).nonzero()[0].tolist()
        value = float(x[(row, *place)])
        raise ValueError(f"{name} holds {value} in row {row}, place {place}: wanted finite numbers; drop or fill them")
    return x


def _stacked(rows: Any, name: str) -> Tensor:
    """A list of tensors as one tensor, [rows, ...]."""
    if len({row.shape for row in rows}) > 1:
        raise ValueError(f"{name} is ragged: wanted rows of equal length")
    return torch.stack(list(rows))


def _check_layout(x: Tensor, name: str) -> None:
    """Refuse a tensor that does not hold one real number per place."""
    wrong = {
        "is a nested tensor: wanted rows of equal length": x.is_nested,
        f"is a sparse tensor, {x.layout}: pass {name}.to_dense()": x.layout != torch.strided,
        f"is a quantized tensor: pass {name}.dequantize()": x.is_quantized,
        "is on the device 'meta', where tensors hold no numbers": x.is_meta,
        "holds complex numbers: wanted real ones": x.is_complex(),
    }
    for message, is_so in wrong.items():
        if is_so:
            raise ValueError(f"{name} {message}")


# Arrays.


def numbers(source: Any, name: str) -> Tensor:
    """Convert an array, or anything that NumPy converts to one, to a tensor of float32 or float64.

    Whole numbers are converted to the default dtype if it holds each of them exactly, and to float64 otherwise.

    Raises:
        ValueError: If the source is masked, sparse or ragged, or does not hold real numbers.
    """
    array = _array(source, name)
    kind = array.dtype.kind
    if kind in DATES:
        seconds = f"({name} - {name}.min()) / np.timedelta64(1, 's')"
        raise ValueError(f"{name} holds values of type {array.dtype}: wanted real numbers; pass seconds, {seconds}")
    if kind not in REAL:
        raise ValueError(f"{name} holds values of type {array.dtype}: wanted real numbers in rows of equal length")
    if kind != "f":
        return _whole_numbers(array, name)
    dtype = np.float32 if array.dtype.itemsize <= 4 else np.float64
    return torch.from_numpy(np.array(array, dtype=dtype, order="C"))  # always a copy, in native order


def _array(source: Any, name: str) -> Any:
    """Convert a source to a NumPy array."""
    if isinstance(source, np.ma.MaskedArray) and np.ma.is_masked(source):
        raise ValueError(f"{name} has masked values: wanted finite numbers; drop or fill them")
    if hasattr(source, "toarray"):
        raise ValueError(f"{name} is a sparse matrix, {type(source).__name__}: pass {name}.toarray()")
    try:
        return np.asarray(source)
    except ValueError:
        raise ValueError(f"{name} is ragged: wanted rows of equal length") from None
    except (TypeError, RuntimeError) as error:
        kind = type(source).__name__
        raise ValueError(f"{name}, of type {kind}, is not an array of numbers: {reason_of(error)}") from None


def _whole_numbers(array: Any, name: str) -> Tensor:
    """Convert whole numbers to the default dtype if it holds each of them exactly, and to float64 otherwise."""
    if array.ndim > 1:
        rows = array.reshape(len(array), math.prod(array.shape[1:]))
        for place, column in enumerate(rows.T):
            _check_differences(column, f"column {place} of {name}")
    default = torch.get_default_dtype()
    largest = 0 if array.size == 0 else max(int(array.max()), -int(array.min()))
    is_exact = largest <= 2 / torch.finfo(default).eps
    dtype = default if is_exact else torch.float64
    values = np.array(array, dtype=np.float32 if dtype == torch.float32 else np.float64, order="C")
    return torch.from_numpy(values).to(dtype)


def _check_differences(column: Any, name: str) -> None:
    """Refuse whole numbers beyond 2**53 that lie so close together that float64 loses their differences."""
    if len(column) == 0 or column.dtype.itemsize < 8:
        return
    low, high = int(column.min()), int(column.max())
    spacing = float(np.spacing(float(max(high, -low))))
    if spacing > 1 and 0 < high - low < SPACINGS * spacing:
        raise ValueError(
            f"{name} holds whole numbers from {low} to {high}, where float64 has one number in {spacing:g}: "
            "subtract an offset from it first, as whole numbers"
        )


# Data frames.


def is_frame(source: Any) -> bool:
    """Whether a source is a data frame. The answer does not need an import of pandas."""
    return hasattr(source, "columns") and hasattr(source, "iloc")


def column_names(frame: Any) -> tuple[str, ...]:
    """The names of the columns of a data frame."""
    return tuple(str(column) for column in frame.columns)


def numbers_of_frame(frame: Any, name: str) -> Tensor:
    """Convert a data frame to a tensor [rows, columns] of finite numbers, through float64.

    Raises:
        ValueError: If the frame has no rows, or a column holds anything other than finite real numbers. The message
            names the column.
    """
    if len(frame) == 0:
        raise ValueError(f"{name} has no rows: wanted at least one")
    _check_types(frame, name)
    for place, column in enumerate(column_names(frame)):
        kind = frame.dtypes.iloc[place].kind
        if kind in "iu":
            whole = frame.iloc[:, place].dropna().to_numpy(np.int64 if kind == "i" else np.uint64)
            _check_differences(whole, f"{name}: column {column!r}")
    values = frame.to_numpy(dtype=np.float64, na_value=np.nan)
    broken = np.argwhere(~np.isfinite(values))
    if len(broken):
        row, place = broken[0]
        found = f"column {column_names(frame)[place]!r} holds {values[row, place]} in data row {row + 1}"
        raise ValueError(f"{name}: {found}: wanted finite numbers; drop or fill them")
    return numbers(values, name)


def _check_types(frame: Any, name: str) -> None:
    """Refuse a data frame with columns that do not hold real numbers."""
    kinds = dict(enumerate(dtype.kind for dtype in frame.dtypes))
    wrong = [place for place, kind in kinds.items() if kind not in REAL]
    if not wrong:
        return
    listed = ", ".join(column_names(frame)[place] for place in wrong[:5])
    are_dates = all(kinds[place] in DATES for place in wrong)
    seconds = "for dates pass seconds, (column - column.min()).dt.total_seconds()"
    remedy = seconds if are_dates else "drop or encode them"
    raise ValueError(f"{name}: columns {listed} are not real numbers: {remedy}")
