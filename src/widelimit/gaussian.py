"""Expectations of functions of a Gaussian pair are computed by quadrature split at the kinks.

E[f(s u) g(t v)] for standard normal u, v of correlation rho is an integral over u and over w, v = rho u + sigma w. Both
are divided into panels that end at the kinks (of g: at the line where v crosses one), are graded towards them, and
resolve the density; a panel has a Gauss-Legendre rule. Where Gauss-Hermite across a kink is off by 1e-3, this converges
as for an analytic function.
"""

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from widelimit import validation
from widelimit.arithmetic import arithmetic
from widelimit.interpreter import interpreted
from widelimit.shapes import Float

Function = Callable[[Any], Any]

REACH = 10.0
"""The normal density is cut here: exp(-50) = 2e-22."""
_DENSITY = (0.0, 2.5, 5.5, REACH)
"""Ends of the panels that resolve the density."""
_TINY = float(np.finfo(np.float64).tiny)
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)


class Panels(NamedTuple):
    """Panels end at these points, in units of phi's argument: sorted, symmetric gradings about 0 and every kink."""

    ends: tuple[float, ...]
    kinks: tuple[float, ...]


def panels(kinks: tuple[float, ...], largest: float) -> Panels:
    """Make panels for deviations up to `largest`: of width 2 near the origin and the kinks, doubling outwards.

    All usual activations vary over lengths of order 1 there and are smoother farther out.
    """
    furthest = REACH * largest
    steps = [2.0 * 2**j for j in range(max(1, math.ceil(math.log2(max(furthest, 4.0)))))]
    ends = {0.0, *kinks}
    for kink in (0.0, *kinks):
        ends.update(kink + sign * step for step in steps for sign in (-1, 1) if step < furthest)
    return Panels(tuple(sorted(ends)), tuple(kinks))


def _merge(*groups: list[np.ndarray]) -> np.ndarray:
    """Return the sorted union of panel ends, along a new last axis."""
    ends = [np.clip(end, -REACH, REACH) for group in groups for end in group]
    return np.sort(np.stack(np.broadcast_arrays(*ends), axis=-1), axis=-1)


def _rule(ends: Any, *, halved: bool = False, xp: Any = np) -> tuple[Any, Any]:
    """Compute nodes and weights (normal density included) of the panels between the ends, or their halves.

    xp: numpy, or jax.numpy for traced ends.
    """
    if halved:
        middles = (ends[..., 1:] + ends[..., :-1]) / 2
        pairs = xp.stack([ends[..., :-1], middles], axis=-1).reshape(*ends.shape[:-1], -1)
        ends = xp.concatenate([pairs, ends[..., -1:]], axis=-1)
    points, shares = (xp.asarray(values, ends.dtype) for values in (_NODES, _WEIGHTS))
    half = (ends[..., 1:] - ends[..., :-1]) / 2
    nodes = (ends[..., :-1] + half)[..., None] + half[..., None] * points
    weights = half[..., None] * shares * xp.exp(-(nodes**2) / 2) / math.sqrt(2 * math.pi)
    shape = (*half.shape[:-1], -1)
    return nodes.reshape(shape), weights.reshape(shape)


def _density_ends() -> list[float]:
    return [-end for end in _DENSITY[:0:-1]] + list(_DENSITY)


