"""What is computed belongs to its result: neither the caller's arrays nor those handed out change it afterwards."""

import functools
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

import widelimit as wl

RNG = np.random.default_rng(7)
DATA = {
    "X": RNG.standard_normal((24, 2)),
    "y": RNG.standard_normal(24),
    "two": RNG.standard_normal((24, 2)),
    "noise": RNG.uniform(0.1, 0.2, 24),
    "labels": RNG.integers(0, 2, 24),
    "scales": np.array([0.7, 1.3]),
    "matrix": (lambda a: a @ a.T)(RNG.standard_normal((24, 30))),
    "mixing": np.array([[1.0, 0.3], [0.3, 1.0]]),
    "params": RNG.standard_normal((2, 1)),
}
Z = RNG.standard_normal((5, 2))
NET = wl.mlp(depth=2, activation="relu", bias_std=0.3)
K, T = wl.nngp(NET), wl.ntk(NET)


def apply(params, A):
    return jnp.tanh(A @ params)


def scaled_product(x, z, *, scales):
    return jnp.sum(x * z / jnp.asarray(scales, x.dtype) ** 2)


class Scaled(eqx.Module):
    scales: Any

    def __call__(self, x, z):
        return scaled_product(x, z, scales=self.scales)


def stored(matrix):
    k = wl.precomputed(matrix)
    return wl.posterior(k, k.indices[:20], DATA["y"][:20], noise=0.1).mean(k.indices[20:])


KEEPERS = {
    "kernel": lambda d: wl.kernel(functools.partial(scaled_product, scales=d["scales"])).gram,
    "kernel, module": lambda d: wl.kernel(Scaled(d["scales"])).gram,
    "posterior": lambda d: wl.posterior(K, d["X"], d["y"], noise=d["noise"]).predict,
    "posterior, float32": lambda d: wl.posterior(K, d["X"].astype(np.float32), d["y"], noise=d["noise"]).mean,
    "posterior, cg": lambda d: wl.posterior(K, d["X"], d["two"], noise=d["noise"], solver="cg").predict,
    "posterior, mixed": lambda d: wl.posterior(K, d["X"], d["y"], noise=0.1, solver="cholesky", precision="mixed").mean,
    "posterior, later": lambda d: (lambda p: lambda _: (p.leave_one_out().mean, p.residual > 1e-9))(
        wl.posterior(K, d["X"], d["y"], noise=d["noise"])
    ),
    "gradient_flow": lambda d: (lambda f: lambda A: (f.predict(A, 3.0), f.loss(2.0)))(
        wl.gradient_flow(T, d["X"], d["y"])
    ),
    "gradient_flow, krylov": lambda d: (lambda f: lambda A: (f.predict(A, [3.0, np.inf]), f.loss(2.0)))(
        wl.gradient_flow(T, d["X"], d["y"], solver="krylov")
    ),
    "WeightedSquaredError": lambda d: (lambda loss: lambda _: loss.value(DATA["y"], 0 * DATA["y"]))(
        wl.WeightedSquaredError(d["noise"])
    ),
    "gradient_descent": lambda d: (lambda f: lambda A: (f.predict(A), f.loss()))(
        wl.gradient_descent(T, d["X"], d["y"], learning_rate=0.1, steps=20)
    ),
    "trained_ensemble": lambda d: (lambda e: lambda A: (e.mean(A, 3.0), e.variance(A, 3.0)))(
        wl.trained_ensemble(NET, d["X"], d["y"])
    ),
    "GaussianProcess.condition": lambda d: (lambda g: lambda A: (g.mean(A), g.kernel.gram(A)))(
        wl.GaussianProcess(K).condition(d["X"], d["y"], noise=d["noise"])
    ),
    "rkhs.Function": lambda d: wl.rkhs.Function(K, d["X"], d["y"]),
    "rkhs.ridge": lambda d: wl.rkhs.ridge(K, d["X"], d["y"], regularization=0.1),
    "precomputed": lambda d: (lambda k: lambda _: k.gram(k.indices))(wl.precomputed(d["matrix"])),
    "separable": lambda d: wl.separable(K, d["mixing"]).gram,
    "rbf": lambda d: wl.rbf(d["scales"]).gram,
    "scale_inputs": lambda d: wl.scale_inputs(K, d["scales"]).gram,
    "empirical_ntk": lambda d: wl.empirical_ntk(apply, d["params"]).gram,
    "linearize": lambda d: (lambda f: lambda A: f(DATA["params"], A))(wl.linearize(apply, d["params"])),
    "train": lambda d: (lambda t: lambda _: t.params)(
        wl.train(apply, d["params"], d["X"], d["y"], learning_rate=0.1, steps=0, progress=False)
    ),
    "NNGPRegressor": lambda d: wl.NNGPRegressor(noise=0.1, normalize=None).fit(d["X"], d["two"], d["noise"]).predict,
    "NTKRegressor": lambda d: wl.NTKRegressor(noise=0.1, time=3.0).fit(d["X"], d["y"]).predict,
    "NNGPClassifier": lambda d: wl.NNGPClassifier().fit(d["X"], d["labels"]).predict_proba,
    "NTKFeatures": lambda d: wl.NTKFeatures(5, normalize=None).fit(d["X"]).transform,
}


