"""Infinitely wide networks do regression."""

from __future__ import annotations

import abc
from typing import Any, final

import numpy as np
from sklearn.base import MultiOutputMixin, RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from widelimit import validation
from widelimit.compute import linalg
from widelimit.estimators import preparation
from widelimit.estimators.base import KernelEstimator
from widelimit.estimators.model_state import ModelState
from widelimit.estimators.networks import Fitted, HyperparameterChoice
from widelimit.estimators.parameters import EnsembleParameters, estimator
from widelimit.inference.posterior import Posterior
from widelimit.inference.training_set import check_finite


class KernelRegressor(MultiOutputMixin, RegressorMixin, KernelEstimator, abc.ABC):
    """Both regressors have y_j = mean_j + scale_j (f_j(x) + e), e ~ N(0, noise/sample_weight)."""

    fitted_: Fitted
    _single: bool
    """True if y had no axis of outputs."""
    log_marginal_likelihood_value_: float | None

    def _validate(self, X: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
        preparation.refuse_targets(y)
        with preparation.shorten_errors("y"):
            X, y = validate_data(self, X, y, dtype=np.float64, order="C", multi_output=True, y_numeric=True)
        return X, np.asarray(y, np.float64)

    def _targets(self, y: np.ndarray) -> np.ndarray:
        return y.reshape(len(y), -1)

    def _fit_rows(
        self, points: np.ndarray, y: np.ndarray, weights: np.ndarray, chosen: HyperparameterChoice | None
    ) -> None:
        self._single = y.ndim == 1
        self.fitted_, scale = self._fit_targets(points, y, weights, chosen)
        self._set_public_attributes()
        law, self.log_marginal_likelihood_value_ = self.fitted_.law, None
        if isinstance(law, Posterior) and law.factor.rank == len(points) and law.fit.choice.solver == "cholesky":
            value = law.log_marginal_likelihood() - len(points) * float(np.sum(np.log(scale)))
            self.log_marginal_likelihood_value_ = value

    def _set_public_attributes(self) -> None:
        training = self.fitted_.training
        self.weight_std_, self.bias_std_ = training.design.weight_std, training.design.bias_std
        self.X_train_, self.y_train_ = training.X, self.fitted_.y

    def _check_own_settings(self) -> None:
        """Refuse nothing: regressors have no parameters of their own."""

    def _function_state(self) -> ModelState:
        own = {"single": self._single, "log_marginal_likelihood": self.log_marginal_likelihood_value_}
        return self._targets_state(self.fitted_) | ModelState(own, {})

    def _restore_function(self, state: ModelState) -> None:
        self.fitted_, value = self._restore_targets(state), state.values["log_marginal_likelihood"]
        self._single = state.flag("single")
        if self._single and self.fitted_.y.shape[1] > 1:
            raise ValueError("a single output of several")
        if value is not None:
            if not self._is_linear_system():
                raise ValueError("a marginal likelihood of what is no Bayesian posterior")
            value = float(validation.finite_scalar("log_marginal_likelihood", value))
        self.log_marginal_likelihood_value_ = value
        self._set_public_attributes()

    @linalg.ignore_overflow()
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
        points = self._kernel_rows(X)
        mean = self._drop_output_axis(self.y_mean_ + self.y_scale_ * self.fitted_.mean(points), points)
        noise = self.noise_ if include_noise else 0.0
        if return_std:
            deviation = np.sqrt(np.asarray(self.fitted_.law.variance(points)) + noise)
            return mean, self._drop_output_axis(deviation[:, None] * self.y_scale_, points)
        if return_cov:
            covariance = np.asarray(self.fitted_.law.covariance(points)) + noise * np.eye(len(points))
            return mean, self._drop_output_axis(covariance[:, :, None] * self.y_scale_**2, points)
        return mean

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return R^2 of `predict(X)`, weighted, the mean over outputs. Raises: TypeError, ValueError: as `fit`."""
        preparation.refuse_targets(y)
        if y is None:
            raise ValueError("y must have shape (n,) or (n, c), got None.")
        from sklearn.metrics import r2_score  # as scikit-learn does: much to import

        if sample_weight is not None:
            sample_weight = preparation.sample_weights(sample_weight, len(y))
        with preparation.shorten_errors("y"):
            return float(r2_score(*_of_order_one(np.asarray(y), self.predict(X)), sample_weight=sample_weight))

    def _drop_output_axis(self, values: np.ndarray, points: np.ndarray) -> np.ndarray:
        """Remove the axis of outputs if y had none. Raises: ValueError: values that are not finite."""
        values = check_finite(values, points)
        return values[..., 0] if self._single else values

    @linalg.ignore_overflow()
    def sample_y(self, X: Any, n_samples: int = 1, random_state: Any = 0) -> np.ndarray:
        """Draw f (without noise) at X: (m, n_samples), or (m, c, n_samples)."""
        points = self._kernel_rows(X)
        n_samples = validation.integer("n_samples", n_samples, at_least=1)
        preparation.refuse_random_state(random_state)
        seed = int(check_random_state(random_state).randint(2**31 - 1))
        draws = np.asarray(self.fitted_.law.sample(points, n_samples, seed=seed))
        return np.moveaxis(self._drop_output_axis(self.y_mean_ + self.y_scale_ * draws, points), 0, -1)

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
    exponent = np.maximum(linalg.normalise(truth)[1], linalg.normalise(predicted)[1])
    return np.ldexp(truth, -exponent), np.ldexp(predicted, -exponent)


@final
@estimator
class NNGPRegressor(KernelRegressor):
    """f | y for y_j = mean_j + scale_j (f_j(x) + e), f_j ~ GP(0, Sigma^L), e ~ N(0, noise/sample_weight).

    Exact Bayesian regression with an infinitely wide network (section 2.4 of the paper); Sigma^L is `widelimit.nngp`.

    Args:
        {}

    Attributes:
        noise_, y_mean_, y_scale_: y_j = y_mean_j + y_scale_j (f_j + e), e ~ N(0, noise_/sample_weight).
        X_train_, y_train_: rows and targets as the kernel has them.
        weight_std_, bias_std_: the network's, chosen or given.
        log_marginal_likelihood_value_: of the standardised targets; None for an ensemble, a finite time or conjugate
            gradients.
        inputs_: the normalisation of the columns.
        n_features_in_, feature_names_in_: see scikit-learn.
    """

    _kind = "nngp"


@final
@estimator
class NTKRegressor(KernelRegressor, EnsembleParameters):
    """f_t(x) = Theta(x, X) (Theta(X, X) + noise)^{-1} y at t = inf: an infinitely wide network after gradient descent.

    Kernel ridge regression with the neural tangent kernel (Corollary 4.4 of the paper; Theta is `widelimit.ntk`), on
    standardised targets y_j = mean_j + scale_j (f_j(x) + e).

    Args:
        {}

    Attributes:
        noise_, y_mean_, y_scale_: y_j = y_mean_j + y_scale_j (f_j + e), e ~ N(0, noise_/sample_weight).
        X_train_, y_train_: rows and targets as the kernel has them.
        weight_std_, bias_std_: the network's, chosen or given.
        log_marginal_likelihood_value_: of the standardised targets; None for an ensemble, a finite time or conjugate
            gradients.
        inputs_: the normalisation of the columns.
        n_features_in_, feature_names_in_: see scikit-learn.
    """

    _kind = "ntk"
