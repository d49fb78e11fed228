"""Tables are padded with zeros to a few shapes, for small data: a compilation costs more than the zeros.

Which shapes were used is remembered, and one of them is used again wherever it is large enough. Zero terms change no
bit of a result.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable
from dataclasses import replace

import numpy as np

from widelimit.activations.chunks import LONGEST, cut, filled
from widelimit.activations.expansions import Expansion, in_places
from widelimit.activations.sharp import POINTS, Sharp
from widelimit.activations.tables import Part, Table

SMALL = 1024
"""Rows of all inputs together up to which shapes are fixed: a pair then costs up to twice as much, or 10 ms in all."""
_COLUMNS = (16, 24)
_CHUNKS = (8, 16, 32)
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


def in_few_shapes(table: Table, key: Hashable) -> Table:
    """Pad the table's expansions to sizes that are used again; the key is what else a compiled program depends on."""
    expansions = [part and part.mean_slope for part in (table.odd, table.even)]
    if max(max(e.pattern) for e in expansions if e) > LONGEST:
        return table
    chunks = cut(*expansions)
    others = [e for part in (table.even, table.odd) if part for e in _others(part)]
    needed = len(chunks.block), max((len(e.pattern) for e in others), default=1)
    usual = rung(needed[0], _CHUNKS), rung(needed[1], _COLUMNS)
    count, columns = smallest_used(key, needed, usual)
    even, odd = (part and _padded(part, columns) for part in (table.even, table.odd))
    return replace(table, even=even, odd=odd, chunks=filled(chunks, count))


def _others(part: Part) -> list[Expansion]:
    return [part.apart, *(expansion for one in part.sharp for expansion in (one.jumps, one.mean))]


def _padded(part: Part, columns: int) -> Part:
    """Pad the part without its H."""
    sharp = [Sharp(_rectangle(one.jumps, columns, 3), _rectangle(one.mean, columns, POINTS)) for one in part.sharp]
    if len(sharp) == 1:  # the mirror image, which is left out where it is far away
        sharp.append(Sharp(_zeros(columns, 3), _zeros(columns, POINTS)))
    return replace(part, apart=_rectangle(part.apart, columns, 1), mean_slope=_zeros(1, 1), sharp=tuple(sharp))


def _zeros(columns: int, length: int) -> Expansion:
    return Expansion(in_places(np.zeros((columns * length, 1))), in_places(np.zeros((columns, 1))), (length,) * columns)


def _rectangle(expansion: Expansion, columns: int, length: int) -> Expansion:
    """Give every column the same number of functions of the angle."""
    padded = _zeros(columns, length)
    rows = padded.rows.reshape(columns, length, -1)
    for b, block in enumerate(np.split(expansion.rows, np.cumsum(expansion.pattern)[:-1])):
        rows[b, : len(block)] = block
    padded.columns[: len(expansion.columns)] = expansion.columns
    return padded
