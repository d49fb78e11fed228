"""Pair maps are computed some rows of a matrix at a time, so that XLA computes nothing twice."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from widelimit.signals import ROW_BY_ROW, Correlation

ROWS = 8
"""Rows of a series at once: with 128 columns their intermediate arrays stay in a core's cache; one row is too short."""
LARGE = 2**22
"""Pairs of a tile of a device, which is taken in STEPS steps, each of them work for all of it."""
STEPS = 16

PairMap = Callable[[Any, Any, Correlation], tuple[jax.Array, jax.Array]]
"""correlate(x, y, correlation) returns two arrays: a gap, and the slope."""


def by_rows(correlate: PairMap, x: Any, y: Any, correlation: Correlation) -> tuple[jax.Array, jax.Array]:
    """Compute correlate(x, y, correlation), elementwise in its arguments.

    Some rows at a time where correlations are a matrix and x has leaves (.., n, 1), y (.., 1, m): fused with the layers
    around, XLA evaluates a long series again for every use, 100 times slower. It evaluates each of several results
    separately, so the two are the halves of one complex number.
    """
    if correlation.one_minus.ndim != 2 or any(leaf.shape[-1] != 1 for leaf in jax.tree.leaves(x)):
        return correlate(x, y, correlation)
    count = len(correlation.one_minus)
    step = math.gcd(count, ROWS if correlation.one_minus.size < LARGE else count // STEPS)

    def groups(leaf: jax.Array) -> jax.Array:
        whole = jnp.broadcast_to(leaf, (*leaf.shape[:-2], count, leaf.shape[-1]))
        return jnp.moveaxis(whole.reshape(*leaf.shape[:-2], count // step, step, leaf.shape[-1]), -3, 0)

    after = jax.lax.map(
        lambda group: jax.lax.complex(*correlate(group[0], y, group[1])), jax.tree.map(groups, (x, correlation))
    )
    both = after.reshape(count, -1)
    return both.real, both.imag


def of_patch_by_rows(correlate: PairMap, x: Any, y: Any, correlation: Correlation) -> tuple[jax.Array, jax.Array]:
    """Compute correlate(x, y, correlation) of a closed form: `by_rows` in a patch of the processor, else at once.

    So XLA's older emitters, which compile in half of the time, make a program as fast as the usual one. Derivatives
    are those of all pairs at once. `correlate` has no arguments but these.
    """
    if correlation.one_minus.size > ROW_BY_ROW:
        return correlate(x, y, correlation)
    values = jax.custom_jvp(lambda *given: by_rows(correlate, *given))
    values.defjvp(lambda at, along: jax.jvp(correlate, at, along))
    found: tuple[jax.Array, jax.Array] = values(x, y, correlation)
    return found
