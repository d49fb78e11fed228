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
from widelimit.estimators import fitted_outputs, preparation, settings
from widelimit.estimators.averaging import FittedAverage
from widelimit.estimators.base import KernelEstimator
from widelimit.estimators.choice import HyperparameterChoice, choose_design
from widelimit.estimators.fitted_outputs import FittedOutputs
from widelimit.estimators.model_state import ModelState
from widelimit.estimators.networks import FittedGaussian
from widelimit.estimators.parameters import EnsembleParameters, RegressorParameters, estimator
from widelimit.inference import intervals
from widelimit.inference.left_out import LeftOutRows
from widelimit.inference.posterior import Posterior
from widelimit.inference.training_set import check_finite

BLOCK = 256
"""Points whose conformal intervals are computed at once: an (m, n) matrix for each."""


class KernelRegressor(MultiOutputMixin, RegressorMixin, RegressorParameters, KernelEstimator, abc.ABC):
    """All regressors have y_j = mean_j + scale_j (f_j(x) + e), e ~ N(0, noise/sample_weight)."""

    fitted_: FittedGaussian | FittedAverage
    _single: bool
    """True if y had no axis of outputs."""
    log_marginal_likelihood_value_: float | None
    weight_std_: float | None
    bias_std_: float | None

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
        fit = self._fit_targets if self.noise_model == "constant" else self._fit_noise
        fitted, scale = fit(points, y, weights, chosen)
        self.fitted_ = self._with_others(fitted, scale, chosen)
        self._set_public_attributes()
        self.log_marginal_likelihood_value_ = None
        if self.noise_model != "student_t":
            self.log_marginal_likelihood_value_ = _evidence(self.fitted_, scale)

    def _with_others(
        self, fitted: FittedGaussian, scale: np.ndarray, chosen: HyperparameterChoice | None
    ) -> FittedGaussian | FittedAverage:
        """Return what is fitted, or its average with other networks."""
        return fitted

    def _restore_others(self, fitted: FittedGaussian, state: ModelState) -> FittedGaussian | FittedAverage:
        """Return what is restored, or its average with other networks that the file holds."""
        return fitted

    def _fit_noise(
        self, points: np.ndarray, y: np.ndarray, weights: np.ndarray, chosen: HyperparameterChoice | None
    ) -> tuple[FittedOutputs, np.ndarray]:
        """Fit every output with noise of its own, and set what undoes the standardisation."""
        standard, self.y_mean_, deviation = self._standardise(y, weights)
        data, design = self._search_data(points, standard, weights), self._own_design()
        if chosen:
            design, data = chosen.design, data._replace(noise=None if data.noise is None else chosen.noise)
        elif self.hyperparameters != "fixed" and standard.any():
            design = choose_design(design, self._search_data(points, *self._search_rows(points, y, weights)))
        training = self._training(design, points, weights)
        fitted, scale = fitted_outputs.fit_outputs(training, standard, self.noise_model, data.objective, data.noise)
        self.y_scale_ = deviation * scale
        return fitted, scale

    def _standardise(self, y: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        robust = self.noise_model == "student_t"
        return preparation.standardise_targets(self._targets(y), weights, robust=robust)

    def _search_rows(self, points: np.ndarray, y: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        standard = self._standardise(y, weights)[0]
        if self.noise_model != "student_t" or not standard.any():
            return standard, weights
        factors = fitted_outputs.outlier_factors(self._designs()[0].kernel(), points, standard, weights)
        return standard, weights * factors

    def _set_public_attributes(self) -> None:
        training = self.fitted_.training
        own = {} if training.design.given else training.design.values
        self.weight_std_, self.bias_std_ = own.get("weight_std"), own.get("bias_std")
        self.X_train_, self.y_train_ = training.X, self.fitted_.y
        noise = self.fitted_.noise
        self.noise_ = float(np.ravel(noise)[0]) if np.size(noise) == 1 else noise

    def _check_own_settings(self) -> None:
        value = self.output_scale
        if self.noise_model != "constant":
            self._check_noise_model()
        if isinstance(value, str):
            if value != "auto":
                raise ValueError(f'output_scale must be a number > 0 or "auto", got {validation.shown(value)}.')
        else:
            validation.finite_scalar("output_scale", value, above=0.0)
            if settings.scaling(self) is not None:
                raise ValueError(
                    f"input_scales={self.input_scales!r} learns the scale of the output too; leave "
                    f'output_scale="auto", got {value!r}.'
                )

    def _check_noise_model(self) -> None:
        how = f"noise_model={self.noise_model!r}"
        if not self._is_linear_system():
            raise ValueError(f'{how} is for time=inf without ensemble; leave noise_model="constant" there.')
        if not isinstance(self.output_scale, str):
            raise ValueError(f'{how} finds the scale of the output with the noise; leave output_scale="auto".')
        if not isinstance(self.noise, str) and self.noise == 0 and self.noise_model != "per_output":
            raise ValueError(f'{how} needs a noise > 0, got 0; pass noise="auto".')

    def _given_scale(self) -> float | None:
        return None if isinstance(self.output_scale, str) else float(self.output_scale)

    def _function_state(self) -> ModelState:
        own = {"single": self._single, "log_marginal_likelihood": self.log_marginal_likelihood_value_}
        if not isinstance(self.fitted_, FittedOutputs):
            return self._targets_state(self.fitted_) | ModelState(own, {})
        arrays = {"y_mean": self.y_mean_, "y_scale": self.y_scale_}
        return self.fitted_.state() | ModelState(own, arrays)

    def _restore_function(self, state: ModelState) -> None:
        value = state.values["log_marginal_likelihood"]
        restore = self._restore_targets if self.noise_model == "constant" else self._restore_outputs
        self.fitted_ = self._restore_others(restore(state), state)
        self._single = state.flag("single")
        if self._single and self.fitted_.y.shape[1] > 1:
            raise ValueError("a single output of several")
        if value is not None:
            if not self._is_linear_system():
                raise ValueError("a marginal likelihood of what is no Bayesian posterior")
            value = float(validation.finite_scalar("log_marginal_likelihood", value))
        self.log_marginal_likelihood_value_ = value
        self._set_public_attributes()

    def _restore_outputs(self, state: ModelState) -> FittedOutputs:
        n, c = state.arrays["coefficients"].shape
        self.y_mean_, self.y_scale_ = state.array("y_mean", c), state.positive("y_scale", c)
        return fitted_outputs.restore_outputs(state, self._restore_training(state, n), n, c)

    @linalg.ignore_overflow()
    def predict(self, X: Any, return_std: bool = False, return_cov: bool = False, include_noise: bool = False) -> Any:
        """Predict the mean, (m,) or (m, c); with its standard deviation or covariance on request.

        Args:
            X: (m, d).
            return_std: also a standard deviation, of the shape of the mean: that of the function f, in which 95 % of
                observations do not lie; with include_noise=True that of a new observation.
            return_cov: also the covariance, (m, m) or (m, m, c), of the same.
            include_noise: return those of a new observation (weight 1) instead of those of f.

        Raises:
            ValueError: return_std and return_cov together; a result that leaves float64's range.
        """
        for name, flag in (("return_std", return_std), ("return_cov", return_cov), ("include_noise", include_noise)):
            validation.flag(name, flag)
        if return_std and return_cov:
            raise ValueError("return_std and return_cov exclude each other: at most one of them.")
        points = self._kernel_rows(X)
        noise = self.fitted_.noise_variance(points) if include_noise else 0.0
        spread = None
        if return_std:
            mean, variance = self.fitted_.moments(points)
            spread = np.sqrt(variance + noise) * self.y_scale_
        elif return_cov:
            mean, covariance = self.fitted_.joint(points)
            spread = (covariance + np.eye(len(points))[:, :, None] * noise) * self.y_scale_**2
        else:
            mean = self.fitted_.mean(points)
        mean = self._drop_output_axis(self.y_mean_ + self.y_scale_ * mean, points)
        return mean if spread is None else (mean, self._drop_output_axis(spread, points))

    @linalg.ignore_overflow()
    def predict_quantiles(self, X: Any, q: Any, recalibrate: bool = False) -> np.ndarray:
        """Predict quantiles of a new observation: (m, k) for k levels q, or (m, c, k).

        They are those of the Gaussian law of f and noise, of Student's t where noise_model="student_t".

        Args:
            X: (m, d).
            q: levels between 0 and 1, in any order; one number is one level.
            recalibrate: take mean + deviation z, with z the quantile of standardised leave-one-out errors of the
                training rows in place of the normal one: for noise that is skewed or has heavy tails.

        Raises:
            TypeError, ValueError: bad levels; recalibrate without a factorised, regular covariance.
        """
        levels = _levels(q)
        validation.flag("recalibrate", recalibrate)
        points = self._kernel_rows(X)
        if recalibrate:
            mean, variance = self.fitted_.moments(points)
            deviation = np.sqrt(variance + self.fitted_.noise_variance(points, moment=False))
            deviation = np.broadcast_to(deviation, mean.shape)
            quantiles = [intervals.order_quantiles(scores, levels) for scores in self.fitted_.left_out().scores.T]
            out = mean[:, :, None] + deviation[:, :, None] * np.stack(quantiles)
        else:
            out = self.fitted_.quantiles(points, levels)
        out = check_finite(self.y_mean_[:, None] + self.y_scale_[:, None] * out, points)
        return np.asarray(out[:, 0] if self._single else out)

    def predict_interval(self, X: Any, level: float = 0.95, method: str = "gaussian") -> np.ndarray:
        """Predict an interval for a new observation: its ends, (m, 2) or (m, c, 2).

        method="gaussian" has the quantiles (1 - level)/2 and (1 + level)/2 of `predict_quantiles`: as good as the
        model is. method="conformal" is the jackknife+ of Barber et al. 2021 with errors in units of the predicted
        deviation, from leave-one-out predictions in closed form. If training rows and the new one are exchangeable
        and hyper-parameters and standardisation were fixed before, an interval contains a new observation with
        probability of at least 1 - 2 (1 - level), over training rows too, whatever the law of the data; in practice
        near `level`. Hyper-parameters chosen on the rows, and an ensemble or a finite time, make this approximate.

        Args:
            X: (m, d).
            level: between 0 and 1.
            method: "gaussian" or "conformal"; the latter needs level/(1 - level) distinct training rows (19
                for 0.95).

        Raises:
            TypeError, ValueError: a bad level or method; conformal with too few rows, or without a factorised, regular
                covariance.
        """
        level = float(validation.finite_scalar("level", level, above=0.0))
        if not level < 1:
            raise ValueError(f"level must be between 0 and 1, got {level:.6g}; 0.95 is 95 %.")
        validation.choice("method", method, ("gaussian", "conformal"))
        if method == "gaussian":
            return self.predict_quantiles(X, [(1 - level) / 2, (1 + level) / 2])
        points = self._kernel_rows(X)
        left = self.fitted_.left_out()
        intervals.place(level, len(left.X))
        blocks = [self._conformal(part, left, level) for part in np.array_split(points, -(-len(points) // BLOCK))]
        out = check_finite(self.y_mean_[:, None] + self.y_scale_[:, None] * np.concatenate(blocks), points)
        return np.asarray(out[:, 0] if self._single else out)

    def _conformal(self, points: np.ndarray, left: LeftOutRows, level: float) -> np.ndarray:
        """Compute the ends of intervals in units of the kernel: (m, c, 2)."""
        columns = zip(self.fitted_.without(points, left), np.abs(left.scores).T, strict=True)
        return np.stack([intervals.jackknife_plus(*law, scores, level) for law, scores in columns], axis=1)

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
        draws = self.fitted_.sample(points, n_samples, seed)
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


def _evidence(fitted: FittedGaussian | FittedAverage, scale: np.ndarray) -> float | None:
    """Compute the log marginal likelihood of the standardised targets; None: there is none."""
    total, n = -len(fitted.y) * float(np.sum(np.log(scale))), len(fitted.y)
    for law in fitted.laws:
        if not isinstance(law, Posterior) or law.factor.rank < n or law.fit.choice.solver != "cholesky":
            return None
        total += law.log_marginal_likelihood()
    return total


def _levels(q: Any) -> np.ndarray:
    """Return levels as an array (k,). Raises: TypeError, ValueError: not between 0 and 1."""
    levels = np.atleast_1d(np.asarray(validation.as_float_array("q", q), np.float64))
    if levels.ndim != 1 or not len(levels) or not ((levels > 0) & (levels < 1)).all():
        raise ValueError(
            f"q must be levels between 0 and 1, without these, got {validation.shown(q)}; a median is 0.5, 5 % is 0.05."
        )
    return levels


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
        network_, hyperparameters_: the network, and its numbers by name, chosen or given.
        weight_std_, bias_std_: the network's, chosen or given; None with `network`.
        log_marginal_likelihood_value_: that of the standardised targets; None for an ensemble, a finite time or
            conjugate gradients.
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
        noise_, network_, ...: as in `NNGPRegressor`.
    """

    _kind = "ntk"
