"""The demo's models map (X, y, Z) -> a predictive distribution of the observations at Z.

X (n, d), y (n, c) and Z (m, d) are standardised. Every choice is made on the training set alone.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import itemgetter
from typing import NamedTuple

import numpy as np
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import KFold

import widelimit as wl

DEPTH, ACTIVATION, WEIGHT_STD, BIAS_STD = 3, "relu", math.sqrt(2), 0.1
"""Every network has these settings; sqrt(2) keeps the variance of relu signals."""
NOISES = (1e-5, 1e-3, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Noise variances of `bayes`, over the square of the scale."""
TIMES = np.array([0.1, 0.3, 1, 3, 10, 30, 100, 1e3, 1e4, 1e5, math.inf])
"""Training times of `ensemble`."""
SPREADS = 2.0 ** np.arange(-4, 1.1)
"""Scales of `ensemble`."""
RESIDUALS = 2.0 ** np.arange(-20, 2.1, 0.5)
"""Noise variances of `ensemble`."""
FOLDS = 3
FEW = 300
"""Training points on which `rbf` looks for its starting point; cost n^3."""
ALPHAS = 10.0 ** np.arange(-2, 4.1, 0.25)
"""Penalties of `ridge`."""
TREES = 500


class GaussianPrediction(NamedTuple):
    """Observations are N(mean, variance): mean (m, c), variance (m,), noise included, in standardised units."""

    mean: np.ndarray
    variance: np.ndarray
    chosen: dict[str, float]
    """Hyper-parameters found on the training set."""
    remarks: tuple[str, ...] = ()
    """The text holds the warnings of the fit."""


class Classes(NamedTuple):
    """Classes have log_p (m, k): log-probabilities of the classes."""

    log_p: np.ndarray
    chosen: dict[str, float]
    remarks: tuple[str, ...] = ()


def network() -> wl.Network:
    """Make the network of every kernel here."""
    return wl.mlp(depth=DEPTH, activation=ACTIVATION, weight_std=WEIGHT_STD, bias_std=BIAS_STD)


def bayes(make: Callable[[wl.Network], wl.Kernel], X: np.ndarray, y: np.ndarray, Z: np.ndarray) -> GaussianPrediction:
    """y = s f + e, f ~ GP(0, K), e ~ N(0, s^2 r): r from NOISES and s^2 by the largest log marginal likelihood.

    For each r the best s^2 is y.(K + r)^{-1} y/(n c), of which the likelihood is a function in closed form.
    """
    k = make(network())
    candidates = []
    for noise in NOISES:
        post = wl.posterior(k, X, y, noise=noise)
        square = float(np.sum(post.data.y * post.weights)) / y.size
        profile = post.log_marginal_likelihood() + y.size / 2 * (square - 1 - math.log(square))
        candidates.append((profile, noise, square, post))
    _, noise, square, post = max(candidates, key=itemgetter(0))
    variance = square * (np.asarray(post.variance(Z)) + noise)
    return GaussianPrediction(np.asarray(post.mean(Z)), variance, {"noise": square * noise, "scale": math.sqrt(square)})


def nngp(X: np.ndarray, y: np.ndarray, Z: np.ndarray) -> GaussianPrediction:
    """Call `bayes` with the NNGP kernel: the infinitely wide network under the exact Bayesian posterior."""
    return bayes(wl.nngp, X, y, Z)


def ntk(X: np.ndarray, y: np.ndarray, Z: np.ndarray) -> GaussianPrediction:
    """Call `bayes` with the NTK for a covariance."""
    return bayes(wl.ntk, X, y, Z)


def ensemble(X: np.ndarray, y: np.ndarray, Z: np.ndarray) -> GaussianPrediction:
    """y = s f_t + e, f_t an infinitely wide network trained to time t, e ~ N(0, r): t, s and r by cross-validation.

    f_t is Gaussian over initialisations. The scale s is that of the outputs at initialisation: networks s f that
    learn y are s times networks that learn y/s, so the mean is free of s, and the covariance has the factor s^2 (t in
    the clock of f). The three maximise the log predictive density of held-out folds: r is the noise that these show.
    """
    net = network()
    score = np.zeros((len(TIMES), len(SPREADS), len(RESIDUALS)))
    for inside, outside in KFold(FOLDS, shuffle=True, random_state=0).split(X):
        fold = wl.trained_ensemble(net, X[inside], y[inside])
        means, variances = fold.mean(X[outside], TIMES), np.asarray(fold.variance(X[outside], TIMES))
        squares = ((y[outside] - means) ** 2).sum(axis=2)
        score += log_densities(squares, variances, y.shape[1])
    i, j, k = np.unravel_index(np.argmax(score), score.shape)
    t, spread, residual = float(TIMES[i]), float(SPREADS[j]), float(RESIDUALS[k])
    whole = wl.trained_ensemble(net, X, y)
    variance = spread**2 * np.asarray(whole.variance(Z, t)) + residual
    return GaussianPrediction(np.asarray(whole.mean(Z, t)), variance, {"noise": residual, "scale": spread, "t": t})


