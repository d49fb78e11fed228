"""This module contains polynomials between kinks: hard tanh, hard swish, clip, relu6, shrinkage.

With z = u/s a phi splits into an even and an odd part, each known from its half line z > 0:

    F(z) = p_0 + p_1 z + p_2 z^2 + sum_k (j_k (z - h_k)_+ + g_k (z - h_k)_+^2/2),    h_k = kink_k/s,

so F'' is a constant, point masses j_k and jumps g_k at +-h_k. By Price's theorem E[F' G'] at the correlation cos(psi)
is its value at 1 less an integral of E[F'' G''] over the angle, a sum over pairs of kinks of the integrals in
`corners`; averaged once more it is H in R = R(1) - gap H (`tables`), which keeps gaps to relative accuracy.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, final

import jax
import jax.numpy as jnp
import numpy as np

from widelimit import series, validation
from widelimit.activations.base import Activation
from widelimit.activations.piecewise.parity import (
    Kinks,
    ParityPart,
    PiecesMemo,
    at_one,
    bends_of,
    constant_of,
    in_order,
    kinks_at,
    moment_of,
    pairs_of_kinks,
)
from widelimit.activations.piecewise.tabulation import tabulate_pieces
from widelimit.activations.tabulated import fixed_lengths
from widelimit.activations.tabulated.coincident import Jumps
from widelimit.activations.tabulated.lookup import TableMemo, by_rows, look_up, pair_map
from widelimit.activations.tabulated.numerical import RTOL
from widelimit.activations.tabulated.tables import FURTHEST, Table, half_octaves
from widelimit.arithmetic import arithmetic
from widelimit.interpreter import interpreted
from widelimit.pytrees import pytree
from widelimit.shapes import Float
from widelimit.signals import Correlation, Variance, correlation_with_itself, power_of_two, variance_of, with_sign

LARGEST_DEGREE = 2
_ROUNDING = 1.0
"""eps of the square of the largest coefficient of F'': a third of it was seen (tests/test_piecewise.py)."""


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
        kinks = np.array(validation.numbers_in("kinks", self.kinks))
        if len(kinks) == 0 or (np.diff(kinks) <= 0).any():
            raise ValueError(f"kinks must ascend, at least one is needed; got {self.kinks}.")
        if not isinstance(self.pieces, (tuple, list)):
            raise TypeError(f"pieces must be a tuple of tuples of numbers, got {validation.shown(self.pieces)}.")
        if len(self.pieces) != len(kinks) + 1:
            raise ValueError(f"{len(kinks)} kinks part {len(kinks) + 1} pieces, got {len(self.pieces)}.")
        for piece in self.pieces:
            validation.numbers_in("pieces", piece)
            if not 1 <= len(piece) <= LARGEST_DEGREE + 1:
                raise ValueError(f"a piece has 1 to {LARGEST_DEGREE + 1} coefficients, got {len(piece)}.")
        table = self._table()
        if not table.any():
            raise ValueError("all pieces are 0.")
        for kink, left, right in zip(kinks, table, table[1:], strict=False):
            terms = kink ** np.arange(3) * np.array([left, right])
            if abs(np.subtract(*terms.sum(axis=1))) > 1e-12 * np.abs(terms).max():
                raise ValueError(f"the pieces do not meet at {kink:g}: phi must be continuous; wl.Step() jumps.")

    def _table(self) -> np.ndarray:
        """Return the coefficients, (pieces, 3)."""
        return np.array([[*map(float, piece), *[0.0] * (3 - len(piece))] for piece in self.pieces])

    def __call__(self, u: Float[jax.Array, "..."]) -> Float[jax.Array, "..."]:
        values = [p[0] + u * (p[1] + u * p[2]) if p[2] else p[0] + u * p[1] for p in self._table().tolist()]
        result = values[0]
        for kink, value in zip(self.kinks, values[1:], strict=True):
            result = jnp.where(u > kink, value, result)
        return jnp.asarray(result)

    def _halves(self) -> tuple[np.ndarray, list[ParityPart]]:
        """Return the sizes of the kinks beyond 0, ascending, and of each part p, and the jumps of phi' and phi''."""
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
            parts.append(ParityPart((right + sign * mirrored) / 2, j, g))
        return sizes, parts

    def _bends_at_zero(self) -> bool:
        even, odd = self._halves()[1]
        return bool(even.p[1] != 0 or odd.p[2] != 0)

    def in_few_shapes(self, dtype: Any, rows: int) -> PiecewisePolynomial:
        if self.table is None:
            return self
        key = replace(self, table=None), np.dtype(dtype).name, rows
        return replace(self, table=fixed_lengths.in_few_shapes(self.table, key))

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
        """Make a table for these deviations, right to rtol: it costs a tenth of the closed form.

        Without one where all kinks are at 0, where kinks of different distance could meet (two distances), where
        the kinks are so near 0 that the table is too long, and in a range of one deviation.
        """
        ready = self.prepared(low, high, dtype)
        if low == high or len(self._halves()[0]) != 1:
            return ready
        return replace(ready, table=_table_of(replace(self, table=None), *half_octaves(low, high), self.rtol_in(dtype)))

    def components(
        self, s: jax.Array, t: jax.Array, gap: jax.Array
    ) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
        """Compute half the squared distance at rho = 1, and H, of each part of two signals, elementwise."""
        x, y = map(self._memo_at, (s, t))
        separation, means, _ = self._components(x, y, gap)
        return (separation[0], means[0]), (separation[1], means[1])

    def jumps(self, deviations: np.ndarray) -> tuple[Jumps, Jumps, np.ndarray]:
        """Return the jumps of the even and the odd part at the one kink beyond 0, and E[F^2] of the even part, (m,)."""
        with arithmetic(True):
            memo = interpreted(PiecewisePolynomial._memo_at)(self, deviations)
        even, odd = (Jumps(memo.kinks.h[0], part.j[0], part.g[0]) for part in memo.parts)
        return even, odd, memo.even_share

    def errors(self, deviations: np.ndarray, dtype: Any) -> np.ndarray:
        """Bound the rounding error of a dual of two signals of each deviation, relative to E[phi(u)^2]."""
        with arithmetic(True):
            parts = interpreted(PiecewisePolynomial._memo_at)(self, deviations).parts
        bends = np.concatenate([np.abs(leaf) for part in parts for leaf in (2 * part.p[1:], part.j, part.g)])
        return np.asarray(_ROUNDING * float(np.finfo(dtype).eps) * np.max(bends, axis=0) ** 2)

    def encode(self, signal: Variance) -> tuple[Variance, PiecesMemo | TableMemo]:
        return look_up(self._table_in(signal.value.dtype), signal) if self.table else self._closed(signal)

    def _table_in(self, dtype: Any) -> Table:
        cast: Table = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), self.table)
        return cast

    def _memo_at(self, deviation: jax.Array) -> PiecesMemo:
        return self._closed(variance_of(deviation))[1]

    def _closed(self, signal: Variance) -> tuple[Variance, PiecesMemo]:
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
            ParityPart(*map(scaled, map(np.asarray, f), (powers, [size] * len(sizes), [s * size] * len(sizes))))
            for f in halves
        ]
        kinks = kinks_at(jnp.stack(h) if h else jnp.zeros((0, *s.shape), dtype))
        even, odd = (moment_of(part, kinks) for part in parts)
        inverse = series.safe_divide(jnp.ones_like(s), series.safe_sqrt(even + odd))
        parts = [ParityPart(*(leaf * inverse for leaf in part)) for part in parts]
        return Variance(even + odd, exponent).normalised(), PiecesMemo(kinks, (parts[0], parts[1]), even * inverse**2)

    def itself(self, x: Any, correlation: Correlation) -> tuple[Correlation, jax.Array]:
        return (
            (correlation_with_itself(correlation.one_minus), x.itself)
            if self.table
            else self.correlate(x, x, correlation)
        )

    def correlate(self, x: Any, y: Any, correlation: Correlation) -> tuple[Correlation, jax.Array]:
        if self.table:
            return by_rows(functools.partial(pair_map, self._table_in(correlation.one_minus.dtype)), x, y, correlation)
        return by_rows(self._correlate, x, y, correlation)

    def _correlate(self, x: PiecesMemo, y: PiecesMemo, correlation: Correlation) -> tuple[jax.Array, jax.Array]:
        separation, means, slopes = self._components(x, y, correlation.gap)
        falls = [correlation.gap * mean for mean in means]
        same = separation[0] + separation[1] + falls[0] + falls[1]
        opposite = (x.even_share + y.even_share - separation[0]) - falls[0] + separation[1] + falls[1]
        return jnp.maximum(jnp.where(correlation.positive, same, opposite), 0), slopes[1] + with_sign(
            slopes[0], correlation
        )

    def _components(
        self, x: PiecesMemo, y: PiecesMemo, gap: jax.Array
    ) -> tuple[list[jax.Array], list[jax.Array], list[jax.Array]]:
        """Compute half the squared distance at rho = 1, H and dR/drho, each of the even and the odd part."""
        places = in_order(x.kinks, y.kinks)
        x_all, y_all = (self._all_kinks(memo, gap.dtype) for memo in (x, y))
        pairs = pairs_of_kinks(x_all[0], y_all[0], gap, curved=self._curved())
        separation, means, slopes = ([jnp.zeros_like(gap + x.even_share + y.even_share)] * 2 for _ in range(3))
        halves = self._halves()[1]
        for i, sign in [(i, sign) for i, sign in enumerate((1, -1)) if any(leaf.any() for leaf in halves[i])]:
            one = at_one(x.parts[i], y.parts[i], x.kinks.h, y.kinks.h, places)
            bend, mean_bend = bends_of(pairs, x_all[1:][i], y_all[1:][i], sign)
            if sign > 0:  # the constant of F'' of an even part; that of an odd one is a jump at 0
                constant = constant_of(x_all[1], y_all[1], x_all[0], y_all[0])
                bend, mean_bend = bend + gap * constant, mean_bend + gap / 2 * constant
            separation[i] = one.separation + jnp.zeros_like(gap)
            means[i] = one.slope - mean_bend
            slopes[i] = one.slope - bend
        return separation, means, slopes

    def _curved(self) -> bool:
        """Return True if phi'' jumps anywhere."""
        even, odd = self._halves()[1]
        return bool(even.g.any() or odd.g.any() or odd.p[2] != 0)

    def _all_kinks(self, memo: PiecesMemo, dtype: Any) -> tuple[Kinks, ParityPart, ParityPart]:
        """Return all kinks, that at 0 too if there is one.

        An even part has its slope as j there, an odd one 2 p_2 as g.
        """
        even, odd = memo.parts
        if not self._bends_at_zero():
            return memo.kinks, even, odd
        zero = jnp.zeros_like(even.p[:1])
        kinks = Kinks(*(jnp.concatenate(pair) for pair in zip(kinks_at(zero), memo.kinks, strict=True)))
        j, g = even.p[1:2], 2 * odd.p[2:]
        return (
            kinks,
            ParityPart(even.p, jnp.concatenate([j, even.j]), jnp.concatenate([zero, even.g])),
            ParityPart(odd.p, jnp.concatenate([zero, odd.j]), jnp.concatenate([g, odd.g])),
        )


@functools.lru_cache(maxsize=64)
def _table_of(activation: PiecewisePolynomial, low: float, high: float, rtol: float) -> Table | None:
    kink = float(activation._halves()[0][0])
    return tabulate_pieces(activation, kink, low, high, rtol)
