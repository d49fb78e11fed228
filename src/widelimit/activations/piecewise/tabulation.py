"""Polynomials between kinks are tabulated as an analytic expansion plus the terms of kinks that coincide."""

import functools
from dataclasses import replace

import jax
import numpy as np

from widelimit.activations.piecewise.closed_form import ClosedForm
from widelimit.activations.tabulated import tables
from widelimit.activations.tabulated.chebyshev import chebyshev_coefficients
from widelimit.activations.tabulated.coincident import Coincident, Jumps, coincident_at, coincident_part, sample
from widelimit.activations.tabulated.expansions import in_places
from widelimit.activations.tabulated.tables import Part, Table
from widelimit.arithmetic import arithmetic
from widelimit.interpreter import interpreted

MIRRORED = 2.0
"""Distance of a kink from 0, in deviations, below which it has terms for its mirror image, to save angles."""
_PAIRS_A_CALL = 3 * 2**7
"""Pairs of deviations in one call of the closed form, with as many angles as the first try has: it is traced once."""


def _exact(closed: ClosedForm, deviations: np.ndarray, gap: np.ndarray) -> np.ndarray:
    """Compute the closed form's components for all pairs of deviations: (even and odd, two quantities, m, m, gaps)."""
    lower, memos = np.tril_indices(len(deviations)), closed.memos(deviations)  # they are symmetric
    count, width = len(lower[0]), tables.ANGLE_POINTS[0]
    rows = []
    for start in range(0, count, _PAIRS_A_CALL):
        chosen = [np.resize(at[start : start + _PAIRS_A_CALL], _PAIRS_A_CALL) for at in lower]
        x, y = (jax.tree.map(lambda leaf, at=at: leaf[..., at, None], memos) for at in chosen)
        parts = [interpreted(ClosedForm.components)(closed, x, y, part) for part in gap.reshape(-1, width)]
        rows.append(np.concatenate(parts, axis=-1))
    values = np.concatenate(rows, axis=2)[:, :, :count]
    result = np.empty((2, 2, len(deviations), len(deviations), len(gap)))
    for first, second in (lower, lower[::-1]):
        result[:, :, first, second] = values
    return result


@functools.lru_cache(maxsize=64)
def tabulate_pieces(closed: ClosedForm, kink: float, low: float, high: float, rtol: float) -> Table | None:
    """Make the table for deviations in [low, high], right to rtol; None where the expansions become too long.

    `kink` is the only distance of kinks of phi from 0, but for 0.
    """
    m, count, target = tables.first_points(low, high, kinked=True), tables.ANGLE_POINTS[1], rtol / 4
    places = tables.places_between(low, high)
    while m and count:
        deviations = places.deviations(m)[1]
        psi = tables.angles(count)
        gap = 2 * np.sin(psi / 2) ** 2
        even, odd, share = closed.jumps(deviations)
        with arithmetic(True):
            exact = _exact(closed, deviations, gap)
            parts: list[Part | None] = []
            short = False, False
            for (separation, mean), jumps, own, sign in zip(
                exact, (even, odd), (share, 1 - share), (1, -1), strict=True
            ):
                part, short_here = _part(separation[..., 0], mean, jumps, own, psi, target, sign)
                parts.append(part)
                short = (short[0] or short_here[0], short[1] or short_here[1])
        if not any(short):
            one_sided = any(np.array_equal(even[1:], sign * np.array(odd[1:])) for sign in (1, -1))
            if one_sided and parts[0]:
                parts[0] = replace(parts[0], coincident=())
            growth, itself, order = tables.own_series(closed, closed.kinks, places, tables.OWN_TERMS)
            return Table(parts[0], parts[1], places, np.asarray(kink), growth, itself, order, one_sided=one_sided)
        m, count = (
            tables.next_step(tables.DEVIATION_POINTS, m, short[0]),
            tables.next_step(tables.ANGLE_POINTS[:3], count, short[1]),
        )
    return None


def _part(
    separation: np.ndarray, mean: np.ndarray, jumps: Jumps, share: np.ndarray, psi: np.ndarray, target: float, sign: int
) -> tuple[Part | None, tuple[bool, bool]]:
    """Make one part, and say if it needs more deviations, and more angles."""
    if max(np.abs(share).max(), np.abs(mean).max()) < 64 * np.finfo(float).eps:
        return None, (False, False)
    coincident: list[Coincident] = []
    short = False
    if np.abs(jumps.j).max() + np.abs(jumps.g).max() > 0:
        x = Jumps(*(v[:, None] for v in jumps))
        # E[F(U) G(V)] has what is beyond h and below -k too: all beyond h, less what is also above -k.
        pairs = [Jumps(*jumps), Jumps(-jumps.h, sign * jumps.j, -sign * jumps.g)]
        for y in pairs if jumps.h.min() < MIRRORED else pairs[:1]:
            samples = sample(x, y)
            coincident_separation, coincident_mean = coincident_at(samples, x, y, psi)
            mean = mean - coincident_mean
            separation = separation if coincident else separation - coincident_separation  # smooth for the mirror image
            coincident.append(coincident_part(samples, target / 2, 0.0 if coincident else np.abs(x.h - y.h).max() / 2))
            short = short or any(tables.short_of_target(v, target)[0] for v in samples)
    short_mean = tables.short_of_target(mean, target)
    inner = (share[:, None] + share) / 2 - separation
    part = Part(
        tables.separation_series(chebyshev_coefficients(inner, 0, 1), target / 2),
        in_places(chebyshev_coefficients(share, 0)),
        tables.expand_slope(mean, target / 2),
        tuple(coincident),
    )
    return part, (short or short_mean[0], short_mean[1])
