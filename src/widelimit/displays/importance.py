"""The importance of a column is its learned scale, or the score that is lost when it is shuffled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Self, final

import numpy as np
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

from widelimit import validation
from widelimit.displays import rows
from widelimit.displays.axes import axes_or_new, figure_of, label
from widelimit.estimators.base import KernelEstimator
from widelimit.estimators.settings import scaling
from widelimit.shapes import Float

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHOWN = 20
"""Columns that are drawn, unless the caller says how many."""
SCALES = "learned scale of the standardised column"


@final
class ImportanceDisplay:
    """The display draws the importance of each column as a bar, the largest first.

    Attributes:
        importances: (d,).
        std: (d,) standard deviations over repetitions, or None.
        feature_names: d names.
        measure: text that says what was measured, with its unit.
        ax_, figure_: the Axes and the figure of the last `plot`.
    """

    ax_: Axes
    figure_: Figure

    def __init__(
        self,
        importances: Float[np.ndarray, " d"],
        *,
        feature_names: Sequence[str],
        std: Float[np.ndarray, " d"] | None = None,
        measure: str = "importance",
    ) -> None:
        self.importances, self.std, self.measure = np.asarray(importances), std, measure
        self.feature_names = list(feature_names)

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any = None,
        y: Any = None,
        *,
        feature_names: Sequence[str] | None = None,
        scoring: Any = None,
        n_repeats: int = 5,
        random_state: int = 0,
        max_features: int = SHOWN,
        ax: Any = None,
    ) -> Self:
        """Measure the importance of each column, and draw it.

        Without data it is the learned scale of each standardised column, which an estimator with `input_scales="auto"`
        has: how fast the function may vary along the column. With X and y it is permutation importance (Breiman 2001):
        the loss of score when the values of one column are shuffled.

        Args:
            estimator: a fitted estimator; without data one of this library, or a pipeline that ends in one.
            X: (n, d) rows, preferably not training rows.
            y: (n,) or (n, c) targets of these rows.
            feature_names: names of the columns; those of X or of the fit if not given.
            scoring: as scikit-learn takes it; the estimator's `score` if not given.
            n_repeats: times that each column is shuffled.
            random_state: seed of the shuffling.
            max_features: columns drawn, those of the largest importance.
            ax: where to draw; a new figure if not given.

        Raises:
            TypeError, ValueError: bad arguments; without data, an estimator that has learned no scales.
        """
        if (X is None) != (y is None):
            raise ValueError("X and y go together: give both for permutation importance, or none for learned scales.")
        if X is None:
            names, scales = learned_scales(estimator)
            names = names if feature_names is None else rows.checked_names(feature_names, len(scales))
            return cls(scales, feature_names=names, measure=SCALES).plot(ax, max_features=max_features)
        made = permuted(
            estimator, X, y, scoring=scoring, n_repeats=n_repeats, random_state=random_state, names=feature_names
        )
        return cls(**made).plot(ax, max_features=max_features)

    def plot(self, ax: Any = None, *, max_features: int = SHOWN) -> Self:
        """Draw a bar for each of the most important columns, with one standard deviation if it is known.

        Args:
            ax: where to draw; a new figure, as high as the bars need, if not given.
            max_features: columns drawn.

        Raises:
            TypeError, ValueError: bad arguments.
        """
        count = validation.integer("max_features", max_features, at_least=1)
        order = np.argsort(-self.importances, kind="stable")[:count]
        from widelimit import plots

        self.ax_ = axes = axes_or_new(ax, (6.0, height(len(order))))
        self.figure_ = figure_of(axes)
        places = np.arange(len(order))
        width = None if self.std is None else self.std[order]
        axes.barh(places, self.importances[order], 0.7, xerr=width, color=plots.BAYES, ecolor=plots.DATA, capsize=2)
        axes.set_yticks(places, distinct(self.feature_names, order))
        axes.set_ylim(len(order) - 0.4, -0.6)
        axes.axvline(0.0, color=plots.DATA, linewidth=0.6)
        axes.set_axisbelow(True)
        if len(order) < len(self.importances):
            axes.set_title(f"the largest {len(order)} of {len(self.importances)} columns")
        plots.dress(axes, xlabel=label(self.measure, 60)).grid(visible=False, axis="y")
        return self


def distinct(names: Sequence[str], order: np.ndarray) -> list[str]:
    """Return shortened names of these columns; to names that are equal then, the column's number is added."""
    short = [label(names[j]) for j in order]
    return [
        text if short.count(text) == 1 else f"{label(names[j], 24)} [{j}]" for text, j in zip(short, order, strict=True)
    ]


