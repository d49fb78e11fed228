"""Networks: a first dense layer, then a block of layers repeated; `mlp` builds the paper's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from widelimit import validation
from widelimit.activations.base import Activation, Trace
from widelimit.activations.names import activation as resolve
from widelimit.architecture.layers import Activate, Dense, Layer, PairState, Params, Scalar
from widelimit.pytrees import pytree
from widelimit.signals import Gaps, Variance, correlate_points, gaps_of_one
from widelimit.validation import Array

UNROLLED = 4
"""Blocks written out into one fused loop; beyond it `lax.scan` keeps the compile time constant (minutes at 50)."""

_GRID = 33
_MARGIN = 0.01
"""A smooth function on the grid is not beyond its values there by more."""


class NetworkFeatures(NamedTuple):
    """What the pair phase needs of n inputs: O(n (d + depth)) numbers."""

    points: Float[jax.Array, "n d+1"]
    """Unit vectors whose inner products are the correlations after the first dense layer."""
    traces: tuple[Trace, ...]
    """One entry a layer of the block, arrays (repeats, n)."""
    variance: Variance
    """Variance of the network's output, arrays (n,)."""


@final
@pytree
@dataclass(frozen=True)
class Network:
    """first, then (block) x repeats: one description of the finite networks of every width and of their limit."""

    first: Dense
    block: tuple[Layer, ...]
    repeats: int = field(metadata={"static": True})

    @property
    def depth(self) -> int:
        """L, the number of affine layers; there are L - 1 hidden layers."""
        return 1 + self.repeats

    def init(
        self, seed: int, *, input_dim: int, width: int | Sequence[int] = 512, output_dim: int = 1
    ) -> tuple[Params, ...]:
        """Parameters of a finite network, every entry from N(0, 1) (NTK parameterisation; section 2.2 of the paper).

        Args:
            seed: seed of the random numbers, an integer >= 0.
            input_dim: n_0 >= 1.
            width: size of every hidden layer, or one size for each of the depth - 1 hidden layers.
            output_dim: n_L >= 1.

        Returns:
            A tuple with one pytree a layer, of JAX's default float dtype.

        Raises:
            ValueError: a size below 1, or not depth - 1 widths.
        """
        widths = list(width) if isinstance(width, Sequence) else [width] * self.repeats
        if len(widths) != self.repeats:
            raise ValueError(
                f"a network of depth {self.depth} has {self.repeats} hidden layers; got {len(widths)} widths."
            )
        sizes = [validation.integer("every size", n, at_least=1) for n in (input_dim, *widths, output_dim)]
        key = jax.random.key(validation.integer("seed", seed, at_least=0, below=2**63))
        return self.init_with_key(key, sizes, jnp.zeros(()).dtype)

    def init_with_key(self, key: jax.Array, sizes: Sequence[int], dtype: Any) -> tuple[Params, ...]:
        """`init` under jit and vmap: a JAX key, all depth + 1 sizes from input to output, a dtype."""
        keys = jax.random.split(key, 1 + self.repeats * len(self.block))
        params = [self.first.init(keys[0], sizes[0], sizes[1], dtype)]
        for i in range(self.repeats):
            for j, layer in enumerate(self.block):
                layer_key = keys[1 + i * len(self.block) + j]
                params.append(layer.init(layer_key, sizes[i + 1], sizes[i + 2], dtype))
        return tuple(params)

    def apply(self, params: tuple[Params, ...], X: Float[Array, "n d"]) -> Float[jax.Array, "n c"]:
        """f(x) of the finite network, (n, d) -> (n, output_dim); no activation on the output.

        Raises:
            TypeError, ValueError: X is not (n, d) finite floats of the parameters' dtype and number of features.
        """
        X = validation.points("X", X)
        weight = params[0]["weight"]
        if X.shape[1] != weight.shape[1]:
            raise ValueError(f"X has shape {X.shape}; the parameters were made for (n, {weight.shape[1]}).")
        if X.dtype != weight.dtype:
            wanted = str(weight.dtype)
            raise TypeError(f"X is {X.dtype} and the parameters are {wanted}; pass X.astype({wanted!r}).")
        signals = self.first.apply(params[0], jnp.asarray(X))
        for layer, layer_params in zip(self.block * self.repeats, params[1:], strict=True):
            signals = layer.apply(layer_params, signals)
        return signals

    def encode(self, X: Float[jax.Array, "n d"]) -> NetworkFeatures:
        """Everything about single inputs that pairs need."""
        points, variance = self.first.embed(X)

        def step(variance: Variance, _: None) -> tuple[Variance, tuple[Trace, ...]]:
            traces = []
            for layer in self.block:
                variance, trace = layer.encode(variance)
                traces.append(trace)
            return variance, tuple(traces)

        variance, traces = jax.lax.scan(step, variance, None, length=self.repeats)
        return NetworkFeatures(points, traces, variance)

    def rtol(self, dtype: Any) -> float:
        """The largest error target of the activations; 0 where all are closed forms."""
        return max((a.rtol_in(dtype) for a in self._activations()), default=0.0)

    def _activations(self) -> list[Activation]:
        return [layer.activation for layer in self.block if isinstance(layer, Activate)]

    def prepared(self, low: float, high: float, dtype: Any) -> Network:
        """This network with its activations ready for signals whose deviation after the first layer is in [low, high].

        A grid of deviations goes through the layers to find the range before every activation.
        """
        ranges: dict[int, tuple[float, float]] = {}
        with jax.enable_x64(True):
            grid = jnp.asarray(np.linspace(low, high, _GRID) if high > low else np.full(1, high))
            variance = Variance(grid**2, jnp.zeros(grid.shape, jnp.int32)).normalised()
            for i in range(self.repeats * len(self.block)):
                layer = self.block[i % len(self.block)]
                if isinstance(layer, Activate):
                    sizes = np.asarray(variance.deviation)
                    seen = ranges.get(i % len(self.block), (np.inf, 0.0))
                    ranges[i % len(self.block)] = (min(seen[0], sizes.min()), max(seen[1], sizes.max()))
                    variance = layer.activation.second_moment(variance, sizes.max())
                else:
                    variance = layer.encode(variance)[0]
        block = tuple(
            Activate(layer.activation.prepared((1 - _MARGIN) * ranges[i][0], (1 + _MARGIN) * ranges[i][1], dtype))
            if isinstance(layer, Activate)
            else layer
            for i, layer in enumerate(self.block)
        )
        return replace(self, block=block)

    def _through(self, x: tuple[Trace, ...], y: tuple[Trace, ...], gaps: Gaps) -> PairState:
        """The blocks on pairs, from the gaps after the first layer, where Theta^1 = Sigma^1."""

        def step(state: PairState, traces: tuple[tuple[Trace, ...], tuple[Trace, ...]]) -> tuple[PairState, None]:
            for layer, trace_x, trace_y in zip(self.block, *traces, strict=True):
                state = layer.pair(trace_x, trace_y, state)
            return state, None

        state = PairState(gaps, gaps.rho)
        if self.repeats > UNROLLED or self.rtol(gaps.below.dtype) > 0:  # series are much to compile
            return jax.lax.scan(step, state, (x, y))[0]
        for i in range(self.repeats):
            state, _ = step(state, jax.tree.map(lambda leaf: leaf[i], (x, y)))  # noqa: B023
        return state

    def pairwise(self, x: NetworkFeatures, y: NetworkFeatures, *, same: bool) -> PairState:
        """State of the output layer for every pair of two blocks of inputs, arrays (n, m); `same`: x is y."""
        rows = jax.tree.map(lambda leaf: leaf[..., :, None], x.traces)
        columns = jax.tree.map(lambda leaf: leaf[..., None, :], y.traces)
        return self._through(rows, columns, correlate_points(x.points, y.points, same=same))

    def diagonal(self, x: NetworkFeatures) -> PairState:
        """State of the output layer for every input with itself, arrays (n,): the gap is exactly 0."""
        return self._through(x.traces, x.traces, gaps_of_one(x.variance.value))


