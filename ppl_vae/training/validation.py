"""Which rows are trained on and which are held out to validate, checked against the likelihood."""

from typing import Any

import torch
from torch import Tensor

from ..contracts import check_density, check_support
from ..data.data_set import Data, tensor_of
from ..data.items import SCORED, part_of, rows_of
from ..data.splits import held_back
from ..data.units import check_spacing
from ..variant import Variant

__all__ = ["hold_out"]


def hold_out(variant: Variant, data: Data, validation: Any) -> tuple[Any, Tensor | None]:
    """Split the training rows, and check both parts against the likelihood.

    Args:
        variant: The pair to be trained.
        data: The data, of which ``data.train`` is split.
        validation: The share of the rows to hold out, or data to hold out, or None for neither.

    Returns:
        The rows to train on, in the data's units, and the rows held out, in the model's units, or None.
    """
    train = data.train
    if isinstance(train, Tensor):
        train = tensor_of(train, data.name)
        _in_model_units(variant, data, train)  # for the checks alone: the batches convert the rows themselves
    if validation is None:
        return train, None
    if isinstance(validation, float | int):
        train, validation = _split(train, validation, data.split)
    return train, _in_model_units(variant, data, tensor_of(validation, "validation"))


def _split(train: Any, share: float, split: str) -> tuple[Any, Tensor]:
    """Take a share of the training rows from them.

    Returns:
        The rows that are left, and the share. The share of a streamed Dataset is cut to the rows that are scored.
    """
    rows = len(train)
    if not 0.0 < share < 1.0:
        raise ValueError(f"validation is a share of the rows in (0, 1), got {share!r}")
    if rows < 2:
        raise ValueError(f"{rows} row cannot be split: pass validation=None")
    count = min(max(1, round(share * rows)), rows - 1)
    held_out, kept = held_back(rows, count, split)
    validation = rows_of(train, held_out)
    if not isinstance(validation, Tensor):
        validation = part_of(validation, SCORED)
    return rows_of(train, kept), validation


def _in_model_units(variant: Variant, data: Data, x: Tensor) -> Tensor:
    """Convert data to the model's units, and check that they keep their digits and have a density there.

    Probabilities become a Bernoulli draw first, since the likelihood is that of the draw.
    """
    dtypes = {x.dtype}
    if data.scale.is_identity:
        dtypes.add(next(variant.model.parameters()).dtype)  # x is cast to it as it stands
    for dtype in dtypes:
        check_spacing(x, dtype, data.columns, data.name)
    y = variant.in_model_units(x)
    if data.binarize is not None:
        y = torch.bernoulli(y)
    check_support(variant, y, x)
    check_density(variant, y)
    return y
