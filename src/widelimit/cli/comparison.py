"""Models are compared on splits of a table: every model is fitted to the training rows of every split, and scored."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import numpy as np
import polars as pl
from sklearn.model_selection import KFold, StratifiedKFold
from threadpoolctl import threadpool_limits

from widelimit.cli import baselines, schema, scores, terminal, training_data
from widelimit.cli.baselines import ClassPrediction, Fold, GaussianPrediction
from widelimit.cli.models import plain
from widelimit.cli.options import TableChoices
from widelimit.cli.schema import Schema
from widelimit.cli.training_data import TargetTable
from widelimit.estimators import preparation
from widelimit.messages import list_names

SCORES = {"regression": ("rmse", "nlpd", "coverage_95"), "classification": ("accuracy", "log_loss")}

MATRICES = 3
"""n x n matrices of float64 in memory for a model, at most: the kernel, its factor, and a copy between them."""
ONE_THREAD = 3000
"""Rows up to which every model runs on one thread: more threads gain little, and waiting ones slow others down."""


@final
@dataclass(frozen=True)
class ModelScores:
    """This row of a comparison holds one model's scores on each fold."""

    model: str
    scores: dict[str, np.ndarray]
    """(folds,) each."""
    seconds: np.ndarray
    """(folds,): choice of hyper-parameters, fit and prediction, compilation included."""
    chosen: Mapping[str, float]
    """Hyper-parameters that were chosen on the training rows of the last fold."""
    remarks: tuple[str, ...]
    """Warnings of the model, each once."""

    def mean(self, score: str) -> float:
        """Return the mean over folds."""
        return float(np.mean(self.scores[score]))

    def error(self, score: str) -> float:
        """Return the standard error of that mean: standard deviation over folds / sqrt(folds)."""
        values = self.scores[score]
        if len(values) == 1 or not np.isfinite(values).all():
            return math.inf
        return float(np.std(values, ddof=1) / math.sqrt(len(values)))


@final
@dataclass(frozen=True)
class BenchmarkResult:
    """The result holds all models on a table, the best by the first score before the others."""

    table: TargetTable
    inputs: int
    folds: int
    seed: int
    rows: tuple[ModelScores, ...]
    notes: list[str]
    seconds: float

    def document(self) -> dict[str, Any]:
        """Return the result in JSON."""
        return {
            "table": str(self.table.path),
            "rows": self.table.frame.height,
            "inputs": self.inputs,
            "task": self.table.task,
            "task_reason": self.table.reason,
            "folds": self.folds,
            "seed": self.seed,
            "models": [row_document(row) for row in self.rows],
            "notes": self.notes,
            "seconds": self.seconds,
        }


def row_document(row: ModelScores) -> dict[str, Any]:
    """Return a row in JSON."""
    scores = {
        name: {
            "mean": plain(row.mean(name)),
            "standard_error": plain(row.error(name)),
            "folds": [plain(float(value)) for value in values],
        }
        for name, values in row.scores.items()
    }
    return {"model": row.model, **scores, "seconds": row.seconds.tolist(), "remarks": list(row.remarks)}


