"""Layers stand one after the other, once or many times."""

from __future__ import annotations

import abc
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, final

import jax
import jax.numpy as jnp

from widelimit import validation
from widelimit.activations.base import Activation, Memo
from widelimit.architecture.layers import Activate
from widelimit.architecture.mixing import with_itself
from widelimit.architecture.sites import Sites, first_of_pair, second_of_pair
from widelimit.architecture.stacking import draw_in_order, unstacked
from widelimit.architecture.state import (
    Change,
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
    after_layer,
    held,
    join,
    merge,
)
from widelimit.architecture.structure import Structure
from widelimit.interpreter import interpreted
from widelimit.pytrees import pytree
from widelimit.shapes import Float
from widelimit.signals import Variance


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
        elif isinstance(layer, type) and issubclass(layer, Layer):
            raise TypeError(f"{path}[{i}]: a layer is needed, not its class; write wl.layers.{layer.__name__}(...).")
        elif isinstance(layer, (str, Activation)) or callable(layer):
            try:
                found.append(Activate(layer))
            except (TypeError, ValueError) as error:
                raise type(error)(f"{path}[{i}]: {error}") from None
        else:
            raise TypeError(
                f"{path}[{i}]: neither a layer of wl.layers nor an activation (a name, an Activation or a function): "
                f"{validation.shown(layer)}. Of a list write its layers, *layers; of a network *net.layers[:-1]."
            )
    return tuple(found)


def written_call(name: str, layers: Sequence[Layer], **more: str) -> str:
    """Return the code of a call with these layers."""
    return f"{name}({', '.join([*map(repr, layers), *(f'{key}={text}' for key, text in more.items())])})"


def hide_masked(layer: Layer, parts: Parts) -> Parts:
    """Return the parts with masked sites at 0, where a site after the layer depends on other sites before it."""
    structure = parts[0].variance.structure
    if layer.sitewise or structure is None:
        return parts
    there = structure.mask.T
    return tuple(p._replace(variance=p.variance._replace(value=p.variance.value * there)) for p in parts)


def _filled(structure: Structure | None, signal: Variance) -> Variance:
    """Return variances with masked sites like the first that is there: within the range of activations, and unread."""
    if structure is None:
        return signal
    first = jnp.argmax(structure.mask, axis=1)[None]
    value, exponent = (
        jnp.where(structure.mask.T > 0, leaf, jnp.take_along_axis(leaf, first, 0)) for leaf in signal[:2]
    )
    return signal._replace(value=value, exponent=exponent)


def with_sites(layer: Layer, before: Parts, after: Parts, memo: Memo) -> Parts:
    """Return `after` with structure and the states of the pairs of an input's sites, if they are before the layer."""
    given = before[0].variance
    if given.structure is not None:
        structure = layer.structure_after(given.structure)
        kept = [part.variance if layer.sitewise else _filled(structure, part.variance) for part in after]
        after = tuple(p._replace(variance=v._replace(structure=structure)) for p, v in zip(after, kept, strict=True))
    if given.among is None or all(part.variance.among is not None for part in after):
        return after
    axes = given.value.ndim - 1
    first, second = (jax.tree.map(partial(of, axes=axes, beside=1), memo) for of in (first_of_pair, second_of_pair))
    states = after_layer(layer, first, second, tuple(part.variance.among for part in before))
    if layer.mixes_sites:
        states = tuple(map(with_itself, states))
    pairs = zip(after, states, strict=True)
    return tuple(part._replace(variance=part.variance._replace(among=state)) for part, state in pairs)


