"""The scale Q = prod_l chi^2(n_l)/n_l of a deep linear network's kernel: its prior, its posterior, its limit.

`posterior_scales` gives a quadrature rule of the posterior, `saddle_point` the value where widths and rows are large.
"""

import math
from collections.abc import Callable
from typing import NamedTuple, Self

import numpy as np
from scipy.optimize import brentq
from scipy.special import gammaln, loggamma, polygamma, psi

from widelimit.shapes import Float

REACH = 60.0
"""Shapes from e^-60 to e^60 are tried; densities count down to e^-60 of the largest."""
GRID, NODES, CONTOUR = 2001, 1001, 400
"""Points of a search over shapes, of the rule for the posterior, and of a contour integral."""
SMALLEST = 1e-200
"""Scales Q below this number and above its inverse are not resolved."""
LOWEST = math.log(SMALLEST)
ROUNDS = 30
"""Times that the interval around the posterior is made narrower, at most."""
AGREEMENT = 1e-7
"""Relative difference of the integrals by all nodes and by every second one that is taken for convergence."""


_UNRESOLVED = (
    "the posterior of the kernel's scale is not resolved: the targets y are too large, or the noise too small, beside "
    "the kernel, or there are too many layers or units."
)


class Scales(NamedTuple):
    """The law of s = ln Q times e^{c s} has gamma variables of shapes a_l = n_l/2 + c; a row for each tilt c."""

    shapes: Float[np.ndarray, "S L"]
    c: Float[np.ndarray, " S"]
    s: Float[np.ndarray, " S"]
    """The mean of ln Q at this tilt."""
    curvature: Float[np.ndarray, " S"]
    """The variance of ln Q at this tilt, ds/dc."""

    @classmethod
    def at(cls, widths: np.ndarray, tau: np.ndarray) -> Self:
        """Return the tilts at which the smallest shape is exp(tau); widths (L,), tau (S,)."""
        shapes = np.exp(tau)[:, None] + (widths - widths.min()) / 2
        s = np.sum(psi(shapes) + np.log(2 / widths), axis=1)
        return cls(shapes, np.exp(tau) - widths.min() / 2, s, np.sum(polygamma(1, shapes), axis=1))


def log_prior(widths: np.ndarray, at: Scales) -> Float[np.ndarray, " S"]:
    """Compute the logarithm of the density of s = ln Q, Q = prod_l chi^2(n_l)/n_l, to the next order of 1/width.

    ln p = ln E e^{c s} - c s - ln(2 pi Var s)/2 with the tilt c that centres on s (Daniels 1954).
    """
    moments = np.sum(gammaln(at.shapes) - gammaln(widths / 2) + at.c[:, None] * np.log(2 / widths), axis=1)
    return np.asarray(moments - at.c * at.s - np.log(2 * np.pi * at.curvature) / 2)


def contour(widths: np.ndarray, at: Scales) -> Float[np.ndarray, " S"]:
    """Compute the exact density of s over that of `log_prior`: the inverse Mellin transform of a Meijer G function.

    The path of integration is c + i t, along which nothing cancels; steps in t grow beyond the smallest shape.
    """
    smallest = at.shapes.min(axis=1)
    end = np.arcsinh((12 * np.sqrt(at.shapes.max(axis=1)) + 40) / smallest)
    u = np.linspace(0, 1, CONTOUR) * end[:, None]
    t, weights = smallest[:, None] * np.sinh(u), smallest[:, None] * np.cosh(u) * end[:, None] / (CONTOUR - 1)
    weights[:, 0] /= 2
    exponent = 1j * t * (np.sum(np.log(2 / widths)) - at.s[:, None])
    for shape in at.shapes.T:
        exponent += loggamma(shape[:, None] + 1j * t) - gammaln(shape)[:, None]
    return np.asarray(np.sum(np.exp(exponent).real * weights, axis=1) * np.sqrt(2 * at.curvature / np.pi))


def posterior_scales(
    widths: np.ndarray, likelihood: Callable[[np.ndarray], np.ndarray]
) -> tuple[np.ndarray, np.ndarray, float]:
    """Return nodes Q, their posterior weights of sum 1, and ln E p(y | Q).

    widths: n_l, (L,). likelihood: ln p(y | Q) at (S,) values of Q.
    Raises: ArithmeticError: the posterior is not resolved, or Q is not within SMALLEST and 1/SMALLEST.
    """

    def density(at: Scales, tau: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore", over="ignore"):
            found = log_prior(widths, at) + likelihood(np.exp(np.clip(at.s, LOWEST, -LOWEST)))
        return np.where(np.isfinite(found), found + np.log(at.curvature) + tau, -np.inf)

    low, high = -REACH, REACH
    for _ in range(ROUNDS):
        tau = np.linspace(low, high, GRID)
        at = Scales.at(widths, tau)
        logs = density(at, tau)
        seen = np.flatnonzero(logs >= np.max(logs) - REACH)
        step, last = tau[1] - tau[0], high - low
        low, high = tau[seen[0]] - step, tau[seen[-1]] + step
        if high - low > last / 2:
            break
    tau = np.linspace(low, high, NODES)
    at = Scales.at(widths, tau)
    logs = density(at, tau)
    top = float(np.max(logs))
    if not (math.isfinite(top) and at.s[0] > LOWEST and at.s[-1] < -LOWEST):
        raise ArithmeticError(_UNRESOLVED + f" It reaches beyond {SMALLEST:g} to {1 / SMALLEST:g}.")
    weights = np.exp(logs - top) * contour(widths, at)
    total, half = float(np.sum(weights)), 2 * float(np.sum(weights[::2]))
    if not abs(half / total - 1) < AGREEMENT:
        raise ArithmeticError(_UNRESOLVED)
    return np.exp(at.s), weights / total, top + math.log(total * (tau[1] - tau[0]))


def saddle_point(
    widths: np.ndarray, action_slope: Callable[[float], float], action: Callable[[float], float]
) -> Float[np.ndarray, " L"]:
    """Solve n_l (1 - q_l) = S'(ln Q), Q = prod_l q_l, for the scales q_l of the layers.

    Solutions are stationary points of sum_l n_l (q_l - ln q_l) + S(Q), with the `action` S of the data and its
    `action_slope` dS/d ln Q. Of several the one with the least sum is returned. Raises: ArithmeticError: no solution.
    """

    def scales(tau: float) -> np.ndarray:
        return np.asarray(2 * (math.exp(tau) + (widths - widths.min()) / 2) / widths)

    def product(tau: float) -> float:
        return math.exp(np.clip(np.sum(np.log(scales(tau))), LOWEST, -LOWEST))

    def slope(tau: float) -> float:
        return 2 * math.exp(tau) - float(widths.min()) + action_slope(product(tau))

    grid = np.r_[np.arange(LOWEST, -REACH), np.linspace(-REACH, REACH, GRID)]
    rising = np.array([slope(tau) for tau in grid.tolist()]) > 0
    places = np.flatnonzero(~rising[:-1] & rising[1:])
    found = [(scales(tau), product(tau)) for tau in (brentq(slope, *grid[i : i + 2], xtol=1e-14) for i in places)]
    if not found:
        raise ArithmeticError(_UNRESOLVED)
    costs = [float(np.sum(widths * (q - np.log(q)))) + action(Q) for q, Q in found]
    return found[int(np.argmin(costs))][0]
