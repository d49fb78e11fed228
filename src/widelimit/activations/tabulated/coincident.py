"""A pair map is a sum of smooth functions times erf and exp where the kinks of two inputs coincide.

For kinks at h = beta + kappa and k = beta - kappa (in deviations), u = tan(psi/2), r = kappa/u and E = exp(-r^2/2),
every E[(U - h)_+^p (V - k)_+^q] is a + b erf(r/sqrt 2) + c E with a, b, c analytic in kappa, beta and psi. So is the
probability of the quadrant,

    P(U > h, V > k) = (Q(h) + Q(k))/2 - (Q(k) - Q(h))/2 erf(r/sqrt 2) - u E B,

Q the normal tail. dP/du = -E w with w = exp(-(kappa^2 + beta^2 (1 + v))/2)/(pi (1 + v)), v = u^2 (Price's theorem), is
an equation for B with one analytic solution: (v + kappa^2) B + 2 v^2 dB/dv = v w + sqrt(2/pi) kappa (Q(k) - Q(h))/2.
All else follows by Stein's recurrence. In R = R(1) - gap H the powers of kappa and u that belong to `gap` are taken
out beforehand, so that gaps keep their relative accuracy.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np

from widelimit import series
from widelimit.activations.tabulated import expansions
from widelimit.activations.tabulated.chebyshev import chebyshev_coefficients, chebyshev_points
from widelimit.activations.tabulated.expansions import Expansion, ExpansionMemo
from widelimit.interpreter import interpreted
from widelimit.pytrees import pytree
from widelimit.series import safe_sqrt

POINTS, COLLOCATED = 12, 24
"""Chebyshev points in psi^2: the functions are analytic for psi < pi, and each term is 14 times smaller."""
_ROOT = math.sqrt(2 / math.pi)
_MIDDLE = 3.0
_FURTHEST = 40.0
"""The value of r from which exp(-r^2/2) is 0."""
MILLS = (
    0.3045902987101028, -0.5173746232181206, 0.3088791446005882, -0.11583995928881416,
    0.015374052803029316, 0.007284048021783079, -0.002483662854595563, -0.0008662164278870381,
    0.00032972651919887527, 0.00017169489259719346, -3.157106715372395e-05, -3.8473423920708415e-05,
    -3.125995210065356e-06, 7.209553279442842e-06, 3.0276725812314905e-06, -6.380965387044594e-07,
    -9.967852754153085e-07, -1.8579594567737176e-07, 1.93050011143263e-07, 8.779433161832089e-08,
    -1.7995526848772633e-08, -1.2668514928031053e-08,
)  # fmt: skip
"""The Mills ratio of the normal law at r, in powers of (r - 3)/(r + 3); the first term left out is below 1e-12.

From 48 Chebyshev points of SciPy's erfcx, as tests/test_first_call.py computes it again.
"""


class Jumps(NamedTuple):
    """One part of one input has a kink at h, where phi' jumps by j and phi'' by g; arrays."""

    h: np.ndarray
    j: np.ndarray
    g: np.ndarray


@final
@pytree
class Coincident:
    """The non-analytic terms of one part have these expansions."""

    jumps: Expansion
    """omega, and the coefficients of gap and gap^2 with the error function."""
    mean: Expansion
    """The expansion is that of H, with u E (1 + u^2)/2: power series in 8 (psi/pi)^2 - 1."""


class CoincidentMemo(NamedTuple):
    """The memo holds the expansions at the deviations of n inputs."""

    jumps: ExpansionMemo
    mean: ExpansionMemo


def coincident_memo(coincident: Coincident, polynomials: jax.Array) -> CoincidentMemo:
    """Evaluate the expansions at the inputs whose T_j are given."""
    return CoincidentMemo(*(expansions.expansion_memo(one, polynomials) for one in (coincident.jumps, coincident.mean)))


class KinkPair(NamedTuple):
    """The kinks of two inputs have these quantities, which both parts of a pair need."""

    kappa: jax.Array
    psi: jax.Array
    u: jax.Array
    r: jax.Array
    wide: jax.Array
    """(1 + u^2)/2"""
    square: jax.Array
    """8 (psi/pi)^2 - 1"""
    erf: jax.Array
    density: jax.Array
    """E"""
    third: jax.Array
    """r^2 (abs(r) m(r) - 1)"""


def kink_pair(h: jax.Array, k: jax.Array, gap: jax.Array, psi: jax.Array) -> KinkPair:
    """Compute the quantities of kinks at h and k of two inputs."""
    kappa, u = (h - k) / 2, safe_sqrt(gap / (2 - gap))
    size, tiny = jnp.abs(kappa), float(np.finfo(gap.dtype).tiny)
    r = jnp.minimum(size / jnp.maximum(u, tiny), _FURTHEST)
    t = (size - _MIDDLE * u) / jnp.maximum(size + _MIDDLE * u, tiny)
    mills = series.polynomial(MILLS, t)
    density = jnp.exp(-(r**2) / 2)
    erf = jnp.sign(kappa) * (1 - _ROOT * density * mills)
    square = 8 * (psi / math.pi) ** 2 - 1
    return KinkPair(kappa, psi, u, r, (1 + u**2) / 2, square, erf, density, r**2 * (r * mills - 1))


