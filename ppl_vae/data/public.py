"""A user's own copies of the public image sets, cut to the size of an experiment. Nothing is downloaded."""

import os
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from ..streams import chosen
from .data_set import Data
from .prepared import prepare

__all__ = ["PUBLIC", "found_at", "public_set"]


class Place(NamedTuple):
    """Where a copy of a public set may lie below the data folder.

    Attributes:
        folder: A folder that torchvision makes.
        files: A pattern of ``.npz`` files, with ``x``, or with ``x_train`` and ``x_test``.
    """

    folder: str
    files: str


PUBLIC: dict[str, Place] = {
    "mnist": Place("MNIST/raw", "mnist*.npz"),
    "fashion_mnist": Place("FashionMNIST/raw", "fashion*mnist*.npz"),
    "cifar10": Place("cifar-10-batches-py", "cifar10*.npz"),
    "frey_faces": Place("", "frey*face*.npz"),
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
    """A public set on the unit scale, with at most ``rows`` training and ``test_rows`` held-out images.

    The rows are drawn at random by ``seed``. Where the copy has no held-out part, a fifth of its rows is held out at
    random.

    Args:
        name: A name of ``PUBLIC``, or ``"digits"``, which is always at hand.
        root: The data folder, as in ``found_at``.
        rows, test_rows: The largest numbers of rows.
        seed: Seed of the choice of the rows.

    Returns:
        The data, or None if there is no copy of the set.
    """
    source = name if name == "digits" else found_at(name, root)
    if source is None:
        return None
    data = prepare(source, scale="unit", seed=seed, root=root or os.environ.get("PPL_VAE_DATA"))
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


def _rows(labels: torch.Tensor | None, rows: torch.Tensor) -> torch.Tensor | None:
    return None if labels is None else labels[rows]
