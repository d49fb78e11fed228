"""Gaussian processes classify on transformed labels: Milios et al. 2018, arXiv 1805.10915."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, final

import numpy as np
import scipy.linalg

from widelimit import validation
from widelimit.compute import linalg, threads
from widelimit.inference.class_probabilities import expected_softmax
from widelimit.inference.solvers import factorise
from widelimit.inference.training_set import TrainingSet, check_finite, evenly, row_blocks, training_set
from widelimit.kernels.base import Kernel
from widelimit.progress import KERNEL, LONG, Report, no_progress, progress_bar
from widelimit.shapes import Float, Int

ALPHA_EPSILON = 0.01
"""Milios et al., section 4.1."""
ALPHAS = (0.001, 0.01, 0.1)
"""Pseudo-counts tried where none is given."""
SCORED, LEAST_SCORED = 1000, 100
"""Probabilities of rows and classes in a leave-one-out score, which take the most time, and rows at least."""
SCALES = 2.0 ** np.arange(-1, 5.1)
"""Standard deviations of the latent functions tried; latent labels of own and other classes differ by about 6.6."""


class DirichletLabels(NamedTuple):
    """Gamma(alpha, 1) is replaced by a lognormal law, alpha = alpha_epsilon + [own class].

    Variance log(1 + 1/alpha), mean log(alpha) - variance/2.
    """

    own: float
    other: float
    noise_own: float
    noise_other: float


def dirichlet_labels(alpha_epsilon: float = ALPHA_EPSILON) -> DirichletLabels:
    """Compute means and variances of the latent labels, of the own class and of others: equations (5) and (6)."""
    own, other = 1 + alpha_epsilon, alpha_epsilon
    noise_own, noise_other = math.log1p(1 / own), math.log1p(1 / other)
    return DirichletLabels(math.log(own) - noise_own / 2, math.log(other) - noise_other / 2, noise_own, noise_other)


@final
@dataclass(frozen=True)
class _Correction:
    """The correction is U^T A^{-1} U and a factor of C = 1/delta - U^T A^{-1} U.

    It is for a class's own rows, of less noise.
    """

    rows: np.ndarray
    """L^{-1} P (n, n_k), A = L L^T."""
    root: np.ndarray
    lower: np.ndarray

    def update(self, factor: linalg.Factor, member: np.ndarray, solved: np.ndarray) -> np.ndarray:
        """Compute A^{-1} U C^{-1} U^T A^{-1} b, given the own rows of A^{-1} b."""
        with threads.limit(threads.work(len(self.lower), len(self.lower), 1)):
            inner = scipy.linalg.cho_solve((self.lower, True), self.root * solved, check_finite=False)
        spike = np.zeros((len(self.rows), 1))
        spike[member, 0] = self.root * inner
        return factor.solve(spike)[:, 0]

    def squares(self, white: np.ndarray) -> np.ndarray:
        """Compute |C^{-1/2} U^T A^{-1} b|^2 of each column b, given L^{-1} b."""
        part = self.root[:, None] * threads.product(self.rows.T, white)
        with threads.limit(threads.work(len(part), len(part), part.shape[1])):
            solved = scipy.linalg.solve_triangular(self.lower, part, lower=True, check_finite=False)
        return np.asarray(np.einsum("ij,ij->j", solved, solved))

    def log_determinant(self) -> float:
        """Return log det C."""
        return float(2 * np.sum(np.log(np.diagonal(self.lower))))


def _correction(factor: linalg.Factor, member: np.ndarray, weights: np.ndarray, n: int, delta: float) -> _Correction:
    picked = np.zeros((n, len(member)))
    picked[member, np.arange(len(member))] = 1.0
    rows, root = factor.whiten(picked), 1 / np.sqrt(weights)
    inner = np.eye(len(member)) / delta - threads.product(rows.T, rows) * root[:, None] * root
    with threads.limit(len(member) ** 3 / 3):
        return _Correction(rows, root, np.asarray(scipy.linalg.cholesky(inner, lower=True, check_finite=False)))


@final
@dataclass(frozen=True)
class DirichletPosterior:
    """The posterior is f_k | labels for independent f_k ~ GP(offset_k, K), one a class; see `dirichlet_posterior`."""

    data: TrainingSet
    factor: linalg.Factor
    corrections: tuple[_Correction, ...]
    coefficients: Float[np.ndarray, "n c"]
    """Coefficients in units of scale: the mean is offset + scale K(., X) coefficients."""
    scale: float
    offset: float
    log_marginal_likelihood: float
    """The log likelihood of the latent labels is summed over the classes that occur, not over those without rows."""
    targets: Float[np.ndarray, "n c"]
    """Latent labels less the offset, in units of scale."""
    noise: Float[np.ndarray, "n c"]
    """The noise of the targets, in units of scale^2."""
    alpha_epsilon: float

    def __post_init__(self) -> None:
        validation.sealed(self)

    @linalg.ignore_overflow()
    def mean(self, Z: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m c"]:
        """Compute the mean of each f_k at Z."""
        points = self.data.inputs(Z)
        return check_finite(
            self.offset + self.scale * threads.product(self.data.cross(points), self.coefficients), points
        )

    @linalg.ignore_overflow()
    def variance(self, Z: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m c"]:
        """Compute the variance of each f_k at Z."""
        points = self.data.inputs(Z)
        prior = self.data.diagonal(points)
        out = np.empty((len(points), len(self.corrections)))
        for part in row_blocks(len(points)):
            white = self.factor.whiten(self.data.cross(points[part]).T)
            common = prior[part] - np.einsum("ij,ij->j", white, white)
            error = linalg.rounding(len(self.data.X), 1.0) * self.factor.spread * prior[part]
            for k, correction in enumerate(self.corrections):
                out[part, k] = linalg.non_negative(common - correction.squares(white), error)
        return check_finite(self.scale**2 * out, points)

    def leave_one_out(self) -> tuple[Float[np.ndarray, "n c"], Float[np.ndarray, "n c"]]:
        """Compute mean and variance of each row's f_k given all others, (n, c) each; as `Posterior.leave_one_out`."""
        white = self.factor.whiten(np.eye(len(self.targets)))
        own = np.einsum("ij,ij->j", white, white)[:, None] + np.stack(
            [c.squares(white) for c in self.corrections], axis=1
        )
        error = linalg.rounding(len(own), 1.0) * self.factor.spread * (1 / own + self.noise)
        mean = self.targets - self.coefficients / own
        return self.offset + self.scale * mean, self.scale**2 * linalg.non_negative(1 / own - self.noise, error)

    def leave_one_out_score(self, labels: Int[np.ndarray, " n"], weights: Float[np.ndarray, " n"]) -> float:
        """Return sum_i w_i log p(label_i | the other rows) over rows spread evenly: of SCORED probabilities.

        A row that is alone in its class does not count: no other row knows the class.
        """
        alone = np.bincount(labels)[labels] == 1
        kept = np.flatnonzero(~alone | alone.all())
        kept = kept[evenly(len(kept), max(SCORED // self.targets.shape[1], LEAST_SCORED))]
        p = expected_softmax(*(part[kept] for part in self.leave_one_out()))[np.arange(len(kept)), labels[kept]]
        return float(weights[kept] @ np.log(np.maximum(p, np.finfo(np.float64).tiny)))


def dirichlet_offset(classes: int, alpha_epsilon: float = ALPHA_EPSILON) -> float:
    """Compute the precision-weighted mean of a row's latent labels, by class: far from all rows all are as likely."""
    shape = dirichlet_labels(alpha_epsilon)
    own, other = 1 / shape.noise_own, (classes - 1) / shape.noise_other
    return (own * shape.own + other * shape.other) / (own + other)


def dirichlet_posterior(
    k: Kernel,
    X: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, " n"],
    *,
    classes: int,
    scale: float,
    alpha_epsilon: float = ALPHA_EPSILON,
    weights: Float[np.ndarray, " n"] | None = None,
    progress: bool = False,
) -> DirichletPosterior:
    """Compute the exact posterior of every class's process f_k ~ `dirichlet_offset` + scale GP(0, K).

    The label noise is by row and class.

    In units of `scale` class k's covariance is A_k = A - delta U U^T with A = K + noise_other W^{-1} common to all and
    U = P_k W^{-1/2} over the class's own rows, delta = noise_other - noise_own: one factorisation of (n, n) serves all
    classes, and one of (n_k, n_k), 1/delta - U^T A^{-1} U, each (Woodbury; for alpha_epsilon = 0.01 its condition
    number is below 7). Milios et al. 2018, equations (5) to (7).

    Args:
        k: the kernel.
        X: (n, d) inputs.
        labels: (n,) class numbers from 0 to classes - 1.
        classes: c >= 2.
        scale: > 0, of the prior's standard deviations.
        alpha_epsilon: > 0, the Dirichlet prior's pseudo-count of every class.
        weights: (n,), > 0; 1 unless given. Weight 2 is the same row twice.
        progress: as for `posterior`.

    Raises:
        TypeError, ValueError: bad data.
        MemoryError: the kernel matrix does not fit.
    """
    data = training_set(k, X, np.zeros((len(X), classes)))
    w = np.ones(len(data.X)) if weights is None else weights
    with progress_bar(progress and len(data.X) > LONG) as report:
        report(KERNEL, 0, 0)
        matrix = data.gram(report=report)
        return _condition(data, matrix, labels, scale, alpha_epsilon, w, report)


def _condition(
    data: TrainingSet,
    matrix: np.ndarray,
    labels: np.ndarray,
    scale: float,
    alpha_epsilon: float,
    weights: np.ndarray,
    report: Report = no_progress,
) -> DirichletPosterior:
    """Compute `dirichlet_posterior` from K(X, X), which is overwritten."""
    (n, c), shape = data.y.shape, dirichlet_labels(alpha_epsilon)
    offset, delta = dirichlet_offset(c, alpha_epsilon), (shape.noise_other - shape.noise_own) / scale**2
    factor = factorise(matrix, shape.noise_other / scale**2 / weights, report)
    own = labels[:, None] == np.arange(c)
    targets = (np.where(own, shape.own, shape.other) - offset) / scale
    noise = np.where(own, shape.noise_own, shape.noise_other) / scale**2 / weights[:, None]
    coefficients = factor.solve(targets)
    corrections = []
    occurring = own.any(axis=0)
    score = -int(occurring.sum()) * n * math.log(2 * math.pi * scale**2) / 2
    for j in range(c):
        member = np.flatnonzero(own[:, j])
        part = _correction(factor, member, weights[member], n, delta)
        corrections.append(part)
        coefficients[:, j] += part.update(factor, member, coefficients[member, j])
        determinant = factor.log_determinant() + len(member) * math.log(delta) + part.log_determinant()
        if occurring[j]:
            score -= float(targets[:, j] @ coefficients[:, j] + determinant) / 2
        report("classes", j + 1, c)
    own_state = scale, offset, score, targets, noise, alpha_epsilon
    return DirichletPosterior(data, factor, tuple(corrections), coefficients, *own_state)


def most_likely_scale(
    k: Kernel,
    X: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, " n"],
    *,
    classes: int,
    alpha_epsilon: float | None = ALPHA_EPSILON,
    weights: Float[np.ndarray, " n"],
) -> DirichletPosterior:
    """Find the posterior at the most likely of SCALES/sqrt(mean K(x, x)); arguments as of `dirichlet_posterior`.

    alpha_epsilon: None takes the scale, and one of ALPHAS, of the largest leave-one-out density: the scale for the
        second of them, and for the others one of its neighbours.
    """
    data = training_set(k, X, np.zeros((len(X), classes)))
    matrix = data.gram()
    unit = math.sqrt(float(weights @ np.diagonal(matrix)) / float(weights.sum()))
    scales = (SCALES / unit if unit > 0 else np.ones(1)).tolist()

    def score(post: DirichletPosterior) -> float:
        return post.leave_one_out_score(labels, weights) if alpha_epsilon is None else post.log_marginal_likelihood

    def best(alpha: float, tried: list[float]) -> tuple[float, DirichletPosterior]:
        posts = (_condition(data, matrix.copy(), labels, scale, alpha, weights) for scale in tried)
        return max(((score(post), post) for post in posts), key=lambda found: found[0])

    low, middle, high = ALPHAS
    first = best(middle if alpha_epsilon is None else alpha_epsilon, scales)
    if alpha_epsilon is not None:
        return first[1]
    place = scales.index(first[1].scale)
    near = scales[max(place - 1, 0) : place + 2]
    return max((first, best(low, near), best(high, near)), key=lambda found: found[0])[1]
