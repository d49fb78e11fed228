"""A symmetric matrix is multiplied with vectors: tiles in memory, rows on disk, or entries computed each time."""

import abc
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self, final

import numpy as np

from widelimit import memory
from widelimit.compute import linalg, stored_rows, threads, tiles, workers
from widelimit.compute.stored_rows import StoredRows
from widelimit.compute.tiles import PairKernel
from widelimit.progress import KERNEL, Report, no_progress

SIZE = 2048
"""Rows of a block. A product with a vector reads a block from memory once, and from the cache for its mirror image."""
RESERVE = 2**29
"""Bytes left free for tiles being computed, test points and right-hand sides."""


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
    """The symmetric matrix is read by blocks, in tasks that do not depend on who runs them: nor do the bits."""

    rows: Any
    """Has a shape (n, n), and [i:j] gives rows as an array: a NumPy array, a memmap, a Zarr array."""
    mark: np.ndarray | None = None
    """A caller's matrix: its product with `_probe` when it was given, (n, 1), to detect changes without a copy."""
    client: Any = None
    """It runs the tasks; None: threads of this process. It cannot be pickled: a copy has none."""

    def __reduce__(self) -> tuple[Any, ...]:
        return StoredOperator, (self.rows, self.mark)

    def diagonal(self) -> np.ndarray:
        return np.concatenate(self._each(stored_rows.diagonal, [(part,) for part in self._stored.spans()]))

    def columns(self, index: np.ndarray) -> np.ndarray:
        within = [np.flatnonzero((part.start <= index) & (index < part.stop)) for part in self._stored.spans()]
        places = [at for at in within if len(at)]
        out = np.empty((self._stored.n, len(index)), self.rows.dtype)
        for at, rows in zip(places, self._each(stored_rows.chosen, [(index[at],) for at in places]), strict=True):
            out[:, at] = rows.T
        return out

    def product(self, v: np.ndarray) -> np.ndarray:
        v = np.ascontiguousarray(v)  # as pickling does; BLAS has other bits for other strides
        return np.concatenate(self._each(stored_rows.product, [(part, v) for part in self._stored.tasks()]))

    def dense(self) -> np.ndarray:
        """Read all of it, (n, n), float64, into an array of its own."""
        n = self._stored.n
        memory.require(8.0 * n * n, f"a {n} x {n} matrix")
        whole = slice(0, n)
        return self._stored.block(whole, whole)

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

    @property
    def _stored(self) -> StoredRows:
        return StoredRows(self.rows, stored_rows.BLOCK)

    def _each(self, function: Callable[..., np.ndarray], arguments: list[tuple[Any, ...]]) -> list[np.ndarray]:
        """Call the function with the matrix and each of the arguments, one BLAS thread each."""
        tasks = [(self._stored.sent(self.client), *each) for each in arguments]
        if self.client is None and len(tasks) == 1:  # no thread is worth starting
            with threads.single():
                return [function(*tasks[0])]
        return workers.gather(function, tasks, self.client)


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
