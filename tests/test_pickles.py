"""Whatever holds a function is pickled and copied: the function by its name, arrays with all digits."""

import copy
import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import widelimit as wl
from widelimit import references
from widelimit.activations.names import BY_NAME

FUNCTIONS = {
    "jnp.tanh": jnp.tanh,
    "jnp.sin": jnp.sin,
    "silu": jax.nn.silu,
    "swish": jax.nn.swish,
    "sigmoid": jax.nn.sigmoid,
    "softplus": jax.nn.softplus,
    "mish": jax.nn.mish,
    "lax.tanh": jax.lax.tanh,
    "expit": jax.scipy.special.expit,
    "partial": functools.partial(jax.nn.gelu, approximate=True),
    "partial of a jitted function": functools.partial(jax.nn.silu),
}
X = np.array([[1.0, 0.5], [-0.3, 2.0]])


@jax.jit
def jitted(u):
    return u / (1 + u**2)


def bend(X):
    return jnp.tanh(X)


@pytest.mark.parametrize("name", sorted(BY_NAME))
def test_networks_of_every_named_activation(name):
    net = wl.mlp(depth=2, activation=name)
    for again in (pickle.loads(pickle.dumps(net)), copy.deepcopy(net), copy.copy(net)):
        assert again == net
        assert jax.tree.structure(again) == jax.tree.structure(net)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_of_jax_come_back_as_themselves(name):
    phi = FUNCTIONS[name]
    again = pickle.loads(pickle.dumps(wl.Numerical(phi))).phi
    if isinstance(phi, functools.partial):
        assert (again.func, again.args, again.keywords) == (phi.func, phi.args, phi.keywords)
    else:
        assert again is phi
    assert copy.deepcopy(wl.Numerical(phi)).phi is phi


def test_a_pickle_names_no_private_module():
    for phi in (jnp.tanh, jax.nn.silu, jax.lax.tanh):
        assert b"jax._src" not in pickle.dumps(wl.Numerical(phi))


def test_holders_keep_their_values():
    net = wl.mlp(depth=2, activation=jitted)
    kernel = 2.0 * wl.ntk(net) + wl.linear(bend)
    assert np.array_equal(pickle.loads(pickle.dumps(kernel)).gram(X), kernel.gram(X))
    post = wl.posterior(kernel, X, np.ones(2), noise=0.1)
    assert np.array_equal(pickle.loads(pickle.dumps(post)).mean(X), post.mean(X))
    params = wl.mlp(depth=2).init(0, input_dim=2, width=4, dtype=np.float64)
    empirical = wl.empirical_ntk(wl.mlp(depth=2).apply, params, output="trace")
    assert np.array_equal(pickle.loads(pickle.dumps(empirical)).gram(X), empirical.gram(X))


def test_float64_arrays_keep_their_digits_where_float64_is_off():
    matrix = np.array([[1.0, 1 / 3], [1 / 3, 1.0]])
    with jax.enable_x64(True):
        kernel = wl.precomputed(jnp.asarray(matrix))
        stored = pickle.dumps(kernel)
    again = pickle.loads(stored).matrix
    assert isinstance(again, jax.Array)
    assert np.array_equal(np.asarray(again), matrix)
    assert not np.array_equal(np.asarray(pickle.loads(pickle.dumps(kernel.matrix))), matrix)  # what JAX does itself


def test_estimators_that_hold_functions():
    rows = np.linspace(-1.0, 1.0, 12)[:, None]
    for activation in ("tanh", jnp.tanh, jitted):
        model = wl.NNGPRegressor(activation=activation, noise=0.1)
        again = pickle.loads(pickle.dumps(model))
        assert again.activation == activation
        assert copy.deepcopy(model).activation is activation
    model = wl.NNGPRegressor(activation=jax.nn.softplus, noise=0.1).fit(rows, rows[:, 0] ** 2)
    again = pickle.loads(pickle.dumps(model))
    assert np.allclose(again.predict(rows), model.predict(rows), rtol=1e-10)


def test_functions_without_a_name_are_refused_when_pickled_and_not_before():
    held = [wl.mlp(depth=2, activation=lambda u: jnp.sin(u)), wl.linear(lambda X: X), jax.jit(lambda u: u)]
    held[2] = wl.NTKRegressor(activation=held[2])
    for value in held:
        copy.deepcopy(value)
        copy.copy(value)
        with pytest.raises(pickle.PicklingError, match="name of its own in a module") as caught:
            pickle.dumps(value)
        assert len(str(caught.value)) < 400


def test_a_name_that_another_function_took_is_no_name(monkeypatch):
    monkeypatch.setattr(__import__(__name__), "bend", lambda X: X)
    with pytest.raises(pickle.PicklingError, match="bend"):
        pickle.dumps(wl.linear(_bend))
    with pytest.raises(pickle.UnpicklingError, match="no longer_there"):
        references.found("jax.numpy", "longer_there")


_bend = bend
