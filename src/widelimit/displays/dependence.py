"""Partial dependence is drawn with error bars: those of the posterior of the average prediction over rows."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Self, final

import numpy as np
from sklearn.base import is_classifier
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

from widelimit import validation
from widelimit.displays import rows
from widelimit.displays.axes import axes_or_new, figure_of, label
from widelimit.messages import did_you_mean, list_names, shown
from widelimit.shapes import Float

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Average = Callable[[Any], tuple[float, float]]
"""A function from rows of a table to the average prediction and its standard deviation, NaN if it has none."""
COLUMNS = 3
"""Panels in a row of a figure."""
MOST_TEXTS = 20
"""Categories of a column of text that are drawn, at most: those of the most rows."""


class Dependence(NamedTuple):
    """The dependence is the average prediction over rows, with one column set to each value of a grid."""

    name: str
    grid: np.ndarray
    """(g,) values of the column: numbers, or texts."""
    mean: Float[np.ndarray, " g"]
    std: Float[np.ndarray, " g"]
    """The standard deviation of the average; NaN if the estimator gives none."""
    values: np.ndarray
    """The column's own numbers in these rows; empty for a column of text."""


@final
class DependenceDisplay:
    """f_S(v) = (1/m) sum_i f(x_i with v in column S), its posterior mean and 1.96 standard deviations.

    The average runs over m rows of the table. f is the function without noise, and the standard deviation is exact:
    var f_S(v) = (1/m^2) sum_ij cov(f(x_i), f(x_j)), from the joint covariance of the rows. The probability of a class
    has no standard deviation.

    Attributes:
        dependences: one for each feature: name, grid, mean, std, values.
        target: text that says what is averaged.
        axes_, ax_, figure_: all panels, the first panel and the figure of the last `plot`.
    """

    axes_: np.ndarray
    ax_: Axes
    figure_: Figure

    def __init__(self, dependences: Sequence[Dependence], *, target: str = "prediction") -> None:
        self.dependences, self.target = list(dependences), target

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        features: int | str | Sequence[int | str],
        *,
        target: Any = None,
        feature_names: Sequence[str] | None = None,
        grid_resolution: int = 30,
        max_rows: int = 200,
        random_state: int = 0,
        ax: Any = None,
    ) -> Self:
        """Compute the dependence on each of these features, and draw it.

        Args:
            estimator: fitted; a regressor whose `predict` has `return_cov`, a classifier, or a pipeline ending in one.
            X: (n, d) rows to average over.
            features: a column's number or name, or several.
            target: a class, required for more than two (of two, the second is drawn); or the number of an output.
            feature_names: names of the columns of an array; those of the fit if not given.
            grid_resolution: values at which a column of numbers is set, from its 5 % to its 95 % quantile; its own
                values if they are fewer.
            max_rows: m at most; drawn from X at random. The cost is that of a covariance of m rows for each value.
            random_state: seed of the drawing.
            ax: one Axes for one feature, an array of them for several; a new figure if not given.

        Raises:
            TypeError, ValueError: bad arguments; a regressor without covariances.
        """
        check_is_fitted(estimator)
        X = rows.table(X)
        resolution = validation.integer("grid_resolution", grid_resolution, at_least=2)
        count = validation.integer("max_rows", max_rows, at_least=1)
        seed = validation.integer("random_state", random_state, at_least=0)
        names = rows.names(X, estimator, feature_names)
        places = [_place(feature, names) for feature in _several(features)]
        drawn = rows.sample(X, count, seed)
        average, what = _average(estimator, drawn, target)
        return cls([_dependence(average, X, drawn, j, names[j], resolution) for j in places], target=what).plot(ax)

    def title(self) -> str:
        """Describe the vertical axis."""
        known = any(np.isfinite(found.std).all() for found in self.dependences)
        return f"mean {self.target}" + ", 95 % band" * known

    def plot(self, ax: Any = None) -> Self:
        """Draw a panel for each feature, with common limits: mean, 95 % band, and the deciles of the column as ticks.

        Args:
            ax: one Axes for one feature, an array of them for several; a new figure if not given.

        Raises:
            TypeError, ValueError: no such Axes, or another number of them.
        """
        self.axes_ = panels = _panels(ax, len(self.dependences))
        self.ax_, self.figure_ = panels[0], figure_of(panels[0])
        for axes, found in zip(panels, self.dependences, strict=True):
            _draw(axes, found)
        low, high = zip(*(axes.get_ylim() for axes in panels), strict=True)
        for axes in panels:
            axes.set_ylim(min(low), max(high))
        if ax is None and len(panels) > 1:
            self.figure_.supylabel(label(self.title(), 44), fontsize=9)
        else:
            self.ax_.set_ylabel(label(self.title(), 44), fontsize=9)
        return self


def _several(features: Any) -> list[Any]:
    """Return the features as a list. Raises: TypeError, ValueError."""
    many = not isinstance(features, str) and np.ndim(features) == 1
    found = list(features) if many else [features]
    if not found:
        raise ValueError("features is empty: name one column at least.")
    return found


def _place(feature: Any, names: Sequence[str]) -> int:
    """Return the number of a column. Raises: TypeError, ValueError."""
    if isinstance(feature, str):
        if feature not in names:
            known = f"{list_names(names)[:200]}{did_you_mean(feature, names)}"
            raise ValueError(f"features: there is no column {shown(feature)}; the columns are {known}")
        return names.index(feature)
    return validation.integer("features", feature, at_least=0, below=len(names))


