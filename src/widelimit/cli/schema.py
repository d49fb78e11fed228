"""A model remembers its training table (columns, categories, fillings) and makes a table into a matrix of numbers."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, final

import numpy as np
import polars as pl

from widelimit.cli.tables import NUMERIC, as_text, file_values, is_number, refuse_rounding
from widelimit.shapes import Float

MANY_CATEGORIES = 100
"""A text column with more different texts than this is an identifier or free text."""
FEW_VALUES = 10
"""A text column with more texts than this, and more than one for every two rows, is an identifier or free text."""
GROUPED = r"^[+-]?\d{1,3}(?:[, '\x{2019}_\x{a0}\x{202f}]\d{3})+(?:\.\d+)?$"
"""A number with thousands separators."""
COMMA = r"^[+-]?\d{1,3}(?:\.\d{3})+,\d+$|^[+-]?\d*,\d+$"
"""A number with a decimal comma."""
SHOWN = 5
"""Names that a message lists before "and ... more"."""


@final
@dataclass(frozen=True)
class Column:
    """A column is one that a model uses."""

    name: str
    categories: tuple[str, ...]
    """In alphabetical order, one input for each; empty for a column of numbers."""
    fill: float | str | None
    """A missing value becomes this: median or most frequent category of the training table, or nothing."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Name the model's inputs that the column becomes."""
        return tuple(f"{self.name}={category}" for category in self.categories) or (self.name,)


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

    def document(self) -> dict[str, Any]:
        """Return the schema in JSON."""
        return asdict(self)


def from_document(document: Mapping[str, Any]) -> Schema:
    """Invert `Schema.document`. Raises: ValueError: anything else than such a document."""
    try:
        columns = tuple(
            Column(str(c["name"]), tuple(str(text) for text in c["categories"]), c["fill"]) for c in document["columns"]
        )
        schema = Schema(str(document["target"]), str(document["task"]), columns)
    except (KeyError, TypeError) as error:
        raise ValueError("its description of the table is damaged; fit the model again.") from error
    if schema.task not in ("classification", "regression"):
        raise ValueError(f"its task is {schema.task!r}; fit the model again.")
    return schema


def list_names(names: Sequence[str]) -> str:
    """Return names as text: "a, b, c and 4 more"."""
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def require_columns(frame: pl.DataFrame, names: Collection[str], what: str) -> None:
    """Refuse names that are not columns of the table."""
    missing = [name for name in names if name not in frame.columns]
    if not missing:
        return
    hint = ""
    if all(is_number(name) for name in frame.columns):
        hint = "; the first line holds numbers: is there a header line?"
    raise ValueError(f"{what} {list_names(missing)}: no such column; the table has {list_names(frame.columns)}{hint}.")


def refuse_text_among_numbers(column: pl.Series) -> None:
    """Refuse a text column most of whose values are numbers: the others are most likely mistakes."""
    numbers = column.cast(pl.Float64, strict=False)
    present = len(column) - column.null_count()
    odd = numbers.is_null() & column.is_not_null()
    if present == 0 or 2 * int(odd.sum()) >= present:
        separated = column.str.contains(f"{GROUPED}|{COMMA}")
        if present and 2 * int((separated | numbers.is_not_null()).sum() or 0) > present:
            raise ValueError(f"column {column.name!r} is of numbers with {separators(column, odd)}.")
        return
    raise ValueError(
        f"column {column.name!r} is of numbers, but row {first(odd)} has the text {column.filter(odd)[0]!r} "
        f"({odd.sum()} such rows){separators(column, odd, before='; it looks like ')}; correct it, or say "
        f"--categorical or --drop {column.name}."
    )


def separators(column: pl.Series, odd: pl.Series, *, before: str = "") -> str:
    """Advise on separators in the texts of the rows `odd`, after `before`; empty if they are no such numbers."""
    texts = column.filter(odd)
    if not texts.str.contains(f"{GROUPED}|{COMMA}").all():
        return ""
    text, row = texts[0], first(odd)
    plain = re.sub(r"[^\d.+-]", "", text)
    if not texts.str.contains(GROUPED).all():
        return f"{before}decimal commas ({text!r} in row {row}); write 1.5 for 1,5"
    if texts.str.contains(r"^[+-]?\d{1,3},\d{3}$").all():
        return (
            f"{before}thousands separators or decimal commas ({text!r} in row {row}); write {plain} or "
            f"{text.replace(',', '.')}, whichever it is"
        )
    return f"{before}thousands separators ({text!r} in row {row}); write {plain}"