def height(bars: int) -> float:
    """Return the height in inches of a figure with so many bars."""
    return 1.1 + 0.24 * bars


plot_importance = ImportanceDisplay.from_estimator
"""Measure and draw the importance of each column: `ImportanceDisplay.from_estimator`."""


def learned_scales(estimator: Any) -> tuple[list[str], Float[np.ndarray, " d"]]:
    """Return names and learned scales of the columns: standard deviations of the kernel's inputs over training rows.

    A constant column has the scale 0, as it changes nothing.

    Raises:
        TypeError, ValueError: an estimator that has learned no scales.
    """
    model = estimator[-1] if isinstance(estimator, Pipeline) else estimator
    if not isinstance(model, KernelEstimator):
        raise TypeError(
            f"estimator: {type(model).__name__} has no learned scales; pass X and y too, for permutation importance."
        )
    check_is_fitted(model)
    if scaling(model) is None:
        raise ValueError(
            f'estimator: {type(model).__name__} has one scale for all columns; fit with input_scales="auto", or pass X '
            "and y for permutation importance."
        )
    fitted, encoder = model.fitted_, model.encoder_
    names = getattr(model, "feature_names_in_", None)
    if encoder is not None:
        names = encoder.get_feature_names_out()
    elif names is None and isinstance(estimator, Pipeline) and len(estimator) > 1:
        names = estimator[:-1].get_feature_names_out()
    scales = np.zeros(model.n_features_in_ if names is None else len(names))
    if fitted is not None:
        points, weights = fitted.training.X, fitted.training.weights
        mean = np.average(points, axis=0, weights=weights)
        scales[model.inputs_.kept] = np.sqrt(np.average((points - mean) ** 2, axis=0, weights=weights))
    return [f"x{j}" for j in range(len(scales))] if names is None else [str(name) for name in names], scales


def permuted(
    estimator: Any, X: Any, y: Any, *, scoring: Any, n_repeats: int, random_state: int, names: Sequence[str] | None
) -> dict[str, Any]:
    """Return the arguments of an ImportanceDisplay of permutation importance. Raises: TypeError, ValueError."""
    check_is_fitted(estimator)
    X = rows.table(X)
    names = rows.names(X, estimator, names)

    def shuffled(order: np.ndarray) -> Any:
        moved = np.flatnonzero((order != np.arange(len(order))[:, None]).any(axis=0))
        out = X
        for j in moved.tolist():
            out = rows.replaced(out, j, rows.take(rows.column(X, j), order[:, j]))
        return out

    return shuffle(estimator, shuffled, y, names, len(X), scoring, n_repeats, random_state)


def shuffle(
    estimator: Any,
    shuffled: Callable[[np.ndarray], Any],
    y: Any,
    names: Sequence[str],
    n: int,
    scoring: Any,
    n_repeats: int,
    random_state: int,
) -> dict[str, Any]:
    """Return the arguments of an ImportanceDisplay of the loss of score when one column is shuffled.

    scikit-learn shuffles a table of row numbers (n, d), of which `shuffled` makes rows for the estimator.

    Raises:
        TypeError, ValueError: bad arguments.
    """
    from sklearn.inspection import permutation_importance
    from sklearn.metrics import check_scoring

    score = check_scoring(estimator, scoring)
    found = permutation_importance(
        estimator,
        np.tile(np.arange(n)[:, None], len(names)),
        y,
        scoring=lambda model, order, truth: score(model, shuffled(order), truth),
        n_repeats=validation.integer("n_repeats", n_repeats, at_least=1),
        random_state=validation.integer("random_state", random_state, at_least=0, below=2**32),
    )
    what = scoring if isinstance(scoring, str) else "score"
    return {
        "importances": found.importances_mean,
        "std": found.importances_std,
        "feature_names": names,
        "measure": f"loss of {what} when the column is shuffled",
    }
