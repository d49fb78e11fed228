"""phi(u) = erf(u) and phi(u) = u Phi(u) (gelu) have duals by arc sines and roots."""

import math
from typing import ClassVar, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np

from widelimit import series, signals, validation
from widelimit.activations.base import ANY_DEPTH, Activation, Memo, parameter
from widelimit.activations.row_groups import of_patch_by_rows
from widelimit.pytrees import changed, pytree
from widelimit.shapes import Float
from widelimit.signals import Correlation, Variance


class _ErfMemo(NamedTuple):
    """q = sqrt(2) s, k = 1/sqrt(1 + q^2), p = q k, root = sqrt(1 - p^4), half = sin^2(a/2), sin a = p^2.

    size = sqrt(a)/p, the root of h. s is the deviation of b u; signal_share and bias_share are those of a erf and of c
    in the deviation after phi.
    """

    q: jax.Array
    k: jax.Array
    p: jax.Array
    root: jax.Array
    half: jax.Array
    size: jax.Array
    signal_share: jax.Array
    bias_share: jax.Array


@final
@pytree
class Erf(Activation):
    """phi(u) = a erf(b u) + c. Dual for a = b = 1, c = 0: (2/pi) asin(2 s s' rho/sqrt((1 + 2 s^2)(1 + 2 s'^2))).

    Source: Williams 1997, eq. (11).

    With p = sqrt(2) s/sqrt(1 + 2 s^2), Z = p p' rho and h(z) = asin(z)/z the correlation after phi is rho R,
    R = h(Z)/sqrt(h(p^2) h(p'^2)), and its gap is (1 - rho) R + (1 - R). 1 - R is a sum of differences of h, taken by
    divided differences of the analytic function h(sin a) = (a/2)/(sin(a/2) cos(a/2)) of sin^2(a/2): in the chaotic
    phase a deep network multiplies the small gap of two inputs by up to 1e9, so it must be right to its own last digit
    here. c is a constant that both signals share, uncorrelated with the odd function erf.

    Args:
        a: factor of erf, 1e-6 to 1e6 in size.
        b: factor of the signal, 1e-6 to 1e6 in size.
        c: offset, in [-1e6, 1e6].

    Raises:
        ValueError: a parameter is NaN, infinite or out of range; TypeError: not real numbers.
    """

    a: float | jax.Array = parameter(1.0, validation.factor)
    b: float | jax.Array = parameter(1.0, validation.factor)
    c: float | jax.Array = parameter(0.0, validation.offset)
    name: ClassVar[str] = "erf"
    looped: ClassVar[bool] = True
    quick_depth: ClassVar[int] = ANY_DEPTH
    quick_types: ClassVar[tuple[str, ...]] = ("float64",)  # in float32 a warm call took a fifth longer

    def __call__(self, u: Float[jax.Array, "..."]) -> Float[jax.Array, "..."]:
        return self.a * jax.scipy.special.erf(self.b * u) + self.c

    def less_mean(self) -> Activation:
        return changed(self, c=0.0)

    def encode(self, signal: Variance) -> tuple[Variance, Memo]:
        signal = signals.multiply(signal, self.b)
        info = np.finfo(signal.value.dtype)
        deviation = signals.bounded_deviation(signal, 2 * int(info.minexp), int(info.maxexp) - 2)
        # Beyond 1e307 (float32: 2e37) 1/q would be no normal number; erf is the sign function long before.
        q = jnp.minimum(math.sqrt(2) * deviation, 1 / (4 * float(info.tiny)))
        k = 1 / series.hypot(jnp.ones_like(q), q)
        p = q * k
        root = k * jnp.sqrt(1 + p**2)
        half = p**4 / (2 * (1 + root))
        h = series.evaluate(series.ARCSINE_OVER_COSINE, half)
        small = signal.exponent < 0
        squared = jnp.where(small, 2 * signal.value * k**2, p**2)
        exponent = jnp.where(small, signal.exponent, 0)
        odd = signals.multiply(Variance((2 / math.pi) * squared * h, exponent), self.a)
        offset = signals.multiply(Variance(jnp.ones_like(q), jnp.zeros_like(exponent)), self.c)
        total, *shares = signals.add_variances(odd, offset)
        return total, _ErfMemo(q, k, p, root, half, jnp.sqrt(h), *shares)

    def correlate(self, x: _ErfMemo, y: _ErfMemo, correlation: Correlation) -> tuple[Correlation, jax.Array]:
        gap, slope = of_patch_by_rows(_erf_pair_map, x, y, correlation)
        erf = signals.correlation_from_gap(gap, correlation.positive)
        after = signals.sum_signals((x.signal_share, x.bias_share), (y.signal_share, y.bias_share), (erf,))
        return after, x.signal_share * y.signal_share * slope

    def itself(self, x: _ErfMemo, correlation: Correlation) -> tuple[Correlation, jax.Array]:
        slope = x.signal_share**2 / (x.root * x.size**2)
        return signals.correlation_with_itself(correlation.one_minus), slope


