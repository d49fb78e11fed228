"""Noise and scale of the targets are found by likelihood, marginal or leave-one-out, at one eigendecomposition."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np

from widelimit.compute import linalg, threads
from widelimit.inference.outputs import constant, distinct_columns
from widelimit.shapes import Float

GRID = 10.0 ** np.arange(-4, 2.01, 0.25)
"""Noise variances tried, in units of the mean of K(x, x).

Not below 1e-4: rough kernels (the NTK's) find any smaller noise likely, and are then sure of wrong predictions at near
duplicates of training rows.
"""

Objective = Literal["marginal_likelihood", "leave_one_out"]


class NoiseLevel(NamedTuple):
    """y_j = scale_j (f + e), f ~ GP(0, K), e ~ N(0, noise/w_i): the most likely of GRID."""

    noise: float
    scale: Float[np.ndarray, " c"]
    score: float
    """The logarithm of the likelihood of the outputs that count, without the terms that depend on neither K, noise
    nor scale."""


def noise_level(
    gram: Float[np.ndarray, "n n"],
    y: Float[np.ndarray, "n c"],
    weights: Float[np.ndarray, " n"],
    *,
    objective: Objective = "marginal_likelihood",
    noise: float | None = None,
    columns: np.ndarray | None = None,
) -> NoiseLevel:
    """Find argmax over noise r of GRID and scales s of sum_j log N(y_j; 0, s_j^2 (K + r W^{-1})).

    Weight w is w equal rows.

    With W^{1/2} K W^{1/2} = V diag(lambda) V^T, q = V^T W^{1/2} y, N = sum w: for each r the best s_j^2 is
    sum_i q_ij^2/(lambda_i + r)/N, and the likelihood then a sum over modes. "leave_one_out" has sum_i w_i log p(y_i |
    the other rows) instead, and its best s_j^2 = sum_i alpha_ij^2/Q_ii/N, Q = (W^{1/2} K W^{1/2} + r)^{-1}, alpha =
    Q W^{1/2} y. Rasmussen and Williams 2006, sections 5.4.1 and 5.4.2.

    The sum goes over the `distinct_columns` of y; every output gets its scale.

    Args:
        gram: K(X, X); overwritten.
        y: targets, in any unit.
        weights: > 0.
        objective: which likelihood.
        noise: r, where it is not to be chosen; then s = 1, and only the score is found.
        columns: the distinct columns of y, if they are known already.

    Raises:
        ValueError: the kernel is not positive semi-definite.
    """
    total = float(weights.sum())
    unit = float(weights @ np.diagonal(gram)) / total
    root = np.sqrt(weights)
    gram *= root[:, None]
    gram *= root
    values, vectors = linalg.eigenpairs(gram)
    every = _Spectrum(np.maximum(values, 0.0), vectors, threads.product(vectors.T, root[:, None] * y), weights, total)
    columns = distinct_columns(y) if columns is None else columns
    some = every if len(columns) == y.shape[1] else every._replace(targets=every.targets[:, columns])
    if noise is not None:
        level = max(noise, np.finfo(np.float64).tiny)
        return NoiseLevel(noise, np.ones(y.shape[1]), some.of(objective)(level, free=False).score)
    tried = GRID * (unit if unit > 0 else 1.0)
    best = max((some.of(objective)(float(r), free=True) for r in tried), key=lambda level: level.score)
    scale = every.of(objective)(best.noise, free=True).scale
    return best._replace(scale=np.where(constant(y), 1.0, scale))


class _Spectrum(NamedTuple):
    """W^{1/2} K W^{1/2} = V diag(values) V^T and V^T W^{1/2} y."""

    values: np.ndarray
    vectors: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    total: float

    def of(self, objective: Objective) -> Callable[..., NoiseLevel]:
        """Return the likelihood of this name."""
        return self.marginal if objective == "marginal_likelihood" else self.leave_one_out

    def _scale(self, square: np.ndarray, *, free: bool) -> np.ndarray:
        """Return s_j^2: the most likely one, if it is free; 1 for an output that is 0."""
        return np.where((square > 0) & free, square, 1.0)

    def marginal(self, noise: float, *, free: bool) -> NoiseLevel:
        spectrum = self.values + noise
        square = np.sum(self.targets**2 / spectrum[:, None], axis=0) / self.total
        scale = self._scale(square, free=free)
        determinant = float(np.sum(np.log(spectrum))) + (self.total - len(spectrum)) * math.log(noise)
        terms = square / scale + np.log(scale)
        return NoiseLevel(noise, np.sqrt(scale), -(len(square) * determinant + self.total * float(terms.sum())) / 2)

    def leave_one_out(self, noise: float, *, free: bool) -> NoiseLevel:
        spectrum = self.values + noise
        alpha = threads.product(self.vectors, self.targets / spectrum[:, None])
        own = threads.product(self.vectors**2, 1 / spectrum)
        square = self.weights @ (alpha**2 / own[:, None]) / self.total
        scale = self._scale(square, free=free)
        fit = self.total * (square / scale + np.log(scale)) - self.weights @ np.log(own)
        return NoiseLevel(noise, np.sqrt(scale), -float(fit.sum()) / 2)
