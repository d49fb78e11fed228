"""Each layer alone: its infinite map against high precision, its finite map against the infinite one."""

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest

from cases import LAYERS
from widelimit.architecture.state import PairState
from widelimit.signals import Correlation, Variance, correlation_from_rho, scaled, sum_signals

EPS = np.finfo(np.float64).eps
RHO = np.array([-1.0, -0.4, 0.0, 0.5, 1.0])
Q1, Q2 = 1.7, 0.6
TANGENT = 0.8


def mapped(layer):
    """(q, c, q', Theta) after the layer, each (5,)."""
    with jax.enable_x64(True):
        signals = [Variance(jnp.full(5, q), jnp.zeros(5, jnp.int32)).normalise() for q in (Q1, Q2)]
        (x, x_trace), (y, y_trace) = (layer.encode(signal) for signal in signals)
        state = PairState(correlation_from_rho(jnp.asarray(RHO)), jnp.full(5, TANGENT))
        after = layer.pair(x_trace, y_trace, state)
        one = jnp.ones(5)
        found = scaled(one, x, x), scaled(after.correlation.rho, x, y), scaled(one, y, y), scaled(after.tangent, x, y)
        return np.array([np.asarray(value) for value in found])


@pytest.mark.parametrize("name", LAYERS)
def test_the_infinite_map_to_64_eps(name):
    layer, oracle = LAYERS[name]
    root = mp.sqrt(mp.mpf(Q1) * mp.mpf(Q2))
    exact = [oracle(mp.mpf(Q1), mp.mpf(rho) * root, mp.mpf(Q2), TANGENT * root) for rho in RHO]
    expected = np.array([[float(value) for value in row] for row in exact]).T
    found = mapped(layer)
    np.testing.assert_allclose(found, expected, rtol=64 * EPS, atol=64 * EPS)
    for place in range(4):  # each of the four can fail
        planted = found.copy()
        planted[place] *= 1 + 1e-12
        assert (np.abs(planted - expected) > 64 * EPS * (1 + np.abs(expected))).any()


@pytest.mark.parametrize("name", LAYERS)
def test_the_finite_map_has_the_moments_of_the_infinite_one(name):
    """Signals of width 4,000 with the correlation 0.5; 3 outputs of a layer with weights. Seed 0."""
    layer, _ = LAYERS[name]
    width, rho = 4_000, 0.5
    rng = np.random.default_rng(0)
    u, v = rng.standard_normal((2, width))
    signals = np.stack([Q1**0.5 * u, Q2**0.5 * (rho * u + (1 - rho**2) ** 0.5 * v)])
    with jax.enable_x64(True):
        params = layer.init(jax.random.key(0), width, 400, jnp.float64)
        after = np.asarray(layer.apply(params, jnp.asarray(signals)))
    products = after[0] * after[1]
    error = products.std(ddof=1) / np.sqrt(len(products))
    expected = mapped(layer)[1, 3]
    assert abs(products.mean() - expected) < 4.5 * error
    assert abs(products.mean() - 2 * expected) > 4.5 * error


def test_sums_of_independent_signals():
    """Vectors in orthogonal planes at known angles, and one both share: the law is |x -+ y|^2/2 of their sums."""
    angles, a = [1e-9, 2e-8, 1e-9], np.array([0.3, 0.5, 0.4, 0.1])
    b = a * (1 + 1e-9 * np.arange(4))
    with mp.workdps(40):
        planes = zip(map(mp.mpf, a), map(mp.mpf, b), map(mp.mpf, [*angles, 0.0]), strict=True)
        pairs = [((s, mp.mpf(0)), (t * mp.cos(angle), t * mp.sin(angle))) for s, t, angle in planes]
        exact = [
            float(sum((u + sign * v) ** 2 for x, y in pairs for u, v in zip(x, y, strict=True)) / 2) for sign in (-1, 1)
        ]
    with jax.enable_x64(True):
        known = [Correlation(jnp.asarray(2 * np.sin(t / 2) ** 2), jnp.asarray(2 * np.cos(t / 2) ** 2)) for t in angles]
        found = np.array(sum_signals(list(jnp.asarray(a)), list(jnp.asarray(b)), known))
        same = np.array(sum_signals(list(jnp.asarray(a)), list(jnp.asarray(a)), known))
    # b is right to eps, its difference from a to eps/1e-9
    assert (np.abs(found - exact) <= [1e-6 * exact[0], 8 * EPS * exact[1]]).all()
    assert abs(same[0] - exact[0]) > 1e-3 * exact[0]