def _erf_pair_map(x: _ErfMemo, y: _ErfMemo, correlation: Correlation) -> tuple[jax.Array, jax.Array]:
    """Return (gap to the nearer end after a erf(b u), d rho_after/d rho)."""
    gap = correlation.gap
    common = x.p * y.p
    z = common * (1 - gap)
    step = series.safe_divide((x.q - y.q) * x.k * y.k * ((x.q + y.q) * x.k * y.k), x.p + y.p)
    one_minus_z = (x.k**2 + y.k**2 + step**2) / 2 + common * gap
    # sqrt(1 - z^2) with the largest term of 1 - z taken out, so that no square underflows.
    separation = series.safe_sqrt(gap)
    largest = jax.lax.stop_gradient(jnp.maximum(jnp.maximum(x.k, y.k), separation))
    terms = ((x.k / largest) ** 2 + (y.k / largest) ** 2 + (step / largest) ** 2) / 2
    root = largest * jnp.sqrt((terms + common * (separation / largest) ** 2) * (2 - one_minus_z))
    half = z**2 / (2 * (1 + root))
    h, towards_x, towards_y = series.divided_differences(series.ARCSINE_OVER_COSINE, x.half, y.half, half)
    over_x = x.p * (step + y.p * gap) * (x.p**2 + z) / (2 * (x.root + root)) * towards_x
    over_y = y.p * (x.p * gap - step) * (y.p**2 + z) / (2 * (y.root + root)) * towards_y
    scale = x.size * y.size
    spread = (over_x - over_y) / (x.size + y.size)
    gap_after = gap * (h / scale) + (over_x + over_y - spread**2) / (2 * scale)
    return gap_after, 1 / (root * scale)


NEAR = 1e-2
"""Gap after gelu below which the usual form, right to about eps, has an error of over 10 eps in the angle."""
_ARCSINE_TERMS = (1 / 6, 3 / 40, 5 / 112, 35 / 1152, 63 / 2816, 231 / 13312)
"""(asin(x) - x)/x^3 in x^2, to 1e-10 for x up to 0.2."""


class _GeluMemo(NamedTuple):
    """t = 1/sqrt(1 + s^2), p = s t, tail = L(p^2), size = sqrt(2 pi E[phi(u)^2]/s^2)."""

    s: jax.Array
    t: jax.Array
    p: jax.Array
    tail: jax.Array
    size: jax.Array


