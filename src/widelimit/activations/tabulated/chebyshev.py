"""A smooth function is a sum of c_k T_k(x), with coefficients from its values at Chebyshev points."""

import math

import numpy as np


def chebyshev_points(count: int) -> np.ndarray:
    """Return the zeros of T_count, in descending order."""
    return np.cos(math.pi * (np.arange(count) + 0.5) / count)


def chebyshev_coefficients(values: np.ndarray, *axes: int) -> np.ndarray:
    """Compute Chebyshev coefficients along the axes from the values at `chebyshev_points`."""
    transformed = np.asarray(values)
    for axis in axes:
        last = np.moveaxis(transformed, axis, -1)
        transformed = np.moveaxis(_cosine_transform(last) / last.shape[-1], -1, axis)
        first = [slice(None)] * transformed.ndim
        first[axis] = slice(0, 1)
        transformed[tuple(first)] /= 2
    return transformed


def _cosine_transform(values: np.ndarray) -> np.ndarray:
    """Compute 2 sum_n x_n cos(pi k (n + 1/2)/N) along the last axis by NumPy: the import of SciPy takes 0.1 s."""
    count = values.shape[-1]
    spectrum = np.fft.rfft(np.concatenate([values, values[..., ::-1]], axis=-1))[..., :count]
    return np.asarray((spectrum * np.exp(-0.5j * math.pi * np.arange(count) / count)).real)


def even_transform(values: np.ndarray) -> np.ndarray:
    """Compute x_0 + (-1)^k x_N + 2 sum_{0<n<N} x_n cos(pi k n/N) along the last axis, of N + 1 values."""
    return np.asarray(np.fft.rfft(np.concatenate([values, values[..., -2:0:-1]], axis=-1)).real)
