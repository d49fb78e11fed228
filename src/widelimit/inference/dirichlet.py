"""Classification by Gaussian processes on transformed labels: Milios et al. 2018, arXiv 1805.10915."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, final

import numpy as np
import scipy.linalg
from jaxtyping import Float, Int

from widelimit.compute import linalg
from widelimit.inference.training_set import TrainingSet, training_set
from widelimit.kernels.base import Kernel

ALPHA_EPSILON = 0.01
"""Milios et al., section 4.1."""
SCALES = 2.0 ** np.arange(-2, 5.1, 0.5)
"""Standard deviations of the latent functions tried; the latent labels are log(1/alpha_epsilon + 1) apart, 4.6."""
ROWS = 1000
"""Rows that the scale is chosen on."""
BLOCK = 2048
"""Test points whose variances are computed at once."""


class DirichletLabels(NamedTuple):
    """Gamma(alpha, 1) as lognormal, alpha = alpha_epsilon + [own class].

    Variance log(1 + 1/alpha), mean log(alpha) - variance/2.
    """

    own: float
    other: float
    noise_own: float
    noise_other: float


def dirichlet_labels(alpha_epsilon: float = ALPHA_EPSILON) -> DirichletLabels:
    """Means and variances of the latent label of a row's own class and of the other classes: equations (5) and (6)."""
    own, other = 1 + alpha_epsilon, alpha_epsilon
    noise_own, noise_other = math.log1p(1 / own), math.log1p(1 / other)
    return DirichletLabels(math.log(own) - noise_own / 2, math.log(other) - noise_other / 2, noise_own, noise_other)


@final
@dataclass(frozen=True)
class _Correction:
    """What a class's own rows, of less noise, change: U^T A^{-1} U and a factor of C = 1/delta - U^T A^{-1} U."""

    rows: np.ndarray
    """L^{-1} P (n, n_k), A = L L^T."""
    root: np.ndarray
    lower: np.ndarray

    def update(self, factor: linalg.Factor, member: np.ndarray, solved: np.ndarray) -> np.ndarray:
        """A^{-1} U C^{-1} U^T A^{-1} b, given the own rows of A^{-1} b."""
        inner = scipy.linalg.cho_solve((self.lower, True), self.root * solved, check_finite=False)
        spike = np.zeros((len(self.rows), 1))
        spike[member, 0] = self.root * inner
        return factor.solve(spike)[:, 0]

    def seen(self, white: np.ndarray) -> np.ndarray:
        """|C^{-1/2} U^T A^{-1} b|^2 of each column b, given L^{-1} b."""
        part = self.root[:, None] * (self.rows.T @ white)
        solved = scipy.linalg.solve_triangular(self.lower, part, lower=True, check_finite=False)
        return np.asarray(np.einsum("ij,ij->j", solved, solved))

    def log_determinant(self) -> float:
        """log det C."""
        return float(2 * np.sum(np.log(np.diagonal(self.lower))))


def _correction(factor: linalg.Factor, member: np.ndarray, weights: np.ndarray, n: int, delta: float) -> _Correction:
    picked = np.zeros((n, len(member)))
    picked[member, np.arange(len(member))] = 1.0
    rows, root = factor.whiten(picked), 1 / np.sqrt(weights)
    inner = np.eye(len(member)) / delta - (rows.T @ rows) * root[:, None] * root
    return _Correction(rows, root, np.asarray(scipy.linalg.cholesky(inner, lower=True, check_finite=False)))


