"""Pairs of centred Gaussian signals are described without cancellation.

A pair (u, v) is its two standard deviations and its correlation rho. Near rho = 1 the angle between the signals is
sqrt(2 (1 - rho)), so a rounding error of eps in rho is an error of sqrt(eps) in every kernel that depends on the
angle. The recursions of this library therefore carry the two gaps 1 - rho and 1 + rho.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from widelimit.series import safe_divide, safe_sqrt
from widelimit.shapes import Float

ROW_BY_ROW = 2**14
"""Pairs of a patch of the processor: in larger matrices near pairs are made a list."""
LISTED = 2**16
"""Near pairs of the list that are computed at once."""
TOGETHER = 16
"""Rows of a large matrix that a loop over rows takes at once."""

SMALL_GAP = {"float64": 1e-2, "float32": 1e-1}
"""Gap below which the rounding of a matrix product is over 10 eps in the angle: |u -+ v|^2 is used instead."""

EXPONENT_LIMIT = 2**24
"""4^(2^24) is beyond every float, and ten times this limit, a tenth power's exponent, is far inside int32."""
HALF_PRECISION = {"float64": (11, 25), "float32": (8, 11)}
"""(exponent bits, mantissa bits) of a number whose square is exact."""


def power_of_two(exponent: jax.Array, dtype: Any) -> jax.Array:
    """Compute 2^exponent, exactly (XLA's exp2 is not), from its bits; 0 and inf beyond normal numbers."""
    info = np.finfo(dtype)
    integer = jnp.int64 if info.bits == 64 else jnp.int32
    kept = jnp.clip(exponent, info.minexp - 1, info.maxexp).astype(integer)  # the bits of these two are 0 and inf
    return jax.lax.bitcast_convert_type((kept + (info.maxexp - 1)) << info.nmant, dtype)


def exponent_of(value: jax.Array) -> jax.Array:
    """Return the int32 k with 2^(k-1) <= |value| < 2^k, from the bits; for 0 and subnormals that of the smallest."""
    info = np.finfo(value.dtype)
    bits = jax.lax.bitcast_convert_type(jnp.abs(value), jnp.int64 if info.bits == 64 else jnp.int32)
    return ((bits >> info.nmant) - (info.maxexp - 2)).astype(jnp.int32)


class Variance(NamedTuple):
    """The variance of Gaussian signals is value * 4^exponent, arrays of one shape; the exponent is an int32.

    Powers of two are exact, so that inputs of any size a float holds pass through any number of layers without
    overflow; the square root, whose rounding errors would add up over layers, is taken only at the end.
    """

    value: jax.Array
    exponent: jax.Array
    among: Any = None
    """The state of pairs of sites of one input, where a later layer averages over sites."""
    structure: Any = None
    """The `Structure` of sequences and graphs: which sites are there, and which are joined."""

    def normalise(self) -> Variance:
        """Return the same variance with value in [1/4, 1); 0 stays as it is."""
        power = jnp.where(self.value == 0, 0, (exponent_of(jax.lax.stop_gradient(self.value)) + 1) >> 1)
        return Variance(self.value * power_of_two(-2 * power, self.value.dtype), self.exponent + power)

    @property
    def deviation(self) -> jax.Array:
        """Return the standard deviation."""
        return safe_sqrt(self.value) * power_of_two(self.exponent, self.value.dtype)


def deviation_of(signal: Variance) -> jax.Array:
    """Return the standard deviation."""
    return signal.deviation


def variance_of(deviation: jax.Array) -> Variance:
    """Return the variance of signals of these standard deviations."""
    power = jnp.where(deviation == 0, 0, exponent_of(jax.lax.stop_gradient(deviation)))
    return Variance((deviation * power_of_two(-power, deviation.dtype)) ** 2, power).normalise()


def limit(signal: Variance) -> Variance:
    """Limit the exponent so that no further layer carries it out of int32: beyond the limit the signal is 0 or inf."""
    return Variance(signal.value, jnp.clip(signal.exponent, -EXPONENT_LIMIT, EXPONENT_LIMIT))


def bounded_deviation(signal: Variance, low: int, high: int) -> jax.Array:
    """Clip the deviation's power of two to [2^low, 2^high]; the mantissa stays.

    So two signals beyond the range remain different unless they differ by a power of two, and nothing is infinite.
    """
    return Variance(signal.value, jnp.clip(signal.exponent, low, high)).deviation


