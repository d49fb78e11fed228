"""A CSV or Parquet file becomes a table: columns of numbers (Float64, missing: null) and of text (String)."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl

from widelimit import memory
from widelimit.columns.texts import refuse_rounding

MISSING = ("", "NA", "N/A", "n/a", "NaN", "nan", "null", "NULL", "None", "?")
"""Texts that stand for a missing value."""
TEXT_FILES = (".csv", ".tsv", ".txt")
PARQUET_FILES = (".parquet", ".pq")
SEPARATORS = ",;\t|"
HEAD = 2**16
"""Bytes at the start of a file by which its kind is decided."""
ROW_NUMBERS = re.compile(r"__index_level_\d+__|Unnamed: \d+")
"""pandas gives this name to an index without a name."""
GROWTH = 6
"""Bytes of memory for a byte of CSV while it is read: the file, its fields with 16 bytes each, and their numbers."""
NUMERIC = (pl.Float64, pl.Float32, pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.UInt8, pl.UInt16, pl.UInt32, pl.UInt64)
TEXTUAL = (pl.String, pl.Categorical, pl.Enum, pl.Boolean)


def read(path: Path, *, written: Collection[str] = (), unused: Collection[str] = ()) -> pl.DataFrame:
    """Read the training table: numbers as Float64, text and booleans as stripped String, missing values as null.

    A column is of numbers if all its values are, but for those named in `written`, which are as the file has them. The
    `unused` are not looked at. Columns of other types (dates, lists) stay as Parquet has them. Lines without a field
    are skipped.

    Raises:
        ValueError: no such file, not a table, no rows, a column name twice, integers that floats cannot hold; each with
            what to write instead.
        MemoryError: the table is larger than the memory that is free; nothing was read.
    """
    frame = read_raw(path)
    if Path(path).suffix.lower() in TEXT_FILES:
        frame = frame.filter(~pl.all_horizontal(pl.all().is_null()))
        require_rows(path, frame)
    columns = [column for column in frame.get_columns() if column.name not in unused]
    settled = [file_values(column) if column.name in written else infer_type(column) for column in columns]
    return frame.with_columns(settled)


def read_raw(path: Path) -> pl.DataFrame:
    """Read a table without interpreting its values: CSV fields as text, Parquet in its own types.

    Every line is a row, but for blank ones at the end of the file. Raises: as `read`.
    """
    path = Path(path)
    check_readable(path)
    suffix = path.suffix.lower()
    with plain_errors(path):
        if suffix in TEXT_FILES:
            frame = read_text(path)
        elif suffix in PARQUET_FILES:
            frame = read_parquet(path)
        else:
            known = ", ".join(TEXT_FILES + PARQUET_FILES)
            raise ValueError(f"{path}: tables end in {known}, not in {path.suffix!r}; rename or convert the file.")
    require_rows(path, frame)
    return frame


def require_rows(path: Path, frame: pl.DataFrame) -> None:
    """Refuse a table without rows."""
    if frame.height == 0:
        raise ValueError(f"{path}: has no rows under its header; give at least one.")


def check_readable(path: Path) -> None:
    """Refuse what is not a file that can be read, in one line."""
    if not path.exists():
        raise ValueError(f"{path}: there is no such file; check the name (this folder is {Path.cwd().name}).")
    if not path.is_file():
        raise ValueError(f"{path}: is not a file; give the name of one.")
    try:
        with path.open("rb") as stream:
            stream.read(1)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); check its permissions.") from error


@contextmanager
def plain_errors(path: Path) -> Iterator[None]:
    """Turn Polars' errors into ValueError of one line that names the file."""
    try:
        yield
    except pl.exceptions.NoDataError as error:
        raise ValueError(f"{path}: is empty; give a file with a header line and rows.") from error
    except (pl.exceptions.PolarsError, OSError) as error:
        text = str(error).strip().partition("\n")[0]
        if "utf-8" in text:
            raise ValueError(not_text(path)) from error
        if "more fields" in text:
            text = "a row has more fields than the header names; quote fields that contain the separator"
        if "could not parse" in text:
            text = "a quotation mark is not closed"
        raise ValueError(f"{path}: is not a table that can be read: {text}.") from error


def not_text(path: Path) -> str:
    """Return the message for bytes that are not UTF-8."""
    return f"{path}: is not UTF-8 text; save it as UTF-8, or convert it: iconv -f latin1 -t utf-8 '{path}'."


