"""Machine code for pairs of images: against XLA and 60 digits, exact where images are equal, planted errors found."""

import re

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest

import cases
import oracles
import widelimit as wl
from test_images import errors, images
from widelimit.architecture.native import engine, nests, plan, program
from widelimit.arithmetic import arithmetic
from widelimit.inference import hyperparameters
from widelimit.kernels import images as kernels
from widelimit.kernels.network import NTK
from widelimit.layers import (
    AveragePool,
    Conv,
    Dense,
    Dropout,
    Flatten,
    Frozen,
    GlobalAveragePool,
    LayerNorm,
    Repeat,
    Residual,
    Sum,
)
from widelimit.signals import multiply

W = cases.IMAGE_WEIGHTS
w = cases.IMAGE_ORACLE
END, STEPS = [GlobalAveragePool(), Dense(**W)], [("pool",), ("dense", w)]
NETWORKS = {
    "odd sizes": (
        (4, 3, 2),
        [Conv((3, 2), **W), "relu", Conv(2, padding="valid"), "gelu", *END],
        [("conv", (3, 2), w), "relu", ("conv", (2, 2), {"padding": "valid"}), "gelu", *STEPS],
    ),
    "strides": (
        (5, 4, 1),
        [Conv(3, **W), "relu", Conv((2, 3), stride=(2, 1)), "leaky_relu", *END],
        [("conv", (3, 3), w), "relu", ("conv", (2, 3), {"stride": (2, 1)}), "leaky_relu", *STEPS],
    ),
    "around": (
        (4, 3, 2),
        [Conv(3, **W, padding="circular"), "relu", Conv(2, padding="circular"), "relu", *END],
        [
            ("conv", (3, 3), {**w, "padding": "circular"}),
            "relu",
            ("conv", (2, 2), {"padding": "circular"}),
            "relu",
            *STEPS,
        ],
    ),
    "residual": (
        (3, 3, 1),
        [Conv(3, **W), Repeat([Residual("relu", Conv(3, **W))], 6), LayerNorm(), "erf", *END],
        [("conv", (3, 3), w), *[("residual", "relu", ("conv", (3, 3), w))] * 6, "norm", "erf", *STEPS],
    ),
    "large patch": (
        (5, 4, 1),
        [Conv(7, **W), LayerNorm(), "relu", Conv(1, **W), "relu", Flatten(), Dense(**W)],
        [("conv", (7, 7), w), "norm", "relu", ("conv", (1, 1), w), "relu", "flatten", ("dense", w)],
    ),
    "pools between": (
        (5, 4, 1),
        [Conv(3, **W), "erf", AveragePool(2), Conv(2, **W), "erf", AveragePool(2, stride=1, padding="same"), *END],
        [("conv", (3, 3), w), "erf", ("pool", 2), ("conv", (2, 2), w), "erf", ("pool", 2, 1, "same"), *STEPS],
    ),
    "frozen layers": (
        (3, 2, 1),
        [Frozen(Conv(2, **W)), Conv(1, 0.7, 9.0), Residual("relu", Conv(1)), "erf", Conv(2), Flatten(), Dense()],
        [
            ("conv", (2, 2), {**w, "trained": False}),
            ("conv", (1, 1), {"w": 0.7, "b": 9.0}),
            ("residual", "relu", ("conv", (1, 1))),
            *["erf", ("conv", (2, 2)), "flatten", ("dense",)],
        ],
    ),
    "frozen before a pool": (
        (4, 3, 2),
        [Frozen(Conv(2, **W)), "relu", AveragePool(2), Conv(2, **W), "erf", *END],
        [("conv", (2, 2), {**w, "trained": False}), "relu", ("pool", 2), ("conv", (2, 2), w), "erf", *STEPS],
    ),
    "layers of one site": (
        (3, 2, 1),
        [Conv(2, **W), "relu", GlobalAveragePool(), Repeat([Conv(3, **W), Residual("erf", Dense(**W))], 2), *END],
        [("conv", (2, 2), w), "relu", ("pool",), *[("conv", (3, 3), w), ("residual", "erf", ("dense", w))] * 2, *STEPS],
    ),
    "a convolution of one site": (
        (3, 2, 1),
        [Conv(2, **W), "relu", Flatten(), Conv(3, **W), "relu", Dense(**W)],
        [("conv", (2, 2), w), "relu", "flatten", ("conv", (3, 3), w), "relu", ("dense", w)],
    ),
}
"""{name: (shape of an image, layers, the same as image_oracle reads it)}."""


