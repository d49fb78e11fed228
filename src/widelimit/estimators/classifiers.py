"""Infinitely wide networks classify."""

from __future__ import annotations

import abc
import math
from typing import Any, Literal, final

import numpy as np
from sklearn.base import ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from widelimit import validation
from widelimit.estimators import casting, preparation
from widelimit.estimators.base import KernelEstimator
from widelimit.estimators.fitted_classes import FittedClasses
from widelimit.estimators.networks import ROWS, Design, Fitted, search, spread
from widelimit.inference.class_probabilities import expected_softmax, largest_probability
from widelimit.inference.dirichlet import ALPHA_EPSILON, DirichletPosterior, most_likely_scale
from widelimit.inference.solvers import Solver

LIKELIHOODS = ("dirichlet", "least_squares")


class KernelClassifier(ClassifierMixin, KernelEstimator, abc.ABC):
    """Both classifiers share this base."""

    likelihood: str
    alpha_epsilon: float
    classes_: np.ndarray
    fitted_: Fitted | FittedClasses | None

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> KernelClassifier:
        """Fit to rows X (n, d) and class labels y (n,).

        Args:
            X: (n, d) numbers; NumPy, pandas or polars.
            y: (n,) labels, numbers or text.
            sample_weight: (n,), >= 0: weight 2 is the same row twice; rows of weight 0 are left out.

        Returns:
            self.

        Raises:
            TypeError, ValueError: bad data or parameters.
            MemoryError: the (n, n) kernel matrix does not fit.
        """
        with self._fitting():
            self._check_settings()
            preparation.refuse_rows(X)
            casting.refuse_unfit_labels("y", y)
            with preparation.brief("y"):
                X, y = validate_data(self, X, y, dtype=np.float64, order="C")
                check_classification_targets(y)
            weights = preparation.sample_weights(sample_weight, len(X))
            kept = weights > 0
            X, weights = X[kept], weights[kept]
            self.classes_, labels = np.unique(y[kept], return_inverse=True)
            preparation.require_room(len(X), self._matrices())
            points = self._normalised(X, weights)
            if len(self.classes_) == 1:
                self.fitted_ = None
            elif self.likelihood == "dirichlet":
                self.fitted_ = self._dirichlet(points, labels, weights)
            else:
                self.fitted_ = self._least_squares(points, labels, weights)
        validation.sealed(self)
        return self

    def _check_settings(self) -> None:
        KernelEstimator._check_settings(self)
        validation.choice("likelihood", self.likelihood, LIKELIHOODS)
        validation.finite_scalar("alpha_epsilon", self.alpha_epsilon, above=0.0)
        if self.likelihood == "dirichlet" and self.noise != "auto":
            raise ValueError(
                'the Dirichlet likelihood has a noise of its own, set by alpha_epsilon: leave noise="auto", or choose '
                'likelihood="least_squares".'
            )
        if self.likelihood == "dirichlet" and self.solver == "cg":
            raise ValueError(
                'the Dirichlet likelihood shares one Cholesky factor among the classes and has no solver="cg": leave '
                'solver="auto", or choose likelihood="least_squares".'
            )

    def _matrices(self) -> float:
        """Count the factor and, for all classes together, one correction of its size, made from as much."""
        return 3 if self.likelihood == "dirichlet" and self._solved() else KernelEstimator._matrices(self)

    def _dirichlet(self, points: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> FittedClasses:
        alpha, classes = float(self.alpha_epsilon), len(self.classes_)
        rows = spread(np.argsort(labels, kind="stable"), ROWS)

        def posterior(design: Design) -> DirichletPosterior:
            return most_likely_scale(
                design.kernel(), points[rows], labels[rows], classes=classes, alpha_epsilon=alpha, weights=weights[rows]
            )

        def score(design: Design) -> float:
            post = posterior(design)
            if self.hyperparameters == "marginal_likelihood":
                return post.log_marginal_likelihood
            return post.leave_one_out_score(labels[rows], weights[rows])

        design = self._design(self.weight_std, self.bias_std)
        if self.hyperparameters != "fixed":
            design = search(design, score)
        training = self._training(design, points, weights)
        return FittedClasses(training, labels, posterior(design).scale, classes, alpha)

    def _least_squares(self, points: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> Fitted:
        targets = np.eye(len(self.classes_))[labels]
        standard, self.y_mean_, scale = preparation.standardised(targets, weights)
        chosen = self._choose(points, standard, weights)
        self.y_scale_, self.noise_ = scale * chosen.scale, chosen.noise
        training = self._training(chosen.design, points, weights)
        return Fitted(training, standard / chosen.scale, chosen.noise)

    def predict_proba(self, X: Any) -> np.ndarray:
        """Predict the probability of each class of `classes_`: (m, c), rows sum to 1. There are no random numbers."""
        points = self._prepared(X)
        if self.fitted_ is None:
            return np.ones((len(points), 1))
        if isinstance(self.fitted_, FittedClasses):
            return expected_softmax(self.fitted_.mean(points), self.fitted_.variance(points))
        mean = self.y_mean_ + self.y_scale_ * self.fitted_.mean(points)
        variance = np.asarray(self.fitted_.law.variance(points))[:, None] + self.noise_
        return largest_probability(mean, np.maximum(variance, np.finfo(np.float64).tiny) * self.y_scale_**2)

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
class NNGPClassifier(KernelClassifier):
    """p(class k) = E[softmax(f)_k], f_k | labels for f_k ~ GP(offset, scale^2 Sigma^L): Dirichlet classification.

    Exact Bayesian inference with an infinitely wide network's prior (`widelimit.nngp`) on transformed labels.

    Args:
        depth: L >= 1, affine layers.
        activation: a name, a `widelimit.Activation` or a function of arrays.
        weight_std: > 0; sqrt(2) keeps the variance of relu signals.
        bias_std: >= 0.
        likelihood: "dirichlet" (Milios et al. 2018, arXiv 1805.10915) or "least_squares" on one-hot labels.
        alpha_epsilon: > 0, pseudo-count of every class in the Dirichlet likelihood.
        noise: of the least squares: a variance, or "auto", the most likely (above 4000 rows of 4000 of them, evenly
            spread). The Dirichlet likelihood has its own.
        time: training time in [0, inf], of d theta/dt = -grad C, N = sum_i w_i,
            C = (1/N) (sum_i w_i |f(x_i) - y_i|^2 + noise |theta - theta_0|^2), of the last layer.
        normalize: "standardize" (columns), "sphere" (then rows to norm sqrt(d)) or None.
        hyperparameters: "fixed", or "marginal_likelihood" or "leave_one_out": the objective of a search over weight_std
            and bias_std.
        solver: of the least squares at time inf without ensemble: "cholesky", "cg" (conjugate gradients) or "auto", as
            `widelimit.posterior` has them. The Dirichlet likelihood takes Cholesky.
        random_state: unused: fits are deterministic.
        verbose: a bar on stderr where that is a terminal, for more than 4000 rows.

    Attributes:
        classes_: (c,) the labels, sorted.
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
        likelihood: str = "dirichlet",
        alpha_epsilon: float = ALPHA_EPSILON,
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
        self.likelihood = likelihood
        self.alpha_epsilon = alpha_epsilon
        self.noise = noise
        self.time = time
        self.normalize = normalize
        self.hyperparameters = hyperparameters
        self.solver = solver
        self.random_state = random_state
        self.verbose = verbose


@final
class NTKClassifier(KernelClassifier):
    """p(class k) = E[softmax(f)_k], f_k | labels for f_k ~ GP(offset, scale^2 Theta^L): Dirichlet classification.

    The mean is that of an infinitely wide network after gradient descent with a ridge (Theta^L is `widelimit.ntk`).

    Args:
        depth: L >= 1, affine layers.
        activation: a name, a `widelimit.Activation` or a function of arrays.
        weight_std: > 0; sqrt(2) keeps the variance of relu signals.
        bias_std: >= 0.
        likelihood: "dirichlet" (Milios et al. 2018, arXiv 1805.10915) or "least_squares" on one-hot labels.
        alpha_epsilon: > 0, pseudo-count of every class in the Dirichlet likelihood.
        noise: of the least squares: a variance, or "auto", the most likely (above 4000 rows of 4000 of them, evenly
            spread). The Dirichlet likelihood has its own.
        time: training time in [0, inf], of d theta/dt = -grad C, N = sum_i w_i,
            C = (1/N) (sum_i w_i |f(x_i) - y_i|^2 + noise |theta - theta_0|^2).
        ensemble: the law over random starts of the network, in place of a Gaussian process with the NTK.
        normalize: "standardize" (columns), "sphere" (then rows to norm sqrt(d)) or None.
        hyperparameters: "fixed", or "marginal_likelihood" or "leave_one_out": the objective of a search over weight_std
            and bias_std.
        solver: of the least squares at time inf without ensemble: "cholesky", "cg" (conjugate gradients) or "auto", as
            `widelimit.posterior` has them. The Dirichlet likelihood takes Cholesky.
        random_state: unused: fits are deterministic.
        verbose: a bar on stderr where that is a terminal, for more than 4000 rows.

    Attributes:
        classes_: (c,) the labels, sorted.
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
        likelihood: str = "dirichlet",
        alpha_epsilon: float = ALPHA_EPSILON,
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
        self.likelihood = likelihood
        self.alpha_epsilon = alpha_epsilon
        self.noise = noise
        self.time = time
        self.ensemble = ensemble
        self.normalize = normalize
        self.hyperparameters = hyperparameters
        self.solver = solver
        self.random_state = random_state
        self.verbose = verbose
