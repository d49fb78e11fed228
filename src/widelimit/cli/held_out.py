"""Each training row is predicted from the others, in closed form or by folds, and the predictions are scored."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, final

import numpy as np
from sklearn.base import clone
from sklearn.model_selection import KFold

from widelimit.cli import scores
from widelimit.displays.calibration import CalibrationDisplay
from widelimit.estimators.averaging import FittedAverage
from widelimit.estimators.class_weights import labelled_rows
from widelimit.estimators.fitted_classes import FittedClasses, LatentClasses
from widelimit.estimators.fitted_outputs import FittedOutputs
from widelimit.estimators.networks import Fitted
from widelimit.inference.class_probabilities import largest_probability
from widelimit.inference.posterior import Posterior
from widelimit.messages import first_line, list_names, shown
from widelimit.pages import digits
from widelimit.shapes import Float, Int

FOLDS = 5
FOLD_ROWS = 2000
"""Rows that are predicted by folds, at most."""
FEW = 5
"""A class of fewer rows than this is rare."""
EXACT = 0.999
"""A column that explains at least this share of the variance, or of the rows, may contain the target."""


@final
@dataclass(frozen=True)
class HeldOut:
    """These are predictions of rows by a model that has not seen them."""

    rows: Int[np.ndarray, " m"]
    """Indices of the rows among the training rows."""
    mean: np.ndarray
    """Means for a regression, (m,); probabilities of classes, (m, c)."""
    std: Float[np.ndarray, " m"]
    """Standard deviations of an observation for a regression; else empty."""
    how: str
    """A sentence that says how they were predicted."""


def held_out(estimator: Any, X: Float[np.ndarray, "n d"], y: np.ndarray) -> HeldOut:
    """Predict each training row from others.

    Gaussian posteriors, and classes at infinite time, are predicted from all other rows in closed form. Other fits are
    fitted again in 5 folds, and so are those whose matrix is singular or too large to be inverted.
    """
    reason = ""
    try:
        closed = _closed_form(estimator, X, y)
    except (ValueError, MemoryError) as error:
        closed, reason = None, f" Leave-one-out in closed form is not possible: {first_line(error)}"
    if closed is None:
        found = _folds(estimator, X, y)
        return replace(found, how=found.how + reason)
    how = (
        "Each row is predicted from all others (leave-one-out, in closed form). Network, scales and noise are those of "
        "all rows, so that the errors are slightly too small for tables of few rows."
    )
    return HeldOut(np.arange(len(y)), *closed, how)


def _closed_form(estimator: Any, X: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Return mean (or probabilities) and deviation of each row by leave-one-out; None: no closed form.

    Raises: ValueError: as `leave_one_out` of the fitted function.
    """
    fitted, n = estimator.fitted_, len(y)
    if fitted is None:
        return np.ones((n, 1)), np.empty(0)
    if isinstance(fitted, LatentClasses):
        p = fitted.leave_one_out()
        if estimator.likelihood == "logistic":  # whose rows are merged and sorted, so that copies go together
            pairs, at = labelled_rows(estimator.inputs_(X), np.searchsorted(estimator.classes_, y))
            return (p[at], np.empty(0)) if len(pairs) == len(p) else None
        return p, np.empty(0)
    if isinstance(fitted, FittedAverage):
        mean, variance = fitted.leave_one_out()
        return (estimator.y_mean_ + estimator.y_scale_ * mean)[:, 0], np.sqrt(variance)[:, 0] * estimator.y_scale_[0]
    if not isinstance(fitted, Fitted | FittedOutputs) or not isinstance(fitted.laws[0], Posterior):
        return None
    left = fitted.laws[0].leave_one_out()
    mean = estimator.y_mean_ + estimator.y_scale_ * left.mean.reshape(n, -1)
    variance = (left.variance[:, None] + fitted.noise_variance(fitted.training.X)) * estimator.y_scale_**2
    if "classes_" in vars(estimator):
        return largest_probability(mean, np.maximum(variance, np.finfo(np.float64).tiny)), np.empty(0)
    return mean[:, 0], np.sqrt(variance[:, 0])


def _folds(estimator: Any, X: np.ndarray, y: np.ndarray) -> HeldOut:
    """Fit the estimator again without each fold."""
    n, classes = len(y), getattr(estimator, "classes_", None)
    rows = np.sort(np.random.default_rng(0).choice(n, min(n, FOLD_ROWS), replace=False))
    mean, std = np.zeros(len(rows) if classes is None else (len(rows), len(classes))), np.zeros(len(rows))
    folds = KFold(min(FOLDS, len(rows)), shuffle=True, random_state=0)
    for inside, outside in folds.split(rows):
        model, new = _refitted(estimator, X, y, rows[inside]), X[rows[outside]]
        if classes is None:
            mean[outside], std[outside] = model.predict(new, return_std=True, include_noise=True)
        else:
            mean[np.ix_(outside, np.searchsorted(classes, model.classes_))] = model.predict_proba(new)
    part = "" if len(rows) == n else f" of {len(rows)} rows drawn at random"
    how = f"Each row is predicted by a fit to other rows ({folds.n_splits} folds{part}), with the network of all rows."
    return HeldOut(rows, mean, std if classes is None else np.empty(0), how)


