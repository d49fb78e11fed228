"""Regressors and classifiers share this base."""

from __future__ import annotations

import abc
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar, Self

import numpy as np
from sklearn.base import BaseEstimator, is_classifier
from sklearn.utils.validation import check_is_fitted

from widelimit import validation
from widelimit.architecture.network import Network
from widelimit.columns import encoder
from widelimit.columns.encoder import TableEncoder
from widelimit.estimators import leaks, model_file, model_state, preparation, settings
from widelimit.estimators.averaging import FittedAverage
from widelimit.estimators.choice import HyperparameterChoice, SearchData, choose
from widelimit.estimators.design import Design, Kind
from widelimit.estimators.fitted_sparse import FittedSparse, fit_sparse, restore_sparse
from widelimit.estimators.model_state import ModelState
from widelimit.estimators.networks import Fitted, FittedGaussian, FittedTraining
from widelimit.estimators.parameters import EnsembleParameters, KernelParameters
from widelimit.estimators.preparation import Inputs
from widelimit.estimators.scaled_choice import choose_by_gradients, choose_scaled
from widelimit.network_text import read_network
from widelimit.references import referenced, resolved
from widelimit.shapes import Float


class KernelEstimator(KernelParameters, BaseEstimator, abc.ABC):
    """An infinitely wide network becomes an estimator. Fitted state is plain arrays and numbers."""

    _kind: ClassVar[Kind]
    encoder_: TableEncoder | None = None
    """The encoder of a table's columns; None for an array of numbers."""
    inputs_: Inputs
    n_features_in_: int
    y_mean_: np.ndarray
    y_scale_: np.ndarray
    noise_: float | np.ndarray
    _fitted_with: dict[str, Any]
    """Parameters at the time of the fit: `set_params` changes the next fit, not this one."""

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Fit to rows X (n, d), and targets of a regressor, (n,) or (n, c), or class labels of a classifier, (n,).

        Args:
            X: (n, d) numbers; images (n, height, width, channels), where `network` reads such; or a table of pandas,
                polars or pyarrow, which `widelimit.TableEncoder` makes into numbers where it has other columns, or
                missing values.
            y: numbers; or labels, numbers or text.
            sample_weight: (n,), >= 0: weight 2 is the same row twice, so that observation i has the noise
                noise/sample_weight_i; rows of weight 0 are left out.

        Returns:
            self.

        Raises:
            TypeError, ValueError: bad data or parameters.
            MemoryError: the (n, n) kernel matrix does not fit.
        """
        with self._fit_whole():
            self._check_settings()
            X, y = self._validate_rows(X, y, sample_weight)
            self._input_groups(X.shape[1])
            weights = preparation.sample_weights(sample_weight, len(X))
            kept = weights > 0
            X, y, weights = X[kept], y[kept], weights[kept]
            weights = self._target_weights(y, weights)
            settings.require_room(self, len(X), self.matrix_count())
            self.inputs_ = self._normalisation(X, weights)
            chosen = None if settings.scaling(self) is None else self._choose_scaled(X, y, weights)
            self._fit_rows(self.inputs_(X), y, weights, chosen)
        validation.sealed(self)
        return self

    def _validate_rows(self, X: Any, y: Any, sample_weight: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return inputs and targets, validated; a table's columns are learned first. Raises: TypeError, ValueError."""
        X = preparation.image_rows(settings.image_of(self.network), X, self.normalize)
        self.encoder_, rows = encoder.learn_rows(X, sample_weight)
        preparation.refuse_rows(rows)
        validated, y = self._validate(rows, y)
        if self.encoder_ is not None and encoder.is_table(X):
            self.n_features_in_, self.feature_names_in_ = self.encoder_.n_features_in_, self.encoder_.feature_names_in_
        return validated, y

    def _normalisation(self, X: np.ndarray, weights: np.ndarray) -> Inputs:
        """Make the normalisation of these training rows."""
        groups = np.arange(X.shape[1]) if self.encoder_ is None else np.array(self.encoder_.input_groups)
        return preparation.normalisation(self.normalize, X, weights, groups, settings.image_of(self.network))

    def _input_groups(self, d: int) -> np.ndarray:
        """Number the d inputs: those of one number share a scale. Raises: TypeError, ValueError."""
        groups = self.input_groups
        if groups is None and self.encoder_ is not None:
            groups = self.encoder_.input_groups
        return preparation.input_groups(groups, d)

    @abc.abstractmethod
    def _validate(self, X: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return rows and targets as arrays, validated by scikit-learn. Raises: TypeError, ValueError."""

    def _target_weights(self, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Return the weights of the rows, which may depend on their targets. Raises: TypeError, ValueError."""
        return weights

    @abc.abstractmethod
    def _targets(self, y: np.ndarray) -> np.ndarray:
        """Return what is fitted by least squares, (n, c)."""

    @abc.abstractmethod
    def _fit_rows(
        self, points: np.ndarray, y: np.ndarray, weights: np.ndarray, chosen: HyperparameterChoice | None
    ) -> None:
        """Fit to rows as the kernel takes them, of weights > 0; with hyper-parameters that are chosen, if they are."""

    @contextmanager
    def _fit_whole(self) -> Iterator[None]:
        """Fit whole or not at all: an error or Ctrl-C on the way leaves the fit that was there."""
        before = dict(vars(self))
        try:
            yield
        except BaseException:
            self.__dict__.clear()
            self.__dict__.update(before)
            raise
        self._fitted_with = self.get_params(deep=False)

    def _check_settings(self) -> None:
        """Refuse parameters that are wrong whatever the data. Raises: TypeError, ValueError."""
        self._own_design().kernel()
        preparation.check_choices(self)
        preparation.refuse_random_state(self.random_state)
        preparation.refuse_noise(self.noise)
        preparation.refuse_time(self.time)
        settings.check_solver(self, linear=self._is_linear_system())
        preparation.input_groups(self.input_groups)
        settings.scaling(self)
        self._check_own_settings()

    @abc.abstractmethod
    def _check_own_settings(self) -> None:
        """Refuse parameters that only some estimators have. Raises: TypeError, ValueError."""

    def _design(self, weight_std: float, bias_std: float) -> Design:
        """Return the network with these scales, as Python's own numbers, which a file gives back unchanged."""
        kind, depth, activation = self._architecture()
        weight_std, bias_std = validation.plain(weight_std), validation.plain(bias_std)
        given = settings.given_network(self)
        moves = settings.invariance(self.invariance, given)
        return Design(kind, validation.plain(depth), activation, weight_std, bias_std, given, moves)

    def _own_design(self) -> Design:
        """Return the network that the parameters describe."""
        return self._design(self.weight_std, self.bias_std)

    @property
    def network_(self) -> Network:
        """Return the network of the fit, with the numbers that were given or chosen."""
        return self._fitted_design().network()

    @property
    def hyperparameters_(self) -> dict[str, float]:
        """Return its numbers by name: weight_std and bias_std, or those of `network`, as "layers[0].weight_std"."""
        return self._fitted_design().values

    def _fitted_design(self) -> Design:
        check_is_fitted(self)
        fitted = vars(self).get("fitted_")
        return self._own_design() if fitted is None else fitted.training.design

    def _architecture(self) -> tuple[Kind, int, Any]:
        """Return kind of kernel, depth and activation."""
        return self._kind, self.depth, self.activation

    def _designs(self) -> list[Design]:
        """Return the networks among which a search with input scales chooses."""
        return [self._own_design()]

    def _choose_scaled(self, X: np.ndarray, y: np.ndarray, weights: np.ndarray) -> HyperparameterChoice | None:
        """Choose hyper-parameters with one scale an input, which the normalisation takes over; None: nothing varies."""
        groups = np.unique(self._input_groups(X.shape[1])[self.inputs_.kept], return_inverse=True)[1]
        if self.input_scales == "auto" and not self._learns_scales(int(groups.max()) + 1):
            return None
        standard, weights = self._search_rows(self.inputs_(X), y, weights)
        columns, names = (X, None) if self.encoder_ is None else encoder.codes(self.encoder_, X)
        leaks.warn(columns, y, standard, names)
        if not standard.any():
            self._set_design(self._designs()[0])
            return None
        data = self._search_data(self.inputs_(X), standard, weights)
        if self.input_scales == "agop":
            chosen = choose_by_gradients(self._designs(), data, groups)
        else:
            how = {"labels": is_classifier(self), "average": self._averages(len(X))}
            chosen = choose_scaled(self._designs(), data, groups, **how)
        assert chosen.input_scales is not None
        self.inputs_ = self.inputs_.rescaled(chosen.input_scales)
        self._set_design(chosen.design)
        return chosen

    def _averages(self, n: int) -> bool:
        """Return True if the networks that a search leaves are averaged, for n rows."""
        return False

    def _learns_scales(self, count: int) -> bool:
        """Return False where so many scales do more harm than good."""
        return True

    def _search_rows(self, points: np.ndarray, y: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return standardised targets, and weights, for a search of the network."""
        return preparation.standardise(self._targets(y), weights)[0], weights

    def _search_data(self, points: np.ndarray, standard: np.ndarray, weights: np.ndarray) -> SearchData:
        """Return standardised targets, for a search of hyper-parameters."""
        return SearchData(points, standard, weights, self._given_noise(), self.hyperparameters, bool(self.verbose))

    def _given_noise(self) -> float | None:
        """Return the noise, or None where it is chosen."""
        return None if isinstance(self.noise, str) else float(self.noise)

    def _set_design(self, design: Design) -> None:
        """Keep what a search chose of the network besides its scales; nothing, if the parameters fix it."""

    def _training(self, design: Design, points: np.ndarray, weights: np.ndarray) -> FittedTraining:
        """Describe the training of this estimator on these rows."""
        ensemble, verbose = self._is_ensemble(), bool(self.verbose)
        solver = settings.solver(self, len(points))
        return FittedTraining(design, points, weights, float(self.time), ensemble, solver, verbose, self.inducing)

    def _fit_targets(
        self, points: np.ndarray, y: np.ndarray, weights: np.ndarray, chosen: HyperparameterChoice | None
    ) -> tuple[Fitted | FittedSparse, np.ndarray]:
        """Fit the targets, which are standardised, and set what undoes that; returns the chosen scales too."""
        standard, self.y_mean_, deviation = preparation.standardise_targets(self._targets(y), weights)
        if chosen is None:
            chosen = choose(self._own_design(), self._search_data(points, standard, weights))
        training = self._training(chosen.design, points, weights)
        given = self._given_scale()
        scale = np.ones(standard.shape[1]) if chosen.scale is None or given else chosen.scale
        scale = scale * (given or 1.0)
        fit = fit_sparse if training.solver == "nystrom" else Fitted
        fitted = fit(training, standard / scale, chosen.noise)
        if given is None and (chosen.scale is None or not training.is_linear_system):
            again = fitted.scale()
            fitted, scale = fitted.rescaled(again), scale * again
        self.y_scale_, self.noise_ = deviation * scale, chosen.noise
        return fitted, scale

    def _given_scale(self) -> float | None:
        """Return the scale of f in standard deviations of the target, if it is given."""
        return None

    def _is_linear_system(self) -> bool:
        """Return True if the fit is one linear system, rather than a flow that takes eigenvectors."""
        return float(self.time) == math.inf and not self._is_ensemble()

    def matrix_count(self) -> float:
        """Count the (n, n) matrices of a fit: one triangle for a linear system; or kernel, eigenvectors, workspace."""
        return 0.5 if self._is_linear_system() else 4

    def _is_ensemble(self) -> bool:
        return isinstance(self, EnsembleParameters) and bool(self.ensemble)

    def _kernel_rows(self, X: Any) -> Float[np.ndarray, "m d"]:
        """Return new rows, validated, as the kernel takes them."""
        check_is_fitted(self)
        points = self.inputs_(self._encoded_rows(X))
        if settings.image_of(self._fitted_with["network"]) is not None:
            preparation.warn_of_other_pixels(points)
        return points

    def _encoded_rows(self, X: Any) -> Float[np.ndarray, "m d"]:
        """Return new rows as the inputs of the model. Raises: TypeError, ValueError."""
        image = settings.image_of(self._fitted_with["network"])
        X = preparation.image_rows(image, X, self._fitted_with["normalize"])
        rows = encoder.new_rows(self.encoder_, X, vars(self).get("feature_names_in_"))
        return preparation.validate_rows(self, X, reset=False) if rows is None else rows

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = referenced(BaseEstimator.__getstate__(self))
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        BaseEstimator.__setstate__(self, resolved(state))

    def save(self, path: Any, *, extra: dict[str, Any] | None = None) -> None:
        """Write this fitted estimator to one file: `wl.save(self, path, extra=extra)`."""
        name = validation.path("path", path)
        check_is_fitted(self)
        model_file.write(name, type(self).__name__, self._stored_parameters(), self._state(), extra)

    def _stored_parameters(self) -> dict[str, Any]:
        return settings.stored_parameters(self._fitted_with)

    def _state(self) -> ModelState:
        """Return the fitted attributes: values for JSON, and arrays."""
        names = getattr(self, "feature_names_in_", None)
        common = ModelState(
            {
                "n_features": self.n_features_in_,
                "feature_names": None if names is None else [str(name) for name in names],
                "sphere": self.inputs_.sphere,
            },
            {"inputs.mean": self.inputs_.mean, "inputs.scale": self.inputs_.scale},
        )
        table = {} if self.encoder_ is None else {"encoder": self.encoder_.document()}
        return common | ModelState(table, {}) | self._architecture_state() | self._function_state()

    def _architecture_state(self) -> ModelState:
        """Return what a file holds of a network that the parameters do not determine."""
        return ModelState({}, {})

    def _restore_architecture(self, state: ModelState) -> None:
        """Set what `_architecture_state` returns."""

    @abc.abstractmethod
    def _function_state(self) -> ModelState:
        """Return the fitted function and what else only this kind of estimator has."""

    def restore(self, state: ModelState) -> None:
        """Set the fitted attributes that a file holds, each checked; `widelimit.load` calls this on a new estimator.

        Raises: one of model_state.INVALID.
        """
        self._fitted_with = self.get_params(deep=False)
        self._check_settings()
        d = self.n_features_in_ = validation.integer("n_features", state.values["n_features"], at_least=1)
        if state.values["feature_names"] is not None:
            self.feature_names_in_ = model_state.names(state.values["feature_names"], d)
        self.encoder_ = None
        if "encoder" in state.values:
            self.encoder_ = TableEncoder().restore(state.values["encoder"])
            d = len(self.encoder_.input_groups)
        self.inputs_ = model_state.inputs(self.normalize, state, d)
        self._input_groups(d)  # after the arrays are known to have d columns: a forged d would take all memory
        self._restore_architecture(state)
        self._restore_function(state)
        kept = self._state()
        if kept.values != state.values or set(kept.arrays) != set(state.arrays):
            raise ValueError("other fields than a model has")

    @abc.abstractmethod
    def _restore_function(self, state: ModelState) -> None:
        """Set the fitted function and what else only this kind of estimator has."""

    def _targets_state(self, fitted: FittedGaussian | FittedAverage) -> ModelState:
        """Return a function of standardised targets, and what undoes their standardisation."""
        return fitted.state() | ModelState({}, {"y_mean": self.y_mean_, "y_scale": self.y_scale_})

    def _restore_targets(self, state: ModelState) -> Fitted | FittedSparse:
        """Restore what `_targets_state` returns."""
        n, c = model_state.shape(state)
        training = self._restore_training(state, n)
        noise = float(validation.finite_scalar("noise", state.values["noise"], at_least=0.0))
        if self.input_scales is None and self.noise not in ("auto", noise):
            raise ValueError("another noise than was given")
        self.y_mean_, self.y_scale_ = state.array("y_mean", c), state.positive("y_scale", c)
        self.noise_ = noise
        sparse = state.values["fitted"] == FittedSparse.__name__
        if sparse != (self.solver == "nystrom") and self.solver != "auto":
            raise ValueError("another solver than was given")
        if sparse:
            return restore_sparse(state, replace(training, solver="nystrom"), noise, n, c)
        return Fitted(training, state.array("y", n, c), noise, state.array("coefficients", n, c))

    def _restore_training(self, state: ModelState, n: int, family: Sequence[Any] | None = None) -> FittedTraining:
        """Restore network and rows; of another family (kernel, depth, activation) than the estimator's, if given."""
        chosen = state.values["design"]
        design = own = self._own_design()
        if own.given is None:
            design = self._design(chosen["weight_std"], chosen["bias_std"])
        else:
            design = replace(own, given=read_network(chosen["network"]))
            settings.require_same_tree(design.network(), own.given)
        if family is not None:
            design = replace(design, kind=family[0], depth=family[1], activation=family[2])
        design.kernel()
        if self.hyperparameters == "fixed" and self.input_scales is None and chosen != own.document():
            raise ValueError("another network than was given")
        X = state.array("X", n, int(self.inputs_.kept.sum()))
        with np.errstate(over="ignore"):
            if not np.isfinite((X**2).sum()):
                raise ValueError("X is too large for any kernel")
        return self._training(design, X, state.positive("weights", n))
