"""The duals of kinked activations are integrals over the angle of a bivariate normal density at pairs of kinks.

For a pair of correlation cos(y) the density at (h, k), times sin(y), is

    e(y) = exp(-kappa^2/(1 - cos y) - beta^2/(1 + cos y))/(2 pi),    kappa = (h - k)/2, beta = (h + k)/2.

With 1 - cos(y) = gap zeta^2 an integral from 0 to the angle of the pair is one over zeta in [0, 1] of
exp(-r^2/(2 zeta^2)), r = kappa sqrt(2/gap), times a smooth even function. Where the kinks of two inputs nearly
coincide the first varies fast (and no rule with fixed weights resolves all r), but it is known: a rule whose weights
are functions of r is exact for it times even polynomials. As functions of (r - c)/(r + c), times exp(r^2/2), the
weights are smooth.
"""

import functools
import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from widelimit import series
from widelimit.activations.tabulated.chebyshev import chebyshev_coefficients, chebyshev_points

NODES = {"float64": 16, "float32": 8}
TERMS = {"float64": 26, "float32": 12}
"""The weights have this many Chebyshev terms: with NODES, errors below 1e-13 and 1e-7 (tests/test_piecewise.py)."""
_MIDDLE = 3.0
SMALLEST = {"float64": 1e-30, "float32": 1e-12}
"""Gap below which the angle is less than the rounding of a signal."""


class QuadratureRule(NamedTuple):
    """The rule has nodes zeta (q,), and the Chebyshev coefficients (q, terms) of their weights times exp(r^2/2)."""

    nodes: np.ndarray
    weights: np.ndarray


@functools.cache
def rule(dtype: str) -> QuadratureRule:
    """Make the rule: even polynomials through the positive nodes of a Gauss-Legendre rule of twice the length."""
    count = NODES[dtype]
    nodes = np.polynomial.legendre.leggauss(2 * count)[0][count:]
    ends = np.concatenate([[0.0], 2.0 ** np.arange(-12, 0), 1 - 2.0 ** np.arange(-2, -34, -1), [1.0]])
    x, w = np.polynomial.legendre.leggauss(20)
    half = np.diff(ends)[:, None] / 2
    zeta, weight = np.ravel(ends[:-1, None] + half * (1 + x)), np.ravel(half * w)
    lagrange = np.ones((count, len(zeta)))
    for i, j in itertools.permutations(range(count), 2):
        lagrange[i] *= (zeta**2 - nodes[j] ** 2) / (nodes[i] ** 2 - nodes[j] ** 2)
    t = chebyshev_points(2 * TERMS[dtype])
    r = _MIDDLE * (1 + t) / (1 - t)
    decay = np.exp(-(r[:, None] ** 2) / 2 * ((1 - zeta) * (1 + zeta) / zeta**2))
    values = lagrange @ (weight * decay).T
    return QuadratureRule(nodes, chebyshev_coefficients(values, 1)[:, : TERMS[dtype]])


class AngleIntegrals(NamedTuple):
    """The integrals are of e(y) dy from 0 to the angle, with v = 1 - zeta^2 falling from 1 to 0 and w = tan(y/2)."""

    whole: jax.Array
    """The integrals of 1, v and v^2 are stacked."""
    tangential: jax.Array | None
    """The integrals of w^2 and w^2 (v + 1)/2, if requested."""


def angle_integrals(kappa: jax.Array, beta: jax.Array, gap: jax.Array, *, tangential: bool = True) -> AngleIntegrals:
    """Compute the integrals for arrays kappa >= 0 and beta of one shape, and gap = 1 - cos(angle) in [0, 1]."""
    whole, rest = _integrals(kappa, beta, gap)
    return AngleIntegrals(whole, rest if tangential else None)


@jax.custom_jvp
def _integrals(kappa: jax.Array, beta: jax.Array, gap: jax.Array) -> tuple[jax.Array, jax.Array]:
    # All nodes at once, as the exponentials are vectorised then; their sums written out, as XLA would evaluate the
    # factors of a product of matrices again for every row.
    nodes, table = rule(gap.dtype.name)
    polynomials = _polynomials(kappa, gap)
    weights = [_combine(row, polynomials) for row in table.tolist()]
    square = jnp.asarray(nodes**2, gap.dtype).reshape(-1, *[1] * kappa.ndim)
    mass, moved = _masses(jnp.stack(weights), square, kappa, beta, gap)
    v = 1 - nodes**2
    factor = series.safe_sqrt(gap) / math.pi
    return factor * _sums([v**0, v, v**2], mass), factor * _sums([v**0, (1 + v) / 2], moved)


@_integrals.defjvp
def _integrals_jvp(primals: Any, tangents: Any) -> Any:
    return jax.jvp(_by_nodes, primals, tangents)


def _by_nodes(kappa: jax.Array, beta: jax.Array, gap: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Compute the same in a loop over nodes, for derivatives: what is written out would take a minute to compile."""
    nodes, table = rule(gap.dtype.name)
    polynomials, v = jnp.stack(_polynomials(kappa, gap)), 1 - nodes**2

    def add(total: tuple[jax.Array, jax.Array], node: tuple[jax.Array, ...]) -> tuple[Any, None]:
        row, square, powers, means = node
        mass, moved = _masses(jnp.tensordot(row, polynomials, 1, precision="highest"), square, kappa, beta, gap)
        return (total[0] + jnp.multiply.outer(powers, mass), total[1] + jnp.multiply.outer(means, moved)), None

    along = table, nodes**2, np.stack([v**0, v, v**2], 1), np.stack([v**0, (1 + v) / 2], 1)
    zeros = (jnp.zeros((count, *jnp.shape(kappa + gap)), gap.dtype) for count in (3, 2))
    sums, _ = jax.lax.scan(jax.checkpoint(add), tuple(zeros), [jnp.asarray(part, gap.dtype) for part in along])
    factor = series.safe_sqrt(gap) / math.pi
    return factor * sums[0], factor * sums[1]


def _polynomials(kappa: jax.Array, gap: jax.Array) -> list[jax.Array]:
    """Evaluate the T_k of the weights."""
    root, spread = jnp.sqrt(_floored(gap)), math.sqrt(2) * kappa
    t = (spread - _MIDDLE * root) / (spread + _MIDDLE * root)
    polynomials = [jnp.ones_like(t), t]
    while len(polynomials) < TERMS[gap.dtype.name]:
        polynomials.append(2 * t * polynomials[-1] - polynomials[-2])
    return polynomials


def _floored(gap: jax.Array) -> jax.Array:
    floor = SMALLEST[gap.dtype.name]
    return jnp.where(gap > floor, gap, floor)


def _masses(
    weights: jax.Array, square: jax.Array, kappa: jax.Array, beta: jax.Array, gap: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return the integrand at nodes of these squares, times its weights: alone, and times w^2."""
    rest = 1 / (2 - square * gap)
    mass = weights * jnp.exp(-(kappa**2) / _floored(gap) - beta**2 * rest) * jnp.sqrt(rest)
    return mass, mass * (square * gap * rest)


def _sums(weights: list[np.ndarray], values: jax.Array) -> jax.Array:
    """Sum values (q, ..) with each of the weights (q,), stacked."""
    return jnp.stack([_combine(row.tolist(), list(values)) for row in weights])


def _combine(weights: list[float], terms: list[jax.Array]) -> jax.Array:
    return functools.reduce(jnp.add, [weight * term for weight, term in zip(weights, terms, strict=True)])