def normal_rule(deviation: np.ndarray, grid: Panels, *, halved: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Return nodes z and weights, (..., q): E[phi(s z)] = sum(weights * phi(s nodes)) for every deviation s."""
    own = [end / deviation for end in grid.ends]
    return _rule(_merge([np.full_like(deviation, end) for end in _density_ends()], own), halved=halved)


FARTHEST = 2.0**10
"""Deviations up to which the panels of `traced_normal_rule` resolve what phi does near the origin and its kinks."""


def traced_normal_rule(deviation: jax.Array, kinks: tuple[float, ...]) -> tuple[jax.Array, jax.Array]:
    """Return the nodes and weights of `normal_rule` under jit and grad; the nodes are constants to the derivative."""
    size = jax.lax.stop_gradient(jnp.maximum(deviation, 1e-30))[..., None]
    own = jnp.asarray(panels(kinks, FARTHEST).ends, deviation.dtype) / size
    base = jnp.broadcast_to(jnp.asarray(_density_ends(), deviation.dtype), (*deviation.shape, 2 * len(_DENSITY) - 1))
    return _rule(jnp.sort(jnp.clip(jnp.concatenate([own, base], axis=-1), -REACH, REACH), axis=-1), xp=jnp)


def radial_rule(largest: float) -> tuple[np.ndarray, np.ndarray]:
    """Compute nodes r and weights, (q,), for integrals over r > 0 of r exp(-r^2/2) f(s r); s up to `largest`."""
    ends = np.array([0.0, *(end / largest for end in panels((), largest).ends if end > 0), *_DENSITY])
    ends = np.unique(np.minimum(ends, REACH))
    # Ends that nearly coincide are merged: one of the density's serves for phi too.
    ends = ends[np.concatenate([[True], np.diff(ends) > 0.1 * ends[:-1]])]
    ends[-1] = REACH
    nodes, weights = _rule(ends)
    return nodes, weights * nodes * math.sqrt(2 * math.pi)


def pair_sum(
    f: Function,
    g: Function,
    s: np.ndarray,
    t: np.ndarray,
    rho: float,
    sigma: float,
    *,
    grid: Panels,
    halved: bool = False,
) -> Float[np.ndarray, "a b"]:
    """Compute E[f(s_i u) g(t_j v)] for standard deviations (a,), (b,), one rho and sigma = sqrt(1 - rho^2) >= 0.

    One rule serves all: several deviations only where the kinks, if any, are at 0, so that they have the same lines.
    """
    base, largest_s, largest_t = _density_ends(), np.max(s), np.max(t)
    line, spread = (value if value != 0 else _TINY for value in (rho, sigma))
    with np.errstate(over="ignore"):
        crossings = [(kink / largest_t + sigma * end) / line for kink in grid.kinks for end in base]
        own = [end / largest_s for end in grid.ends]
        u, u_weights = _rule(_merge([np.asarray(end) for end in base], own, crossings), halved=halved)
        inner = [(end / largest_t - rho * u) / spread for end in grid.ends]
    w, w_weights = _rule(_merge([np.full_like(u, end) for end in base], inner), halved=halved)
    v = rho * u[:, None] + sigma * w
    averages = np.stack([np.sum(w_weights * g(deviation * v), axis=1) for deviation in t])
    return np.asarray((f(s[:, None] * u) * u_weights) @ averages.T)


def pair_sums(
    f: Function, g: Function, s: np.ndarray, t: np.ndarray, rho: np.ndarray, sigma: np.ndarray, *, grid: Panels
) -> Float[np.ndarray, "rows a b"]:
    """Compute `pair_sum` for every row of s (rows, a), t (rows, b), rho, sigma (rows,); f, g by the interpreter."""
    first, second = interpreted(f), interpreted(g)
    rows = zip(*(np.asarray(v, np.float64) for v in (s, t, rho, sigma)), strict=True)
    return np.stack([pair_sum(first, second, *row, grid=grid) for row in rows])


class Expectation(NamedTuple):
    """An expectation has a value and a bound on its error."""

    value: float
    error: float


_LARGEST = 1e60
"""The largest variance: panels that double up to it are 800 a side."""
_ROUNDING = 128
"""eps of sqrt(E[f^2] E[g^2]); 82 were seen, near rho = 1 for deviations of 1000 (tests/test_gaussian.py)."""


def gaussian_expectation(
    f: Function, g: Function, q1: float, c: float, q2: float, *, kinks: Sequence[float] = ()
) -> Expectation:
    """Compute E[f(u) g(v)] for a centred Gaussian pair with variances q1, q2 and covariance c, with an error bound.

    By 16-point Gauss-Legendre rules on panels that end at the kinks, in float64. The error is what changes when every
    panel is halved, plus rounding; the value returned is that of the halves, the better one. A kink or jump that is
    not declared, or a function that varies over lengths much shorter than 1, shows as a large error.

    Args:
        f: an elementwise function written with jax.numpy, analytic between the kinks, growing more slowly than
            exp(u^2/(4 q1)).
        g: likewise, with q2.
        q1: variance of u, > 0.
        c: covariance, c^2 <= q1 q2 (up to a rounding error, which is taken as equality).
        q2: variance of v, > 0.
        kinks: points where f or g is not analytic, jumps included.

    Returns:
        (value, error); error is inf where a function is still large at 10 standard deviations, where the rule ends.

    Raises:
        ValueError: a variance that is not positive, c^2 > q1 q2, not finite; TypeError: not real numbers.
    """
    for name, function in (("f", f), ("g", g)):
        validation.function(name, function, "a function of an array")
    q1, c, q2 = (validation.finite_scalar(name, v) for name, v in (("q1", q1), ("c", c), ("q2", q2)))
    q1, c, q2 = (float(v) for v in validation.covariances(*(np.float64(v) for v in (q1, c, q2))))
    for name, variance in (("q1", q1), ("q2", q2)):
        if variance > _LARGEST:
            raise ValueError(f"{name} must be at most {_LARGEST:g}, got {variance:g}; scale the arguments of f and g.")
    ends = tuple(sorted(set(validation.numbers_in("kinks", kinks))))
    if q1 < q2:  # The outer panels resolve the first function: the one that varies over fewer deviations.
        f, g, q1, q2 = g, f, q2, q1
    s, t = math.sqrt(q1), math.sqrt(q2)
    rho = min(max(c / s / t, -1.0), 1.0)
    # Exactly: rounded, it would move the angle of a nearly equal pair by sqrt(eps).
    left = Fraction(q1) * Fraction(q2) - Fraction(c) ** 2
    sigma = math.sqrt(max(float(left / (Fraction(q1) * Fraction(q2))), 0.0))
    grid = panels(ends, 2.0 ** math.ceil(math.log2(max(s, t, 1.0))))
    with arithmetic(True):
        deviations, numpy = (np.array([s]), np.array([t])), (interpreted(f), interpreted(g))
        try:
            sizes = [_second_moment(function, size, grid) for function, size in ((f, s), (g, t))]
        except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError):
            raise TypeError("f and g must be written with jax.numpy, without NumPy, float() or if on values.") from None
        coarse, fine = (
            float(pair_sum(*numpy, *deviations, rho, sigma, grid=grid, halved=halved)[0, 0]) for halved in (False, True)
        )
    scale = math.sqrt(sizes[0][0] * sizes[1][0])
    left_out = max(end / max(size, _TINY) for size, end in sizes)
    error = abs(fine - coarse) + _ROUNDING * float(np.finfo(np.float64).eps) * scale
    return Expectation(fine, error if left_out < 1e-16 and math.isfinite(error) else math.inf)


def _second_moment(f: Function, s: float, grid: Panels) -> tuple[float, float]:
    """Compute E[f(s z)^2], and the larger of the two terms f^2 times the density at the ends of the rule."""
    nodes, weights = normal_rule(np.asarray(s), grid)
    values = interpreted(f)(s * np.concatenate([nodes, [-REACH, REACH]])) ** 2
    return float(np.sum(weights * values[:-2])), float(values[-2:].max() * math.exp(-(REACH**2) / 2))
