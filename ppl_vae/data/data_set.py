"""A data set in its own units, and the function that converts every input to a checked tensor."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..blocks import rows_at_once
from ..digests import digest_of
from ..models import Scale
from ..streams import seeded
from .arrays import finite_numbers, tensor_from
from .items import all_of, is_streamed, item_of, part_of, stack_of

__all__ = ["BINARIZE", "Data", "chunks_of", "tensor_of"]

Binarization = Literal["dynamic", "static", "threshold"]
BINARIZE: dict[str, str] = {  # the ways to turn data into 0 and 1, with the text of each for the note of the data
    "dynamic": "a fresh Bernoulli draw per batch",
    "static": "one Bernoulli draw",
    "threshold": "x > 1/2",
}


@dataclass(frozen=True)
class Data:
    """A data set in its own units, with a held-out part and a scale.

    Where a function judges data, ``Data`` stands for its ``test``. Where a function fits something to data, it stands
    for its ``train``.

    Attributes:
        name: The name of the data in a report.
        train: The training data, [rows, *x_shape], or a Dataset of such items that is too large for memory.
        test: The held-out data, [rows, *x_shape], which are never trained on.
        labels: The labels of ``train``, [rows], or None.
        test_labels: The labels of ``test``, [rows], or None.
        scale: The scale from the data's units to the model's, fitted to ``train``.
        binarize: ``"dynamic"`` if ``train`` holds probabilities, of which each batch is a fresh Bernoulli draw, and
            None otherwise.
        pictures: The grey values of ``test`` in [0, 1], if ``test`` was made from them by ``binarized``.
        note: How the values were changed, for the report.
        origin: The arguments with which ``prepare`` reads the data again, if they are a named set or a file.
        split: How rows are held out, ``"random"`` or ``"tail"``. ``fit`` takes its validation rows in the same way.
        columns: The names of the columns, if the source is a table that has them.
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
        """``train`` as a tensor. Of a streamed Dataset it has 10,000 random rows, or fewer if a row is large."""
        return self.train if isinstance(self.train, Tensor) else part_of(self.train)

    @cached_property
    def digest(self) -> str:
        """A digest of the numbers, the split and the scale, 16 hexadecimal digits. Equal data have equal digests.

        Of a streamed Dataset it covers the number of items and 100 of them.
        """
        train = self.train if isinstance(self.train, Tensor) else part_of(self.train, 100)
        parts: dict[str, Any] = {"train": train, "test": self.test, "pictures": self.pictures, "labels": self.labels}
        parts |= {f"scale.{name}": tensor for name, tensor in self.scale.state_dict().items()}
        found = hashlib.sha256(f"{len(self.train)} {self.binarize} {self.split}".encode())  # type: ignore[arg-type]
        for name, tensor in parts.items():
            if tensor is not None:
                found.update(f"{name} {digest_of(tensor)}".encode())
        return found.hexdigest()[:16]

    def binarized(self, how: str, seed: int = 0) -> "Data":
        """The same data in {0, 1}. Values on the unit scale are cut at 1/2, or are probabilities of Bernoulli draws.

        Args:
            how: ``"threshold"`` cuts at 1/2, ``"static"`` draws once, and ``"dynamic"`` draws again for each batch.
            seed: Seed of the draws.

        Raises:
            ValueError: If ``how`` is unknown, the data are streamed, or a value lies outside [0, 1].
        """
        if how not in BINARIZE:
            raise ValueError(f"binarize must be one of {', '.join(BINARIZE)}, got {how!r}")
        if not isinstance(self.train, Tensor):
            raise ValueError("a streamed Dataset cannot be binarized here: binarize its items")
        train, pictures = self.scale(self.train), self.scale(self.test)
        if not self.scale.is_identity:
            pictures = pictures.clamp(0.0, 1.0)  # the scale was fitted to training rows, and test rows may lie beyond
        low, high = float(min(train.min(), pictures.min())), float(max(train.max(), pictures.max()))
        if low < 0.0 or high > 1.0:
            raise ValueError(f"binarize wants values in [0, 1], got {low:.4g} to {high:.4g}: use scale='unit'")
        in_two = _above_half if how == "threshold" else torch.bernoulli
        with seeded(seed):
            test = in_two(pictures)
            if how != "dynamic":
                train = in_two(train)
        return replace(
            self,
            train=train,
            test=test,
            scale=Scale(self.x_shape),
            binarize="dynamic" if how == "dynamic" else None,
            pictures=pictures,
            note=f"binarized: {BINARIZE[how]}",
            origin=None if self.origin is None else {**self.origin, "binarize": how},
        )


def _above_half(x: Tensor) -> Tensor:
    """1 where x is above 1/2 and 0 elsewhere, in the dtype of x."""
    return (x > 0.5).to(x)


def tensor_of(source: Any, name: str = "x", *, part: bool = False) -> Tensor:
    """Convert anything that holds rows of numbers to a checked tensor [rows, *x_shape].

    Args:
        source: An array, a tensor, a data frame, a list of rows, a map-style Dataset, or ``Data``, which stands for its
            test part, or for its training part if ``part`` is set.
        name: The name of the data in a message.
        part: Whether a Dataset that is too large for memory gives some of its rows, drawn at random. Otherwise such a
            Dataset is refused.

    Raises:
        ValueError: If the source is empty, not numeric, has no axis of rows, or holds NaN or infinities.
    """
    if isinstance(source, Data):
        source = source.train if part else source.test
    if isinstance(source, str | Path):
        raise ValueError(f"{name} is a path or a name, {str(source)!r}, wanted data: pass prepare({str(source)!r})")
    if isinstance(source, DataLoader):
        raise ValueError(f"{name} is a DataLoader: pass loader.dataset, and its batch_size to fit")
    if isinstance(source, Dataset):
        rows = _rows_of_dataset(source, name, part=part)
        source, name = rows, type(source).__name__
    return finite_numbers(tensor_from(source, name), name)


def _rows_of_dataset(dataset: Dataset[Any], name: str, *, part: bool) -> Tensor:
    """All rows of a Dataset, or random rows of it if it is too large for memory and ``part`` is set."""
    if not is_streamed(dataset):
        return all_of(dataset)
    if not part:
        raise ValueError(
            f"{name} is a Dataset of {len(dataset)} items, too large to hold: "  # type: ignore[arg-type]
            "pass a part of it, data.resident or a tensor of some rows"
        )
    return part_of(dataset)


def chunks_of(source: Any, name: str = "x") -> Iterator[Tensor]:
    """Yield checked rows, some at a time, for a function that passes over all rows once, even of a streamed Dataset."""
    if isinstance(source, Dataset) and is_streamed(source):
        for rows in torch.arange(len(source)).split(rows_at_once(item_of(source[0]).shape)):  # type: ignore[arg-type]
            yield tensor_of(stack_of([source[int(row)] for row in rows]), name)
    else:
        x = tensor_of(source, name)
        yield from x.split(rows_at_once(x.shape[1:]))
