"""Infinitely wide networks do regression."""

from __future__ import annotations

import abc
import math
from typing import Any, Literal, final

import numpy as np
from sklearn.base import MultiOutputMixin, RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from widelimit import validation
from widelimit.compute import linalg
from widelimit.estimators import preparation
from widelimit.estimators.base import KernelEstimator
from widelimit.estimators.networks import Fitted
from widelimit.inference.posterior import Posterior
from widelimit.inference.solvers import Solver
from widelimit.inference.training_set import near


class KernelRegressor(MultiOutputMixin, RegressorMixin, KernelEstimator, abc.ABC):
    """Both regressors have y_j = mean_j + scale_j (f_j(x) + e), e ~ N(0, noise/sample_weight)."""

    y_mean_: np.ndarray
    y_scale_: np.ndarray
    fitted_: Fitted
    log_marginal_likelihood_value_: float | None

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> KernelRegressor:
        """Fit to rows X (n, d) and targets y, (n,) or (n, c).

        Args:
            X: (n, d) numbers; NumPy, pandas or polars.
            y: (n,) or (n, c) numbers.
            sample_weight: (n,), >= 0: observation i has noise/sample_weight_i; rows of weight 0 are left out.

        Returns:
            self.

        Raises:
            TypeError, ValueError: bad data or parameters.
            MemoryError: the (n, n) kernel matrix does not fit.
        """
        with self._fitting():
            self._check_settings()
            preparation.refuse_rows(X)
            preparation.refuse_targets(y)
            with preparation.brief("y"):
                X, y = validate_data(self, X, y, dtype=np.float64, order="C", multi_output=True, y_numeric=True)
            weights = preparation.sample_weights(sample_weight, len(X))
            kept = weights > 0
            targets = np.asarray(y, np.float64)[kept]
            self._single = targets.ndim == 1
            self._fit_rows(X[kept], targets.reshape(len(targets), -1), weights[kept])
        validation.sealed(self)
        return self

    def _fit_rows(self, X: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> None:
        """Fit to targets (n, c) of rows of weights > 0."""
        preparation.require_room(len(X), self._matrices())
        points = self._normalised(X, weights)
        standard, mean, scale = preparation.standardised(targets, weights)
        chosen = self._choose(points, standard, weights)
        self.y_mean_, self.y_scale_, self.noise_ = mean, scale * chosen.scale, chosen.noise
        self.weight_std_, self.bias_std_ = chosen.design.weight_std, chosen.design.bias_std
        training = self._training(chosen.design, points, weights)
        self.fitted_ = Fitted(training, standard / chosen.scale, chosen.noise)
        self.X_train_, self.y_train_ = training.X, self.fitted_.y
        law = self.fitted_.law
        self.log_marginal_likelihood_value_ = None
        if isinstance(law, Posterior) and law.factor.rank == len(points) and law.fit.choice.solver == "cholesky":
            value = law.log_marginal_likelihood() - len(points) * float(np.sum(np.log(chosen.scale)))
            self.log_marginal_likelihood_value_ = value

    @linalg.quiet()
    def predict(self, X: Any, return_std: bool = False, return_cov: bool = False, include_noise: bool = False) -> Any:
        """Predict the mean, (m,) or (m, c); with its standard deviation or covariance on request.

        Args:
            X: (m, d).
            return_std: also the standard deviation, of the shape of the mean.
            return_cov: also the covariance, (m, m) or (m, m, c).
            include_noise: of a new observation (weight 1) rather than of f.

        Raises:
            ValueError: return_std and return_cov together; a result that leaves float64's range.
        """
        for name, flag in (("return_std", return_std), ("return_cov", return_cov), ("include_noise", include_noise)):
            validation.flag(name, flag)
        if return_std and return_cov:
            raise ValueError("return_std and return_cov exclude each other: at most one of them.")
        points = self._prepared(X)
        mean = self._shaped(self.y_mean_ + self.y_scale_ * self.fitted_.mean(points), points)
        noise = self.noise_ if include_noise else 0.0
        if return_std:
            deviation = np.sqrt(np.asarray(self.fitted_.law.variance(points)) + noise)
            return mean, self._shaped(deviation[:, None] * self.y_scale_, points)
        if return_cov:
            covariance = np.asarray(self.fitted_.law.covariance(points)) + noise * np.eye(len(points))
            return mean, self._shaped(covariance[:, :, None] * self.y_scale_**2, points)
        return mean

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return R^2 of `predict(X)`, weighted, the mean over outputs. Raises: TypeError, ValueError: as `fit`."""
        preparation.refuse_targets(y)
        if y is None:
            raise ValueError("y must have shape (n,) or (n, c), got None.")
        from sklearn.metrics import r2_score  # as scikit-learn does: much to import

        if sample_weight is not None:
            sample_weight = preparation.sample_weights(sample_weight, len(y))
        with preparation.brief("y"):
            return float(r2_score(*_of_order_one(np.asarray(y), self.predict(X)), sample_weight=sample_weight))

    def _shaped(self, values: np.ndarray, points: np.ndarray) -> np.ndarray:
        """Remove the axis of outputs if y had none. Raises: ValueError: values that are not finite."""
        values = near(values, points)
        return values[..., 0] if self._single else values

    @linalg.quiet()
    def sample_y(self, X: Any, n_samples: int = 1, random_state: Any = 0) -> np.ndarray:
        """Draw f (without noise) at X: (m, n_samples), or (m, c, n_samples)."""
        points = self._prepared(X)
        n_samples = validation.integer("n_samples", n_samples, at_least=1)
        preparation.refuse_random_state(random_state)
        seed = int(check_random_state(random_state).randint(2**31 - 1))
        draws = np.asarray(self.fitted_.law.sample(points, n_samples, seed=seed))
        return np.moveaxis(self._shaped(self.y_mean_ + self.y_scale_ * draws, points), 0, -1)

    def log_marginal_likelihood(self) -> float:
        """Return log p(y | X) of the standardised targets, as GaussianProcessRegressor does.

        Raises:
            ValueError: an ensemble or an early stop, which are no Bayesian posterior; a singular covariance; or one
                that conjugate gradients never factorised.
        """
        check_is_fitted(self)
        if self.log_marginal_likelihood_value_ is None:
            raise ValueError(
                "the marginal likelihood is that of a Bayesian posterior with a regular, factorised covariance: fit "
                'with time=inf, without ensemble, with a noise > 0, and with solver="cholesky".'
            )
        return self.log_marginal_likelihood_value_


def _of_order_one(truth: np.ndarray, predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scale both by one power of 2, column by column, so that no square overflows; other shapes stay, to be refused."""
    if truth.dtype.kind != "f" or truth.shape != predicted.shape:
        return truth, predicted
    exponent = np.maximum(linalg.scaled(truth)[1], linalg.scaled(predicted)[1])
    return np.ldexp(truth, -exponent), np.ldexp(predicted, -exponent)


@final
class NNGPRegressor(KernelRegressor):
    """f | y for y_j = mean_j + scale_j (f_j(x) + e), f_j ~ GP(0, Sigma^L), e ~ N(0, noise/sample_weight).

    Exact Bayesian regression with an infinitely wide network (section 2.4 of the paper); Sigma^L is `widelimit.nngp`.

    Args:
        depth: L >= 1, affine layers.
        activation: a name, a `widelimit.Activation` or a function of arrays.
        weight_std: > 0; sqrt(2) keeps the variance of relu signals.
        bias_std: >= 0.
        noise: variance of the observations' noise over that of y, >= 0, or "auto": noise and one scale for each
            output by marginal (or leave-one-out) likelihood, above 4000 rows of 4000 of them, evenly spread.
        time: training time in [0, inf], of d theta/dt = -grad C, N = sum_i w_i,
            C = (1/N) (sum_i w_i |f(x_i) - y_i|^2 + noise |theta - theta_0|^2), of the last layer.
        normalize: "standardize" (columns), "sphere" (then rows to norm sqrt(d)) or None.
        hyperparameters: "fixed", or "marginal_likelihood" or "leave_one_out": the objective of a search over weight_std
            and bias_std.
        solver: of the linear system at time inf without ensemble: "cholesky", "cg" (conjugate gradients) or "auto", as
            `widelimit.posterior` has them.
        random_state: unused: fits are deterministic.
        verbose: a bar on stderr where that is a terminal, for more than 4000 rows.

    Attributes:
        noise_, y_mean_, y_scale_: y_j = y_mean_j + y_scale_j (f_j + e), e ~ N(0, noise_/sample_weight).
        X_train_, y_train_: rows and targets as the kernel has them.
        weight_std_, bias_std_: the network's, chosen or given.
        log_marginal_likelihood_value_: of the standardised targets; None for an ensemble, a finite time or conjugate
            gradients.
        inputs_: the normalisation of the columns.
        n_features_in_, feature_names_in_: as scikit-learn has them.
    """

    _kind = "nngp"

    def __init__(
        self,
        *,
        depth: int = 3,
        activation: Any = "relu",
        weight_std: float = math.sqrt(2),
        bias_std: float = 0.5,
        noise: float | Literal["auto"] = "auto",
        time: float = math.inf,
        normalize: str | None = "standardize",
        hyperparameters: Literal["fixed", "marginal_likelihood", "leave_one_out"] = "fixed",
        solver: Solver = "auto",
        random_state: Any = None,
        verbose: bool = False,
    ) -> None:
        self.depth = depth
        self.activation = activation
        self.weight_std = weight_std
        self.bias_std = bias_std
        self.noise = noise
        self.time = time
        self.normalize = normalize
        self.hyperparameters = hyperparameters
        self.solver = solver
        self.random_state = random_state
        self.verbose = verbose


@final
class NTKRegressor(KernelRegressor):
    """f_t(x) = Theta(x, X) (Theta(X, X) + noise)^{-1} y at t = inf: an infinitely wide network after gradient descent.

    Kernel ridge regression with the neural tangent kernel (Corollary 4.4 of the paper; Theta is `widelimit.ntk`), on
    standardised targets y_j = mean_j + scale_j (f_j(x) + e).

    Args:
        depth: L >= 1, affine layers.
        activation: a name, a `widelimit.Activation` or a function of arrays.
        weight_std: > 0; sqrt(2) keeps the variance of relu signals.
        bias_std: >= 0.
        noise: variance of the observations' noise over that of y, >= 0, or "auto": noise and one scale for each
            output by marginal (or leave-one-out) likelihood, above 4000 rows of 4000 of them, evenly spread.
        time: training time in [0, inf], of d theta/dt = -grad C, N = sum_i w_i,
            C = (1/N) (sum_i w_i |f(x_i) - y_i|^2 + noise |theta - theta_0|^2).
        ensemble: the law over random starts of the network, in place of a Gaussian process with the NTK.
        normalize: "standardize" (columns), "sphere" (then rows to norm sqrt(d)) or None.
        hyperparameters: "fixed", or "marginal_likelihood" or "leave_one_out": the objective of a search over weight_std
            and bias_std.
        solver: of the linear system at time inf without ensemble: "cholesky", "cg" (conjugate gradients) or "auto", as
            `widelimit.posterior` has them.
        random_state: unused: fits are deterministic.
        verbose: a bar on stderr where that is a terminal, for more than 4000 rows.

    Attributes:
        noise_, y_mean_, y_scale_: y_j = y_mean_j + y_scale_j (f_j + e), e ~ N(0, noise_/sample_weight).
        X_train_, y_train_: rows and targets as the kernel has them.
        weight_std_, bias_std_: the network's, chosen or given.
        log_marginal_likelihood_value_: of the standardised targets; None for an ensemble, a finite time or conjugate
            gradients.
        inputs_: the normalisation of the columns.
        n_features_in_, feature_names_in_: as scikit-learn has them.
    """

    _kind = "ntk"

    def __init__(
        self,
        *,
        depth: int = 3,
        activation: Any = "relu",
        weight_std: float = math.sqrt(2),
        bias_std: float = 0.5,
        noise: float | Literal["auto"] = "auto",
        time: float = math.inf,
        ensemble: bool = False,
        normalize: str | None = "standardize",
        hyperparameters: Literal["fixed", "marginal_likelihood", "leave_one_out"] = "fixed",
        solver: Solver = "auto",
        random_state: Any = None,
        verbose: bool = False,
    ) -> None:
        self.depth = depth
        self.activation = activation
        self.weight_std = weight_std
        self.bias_std = bias_std
        self.noise = noise
        self.time = time
        self.ensemble = ensemble
        self.normalize = normalize
        self.hyperparameters = hyperparameters
        self.solver = solver
        self.random_state = random_state
        self.verbose = verbose
