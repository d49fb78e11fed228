"""Regressors that regression.py compares: this library's, as they come, and peers', tuned equally long.

A method maps a fold to mean and standard deviation of the test rows' observations, in units of the standardised y.
Methods without a density get a Gaussian: its deviation is that of the errors in five-fold cross-validation on the
training rows. TUNED settings are the best of 20 random ones in three-fold cross-validation on the training rows.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import loguniform, randint, uniform
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.ensemble import HistGradientBoostingRegressor, RandomForestRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, Kernel, WhiteKernel
from sklearn.kernel_ridge import KernelRidge
from sklearn.model_selection import KFold, RandomizedSearchCV, cross_val_predict
from sklearn.svm import SVR

import widelimit as wl

SETTINGS, TUNING_PARTS, ERROR_PARTS, STARTS, STEPS = 20, 3, 5, 2, 200
NOISE_BOUNDS, LENGTH_BOUNDS = (1e-9, 10.0), (1e-2, 1e4)


class Fold(NamedTuple):
    """A fold holds standardised training and test rows, and the units of y."""

    X: np.ndarray
    y: np.ndarray
    X_test: np.ndarray
    y_test: np.ndarray
    unit: float


Predictor = Callable[[Fold], tuple[np.ndarray, np.ndarray]]
"""A fold -> mean and standard deviation of the test rows' observations, in units of the standardised y."""


class Method(NamedTuple):
    """A method has a title in the tables, what it predicts with, and the package that it needs."""

    title: str
    predict: Predictor
    package: str = "sklearn"

    @property
    def missing(self) -> bool:
        """True without the package."""
        return importlib.util.find_spec(self.package) is None


def own(make: Callable[[], Any]) -> Predictor:
    """Predict by a regressor of this library: mean and deviation of new observations."""

    def predict(fold: Fold) -> tuple[np.ndarray, np.ndarray]:
        return make().fit(fold.X, fold.y).predict(fold.X_test, return_std=True, include_noise=True)

    return predict


def process(kernel: Callable[[int], Kernel]) -> Predictor:
    """Fit scikit-learn's Gaussian process: marginal likelihood from its default start and a random one."""

    def predict(fold: Fold) -> tuple[np.ndarray, np.ndarray]:
        prior = ConstantKernel() * kernel(fold.X.shape[1]) + WhiteKernel(0.1, NOISE_BOUNDS)
        model = GaussianProcessRegressor(prior, n_restarts_optimizer=STARTS - 1, random_state=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(fold.X, fold.y)
        return model.predict(fold.X_test, return_std=True)

    return predict


def gpytorch_process(fold: Fold) -> tuple[np.ndarray, np.ndarray]:
    """Fit GPyTorch's exact process with a length scale an input: Adam from two starts, the better likelihood kept."""
    import gpytorch
    import torch

    X, y, X_test = (torch.tensor(values, dtype=torch.float64) for values in (fold.X, fold.y, fold.X_test))

    class Process(gpytorch.models.ExactGP):  # type: ignore[misc]
        def __init__(self, likelihood: Any) -> None:
            super().__init__(X, y, likelihood)
            self.mean_module = gpytorch.means.ConstantMean()
            self.covar_module = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel(ard_num_dims=X.shape[1]))

        def forward(self, x: Any) -> Any:
            return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))

    above, best = gpytorch.constraints.GreaterThan(NOISE_BOUNDS[0]), (-np.inf, None)
    for start in range(STARTS):
        torch.manual_seed(start)
        noise = gpytorch.likelihoods.GaussianLikelihood(noise_constraint=above)
        noise.noise = 0.1
        model = Process(noise).double()
        if start:
            model.covar_module.base_kernel.lengthscale = torch.exp(2 * torch.randn(1, X.shape[1], dtype=X.dtype))
        value = _climb(model, gpytorch.mlls.ExactMarginalLogLikelihood(noise, model), X, y)
        if value > best[0]:
            best = value, model
    model = best[1].eval()
    model.likelihood.eval()
    with torch.no_grad(), gpytorch.settings.max_cholesky_size(10_000), gpytorch.settings.fast_computations(False):
        found = model.likelihood(model(X_test))
        return found.mean.numpy(), found.stddev.numpy()


