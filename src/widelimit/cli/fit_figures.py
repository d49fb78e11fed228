"""The figures of the report of a fit: targets, predictions, errors, calibration, dependence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.calibration import calibration_curve
from sklearn.metrics import ConfusionMatrixDisplay, confusion_matrix

from widelimit import plots
from widelimit.cli import scores
from widelimit.displays.axes import label
from widelimit.displays.calibration import CalibrationDisplay
from widelimit.displays.importance import ImportanceDisplay, height
from widelimit.shapes import Float

MOST_CLASSES = 15
"""Classes in a confusion matrix, at most: those of the most rows."""
BINS = 10
POINTS = 2000
"""Points of a scatter plot, at most."""


def target(values: np.ndarray, name: str) -> Figure:
    """Draw the distribution of the target: numbers, or the rows of each class."""
    figure, (axes,) = plots.panels(1)
    axes.set_axisbelow(True)
    if values.dtype.kind == "f":
        axes.hist(values, bins=min(40, max(5, int(len(values) ** 0.5))), color=plots.BAYES)
        plots.dress(axes, xlabel=label(name, 50), ylabel="rows")
        return figure
    classes, counts = np.unique(values, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:MOST_CLASSES]
    axes.barh(np.arange(len(order)), counts[order], 0.7, color=plots.BAYES)
    axes.set_yticks(np.arange(len(order)), [label(classes[k], 24) for k in order])
    axes.set_ylim(len(order) - 0.4, -0.6)
    plots.dress(axes, xlabel="rows", ylabel=label(name, 30))
    figure.set_figheight(height(len(order)))
    return figure


def importance(display: ImportanceDisplay, shown: int) -> Figure:
    """Draw the importance of columns."""
    figure, (axes,) = plots.panels(1)
    figure.set_figheight(height(min(shown, len(display.importances))))
    display.plot(axes, max_features=shown)
    return figure


def residuals(y: Float[np.ndarray, " m"], mean: Float[np.ndarray, " m"], std: Float[np.ndarray, " m"]) -> Figure:
    """Draw observations over predictions, and standardised errors over predictions with their distribution."""
    figure, (upper, lower, last) = plots.panels(3)
    some = np.random.default_rng(0).permutation(len(y))[:POINTS]
    width = plots.NORMAL_QUANTILE * std[some]
    upper.errorbar(mean[some], y[some], xerr=width, fmt="none", ecolor=plots.BAYES, alpha=0.15, linewidth=0.8)
    upper.plot(mean[some], y[some], "o", color=plots.DATA, markersize=2.5, alpha=0.6)
    ends = [min(y.min(), mean.min()), max(y.max(), mean.max())]
    upper.plot(ends, ends, color=plots.DESCENT, linewidth=1, label="observed = predicted")
    plots.dress(upper, xlabel="predicted, with 95 % interval", ylabel="observed")
    z = scores.standardised(y, mean, std)
    lower.plot(mean[some], z[some], "o", color=plots.DATA, markersize=2.5, alpha=0.6)
    for level in (-plots.NORMAL_QUANTILE, 0, plots.NORMAL_QUANTILE):
        lower.axhline(level, color=plots.DESCENT, linewidth=1, linestyle="-" if level == 0 else ":")
    plots.dress(lower, xlabel="predicted", ylabel="error / its standard deviation")
    grid = np.linspace(-4, 4, 200)
    bins = np.linspace(-4, 4, 2 * min(20, max(5, int(len(z) ** 0.5))) + 1)
    last.hist(np.clip(z, -4, 4), bins=bins.tolist(), density=True, color=plots.BAYES, alpha=0.7, label="errors")
    last.plot(grid, np.exp(-(grid**2) / 2) / np.sqrt(2 * np.pi), color=plots.DESCENT, label="expected")
    plots.dress(last, xlabel="error / its standard deviation; beyond 4 at the end", ylabel="density")
    for axes in (upper, last):
        axes.legend(loc="upper left", frameon=False, fontsize=8)
    return figure


def intervals(y: Float[np.ndarray, " m"], mean: Float[np.ndarray, " m"], std: Float[np.ndarray, " m"]) -> Figure:
    """Draw the coverage of intervals against their level."""
    figure, (axes,) = plots.panels(1)
    figure.set_figheight(4.4)
    CalibrationDisplay.from_predictions(y, mean, std, ax=axes)
    return figure


def confusion(truth: np.ndarray, predicted: np.ndarray) -> Figure:
    """Draw the counts of true and predicted classes, of the most frequent classes."""
    classes, counts = np.unique(truth, return_counts=True)
    kept = np.sort(classes[np.argsort(-counts, kind="stable")[:MOST_CLASSES]])
    figure, (axes,) = plots.panels(1)
    figure.set_figheight(2.2 + 0.2 * len(kept))
    table = confusion_matrix(truth, predicted, labels=kept)
    names = [label(name, 14) for name in kept]
    ConfusionMatrixDisplay(table, display_labels=names).plot(
        ax=axes, cmap="Blues", colorbar=False, text_kw={"fontsize": 7}
    )
    axes.tick_params(labelsize=8)
    axes.tick_params(axis="x", rotation=90 if max(map(len, names)) > 3 and len(names) > 3 else 0)
    axes.set_xlabel("predicted", fontsize=9)
    axes.set_ylabel("true", fontsize=9)
    return figure


def reliability(happened: np.ndarray, p: Float[np.ndarray, " m"], what: str) -> Figure:
    """Draw how often an event of predicted probability p happened, in bins of equally many rows."""
    figure, (axes,) = plots.panels(1)
    figure.set_figheight(4.4)
    share, mean = calibration_curve(happened, p, n_bins=min(BINS, max(2, len(p) // 10)), strategy="quantile")
    error = np.sqrt(np.maximum(mean * (1 - mean), 0) * len(share) / len(p))
    axes.plot([0, 1], [0, 1], color=plots.DATA, linewidth=0.8, linestyle=":")
    plots.error_bars(axes, mean, np.stack([share, error]), "o-", color=plots.BAYES)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    plots.dress(axes, xlabel=label(f"predicted probability {what}", 60), ylabel="share of rows where it is so")
    return figure


def dependence_panels(count: int) -> tuple[Figure, Sequence[Axes]]:
    """Make a panel for each of some columns."""
    figure, panels = plots.panels(count)
    figure.set_figheight(2.4 * count)
    return figure, panels
