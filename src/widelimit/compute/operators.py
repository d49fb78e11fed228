"""A symmetric matrix is multiplied with vectors: tiles in memory, rows on disk, or entries computed each time."""

import abc
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self, final

import numpy as np

from widelimit import memory
from widelimit.compute import linalg, threads, tiles
from widelimit.compute.tiles import PairKernel
from widelimit.progress import KERNEL, Report, no_progress

SIZE = 2048
"""Rows of a block. A product with a vector reads a block from memory once, and from the cache for its mirror image."""
RESERVE = 2**29
"""Bytes left free for tiles in the making, test points and the right-hand sides."""


class RowBlock(NamedTuple):
    """values = A[row : row + h, column : column + w], on the diagonal (row = column, h = w) or below it."""

    row: int
    column: int
    values: np.ndarray


def blocks(kernel: PairKernel, X: np.ndarray, *, size: int = SIZE, report: Report = no_progress) -> Iterator[RowBlock]:
    """Compute the lower triangle of K(X, X) in X's dtype, block by block on request, and report progress.

    Raises: ValueError: an entry is NaN or infinite.
    """
    side = -(-len(X) // size)
    done = itertools.count(1)
    for i in range(0, len(X), size):
        rows = X[i : i + size]
        for j in range(0, i + 1, size):
            values = tiles.gram(kernel, rows) if i == j else tiles.cross(kernel, rows, X[j : j + size])
            if not np.isfinite(values).all():
                a, b = np.argwhere(~np.isfinite(values))[0]
                raise ValueError(f"the kernel is {values[a, b]} at rows {i + a} and {j + b} of X.")
            yield RowBlock(i, j, values)
            report(KERNEL, next(done), side * (side + 1) // 2)


def _add(out: np.ndarray, block: RowBlock, v: np.ndarray) -> None:
    """Add to `out` the part of A v that comes from the block and its mirror image."""
    r, c, values = block
    out[r : r + len(values)] += values @ v[c : c + values.shape[1]]
    if r != c:
        out[c : c + values.shape[1]] += values.T @ v[r : r + len(values)]


class Operator(abc.ABC):
    """An operator is a symmetric (n, n) matrix A."""

    @abc.abstractmethod
    def diagonal(self) -> np.ndarray:
        """Return the diagonal, (n,), float64."""

    @abc.abstractmethod
    def columns(self, index: np.ndarray) -> np.ndarray:
        """Return A[:, index], (n, k)."""

    @abc.abstractmethod
    def product(self, v: np.ndarray) -> np.ndarray:
        """Compute A v, (n, c) -> (n, c), float64."""

    def verify(self) -> None:  # noqa: B027, most matrices are our own and do not change
        """Refuse a caller's matrix that has changed since it was given; others cannot change. Raises: ValueError."""


class _OfKernel(Operator, abc.ABC):
    """The matrix is K(X, X)."""

    kernel: PairKernel
    X: np.ndarray

    def diagonal(self) -> np.ndarray:
        return tiles.diagonal(self.kernel, self.X).astype(np.float64)

    def columns(self, index: np.ndarray) -> np.ndarray:
        return tiles.cross(self.kernel, self.X, self.X[index])


@final
@dataclass(frozen=True)
class Tiles(_OfKernel):
    """K(X, X) = offset + one triangle of blocks, and its mirror, in memory: made by `in_memory`."""

    kernel: PairKernel
    X: np.ndarray
    held: tuple[RowBlock, ...]
    offset: float

    def product(self, v: np.ndarray) -> np.ndarray:
        out = np.tile(self.offset * v.sum(axis=0), (len(v), 1))
        small = v.astype(self.held[0].values.dtype)
        with threads.limit(threads.work(len(v), len(v), v.shape[1])):
            for block in self.held:
                _add(out, block, small)
        return out


@final
@dataclass(frozen=True)
class Recomputed(_OfKernel):
    """The matrix is K(X, X), of which no entry is kept."""

    kernel: PairKernel
    X: np.ndarray

    def product(self, v: np.ndarray) -> np.ndarray:
        out, small = np.zeros(v.shape), v.astype(self.X.dtype)
        for block in blocks(self.kernel, self.X):
            with threads.limit(threads.work(len(v), len(v), v.shape[1])):
                _add(out, block, small)
        return out


def _probe(n: int) -> np.ndarray:
    """Return a fixed vector, (n, 1), that no change of a matrix happens to be orthogonal to."""
    return np.random.default_rng(0).standard_normal((n, 1))


@final
@dataclass(frozen=True)
class StoredOperator(Operator):
    """The symmetric matrix is read by blocks of rows: a NumPy array, a memmap, a Zarr array."""

    rows: Any
    """Has a shape (n, n), and [i:j] gives rows as an array."""
    mark: np.ndarray | None = None
    """A caller's matrix: its product with `_probe` when it was given, (n, 1), to detect changes without a copy."""

    def diagonal(self) -> np.ndarray:
        return np.concatenate([self._diagonal(i, block) for i, block in self._read()])

    def columns(self, index: np.ndarray) -> np.ndarray:
        return np.stack([self._finite(int(i), self._rows(int(i), int(i) + 1))[0] for i in index], axis=1)

    def product(self, v: np.ndarray) -> np.ndarray:
        with threads.limit(threads.work(len(v), len(v), v.shape[1])):
            return np.concatenate([self._product(i, block, v) for i, block in self._read()])

    def marked(self) -> Self:
        """Return the operator of a caller's matrix, which may be changed: `verify` finds changes beyond rounding."""
        return replace(self, mark=self.product(_probe(self.rows.shape[0])))

    def verify(self) -> None:
        if self.mark is None:
            return
        n = len(self.mark)
        off = float(np.abs(self.product(_probe(n)) - self.mark).max())
        if not off <= linalg.rounding(n, float(np.abs(self.mark).max())):
            raise ValueError(
                f"matrix has changed since the posterior was made (a product with it by {off:.3g}), which reads it "
                "again for variances, covariances and samples: make the posterior again, or pass a copy."
            )

    def _diagonal(self, start: int, block: np.ndarray) -> np.ndarray:
        found = np.diagonal(block, start).astype(np.float64)
        if not np.isfinite(found).all():
            self._finite(start, block)
        return found

    def _product(self, start: int, block: np.ndarray, v: np.ndarray) -> np.ndarray:
        found = np.asarray(block.astype(np.float64, copy=False) @ v)
        if not np.isfinite(found).all():  # fewer numbers to look at than the block's
            self._finite(start, block)
        return found

    def _finite(self, start: int, block: np.ndarray) -> np.ndarray:
        """Return the block. Raises: ValueError: an entry is NaN or infinite, with its tile."""
        if np.isfinite(block).all():
            return block
        i, j = (int(each) for each in np.argwhere(~np.isfinite(block))[0])
        chunks = getattr(self.rows, "chunks", None)
        tile = f", in the tile c/{(start + i) // chunks[0]}/{j // chunks[1]}," if chunks else ""
        raise ValueError(
            f"the stored matrix is {block[i, j]} at row {start + i} and column {j}{tile} where nothing was stored, or "
            "a file was lost. If stored_gram wrote it, call stored_gram again with the same kernel and data."
        )

    def _read(self) -> Iterator[tuple[int, np.ndarray]]:
        for i in range(0, self.rows.shape[0], SIZE):
            yield i, self._rows(i, min(i + SIZE, self.rows.shape[0]))

    def _rows(self, start: int, stop: int) -> np.ndarray:
        try:
            return np.asarray(self.rows[start:stop])
        except ValueError as error:
            raise ValueError(
                f"rows {start} to {stop} of the stored matrix cannot be read: {error} If stored_gram wrote them, "
                "call it again: it repairs them."
            ) from None


@final
@dataclass(frozen=True)
class Shifted(Operator):
    """The matrix is A + diag(noise)."""

    matrix: Operator
    noise: np.ndarray

    def diagonal(self) -> np.ndarray:
        return np.asarray(self.matrix.diagonal() + self.noise)

    def columns(self, index: np.ndarray) -> np.ndarray:
        columns = np.array(self.matrix.columns(index))
        columns[index, np.arange(len(index))] += self.noise[index].astype(columns.dtype)
        return columns

    def product(self, v: np.ndarray) -> np.ndarray:
        return np.asarray(self.matrix.product(v) + self.noise[:, None] * v)

    def verify(self) -> None:
        self.matrix.verify()


def triangle_bytes(n: int, dtype: np.dtype) -> int:
    """Return the bytes of one triangle of an (n, n) matrix in blocks."""
    return dtype.itemsize * (n * (n + SIZE) // 2 if n > SIZE else n * n)


def fits(n: int, dtype: np.dtype, *, beside: int = 0) -> bool:
    """Return True if `in_memory` has room, with RESERVE and the bytes `beside` to spare."""
    return triangle_bytes(n, dtype) + beside + RESERVE <= memory.available()


def choose_operator(
    kernel: PairKernel, X: np.ndarray, dtype: np.dtype, *, beside: int = 0, report: Report = no_progress
) -> Tiles | Recomputed:
    """Keep K(X, X) in tiles of a dtype where there is room for them and for the bytes `beside`; else keep none."""
    if not fits(len(X), dtype, beside=beside):
        return Recomputed(kernel, X)
    return in_memory(kernel, X, dtype, report=report)


def in_memory(kernel: PairKernel, X: np.ndarray, dtype: np.dtype, *, report: Report = no_progress) -> Tiles:
    """Keep K(X, X) in tiles of a dtype, computed in X's.

    Before it is rounded to a smaller dtype, the mean of the first block is taken off: a network's bias is a constant of
    all entries that would use up most of their digits. Raises: MemoryError: no room; ValueError: as `blocks`.
    """
    n = len(X)
    memory.require(triangle_bytes(n, dtype), f"one triangle of a {n} x {n} {dtype} kernel matrix")
    held: list[RowBlock] = []
    offset = 0.0
    for row, column, values in blocks(kernel, X, report=report):
        if dtype.itemsize < X.dtype.itemsize:
            offset = offset if held else float(values.mean())
            values = (values - offset).astype(dtype)
        held.append(RowBlock(row, column, values))
    return Tiles(kernel, X, tuple(held), offset)
