"""A column is learned from training rows: its kind, categories and fillings; it makes numbers of any rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, NamedTuple, final, get_args

import numpy as np
import polars as pl

from widelimit.columns import texts
from widelimit.columns.texts import first
from widelimit.messages import list_names
from widelimit.shapes import Float

Kind = Literal["number", "category", "rank", "date", "instant", "duration", "time"]
"""Units: dates (without time zone) and instants (with one) are days since 1970, durations days, times of day hours."""
PERIODS = {"year": 365.2425, "week": 7.0, "day": 1.0}
"""Cycles of dates, in days."""
MOMENTS: tuple[Kind, ...] = ("date", "instant")
CATEGORICAL: tuple[Kind, ...] = ("category", "rank")
LEVELS = 10_000
"""Levels of an ordered category, at most: a model keeps the name of each."""
MISSING = "missingindicator_"
"""scikit-learn names an input so that is 1 where a column is missing."""


@final
@dataclass(frozen=True)
class Column:
    """A column that a model uses has a kind, categories and fillings, learned from training rows."""

    name: str
    categories: tuple[str, ...]
    """Categories, one input for each, or ranks in their order. Empty for a column of numbers."""
    fill: float | str | None
    """The value for missing ones: median or most frequent category of the training rows; None if they are refused."""
    kind: Kind = "number"
    flag: bool = False
    """True if a value was missing in training: another input is then 1 for rows with a missing value."""
    periods: tuple[str, ...] = ()
    """Cycles of dates that the training rows show: sine and cosine of each are inputs."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Name the model's inputs that the column becomes."""
        one_hot = tuple(f"{self.name}={category}" for category in self.categories) if self.kind == "category" else ()
        waves = tuple(f"{self.name}_{period}_{wave}" for period in self.periods for wave in ("sin", "cos"))
        return (one_hot or (self.name,)) + waves + (f"{MISSING}{self.name}",) * self.flag

    @property
    def groups(self) -> list[int]:
        """Count the inputs of each group, in order: all categories share a scale; so do sine and cosine of a cycle."""
        own = len(self.categories) if self.kind == "category" else 1
        return [own] + [2] * len(self.periods) + [1] * self.flag

    def values(self, written: pl.Series) -> pl.Series:
        """Return a column of any table as numbers, or as texts of categories; missing ones are null.

        Raises:
            ValueError: what is no number, no date, infinite, or rounded by float64, where training had numbers.
        """
        if self.kind in CATEGORICAL:
            if kind_of(written) in (None, "duration") and written.dtype != pl.Null:
                raise ValueError(f"column {self.name!r} has the type {written.dtype}, and training had categories.")
            known = texts.match_texts(self.categories, texts.as_text(written))
            if self.kind == "category":
                return known
            places = {text: float(i) for i, text in enumerate(self.categories)}
            return known.replace_strict(places, default=None, return_dtype=pl.Float64)
        if self.kind == "number":
            return self._numbers(written)
        found = texts.parse_dates(written) if written.dtype == pl.String and self.kind in MOMENTS else written
        if written.null_count() == len(written):
            return pl.Series(self.name, [None] * len(written), pl.Float64)
        if found is None or kind_of(found) != self.kind:
            raise ValueError(
                f"column {self.name!r} has the type {written.dtype}, and training had {describe(self.kind)}."
            )
        return in_days(found)

    def _numbers(self, written: pl.Series) -> pl.Series:
        if written.dtype not in (pl.String, pl.Null, pl.Boolean) and kind_of(written) != "number":
            raise ValueError(f"column {self.name!r} has the type {written.dtype}, and the model was fitted to numbers.")
        if written.dtype == pl.Boolean:
            written = written.cast(pl.String)
        numbers = written.cast(pl.Float64, strict=False)
        odd = numbers.is_null() & written.is_not_null()
        if odd.any():
            raise ValueError(
                f"column {self.name!r} was of numbers in training, but row {first(odd)} has the text "
                f"{written.filter(odd)[0]!r}{texts.separators(written, odd, before='; it looks like ')}; correct it or "
                "leave it empty (missing)."
            )
        texts.refuse_infinite(numbers)
        texts.refuse_rounding(written, numbers, "round it to what the model was fitted to")
        return numbers.fill_nan(None)

    def encode(self, values: pl.Series) -> Float[np.ndarray, "n k"]:
        """Make the inputs of what `values` returns: numbers, one 0/1 input for each category, cycles, and the flag."""
        filled = values if self.fill is None else values.fill_null(self.fill)
        if self.kind == "category":
            blocks = [filled.to_numpy()[:, None] == np.array(self.categories, dtype=object)]
        else:
            number = filled.to_numpy()[:, None]
            blocks = [number]
            for period in self.periods:
                angle = 2 * math.pi * np.mod(number, PERIODS[period]) / PERIODS[period]
                blocks += [np.sin(angle), np.cos(angle)]
        if self.flag:
            blocks.append(values.is_null().to_numpy()[:, None])
        return np.concatenate(blocks, axis=1, dtype=np.float64)


