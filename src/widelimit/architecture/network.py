"""A network is a first dense layer, then a block of layers repeated; `mlp` builds the paper's."""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import field, replace
from typing import Any, NamedTuple, Self, final

import jax
import jax.numpy as jnp
import numpy as np

from widelimit import memory, validation
from widelimit.activations.base import Activation, Memo, variance_after
from widelimit.activations.names import activation as resolve
from widelimit.architecture.layers import Activate, Dense, Layer, PairState, Params, Scalar
from widelimit.arithmetic import arithmetic
from widelimit.interpreter import interpreted
from widelimit.pytrees import pytree
from widelimit.shapes import Float
from widelimit.signals import (
    Correlation,
    Variance,
    correlate_points,
    correlation_with_itself,
    deviation_of,
    variance_of,
)
from widelimit.validation import Array

UNROLLED = 4
"""Blocks written out into one fused loop; beyond it `lax.scan` keeps the compile time constant (minutes at 50)."""
PARAMETERIZATIONS = ("ntk", "standard", "mean_field")
"""The parameters of finite networks are scaled in one of these ways; `mlp` says what each means."""

DEEPEST = 100_000
"""Layers of a network; every input takes some numbers for each."""
_GRID = 33
_MARGIN = 0.01
"""Ranges are widened by this share: between points of the grid, deviations leave the range seen there by less."""


class NetworkFeatures(NamedTuple):
    """The features hold the data of n inputs that the pair phase needs: O(n (d + depth)) numbers."""

    points: Float[jax.Array, "n d+1"]
    """Unit vectors whose inner products are the correlations after the first dense layer."""
    memos: tuple[Memo, ...]
    """One entry a layer of the block, arrays (n, repeats, .., 1); the last axis is for the other input of a pair."""
    variance: Variance
    """Variance of the network's output, arrays (n,)."""


