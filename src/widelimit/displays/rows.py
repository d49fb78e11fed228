"""One column of a table is replaced at a time, for tables of pandas, polars, pyarrow or NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from widelimit import validation
from widelimit.lossless import as_array, is_gap, package_of
from widelimit.messages import shown


def table(X: Any) -> Any:
    """Return a table whose columns can be replaced: pandas and polars as they are, all else as an array (n, d).

    Raises:
        TypeError, ValueError: no table, or one without rows.
    """
    library = package_of(X)
    if library == "pyarrow":
        return table(pl.DataFrame(X))
    if library == "scipy":
        raise TypeError("X is a sparse matrix; pass X.toarray().")
    values = X if library in ("pandas", "polars") else as_array("X", X)
    if len(values.shape) != 2 or 0 in values.shape:
        raise ValueError(f"X must have shape (n, d) with n, d >= 1, got {shown(X)}.")
    return values


def is_pandas(X: Any) -> bool:
    """Return True for a data frame or a series of pandas."""
    return package_of(X) == "pandas"


def names(X: Any, estimator: Any, given: Sequence[str] | None) -> list[str]:
    """Return names of the columns of a table: the given ones, its own, those of the fit, or x0, x1, ...

    Raises:
        TypeError, ValueError: names that are not texts, one for each column.
    """
    width = X.shape[1]
    if given is not None:
        return checked_names(given, width)
    if not isinstance(X, np.ndarray):
        return [str(name) for name in X.columns]
    fitted = getattr(estimator, "feature_names_in_", None)
    return [f"x{j}" for j in range(width)] if fitted is None else [str(name) for name in fitted]


def checked_names(given: Any, width: int) -> list[str]:
    """Return one name for each column. Raises: TypeError, ValueError."""
    if isinstance(given, str) or not np.iterable(given) or not all(isinstance(name, str) for name in given):
        raise TypeError(f"feature_names must be a list of texts, one for each column, got {shown(given)}.")
    found = list(given)
    if len(found) != width:
        raise ValueError(f"feature_names must have {width} entries, one for each column; got {len(found)}.")
    return found


def column(X: Any, j: int) -> Any:
    """Return column j."""
    return X.iloc[:, j] if is_pandas(X) else X[:, int(j)]


def take(X: Any, rows: np.ndarray) -> Any:
    """Return these rows of a table, or entries of a column."""
    return X.iloc[rows] if is_pandas(X) else X[rows]


def replaced(X: Any, j: int, values: Any) -> Any:
    """Return the table with other values in column j: one number for all rows, or entries of a column."""
    if isinstance(X, np.ndarray):
        out = X.astype(float) if X.dtype.kind in "iu" else X.copy()
        out[:, j] = values
        return out
    if is_pandas(X):
        out = X.copy()
        out.isetitem(j, values.array if is_pandas(values) else values)
        return out
    entries = values if isinstance(values, pl.Series) else pl.lit(values)
    return X.with_columns(entries.alias(X.columns[j]))


def numbers(values: Any) -> np.ndarray | None:
    """Return a column's numbers that are not missing; None for a column of texts, flags or dates."""
    entries = np.asarray(values)
    if entries.dtype.kind == "O":
        entries = entries[np.array([not is_gap(entry) and entry == entry for entry in entries], bool)]
        if not all(validation.is_real(entry) for entry in entries):
            return None
    if entries.dtype.kind not in "iufO":
        return None
    entries = entries.astype(float)
    return np.asarray(entries[np.isfinite(entries)])


def sample(X: Any, count: int, random_state: int) -> Any:
    """Draw at most `count` rows at random, kept in their order."""
    n = len(X)
    if n <= count:
        return X
    return take(X, np.sort(np.random.default_rng(random_state).choice(n, count, replace=False)))
