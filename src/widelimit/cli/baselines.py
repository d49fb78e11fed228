"""`widelimit benchmark` and `demo` compare these models, this library's and scikit-learn's, on standardised inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, final

import numpy as np
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import (
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.gaussian_process import GaussianProcessClassifier, GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, Matern, WhiteKernel
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.model_selection import GridSearchCV, cross_val_predict
from sklearn.svm import SVC

from widelimit.cli import models
from widelimit.inference.class_probabilities import largest_probability
from widelimit.shapes import Float

TREES = 300
FOLDS = 3
"""Inner folds: of the residuals of boosting, of the penalty of logistic regression."""
FEW = 400
"""Rows on which a Gaussian process of scikit-learn chooses its hyper-parameters; it is then fitted to all."""
FEW_CLASSES = 150
"""The same for classes, where each step of the search is an iteration for each class."""
COSTLY = 3e9
"""Training rows^3 x classes from which scikit-learn's Gaussian process for classes takes a minute or more."""
ALPHAS = np.logspace(-3, 3, 25)
PENALTIES = np.logspace(-3, 2, 6)


@final
@dataclass(frozen=True)
class Fold:
    """A fold has training rows, their targets, and rows to predict."""

    X: Float[np.ndarray, "n d"]
    y: np.ndarray
    """(n,) float64, or the number of the class."""
    Z: Float[np.ndarray, "m d"]
    seed: int


class GaussianPrediction(NamedTuple):
    """Each observation is normal, with a mean and a standard deviation: (m,), or (m, c) for c targets."""

    mean: np.ndarray
    deviation: np.ndarray
    chosen: Mapping[str, float] = {}
    """Hyper-parameters that the training rows have chosen."""


class ClassPrediction(NamedTuple):
    """Classes have probabilities, (m, k)."""

    probabilities: np.ndarray
    chosen: Mapping[str, float] = {}


Regression = Callable[[Fold], GaussianPrediction]
Classification = Callable[[Fold], ClassPrediction]


def library_model(estimator: str, task: str, given: Mapping[str, Any]) -> Callable[[Fold], Any]:
    """Fit this library's regressor or classifier."""

    def predict(fold: Fold) -> GaussianPrediction | ClassPrediction:
        model = models.build(estimator, task, {**given, "random_state": fold.seed}).fit(fold.X, fold.y)
        chosen = models.noise_std(model) | ({} if model.hyperparameters == "fixed" else model.hyperparameters_)
        if task == "classification":
            return ClassPrediction(np.asarray(model.predict_proba(fold.Z)), chosen)
        mean, deviation = model.predict(fold.Z, return_std=True, include_noise=True)
        return GaussianPrediction(mean, deviation, chosen)

    return predict


def one_hot(model: Regression) -> Classification:
    """Regress on one-hot labels; the class is the one whose output, with its noise, is the largest."""

    def predict(fold: Fold) -> ClassPrediction:
        found = model(replace(fold, y=np.eye(fold.y.max() + 1)[fold.y]))
        variance = np.broadcast_to(found.deviation.reshape(len(fold.Z), -1) ** 2, found.mean.shape)
        return ClassPrediction(largest_probability(found.mean, variance), found.chosen)

    return predict


def start_kernel(shape: Callable[..., Any], d: int) -> Any:
    """Make amplitude x RBF or Matern (nu = 3/2) of length about sqrt(d), the distance of standardised rows."""
    length = math.sqrt(d)
    return ConstantKernel(1.0, (1e-4, 1e4)) * shape(length, (length / 100, length * 100))


def sample_rows(fold: Fold, count: int) -> np.ndarray:
    """Take at most this many rows, at random."""
    return np.random.default_rng(fold.seed).permutation(len(fold.X))[:count]


def process_regression(shape: Callable[..., Any]) -> Regression:
    """Fit a Gaussian process of scikit-learn: amplitude x shape + white noise, by its marginal likelihood."""

    def predict(fold: Fold) -> GaussianPrediction:
        kernel = start_kernel(shape, fold.X.shape[1]) + WhiteKernel(0.1, (1e-6, 1e2))
        rows = sample_rows(fold, FEW)
        start = GaussianProcessRegressor(kernel, normalize_y=True, random_state=fold.seed)
        start.fit(fold.X[rows], fold.y[rows])
        if len(rows) < len(fold.X):
            start = GaussianProcessRegressor(start.kernel_, optimizer=None, normalize_y=True).fit(fold.X, fold.y)
        mean, deviation = start.predict(fold.Z, return_std=True)
        noise = math.sqrt(start.kernel_.k2.noise_level) * float(np.mean(fold.y.std(axis=0)))
        chosen = {"noise_std": noise, "length": float(start.kernel_.k1.k2.length_scale)}
        return GaussianPrediction(mean, deviation, chosen)

    return predict


