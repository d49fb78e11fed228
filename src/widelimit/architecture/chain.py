"""Layers stand one after the other, once or many times."""

from __future__ import annotations

import abc
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np

from widelimit import validation
from widelimit.activations.base import Activation, Memo
from widelimit.architecture.layers import Activate
from widelimit.architecture.sites import Sites, first_of_pair, second_of_pair
from widelimit.architecture.state import Change, Layer, Mean, PairState, Params, Ranges, Shape, Traits
from widelimit.pytrees import pytree
from widelimit.shapes import Float
from widelimit.signals import Variance

UNROLLED = 4
"""Blocks written out into one fused loop; beyond it `lax.scan` keeps the compile time constant (minutes at 50)."""


def branch_of(layers: Sequence[Any], path: str) -> tuple[Layer, ...]:
    """Return layers in order, with those of `Serial` in its place, and activations for names and functions.

    Raises:
        TypeError, ValueError: neither a layer nor an activation.
    """
    found: list[Layer] = []
    for i, layer in enumerate(layers):
        if isinstance(layer, Serial):
            found += layer.layers
        elif isinstance(layer, Layer):
            found.append(layer)
        elif isinstance(layer, (str, Activation)) or callable(layer):
            try:
                found.append(Activate(layer))
            except (TypeError, ValueError) as error:
                raise type(error)(f"{path}[{i}]: {error}") from None
        else:
            raise TypeError(
                f"{path}[{i}]: neither a layer of wl.layers nor an activation (a name, an Activation or a function): "
                f"{validation.shown(layer)}."
            )
    return tuple(found)


def written_call(name: str, layers: Sequence[Layer], **more: str) -> str:
    """Return the code of a call with these layers."""
    return f"{name}({', '.join([*map(repr, layers), *(f'{key}={text}' for key, text in more.items())])})"


def among_sites(layer: Layer, before: Variance, after: Variance, memo: Memo) -> Variance:
    """Return `after` with the state of the pairs of an input's sites, if there is one before the layer."""
    if before.among is None or after.among is not None:
        return after
    axes = before.value.ndim - 1
    first, second = (jax.tree.map(lambda leaf: of(leaf, axes, 1), memo) for of in (first_of_pair, second_of_pair))  # noqa: B023
    return after._replace(among=layer.pair(first, second, before.among))


class Combined(Layer, abc.ABC):
    """The layer is made of others."""

    @abc.abstractmethod
    def map_layers(self, change: Callable[[Layer, tuple[Any, ...]], Layer], path: tuple[Any, ...]) -> Layer:
        """Return the same combination of other layers, each from the old one and its place."""

    def map_activations(self, change: Change, path: tuple[Any, ...]) -> Layer:
        return self.map_layers(lambda layer, at: layer.map_activations(change, at), path)

    def freeze(self) -> Layer:
        return self.map_layers(lambda layer, _: layer.freeze(), ())

    def standardise(self) -> Layer:
        return self.map_layers(lambda layer, _: layer.standardise(), ())

    def init(self, key: jax.Array, inputs: int, outputs: int, dtype: Any) -> Params:
        return self.draw(key, self.shape(inputs, outputs, itertools.repeat(outputs))[0], dtype)

    def encode(self, signal: Variance) -> tuple[Variance, Memo]:
        after, _, memo = self.encode_with_mean(signal, None)
        return after, memo


@final
@pytree
@dataclass(frozen=True, init=False)
class Serial(Combined):
    """The layers are applied one after the other; without any it is the identity."""

    layers: tuple[Layer, ...]

    def __init__(self, *layers: Any) -> None:
        object.__setattr__(self, "layers", branch_of(layers, "Serial"))

    def __repr__(self) -> str:
        return written_call("Serial", self.layers)

    @property
    def units(self) -> tuple[Layer, ...]:
        return tuple(unit for layer in self.layers for unit in layer.units)

    @property
    def hidden(self) -> int:
        units = self.units
        return sum(unit.hidden for unit in units) + max(sum(unit.random for unit in units) - 1, 0)

    @property
    def random(self) -> bool:  # type: ignore[override]
        return any(layer.random for layer in self.layers)

    @property
    def numbers_per_input(self) -> int:
        return sum(layer.numbers_per_input for layer in self.layers)

    @property
    def depth(self) -> int:
        return sum(layer.depth for layer in self.layers)

    def activations(self) -> Iterator[Activation]:
        for layer in self.layers:
            yield from layer.activations()

    def traits(self, before: Traits, path: str) -> Traits:
        for i, layer in enumerate(self.layers):
            before = layer.traits(before, f"{path}[{i}]")
        return before

    def shape(self, inputs: int, outputs: int, widths: Iterator[int]) -> tuple[Shape, int]:
        units = self.units
        last = max((i for i, unit in enumerate(units) if unit.random), default=-1)
        shapes = []
        for i, unit in enumerate(units):
            shape, inputs = unit.shape(inputs, next(widths) if unit.random and i != last else outputs, widths)
            shapes.append(shape)
        return tuple(shapes), inputs

    def draw(self, key: jax.Array, shape: Shape, dtype: Any) -> Params:
        units = self.units
        keys = jax.random.split(key, max(len(units), 1))
        return tuple(unit.draw(k, own, dtype) for unit, k, own in zip(units, keys, shape, strict=False))

    def count(self, shape: Shape) -> int:
        return sum(unit.count(own) for unit, own in zip(self.units, shape, strict=True))

    def check(self, params: Params, inputs: int | None, axes: int) -> int | None:
        for unit, own in zip(self.units, params, strict=True):
            inputs = unit.check(own, inputs, axes)
        return inputs

    def apply(self, params: Params, signals: Float[jax.Array, "n *sites width"]) -> Float[jax.Array, "n *after width2"]:
        for unit, own in zip(self.units, params, strict=True):
            signals = unit.apply(own, signals)
        return signals

    def place(self, sites: Sites, path: str) -> tuple[Serial, Sites]:
        layers = []
        for i, layer in enumerate(self.layers):
            layer, sites = layer.place(sites, f"{path}[{i}]")
            layers.append(layer)
        return Serial(*layers), sites

    @property
    def mixes_sites(self) -> bool:  # type: ignore[override]
        return any(layer.mixes_sites for layer in self.layers)

    def encode_with_mean(self, signal: Variance, mean: Mean) -> tuple[Variance, Mean, Memo]:
        memos = []
        for layer in self.layers:
            after, mean, memo = layer.encode_with_mean(signal, mean)
            signal = among_sites(layer, signal, after, memo)
            memos.append(memo)
        return signal, mean, tuple(memos)

    def pair(self, x: Memo, y: Memo, state: PairState) -> PairState:
        for layer, memo_x, memo_y in zip(self.layers, x, y, strict=True):
            state = layer.pair(memo_x, memo_y, state)
        return state

    def itself(self, x: Memo, state: PairState) -> PairState:
        for layer, memo in zip(self.layers, x, strict=True):
            state = layer.itself(memo, state)
        return state

    def survey(self, signal: Variance, mean: Mean, path: tuple[Any, ...], ranges: Ranges) -> tuple[Variance, Mean]:
        for i, layer in enumerate(self.layers):
            signal, mean = layer.survey(signal, mean, (*path, i), ranges)
        return signal, mean

    def map_layers(self, change: Callable[[Layer, tuple[Any, ...]], Layer], path: tuple[Any, ...]) -> Serial:
        return Serial(*(change(layer, (*path, i)) for i, layer in enumerate(self.layers)))


