"""This module computes Cholesky factors in rectangular full packed storage, block column by block column.

LAPACK's pftrf does the same by one syrk on half of the matrix, in which OpenBLAS (0.3.30, two threads) ends the process
with a segmentation fault at n = 60,000. Here products are of a block column with what stands to its left, in strips,
and only triangles of one block are factorised, or solved with, at once.

folded: the lower triangle of the (n, n) matrix as LAPACK's TRANSR = 'N', UPLO = 'L' folds it, columns as rows:
L[i, j] at [j, i + (n even)] for the first (n + 1)//2 columns j, and the last n//2 rows and columns in the triangle
that these leave free.
"""

import numpy as np
from scipy.linalg import get_blas_funcs, get_lapack_funcs

from widelimit.progress import FACTOR, Report, no_progress

BLOCK_COLUMNS = 2048
"""Columns of a block."""
STRIP = 4096
"""Rows of a block column that are updated at once: 64 MiB of float64 beside the matrix."""


def views(folded: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the (n + 1)//2 columns stored directly, tall[j, i] = L[i, j], and the square of the others, rest[i, j]."""
    return folded[:, 1 - n % 2 :], folded[n % 2 :, : n // 2]


def factorise(folded: np.ndarray, n: int, *, report: Report = no_progress) -> int:
    """Factorise A = L L^T in place; return 0, or the order of the leading minor that is not positive.

    report: called with the share of the flops, of 1, after every block of columns.
    """
    return factorise_parts(*views(folded, n), report)


def factorise_parts(tall: np.ndarray, rest: np.ndarray, report: Report) -> int:
    """Factorise as `factorise` does, from its `views`; a square matrix that holds A whole is (matrix[:0], matrix)."""
    first = len(tall)
    n = first + len(rest)
    room = np.empty(min(BLOCK_COLUMNS, n) * min(STRIP, n), rest.dtype)
    report(FACTOR, 0, 1)
    for column, before, columns in ((_column_of_tall, 0, first), (_column_of_rest, first, n - first)):
        for start, end in _blocks(columns):
            order = column(tall, rest, start, end, room)
            if order:
                return before + start + order
            report(FACTOR, _share((before + end) / n), 1)
    return 0


def _share(x: float) -> float:
    """Return the share of the flops when the share x of the columns is done: the j-th takes 2 j (n - j)."""
    return x * x * (3 - 2 * x)


def whiten(folded: np.ndarray, n: int, b: np.ndarray) -> np.ndarray:
    """Compute L^{-1} b, (n, c) -> (n, c), in L's dtype."""
    tall, rest = views(folded, n)
    first = len(tall)
    out = np.array(b, folded.dtype)
    lower = out[first:]
    for s, e in _blocks(first):
        out[s:e] = _solve_triangle(tall[s:e, s:e].T, out[s:e])
        out[e:] -= tall[s:e, e:].T @ out[s:e]
    for s, e in _blocks(n - first):
        lower[s:e] = _solve_triangle(rest[s:e, s:e], lower[s:e])
        lower[e:] -= rest[e:, s:e] @ lower[s:e]
    return out


def solve(folded: np.ndarray, n: int, b: np.ndarray) -> np.ndarray:
    """A^{-1} b = L^{-T} L^{-1} b, (n, c) -> (n, c), in L's dtype."""
    tall, rest = views(folded, n)
    first = len(tall)
    out = whiten(folded, n, b)
    lower = out[first:]
    for s, e in reversed(_blocks(n - first)):
        lower[s:e] -= rest[e:, s:e].T @ lower[e:]
        lower[s:e] = _solve_triangle(rest[s:e, s:e], lower[s:e], trans=1)
    for s, e in reversed(_blocks(first)):
        out[s:e] -= tall[s:e, e:] @ out[e:]
        out[s:e] = _solve_triangle(tall[s:e, s:e].T, out[s:e], trans=1)
    return out


def _blocks(columns: int) -> list[tuple[int, int]]:
    return [(start, min(start + BLOCK_COLUMNS, columns)) for start in range(0, columns, BLOCK_COLUMNS)]


def _solve_triangle(root: np.ndarray, b: np.ndarray, *, trans: int = 0) -> np.ndarray:
    """Compute L^{-1} b, or L^{-T} b, from the lower triangle of a block."""
    return np.asarray(get_lapack_funcs("trtrs", (root,))(root, b, lower=1, trans=trans)[0])


def _column_of_tall(tall: np.ndarray, _: np.ndarray, start: int, end: int, room: np.ndarray) -> int:
    """Compute columns start to end of L, all their rows; tall[j, i] = L[i, j]. Returns 0, or the order of a bad minor.

    NumPy's products come first, then SciPy's solves: each has threads of its own, which spin for a while after.
    """
    left, own = tall[:start], tall[start:end]
    known = left[:, start:end].T @ left[:, start:end]
    strips = _strips(end, tall.shape[1])
    for rows in strips:
        own[:, rows] -= np.matmul(left[:, start:end].T, left[:, rows], out=_part(room, end - start, rows))
    root, order = _root(own[:, start:end], known)
    for rows in [] if order else strips:
        part = _part(room, end - start, rows)
        part[:] = own[:, rows]
        own[:, rows] = _divide(part.T, root, side=1).T
    return order


def _column_of_rest(tall: np.ndarray, rest: np.ndarray, start: int, end: int, room: np.ndarray) -> int:
    """Do the same for the last rows and columns; rest[i, j] = L[i, j], below[c, i] the rows of the first columns c."""
    below = tall[:, len(tall) :]
    across, left, own = below[:, start:end], rest[start:end, :start], rest[:, start:end]
    known = across.T @ across + left @ left.T
    strips = _strips(end, len(rest))
    for rows in strips:
        part = _part(room, end - start, rows).reshape(-1, end - start)
        own[rows] -= np.matmul(below[:, rows].T, across, out=part)
        own[rows] -= np.matmul(rest[rows, :start], left.T, out=part)
    root, order = _root(own[start:end].T, known)
    for rows in [] if order else strips:
        part = _part(room, end - start, rows).reshape(-1, end - start)
        part[:] = own[rows]
        own[rows] = _divide(part.T, root, side=0).T
    return order


def _strips(start: int, end: int) -> list[slice]:
    """Return the rows below a block."""
    return [slice(low, min(low + STRIP, end)) for low in range(start, end, STRIP)]


def _part(room: np.ndarray, width: int, rows: slice) -> np.ndarray:
    """Return room for a strip of a block column."""
    return room[: width * (rows.stop - rows.start)].reshape(width, -1)


def _divide(part: np.ndarray, root: np.ndarray, *, side: int) -> np.ndarray:
    """Compute L^{-1} part (side 0), or part L^{-T} (side 1), in its place; in Fortran's order."""
    divide = get_blas_funcs("trsm", (root,))
    return np.asarray(divide(1.0, root, part, side=side, lower=1, trans_a=side, overwrite_b=1))


def _root(block: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, int]:
    """Find L with L L^T = block - known, in the place of `known`, from the upper triangle of the block, which gets L^T.

    What is below belongs to other columns. Only the lower triangle of L is meant.
    """
    np.subtract(block, known, out=known)
    root, order = get_lapack_funcs("potrf", (known,))(known.T, lower=1, clean=0, overwrite_a=1)
    if not order:
        for j in range(len(block)):
            block[j, j:] = root[j:, j]
    return root, int(order)
