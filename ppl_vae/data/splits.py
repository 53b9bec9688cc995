"""The choice of the rows that are held out, and of the rows of a large set that are used."""

from typing import Literal, get_args

import torch
from torch import Tensor

from ..streams import chosen
from .items import SCORED, part_of, rows_of
from .sources import Raw

__all__ = ["SPLITS", "cut", "held_back", "split_off"]

Split = Literal["random", "tail"]
SPLITS: tuple[str, ...] = get_args(Split)


def held_back(rows: int, count: int, split: str, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Choose ``count`` rows to hold out, at random or the last ones.

    Returns:
        The indices of the rows that are held out, and the indices of the other rows.
    """
    if split == "tail":
        kept, held_out = torch.arange(rows).split([rows - count, count])
    else:
        held_out, kept = torch.randperm(rows, generator=generator).split([count, rows - count])
    return held_out, kept


HELD_OUT = 0.2  # share of the rows that is held out where a source has no test set of its own


def split_off(raw: Raw, split: str, seed: int) -> Raw:
    """Hold out a fifth of the rows, unless the source has a test set of its own.

    Raises:
        ValueError: If there are fewer than 2 rows.
    """
    if raw.test is not None:
        return raw
    rows = len(raw.x)  # type: ignore[arg-type]
    if rows < 2:
        raise ValueError(f"the data have {rows} row: wanted at least 2, one to train on and one to hold out")
    count = max(1, round(HELD_OUT * rows))
    held_out, kept = held_back(rows, count, split, torch.Generator().manual_seed(seed))
    test = rows_of(raw.x, held_out)
    if not isinstance(test, Tensor):
        test = part_of(test, SCORED, seed)
    return raw._replace(
        x=rows_of(raw.x, kept),
        labels=_labels_of(raw.labels, kept),
        test=test,
        test_labels=_labels_of(raw.labels, held_out),
    )


def cut(raw: Raw, limit: int | None, split: str, seed: int) -> Raw:
    """Draw ``limit`` training rows at random, and test rows in proportion. A split by ``"tail"`` keeps their order."""
    rows = len(raw.x)  # type: ignore[arg-type]
    if limit is None or limit >= rows or raw.test is None:
        return raw
    test_rows = max(1, round(len(raw.test) * limit / rows))
    kept = chosen(rows, limit, seed)
    held_out = chosen(len(raw.test), test_rows, seed)
    if split == "tail":
        kept, held_out = kept.sort().values, held_out.sort().values
    return raw._replace(
        x=rows_of(raw.x, kept),
        labels=_labels_of(raw.labels, kept),
        test=raw.test[held_out],
        test_labels=_labels_of(raw.test_labels, held_out),
    )


def _labels_of(labels: Tensor | None, rows: Tensor) -> Tensor | None:
    """The labels of some rows, where the source has labels."""
    return None if labels is None else labels[rows]
