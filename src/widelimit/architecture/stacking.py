"""The parameters of equal layers are drawn as one array, and divided into those of each layer afterwards."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, final

import jax
import numpy as np

from widelimit.architecture.state import Layer, Params, Shape
from widelimit.pytrees import pytree

MANY = 8
"""More equal layers than this are divided outside the compiled program, where each slice takes 50 ms to compile."""

Take = Callable[[Params, Any], Params]
Draw = Callable[[Layer, jax.Array, Shape, Any], tuple[Params, ...]]


@final
@pytree
@dataclass(frozen=True)
class Stacked:
    """The parameters of layers in order, where those of several equal layers have one more axis."""

    groups: tuple[Params, ...]
    places: tuple[tuple[int, ...], ...] = field(metadata={"static": True})
    """The indices of the layers in each group."""

    def in_order(self, take: Take) -> tuple[Params, ...]:
        """Return one entry for each layer; take: function that returns entry j of a stack."""
        found = {}
        for group, places in zip(self.groups, self.places, strict=True):
            for j, i in enumerate(places):
                found[i] = unstacked(take(group, np.int32(j)) if len(places) > 1 else group, take)
        return tuple(found[i] for i in range(len(found)))


def entry(stack: Params, j: Any) -> Params:
    """Return entry j of a stack."""
    return jax.tree.map(lambda leaf: leaf[j], stack)


def unstacked(params: Params, take: Take = entry) -> Params:
    """Return parameters with one entry for each layer."""
    return jax.tree.map(
        lambda own: own.in_order(take) if isinstance(own, Stacked) else own,
        params,
        is_leaf=lambda own: isinstance(own, Stacked),
    )


def draw_in_order(layers: Sequence[Layer], key: jax.Array, shape: Shape, dtype: Any) -> Params:
    """Draw the parameters of layers in order; they are `Stacked` if more than `MANY` layers are equal."""
    keys = jax.random.split(key, max(len(layers), 1))
    alike: dict[Any, list[int]] = {}
    for i, (layer, own) in enumerate(zip(layers, shape, strict=False)):
        alike.setdefault((id(layer), own), []).append(i)
    groups = []
    for (_, own), places in alike.items():  # one program for the layers of a block, whatever its times
        draw = partial(layers[places[0]].draw, shape=own, dtype=dtype)
        groups.append(jax.vmap(draw)(keys[np.asarray(places)]) if len(places) > 1 else draw(keys[places[0]]))
    found = Stacked(tuple(groups), tuple(map(tuple, alike.values())))
    return found if max(map(len, alike.values()), default=0) > MANY else found.in_order(entry)


def draw_many(layer: Layer, keys: jax.Array, shape: Shape, dtype: Any) -> tuple[Params, ...]:
    """Draw parameters for every key; leaves have a leading axis of keys."""
    return unstacked(_draw_many(layer, keys, shape, dtype), _entry_of_each)  # type: ignore[no-any-return]


def draw_one(layer: Layer, keys: jax.Array, shape: Shape, dtype: Any) -> tuple[Params, ...]:
    """Draw parameters for the only key, by the program of `draw_many`."""
    return unstacked(_only(_draw_many(layer, keys, shape, dtype)), _entry)  # type: ignore[no-any-return]


@partial(jax.jit, static_argnames=("shape", "dtype"))
def _draw_many(layer: Layer, keys: jax.Array, shape: Shape, dtype: Any) -> Params:
    return jax.vmap(lambda key: layer.draw(key, shape, dtype))(keys)


_entry = jax.jit(entry)
_entry_of_each = jax.jit(lambda stack, j: jax.tree.map(lambda leaf: leaf[:, j], stack))
_only = jax.jit(lambda many: jax.tree.map(lambda leaf: leaf[0], many))
