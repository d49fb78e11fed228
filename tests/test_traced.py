"""Inference under jit, vmap and grad: values of the same calls without a trace, derivatives of 60-digit arithmetic."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest

import widelimit as wl
from widelimit.compute import implicit
from widelimit.inference.traced import traced_ensemble
from widelimit.layers import Conv, Dense, Flatten

RNG = np.random.default_rng(0)
X, Z = RNG.standard_normal((5, 2)), RNG.standard_normal((2, 2))
Y = np.stack([np.sin(2 * X[:, 0]), X[:, 1]], axis=1)
TIMES = np.array([0.0, 0.7, 40.0, np.inf])
NET = wl.mlp(depth=2, bias_std=0.3)
DIRECTIONS = {"length": 0.7, "X": RNG.standard_normal(X.shape), "y": RNG.standard_normal(Y.shape), "noise": -0.4}
DIRECTIONS |= {"Z": RNG.standard_normal(Z.shape), "t": 1.3}
POINT = {"length": 0.9, "X": X, "y": Y, "noise": 0.05, "Z": Z, "t": 0.7}


@pytest.fixture(autouse=True)
def wide():
    with jax.enable_x64():
        yield


def gaussian(A, B, length):
    """exp(-|x - z|^2/(2 length^2)) in mpmath."""
    rows = [[mp.exp(-sum((p - q) ** 2 for p, q in zip(a, b, strict=True)) / (2 * length**2)) for b in B] for a in A]
    return mp.matrix(rows)


def smooth(K, clock):
    """(1 - exp(-clock K)) K^{-1} by the exponential of a block matrix, which serves singular K."""
    n = K.rows
    block = mp.zeros(2 * n)
    for i in range(n):
        for j in range(n):
            block[i, j] = -clock * K[i, j]
        block[i, n + i] = clock
    return mp.expm(block)[:n, n : 2 * n]


def exact(what, at):
    """The number `what` in 60 digits."""
    K, cross = gaussian(at["X"], at["X"], at["length"]), gaussian(at["Z"], at["X"], at["length"])
    y, n = mp.matrix(at["y"]), len(at["X"])
    A = K + at["noise"] * mp.eye(n)
    if what == "flow":
        return (cross * smooth(K, 2 * at["t"] / n) * y)[1, 0]
    inverse = A**-1
    alpha = inverse * y
    return {
        "mean": (cross * alpha)[1, 1],
        "variance": 1 - (cross * inverse * cross.T)[0, 0],
        "covariance": gaussian(at["Z"], at["Z"], at["length"])[0, 1] - (cross * inverse * cross.T)[0, 1],
        "evidence": -((y.T * alpha)[0, 0] + (y.T * alpha)[1, 1]) / 2 - mp.log(mp.det(A)) - n * mp.log(2 * mp.pi),
        "left out": y[2, 0] - alpha[2, 0] / inverse[2, 2],
        "left out, variance": 1 / inverse[3, 3] - at["noise"],
    }[what]


def ours(what, at):
    k = wl.rbf(at["length"])
    if what == "flow":
        return wl.gradient_flow(k, at["X"], at["y"]).predict(at["Z"], at["t"])[1, 0]
    post = wl.posterior(k, at["X"], at["y"], noise=at["noise"])
    return {
        "mean": lambda: post.mean(at["Z"])[1, 1],
        "variance": lambda: post.variance(at["Z"])[0],
        "covariance": lambda: post.covariance(at["Z"])[0, 1],
        "evidence": post.log_marginal_likelihood,
        "left out": lambda: post.leave_one_out()[0][2, 0],
        "left out, variance": lambda: post.leave_one_out()[1][3],
    }[what]()


QUANTITIES = ["mean", "variance", "covariance", "evidence", "left out", "left out, variance", "flow"]


def moved(at, names, step):
    """The point, in 60 digits, moved along the directions of some names."""
    digits = {name: np.vectorize(mp.mpf, otypes=[object])(value) for name, value in at.items()}
    out = {name: value + (step * DIRECTIONS[name] if name in names else 0) for name, value in digits.items()}
    return {name: np.asarray(value).tolist() for name, value in out.items()}


def slope(function, at, names):
    """The derivative of a function in 60 digits along the directions of some names."""
    step = mp.mpf(10) ** -20
    return (function(moved(at, names, step)) - function(moved(at, names, -step))) / (2 * step)


def traced_slopes(function, at):
    """The derivatives along every direction, forward and backward, under jit."""
    forward, backward = {}, jax.jit(jax.grad(function))(at)
    for name in at:
        along = {other: jnp.zeros(jnp.shape(value)) for other, value in at.items()} | {name: DIRECTIONS[name]}
        forward[name] = jax.jit(lambda d: jax.jvp(function, (at,), (d,))[1])(jax.tree.map(jnp.asarray, along))
    return forward, {name: float(np.sum(backward[name] * DIRECTIONS[name])) for name in at}


@pytest.mark.parametrize("what", QUANTITIES)
def test_derivatives_agree_with_sixty_digits(what):
    at = jax.tree.map(jnp.asarray, POINT)
    with mp.workdps(60):
        truth = {name: float(slope(lambda p: exact(what, p), POINT, {name})) for name in POINT}
    for slopes in traced_slopes(lambda p: ours(what, p), at):
        for name in POINT:
            assert float(slopes[name]) == pytest.approx(truth[name], rel=1e-9, abs=1e-10), name


def test_a_derivative_without_the_matrix_is_found(monkeypatch):
    solve = implicit.solve
    monkeypatch.setattr(implicit, "solve", lambda A, factor, B: solve(jax.lax.stop_gradient(A), factor, B))
    with mp.workdps(60):
        truth = float(slope(lambda p: exact("mean", p), POINT, {"noise"}))
    found = jax.grad(lambda s: ours("mean", POINT | {"noise": s}))(0.05) * DIRECTIONS["noise"]
    assert float(found) != pytest.approx(truth, rel=1e-2)


def interpolated(at):
    """The mean without noise, f_t at t = infinity, in 60 digits."""
    K, cross = gaussian(at["X"], at["X"], at["length"]), gaussian(at["Z"], at["X"], at["length"])
    return (cross * K**-1 * mp.matrix(at["y"]))[1, 0]


def twice(at):
    """The same with the first row of the data again, at the end."""
    return at | {name: at[name] + at[name][:1] for name in ("X", "y")}


@pytest.mark.parametrize(
    ("what", "time", "truth"),
    [
        ("mean", 1.0, lambda at: exact("mean", at)),
        ("variance", 1.0, lambda at: exact("variance", at)),
        ("flow", 0.7, lambda at: exact("flow", twice(at))),
        ("flow", np.inf, interpolated),
    ],
)
def test_derivatives_through_duplicates_without_noise(what, time, truth):
    """The kernel matrix is singular: values and derivatives are those of the data without the duplicate."""
    names, at = {"length", "y", "Z"}, POINT | {"noise": 0.0, "t": min(time, 1.0)}
    with mp.workdps(60):
        value, expected = float(truth(moved(at, (), 0))), float(slope(truth, at, names))
    doubled = jax.tree.map(jnp.asarray, at | {"t": time})
    doubled |= {name: jnp.concatenate([doubled[name], doubled[name][:1]]) for name in ("X", "y")}
    along = {name: DIRECTIONS[name] if name in names else jnp.zeros(jnp.shape(doubled[name])) for name in doubled}
    along["y"] = np.concatenate([along["y"], along["y"][:1]])
    found = jax.jit(lambda p, d: jax.jvp(lambda p: ours(what, p), (p,), (d,)))(
        doubled, jax.tree.map(jnp.asarray, along)
    )
    assert found == (pytest.approx(value, rel=1e-9), pytest.approx(expected, rel=1e-8))


def everything(net, at):
    """All that can be traced, of a network's kernels."""
    post = wl.posterior(wl.nngp(net), at["X"], at["y"], noise=at["noise"])
    flow = wl.gradient_flow(wl.ntk(net), at["X"], at["y"])
    law = wl.trained_ensemble(net, at["X"], at["y"])
    Z, t = at["Z"], at["t"]
    return [
        *(post.mean(Z), post.variance(Z), post.covariance(Z), post.predict(Z)[1], post.log_marginal_likelihood()),
        *(tuple(post.leave_one_out()), post.residual, flow.predict(Z, t), flow.loss(t)),
        *(law.mean(Z, t), law.variance(Z, t), law.covariance(Z, t)),
    ]


