"""Fitted estimators are saved in one file that holds numbers and text only: nothing in it is ever executed."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import numpy as np

from widelimit import validation
from widelimit.activations.names import BY_NAME
from widelimit.estimators import model_file, model_state
from widelimit.estimators.base import KernelEstimator
from widelimit.estimators.classifiers import NNGPClassifier, NTKClassifier
from widelimit.estimators.files import ForeignFileError
from widelimit.estimators.model_state import ModelState
from widelimit.estimators.parameters import LATER
from widelimit.estimators.regressors import NNGPRegressor, NTKRegressor
from widelimit.estimators.wide import WideClassifier, WideRegressor

CLASSES = (NNGPRegressor, NTKRegressor, NNGPClassifier, NTKClassifier, WideRegressor, WideClassifier)
ESTIMATORS: dict[str, type[KernelEstimator]] = {cls.__name__: cls for cls in CLASSES}


class StoredModel(NamedTuple):
    """A file contains a fitted model and the caller's addition."""

    model: KernelEstimator
    extra: dict[str, Any]


def save(model: KernelEstimator, path: str | os.PathLike[str], *, extra: dict[str, Any] | None = None) -> None:
    """Write a fitted estimator to one .npz file: arrays and a JSON header, no pickled objects; whole or not at all.

    The header holds the format's version, the library's, the class, every parameter, feature names, classes, and a
    SHA-256 of it all. The factorisation is not stored (it would take n^2 numbers); `load` makes it again when a
    standard deviation or a probability is asked for.

    Args:
        model: a fitted regressor or classifier of this library, one of ESTIMATORS.
        path: the file; overwritten if it exists.
        extra: anything of yours that JSON can hold, e.g. a description of the table; `read` returns it.

    Raises:
        TypeError: another object; an activation that is no name, or a network that is no text (a function cannot be
            stored without executing code on load); labels that are neither text nor numbers.
        sklearn.exceptions.NotFittedError: not fitted yet.
        OSError: the file cannot be written.
    """
    if type(model).__name__ not in ESTIMATORS or not isinstance(model, KernelEstimator):
        raise TypeError(f"save takes {', '.join(ESTIMATORS)} as model; got {validation.shown(model)}.")
    model.save(path, extra=extra)


def load(path: str | os.PathLike[str]) -> KernelEstimator:
    """Load the estimator that `save` wrote; it predicts the same bits. Everything is validated, nothing executed.

    Raises:
        TypeError: path is no path.
        ValueError: no such file of this library, with what it is: truncated, edited, foreign, a folder, of a newer
            format, with a pickle inside.
        FileNotFoundError, PermissionError: the file cannot be opened.
        MemoryError: no room for what it holds.
    """
    return read(path).model


def read(path: str | os.PathLike[str]) -> StoredModel:
    """Read (model, extra) of a file written by `save`. Raises: as `load`."""
    name = validation.path("path", path)
    try:
        header, arrays = model_file.contents(name)
        model = restore_model(header, arrays)
        extra = header["extra"]
        if not isinstance(extra, dict):
            raise TypeError("extra is not an object")
    except ForeignFileError as error:
        raise ValueError(str(error)) from None
    except model_state.INVALID as error:
        cause = f"{type(error).__name__}: {error}"[:200]
        raise ValueError(f"{name}: the file was damaged or edited: {cause}. Save the model again.") from None
    return StoredModel(model, extra)


def restore_model(header: dict[str, Any], arrays: dict[str, np.ndarray]) -> KernelEstimator:
    """Restore the fitted estimator of a header and arrays. Raises: one of model_state.INVALID."""
    cls, parameters = ESTIMATORS[header["class"]], header["parameters"]
    known = cls().get_params(deep=False)
    if not set(known) - set(LATER) <= set(parameters) <= set(known):
        raise ValueError("other parameters than the class has")
    if "input_scales" not in parameters:
        parameters = {"input_scales": None, **parameters}  # of 0.1.0, which learned none
    if parameters.get("likelihood", "dirichlet") != "dirichlet":  # an older version took one that did nothing
        parameters = {**parameters, "alpha_epsilon": known["alpha_epsilon"]}
    if "output_scale" in set(known) - set(parameters):
        scale = "auto" if parameters["noise"] == "auto" or parameters.get("input_scales") else 1.0
        parameters = {"output_scale": scale, **parameters}
    model = cls(**{key: model_state.parameter(value) for key, value in parameters.items()})
    if not isinstance(parameters["activation"], str) or parameters["activation"] not in {*BY_NAME, "auto"}:
        raise ValueError("activation is no name")
    model.restore(ModelState(header["state"], arrays))
    return model
