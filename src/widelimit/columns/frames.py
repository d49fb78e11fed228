"""Tables of pandas, polars and pyarrow, and arrays, become polars tables whose types say what the columns are."""

from __future__ import annotations

import datetime
import decimal
import numbers
from collections.abc import Iterator
from typing import Any

import numpy as np
import polars as pl

from widelimit import validation
from widelimit.lossless import is_gap, package_of

KINDS: dict[str, tuple[type, ...]] = {
    "logical values": (bool, np.bool_),
    "numbers": (numbers.Real, decimal.Decimal),
    "text": (str,),
    "dates": (datetime.date,),
    "durations": (datetime.timedelta,),
    "times of day": (datetime.time,),
}
"""Kinds of objects in a column of objects; True, which is also a number, counts as the kind that comes first."""


def read(value: Any) -> pl.DataFrame:
    """Return a table whose columns have types: numbers, text, Categorical, Enum (ordered), dates; missing is null.

    Args:
        value: pandas, polars or pyarrow; or an array (n, d), whose columns are called x0, x1, ...

    Raises:
        TypeError, ValueError: a column of mixed or unknown objects, two columns of one name; with the column.
    """
    package = package_of(value)
    if package == "polars":
        columns = [_polars_series(column) for column in value.get_columns()]
    elif package == "pyarrow":
        columns = list(_arrow_series(value))
    elif package == "pandas":
        columns = [_pandas_series(str(name), value.iloc[:, j]) for j, name in enumerate(value.columns)]
    else:
        columns = [_array_series(f"x{j}", value[:, j]) for j in range(value.shape[1])]
    names = [column.name for column in columns]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"the table has {names.count(twice[0])} columns called {twice[0]!r}; rename one.")
    return pl.DataFrame(columns)


def _polars_series(column: pl.Series) -> pl.Series:
    return _object_series(column.name, column.to_list()) if column.dtype == pl.Object else _without_nan(column)


def _without_nan(column: pl.Series) -> pl.Series:
    return column.fill_nan(None) if column.dtype.is_float() else column


def _arrow_series(table: Any) -> Iterator[pl.Series]:
    """Yield the columns of a pyarrow table; polars forgets of a dictionary that it has categories, and their order."""
    frame = pl.DataFrame(table)
    for field, column in zip(table.schema, frame.get_columns(), strict=True):
        if type(field.type).__name__ == "DictionaryType":
            texts = [None if value is None else _text(value) for value in table[field.name].to_pylist()]
            levels = [_text(level) for level in table[field.name].unify_dictionaries().chunk(0).dictionary.to_pylist()]
            column = pl.Series(field.name, texts, pl.Enum(levels) if field.type.ordered else pl.Categorical)
        yield _without_nan(column)


def _pandas_series(name: str, column: Any) -> pl.Series:
    """Return a column of pandas, whatever holds it."""
    kind, missing = getattr(column.dtype, "kind", "O"), column.isna().to_numpy()
    if type(column.dtype).__name__ == "CategoricalDtype":
        levels = [_text(level) for level in column.cat.categories]
        values = [None if code < 0 else levels[code] for code in column.cat.codes]
        return pl.Series(name, values, pl.String).cast(pl.Enum(levels) if column.cat.ordered else pl.Categorical)
    if type(column.dtype).__name__ == "PeriodDtype":
        return _pandas_series(name, column.dt.to_timestamp())
    if kind == "M":
        zone = getattr(column.dtype, "tz", None)
        plain = column.dt.tz_convert("UTC").dt.tz_localize(None) if zone else column
        series = pl.Series(name, plain.to_numpy().astype("datetime64[us]"))
        return series.dt.replace_time_zone("UTC") if zone else series
    if kind == "m":
        return pl.Series(name, column.to_numpy().astype("timedelta64[us]"))
    if kind in "fiub":
        filled = column.fillna(False if kind == "b" else 0) if missing.any() else column
        numbers = filled.to_numpy()
        if numbers.dtype.kind == "O":
            numbers = filled.to_numpy(dtype=bool if kind == "b" else np.float64)
        return _array_series(name, numbers).set(pl.Series(missing), None)
    values = column.to_numpy(dtype=object)
    return _object_series(name, [None if gap else value for gap, value in zip(missing, values, strict=True)])


def _array_series(name: str, values: np.ndarray) -> pl.Series:
    """Return a column of an array."""
    kind = values.dtype.kind
    if kind in "UO":
        return _object_series(name, values.tolist())
    if kind not in "fiubmM" or (kind == "f" and values.dtype.itemsize > 8):
        cause = "Complex data not supported" if kind == "c" else "no numbers, text or dates"
        raise ValueError(f"column {name!r} has dtype {str(values.dtype)[:60]}: {cause}; convert it.")
    if kind in "mM":
        return pl.Series(name, values.astype(f"{'datetime' if kind == 'M' else 'timedelta'}64[us]"))
    return _without_nan(pl.Series(name, values.astype(np.float64) if kind == "f" else values))


def _text(level: Any) -> str:
    """Return a category as text: 3.0 as "3", True as "true"."""
    if isinstance(level, (bool, np.bool_)):
        return str(level).lower()
    if isinstance(level, (float, np.floating)) and float(level).is_integer():
        return str(int(level))
    return str(level)


def _object_series(name: str, values: list[Any]) -> pl.Series:
    """Return a column of Python's objects of one kind. Raises: TypeError, ValueError: of no kind, or of several."""
    values = [None if is_gap(value) or (isinstance(value, float) and value != value) else value for value in values]
    kinds: dict[str, list[int]] = {}
    for row, value in enumerate(values):
        if value is not None:
            kinds.setdefault(_kind(name, row, value), []).append(row)
    if len(kinds) > 1:
        rows = min(kinds.values(), key=len)
        odd = next(kind for kind, places in kinds.items() if places is rows)
        others = " and ".join(kind for kind in kinds if kind != odd)
        raise ValueError(
            f"column {name!r} is of {others}, but row {rows[0] + 1} (the first row is 1) has "
            f"{validation.shown(values[rows[0]])} ({len(rows)} such rows); correct it, or make all of one type."
        )
    if "numbers" in kinds and not all(isinstance(value, numbers.Integral) for value in values if value is not None):
        series = pl.Series(name, [None if value is None else float(value) for value in values], pl.Float64)
        large = [i for i, v in enumerate(values) if isinstance(v, numbers.Integral) and int(float(v)) != int(v)]
        if large:
            raise ValueError(f"column {name!r}: row {large[0] + 1} is an integer beyond 2^53, which a float rounds.")
        return _without_nan(series)
    if "numbers" in kinds or "logical values" in kinds:
        kind = bool if "logical values" in kinds else int
        values = [None if value is None else kind(value) for value in values]
    return pl.Series(name, values, strict=False)


def _kind(name: str, row: int, value: Any) -> str:
    for kind, types in KINDS.items():
        if isinstance(value, types):
            return kind
    cause = "Complex data not supported; " if isinstance(value, (complex, np.complexfloating)) else ""
    raise TypeError(
        f"column {name!r}: row {row + 1} is {validation.shown(value)}: {cause}the argument must be a number, text or a "
        "date (a string must be converted to a number)."
    )
