"""Gaussian processes classify with the logistic likelihood, by expectation propagation.

Rasmussen and Williams 2006, section 3.6: the factor sigma(y_i f_i)^w_i of a row (y = 1 or -1; weight w_i: w_i rows) is
replaced by a Gaussian one, exp(nu_i f_i - tau_i f_i^2/2), that gives f_i the same mean and variance beside all other
factors. All factors are updated at once, with damping; a sweep costs a Cholesky factor and the solution of n systems.
Two classes have one latent function; of more each has one, against all others, and the probabilities are divided by
their sum.

Laplace's approximation was tried on eleven sets and left out: its Gaussian law sits at the mode, so that it finds small
scales likely, and its log-loss was larger on each (as Kuss and Rasmussen 2005, JMLR 6, found).
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import NamedTuple, final

import numpy as np
import scipy.linalg
from scipy.special import log_expit

from widelimit import memory, validation
from widelimit.compute import linalg, threads
from widelimit.inference.training_set import TrainingSet, check_finite, row_blocks, training_set
from widelimit.kernels.base import Kernel
from widelimit.shapes import Float, Int

FIRST_SCALE = 8.0
"""Standard deviation of the latent functions, in log odds, from which a search climbs by factors of 2."""
SPREAD = 1.5
"""Deviation of its logarithm in the prior, about that of FIRST_SCALE: separate classes make any large scale likely."""
LEAST_SCALE, LARGEST_SCALE = 2.0**-8, 2.0**6
"""Scales that are tried, in units of FIRST_SCALE."""
SWEEPS = 100
"""Sweeps at most; 6 to 20 are taken."""
DAMPING, FULL_SWEEPS = 0.8, 10
"""The share of a new factor that is taken; less after so many sweeps, as two states may follow each other."""
TOLERANCE = 1e-6
"""A sweep that changes the logarithm of the evidence by less, in nats a row, is the last one."""
BISECTIONS = 50
NODES, WEIGHTS = np.polynomial.legendre.leggauss(8)
"""Rule on each panel of the quadrature in f."""
OFFSETS = np.concatenate([-(2.0 ** np.arange(12, -2, -1)), [0.0], 2.0 ** np.arange(-1, 13)])
"""Ends of panels about the mode, in its own width, within REACH cavity deviations ..."""
REACH = 9.0
LEAST_VARIANCE = 1e-10
BENDS = np.array([-15.0, -6.0, -2.0, 0.0, 2.0, 6.0, 15.0])
"""... and where the logistic function bends."""


class Tilted(NamedTuple):
    """The moments of N(f; m, v) sigma(y f)^w, (n,) each."""

    log_total: np.ndarray
    mean: np.ndarray
    variance: np.ndarray


def tilted_moments(sign: np.ndarray, weights: np.ndarray, m: np.ndarray, v: np.ndarray) -> Tilted:
    """Compute the moments by quadrature on panels about the mode, which bisection finds: (n,) each."""
    low, high = np.zeros_like(m), np.ones_like(m)
    step = sign * weights * v  # the mode is m + x step, 0 < x < 1
    for _ in range(BISECTIONS):
        x = (low + high) / 2
        beyond = x > np.exp(log_expit(-sign * (m + x * step)))
        low, high = np.where(beyond, low, x), np.where(beyond, x, high)
    mode = m + low * step
    slope = np.exp(log_expit(mode) + log_expit(-mode))
    width, reach = 1 / np.sqrt(1 / v + weights * slope), REACH * np.sqrt(v)
    offsets = np.clip(OFFSETS * width[:, None], -reach[:, None], reach[:, None])
    bends = np.clip(BENDS - mode[:, None], -reach[:, None], reach[:, None])
    ends = np.sort(np.hstack([offsets, bends]), axis=1)
    half = np.diff(ends, axis=1) / 2
    x = ((ends[:, :-1] + half)[:, :, None] + half[:, :, None] * NODES).reshape(len(m), -1)
    area = (half[:, :, None] * WEIGHTS).reshape(len(m), -1)
    f = mode[:, None] + x
    log_p = weights[:, None] * log_expit(sign[:, None] * f) - (f - m[:, None]) ** 2 / (2 * v[:, None])
    top = log_p.max(axis=1)
    p = area * np.exp(log_p - top[:, None])
    total = p.sum(axis=1)
    mean = np.sum(p * x, axis=1) / total
    variance = np.sum(p * (x - mean[:, None]) ** 2, axis=1) / total
    return Tilted(top + np.log(total) - np.log(2 * math.pi * v) / 2, mode + mean, variance)


class Sites(NamedTuple):
    """The Gaussian factors of one latent function, (n,) each."""

    precision: np.ndarray
    shift: np.ndarray


class Marginals(NamedTuple):
    """The law of one latent function at the training rows, beside its factors."""

    lower: np.ndarray
    """(n, n): the Cholesky factor of B = 1 + T^{1/2} K T^{1/2}, T the precisions."""
    mean: np.ndarray
    variance: np.ndarray


def _marginals(K: np.ndarray, sites: Sites) -> Marginals:
    root = np.sqrt(sites.precision)
    with threads.limit(2 * len(K) ** 3):
        lower, info = scipy.linalg.lapack.dpotrf(np.eye(len(K)) + root[:, None] * K * root, lower=1)
        if info:
            raise ArithmeticError(
                "expectation propagation met a matrix that is not positive definite: the kernel is not positive "
                'semi-definite, or far too large. Choose likelihood="dirichlet".'
            )
        white = scipy.linalg.solve_triangular(lower, root[:, None] * K, lower=True, check_finite=False)
    mean = threads.product(K, sites.shift) - threads.product(white.T, threads.product(white, sites.shift))
    return Marginals(np.asarray(lower), mean, np.diagonal(K) - np.einsum("ij,ij->j", white, white))


def _cavities(at: Marginals, sites: Sites) -> tuple[np.ndarray, np.ndarray]:
    """Compute mean and variance of each f_i beside all factors but its own, (n,) each."""
    precision = 1 / at.variance - sites.precision
    return (at.mean / at.variance - sites.shift) / precision, 1 / precision


def _propagate(K: np.ndarray, sign: np.ndarray, weights: np.ndarray, sites: Sites) -> tuple[Sites, float]:
    """Update the factors until the evidence stays; returns them and its logarithm, equation (3.65)."""
    before = -math.inf
    for sweep in range(SWEEPS):
        at = _marginals(K, sites)
        m, v = _cavities(at, sites)
        tilted = tilted_moments(sign, weights, m, v)
        tau, nu = sites
        evidence = float(
            np.sum(tilted.log_total + np.log1p(tau * v) / 2 - (2 * m * nu + nu**2 * v - m**2 * tau) / (2 + 2 * tau * v))
            - np.sum(np.log(np.diagonal(at.lower)))
            + nu @ at.mean / 2
        )
        if abs(evidence - before) < TOLERANCE * len(K):
            return sites, evidence
        before = evidence
        # A log-concave factor never widens the law: below 0 the precision is rounding.
        precision = np.maximum(1 / tilted.variance - 1 / v, 0.0)
        shift = tilted.mean / tilted.variance - m / v
        share = DAMPING * FULL_SWEEPS / max(FULL_SWEEPS, sweep)
        sites = Sites(*(old + share * (new - old) for old, new in zip(sites, (precision, shift), strict=True)))
    warnings.warn(f"expectation propagation did not settle in {SWEEPS} sweeps; check the scale of X.", stacklevel=2)
    return sites, before


@final
@dataclass(frozen=True)
class LogisticPosterior:
    """The Gaussian law of k latent functions, in log odds: one for two classes, else one a class against all others."""

    data: TrainingSet
    scale: float
    precision: Float[np.ndarray, "n k"]
    """Precisions of the Gaussian factors."""
    shift: Float[np.ndarray, "n k"]
    log_marginal_likelihood: float
    marginals: tuple[Marginals, ...]
    coefficients: Float[np.ndarray, "n k"]
    """The mean is scale^2 K(., X) coefficients."""

    def __post_init__(self) -> None:
        validation.sealed(self)

    @property
    def _sites(self) -> list[Sites]:
        return [Sites(*pair) for pair in zip(self.precision.T, self.shift.T, strict=True)]

    @linalg.ignore_overflow()
    def mean(self, Z: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m k"]:
        """Compute the means of the latent functions at Z."""
        points = self.data.inputs(Z)
        return check_finite(self.scale**2 * threads.product(self.data.cross(points), self.coefficients), points)

    @linalg.ignore_overflow()
    def variance(self, Z: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m k"]:
        """Compute the variances of the latent functions at Z."""
        points = self.data.inputs(Z)
        prior = self.scale**2 * self.data.diagonal(points)
        out = np.empty((len(points), len(self.marginals)))
        for part in row_blocks(len(points)):
            cross = self.scale**2 * self.data.cross(points[part]).T
            for j, (at, sites) in enumerate(zip(self.marginals, self._sites, strict=True)):
                with threads.limit(threads.work(len(cross), len(cross), cross.shape[1])):
                    scaled = np.sqrt(sites.precision)[:, None] * cross
                    white = scipy.linalg.solve_triangular(at.lower, scaled, lower=True, check_finite=False)
                out[part, j] = prior[part] - np.einsum("ij,ij->j", white, white)
        return check_finite(linalg.non_negative(out, linalg.rounding(len(self.precision), 10.0) * prior[:, None]), Z)

    def leave_one_out(self) -> tuple[Float[np.ndarray, "n k"], Float[np.ndarray, "n k"]]:
        """Compute mean and variance of each row's f beside all factors but its own."""
        pairs = [_cavities(*each) for each in zip(self.marginals, self._sites, strict=True)]
        return np.stack([m for m, _ in pairs], axis=1), np.stack([v for _, v in pairs], axis=1)

    def leave_one_out_score(self, labels: Int[np.ndarray, " n"], weights: Float[np.ndarray, " n"]) -> float:
        """Return sum_i w_i log p(label_i | the other rows)."""
        p = logistic_probabilities(*self.leave_one_out())[np.arange(len(labels)), labels]
        return float(weights @ np.log(np.maximum(p, np.finfo(np.float64).tiny)))


