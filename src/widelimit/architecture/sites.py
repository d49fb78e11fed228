"""Sites of an input: windows over them, and pairs of all of them.

Signals are arrays (*S, n), S the sites; a state of pairs of inputs is (*S, n, m) where each site meets its own, and
(*S, *S, n, m) where all meet all, because a later layer averages over sites.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np

from widelimit import validation
from widelimit.architecture.structure import Structure
from widelimit.signals import Variance, largest_exponent, sum_terms

PADDINGS = ("same", "valid", "circular")


class Sites(NamedTuple):
    """The sites of an input before a layer."""

    sizes: tuple[int, ...]
    across: bool
    """States of pairs hold all pairs of sites, as a layer of the network averages over sites."""
    kind: str = "image"
    """"image", "sequence" or "graph": windows are for the first two, adjacency for the last."""
    weighted: bool = False
    """Weights may stand before the layer: the tangent kernel before it may be other than 0."""


@final
@dataclass(frozen=True)
class Windows:
    """Windows of `size` sites, one every `stride`, over axes of sites of the sizes `sites`."""

    sites: tuple[int, ...]
    size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: str
    dilation: tuple[int, ...]
    across: bool
    aligned: bool = False
    """The first window begins at the same place whatever the number of sites, as sequences are padded."""

    @property
    def pair_axes(self) -> tuple[int, ...]:
        """Return the first axes of the sites in a state of pairs."""
        return (0, len(self.sites)) if self.across else (0,)

    @property
    def reach(self) -> tuple[int, ...]:
        """Return the sizes of a window from end to end."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.size, self.dilation, strict=True))

    @property
    def after(self) -> tuple[int, ...]:
        """Return the number of windows along each axis, as XLA counts them; below 1 where none fits."""
        if self.padding != "valid":
            return tuple(-(-n // s) for n, s in zip(self.sites, self.stride, strict=True))
        return tuple((n - k) // s + 1 for n, k, s in zip(self.sites, self.reach, self.stride, strict=True))

    @property
    def margins(self) -> list[tuple[int, int]]:
        """Return the sites added before and after each axis."""
        if self.padding == "valid":
            return [(0, 0)] * len(self.sites)
        each = zip(self.after, self.stride, self.reach, self.sites, strict=True)
        if self.aligned:
            firsts = [(k - 1) // 2 for k in self.reach]
            ends = ((count - 1) * s + k - n for count, s, k, n in each)
            return [(first, max(end - first, 0)) for first, end in zip(firsts, ends, strict=True)]
        whole = [max((count - 1) * s + k - n, 0) for count, s, k, n in each]
        return [(n // 2, n - n // 2) for n in whole]

    @property
    def count(self) -> int:
        """Return the number of sites of a window."""
        return math.prod(self.size)

    def padded(self, array: jax.Array, first: int) -> jax.Array:
        """Add the margins to the axes from `first` on: zeros, or the sites of the other side."""
        margins = [(0, 0)] * first + self.margins + [(0, 0)] * (array.ndim - first - len(self.sites))
        if not any(map(any, margins)):
            return array
        return jnp.pad(array, margins, mode="wrap") if self.padding == "circular" else jnp.pad(array, margins)

    @property
    def places(self) -> list[tuple[int, ...]]:
        """Return the first site of each tap's slices, (taps, axes)."""
        steps = [[k * d for k in range(n)] for n, d in zip(self.size, self.dilation, strict=True)]
        return list(itertools.product(*steps))

    def pad_axes(self, array: jax.Array) -> jax.Array:
        """Add the margins to the sites of both inputs of a state of pairs."""
        for first in self.pair_axes:
            array = self.padded(array, first)
        return array

    def at(self, place: jax.Array, padded: jax.Array) -> jax.Array:
        """Return a padded state of pairs at the tap whose slices begin at `place`, the same for both inputs."""
        starts = [jnp.zeros((), place.dtype)] * padded.ndim
        lengths, steps = list(padded.shape), [1] * padded.ndim
        for first in self.pair_axes:
            for axis, (start, stride, count) in enumerate(zip(place, self.stride, self.after, strict=True), first):
                starts[axis], lengths[axis], steps[axis] = start, (count - 1) * stride + 1, stride
        taken = jax.lax.dynamic_slice(padded, starts, lengths)
        return jax.lax.slice(taken, [0] * padded.ndim, lengths, steps) if max(steps) > 1 else taken

    def each(self, array: jax.Array, first: int) -> Iterator[jax.Array]:
        """Yield the array at the k-th site of all windows, for every k; its sites are the axes from `first` on.

        Sites outside are 0.
        """
        array = self.padded(array, first)
        for place in self.places:
            taken = array
            for axis, (start, stride, count) in enumerate(zip(place, self.stride, self.after, strict=True), first):
                taken = jax.lax.slice_in_dim(taken, start, start + (count - 1) * stride + 1, stride, axis)
            yield taken

    def structure_after(self, structure: Structure) -> Structure:
        """Return which windows are there: with "valid" those within the sequence, else those that begin in it."""
        if self.padding != "valid":
            return Structure(structure.mask[:, :: self.stride[0]])
        mask = functools.reduce(jnp.minimum, self.each(structure.mask, 1))
        if not validation.traced(mask) and not (there := np.asarray(mask).any(axis=1)).all():
            raise ValueError(
                f"X[{int(np.argmin(there))}] is too short: no window of {self.reach[0]} sites, padding 'valid', fits "
                f"into what layers before it leave; use padding 'same', or leave the sequence out."
            )
        return Structure(mask)

    def total(self, array: jax.Array) -> jax.Array:
        """Return the sum over every window, of arrays (*S, n)."""
        return sum_terms(list(self.each(array, 0)))

    def highest(self, signal: Variance) -> jax.Array:
        """Return the largest exponent over all sites."""
        return largest_exponent(signal, tuple(range(len(self.sites))))

    def choose(self, far: jax.Array, rare: Any, usual: Any, *given: jax.Array) -> Any:
        """Do what is `usual`, or what is `rare` if this is `far` at any site."""
        return jax.lax.cond(jnp.any(far), rare, usual, *given)

    def sum_patches(
        self, x: Sequence[jax.Array], y: Sequence[jax.Array], state: Sequence[jax.Array]
    ) -> tuple[jax.Array, ...]:
        """Return 1 -+ rho and Theta of pairs of patches: 1 - rho = sum_t ((a_t - a'_t)^2/2 + a_t a'_t (1 - rho_t)).

        x and y are the signals at the sites and the inverse roots of the patches, the shares a_t their products; the
        state is (1 - rho, 1 + rho, Theta), of which Theta has no first part.
        """
        a, b = (
            jnp.stack(list(self.each(signal, first))) * inverse
            for (signal, inverse), first in ((x, 0), (y, self.pair_axes[-1]))
        )
        arrays = [self.pad_axes(array) for array in state]

        def add(sums: Any, tap: Any) -> tuple[Any, None]:
            a, b, place = tap
            common, separation = a * b, (a - b) ** 2 / 2
            minus, plus, own = (self.at(place, array) for array in arrays)
            terms = separation + common * minus, separation + common * plus, common * own
            return jax.tree.map(jnp.add, sums, terms), None

        taps = jnp.asarray(self.places)
        form = jax.eval_shape(lambda: add((0.0, 0.0, 0.0), (a[0], b[0], taps[0]))[0])
        start = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), form)
        sums: tuple[jax.Array, ...] = jax.lax.scan(add, start, (a, b, taps))[0]
        return sums


def windows(before: Sites, size: Any, stride: Any, padding: str, dilation: Any, path: str, name: str) -> Windows:
    """Return the windows of a layer on these sites. Raises: ValueError: none fits."""
    sites = before.sizes
    if not sites:
        raise ValueError(f"{path}: {name} needs images; pass inputs=wl.Image(height, width, channels) to wl.network.")
    if before.kind == "graph" and size != sites:
        raise ValueError(
            f"{path}: the nodes of a graph have no order, so that {name} has no windows there; use "
            f"wl.layers.Aggregate(), or a readout: GlobalAveragePool(), GlobalSumPool()."
        )
    if before.kind == "sequence" and padding == "circular":
        raise ValueError(
            f"{path}: sequences of unequal lengths have no common circle; use padding 'same', or inputs="
            f"wl.Image({sites[0]}, features) where all have {sites[0]} sites."
        )
    many = [
        per_axis(value, len(sites), path, what) for what, value in zip(_SIZES, (size, stride, dilation), strict=True)
    ]
    aligned = before.kind == "sequence"
    found = Windows(sites, many[0], many[1], padding, many[2], before.across, aligned)
    large = any(s > n for n, s in zip(sites, many[1], strict=True) if n > 1 or s > 1)
    if min(found.after) < 1 or (large and padding != "valid"):
        raise ValueError(
            f"{path}: {name} with size {many[0]}, stride {many[1]} and padding {padding!r} leaves nothing of "
            f"{' x '.join(map(str, sites))} sites."
        )
    if padding == "circular" and any(max(pad) > n for pad, n in zip(found.margins, sites, strict=True)):
        raise ValueError(f"{path}: a window of {found.reach} sites goes more than once round {sites} sites.")
    return found


_SIZES = ("size", "stride", "dilation")


def per_axis(value: int | tuple[int, ...], axes: int, path: str, name: str) -> tuple[int, ...]:
    """Return one number an axis. Raises: ValueError: another count."""
    if isinstance(value, int):
        return (value,) * axes
    if len(value) != axes:
        raise ValueError(f"{path}: {name} has {len(value)} numbers, and the inputs have {axes} axes of sites.")
    return value


def sizes(name: str, value: Any) -> int | tuple[int, ...]:
    """Return an integer >= 1, or a tuple of them. Raises: TypeError, ValueError."""
    if isinstance(value, (list, tuple)):
        return tuple(validation.integer(f"each of {name}", n, at_least=1, below=2**20) for n in value)
    return validation.integer(name, value, at_least=1, below=2**20)


def pairs_of_equal_sites(sizes: tuple[int, ...], ndim: int) -> jax.Array:
    """Mark the pairs (*S, *S) of a site with itself; axes of 1 follow, up to `ndim`."""
    own = jnp.eye(math.prod(sizes), dtype=bool).reshape(*sizes, *sizes)
    return jnp.expand_dims(own, tuple(range(2 * len(sizes), ndim)))


def first_of_pair(leaf: jax.Array, axes: int, beside: int) -> jax.Array:
    """Insert axes for the other input's sites: (.., *S, n[, 1]) -> (.., *S, 1.., n[, 1]); `beside` axes follow S."""
    at = leaf.ndim - beside
    return jnp.expand_dims(leaf, tuple(range(at, at + axes)))


def second_of_pair(leaf: jax.Array, axes: int, beside: int) -> jax.Array:
    """Insert axes for the first input's sites: (.., *S, n[, 1]) -> (.., 1.., *S, n[, 1])."""
    at = leaf.ndim - beside - axes
    return jnp.expand_dims(leaf, tuple(range(at, at + axes)))
