"""The mean square errors of random training sets have deterministic equivalents: a few sums over modes, or over rows.

n rows with the ridge delta learn the share L = lambda/(lambda + kappa) of a mode with the eigenvalue lambda, where
sum L + delta/kappa = n (Bordelon, Canatar and Pehlevan 2020, arXiv 2002.02561; Simon et al. 2021, arXiv 2110.03922).
N given rows show the same sums as traces of R = (K + delta')^{-1}: n of them with the ridge delta have the kappa of all
of them with the larger ridge delta' = delta + kappa (N - n), and kappa = 1/tr R.
"""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import numpy as np
import scipy.linalg

from widelimit.compute import threads
from widelimit.shapes import Float

_STEPS = 500
_CHANGE = 1e-13
"""Relative change that ends Newton's steps."""
_ROUNDING = 1e-6
"""Relative change below which steps that no longer shrink are rounding."""
_ROWS_CHANGE = 1e-7
"""Change of ln D_i that ends the iteration over rows."""
_VANISHED = 1e-11
"""A ridge delta' below this share of the mean of K(x, x) is 0: n rows have the rank of the kernel."""
_TURN = 0.25
"""Radians between two ridges from one of which the root for the other is found."""
_POLES = 24


class Errors(NamedTuple):
    """The errors are means over rows and over random training sets of one size, in the square of the targets' unit."""

    test: float
    train: float
    bias: float
    learnability: float