def test_values_are_those_without_a_trace_and_one_program_serves_all_data():
    at, compiled = POINT | {"t": TIMES}, jax.jit(everything)
    for scale in (1.0, 1.7):
        given = at | {"X": scale * X}
        for found, expected in zip(
            jax.tree.leaves(compiled(NET, given)), jax.tree.leaves(everything(NET, given)), strict=True
        ):
            np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)
    assert compiled._cache_size() == 1
    assert "callback" not in str(jax.make_jaxpr(everything)(NET, at))


def test_rows_beyond_a_block_change_no_value():
    A = RNG.standard_normal((67, 2))
    b = np.sin(A[:, 0])
    k = wl.rbf(0.6)

    def evidence(k):
        return wl.posterior(k, A, b, noise=0.1).log_marginal_likelihood()

    value, slopes = jax.jit(jax.value_and_grad(evidence))(k)
    post = wl.posterior(k, A, b, noise=0.1)
    assert float(value) == pytest.approx(post.log_marginal_likelihood(), rel=1e-12)
    for found, expected in zip(
        *map(jax.tree.leaves, (slopes, post.log_marginal_likelihood_gradient().kernel)), strict=True
    ):
        assert float(found) == pytest.approx(float(expected), rel=1e-9)


def test_points_and_times_are_traced_where_the_data_are_not():
    t, k = jnp.asarray(TIMES), wl.ntk(NET)
    post, flow, law = wl.posterior(k, X, Y, noise=0.05), wl.gradient_flow(k, X, Y), wl.trained_ensemble(NET, X, Y)
    for call, given in (
        *((method, (Z,)) for method in (post.mean, post.variance, post.covariance)),
        *((method, (Z, t)) for method in (flow.predict, law.mean, law.variance, law.covariance)),
    ):
        np.testing.assert_allclose(jax.jit(call)(*map(jnp.asarray, given)), call(*given), rtol=1e-10, atol=1e-12)
    speed = jax.grad(lambda t: flow.predict(Z, t)[0, 0])(0.7)
    assert float(speed) == pytest.approx((flow.predict(Z, 0.7001) - flow.predict(Z, 0.6999))[0, 0] / 2e-4, rel=1e-6)


