"""A file takes its place by a rename: it is whole or not there, however the process ends."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

SUFFIX = ".part"
"""Unfinished files are called .NAME.PID.part, unless the caller names them."""


@contextmanager
def atomic_write(path: Path, *, unfinished: str = "") -> Iterator[BinaryIO]:
    """Open a new file that replaces `path` at the end, written to the disk, or is deleted on any exception.

    unfinished: the name of the file until then; a fixed one is overwritten after a kill, and for one writer only.
    """
    path = path.resolve()
    temporary = path.with_name(unfinished or f".{path.name}.{os.getpid()}{SUFFIX}")
    try:
        with temporary.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    with suppress(OSError):  # not every system opens a folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
