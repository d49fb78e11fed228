"""The closed forms share power series that are evaluated without a library call.

XLA's arc sine on CPUs is several times slower than everything else in the recursion together; a polynomial on half
of the interval, with the other half by symmetry, keeps the whole tile in vector registers.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Chebyshev interpolants on [0, 1/2], as monomials.  Largest relative error, in 60-digit arithmetic:
# asin(sqrt v)/sqrt v: 8.0e-18 and 2.6e-9;  asin(sqrt v)/sqrt(v (1 - v)): 1.9e-17 and 2.1e-9;
# (sqrt(1 - v) - (1 - 2 v) asin(sqrt v)/sqrt v)/v: 5.7e-17 and 2.3e-9.
# tests/test_series.py measures it again.
# fmt: off
ARCSINE = {
    "float64": (
        1.0, 0.16666666666666963, 0.07499999999921603, 0.044642857225197834, 0.030381939881673394,
        0.022372313172485805, 0.017349310327158196, 0.01401917204006966, 0.01092934906491237, 0.015091795028583365,
        -0.026316324552338826, 0.1809574620911065, -0.6641236302549411, 2.0016041109291547, -4.535791802822955,
        7.768165374555008, -9.669659398550623, 8.32498352944691, -4.438816692066939, 1.1264192878807509,
    ),
    "float32": (
        1.0000000016226234, 0.16666614237824284, 0.07502757316352404, 0.04409161673371687, 0.03581423928401177,
        -0.0070205791522944755, 0.10740002130174647, -0.13591627123984387, 0.12391349490512975,
    ),
}
ARCSINE_OVER_COSINE = {
    "float64": (
        1.0, 0.6666666666666754, 0.5333333333305108, 0.4571428575024712, 0.4063491821122776, 0.3694093685329919,
        0.34096486696537, 0.31879286865197404, 0.29193764705556424, 0.36551520226892087, -0.4062718931902492,
        4.6261037044926, -21.933485468147964, 89.21746552144674, -281.56292332962647, 701.0698807842099,
        -1353.176192866826, 1989.753407673635, -2154.168555314825, 1623.9246558959178, -763.4968791882417,
        170.30986602306177,
    ),
    "float32": (
        1.000000001681734, 0.6666658543379828, 0.533397662459742, 0.4551735856196251, 0.43694622902461505,
        0.0956793576107174, 1.840830135568691, -4.823175356821101, 11.1452617417535, -12.795058240222346,
        7.465387696088991,
    ),
}
SEGMENT = {
    "float64": (
        1.3333333333333333, 0.1333333333333321, 0.042857142857437615, 0.019841269813370643, 0.011047981189002038,
        0.006883699088309966, 0.004628249983775121, 0.0032739797885222525, 0.0025525713092921713, 0.0009487496877595051,
        0.006645297569481248, -0.021294378799573944, 0.07506638937645634, -0.18430793152633498, 0.34535834418614125,
        -0.46440526405206894, 0.43153038047126235, -0.24704253920434663, 0.06781040916920562,
    ),
    "float32": (
        1.3333333314321205, 0.13333381851591963, 0.042837090904110586, 0.020152230749904763, 0.00872780597219359,
        0.01598742390390328, -0.013998794205535842, 0.020307609382204106,
    ),
}
# fmt: on

LEAST_ANGLE = 64
"""Derivatives take angles below this many eps as 0: each of a few layers rounds by some eps."""


def safe_sqrt(v: jax.Array) -> jax.Array:
    """Compute sqrt(max(v, 0)) with derivative 0, not infinite, at v <= 0: duplicates keep finite gradients."""
    positive = v > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, v, 1)), 0)


@jax.custom_jvp
def root_of_gap(gap: jax.Array) -> jax.Array:
    """Return sqrt(gap), gap 1 - abs(rho), with derivative 0 below `LEAST_ANGLE`: at a cusp the mean of both sides.

    Two programs round one input in two ways, so the gap of an input with itself may come out as eps^2 instead of 0, of
    which the root has a slope of order 1 in a random direction. No value changes.
    """
    return safe_sqrt(gap)


@root_of_gap.defjvp
def _root_of_gap_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    (gap,), (change,) = primals, tangents
    root = root_of_gap(gap)
    held = gap <= (LEAST_ANGLE * float(np.finfo(gap.dtype).eps)) ** 2
    return root, jnp.where(held, 0, change / (2 * jnp.where(held, 1, root)))


def safe_divide(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """Return numerator / denominator, and 0 (with derivative 0) where the denominator is 0."""
    nonzero = denominator != 0
    return jnp.where(nonzero, numerator / jnp.where(nonzero, denominator, 1), 0)


def hypot(a: jax.Array, b: jax.Array) -> jax.Array:
    """Compute sqrt(a^2 + b^2) without overflow or underflow, with derivative 0 at a = b = 0."""
    largest = jax.lax.stop_gradient(jnp.maximum(jnp.abs(a), jnp.abs(b)))
    scale = jnp.where(largest > 0, largest, 1)
    return scale * safe_sqrt((a / scale) ** 2 + (b / scale) ** 2)


def polynomial(coefficients: Sequence[Any], x: Any) -> jax.Array:
    """Evaluate sum_k c_k x^k by Horner's rule; numbers or arrays."""
    value = coefficients[-1] + jnp.zeros_like(x)
    for c in coefficients[-2::-1]:
        value = value * x + c
    return jnp.asarray(value)


