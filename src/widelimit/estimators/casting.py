"""Values that scikit-learn would cast without a message are refused first: it reads tables of every kind as numbers."""

from __future__ import annotations

import numbers
from typing import Any

import numpy as np

from widelimit import lossless, validation


def refuse_uncastable(name: str, value: Any) -> None:
    """Refuse what a cast to float64 changes or loses without a message, before scikit-learn casts.

    These are masks, text, dates, time spans, complex numbers, long doubles and integers beyond 2^53. An array of
    objects may hold real numbers.

    Raises: TypeError, ValueError (complex numbers).
    """
    lossless.refuse_masked(name, value)
    if lossless.is_sparse(value) or value is None:
        return
    for column in [*lossless.columns(value)] or [value]:
        array = lossless.as_array(name, column)
        lossless.refuse_inexact(name, array)
        if isinstance(column, (list, tuple)) and lossless.large(array):
            lossless.refuse_inexact_lists(name, column)
        kind = array.dtype.kind
        if kind == "c":
            raise ValueError(f"Complex data not supported: {name} has dtype {array.dtype}; {lossless.REMEDIES['c']}.")
        if kind in lossless.REMEDIES and kind != "O":
            raise TypeError(f"{name} has dtype {str(array.dtype)[:60]}; numbers are needed: {lossless.REMEDIES[kind]}.")
        if kind == "V" or (kind == "f" and array.dtype.itemsize > 8):
            raise TypeError(f"{name} has dtype {str(array.dtype)[:60]}; convert it to float64 yourself.")
        if kind == "O":
            _refuse_objects(name, array)


def _refuse_objects(name: str, array: np.ndarray) -> None:
    for place, entry in np.ndenumerate(array):
        at = f"{name}[{', '.join(map(str, place))}]" if place else name
        if isinstance(entry, (complex, np.complexfloating)):
            raise ValueError(
                f"Complex data not supported: {at} is {validation.shown(entry)}; {lossless.REMEDIES['c']}."
            )
        if isinstance(entry, (str, bytes)):
            raise TypeError(
                f"{at} is the text {validation.shown(entry)}; numbers are needed: {lossless.REMEDIES['U']}."
            )
        if isinstance(entry, lossless.DATES):
            raise TypeError(f"{at} is {validation.shown(entry)}; numbers are needed: {lossless.REMEDIES['M']}.")
        if lossless.is_gap(entry):
            raise ValueError(f"{at} is missing ({validation.shown(entry)}, as good as NaN); drop or impute it.")
        if not isinstance(entry, (numbers.Number, np.generic)):
            raise TypeError(
                f"{at} is {validation.shown(entry)}: the argument must be a number (a string must be converted to a "
                "number)."
            )
        if isinstance(entry, (int, np.integer)) and abs(int(entry)) > 2**53 and lossless.rounded(int(entry)):
            raise TypeError(f"{at} is an integer that float64 cannot represent; scale it, or pass floats.")


def refuse_unfit_labels(name: str, value: Any) -> None:
    """Refuse class labels that are neither numbers nor text: masks, dates, time spans, complex numbers, records.

    Text beside numbers is refused, and a label that is missing among objects.

    Raises: TypeError, ValueError (complex numbers, missing).
    """
    lossless.refuse_masked(name, value)
    if value is None:
        return
    array = lossless.as_array(name, value)
    kinds: str = array.dtype.kind
    if kinds == "O" or (kinds == "U" and isinstance(value, (list, tuple))):
        entries = np.array([*value], dtype=object) if kinds == "U" else array
        kinds = "".join({_kind(entry) for entry in entries.flat})
        missing = [i for i, entry in enumerate(entries.flat) if _kind(entry) == "0"]
        if missing:
            raise ValueError(
                f"{name} has {len(missing)} missing labels, the first at [{missing[0]}]; drop these rows, or give "
                "them a label of their own."
            )
        if {"U", "f"} <= set(kinds):
            raise TypeError(f"{name} has text and numbers as labels; make all of them text, or all numbers.")
    if "c" in kinds:
        raise ValueError(f"Complex data not supported: {name} holds complex numbers; labels are numbers or text.")
    if set(kinds) & set("mMV"):
        raise TypeError(
            f"{name} holds dates, time spans or records; class labels are numbers or text: use .astype(str)."
        )


def _kind(entry: Any) -> str:
    if isinstance(entry, lossless.DATES):
        return "M"
    if lossless.is_gap(entry) or entry != entry:
        return "0"
    if isinstance(entry, str):
        return "U"
    if validation.is_real(entry) or isinstance(entry, (bool, np.bool_)):
        return "f"
    return "c" if isinstance(entry, (complex, np.complexfloating)) else ""