@final
@pytree
class Network:
    """A network is first, then (block) x repeats: it describes the finite networks of every width and their limit."""

    first: Dense
    block: tuple[Layer, ...]
    repeats: int = field(metadata={"static": True})
    parameterization: str = field(default="ntk", metadata={"static": True})

    @property
    def depth(self) -> int:
        """Return the depth L: the number of affine layers; there are L - 1 hidden layers."""
        return 1 + self.repeats

    def init(
        self,
        seed: int,
        *,
        input_dim: int,
        width: int | Sequence[int] = 512,
        output_dim: int = 1,
        dtype: Any = np.float32,
    ) -> tuple[Params, ...]:
        """Draw parameters of a finite network from N(0, 1) (NTK parameterisation; section 2.2 of the paper).

        Standard parameterisation: W from N(0, weight_std^2/n), b from N(0, bias_std^2), n the layer's inputs.

        Args:
            seed: seed of the random numbers, an integer >= 0.
            input_dim: n_0 >= 1.
            width: size of every hidden layer, or one size for each of the depth - 1 hidden layers.
            output_dim: n_L >= 1.
            dtype: float32 or float64.

        Returns:
            A tuple with one pytree a layer.

        Raises:
            TypeError, ValueError: a size below 1, or not depth - 1 widths; another dtype.
            MemoryError: the parameters do not fit; nothing is allocated then.
        """
        many = self.init_many([seed], input_dim=input_dim, width=width, output_dim=output_dim, dtype=dtype)
        return jax.tree.map(lambda leaf: leaf[0], many)  # type: ignore[no-any-return]

    def init_many(
        self,
        seeds: Sequence[int] | np.ndarray,
        *,
        input_dim: int,
        width: int | Sequence[int] = 512,
        output_dim: int = 1,
        dtype: Any = np.float32,
    ) -> tuple[Params, ...]:
        """Draw the parameters of `init` for every seed, stacked: leaves have a leading axis (E,), one entry a seed.

        Member e has the bits of init(seeds[e], ...). One compiled call, whatever E. Arguments and errors as `init`.
        """
        listed = isinstance(width, (Sequence, np.ndarray)) and not isinstance(width, (str, bytes))
        widths = list(width) if listed else [width] * self.repeats  # type: ignore[arg-type]
        if len(widths) != self.repeats:
            hidden = f"a network of depth {self.depth} has {self.repeats} hidden layers"
            raise ValueError(f"{hidden}; got {len(widths)} widths for width.")
        named = [("input_dim", input_dim), *(("width", n) for n in widths), ("output_dim", output_dim)]
        sizes = [validation.integer(f"{name}: every size", n, at_least=1) for name, n in named]
        listed = isinstance(seeds, Sequence) and not isinstance(seeds, (str, bytes))
        if not (listed or (isinstance(seeds, (np.ndarray, jax.Array)) and seeds.ndim == 1)) or len(seeds) == 0:
            raise ValueError(f"seeds must be a sequence of at least one integer, got {validation.shown(seeds)}.")
        keys = [jax.random.key(validation.integer("each of seeds: seed", s, at_least=0, below=2**63)) for s in seeds]
        kind = _float_dtype(dtype)
        self._require(sizes, len(keys), kind)
        with arithmetic(kind == np.float64):
            params: tuple[Params, ...] = _init_many(self, jnp.stack(keys), tuple(sizes), kind)
        return params

    def _require(self, sizes: list[int], members: int, dtype: np.dtype) -> None:
        """Refuse parameters that do not fit; drawing them takes as much memory again. Raises: MemoryError."""
        hidden = sum(isinstance(layer, Dense) for layer in self.block)
        count = sum((1 if i == 0 else hidden) * (a + 1) * b for i, (a, b) in enumerate(itertools.pairwise(sizes)))
        memory.require(
            2.0 * dtype.itemsize * members * count,
            f"the start of {members} networks with {count} parameters each",
            remedy="use a smaller width, fewer seeds, or float32",
        )

    def init_with_key(self, key: jax.Array, sizes: Sequence[int], dtype: Any) -> tuple[Params, ...]:
        """Draw as `init` does under jit and vmap: a JAX key, all depth + 1 sizes from input to output, a dtype."""
        keys = jax.random.split(key, 1 + self.repeats * len(self.block))
        params = [self.first.init(keys[0], sizes[0], sizes[1], dtype)]
        for i in range(self.repeats):
            for j, layer in enumerate(self.block):
                layer_key = keys[1 + i * len(self.block) + j]
                params.append(layer.init(layer_key, sizes[i + 1], sizes[i + 2], dtype))
        return tuple(params)

    def apply(self, params: tuple[Params, ...], X: Float[Array, "n d"]) -> Float[jax.Array, "n c"]:
        """Compute f(x) of the finite network, (n, d) -> (n, output_dim); no activation on the output.

        Raises:
            TypeError, ValueError: X is not (n, d) finite floats of the parameters' dtype and number of features; the
                parameters are those of another architecture.
        """
        X = self._inputs(params, X, axes=0)
        _require_signals(params, X, 1)
        with arithmetic(X.dtype == np.float64):
            return self.signals_of(params, jnp.asarray(X))

    def apply_many(self, params: tuple[Params, ...], X: Float[Array, "n d"]) -> Float[jax.Array, "E n c"]:
        """Compute f_e(x) of E networks with stacked parameters (`init_many`), (n, d) -> (E, n, output_dim).

        Raises: as `apply`.
        """
        X = self._inputs(params, X, axes=1)
        _require_signals(params, X, len(params[0]["weight"]))
        with arithmetic(X.dtype == np.float64):
            return jnp.asarray(_apply_many(self, params, jnp.asarray(X)))

    def signals_of(self, params: tuple[Params, ...], X: Float[jax.Array, "n d"]) -> Float[jax.Array, "n c"]:
        """Compute `apply` under jit and vmap: nothing is checked."""
        signals = self.first.apply(params[0], X)
        for layer, layer_params in zip(self.block * self.repeats, params[1:], strict=True):
            signals = layer.apply(layer_params, signals)
        return self.output_scale(params) * signals

    def output_scale(self, params: tuple[Params, ...]) -> float:
        """Return 1/sqrt(n_{L-1}) in the mean-field parameterisation, else 1."""
        return 1 / math.sqrt(params[-1]["weight"].shape[-1]) if self.parameterization == "mean_field" else 1.0

    def _inputs(self, params: Any, X: Any, *, axes: int) -> Any:
        """Return X, checked against parameters whose leaves have `axes` leading axes."""
        X = validation.points("X", X)
        inputs, dtype = self._check(params, axes)
        if X.shape[1] != inputs:
            raise ValueError(f"X has shape {X.shape}; the parameters were made for (n, {inputs}).")
        if X.dtype != dtype:
            name = str(dtype)
            raise TypeError(f"X is {X.dtype} and the parameters are {name}; pass X.astype({name!r}).")
        return X

    def _check(self, params: Any, axes: int) -> tuple[int, Any]:
        """Return the number of input features and the dtype of the parameters, which must be this architecture's."""
        layers = [self.first, *self.block * self.repeats]
        shapes = jax.tree.map(np.shape, params)
        try:
            dense = [p for layer, p in zip(layers, params, strict=True) if isinstance(layer, Dense)]
            weights, biases = [p["weight"] for p in dense], [p["bias"] for p in dense]
            sizes = [np.shape(w)[axes:][::-1] for w in weights]
            chained = all(a[1] == b[0] for a, b in itertools.pairwise(sizes)) and all(len(s) == 2 for s in sizes)
            fitting = chained and all(np.shape(b)[axes:] == (s[1],) for b, s in zip(biases, sizes, strict=True))
            stacked = {np.shape(leaf)[:axes] for leaf in (*weights, *biases)}
        except (TypeError, KeyError, IndexError, ValueError):
            fitting, stacked = False, set()
        if not fitting or len(stacked) != 1:
            kind = "init_many, for apply_many" if axes else "init, for apply; use apply_many for those of init_many"
            raise ValueError(
                f"params: these are not parameters of this network of depth {self.depth} ({kind}): shapes "
                f"{validation.shown(shapes)}."
            )
        return sizes[0][0], weights[0].dtype

    def encode(self, X: Float[jax.Array, "n d"]) -> NetworkFeatures:
        """Compute everything about single inputs that pairs need."""
        points, variance = self.first.embed(X)
        if self.repeats == 0:  # a scan of no step would trace the activation, which needs its table for that
            return NetworkFeatures(points, (), variance)

        def step(variance: Variance, _: None) -> tuple[Variance, tuple[Memo, ...]]:
            memos = []
            for layer in self.block:
                variance, memo = layer.encode(variance)
                memos.append(memo)
            return variance, tuple(memos)

        variance, memos = jax.lax.scan(step, variance, None, length=self.repeats)
        return NetworkFeatures(points, jax.tree.map(lambda leaf: jnp.moveaxis(leaf, -1, 0)[..., None], memos), variance)

    @property
    def numbers_per_input(self) -> int:
        """Return the numbers that the memos of an input take."""
        return self.repeats * sum(layer.numbers_per_input for layer in self.block)

    def rtol(self, dtype: Any) -> float:
        """Return the largest error target of the activations; it is 0 where all are closed forms."""
        return max((a.activation.rtol_in(dtype) for a in self.block if isinstance(a, Activate)), default=0.0)

    def prepared(self, low: float, high: float, dtype: Any) -> Self:
        """Prepare the network for signals whose deviation after the first layer is in [low, high].

        A grid of deviations goes through the layers to find the range before every activation.
        """
        ranges: dict[int, tuple[float, float]] = {}
        with arithmetic(True):
            grid = np.linspace(low, high, _GRID) if high > low else np.full(1, high)
            variance = interpreted(variance_of)(grid)
            for i in range(self.repeats * len(self.block)):
                layer = self.block[i % len(self.block)]
                if isinstance(layer, Activate):
                    sizes = interpreted(deviation_of)(variance)
                    seen = ranges.get(i % len(self.block), (np.inf, 0.0))
                    ranges[i % len(self.block)] = (min(seen[0], sizes.min()), max(seen[1], sizes.max()))
                    variance = layer.activation.second_moment(variance)
                else:
                    variance = interpreted(variance_after)(layer, variance)

        def tabulated(i: int, phi: Activation) -> Activation:
            return phi.tabulated((1 - _MARGIN) * ranges[i][0], (1 + _MARGIN) * ranges[i][1], dtype)

        return self._with_activations(tabulated)

    def in_few_shapes(self, dtype: Any, rows: int) -> Self:
        """Return this network, prepared, with tables of few shapes: programs for tiles of `rows` fit others."""
        return self._with_activations(lambda _, phi: phi.in_few_shapes(dtype, rows))

    def _with_activations(self, change: Callable[[int, Activation], Activation]) -> Self:
        """Return this network with other activations: change(place in the block, activation)."""
        layers = enumerate(self.block)
        block = (Activate(change(i, a.activation)) if isinstance(a, Activate) else a for i, a in layers)
        return replace(self, block=tuple(block))

    def _through(self, x: tuple[Memo, ...], y: tuple[Memo, ...], correlation: Correlation) -> PairState:
        """Apply the blocks to pairs, from the correlation after the first layer, where Theta^1 = Sigma^1."""

        def step(state: PairState, memos: tuple[tuple[Memo, ...], tuple[Memo, ...]]) -> tuple[PairState, None]:
            for layer, memo_x, memo_y in zip(self.block, *memos, strict=True):
                state = layer.pair(memo_x, memo_y, state)
            return state, None

        state = PairState(correlation, correlation.rho)
        if self.repeats == 0:
            return state
        if self.repeats > UNROLLED or self.rtol(correlation.one_minus.dtype) > 0:  # series are much to compile
            return jax.lax.scan(step, state, (x, y))[0]
        for i in range(self.repeats):
            state, _ = step(state, jax.tree.map(lambda leaf: leaf[i], (x, y)))  # noqa: B023
        return state

    def pairwise(self, x: NetworkFeatures, y: NetworkFeatures, *, same: bool | jax.Array) -> PairState:
        """Compute the output layer's state for every pair of two blocks of inputs, arrays (n, m); `same`: x is y."""
        rows = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, -2), x.memos)
        columns = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, -1), y.memos)
        return self._through(rows, columns, correlate_points(x.points, y.points, same=same))

    def diagonal(self, x: NetworkFeatures) -> PairState:
        """Compute the state of the output layer for every input with itself, arrays (n,): the gap is exactly 0."""
        correlation = correlation_with_itself(x.variance.value)

        def step(state: PairState, memos: tuple[Memo, ...]) -> tuple[PairState, None]:
            for layer, memo in zip(self.block, memos, strict=True):
                state = layer.itself(memo, state)
            return state, None

        state = PairState(correlation, correlation.rho)
        memos = jax.tree.map(lambda leaf: jnp.moveaxis(leaf[..., 0], 0, -1), x.memos)
        return jax.lax.scan(step, state, memos)[0] if self.repeats else state


