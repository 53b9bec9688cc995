"""The rows to train on and the rows that are held out for validation, checked against the likelihood."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..contracts import check_density, check_support
from ..data.data_set import Data, tensor_of
from ..data.items import SCORED, part_of, rows_of
from ..data.splits import held_back
from ..data.units import check_spacing
from ..variant import Variant

__all__ = ["hold_out"]


def hold_out(variant: Variant, data: Data, validation: Any) -> tuple[Tensor | Dataset[Any], Tensor | None]:
    """Split the training rows, and check both parts against the likelihood.

    Args:
        variant: The pair to be trained.
        data: The data. Their training rows, ``data.train``, are split.
        validation: The share of the rows to hold out, or data to hold out, or None to hold out nothing.

    Returns:
        The rows to train on, and the rows that are held out or None, [rows, *x_shape] each, in the model's units. A
        Dataset to train on stays in the data's units. If the data are probabilities, the rows to train on stay as they
        are, and the rows that are held out are Bernoulli draws of them.

    Raises:
        ValueError: If the share is not in (0, 1), there are fewer than 2 rows to split, or the data do not suit the
            likelihood.
    """
    train: Any = data.train
    if isinstance(train, Tensor):
        train, _ = _admitted(variant, data, tensor_of(train, data.name), data.name)
    if validation is None:
        return train, None
    if not isinstance(validation, float | int):
        _, held_out = _admitted(variant, data, tensor_of(validation, "validation"), "validation")
        return train, held_out
    train, held_out = _split(train, validation, data.split)
    if isinstance(train, Tensor):
        return train, _drawn(data, held_out)
    _, held_out = _admitted(variant, data, held_out, data.name)
    return train, held_out


def _split(train: Any, share: float, split: str) -> tuple[Any, Tensor]:
    """Take a share of the training rows from them.

    Returns:
        The rows that are left, and the share. The share of a streamed Dataset is cut to the rows that are scored.
    """
    rows = len(train)
    if not 0.0 < share < 1.0:
        raise ValueError(f"validation must be a share of the rows in (0, 1), got {share!r}")
    if rows < 2:
        raise ValueError(f"{rows} row cannot be split: pass validation=None")
    count = min(max(1, round(share * rows)), rows - 1)
    held_out, kept = held_back(rows, count, split)
    validation = rows_of(train, held_out)
    if not isinstance(validation, Tensor):
        validation = part_of(validation, SCORED)
    return rows_of(train, kept), validation


def _admitted(variant: Variant, data: Data, x: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Convert data to the model's units, and check that they keep their digits and have a density there.

    Returns:
        The data, and the data with probabilities replaced by Bernoulli draws. The density of the latter is checked.
    """
    dtypes = {x.dtype}
    if data.scale.is_identity:
        dtypes.add(next(variant.model.parameters()).dtype)  # an identity scale casts x to this type, without a shift
    for dtype in dtypes:
        check_spacing(x, dtype, data.columns, data.name)
    y = variant.in_model_units(x, name)
    drawn = _drawn(data, y)
    check_support(variant, drawn, x)
    check_density(variant, drawn)
    return y, drawn


def _drawn(data: Data, y: Tensor) -> Tensor:
    """A Bernoulli draw of data that are probabilities, and any other data as they are."""
    return y if data.binarize is None else torch.bernoulli(y)
