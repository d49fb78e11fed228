"""This module checks how exactly a posterior's system is solved; it refuses, or warns."""

import math
import warnings
from collections.abc import Callable

import numpy as np

from widelimit.compute import linalg
from widelimit.inference.solvers import SolverFit
from widelimit.inference.training_set import TrainingSet

INEXACT = 1e-4
"""A residual above which a factorisation warns: the mean then misses the labels in the fourth digit, where a well-posed
system has twelve. Conjugate gradients and mixed precision have a tolerance of their own."""


def warn_if_inexact(data: TrainingSet, found: SolverFit, noise: np.ndarray, residual: Callable[[], float]) -> None:
    """Measure the residual of a factorisation where it may be large, which costs the kernel again, and warn if it is.

    Rounding leaves up to about eps |A| |weights|, A = K(X, X) + noise, and |A| is at most its trace: O(n) to look at.
    """
    if found.residual is not None and found.choice.storage != "disk":
        return
    y, exponent = linalg.normalise(data.y)
    weights, size = linalg.rescale(found.weights, -exponent), np.sqrt(np.sum(y**2, axis=0))
    left = linalg.EPS * found.trace * np.sqrt(np.sum(weights**2, axis=0))
    if (left <= INEXACT * size).all() or residual() <= INEXACT:
        return
    n, factor = len(data.X), found.factor
    enough = max(float(np.mean(noise)), linalg.EPS * found.trace / INEXACT**1.5)
    condition = factor.spread**2 * (n if factor.rank == n else 1)
    warnings.warn(
        f"the weights are inexact: |y - (K(X, X) + noise) weights| is {residual():.2g} |y|, as K(X, X) + noise is "
        f"ill-conditioned, with a condition number of up to {condition:.1g}. Pass a larger noise, e.g. "
        f"noise={enough:.1g}, a shorter length scale, or leave out nearly equal rows.",
        stacklevel=3,
    )


def _duplicates(data: TrainingSet, noise: np.ndarray) -> str:
    """Describe noise-free duplicate rows of X that have two labels; empty if none have."""
    exact = np.broadcast_to(noise, len(data.X)) == 0
    _, group = np.unique(data.X, axis=0, return_inverse=True)
    first: dict[int, int] = {}
    conflicts = []
    for i, g in enumerate(group.ravel().tolist()):
        if exact[i] and (data.y[i] != data.y[first.setdefault(g, i)]).any():
            conflicts.append((first[g], i))
    if not conflicts:
        return ""
    pairs = "; ".join(
        f"rows {i} and {j} (labels {data.y[i].tolist()} and {data.y[j].tolist()})" for i, j in conflicts[:3]
    )
    more = f" and {len(conflicts) - 3} more" if len(conflicts) > 3 else ""
    return f"duplicate rows of X have different labels: {pairs}{more}"


def refuse_conflicts(data: TrainingSet, found: SolverFit, noise: np.ndarray) -> None:
    """Raise if y is not in the range of a singular K(X, X) + noise: duplicate rows with two labels, or the rank."""
    factor, n = found.factor, len(data.X)
    if found.converged and factor.rank == n:
        return
    cause = _duplicates(data, noise)
    if not cause and factor.rank < n:
        # Half of the digits, for each output separately: rounding in consistent labels stays far below.
        y, _ = linalg.normalise(data.y)
        missed = np.abs(factor.outside(y)) / np.maximum(np.abs(y).max(axis=0), np.finfo(np.float64).tiny)
        if missed.max() > math.sqrt(linalg.EPS):
            cause = (
                f"K(X, X) + noise has numerical rank {factor.rank} of {n} (no duplicate row of X has two labels), and "
                f"label {int(np.argmax(missed.max(axis=1)))} is off its range by {missed.max():.2g} of the largest"
            )
    if cause:
        raise ValueError(f"y cannot be interpolated: {cause}. Pass noise= the variance of the observation noise.")
