"""Error bars are calibrated if at every level, such as 95 %, this share of the observations is inside."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Self, final

import numpy as np
import scipy.special
import scipy.stats
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

from widelimit import validation
from widelimit.displays.axes import axes_or_new, figure_of, label
from widelimit.messages import shown
from widelimit.shapes import Float

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEVELS = np.append(np.arange(1, 20) / 20, 0.99)
"""Nominal levels of the intervals."""


@final
class CalibrationDisplay:
    """coverage(p) = share of rows with |y - mean| <= z_p std, against the level p; z_p: P(|N(0, 1)| <= z_p) = p.

    Calibrated predictions are on the diagonal. Below it error bars are too small, above it too large. The band holds
    95 % of the coverages of calibrated predictions at each level, which are binomial for independent rows.
    For classifiers, use `sklearn.calibration.CalibrationDisplay`.

    Attributes:
        levels: (k,) nominal levels.
        coverage: (k,) shares of rows.
        rows: number of rows.
        name: label of the line.
        ax_, figure_: the Axes and the figure of the last `plot`.
    """

    ax_: Axes
    figure_: Figure

    def __init__(
        self, levels: Float[np.ndarray, " k"], coverage: Float[np.ndarray, " k"], *, rows: int, name: str = "observed"
    ) -> None:
        self.levels, self.coverage, self.rows, self.name = np.asarray(levels), np.asarray(coverage), rows, name

    @classmethod
    def from_estimator(cls, estimator: Any, X: Any, y: Any, *, name: str | None = None, ax: Any = None) -> Self:
        """Predict new observations (with their noise) at rows that were not used in the fit, compare, and draw.

        Intervals are between quantiles for an estimator with `predict_quantiles`, and mean +- z_p std for others.

        Args:
            estimator: a fitted regressor of this library with one output, or a pipeline that ends in one.
            X: (m, d) rows.
            y: (m,) observations.
            name: label of the line; the estimator's class if not given.
            ax: where to draw; a new figure if not given.

        Raises:
            TypeError, ValueError: bad arguments; several outputs; a classifier.
        """
        check_is_fitted(estimator)
        last = estimator[-1] if isinstance(estimator, Pipeline) else estimator
        name = name or type(last).__name__
        if "include_noise" not in inspect.signature(getattr(last, "predict", str)).parameters:
            raise TypeError(
                f"{type(last).__name__}.predict has no include_noise: pass a regressor of widelimit (of a search, "
                "best_estimator_), or predictions to from_predictions(y, mean, std). Of a classifier, draw "
                "sklearn.calibration.CalibrationDisplay."
            )
        quantiles = getattr(estimator, "predict_quantiles", None)
        if quantiles is None:
            return cls.from_predictions(y, *estimator.predict(X, return_std=True, include_noise=True), name=name, ax=ax)
        truth, ends = _vector("y", y), np.asarray(quantiles(X, np.append((1 - LEVELS) / 2, (1 + LEVELS) / 2)))
        if ends.shape != (len(truth), 2 * len(LEVELS)):
            raise ValueError(f"y must have shape (m,) for X (m, d) and one output, got {truth.shape}.")
        inside = (ends[:, : len(LEVELS)] <= truth[:, None]) & (truth[:, None] <= ends[:, len(LEVELS) :])
        return cls(LEVELS, inside.mean(axis=0), rows=len(truth), name=name).plot(ax)

    @classmethod
    def from_predictions(cls, y: Any, mean: Any, std: Any, *, name: str | None = None, ax: Any = None) -> Self:
        """Compare observations with predicted means and standard deviations, noise included, and draw.

        Args:
            y: (m,) observations.
            mean: (m,).
            std: (m,), >= 0.
            name: label of the line.
            ax: where to draw; a new figure if not given.

        Raises:
            TypeError, ValueError: bad arguments; several outputs.
        """
        truth, center, deviation = (_vector(n, v) for n, v in (("y", y), ("mean", mean), ("std", std)))
        for key, values in (("mean", center), ("std", deviation)):
            if len(values) != len(truth):
                raise ValueError(f"{key} must have shape {truth.shape}, as y; got {values.shape}.")
        if (deviation < 0).any():
            raise ValueError(f"std must be >= 0, got {shown(float(deviation.min()))}.")
        quantiles = scipy.special.ndtri((1 + LEVELS) / 2)
        inside = np.abs(truth - center) <= quantiles[:, None] * deviation
        return cls(LEVELS, inside.mean(axis=1), rows=len(truth), name=name or "observed").plot(ax)

    def band(self) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, " k"]]:
        """Return the 2.5 % and 97.5 % quantiles of the coverage of calibrated predictions, at each level."""
        low, high = (scipy.stats.binom.ppf(q, self.rows, self.levels) / self.rows for q in (0.025, 0.975))
        return low, high

    def plot(self, ax: Any = None) -> Self:
        """Draw coverage against level, the diagonal, and the band of calibrated predictions.

        Args:
            ax: where to draw; a new figure if not given.

        Raises:
            TypeError: no Axes.
        """
        from widelimit import plots

        self.ax_ = axes = axes_or_new(ax, (4.6, 4.2))
        self.figure_ = figure_of(axes)
        expected = f"calibrated, 95 % of the time with {self.rows} rows"
        axes.fill_between(self.levels, *self.band(), color=plots.DATA, alpha=0.13, linewidth=0, label=expected)
        axes.plot([0, 1], [0, 1], color=plots.DATA, linewidth=0.8, linestyle=":")
        axes.plot(self.levels, self.coverage, "o-", color=plots.BAYES, markersize=3.5, label=label(self.name))
        plots.dress(axes, xlabel="nominal level of the interval", ylabel="share of observations inside")
        axes.set(xlim=(0, 1), ylim=(0, 1))
        axes.legend(loc="upper left", frameon=False, fontsize=8)
        return self


def _vector(name: str, value: Any) -> Float[np.ndarray, " m"]:
    """Return finite numbers, (m,). Raises: TypeError, ValueError."""
    values = np.asarray(validation.as_finite_floats(name, value), dtype=np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(
            f"{name} must have shape (m,), m >= 1, got {values.shape}; of several outputs, draw each with "
            "from_predictions(y[:, j], mean[:, j], std[:, j])."
        )
    return values
