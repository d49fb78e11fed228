"""This module names the kind of a file, and reads the arrays of an .npz file of this library without trusting it."""

from __future__ import annotations

import errno
import io
import math
import os
import stat
import struct
import tokenize
import zipfile
from pathlib import Path
from typing import BinaryIO

import numpy as np

SNIFFED = 4096
"""Bytes at the start of a file that identify its kind."""
LONGEST_DESCRIPTION = 1000
"""Bytes of the text in which an array in a file describes itself."""
KINDS = "fiub"
"""Kinds of NumPy's dtypes in a file: numbers."""
DAMAGED = (
    *(zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, NotImplementedError, RuntimeError, struct.error, SyntaxError),
    *(ArithmeticError, LookupError, TypeError, ValueError, AttributeError, tokenize.TokenError),
)
"""Python and NumPy raise these on bytes that are no archive, or no array (RecursionError is a RuntimeError)."""
SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"\x93NUMPY", "a NumPy array (.npy), not a model"),
    (b"PAR1", "a Parquet file"),
    (b"ARROW1", "an Arrow file"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x89PNG", "an image (PNG)"),
    (b"\xff\xd8\xff", "an image (JPEG)"),
    (b"GIF8", "an image (GIF)"),
    (b"BM", "an image (BMP)"),
    (b"II*\0", "an image (TIFF)"),
    (b"MM\0*", "an image (TIFF)"),
    (b"RIFF", "an image or a sound (RIFF)"),
    (b"%PDF", "a PDF document"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"BZh", "a bzip2 archive"),
    (b"\xfd7zXZ", "an xz archive"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"Rar!", "a RAR archive"),
    (b"SQLite format 3", "an SQLite database"),
    (b"\x7fELF", "a program"),
    (b"MATLAB 5.0", "a MATLAB file"),
    (b"PK\5\6", "an empty ZIP archive"),
)
PICKLE = "a pickle, which could run code and is never opened"


def arrays(path: Path, header: str) -> dict[str, np.ndarray]:
    """Read the arrays of an .npz file of `np.savez`, one of which is called `header`; no more memory than bytes.

    Members must be stored, not compressed, together no longer than the file, and numbers. Nothing is executed.

    Raises:
        ForeignFileError: anything else, with what the file is.
        FileNotFoundError, PermissionError: the file cannot be opened.
    """
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        raise foreign(path, "a folder" if stat.S_ISDIR(mode) else "a device or a pipe, no regular file")
    with path.open("rb") as stream:
        start = stream.read(SNIFFED)
        if not start.startswith(b"PK\3\4"):
            raise foreign(path, describe_start(start))
        try:
            return _members(stream, header)
        except _OtherArchiveError as error:
            raise foreign(path, str(error)) from None
        except (*DAMAGED, OSError) as error:
            if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # a place that cannot be
                raise
            cause = str(error)[:120] or type(error).__name__
            text = f"{_short_path(path)}: the file is truncated or damaged ({cause}). Copy or save it again."
            raise ForeignFileError(text) from None


class ForeignFileError(Exception):
    """The error refuses a file, in the words that the user sees."""


class _OtherArchiveError(Exception):
    """This error says what another kind of archive is."""


def foreign(path: Path, what: str) -> ForeignFileError:
    """Return the error for a file that is no model, but `what`."""
    text = f"{_short_path(path)}: this is not a model saved by widelimit (wl.save, or widelimit fit), but {what}."
    return ForeignFileError(text)


def _short_path(path: Path) -> str:
    """Return the path, shortened from the left."""
    text = str(path)
    return text if len(text) <= 120 else f"...{text[-116:]}"


def describe_start(start: bytes) -> str:
    """Describe a file by its first bytes: "a CSV file", "an image (PNG)", "an empty file"."""
    if not start:
        return "an empty file"
    for signature, what in SIGNATURES:
        if start.startswith(signature):
            return what
    if start[257:262] == b"ustar":
        return "a tar archive"
    if start[:1] == b"\x80" and start[1:2] in (b"\2", b"\3", b"\4", b"\5"):
        return PICKLE
    if not start.strip(b"\0"):
        return "a file of zeros"
    text = start.decode("utf-8", errors="replace")
    if "\0" in text or text.count("\ufffd") > 1:  # the last character may be cut
        return "a file of a kind unknown to widelimit"
    return _text(text)


def _text(text: str) -> str:
    begin = text.lstrip("\ufeff \t\r\n")
    if begin.startswith(("{", "[")):
        return "a JSON file"
    if begin.startswith("<"):
        return "an HTML or XML file"
    if begin.startswith("version https://git-lfs"):
        return "a Git LFS pointer: fetch the file itself (git lfs pull)"
    lines = begin.splitlines()
    for separator, what in ((",", "a CSV file"), ("\t", "a TSV file"), (";", "a CSV file (with semicolons)")):
        if lines and all(separator in line for line in lines[:2]):
            return what
    return "a text file"


def _archive(names: list[str]) -> str:
    """Describe a ZIP archive by the names in it."""
    if any(name.endswith("data.pkl") for name in names):
        return f"a PyTorch file: {PICKLE}"
    for folder, what in (("xl/", "an Excel workbook"), ("word/", "a Word document"), ("ppt/", "a presentation")):
        if any(name.startswith(folder) for name in names):
            return what
    if "model.weights.h5" in names:
        return "a Keras model"
    if names and all(name.endswith(".npy") for name in names):
        return "a NumPy archive that holds no widelimit model"
    return "a ZIP archive"


def _members(stream: BinaryIO, header: str) -> dict[str, np.ndarray]:
    size = os.fstat(stream.fileno()).st_size
    with zipfile.ZipFile(stream) as archive:
        entries = archive.infolist()
        names = [entry.filename for entry in entries]
        if f"{header}.npy" not in names:
            raise _OtherArchiveError(_archive(names))
        if len(set(names)) < len(names) or not all(name.endswith(".npy") for name in names):
            raise ValueError("it holds other parts than a model has")
        if any(entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 for entry in entries):
            raise ValueError("its parts are compressed or encrypted, and wl.save writes them as they are")
        if sum(entry.file_size for entry in entries) > size:
            raise ValueError("its parts say that they are larger than the file")
        found = {}
        for entry in entries:
            with archive.open(entry) as member:
                found[entry.filename.removesuffix(".npy")] = array(entry.filename, member.read(entry.file_size))
                if member.read(1):
                    raise ValueError("a part is longer than it says")
        return found


def array(name: str, content: bytes) -> np.ndarray:
    """Read one array of numbers from the bytes of an .npy file. Raises: ValueError."""
    stream = io.BytesIO(content)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError(f"{name} is an array of a newer format")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream, max_header_size=LONGEST_DESCRIPTION)
    if dtype.hasobject:
        raise ValueError(f"{name} holds pickled objects, which could run code: nothing was loaded")
    if dtype.kind not in KINDS:
        raise ValueError(f"{name} holds no numbers")
    start = stream.tell()
    if any(length < 0 for length in shape) or math.prod(shape) * dtype.itemsize != len(content) - start:
        raise ValueError(f"{name} says that it has shape {str(shape)[:60]}, and its bytes are {len(content) - start}")
    values = np.frombuffer(content, dtype, offset=start)
    return np.array(values.reshape(shape, order="F" if fortran else "C"), order="C")
