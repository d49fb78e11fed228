"""Each class of layers states its finite map (init, apply) and its infinite-width map (encode, pair) side by side."""

import abc
import math
from dataclasses import field
from typing import Any, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np

from widelimit import signals
from widelimit.activations.base import Activation, Memo
from widelimit.pytrees import pytree
from widelimit.series import safe_divide, safe_sqrt
from widelimit.shapes import Float
from widelimit.signals import Correlation, Variance

Scalar = float | jax.Array
Params = Any


class PairState(NamedTuple):
    """The state of a pair of inputs between two layers is free of scale.

    `correlation` is that of the signals, `tangent` is Theta/(s s'), s and s' the signals' standard
    deviations.
    """

    correlation: Correlation
    tangent: jax.Array


class Layer(abc.ABC):
    """A layer of a network is a finite map on (n, width) signals and an infinite map on Gaussian signals."""

    @abc.abstractmethod
    def init(self, key: jax.Array, inputs: int, outputs: int, dtype: Any) -> Params:
        """Draw random parameters (a pytree) of the finite layer."""

    @abc.abstractmethod
    def apply(self, params: Params, signals: Float[jax.Array, "n width"]) -> Float[jax.Array, "n width2"]:
        """Apply the finite map."""

    @abc.abstractmethod
    def encode(self, signal: Variance) -> tuple[Variance, Memo]:
        """Return the variance after the layer, and the data of the input that `pair` needs."""

    @abc.abstractmethod
    def pair(self, x: Memo, y: Memo, state: PairState) -> PairState:
        """Apply the infinite map to pairs; elementwise on arrays that broadcast."""

    @property
    def numbers_per_input(self) -> int:
        """Return about how many numbers a memo holds; kernels state their sizes from it."""
        return 2

    def itself(self, x: Memo, state: PairState) -> PairState:
        """Apply `pair` to every input with itself."""
        return self.pair(x, x, state)


class _DenseMemo(NamedTuple):
    """The shares in the deviation after the layer have signal_share^2 + bias_share^2 = 1."""

    signal_share: jax.Array
    bias_share: jax.Array