def numbers(values):
    values = values if isinstance(values, tuple) else (values,)
    return np.concatenate([np.ravel(np.asarray(v, float)) for v in values])


@pytest.mark.parametrize("name", KEEPERS)
def test_results_do_not_change_with_the_arrays_they_were_made_of(name):
    mine = {key: value.copy() for key, value in DATA.items()}
    expected = numbers(KEEPERS[name](DATA)(Z))
    answer = KEEPERS[name](mine)
    for value in mine.values():
        value[...] = 3
    np.testing.assert_array_equal(numbers(answer(Z)), expected)


def test_the_law_sees_a_borrowed_array():
    """The negative control: a result that keeps a reference."""
    mine = DATA["X"].copy()
    answer = (lambda X: lambda A: K.cross(A, X))(mine)
    before = answer(Z)
    mine[...] = 3
    assert (answer(Z) != before).any()


def handed_out():
    post = wl.posterior(K, DATA["X"], DATA["y"], noise=DATA["noise"])
    flow = wl.gradient_flow(T, DATA["X"], DATA["y"])
    f = wl.rkhs.interpolant(K, DATA["X"], DATA["y"])
    model = wl.NNGPRegressor(noise=0.1).fit(DATA["X"], DATA["two"])
    yield from ((post, name, getattr(post, name)) for name in ("weights", "noise"))
    yield from ((post, name, getattr(post.data, name)) for name in ("X", "y"))
    yield from ((flow, name, getattr(flow, name)) for name in ("values", "vectors", "residual"))
    yield from ((f, name, getattr(f, name)) for name in ("centers", "coefficients"))
    yield from ((model, name, getattr(model, name)) for name in ("X_train_", "y_train_", "y_mean_", "y_scale_"))
    yield model, "coefficients", model.fitted_.coefficients
    yield flow, "modes", flow.modes().vectors


def test_arrays_that_results_go_on_computing_with_are_read_only():
    for owner, name, array in handed_out():
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 3
        assert not array.flags.writeable, (owner, name)
    wl.posterior(K, DATA["X"], DATA["y"], noise=0.1).mean(Z)[0] = 3  # what is only an answer is the caller's


CHANGES = {
    "all": np.s_[:],
    "one entry and its mirror": ([3, 7], [7, 3]),
    "one on the diagonal": (23, 23),
}


@pytest.mark.parametrize("where", CHANGES)
def test_a_stored_matrix_that_changed_is_reported_and_never_read_in_silence(where, tmp_path):
    gram = np.asarray(K.gram(DATA["X"]))
    on_disk = np.lib.format.open_memmap(tmp_path / "gram.npy", "w+", np.float64, gram.shape)
    on_disk[:] = gram
    for matrix in (gram.copy(), on_disk):
        post = wl.posterior(K, DATA["X"], DATA["y"], noise=0.1, matrix=matrix)
        mean, before = post.mean(Z), post.predict(Z)
        matrix[CHANGES[where]] *= 1 + 1e-9
        np.testing.assert_array_equal(post.mean(Z), mean)
        for name in ("predict", "variance", "covariance"):
            with pytest.raises(ValueError, match="matrix has changed since"):
                getattr(post, name)(Z)
        matrix[:] = gram
        np.testing.assert_array_equal(post.predict(Z).variance, before.variance)
