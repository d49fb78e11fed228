"""Infinitely wide networks classify."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any, final

import numpy as np
from sklearn.base import ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from widelimit import validation
from widelimit.estimators import casting, class_weights, model_state, preparation, settings
from widelimit.estimators.base import KernelEstimator
from widelimit.estimators.choice import SEARCH_ROWS, HyperparameterChoice, search
from widelimit.estimators.design import Design
from widelimit.estimators.fitted_classes import FittedClasses, FittedLogistic, LatentClasses
from widelimit.estimators.fitted_sparse import (
    FittedSparse,
    FittedSparseClasses,
    fit_sparse_classes,
    restore_sparse_classes,
)
from widelimit.estimators.model_state import ModelState
from widelimit.estimators.networks import Fitted, FittedTraining
from widelimit.estimators.parameters import ClassParameters, EnsembleParameters, WideParameters, estimator
from widelimit.inference.class_probabilities import largest_probability
from widelimit.inference.dirichlet import ALPHA_EPSILON, ALPHAS, DirichletPosterior, most_likely_scale
from widelimit.inference.expectation_propagation import LogisticPosterior, latent_count, logistic_posterior
from widelimit.inference.training_set import evenly

LEAST_ALPHA, LARGEST_ALPHA = 1e-100, 1e6
"""Pseudo-counts: with smaller ones the noise of a label leaves float64's range, and larger ones drown the labels."""
LABEL_SCALES = 50
"""Scales that are learned for classes, at most: of as many columns, as of pixels, none stands out."""
FEW_ROWS = 400
"""Training rows that the scale of the logistic likelihood is chosen on, and a scale by leave-one-out."""


