"""Pair maps are looked up in a table (`tables`, `piecewise.tabulation`)."""

import functools
import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from widelimit import series
from widelimit.activations.row_groups import by_rows
from widelimit.activations.tabulated.chunks import Chunks, chunks_memo, mean_and_slope_by_x
from widelimit.activations.tabulated.coincident import CoincidentMemo, coincident_memo, coincident_values, kink_pair
from widelimit.activations.tabulated.expansions import ExpansionMemo, contract, contract_rectangle, expansion_memo
from widelimit.activations.tabulated.moments import with_growth
from widelimit.activations.tabulated.tables import FURTHEST, OWN_TERMS, Part, Table, polynomials
from widelimit.signals import Correlation, Variance, correlation_from_gap, with_sign


class PartMemo(NamedTuple):
    """The memo holds the values of one part at the deviations of n inputs."""

    separation: ExpansionMemo
    share: jax.Array
    mean_slope: ExpansionMemo
    coincident: tuple[CoincidentMemo, ...]


class TableMemo(NamedTuple):
    """The memo has, for n inputs, the place of the deviation in the table's range, that of the kink, and both parts."""

    place: jax.Array
    kink: jax.Array
    itself: jax.Array
    """dR/drho of an input with itself."""
    even: PartMemo | None
    odd: PartMemo | None


def look_up(table: Table, signal: Variance) -> tuple[Variance, TableMemo]:
    """Look up E[phi(u)^2] for u ~ N(0, signal), and the memo; NaN outside of the table's range."""
    table, deviation = table.cast(signal.value.dtype), signal.deviation
    place = table.places.of(deviation)
    longer = polynomials(place, OWN_TERMS)
    growth, itself = (jnp.tensordot(c, longer, 1, precision="highest") for c in (table.growth, table.itself))
    after = with_growth(jnp.exp(growth), table.order, signal)

    def part_of(part: Part | None) -> PartMemo | None:
        if part is None:
            return None
        share = jnp.tensordot(part.share, longer[: len(part.share)], 1, precision="highest")
        coincident = tuple(coincident_memo(one, longer) for one in part.coincident)
        means = expansion_memo(part.mean_slope, longer)
        return PartMemo(expansion_memo(part.separation, longer), share, means, coincident)

    tiny = np.finfo(deviation.dtype).tiny
    kink = jnp.asarray(table.kink) / jnp.maximum(deviation, table.kink / FURTHEST + tiny)  # in deviations
    return after, TableMemo(place, kink, itself, part_of(table.even), part_of(table.odd))


def mean_of(table: Table, deviation: jax.Array) -> jax.Array:
    """Look up E[phi(u)] for u ~ N(0, deviation^2); NaN outside of the table's range."""
    table = table.cast(deviation.dtype)
    assert table.mean is not None
    longer = polynomials(table.places.of(deviation), OWN_TERMS)
    share, growth = (jnp.tensordot(c, longer, 1, precision="highest") for c in (table.mean, table.growth))
    return share * jnp.exp(growth / 2) * deviation**table.order


