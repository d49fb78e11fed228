"""phi(u) = sin(u), cos(u) and u + sin(u)^2 (snake) have duals that are exponentials of the covariance."""

import math
from typing import Any, ClassVar, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np

from widelimit import series, signals, validation
from widelimit.activations.base import Activation, Memo, off_mean, parameter
from widelimit.pytrees import changed, pytree
from widelimit.shapes import Float
from widelimit.signals import Correlation, Variance


class _WaveMemo(NamedTuple):
    """s is the deviation of the argument, at least a floor; falls = 1 - exp(-2 s^2), shrinkage = true s / s."""

    s: jax.Array
    falls: jax.Array
    shrinkage: jax.Array


class _WavePair(NamedTuple):
    """distance = (s - s')^2/2 + s s' (1 - |rho|), falls = 1 - exp(-2 c) with c = s s' |rho|, and the excess.

    excess = (falls_x - falls) + (falls_y - falls), halved; it vanishes term by term at identical signals.
    """

    distance: jax.Array
    falls: jax.Array
    excess: jax.Array


def _wave_memo(signal: Variance) -> _WaveMemo:
    # At the floor s^2 is far below rounding, so that sin is linear and cos is 1; 1/s^4 is still finite.
    info = np.finfo(signal.value.dtype)
    floor, ceiling = -int(info.maxexp) // 8, signals.half_range(info.dtype)
    positive = signal.value > 0
    kept = Variance(jnp.where(positive, signal.value, 1), jnp.where(positive, signal.exponent, floor))
    s = signals.bounded_deviation(kept, floor, ceiling)
    return _WaveMemo(s, -jnp.expm1(-2 * s**2), signals.bounded_deviation(signal, int(info.minexp), ceiling) / s)


def _wave_pair(x: _WaveMemo, y: _WaveMemo, gap: jax.Array) -> _WavePair:
    separation, common = x.s - y.s, x.s * y.s
    falls = -jnp.expm1(-2 * (common * (1 - gap)))

    def excess(own: jax.Array, own_falls: jax.Array, separation: jax.Array) -> jax.Array:
        # exp(-2 c) - exp(-2 s^2); where s^2 is much smaller than c the first form overflows and the other is exact.
        further = own * separation + common * gap
        close = further > -1
        return jnp.where(close, -(1 - falls) * jnp.expm1(-2 * jnp.where(close, further, 0)), own_falls - falls)

    total = excess(x.s, x.falls, separation) + excess(y.s, y.falls, -separation)
    return _WavePair(separation**2 / 2 + common * gap, falls, total / 2)


def _gap_after(
    distance: jax.Array, x: jax.Array, y: jax.Array, pair: jax.Array, excess: jax.Array, *, square: bool = False
) -> jax.Array:
    """Compute 1 - exp(-distance) k for k = pair/sqrt(x y), or its square, where excess = (x + y)/2 - pair.

    A sum of terms that vanish at identical signals. Of signals of very different size these are large and cancel, and
    the gap is of order 1: there it is computed without rearranging it.
    """
    root_x, root_y = jnp.sqrt(x), jnp.sqrt(y)
    scale = root_x * root_y
    ratio, missing = pair / scale, (excess - ((x - y) / (root_x + root_y)) ** 2 / 2) / scale
    if square:
        ratio, missing = ratio**2, missing * (1 + ratio)
    close = (distance < 1) & (x < 2 * y) & (y < 2 * x)
    gap = jnp.where(close, missing, 0) - jnp.expm1(-jnp.where(close, distance, 0)) * jnp.where(close, ratio, 0)
    return signals.within(jnp.where(close, gap, 1 - jnp.exp(-distance) * ratio))


_LINEAR = 0.7
"""Deviations up to which sin is taken as linear and the rest: c^2 <= 1/4."""
_TERMS = (
    *(0.0, 1 / 6, -1 / 180, 1 / 2835, -1 / 37800, 1 / 467775, -691 / 3831077250, 2 / 127702575, -3617 / 2605132530000),
    *(43867 / 350813659321125, -174611 / 15313294652906250),
)
_LOG_SINHC = {"float64": _TERMS, "float32": _TERMS[:6]}
"""log(sinh(c)/c) in powers of c^2 <= 1/4, B_2k 4^k/(2k (2k)!)."""


