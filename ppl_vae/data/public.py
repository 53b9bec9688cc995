"""A user's own copies of the public sets, cut to the size of an experiment. Nothing is downloaded."""

import os
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..models import Scale
from ..streams import chosen
from .data_set import Data
from .prepared import prepare

__all__ = ["PUBLIC", "found_at", "public_set"]


class Place(NamedTuple):
    """Where a copy of a public set may lie below the data folder.

    Attributes:
        files: A pattern of files. Those of images and tables are what ``prepare`` reads.
        folder: A folder that torchvision makes, or an empty text.
        scale: The scale of the set, as in ``prepare``.
    """

    files: str
    folder: str = ""
    scale: str = "unit"


TABLES = ("concrete", "energy", "kin8nm", "power_plant", "protein", "wine_red", "wine_white", "yacht")
BITS = "binarized_mnist"  # the fixed draw of MNIST of Larochelle and Murray, eight pixels per byte
TEXTS = "zinc"  # molecules as text, a SMILES per line

PUBLIC: dict[str, Place] = {
    "mnist": Place("mnist*.npz", "MNIST/raw"),
    "fashion_mnist": Place("fashion*mnist*.npz", "FashionMNIST/raw"),
    "cifar10": Place("cifar10*.npz", "cifar-10-batches-py"),
    "frey_faces": Place("frey*face*.npz"),
    BITS: Place("binarized_mnist*.npz"),
    TEXTS: Place("zinc*.txt"),
    **{name: Place(f"uci/{name}.*", scale="standardize") for name in TABLES},
}


def found_at(name: str, root: str | Path | None) -> str | Path | None:
    """Where a copy of a public set lies: the name itself for torchvision's copy, a file, or None without a copy.

    Args:
        name: A name of ``PUBLIC``.
        root: The data folder. By default it is given by the environment variable ``PPL_VAE_DATA``.
    """
    folder = root or os.environ.get("PPL_VAE_DATA")
    if folder is None:
        return None
    place = PUBLIC[name]
    if place.folder and (Path(folder) / place.folder).is_dir():
        return name
    return next(iter(sorted(Path(folder).glob(place.files))), None)


def public_set(name: str, root: str | Path | None, *, rows: int, test_rows: int, seed: int = 0) -> Data | None:
    """A public set of numbers, with at most ``rows`` training and ``test_rows`` held-out data.

    Images are on the unit scale, and tables are standardised. The rows are drawn at random by ``seed``. Where the copy
    has no held-out part, a fifth of its rows is held out at random.

    Args:
        name: A name of ``PUBLIC`` other than that of texts, or ``"digits"``, which is always at hand.
        root: The data folder, as in ``found_at``.
        rows, test_rows: The largest numbers of rows.
        seed: Seed of the choice of the rows.

    Returns:
        The data, or None if there is no copy of the set.
    """
    source = name if name == "digits" else found_at(name, root)
    if source is None:
        return None
    data = _binary(source) if name == BITS else _prepared(name, source, root, seed)
    train = chosen(len(data.resident), rows, seed)
    test = chosen(len(data.test), test_rows, seed + 1)
    return replace(
        data,
        name=name,
        train=data.resident[train],
        test=data.test[test],
        labels=_rows(data.labels, train),
        test_labels=_rows(data.test_labels, test),
        origin=None,
    )


def _prepared(name: str, source: str | Path, root: str | Path | None, seed: int) -> Data:
    scale = PUBLIC[name].scale if name in PUBLIC else "unit"
    return prepare(source, scale=scale, seed=seed, root=root or os.environ.get("PPL_VAE_DATA"))


def _binary(path: str | Path) -> Data:
    """Images of 28 x 28 pixels that are 0 or 1, from a file with their bits in ``train`` and ``test``."""
    with np.load(path) as found:
        train, test = (_unpacked(found[part]) for part in ("train", "test"))
    return Data(BITS, train, test, None, None, Scale((1, 28, 28)))


def _unpacked(bits: np.ndarray) -> Tensor:
    return torch.from_numpy(np.unpackbits(bits, axis=1)).float().reshape(-1, 1, 28, 28)


def _rows(labels: torch.Tensor | None, rows: torch.Tensor) -> torch.Tensor | None:
    return None if labels is None else labels[rows]
