"""Laws that every kernel of every network keeps, and the finite network of the same description."""

import functools
import pickle
from dataclasses import FrozenInstanceError, dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import widelimit as wl
from cases import ACTIVATIONS, CORE, DTYPES, KERNELS, networks
from compiled import quick_jit
from widelimit import memory
from widelimit.architecture.state import held_in_gradients
from widelimit.compute import plan, tiles

RNG = np.random.default_rng(0)
X = np.vstack([RNG.standard_normal((21, 4)), np.zeros((1, 4))])
X[3], X[7] = X[2], -X[5]
Y = RNG.standard_normal((18, 4))  # the same bucket of shapes as X
NETWORKS = networks()


@pytest.mark.parametrize("kind", KERNELS)
@pytest.mark.parametrize("name", NETWORKS)
def test_laws(name, kind):
    k = KERNELS[kind](NETWORKS[name])
    for dtype in DTYPES.values() if "depth3" in name else [np.float64]:
        eps = np.finfo(dtype).eps
        gram, diag = k.gram(X.astype(dtype)), k.diag(X.astype(dtype))
        scale = np.sqrt(np.outer(diag, diag)) + np.finfo(dtype).tiny
        assert gram.dtype == diag.dtype == dtype
        assert type(gram) is np.ndarray
        assert (gram == gram.T).all()
        assert (np.diagonal(gram) == diag).all()
        assert (np.abs(gram - k.cross(X.astype(dtype), X.astype(dtype))) <= 64 * eps * scale).all()
        np.testing.assert_array_equal(k.cross(X.astype(dtype), Y.astype(dtype)).shape, (22, 18))
        spectrum = np.linalg.eigvalsh(gram.astype(np.float64))
        assert spectrum[0] >= -len(X) * eps * spectrum[-1]


