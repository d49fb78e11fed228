"""Pooling averages over sites, and flattening keeps all sites: layers at the end of a convolutional network."""

from __future__ import annotations

import functools
import math
import operator
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np

from widelimit import validation
from widelimit.activations.base import Memo
from widelimit.architecture.mixing import correlation_of_sums
from widelimit.architecture.sites import (
    PADDINGS,
    Sites,
    Windows,
    first_of_pair,
    second_of_pair,
    sizes,
    windows,
)
from widelimit.architecture.state import Mean, PairState, Params, Ranges, Shape, Traits, Unweighted
from widelimit.architecture.structure import Structure
from widelimit.interpreter import interpreted
from widelimit.pytrees import changed, pytree
from widelimit.series import safe_divide, safe_sqrt
from widelimit.signals import (
    Correlation,
    Variance,
    deviation_of,
    largest_exponent,
    relative_deviation,
    variance_of,
)


class _Channelwise(Unweighted):
    """The layer has no parameters, acts on every channel, and leaves a structure of no sites."""

    sitewise: ClassVar[bool] = False

    def structure_after(self, structure: Structure) -> Structure | None:
        return None


@final
@pytree
@dataclass(frozen=True)
class Flatten(_Channelwise):
    """The signals of all sites stand side by side: each has weights of its own in the dense layer that follows.

    Masked sites are 0.

    Infinite width: Sigma = mean over sites p of Sigma(p, p), Theta likewise.
    """

    sites: Sites | None = field(default=None, metadata={"static": True}, init=False)
    """Set by `network`, which knows the sites before the layer."""

    def __repr__(self) -> str:
        return "Flatten()"

    @property
    def _before(self) -> Sites:
        if self.sites is None:
            raise ValueError("Flatten works within wl.network(..., inputs=wl.Image(height, width, channels)).")
        return self.sites

    def place(self, sites: Sites, path: str) -> tuple[Flatten, Sites]:
        if not sites.sizes:
            raise ValueError(f"{path}: Flatten needs images; pass inputs=wl.Image(height, width, channels).")
        return changed(self, sites=sites), sites._replace(sizes=(1,) * len(sites.sizes))

    def apply(self, params: Params, signals: jax.Array) -> jax.Array:
        return signals.reshape(len(signals), *[1] * len(self._before.sizes), -1)

    def shape(self, inputs: int, outputs: int, widths: Any) -> tuple[Shape, int]:
        return (inputs, outputs), inputs * math.prod(self._before.sizes)

    def check(self, params: Params, inputs: int | None, axes: int) -> int | None:
        return None if inputs is None else inputs * math.prod(self._before.sizes)

    def traits(self, before: Traits, path: str) -> Traits:
        return before._replace(gaussian=False)

    def encode(self, signal: Variance) -> tuple[Variance, Memo]:
        axes = tuple(range(len(self._before.sizes)))
        exponent = largest_exponent(signal, axes)
        deviations = relative_deviation(signal, exponent)
        total = jnp.sum(deviations**2, axis=axes, keepdims=True)
        mean = Variance(total / math.prod(self._before.sizes), exponent).normalise()
        return mean, safe_divide(deviations, safe_sqrt(total))

    def encode_with_mean(self, signal: Variance, mean: Mean) -> tuple[Variance, Mean, Memo]:
        after, shares = self.encode(signal)
        axes = tuple(range(len(self._before.sizes)))
        root = math.sqrt(math.prod(self._before.sizes))
        both = None if mean is None else lambda: jnp.sum(shares * mean(), axis=axes, keepdims=True) / root
        return after, both, shares

    def pair(self, x: jax.Array, y: jax.Array, state: PairState) -> PairState:
        axes = len(self._before.sizes)
        a, b, minus, plus, tangent = (
            _own_sites(array, axes) if self._before.across else array
            for array in (x, y, *state.correlation, state.tangent)
        )
        along = tuple(range(axes))
        separation, common = (a - b) ** 2 / 2, a * b
        one_minus, one_plus, after = (
            jnp.sum(term, axis=along, keepdims=True)
            for term in (separation + common * minus, separation + common * plus, common * tangent)
        )
        if self._before.across:
            one_minus, one_plus, after = (first_of_pair(v, axes, v.ndim - axes) for v in (one_minus, one_plus, after))
        return PairState(Correlation(one_minus, one_plus), after)

    def survey(self, signal: Variance, mean: Mean, path: tuple[Any, ...], ranges: Ranges) -> tuple[Variance, Mean]:
        return signal, mean


