"""The pair map of any phi for a range of standard deviations, as a series that costs about as much as a closed form.

For u = s z with z ~ N(0, 1) let f_s(z) = phi(s z)/sqrt(E[phi(s z)^2]). The correlation after phi splits into the even
and the odd part of phi, R(rho) = R_e(|rho|) + sign(rho) R_o(|rho|), and for each part, with psi the angle to the nearer
of +-1 and near = 1 - cos(psi),

    R(psi; s, t) = <f_s, f_t> - near H(psi; s, t),    H = mean of dR/drho over [cos(psi), 1].

dR/drho = E[f_s' f_t'] comes from quadrature at Chebyshev points in psi (all these functions are analytic in psi, kinks
of phi or not) and in s/(s + sigma); H follows by integration, without cancellation, so that gaps keep their relative
accuracy. <f_s, f_s> - <f_s, f_t> is half the squared distance of two vectors, which vanishes exactly for s = t.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field
from typing import NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np

from widelimit import gaussian
from widelimit.activations.chebyshev import chebyshev_coefficients, chebyshev_points
from widelimit.activations.expansions import Expansion, expanded, in_powers
from widelimit.activations.sharp import Sharp
from widelimit.gaussian import Function, Panels
from widelimit.pytrees import pytree

DEVIATION_POINTS = (12, 24, 40)
FURTHEST = 16.0
"""A kink is taken as no farther out than this many deviations: the density is e^-128 there."""
ANGLE_POINTS = (32, 64, 128, 192)
_ROWS = 32
"""Angles (of both signs) in one call of the compiled quadrature, which so has few shapes."""


@final
@pytree
@dataclass(frozen=True)
class Part:
    """The even or the odd part of phi."""

    apart: Expansion
    """|f_s - f_t|^2/2 over the square of the difference of their places."""
    share: np.ndarray
    """(m,): coefficients of E[f_s^2]."""
    mean_slope: Expansion
    """H, in powers: psi 4/pi - 1 = x, and halves in 2 x^2 - 1 (`expansions.in_powers`)."""
    sharp: tuple[Sharp, ...] = ()
    """What H is less of: where kinks of two inputs may meet, and where one may meet the mirror image of the other."""


@final
@pytree
@dataclass(frozen=True)
class Table:
    """Both parts (None where phi has none), and the range of standard deviations."""

    even: Part | None
    odd: Part | None
    places: Places
    kink: np.ndarray
    """The distance of kinks from 0 that are sharp, or 0."""
    one_sided: bool = field(default=False, metadata={"static": True})
    """Whether kinks are on one side of 0: both parts then have one sharp part, but for a sign, kept as the odd's."""

    def kink_at(self, deviation: jax.Array) -> jax.Array:
        """In deviations."""
        return jnp.asarray(self.kink) / jnp.maximum(deviation, self.kink / FURTHEST + np.finfo(deviation.dtype).tiny)


