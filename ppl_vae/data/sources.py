"""Where data come from: named sets, read by the loaders of scikit-learn and torchvision, and files of real numbers."""

import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from .arrays import REAL, column_names, numbers, numbers_of_frame, reason_of
from .items import SCORED

__all__ = ["FILES", "SETS", "Raw", "read"]

GREY = (0.0, 255.0)  # smallest and largest grey value of a byte


class Raw(NamedTuple):
    """The contents of a source, in its own units.

    Attributes:
        x: The data, [rows, *x_shape], or a Dataset of images that is too large for memory.
        labels: The labels of x, [rows], if the source has them.
        test: The source's own held-out part, if it has one.
        test_labels: The labels of ``test``, if the source has them.
        span: The smallest and the largest possible value, if they are known, for example 0 and 255 for grey values.
        columns: The names of the columns, if the source is a table that has them.
    """

    x: Tensor | Dataset[Any]
    labels: Tensor | None = None
    test: Tensor | None = None
    test_labels: Tensor | None = None
    span: tuple[float, float] | None = None
    columns: tuple[str, ...] | None = None


# Named sets.


def _digits(root: Path) -> Raw:
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = torch.as_tensor(digits.images, dtype=torch.get_default_dtype()).unsqueeze(1)
    return Raw(x, torch.as_tensor(digits.target), span=(0.0, 16.0))


def _torchvision_part(name: str) -> Any:
    """Import a module of torchvision. Beside a torch of another build, the import can raise a RuntimeError."""
    try:
        return importlib.import_module(f"torchvision.{name}")
    except (ImportError, RuntimeError) as error:
        raise OSError(
            f"torchvision cannot be imported beside torch {torch.__version__} ({reason_of(error)}): "
            "install both from the same index, in builds that belong together"
        ) from None


def _not_found(name: str, root: Path, error: Exception) -> OSError:
    """The error for a set that is not on disk and could not be downloaded."""
    return OSError(
        f"{name} is not under {root} and could not be downloaded ({reason_of(error)}): "
        "name another --data-root, or root= in Python"
    )


def _torchvision(name: str) -> Callable[[Path], Raw]:
    """A reader of a set of torchvision that fits into memory."""

    def load(root: Path) -> Raw:
        kind = getattr(_torchvision_part("datasets"), name)
        try:
            train, test = (kind(root, train=part, download=True) for part in (True, False))
        except (OSError, RuntimeError) as error:
            raise _not_found(name, root, error) from None
        return Raw(*_pixels(train), *_pixels(test), span=GREY)

    return load


def _pixels(dataset: Any) -> tuple[Tensor, Tensor]:
    """The grey values of a set, [rows, channels, height, width], and its labels, [rows]."""
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
        raise _not_found("CelebA", root, error) from None
    held_out = torch.stack([test[index] for index in range(SCORED)])
    return Raw(train, test=held_out, span=GREY)


SETS: dict[str, Callable[[Path], Raw]] = {
    "digits": _digits,
    "mnist": _torchvision("MNIST"),
    "fashion_mnist": _torchvision("FashionMNIST"),
    "cifar10": _torchvision("CIFAR10"),
    "celeba": _celeba,
}


# Files.


def _npy(path: Path) -> Raw:
    return _arrays({"x": np.load(path, allow_pickle=False)}, path)


def _npz(path: Path) -> Raw:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        return _arrays({name: archive[name] for name in archive.files}, path)


def _arrays(arrays: dict[str, Any], path: Path) -> Raw:
    """The data of one array, of ``x`` and ``y``, or of ``x_train``, ``y_train``, ``x_test`` and ``y_test``."""
    x = _training_array(arrays, path)
    is_image = x.dtype == np.uint8 and x.ndim > 2
    labels = _labels(arrays.get("y_train", arrays.get("y")))
    raw = Raw(_images(x, path), labels, span=GREY if is_image else None)
    if "x_test" not in arrays:
        return raw
    return raw._replace(test=_images(arrays["x_test"], path), test_labels=_labels(arrays.get("y_test")))


