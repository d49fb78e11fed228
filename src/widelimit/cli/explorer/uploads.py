"""A table with one input column and a target becomes points of the page."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from widelimit.cli import tables
from widelimit.cli.explorer.settings import EDGE, MOST_POINTS

REACH = 0.8
"""The inputs fill this share of the page's width."""
UPLOADED = "the table"


def points(data: bytes) -> dict[str, Any]:
    """Read the bytes of a CSV file as `points_of` reads a table. Raises: ValueError: no CSV, and as `points_of`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.csv"
        path.write_bytes(data)
        try:
            frame = tables.read(path)
        except ValueError as error:
            raise ValueError(str(error).replace(str(path), UPLOADED)) from None
    return points_of(frame, UPLOADED)


def points_of(frame: pl.DataFrame, table: str) -> dict[str, Any]:
    """Make points of two columns of numbers: the first is the input, the second the target.

    Both are moved and scaled: the inputs to [-0.8 pi, 0.8 pi], the target to mean 0 and standard deviation 1. Of more
    than 128 rows 128 are taken, evenly in the order of the input.

    Returns:
        points, a list of pairs; x and y with "name", "center" and "scale": value = center + scale * number on the page;
        rows, how many there are.

    Raises: ValueError: not two columns of numbers, missing values, a constant input; in one line.
    """
    names = frame.columns
    if len(names) != 2:
        raise ValueError(f"{table}: must have two columns, an input and a target; it has {len(names)}.")
    x, y = (_numbers(frame[name], table) for name in names)
    order = np.argsort(x, kind="stable")
    kept = order[np.linspace(0, len(order) - 1, min(len(order), MOST_POINTS)).round().astype(int)]
    center, scale = x.min() / 2 + x.max() / 2, (x.max() / 2 - x.min() / 2) / (REACH * EDGE)
    if not scale > 0:
        raise ValueError(f"{table}: the column {names[0]!r}, the input, has one value only.")
    with np.errstate(over="ignore", invalid="ignore"):
        middle, spread = float(y.mean()), float(y.std()) or 1.0
    if not np.isfinite([center, scale, middle, spread]).all():
        raise ValueError(f"{table}: the column {names[1]!r} is too large for float64; scale it down.")
    inputs, targets = (x[kept] - center) / scale, (y[kept] - middle) / spread
    return {
        "points": np.stack([inputs, targets], axis=1).tolist(),
        "x": {"name": names[0], "center": float(center), "scale": float(scale)},
        "y": {"name": names[1], "center": middle, "scale": spread},
        "rows": len(x),
    }


def _numbers(column: pl.Series, table: str) -> np.ndarray:
    if not column.dtype.is_numeric():
        raise ValueError(f"{table}: the column {column.name!r} is not of numbers.")
    values = column.to_numpy().astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"{table}: the column {column.name!r} has missing or infinite values; leave these rows out.")
    return values
