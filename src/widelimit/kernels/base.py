"""A kernel encodes each input once, then applies a pure function to pairs of blocks of features."""

from __future__ import annotations

import abc
from dataclasses import replace
from typing import Any, Self, final

import jax
import jax.numpy as jnp
import numpy as np

from widelimit import validation
from widelimit.activations.base import Activation
from widelimit.arithmetic import arithmetic
from widelimit.compute import device_tiles, tiles
from widelimit.pytrees import pytree, require_pytree
from widelimit.shapes import Float
from widelimit.validation import Array


class Matrices(tiles.PairKernel, abc.ABC):
    """Matrices of a function of pairs are computed in two phases: each input is encoded once, then pairs."""

    def prepared(self, *inputs: Float[Array, "n d"]) -> tiles.PairKernel:
        """Return a kernel with the same values at these inputs that costs less there, or itself if there is none."""
        return self

    def at(self, X: Any) -> Self:
        """Return the kernel for inputs of the form of X; only kernels of a user's function take other than arrays."""
        return self

    def points(self, name: str, X: Any) -> Array:
        """Return inputs as rows (n, d) of floats; kernels of networks of images take images too."""
        for part in self.operands:
            X = part.points(name, X) if isinstance(part, Matrices) else X
        return validation.points(name, X)

    def gram(self, X: Float[Array, "n d"]) -> Float[Array, "n n"]:
        """Compute K(x_i, x_j) for all rows: (n, d) -> (n, n), symmetric and with the diagonal `diag(X)`, to the bit.

        Args:
            X: (n, d) inputs, finite, float32 or float64 (integers that float64 represents are taken as float64).

        Raises:
            TypeError: complex, object or text data, sparse or masked arrays; a NumPy array where JAX traces the kernel.
            ValueError: NaN or infinite entries, not two dimensions, no rows or no columns.
            MemoryError: the result does not fit in memory; nothing is allocated then.
        """
        if (there := self.at(X)) is not self:
            return there.gram(X)
        X = self.points("X", X)
        if isinstance(X, jax.Array):
            return self._checked(device_tiles.gram(self._prepared_there(X), X), X=X)
        self._refuse_traced()
        return self._checked(tiles.gram(self.prepared(X), X), X=X)

    def cross(self, X: Float[Array, "n d"], Y: Float[Array, "m d"]) -> Float[Array, "n m"]:
        """Compute K(x_i, y_j): (n, d), (m, d) -> (n, m). float32 and float64 give float64. Raises: as `gram`."""
        if (there := self.at(X)) is not self:
            return there.cross(X, Y)
        X, Y = self.points("X", X), self.points("Y", Y)
        validation.same_features("X", X, "Y", Y)
        dtype = np.result_type(X.dtype, Y.dtype)
        if validation.is_jax(X, Y):
            with arithmetic(dtype == np.float64):
                X, Y = jnp.asarray(X, dtype), jnp.asarray(Y, dtype)
                return self._checked(device_tiles.cross(self._prepared_there(X, Y), X, Y), X=X, Y=Y)
        self._refuse_traced()
        X, Y = np.asarray(X, dtype), np.asarray(Y, dtype)
        return self._checked(tiles.cross(self.prepared(X, Y), X, Y), X=X, Y=Y)

    def diag(self, X: Float[Array, "n d"]) -> Float[Array, " n"]:
        """Compute K(x_i, x_i): (n, d) -> (n,), at O(n) cost. Raises: as `gram`."""
        if (there := self.at(X)) is not self:
            return there.diag(X)
        X = self.points("X", X)
        if isinstance(X, jax.Array):
            return self._checked(device_tiles.diagonal(self._prepared_there(X), X), X=X)
        self._refuse_traced()
        return self._checked(tiles.diagonal(self.prepared(X), X), X=X)

    def _checked(self, values: Array, **inputs: Array) -> Array:
        """Return the values at inputs by name; kernels of a user's function refuse those that are not finite."""
        return values

    def _prepared_there(self, *inputs: jax.Array) -> tiles.PairKernel:
        """Return `prepared` for JAX arrays; machine code cannot take hyper-parameters that JAX traces."""
        found = self.prepared(*inputs)
        return self if found.eager and validation.traced(*jax.tree.leaves(self)) else found

    def _refuse_traced(self) -> None:
        """Refuse hyper-parameters without values where the inputs are NumPy's: those are computed at once."""
        require_pytree(self)
        if validation.traced(*jax.tree.leaves(self)):
            raise TypeError(
                "jax is tracing (jit, grad or vmap) hyper-parameters of the kernel, and X is a NumPy array, whose "
                "kernel is computed at once: pass jnp.asarray(X)."
            )


