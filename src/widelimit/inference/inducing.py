"""Inference with inducing points takes one pass over the rows and O(m^2) memory, for n rows and m points."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, final

import numpy as np
import scipy.linalg

from widelimit import memory, validation
from widelimit.compute import linalg, operators, preconditioners, threads, tiles
from widelimit.inference.training_set import (
    Function,
    Prediction,
    array_like,
    check_finite,
    expansion,
    points_of,
    prediction_like,
    row_blocks,
    scalar_kernel,
)
from widelimit.kernels.base import Kernel
from widelimit.progress import LONG, Report, no_progress, progress_bar
from widelimit.shapes import Float
from widelimit.validation import Array

Approximation = Literal["dtc", "fitc"]
APPROXIMATIONS = ("dtc", "fitc")
INDUCING = 1000
"""Inducing points unless their number is given."""
CANDIDATES, EACH = 20_000, 2
"""Rows that inducing points are drawn from: so many, or EACH for one point if that is more."""
BLOCK = 2**25
"""Numbers of K(rows, inducing points) that are held at once."""
ROWS_AT_LEAST = 256
"""Rows of a block, however many inducing points there are."""
EVIDENCE = 100
"""Roundings below which a difference has no digits that the evidence could be made of."""
STAGE = "rows"


class RowSums(NamedTuple):
    """The sums over rows x_i, phi_i = L^{-1} K(L, x_i), w_i = 1/Lambda_i, hold all that the posterior needs."""

    information: Float[np.ndarray, "m m"]
    """sum_i w_i phi_i phi_i^T; one triangle."""
    moments: Float[np.ndarray, "m c"]
    """sum_i w_i phi_i y_i^T."""
    squares: Float[np.ndarray, " c"]
    """sum_i w_i y_i^2."""
    log_noise: float
    """sum_i log Lambda_i."""
    rest: float
    """sum_i (K(x_i, x_i) - |phi_i|^2)/noise_i: what the inducing points leave, in units of the noise."""


class Evidence(NamedTuple):
    """The evidence of the targets has these parts."""

    squares: Float[np.ndarray, " c"]
    """y^T (Q + Lambda)^{-1} y of each output."""
    log_determinant: float
    """log det(Q + Lambda)."""
    rest: float
    """sum_i (K - Q)(x_i, x_i)/noise_i."""
    rows: int


@final
@dataclass(frozen=True)
class SparsePosterior:
    """The posterior is f | y where f depends on y through its values at inducing points L only.

    Made by `posterior(..., solver="nystrom")`. With Q(x, x') = K(x, L) K(L, L)^{-1} K(L, x') the mean is that of the
    prior Q with noise Lambda, and the variance adds K - Q, which y does not reduce: Lambda = noise ("dtc", Seeger et
    al. 2003; the mean is Nystrom kernel ridge regression), or noise + diag(K - Q) ("fitc", Snelson and Ghahramani
    2006). Quinonero-Candela and Rasmussen 2005, sections 5 and 6.
    """

    kernel: Kernel
    inducing: Float[np.ndarray, "m d"]
    root: linalg.Cholesky
    """The factor L L^T of K(L, L)."""
    factor: linalg.Cholesky
    """The factor of I + information."""
    weights: Float[np.ndarray, "m c"]
    """mean(z) = K(z, L) weights."""
    evidence: Evidence
    approximation: Approximation
    single: bool

    def __post_init__(self) -> None:
        validation.seal(self.weights)

    def _inputs(self, Z: Any) -> np.ndarray:
        points = points_of(self.kernel, "Z", Z)
        validation.same_features("Z", points, "X", self.inducing)
        return np.asarray(points, np.float64)

    def _outputs(self, values: np.ndarray, Z: Any) -> Array:
        return prediction_like(values[..., 0] if self.single else values, Z)

    def _cross(self, points: np.ndarray) -> np.ndarray:
        return np.asarray(self.kernel.cross(points, self.inducing))

    def explain(self) -> str:
        """Explain which approximation this is, and how much of the prior the inducing points leave."""
        rows, m = self.evidence.rows, len(self.inducing)
        name = {"dtc": "DTC: noise as given", "fitc": "FITC: noise plus what the inducing points leave"}
        return (
            f"{m} inducing points for {rows} rows, {self.weights.shape[1]} outputs\n"
            f"approximation: {name[self.approximation]}\n"
            f"prior variance left by the inducing points: {self.evidence.rest / rows:.2g} of the noise, on average"
        )

    @linalg.ignore_overflow()
    def mean(self, Z: Float[Array, "m d"]) -> Float[Array, "m *c"]:
        """Compute the posterior mean: (m, d) -> (m,), or (m, c) for y of shape (n, c)."""
        points = self._inputs(Z)
        return self._outputs(expansion(self._cross, points, self.weights), Z)

    def variance(self, Z: Float[Array, "m d"]) -> Float[Array, " m"]:
        """K(z, z) - Q(z, z) + phi^T (I + information)^{-1} phi, phi = L^{-1} K(L, z): of f without noise, (m,)."""
        return self.predict(Z).variance

    @linalg.ignore_overflow()
    def predict(self, Z: Float[Array, "m d"]) -> Prediction:
        """Compute `mean` and `variance` in one pass, as `Posterior.predict`."""
        points = self._inputs(Z)
        variance = np.asarray(self.kernel.diag(points), np.float64)
        error = linalg.rounding(len(self.inducing), 1.0) * self.root.spread * variance
        mean = np.empty((len(points), self.weights.shape[1]))
        for part in row_blocks(len(points)):
            cross = self._cross(points[part])
            mean[part] = threads.product(cross, self.weights)
            phi = self.root.whiten(cross.T)
            left = linalg.non_negative(variance[part] - np.einsum("ij,ij->j", phi, phi), error[part])
            variance[part] = left + self.factor.squares(phi)
        return Prediction(self._outputs(mean, Z), prediction_like(check_finite(variance, points), Z))

    @linalg.ignore_overflow()
    def covariance(self, Z: Float[Array, "m d"]) -> Float[Array, "m m"]:
        """Compute K(Z, Z) - Q(Z, Z) + phi^T (I + information)^{-1} phi, (m, d) -> (m, m); symmetric to the bit."""
        points = self._inputs(Z)
        memory.require(8.0 * (4 * len(points) ** 2), f"the covariance of {len(points)} points")
        phi = self.root.whiten(self._cross(points).T)
        covariance = np.asarray(self.kernel.gram(points)) - threads.product(phi.T, phi) + self.factor.form(phi)
        return array_like(check_finite((covariance + covariance.T) / 2, points), Z)

    def sample(self, Z: Float[Array, "m d"], count: int, *, seed: int = 0) -> Float[Array, "count m *c"]:
        """Draw f(Z) from the posterior (without noise): (count, m), or (count, m, c); as `Posterior.sample`."""
        count, seed = validation.integer("count", count, at_least=1), validation.integer("seed", seed, at_least=0)
        points = self._inputs(Z)
        mean, covariance = np.asarray(self.mean(points)), np.asarray(self.covariance(points))
        size = float(np.asarray(self.kernel.diag(points)).max())
        error = len(points) * linalg.rounding(len(self.inducing), 1.0) * self.root.spread * size
        draws = linalg.gaussian_draws(mean.reshape(len(points), -1), covariance, error, count, seed)
        return self._outputs(draws, Z)

    def log_marginal_likelihood(self) -> float:
        """Return log N(y; 0, Q + Lambda), summed over outputs: the evidence of the approximate prior.

        Raises: ValueError: the noise is so small that y^T (Q + Lambda)^{-1} y is lost in rounding.
        """
        parts, c = self.evidence, self.weights.shape[1]
        if np.isnan(parts.squares).any():
            raise ValueError("the evidence is lost in rounding: y is explained to within a noise that is too small.")
        normaliser = parts.log_determinant + parts.rows * math.log(2 * math.pi)
        return float(-(np.sum(parts.squares) + c * normaliser) / 2)

    def evidence_bound(self) -> float:
        """log N(y; 0, Q + noise) - c/2 sum_i (K - Q)(x_i, x_i)/noise_i <= log N(y; 0, K + noise), over c outputs.

        A lower bound of the exact evidence, to choose hyper-parameters by. Source: Titsias 2009, equation (9).

        Raises: ValueError: the approximation is "fitc", for which it is no bound.
        """
        if self.approximation != "dtc":
            raise ValueError('the bound is of approximation="dtc"; "fitc" has log_marginal_likelihood() alone.')
        return float(self.log_marginal_likelihood() - self.weights.shape[1] * self.evidence.rest / 2)


class SparseSettings(NamedTuple):
    """The settings of solver="nystrom" are the arguments of `posterior` of these names."""

    inducing: Any = INDUCING
    """How many are drawn, or (m, d) points."""
    approximation: Approximation = "dtc"
    seed: int = 0

    def given(self) -> dict[str, bool]:
        """Return by name if a setting is not the usual one."""
        drawn = self.inducing if isinstance(self.inducing, int) else None
        return {"inducing": drawn != INDUCING, "approximation": self.approximation != "dtc", "seed": self.seed != 0}


def sparse_settings(inducing: Any, approximation: Any, seed: Any) -> SparseSettings:
    """Check the settings but for points, which are compared with X later. Raises: TypeError, ValueError."""
    if np.ndim(inducing) == 0:
        inducing = validation.integer("inducing", inducing, at_least=1)
    validation.choice("approximation", approximation, APPROXIMATIONS)
    return SparseSettings(inducing, approximation, validation.integer("seed", seed, at_least=0))


def sparse_posterior(
    k: Kernel, X: Any, y: Any, *, noise: Any, settings: SparseSettings, progress: bool
) -> SparsePosterior:
    """Compute `SparsePosterior`. Arguments and errors as `posterior`."""
    kernel = scalar_kernel(k).at(X)
    rule = settings.approximation
    points = np.asarray(points_of(kernel, "X", X))
    targets = validation.targets("y", y, len(points))
    variance = np.broadcast_to(validation.noise(noise, len(points)), len(points))
    if not (variance > 0).all():
        raise ValueError('solver="nystrom" needs a noise > 0 at every row: y is not interpolated by inducing points.')
    scaled, exponent = linalg.normalise(targets.reshape(len(points), -1))
    with progress_bar(progress and len(points) > LONG) as report:
        chosen, root = _inducing_points(kernel, points, settings, report)
        _require_memory(len(points), len(chosen), scaled.shape[1])
        sums = _sums(kernel, points, scaled, variance, chosen, root, rule, report)
        factor = _factorise(sums.information, variance, report)
    inner = factor.solve(sums.moments)
    with threads.limit(threads.work(len(chosen), len(chosen), inner.shape[1])):
        weights = linalg.rescale(scipy.linalg.blas.dtrsm(1.0, root.lower.T, inner, trans_a=0), exponent)
    left = sums.squares - np.sum(sums.moments * inner, axis=0)
    lost = left <= EVIDENCE * linalg.rounding(len(chosen), 1.0) * sums.squares  # a difference of equal numbers
    squares = np.where(lost & (sums.squares > 0), np.nan, linalg.rescale(np.maximum(left, 0.0), 2 * exponent))
    evidence = Evidence(squares, factor.log_determinant() + sums.log_noise, sums.rest, len(points))
    return SparsePosterior(kernel, chosen, root, factor, weights, evidence, rule, targets.ndim == 1)


def _factorise(information: np.ndarray, noise: np.ndarray, report: Report) -> linalg.Cholesky:
    """Factorise I + information, in its place."""
    information[np.diag_indices(len(information))] += 1.0
    factor = linalg.cholesky(information, report=report)
    if factor is None:
        raise ValueError(
            f"the sums over rows are not positive definite: the noise, down to {noise.min():.3g}, is too small for "
            f"arithmetic beside the kernel. Pass a larger noise, or fewer inducing points."
        )
    return factor


def _require_memory(n: int, m: int, c: int) -> None:
    size = 8.0 * (2 * m * m + 2 * m * c + 3 * max(BLOCK, m))
    memory.require(size, f"the sums over {n} rows for {m} inducing points", remedy="use fewer inducing points")


def _inducing_points(
    kernel: Kernel, X: np.ndarray, settings: SparseSettings, report: Report
) -> tuple[np.ndarray, linalg.Cholesky]:
    """Return the points, and the factor of their kernel matrix."""
    count = settings.inducing
    if isinstance(count, int):
        if count > len(X):
            raise ValueError(
                f"inducing={count} points are to be drawn from the {len(X)} rows of X: pass at most {len(X)}, or "
                f'solver="cholesky", which is exact.'
            )
        chosen = _draw(kernel, X, count, settings.seed, report)
    else:
        chosen = np.array(points_of(kernel, "inducing", count), np.float64)
        validation.same_features("inducing", chosen, "X", X)
    matrix = np.array(kernel.gram(chosen))
    linalg.refuse_non_finite(matrix)
    root = linalg.cholesky(matrix)
    if root is None:
        raise ValueError(
            f"the kernel matrix of the {len(chosen)} inducing points is singular to rounding: points are equal or "
            "nearly so. Pass a number, from which points are drawn that are not, or leave some out."
        )
    return validation.owned(chosen), root


def _draw(kernel: Kernel, X: np.ndarray, count: int, seed: int, report: Report) -> np.ndarray:
    """Draw rows by randomly pivoted Cholesky on an even sample: far from each other, and never two equal ones."""
    rng = np.random.default_rng(seed)
    size = min(len(X), max(CANDIDATES, EACH * count))
    rows = np.sort(rng.choice(len(X), size, replace=False)) if size < len(X) else np.arange(len(X))
    sample = np.asarray(X[rows], np.float64)
    memory.require(
        preconditioners.bytes_needed(size, count), f"a draw of {count} inducing points", remedy="use fewer points"
    )
    matrix = operators.Recomputed(kernel.prepared(sample), sample)
    diagonal = check_finite(matrix.diagonal(), sample)
    if not diagonal.any():
        raise ValueError("the kernel is 0 at the rows of X, which then say nothing of y: check X, or add a bias.")
    found = preconditioners.random_cholesky(matrix, count, seed=seed, report=report)
    pivots = np.abs(found.factor[found.pivots, np.arange(len(found.pivots))])
    whole = np.sqrt(diagonal[found.pivots])
    keep = pivots > 8 * np.sqrt(linalg.rounding(len(pivots), 1.0)) * whole  # a Cholesky factor of the others exists
    return np.asarray(sample[found.pivots[keep]])


def _evaluations(kernel: Kernel, X: np.ndarray, chosen: np.ndarray) -> tuple[Function, Function]:
    """Return rows -> K(rows, chosen) and rows -> K(x, x); the kernel is prepared once for all rows where it can be."""
    if type(kernel).cross is not Kernel.cross or X.dtype != np.float64:
        return lambda rows: np.asarray(kernel.cross(rows, chosen)), lambda rows: np.asarray(kernel.diag(rows))
    pairs = kernel.prepared(X, chosen)
    return lambda rows: tiles.cross(pairs, rows, chosen), lambda rows: tiles.diagonal(pairs, rows, beside=len(chosen))


def _blocks(X: np.ndarray, m: int) -> Iterator[slice]:
    rows = max(ROWS_AT_LEAST, min(len(X), BLOCK // m))
    return (slice(i, min(i + rows, len(X))) for i in range(0, len(X), rows))


def _sums(
    kernel: Kernel,
    X: np.ndarray,
    y: np.ndarray,
    noise: np.ndarray,
    chosen: np.ndarray,
    root: linalg.Cholesky,
    approximation: Approximation,
    report: Report = no_progress,
) -> RowSums:
    """Add up all rows, block by block."""
    m, c = len(chosen), y.shape[1]
    total = np.zeros((m, m), order="F")
    moments, squares, log_noise, rest = np.zeros((m, c)), np.zeros(c), 0.0, 0.0
    error = linalg.rounding(m, 1.0) * root.spread
    between, itself = _evaluations(kernel, X, chosen)
    report(STAGE, 0, len(X))
    for part in _blocks(X, m):
        rows = np.asarray(X[part], np.float64)
        diagonal, cross = itself(rows), check_finite(between(rows), rows)
        with threads.limit(threads.work(m, m, len(rows))):
            phi = scipy.linalg.blas.dtrsm(1.0, root.lower.T, cross.T, trans_a=1)
            left = linalg.non_negative(diagonal - np.einsum("ij,ij->j", phi, phi), error * diagonal)
            own = noise[part] + (left if approximation == "fitc" else 0.0)
            phi *= 1 / np.sqrt(own)
            total = scipy.linalg.blas.dsyrk(1.0, phi, 1.0, total, overwrite_c=1)
            weighted = y[part] / np.sqrt(own)[:, None]
            moments += phi @ weighted
        squares += np.sum(weighted**2, axis=0)
        log_noise += float(np.sum(np.log(own)))
        rest += float(np.sum(left / noise[part]))
        report(STAGE, part.stop, len(X))
    return RowSums(total.T, moments, squares, log_noise, rest)
