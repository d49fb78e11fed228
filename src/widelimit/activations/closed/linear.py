"""phi(u) = A |u| + B u: the identity, relu, leaky relu, abs."""

import math
from typing import ClassVar, final

import jax
import jax.numpy as jnp

from widelimit import series, validation
from widelimit.activations.base import Activation, Memo, parameter
from widelimit.pytrees import pytree
from widelimit.shapes import Float
from widelimit.signals import Correlation, Variance

SHALLOW = 5
"""Depth up to which the loop over layers is written out: in one of XLA's it is 2.6 times slower in quick programs."""


def correlate_linear_pieces(bend: float | jax.Array, correlation: Correlation) -> tuple[Correlation, jax.Array]:
    """Compute the pair map of phi(u) = A|u| + B u, with bend = A^2/(A^2 + B^2).

    rho_after = bend kappa(theta) + (1 - bend) cos(theta), kappa = (2/pi) (sin(theta) + (pi/2 - theta) cos(theta)) the
    dual of abs, which has the period pi: so it is taken at the angle psi in [0, pi/2] to the nearer of +-1. Cho and
    Saul 2009, eq. (6), for bend = 1/2; Tsuchida et al. 2018, arXiv 1711.09090, for all.
    """
    gap = correlation.gap
    psi, segment = series.angle_from_gap(gap)
    folded = gap - (2 / math.pi) * segment
    slope = 1 - (2 / math.pi) * psi
    after = Correlation(
        bend * folded + (1 - bend) * correlation.one_minus, bend * (2 - folded) + (1 - bend) * correlation.one_plus
    )
    return after, bend * jnp.where(correlation.positive, slope, -slope) + (1 - bend)


@final
@pytree
class Identity(Activation):
    """phi(u) = u: a deep linear network."""

    name: ClassVar[str] = "identity"

    def __call__(self, u: Float[jax.Array, "..."]) -> Float[jax.Array, "..."]:
        return u

    def encode(self, signal: Variance) -> tuple[Variance, Memo]:
        return signal, ()

    def correlate(self, x: Memo, y: Memo, correlation: Correlation) -> tuple[Correlation, jax.Array]:
        return correlation, jnp.ones_like(correlation.one_minus)


@final
@pytree
class Relu(Activation):
    """phi(u) = max(u, 0). Dual: s s' (sin(theta) + (pi - theta) cos(theta))/(2 pi).

    Source: Cho and Saul 2009, eq. (6).
    """

    name: ClassVar[str] = "relu"
    quick_depth: ClassVar[int] = SHALLOW

    def __call__(self, u: Float[jax.Array, "..."]) -> Float[jax.Array, "..."]:
        return jax.nn.relu(u)

    def encode(self, signal: Variance) -> tuple[Variance, Memo]:
        return Variance(signal.value / 2, signal.exponent), ()

    def correlate(self, x: Memo, y: Memo, correlation: Correlation) -> tuple[Correlation, jax.Array]:
        return correlate_linear_pieces(0.5, correlation)


@final
@pytree
class LeakyRelu(Activation):
    """phi(u) = u for u >= 0, slope * u below. Source: Tsuchida et al. 2018, arXiv 1711.09090.

    Args:
        slope: slope of the negative part, in [-1e6, 1e6]; 0 is relu, -1 is abs, 1 is the identity.

    Raises:
        ValueError: slope is NaN, infinite or out of range; TypeError: not a real number.
    """

    slope: float | jax.Array = parameter(0.01, validation.offset)
    name: ClassVar[str] = "leaky_relu"
    quick_depth: ClassVar[int] = SHALLOW

    def __call__(self, u: Float[jax.Array, "..."]) -> Float[jax.Array, "..."]:
        return jnp.where(u >= 0, u, self.slope * u)

    def encode(self, signal: Variance) -> tuple[Variance, Memo]:
        slope = jnp.asarray(self.slope, signal.value.dtype)
        return Variance(signal.value * ((1 + slope**2) / 2), signal.exponent), ()

    def correlate(self, x: Memo, y: Memo, correlation: Correlation) -> tuple[Correlation, jax.Array]:
        slope = jnp.asarray(self.slope, correlation.one_minus.dtype)
        return correlate_linear_pieces((1 - slope) ** 2 / (2 + 2 * slope**2), correlation)


@final
@pytree
class ABRelu(Activation):
    """phi(u) = a min(u, 0) + b max(u, 0). Source: Tsuchida et al. 2018, arXiv 1711.09090.

    Dual: (b^2 + a^2)/2 s s' times a mixture of that of abs, with weight (b - a)^2/(2 (a^2 + b^2)), and of cos(theta).

    Args:
        a: slope of the negative part, in [-1e6, 1e6].
        b: slope of the positive part, in [-1e6, 1e6]; the larger of the two is at least 1e-6 in size.

    Raises:
        ValueError: a or b is NaN, infinite or out of range; TypeError: not real numbers.
    """

    a: float | jax.Array
    b: float | jax.Array
    name: ClassVar[str] = "abrelu"
    quick_depth: ClassVar[int] = SHALLOW

    def __post_init__(self) -> None:
        for name, slope in (("a", self.a), ("b", self.b)):
            validation.offset(name, slope)
        least = 1 / validation.LARGEST_FACTOR
        if not validation.traced(self.a, self.b) and max(abs(float(self.a)), abs(float(self.b))) < least:
            raise ValueError(f"a or b must be at least {least:g} in size, got {self.a:g} and {self.b:g}.")

    def __call__(self, u: Float[jax.Array, "..."]) -> Float[jax.Array, "..."]:
        return jnp.where(u >= 0, self.b * u, self.a * u)

    def encode(self, signal: Variance) -> tuple[Variance, Memo]:
        a, b = (jnp.asarray(v, signal.value.dtype) for v in (self.a, self.b))
        return Variance(signal.value * ((a**2 + b**2) / 2), signal.exponent).normalise(), ()

    def correlate(self, x: Memo, y: Memo, correlation: Correlation) -> tuple[Correlation, jax.Array]:
        a, b = (jnp.asarray(v, correlation.one_minus.dtype) for v in (self.a, self.b))
        return correlate_linear_pieces((b - a) ** 2 / (2 * (a**2 + b**2)), correlation)


@final
@pytree
class Abs(Activation):
    """phi(u) = |u|. Source: Tsuchida et al. 2018, arXiv 1711.09090."""

    name: ClassVar[str] = "abs"
    quick_depth: ClassVar[int] = SHALLOW

    def __call__(self, u: Float[jax.Array, "..."]) -> Float[jax.Array, "..."]:
        return jnp.abs(u)

    def encode(self, signal: Variance) -> tuple[Variance, Memo]:
        return signal, ()

    def correlate(self, x: Memo, y: Memo, correlation: Correlation) -> tuple[Correlation, jax.Array]:
        return correlate_linear_pieces(1.0, correlation)
