"""Fitted estimators are saved in one file that holds numbers and text only: nothing in it is ever executed."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from sklearn.utils.validation import check_is_fitted

from widelimit import validation
from widelimit.activations.names import BY_NAME
from widelimit.estimators import files
from widelimit.estimators.base import KernelEstimator
from widelimit.estimators.classifiers import KernelClassifier
from widelimit.estimators.fitted_classes import FittedClasses
from widelimit.estimators.regressors import KernelRegressor
from widelimit.estimators.restoring import ESTIMATORS, INVALID, restored
from widelimit.fingerprints import sha256
from widelimit.version import __version__
from widelimit.writing import atomic_write

FORMAT = 1
"""The version of the file grows when an older library would misread a newer file."""
MAGIC = "widelimit.model"
HEADER = "header"
FIELDS = {"magic", "format", "widelimit", "class", "parameters", "state", "arrays", "extra", "checksum"}
"""The header has these fields."""


class StoredModel(NamedTuple):
    """The object holds what a file contains."""

    model: KernelEstimator
    extra: dict[str, Any]


def save(model: KernelEstimator, path: str | os.PathLike[str], *, extra: dict[str, Any] | None = None) -> None:
    """Write a fitted estimator to one .npz file: arrays and a JSON header, no pickled objects; whole or not at all.

    The header holds the format's version, the library's, the class, every parameter, feature names, classes, and a
    SHA-256 of it all. The factorisation is not stored (it would take n^2 numbers); `load` makes it again when a
    standard deviation or a probability is asked for.

    Args:
        model: a fitted NNGPRegressor, NTKRegressor, NNGPClassifier or NTKClassifier.
        path: the file; overwritten if it exists.
        extra: anything of yours that JSON can hold, e.g. a description of the table; `read` returns it.

    Raises:
        TypeError: another object; an activation that is no name (a function cannot be stored without executing code
            on load); labels that are neither text nor numbers.
        sklearn.exceptions.NotFittedError: not fitted yet.
        OSError: the file cannot be written.
    """
    if type(model).__name__ not in ESTIMATORS or not isinstance(model, KernelEstimator):
        raise TypeError(f"save takes {', '.join(ESTIMATORS)} as model; got {validation.shown(model)}.")
    validation.path("path", path)
    check_is_fitted(model)
    arrays, state = _state(model)
    header = {
        "magic": MAGIC,
        "format": FORMAT,
        "widelimit": __version__,
        "class": type(model).__name__,
        "parameters": _parameters(model),
        "state": state,
        "arrays": {name: [array.dtype.str, list(array.shape)] for name, array in arrays.items()},
        "extra": _extra(extra),
    }
    header = json.loads(json.dumps(header))  # as it will be read: tuples are lists, keys text
    text = json.dumps(header | {"checksum": _checksum(header, arrays)})
    with atomic_write(validation.path("path", path)) as stream:
        np.savez(stream, **{HEADER: np.frombuffer(text.encode(), np.uint8)}, **arrays)  # type: ignore[arg-type]


def _extra(extra: Any) -> Any:
    """Return the caller's addition as it will be read. Raises: TypeError: JSON cannot hold it."""
    if extra is not None and not isinstance(extra, dict):
        raise TypeError(f"extra must be a dictionary, or None; got {validation.shown(extra)}.")
    try:
        return json.loads(json.dumps(extra or {}))
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(f"extra must be of what JSON can hold: {str(error)[:200]}.") from None


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
        header, arrays = _contents(name)
        model = restored(header, arrays)
        extra = header["extra"]
        if not isinstance(extra, dict):
            raise TypeError("extra is not an object")
    except _Refused as error:
        raise ValueError(str(error)) from None
    except INVALID as error:
        cause = f"{type(error).__name__}: {error}"[:200]
        raise ValueError(f"{name}: the file was damaged or edited: {cause}. Save the model again.") from None
    return StoredModel(model, extra)


class _Refused(Exception):
    """The error refuses a file, in the words that the user sees."""