class Kernel(Matrices, abc.ABC):
    """A kernel is a symmetric positive semi-definite function K(x, x').

    NumPy in, NumPy out, in the dtype given (float64 whatever `jax_enable_x64` says); JAX arrays in, JAX arrays out,
    traceable and differentiable. A kernel is a pytree whose leaves are its hyper-parameters. k1 + k2, k1 * k2 and
    2.0 * k are kernels.
    """

    __array_ufunc__ = None
    """NumPy numbers leave `number * kernel` to the kernel."""

    @property
    def table_error(self) -> float:
        """Return the stated error of entries in float64 that tables of activations bring, over the largest K(x, x)."""
        leaves = jax.tree.leaves(self, is_leaf=lambda leaf: isinstance(leaf, Activation))
        return float(sum(leaf.rtol_in(np.float64) for leaf in leaves if isinstance(leaf, Activation)))

    def covariance_error(self, X: Float[Array, "n d"]) -> float:
        """Bound the error of eigenvalues of `gram(X)` that comes from `table_error`: 0 with closed forms."""
        return len(X) * self.table_error * float(np.max(np.asarray(self.diag(X)))) if self.table_error else 0.0

    def __add__(self, other: Kernel) -> Kernel:
        return Sum(self, other) if isinstance(other, Kernel) else NotImplemented

    def __mul__(self, other: Kernel | float | jax.Array) -> Kernel:
        if isinstance(other, Kernel):
            return Product(self, other)
        return Scaled(validation.finite_scalar("the factor of a kernel", other, at_least=0.0), self)

    def __rmul__(self, other: float | jax.Array) -> Kernel:
        return self * other


class _TwoKernels(Kernel, abc.ABC):
    """The kernel is made of two."""

    left: tiles.PairKernel
    right: tiles.PairKernel

    @property
    def operands(self) -> tuple[tiles.PairKernel, ...]:
        return self.left, self.right

    def at(self, X: Any) -> Self:
        left, right = _at(self.left, X), _at(self.right, X)
        return self if left is self.left and right is self.right else replace(self, left=left, right=right)  # type: ignore[type-var]

    def prepared(self, *inputs: Float[Array, "n d"]) -> tiles.PairKernel:
        return type(self)(*(_prepared(part, *inputs) for part in self.operands))

    def encode(self, X: Float[jax.Array, "n d"]) -> Any:
        return self.left.encode(X), self.right.encode(X)


@final
@pytree
class Sum(_TwoKernels):
    """K(x, x') + K'(x, x') is the covariance of a sum of independent processes; made by k1 + k2."""

    left: tiles.PairKernel
    right: tiles.PairKernel

    def pairwise(self, x: Any, y: Any, *, same: bool | jax.Array = False) -> Float[jax.Array, "n m"]:
        return self.left.pairwise(x[0], y[0], same=same) + self.right.pairwise(x[1], y[1], same=same)

    def diagonal(self, x: Any) -> Float[jax.Array, " n"]:
        return self.left.diagonal(x[0]) + self.right.diagonal(x[1])


@final
@pytree
class Product(_TwoKernels):
    """K(x, x') K'(x, x') is positive semi-definite by Schur's product theorem; made by k1 * k2."""

    left: tiles.PairKernel
    right: tiles.PairKernel

    def pairwise(self, x: Any, y: Any, *, same: bool | jax.Array = False) -> Float[jax.Array, "n m"]:
        return self.left.pairwise(x[0], y[0], same=same) * self.right.pairwise(x[1], y[1], same=same)

    def diagonal(self, x: Any) -> Float[jax.Array, " n"]:
        return self.left.diagonal(x[0]) * self.right.diagonal(x[1])