def inputs(shape, dtype=np.float64):
    """Random, near duplicates, dark and constant regions, opposite and brighter images, twice the same, black."""
    X = images(shape, np.float64, 1.0)
    return np.concatenate([X, 3 * X[:1], X[2:3], 0 * X[:1], X[3:4] * (1 + 1e-7)]).astype(dtype)


def engine_of(k, X):
    return k.prepared(X.reshape(len(X), -1)).engine


@pytest.mark.parametrize("name", NETWORKS)
def test_both_kernels_to_64_eps(name):
    shape, layers, steps = NETWORKS[name]
    X, k = inputs(shape), wl.limits(wl.network(*layers, inputs=wl.Image(*shape)))
    assert engine_of(NTK(k.net), X).work > 0
    found = k.gram(X)
    assert max(errors(steps, X, found, [(0, 1), (2, 5), (3, 8), (4, 7)])) <= 64
    for K in found:
        assert np.array_equal(K, K.T)
        assert K[6, 2] == K[2, 2] == K[6, 6]


def own(u):
    return jnp.tanh(u) + 0.2 * u


def own_dual(x, c, y):
    """E[own(u) own(v)] and E[own'(u) own'(v)] by sums over a grid, whose error is below rounding."""
    grid = np.linspace(-9.5, 9.5, 191)
    weights = np.exp(-(grid**2) / 2) / np.exp(-(grid**2) / 2).sum()
    rho = c / mp.sqrt(x * y)
    rest = float(mp.sqrt(max(0, 1 - rho**2)))
    u, v = float(mp.sqrt(x)) * grid, float(mp.sqrt(y)) * (float(rho) * grid[:, None] + rest * grid)
    first, second = (lambda u: np.tanh(u) + 0.2 * u), (lambda u: 1 / np.cosh(u) ** 2 + 0.2)
    return tuple(mp.mpf(float((weights * f(u)) @ (f(v) @ weights))) for f in (first, second))


def test_own_activations_to_the_error_of_their_tables(monkeypatch):
    monkeypatch.setitem(oracles.DUALS, "own", own_dual)
    shape = (3, 2, 1)
    net = wl.network(
        Conv(2, **W), own, AveragePool(2, 1), Conv(1, **W), own, Flatten(), Dense(), inputs=wl.Image(*shape)
    )
    steps = [("conv", (2, 2), w), "own", ("pool", 2, 1), ("conv", (1, 1), w), "own", "flatten", ("dense",)]
    X = images(shape, np.float64, 1.0)
    found = wl.limits(net).gram(X)
    assert max(errors(steps, X, found, [(0, 1), (2, 4)])) * np.finfo(float).eps < net.rtol(np.float64)
    wrong = [K * (1 + 1e-9) for K in found]
    assert max(errors(steps, X, wrong, [(2, 4)])) * np.finfo(float).eps > net.rtol(np.float64)


@pytest.mark.parametrize("name", ["average", "pooled"])
def test_float32(name):
    shape, layers, steps = cases.IMAGE_NETWORKS[name]
    X = images(shape, np.float32, 1.0)
    grams = wl.limits(wl.network(*layers, inputs=wl.Image(*shape))).gram(X)
    found = errors(steps, X, grams, [(0, 2), (3, 4)])
    assert found[0] <= 64
    assert found[1] <= (2**12 if name == "pooled" else 64)


def test_all_but_one_case_run_in_machine_code(monkeypatch):
    monkeypatch.setattr(engine, "compiled", lambda *_: None)
    by_xla = []
    for name, (shape, layers, _) in cases.IMAGE_NETWORKS.items():
        try:
            engine.Engine(wl.network(*layers, inputs=wl.Image(*shape)), np.float32, tangent=False)
        except program.Unknown:
            by_xla.append(name)
    assert by_xla == ["locally connected"]


@pytest.mark.parametrize("name", ["flatten", "locally connected"])
def test_explain(name):
    shape, layers, _ = cases.IMAGE_NETWORKS[name]
    text = wl.nngp(wl.network(*layers, inputs=wl.Image(*shape))).explain(np.ones((2, *shape), np.float32))
    known = r"machine code, 16 .*\nstate: .* a thread.*\ntime: .* s an image, .* s a pair, .* 2 images"
    assert "XLA" in text if name == "locally connected" else re.search(known, text)


