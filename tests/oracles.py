"""Independent oracles: the textbook recursions in 80-digit arithmetic, from the floating-point inputs as given.

They use none of the library's formulas: correlations instead of gaps, acos and asin of ratios, no normalisation. What
the textbook form loses by cancellation (at most half of the digits a layer at the ends, with exponents up to 600) 80
digits and mpmath's unbounded exponents leave far below a float's rounding.
"""

from __future__ import annotations

import functools
import math

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


def _correlation(q1, c, q2):
    return min(max(c / mp.sqrt(q1 * q2), mp.mpf(-1)), mp.mpf(1))


def _abrelu(a, b, q1, c, q2):
    a, b = mp.mpf(a), mp.mpf(b)
    return tuple(b**2 * v for v in _arc_cosine(a / b, q1, c, q2))


def _sign(q1, c, q2):
    rest = q1 * q2 - c**2
    return 2 / mp.pi * mp.asin(_correlation(q1, c, q2)), 2 / mp.pi / mp.sqrt(rest) if rest > 0 else mp.inf


def _step(q1, c, q2):
    value, slope = _sign(q1, c, q2)
    return (1 + value) / 4, slope / 4


def _rectified_square(q1, c, q2):
    """Cho and Saul 2009, eq. (7), and four times their J_1."""
    theta = mp.acos(_correlation(q1, c, q2))
    shape = 3 * mp.sin(theta) * mp.cos(theta) + (mp.pi - theta) * (1 + 2 * mp.cos(theta) ** 2)
    return q1 * q2 * shape / (2 * mp.pi), 4 * _arc_cosine(mp.mpf(0), q1, c, q2)[0]


def _rectified_cube(q1, c, q2):
    """Cho and Saul's J_3, from (-1)^n sin^(2n+1) (d/(sin d theta))^n (pi - theta)/sin."""
    theta = mp.acos(_correlation(q1, c, q2))
    sin, cos = mp.sin(theta), mp.cos(theta)
    shape = 4 * sin**3 + 15 * sin * cos**2 + (mp.pi - theta) * (9 * sin**2 * cos + 15 * cos**3)
    return mp.sqrt(q1 * q2) ** 3 * shape / (2 * mp.pi), 9 * _rectified_square(q1, c, q2)[0]


def _scaled_erf(a, b, offset, q1, c, q2):
    a, b, offset = mp.mpf(a), mp.mpf(b), mp.mpf(offset)
    value, slope = _erf(b**2 * q1, b**2 * c, b**2 * q2)
    return a**2 * value + offset**2, (a * b) ** 2 * slope


