"""The even and the odd part of a polynomial between kinks have integrals over z > 0 in closed form (`piecewise`)."""

import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from widelimit.activations.piecewise.bivariate_normal import SMALLEST, AngleIntegrals, angle_integrals

_SHORT = 1.0
"""Intervals between the kinks of two inputs up to this length have a rule of their own: differences of tails cancel."""
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(8)


class ParityPart(NamedTuple):
    """One part of phi at z > 0 is a polynomial p (3, ..) with jumps of slope j and of curvature g (K, ..) at kinks."""

    p: jax.Array
    j: jax.Array
    g: jax.Array


class Kinks(NamedTuple):
    """Kinks at h have the tail and the density of the normal law there, each (K, ..) or one of them."""

    h: jax.Array
    tail: jax.Array
    density: jax.Array


class PiecesMemo(NamedTuple):
    """The memo holds the data of n inputs that pairs need."""

    kinks: Kinks
    parts: tuple[ParityPart, ParityPart]
    """Even and odd."""
    even_share: jax.Array
    """E[F^2]/2 of the even part."""


def kinks_at(h: jax.Array) -> Kinks:
    """Make kinks at these places."""
    return Kinks(h, jax.scipy.special.erfc(h / math.sqrt(2)) / 2, jnp.exp(-(h**2) / 2) / math.sqrt(2 * math.pi))


def _tails(at: Kinks) -> list[jax.Array]:
    """Integrate z^j times the density from h to infinity, j = 0..4."""
    h, tail, density = at
    return [tail, density, h * density + tail, (h**2 + 2) * density, (h**3 + 3 * h) * density + 3 * tail]


def _square(a: list[jax.Array], b: list[jax.Array], moments: list[jax.Array]) -> jax.Array:
    """Integrate the product of two polynomials times the density, from its moments."""
    terms = [x * y * moments[i + k] for (i, x), (k, y) in itertools.product(enumerate(a), enumerate(b))]
    return sum(terms[1:], terms[0])


def _polynomial_at(half: ParityPart, h: jax.Array, left: jax.Array) -> list[jax.Array]:
    """Compute coefficients of the polynomial that F is just to the right of `left`."""
    passed = h <= left
    j, g = (jnp.where(passed, c, 0) for c in (half.j, half.g))
    return [
        half.p[0] + jnp.sum(g * h**2 / 2 - j * h, axis=0),
        half.p[1] + jnp.sum(j - g * h, axis=0),
        half.p[2] + jnp.sum(g, axis=0) / 2,
    ]


def sort_kinks(x: Kinks, y: Kinks) -> list[Kinks]:
    """Sort all kinks of two inputs in ascending order: odd-even transposition, elementwise on any shapes.

    Two kinks at one place share their derivatives, so that gradients are the mean over both orders.
    """
    places = [Kinks(*(leaf[k] for leaf in one)) for one in (x, y) for k in range(len(one.h))]
    for turn in range(len(places)):
        for i in range(turn % 2, len(places) - 1, 2):
            a, b = places[i], places[i + 1]
            share = jnp.where(a.h < b.h, 1.0, jnp.where(a.h > b.h, 0.0, 0.5)).astype(a.h.dtype)
            places[i] = Kinks(*(share * u + (1 - share) * v for u, v in zip(a, b, strict=True)))
            places[i + 1] = Kinks(*((1 - share) * u + share * v for u, v in zip(a, b, strict=True)))
    return places


def _integrate_short(polynomial: list[jax.Array], left: jax.Array, right: jax.Array) -> jax.Array:
    """Integrate polynomial^2 times the density between two points, without cancellation."""
    half = (right - left) / 2
    column = (-1, *[1] * half.ndim)
    z = left + half * jnp.asarray(1 + _NODES, half.dtype).reshape(column)
    values = (polynomial[0] + z * (polynomial[1] + z * polynomial[2])) ** 2 * jnp.exp(-(z**2) / 2)
    weights = jnp.asarray(_WEIGHTS / math.sqrt(2 * math.pi), half.dtype)
    return half * jnp.tensordot(weights, values, 1, precision="highest")


class _UnitIntegrals(NamedTuple):
    """These are the integrals over z > 0 of (F - G)^2 and 2 F' G', times the density, of one part at rho = 1."""

    separation: jax.Array
    slope: jax.Array


def at_unit_correlation(
    x: ParityPart, y: ParityPart, x_at: jax.Array, y_at: jax.Array, places: list[Kinks]
) -> _UnitIntegrals:
    """Integrate panel by panel, between all kinks of both inputs in ascending order."""
    zero = jnp.zeros_like(x.p[0] + y.p[0])
    ends = [kinks_at(zero), *places]
    tails = [_tails(end) for end in ends]
    separation = slope = zero
    for i, end in enumerate(ends):
        f, g = _polynomial_at(x, x_at, end.h), _polynomial_at(y, y_at, end.h)
        difference = [a - b for a, b in zip(f, g, strict=True)]
        after = tails[i + 1] if i + 1 < len(ends) else [zero] * 5
        moments = [a - b for a, b in zip(tails[i], after, strict=True)]
        inside = _square(difference, difference, moments)
        if 0 < i < len(ends) - 1:
            right = ends[i + 1].h
            short = right - end.h <= _SHORT
            inside = jnp.where(short, _integrate_short(difference, end.h, jnp.where(short, right, end.h)), inside)
        separation = separation + inside
        slope = slope + 2 * _square([f[1], 2 * f[2]], [g[1], 2 * g[2]], moments)
    return _UnitIntegrals(separation, slope)


