"""Training data are read from a file: rows, target and task, then schema and inputs, with notes for the user.

`load` and `encode` read tables; `labelled` serves pictures, sequences and graphs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import polars as pl

from widelimit import memory
from widelimit.cli import schema, tables, targets
from widelimit.cli.options import TableChoices
from widelimit.cli.schema import Schema
from widelimit.shapes import Float


@final
@dataclass(frozen=True)
class TargetTable:
    """The table holds the rows that a model is fitted to, its target and the task."""

    path: Path
    frame: pl.DataFrame
    target: np.ndarray
    """(n,) float64, or labels (integers or texts)."""
    task: str
    reason: str
    """The reason for this task, for the user."""
    rows: int
    """Rows of the file, before any were drawn."""
    name: str = "y"
    """Name of the target."""


@final
@dataclass(frozen=True)
class EncodedTable:
    """An encoded table holds a table's rows as numbers, and its schema."""

    schema: Schema
    X: Float[np.ndarray, "n d"]
    notes: list[str]

    def document(self) -> dict[str, Any]:
        """Return what the rows are, in JSON."""
        return {"inputs": self.schema.inputs}

    def summary(self, rows: str, drawn: str) -> str:
        """Describe the rows."""
        return f"{rows} rows{drawn}, {len(self.schema.inputs)} inputs from {len(self.schema.columns)} columns"


def load(path: Path, choices: TableChoices) -> TargetTable:
    """Read a table, draw rows, decide the task.

    Raises:
        ValueError: no table, no such column, a target that cannot be used, fewer than 2 rows.
    """
    refuse_contradictions(choices)
    frame = tables.read(path, written=choices.written, unused=choices.drop)
    schema.require_columns(frame, [choices.target], "--target")
    rows = frame.height
    _require_two(path, rows, "row")
    if choices.rows is not None and choices.rows < rows:
        frame = frame.sample(choices.rows, seed=choices.seed)
    column = frame[choices.target]
    task, reason = (choices.task, "by --task") if choices.task else targets.decide_task(column)
    return TargetTable(path, frame, targets.target_values(column, task), task, reason, rows, choices.target)


def _require_two(path: Path, count: int, what: str) -> None:
    """Refuse a file of one row, image or other input. Raises: ValueError."""
    if count < 2:
        raise ValueError(f"{path}: has 1 {what}; a model needs at least 2.")


def labelled(
    path: Path, labels: pl.Series, choices: TableChoices, decide: Callable[[pl.Series], tuple[str, str]], what: str
) -> tuple[np.ndarray, TargetTable, list[str]]:
    """Draw rows of inputs that are not tables; return their numbers, their targets, and notes for the user.

    labels: one label for each input. decide: from labels to task and reason. what: the name of one input.
    Raises: ValueError: fewer than two inputs; labels that cannot be used.
    """
    _require_two(path, len(labels), what)
    rows = np.arange(len(labels))
    if choices.rows is not None and choices.rows < len(rows):
        rows = np.sort(np.random.default_rng(choices.seed).choice(rows, choices.rows, replace=False))
    frame = pl.DataFrame({labels.name: labels[rows]})
    task, reason = (choices.task, "by --task") if choices.task else decide(frame[labels.name])
    target = targets.target_values(frame[labels.name], task)
    table = TargetTable(path, frame, target, task, reason, len(labels), labels.name)
    return rows, table, targets.constant(target, table.name)


def refuse_contradictions(choices: TableChoices) -> None:
    """Refuse choices without a target, or that give one column two roles."""
    if not choices.target:
        raise ValueError("Missing option '--target'. Name the column to predict.")
    roles = {"--drop": choices.drop, "--categorical": choices.categorical, "--ordered": list(choices.ranks)}
    for (one, names), (other, others) in itertools.combinations(roles.items(), 2):
        for name in names:
            if name in others:
                raise ValueError(f"{one} {name} and {other} {name}: choose one of them.")
    if choices.target in choices.drop:
        raise ValueError(f"--drop {choices.target}: is the target; it is never an input, leave this --drop out.")
    for role in ("--categorical", "--ordered"):
        if choices.target in roles[role]:
            raise ValueError(f"{role} {choices.target}: is the target; say --task classification for classes.")


def require_memory(rows: int, matrices: float) -> None:
    """Refuse a table whose n x n matrices do not fit in memory.

    Raises:
        MemoryError: they do not fit; the message has the number of rows that would. Nothing large was allocated.
    """
    fitting = int((memory.available() / (matrices * 8)) ** 0.5)
    fitting -= fitting % 10 ** max(len(str(fitting)) - 2, 0)
    remedy = f"fit to a random part: --rows {fitting}"
    memory.require(matrices * 8 * rows**2, f"an exact fit to {rows} rows", remedy=remedy)


def encode(table: TargetTable, choices: TableChoices) -> EncodedTable:
    """Return all rows of a table as numbers, with the schema and notes for the user."""
    found, notes = schema.learn(
        table.frame,
        target=choices.target,
        task=table.task,
        drop=choices.drop,
        categorical=choices.categorical,
        ordered=choices.ranks,
        impute=choices.impute is not False,
    )
    X, _ = schema.encode(found, table.frame)
    notes += targets.constant(table.target, choices.target) + conflicts(X, table.target)
    return EncodedTable(found, X, notes)


def conflicts(X: Float[np.ndarray, "n d"], y: np.ndarray) -> list[str]:
    """Return a note if rows with the same inputs have different targets."""
    _, group = np.unique(X, axis=0, return_inverse=True)
    _, value = np.unique(y, return_inverse=True)
    pairs = np.unique(np.stack([group.ravel(), value.ravel()]), axis=1)
    clashing = np.bincount(pairs[0]) > 1
    count = int(clashing[group.ravel()].sum())
    return [f"{count} rows share their inputs with rows of another {'value' if y.dtype == float else 'class'}"] * (
        count > 0
    )
