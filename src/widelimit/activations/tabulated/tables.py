"""The pair map of any phi for a range of deviations becomes a series that costs about as much as a closed form.

For u = s z with z ~ N(0, 1) let f_s(z) = phi(s z)/sqrt(E[phi(s z)^2]). The correlation after phi splits into the even
and the odd part of phi, R(rho) = R_e(|rho|) + sign(rho) R_o(|rho|), and for each part, with psi the angle to the nearer
of +-1 and gap = 1 - cos(psi),

    R(psi; s, t) = <f_s, f_t> - gap H(psi; s, t),    H = mean of dR/drho over [cos(psi), 1].

dR/drho = E[f_s' f_t'] comes from quadrature at Chebyshev points in psi (all these functions are analytic in psi, kinks
of phi or not) and in s/(s + sigma); H follows by integration, without cancellation, so that gaps keep their relative
accuracy. <f_s, f_s> - <f_s, f_t> is half the squared distance of two vectors, which vanishes exactly for s = t.
"""

import contextlib
import functools
import math
from collections.abc import Callable
from dataclasses import field, replace
from typing import Any, NamedTuple, Self, final

import jax
import jax.numpy as jnp
import numpy as np

from widelimit import gaussian
from widelimit.activations.tabulated.chebyshev import chebyshev_coefficients, chebyshev_points
from widelimit.activations.tabulated.chunks import Chunks
from widelimit.activations.tabulated.coincident import Coincident
from widelimit.activations.tabulated.expansions import PLACES, Expansion, expand, in_places, in_powers
from widelimit.activations.tabulated.moments import growth, mean_shares, order_at_zero
from widelimit.activations.tabulated.polar import NoConvergenceError, sums_of_parts
from widelimit.arithmetic import arithmetic
from widelimit.gaussian import Function
from widelimit.interpreter import interpreted
from widelimit.pytrees import pytree

DEVIATION_POINTS = (12, 24, 40, 64, 96)
"""Points in the deviations of each try: sin(u) + 0.3 u needs 64 up to deviation 4, and 96 up to 8."""
WIDE = 4.0
"""Ranges of deviations with larger quotients of their ends begin with more points."""
OWN_TERMS = 96
"""Terms of the series of one input alone."""
FURTHEST = 16.0
"""A kink counts as at most this many deviations from 0, where the density is e^-128."""
ANGLE_POINTS = (32, 64, 128, 192)


@final
@pytree
class Part:
    """A part of phi, the even or the odd one, has these series."""

    separation: Expansion
    """|f_s - f_t|^2/2 over the square of the difference of their places."""
    share: np.ndarray
    """(PLACES,): coefficients of E[f_s^2]."""
    mean_slope: Expansion
    """H, in powers: psi 4/pi - 1 = x, and halves in 2 x^2 - 1 (`expansions.in_powers`)."""
    coincident: tuple[Coincident, ...] = ()
    """Terms that `mean_slope` lacks: of kinks of two inputs that coincide, or of one and the other's mirror image."""