def _refitted(estimator: Any, X: np.ndarray, y: np.ndarray, rows: np.ndarray) -> Any:
    """Fit the estimator to some of its rows; for targets in one array, with its network, scales and noise."""
    fitted = estimator.fitted_
    if not isinstance(fitted, Fitted | FittedClasses):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the fit to all rows has given them
            return clone(estimator).fit(X[rows], y[rows])
    training = replace(fitted.training, X=fitted.training.X[rows], weights=fitted.training.weights[rows])
    targets = {"y": fitted.y[rows]} if isinstance(fitted, Fitted) else {"labels": fitted.labels[rows]}
    model = copy.copy(estimator)
    model.fitted_ = replace(fitted, training=training, coefficients=None, **targets)
    return model


class Assessment(NamedTuple):
    """The assessment holds scores of predictions, as text."""

    summary: str
    lines: list[tuple[str, str, str]]
    """Name, value and meaning of each score."""
    remarks: list[str]
    """Sentences about possible problems."""


def assess_regression(found: HeldOut, y: Float[np.ndarray, " m"], *, unit: str) -> Assessment:
    """Score means and standard deviations of observations y; `unit` names the target."""
    rmse, spread = scores.rmse(found.mean, y), float(np.std(y))
    explained = 1 - (rmse / spread) ** 2 if spread > 0 else 1.0
    covered = scores.interval_coverage(found.mean, found.std, y)
    density = scores.gaussian_nlpd(found.mean, found.std, y)
    error = f"root mean squared error, in the unit of {unit}; its standard deviation is {digits(spread)}"
    lines = [
        ("RMSE", digits(rmse), error),
        ("R²", f"{explained:.4f}", "share of the target's variance that is predicted"),
        ("coverage", f"{100 * covered:.1f} %", "share of rows inside their 95 % interval"),
        ("NLPD", digits(density), "mean negative log predictive density; smaller is better, comparable on one table"),
    ]
    summary = (
        f"Rows that were left out: RMSE {digits(rmse)} (standard deviation of the target {digits(spread)}); "
        f"{100 * covered:.1f} % are inside their 95 % interval."
    )
    return Assessment(summary, lines, _regression_remarks(explained, covered, len(y)) if spread > 0 else [])


def _regression_remarks(explained: float, covered: float, n: int) -> list[str]:
    """Return sentences about possible problems."""
    remarks = []
    if explained >= EXACT:
        remarks.append(
            f"{100 * explained:.3f} % of the target's variance is predicted. If that is a surprise: does a column hold "
            "it in other words, or something that is known only afterwards? Then leave it out with --drop."
        )
    if explained <= 0:
        remarks.append("The predictions are no better than the mean of the target.")
    low, high = (
        100 * float(end[0]) for end in CalibrationDisplay(np.array([0.95]), np.array([covered]), rows=n).band()
    )
    if not low <= 100 * covered <= high:
        remarks.append(
            f"The 95 % intervals hold {100 * covered:.1f} % of the rows; by chance {low:.1f} to {high:.1f} % are "
            f"expected. The error bars are too {'small' if covered < scores.LEVEL else 'large'}."
        )
    return remarks


def assess_classes(found: HeldOut, y: np.ndarray, classes: np.ndarray) -> Assessment:
    """Score probabilities of the classes, (m, c), with true labels."""
    labels = np.searchsorted(classes, y)
    share = np.bincount(labels, minlength=len(classes)) / len(labels)
    with np.errstate(divide="ignore"):
        log_p = np.log(found.mean)
    accuracy, loss = scores.accuracy(log_p, labels), scores.class_nlpd(log_p, labels)
    base = float(-np.sum(share[share > 0] * np.log(share[share > 0])))
    right = f"share of rows whose class is predicted; always the most frequent class: {share.max():.4f}"
    surprise = f"mean negative log probability of the true class; with the shares of the classes: {base:.4g}"
    lines = [("accuracy", f"{accuracy:.4f}", right), ("log loss", f"{loss:.4g}", surprise)]
    summary = f"Rows that were left out: {100 * accuracy:.1f} % of the classes are right, log loss {loss:.4g}."
    remarks = []
    rare = [shown(str(name)) for name, part in zip(classes, share, strict=True) if part * len(labels) < FEW]
    if rare and len(classes) > 1:
        remarks.append(f"Classes of fewer than {FEW} rows, which are hardly enough to learn: {list_names(rare)}.")
    if accuracy >= EXACT and len(classes) > 1:
        remarks.append(
            "The class of every row is predicted. If that is a surprise: does a column hold it in other words? Then "
            "leave it out with --drop."
        )
    if loss >= base and len(classes) > 1:
        remarks.append("The probabilities are no better than the shares of the classes.")
    return Assessment(summary, lines, remarks)
