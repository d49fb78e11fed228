"""Tables for small data have a few shapes: compiling again costs more than computing with padding.

H, the longest expansion, has the lengths of the first table of its kind; what is longer in a later one is in chunks.
The others are padded with zeros. Zero terms change no bit of a result.
"""

import threading
from collections.abc import Hashable
from dataclasses import replace

import numpy as np

from widelimit.activations.tabulated.chunks import LONGEST, cut, fill
from widelimit.activations.tabulated.coincident import POINTS, Coincident
from widelimit.activations.tabulated.expansions import PLACES, Expansion
from widelimit.activations.tabulated.tables import Part, Table

SMALL = 1024
"""Rows of all inputs together up to which shapes are fixed."""
_COLUMNS = (16, 24)
_CHUNKS = (24, 48)
_WIDTH = 4
"""Columns of a chunk."""
_patterns: dict[Hashable, tuple[tuple[int, ...] | None, ...]] = {}
_used: dict[Hashable, list[tuple[int, ...]]] = {}
_lock = threading.Lock()


def smallest_used(key: Hashable, needed: tuple[int, ...], usual: tuple[int, ...]) -> tuple[int, ...]:
    """Return the smallest sizes used before under this key that are large enough; if none are, `usual` from now on."""
    with _lock:
        known = _used.setdefault(key, [])
        enough = [sizes for sizes in known if len(sizes) == len(needed) and (np.array(sizes) >= needed).all()]
        if not enough:
            known.append(usual)
        return min(enough, key=lambda sizes: float(np.prod(sizes)), default=usual)


def rung(value: int, ladder: tuple[int, ...]) -> int:
    """Return the smallest step of the ladder that is not below the value; beyond the last step, the value itself."""
    return next((step for step in ladder if step >= value), value)


def in_few_shapes(table: Table | None, key: Hashable) -> Table | None:
    """Return the table with expansions of sizes that are used again; a compiled program depends on the key besides.

    The first table of a key gives the lengths for all. What is longer in a later one is in chunks, which take about
    twice as long.
    """
    if table is None:
        return None
    expansions = [part and part.mean_slope for part in (table.odd, table.even)]
    if max(max(e.pattern) for e in expansions if e) > LONGEST:
        return table
    parity = tuple(e is not None for e in expansions)
    with _lock:
        patterns = _patterns.setdefault((key, parity), tuple(e and e.pattern for e in expansions))
    odd, even = (None if e is None or p is None else _split(e, p) for e, p in zip(expansions, patterns, strict=True))
    chunks = cut(odd and odd[1], even and even[1], width=_WIDTH)
    made = [part for part in (table.even, table.odd) if part]
    others = [e for part in made for e in (part.separation, *(f for c in part.coincident for f in (c.jumps, c.mean)))]
    needed = len(chunks.block), max((len(e.pattern) for e in others), default=1)
    usual = rung(needed[0], _CHUNKS), rung(needed[1], _COLUMNS)
    count, columns = smallest_used(key, needed, usual)
    parts = [
        None if part is None or both is None else replace(_pad(part, columns), mean_slope=both[0])
        for part, both in ((table.even, even), (table.odd, odd))
    ]
    return replace(table, even=parts[0], odd=parts[1], chunks=fill(chunks, count))


def in_loops(table: Table) -> Table:
    """Return the table with H as matrix products for the coefficients, and a loop over powers of the angle.

    A pair takes longer, and few operations are compiled: gradients of long sums take minutes to compile.
    """
    made = [part.mean_slope for part in (table.even, table.odd) if part]
    length = 2 * -(-max(max(expansion.pattern) for expansion in made) // 2)
    even, odd = (
        part and replace(part, mean_slope=_rectangle(part.mean_slope, len(part.mean_slope.pattern), length))
        for part in (table.even, table.odd)
    )
    return replace(table, even=even, odd=odd, looped=True)


def _split(expansion: Expansion, pattern: tuple[int, ...]) -> tuple[Expansion, Expansion]:
    """Return the part inside of the pattern, filled up with 0, and the expansion with 0 in place of that."""
    blocks = np.split(expansion.rows.copy(), np.cumsum(expansion.pattern)[:-1])
    places = expansion.rows.shape[-1]
    inside = [np.zeros((length, places)) for length in pattern]
    for block, target in zip(blocks, inside, strict=False):
        count = min(len(block), len(target))
        target[:count] = block[:count]
        block[:count] = 0
    columns = np.zeros((len(pattern), places))
    columns[: len(expansion.columns)] = expansion.columns[: len(pattern)]
    rest = replace(expansion, rows=np.concatenate(blocks))
    return Expansion(np.concatenate(inside), columns, pattern), rest


def _pad(part: Part, columns: int) -> Part:
    coincident = [
        Coincident(_rectangle(one.jumps, columns, 3), _rectangle(one.mean, columns, POINTS)) for one in part.coincident
    ]
    if len(coincident) == 1:  # the mirror image, which is left out where it is far away
        coincident.append(Coincident(_zeros(columns, 3), _zeros(columns, POINTS)))
    return replace(part, separation=_rectangle(part.separation, columns, 1), coincident=tuple(coincident))


def _zeros(columns: int, length: int, places: int = PLACES) -> Expansion:
    return Expansion(np.zeros((columns * length, places)), np.zeros((columns, places)), (length,) * columns)


def _rectangle(expansion: Expansion, columns: int, length: int) -> Expansion:
    """Give every column the same number of functions of the angle."""
    padded = _zeros(columns, length, expansion.rows.shape[-1])
    rows = padded.rows.reshape(columns, length, -1)
    for b, block in enumerate(np.split(expansion.rows, np.cumsum(expansion.pattern)[:-1])):
        rows[b, : len(block)] = block
    padded.columns[: len(expansion.columns)] = expansion.columns
    return padded
