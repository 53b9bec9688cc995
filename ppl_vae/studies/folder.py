"""The folder of a study: one folder per finished cell, written whole or not at all, and the feature spaces."""

import hashlib
import json
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

from ..data.data_set import Data
from ..evaluation.features import Classifier, Features, features_for, read_classifier, write_classifier
from ..files import whole_folder, writable, write_text
from .cells import Cell
from .work import FAILED, Finished, digests_of, threads_of

__all__ = ["StudyFolder", "is_study"]

MARK, RECORD, CELLS, FEATURES = "study.json", "cell.json", "cells", "features"
UNFINISHED = ".study.part.json"  # the mark of a study that was killed while it wrote the mark
FORMAT = 1
LONGEST = 120  # bytes of the readable part of a file name


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

    def records(self, keys: Container[str]) -> dict[str, tuple[Path, dict[str, Any]]]:
        """The folders and records of the cells that were run, by their keys.

        A record that is damaged, or whose checkpoint is missing or cut off, is left out, so that its cell is run again.
        """
        found: dict[str, tuple[Path, dict[str, Any]]] = {}
        for path in sorted((self.path / CELLS).glob("*")):
            key = path.name.rpartition("-")[2]
            if path.name.startswith(".") or key not in keys:  # a folder with a dot is not written to its end
                continue
            record = read_record(path)
            if record is not None and record["key"] == key and not (key in found and record["status"] == FAILED):
                found[key] = path, record
        return found

    def finished(self, keys: Container[str]) -> set[str]:
        """The keys of the cells that are not run again. A cell that failed by chance is."""
        return {key for key, (_, record) in self.records(keys).items() if record["status"] != FAILED}

    def write(self, cell: Cell, finished: Finished) -> Path:
        """Write the outcome of a cell. The outcome of another declaration has a folder of its own."""
        path = self.path / CELLS / f"{file_name(cell.label)}-{cell.key}"
        record = {**finished.record, "files": digests_of(finished.files)}
        with whole_folder(path) as fresh:
            for name, content in finished.files.items():
                (fresh / name).write_bytes(content)
            text = json.dumps({"digest": digest_of_record(record), **record}, allow_nan=False)
            (fresh / RECORD).write_text(text + "\n", encoding="utf-8")
        return path

    def features(self, data: Data, choice: str | None, seed: int, threads: int) -> Features:
        """The feature space of a data set. A classifier is trained once and kept in the folder."""
        path = self.path / FEATURES / f"{file_name(data.name)}-{data.digest}-{seed}.safetensors"
        if choice in (None, "classifier") and path.is_file():
            return read_classifier(path, data.x_shape)
        with threads_of(threads):
            space = features_for(data.scale(data.resident), data.labels, choice, seed)
        if isinstance(space.apply, Classifier):
            writable(path.parent)
            write_classifier(path, space)
        return space


def file_name(text: str) -> str:
    """A text as part of a file name, without separators, and short enough for every file system."""
    readable = "".join(letter if letter.isalnum() or letter in "._=-" else "_" for letter in text)
    return readable.lstrip(".").encode()[:LONGEST].decode(errors="ignore")


def digest_of_record(record: dict[str, Any]) -> str:
    """The SHA-256 of a record, which shows that nothing in it was changed."""
    return hashlib.sha256(json.dumps(record, sort_keys=True, allow_nan=False).encode()).hexdigest()


def read_record(folder: Path) -> dict[str, Any] | None:
    """The record in the folder of a cell, or None if the record or a file of the checkpoint is not as it was written.

    Of the files, only the size is looked at. Their numbers are checked where a result is read.
    """
    try:
        record: dict[str, Any] = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        is_whole = record.pop("digest") == digest_of_record(record)
        sizes = {name: (folder / name).stat().st_size for name in record["files"]}
        return record if is_whole and sizes == {name: size for name, (size, _) in record["files"].items()} else None
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return None


def is_study(path: Path) -> bool:
    """Whether a folder has the mark of a study."""
    try:
        return isinstance(json.loads((path / MARK).read_text(encoding="utf-8"))["cells"], list)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def refuse_anything_else(path: Path) -> None:
    """Refuse a folder that is neither empty nor the folder of a study.

    Raises:
        ValueError: If there is such a folder, or a file.
    """
    if path.exists() and not path.is_dir():
        raise ValueError(f"cannot write to {path}: it is a file; name another --out")
    if path.is_dir() and any(file.name != UNFINISHED for file in path.iterdir()) and not is_study(path):
        raise ValueError(
            f"{path} holds something else than a study, and is left as it is: name another --out, or use --force "
            "(replace=True in Python)"
        )
