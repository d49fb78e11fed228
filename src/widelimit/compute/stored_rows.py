"""A symmetric matrix that somebody stored is read block by block, in this process or in those of workers."""

import mmap
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Self, final

import numpy as np

from widelimit.fingerprints import sha256

BLOCK = 2048
"""`StoredRows.size` unless there is a reason: 32 MiB of float64."""
TASKS = 32
"""Tasks of a product at most: each is sent the vectors, which are small beside the rows that it reads."""


class MappedFile(NamedTuple):
    """The matrix is a file, in C's order: a process that gets this opens it, where an `np.memmap` would be copied."""

    path: str
    offset: int
    shape: tuple[int, int]
    dtype: np.dtype

    def open(self) -> np.ndarray:
        """Map the file."""
        return np.memmap(self.path, self.dtype, "r", self.offset, self.shape)


@final
@dataclass(frozen=True)
class StoredRows:
    """The matrix (n, n) gives rows as source[i:j]: a NumPy array, a memmap, a Zarr array."""

    source: Any
    size: int
    """Rows and columns of a block that a task reads at once."""

    @property
    def n(self) -> int:
        """Return the number of rows."""
        return int(self.source.shape[0])

    @property
    def by_block(self) -> bool:
        """Return True if a block is read without the rest of its rows."""
        return isinstance(self.source, np.ndarray | MappedFile) or getattr(self.source, "chunks", None) is not None

    def sent(self, client: Any) -> Self:
        """Return this matrix as tasks of the client get it.

        Raises: ValueError: they run in other processes, and it is in the memory of this one.
        """
        source = self.source
        if client is None or isinstance(client, ThreadPoolExecutor):
            return self
        if isinstance(source, np.memmap) and isinstance(source.base, mmap.mmap) and source.mode != "c":
            path, shape = str(Path(str(source.filename)).resolve()), (self.n, self.n)
            if source.flags.c_contiguous:
                return replace(self, source=MappedFile(path, source.offset, shape, source.dtype))
        if isinstance(source, np.ndarray):
            raise ValueError(
                "matrix is in the memory of this process, where the workers of client cannot read it: pass the array "
                'of wl.stored_gram(k, X, "K.zarr"), or a whole file by np.load("K.npy", mmap_mode="r"), or no client.'
            )
        return self

    def read(self, rows: slice, columns: slice) -> np.ndarray:
        """Read a block. Raises: ValueError: it cannot be read."""
        source = self.source.open() if isinstance(self.source, MappedFile) else self.source
        try:
            if self.by_block and not isinstance(source, np.ndarray):
                return np.asarray(source[rows, columns])
            return np.asarray(source[rows])[:, columns]
        except ValueError as error:
            raise ValueError(
                f"rows {rows.start} to {rows.stop} of the stored matrix cannot be read: {error} If stored_gram wrote "
                "them, call it again: it repairs them."
            ) from None

    def block(self, rows: slice, columns: slice) -> np.ndarray:
        """Read a block as an array of its own, float64, in C's order. Raises: ValueError: an entry is not finite."""
        found = np.array(self.read(rows, columns), np.float64, order="C")
        self.require_finite(rows.start, columns.start, found)
        return found

    def require_finite(self, row: int, column: int, block: np.ndarray) -> None:
        """Refuse a block from this row and column if an entry is NaN or infinite. Raises: ValueError: its tile."""
        if np.isfinite(block).all():
            return
        a, b = (int(each) for each in np.argwhere(~np.isfinite(block))[0])
        i, j, chunks = row + a, column + b, getattr(self.source, "chunks", None)
        tile = f", in the tile c/{i // chunks[0]}/{j // chunks[1]}," if chunks else ""
        raise ValueError(
            f"the stored matrix is {block[a, b]} at row {i} and column {j}{tile} where nothing was stored, or "
            "a file was lost. If stored_gram wrote it, call stored_gram again with the same kernel and data."
        )

    def spans(self, blocks: int = 1) -> list[slice]:
        """Return the rows, or columns, in groups of so many blocks."""
        step = blocks * self.size
        return [slice(i, min(i + step, self.n)) for i in range(0, self.n, step)]

    def tasks(self) -> list[slice]:
        """Return the rows of each task of a product: they depend on n only, and so do the bits."""
        return self.spans(-(-self.n // (self.size * TASKS)))

    def columns(self) -> list[slice]:
        """Return the columns that a task reads at once."""
        return self.spans() if self.by_block else [slice(0, self.n)]


def product(matrix: StoredRows, rows: slice, v: np.ndarray) -> np.ndarray:
    """Compute A[rows] v, (n, c) -> (rows, c), float64, block by block in a fixed order.

    Raises: ValueError: an entry is NaN or infinite.
    """
    parts = []
    for start in range(rows.start, rows.stop, matrix.size):
        part = slice(start, min(start + matrix.size, rows.stop))
        out = np.zeros((part.stop - start, v.shape[1]))
        for columns in matrix.columns():
            block = matrix.read(part, columns)
            out += block.astype(np.float64, copy=False) @ v[columns]
            if not np.isfinite(out).all():  # fewer numbers to look at than the block's
                matrix.require_finite(start, columns.start, block)
        parts.append(out)
    return np.concatenate(parts)


def diagonal(matrix: StoredRows, rows: slice) -> np.ndarray:
    """Return the diagonal at these rows, float64. Raises: ValueError: an entry is NaN or infinite."""
    block = matrix.read(rows, rows)
    found = np.diagonal(block).astype(np.float64)
    if not np.isfinite(found).all():
        matrix.require_finite(rows.start, rows.start, block)
    return found


def chosen(matrix: StoredRows, index: np.ndarray) -> np.ndarray:
    """Return the rows of these numbers, (k, n), and read what lies between. Raises: ValueError: as `product`."""
    first, last = int(index.min()), int(index.max())
    parts = [matrix.read(slice(first, last + 1), columns)[index - first] for columns in matrix.columns()]
    found = np.concatenate(parts, axis=1)
    for i, row in zip(index, found, strict=True):
        matrix.require_finite(int(i), 0, row[None])
    return found


def digest(matrix: StoredRows, rows: slice) -> str:
    """Hash these rows, block by block."""
    return sha256(*(np.ascontiguousarray(matrix.read(rows, columns)) for columns in matrix.columns()))
