"""A deep network is ordered or chaotic: the correlation of two inputs tends to 1, or to a smaller fixed point."""

from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from scipy.optimize import brentq

from widelimit import validation
from widelimit.activations.base import Activation
from widelimit.activations.names import activation as resolve
from widelimit.arithmetic import arithmetic
from widelimit.signals import Variance

_ITERATIONS = 2000
_CRITICAL = 1e-9
"""|slope - 1| of a network taken as critical: above the error of tabulated duals."""


class FixedPoint(NamedTuple):
    """A fixed point is a correlation that a layer keeps; stable if the slope of the map there is below 1 in size."""

    rho: float
    slope: float
    stable: bool


class Phase(NamedTuple):
    """A phase describes the correlations in a deep network whose signals have reached their variance."""

    name: Literal["ordered", "critical", "chaotic"]
    variance: float
    """q*, the fixed point of q <- weight_std^2 E[phi(u)^2] + bias_std^2, reached from q = 1."""
    slope: float
    """chi = weight_std^2 E[phi'(u)^2], the slope of the correlation map at 1."""
    fixed_points: tuple[FixedPoint, ...]
    """The fixed points of the correlation map on [-1, 1] are ascending; the last is rho = 1."""


def _moment(phi: Activation, q: float) -> float:
    with arithmetic(True):
        signal = Variance(jnp.full(1, q), jnp.zeros(1, jnp.int32)).normalise()
        moment = phi.second_moment(signal)
        return float(moment.value[0] * 4.0 ** float(moment.exponent[0]))


def _slope(phi: Activation, q: float, rho: float = 1.0) -> float:
    """Compute E[phi'(u) phi'(v)] at the variance q."""
    variance = np.asarray(q)
    return float(phi.dual_derivative(variance, variance * rho, variance))


def critical(activation: str | Activation, *, q: float = 1.0) -> tuple[float, float]:
    """Find (weight_std, bias_std) at the edge of chaos where the signals' variance stays q.

    weight_std^2 E[phi'(u)^2] = 1 and weight_std^2 E[phi(u)^2] + bias_std^2 = q, u ~ N(0, q). For relu (sqrt(2), 0), as
    in He's initialisation, at every q; other activations have a curve, of which this is one point.

    Args:
        activation: whatever `mlp` takes.
        q: variance of the signals, > 0.

    Raises:
        ValueError: no bias_std^2 >= 0 does it at this q; or phi jumps, and there is no edge.

    Source: Poole et al. 2016, arXiv 1606.05340; Schoenholz et al. 2017, arXiv 1611.01232.
    """
    phi = resolve(activation)
    q = float(validation.finite_scalar("q", q, above=0.0))
    validation.deviation("the square root of q", q**0.5)
    if not phi.has_ntk:
        raise ValueError(f"{phi.name} jumps: E[phi'(u)^2] is infinite, and every network of it is chaotic.")
    weight = 1 / _slope(phi, q)
    bias = q - weight * _moment(phi, q)
    if bias < -1e-9 * q:
        raise ValueError(
            f"no edge of chaos at q = {q:g}: weight_std^2 = {weight:g} makes the slope 1, but the variance then grows, "
            f"bias_std^2 would be {bias:g}. Try another q."
        )
    return weight**0.5, max(bias, 0.0) ** 0.5 if bias > 1e-12 * q else 0.0


def phase(activation: str | Activation, *, weight_std: float, bias_std: float = 0.0) -> Phase:
    """Find the fixed points of variance and correlation of a deep network, and their stability.

    rho <- (weight_std^2 E[phi(u) phi(v)] + bias_std^2)/q* for u, v of variance q* and correlation rho. A slope at 1
    below 1 is the ordered phase (all inputs become alike), above 1 the chaotic one.

    Raises:
        ValueError: the variance vanishes, grows without bound or has not settled after 2000 layers.

    Source: Poole et al. 2016, arXiv 1606.05340.
    """
    phi = resolve(activation)
    w2 = float(validation.deviation("weight_std", weight_std)) ** 2
    b2 = float(validation.deviation("bias_std", bias_std, zero=True)) ** 2
    q = _fixed_variance(phi, w2, b2)
    slope = w2 * _slope(phi, q) if phi.has_ntk else float("inf")

    def fall(rho: np.ndarray) -> np.ndarray:
        return np.asarray((w2 * phi.dual(np.asarray(q), q * rho, np.asarray(q)) + b2) / q - rho)

    grid = np.linspace(-1, 1, 402)[:-1]
    values = fall(grid)
    found = [
        float(brentq(lambda r: float(fall(np.asarray(r))), grid[i], grid[i + 1], xtol=1e-14))
        for i in range(len(grid) - 1)
        if values[i] * values[i + 1] < 0
    ]
    found += [float(r) for r, value in zip(grid, values, strict=True) if value == 0]
    points = [FixedPoint(r, s := w2 * _slope(phi, q, r), abs(s) < 1) for r in sorted(found)]
    points.append(FixedPoint(1.0, slope, slope < 1))
    name: Literal["ordered", "critical", "chaotic"] = "ordered" if slope < 1 else "chaotic"
    return Phase("critical" if abs(slope - 1) <= _CRITICAL else name, q, slope, tuple(points))


def _fixed_variance(phi: Activation, w2: float, b2: float) -> float:
    q = 1.0
    for _ in range(_ITERATIONS):
        after = w2 * _moment(phi, q) + b2
        if not 1e-12 < after < 1e12:
            fate = "vanishes" if after <= 1e-12 else "grows without bound"
            raise ValueError(f"the variance of the signals {fate}: there is no fixed point > 0 to speak of.")
        if abs(after - q) <= 1e-13 * q:
            return after
        q = after
    raise ValueError(f"the variance of the signals has not settled after {_ITERATIONS} layers; it is {q:g}.")
