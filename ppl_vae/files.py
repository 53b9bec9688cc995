"""Files that are written whole or not at all."""

import os
import tempfile
from pathlib import Path

__all__ = ["writable", "write_text"]


def writable(folder: str | Path) -> Path:
    """Make a folder and prove that it can be written to.

    Raises:
        ValueError: If it cannot.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"cannot write to {folder}: {error.strerror or error}; name another --out") from None
    return folder


def write_text(path: Path, text: str) -> None:
    """Write a whole file, or none of it."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
