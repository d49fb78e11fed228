"""Kernel matrices of JAX arrays, in large tiles: the digits of the processor's patches, near pairs by a list."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import widelimit as wl
from widelimit import signals
from widelimit.compute import device_tiles

RNG = np.random.default_rng(5)
K = wl.ntk(wl.mlp(depth=3, bias_std=0.2))
N = 150


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles of 48 rows, of which the last overlaps, and a list of 50 pairs."""
    for name, value in (("EDGE", 48), ("WHOLE", 16), ("MULTIPLE", 16)):
        monkeypatch.setattr(device_tiles, name, value)
    monkeypatch.setattr(signals, "ROW_BY_ROW", 100)
    monkeypatch.setattr(signals, "LISTED", 50)
    jax.clear_caches()
    yield
    jax.clear_caches()


def rows(kind, dtype):
    X = RNG.standard_normal((N, 6))
    if kind == "near":
        X[1::3] = X[::3] * (1 + 1e-6 * RNG.standard_normal((N // 3, 6)))
        X[2], X[-1] = -X[0], X[0]
    elif kind == "many duplicates":
        X[20:120] = X[3]
    elif kind == "equal":
        X[:] = X[0]
    elif kind == "zero":
        X[::5] = 0
    return X.astype(dtype)


def on_device(function, *arrays):
    with jax.enable_x64(arrays[0].dtype == np.float64):
        return np.asarray(function(*map(jnp.asarray, arrays)))


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_large_tiles_have_the_digits_of_the_processor(dtype, small_tiles):
    eps = np.finfo(dtype).eps
    for kind in ("near", "many duplicates", "equal", "zero"):
        X = rows(kind, dtype)
        expected, own = K.gram(X), K.diag(X)
        found = on_device(K.gram, X)
        bound = 64 * eps * np.sqrt(np.outer(own, own))
        assert (np.abs(found - expected) <= bound).all(), kind
        assert (found == found.T).all(), kind
        np.testing.assert_array_equal(np.diagonal(found), on_device(K.diag, X))
        assert not (np.abs(found * (1 + 100 * eps) - expected) <= bound).all()
        across = on_device(K.cross, X, X[:70])
        assert (np.abs(across - expected[:, :70]) <= bound[:, :70]).all(), kind
