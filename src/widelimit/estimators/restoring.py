"""Fitted estimators are restored from a file's fields: each is checked, most by the code that checks arguments."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from widelimit import validation
from widelimit.activations.names import BY_NAME
from widelimit.estimators.base import KernelEstimator
from widelimit.estimators.classifiers import KernelClassifier, NNGPClassifier, NTKClassifier
from widelimit.estimators.fitted_classes import FittedClasses
from widelimit.estimators.networks import Fitted, FittedTraining
from widelimit.estimators.preparation import Inputs
from widelimit.estimators.regressors import KernelRegressor, NNGPRegressor, NTKRegressor

ESTIMATORS: dict[str, type[KernelEstimator]] = {
    cls.__name__: cls for cls in (NNGPRegressor, NTKRegressor, NNGPClassifier, NTKClassifier)
}
LABELS = re.compile(r"[<>|=][fiub][1248]|[<>=]U[0-9]{1,7}")
"""Dtypes of class labels."""
MOST_LABELS = 2**26
"""Bytes of class labels."""
INVALID = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError)
"""What a field of another type or size ends in."""
COMMON = {"n_features", "feature_names", "sphere", "fitted"}
FITTED = {"design", "noise"}, {"inputs.mean", "inputs.scale", "X", "weights", "coefficients", "y", "y_mean", "y_scale"}
"""Fields and arrays of a `Fitted`, beside the common ones."""
CLASSES = (
    {"design", "scale", "alpha_epsilon"},
    {"inputs.mean", "inputs.scale", "X", "weights", "coefficients", "labels"},
)
"""The same of `FittedClasses`."""
NOTHING: tuple[set[str], set[str]] = set(), {"inputs.mean", "inputs.scale"}
"""The same of a classifier that has seen one class."""


def restored(header: dict[str, Any], arrays: dict[str, np.ndarray]) -> KernelEstimator:
    """Restore the fitted estimator of a header and arrays.

    Raises: one of INVALID.
    """
    model, state = _constructed(header), header["state"]
    model._fitted_with = model.get_params(deep=False)
    model._check_settings()
    d = model.n_features_in_ = validation.integer("n_features", state["n_features"], at_least=1)
    if state["feature_names"] is not None:
        model.feature_names_in_ = _names(state["feature_names"], d)
    model.inputs_ = _inputs(model, _flag(state, "sphere"), arrays, d)
    if isinstance(model, KernelClassifier):
        model.classes_ = _classes(state["classes"])
    model.fitted_ = _function(model, state, arrays)
    _refuse_other_fields(model, state, arrays)
    if isinstance(model, KernelRegressor):
        _restore_regressor(model, state)
    return model


def _constructed(header: dict[str, Any]) -> KernelEstimator:
    cls, parameters = ESTIMATORS[header["class"]], header["parameters"]
    if set(parameters) != set(cls._get_param_names()):
        raise ValueError("other parameters than the class has")
    if not isinstance(parameters["activation"], str) or parameters["activation"] not in BY_NAME:
        raise ValueError("activation is no name")
    return cls(**{key: _number(value) for key, value in parameters.items()})


def _number(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if value != {"float": "inf"}:
        raise ValueError("a parameter that is no number")
    return np.inf


def _flag(state: dict[str, Any], key: str) -> bool:
    value = state[key]
    if not isinstance(value, bool):
        raise TypeError(f"{key} is neither true nor false")
    return value


def _names(names: Any, d: int) -> np.ndarray:
    if not isinstance(names, list) or len(names) != d or not all(isinstance(name, str) for name in names):
        raise ValueError(f"feature_names is not {d} texts")
    return np.array(names, dtype=object)


def _array(arrays: dict[str, np.ndarray], key: str, *shape: int) -> np.ndarray:
    array = arrays[key]
    if array.shape != shape or array.dtype != np.float64 or not np.isfinite(array).all():
        raise ValueError(f"{key} is not {shape} finite numbers")
    return array


def _positive(arrays: dict[str, np.ndarray], key: str, *shape: int) -> np.ndarray:
    array = _array(arrays, key, *shape)
    if not (array > 0).all():
        raise ValueError(f"{key} has entries that are not > 0")
    return array


def _inputs(model: KernelEstimator, sphere: bool, arrays: dict[str, np.ndarray], d: int) -> Inputs:
    mean, scale = _array(arrays, "inputs.mean", d), _positive(arrays, "inputs.scale", d)
    if sphere != (model.normalize == "sphere") or (model.normalize is None and (mean.any() or (scale != 1).any())):
        raise ValueError("inputs that are normalised in another way than normalize says")
    return Inputs(mean, scale, sphere)


def _classes(kept: dict[str, Any]) -> np.ndarray:
    """Return the labels, of the type that they had."""
    name, values = kept["dtype"], kept["values"]
    if set(kept) != {"dtype", "values"} or not isinstance(values, list) or not values:
        raise ValueError("classes are no list of labels")
    if not all(isinstance(value, (str, bool, int, float)) for value in values):
        raise TypeError("classes are neither text nor numbers")
    if name != "object" and not (LABELS.fullmatch(name) and np.dtype(name).itemsize * len(values) <= MOST_LABELS):
        raise ValueError("labels of a type that no model has")
    classes = np.array(values, dtype=object if name == "object" else name)
    if classes.tolist() != values or not np.array_equal(np.unique(classes), classes):
        raise ValueError("classes are not sorted labels of their type")
    return classes


def _function(model: KernelEstimator, state: dict[str, Any], arrays: dict[str, np.ndarray]) -> Any:
    """Restore the fitted function, of the kind that this class has with these parameters."""
    kind = state["fitted"]
    if isinstance(model, KernelClassifier) and len(model.classes_) == 1:
        if kind is not None:
            raise ValueError("a fit that tells nothing from nothing")
        return None
    likelihood = model.likelihood if isinstance(model, KernelClassifier) else "none"
    if kind != ("FittedClasses" if likelihood == "dirichlet" else "Fitted"):
        raise ValueError("another kind of fit than this class has")
    n, c = arrays["coefficients"].shape
    if n < 1 or c < 1 or (isinstance(model, KernelClassifier) and c != len(model.classes_)):
        raise ValueError("another number of outputs than classes")
    training = _training(model, state, arrays, n)
    coefficients = _array(arrays, "coefficients", n, c)
    if likelihood == "dirichlet":
        return _of_classes(model, training, coefficients, state, arrays["labels"])
    noise = float(validation.finite_scalar("noise", state["noise"], at_least=0.0))
    if model.noise not in ("auto", noise):
        raise ValueError("another noise than was given")
    model.y_mean_, model.y_scale_ = _array(arrays, "y_mean", c), _positive(arrays, "y_scale", c)
    model.noise_ = noise
    return Fitted(training, _array(arrays, "y", n, c), noise, coefficients)


def _training(model: KernelEstimator, state: dict[str, Any], arrays: dict[str, np.ndarray], n: int) -> FittedTraining:
    chosen = state["design"]
    if set(chosen) != {"weight_std", "bias_std"}:
        raise ValueError("other fields of design than a model has")
    design = model._design(chosen["weight_std"], chosen["bias_std"])
    design.network()
    given = {"weight_std": float(model.weight_std), "bias_std": float(model.bias_std)}
    if model.hyperparameters == "fixed" and chosen != given:
        raise ValueError("another network than was given")
    X = _array(arrays, "X", n, model.n_features_in_)
    with np.errstate(over="ignore"):
        if not np.isfinite((X**2).sum()):
            raise ValueError("X is too large for any kernel")
    return model._training(design, X, _positive(arrays, "weights", n))


def _of_classes(
    model: Any, training: FittedTraining, coefficients: np.ndarray, state: dict[str, Any], labels: np.ndarray
) -> FittedClasses:
    n, c = coefficients.shape
    if labels.shape != (n,) or labels.dtype != np.int64 or labels.min() < 0 or labels.max() >= c:
        raise ValueError("labels out of range")
    if not np.bincount(labels, minlength=c).all():
        raise ValueError("a class without a row")
    scale = float(validation.deviation("scale", state["scale"]))
    if state["alpha_epsilon"] != model.alpha_epsilon:
        raise ValueError("another alpha_epsilon than was given")
    return FittedClasses(training, labels, scale, c, float(model.alpha_epsilon), coefficients)


def _refuse_other_fields(model: KernelEstimator, state: dict[str, Any], arrays: Iterable[str]) -> None:
    kinds = {"Fitted": FITTED, "FittedClasses": CLASSES, None: NOTHING}
    fields, parts = kinds[state["fitted"]]
    own = {"single", "log_marginal_likelihood"} if isinstance(model, KernelRegressor) else {"classes"}
    if set(state) != COMMON | fields | own or set(arrays) != parts:
        raise ValueError("other fields than a model has")


def _restore_regressor(model: KernelRegressor, state: dict[str, Any]) -> None:
    fitted, value = model.fitted_, state["log_marginal_likelihood"]
    model._single = _flag(state, "single")
    if model._single and fitted.y.shape[1] > 1:
        raise ValueError("a single output of several")
    if value is not None:
        if not model._solved():
            raise ValueError("a marginal likelihood of what is no Bayesian posterior")
        value = float(validation.finite_scalar("log_marginal_likelihood", value))
    model.log_marginal_likelihood_value_ = value
    model.X_train_, model.y_train_ = fitted.training.X, fitted.y
    model.weight_std_, model.bias_std_ = fitted.training.design.weight_std, fitted.training.design.bias_std