def _climb(model: Any, likelihood: Any, X: Any, y: Any) -> float:
    """Maximise log p(y | X)/n by Adam; a step that fails ends the climb at the best parameters so far."""
    import copy

    import gpytorch
    import torch

    model.train()
    optimiser = torch.optim.Adam(model.parameters(), lr=0.1)
    best, kept = -np.inf, copy.deepcopy(model.state_dict())
    with gpytorch.settings.max_cholesky_size(10_000), gpytorch.settings.fast_computations(False, False, False):
        for _ in range(STEPS):
            optimiser.zero_grad()
            try:
                value = likelihood(model(X), y)
            except (gpytorch.utils.errors.NotPSDError, gpytorch.utils.errors.NanError):
                break
            if value.item() > best:
                best, kept = value.item(), copy.deepcopy(model.state_dict())
            (-value).backward()
            optimiser.step()
    model.load_state_dict(kept)
    return best


def with_errors(make: Callable[[int], Any]) -> Predictor:
    """Predict the mean by the model for d inputs; one deviation for all rows, that of its errors across folds."""

    def predict(fold: Fold) -> tuple[np.ndarray, np.ndarray]:
        model = make(fold.X.shape[1])
        if isinstance(model, RandomizedSearchCV):
            model = model.fit(fold.X, fold.y).best_estimator_
        error = fold.y - cross_val_predict(model, fold.X, fold.y, cv=KFold(ERROR_PARTS, shuffle=True, random_state=0))
        mean = np.asarray(model.fit(fold.X, fold.y).predict(fold.X_test))
        return mean, np.full(len(mean), np.sqrt(np.mean(error**2)))

    return predict


def tuned(make: Callable[[], Any], space: Callable[[int], dict[str, Any]]) -> Predictor:
    """Predict by the best of SETTINGS random settings of a model; its space depends on the number of inputs."""

    def search(d: int) -> RandomizedSearchCV:
        parts = KFold(TUNING_PARTS, shuffle=True, random_state=0)
        score = "neg_mean_squared_error"
        return RandomizedSearchCV(
            make(), space(d), n_iter=SETTINGS, cv=parts, scoring=score, random_state=0, refit=True
        )

    return with_errors(search)


def catboost() -> Any:
    """Make CatBoost's regressor, one thread, without files."""
    from catboost import CatBoostRegressor

    return CatBoostRegressor(thread_count=1, verbose=False, allow_writing_files=False, random_seed=0)


def lightgbm() -> Any:
    """Make LightGBM's regressor, one thread; bagging at every round."""
    from lightgbm import LGBMRegressor

    return LGBMRegressor(n_jobs=1, verbose=-1, random_state=0, subsample_freq=1)


