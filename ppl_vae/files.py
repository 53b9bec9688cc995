"""Files and folders that are written whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["whole_file", "whole_folder", "writable", "write_text"]


def writable(folder: str | Path) -> Path:
    """Make a folder unless it exists, and check that files can be written to it.

    Raises:
        ValueError: If the folder cannot be made or written to.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"cannot write to {folder}: {error.strerror or error}; name another --out") from None
    return folder


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Write a file whole or not at all: the block writes to a temporary path, which then replaces ``path``.

    The temporary path is in the same folder and has the same suffix. If the block raises, the temporary file is removed
    and an earlier file at ``path`` stays as it was.

    Args:
        path: The file to be written.

    Yields:
        The temporary path.
    """
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Write a folder whole or not at all: the block fills a new folder, which then replaces ``path``.

    An earlier folder at ``path`` stays until the new one is complete. It comes back if it cannot be replaced.

    Args:
        path: The folder to be written. The folders above it are made.

    Yields:
        The new folder.
    """
    fresh, earlier = path.with_name(f".{path.name}.part"), path.with_name(f".{path.name}.earlier")
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(fresh, ignore_errors=True)  # left over from a block that was killed
    fresh.mkdir()
    try:
        yield fresh
        if path.exists():
            shutil.rmtree(earlier, ignore_errors=True)
            os.replace(path, earlier)
        try:
            os.replace(fresh, path)
        except BaseException:  # Ctrl-C as well
            if earlier.exists() and not path.exists():
                os.replace(earlier, path)
            raise
        shutil.rmtree(earlier, ignore_errors=True)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with whole_file(path) as part:
        part.write_text(text, encoding="utf-8")
