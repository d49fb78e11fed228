"""`widelimit benchmark` compares these models: this library's, and scikit-learn's. Inputs are standardised."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import numpy as np
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

from widelimit.cli import models
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
    """A fold holds what a model sees: training rows, targets, and rows to predict."""

    X: Float[np.ndarray, "n d"]
    y: np.ndarray
    """(n,) float64, or the number of the class."""
    Z: Float[np.ndarray, "m d"]
    seed: int


Gaussian = tuple[np.ndarray, np.ndarray]
"""Mean and standard deviation of an observation, (m,) each."""
Regression = Callable[[Fold], Gaussian]
Classification = Callable[[Fold], np.ndarray]
"""Probabilities, (m, k)."""


def ours(estimator: str, given: dict[str, Any]) -> Regression:
    """Fit this library's regressor."""

    def fitted(fold: Fold) -> Gaussian:
        model = models.build(estimator, "regression", {**given, "random_state": fold.seed}).fit(fold.X, fold.y)
        mean, deviation = model.predict(fold.Z, return_std=True, include_noise=True)
        return mean, deviation

    return fitted


def our_classes(estimator: str, given: dict[str, Any]) -> Classification:
    """Fit this library's classifier."""

    def fitted(fold: Fold) -> np.ndarray:
        model = models.build(estimator, "classification", {**given, "random_state": fold.seed}).fit(fold.X, fold.y)
        return np.asarray(model.predict_proba(fold.Z))

    return fitted


def base(shape: Callable[..., Any], d: int) -> Any:
    """Make amplitude x RBF or Matern (nu = 3/2) of length about sqrt(d), the distance of standardised rows."""
    length = math.sqrt(d)
    return ConstantKernel(1.0, (1e-4, 1e4)) * shape(length, (length / 100, length * 100))


def few(fold: Fold, count: int) -> np.ndarray:
    """Take at most this many rows, at random."""
    return np.random.default_rng(fold.seed).permutation(len(fold.X))[:count]


def process(shape: Callable[..., Any]) -> Regression:
    """Fit a Gaussian process of scikit-learn: amplitude x shape + white noise, by its marginal likelihood."""

    def fitted(fold: Fold) -> Gaussian:
        kernel = base(shape, fold.X.shape[1]) + WhiteKernel(0.1, (1e-6, 1e2))
        rows = few(fold, FEW)
        start = GaussianProcessRegressor(kernel, normalize_y=True, random_state=fold.seed)
        start.fit(fold.X[rows], fold.y[rows])
        if len(rows) < len(fold.X):
            start = GaussianProcessRegressor(start.kernel_, optimizer=None, normalize_y=True).fit(fold.X, fold.y)
        mean, deviation = start.predict(fold.Z, return_std=True)
        return mean, deviation

    return fitted


def process_classes(shape: Callable[..., Any]) -> Classification:
    """Fit scikit-learn's Gaussian process for classes (Laplace, one against the rest); one kernel for all classes."""

    def fitted(fold: Fold) -> np.ndarray:
        # An equal share of each class, as a class without a row cannot be fitted.
        classes = np.unique(fold.y)
        order = few(fold, len(fold.y))
        share = max(FEW_CLASSES // len(classes), 2)
        rows = np.concatenate([order[fold.y[order] == c][:share] for c in classes])
        start = GaussianProcessClassifier(base(shape, fold.X.shape[1]), random_state=fold.seed)
        start.fit(fold.X[rows], fold.y[rows])
        kernel = start.kernel_ if len(classes) == 2 else start.kernel_.kernels[0]
        kernel = kernel.clone_with_theta(start.kernel_.theta.reshape(-1, len(kernel.theta)).mean(axis=0))
        whole = GaussianProcessClassifier(kernel, optimizer=None).fit(fold.X, fold.y)
        return np.asarray(whole.predict_proba(fold.Z))

    return fitted


def forest(fold: Fold) -> Gaussian:
    """Fit a random forest; the noise is from out-of-bag residuals."""
    model = RandomForestRegressor(TREES, oob_score=True, random_state=fold.seed, n_jobs=-1).fit(fold.X, fold.y)
    noise = np.sqrt(np.mean((model.oob_prediction_ - fold.y) ** 2))
    return model.predict(fold.Z), np.full(len(fold.Z), noise)


def forest_classes(fold: Fold) -> np.ndarray:
    """Fit a random forest: its votes, none below 1/(TREES + classes), normalised."""
    model = RandomForestClassifier(TREES, random_state=fold.seed, n_jobs=-1).fit(fold.X, fold.y)
    votes = model.predict_proba(fold.Z)
    p = np.maximum(votes, 1 / (TREES + votes.shape[1]))
    return np.asarray(p / p.sum(axis=1, keepdims=True))


def boosting(fold: Fold) -> Gaussian:
    """Fit by gradient boosting; the noise is from residuals of FOLDS folds."""
    model = HistGradientBoostingRegressor(random_state=fold.seed)
    held_out = cross_val_predict(model, fold.X, fold.y, cv=FOLDS)
    noise = np.sqrt(np.mean((held_out - fold.y) ** 2))
    return model.fit(fold.X, fold.y).predict(fold.Z), np.full(len(fold.Z), noise)


def boosting_classes(fold: Fold) -> np.ndarray:
    """Fit by gradient boosting."""
    model = HistGradientBoostingClassifier(random_state=fold.seed).fit(fold.X, fold.y)
    return np.asarray(model.predict_proba(fold.Z))


def ridge(fold: Fold) -> Gaussian:
    """Fit by ridge regression: penalty and noise by leave-one-out."""
    centre = fold.y.mean()
    model = RidgeCV(ALPHAS, store_cv_results=True).fit(fold.X, fold.y - centre)
    best = int(np.argmin(np.abs(ALPHAS - model.alpha_)))
    noise = math.sqrt(float(np.mean(model.cv_results_[..., best])))
    return centre + model.predict(fold.Z), np.full(len(fold.Z), noise)


def logistic(fold: Fold) -> np.ndarray:
    """Fit by logistic regression: penalty by the log loss of FOLDS folds."""
    smallest = int(np.bincount(fold.y).min())
    model = LogisticRegression(max_iter=2000)
    if smallest >= FOLDS:
        model = GridSearchCV(model, {"C": PENALTIES}, scoring="neg_log_loss", cv=FOLDS)
    return np.asarray(model.fit(fold.X, fold.y).predict_proba(fold.Z))


def matern(length: float, bounds: tuple[float, float]) -> Matern:
    """Make the Matern kernel of smoothness 3/2."""
    return Matern(length, bounds, nu=1.5)


def costly(n: int, classes: int) -> list[str]:
    """Name the models for classes that take minutes for n training rows."""
    return ["RBF GP", "Matern GP"] if classes * float(n) ** 3 > COSTLY else []


def regression(given: dict[str, Any]) -> dict[str, Regression]:
    """Return the models for numbers, by name."""
    return {
        "NTK": ours("ntk", given),
        "NNGP": ours("nngp", given),
        "RBF GP": process(RBF),
        "Matern GP": process(matern),
        "random forest": forest,
        "boosting": boosting,
        "ridge": ridge,
    }


def classification(given: dict[str, Any]) -> dict[str, Classification]:
    """Return the models for classes, by name."""
    return {
        "NTK": our_classes("ntk", given),
        "NNGP": our_classes("nngp", given),
        "RBF GP": process_classes(RBF),
        "Matern GP": process_classes(matern),
        "random forest": forest_classes,
        "boosting": boosting_classes,
        "logistic": logistic,
    }
