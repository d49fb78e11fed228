"""An infinitely wide network has two kernels: NNGP at initialisation, NTK under gradient descent."""

from __future__ import annotations

import abc
import functools
import math
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np

from widelimit import memory, validation
from widelimit.activations.base import ANY_DEPTH
from widelimit.activations.tabulated.fixed_lengths import SMALL
from widelimit.architecture.inputs import Image
from widelimit.architecture.network import Network, NetworkFeatures
from widelimit.architecture.sequences import Graph
from widelimit.architecture.surveys import require_spread
from widelimit.arithmetic import arithmetic, lenient
from widelimit.compute import devices, threads
from widelimit.compute.plan import BESIDE, LARGEST, SMALLEST, tile_edge
from widelimit.compute.tiles import PairKernel
from widelimit.kernels import images
from widelimit.kernels.base import Kernel, Matrices
from widelimit.kernels.sphere import Sphere, SpherePair, sphere
from widelimit.pytrees import pytree
from widelimit.shapes import Float
from widelimit.signals import scaled, scaled_pairs
from widelimit.validation import Array

_encode: Callable[[Network, jax.Array], NetworkFeatures] = jax.jit(Network.encode)
"""Compiled once for both kernels of a network."""


TILE = 2**8
"""Sites of all rows of a tile where all meet all: some milliseconds."""
_FEW = 8
"""Number of inputs whose pairs `explain` measures."""
EQUAL_NORMS = 8
"""Norms that agree to this many eps are taken for equal: each of a few steps of normalisation rounds twice."""


def _prepared(kernel: _NetworkKernel, inputs: tuple[Array, ...]) -> PairKernel:
    """Prepare the kernel: a series in the angle on a sphere; activations tabulated for the range of norms.

    Under a trace nothing is known of the inputs, and nothing prepared.
    """
    if len(kernel.net.layers) == 1 or validation.traced(*inputs, *jax.tree.leaves(kernel)):
        return kernel
    with threads.limit(0):  # tables come of matrices of some hundred rows
        return _tabulate(kernel, inputs)


def _tabulate(kernel: _NetworkKernel, inputs: tuple[Array, ...]) -> PairKernel:
    net = kernel.net
    dtype = inputs[0].dtype
    deviations = np.concatenate([net.deviations(_outermost(net, X)) for X in inputs])
    low, high = float(deviations.min()), float(deviations.max())
    degree = max(net.inputs.degree(X) for X in inputs)
    _require_spread(_identify(net), low, high, degree, dtype.name)
    eps, small = float(np.finfo(dtype).eps), sum(map(len, inputs)) <= SMALL
    if not net.inputs.sites and high - low <= EQUAL_NORMS * eps * high and low > 0 and high < np.inf:
        target = max(4 * eps, net.rtol(dtype) / 64)
        d = 0 if net.base_width is None else inputs[0].shape[1]
        found = [_sphere(_identify(net), high, d, dtype.name, tangent, target, small) for tangent in kernel.tangents]
        whole = [series for series in found if series is not None]
        if len(whole) == len(found):
            return whole[0] if len(whole) == 1 else SpherePair(*whole)
    if net.rtol(dtype):
        edge = tile_edge(max(map(len, inputs))) if small and not net.inputs.sites else 0
        kernel = replace(kernel, net=_network_for(_identify(net), low, high, degree, dtype.name, edge))  # type: ignore[type-var]
    native = isinstance(net.inputs, Image) and not devices.accelerated()
    return images.in_machine_code(kernel, _identify(kernel.net), dtype) if native else kernel


def _outermost(net: Network, X: Array) -> np.ndarray:
    """Return rows whose signals deviate most and least; of rows on a device only these two come to the host."""
    if isinstance(X, np.ndarray) or net.inputs.sites or len(net.embedding) > 1:
        return np.asarray(X)
    with arithmetic(True):
        return np.asarray(X[_shortest_and_longest(X)])


