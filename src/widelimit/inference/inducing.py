"""Inference with inducing points takes one pass over the rows and O(m^2) memory, for n rows and m points."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np
import scipy.linalg

from widelimit import memory, validation
from widelimit.compute import linalg, threads
from widelimit.fingerprints import sha256
from widelimit.inference import inducing_points
from widelimit.inference.inducing_points import TESTED
from widelimit.inference.row_sums import (
    LOST,
    Approximation,
    Features,
    Precision,
    RowData,
    RowSums,
    features,
    require_memory,
    rounding_in_single,
    sum_rows,
    sums_file,
)
from widelimit.inference.rows import Rows, input_rows, on_disk, target_rows
from widelimit.inference.training_set import (
    Prediction,
    array_like,
    check_finite,
    evenly,
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

APPROXIMATIONS = ("dtc", "fitc")
INDUCING = 1000
"""Inducing points unless their number is given."""
EVIDENCE = 100
"""Roundings below which a difference has no digits that the evidence could be made of."""


class Evidence(NamedTuple):
    """The evidence of the targets has these parts."""

    squares: Float[np.ndarray, " c"]
    """y^T (Q + Lambda)^{-1} y of each output."""
    log_determinant: float
    """log det(Q + Lambda)."""
    rest: float
    """sum_i (K - Q)(x_i, x_i)/noise_i."""
    rows: int


def whitened_rows(
    kernel: Kernel, inducing: np.ndarray, root: linalg.Cholesky, points: np.ndarray
) -> Iterator[tuple[slice, np.ndarray, np.ndarray, np.ndarray]]:
    """Yield blocks of points z: their places, K(z, L), phi = L^{-1} K(L, z), and K(z, z) - |phi|^2, never negative."""
    prior = np.asarray(kernel.diag(points), np.float64)
    error = linalg.rounding(len(inducing), 1.0) * root.spread * prior
    for part in row_blocks(len(points)):
        cross = np.asarray(kernel.cross(points[part], inducing))
        phi = root.whiten(cross.T)
        yield part, cross, phi, linalg.non_negative(prior[part] - np.einsum("ij,ij->j", phi, phi), error[part])


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
    arithmetic: str = "float64"
    """The precision of the sums over rows."""

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
            f"prior variance left by the inducing points: {self.evidence.rest / rows:.2g} of the noise, on average\n"
            f"sums over rows: {self.arithmetic}"
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
        mean, variance = np.empty((len(points), self.weights.shape[1])), np.empty(len(points))
        for part, cross, phi, left in whitened_rows(self.kernel, self.inducing, self.root, points):
            mean[part] = threads.product(cross, self.weights)
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
        m, c = len(points), self.weights.shape[1]
        memory.require(8.0 * (3 * count * m * c + 4 * m * m), f"{count} draws of {m} x {c} values")
        mean, covariance = np.asarray(self.mean(points)), np.asarray(self.covariance(points))
        size = float(np.asarray(self.kernel.diag(points)).max())
        rounding = linalg.rounding(len(self.inducing), 1.0) * self.root.spread
        error = len(points) * (rounding + self.kernel.table_error) * size
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
    """The number of points to draw, or (m, d) points."""
    approximation: Approximation = "dtc"
    seed: int = 0
    precision: Precision = "double"
    checkpoint: Path | None = None

    def given(self) -> dict[str, bool]:
        """Return by name if a setting that only this solver has is not the usual one."""
        drawn = self.inducing if isinstance(self.inducing, int) else None
        return {"inducing": drawn != INDUCING, "approximation": self.approximation != "dtc", "seed": self.seed != 0}


def sparse_settings(inducing: Any, approximation: Any, seed: Any, precision: Any, checkpoint: Any) -> SparseSettings:
    """Check the settings but for points, which are compared with X later. Raises: TypeError, ValueError."""
    if np.ndim(inducing) == 0:
        inducing = validation.integer("inducing", inducing, at_least=1)
    validation.choice("approximation", approximation, APPROXIMATIONS)
    place = None if checkpoint is None else Path(checkpoint)
    return SparseSettings(inducing, approximation, validation.integer("seed", seed, at_least=0), precision, place)


def sparse_posterior(
    k: Kernel, X: Any, y: Any, *, noise: Any, settings: SparseSettings, progress: bool
) -> SparsePosterior:
    """Compute `SparsePosterior`. Arguments and errors as `posterior`."""
    kernel = scalar_kernel(k) if on_disk(X) else scalar_kernel(k).at(X)
    rows = input_rows(kernel, X)
    n = rows.shape[0]
    targets, single = target_rows(y, n)
    variance = np.broadcast_to(validation.noise(noise, n), n)
    if not (variance > 0).all():
        raise ValueError('solver="nystrom" needs a noise > 0 at every row: y is not interpolated by inducing points.')
    with progress_bar(progress and n > LONG) as report:
        found = pass_over_rows(kernel, rows, targets, variance, settings, report)
        factor = factorise(found.sums.information, variance, report)
    sums, exponent, root = found.sums, found.data.exponent, found.made.root
    inner = factor.solve(sums.moments)
    weights = linalg.rescale(from_whitened(root, inner), exponent)
    left = sums.squares - np.sum(sums.moments * inner, axis=0)
    lost = left <= EVIDENCE * linalg.rounding(len(inner), 1.0) * sums.squares  # a difference of equal numbers
    squares = np.where(lost & (sums.squares > 0), np.nan, linalg.rescale(np.maximum(left, 0.0), 2 * exponent))
    evidence = Evidence(squares, factor.log_determinant() + sums.log_noise, sums.rest, n)
    state = weights, evidence, settings.approximation, single, found.arithmetic
    return SparsePosterior(kernel, found.made.points, root, factor, *state)


def from_whitened(root: linalg.Cholesky, values: np.ndarray) -> np.ndarray:
    """Return L^{-T} values: coefficients of K(., L) from those of phi."""
    with threads.limit(threads.work(len(values), len(values), values.shape[1])):
        return np.asarray(scipy.linalg.blas.dtrsm(1.0, root.lower.T, values, trans_a=0))


class Passed(NamedTuple):
    """One pass over the rows leaves these."""

    sums: RowSums
    made: Features
    data: RowData
    arithmetic: str


def pass_over_rows(
    kernel: Kernel, X: Rows, y: Rows, noise: np.ndarray, settings: SparseSettings, report: Report
) -> Passed:
    """Choose the inducing points, and sum over the rows; or go on from the file of an earlier call."""
    candidates = inducing_points.candidates(X.shape[0], settings.inducing, settings.seed)
    inputs, outputs = X.survey(candidates), y.survey(np.empty(0, int))
    if not np.isfinite(outputs.largest * X.shape[0]).all():
        validation.refuse_unsummable("y", outputs.largest * np.ones((X.shape[0], 1)))
    data = RowData(X, y, np.frexp(outputs.largest)[1], noise)
    file = None
    if settings.checkpoint is not None:
        facts = {"X": inputs.digest, "y": outputs.digest, "the noise": sha256(np.ascontiguousarray(noise))}
        facts |= inducing_points.facts(kernel, inputs.sample, settings.inducing, settings.seed)
        facts |= {"approximation": settings.approximation, "precision": settings.precision}
        file = sums_file(settings.checkpoint, facts)
    state = None if file is None else file.load()
    given = settings.inducing if state is None else state["points"]
    chosen, root = inducing_points.choose(kernel, inputs.sample, given, settings.seed, report)
    require_memory(*X.shape[:1], len(chosen), y.shape[1])
    some = evenly(len(candidates), TESTED)
    tested = inputs.sample[some], noise[candidates[some]]
    made, arithmetic = _arithmetic(features(kernel, X, chosen, root, np.float64), X, tested, settings.precision)
    return Passed(sum_rows(made, data, settings.approximation, file, state, report), made, data, arithmetic)


def _arithmetic(
    double: Features, X: Rows, tested: tuple[np.ndarray, np.ndarray], precision: Precision
) -> tuple[Features, str]:
    """Return the features in float32 if that is asked for and leaves enough digits, with a sentence on it.

    tested: rows from all of X, and their noise: a table may be sorted.
    """
    if precision == "double":
        return double, "float64"
    single = features(double.kernel, X, double.points, double.root, np.float32)
    added = rounding_in_single(double, single, *tested)
    if added <= LOST:
        return single, f"float32, summed in float64; rounding adds {added:.1g} of the noise to the variance of f"
    return double, f"float64, as float32 would add {added:.1g} of the noise to the variance of f (at most {LOST:g})"


def factorise(information: np.ndarray, noise: np.ndarray, report: Report = no_progress) -> linalg.Cholesky:
    """Factorise I + information, in its place. Raises: ValueError: it is not positive definite to rounding."""
    information[np.diag_indices(len(information))] += 1.0
    factor = linalg.cholesky(information, report=report)
    if factor is None:
        raise ValueError(
            f"the sums over rows are not positive definite: the noise, down to {noise.min():.3g}, is too small for "
            f'arithmetic beside the kernel. Pass a larger noise, fewer inducing points, or precision="double".'
        )
    return factor
