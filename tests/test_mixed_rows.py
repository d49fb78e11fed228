"""Functions that mix rows have no tangent kernel of pairs: refused, with the reason, by all that takes one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import widelimit as wl
from widelimit.claims.finite import one_network
from widelimit.kernels.empirical import rows as module

NET = wl.mlp(depth=3, activation="erf", bias_std=0.1)


def start(dtype, seed=0):
    return one_network(NET, (3, 8, 8, 2), rng=np.random.default_rng(seed), dtype=dtype)


def data(dtype, n=5):
    return np.random.default_rng(0).standard_normal((n, 3)).astype(dtype)


def hidden(params, X):
    return NET.apply(params, X)


def centred(params, X):
    h = hidden(params, X)
    return h - jnp.mean(h, axis=0)


def batch_norm(params, X):
    h = hidden(params, X)
    return (h - jnp.mean(h, axis=0)) / jnp.sqrt(jnp.var(h, axis=0) + 1e-5)


def bare_batch_norm(params, X):
    h = hidden(params, X)
    return (h - jnp.mean(h, axis=0)) / jnp.std(h, axis=0)


def attended(params, X):
    h = hidden(params, X)
    return jax.nn.softmax(h @ h.T) @ h


def causal(params, X):
    return jnp.cumsum(hidden(params, X), axis=0)


def over_the_largest(params, X):
    h = hidden(params, X)
    return h / jnp.max(jnp.abs(h))


def gated(params, X):
    h = hidden(params[0], X)
    return h + params[1] * jnp.mean(h, axis=0)


MIXING = (centred, batch_norm, bare_batch_norm, attended, causal, over_the_largest, gated)


def layer_norm(params, X):
    h = hidden(params, X)
    return (h - h.mean(axis=1, keepdims=True)) / jnp.sqrt(h.var(axis=1, keepdims=True) + 1e-6)


def cancelling(params, X):
    return (1e4 + hidden(params, X)) - 1e4


def vmapped(params, X):
    return jax.vmap(lambda x: hidden(params, x[None])[0])(X)


ROWWISE = (hidden, layer_norm, cancelling, vmapped)


def parameters(f, dtype):
    params = start(dtype)
    return (params, np.zeros((), dtype)) if f is gated else params


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("f", MIXING, ids=lambda f: f.__name__)
def test_functions_that_mix_rows_are_refused(f, dtype):
    with pytest.raises(ValueError, match="mixes rows") as caught:
        wl.empirical_ntk(f, parameters(f, dtype), output="trace").gram(data(dtype))
    assert len(str(caught.value)) < 400


def doors():
    k = {
        output: wl.empirical_ntk(centred, start(np.float64), output=output) for output in ("full", "trace", "diagonal")
    }
    k["nngp"] = wl.empirical_nngp(centred, start(np.float64), output="trace")
    X = data(np.float64)
    for name, kernel in k.items():
        yield f"{name} gram", lambda kernel=kernel: kernel.gram(X)
        yield f"{name} cross", lambda kernel=kernel: kernel.cross(X[:1], X[1:2])
        yield f"{name} diag", lambda kernel=kernel: kernel.diag(X)
        v = np.ones(5) if name in ("trace", "nngp") else np.ones((5, 2))
        yield f"{name} matvec", lambda kernel=kernel, v=v: kernel.matvec(X, v)
    yield "posterior", lambda: wl.posterior(k["trace"], X, np.ones(5), noise=0.1)
    params = start(np.float64)
    yield "linearize", lambda: wl.linearize(centred, params)(params, X)
    yield "taylor", lambda: wl.taylor(centred, params, 2)(params, X)
    single = start(np.float32)  # NumPy's: they do not become tracers before they are looked at
    traced = wl.empirical_ntk(centred, single, output="trace")
    yield "gram of a JAX array", lambda: traced.gram(jnp.asarray(X, jnp.float32))
    yield "gram under jit", lambda: jax.jit(traced.gram)(jnp.asarray(X, jnp.float32))
    yield "linearize under jit", lambda: jax.jit(wl.linearize(centred, single))(single, X.astype(np.float32))


@pytest.mark.parametrize("name", [name for name, _ in doors()])
def test_every_door_refuses(name):
    with pytest.raises(ValueError, match="mixes rows"):
        dict(doors())[name]()


@pytest.mark.parametrize("place", [1, 4])
def test_equal_rows_hide_nothing(place):
    X = np.repeat(data(np.float64, 1), 5, axis=0)
    kernel = wl.empirical_ntk(centred, start(np.float64), output="trace")
    for points in (X, X[:1]):  # all rows equal, and one row
        with pytest.raises(ValueError, match="mixes rows"):
            kernel.gram(points)
        with pytest.raises(ValueError, match="mixes rows"):
            kernel.matvec(points, np.ones(len(points)))
    X[place] += 1.0
    with pytest.raises(ValueError, match="mixes rows"):
        kernel.gram(X)
    assert len(np.unique(module.choose_rows(X), axis=0)) == 2


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("f", ROWWISE, ids=lambda f: f.__name__)
def test_functions_of_single_rows_are_not_refused(f, dtype):
    params, X = start(dtype), data(dtype)
    assert np.isfinite(wl.empirical_ntk(f, params, output="trace").diag(X)).all()
    assert np.isfinite(wl.linearize(f, params)(params, X)).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rounding_is_told_from_mixing_by_what_a_nudge_does(dtype):
    """A deep network in the chaotic phase spreads rounding errors: its rows alone and together differ by as much."""
    eps = np.finfo(dtype).eps
    alone = np.array([[1.0, -3.0], [0.5, 2.0]], dtype)
    spread = 1e5 * eps
    together, nudged = alone + spread, alone - spread / 4
    module.require_rowwise("f", module.Probe(together, alone, nudged), dtype)
    with pytest.raises(ValueError, match="f mixes rows"):
        module.require_rowwise("f", module.Probe(together, alone, alone), dtype)
    module.require_rowwise("f", module.Probe(alone * (1 + 16 * eps), alone, alone), dtype)
    with pytest.raises(ValueError, match="f mixes rows: a row gives nan alone"):
        module.require_rowwise("f", module.Probe(together, np.full_like(alone, np.nan), nudged), dtype)


def test_a_small_share_of_another_row_is_seen():
    def leaking(params, X):
        h = hidden(params, X)
        return h + 1e-9 * jnp.roll(h, 1, axis=0)

    with pytest.raises(ValueError, match="mixes rows"):
        wl.empirical_ntk(leaking, start(np.float64)).gram(data(np.float64))


def test_the_row_of_a_jacobian_that_is_nan_is_named():
    def rooted(params, X):
        return hidden(params, X) * jnp.sqrt(jnp.sum(X, axis=1, keepdims=True) * params[0]["bias"][0] ** 2)

    params, X = start(np.float64), np.abs(data(np.float64)) + 0.1
    kernel = wl.empirical_ntk(rooted, params, output="trace")
    assert np.isfinite(kernel.gram(X)).all()
    X[3] *= -1
    for call in (
        lambda: kernel.gram(X),
        lambda: kernel.diag(X),
        lambda: kernel.matvec(X, np.ones(5)),
        lambda: wl.linearize(rooted, params)(params, X),
        lambda: wl.empirical_ntk(rooted, params).gram(X),
    ):
        with pytest.raises(ValueError, match="row 3 of X is NaN"):
            call()
    with pytest.raises(ValueError, match="row 3 of Y is NaN"):
        kernel.cross(X[:2], X)
    assert np.isfinite(kernel.cross(X[:2], X[:3])).all()


def test_what_passed_is_not_computed_again(monkeypatch):
    def fresh(params, X):
        return hidden(params, X)

    kernel = wl.empirical_ntk(fresh, start(np.float64), output="trace")
    kernel.diag(data(np.float64))
    monkeypatch.setattr(module, "_compare", lambda *_: pytest.fail("compared"))
    kernel.diag(data(np.float64))
    with pytest.raises(pytest.fail.Exception, match="compared"):
        wl.empirical_ntk(fresh, start(np.float32), output="trace").diag(data(np.float32))
