"""Files the command line writes: checked before the work, whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

FIGURES = (".png", ".pdf", ".svg")


def check_path(path: Path, suffixes: tuple[str, ...]) -> None:
    """Refuse a path that no file of this kind can be written to.

    Raises:
        ValueError: another suffix than `suffixes`; a parent folder that is missing or not writable; a folder or device.
    """
    folder = path.parent
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"{path}: no format {path.suffix!r}; end the name in {', '.join(suffixes)}.")
    if not folder.is_dir():
        raise ValueError(
            f"{path}: there is no folder {folder}; create it (mkdir -p '{folder}') or choose another --out."
        )
    if path.exists() and not path.is_file():
        raise ValueError(f"{path}: is not a regular file; choose the name of a file.")
    if not os.access(folder, os.W_OK):
        raise ValueError(f"{path}: the folder {folder} is not writable; choose another --out.")


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A stream into a temporary file beside `path` that takes its place at the end, or vanishes on any exception."""
    path = path.resolve()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as stream:
            yield stream
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
