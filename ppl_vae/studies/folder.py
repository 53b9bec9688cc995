"""The folder of a study: one folder per finished cell, written whole or not at all, and the feature spaces."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..data.data_set import Data
from ..evaluation.features import Classifier, Features, features_for, read_classifier, write_classifier
from ..files import whole_folder, writable, write_text
from .cells import Cell
from .work import FAILED, Finished, threads_of

__all__ = ["StudyFolder"]

MARK, RECORD, CELLS, FEATURES = "study.json", "cell.json", "cells", "features"
FORMAT = 1


class StudyFolder:
    """A folder that holds a study.

    Args:
        path: The folder. It is made unless it exists.
        replace: Whether a folder that holds something else may be used. Only files of a study are then written.

    Raises:
        ValueError: If the folder holds something else, or cannot be written to.
    """

    def __init__(self, path: str | Path, *, replace: bool = False) -> None:
        self.path = Path(path)
        if not replace:
            refuse_anything_else(self.path)
        writable(self.path)

    def declare(self, cells: Sequence[Cell]) -> None:
        """Write the list of the cells, which also marks the folder as that of a study."""
        listed = [{"key": cell.key, "label": cell.label, "declaration": cell.declaration} for cell in cells]
        write_text(self.path / MARK, json.dumps({"format": FORMAT, "cells": listed}, indent=1) + "\n")

    def finished(self) -> dict[str, Path]:
        """The folders of the finished cells by their keys. A cell that failed by chance is not finished."""
        found = {}
        for path in sorted((self.path / CELLS).glob(f"*/{RECORD}")):
            record = self.record(path.parent)
            if record is not None and record["status"] != FAILED:
                found[str(record["key"])] = path.parent
        return found

    @staticmethod
    def record(folder: Path) -> dict[str, Any] | None:
        """The record in the folder of a cell, or None if it cannot be read, so that the cell is run again."""
        try:
            record: dict[str, Any] = json.loads((folder / RECORD).read_text())
            return record if {"key", "status", "reason"} <= record.keys() else None
        except (OSError, ValueError, AttributeError):
            return None

    def place(self, cell: Cell) -> Path:
        """The folder that the outcome of a cell is written to."""
        return self.path / CELLS / cell.label

    def write(self, cell: Cell, finished: Finished) -> Path:
        """Write the outcome of a cell. An outcome of another declaration keeps its files under another name."""
        path = self.place(cell)
        earlier = self.record(path)
        if earlier is not None and earlier["key"] != cell.key:
            path.rename(path.with_name(f"{path.name}-{earlier['key']}"))
        with whole_folder(path) as fresh:
            for name, content in finished.files.items():
                (fresh / name).write_bytes(content)
            (fresh / RECORD).write_text(json.dumps(finished.record, allow_nan=False) + "\n")
        return path

    def features(self, data: Data, choice: str | None, seed: int, threads: int) -> Features:
        """The feature space of a data set. A classifier is trained once and kept in the folder."""
        path = self.path / FEATURES / f"{data.name}-{data.digest}-{seed}.safetensors"
        if choice in (None, "classifier") and path.is_file():
            return read_classifier(path, data.x_shape)
        with threads_of(threads):
            space = features_for(data.scale(data.resident), data.labels, choice, seed)
        if isinstance(space.apply, Classifier):
            writable(path.parent)
            write_classifier(path, space)
        return space


def refuse_anything_else(path: Path) -> None:
    """Refuse a folder that is neither empty nor the folder of a study.

    Raises:
        ValueError: If there is such a folder, or a file.
    """
    if path.exists() and not path.is_dir():
        raise ValueError(f"cannot write to {path}: it is a file; name another --out")
    if path.is_dir() and any(path.iterdir()) and not (path / MARK).is_file():
        raise ValueError(
            f"{path} holds something else than a study, and is left as it is: name another --out, or use --force "
            "(replace=True in Python)"
        )