@final
@pytree
@dataclass(frozen=True)
class Repeat(Combined):
    """The block is applied `times` times, each time with random weights of its own and the same hyper-parameters."""

    block: tuple[Layer, ...]
    times: int = field(metadata={"static": True})

    def __post_init__(self) -> None:
        object.__setattr__(self, "block", branch_of(self.block, "block"))

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

    def activations(self) -> Iterator[Activation]:
        yield from self._once.activations()

    def traits(self, before: Traits, path: str) -> Traits:
        for _ in range(min(self.times, 2)):
            before = self._once.traits(before, f"{path}.block")
        return before

    def place(self, sites: Sites, path: str) -> tuple[Repeat, Sites]:
        once, after = self._once.place(sites, f"{path}.block")
        if self.times > 1 and after != sites:
            raise ValueError(
                f"{path}: the block changes the sites from {sites.sizes} to {after.sizes}, so that it cannot follow "
                f"itself; write the layers out, or use stride 1 and padding 'same'."
            )
        return replace(self, block=once.layers), after

    @property
    def mixes_sites(self) -> bool:  # type: ignore[override]
        return self._once.mixes_sites

    def shape(self, inputs: int, outputs: int, widths: Iterator[int]) -> tuple[Shape, int]:
        return Serial(*self.units).shape(inputs, outputs, widths)

    def draw(self, key: jax.Array, shape: Shape, dtype: Any) -> Params:
        return Serial(*self.units).draw(key, shape, dtype)

    def apply(self, params: Params, signals: Float[jax.Array, "n *sites width"]) -> Float[jax.Array, "n *after width2"]:
        return Serial(*self.units).apply(params, signals)

    def encode_with_mean(self, signal: Variance, mean: Mean) -> tuple[Variance, Mean, Memo]:
        """Return memos with a leading axis, one entry a time."""
        once = self._once
        centred = once.traits(Traits(True, mean is None, False), "").centred

        def step(carry: Any, _: None) -> tuple[Any, Memo]:
            signal, share = carry
            after, mean, memo = once.encode_with_mean(signal, None if share is None else lambda: share)
            return (after, None if centred or mean is None else mean()), memo

        share = None if centred and mean is None else jnp.zeros_like(signal.value) if mean is None else mean()
        (signal, share), memos = jax.lax.scan(step, (signal, share), None, length=self.times)
        return signal, None if share is None else lambda: share, memos

    def pair(self, x: Memo, y: Memo, state: PairState) -> PairState:
        dtype = state.tangent.dtype
        tabulated = any(activation.rtol_in(dtype) > 0 for activation in self.activations())
        if self.times > UNROLLED or tabulated:  # series are much to compile
            return jax.lax.scan(lambda state, memos: (self._once.pair(*memos, state), None), state, (x, y))[0]
        for i in range(self.times):
            own, other = jax.tree.map(lambda leaf: leaf[i], (x, y))  # noqa: B023
            state = self._once.pair(own, other, state)
        return state

    def itself(self, x: Memo, state: PairState) -> PairState:
        return jax.lax.scan(lambda state, memo: (self._once.itself(memo, state), None), state, x)[0]

    def survey(self, signal: Variance, mean: Mean, path: tuple[Any, ...], ranges: Ranges) -> tuple[Variance, Mean]:
        once = self._once
        for _ in range(self.times):
            signal, mean = once.survey(signal, mean, (*path, "block"), ranges)
            if mean is not None:  # once a time, not again for every time before
                mean = partial(np.asarray, mean())  # type: ignore[assignment]
        return signal, mean

    def map_layers(self, change: Callable[[Layer, tuple[Any, ...]], Layer], path: tuple[Any, ...]) -> Repeat:
        return replace(self, block=self._once.map_layers(change, (*path, "block")).layers)
