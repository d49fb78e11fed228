"""Hyper-parameters with names are the coordinates of a search."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np

from widelimit import validation
from widelimit.architecture.network import Network
from widelimit.kernels.base import Kernel
from widelimit.pytrees import leaf_names

DECADES = 3.0
"""Without given bounds a positive parameter is bounded by its start times 10^(+-DECADES)."""

NAMED = 12
"""Hyper-parameters that `named_numbers` lists."""

Values = dict[str, Any]


class Parameter(NamedTuple):
    """A hyper-parameter has coordinates z: its logarithm where its lower bound is positive, else itself."""

    name: str
    shape: tuple[int, ...]
    start: np.ndarray
    low: np.ndarray
    high: np.ndarray
    logarithmic: bool


Layout = tuple[tuple[str, tuple[int, ...], bool], ...]
"""Name, shape, and whether in logarithms, of every hyper-parameter."""


def values_by_name(layout: Layout, z: Any) -> Values:
    """Return named values from coordinates, NumPy or JAX."""
    found: Values = {}
    place = 0
    for name, shape, logarithmic in layout:
        part = z[place : place + math.prod(shape)].reshape(shape)
        place += part.size
        found[name] = (jnp.exp(part) if isinstance(part, jax.Array) else np.exp(part)) if logarithmic else part
    return found


class Space(NamedTuple):
    """The space holds all hyper-parameters of a search, one after another in z."""

    parameters: tuple[Parameter, ...]

    @property
    def layout(self) -> Layout:
        """Return the data of the space that a compiled function knows."""
        return tuple((p.name, p.shape, p.logarithmic) for p in self.parameters)

    def values(self, z: Any) -> Values:
        """Return named values from coordinates."""
        return values_by_name(self.layout, z)

    def floats(self, z: np.ndarray) -> Values:
        """Return the same with plain floats for scalars."""
        return {name: float(v) if np.ndim(v) == 0 else np.asarray(v) for name, v in self.values(z).items()}

    def concatenate(self, field: str) -> np.ndarray:
        """Return a field of every parameter as coordinates: start, low or high."""
        return np.concatenate([np.asarray(getattr(p, field)).ravel() for p in self.parameters])


def parameter(name: str, start: Any, bounds: Any) -> Parameter:
    """Make a parameter and its bounds, checked. Raises: TypeError, ValueError."""
    value = np.asarray(validation.vector_or_scalar(name, start), np.float64)
    if bounds is None:
        if not (value > 0).all():
            raise ValueError(f"{name} starts at {start}; give its bounds, e.g. bounds={{{name!r}: (-1.0, 1.0)}}.")
        if (value > validation.FLOAT_MAX / 10**DECADES).any():
            raise ValueError(f"{name} starts at {start}, and its upper bound leaves float64's range; start lower.")
        low, high = value * 10**-DECADES, value * 10**DECADES
    else:
        try:
            low, high = (np.broadcast_to(np.asarray(b, np.float64), value.shape) for b in bounds)
        except (TypeError, ValueError):
            raise ValueError(f"the bounds of {name} must be (low, high), got {bounds!r}.") from None
        if not ((low < high).all() and np.isfinite(low).all() and np.isfinite(high).all()):
            raise ValueError(f"the bounds of {name} must be finite and low < high, got {bounds!r}.")
        if not ((low <= value).all() and (value <= high).all()):
            raise ValueError(f"{name} starts at {start}, outside of its bounds {bounds!r}.")
    if bool((low > 0).all()):
        return Parameter(name, value.shape, np.log(value), np.log(low), np.log(high), True)
    return Parameter(name, value.shape, value, low, high, False)


@final
@dataclass(frozen=True)
class LeafBuilder:
    """The builder makes a kernel from its leaves by name; equal ones share what is compiled."""

    tree: Any
    names: tuple[str, ...]

    def __call__(self, **values: Any) -> Kernel:
        return jax.tree.unflatten(self.tree, [values[name] for name in self.names])  # type: ignore[no-any-return]


def numbers(net: Network) -> dict[str, float]:
    """Return the numbers of a network by name."""
    return dict(zip(leaf_names(net), map(float, jax.tree.leaves(net)), strict=True))


def searched(net: Network) -> tuple[str, ...]:
    """Name the numbers of a network that a search changes: those of layers, if they are positive.

    A bias of 0 stays, and so do the numbers of activations.
    """
    return tuple(name for name, value in numbers(net).items() if value > 0 and ".activation." not in name)


def with_numbers(net: Network, values: Mapping[str, Any]) -> Network:
    """Return the network with these numbers in the place of those of the same names."""
    leaves, tree = jax.tree.flatten(net)
    named = zip(leaf_names(net), leaves, strict=True)
    return jax.tree.unflatten(tree, [values.get(name, leaf) for name, leaf in named])  # type: ignore[no-any-return]


def leaf_builder(kernel: Kernel) -> tuple[LeafBuilder, Values]:
    """Make a builder of a kernel: its leaves by their paths."""
    values = named_leaves(kernel)
    return LeafBuilder(jax.tree.structure(kernel), tuple(values)), values


def named_leaves(kernel: Any) -> Values:
    """Return the hyper-parameters of a kernel by name."""
    return dict(zip(map(_name, leaf_names(kernel)), jax.tree.leaves(kernel), strict=True))


def named_numbers(kernel: Any) -> str:
    """Return the first NAMED hyper-parameters of a kernel that are numbers, as text."""
    named = [(name, leaf) for name, leaf in named_leaves(kernel).items() if np.ndim(leaf) == 0]
    shown = [f"{name} {float(leaf):.4g}" for name, leaf in named[:NAMED]]
    return ", ".join(shown) + ", ..." * (len(named) > NAMED)


def _name(path: str) -> str:
    """Return the name of a leaf: the first layer of a network, and the block that `mlp` repeats, have names."""
    if path.startswith("net.layers[0].") and path.endswith("_std"):
        return path.replace("net.layers[0].", "net.first.")
    return path.replace("net.layers[1].block[", "net.block[")