def _require_signals(params: tuple[Params, ...], X: Array, members: int) -> None:
    """Refuse signals that do not fit: those of two layers at once. Raises: MemoryError."""
    width = max(p["weight"].shape[-2] for p in params if "weight" in p)
    size = 2.0 * X.dtype.itemsize * members * len(X) * width
    memory.require(size, f"the signals of {len(X)} inputs in {width} units")


def _float_dtype(dtype: Any) -> np.dtype:
    """Return float32 or float64. Raises: TypeError."""
    try:
        kind: np.dtype[Any] = np.dtype(dtype)
    except (TypeError, ValueError):
        kind = np.dtype(object)
    if dtype is None or kind not in (np.float32, np.float64):
        raise TypeError(f"dtype must be float32 or float64, got {validation.shown(dtype)}.")
    return kind


@functools.partial(jax.jit, static_argnames=("sizes", "dtype"))
def _init_many(net: Network, keys: jax.Array, sizes: tuple[int, ...], dtype: Any) -> tuple[Params, ...]:
    return jax.vmap(lambda key: net.init_with_key(key, sizes, dtype))(keys)


@jax.jit
def _apply_many(net: Network, params: tuple[Params, ...], X: jax.Array) -> jax.Array:
    return jax.vmap(net.signals_of, in_axes=(0, None))(params, X)