def logistic_probabilities(mean: Float[np.ndarray, "m k"], variance: Float[np.ndarray, "m k"]) -> np.ndarray:
    """Compute the probabilities of the classes, (m, c): E[sigma(f)], over their sum; of two, E[sigma(-f)] is the first.

    A deviation below 1e-5 changes none of them by more than 1e-10.
    """
    if mean.shape[1] == 1:
        mean, variance = np.hstack([-mean, mean]), np.hstack([variance, variance])
    p, one = np.empty_like(mean), np.ones(1)
    for part in row_blocks(len(mean)):
        for j in range(mean.shape[1]):
            p[part, j] = tilted_moments(
                one, one, mean[part, j], np.maximum(variance[part, j], LEAST_VARIANCE)
            ).log_total
    p = np.exp(p - p.max(axis=1, keepdims=True))
    return np.asarray(p / p.sum(axis=1, keepdims=True))


def latent_count(classes: int) -> int:
    """Return the number of latent functions: one for two classes."""
    return 1 if classes == 2 else classes


def _signs(labels: np.ndarray, classes: int) -> np.ndarray:
    """Return (k, n): 1 for rows of the class of each latent function, else -1."""
    own = [1] if classes == 2 else range(classes)
    return np.array([np.where(labels == k, 1.0, -1.0) for k in own])