def largest_exponent(signal: Variance, axes: tuple[int, ...]) -> jax.Array:
    """Return the largest exponent along these axes, which stay with size 1; 0 where all signals are 0."""
    power = jnp.where(signal.value > 0, signal.exponent, -2 * EXPONENT_LIMIT)
    highest = jnp.max(power, axis=axes, keepdims=True)
    return jnp.where(highest > -2 * EXPONENT_LIMIT, highest, 0)


def relative_deviation(signal: Variance, exponent: jax.Array) -> jax.Array:
    """Return the standard deviations over 2^exponent."""
    power = jnp.where(signal.value > 0, signal.exponent - exponent, 0)
    return safe_sqrt(signal.value) * power_of_two(power, signal.value.dtype)


def half_range(dtype: Any) -> int:
    """Return the largest exponent e with (4 * 2^e)^2 finite."""
    return int(np.finfo(dtype).maxexp // 2 - 3)


def multiply(signal: Variance, factor: float | jax.Array) -> Variance:
    """Return the variance of factor * u."""
    factor = jnp.asarray(factor, signal.value.dtype)
    return limit(Variance(signal.value * factor**2, signal.exponent).normalise())


def add_variances(first: Variance, second: Variance) -> tuple[Variance, jax.Array, jax.Array]:
    """Return (variance of the sum of two uncorrelated signals, the shares a, b of both in its deviation).

    a^2 + b^2 = 1: the smaller square from its own quotient, the other as the rest of 1. If both signals are 0, a = 1.
    """
    powers = [jnp.where(part.value > 0, part.exponent, -2 * EXPONENT_LIMIT) for part in (first, second)]
    exponent = jnp.maximum(*powers)
    a, b = (
        part.value * power_of_two(2 * (power - exponent), part.value.dtype)
        for part, power in zip((first, second), powers, strict=True)
    )
    total = a + b
    smaller = safe_divide(jnp.where(a < b, a, b), total)
    squares = jnp.where(a < b, smaller, 1 - smaller), jnp.where(a < b, 1 - smaller, smaller)
    return Variance(total, exponent).normalise(), safe_sqrt(squares[0]), safe_sqrt(squares[1])


def _renamed(old: str, new: str, value: Any) -> Any:
    message = f"{old!r} is now called {new!r}; the old name goes with version 0.3."
    warnings.warn(message, DeprecationWarning, stacklevel=3)
    return value


class Correlation(NamedTuple):
    """The correlation rho of a pair of signals is held as (1 - rho, 1 + rho), each right to rounding.

    Both are arrays of one shape with entries in [0, 2]; whichever is small keeps all its digits.
    """

    one_minus: jax.Array
    one_plus: jax.Array

    @property
    def rho(self) -> jax.Array:
        """Return the correlation, in [-1, 1]."""
        return (self.one_plus - self.one_minus) / 2

    @property
    def positive(self) -> jax.Array:
        """Return True where rho >= 0."""
        return self.one_minus <= self.one_plus

    @property
    def gap(self) -> jax.Array:
        """Return 1 - abs(rho): the gap to the nearer end, in [0, 1]."""
        return jnp.where(self.positive, self.one_minus, self.one_plus)

    @property
    def below(self) -> Any:
        """Return `one_minus`, under its former name."""
        return _renamed("below", "one_minus", self.one_minus)

    @property
    def above(self) -> Any:
        """Return `one_plus`, under its former name."""
        return _renamed("above", "one_plus", self.one_plus)

    @property
    def near(self) -> Any:
        """Return `gap`, under its former name."""
        return _renamed("near", "gap", self.gap)


def __getattr__(name: str) -> Any:
    if name == "Gaps":
        return _renamed("Gaps", "Correlation", Correlation)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def scaled(normalised: jax.Array, x: Variance, y: Variance) -> jax.Array:
    """Return normalised * s_x * s_y; out of range only where the product is, and 0 where `normalised` is."""
    value = (safe_sqrt(x.value) * normalised) * safe_sqrt(y.value)
    exponent = x.exponent + y.exponent
    half = exponent >> 1
    info = np.finfo(value.dtype)
    for part in (half, exponent - half):
        value = value * power_of_two(jnp.clip(part, info.minexp, info.maxexp - 1), value.dtype)
    return value


def scaled_pairs(normalised: jax.Array, x: Variance, y: Variance) -> jax.Array:
    """Return `scaled` for all pairs of n and m signals, (n, m)."""
    return scaled(normalised, jax.tree.map(lambda leaf: leaf[:, None], x), y)


def correlation_from_rho(rho: jax.Array) -> Correlation:
    """Return a correlation in [-1, 1] given as such."""
    return Correlation(1 - rho, 1 + rho)


def _product(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Compute (p, e) with p + e = a b exactly, p the rounded product (Dekker 1971)."""
    a_head, b_head = (jax.lax.reduce_precision(v, *HALF_PRECISION[v.dtype.name]) for v in (a, b))
    a_tail, b_tail = a - a_head, b - b_head
    product = a * b
    return product, ((a_head * b_head - product) + a_head * b_tail + a_tail * b_head) + a_tail * b_tail


def correlation_from_covariance(x: Variance, c: jax.Array, y: Variance) -> Correlation:
    """1 - abs(rho) = (q q' - c^2)/(...), exactly, from (normalised) variances and the covariance of a pair.

    q q' - c^2 is taken from exact products, so that no digit is lost near rho = +-1. Where rounding has left c^2 above
    q q', the correlation is +-1.
    """
    c = c * power_of_two(-(x.exponent + y.exponent), c.dtype)
    (variances, low), (square, square_low) = _product(x.value, y.value), _product(c, c)
    common = safe_sqrt(variances)
    gap = jnp.maximum((variances - square) + (low - square_low), 0) / (common * (common + jnp.abs(c)))
    return correlation_from_gap(gap, c >= 0)


def correlation_with_itself(like: jax.Array) -> Correlation:
    """Return the correlation of a signal with itself, rho = 1, in the shape and dtype of `like`."""
    return Correlation(jnp.zeros_like(like), jnp.full_like(like, 2))


def correlation_from_gap(gap: jax.Array, positive: jax.Array) -> Correlation:
    """Return the correlation from 1 - abs(rho) and the sign of rho."""
    return Correlation(jnp.where(positive, gap, 2 - gap), jnp.where(positive, 2 - gap, gap))


def positive_correlation(gap: jax.Array) -> Correlation:
    """Return a correlation >= 0 from 1 - rho."""
    return Correlation(gap, 2 - gap)


def correlation_by_difference(one_minus: jax.Array, identical: jax.Array) -> Correlation:
    """Compute the correlation from a 1 - rho that is right to rounding only; it is set to 0 for identical signals."""
    return positive_correlation(within(one_minus - jax.lax.stop_gradient(jnp.where(identical, one_minus, 0))))


def within(gap: jax.Array) -> jax.Array:
    """Return the gap without a rounding error beyond [0, 2]; the difference is a constant to the derivative."""
    return gap - jax.lax.stop_gradient(gap - jnp.clip(gap, 0, 2))


def with_sign(value: jax.Array, correlation: Correlation) -> jax.Array:
    """Multiply by the sign of rho: the slope of what is even in rho."""
    return jnp.where(correlation.positive, value, -value)


def sum_signals(
    shares_x: Sequence[jax.Array], shares_y: Sequence[jax.Array], correlations: Sequence[Correlation]
) -> Correlation:
    """1 - rho = sum_k ((a_k - a'_k)^2/2 + a_k a'_k (1 - rho_k)) for sums of independent signals k; so is 1 + rho.

    Every term is positive: nothing cancels.

    Args:
        shares_x: a_k, standard deviations of the signals of one input over that of their sum; sum_k a_k^2 = 1.
        shares_y: a'_k, those of the other input.
        correlations: rho_k, of the first signals. Both inputs share the signals that follow (a constant, a bias), whose
            correlation is 1.
    """
    pairs = list(zip(shares_x, shares_y, strict=True))
    own, shared = pairs[: len(correlations)], pairs[len(correlations) :]
    common = [a * b for a, b in own]
    separation = [(a - b) ** 2 for a, b in own]
    squares = [sum_terms([*separation, *[(a + sign * b) ** 2 for a, b in shared]]) / 2 for sign in (-1, 1)]
    return Correlation(
        squares[0] + sum_terms([weight * part.one_minus for weight, part in zip(common, correlations, strict=True)]),
        squares[1] + sum_terms([weight * part.one_plus for weight, part in zip(common, correlations, strict=True)]),
    )


def sum_terms(terms: Sequence[jax.Array]) -> jax.Array:
    """Add at least one array from left to right."""
    return functools.reduce(jnp.add, terms)


def correlate_points(U: Float[jax.Array, "n k"], V: Float[jax.Array, "m k"], *, same: bool | jax.Array) -> Correlation:
    """Compute the correlation of all pairs of unit vectors, (n, m).

    With `same`, U is V and the gap of a row with itself is exactly 0 (if `same` is traced, that entry is meaningless).
    From the matrix product; where a pair is nearly parallel, from the product of the vectors less their mean, as inputs
    that are all alike keep their digits in it; where that too is lost in rounding, or a pair is nearly
    antiparallel, from |u -+ v|^2/2, which keeps all digits.
    A zero vector (a zero input of a network without bias) has correlation 0 with everything.
    """
    rho = jnp.matmul(U, V.T, precision="highest")
    positive = rho >= 0
    gap = 1 - jnp.abs(rho)
    itself = jnp.zeros((), dtype=bool) if same is False else same & jnp.eye(len(U), len(V), dtype=bool)
    required = (gap < SMALL_GAP[U.dtype.name]) & ~itself
    gap = jax.lax.cond(jnp.any(required), _by_differences, lambda *given: given[2], U, V, gap, positive, required)
    if same is True:
        gap, positive = jnp.where(itself, 0, gap), positive | itself
    return correlation_from_gap(gap, positive)


_PENDING = -1.0
"""Marks a gap (all are >= -eps) still to be computed from |u - v|^2/2; 2 * _PENDING: from |u + v|^2/2."""


def _by_differences(U: jax.Array, V: jax.Array, gap: jax.Array, positive: jax.Array, required: jax.Array) -> jax.Array:
    """Compute the `required` entries of the gap (n, m) again: see `correlate_points`."""
    centre = jnp.mean(V, axis=0)
    u, v = U - centre, V - centre
    size = (jnp.sum(u**2, axis=1)[:, None] + jnp.sum(v**2, axis=1)) / 2
    centred = size - jnp.matmul(u, v.T, precision="highest")
    enough = required & positive & (centred >= SMALL_GAP[U.dtype.name] * size)
    # One array for all, as every array that a loop reads costs compile time; gaps still to be computed are negative.
    given = jnp.where(enough, centred, jnp.where(required, jnp.where(positive, _PENDING, 2 * _PENDING), gap))
    return (_by_list if ROW_BY_ROW < given.size < 2**31 else _by_rows)(U, V, given)


def rows_together(n: int, m: int) -> int:
    """Return the rows of an (n, m) matrix that a loop over rows takes at once: of a processor's patch one by one."""
    return 1 if n * m <= ROW_BY_ROW else TOGETHER


def _sign(given: jax.Array) -> jax.Array:
    return jnp.where(given > 1.5 * _PENDING, 1, -1).astype(given.dtype)


def _by_rows(U: jax.Array, V: jax.Array, given: jax.Array) -> jax.Array:
    """Replace what is pending, in rows that have any; a large matrix some rows at a time."""

    def some(at: tuple[jax.Array, ...]) -> jax.Array:
        u, given, lowest = at

        def differences() -> jax.Array:
            apart = _sign(given)[..., None] * u[..., None, :] - V
            return jnp.where(given > _PENDING / 2, given, jnp.sum(apart**2, axis=-1) / 2)

        return jnp.asarray(jax.lax.cond(jnp.min(lowest) <= _PENDING / 2, differences, lambda: given))

    lowest = jnp.min(given, axis=1)
    group = math.gcd(len(U), rows_together(*given.shape))
    if group == 1:
        return jnp.asarray(jax.lax.map(some, (U, given, lowest)))
    groups = jax.tree.map(lambda leaf: leaf.reshape(-1, group, *leaf.shape[1:]), (U, given, lowest))
    return jnp.asarray(jax.lax.map(some, groups)).reshape(given.shape)


@jax.custom_jvp
def _by_list(U: jax.Array, V: jax.Array, given: jax.Array) -> jax.Array:
    """Replace what is pending, by a list of these pairs: LISTED of them at once, until none is left."""
    columns = given.shape[1]
    found = jnp.cumsum((given <= _PENDING / 2).ravel(), dtype=jnp.int32)  # the k-th pair is where this becomes k

    def step(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        done, gap = state
        # Beyond the last pair this is the size, a place outside, where nothing is written.
        at = jnp.searchsorted(found, done + jnp.arange(1, LISTED + 1, dtype=jnp.int32)).astype(jnp.int32)
        i, j = at // columns, at % columns
        apart = _sign(given[i, j])[:, None] * U[i] - V[j]
        return done + LISTED, gap.at[i, j].set(jnp.sum(apart**2, axis=1) / 2, mode="drop")

    return jax.lax.while_loop(lambda state: state[0] < found[-1], step, (jnp.zeros((), jnp.int32), given))[1]


@_by_list.defjvp
def _slope_by_rows(at: tuple[jax.Array, ...], along: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
    return jax.jvp(_by_rows, at, along)  # a loop of unknown length cannot be transposed
