"""The layers of a network between sums over sites, and their work on single inputs by NumPy."""

from __future__ import annotations

import math
from dataclasses import field
from typing import Any, final

import jax
import jax.numpy as jnp

from widelimit.architecture.chain import Serial
from widelimit.architecture.concatenate import Concatenate
from widelimit.architecture.native.program import Unknown, at_own_sites
from widelimit.architecture.network import Network
from widelimit.architecture.pooling import AveragePool, Flatten
from widelimit.architecture.state import Layer, PairState
from widelimit.interpreter import interpreted
from widelimit.pytrees import pytree
from widelimit.series import safe_divide
from widelimit.signals import (
    Variance,
    correlation_with_itself,
    largest_exponent,
    relative_deviation,
    sum_terms,
    variance_of,
)


@final
@pytree
class Stage:
    """The layers up to a sum over sites, and that sum."""

    layers: Serial
    end: Layer | None
    forgets: bool = field(metadata={"static": True})
    """The layer after the sum forgets the mean of its signals."""
    middle: bool = field(default=False, metadata={"static": True})  # other averages follow

    @property
    def pool(self) -> AveragePool | None:
        """Return the pool at the end."""
        return self.end if isinstance(self.end, AveragePool) else None

    @property
    def whole(self) -> bool:
        """Return True if the pool is the last, and over all sites at once."""
        return self.pool is not None and not self.middle and self.pool.whole


def embed(net: Network, X: jax.Array) -> Any:
    """Return unit vectors (channels, *S, n), and variances."""
    points, signal = net.inputs.embed(X)  # type: ignore[union-attr]
    return jnp.moveaxis(points, (0, -1), (-1, 0)), signal


def encode_layers(layers: Serial, signal: Variance, mean: Any) -> Any:
    """Return variance, mean and memos after layers."""
    after, moved, memos = layers.encode_with_mean(signal, None if mean is None else lambda: mean)
    return after, None if moved is None else moved(), memos


def _encode_centred(layers: Serial, signal: Variance, mean: Any) -> Any:
    """Do the work of `encode_layers` before a layer that forgets the mean, which takes a quadrature."""
    after, _, memos = layers.encode_with_mean(signal, None if mean is None else lambda: mean)
    return after, None, memos


def encode_stage(forgets: bool, whole: Serial, signal: Any, mean: Any, run: Any = interpreted) -> Any:
    """Return memos, variance and mean after layers; those alike are traced once."""
    layers = whole.layers
    parts = any(isinstance(layer, Concatenate) for layer in layers)
    memos = []
    groups = [whole] if parts else list(map(Serial, layers))
    for group, following in zip(groups, [*layers[1:], None], strict=False):
        centred = forgets if following is None or parts else following.random
        signal, mean, (ways, found) = run(_encode_centred if centred else encode_layers)(group, signal, mean)
        memos += found
        if ways:
            raise Unknown("parts of the width that have other laws")
    return ((), tuple(memos)), signal, mean


def encode_end(stage: Stage, before: Variance, mean: Any) -> Any:
    """Return the weights of sites and of windows, and variance and mean after a pool as if its sites were equal."""
    if stage.end is None:
        return jnp.ones_like(before.value), None, before, mean
    if stage.pool is None:
        after, moved, weights = stage.end.encode_with_mean(before, None if mean is None else lambda: mean)
        return weights, None, after, None if moved is None else moved()
    axes, windows = tuple(range(before.value.ndim - 1)), stage.pool.placed
    exponent = largest_exponent(before, axes)
    weights = relative_deviation(before, exponent)

    def over(array: jax.Array) -> jax.Array:
        return jnp.sum(array, axis=axes, keepdims=True) if stage.whole else sum_terms(list(windows.each(array, 0)))

    total = over(weights)
    inverse = safe_divide(jnp.ones_like(total), total)
    part = variance_of(total / windows.count)
    mean = None if mean is None else over(weights * mean) * inverse
    weights = weights * inverse if stage.whole else weights
    return weights, inverse, Variance(part.value, part.exponent + exponent), mean


def itself_stage(stage: Stage, memos: Any, weights: jax.Array, tangent: jax.Array) -> jax.Array:
    """Return Theta of every image with itself after layers that end without a pool."""
    state = at_own_sites(stage.layers).itself(memos, PairState(correlation_with_itself(tangent), tangent))
    squares = weights**2 * state.tangent
    return squares if stage.end is None else jnp.sum(squares, axis=tuple(range(weights.ndim - 1)), keepdims=True)


def pair_last(layers: Serial, x: Any, y: Any, state: PairState) -> PairState:
    """Apply the layers after the last sum over sites to all pairs."""
    x = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, -1)[..., None], x)
    y = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, -1)[..., None, :], y)
    return layers.pair(x, y, state)


def itself_last(layers: Serial, x: Any, state: PairState) -> PairState:
    """Apply these layers to every input with itself."""
    return layers.itself(jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, -1), x), state)


def split(net: Network) -> tuple[list[Stage], Serial]:
    """Return the stages, each up to a sum over sites, and the layers after them. Raises: Unknown."""
    stages, rest = list[Stage](), list[Layer]()
    layers = [layer for layer in net.of_pairs.layers if not _keeps_sites(layer)]
    last = max((k for k, layer in enumerate(layers) if isinstance(layer, AveragePool)), default=0)
    for k, (layer, following) in enumerate(zip(layers, [*layers[1:], None], strict=True)):
        if isinstance(layer, AveragePool) and layer.added:
            raise Unknown("a sum over sites")
        if isinstance(layer, Flatten | AveragePool):
            stages.append(Stage(Serial(*rest), layer, following is None or following.random, k < last))
            rest = []
        elif layer.mixes_sites:
            raise Unknown("an average within a branch, or another layer than pools that mixes sites")
        else:
            rest.append(layer)
    if stages and (isinstance(stages[-1].end, Flatten) or stages[-1].whole):
        return stages, at_own_sites(Serial(*rest))  # type: ignore[return-value]
    return [*stages, Stage(Serial(*rest), None, forgets=True)], Serial()


def _keeps_sites(layer: Layer) -> bool:
    """Return True for a sum over windows of one site."""
    if isinstance(layer, AveragePool):
        return layer.placed.count == max(layer.placed.stride) == 1
    return isinstance(layer, Flatten) and layer.sites is not None and math.prod(layer.sites.sizes) == 1
