"""The recursion over pairs of images: few pairs at a time, whose sites are in a core's cache."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from widelimit.architecture.inputs import Inputs, correlate_sites
from widelimit.architecture.sites import first_of_pair, second_of_pair
from widelimit.architecture.state import Layer, PairState
from widelimit.signals import correlation_with_itself

_AT_ONCE = 2**13
"""Pairs of sites whose states are computed at once: an array of them is in a core's cache."""


def _before(first: jax.Array, second: jax.Array) -> PairState:
    """Return the state before the first layer: signals are the pixels, and no weights have been trained."""
    correlation = correlate_sites(first, second)
    return PairState(correlation, jnp.zeros_like(correlation.one_minus))


def among_sites_of(points: jax.Array) -> PairState:
    """Return the state of all pairs of sites of each input, (*S, *S, n), from unit vectors (n, *S, channels)."""
    axes = points.ndim - 2
    units = jnp.moveaxis(points, (0, -1), (-1, 0))
    return _before(first_of_pair(units, axes, 1), second_of_pair(units, axes, 1))


def itself_at_sites(body: Layer, inputs: Inputs, memos: Any, variances: jax.Array) -> PairState:
    """Compute the state of the output for every input with itself, (n,), where each site meets its own."""
    like = jnp.zeros((*inputs.sites, *variances.shape), variances.dtype)
    state = body.itself(memos, PairState(correlation_with_itself(like), like))
    return jax.tree.map(lambda leaf: leaf.reshape(-1), state)  # type: ignore[no-any-return]


def pairs_of_images(body: Layer, inputs: Inputs, across: bool, x: Any, y: Any) -> PairState:
    """Compute the state of the output for every pair of (unit vectors, memos) of two blocks of inputs, (n, m)."""
    m, sites = len(y[0]), math.prod(inputs.sites)
    most = max(1, _AT_ONCE // (sites**2 if across else sites))
    columns = max(k for k in range(1, m + 1) if m % k == 0 and k <= most)
    blocks = jax.tree.map(lambda leaf: jnp.moveaxis(leaf.reshape(-1, columns, *leaf.shape[1:]), 1, -1), y)

    def row(one: Any) -> PairState:
        part: PairState = jax.lax.map(lambda block: _row_of_pairs(body, across, one, block), blocks)
        return jax.tree.map(lambda leaf: leaf.reshape(m), part)  # type: ignore[no-any-return]

    return jax.lax.map(row, x)  # type: ignore[no-any-return]


def _row_of_pairs(body: Layer, across: bool, x: Any, y: Any) -> PairState:
    """Return the state of one input x beside some y, whose arrays have the inputs last."""
    (u, rows), (v, columns) = x, y
    axes, m = u.ndim - 1, v.shape[-1]
    first, second = jnp.moveaxis(u, -1, 0)[..., None, None], jnp.moveaxis(v, -2, 0)[..., None, :]
    rows = jax.tree.map(lambda leaf: leaf[..., None, :], rows)
    if across:
        first, second = first_of_pair(first, axes, 2), second_of_pair(second, axes, 2)
        rows = jax.tree.map(lambda leaf: first_of_pair(leaf, axes, 2), rows)
        columns = jax.tree.map(lambda leaf: second_of_pair(leaf, axes, 2), columns)
    state = body.pair(rows, columns, _before(first, second))
    return jax.tree.map(lambda leaf: leaf.reshape(m), state)  # type: ignore[no-any-return]
