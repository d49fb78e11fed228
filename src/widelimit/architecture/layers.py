"""Each class of layers states its finite map (init, apply) and its infinite-width map (encode, pair) side by side."""

from __future__ import annotations

import abc
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np

from widelimit import validation
from widelimit.activations.base import Activation, Memo
from widelimit.activations.closed.linear import Identity
from widelimit.activations.names import activation as resolve
from widelimit.activations.names import name_or_repr
from widelimit.architecture.sites import Sites
from widelimit.architecture.state import (
    Change,
    Layer,
    Mean,
    PairState,
    Params,
    Ranges,
    Scalar,
    Shape,
    Traits,
    Unweighted,
)
from widelimit.interpreter import interpreted
from widelimit.pytrees import pytree
from widelimit.series import safe_divide, safe_sqrt
from widelimit.shapes import Float
from widelimit.signals import (
    HALF_PRECISION,
    Correlation,
    Variance,
    add_variances,
    deviation_of,
    exponent_of,
    multiply,
    power_of_two,
    sum_signals,
    variance_of,
)

INTERNAL = {"static": True, "internal": True}
"""Fields that the network sets; they are not written in its text."""


class _DenseMemo(NamedTuple):
    """The shares in the deviation after the layer have signal_share^2 + bias_share^2 = 1."""

    signal_share: jax.Array
    bias_share: jax.Array


class Affine(Layer, abc.ABC):
    """The layer has random weights over all signals: its outputs are Gaussian and of mean 0."""

    random: ClassVar[bool] = True

    def encode_with_mean(self, signal: Variance, mean: Mean) -> tuple[Variance, Mean, Memo]:
        after, memo = self.encode(signal)
        return after, None, memo

    @property
    def depth(self) -> int:
        return 1

    def traits(self, before: Traits, path: str) -> Traits:
        return Traits(gaussian=True, centred=True, random=True)


def weigh(signal: Variance, factor: Scalar) -> Variance:
    """Return the variance of factor * u, right to rounding over any number of layers."""
    # w^2 = high + low with `high` exact: the rounding of w^2 would be the same at every layer and add up.
    size = jnp.asarray(factor, signal.value.dtype)
    power = exponent_of(jax.lax.stop_gradient(size))
    weight = size * power_of_two(-power, size.dtype)
    head = jax.lax.reduce_precision(weight, *HALF_PRECISION[weight.dtype.name])
    low = (weight - head) * (weight + head)
    return Variance(signal.value * head**2 + signal.value * low, signal.exponent + power)


