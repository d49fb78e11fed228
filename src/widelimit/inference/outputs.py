"""Some of several outputs decide in a search that they share: this module finds them."""

import numpy as np

from widelimit.compute import threads
from widelimit.compute.linalg import EPS
from widelimit.shapes import Float, Int

COPY = 1e-12
"""1 - |cosine| of two outputs that are one up to unit and sign: values that agree to 1e-6, below any noise tried."""
COMPARED = 256
"""Outputs that are compared at once."""


def constant(values: Float[np.ndarray, "n c"]) -> np.ndarray:
    """Find the columns that do not vary beyond the rounding of a mean of n values: (c,)."""
    with np.errstate(over="ignore"):
        return np.asarray(np.ptp(values, axis=0) <= 10 * EPS * np.sqrt(len(values)) * np.abs(values).max(axis=0))


def distinct_columns(y: Float[np.ndarray, "n c"]) -> Int[np.ndarray, " k"]:
    """Find columns that vary and repeat no column before them, in any unit and with either sign; all if none varies.

    A constant says nothing of how a function varies, and a copy nothing that its original has not said.
    """
    size = np.abs(y).max(axis=0)
    scaled = y / np.where(size > 0, size, 1.0)
    directions = scaled / np.maximum(np.sqrt(np.sum(scaled**2, axis=0)), 1.0)
    rest, found = np.flatnonzero(~constant(y)), np.zeros(0, int)
    while len(rest):
        # What is left repeats no column found; within a block each is compared with those before it.
        block, rest = rest[:COMPARED], rest[COMPARED:]
        same = _copies(directions[:, block], directions[:, block])
        kept = np.zeros(len(block), bool)
        for i in range(len(block)):
            kept[i] = not same[i, kept].any()
        fresh = block[kept]
        rest = rest[~_copies(directions[:, rest], directions[:, fresh]).any(axis=1)]
        found = np.concatenate([found, fresh])
    return found if len(found) else np.arange(y.shape[1])


def _copies(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Find the columns of a that are columns of b, up to sign: (k, l)."""
    return np.asarray(np.abs(threads.product(a.T, b)) > 1 - COPY)
