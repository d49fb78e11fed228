"""The inputs of the Gram benchmarks are the same here and at the peer: NumPy alone."""

import numpy as np


def inputs(n: int, d: int, dtype: str, *, equal_norms: bool) -> np.ndarray:
    """Draw standard normal rows, or those on a sphere."""
    X = np.random.default_rng(0).standard_normal((n, d))
    if equal_norms:
        X *= np.sqrt(d) / np.linalg.norm(X, axis=1, keepdims=True)
    return X.astype(dtype)
