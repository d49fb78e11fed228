"""Probabilities of classes follow from independent Gaussian outputs, one a class, by quadrature without samples."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
from scipy.special import log_ndtr

from widelimit import validation
from widelimit.compute import threads
from widelimit.shapes import Float

NODES = 24
"""Gauss-Hermite nodes for each output; spaced by less than the width of a Gumbel variable up to a deviation of 4."""
STEP = 0.4
"""The step of the trapezoidal rule is in units of a Gumbel variable; its error falls as exp(-pi^2/STEP), 2e-11 here."""
TAIL = 30.0
"""exp(-TAIL) of a Gumbel variable's right tail is left out."""
REACH = 8.0
"""Standard deviations of a Gaussian that are integrated over; 1e-15 lie outside."""
WIDE = 100.0
"""Deviation of an output beside which the shape of a Gumbel variable, of deviation 1.3, is lost: far from all rows."""
VALUES = 2**22
"""Values held at once, 32 MiB."""


def _blocks(m: int, each: int) -> list[slice]:
    rows = max(1, VALUES // each)
    return [slice(i, i + rows) for i in range(0, m, rows)]


def _in_blocks(
    rule: Callable[[np.ndarray, np.ndarray], np.ndarray], mean: np.ndarray, deviation: np.ndarray, each: int
) -> np.ndarray:
    with threads.limit(0):  # many little products
        return np.concatenate([rule(mean[part], deviation[part]) for part in _blocks(len(mean), each)])


def expected_softmax(mean: Float[np.ndarray, "m c"], variance: Float[np.ndarray, "m c"]) -> Float[np.ndarray, "m c"]:
    """Compute E[exp(f_k)/sum_j exp(f_j)] for independent f_k ~ N(mean_k, variance_k); rows sum to 1.

    The softmax is the probability that f_k + g_k is the largest, g_k independent Gumbel variables: the integral over x
    of H_k'(x) prod_{j != k} H_j(x), H_j(x) = E[exp(-exp(f_j - x))]: Gauss-Hermite nodes in f, a trapezoidal rule in x.
    Where a deviation is above WIDE the g_k are taken as normal, of their variance pi^2/6.
    """
    wide = variance.max(axis=1) > WIDE**2
    p = np.empty_like(mean)
    if wide.any():
        p[wide] = largest_probability(mean[wide], variance[wide] + math.pi**2 / 6)
    if not wide.all():
        p[~wide] = _narrow(mean[~wide], np.sqrt(variance[~wide]))
    return p


def _narrow(mean: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    count = int((TAIL + 2 * REACH * float(deviation.max())) / STEP)
    return _in_blocks(_softmax, mean, deviation, mean.shape[1] * NODES * count)


def _places(deviation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return multiples of STEP that reach as far as any row needs, and those that each row takes: (p,), (m, p).

    The rule's error depends on where its points lie: with points of a row's own, no other row moves its result.
    """
    reach = REACH * deviation.max(axis=1, keepdims=True)
    # Below, the product over classes is exp(-exp(4)); above, what is left is exp(-TAIL).
    low, high = -4.0 - reach, TAIL + reach
    x = STEP * np.arange(math.floor(low.min() / STEP), math.ceil(high.max() / STEP) + 1)
    return x, (low <= x) & (x < high)


@functools.cache
def _rule() -> tuple[np.ndarray, np.ndarray]:
    """Return nodes and weights for a standard normal variable, read-only."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
    return validation.seal(nodes), validation.seal(weights / weights.sum())


def _softmax(mean: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    nodes, weights = _rule()
    top = mean.max(axis=1, keepdims=True)
    f = (mean - top)[:, :, None] + deviation[:, :, None] * nodes
    x, taken = _places(deviation)
    density = np.empty((*mean.shape, len(x)))
    log_below = np.empty_like(density)
    for i, place in enumerate(x):
        rate = np.exp(np.minimum(f - place, 700.0))
        below = np.exp(-rate)
        log_below[..., i] = np.log(np.maximum(below @ weights, np.finfo(np.float64).tiny))
        density[..., i] = (rate * below) @ weights
    others = np.exp(log_below.sum(axis=1, keepdims=True) - log_below)
    p = (density * others * taken[:, None, :]).sum(axis=2)
    return np.asarray(p / p.sum(axis=1, keepdims=True))


def largest_probability(mean: Float[np.ndarray, "m c"], variance: Float[np.ndarray, "m c"]) -> Float[np.ndarray, "m c"]:
    """Compute P(f_k is the largest) for independent f_k ~ N(mean_k, variance_k), variance > 0; rows sum to 1.

    The integral over z of phi(z) prod_{j != k} Phi((mean_k + s_k z - mean_j)/s_j), by the trapezoidal rule.
    """
    return _in_blocks(_largest, mean, np.sqrt(variance), mean.shape[1] * 65)


def _largest(mean: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    z = np.linspace(-REACH, REACH, 65)
    p = np.empty_like(mean)
    for k in range(mean.shape[1]):
        f = mean[:, [k]] + deviation[:, [k]] * z
        scores = log_ndtr((f[:, None, :] - mean[:, :, None]) / deviation[:, :, None])
        scores[:, k, :] = 0.0
        p[:, k] = np.exp(scores.sum(axis=1) - z**2 / 2).sum(axis=1)
    return np.asarray(p / p.sum(axis=1, keepdims=True))
