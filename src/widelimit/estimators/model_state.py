"""The fitted state of an estimator is values and arrays in a file: each is checked before an estimator takes it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from widelimit import validation
from widelimit.architecture.network import Network
from widelimit.estimators import class_weights
from widelimit.estimators.preparation import Inputs
from widelimit.network_text import network_text, read_network

LABELS = re.compile(r"[<>|=][fiub][1248]|[<>=]U[0-9]{1,7}")
"""Dtypes of class labels."""
MOST_LABELS = 2**26
"""Bytes of class labels."""
INVALID = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError)
"""Errors that a field of another type or size ends in."""


class ModelState(NamedTuple):
    """A fitted estimator's state consists of values that JSON holds and of arrays, by name."""

    values: dict[str, Any]
    arrays: dict[str, np.ndarray]

    def __or__(self, other: ModelState) -> ModelState:
        return ModelState(self.values | other.values, self.arrays | other.arrays)

    def array(self, key: str, *shape: int) -> np.ndarray:
        """Return an array of finite float64 numbers of this shape. Raises: ValueError."""
        array = self.arrays[key]
        if array.shape != shape or array.dtype != np.float64 or not np.isfinite(array).all():
            raise ValueError(f"{key} is not {shape} finite numbers")
        return array

    def positive(self, key: str, *shape: int) -> np.ndarray:
        """Return such an array of numbers > 0. Raises: ValueError."""
        array = self.array(key, *shape)
        if not (array > 0).all():
            raise ValueError(f"{key} has entries that are not > 0")
        return array

    def flag(self, key: str) -> bool:
        """Return a value that is true or false. Raises: TypeError."""
        value = self.values[key]
        if not isinstance(value, bool):
            raise TypeError(f"{key} is neither true nor false")
        return value


def json_value(value: Any) -> Any:
    """Return a parameter for JSON; an infinite number and a network as text, a dictionary as pairs."""
    if isinstance(value, Network):
        return {"network": network_text(value)}
    if isinstance(value, Mapping):
        pairs = [[class_weights.plain(key), float(factor)] for key, factor in value.items()]
        if not all(isinstance(key, (str, bool, int, float)) for key, _ in pairs):
            raise TypeError("labels must be text or numbers for a model to be saved.")
        return {"pairs": pairs}
    value = bool(value) if isinstance(value, np.bool_) else validation.plain(value)
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    return value


def parameter(value: Any) -> Any:
    """Invert `json_value`. Raises: ValueError."""
    if not isinstance(value, dict):
        return value
    if set(value) == {"network"}:
        return read_network(value["network"])
    if set(value) == {"pairs"}:
        return dict(value["pairs"])
    if value != {"float": "inf"}:
        raise ValueError("a parameter that is no number")
    return np.inf


def names(values: Any, d: int) -> np.ndarray:
    """Return the names of d features. Raises: ValueError."""
    if not isinstance(values, list) or len(values) != d or not all(isinstance(name, str) for name in values):
        raise ValueError(f"feature_names is not {d} texts")
    return np.array(values, dtype=object)


def inputs(normalize: str | None, state: ModelState, d: int) -> Inputs:
    """Return the normalisation of d columns, of the kind that the parameter `normalize` names. Raises: ValueError."""
    sphere = state.flag("sphere")
    mean, scale = state.array("inputs.mean", d), state.array("inputs.scale", d)
    if (scale < 0).any() or not scale.any():
        raise ValueError("inputs.scale has entries that are not >= 0, or is 0")
    if sphere != (normalize == "sphere") or (normalize is None and (mean.any() or (scale != 1).any())):
        raise ValueError("inputs that are normalised in another way than normalize says")
    return Inputs(mean, scale, sphere)


def shape(state: ModelState) -> tuple[int, int]:
    """Return the numbers of rows and of outputs. Raises: ValueError."""
    n, c = state.arrays["coefficients"].shape
    if n < 1 or c < 1:
        raise ValueError("no rows or no outputs")
    return n, c


def json_classes(classes: np.ndarray) -> dict[str, Any]:
    """Return labels for JSON, with their type. Raises: TypeError: neither text nor numbers."""
    values = classes.tolist()
    if not all(isinstance(value, (str, bool, int, float)) for value in values):
        raise TypeError("labels must be text or numbers for a model to be saved.")
    return {"dtype": "object" if classes.dtype.kind == "O" else classes.dtype.str, "values": values}


def classes(kept: dict[str, Any]) -> np.ndarray:
    """Return the labels, of the type that they had. Raises: TypeError, ValueError."""
    name, values = kept["dtype"], kept["values"]
    if set(kept) != {"dtype", "values"} or not isinstance(values, list) or not values:
        raise ValueError("classes are no list of labels")
    if not all(isinstance(value, (str, bool, int, float)) for value in values):
        raise TypeError("classes are neither text nor numbers")
    if name != "object" and not (LABELS.fullmatch(name) and np.dtype(name).itemsize * len(values) <= MOST_LABELS):
        raise ValueError("labels of a type that no model has")
    found = np.array(values, dtype=object if name == "object" else name)
    if found.tolist() != values or not np.array_equal(np.unique(found), found):
        raise ValueError("classes are not sorted labels of their type")
    return found
