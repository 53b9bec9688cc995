"""Data at the door: checked, split, and with the scale that takes them to the model's units."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from .models import Scale
from .seeding import seeded
from .sources import SETS, Raw, columns, numbers, read
from .variant import Variant

__all__ = ["Data", "check_support", "prepare", "stack_of", "tensor_of", "whole"]

BINARIZE = ("dynamic", "static", "threshold")
SCALES = ("none", "unit", "standardize", "auto")
HELD_OUT = 0.2  # share of the rows held out where a source has no test set of its own
RESIDENT = 2**31  # bytes up to which a Dataset is read into memory


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

    @property
    def x_shape(self) -> tuple[int, ...]:
        """Shape of one datum."""
        return tuple(self.test.shape[1:])

    @property
    def resident(self) -> Tensor:
        """``train`` as a tensor; of a streamed Dataset, its first rows."""
        if isinstance(self.train, Tensor):
            return self.train
        count = min(len(self.train), 10_000)  # type: ignore[arg-type]
        return stack_of([self.train[index] for index in range(count)])

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
        note = {"dynamic": "a fresh Bernoulli draw a batch", "static": "one Bernoulli draw", "threshold": "x > 1/2"}
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


def item_of(item: Any) -> Tensor:
    """The x of a Dataset's item: the item itself, the first of a pair, or the entry ``data`` or ``x``."""
    if isinstance(item, dict):
        if "data" not in item and "x" not in item:
            raise ValueError(f"an item of the Dataset has the keys {', '.join(map(str, item))}: wanted 'data' or 'x'")
        item = item.get("data", item.get("x"))
    elif isinstance(item, tuple | list):
        item = item[0]
    return item if isinstance(item, Tensor) else numbers(item, "an item of the Dataset")


def stack_of(items: list[Any]) -> Tensor:
    """Items of a Dataset as one tensor [rows, *x_shape]."""
    rows = [item_of(item) for item in items]
    shapes = {tuple(row.shape) for row in rows}
    if len(shapes) > 1:
        raise ValueError(f"items of the Dataset have shapes {' and '.join(map(str, map(list, sorted(shapes)[:2])))}")
    return torch.stack(rows)


def tensor_of(source: Any, name: str = "x") -> Tensor:
    """An array, tensor or data frame as a checked tensor [rows, *x_shape].

    Raises:
        ValueError: If it is empty, not numeric, without a row axis, or holds NaN or infinities.
    """
    if hasattr(source, "columns") and hasattr(source, "to_numpy"):
        x = columns(source, name)
    elif isinstance(source, Tensor):
        x = source.detach()
    else:
        x = numbers(source, name)
    if x.is_complex():
        raise ValueError(f"{name} holds complex numbers: wanted real ones")
    if x.ndim < 2 or x.numel() == 0:
        raise ValueError(f"{name} has shape {list(x.shape)}: wanted [rows, ...], at least one row and one column")
    x = x if x.is_floating_point() else x.to(torch.get_default_dtype())
    if not bool(x.isfinite().all()):
        row, *place = (~x.isfinite()).nonzero()[0].tolist()
        value = float(x[(row, *place)])
        raise ValueError(f"{name} holds {value} in row {row}, place {place}: wanted finite numbers, drop or fill them")
    return x


def prepare(
    source: Any,
    *,
    scale: str = "none",
    binarize: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    root: str | Path | None = None,
) -> Data:
    """Read, check, split and scale.

    Args:
        source: A named set, a path (``.npy``, ``.npz``, ``.csv``, ``.parquet``), an array, a tensor, a data frame or a
            map-style ``Dataset``.
        scale: ``"none"``; ``"unit"``, to [0, 1] by the known span of grey values, else by column (tables) or over all
            (images); ``"standardize"``, to mean 0 and standard deviation 1 by column (tables) or channel (images);
            ``"auto"``, unit for images and for what is to be binarized, standardize for tables.
        binarize: Then to {0, 1}: ``"dynamic"``, ``"static"`` or ``"threshold"``; see ``Data.binarized``.
        limit: Train on so many rows at most; the test set is cut in proportion.
        seed: Of the split, where the source has no test set of its own, and of draws.
        root: Where torchvision keeps its sets.

    Raises:
        ValueError: If the data cannot be used as they are; the message says what came, what was wanted, what to do.
    """
    if scale not in SCALES:
        raise ValueError(f"scale must be one of {', '.join(SCALES)}, got {scale!r}")
    if limit is not None and limit < 2:
        raise ValueError(f"limit must be at least 2 rows, got {limit!r}")
    named = isinstance(source, str | Path)
    path = "" if not named else str(source) if str(source) in SETS else str(Path(source).resolve())
    origin = {"source": path, "scale": scale, "binarize": None, "limit": limit, "seed": seed}
    raw = read(source, root) if named else _raw(source)
    name = Path(source).stem if named else type(source).__name__
    raw = _cut(_split(_checked(raw, name), seed), limit)
    x = raw.x if isinstance(raw.x, Tensor) else stack_of([raw.x[0], raw.x[1]])
    test = tensor_of(raw.test, name)
    data = Data(
        name,
        x if isinstance(raw.x, Tensor) else raw.x,
        test,
        raw.labels,
        raw.test_labels,
        _fit_scale(("unit" if binarize or x.ndim > 2 else "standardize") if scale == "auto" else scale, x, raw),
        origin=origin if named else None,
    )
    return data if binarize is None else data.binarized(binarize, seed)