class KernelClassifier(ClassifierMixin, ClassParameters, KernelEstimator, abc.ABC):
    """All classifiers share this base."""

    classes_: np.ndarray
    fitted_: Fitted | FittedSparse | LatentClasses | None

    def _validate(self, X: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
        casting.refuse_unfit_labels("y", y)
        with preparation.shorten_errors("y"):
            X, y = validate_data(self, X, y, dtype=np.float64, order="C")
            check_classification_targets(y)
        return X, y

    def _targets(self, y: np.ndarray) -> np.ndarray:
        classes, labels = np.unique(y, return_inverse=True)
        return np.asarray(np.eye(len(classes))[labels])

    def _learns_scales(self, count: int) -> bool:
        return count <= LABEL_SCALES or isinstance(self, WideParameters)

    def _search_rows(self, points: np.ndarray, y: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return one-hot labels in one unit for all classes: evidence weighs each by its share of the variance."""
        centred = self._targets(y) - np.average(self._targets(y), axis=0, weights=weights)
        variance = np.average(centred**2, axis=0, weights=weights).mean()
        return np.asarray(centred / np.sqrt(variance)) if variance > 0 else centred, weights

    def _fit_rows(
        self, points: np.ndarray, y: np.ndarray, weights: np.ndarray, chosen: HyperparameterChoice | None
    ) -> None:
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) == 1:
            self.fitted_ = None
        elif self.likelihood == "least_squares":
            self.fitted_ = self._fit_targets(points, y, weights, chosen)[0]
        else:
            self.fitted_ = self._fit_latent(points, labels, weights, chosen)

    def _check_own_settings(self) -> None:
        if isinstance(self.alpha_epsilon, str):
            validation.choice("alpha_epsilon", self.alpha_epsilon, ("auto",))
        else:
            validation.finite_scalar("alpha_epsilon", self.alpha_epsilon, at_least=LEAST_ALPHA, at_most=LARGEST_ALPHA)
        if self.likelihood != "dirichlet" and self.alpha_epsilon != "auto":
            raise ValueError(
                f"alpha_epsilon={validation.shown(self.alpha_epsilon)} does not apply to likelihood="
                f'"{self.likelihood}"; leave it at "auto", or choose likelihood="dirichlet".'
            )
        class_weights.refuse_unfit(self.class_weight)
        if self.likelihood != "least_squares" and self.noise != "auto":
            raise ValueError(
                f'likelihood="{self.likelihood}" has a noise of its own: leave noise="auto", or choose '
                'likelihood="least_squares".'
            )
        if self.likelihood == "logistic" and (self.solver == "cg" or not self._is_linear_system()):
            raise ValueError(
                "the logistic likelihood is for networks that are trained to the end, by Cholesky: leave time=inf, "
                'ensemble=False and solver="auto", or choose likelihood="dirichlet".'
            )
        if self.likelihood == "dirichlet" and self.solver == "cg":
            raise ValueError(
                'the Dirichlet likelihood shares one Cholesky factor among the classes and has no solver="cg": leave '
                'solver="auto", or choose likelihood="least_squares".'
            )

    def _target_weights(self, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
        return class_weights.weigh(self.class_weight, y, weights)

    def matrix_count(self) -> float:
        """Count three (n, n) matrices: the factor, the corrections of all classes together, and their workspace.

        The logistic likelihood's are counted where the number of classes is known.
        """
        if self.likelihood == "logistic":
            return 5
        dirichlet = self.likelihood == "dirichlet" and self._is_linear_system()
        return 3 if dirichlet else KernelEstimator.matrix_count(self)

    def _fit_latent(
        self, points: np.ndarray, labels: np.ndarray, weights: np.ndarray, chosen: HyperparameterChoice | None
    ) -> LatentClasses:
        """Fit to rows and class numbers."""
        return self._fit_one(points, labels, weights, chosen)

    def _fit_one(
        self, points: np.ndarray, labels: np.ndarray, weights: np.ndarray, chosen: HyperparameterChoice | None
    ) -> LatentClasses:
        """Fit one network to rows and class numbers."""
        alpha = None if isinstance(self.alpha_epsilon, str) else float(self.alpha_epsilon)
        sparse = settings.solver(self, len(points)) == "nystrom"
        count, logistic = len(self.classes_), self.likelihood == "logistic" and not sparse
        if logistic:  # where weights count copies of a row, and so must its copies
            points, labels, weights = class_weights.merge(points, labels, weights)
        tried = points, labels, weights
        if alpha is None or self.hyperparameters == "leave_one_out":  # a row is left out with its copies
            tried = class_weights.merge(*tried)
        few = FEW_ROWS if logistic or alpha is None else SEARCH_ROWS
        rows = np.argsort(tried[1], kind="stable")[evenly(len(tried[1]), few)]
        X, y, w = (part[rows] for part in tried)

        def posterior(design: Design, alpha: float | None = alpha) -> DirichletPosterior | LogisticPosterior:
            if logistic:
                return logistic_posterior(design.kernel(), X, y, classes=count, weights=w)
            return most_likely_scale(design.kernel(), X, y, classes=count, alpha_epsilon=alpha, weights=w)

        design = chosen.design if chosen else self._own_design()
        if self.hyperparameters == "leave_one_out" and chosen is None:
            design = search(design, lambda design: posterior(design).leave_one_out_score(y, w))
        elif self.hyperparameters == "marginal_likelihood" and chosen is None:
            own = ALPHA_EPSILON if alpha is None else alpha  # each makes other data of the labels
            design = search(design, lambda design: posterior(design, own).log_marginal_likelihood)
        training = self._training(design, points, weights)
        found = posterior(design)
        if sparse:
            assert isinstance(found, DirichletPosterior)
            return fit_sparse_classes(training, labels, count, found.scale, self._alphas())
        if isinstance(found, DirichletPosterior):
            return FittedClasses(training, labels, found.scale, count, found.alpha_epsilon)
        if len(rows) < len(points):
            found = logistic_posterior(
                design.kernel(), points, labels, classes=count, scale=found.scale, weights=weights
            )
        return FittedLogistic(training, found.scale, count, found.precision, found.shift)

    def _alphas(self) -> Sequence[float]:
        """Return the pseudo-counts among which a fit through inducing points chooses."""
        if isinstance(self.alpha_epsilon, str) or self.likelihood == "logistic":
            return ALPHAS
        return (float(self.alpha_epsilon),)

    def _function_state(self) -> ModelState:
        own = ModelState({"classes": model_state.json_classes(self.classes_)}, {})
        if self.fitted_ is None:
            return ModelState({"fitted": None}, {}) | own
        if isinstance(self.fitted_, LatentClasses):
            return self.fitted_.state() | own
        return self._targets_state(self.fitted_) | own

    def _restore_function(self, state: ModelState) -> None:
        self.classes_ = model_state.classes(state.values["classes"])
        if len(self.classes_) == 1:
            self.fitted_ = None
            return
        self.fitted_ = self._restore_fitted(state)

    def _restore_fitted(self, state: ModelState) -> Fitted | FittedSparse | LatentClasses:
        """Restore what is fitted to two classes or more."""
        return self._restore_one(state)

    def _restore_one(
        self, state: ModelState, family: Sequence[Any] | None = None
    ) -> Fitted | FittedSparse | LatentClasses:
        """Restore what one network is fitted to, of another family than the estimator's if given."""
        n, outputs = model_state.shape(state)
        c = len(self.classes_)
        if state.values["fitted"] == FittedSparseClasses.__name__:
            if self.solver not in ("auto", "nystrom") or outputs != c:
                raise ValueError("another solver or number of classes than was given")
            return restore_sparse_classes(state, self._restore_training(state, n, family), n, c)
        if outputs != (latent_count(c) if self.likelihood == "logistic" else c):
            raise ValueError("another number of outputs than classes")
        if self.likelihood == "least_squares":
            return self._restore_targets(state)
        training = self._restore_training(state, n, family)
        restore = self._restore_logistic if self.likelihood == "logistic" else self._restore_dirichlet
        return restore(state, training, n, c)

    def _restore_logistic(self, state: ModelState, training: FittedTraining, n: int, c: int) -> LatentClasses:
        scale = float(validation.deviation("scale", state.values["scale"]))
        precision, shift, coefficients = (
            state.array(key, n, latent_count(c)) for key in ("precision", "shift", "coefficients")
        )
        if (precision < 0).any():
            raise ValueError("a negative precision")
        return FittedLogistic(training, scale, c, precision, shift, coefficients)

    def _restore_dirichlet(self, state: ModelState, training: FittedTraining, n: int, c: int) -> LatentClasses:
        labels, given = state.arrays["labels"], self.alpha_epsilon
        alpha = state.values["alpha_epsilon"] if isinstance(given, str) else given
        alpha = float(validation.finite_scalar("alpha_epsilon", alpha, above=0.0))
        if isinstance(given, str) and alpha not in ALPHAS:
            raise ValueError("a pseudo-count that no search takes")
        if labels.shape != (n,) or labels.dtype != np.int64 or labels.min() < 0 or labels.max() >= c:
            raise ValueError("labels out of range")
        if not np.bincount(labels, minlength=c).all():
            raise ValueError("a class without a row")
        scale = float(validation.deviation("scale", state.values["scale"]))
        return FittedClasses(training, labels, scale, c, alpha, state.array("coefficients", n, c))

    def predict_proba(self, X: Any) -> np.ndarray:
        """Predict the probability of each class of `classes_`: (m, c), rows sum to 1. There are no random numbers."""
        points = self._kernel_rows(X)
        if self.fitted_ is None:
            return np.ones((len(points), 1))
        if isinstance(self.fitted_, LatentClasses):
            return self.fitted_.probabilities(points)
        mean = self.y_mean_ + self.y_scale_ * self.fitted_.mean(points)
        variance = np.asarray(self.fitted_.law.variance(points))[:, None] + self.noise_
        return largest_probability(mean, np.maximum(variance, np.finfo(np.float64).tiny) * self.y_scale_**2)

    def predict_latent(self, X: Any, return_std: bool = False) -> Any:
        """Predict the mean of each class's latent function, (m, c); with its standard deviation, (m, c), on request.

        The unit depends on the likelihood. Dirichlet: log concentrations, whose softmax has the probabilities as its
        mean. Logistic: log odds of the class against all others. Least squares: the one-hot label, 0
        or 1, without its noise. A single class has mean and deviation 0.

        Args:
            X: (m, d).
            return_std: also the standard deviation.
        """
        validation.flag("return_std", return_std)
        points = self._kernel_rows(X)
        if self.fitted_ is None:
            mean = np.zeros((len(points), 1))
            return (mean, mean) if return_std else mean
        if isinstance(self.fitted_, LatentClasses):
            mean = self.fitted_.mean(points)
            return (mean, np.sqrt(self.fitted_.variance(points))) if return_std else mean
        mean = self.y_mean_ + self.y_scale_ * self.fitted_.mean(points)
        if not return_std:
            return mean
        return mean, np.sqrt(np.asarray(self.fitted_.law.variance(points)))[:, None] * self.y_scale_

    def decision_function(self, X: Any) -> np.ndarray:
        """Compute log p of each class, (m, c); of two classes log(p_1/p_0), (m,)."""
        check_is_fitted(self)
        with np.errstate(divide="ignore"):
            scores = np.log(self.predict_proba(X))
        return np.asarray(scores[:, 1] - scores[:, 0] if scores.shape[1] == 2 else scores)

    def predict(self, X: Any) -> np.ndarray:
        """Predict the most probable class: (m,)."""
        check_is_fitted(self)
        return np.asarray(self.classes_[np.argmax(self.predict_proba(X), axis=1)])

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return the share of rows whose class is predicted, weighted. Raises: TypeError, ValueError: as `fit`."""
        casting.refuse_unfit_labels("y", y)
        if sample_weight is not None:
            sample_weight = preparation.sample_weights(sample_weight, len(y))
        return float(ClassifierMixin.score(self, X, y, sample_weight))

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Compute the log of `predict_proba`; -inf where that underflows."""
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(self.predict_proba(X)))


@final
@estimator
class NNGPClassifier(KernelClassifier):
    """p(class k) = E[softmax(f)_k], f_k | labels for f_k ~ GP(offset, scale^2 Sigma^L): Dirichlet classification.

    Exact Bayesian inference with an infinitely wide network's prior (`widelimit.nngp`) on transformed labels.

    Args:
        {}

    Attributes:
        classes_: (c,) the labels, sorted.
        inputs_: the normalisation of the columns.
        network_, hyperparameters_: the network, and its numbers by name, chosen or given.
        n_features_in_, feature_names_in_: see scikit-learn.
    """

    _kind = "nngp"


@final
@estimator
class NTKClassifier(KernelClassifier, EnsembleParameters):
    """p(class k) = E[softmax(f)_k], f_k | labels for f_k ~ GP(offset, scale^2 Theta^L): Dirichlet classification.

    The mean is that of an infinitely wide network after gradient descent with a ridge (Theta^L is `widelimit.ntk`).

    Args:
        {}

    Attributes:
        classes_, network_, ...: as in `NNGPClassifier`.
    """

    _kind = "ntk"
