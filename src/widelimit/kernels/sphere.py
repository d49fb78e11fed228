"""For inputs of equal norm, the kernel of a network is one Chebyshev series in the angle between two inputs.

On a sphere every layer's pair map is a function of the angle alone, and so is their composition, analytic in theta on
[0, pi] (not in rho) for kinked activations too. Its coefficients cost a few hundred pairs through the layers, once;
after that a pair costs the same at any depth and for any activation.
"""

from __future__ import annotations

import math
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np

from widelimit import series
from widelimit.activations.base import Activation
from widelimit.activations.tabulated.chebyshev import chebyshev_coefficients, chebyshev_points
from widelimit.activations.tabulated.fixed_lengths import rung, smallest_used
from widelimit.architecture.chain import Serial
from widelimit.architecture.network import Network
from widelimit.architecture.state import Layer, PairState, Ranges, through
from widelimit.arithmetic import arithmetic
from widelimit.compute.tiles import PairKernel
from widelimit.interpreter import interpreted
from widelimit.pytrees import pytree
from widelimit.shapes import Float
from widelimit.signals import Correlation, Variance, correlate_points, correlation_from_gap, scaled, variance_of

SAMPLES = 256
"""Angles at which the layers are computed for the coefficients: twice the most terms."""
LONGEST = 128
"""Most terms; a kernel that needs more (a deep chaotic network) is computed layer by layer."""
COMPILED = 500
"""Depth from which compiling the layers costs less than evaluating them by NumPy, some milliseconds each."""
_STEP = 16
"""Series have a multiple of this many terms, so that few programs are compiled."""
_LENGTHS = (80, LONGEST)
"""Terms for small data."""


@jax.jit
def _embedded(embedding: tuple[Layer, ...], X: jax.Array) -> jax.Array:
    """Return unit vectors whose inner products are the correlations after the first dense layer, (n, d + 1)."""
    return embedding[-1].embed(through(embedding[:-1], X))[0]  # type: ignore[attr-defined, no-any-return]


def _angle_series(chains: jax.Array | np.ndarray, correlation: Correlation) -> jax.Array:
    """Compute sum_k c_k T_k(2 theta/pi - 1)."""
    psi = series.angle_from_gap(correlation.gap)[0] * (2 / math.pi)
    return series.chains_sum(jnp.asarray(chains), jnp.where(correlation.positive, psi - 1, 1 - psi))


@final
@pytree
class Sphere(PairKernel):
    """The kernel of a network at inputs of one norm is one Chebyshev series in their angle; made by `sphere`."""

    embedding: tuple[Layer, ...]
    chains: jax.Array | np.ndarray
    """(8, K/8), of the kernel over s s', the output's standard deviations (`series.chebyshev_chains`)."""
    on_diagonal: jax.Array | np.ndarray
    output: Variance

    def encode(self, X: Float[jax.Array, "n d"]) -> Float[jax.Array, "n d+1"]:
        return jnp.asarray(_embedded(self.embedding, X))

    def pairwise(self, x: jax.Array, y: jax.Array, *, same: bool | jax.Array = False) -> Float[jax.Array, "n m"]:
        return self.at(correlate_points(x, y, same=same))

    def at(self, correlation: Correlation) -> Float[jax.Array, "n m"]:
        """Compute the kernel at this correlation after the first layer."""
        return scaled(_angle_series(self.chains, correlation), self.output, self.output)

    def diagonal(self, x: jax.Array) -> Float[jax.Array, " n"]:
        value = scaled(jnp.asarray(self.on_diagonal), self.output, self.output)
        return jnp.broadcast_to(value, x.shape[:1])


