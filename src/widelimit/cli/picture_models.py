"""Models of pictures: `fit` and `predict` serve the commands of these names, `candidates` serves `benchmark`."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

import widelimit as wl
from widelimit.architecture.inputs import Image
from widelimit.cli import baselines, models, pictures, targets, terminal, training_data
from widelimit.cli.comparison import MATRICES, Candidates, SplitData, splits
from widelimit.cli.files import given_network
from widelimit.cli.options import TableChoices
from widelimit.cli.pictures import Pictures
from widelimit.cli.schema import Schema
from widelimit.cli.training_data import TargetTable
from widelimit.estimators.classifiers import KernelClassifier
from widelimit.estimators.persistence import StoredModel
from widelimit.estimators.preparation import image_normalisation
from widelimit.estimators.settings import image_of

BUILDERS: dict[str, Any] = {
    "convnet": wl.convnet,
    "resnet": wl.resnet,
    "myrtle5": lambda **given: wl.myrtle(5, **given),
    "myrtle7": lambda **given: wl.myrtle(7, **given),
    "myrtle10": lambda **given: wl.myrtle(10, **given),
}
NUMBERS = ("depth", "activation", "weight_std", "bias_std")
USUAL = {"depth": 3, "bias_std": 0.1}
FULLY_CONNECTED = {"depth": 3, "activation": "relu", "weight_std": math.sqrt(2), "bias_std": 0.1}


def _training_data(path: Path, choices: TableChoices) -> tuple[Pictures, TargetTable]:
    """Read pictures with labels, drawn as the choices say. Raises: ValueError: options of tables; no labels."""
    if option := choices.of_columns():
        raise ValueError(f"{option} is for the columns of tables, and {path.name} holds images; leave it out.")
    data = pictures.read(path, choices.target)
    if data.target is None:
        raise ValueError(
            f"{path}: has no labels. A folder has a subfolder for each class; a .npz file has an array y or y_train "
            f"beside X, or another that --target names; labels of a .npy file are another one, --target labels.npy."
        )
    named = choices.target if path.suffix.lower() == ".npz" else ""
    name = "class" if path.is_dir() else named or "y"
    labels, decide = pl.Series(name, data.target), partial(decide_task, path)
    rows, table, notes = training_data.labelled(path, labels, choices, decide, "image")
    return Pictures(path, data.images[rows], table.target, data.names, data.notes + notes), table


def decide_task(path: Path, target: pl.Series) -> tuple[str, str]:
    """Decide between classification and regression, and say why; integers that most images share are classes."""
    if path.is_dir():
        return "classification", "the folder has a subfolder for each class"
    if target.dtype.is_integer() and 2 * target.n_unique() <= len(target):
        return "classification", f"{target.name} has {target.n_unique()} different integers"
    return targets.decide_task(target)


def build(estimator: str, task: str, given: Mapping[str, Any], image: Image) -> Any:
    """Build the estimator for these images. Raises: ValueError: a network or an option that does not fit."""
    if estimator == "wide":
        raise ValueError("--estimator wide gives every column a scale, and images have none: say nngp or ntk.")
    name = given.get("network") or "convnet"
    numbers = {key: given[key] for key in NUMBERS if given.get(key) is not None}
    if name in BUILDERS:
        if name != "convnet" and "depth" in numbers:
            raise ValueError(f"--depth is for --network convnet; {name} has its own, leave it out.")
        usual = {key: value for key, value in USUAL.items() if key != "depth" or name == "convnet"}
        net = BUILDERS[name](inputs=image, **{**usual, **numbers})
    else:
        if not Path(name).exists():
            raise ValueError(f"--network {name}: no such file, nor a network by name: {', '.join(BUILDERS)}.")
        net = given_network(given)
        if net.inputs != image:
            raise ValueError(
                f"--network {name}: reads {net.inputs!r}, and the images are {image.shape}; they must agree."
            )
    rest = {key: value for key, value in given.items() if key not in (*NUMBERS, "network")}
    return models.build(estimator, task, {**rest, "network": net})


def fit(
    path: Path, choices: TableChoices, estimator: str, given: Mapping[str, Any], model: Path, *, quiet: bool
) -> models.FitResult:
    """Read pictures, fit, write.

    Raises:
        ValueError, MemoryError: see `pictures.read` and the estimators' `fit`.
        OSError: the model cannot be written.
    """
    start = time.perf_counter()
    with terminal.busy_bar(f"reading {path.name}", quiet=quiet):
        data, table = _training_data(path, choices)
        image = Image(*data.shape)
        made = build(estimator, table.task, {**given, "random_state": choices.seed, "verbose": not quiet}, image)
        training_data.require_memory(len(data.images), made.matrix_count())
    extra = {"pictures": {"target": table.name, "task": table.task}}
    return models.fit_rows(table, data, made, data.images, model, extra, start, quiet=quiet)


def predict(model: Path, stored: StoredModel, path: Path, *, std: bool, quiet: bool) -> models.Predictions:
    """Predict pictures with a model that reads such. Raises: ValueError: see `pictures.read`; another model."""
    start = time.perf_counter()
    estimator, extra = stored
    image = image_of(estimator.network)
    if not isinstance(image, Image):
        raise ValueError(f"{path}: holds images, and {model.name} was fitted to a table; give a table.")
    about = extra.get("pictures", {})
    task = "classification" if isinstance(estimator, KernelClassifier) else "regression"
    found = Schema(str(about.get("target", "prediction")), task, ())
    own = path.suffix.lower() == ".npz" and found.target not in ("y", "class")
    data = pictures.read(path, found.target if own else "", test=True)
    truth = None if data.target is None else pl.Series(found.target, data.target)
    images = _fitting(data, image)
    result = models.predict_rows(estimator, found, images, truth, data.notes, start, std=std, quiet=quiet)
    if not data.names:
        return result
    return replace(result, frame=result.frame.insert_column(0, pl.Series("file", data.names)))


def _fitting(data: Pictures, image: Image) -> np.ndarray:
    """Return images as the model reads them, grey ones with three equal colours. Raises: ValueError: another size."""
    if data.shape[:-1] == image.sites and data.shape[-1] == 1:
        return np.broadcast_to(data.images, (len(data.images), *image.shape))
    if data.shape != image.shape:
        raise ValueError(f"{data.path}: has images of {data.shape}, and the model was fitted to {image.shape}.")
    return data.images


def candidates(path: Path, choices: TableChoices, given: Mapping[str, Any], folds: int) -> Candidates:
    """Return what `benchmark` compares on pictures. Raises: as `fit`."""
    data, table = _training_data(path, choices)
    training_data.require_memory(len(data.images), MATRICES)
    image, rows = Image(*data.shape), data.images.reshape(len(data.images), -1).astype(np.float64)

    def standardise(inside: np.ndarray, outside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        inputs = image_normalisation("standardize", rows[inside], np.ones(len(inside)), image)
        return inputs(rows[inside]), inputs(rows[outside])

    classes = table.task == "classification"
    usual = {"normalize": "none", "hyperparameters": given.get("hyperparameters")}
    net = build("nngp", table.task, given, image).network
    known = {
        "conv NNGP": baselines.library_model("nngp", table.task, {"network": net, **usual}),
        "NNGP": baselines.library_model("nngp", table.task, {**FULLY_CONNECTED, **usual}),
        "random forest": baselines.forest_classes if classes else baselines.forest,
    }
    known |= (
        {"SVM": baselines.support_vectors, "logistic": baselines.logistic} if classes else {"ridge": baselines.ridge}
    )
    target = np.unique(table.target, return_inverse=True)[1] if classes else table.target
    return Candidates(
        table, SplitData(table.task, target, splits(table, folds, choices.seed), standardise), known, data.notes
    )
