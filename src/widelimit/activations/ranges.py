"""Activations that are not homogeneous need signals of any size, and sums of independent parts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from widelimit import validation
from widelimit.series import safe_divide, safe_sqrt
from widelimit.signals import Correlation, Variance, correlation_from_gap, power_of_two

EXPONENT_LIMIT = 2**24
"""4^(2^24) is beyond every float, and ten times this limit, a tenth power's exponent, is far inside int32."""

ROWS = 8
"""Rows of a series at once: with 128 columns their intermediate arrays stay in a core's cache; one row is too short."""

LARGEST_FACTOR = 1e6
"""The parameters are limited in size, and the reciprocal of the smallest: their squares are far inside float32."""


def check_factor(name: str, value: float | jax.Array, *, positive: bool = False) -> None:
    """Refuse a factor beyond 1e6 or below 1e-6 in size (or negative)."""
    validation.finite_scalar(name, value, at_least=0.0 if positive else -LARGEST_FACTOR, at_most=LARGEST_FACTOR)
    if not validation.traced(value) and abs(float(value)) < 1 / LARGEST_FACTOR:
        raise ValueError(f"{name} must be at least {1 / LARGEST_FACTOR:g} in size, got {value:g}.")


def limit(signal: Variance) -> Variance:
    """Limit the exponent so that no further layer carries it out of int32: beyond the limit the signal is 0 or inf."""
    return Variance(signal.value, jnp.clip(signal.exponent, -EXPONENT_LIMIT, EXPONENT_LIMIT))


def bounded_deviation(signal: Variance, low: int, high: int) -> jax.Array:
    """Bring the deviation's power of two into [2^low, 2^high]; the digits before it stay.

    So two signals beyond the range remain different unless they differ by a power of two, and nothing is infinite.
    """
    return Variance(signal.value, jnp.clip(signal.exponent, low, high)).deviation


def half_range(dtype: Any) -> int:
    """Return the largest exponent e with (4 * 2^e)^2 finite."""
    return int(np.finfo(dtype).maxexp // 2 - 3)


def widen(signal: Variance, factor: float | jax.Array) -> Variance:
    """Return the variance of factor * u."""
    factor = jnp.asarray(factor, signal.value.dtype)
    return limit(Variance(signal.value * factor**2, signal.exponent).normalised())


def inside(gap: jax.Array) -> jax.Array:
    """Return the gap without a rounding error beyond [0, 2]; the difference is a constant to the derivative."""
    return gap - jax.lax.stop_gradient(gap - jnp.clip(gap, 0, 2))


def correlation_by_difference(one_minus: jax.Array, identical: jax.Array) -> Correlation:
    """Compute the correlation from a 1 - rho that is right to rounding only, and is exactly 0 for identical signals."""
    one_minus = inside(one_minus - jax.lax.stop_gradient(jnp.where(identical, one_minus, 0)))
    return Correlation(one_minus, 2 - one_minus)


def merge(first: Variance, second: Variance) -> tuple[Variance, jax.Array, jax.Array]:
    """Return (variance of the sum of two uncorrelated parts, shares of the first and the second in its deviation).

    share^2 + rest^2 = 1: the smaller square from its own quotient, the other as what is left of 1. If both parts are
    0, all is the first's.
    """
    powers = [jnp.where(part.value > 0, part.exponent, -2 * EXPONENT_LIMIT) for part in (first, second)]
    exponent = jnp.maximum(*powers)
    a, b = (
        part.value * power_of_two(2 * (power - exponent), part.value.dtype)
        for part, power in zip((first, second), powers, strict=True)
    )
    total = a + b
    smaller = safe_divide(jnp.where(a < b, a, b), total)
    share, rest = jnp.where(a < b, smaller, 1 - smaller), jnp.where(a < b, 1 - smaller, smaller)
    return Variance(total, exponent).normalised(), safe_sqrt(share), safe_sqrt(rest)


def mix(x: tuple[jax.Array, ...], y: tuple[jax.Array, ...], parts: tuple[Correlation, ...]) -> Correlation:
    """Compute the correlation of a sum of uncorrelated parts from shares (sum of squares 1) and their own.

    1 - rho = sum_k ((a_k - a'_k)^2/2 + a_k a'_k (1 - rho_k)): nothing cancels.
    """
    separation = jnp.asarray(sum((a - b) ** 2 for a, b in zip(x, y, strict=True))) / 2
    common = [a * b for a, b in zip(x, y, strict=True)]
    return Correlation(
        separation + sum(weight * part.one_minus for weight, part in zip(common, parts, strict=True)),
        separation + sum(weight * part.one_plus for weight, part in zip(common, parts, strict=True)),
    )


def positive_correlation(gap: jax.Array) -> Correlation:
    """Return a correlation >= 0 from 1 - rho."""
    return Correlation(gap, 2 - gap)


def with_sign(value: jax.Array, correlation: Correlation) -> jax.Array:
    """Multiply by the sign of rho: the slope of what is even in rho."""
    return jnp.where(correlation.positive, value, -value)


def by_rows(
    correlate: Callable[[Any, Any, Correlation], tuple[jax.Array, jax.Array]], x: Any, y: Any, correlation: Correlation
) -> tuple[Correlation, jax.Array]:
    """Compute correlation and slope from correlate(x, y, correlation), the gap to the nearer end and the slope.

    Some rows at a time where correlations are a matrix and x has leaves (.., n, 1), y (.., 1, m): fused with the layers
    around, XLA evaluates a long series again for every use, 100 times slower. It evaluates each of several results
    separately, so the two are the halves of one complex number.
    """
    if correlation.one_minus.ndim != 2 or any(leaf.shape[-1] != 1 for leaf in jax.tree.leaves(x)):
        gap, slope = correlate(x, y, correlation)
        return correlation_from_gap(gap, correlation.positive), slope
    count = len(correlation.one_minus)
    step = math.gcd(count, ROWS)

    def groups(leaf: jax.Array) -> jax.Array:
        whole = jnp.broadcast_to(leaf, (*leaf.shape[:-2], count, leaf.shape[-1]))
        return jnp.moveaxis(whole.reshape(*leaf.shape[:-2], count // step, step, leaf.shape[-1]), -3, 0)

    after = jax.lax.map(
        lambda group: jax.lax.complex(*correlate(group[0], y, group[1])), jax.tree.map(groups, (x, correlation))
    )
    both = after.reshape(count, -1)
    return correlation_from_gap(both.real, correlation.positive), both.imag
