"""phi(u) = sum_k a_k u^k has a dual that is a polynomial in rho, its finite Mehler series."""

import functools
import math
from collections.abc import Sequence
from typing import ClassVar, final

import jax
import jax.numpy as jnp

from widelimit import validation
from widelimit.activations.base import Activation, Memo, off_mean, parameter
from widelimit.pytrees import changed, pytree
from widelimit.series import polynomial, safe_divide, safe_sqrt
from widelimit.shapes import Float
from widelimit.signals import EXPONENT_LIMIT, Correlation, Variance, exponent_of, limit, power_of_two, with_sign, within

LARGEST_DEGREE = 10
"""The slope of the series is right to about 2 degree eps, and the pair phase costs four sums of so many terms.

Beyond it 64 eps still hold for a while, but in float32 the weights n!/(2^m m! (n - 2m)!)^2 leave the range at 20.
"""
_degree = functools.partial(validation.integer, at_least=1, below=LARGEST_DEGREE + 1)


def _in_hermite(n: int) -> list[float]:
    """Expand z^n in the normalised Hermite polynomials He_j/sqrt(j!): n!/(2^m m! sqrt(j!)) at j = n - 2 m."""
    weights = [0.0] * (n + 1)
    for m in range(n // 2 + 1):
        j = n - 2 * m
        weights[j] = math.factorial(n) / (2**m * math.factorial(m) * math.sqrt(math.factorial(j)))
    return weights


def _normalise(weights: Sequence[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Return (sum of squares, the weights over its root as one array (J, ...))."""
    stacked = jnp.stack(weights)
    square = jnp.sum(stacked**2, axis=0)
    return square, safe_divide(stacked, safe_sqrt(square))


def _powers(base: jax.Array, largest: int) -> list[jax.Array]:
    powers = [jnp.ones_like(base)]
    for _ in range(largest):
        powers.append(powers[-1] * base)
    return powers


def _correlate_series(x: jax.Array, y: jax.Array, correlation: Correlation) -> tuple[Correlation, jax.Array]:
    """rho_after = f(rho) = sum_j c_j rho^j with c_j = w_j w'_j, and its slope. Source: Daniely et al. 2016.

    With r = |rho| and w'_j with the sign of w_j, 1 - f(rho) is the sum of (w_j - w'_j)^2/2, of |c_j| (1 - r^j) for the
    terms c_j rho^j >= 0 and of |c_j| (1 + r^j) for the others; in 1 + f(rho) these two kinds change places. The powers
    are divided differences: nothing cancels at either end, where even functions have f = 1.
    """
    rho, gap = correlation.rho, correlation.gap
    zero = jnp.zeros_like(x[-1] * y[-1] * rho)
    value = [zero, zero]  # of the terms of sign + and of the others, at r
    rise, total, slope, whole, separation = [zero, zero], [zero, zero], zero, zero, zero
    for j in range(len(x) - 1, -1, -1):
        other = with_sign(y[j], correlation) if j % 2 else y[j]
        agree = x[j] * other >= 0
        other = jnp.where(agree, other, -other)
        weight = x[j] * other
        separation = separation + (x[j] - other) ** 2
        for k, own in enumerate((jnp.where(agree, weight, 0), jnp.where(agree, 0, weight))):
            value[k], total[k] = value[k] * (1 - gap) + own, total[k] + own
            rise[k] = rise[k] + (value[k] if j else 0)
        slope, whole = slope * rho + whole, whole * rho + x[j] * y[j]
    one_minus, one_plus = (separation / 2 + gap * rise[k] + total[1 - k] + value[1 - k] for k in (0, 1))
    return Correlation(within(one_minus), within(one_plus)), slope


@final
@pytree
class Monomial(Activation):
    """phi(u) = u^n. Dual: (s s')^n sum_j h_j^2 rho^j, h_j = n!/(2^m m! sqrt(j!)) for j = n - 2 m.

    Source: Daniely et al. 2016, arXiv 1602.05897; the Hermite expansion of z^n.

    Args:
        power: n, an integer from 1 to 10.

    Raises:
        ValueError: power out of range; TypeError: not an integer.
    """

    power: int = parameter(2, _degree, static=True)
    name: ClassVar[str] = "monomial"

    def __call__(self, u: Float[jax.Array, "..."]) -> Float[jax.Array, "..."]:
        return u**self.power

    def encode(self, signal: Variance) -> tuple[Variance, Memo]:
        weights = [jnp.full_like(signal.value, weight) for weight in _in_hermite(self.power)]
        moment = math.prod(range(1, 2 * self.power, 2))
        total = Variance(moment * signal.value**self.power, limit(signal).exponent * self.power)
        return total.normalise(), _normalise(weights)[1]

    def correlate(self, x: jax.Array, y: jax.Array, correlation: Correlation) -> tuple[Correlation, jax.Array]:
        return _correlate_series(x, y, correlation)


@final
@pytree
class Polynomial(Activation):
    """phi(u) = sum_k a_k u^k. Dual: sum_j h_j(s) h_j(s') rho^j with h_j the coefficients of phi(s z) in He_j/sqrt(j!).

    h_j(s) = sum_k a_k s^k k!/(2^m m! sqrt(j!)) over k = j + 2 m. Source: Daniely et al. 2016, arXiv 1602.05897. Where
    the terms of an h_j cancel, so do its digits.

    Args:
        coefficients: (a_0, a_1, ...), up to 11 of them, in [-1e6, 1e6]; the largest at least 1e-6 in size.

    Raises:
        ValueError: no coefficients or too many, one is NaN, infinite or out of range, or all are below 1e-6 in size.
        TypeError: not a sequence of real numbers.
    """

    coefficients: tuple[float | jax.Array, ...]
    centred: bool = off_mean()
    name: ClassVar[str] = "polynomial"

    def __post_init__(self) -> None:
        if not isinstance(self.coefficients, Sequence) or isinstance(self.coefficients, str | bytes):
            raise TypeError(f"coefficients must be a sequence of numbers, got {type(self.coefficients).__name__}.")
        object.__setattr__(self, "coefficients", tuple(self.coefficients))
        if not 0 < len(self.coefficients) <= LARGEST_DEGREE + 1:
            raise ValueError(f"1 to {LARGEST_DEGREE + 1} coefficients are needed, got {len(self.coefficients)}.")
        for k, value in enumerate(self.coefficients):
            validation.offset(f"coefficients[{k}]", value)
        least = 1 / validation.LARGEST_FACTOR
        if not validation.traced(*self.coefficients) and max(abs(float(v)) for v in self.coefficients) < least:
            raise ValueError(f"one of the coefficients must be at least {least:g} in size, got {self.coefficients}.")

    def __call__(self, u: Float[jax.Array, "..."]) -> Float[jax.Array, "..."]:
        return polynomial(self.coefficients, u)

    def less_mean(self) -> Activation:
        return changed(self, coefficients=(0.0, *self.coefficients[1:]), centred=True)

    def encode(self, signal: Variance) -> tuple[Variance, Memo]:
        signal = limit(signal)
        dtype = signal.value.dtype
        coefficients = [jnp.asarray(value, dtype) for value in self.coefficients]
        # Everything is divided by 2^largest, the size of the largest a_k s^k.
        sizes = [
            jnp.where(
                (value != 0) & ((signal.value > 0) | (k == 0)),
                k * signal.exponent + exponent_of(jax.lax.stop_gradient(value)),
                -(LARGEST_DEGREE + 1) * EXPONENT_LIMIT,
            )
            for k, value in enumerate(coefficients)
        ]
        largest = jnp.max(jnp.stack(sizes), axis=0)
        weights = [jnp.zeros_like(signal.value)] * len(coefficients)
        for k, (value, power) in enumerate(
            zip(coefficients, _powers(safe_sqrt(signal.value), len(sizes)), strict=False)
        ):
            term = value * power * power_of_two(k * signal.exponent - largest, dtype)
            weights = [w + term * c for w, c in zip(weights, _in_hermite(k), strict=False)] + weights[k + 1 :]
        square, normalised = _normalise([jnp.zeros_like(weights[0]), *weights[1:]] if self.centred else weights)
        return Variance(square, largest).normalise(), normalised

    def correlate(self, x: jax.Array, y: jax.Array, correlation: Correlation) -> tuple[Correlation, jax.Array]:
        return _correlate_series(x, y, correlation)


@final
@pytree
class Hermite(Activation):
    """phi(u) = He_n(u)/sqrt(n!), probabilists' He_n. Dual for unit variances: rho^n. Source: Daniely et al. 2016.

    For all others He_n(s z) = sum_m n!/(m! (n - 2 m)!) ((s^2 - 1)/2)^m s^(n - 2 m) He_{n - 2 m}(z).

    Args:
        degree: n, an integer from 1 to 10.

    Raises:
        ValueError: degree out of range; TypeError: not an integer.
    """

    degree: int = parameter(2, _degree, static=True)
    centred: bool = off_mean()
    name: ClassVar[str] = "hermite"

    def __call__(self, u: Float[jax.Array, "..."]) -> Float[jax.Array, "..."]:
        before, value = jnp.ones_like(u), u
        for k in range(1, self.degree):
            before, value = value, (u * value - math.sqrt(k) * before) / math.sqrt(k + 1)
        return value

    def less_mean(self) -> Activation:
        return self if self.degree % 2 else changed(self, centred=True)

    def encode(self, signal: Variance) -> tuple[Variance, Memo]:
        n, dtype = self.degree, signal.value.dtype
        signal = limit(signal)
        # In units of 2^unit, the size of s or 1, whichever is larger.
        unit = jnp.maximum(signal.exponent, 0)
        shrink = power_of_two(signal.exponent - unit, dtype)
        excess = signal.value * shrink**2 - power_of_two(-2 * unit, dtype)
        deviations, excesses = _powers(safe_sqrt(signal.value) * shrink, n), _powers(excess / 2, n // 2)
        weights = [jnp.zeros_like(signal.value)] * (n + 1)
        least = 2 if self.centred else 0  # the lowest power of s, taken out
        for m in range((n - least) // 2 + 1):
            j = n - 2 * m
            factor = math.sqrt(math.factorial(n)) / (math.factorial(m) * math.sqrt(math.factorial(j)))
            weights[j] = factor * excesses[m] * deviations[j - least]
        square, normalised = _normalise(weights)
        lowest = Variance(signal.value**least, least * (signal.exponent - unit))
        return Variance(square * lowest.value, n * unit + lowest.exponent).normalise(), normalised

    def correlate(self, x: jax.Array, y: jax.Array, correlation: Correlation) -> tuple[Correlation, jax.Array]:
        return _correlate_series(x, y, correlation)