def log_densities(squares: np.ndarray, variances: np.ndarray, outputs: int) -> np.ndarray:
    """Compute sum_i log N(y_i; mu_i, (s^2 v_i + r) I) for all times, SPREADS s and RESIDUALS r.

    The shapes are (T, m), (T, m) -> (T, S, R).

    `squares` are |y_i - mu_i|^2 summed over the outputs, `outputs` of them, and `variances` v_i.
    """
    total = SPREADS[:, None, None] ** 2 * variances[:, None, None, :] + RESIDUALS[:, None]
    terms = squares[:, None, None, :] / total + outputs * np.log(2 * math.pi * total)
    return np.asarray(-terms.sum(axis=3) / 2)


@contextmanager
def convergence_remarks() -> Iterator[list[str]]:
    """Collect scikit-learn's ConvergenceWarnings, to be printed with the results; other warnings pass."""
    remarks: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield remarks
    for warning in caught:
        if issubclass(warning.category, ConvergenceWarning):
            remarks.append(" ".join(str(warning.message).split()))
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def rbf(X: np.ndarray, y: np.ndarray, Z: np.ndarray) -> GaussianPrediction:
    """Fit scikit-learn's Gaussian process, amplitude x RBF + white noise, by its marginal-likelihood optimiser.

    The start is the best of 3 searches on FEW points: on all of the digits they would double the demo's time.
    """
    length = math.sqrt(X.shape[1])
    kernel = ConstantKernel(1.0, (1e-4, 1e4)) * RBF(length, (length / 100, length * 100)) + WhiteKernel(
        0.1, (1e-6, 1e2)
    )
    start = GaussianProcessRegressor(kernel, n_restarts_optimizer=2, random_state=0)
    with convergence_remarks() as remarks:
        start.fit(X[:FEW], y[:FEW])
        model = GaussianProcessRegressor(start.kernel_).fit(X, y)
    mean, sd = model.predict(Z, return_std=True)
    product, white = model.kernel_.k1, model.kernel_.k2
    chosen = {"noise": float(white.noise_level), "length": float(product.k2.length_scale)}
    variance = sd.reshape(len(Z), -1)[:, 0] ** 2
    return GaussianPrediction(mean.reshape(len(Z), -1), variance, chosen, tuple(dict.fromkeys(remarks)))


def ridge(X: np.ndarray, y: np.ndarray, Z: np.ndarray) -> GaussianPrediction:
    """Fit ridge regression: penalty by leave-one-out, variance the mean square of the leave-one-out residuals."""
    model = RidgeCV(ALPHAS, store_cv_results=True).fit(X, y)
    best = int(np.argmin(np.abs(ALPHAS - model.alpha_)))
    residual = float(np.mean(model.cv_results_[..., best]))
    mean = model.predict(Z).reshape(len(Z), -1)
    return GaussianPrediction(mean, np.full(len(Z), residual), {"alpha": float(model.alpha_)})


def forest(X: np.ndarray, y: np.ndarray, Z: np.ndarray) -> GaussianPrediction:
    """Fit a random forest for regression: variance the mean square of the out-of-bag residuals. y is (n, 1)."""
    model = RandomForestRegressor(TREES, oob_score=True, random_state=0, n_jobs=-1).fit(X, y[:, 0])
    residual = float(np.mean((model.oob_prediction_ - y[:, 0]) ** 2))
    return GaussianPrediction(model.predict(Z)[:, None], np.full(len(Z), residual), {"trees": TREES})


def forest_classes(X: np.ndarray, y: np.ndarray, Z: np.ndarray) -> Classes:
    """Fit a random forest for classes: its votes, none below 1/(TREES + classes), normalised; y as `Problem` has it."""
    model = RandomForestClassifier(TREES, random_state=0, n_jobs=-1).fit(X, y.argmax(axis=1))
    p = np.full((len(Z), y.shape[1]), 0.0)
    p[:, model.classes_] = model.predict_proba(Z)
    p = np.maximum(p, 1 / (TREES + y.shape[1]))
    return Classes(np.log(p / p.sum(axis=1, keepdims=True)), {"trees": TREES})
