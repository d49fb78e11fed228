"""This module fits an estimator to a table, and predicts with it."""

from __future__ import annotations

import inspect
import textwrap
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import numpy as np
import polars as pl

import widelimit as wl
from widelimit.cli import schema, scores, tables, targets, terminal, training_data
from widelimit.cli.files import given_network
from widelimit.cli.options import TableChoices
from widelimit.cli.pictures import Pictures
from widelimit.cli.schema import Schema
from widelimit.cli.structured import Structured
from widelimit.cli.training_data import EncodedTable, TargetTable
from widelimit.columns.encoder import Encoded
from widelimit.columns.texts import as_text, match_texts
from widelimit.estimators import settings
from widelimit.estimators.averaging import family_document
from widelimit.estimators.classifiers import KernelClassifier
from widelimit.estimators.persistence import StoredModel, read
from widelimit.estimators.preparation import MOST_ROWS, require_few_rows
from widelimit.estimators.settings import image_of
from widelimit.messages import list_names

ESTIMATORS: dict[tuple[str, str], type] = {
    ("ntk", "regression"): wl.NTKRegressor,
    ("nngp", "regression"): wl.NNGPRegressor,
    ("ntk", "classification"): wl.NTKClassifier,
    ("nngp", "classification"): wl.NNGPClassifier,
    ("wide", "regression"): wl.WideRegressor,
    ("wide", "classification"): wl.WideClassifier,
}
ScoresAndRemarks = tuple[dict[str, float], list[str]]
"""Scores by name, and remarks."""
PREDICTED_ROWS = 1024
"""Rows predicted at once: between them progress moves."""
FAR = "rows of the table are so far from the training rows that a float does not hold their predictions"
ROW_MULTIPLE = 64
"""Rows are padded to a multiple of this, which is a multiple of the block size of all matrix libraries."""


@final
@dataclass(frozen=True)
class FitResult:
    """The result says what `fit` did, with a table or with images."""

    table: TargetTable
    data: Any
    """An `EncodedTable`, `Pictures` or `Structured`."""
    estimator: Any
    model: Path
    seconds: float

    def chosen(self) -> dict[str, Any]:
        """Return the network, and what was chosen from the data; noise_std is in the unit of the target."""
        family = getattr(self.estimator, "family_", None)
        found: dict[str, Any] = {"kernel": family.kind} if family else {}
        if self.estimator.network is None:
            network = family or self.estimator
            found |= {"depth": network.depth, "activation": str(network.activation)}
        else:
            found["network"] = repr(self.estimator.network_)
        found |= self.estimator.hyperparameters_ | {"time": float(self.estimator.time)} | shares(self.estimator)
        return found | noise_std(self.estimator) if self.table.task == "regression" else found

    def document(self) -> dict[str, Any]:
        """Return the result in JSON."""
        return {
            "rows": self.table.frame.height,
            **self.data.document(),
            "target": self.table.name,
            "task": self.table.task,
            "task_reason": self.table.reason,
            "estimator": type(self.estimator).__name__,
            "chosen": {name: plain(value) for name, value in self.chosen().items()},
            "notes": self.data.notes,
            "model": str(self.model),
            "seconds": self.seconds,
        }

    def summary(self) -> str:
        """Return the result for people."""
        chosen = ", ".join(
            f"{name} {value if isinstance(value, (str, int)) else f'{value:.3g}'}"
            for name, value in self.chosen().items()
            if name != "network"  # its numbers follow
        )
        if not isinstance(self.data, EncodedTable):  # their networks have many numbers
            chosen = f"{self.estimator.network_.depth} layers"
        model = f"model  {type(self.estimator).__name__}: {chosen}"
        drawn = f" of {self.table.rows}" * (self.table.rows != self.table.frame.height)
        return "\n".join(
            [
                f"data   {self.table.path.name}: {self.data.summary(f'{self.table.frame.height}', drawn)}",
                f"task   {self.table.task} ({self.table.reason})",
                *textwrap.wrap(model, terminal.WIDTH, subsequent_indent=" " * 7),
                f"wrote  {self.model} ({self.seconds:.1f} s)",
            ]
        )


