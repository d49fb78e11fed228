"""Learning curves are measured on random training sets that are drawn and fitted, to check those predicted."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from widelimit.compute import linalg, threads
from widelimit.compute.krylov import gain
from widelimit.shapes import Float


class Measured(NamedTuple):
    """The errors are means over training sets that were drawn, in the square of the targets' unit."""

    test_error: Float[np.ndarray, " S"]
    standard_error: Float[np.ndarray, " S"]
    """The standard error of `test_error`: the standard deviation over draws divided by the root of their number."""
    train_error: Float[np.ndarray, " S"]


def measure(
    K: Float[np.ndarray, "N N"],
    y: Float[np.ndarray, "N c"],
    sizes: np.ndarray,
    noise: float,
    time: float,
    draws: int,
    key: int,
) -> Measured:
    """Fit `draws` random subsets of each size n for a `time` of gradient flow, and test each on the rows left out.

    noise: added to the diagonal of K. time: in the unit of d theta/dt = -grad C, C the mean of |f - y|^2.
    """
    test, train = np.empty((2, len(sizes), draws))
    for i, n in enumerate(sizes.tolist()):
        for j in range(draws):
            order = np.random.default_rng((key, i, j)).permutation(len(K))
            seen, left = order[:n], order[n:]
            part = K[np.ix_(seen, seen)]
            part[np.diag_indices(n)] += noise
            alpha = _dual(part, y[seen], time)
            for errors, rows in ((test, left), (train, seen)):
                rest = threads.product(K[np.ix_(rows, seen)], alpha) - y[rows]
                errors[i, j] = np.mean(np.sum(rest**2, axis=1))
    return Measured(test.mean(axis=1), test.std(axis=1, ddof=1) / math.sqrt(draws), train.mean(axis=1))


def _dual(K: np.ndarray, y: np.ndarray, time: float) -> np.ndarray:
    """Compute (1 - exp(-2 K time/n)) K^+ y; K is overwritten."""
    values, vectors = linalg.eigenpairs(K)
    first = np.count_nonzero(values <= linalg.rounding(len(values), float(values[-1])))
    learned = gain(values[first:], np.array([2 * time / len(values)]), False, 0.0)[0]
    kept = vectors[:, first:]
    return threads.product(kept, learned[:, None] * threads.product(kept.T, y))
