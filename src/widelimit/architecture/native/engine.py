"""Pairs of images go through a network by machine code: encode each image once, then planes of pairs of sites."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np

from widelimit.architecture.chain import Serial
from widelimit.architecture.native.machine import compiled
from widelimit.architecture.native.nests import write
from widelimit.architecture.native.plan import PIXELS, WEIGHTS, Grid, Layout, Plan, in_three, read_by
from widelimit.architecture.native.program import Program, Unknown
from widelimit.architecture.network import Network
from widelimit.architecture.pooling import AveragePool, Flatten
from widelimit.architecture.state import Layer, PairState
from widelimit.arithmetic import arithmetic
from widelimit.interpreter import interpreted
from widelimit.signals import Correlation, Variance, largest_exponent, relative_deviation

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
    spread: np.ndarray
    """(n,) float64: sum_ij u_i u_j (1 - rho_ij)/2 over the sites of an average, u_i their shares; else 0."""
    tangent: np.ndarray
    """(n,): Theta/(s s) of every image with itself before the last layers."""
    memos: Any
    """Of the last layers, arrays (n, ..)."""
    variance: Variance


def _encode_sites(net: Network, X: jax.Array) -> Any:
    """Return points, memos, variance and mean after all layers of a network that ends at sites."""
    points, variance = net.inputs.embed(X)  # type: ignore[union-attr]
    after, mean, memos = Serial(*net.layers).encode_with_mean(variance, None)
    return points, memos, after, None if mean is None else mean()


def _weigh(end: Layer | None, signal: Variance, mean: Any) -> Any:
    """Return the weights of sites in the sum over them, variance and mean after it, if they need no pairs of sites."""
    axes = tuple(range(signal.value.ndim - 1))
    if isinstance(end, Flatten):
        after, mean_after, shares = end.encode_with_mean(signal, None if mean is None else lambda: mean)
        return shares, after, None if mean_after is None else mean_after()
    if end is None:
        return jnp.ones_like(signal.value), signal, mean
    exponent = largest_exponent(signal, axes)
    deviations = relative_deviation(signal, exponent)
    total = jnp.sum(deviations, axis=axes, keepdims=True)
    weights = deviations / jnp.where(total > 0, total, 1)
    count = math.prod(signal.value.shape[:-1])
    after = Variance((total / count) ** 2, exponent).normalise()
    return weights, after, None if mean is None else jnp.sum(weights * mean, axis=axes, keepdims=True)


def _encode_last(layers: Serial, signal: Variance, mean: Any) -> Any:
    after, _, memos = layers.encode_with_mean(signal, None if mean is None else lambda: mean)
    return after, memos


def _pair_last(layers: Serial, x: Any, y: Any, state: PairState) -> PairState:
    x = jax.tree.map(lambda leaf: leaf[..., None], x)
    y = jax.tree.map(lambda leaf: leaf[..., None, :], y)
    return layers.pair(x, y, state)


def _itself_last(layers: Serial, x: Any, state: PairState) -> PairState:
    return layers.itself(x, state)


@final
class Engine:
    """The engine has the machine code of a network's pairs for one dtype. Raises: Unknown: it cannot be made."""

    def __init__(self, net: Network, dtype: Any, *, tangent: bool, cpu: str = "") -> None:
        self.net, self.dtype, self.tangent = net, np.dtype(dtype), tangent
        first, self.end, last = _split(net)
        self.first, self.last = Network(first, inputs=net.inputs), Serial(*last)
        self.pools = isinstance(self.end, AveragePool)
        self.needed = [k for k in ((0, 2) if self.pools else (0, 1, 2)) if k < 2 or tangent]
        self.width = VECTOR // self.dtype.itemsize
        with arithmetic(self.dtype == np.float64):
            row = jax.ShapeDtypeStruct((1, net.inputs.size), self.dtype)  # type: ignore[union-attr]
            points, memos, signal, _ = jax.eval_shape(_encode_sites, self.first, row)
            axes = len(net.inputs.sites)
            single = jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(leaf.shape[: leaf.ndim - axes - 1], leaf.dtype), memos
            )
            if memos[0]:
                raise Unknown("parts of the width that have other laws")
            self.program = Program(Serial(*first), single, self.dtype, self.needed)
        grids = {PIXELS: Grid(in_three(net.inputs.sites, 1)), WEIGHTS: Grid(in_three(signal.value.shape[:-1], 1))}
        kinds = {PIXELS: points.shape[-1:], WEIGHTS: ()}
        for k, leaf in enumerate(jax.tree.leaves(memos)):
            kinds[k] = leaf.shape[: leaf.ndim - axes - 1]
            grids[k] = read_by(self.program.padding.get(k), in_three(leaf.shape[leaf.ndim - axes - 1 : -1], 1))
        sizes = [grids[k].count * math.prod(kinds[k]) for k in kinds]
        starts = dict(zip(kinds, np.cumsum([0, *sizes]).tolist(), strict=False))
        self.layout = Layout(starts, kinds, grids, sum(sizes))
        self.plan = Plan(
            self.program, self.layout, net.inputs.sites, self.width, self.needed,
            across=self.pools, separate=not self.pools, dtype=self.dtype.name,
        )  # fmt: skip
        self.code = compiled(write(self.plan), cpu)
        numbers = [np.asarray(v, self.dtype) if v.ndim == 0 else np.zeros((), self.dtype) for v in self.program.numbers]
        self.numbers = np.array([*numbers, 0], self.dtype)

    @property
    def work(self) -> float:
        """Return the pairs of sites, over all layers, that a pair of images has."""
        return float(len(self.plan.planes) * math.prod(self.plan.sites[0]) * len(self.plan.sites))

    def encode(self, X: np.ndarray) -> Features:
        """Compute everything about single images that pairs need, from rows (n, d)."""
        with arithmetic(self.dtype == np.float64):
            parts = [self._encode(X[i : i + AT_ONCE]) for i in range(0, len(X), AT_ONCE)]
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)  # type: ignore[no-any-return]

    def _encode(self, X: np.ndarray) -> Features:
        n, axes = len(X), len(self.net.inputs.sites)
        X = np.resize(X, (AT_ONCE, X.shape[1]))  # one shape, traced once
        points, memos, signal, mean = interpreted(_encode_sites)(self.first, X)
        weights, after, mean = interpreted(functools.partial(_weigh, self.end))(signal, mean)
        arrays = {PIXELS: np.moveaxis(points, (0, -1), (-1, 0)), WEIGHTS: weights} | dict(
            enumerate(jax.tree.leaves(memos))
        )
        packed = self._pack(arrays, axes)[:n]
        keys = np.array([hash(row.tobytes()) for row in X[:n]])
        itself = self._itself(packed)
        spread = itself[:, 0] / 2 if self.pools else np.zeros(n)
        inside = np.resize(1 - 2 * spread, AT_ONCE)
        after = Variance(np.asarray(after.value * inside, self.dtype), after.exponent)
        mean = None if mean is None else np.asarray(mean / np.sqrt(inside), self.dtype)
        variance, memos = interpreted(_encode_last)(self.last, after, mean)
        squeezed = lambda leaf: np.moveaxis(leaf.reshape(*leaf.shape[: leaf.ndim - axes - 1], -1), -1, 0)[:n]  # noqa: E731
        tangent = itself[:, -1] if self.tangent else np.zeros(n)
        tangent = tangent / inside[:n] if self.pools else tangent
        return Features(packed, keys, spread, tangent, jax.tree.map(squeezed, memos), jax.tree.map(squeezed, variance))

    def _pack(self, arrays: dict[int, np.ndarray], axes: int) -> np.ndarray:
        rows = []
        for k, array in arrays.items():
            grid, lead = self.layout.grids[k], self.layout.leads[k]
            array = np.asarray(array, self.dtype).reshape(*lead, *grid.sites, array.shape[-1])
            windows = self.program.padding.get(k)
            if windows is not None and grid.count > math.prod(grid.sites):
                margins = [(0, 0)] * len(lead) + list(zip(grid.low, grid.high, strict=True)) + [(0, 0)]
                array = np.pad(array, margins)
            rows.append(array.reshape(-1, array.shape[-1]))
        return np.ascontiguousarray(np.concatenate(rows).T)

    def _blocks(self, packed: np.ndarray) -> np.ndarray:
        """Return the second inputs in vectors, (blocks, numbers, width)."""
        count = -(-len(packed) // self.width)
        filled = packed[np.minimum(np.arange(count * self.width), len(packed) - 1)]
        return np.ascontiguousarray(filled.reshape(count, self.width, -1).transpose(0, 2, 1))

    def _run(self, rows: np.ndarray, block: np.ndarray, planes: np.ndarray) -> np.ndarray:
        """Return the sums over planes for rows and one block of second inputs: (rows, outputs, width)."""
        out = np.zeros((len(rows), len(self.needed), self.width))
        work = np.zeros(max(1, self.plan.length) * self.width, self.dtype)
        flags = np.zeros(max(1, self.plan.flags), np.int64)
        step = max(1, int(ENTRIES / self.work))
        fixed = [a.ctypes.data for a in (block, work, flags, self.numbers, planes)]
        for i in range(0, len(rows), step):
            some, sums = rows[i : i + step], out[i : i + step]
            self.code.run(some.ctypes.data, len(some), rows.strides[0], *fixed, len(planes), sums.ctypes.data)
        return out

    def _itself(self, packed: np.ndarray) -> np.ndarray:
        """Return the sums of every image with itself, (n, outputs): planes d and -d are alike."""
        planes = self.plan.planes
        half = planes[len(planes) // 2 :] if self.pools and not self.plan.torus else planes
        sums = []
        for row in packed:
            block = np.repeat(row[:, None], self.width, 1)
            whole = self._run(row[None], block, np.ascontiguousarray(half))[0, :, 0]
            if len(half) < len(planes):
                whole = 2 * whole - self._run(row[None], block, np.ascontiguousarray(half[:1]))[0, :, 0]
            sums.append(whole)
        return np.array(sums)

    def pair(self, x: Features, y: Features, *, lower: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Return (rho, Theta) over the deviations, each (n, m); with `lower`, what is above the diagonal is 0."""
        raw = np.zeros((len(self.needed), len(x.packed), len(y.packed)))
        for b, block in enumerate(self._blocks(y.packed)):
            columns = slice(b * self.width, (b + 1) * self.width)
            first = columns.start if lower else 0
            sums = self._run(x.packed[first:], block, self.plan.planes)
            raw[:, first:, columns] = np.moveaxis(sums, 1, 0)[..., : raw[:, :, columns].shape[-1]]
        state = self._state(raw, x, y)
        with arithmetic(self.dtype == np.float64):
            after = interpreted(_pair_last)(self.last, x.memos, y.memos, state)
        return (after.correlation.one_plus - after.correlation.one_minus) / 2, after.tangent

    def diagonal(self, x: Features) -> np.ndarray:
        """Return Theta of every image with itself over its variance, (n,)."""
        one = np.zeros(len(x.keys), self.dtype)
        state = PairState(Correlation(one, one + 2), x.tangent.astype(self.dtype))
        with arithmetic(self.dtype == np.float64):
            return np.asarray(interpreted(_itself_last)(self.last, x.memos, state).tangent)

    @property
    def numbers_per_input(self) -> int:
        """Return the numbers that an image takes."""
        return self.layout.length

    def _state(self, raw: np.ndarray, x: Features, y: Features) -> PairState:
        """Return the state after the sum over sites."""
        equal = x.keys[:, None] == y.keys
        minus, tangent = raw[0], raw[-1] if self.tangent else np.zeros_like(raw[0])
        if self.pools:
            r, s = (1 / np.sqrt(1 - 2 * side.spread) for side in (x, y))
            common = r[:, None] * s
            own = (side.spread * scale**2 for side, scale in ((x, r), (y, s)))
            minus = (r[:, None] - s) ** 2 / 2 + common * minus - next(own)[:, None] - next(own)
            minus, tangent = np.clip(minus, 0, 2), common * tangent
        minus = np.where(equal, 0, minus)
        plus = 2 - minus if self.pools else np.where(equal, 2, raw[1])
        tangent = np.where(equal, np.broadcast_to(x.tangent[:, None], equal.shape), tangent)
        return PairState(Correlation(*(v.astype(self.dtype) for v in (minus, plus))), tangent.astype(self.dtype))


def _split(net: Network) -> tuple[tuple[Layer, ...], Layer | None, tuple[Layer, ...]]:
    """Return the layers before the sum over sites, that sum, and the layers after it. Raises: Unknown."""
    layers = net.of_pairs.layers
    places = [k for k, layer in enumerate(layers) if isinstance(layer, Flatten | AveragePool)]
    k = places[0] if places else len(layers)
    first, end, last = layers[:k], layers[k] if places else None, layers[k + 1 :]
    rest = [*first, *last]
    if len(places) > 1 or any(layer.mixes_sites or layer.masks for layer in rest):
        raise Unknown("two layers that add up over sites")
    if isinstance(end, AveragePool) and (end.placed.size != end.placed.sites or end.placed.padding != "valid"):
        raise Unknown("an average over a part of the sites")
    return first, end, last