def test_derivatives_of_the_law_of_trained_networks():
    """Beside formulas by `jax.scipy.linalg.expm`, which JAX differentiates in another way; kernels stand for any."""

    def by_expm(tangent, prior, at):
        K, n = tangent.gram(at["X"]), len(X)
        block = jnp.block([[-K, jnp.eye(n)], [jnp.zeros((n, 2 * n))]]) * (2 * at["t"] / n)
        B = tangent.cross(at["Z"], at["X"]) @ jax.scipy.linalg.expm(block)[:n, n:]
        between = prior.cross(at["Z"], at["X"])
        return prior.gram(at["Z"]) - B @ between.T - between @ B.T + B @ prior.gram(at["X"]) @ B.T

    def law(tangent, prior, at):
        return traced_ensemble(tangent, prior, at["X"], at["y"]).covariance(at["Z"], at["t"])

    at = jax.tree.map(jnp.asarray, POINT)
    kernels = wl.rbf(0.8), wl.rbf(1.2)
    expected, found = (
        jax.jit(jax.grad(lambda *given, f=f: f(*given)[0, 1], (0, 1, 2)))(*kernels, at) for f in (by_expm, law)
    )
    for pair in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(*pair, rtol=1e-9, atol=1e-11)


def test_vmap_over_noise_is_a_loop_also_where_one_matrix_is_singular():
    doubled = np.concatenate([X, X[:1]])
    y = np.sin(doubled[:, 0])
    noises = jnp.array([0.0, 0.1])

    def mean(s):
        return wl.posterior(wl.rbf(), doubled, y, noise=s).mean(Z)

    for found, s in zip(jax.vmap(mean)(noises), [0.0, 0.1], strict=True):
        np.testing.assert_allclose(found, mean(s), rtol=1e-9)


