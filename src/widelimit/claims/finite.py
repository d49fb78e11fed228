"""What claims about finite networks share: many random networks at once, as one compiled call a width."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from widelimit.architecture.network import Network

CHUNK = 2**22
"""Largest width x width x networks held at once: 32 MiB of float64."""


@functools.partial(jax.jit, static_argnames=("net", "sizes", "batch"))
def _covariances(net: Network, keys: jax.Array, X: jax.Array, *, sizes: tuple[int, ...], batch: int) -> jax.Array:
    layers = (net.first, *(net.block * net.repeats))

    def one(key: jax.Array) -> jax.Array:
        signals = X
        for layer, params in zip(layers[:-1], net.init_with_key(key, sizes, X.dtype)[:-1], strict=True):
            signals = layer.apply(params, signals)
        last = net.first
        return last.weight_std**2 / signals.shape[1] * signals @ signals.T + last.bias_std**2

    return jnp.asarray(jax.lax.map(one, keys, batch_size=batch))


@functools.partial(jax.jit, static_argnames=("net", "sizes", "batch"))
def _outputs(net: Network, keys: jax.Array, X: jax.Array, *, sizes: tuple[int, ...], batch: int) -> jax.Array:
    def one(key: jax.Array) -> jax.Array:
        return net.apply(net.init_with_key(key, sizes, X.dtype), X)

    return jnp.asarray(jax.lax.map(one, keys, batch_size=batch))


def _batch(widths: tuple[int, ...], count: int) -> int:
    return max(1, min(count, CHUNK // (max(widths) ** 2)))


def _keys(seed: int, count: int) -> jax.Array:
    return jax.random.split(jax.random.key(seed), count)


def output_covariances(net: Network, X: np.ndarray, *, widths: tuple[int, ...], count: int, seed: int) -> np.ndarray:
    """K_n = w^2 a a^T/n + b^2 at the points, (count, n, n): the covariance of the outputs given the hidden layers.

    Given these, the outputs of a finite network are exactly Gaussian, so that expectations over the output layer are
    taken without drawing it.
    """
    with jax.enable_x64(True):
        sizes = (X.shape[1], *widths, 1)
        found = _covariances(net, _keys(seed, count), jnp.asarray(X), sizes=sizes, batch=_batch(widths, count))
        return np.asarray(found)


def outputs(
    net: Network, X: np.ndarray, *, widths: tuple[int, ...], output_dim: int, count: int, seed: int
) -> np.ndarray:
    """f(X) of `count` random networks, (count, n, output_dim)."""
    with jax.enable_x64(True):
        sizes = (X.shape[1], *widths, output_dim)
        found = _outputs(net, _keys(seed, count), jnp.asarray(X), sizes=sizes, batch=_batch(widths, count))
        return np.asarray(found)


@functools.partial(jax.jit, static_argnames=("net", "sizes", "batch"))
def _tangents(net: Network, keys: jax.Array, X: jax.Array, *, sizes: tuple[int, ...], batch: int) -> jax.Array:
    def one(key: jax.Array) -> jax.Array:
        jacobian = jax.jacrev(lambda params: net.apply(params, X))(net.init_with_key(key, sizes, X.dtype))
        rows = jnp.concatenate([leaf.reshape(len(X), sizes[-1], -1) for leaf in jax.tree.leaves(jacobian)], axis=2)
        return jnp.einsum("iap,jbp->ijab", rows, rows)

    return jnp.asarray(jax.lax.map(one, keys, batch_size=batch))


def tangent_kernels(
    net: Network, X: np.ndarray, *, widths: tuple[int, ...], output_dim: int, count: int, seed: int
) -> np.ndarray:
    """Empirical tangent kernels sum_p df_a/dp df_b/dp of `count` random networks, (count, n, n, c, c).

    By plain Jacobians, for a few points: independent of `empirical_ntk`.
    """
    with jax.enable_x64(True):
        sizes = (X.shape[1], *widths, output_dim)
        batch = max(1, _batch(widths, count) // (len(X) * output_dim))
        return np.asarray(_tangents(net, _keys(seed, count), jnp.asarray(X), sizes=sizes, batch=batch))
