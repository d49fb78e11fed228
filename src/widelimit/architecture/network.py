"""A network is a tuple of layers: it describes the finite networks of every width, and their limit."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np

from widelimit import memory, validation
from widelimit.activations.base import Activation, Memo
from widelimit.architecture.centring import less_means
from widelimit.architecture.chain import Serial
from widelimit.architecture.images import among_sites_of, itself_at_sites, pairs_of_images
from widelimit.architecture.inputs import Inputs, Rows, float_dtype
from widelimit.architecture.layers import Dense
from widelimit.architecture.repeat import grouped
from widelimit.architecture.stacking import Draw, draw_many, draw_one, unstacked
from widelimit.architecture.state import Change, Layer, PairState, Params, Scalar, Shape, through
from widelimit.architecture.surveys import survey
from widelimit.arithmetic import arithmetic
from widelimit.interpreter import interpreted
from widelimit.pytrees import pytree
from widelimit.shapes import Float
from widelimit.signals import Correlation, Variance, correlate_points, correlation_with_itself
from widelimit.validation import Array

PARAMETERIZATIONS = ("ntk", "standard", "mean_field", "mup")
"""The parameters of finite networks are scaled in one of these ways; `mlp` says what each means."""
_MARGIN = 0.01
"""Ranges are widened by this share: between points of the grid, deviations leave the range seen there by less."""


class NetworkFeatures(NamedTuple):
    """The features hold the data of n inputs that the pair phase needs: O(n (d + depth)) numbers."""

    points: Float[jax.Array, "n d+1"]
    """Unit vectors whose inner products are the correlations after the first dense layer."""
    memos: tuple[Memo, ...]
    """One entry a layer after the first, arrays (n, .., 1); the last axis is for the other input of a pair."""
    variance: Variance
    """Variance of the network's output, arrays (n,)."""
    tangent: jax.Array | None = None
    """Theta of every input with itself over its variance, (n,), where pairs of sites gave it."""