def _training_array(arrays: dict[str, Any], path: Path) -> Any:
    """The array to train on: ``x_train``, or ``x``, or the only one that holds rows of real numbers."""
    for name in ("x_train", "x"):
        if name in arrays:
            return arrays[name]
    tables = [array for array in arrays.values() if array.dtype.kind in REAL and array.ndim > 1]
    if len(tables) != 1:
        names = ", ".join(arrays) or "nothing"
        raise ValueError(f"{path} holds {names}: wanted one array of numbers, or 'x', or 'x_train' and 'x_test'")
    return tables[0]


def _labels(array: Any) -> Tensor | None:
    """Labels that are whole numbers, one per datum. Labels of any other kind are not used, and give None."""
    is_usable = array is not None and array.ndim == 1 and array.dtype.kind in "biu"
    return torch.as_tensor(array.astype(np.int64)) if is_usable else None


def _images(array: Any, path: Path) -> Tensor:
    """Rows of numbers. Images [rows, height, width] or [rows, height, width, channels] get the channels first."""
    x = numbers(array, str(path))
    if x.ndim == 3:
        return x.unsqueeze(1)
    has_channels_last = x.ndim == 4 and x.shape[-1] in (1, 3) and x.shape[1] not in (1, 3)
    return x.permute(0, 3, 1, 2) if has_channels_last else x


def _csv(path: Path) -> Raw:
    import pandas as pd

    first = pd.read_csv(path, header=None, nrows=1)
    has_header = any(dtype.kind not in REAL for dtype in first.dtypes)  # a first row of numbers is data
    frame = pd.read_csv(path, header="infer" if has_header else None)
    _check_csv(frame, path)
    names = column_names(frame) if has_header else None
    return Raw(numbers_of_frame(frame, str(path)), columns=names)


def _check_csv(frame: Any, path: Path) -> None:
    """Refuse a table that pandas did not read as its author meant it."""
    import pandas as pd

    first = str(frame.columns[0])
    if len(frame.columns) == 1 and ";" in first:
        raise ValueError(f"{path} has no commas and looks separated by ';': write it with commas")
    if any(name.startswith("Unnamed: ") for name in column_names(frame)):
        raise ValueError(f"{path} has a column without a name, which may be an index: drop the column, or name it")
    if not frame.index.equals(pd.RangeIndex(len(frame))):  # pandas took the first column for the names of the rows
        raise ValueError(f"{path} has rows with more values than its header has names: name every column")


def _parquet(path: Path) -> Raw:
    import pandas as pd

    frame = pd.read_parquet(path)
    return Raw(numbers_of_frame(frame, str(path)), columns=column_names(frame))


FILES: dict[str, Callable[[Path], Raw]] = {".npy": _npy, ".npz": _npz, ".csv": _csv, ".parquet": _parquet}


def read(source: str | Path, root: str | Path | None = None) -> Raw:
    """Read a named set or a file. Nothing in a file is executed.

    Args:
        source: A name of ``SETS``, or a path that ends in one of ``FILES``.
        root: The folder where torchvision keeps its sets. By default it is given by the environment variable
            ``PPL_VAE_DATA``, or is ``~/.cache/ppl_vae`` where that is not set.

    Raises:
        ValueError: If the source is unknown, or does not hold real numbers.
        OSError: If the source cannot be read or downloaded.
    """
    if str(source) in SETS:
        folder = root or os.environ.get("PPL_VAE_DATA") or Path.home() / ".cache" / "ppl_vae"
        return SETS[str(source)](Path(folder))
    path = Path(source)
    suffix = path.suffix.lower()
    if suffix not in FILES:
        raise ValueError(
            f"unknown data {str(source)!r}: wanted {', '.join(SETS)}, or a file ending in {', '.join(FILES)}"
        )
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        return FILES[suffix](path)
    except Exception as error:  # noqa: BLE001 - the reader of a damaged file may raise anything
        reason = reason_of(error)
        if "pickle" in reason:
            reason = "it does not hold plain numbers"
        raise ValueError(reason if str(path) in reason else f"cannot read {path}: {reason}") from None
