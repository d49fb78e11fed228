"""Convolutional and graph networks of 32 to 512 channels tend to their limits as channels^(-1/2)."""

import jax.numpy as jnp
import numpy as np
import pytest

import widelimit as wl
from finite_width import kernels, relative_errors
from widelimit.claims.base import slope_check
from widelimit.claims.statistics import power_law
from widelimit.layers import AveragePool, Conv, Dense, Flatten, GlobalAveragePool, LayerNorm, Residual

pytestmark = [pytest.mark.claims, pytest.mark.slow]

GRAPH = wl.Graph(4, 2)
RING = np.roll(np.eye(4), 1, 0) + np.roll(np.eye(4), -1, 0)
CONV, IMAGE = Conv(3, weight_std=1.2, bias_std=0.3), wl.Image(5, 4, 2)
NETS = {
    "plain": wl.network(CONV, "relu", CONV, "relu", Flatten(), Dense(), inputs=IMAGE),
    "residual": wl.network(CONV, Residual("erf", CONV), "erf", Flatten(), Dense(), inputs=IMAGE),
    "normalised": wl.network(CONV, LayerNorm(), "relu", CONV, LayerNorm(), "erf", Flatten(), Dense(), inputs=IMAGE),
    "graphs": wl.gnn(inputs=GRAPH, activation="erf", bias_std=0.3, jumping_knowledge=True),
    "pooled": wl.network(CONV, "relu", AveragePool(2), CONV, "relu", GlobalAveragePool(), Dense(), inputs=IMAGE),
}
CHANNELS = np.array([32, 128, 512])
NETWORKS = (128, 48, 12)
"""Networks of each width: the rms error is right to 4 to 12 %, the slope to 0.06."""
RNG = np.random.default_rng(0)
X = RNG.standard_normal((3, 40))
GRAPHS = GRAPH.pack([(RNG.standard_normal((n, 2)), RING[:n, :n]) for n in (4, 3, 4)])


def errors(name, factor=1.0):
    """Relative errors of K and Theta, (2, widths) each: rms over networks and its standard error."""
    rows = GRAPHS if name == "graphs" else X
    net, points = NETS[name], jnp.asarray(rows, jnp.float32)

    def of_width(width, count):
        seeds = range(1000 * width, 1000 * width + count)
        return [kernels(net, net.init(seed, width=width, dtype=np.float32), points) for seed in seeds]

    limits = [factor * limit for limit in wl.limits(net).gram(rows)]
    return relative_errors(limits, map(of_width, CHANNELS.tolist(), NETWORKS))


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
