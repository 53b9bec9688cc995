"""Where data come from: named sets by scikit-learn's and torchvision's own loaders, and files of real numbers."""

import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

__all__ = ["FILES", "SETS", "SPACINGS", "Raw", "columns", "names_of", "numbers", "read"]

SPACINGS = 100  # spacings of floats that the spread of a column has to span, for its digits to be there


class Raw(NamedTuple):
    """What a source holds, in its own units.

    Attributes:
        x: [rows, *x_shape], or a Dataset of images too large to hold.
        labels: [rows], where the source has them.
        test: The source's own held-out part, where it has one.
        test_labels: Its labels.
        span: Smallest and largest value there can be, where known: grey values from 0 to 255.
        columns: Names of the columns, where the source is a table that has them.
    """

    x: Tensor | Dataset[Any]
    labels: Tensor | None = None
    test: Tensor | None = None
    test_labels: Tensor | None = None
    span: tuple[float, float] | None = None
    columns: tuple[str, ...] | None = None


def _digits(root: Path) -> Raw:
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = torch.as_tensor(digits.images, dtype=torch.get_default_dtype()).unsqueeze(1)
    return Raw(x, torch.as_tensor(digits.target), span=(0.0, 16.0))


def _torchvision_part(name: str) -> Any:
    """A module of torchvision, which breaks in its own way beside a torch of another build."""
    try:
        return importlib.import_module(f"torchvision.{name}")
    except (ImportError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise OSError(
            f"torchvision cannot be imported beside torch {torch.__version__} ({reason}): "
            "install both from the same index, in builds that belong together"
        ) from None


def _torchvision(name: str) -> Callable[[Path], Raw]:
    def load(root: Path) -> Raw:
        kind = getattr(_torchvision_part("datasets"), name)
        try:
            train, test = (kind(root, train=part, download=True) for part in (True, False))
        except (OSError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise OSError(
                f"{name} is not under {root} and could not be downloaded ({reason}): name another --data-root"
            ) from None
        return Raw(*_pixels(train), *_pixels(test), span=(0.0, 255.0))

    return load


def _pixels(dataset: Any) -> tuple[Tensor, Tensor]:
    """Grey values [rows, channels, height, width] and labels, from [rows, height, width] or [..., channels]."""
    x = torch.as_tensor(dataset.data)
    x = x.unsqueeze(1) if x.ndim == 3 else x.permute(0, 3, 1, 2)
    return x.to(torch.get_default_dtype()), torch.as_tensor(dataset.targets)


class _Faces(Dataset[Tensor]):
    """CelebA faces, cropped to the middle 140 pixels and reduced to 64, as grey values from 0 to 255."""

    def __init__(self, root: Path, split: str) -> None:
        datasets, transforms = _torchvision_part("datasets"), _torchvision_part("transforms")
        crop = transforms.Compose([transforms.CenterCrop(140), transforms.Resize(64), transforms.PILToTensor()])
        self.images = datasets.CelebA(root, split=split, transform=crop, download=True)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return torch.as_tensor(self.images[index][0]).to(torch.get_default_dtype())


def _celeba(root: Path) -> Raw:
    try:
        train, test = _Faces(root, "train"), _Faces(root, "test")
    except (OSError, RuntimeError, ModuleNotFoundError) as error:
        reason = str(error).splitlines()[0]
        raise OSError(
            f"CelebA is not under {root} and could not be downloaded ({reason}): name another --data-root"
        ) from None
    held_out = torch.stack([test[index] for index in range(2000)])
    return Raw(train, test=held_out, span=(0.0, 255.0))


SETS: dict[str, Callable[[Path], Raw]] = {
    "digits": _digits,
    "mnist": _torchvision("MNIST"),
    "fashion_mnist": _torchvision("FashionMNIST"),
    "cifar10": _torchvision("CIFAR10"),
    "celeba": _celeba,
}


def _npy(path: Path) -> Raw:
    return _arrays({"x": np.load(path, allow_pickle=False)}, path)


def _npz(path: Path) -> Raw:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        return _arrays({name: archive[name] for name in archive.files}, path)


def _arrays(arrays: dict[str, Any], path: Path) -> Raw:
    """One array, or ``x`` with ``y``, or ``x_train`` and ``x_test`` with ``y_train`` and ``y_test``."""
    numeric = {name: array for name, array in arrays.items() if array.dtype.kind in "biuf" and array.ndim > 1}
    x = arrays.get("x_train", arrays.get("x", next(iter(numeric.values())) if len(numeric) == 1 else None))
    if x is None:
        names = ", ".join(arrays) or "nothing"
        raise ValueError(f"{path} holds {names}: wanted one array of numbers, or 'x', or 'x_train' and 'x_test'")
    test = arrays.get("x_test")
    return Raw(
        _images(x, path),
        _labels(arrays.get("y_train", arrays.get("y")), path),
        None if test is None else _images(test, path),
        None if test is None else _labels(arrays.get("y_test"), path),
        (0.0, 255.0) if x.dtype == np.uint8 and x.ndim > 2 else None,
    )


def _labels(array: Any, path: Path) -> Tensor | None:
    """Whole numbers, one per datum; labels of any other kind are not used."""
    usable = array is not None and array.ndim == 1 and array.dtype.kind in "biu"
    return torch.as_tensor(array.astype(np.int64)) if usable else None


def _images(array: Any, path: Path) -> Tensor:
    """Put the channel axis of images first: from [rows, height, width] or [rows, height, width, channels]."""
    x = numbers(array, str(path))
    if x.ndim == 3:
        return x.unsqueeze(1)
    return x.permute(0, 3, 1, 2) if x.ndim == 4 and x.shape[-1] in (1, 3) and x.shape[1] not in (1, 3) else x


def _csv(path: Path) -> Raw:
    import pandas as pd

    first = pd.read_csv(path, header=None, nrows=1)
    bare = all(dtype.kind in "biuf" for dtype in first.dtypes)  # a first row of numbers is no header
    frame = pd.read_csv(path, header=None if bare else "infer")
    if len(frame.columns) == 1 and ";" in str(frame.columns[0]):
        raise ValueError(f"{path} has no commas: is its separator ';'? write it with commas")
    if any(str(column).startswith("Unnamed: ") for column in frame.columns):
        raise ValueError(f"{path} has a column without a name, as an index has: drop it, or name it")
    if not frame.index.equals(pd.RangeIndex(len(frame))):  # pandas took the first column for row names
        raise ValueError(f"{path} has rows of more values than its header has names")
    return Raw(columns(frame, str(path)), columns=None if bare else names_of(frame))


def _parquet(path: Path) -> Raw:
    import pandas as pd

    frame = pd.read_parquet(path)
    return Raw(columns(frame, str(path)), columns=names_of(frame))


def numbers(source: Any, name: str) -> Tensor:
    """An array, or what NumPy makes one of, as a tensor of float32 or float64.

    Whole numbers take the default dtype where it holds each of them exactly, else float64.
    """
    if isinstance(source, np.ma.MaskedArray) and np.ma.is_masked(source):
        raise ValueError(f"{name} has masked values: wanted finite numbers, drop or fill them")
    if hasattr(source, "toarray"):
        raise ValueError(f"{name} is a sparse matrix, {type(source).__name__}: pass {name}.toarray()")
    try:
        array = np.asarray(source)
    except ValueError:
        raise ValueError(f"{name} is ragged: wanted rows of equal length") from None
    except (TypeError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{name} is no array of numbers, {type(source).__name__}: {reason}") from None
    if array.dtype.kind not in "biuf":
        wanted = "wanted real numbers, rows of equal length"
        if array.dtype.kind in "Mm":
            wanted = f"wanted real numbers: pass seconds, ({name} - {name}.min()) / np.timedelta64(1, 's')"
        raise ValueError(f"{name} holds values of type {array.dtype}: {wanted}")
    if array.dtype.kind == "f":
        kept = np.float32 if array.dtype.itemsize <= 4 else np.float64
        return torch.from_numpy(np.array(array, dtype=kept, order="C"))  # a copy: of any layout, byte order, permission
    return _whole_numbers(array, name)


def _whole_numbers(array: Any, name: str) -> Tensor:
    """Whole numbers in the default dtype where it holds each exactly, else in float64."""
    for place, column in enumerate(array.reshape(len(array), -1).T if array.ndim > 1 else ()):
        _told_apart(column, f"column {place} of {name}")
    default = torch.get_default_dtype()
    exact = array.size == 0 or max(int(array.max()), -int(array.min())) <= 2 / torch.finfo(default).eps
    kept = np.float32 if exact and default == torch.float32 else np.float64
    return torch.from_numpy(np.array(array, dtype=kept, order="C")).to(default if exact else torch.float64)


def _told_apart(column: Any, name: str) -> None:
    """Refuse whole numbers, beyond 2**53, whose differences float64 does not show."""
    if len(column) == 0 or column.dtype.itemsize < 8:
        return
    low, high = int(column.min()), int(column.max())
    spacing = float(np.spacing(float(max(high, -low))))
    if spacing > 1 and 0 < high - low < SPACINGS * spacing:
        raise ValueError(
            f"{name} holds whole numbers from {low} to {high}, where float64 has one number in {spacing:g}: "
            "subtract an offset from it first, as whole numbers"
        )


def names_of(frame: Any) -> tuple[str, ...]:
    """The names of the columns of a data frame."""
    return tuple(str(column) for column in frame.columns)


def columns(frame: Any, name: str) -> Tensor:
    """The numbers of a data frame, [rows, columns], in float64; a column of anything else is refused by name."""
    if len(frame) == 0:
        raise ValueError(f"{name} has no rows")
    other = [pair for pair in zip(names_of(frame), frame.dtypes, strict=True) if pair[1].kind not in "biuf"]
    if other:
        listed = ", ".join(column for column, _ in other[:5])
        remedy = "drop or encode them"
        if all(dtype.kind in "Mm" for _, dtype in other):
            remedy = "of dates pass seconds, (column - column.min()).dt.total_seconds()"
        raise ValueError(f"{name}: columns {listed} are not real numbers: {remedy}")
    for place, column in enumerate(names_of(frame)):
        kind = frame.dtypes.iloc[place].kind
        if kind in "iu":
            whole = frame.iloc[:, place].dropna().to_numpy(np.int64 if kind == "i" else np.uint64)
            _told_apart(whole, f"{name}: column {column!r}")
    values = frame.to_numpy(dtype=np.float64, na_value=np.nan)
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        row, column = bad[0]
        raise ValueError(
            f"{name}: column {str(frame.columns[column])!r} holds {values[row, column]} in data row {row + 1}: "
            "wanted finite numbers, drop or fill them"
        )
    return numbers(values, name)


FILES: dict[str, Callable[[Path], Raw]] = {".npy": _npy, ".npz": _npz, ".csv": _csv, ".parquet": _parquet}


def read(source: str | Path, root: str | Path | None = None) -> Raw:
    """Read a named set or a file. Nothing in a file is executed.

    Args:
        source: A name of ``SETS``, or a path that ends in one of ``FILES``.
        root: Where torchvision keeps its sets; ``PPL_VAE_DATA``, or ``~/.cache/ppl_vae``, unless given.

    Raises:
        ValueError: If the source is unknown, or does not hold real numbers.
        OSError: If it cannot be read or downloaded.
    """
    if str(source) in SETS:
        folder = root or os.environ.get("PPL_VAE_DATA") or Path.home() / ".cache" / "ppl_vae"
        return SETS[str(source)](Path(folder))
    path = Path(source)
    if path.suffix.lower() not in FILES:
        raise ValueError(
            f"unknown data {str(source)!r}: wanted {', '.join(SETS)}, or a file ending in {', '.join(FILES)}"
        )
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        return FILES[path.suffix.lower()](path)
    except Exception as error:  # noqa: BLE001 - a damaged file makes its reader raise anything
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if "pickle" in reason:
            reason = "it does not hold plain numbers"
        raise ValueError(reason if str(path) in reason else f"cannot read {path}: {reason}") from None
