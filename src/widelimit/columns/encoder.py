"""Tables become numbers by one scikit-learn transformer: estimators and the command line use it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Self, final

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from widelimit import validation
from widelimit.lossless import package_of
from widelimit.messages import list_names
from widelimit.shapes import Float

if TYPE_CHECKING:
    import polars as pl

    from widelimit.columns.column import Column, Encoding


@final
class TableEncoder(TransformerMixin, BaseEstimator):
    """The encoder makes a table into numbers, column by column, by the type of each.

    Numbers stay as they are. Categories (text, unordered categorical) become one input of 0 or 1 each. Ordered
    categories (pandas' ordered Categorical, polars' Enum) and booleans become their rank. Dates become days since 1970,
    with sine and cosine of the year, week or day that they span twice; durations become days, times of day hours.
    A missing value becomes the median or the most frequent category of the training rows, with one more input that is 1
    where it was missing, if one was missing in training. Text is categories (at most 100), dates in ISO 8601, or
    refused.

    The estimators apply it to tables of pandas, polars or pyarrow that have columns other than numbers, or missing
    values.

    Attributes:
        columns_: kind, categories and fillings of each column, learned in the fit.
        n_features_in_, feature_names_in_: see scikit-learn.
    """

    columns_: tuple[Column, ...]
    n_features_in_: int
    feature_names_in_: np.ndarray

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Learn the columns of X (n, d): pandas, polars, pyarrow, or an array; y is ignored.

        Args:
            X: the training rows.
            y: not used.
            sample_weight: (n,), weights >= 0 of medians and frequencies; rows of weight 0 are left out.

        Raises:
            TypeError, ValueError: a column that is of no kind, with its name and what to do; no column with a value.
        """
        from widelimit.columns import column

        frame = self._frame(X, reset=True)
        weights = validation.sample_weights(sample_weight, frame.height)
        frame, weights = frame.filter(weights > 0), weights[weights > 0]
        empty = [each.name for each in frame.get_columns() if each.null_count() == len(each)]
        if empty:
            warnings.warn(f"left out, without any value: {list_names(empty)}", stacklevel=2)
        kept = [each for each in frame.get_columns() if each.name not in empty]
        if not kept:
            raise ValueError("no column is left to predict from: every one is empty.")
        self.columns_ = tuple(column.learn(each, weights) for each in kept)
        return self

    def transform(self, X: Any) -> Float[np.ndarray, "n k"]:
        """Return the inputs, (n, k) numbers. Columns are found by their names; others are ignored.

        Warns of categories that training has not seen (0 in all their inputs), and of missing values in columns that
        had none.

        Raises:
            TypeError, ValueError: a column that is not there, or not what it was in training.
        """
        return inputs(self, X)

    def encode(self, X: Any) -> Encoding:
        """Return the inputs with notes on filled values and on categories that training has not seen."""
        from widelimit.columns import column

        check_is_fitted(self)
        return column.encode(self.columns_, self._frame(X, reset=False))

    def _frame(self, X: Any, *, reset: bool) -> pl.DataFrame:
        """Return X as a polars table, and learn its names."""
        from widelimit.columns import frames

        if not is_table(X):
            X = validate_data(self, X, dtype=None, reset=reset, ensure_all_finite=False)
            return frames.read(X)
        frame = frames.read(X)
        if not frame.width:
            raise ValueError("X has no columns, 0 feature(s); at least one is needed.")
        if not frame.height:
            raise ValueError(f"X is empty: shape {frame.shape}, 0 sample(s); at least one row is needed.")
        if reset:
            self.n_features_in_, self.feature_names_in_ = frame.width, np.array(frame.columns, dtype=object)
        return frame

    @property
    def input_groups(self) -> list[int]:
        """Return the number of each input's group: all categories of a column are one, both inputs of a cycle one."""
        counts = [count for column in self.columns_ for count in column.groups]
        return np.repeat(np.arange(len(counts)), counts).tolist()

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Name the inputs: age, colour=red, when_year_sin, missingindicator_age, ..."""
        check_is_fitted(self)
        return np.array([name for column in self.columns_ for name in column.inputs], dtype=object)

    @property
    def is_identity(self) -> bool:
        """Return True if all columns are numbers or booleans without gaps: an array of them stays as it is."""
        return len(self.columns_) == self.n_features_in_ and all(
            (column.kind == "number" or column.categories == ("false", "true")) and not column.flag
            for column in self.columns_
        )

    def document(self) -> dict[str, Any]:
        """Return what was learned in JSON."""
        from widelimit.columns import column

        return {"names": self.feature_names_in_.tolist(), "columns": [column.document(each) for each in self.columns_]}

    def restore(self, kept: Mapping[str, Any]) -> Self:
        """Invert `document`. Raises: LookupError, TypeError, ValueError: no such document."""
        from widelimit.columns import column

        names = [str(name) for name in kept["names"]]
        self.columns_ = tuple(column.from_document(each) for each in kept["columns"])
        if not self.columns_ or not {column.name for column in self.columns_} <= set(names):
            raise ValueError("columns that the table does not have")
        self.n_features_in_, self.feature_names_in_ = len(names), np.array(names, dtype=object)
        return self

    def __sklearn_tags__(self) -> Any:
        tags = TransformerMixin.__sklearn_tags__(self)
        tags.input_tags.allow_nan = tags.input_tags.string = tags.input_tags.categorical = True
        return tags


class Encoded(NamedTuple):
    """The rows were made by an encoder before: fit and predict take them as they are."""

    encoder: TableEncoder
    X: Float[np.ndarray, "n k"]


def inputs(encoder: TableEncoder, X: Any) -> Float[np.ndarray, "n k"]:
    """Return what `transform` does with its warnings: an array, whatever scikit-learn's `set_output` says."""
    found = encoder.encode(X)
    for text in found.gaps + found.unseen:
        warnings.warn(text, stacklevel=4)
    return found.X


