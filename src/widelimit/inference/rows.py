"""Rows of inputs and of targets are read block by block: from memory, a memmap, a Zarr array."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import jax
import numpy as np

from widelimit import validation
from widelimit.inference.training_set import points_of
from widelimit.kernels.base import Kernel
from widelimit.lossless import package_of
from widelimit.shapes import Float

NUMBERS = 2**20
"""Numbers that are read at once in a survey."""
WHOLE = ("pandas", "polars", "pyarrow", "scipy")
"""Packages whose tables and matrices are taken as a whole."""


def on_disk(value: Any) -> bool:
    """Return True for a memmap, and for what is no array, list or table, and has a shape: a Zarr array, say."""
    if isinstance(value, np.memmap):
        return True
    whole = isinstance(value, np.ndarray | jax.Array | list | tuple) or package_of(value) in WHOLE
    return not whole and isinstance(getattr(value, "shape", None), tuple)


class Survey(NamedTuple):
    """One reading of all rows finds these."""

    sample: Float[np.ndarray, "k d"]
    largest: Float[np.ndarray, " d"]
    """The largest size in each column."""
    digest: str
    """SHA-256 of the numbers."""


@final
@dataclass(frozen=True)
class Rows:
    """Rows (n, d) are read by slices, as float64; those on disk are checked each time they are read."""

    name: str
    values: Any
    shape: tuple[int, int]
    kernel: Kernel | None
    """The kernel that reads inputs as rows; None for targets."""
    checked: bool
    """True for rows in memory that are known to be finite."""

    def __getitem__(self, part: slice) -> Float[np.ndarray, "b d"]:
        """Read rows. Raises: TypeError, ValueError: a row is not finite, and which."""
        block = self.values[part.start : part.stop]
        if self.checked:
            return np.asarray(block, np.float64)
        block = np.asarray(validation.as_float_array(self.name, np.asarray(block)), np.float64)
        if block.shape[:1] != (part.stop - part.start,):
            raise ValueError(
                f"rows {part.start} to {part.stop} of {self.name} came with shape {block.shape}: {self.name}[i:j] must "
                f"give the rows i to j of shape {self.values.shape}."
            )
        if not np.isfinite(block).all():
            row = part.start + int(np.argmin(np.isfinite(block.reshape(len(block), -1)).all(axis=1)))
            raise ValueError(f"{self.name} has a number that is NaN or infinite in row {row}; drop or impute that row.")
        return block.reshape(len(block), -1) if self.kernel is None else np.asarray(points_of(self.kernel, "X", block))

    def blocks(self, rows: int, first: int = 0) -> Iterator[slice]:
        """Cut the rows into slices, from the first one on."""
        n = self.shape[0]
        return (slice(i, min(i + rows, n)) for i in range(first, n, rows))

    def survey(self, chosen: np.ndarray) -> Survey:
        """Read all rows once, and keep the chosen ones, numbers in ascending order. Raises: as reading."""
        total, largest = hashlib.sha256(f"{self.shape}".encode()), np.zeros(self.shape[1])
        sample = np.empty((len(chosen), self.shape[1]))
        for part in self.blocks(max(1, NUMBERS // self.shape[1])):
            block = np.ascontiguousarray(self[part])
            total.update(block.reshape(-1).view(np.uint8).data)
            np.maximum(largest, np.abs(block).max(axis=0), out=largest)
            a, b = np.searchsorted(chosen, (part.start, part.stop))
            sample[a:b] = block[chosen[a:b] - part.start]
        return Survey(sample, largest, total.hexdigest())


def input_rows(kernel: Kernel, X: Any) -> Rows:
    """Return the inputs, checked unless they are on disk. Raises: TypeError, ValueError."""
    if not on_disk(X):
        points = np.asarray(points_of(kernel, "X", X))
        return Rows("X", points, points.shape, kernel, True)
    shape = tuple(X.shape)
    if len(shape) < 2 or 0 in shape:
        raise ValueError(f"X must have shape (n, d), got shape {shape}.")
    first = Rows("X", X, (1, 1), kernel, False)[slice(0, 1)]
    return Rows("X", X, (int(shape[0]), first.shape[1]), kernel, False)


def target_rows(y: Any, n: int) -> tuple[Rows, bool]:
    """Return the targets as (n, c), and whether they came as (n,). Raises: TypeError, ValueError."""
    if not on_disk(y):
        values = validation.targets("y", y, n)
        columns = values.reshape(n, -1)
        return Rows("y", columns, columns.shape, None, True), values.ndim == 1
    shape = tuple(y.shape)
    if len(shape) not in (1, 2) or 0 in shape:
        raise ValueError(f"y must have shape (n,) or (n, c) with c >= 1, got shape {shape}.")
    if shape[0] != n:
        raise ValueError(f"y has {shape[0]} rows and X has {n}; they must agree.")
    return Rows("y", y, (n, int(shape[1]) if len(shape) == 2 else 1), None, False), len(shape) == 1
