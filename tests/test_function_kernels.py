"""Functions as kernels: against matrices of NumPy, the laws of every kernel, and what is refused."""

import copy
import functools
import pickle

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import widelimit as wl

RNG = np.random.default_rng(0)
X, Z = RNG.standard_normal((9, 3)), RNG.standard_normal((5, 3))
Y = np.sin(X[:, 0])
EPS = np.finfo(np.float64).eps


def periodic(x, z, *, period, scale):
    return jnp.exp(-2 * jnp.sum(jnp.sin(jnp.pi * (x - z) / period) ** 2) / scale**2)


def squared(offset, A, B, *, power):
    return (offset + A @ B.T) ** power


def numpy_periodic(A, B, period=3.0, scale=1.5):
    return np.exp(-2 * np.sum(np.sin(np.pi * (A[:, None] - B[None]) / period) ** 2, axis=-1) / scale**2)


class Rational(eqx.Module):
    scales: jax.Array
    power: float
    label: str = eqx.field(static=True, default="rational")

    def __call__(self, x, z):
        return (1 + jnp.sum(((x - z) / self.scales) ** 2)) ** -self.power


def numpy_rational(A, B):
    return (1 + np.sum(((A[:, None] - B[None]) / np.array([1.0, 2.0, 0.5])) ** 2, axis=-1)) ** -0.75


CASES = {
    "points": (lambda: wl.kernel(functools.partial(periodic, period=3.0, scale=1.5)), numpy_periodic),
    "blocks": (
        lambda: wl.kernel(functools.partial(squared, 0.5, power=2), blocks=True),
        lambda A, B: (0.5 + A @ B.T) ** 2,
    ),
    "module": (lambda: wl.kernel(Rational(np.array([1.0, 2.0, 0.5]), 0.75)), numpy_rational),
    "sum": (
        lambda: 2.0 * wl.kernel(jnp.dot) + wl.kernel(functools.partial(periodic, period=3.0, scale=1.5)) * wl.linear(),
        lambda A, B: 2.0 * A @ B.T + numpy_periodic(A, B) * (A @ B.T),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_values_and_laws(name):
    make, oracle = CASES[name]
    k = make()
    bound = 64 * EPS * np.abs(oracle(X, X)).max()
    gram = k.gram(X)
    np.testing.assert_allclose(gram, oracle(X, X), rtol=0, atol=bound)
    np.testing.assert_allclose(k.cross(Z, X), oracle(Z, X), rtol=0, atol=bound)
    assert np.abs(k.cross(Z, X) - oracle(1.01 * Z, X)).max() > bound
    np.testing.assert_array_equal(gram, gram.T)
    np.testing.assert_array_equal(np.diagonal(gram), k.diag(X))
    single = k.gram(X.astype(np.float32))
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, gram, rtol=0, atol=1e-5 * np.abs(gram).max())
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(k)).gram(X), gram)
    np.testing.assert_array_equal(copy.deepcopy(k).gram(X), gram)
    noise = 0.1 * np.eye(9)
    expected = oracle(Z, X) @ np.linalg.solve(oracle(X, X) + noise, Y)
    np.testing.assert_allclose(wl.posterior(k, X, Y, noise=0.1).mean(Z), expected, rtol=0, atol=1e-8)


def test_flow_and_functions_in_its_space():
    k = CASES["points"][0]()
    assert np.allclose(wl.gradient_flow(k, X, Y).predict(X, np.inf), Y)
    f = wl.rkhs.interpolant(k, X, Y)
    assert np.allclose(f(X), Y)
    assert f.norm() == pytest.approx(np.sqrt(Y @ np.linalg.solve(numpy_periodic(X, X), Y)))


def test_floats_are_hyper_parameters_and_nothing_else():
    assert sorted(jax.tree.leaves(CASES["points"][0]())) == [1.5, 3.0]
    assert jax.tree.leaves(CASES["blocks"][0]()) == [0.5]
    assert jax.tree.leaves(wl.kernel(jnp.dot)) == []
    k = CASES["points"][0]()
    with jax.enable_x64(True):
        slope = jax.grad(lambda k: jnp.sum(k.gram(jnp.asarray(X))))(k).parameters.keywords[0]
    h = 1e-6
    ends = [numpy_periodic(X, X, period=3.0 + sign * h).sum() for sign in (1, -1)]
    assert slope == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=1e-6)
    assert CASES["points"][0]() == CASES["points"][0]()


def test_hyper_parameters_are_fitted():
    def build(scale):
        return wl.kernel(functools.partial(periodic, period=6.0, scale=scale))

    how = {"noise": 0.05, "fit_noise": False, "restarts": 0}
    fit = wl.fit_hyperparameters(build, X, Y, start={"scale": 1.0}, bounds={"scale": (0.1, 10.0)}, **how)
    scale = fit.values["scale"]

    def evidence(s):
        K = numpy_periodic(X, X, 6.0, s) + 0.05 * np.eye(9)
        return -Y @ np.linalg.solve(K, Y) / 2 - np.linalg.slogdet(K)[1] / 2

    assert evidence(scale) > evidence(1.0) + 0.01
    for near in (0.97 * scale, 1.03 * scale):
        assert evidence(scale) > evidence(near)
    whole = wl.fit_hyperparameters(wl.kernel(functools.partial(periodic, period=6.0, scale=1.0)), X, Y, **how)
    assert len(whole.values) == 3  # and the noise


REFUSED = {
    "not a function": (lambda: wl.kernel(3.0), TypeError, "function of two points"),
    "flag": (lambda: wl.kernel(jnp.dot, blocks=1), TypeError, "blocks"),
    "parameter": (lambda: wl.kernel(functools.partial(periodic, period=np.nan, scale=1.0)), ValueError, "finite"),
    "unhashable": (
        lambda: wl.kernel(functools.partial(periodic, period=np.arange(3), scale=1.0)),
        TypeError,
        "hashable",
    ),
    "vector": (lambda: wl.kernel(lambda x, z: x * z).gram(X), ValueError, "blocks=True"),
    "points for blocks": (lambda: wl.kernel(jnp.vdot, blocks=True).gram(X), ValueError, "function"),
    "transposed": (lambda: wl.kernel(lambda A, B: B @ A.T, blocks=True).gram(X), ValueError, "(n, m)"),
    "asymmetric": (lambda: wl.kernel(lambda x, z: x @ z + x[0]).gram(X), ValueError, "not symmetric"),
    "NaN": (lambda: wl.kernel(lambda x, z: jnp.sqrt(x @ z)).gram(X), ValueError, "finite"),
    "negative": (lambda: wl.kernel(lambda x, z: -(x @ z)).gram(X), ValueError, ">= 0"),
    "NumPy": (lambda: wl.kernel(lambda x, z: np.exp(-np.sum((x - z) ** 2))).gram(X), TypeError, "jax.numpy"),
    "if": (lambda: wl.kernel(lambda x, z: x @ z if x[0] > 0 else 0.0).gram(X), TypeError, "jax.numpy"),
    "dtype": (lambda: wl.kernel(lambda x, z: (x @ z).astype(jnp.float32)).gram(X), TypeError, "float32"),
    "cross": (lambda: wl.kernel(lambda x, z: x @ z + x[0]).cross(X, Z), ValueError, "not symmetric"),
    "diag": (lambda: wl.kernel(lambda x, z: x * z).diag(X), ValueError, "blocks=True"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_kernel_is_refused(name):
    call, error, words = REFUSED[name]
    with pytest.raises(error) as caught:
        call()
    assert words in str(caught.value)
    assert len(str(caught.value)) < 400
