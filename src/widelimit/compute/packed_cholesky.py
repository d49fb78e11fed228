"""Cholesky of a matrix in rectangular full packed storage, block column by block column.

LAPACK's pftrf does the same by one syrk on half of the matrix, in which OpenBLAS (0.3.30, two threads) ends the process
with a segmentation fault at n = 60,000. Here products are of a block column with what stands to its left, in strips,
and only triangles of one block are factorised, or solved with, at once.

folded: the lower triangle of the (n, n) matrix as LAPACK's TRANSR = 'N', UPLO = 'L' folds it, columns as rows:
L[i, j] at [j, i + (n even)] for the first (n + 1)//2 columns j, and the last n//2 rows and columns in the triangle
that these leave free.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import get_lapack_funcs

BLOCK = 2048
"""Columns of a block."""
STRIP = 4096
"""Rows of a block column that are updated at once: 64 MiB of float64 beside the matrix."""


def factorise(folded: np.ndarray, n: int) -> int:
    """A = L L^T in place; 0, or the order of the leading minor that is not positive."""
    first, tall, rest = _views(folded, n)
    for start, end in _blocks(first):
        order = _column_of_tall(tall, start, end, n)
        if order:
            return order
    for start, end in _blocks(n - first):
        order = _column_of_rest(tall[:, first:], rest, start, end)
        if order:
            return first + order
    return 0


def whiten(folded: np.ndarray, n: int, b: np.ndarray) -> np.ndarray:
    """L^{-1} b, (n, c) -> (n, c), in L's dtype."""
    first, tall, rest = _views(folded, n)
    out = np.array(b, folded.dtype)
    lower = out[first:]
    for s, e in _blocks(first):
        out[s:e] = _solved(tall[s:e, s:e].T, out[s:e])
        out[e:] -= tall[s:e, e:].T @ out[s:e]
    for s, e in _blocks(n - first):
        lower[s:e] = _solved(rest[s:e, s:e], lower[s:e])
        lower[e:] -= rest[e:, s:e] @ lower[s:e]
    return out


def solve(folded: np.ndarray, n: int, b: np.ndarray) -> np.ndarray:
    """A^{-1} b = L^{-T} L^{-1} b, (n, c) -> (n, c), in L's dtype."""
    first, tall, rest = _views(folded, n)
    out = whiten(folded, n, b)
    lower = out[first:]
    for s, e in reversed(_blocks(n - first)):
        lower[s:e] -= rest[e:, s:e].T @ lower[e:]
        lower[s:e] = _solved(rest[s:e, s:e], lower[s:e], trans=1)
    for s, e in reversed(_blocks(first)):
        out[s:e] -= tall[s:e, e:] @ out[e:]
        out[s:e] = _solved(tall[s:e, s:e].T, out[s:e], trans=1)
    return out


def _views(folded: np.ndarray, n: int) -> tuple[int, np.ndarray, np.ndarray]:
    """The columns that are stored as they are, these, tall[j, i] = L[i, j], and the others, rest[i, j] = L[i, j]."""
    first, odd = (n + 1) // 2, n % 2
    return first, folded[:, 1 - odd :], folded[odd:, : n - first]


def _blocks(columns: int) -> list[tuple[int, int]]:
    return [(start, min(start + BLOCK, columns)) for start in range(0, columns, BLOCK)]


def _solved(root: np.ndarray, b: np.ndarray, *, trans: int = 0) -> np.ndarray:
    """L^{-1} b, or L^{-T} b, from the lower triangle of a block."""
    return np.asarray(get_lapack_funcs("trtrs", (root,))(root, b, lower=1, trans=trans)[0])


def _column_of_tall(tall: np.ndarray, start: int, end: int, n: int) -> int:
    """Columns start to end of L, all their rows; tall[j, i] = L[i, j]."""
    left, own = tall[:start, start:end], tall[start:end, start:end]
    own -= np.triu(left.T @ left)
    root, order = _upper_root(own)
    if order:
        return start + order
    for low in range(end, n, STRIP):
        rows = slice(low, min(low + STRIP, n))
        tall[start:end, rows] = _solved(root.T, tall[start:end, rows] - left.T @ tall[:start, rows])
    return 0


def _column_of_rest(below: np.ndarray, rest: np.ndarray, start: int, end: int) -> int:
    """The same for the last rows and columns; rest[i, j] = L[i, j], below[c, i] the rows of the first columns c."""
    left, across, own = rest[start:end, :start], below[:, start:end], rest[start:end, start:end]
    own -= np.tril(across.T @ across + left @ left.T)
    root, order = _upper_root(own.T)
    if order:
        return start + order
    last = below.shape[1]
    for low in range(end, last, STRIP):
        rows = slice(low, min(low + STRIP, last))
        panel = rest[rows, start:end] - below[:, rows].T @ across - rest[rows, :start] @ left.T
        rest[rows, start:end] = _solved(root.T, panel.T).T
    return 0


def _upper_root(block: np.ndarray) -> tuple[np.ndarray, int]:
    """R with R^T R = block, from and into its upper triangle alone: what is below belongs to other columns."""
    root, order = get_lapack_funcs("potrf", (block,))(np.triu(block), lower=0, clean=1)
    if not order:
        block[:] = np.tril(block, -1) + root
    return root, int(order)