def shares(estimator: Any) -> dict[str, str]:
    """Return the networks of an average and their weights; empty if there is one network."""
    if len(getattr(estimator, "shares_", ())) < 2:
        return {}
    names = (" ".join(map(str, family_document(family))) for family in estimator.families_)
    return {"average": " + ".join(f"{share:.2f} {name}" for share, name in zip(estimator.shares_, names, strict=True))}


def noise_std(estimator: Any) -> dict[str, float]:
    """Return the noise's standard deviation in the unit of the target, the mean over targets; empty if none."""
    if "y_scale_" not in vars(estimator):  # of the Dirichlet likelihood
        return {}
    return {"noise_std": float(np.mean(np.sqrt(estimator.noise_) * estimator.y_scale_))}


def plain(value: Any) -> Any:
    """Return a number for JSON; an infinite one, which JSON lacks, as text."""
    return value if not isinstance(value, float) or np.isfinite(value) else str(value)


def build(estimator: str, task: str, given: Mapping[str, Any]) -> Any:
    """Build the estimator with the parameters that are given (None: its own default).

    Raises:
        ValueError: a parameter that the estimator does not have, or that does not apply.
    """
    cls = ESTIMATORS[estimator, task]
    known = parameters(estimator, task)
    settings: dict[str, Any] = {}
    for name, value in given.items():
        if value is None:
            continue
        if name not in known:
            owners = [kind for kind, its_task in ESTIMATORS if its_task == task and name in parameters(kind, task)]
            remedy = f"say --estimator {' or '.join(owners)}, or leave it out" if owners else "leave it out"
            raise ValueError(f"--{name.replace('_', '-')} is no option of {cls.__name__}; {remedy}.")
        settings[name] = value
    for name in ("normalize", "input_scales", "invariance"):
        if settings.get(name) == "none":
            settings[name] = None
    if "network" in settings:
        settings["network"] = given_network(settings)
    return cls(**settings)


def parameters(estimator: str, task: str) -> Collection[str]:
    """Return the names of an estimator's parameters."""
    return inspect.signature(ESTIMATORS[estimator, task]).parameters


def fit(
    path: Path, choices: TableChoices, estimator: str, given: Mapping[str, Any], model: Path, *, quiet: bool
) -> FitResult:
    """Read, fit, write.

    Raises:
        ValueError, MemoryError: see `training_data.load`, `schema.learn`, and the estimators' `fit`.
        OSError: the model cannot be written.
    """
    start = time.perf_counter()
    with terminal.busy_bar(f"reading {path.name}", quiet=quiet):
        table = training_data.load(path, choices)
        rows = table.frame.height
        made = build(estimator, table.task, {**given, "random_state": choices.seed, "verbose": not quiet})
        if given.get("average") and not settings.may_average(made, rows):
            raise ValueError(
                f"--average is for at most {settings.MOST_AVERAGED} rows, a constant noise above 0, learned input "
                f"scales and time=inf, and there are {rows} rows; leave it out."
            )
        if settings.solver(made, rows) != "nystrom":
            if estimator == "wide":
                remedy = "fit to a random part, --rows {}, or a network that you give, --estimator nngp or ntk"
                require_few_rows(rows, remedy.format(MOST_ROWS))
            training_data.require_memory(rows, made.matrix_count())
        data = training_data.encode(table, choices)
    X = Encoded(data.schema.encoder, data.X)
    return fit_rows(table, data, made, X, model, {"table": data.schema.document()}, start, quiet=quiet)


def _require_inducing_points(made: Any, rows: int) -> None:
    """Refuse a number of inducing points where none are taken. Raises: ValueError."""
    if made.inducing != type(made)().inducing and settings.solver(made, rows) != "nystrom":
        raise ValueError(
            f"--inducing {made.inducing} does not apply to an exact fit to {rows} rows; say --solver nystrom too."
        )