@final
@dataclass(frozen=True)
class DirichletPosterior:
    """f_k | labels for independent f_k ~ GP(offset_k, K), one a class: made by `dirichlet_posterior`."""

    data: TrainingSet
    factor: linalg.Factor
    corrections: tuple[_Correction, ...]
    coefficients: Float[np.ndarray, "n c"]
    """In units of scale: the mean is offsets + scale K(., X) coefficients."""
    scale: float
    offsets: Float[np.ndarray, " c"]
    log_marginal_likelihood: float
    """Of the latent labels, summed over classes."""

    def mean(self, Z: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m c"]:
        """Mean of each f_k at Z."""
        return np.asarray(self.offsets + self.scale * (self.data.cross(self.data.inputs(Z)) @ self.coefficients))

    def variance(self, Z: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m c"]:
        """Variance of each f_k at Z."""
        points = self.data.inputs(Z)
        prior = np.asarray(self.data.kernel.diag(points))
        out = np.empty((len(points), len(self.corrections)))
        for start in range(0, len(points), BLOCK):
            part = slice(start, start + BLOCK)
            white = self.factor.whiten(self.data.cross(points[part]).T)
            common = prior[part] - np.einsum("ij,ij->j", white, white)
            error = linalg.rounding(len(self.data.X), 1.0) * self.factor.spread * prior[part]
            for k, correction in enumerate(self.corrections):
                out[part, k] = linalg.non_negative(common - correction.seen(white), error)
        return self.scale**2 * out


def dirichlet_posterior(
    k: Kernel,
    X: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, " n"],
    *,
    scale: float,
    offsets: Float[np.ndarray, " c"],
    alpha_epsilon: float = ALPHA_EPSILON,
    weights: Float[np.ndarray, " n"] | None = None,
) -> DirichletPosterior:
    """Exact posterior of every class's process: f_k ~ offset_k + scale GP(0, K), label noise by row and class.

    Class k's covariance is A_k = A - delta U U^T with A = K + noise_other W^{-1} common to all and U = P_k W^{-1/2}
    over the class's own rows, delta = noise_other - noise_own: one factorisation of (n, n) serves all classes, and one
    of (n_k, n_k), 1/delta - U^T A^{-1} U, each (Woodbury; for alpha_epsilon = 0.01 its condition number is below 7).
    Milios et al. 2018, equations (5) to (7). In units of `scale`.

    Args:
        k: the kernel.
        X: (n, d) inputs.
        labels: (n,) class numbers from 0 to c - 1.
        scale: > 0, standard deviations of the prior in units of K's.
        offsets: (c,) prior means.
        alpha_epsilon: > 0, the Dirichlet prior's pseudo-count of every class.
        weights: (n,), > 0; 1 unless given. Weight 2 is the same row twice.

    Raises:
        TypeError, ValueError: bad data.
        MemoryError: the kernel matrix does not fit.
    """
    data = training_set(k, X, np.zeros((len(X), len(offsets))))
    w = np.ones(len(data.X)) if weights is None else weights
    return _conditioned(data, data.gram(), labels, scale, offsets, dirichlet_labels(alpha_epsilon), w)


def _conditioned(
    data: TrainingSet,
    matrix: np.ndarray,
    labels: np.ndarray,
    scale: float,
    offsets: np.ndarray,
    shape: DirichletLabels,
    weights: np.ndarray,
) -> DirichletPosterior:
    """`dirichlet_posterior` from K(X, X), which is overwritten."""
    n = len(matrix)
    delta = (shape.noise_other - shape.noise_own) / scale**2
    matrix[np.diag_indices(n)] += shape.noise_other / scale**2 / weights
    factor = linalg.factorise(matrix)
    targets = (np.where(labels[:, None] == np.arange(len(offsets)), shape.own, shape.other) - offsets) / scale
    coefficients = factor.solve(targets)
    corrections = []
    score = 0.0
    for j in range(len(offsets)):
        member = np.flatnonzero(labels == j)
        part = _correction(factor, member, weights[member], n, delta)
        corrections.append(part)
        coefficients[:, j] += part.update(factor, member, coefficients[member, j])
        determinant = factor.log_determinant() + len(member) * math.log(delta) + part.log_determinant()
        score -= float(targets[:, j] @ coefficients[:, j] + determinant + n * math.log(2 * math.pi * scale**2)) / 2
    return DirichletPosterior(data, factor, tuple(corrections), coefficients, scale, offsets, score)


def dirichlet_scale(
    k: Kernel,
    X: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, " n"],
    *,
    offsets: Float[np.ndarray, " c"],
    alpha_epsilon: float = ALPHA_EPSILON,
    weights: Float[np.ndarray, " n"],
) -> float:
    """argmax over SCALES of the log marginal likelihood summed over classes, in units of sqrt(mean K(x, x)).

    On at most ROWS rows, spread evenly over the rows in the order of their classes.
    """
    order = np.argsort(labels, kind="stable")
    if len(order) > ROWS:
        order = order[np.linspace(0, len(order) - 1, ROWS).round().astype(int)]
    X, labels, weights = X[order], labels[order], weights[order]
    data, shape = training_set(k, X, np.zeros((len(X), len(offsets)))), dirichlet_labels(alpha_epsilon)
    matrix = data.gram()
    unit = math.sqrt(float(weights @ np.diagonal(matrix)) / float(weights.sum()))
    scales = SCALES / unit if unit > 0 else np.ones(1)
    found = [_conditioned(data, matrix.copy(), labels, s, offsets, shape, weights) for s in scales.tolist()]
    return float(scales[int(np.argmax([post.log_marginal_likelihood for post in found]))])


def dirichlet_offsets(
    labels: Int[np.ndarray, " n"], weights: Float[np.ndarray, " n"], classes: int, alpha_epsilon: float = ALPHA_EPSILON
) -> Float[np.ndarray, " c"]:
    """The precision-weighted mean of each class's latent labels."""
    shape = dirichlet_labels(alpha_epsilon)
    own = np.bincount(labels, weights, minlength=classes) / shape.noise_own
    other = (weights.sum() - own * shape.noise_own) / shape.noise_other
    return np.asarray((own * shape.own + other * shape.other) / (own + other))
