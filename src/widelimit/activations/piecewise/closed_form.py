"""The duals of polynomials between kinks are finite sums over pairs of kinks.

With z = u/s a phi splits into an even and an odd part, each known from its values at z > 0:

    F(z) = p_0 + p_1 z + p_2 z^2 + sum_k (j_k (z - h_k)_+ + g_k (z - h_k)_+^2/2),    h_k = kink_k/s,

so F'' is a constant, point masses j_k and jumps g_k at +-h_k. By Price's theorem E[F' G'] at the correlation cos(psi)
is its value at 1 less an integral of E[F'' G''] over the angle, a sum over pairs of kinks of the integrals in
`bivariate_normal`; averaged once more it is H in R = R(1) - gap H (`tables`), which keeps gaps to relative accuracy.
"""

from collections.abc import Sequence
from dataclasses import field
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np

from widelimit import series
from widelimit.activations.piecewise import parity
from widelimit.activations.piecewise.parity import Kinks, ParityPart, PiecesMemo
from widelimit.activations.tabulated.coincident import Jumps
from widelimit.activations.tabulated.expansions import PLACES
from widelimit.activations.tabulated.tables import FURTHEST
from widelimit.arithmetic import arithmetic
from widelimit.interpreter import interpreted
from widelimit.pytrees import pytree
from widelimit.shapes import Float
from widelimit.signals import Correlation, Variance, power_of_two, variance_of, with_sign

_ROUNDING = 1.0
"""Error bound in eps times the largest coefficient of F'' squared; a third of it was seen (tests/test_piecewise.py)."""