@pytest.mark.parametrize(
    ("place", "name", "wrong"),
    [
        (nests.Nest, "shifted", lambda _, i, __: i),
        (nests, "OPPOSITE", 3.0),
        (plan.Plan, "_factors", lambda _, windows: [(1, 1, 1)] * len(windows)),
    ],
)
def test_planted_errors_are_found(place, name, wrong, monkeypatch):
    shape, steps = (4, 3, 2), [("conv", 2, {"stride": 2}), "relu", ("pool",), ("dense",)]
    net = wl.network(Conv(2, stride=2), "relu", GlobalAveragePool(), Dense(), inputs=wl.Image(*shape))
    X = images(shape, np.float64, 1.0)
    X[1] = 1e-7 * X[3] - X[0]
    flat = X.reshape(5, -1)

    def worst():
        k = kernels.InMachineCode(engine.Engine(net, np.float64, tangent=True), (False, True))
        with arithmetic(True):
            x = k.encode(flat)
            K = np.asarray(k.pairwise(x, x))
            np.fill_diagonal(K, k.diagonal(x))
        return max(errors(steps, X, (K.real, K.imag), [(0, 1), (0, 2)]))

    assert worst() <= 64
    monkeypatch.setattr(place, name, wrong)
    assert worst() > 1e3


def test_branches_with_patches_of_two_kinds_add():
    shape, start = (5, 4, 2), [Conv(3, **W), "relu"]
    branches = [[Conv(2, stride=2)], [Conv((3, 1), stride=2)]]
    X = inputs(shape)
    both, *each = (
        wl.limits(wl.network(*start, *layers, GlobalAveragePool(), Dense(), inputs=wl.Image(*shape))).gram(X)
        for layers in ([Sum(*branches)], *branches)
    )
    for k in (0, 1):
        assert np.abs(both[k] - each[0][k] - each[1][k]).max() <= 32 * np.finfo(float).eps * both[k].max()


def test_other_processors_give_the_same():
    shape, layers, _ = NETWORKS["strides"]
    net, X = wl.network(*layers, inputs=wl.Image(*shape)), inputs(shape).reshape(9, -1)
    made = [engine.Engine(net, np.float32, tangent=True, cpu=cpu) for cpu in ("", "x86-64-v3")]
    found = [e.pair(x, x) for e in made for x in [e.encode(X.astype(np.float32))]]
    for a, b in zip(*found, strict=True):
        assert np.abs(a - b).max() <= 64 * np.finfo(np.float32).eps * np.abs(a).max()


def test_layers_alike_share_their_code():
    layers = [Conv(3, weight_std=1.5), "relu"]
    texts = []
    for times in (3, 9):
        made = engine.Engine(wl.network(*layers * times, *END, inputs=wl.Image(6, 6, 1)), np.float32, tangent=True)
        texts.append(engine.write(made.plans[0]).count("define internal"))
    assert texts[0] == texts[1] <= 4


def test_hyper_parameters_are_numbers_of_the_code():
    nets = [wl.network(Conv(3, weight_std=w), "leaky_relu", *END, inputs=wl.Image(4, 4, 1)) for w in (1.0, 1.5)]
    made = [engine.Engine(net, np.float32, tangent=True) for net in nets]
    assert made[0].codes[0] is made[1].codes[0]


@wl.pytree
class Half(wl.layers.Layer):
    """A layer of a user's: a -> a/2, which keeps the gaps."""

    def init(self, key, inputs, outputs, dtype):
        return ()

    def apply(self, params, signals):
        return signals / 2

    def encode(self, signal):
        return multiply(signal, 0.5), ()

    def pair(self, x, y, state):
        return state


def test_masks_and_layers_of_users_as_by_xla(monkeypatch):
    shape = (3, 3, 1)
    k = wl.limits(wl.network(Conv(2), Dropout(0.7), Half(), Flatten(), Dense(), inputs=wl.Image(*shape)))
    X = images(shape, np.float64, 1.0)
    X[3] = X[0]  # masks differ between equal images, but for one with itself
    found = k.gram(X), k.cross(X[:1], X)
    assert engine_of(NTK(k.net), X).work > 0
    monkeypatch.setattr(kernels, "in_machine_code", lambda kernel, *_: kernel)
    known = k.gram(X), k.cross(X[:1], X)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(known), strict=True):
        assert np.abs(a - b).max() <= 16 * np.finfo(float).eps * b.max()
    assert found[0][0][0, 3] < 0.9 * found[0][0][0, 0]


