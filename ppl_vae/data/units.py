"""The units of data: the scale to those of a model, and whether floats hold the digits."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..blocks import rows_at_once
from ..models import Scale
from .arrays import SPACINGS
from .sources import Raw

__all__ = ["check_spacing", "fit_scale"]


def fit_scale(how: str, x: Tensor, raw: Raw) -> Scale:
    """The scale that ``prepare`` names, fitted on the training data x [rows, *x_shape]."""
    x_shape = tuple(x.shape[1:])
    if how == "none":
        return Scale(x_shape)
    if how == "unit" and raw.span is not None:
        return Scale(x_shape, raw.span[0], raw.span[1] - raw.span[0])
    if not isinstance(raw.x, Tensor):
        raise ValueError(f"scale={how!r} needs all data at once, and this Dataset is streamed: scale its items")
    by_column = x if how == "standardize" or len(x_shape) == 1 else x.flatten(1).unsqueeze(1)  # of images: all at once
    found = _Columns.of(by_column)
    constant = (found.low == found.high).nonzero().flatten().tolist()
    if constant:
        listed = [raw.columns[place] if raw.columns else place for place in constant[:10]]
        raise ValueError(f"columns {listed} are constant, so scale={how!r} would divide by 0: drop them")
    shift, width = (found.low, found.high - found.low) if how == "unit" else (found.mean, found.spread)
    axes = [-1, *[1] * (len(x_shape) - 1)]
    return Scale(x_shape, shift.reshape(axes), width.reshape(axes))


class _Columns(NamedTuple):
    """What is known of each column of a table, or of each channel of images, in float64: [columns]."""

    mean: Tensor
    spread: Tensor
    low: Tensor
    high: Tensor
    nearest: Tensor

    @classmethod
    def of(cls, x: Tensor) -> "_Columns":
        """Mean, standard deviation, range, and smallest distance from 0 of x [rows, columns, ...]."""
        parts = [part.flatten(2).movedim(1, 0).flatten(1) for part in x.unsqueeze(-1).split(rows_at_once(x.shape[1:]))]
        count = x.numel() // x.shape[1]
        low = torch.stack([part.amin(1) for part in parts]).amin(0).double()
        high = torch.stack([part.amax(1) for part in parts]).amax(0).double()
        nearest = torch.stack([part.abs().amin(1) for part in parts]).amin(0).double()
        mean = torch.stack([part.double().sum(1) for part in parts]).sum(0) / count
        width = torch.where(high > low, high - low, 1.0)  # as a unit, for the square of 1e-200 is 0
        square = torch.stack([((part.double() - mean[:, None]) / width[:, None]).square().sum(1) for part in parts])
        return cls(mean, width * (square.sum(0) / count).sqrt(), low, high, nearest)


def check_spacing(x: Tensor, dtype: torch.dtype, names: tuple[str, ...] | None = None, name: str = "x") -> None:
    """Refuse a column whose numbers a dtype cannot tell apart: a small spread beside a large offset.

    Args:
        x: [rows, columns] or, of images, [rows, channels, height, width].
        dtype: That x is held in, or is about to be cast to.
        names: Of the columns; they are counted unless given.
        name: What to call the data.

    Raises:
        ValueError: If floats at the smallest number of a column are further apart than a hundredth of its standard
            deviation. A constant column passes: it loses nothing.
    """
    found = _Columns.of(x)
    spacing = torch.finfo(dtype).eps * found.nearest.log2().floor().exp2()
    lost = (found.low < found.high) & (found.spread < SPACINGS * spacing)
    for place in lost.nonzero().flatten().tolist()[:1]:
        kind = str(dtype).removeprefix("torch.")
        raise ValueError(
            f"column {names[place] if names else place!r} of {name} lies near {float(found.mean[place]):.6g} with a "
            f"standard deviation of {float(found.spread[place]):.3g}, and {kind} has one number in "
            f"{float(spacing[place]):.3g} there: subtract an offset first, pass float64 with scale='standardize', or "
            "drop the column"
        )