class RecursiveFeatureMachine(RegressorMixin, BaseEstimator):
    """xRFM takes a part of the rows to stop on: every fifth."""

    def __init__(self, kernel: str = "l2", bandwidth: float = 10.0, exponent: float = 1.0, reg: float = 1e-3) -> None:
        self.kernel, self.bandwidth, self.exponent, self.reg = kernel, bandwidth, exponent, reg

    def fit(self, X: np.ndarray, y: np.ndarray) -> RecursiveFeatureMachine:
        """Fit on four fifths of the rows."""
        from xrfm import xRFM

        model = {"kernel": self.kernel, "bandwidth": self.bandwidth, "exponent": self.exponent, "diag": False}
        model |= {"bandwidth_mode": "constant"}
        fit = {"reg": self.reg, "iters": 5, "verbose": False, "early_stop_rfm": True}
        self.model_ = xRFM({"model": model, "fit": fit}, device="cpu", tuning_metric="mse", verbose=False)
        held = np.arange(len(X)) % 5 == 4
        self.model_.fit(X[~held], y[~held], X[held], y[held])
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Predict (m,)."""
        return np.asarray(self.model_.predict(X), np.float64).reshape(len(X))


def forest() -> Any:
    """Make a random forest of 500 trees."""
    return RandomForestRegressor(500, random_state=0)


def _boosting(rounds: str, rate: str, leaf: str, penalty: str, tree: dict[str, Any]) -> Callable[[int], dict[str, Any]]:
    """Make the space that the boosting methods share, in their own words."""
    shared = {
        rounds: randint(50, 601),
        rate: loguniform(0.01, 0.3),
        leaf: randint(2, 31),
        penalty: loguniform(1e-2, 10),
    }
    return lambda _: shared | tree


LEAVES, SHARE = randint(4, 33), uniform(0.5, 0.5)

METHODS: dict[str, Method] = {
    "gp_ard": Method("GP, RBF, scales", process(lambda d: RBF(np.ones(d), LENGTH_BOUNDS))),
    "gp_ard_far": Method("GP, RBF, scales from sqrt(d)", process(lambda d: RBF(np.full(d, d**0.5), LENGTH_BOUNDS))),
    "gpytorch_ard": Method("GPyTorch, RBF, scales", gpytorch_process, "gpytorch"),
    "gp_rbf": Method("GP, RBF, one scale", process(lambda _: RBF(1.0, LENGTH_BOUNDS))),
    "kernel_ridge": Method(
        "kernel ridge, tuned",
        tuned(
            lambda: KernelRidge(kernel="rbf"),
            lambda d: {"gamma": loguniform(1e-3 / d, 10 / d), "alpha": loguniform(1e-6, 10)},
        ),
    ),
    "svr": Method(
        "SVR, tuned",
        tuned(
            lambda: SVR(max_iter=1_000_000),
            lambda d: {
                "gamma": loguniform(1e-3 / d, 10 / d),
                "C": loguniform(0.1, 1e3),
                "epsilon": loguniform(1e-3, 0.3),
            },
        ),
    ),
    "forest": Method("random forest", with_errors(lambda _: forest())),
    "hist_boosting": Method(
        "histogram boosting, tuned",
        tuned(
            lambda: HistGradientBoostingRegressor(random_state=0),
            _boosting(
                "max_iter",
                "learning_rate",
                "min_samples_leaf",
                "l2_regularization",
                {"max_leaf_nodes": LEAVES, "max_features": SHARE},
            ),
        ),
    ),
    "lightgbm": Method(
        "LightGBM, tuned",
        tuned(
            lightgbm,
            _boosting(
                "n_estimators",
                "learning_rate",
                "min_child_samples",
                "reg_lambda",
                {"num_leaves": LEAVES, "colsample_bytree": SHARE, "subsample": SHARE},
            ),
        ),
        "lightgbm",
    ),
    "catboost": Method(
        "CatBoost, tuned",
        tuned(
            catboost,
            _boosting(
                "iterations", "learning_rate", "min_data_in_leaf", "l2_leaf_reg", {"depth": randint(3, 8), "rsm": SHARE}
            ),
        ),
        "catboost",
    ),
    "xrfm": Method(
        "xRFM, tuned",
        tuned(
            RecursiveFeatureMachine,
            lambda _: {
                "kernel": ["l2", "l1"],
                "bandwidth": loguniform(1, 50),
                "exponent": uniform(0.7, 0.7),
                "reg": loguniform(1e-6, 1),
            },
        ),
        "xrfm",
    ),
    "ntk": Method("NTKRegressor()", own(lambda: wl.NTKRegressor(input_scales=None))),
    "nngp": Method("NNGPRegressor()", own(lambda: wl.NNGPRegressor(input_scales=None))),
    "ensemble": Method("NTKRegressor(ensemble=True)", own(lambda: wl.NTKRegressor(ensemble=True, input_scales=None))),
    "wide": Method("WideRegressor()", own(lambda: wl.WideRegressor())),
}
"""The first is the reference of the ratios."""
