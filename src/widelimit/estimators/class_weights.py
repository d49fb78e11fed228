"""Classes may weigh more or less: a factor of the weights of their rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from widelimit import validation
from widelimit.shapes import Float, Int


def plain(label: Any) -> Any:
    """Return the label as a value of Python's own."""
    return label.item() if isinstance(label, np.generic) else label


def refuse_unfit(value: Any) -> None:
    """Refuse what is neither None, "balanced" nor a dictionary of factors > 0. Raises: TypeError, ValueError."""
    if isinstance(value, Mapping):
        for label, factor in value.items():
            if validation.is_real(factor) and not factor > 0:  # NaN too
                raise ValueError(
                    f"class_weight of {validation.shown(label)} must be > 0, got {validation.shown(factor)}; leave out "
                    "rows of a class that shall not count."
                )
            validation.finite_scalar(f"class_weight of {validation.shown(label)}", factor)
    elif not (value is None or (isinstance(value, str) and value == "balanced")):
        kind = ValueError if isinstance(value, str) else TypeError
        raise kind(f'class_weight must be None, "balanced" or {{label: factor}}, got {validation.shown(value)}.')


def weigh(value: Any, y: np.ndarray, weights: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Return the weights of the rows, times the factors of their classes.

    "balanced": the sum of all weights over the number of classes and the sum of the class's weights, so that the sum
    of all weights stays.

    Raises:
        ValueError: a factor for a label that no row (of weight > 0) has.
    """
    if value is None:
        return weights
    classes, at = np.unique(y, return_inverse=True)
    if isinstance(value, str):
        sums = np.bincount(at, weights)
        return np.asarray(weights * (weights.sum() / len(classes) / sums)[at])
    known = classes.tolist()
    unseen = [label for label in value if plain(label) not in known]
    if unseen:
        raise ValueError(
            f"class_weight has the label {validation.shown(unseen[0])}, which no row of y has; y has "
            f"{validation.shown(known)}. Check its spelling and its type."
        )
    factors = {plain(label): float(factor) for label, factor in value.items()}
    return np.asarray(weights * np.array([factors.get(label, 1.0) for label in known])[at])


def merge(
    X: Float[np.ndarray, "n d"], labels: Int[np.ndarray, " n"], weights: Float[np.ndarray, " n"]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the different pairs of row and label, sorted, with the sums of their weights."""
    pairs, at = labelled_rows(X, labels)
    return np.ascontiguousarray(pairs[:, 1:]), pairs[:, 0].astype(np.int64), np.bincount(at, weights)


def labelled_rows(
    X: Float[np.ndarray, "n d"], labels: Int[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, "k d+1"], Int[np.ndarray, " n"]]:
    """Return the different pairs of label and row, sorted, and the place of each row among them."""
    pairs, at = np.unique(np.column_stack([labels, X]), axis=0, return_inverse=True)
    return pairs, at.ravel()
