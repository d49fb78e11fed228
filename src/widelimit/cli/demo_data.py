"""The demo's data are sets that scikit-learn ships, split 70/30 and standardised by training statistics."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from sklearn.datasets import load_diabetes, load_digits
from sklearn.model_selection import train_test_split

from widelimit.cli.comparison import SplitData

TEST_SHARE = 0.3


def diabetes(*, seed: int, size: int) -> SplitData:
    """Load disease progression of the first `size` of 442 patients from 10 measurements."""
    X, y = load_diabetes(return_X_y=True)
    split = train_test_split(np.arange(size), test_size=TEST_SHARE, random_state=seed)

    def standardise(inside: np.ndarray, outside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        centre, spread = X[inside].mean(axis=0), X[inside].std(axis=0)
        return (X[inside] - centre) / spread, (X[outside] - centre) / spread

    return SplitData("regression", y[:size], [tuple(split)], standardise)


def digits(*, seed: int, size: int) -> SplitData:
    """Load the first `size` of 1797 images of digits, 8 x 8 pixels.

    Pixels are centred and divided by their common spread, so that a pixel that is nearly always blank keeps its scale.
    """
    X, labels = load_digits(return_X_y=True)
    labels = labels[:size]
    split = train_test_split(np.arange(size), test_size=TEST_SHARE, random_state=seed, stratify=labels)

    def standardise(inside: np.ndarray, outside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        centre = X[inside].mean(axis=0)
        spread = (X[inside] - centre).std()
        return (X[inside] - centre) / spread, (X[outside] - centre) / spread

    return SplitData("classification", labels, [tuple(split)], standardise)


SETS: dict[str, tuple[Callable[..., SplitData], int]] = {"diabetes": (diabetes, 442), "digits": (digits, 1797)}
"""Data sets and their sizes."""
