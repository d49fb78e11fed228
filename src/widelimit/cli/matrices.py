"""Inputs as one matrix of numbers: .npy, .npz, .csv and .parquet files."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

FORMATS = (".npy", ".npz", ".csv", ".parquet")


def read_matrix(path: Path, *, array: str = "", drop: Sequence[str] = ()) -> np.ndarray:
    """The (n, d) numbers in a file, in their own dtype; tables as float64.

    Args:
        path: an existing file that ends in one of FORMATS.
        array: the name of the array in an .npz; "" for its only one.
        drop: columns of a table to leave out.

    Raises:
        ValueError: another suffix, no such file, a damaged file, arrays of objects, text columns, missing values.
    """
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"{path}: no data format {path.suffix!r}; give a file that ends in {', '.join(FORMATS)}.")
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file.")
    table = path.suffix.lower() in (".csv", ".parquet")
    return _table(path, drop) if table else _arrays(path, array)


def _arrays(path: Path, array: str) -> np.ndarray:
    try:
        found = np.load(path, allow_pickle=False)
        if isinstance(found, np.ndarray):
            return found
        with found:
            if array and array not in found.files:
                raise ValueError(f"it has no array {array!r}, but {', '.join(found.files)}; choose one by --array")
            if not array and len(found.files) != 1:
                raise ValueError(f"it has {len(found.files)} arrays ({', '.join(found.files)}); choose one by --array")
            return np.asarray(found[array or found.files[0]])
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: {error}.") from None


def _table(path: Path, drop: Sequence[str]) -> np.ndarray:
    import polars

    try:
        scan = polars.scan_csv(path) if path.suffix.lower() == ".csv" else polars.scan_parquet(path)
        schema = scan.collect_schema()
        unknown = [name for name in drop if name not in schema]
        if unknown:
            raise ValueError(f"{path}: there is no column {unknown[0]!r} to drop; it has {', '.join(schema)}.")
        kept = [name for name in schema if name not in drop]
        text = [name for name in kept if not (schema[name].is_numeric() or schema[name] == polars.Boolean)]
        if text:
            raise ValueError(
                f"{path}: column {text[0]!r} is not numeric ({schema[text[0]]}); encode it, or leave it out by --drop."
            )
        frame = scan.select(polars.col(kept).cast(polars.Float64)).collect()
    except (polars.exceptions.PolarsError, OSError) as error:
        raise ValueError(f"{path}: is not a table that can be read: {str(error).splitlines()[0]}.") from None
    missing = [name for name in kept if frame[name].null_count()]
    if missing:
        count = frame[missing[0]].null_count()
        raise ValueError(f"{path}: column {missing[0]!r} has {count} missing values; fill or drop those rows.")
    return frame.to_numpy()