def require_room(n: int, classes: int) -> None:
    """Refuse n rows whose matrices do not fit: one a latent function, and four. Raises: MemoryError."""
    count = latent_count(classes)
    memory.require(
        8.0 * (count + 4) * n * n,
        f"the logistic likelihood of {count} latent function{'s' * (count > 1)} at {n} rows",
        remedy='choose likelihood="dirichlet", which shares one matrix among the classes, or fit fewer rows',
    )


def logistic_posterior(
    k: Kernel,
    X: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, " n"],
    *,
    classes: int,
    scale: float | None = None,
    weights: Float[np.ndarray, " n"] | None = None,
) -> LogisticPosterior:
    """Compute the law of the latent functions f ~ scale GP(0, K).

    About 10 sweeps for each latent function, of 4/3 n^3 multiply-adds each; a search takes five scales or so.

    Args:
        k: the kernel.
        X: (n, d) inputs.
        labels: (n,) class numbers from 0 to classes - 1.
        classes: c >= 2.
        scale: > 0, of the prior's standard deviations, in log odds; the most likely one unless given.
        weights: (n,), > 0; 1 unless given. Weight 2 is the same row twice, as one factor.

    Raises:
        TypeError, ValueError: bad data.
        ArithmeticError: a matrix that is not positive definite to rounding.
        MemoryError: the matrices do not fit.
    """
    require_room(len(X), classes)
    data = training_set(k, X, np.zeros((len(X), classes)))
    w = np.ones(len(data.X)) if weights is None else weights
    search = _ScaleSearch(data.gram(), _signs(labels, classes), w)
    if scale is None:
        scale = search.best()
    sites, evidence = search.at(scale)
    return law(
        data,
        search.gram,
        scale,
        np.stack([s.precision for s in sites], 1),
        np.stack([s.shift for s in sites], 1),
        evidence,
    )


