"""Data at the door: checked, split, and with the scale that takes them to the model's units."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pyro
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.utils.data import DataLoader, Dataset, Subset

from .memory import rows_at_once
from .models import Scale
from .seeding import chosen, seeded
from .sources import SETS, SPACINGS, Raw, columns, names_of, numbers, read

if TYPE_CHECKING:
    from .variant import Variant

__all__ = [
    "Data",
    "check_density",
    "check_spacing",
    "check_support",
    "chunks_of",
    "held_back",
    "part_of",
    "prepare",
    "stack_of",
    "tensor_of",
    "whole",
]

BINARIZE = ("dynamic", "static", "threshold")
SCALES = ("none", "unit", "standardize", "auto")
SPLITS = ("random", "tail")
HELD_OUT = 0.2  # share of the rows held out where a source has no test set of its own
RESIDENT = 2**31  # bytes up to which a Dataset is read into memory
PART = 10_000  # rows of a larger Dataset that are read where a part is enough, at most
PART_NUMBERS = 2**28  # numbers in these rows, at most: 1 GB in single precision


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


def _all_of(dataset: Any) -> Tensor:
    return stack_of([dataset[row] for row in range(len(dataset))])


def part_of(dataset: Dataset[Any], count: int = PART, seed: int = 0) -> Tensor:
    """Rows of a Dataset drawn at random by ``seed``, [count, *x_shape]; fewer where they are too large to hold."""
    held = max(2, PART_NUMBERS // max(1, item_of(dataset[0]).numel()))
    rows = chosen(len(dataset), min(count, held), seed)  # type: ignore[arg-type]
    return stack_of([dataset[int(row)] for row in rows])


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
        if _is_streamed(source) and not part:
            raise ValueError(
                f"{name} is a Dataset of {len(source)} items, too large to hold: "  # type: ignore[arg-type]
                "pass a part of it, data.resident or a tensor of some rows"
            )
        rows = part_of(source) if _is_streamed(source) else _all_of(source)
        source, name = rows, type(source).__name__
    return _checked_numbers(_tensor(source, name), name)


def _tensor(source: Any, name: str) -> Tensor:
    """The numbers of an array, a tensor, a data frame or a list."""
    if hasattr(source, "columns") and hasattr(source, "iloc"):
        return columns(source, name)
    if isinstance(source, list | tuple) and source and all(isinstance(row, Tensor) for row in source):
        if len({row.shape for row in source}) > 1:
            raise ValueError(f"{name} is ragged: wanted rows of equal length")
        source = torch.stack(list(source))
    if not isinstance(source, Tensor):
        return numbers(source, name)
    kinds = {
        "is a nested tensor: wanted rows of equal length": source.is_nested,
        f"is a sparse tensor, {source.layout}: pass {name}.to_dense()": source.layout != torch.strided,
        f"is a quantized tensor: pass {name}.dequantize()": source.is_quantized,
        "is on the device 'meta', where tensors hold no numbers": source.is_meta,
        "holds complex numbers: wanted real ones": source.is_complex(),
    }
    for wrong, is_so in kinds.items():
        if is_so:
            raise ValueError(f"{name} {wrong}")
    x = source.detach()
    return x if x.is_floating_point() else numbers(x.cpu().numpy(), name).to(x.device)


def _checked_numbers(x: Tensor, name: str) -> Tensor:
    """At least one row and one column, all of it finite."""
    if x.ndim < 2 or x.numel() == 0:
        raise ValueError(f"{name} has shape {list(x.shape)}: wanted [rows, ...], at least one row and one column")
    if not bool(x.isfinite().all()):
        row, *place = (~x.isfinite()).nonzero()[0].tolist()
        value = float(x[(row, *place)])
        raise ValueError(f"{name} holds {value} in row {row}, place {place}: wanted finite numbers, drop or fill them")
    return x


def chunks_of(source: Any, name: str = "x") -> Iterator[Tensor]:
    """Checked rows, some at a time, for what needs no more than a pass over all of them: a streamed Dataset too."""
    if isinstance(source, Dataset) and _is_streamed(source):
        for rows in torch.arange(len(source)).split(rows_at_once(item_of(source[0]).shape)):  # type: ignore[arg-type]
            yield tensor_of(stack_of([source[int(row)] for row in rows]), name)
    else:
        x = tensor_of(source, name)
        yield from x.split(rows_at_once(x.shape[1:]))


def _check_length(dataset: Any, fewest: int = 1) -> None:
    if not hasattr(dataset, "__len__"):
        raise ValueError(f"{type(dataset).__name__} has no length: wanted a map-style Dataset")
    if len(dataset) < fewest:
        raise ValueError(f"the Dataset has {len(dataset)} items: wanted at least {fewest}")


def _is_streamed(dataset: Any) -> bool:
    """Whether a Dataset, which has to have a length and an item, is too large to be read into memory."""
    _check_length(dataset)
    return len(dataset) * item_of(dataset[0]).numel() * 4 > RESIDENT


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
        _fit_scale(("unit" if binarize or x.ndim > 2 else "standardize") if scale == "auto" else scale, x, raw),
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
    _check_length(source, 2)
    return Raw(source if _is_streamed(source) else tensor_of(source))


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


def _fit_scale(how: str, x: Tensor, raw: Raw) -> Scale:
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


def check_support(variant: "Variant", y: Tensor, x: Tensor | None = None) -> None:
    """Refuse data that the likelihood gives no density; name a likelihood, or a scale, that would.

    Args:
        variant: Whose likelihood is asked.
        y: The data in the model's units.
        x: The same in their own units, where they are known.
    """
    support, some = variant.support, rows_at_once(y.shape[1:])
    inside = torch.cat([support.check(rows) for rows in y.split(some)])
    if bool(inside.all()):
        return
    value = float(y[~inside][0])
    scaled = x is not None and not variant.model.scale.is_identity
    if scaled and all(bool(support.check(rows).all()) for rows in x.split(some)):  # type: ignore[union-attr]
        fits = "x itself, in its own units, lies in the support: use scale='none'"
    elif bool(((y == 0) | (y == 1)).all()):
        fits = "x is binary: bernoulli_vae fits"
    elif bool(((y >= 0) & (y <= 1)).all()):
        fits = "x lies in [0, 1]: continuous_bernoulli_vae fits, or binarize='threshold'"
    else:
        fits = "x is real: sigma_vae or gaussian_vae fits, or scale='unit'"
    name = type(variant.model.likelihood).__name__
    raise ValueError(f"x holds {value:.6g} (in the model's units), outside the support of {name}, {support}; {fits}")


def check_density(variant: "Variant", y: Tensor) -> None:
    """Refuse data on the edge of the support where the density is 0 or infinite, as of a Beta at 0 and at 1.

    Args:
        variant: Whose likelihood is asked, at the code 0.
        y: The data in the model's units, inside the support.
    """
    law = variant.noise
    if law.support is constraints.real or law.support.is_discrete:
        return
    with torch.no_grad(), pyro.validation_enabled(False):
        for rows in y.split(rows_at_once(y.shape[1:])):
            found = law.log_prob(rows.unsqueeze(1)).movedim(1, -1)
            wrong = ~found.isfinite().all(-1)
            if not bool(wrong.any()):
                continue
            raise ValueError(
                f"x holds {float(rows[wrong][0]):.6g} (in the model's units), on the edge of the support of "
                f"{type(variant.model.likelihood).__name__}, where log p(x | z) is {float(found[wrong][0, 0])}: "
                "move such data inside, by x.clamp(1e-3, 1 - 1e-3) for the unit interval"
            )
