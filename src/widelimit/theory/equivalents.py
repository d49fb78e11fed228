"""Deterministic equivalents of the mean square errors of random training sets: sums over modes, or over rows.

n rows with the ridge delta learn the share L = lambda/(lambda + kappa) of a mode with the eigenvalue lambda, where
sum L + delta/kappa = n (Bordelon, Canatar and Pehlevan 2020, arXiv 2002.02561; Simon et al. 2021, arXiv 2110.03922):
`OfLevels`. If lambda is not known, N given rows yield the same sums as traces of R = (K + delta')^{-1}: n rows with the
ridge delta have the same kappa as all N rows with the larger ridge delta' = delta + kappa (N - n), and kappa = 1/tr R:
`OfModes`. `of_rows` gives each row its own kappa.
"""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass
from typing import NamedTuple, final

import numpy as np
import scipy.linalg

from widelimit.compute import threads
from widelimit.shapes import Float

_STEPS = 1100
"""Newton steps, at most: each at least halves kappa until it is near the solution."""
_CHANGE = 1e-13
"""Relative change at which Newton's iteration ends."""
_ROUNDING = 1e-6
"""Relative change below which steps that no longer shrink are taken for rounding."""
_ROWS_CHANGE = 1e-7
"""Change of ln D_i that ends the iteration over rows."""
_ROWS_ROUNDING = 1e-3
"""Change of ln D_i below which steps that no longer shrink are taken for rounding."""
_ZERO = 1e-300
"""kappa, over E K(x, x), that stands for 0 where n rows determine all modes."""
_TURN = 0.25
"""Radians by which the argument of a complex ridge grows per step: each root is the start for the next."""
_POLES = 24
"""Poles of the rational approximation of e^{-x}, in conjugate pairs."""


class Errors(NamedTuple):
    """The errors are means over rows and over random training sets of one size, in the square of the targets' unit."""

    test: float
    train: float
    bias: float
    """The error of the mean prediction over training sets, with the targets' noise."""
    learnability: float
    """The share of the target in the mean prediction."""