@final
@pytree
class Scaled(Kernel):
    """The kernel is factor K(x, x'), factor >= 0; made by factor * k."""

    factor: float | jax.Array
    kernel: tiles.PairKernel

    @property
    def operands(self) -> tuple[tiles.PairKernel, ...]:
        return (self.kernel,)

    def at(self, X: Any) -> Self:
        kernel = _at(self.kernel, X)
        return self if kernel is self.kernel else replace(self, kernel=kernel)

    def prepared(self, *inputs: Float[Array, "n d"]) -> tiles.PairKernel:
        return replace(self, kernel=_prepared(self.kernel, *inputs))

    def encode(self, X: Float[jax.Array, "n d"]) -> Any:
        return self.kernel.encode(X)

    def pairwise(self, x: Any, y: Any, *, same: bool | jax.Array = False) -> Float[jax.Array, "n m"]:
        return _times(self.factor, self.kernel.pairwise(x, y, same=same))

    def diagonal(self, x: Any) -> Float[jax.Array, " n"]:
        return _times(self.factor, self.kernel.diagonal(x))


@final
@pytree
class ScaledInputs(Kernel):
    """The kernel is K(s x, s x'), s one number or one a feature; made by `scale_inputs`."""

    scales: float | jax.Array
    kernel: tiles.PairKernel

    @property
    def operands(self) -> tuple[tiles.PairKernel, ...]:
        return (self.kernel,)

    def prepared(self, *inputs: Float[Array, "n d"]) -> tiles.PairKernel:
        require_one_a_feature("scales", self.scales, inputs[0])
        if validation.traced(self.scales, *inputs):
            return self
        return replace(self, kernel=_prepared(self.kernel, *(self._scaled(X) for X in inputs)))

    def _scaled(self, X: Array) -> Array:
        if isinstance(X, jax.Array):
            return X * jnp.asarray(self.scales, X.dtype)
        return np.asarray(X * np.asarray(self.scales, X.dtype))

    def encode(self, X: Float[jax.Array, "n d"]) -> Any:
        return self.kernel.encode(jnp.asarray(self._scaled(X)))

    def pairwise(self, x: Any, y: Any, *, same: bool | jax.Array = False) -> Float[jax.Array, "n m"]:
        return self.kernel.pairwise(x, y, same=same)

    def diagonal(self, x: Any) -> Float[jax.Array, " n"]:
        return self.kernel.diagonal(x)


def scale_inputs(k: Kernel, scales: float | Float[Array, " d"]) -> ScaledInputs:
    """Return K(s x, s x'), coordinate by coordinate: input scales are hyper-parameters of any kernel.

    Args:
        k: a kernel.
        scales: one number or (d,), one a feature, finite; in the inverse of the features' units.

    Raises:
        TypeError, ValueError: not a kernel; scales that are not finite numbers of shape () or (d,).
    """
    return ScaledInputs(validation.vector_or_scalar("scales", scales), require_kernel(k))


def require_kernel(k: Any) -> Kernel:
    """Return a kernel of scalar values. Raises: TypeError: it is none."""
    if not isinstance(k, Kernel):
        raise TypeError(f"a kernel is needed, e.g. wl.nngp(net) or wl.ntk(net); got {type(k).__name__}.")
    return k


def require_one_a_feature(name: str, value: Any, X: Array) -> None:
    """Refuse a hyper-parameter that is neither one number nor one a feature of X. Raises: ValueError."""
    shape = np.shape(value)
    if shape not in ((), X.shape[1:]):
        raise ValueError(f"{name} has shape {shape} and the inputs have {X.shape[1]} features; they must agree.")


def _at(kernel: tiles.PairKernel, X: Any) -> tiles.PairKernel:
    return kernel.at(X) if isinstance(kernel, Kernel) else kernel


def _prepared(kernel: tiles.PairKernel, *inputs: Array) -> tiles.PairKernel:
    return kernel.prepared(*inputs) if isinstance(kernel, Kernel) else kernel


def _times(factor: float | jax.Array, block: jax.Array) -> jax.Array:
    return jnp.asarray(factor, block.dtype) * block
