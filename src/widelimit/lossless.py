"""Data that a conversion to float64 would change are refused: masks, dates, texts, complex numbers, large integers."""

import datetime
from collections.abc import Iterator
from typing import Any

import numpy as np


def refuse_masked(name: str, value: Any) -> None:
    """Refuse an array, or a sequence of arrays, with masked entries; a mask with nothing masked is none.

    Raises: TypeError.
    """
    parts = value if isinstance(value, (list, tuple)) else [value]
    count = sum(int(np.sum(np.ma.getmaskarray(part))) for part in parts if isinstance(part, np.ma.MaskedArray))
    if count:
        raise TypeError(
            f"{name} is a masked array; fill or drop the masked entries first (missing values: {count}), e.g. "
            f"{name}.filled(0.0)."
        )


def is_sparse(value: Any) -> bool:
    """Return True for a matrix or an array of scipy.sparse, which need not be installed here."""
    return type(value).__module__.startswith("scipy.sparse")


def package_of(value: Any) -> str:
    """Return the name of the package that defines the value's class: "pandas", "polars", "numpy", ..."""
    return type(value).__module__.partition(".")[0]


def as_array(name: str, value: Any) -> np.ndarray:
    """Return the value as a NumPy array. Raises: ValueError: rows of different lengths."""
    try:
        return np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name} is not a rectangular array: {str(error)[:200]}") from None


DATES = (datetime.date, datetime.time, datetime.timedelta, np.datetime64, np.timedelta64)
REMEDIES = {
    "c": "pass the real and imaginary parts as separate columns",
    "O": "convert it, e.g. with .astype(float) on each column",
    "U": "convert the text to numbers",
    "S": "convert the text to numbers",
    "M": "convert the dates to numbers, e.g. days since the first",
    "m": "convert the time spans to numbers, e.g. days",
}
"""The advice is by the kind of a NumPy dtype that is no real number."""


def is_gap(value: Any) -> bool:
    """Return True for None and for what pandas writes where a value is missing, but for NaN."""
    return value is None or type(value).__name__ in ("NAType", "NaTType")


def columns(value: Any) -> Iterator[Any]:
    """Return the columns of a table, each of which has a dtype of its own; of anything else nothing."""
    package = package_of(value)
    if package in ("pandas", "polars") and len(getattr(value, "shape", ())) == 2:
        yield from (value.iloc[:, j] for j in range(value.shape[1])) if package == "pandas" else value.iter_columns()


def refuse_inexact(name: str, array: np.ndarray) -> None:
    """Refuse integers that float64 would round: different ones could become equal. Raises: TypeError."""
    if array.dtype.kind not in "iu" or array.dtype.itemsize < 8:
        return
    exact = array.astype(np.float64)
    with np.errstate(invalid="ignore"):
        same = (exact.astype(array.dtype) == array) & (exact < 2.0 ** (64 - (array.dtype.kind == "i")))
    if not same.all():
        raise TypeError(f"{name} holds integers that float64 cannot represent; scale them, or pass floats.")


def refuse_inexact_lists(name: str, value: Any) -> None:
    """Refuse integers in lists that float64 rounds; NumPy may have rounded them already. Raises: TypeError."""
    if isinstance(value, (list, tuple)):
        for entry in value:
            refuse_inexact_lists(name, entry)
    elif isinstance(value, int) and abs(value) > 2**53 and rounded(value):
        raise TypeError(f"{name} holds integers that float64 cannot represent; scale them, or pass floats.")


def large(array: np.ndarray) -> bool:
    """Return True if floats are so large that integers may have been rounded to them."""
    return array.dtype.kind == "f" and bool((np.abs(array) >= 2.0**53).any())


def rounded(number: int) -> bool:
    """Return True if float64 rounds this integer, or has none so large."""
    try:
        return int(float(number)) != number
    except OverflowError:
        return True
