"""Pairs of images go through a network by machine code: encode each image once, then planes of pairs of sites."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple, final

import jax
import numpy as np

from widelimit.architecture.native.driver import transposition, write
from widelimit.architecture.native.machine import compiled
from widelimit.architecture.native.plan import START, TOTALS, WEIGHTS, Layout, Plan, in_three, read_by
from widelimit.architecture.native.program import Program, Unknown, form, pair
from widelimit.architecture.native.singles import plan_of
from widelimit.architecture.native.stages import (
    Stage,
    embed,
    encode_end,
    encode_layers,
    encode_stage,
    itself_last,
    itself_stage,
    pair_last,
    split,
)
from widelimit.architecture.network import Network
from widelimit.architecture.state import PairState
from widelimit.arithmetic import arithmetic
from widelimit.interpreter import interpreted
from widelimit.signals import Correlation, Variance, correlation_with_itself

AT_ONCE = 16
"""Images that are encoded at once."""
VECTOR = 64
"""Bytes of a vector: the longest that processors have; LLVM splits it on others."""
ENTRIES = 2**22
"""Pairs of sites and layers between two looks at Ctrl-C: some hundredths of a second."""


class Features(NamedTuple):
    """The data of n images."""

    packed: np.ndarray
    """(n, numbers): what planes need."""
    keys: np.ndarray
    """(n,): equal for equal images."""
    scale: np.ndarray
    """(n,): one over the root mean square of an average over all sites, in those of its parts; else 1."""
    spread: np.ndarray
    """(n,): sum_ij u_i u_j (1 - rho_ij)/2 over the sites of that average, u_i their shares; else 0."""
    tangent: np.ndarray
    """(n,): Theta/(s s) of every image with itself before the last layers."""
    memos: Any
    """The memos of the last layers, arrays (n, ..)."""
    variance: Variance


def _lead(leaf: Any, axes: int) -> tuple[int, ...]:
    """Return the leading axes of a memo, those before the sites."""
    return tuple(leaf.shape[: leaf.ndim - axes - 1])


@final
class Engine:
    """The engine has the machine code of a network's pairs for one dtype. Raises: Unknown: it cannot be made."""

    def __init__(self, net: Network, dtype: Any, *, tangent: bool, cpu: str = "") -> None:
        self.net, self.dtype, self.tangent = net, np.dtype(dtype), tangent
        self.stages, self.last = split(net)
        self.averaged = self.stages[-1].whole
        self.apart = net.rtol(self.dtype) > 0 or any(stage.layers.masks for stage in self.stages)
        self.width, self.one_site = VECTOR // self.dtype.itemsize, (1,) * len(net.inputs.sites)
        self.plans: list[Plan] = []
        self._starts: list[tuple[Any, Any, Any]] = []
        with arithmetic(self.dtype == np.float64):
            blank = np.zeros((AT_ONCE, net.inputs.size), self.dtype)  # type: ignore[union-attr]
            points, signal = interpreted(embed)(net, blank)  # its trace is used again by `encode`
            state, self.length = (points, signal, None), 0
            for stage in self.stages:
                state = self._plan(stage, *state)
        self.codes = [compiled(write(plan), cpu) for plan in self.plans]
        used = any(stage.pool for stage in self.stages) or (tangent and not self.apart)
        self.own_codes = [compiled(write(plan, itself=True), cpu) for plan in self.plans if used]
        self.transposed = compiled(transposition(self.width, self.plans[0].type), cpu)
        self.length += -self.length % self.width
        with arithmetic(self.dtype == np.float64):
            self.singles = [self._single(k, cpu) for k in range(len(self.plans))]
        self.numbers = [self._numbers(stage) for stage in self.stages]
        self.planes = self._planes(len(self.plans) - 1, self.plans[-1].planes(self.averaged))

    def _plan(self, stage: Stage, start: Any, signal: Any, mean: Any) -> Any:
        """Make the plan of a stage, and return what the next one starts with."""
        axes, sites = len(self.one_site), signal.value.shape[:-1]
        memos, before, moved = encode_stage(stage.forgets, stage.layers, signal, mean)
        self._starts.append((signal, mean, before))
        (weights, totals), after, mean = self._end(stage, before, moved)
        middle = stage.pool is not None and not stage.whole
        needed = [k for k in ((0, 2) if stage.pool else (0, 1, 2)) if k < 2 or self.tangent]
        single = jax.tree.map(lambda leaf: form(_lead(leaf, axes), leaf.dtype), memos)
        program = Program(pair, stage.layers, single, self.dtype, "pooled" if self.plans else "pixels")
        program.mark(needed)
        windows = dict(program.padding)
        leaves = {START: start, WEIGHTS: weights, **dict(enumerate(jax.tree.leaves(memos)))}
        if middle:
            leaves[TOTALS], windows[WEIGHTS] = totals, stage.pool.placed  # type: ignore[union-attr]
        grids = {k: read_by(windows.get(k), in_three(v.shape[v.ndim - axes - 1 : -1], 1)) for k, v in leaves.items()}
        leads = {k: _lead(v, axes) for k, v in leaves.items()}
        ends = self.length + np.cumsum([0, *(grids[k].count * math.prod(leads[k]) for k in leaves)])
        layout = Layout(dict(zip(leaves, ends.tolist(), strict=False)), leads, grids)
        self.length = int(ends[-1])
        pool = stage.pool.placed if stage.pool and middle else None
        across = any(part.pool for part in self.stages)
        self.plans.append(
            Plan(
                program, layout, sites, self.width, needed, self.dtype.name,
                pool=pool, across=across, separate=stage.pool is None,
            )
        )  # fmt: skip
        return np.zeros((2, *after.value.shape), self.dtype), after, mean

    def _end(self, stage: Stage, signal: Any, mean: Any) -> Any:
        """Return the weights of sites and of windows, variance and mean after the sum over sites."""
        *weights, after, mean = interpreted(encode_end)(stage, signal, mean)
        return weights, after, mean

    def _single(self, k: int, cpu: str) -> tuple[Plan, Any] | None:
        """Return the plan and the code of the layers of a stage on single inputs, or None: NumPy does their work."""
        stage, (before, mean, after) = self.stages[k], self._starts[k]
        sites = before.value.shape[:-1], after.value.shape[:-1]
        try:
            if self.apart:
                raise Unknown("a map of its own for an image with itself")
            encode = functools.partial(encode_stage, stage.forgets, run=jax.jit)
            plan = plan_of(
                encode, stage.layers, self.plans[k].layout, sites, self.width, self.dtype, centred=mean is None
            )
            return plan, compiled(write(plan), cpu)
        except Unknown:
            return None

    def _numbers(self, stage: Stage) -> np.ndarray:
        """Return the numbers of the layers as machine code reads them."""
        leaves = map(np.asarray, (*jax.tree.leaves(stage.layers), 0.0))
        return np.array([v.item() if v.size == 1 else 0.0 for v in leaves], self.dtype)

    def with_numbers_of(self, net: Network) -> Engine:
        """Return the engine of a network that differs in numbers only, with the same code; neither has tables."""
        made = copy.copy(self)
        made.net, (made.stages, made.last) = net, split(net)
        made.numbers = [self._numbers(stage) for stage in made.stages]
        return made

    def _planes(self, last: int, ends: np.ndarray) -> list[np.ndarray]:
        """Return the planes of every stage up to the last that these at its end need."""
        planes = [ends]
        for k in range(last, 0, -1):
            planes.insert(0, self.plans[k - 1].planes_pooled(self.plans[k].planes_before(planes[0])))
        return [np.ascontiguousarray(p) for p in planes]

    @property
    def stages_of(self) -> list[tuple[Plan, np.ndarray]]:
        """Return the plan and the planes of every stage."""
        return list(zip(self.plans, self.planes, strict=True))

    @property
    def work(self) -> float:
        """Return the pairs of sites, over all layers, that a pair of images has at most."""
        return float(sum(len(planes) * sum(map(math.prod, plan.sites)) for plan, planes in self.stages_of))

    @property
    def state(self) -> int:
        """Return the bytes of the state of a vector of pairs."""
        numbers = sum(plan.length + math.prod(plan.pooled) for plan in self.plans)
        return int(numbers * self.width * self.dtype.itemsize)

    def encode(self, X: np.ndarray) -> Features:
        """Compute everything about single images that pairs need, from rows (n, d)."""
        packed = np.empty((-(-len(X) // AT_ONCE) * AT_ONCE, self.length), self.dtype)
        parts, blocks = [], np.zeros((AT_ONCE // self.width, self.length, self.width), self.dtype)
        with arithmetic(self.dtype == np.float64):
            for i in range(0, len(X), AT_ONCE):
                parts.append(self._encode(X[i : i + AT_ONCE], blocks))
                for k, block in enumerate(blocks):
                    self._transpose(block, packed[i + k * self.width :], back=True)
            count = 1 << (len(packed) - 1).bit_length()  # few shapes are traced
            whole = jax.tree.map(lambda *v: np.resize(np.concatenate(v, -1), (*self.one_site, count)), *parts)
            scale, spread, tangent, signal, mean = whole
            variance, _, memos = interpreted(encode_layers)(self.last, signal, mean)
        memos = jax.tree.map(lambda leaf: np.moveaxis(leaf, -1, 0)[: len(X)], memos)
        a, b, c, d = jax.tree.map(lambda leaf: leaf.reshape(-1)[: len(X)], (scale, spread, tangent, variance))
        masks = self.last.masks or any(stage.layers.masks for stage in self.stages)  # of equal images they differ
        keys = np.array([np.nan if masks else hash(row.tobytes()) for row in X])
        return Features(packed[: len(X)], keys, a, b, c, memos, d)

    def _transpose(self, block: np.ndarray, rows: np.ndarray, *, back: bool = False) -> None:
        """Write rows to a block (numbers, width), or back."""
        size = self.width * self.dtype.itemsize
        ways = (rows.ctypes.data, rows.strides[0], size), (block.ctypes.data, size, size * self.width)
        (a, *from_), to = ways[::-1] if back else ways
        self.transposed.run(a, self.length // self.width, *from_, *to)

    def _encode(self, rows: np.ndarray, blocks: np.ndarray, exact: bool = False) -> Any:
        """Return scale, spread, tangent, variance and mean of up to AT_ONCE images, whose data go to the blocks.

        `exact`: all by NumPy, where sites are so dark that their squares are 0.
        """
        X = np.resize(rows, (AT_ONCE, rows.shape[1]))  # one shape, traced once
        start, signal = interpreted(embed)(self.net, X)
        single = (*self.one_site, AT_ONCE)
        scale, spread, mean = np.ones(single), np.zeros(single), None
        tangent = np.zeros(signal.value.shape, self.dtype)
        for k, stage in enumerate(self.stages):
            code = None if exact else self.singles[k]
            if code is None:
                memos, before, mean = encode_stage(stage.forgets, stage.layers, signal, mean)
                self._pack(k, dict(enumerate(jax.tree.leaves(memos))), blocks)
            else:
                before, mean = self._run_single(k, *code, signal, mean, blocks)
                if np.isnan(before.value).any():
                    return self._encode(rows, blocks, exact=True)
            (weights, totals), after, mean = self._end(stage, before, mean)
            self._pack(k, {START: start, WEIGHTS: weights, TOTALS: totals}, blocks)
            if stage.pool is None and self.apart:  # an image with itself is no pair of equal ones
                tangent, signal = interpreted(itself_stage)(stage, memos, weights, tangent), after
                continue
            if stage.pool is None and not self.tangent:
                tangent, signal = np.zeros_like(after.value), after
                continue
            mixed, theta = (v.reshape(after.value.shape) for v in self._itself(blocks, k))
            if stage.pool is None:
                tangent, signal = np.asarray(theta, self.dtype), after
                continue
            spread, inside = mixed / 2, np.maximum(1 - mixed, 0)
            scale = np.sqrt(np.divide(1, inside, out=np.zeros_like(inside), where=inside > 0))
            tangent = np.asarray(scale**2 * theta, self.dtype)
            start = np.asarray([scale, spread * (scale * scale)], self.dtype)
            signal = after._replace(value=np.asarray(after.value * inside, self.dtype))
            mean = None if mean is None else np.asarray(mean * scale, self.dtype)
        average = (scale, spread) if self.averaged else (np.ones(single), np.zeros(single))
        return *average, tangent, signal, mean

    def _run_single(self, k: int, plan: Plan, code: Any, signal: Any, mean: Any, blocks: np.ndarray) -> Any:
        """Return variance and mean after the layers of a stage, whose memos go to the blocks."""
        leaves = [signal.value, signal.exponent, np.zeros_like(signal.value) if mean is None else mean]
        given = self._in_blocks(np.asarray(leaves, self.dtype).reshape(-1, AT_ONCE))
        kept = sum(w.aside for nest in plan.written for w in nest)
        sites = self._starts[k][2].value.shape[:-1]
        after = np.empty((len(blocks), kept, math.prod(sites), self.width), self.dtype)
        work, flags = np.zeros((max(1, plan.length), self.width), self.dtype), np.zeros(3, np.int64)
        for one, out, block in zip(given, after, blocks, strict=True):
            fixed = [a.ctypes.data for a in (one, work, flags, self.numbers[k], flags)]
            code.run(0, 1, 0, *fixed, 1, flags.ctypes.data, out.ctypes.data, block.ctypes.data)
        value, exponent, *moved = np.moveaxis(after, 0, 2).reshape(kept, *sites, AT_ONCE)
        return Variance(value, exponent.astype(np.int32)), moved[0] if moved else None

    def _in_blocks(self, array: np.ndarray) -> np.ndarray:
        """Return (numbers, n) as (blocks, numbers, width)."""
        return np.ascontiguousarray(np.moveaxis(array.reshape(len(array), -1, self.width), 1, 0))

    def _pack(self, stage: int, leaves: dict[int, Any], blocks: np.ndarray) -> None:
        """Write leaves (.., *S, n) to the blocks."""
        layout = self.plans[stage].layout
        for k in leaves.keys() & layout.grids.keys():
            grid, lead = layout.grids[k], layout.leads[k]
            array = np.asarray(leaves[k], self.dtype).reshape(*lead, *grid.sites, AT_ONCE)
            margins = list(zip(grid.low, grid.high, strict=True))
            if any(map(any, margins)):
                array = np.pad(array, [(0, 0)] * len(lead) + [*margins, (0, 0)])
            array = self._in_blocks(array.reshape(-1, AT_ONCE))
            blocks[:, layout.starts[k] : layout.starts[k] + array.shape[1]] = array

    def _blocks(self, packed: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the second inputs in vectors, (numbers, width)."""
        block = np.empty((self.length, self.width), self.dtype)
        for i in range(0, len(packed), self.width):
            rows = packed[i : i + self.width]
            self._transpose(block, rows if len(rows) == self.width else np.resize(rows, block.T.shape))
            yield block

    def _run(self, rows: np.ndarray, block: np.ndarray, planes: list[np.ndarray], codes: list[Any]) -> np.ndarray:
        """Return the sums over planes for rows and one block of second inputs: (rows, outputs, width).

        Planes of the first stages only: the states after their last pool, (2, planes, sites, width).
        """
        plans = self.plans[: len(planes)]
        out = np.zeros((len(rows), len(self.plans[-1].needed), self.width))
        works = [np.zeros(max(1, plan.length) * self.width, self.dtype) for plan in plans]
        flags = [np.zeros(max(1, plan.flags), np.int64) for plan in plans]
        step = max(1, int(ENTRIES / self.work)) if len(plans) == 1 else 1
        before = after = np.zeros(1, self.dtype)
        for i in range(0, len(rows), step):
            some, sums = rows[i : i + step], out[i : i + step]
            for k, plan in enumerate(plans):
                before, after = after, np.zeros((*plan.pooled, self.width), self.dtype)
                fixed = [a.ctypes.data for a in (block, works[k], flags[k], self.numbers[k], planes[k])]
                ends = [a.ctypes.data for a in (sums, before, after)]
                codes[k].run(some.ctypes.data, len(some), rows.strides[0], *fixed, len(planes[k]), *ends)
        return after if len(plans) < len(self.plans) or plans[-1].pool else out

    def _itself(self, blocks: np.ndarray, stage: int) -> np.ndarray:
        """Return sum_ij u_i u_j of 1 - rho_ij and of Theta for every window of the pool of a stage, and image."""
        plan = self.plans[stage]
        ends = plan.planes(plan.pool is None and self.averaged)
        if plan.pool is not None:
            planes = self._planes(stage, plan.planes_pooled(ends))
            runs = [planes]
        else:  # planes d and -d are alike
            middle = len(ends) // 2
            halves = [ends] if plan.torus or not middle else [ends[middle:], ends[middle : middle + 1]]
            runs = [self._planes(stage, part) for part in halves]
        found = []
        for block in blocks:
            parts = [self._run(block[None, :1], block, planes, self.own_codes) for planes in runs]
            if plan.pool is not None:
                found.append(parts[0][:, parts[0].shape[1] // 2])
            else:
                found.append((parts[0] if len(parts) == 1 else 2 * parts[0] - parts[1])[0, [0, -1], None])
        return np.concatenate(found, -1)

    def pair(self, x: Features, y: Features, *, lower: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Return (rho, Theta) over the deviations, each (n, m); with `lower`, not what is above the diagonal."""
        raw = np.zeros((len(self.plans[-1].needed), len(x.packed), len(y.packed)))
        for b, block in enumerate(self._blocks(y.packed)):
            columns = slice(b * self.width, (b + 1) * self.width)
            first = columns.start if lower else 0
            sums = self._run(x.packed[first:], block, self.planes, self.codes)
            raw[:, first:, columns] = np.moveaxis(sums, 1, 0)[..., : raw[:, :, columns].shape[-1]]
        with arithmetic(self.dtype == np.float64):
            after = interpreted(pair_last)(self.last, x.memos, y.memos, self._state(raw, x, y))
        equal = x.keys[:, None] == y.keys
        rho = (after.correlation.one_plus - after.correlation.one_minus).reshape(equal.shape) / 2
        theta = after.tangent.reshape(equal.shape)
        return np.where(equal, 1, rho), np.where(equal, self.diagonal(x)[:, None], theta)

    def _state(self, raw: np.ndarray, x: Features, y: Features) -> PairState:
        """Return the state after the sum over sites."""
        minus, tangent = raw[0], raw[-1] if self.tangent else np.zeros_like(raw[0])
        if self.averaged:
            r, s = x.scale[:, None], y.scale
            spreads = (x.spread * x.scale**2)[:, None], y.spread * y.scale**2
            minus = np.clip((r - s) ** 2 / 2 + r * s * minus - spreads[0] - spreads[1], 0, 2)
            tangent = r * s * tangent
        plus = 2 - minus if self.averaged else raw[1]
        shape = (*self.one_site, *minus.shape)
        parts: list[Any] = [np.asarray(v, self.dtype).reshape(shape) for v in (minus, plus, tangent)]
        return PairState(Correlation(*parts[:2]), parts[2])

    def diagonal(self, x: Features) -> np.ndarray:
        """Return Theta of every image with itself over its variance, (n,)."""
        with arithmetic(self.dtype == np.float64):
            tangent: Any = x.tangent.reshape(*self.one_site, -1)
            state = PairState(interpreted(correlation_with_itself)(tangent), tangent)
            return np.asarray(interpreted(itself_last)(self.last, x.memos, state).tangent).reshape(-1)