def _gelu_tail(gap: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return (alpha, L) at z = cos(alpha) = 1 - gap in [0, 1], L(z) = alpha - 2 z sqrt((1 - z)/(1 + z)).

    L is about (1 - z)^(3/2): its terms of order alpha cancel on paper, before anything is rounded.
    """
    angle, segment = series.angle_from_gap(gap)
    v = gap / 2
    return angle, 2 * v * (series.safe_sqrt(v / (1 - v)) + angle) - segment


def _tail_difference(rise: jax.Array, v: jax.Array, u: jax.Array) -> jax.Array:
    """Compute L(1 - 2 v) - L(1 - 2 u) from rise = 2 (v - u), where L(cos a) = a + 2 tan(a/2) - 2 sin(a).

    With h and m half the difference and the sum of the two angles it is 2 (h - sin h) + 2 sin h (2 (1 - cos m) +
    (2 - cos m - cos h)/(cos m + cos h)): no difference of close numbers is left.
    """
    (sine, cosine), (other, cosine_other) = ((jnp.sqrt(w), jnp.sqrt(1 - w)) for w in (v, u))
    both, straight, crossed = sine * other, cosine * cosine_other, sine * cosine_other + cosine * other
    sine_h = rise / 2 / crossed
    fall_m, fall_h = crossed**2 / (1 + straight - both), sine_h**2 / (1 + straight + both)
    further = sine_h**2 * series.polynomial(_ARCSINE_TERMS, sine_h**2)
    return 2 * sine_h * (further + 2 * fall_m + (fall_m + fall_h) / (2 * straight))


def _near_gap(x: _GeluMemo, y: _GeluMemo, gap: jax.Array) -> jax.Array:
    """Compute the gap after gelu of a near pair, right in its own last digits."""
    common, shrink = x.p * y.p, x.t * y.t
    step = series.safe_divide(((x.s - y.s) * shrink) * ((x.s + y.s) * shrink), x.p + y.p)  # p - p'
    gap_z = (x.t**2 + y.t**2 + step**2) / 2 + common * gap
    towards_x, towards_y = (
        _tail_difference(common * gap + rise, gap_z / 2, t**2 / 2)
        for rise, t in ((x.p * step, x.t), (-y.p * step, y.t))
    )
    angle, _ = series.angle_from_gap(gap_z)
    bend = common * (gap**2 - ((1 - gap) * step) ** 2) / jnp.sqrt(gap_z * (2 - gap_z))
    spread = ((towards_y - towards_x) / (x.size + y.size)) ** 2 / 2
    return (gap * (math.pi - angle) + (towards_x + towards_y) / 2 - bend - spread) / (x.size * y.size)


def _gelu_pair_map(x: _GeluMemo, y: _GeluMemo, correlation: Correlation) -> tuple[jax.Array, jax.Array]:
    """Return (1 - rho after gelu, d rho_after/d rho)."""
    gap = correlation.gap
    rho, across, common = 1 - gap, gap * (2 - gap), x.p * y.p
    ends, separation = x.t**2 + y.t**2, (x.p - y.p) ** 2
    gap_z = (ends + separation) / 2 + common * gap
    square = gap_z * (2 - gap_z)
    root = jnp.sqrt(square)
    angle, tail = _gelu_tail(gap_z)
    size = x.size * y.size
    agree = jnp.where(correlation.positive, math.pi - angle, angle)

    fall = gap * agree + (tail - (x.tail + y.tail) / 2) - common * (gap**2 - rho**2 * separation) / root
    spread = ((x.tail - y.tail) / (x.size + y.size)) ** 2 / 2
    opposite = common * (across + rho**2 * ends) / root - rho * agree
    one_minus = jnp.where(correlation.positive, (fall - spread) / size, 1 - opposite / size)

    inner = (x.t * y.t) ** 2 + (y.p * x.t**2) ** 2 + (x.p * y.t**2) ** 2 + common**2 * across * ends
    bend = (common * rho / root) * (2 * ends - inner / square)
    slope = (agree + signals.with_sign(bend, correlation)) / size
    identical = (gap == 0) & correlation.positive & (x.t == y.t)
    return signals.correlation_by_difference(one_minus, identical).one_minus, slope


@final
@pytree
class Gelu(Activation):
    """phi(u) = u Phi(u), Phi the normal distribution function. Dual: s s' (rho (pi/2 + asin Z) + B)/(2 pi).

    Here t = 1/sqrt(1 + s^2), p = s t, Z = p p' rho and B = p p' (1 - rho^2 + rho^2 (t^2 + t'^2))/sqrt(1 - Z^2). Source:
    Tsuchida et al. 2021, arXiv 2002.08517. For Z >= 0, asin Z + B = pi/2 - L(Z) + (p p' (1 - rho)^2 -
    rho Z (p - p')^2)/sqrt(1 - Z^2) with an L that is flat at Z = 1: so the gap is a sum of terms that vanish with it,
    and keeps its digits where gelu becomes relu (s to infinity).
    """

    name: ClassVar[str] = "gelu"
    looped: ClassVar[bool] = True
    quick_depth: ClassVar[int] = ANY_DEPTH

    def __call__(self, u: Float[jax.Array, "..."]) -> Float[jax.Array, "..."]:
        return jax.nn.gelu(u, approximate=False)

    def mean(self, deviation: Float[jax.Array, "..."]) -> Float[jax.Array, "..."]:
        root = series.hypot(jnp.ones_like(deviation), deviation)
        return deviation * (deviation / root) / math.sqrt(2 * math.pi)

    def encode(self, signal: Variance) -> tuple[Variance, Memo]:
        # At the ceiling gelu is relu to rounding, and powers of 1/t in the gradients are still numbers.
        info = np.finfo(signal.value.dtype)
        s = signals.bounded_deviation(signal, int(info.minexp), min(100, int(info.maxexp) // 4 - 5))
        t = 1 / series.hypot(jnp.ones_like(s), s)
        _, tail = _gelu_tail(t**2)
        square = math.pi - tail
        total = Variance(signal.value * (square / (2 * math.pi)), signal.exponent).normalise()
        return total, _GeluMemo(s, t, s * t, tail, jnp.sqrt(square))

    def correlate(self, x: _GeluMemo, y: _GeluMemo, correlation: Correlation) -> tuple[Correlation, jax.Array]:
        one_minus, slope = of_patch_by_rows(_gelu_pair_map, x, y, correlation)
        return signals.positive_correlation(one_minus), slope

    def itself(self, x: _GeluMemo, correlation: Correlation) -> tuple[Correlation, jax.Array]:
        gap = x.t**2
        bend = (x.p**2 * x.t / jnp.sqrt(2 - gap)) * (5 - 2 * gap) / (2 - gap)
        slope = (math.pi - series.angle_from_gap(gap)[0] + bend) / x.size**2
        return signals.correlation_with_itself(correlation.one_minus), slope

    def refine(self, x: _GeluMemo, y: _GeluMemo, correlation: Correlation, after: Correlation) -> Correlation:
        gap, usual = correlation.one_minus, after.one_minus
        near = (usual < NEAR) & ((gap > 0) | (x.s != y.s))
        right = jax.lax.cond(
            jnp.any(near), lambda: jnp.where(near, _near_gap(x, y, jnp.where(near, gap, 0)), usual), lambda: usual
        )
        return signals.positive_correlation(right)