class Combined(Layer, abc.ABC):
    """The layer is made of others."""

    simple: ClassVar[bool] = True

    @property
    @abc.abstractmethod
    def inner(self) -> tuple[Layer, ...]:
        """Return the layers, those of a repeated block once."""

    def activations(self) -> Iterator[Activation]:
        for layer in self.inner:
            yield from layer.activations()

    @property
    def mixes_sites(self) -> bool:  # type: ignore[override]
        return any(layer.mixes_sites for layer in self.inner)

    @property
    def masks(self) -> bool:
        return any(layer.masks for layer in self.inner)

    @abc.abstractmethod
    def map_layers(self, change: Callable[[Layer, tuple[Any, ...]], Layer], path: tuple[Any, ...]) -> Layer:
        """Return the same combination of other layers, each from the old one and its place."""

    def map_activations(self, change: Change, path: tuple[Any, ...]) -> Layer:
        return self.map_layers(lambda layer, at: layer.map_activations(change, at), path)

    def freeze(self) -> Layer:
        return self.map_layers(lambda layer, _: layer.freeze(), ())

    def standardise(self) -> Layer:
        return self.map_layers(lambda layer, _: layer.standardise(), ())

    def without_refinement(self) -> Layer:
        return self.map_layers(lambda layer, _: layer.without_refinement(), ())

    @abc.abstractmethod
    def apply_with(
        self, params: Params, signals: jax.Array, structure: Structure | None = None, key: jax.Array | None = None
    ) -> jax.Array: ...

    def apply(self, params: Params, signals: Float[jax.Array, "n *sites width"]) -> Float[jax.Array, "n *after width2"]:
        return self.apply_with(params, signals)

    def draw_and_apply(self, params: Params, signals: Float[jax.Array, "n *sites width"], key: jax.Array) -> jax.Array:
        return self.apply_with(params, signals, key=key)

    def init(self, key: jax.Array, inputs: int, outputs: int, dtype: Any) -> Params:
        return unstacked(self.draw(key, self.shape(inputs, outputs, itertools.repeat(outputs))[0], dtype))

    def encode(self, signal: Variance) -> tuple[Variance, Memo]:
        after, _, memo = self.encode_with_mean(signal, None)
        return after, memo

    def encode_with_mean(self, signal: Variance, mean: Mean) -> tuple[Variance, Mean, Memo]:
        parts, memo = self.encode_parts((Part(1.0, signal, mean),))
        end, ways = merge(parts)
        return end.variance, end.mean, (ways, memo)

    def pair(self, x: Memo, y: Memo, state: PairState) -> PairState:
        return join(x[0], y[0], self.pair_parts(x[1], y[1], (state,)))

    def itself(self, x: Memo, state: PairState) -> PairState:
        return join(x[0], x[0], self.itself_parts(x[1], (state,)))

    def survey(self, signal: Variance, mean: Mean, path: tuple[Any, ...], ranges: Ranges) -> tuple[Variance, Mean]:
        end = merge(self.survey_parts((Part(1.0, signal, mean),), path, ranges), interpreted)[0]
        return end.variance, end.mean


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

    @property
    def inner(self) -> tuple[Layer, ...]:
        return self.layers

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
        return draw_in_order(self.units, key, shape, dtype)

    def count(self, shape: Shape) -> int:
        return sum(unit.count(own) for unit, own in zip(self.units, shape, strict=True))

    def check(self, params: Params, inputs: int | None, axes: int) -> int | None:
        for unit, own in zip(self.units, params, strict=True):
            inputs = unit.check(own, inputs, axes)
        return inputs

    def apply_with(
        self, params: Params, signals: jax.Array, structure: Structure | None = None, key: jax.Array | None = None
    ) -> jax.Array:
        for i, (unit, own) in enumerate(zip(self.units, params, strict=True)):
            if structure is not None and not unit.sitewise:
                signals = structure.hide(signals)
            signals = unit.apply_with(own, signals, structure, None if key is None else jax.random.fold_in(key, i))
            structure = None if structure is None else unit.structure_after(structure)
        return signals

    def structure_after(self, structure: Structure) -> Structure | None:
        after: Structure | None = structure
        for layer in self.layers:
            after = None if after is None else layer.structure_after(after)
        return after

    @property
    def multiple(self) -> Scalar | None:
        factors = [unit.multiple for unit in self.units]
        return None if None in factors else math.prod(factors)  # type: ignore[arg-type]

    def place(self, sites: Sites, path: str) -> tuple[Serial, Sites]:
        layers = []
        for i, layer in enumerate(self.layers):
            layer, sites = layer.place(sites, f"{path}[{i}]")
            sites = sites._replace(weighted=sites.weighted or not layer.on_sites)
            layers.append(layer)
        return Serial(*layers), sites

    def encode_parts(self, parts: Parts) -> tuple[Parts, Any]:
        memos: list[Any] = []
        for layer in self.layers:
            if memos:
                known = held([part.variance._replace(structure=None) for part in parts])
                parts = tuple(
                    part._replace(variance=signal._replace(structure=part.variance.structure))
                    for part, signal in zip(parts, known, strict=True)
                )
            parts = hide_masked(layer, parts)
            after, memo = layer.encode_parts(parts)
            parts = with_sites(layer, parts, after, memo)
            memos.append(memo)
        return parts, tuple(memos)

    def pair_parts(self, x: Any, y: Any, states: tuple[PairState, ...]) -> tuple[PairState, ...]:
        for layer, memo_x, memo_y in zip(self.layers, x, y, strict=True):
            states = after_layer(layer, memo_x, memo_y, states)
        return states

    def itself_parts(self, x: Any, states: tuple[PairState, ...]) -> tuple[PairState, ...]:
        for layer, memo in zip(self.layers, x, strict=True):
            states = layer.itself_parts(memo, states)
        return states

    def survey_parts(self, parts: Parts, path: tuple[Any, ...], ranges: Ranges) -> Parts:
        for i, layer in enumerate(self.layers):
            parts = layer.survey_parts(parts, (*path, i), ranges)
        return parts

    def map_layers(self, change: Callable[[Layer, tuple[Any, ...]], Layer], path: tuple[Any, ...]) -> Serial:
        return Serial(*(change(layer, (*path, i)) for i, layer in enumerate(self.layers)))