@final
class _ScaleSearch:
    """The search keeps the factors at every scale that it tried: the next one starts from them."""

    def __init__(self, gram: np.ndarray, signs: np.ndarray, weights: np.ndarray) -> None:
        self.gram, self.signs, self.weights = gram, signs, weights
        self.found: dict[float, tuple[list[Sites], float]] = {}

    def at(self, scale: float) -> tuple[list[Sites], float]:
        """Return the factors of all latent functions at a scale, and the sum of their log evidence."""
        if scale not in self.found:
            zero = np.zeros(len(self.gram))
            near = min(self.found, key=lambda other: abs(math.log(other / scale)), default=None)
            start = [Sites(zero, zero)] * len(self.signs) if near is None else self.found[near][0]
            K = scale**2 * self.gram
            pairs = [_propagate(K, sign, self.weights, s) for sign, s in zip(self.signs, start, strict=True)]
            self.found[scale] = [sites for sites, _ in pairs], sum(evidence for _, evidence in pairs)
        return self.found[scale]

    def best(self) -> float:
        """Climb from FIRST_SCALE by factors of 2, in units of the mean K(x, x), then by one of the root of 2."""
        mean = float(self.weights @ np.diagonal(self.gram)) / float(self.weights.sum())
        first = FIRST_SCALE / (math.sqrt(mean) if mean > 0 else 1.0)

        def score(scale: float) -> float:
            if not LEAST_SCALE < scale / first < LARGEST_SCALE:
                return -math.inf
            return self.at(scale)[1] - math.log(scale / first) ** 2 / (2 * SPREAD**2)

        scale = first
        for factor in (2.0, 0.5):
            while score(scale * factor) > score(scale):
                scale *= factor
        return max((scale, scale * math.sqrt(2), scale / math.sqrt(2)), key=score)


def law(
    data: TrainingSet,
    gram: np.ndarray,
    scale: float,
    precision: np.ndarray,
    shift: np.ndarray,
    evidence: float = math.nan,
) -> LogisticPosterior:
    """Make the law of these factors from K(X, X)."""
    K = scale**2 * gram
    marginals, coefficients = [], []
    for sites in (Sites(*pair) for pair in zip(precision.T, shift.T, strict=True)):
        at, root = _marginals(K, sites), np.sqrt(sites.precision)
        moved = root * threads.product(K, sites.shift)
        with threads.limit(threads.work(len(K), len(K), 1)):
            coefficients.append(
                sites.shift - root * scipy.linalg.cho_solve((at.lower, True), moved, check_finite=False)
            )
        marginals.append(at)
    return LogisticPosterior(data, scale, precision, shift, evidence, tuple(marginals), np.stack(coefficients, axis=1))
