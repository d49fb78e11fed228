"""phi(u) = exp(u), exp(-u^2) and sin(u + pi/4) have duals that are exponentials, or roots of quadratic forms."""

import functools
import math
from typing import Any, ClassVar, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np

from widelimit import series, signals, validation
from widelimit.activations.base import Activation, Memo, off_mean, parameter
from widelimit.activations.closed.trigonometric import (
    CentredWaveMemo,
    correlate_centred_waves,
    encode_centred_wave,
)
from widelimit.pytrees import changed, pytree
from widelimit.shapes import Float
from widelimit.signals import Correlation, Variance

_positive = functools.partial(validation.factor, positive=True)
LOG_4 = (1.38629150390625, 2.8572136406188345e-06)
"""log 4 as a number of 18 bits and the rest: a multiple of the first by up to 2^35 is exact in float64."""


def _correlate_squares(x: jax.Array, y: jax.Array, correlation: Correlation) -> tuple[Correlation, jax.Array]:
    """rho_after = exp(-E[(u - v)^2]/2) for the deviations x, y."""
    distance = (x - y) ** 2 / 2 + x * y * correlation.one_minus
    one_minus = -jnp.expm1(-distance)
    return signals.positive_correlation(one_minus), x * y * jnp.exp(-distance)


def _centred_memo(signal: Variance) -> tuple[Variance, CentredWaveMemo]:
    """Return 1 - exp(-s^2) with all digits, and the memo of sin U + cos U - E[cos U], U ~ N(0, signal).

    phi less its mean has its correlation, as exp(c) - 1 = sinh(c) + (cosh(c) - 1).
    """
    return encode_centred_wave(signal, 1.0, 1.0)


@final
@pytree
class Rbf(Activation):
    """phi(u) = sqrt(2) sin(sqrt(2 gamma) u + pi/4). Dual: exp(-gamma E[(u - v)^2]), the Gaussian kernel.

    Source: Rahimi and Recht 2007; Han et al. 2022, arXiv 2209.04121.

    Args:
        gamma: inverse square of the length, 1e-6 to 1e6.

    Raises:
        ValueError: gamma is NaN, infinite or out of range; TypeError: not a real number.
    """

    gamma: float | jax.Array = parameter(1.0, _positive)
    centred: bool = off_mean()
    name: ClassVar[str] = "rbf"

    def __call__(self, u: Float[jax.Array, "..."]) -> Float[jax.Array, "..."]:
        return math.sqrt(2) * jnp.sin(jnp.sqrt(2 * jnp.asarray(self.gamma, u.dtype)) * u + math.pi / 4)

    def less_mean(self) -> Activation:
        return changed(self, centred=True)

    def mean(self, deviation: Float[jax.Array, "..."]) -> Float[jax.Array, "..."]:
        return jnp.exp(-jnp.asarray(self.gamma, deviation.dtype) * deviation**2)

    def encode(self, signal: Variance) -> tuple[Variance, Memo]:
        gamma = jnp.asarray(self.gamma, signal.value.dtype)
        wave = Variance(2 * gamma * signal.value, signal.exponent).normalise()
        if self.centred:
            return _centred_memo(wave)
        one = Variance(jnp.ones_like(signal.value), jnp.zeros_like(signal.exponent))
        return one, signals.bounded_deviation(wave, int(np.finfo(gamma.dtype).minexp), signals.half_range(gamma.dtype))

    def correlate(self, x: Any, y: Any, correlation: Correlation) -> tuple[Correlation, jax.Array]:
        return (correlate_centred_waves if self.centred else _correlate_squares)(x, y, correlation)