@final
@pytree
class ClosedForm:
    """phi(u) = sum_i pieces[k][i] u^i between kinks[k-1] and kinks[k], of degree 2 at most, with its duals."""

    kinks: tuple[float, ...] = field(metadata={"static": True})
    pieces: tuple[tuple[float, ...], ...] = field(metadata={"static": True})

    def coefficients(self) -> np.ndarray:
        """Return the coefficients, (pieces, 3)."""
        return np.array([[*map(float, piece), *[0.0] * (3 - len(piece))] for piece in self.pieces])

    def __call__(self, u: Float[jax.Array, "..."]) -> Float[jax.Array, "..."]:
        values = [p[0] + u * (p[1] + u * p[2]) if p[2] else p[0] + u * p[1] for p in self.coefficients().tolist()]
        result = values[0]
        for kink, value in zip(self.kinks, values[1:], strict=True):
            result = jnp.where(u > kink, value, result)
        return jnp.asarray(result)

    def halves(self) -> tuple[np.ndarray, list[ParityPart]]:
        """Return the distances of kinks from 0 (less those at 0), ascending, and both parts: p, and the jumps j, g."""
        table, kinks = self.coefficients(), np.array(self.kinks)
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

    def memo_at(self, deviation: jax.Array) -> PiecesMemo:
        """Return the memo of signals of these standard deviations."""
        return self.encode(variance_of(deviation))[1]

    def encode(self, signal: Variance) -> tuple[Variance, PiecesMemo]:
        """Return (E[phi(u)^2], memo) for u ~ N(0, signal)."""
        dtype = signal.value.dtype
        sizes, halves = self.halves()
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

        kinds = powers, [size] * len(sizes), [s * size] * len(sizes)
        parts = [ParityPart(*map(scaled, map(np.asarray, f), kinds)) for f in halves]
        kinks = parity.kinks_at(jnp.stack(h) if h else jnp.zeros((0, *s.shape), dtype))
        even, odd = (parity.moment_of(part, kinks) for part in parts)
        inverse = series.safe_divide(jnp.ones_like(s), series.safe_sqrt(even + odd))
        parts = [ParityPart(*(leaf * inverse for leaf in part)) for part in parts]
        return Variance(even + odd, exponent).normalise(), PiecesMemo(kinks, (parts[0], parts[1]), even * inverse**2)

    def pair_map(self, x: PiecesMemo, y: PiecesMemo, correlation: Correlation) -> tuple[jax.Array, jax.Array]:
        """Return (gap to the nearer end after phi, d rho_after/d rho)."""
        separation, means, slopes = self._components(x, y, correlation.gap)
        falls = [correlation.gap * mean for mean in means]
        same = separation[0] + separation[1] + falls[0] + falls[1]
        opposite = (x.even_share + y.even_share - separation[0]) - falls[0] + separation[1] + falls[1]
        slope = slopes[1] + with_sign(slopes[0], correlation)
        return jnp.maximum(jnp.where(correlation.positive, same, opposite), 0), slope

    def _components(
        self, x: PiecesMemo, y: PiecesMemo, gap: jax.Array
    ) -> tuple[list[jax.Array], list[jax.Array], list[jax.Array]]:
        """Compute half the squared distance at rho = 1, H and dR/drho, each of the even and the odd part."""
        places = parity.sort_kinks(x.kinks, y.kinks)
        x_all, y_all = (self._all_kinks(memo, gap.dtype) for memo in (x, y))
        halves = self.halves()[1]
        curved = bool(halves[0].g.any() or halves[1].g.any() or halves[1].p[2] != 0)  # phi'' jumps somewhere
        pairs = parity.integrate_pairs(x_all[0], y_all[0], gap, curved=curved)
        separation, means, slopes = ([jnp.zeros_like(gap + x.even_share + y.even_share)] * 2 for _ in range(3))
        for i, sign in [(i, sign) for i, sign in enumerate((1, -1)) if any(leaf.any() for leaf in halves[i])]:
            one = parity.at_unit_correlation(x.parts[i], y.parts[i], x.kinks.h, y.kinks.h, places)
            bend, mean_bend = parity.curvature_of(pairs, x_all[1:][i], y_all[1:][i], sign)
            if sign > 0:  # the constant of F'' of an even part; that of an odd one is a jump at 0
                constant = parity.constant_curvature_of(x_all[1], y_all[1], x_all[0], y_all[0])
                bend, mean_bend = bend + gap * constant, mean_bend + gap / 2 * constant
            separation[i] = one.separation + jnp.zeros_like(gap)
            means[i] = one.slope - mean_bend
            slopes[i] = one.slope - bend
        return separation, means, slopes

    def _all_kinks(self, memo: PiecesMemo, dtype: Any) -> tuple[Kinks, ParityPart, ParityPart]:
        """Return all kinks; if phi bends at 0, that one too: an even part has its slope as j, an odd one 2 p_2 as g."""
        slope, bend = self.halves()[1][0].p[1], self.halves()[1][1].p[2]
        even, odd = memo.parts
        if slope == 0 and bend == 0:
            return memo.kinks, even, odd
        zero = jnp.zeros_like(even.p[:1])
        kinks = Kinks(*(jnp.concatenate(pair) for pair in zip(parity.kinks_at(zero), memo.kinks, strict=True)))
        j, g = even.p[1:2], 2 * odd.p[2:]
        return (
            kinks,
            ParityPart(even.p, jnp.concatenate([j, even.j]), jnp.concatenate([zero, even.g])),
            ParityPart(odd.p, jnp.concatenate([zero, odd.j]), jnp.concatenate([g, odd.g])),
        )

    def components(
        self, x: PiecesMemo, y: PiecesMemo, gap: jax.Array
    ) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
        """Compute half the squared distance at rho = 1, and H, of each part of two signals, elementwise."""
        separation, means, _ = self._components(x, y, gap)
        return (separation[0], means[0]), (separation[1], means[1])

    def memos(self, deviations: np.ndarray) -> PiecesMemo:
        """Compute `memo_at` for deviations (m,) in float64, by NumPy."""
        with arithmetic(True):
            same = np.resize(deviations, max(PLACES, len(deviations)))  # one shape is traced once
            memo = interpreted(ClosedForm.memo_at)(self, same)
        found: PiecesMemo = jax.tree.map(lambda leaf: leaf[..., : len(deviations)], memo)
        return found

    def jumps(self, deviations: np.ndarray) -> tuple[Jumps, Jumps, np.ndarray]:
        """Return the jumps of the even and the odd part at the one kink beyond 0, and E[F^2] of the even part, (m,)."""
        memo = self.memos(deviations)
        h = np.asarray(memo.kinks.h[0])
        even, odd = (Jumps(h, np.asarray(part.j[0]), np.asarray(part.g[0])) for part in memo.parts)
        return even, odd, np.asarray(memo.even_share)

    def errors(self, deviations: np.ndarray, dtype: Any) -> np.ndarray:
        """Bound the rounding error of a dual of two signals of each deviation, relative to E[phi(u)^2]."""
        parts = self.memos(deviations).parts
        bends = np.concatenate([np.abs(leaf) for part in parts for leaf in (2 * part.p[1:], part.j, part.g)])
        return np.asarray(_ROUNDING * float(np.finfo(dtype).eps) * np.max(bends, axis=0) ** 2)
