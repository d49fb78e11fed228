"""Warnings name columns that spoil a fit: one that repeats the target, and one whose values but one hardly differ."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

from widelimit.shapes import Float, Int

REPEATS = 1e-6
"""1 - |correlation| below which a column, or its ranks, are the target: the rest of it has 0.2 % of the spread."""
FEWEST = 20
"""Rows from which on that is no accident."""
NAMED = 3
"""Columns that a warning names."""
FAR = 1e-3
"""Share of a column's deviation that is left without its farthest value, below which a warning says so."""


def warn(
    X: Float[np.ndarray, "n d"], y: np.ndarray, targets: Float[np.ndarray, "n c"], names: Sequence[str] | None
) -> None:
    """Warn of the columns that repeat the target, and of those that have a value far from all others.

    Args:
        X: (n, d) rows.
        y: (n,) or (n, c) numbers, or (n,) labels.
        targets: (n, c) what is fitted by least squares.
        names: (d,) of the columns, or None.
    """
    _warn_of_far_values(X, names)
    if len(X) < FEWEST or X.shape[1] == 1:  # a function of one column may well be monotone
        return
    labels = y.ndim == 1 and targets.shape[1] > 1
    found = (naming(X, y) if labels else repeating(X, targets)).tolist()
    if not found:
        return
    shown = ", ".join(str(j) if names is None else repr(str(names[j])) for j in found[:NAMED])
    warnings.warn(
        f"column {shown}{', ...' if len(found) > NAMED else ''} of X repeats the target: a fit is perfect if the "
        "answer is in the table. If new rows do not have it, leave the column out.",
        stacklevel=6,
    )


def _warn_of_far_values(X: np.ndarray, names: Sequence[str] | None) -> None:
    for j, column in enumerate(X.T):
        value = far_value(column)
        if value is not None:
            others = column[column != value]
            warnings.warn(
                f"column {j if names is None else repr(str(names[j]))} of X has the value {value:.6g} in "
                f"{len(column) - len(others)} rows, and {others.min():.6g} to {others.max():.6g} in all others, which "
                "hardly differ beside it. If it stands for a missing value, leave it empty; if it is real, take the "
                "logarithm of the column.",
                stacklevel=7,
            )


def far_value(column: Float[np.ndarray, " n"]) -> float | None:
    """Find a value so far from all others that these are nearly equal in units of the column's deviation, or None."""
    value = column[np.argmax(np.abs(column - np.median(column)))]
    others = column[column != value]
    if len(others) < FEWEST or len(np.unique(others)) < 3:  # a constant one, or two levels of a category
        return None
    unit = float(np.abs(column).max())  # of order 1, so that no square leaves the range of a float
    return float(value) if float(np.std(others / unit)) < FAR * float(np.std(column / unit)) else None


def repeating(X: Float[np.ndarray, "n d"], y: Float[np.ndarray, "n c"]) -> Int[np.ndarray, " k"]:
    """Find the columns that are an increasing or decreasing function of an output, to rounding."""
    return np.flatnonzero(_correlated(X, y) | _correlated(_ranks(X), _ranks(y)))


def _ranks(values: np.ndarray) -> np.ndarray:
    """Return ranks within each column, the mean of theirs for equal values (SciPy's function takes 0.5 s to import)."""
    found = (np.unique(column, return_inverse=True, return_counts=True)[1:] for column in values.T)
    return np.column_stack([(np.cumsum(counts) - (counts - 1) / 2)[at] for at, counts in found])


def _correlated(X: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.asarray(np.abs(_directions(X).T @ _directions(y)).max(axis=1) > 1 - REPEATS)


def _directions(values: np.ndarray) -> np.ndarray:
    """Return centred columns of norm 1; 0 for those that do not vary."""
    size = np.abs(values).max(axis=0)
    centred = values / np.where(size > 0, size, 1.0)
    centred = centred - centred.mean(axis=0)
    norm = np.sqrt(np.sum(centred**2, axis=0))
    return np.asarray(centred / np.where(norm > 0, norm, np.inf))


def naming(X: Float[np.ndarray, "n d"], y: np.ndarray) -> Int[np.ndarray, " k"]:
    """Find the columns that have one value for each class, and another for each."""
    labels = np.unique(y, return_inverse=True)[1]
    if len(y) - labels.max() <= FEWEST:  # a class for nearly each row: so has every column of different numbers
        return np.array([], int)
    values = [np.unique(column, return_inverse=True)[1] for column in X.T]
    classes = labels.max() + 1
    few = [j for j, at in enumerate(values) if at.max() + 1 == classes]
    return np.array([j for j in few if len(np.unique(values[j] * classes + labels)) == classes], int)
