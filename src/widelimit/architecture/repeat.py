"""A block of layers is applied many times, and its program is compiled once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np

from widelimit import validation
from widelimit.activations.base import Memo
from widelimit.architecture.chain import Combined, Serial, branch_of
from widelimit.architecture.layers import INTERNAL
from widelimit.architecture.sites import Sites
from widelimit.architecture.state import (
    DEEPEST,
    Layer,
    Mean,
    PairState,
    Params,
    Part,
    Parts,
    Ranges,
    Scalar,
    Shape,
    Traits,
    as_it_is,
)
from widelimit.architecture.structure import Structure
from widelimit.pytrees import changed, pytree
from widelimit.signals import Variance

UNROLLED = 4
"""Blocks written out into one fused loop; beyond it `lax.scan` keeps the compile time constant (minutes at 50)."""
LONGEST_BLOCK = 6
"""Layers of a block that `grouped` looks for."""


class _Unrolled(NamedTuple):
    memo: Any


class _Peeled(NamedTuple):
    """The first time reads several parts of the width, the others one."""

    first: Any
    rest: Any


@final
@pytree
@dataclass(frozen=True)
class Repeat(Combined):
    """The block is applied `times` times, each time with random weights of its own and the same hyper-parameters."""

    block: tuple[Layer, ...]
    times: int = field(metadata={"static": True})
    untied: bool = field(default=False, metadata=INTERNAL)
    """The numbers of the block have a first axis, one entry a time; `grouped` makes such layers."""

    def __post_init__(self) -> None:
        layers = self.block if isinstance(self.block, (list, tuple)) else [self.block]
        object.__setattr__(self, "block", branch_of(layers, "block"))
        validation.integer("times", self.times, at_least=1, below=DEEPEST + 1)
        if not self.block:
            raise ValueError("block needs at least one layer; leave Repeat out where nothing is repeated.")

    def __repr__(self) -> str:
        return f"Repeat([{', '.join(map(repr, self.block))}], times={self.times})"

    @property
    def _once(self) -> Serial:
        return Serial(*self.block)

    @property
    def units(self) -> tuple[Layer, ...]:
        return self._once.units * self.times

    @property
    def random(self) -> bool:  # type: ignore[override]
        return self._once.random

    @property
    def numbers_per_input(self) -> int:
        return self.times * self._once.numbers_per_input

    @property
    def depth(self) -> int:
        return self.times * self._once.depth

    @property
    def inner(self) -> tuple[Layer, ...]:
        return self.block

    def traits(self, before: Traits, path: str) -> Traits:
        once = self._once
        after = once.traits(before, f"{path}.block")
        # Not again where nothing changes: blocks in blocks would be visited 2^depth times.
        return after if self.times == 1 or after == before else once.traits(after, f"{path}.block")

    def place(self, sites: Sites, path: str) -> tuple[Repeat, Sites]:
        sites = sites._replace(weighted=True)
        once, after = self._once.place(sites, f"{path}.block")
        if self.times > 1 and after != sites:
            raise ValueError(
                f"{path}: the block changes the sites from {sites.sizes} to {after.sizes}, so that it cannot follow "
                f"itself; write the layers out, or use stride 1 and padding 'same'."
            )
        return replace(self, block=once.layers), after

    def shape(self, inputs: int, outputs: int, widths: Iterator[int]) -> tuple[Shape, int]:
        return Serial(*self.units).shape(inputs, outputs, widths)

    def draw(self, key: jax.Array, shape: Shape, dtype: Any) -> Params:
        return Serial(*self.units).draw(key, shape, dtype)

    def apply_with(
        self, params: Params, signals: jax.Array, structure: Structure | None = None, key: jax.Array | None = None
    ) -> jax.Array:
        return Serial(*self.units).apply_with(params, signals, structure, key)

    def structure_after(self, structure: Structure) -> Structure | None:
        return self._once.structure_after(structure)

    @property
    def multiple(self) -> Scalar | None:
        once = self._once.multiple
        return None if once is None else math.prod([once] * self.times)

    @property
    def passes(self) -> int:
        """Return how often the innermost block is applied."""
        inner = jax.tree.leaves(self.block, is_leaf=lambda part: isinstance(part, Repeat))
        return self.times * max((part.passes for part in inner if isinstance(part, Repeat)), default=1)

    @property
    def _scanned(self) -> tuple[Layer, ...] | None:
        """Return what differs from time to time."""
        return self.block if self.untied else None

    def _at(self, block: tuple[Layer, ...] | None) -> Serial:
        return self._once if block is None else Serial(*block)

    def encode_parts(self, parts: Parts) -> tuple[Parts, Any]:
        """Return memos with a leading axis, one entry a time; where the width has parts, those of layers in a row."""
        shares = tuple(part.share for part in parts)
        if self._once.traits(Traits(True, True, False, shares), "").shares != (1.0,):
            parts, memo = Serial(*self.units).encode_parts(parts)
            return parts, _Unrolled(memo)
        if len(parts) > 1:
            first, memo = self._rest[0].encode_parts(parts)
            parts, memos = self._rest[1].encode_parts(first)
            return parts, _Peeled(memo, memos)
        signal, mean, memos = self._scan(parts[0].variance, parts[0].mean)
        return (Part(1.0, signal, mean),), memos

    @property
    def _rest(self) -> tuple[Serial, Layer]:
        """Return the layers of the first time, and those of all others."""
        if not self.untied:
            return self._once, replace(self, times=self.times - 1) if self.times > 1 else Serial()
        first = jax.tree.map(lambda leaf: leaf[0], self.block)
        others = jax.tree.map(lambda leaf: leaf[1:], self.block)
        return Serial(*first), changed(self, block=others, times=self.times - 1)

    def _scan(self, signal: Variance, mean: Mean) -> tuple[Variance, Mean, Memo]:
        centred = self._once.traits(Traits(True, mean is None, False), "").centred

        def step(carry: Any, block: Any) -> tuple[Any, Memo]:
            signal, share = carry
            after, mean, memo = self._at(block).encode_with_mean(signal, None if share is None else lambda: share)
            moved = None if share is None else jnp.zeros_like(share) if mean is None else mean()
            return (after, moved), memo

        share = None if centred and mean is None else jnp.zeros_like(signal.value) if mean is None else mean()
        (signal, share), memos = jax.lax.scan(step, (signal, share), self._scanned, length=self.times)
        return signal, None if centred or share is None else partial(as_it_is, share), memos

    def pair_parts(self, x: Any, y: Any, states: tuple[PairState, ...]) -> tuple[PairState, ...]:
        if isinstance(x, _Unrolled):
            return Serial(*self.units).pair_parts(x.memo, y.memo, states)
        if isinstance(x, _Peeled):
            first, rest = self._rest
            return rest.pair_parts(x.rest, y.rest, first.pair_parts(x.first, y.first, states))
        looped = any(activation.looped for activation in self.activations())
        if self.untied or self.passes > UNROLLED or looped:
            return self._scan_pairs(Serial.pair, states[0], (x, y))
        state = states[0]
        for i in range(self.times):
            own, other = jax.tree.map(lambda leaf: leaf[i], (x, y))  # noqa: B023
            state = self._once.pair(own, other, state)
        return (state,)

    def _scan_pairs(self, map_: Callable[..., PairState], state: PairState, memos: Any) -> tuple[PairState, ...]:
        def step(state: PairState, given: Any) -> tuple[PairState, None]:
            return map_(self._at(given[1]), *given[0], state), None

        return (jax.lax.scan(step, state, (memos, self._scanned), length=self.times)[0],)

    def itself_parts(self, x: Any, states: tuple[PairState, ...]) -> tuple[PairState, ...]:
        if isinstance(x, _Unrolled):
            return Serial(*self.units).itself_parts(x.memo, states)
        if isinstance(x, _Peeled):
            first, rest = self._rest
            return rest.itself_parts(x.rest, first.itself_parts(x.first, states))
        return self._scan_pairs(Serial.itself, states[0], (x,))

    def survey_parts(self, parts: Parts, path: tuple[Any, ...], ranges: Ranges) -> Parts:
        for _ in range(self.times):
            before, parts = parts, self._once.survey_parts(parts, (*path, "block"), ranges)
            parts = tuple(  # means are computed once a time, not again for every time before
                part if part.mean is None else part._replace(mean=partial(np.asarray, part.mean()))  # type: ignore[arg-type]
                for part in parts
            )
            if _same(before, parts):  # and so are all times that follow
                break
        return parts

    def map_layers(self, change: Callable[[Layer, tuple[Any, ...]], Layer], path: tuple[Any, ...]) -> Repeat:
        return replace(self, block=self._once.map_layers(change, (*path, "block")).layers)


def grouped(layers: Sequence[Layer]) -> tuple[Layer, ...]:
    """Return layers with the same maps, where more than `UNROLLED` blocks in a row are alike but for their numbers.

    One `Repeat` takes their place, so that a network of 50 layers compiles as one of 5.
    """
    forms = [(jax.tree.structure(layer), [jnp.shape(leaf) for leaf in jax.tree.leaves(layer)]) for layer in layers]
    found: list[Layer] = []
    at = 0
    while at < len(layers):
        size, times = max(((n, _alike(forms[at:], n)) for n in range(1, LONGEST_BLOCK + 1)), key=lambda pair: pair[1])
        block = tuple(layers[at : at + size])
        if times <= UNROLLED or not _of_one_part(block):
            found.append(layers[at])
            at += 1
            continue
        blocks = [tuple(layers[i : i + size]) for i in range(at, at + size * times, size)]
        stacked = jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *blocks)
        found.append(changed(Repeat(block, times), block=stacked, untied=True))
        at += size * times
    return tuple(found)


def _same(parts: Parts, others: Parts) -> bool:
    """Return True if the laws agree to the bit."""
    laws = [[(p.share, *p.variance[:2], 0.0 if p.mean is None else p.mean()) for p in own] for own in (parts, others)]
    return len(parts) == len(others) and all(map(np.array_equal, *map(jax.tree.leaves, laws)))


def kept_numbers(layer: Layer, known: dict[int, int]) -> int:
    """Return about how many numbers a layer keeps of an input; layers that stand in many places are visited once."""
    if id(layer) not in known:
        inner = jax.tree.leaves(layer, is_leaf=lambda part: isinstance(part, Layer) and part is not layer)
        parts = [kept_numbers(part, known) for part in inner if isinstance(part, Layer) and part is not layer]
        once = sum(parts) if isinstance(layer, Combined) else max(1, layer.numbers_per_input)
        known[id(layer)] = once * (layer.times if isinstance(layer, Repeat) else 1)
    return known[id(layer)]


def _alike(forms: Sequence[Any], size: int) -> int:
    """Return how many times the first `size` forms stand in a row."""
    times = 1
    while forms[times * size : (times + 1) * size] == forms[:size]:
        times += 1
    return times


def _of_one_part(block: Sequence[Layer]) -> bool:
    """Return True if the width has one law after the block, whatever it has before."""
    try:
        after = Serial(*block).traits(Traits(True, True, False, (0.5, 0.5)), "")
    except ValueError:  # only where signals before it are not as assumed
        return False
    return after.shares == (1.0,)
