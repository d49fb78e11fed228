"""Linear maps over sites that are the same for every input: a matrix, a choice of sites, a change of size."""

from __future__ import annotations

import abc
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np

from widelimit import validation
from widelimit.activations.base import Memo
from widelimit.architecture.mixing import correlation_of_sums
from widelimit.architecture.sites import Sites, first_of_pair, per_axis, second_of_pair, sizes
from widelimit.architecture.state import Layer, Mean, PairState, Params, Ranges, Unweighted
from widelimit.architecture.structure import Structure
from widelimit.interpreter import interpreted
from widelimit.pytrees import changed, pytree
from widelimit.series import safe_divide, safe_sqrt
from widelimit.signals import (
    Variance,
    deviation_of,
    largest_exponent,
    relative_deviation,
    variance_of,
)

Rows = tuple[tuple[float, ...], ...]


@final
@dataclass(frozen=True)
class Placed:
    """A matrix for each axis of sites (None: the axis stays), or one `joint` matrix for all sites in order."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    matrices: tuple[Rows | None, ...]
    joint: bool
    across: bool

    def _steps(self, first: int) -> Iterator[tuple[int, np.ndarray]]:
        for axis, rows in enumerate(self.matrices, first):
            if rows is not None:
                yield axis, np.asarray(rows)

    def _reshaped(self, array: jax.Array, first: int, here: tuple[int, ...], there: tuple[int, ...]) -> jax.Array:
        if not self.joint:
            return array
        return array.reshape(*array.shape[:first], *there, *array.shape[first + len(here) :])

    def total(self, array: jax.Array, first: int) -> jax.Array:
        """Return sum_t A_it array_t; its sites are the axes from `first` on."""
        array = self._reshaped(array, first, self.before, (math.prod(self.before),))
        for axis, rows in self._steps(first):
            matrix = jnp.asarray(rows, array.dtype)
            array = jnp.moveaxis(jnp.tensordot(matrix, array, (1, axis), precision="highest"), 0, axis)
        return self._reshaped(array, first, (0,), self.after)

    def chosen(self, array: jax.Array, first: int) -> jax.Array:
        """Return the array at the site that each row of the matrix reads, where it reads one (`chooses`)."""
        array = self._reshaped(array, first, self.before, (math.prod(self.before),))
        for axis, rows in self._steps(first):
            array = jnp.take(array, np.argmax(rows, axis=1), axis=axis)
        return self._reshaped(array, first, (0,), self.after)

    def both(self, array: jax.Array) -> jax.Array:
        """Return A array A^T over the sites of both inputs of a pair."""
        return self.total(self.total(array, 0), len(self.before))

    def mask_after(self, mask: jax.Array) -> jax.Array:
        """Return which sums have a site that is there, (n, sites), for sequences: one axis."""
        reads = [np.asarray(rows) != 0 for rows in self.matrices if rows is not None]
        return (mask @ reads[0].T > 0).astype(mask.dtype) if reads else mask


def chooses(matrices: tuple[Rows | None, ...]) -> bool:
    """Return True if each sum is that of one site at most, with a factor >= 0: no pairs of other sites are needed."""
    given = [np.asarray(rows) for rows in matrices if rows is not None]
    return all((rows >= 0).all() and (np.count_nonzero(rows, axis=1) <= 1).all() for rows in given)


class _MapMemo(NamedTuple):
    deviation: jax.Array
    """(*S before, n), over a power of two of the input."""
    inverse: jax.Array
    """(*S after, n): one over the deviation of the sum."""
    total: jax.Array
    """sum_t A_it deviation_t inverse_i."""
    spread: jax.Array
    """sum_tu A_it A_iu deviation_t deviation_u inverse_i^2 (1 - rho_tu)/2."""


class FixedMap(Unweighted, abc.ABC):
    """The map is a_i -> sum_t A_it a_t over sites, A a matrix given beforehand: no parameters.

    Infinite width: Sigma <- A Sigma A^T, Theta <- A Theta A^T. 1 - rho is right to the rounding of the gaps between
    sites, as in `AveragePool`; where each sum has one site it stays as it is.
    """

    placed: Placed | None
    sitewise: ClassVar[bool] = False
    on_sites: ClassVar[bool] = True

    @abc.abstractmethod
    def matrices(self, sizes: tuple[int, ...], path: str) -> tuple[tuple[Rows | None, ...], tuple[int, ...]]:
        """Return the matrix of each axis of sites, or one for all, and the sites after. Raises: ValueError."""

    def place(self, sites: Sites, path: str) -> tuple[Layer, Sites]:
        name = type(self).__name__
        if not sites.sizes or sites.kind == "graph":
            raise ValueError(
                f"{path}: {name} is for sites in order, of inputs=wl.Sequence(length, features) or wl.Image(height, "
                f"width, channels); nodes of graphs have none: use wl.layers.Aggregate() there."
            )
        found, after = self.matrices(sites.sizes, path)
        joint = len(found) < len(sites.sizes)
        return changed(self, placed=Placed(sites.sizes, after, found, joint, sites.across)), sites._replace(sizes=after)

    @property
    def _placed(self) -> Placed:
        if self.placed is None:
            raise ValueError(f"{type(self).__name__} works within wl.network(..., inputs=wl.Image(...)) or another.")
        return self.placed

    def apply(self, params: Params, signals: jax.Array) -> jax.Array:
        return self._placed.total(signals, 1)

    def structure_after(self, structure: Structure) -> Structure | None:
        mask = self._placed.mask_after(structure.mask)
        if not validation.traced(mask) and not (there := np.asarray(mask).any(axis=1)).all():
            raise ValueError(
                f"X[{int(np.argmin(there))}] has none of the sites that {self!r:.80} reads: it is too short. Leave the "
                f"sequence out, or read sites that all have; the last of each is Recurrent(..., readout='last')."
            )
        return None if mask.shape[1] == 1 else Structure(mask)

    def encode(self, signal: Variance) -> tuple[Variance, Memo]:
        placed, axes = self._placed, tuple(range(len(self._placed.before)))
        if chooses(placed.matrices):
            factor = placed.total(jnp.ones((*placed.before, 1), signal.value.dtype), 0)
            parts = (placed.chosen(leaf, 0) for leaf in (signal.value, signal.exponent))
            value, exponent = parts
            return Variance(value * factor**2, exponent).normalise(), ()
        if signal.among is None:
            raise ValueError("a layer that mixes sites encodes pairs of sites; this signal has none.")
        exponent = largest_exponent(signal, axes)
        deviation = relative_deviation(signal, exponent)
        gaps = _outer(deviation, len(axes)) * signal.among.correlation.one_minus
        spread = _diagonal(placed.both(gaps), placed.after) / 2
        total = placed.total(deviation, 0)
        square = jnp.maximum(total**2 - 2 * spread, 0)
        inverse = safe_divide(jnp.ones_like(square), safe_sqrt(square))
        memo = _MapMemo(deviation, inverse, total * inverse, safe_divide(spread, square))
        return Variance(square, jnp.broadcast_to(exponent, square.shape)).normalise(), memo

    def encode_with_mean(self, signal: Variance, mean: Mean) -> tuple[Variance, Mean, Memo]:
        after, memo = self.encode(signal)
        if mean is None:
            return after, None, memo
        if chooses(self._placed.matrices):
            return after, lambda: self._placed.chosen(mean(), 0), memo
        return after, lambda: self._placed.total(memo.deviation * mean(), 0) * memo.inverse, memo

    def pair(self, x: Memo, y: Memo, state: PairState) -> PairState:
        placed, axes = self._placed, len(self._placed.before)
        if chooses(placed.matrices):
            firsts = (0, axes) if placed.across else (0,)
            for first in firsts:
                state = jax.tree.map(lambda leaf: placed.chosen(leaf, first), state)  # noqa: B023
            return state
        weights, inverse = x.deviation * y.deviation, x.inverse * y.inverse
        mixed, tangent = (placed.both(weights * v) * inverse for v in (state.correlation.one_minus, state.tangent))
        return PairState(correlation_of_sums(x, y, mixed), tangent)

    @property
    def numbers_per_input(self) -> int:
        return 4

    def survey(self, signal: Variance, mean: Mean, path: tuple[Any, ...], ranges: Ranges) -> tuple[Variance, Mean]:
        """Return a grid of deviations after the layer: from 0, where sites cancel, to the largest sum."""
        deviations, most = interpreted(deviation_of)(signal), 1.0
        for rows in self._placed.matrices:
            most *= 1.0 if rows is None else float(np.abs(rows).sum(axis=1).max())
        low = deviations.min() * most if chooses(self._placed.matrices) else 0.0
        return interpreted(variance_of)(np.linspace(low, deviations.max() * most, len(deviations))), mean


def _outer(deviation: jax.Array, axes: int) -> jax.Array:
    return first_of_pair(deviation, axes, 1) * second_of_pair(deviation, axes, 1)


def _diagonal(array: jax.Array, after: tuple[int, ...]) -> jax.Array:
    """Return (*S, *S, n) where both sites are one, (*S, n)."""
    count = math.prod(after)
    flat = array.reshape(count, count, -1)
    return jnp.moveaxis(jnp.diagonal(flat), -1, 0).reshape(*after, -1)


@final
@pytree
@dataclass(frozen=True)
class Mix(FixedMap):
    """The map is a_i -> sum_t A_it a_t, A a matrix over sites: every linear map that treats channels alike.

    Args:
        matrix: A, (sites after, sites before), finite numbers.
        axis: the axis of sites that it acts on; None: all sites in order. They keep their axes where their number
            stays, else they are on the first.

    Raises: ValueError: not such a matrix.
    """

    matrix: Rows = field(metadata={"static": True})
    axis: int | None = field(default=None, metadata={"static": True})
    placed: Placed | None = field(default=None, metadata={"static": True}, init=False)

    def __post_init__(self) -> None:
        array = np.asarray(validation.as_finite_floats("matrix", self.matrix), np.float64)
        if array.ndim != 2 or not array.size:
            raise ValueError(f"matrix must be (sites after, sites before), got shape {array.shape}.")
        object.__setattr__(self, "matrix", tuple(map(tuple, array.tolist())))
        if self.axis is not None:
            validation.integer("axis", self.axis, at_least=0, below=3)

    def __repr__(self) -> str:
        return f"Mix({[list(row) for row in self.matrix]}{'' if self.axis is None else f', axis={self.axis}'})"

    @property
    def mixes_sites(self) -> bool:  # type: ignore[override]
        return not chooses((self.matrix,))

    def matrices(self, sizes: tuple[int, ...], path: str) -> tuple[tuple[Rows | None, ...], tuple[int, ...]]:
        count = len(self.matrix)
        if self.axis is not None or len(sizes) == 1:
            return _on_axis(self.matrix, self.axis or 0, sizes, f"{path}: Mix")
        if len(self.matrix[0]) != math.prod(sizes):
            raise ValueError(
                f"{path}: the matrix of Mix has {len(self.matrix[0])} columns, and there are {math.prod(sizes)} sites, "
                f"{' x '.join(map(str, sizes))}; give axis= for a matrix over one axis."
            )
        return (self.matrix,), sizes if count == math.prod(sizes) else (count, *[1] * (len(sizes) - 1))


@final
@pytree
@dataclass(frozen=True)
class Select(FixedMap):
    """The sites at these places stay, in this order.

    Args:
        sites: an integer, or a list or range of them; negative ones count from the end.
        axis: axis of the sites, 0 unless given.

    Raises: TypeError, ValueError: no integers.
    """

    sites: int | tuple[int, ...] = field(metadata={"static": True})
    axis: int = field(default=0, metadata={"static": True})
    placed: Placed | None = field(default=None, metadata={"static": True}, init=False)

    def __post_init__(self) -> None:
        many = list(self.sites) if isinstance(self.sites, (list, tuple, range)) else [self.sites]
        if not many:
            raise ValueError("sites of Select is empty; at least one site stays: Select(0), Select(range(4)).")
        found = tuple(validation.integer("each of sites", n, at_least=-(2**20), below=2**20) for n in many)
        object.__setattr__(self, "sites", found if isinstance(self.sites, (list, tuple, range)) else found[0])
        validation.integer("axis", self.axis, at_least=0, below=3)

    def __repr__(self) -> str:
        sites = list(self.sites) if isinstance(self.sites, tuple) else self.sites
        return f"Select({sites}{f', axis={self.axis}' if self.axis else ''})"

    def matrices(self, sizes: tuple[int, ...], path: str) -> tuple[tuple[Rows | None, ...], tuple[int, ...]]:
        count = sizes[self.axis] if self.axis < len(sizes) else 0
        many = self.sites if isinstance(self.sites, tuple) else (self.sites,)
        if wrong := [n for n in many if not -count <= n < count]:
            raise ValueError(f"{path}: Select reads the site {wrong[0]} of axis {self.axis}, which has {count}.")
        matrix = np.eye(count)[np.asarray(many)]
        return _on_axis(tuple(map(tuple, matrix.tolist())), self.axis, sizes, f"{path}: Select")


@final
@pytree
@dataclass(frozen=True)
class Resize(FixedMap):
    """The sites are interpolated to another number, as `jax.image.resize` does.

    Args:
        sites: after the layer, an integer or one for each axis.
        method: "nearest", or "linear" (a triangle, as wide as the distance of the sites after where these are fewer).

    Raises: TypeError, ValueError: no integers >= 1; another method.
    """

    sites: int | tuple[int, ...] = field(metadata={"static": True})
    method: str = field(default="linear", metadata={"static": True})
    placed: Placed | None = field(default=None, metadata={"static": True}, init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sites", sizes("sites", self.sites))
        validation.choice("method", self.method, ("nearest", "linear"))

    def __repr__(self) -> str:
        sites = list(self.sites) if isinstance(self.sites, tuple) else self.sites
        return f"Resize({sites}{'' if self.method == 'linear' else f', method={self.method!r}'})"

    @property
    def mixes_sites(self) -> bool:  # type: ignore[override]
        return self.method == "linear"

    def matrices(self, sizes: tuple[int, ...], path: str) -> tuple[tuple[Rows | None, ...], tuple[int, ...]]:
        after = per_axis(self.sites, len(sizes), path, "sites of Resize")
        found = (_interpolation(n, m, self.method) for n, m in zip(sizes, after, strict=True))
        return tuple(tuple(map(tuple, rows.tolist())) for rows in found), after


def _on_axis(
    rows: Rows, axis: int, sizes: tuple[int, ...], name: str
) -> tuple[tuple[Rows | None, ...], tuple[int, ...]]:
    count = sizes[axis] if axis < len(sizes) else 0
    if len(rows[0]) != count:
        raise ValueError(f"{name} has a matrix of {len(rows[0])} columns for axis {axis}, which has {count} sites.")
    matrices = tuple(rows if k == axis else None for k in range(len(sizes)))
    return matrices, tuple(len(rows) if k == axis else n for k, n in enumerate(sizes))


def _interpolation(n: int, m: int, method: str) -> np.ndarray:
    """Return the matrix (m, n) of an interpolation between sites whose middles are at (i + 1/2)/n."""
    places = (np.arange(m) + 0.5) * n / m
    if method == "nearest":
        return np.asarray(np.eye(n)[np.floor(places).astype(int)])
    weights = np.maximum(0, 1 - np.abs(places[:, None] - 0.5 - np.arange(n)) / max(1, n / m))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))
