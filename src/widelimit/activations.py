"""Activations: the nonlinearity phi, and what it does to a pair of Gaussian signals.

To add one: a final subclass of `Activation` here, a row in tests/cases.py, an export in `__init__.pyi`.
"""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from widelimit import series, validation
from widelimit.gaussian import Gaps, Variance, gaps_from_near
from widelimit.pytrees import pytree

Trace = Any
"""What an activation wants to know of one input: a pytree of (n,) arrays, or ()."""


class Activation(abc.ABC):
    """phi and its two maps on Gaussian signals: u ~ N(0, s^2) alone, and a pair (u, v) of correlation rho.

    `encode` sees each input once; `correlate` sees pairs and must be elementwise on arrays that broadcast. Correlations
    after phi are uncentred: E[phi(u) phi(v)] / sqrt(E[phi(u)^2] E[phi(v)^2]).
    """

    name: ClassVar[str]

    @abc.abstractmethod
    def __call__(self, u: Float[jax.Array, "..."]) -> Float[jax.Array, "..."]:
        """phi(u), elementwise."""

    @abc.abstractmethod
    def encode(self, signal: Variance) -> tuple[Variance, Trace]:
        """(E[phi(u)^2], trace) for u ~ N(0, signal)."""

    @abc.abstractmethod
    def correlate(self, x: Trace, y: Trace, gaps: Gaps) -> tuple[Gaps, jax.Array]:
        """(gaps of the correlation after phi, d rho_after / d rho); x and y are the traces of the two inputs."""


def _correlate_linear_pieces(bend: float | jax.Array, gaps: Gaps) -> tuple[Gaps, jax.Array]:
    """The pair map of phi(u) = A|u| + B u, with bend = A^2/(A^2 + B^2).

    rho_after = bend kappa(theta) + (1 - bend) cos(theta), kappa = (2/pi) (sin(theta) + (pi/2 - theta) cos(theta)) the
    dual of abs, which has the period pi: so it is taken at the angle psi in [0, pi/2] to the nearer of +-1. Cho and
    Saul 2009, eq. (6), for bend = 1/2; Tsuchida et al. 2018, arXiv 1711.09090, for all.
    """
    near = gaps.near
    psi, segment = series.angle_from_gap(near)
    folded = near - (2 / math.pi) * segment
    slope = 1 - (2 / math.pi) * psi
    after = Gaps(
        bend * folded + (1 - bend) * gaps.below,
        bend * (2 - folded) + (1 - bend) * gaps.above,
    )
    return after, bend * jnp.where(gaps.positive, slope, -slope) + (1 - bend)


@final
@pytree
@dataclass(frozen=True)
class Identity(Activation):
    """phi(u) = u: a deep linear network."""

    name: ClassVar[str] = "identity"

    def __call__(self, u: Float[jax.Array, "..."]) -> Float[jax.Array, "..."]:
        return u

    def encode(self, signal: Variance) -> tuple[Variance, Trace]:
        return signal, ()

    def correlate(self, x: Trace, y: Trace, gaps: Gaps) -> tuple[Gaps, jax.Array]:
        return gaps, jnp.ones_like(gaps.below)


@final
@pytree
@dataclass(frozen=True)
class Relu(Activation):
    """phi(u) = max(u, 0). Dual: s s' (sin(theta) + (pi - theta) cos(theta))/(2 pi).

    Source: Cho and Saul 2009, eq. (6).
    """

    name: ClassVar[str] = "relu"

    def __call__(self, u: Float[jax.Array, "..."]) -> Float[jax.Array, "..."]:
        return jax.nn.relu(u)

    def encode(self, signal: Variance) -> tuple[Variance, Trace]:
        return Variance(signal.value / 2, signal.exponent), ()

    def correlate(self, x: Trace, y: Trace, gaps: Gaps) -> tuple[Gaps, jax.Array]:
        return _correlate_linear_pieces(0.5, gaps)


@final
@pytree
@dataclass(frozen=True)
class LeakyRelu(Activation):
    """phi(u) = u for u >= 0, slope * u below. Source: Tsuchida et al. 2018, arXiv 1711.09090.

    Args:
        slope: slope of the negative part, in [-1e6, 1e6]; 0 is relu, -1 is abs, 1 is the identity.

    Raises:
        ValueError: slope is NaN, infinite or out of range.
        TypeError: not a real number.
    """

    slope: float | jax.Array = 0.01
    name: ClassVar[str] = "leaky_relu"

    def __post_init__(self) -> None:
        slope = validation.finite_scalar("slope", self.slope, at_least=-1e6)
        if not isinstance(slope, jax.core.Tracer) and slope > 1e6:
            raise ValueError(f"slope must be <= 1e6, got {slope:g}.")

    def __call__(self, u: Float[jax.Array, "..."]) -> Float[jax.Array, "..."]:
        return jnp.where(u >= 0, u, self.slope * u)

    def encode(self, signal: Variance) -> tuple[Variance, Trace]:
        slope = jnp.asarray(self.slope, signal.value.dtype)
        return Variance(signal.value * ((1 + slope**2) / 2), signal.exponent), ()

    def correlate(self, x: Trace, y: Trace, gaps: Gaps) -> tuple[Gaps, jax.Array]:
        slope = jnp.asarray(self.slope, gaps.below.dtype)
        return _correlate_linear_pieces((1 - slope) ** 2 / (2 + 2 * slope**2), gaps)


