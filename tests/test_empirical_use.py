"""Empirical kernels in use: products with vectors, inference, JAX arrays, dtypes, other functions of the parameters."""

import subprocess
import sys
import typing

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import widelimit as wl
from widelimit.claims.finite import one_network
from widelimit.kernels.empirical import matvec

EPS = np.finfo(np.float64).eps
NET = wl.mlp(depth=3, activation="tanh", weight_std=1.3, bias_std=0.4)
PARAMS, OTHERS = (one_network(NET, (4, 8, 8, 3), rng=np.random.default_rng(seed)) for seed in (1, 2))
RNG = np.random.default_rng(0)
X, Y, TARGETS = RNG.standard_normal((7, 4)), RNG.standard_normal((5, 4)), RNG.standard_normal((7, 3))
FULL = wl.empirical_ntk(NET.apply, PARAMS)
TRACE = wl.empirical_ntk(NET.apply, PARAMS, output="trace")
DIAGONAL = wl.empirical_ntk(NET.apply, PARAMS, output="diagonal")


def function(params, X):
    """The network as a function that the library knows nothing of."""
    return NET.apply(params, X)


def close(values, wanted, eps=EPS):
    """64 eps of the largest entry: sums of products of which each is right to a few eps."""
    assert values.shape == wanted.shape
    return np.abs(values - wanted).max() <= 64 * eps * np.abs(wanted).max()


def declared(function):
    """{output: the class that the overload for it declares} of a function; that for axes has no output."""
    hints = [typing.get_type_hints(found, function.__globals__) for found in typing.get_overloads(function)]
    return {typing.get_args(found["output"])[0] if "output" in found else None: found["return"] for found in hints}


@pytest.mark.parametrize("function", [wl.empirical_ntk, wl.empirical_nngp])
def test_the_class_declared_for_every_output_is_that_returned(function):
    classes = {output: type(function(NET.apply, PARAMS, output=output)) for output in ("full", "trace", "diagonal")}
    classes[None] = type(function(NET.apply, PARAMS, trace_axes=(0,)))
    assert declared(function) == classes
    assert type(function(NET.apply, PARAMS)) is classes["full"]
    assert {**classes, "full": classes["trace"]} != declared(function)


def test_products_with_vectors():
    full = FULL.cross(X, Y)
    v = RNG.standard_normal((5, 3))
    wanted = np.einsum("nmab,mb->na", full, v)
    assert close(FULL.matvec(X, v, Y), wanted)
    assert not close(1.01 * FULL.matvec(X, v, Y), wanted)
    assert not close(np.einsum("nmab,ma->nb", full, v), wanted)  # transposed blocks
    assert close(FULL.matvec(X, TARGETS), np.einsum("nmab,mb->na", FULL.gram(X), TARGETS))
    assert close(TRACE.matvec(X, v, Y), TRACE.cross(X, Y) @ v)
    assert close(TRACE.matvec(X, v[:, 0], Y), TRACE.cross(X, Y) @ v[:, 0])
    assert close(DIAGONAL.matvec(X, v, Y), np.einsum("nma,ma->na", DIAGONAL.cross(X, Y), v))
    # A budget for one direction and one row at a time: 3 P and 4 rows of signals, 8 bytes each.
    cost = FULL.explain(X).cost
    least = 8 * (3 * cost.parameters + 4 * cost.signals) / 2**30
    small = wl.empirical_ntk(NET.apply, PARAMS, output="trace", memory=1.01 * least)
    assert close(small.matvec(X, v, Y), TRACE.cross(X, Y) @ v)


def test_products_of_a_function_that_is_not_defined_at_zero(monkeypatch):
    """A chunk that is not full is filled up with rows of the data: at a row of zeros this function is NaN."""
    monkeypatch.setattr(matvec, "CHUNK", 4)

    def directions(params, points):
        return points / jnp.linalg.norm(points, axis=1, keepdims=True) @ params

    k, v = wl.empirical_ntk(directions, np.ones((X.shape[1], 1)), output="trace"), np.arange(1.0, len(X) + 1)
    assert len(X) % 4
    assert close(k.matvec(X, v), k.gram(X) @ v)


