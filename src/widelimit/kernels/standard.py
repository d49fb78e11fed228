"""Linear, polynomial and radial kernels, and stored matrices, are used without networks."""

import abc
from collections.abc import Callable
from dataclasses import field
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np

from widelimit import validation
from widelimit.compute.tiles import PairKernel
from widelimit.kernels.base import Kernel, require_one_a_feature
from widelimit.pytrees import pytree
from widelimit.series import safe_sqrt
from widelimit.shapes import Float
from widelimit.signals import rows_together
from widelimit.validation import Array

Scalar = float | jax.Array
FeatureMap = Callable[[Any], Any]

ASYMMETRY = 64
"""A symmetric matrix may differ from its transpose by this rounding, in eps of its dtype and largest entry."""


def identity(X: Any) -> Any:
    """phi(x) = x."""
    return X


def _inner(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.matmul(x, y.T, precision="highest")


def _distances(x: jax.Array, y: jax.Array, scale: Scalar) -> jax.Array:
    """Compute |(x - y)/scale|^2 for all pairs, from differences: x.x + y.y - 2 x.y loses digits for x close to y."""
    divisor = jnp.asarray(scale, x.dtype)
    together = rows_together(len(x), len(y))
    rows = jax.lax.map(
        lambda row: jnp.sum(((row - y) / divisor) ** 2, axis=-1), x, batch_size=together if together > 1 else None
    )
    return jnp.asarray(rows)


@final
@pytree
class Linear(Kernel):
    """K(x, x') = phi(x).phi(x'); made by `linear`."""

    feature_map: FeatureMap = field(metadata={"static": True})

    @property
    def traceable(self) -> bool:
        return self.feature_map is identity

    def encode(self, X: Float[jax.Array, "n d"]) -> Float[jax.Array, "n p"]:
        features = jnp.asarray(self.feature_map(X))
        if features.ndim != 2 or len(features) != len(X):
            raise ValueError(
                f"feature_map must map ({len(X)}, {X.shape[1]}) inputs to ({len(X)}, p) features; it returned shape "
                f"{features.shape}."
            )
        if features.dtype not in (jnp.float32, jnp.float64):
            raise TypeError(f"feature_map must return float32 or float64, got {features.dtype}.")
        return features.astype(X.dtype)

    def pairwise(self, x: Any, y: Any, *, same: bool | jax.Array = False) -> Float[jax.Array, "n m"]:
        return _inner(x, y)

    def diagonal(self, x: Any) -> Float[jax.Array, " n"]:
        return jnp.sum(x**2, axis=1)


@final
@pytree
class PolynomialKernel(Kernel):
    """K(x, x') = (x.x' + offset)^degree; made by `polynomial`."""

    offset: Scalar
    degree: int = field(metadata={"static": True})

    def pairwise(self, x: Any, y: Any, *, same: bool | jax.Array = False) -> Float[jax.Array, "n m"]:
        return (_inner(x, y) + jnp.asarray(self.offset, x.dtype)) ** self.degree

    def diagonal(self, x: Any) -> Float[jax.Array, " n"]:
        return (jnp.sum(x**2, axis=1) + jnp.asarray(self.offset, x.dtype)) ** self.degree


class _Radial(Kernel, abc.ABC):
    """The kernel is a function of |(x - x')/length_scale| that is 1 at 0."""

    length_scale: Scalar

    def encode(self, X: Float[jax.Array, "n d"]) -> Float[jax.Array, "n d"]:
        require_one_a_feature("length_scale", self.length_scale, X)
        return X

    def diagonal(self, x: Any) -> Float[jax.Array, " n"]:
        return jnp.ones_like(x[:, 0])


@final
@pytree
class RadialBasis(_Radial):
    """K(x, x') = exp(-|x - x'|^2/(2 length_scale^2)); made by `rbf`."""

    length_scale: Scalar

    def pairwise(self, x: Any, y: Any, *, same: bool | jax.Array = False) -> Float[jax.Array, "n m"]:
        return jnp.exp(-_distances(x, y, self.length_scale) / 2)


@final
@pytree
class Laplace(_Radial):
    """K(x, x') = exp(-|x - x'|/length_scale), the norm Euclidean; made by `laplace`."""

    length_scale: Scalar

    def pairwise(self, x: Any, y: Any, *, same: bool | jax.Array = False) -> Float[jax.Array, "n m"]:
        return jnp.exp(-safe_sqrt(_distances(x, y, self.length_scale)))


@final
@pytree
class Precomputed(Kernel):
    """K(i, j) = matrix[i, j] at the inputs i and j, which are indices (n, 1); made by `precomputed`."""

    matrix: Array

    @property
    def indices(self) -> Float[np.ndarray, "N 1"]:
        """Return all inputs of this kernel, (N, 1): the indices 0 to N - 1; take rows of it for training and test."""
        return np.arange(len(self.matrix), dtype=np.float64)[:, None]

    def numbers_per_input(self, d: int) -> int:
        return d + len(self.matrix)

    def prepared(self, *inputs: Float[Array, "n d"]) -> PairKernel:
        size = len(self.matrix)
        for X in inputs:
            if X.shape[1] != 1:
                raise ValueError(f"inputs of a precomputed kernel are indices of shape (n, 1), got shape {X.shape}.")
            if validation.traced(X):
                continue
            values = np.asarray(X)
            wrong = (values != np.floor(values)) | (values < 0) | (values >= size)
            if wrong.any():
                raise ValueError(
                    f"inputs of this precomputed kernel are indices from 0 to {size - 1}, got {values[wrong][0]:g}; "
                    f"take them from k.indices."
                )
        return self

    def encode(self, X: Float[jax.Array, "n d"]) -> Any:
        index = X[:, 0].astype(jnp.int32)
        rows = jnp.asarray(self.matrix, X.dtype).at[index].get(mode="fill", fill_value=jnp.nan)
        return index, rows

    def pairwise(self, x: Any, y: Any, *, same: bool | jax.Array = False) -> Float[jax.Array, "n m"]:
        return jnp.asarray(x[1].at[:, y[0]].get(mode="fill", fill_value=jnp.nan))

    def diagonal(self, x: Any) -> Float[jax.Array, " n"]:
        return jnp.take_along_axis(x[1], x[0][:, None], axis=1, mode="fill", fill_value=jnp.nan)[:, 0]


def linear(feature_map: FeatureMap = identity) -> Linear:
    """K(x, x') = phi(x).phi(x'), phi the identity unless given (section 3.1 of the paper).

    Args:
        feature_map: phi, a function that maps (n, d) inputs to (n, p) features row by row, written with jax.numpy if
            the kernel is to be traced; hashable, as functions are.

    Raises:
        TypeError: feature_map is not a function.
    """
    if not callable(feature_map):
        raise TypeError(f"feature_map must be a function of (n, d) inputs, got {type(feature_map).__name__}.")
    return Linear(feature_map)


def polynomial(*, degree: int, offset: Scalar = 1.0) -> PolynomialKernel:
    """K(x, x') = (x.x' + offset)^degree.

    Args:
        degree: an integer >= 1.
        offset: >= 0, in the square of the inputs' unit.

    Raises:
        TypeError, ValueError: an argument of another type or out of range.
    """
    degree = validation.integer("degree", degree, at_least=1)
    return PolynomialKernel(validation.finite_scalar("offset", offset, at_least=0.0), degree)


def rbf(length_scale: Scalar | Float[Array, " d"] = 1.0) -> RadialBasis:
    """K(x, x') = exp(-|(x - x')/length_scale|^2/2).

    Args:
        length_scale: > 0, one number or (d,), one a feature; in the inputs' units.

    Raises:
        TypeError, ValueError: not positive finite numbers.
    """
    return RadialBasis(validation.vector_or_scalar("length_scale", length_scale, above=0.0))


def laplace(length_scale: Scalar | Float[Array, " d"] = 1.0) -> Laplace:
    """K(x, x') = exp(-|(x - x')/length_scale|), the norm Euclidean.

    On spheres its reproducing space is that of the NTK of relu with bias (Chen and Xu 2021, arXiv 2009.10683).

    Args:
        length_scale: > 0, one number or (d,), one a feature; in the inputs' units.

    Raises:
        TypeError, ValueError: not positive finite numbers.
    """
    return Laplace(validation.vector_or_scalar("length_scale", length_scale, above=0.0))


def precomputed(matrix: Float[Array, "N N"]) -> Precomputed:
    """K(i, j) = matrix[i, j]: a kernel on N points of which only the matrix is known.

    Its inputs are indices: `k.indices` has all, (N, 1); train on `k.indices[:n]` and predict at `k.indices[n:]`.

    Args:
        matrix: (N, N), symmetric to 64 eps of its largest entry (the mean of the two triangles is used), finite, with a
            diagonal >= 0. Whether it is positive semi-definite is found by what uses it.

    Raises:
        TypeError, ValueError: not a symmetric square matrix of finite floats.
    """
    values = symmetric("matrix", validation.points("matrix", validation.concrete("matrix", matrix)))
    smallest = np.diagonal(np.asarray(values)).min()
    if smallest < 0:
        raise ValueError(f"the diagonal of a kernel is >= 0, got {smallest:g}.")
    return Precomputed(values)


def symmetric(name: str, matrix: Array) -> Array:
    """Return the mean of a finite (N, N) matrix and its transpose.

    Raises: ValueError: not square, or not symmetric to `ASYMMETRY` eps of its largest entry.
    """
    if matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"{name} must be square, (N, N), got shape {matrix.shape}.")
    entries = np.asarray(matrix)
    gap, largest = np.abs(entries - entries.T), float(np.abs(entries).max())
    if gap.max() > ASYMMETRY * float(np.finfo(entries.dtype).eps) * largest:
        i, j = np.unravel_index(np.argmax(gap), gap.shape)
        raise ValueError(
            f"{name} is not symmetric: entry [{i}, {j}] is {entries[i, j]:g} and [{j}, {i}] is {entries[j, i]:g}; pass "
            f"({name} + {name}.T)/2 if that is what you mean."
        )
    return (matrix + matrix.T) / 2
