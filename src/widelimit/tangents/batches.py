"""Rows of data are any array, tuple or dictionary of arrays with one leading length, with labels or without."""

from typing import Any, NamedTuple

import jax
import numpy as np

from widelimit import validation
from widelimit.fingerprints import sha256


class Batch(NamedTuple):
    """A batch has inputs of the model, and labels that a function of its outputs needs: trees of NumPy arrays."""

    inputs: Any
    labels: Any

    @property
    def leaves(self) -> list[np.ndarray]:
        """Return all arrays."""
        return jax.tree.leaves((self.inputs, self.labels))

    @property
    def rows(self) -> int:
        """Return the number of rows."""
        return len(self.leaves[0])

    @property
    def signature(self) -> tuple[Any, ...]:
        """Return the structure of the tree, and shapes and dtypes of a row, which all rows of one model share."""
        return str(jax.tree.structure(self)), *((leaf.shape[1:], leaf.dtype.name) for leaf in self.leaves)

    def take(self, rows: Any) -> "Batch":
        """Return some of the rows."""
        return jax.tree.map(lambda leaf: leaf[rows], self)  # type: ignore[no-any-return]

    def with_leaves(self, leaves: list[np.ndarray]) -> "Batch":
        """Return a batch of the same structure."""
        return jax.tree.unflatten(jax.tree.structure(self), leaves)  # type: ignore[no-any-return]

    def fingerprint(self) -> str:
        """Return a hash of all values."""
        return sha256(str(jax.tree.structure(self)), *(np.ascontiguousarray(leaf) for leaf in self.leaves))

    def dtype(self, parameters: Any) -> np.dtype[Any]:
        """Return the dtype of the computation: that of the floats among the inputs, or of the parameters.

        Raises: TypeError: float64 parameters, and inputs that are float32.
        """
        floats = [leaf.dtype for leaf in jax.tree.leaves(self.inputs) if leaf.dtype.kind == "f"]
        found = np.result_type(*floats) if floats else np.dtype(parameters)
        if found == np.float32 and parameters == np.float64:
            raise TypeError("X is float32 and the parameters are float64; pass X.astype('float64').")
        return np.dtype(found)


def batch(X: Any, labels: Any = None) -> Batch:
    """Check rows of data.

    Raises: TypeError: arrays of another kind than floats, integers and booleans; ValueError: no arrays, no rows,
    different numbers of them, NaN or infinite entries.
    """
    found = Batch(_arrays("X", X), _arrays("labels", labels))
    if not jax.tree.leaves(found.inputs):
        raise ValueError("X holds no arrays.")
    lengths = {leaf.shape[0] if leaf.ndim else None for leaf in found.leaves}
    if len(lengths) > 1 or lengths <= {None, 0}:
        shapes = [leaf.shape for leaf in found.leaves]
        raise ValueError(f"all arrays of X and labels need one and the same number of rows, at least 1; got {shapes}.")
    return found


def class_labels(labels: Any, rows: int) -> np.ndarray:
    """Return labels as integers >= 0. Raises: TypeError, ValueError: other labels, with the row."""
    if not isinstance(labels, np.ndarray):
        raise TypeError(f"labels must be one array of {rows} classes, got {validation.shown(labels)}.")
    if labels.shape != (rows,):
        raise ValueError(f"labels must have shape ({rows},), a class each row; got {labels.shape}.")
    whole = np.asarray(labels if labels.dtype.kind in "iu" else labels.astype(np.int64))
    _require_classes(labels, (whole == labels) & (whole >= 0), "an integer >= 0")
    return whole


def require_below(labels: np.ndarray, classes: int) -> None:
    """Refuse labels that are not the index of an output. Raises: ValueError."""
    _require_classes(labels, labels < classes, f"below {classes}, the number of outputs")


def _require_classes(labels: np.ndarray, fine: np.ndarray, what: str) -> None:
    if not fine.all():
        row = int(np.argmin(fine))
        raise ValueError(f"the label at row {row} is {labels[row]}; a label is {what}, the index of its class.")


def _arrays(name: str, tree: Any) -> Any:
    def checked(leaf: Any) -> np.ndarray:
        values = np.asarray(leaf) if isinstance(leaf, (np.ndarray, jax.Array, list)) else _converted(name, leaf)
        if values.dtype.kind in "iub":
            return values
        return np.asarray(validation.as_finite_floats(name, validation.concrete(name, values)))

    return jax.tree.map(checked, tree, is_leaf=lambda part: isinstance(part, list))


def _converted(name: str, leaf: Any) -> np.ndarray:
    """Convert arrays of other libraries, such as PyTorch tensors. Raises: TypeError: not an array."""
    values = np.asarray(leaf) if getattr(leaf, "shape", ()) else None
    if values is None or values.dtype == object:
        raise TypeError(f"{name} must be an array, or a tuple or dictionary of arrays; got {validation.shown(leaf)}.")
    return values
