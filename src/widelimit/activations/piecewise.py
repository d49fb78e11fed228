"""Polynomials between kinks: hard tanh, hard swish, clip, relu6, shrinkage.

With z = u/s a phi splits into an even and an odd part, each known from its half line z > 0:

    F(z) = p_0 + p_1 z + p_2 z^2 + sum_k (j_k (z - h_k)_+ + g_k (z - h_k)_+^2/2),    h_k = kink_k/s,

so F'' is a constant, point masses j_k and jumps g_k at +-h_k. By Price's theorem E[F' G'] at the correlation cos(psi)
is its value at 1 less an integral of E[F'' G''] over the angle, a sum over pairs of kinks of the integrals in
`corners`; averaged once more it is H in R = R(1) - near H (`tables`), which keeps gaps to relative accuracy.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from widelimit import series, validation
from widelimit.activations.base import Activation
from widelimit.activations.corners import SMALLEST, Corner, corner
from widelimit.activations.lookup import TableTrace, looked_up, pair_map
from widelimit.activations.numerical import RTOL
from widelimit.activations.piecewise_tables import tabulate_pieces
from widelimit.activations.ranges import by_rows, signed
from widelimit.activations.sharp import Jumps
from widelimit.activations.tables import FURTHEST, Table, half_octaves
from widelimit.pytrees import pytree
from widelimit.signals import Gaps, Variance, power_of_two

LARGEST_DEGREE = 2
_SHORT = 1.0
"""Intervals between the kinks of two inputs up to this length have a rule of their own: differences of tails cancel."""
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(8)
_ROUNDING = 1.0
"""eps of the square of the largest coefficient of F'': a third of it was seen (tests/test_piecewise.py)."""


class _Half(NamedTuple):
    """One part on the half line: p (3, ..), and j, g (K, ..) at the kinks beyond 0."""

    p: jax.Array
    j: jax.Array
    g: jax.Array


class _Kinks(NamedTuple):
    """Places h with the tail and the density of the normal law there, each (K, ..) or one of them."""

    h: jax.Array
    tail: jax.Array
    density: jax.Array


class _Trace(NamedTuple):
    kinks: _Kinks
    parts: tuple[_Half, _Half]
    """Even and odd."""
    even_share: jax.Array
    """E[F^2]/2 of the even part."""


def _kinks_at(h: jax.Array) -> _Kinks:
    return _Kinks(h, jax.scipy.special.erfc(h / math.sqrt(2)) / 2, jnp.exp(-(h**2) / 2) / math.sqrt(2 * math.pi))


def _tails(at: _Kinks) -> list[jax.Array]:
    """Integrals of z^j times the density from h to infinity, j = 0..4."""
    h, tail, density = at
    return [tail, density, h * density + tail, (h**2 + 2) * density, (h**3 + 3 * h) * density + 3 * tail]


def _square(a: list[jax.Array], b: list[jax.Array], moments: list[jax.Array]) -> jax.Array:
    """Integral of two polynomials times the density, from its moments."""
    terms = [x * y * moments[i + k] for (i, x), (k, y) in itertools.product(enumerate(a), enumerate(b))]
    return sum(terms[1:], terms[0])


def _local(half: _Half, h: jax.Array, left: jax.Array) -> list[jax.Array]:
    """Coefficients of the polynomial that F is just to the right of `left`."""
    passed = h <= left
    j, g = (jnp.where(passed, c, 0) for c in (half.j, half.g))
    return [
        half.p[0] + jnp.sum(g * h**2 / 2 - j * h, axis=0),
        half.p[1] + jnp.sum(j - g * h, axis=0),
        half.p[2] + jnp.sum(g, axis=0) / 2,
    ]


def _sorted(x: _Kinks, y: _Kinks) -> list[_Kinks]:
    """All kinks of two inputs in ascending order: odd-even transposition, elementwise on any shapes."""
    places = [_Kinks(*(leaf[k] for leaf in one)) for one in (x, y) for k in range(len(one.h))]
    for turn in range(len(places)):
        for i in range(turn % 2, len(places) - 1, 2):
            a, b = places[i], places[i + 1]
            swapped = a.h > b.h
            places[i] = _Kinks(*(jnp.where(swapped, v, u) for u, v in zip(a, b, strict=True)))
            places[i + 1] = _Kinks(*(jnp.where(swapped, u, v) for u, v in zip(a, b, strict=True)))
    return places


def _on_short(polynomial: list[jax.Array], left: jax.Array, right: jax.Array) -> jax.Array:
    """Integral of polynomial^2 times the density between two points, without cancellation."""
    half = (right - left) / 2
    column = (-1, *[1] * half.ndim)
    z = left + half * jnp.asarray(1 + _NODES, half.dtype).reshape(column)
    values = (polynomial[0] + z * (polynomial[1] + z * polynomial[2])) ** 2 * jnp.exp(-(z**2) / 2)
    weights = jnp.asarray(_WEIGHTS / math.sqrt(2 * math.pi), half.dtype)
    return half * jnp.tensordot(weights, values, 1, precision="highest")


class _Whole(NamedTuple):
    """Of one part at rho = 1: integral over z > 0 of (F - G)^2, and of 2 F' G', times the density."""

    apart: jax.Array
    slope: jax.Array


def _at_one(x: _Half, y: _Half, x_at: jax.Array, y_at: jax.Array, places: list[_Kinks]) -> _Whole:
    zero = jnp.zeros_like(x.p[0] + y.p[0])
    ends = [_kinks_at(zero), *places]
    tails = [_tails(end) for end in ends]
    apart = slope = zero
    for i, end in enumerate(ends):
        f, g = _local(x, x_at, end.h), _local(y, y_at, end.h)
        difference = [a - b for a, b in zip(f, g, strict=True)]
        after = tails[i + 1] if i + 1 < len(ends) else [zero] * 5
        moments = [a - b for a, b in zip(tails[i], after, strict=True)]
        inside = _square(difference, difference, moments)
        if 0 < i < len(ends) - 1:
            right = ends[i + 1].h
            short = right - end.h <= _SHORT
            inside = jnp.where(short, _on_short(difference, end.h, jnp.where(short, right, end.h)), inside)
        apart = apart + inside
        slope = slope + 2 * _square([f[1], 2 * f[2]], [g[1], 2 * g[2]], moments)
    return _Whole(apart, slope)


class _Pairs(NamedTuple):
    """Integrals over the angle of every pair of kinks, the second at k and at -k: arrays (2, K, K, ..).

    Of sin(y) E[a(U) b(V)] for a, b in (mass, jump of slope): whole, and weighted by v.
    """

    masses: tuple[jax.Array, jax.Array]
    mass_jump: tuple[jax.Array, jax.Array] | None
    jump_mass: tuple[jax.Array, jax.Array] | None
    jumps: tuple[jax.Array, jax.Array] | None


def _pairs_of_kinks(x: _Kinks, y: _Kinks, near: jax.Array, *, curved: bool) -> _Pairs:
    h, k = x.h[:, None], y.h[None, :]
    apart, both = jnp.stack(jnp.broadcast_arrays(k - h, k + h)) / 2, jnp.stack(jnp.broadcast_arrays(k + h, k - h)) / 2
    own = corner(jnp.abs(apart), both, near, bent=curved)
    masses = (own.whole[0], own.whole[1])
    if not curved:
        return _Pairs(masses, None, None, None)
    swapped_apart, swapped_both = (
        jnp.stack([sign * pair[0], -sign * pair[1]]) for sign, pair in ((-1, apart), (1, both))
    )
    first = (near * jnp.minimum(x.tail[:, None], y.tail[None, :]), jnp.zeros(()))
    base = jnp.stack(jnp.broadcast_arrays(*first))
    change = jnp.asarray([-1.0, 1.0], near.dtype).reshape(-1, *[1] * (base.ndim - 1)) * near
    jumps = (base + change * own.whole[1], (base + change * own.whole[2]) / 2)
    return _Pairs(
        masses,
        _mass_and_jump(own, apart, both, x.density[:, None], near),
        _mass_and_jump(own, swapped_apart, swapped_both, y.density[None, :], near),
        jumps,
    )


def _mass_and_jump(
    own: Corner, apart: jax.Array, both: jax.Array, density: jax.Array, near: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """A mass of one input at its kink, where V is normal: the chance that it is beyond the other kink."""
    assert own.bent is not None
    floor = SMALLEST[near.dtype.name]
    tangent = jnp.sqrt(jnp.maximum(near, floor) / (2 - near))
    beyond = near * density * jax.scipy.special.erfc((apart / tangent + both * tangent) / math.sqrt(2)) / 2
    whole = beyond - (apart * own.whole[0] - both * own.bent[0])
    mean = beyond / 2 - (apart * (own.whole[0] + own.whole[1]) / 2 - both * own.bent[1])
    return whole, mean


def _bends(pairs: _Pairs, x: _Half, y: _Half, sign: int) -> tuple[jax.Array, jax.Array]:
    """The integral of sin E[F'' G''] over the angle from pairs of kinks of one part, and its weighted mean."""

    def total(kind: tuple[jax.Array, jax.Array] | None, a: jax.Array, b: jax.Array) -> list[jax.Array]:
        if kind is None:
            return [jnp.zeros(()), jnp.zeros(())]
        weight = 2 * a[:, None] * b[None, :]
        return [jnp.sum(weight * (value[0] + sign * value[1]), axis=(0, 1)) for value in kind]

    terms = (
        total(pairs.masses, x.j, y.j),
        total(pairs.mass_jump, x.j, y.g),
        total(pairs.jump_mass, x.g, y.j),
        total(pairs.jumps, x.g, y.g),
    )
    bend, mean = (sum(column[1:], column[0]) for column in zip(*terms, strict=True))
    return bend, mean


@final
@pytree
@dataclass(frozen=True)
class PiecewisePolynomial(Activation):
    """phi(u) = sum_i pieces[k][i] u^i between kinks[k-1] and kinks[k]. Dual: sums of bivariate normal integrals.

    Derived from Price's theorem (Price 1958) at pairs of kinks. It needs no tables: it works under jax.jit, grad and
    vmap. Errors are a few eps of sqrt(E[phi(u)^2] E[phi(v)^2]), times s^2/E[phi(u)^2] where that is large.

    Args:
        kinks: where one polynomial ends and the next begins, ascending, at least one.
        pieces: one more than kinks; each the coefficients of 1, u and u^2, as many as are needed.
        rtol: bound on the error of duals relative to sqrt(E[phi(u)^2] E[phi(v)^2]), met or an error is raised (where
            deviations are known: not under jit, grad and vmap); None is 1e-10 in float64 and 1e-6 in float32.
        label: what errors call it.

    Raises:
        ValueError: kinks that do not ascend, another number of pieces, a degree above 2, coefficients that are not
            finite, pieces that do not meet (phi must be continuous), or all of them 0.
        TypeError: not numbers.
    """

    kinks: tuple[float, ...] = field(metadata={"static": True})
    pieces: tuple[tuple[float, ...], ...] = field(metadata={"static": True})
    rtol: float | None = field(default=None, metadata={"static": True})
    label: str = field(default="a piecewise polynomial", metadata={"static": True})
    table: Table | None = field(default=None, repr=False)
    name: ClassVar[str] = "piecewise_polynomial"

    def __post_init__(self) -> None:
        if self.rtol is not None:
            validation.finite_scalar("rtol", self.rtol, at_least=1e-13)
        kinks = np.array([float(validation.finite_scalar("every kink", kink)) for kink in self.kinks])
        if len(kinks) == 0 or (np.diff(kinks) <= 0).any():
            raise ValueError(f"kinks must ascend, at least one is needed; got {self.kinks}.")
        if len(self.pieces) != len(kinks) + 1:
            raise ValueError(f"{len(kinks)} kinks part {len(kinks) + 1} pieces, got {len(self.pieces)}.")
        for piece in self.pieces:
            if not 1 <= len(piece) <= LARGEST_DEGREE + 1:
                raise ValueError(f"a piece has 1 to {LARGEST_DEGREE + 1} coefficients, got {len(piece)}.")
            for coefficient in piece:
                validation.finite_scalar("every coefficient", coefficient)
        table = self._table()
        if not table.any():
            raise ValueError("all pieces are 0.")
        for kink, left, right in zip(kinks, table, table[1:], strict=False):
            terms = kink ** np.arange(3) * np.array([left, right])
            if abs(np.subtract(*terms.sum(axis=1))) > 1e-12 * np.abs(terms).max():
                raise ValueError(f"the pieces do not meet at {kink:g}: phi must be continuous; wl.Step() jumps.")

    def _table(self) -> np.ndarray:
        """Coefficients (pieces, 3)."""
        return np.array([[*map(float, piece), *[0.0] * (3 - len(piece))] for piece in self.pieces])

    def __call__(self, u: Float[jax.Array, "..."]) -> Float[jax.Array, "..."]:
        values = [p[0] + u * (p[1] + u * p[2]) if p[2] else p[0] + u * p[1] for p in self._table().tolist()]
        result = values[0]
        for kink, value in zip(self.kinks, values[1:], strict=True):
            result = jnp.where(u > kink, value, result)
        return jnp.asarray(result)

    def _halves(self) -> tuple[np.ndarray, list[_Half]]:
        """The sizes of the kinks beyond 0, ascending, and of either part p, and the jumps of phi' and phi''."""
        table, kinks = self._table(), np.array(self.kinks)
        sizes = np.unique(np.abs(kinks[kinks != 0]))
        right, left = (table[np.searchsorted(kinks, 0.0, side=side)] for side in ("right", "left"))
        mirrored = left * [1, -1, 1]
        jumps = np.zeros((2, 2, len(sizes)))
        for kink, before, after in zip(kinks, table, table[1:], strict=False):
            step = after - before
            if kink != 0:
                jumps[int(kink < 0), :, np.searchsorted(sizes, abs(kink))] = step[1] + 2 * kink * step[2], 2 * step[2]
        parts = []
        for sign in (1, -1):
            # phi(-u) has at |kink| the same jump of slope, and the opposite one of the second derivative.
            j, g = (jumps[0, 0] + sign * jumps[1, 0]) / 2, (jumps[0, 1] - sign * jumps[1, 1]) / 2
            parts.append(_Half((right + sign * mirrored) / 2, j, g))
        return sizes, parts

    def _bends_at_zero(self) -> bool:
        even, odd = self._halves()[1]
        return bool(even.p[1] != 0 or odd.p[2] != 0)

    def rtol_in(self, dtype: Any) -> float:
        return RTOL[np.dtype(dtype).name] if self.rtol is None else self.rtol

    def prepared(self, low: float, high: float, dtype: Any) -> PiecewisePolynomial:
        if high > np.finfo(dtype).max ** 0.25 / 256:
            raise ValueError(f"{self.label}: signals of standard deviation {high:.3g} overflow; scale the inputs down.")
        rtol = self.rtol_in(dtype)
        errors = self.errors(np.array([low, high]), dtype)
        if max(errors) > rtol:
            size = (low, high)[int(np.argmax(errors))]
            raise ValueError(
                f"{self.label}: its duals at a standard deviation of {size:.3g} are right to {max(errors):.1g} in "
                f"{np.dtype(dtype).name}, not to rtol = {rtol:g}. Bring the signals to the size of the kinks (they are "
                f"at {', '.join(f'{kink:g}' for kink in self.kinks)}), use float64, or pass a larger rtol."
            )
        return self

    def tabulated(self, low: float, high: float, dtype: Any) -> PiecewisePolynomial:
        """With a table for these deviations, right to rtol: a tenth of the closed form's cost.

        Without one where all kinks are at 0, where kinks of different distance could meet (two distances), where
        the kinks are so near 0 that the table is too long, and in a range of one deviation.
        """
        ready = self.prepared(low, high, dtype)
        if low == high or len(self._halves()[0]) != 1:
            return ready
        return replace(ready, table=_table_of(replace(self, table=None), *half_octaves(low, high), self.rtol_in(dtype)))

    def components(
        self, s: jax.Array, t: jax.Array, near: jax.Array
    ) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
        """Half the squared distance at rho = 1, and H, of either part of two signals, elementwise."""
        x, y = (self._closed(_signal(v))[1] for v in (s, t))
        apart, means, _ = self._components(x, y, near)
        return (apart[0], means[0]), (apart[1], means[1])

    def jumps(self, deviations: np.ndarray) -> tuple[Jumps, Jumps, np.ndarray]:
        """Of the even and the odd part at the one kink beyond 0, and E[F^2] of the even part; arrays (m,)."""
        with jax.enable_x64(True):
            trace = jax.tree.map(np.asarray, self._closed(_signal(jnp.asarray(deviations)))[1])
        even, odd = (Jumps(trace.kinks.h[0], part.j[0], part.g[0]) for part in trace.parts)
        return even, odd, trace.even_share

    def errors(self, deviations: np.ndarray, dtype: Any) -> np.ndarray:
        """What rounding leaves of a dual of two signals of each deviation, relative to E[phi(u)^2]."""
        with jax.enable_x64(True):
            parts = jax.tree.map(np.asarray, self._closed(_signal(jnp.asarray(deviations)))[1].parts)
        bends = np.concatenate([np.abs(leaf) for part in parts for leaf in (2 * part.p[1:], part.j, part.g)])
        return np.asarray(_ROUNDING * float(np.finfo(dtype).eps) * np.max(bends, axis=0) ** 2)

    def encode(self, signal: Variance) -> tuple[Variance, _Trace | TableTrace]:
        after, trace = self._closed(signal)
        return after, looked_up(self._table_in(signal.value.dtype), signal.deviation) if self.table else trace

    def _table_in(self, dtype: Any) -> Table:
        cast: Table = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), self.table)
        return cast

    def _closed(self, signal: Variance) -> tuple[Variance, _Trace]:
        dtype = signal.value.dtype
        sizes, halves = self._halves()
        # Where phi(0) = 0, values of the order of s: a square root of the smallest number is no bound then.
        exponent = jnp.minimum(signal.exponent, 0) if halves[0].p[0] == 0 else jnp.zeros_like(signal.exponent)
        unit = power_of_two(-exponent, dtype)
        s = signal.deviation
        size = series.safe_sqrt(signal.value) * power_of_two(signal.exponent - exponent, dtype)
        h = [float(a) / jnp.maximum(s, float(a) / FURTHEST) for a in sizes]
        powers = (unit, size, s * size)

        def scaled(coefficients: np.ndarray, kinds: Sequence[jax.Array]) -> jax.Array:
            terms = [float(c) * kind if c else jnp.zeros_like(s) for c, kind in zip(coefficients, kinds, strict=True)]
            return jnp.stack(terms) if terms else jnp.zeros((0, *s.shape), dtype)

        parts = [
            _Half(*map(scaled, map(np.asarray, f), (powers, [size] * len(sizes), [s * size] * len(sizes))))
            for f in halves
        ]
        kinks = _kinks_at(jnp.stack(h) if h else jnp.zeros((0, *s.shape), dtype))
        even, odd = (_moment(part, kinks) for part in parts)
        inverse = series.safe_divide(jnp.ones_like(s), series.safe_sqrt(even + odd))
        parts = [_Half(*(leaf * inverse for leaf in part)) for part in parts]
        return Variance(even + odd, exponent).normalised(), _Trace(kinks, (parts[0], parts[1]), even * inverse**2)

    def correlate(self, x: Any, y: Any, gaps: Gaps) -> tuple[Gaps, jax.Array]:
        if self.table:
            return by_rows(functools.partial(pair_map, self._table_in(gaps.below.dtype)), x, y, gaps)
        return by_rows(self._correlate, x, y, gaps)

    def _correlate(self, x: _Trace, y: _Trace, gaps: Gaps) -> tuple[jax.Array, jax.Array]:
        apart, means, slopes = self._components(x, y, gaps.near)
        falls = [gaps.near * mean for mean in means]
        same = apart[0] + apart[1] + falls[0] + falls[1]
        opposite = (x.even_share + y.even_share - apart[0]) - falls[0] + apart[1] + falls[1]
        return jnp.maximum(jnp.where(gaps.positive, same, opposite), 0), slopes[1] + signed(slopes[0], gaps)

    def _components(
        self, x: _Trace, y: _Trace, near: jax.Array
    ) -> tuple[list[jax.Array], list[jax.Array], list[jax.Array]]:
        """Half the squared distance at rho = 1, H and dR/drho, each of the even and the odd part."""
        places = _sorted(x.kinks, y.kinks)
        x_all, y_all = (self._all_kinks(trace, near.dtype) for trace in (x, y))
        pairs = _pairs_of_kinks(x_all[0], y_all[0], near, curved=self._curved())
        apart, means, slopes = ([jnp.zeros_like(near + x.even_share + y.even_share)] * 2 for _ in range(3))
        halves = self._halves()[1]
        for i, sign in [(i, sign) for i, sign in enumerate((1, -1)) if any(leaf.any() for leaf in halves[i])]:
            one = _at_one(x.parts[i], y.parts[i], x.kinks.h, y.kinks.h, places)
            bend, mean_bend = _bends(pairs, x_all[1:][i], y_all[1:][i], sign)
            if sign > 0:  # the constant of F'' of an even part; that of an odd one is a jump at 0
                constant = _constant(x_all[1], y_all[1], x_all[0], y_all[0])
                bend, mean_bend = bend + near * constant, mean_bend + near / 2 * constant
            apart[i] = one.apart + jnp.zeros_like(near)
            means[i] = one.slope - mean_bend
            slopes[i] = one.slope - bend
        return apart, means, slopes

    def _curved(self) -> bool:
        """Whether phi'' jumps anywhere."""
        even, odd = self._halves()[1]
        return bool(even.g.any() or odd.g.any() or odd.p[2] != 0)

    def _all_kinks(self, trace: _Trace, dtype: Any) -> tuple[_Kinks, _Half, _Half]:
        """All kinks, that at 0 too if there is one: an even part has its slope as j there, an odd one 2 p_2 as g."""
        even, odd = trace.parts
        if not self._bends_at_zero():
            return trace.kinks, even, odd
        zero = jnp.zeros_like(even.p[:1])
        kinks = _Kinks(*(jnp.concatenate(pair) for pair in zip(_kinks_at(zero), trace.kinks, strict=True)))
        j, g = even.p[1:2], 2 * odd.p[2:]
        return (
            kinks,
            _Half(even.p, jnp.concatenate([j, even.j]), jnp.concatenate([zero, even.g])),
            _Half(odd.p, jnp.concatenate([zero, odd.j]), jnp.concatenate([g, odd.g])),
        )