class _PairIntegrals(NamedTuple):
    """These are integrals over the angle for every pair of kinks, the second at k and at -k: arrays (2, K, K, ..).

    Of sin(y) E[a(U) b(V)] for a, b in (mass, jump of slope): whole, and weighted by v.
    """

    masses: tuple[jax.Array, jax.Array]
    mass_jump: tuple[jax.Array, jax.Array] | None
    jump_mass: tuple[jax.Array, jax.Array] | None
    jumps: tuple[jax.Array, jax.Array] | None


def integrate_pairs(x: Kinks, y: Kinks, gap: jax.Array, *, curved: bool) -> _PairIntegrals:
    """Integrate over pairs of kinks of two inputs; `curved`: with the pairs in which phi'' jumps."""
    h, k = x.h[:, None], y.h[None, :]
    separation, both = (
        jnp.stack(jnp.broadcast_arrays(k - h, k + h)) / 2,
        jnp.stack(jnp.broadcast_arrays(k + h, k - h)) / 2,
    )
    own = angle_integrals(jnp.abs(separation), both, gap, tangential=curved)
    masses = (own.whole[0], own.whole[1])
    if not curved:
        return _PairIntegrals(masses, None, None, None)
    swapped_separation, swapped_both = (
        jnp.stack([sign * pair[0], -sign * pair[1]]) for sign, pair in ((-1, separation), (1, both))
    )
    first = (gap * jnp.minimum(x.tail[:, None], y.tail[None, :]), jnp.zeros(()))
    base = jnp.stack(jnp.broadcast_arrays(*first))
    change = jnp.asarray([-1.0, 1.0], gap.dtype).reshape(-1, *[1] * (base.ndim - 1)) * gap
    jumps = (base + change * own.whole[1], (base + change * own.whole[2]) / 2)
    return _PairIntegrals(
        masses,
        _mass_and_jump(own, separation, both, x.density[:, None], gap),
        _mass_and_jump(own, swapped_separation, swapped_both, y.density[None, :], gap),
        jumps,
    )


def _mass_and_jump(
    own: AngleIntegrals, separation: jax.Array, both: jax.Array, density: jax.Array, gap: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Integrate a mass of one input at its kink, where V is normal: the chance that it is beyond the other kink."""
    assert own.tangential is not None
    floor = SMALLEST[gap.dtype.name]
    tangent = jnp.sqrt(jnp.maximum(gap, floor) / (2 - gap))
    beyond = gap * density * jax.scipy.special.erfc((separation / tangent + both * tangent) / math.sqrt(2)) / 2
    whole = beyond - (separation * own.whole[0] - both * own.tangential[0])
    mean = beyond / 2 - (separation * (own.whole[0] + own.whole[1]) / 2 - both * own.tangential[1])
    return whole, mean


def curvature_of(pairs: _PairIntegrals, x: ParityPart, y: ParityPart, sign: int) -> tuple[jax.Array, jax.Array]:
    """Compute the integral of sin E[F'' G''] over the angle from pairs of kinks of one part, and its weighted mean."""

    def total(kind: tuple[jax.Array, jax.Array] | None, a: jax.Array, b: jax.Array) -> list[jax.Array]:
        if kind is None:
            return [jnp.zeros(()), jnp.zeros(())]
        weight = 2 * a[:, None] * b[None, :]
        return [jnp.sum(weight * (value[0] + sign * value[1]), axis=(0, 1)) for value in kind]

    terms = (
        total(pairs.masses, x.j, y.j),
        total(pairs.mass_jump, x.j, y.g),
        total(pairs.jump_mass, x.g, y.j),
        total(pairs.jumps, x.g, y.g),
    )
    bend, mean = (sum(column[1:], column[0]) for column in zip(*terms, strict=True))
    return bend, mean


def moment_of(half: ParityPart, at: Kinks) -> jax.Array:
    """Compute E[F^2] of one part."""
    ends = [kinks_at(jnp.zeros_like(half.p[0])), *(Kinks(*(leaf[k] for leaf in at)) for k in range(len(at.h)))]
    tails = [*map(_tails, ends), [jnp.zeros_like(half.p[0])] * 5]
    total = jnp.zeros_like(half.p[0])
    for i, end in enumerate(ends):
        own = _polynomial_at(half, at.h, end.h)
        total = total + 2 * _square(own, own, [a - b for a, b in zip(tails[i], tails[i + 1], strict=True)])
    return total


def constant_curvature_of(x: ParityPart, y: ParityPart, x_at: Kinks, y_at: Kinks) -> jax.Array:
    """Compute E[F'' G''] less its part from pairs of kinks, of even parts.

    That part is the product of the constants 2 p_2, and of each constant with the rest of the other input.
    """
    (c, d) = (2 * half.p[2] for half in (x, y))
    rests = [2 * jnp.sum(half.j * at.density + half.g * at.tail, axis=0) for half, at in ((x, x_at), (y, y_at))]
    return c * d + c * rests[1] + rests[0] * d
