"""The average gradient outer product of a fitted function gives one scale an input (Radhakrishnan et al. 2024).

f(x) = K(s x, s X) (K(s X, s X) + noise/weights)^-1 y, M_jj = sum_i w_i (df/dx_j (x_i))^2/sum_i w_i, and the next s_j is
sqrt(M_jj), in units in which the mean of s^2 is 1: the diagonal of the metric of a recursive feature machine.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from widelimit.inference.conditioning import posterior
from widelimit.inference.input_scales import LOW
from widelimit.inference.noise_level import noise_level
from widelimit.inference.outputs import distinct_columns
from widelimit.inference.posterior import Posterior
from widelimit.inference.training_set import evenly
from widelimit.kernels.base import Kernel
from widelimit.progress import Report, no_progress

ROUNDS = 5
"""Fits after the first; the scales of the best leave-one-out density among all are kept."""
GRADIENT_ROWS = 200
"""Rows that the mean is taken over, evenly spread: each costs two values of f an input."""
STEP = 1e-4
"""The step of central differences, in units of scaled inputs."""


class GradientScales(NamedTuple):
    """The scales have the best leave-one-out density, in nats without constants, among those of all rounds."""

    score: float
    scales: np.ndarray
    """(d,), the mean of the squares is 1."""


def gradient_scales(
    kernel: Kernel,
    X: np.ndarray,
    y: np.ndarray,
    weights: np.ndarray,
    groups: np.ndarray,
    *,
    noise: float | None = None,
    progress: Report = no_progress,
) -> GradientScales:
    """Fit, take the mean squared gradient as the next scales, and again: ROUNDS times from scales 1.

    Args:
        kernel: a kernel, whose network may have any activation.
        X: (n, d) standardised inputs.
        y: (n, c) standardised targets.
        weights: (n,), > 0.
        groups: (d,) numbers; inputs of one number share the mean of their squared scales.
        noise: fixed, or None: the one of the best leave-one-out density of each round.
        progress: called with the stage and the share that is done.
    """
    y = y[:, distinct_columns(y)]
    scales, best = np.ones(X.shape[1]), GradientScales(-math.inf, np.ones(X.shape[1]))
    for i in range(ROUNDS + 1):
        progress("input scales", i, ROUNDS + 1)
        points = X * scales
        level = noise_level(
            np.array(kernel.gram(points)),
            y,
            weights,
            objective="leave_one_out",
            noise=noise,
            error=kernel.table_error,
        )
        if level.score > best.score:
            best = GradientScales(level.score, scales)
        if i < ROUNDS:
            fitted = posterior(kernel, points, y, noise=level.noise / weights)
            square = scales**2 * mean_squared_gradient(fitted, points, weights)
            scales = _normalised(np.bincount(groups, square)[groups] / np.bincount(groups)[groups])
    return best


def _normalised(square: np.ndarray) -> np.ndarray:
    """Return the scales whose squares are proportional to these; none is 0, as no map of inputs forgets a column."""
    mean = float(np.mean(square))
    if not mean > 0:
        return np.ones_like(square)
    return np.maximum(np.sqrt(square / mean), math.exp(LOW[0]))


def mean_squared_gradient(fitted: Posterior, X: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Compute the weighted mean over some rows of the squared gradient of the mean, summed over outputs: (d,).

    Central differences are right to 1e-6, compile nothing, and give at a cusp the mean of both sides.
    """
    rows = evenly(len(X), GRADIENT_ROWS)
    points, share = X[rows], weights[rows] / weights[rows].sum()
    steps = STEP * np.eye(X.shape[1])
    slopes = ((fitted.mean(points + step) - fitted.mean(points - step)) / (2 * STEP) for step in steps)
    return np.array([share @ np.sum(slope**2, axis=1) for slope in slopes])
