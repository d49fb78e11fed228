"""Learning curves of kernel regression are predicted: mean errors over random training sets, without drawing any.

`generalization` is the public function; `equivalents` has the theory, `measured` the training sets that are drawn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, final

import numpy as np

from widelimit import validation
from widelimit.compute import linalg, threads
from widelimit.inference.training_set import EIGENVECTORS, TrainingSet, training_set
from widelimit.kernels.base import Kernel
from widelimit.rkhs.spectra import Spectrum
from widelimit.shapes import Float
from widelimit.theory.equivalents import Equivalent, Errors, OfLevels, OfModes, exponential_poles, of_rows
from widelimit.theory.measured import Measured, measure
from widelimit.validation import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes

METHODS = ("auto", "rows", "modes")
ROWS = 2000
"""Rows up to which method="auto" takes "rows", which inverts some matrices of that size for each training size."""
SMALLEST_RIDGE = 1e-11
"""Ridge, over the mean of K(x, x), that stands for 0 where zero eigenvalues are known to rounding only."""
_LARGEST_RIDGE = 1e150
"""Ridge, over the mean of K(x, x), whose square is within float64's range."""
_NOTHING = 1e-14
"""2 time/n below which nothing is learned, to rounding, where the mean of K(x, x) is 1."""
_WORKSPACE = {"rows": 6, "modes": EIGENVECTORS}
"""Matrices of the kernel's size that a method needs beside the kernel."""


@final
@dataclass(frozen=True)
class Generalization:
    """The learning curve: means over random training sets of each size, in the square of the targets' unit.

    Errors are |f - y|^2, summed over outputs, with the noise of the targets. Made by `generalization`.
    """

    sizes: np.ndarray
    test_error: Float[np.ndarray, " S"]
    """The mean over rows that were not trained on. It is inf (very large with method="rows") where an interpolant of
    noisy targets has no mean error: as many rows as the rank of the kernel, without noise."""
    train_error: Float[np.ndarray, " S"]
    bias: Float[np.ndarray, " S"]
    """The error of the mean prediction over training sets, with the noise of the targets."""
    variance: Float[np.ndarray, " S"]
    """The variance of the prediction over training sets: test_error = bias + variance."""
    learnability: Float[np.ndarray, " S"]
    """<y, E f>/<y, y>: the share of the target that is in the mean prediction; 1 if all is learned."""
    modes: Float[np.ndarray, "S D"] | None
    """The learnability of every eigenfunction, largest eigenvalue first (of every level, in the spectrum's order)."""
    method: str
    """"levels" (exact eigenvalues), "modes" or "rows"."""
    measured: Measured | None = None
    """The errors of training sets that were drawn and fitted, with draws > 0."""

    def plot(self, ax: Any = None) -> Axes:
        """Draw the errors over the size, both on logarithmic axes. Raises: TypeError: ax."""
        from widelimit import plots
        from widelimit.displays.axes import axes_or_new

        axes = axes_or_new(ax, (6.0, 3.4))
        axes.loglog(self.sizes, self.test_error, color=plots.BAYES, marker="o", markersize=3, label="test error")
        axes.loglog(self.sizes, self.bias, color=plots.BAYES, linestyle=":", label="bias and noise")
        seen = self.train_error > 0
        if seen.any():
            axes.loglog(self.sizes[seen], self.train_error[seen], color=plots.DESCENT, linestyle="--", label="training")
        if self.measured is not None:
            pair = np.stack([self.measured.test_error, self.measured.standard_error])
            plots.error_bars(axes, self.sizes, pair, label="drawn")
        plots.finish(axes, xlabel="training rows", ylabel="mean square error")
        return axes


