"""One triangle of a symmetric matrix is folded into a rectangle, half of the memory, and factorised there.

Rectangular full packed format (Gustavson, Wasniewski, Dongarra and Langou 2010): with n1 = ceil(n/2), entry (r, c) of
the lower triangle stands at [c, r + shift] for c < n1, and at [r - n1 + 1 - shift, c - n1] for the others; the two
triangles on the diagonal close to a square. shift is 1 for even n, 0 for odd n. `packed_cholesky.views` are the parts.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import final

import numpy as np

from widelimit import memory
from widelimit.compute import packed_cholesky, threads
from widelimit.compute.linalg import EPS, Factor
from widelimit.compute.operators import RowBlock
from widelimit.progress import Report, no_progress


class NotPositiveDefinite(ArithmeticError):
    """The error is raised if a pivot is not above its rounding; it holds the order of the leading minor."""

    def __init__(self, order: int) -> None:
        self.order = order


@final
@dataclass(frozen=True)
class Packed(Factor):
    """A = L L^T, `folded` holds L: n (n + 1)/2 numbers, float64, or float32 to precondition."""

    folded: np.ndarray
    rank: int
    spread: float

    def solve(self, b: np.ndarray) -> np.ndarray:
        with threads.limit(threads.work(self.rank, self.rank, b.shape[1])):
            return packed_cholesky.solve(self.folded, self.rank, b)

    def whiten(self, b: np.ndarray) -> np.ndarray:
        with threads.limit(threads.work(self.rank, self.rank, b.shape[1])):
            return packed_cholesky.whiten(self.folded, self.rank, b)

    def log_determinant(self) -> float:
        parts = packed_cholesky.views(self.folded, self.rank)
        return float(2 * sum(np.sum(np.log(part.diagonal())) for part in parts))


def _parts(block: RowBlock, first: int) -> Iterator[RowBlock]:
    """Split the block where its rows and columns cross n1 = first; what lies above the diagonal is left out."""
    r, c, values = block
    rows = [0, min(max(first - r, 0), len(values)), len(values)]
    columns = [0, min(max(first - c, 0), values.shape[1]), values.shape[1]]
    for i, j in pairwise(rows):
        for k, m in pairwise(columns):
            if i < j and k < m and r + i >= c + k:
                yield RowBlock(r + i, c + k, values[i:j, k:m])


def _place(tall: np.ndarray, rest: np.ndarray, block: RowBlock) -> None:
    """Write a block of the lower triangle: on the diagonal (its upper half is not read) or below it."""
    first = len(tall)
    for r, c, values in _parts(block, first):
        lower, shift = (tall.T, 0) if c < first else (rest, first)
        there = lower[r - shift :, c - shift :][: len(values), : values.shape[1]]
        if r == c:
            np.copyto(there, values, where=np.tri(len(values), dtype=bool), casting="same_kind")
        else:
            there[:] = values


def require(n: int, dtype: np.dtype) -> None:
    """Refuse a folded (n, n) triangle that does not fit. Raises: MemoryError."""
    memory.require(dtype.itemsize * n * (n + 1) / 2, f"one triangle of a {n} x {n} {dtype} kernel matrix")


def fold(blocks: Iterable[RowBlock], n: int, dtype: np.dtype) -> np.ndarray:
    """Write the blocks, which cover the lower triangle of an (n, n) matrix once, to a new rectangle."""
    folded = np.empty(((n + 1) // 2, n + 1 - n % 2), dtype)
    views = packed_cholesky.views(folded, n)
    for block in blocks:
        _place(*views, block)
    return folded


def factorise(
    blocks: Iterable[RowBlock], noise: np.ndarray, dtype: np.dtype, *, report: Report = no_progress
) -> Packed:
    """Factorise the matrix of these blocks of its lower triangle, plus diag(noise): never more than half of it is held.

    The blocks cover the lower triangle once; noise is (n,), dtype that of the factor, report as of `packed_cholesky`.

    Raises: MemoryError: half of the matrix does not fit; NotPositiveDefinite: a pivot is at most n eps of its diagonal
    entry.
    """
    n = len(noise)
    require(n, dtype)
    folded = fold(blocks, n, dtype)
    tall, rest = packed_cholesky.views(folded, n)
    before = np.concatenate([tall.diagonal(), rest.diagonal()]) + noise
    np.fill_diagonal(tall, before[: len(tall)])
    np.fill_diagonal(rest, before[len(tall) :])
    with threads.limit(n**3 / 3):
        order = packed_cholesky.factorise(folded, n, report=report)
    if order > 0:
        raise NotPositiveDefinite(order)
    pivots = np.concatenate([tall.diagonal(), rest.diagonal()]).astype(np.float64) ** 2
    eps = float(np.finfo(dtype).eps)
    weak = pivots <= n * eps * before
    if weak.any() and eps == EPS:
        raise NotPositiveDefinite(int(np.argmax(weak)) + 1)
    return Packed(folded, n, float(np.sqrt((before / pivots).max(initial=1.0))))
