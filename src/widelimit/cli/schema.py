"""A model remembers its training table: its columns, its target and its task."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import polars as pl

from widelimit.cli.tables import file_values, is_number
from widelimit.columns import column
from widelimit.columns.column import Column
from widelimit.columns.encoder import TableEncoder
from widelimit.columns.texts import as_text, first, match_texts
from widelimit.messages import did_you_mean, list_names
from widelimit.shapes import Float


@final
@dataclass(frozen=True)
class Schema:
    """A schema lists the columns of a training table that a model uses, in order, and its target."""

    target: str
    task: str
    """ "classification" or "regression"."""
    columns: tuple[Column, ...]

    @property
    def inputs(self) -> list[str]:
        """Name the model's inputs."""
        return [name for column in self.columns for name in column.inputs]

    @property
    def encoder(self) -> TableEncoder:
        """Return the encoder of these columns."""
        names = [each.name for each in self.columns]
        return TableEncoder().restore({"names": names, "columns": self.document()["columns"]})

    def document(self) -> dict[str, Any]:
        """Return the schema in JSON."""
        columns = [column.document(each) for each in self.columns]
        return {"target": self.target, "task": self.task, "columns": columns}


def from_document(document: Mapping[str, Any]) -> Schema:
    """Invert `Schema.document`, also of version 0.1.0. Raises: ValueError: anything else than such a document."""
    try:
        columns = tuple(column.from_document(each) for each in document["columns"])
        schema = Schema(str(document["target"]), str(document["task"]), columns)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError("its description of the table is damaged; fit the model again.") from error
    if schema.task not in ("classification", "regression"):
        raise ValueError(f"its task is {schema.task!r}; fit the model again.")
    return schema


def require_columns(frame: pl.DataFrame, names: Collection[str], what: str) -> None:
    """Refuse names that are not columns of the table."""
    missing = [name for name in names if name not in frame.columns]
    if not missing:
        return
    hint = did_you_mean(missing[0], frame.columns)
    if all(is_number(name) for name in frame.columns):
        hint = "; the first line holds numbers: is there a header line?"
    raise ValueError(f"{what} {list_names(missing)}: no such column; the table has {list_names(frame.columns)}{hint}")


def learn(
    frame: pl.DataFrame,
    *,
    target: str,
    task: str,
    drop: Collection[str] = (),
    categorical: Collection[str] = (),
    ordered: Mapping[str, Sequence[str]] | None = None,
    impute: bool = True,
) -> tuple[Schema, list[str]]:
    """Learn the schema of a training table; returns it with notes on columns that are left out or filled.

    Columns with one value, which carry no information, and columns without any are left out.

    Raises:
        ValueError: no such column; missing values without `impute`; what `column.learn` refuses; nothing left.
    """
    require_columns(frame, [target], "--target")
    require_columns(frame, drop, "--drop")
    require_columns(frame, categorical, "--categorical")
    ranks = dict(ordered or {})
    require_columns(frame, ranks, "--ordered")
    names = [name for name in frame.columns if name != target and name not in drop]
    empty = [name for name in names if frame[name].null_count() == frame.height]
    values = [
        as_category(frame[name], ranks.get(name)) if name in categorical or name in ranks else frame[name]
        for name in names
        if name not in empty
    ]
    columns = [column.learn(each, fill=impute) for each in values]
    constant = [each.name for each in values if each.drop_nulls().n_unique() == 1]
    values = [each for each in values if each.name not in constant]
    if not impute:
        column.refuse_gaps(values, "--impute fills them with the median or the most frequent category")
    if not values:
        raise ValueError("no column is left to predict from: every one is constant, empty or dropped.")
    notes = [f"left out, {why}: {list_names(left)}" for why, left in (("empty", empty), ("constant", constant)) if left]
    counts = column.missing_counts(values)
    if counts:
        notes.append(f"missing values imputed: {counts}")
    return Schema(target, task, tuple(each for each in columns if each.name not in constant)), notes


def as_category(values: pl.Series, ranks: Sequence[str] | None) -> pl.Series:
    """Return a column as categories, ordered if ranks are given. Raises: ValueError: a text that is none of them."""
    text = as_text(values)
    if ranks is None:
        return text.cast(pl.Categorical)
    text = match_texts(ranks, text)
    other = ~text.is_in(ranks)
    if other.any():
        raise ValueError(
            f"--ordered {values.name}: row {first(other)} has {text.filter(other)[0]!r}, which is none of "
            f"{', '.join(ranks)}; name all categories."
        )
    return text.cast(pl.Enum(ranks))


def learn_again(known: Schema, frame: pl.DataFrame) -> Schema:
    """Learn the schema of some rows of `known`'s table: the same columns, but for constant ones."""
    values = [each.values(file_values(frame[each.name])) for each in known.columns]
    found = (
        column.settle(each, rows, fill=each.fill is not None)
        for each, rows in zip(known.columns, values, strict=True)
        if rows.drop_nulls().n_unique() > 1
    )
    return Schema(known.target, known.task, tuple(found))


def encode(schema: Schema, frame: pl.DataFrame) -> tuple[Float[np.ndarray, "n d"], list[str]]:
    """Make the matrix of inputs, and notes on what was filled, not seen in training, and not used.

    Raises: ValueError: what `column.encode` refuses.
    """
    found = column.encode(schema.columns, pl.DataFrame([file_values(each) for each in frame.get_columns()]))
    names: Sequence[str] = [each.name for each in schema.columns]
    extra = [name for name in frame.columns if name not in names and name != schema.target]
    unused = [f"columns that the model does not use: {list_names(extra)}"] if extra else []
    return found.X, found.filled + unused + found.unseen
