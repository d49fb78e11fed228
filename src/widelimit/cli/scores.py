"""These scores judge predictive distributions, on test points that no model has seen."""

from __future__ import annotations

import math

import numpy as np

from widelimit.shapes import Float, Int

NORMAL_QUANTILE = 1.959963984540054
"""The 97.5 % quantile of N(0, 1): mean +- this many standard deviations contain 95 %."""

LEVEL = 0.95


def rmse(mean: Float[np.ndarray, " m"], truth: Float[np.ndarray, " m"]) -> float:
    """Compute sqrt(mean (y - mu)^2), in y's unit, which may be any."""
    error = np.abs(truth - mean)
    unit = float(np.max(error, initial=0.0)) or 1.0
    return float(unit * np.sqrt(np.mean((error / unit) ** 2)))


def gaussian_nlpd(mean: Float[np.ndarray, " m"], sd: Float[np.ndarray, " m"], truth: Float[np.ndarray, " m"]) -> float:
    """Compute -mean log N(y; mu, sd^2), in nats per point; it depends on y's unit.

    Without noise, sd = 0, it is infinite: > 0 where any observation differs from its mean, else < 0.
    """
    z = standardised(truth, mean, sd)
    if np.isinf(z).any():
        return math.inf
    with np.errstate(divide="ignore"):
        return float(np.mean(z**2 / 2 + np.log(sd) + math.log(2 * math.pi) / 2))


def standardised(
    y: Float[np.ndarray, " m"], mean: Float[np.ndarray, " m"], sd: Float[np.ndarray, " m"]
) -> Float[np.ndarray, " m"]:
    """Return errors in units of their standard deviations; 0 where both are 0."""
    error = y - mean
    with np.errstate(divide="ignore"):
        return np.asarray(np.divide(error, sd, out=np.zeros_like(error), where=(error != 0) | (sd > 0)))


def interval_coverage(
    mean: Float[np.ndarray, " m"], sd: Float[np.ndarray, " m"], truth: Float[np.ndarray, " m"]
) -> float:
    """Return the share of the observations within mu +- 1.96 sd: 0.95 for a calibrated model."""
    return float(np.mean(np.abs(truth - mean) <= NORMAL_QUANTILE * sd))


def gaussian_scores(
    mean: Float[np.ndarray, " m"], sd: Float[np.ndarray, " m"], truth: Float[np.ndarray, " m"]
) -> dict[str, float]:
    """Compute the three scores of normal predictions, by name."""
    return {
        "rmse": rmse(mean, truth),
        "nlpd": gaussian_nlpd(mean, sd, truth),
        "coverage_95": interval_coverage(mean, sd, truth),
    }


def accuracy(log_p: Float[np.ndarray, "m k"], labels: Int[np.ndarray, " m"]) -> float:
    """Return the share of the points whose most probable class is the true one."""
    return float(np.mean(log_p.argmax(axis=1) == labels))


def class_nlpd(log_p: Float[np.ndarray, "m k"], labels: Int[np.ndarray, " m"]) -> float:
    """Compute -mean log p of the true class, in nats per point."""
    return float(np.mean(0.0 - np.take_along_axis(log_p, labels[:, None], axis=1)))  # 0.0: no -0


def class_sets(log_p: Float[np.ndarray, "m k"]) -> np.ndarray:
    """Find the smallest sets of classes that hold 95 % probability: booleans (m, k).

    Classes enter from the most probable on, until the set holds 95 %.
    """
    order = np.argsort(-log_p, axis=1, kind="stable")
    p = np.take_along_axis(np.exp(log_p), order, axis=1)
    before = np.cumsum(p, axis=1) - p
    rounding = log_p.shape[1] * np.finfo(np.float64).eps
    inside = np.empty(log_p.shape, bool)
    np.put_along_axis(inside, order, before < LEVEL - rounding, axis=1)
    return inside


def set_coverage(log_p: Float[np.ndarray, "m k"], labels: Int[np.ndarray, " m"]) -> float:
    """Return the share of points whose true class is in its set of `class_sets`: >= 0.95 for a calibrated model."""
    return float(np.mean(np.take_along_axis(class_sets(log_p), labels[:, None], axis=1)))


def mean_set_size(log_p: Float[np.ndarray, "m k"]) -> float:
    """Return the mean number of classes in the sets of `class_sets`."""
    return float(class_sets(log_p).sum(axis=1).mean())
