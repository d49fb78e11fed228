"""A plan knows what each nest of loops reads and stores, where, and the planes that a network goes through."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import numpy as np

from widelimit.architecture.native.code import TYPES, Function
from widelimit.architecture.native.program import Operation, Program, Result, Unknown
from widelimit.architecture.sites import Windows

AXES = 3
START, WEIGHTS, TOTALS = -1, -2, -3
"""Leaves beside those of the memos: unit vectors over the channels (after a pool, the scale and the spread of a site),
the weights of sites in the sum or pool at the end, and one over their sum over each window of that pool."""
Index = tuple[str, ...]


def in_three(values: Sequence[int], fill: int) -> tuple[int, ...]:
    """Return numbers of one to three axes for three."""
    return (fill,) * (AXES - len(values)) + tuple(values)


@final
@dataclass(frozen=True)
class Grid:
    """Sites with margins, as an array has them."""

    sites: tuple[int, ...]
    low: tuple[int, ...] = (0, 0, 0)
    high: tuple[int, ...] = (0, 0, 0)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Return the sizes with margins."""
        return tuple(a + b + c for a, b, c in zip(self.low, self.sites, self.high, strict=True))

    @property
    def count(self) -> int:
        """Return the number of sites with margins."""
        return math.prod(self.sizes)

    def index(self, f: Function, at: Sequence[str | int]) -> str:
        """Write the place in the array of these coordinates, which count the margins."""
        place: str | int = at[0]
        for size, coordinate in zip(self.sizes[1:], at[1:], strict=True):
            place = f.integer("add", f.integer("mul", place, size), coordinate)
        return str(place)

    def inside(self, f: Function, at: Sequence[str]) -> str:
        """Write the place of a site."""
        return self.index(f, [f.integer("add", i, low) if low else i for i, low in zip(at, self.low, strict=True)])


def read_by(windows: Windows | None, sites: tuple[int, ...]) -> Grid:
    """Return the grid of what windows read."""
    if windows is None or windows.padding == "circular":
        return Grid(sites)
    return Grid(sites, *(in_three([pad[k] for pad in windows.margins], 0) for k in (0, 1)))


@final
@dataclass(frozen=True)
class Layout:
    """The layout says where the numbers of an input are: each leaf's first place, its leading axes and its grid."""

    starts: dict[int, int]
    leads: dict[int, tuple[int, ...]]
    grids: dict[int, Grid]


class Buffer(NamedTuple):
    """The place of a stored state; `flag` is that of the mark for pairs that are nearly opposite."""

    start: int
    grid: Grid
    flag: int | None


class Written(NamedTuple):
    """The value at every site goes to the data of an input, or, `aside`, to the vectors after the layers."""

    value: Any
    start: int
    grid: Grid
    aside: bool


