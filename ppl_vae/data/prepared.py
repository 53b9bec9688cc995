"""Prepare data for training: read, check and split them, and find the scale to the model's units."""

from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from ..models import Scale
from .arrays import column_names, is_frame
from .data_set import Data, tensor_of
from .items import check_length, is_streamed, stack_of
from .sources import SETS, Raw, read
from .splits import SPLITS, cut, split_off
from .units import SCALES, check_spacing, fit_scale

__all__ = ["prepare", "unsplit"]


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
    """Read, check, split and scale data.

    Args:
        source: A named set, a path (``.npy``, ``.npz``, ``.csv``, ``.parquet``), an array, a tensor, a data frame or a
            map-style ``Dataset``.
        scale: The units of the model. ``"none"`` keeps those of the data. ``"unit"`` maps to [0, 1], by the known span
            of grey values where there is one, and otherwise by the range of each column (tables) or of all numbers
            (images). ``"standardize"`` maps to mean 0 and standard deviation 1 per column (tables) or per channel
            (images). ``"auto"`` is unit for images and for data to be binarized, and standardize for other tables. The
            shift and the division are in float64, before x is cast to the dtype of a model.
        binarize: How the data become 0 and 1 afterwards: ``"dynamic"``, ``"static"`` or ``"threshold"``, as in
            ``Data.binarized``. None leaves them as they are.
        limit: The largest number of training rows to keep. The test set is cut in proportion. The rows of both are
            drawn at random by ``seed``.
        split: How a fifth of the rows is held out where the source has no test set of its own. ``"random"`` takes
            random rows. ``"tail"`` takes the last rows, for data in the order of time, and ``fit`` then validates on
            the last training rows.
        seed: Seed of the split, of ``limit`` and of the draws of ``binarize``.
        root: The folder where torchvision keeps its sets.

    Raises:
        ValueError: If the data cannot be used as they are. The message says what came, what was wanted, and what to do.
    """
    if scale not in SCALES:
        raise ValueError(f"scale must be one of {', '.join(SCALES)}, got {scale!r}")
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if limit is not None and limit < 2:
        raise ValueError(f"limit must be at least 2 rows, got {limit!r}")
    is_named = isinstance(source, str | Path)
    name = Path(source).stem if is_named else type(source).__name__
    raw = read(source, root) if is_named else _in_memory(source)
    raw = _checked(raw, name)
    raw = split_off(raw, split, seed)
    raw = cut(raw, limit, split, seed)
    test = tensor_of(raw.test, name)
    origin = {"scale": scale, "binarize": None, "limit": limit, "split": split, "seed": seed}
    data = Data(
        name,
        raw.x,
        test,
        raw.labels,
        raw.test_labels,
        fit_scale(scale, raw, tuple(test.shape[1:]), is_binary=binarize is not None),
        origin={"source": _address(source), **origin} if is_named else None,
        split=split,
        columns=raw.columns,
    )
    return data if binarize is None else data.binarized(binarize, seed)


def unsplit(source: Any) -> Data:
    """Data that are trained on as they are, without a scale and without a held-out part."""
    raw = _in_memory(source)
    first = raw.x[:1] if isinstance(raw.x, Tensor) else stack_of([raw.x[0]])
    scale = Scale(tuple(first.shape[1:]))
    return Data(type(source).__name__, raw.x, first[:0], None, None, scale, columns=raw.columns)


def _address(source: str | Path) -> str:
    """The name of a set, or the absolute path of a file, which is valid in any folder."""
    return str(source) if str(source) in SETS else str(Path(source).resolve())


def _in_memory(source: Any) -> Raw:
    """The contents of a source that is neither a file nor a named set."""
    if isinstance(source, Dataset):
        check_length(source, 2)
        return Raw(source if is_streamed(source) else tensor_of(source))
    return Raw(tensor_of(source), columns=column_names(source) if is_frame(source) else None)


def _checked(raw: Raw, name: str) -> Raw:
    """Check that every part can be used, and that the parts agree in shape and length."""
    x = tensor_of(raw.x, name) if isinstance(raw.x, Tensor) else raw.x
    test = None if raw.test is None else tensor_of(raw.test, f"the test part of {name}")
    if isinstance(x, Tensor):
        _check_shapes(x, test, name)
        check_spacing(x, x.dtype, raw.columns, name)
    _check_labels(raw.labels, x, f"{name}: y_train")
    _check_labels(raw.test_labels, test, f"{name}: y_test")
    return raw._replace(x=x, test=test)


def _check_shapes(x: Tensor, test: Tensor | None, name: str) -> None:
    """Refuse a test part whose data have another shape than those of the training part."""
    if test is not None and x.shape[1:] != test.shape[1:]:
        shapes = f"{list(x.shape[1:])} and {list(test.shape[1:])}"
        raise ValueError(f"training and test data of {name} have shapes {shapes} per datum: wanted the same")


def _check_labels(labels: Tensor | None, part: Any, name: str) -> None:
    """Refuse labels that are not one per datum."""
    if labels is not None and part is not None and len(labels) != len(part):
        raise ValueError(f"{name} has {len(labels)} labels for {len(part)} data: wanted one label per datum")