@final
@pytree
@dataclass(frozen=True)
class Dense(Affine):
    """The map is a -> (weight_std/sqrt(width)) W a + bias_std b, W and b from N(0, 1): the NTK parameterisation.

    `standard` moves the scales into the law of the parameters, a -> W a + b with W from N(0, weight_std^2/width) and b
    from N(0, bias_std^2): the same functions at initialisation, another gradient. bias_std = 0 is no bias in both.
    Infinite width: Sigma <- weight_std^2 E[a a'] + bias_std^2, Theta <- weight_std^2 Theta + Sigma.
    With base_width N the standard map is a -> sqrt(N/width) W a + b, W from N(0, weight_std^2/N): Theta <- weight_std^2
    Theta + N E[a a'] + 1 (Sohl-Dickstein et al. 2020, arXiv 2001.07301). A learning_rate c has parameters sqrt(c) times
    as steep, and c times the layer's own part of Theta; rate_by multiplies c by a size over base_width ("mup").
    Source: section 2.2 and Theorem 4.1 (corrected) of the paper; Jacot et al. 2018, arXiv 1806.07572, section 2 and
    Theorem 1.
    """

    weight_std: Scalar = 1.0
    bias_std: Scalar = 0.0
    standard: bool = field(default=False, metadata=INTERNAL)
    trained: bool = field(default=True, metadata=INTERNAL)
    base_width: float | None = field(default=None, metadata=INTERNAL)
    learning_rate: float = field(default=1.0, metadata=INTERNAL)
    rate_by: str = field(default="", metadata=INTERNAL)
    simple: ClassVar[bool] = True

    def __post_init__(self) -> None:
        validation.choice("rate_by", self.rate_by, ("", "inputs", "outputs"))
        validation.finite_scalar("weight_std", self.weight_std, above=0.0)
        validation.finite_scalar("bias_std", self.bias_std, at_least=0.0)
        validation.flag("standard", self.standard)
        validation.flag("trained", self.trained)
        validation.finite_scalar("learning_rate", self.learning_rate, above=0.0)
        if self.base_width is not None:
            validation.finite_scalar("base_width", self.base_width, above=0.0)

    def __repr__(self) -> str:
        text = written("Dense", {"weight_std": (self.weight_std, 1.0), "bias_std": (self.bias_std, 0.0)})
        return text if self.trained else f"Frozen({text})"

    def init(self, key: jax.Array, inputs: int, outputs: int, dtype: Any) -> Params:
        weight_key, bias_key = jax.random.split(key)
        weight = jax.random.normal(weight_key, (outputs, inputs), dtype)
        bias = jax.random.normal(bias_key, (outputs,), dtype)
        if self.standard:
            weight = weight * jnp.asarray(self.weight_std / math.sqrt(self.base_width or inputs), dtype)
            bias = bias * jnp.asarray(self.bias_std, dtype)
        if (rate := self._rate(inputs, outputs)) != 1:
            weight, bias = (leaf * jnp.asarray(rate**-0.5, dtype) for leaf in (weight, bias))
        return {"weight": weight, "bias": bias}

    def _rate(self, inputs: int, outputs: int) -> float:
        size = {"": 1.0, "inputs": inputs, "outputs": outputs}[self.rate_by]
        return self.learning_rate * (size / (self.base_width or 1.0) if self.rate_by else 1.0)

    def scales(self, inputs: int, outputs: int) -> tuple[Scalar, Scalar]:
        """Return the factors of W a and of b in the finite map."""
        steep = math.sqrt(self._rate(inputs, outputs))
        if self.standard:
            return steep * math.sqrt((self.base_width or inputs) / inputs), steep * jnp.sign(self.bias_std)
        return steep * self.weight_std / math.sqrt(inputs), steep * self.bias_std

    def apply(self, params: Params, signals: Float[jax.Array, "n *sites width"]) -> Float[jax.Array, "n *after width2"]:
        weight, bias = self.scales(signals.shape[-1], params["bias"].shape[-1])
        drawn = params["weight"], params["bias"]
        w, b = drawn if self.trained else jax.lax.stop_gradient(drawn)
        after = jnp.asarray(weight * jnp.matmul(signals, w.T, precision="highest") + bias * b)
        return params["watch"](self, signals, after) if "watch" in params else after  # for layer-wise kernels

    def encode(self, signal: Variance) -> tuple[Variance, Memo]:
        weighted = weigh(signal, self.weight_std)
        bias = variance_of(jnp.asarray(self.bias_std, weighted.value.dtype))
        total, signal_share, bias_share = add_variances(weighted, bias)
        return total, _DenseMemo(jnp.where(total.value > 0, signal_share, 0), bias_share)

    def pair(self, x: _DenseMemo, y: _DenseMemo, state: PairState) -> PairState:
        correlation = sum_signals((x.signal_share, x.bias_share), (y.signal_share, y.bias_share), (state.correlation,))
        common, biases = x.signal_share * y.signal_share, x.bias_share * y.bias_share
        own = self.own_tangent(correlation.rho, common * state.correlation.rho, biases, self.base_width)
        return PairState(correlation, common * state.tangent + own if self.trained else common * state.tangent)

    def own_tangent(self, rho: jax.Array, weights: jax.Array, biases: jax.Array, inputs: Scalar | None) -> jax.Array:
        """Return the layer's own part of Theta/(s s') from the parts of rho that weights and biases have."""
        if not self.standard or inputs is None:
            return rho if self.learning_rate == 1 else self.learning_rate * rho
        bias, weight = (jnp.asarray(scale, rho.dtype) for scale in (self.bias_std, self.weight_std))
        return self.learning_rate * (weights * (inputs / weight**2) + safe_divide(biases, bias**2))

    def count(self, shape: Shape) -> int:
        return int((shape[0] + 1) * shape[1])

    def check(self, params: Params, inputs: int | None, axes: int) -> int | None:
        outputs, own = np.shape(params["weight"])[axes:]
        if (inputs is not None and own != inputs) or np.shape(params["bias"])[axes:] != (outputs,):
            raise ValueError("sizes that do not fit")
        return int(outputs)

    def freeze(self) -> Dense:
        return replace(self, trained=False)

    def standardise(self) -> Dense:
        return replace(self, standard=True)

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
        exponent = jnp.clip(jnp.where(largest == 0, 0, exponent_of(largest)), -limit, limit)
        scaled = X * power_of_two(-exponent, X.dtype)[:, None]
        square = jnp.sum(scaled**2, axis=1)
        variance, memo = self.encode(Variance(square / X.shape[1], exponent))
        at_zero = self.weight_std / math.sqrt(X.shape[1]) * safe_divide(jnp.ones_like(square), variance.deviation)
        weight = jnp.where(square > 0, safe_divide(memo.signal_share, safe_sqrt(square)), at_zero)
        return jnp.concatenate([scaled * weight[:, None], memo.bias_share[:, None]], axis=1), variance


