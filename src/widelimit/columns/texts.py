"""A column of text holds categories, dates or identifiers, or numbers with mistakes among them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal

import polars as pl

CATEGORIES = {10: 1, 100: 2, 1000: 4}
"""A text column has categories if it has at most so many different texts, with so many rows each on average."""
GROUPED = r"^[+-]?\d{1,3}(?:[, '\x{2019}_\x{a0}\x{202f}]\d{3})+(?:\.\d+)?$"
"""A number with thousands separators."""
COMMA = r"^[+-]?\d{1,3}(?:\.\d{3})+,\d+$|^[+-]?\d*,\d+$"
"""A number with a decimal comma."""
ISO = r"^(\d{4}-\d{2}-\d{2})(?:[T ](\d{2}:\d{2})(:\d{2}(?:\.\d+)?)?(Z|[+-]\d{2}:?\d{2})?)?$"
"""A date, or a date with a time, in ISO 8601: groups for the date, hours and minutes, seconds, and the zone."""
DATE = r"^\d{1,4}[./-]\d{1,2}[./-]\d{1,4}(?:$|[T ])"
"""A date of another form: its month may be its first or its second number."""
EXACT = 2**53
"""The first integer from which floats do not represent every integer."""
LOGICAL = ("false", "true")


def first(mask: pl.Series) -> int:
    """Return the first row, counted from 1, where a mask is true."""
    return int(mask.arg_true()[0]) + 1


def refuse_text_among_numbers(column: pl.Series) -> None:
    """Refuse a text column most of whose values are numbers: the others are most likely mistakes."""
    numbers = column.cast(pl.Float64, strict=False)
    present = len(column) - column.null_count()
    odd = numbers.is_null() & column.is_not_null()
    if not odd.any():
        return
    if 2 * int(odd.sum()) >= present:
        separated = column.str.contains(f"{GROUPED}|{COMMA}")
        if 2 * int((separated | numbers.is_not_null()).sum() or 0) > present:
            raise ValueError(f"column {column.name!r} is of numbers with {separators(column, odd)}.")
        return
    raise ValueError(
        f"column {column.name!r} is of numbers, but row {first(odd)} has the text {column.filter(odd)[0]!r} "
        f"({odd.sum()} such rows){separators(column, odd, before='; it looks like ')}; correct it, make the column "
        f"one of categories (command line: --categorical {column.name}), or leave it out (--drop {column.name})."
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


def refuse_free_text(column: pl.Series) -> None:
    """Refuse a text column of identifiers or sentences."""
    present = column.drop_nulls()
    count = present.n_unique()
    if any(count <= most and rows * count <= len(present) for most, rows in CATEGORIES.items()):
        return
    if present.str.contains(DATE).all():
        hint = f"dates of a form that is not known ({present[0]!r}); write 2026-12-31, or leave it out"
    elif present.cast(pl.Float64, strict=False).null_count() == 0:
        hint = "numbers; make it a column of numbers, or leave it out"
    else:
        hint = "no categories, but an identifier or free text; leave it out"
    raise ValueError(
        f"column {column.name!r} has {count} different texts in {len(column)} rows: {hint} (command line: "
        f"--drop {column.name})."
    )


def refuse_infinite(column: pl.Series) -> None:
    """Refuse infinite numbers."""
    infinite = column.is_infinite()
    if infinite.any():
        raise ValueError(
            f"column {column.name!r} is infinite in row {first(infinite)} (the first row is 1); correct it or leave it "
            "empty (missing)."
        )


def refuse_rounding(column: pl.Series, numbers: pl.Series, remedy: str) -> None:
    """Refuse integers, as text or in their own type, that differ from their floats `numbers`."""
    if column.dtype in (pl.Float64, pl.Float32):
        return
    large = (numbers.abs() >= EXACT).fill_null(False)
    for row in large.arg_true():
        text, number = str(column[row]), numbers[row]
        if re.fullmatch(r"[+-]?\d+(\.0*)?", text) and int(Decimal(text)) != int(number):
            raise ValueError(
                f"column {column.name!r}: {text} in row {row + 1} is an integer beyond 2^53, which a float rounds to "
                f"{int(number)}; {remedy}."
            )


def as_text(column: pl.Series) -> pl.Series:
    """Return a column as text, 3.0 as "3", true as "true"; a column of text as it is."""
    if column.dtype not in (pl.Float64, pl.Float32):
        return column.cast(pl.String)
    return pl.Series(column.name, [None if value is None else number_text(value) for value in column], pl.String)


def number_text(value: float) -> str:
    """Return the shortest text of a number: "3" for 3.0."""
    return str(int(value)) if value.is_integer() else repr(value)


def match_texts(known: Sequence[str], texts: pl.Series) -> pl.Series:
    """Replace texts by the `known` ones that other programs write differently: True for true, 3.0 for 3."""
    meanings: dict[str, list[str]] = {}
    for text in known:
        meanings.setdefault(plain(text), []).append(text)
    others = [text for text in texts.drop_nulls().unique().to_list() if text not in known]
    one = {text: meanings[plain(text)][0] for text in others if len(meanings.get(plain(text), ())) == 1}
    return texts.replace(one) if one else texts


def plain(text: str) -> str:
    """Return a text without the differences between programs that write the same value."""
    if text.casefold() in LOGICAL:
        return text.casefold()
    return re.sub(r"\.0*$", "", text) if re.fullmatch(r"-?\d+\.0*", text) else text


def logical(texts: pl.Series) -> tuple[str, ...]:
    """Return the two texts that stand for false and true, as written; empty if there are other texts."""
    found = texts.drop_nulls().unique().to_list() if texts.drop_nulls().n_unique() == 2 else []
    pair = tuple(sorted(found, key=plain))
    return pair if tuple(map(plain, pair)) == LOGICAL else ()


def parse_dates(texts: pl.Series) -> pl.Series | None:
    """Return dates in ISO 8601 as Datetime, with a zone if all have one; None if most texts are no dates.

    Raises:
        ValueError: other texts among dates; a date that the calendar does not have.
    """
    present = len(texts) - texts.null_count()
    date, minutes, seconds, zone = (texts.str.extract(ISO, group) for group in (1, 2, 3, 4))
    if not present or 2 * (len(date) - date.null_count()) <= present:
        return None
    whole = date + "T" + minutes.fill_null("00:00") + seconds.fill_null(":00")
    if zone.null_count() == texts.null_count():
        whole, form = whole + zone.str.replace("Z", "+00:00"), "%Y-%m-%dT%H:%M:%S%.f%:z"
    else:
        whole, form = whole.set(zone.is_not_null(), None), "%Y-%m-%dT%H:%M:%S%.f"
    parsed = whole.str.to_datetime(form, time_unit="us", strict=False)
    odd = parsed.is_null() & texts.is_not_null()
    if odd.any():
        raise ValueError(
            f"column {texts.name!r} is of dates, but row {first(odd)} has the text {texts.filter(odd)[0]!r} "
            f"({odd.sum()} such rows); write all as 2026-12-31 or 2026-12-31T23:59, all with or all without a zone."
        )
    return parsed
