"""Kernel matrices from tiles: encode blocks of rows once, then a pure function on pairs of blocks.

Few shapes are ever compiled: blocks have TILE rows, or for small inputs the next power of two, filled up with rows of
the data (never with zeros, whose duplicates would all have to be told apart).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from widelimit.compute import memory

TILE = 1024
Features = Any


class PairKernel(Protocol):
    """A pytree with the two phases of a kernel, as pure JAX functions."""

    def encode(self, X: jax.Array) -> Features:
        """What pairs need of single inputs, (n, d) -> pytree."""

    def pairwise(self, x: Features, y: Features, *, same: bool = False) -> jax.Array:
        """A block of the kernel, (n, m); with `same`, x is y."""

    def diagonal(self, x: Features) -> jax.Array:
        """The kernel of each input with itself, (n,)."""


@jax.jit
def _pairwise(kernel: PairKernel, x: Features, y: Features) -> jax.Array:
    return kernel.pairwise(x, y)


@jax.jit
def _diagonal(kernel: PairKernel, x: Features) -> jax.Array:
    return kernel.diagonal(x)


@jax.jit
def _symmetric(kernel: PairKernel, x: Features, diagonal: jax.Array) -> jax.Array:
    """A block of the diagonal: one triangle, mirrored, around the diagonal given.

    `diagonal` is compiled apart: inside this function the compiler could round it in another way than `diag` does.
    """
    block = jnp.tril(kernel.pairwise(x, x, same=True), -1)
    return block + block.T + jnp.diag(diagonal)


def _require(X: np.ndarray | jax.Array, n: int, m: int) -> None:
    memory.require(np.dtype(X.dtype).itemsize * n * m, f"a {n} x {m} {X.dtype} kernel matrix")


def _blocks(X: np.ndarray) -> list[np.ndarray]:
    """X in blocks of one shape, the last filled up with leading rows."""
    n = len(X)
    rows = TILE if n > TILE else max(8, 1 << (n - 1).bit_length())
    filled = np.resize(X, (-(-n // rows) * rows, X.shape[1]))
    return [filled[i : i + rows] for i in range(0, n, rows)]


def _encoded(kernel: PairKernel, X: np.ndarray) -> list[Features]:
    return [kernel.encode(jnp.asarray(block)) for block in _blocks(X)]


def gram(kernel: PairKernel, X: np.ndarray) -> np.ndarray:
    """K(X, X): one triangle of tiles computed, the other its mirror; the diagonal is `diagonal`'s, to the bit."""
    n = len(X)
    _require(X, n, n)
    with jax.enable_x64(X.dtype == np.float64):
        features = _encoded(kernel, X)
        out = np.empty((n, n), X.dtype)
        for i, x in enumerate(features):
            rows = slice(i * TILE, (i + 1) * TILE)
            for j, y in enumerate(features[: i + 1]):
                columns = slice(j * TILE, (j + 1) * TILE)
                target = out[rows, columns]
                block = np.asarray(_symmetric(kernel, x, _diagonal(kernel, x)) if i == j else _pairwise(kernel, x, y))
                target[:] = block[: target.shape[0], : target.shape[1]]
                if i != j:
                    out[columns, rows] = target.T
    return out


def cross(kernel: PairKernel, X: np.ndarray, Y: np.ndarray) -> np.ndarray:
    """K(X, Y)."""
    n, m = len(X), len(Y)
    _require(X, n, m)
    with jax.enable_x64(X.dtype == np.float64):
        columns_of = _encoded(kernel, Y)
        out = np.empty((n, m), X.dtype)
        for i, x in enumerate(_encoded(kernel, X)):
            for j, y in enumerate(columns_of):
                target = out[i * TILE : (i + 1) * TILE, j * TILE : (j + 1) * TILE]
                target[:] = np.asarray(_pairwise(kernel, x, y))[: target.shape[0], : target.shape[1]]
    return out


def diagonal(kernel: PairKernel, X: np.ndarray) -> np.ndarray:
    """K(x, x) for every row."""
    with jax.enable_x64(X.dtype == np.float64):
        parts = [np.asarray(_diagonal(kernel, x)) for x in _encoded(kernel, X)]
    return np.concatenate(parts)[: len(X)]


def _traceable(call: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
    """Run on JAX arrays in their own dtype; float64 arrays keep theirs outside of an x64 context too."""
    if any(a.dtype == jnp.float64 for a in arrays):
        with jax.enable_x64(True):
            return call()
    return call()


def gram_jax(kernel: PairKernel, X: jax.Array) -> jax.Array:
    """`gram` as one traceable computation on a JAX array."""
    _require(X, len(X), len(X))

    def compute() -> jax.Array:
        features = kernel.encode(X)
        return jnp.asarray(_symmetric(kernel, features, _diagonal(kernel, features)))

    return _traceable(compute, X)


def cross_jax(kernel: PairKernel, X: jax.Array, Y: jax.Array) -> jax.Array:
    """`cross` as one traceable computation on JAX arrays."""
    _require(X, len(X), len(Y))
    return _traceable(lambda: _pairwise(kernel, kernel.encode(X), kernel.encode(Y)), X, Y)


def diagonal_jax(kernel: PairKernel, X: jax.Array) -> jax.Array:
    """`diagonal` as one traceable computation on a JAX array."""
    return _traceable(lambda: _diagonal(kernel, kernel.encode(X)), X)