@final
@pytree
@dataclass(frozen=True)
class Activate(Unweighted):
    """The map is a -> phi(a). Infinite width: Theta <- Theta E[phi'(u) phi'(v)].

    Args:
        activation: a name, an `Activation` or a function, as `widelimit.activation` takes.
        refined: apply `Activation.refine`, which kinks of other activations need; networks of one activation do not.
    """

    activation: Activation
    refined: bool = field(default=True, metadata=INTERNAL)
    simple: ClassVar[bool] = True

    def __init__(self, activation: Any, *, refined: bool = True) -> None:
        object.__setattr__(self, "activation", resolve(activation))
        object.__setattr__(self, "refined", refined)

    def __repr__(self) -> str:
        return f"Activate({name_or_repr(self.activation)})"

    def apply(self, params: Params, signals: Float[jax.Array, "n *sites width"]) -> Float[jax.Array, "n *sites width"]:
        return self.activation(signals)

    def encode(self, signal: Variance) -> tuple[Variance, Memo]:
        return self.activation.encode(signal)

    def encode_with_mean(self, signal: Variance, mean: Mean) -> tuple[Variance, Mean, Memo]:
        after, memo = self.activation.encode(signal)
        if isinstance(self.activation, Identity):
            return after, mean, memo
        return after, lambda: mean_share(self.activation, signal, after), memo

    def pair(self, x: Memo, y: Memo, state: PairState) -> PairState:
        correlation, susceptibility = self.activation.correlate(x, y, state.correlation)
        if self.refined:
            correlation = self.activation.refine(x, y, state.correlation, correlation)
        return PairState(correlation, susceptibility * state.tangent)

    def itself(self, x: Memo, state: PairState) -> PairState:
        correlation, susceptibility = self.activation.itself(x, state.correlation)
        return PairState(correlation, susceptibility * state.tangent)

    @property
    def numbers_per_input(self) -> int:
        return self.activation.numbers_per_input

    def activations(self) -> Iterator[Activation]:
        yield self.activation

    @property
    def multiple(self) -> Scalar | None:
        return 1.0 if isinstance(self.activation, Identity) else None

    def traits(self, before: Traits, path: str) -> Traits:
        if isinstance(self.activation, Identity):
            return before
        if not before.gaussian:
            raise ValueError(
                f"{path}: an activation needs Gaussian signals, and those before it are none at infinite width; put a "
                f"Dense layer between: wl.layers.Dense(), {name_or_repr(self.activation)}. Masked signals are a mix "
                f"with zeros: where phi(0) = 0, Dropout(keep), phi is in training Scale(1/keep), phi, Scale(keep), "
                f"Dropout(keep), of relu phi, Dropout(keep)."
            )
        return Traits(gaussian=False, centred=False, random=before.random)

    def survey(self, signal: Variance, mean: Mean, path: tuple[Any, ...], ranges: Ranges) -> tuple[Variance, Mean]:
        sizes = interpreted(deviation_of)(signal)
        low, high = ranges.get(path, (np.inf, 0.0))
        ranges[path] = min(low, sizes.min()), max(high, sizes.max())
        after = self.activation.second_moment(signal)
        if isinstance(self.activation, Identity):
            return after, mean
        return after, lambda: interpreted(mean_share)(self.activation, signal, after)

    def map_activations(self, change: Change, path: tuple[Any, ...]) -> Activate:
        return replace(self, activation=change(self.activation, path))

    def without_refinement(self) -> Activate:
        return replace(self, refined=False)


