"""A data set in its own units, and the one door through which data come in."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..blocks import rows_at_once
from ..models import Scale
from ..streams import seeded
from .arrays import all_of, finite_numbers, is_streamed, item_of, part_of, stack_of, tensor_from

__all__ = ["Data", "chunks_of", "tensor_of"]

BINARIZE = ("dynamic", "static", "threshold")


@dataclass(frozen=True)
class Data:
    """A data set in its own units, with a held-out part and a scale.

    Attributes:
        name: What to call it in a report.
        train: [rows, *x_shape], or a Dataset of such items that is too large to hold.
        test: [rows, *x_shape], never trained on.
        labels: [rows] of ``train``, or None.
        test_labels: [rows] of ``test``, or None.
        scale: From the data's units to the model's; fitted on ``train``.
        binarize: ``"dynamic"`` if each batch is a fresh Bernoulli draw of ``train``, a probability; else None.
        pictures: The grey values of ``test`` in [0, 1], where ``test`` is a draw of them.
        note: How the values were changed, for the report.
        origin: The arguments of ``prepare`` that read it again, where it was read from a named set or a file.
        split: How rows are held out, ``"random"`` or ``"tail"``; ``fit`` takes its validation rows in the same way.
        columns: Names of the columns, where the source is a table that has them.

    Where a function wants data to judge, ``Data`` stands for its ``test``; where it wants data to fit, for ``train``.
    """

    name: str
    train: Tensor | Dataset[Any]
    test: Tensor
    labels: Tensor | None
    test_labels: Tensor | None
    scale: Scale
    binarize: str | None = None
    pictures: Tensor | None = None
    note: str = ""
    origin: dict[str, Any] | None = None
    split: str = "random"
    columns: tuple[str, ...] | None = None

    @property
    def x_shape(self) -> tuple[int, ...]:
        """Shape of one datum."""
        return tuple(self.test.shape[1:])

    @property
    def resident(self) -> Tensor:
        """``train`` as a tensor; of a streamed Dataset 10,000 rows drawn at random, or fewer where they are large."""
        return self.train if isinstance(self.train, Tensor) else part_of(self.train)

    def binarized(self, how: str, seed: int = 0) -> "Data":
        """The same data in {0, 1}: values on the unit scale are thresholded at 1/2, or taken as probabilities.

        Args:
            how: ``"threshold"``, ``"static"`` (one draw for good) or ``"dynamic"`` (a fresh draw for each batch).
            seed: Of the draws.
        """
        if how not in BINARIZE:
            raise ValueError(f"binarize must be one of {', '.join(BINARIZE)}, got {how!r}")
        if not isinstance(self.train, Tensor):
            raise ValueError("a streamed Dataset cannot be binarized here: binarize its items")
        train, test = self.scale(self.train), self.scale(self.test)
        if not self.scale.is_identity:
            test = test.clamp(0.0, 1.0)  # beyond what was seen in training
        low, high = float(min(train.min(), test.min())), float(max(train.max(), test.max()))
        if low < 0.0 or high > 1.0:
            raise ValueError(f"binarize wants values in [0, 1], got {low:.4g} to {high:.4g}: use scale='unit'")
        with seeded(seed):
            draws = (test > 0.5).to(test) if how == "threshold" else torch.bernoulli(test)
            if how != "dynamic":
                train = (train > 0.5).to(train) if how == "threshold" else torch.bernoulli(train)
        note = {"dynamic": "a fresh Bernoulli draw per batch", "static": "one Bernoulli draw", "threshold": "x > 1/2"}
        return replace(
            self,
            train=train,
            test=draws,
            scale=Scale(self.x_shape),
            binarize="dynamic" if how == "dynamic" else None,
            pictures=test,
            note=f"binarized: {note[how]}",
            origin=None if self.origin is None else {**self.origin, "binarize": how},
        )


def tensor_of(source: Any, name: str = "x", *, part: bool = False) -> Tensor:
    """The one door for data: whatever holds rows of numbers, as a checked tensor [rows, *x_shape].

    Args:
        source: An array, a tensor, a data frame, a list of rows, a map-style Dataset, or ``Data``, which stands for its
            test part (with ``part``, for its training part).
        name: What to call it in a message.
        part: Take rows at random of a Dataset that is too large to hold; without it, such a Dataset is refused.

    Raises:
        ValueError: If it is empty, not numeric, without a row axis, or holds NaN or infinities.
    """
    if isinstance(source, Data):
        source = source.train if part else source.test
    if isinstance(source, DataLoader):
        raise ValueError(f"{name} is a DataLoader: pass loader.dataset, and its batch_size to fit")
    if isinstance(source, Dataset):
        if is_streamed(source) and not part:
            raise ValueError(
                f"{name} is a Dataset of {len(source)} items, too large to hold: "  # type: ignore[arg-type]
                "pass a part of it, data.resident or a tensor of some rows"
            )
        rows = part_of(source) if is_streamed(source) else all_of(source)
        source, name = rows, type(source).__name__
    return finite_numbers(tensor_from(source, name), name)


def chunks_of(source: Any, name: str = "x") -> Iterator[Tensor]:
    """Checked rows, some at a time, for what needs no more than a pass over all of them: a streamed Dataset too."""
    if isinstance(source, Dataset) and is_streamed(source):
        for rows in torch.arange(len(source)).split(rows_at_once(item_of(source[0]).shape)):  # type: ignore[arg-type]
            yield tensor_of(stack_of([source[int(row)] for row in rows]), name)
    else:
        x = tensor_of(source, name)
        yield from x.split(rows_at_once(x.shape[1:]))
