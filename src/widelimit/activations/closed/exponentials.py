"""phi(u) = exp(u), exp(-u^2) and sin(u + pi/4) have duals that are exponentials, or roots of quadratic forms."""

import functools
import math
from typing import ClassVar, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np

from widelimit import series, signals, validation
from widelimit.activations.base import Activation, Memo, parameter
from widelimit.pytrees import pytree
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
    name: ClassVar[str] = "rbf"

    def __call__(self, u: Float[jax.Array, "..."]) -> Float[jax.Array, "..."]:
        return math.sqrt(2) * jnp.sin(jnp.sqrt(2 * jnp.asarray(self.gamma, u.dtype)) * u + math.pi / 4)

    def mean(self, deviation: Float[jax.Array, "..."]) -> Float[jax.Array, "..."]:
        return jnp.exp(-jnp.asarray(self.gamma, deviation.dtype) * deviation**2)

    def encode(self, signal: Variance) -> tuple[Variance, Memo]:
        gamma = jnp.asarray(self.gamma, signal.value.dtype)
        wave = Variance(2 * gamma * signal.value, signal.exponent).normalise()
        one = Variance(jnp.ones_like(signal.value), jnp.zeros_like(signal.exponent))
        return one, signals.bounded_deviation(wave, int(np.finfo(gamma.dtype).minexp), signals.half_range(gamma.dtype))

    def correlate(self, x: jax.Array, y: jax.Array, correlation: Correlation) -> tuple[Correlation, jax.Array]:
        return _correlate_squares(x, y, correlation)


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
    name: ClassVar[str] = "exp"

    def __call__(self, u: Float[jax.Array, "..."]) -> Float[jax.Array, "..."]:
        return self.a * jnp.exp(self.b * u)

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
        return signals.multiply(Variance(value, exponent), self.a), s

    def correlate(self, x: jax.Array, y: jax.Array, correlation: Correlation) -> tuple[Correlation, jax.Array]:
        return _correlate_squares(x, y, correlation)


class _GaussianMemo(NamedTuple):
    """With q = 2 b s^2: t = 1/sqrt(1 + q), p = sqrt(q) t, x = p^2, root = sqrt(1 - x^2)."""

    t: jax.Array
    p: jax.Array
    x: jax.Array
    root: jax.Array


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
    name: ClassVar[str] = "gaussian"

    def __call__(self, u: Float[jax.Array, "..."]) -> Float[jax.Array, "..."]:
        return self.a * jnp.exp(-self.b * u**2)

    def mean(self, deviation: Float[jax.Array, "..."]) -> Float[jax.Array, "..."]:
        return self.a / series.hypot(jnp.ones_like(deviation), jnp.sqrt(2 * jnp.asarray(self.b)) * deviation)

    def encode(self, signal: Variance) -> tuple[Variance, Memo]:
        rate = jnp.asarray(self.b, signal.value.dtype)
        signal = Variance(2 * rate * signal.value, signal.exponent).normalise()
        s = signals.bounded_deviation(signal, int(np.finfo(rate.dtype).minexp), signals.half_range(rate.dtype))
        t = 1 / series.hypot(jnp.ones_like(s), s)
        p = s * t
        slant = jnp.sqrt(1 + p**2)
        total = signals.multiply(Variance(t / slant, jnp.zeros_like(signal.exponent)), self.a)
        return total, _GaussianMemo(t, p, p**2, t * slant)

    def correlate(self, x: _GaussianMemo, y: _GaussianMemo, correlation: Correlation) -> tuple[Correlation, jax.Array]:
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
