"""Which rows are trained on and which are held out, in the model's units."""

from typing import Any

import torch
from torch import Tensor

from ..contracts.support import check_density, check_support
from ..data.arrays import part_of
from ..data.data_set import Data, tensor_of
from ..data.prepared import held_back
from ..data.units import check_spacing
from ..variant import Variant

__all__ = ["hold_out"]

SCORED = 2000  # held-out rows of a streamed Dataset that are scored after each epoch


def hold_out(variant: Variant, data: Data, validation: Any) -> tuple[Any, Tensor | None]:
    """Split the training rows, check them against the likelihood, and put the held-out ones in the model's units."""
    train = data.train
    if isinstance(train, Tensor):
        train = tensor_of(train, data.name)
        _checked(variant, data, train)
    if validation is None:
        return train, None
    if isinstance(validation, float | int):
        train, validation = _shared_out(train, validation, data.split)
    return train, _checked(variant, data, tensor_of(validation, "validation"))


def _shared_out(train: Any, share: float, split: str) -> tuple[Any, Tensor]:
    """The training rows less a share of them, and that share; of a streamed Dataset, as many of it as are scored."""
    rows = len(train)
    if not 0.0 < share < 1.0:
        raise ValueError(f"validation is a share of the rows in (0, 1), got {share!r}")
    if rows < 2:
        raise ValueError(f"{rows} row cannot be split: pass validation=None")
    held_out, kept = held_back(rows, min(max(1, round(share * rows)), rows - 1), split)
    if isinstance(train, Tensor):
        return train[kept], train[held_out]
    return torch.utils.data.Subset(train, kept.tolist()), part_of(
        torch.utils.data.Subset(train, held_out.tolist()), SCORED
    )


def _checked(variant: Variant, data: Data, x: Tensor) -> Tensor:
    """Data in the model's units, in which they keep their digits and have a density; drawn where they are to be."""
    dtype = next(variant.model.parameters()).dtype
    for kind in {x.dtype, dtype} if data.scale.is_identity else {x.dtype}:
        check_spacing(x, kind, data.columns, data.name)
    y = variant.in_model_units(x)
    y = y if data.binarize is None else torch.bernoulli(y)
    check_support(variant, y, x)
    check_density(variant, y)
    return y
