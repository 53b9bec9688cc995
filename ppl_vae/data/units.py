"""The scale from the units of data to those of a model, and a check that floats hold the digits of data."""

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from ..blocks import rows_at_once
from ..models import Scale
from .arrays import SPACINGS
from .sources import Raw

__all__ = ["SCALES", "check_spacing", "fit_scale"]

ScaleName = Literal["none", "unit", "standardize", "auto"]
SCALES: tuple[str, ...] = get_args(ScaleName)


def fit_scale(how: str, raw: Raw, x_shape: tuple[int, ...], *, is_binary: bool) -> Scale:
    """Fit a scale, named as in ``prepare``, to the training data.

    Args:
        how: One of ``SCALES``.
        raw: The source, after rows were held out. The scale is fitted to ``raw.x``.
        x_shape: The shape of one datum.
        is_binary: Whether the data are to be binarized, for which ``"auto"`` takes the unit scale.

    Raises:
        ValueError: If a column is constant, or the data are streamed and their range is not known.
    """
    is_table = len(x_shape) == 1
    if how == "auto":
        how = "standardize" if is_table and not is_binary else "unit"
    if how == "none":
        return Scale(x_shape)
    if how == "unit" and raw.span is not None:
        low, high = raw.span
        return Scale(x_shape, low, high - low)
    x = raw.x
    if not isinstance(x, Tensor):
        raise ValueError(f"scale={how!r} needs all data at once, and this Dataset is streamed: scale its items")
    if how == "unit" and not is_table:
        x = x.flatten(1).unsqueeze(1)  # all numbers of all images share one range
    found = _Columns.of(x)
    _check_constant(found, how, raw.columns)
    shift, width = (found.low, found.high - found.low) if how == "unit" else (found.mean, found.spread)
    per_column = [-1, *[1] * (len(x_shape) - 1)]
    return Scale(x_shape, shift.reshape(per_column), width.reshape(per_column))


class _Columns(NamedTuple):
    """Figures of each column of a table, or of each channel of images, [columns] each, in float64.

    Attributes:
        mean: The mean.
        spread: The standard deviation, divided by n.
        low, high: The smallest and the largest number.
        nearest: The smallest distance of a number from 0.
    """

    mean: Tensor
    spread: Tensor
    low: Tensor
    high: Tensor
    nearest: Tensor

    @classmethod
    def of(cls, x: Tensor) -> "_Columns":
        """Compute the figures of x [rows, columns, ...], some rows at a time."""
        blocks = x.unsqueeze(-1).split(rows_at_once(x.shape[1:]))
        parts = [block.flatten(2).movedim(1, 0).flatten(1) for block in blocks]  # each of them [columns, numbers]
        count = x.numel() // x.shape[1]
        low = torch.stack([part.amin(1) for part in parts]).amin(0).double()
        high = torch.stack([part.amax(1) for part in parts]).amax(0).double()
        nearest = torch.stack([part.abs().amin(1) for part in parts]).amin(0).double()
        mean = torch.stack([part.double().sum(1) for part in parts]).sum(0) / count
        width = torch.where(high > low, high - low, 1.0)  # the unit of the squares, because 1e-200 squared is 0
        residuals = ((part.double() - mean[:, None]) / width[:, None] for part in parts)
        squares = torch.stack([residual.square().sum(1) for residual in residuals]).sum(0)
        return cls(mean, width * (squares / count).sqrt(), low, high, nearest)


def _check_constant(found: _Columns, how: str, names: tuple[str, ...] | None) -> None:
    """Refuse columns whose numbers are all equal, because a scale would divide them by 0."""
    constant = (found.low == found.high).nonzero().flatten().tolist()
    if constant:
        listed = [names[place] if names else place for place in constant[:10]]
        raise ValueError(f"columns {listed} are constant, so scale={how!r} would divide by 0: drop them")


def check_spacing(x: Tensor, dtype: torch.dtype, names: tuple[str, ...] | None = None, name: str = "x") -> None:
    """Refuse a column whose spread is so small beside its offset that a dtype loses the digits of the numbers.

    Args:
        x: A table [rows, columns], or images [rows, channels, height, width].
        dtype: The dtype that holds x, or that x is about to be cast to.
        names: The names of the columns. By default columns are counted from 0.
        name: The name of the data in a message.

    Raises:
        ValueError: If floats near the number of a column that is closest to 0 are further apart than a hundredth of the
            column's standard deviation. A constant column passes, because it loses nothing.
    """
    found = _Columns.of(x)
    spacing = torch.finfo(dtype).eps * found.nearest.log2().floor().exp2()
    is_lost = (found.low < found.high) & (found.spread < SPACINGS * spacing)
    if not bool(is_lost.any()):
        return
    place = int(is_lost.nonzero()[0])
    mean, spread, step = (float(figure[place]) for figure in (found.mean, found.spread, spacing))
    column = names[place] if names else place
    kind = str(dtype).removeprefix("torch.")
    raise ValueError(
        f"column {column!r} of {name} lies near {mean:.6g} with a standard deviation of {spread:.3g}, and {kind} has "
        f"one number in {step:.3g} there: subtract an offset first, pass float64 with scale='standardize', or drop the "
        "column"
    )
