"""Columns of lists in a Parquet table are sequences: a column for each feature, or one of lists of all features."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from widelimit.columns.texts import first
from widelimit.messages import did_you_mean, list_names


def choose(
    path: Path, frame: pl.DataFrame, target: str, drop: Sequence[str], columns: Sequence[str], *, strict: bool
) -> tuple[list[str], list[str]]:
    """Return the names of the list columns that are the features, and notes.

    Args:
        path: the file of the table.
        frame: the table.
        target: a column that is no feature.
        drop: columns to leave out.
        columns: the features of the model; all list columns unless given.
        strict: refuse other columns.

    Raises: ValueError: no such column; without `columns`, one that is no list; none is left.
    """
    named = [*drop, *([target] if target and strict else []), *columns]
    if unknown := [name for name in named if name not in frame.columns]:
        raise ValueError(
            f"{path}: there is no column {unknown[0]!r}; it has {list_names(frame.columns)}"
            f"{did_you_mean(unknown[0], frame.columns)}"
        )
    rest = [name for name in frame.columns if name not in (target, *drop)]
    lists = [name for name in rest if _is_list(frame[name])]
    other = [name for name in rest if name not in (columns or lists)]
    if strict and other:
        raise ValueError(
            f"{path}: column {other[0]!r} holds no lists ({frame[other[0]].dtype}); leave it out: --drop {other[0]}, "
            f"or name it as the --target."
        )
    chosen = list(columns) or lists
    if wrong := [name for name in chosen if not _is_list(frame[name])]:
        raise ValueError(f"{path}: column {wrong[0]!r} holds no lists ({frame[wrong[0]].dtype}).")
    if not chosen:
        raise ValueError(f"{path}: no column holds lists of numbers, which sequences are; write them as such, or .npz.")
    return chosen, [f"the columns {list_names(other)} are not used"] if other else []


def _is_list(column: pl.Series) -> bool:
    return isinstance(column.dtype, (pl.List, pl.Array))


def flat(path: Path, columns: Sequence[pl.Series], features: int) -> tuple[np.ndarray, np.ndarray]:
    """Return all sites in a row, (sites, features), and the offsets of each sequence, (n + 1,).

    Raises: ValueError: missing values, lists without numbers or of unequal lengths, another number of features.
    """
    parts: list[np.ndarray] = []
    lengths = np.zeros(0)
    for column in columns:
        values, own = _explode(path, column, column.name)
        if parts and not np.array_equal(own, lengths):
            row = int(np.argmax(own != lengths))
            raise ValueError(
                f"{path}: row {row + 1} has {lengths[row]} values in {columns[0].name!r} and {own[row]} in "
                f"{column.name!r}; the features of a sequence have one length."
            )
        if _is_list(values):
            if len(columns) > 1:
                raise ValueError(f"{path}: column {column.name!r} holds lists of lists; it must be the only one.")
            values, inner = _explode(path, values, f"{column.name}: a site")
            if (inner != features).any():
                raise ValueError(
                    f"{path}: a site in {column.name!r} has {inner[np.argmax(inner != features)]} numbers, and the "
                    f"network reads {features} features."
                )
        parts.append(_numbers(path, column.name, values))
        lengths = own
    found = parts[0].reshape(-1, features) if len(parts[0]) != lengths.sum() else np.stack(parts, axis=1)
    if found.shape[1] != features:
        names = list_names([column.name for column in columns])
        raise ValueError(
            f"{path}: has {len(columns)} list columns ({names}), and the network reads {features} features; leave the "
            f"others out: --drop."
        )
    return found, np.concatenate([[0], np.cumsum(lengths)])


def _explode(path: Path, column: pl.Series, name: str) -> tuple[pl.Series, np.ndarray]:
    """Return all entries of lists, and the number of each list."""
    lists = column.arr.to_list() if isinstance(column.dtype, pl.Array) else column
    counts = lists.list.len()
    empty = counts.is_null() | (counts == 0)
    if empty.any():
        raise ValueError(f"{path}: column {name!r} has no values in row {first(empty)}; leave such rows out.")
    return lists.explode(), counts.to_numpy().astype(np.int64)


def _numbers(path: Path, name: str, values: pl.Series) -> np.ndarray:
    if not (values.dtype.is_numeric() or values.dtype == pl.Boolean):
        raise ValueError(f"{path}: column {name!r} holds lists of {values.dtype}, where numbers are needed.")
    if values.null_count():
        raise ValueError(f"{path}: column {name!r} has {values.null_count()} missing numbers in its lists; fill them.")
    return values.to_numpy()