@final
@pytree
@dataclass(frozen=True)
class Abs(Activation):
    """phi(u) = |u|. Source: Tsuchida et al. 2018, arXiv 1711.09090."""

    name: ClassVar[str] = "abs"

    def __call__(self, u: Float[jax.Array, "..."]) -> Float[jax.Array, "..."]:
        return jnp.abs(u)

    def encode(self, signal: Variance) -> tuple[Variance, Trace]:
        return signal, ()

    def correlate(self, x: Trace, y: Trace, gaps: Gaps) -> tuple[Gaps, jax.Array]:
        return _correlate_linear_pieces(1.0, gaps)


class _ErfTrace(NamedTuple):
    """q = sqrt(2) s, k = 1/sqrt(1 + q^2), p = q k, root = sqrt(1 - p^4), half = sin^2(a/2), h = a/p^2, sin a = p^2."""

    q: jax.Array
    k: jax.Array
    p: jax.Array
    root: jax.Array
    half: jax.Array
    h: jax.Array


@final
@pytree
@dataclass(frozen=True)
class Erf(Activation):
    """phi(u) = erf(u). Dual: (2/pi) asin(2 c/sqrt((1 + 2 s^2)(1 + 2 s'^2))). Source: Williams 1997, eq. (11).

    With p = sqrt(2) s/sqrt(1 + 2 s^2), Z = p p' rho and h(z) = asin(z)/z the correlation after phi is rho R,
    R = h(Z)/sqrt(h(p^2) h(p'^2)), and its gap is (1 - rho) R + (1 - R). 1 - R is a sum of differences of h, taken by
    divided differences of the analytic function h(sin a) = (a/2)/(sin(a/2) cos(a/2)) of sin^2(a/2): in the chaotic
    phase a deep network multiplies the gap of two near inputs by up to 1e9, so it must be right to its own last digit
    here.
    """

    name: ClassVar[str] = "erf"

    def __call__(self, u: Float[jax.Array, "..."]) -> Float[jax.Array, "..."]:
        return jax.scipy.special.erf(u)

    def encode(self, signal: Variance) -> tuple[Variance, Trace]:
        # Beyond 1e307 (float32: 2e37) 1/q would be no normal number; erf is the sign function long before.
        q = jnp.minimum(math.sqrt(2) * signal.deviation, 1 / (4 * float(np.finfo(signal.value.dtype).tiny)))
        k = 1 / series.hypot(jnp.ones_like(q), q)
        p = q * k
        root = k * jnp.sqrt(1 + p**2)
        half = p**4 / (2 * (1 + root))
        h = series.evaluate(series.ARCSINE_OVER_COSINE, half)
        small = signal.exponent < 0
        squared = jnp.where(small, 2 * signal.value * k**2, p**2)
        exponent = jnp.where(small, signal.exponent, 0)
        return Variance((2 / math.pi) * squared * h, exponent), _ErfTrace(q, k, p, root, half, h)

    def correlate(self, x: _ErfTrace, y: _ErfTrace, gaps: Gaps) -> tuple[Gaps, jax.Array]:
        near = gaps.near
        common = x.p * y.p
        z = common * (1 - near)
        step = series.safe_divide((x.q - y.q) * x.k * y.k * ((x.q + y.q) * x.k * y.k), x.p + y.p)
        one_minus_z = (x.k**2 + y.k**2 + step**2) / 2 + common * near
        # sqrt(1 - z^2) with the largest term of 1 - z taken out, so that no square underflows.
        apart = series.safe_sqrt(near)
        largest = jax.lax.stop_gradient(jnp.maximum(jnp.maximum(x.k, y.k), apart))
        terms = ((x.k / largest) ** 2 + (y.k / largest) ** 2 + (step / largest) ** 2) / 2
        root = largest * jnp.sqrt((terms + common * (apart / largest) ** 2) * (2 - one_minus_z))
        half = z**2 / (2 * (1 + root))
        h, towards_x, towards_y = series.divided_differences(series.ARCSINE_OVER_COSINE, x.half, y.half, half)
        over_x = x.p * (step + y.p * near) * (x.p**2 + z) / (2 * (x.root + root)) * towards_x
        over_y = y.p * (x.p * near - step) * (y.p**2 + z) / (2 * (y.root + root)) * towards_y
        scale = jnp.sqrt(x.h * y.h)
        spread = (over_x - over_y) / (jnp.sqrt(x.h) + jnp.sqrt(y.h))
        near_after = near * (h / scale) + (over_x + over_y - spread**2) / (2 * scale)
        return gaps_from_near(near_after, gaps.positive), 1 / (root * scale)


BY_NAME: dict[str, Activation] = {a.name: a for a in (Identity(), Relu(), LeakyRelu(), Abs(), Erf())}