def _contents(name: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read header and arrays, checked against each other."""
    foreign = f"{name}: this is not a model saved by widelimit (wl.save, or widelimit fit)"
    try:
        arrays = files.arrays(name, HEADER)
    except ValueError as error:
        raise _Refused(str(error)) from None
    try:
        header = json.loads(bytes(arrays.pop(HEADER).astype(np.uint8, casting="safe")).decode())
    except INVALID as error:
        raise _Refused(f"{foreign}: {str(error)[:120]}.") from None
    if not isinstance(header, dict) or header.get("magic") != MAGIC:
        raise _Refused(f"{foreign}, but a NumPy archive of another program.")
    if header.get("format") != FORMAT:
        raise _Refused(
            f"{name}: the file has format {validation.shown(header.get('format'))}, written by widelimit "
            f"{validation.shown(header.get('widelimit'))}; this is widelimit {__version__}, which reads "
            f"format {FORMAT}. Upgrade widelimit."
        )
    described = {key: [array.dtype.str, list(array.shape)] for key, array in arrays.items()}
    if described != header.get("arrays") or _checksum(header, arrays) != header.get("checksum"):
        raise _Refused(f"{name}: the checksum does not match: the file was damaged or edited. Save the model again.")
    if set(header) != FIELDS or not isinstance(header["widelimit"], str):
        raise ValueError("other fields than a model has")
    return header, arrays


def _checksum(header: dict[str, Any], arrays: dict[str, np.ndarray]) -> str:
    """Compute SHA-256 over the rest of the header and over names, dtypes, shapes and bytes of the arrays."""
    rest = {key: value for key, value in header.items() if key != "checksum"}
    parts: list[str | bytes] = [json.dumps(rest, sort_keys=True)]
    for key in sorted(arrays):
        array = np.ascontiguousarray(arrays[key])
        parts += [f"{key}:{array.dtype.str}:{array.shape};", array.tobytes()]
    return sha256(*parts)


def _parameters(model: KernelEstimator) -> dict[str, Any]:
    parameters = model._fitted_with | {"verbose": bool(model.verbose)}  # how to report is no part of a fit
    if not isinstance(parameters["activation"], str):
        raise TypeError(
            f"a model with the activation {parameters['activation']!r} cannot be saved: only names can be stored "
            f"without executing code on load. Fit with a name ({', '.join(sorted(BY_NAME))})."
        )
    state = validation.plain(parameters.pop("random_state"))
    parameters["random_state"] = int(state) if isinstance(state, int) else None
    return {key: _plain(value) for key, value in parameters.items()}


def _plain(value: Any) -> Any:
    """A parameter as JSON has it; an infinite number as text."""
    value = bool(value) if isinstance(value, np.bool_) else validation.plain(value)
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    return value


def _state(model: KernelEstimator) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return fitted attributes as arrays, and the others for JSON."""
    fitted = model.fitted_
    arrays = {"inputs.mean": model.inputs_.mean, "inputs.scale": model.inputs_.scale}
    names = getattr(model, "feature_names_in_", None)
    state: dict[str, Any] = {
        "n_features": model.n_features_in_,
        "feature_names": None if names is None else [str(n) for n in names],
        "sphere": model.inputs_.sphere,
        "fitted": None if fitted is None else type(fitted).__name__,
    }
    if fitted is not None:
        training = fitted.training
        design = training.design
        state["design"] = {"weight_std": design.weight_std, "bias_std": design.bias_std}
        arrays |= {"X": training.X, "weights": training.weights, "coefficients": fitted.coefficients}
        if isinstance(fitted, FittedClasses):
            arrays |= {"labels": fitted.labels.astype(np.int64)}
            state |= {"scale": fitted.scale, "alpha_epsilon": fitted.alpha_epsilon}
        else:
            arrays |= {"y": fitted.y, "y_mean": model.y_mean_, "y_scale": model.y_scale_}
            state["noise"] = fitted.noise
    if isinstance(model, KernelRegressor):
        state |= {"single": model._single, "log_marginal_likelihood": model.log_marginal_likelihood_value_}
    if isinstance(model, KernelClassifier):
        state["classes"] = _classes(model.classes_)
    return {key: np.ascontiguousarray(value) for key, value in arrays.items()}, state


def _classes(classes: np.ndarray) -> dict[str, Any]:
    values = classes.tolist()
    if not all(isinstance(v, (str, bool, int, float)) for v in values):
        raise TypeError("labels must be text or numbers for a model to be saved.")
    return {"dtype": "object" if classes.dtype.kind == "O" else classes.dtype.str, "values": values}
