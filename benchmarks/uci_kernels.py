"""The fifteen kernels of Arora et al. 2020 are computed once; support vector machines use them.

Their kernels: a ReLU network of depth 1 to 5 without bias, weight scale 1 and no factor 2, on inputs that are not
divided by their number; the first k layers are not trained, k = 0 .. depth - 1, so that layer l adds Sigma^l to the NTK
for l > k only. The last choice, k = depth - 1, is the NNGP kernel. Protocol: the paper (arXiv 1910.01663) and its code,
github.com/LeoYu/neural-tangent-kernel-UCI. The formulas are this library's: `Activation.correlation_map` and
`Activation.dual_derivative`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import euclidean_distances
from sklearn.svm import SVC
from uci_data import Fold, Split

import widelimit as wl

DEPTHS = 5
COSTS = tuple(10.0**k for k in range(-2, 5))
BLOCK = 1 << 17
"""Pairs in a call of the compiled recursion: one shape for every data set."""
MOST_ITERATIONS = 2_000_000
"""The solver takes at most this many for one pair of classes; the original has no bound. Fits at it are counted."""


@jax.jit
def _layer(rho: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return (correlations after a ReLU layer, E[phi'(u) phi'(v)]) of signals with these correlations."""
    relu, one = wl.activation("relu"), jnp.ones_like(rho)
    return relu.correlation_map(rho), relu.dual_derivative(one, rho, one)


def _in_blocks(rho: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    flat = rho.ravel()
    after, slope = np.empty_like(flat), np.empty_like(flat)
    for start in range(0, len(flat), BLOCK):
        block = flat[start : start + BLOCK]
        with jax.enable_x64(True):
            found = _layer(jnp.asarray(np.pad(block, (0, BLOCK - len(block)))))
        after[start : start + BLOCK], slope[start : start + BLOCK] = (np.asarray(part)[: len(block)] for part in found)
    return after.reshape(rho.shape), slope.reshape(rho.shape)


def partly_trained(X: np.ndarray) -> Iterator[tuple[tuple[int, int], np.ndarray]]:
    """((depth, fixed), K): Theta^1 = Sigma^1 = x.x', Theta^{l+1} = Theta^l Sdot^{l+1} + Sigma^{l+1}; 0 up to l = fixed.

    Args:
        X: (n, d) inputs.

    Returns:
        The kernels (n, n), float64, one after the other in the order of the original's search; eleven in memory.
    """
    X = X.astype(np.float64)
    norms = np.linalg.norm(X, axis=1)
    scale = np.outer(norms, norms)
    sigma = X @ X.T
    rho = np.clip(np.divide(sigma, scale, out=np.zeros_like(sigma), where=scale > 0), -1, 1)
    np.fill_diagonal(rho, norms > 0)
    tangents = [sigma]
    yield (1, 0), sigma
    for layer in range(1, DEPTHS):
        rho, slope = _in_blocks(rho)
        sigma = scale * rho / 2**layer
        for fixed, tangent in enumerate(tangents):
            tangents[fixed] = tangent * slope + sigma
        tangents.append(sigma)
        yield from (((layer + 1, fixed), tangent) for fixed, tangent in enumerate(tangents))


def gaussian(X: np.ndarray) -> Iterator[tuple[float, np.ndarray]]:
    """(gamma d, exp(-gamma ||x - x'||^2)) for gamma d = 4^-4 .. 4^3, d inputs of variance 1."""
    X = X.astype(np.float64)
    distances = euclidean_distances(X, squared=True)
    for power in range(-4, 4):
        yield 4.0**power, np.exp(-(4.0**power / X.shape[1]) * distances)


Group = Callable[[Any], bool]
"""Which keys of kernels belong to a method."""


def all_of(_: Any) -> bool:
    """Return every kernel."""
    return True


def nngp_of(key: tuple[int, int]) -> bool:
    """Return the NNGP kernels among `partly_trained`: only the last layer is trained."""
    depth, fixed = key
    return fixed == depth - 1


@dataclass
class Best:
    """The object holds the first of the best choices on the tuning rows, and its kernel."""

    score: float = -1.0
    key: Any = None
    cost: float = 0.0
    kernel: np.ndarray = field(default_factory=lambda: np.empty(0))


@dataclass
class Effort:
    """The effort holds the cost of the search, and the number of times the solver was stopped."""

    fits: int = 0
    stopped: int = 0
    skipped: int = 0


def score(K: np.ndarray, y: np.ndarray, fold: Fold, cost: float, effort: Effort) -> tuple[float, bool]:
    """Return (accuracy of the machine on a fold, True if a multiplier is at its bound `cost`)."""
    train, test = fold
    machine = SVC(kernel="precomputed", C=cost, cache_size=500, max_iter=MOST_ITERATIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        machine.fit(K[np.ix_(train, train)], y[train])
    effort.fits += 1
    effort.stopped += int(machine.fit_status_ != 0)
    at_bound = (np.abs(machine.dual_coef_) >= cost * (1 - 1e-9)).any()
    bounded = bool(at_bound or machine.fit_status_ != 0)
    return float(np.mean(machine.predict(K[np.ix_(test, train)]) == y[test])), bounded


def search(
    kernels: Iterable[tuple[Any, np.ndarray]],
    y: np.ndarray,
    splits: list[Split],
    groups: Mapping[str, Group],
    effort: Effort,
) -> dict[str, list[Best]]:
    """Search for each group of kernels and each split the first of the best choices (key, C) on the tuning rows.

    Where no multiplier is at its bound, a larger C has the same solution, and where a score is 1 nothing is better:
    both are left out.
    """
    found = {name: [Best() for _ in splits] for name in groups}
    for key, K in kernels:
        wanting = [name for name, wants in groups.items() if wants(key)]
        for i, split in enumerate(splits):
            open_groups = [found[name][i] for name in wanting if found[name][i].score < 1]
            bounded = bool(open_groups)
            for cost in COSTS:
                if not bounded:
                    effort.skipped += 1
                    continue
                value, bounded = score(K, y, split.tuning, cost, effort)
                for best in open_groups:
                    if value > best.score:
                        best.score, best.key, best.cost, best.kernel = value, key, cost, K
    return found


def folds_of(best: list[Best], y: np.ndarray, splits: list[Split], effort: Effort) -> list[float]:
    """Return the accuracy of each split's choice on each of its folds."""
    return [
        score(chosen.kernel, y, fold, chosen.cost, effort)[0]
        for chosen, split in zip(best, splits, strict=True)
        for fold in split.folds
    ]
