"""Data at the door: checked, split, and with the scale that takes them to the model's units."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from ..models import Scale
from ..streams import chosen
from .arrays import check_length, is_streamed, names_of, part_of, stack_of
from .data_set import Data, tensor_of
from .sources import SETS, Raw, read
from .units import check_spacing, fit_scale

if TYPE_CHECKING:
    pass
__all__ = ["held_back", "prepare", "whole"]

SCALES = ("none", "unit", "standardize", "auto")
SPLITS = ("random", "tail")
HELD_OUT = 0.2  # share of the rows held out where a source has no test set of its own


def prepare(
    source: Any,
    *,
    scale: str = "none",
    binarize: str | None = None,
    limit: int | None = None,
    split: str = "random",
    seed: int = 0,
    root: str | Path | None = None,
) -> Data:
    """Read, check, split and scale.

    Args:
        source: A named set, a path (``.npy``, ``.npz``, ``.csv``, ``.parquet``), an array, a tensor, a data frame or a
            map-style ``Dataset``.
        scale: ``"none"``; ``"unit"``, to [0, 1] by the known span of grey values, else by column (tables) or over all
            (images); ``"standardize"``, to mean 0 and standard deviation 1 by column (tables) or channel (images);
            ``"auto"``, unit for images and for what is to be binarized, standardize for tables. Shift and division are
            in float64, before x is cast to the dtype of a model.
        binarize: Then to {0, 1}: ``"dynamic"``, ``"static"`` or ``"threshold"``; see ``Data.binarized``.
        limit: Train on so many rows at most; the test set is cut in proportion. Both are drawn at random by ``seed``.
        split: How a fifth of the rows is held out where the source has no test set of its own: ``"random"``, or
            ``"tail"``, the last rows, for data in the order of time. ``fit`` then validates on the last training rows.
        seed: Of the split, of ``limit`` and of draws.
        root: Where torchvision keeps its sets.

    Raises:
        ValueError: If the data cannot be used as they are; the message says what came, what was wanted, what to do.
    """
    if scale not in SCALES:
        raise ValueError(f"scale must be one of {', '.join(SCALES)}, got {scale!r}")
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if limit is not None and limit < 2:
        raise ValueError(f"limit must be at least 2 rows, got {limit!r}")
    named = isinstance(source, str | Path)
    path = "" if not named else str(source) if str(source) in SETS else str(Path(source).resolve())
    origin = {"source": path, "scale": scale, "binarize": None, "limit": limit, "split": split, "seed": seed}
    raw = read(source, root) if named else _raw(source)
    name = Path(source).stem if named else type(source).__name__
    raw = _cut(_split(_checked(raw, name), split, seed), limit, split, seed)
    x = raw.x if isinstance(raw.x, Tensor) else stack_of([raw.x[0], raw.x[1]])
    test = tensor_of(raw.test, name)
    data = Data(
        name,
        raw.x,
        test,
        raw.labels,
        raw.test_labels,
        fit_scale(("unit" if binarize or x.ndim > 2 else "standardize") if scale == "auto" else scale, x, raw),
        origin=origin if named else None,
        split=split,
        columns=raw.columns,
    )
    return data if binarize is None else data.binarized(binarize, seed)


def whole(source: Any) -> Data:
    """Data to train on as they are, unscaled, with nothing held out."""
    raw = _raw(source)
    first = raw.x[:1] if isinstance(raw.x, Tensor) else stack_of([raw.x[0]])
    scale = Scale(tuple(first.shape[1:]))
    return Data(type(source).__name__, raw.x, first[:0], None, None, scale, columns=raw.columns)


def _checked(raw: Raw, name: str) -> Raw:
    """Every part is usable, and parts agree in shape and length."""
    x = tensor_of(raw.x, name) if isinstance(raw.x, Tensor) else raw.x
    test = None if raw.test is None else tensor_of(raw.test, f"the test part of {name}")
    if isinstance(x, Tensor) and test is not None and x.shape[1:] != test.shape[1:]:
        shapes = f"{list(x.shape[1:])} and {list(test.shape[1:])}"
        raise ValueError(f"training and test data of {name} have shapes {shapes} per datum: wanted the same")
    if isinstance(x, Tensor):
        check_spacing(x, x.dtype, raw.columns, name)
    for labels, part, which in ((raw.labels, x, "y_train"), (raw.test_labels, test, "y_test")):
        if labels is not None and part is not None and len(labels) != len(part):  # type: ignore[arg-type]
            raise ValueError(f"{name} has {len(labels)} labels {which} for {len(part)} data")  # type: ignore[arg-type]
    return raw._replace(x=x, test=test)


def _raw(source: Any) -> Raw:
    if not isinstance(source, Dataset):
        is_frame = hasattr(source, "columns") and hasattr(source, "iloc")
        return Raw(tensor_of(source), columns=names_of(source) if is_frame else None)
    check_length(source, 2)
    return Raw(source if is_streamed(source) else tensor_of(source))


def held_back(rows: int, count: int, split: str, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Indices of the rows that are held out, ``count`` of them, and of the rest: at random, or the last ones."""
    if split == "tail":
        kept, held_out = torch.arange(rows).split([rows - count, count])
    else:
        held_out, kept = torch.randperm(rows, generator=generator).split([count, rows - count])
    return held_out, kept


def _split(raw: Raw, split: str, seed: int) -> Raw:
    """Hold rows out, unless the source has a test set."""
    if raw.test is not None:
        return raw
    rows = len(raw.x)  # type: ignore[arg-type]
    if rows < 2:
        raise ValueError(f"the data have {rows} row: wanted at least 2, one to train on and one to hold out")
    count = max(1, round(HELD_OUT * rows))
    held_out, kept = held_back(rows, count, split, torch.Generator().manual_seed(seed))
    if not isinstance(raw.x, Tensor):
        test = part_of(Subset(raw.x, held_out.tolist()), 2000, seed)
        return raw._replace(x=Subset(raw.x, kept.tolist()), test=test)
    labels, test_labels = (None if raw.labels is None else raw.labels[rows] for rows in (kept, held_out))
    return raw._replace(x=raw.x[kept], labels=labels, test=raw.x[held_out], test_labels=test_labels)


def _cut(raw: Raw, limit: int | None, split: str, seed: int) -> Raw:
    """Draw ``limit`` training rows at random, and test rows in proportion; in the order of time where that is kept."""
    rows = len(raw.x)  # type: ignore[arg-type]
    if limit is None or limit >= rows or raw.test is None:
        return raw
    kept = chosen(rows, limit, seed)
    held_out = chosen(len(raw.test), max(1, round(len(raw.test) * limit / rows)), seed)
    if split == "tail":
        kept, held_out = kept.sort().values, held_out.sort().values
    return raw._replace(
        x=raw.x[kept] if isinstance(raw.x, Tensor) else Subset(raw.x, kept.tolist()),
        labels=None if raw.labels is None else raw.labels[kept],
        test=raw.test[held_out],
        test_labels=None if raw.test_labels is None else raw.test_labels[held_out],
    )