def fit_rows(
    table: TargetTable,
    data: EncodedTable | Pictures | Structured,
    made: Any,
    X: Any,
    model: Path,
    extra: dict[str, Any],
    start: float,
    *,
    quiet: bool,
) -> FitResult:
    """Fit an estimator to inputs X and the target of a table, and write it with `extra`. Raises: as `fit`."""
    _require_inducing_points(made, len(table.target))
    what = {Pictures: "images", Structured: "inputs"}.get(type(data), "rows")
    with terminal.busy_bar(f"fitting {type(made).__name__} to {len(table.target)} {what}", quiet=quiet):
        made.fit(X, table.target)
    made.set_params(verbose=False)
    result = FitResult(table, data, made, model, time.perf_counter() - start)
    bad = [name for name, value in result.chosen().items() if name != "time" and str(value) in ("nan", "inf")]
    if bad:
        raise ValueError(f"{bad[0]} is not a finite number: columns or target are too large; scale them.")
    wl.save(made, model, extra=extra)
    return result


@final
@dataclass(frozen=True)
class Predictions:
    """The predictions are the result of `predict`."""

    schema: Schema
    frame: pl.DataFrame
    """The target's column; with --std its standard deviation, or the probability of each class."""
    notes: list[str]
    scores: dict[str, float]
    """Scores against the target's column, if the new table has it."""
    seconds: float

    def document(self) -> dict[str, Any]:
        """Return the result in JSON."""
        return {
            "target": self.schema.target,
            "task": self.schema.task,
            "rows": self.frame.height,
            "scores": {name: plain(value) for name, value in self.scores.items()},
            "notes": self.notes,
            "seconds": self.seconds,
        }


def load(path: Path, *, quiet: bool) -> StoredModel:
    """Load a model, which shows progress unless `quiet`. Raises: ValueError: no such file, or none of this library."""
    tables.check_readable(path)
    found = read(path)
    if found.model.fitted_ is not None:
        found.model.fitted_.training = replace(found.model.fitted_.training, verbose=not quiet)
    return found


def load_schema(path: Path, found: StoredModel) -> Schema:
    """Return the schema of a model of tables. Raises: ValueError: it was fitted to images, or to an array."""
    estimator = found.model
    if "table" in found.extra:
        return schema.from_document(found.extra["table"])
    if image_of(estimator.network) is not None:
        raise ValueError(f"{path}: was fitted to images; give images, .npz, .npy or a folder.")
    if estimator.encoder_ is None:
        raise ValueError(f"{path}: was fitted to an array, so its columns have no names; use wl.load in Python.")
    task = "classification" if isinstance(estimator, KernelClassifier) else "regression"
    return Schema("prediction", task, estimator.encoder_.columns_)


def predict(model: Path, stored: StoredModel, path: Path, *, std: bool, quiet: bool) -> Predictions:
    """Predict the rows of a table. Raises: ValueError: see `load_schema` and `schema.encode`."""
    start = time.perf_counter()
    found = load_schema(model, stored)
    frame = tables.read_raw(path)
    X, notes = schema.encode(found, frame)
    truth = frame[found.target] if found.target in frame.columns else None
    return predict_rows(stored.model, found, X, truth, notes, start, std=std, quiet=quiet)


