"""The target, the column to predict, has numbers, or classes as they are written."""

from __future__ import annotations

import numpy as np
import polars as pl

from widelimit.cli.tables import file_values, infer_type
from widelimit.columns.texts import EXACT, as_text, first, refuse_free_text, refuse_infinite, refuse_text_among_numbers

MOST_CLASSES = 10
"""A target of at most this many different integers is one of classes."""
INTEGER = r"^-?(?:0|[1-9]\d*)(?:\.0*)?$"
"""An integer as programs write it; codes such as 01 are text."""


def decide_task(target: pl.Series) -> tuple[str, str]:
    """Decide between classification and regression, and say why: text, booleans and few integers are classes.

    Raises:
        ValueError: infinite values, integers that floats do not hold, a date.
    """
    values = target_numbers(target).drop_nulls()
    count = values.n_unique()
    if values.dtype == pl.String:
        return "classification", f"{target.name} is text with {count} different values"
    if values.dtype != pl.Float64:
        raise ValueError(f"the target {target.name!r} has the type {target.dtype}; give numbers or text.")
    if count <= MOST_CLASSES and bool((values.floor() == values).all()):
        return "classification", f"{target.name} has {count} different integers"
    return "regression", f"{target.name} has {count} different numbers"


def target_numbers(target: pl.Series) -> pl.Series:
    """Return the target as numbers if it is of numbers.

    Raises:
        ValueError: infinite values, integers that floats do not hold.
    """
    values = infer_type(target, remedy="say --task classification if they are classes, or subtract a constant")
    if values.dtype == pl.Float64:
        refuse_infinite(values)
    return values


def target_values(target: pl.Series, task: str) -> np.ndarray:
    """Return numbers (float64) for regression; labels, integers or texts as written, for classification.

    Raises:
        ValueError: missing or infinite values; text for regression; a class for every two rows.
    """
    values = file_values(target)
    if values.null_count():
        raise ValueError(
            f"the target {target.name!r} is missing in {values.null_count()} of {len(target)} rows (first: row "
            f"{first(values.is_null())}); remove these rows."
        )
    if task == "classification":
        return labels(values)
    numbers = target_numbers(target)
    if numbers.dtype == pl.String:
        refuse_text_among_numbers(numbers)
        raise ValueError(f"the target {target.name!r} is text ({numbers[0]!r}), no number; say --task classification.")
    return numbers.to_numpy()


def labels(written: pl.Series) -> np.ndarray:
    """Return classes: integers if all are, as programs write them, else texts as written.

    Raises:
        ValueError: text among numbers, infinite numbers, a class for every two rows.
    """
    if written.dtype == pl.Float64:
        refuse_infinite(written)
    texts = as_text(written)
    numbers = texts.cast(pl.Float64, strict=False)
    if numbers.null_count():
        refuse_text_among_numbers(texts)
        refuse_free_text(texts)
    elif bool(texts.str.contains(INTEGER).all()) and bool((numbers.abs() < EXACT).all()):
        return numbers.cast(pl.Int64).to_numpy()
    return np.array(texts.to_list(), dtype=np.str_)


def constant(target: np.ndarray, name: str) -> list[str]:
    """Return a note if the target has one value."""
    if len(np.unique(target)) > 1:
        return []
    return [f"the target {name!r} is constant ({target[0]!s}): there is nothing to learn from the other columns"]