def evaluate(table: dict[str, tuple[float, ...]], v: jax.Array) -> jax.Array:
    """Evaluate the polynomial of a table; v in [0, 1/2], float32 or float64."""
    return polynomial(table[v.dtype.name], v)


def chebyshev_halves(coefficients: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (a, b), along the first axis: sum_k c_k T_k(x) = sum_j a_j T_j(y) + x sum_j b_j T_j(y), y = 2 x^2 - 1.

    From T_2k(x) = T_k(y) and T_(2k+1)(x)/x = 2 T_k(y) - T_(2k-1)(x)/x. The number of coefficients is even.
    """
    even, odd = coefficients[0::2], 2 * coefficients[1::2]
    for k in range(len(odd) - 2, -1, -1):
        odd[k] -= odd[k + 1]
    odd[0] /= 2
    return even, odd


def chebyshev_chains(coefficients: np.ndarray) -> np.ndarray:
    """Return `chebyshev_halves` of halves of halves, (8, K/8), for `chains_sum`; K a multiple of 8."""
    parts = [coefficients]
    for _ in range(3):
        parts = [half for part in parts for half in chebyshev_halves(part)]
    return np.stack(parts)


def chains_sum(chains: jax.Array, x: jax.Array) -> jax.Array:
    """Compute sum_k c_k T_k(x) from `chebyshev_chains(c)`; x in [-1, 1].

    Each term of Clenshaw's recurrence needs the one before; eight independent short ones take a third of the time.
    """
    places = [x]
    for _ in range(3):
        places.append(2 * places[-1] ** 2 - 1)
    sums = [_clenshaw(chain, places[3]) for chain in chains]
    for place in places[2::-1]:
        sums = [even + place * odd for even, odd in zip(sums[0::2], sums[1::2], strict=True)]
    return sums[0]


def _clenshaw(coefficients: jax.Array, x: jax.Array) -> jax.Array:
    value, before = jnp.zeros_like(x), jnp.zeros_like(x)
    for k in range(len(coefficients) - 1, 0, -1):
        value, before = coefficients[k] + 2 * x * value - before, value
    return coefficients[0] + x * value - before


def polynomial_and_slope(coefficients: Sequence[jax.Array], x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Compute (P(x), P'(x)) from the coefficients of 1, x, x^2, .., by Horner's rule."""
    value, slope = coefficients[-1], jnp.zeros_like(x)
    for c in coefficients[-2::-1]:
        slope = slope * x + value
        value = value * x + c
    return value, slope


def looped_polynomial(coefficients: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Compute `polynomial_and_slope` as a loop over the first axis of the coefficients, (K, ..)."""

    def step(found: tuple[jax.Array, jax.Array], c: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
        value, slope = found
        return (value * x + c, slope * x + value), None

    start = jnp.zeros_like(coefficients[0])
    return jax.lax.scan(step, (start, start), coefficients, reverse=True)[0]


def divided_differences(
    table: dict[str, tuple[float, ...]], u: jax.Array, v: jax.Array, w: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return (P(w), (P(u) - P(w))/(u - w), (P(v) - P(w))/(v - w)) by synthetic division, without cancellation.

    Arrays of broadcastable shapes with entries in [0, 1/2].
    """
    coefficients = table[w.dtype.name]
    value = jnp.full_like(w, coefficients[-1])
    towards_u = jnp.zeros_like(w)
    towards_v = jnp.zeros_like(w)
    for c in coefficients[-2::-1]:
        towards_u = towards_u * u + value
        towards_v = towards_v * v + value
        value = value * w + c
    return value, towards_u, towards_v


def angle_from_gap(gap: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return (theta, sin(theta) - theta cos(theta)) for gap = 1 - cos(theta) in [0, 1], theta in [0, pi/2].

    Both to their own last digit; taken as a difference the second, about theta^3/3, would keep only that of theta.
    """
    v = gap / 2
    chord = root_of_gap(2 * gap)
    return chord * evaluate(ARCSINE, v), chord * v * evaluate(SEGMENT, v)
