"""Encodings of positions are added to signals, as attention and averages do not depend on the order of sites."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np

from widelimit import validation
from widelimit.activations.base import Memo
from widelimit.architecture.layers import written
from widelimit.architecture.sites import Sites
from widelimit.architecture.state import Layer, Mean, PairState, Params, Ranges, Scalar, Shape
from widelimit.interpreter import interpreted
from widelimit.pytrees import changed, pytree
from widelimit.shapes import Float
from widelimit.signals import Correlation, Variance, add_variances, deviation_of, multiply, sum_signals, variance_of

ENCODINGS = ("sinusoidal", "learned")
SLOWEST = 1e4
"""The longest wavelength over 2 pi of sinusoidal encodings (Vaswani et al. 2017, arXiv 1706.03762)."""


class _Shares(NamedTuple):
    """The shares of signal and encoding in the deviation after the layer have squares that add up to 1."""

    signal: jax.Array
    encoding: jax.Array


@final
@pytree
@dataclass(frozen=True)
class PositionalEncoding(Layer):
    """The map is a(p) -> a(p) + std/sqrt(k) W e(p): vectors e(p) in R^k of the positions, with weights W of their own.

    Infinite width: Sigma(p, q) <- Sigma(p, q) + C(p, q), C = std^2 e(p).e(q)/k, and Theta likewise, as W is trained.
    Vectors added as they are, as in Vaswani et al. 2017, have the limits of Frozen(PositionalEncoding()) where a layer
    with weights follows; through W signals are Gaussian whatever follows.

    Args:
        encoding: "sinusoidal": sines and cosines of `features` / 2 wavelengths from 2 pi to 2e4 pi, for sites in a row;
            "learned": every position has a vector of its own, C = std^2 for p = q and 0 else; or an array (sites, k).
            Of a covariance C it is sqrt(k) times its Cholesky factor, (k, k).
        std: > 0.
        features: k of sinusoidal encodings, even.

    Raises:
        ValueError, TypeError: another encoding; fewer positions than sites (from `network`).
    """

    encoding: Any = field(default="sinusoidal", metadata={"static": True})
    std: Scalar = 1.0
    features: int = field(default=64, metadata={"static": True})
    trained: bool = field(default=True, metadata={"static": True}, init=False)
    sites: Sites | None = field(default=None, metadata={"static": True}, init=False)
    """Set by `network`, which knows the sites before the layer."""

    def __post_init__(self) -> None:
        validation.deviation("std", self.std)
        if isinstance(self.encoding, str):
            validation.choice("encoding", self.encoding, ENCODINGS)
        else:
            table = np.asarray(validation.points("encoding", np.asarray(self.encoding)), np.float64)
            object.__setattr__(self, "encoding", tuple(map(tuple, table.tolist())))
        if validation.integer("features", self.features, at_least=2, below=2**20) % 2:
            raise ValueError(f"features must be even, a sine and a cosine of each wavelength; got {self.features}.")

    def __repr__(self) -> str:
        first = "" if self.encoding == "sinusoidal" else f"encoding={self.encoding!r}"
        last = "" if self.features == 64 else f"features={self.features}"
        numbers = written("", {"std": (self.std, 1.0)})[1:-1]
        text = f"PositionalEncoding({', '.join(filter(None, [first, numbers, last]))})"
        return text if self.trained else f"Frozen({text})"

    def place(self, sites: Sites, path: str) -> tuple[PositionalEncoding, Sites]:
        count = math.prod(sites.sizes)
        if not sites.sizes:
            raise ValueError(
                f"{path}: PositionalEncoding needs inputs with sites, as inputs=wl.Sequence(length, features)."
            )
        if self.encoding == "sinusoidal" and len(sites.sizes) > 1:
            raise ValueError(
                f"{path}: sinusoidal encodings are for sites in a row, and the inputs have {sites.sizes}; pass "
                f'encoding="learned" or an array ({count}, k).'
            )
        if not isinstance(self.encoding, str) and len(self.encoding) < count:
            raise ValueError(f"{path}: encoding has {len(self.encoding)} positions, and the inputs have {count} sites.")
        return changed(self, sites=sites), sites

    @property
    def vectors(self) -> np.ndarray:
        """Return e(p) of every site, (sites, k). Raises: ValueError: no network has set the sites."""
        if self.sites is None:
            raise ValueError("PositionalEncoding works within wl.network(..., inputs=wl.Sequence(length, features)).")
        count = math.prod(self.sites.sizes)
        if self.encoding == "learned":
            return np.asarray(np.sqrt(count) * np.eye(count))
        if self.encoding != "sinusoidal":
            return np.asarray(self.encoding)[:count]
        waves = SLOWEST ** -(np.arange(self.features // 2) / (self.features // 2))
        angles = np.arange(count)[:, None] * waves
        return np.asarray(np.sqrt(2) * np.concatenate([np.sin(angles), np.cos(angles)], axis=1))

    def freeze(self) -> PositionalEncoding:
        return changed(self, trained=False)

    def standardise(self) -> PositionalEncoding:
        raise ValueError("PositionalEncoding has the NTK parameterisation only; leave parameterization out.")

    def init(self, key: jax.Array, inputs: int, outputs: int, dtype: Any) -> Params:
        return {"positions": jax.random.normal(key, (inputs, self.vectors.shape[1]), dtype)}

    def count(self, shape: Shape) -> int:
        return int(shape[0] * self.vectors.shape[1])

    def check(self, params: Params, inputs: int | None, axes: int) -> int | None:
        width, k = np.shape(params["positions"])[axes:]
        if (inputs is not None and width != inputs) or k != self.vectors.shape[1]:
            raise ValueError("sizes that do not fit")
        return int(width)

    def apply(self, params: Params, signals: Float[jax.Array, "n *sites width"]) -> Float[jax.Array, "n *sites width"]:
        drawn = params["positions"] if self.trained else jax.lax.stop_gradient(params["positions"])
        vectors = jnp.asarray(self.vectors / math.sqrt(self.vectors.shape[1]), signals.dtype)
        added = self.std * jnp.matmul(vectors, drawn.T, precision="highest")
        return signals + added.reshape(signals.shape[1:])

    @property
    def _roots(self) -> np.ndarray:
        """Return the root mean square of e(p), (sites,)."""
        return np.asarray(np.sqrt(np.mean(self.vectors**2, axis=1)))

    def encode(self, signal: Variance) -> tuple[Variance, Memo]:
        axes = signal.value.ndim - 1
        roots = jnp.asarray(self._roots.reshape(*signal.value.shape[:axes], 1), signal.value.dtype)
        encoding = multiply(variance_of(jnp.broadcast_to(roots, signal.value.shape)), self.std)
        after, *shares = add_variances(signal, encoding)
        return after, _Shares(*shares)

    def encode_with_mean(self, signal: Variance, mean: Mean) -> tuple[Variance, Mean, Memo]:
        after, memo = self.encode(signal)
        return after, None if mean is None else lambda: memo.signal * mean(), memo

    def pair(self, x: _Shares, y: _Shares, state: PairState) -> PairState:
        encoding = self._correlation(state.tangent)
        correlation = sum_signals(x, y, (state.correlation, encoding))
        tangent = x.signal * y.signal * state.tangent
        own = x.encoding * y.encoding * encoding.rho if self.trained else 0
        return PairState(correlation, tangent + own)

    def _correlation(self, like: jax.Array) -> Correlation:
        """Return the correlation of the encodings of pairs of sites, in the shape of a state, with axes of 1."""
        if self.sites is None or not self.sites.across:
            return Correlation(jnp.zeros_like(like), jnp.full_like(like, 2))
        roots, sizes = self._roots, self.sites.sizes
        units = self.vectors / np.where(roots > 0, roots, 1)[:, None]
        sides = [np.mean((units[:, None] + sign * units) ** 2, axis=-1) / 2 for sign in (-1, 1)]
        shape = (*sizes, *sizes, *[1] * (like.ndim - 2 * len(sizes)))
        return Correlation(*(jnp.asarray(side.reshape(shape), like.dtype) for side in sides))

    def survey(self, signal: Variance, mean: Mean, path: tuple[Any, ...], ranges: Ranges) -> tuple[Variance, Mean]:
        deviations, roots = interpreted(deviation_of)(signal), float(self.std) * self._roots
        low, high = np.hypot(deviations.min(), roots.min()), np.hypot(deviations.max(), roots.max())
        return interpreted(variance_of)(np.linspace(low, high, len(deviations))), mean