def predict_rows(
    estimator: Any,
    found: Schema,
    X: np.ndarray,
    truth: pl.Series | None,
    notes: list[str],
    start: float,
    *,
    std: bool,
    quiet: bool,
) -> Predictions:
    """Predict rows, PREDICTED_ROWS at a time, and score them. Raises: ValueError: rows too far away."""
    parts = []
    with terminal.progress(-(-len(X) // PREDICTED_ROWS), "parts", quiet=quiet) as advance:
        for i in range(0, len(X), PREDICTED_ROWS):
            advance(f"predicting {found.target}")
            parts.append(padded_columns(estimator, found, X[i : i + PREDICTED_ROWS], std=std))
    out = pl.concat(parts)
    require_finite(out)
    scores, remarks = ({}, []) if truth is None else score_predictions(estimator, found, out, truth)
    return Predictions(found, out, notes + remarks, scores, time.perf_counter() - start)


def padded_columns(estimator: Any, found: Schema, X: np.ndarray, *, std: bool) -> pl.DataFrame:
    """Call `columns` with X padded to whole blocks, as the last bits of a product depend on the rows at its end."""
    filled = X[np.arange(-(-len(X) // ROW_MULTIPLE) * ROW_MULTIPLE) % len(X)]
    try:
        with np.errstate(all="ignore"):
            return columns(estimator, found, filled, std=std).head(len(X))
    except ArithmeticError as error:
        raise ValueError(f"{FAR}: {error}") from error


def require_finite(out: pl.DataFrame) -> None:
    """Refuse predictions that are not finite numbers. Raises: ValueError, with the row."""
    finite = out.select(pl.all_horizontal(pl.lit(True), pl.selectors.float().is_finite())).to_series()
    rows = (~finite.fill_null(False)).arg_true()
    if len(rows):
        raise ValueError(f"{FAR}: the prediction of row {rows[0] + 1} is not a finite number. Nothing was written.")


def columns(estimator: Any, found: Schema, X: np.ndarray, *, std: bool) -> pl.DataFrame:
    """Return the columns that `predict` writes, for some rows: the target's first."""
    name = found.target
    rows = X if estimator.encoder_ is None else Encoded(estimator.encoder_, X)
    if not std:
        return pl.DataFrame({name: estimator.predict(rows)})
    if found.task == "regression":
        mean, deviation = estimator.predict(rows, return_std=True, include_noise=True)
        return pl.DataFrame({name: mean, f"{name}_std": deviation})
    p = estimator.predict_proba(rows)
    labels = estimator.classes_[p.argmax(axis=1)]
    return pl.DataFrame({name: labels, **dict(zip(probability_names(name, estimator.classes_), p.T, strict=True))})


def probability_names(target: str, classes: Sequence[Any]) -> list[str]:
    """Return p_CLASS for every class.

    If one of them is the target's own name, underscores are appended to it until it is unique.
    """
    names = [f"p_{c}" for c in classes]
    if target in names:
        other = target
        while other in names:
            other += "_"
        names[names.index(target)] = other
    return names


def score_predictions(estimator: Any, found: Schema, out: pl.DataFrame, truth: pl.Series) -> ScoresAndRemarks:
    """Return scores on the rows with a target, and remarks; none if it cannot be compared."""
    truth = tables.file_values(truth)
    known = truth.is_not_null()
    if not known.any():
        return {}, []
    try:
        if found.task == "classification":
            labels, classes = as_text(truth.filter(known)).cast(pl.String), [str(c) for c in estimator.classes_]
            return class_scores(classes, out.filter(known), match_texts(classes, labels).to_list())
        values = targets.target_values(truth.filter(known), found.task)
    except ValueError as error:
        return {}, [f"not scored: {error}"]
    columns = out.filter(known).to_numpy()
    if columns.shape[1] == 1:
        return {"rmse": scores.rmse(columns[:, 0], values)}, []
    return scores.gaussian_scores(columns[:, 0], columns[:, 1], values), []


def class_scores(classes: Sequence[str], out: pl.DataFrame, labels: Sequence[str]) -> ScoresAndRemarks:
    """Compute scores of the predictions of these labels."""
    found = {"accuracy": float(np.mean(np.array(labels) == out.to_series(0).cast(pl.String).to_numpy()))}
    if out.width == 1:
        return found, []
    unseen = sorted(set(labels) - set(classes))
    if unseen:
        return found, [f"classes that training has not seen, counted as wrong: {list_names(unseen)}"]
    place = np.array([classes.index(label) for label in labels])
    with np.errstate(divide="ignore"):
        log_p = np.log(out.to_numpy()[:, 1:].astype(float))
    return found | {"log_loss": scores.class_nlpd(log_p, place)}, []
