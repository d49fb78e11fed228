"""Noise and scale of the targets are found by likelihood, marginal or leave-one-out, at one eigendecomposition."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np

from widelimit.compute import linalg, threads
from widelimit.inference.outputs import constant, distinct_columns
from widelimit.inference.training_set import evenly
from widelimit.kernels.base import Kernel
from widelimit.shapes import Float

STEP = 0.25
"""Noise variances are tried at these steps of log10 in units of the mean of K(x, x), ..."""
HIGHEST = 2.0
"""... up to 10 to this power, ..."""
FLOOR = 16
"""... from this multiple of n eps max K(x, x), or of the negative eigenvalue that tables of activations leave: below it
the matrix is singular to its errors, and no noise differs from another."""
ERROR_ROWS = 500
"""Rows from which `least_noise` finds what the tables of activations leave."""
PRIOR = (math.log(0.1), 3.0)
"""Mean and deviation of the logarithm of the noise variance of a standardised target.

A rough kernel (the NTK's) explains noise nearly as well as the noise does: its likelihood is flat down to a noise of 0,
at which it is sure of wrong predictions near rows of the table. Data without noise outweigh the prior.
"""

SURPRISES = 4.0
"""Rows that count as predicted no better than left-out rows on average, in the least noise of a learned kernel."""

Objective = Literal["marginal_likelihood", "leave_one_out"]


class NoiseLevel(NamedTuple):
    """y_j = scale_j (f + e), f ~ GP(0, K), e ~ N(0, noise/w_i): the most likely of a grid."""

    noise: float
    scale: Float[np.ndarray, " c"]
    score: float
    """The logarithm of the likelihood of the outputs that count, without the terms that depend on neither K, noise
    nor scale; with that of the prior, where the noise was chosen."""
    bound: Literal["", "lower", "upper"] = ""
    """The end of the grid that was chosen."""


def noise_level(
    gram: Float[np.ndarray, "n n"],
    y: Float[np.ndarray, "n c"],
    weights: Float[np.ndarray, " n"],
    *,
    objective: Objective = "marginal_likelihood",
    noise: float | None = None,
    columns: np.ndarray | None = None,
    counts: Float[np.ndarray, " n"] | None = None,
    variance: float | None = None,
    error: float = 0.0,
) -> NoiseLevel:
    """Find argmax over noise r and scales s of sum_j log N(y_j; 0, s_j^2 (K + r W^{-1})), with a weak prior on s_j^2 r.

    Weight w divides the noise of a row by w, and says no more of the noise than a weight of 1: so that a row given
    twice is the same as a weight of 2, equal rows are merged before (`left_out.distinct_rows`).

    With W^{1/2} K W^{1/2} = V diag(lambda) V^T, q = V^T W^{1/2} y, N = sum w: for each r the best s_j^2 is
    sum_i q_ij^2/(lambda_i + r)/n, and the likelihood then a sum over modes. "leave_one_out" has sum_i w_i log p(y_i |
    the other rows) instead, and its best s_j^2 = sum_i alpha_ij^2/Q_ii/N, Q = (W^{1/2} K W^{1/2} + r)^{-1}, alpha =
    Q W^{1/2} y. Rasmussen and Williams 2006, sections 5.4.1 and 5.4.2.

    The sum goes over the `distinct_columns` of y; every output gets its scale. A noise of 0 has no likelihood where K
    is singular to rounding: its scale is that of the least noise. Targets of 0 get the mean of K(x, x) as their noise.

    Args:
        gram: K(X, X); overwritten.
        y: targets, in any unit.
        weights: > 0.
        objective: which likelihood.
        noise: r, where it is not to be chosen; then only scales and score are found.
        columns: the distinct columns of y, if they are known already.
        counts: the weights of a leave-one-out sum, where those of the noise have another factor too.
        variance: s_j^2 r, where it is known.
        error: relative error of the entries of K(X, X), `Kernel.table_error`.

    Raises:
        ValueError: the kernel is not positive semi-definite, or not finite.
    """
    linalg.refuse_non_finite(gram)
    counts = weights if counts is None else counts
    typical = float(np.median(weights))  # in whose unit noises are tried
    weights = weights / typical
    total = float(counts.sum())
    unit = float(counts @ np.diagonal(gram)) / total or 1.0
    floor = FLOOR * linalg.rounding(len(gram), float(np.diagonal(gram).max())) or linalg.EPS
    root = np.sqrt(weights)
    gram *= root[:, None]
    gram *= root
    bound = linalg.eigenvalue_error(gram, error)
    values, vectors = linalg.decompose(gram)
    values, floor = linalg.semi_definite(values, bound), max(floor, -FLOOR * float(values[0]) if error else 0.0)
    targets, known = threads.product(vectors.T, root[:, None] * y), None if variance is None else variance / typical
    every = _Spectrum(np.maximum(values, 0.0), vectors, targets, counts, total, float(weights.sum()), known)
    columns = distinct_columns(y) if columns is None else columns
    some = every if len(columns) == y.shape[1] else every._replace(targets=every.targets[:, columns])
    if noise is None:
        lowest = math.ceil(math.log10(floor / unit) / STEP)
        steps = np.arange(min(lowest, HIGHEST / STEP), HIGHEST / STEP + 1)
        tried = unit * 10.0 ** (STEP * steps)
        some_vary = bool(some.targets.any())
        best = _most_likely(some, objective, tried.tolist()) if some_vary else some.of(objective)(max(unit, tried[0]))
    else:
        best = some.of(objective)(max(noise / typical, floor))
    scale = np.where(constant(y), 1.0, every.of(objective)(best.noise).scale)
    return best._replace(noise=typical * best.noise if noise is None else noise, scale=scale)


def least_noise(kernel: Kernel, X: np.ndarray) -> float:
    """Return the least noise that arithmetic distinguishes from 0: see `FLOOR`. X: (n, d), of which 500 rows count."""
    largest = float(np.max(np.asarray(kernel.diag(X))))
    floor = FLOOR * linalg.rounding(len(X), largest)
    if not kernel.table_error:
        return floor
    some = X[evenly(len(X), ERROR_ROWS)]
    lowest = float(linalg.eigenvalues(np.array(kernel.gram(some)), kernel.table_error)[0])
    return max(floor, -FLOOR * lowest * len(X) / len(some))


class LeftOutNoise(NamedTuple):
    """The noise and the variances of the outputs are chosen so that they agree with the errors at left-out rows."""

    noise: float
    factor: Float[np.ndarray, " c"]
    """The factor of the variance of each output."""
    log_density: Float[np.ndarray, " n"]
    """log p(y_i | the other rows) of a row with all its distinct columns, but for terms of weights and of pi."""
    counts: Float[np.ndarray, " n"]
    """The count of each row: its weight, at most 1."""


def left_out_noise(
    gram: Float[np.ndarray, "n n"],
    y: Float[np.ndarray, "n c"],
    weights: Float[np.ndarray, " n"],
    noise: float,
    *,
    fixed: bool = False,
    error: float = 0.0,
) -> LeftOutNoise:
    """Return a larger noise, and factors >= 1 of the variances of each output, where left-out rows ask for them.

    Evidence takes plateaus of the target for absence of noise, and is sure of them at new rows too. The noise is at
    least SURPRISES/(n + SURPRISES) of the mean squared error of rows that are left out; with e_i these errors and v_i
    their variances, the factor is the mean of e_i^2/v_i. A row counts with its weight, and at most as one: all copies
    of a row are left out with it, while a new row like it finds them there. With v_i after that, the logarithm of the
    density of a row is -(e_i^2/v_i + log v_i)/2. The mean of the targets loses what the row counts too: two rows are
    predicted by one another. Arguments as of `noise_level`, targets of weighted mean 0; `gram` is overwritten; fixed:
    noise and variances stay.
    """
    typical = float(np.median(weights))  # a row of it counts as one, whatever the unit of weights
    weights, noise = weights / typical, noise / typical
    root, counts = np.sqrt(weights), np.minimum(weights, 1.0)
    total = float(counts.sum())
    gram *= root[:, None]
    gram *= root
    values, vectors = linalg.eigenpairs(gram, error)
    targets = threads.product(vectors.T, root[:, None] * np.column_stack([y, np.ones(len(y))]))
    spectrum = _Spectrum(np.maximum(values, 0.0), vectors, targets, counts, total, float(weights.sum()), None)
    shift = y * (counts / np.maximum(weights.sum() - counts, counts))[:, None]  # less the mean without the row
    alpha, own = _without_mean(spectrum, noise, shift)
    factor = np.ones(y.shape[1])
    if not fixed:
        errors = (alpha / (root * own)[:, None])[:, y.any(axis=0)]
        square = float(np.sum(counts @ errors**2)) / (total * max(errors.shape[1], 1))
        noise = max(noise, SURPRISES / (total + SURPRISES) * square)
        alpha, own = _without_mean(spectrum, noise, shift)
        factor = np.maximum(counts @ (alpha**2 / own[:, None]) / total, 1.0)
    some = distinct_columns(y)
    surprise = alpha[:, some] ** 2 / (own[:, None] * factor[some]) + np.log(factor[some]) - np.log(own)[:, None]
    return LeftOutNoise(typical * noise, factor, -surprise.sum(axis=1) / 2, counts)


def _without_mean(spectrum: _Spectrum, noise: float, shift: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute alpha and diagonal of `left_out`, each row with targets whose mean without it is -shift_i.

    The last target is 1: its error is what a mean of 1 adds to the error of a row.
    """
    alpha, own = spectrum.left_out(noise)
    return alpha[:, :-1] + shift * alpha[:, -1:], own


def _most_likely(spectrum: _Spectrum, objective: Objective, tried: list[float]) -> NoiseLevel:
    """Return the best of these noises, with the prior on the noise of standardised targets."""
    power = np.sum(spectrum.targets**2, axis=0) / spectrum.power
    found = []
    for noise in tried:
        level = spectrum.of(objective)(noise)
        away = (np.log(level.scale[power > 0] ** 2 * noise / power[power > 0]) - PRIOR[0]) / PRIOR[1]
        found.append(level._replace(score=level.score - float(away @ away) / 2))
    best = max(range(len(tried)), key=lambda i: found[i].score)
    return found[best]._replace(bound="lower" if best == 0 else "upper" if best == len(tried) - 1 else "")


class _Spectrum(NamedTuple):
    """W^{1/2} K W^{1/2} = V diag(values) V^T and V^T W^{1/2} y."""

    values: np.ndarray
    vectors: np.ndarray
    targets: np.ndarray
    counts: np.ndarray
    total: float
    power: float
    """The sum of all weights."""
    variance: float | None

    def of(self, objective: Objective) -> Callable[[float], NoiseLevel]:
        """Return the likelihood of this name."""
        return self.marginal if objective == "marginal_likelihood" else self.leave_one_out

    def _scale(self, square: np.ndarray, noise: float) -> np.ndarray:
        """Return s_j^2: the most likely one, or that of the known variance; 1 for an output that is 0."""
        return np.where(square > 0, square if self.variance is None else self.variance / noise, 1.0)

    def marginal(self, noise: float) -> NoiseLevel:
        spectrum = self.values + noise
        n = len(spectrum)
        square = np.sum(self.targets**2 / spectrum[:, None], axis=0) / n
        scale = self._scale(square, noise)
        terms = square / scale + np.log(scale)
        score = -(len(square) * float(np.sum(np.log(spectrum))) + n * float(terms.sum())) / 2
        return NoiseLevel(noise, np.sqrt(scale), score)

    def leave_one_out(self, noise: float) -> NoiseLevel:
        alpha, own = self.left_out(noise)
        square = self.counts @ (alpha**2 / own[:, None]) / self.total
        scale = self._scale(square, noise)
        fit = self.total * (square / scale + np.log(scale)) - self.counts @ np.log(own)
        return NoiseLevel(noise, np.sqrt(scale), -float(fit.sum()) / 2)

    def left_out(self, noise: float) -> tuple[np.ndarray, np.ndarray]:
        """Compute A^{-1} W^{1/2} y and the diagonal of A^{-1}, A = W^{1/2} K W^{1/2} + noise."""
        spectrum = self.values + noise
        alpha = threads.product(self.vectors, self.targets / spectrum[:, None])
        return alpha, threads.product(self.vectors**2, 1 / spectrum)