def _average(estimator: Any, drawn: Any, target: Any) -> tuple[Average, str]:
    """Return what averages predictions over rows, and its name. Raises: TypeError, ValueError."""
    if is_classifier(estimator):
        return _class_average(estimator, target)
    last = estimator[-1] if isinstance(estimator, Pipeline) else estimator
    if "return_cov" not in inspect.signature(getattr(last, "predict", str)).parameters:
        raise TypeError(
            f"{type(last).__name__}.predict has no return_cov, so that averages of predictions have no standard "
            "deviation: pass an estimator of widelimit (of a search, best_estimator_), or draw the mean with "
            "sklearn.inspection.PartialDependenceDisplay."
        )
    shape = np.shape(estimator.predict(drawn))
    single = len(shape) == 1
    if single and target is not None:
        raise ValueError(f"target={shown(target)} is for several outputs or classes; leave it out.")
    if not single and target is None:
        raise ValueError("the estimator has several outputs: choose one by target, a number from 0.")
    place = (...,) if single else (..., validation.integer("target", target, at_least=0, below=shape[1]))

    def average(X: Any) -> tuple[float, float]:
        mean, covariance = estimator.predict(X, return_cov=True)
        variance = max(float(covariance[place].mean()), 0.0)  # negative by rounding only
        return float(mean[place].mean()), math.sqrt(variance)

    return average, "prediction" if single else f"prediction of output {target}"


def _class_average(estimator: Any, target: Any) -> tuple[Average, str]:
    """Return the function that averages the probability of a class, and its name. Raises: ValueError: no class."""
    classes = list(estimator.classes_)
    if target is None and len(classes) > 2:
        raise ValueError(f"target must be one of the {len(classes)} classes, such as {shown(classes[0])}.")
    chosen = classes[-1] if target is None else target
    if np.ndim(chosen) or chosen not in classes:
        raise ValueError(f"target={shown(target)} is no class; the classes are {shown(classes)}.")
    k = classes.index(chosen)
    return lambda X: (float(np.mean(estimator.predict_proba(X)[:, k])), math.nan), f"probability of {chosen}"


def _dependence(average: Average, X: Any, drawn: Any, j: int, name: str, resolution: int) -> Dependence:
    """Compute the dependence on column j."""
    own = rows.column(X, j)
    values = rows.numbers(own)
    if values is None:
        grid, first, size = np.unique(np.asarray(own).astype(str), return_index=True, return_counts=True)
        kept = np.sort(np.argsort(-size, kind="stable")[:MOST_TEXTS])
        grid, settings = grid[kept], [rows.take(own, np.full(len(drawn), i)) for i in first[kept]]
        values = np.empty(0)
    elif len(values):
        grid = np.unique(values)
        if len(grid) > resolution:
            low, high = np.quantile(values, (0.05, 0.95))
            grid = np.linspace(low, high, resolution)
        settings = grid.tolist()
    else:
        raise ValueError(f"features: column {shown(name)} has only missing values.")
    mean, std = np.array([average(rows.replaced(drawn, j, setting)) for setting in settings]).T
    return Dependence(name, grid, mean, std, values)


def _panels(ax: Any, count: int) -> np.ndarray:
    """Return the Axes of `count` panels, (count,). Raises: TypeError, ValueError."""
    if ax is None and count > 1:
        import matplotlib.pyplot as plt

        across, down = min(count, COLUMNS), math.ceil(count / COLUMNS)
        figure, grid = plt.subplots(
            down, across, figsize=(3.4 * across, 3.0 * down), layout="constrained", squeeze=False
        )
        for spare in grid.ravel()[count:]:
            figure.delaxes(spare)
        return np.asarray(grid.ravel()[:count])
    given = np.ravel(np.asarray(ax, dtype=object))
    if len(given) != count:
        raise ValueError(f"ax must hold {count} Axes, one for each feature; got {len(given)}.")
    return np.array([axes_or_new(each, (4.5, 3.4)) for each in given], dtype=object)


def _draw(axes: Axes, found: Dependence) -> None:
    """Draw one feature."""
    from widelimit import plots

    width = plots.NORMAL_QUANTILE * np.where(np.isfinite(found.std), found.std, 0.0)
    if not len(found.values):
        places = np.arange(len(found.grid))
        plots.error_bars(axes, places, np.stack([found.mean, width]), color=plots.BAYES)
        turned = 90 if len(places) > 4 or max(map(len, found.grid)) > 8 else 0
        axes.set_xticks(places, [label(text, 16) for text in found.grid], rotation=turned)
    elif np.isfinite(found.std).all():
        plots.band(axes, found.grid, found.mean, found.std**2, color=plots.BAYES, label="mean")
    else:
        axes.plot(found.grid, found.mean, color=plots.BAYES, linewidth=1.8)
    if len(found.values):
        deciles = np.quantile(found.values, np.arange(1, 10) / 10)
        inside = deciles[(deciles >= found.grid[0]) & (deciles <= found.grid[-1])]
        axes.plot(inside, np.zeros(len(inside)), "|", color=plots.DATA, transform=axes.get_xaxis_transform(), ms=9)
    plots.dress(axes, xlabel=label(found.name))