@final
class Plan:
    """The plan knows what each nest stores, where, and the planes that the network goes through."""

    def __init__(
        self, program: Program, layout: Layout, sites: tuple[int, ...], width: int, needed: Sequence[int], dtype: str,
        *, pool: Windows | None = None, across: bool = False, separate: bool = False, written: Sequence[Written] = (),
    ) -> None:  # fmt: skip
        self.program, self.layout, self.width, self.pool = program, layout, width, pool
        self.needed, self.separate, self.type = tuple(needed), separate, TYPES[dtype]
        windows = [source.parameters.get("windows") for source in program.sources]
        before = [
            w and (w.sites if s.name == "largest" else w.after) for w, s in zip(windows, program.sources, strict=True)
        ]
        self.sites = [in_three(own or sites, 1) for own in before]
        self.single = bool(written)
        self.written: list[list[Written]] = [[] for _ in windows]
        for w in written:
            nest = w.value.operation.nest if isinstance(w.value, Result) else -1
            self.written[nest if nest >= 0 else self.sites.index(w.grid.sites)].append(w)
        self.work: list[list[Operation]] = []
        self.stores: list[list[Result]] = [[] for _ in windows]
        self._readers: dict[Result, list[Windows]] = {}
        self._last: dict[Result, int] = {}
        for k in reversed(range(len(windows))):
            self._collect(k)
        self.work.reverse()
        self.factors = self._factors(windows)
        known = [w for w in (*windows, pool) if w is not None]
        self.torus = across and any(w.padding == "circular" for w in known)
        mixed = any((w.padding != "circular" and w.count > 1) or max(w.stride) > 1 for w in known)
        if self.torus and (mixed or pool or program.sources[0].name == "pooled"):
            raise Unknown("circular padding beside another, or with a stride, before an average over sites")
        self.buffers: dict[Result, list[Buffer]] = {}
        self.flags = self.length = 0
        self._allot()

    @property
    def pooled(self) -> tuple[int, ...]:
        """Return the shape of the states after the pool: fields, planes, sites."""
        if self.pool is None:
            return 0, 0, 0
        after = in_three(self.pool.after, 1)
        return 2, math.prod(2 * n - 1 for n in after), math.prod(after)

    def planes(self, across: bool) -> np.ndarray:
        """Return the offsets of all planes at the end, (planes, 3); not `across`, of a site with itself alone."""
        reach = [range(n) if self.torus else range(1 - n, n) for n in (self.sites[-1] if across else (1, 1, 1))]
        return np.array(list(itertools.product(*reach)), np.int64)

    def planes_before(self, planes: np.ndarray) -> np.ndarray:
        """Return the offsets at the beginning of those at the end."""
        return np.unique(planes * self.factors[0], axis=0)

    def planes_pooled(self, planes: np.ndarray) -> np.ndarray:
        """Return the offsets at the end that those after the pool need."""
        assert self.pool is not None
        size, stride = in_three(self.pool.size, 1), in_three(self.pool.stride, 1)
        near = np.array(list(itertools.product(*(range(1 - k, k) for k in size))), np.int64)
        found = np.unique((planes[:, None] * stride + near).reshape(-1, AXES), axis=0)
        return np.ascontiguousarray(found[(np.abs(found) < self.sites[-1]).all(1)])

    def _collect(self, k: int) -> None:
        """Find the operations of a nest, and what it needs from others, which were not collected yet."""
        source, ends = self.program.sources[k], [*self.stores[k], *(w.value for w in self.written[k])]
        if k == len(self.sites) - 1:
            ends += [self.program.outputs[i] for i in self.needed]
            for v in ends if self.pool else ():
                if isinstance(v, Result):
                    self._store(v, k + 1, self.pool)
        if source.name in ("largest", "total"):
            self._store(source.given[0], k, source.parameters["windows"] if source.name == "total" else None)
        if source.name == "patches":
            ends += source.given[:4]
            windows = source.parameters["windows"]
            for i, v in enumerate(source.given[4:]):
                if i in source.needed and isinstance(v, Result):
                    self._store(v, k, windows)
        found, stack = set(), [v for v in ends if isinstance(v, Result)]
        while stack:
            value = stack.pop()
            if value.operation.nest not in (-1, k):
                self._store(value, k, None)
            elif value.operation not in found and value.operation is not source:
                found.add(value.operation)
                stack += [v for v in value.operation.given if isinstance(v, Result)]
        self.work.append(sorted(found, key=lambda operation: operation.order))

    def _store(self, value: Result, reader: int, windows: Windows | None) -> None:
        stores = self.stores[value.operation.nest]
        if value not in stores:
            stores.append(value)
            self._last[value] = reader
        if windows is not None:
            self._readers.setdefault(value, []).append(windows)

    def _factors(self, windows: list[Windows | None]) -> list[tuple[int, ...]]:
        """Return what the offset of a plane at the end is multiplied by in every nest: the strides that follow."""
        factors: list[tuple[int, ...] | None] = [None] * len(windows)
        factors[-1] = (1, 1, 1)
        for k in reversed(range(len(windows))):
            w = windows[k]
            ends = self.program.outputs if k == len(windows) - 1 else []
            read = [(v, in_three((), 1)) for v in (*(v for op in self.work[k] for v in op.given), *ends)]
            read += [(v, in_three(w.stride, 1)) for v in self.program.sources[k].given[4:]] if w else []
            own = factors[k] or (1, 1, 1)
            for nest, stride in ((v.operation.nest, stride) for v, stride in read if isinstance(v, Result)):
                factor = tuple(a * b for a, b in zip(own, stride, strict=True))
                if nest not in (-1, k) and (factors[nest] or factor) != factor:
                    raise Unknown("branches whose strides differ")
                if nest not in (-1, k):
                    factors[nest] = factor
        return [factor or (1, 1, 1) for factor in factors]

    def _allot(self) -> None:
        """Give a place to everything that is stored."""
        gaps = {s.given[4] for s in self.program.sources if s.name == "patches" and 1 in s.needed}
        slots: list[tuple[int, int, Grid]] = []  # of one grid each, so that margins stay 0
        for k, values in enumerate(self.stores):
            for value in values:
                flag = self.flags if value in gaps else None
                self.flags += flag is not None
                own = Grid(self.sites[k])
                grids = dict.fromkeys(read_by(w, self.sites[k]) for w in self._readers.get(value, [])) or {own: None}
                self.buffers[value] = []
                for grid in grids:
                    new = (-1, self.length, grid)
                    slot = next((slot for slot in slots if slot[0] < k and slot[2] == grid), new)
                    slots = [s for s in slots if s[1] != slot[1]] + [(self._last[value], *slot[1:])]
                    self.length += grid.count if slot is new else 0
                    self.buffers[value].append(Buffer(slot[1], grid, flag))
