"""Quantiles and intervals of a new observation are those of its law, or of the rows that were left out of the fit."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import gammainccinv, gammaincinv, ndtr, ndtri, stdtrit

from widelimit.shapes import Float

NODES = 200
"""Nodes of the mixture of Gaussians that is Student's t: the trapezoidal rule in log u, right to 1e-10."""
BLOCK = 500
"""Points at once."""
HALVINGS = 60
"""Steps of bisection, to the rounding of a quantile."""


def quantiles(
    mean: Float[np.ndarray, " m"],
    variance: Float[np.ndarray, " m"],
    noise: Float[np.ndarray, " m"],
    degrees: float,
    levels: Float[np.ndarray, " k"],
) -> Float[np.ndarray, "m k"]:
    """Compute quantiles of f + e, f ~ N(mean, variance), e/sqrt(noise) ~ Student's t of these degrees of freedom.

    e is N(0, noise/u), u ~ Gamma(nu/2, nu/2): the distribution is a mixture over u, inverted by bisection.
    """
    if degrees == math.inf:
        return np.asarray(mean[:, None] + np.sqrt(variance + noise)[:, None] * ndtri(levels))
    if len(mean) > BLOCK:
        parts = (slice(i, i + BLOCK) for i in range(0, len(mean), BLOCK))
        return np.concatenate([quantiles(mean[at], variance[at], noise[at], degrees, levels) for at in parts])
    half = degrees / 2
    low_u, high_u = (float(np.log(inverse(half, 1e-14) / half)) for inverse in (gammaincinv, gammainccinv))
    log_u = np.linspace(low_u, high_u, NODES)
    weight = np.exp(half * (log_u - np.exp(log_u) + 1))
    spread = np.sqrt(variance[:, None] + noise[:, None] * np.exp(-log_u))  # (m, nodes)
    far = 10 * np.sqrt(variance + noise)[:, None] * np.abs(stdtrit(degrees, levels)).max() * np.ones(len(levels))
    low, high = -far, far
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        below = ndtr(middle[:, :, None] / spread[:, None, :]) @ (weight / weight.sum()) < levels
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return np.asarray(mean[:, None] + (low + high) / 2)


def mixture_quantiles(
    mean: Float[np.ndarray, "k *m"],
    deviation: Float[np.ndarray, "k *m"],
    shares: Float[np.ndarray, " k"],
    levels: Float[np.ndarray, " l"],
) -> Float[np.ndarray, "*m l"]:
    """Compute quantiles of sum_k share_k N(mean_k, deviation_k^2), by bisection between those of its components."""
    mean, deviation = mean[..., None], deviation[..., None]
    ends = mean + deviation * ndtri(levels)
    low, high = ends.min(axis=0), ends.max(axis=0)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        below = np.tensordot(shares, ndtr((middle - mean) / deviation), 1) < levels
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return np.asarray((low + high) / 2)


def order_quantiles(scores: Float[np.ndarray, " n"], levels: Float[np.ndarray, " k"]) -> Float[np.ndarray, " k"]:
    """Compute quantiles of standardised errors, the i-th smallest of n at i/(n + 1).

    Beyond the smallest and largest one they go on as those of a standard normal variable.
    """
    places = np.arange(1, len(scores) + 1) / (len(scores) + 1)
    inner = np.clip(levels, places[0], places[-1])
    return np.asarray(np.interp(inner, places, np.sort(scores)) + ndtri(levels) - ndtri(inner))


def place(level: float, n: int) -> int:
    """Return ceil(level (n + 1)), the order statistic of a conformal interval. Raises: ValueError: there is none."""
    found = math.ceil(level * (n + 1) - 1e-9)
    if found > n:
        least = math.ceil(level / (1 - level) - 1e-9)
        raise ValueError(
            f'method="conformal" needs at least {least} distinct training rows for level={level:.6g}, got {n}: fit '
            'more rows, or take a lower level or method="gaussian".'
        )
    return found


def jackknife_plus(
    center: Float[np.ndarray, "m n"],
    deviation: Float[np.ndarray, "m n"],
    scores: Float[np.ndarray, " n"],
    level: float,
) -> Float[np.ndarray, "m 2"]:
    """Compute the interval from order statistics of center_i -/+ deviation_i score_i.

    center_i, deviation_i: prediction at a new point without row i; score_i = |y_i - center_i(x_i)|/deviation_i(x_i).
    Barber, Candes, Ramdas and Tibshirani 2021 (Annals of Statistics 49), equation (1.4), with errors in units of the
    deviation. Raises: ValueError: too few rows for the level.
    """
    n = len(scores)
    at, reach = place(level, n) - 1, deviation * scores
    low = np.partition(center - reach, n - 1 - at, axis=1)[:, n - 1 - at]
    return np.column_stack([low, np.partition(center + reach, at, axis=1)[:, at]])