def splits(table: TargetTable, folds: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return training and test rows of each fold; classes have an equal share in each fold.

    Raises:
        ValueError: fewer rows than folds; a class with one row, which models of one fold never see; one class.
    """
    n = len(table.target)
    if n < 2 * folds:
        raise ValueError(
            f"{folds} folds need at least {2 * folds} rows, and there are {n}; say --folds {max(n // 2, 2)}."
        )
    if table.task == "regression":
        return list(KFold(folds, shuffle=True, random_state=seed).split(table.target))
    labels, counts = np.unique(table.target, return_counts=True)
    if len(labels) == 1:
        raise ValueError(f"the target has one class, {labels[0]!s}: there is nothing to distinguish.")
    if counts.min() < 2:
        alone = [str(label) for label in labels[counts < 2]]
        raise ValueError(
            f"a single row has the class {list_names(alone)}: where it is tested, no model has seen it; remove "
            "it or merge classes."
        )
    with warnings.catch_warnings():  # fewer rows of a class than folds: each fold's training rows still have one
        warnings.filterwarnings("ignore", message="The least populated class")
        return list(StratifiedKFold(folds, shuffle=True, random_state=seed).split(table.target, table.target))


def standardise(known: Schema, inside: pl.DataFrame, outside: pl.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return a fold's training and test inputs: categories, fillings, mean and scale from the training rows only."""
    found = schema.learn_again(known, inside)
    if not found.columns:
        return np.zeros((inside.height, 1)), np.zeros((outside.height, 1))
    (X, _), (Z, _) = schema.encode(found, inside), schema.encode(found, outside)
    X, centre, spread = preparation.standardise(X, np.ones(len(X)))
    return X, (Z - centre) / spread


def models(table: TargetTable, given: Mapping[str, Any], *, costly: bool) -> tuple[dict[str, Any], list[str]]:
    """Return the models for a table, by name, and a note on those that are left out unless `costly`."""
    if table.task == "regression":
        return dict(baselines.regression(dict(given))), []
    left = [] if costly else baselines.costly(len(table.target), len(np.unique(table.target)))
    known = {name: model for name, model in baselines.classification(dict(given)).items() if name not in left}
    return known, [f"left out, as they take minutes: {', '.join(left)}; --all runs them"] * bool(left)


@final
@dataclass(frozen=True)
class SplitData:
    """The data of a comparison are the inputs of each split, and the targets for the scores."""

    task: str
    target: np.ndarray
    """(n,) numbers, or numbers of classes."""
    splits: Sequence[tuple[np.ndarray, np.ndarray]]
    """Training and test rows."""
    standardise: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
    """Training and test rows -> their inputs, standardised by the training rows only."""


def compare(
    data: SplitData,
    models: Mapping[str, Callable[[Fold], Any]],
    scores: Sequence[str],
    *,
    seed: int,
    advance: Callable[[str], None],
) -> list[ModelScores]:
    """Fit every model on every split, and score it; `advance` is called before each fit with its name."""
    records = {name: ModelRecord([], [], {}) for name in models}
    with threadpool_limits(limits=1 if len(data.target) <= ONE_THREAD else None):
        for i, (inside, outside) in enumerate(data.splits):
            X, Z = data.standardise(inside, outside)
            for name, model in models.items():
                advance(f"fold {i + 1}: {name}" if len(data.splits) > 1 else name)
                records[name].add(model, Fold(X, data.target[inside], Z, seed), data.target[outside])
    return [record.summary(name, scores) for name, record in records.items()]


@final
@dataclass(frozen=True)
class Candidates:
    """Models are compared on these data."""

    table: TargetTable
    data: SplitData
    models: Mapping[str, Callable[[Fold], Any]]
    notes: list[str]


def table_candidates(
    path: Path, choices: TableChoices, given: Mapping[str, Any], folds: int, *, costly: bool
) -> Candidates:
    """Read a table, and choose the models that are compared on it.

    Args:
        path: the table.
        choices: the options of the user for this table.
        given: parameters of this library's estimators.
        folds: number of folds of the cross-validation.
        costly: also models that take minutes.

    Raises:
        ValueError, MemoryError: see `training_data.load`, `schema.learn`, `splits`.
    """
    table = training_data.load(path, choices)
    training_data.require_memory(table.frame.height, MATRICES)
    encoded = training_data.encode(table, choices)
    known, notes = models(table, given, costly=costly)
    target = table.target if table.task == "regression" else np.unique(table.target, return_inverse=True)[1]

    def inputs(inside: np.ndarray, outside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return standardise(encoded.schema, table.frame[inside], table.frame[outside])

    data = SplitData(table.task, target, splits(table, folds, choices.seed), inputs)
    return Candidates(table, data, known, encoded.notes + notes)


def run(found: Candidates, *, seed: int, quiet: bool) -> BenchmarkResult:
    """Score all models on all folds, and show the progress unless `quiet`."""
    start, data = time.perf_counter(), found.data
    scores, folds = SCORES[data.task], len(data.splits)
    with terminal.progress(folds * len(found.models), "fits", quiet=quiet) as advance:
        rows = compare(data, found.models, scores, seed=seed, advance=advance)
    rows.sort(key=lambda row: row.mean(scores[0]), reverse=scores[0] == "accuracy")
    inputs = data.standardise(*data.splits[0])[0].shape[1]
    return BenchmarkResult(found.table, inputs, folds, seed, tuple(rows), found.notes, time.perf_counter() - start)


@final
@dataclass(frozen=True)
class ModelRecord:
    """The record collects a model's scores while folds are computed."""

    scores: list[dict[str, float]]
    seconds: list[float]
    remarks: dict[str, None]
    chosen: dict[str, float] = field(default_factory=dict)

    def add(self, model: Callable[[Fold], Any], fold: Fold, truth: np.ndarray) -> None:
        """Fit, predict, score, and keep the texts of warnings."""
        start = time.perf_counter()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            predicted = model(fold)
        self.seconds.append(time.perf_counter() - start)
        self.chosen.update(predicted.chosen)
        self.scores.append(score(predicted, truth))
        self.remarks.update(dict.fromkeys(" ".join(str(warning.message).split()) for warning in caught))

    def summary(self, name: str, scores: Sequence[str]) -> ModelScores:
        """Return these scores on all folds."""
        values = {key: np.array([fold[key] for fold in self.scores]) for key in scores}
        return ModelScores(name, values, np.array(self.seconds), self.chosen, tuple(self.remarks))


def score(predicted: GaussianPrediction | ClassPrediction, truth: np.ndarray) -> dict[str, float]:
    """Compute the scores of one model on one fold."""
    if isinstance(predicted, ClassPrediction):
        with np.errstate(divide="ignore"):
            log_p = np.log(predicted.probabilities)
        loss = scores.class_nlpd(log_p, truth)
        return {
            "accuracy": scores.accuracy(log_p, truth),
            "log_loss": loss,
            "nlpd": loss,
            "coverage_95": scores.set_coverage(log_p, truth),
            "set_size": scores.mean_set_size(log_p),
        }
    return scores.gaussian_scores(predicted.mean, predicted.deviation, truth)