@final
@pytree
class Places:
    """The range of deviations is the interval of Chebyshev polynomials: s/(s + sigma) = middle + half x."""

    sigma: np.ndarray
    middle: np.ndarray
    half: np.ndarray

    def of(self, deviation: jax.Array) -> jax.Array:
        """Return the place x of every standard deviation; NaN outside of the range."""
        away = deviation / (deviation + self.sigma) - self.middle
        # The ends themselves may be outside by rounding.
        inside = jnp.abs(away) <= self.half + 64 * float(np.finfo(away.dtype).eps)
        return jnp.where(inside, jnp.clip(away / self.half, -1, 1), jnp.nan)

    def deviations(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return Chebyshev points x, and the standard deviations there."""
        x = chebyshev_points(count)
        place = self.middle + self.half * x
        return x, np.asarray(self.sigma * place / (1 - place))


@final
@pytree
class Table:
    """The table holds both parts (None where phi has none), and the range of standard deviations."""

    even: Part | None
    odd: Part | None
    places: Places
    kink: np.ndarray
    """The distance from 0 of kinks whose coincidences are kept, or 0."""
    growth: np.ndarray
    """(OWN_TERMS,): log(E[phi(s z)^2]/s^(2 order))."""
    itself: np.ndarray
    """(OWN_TERMS,): dR/drho of an input with itself."""
    order: int = field(default=0, metadata={"static": True})
    chunks: Chunks | None = None
    """The terms of H of both parts that their `mean_slope` lacks."""
    one_sided: bool = field(default=False, metadata={"static": True})
    """If True, kinks are on one side of 0: both parts have the non-analytic terms of the odd one, but for a sign."""
    looped: bool = field(default=False, metadata={"static": True})
    """If True, `mean_slope` of both parts has columns of one even length, and sums over powers are loops."""
    mean: np.ndarray | None = None
    """(OWN_TERMS,): E[phi(s z)]/sqrt(E[phi(s z)^2])."""

    def cast(self, dtype: Any) -> Self:
        """Return the table in another dtype."""
        return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), self)  # type: ignore[no-any-return]

    @property
    def numbers_per_input(self) -> int:
        """Return how many numbers a memo holds; it has none of chunks."""
        kept = jax.tree.leaves(replace(self, chunks=None))
        return sum(math.prod(leaf.shape[:-1]) for leaf in kept if leaf.ndim)


RTOL = {"float64": 1e-10, "float32": 1e-6}


def error_target(rtol: float | None, dtype: Any) -> float:
    """Return rtol, or that of the dtype for None: the bound on errors relative to sqrt(E[phi(u)^2] E[phi(v)^2])."""
    return RTOL[np.dtype(dtype).name] if rtol is None else rtol


def polynomials(x: jax.Array, count: int) -> jax.Array:
    """Evaluate T_j(x), j < count, (count, ..): T_(8 j + k) = 2 T_(8 j) T_k - T_(8 j - k), k = 0..8, are a step."""

    def step(pair: tuple[jax.Array, jax.Array], _: None) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        now, after = pair
        return (after, 2 * x * after - now), now

    first = jax.lax.scan(step, (jnp.ones_like(x) + 0 * x, x), None, length=9)[1]
    groups = jax.lax.scan(
        lambda group, _: (2 * group[-1] * first - group[::-1], group[:-1]), first, None, length=-(-count // 8)
    )[1]
    return jnp.asarray(groups.reshape(-1, *x.shape)[:count])


def places_between(low: float, high: float) -> Places:
    """f_s is analytic for Re s > 0, and s/(s + sigma) maps this half-plane to a disc: sqrt(low high) is in the middle.

    Far below the lengths of order 1 over which phi varies, f_s hardly changes: so sigma is at least min(1, high).
    """
    sigma = max(math.sqrt(low * high), min(1.0, high))
    ends = low / (low + sigma), high / (high + sigma)
    half = max((ends[1] - ends[0]) / 2, 8 * np.finfo(float).eps)
    return Places(np.asarray(sigma), np.asarray((ends[0] + ends[1]) / 2), np.asarray(half))


def angles(count: int) -> np.ndarray:
    """Return Chebyshev points in psi on [0, pi/2]."""
    return (1 + chebyshev_points(count)) * math.pi / 4


def half_octaves(low: float, high: float) -> tuple[float, float]:
    """Choose one of a few ranges that contain [low, high], so that tables and compiled programs are found again."""
    if low == high:
        return low, high
    low = 0.0 if low < high / 256 else 2 ** (math.floor(2 * math.log2(low)) / 2)
    return low, 2 ** (math.ceil(2 * math.log2(high)) / 2)


def average(slopes: np.ndarray) -> np.ndarray:
    """Average a function of rho over [cos(psi), 1], at `angles`; both along the last axis."""
    count = slopes.shape[-1]
    nodes, weights = np.polynomial.legendre.leggauss(48)
    tau, weights = (nodes + 1) / 2, weights / 2
    within = 2 * np.arcsin(tau * np.sin(angles(count) / 2)[:, None])
    values = np.polynomial.chebyshev.chebvander(within * 4 / math.pi - 1, count - 1)
    operator = np.einsum("pqk,q->pk", values, 2 * tau * weights)
    return np.asarray(chebyshev_coefficients(slopes, -1) @ operator.T)


class _Samples(NamedTuple):
    """The samples are <f_s, f_t> (m, m) and dR/drho (m, m, K) of the even and the odd part."""

    inner: tuple[np.ndarray, np.ndarray]
    slopes: tuple[np.ndarray, np.ndarray]


def _sample(phi: Function, kinks: tuple[float, ...], deviations: np.ndarray, count: int) -> _Samples:
    psi = angles(count)
    inner, norms = _inner(interpreted(phi), kinks, deviations)
    derivative, ends = derivative_of(phi), [kink for kink in kinks if kink != 0]
    if ends:
        rho, sine = np.concatenate([np.cos(psi), -np.cos(psi)]), np.tile(np.sin(psi), 2)
        row = np.broadcast_to(deviations, (len(rho), len(deviations)))
        required = gaussian.panels(kinks, max(1.0, float(deviations.max())))
        sums = np.moveaxis(gaussian.pair_sums(derivative, derivative, row, row, rho, sine, grid=required), 0, -1)
        slopes = (sums[..., :count] - sums[..., count:]) / 2, (sums[..., :count] + sums[..., count:]) / 2
    else:
        slopes = sums_of_parts(interpreted(derivative), deviations, psi, kinked=bool(kinks))
    scale = (np.outer(deviations, deviations) / np.outer(norms, norms))[..., None]
    return _Samples(inner, (slopes[0] * scale, slopes[1] * scale))


def _inner(
    phi: Callable[[np.ndarray], np.ndarray], kinks: tuple[float, ...], deviations: np.ndarray
) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """Compute <f_s, f_t> (m, m) of the even and the odd part, and sqrt(E[phi(s z)^2]) (m,)."""
    largest = deviations.max()
    required = gaussian.panels((*kinks, *(-kink for kink in kinks)), max(1.0, float(largest)))
    nodes, weights = gaussian.normal_rule(largest, required)
    right, left = phi(np.multiply.outer(deviations, nodes)), phi(np.multiply.outer(deviations, -nodes))
    norms = np.sqrt(right**2 @ weights)
    parts = [(right + sign * left) / 2 / norms[:, None] for sign in (1, -1)]
    even, odd = ((part * weights) @ part.T for part in parts)
    return (even, odd), norms


def short_of_target(values: np.ndarray, target: float) -> tuple[bool, bool]:
    """Return two flags: True if the last coefficients in the deviations, or in the angle, are above the target."""
    size = np.abs(chebyshev_coefficients(values, 0, 1, 2))
    return len(size) > 1 and bool(size[-2:].max() > target), bool(size[..., -2:].max() > target)


def separation_series(products: np.ndarray, threshold: float) -> Expansion:
    """Compute |f_x - f_y|^2/(2 (x - y)^2) from the Chebyshev coefficients (m, m) of <f_x, f_y>, without cancellation.

    f_x as the vector sum_j root_j T_j(x), of a space that may have an indefinite product; the divided differences of
    T_j have a recurrence of their own.
    """
    eigenvalues, vectors = np.linalg.eigh((products + products.T) / 2)
    kept = np.abs(eigenvalues) > len(eigenvalues) * np.finfo(float).eps * np.abs(eigenvalues).max()
    root = np.sqrt(np.abs(eigenvalues[kept])) * vectors[:, kept]
    x = chebyshev_points(2 * len(products))
    at = np.polynomial.chebyshev.chebvander(x, len(products) - 1)
    differences = np.zeros((len(products), len(x), len(x)))
    for j in range(1, len(products)):
        factor = 1 if j == 1 else 2
        differences[j] = factor * (x[:, None] * differences[j - 1] + at[:, j - 1]) - (j > 1) * differences[j - 2]
    values = np.tensordot(np.sign(eigenvalues[kept]), np.einsum("jr,jab->rab", root, differences) ** 2, 1) / 2
    return expand(chebyshev_coefficients(values, 0, 1)[: len(products), : len(products), None], threshold, step=1)


def _slopes_of_terms(count: int) -> np.ndarray:
    """Bound |T_k + tan(psi/2) dT_k/dpsi|: the weight of a coefficient of H in dR/drho."""
    psi = np.linspace(0, math.pi / 2, 16 * count)
    k, angle = np.arange(count)[:, None], np.arccos(np.clip(psi * 4 / math.pi - 1, -1, 1))
    ends = np.abs(np.sin(angle)) < 1e-6
    ratio = np.where(ends, k, np.sin(k * angle) / np.where(ends, 1, np.sin(angle)))
    return np.asarray(np.max(np.abs(np.cos(k * angle) + np.tan(psi / 2) * (4 / math.pi) * k * ratio), axis=1))


def expand_slope(means: np.ndarray, threshold: float) -> Expansion:
    """Expand H from its values (m, m, K) at `angles`, such that dR/drho is right to the threshold too."""
    weights = _slopes_of_terms(means.shape[-1])
    return in_powers(expand(chebyshev_coefficients(means, 0, 1, 2), threshold, step=2, weights=weights), halved=True)


def _part(inner: np.ndarray, slopes: np.ndarray, threshold: float) -> Part | None:
    """Make the series of one part from its samples."""
    if max(np.abs(inner).max(), np.abs(slopes).max()) < 64 * np.finfo(float).eps:
        return None
    return Part(
        separation_series(chebyshev_coefficients(inner, 0, 1), threshold),
        in_places(chebyshev_coefficients(np.diagonal(inner), 0)),
        expand_slope(average(slopes), threshold),
    )


@functools.lru_cache(maxsize=256)
def tabulate(phi: Function, kinks: tuple[float, ...], low: float, high: float, rtol: float, label: str) -> Table:
    """Make the table of phi for standard deviations in [low, high], right to rtol.

    Raises: ValueError: the target is not reached; the message says what was found.
    """
    if low != high and any(kink != 0 for kink in kinks):
        raise ValueError(
            f"{label} has kinks at {kinks} and is not a polynomial of degree 2 between them: its duals are tabulated "
            f"only for inputs of equal norm (their kinks would be in different places), and these have deviations from "
            f"{low:.3g} to {high:.3g}. Scale every input to the same norm, e.g. "
            f"X / np.linalg.norm(X, axis=1, keepdims=True), or use a wl.PiecewisePolynomial."
        )
    m, count, target = (1 if low == high else first_points(low, high)), ANGLE_POINTS[0], rtol / 4
    with arithmetic(True):
        _refuse_growth(phi, high, rtol, label)
        places = places_between(low, high)
        while True:
            try:
                samples = _sample(phi, kinks, places.deviations(m)[1], count)
            except NoConvergenceError:
                raise ValueError(_no_convergence(label, kinks, low, high, rtol, 0.0)) from None
            either = [short_of_target(slopes, target) for slopes in samples.slopes]
            short = either[0][0] or either[1][0], either[0][1] or either[1][1]
            if not any(short):
                _refuse_jumps(samples, rtol, label)
                break
            m = next_step(DEVIATION_POINTS, m, short[0])
            count = next_step(ANGLE_POINTS, count, short[1])
            if 0 in (m, count):
                raise ValueError(
                    _no_convergence(label, kinks, low, high, rtol, _resolved(phi, kinks, low, high, target))
                )
        threshold = target if m <= PLACES else target / 8  # more terms are left out
        parts = [_part(*part, threshold=threshold) for part in zip(samples.inner, samples.slopes, strict=True)]
        points = 1 if m == 1 else OWN_TERMS
        means = chebyshev_coefficients(mean_shares(phi, kinks, places.deviations(points)[1]), 0)
        own = own_series(phi, kinks, places, points)
        return Table(parts[0], parts[1], places, np.zeros(()), *own, mean=np.pad(means, (0, OWN_TERMS - points)))


def own_series(
    phi: Function, kinks: tuple[float, ...], places: Places, points: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """Compute `Table.growth`, `Table.itself` and `Table.order` from that many points.

    The derivative is dR/drho = s^2 E[phi'^2]/E[phi^2].
    """
    deviations, derivative = places.deviations(points)[1], derivative_of(phi)
    own, of_slope = (growth(f, kinks, deviations) for f in (phi, derivative))
    order = order_at_zero(phi, kinks)
    itself = of_slope / own * deviations ** (2 * (order_at_zero(derivative, kinks) + 1 - order))
    first, second = (
        np.pad(chebyshev_coefficients(values, 0), (0, OWN_TERMS - points)) for values in (np.log(own), itself)
    )
    return first, second, order


def _refuse_jumps(samples: _Samples, rtol: float, label: str) -> None:
    """Refuse a derivative that misses a jump of phi.

    The odd part is uncorrelated at rho = 0; if a jump is missed, R(1) is not the integral of dR/drho.
    """
    inner, slopes = samples.inner[1], samples.slopes[1]
    at_zero = np.polynomial.chebyshev.chebvander(np.ones(1), slopes.shape[-1] - 1)[0]
    left = inner - chebyshev_coefficients(average(slopes), -1) @ at_zero
    if np.abs(left).max() > max(rtol, 1e-11):
        raise ValueError(
            f"{label}: E[phi(u) phi(v)] is not the integral of E[phi'(u) phi'(v)] (off by {np.abs(left).max():.2g}): "
            f"phi jumps, oscillates too fast for these deviations (scale the inputs down), or its derivative by JAX is "
            f"wrong. For jumps use wl.Sign() or wl.Step()."
        )


def first_points(low: float, high: float, *, kinked: bool = False) -> int:
    """Return the points in the deviations of the first try: one that fails costs half as much as the one after it.

    Functions analytic for Re s > 0 take 12 for errors of 1e-10 where high = 4 low; coincident kinks one step more.
    """
    return DEVIATION_POINTS[kinked + (high > WIDE * low)]


def next_step(steps: tuple[int, ...], value: int, required: bool) -> int:
    """Return the next of the steps if `required`; 0 after the last."""
    if not required:
        return value
    later = [step for step in steps if step > value]
    return later[0] if later else 0


def _resolved(phi: Function, kinks: tuple[float, ...], low: float, high: float, target: float) -> float:
    """Return a largest deviation below `high` up to which the duals converge; 0 where none is found."""
    for part in (2.0**-k for k in range(1, 7)):
        if part * high <= low:
            break
        places = places_between(low, part * high)
        with contextlib.suppress(NoConvergenceError):
            samples = _sample(phi, kinks, places.deviations(DEVIATION_POINTS[-1])[1], ANGLE_POINTS[-1])
            if not any(any(short_of_target(slopes, target)) for slopes in samples.slopes):
                return part * high
    return 0.0


def _no_convergence(label: str, kinks: tuple[float, ...], low: float, high: float, rtol: float, resolved: float) -> str:
    if resolved:
        return (
            f"{label}: its duals for standard deviations from {low:.3g} to {high:.3g} do not converge to rtol = "
            f"{rtol:g}, as phi varies too fast for the largest of them; up to {resolved:.3g} they do. Scale the inputs "
            f"or weight_std down to that, or pass wl.activation(phi, rtol=...) a larger rtol."
        )
    declared = f"declared: {kinks}" if kinks else "none are declared"
    return (
        f"{label}: its duals for standard deviations from {low:.3g} to {high:.3g} do not converge to rtol = {rtol:g}. "
        f"The likely cause is a kink that is not declared ({declared}): pass wl.activation(phi, kinks=(...)); or phi "
        f"varies too fast for these inputs: scale them down, or pass a larger rtol."
    )


@functools.cache
def derivative_of(phi: Function) -> Function:
    """Return phi', elementwise; it is one function for each phi, so that compiled programs are found again."""
    return lambda u: jnp.asarray(jax.jvp(phi, (u,), (jnp.ones_like(u),))[1])


def _refuse_growth(phi: Function, high: float, rtol: float, label: str) -> None:
    """Raise an error where the tails of E[phi(s z)^2] beyond the panels could count."""
    tails = np.linspace(-gaussian.REACH, gaussian.REACH, 81)
    terms = interpreted(phi)(high * tails) ** 2 * np.exp(-(tails**2) / 2)
    if not np.isfinite(terms).all() or max(terms[0], terms[-1]) > rtol / 100 * terms.max():
        raise ValueError(
            f"{label} grows too fast for Gaussian signals of standard deviation {high:.3g}: E[phi(u)^2] must be "
            f"finite, so phi must grow more slowly than exp(u^2/{4 * high**2:.3g}). Scale the inputs down."
        )
