"""Fitted estimators in one file that holds numbers and text only: nothing in it is ever executed."""

from __future__ import annotations

import hashlib
import json
import math
import os
import zipfile
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from sklearn.utils.validation import check_is_fitted

from widelimit.activations.names import BY_NAME
from widelimit.estimators.base import WideEstimator
from widelimit.estimators.classifiers import NNGPClassifier, NTKClassifier, WideClassifier
from widelimit.estimators.fitted_classes import FittedClasses
from widelimit.estimators.networks import Design, Fitted
from widelimit.estimators.preparation import Inputs
from widelimit.estimators.regressors import NNGPRegressor, NTKRegressor, WideRegressor

FORMAT = 1
"""Of the file. Grows when an older library would misread a newer file."""
MAGIC = "widelimit.model"
HEADER = "header"
ESTIMATORS: dict[str, type[WideEstimator]] = {
    cls.__name__: cls for cls in (NNGPRegressor, NTKRegressor, NNGPClassifier, NTKClassifier)
}
KINDS = "fiub"
"""Kinds of NumPy's dtypes in a file: numbers."""


class Stored(NamedTuple):
    """What a file holds."""

    model: WideEstimator
    extra: dict[str, Any]


def save(model: WideEstimator, path: str | os.PathLike[str], *, extra: dict[str, Any] | None = None) -> None:
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
    if type(model).__name__ not in ESTIMATORS or not isinstance(model, WideEstimator):
        raise TypeError(f"save takes {', '.join(ESTIMATORS)}; got {type(model).__name__}.")
    check_is_fitted(model)
    arrays, state = _state(model)
    header = {
        "magic": MAGIC,
        "format": FORMAT,
        "widelimit": version("widelimit"),
        "class": type(model).__name__,
        "parameters": _parameters(model),
        "state": state,
        "arrays": {name: [array.dtype.str, list(array.shape)] for name, array in arrays.items()},
        "extra": extra or {},
    }
    try:
        header = json.loads(json.dumps(header))  # as it will be read: tuples are lists, keys text
        text = json.dumps(header | {"checksum": _checksum(header, arrays)})
    except TypeError as error:
        raise TypeError(f"extra must be of what JSON can hold: {error}.") from None
    target = Path(path).resolve()
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as stream:
            np.savez(stream, **{HEADER: np.frombuffer(text.encode(), np.uint8)}, **arrays)  # type: ignore[arg-type]
        temporary.replace(target)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def load(path: str | os.PathLike[str]) -> WideEstimator:
    """The estimator that `save` wrote; it predicts the same bits. Everything is validated, nothing executed.

    Raises:
        ValueError: no such file of this library: truncated, edited, foreign, of a newer format, with a pickle inside.
        OSError: the file cannot be read.
    """
    return read(path).model


def read(path: str | os.PathLike[str]) -> Stored:
    """(model, extra) of a file written by `save`. Raises: as `load`."""
    name = Path(path)
    header, arrays = _contents(name)
    try:
        model = _estimator(header)
        _restore(model, header["state"], arrays)
        extra = header["extra"]
        if not isinstance(extra, dict):
            raise TypeError("extra is not an object")
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ValueError(f"{name}: the file was damaged or edited: {error!r}. Save the model again.") from None
    return Stored(model, extra)