def coincident_values(
    coincident: Coincident, x: CoincidentMemo, y: CoincidentMemo, at: KinkPair, gap: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Compute the non-analytic terms of half the squared distance at rho = 1, of H and of dR/drho."""
    jumps = expansions.contract(coincident.jumps, x.jumps, y.jumps)
    return _combine(
        jumps, series.polynomial_and_slope(expansions.contract(coincident.mean, x.mean, y.mean), at.square), at, gap
    )


def _combine(
    jumps: Sequence[jax.Array], mean_and_slope: tuple[jax.Array, jax.Array], at: KinkPair, gap: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """dR/drho = H + u dH/dpsi, with dE/du = r^2 E/u and dm/dr = r m - 1 for the Mills ratio m."""
    (omega, first, second), (mean, by_square) = jumps, mean_and_slope
    both = at.u * at.density
    inner, with_erf = _ROOT * omega * at.third - mean, first + gap * second
    h = at.wide * both * inner - with_erf * at.erf
    by_u = at.u**2 * inner - at.wide * (_ROOT * omega * (2 * at.third + at.r**2) + (1 + at.r**2) * mean)
    change = both * (by_u - at.u * (16 / math.pi**2) * at.psi * by_square)
    change = change + _ROOT * jnp.sign(at.kappa) * at.r * at.density * with_erf
    return -(jnp.abs(at.kappa) ** 3) * omega, h, h + at.wide * change - gap * second * at.erf


class CoincidentSamples(NamedTuple):
    """The samples are arrays (m, m, 3) and (m, m, POINTS) at Chebyshev points."""

    jumps: np.ndarray
    mean: np.ndarray


def sample(x: Jumps, y: Jumps) -> CoincidentSamples:
    """Sample the smooth functions for every pair of inputs x, y: arrays (m, 1) and (1, m) of one part."""
    psi = math.pi / 2 * np.sqrt((1 + chebyshev_points(POINTS)) / 2)
    quadrant = _moments(x.h[..., None], y.h[..., None], psi)
    gap = 2 * np.sin(psi / 2) ** 2
    u = np.tan(psi / 2)
    kappa, beta = (x.h - y.h) / 2, (x.h + y.h) / 2

    def total(f: list[np.ndarray], g: list[np.ndarray]) -> np.ndarray:
        """Compute 2 E[f(U) g(V)] over the quadrant, for polynomials."""
        terms = [2 * a[..., None] * b[..., None] * quadrant[p][q] for p, a in enumerate(f) for q, b in enumerate(g)]
        return np.asarray(sum(terms[1:], terms[0]))

    values, slopes = (total(f(x), f(y)) for f in (_polynomial_of, lambda v: [v.j - v.g * v.h, v.g]))
    nodes, weights = np.polynomial.legendre.leggauss(64)
    z = np.reshape(nodes, (-1, 1, 1))
    product = (x.j * (z - 1) + x.g * kappa * (z - 1) ** 2 / 2) * (y.j * (z + 1) + y.g * kappa * (z + 1) ** 2 / 2)
    omega = -np.tensordot(weights, product * np.exp(-((beta + kappa * z) ** 2) / 2) / math.sqrt(2 * math.pi), 1)
    # The coefficient of erf in R is a polynomial of degree 2 in `gap`, omega kappa^3 its constant; the one in dR/drho
    # is minus its derivative, which is determined by two values.
    i, k = 0, POINTS - 1
    second = -(slopes[1][..., i] - slopes[1][..., k]) / (2 * (gap[i] - gap[k]))
    first = -slopes[1][..., i] - 2 * gap[i] * second
    mean = values[2] / u - _ROOT * (omega * kappa**2)[..., None]
    return CoincidentSamples(np.stack([omega, first, second], -1), mean / u**2)


def _polynomial_of(v: Jumps) -> list[np.ndarray]:
    """Return the polynomial j (z - h) + g (z - h)^2/2."""
    return [v.g * v.h**2 / 2 - v.j * v.h, v.j - v.g * v.h, v.g / 2]


def coincident_part(samples: CoincidentSamples, threshold: float, furthest: float) -> Coincident:
    """Find the expansions that give all values to the threshold; abs(kappa) is up to `furthest`."""
    # What a coefficient of H means to dR/drho: u dT_k/dpsi is up to 8/pi k^2, at psi = pi/2.
    weights = 2 + 8 / math.pi * np.arange(POINTS) ** 2
    jumps = chebyshev_coefficients(samples.jumps, 0, 1)
    mean = expansions.expand(chebyshev_coefficients(samples.mean, 0, 1, 2), threshold, step=1, weights=weights)
    return Coincident(
        expansions.expand(jumps, threshold / max(1.0, furthest**3), step=3), expansions.in_powers(mean, halved=False)
    )


def coincident_at(samples: CoincidentSamples, x: Jumps, y: Jumps, psi: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute the non-analytic terms of half the squared distance (m, m), and of H (m, m, K) at the angles psi."""
    gap = 2 * np.sin(psi / 2) ** 2
    at = interpreted(kink_pair)(x.h[..., None], y.h[..., None], gap, psi)
    mean = np.polynomial.chebyshev.chebval(
        8 * (psi / math.pi) ** 2 - 1, np.moveaxis(chebyshev_coefficients(samples.mean, -1), -1, 0)
    )
    jumps = np.moveaxis(samples.jumps[..., None], 2, 0)
    separation, h, _ = interpreted(_combine)(list(jumps), (mean, np.zeros_like(mean)), at, gap)
    return separation[..., 0], h


def _quadrant(kappa: np.ndarray, beta: np.ndarray, psi: np.ndarray) -> np.ndarray:
    """Compute B at the angles psi, by collocation at Chebyshev points."""
    from scipy import special  # slow to import, and closed forms do not need it

    z = chebyshev_points(COLLOCATED)
    nodes = math.pi / 2 * np.sqrt((1 + z) / 2)
    v = np.tan(nodes / 2) ** 2
    slopes = np.polynomial.chebyshev.chebval(z, np.polynomial.chebyshev.chebder(np.eye(COLLOCATED))).T
    by_v = slopes * (16 * nodes / math.pi**2 / (np.tan(nodes / 2) * (1 + v)))[:, None]
    w = np.exp(-(kappa**2 + beta**2 * (1 + v)) / 2) / (math.pi * (1 + v))
    fall = (special.ndtr(-(beta - kappa)) - special.ndtr(-(beta + kappa))) / 2
    right = (v * w + _ROOT * kappa * fall) / (v + kappa**2)
    at, required = (np.polynomial.chebyshev.chebvander(x, COLLOCATED - 1) for x in (z, 8 * (psi / math.pi) ** 2 - 1))
    matrix = at + (2 * v**2 / (v + kappa**2))[..., None] * by_v
    return np.asarray((required @ np.linalg.solve(matrix, right[..., None]))[..., 0])


def _moments(h: np.ndarray, k: np.ndarray, psi: np.ndarray) -> list[list[np.ndarray]]:
    """Compute E[U^p V^q; U > h, V > k], p, q = 0..2, each (3, ..): the smooth part, and those with erf and with E."""
    from scipy import special

    kappa, beta, u, rho = (h - k) / 2, (h + k) / 2, np.tan(psi / 2), np.cos(psi)
    sine = np.sin(psi)
    (tail_h, density_h), (tail_k, density_k) = (
        (special.ndtr(-x), np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)) for x in (h, k)
    )
    tau, weights = np.polynomial.legendre.leggauss(40)
    tau, weights = (tau.reshape(-1, 1, 1, 1) + 1) / 2, weights / 2

    def beyond(density: np.ndarray, sign: int) -> np.ndarray:
        """Compute a mass at one kink, with the other input beyond its own: density Q(beta u -+ r)."""
        inner = np.tensordot(weights, np.exp(sign * kappa * beta * tau - (beta * u * tau) ** 2 / 2), 1)
        return np.asarray(density * np.stack(_full(0.5, sign * 0.5, -beta * u * inner / math.sqrt(2 * math.pi))))

    joint = np.exp(-(kappa**2 + beta**2 * (1 + u**2)) / 2) / (2 * math.pi)
    quadrant = np.stack(_full((tail_h + tail_k) / 2, (tail_h - tail_k) / 2, -u * _quadrant(kappa, beta, psi)))
    both = np.stack(_full(0.0, 0.0, sine * joint))
    a, b = [beyond(density_h, 1)], [beyond(density_k, -1)]
    for own, place, other in ((a, h, k), (b, k, h)):
        own.append(rho * place * own[0] + both)
        own.append(rho * place * own[1] + sine**2 * own[0] + other * both)
    moments = [[quadrant]]
    for q in range(2):
        before = q * moments[0][q - 1] if q else 0
        moments[0].append(before + k**q * b[0] + rho * a[q])
    for p in range(2):
        row = []
        for q in range(3):
            lower = (p * moments[p - 1][q] if p else 0) + (rho * q * moments[p][q - 1] if q else 0)
            row.append(lower + h**p * a[q] + rho * k**q * b[p])
        moments.append(row)
    return moments


def _full(*parts: np.ndarray | float) -> list[np.ndarray]:
    shape = np.broadcast_shapes(*(np.shape(part) for part in parts))
    return [np.broadcast_to(part, shape) for part in parts]