def read_text(path: Path) -> pl.DataFrame:
    """Read all fields of a CSV file as text; the separator is that of SEPARATORS which the header has most of.

    Columns without a name, which programs write for row numbers, and blank lines at the end are left out.
    """
    with path.open("rb") as stream:
        head = stream.read(HEAD)
        stream.seek(max(0, path.stat().st_size - HEAD))
        blank = blank_lines(stream.read())
    if b"\0" in head:
        raise ValueError(f"{path}: is a binary file, not CSV text; a Parquet file must end in .parquet.")
    require_memory(path, GROWTH * path.stat().st_size)
    try:
        header = head.partition(b"\n")[0].decode("utf-8-sig").rstrip("\r")
    except UnicodeDecodeError as error:
        raise ValueError(not_text(path)) from error
    unquoted = re.sub(r'"[^"]*"', "", header)
    separator = max(SEPARATORS, key=unquoted.count)
    frame = pl.read_csv(path, separator=separator, has_header=False, infer_schema=False, glob=False)
    names = [str(name or "").strip() for name in frame.row(0)]
    check_names(path, [name for name in names if name])
    kept = [i for i, name in enumerate(names) if name and not ROW_NUMBERS.fullmatch(name)]
    warn_of_row_numbers(path, [name for i, name in enumerate(names) if i not in kept])
    return pl.DataFrame([frame.to_series(i)[1 : max(1, frame.height - blank)].alias(names[i]) for i in kept])


def blank_lines(tail: bytes) -> int:
    """Count lines at the end of a file that hold nothing."""
    lines = tail.removesuffix(b"\n").split(b"\n")
    return next((i for i, line in enumerate(reversed(lines)) if line.strip()), len(lines))


def check_names(path: Path, names: list[str]) -> None:
    """Refuse a header without names, and a name that occurs twice."""
    if not names:
        raise ValueError(f"{path}: its first line names no columns; write a header line.")
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        hint = " (is there a header line?)" if is_number(twice[0]) else ""
        raise ValueError(f"{path}: the column {twice[0]!r} is there {names.count(twice[0])} times; rename one{hint}.")


def is_number(text: str) -> bool:
    """Return True if a text is a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def warn_of_row_numbers(path: Path, names: list[str]) -> None:
    """Warn of columns of row numbers, which programs write without a name or with one of their own."""
    if names:
        called = ", ".join(repr(name) for name in names if name) or "without a name"
        warnings.warn(f"{path.name}: the column {called} is left out: it holds row numbers", UserWarning, stacklevel=2)


def read_parquet(path: Path) -> pl.DataFrame:
    """Read a Parquet file, if 16 bytes a value (the values, and as Float64) are free."""
    rows = pl.scan_parquet(path, glob=False).select(pl.len()).collect().item()
    columns = len(pl.read_parquet_schema(path))
    require_memory(path, max(16 * rows * columns, 2 * path.stat().st_size))
    frame = pl.read_parquet(path, glob=False)
    numbered = [name for name in frame.columns if ROW_NUMBERS.fullmatch(name)]
    warn_of_row_numbers(path, numbered)
    return frame.drop(numbered)


def require_memory(path: Path, size: int) -> None:
    """Refuse to read a file that does not fit in memory."""
    memory.require(size, f"{path}: reading it", remedy="cut the file to the rows and columns that you need (head, cut)")


def file_values(column: pl.Series) -> pl.Series:
    """Return a column's values as the file has them: stripped texts, missing ones null; of floats Float64."""
    if isinstance(column.dtype, pl.Decimal) or column.dtype in (pl.Float64, pl.Float32):
        return column.cast(pl.Float64).fill_nan(None)
    if column.dtype not in (pl.Null, *NUMERIC, *TEXTUAL):
        return column
    text = column.cast(pl.String).str.strip_chars()
    return pl.select(pl.when(text.is_in(MISSING)).then(None).otherwise(text).alias(column.name)).to_series()


def infer_type(column: pl.Series, *, remedy: str = "") -> pl.Series:
    """Return numbers as Float64, text and booleans as stripped String, missing values as null; other types as they are.

    Raises:
        ValueError: integers that Float64 cannot hold, so that two could become equal; with what to do.
    """
    remedy = remedy or f"say --categorical {column.name} or --drop {column.name}"
    if isinstance(column.dtype, pl.Decimal) or column.dtype in NUMERIC:
        refuse_rounding(column, column.cast(pl.Float64), remedy)
        return column.cast(pl.Float64).fill_nan(None)
    text = file_values(column)
    if column.dtype in (pl.Categorical, pl.Enum):
        return text.cast(column.dtype)
    if column.dtype != pl.String:
        return text
    numbers = text.cast(pl.Float64, strict=False)
    if numbers.null_count() == text.null_count() < len(text):
        refuse_rounding(text, numbers, remedy)
        return numbers.fill_nan(None)
    return text
