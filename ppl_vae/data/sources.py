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

from .arrays import columns, names_of, numbers

__all__ = ["FILES", "SETS", "Raw", "read"]


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