def mlp(
    *,
    depth: int,
    activation: str | Activation | Callable[[jax.Array], jax.Array] = "relu",
    weight_std: Scalar = 1.0,
    bias_std: Scalar = 0.0,
    parameterization: str = "ntk",
) -> Network:
    """f = affine o (phi o affine)^(depth - 1), affine(a) = bias_std b + (weight_std/sqrt(width)) W a.

    The network of section 2.2 of the paper, of no width yet.

    Args:
        depth: L >= 1, the number of affine layers; depth 1 is linear regression, depth L has L - 1 hidden layers.
        activation: a name ("relu", "tanh", ...; docs/activations.md has all), an `Activation`, or a function of arrays
            written with jax.numpy (if it has kinks: `wl.activation(phi, kinks=...)`).
        weight_std: sigma_w > 0 (the paper: 1); sqrt(2) keeps the variance of relu signals.
        bias_std: beta >= 0; 0 is no bias.
        parameterization: of the finite networks (n_l: inputs of layer l, n: the width; limits: docs/training.md):
            "ntk": as above, every parameter from N(0, 1). Learning rates are of order 1, the kernel of training has a
                limit and is constant (Jacot et al. 2018).
            "standard": affine(a) = W a + b, W from N(0, weight_std^2/n_l), b from N(0, bias_std^2). The same functions
                at the start; the tangent kernel grows like n, and learning rates go like 1/n.
            "mean_field": the output of "ntk" times 1/sqrt(n). f_0 tends to 0, learning rates go like n, and the kernel
                changes at every width: features are learned (Mei et al. 2018; Chizat et al. 2019). Depth >= 2.

    Returns:
        A `Network`: give it to `nngp`, `ntk` or `trained_ensemble`, or use its `init` and `apply` at a finite width.

    Raises:
        ValueError: depth < 1, weight_std not a positive or bias_std not a non-negative finite number, an unknown
            activation or parameterization.
        TypeError: an argument of another type.
    """
    depth = validation.integer("depth", depth, at_least=1, below=DEEPEST + 1)
    validation.choice("parameterization", parameterization, PARAMETERIZATIONS)
    if parameterization == "mean_field" and depth == 1:
        raise ValueError("the mean-field parameterisation divides by the width, and a network of depth 1 has none.")
    if depth == 1:  # no variance of hidden signals: the output's own is all that must be in range
        scale = validation.finite_scalar("weight_std", weight_std, above=0.0)
    else:
        scale = validation.deviation("weight_std", weight_std)
    dense = Dense(scale, validation.deviation("bias_std", bias_std, zero=True), parameterization == "standard")
    return Network(dense, (Activate(resolve(activation)), dense), depth - 1, parameterization)
