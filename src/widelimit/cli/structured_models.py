"""Models of sequences and graphs: `fit` and `predict` serve the commands; --network says which inputs are read."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from widelimit.architecture.sequences import Graph, Sequence
from widelimit.cli import models, picture_models, structured, terminal, training_data
from widelimit.cli.files import given_network
from widelimit.cli.options import TableChoices
from widelimit.cli.schema import Schema
from widelimit.cli.structured import Structured
from widelimit.cli.training_data import TargetTable
from widelimit.estimators.classifiers import KernelClassifier
from widelimit.estimators.persistence import StoredModel

EXTRA = "structured"
"""The key under which a model file keeps the target, the task and the columns."""


def inputs_given(given: Mapping[str, Any]) -> Sequence | Graph | None:
    """Return what --network reads, if it is the file of a network of sequences or graphs. Raises: ValueError."""
    name = given.get("network")
    if not name or name in picture_models.BUILDERS or not Path(name).is_file():
        return None
    return structured.structure_of(given_network(given))


def _training_data(path: Path, choices: TableChoices, inputs: Sequence | Graph) -> tuple[Structured, TargetTable]:
    if (option := choices.of_columns()) not in ("", "--drop"):
        raise ValueError(f"{option} is for tables of single values, and {path.name} has {inputs.kind}s.")
    data = structured.read(path, inputs, choices.target, drop=choices.drop)
    if data.target is None:
        raise ValueError(
            f"{path}: has no labels; name the column by --target, or save an array y (or another that --target names) "
            f"beside X."
        )
    decide = partial(picture_models.decide_task, path)
    rows, table, notes = training_data.labelled(path, data.target, choices, decide, inputs.kind)
    return replace(data, X=data.X[rows], notes=data.notes + notes), table


def fit(
    path: Path,
    choices: TableChoices,
    estimator: str,
    given: Mapping[str, Any],
    model: Path,
    inputs: Sequence | Graph,
    *,
    quiet: bool,
) -> models.FitResult:
    """Read sequences or graphs, fit, write.

    Raises:
        ValueError, MemoryError: see `structured.read` and the estimators' `fit`.
        OSError: the model cannot be written.
    """
    start = time.perf_counter()
    if estimator == "wide":
        raise ValueError(f"--estimator wide gives every column a scale, and {inputs.kind}s have none: say nngp or ntk.")
    with terminal.busy_bar(f"reading {path.name}", quiet=quiet):
        data, table = _training_data(path, choices, inputs)
        made = models.build(estimator, table.task, {**given, "random_state": choices.seed, "verbose": not quiet})
        training_data.require_memory(len(data.X), made.matrix_count())
    about = {"target": table.name, "task": table.task, "columns": data.columns}
    return models.fit_rows(table, data, made, data.X, model, {EXTRA: about}, start, quiet=quiet)


def predict(stored: StoredModel, inputs: Sequence | Graph, path: Path, *, std: bool, quiet: bool) -> models.Predictions:
    """Predict sequences or graphs with a model that reads them. Raises: ValueError: see `structured.read`."""
    start = time.perf_counter()
    about = stored.extra.get(EXTRA, {})
    task = "classification" if isinstance(stored.model, KernelClassifier) else "regression"
    found = Schema(str(about.get("target", "prediction")), task, ())
    own = found.target if about else ""
    data = structured.read(path, inputs, own, test=True, columns=about.get("columns", ()))
    truth = None if data.target is None else data.target.alias(found.target)
    return models.predict_rows(stored.model, found, data.X, truth, data.notes, start, std=std, quiet=quiet)