def process_classification(shape: Callable[..., Any]) -> Classification:
    """Fit scikit-learn's Gaussian process for classes (Laplace, one against the rest); one kernel for all classes."""

    def predict(fold: Fold) -> ClassPrediction:
        # An equal share of each class, as a class without a row cannot be fitted.
        classes = np.unique(fold.y)
        order = sample_rows(fold, len(fold.y))
        share = max(FEW_CLASSES // len(classes), 2)
        rows = np.concatenate([order[fold.y[order] == c][:share] for c in classes])
        start = GaussianProcessClassifier(start_kernel(shape, fold.X.shape[1]), random_state=fold.seed)
        start.fit(fold.X[rows], fold.y[rows])
        kernel = start.kernel_ if len(classes) == 2 else start.kernel_.kernels[0]
        kernel = kernel.clone_with_theta(start.kernel_.theta.reshape(-1, len(kernel.theta)).mean(axis=0))
        whole = GaussianProcessClassifier(kernel, optimizer=None).fit(fold.X, fold.y)
        return ClassPrediction(np.asarray(whole.predict_proba(fold.Z)))

    return predict


def forest(fold: Fold) -> GaussianPrediction:
    """Fit a random forest; the noise is from out-of-bag residuals."""
    model = RandomForestRegressor(TREES, oob_score=True, random_state=fold.seed, n_jobs=-1).fit(fold.X, fold.y)
    noise = np.sqrt(np.mean((model.oob_prediction_ - fold.y) ** 2))
    return GaussianPrediction(model.predict(fold.Z), np.full(len(fold.Z), noise), {"trees": TREES})


def forest_classes(fold: Fold) -> ClassPrediction:
    """Fit a random forest: its votes, none below 1/(TREES + classes), normalised."""
    model = RandomForestClassifier(TREES, random_state=fold.seed, n_jobs=-1).fit(fold.X, fold.y)
    votes = model.predict_proba(fold.Z)
    p = np.maximum(votes, 1 / (TREES + votes.shape[1]))
    return ClassPrediction(p / p.sum(axis=1, keepdims=True), {"trees": TREES})


def support_vectors(fold: Fold) -> ClassPrediction:
    """Fit support vectors with an RBF kernel: penalty and width by FOLDS folds, sigmoids for the probabilities.

    A class with fewer rows than folds has fewer folds; with a single row there are none, and classes nearly sure.
    """
    grid = {"C": [1.0, 10.0, 100.0], "gamma": [factor / fold.X.shape[1] for factor in (0.1, 1.0)]}
    folds = min(FOLDS, int(np.bincount(fold.y).min()))
    if folds < 2:
        labels = SVC().fit(fold.X, fold.y).predict(fold.Z)
        p = np.eye(fold.y.max() + 1)[labels] + 1 / len(fold.y)
        return ClassPrediction(p / p.sum(axis=1, keepdims=True))
    found = GridSearchCV(SVC(), grid, cv=folds).fit(fold.X, fold.y)
    model = CalibratedClassifierCV(found.best_estimator_, cv=folds, ensemble=False).fit(fold.X, fold.y)
    return ClassPrediction(np.asarray(model.predict_proba(fold.Z)), found.best_params_)


def boosting(fold: Fold) -> GaussianPrediction:
    """Fit by gradient boosting; the noise is from residuals of FOLDS folds."""
    model = HistGradientBoostingRegressor(random_state=fold.seed)
    held_out = cross_val_predict(model, fold.X, fold.y, cv=FOLDS)
    noise = np.sqrt(np.mean((held_out - fold.y) ** 2))
    return GaussianPrediction(model.fit(fold.X, fold.y).predict(fold.Z), np.full(len(fold.Z), noise))


def boosting_classes(fold: Fold) -> ClassPrediction:
    """Fit by gradient boosting."""
    model = HistGradientBoostingClassifier(random_state=fold.seed).fit(fold.X, fold.y)
    return ClassPrediction(np.asarray(model.predict_proba(fold.Z)))


def ridge(fold: Fold) -> GaussianPrediction:
    """Fit by ridge regression: penalty and noise by leave-one-out."""
    centre = fold.y.mean(axis=0)
    model = RidgeCV(ALPHAS, store_cv_results=True).fit(fold.X, fold.y - centre)
    best = int(np.argmin(np.abs(ALPHAS - model.alpha_)))
    noise = math.sqrt(float(np.mean(model.cv_results_[..., best])))
    alpha = {"alpha": float(model.alpha_)}
    return GaussianPrediction(centre + model.predict(fold.Z), np.full(len(fold.Z), noise), alpha)


def logistic(fold: Fold) -> ClassPrediction:
    """Fit by logistic regression: penalty by the log loss of FOLDS folds."""
    smallest = int(np.bincount(fold.y).min())
    model = LogisticRegression(max_iter=2000)
    if smallest >= FOLDS:
        model = GridSearchCV(model, {"C": PENALTIES}, scoring="neg_log_loss", cv=FOLDS)
    return ClassPrediction(np.asarray(model.fit(fold.X, fold.y).predict_proba(fold.Z)))


def matern(length: float, bounds: tuple[float, float]) -> Matern:
    """Make the Matern kernel of smoothness 3/2."""
    return Matern(length, bounds, nu=1.5)


def costly(n: int, classes: int) -> list[str]:
    """Name the models for classes that take minutes for n training rows."""
    return ["RBF GP", "Matern GP"] if classes * float(n) ** 3 > COSTLY else []


def regression(given: Mapping[str, Any]) -> dict[str, Regression]:
    """Return the models for numbers, by name."""
    own = {kind.upper(): library_model(kind, "regression", given) for kind in ("ntk", "nngp")}
    processes = {"RBF GP": process_regression(RBF), "Matern GP": process_regression(matern)}
    return own | processes | {"random forest": forest, "boosting": boosting, "ridge": ridge}


def classification(given: Mapping[str, Any]) -> dict[str, Classification]:
    """Return the models for classes, by name."""
    own = {kind.upper(): library_model(kind, "classification", given) for kind in ("ntk", "nngp")}
    processes = {"RBF GP": process_classification(RBF), "Matern GP": process_classification(matern)}
    return own | processes | {"random forest": forest_classes, "boosting": boosting_classes, "logistic": logistic}