def _contents(name: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Header and arrays, checked against each other."""
    foreign = f"{name}: this is not a model saved by widelimit (wl.save, or widelimit fit)"
    try:
        with name.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile) or HEADER not in archive.files:
                raise ValueError(f"{foreign}.")
            header = json.loads(bytes(archive[HEADER].astype(np.uint8, casting="safe")).decode())
            if not isinstance(header, dict) or header.get("magic") != MAGIC:
                raise ValueError(f"{foreign}.")
            if header.get("format") != FORMAT:
                raise ValueError(
                    f"{name}: the file has format {header.get('format')!r}, written by widelimit "
                    f"{header.get('widelimit')!r}; this is widelimit {version('widelimit')}, which reads format "
                    f"{FORMAT}. Upgrade widelimit."
                )
            arrays = {key: archive[key] for key in archive.files if key != HEADER}
    except (zipfile.BadZipFile, EOFError, zipfile.LargeZipFile) as error:
        raise ValueError(f"{name}: the file is truncated or damaged ({error}). Copy or save it again.") from None
    except (UnicodeDecodeError, json.JSONDecodeError, TypeError, MemoryError, NotImplementedError) as error:
        raise ValueError(f"{foreign}: {error}.") from None
    except ValueError as error:
        if str(error).startswith(str(name)):
            raise
        cause = "it holds pickled objects, which could run code" if "pickle" in str(error) else str(error)
        raise ValueError(f"{foreign}: {cause}. Nothing was loaded.") from None
    described = {key: [array.dtype.str, list(array.shape)] for key, array in arrays.items()}
    if described != header.get("arrays") or _checksum(header, arrays) != header.get("checksum"):
        raise ValueError(f"{name}: the checksum does not match: the file was damaged or edited. Save the model again.")
    return header, arrays


def _checksum(header: dict[str, Any], arrays: dict[str, np.ndarray]) -> str:
    """SHA-256 over the rest of the header and over names, dtypes, shapes and bytes of the arrays."""
    rest = {key: value for key, value in header.items() if key != "checksum"}
    digest = hashlib.sha256(json.dumps(rest, sort_keys=True).encode())
    for key in sorted(arrays):
        array = np.ascontiguousarray(arrays[key])
        digest.update(f"{key}:{array.dtype.str}:{array.shape};".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _parameters(model: WideEstimator) -> dict[str, Any]:
    parameters = dict(model._fitted_with)
    if not isinstance(parameters["activation"], str):
        raise TypeError(
            f"a model with the activation {parameters['activation']!r} cannot be saved: only names can be stored "
            f"without executing code on load. Fit with a name ({', '.join(sorted(BY_NAME))})."
        )
    state = parameters.pop("random_state")
    parameters["random_state"] = int(state) if isinstance(state, (int, np.integer)) else None
    return {key: _plain(value) for key, value in parameters.items()}


def _plain(value: Any) -> Any:
    """A parameter as JSON has it; an infinite number as text."""
    if isinstance(value, (np.bool_, bool)):
        return bool(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else {"float": repr(float(value))}
    return value


def _number(value: Any) -> Any:
    return float(value["float"]) if isinstance(value, dict) else value


def _state(model: WideEstimator) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Fitted attributes as arrays, and what JSON holds of them."""
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
    if isinstance(model, WideRegressor):
        state |= {"single": model._single, "log_marginal_likelihood": model.log_marginal_likelihood_value_}
    if isinstance(model, WideClassifier):
        state["classes"] = _classes(model.classes_)
    return {key: np.ascontiguousarray(value) for key, value in arrays.items()}, state


def _classes(classes: np.ndarray) -> dict[str, Any]:
    values = classes.tolist()
    if not all(isinstance(v, (str, bool, int, float)) for v in values):
        raise TypeError("labels must be text or numbers for a model to be saved.")
    return {"dtype": "object" if classes.dtype.kind == "O" else classes.dtype.str, "values": values}


def _estimator(header: dict[str, Any]) -> WideEstimator:
    parameters = {key: _number(value) for key, value in header["parameters"].items()}
    return ESTIMATORS[header["class"]](**parameters)


def _restore(model: WideEstimator, state: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Fitted attributes from a file, each of the type and shape that fitting gives."""
    model._check_settings()
    model._fitted_with = model.get_params(deep=False)
    d = int(state["n_features"])
    model.n_features_in_ = d
    if state["feature_names"] is not None:
        model.feature_names_in_ = np.array([str(n) for n in state["feature_names"]], dtype=object)
    model.inputs_ = Inputs(_array(arrays, "inputs.mean", d), _array(arrays, "inputs.scale", d), bool(state["sphere"]))
    if isinstance(model, WideClassifier):
        kept = state["classes"]
        if kept["dtype"] != "object" and np.dtype(kept["dtype"]).kind not in KINDS + "U":
            raise ValueError("labels of a type that no model has")
        model.classes_ = np.array(kept["values"], dtype=object if kept["dtype"] == "object" else kept["dtype"])
    if state["fitted"] is None:
        model.fitted_ = None
        return
    n, c = arrays["coefficients"].shape
    design = model._design(float(state["design"]["weight_std"]), float(state["design"]["bias_std"]))
    model.fitted_ = _fitted(model, design, state, arrays, (n, c, d))
    if isinstance(model.fitted_, Fitted):
        model.y_mean_, model.y_scale_ = _array(arrays, "y_mean", c), _array(arrays, "y_scale", c)
        model.noise_ = model.fitted_.noise
    if isinstance(model, WideRegressor):
        model._single = bool(state["single"])
        value = state["log_marginal_likelihood"]
        model.log_marginal_likelihood_value_ = None if value is None else float(value)
        model.X_train_, model.y_train_ = model.fitted_.training.X, model.fitted_.y
        model.weight_std_, model.bias_std_ = design.weight_std, design.bias_std


def _fitted(
    model: WideEstimator, design: Design, state: dict[str, Any], arrays: dict[str, np.ndarray], sizes: tuple[int, ...]
) -> Fitted | FittedClasses:
    n, c, d = sizes
    training = model._training(design, _array(arrays, "X", n, d), _array(arrays, "weights", n))
    coefficients = _array(arrays, "coefficients", n, c)
    if state["fitted"] == "FittedClasses":
        labels = arrays["labels"]
        if labels.shape != (n,) or labels.dtype != np.int64 or labels.min() < 0 or labels.max() >= c:
            raise ValueError("labels out of range")
        scale, alpha = float(state["scale"]), float(state["alpha_epsilon"])
        return FittedClasses(training, labels, scale, c, alpha, coefficients)
    if state["fitted"] != "Fitted":
        raise ValueError("an unknown kind of fit")
    y, noise = _array(arrays, "y", n, c), float(state["noise"])
    return Fitted(training, y, noise, coefficients)


def _array(arrays: dict[str, np.ndarray], key: str, *shape: int) -> np.ndarray:
    array = arrays[key]
    if array.shape != shape or array.dtype != np.float64 or not np.isfinite(array).all():
        raise ValueError(f"{key} is not {shape} finite numbers")
    return array