def from_document(kept: Mapping[str, Any]) -> Column:
    """Invert `dataclasses.asdict`, also of version 0.1.0. Raises: KeyError, TypeError, ValueError: no such document."""
    categories = tuple(str(text) for text in kept["categories"])
    kind, flag = kept.get("kind", "category" if categories else "number"), kept.get("flag", False)
    periods = tuple(kept.get("periods", ()))
    fill, fill_type = kept["fill"], str if kind == "category" else float
    if kind not in get_args(Kind) or not isinstance(flag, bool) or not set(periods) <= set(PERIODS):
        raise ValueError("a column of an unknown kind")
    if bool(categories) != (kind in CATEGORICAL) or len(set(categories)) < len(categories):
        raise ValueError("categories of a column that has none, or one of them twice")
    if periods and kind not in MOMENTS:
        raise ValueError("cycles of a column that is no date")
    if fill is not None and not (isinstance(fill, fill_type) and (fill_type is str or math.isfinite(float(fill)))):
        raise TypeError("a filling that the column cannot have")
    return Column(str(kept["name"]), categories, fill, kind, flag, periods)


def document(column: Column) -> dict[str, Any]:
    """Return a column in JSON."""
    return asdict(column) | {"categories": list(column.categories), "periods": list(column.periods)}


def kind_of(column: pl.Series) -> Kind | None:
    """Return the kind of a column by its type, or None if it is of no kind."""
    dtype = column.dtype
    if dtype.is_numeric():
        return "number"
    if dtype == pl.Datetime:
        return "instant" if dtype.time_zone else "date"  # type: ignore[attr-defined]
    if dtype in (pl.Boolean, pl.Enum):
        return "rank"
    kinds: dict[Any, Kind] = {pl.Date: "date", pl.Duration: "duration", pl.Time: "time"}
    return kinds.get(dtype.base_type(), "category" if dtype in (pl.String, pl.Categorical) else None)


def describe(kind: Kind) -> str:
    """Name a kind in the plural."""
    return {"date": "dates without a time zone", "instant": "dates with a time zone"}.get(kind, f"{kind}s")


def in_days(column: pl.Series) -> pl.Series:
    """Return dates and durations in days, times of day in hours."""
    if column.dtype == pl.Date:
        return column.cast(pl.Int32).cast(pl.Float64)
    if column.dtype == pl.Time:
        return column.cast(pl.Int64).cast(pl.Float64) / 3.6e12
    steps: int = {"ms": 10**3, "us": 10**6, "ns": 10**9}[column.dtype.time_unit]  # type: ignore[attr-defined]
    return column.cast(pl.Int64).cast(pl.Float64) / (86400 * steps)


def periods(days: np.ndarray) -> tuple[str, ...]:
    """Name the cycles that dates show: two of each, at steps of at most half of it."""
    at = np.unique(days)
    if len(at) < 2:
        return ()
    step = np.diff(at).min()
    return tuple(name for name, period in PERIODS.items() if at[-1] - at[0] >= 2 * period and 2 * step <= period)


def learn(column: pl.Series, weights: Float[np.ndarray, " n"] | None = None, *, fill: bool = True) -> Column:
    """Learn a column of training rows by its type: of text, from its values.

    Args:
        column: at least one value is not missing.
        weights: (n,), a weight of 2 is the same row twice; equal ones unless given.
        fill: False: a missing value will be an error.

    Raises:
        ValueError: infinite numbers, text among numbers or dates, free text, a type of no kind; each with the column.
    """
    name, kind = column.name, kind_of(column)
    categories: tuple[str, ...] = ()
    if kind is None:
        raise ValueError(
            f"column {name!r} has the type {column.dtype}; turn it into numbers, or leave it out (command line: --drop "
            f"{name})."
        )
    if column.dtype == pl.String:
        kind, categories, column = learn_text(column)
    elif kind == "rank":
        enum = column.dtype == pl.Enum
        categories = tuple(column.dtype.categories) if enum else texts.LOGICAL  # type: ignore[attr-defined]
        _refuse_many_levels(name, categories)
    elif kind == "category":
        texts.refuse_free_text(column.cast(pl.String))
    elif kind == "number":
        texts.refuse_rounding(
            column,
            column.cast(pl.Float64),
            f"make it categories, or leave it out (command line: --categorical {name} or --drop {name})",
        )
    draft = Column(name, categories, None, kind)
    if kind == "category":
        return settle(draft, texts.as_text(column), weights, fill=fill)
    return settle(draft, draft.values(column), weights, fill=fill)


def _refuse_many_levels(name: str, levels: Sequence[str]) -> None:
    if len(levels) > LEVELS:
        raise ValueError(
            f"column {name!r} is an ordered category of {len(levels)} levels, at most {LEVELS} can be told apart; make "
            f"it a column of numbers, drop the levels that are not used, or leave it out (command line: --drop {name})."
        )