def split(encoder: TableEncoder, X: Float[np.ndarray, "n k"]) -> list[np.ndarray]:
    """Return the inputs of each column."""
    return np.split(X, np.cumsum([len(column.inputs) for column in encoder.columns_])[:-1], axis=1)


def drop_constants(encoder: TableEncoder, X: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
    """Let the encoder forget the columns that are constant in its inputs X, unless all are; returns the others."""
    parts = dict(zip(encoder.columns_, split(encoder, X), strict=True))
    varying = {column: part for column, part in parts.items() if np.ptp(part, axis=0).any()}
    if not varying:
        return X
    encoder.columns_ = tuple(varying)
    return np.hstack([*varying.values()])


def codes(encoder: TableEncoder, X: Float[np.ndarray, "n k"]) -> tuple[Float[np.ndarray, "n d"], list[str]]:
    """Return one number for each column of inputs X, the place of a category, and the columns' names."""
    places = [
        part[:, : len(column.categories)].argmax(axis=1) if column.kind == "category" else part[:, 0]
        for column, part in zip(encoder.columns_, split(encoder, X), strict=True)
    ]
    return np.stack(places, axis=1).astype(np.float64), [column.name for column in encoder.columns_]


def is_table(value: Any) -> bool:
    """Return True for a table of pandas, polars or pyarrow, which has columns with names and types."""
    return package_of(value) in ("pandas", "polars", "pyarrow") and len(getattr(value, "shape", ())) == 2


def needs_encoding(value: Any) -> bool:
    """Return True for a table with other columns than finite numbers."""
    if not is_table(value):
        return False
    package = package_of(value)
    if package == "pandas":
        columns = [value.iloc[:, j] for j in range(value.shape[1])]
        return not all(
            getattr(c.dtype, "kind", "O") in "fiub" and not c.isna().any() and np.isfinite(c.to_numpy()).all()
            for c in columns
        )
    if package == "polars":
        return not all(_is_plain(column) for column in value.get_columns())
    return True


def _is_plain(column: pl.Series) -> bool:
    """Return True for numbers of polars that NumPy has as well, without gaps: no Decimal, no integers of 128 bits."""
    dtype = column.dtype
    known = (dtype.is_integer() and "128" not in str(dtype)) or (dtype.is_float() and bool(column.is_finite().all()))
    return known and not column.null_count()


def learn_rows(X: Any, sample_weight: Any) -> tuple[TableEncoder | None, Any]:
    """Learn the columns of a table; returns the encoder, and the rows that a model takes: inputs, or X as it is."""
    if isinstance(X, Encoded):
        return X.encoder, X.X
    if not is_table(X):
        return None, X
    if needs_encoding(X):
        encoder = TableEncoder().fit(X, sample_weight=sample_weight)
        return encoder, drop_constants(encoder, encoder.encode(X).X)
    names = list(X.columns)
    others = [name for name in names if not isinstance(name, str)]
    if others and len(others) < len(names):
        raise TypeError(
            f"the table has columns whose names are text, and others whose names are not "
            f"({validation.shown(others[0])}); make all of them text: X.rename(columns=str)."
        )
    if others and len(set(names)) == len(names):
        return None, X
    return TableEncoder().fit(X), X  # refuses names that are there twice; for missing values in later tables


def new_rows(known: TableEncoder | None, X: Any, names: Any) -> Float[np.ndarray, "m k"] | None:
    """Return new rows as inputs of a model that was fitted to a table; None: it takes X as it is.

    Raises: TypeError, ValueError: no table, or another one.
    """
    if isinstance(X, Encoded):
        return X.X
    if known is None or (names is not None and known.is_identity and not needs_encoding(X)):
        return None
    if is_table(X):
        return inputs(known, X)
    if names is None:
        return None
    raise TypeError(
        f"X is {validation.shown(X)}, and the model was fitted to a table with columns that are no numbers, or have "
        f"missing values: pass a table of pandas, polars or pyarrow with the columns {list_names(names)}."
    )
