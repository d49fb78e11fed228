"""What every kernel is: encode each input once, then a pure function on pairs of blocks of features."""

from __future__ import annotations

import abc
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from widelimit import validation
from widelimit.compute import tiles
from widelimit.validation import Array


class Kernel(abc.ABC):
    """A symmetric positive semi-definite function K(x, x').

    NumPy in, NumPy out, in the dtype given (float64 whatever `jax_enable_x64` says); JAX arrays in, JAX arrays out,
    traceable and differentiable. A kernel is a pytree whose leaves are its hyper-parameters.
    """

    @abc.abstractmethod
    def encode(self, X: Float[jax.Array, "n d"]) -> Any:
        """What pairs need of single inputs: a pytree with arrays of leading or trailing length n. Pure JAX."""

    @abc.abstractmethod
    def pairwise(self, x: Any, y: Any, *, same: bool = False) -> Float[jax.Array, "n m"]:
        """K for every pair of two blocks of features. Pure JAX. With `same`, x is y and (i, i) an input with itself."""

    @abc.abstractmethod
    def diagonal(self, x: Any) -> Float[jax.Array, " n"]:
        """K(x, x) for a block of features. Pure JAX."""

    def prepared(self, *inputs: Float[Array, "n d"]) -> tiles.PairKernel:
        """A kernel with the same values at these inputs that costs less there; itself, unless there is one."""
        return self

    def gram(self, X: Float[Array, "n d"]) -> Float[Array, "n n"]:
        """K(x_i, x_j) for all rows: (n, d) -> (n, n), symmetric to the bit, its diagonal equal to `diag(X)` to the bit.

        Args:
            X: (n, d) inputs, finite, float32 or float64 (integers that float64 represents are taken as float64).

        Raises:
            TypeError: complex, object or text data, sparse or masked arrays.
            ValueError: NaN or infinite entries, not two dimensions, no rows or no columns.
            MemoryError: the result does not fit in memory; nothing is allocated then.
        """
        X = validation.points("X", X)
        if isinstance(X, jax.Array):
            return tiles.gram_jax(self.prepared(X), X)
        return tiles.gram(self.prepared(X), X)

    def cross(self, X: Float[Array, "n d"], Y: Float[Array, "m d"]) -> Float[Array, "n m"]:
        """K(x_i, y_j): (n, d), (m, d) -> (n, m). Of float32 and float64 the result is float64. Raises: as `gram`."""
        X, Y = validation.points("X", X), validation.points("Y", Y)
        validation.same_features("X", X, "Y", Y)
        dtype = np.result_type(X.dtype, Y.dtype)
        if validation.is_jax(X, Y):
            with jax.enable_x64(dtype == np.float64):
                X, Y = jnp.asarray(X, dtype), jnp.asarray(Y, dtype)
                return tiles.cross_jax(self.prepared(X, Y), X, Y)
        X, Y = np.asarray(X, dtype), np.asarray(Y, dtype)
        return tiles.cross(self.prepared(X, Y), X, Y)

    def diag(self, X: Float[Array, "n d"]) -> Float[Array, " n"]:
        """K(x_i, x_i): (n, d) -> (n,), at O(n) cost. Raises: as `gram`."""
        X = validation.points("X", X)
        if isinstance(X, jax.Array):
            return tiles.diagonal_jax(self.prepared(X), X)
        return tiles.diagonal(self.prepared(X), X)
