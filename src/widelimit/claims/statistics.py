"""Means have standard errors, and a power law is fitted to them."""

from typing import NamedTuple

import numpy as np


class Line(NamedTuple):
    """A straight line is fitted to logarithms, y = exp(intercept) x^slope."""

    slope: float
    error: float
    """Standard error of the slope."""
    intercept: float


def power_law(x: np.ndarray, y: np.ndarray, errors: np.ndarray) -> Line:
    """Fit the exponent of y in x by weighted least squares of log y on log x.

    Args:
        x: (k,) positive, at least three different ones.
        y: (k,) positive means.
        errors: (k,) their standard errors, from independent repetitions. The slope's error follows from them, enlarged
            where the points scatter more about the line than they should.
    """
    u, v, sigma = np.log(x), np.log(y), errors / y
    weight = 1 / sigma**2
    centre = np.sum(weight * u) / np.sum(weight)
    spread = np.sum(weight * (u - centre) ** 2)
    slope = np.sum(weight * (u - centre) * v) / spread
    intercept = np.sum(weight * (v - slope * u)) / np.sum(weight)
    scatter = np.sum(weight * (v - slope * u - intercept) ** 2) / (len(x) - 2)
    return Line(float(slope), float(np.sqrt(max(scatter, 1.0) / spread)), float(intercept))


def mean_and_error(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute the mean over the first axis, independent repetitions, and its standard error."""
    return samples.mean(axis=0), samples.std(axis=0, ddof=1) / np.sqrt(len(samples))


def root_mean_and_error(squares: np.ndarray) -> tuple[float, float]:
    """Compute the root of the mean of (n,) independent squares, and its standard error to first order."""
    mean, error = mean_and_error(squares)
    root = float(np.sqrt(mean))
    return root, float(error) / (2 * root)
