"""Convolutional networks of 32 to 512 channels tend to their limits as channels^(-1/2)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import widelimit as wl
from widelimit.claims.base import slope_check
from widelimit.claims.statistics import power_law, root_mean_and_error
from widelimit.layers import AveragePool, Conv, Dense, Flatten, GlobalAveragePool, LayerNorm, Residual, Serial

pytestmark = pytest.mark.claims

CONV, IMAGE = Conv(3, weight_std=1.2, bias_std=0.3), wl.Image(5, 4, 2)
NETS = {
    "plain": wl.network(CONV, "relu", CONV, "relu", Flatten(), Dense(), inputs=IMAGE),
    "residual": wl.network(CONV, Residual("erf", CONV), "erf", Flatten(), Dense(), inputs=IMAGE),
    "normalised": wl.network(CONV, LayerNorm(), "relu", CONV, LayerNorm(), "erf", Flatten(), Dense(), inputs=IMAGE),
    "pooled": wl.network(CONV, "relu", AveragePool(2), CONV, "relu", GlobalAveragePool(), Dense(), inputs=IMAGE),
}
CHANNELS = np.array([32, 128, 512])
NETWORKS = (128, 48, 12)
"""Networks of each width: the rms error is right to 4 to 12 %, the slope to 0.06."""
X = np.random.default_rng(0).standard_normal((3, 40))


@jax.jit
def kernels(net, params):
    """K given the hidden layers, whose mean over last layers it is, and Theta by plain Jacobians, of one network."""
    points = jnp.asarray(X, jnp.float32)
    signals = Serial(*net.units[:-1]).apply(params[:-1], net.inputs.read(points)).reshape(len(X), -1)
    leaves = jax.tree.leaves(jax.jacrev(net.signals_of)(params, points))
    rows = [leaf.reshape(len(X), -1) for leaf in leaves]
    return signals @ signals.T / signals.shape[1], sum(row @ row.T for row in rows)


def errors(name, factor=1.0):
    """Relative errors of K and Theta, (2, widths) each: rms over networks and its standard error."""
    limits = [factor * limit for limit in wl.limits(NETS[name]).gram(X)]
    net, found = NETS[name], []
    for width, count in zip(CHANNELS.tolist(), NETWORKS, strict=True):
        seeds = range(1000 * width, 1000 * width + count)
        each = [kernels(net, net.init(seed, width=width, dtype=np.float32)) for seed in seeds]
        squares = [
            [np.sum((np.asarray(K) - limit) ** 2) / np.sum(limit**2) for K, limit in zip(pair, limits, strict=True)]
            for pair in each
        ]
        found.append([root_mean_and_error(column) for column in np.array(squares).T])
    return np.array(found).transpose(1, 2, 0)


def slopes(name, factor=1.0):
    """The checks of the slopes -1/2 of K and Theta, with their standard errors."""
    found = zip(("K", "Theta"), errors(name, factor), strict=True)
    return [slope_check(f"{name}, {kind}", power_law(CHANNELS.astype(float), *e), -0.5, 0.15) for kind, e in found]


@pytest.mark.parametrize("name", NETS)
def test_kernels_at_the_start(name):
    found = slopes(name)
    print(found)
    assert all(check.holds for check in found), found


def test_other_limits_are_refused():
    """Kernels 20 % too large."""
    found = slopes("plain", factor=1.2)
    assert not any(check.holds for check in found), found