def pair_map(table: Table, x: TableMemo, y: TableMemo, correlation: Correlation) -> tuple[jax.Array, jax.Array]:
    """Return (gap to the nearer end after phi, d rho_after/d rho)."""
    gap, sign = correlation.gap, with_sign(jnp.ones_like(correlation.one_minus), correlation)
    psi = series.angle_from_gap(gap)[0]
    square = (x.place - y.place) ** 2
    kinked = any(part is not None and part.coincident for part in (table.odd, table.even))
    kink_pairs = [kink_pair(x.kink, place, gap, psi) for place in (y.kink, -y.kink) if kinked]
    separation = extra_mean = extra_slope = jnp.zeros_like(gap)
    mean_slopes: list[Any] = []
    coincident: list[tuple[jax.Array, jax.Array, jax.Array]] = []
    for part, one, other, even in ((table.odd, x.odd, y.odd, False), (table.even, x.even, y.even, True)):
        if part is None or one is None or other is None:
            continue
        distance = square * contract(part.separation, one.separation, other.separation)[0]
        whole = contract_rectangle if table.looped else contract
        coefficients: Any = whole(part.mean_slope, one.mean_slope, other.mean_slope)
        if not (even and table.one_sided):
            kinds = zip(part.coincident, one.coincident, other.coincident, kink_pairs, strict=False)
            coincident = [coincident_values(kind, a, b, at, gap) for kind, a, b, at in kinds]
        for i, (add, mean, slope) in enumerate(coincident):
            factor = (sign if even else 1) * (-1 if even and table.one_sided and i else 1)
            distance = distance + add if i == 0 else distance
            extra_mean, extra_slope = extra_mean + factor * mean, extra_slope + factor * slope
        if even:  # half the squared sum in place of that of the difference
            distance = jnp.where(correlation.positive, distance, one.share + other.share - distance)
            coefficients = jax.tree.map(lambda c: sign * c, coefficients)
        separation = separation + distance
        mean_slopes.append(coefficients)
    mean, slope = _mean_and_slope(_added(mean_slopes), psi, gap)
    if table.chunks:
        more, by_x = _of_chunks(table.chunks, x, y, psi * (4 / math.pi) - 1, sign)
        mean, slope = mean + more, slope + more + series.safe_sqrt(gap / (2 - gap)) * (4 / math.pi) * by_x
    return jnp.maximum(separation + gap * (mean + extra_mean), 0), slope + extra_slope


def correlate_by_table(
    table: Table, x: TableMemo, y: TableMemo, correlation: Correlation, *, remember: bool = True
) -> tuple[Correlation, jax.Array]:
    """Compute `Activation.correlate` by a table; without `remember` a gradient computes pairs again.

    Otherwise it would keep some 500 numbers of every pair.
    """
    pairs = functools.partial(pair_map, table.cast(correlation.one_minus.dtype))
    gap, slope = by_rows(pairs if remember else jax.checkpoint(pairs, prevent_cse=False), x, y, correlation)
    return correlation_from_gap(gap, correlation.positive), slope


def _of_chunks(
    chunks: Chunks, x: TableMemo, y: TableMemo, at: jax.Array, sign: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Compute H and dH/dx of chunks; this costs nothing where all chunks are empty."""

    def add(places: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        one, other = (chunks_memo(chunks, polynomials(place, chunks.rows.shape[-1])) for place in places)
        return mean_and_slope_by_x(chunks, one, other, at, sign)

    none = jnp.zeros(jnp.broadcast_shapes(at.shape, x.place.shape, y.place.shape), at.dtype)
    found: tuple[jax.Array, jax.Array] = jax.lax.cond(
        jnp.asarray(chunks.block)[0] >= 0, add, lambda _: (none, none), (x.place, y.place)
    )
    return found


def _added(terms: list[Any]) -> Any:
    """Add coefficients: arrays, or lists of unequal lengths."""
    if isinstance(terms[0], list):
        return [sum(row[1:], row[0]) for row in itertools.zip_longest(*terms, fillvalue=jnp.zeros(()))]
    return sum(terms[1:], terms[0])


def _mean_and_slope(coefficients: Any, psi: jax.Array, gap: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Compute H and dR/drho = H + tan(psi/2) dH/dpsi, from H in powers of the halves."""
    if len(coefficients) == 1:
        return coefficients[0], coefficients[0]
    x = psi * (4 / math.pi) - 1
    if isinstance(coefficients, list):
        (even, even_slope), (odd, odd_slope) = (
            series.polynomial_and_slope(coefficients[half::2], 2 * x**2 - 1) for half in (0, 1)
        )
    else:
        halves = coefficients.reshape(-1, 2, *coefficients.shape[1:])
        (even, odd), (even_slope, odd_slope) = series.looped_polynomial(halves, 2 * x**2 - 1)
    by_psi = (4 / math.pi) * (odd + 4 * x * (even_slope + x * odd_slope))
    mean = even + x * odd
    return mean, mean + series.safe_sqrt(gap / (2 - gap)) * by_psi
