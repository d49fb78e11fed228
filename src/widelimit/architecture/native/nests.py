"""A network's operations become loops over planes: pairs of sites (p, p + d) with one offset d.

A plane goes through all layers in a core's cache. Second inputs stand side by side in vectors, so that every place of a
vector is used whatever the size of the plane.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any, final

import numpy as np

from widelimit.architecture.native.code import TYPES, Function, Word
from widelimit.architecture.native.plan import AXES, START, TOTALS, WEIGHTS, Grid, Plan, in_three, read_by
from widelimit.architecture.native.program import Constant, Memo, Number, Result, Unknown
from widelimit.architecture.sites import Windows

UNROLLED = 27
"""Taps of a patch that are written out; more are loops."""
OPPOSITE = 1.5
"""Beyond this 1 - rho, 1 + rho is added up too, as it would lose digits as the rest of 2."""
Index = tuple[str, ...]
OFFSETS = ("%d0", "%d1", "%d2")


@final
class Nest:
    """The nest writes a function that computes one plane between two sums over patches."""

    def __init__(self, plan: Plan, place: int, *, itself: bool = False) -> None:
        self.plan, self.place, self.itself = plan, place, itself
        self.source = plan.program.sources[place]
        self.sites = plan.sites[place]
        self.f = Function(plan.width)
        self.offsets: dict[tuple[str, int], str] = {}
        self.known: dict[Any, Word] = {}

    # --- where things are ---

    def offset(self, value: int, kind: str = "") -> str:
        """Return the argument that has this value."""
        return self.offsets.setdefault((kind, value), f"%a{len(self.offsets)}")

    def at(self, start: int, index: str, beside: int = 0) -> str:
        """Return start + index + beside, the start as an argument, so that layers alike share a function."""
        place = self.f.integer("add", index, self.offset(start))
        return self.f.integer("add", place, beside) if beside else place

    def memo(self, side: int, leaf: int, at: tuple[int, ...], p: Sequence[str], q: Sequence[str]) -> Word:
        """Read a number of an input at its site."""
        layout = self.plan.layout
        grid, lead = layout.grids[leaf], layout.leads[leaf]
        at = at + (0,) * (len(lead) - len(at))
        flat = int(np.ravel_multi_index(at, lead)) if lead else 0
        single = grid.count == 1 and math.prod(self.sites) > 1
        if not single and grid.sites != self.sites:
            raise Unknown("a memo with other sites")
        index = "0" if single else grid.inside(self.f, q if side else p)
        return self.read(side, layout.starts[leaf], index, flat * grid.count)

    def read(self, side: int, start: int, index: str, beside: int = 0) -> Word:
        """Read a number of the packed memos."""
        wide = side == 1 or self.itself
        return self.f.load("%Y" if wide else "%X", self.at(start, index, beside), self.plan.type, wide)

    def buffer(self, value: Any, p: Index = (), index: str = "", grid: Grid | None = None) -> Word:
        """Read a state that a nest has stored, at its own pair of sites or at an index of a grid; or a constant."""
        if isinstance(value, Constant):
            return self.f.number(value.value, TYPES[value.dtype])
        found = next(b for b in self.plan.buffers[value] if grid in (None, b.grid))
        word = self.f.load("%W", self.at(found.start, index or found.grid.inside(self.f, p)), self.plan.type, True)
        return self.f.convert(word, TYPES[value.dtype])

    # --- operations ---

    def value(self, value: Any, p: Index, q: Index) -> Word:
        """Return a value at a pair of sites."""
        if isinstance(value, Constant):
            return self.f.number(value.value, TYPES[value.dtype])
        if value not in self.known:
            if isinstance(value, Number):
                word = self.f.load("%C", self.offset(value.place, "number"), self.plan.type, False)
                self.known[value] = self.f.convert(word, TYPES[value.dtype])
            elif isinstance(value, Memo):
                self.known[value] = self.memo(value.side, value.leaf, value.at, p, q)
            else:
                self.known[value] = self.buffer(value, p)
        return self.known[value]

    def body(self, p: Index, q: Index, with_plus: bool) -> None:
        """Write what is done at a pair of sites."""
        if self.source.name == "patches":
            self.operations(self.patches(p, q, with_plus), p, q)
        else:
            self.operations(enumerate(self.pixels(p, q) if self.source.name == "pixels" else self.pooled(p, q)), p, q)

    def operations(self, found: Iterable[tuple[int, Word]], p: Index, q: Index) -> None:
        """Write the operations at a pair of sites, from the results of the source, and store what others need."""
        self.known = {Result(self.source, k): word for k, word in found}
        for operation in self.plan.work[self.place]:
            words = [self.value(v, p, q) for v in operation.given]
            made = self.f.operation(operation.name, words, operation.parameters, operation.dtypes[0])
            self.known[Result(operation, 0)] = made
        for value in self.plan.stores[self.place]:
            word = self.f.convert(self.value(value, p, q), self.plan.type)
            for buffer in self.plan.buffers[value]:
                self.f.store(word, "%W", self.at(buffer.start, buffer.grid.inside(self.f, p)))

    def pixels(self, p: Index, q: Index) -> list[Word]:
        """1 -+ rho = sum_c (u_c -+ v_c)^2/2 of unit vectors over the channels."""
        f, (count,) = self.f, self.plan.layout.leads[START]
        grid, start = self.plan.layout.grids[START], self.plan.layout.starts[START]
        zero = f.widen(f.number(0, self.plan.type))
        sums = [f.variable(zero) for _ in range(2)]
        sites = grid.inside(f, p), grid.inside(f, q)

        def add(c: str) -> None:
            place = f.integer("mul", c, grid.count)
            units = [self.read(k, start, f.integer("add", site, place)) for k, site in enumerate(sites)]
            for total, verb in zip(sums, ("fsub", "fadd"), strict=True):
                part = f.binary(verb, *units)
                f.add_product(total, zero, part, part)

        f.loop(0, count, add)
        return [f.binary("fmul", f.get(total, zero), f.number(0.5, self.plan.type)) for total in sums]

    def pooled(self, p: Index, q: Index) -> list[Word]:
        """1 - rho = (r - r')^2/2 + r r' sum_ij u_i u'_j (1 - rho_ij) - r^2 spread - r'^2 spread', after a pool."""
        f, type = self.f, self.plan.type
        scales, spreads = ([self.memo(side, START, (k,), p, q) for side in (0, 1)] for k in (0, 1))
        apart, common = f.binary("fsub", *scales), f.binary("fmul", *scales)
        mixed, tangent = (f.load("%I", self.place_in(self.sites, p, k), type, True) for k in (0, 1))
        square = f.binary("fmul", f.binary("fmul", apart, apart), f.number(0.5, type))
        gap = f.binary("fadd", square, f.binary("fmul", common, mixed))
        for spread in spreads:
            gap = f.binary("fsub", gap, spread)
        gap = f.extreme([f.extreme([gap, f.number(0, type)], "gt"), f.number(2, type)], "lt")
        return [gap, f.binary("fsub", f.number(2, type), gap), f.binary("fmul", common, tangent)]

    def place_in(self, sites: tuple[int, ...], p: Index, field: int, offsets: Sequence[str] = OFFSETS) -> str:
        """Return the place of a pair in the states after a pool: its field, its plane, its first site."""
        f, planes = self.f, Grid(tuple(2 * n - 1 for n in sites))
        plane = planes.index(f, [f.integer("add", d, n - 1) for d, n in zip(offsets, sites, strict=True)])
        place = f.integer("add", f.integer("mul", plane, math.prod(sites)), Grid(sites).inside(f, p))
        return f.integer("add", place, field * planes.count * math.prod(sites))

    def pool(self) -> None:
        """Add the plane to those after the pool: taps t of the first window and t + delta of the second meet in it."""
        f, windows = self.f, self.plan.pool
        assert windows is not None
        size, stride, after = (in_three(v, 1) for v in (windows.size, windows.stride, windows.after))

        def near(delta: Index) -> None:
            offsets, whole = [], "true"
            for axis in range(AXES):
                apart = f.integer("sub", f"%d{axis}", delta[axis])
                offsets.append(f.integer("sdiv", apart, stride[axis]))
                even = f.put(f"icmp eq i64 {f.integer('mul', offsets[-1], stride[axis])}, {apart}")
                whole = f.put(f"and i1 {whole}, {even}")
            taps = [
                (f.limit("smax", 0, f.integer("sub", 0, d)), f.limit("smin", k, f.integer("sub", k, d)))
                for k, d in zip(size, delta, strict=True)
            ]
            bounds = self.bounds(after, offsets)
            f.either(whole, lambda: f.loops(bounds, lambda p: self.gather(p, offsets, delta, taps)), lambda: None)

        f.loops([(1 - k, k) for k in size], near)

    def gather(self, p: Index, offsets: Sequence[str], delta: Index, bounds: list[tuple[str, str]]) -> None:
        """Add the pairs of sites of two windows that are in the plane."""
        f, plan, layout = self.f, self.plan, self.plan.layout
        assert plan.pool is not None
        after = in_three(plan.pool.after, 1)
        q = tuple(f.integer("add", i, d) for i, d in zip(p, offsets, strict=True))
        totals = [self.read(k, layout.starts[TOTALS], Grid(after).inside(f, at)) for k, at in enumerate((p, q))]
        taps = Taps(f, plan.pool, (p, q))
        places = {k: self.place_in(after, p, min(k, 1), offsets) for k in plan.needed}
        zero = f.widen(f.number(0, plan.type))
        sums = {k: f.variable(f.load("%O", place, plan.type, True)) for k, place in places.items()}

        def add(t: Index) -> None:
            u = tuple(f.integer("add", i, d) for i, d in zip(t, delta, strict=True))
            at = taps.place(t, u)
            shares = [f.binary("fmul", self.read(k, layout.starts[WEIGHTS], at[k]), totals[k]) for k in (0, 1)]
            common = f.binary("fmul", *shares)
            for k, total in sums.items():
                term = f.binary("fmul", common, self.buffer(plan.program.outputs[k], index=at[0], grid=taps.grid))
                f.set(total, f.binary("fadd", f.get(total, zero), term))

        f.loops(bounds, add)
        for k, place in places.items():
            f.store(f.get(sums[k], zero), "%O", place)

    def patches(self, p: Index, q: Index, with_plus: bool) -> Iterable[tuple[int, Word]]:
        """1 - rho = sum_t ((a_t - a'_t)^2/2 + a_t a'_t (1 - rho_t)); so are 1 + rho, and Theta without squares."""
        f, type, source = self.f, self.plan.type, self.source
        windows: Windows = source.parameters["windows"]
        _, inverse_x, _, inverse_y, *states = source.given
        roots = [self.value(inverse_x, p, q), self.value(inverse_y, p, q)]
        read = [k for k in (0, 1, 2) if k in source.needed and (k != 1 or with_plus)]
        zero = f.widen(f.number(0, type))
        squares, sums = f.variable(zero), {k: f.variable(zero) for k in read}
        taps = Taps(f, windows, (p, q))

        def add(t: Index) -> None:
            at = taps.place(t)
            parts = [f.binary("fmul", self.read(k, self.leaf(source.given[2 * k]), at[k]), roots[k]) for k in (0, 1)]
            apart, common = f.binary("fsub", *parts), f.binary("fmul contract", *parts)
            f.add_product(squares, zero, apart, apart)
            for k, total in sums.items():
                f.add_product(total, zero, common, self.buffer(states[k], index=at[0], grid=taps.grid))

        taps.each(add)
        separation = f.binary("fmul", f.get(squares, zero), f.number(0.5, type))
        found = {k: f.get(total, zero) for k, total in sums.items()}
        found |= {k: f.binary("fadd", found[k], separation) for k in (0, 1) if k in found}
        if 1 in source.needed and not with_plus:  # 2, less where a patch is 0
            numbers = [f.number(v, type) for v in (0, 1, 0)]
            ones = [f.select(f.binary("fcmp ogt", r, numbers[0], type="i1"), *numbers[1:]) for r in roots]
            found[1] = f.binary("fsub", f.binary("fadd", *ones), found[0])
        return found.items()

    def leaf(self, memo: Memo) -> int:
        """Return the first place of a leaf, at its leading axes."""
        layout = self.plan.layout
        lead, grid = layout.leads[memo.leaf], layout.grids[memo.leaf]
        flat = int(np.ravel_multi_index(memo.at + (0,) * (len(lead) - len(memo.at)), lead)) if lead else 0
        return layout.starts[memo.leaf] + flat * grid.count

    # --- the function ---

    def loops(self, with_plus: bool) -> None:
        """Write the loops over the sites of the plane."""
        f = self.f
        bounds = self.bounds(self.sites, OFFSETS)
        flags = {value: f.variable(f.widen(f.number(0, self.plan.type))) for value in self.flagged}
        f.loops(bounds[:2], lambda ij: self.row(ij, bounds[2], flags, with_plus))
        for value, variable in flags.items():
            largest = f.get(variable, f.widen(f.number(0, self.plan.type)))
            above = f.binary("fcmp ogt", largest, f.number(OPPOSITE, self.plan.type), type="i1")
            bits = f.put(f"bitcast {f.form(above)} {above.text} to i{f.width}")
            found = f.put(f"zext i1 {f.put(f'icmp ne i{f.width} {bits}, 0')} to i64")
            f.lines.append(f"  store i64 {found}, ptr {self.flag(value)}")

    def flag(self, value: Result) -> str:
        """Return a pointer to the mark for gaps beyond OPPOSITE."""
        return self.f.place("%F", self.offset(self.plan.buffers[value][0].flag or 0, "flag"), "i64")

    def bounds(self, sites: tuple[int, ...], offsets: Sequence[str]) -> list[tuple[Any, Any]]:
        """Return the sites p with both p and p + offset inside, along each axis."""
        f = self.f
        if self.plan.torus:
            return [(0, n) for n in sites]
        back = [f.integer("sub", 0, d) for d in offsets]
        ends = [f.limit("smin", n, f.integer("add", n, b)) for n, b in zip(sites, back, strict=True)]
        return [(f.limit("smax", 0, b), end) for b, end in zip(back, ends, strict=True)]

    @property
    def flagged(self) -> list[Result]:
        """Return the stored gaps whose size a later nest asks for."""
        return [v for v in self.plan.stores[self.place] if self.plan.buffers[v][0].flag is not None]

    def row(self, ij: Index, bounds: tuple[str, str], flags: dict[Result, str], with_plus: bool) -> None:
        """Write the loop along the last axis."""
        f, plan = self.f, self.plan
        zero = f.widen(f.number(0, plan.type))
        last = self.place == len(plan.sites) - 1 and plan.pool is None
        sums = {k: f.variable(zero) for k in plan.needed} if last else {}

        def step(i: str) -> None:
            p = (*ij, i)
            q = tuple(self.shifted(p[axis], axis) for axis in range(AXES))
            self.body(p, q, with_plus)
            for value, variable in flags.items():
                word = f.widen(self.value(value, p, q))
                f.set(variable, f.extreme([f.get(variable, zero), word], "gt"))
            if last:
                self.add_up(sums, p, q)

        f.loop(*bounds, step)
        for k, variable in enumerate(sums.values()):
            wide = f.convert(f.get(variable, zero), "double")
            before = f.load("%A", k, "double", True)
            f.store(f.binary("fadd", before, wide), "%A", k)

    def shifted(self, i: str, axis: int) -> str:
        """Return the coordinate of the second input's site."""
        q = self.f.integer("add", i, f"%d{axis}")
        return _wrapped(self.f, q, self.sites[axis]) if self.plan.torus else q

    def add_up(self, sums: dict[int, str], p: Index, q: Index) -> None:
        """Add the outputs, times the weights of both sites."""
        f, plan = self.f, self.plan
        weights = [self.memo(side, WEIGHTS, (), p, q) for side in (0, 1)]
        common = f.binary("fmul", *weights)
        for k, variable in sums.items():
            term = f.binary("fmul contract", common, self.value(plan.program.outputs[k], p, q))
            if k < 2 and plan.separate:
                apart = f.binary("fsub", *weights)
                half = f.binary("fmul contract", apart, f.number(0.5, plan.type))
                term = f.binary("fadd contract", f.binary("fmul contract", half, apart), term)
            word = f.widen(f.number(0, plan.type))
            f.set(variable, f.binary("fadd", f.get(variable, word), term))

    def write(self) -> None:
        """Write the whole body of the function."""
        f, source = self.f, self.source
        if source.name != "patches" or 1 not in source.needed:
            self.loops(with_plus=True)
        else:
            seen = f.put(f"load i64, ptr {self.flag(source.given[4])}")
            f.either(f.put(f"icmp ne i64 {seen}, 0"), lambda: self.loops(True), lambda: self.loops(False))
        if self.plan.pool is not None and self.place == len(self.plan.sites) - 1:
            self.pool()


def _wrapped(f: Function, i: str, size: int) -> str:
    """Return i modulo size, for -size <= i < 2 size."""
    for verb, change, bound in (("slt", "add", 0), ("sge", "sub", size)):
        moved = f.integer(change, i, size)
        i = f.put(f"select i1 {f.put(f'icmp {verb} i64 {i}, {bound}')}, i64 {moved}, i64 {i}")
    return i


@final
class Taps:
    """The sites of both inputs at every tap of the patches at a pair of sites."""

    def __init__(self, f: Function, windows: Windows, sites: tuple[Index, Index]) -> None:
        self.f, self.windows = f, windows
        self.size, self.dilation = in_three(windows.size, 1), in_three(windows.dilation, 1)
        self.grid = read_by(windows, in_three(windows.sites, 1))
        strides = in_three(windows.stride, 1)
        self.first = [[f.integer("mul", i, s) for i, s in zip(site, strides, strict=True)] for site in sites]
        self.starts = [self.grid.index(f, first) for first in self.first]

    def each(self, add: Any) -> None:
        """Write `add` for every tap."""
        f, (a, b, c) = self.f, self.size
        if math.prod(self.size) <= UNROLLED:
            for t in itertools.product(range(a), range(b), range(c)):
                add(tuple(map(str, t)))
        else:
            f.loops([(0, a), (0, b), (0, c)], add)

    def place(self, t: Index, u: Index | None = None) -> list[str]:
        """Return the places in the arrays read, of the first input at a tap and of the second at `u` or the same."""
        f = self.f
        steps = [[f.integer("mul", i, d) for i, d in zip(tap, self.dilation, strict=True)] for tap in (t, u or t)]
        if self.windows.padding != "circular":
            pairs = zip(self.starts, steps, strict=True)
            return [f.integer("add", start, self.grid.index(f, step)) for start, step in pairs]
        low = in_three([pad[0] for pad in self.windows.margins], 0)
        found = []
        for first, step in zip(self.first, steps, strict=True):
            inside = [f.integer("sub", f.integer("add", i, s), n) for i, s, n in zip(first, step, low, strict=True)]
            at = [_wrapped(f, i, size) for i, size in zip(inside, self.grid.sites, strict=True)]
            found.append(self.grid.index(f, at))
        return found