def generalization(
    k: Kernel | Spectrum,
    X: Float[Array, "N d"] | None = None,
    y: Float[Array, "N *c"] | None = None,
    *,
    sizes: Any,
    noise: float = 0.0,
    time: float = math.inf,
    method: str = "auto",
    draws: int = 0,
    key: int = 0,
    powers: Any = None,
    label_noise: float = 0.0,
) -> Generalization:
    """E |f - y|^2 = n/(n - sum L^2) (sum (1 - L)^2 v^2 + s^2), L = lambda/(lambda + kappa), sum L + noise/kappa = n.

    Predicts the mean test error of kernel regression on n random rows from the kernel's eigenvalues lambda and the
    squares v^2 of the target's coefficients in its eigenfunctions (Bordelon, Canatar and Pehlevan 2020, arXiv
    2002.02561; Simon et al. 2021, arXiv 2110.03922). Gradient flow that is stopped at a time is predicted too. Given N
    rows, neither lambda nor v has to be known: the sums are traces of (K + d)^{-1}, as in generalised
    cross-validation, with the ridge d at which all N rows have the kappa of n. method="rows" gives each row its own
    kappa, which describes dense and sparse regions of real data with little noise; "modes" has one kappa for all rows
    and is quicker.

    The theory takes features to be Gaussian, which is good if many modes matter. It can fail (on the circle by a
    factor) for inputs of one or two dimensions, smooth kernels, or a few rows with little noise: compare with `draws`.

    Args:
        k: a kernel with data X, y; or a `rkhs.Spectrum` with the powers of a target.
        X: (N, d) rows; training sets are subsets of these, and errors are those at rows left out.
        y: (N,) or (N, c) targets, with their noise.
        sizes: (S,) integers n, 1 <= n < N.
        noise: added to the diagonal of K, >= 0, as in `posterior`; 0: the interpolant of smallest norm (from rows: a
            ridge of 1e-11 of the mean of K(x, x), as smaller eigenvalues are rounding).
        time: training time of `gradient_flow` on K + noise from f_0 = 0, >= 0, in the unit of d theta/dt = -grad C,
            C the mean of |f - y|^2; inf: until it has converged. A finite time needs method="modes" or "auto".
        method: "rows", "modes", or "auto", which is "rows" up to 2000 rows with time = inf and "modes" otherwise.
        draws: training sets of each size that are also drawn and fitted, for comparison, >= 2; 0: none.
        key: seed of these draws, >= 0.
        powers: mean squares v^2 of the target in each level of a spectrum, (D,) >= 0, summed over its functions.
        label_noise: variance of the targets' noise and of the target's part outside all levels, >= 0, for a spectrum.

    Returns:
        A `Generalization`.

    Raises:
        TypeError, ValueError: bad arguments; both data and powers, or neither; sizes beyond the rows; a kernel that
            is not positive semi-definite; a spectrum that is 0.
        MemoryError: the matrices do not fit. ArithmeticError: an iteration does not converge.
    """
    ridge = float(validation.finite_scalar("noise", noise, at_least=0.0))
    until = float(validation.one_time(time))
    validation.choice("method", method, METHODS)
    target_noise = float(validation.finite_scalar("label_noise", label_noise, at_least=0.0))
    if isinstance(k, Spectrum):
        _require_levels(X, y, powers, draws, method)
        return _from_levels(k, powers, target_noise, _sizes(sizes, None), ridge, until)
    if X is None or y is None or powers is not None or target_noise:
        raise TypeError(
            "a kernel needs X and y, with noise in y; powers and label_noise are for a Spectrum only: leave them out."
        )
    data = training_set(k, X, y)
    if data.coupled > 1:
        raise TypeError("generalization needs a kernel of one output; take that of one output of a matrix kernel.")
    counts = _sizes(sizes, len(data.X))
    count = validation.integer("draws", draws, at_least=0)
    seed = validation.integer("key", key, at_least=0)
    if count == 1:
        raise ValueError("draws=1 has no standard error; take 2 or more, or 0 for none.")
    way = _method(method, len(data.X), until)
    size = float(np.max(np.abs(data.y))) or 1.0
    data = data._replace(y=data.y / size)
    matrix = data.gram(beside=_WORKSPACE[way] + bool(count))
    found = _predicted(data, matrix.copy() if count else matrix, counts, ridge, until, way)
    drawn = measure(matrix, data.y, counts, ridge, until, count, seed) if count else None
    return _in_units(replace(found, measured=drawn), size)


def _require_levels(X: Any, y: Any, powers: Any, draws: Any, method: str) -> None:
    """Refuse arguments that do not go with a spectrum. Raises: TypeError."""
    if X is not None or y is not None or powers is None:
        raise TypeError("a Spectrum needs the powers of the target in its levels, and takes no X and y.")
    if draws or method != "auto":
        raise TypeError("draws and method are for rows, and a Spectrum has no rows: leave them out.")


def _method(method: str, rows: int, until: float) -> str:
    """Return "rows" or "modes". Raises: ValueError: "rows" at a finite time."""
    if method == "auto":
        return "rows" if rows <= ROWS and until == math.inf else "modes"
    if method == "rows" and until < math.inf:
        raise ValueError('method="rows" has no finite time; take method="modes", or time=math.inf.')
    return method


def _predicted(
    data: TrainingSet, matrix: np.ndarray, counts: np.ndarray, ridge: float, until: float, method: str
) -> Generalization:
    """Predict the errors at every size; matrix: K(X, X), which is overwritten."""
    if method == "modes":
        modes, unit = _modes(matrix, data)
        end = until * unit if until * unit < 1 / SMALLEST_RIDGE else math.inf
        return _curve(modes, counts, max(_relative(ridge, unit), SMALLEST_RIDGE), end, method)
    unit = _unit(float(np.mean(np.diagonal(matrix))))
    matrix /= unit
    found = [of_rows(matrix, data.y, n, max(_relative(ridge, unit), SMALLEST_RIDGE)) for n in counts.tolist()]
    return _result(counts, found, None, method)