def test_the_matrix_valued_kernel_flows():
    """Flow and descent in function space are those of the linearised network, whose outputs move in one way only."""
    start = np.asarray(NET.apply(PARAMS, X))

    def initial(points):
        return np.asarray(NET.apply(PARAMS, points))

    flow = wl.gradient_flow(FULL, X, TARGETS, initial=initial)
    assert np.abs(flow.predict(X, np.inf) - TARGETS).max() < 1e-8
    assert close(flow.predict(X, 0.0), start)
    rate, steps = 0.5 * wl.max_learning_rate(FULL, X), 5
    descent = wl.gradient_descent(FULL, X, TARGETS, learning_rate=rate, steps=steps, initial=initial)
    linear = wl.linearize(NET.apply, PARAMS)
    with jax.enable_x64(True):
        params = jax.tree.map(jnp.asarray, PARAMS)
        gradient = jax.jit(jax.grad(lambda p: jnp.mean(jnp.sum((linear(p, X) - TARGETS) ** 2, axis=1))))
        for _ in range(steps):
            params = jax.tree.map(lambda p, g: p - rate * g, params, gradient(params))
        moved = np.asarray(linear(params, Y))
    # Five steps of a few roundings each, in a kernel whose eigenvalues times the rate are at most 1.
    assert np.abs(descent.predict(Y) - moved).max() <= 1000 * EPS * np.abs(moved).max()
    sooner = wl.gradient_descent(FULL, X, TARGETS, learning_rate=rate, steps=steps - 1, initial=initial)
    assert np.abs(sooner.predict(Y) - moved).max() > 1e-6
    assert wl.rkhs.is_positive_semidefinite(FULL, X).positive


def test_the_trace_is_a_kernel_like_others():
    both = TRACE + 0.5 * wl.rbf(2.0)
    assert close(both.cross(X, Y), TRACE.cross(X, Y) + 0.5 * wl.rbf(2.0).cross(X, Y))
    assert close((TRACE * wl.linear()).gram(X), TRACE.gram(X) * (X @ X.T))
    assert close(wl.scale_inputs(TRACE, 2.0).gram(X), TRACE.gram(2 * X))
    post = wl.posterior(TRACE, X, TARGETS, noise=0.1)
    weights = np.linalg.solve(TRACE.gram(X) + 0.1 * np.eye(7), TARGETS)
    assert np.abs(post.mean(Y) - TRACE.cross(Y, X) @ weights).max() < 1e-12
    assert wl.gradient_flow(TRACE, X, TARGETS).predict(Y, [1.0, np.inf]).shape == (2, 5, 3)
    assert wl.rkhs.interpolant(TRACE, X, TARGETS[:, 0]).norm() > 0


@pytest.mark.parametrize("method", ["jacobian", "vector_products", "layerwise"])
def test_jax_arrays_in_jax_arrays_out(method):
    k = wl.empirical_ntk(NET.apply, PARAMS, output="trace", method=method)
    with jax.enable_x64(True):
        x, y = jnp.asarray(X), jnp.asarray(Y)
        values = jax.jit(k.cross)(x, y)
        assert isinstance(values, jax.Array)
        assert close(np.asarray(values), k.cross(X, Y))
        assert close(np.asarray(k.gram(x)), k.gram(X))
        assert close(np.asarray(k.diag(x)), k.diag(X))
        slope = np.asarray(jax.grad(lambda a: k.cross(a, y)[0, 0])(x)[0])
    h = EPS ** (1 / 3)
    ends = [k.cross(X[:1] + s * h * np.eye(4)[:1], Y[:1])[0, 0] for s in (1, -1)]
    assert abs(slope[0] - (ends[0] - ends[1]) / (2 * h)) <= 1000 * h**2 * abs(k.cross(X, Y)).max()