def first(mask: pl.Series) -> int:
    """Return the first row, counted from 1 under the header, where a mask is true."""
    return int(mask.arg_true()[0]) + 1


def refuse_infinite(column: pl.Series) -> None:
    """Refuse infinite numbers."""
    infinite = column.is_infinite()
    if infinite.any():
        raise ValueError(
            f"column {column.name!r} is infinite in row {first(infinite)}; correct it or leave it empty (missing)."
        )


def infer_columns(frame: pl.DataFrame, names: Sequence[str], categorical: Collection[str]) -> list[pl.Series]:
    """Return the named columns as numbers or categories.

    Raises:
        ValueError: text among numbers, infinite numbers, free text, a date.
    """
    out = []
    for name in names:
        column = frame[name]
        if column.dtype == pl.Float64 and name not in categorical:
            refuse_infinite(column)
        elif column.dtype in (pl.String, *NUMERIC):
            column = as_text(column)
            if name not in categorical:
                refuse_text_among_numbers(column)
            refuse_free_text(column)
        else:
            raise ValueError(
                f"column {name!r} has the type {column.dtype}; turn it into numbers, or say --drop {name}."
            )
        out.append(column)
    return out


def refuse_free_text(column: pl.Series) -> None:
    """Refuse a text column of identifiers or sentences."""
    present = column.drop_nulls()
    count = present.n_unique()
    if count > MANY_CATEGORIES or (count > FEW_VALUES and 2 * count > len(present)):
        raise ValueError(
            f"column {column.name!r} has {count} different texts in {len(column)} rows: no categories, but an "
            f"identifier or free text; leave it out: --drop {column.name}."
        )


def learn(
    frame: pl.DataFrame,
    *,
    target: str,
    task: str,
    drop: Collection[str] = (),
    categorical: Collection[str] = (),
    impute: bool = False,
) -> tuple[Schema, list[str]]:
    """Learn the schema of a training table; returns it with notes on columns that are left out.

    Columns with one value, which carry no information, and columns without any are left out.

    Raises:
        ValueError: no such column; missing values without `impute`; what `infer_columns` refuses; nothing left.
    """
    require_columns(frame, [target], "--target")
    require_columns(frame, drop, "--drop")
    require_columns(frame, categorical, "--categorical")
    names = [name for name in frame.columns if name != target and name not in drop]
    empty = [name for name in names if frame[name].null_count() == frame.height]
    columns = infer_columns(frame, [name for name in names if name not in empty], categorical)
    constant = [column.name for column in columns if column.drop_nulls().n_unique() == 1]
    columns = [column for column in columns if column.name not in constant]
    if not impute:
        refuse_gaps(columns, "--impute fills them with the median or the most frequent category")
    if not columns:
        raise ValueError("no column is left to predict from: every one is constant, empty or dropped.")
    notes = [f"left out, {why}: {list_names(left)}" for why, left in (("empty", empty), ("constant", constant)) if left]
    counts = missing_counts(columns)
    if counts:
        notes.append(f"missing values imputed: {counts}")
    return Schema(target, task, tuple(learn_column(column, impute=impute) for column in columns)), notes


def learn_again(known: Schema, frame: pl.DataFrame) -> Schema:
    """Learn the schema of some rows of `known`'s table: the same columns, but for constant ones."""
    columns = [model_values(column, frame[column.name]) for column in known.columns]
    impute = any(column.fill is not None for column in known.columns)
    varying = [column for column in columns if column.drop_nulls().n_unique() > 1]
    return Schema(known.target, known.task, tuple(learn_column(column, impute=impute) for column in varying))


def learn_column(column: pl.Series, *, impute: bool) -> Column:
    """Learn the categories and what fills a gap."""
    if column.dtype == pl.String:
        categories = tuple(column.drop_nulls().unique().sort().to_list())
        frequent = column.drop_nulls().mode().sort()[0]
        return Column(column.name, categories, frequent if impute else None)
    return Column(column.name, (), float(np.median(column.drop_nulls().to_numpy())) if impute else None)


def missing_counts(columns: Sequence[pl.Series]) -> str:
    """Return text such as "age 3, colour 5"; empty if nothing is missing."""
    return list_names([f"{column.name} {column.null_count()}" for column in columns if column.null_count()])


def refuse_gaps(columns: Sequence[pl.Series], remedy: str) -> None:
    """Refuse missing values, with their counts by column."""
    counts = missing_counts(columns)
    if counts:
        row = min(first(column.is_null()) for column in columns if column.null_count())
        raise ValueError(f"missing values (of {len(columns[0])} rows): {counts}; {remedy} (the first is in row {row}).")