@final
@pytree
class SpherePair(PairKernel):
    """Two kernels of one network are one complex number: first + i second."""

    first: Sphere
    second: Sphere

    def result_dtype(self, dtype: Any) -> Any:
        return np.result_type(dtype, np.complex64)

    def encode(self, X: Float[jax.Array, "n d"]) -> Float[jax.Array, "n d+1"]:
        return self.first.encode(X)

    def pairwise(self, x: jax.Array, y: jax.Array, *, same: bool | jax.Array = False) -> Float[jax.Array, "n m"]:
        correlation = correlate_points(x, y, same=same)
        return jax.lax.complex(*(part.at(correlation) for part in (self.first, self.second)))

    def diagonal(self, x: jax.Array) -> Float[jax.Array, " n"]:
        return jax.lax.complex(self.first.diagonal(x), self.second.diagonal(x))


def _start(net: Network, gap: jax.Array, positive: jax.Array, bias: jax.Array, inputs: jax.Array) -> PairState:
    return net.start(correlation_from_gap(gap, positive), bias, inputs)


def _through(layer: Layer, variance: Variance, state: PairState, own: PairState) -> tuple[Any, ...]:
    """Take the variance, the states of pairs, and that of an input with itself through the layer."""
    after, _, memo = layer.encode_with_mean(variance, None)
    return after, layer.pair(memo, memo, state), layer.itself(memo, own)


def _ready(net: Network, variance: Variance) -> Serial:
    """Return the layers after the first with activations prepared for this variance after the first."""
    ranges = Ranges()
    net.body.survey(variance, None, (), ranges)

    def prepared(phi: Activation, path: tuple[Any, ...]) -> Activation:
        low, high = ranges[path]
        return phi.prepared(float(low), float(high), np.float64)

    return net.body.map_layers(lambda layer, at: layer.map_activations(prepared, at), ())


def _rho(correlation: Correlation) -> jax.Array:
    return correlation.rho


def sphere(
    net: Network, deviation: float, inputs: int, dtype: Any, *, tangent: bool, target: float, few_shapes: bool
) -> Sphere | None:
    """Make the NNGP (or with `tangent` the NTK) of inputs whose signals after the first layer have this deviation.

    `inputs`, the features of a row, count in the standard parameterisation alone.

    With `few_shapes` programs compiled for other deviations are used again. Returns None where LONGEST terms do not
    bring the series to `target` (relative to the diagonal).
    """
    with arithmetic(True):
        x = chebyshev_points(SAMPLES)
        psi = math.pi / 2 * (1 - np.abs(x))
        gap = np.concatenate([[0.0], 2 * np.sin(psi / 2) ** 2])
        first = np.asarray((float(net.first.bias_std) / deviation) ** 2), np.asarray(float(inputs))
        state = interpreted(_start)(net, gap, np.concatenate([[True], x < 0]), *first)
        variance = interpreted(variance_of)(np.full(1, deviation))
        ready = _ready(net, variance) if net.rtol(np.float64) else net.body
        own = interpreted(_start)(net, np.zeros(1), np.ones(1, bool), *first)
        through = interpreted(_through) if net.depth <= COMPILED else jax.jit(_through)
        variance, state, own = through(ready, variance, state, own)
        values, diagonal = (
            np.asarray(s.tangent) if tangent else interpreted(_rho)(s.correlation) for s in jax.device_get((state, own))
        )
        coefficients = chebyshev_coefficients(values[1:], 0)
        large = np.nonzero(np.abs(coefficients) > target * abs(values[0]))[0]
        terms = _STEP * math.ceil((1 + np.max(large, initial=0)) / _STEP)
        if not np.isfinite(values).all() or terms > LONGEST:
            return None
        if few_shapes:
            coefficients[terms:] = 0  # rounding errors of the samples
            terms = smallest_used(("sphere", np.dtype(dtype).name), (terms,), (rung(terms, _LENGTHS),))[0]
        output = Variance(np.asarray(variance.value[0], dtype), np.asarray(variance.exponent[0]))  # type: ignore[arg-type]
        chains = series.chebyshev_chains(coefficients[:terms]).astype(dtype)
        return Sphere(net.embedding, chains, np.asarray(diagonal[0], dtype), output)