@final
@pytree
@dataclass(frozen=True)
class Places:
    """The range of standard deviations as the interval of Chebyshev polynomials: s/(s + sigma) = middle + half x."""

    sigma: np.ndarray
    middle: np.ndarray
    half: np.ndarray
    count: int = field(metadata={"static": True})
    """m, of the polynomials."""
    largest: float = field(metadata={"static": True})
    """A bound on the standard deviations: a power of two, as compiled programs depend on it."""

    def of(self, deviation: jax.Array) -> jax.Array:
        """x of every standard deviation; NaN outside of the range, 0 in a range of one deviation."""
        place = deviation / (deviation + self.sigma)
        if self.count == 1:
            return jnp.where(jnp.abs(place - self.middle) <= self.half, 0, jnp.nan)
        x = (place - self.middle) / self.half
        # The ends themselves may be outside by rounding.
        return jnp.where(jnp.abs(x) <= 1 + 64 * float(np.finfo(x.dtype).eps) / self.half, x, jnp.nan)

    def polynomials(self, x: jax.Array) -> jax.Array:
        """T_j(x), (m, ..)."""
        values = [jnp.ones_like(x) + 0 * x, x]
        while len(values) < self.count:
            values.append(2 * x * values[-1] - values[-2])
        return jnp.stack(values[: self.count])

    def deviations(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Chebyshev points x, and the standard deviations there."""
        x = chebyshev_points(count)
        place = self.middle + self.half * x
        return x, np.asarray(self.sigma * place / (1 - place))


def places_between(low: float, high: float, count: int) -> Places:
    """f_s is analytic for Re s > 0, which s/(s + sigma) takes to a disc: sqrt(low high) puts the range in its middle.

    Much below the lengths of order 1 over which phi varies, nothing happens: so sigma is not less than 1.
    """
    sigma = max(math.sqrt(low * high), min(1.0, high))
    ends = low / (low + sigma), high / (high + sigma)
    half = max((ends[1] - ends[0]) / 2, 8 * np.finfo(float).eps if count == 1 else 0.0)
    largest = 2.0 ** math.ceil(math.log2(max(high, 1.0)))
    return Places(np.asarray(sigma), np.asarray((ends[0] + ends[1]) / 2), np.asarray(half), count, largest)


def angles(count: int) -> np.ndarray:
    """Chebyshev points in psi on [0, pi/2]."""
    return (1 + chebyshev_points(count)) * math.pi / 4


def half_octaves(low: float, high: float) -> tuple[float, float]:
    """A few ranges that contain [low, high], so that tables and compiled programs are found again."""
    if low == high:
        return low, high
    low = 0.0 if low < high / 256 else 2 ** (math.floor(2 * math.log2(low)) / 2)
    return low, 2 ** (math.ceil(2 * math.log2(high)) / 2)


def averaged(slopes: np.ndarray) -> np.ndarray:
    """Means over [cos(psi), 1] of a function of rho, at `angles`; both along the last axis."""
    count = slopes.shape[-1]
    nodes, weights = np.polynomial.legendre.leggauss(48)
    tau, weights = (nodes + 1) / 2, weights / 2
    within = 2 * np.arcsin(tau * np.sin(angles(count) / 2)[:, None])
    values = np.polynomial.chebyshev.chebvander(within * 4 / math.pi - 1, count - 1)
    operator = np.einsum("pqk,q->pk", values, 2 * tau * weights)
    return np.asarray(chebyshev_coefficients(slopes, -1) @ operator.T)


class _Samples(NamedTuple):
    """<f_s, f_t> (m, m) and dR/drho (m, m, K) of the even and the odd part."""

    inner: tuple[np.ndarray, np.ndarray]
    slopes: tuple[np.ndarray, np.ndarray]


def _sample(phi: Function, derivative: Function, deviations: np.ndarray, count: int, wanted: Panels) -> _Samples:
    m, psi = len(deviations), angles(count)

    def sums(function: Function, cosine: np.ndarray, sine: np.ndarray) -> np.ndarray:
        rho, sigma = np.concatenate([cosine, -cosine]), np.concatenate([sine, sine])
        s = np.broadcast_to(deviations, (len(rho), m))
        step = min(_ROWS, len(rho))
        blocks = [slice(i, i + step) for i in range(0, len(rho), step)]
        values = [gaussian.pair_sums(function, function, s[b], s[b], rho[b], sigma[b], wanted=wanted) for b in blocks]
        return np.moveaxis(np.concatenate(values), 0, -1)

    moments = sums(phi, np.ones(1), np.zeros(1))
    norms = np.sqrt(np.diagonal(moments[..., 0]))
    scale = np.outer(norms, norms)[..., None]
    inner = moments / scale
    slopes = sums(derivative, np.cos(psi), np.sin(psi)) * np.outer(deviations, deviations)[..., None] / scale
    plus, minus = slopes[..., :count], slopes[..., count:]
    return _Samples(
        ((inner[..., 0] + inner[..., 1]) / 2, (inner[..., 0] - inner[..., 1]) / 2),
        ((plus - minus) / 2, (plus + minus) / 2),
    )


def unconverged(values: np.ndarray, target: float) -> tuple[bool, bool]:
    """Whether the last coefficients in the deviations, and in the angle, are above the target; (m, m, K)."""
    size = np.abs(chebyshev_coefficients(values, 0, 1, 2))
    return len(size) > 1 and bool(size[-2:].max() > target), bool(size[..., -2:].max() > target)


def separated(products: np.ndarray, threshold: float) -> Expansion:
    """|f_x - f_y|^2/(2 (x - y)^2) from the Chebyshev coefficients (m, m) of <f_x, f_y>, without cancellation.

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
    return expanded(chebyshev_coefficients(values, 0, 1)[: len(products), : len(products), None], threshold, step=1)


def _slopes_of_terms(count: int) -> np.ndarray:
    """The largest |T_k + tan(psi/2) dT_k/dpsi|: what a coefficient of H means to dR/drho."""
    psi = np.linspace(0, math.pi / 2, 16 * count)
    k, angle = np.arange(count)[:, None], np.arccos(np.clip(psi * 4 / math.pi - 1, -1, 1))
    ends = np.abs(np.sin(angle)) < 1e-6
    ratio = np.where(ends, k, np.sin(k * angle) / np.where(ends, 1, np.sin(angle)))
    return np.asarray(np.max(np.abs(np.cos(k * angle) + np.tan(psi / 2) * (4 / math.pi) * k * ratio), axis=1))


def expanded_slope(means: np.ndarray, threshold: float) -> Expansion:
    """H from its values (m, m, K) at `angles`, such that dR/drho is right to the threshold too."""
    weights = _slopes_of_terms(means.shape[-1])
    return in_powers(expanded(chebyshev_coefficients(means, 0, 1, 2), threshold, step=2, weights=weights), halved=True)


def _part(inner: np.ndarray, slopes: np.ndarray, threshold: float) -> Part | None:
    """The series of one part from its samples."""
    if max(np.abs(inner).max(), np.abs(slopes).max()) < 64 * np.finfo(float).eps:
        return None
    return Part(
        separated(chebyshev_coefficients(inner, 0, 1), threshold),
        chebyshev_coefficients(np.diagonal(inner), 0),
        expanded_slope(averaged(slopes), threshold),
    )


@functools.lru_cache(maxsize=256)
def tabulate(phi: Function, kinks: tuple[float, ...], low: float, high: float, rtol: float, label: str) -> Table:
    """The table of phi for standard deviations in [low, high], right to rtol.

    Raises:
        ValueError: the target is not reached; the message says what was found.
    """
    if low != high and any(kink != 0 for kink in kinks):
        raise ValueError(
            f"{label} has kinks at {kinks} and is not a polynomial of degree 2 between them: its duals are tabulated "
            f"only for inputs of equal norm (their kinks would be in different places), and these have deviations from "
            f"{low:.3g} to {high:.3g}. Scale every input to the same norm, e.g. "
            f"X / np.linalg.norm(X, axis=1, keepdims=True), or use a wl.PiecewisePolynomial."
        )
    m, count, target = (1 if low == high else DEVIATION_POINTS[0]), ANGLE_POINTS[0], rtol / 4
    with jax.enable_x64(True):
        _refuse_growth(phi, high, rtol, label)
        while True:
            places = places_between(low, high, m)
            wanted = gaussian.panels(kinks, places.largest)
            samples = _sample(phi, derivative_of(phi), places.deviations(m)[1], count, wanted)
            either = [unconverged(slopes, target) for slopes in samples.slopes]
            short = either[0][0] or either[1][0], either[0][1] or either[1][1]
            if not any(short):
                _refuse_jumps(samples, rtol, label)
                break
            m = next_step(DEVIATION_POINTS, m, short[0])
            count = next_step(ANGLE_POINTS, count, short[1])
            if 0 in (m, count):
                raise ValueError(_no_convergence(label, kinks, low, high, rtol))
        parts = [_part(*part, threshold=target) for part in zip(samples.inner, samples.slopes, strict=True)]
        return Table(parts[0], parts[1], places, np.zeros(()))


def _refuse_jumps(samples: _Samples, rtol: float, label: str) -> None:
    """The odd part is uncorrelated at rho = 0, unless the derivative misses a jump: then R(1) is not its integral."""
    inner, slopes = samples.inner[1], samples.slopes[1]
    at_zero = np.polynomial.chebyshev.chebvander(np.ones(1), slopes.shape[-1] - 1)[0]
    left = inner - chebyshev_coefficients(averaged(slopes), -1) @ at_zero
    if np.abs(left).max() > max(rtol, 1e-11):
        raise ValueError(
            f"{label}: E[phi(u) phi(v)] is not the integral of E[phi'(u) phi'(v)] (off by {np.abs(left).max():.2g}): "
            f"phi jumps, or its derivative by JAX is wrong. For jumps use wl.Sign() or wl.Step()."
        )


def next_step(steps: tuple[int, ...], value: int, wanted: bool) -> int:
    """The next of the steps if wanted; 0 after the last."""
    if not wanted:
        return value
    later = [step for step in steps if step > value]
    return later[0] if later else 0


def _no_convergence(label: str, kinks: tuple[float, ...], low: float, high: float, rtol: float) -> str:
    declared = f"declared: {kinks}" if kinks else "none are declared"
    return (
        f"{label}: its duals for standard deviations from {low:.3g} to {high:.3g} do not converge to rtol = {rtol:g}. "
        f"The likely cause is a kink that is not declared ({declared}): pass wl.activation(phi, kinks=(...)); or phi "
        f"varies too fast for these inputs: scale them down, or pass a larger rtol."
    )


@functools.cache
def derivative_of(phi: Function) -> Function:
    """phi', elementwise; one function for each phi, so that compiled programs are found again."""
    return lambda u: jnp.asarray(jax.jvp(phi, (u,), (jnp.ones_like(u),))[1])


def _refuse_growth(phi: Function, high: float, rtol: float, label: str) -> None:
    """An error where the tails of E[phi(s z)^2] beyond the panels could count."""
    tails = jnp.linspace(-gaussian.REACH, gaussian.REACH, 81)
    terms = np.asarray(phi(high * tails)) ** 2 * np.exp(-(np.asarray(tails) ** 2) / 2)
    if not np.isfinite(terms).all() or max(terms[0], terms[-1]) > rtol / 100 * terms.max():
        raise ValueError(
            f"{label} grows too fast for Gaussian signals of standard deviation {high:.3g}: E[phi(u)^2] must be "
            f"finite, so phi must grow more slowly than exp(u^2/{4 * high**2:.3g}). Scale the inputs down."
        )