def encode(schema: Schema, frame: pl.DataFrame) -> tuple[Float[np.ndarray, "n d"], list[str]]:
    """Make the matrix of inputs: numbers as they are, one 0/1 input for each category; and notes.

    The schema says what the values mean, a row's inputs do not depend on other rows.
    A category that training has not seen is 0 in all inputs of its column. Columns of no use are ignored. Both are
    reported in the notes.

    Raises:
        ValueError: columns that are not there; text for numbers; missing values that the model cannot fill.
    """
    names = [column.name for column in schema.columns]
    _require_training_columns(frame, names)
    present = [model_values(column, frame[column.name]) for column in schema.columns]
    refuse_gaps(
        [values for column, values in zip(schema.columns, present, strict=True) if column.fill is None],
        "fill them, or fit the model with --impute",
    )
    notes, blocks = [], []
    if missing_counts(present):
        notes.append(f"missing values imputed: {missing_counts(present)}")
    extra = [name for name in frame.columns if name not in names and name != schema.target]
    if extra:
        notes.append(f"columns that the model does not use: {list_names(extra)}")
    for column, values in zip(schema.columns, present, strict=True):
        filled = values if column.fill is None else values.fill_null(column.fill)
        if not column.categories:
            blocks.append(filled.to_numpy()[:, None])
            continue
        unseen = filled.filter(~filled.is_in(column.categories)).unique().sort().to_list()
        if unseen:
            notes.append(
                f"column {column.name!r}: no such category in training, all its inputs are 0: {list_names(unseen)}"
            )
        blocks.append(filled.to_numpy()[:, None] == np.array(column.categories, dtype=object))
    return np.concatenate(blocks, axis=1, dtype=np.float64), notes


def _require_training_columns(frame: pl.DataFrame, names: list[str]) -> None:
    """Refuse a table without some columns of the training table; those that only look different are named."""
    missing = [name for name in names if name not in frame.columns]
    if not missing:
        return
    alike = {name.strip().casefold(): name for name in frame.columns if name not in names}
    renamed = [f"{alike[n.strip().casefold()]!r} to {n!r}" for n in missing if n.strip().casefold() in alike]
    remedy = (
        f"rename {list_names(renamed)}" if renamed else "give a table with all columns that the model was fitted to"
    )
    count = f"{len(missing)} of the {len(names)} columns" if len(names) > 1 else "the column"
    raise ValueError(
        f"the table lacks {count} that the model was fitted to: {list_names(missing)}; it has "
        f"{list_names(frame.columns)}; {remedy}."
    )


def model_values(column: Column, values: pl.Series) -> pl.Series:
    """Return a column of a new table as the model's: numbers or text."""
    written = file_values(values)
    if column.categories:
        return match_texts(column.categories, as_text(written).cast(pl.String))
    numbers = written.cast(pl.Float64, strict=False) if written.dtype == pl.String else written
    if numbers.dtype != pl.Float64:
        raise ValueError(f"column {column.name!r} has the type {values.dtype}, and the model was fitted to numbers.")
    odd = numbers.is_null() & written.is_not_null()
    if odd.any():
        raise ValueError(
            f"column {column.name!r} was of numbers in training, but row {first(odd)} has the text "
            f"{written.filter(odd)[0]!r}{separators(written, odd, before='; it looks like ')}; correct it or leave it "
            "empty (missing)."
        )
    refuse_infinite(numbers)
    refuse_rounding(written, numbers, "round it to what the model was fitted to")
    return numbers.fill_nan(None)


def match_texts(known: Sequence[str], texts: pl.Series) -> pl.Series:
    """Replace texts by the `known` ones that other programs write differently: True for true, 3.0 for 3."""
    meanings: dict[str, list[str]] = {}
    for text in known:
        meanings.setdefault(plain(text), []).append(text)
    others = [text for text in texts.drop_nulls().unique().to_list() if text not in known]
    one = {text: meanings[plain(text)][0] for text in others if len(meanings.get(plain(text), ())) == 1}
    return texts.replace(one) if one else texts


def plain(text: str) -> str:
    """Remove from a text what differs between programs that write the same value."""
    if text.casefold() in ("true", "false"):
        return text.casefold()
    return re.sub(r"\.0*$", "", text) if re.fullmatch(r"-?\d+\.0*", text) else text
