"""Noise and scale of the targets by marginal likelihood, at one eigendecomposition."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from widelimit.compute import linalg

GRID = 10.0 ** np.arange(-7, 2.01, 0.25)
"""Noise variances tried, in units of the mean of K(x, x)."""


class NoiseLevel(NamedTuple):
    """y_j = scale_j (f + e), f ~ GP(0, K), e ~ N(0, noise/w_i): the most likely of GRID."""

    noise: float
    scale: Float[np.ndarray, " c"]


def noise_level(
    gram: Float[np.ndarray, "n n"], y: Float[np.ndarray, "n c"], weights: Float[np.ndarray, " n"]
) -> NoiseLevel:
    """argmax over noise r of GRID and scales s of sum_j log N(y_j; 0, s_j^2 (K + r W^{-1})), weight w being w equal rows.

    With W^{1/2} K W^{1/2} = V diag(lambda) V^T, q = V^T W^{1/2} y, N = sum w: for each r the best s_j^2 is
    sum_i q_ij^2/(lambda_i + r)/N, and the likelihood then a sum over modes. Rasmussen and Williams 2006, section 5.4.

    Args:
        gram: K(X, X); overwritten.
        y: targets, in any unit.
        weights: > 0.
    """
    total, outputs = float(weights.sum()), y.shape[1]
    unit = float(weights @ np.diagonal(gram)) / total
    root = np.sqrt(weights)
    gram *= root[:, None]
    gram *= root
    values, vectors = linalg.eigenpairs(gram)
    squares = (vectors.T @ (root[:, None] * y)) ** 2
    best, found = -math.inf, NoiseLevel(1.0, np.ones(outputs))
    for noise in GRID * (unit if unit > 0 else 1.0):
        spectrum = np.maximum(values, 0.0) + noise
        variance = np.sum(squares / spectrum[:, None], axis=0) / total
        variance = np.where(variance > 0, variance, 1.0)
        determinant = np.sum(np.log(spectrum)) + (total - len(values)) * math.log(noise)
        score = -(outputs * determinant + total * np.sum(np.log(variance))) / 2
        if score > best:
            best, found = score, NoiseLevel(float(noise), np.sqrt(variance))
    return found
