"""Noise of several laws is reduced to Gaussian noise of a variance for each row: N(0, scale^2 noise/(weight factor)).

"constant" and "per_output" have factor 1. "input": the logarithm of the variance is a second Gaussian process with the
same kernel, on the logarithms of squared leave-one-out errors; the most likely heteroscedastic process of Kersting et
al. 2007 (ICML). "student_t": Student's t with nu degrees of freedom is Gaussian noise of variance sigma^2/u with u ~
Gamma(nu/2, nu/2); a variational approximation q(f) q(u) makes factor_i = E[u_i] = (nu + 1)/(nu + weight_i E[(y_i -
f_i)^2]/sigma^2) (Tipping and Lawrence 2005, Neurocomputing 69), and its lower bound of the evidence chooses nu.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, final

import numpy as np
import scipy.linalg
from scipy.special import digamma, gammaln

from widelimit.compute import threads
from widelimit.inference.noise_level import NoiseLevel, Objective, noise_level
from widelimit.inference.training_set import evenly
from widelimit.kernels.base import Kernel
from widelimit.shapes import Float

NoiseModel = Literal["constant", "per_output", "input", "student_t"]
ROWS = 500
"""Training rows on which noise that differs from row to row is found: every step takes eigenvectors."""
LEVEL_ROWS = 4000
"""Training rows on which one variance is found."""
DEGREES = (3.0, 5.0, 10.0, 30.0)
"""Degrees of freedom tried beside infinity, Gaussian noise: with 3 and more the noise has a variance."""
STEPS = 30
CONVERGED = 1e-3
"""Change of every factor at which the steps end, relative."""
CLIP = 3.0
"""Robust deviations at which targets are clipped for the first step of one of two starts of "student_t"."""
ROUNDS = 4
"""Rounds of "input": in each, noise and function are found with the other one fixed."""
LOG_CHI2 = (-1.2703628454614782, math.pi**2 / 2)
"""Mean and variance of the logarithm of a squared standard normal variable."""
SMALLEST = 1e-4
"""Squared errors count as no less than this share of their expectation: 0.8 % of them are."""


class RowNoise(NamedTuple):
    """The noise of one output is N(0, scale^2 noise exp(g(x))/(weight u)), g(z) = K(z, X) slopes."""

    noise: float
    scale: float
    factors: Float[np.ndarray, " n"]
    """u/exp(g) at the training rows."""
    slopes: Float[np.ndarray, " n"]
    """0: the noise does not depend on the input."""
    degrees: float
    """nu of Student's t, inf: Gaussian."""
    level: NoiseLevel


@final
@dataclass(frozen=True)
class NoiseSearch:
    """The search is that of one output after the other, on rows that are distinct."""

    kernel: Kernel
    X: Float[np.ndarray, "n d"]
    counts: Float[np.ndarray, " n"]
    """Weights: factors of the precision."""
    objective: Objective
    noise: float | None
    """Given, or None."""

    def run(self, model: NoiseModel, y: Float[np.ndarray, " n"]) -> RowNoise:
        """Find the noise of this law. Raises: ValueError: the kernel is not positive semi-definite."""
        if not y.any():
            level = NoiseLevel(1.0 if self.noise is None else self.noise, np.ones(1), 0.0)
            return RowNoise(level.noise, 1.0, np.ones(len(y)), np.zeros(len(y)), math.inf, level)
        if model == "per_output":
            return self._one_variance(y)
        rows = evenly(len(y), ROWS)
        gram = np.asarray(self.kernel.gram(self.X[rows]))
        objective: Objective = "marginal_likelihood" if model == "student_t" else self.objective
        part = _Rows(gram, y[rows], self.counts[rows], objective, self.noise)
        if model == "student_t":
            return self._student(part, y, rows)
        level, g = _input_noise(part)
        slopes = np.zeros(len(y))
        slopes[rows] = g
        along = threads.product(np.asarray(self.kernel.cross(self.X, self.X[rows])), g[:, None])[:, 0]
        return RowNoise(level.noise, float(level.scale[0]), np.exp(-along), slopes, math.inf, level)

    def _one_variance(self, y: np.ndarray) -> RowNoise:
        rows, n = evenly(len(y), LEVEL_ROWS), len(y)
        gram = np.asarray(self.kernel.gram(self.X[rows]))
        error = self.kernel.table_error
        level = noise_level(
            gram, y[rows, None], self.counts[rows], objective=self.objective, noise=self.noise, error=error
        )
        return RowNoise(level.noise, float(level.scale[0]), np.ones(n), np.zeros(n), math.inf, level)

    def _student(self, part: _Rows, y: np.ndarray, rows: np.ndarray) -> RowNoise:
        found = max(_student_fits(part), key=lambda fit: fit.score)
        level, n = found.level, len(y)
        factors = np.ones(n)
        rest = np.setdiff1d(np.arange(n), rows)
        if len(rest) and found.degrees < math.inf:
            k, Z = self.kernel, self.X[rest]
            mean, less = part.predict(level, found.factors, np.asarray(k.cross(Z, self.X[rows])))
            squares = ((y[rest] - mean) / level.scale[0]) ** 2 + np.asarray(k.diag(Z)) - less
            factors[rest] = _expected(found.degrees, self.counts[rest] * squares / level.noise)
        factors[rows] = found.factors
        return RowNoise(level.noise, float(level.scale[0]), factors, np.zeros(n), found.degrees, level)


