"""Independent oracles: the textbook recursions in 80-digit arithmetic, from the floating-point inputs as given.

They use none of the library's formulas: correlations instead of gaps, acos and asin of ratios, no normalisation. What
the textbook form loses by cancellation (at most half of the digits a layer at the ends, with exponents up to 600) 80
digits and mpmath's unbounded exponents leave far below a float's rounding.
"""

from __future__ import annotations

import functools

import mpmath as mp
import numpy as np

mp.mp.dps = 80


def _arc_cosine(slope, q1, c, q2):
    """E[phi(u) phi(v)], E[phi'(u) phi'(v)] for phi = max(u, 0) + slope min(u, 0) (Cho and Saul 2009)."""
    if q1 == 0 or q2 == 0:
        return mp.mpf(0), mp.mpf(0)
    root = mp.sqrt(q1 * q2)
    rho = min(max(c / root, mp.mpf(-1)), mp.mpf(1))
    theta = mp.acos(rho)
    same = root * (mp.sin(theta) + (mp.pi - theta) * rho) / (2 * mp.pi)
    opposite = root * (mp.sin(theta) - theta * rho) / (2 * mp.pi)
    agree, differ = (mp.pi - theta) / (2 * mp.pi), theta / (2 * mp.pi)
    return (1 + slope**2) * same - 2 * slope * opposite, (1 + slope**2) * agree + 2 * slope * differ


def _erf(q1, c, q2):
    """Williams 1997, eq. (11), and its derivative with respect to c."""
    a, b = 1 + 2 * q1, 1 + 2 * q2
    return 2 / mp.pi * mp.asin(2 * c / mp.sqrt(a * b)), 4 / mp.pi / mp.sqrt(a * b - 4 * c**2)


DUALS = {
    "relu": lambda *q: _arc_cosine(mp.mpf(0), *q),
    "leaky_relu": lambda *q: _arc_cosine(mp.mpf(0.01), *q),
    "abs": lambda *q: _arc_cosine(mp.mpf(-1), *q),
    "identity": lambda q1, c, q2: (c, mp.mpf(1)),  # noqa: ARG005
    "erf": _erf,
}


def kernels(x, y, *, depth, activation, weight_std, bias_std):
    """(Sigma^L(x, y), Theta^L(x, y)) of floats or mpmath numbers (Theorems 2.6 and 4.1, corrected)."""
    x, y = (tuple(v if isinstance(v, mp.mpf) else mp.mpf(float(v)) for v in point) for point in (x, y))
    return _kernels(x, y, depth, activation, float(weight_std), float(bias_std))


@functools.lru_cache(maxsize=100_000)
def _kernels(x, y, depth, activation, weight_std, bias_std):
    with mp.workdps(_digits(x, y) if activation == "erf" else 80):
        return _recursion(x, y, depth, DUALS[activation], weight_std, bias_std)


def _digits(x, y):
    """80, and as many more as 1 + 2 q + 2 q' + 4 (q q' - c^2) loses."""
    sizes = [abs(float(v)) for v in (*x, *y) if v != 0] or [1.0]
    return 80 + 4 * int(max(abs(np.log10(max(sizes))), abs(np.log10(min(sizes)))))


def _recursion(x, y, depth, dual, weight_std, bias_std):
    w2, b2 = mp.mpf(float(weight_std)) ** 2, mp.mpf(float(bias_std)) ** 2

    def first(p, q):
        return w2 * mp.fdot(p, q) / len(p) + b2

    q1, c, q2 = first(x, x), first(x, y), first(y, y)
    theta = c
    for _ in range(depth - 1):
        value, slope = dual(q1, c, q2)
        q1, c, q2 = w2 * dual(q1, q1, q1)[0] + b2, w2 * value + b2, w2 * dual(q2, q2, q2)[0] + b2
        theta = w2 * theta * slope + c
    return c, theta


def errors(got, x, y, *, kind, **net):
    """|K - K_ref|/sqrt(K_ref(x, x) K_ref(y, y)) of one computed entry, and K_ref; inf if the entry is not finite."""
    index = {"nngp": 0, "ntk": 1}[kind]
    reference = kernels(x, y, **net)[index]
    scale = mp.sqrt(kernels(x, x, **net)[index] * kernels(y, y, **net)[index])
    if not np.isfinite(got):
        return np.inf, reference
    tiny = mp.mpf(float(np.finfo(type(got)).tiny))
    wrong = max(abs(mp.mpf(float(got)) - reference) - tiny, 0)
    return float(wrong / scale) if wrong else 0.0, reference
