"""phi(u) = max(u, 0)^p and phi(u) = sign(u) have duals that are polynomials in the angle, its sine and cosine."""

import functools
import math
from typing import ClassVar, final

import jax
import jax.numpy as jnp

from widelimit import series, validation
from widelimit.activations.base import Activation, Memo, parameter
from widelimit.activations.closed.linear import correlate_linear_pieces
from widelimit.pytrees import pytree
from widelimit.shapes import Float
from widelimit.signals import Correlation, Variance, correlation_from_gap, limit

LARGEST_POWER = 3
"""The largest power p of max(u, 0)^p is this: the closed forms of Cho and Saul 2009 that are written out here."""


def _correlate_signs(correlation: Correlation) -> tuple[Correlation, jax.Array]:
    """Compute the pair map of phi = sign: 1 - abs(rho_after) = (2/pi) psi, psi = acos(abs(rho)).

    Its slope (2/pi)/sin(psi) is infinite at the ends; it is given a derivative of 0 there, so that gradients of what
    does not depend on it stay finite.
    """
    gap = correlation.gap
    psi, _ = series.angle_from_gap(gap)
    square = gap * (2 - gap)
    inside = square > 0
    slope = jnp.where(inside, (2 / math.pi) / jnp.sqrt(jnp.where(inside, square, 1)), jnp.inf)
    return correlation_from_gap((2 / math.pi) * psi, correlation.positive), slope


def _correlate_steps(correlation: Correlation) -> tuple[Correlation, jax.Array]:
    """Compute the pair map of a step: (1 + sign)/2, half of its variance a constant."""
    signs, slope = _correlate_signs(correlation)
    return Correlation(signs.one_minus / 2, 1 + signs.one_plus / 2), slope / 2


def _second_moment(signal: Variance, moment: float) -> Variance:
    """Return the second moment of sign or step: a constant, and 0 for a signal that is 0."""
    return Variance(jnp.where(signal.value > 0, moment, jnp.zeros_like(signal.value)), jnp.zeros_like(signal.exponent))


@final
@pytree
class Sign(Activation):
    """phi(u) = sign(u). Dual: 1 - 2 theta/pi. Source: Cho and Saul 2009, eq. (4), for sign = 2 step - 1."""

    name: ClassVar[str] = "sign"

    @property
    def has_ntk(self) -> bool:
        return False

    def __call__(self, u: Float[jax.Array, "..."]) -> Float[jax.Array, "..."]:
        return jnp.sign(u)

    def encode(self, signal: Variance) -> tuple[Variance, Memo]:
        return _second_moment(signal, 1.0), ()

    def correlate(self, x: Memo, y: Memo, correlation: Correlation) -> tuple[Correlation, jax.Array]:
        return _correlate_signs(correlation)


@final
@pytree
class Step(Activation):
    """phi(u) = 1 for u > 0, else 0. Dual: (pi - theta)/(2 pi). Source: Cho and Saul 2009, eq. (4)."""

    name: ClassVar[str] = "step"

    @property
    def has_ntk(self) -> bool:
        return False

    def __call__(self, u: Float[jax.Array, "..."]) -> Float[jax.Array, "..."]:
        return (u > 0).astype(u.dtype)

    def encode(self, signal: Variance) -> tuple[Variance, Memo]:
        return _second_moment(signal, 0.5), ()

    def correlate(self, x: Memo, y: Memo, correlation: Correlation) -> tuple[Correlation, jax.Array]:
        return _correlate_steps(correlation)


def _arc_cosine(power: int, gap: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Compute (J_p(pi - psi), J_p(0) - J_p(psi)) of Cho and Saul for p = 1, 2, 3; psi in [0, pi/2].

    J_p(psi) = pi P_p(cos psi) - (-1)^p J_p(pi - psi) with P_1 = cos, P_2 = 3 - 2 sin^2, P_3 = cos (15 - 6 sin^2): so
    only the tail, which vanishes with psi, needs the angle, and the difference is free of cancellation.
    """
    psi, segment = series.angle_from_gap(gap)
    cosine, square = 1 - gap, gap * (2 - gap)
    if power == 1:
        return segment, math.pi * gap - segment
    if power == 2:
        tail = psi * square - 3 * cosine * segment
        return tail, 2 * math.pi * square + tail
    tail = 15 * segment - 11 * square * series.safe_sqrt(square) + 6 * psi * cosine * square
    return tail, math.pi * (15 * gap + 6 * square * cosine) - tail


@final
@pytree
class RectifiedPower(Activation):
    """phi(u) = max(u, 0)^p. Dual: (s s')^p J_p(theta)/(2 pi). Source: Cho and Saul 2009, section 2.1.

    J_2 = 3 sin cos + (pi - theta)(1 + 2 cos^2), J_3 = 4 sin^3 + 15 sin cos^2 + (pi - theta)(9 sin^2 cos + 15 cos^3).

    Args:
        power: p, an integer from 0 (the step) through 1 (relu) to 3.

    Raises:
        ValueError: power out of range; TypeError: not an integer.
    """

    power: int = parameter(2, functools.partial(validation.integer, at_least=0, below=LARGEST_POWER + 1), static=True)
    name: ClassVar[str] = "rectified_power"

    @property
    def has_ntk(self) -> bool:
        return self.power > 0

    def __call__(self, u: Float[jax.Array, "..."]) -> Float[jax.Array, "..."]:
        return jnp.where(u > 0, u**self.power, 0)

    def encode(self, signal: Variance) -> tuple[Variance, Memo]:
        if self.power == 0:
            return _second_moment(signal, 0.5), ()
        moment = math.prod(range(1, 2 * self.power, 2)) / 2
        exponent = limit(signal).exponent * self.power
        return Variance(moment * signal.value**self.power, exponent).normalise(), ()

    def correlate(self, x: Memo, y: Memo, correlation: Correlation) -> tuple[Correlation, jax.Array]:
        if self.power == 0:
            return _correlate_steps(correlation)
        if self.power == 1:
            return correlate_linear_pieces(0.5, correlation)
        at_zero = math.pi * math.prod(range(1, 2 * self.power, 2))
        tail, fall = _arc_cosine(self.power, correlation.gap)
        one_minus = jnp.where(correlation.positive, fall / at_zero, 1 - tail / at_zero)
        slope_tail, slope_fall = _arc_cosine(self.power - 1, correlation.gap)
        slope_at_zero = at_zero / (2 * self.power - 1)
        slope = jnp.where(correlation.positive, slope_at_zero - slope_fall, slope_tail)
        return Correlation(one_minus, 2 - one_minus), self.power**2 / at_zero * slope