def mean_share(activation: Activation, signal: Variance, after: Variance) -> jax.Array:
    """Compute E[phi(u)]/sqrt(E[phi(u)^2]) for u ~ N(0, signal); 0 where both are 0."""
    mean = jnp.zeros_like(signal.deviation) if activation.centred else activation.mean(signal.deviation)
    return jnp.clip(safe_divide(mean, after.deviation), -1, 1)


@final
@pytree
@dataclass(frozen=True)
class Scale(Unweighted):
    """The map is a -> factor a, factor > 0 a number that the search for hyper-parameters sees."""

    factor: Scalar
    simple: ClassVar[bool] = True
    on_inputs: ClassVar[bool] = True

    def __post_init__(self) -> None:
        validation.deviation("factor", self.factor)

    def __repr__(self) -> str:
        return written("Scale", {"factor": (self.factor, None)})

    @property
    def multiple(self) -> Scalar | None:
        return self.factor

    def apply(self, params: Params, signals: Float[jax.Array, "n *sites width"]) -> Float[jax.Array, "n *sites width"]:
        return signals * jnp.asarray(self.factor, signals.dtype)

    def encode(self, signal: Variance) -> tuple[Variance, Memo]:
        return multiply(signal, self.factor), ()

    def pair(self, x: Memo, y: Memo, state: PairState) -> PairState:
        return state


@final
@pytree
@dataclass(frozen=True)
class Dropout(Unweighted):
    """The map is a -> a mask/keep, mask_i = 1 with probability `keep` for every signal of every input, else 0.

    Infinite width: the mean square is divided by keep, covariances stay, so that K(x, x) is another value than that of
    two equal rows: gram(X) differs from cross(X, X) on its diagonal. Without a key `apply` draws no masks, as at
    evaluation. Schoenholz et al. 2017, arXiv 1611.01232, section 5.
    """

    keep: float = field(metadata={"static": True})
    simple: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < validation.finite_scalar("keep", self.keep) <= 1:
            raise ValueError(f"keep is a probability in (0, 1], got {self.keep:g}.")

    def __repr__(self) -> str:
        return f"Dropout({float(self.keep)!r})"

    def apply(self, params: Params, signals: Float[jax.Array, "n *sites width"]) -> Float[jax.Array, "n *sites width"]:
        return signals

    def place(self, sites: Sites, path: str) -> tuple[Layer, Sites]:
        if sites.across and self.masks:
            raise ValueError(f"{path}: Dropout beside an average over sites, whose masks differ, is not supported.")
        return self, sites

    @property
    def masks(self) -> bool:
        return self.keep < 1

    def draw_and_apply(self, params: Params, signals: Float[jax.Array, "n *sites width"], key: jax.Array) -> jax.Array:
        return jnp.where(jax.random.bernoulli(key, self.keep, signals.shape), signals / self.keep, 0)

    def encode(self, signal: Variance) -> tuple[Variance, Memo]:
        return Variance(signal.value / self.keep, signal.exponent).normalise(), ()

    def encode_with_mean(self, signal: Variance, mean: Mean) -> tuple[Variance, Mean, Memo]:
        after, memo = self.encode(signal)
        return after, None if mean is None else lambda: mean() * math.sqrt(self.keep), memo

    def pair(self, x: Memo, y: Memo, state: PairState) -> PairState:
        gap, sum_ = (1 - self.keep + self.keep * side for side in state.correlation)
        return PairState(Correlation(gap, sum_), self.keep * state.tangent)

    def itself(self, x: Memo, state: PairState) -> PairState:
        return state

    def traits(self, before: Traits, path: str) -> Traits:
        return before._replace(gaussian=before.gaussian and self.keep == 1)


def written(name: str, given: dict[str, tuple[Any, Any]]) -> str:
    """Return the code that makes a layer: the numbers that are not the usual ones."""
    texts = []
    for key, (value, usual) in given.items():
        number = value if isinstance(value, jax.core.Tracer) else float(value)
        if isinstance(number, jax.core.Tracer) or number != usual:
            texts.append(f"{key}={number!r}")
    return f"{name}({', '.join(texts)})"