def exponential_poles() -> tuple[np.ndarray, np.ndarray]:
    """Return z, w of e^{-x} = 2 Re sum_j w_j z_j/(x + z_j) for x >= 0, to 4e-14, by midpoints on a Talbot contour.

    2 Re sum_j w_j = 1, so that 1 - e^{-x} combines fits with the ridges z_j. Source: Weideman 2006 (its parameters);
    Trefethen, Weideman and Schmelzer 2006.
    """
    angle = (np.arange(_POLES // 2) + 0.5) * 2 * np.pi / _POLES
    inner = 0.6407 * angle
    z = _POLES * (0.5017 * angle / np.tan(inner) - 0.6122 + 0.2645j * angle)
    slope = _POLES * (0.5017 / np.tan(inner) - 0.5017 * inner / np.sin(inner) ** 2 + 0.2645j)
    return z, np.exp(z) * slope / (1j * _POLES) / z


class Equivalent(abc.ABC):
    """The sums over the modes of a kernel give the errors of random training sets, at complex ridges too."""

    @abc.abstractmethod
    def start(self, n: int, ridge: float) -> float:
        """Return an upper bound of the unknown for a real ridge; `value` is convex from there down to it."""

    @abc.abstractmethod
    def value(self, n: int, unknown: complex) -> tuple[Any, Any]:
        """Return the ridge that belongs to the unknown, and its derivative."""

    @abc.abstractmethod
    def sums(self, found: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return sum L (p,), sum L L' (p, p), the power not learned (p, p), and its share of the target's (p,)."""

    @abc.abstractmethod
    def learned(self, found: np.ndarray) -> Float[np.ndarray, "p D"]:
        """Return L of every mode at every ridge."""

    def errors(self, n: int, ridges: np.ndarray, weights: np.ndarray) -> tuple[Errors, Float[np.ndarray, " D"]]:
        """Compute the errors of sum_j w_j f_j, f_j the fit with the ridge delta_j, and what it learns of every mode.

        ridges, weights: (p,), real, or of one of each conjugate pair.
        """
        found = np.array([self._unknown(n, ridge) for ridge in ridges.tolist()])
        if np.iscomplexobj(found):
            found, weights = np.concatenate([found, found.conj()]), np.concatenate([weights, weights.conj()])
        count, overlap, residual, unlearned = self.sums(found)
        bias = np.outer(weights, weights) * residual
        test = np.inf * np.ones_like(bias) if np.any(overlap == n) else bias * (n / (n - overlap))
        left = 1 - count / n
        sums = [float(np.sum(v).real) for v in (test, test * np.outer(left, left), bias)]
        whole = Errors(sums[0], sums[1], sums[2], 1 - float((weights @ unlearned).real))
        return whole, (weights @ self.learned(found)).real

    def _unknown(self, n: int, ridge: complex) -> complex:
        size, angle = abs(ridge), math.atan2(ridge.imag, ridge.real)
        found: complex = self._newton(n, size, self.start(n, size))
        turns = math.ceil(angle / _TURN)
        for turn in range(1, turns + 1):
            found = self._newton(n, size * np.exp(1j * angle * turn / turns), found)
        return found

    def _newton(self, n: int, ridge: complex, unknown: complex) -> complex:
        smallest, last = _VANISHED * self.start(n, 0.0), math.inf
        for _ in range(_STEPS):
            value, slope = self.value(n, unknown)
            step = (value - ridge) / slope
            unknown = unknown - step
            done = abs(step) <= _CHANGE * abs(unknown) or abs(unknown) <= smallest
            if done or (abs(step) >= last / 2 and abs(step) <= _ROUNDING * abs(unknown)):
                return unknown
            last = abs(step)
        raise ArithmeticError(
            f"kappa of {n} rows was not found in {_STEPS} steps: the eigenvalues span too many powers of ten."
        )


@final
@dataclass(frozen=True)
class OfLevels(Equivalent):
    """The eigenvalues and the target's powers are known: the unknown is kappa.

    Args:
        values: lambda, (D,), in the kernel's unit, of f -> E K(x, x') f(x').
        counts: how many modes share it, (D,).
        powers: the target's mean square in each level, (D,), in the square of its unit.
        unseen: the trace of K beyond the levels: a ridge for all that is listed.
        noise: the mean square of what no mode explains.
    """

    values: np.ndarray
    counts: np.ndarray
    powers: np.ndarray
    unseen: float
    noise: float

    def start(self, n: int, ridge: float) -> float:
        return (ridge + self.unseen + float(self.counts @ self.values)) / n

    def value(self, n: int, unknown: complex) -> tuple[Any, Any]:
        share = self.values / (self.values + unknown)
        return unknown * (n - self.counts @ share) - self.unseen, n - self.counts @ share**2

    def learned(self, found: np.ndarray) -> np.ndarray:
        return np.asarray(self.values / (self.values + found[:, None]))

    def sums(self, found: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        share = self.learned(found)
        rest = 1 - share
        residual = (rest * self.powers) @ rest.T + self.noise
        total = np.sum(self.powers)
        return (
            share @ self.counts,
            (share * self.counts) @ share.T,
            residual,
            rest @ self.powers / total if total > 0 else np.ones(len(found)),
        )


@final
@dataclass(frozen=True)
class OfModes(Equivalent):
    """The eigenvalues of K(X, X) of N rows and the targets' squares in its eigenvectors: the unknown is delta'.

    Args:
        values: (N,), >= 0.
        squares: (N,), sums over outputs.
    """

    values: np.ndarray
    squares: np.ndarray

    def start(self, n: int, ridge: float) -> float:
        N = len(self.values)
        return (ridge * N + (N - n) * float(np.mean(self.values))) / n

    def value(self, n: int, unknown: complex) -> tuple[Any, Any]:
        inverse = 1 / (self.values + unknown)
        trace, others = np.sum(inverse), len(self.values) - n
        return unknown - others / trace, 1 - others * np.sum(inverse**2) / trace**2

    def learned(self, found: np.ndarray) -> np.ndarray:
        kappa = 1 / np.sum(1 / (self.values + found[:, None]), axis=1)
        scaled = self.values / len(self.values)
        return np.asarray(scaled / (scaled + kappa[:, None]))

    def sums(self, found: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        N = len(self.values)
        inverse = 1 / (self.values + found[:, None])
        trace, both = np.sum(inverse, axis=1), inverse @ inverse.T
        total = np.sum(self.squares)
        return (
            N - found * trace,
            N - np.outer(trace, trace) / both,
            (inverse * self.squares) @ inverse.T / both,
            inverse @ self.squares * N / (trace * total) if total > 0 else np.ones(len(found)),
        )


def of_rows(K: Float[np.ndarray, "N N"], y: Float[np.ndarray, "N c"], n: int, ridge: float) -> Errors:
    """Compute the errors for n random rows of N, each row with its own variance h_i given the others.

    The coherent potential: the random choice of row i (with the ridge delta, or not at all) acts on the others as the
    ridge D_i = (h_i + delta) N/n - h_i, with G = (K + D)^{-1} and h_i = 1/G_ii - D_i. Then e = (G y)_i/G_ii is the mean
    error at a row that is left out. Its mean square v over training sets solves v = e^2 + (N/n - 1) A v, A_ij =
    (G_ij/G_ii)^2 for i != j, and the product b of the errors of two disjoint training sets b = e^2 - A b. With one h
    for all rows these are the sums of `OfModes`.
    """
    N = len(K)
    share = n / N
    mean = float(np.mean(np.diagonal(K)))
    D = np.full(N, (mean + ridge) / share - mean)
    for _ in range(_STEPS):
        G = _inverse(K + np.diag(D))
        own = np.diagonal(G)
        h = np.maximum(1 / own - D, 0)
        before, D = D, (h + ridge) / share - h
        if np.max(np.abs(D - before) / before) <= _ROWS_CHANGE or D.max() <= _VANISHED * mean:
            break
    else:
        raise ArithmeticError(f"the ridges of {N} rows still change after {_STEPS} steps; give noise > 0.")
    e = threads.product(G, y) / own[:, None]
    squares = np.sum(e**2, axis=1)
    others = (G / own[:, None]) ** 2
    np.fill_diagonal(others, 0.0)
    test = np.linalg.solve(np.eye(N) - (1 / share - 1) * others, squares)
    bias = np.linalg.solve(np.eye(N) + others, squares)
    test = test if np.all(test >= 0) else np.full(N, np.inf)
    total = float(np.sum(y**2))
    return Errors(
        float(np.mean(test)),
        float(np.mean(test * np.square(ridge / (h + ridge)))) if ridge else 0.0,
        float(np.mean(bias)),
        1 - float(np.sum(y * e)) / total if total > 0 else 0.0,
    )


def _inverse(matrix: np.ndarray) -> np.ndarray:
    with threads.limit_decomposition(len(matrix)):
        factor = scipy.linalg.cholesky(matrix, lower=True, overwrite_a=True, check_finite=False)
        inverse, _ = scipy.linalg.lapack.dpotri(factor, lower=1, overwrite_c=1)
    return np.asarray(np.tril(inverse) + np.tril(inverse, -1).T)