def test_depth_one_is_the_linear_kernel_and_both_kernels_agree():
    net = wl.mlp(depth=1, activation="erf", weight_std=1.5, bias_std=0.3)
    exact = 1.5**2 / 4 * X @ X.T + 0.3**2
    np.testing.assert_allclose(wl.nngp(net).gram(X), exact, rtol=1e-14, atol=1e-15)
    np.testing.assert_array_equal(wl.nngp(net).gram(X), wl.ntk(net).gram(X))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_depth_one_has_no_activation(name):
    """Neither tables, nor jumps, nor kinks matter, on unequal and on equal norms, in a trace too."""
    k = wl.ntk(wl.mlp(depth=1, activation=ACTIVATIONS[name], weight_std=1.5, bias_std=0.3))
    for points in (X, X[:21] / np.linalg.norm(X[:21], axis=1, keepdims=True)):
        exact = 1.5**2 / 4 * points @ points.T + 0.3**2
        np.testing.assert_allclose(k.gram(points), exact, rtol=1e-14, atol=1e-14)
    if name in ("numerical", "sign"):
        with jax.enable_x64(True):
            traced = jax.jit(lambda points: k.gram(points))(X)
        np.testing.assert_allclose(traced, 1.5**2 / 4 * X @ X.T + 0.3**2, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("kind", KERNELS)
def test_tiles_give_the_whole(kind, monkeypatch):
    k = KERNELS[kind](wl.mlp(depth=3, activation="relu", weight_std=1.2, bias_std=0.1))
    whole, block, diag = k.gram(X), k.cross(X, Y), k.diag(X)
    monkeypatch.setattr(plan, "LARGEST", 8)
    np.testing.assert_allclose(k.gram(X), whole, rtol=1e-14)
    np.testing.assert_allclose(k.cross(X, Y), block, rtol=1e-13, atol=1e-15)
    np.testing.assert_array_equal(k.diag(X), diag)
    assert (k.gram(X) == k.gram(X).T).all()
    assert (np.diagonal(k.gram(X)) == k.diag(X)).all()


def test_few_shapes_are_compiled():
    k, few = wl.nngp(wl.mlp(depth=4, activation="abs", weight_std=1.7)), X[:, :3]  # which no other test has
    before = tiles._encodes[True]._cache_size()
    k.gram(few[:17])
    assert tiles._encodes[True]._cache_size() == before + 1
    for n in range(17, 23):
        k.gram(few[:n])
    assert tiles._encodes[True]._cache_size() == before + 1
    k.gram(np.vstack([few, few])[:40])
    assert tiles._encodes[True]._cache_size() == before + 2


def test_hyper_parameters_do_not_recompile():
    wl.ntk(wl.mlp(depth=2, weight_std=1.7)).gram(X)
    before = tiles._encodes[True]._cache_size()
    wl.ntk(wl.mlp(depth=2, weight_std=1.8, bias_std=0.2)).gram(X)
    assert tiles._encodes[True]._cache_size() == before


def test_structures_of_different_things_differ():
    """Compiled functions are found by the structure of their arguments: two kernels must never be taken for one."""
    kernels = [make(net) for net in NETWORKS.values() for make in KERNELS.values()]
    values = [*kernels, *ACTIVATIONS.values()]
    structures = [jax.tree.structure(value) for value in values]
    for value, structure in zip(values, structures, strict=True):
        alike = [other for j, other in enumerate(values) if structures[j] == structure]
        assert all(other == value for other in alike)  # networks of depth 1 have no activation: they are one network
        assert len(alike) == 1 or value.net.depth == 1
        assert jax.tree.unflatten(structure, jax.tree.leaves(value)) == value


@pytest.mark.parametrize("kind", KERNELS)
def test_jax_arrays_stay_jax_arrays(kind):
    k = KERNELS[kind](wl.mlp(depth=2, activation="erf", bias_std=0.1))
    single = k.gram(jnp.asarray(X, jnp.float32))
    assert isinstance(single, jax.Array)
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(single, k.gram(X.astype(np.float32)), rtol=1e-5, atol=1e-6)
    with jax.enable_x64(True):
        double = jnp.asarray(X)
        np.testing.assert_allclose(jax.jit(k.gram)(double), k.gram(X), rtol=1e-13, atol=1e-15)
    assert k.gram(double).dtype == jnp.float64
    assert k.diag(double).dtype == k.cross(double, double).dtype == jnp.float64
    mixed = k.cross(jnp.asarray(X, jnp.float32), X)  # nothing is cast down
    assert isinstance(mixed, jax.Array)
    assert mixed.dtype == jnp.float64
    np.testing.assert_allclose(mixed, k.cross(X.astype(np.float32), X), rtol=1e-13, atol=1e-15)
    assert not jax.config.jax_enable_x64


def test_float64_does_not_need_the_global_switch():
    assert not jax.config.jax_enable_x64
    k = wl.ntk(wl.mlp(depth=3, bias_std=0.1))
    assert k.gram(X).dtype == np.float64
    assert k.cross(X, X.astype(np.float32)).dtype == np.float64
    assert np.abs(k.gram(X) - k.gram(X.astype(np.float32))).max() > 1e-9


# --- gradients --------------------


def by_all(values):
    """Derivatives of `values` of a network's points by x, y, weight_std and bias_std."""

    def at(x, y, weight_std, bias_std, activation, depth):
        net = wl.mlp(depth=depth, activation=activation, weight_std=weight_std, bias_std=bias_std)
        return values(net, x[None], y[None])

    return lambda *a, activation, depth: jax.jacrev(lambda *b: at(*b, activation, depth), argnums=(0, 1, 2, 3))(*a)


@functools.cache
def compiled(activation, depth):
    """Of both kernels, in their order, for many points at once: points and scales are values of one program."""
    both = by_all(lambda net, x, y: jnp.stack(wl.limits(net).cross(x, y))[:, 0, 0])
    return quick_jit(jax.vmap(functools.partial(both, activation=activation, depth=depth)))


PAIRS = 42
"""How many `gradients` computes, so that all tests have one shape."""


def gradients(kind, activation, cases, depth=3):
    """Lists by x, y, weight_std and bias_std at [(x, y, weight_std, bias_std)]."""
    filled = [cases[i % len(cases)] for i in range(PAIRS)]
    with jax.enable_x64(True):
        found = compiled(activation, depth)(*(np.array(column, np.float64) for column in zip(*filled, strict=True)))
    return [[np.asarray(column)[i, [*KERNELS].index(kind)] for column in found] for i in range(len(cases))]


@pytest.mark.parametrize("activation", CORE)
@pytest.mark.parametrize("kind", KERNELS)
def test_gradients_are_finite_everywhere(kind, activation):
    x = np.array([0.3, -0.7, 1.1])
    near = x + np.array([1e-9, 0, 0])
    pairs = [pair for y in (x, -x, 0 * x, near, -near, 2 * x, 1e-150 * x) for pair in ((x, y), (y, x), (y, y))]
    cases = [(*pair, 1.3, bias_std) for pair in pairs for bias_std in (0.0, 0.4)]
    for case, found in zip(cases, gradients(kind, activation, cases), strict=True):
        for gradient in found:
            assert np.isfinite(gradient).all(), (case, gradient)


def test_gradients_without_jit_are_the_compiled_ones():
    """Of a smooth activation; test_gradients_at_cusps.py has those with kinks."""
    x, z = np.array([0.3, -0.7, 1.1]), np.array([-0.5, 0.2, 0.9])
    cases = [(x, y, 1.3, 0.4) for y in (x, -x, 0 * x, z, x + 1e-9 * z)]
    slopes = functools.partial(by_all(lambda net, x, y: wl.nngp(net).cross(x, y)[0, 0]), activation="erf", depth=2)
    with jax.enable_x64(True):
        given = [[jnp.asarray(v, jnp.float64) for v in case] for case in cases]
        found, expected = ([run(*case) for case in given] for run in (slopes, quick_jit(slopes)))
    for case, ours, theirs in zip(cases, found, expected, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12, err_msg=str(case))


@pytest.mark.parametrize("activation", CORE)
@pytest.mark.parametrize("kind", KERNELS)
def test_gradients_equal_finite_differences(kind, activation):
    x, y = np.array([0.3, -0.7, 1.1]), np.array([-0.5, 0.2, 0.9])
    points = [(x, y, 1.3, 0.4), (x, -y, 1.3, 0.0), (0 * x, y, 1.3, 0.4), (x, x + 0.05 * y, 0.8, 0.1)]
    h = 1e-6  # error of central differences: h^2 and eps/h, both below 1e-9
    for (x, y, weight_std, bias_std), found in zip(points, gradients(kind, activation, points), strict=True):
        flat = np.concatenate([x, y, [weight_std, bias_std]])

        def value(v):
            k = KERNELS[kind](wl.mlp(depth=3, activation=activation, weight_std=v[6], bias_std=abs(v[7])))
            return k.cross(v[None, :3], v[None, 3:6])[0, 0]

        shifts = h * np.eye(8)
        numerical = np.array([(value(flat + s) - value(flat - s)) / (2 * h) for s in shifts])
        if bias_std == 0:
            numerical[7] = 0  # K is even in bias_std
        exact = np.concatenate([np.atleast_1d(gradient) for gradient in found])
        np.testing.assert_allclose(exact, numerical, rtol=2e-7, atol=2e-8)
        assert np.abs(1.01 * exact - numerical).max() > 1e-3  # the comparison can fail


def test_nothing_is_nan_at_the_ends_of_the_range():
    for dtype in DTYPES.values():
        info = np.finfo(dtype)
        rows = np.array([[1, -2, 0, 0], [0.5, 1, 0, 0]]) / 2
        data = np.vstack([rows * size for size in (info.max, info.tiny, 1, info.tiny**0.7, info.max**0.7)])
        data = np.resize(data, X.shape).astype(dtype)  # the shape and depth of test_laws: the same programs
        for activation in CORE:
            for bias_std in (0.0, 1e-8, 1.0, 1e8):
                k = wl.ntk(wl.mlp(depth=3, activation=activation, weight_std=1.5, bias_std=bias_std))
                assert not np.isnan(k.gram(data)).any(), (activation, bias_std)


@pytest.mark.parametrize(("dtype", "weight_std", "size"), [(np.float64, 1e160, 1e-150), (np.float32, 1e20, 1e-15)])
def test_large_weights_do_not_overflow_on_the_way(dtype, weight_std, size):
    k = wl.nngp(wl.mlp(depth=1, weight_std=weight_std))
    np.testing.assert_allclose(k.gram(np.array([[size]], dtype)), (weight_std * size) ** 2, rtol=1e-6)


def test_kernels_can_be_pickled():
    k = wl.ntk(wl.mlp(depth=3, activation=wl.LeakyRelu(0.2), bias_std=0.1))
    assert pickle.loads(pickle.dumps(k)) == k


def test_gradients_of_batches_of_batches():
    """What holds the work of layers is a branch; one that every element of a batch chose, JAX would not transpose."""
    x = jnp.arange(6.0).reshape(1, 2, 3)

    def total(x):
        return jax.vmap(jax.vmap(lambda row: (row * held_in_gradients(row)).sum()))(x).sum()

    np.testing.assert_array_equal(jax.grad(total)(x), 2 * x)


def test_gram_and_diag_are_differentiable_and_agree():
    with jax.enable_x64(True):
        k, data = wl.ntk(wl.mlp(depth=3, bias_std=0.1)), jnp.asarray(X)
        through_gram = quick_jit(jax.grad(lambda Z: jnp.trace(k.gram(Z))))(data)
        through_diag = quick_jit(jax.grad(lambda Z: jnp.sum(k.diag(Z))))(data)
        np.testing.assert_allclose(through_gram, through_diag, rtol=1e-12, atol=1e-14)
        assert np.abs(through_diag).max() > 0.1


# --- the finite network of the same description --------------------

INPUTS = np.array([[0.3, -0.7, 1.1], [-0.5, 0.2, 0.9], [0.4, -0.6, 1.0]], np.float32)


def z_scores(samples, expected, bias):
    """(mean - expected) in standard errors, after the allowance `bias` for the O(1/width) of a finite network."""
    mean, error = samples.mean(0), samples.std(0, ddof=1) / np.sqrt(len(samples))
    return np.maximum(np.abs(mean - expected) - bias, 0) / error


FINITE = {  # (activation, allowance over 1/width, a wrong factor)
    **{name: (activation, 2, 1.08) for name, activation in CORE.items()},
    "tanh": ("tanh", 4, 1.1),
    "callable": (lambda u: jnp.sin(u) + 0.1 * u**2, 4, 1.1),
}
WIDTH = 512


def finite(name):
    return wl.mlp(depth=3, activation=FINITE[name][0], weight_std=1.4, bias_std=0.3)


@functools.cache
def second_moments():
    """{activation: of the outputs of 200 networks, (200, 3, 3)}; all activations have the same 200 parameters."""
    nets = {name: finite(name) for name in FINITE}

    def moments(key):
        params = nets["relu"].init_with_key(key, [3, WIDTH, WIDTH, WIDTH], jnp.float32)
        outputs = {name: net.apply(params, INPUTS) for name, net in nets.items()}
        return {name: f @ f.T / WIDTH for name, f in outputs.items()}

    found = jax.lax.map(moments, jax.random.split(jax.random.key(0), 200))
    return {name: np.asarray(samples, np.float64) for name, samples in found.items()}


@pytest.mark.parametrize("name", FINITE)
def test_finite_networks_have_the_limits_covariance(name):
    """Theorem 2.6: 200 networks of width 512 with 512 outputs each. Seed 0; chance of a false alarm below 1e-4."""
    _, allowed, wrong = FINITE[name]
    samples, expected = second_moments()[name], wl.nngp(finite(name)).gram(INPUTS.astype(np.float64))
    allowance = allowed / WIDTH * expected.max()
    assert z_scores(samples, expected, allowance).max() < 4.5
    assert z_scores(samples, wrong * expected, allowance).max() > 4.5


@pytest.mark.parametrize("activation", CORE.values(), ids=CORE)
def test_finite_networks_have_the_limits_tangent_kernel(activation):
    """Theorem 4.1: the mean of <grad f, grad f> over 60 networks of width 384. Seed 1; false alarm below 1e-4."""
    net = wl.mlp(depth=3, activation=activation, weight_std=1.4, bias_std=0.3)
    width = 384

    @jax.jit
    def tangent(key):
        params = net.init_with_key(key, [3, width, width, 1], jnp.float32)
        jacobian = jax.jacrev(lambda p: net.apply(p, INPUTS)[:, 0])(params)
        return sum(jnp.einsum("i...,j...->ij", leaf, leaf) for leaf in jax.tree.leaves(jacobian))

    samples = np.asarray(jax.lax.map(tangent, jax.random.split(jax.random.key(1), 60)), np.float64)
    expected = wl.ntk(net).gram(INPUTS.astype(np.float64))
    allowance = 4 / width * expected.max()
    assert z_scores(samples, expected, allowance).max() < 4.5
    assert z_scores(samples, 1.15 * expected, allowance).max() > 4.5
    assert z_scores(samples, wl.nngp(net).gram(INPUTS.astype(np.float64)), allowance).max() > 4.5


def test_apply_is_the_formula_of_section_2_2():
    net = wl.mlp(depth=3, activation="erf", weight_std=1.5, bias_std=0.2)
    params = net.init(7, input_dim=3, width=[4, 5], output_dim=2)
    first, _, second, _, third = params
    a = INPUTS
    for i, layer in enumerate((first, second, third)):
        a = a @ np.asarray(layer["weight"]).T * 1.5 / np.sqrt(a.shape[1]) + 0.2 * np.asarray(layer["bias"])
        if i < 2:
            a = np.asarray(jax.scipy.special.erf(a))
    np.testing.assert_allclose(net.apply(params, INPUTS), a, rtol=2e-5)
    assert [layer["weight"].shape for layer in (first, second, third)] == [(4, 3), (5, 4), (2, 5)]
    again = net.init(7, input_dim=3, width=[4, 5], output_dim=2)
    np.testing.assert_array_equal(first["weight"], again[0]["weight"])
    assert np.abs(first["weight"] - net.init(8, input_dim=3, width=[4, 5])[0]["weight"]).max() > 0.1


def test_a_result_that_cannot_fit_is_refused_before_allocation(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 1000)
    k = wl.nngp(wl.mlp(depth=2))
    with pytest.raises(MemoryError, match=r"22 x 22 float64 kernel matrix needs 3.8 KiB"):
        k.gram(X)
    with pytest.raises(MemoryError, match="22 x 18"):
        k.cross(X, Y)
    monkeypatch.undo()
    with pytest.raises(MemoryError, match=r"needs 7450580596\.9 GiB"):
        tiles.gram(k, np.broadcast_to(np.zeros((1, 1)), (10**9, 1)))


@wl.pytree
@dataclass(frozen=True)
class Square(wl.Activation):
    """phi(u) = u^2, as a user writes it."""

    name = "square"

    def __call__(self, u):
        return u**2

    def encode(self, signal):
        return wl.Variance(3 * signal.value**2, 2 * signal.exponent).normalise(), ()

    def correlate(self, x, y, correlation):
        one_minus = 2 / 3 * correlation.one_minus * correlation.one_plus
        return wl.Correlation(one_minus, 2 - one_minus), 4 / 3 * correlation.rho


@wl.pytree
class Matern(wl.Kernel):
    """K(x, x') = (1 + r) exp(-r), r = sqrt(3) |x - x'|/length_scale, as a user writes it."""

    length_scale: float

    def encode(self, X):
        return X

    def pairwise(self, x, y, *, same=False):
        square = ((x[:, None] - y) ** 2).sum(-1)
        r = jnp.sqrt(3 * square) / self.length_scale
        return (1 + r) * jnp.exp(-r)

    def diagonal(self, x):
        return jnp.ones(len(x), x.dtype)


def test_an_own_activation_is_that_of_the_library():
    own, known = (wl.ntk(wl.mlp(depth=3, activation=phi, bias_std=0.3)).gram(X) for phi in (Square(), wl.Monomial(2)))
    np.testing.assert_allclose(own, known, rtol=1e-13)
    assert np.abs(own * 1.001 - known).max() > 1e-4 * np.abs(known).max()


def test_an_own_kernel():
    distances = np.sqrt(3) * np.linalg.norm(X[:, None] - X, axis=2) / 0.7
    np.testing.assert_allclose(Matern(0.7).gram(X), (1 + distances) * np.exp(-distances), rtol=1e-13)
    assert Matern(0.7).gram(np.float32(X)).dtype == np.float32
    assert (Matern(0.7) + wl.rbf()).diag(X).tolist() == [2.0] * len(X)


def test_a_pytree_is_a_frozen_dataclass():
    assert jax.tree.leaves(Matern(2.0)) == [2.0]
    assert Matern(2.0) == Matern(2.0) != Matern(3.0)
    with pytest.raises(FrozenInstanceError):
        Matern(2.0).length_scale = 3.0
    for wrong in (Matern(2.0), type("Own", (), {"__init__": lambda self: None})):
        with pytest.raises(TypeError, match="must be a class that declares its fields"):
            wl.pytree(wrong)


def test_a_class_that_is_not_registered_is_refused():
    @dataclass(frozen=True)
    class Forgotten(wl.Kernel):
        encode = Matern.encode
        pairwise = Matern.pairwise
        diagonal = Matern.diagonal

    @dataclass(frozen=True)
    class Unregistered(wl.Activation):
        __call__ = Square.__call__
        encode = Square.encode
        correlate = Square.correlate

    with pytest.raises(TypeError, match=r"class Forgotten is not registered with JAX: write @wl.pytree"):
        Forgotten().gram(X)
    with pytest.raises(TypeError, match=r"class Unregistered is not registered with JAX: write @wl.pytree"):
        wl.mlp(depth=2, activation=Unregistered())
