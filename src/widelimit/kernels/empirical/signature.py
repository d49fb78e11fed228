"""Inputs of any form are packed in rows of numbers, which kernels take, and unpacked for the user's function."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self, final

import jax
import jax.numpy as jnp
import numpy as np

from widelimit import validation
from widelimit.shapes import Float
from widelimit.validation import Array

FLOAT = "float"


@final
@dataclass(frozen=True)
class Signature:
    """The form of an input is its tree, and for every array in it the shape (without the axis of rows) and dtype.

    Floats take the dtype of the rows; integers and booleans keep theirs.
    """

    structure: Any
    leaves: tuple[tuple[tuple[int, ...], str], ...]

    @classmethod
    def of(cls, name: str, X: Any) -> Self | None:
        """Return the form of inputs; None for rows (n, d) of floats, and for inputs that `validation.points` refuses.

        Raises: TypeError, ValueError: arrays without the same first axis.
        """
        tree = _tree(X)
        arrays, structure = jax.tree.flatten(tree)
        single = isinstance(tree, (np.ndarray, jax.Array))
        if single and (arrays[0].ndim < 2 or (arrays[0].ndim == 2 and arrays[0].dtype.kind not in "iub")):
            return None
        _require_rows(name, arrays)
        kinds = (FLOAT if a.dtype.kind not in "iub" else np.dtype(a.dtype).name for a in arrays)
        return cls(structure, tuple((a.shape[1:], kind) for a, kind in zip(arrays, kinds, strict=True)))

    @property
    def width(self) -> int:
        """Return how many numbers one input has."""
        return sum(math.prod(shape) for shape, _ in self.leaves)

    def columns(self) -> np.ndarray:
        """Return True for the columns that hold integers, (width,)."""
        return np.concatenate([np.full(math.prod(shape), kind != FLOAT) for shape, kind in self.leaves])

    def rows(self, name: str, X: Any, dtype: Any) -> Array:
        """Pack inputs of this form in rows (n, width), or return such rows; they have `dtype` if no array has floats.

        Raises: TypeError, ValueError: another form, numbers that are not finite, integers that the rows would round.
        """
        arrays, structure = jax.tree.flatten(_tree(X))
        found = structure, tuple(array.shape[1:] for array in arrays)
        if found != (self.structure, tuple(shape for shape, _ in self.leaves)):
            if isinstance(_tree(X), (np.ndarray, jax.Array)) and found[1] == ((self.width,),):
                return self._packed(name, arrays[0])
            raise ValueError(f"{name} must have the form of the first inputs, {self}, got {_shown(*found)}.")
        _require_rows(name, arrays)
        pairs = list(zip(self._names(name), arrays, self.leaves, strict=True))
        floats = [validation.as_finite_floats(label, a) for label, a, (_, kind) in pairs if kind == FLOAT]
        dtype = np.result_type(*(a.dtype for a in floats)) if floats else np.dtype(dtype)
        xp: Any = jnp if validation.is_jax(*arrays) else np
        parts = []
        for label, array, (_, kind) in pairs:
            values = floats.pop(0) if kind == FLOAT else _exact(label, array, kind, dtype)
            parts.append(xp.asarray(values, dtype).reshape(len(values), -1))
        return validation.points(name, parts[0] if len(parts) == 1 else xp.concatenate(parts, axis=1))

    def _packed(self, name: str, X: Any) -> Array:
        points = validation.points(name, X)
        integers = self.columns()
        if integers.any() and not validation.traced(points):
            part = np.asarray(points)[:, integers]
            if (part != np.round(part)).any():
                raise ValueError(f"{name} must have integers where its form {self} has them, got fractions.")
        return points

    def _names(self, name: str) -> Iterator[str]:
        paths = jax.tree_util.tree_leaves_with_path(
            jax.tree.unflatten(self.structure, list(self.leaves)), is_leaf=_leaf
        )
        return (name + jax.tree_util.keystr(path) for path, _ in paths)

    def inputs(self, rows: Float[jax.Array, "n w"]) -> Any:
        """Unpack rows as the user's function takes them."""
        arrays, start = [], 0
        for shape, kind in self.leaves:
            stop = start + math.prod(shape)
            part = rows[:, start:stop].reshape(len(rows), *shape)
            arrays.append(part if kind == FLOAT else part.astype(jax.dtypes.canonicalize_dtype(kind)))
            start = stop
        return jax.tree.unflatten(self.structure, arrays)

    def __str__(self) -> str:
        return _shown(self.structure, tuple(shape for shape, _ in self.leaves))


def _require_rows(name: str, arrays: list[Any]) -> None:
    if len({array.shape[:1] for array in arrays} | {()}) != 2:
        shapes = ", ".join(str(array.shape) for array in arrays)
        raise ValueError(f"{name} must hold arrays of the same number of rows; their shapes are {shapes or 'none'}.")


def _leaf(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], str)


def _shown(structure: Any, shapes: tuple[tuple[int, ...], ...]) -> str:
    return validation.shown(jax.tree.unflatten(structure, [f"(n, {', '.join(map(str, shape))})" for shape in shapes]))


def _tree(X: Any) -> Any:
    """Return inputs as a tree of arrays; tuples and dictionaries are trees, all else is one array."""
    if isinstance(X, (tuple, dict)) and not all(np.isscalar(leaf) for leaf in jax.tree.leaves(X)):
        made = [_tree(part) for part in (X.values() if isinstance(X, dict) else X)]
        return dict(zip(X, made, strict=True)) if isinstance(X, dict) else tuple(made)
    return X if isinstance(X, jax.Array) else np.asarray(X)


def _exact(name: str, array: Any, kind: str, dtype: np.dtype) -> Any:
    """Return integers that the dtype of the rows represents. Raises: TypeError, ValueError."""
    if array.dtype.kind not in "iub":
        raise TypeError(f"{name} must be {kind}, as in the first inputs, got {array.dtype}.")
    if validation.traced(array) or array.size == 0:
        return array
    largest = max(abs(int(array.min())), abs(int(array.max())))
    limit = 2 ** (np.finfo(dtype).nmant + 1)
    if largest > limit:
        raise ValueError(
            f"{name} holds {largest}, and the kernel is computed in {dtype}, which represents integers up to {limit}: "
            f"pass parameters in float64, or smaller numbers."
        )
    return array
