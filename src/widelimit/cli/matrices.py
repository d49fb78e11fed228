"""Inputs are read as one matrix of numbers, from .npy, .npz, .csv and .parquet files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import polars as pl

from widelimit.cli import tables
from widelimit.columns.texts import EXACT, first, refuse_infinite
from widelimit.messages import did_you_mean, first_line, list_names

FORMATS = (".npy", ".npz", ".csv", ".parquet")
NOT_REAL = {
    "c": "complex numbers",
    "S": "text",
    "U": "text",
    "M": "dates",
    "m": "times",
    "O": "objects",
    "V": "records",
}
"""Arrays that are refused, by the kind of their dtype."""


def read_matrix(path: Path, *, array: str = "", drop: Sequence[str] = ()) -> np.ndarray:
    """Read the (n, d) real numbers in a file, in their own dtype; tables as float64.

    Args:
        path: an existing file that ends in one of FORMATS.
        array: the name of the array in an .npz; "" for its only one.
        drop: columns of a table to leave out.

    Raises:
        ValueError: another suffix, no such file, a damaged file; what is no real number or would be rounded; missing
            values, a table without a header; an option that is not for such files.
    """
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise ValueError(f"{path}: no data format {path.suffix!r}; give a file that ends in {', '.join(FORMATS)}.")
    if suffix in (".csv", ".parquet"):
        if array:
            raise ValueError(f"--array {array}: is for .npz files, and {path.name} is a table; leave it out.")
        return _table(path, drop)
    if drop:
        raise ValueError(
            f"--drop {drop[0]}: is for tables, and the columns of {path.name} have no names; leave it out."
        )
    return real(path, _array(path, array))


def read_arrays(path: Path, choose: Callable[[list[str]], Sequence[str]]) -> np.ndarray | dict[str, np.ndarray]:
    """Read the array of an .npy file, or the arrays of an .npz archive that `choose` picks from their names.

    Raises: ValueError: no such file, a damaged one, pickled objects; what `choose` raises.
    """
    tables.check_readable(path)
    with _plain_damage(path):
        found = np.load(path, allow_pickle=False)
    if isinstance(found, np.ndarray):
        return found
    with found:
        names = choose(found.files)
        with _plain_damage(path):
            return {name: found[name] for name in names}


@contextmanager
def _plain_damage(path: Path) -> Iterator[None]:
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # of zipfile, zlib, tokenize, ...: damaged bytes end in any
        text = "it is no array, or a damaged one, or one of objects" if "pickle" in str(error) else first_line(error)
        raise ValueError(f"{path}: is no file of arrays that can be read: {text}.") from None


def _array(path: Path, name: str) -> np.ndarray:
    def choose(names: list[str]) -> list[str]:
        if name and name not in names:
            raise ValueError(f"{path}: it has no array {name!r}, but {', '.join(names)}; choose one by --array.")
        if not name and len(names) != 1:
            raise ValueError(f"{path}: it has {len(names)} arrays ({', '.join(names)}); choose one by --array.")
        return [name or names[0]]

    found = read_arrays(path, choose)
    if isinstance(found, dict):
        return next(iter(found.values()))
    if name:
        raise ValueError(f"{path}: it has one array without a name, and --array {name} is for .npz; leave it out.")
    return found


def real(path: Path, found: np.ndarray) -> np.ndarray:
    """Return the array if it holds real numbers that float64 holds as well."""
    kind = "long doubles" if found.dtype.kind == "f" and found.dtype.itemsize > 8 else NOT_REAL.get(found.dtype.kind)
    if kind:
        raise ValueError(
            f"{path}: holds {kind} ({found.dtype}), where real numbers of at most 64 bits are needed; convert them, "
            "e.g. by .astype('float64') of what is meant."
        )
    if found.dtype.kind in "iu" and found.size:
        rounded = (np.abs(found.astype(np.float64)) >= EXACT) & (found.astype(np.float64).astype(object) != found)
        if rounded.any():
            value = found[rounded].flat[0]
            raise ValueError(
                f"{path}: {value} is an integer beyond 2^53, which a float rounds; leave such columns out."
            )
    return found


def _table(path: Path, drop: Sequence[str]) -> np.ndarray:
    frame = tables.read_raw(path)
    if path.suffix.lower() == ".csv" and all(tables.is_number(name) for name in frame.columns):
        raise ValueError(
            f"{path}: its first line holds numbers ({list_names(frame.columns)}) where the names of the columns "
            "are expected; write a header line, or save the rows as .npy."
        )
    unknown = [name for name in drop if name not in frame.columns]
    if unknown:
        known = f"{list_names(frame.columns)}{did_you_mean(unknown[0], frame.columns)}"
        raise ValueError(f"{path}: there is no column {unknown[0]!r} to drop; it has {known}")
    kept = [_numbers(path, frame[name]) for name in frame.columns if name not in drop]
    if not kept:
        raise ValueError(f"{path}: no column is left; --drop leaves out all of them.")
    return np.column_stack([column.to_numpy() for column in kept])


def _numbers(path: Path, column: pl.Series) -> pl.Series:
    """Return a column of a table as Float64; true and false are 1 and 0."""
    name = column.name
    numbers = tables.infer_type(column, remedy=f"leave it out: --drop {name}")
    if numbers.dtype == pl.String and numbers.str.to_lowercase().is_in(("true", "false")).all():
        numbers = (numbers.str.to_lowercase() == "true").cast(pl.Float64)
    missing = numbers.null_count()
    if missing == len(numbers) or (missing and numbers.dtype != pl.String):
        row = first(numbers.is_null())
        raise ValueError(
            f"{path}: column {name!r} has {missing} missing values (first: row {row}); fill or drop those rows."
        )
    if numbers.dtype != pl.Float64:
        raise ValueError(
            f"{path}: column {name!r} is not numeric ({numbers.dtype}); encode it, or leave it out by --drop."
        )
    refuse_infinite(numbers)
    return numbers


def cast(inputs: np.ndarray, dtype: str) -> np.ndarray:
    """Return the inputs in float32 or float64. Raises: ValueError: numbers that become infinite."""
    with np.errstate(over="ignore"):
        out = inputs.astype(dtype)
    beyond = np.isinf(out) & np.isfinite(inputs)
    if beyond.any():
        raise ValueError(
            f"--dtype {dtype}: {inputs[beyond].flat[0]} is beyond its range; scale the inputs, or leave it out."
        )
    return out


def require_finite(diagonal: np.ndarray) -> None:
    """Refuse inputs whose kernel matrix would hold numbers that are not finite: K(x, y)^2 <= K(x, x) K(y, y).

    Raises:
        ValueError: some would be, with the row.
    """
    bad = np.flatnonzero(~np.isfinite(diagonal))
    if bad.size:
        raise ValueError(
            f"row {bad[0] + 1} of the inputs is so large that its kernel is beyond the range of {diagonal.dtype}; "
            "scale the inputs (a kernel grows with the square of their norm). Nothing was written."
        )
