"""Rows are selected one after another, each where the variance given those before it is largest."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from widelimit import validation
from widelimit.compute import linalg
from widelimit.shapes import Float
from widelimit.tangents.rows import TangentRows, require_rows


class Selection(NamedTuple):
    """Rows were selected in this order."""

    rows: Float[np.ndarray, " k"]
    """Indices of the rows."""
    variance: Float[np.ndarray, " k"]
    """The variance at each, of f ~ GP(0, K) given the rows before it: the largest there was."""
    left: Float[np.ndarray, " n"]
    """The variance at all rows given all that were selected."""


def select(rows: TangentRows, count: int, *, noise: float = 0.0, known: Any = ()) -> Selection:
    """Select the rows of largest variance, each given those selected before it and the known ones.

    Without noise this is Cholesky's factorisation of K with greedy pivots: a coreset, whose span is closest to all
    rows. With the noise of labels and the rows that have one already, active learning by variance. Takes one column of
    K a row: count n products of gradients, not the matrix.

    Args:
        rows: candidates with one value each: output="trace", or one output by `of`; exact or a sketch.
        count: rows to select, from 1 to n less the known ones.
        noise: variance of a label, >= 0, in the unit of the kernel.
        known: indices of rows that are labelled already.

    Returns: a `Selection`; fewer rows than `count` where the others depend on them, variance 0 to rounding.

    Raises: TypeError, ValueError: bad arguments; rows of several values.
    """
    require_rows("rows", rows)
    n = len(rows.values)
    if rows.size != n:
        raise ValueError(f'rows have {rows.values.shape[1]} values each; pass output="trace", or one number by of=.')
    noise = float(validation.finite_scalar("noise", noise, at_least=0.0))
    start = [validation.integer("every entry of known", i, at_least=0, below=n) for i in _listed(known)]
    if len(set(start)) < len(start):
        raise ValueError("known names a row twice.")
    count = validation.integer("count", count, at_least=1, below=n - len(start) + 1)
    variance = np.array(rows.diag(), np.float64)
    error = np.sqrt(linalg.EPS) * variance.max()
    factor = np.zeros((len(start) + count, n))
    chosen, found = np.array(start, int), []
    free = np.ones(n, bool)
    for step in range(len(start) + count):
        pick = start[step] if step < len(start) else int(np.argmax(np.where(free, variance, -np.inf)))
        if step >= len(start):
            if variance[pick] <= error:
                break
            found.append(variance[pick])
            chosen = np.append(chosen, pick)
        free[pick] = False
        pivot = variance[pick] + noise
        if pivot > error:
            row = (_column(rows, pick) - factor[:step].T @ factor[:step, pick]) / pivot**0.5
            factor[step], variance = row, np.maximum(variance - row**2, 0.0)
    return Selection(chosen[len(start) :], np.array(found), variance)


def _listed(known: Any) -> list[Any]:
    listed = isinstance(known, Sequence) and not isinstance(known, (str, bytes))
    values = known if listed else np.asarray(known)
    if np.ndim(values) != 1:
        raise TypeError(f"known must be a sequence of indices of rows, got {validation.shown(known)}.")
    return list(values)


def _column(rows: TangentRows, i: int) -> np.ndarray:
    return np.asarray(rows.product((np.arange(rows.size) == i).astype(np.float64)))
