"""A kernel matrix is cut into tiles: by its shape, its dtype, the cores and a budget of memory."""

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from widelimit import memory

BUDGET = 256 * 2**20
"""Bytes that a Gram matrix may need beyond itself."""
LARGEST = 1024
"""Rows of a tile, at most: its computation takes a hundred times as long as the start of a thread for it."""
SMALLEST = 8
BESIDE = 32
"""Numbers that an encoded input has besides its coordinates, unless its kernel states them."""
COPIES = 3
"""Tiles alive in one worker: the compiled function's result, what its loop carries, and what the writer holds."""


def usable_cores() -> int:
    """Return the cores this process may run on, or, on systems without affinity, all cores."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@final
@dataclass(frozen=True)
class TilePlan:
    """A plan has tiles of `edge` x `edge` of an (n, m) matrix; with `symmetric`, those on and below the diagonal."""

    n: int
    m: int
    edge: int
    """Rows and columns of a tile; the last ones of the matrix may be smaller."""
    workers: int
    group: int
    """Blocks of rows whose features are held at once, twice: of the rows and of the columns in work."""
    symmetric: bool

    @property
    def row_blocks(self) -> int:
        """Return the number of blocks of `edge` rows."""
        return -(-self.n // self.edge)

    @property
    def column_blocks(self) -> int:
        """Return the number of blocks of `edge` columns."""
        return -(-self.m // self.edge)

    @property
    def count(self) -> int:
        """Return the number of tiles to compute."""
        rows, columns = self.row_blocks, self.column_blocks
        return rows * (rows + 1) // 2 if self.symmetric else rows * columns

    def rows(self, i: int) -> slice:
        """Return the rows of block i (or the columns: blocks are square)."""
        return slice(i * self.edge, (i + 1) * self.edge)

    def groups(self) -> Iterator[tuple[range, range, list[tuple[int, int]]]]:
        """Return (blocks of rows, blocks of columns, their tiles), every tile once.

        One tile on the diagonal is first, then those off it (the largest tasks): both kinds compile side by side.
        """
        for left in range(0, self.column_blocks, self.group):
            columns = range(left, min(left + self.group, self.column_blocks))
            for top in range(left if self.symmetric else 0, self.row_blocks, self.group):
                rows = range(top, min(top + self.group, self.row_blocks))
                tiles = [(i, j) for i in rows for j in columns if not self.symmetric or j < i]
                diagonal = [(i, i) for i in rows if self.symmetric and i in columns]
                yield rows, columns, diagonal[:1] + tiles + diagonal[1:]


def tile_edge(longest: int) -> int:
    """Return the rows of the tiles of a matrix with `longest` rows or columns, if memory allows."""
    edge = min(LARGEST, max(SMALLEST, 1 << (longest - 1).bit_length()))
    return edge // 2 if edge == LARGEST and longest <= 2 * LARGEST else edge


def tile_plan(
    n: int,
    m: int,
    per_input: int,
    dtype: Any,
    *,
    symmetric: bool,
    budget: float,
    per_pair: int = 1,
    largest: int = LARGEST,
) -> TilePlan:
    """Make the plan of an (n, m) matrix.

    Tiles have `largest` rows, fewer for a small matrix (half of it, as a power of two, so that there is work for two)
    and for a small budget: bytes of everything but the matrix. A quarter of it is for features, which are computed
    again where not all fit. per_input and per_pair are `PairKernel.numbers_per_input` and
    `PairKernel.numbers_per_pair`; if `symmetric`, only the tiles on and below the diagonal are computed.

    Raises: MemoryError: the budget is too small for one tile.
    """
    size = np.dtype(dtype).itemsize
    edge = min(tile_edge(max(n, m)), largest)
    while edge > SMALLEST and _bytes_needed(edge, per_input, per_pair, size) > budget:
        edge //= 2
    needed = _bytes_needed(edge, per_input, per_pair, size)
    if needed > budget:
        raise MemoryError(
            f"a budget of {budget / 2**20:.3g} MiB is too small for one tile: {edge} x {edge} numbers of {dtype} and "
            f"the features of their inputs need {needed / 2**20:.3g} MiB; the default is {BUDGET // 2**20} MiB."
        )
    blocks = max(-(-n // edge), -(-m // edge))
    group = max(1, min(blocks, int(budget / 4 / (2 * edge * per_input * size))))
    spare = budget - 2 * group * edge * per_input * size
    workers = max(1, min(usable_cores(), int(spare / (COPIES * per_pair * edge * edge * size))))
    return TilePlan(n, m, edge, workers, group, symmetric)


def usual_budget(per_input: int, per_pair: int, dtype: Any) -> float:
    """Return BUDGET, or more where inputs are so long that not one smallest tile fits."""
    return max(BUDGET, _bytes_needed(SMALLEST, per_input, per_pair, np.dtype(dtype).itemsize))


def _bytes_needed(edge: int, per_input: int, per_pair: int, size: int) -> int:
    """Return the bytes of one worker on one tile, with the features of its rows and columns."""
    return size * edge * (COPIES * per_pair * edge + 2 * per_input)


def require(n: int, m: int, dtype: Any) -> None:
    """Refuse an (n, m) matrix that does not fit. Raises: MemoryError."""
    memory.require(np.dtype(dtype).itemsize * n * m, f"a {n} x {m} {np.dtype(dtype)} kernel matrix")


def require_matrices(n: int, matrices: float, what: str) -> None:
    """Refuse work that holds so many (n, n) float64 matrices at once, before the first is made. Raises: MemoryError."""
    memory.require(8.0 * matrices * n * n, f"{what} ({matrices:g} matrices of {n} x {n} float64)")
