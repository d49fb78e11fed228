"""What happens to a table before a kernel sees it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import numpy as np
from jaxtyping import Float

from widelimit.compute import linalg, memory
from widelimit.inference.outputs import constant
from widelimit.inference.training_set import near

NORMALIZE = ("standardize", "sphere", None)


@final
@dataclass(frozen=True)
class Inputs:
    """x -> (x - mean)/scale, column by column, then, on the sphere, each row to norm sqrt(d)."""

    mean: Float[np.ndarray, " d"]
    scale: Float[np.ndarray, " d"]
    sphere: bool

    def __call__(self, X: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
        """The rows as the kernel takes them. Raises: ValueError: a row leaves float64's range."""
        with linalg.quiet():
            rows = near((X - self.mean) / self.scale, X)
        if not self.sphere:
            return rows
        rows = linalg.scaled(rows.T)[0].T
        norms = np.sqrt(np.mean(rows**2, axis=1, keepdims=True))
        return np.asarray(rows / np.where(norms > 0, norms, 1.0))


def inputs(normalize: str | None, X: Float[np.ndarray, "n d"], weights: Float[np.ndarray, " n"]) -> Inputs:
    """The normalisation of these training rows. Raises: ValueError: normalize is none of NORMALIZE."""
    if normalize not in NORMALIZE:
        raise ValueError(f"normalize must be one of {', '.join(map(repr, NORMALIZE))}, got {normalize!r}.")
    if normalize is None:
        return Inputs(np.zeros(X.shape[1]), np.ones(X.shape[1]), False)
    mean, scale = mean_and_scale(X, weights)
    return Inputs(mean, scale, normalize == "sphere")


def mean_and_scale(
    values: Float[np.ndarray, "n c"], weights: Float[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, " c"], Float[np.ndarray, " c"]]:
    """Weighted mean and standard deviation of each column; its first value, and 1, of one constant up to rounding."""
    share = weights / weights.sum()
    largest = np.abs(values).max(axis=0)
    unit = np.where(largest > 0, largest, 1.0)  # of order 1, so that no square leaves the range of a float
    mean = share @ (values / unit)
    scale = np.sqrt(share @ (values / unit - mean) ** 2)
    still = constant(values)
    flat = still | (scale <= 10 * np.finfo(np.float64).eps * len(values) ** 0.5)
    return np.where(still, values[0], mean * unit), np.where(flat, 1.0, scale * unit)


def standardised(
    y: Float[np.ndarray, "n c"], weights: Float[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, "n c"], Float[np.ndarray, " c"], Float[np.ndarray, " c"]]:
    """(y - mean)/scale, mean and scale, column by column; 0 in a column that is constant up to rounding."""
    mean, scale = mean_and_scale(y, weights)
    return np.where(constant(y), 0.0, (y - mean) / scale), mean, scale


def sample_weights(value: Any, n: int) -> Float[np.ndarray, " n"]:
    """(n,) weights >= 0, not all of them 0; 1 unless given."""
    if value is None:
        return np.ones(n)
    weights = np.asarray(value, dtype=np.float64)
    if weights.ndim == 0:
        weights = np.full(n, float(weights))
    if weights.shape != (n,):
        raise ValueError(f"sample_weight must have shape ({n},), one a row; got shape {weights.shape}.")
    if not np.isfinite(weights).all() or (weights < 0).any():
        raise ValueError("sample_weight must be finite and >= 0.")
    if not weights.any():
        raise ValueError("every sample weight is zero: there is nothing to fit.")
    return weights


def require_room(n: int, matrices: float) -> None:
    """Refuse n rows whose (n, n) matrices do not fit, before any is made; half a matrix is one triangle.

    Raises:
        MemoryError: with what to use instead.
    """
    try:
        memory.require(8.0 * matrices * n * n, f"an exact fit to {n} rows")
    except MemoryError as error:
        sizes = str(error).split(";")[0]
        raise MemoryError(
            f"{sizes}. Fit fewer rows (a random sample of X), or use NTKFeatures before a linear model, whose memory "
            f"grows with the number of rows only: make_pipeline(NTKFeatures(), Ridge())."
        ) from None