@jax.jit
def _shortest_and_longest(X: jax.Array) -> jax.Array:
    wide = X.astype(jnp.float64)
    largest = jnp.max(jnp.abs(wide), axis=1)
    squares = jnp.mean((wide / jnp.where(largest > 0, largest, 1)[:, None]) ** 2, axis=1)
    norms = largest * jnp.sqrt(squares)
    return jnp.stack([jnp.argmin(norms), jnp.argmax(norms)])


@final
@dataclass(frozen=True)
class _Identified:
    """A network is a key by its structure and the bytes of its numbers: JAX arrays have no hash."""

    identity: Hashable
    net: Network = field(compare=False)


def _identify(net: Network) -> _Identified:
    leaves, structure = jax.tree.flatten(net)
    values = [np.asarray(leaf) for leaf in leaves]
    return _Identified((structure, *((v.dtype.name, v.shape, v.tobytes()) for v in values)), net)


@functools.lru_cache(maxsize=64)
def _sphere(
    key: _Identified, deviation: float, inputs: int, dtype: str, tangent: bool, target: float, small: bool
) -> Sphere | None:
    return sphere(key.net, deviation, inputs, np.dtype(dtype), tangent=tangent, target=target, few_shapes=small)


@functools.lru_cache(maxsize=64)
def _require_spread(key: _Identified, low: float, high: float, degree: float, dtype: str) -> None:
    require_spread(key.net.body, low, high, degree, key.net.rtol(dtype), dtype)


@functools.lru_cache(maxsize=64)
def _network_for(key: _Identified, low: float, high: float, degree: float, dtype: str, edge: int) -> Network:
    ready = key.net.prepared(low, high, np.dtype(dtype), degree)
    return ready.in_few_shapes(np.dtype(dtype), edge) if edge else ready