def test_what_a_door_refuses_is_nan_in_a_trace():
    doubled, y = np.concatenate([X, X[:1]]), np.arange(6.0)

    def fitted(s):
        post = wl.posterior(wl.rbf(), doubled, y, noise=s)
        return post.mean(Z), post.log_marginal_likelihood()

    mean, evidence = jax.jit(fitted)(0.0)
    assert np.isnan(mean).all()
    assert np.isnan(evidence)
    assert np.isfinite(jax.tree.leaves(jax.jit(fitted)(0.1))[0]).all()
    consistent = jax.jit(lambda s: wl.posterior(wl.rbf(), doubled, y % 5, noise=s).leave_one_out())
    assert np.isnan(jax.tree.leaves(consistent(0.0))).all()  # rows 0 and 5 agree, and stand for each other
    assert np.isnan(jax.jit(fitted)(-1e-3)[0]).all()
    assert np.isnan(jax.jit(lambda t: wl.gradient_flow(wl.rbf(), X, Y).predict(Z, t))(-1.0)).all()


def checked(post):
    """All numbers of a posterior that a trace has too."""
    return post.mean(Z), post.variance(Z), post.log_marginal_likelihood(), post.leave_one_out()


@pytest.mark.parametrize(
    ("length", "noise"),
    [(0.9, np.array([1e20, 0.05, 0.1, 0.02, 0.3])), (1e3, np.full(5, 1e-9)), (0.9, np.full(5, 1e16) / 3)],
    ids=["one row of large noise", "ill-conditioned", "noise alone"],
)
def test_noise_of_any_size_is_solved_as_without_a_trace(length, noise):
    found = jax.jit(lambda s: checked(wl.posterior(wl.rbf(length), X, Y[:, 0], noise=s)))(noise)
    known = checked(wl.posterior(wl.rbf(length), X, Y[:, 0], noise=noise))
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(known), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-12)


@pytest.mark.parametrize("size", [1e-200, 1e154, 1e200])
def test_the_residual_of_labels_of_any_size_is_measured(size):
    def residual(y, off):
        post = wl.posterior(wl.rbf(), X, y, noise=0.1)
        return dataclasses.replace(post, weights=post.weights * off).residual

    assert float(jax.jit(residual)(Y * size, 1.5)) == pytest.approx(0.5)  # weights that are too large by half
    assert float(jax.jit(residual)(Y * size, 1.0)) < 1e-14


def test_gains_at_infinity_have_derivatives_in_eigenvalues():
    """Second derivatives of networks that are trained to the end are made of these."""
    values = jnp.array([0.3, 2.0])

    def gain(values):
        at = implicit.Spectrum(values, jnp.eye(2), jnp.zeros(2, bool), 1e-8)
        return implicit.gain(at, jnp.array([jnp.inf]))[0]

    np.testing.assert_allclose(jax.jacfwd(gain)(values), np.diag(-1 / values**2), rtol=1e-12)