@final
@dataclass(frozen=True)
class _Rows:
    gram: np.ndarray
    y: np.ndarray
    counts: np.ndarray
    objective: Objective
    noise: float | None

    def level(self, y: np.ndarray, factors: np.ndarray) -> NoiseLevel:
        """Choose noise and scale at given factors of the rows."""
        weights = self.counts * factors
        return noise_level(
            self.gram.copy(), y[:, None], weights, objective=self.objective, noise=self.noise, counts=self.counts
        )

    def solve(self, level: NoiseLevel, factors: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the noise of the rows, the inverse of K + noise, and the factor L^{-1} of it."""
        noise = max(level.noise, np.finfo(np.float64).tiny) / (self.counts * factors)
        lower = np.linalg.cholesky(self.gram + np.diag(noise))
        whitener = scipy.linalg.solve_triangular(lower, np.eye(len(noise)), lower=True)
        return noise, threads.product(whitener.T, whitener), whitener

    def ratio(self, level: NoiseLevel, factors: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Compute E[(y_i - f_i)^2]/sigma_i^2 with f fitted to these targets, which need not be those of the rows."""
        noise, Q, _ = self.solve(level, factors)
        squares = ((self.y - (y - noise * (Q @ y))) / level.scale[0]) ** 2 + noise * (1 - noise * np.diagonal(Q))
        return np.asarray(self.counts * squares / level.noise)

    def predict(self, level: NoiseLevel, factors: np.ndarray, cross: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return mean, and the reduction of the variance in units of the kernel, at points of these covariances."""
        _, Q, whitener = self.solve(level, factors)
        return cross @ (Q @ self.y), np.sum((cross @ whitener.T) ** 2, axis=1)


class _StudentFit(NamedTuple):
    degrees: float
    factors: np.ndarray
    level: NoiseLevel
    score: float


def _expected(degrees: float, ratio: np.ndarray) -> np.ndarray:
    """Compute E[u] = (nu + 1)/(nu + E[(y - f)^2]/sigma^2)."""
    return np.asarray((degrees + 1) / (degrees + ratio))


def _student_fits(rows: _Rows) -> list[_StudentFit]:
    """Fit with every number of degrees of freedom, from Gaussian noise of the targets on, and of clipped targets."""
    ones = np.ones(len(rows.y))
    plain, clipped = rows.level(rows.y, ones), np.clip(rows.y, -CLIP, CLIP)
    starts = (rows.ratio(plain, ones, rows.y), rows.ratio(rows.level(clipped, ones), ones, clipped))
    gaussian = _StudentFit(math.inf, ones, plain, plain.score)
    return [gaussian, *(_student_fit(rows, nu, ratio) for nu in DEGREES for ratio in starts)]


def _student_fit(rows: _Rows, degrees: float, ratio: np.ndarray) -> _StudentFit:
    factors = _expected(degrees, ratio)
    for _ in range(STEPS):
        before, level = factors, rows.level(rows.y, factors)
        factors = _expected(degrees, rows.ratio(level, factors, rows.y))
        if np.abs(factors / before - 1).max() < CONVERGED:
            break
    level = rows.level(rows.y, factors)
    return _StudentFit(degrees, factors, level, level.score + _mixture(degrees, factors))


def _mixture(degrees: float, factors: np.ndarray) -> float:
    """Compute what the bound has beside the evidence at given factors: E[log u]/2 - KL(q(u) | Gamma(nu/2, nu/2)).

    q(u) = Gamma(a, a/factor), a = (nu + 1)/2.
    """
    a, c = (degrees + 1) / 2, degrees / 2
    b = a / factors
    divergence = (a - c) * digamma(a) - gammaln(a) + gammaln(c) + c * np.log(b / c) + a * (c - b) / b
    return float(np.sum((digamma(a) - np.log(b)) / 2 - divergence))


def _input_noise(rows: _Rows) -> tuple[NoiseLevel, np.ndarray]:
    """Return noise and scale, and the slopes of the logarithm of the variance."""
    factors, slopes = np.ones(len(rows.y)), np.zeros(len(rows.y))
    for _ in range(ROUNDS):
        level = rows.level(rows.y, factors)
        noise, Q, _ = rows.solve(level, factors)
        own = np.diagonal(Q)
        share = np.minimum(noise * own, 1.0)  # of the noise in the variance of a leave-one-out error
        squares = np.maximum((Q @ rows.y / own) ** 2, SMALLEST * level.scale[0] ** 2 / own)
        log_noise = np.log(squares * share * rows.counts) - LOG_CHI2[0]
        log_noise -= np.average(log_noise, weights=rows.counts)
        second = noise_level(
            rows.gram.copy(), log_noise[:, None], rows.counts, objective=rows.objective, variance=LOG_CHI2[1]
        )
        slopes = np.linalg.solve(rows.gram + np.diag(second.noise / rows.counts), log_noise)
        factors = np.exp(-(rows.gram @ slopes))
    return rows.level(rows.y, factors), slopes