@final
@pytree
class Dense(Layer):
    """The map is a -> (weight_std/sqrt(width)) W a + bias_std b, W and b from N(0, 1): the NTK parameterisation.

    `standard` moves the scales into the law of the parameters, a -> W a + b with W from N(0, weight_std^2/width) and b
    from N(0, bias_std^2): the same functions at initialisation, another gradient. bias_std = 0 is no bias in both.
    Infinite width: Sigma <- weight_std^2 E[a a'] + bias_std^2, Theta <- weight_std^2 Theta + Sigma.
    Source: section 2.2 and Theorem 4.1 (corrected) of the paper; Jacot et al. 2018, arXiv 1806.07572, section 2 and
    Theorem 1.
    """

    weight_std: Scalar
    bias_std: Scalar
    standard: bool = field(default=False, metadata={"static": True})

    def init(self, key: jax.Array, inputs: int, outputs: int, dtype: Any) -> Params:
        weight_key, bias_key = jax.random.split(key)
        weight = jax.random.normal(weight_key, (outputs, inputs), dtype)
        bias = jax.random.normal(bias_key, (outputs,), dtype)
        if self.standard:
            weight = weight * jnp.asarray(self.weight_std / math.sqrt(inputs), dtype)
            bias = bias * jnp.asarray(self.bias_std, dtype)
        return {"weight": weight, "bias": bias}

    def scales(self, inputs: int) -> tuple[Scalar, Scalar]:
        """Return the factors of W a and of b in the finite map."""
        if self.standard:
            return 1.0, jnp.sign(self.bias_std)
        return self.weight_std / math.sqrt(inputs), self.bias_std

    def apply(self, params: Params, signals: Float[jax.Array, "n width"]) -> Float[jax.Array, "n width2"]:
        weight, bias = self.scales(signals.shape[1])
        sums = jnp.matmul(signals, params["weight"].T, precision="highest")
        return jnp.asarray(weight * sums + bias * params["bias"])

    def encode(self, signal: Variance) -> tuple[Variance, Memo]:
        # w^2 = high + low with `high` exact: the rounding of w^2 would be the same at every layer and add up.
        size = jnp.asarray(self.weight_std, signal.value.dtype)
        power = signals.exponent_of(jax.lax.stop_gradient(size))
        weight = size * signals.power_of_two(-power, size.dtype)
        head = jax.lax.reduce_precision(weight, *signals.HALF_PRECISION[weight.dtype.name])
        low = (weight - head) * (weight + head)
        weighted = Variance(signal.value * head**2 + signal.value * low, signal.exponent + power)
        bias = jnp.broadcast_to(jnp.asarray(self.bias_std, weight.dtype), signal.value.shape)
        total, signal_share, bias_share = signals.add_variances(weighted, signals.variance_of(bias))
        return total, _DenseMemo(jnp.where(total.value > 0, signal_share, 0), bias_share)

    def pair(self, x: _DenseMemo, y: _DenseMemo, state: PairState) -> PairState:
        correlation = signals.sum_signals(
            (x.signal_share, x.bias_share), (y.signal_share, y.bias_share), (state.correlation,)
        )
        return PairState(correlation, x.signal_share * y.signal_share * state.tangent + correlation.rho)

    def deviations(self, X: np.ndarray) -> np.ndarray:
        """Compute standard deviations of the layer's signal on raw inputs, (n,) float64, of any size a float holds."""
        X = X.astype(np.float64)
        largest = np.max(np.abs(X), axis=1)
        scale = np.where(largest > 0, largest, 1)
        with np.errstate(over="ignore", under="ignore"):
            norms = scale * np.sqrt(np.mean((X / scale[:, None]) ** 2, axis=1))
            return np.asarray(np.hypot(float(self.weight_std) * norms, float(self.bias_std)))

    def embed(self, X: Float[jax.Array, "n d"]) -> tuple[Float[jax.Array, "n d+1"], Variance]:
        """The layer on raw inputs is linear in (W, b): its signal is the vector (weight_std x/sqrt(d), bias_std).

        Returns that vector over its norm, and the norm's square. Rows are brought to order 1 by an exact power of two
        first, so that inputs of any size the dtype holds are right.
        """
        limit = 1000 if X.dtype == jnp.float64 else 120
        largest = jax.lax.stop_gradient(jnp.max(jnp.abs(X), axis=1))
        exponent = jnp.clip(jnp.where(largest == 0, 0, signals.exponent_of(largest)), -limit, limit)
        scaled = X * signals.power_of_two(-exponent, X.dtype)[:, None]
        square = jnp.sum(scaled**2, axis=1)
        variance, memo = self.encode(Variance(square / X.shape[1], exponent))
        at_zero = self.weight_std / math.sqrt(X.shape[1]) * safe_divide(jnp.ones_like(square), variance.deviation)
        weight = jnp.where(square > 0, safe_divide(memo.signal_share, safe_sqrt(square)), at_zero)
        return jnp.concatenate([scaled * weight[:, None], memo.bias_share[:, None]], axis=1), variance


@final
@pytree
class Activate(Layer):
    """The map is a -> phi(a). Infinite width: Theta <- Theta E[phi'(u) phi'(v)]."""

    activation: Activation

    def init(self, key: jax.Array, inputs: int, outputs: int, dtype: Any) -> Params:
        return ()

    def apply(self, params: Params, signals: Float[jax.Array, "n width"]) -> Float[jax.Array, "n width"]:
        return self.activation(signals)

    def encode(self, signal: Variance) -> tuple[Variance, Memo]:
        return self.activation.encode(signal)

    def pair(self, x: Memo, y: Memo, state: PairState) -> PairState:
        correlation, susceptibility = self.activation.correlate(x, y, state.correlation)
        return PairState(correlation, susceptibility * state.tangent)

    @property
    def numbers_per_input(self) -> int:
        return self.activation.numbers_per_input

    def itself(self, x: Memo, state: PairState) -> PairState:
        correlation, susceptibility = self.activation.itself(x, state.correlation)
        return PairState(correlation, susceptibility * state.tangent)