def test_the_rest_stays_with_xla():
    shape = (3, 3, 1)
    X = images(shape, np.float64, 1.0).reshape(5, -1)
    branch = Residual("relu", AveragePool(3, stride=1, padding="same"), Conv(1))
    assert isinstance(
        wl.nngp(wl.network(Conv(3), branch, "relu", *END, inputs=wl.Image(*shape))).prepared(X), wl.Kernel
    )
    k = wl.nngp(wl.network(Conv(3), "relu", *END, inputs=wl.Image(*shape)))
    with arithmetic(True):
        Z = jnp.asarray(X)
        traced = jax.eval_shape(k.gram, Z)
    assert traced.shape == (5, 5)
    for found in (k.gram(Z), k.cross(Z, Z), jnp.diag(k.diag(Z))):
        assert isinstance(found, jax.Array)
        assert found.dtype == np.float64
        assert np.abs(np.diag(found) - k.diag(X)).max() <= 1e-15


def test_kernels_of_kernels_tiles_and_disk(tmp_path, monkeypatch):
    shape, layers, _ = cases.IMAGE_NETWORKS["flatten"]
    k = wl.nngp(wl.network(*layers, inputs=wl.Image(*shape)))
    X = np.random.default_rng(1).standard_normal((70, *shape)).reshape(70, -1)
    K = k.gram(X)
    assert np.array_equal((2.0 * k + k).gram(X), 2.0 * K + K)
    monkeypatch.setattr(kernels, "TILE", 1.0)
    assert k.prepared(X).largest_tile < 64
    assert np.array_equal(k.gram(X), K)
    assert np.array_equal(wl.stored_gram(k, X, tmp_path / "K.zarr")[:], K)
    assert np.abs(k.cross(X[:3], X) - K[:3]).max() <= 1e-14 * K.max()
    process = wl.posterior(k, X[:40], X[:40, 0], noise=0.1)
    assert np.isfinite(process.predict(X[40:]).variance).all()


@pytest.mark.parametrize("name", ["strides", "around", "frozen before a pool"])
def test_images_are_encoded_in_machine_code_as_by_numpy(name):
    shape, layers, _ = NETWORKS[name]
    made = engine.Engine(wl.network(*layers, inputs=wl.Image(*shape)), np.float64, tangent=True)
    X = inputs(shape).reshape(9, -1)
    assert None not in made.singles
    found = made.encode(X)
    made.singles = [None] * len(made.singles)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(made.encode(X)), strict=True):
        assert np.abs(a - b).max() <= 32 * np.finfo(float).eps * np.abs(b).max()


def test_sites_whose_squares_are_0_are_encoded_by_numpy(monkeypatch):
    dark = np.full((1, 12), 1e-220)
    dark[0, 0] = 1.0

    def alike(size):
        net = wl.network(Conv(size), "relu", *END, inputs=wl.Image(4, 3, 1))
        made = engine.Engine(net, np.float64, tangent=True)
        found, made.singles = made.encode(dark).packed, [None]
        return np.array_equal(found, made.encode(dark).packed)

    assert alike(2)
    monkeypatch.setattr(program._Traced, "choose", lambda _, __, ___, usual, *given: usual(*given))
    assert not alike((2, 1))


def test_other_numbers_take_the_code_that_is_there(monkeypatch):
    shape = (4, 3, 1)
    X, known = images(shape, np.float64, 1.0), {}

    def kernel(w, b):
        return wl.limits(
            wl.network(Conv(3, w, b), "relu", AveragePool(2), Conv(1, w), "relu", *END, inputs=wl.Image(*shape))
        )

    for numbers in ((1.0, 0.5), (1.7, 0.1)):
        kernels._engine_alike.cache_clear()
        kernels.engine_of.cache_clear()
        known[numbers] = kernel(*numbers).gram(X)
    monkeypatch.setattr(kernels, "_engine", None)
    kernels.engine_of.cache_clear()
    for numbers, grams in known.items():
        assert np.array_equal(kernel(*numbers).gram(X), grams)


def test_hyper_parameters_of_images_are_found_by_differences(monkeypatch):
    X, given = images((3, 3, 1), np.float64, 1.0), {"noise": 0.1, "restarts": 0, "max_steps": 2}
    k = wl.nngp(wl.network(Conv(2, 1.5, 0.2), "relu", Flatten(), Dense(1.0, 0.1), inputs=wl.Image(3, 3, 1)))

    def refused(*_):
        raise LookupError("autodiff")

    monkeypatch.setitem(hyperparameters.SLOPES, "autodiff", refused)
    found = wl.fit_hyperparameters(k, X, X[:, 0, 0, 0], **given)
    assert found.score == wl.fit_hyperparameters(k, X, X[:, 0, 0, 0], gradient="differences", **given).score
    with pytest.raises(LookupError, match="autodiff"):
        wl.fit_hyperparameters(wl.rbf(), X.reshape(5, -1), X[:, 0, 0, 0], **given)