def test_dtypes():
    single = NET.init(1, input_dim=4, width=8, output_dim=3)
    k = wl.empirical_ntk(NET.apply, single)
    narrow, wide = k.gram(X.astype(np.float32)), k.gram(X)
    assert narrow.dtype == np.float32
    assert wide.dtype == np.float64
    assert close(narrow, wide, np.finfo(np.float32).eps)
    assert k.cross(X, Y.astype(np.float32)).dtype == np.float64
    assert wl.empirical_ntk(NET.apply, single, output="trace").gram(X.astype(np.float32)).dtype == np.float32
    with pytest.raises(TypeError, match=r"X\.astype\('float64'\)"):
        FULL.gram(X.astype(np.float32))


def test_second_moments_of_the_outputs():
    f, g = (np.asarray(NET.apply(PARAMS, Z)) for Z in (X, Y))
    full = wl.empirical_nngp(NET.apply, PARAMS)
    wanted = np.einsum("na,mb->nmab", f, g)
    assert close(full.cross(X, Y), wanted)
    assert not close(full.cross(X, Y).transpose(0, 1, 3, 2), wanted)
    assert close(wl.empirical_nngp(NET.apply, PARAMS, output="trace").gram(X), f @ f.T / 3)
    assert close(wl.empirical_nngp(NET.apply, PARAMS, output="diagonal").diag(X), f**2)
    assert close(full.matvec(X, g, Y), np.einsum("nmab,mb->na", wanted, g))
    assert full.explain(X).method == "outputs"


def test_second_moments_tend_to_the_nngp_kernel():
    """Over c outputs the mean of f f' has a relative variance of (1 + rho^2)/c: 5 standard errors."""
    c = 4000
    net = wl.mlp(depth=1, weight_std=1.3, bias_std=0.4)
    params = net.init(5, input_dim=4, output_dim=c, dtype=np.float64)
    values, limit = wl.empirical_nngp(net.apply, params, output="trace").gram(X), wl.nngp(net).gram(X)
    error = np.sqrt((np.outer(np.diag(limit), np.diag(limit)) + limit**2) / c)
    assert (np.abs(values - limit) < 5 * error).all()
    assert not (np.abs(1.3 * values - limit) < 5 * error).all()


def test_equinox_modules_keep_what_is_not_trained():
    """Integers, functions and keys of a module stay as they are; only its float arrays are parameters."""

    class Counted(eqx.Module):
        layer: eqx.nn.MLP
        order: jax.Array
        name: str

        def __call__(self, x):
            return self.layer(x[self.order])

    with jax.enable_x64(True):
        module = Counted(eqx.nn.MLP(4, 2, 5, 1, key=jax.random.key(0)), jnp.array([3, 0, 1, 2]), "x")
    k = wl.empirical_ntk(lambda m, X: jax.vmap(m)(X), module)
    inner = wl.empirical_ntk(lambda m, X: jax.vmap(m)(X), module.layer)
    assert close(k.gram(X), inner.gram(X[:, [3, 0, 1, 2]]))
    assert k.explain(X).cost.parameters == 4 * 5 + 5 + 5 * 2 + 2


def test_the_linearised_network():
    linear = wl.linearize(function, PARAMS)
    assert close(np.asarray(linear(PARAMS, X)), np.asarray(NET.apply(PARAMS, X)))
    # Its kernel is that of the network at theta_0, wherever its own parameters are; that of the network is not.
    assert close(wl.empirical_ntk(linear, OTHERS).gram(X), FULL.gram(X))
    assert not close(wl.empirical_ntk(function, OTHERS).gram(X), FULL.gram(X))
    small = jax.tree.map(lambda a, b: np.asarray(a) + 1e-4 * (np.asarray(b) - np.asarray(a)), PARAMS, OTHERS)
    gap = np.abs(np.asarray(linear(small, X)) - np.asarray(NET.apply(small, X))).max()
    assert 0 < gap < 1e-5  # of second order in a step of relative size 1e-4


@pytest.mark.parametrize("order", range(4))
def test_taylor_is_exact_for_polynomials_of_its_order(order):
    """A deep linear network of L layers is a polynomial of degree L in its parameters."""
    net = wl.mlp(depth=max(order, 1), activation="identity", bias_std=0.7)
    start, end = (net.init(s, input_dim=4, width=5, output_dim=2, dtype=np.float64) for s in (1, 2))
    expanded = np.asarray(wl.taylor(net.apply, start, order)(end, X))
    wanted = np.asarray(net.apply(start if order == 0 else end, X))
    assert close(expanded, wanted)
    if order:
        assert not close(np.asarray(wl.taylor(net.apply, start, order - 1)(end, X)), wanted)
    if order == 1:
        np.testing.assert_array_equal(expanded, np.asarray(wl.linearize(net.apply, start)(end, X)))