def test_float32_is_the_dtype_of_float32_data_and_mixtures_are_refused():
    narrow = {name: np.float32(value) for name, value in POINT.items()}
    with jax.enable_x64(False):
        found = jax.jit(jax.grad(lambda at: ours("evidence", at)))(narrow)
        assert {a.dtype for a in jax.tree.leaves(found)} == {np.dtype(np.float32)}
        truth = wl.posterior(wl.rbf(0.9), X, Y, noise=0.05).log_marginal_likelihood_gradient()
        assert float(found["noise"]) == pytest.approx(float(truth.noise), rel=1e-3)
        for call, words in (
            (lambda s: wl.posterior(wl.rbf(), X, Y, noise=s).mean(Z), "X or y is float64, and float64 is off"),
            # A copy: JAX keeps the float32 form of this array, and gives it to later tests that ask for float64.
            (lambda s: wl.posterior(wl.rbf(), X, Y, noise=0.1).mean(Z.copy() * s), "so that Z is float32"),
        ):
            with pytest.raises(TypeError, match=re.escape(words)):
                jax.jit(call)(0.1)


def test_what_cannot_be_traced_is_refused_by_name():
    at, flow = jnp.asarray(X), wl.gradient_flow(wl.rbf(), X, Y, initial=lambda A: A)
    for call, words in (
        (lambda A: wl.posterior(wl.rbf(), A, Y, solver="cg"), "solver: not where jax traces"),
        (lambda A: wl.posterior(wl.rbf(), A, Y, precision="mixed", inducing=3), "precision, inducing: not where jax"),
        (lambda A: wl.posterior(wl.rbf(), A, Y, noise=-1.0), "noise is a variance and must be >= 0, got -1.0"),
        (lambda A: wl.posterior(wl.rbf(), A, Y[:3]), "y must have shape (5,) or (5, c)"),
        (lambda A: wl.posterior(wl.rbf(), A, Y, noise=np.ones(3)), "noise must be a number or of shape (5,)"),
        (lambda A: wl.gradient_flow(wl.rbf(), A, Y, loss="huber"), "gradient_flow has the squared error"),
        (lambda A: flow.predict(A, 1.0), "initial is a function of NumPy arrays"),
        (lambda A: wl.gradient_flow(wl.rbf(), A, Y).predict(Z, -1.0), "times must be in [0, inf]"),
        (lambda A: wl.posterior(wl.rbf(), A, Y, noise=1.0).mean(Z[:, :1]), "Z has 1 features and X has 2"),
    ):
        with pytest.raises((TypeError, ValueError), match=re.escape(words)):
            jax.jit(call)(at)


def test_a_gradient_holds_few_matrices():
    """By XLA's count of a program: none for the refinement of an inverse, or for a scatter; 7.5 with these."""
    n = 512
    given = (jax.ShapeDtypeStruct(shape, np.float64) for shape in ((3,), (n, 3), (n,)))

    def evidence(scales, X, y):
        return wl.posterior(wl.scale_inputs(wl.rbf(1.0), scales), X, y, noise=0.1).log_marginal_likelihood()

    held = jax.jit(jax.value_and_grad(evidence)).lower(*given).compile().memory_analysis().temp_size_in_bytes
    assert held <= 5.1 * 8 * n**2


def test_kernels_of_images_take_traced_numbers():
    """Their machine code cannot: JAX's program of the same kernel is differentiated."""
    k = wl.nngp(wl.network(Conv(2), "relu", Flatten(), Dense(), inputs=wl.Image(2, 2, 1)))
    images = np.random.default_rng(0).standard_normal((3, 4))
    slope = jax.grad(lambda s: jnp.sum((s * k).gram(jnp.asarray(images)) + (s * k).diag(jnp.asarray(images))))(2.0)
    np.testing.assert_allclose(slope, k.gram(images).sum() + 3 * np.trace(k.gram(images)), rtol=1e-13)


def test_kernels_of_functions_at_known_data_inside_of_a_trace():
    k = wl.empirical_ntk(lambda p, x: jnp.tanh(x @ p), RNG.standard_normal((2, 3)), output="trace")
    inside = jax.jit(lambda points: wl.posterior(k, X, Y, noise=0.1).mean(points))(jnp.asarray(Z))
    np.testing.assert_allclose(inside, wl.posterior(k, X, Y, noise=0.1).mean(Z), rtol=1e-10)
