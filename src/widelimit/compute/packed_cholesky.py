"""Cholesky of a matrix in rectangular full packed storage, block column by block column.

LAPACK's pftrf does the same by one syrk on half of the matrix, in which OpenBLAS (0.3.30, two threads) ends the process
with a segmentation fault at n = 60,000. Here products are of a block column with what stands to its left, in strips,
and only triangles of one block are factorised at once.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import get_lapack_funcs

BLOCK = 2048
"""Columns of a block."""
STRIP = 4096
"""Rows of a block column that are updated at once: 64 MiB of float64 beside the matrix."""


def factorise(folded: np.ndarray, n: int) -> int:
    """A = L L^T in place; 0, or the order of the leading minor that is not positive.

    folded: the lower triangle of the (n, n) matrix as LAPACK's TRANSR = 'N', UPLO = 'L' folds it, columns as rows:
    L[i, j] at [j, i + (n even)] for the first (n + 1)//2 columns j, and the last n//2 rows and columns in the triangle
    that these leave free.
    """
    first, odd = (n + 1) // 2, n % 2
    tall, rest = folded[:, 1 - odd :], folded[odd:]
    for start in range(0, first, BLOCK):
        order = _column_of_tall(tall, start, min(start + BLOCK, first), n)
        if order:
            return order
    for start in range(0, n - first, BLOCK):
        order = _column_of_rest(tall[:, first:n], rest, start, min(start + BLOCK, n - first))
        if order:
            return first + order
    return 0


def _column_of_tall(tall: np.ndarray, start: int, end: int, n: int) -> int:
    """Columns start to end of L, all their rows; tall[j, i] = L[i, j]."""
    left, own = tall[:start, start:end], tall[start:end, start:end]
    own -= np.triu(left.T @ left)
    root, order = _upper_root(own)
    if order:
        return start + order
    solve = get_lapack_funcs("trtrs", (root,))
    for low in range(end, n, STRIP):
        rows = slice(low, min(low + STRIP, n))
        tall[start:end, rows] = solve(root, tall[start:end, rows] - left.T @ tall[:start, rows], trans=1)[0]
    return 0


def _column_of_rest(below: np.ndarray, rest: np.ndarray, start: int, end: int) -> int:
    """The same for the last rows and columns; rest[i, j] = L[i, j], below[c, i] the rows of the first columns c."""
    left, across, own = rest[start:end, :start], below[:, start:end], rest[start:end, start:end]
    own -= np.tril(across.T @ across + left @ left.T)
    root, order = _upper_root(own.T)
    if order:
        return start + order
    solve = get_lapack_funcs("trtrs", (root,))
    last = below.shape[1]
    for low in range(end, last, STRIP):
        rows = slice(low, min(low + STRIP, last))
        panel = rest[rows, start:end] - below[:, rows].T @ across - rest[rows, :start] @ left.T
        rest[rows, start:end] = solve(root, panel.T, trans=1)[0].T
    return 0


def _upper_root(block: np.ndarray) -> tuple[np.ndarray, int]:
    """R with R^T R = block, from and into its upper triangle alone: what is below belongs to other columns."""
    root, order = get_lapack_funcs("potrf", (block,))(np.triu(block), lower=0, clean=1)
    if not order:
        block[:] = np.tril(block, -1) + root
    return root, int(order)
