"""Kernel matrices of JAX arrays, in large tiles: the digits of the processor's patches, near pairs by a list."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import widelimit as wl
from widelimit import signals
from widelimit.compute import device_tiles, devices

RNG = np.random.default_rng(5)
K = wl.ntk(wl.mlp(depth=2, bias_std=0.2))
N = 150


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
def test_large_tiles_have_the_digits_of_the_processor(dtype, monkeypatch):
    """Tiles of 48 rows, of which the last overlaps, and a list of 50 pairs; programs of this shape are not others'."""
    eps = np.finfo(dtype).eps
    cases = {kind: rows(kind, dtype) for kind in ("near", "many duplicates", "equal", "zero")}
    known = {kind: (K.gram(X), K.diag(X)) for kind, X in cases.items()}
    for name, value in (("EDGE", 48), ("WHOLE", 16), ("MULTIPLE", 16)):
        monkeypatch.setattr(device_tiles, name, value)
    for name, value in (("ROW_BY_ROW", 100), ("LISTED", 50)):
        monkeypatch.setattr(signals, name, value)
    for kind, X in cases.items():
        expected, own = known[kind]
        found = on_device(K.gram, X)
        bound = 64 * eps * np.sqrt(np.outer(own, own))
        assert (np.abs(found - expected) <= bound).all(), kind
        assert (found == found.T).all(), kind
        np.testing.assert_array_equal(np.diagonal(found), on_device(K.diag, X))
        assert not (np.abs(found * (1 + 100 * eps) - expected) <= bound).all()
    across = on_device(K.cross, X, X[:70])
    assert (np.abs(across - expected[:, :70]) <= bound[:, :70]).all()


def test_derivatives_of_a_large_matrix_are_those_of_a_small_one(monkeypatch):
    """A list of pairs has no derivative backward: rows are differentiated, also some at a time."""
    X = rows("near", np.float64)[:48]
    U, weights = X / np.linalg.norm(X, axis=1)[:, None], RNG.standard_normal((48, 48))
    found = []
    with jax.enable_x64():
        for limit in (2**14, 100):
            monkeypatch.setattr(signals, "ROW_BY_ROW", limit)
            value = jax.value_and_grad(
                lambda U: jnp.sum(weights * signals.correlate_points(U, 1.0 * U, same=False).gap)
            )
            found.append(jax.tree.map(np.asarray, jax.jit(value)(jnp.asarray(U))))
    np.testing.assert_allclose(found[1][0], found[0][0], rtol=1e-12)
    np.testing.assert_allclose(found[1][1], found[0][1], rtol=1e-12, atol=1e-14)


def test_matrices_are_written_in_their_place():
    """The array of the result is given to the program, which copies no (n, n) array."""
    n = 600
    with jax.enable_x64():
        x = jax.ShapeDtypeStruct((n, 3), np.float64)
        tiles = (jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in (((n,), np.float64), ((3, 2), np.int32)))
        out = jax.ShapeDtypeStruct((n, n), np.float64)
        given = (wl.linear(), x, x, *tiles, 3, (384, 384))
        text = device_tiles._fill.lower(out, *given, symmetric=True).compile().as_text()
    assert "input_output_alias={ {}: (0" in text
    assert not [line for line in text.splitlines() if "= f64[600,600]" in line and " copy(" in line]


def test_a_matrix_that_does_not_fit_on_the_device_is_refused(monkeypatch):
    monkeypatch.setattr(devices.Location, "free", lambda _: 1000.0)
    X = jnp.ones((40, 2), jnp.float32)
    with devices.forced(), pytest.raises(MemoryError, match=r"40 x 40 float32 kernel matrix needs .* on cpu:0"):
        wl.linear().gram(X)
    assert wl.linear().gram(X).shape == (40, 40)