def test_taylor_of_an_equinox_module():
    """f(theta) = theta^2 x: the square of what is between, to order 2."""

    class Square(eqx.Module):
        weight: jax.Array
        power: int

        def __call__(self, x):
            return self.weight**self.power * x

    with jax.enable_x64(True):
        start, end = (Square(jnp.asarray(w), 2) for w in (1.0, 3.0))
    values = [np.asarray(wl.taylor(lambda m, X: m(X), start, k)(end, X)) for k in range(4)]
    for value, factor in zip(values, [1.0, 1.0 + 2 * 2.0, 9.0, 9.0], strict=True):
        assert close(value, factor * X)


BAD = [
    ({"apply": 3}, TypeError, "function"),
    ({"apply": np.ones}, ValueError, "fails for X of shape"),
    ({"apply": lambda _, X: jnp.sum(X)}, ValueError, r"shape \(\)"),
    ({"apply": lambda _, X: X[:1].T}, ValueError, r"\(1, c\) or \(1,\)"),
    ({"apply": lambda _, X: X > 0}, TypeError, "bool"),
    ({"params": ()}, ValueError, "no arrays"),
    ({"params": {"w": np.arange(3)}}, TypeError, r"params\['w'\] has dtype int64"),
    ({"params": {"w": 1.5}}, TypeError, r"params\['w'\] is float"),
    ({"params": {"w": np.ones(3, complex)}}, TypeError, "complex128"),
    ({"params": {"w": np.array([1.0, np.nan])}}, ValueError, "NaN"),
    ({"params": PARAMS[:3]}, ValueError, "Are the parameters those of this architecture"),
    ({"output": "mean"}, ValueError, "'full', 'trace', 'diagonal'"),
    ({"method": "fast"}, ValueError, "'jacobian'"),
    ({"memory": -1.0}, ValueError, "memory"),
]


@pytest.mark.parametrize(("change", "error", "words"), BAD, ids=[str(i) for i in range(len(BAD))])
def test_bad_input(change, error, words):
    arguments = {"apply": NET.apply, "params": PARAMS} | change
    with pytest.raises(error, match=words):
        wl.empirical_ntk(**arguments).gram(X)


def test_other_bad_input():
    with pytest.raises(TypeError, match="hashable"):
        wl.empirical_ntk(eqx.nn.MLP(4, 2, 5, 1, key=jax.random.key(0)), PARAMS)
    with pytest.raises(ValueError, match="4 features"):
        FULL.cross(X, Y[:, :3])
    with pytest.raises(ValueError, match=r"for \(n, 4\)"):
        FULL.gram(X[:, :3])
    with pytest.raises(ValueError, match=r"shape \(7, 3\)"):
        FULL.matvec(X, TARGETS[:, :2])
    with pytest.raises(ValueError, match=r"\(7,\) or \(7, k\)"):
        TRACE.matvec(X, TARGETS[:5])
    with pytest.raises(ValueError, match="prepared"):
        _ = FULL.outputs
    assert FULL.prepared(X).outputs == 3
    with pytest.raises(ValueError, match="3 outputs"):
        wl.gradient_flow(FULL, X, TARGETS[:, :2])
    with pytest.raises(ValueError, match="another form"):
        wl.linearize(NET.apply, PARAMS)(PARAMS[:3], X)
    with pytest.raises(ValueError, match="order"):
        wl.taylor(NET.apply, PARAMS, -1)
    with pytest.raises(TypeError, match="int64"):
        wl.linearize(NET.apply, {"w": np.arange(3)})


def test_without_torch_the_error_names_the_extra():
    code = "import sys; sys.modules['torch'] = None; import widelimit.torch"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert 'pip install "widelimit[torch]"' in run.stderr