class _NetworkKernel(Matrices, abc.ABC):
    """The kernels of a network read the covariance of a pair from the recursion, its tangent kernel, or both."""

    net: Network
    tangents: ClassVar[tuple[bool, ...]]
    """True for Theta, False for Sigma: one for each number of a pair."""

    def prepared(self, *inputs: Float[Array, "n d"]) -> PairKernel:
        with lenient():
            return _prepared(self, inputs)

    def points(self, name: str, X: Any) -> Array:
        rows = self.net.rows(name, X)
        if self._meets_pairs_of_masked_sites:
            sites, size = math.prod(self.net.inputs.sites), rows.dtype.itemsize
            what = f"the states of all pairs of {sites} sites of two inputs"
            memory.require(50.0 * size * sites**2, what, remedy="use shorter inputs, or Flatten in the place of sums")
        return rows

    def explain(self, X: Float[Array, "n d"]) -> str:
        """Explain how gram(X) with sites is computed: state of a pair, bytes, and seconds measured briefly.

        Raises: ValueError: a network of rows, whose pairs take some numbers; as `gram`.
        """
        if not self.net.inputs.sites:
            raise ValueError(
                "explain is for networks of images; a pair of rows takes a few numbers, whatever the depth."
            )
        points = np.asarray(validation.concrete("X", self.points("X", X)))
        kernel = self.prepared(points)
        if isinstance(kernel, images.InMachineCode):
            return images.explain(kernel.engine, points)
        if not isinstance(self.net.inputs, Image):
            return f"compiled by XLA\n{self._measured(points)}"
        with lenient():
            engine = images.engine_of(_identify(self.net), points.dtype.name, any(self.tangents))
            text = images.explain(engine, points)
        return f"{text}\n{self._measured(points)}" if isinstance(engine, str) else text

    def _measured(self, points: np.ndarray) -> str:
        few, n, size = points[:_FEW], len(points), points.dtype.itemsize
        self.gram(few)  # compiled before time is taken
        start = time.perf_counter()
        self.gram(few)
        pair = (time.perf_counter() - start) / (len(few) * (len(few) + 1) / 2)
        state = 3 * size * self.net.numbers_per_pair ** (2 if self.net.across else 1)
        one = size * self.numbers_per_input(points.shape[1])
        state_text, one_text, everything = map(memory.text, (state, one, one * n))
        return (
            f"state: {state_text} a pair; {one_text} an input, {everything} all\n"
            f"time: {pair:.2g} s a pair, {pair * n * (n + 1) / 2:.2g} s for {n} inputs"
        )

    @property
    def numbers_per_pair(self) -> int:
        return self.net.numbers_per_pair

    def quick_in(self, dtype: Any) -> bool:
        quick = [own.quick_depth * (np.dtype(dtype).name in own.quick_types) for own in self.net.activations()]
        return self._compiles_longer_than_it_runs and self.net.depth <= min(quick, default=ANY_DEPTH)

    @property
    def light(self) -> bool:
        return self._compiles_longer_than_it_runs and all(activation.light for activation in self.net.activations())

    @property
    def _compiles_longer_than_it_runs(self) -> bool:
        # Of graphs the quick programs take a third longer: sums over neighbours are most of the work.
        return not self.net.inputs.sites or (
            self._meets_pairs_of_masked_sites and not isinstance(self.net.inputs, Graph)
        )

    @property
    def _meets_pairs_of_masked_sites(self) -> bool:
        return self.net.across and not isinstance(self.net.inputs, Image)

    @property
    def largest_tile(self) -> int:
        if not self._meets_pairs_of_masked_sites:
            return LARGEST
        # Tiles of few rows leave out half of a symmetric matrix; beside this many pairs of sites a tile costs nothing.
        return 1 << max(SMALLEST, TILE // math.prod(self.net.inputs.sites)).bit_length() - 1

    def numbers_per_input(self, d: int) -> int:
        return d + BESIDE + self.net.numbers_per_input

    def encode(self, X: Float[jax.Array, "n d"]) -> NetworkFeatures:
        return _encode(self.net, X)

    def pairwise(
        self, x: NetworkFeatures, y: NetworkFeatures, *, same: bool | jax.Array = False
    ) -> Float[jax.Array, "n m"]:
        state = self.net.pairwise(x, y, same=same)
        values = [state.tangent if theta else state.correlation.rho for theta in self.tangents]
        return images.joined([scaled_pairs(value, x.variance, y.variance) for value in values])

    def diagonal(self, x: NetworkFeatures) -> Float[jax.Array, " n"]:
        one = jnp.ones_like(x.variance.value)
        values = [self.net.diagonal(x).tangent if theta else one for theta in self.tangents]
        return images.joined([scaled(value, x.variance, x.variance) for value in values])


@final
@pytree
class NNGP(_NetworkKernel, Kernel):
    """Sigma^L(x, x') is the covariance of the outputs of an infinitely wide network at initialisation."""

    net: Network
    tangents: ClassVar[tuple[bool, ...]] = (False,)


@final
@pytree
class NTK(_NetworkKernel, Kernel):
    """Theta^L(x, x') = lim <grad_theta f(x), grad_theta f(x')>, which gradient descent sees at infinite width."""

    net: Network
    tangents: ClassVar[tuple[bool, ...]] = (True,)


@final
@pytree
class _Both(_NetworkKernel):
    """Sigma^L + i Theta^L: both kernels come from one pass."""

    net: Network
    tangents: ClassVar[tuple[bool, ...]] = (False, True)

    def result_dtype(self, dtype: Any) -> Any:
        return np.result_type(dtype, np.complex64)


class BothKernels(NamedTuple):
    """The tuple holds both kernels at the same inputs, as arrays of one shape."""

    nngp: Float[Array, "..."]
    ntk: Float[Array, "..."]


@final
@dataclass(frozen=True)
class Limits:
    """Both kernels of a network are computed in one pass over its layers. Made by `limits`.

    Methods, arguments, shapes and errors are those of `Kernel`.
    """

    net: Network

    def gram(self, X: Float[Array, "n d"]) -> BothKernels:
        """Compute (Sigma^L, Theta^L) of all pairs of rows, each (n, n)."""
        return _split(_Both(self.net).gram(X))

    def cross(self, X: Float[Array, "n d"], Y: Float[Array, "m d"]) -> BothKernels:
        """Compute (Sigma^L, Theta^L) of the rows of X and those of Y, each (n, m)."""
        return _split(_Both(self.net).cross(X, Y))

    def diag(self, X: Float[Array, "n d"]) -> BothKernels:
        """Compute (Sigma^L, Theta^L) of every row with itself, each (n,)."""
        return _split(_Both(self.net).diag(X))


def _split(values: Array) -> BothKernels:
    """Return real and imaginary parts; a NumPy matrix comes as these two already."""
    if values.dtype.kind == "c":
        return BothKernels(values.real, values.imag)
    return BothKernels(values[0], values[1])


def limits(net: Network) -> Limits:
    """Return both kernels of a network, for the price of little more than one: `limits(net).gram(X)` -> (nngp, ntk).

    Raises: as `ntk`.
    """
    return Limits(ntk(net).net)


def nngp(net: Network) -> NNGP:
    """Sigma^1 = (w^2/n_0) x.x' + beta^2, Sigma^{l+1} = w^2 E[phi(u) phi(v)] + beta^2, (u, v) ~ N(0, Sigma^l).

    The covariance of the outputs as all hidden widths tend to infinity (w = weight_std, beta = bias_std).
    Source: Theorem 2.6 of the paper; Jacot et al. 2018, Proposition 1.

    Raises:
        TypeError: net is not a Network.
        ValueError: the parameterisation is "mean_field" or "mup", whose outputs tend to 0.
    """
    if _network(net).parameterization in ("mean_field", "mup"):
        kind = net.parameterization.replace("_", "-")
        raise ValueError(f'the outputs of {kind} networks tend to 0; pass wl.mlp(..., parameterization="ntk").')
    return NNGP(net)


def ntk(net: Network) -> NTK:
    """Theta^1 = Sigma^1, Theta^{l+1} = w^2 Theta^l E[phi'(u) phi'(v)] + Sigma^{l+1}, (u, v) ~ N(0, Sigma^l).

    The limit of the neural tangent kernel in the NTK parameterisation, constant in training (w = weight_std).
    Source: Theorem 4.1 of the paper, corrected; Jacot et al. 2018, Theorem 1.

    Raises:
        TypeError: net is not a Network.
        ValueError: an activation jumps, so that E[phi'(u) phi'(v)] diverges as u -> v: there is no limit; "mean_field"
            and "mup", or "standard" without a base_width, whose kernel grows like the width.
    """
    if _network(net).parameterization in ("mean_field", "mup"):
        raise ValueError(
            f"the tangent kernel of {net.parameterization.replace('_', '-')} networks changes in training at every "
            f"width, features are learned: no kernel is their limit; train one with wl.train, "
            'pass parameterization="ntk", or take the kernel of one network: wl.empirical_ntk(net.apply, params).'
        )
    if net.parameterization == "standard" and net.base_width is None:
        raise ValueError(
            "Theta of networks in the standard parameterisation grows like the width; pass base_width=N, the width of "
            'their usual scales, or parameterization="ntk", or take wl.empirical_ntk(net.apply, params).'
        )
    for activation in net.activations():
        if not activation.has_ntk:
            raise ValueError(
                f"a network with the activation {activation.name!r} has no neural tangent kernel: phi jumps, and "
                f"E[phi'(u) phi'(v)] diverges as u -> v. Its NNGP kernel exists: wl.nngp(net)."
            )
    return NTK(net)


def _network(net: Network) -> Network:
    if not isinstance(net, Network):
        raise TypeError(f"a network is needed, e.g. wl.mlp(depth=3); got {type(net).__name__}.")
    return net