def whole(source: Any) -> Data:
    """Data to train on as they are, unscaled, with nothing held out."""
    raw = _raw(source)
    first = raw.x[:1] if isinstance(raw.x, Tensor) else stack_of([raw.x[0]])
    return Data(type(source).__name__, raw.x, first[:0], None, None, Scale(tuple(first.shape[1:])))


def _checked(raw: Raw, name: str) -> Raw:
    """Every part is usable, and parts agree in shape and length."""
    x = tensor_of(raw.x, name) if isinstance(raw.x, Tensor) else raw.x
    test = None if raw.test is None else tensor_of(raw.test, f"the test part of {name}")
    if isinstance(x, Tensor) and test is not None and x.shape[1:] != test.shape[1:]:
        shapes = f"{list(x.shape[1:])} and {list(test.shape[1:])}"
        raise ValueError(f"training and test data of {name} have shapes {shapes} a datum: wanted the same")
    for labels, part, which in ((raw.labels, x, "y_train"), (raw.test_labels, test, "y_test")):
        if labels is not None and part is not None and len(labels) != len(part):  # type: ignore[arg-type]
            raise ValueError(f"{name} has {len(labels)} labels {which} for {len(part)} data")  # type: ignore[arg-type]
    return raw._replace(x=x, test=test)


def _raw(source: Any) -> Raw:
    if not isinstance(source, Dataset):
        return Raw(tensor_of(source))
    if not hasattr(source, "__len__"):
        raise ValueError(f"{type(source).__name__} has no length: wanted a map-style Dataset")
    rows = len(source)
    if rows < 2:
        raise ValueError(f"the Dataset has {rows} items: wanted at least 2")
    if rows * item_of(source[0]).numel() * 4 > RESIDENT:
        return Raw(source)
    return Raw(tensor_of(stack_of([source[index] for index in range(rows)]), type(source).__name__))


def _split(raw: Raw, seed: int) -> Raw:
    """Hold rows out at random, unless the source has a test set."""
    if raw.test is not None:
        return raw
    rows = len(raw.x)  # type: ignore[arg-type]
    if rows < 2:
        raise ValueError(f"the data have {rows} row: wanted at least 2, one to train on and one to hold out")
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    held_out, kept = order.split([max(1, round(HELD_OUT * rows)), rows - max(1, round(HELD_OUT * rows))])
    if isinstance(raw.x, Tensor):
        labels = raw.labels
        return Raw(
            raw.x[kept],
            None if labels is None else labels[kept],
            raw.x[held_out],
            None if labels is None else labels[held_out],
            raw.span,
        )
    test = stack_of([raw.x[int(index)] for index in held_out[:2000]])
    return raw._replace(x=torch.utils.data.Subset(raw.x, kept.tolist()), test=test)


def _cut(raw: Raw, limit: int | None) -> Raw:
    rows = len(raw.x)  # type: ignore[arg-type]
    if limit is None or limit >= rows:
        return raw
    held_out = max(1, round(len(raw.test) * limit / rows)) if raw.test is not None else 0
    x = raw.x[:limit] if isinstance(raw.x, Tensor) else torch.utils.data.Subset(raw.x, range(limit))
    parts = ((raw.labels, limit), (raw.test, held_out), (raw.test_labels, held_out))
    labels, test, test_labels = (part if part is None else part[:count] for part, count in parts)
    return Raw(x, labels, test, test_labels, raw.span)


def _fit_scale(how: str, x: Tensor, raw: Raw) -> Scale:
    x_shape = tuple(x.shape[1:])
    if how == "none":
        return Scale(x_shape)
    if how == "unit" and raw.span is not None:
        return Scale(x_shape, raw.span[0], raw.span[1] - raw.span[0])
    if not isinstance(raw.x, Tensor):
        raise ValueError(f"scale={how!r} needs all data at once, and this Dataset is streamed: scale its items")
    over: Sequence[int] = [0] if len(x_shape) == 1 else [0, *range(2, x.ndim)]
    if how == "unit":
        over = over if len(x_shape) == 1 else range(x.ndim)
        shift, width = (
            x.amin(list(over), keepdim=True)[0],
            (x.amax(list(over), keepdim=True) - x.amin(list(over), keepdim=True))[0],
        )
    else:
        shift, width = x.mean(list(over), keepdim=True)[0], x.std(list(over), correction=0, keepdim=True)[0]
    constant = (width <= 1e-12 * (1 + x.abs().amax(list(over), keepdim=True)[0])).flatten().nonzero().flatten().tolist()
    if constant:
        raise ValueError(f"columns {constant[:10]} are constant, so scale={how!r} would divide by 0: drop them")
    return Scale(x_shape, shift, width)


def check_support(variant: Variant, y: Tensor) -> None:
    """Refuse data, in the model's units, that the likelihood gives no density; name a likelihood that would."""
    support = variant.support
    inside = torch.cat([support.check(rows) for rows in y.split(4096)])
    if bool(inside.all()):
        return
    value = float(y[~inside][0])
    if bool(((y == 0) | (y == 1)).all()):
        fits = "x is binary: bernoulli_vae fits"
    elif bool(((y >= 0) & (y <= 1)).all()):
        fits = "x lies in [0, 1]: continuous_bernoulli_vae fits, or binarize='threshold'"
    else:
        fits = "x is real: sigma_vae or gaussian_vae fits, or scale='unit'"
    name = type(variant.model.likelihood).__name__
    raise ValueError(f"x holds {value:.6g} (in the model's units), outside the support of {name}, {support}; {fits}")
