"""This module factorises kernel matrices, in float64. No jitter is ever added.

A matrix that is positive definite to rounding is factorised by Cholesky, in place. One that is not is taken by its
eigenvectors, in the minimum-norm sense: directions whose eigenvalue is zero to rounding are left out, and the
rank is reported.
"""

import abc
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import final

import numpy as np
import scipy.linalg

from widelimit import memory
from widelimit.compute import packed_cholesky, threads
from widelimit.progress import Report, no_progress

EPS = float(np.finfo(np.float64).eps)
WHOLE = 16_000
"""Rows that LAPACK factorises in one call, in 14 s at 1e11 flops a second: until it is done Ctrl-C has no effect."""


class Factor(abc.ABC):
    """The factor belongs to a positive semi-definite matrix A (n, n)."""

    rank: int
    """Numerical rank of A."""
    spread: float
    """Estimate of sqrt(condition number) of A on its range: how much `whiten` magnifies rounding."""

    @abc.abstractmethod
    def solve(self, b: np.ndarray) -> np.ndarray:
        """Compute A^+ b, the minimum-norm least-squares solution; (n, c) -> (n, c)."""

    @abc.abstractmethod
    def whiten(self, b: np.ndarray) -> np.ndarray:
        """Compute W b with W^T W = A^+; (n, m) -> (rank, m)."""

    @abc.abstractmethod
    def log_determinant(self) -> float:
        """Return log det A; -inf if A is singular."""

    def outside(self, b: np.ndarray) -> np.ndarray:
        """Return the part of b outside of the range of A, 0 for a regular one; (n, c) -> (n, c)."""
        return np.zeros_like(b)

    def form(self, b: np.ndarray) -> np.ndarray:
        """Compute b^T A^+ b, (n, m) -> (m, m)."""
        whitened = self.whiten(b)
        return threads.product(whitened.T, whitened)

    def squares(self, b: np.ndarray) -> np.ndarray:
        """Compute the diagonal of `form`, (n, m) -> (m,); b may be overwritten."""
        whitened = self.whiten(b)
        return np.asarray(np.einsum("ij,ij->j", whitened, whitened))


@final
@dataclass(frozen=True)
class Cholesky(Factor):
    """A = L L^T; `lower` (n, n), in C's order, holds L in its lower triangle, and what is above is not looked at."""

    lower: np.ndarray
    rank: int
    spread: float

    def solve(self, b: np.ndarray) -> np.ndarray:
        with _solving(self.lower, b):
            return np.asarray(scipy.linalg.cho_solve((self.lower.T, False), b, check_finite=False))

    def whiten(self, b: np.ndarray) -> np.ndarray:
        with _solving(self.lower, b):
            return np.asarray(scipy.linalg.blas.dtrsm(1.0, self.lower.T, b, trans_a=1))

    def squares(self, b: np.ndarray) -> np.ndarray:
        with _solving(self.lower, b):
            whitened = scipy.linalg.blas.dtrsm(1.0, self.lower.T, b, trans_a=1, overwrite_b=1)
        return np.asarray(np.einsum("ij,ij->j", whitened, whitened))

    def log_determinant(self) -> float:
        return float(2 * np.sum(np.log(np.diagonal(self.lower))))


@final
@dataclass(frozen=True)
class Eigen(Factor):
    """A = V diag(values) V^T over the eigenvalues above their rounding; V (n, rank)."""

    values: np.ndarray
    vectors: np.ndarray
    rank: int
    spread: float

    def solve(self, b: np.ndarray) -> np.ndarray:
        return threads.product(self.vectors, threads.product(self.vectors.T, b) / self.values[:, None])

    def whiten(self, b: np.ndarray) -> np.ndarray:
        return np.asarray(threads.product(self.vectors.T, b) / np.sqrt(self.values)[:, None])

    def outside(self, b: np.ndarray) -> np.ndarray:
        return np.asarray(b - threads.product(self.vectors, threads.product(self.vectors.T, b)))

    def log_determinant(self) -> float:
        return float(np.sum(np.log(self.values))) if self.rank == len(self.vectors) else -np.inf


