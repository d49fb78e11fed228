"""A few random columns of a kernel matrix capture most of it: conjugate gradients start from them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, final

import numpy as np
import scipy.linalg

from widelimit.compute import threads
from widelimit.compute.linalg import EPS
from widelimit.compute.operators import Operator
from widelimit.progress import Report, no_progress

Precondition = Callable[[np.ndarray], np.ndarray]
CANDIDATES = 128
"""Pivots drawn at once: their columns are one block of the kernel, and one matrix product."""
MOST = 1000
"""Rank of the preconditioner at most: its n x rank numbers are then below 2 % of the kernel matrix at n = 60,000."""


class RandomCholesky(NamedTuple):
    """A ~ F F^T from some columns of A."""

    factor: np.ndarray
    """F (n, rank), with fewer columns than requested if the rank of A is smaller."""
    tail: float
    """The trace of A - F F^T."""
    pivots: np.ndarray
    """The columns, in the order of those of F: F[pivots] is lower triangular."""


@final
@dataclass(frozen=True)
class LowRank:
    """v -> M^{-1} v, M = F F^T + shift, F F^T = U diag(s) U^T: M^{-1} v = (v - U (s/(s + shift)) U^T v)/shift."""

    vectors: np.ndarray
    shrink: np.ndarray
    shift: float

    def __call__(self, v: np.ndarray) -> np.ndarray:
        known = threads.product(self.vectors, self.shrink[:, None] * threads.product(self.vectors.T, v))
        return np.asarray((v - known) / self.shift)


def default_rank(n: int) -> int:
    """Return n/10, at most MOST: the n rank^2 flops to make it stay below those of a few products."""
    return min(max(n // 10, min(n, 50)), MOST)


def bytes_needed(n: int, rank: int) -> float:
    """Return the bytes to make a preconditioner: its factor twice, and a block of columns with its new ones."""
    return 8.0 * n * (2 * rank + 3 * min(CANDIDATES, rank))


def _accept(block: np.ndarray, weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the candidates that one-by-one sampling would have kept, by their residual block: rejection sampling."""
    schur = block.copy()
    kept = []
    for i, weight in enumerate(weights):
        pivot = schur[i, i]
        if pivot > EPS * len(weights) * weight and rng.uniform() * weight < pivot:
            kept.append(i)
            schur[i:, i:] -= np.outer(schur[i:, i], schur[i, i:]) / pivot
    return np.array(kept, int)


def random_cholesky(matrix: Operator, rank: int, *, seed: int = 0, report: Report = no_progress) -> RandomCholesky:
    """Factorise A ~ F F^T, F (n, rank): columns drawn with probabilities proportional to the diagonal of A - F F^T.

    Source: Chen, Epperly, Tropp and Webber 2022, arXiv 2207.06503, algorithm 1; in blocks, by rejection, which leaves
    the law of the pivots as it is: Epperly, Tropp and Webber 2024, arXiv 2410.03969.

    Raises: ValueError: one of the columns has an entry that is NaN or infinite.
    """
    rng = np.random.default_rng(seed)
    rest = matrix.diagonal()
    n, total = len(rest), float(rest.sum())
    factor = np.empty((n, rank))
    found, order = 0, [np.empty(0, int)]
    while found < rank and rest.sum() > n * EPS * total:
        drawn = rng.choice(n, min(CANDIDATES, rank - found), p=rest / rest.sum())
        pivots = drawn[np.sort(np.unique(drawn, return_index=True)[1])]
        columns = matrix.columns(pivots).astype(np.float64)
        if not np.isfinite(columns).all():
            i, j = np.argwhere(~np.isfinite(columns))[0]
            raise ValueError(f"the kernel matrix is {columns[i, j]} at row {i}, column {pivots[j]}.")
        columns -= threads.product(factor[:, :found], factor[pivots, :found].T)
        kept = _accept(columns[pivots], rest[pivots], rng)
        if not len(kept):  # what is left is the rounding of the entries
            break
        with threads.limit(threads.work(len(kept), len(kept), n)):
            lower = np.linalg.cholesky(columns[pivots[kept]][:, kept])
            fresh = scipy.linalg.solve_triangular(lower, columns[:, kept].T, lower=True, check_finite=False).T
        factor[:, found : found + len(kept)] = fresh
        found += len(kept)
        report("preconditioner", found, rank)
        rest = np.maximum(rest - np.sum(fresh**2, axis=1), 0.0)  # weights of a draw: rounding may be below 0
        rest[pivots[kept]] = 0.0
        order.append(pivots[kept])
    return RandomCholesky(factor[:, :found], float(rest.sum()), np.concatenate(order))


def low_rank(matrix: Operator, noise: np.ndarray, *, rank: int, report: Report = no_progress) -> LowRank:
    """Make the preconditioner of matrix + diag(noise).

    Its shift is the mean noise and the mean of what the columns leave, where the rest of the spectrum lies; at least
    sqrt(eps) of the mean diagonal, so that rounding in a residual is not magnified.
    Source: Diaz, Epperly, Frangella, Tropp and Webber 2023, arXiv 2304.12465, section 2.
    """
    factor, tail, _ = random_cholesky(matrix, rank, report=report)
    n = len(noise)
    mean = float(matrix.diagonal().mean())
    shift = max(float(noise.mean()) + tail / n, np.sqrt(EPS) * mean, float(np.finfo(np.float64).tiny))
    inner = threads.product(factor.T, factor)
    with threads.limit_decomposition(len(inner)):
        values, vectors = np.linalg.eigh(inner)
    kept = values > rank * EPS * values.max(initial=0.0)
    values, vectors = values[kept], vectors[:, kept]
    return LowRank(threads.product(factor, vectors / np.sqrt(values)), values / (values + shift), shift)
