"""Expectations of functions of a Gaussian pair, by quadrature split at the kinks.

E[f(s u) g(t v)] for standard normal u, v of correlation rho is an integral over u and over w, v = rho u + sigma w. Both
are divided into panels that end at the kinks (of g: at the line where v crosses one), are graded towards them, and
resolve the density; a panel has a Gauss-Legendre rule. Where Gauss-Hermite across a kink is off by 1e-3, this converges
as for an analytic function.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

Function = Callable[[jax.Array], jax.Array]

REACH = 10.0
"""Where the normal density is cut: exp(-50) = 2e-22."""
_DENSITY = (0.0, 2.5, 5.5, REACH)
"""Ends of the panels that the density wants."""
_TINY = float(np.finfo(np.float64).tiny)
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)


class Panels(NamedTuple):
    """Where phi wants panels to end, in units of its argument: sorted, symmetric gradings about 0 and every kink."""

    ends: tuple[float, ...]
    kinks: tuple[float, ...]


def panels(kinks: tuple[float, ...], largest: float) -> Panels:
    """Panels for standard deviations up to `largest`: of width 2 near the origin and the kinks, doubling outwards.

    All usual activations vary over lengths of order 1 there and are smoother farther out.
    """
    furthest = REACH * largest
    steps = [2.0 * 2**j for j in range(max(1, math.ceil(math.log2(max(furthest, 4.0)))))]
    ends = {0.0, *kinks}
    for kink in (0.0, *kinks):
        ends.update(kink + sign * step for step in steps for sign in (-1, 1) if step < furthest)
    return Panels(tuple(sorted(ends)), tuple(kinks))


def _merged(*groups: list[jax.Array]) -> jax.Array:
    """The sorted union of panel ends, along a new last axis."""
    ends = [jnp.clip(end, -REACH, REACH) for group in groups for end in group]
    return jnp.sort(jnp.stack(jnp.broadcast_arrays(*ends), axis=-1), axis=-1)


def _rule(ends: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Nodes and weights (normal density included) of the panels between the ends, along the last axis."""
    half = (ends[..., 1:] - ends[..., :-1]) / 2
    nodes = (ends[..., :-1] + half)[..., None] + half[..., None] * jnp.asarray(_NODES, half.dtype)
    weights = half[..., None] * jnp.asarray(_WEIGHTS, half.dtype) * jnp.exp(-(nodes**2) / 2) / math.sqrt(2 * math.pi)
    shape = (*half.shape[:-1], -1)
    return nodes.reshape(shape), weights.reshape(shape)


def _density_ends() -> list[float]:
    return [-end for end in _DENSITY[:0:-1]] + list(_DENSITY)


def normal_rule(deviation: jax.Array, wanted: Panels) -> tuple[jax.Array, jax.Array]:
    """Nodes z and weights, (..., q), with E[phi(s z)] = sum(weights * phi(s nodes)) for every s of `deviation`."""
    own = [end / deviation for end in wanted.ends]
    return _rule(_merged([jnp.full_like(deviation, end) for end in _density_ends()], own))


def pair_sum(
    f: Function, g: Function, s: jax.Array, t: jax.Array, rho: jax.Array, sigma: jax.Array, *, wanted: Panels
) -> Float[jax.Array, "a b"]:
    """E[f(s_i u) g(t_j v)] for standard deviations (a,), (b,), one rho and sigma = sqrt(1 - rho^2) >= 0; pure JAX.

    One rule serves all: several deviations only where the kinks, if any, are at 0, so that they have the same lines.
    """
    base, largest_s, largest_t = _density_ends(), jnp.max(s), jnp.max(t)
    line = jnp.where(rho == 0, _TINY, rho)
    crossings = [(kink / largest_t + sigma * end) / line for kink in wanted.kinks for end in base]
    u, u_weights = _rule(
        _merged([jnp.asarray(end) for end in base], [end / largest_s for end in wanted.ends], crossings)
    )
    spread = jnp.where(sigma == 0, _TINY, sigma)
    inner = [(end / largest_t - rho * u) / spread for end in wanted.ends]
    w, w_weights = _rule(_merged([jnp.full_like(u, end) for end in base], inner))
    v = rho * u[:, None] + sigma * w
    averages = jax.lax.map(lambda deviation: jnp.sum(w_weights * g(deviation * v), axis=1), t)
    return jnp.matmul(f(s[:, None] * u) * u_weights, averages.T, precision="highest")


@functools.partial(jax.jit, static_argnames=("f", "g", "wanted"))
def pair_sums(
    f: Function, g: Function, s: jax.Array, t: jax.Array, rho: jax.Array, sigma: jax.Array, *, wanted: Panels
) -> Float[jax.Array, "rows a b"]:
    """`pair_sum` for every row of s (rows, a), t (rows, b), rho and sigma (rows,)."""
    return jnp.asarray(jax.lax.map(lambda row: pair_sum(f, g, *row, wanted=wanted), (s, t, rho, sigma)))