def settle(
    known: Column, values: pl.Series, weights: Float[np.ndarray, " n"] | None = None, *, fill: bool = True
) -> Column:
    """Learn categories, filling, flag and cycles of a column of known kind from what `Column.values` returns."""
    there = values.is_not_null().to_numpy()
    present, shares = values.drop_nulls().to_numpy(), (np.ones(len(there)) if weights is None else weights)[there]
    categories, middle = known.categories, frequent if known.kind == "category" else weighted_median
    if known.kind == "category":
        categories = tuple(values.drop_nulls().unique().sort().to_list())
    return replace(
        known,
        categories=categories,
        fill=middle(present, shares) if fill else None,
        flag=fill and not there.all(),
        periods=periods(present) if known.kind in MOMENTS else (),
    )


def learn_text(column: pl.Series) -> tuple[Kind, tuple[str, ...], pl.Series]:
    """Return kind, categories of ranks, and values of a column of text: dates, true and false, or categories."""
    pair = texts.logical(column)
    if pair:
        return "rank", pair, column
    dates = texts.parse_dates(column)
    if dates is not None:
        kind = kind_of(dates)
        assert kind is not None
        return kind, (), dates
    texts.refuse_text_among_numbers(column)
    texts.refuse_free_text(column)
    return "category", (), column


def frequent(values: np.ndarray, weights: np.ndarray) -> str:
    """Return the text of the largest weight, the first of several."""
    found, at = np.unique(values.astype(str), return_inverse=True)
    return str(found[np.argmax(np.bincount(at, weights))])


def weighted_median(values: np.ndarray, weights: np.ndarray) -> float:
    """Return the median of values repeated as often as their weights say."""
    order = np.argsort(values, kind="stable")
    values, share = values[order], np.cumsum(weights[order])
    half = share[-1] / 2
    low, high = np.searchsorted(share, half, side="left"), np.searchsorted(share, half, side="right")
    return float((values[low] + values[min(high, len(values) - 1)]) / 2)


def shown(fill: float | str | None) -> str:
    """Return a filling for a message."""
    return f"{fill:.4g}" if isinstance(fill, float) else repr(fill)


class Encoding(NamedTuple):
    """The inputs of a table come with notes on filled values, and on values that training has not seen."""

    X: Float[np.ndarray, "n d"]
    filled: list[str]
    """All fillings, in one text."""
    gaps: list[str]
    """Columns that are missing here and in no training row."""
    unseen: list[str]
    """Categories that training has not seen."""


def encode(columns: Sequence[Column], frame: pl.DataFrame) -> Encoding:
    """Make the matrix of inputs. A row's inputs do not depend on other rows.

    A category that training has not seen is 0 in all inputs of its column; a rank is filled as if it were missing.

    Raises:
        ValueError: columns that are not there; what `Column.values` refuses; missing values that are not filled.
    """
    require_training_columns(frame, [column.name for column in columns])
    values = [column.values(frame[column.name]) for column in columns]
    strict = [found for column, found in zip(columns, values, strict=True) if column.fill is None]
    refuse_gaps(strict, "fill them, or fit the model with --impute")
    gap_notes, unseen_notes = [], []
    for column, found in zip(columns, values, strict=True):
        written = frame[column.name]
        gaps = written.null_count() + (int(written.is_nan().sum() or 0) if written.dtype.is_float() else 0)
        unseen = found.is_not_null() & ~found.is_in(column.categories) if column.kind == "category" else None
        if column.kind == "rank":
            unseen = found.is_null() & written.is_not_null()
        if gaps and not column.flag:
            gap_notes.append(
                f"column {column.name!r} is missing in {gaps} of {len(found)} rows, and in no training row; filled "
                f"with {shown(column.fill)}"
            )
        if unseen is not None and unseen.any():
            new = list_names(texts.as_text(written.filter(unseen)).unique().sort().to_list())
            made = "all its inputs are 0" if column.kind == "category" else f"filled with rank {shown(column.fill)}"
            unseen_notes.append(
                f"column {column.name!r}: no such category in training ({unseen.sum()} rows), {made}: {new}"
            )
    counts = missing_counts(values)
    filled = [f"missing values imputed: {counts}"] if counts else []
    X = np.hstack([column.encode(found) for column, found in zip(columns, values, strict=True)])
    return Encoding(X, filled, gap_notes, unseen_notes)


def missing_counts(columns: Sequence[pl.Series]) -> str:
    """Return text such as "age (3), colour (5)"; empty if nothing is missing."""
    return list_names([f"{column.name} ({column.null_count()})" for column in columns if column.null_count()])


def refuse_gaps(columns: Sequence[pl.Series], remedy: str) -> None:
    """Refuse missing values, with their counts by column."""
    counts = missing_counts(columns)
    if counts:
        row = min(first(column.is_null()) for column in columns if column.null_count())
        raise ValueError(f"missing values (of {len(columns[0])} rows): {counts}; {remedy} (the first is in row {row}).")


def require_training_columns(frame: pl.DataFrame, names: list[str]) -> None:
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