def _solving(root: np.ndarray, b: np.ndarray) -> AbstractContextManager[None]:
    """Limit BLAS to the threads that a solve with an (n, n) triangle and (n, c) right-hand sides is worth."""
    return threads.limit(threads.work(len(root), len(root), b.shape[1]))


def ignore_overflow() -> np.errstate:
    """Ignore overflow where inputs may have any size: the result shows it, and is refused there."""
    return np.errstate(over="ignore", invalid="ignore")


def normalise(b: np.ndarray, axis: int | None = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return b 2^-e and e, with the largest entry along the axis in [1/2, 1): squares stay in float64's range.

    Exact, but for entries that are 1e-308 of the largest. e is 0 where b is.
    """
    exponent = np.frexp(np.abs(b).max(axis=axis, initial=0.0))[1]
    return np.ldexp(b, -exponent), exponent


def rescale(values: np.ndarray, exponent: np.ndarray) -> np.ndarray:
    """Return values 2^e: this undoes `normalise`; inf beyond float64's range."""
    with np.errstate(over="ignore", under="ignore"):
        return np.asarray(np.ldexp(values, exponent))


def relative_size(residual: np.ndarray, b: np.ndarray) -> float:
    """Return |residual|/|b|, the largest over columns, (n, c) each; 0 where b is."""
    left, size = np.linalg.norm(residual, axis=0), np.linalg.norm(b, axis=0)
    return float(np.divide(left, size, out=np.zeros_like(left), where=size > 0).max())


def rounding(n: int, largest: float) -> float:
    """Return n eps times the largest entry or eigenvalue: the rounding of a zero eigenvalue or pivot."""
    return n * EPS * largest


def eigenpairs(matrix: np.ndarray, error: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Compute eigenvalues (ascending) and eigenvectors of a semi-definite matrix; `matrix` is overwritten.

    error: of the entries, as of `eigenvalue_error`. Raises: MemoryError: no room for the eigenvectors and their
    workspace; ValueError: as `semi_definite`.
    """
    bound = eigenvalue_error(matrix, error)
    values, vectors = decompose(matrix)
    return semi_definite(values, bound), vectors


def eigenvalue_error(matrix: np.ndarray, error: float) -> float:
    """Bound the error of eigenvalues if entries have an `error`, relative to the largest on the diagonal."""
    return len(matrix) * error * float(np.diagonal(matrix).max()) if error else 0.0


def decompose(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute eigenvalues and eigenvectors of a symmetric matrix, as `eigenpairs`, of any sign."""
    n = len(matrix)
    memory.require(3 * 8 * n * n, f"the eigenvectors of a {n} x {n} matrix")
    with threads.limit_decomposition(n):
        values, vectors = scipy.linalg.eigh(matrix, overwrite_a=True, check_finite=False, driver="evd")
    return values, vectors


def semi_definite(values: np.ndarray, error: float = 0.0) -> np.ndarray:
    """Return the eigenvalues (ascending) of a matrix that is positive semi-definite to rounding, and to `error`.

    error: bound on the error of eigenvalues that the entries bring (`eigenvalue_error`). Where one is negative beyond
    rounding, but within that error, all eigenvalues of its size or less are 0.

    Raises: ValueError: one is negative beyond both: the kernel is not positive semi-definite.
    """
    if not indefinite(values):
        return values
    refuse_negative(values, error)
    return np.where(abs(values) <= -values[0], 0.0, values)


def indefinite(values: np.ndarray, error: float = 0.0) -> bool:
    """Return True if the smallest eigenvalue (ascending) is negative beyond rounding of a decomposition and `error`."""
    return bool(values[0] < -10 * rounding(len(values), max(values[-1], 0.0)) - error)


def refuse_negative(values: np.ndarray, error: float = 0.0) -> None:
    """Refuse eigenvalues (ascending) of a matrix that is not positive semi-definite. Raises: ValueError."""
    if indefinite(values, error):
        raise ValueError(
            f"the kernel matrix is not positive semi-definite: its smallest eigenvalue is {values[0]:.3g}, its largest "
            f"{values[-1]:.3g}."
        )


def eigenvalues(matrix: np.ndarray, error: float = 0.0) -> np.ndarray:
    """Compute eigenvalues (ascending) as they come, without vectors, in a fifth of the time; `matrix` is overwritten.

    error: as of `eigenpairs`. Raises: ValueError: one is negative beyond rounding and that.
    """
    bound = eigenvalue_error(matrix, error)
    with threads.limit_decomposition(len(matrix)):
        values = np.asarray(scipy.linalg.eigh(matrix, eigvals_only=True, overwrite_a=True, check_finite=False))
    refuse_negative(values, bound)
    return values


def factorise(matrix: np.ndarray, *, report: Report = no_progress) -> Factor:
    """Factorise a symmetric positive semi-definite (n, n) matrix, which is overwritten: `cholesky`, or else `eigen`.

    report: as of `cholesky`. Raises: as `eigen`.
    """
    diagonal = np.diagonal(matrix).copy()
    factor = cholesky(matrix, report=report)
    if factor is not None:
        return factor
    np.fill_diagonal(matrix, diagonal)
    whole = np.triu(matrix)
    whole += np.triu(matrix, 1).T
    return eigen(whole)


def cholesky(matrix: np.ndarray, *, report: Report = no_progress) -> Cholesky | None:
    """Factorise an (n, n) float64 matrix in C's order in the place of its lower triangle; nothing else of it is read.

    None if it is not positive definite to rounding: a pivot is at most n eps of its diagonal entry. No matrix with a
    NaN or an infinite entry has a factor. report: as of `packed_cholesky.factorise`, above WHOLE rows.
    """
    n = len(matrix)
    diagonal = np.diagonal(matrix).copy()
    with threads.limit(n**3 / 3):
        if n > WHOLE:
            lower, info = matrix, packed_cholesky.factorise_parts(matrix[:0], matrix, report)
        else:  # the transpose is in Fortran's order, so that LAPACK works in place
            upper, info = scipy.linalg.lapack.dpotrf(matrix.T, lower=0, clean=0, overwrite_a=1)
            lower = upper.T
    pivots = np.diagonal(lower)
    if info == 0 and (pivots**2 > n * EPS * diagonal).all():
        return Cholesky(lower, n, float(np.sqrt((diagonal / pivots**2).max())))
    return None


def eigen(matrix: np.ndarray, error: float = 0.0) -> Eigen:
    """Factorise a symmetric positive semi-definite (n, n) matrix of any rank; it is overwritten.

    error: as of `eigenpairs`. Raises: as `eigenpairs`, and ValueError: an entry is NaN or infinite.
    """
    refuse_non_finite(matrix)
    values, vectors = eigenpairs(matrix, error)
    kept = values > rounding(len(values), values[-1])
    values, vectors = values[kept], vectors[:, kept]
    spread = float(np.sqrt(values[-1] / values[0])) if len(values) else 1.0
    return Eigen(values, vectors, len(values), spread)


def refuse_non_finite(matrix: np.ndarray) -> None:
    """Refuse an entry of K(X, X) that is NaN or infinite. Raises: ValueError."""
    with np.errstate(over="ignore", invalid="ignore"):
        suspect = not np.isfinite(matrix.sum())  # a quarter of the time of a look at every entry
    if suspect and not np.isfinite(matrix).all():
        i, j = np.argwhere(~np.isfinite(matrix))[0]
        raise ValueError(f"the kernel is {matrix[i, j]} at rows {i} and {j} of X; scale X or the weights down.")


def non_negative(variance: np.ndarray, error: np.ndarray) -> np.ndarray:
    """Return the variances, 0 where a difference left no more than its own rounding `error` (same shape).

    NaN where either is not finite: what overflowed is refused by the caller, who knows the inputs. Below float64's
    smallest normal number all is rounding.

    Raises: ArithmeticError: a variance is negative beyond rounding: the kernel is not positive semi-definite.
    """
    known = np.isfinite(variance) & np.isfinite(error)
    if not known.all():
        variance, error = np.where(known, variance, np.nan), np.where(known, error, 0.0)
    error = np.maximum(error, np.finfo(np.float64).tiny)
    if (variance < -error).any():
        worst = int(np.nanargmin(variance + error))
        raise ArithmeticError(
            f"variance {worst} came out as {variance.flat[worst]:.3g}, beyond its rounding error "
            f"{error.flat[worst]:.1g}: the kernel is not positive semi-definite, or so ill-conditioned that a larger "
            "noise is needed."
        )
    return np.where(variance <= error, 0.0, variance)


def square_root(covariance: np.ndarray, error: float) -> np.ndarray:
    """Find R with R R^T = covariance, (m, m), whose variances it has even where eigenvalues are within `error` of 0.

    R is the positive semi-definite one but for that, a continuous function of the covariance: signs and bases of
    eigenvectors, which its last bits decide, are not in it.

    Raises: as `non_negative`.
    """
    with threads.limit_decomposition(len(covariance)):
        values, vectors = scipy.linalg.eigh(covariance, check_finite=False)
    non_negative(values, np.full_like(values, error))
    root = threads.product(vectors * np.sqrt(np.maximum(values, 0.0)), vectors.T)
    variance, found = np.diagonal(covariance), np.einsum("ij,ij->i", root, root)
    return np.asarray(root * np.sqrt(np.divide(variance, found, out=np.zeros_like(found), where=found > 0))[:, None])


def gaussian_draws(mean: np.ndarray, covariance: np.ndarray, error: float, count: int, seed: int) -> np.ndarray:
    """Draw from N(mean, covariance) for each column of the mean (m, c): (count, m, c). Raises: as `square_root`."""
    root = square_root(covariance, error)
    normal = np.random.default_rng(seed).standard_normal((count, *mean.shape))
    return np.asarray(mean + np.einsum("ij,sjc->sic", root, normal))


@final
@dataclass(frozen=True)
class PivotedCholesky:
    """A = root root^T with root (n, rank): Cholesky with complete pivoting, stopped where only rounding is left."""

    root: np.ndarray
    rank: int


def pivoted_cholesky(matrix: np.ndarray, error: np.ndarray) -> PivotedCholesky:
    """Factorise a positive semi-definite (n, n) matrix of any rank.

    `error` (n,) is the rounding error of each diagonal entry: each row is taken in units of the square root of its own,
    and a pivot of at most one unit is 0. The rank is the number of pivots above.

    Raises: ArithmeticError: a diagonal entry is negative beyond its rounding.
    """
    diagonal = non_negative(np.diagonal(matrix), error)
    live = np.flatnonzero(diagonal > 0)
    root = np.zeros_like(matrix)
    if not len(live):
        return PivotedCholesky(root[:, :0], 0)
    unit = np.sqrt(error[live])
    scaled = np.asfortranarray(matrix[np.ix_(live, live)] / unit[:, None] / unit)
    with threads.limit(len(live) ** 3 / 3):
        lower, order, rank, _ = scipy.linalg.lapack.dpstrf(scaled, tol=1.0, lower=1, overwrite_a=1)
    rank = int(rank)
    root[live[order - 1], :rank] = np.tril(lower)[:, :rank] * unit[order - 1, None]
    return PivotedCholesky(root[:, :rank], rank)