def _sizes(values: Any, rows: int | None) -> np.ndarray:
    """Return (S,) integers. Raises: TypeError, ValueError."""
    counts = np.atleast_1d(np.asarray(values))
    if counts.ndim != 1 or not counts.size or not np.issubdtype(counts.dtype, np.integer):
        raise TypeError(f"sizes must be integers, such as [10, 100, 1000]; got {validation.shown(values)}.")
    if counts.min() < 1:
        raise ValueError(f"sizes must be >= 1, got {counts.min()}.")
    if rows is not None and counts.max() >= rows:
        raise ValueError(
            f"sizes must be below the number of rows, {rows}, so that some rows are left for the test; got "
            f"{counts.max()}."
        )
    return validation.owned(counts)


def _unit(mean: float) -> float:
    """Return the mean of K(x, x), the unit of ridges and eigenvalues. Raises: ValueError: it is 0."""
    if mean <= 0:
        raise ValueError("the kernel is 0 at all rows: it learns nothing.")
    return mean


def _relative(ridge: float, unit: float) -> float:
    """Return the ridge in the kernel's unit. Raises: ValueError: too large."""
    if ridge > _LARGEST_RIDGE * unit:
        raise ValueError(
            f"noise={ridge:.3g} is too large for a kernel whose diagonal has the mean {unit:.3g}: nothing is learned, "
            f"and the squares leave float64's range."
        )
    return ridge / unit


def _from_levels(
    spectrum: Spectrum, powers: Any, noise: float, counts: np.ndarray, ridge: float, until: float
) -> Generalization:
    """Predict the errors from a spectrum and the target's powers in its levels. Raises: ValueError: other powers."""
    squares, shape = np.asarray(validation.as_finite_floats("powers", powers), np.float64), spectrum.eigenvalues.shape
    if squares.shape != shape:
        raise ValueError(f"powers must have the shape of the eigenvalues, {shape}, got {squares.shape}.")
    if (squares < 0).any():
        raise ValueError(f"powers are mean squares, >= 0, got {squares.min():.3g}.")
    unit, multiplicities = _unit(spectrum.trace), np.asarray(spectrum.multiplicities)
    size = math.sqrt(max(float(squares.max()), noise)) or 1.0
    squares, noise = squares / size / size, noise / size / size
    levels = OfLevels(spectrum.eigenvalues / unit, multiplicities, squares, spectrum.unseen / unit, noise)
    return _in_units(_curve(levels, counts, _relative(ridge, unit), until * unit, "levels"), size)


def _modes(matrix: np.ndarray, data: TrainingSet) -> tuple[OfModes, float]:
    """Return the eigenvalues of K(X, X) and the target's squares, and the kernel's unit; the matrix is overwritten."""
    values, vectors = linalg.eigenpairs(matrix, data.error)
    values = np.where(values > linalg.rounding(len(values), float(values[-1])), values, 0.0)[::-1]
    unit = _unit(float(np.mean(values)))
    squares = np.sum(threads.product(vectors.T, data.y) ** 2, axis=1)[::-1]
    return OfModes(values / unit, squares), unit


def _curve(equivalent: Equivalent, counts: np.ndarray, ridge: float, until: float, method: str) -> Generalization:
    """Compute the errors at every size; `ridge` is divided by the kernel's unit, the time `until` multiplied by it."""
    found = []
    for n in counts.tolist():
        ridges, weights = np.array([ridge]), np.ones(1)
        if until < math.inf:
            z, weights = exponential_poles()
            ridges = ridge + z / max(2 * until / n, _NOTHING)
        found.append(equivalent.errors(n, ridges, weights))
    return _result(counts, [errors for errors, _ in found], np.stack([modes for _, modes in found]), method)


def _result(counts: np.ndarray, found: list[Errors], modes: np.ndarray | None, method: str) -> Generalization:
    test, train, bias, learned = np.array(found).T
    return Generalization(counts, test, train, bias, test - bias, learned, modes, method)


def _in_units(found: Generalization, size: float) -> Generalization:
    """Return the errors of targets that were divided by `size`. Raises: ValueError: squares over- or underflow."""
    if size * size < np.finfo(np.float64).tiny:
        raise ValueError(f"squares of targets of size {size:.3g} leave float64's range; scale y up.")
    with np.errstate(over="ignore"):
        parts = (found.test_error, found.train_error, found.bias, found.variance)
        test, train, bias, variance = (part * size * size for part in parts)
        drawn = None if found.measured is None else Measured(*(part * size * size for part in found.measured))
    if not np.isfinite(bias).all():
        raise ValueError(f"squares of targets of size {size:.3g} leave float64's range; scale y down.")
    return replace(found, test_error=test, train_error=train, bias=bias, variance=variance, measured=drawn)
