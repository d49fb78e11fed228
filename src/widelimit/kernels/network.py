"""The two kernels of an infinitely wide network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import jax
import jax.numpy as jnp
from jaxtyping import Float

from widelimit.architecture.network import Network, NetworkFeatures
from widelimit.kernels.base import Kernel
from widelimit.pytrees import pytree
from widelimit.signals import Variance, scaled

_encode: Callable[[Network, jax.Array], NetworkFeatures] = jax.jit(Network.encode)
"""Compiled once for both kernels of a network."""


def _in_units(block: jax.Array, x: NetworkFeatures, y: NetworkFeatures) -> jax.Array:
    """A block (n, m) of the recursion, which is free of scale, times the standard deviations of the outputs."""
    rows = Variance(*(leaf[:, None] for leaf in x.variance))
    return scaled(block, rows, y.variance)


@final
@pytree
@dataclass(frozen=True)
class NNGP(Kernel):
    """Sigma^L(x, x'), the covariance of the outputs of an infinitely wide network at initialisation."""

    net: Network

    def encode(self, X: Float[jax.Array, "n d"]) -> NetworkFeatures:
        return _encode(self.net, X)

    def pairwise(self, x: NetworkFeatures, y: NetworkFeatures, *, same: bool = False) -> Float[jax.Array, "n m"]:
        return _in_units(self.net.pairwise(x, y, same=same).gaps.rho, x, y)

    def diagonal(self, x: NetworkFeatures) -> Float[jax.Array, " n"]:
        return scaled(jnp.ones_like(x.variance.value), x.variance, x.variance)


@final
@pytree
@dataclass(frozen=True)
class NTK(Kernel):
    """Theta^L(x, x') = lim <grad_theta f(x), grad_theta f(x')>, which gradient descent sees at infinite width."""

    net: Network

    def encode(self, X: Float[jax.Array, "n d"]) -> NetworkFeatures:
        return _encode(self.net, X)

    def pairwise(self, x: NetworkFeatures, y: NetworkFeatures, *, same: bool = False) -> Float[jax.Array, "n m"]:
        return _in_units(self.net.pairwise(x, y, same=same).tangent, x, y)

    def diagonal(self, x: NetworkFeatures) -> Float[jax.Array, " n"]:
        return scaled(self.net.diagonal(x).tangent, x.variance, x.variance)


def nngp(net: Network) -> NNGP:
    """Sigma^1 = (w^2/n_0) x.x' + beta^2, Sigma^{l+1} = w^2 E[phi(u) phi(v)] + beta^2, (u, v) ~ N(0, Sigma^l).

    The covariance of the outputs as all hidden widths tend to infinity (w = weight_std, beta = bias_std).
    Source: Theorem 2.6 of the paper; Jacot et al. 2018, Proposition 1.

    Raises:
        TypeError: net is not a Network.
    """
    return NNGP(_network(net))


def ntk(net: Network) -> NTK:
    """Theta^1 = Sigma^1, Theta^{l+1} = w^2 Theta^l E[phi'(u) phi'(v)] + Sigma^{l+1}, (u, v) ~ N(0, Sigma^l).

    The limit of the neural tangent kernel in the NTK parameterisation, constant in training (w = weight_std).
    Source: Theorem 4.1 of the paper, corrected; Jacot et al. 2018, Theorem 1.

    Raises:
        TypeError: net is not a Network.
    """
    return NTK(_network(net))


def _network(net: Network) -> Network:
    if not isinstance(net, Network):
        raise TypeError(f"a network is needed, e.g. wl.mlp(depth=3); got {type(net).__name__}.")
    return net