@final
@pytree
class Exp(Activation):
    """phi(u) = a exp(b u). Dual: a^2 exp(b^2 E[(u + v)^2]/2).

    Source: Daniely et al. 2016, arXiv 1602.05897; Han et al. 2022, arXiv 2209.04121.

    Args:
        a: factor, 1e-6 to 1e6 in size.
        b: rate, 1e-6 to 1e6 in size.

    Raises:
        ValueError: a or b is NaN, infinite or out of range; TypeError: not real numbers.
    """

    a: float | jax.Array = parameter(1.0, validation.factor)
    b: float | jax.Array = parameter(1.0, validation.factor)
    centred: bool = off_mean()
    name: ClassVar[str] = "exp"

    def __call__(self, u: Float[jax.Array, "..."]) -> Float[jax.Array, "..."]:
        return self.a * jnp.exp(self.b * u)

    def less_mean(self) -> Activation:
        return changed(self, centred=True)

    def mean(self, deviation: Float[jax.Array, "..."]) -> Float[jax.Array, "..."]:
        return self.a * jnp.exp((self.b * deviation) ** 2 / 2)

    def encode(self, signal: Variance) -> tuple[Variance, Memo]:
        signal = signals.multiply(signal, self.b)
        info = np.finfo(signal.value.dtype)
        s = signals.bounded_deviation(signal, int(info.minexp), signals.half_range(info.dtype))
        # exp(2 s^2) = 4^exponent * value. The variance and not the square of its rounded root: s^2 may be a million.
        capped = Variance(signal.value, jnp.minimum(signal.exponent, signals.half_range(info.dtype)))
        twice = 2 * capped.value * signals.power_of_two(2 * capped.exponent, info.dtype)
        kept = twice < signals.EXPONENT_LIMIT * sum(LOG_4)
        inside = jnp.where(kept, twice, 0)
        count = jax.lax.stop_gradient(jnp.round(inside / sum(LOG_4)))
        value = jnp.exp((inside - count * LOG_4[0]) - count * LOG_4[1])
        exponent = jnp.where(kept, count, signals.EXPONENT_LIMIT).astype(jnp.int32)
        total = signals.multiply(Variance(value, exponent), self.a)
        if not self.centred:
            return total, s
        rest, memo = _centred_memo(signal)  # E[phi^2] (1 - exp(-s^2)) is left
        return Variance(total.value * rest.value, total.exponent + rest.exponent).normalise(), memo

    def correlate(self, x: Any, y: Any, correlation: Correlation) -> tuple[Correlation, jax.Array]:
        return (correlate_centred_waves if self.centred else _correlate_squares)(x, y, correlation)


class _GaussianMemo(NamedTuple):
    """With q = 2 b s^2: t = 1/sqrt(1 + q), p = sqrt(q) t, x = p^2, root = sqrt(1 - x^2)."""

    t: jax.Array
    p: jax.Array
    x: jax.Array
    root: jax.Array


def _correlate_centred_gaussians(
    x: _GaussianMemo, y: _GaussianMemo, correlation: Correlation
) -> tuple[Correlation, jax.Array]:
    """rho_after = rho^2 sqrt(A A')/(r (1 + r)), r^2 = 1 - x x' rho^2, A = a (1 + a) of a^2 = 1 - x^2.

    1 - rho_after is a sum of squares, as r^2 = (a^2 + a'^2)/2 + (x - x')^2/2 + x x' (1 - rho^2) is, and the product of
    the roots the mean of A, A' less (sqrt A - sqrt A')^2/2.
    """
    gap = correlation.gap
    near = x.t + y.t > 1.4  # x - x' = p^2 - p'^2 = t'^2 - t^2, of numbers that are not both nearly 1
    step = jnp.where(near, (x.p - y.p) * (x.p + y.p), (y.t - x.t) * (x.t + y.t))
    further = step**2 / 2 + x.x * y.x * (gap * (2 - gap))
    square, middle = (x.root**2 + y.root**2) / 2 + further, (x.root + y.root) / 2
    root = jnp.sqrt(square)
    sizes = jnp.sqrt(x.root * (1 + x.root)), jnp.sqrt(y.root * (1 + y.root))
    apart = step * (x.x + y.x) / (x.root + y.root)  # a' - a
    spread = apart * (1 + 2 * middle) / (sizes[0] + sizes[1])
    excess = (further + apart**2 / 4) / (root + middle) + further + spread**2 / 2
    whole, common = root * (1 + root), sizes[0] * sizes[1]
    after = gap * (2 - gap) * (common / whole) + excess / whole
    inverse = 1 / root  # of quotients of quotients XLA makes one, with r^3 below it, which underflows
    slope = (1 - gap) * (common * inverse * inverse * inverse)
    return signals.positive_correlation(after), signals.with_sign(slope, correlation)


