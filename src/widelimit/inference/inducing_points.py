"""Inducing points are drawn from the rows, or given."""

from __future__ import annotations

import re
from typing import Any

import jax
import numpy as np

from widelimit import memory, validation
from widelimit.compute import linalg, operators, preconditioners
from widelimit.fingerprints import sha256
from widelimit.inference.training_set import check_finite, evenly, points_of
from widelimit.kernels.base import Kernel
from widelimit.progress import Report

CANDIDATES, EACH = 20_000, 2
"""Rows that inducing points are drawn from: so many, or EACH for one point if that is more."""
PROBED = 16
"""Rows at which a kernel is computed for its fingerprint."""
TESTED = 256
"""Rows, from all of the table, on which float32 is compared with float64 first."""


def candidates(n: int, count: Any, seed: int) -> np.ndarray:
    """Return the numbers of the rows that points are drawn from; a few where points are given. Raises: ValueError."""
    if not isinstance(count, int):
        return np.union1d(np.arange(min(n, PROBED)), evenly(n, TESTED))
    if count > n:
        raise ValueError(
            f"inducing={count} points are to be drawn from the {n} rows of X: pass at most {n}, or "
            f'solver="cholesky", which is exact.'
        )
    size = number_of_candidates(n, count)
    return np.sort(np.random.default_rng(seed).choice(n, size, replace=False)) if size < n else np.arange(n)


def number_of_candidates(n: int, count: int) -> int:
    """Return from how many of n rows so many points are drawn."""
    return min(n, max(CANDIDATES, EACH * count))


def choose(
    kernel: Kernel, sample: np.ndarray, given: Any, seed: int, report: Report
) -> tuple[np.ndarray, linalg.Cholesky]:
    """Return the points, and the factor of their kernel matrix; `given`: a number, or points."""
    if isinstance(given, int):
        chosen = _draw(kernel, sample, given, seed, report)
    else:
        chosen = np.array(points_of(kernel, "inducing", given), np.float64)
        validation.same_features("inducing", chosen, "X", sample)
    matrix = np.array(kernel.gram(chosen))
    linalg.refuse_non_finite(matrix)
    root = linalg.cholesky(matrix)
    if root is None:
        equal = len(chosen) - len(np.unique(chosen, axis=0))
        raise ValueError(
            f"the kernel matrix of the {len(chosen)} inducing points is singular to rounding: points are equal "
            f"({equal} repeat others) or nearly so. Pass a number, from which points are drawn that are not, or leave "
            "some out."
        )
    return validation.owned(chosen), root


def _draw(kernel: Kernel, sample: np.ndarray, count: int, seed: int, report: Report) -> np.ndarray:
    """Draw rows by randomly pivoted Cholesky on an even sample: far from each other, and never two equal ones."""
    memory.require(
        preconditioners.bytes_needed(len(sample), count),
        f"a draw of {count} inducing points",
        remedy="use fewer points",
    )
    matrix = operators.Recomputed(kernel.prepared(sample), sample)
    diagonal = check_finite(matrix.diagonal(), sample)
    if not diagonal.any():
        raise ValueError("the kernel is 0 at the rows of X, which then say nothing of y: check X, or add a bias.")
    found = preconditioners.random_cholesky(matrix, count, seed=seed, report=report)
    pivots = np.abs(found.factor[found.pivots, np.arange(len(found.pivots))])
    whole = np.sqrt(diagonal[found.pivots])
    keep = pivots > 8 * np.sqrt(linalg.rounding(len(pivots), 1.0)) * whole  # a Cholesky factor of the others exists
    return np.asarray(sample[found.pivots[keep]])


def facts(kernel: Kernel, sample: np.ndarray, given: Any, seed: int) -> dict[str, str]:
    """Return fingerprints of the kernel, without addresses of functions in memory, and of the choice of points."""
    leaves, structure = jax.tree.flatten(kernel)
    values = np.asarray(kernel.gram(sample[:PROBED]))  # two functions of one name differ by these only
    parts = (np.ascontiguousarray(leaf) for leaf in (*leaves, values))
    points = f"{given} {seed}" if isinstance(given, int) else sha256(np.ascontiguousarray(given, np.float64))
    return {"the kernel": sha256(re.sub(r"0x[0-9a-f]+", "", str(structure)), *parts), "the inducing points": points}