def _own_sites(array: jax.Array, axes: int) -> jax.Array:
    """Return the diagonal over pairs of sites: (*S, *S, ..) -> (*S, ..), with either axes of 1."""
    for axis in range(axes):
        here, there = array.shape[axis], array.shape[axes]
        if here == 1 or there == 1:
            array = jnp.squeeze(array, axes) if there == 1 else jnp.moveaxis(jnp.squeeze(array, axis), axes - 1, axis)
        else:
            array = jnp.moveaxis(jnp.diagonal(array, axis1=axis, axis2=axes), -1, axis)
    return array


class _PoolMemo(NamedTuple):
    weights: jax.Array
    """M: deviations of signals in a window over that of their sum, (taps, *S, n), or (*S before, n) for all sites."""
    total: jax.Array
    """The sum of the shares over taps, (*S, n)."""
    spread: jax.Array
    """sum M_i M_j (1 - rho_ij)/2 over the pairs of a window's sites, (*S, n)."""


@final
@pytree
@dataclass(frozen=True)
class AveragePool(_Channelwise):
    """The map is a(p) -> mean of a over the window at p; sites outside are 0, and the divisor is the whole window's.

    Infinite width: Sigma(p, q) is the mean of Sigma over both windows, as the signals of neighbours are correlated, and
    Theta likewise. 1 - rho is exact to rounding of the gaps between sites: a kinked activation behind the pool keeps
    about the root of eps times these in Theta of near duplicates.

    Args:
        size: sites of a window along each axis, an integer >= 1 or one for each axis; None: all.
        stride: sites between two windows; `size` unless given.
        padding: "valid", "same" or "circular", as in `Conv`.

    Masked sites are 0; an average over all sites is one over those that are there.
    """

    size: int | tuple[int, ...] | None = field(metadata={"static": True})
    stride: int | tuple[int, ...] | None = field(default=None, metadata={"static": True})
    padding: str = field(default="valid", metadata={"static": True})
    windows: Windows | None = field(default=None, metadata={"static": True}, init=False)
    """Set by `network`, which knows the sites before the layer."""
    added: bool = field(default=False, metadata={"static": True}, init=False)
    """The divisor is 1: `GlobalSumPool`."""
    mixes_sites: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("size", "stride"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else sizes(name, value))
        validation.choice("padding", self.padding, PADDINGS)

    def __repr__(self) -> str:
        if self.size is None:
            return "GlobalSumPool()" if self.added else "GlobalAveragePool()"
        more = "" if self.stride is None else f", stride={self.stride!r}"
        return f"AveragePool({self.size!r}{more}{'' if self.padding == 'valid' else f', padding={self.padding!r}'})"

    @property
    def placed(self) -> Windows:
        """Return the windows on the sites of the network's inputs. Raises: ValueError: no network has set them."""
        if self.windows is None:
            raise ValueError("pooling works within wl.network(..., inputs=wl.Image(height, width, channels)).")
        return self.windows

    @property
    def whole(self) -> bool:
        """Return True if one window is all sites."""
        return self.placed.size == self.placed.sites and self.placed.padding == "valid"

    def place(self, sites: Sites, path: str) -> tuple[AveragePool, Sites]:
        size = sites.sizes if self.size is None else self.size
        name = "AveragePool" if self.size else "GlobalAveragePool"
        found = windows(sites, size, self.stride or size, self.padding, 1, path, name)
        return changed(self, windows=found), sites._replace(sizes=found.after)

    def apply(self, params: Params, signals: jax.Array) -> jax.Array:
        return self.apply_with(params, signals)

    def apply_with(
        self, params: Params, signals: jax.Array, structure: Structure | None = None, key: jax.Array | None = None
    ) -> jax.Array:
        if self.whole:
            total = jnp.sum(signals, axis=tuple(range(1, signals.ndim - 1)), keepdims=True)
        else:
            total = functools.reduce(operator.add, self.placed.each(signals, 1))
        divisor = self._divisor(structure)
        return total / (divisor if structure is None else jnp.reshape(divisor, (-1, *[1] * (signals.ndim - 1))))

    def structure_after(self, structure: Structure) -> Structure | None:
        return None if self.whole else self.placed.structure_after(structure)

    def _divisor(self, structure: Structure | None) -> Any:
        """Return the number by which sums are divided, one for every input of a structure, (n,)."""
        if self.added:
            return 1
        return structure.sites if structure is not None and self.whole else self.placed.count

    @property
    def numbers_per_input(self) -> int:
        return 3 + (self.placed.count if self.windows and not self.whole else 1)

    def encode(self, signal: Variance) -> tuple[Variance, Memo]:
        axes = len(self.placed.sites)
        exponent = largest_exponent(signal, tuple(range(axes)))
        deviations = relative_deviation(signal, exponent)
        if signal.among is None:
            raise ValueError("a network with pooling encodes pairs of sites; this one has none.")
        weights = self._in_windows(deviations)
        x, y = first_of_pair(weights, axes, 1), second_of_pair(weights, axes, 1)
        spread = _own_sites(self._mean_over(x, y, signal.among.correlation.one_minus), axes) / 2
        total = self._over_window(weights)
        square = jnp.maximum(total**2 - 2 * spread, 0)
        root = safe_sqrt(square)
        memo = _PoolMemo(*(safe_divide(v, r) for v, r in ((weights, root), (total, root), (spread, square))))
        value = square / self._divisor(signal.structure) ** 2
        return Variance(value, jnp.broadcast_to(exponent, square.shape)).normalise(), memo

    def encode_with_mean(self, signal: Variance, mean: Mean) -> tuple[Variance, Mean, Memo]:
        after, memo = self.encode(signal)
        if mean is None:
            return after, None, memo
        return after, lambda: self._over_window(memo.weights * self._in_windows(mean())), memo

    def pair(self, x: _PoolMemo, y: _PoolMemo, state: PairState) -> PairState:
        """1 - rho = (M - M')^2/2 + sum_ij M_i M'_j (1 - rho_ij) - spread - spread', an energy distance."""
        mixed = self._mean_over(x.weights, y.weights, state.correlation.one_minus)
        return PairState(correlation_of_sums(x, y, mixed), self._mean_over(x.weights, y.weights, state.tangent))

    def _in_windows(self, array: jax.Array) -> jax.Array:
        """Return the array (*S, n) at the taps of all windows, (taps, *S, n); itself where one window is all."""
        return array if self.whole else jnp.stack(list(self.placed.each(array, 0)))

    def _over_window(self, weights: jax.Array) -> jax.Array:
        axes = tuple(range(len(self.placed.sites)))
        return jnp.sum(weights, axis=axes, keepdims=True) if self.whole else jnp.sum(weights, axis=0)

    def _mean_over(self, x: jax.Array, y: jax.Array, array: jax.Array) -> jax.Array:
        """Compute sum_ij x_i y_j array_ij over the sites i of the first window, and then j of the second."""
        axes = len(self.placed.sites)
        for first, weights in ((0, x), (axes, y)):
            if self.whole:
                array = jnp.sum(weights * array, axis=tuple(range(first, first + axes)), keepdims=True)
            else:
                taps = zip(weights, self.placed.each(array, first), strict=True)
                array = functools.reduce(operator.add, (w * a for w, a in taps))
        return array

    def survey(self, signal: Variance, mean: Mean, path: tuple[Any, ...], ranges: Ranges) -> tuple[Variance, Mean]:
        """Return a grid of deviations after the layer: from 0, where neighbours cancel, to those before, or sums."""
        deviations = interpreted(deviation_of)(signal)
        grid = np.linspace(0, deviations.max() * (self.placed.count if self.added else 1), len(deviations))
        return interpreted(variance_of)(grid), mean


def GlobalAveragePool() -> AveragePool:
    """Return the layer that averages over all sites; of sequences and graphs, over those that are there."""
    return AveragePool(None)


def GlobalSumPool() -> AveragePool:
    """Return the layer that adds the signals of all sites: a readout that counts the nodes of a graph."""
    return changed(AveragePool(None), added=True)