def _signal(deviation: jax.Array) -> Variance:
    return Variance(deviation**2, jnp.zeros(deviation.shape, jnp.int32)).normalised()


@functools.lru_cache(maxsize=64)
def _table_of(activation: PiecewisePolynomial, low: float, high: float, rtol: float) -> Table | None:
    kink = float(activation._halves()[0][0])
    return tabulate_pieces(activation, kink, low, high, rtol)


def _moment(half: _Half, at: _Kinks) -> jax.Array:
    """E[F^2] of one part."""
    ends = [_kinks_at(jnp.zeros_like(half.p[0])), *(_Kinks(*(leaf[k] for leaf in at)) for k in range(len(at.h)))]
    tails = [*map(_tails, ends), [jnp.zeros_like(half.p[0])] * 5]
    total = jnp.zeros_like(half.p[0])
    for i, end in enumerate(ends):
        own = _local(half, at.h, end.h)
        total = total + 2 * _square(own, own, [a - b for a, b in zip(tails[i], tails[i + 1], strict=True)])
    return total


def _constant(x: _Half, y: _Half, x_at: _Kinks, y_at: _Kinks) -> jax.Array:
    """E[F'' G''] less its part from pairs of kinks, of even parts: their constants 2 p_2, and these with the rest."""
    (c, d) = (2 * half.p[2] for half in (x, y))
    rests = [2 * jnp.sum(half.j * at.density + half.g * at.tail, axis=0) for half, at in ((x, x_at), (y, y_at))]
    return c * d + c * rests[1] + rests[0] * d