def _sines(x: _WaveMemo, y: _WaveMemo, pair: _WavePair, gap: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Compute (gap after, slope for rho >= 0) of phi = sin: correlation exp(-distance) falls/sqrt(falls_x falls_y).

    That is sinh(c)/sqrt(sinh(s^2) sinh(s'^2)). Of small signals sin is almost linear: there c/(s s') is taken out.
    """
    small = (x.s < _LINEAR) & (y.s < _LINEAR)
    s, t = (jnp.where(small, memo.s, 0) for memo in (x, y))
    c = s * t * (1 - gap)
    _, towards_x, towards_y = series.divided_differences(_LOG_SINHC, s**4, t**4, c**2)
    rise_x, rise_y = s * ((s - t) + t * gap) * (s**2 + c), t * ((t - s) + s * gap) * (t**2 + c)
    further = rise_x * towards_x + rise_y * towards_y
    gap = jnp.where(
        small,
        gap - (1 - gap) * jnp.expm1(-further / 2),
        _gap_after(pair.distance, x.falls, y.falls, pair.falls, pair.excess),
    )
    decay = jnp.exp(-pair.distance)
    slope = decay * (2 - pair.falls) * ((x.s / jnp.sqrt(x.falls)) * (y.s / jnp.sqrt(y.falls)))
    return gap, slope


def _cosines(x: _WaveMemo, y: _WaveMemo, pair: _WavePair) -> tuple[jax.Array, jax.Array]:
    """Compute (gap after, slope for rho >= 0) of phi = cos, whose correlation is even in rho."""
    gap = _gap_after(pair.distance, 2 - x.falls, 2 - y.falls, 2 - pair.falls, -pair.excess)
    decay = jnp.exp(-pair.distance)
    slope = decay * pair.falls * ((x.s / jnp.sqrt(2 - x.falls)) * (y.s / jnp.sqrt(2 - y.falls)))
    slope = slope * (x.shrinkage * y.shrinkage) ** 2
    return gap, slope


def _sine_variance(signal: Variance, falls: jax.Array, s: jax.Array) -> Variance:
    """E[sin(u)^2] = (1 - exp(-2 s^2))/2, with the exponent of a small signal."""
    small = (signal.exponent < 0) | (signal.value == 0)
    value = jnp.where(small, signal.value * (falls / (2 * s**2)), falls / 2)
    return Variance(value, jnp.where(small, signal.exponent, 0)).normalise()


class _SinMemo(NamedTuple):
    wave: _WaveMemo
    odd: jax.Array
    even: jax.Array


class CentredWaveMemo(NamedTuple):
    """The waves U and U/sqrt(2), and the shares of sin U and of cos U less its mean."""

    wave: _WaveMemo
    half: _WaveMemo
    odd: jax.Array
    even: jax.Array


def encode_centred_wave(signal: Variance, odd: Any, even: Any) -> tuple[Variance, CentredWaveMemo]:
    """Return (variance, memo) of odd sin U + even (cos U - E[cos U]), U ~ N(0, signal).

    E[(cos U)^2] - E[cos U]^2 = (1 - exp(-s^2))^2/2: all digits of small signals stay.
    """
    wave, half = _wave_memo(signal), _wave_memo(signals.multiply(signal, math.sqrt(0.5)))
    small = (signal.exponent < 0) | (signal.value == 0)
    root = jnp.where(small, signal.value * (half.falls / (2 * half.s**2)), half.falls)
    rest = Variance(root**2 / 2, jnp.where(small, 2 * signal.exponent, 0)).normalise()
    sizes = (jnp.asarray(size, signal.value.dtype) for size in (odd, even))
    parts = (_sine_variance(signal, wave.falls, wave.s), rest)
    total, *shares = signals.add_variances(*map(signals.multiply, parts, sizes))
    return total, CentredWaveMemo(wave, half, *shares)


def correlate_centred_waves(
    x: CentredWaveMemo, y: CentredWaveMemo, correlation: Correlation
) -> tuple[Correlation, jax.Array]:
    """Return the correlation of odd sin U + even (cos U - E[cos U]), and its slope.

    That of cos U less its mean is the square of that of sin(U/sqrt(2)).
    """
    gap = correlation.gap
    odd, odd_slope = _sines(x.wave, y.wave, _wave_pair(x.wave, y.wave, gap), gap)
    root, root_slope = _sines(x.half, y.half, _wave_pair(x.half, y.half, gap), gap)
    even, even_slope = root * (2 - root), 2 * (1 - root) * root_slope
    parts = (signals.correlation_from_gap(odd, correlation.positive), signals.positive_correlation(even))
    after = signals.sum_signals((x.odd, x.even), (y.odd, y.even), parts)
    return after, x.odd * y.odd * odd_slope + x.even * y.even * signals.with_sign(even_slope, correlation)


@final
@pytree
class Sin(Activation):
    """phi(u) = sin(a u + b). Dual: (exp(-E[(U - V)^2]/2) - cos(2 b) exp(-E[(U + V)^2]/2))/2 with U = a u, V = a v.

    Source: Pearce et al. 2019, arXiv 1906.05076. Taken as cos(b) sin(U) + sin(b) cos(U), which are uncorrelated.

    Args:
        a: angular frequency, 1e-6 to 1e6 in size.
        b: phase, in [-1e6, 1e6].

    Raises:
        ValueError: a or b is NaN, infinite or out of range; TypeError: not real numbers.
    """

    a: float | jax.Array = parameter(1.0, validation.factor)
    b: float | jax.Array = parameter(0.0, validation.offset)
    centred: bool = off_mean()
    name: ClassVar[str] = "sin"

    def __call__(self, u: Float[jax.Array, "..."]) -> Float[jax.Array, "..."]:
        return jnp.sin(self.a * u + self.b)

    def less_mean(self) -> Activation:
        return changed(self, centred=True)

    def mean(self, deviation: Float[jax.Array, "..."]) -> Float[jax.Array, "..."]:
        return jnp.sin(self.b) * jnp.exp(-((self.a * deviation) ** 2) / 2)

    def encode(self, signal: Variance) -> tuple[Variance, Memo]:
        signal = signals.multiply(signal, self.a)
        wave = _wave_memo(signal)
        phase = jnp.asarray(self.b, signal.value.dtype)
        if self.centred:
            return encode_centred_wave(signal, jnp.cos(phase), jnp.sin(phase))
        odd = signals.multiply(_sine_variance(signal, wave.falls, wave.s), jnp.cos(phase))
        even = signals.multiply(Variance(1 - wave.falls / 2, jnp.zeros_like(signal.exponent)), jnp.sin(phase))
        total, odd_share, even_share = signals.add_variances(odd, even)
        return total, _SinMemo(wave, odd_share, even_share)

    def correlate(self, x: Any, y: Any, correlation: Correlation) -> tuple[Correlation, jax.Array]:
        if self.centred:
            return correlate_centred_waves(x, y, correlation)
        pair = _wave_pair(x.wave, y.wave, correlation.gap)
        odd, odd_slope = _sines(x.wave, y.wave, pair, correlation.gap)
        even, even_slope = _cosines(x.wave, y.wave, pair)
        parts = (signals.correlation_from_gap(odd, correlation.positive), signals.positive_correlation(even))
        after = signals.sum_signals((x.odd, x.even), (y.odd, y.even), parts)
        return after, x.odd * y.odd * odd_slope + x.even * y.even * signals.with_sign(even_slope, correlation)


@final
@pytree
class Cos(Activation):
    """phi(u) = cos(a u). Dual: exp(-a^2 (s^2 + s'^2)/2) cosh(a^2 s s' rho). Source: Pearce et al. 2019.

    Args:
        a: angular frequency, 1e-6 to 1e6 in size.

    Raises:
        ValueError: a is NaN, infinite or out of range; TypeError: not a real number.
    """

    a: float | jax.Array = parameter(1.0, validation.factor)
    centred: bool = off_mean()
    name: ClassVar[str] = "cos"

    def __call__(self, u: Float[jax.Array, "..."]) -> Float[jax.Array, "..."]:
        return jnp.cos(self.a * u)

    def less_mean(self) -> Activation:
        return changed(self, centred=True)

    def mean(self, deviation: Float[jax.Array, "..."]) -> Float[jax.Array, "..."]:
        return jnp.exp(-((self.a * deviation) ** 2) / 2)

    def encode(self, signal: Variance) -> tuple[Variance, Memo]:
        if self.centred:
            return encode_centred_wave(signals.multiply(signal, self.a), 0.0, 1.0)
        wave = _wave_memo(signals.multiply(signal, self.a))
        return Variance(1 - wave.falls / 2, jnp.zeros_like(signal.exponent)).normalise(), wave

    def correlate(self, x: Any, y: Any, correlation: Correlation) -> tuple[Correlation, jax.Array]:
        if self.centred:
            return correlate_centred_waves(x, y, correlation)
        gap, slope = _cosines(x, y, _wave_pair(x, y, correlation.gap))
        return signals.positive_correlation(gap), signals.with_sign(slope, correlation)


class _SnakeMemo(NamedTuple):
    """The memo holds the wave sqrt(2) a u and the shares of its parts in the deviation of phi.

    The parts are u, the mean of sin^2 and the rest.
    """

    wave: _WaveMemo
    linear: jax.Array
    mean: jax.Array
    rest: jax.Array


@final
@pytree
class Snake(Activation):
    """phi(u) = u + sin(a u)^2/a. Dual: c + E[(1 - cos U)(1 - cos V)]/(4 a^2) with U = 2 a u, V = 2 a v.

    The expectation is (1 - exp(-q/2))(1 - exp(-q'/2)) + exp(-(q + q')/2) (cosh C - 1), q, q' and C the covariances of
    (U, V). Source: Ziyin et al. 2020, arXiv 2006.08195, for phi; Han et al. 2022, arXiv 2209.04121, for duals of this
    kind. The signal, the constant 1 - exp(-q/2) and cos U less its mean are uncorrelated.

    Args:
        a: frequency, 1e-6 to 1e6 in size.

    Raises:
        ValueError: a is NaN, infinite or out of range; TypeError: not a real number.
    """

    a: float | jax.Array = parameter(1.0, validation.factor)
    name: ClassVar[str] = "snake"

    def __call__(self, u: Float[jax.Array, "..."]) -> Float[jax.Array, "..."]:
        return u + jnp.sin(self.a * u) ** 2 / self.a

    def mean(self, deviation: Float[jax.Array, "..."]) -> Float[jax.Array, "..."]:
        return -jnp.expm1(-2 * (self.a * deviation) ** 2) / (2 * self.a)

    def encode(self, signal: Variance) -> tuple[Variance, Memo]:
        wave = _wave_memo(signals.multiply(signals.multiply(signal, self.a), math.sqrt(2)))
        mean = series.safe_divide(-jnp.expm1(-(wave.s**2)), math.sqrt(2) * wave.s)
        rest = series.safe_divide(wave.falls, 2 * wave.s)
        square = 1 + mean**2 + rest**2
        root = jnp.sqrt(square)
        total = Variance(signal.value * square, signal.exponent).normalise()
        return total, _SnakeMemo(wave, 1 / root, mean / root, rest / root)

    def correlate(self, x: _SnakeMemo, y: _SnakeMemo, correlation: Correlation) -> tuple[Correlation, jax.Array]:
        pair = _wave_pair(x.wave, y.wave, correlation.gap)
        falls = (x.wave.falls, y.wave.falls, pair.falls)
        gap = _gap_after(2 * pair.distance, *falls, pair.excess, square=True)
        parts = (correlation, signals.positive_correlation(gap))
        after = signals.sum_signals((x.linear, x.rest, x.mean), (y.linear, y.rest, y.mean), parts)
        swing = jnp.exp(-2 * pair.distance) * pair.falls * (2 - pair.falls) / 2
        return after, x.linear * y.linear * (1 + signals.with_sign(swing, correlation))