def mlp(
    *,
    depth: int,
    activation: str | Activation | Callable[[jax.Array], jax.Array] = "relu",
    weight_std: Scalar = 1.0,
    bias_std: Scalar = 0.0,
) -> Network:
    """f = affine o (phi o affine)^(depth - 1), affine(a) = bias_std b + (weight_std/sqrt(width)) W a.

    The network of section 2.2 of the paper, of no width yet.

    Args:
        depth: L >= 1, the number of affine layers; depth 1 is linear regression, depth L has L - 1 hidden layers.
        activation: a name ("relu", "tanh", ...; docs/activations.md has all), an `Activation`, or a function of arrays
            written with jax.numpy (if it has kinks: `wl.activation(phi, kinks=...)`).
        weight_std: sigma_w > 0 (the paper: 1); sqrt(2) keeps the variance of relu signals.
        bias_std: beta >= 0.

    Returns:
        A `Network`: give it to `nngp`, `ntk` or `trained_ensemble`, or use its `init` and `apply` at a finite width.

    Raises:
        ValueError: depth < 1, weight_std not a positive or bias_std not a non-negative finite number, an unknown
            activation.
        TypeError: an argument of another type.
    """
    depth = validation.integer("depth", depth, at_least=1)
    dense = Dense(
        validation.finite_scalar("weight_std", weight_std, above=0.0),
        validation.finite_scalar("bias_std", bias_std, at_least=0.0),
    )
    return Network(dense, (Activate(resolve(activation)), dense), depth - 1)
