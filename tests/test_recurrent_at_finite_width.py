"""Finite recurrent, gated and mixed networks of width 32 to 512 tend to their limits as width^(-1/2)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import widelimit as wl
from widelimit.claims.base import slope_check
from widelimit.claims.statistics import power_law, root_mean_and_error
from widelimit.layers import Conv, Dense, GlobalAveragePool, Mix, Product, Recurrent, Resize

pytestmark = [pytest.mark.claims, pytest.mark.slow]

RNG = np.random.default_rng(0)
SEQUENCES = [RNG.standard_normal((t, 2)) for t in (3, 2, 4)]
IMAGES = RNG.standard_normal((3, 4, 2))
STDS = {"input_std": 1.3, "weight_std": 1.2, "bias_std": 0.3}
RECURRENT, IMAGE = {"inputs": wl.Sequence(4, 2)}, {"inputs": wl.Image(4, 2)}
END = (GlobalAveragePool(), Dense())
NETS = {
    "last": (wl.network(Recurrent("relu", **STDS, readout="last"), Dense(), **RECURRENT), SEQUENCES),
    "all": (wl.network(Recurrent("erf", **STDS), Recurrent("relu", **STDS), Dense(), *END, **RECURRENT), SEQUENCES),
    "gate": (wl.network(Conv(2, 1.2, 0.3), Product(Dense(), [Dense(), "erf"]), Dense(), *END, **IMAGE), IMAGES),
    "mix": (
        wl.network(Conv(2, 1.2, 0.3), "relu", Mix(RNG.standard_normal((2, 4))), Conv(2), Resize(3), *END, **IMAGE),
        IMAGES,
    ),
}
WIDTHS, NETWORKS, SLOPE = np.array([32, 128, 512]), (256, 96, 32), 0.15


def tangents(net, width, count, rows):
    """Theta of `count` networks by plain Jacobians, (count, n, n)."""
    params = net.init_many(range(width, width + count), width=width)

    @jax.jit
    def one(each):
        leaves = jax.tree.leaves(jax.jacrev(net.signals_of)(each, rows))
        return sum((leaf.reshape(len(rows), -1) @ leaf.reshape(len(rows), -1).T for leaf in leaves), jnp.zeros(()))

    return np.array([one(jax.tree.map(lambda leaf: leaf[e], params)) for e in range(count)])  # noqa: B023


def slope(name, limit=None):
    """The check of the slope -1/2 of the relative error of Theta."""
    net, data = NETS[name]
    rows = jnp.asarray(net.inputs.rows("X", data), jnp.float32)
    limit = wl.ntk(net).gram(data) if limit is None else limit
    found = []
    for width, count in zip(WIDTHS.tolist(), NETWORKS, strict=True):
        gaps = tangents(net, width, count, rows) - limit
        found.append(root_mean_and_error(np.sum(gaps**2, axis=(1, 2)) / np.sum(limit**2)))
    return slope_check(name, power_law(WIDTHS.astype(float), *np.array(found).T), -0.5, SLOPE)


@pytest.mark.parametrize("name", NETS)
def test_tangent_kernels_tend_to_the_limit(name):
    found = slope(name)
    print(found)
    assert found.holds, found


def untied(data):
    """Theta of the network "last" with weights of its own at every time: no covariance of different times."""
    net = wl.network(Recurrent("relu", **STDS, readout="last"), Dense(), **RECURRENT)
    known, ends = wl.ntk(net).gram(data), np.array([len(x) for x in data])
    return np.where(ends[:, None] == ends, known, 0.0)


def test_other_limits_are_refused():
    assert not slope("last", untied(SEQUENCES)).holds
    assert not slope("gate", 1.2 * wl.ntk(NETS["gate"][0]).gram(IMAGES)).holds
