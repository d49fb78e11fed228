"""E[g(s u) g(t v)] is computed at many angles and for many pairs of deviations at once, in polar coordinates.

With u = r cos(theta) and v = r cos(theta - psi) the expectation is a convolution along theta, averaged over r. Where g
is analytic its cosine series turns that into sums over terms. Where g has a kink or a jump at 0, each quarter between
the lines u = 0 and v = 0 has polynomials in the cosines, whose products are integrated once for all functions.
"""

import math
from collections.abc import Callable

import numpy as np

from widelimit import gaussian
from widelimit.activations.tabulated.chebyshev import chebyshev_coefficients, chebyshev_points, even_transform

ArrayFunction = Callable[[np.ndarray], np.ndarray]

COSINES = tuple(2**k for k in range(6, 14))
"""Terms of the cosine series that are tried."""
TERMS = (24, 32, 48, 64, 96, 128, 192)
"""Degrees of the polynomials that are tried."""
_TAIL = {"cosine_terms": 1e-10, "terms": 1e-13}
"""Each of the last eighth of the coefficients must be below this share of the root of the sum of all squares."""


class NoConvergenceError(ValueError):
    """The error is raised if no series tried is long enough."""


def sums_of_parts(
    g: ArrayFunction, deviations: np.ndarray, psi: np.ndarray, *, kinked: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Compute E[g(s u) g(t v)] at the angles psi (K,), of the odd and of the even part of g, (m, m, K) each.

    g is elementwise on NumPy arrays; deviations (m,) are > 0, psi in [0, pi]; if `kinked`, g is analytic only on either
    side of 0.

    Raises: NoConvergenceError: g needs more terms than are tried.
    """
    rule = gaussian.radial_rule(float(np.max(deviations)))
    return (_by_quarters if kinked else _by_cosines)(g, deviations, psi, rule)


def _long_enough(
    transform: Callable[[np.ndarray, int], np.ndarray],
    deviations: np.ndarray,
    weights: np.ndarray,
    counts: tuple[int, ...],
    tail: float,
) -> np.ndarray:
    """Find coefficients (m, q, count), their last eighth small; the largest deviation, the hardest, sets the count."""
    hardest = deviations[[np.argmax(deviations)]]
    for count in counts:
        sizes = np.sqrt(np.sum(weights @ transform(hardest, count) ** 2, axis=0))
        if not np.isfinite(sizes).all():
            break
        if sizes[-(count // 8) :].max() <= tail * np.sqrt(np.sum(sizes**2)):
            return transform(deviations, count)
    raise NoConvergenceError


def _by_cosines(
    g: ArrayFunction, deviations: np.ndarray, psi: np.ndarray, rule: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    nodes, weights = rule

    def transform(at: np.ndarray, count: int) -> np.ndarray:
        """Compute the coefficients of cos(k theta)."""
        cosines = np.cos(math.pi * np.arange(count + 1) / count)
        cosine_terms = even_transform(g(at[:, None, None] * nodes[:, None] * cosines)) / count
        cosine_terms[..., [0, -1]] /= 2
        return np.asarray(cosine_terms)

    cosine_terms = _long_enough(transform, deviations, weights, COSINES, _TAIL["cosine_terms"])
    sizes = np.sqrt(np.max(np.tensordot(weights, cosine_terms**2, (0, 1)), axis=0))
    kept = 1 + int(np.max(np.nonzero(sizes > 1e-10 * sizes.max())[0], initial=0))
    scaled = np.ascontiguousarray(np.moveaxis(cosine_terms[..., :kept] * np.sqrt(weights / 2)[:, None], 2, 0))
    products = scaled @ np.swapaxes(scaled, 1, 2)
    products[0] *= 2
    cosines = np.cos(np.arange(kept) * psi[:, None])
    odd, even = (np.tensordot(products[i::2], cosines[:, i::2], (0, 1)) for i in (1, 0))
    return odd, even


def _by_quarters(
    g: ArrayFunction, deviations: np.ndarray, psi: np.ndarray, rule: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    nodes, weights = rule

    def transform(at: np.ndarray, count: int) -> np.ndarray:
        """Compute Chebyshev coefficients in the cosine on [0, 1], of the odd and of the even part: (2 m, q, count)."""
        arguments = at[:, None, None] * nodes[:, None] * (1 + chebyshev_points(count)) / 2
        right, left = g(arguments), g(-arguments)
        return chebyshev_coefficients(np.concatenate([right - left, right + left]) / 2, -1)

    m = len(deviations)
    values = _long_enough(transform, deviations, weights, TERMS, _TAIL["terms"])
    count = values.shape[-1]
    quarters = [_products_on_quarter(angle, count) for angle in (psi, math.pi - psi)]
    parts = []
    for part, sign in ((values[:m], -1), (values[m:], 1)):
        integrals = (quarters[0] + sign * quarters[1]) * 2
        if np.abs(part).max() <= 8 * np.finfo(float).eps * np.abs(values).max():
            parts.append(np.zeros((m, m, len(psi))))
            continue
        flat = np.moveaxis(part, 1, 2).reshape(-1, len(nodes))
        rows = []
        for one in part:  # all pairs at once would be (m count)^2 numbers
            pairs = ((one.T * weights) @ flat.T).reshape(count, m, count).swapaxes(1, 2)
            rows.append(integrals.reshape(len(psi), -1) @ pairs.reshape(-1, m))
        parts.append(np.moveaxis(np.stack(rows), 1, 2))
    return parts[0], parts[1]


def _products_on_quarter(psi: np.ndarray, count: int) -> np.ndarray:
    """Integrate T_n(2 cos a - 1) T_l(2 cos b - 1)/(2 pi) where both cosines are positive, a - b = psi: (K, n, l)."""
    nodes, weights = np.polynomial.legendre.leggauss(math.ceil(1.6 * count) + 16)
    half = (math.pi - psi)[:, None] / 2
    cosines = np.cos(half * nodes + psi[:, None] / 2)
    values = np.polynomial.chebyshev.chebvander(np.clip(2 * cosines - 1, -1, 1), count - 1)
    weighted = values * (half * weights / (2 * math.pi))[..., None]
    return np.asarray(np.swapaxes(weighted, 1, 2) @ values[:, ::-1])