def exponential_poles() -> tuple[np.ndarray, np.ndarray]:
    """Return z, w of e^{-x} = 2 Re sum_j w_j z_j/(x + z_j), x >= 0, to 4e-14, by midpoints on a Talbot contour.

    2 Re sum_j w_j = 1, so that 1 - e^{-x} is a combination of fits with the complex ridges z_j. Source: Trefethen,
    Weideman and Schmelzer 2006; the parameters are those of Weideman 2006.
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
        """Return an upper bound of the unknown for a real ridge, at which g is convex; _ZERO if the unknown is 0."""

    @abc.abstractmethod
    def step(self, n: int, unknown: complex, ridge: complex) -> complex:
        """Return the unknown u after one Newton step for g(u) = ridge: (u g'(u) - g(u) + ridge)/g'(u).

        Implementations sum terms of one sign only, so that u keeps its digits when it falls by many powers of ten.
        """

    @abc.abstractmethod
    def sums(self, found: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return four sums over modes at p solutions, one for each ridge.

        They are sum L (p,); sum L L' of pairs of ridges (p, p); the power that is not learned, sum (1 - L)(1 - L') v^2
        with the noise (p, p); and the share of the target that the mean prediction lacks (p,).
        """

    @abc.abstractmethod
    def learned(self, found: np.ndarray) -> Float[np.ndarray, "p D"]:
        """Return L of every mode at every ridge."""

    def errors(self, n: int, ridges: np.ndarray, weights: np.ndarray) -> tuple[Errors, Float[np.ndarray, " D"]]:
        """Compute the errors of sum_j w_j f_j, f_j the fit with the ridge delta_j, and its learnability of each mode.

        ridges, weights: (p,), real, or complex, one of each conjugate pair.
        """
        found = np.array([self._unknown(n, ridge) for ridge in ridges.tolist()])
        if np.iscomplexobj(found):
            found, weights = np.concatenate([found, found.conj()]), np.concatenate([weights, weights.conj()])
        count, overlap, residual, unlearned = self.sums(found)
        bias = np.outer(weights, weights) * residual
        left = 1 - count / n
        if np.any(overlap == n):
            test, train = (math.inf if np.any(bias) else 0.0), 0.0
        else:
            whole = bias * (n / (n - overlap))
            test, train = (float(np.sum(part).real) for part in (whole, whole * np.outer(left, left)))
        errors = Errors(test, train, float(np.sum(bias).real), 1 - float((weights @ unlearned).real))
        return errors, (weights @ self.learned(found)).real

    def _unknown(self, n: int, ridge: complex) -> complex:
        """Find the unknown for a complex ridge, from that of its modulus, in steps of its argument."""
        size, angle = abs(ridge), math.atan2(ridge.imag, ridge.real)
        found: complex = self._newton(n, size, self.start(n, size))
        turns = math.ceil(angle / _TURN)
        for turn in range(1, turns + 1):
            found = self._newton(n, size * np.exp(1j * angle * turn / turns), found)
        return found

    def _newton(self, n: int, ridge: complex, unknown: complex) -> complex:
        """Iterate `step`. Raises: ArithmeticError: it does not converge."""
        last = math.inf
        if abs(unknown) <= _ZERO:
            return unknown
        for _ in range(_STEPS):
            before, unknown = unknown, self.step(n, unknown, ridge)
            change = abs(unknown - before) / abs(before)
            if change <= _CHANGE or last / 2 <= change <= _ROUNDING:
                return unknown
            last = change
        raise ArithmeticError(
            f"the learning curve at {n} rows did not converge in {_STEPS} steps: the kernel's eigenvalues span too "
            f"many powers of ten; give noise > 0."
        )


@final
@dataclass(frozen=True)
class OfLevels(Equivalent):
    """The eigenvalues and the target's powers are known: the unknown is kappa.

    Args:
        values: eigenvalues lambda, (D,), of the operator f -> E K(x, x') f(x'), over the mean of K(x, x).
        counts: numbers of modes with this eigenvalue, (D,).
        powers: the target's mean square in each level, (D,), in the square of its unit.
        unseen: the trace of K outside the levels, which acts as a ridge on those listed.
        noise: the mean square of the targets that no mode explains.
    """

    values: np.ndarray
    counts: np.ndarray
    powers: np.ndarray
    unseen: float
    noise: float

    def start(self, n: int, ridge: float) -> float:
        left = ridge + self.unseen
        if not left and np.sum(self.counts[self.values > 0]) <= n:
            return _ZERO
        return (left + float(self.counts @ self.values)) / n

    def step(self, n: int, unknown: complex, ridge: complex) -> complex:
        share = self.values / (self.values + unknown)
        rest = unknown / (self.values + unknown)
        known = self.values > abs(unknown)
        slope = n - np.sum(self.counts[known]) + self.counts @ np.where(known, rest * (1 + share), -(share**2))
        found: complex = (unknown * (self.counts @ (share * rest)) + self.unseen + ridge) / slope
        return found

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
    """K(X, X) of N rows stands for the operator: the unknown is the ridge delta' at which N rows have the kappa of n.

    Args:
        values: eigenvalues of K(X, X), (N,), >= 0.
        squares: squares of the targets' coefficients in its eigenvectors, (N,), summed over outputs.
    """

    values: np.ndarray
    squares: np.ndarray

    def start(self, n: int, ridge: float) -> float:
        N = len(self.values)
        return (ridge * N + (N - n) * float(np.mean(self.values))) / n

    def step(self, n: int, unknown: complex, ridge: complex) -> complex:
        left = unknown / (self.values + unknown)
        total, others = np.sum(left), len(self.values) - n
        slope = 1 - others * np.sum(left**2) / total**2
        found: complex = (unknown * others * np.sum(left * (1 - left)) / total**2 + ridge) / slope
        return found

    def learned(self, found: np.ndarray) -> np.ndarray:
        kappa = found / np.sum(found[:, None] / (self.values + found[:, None]), axis=1)
        scaled = self.values / len(self.values)
        return np.asarray(scaled / (scaled + kappa[:, None]))

    def sums(self, found: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        N = len(self.values)
        left = found[:, None] / (self.values + found[:, None])
        lost, both = np.sum(left, axis=1), left @ left.T
        total = np.sum(self.squares)
        return (
            N - lost,
            N - np.outer(lost, lost) / both,
            (left * self.squares) @ left.T / both,
            left @ self.squares * N / (lost * total) if total > 0 else np.ones(len(found)),
        )


def of_rows(K: Float[np.ndarray, "N N"], y: Float[np.ndarray, "N c"], n: int, ridge: float) -> Errors:
    """Compute the errors for n random rows of N by the coherent potential: each row has its own ridge D_i.

    Row i is in a training set (with the ridge delta > 0) or not; on the mean, this acts on the other rows as the ridge
    D_i = (h_i + delta) N/n - h_i, where h_i = 1/G_ii - D_i is the variance of row i given the others, and
    G = (K + D)^{-1}. Then e_i = (G y)_i/G_ii is the mean error at row i if it is left out. Its mean square v over
    training sets solves v = e^2 + (N/n - 1) A v, with A_ij = (G_ij/G_ii)^2 for i != j; the mean product b of the errors
    of two disjoint training sets solves b = e^2 - A b. With one h for all rows these are the sums of `OfModes`.
    """
    N = len(K)
    G, others = _resolvent(K, n, ridge)
    own = np.diagonal(G)
    e = threads.product(G, y) / own[:, None]
    squares = np.sum(e**2, axis=1)
    test, bias = (np.linalg.solve(_plus_one(factor * others), squares) for factor in (1 - N / n, 1.0))
    test = test if np.all(test >= 0) else np.full(N, np.inf)
    total = float(np.sum(y**2))
    return Errors(
        float(np.mean(test)),
        float(np.mean(test * np.square(own * (ridge * N / n)))),
        float(np.mean(bias)),
        1 - float(np.sum(y * e)) / total if total > 0 else 0.0,
    )


def _resolvent(K: np.ndarray, n: int, ridge: float) -> tuple[np.ndarray, np.ndarray]:
    """Return G and A. Newton's iteration for D starts at (K_ii + ridge) N/n - K_ii and falls to the largest root.

    Raises: ArithmeticError: they do not converge.
    """
    more, last = len(K) / n - 1, math.inf
    D = more * np.diagonal(K) + ridge * (more + 1)
    for _ in range(_STEPS):
        G = _inverse(K + np.diag(D))
        own = np.diagonal(G)
        others = (G / own[:, None]) ** 2
        np.fill_diagonal(others, 0.0)
        rest = D - more * (1 / own - D) - ridge * (more + 1)
        step = np.linalg.solve(_plus_one(-more * others), rest)
        change = float(np.max(np.abs(step) / D))
        if change <= _ROWS_CHANGE or (change >= last / 2 and change <= _ROWS_ROUNDING):
            return G, others
        D, last = np.maximum(D - step, ridge), change
    raise ArithmeticError(f"the ridges of {len(K)} rows still change after {_STEPS} steps; give noise > 0.")


def _plus_one(matrix: np.ndarray) -> np.ndarray:
    """Add 1 to the diagonal, in place."""
    matrix[np.diag_indices(len(matrix))] += 1
    return matrix


def _inverse(matrix: np.ndarray) -> np.ndarray:
    """Invert a positive definite matrix, which is overwritten."""
    with threads.limit_decomposition(len(matrix)):
        factor = scipy.linalg.cholesky(matrix, lower=True, overwrite_a=True, check_finite=False)
        inverse, _ = scipy.linalg.lapack.dpotri(factor, lower=1, overwrite_c=1)
    return np.asarray(np.tril(inverse) + np.tril(inverse, -1).T)