@final
@pytree
class Gaussian(Activation):
    """phi(u) = a exp(-b u^2). Dual: a^2/sqrt((1 + 2 b s^2)(1 + 2 b s'^2) - (2 b c)^2). Source: Williams 1997, eq. (14).

    With p = sqrt(q/(1 + q)), q = 2 b s^2, and Z = p p' rho the correlation is sqrt(r r'/(1 - Z^2)), r = sqrt(1 - p^4).

    Args:
        a: factor, 1e-6 to 1e6 in size.
        b: rate, 1e-6 to 1e6.

    Raises:
        ValueError: a or b is NaN, infinite or out of range; TypeError: not real numbers.
    """

    a: float | jax.Array = parameter(1.0, validation.factor)
    b: float | jax.Array = parameter(1.0, _positive)
    centred: bool = off_mean()
    name: ClassVar[str] = "gaussian"

    def __call__(self, u: Float[jax.Array, "..."]) -> Float[jax.Array, "..."]:
        return self.a * jnp.exp(-self.b * u**2)

    def less_mean(self) -> Activation:
        return changed(self, centred=True)

    def mean(self, deviation: Float[jax.Array, "..."]) -> Float[jax.Array, "..."]:
        return self.a / series.hypot(jnp.ones_like(deviation), jnp.sqrt(2 * jnp.asarray(self.b)) * deviation)

    def encode(self, signal: Variance) -> tuple[Variance, Memo]:
        rate = jnp.asarray(self.b, signal.value.dtype)
        signal = Variance(2 * rate * signal.value, signal.exponent).normalise()
        s = signals.bounded_deviation(signal, int(np.finfo(rate.dtype).minexp), signals.half_range(rate.dtype))
        t = 1 / series.hypot(jnp.ones_like(s), s)
        p = s * t
        slant = jnp.sqrt(1 + p**2)
        memo = _GaussianMemo(t, p, p**2, t * slant)
        value, exponent = t / slant, jnp.zeros_like(signal.exponent)
        if self.centred:  # t^2 p^4/(root (1 + root)) is left
            small = (signal.exponent < 0) | (signal.value == 0)
            square = jnp.where(small, signal.value * t**2, memo.x) ** 2
            value = square * (t / (slant * (1 + memo.root)))
            exponent = jnp.where(small, 2 * signal.exponent, 0)
        return signals.multiply(Variance(value, exponent).normalise(), self.a), memo

    def correlate(self, x: _GaussianMemo, y: _GaussianMemo, correlation: Correlation) -> tuple[Correlation, jax.Array]:
        if self.centred:
            return _correlate_centred_gaussians(x, y, correlation)
        gap, common = correlation.gap, x.p * y.p
        # In units of the larger t, so that no square of one underflows.
        unit = jax.lax.stop_gradient(jnp.maximum(x.t, y.t))
        separation, scaled_gap = (x.p - y.p) / unit, gap / unit / unit
        half = ((x.t / unit) ** 2 + (y.t / unit) ** 2 + separation**2) / 2 + common * scaled_gap
        square = half * (2 - unit * (unit * half))
        mean = jnp.sqrt(x.root / unit) * jnp.sqrt(y.root / unit)
        terms = (separation * (x.p + y.p)) ** 2 + ((x.root - y.root) / unit) ** 2
        after = (terms / 2 + common**2 * scaled_gap * (2 - gap)) / (square + mean * jnp.sqrt(square))
        slope = mean / jnp.sqrt(square) * ((common / unit) * (common / unit) * (1 - gap) / square)
        return signals.positive_correlation(after), signals.with_sign(slope, correlation)
