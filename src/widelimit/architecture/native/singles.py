"""The layers' maps of single inputs are written as machine code: what pairs need, for a vector of inputs at once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from widelimit.architecture.native.code import Word
from widelimit.architecture.native.nests import Index, Nest, Taps
from widelimit.architecture.native.plan import START, Grid, Layout, Plan, Written, in_three
from widelimit.architecture.native.program import Program, Stack
from widelimit.architecture.state import Layer
from widelimit.signals import Variance

Encode = Callable[[Layer, Variance, Any], Any]
"""From layers, variance and mean (or None) before them to memos, variance and mean after them."""


def _at_site(encode: Encode, centred: bool, layers: Layer, _: Any, __: Any, *given: jax.Array) -> Any:
    value, exponent, mean = given
    memos, after, mean = encode(layers, Variance(value, exponent.astype(jnp.int32)), None if centred else mean)
    end = (after.value, after.exponent.astype(value.dtype))
    return memos, end if mean is None else (*end, mean)


def plan_of(
    encode: Encode, layers: Layer, layout: Layout, sites: Sequence[tuple[int, ...]], width: int, dtype: Any, *,
    centred: bool,
) -> Plan:  # fmt: skip
    """Return the plan of the layers on single inputs, whose sites before and after are given. Raises: Unknown.

    `layout` says where the memos of an input are; `centred`: the mean is 0 before the layers.
    """
    program = Program(functools.partial(_at_site, encode, centred), layers, None, dtype, "signals")
    program.mark(range(len(program.outputs)))
    before, after = (Grid(in_three(own, 1)) for own in sites)
    memos = [k for k in layout.starts if k >= 0]
    written = []
    for k, value in zip(memos, program.outputs, strict=False):
        grid = layout.grids[k]
        written += [Written(v, layout.starts[k] + i * grid.count, grid, False) for i, v in enumerate(_flat(value))]
    ends = program.outputs[len(memos) :]
    written += [Written(value, k * after.count, after, True) for k, value in enumerate(ends)]
    own = Layout({START: 0}, {START: (3,)}, {START: before})
    return Plan(program, own, sites[0], width, (), np.dtype(dtype).name, written=written)


def _flat(value: Any) -> list[Any]:
    return [v for part in value.values for v in _flat(part)] if isinstance(value, Stack) else [value]


def write_single(nest: Nest) -> None:
    """Write the body of a nest of single inputs."""
    f, source = nest.f, nest.source
    largest = _largest(nest) if source.name == "largest" else None

    def site(*p: str) -> None:
        found = _total(nest, p) if source.name == "total" else largest or _signals(nest, p)
        nest.operations(enumerate(found), p, p)
        for out in nest.plan.written[nest.place]:
            word = f.convert(nest.value(out.value, p, p), nest.plan.type)
            f.store(word, "%I" if out.aside else "%O", nest.at(out.start, out.grid.inside(f, p)))

    f.loops([(0, n) for n in nest.sites], lambda p: site(*p))


def _signals(nest: Nest, p: Index) -> list[Word]:
    grid = nest.plan.layout.grids[START]
    return [
        nest.f.load("%Y", nest.at(0, grid.inside(nest.f, p), k * grid.count), nest.plan.type, True) for k in range(3)
    ]


def _largest(nest: Nest) -> list[Word]:
    f, (value,) = nest.f, nest.source.given
    start = f.widen(f.number(-np.inf, nest.plan.type))
    found = f.variable(start)
    f.loops(
        [(0, n) for n in nest.sites],
        lambda p: f.set(found, f.extreme([f.get(found, start), nest.buffer(value, p)], "gt")),
    )
    return [f.get(found, start)]


def _total(nest: Nest, p: Index) -> list[Word]:
    f, (value,) = nest.f, nest.source.given
    zero = f.widen(f.number(0, nest.plan.type))
    total, taps = f.variable(zero), Taps(f, nest.source.parameters["windows"], (p, p))

    def add(t: Index) -> None:
        word = nest.buffer(value, index=taps.place(t)[0], grid=taps.grid)
        f.set(total, f.binary("fadd", f.get(total, zero), word))

    taps.each(add)
    return [f.get(total, zero)]