def _gelu(q1, c, q2):
    """E[u v Phi(u) Phi(v)] by Stein's lemma (Tsuchida et al. 2021); the derivative by differences of the value in c."""

    def value(c):
        a, b = 1 + q1, 1 + q2
        determinant = a * b - c**2
        first = c * (mp.pi / 2 + mp.asin(c / mp.sqrt(a * b)))
        return (first + (q1 * q2 - c**2 + c**2 / a + c**2 / b) / mp.sqrt(determinant)) / (2 * mp.pi)

    with mp.workdps(2 * mp.mp.dps):
        step = mp.sqrt(q1 * q2) * mp.mpf(10) ** (-mp.mp.dps // 4)
        slope = (value(c + step) - value(c - step)) / (2 * step)
        return value(c), slope


def _sin(a, b, q1, c, q2):
    """By 2 sin x sin y = cos(x - y) - cos(x + y)."""
    a, b = mp.mpf(a), mp.mpf(b)
    apart, together = (mp.exp(-(a**2) * (q1 + q2 + sign * 2 * c) / 2) for sign in (-1, 1))
    return (apart - mp.cos(2 * b) * together) / 2, a**2 * (apart + mp.cos(2 * b) * together) / 2


def _cos(a, q1, c, q2):
    return _sin(a, mp.pi / 2, q1, c, q2)


def _snake(a, q1, c, q2):
    a = mp.mpf(a)
    waves, product = _cos(2 * a, q1, c, q2)[0], _sin(2 * a, 0, q1, c, q2)[0]
    means = mp.exp(-2 * a**2 * q1) + mp.exp(-2 * a**2 * q2)
    return c + (1 - means + waves) / (4 * a**2), 1 + product


def _rbf(gamma, q1, c, q2):
    gamma = mp.mpf(gamma)
    value = mp.exp(-gamma * (q1 + q2 - 2 * c))
    return value, 2 * gamma * value


def _exp(a, b, q1, c, q2):
    a, b = mp.mpf(a), mp.mpf(b)
    value = a**2 * mp.exp(b**2 * (q1 + q2 + 2 * c) / 2)
    return value, b**2 * value


def _gaussian(a, b, q1, c, q2):
    a, b = mp.mpf(a), mp.mpf(b)
    determinant = (1 + 2 * b * q1) * (1 + 2 * b * q2) - 4 * b**2 * c**2
    return a**2 / mp.sqrt(determinant), 4 * (a * b) ** 2 * c / mp.sqrt(determinant) ** 3


@functools.cache
def _wick(m, n):
    """[(k, number)] with E[u^m v^n] = sum number q1^((m - k)/2) q2^((n - k)/2) c^k (Isserlis 1918).

    The pairings of m + n Gaussians with k mixed pairs.
    """
    mixed = [k for k in range(min(m, n) + 1) if (m - k) % 2 == (n - k) % 2 == 0]
    within = {k: int(mp.fac2(m - k - 1)) * int(mp.fac2(n - k - 1)) for k in mixed}
    return [(k, math.comb(m, k) * math.comb(n, k) * math.factorial(k) * within[k]) for k in mixed]


def _polynomial(coefficients, q1, c, q2):
    powers = [[q**k for k in range(len(coefficients) + 1)] for q in (q1, c, q2)]

    def moment(a):
        terms = [(m, n, x * y) for m, x in enumerate(a) for n, y in enumerate(a) if x and y]
        return mp.fsum(
            weight * number * powers[0][(m - k) // 2] * powers[1][k] * powers[2][(n - k) // 2]
            for m, n, weight in terms
            for k, number in _wick(m, n)
        )

    coefficients = [mp.mpf(a) for a in coefficients]
    return moment(coefficients), moment([k * a for k, a in enumerate(coefficients)][1:])


def hermite_coefficients(n):
    """Those of He_n/sqrt(n!), by the three-term recursion He_(n+1) = u He_n - n He_(n-1)."""
    before, now = [mp.mpf(0)], [mp.mpf(1)]
    for k in range(n):
        shifted = [mp.mpf(0), *now]
        padded = [*before, *[mp.mpf(0)] * (len(shifted) - len(before))]
        before, now = now, [a - k * b for a, b in zip(shifted, padded, strict=True)]
    return [a / mp.sqrt(mp.factorial(n)) for a in now]


DUALS = {
    "relu": lambda *q: _arc_cosine(mp.mpf(0), *q),
    "leaky_relu": lambda *q: _arc_cosine(mp.mpf(0.01), *q),
    "abs": lambda *q: _arc_cosine(mp.mpf(-1), *q),
    "identity": lambda q1, c, q2: (c, mp.mpf(1)),
    "abrelu": functools.partial(_abrelu, -0.3, 1.5),
    "sign": _sign,
    "step": _step,
    "rectified_power": _rectified_square,
    "erf": _erf,
    "gelu": _gelu,
    "sin": functools.partial(_sin, 1.2, 0.4),
    "cos": functools.partial(_cos, 0.8),
    "snake": functools.partial(_snake, 0.7),
    "rbf": functools.partial(_rbf, 0.6),
    "exp": functools.partial(_exp, 0.5, 0.5),
    "gaussian": functools.partial(_gaussian, 1.3, 0.5),
    "monomial": functools.partial(_polynomial, (0, 0, 1)),
    "polynomial": functools.partial(_polynomial, (0.3, -1.0, 0.2, 0.1)),
    "hermite": functools.partial(_polynomial, hermite_coefficients(3)),
}
"""{name in tests/cases.py: (q1, c, q2) -> (E[phi(u) phi(v)], E[phi'(u) phi'(v)])}, parameters as there."""

VARIANTS = {
    "erf, parameters": (lambda wl: wl.Erf(-1.7, 0.4, 0.6), functools.partial(_scaled_erf, -1.7, 0.4, 0.6)),
    "rectified power 0": (lambda wl: wl.RectifiedPower(0), _step),
    "rectified power 1": (lambda wl: wl.RectifiedPower(1), lambda *q: _arc_cosine(mp.mpf(0), *q)),
    "rectified power 3": (lambda wl: wl.RectifiedPower(3), _rectified_cube),
    "sin, no phase": (lambda wl: wl.Sin(), functools.partial(_sin, 1, 0)),
    "sin, pi/2": (lambda wl: wl.Sin(1.0, np.pi / 2), functools.partial(_sin, 1, np.pi / 2)),
    "snake 3": (lambda wl: wl.Snake(3.0), functools.partial(_snake, 3)),
    "exp 1": (lambda wl: wl.Exp(), functools.partial(_exp, 1, 1)),
    "gaussian 1": (lambda wl: wl.Gaussian(), functools.partial(_gaussian, 1, 1)),
    "monomial 1": (lambda wl: wl.Monomial(1), functools.partial(_polynomial, (0, 1))),
    "monomial 3": (lambda wl: wl.Monomial(3), functools.partial(_polynomial, (0, 0, 0, 1))),
    "monomial 10": (lambda wl: wl.Monomial(10), functools.partial(_polynomial, (0,) * 10 + (1,))),
    "polynomial, positive": (
        lambda wl: wl.Polynomial((1.0, 0.5, 0.0, 2.0, 0.0, 0.25)),
        functools.partial(_polynomial, (1, 0.5, 0, 2, 0, 0.25)),
    ),
    "hermite 1": (lambda wl: wl.Hermite(1), functools.partial(_polynomial, hermite_coefficients(1))),
    "hermite 2": (lambda wl: wl.Hermite(2), functools.partial(_polynomial, hermite_coefficients(2))),
    "hermite 10": (lambda wl: wl.Hermite(10), functools.partial(_polynomial, hermite_coefficients(10))),
}
"""The same activations with other parameters: {name: (widelimit -> activation, oracle)}."""


def definition(phi, q1, c, q2, kinks=()):
    """E[phi(u) phi(v)] by quadrature of the definition, u = s x, v = s' (rho x + sqrt(1 - rho^2) y), |rho| < 1.

    Gauss-Legendre panels, split at the images of the kinks of phi, in float64: right to about 1e-12 for a phi that is
    smooth between them on the scale of the panels.
    """
    s1, s2 = np.sqrt(q1), np.sqrt(q2)
    rho = c / (s1 * s2)
    rest = np.sqrt(1 - rho**2)
    nodes, weights = np.polynomial.legendre.leggauss(24)

    def panels(cuts):
        fixed = np.broadcast_to(np.linspace(-14.0, 14.0, 29), (*cuts.shape[:-1], 29))
        edges = np.sort(np.concatenate([fixed, np.clip(cuts, -14, 14)], axis=-1), axis=-1)
        middle, half = (edges[..., 1:] + edges[..., :-1]) / 2, (edges[..., 1:] - edges[..., :-1]) / 2
        points = middle[..., None] + half[..., None] * nodes
        density = half[..., None] * weights * np.exp(-(points**2) / 2) / np.sqrt(2 * np.pi)
        return (v.reshape(*cuts.shape[:-1], -1) for v in (points, density))

    x, x_weight = panels(np.array(kinks, float) / s1)
    y, y_weight = panels((np.array(kinks, float) / s2 - rho * x[:, None]) / rest)
    inner = (phi(s2 * (rho * x[:, None] + rest * y)) * y_weight).sum(axis=1)
    return float((phi(s1 * x) * inner * x_weight).sum())


def kernels(x, y, *, depth, activation, weight_std, bias_std):
    """(Sigma^L(x, y), Theta^L(x, y)) of floats or mpmath numbers (Theorems 2.6 and 4.1, corrected)."""
    x, y = (tuple(v if isinstance(v, mp.mpf) else mp.mpf(float(v)) for v in point) for point in (x, y))
    return _kernels(x, y, depth, activation, float(weight_std), float(bias_std))


@functools.lru_cache(maxsize=100_000)
def _kernels(x, y, depth, activation, weight_std, bias_std):
    with mp.workdps(_digits(x, y) if activation == "erf" else 80):
        return _recursion(x, y, depth, functools.partial(_dual, activation, mp.mp.prec), weight_std, bias_std)


@functools.lru_cache(maxsize=10_000)
def _dual(activation, precision, q1, c, q2):
    """Those of an input with itself come up with every other input; what was found to fewer digits is not taken."""
    assert mp.mp.prec == precision
    return DUALS[activation](q1, c, q2)


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


def posterior_variance(gram, cross, prior, noise):
    """K(z, z) - K(z, X) (K(X, X) + noise)^{-1} K(X, z), (m,), of the floating-point kernel values as given."""
    root = mp.cholesky(mp.matrix(np.asarray(gram).tolist()) + mp.mpf(float(noise)) * mp.eye(len(gram)))
    found = []
    for row, own in zip(cross.tolist(), prior, strict=True):
        white = []
        for i, value in enumerate(row):
            white.append((value - mp.fdot(root[i, :i], white)) / root[i, i] if i else value / root[0, 0])
        found.append(float(mp.mpf(float(own)) - mp.fdot(white, white)))
    return np.array(found)