@final
@pytree
@dataclass(frozen=True)
class Network:
    """A network is layers in order; the first is `Dense`, and so is the last, whose outputs are Gaussian.

    Made by `network`, `mlp` and `resmlp`, which check it.
    """

    layers: tuple[Layer, ...]
    parameterization: str = field(default="ntk", metadata={"static": True})
    base_width: float | None = field(default=None, metadata={"static": True})
    learning_rates: tuple[float, ...] | None = field(default=None, metadata={"static": True})
    inputs: Inputs = field(default=Rows(), metadata={"static": True})

    def __repr__(self) -> str:
        usual = {"parameterization": "ntk", "base_width": None, "learning_rates": None, "inputs": Rows()}
        given = {name: getattr(self, name) for name in usual}
        more = [f"{name}={value!r}" for name, value in given.items() if value != usual[name]]
        return f"network({', '.join([*map(repr, self.layers), *more])})"

    @property
    def first(self) -> Dense:
        """Return the dense layer that reads the inputs, as they are or as layers before it leave them.

        Where branches or a block read them it is none of the network's: their law is that of an untrained layer.
        """
        last = self.reads[-1] if self.reads else None
        return last if isinstance(last, Dense) else Dense(trained=False)

    @property
    def reads(self) -> tuple[Layer, ...]:
        """Return the layers before `body`: up to the first dense one, or to branches or a block that read inputs."""
        at = [layer.on_inputs for layer in self.layers].index(False)
        return self.layers[: at + isinstance(self.layers[at], Dense)]

    @property
    def embedding(self) -> tuple[Layer, ...]:
        """Return the layers without parameters that change rows as given, and `first`."""
        return *(layer for layer in self.reads if layer.on_inputs), self.first

    @property
    def whole(self) -> Serial:
        """Return all layers as one."""
        return Serial(*self.layers)

    @property
    def body(self) -> Serial:
        """Return the layers after the first, which embeds rows; all layers, where inputs are images."""
        return less_means(Serial(*self.layers[0 if self.inputs.sites else len(self.reads) :]))

    @property
    def _compact(self) -> Serial:
        """Return `body` with layers that are alike as one: JAX has less to compile."""
        return Serial(*grouped(self.body.layers))

    @functools.cached_property
    def across(self) -> bool:
        """States of pairs hold all pairs of sites."""
        return self.whole.mixes_sites

    def deviations(self, X: np.ndarray) -> np.ndarray:
        """Compute standard deviations of the signals before `body`, float64, of any size a float holds."""
        if not isinstance(self.inputs, Rows):
            return self.inputs.deviations(X)
        if len(self.embedding) > 1:
            with arithmetic(True):
                X = interpreted(through)(self.embedding[:-1], X.astype(np.float64))
        return self.first.deviations(X)

    @property
    def units(self) -> tuple[Layer, ...]:
        """Return the layers that have an entry in the parameters, in order."""
        return self.whole.units

    @property
    def depth(self) -> int:
        """Return the depth L: the number of affine layers on the longest path."""
        return self.whole.depth

    def init(
        self,
        seed: int,
        *,
        input_dim: int | None = None,
        width: int | Sequence[int] = 512,
        output_dim: int = 1,
        dtype: Any = np.float32,
    ) -> tuple[Params, ...]:
        """Draw parameters of a finite network from N(0, 1) (NTK parameterisation; section 2.2 of the paper).

        Standard parameterisation: W from N(0, weight_std^2/n), b from N(0, bias_std^2), n the layer's inputs.

        Args:
            seed: seed of the random numbers, an integer >= 0.
            input_dim: n_0 >= 1; may be left out for images.
            width: size of every hidden layer, or one size for each of the depth - 1 hidden layers.
            output_dim: n_L >= 1.
            dtype: float32 or float64.

        Returns:
            A tuple with one pytree a layer.

        Raises:
            TypeError, ValueError: a size below 1, or not depth - 1 widths; another dtype.
            MemoryError: the parameters do not fit; nothing is allocated then.
        """
        return self._drawn(draw_one, [seed], self._sizes(input_dim, width, output_dim), dtype)

    def init_many(
        self,
        seeds: Sequence[int] | np.ndarray,
        *,
        input_dim: int | None = None,
        width: int | Sequence[int] = 512,
        output_dim: int = 1,
        dtype: Any = np.float32,
    ) -> tuple[Params, ...]:
        """Draw the parameters of `init` for every seed, stacked: leaves have a leading axis (E,), one entry a seed.

        Member e has the bits of init(seeds[e], ...). One compiled call, whatever E. Arguments and errors as `init`.
        """
        listed = isinstance(seeds, Sequence) and not isinstance(seeds, (str, bytes))
        if not (listed or (isinstance(seeds, (np.ndarray, jax.Array)) and seeds.ndim == 1)) or len(seeds) == 0:
            raise ValueError(f"seeds must be a sequence of at least one integer, got {validation.shown(seeds)}.")
        return self._drawn(draw_many, seeds, self._sizes(input_dim, width, output_dim), dtype)

    def _drawn(self, draw: Draw, seeds: Any, sizes: Shape, dtype: Any) -> tuple[Params, ...]:
        keys = [jax.random.key(validation.integer("each of seeds: seed", s, at_least=0)) for s in seeds]
        kind = float_dtype(dtype)
        count = self.whole.count(sizes)
        memory.require(  # drawing them takes as much memory again
            2.0 * kind.itemsize * len(keys) * count,
            f"the start of {len(keys)} networks with {count} parameters each",
            remedy="use a smaller width, fewer seeds, or float32",
        )
        with arithmetic(kind == np.float64):
            return draw(self.whole, jnp.stack(keys), sizes, kind)

    def _sizes(self, input_dim: int | None, width: int | Sequence[int], output_dim: int) -> Shape:
        """Return the sizes of every layer of a finite network. Arguments and errors as `init`."""
        listed = isinstance(width, (Sequence, np.ndarray)) and not isinstance(width, (str, bytes))
        widths = list(width) if listed else [width] * self.whole.hidden  # type: ignore[arg-type]
        if len(widths) != self.whole.hidden:
            hidden = f"a network of depth {self.depth} has {self.whole.hidden} hidden layers"
            raise ValueError(f"{hidden}; got {len(widths)} widths for width.")
        first = "input_dim", self.inputs.channels(input_dim)
        named = [first, *(("width", n) for n in widths), ("output_dim", output_dim)]
        sizes = [validation.integer(f"{name}: every size", n, at_least=1) for name, n in named]
        return self.whole.shape(sizes[0], sizes[-1], iter(sizes[1:-1]))[0]

    def init_with_key(self, key: jax.Array, sizes: Sequence[int], dtype: Any) -> tuple[Params, ...]:
        """Draw as `init` does under jit and vmap: a JAX key, all sizes from input to output, a dtype."""
        shape = self.whole.shape(sizes[0], sizes[-1], iter(sizes[1:-1]))[0]
        return tuple(unstacked(self.whole.draw(key, shape, dtype)))

    def apply(
        self, params: tuple[Params, ...], X: Float[Array, "n d"], *, key: jax.Array | None = None
    ) -> Float[jax.Array, "n c"]:
        """Compute f(x) of the finite network, (n, d) -> (n, output_dim); no activation on the output.

        Args:
            params: parameters from `init`.
            X: inputs, (n, d).
            key: jax.random.key(seed) draws the masks of `Dropout`, as in training; None is the network at evaluation.

        Raises:
            TypeError, ValueError: X is not (n, d) finite floats of the parameters' dtype and number of features; the
                parameters are those of another architecture; key is none.
        """
        validation.random_key("key", key)
        X = self._inputs(params, X, axes=0)
        _require_signals(params, X, axes=0, sites=math.prod(self.inputs.sites))
        with arithmetic(X.dtype == np.float64):
            return jnp.asarray(_apply(self, params, X, key))

    def apply_many(self, params: tuple[Params, ...], X: Float[Array, "n d"]) -> Float[jax.Array, "E n c"]:
        """Compute f_e(x) of E networks with stacked parameters (`init_many`), (n, d) -> (E, n, output_dim).

        Raises: as `apply`.
        """
        X = self._inputs(params, X, axes=1)
        _require_signals(params, X, axes=1, sites=math.prod(self.inputs.sites))
        with arithmetic(X.dtype == np.float64):
            return jnp.asarray(_apply_many(self, params, jnp.asarray(X)))

    def signals_of(
        self, params: tuple[Params, ...], X: Float[jax.Array, "n d"], key: jax.Array | None = None
    ) -> Float[jax.Array, "n c"]:
        """Compute `apply` under jit and vmap: nothing is checked."""
        signals = self.whole.apply_with(params, self.inputs.read(X), self.inputs.structure(X), key)
        return self.output_scale(params) * signals.reshape(len(X), signals.shape[-1])

    def output_scale(self, params: tuple[Params, ...]) -> float:
        """Return sqrt(N/n_{L-1}) in the mean-field (N = 1) and the maximal update parameterisation, else 1."""
        scaled = self.parameterization in ("mean_field", "mup")
        return math.sqrt((self.base_width or 1.0) / params[-1]["weight"].shape[-1]) if scaled else 1.0

    def _inputs(self, params: Any, X: Any, *, axes: int) -> Any:
        """Return X, checked against parameters whose leaves have `axes` leading axes."""
        X = self.rows("X", X)
        inputs, dtype = self._check(params, axes)
        if self.inputs.read(X).shape[-1] != inputs:
            raise ValueError(f"X has shape {X.shape}; the parameters were made for (n, {inputs}).")
        if X.dtype != dtype:
            raise TypeError(f"X is {X.dtype} and the parameters are {dtype}; pass X.astype({str(dtype)!r}).")
        return X

    def rows(self, name: str, X: Any) -> Array:
        """Return inputs as rows (n, d). Raises: TypeError, ValueError: other data, or nothing is left of one."""
        rows = self.inputs.rows(name, X)
        structure = self.inputs.structure(rows)
        _ = structure and self.whole.structure_after(structure)
        return rows

    def _check(self, params: Any, axes: int) -> tuple[int, Any]:
        """Return the number of input features and the dtype of the parameters, which must be this architecture's."""
        shapes = jax.tree.map(np.shape, params)
        try:
            fitting = self.whole.check(params, None, axes) is not None
            named = jax.tree_util.tree_leaves_with_path(params)
            weights = next(leaf for path, leaf in named if getattr(path[-1], "key", "") == "weight")
            inputs, stacked = np.shape(weights)[-1], {np.shape(leaf)[:axes] for leaf in jax.tree.leaves(params)}
        except (TypeError, KeyError, IndexError, ValueError, StopIteration):
            fitting, stacked = False, set()
        if not fitting or len(stacked) != 1:
            kind = "init_many, for apply_many" if axes else "init, for apply; use apply_many for those of init_many"
            raise ValueError(
                f"params: these are not parameters of this network of depth {self.depth} ({kind}): shapes "
                f"{validation.shown(shapes)}."
            )
        return inputs, weights.dtype

    def encode(self, X: Float[jax.Array, "n d"]) -> NetworkFeatures:
        """Compute everything about single inputs that pairs need."""
        if not self.across:
            return self._encode(X)
        each = jax.lax.map(lambda x: self._encode(x[None]), X)  # pairs of sites of one image at a time
        return jax.tree.map(lambda leaf: leaf[:, 0], each)  # type: ignore[no-any-return]

    def _encode(self, X: Float[jax.Array, "n d"]) -> NetworkFeatures:
        if isinstance(self.inputs, Rows):
            points, variance = self.first.embed(through(self.embedding[:-1], X))
        else:
            points, variance = self.inputs.embed(X)
            variance = variance._replace(among=among_sites_of(points) if self.across else None)
        variance, _, memos = self._compact.encode_with_mean(variance, None)
        memos = jax.tree.map(lambda leaf: jnp.moveaxis(leaf[..., None], -2, 0), memos)
        tangent = None if variance.among is None else variance.among.tangent.reshape(len(X))
        output = Variance(variance.value.reshape(len(X)), variance.exponent.reshape(len(X)))
        return NetworkFeatures(points, memos, output, tangent)

    @property
    def numbers_per_input(self) -> int:
        """Return the numbers that the memos of an input take."""
        return self.body.numbers_per_input * math.prod(self.inputs.sites)

    @property
    def numbers_per_pair(self) -> int:
        """Return the numbers that a pair takes: one, or one a site."""
        return math.prod(self.inputs.sites)

    def rtol(self, dtype: Any) -> float:
        """Return the largest error target of the activations; it is 0 where all are closed forms."""
        return max((a.rtol_in(dtype) for a in self.activations()), default=0.0)

    def activations(self) -> Iterator[Activation]:
        """Yield the activations of the layers, those of a repeated block once."""
        return self.body.activations()

    def prepared(self, low: float, high: float, dtype: Any, degree: float = 0.0) -> Network:
        """Prepare for deviations after the first layer in [low, high] and degrees of graphs up to `degree`.

        Raises: ValueError: an activation whose duals do not converge there.
        """
        ranges = survey(self.body, low, high, degree)

        def tabulated(activation: Activation, path: tuple[Any, ...]) -> Activation:
            smallest, largest = ranges[path]
            return activation.tabulated((1 - _MARGIN) * smallest, (1 + _MARGIN) * largest, dtype)

        return self._with_activations(tabulated)

    def in_few_shapes(self, dtype: Any, rows: int) -> Network:
        """Return this network, prepared, with activations whose programs for tiles of `rows` serve other ranges too."""
        return self._with_activations(lambda activation, _: activation.in_few_shapes(dtype, rows))

    def _with_activations(self, change: Change) -> Network:
        body = self.body.map_layers(lambda layer, at: layer.map_activations(change, at), ())
        before = self.layers[: len(self.layers) - len(body.layers)]
        return replace(self, layers=(*before, *body.layers))

    def pairwise(self, x: NetworkFeatures, y: NetworkFeatures, *, same: bool | jax.Array) -> PairState:
        """Compute the output layer's state for every pair of two blocks of inputs, arrays (n, m); `same`: x is y."""
        body = self._for_pairs(self._compact)
        if self.inputs.sites:
            return pairs_of_images(body, self.inputs, self.across, (x.points, x.memos), (y.points, y.memos))
        rows = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, -2), x.memos)
        columns = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, -1), y.memos)
        biases, inputs = x.points[:, -1:] * y.points[:, -1], x.points.shape[1] - 1.0
        return body.pair(rows, columns, self.start(correlate_points(x.points, y.points, same=same), biases, inputs))

    @property
    def of_pairs(self) -> Serial:
        """Return the layers of `body` for pairs."""
        return self._for_pairs(self.body)

    def _for_pairs(self, body: Serial) -> Serial:
        """Return layers as they are or, in networks of one activation, without refinement, which these do not need."""
        mixed = len({type(activation) for activation in self.activations()}) > 1
        return body if mixed else Serial(*(layer.without_refinement() for layer in body.layers))

    def diagonal(self, x: NetworkFeatures) -> PairState:
        """Compute the state of the output layer for every input with itself, arrays (n,): the gap is exactly 0."""
        if x.tangent is not None:
            return PairState(correlation_with_itself(x.tangent), x.tangent)
        memos = jax.tree.map(lambda leaf: jnp.moveaxis(leaf[..., 0], 0, -1), x.memos)
        if self.inputs.sites:
            return itself_at_sites(self._compact, self.inputs, memos, x.variance.value)
        one = correlation_with_itself(x.variance.value)
        start = self.start(one, x.points[:, -1] ** 2, x.points.shape[1] - 1.0)
        return self._compact.itself(memos, start)

    def start(self, correlation: Correlation, biases: jax.Array, inputs: Scalar) -> PairState:
        """Return the state after the first layer, where Theta is its own part, or 0 if that is not trained.

        `biases`, the part of rho that biases have, and the number of inputs are for the standard parameterisation.
        """
        rho = correlation.rho
        if not self.first.trained:
            return PairState(correlation, jnp.zeros_like(rho))
        return PairState(correlation, self.first.own_tangent(rho, rho - biases, biases, inputs))


def _require_signals(params: tuple[Params, ...], X: Array, *, axes: int, sites: int) -> None:
    """Refuse signals that do not fit: those of two layers at once, of parameters with `axes` leading axes.

    Raises: MemoryError.
    """
    weights = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim >= 2 + axes]
    width, members = max(leaf.shape[axes] for leaf in weights), len(weights[0]) if axes else 1
    size = 2.0 * X.dtype.itemsize * members * len(X) * width * sites
    memory.require(size, f"the signals of {len(X)} inputs in {width} units")


_apply = jax.jit(Network.signals_of, inline=True)  # within other programs it is no program of its own
_apply_many = jax.jit(jax.vmap(Network.signals_of, in_axes=(None, 0, None)))
