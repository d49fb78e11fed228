"""The demo's data are sets that scikit-learn ships, split 70/30 and standardised by training statistics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import numpy as np
from sklearn.datasets import load_diabetes, load_digits
from sklearn.model_selection import train_test_split

TEST_SHARE = 0.3


@final
@dataclass(frozen=True)
class DemoProblem:
    """A problem is one split of one data set: what models see (X, y, Z), and what they are scored against."""

    name: str
    classes: int
    """0 for regression."""
    X: np.ndarray
    """(n, d) training inputs, standardised."""
    y: np.ndarray
    """(n, c) training targets, standardised: (y - offset)/scale, one-hot for classes."""
    Z: np.ndarray
    """(m, d) test inputs, standardised by the training inputs."""
    truth: np.ndarray
    """(m,) test targets in their own unit, or labels."""
    offset: np.ndarray
    """(c,)"""
    scale: float


def diabetes(*, seed: int, size: int) -> DemoProblem:
    """Load disease progression of the first `size` of 442 patients from 10 measurements; all standardised."""
    X, y = load_diabetes(return_X_y=True)
    X, Z, y, truth = train_test_split(X[:size], y[:size], test_size=TEST_SHARE, random_state=seed)
    centre, spread = X.mean(axis=0), X.std(axis=0)
    offset, scale = y.mean(), float(y.std())
    targets = ((y - offset) / scale)[:, None]
    return DemoProblem(
        "diabetes", 0, (X - centre) / spread, targets, (Z - centre) / spread, truth, np.array([offset]), scale
    )


def digits(*, seed: int, size: int) -> DemoProblem:
    """Load the first `size` of 1797 images of digits, 8 x 8 pixels.

    Pixels are centred and divided by their common spread, so that none that is always blank is blown up;
    one-hot targets likewise.
    """
    X, labels = load_digits(return_X_y=True)
    X, Z, labels, truth = train_test_split(
        X[:size] / 16, labels[:size], test_size=TEST_SHARE, random_state=seed, stratify=labels[:size]
    )
    centre = X.mean(axis=0)
    spread = (X - centre).std()
    one_hot = np.eye(10)[labels]
    offset = one_hot.mean(axis=0)
    scale = float((one_hot - offset).std())
    targets = (one_hot - offset) / scale
    return DemoProblem("digits", 10, (X - centre) / spread, targets, (Z - centre) / spread, truth, offset, scale)


SETS: dict[str, tuple[Callable[..., DemoProblem], int]] = {"diabetes": (diabetes, 442), "digits": (digits, 1797)}
"""Data sets and their sizes."""
