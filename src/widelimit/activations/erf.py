"""The error function."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from widelimit import series
from widelimit.activations.base import Activation, Trace
from widelimit.pytrees import pytree
from widelimit.signals import Gaps, Variance, gaps_from_near


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
