"""Claims about finite networks share this code: NumPy draws random networks, and the library evaluates many at once."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import widelimit as wl
from widelimit.architecture.layers import Dense
from widelimit.architecture.network import Network
from widelimit.arithmetic import arithmetic
from widelimit.training.loop import Training

CHUNK = 2**22
"""Numbers in the networks that are evaluated at once, at most: 32 MiB of float64."""


def parameters(
    net: Network, sizes: tuple[int, ...], *, count: int, rng: np.random.Generator, dtype: Any = np.float64
) -> tuple[Any, ...]:
    """Draw parameters of `count` networks, stacked, every entry from N(0, 1) as section 2.2 of the paper says.

    Drawn here and not by `init_many`: another generator, and nothing to compile for every size.
    """
    shapes = jax.eval_shape(lambda: net.init_with_key(jax.random.key(0), sizes, np.float32))

    def dense(own: dict[str, Any]) -> dict[str, np.ndarray]:
        return {name: rng.standard_normal((count, *own[name].shape), dtype) for name in ("weight", "bias")}

    drawn: tuple[Any, ...] = jax.tree.map(dense, shapes, is_leaf=lambda own: isinstance(own, dict))
    return drawn


def one_network(net: Network, sizes: tuple[int, ...], *, rng: np.random.Generator, dtype: Any = np.float64) -> Any:
    """Return the parameters of one network, as `init` would shape them."""
    return jax.tree.map(lambda leaf: leaf[0], parameters(net, sizes, count=1, rng=rng, dtype=dtype))


def train_many(
    net: Network,
    params: Any,
    X: np.ndarray,
    y: np.ndarray,
    *,
    learning_rate: float,
    steps: int,
    record_every: int,
    probes: np.ndarray | None = None,
    kernel_points: int = 0,
    stacked: bool = True,
) -> Training:
    """Train stacked networks, or a single one, by gradient descent on all examples."""
    recorded = functools.partial(
        wl.train, record_every=record_every, probes=probes, kernel_points=kernel_points, progress=False
    )
    return recorded(net.apply, params, X, y, ensemble=stacked, learning_rate=learning_rate, steps=steps)


def _each(
    function: Callable[[Network, Any, Any], jax.Array],
    net: Network,
    X: np.ndarray,
    sizes: tuple[int, ...],
    *,
    count: int,
    seed: int,
    size: int,
) -> np.ndarray:
    """Evaluate `function` for `count` random networks, in batches of one shape; size: numbers in memory per network."""
    batches = -(-count * size // CHUNK)
    rng, batch = np.random.default_rng(seed), -(-count // batches)
    with arithmetic(True):
        drawn = (parameters(net, sizes, count=batch, rng=rng) for _ in range(batches))
        found = [np.asarray(function(net, params, jnp.asarray(X))) for params in drawn]
    return np.concatenate(found)[:count]


def _held(widths: tuple[int, ...]) -> int:
    """Estimate the numbers in a network; with one hidden layer its signals at a few points are as many."""
    return max(a * b for a, b in itertools.pairwise(widths)) if len(widths) > 1 else 8 * widths[0]


@jax.jit
def _covariances(net: Network, params: Any, X: jax.Array) -> jax.Array:
    layers = net.units

    def one(params: Any) -> jax.Array:
        signals = X
        for layer, layer_params in zip(layers[:-1], params[:-1], strict=True):
            signals = layer.apply(layer_params, signals)
        last = layers[-1]
        assert isinstance(last, Dense)
        return last.weight_std**2 / signals.shape[1] * signals @ signals.T + last.bias_std**2

    return jax.vmap(one)(params)


def output_covariances(net: Network, X: np.ndarray, *, widths: tuple[int, ...], count: int, seed: int) -> np.ndarray:
    """K_n = w^2 a a^T/n + b^2 at the points, (count, n, n): the covariance of the outputs given the hidden layers.

    Given these, the outputs of a finite network are exactly Gaussian, so that expectations over the output layer are
    taken without drawing it.
    """
    sizes = (X.shape[1], *widths, 1)
    return _each(_covariances, net, X, sizes, count=count, seed=seed, size=_held(widths))


def outputs(
    net: Network, X: np.ndarray, *, widths: tuple[int, ...], output_dim: int, count: int, seed: int
) -> np.ndarray:
    """Compute f(X) of `count` random networks, (count, n, output_dim)."""
    sizes = (X.shape[1], *widths, output_dim)
    return _each(Network.apply_many, net, X, sizes, count=count, seed=seed, size=_held(widths))


@jax.jit
def _tangents(net: Network, params: Any, X: jax.Array) -> jax.Array:
    def one(params: Any) -> jax.Array:
        jacobian = jax.jacrev(lambda p: net.apply(p, X))(params)
        points, outputs = X.shape[0], params[-1]["bias"].shape[0]
        rows = jnp.concatenate([leaf.reshape(points, outputs, -1) for leaf in jax.tree.leaves(jacobian)], axis=2)
        return jnp.einsum("iap,jbp->ijab", rows, rows)

    return jax.vmap(one)(params)


def tangent_kernels(
    net: Network, X: np.ndarray, *, widths: tuple[int, ...], output_dim: int, count: int, seed: int
) -> np.ndarray:
    """Compute empirical tangent kernels sum_p df_a/dp df_b/dp of `count` random networks, (count, n, n, c, c).

    Uses plain Jacobians, for a few points, and is independent of `empirical_ntk`.
    """
    sizes = (X.shape[1], *widths, output_dim)
    return _each(_tangents, net, X, sizes, count=count, seed=seed, size=_held(widths) * len(X) * output_dim)
