"""E[phi(s z)^2] of any phi is computed by quadrature, and as a series in the place of s.

With p the order of phi's zero at 0, E[phi(s z)^2]/s^(2 p) is positive and tends to a positive number at s = 0, and its
logarithm is analytic; so the series of that logarithm keeps relative accuracy, for any s a float holds.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from widelimit import gaussian
from widelimit.arithmetic import arithmetic
from widelimit.gaussian import Function
from widelimit.interpreter import interpreted
from widelimit.signals import Variance, deviation_of

SMALLEST = 1e-20
"""Deviation below which only the leading power of s counts."""
_NEAR_ZERO = 1e-6
_LARGEST_ORDER = 8


def second_moments(phi: Function, kinks: tuple[float, ...], deviations: np.ndarray) -> np.ndarray:
    """Compute E[phi(s z)^2] in float64 for deviations s > 0, (n,)."""
    values, weights = _values(phi, kinks, deviations)
    return np.asarray(np.sum(weights * values**2, axis=-1))


def mean_shares(phi: Function, kinks: tuple[float, ...], deviations: np.ndarray) -> np.ndarray:
    """Compute E[phi(s z)]/sqrt(E[phi(s z)^2]) in float64 for deviations s > 0, (n,); 0 where phi is 0."""
    values, weights = _values(phi, kinks, np.maximum(deviations, SMALLEST))
    sizes = np.sqrt(np.sum(weights * values**2, axis=-1))
    return np.asarray(np.sum(weights * values, axis=-1) / np.where(sizes > 0, sizes, 1))


def _values(phi: Function, kinks: tuple[float, ...], deviations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return phi at the nodes of quadrature, (n, q), and the weights."""
    required = gaussian.panels(kinks, 2.0 ** math.ceil(math.log2(max(float(np.max(deviations)), 1.0))))
    nodes, weights = gaussian.normal_rule(deviations, required)
    with arithmetic(True):
        return interpreted(phi)(deviations[:, None] * nodes), weights


@functools.lru_cache(maxsize=256)
def order_at_zero(phi: Function, kinks: tuple[float, ...]) -> int:
    """Find p such that E[phi(s z)^2] is of the order of s^(2 p) for small s."""
    near, twice = second_moments(phi, kinks, np.array([_NEAR_ZERO, 2 * _NEAR_ZERO]))
    return int(np.clip(round(math.log2(twice / near) / 2), 0, _LARGEST_ORDER)) if near > 0 else 0


def growth(phi: Function, kinks: tuple[float, ...], deviations: np.ndarray) -> np.ndarray:
    """Compute E[phi(s z)^2]/s^(2 p), p = `order_at_zero`, for s >= 0."""
    order, sizes = order_at_zero(phi, kinks), np.append(np.maximum(deviations, SMALLEST), _NEAR_ZERO)
    found = second_moments(phi, kinks, sizes) / sizes ** (2 * order)
    # A phi written with a difference, as exp(u) - 1, is 0 for small u.
    return np.asarray(np.where(found[:-1] > 0, found[:-1], found[-1]))


def second_moment_of(phi: Function, kinks: tuple[float, ...], signal: Variance) -> Variance:
    """Compute E[phi(u)^2] for u ~ N(0, signal) of float64, by quadrature in NumPy."""
    deviation = interpreted(deviation_of)(signal)
    own = growth(phi, kinks, deviation.ravel()).reshape(deviation.shape)
    return interpreted(_growing(order_at_zero(phi, kinks)))(own, signal)  # type: ignore[no-any-return]


@functools.cache
def _growing(order: int) -> Callable[[jax.Array, Variance], Variance]:
    return lambda growth, signal: with_growth(growth, order, signal)


def with_growth(growth: jax.Array, order: int, signal: Variance) -> Variance:
    """Recover E[phi(u)^2] from E[phi(u)^2]/s^(2 p)."""
    power = math.prod([signal.value] * order, start=jnp.ones_like(signal.value))
    return Variance(growth * power, order * signal.exponent).normalise()
