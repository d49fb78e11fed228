"""Finite networks of a description: their parameterisations, and the theorems that tie them to the limit."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cases
import widelimit as wl
from compiled import quick_jit

EPS = np.finfo(np.float64).eps
RNG = np.random.default_rng(0)
X = RNG.standard_normal((8, 3))
Z = RNG.standard_normal((5, 3))
Y = np.sin(2 * X[:, 0]) + X[:, 1]
WIDTHS = (32, 512)
"""The ends alone: their squared distance from the mean of the logarithms, which decides how far a slope may stray, is
8/10 of that of 32, 64, ..., 512, and a quarter more networks make up for it."""
SEEDS = 30
SIZES = {"input_dim": 3, "width": [5, 4], "output_dim": 2}
"""All different, and the same wherever no other sizes are needed: every shape is compiled once."""


def network(parameterization="ntk", **changes):
    settings = {"depth": 3, "activation": "erf", "weight_std": 1.4, "bias_std": 0.3} | changes
    return wl.mlp(**settings, parameterization=parameterization)


def slope(widths, values):
    """Of log values in log width, by least squares."""
    return np.polyfit(np.log(widths), np.log(values), 1)[0]


# --- parameterisations ---------------------------------------------


def test_init_many_has_the_bits_of_init():
    net = network()
    for dtype in (np.float32, np.float64):
        many = net.init_many([3, 1, 2**40], **SIZES, dtype=dtype)
        data = X.astype(dtype)
        outputs, many = (jax.tree.map(np.asarray, of) for of in (net.apply_many(many, data), many))
        assert outputs.shape == (3, 8, 2)
        assert outputs.dtype == dtype
        for e, seed in enumerate((3, 1, 2**40)):
            one = net.init(seed, **SIZES, dtype=dtype)
            for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(many), strict=True):
                assert a.dtype == dtype
                np.testing.assert_array_equal(a, b[e])
            # Another order of sums of 5 terms in three layers.
            np.testing.assert_allclose(net.apply(one, data), outputs[e], atol=32 * np.finfo(dtype).eps)


def standard_from(params):
    """The standard network's parameters that make the same function as these of the NTK parameterisation."""
    return tuple(
        {"weight": 1.4 / p["weight"].shape[1] ** 0.5 * np.asarray(p["weight"]), "bias": 0.3 * np.asarray(p["bias"])}
        if p
        else ()
        for p in params
    )


def test_the_standard_parameterisation_moves_the_scales_into_the_law():
    params = network().init(0, **SIZES, dtype="float64")
    standard = network("standard")
    drawn = standard.init(0, **SIZES, dtype="float64")
    for a, b in zip(jax.tree.leaves(drawn), jax.tree.leaves(standard_from(params)), strict=True):
        np.testing.assert_allclose(a, b, rtol=4 * EPS)
    np.testing.assert_allclose(standard.apply(drawn, X), network().apply(params, X), rtol=1e3 * EPS, atol=1e3 * EPS)
    # Its tangent kernel by the chain rule: every parameter's share over the square of its scale.
    with jax.enable_x64(True):
        slopes = quick_jit(jax.jacrev(lambda p: network().apply(p, X)[:, 0]))(params)
        expected = 0.0
        for p in filter(None, jax.tree.map(np.asarray, slopes)):
            weight, bias = p["weight"].reshape(8, -1), p["bias"]
            expected += weight @ weight.T * p["weight"].shape[2] / 1.4**2 + bias @ bias.T / 0.3**2
    found = wl.empirical_ntk(standard.apply, drawn).gram(X)[:, :, 0, 0]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_no_bias_is_no_bias_in_every_parameterisation():
    for name in ("ntk", "standard", "mean_field", "mup"):
        net = network(name, bias_std=0.0)
        params = net.init(0, **SIZES, dtype="float64")
        moved = tuple({**p, "bias": np.asarray(p["bias"]) + 1.0} if p else p for p in params)
        np.testing.assert_array_equal(net.apply(params, X), net.apply(moved, X))


def test_mean_field_networks_are_those_of_the_ntk_over_the_root_of_the_width():
    a, b = network(), network("mean_field")
    params = a.init(0, **SIZES, dtype="float64")
    jax.tree.map(np.testing.assert_array_equal, params, b.init(0, **SIZES, dtype="float64"))
    np.testing.assert_allclose(2 * np.asarray(b.apply(params, X)), a.apply(params, X), rtol=8 * EPS)
    theta = [wl.empirical_ntk(net.apply, params).gram(X) for net in (a, b)]
    np.testing.assert_allclose(4 * theta[1], theta[0], rtol=64 * EPS * 8)


def test_maximal_update_has_the_multipliers_and_variances_of_its_table():
    """Yang and Hu 2021, table 1: W^l = n^-a w^l, w from N(0, n^-2b): a = -1/2, 0, 1/2, b = 1/2, rates of order 1.

    The same function and the same training as in the mean-field parameterisation, whose learning rate is n times it.
    """
    net, field = network("mup"), network("mean_field")
    n = 6
    drawn, plain = (one.init(0, **SIZES | {"width": n}, dtype="float64") for one in (net, field))
    for a, b in zip(jax.tree.leaves(drawn), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, np.asarray(b) / math.sqrt(n), rtol=4 * EPS)
    multipliers = [unit.scales(*p["weight"].shape[::-1])[0] for unit, p in zip(net.units, drawn, strict=True) if p]
    np.testing.assert_allclose(multipliers, 1.4 * np.array([math.sqrt(n / 3), 1, 1]), rtol=4 * EPS)
    assert net.output_scale(drawn) == pytest.approx(1 / math.sqrt(n))
    np.testing.assert_allclose(net.apply(drawn, X), field.apply(plain, X), rtol=1e-12, atol=1e-14)
    theta = [wl.empirical_ntk(one.apply, p).gram(X) for one, p in ((net, drawn), (field, plain))]
    np.testing.assert_allclose(theta[0], n * theta[1], rtol=1e-11)


def test_maximal_update_at_its_base_width_is_the_ntk_parameterisation():
    a, b = network("mup", base_width=6), network()
    params = a.init(0, **SIZES | {"width": 6}, dtype="float64")
    jax.tree.map(np.testing.assert_array_equal, params, b.init(0, **SIZES | {"width": 6}, dtype="float64"))
    np.testing.assert_array_equal(a.apply(params, X), b.apply(params, X))


def test_learning_rates_scale_with_the_width_as_documented():
    """The tangent kernel's trace goes like width^0, width^1, width^-1: times the learning rate it is of order 1.

    6 seeds: the trace of one network varies by about 2/sqrt(width), which moves a slope by about 0.03; the share of
    standard networks that does not grow is 1/width of the whole. Parameters are drawn once: those of mean-field and
    standard networks are the same and their multiples, as the tests above have it.
    """
    widths = (64, 1024)
    drawn = {
        width: jax.tree.map(np.asarray, network().init_many(range(6), input_dim=3, width=width)) for width in widths
    }
    for name, power in (("ntk", 0), ("standard", 1), ("mean_field", -1)):
        net = network(name)
        traces = []
        for width in widths:
            members = [jax.tree.map(lambda leaf: leaf[e], drawn[width]) for e in range(6)]  # noqa: B023
            if name == "standard":
                members = [standard_from(p) for p in members]
            kernels = [wl.empirical_ntk(net.apply, p).gram(X[:2].astype(np.float32)) for p in members]
            traces.append(np.mean([np.trace(k[:, :, 0, 0]) for k in kernels]))
        assert abs(slope(widths, traces) - power) < 0.1, (name, slope(widths, traces))


def test_limits_belong_to_their_parameterisation():
    np.testing.assert_array_equal(wl.nngp(network("standard")).gram(X), wl.nngp(network()).gram(X))
    for name in ("mean_field", "mup"):
        with pytest.raises(ValueError, match=f"the outputs of {name.replace('_', '-')} networks tend to 0"):
            wl.nngp(network(name))
    moving = "changes in training at every width"
    for name, words in (("standard", "pass base_width=N"), ("mean_field", moving), ("mup", moving)):
        with pytest.raises(ValueError, match=words):
            wl.ntk(network(name))


def test_wrong_sizes_parameters_and_names_are_refused():
    net = network()
    params = net.init(0, **SIZES)
    data = X.astype(np.float32)
    many = net.init_many([0, 1, 2], **SIZES)
    for call, words in [
        (lambda: wl.mlp(depth=2, parameterization="mu"), "must be one of ntk, standard, mean_field, mup; got 'mu'"),
        (lambda: wl.mlp(depth=1, parameterization="mean_field"), "a network of depth 1 has none"),
        (lambda: wl.mlp(depth=1, parameterization="mup"), "a network of depth 1 has none"),
        (
            lambda: wl.network(
                wl.layers.Dense(), wl.layers.Repeat(["erf", wl.layers.Dense()], 2), parameterization="mup"
            ),
            "not part of a repeated",
        ),
        (lambda: net.init_many([], input_dim=3), "seeds must be a sequence of at least one integer"),
        (lambda: net.init_many(3, input_dim=3), "seeds must be a sequence"),
        (lambda: net.init_many([0], input_dim=3, width=0), "every size must be at least 1, got 0"),
        (lambda: net.apply(many, data), "these are not parameters of this network of depth 3 (init, for apply;"),
        (lambda: net.apply_many(params, data), "these are not parameters of this network of depth 3 (init_many"),
        (lambda: network(depth=2).apply(params, data), "these are not parameters of this network of depth 2"),
        (lambda: net.apply(network(depth=2).init(0, input_dim=3), data), "these are not parameters"),
        (lambda: net.apply((params[0], (), params[0], (), params[4]), data), "these are not parameters"),
        (lambda: net.apply({"w": data}, data), "these are not parameters"),
    ]:
        with pytest.raises(ValueError, match=re.escape(words)):
            call()
    with pytest.raises(TypeError, match="dtype must be float32 or float64, got 'float16'"):
        net.init(0, input_dim=3, dtype="float16")


# --- identities at every width -------------------------------------

TWO = np.column_stack([Y, -Y])
LOSSES = {name: (loss, y[np.arange(8) % 6, :2]) for name, (loss, y, _) in cases.LOSSES.items()} | {
    "weighted": (wl.WeightedSquaredError(np.linspace(0.1, 2, 8)), TWO),
    "softmax": (wl.SoftmaxCrossEntropy(), np.eye(2)[(Y > 0).astype(int)]),
    "custom": (wl.CustomLoss(lambda f, y: jnp.sum((f - y) ** 4) + f[0] * f[1]), TWO),
}


@pytest.mark.parametrize("width", [2, 60])
def test_the_outputs_move_by_the_empirical_kernel(width):
    """Equation (3.3): df(z)/dt = -(1/n) sum_i Theta(z, x_i) d_i under d theta/dt = -grad C, at any point and width."""
    net = network(activation="relu")
    params = net.init(1, input_dim=3, width=width, output_dim=2, dtype="float64")
    points = np.concatenate([X, Z])
    theta = wl.empirical_ntk(net.apply, params).cross(points, X)
    with jax.enable_x64(True):
        pull = jax.jit(lambda d: jax.vjp(lambda p: net.apply(p, X), params)[1](d)[0])
        push = jax.jit(lambda v: jax.jvp(lambda p: net.apply(p, points), (params,), (v,))[1])
        f = np.asarray(net.apply(params, X))
        for name, (loss, y) in LOSSES.items():
            cost = lambda f: jnp.mean(loss.examples(f, jnp.asarray(y)))  # noqa: B023, E731
            velocity = -np.asarray(push(pull(jax.grad(cost)(jnp.asarray(f)))))
            d = loss.gradient(f, y)
            terms = np.einsum("zxab,xb->zxa", theta, d)
            expected, size = -terms.mean(axis=1), np.abs(terms).mean(axis=1).max()
            np.testing.assert_allclose(velocity, expected, atol=64 * EPS * size, rtol=0, err_msg=name)
            assert np.abs(velocity - 1.001 * expected).max() > 64 * EPS * size
            assert np.abs(velocity - 8 * expected).max() > 64 * EPS * size  # the lost 1/n


def test_depth_one_has_the_kernel_of_linear_regression_all_along():
    """Theta^1 = Sigma^1, at width nothing and at every step of training; depth 2 drifts (the control)."""
    for depth, still in ((1, True), (2, False)):
        net = network(depth=depth)
        params = net.init(0, input_dim=3, width=8, dtype="float64")
        trained = wl.train(net.apply, params, X, Y, learning_rate=0.1, steps=20, record_every=5, kernel_points=8)
        assert (trained.history.kernel_drift.max() < 16 * EPS) == still
        theta = wl.empirical_ntk(net.apply, trained.params).gram(X)[:, :, 0, 0]
        assert np.allclose(theta, wl.nngp(net).gram(X), rtol=0, atol=32 * EPS * theta.max()) == still


# --- rates in the width ---------------------------------------------


def relative(kernels, limit):
    """Root mean square over networks of |K - limit|/|limit|."""
    return np.sqrt(np.mean(np.sum((kernels - limit) ** 2, axis=(1, 2)))) / np.linalg.norm(limit)


def test_the_empirical_kernel_tends_to_the_limit():
    """Theorem 4.1: Theta_width -> Theta (x) Id at rate width^{-1/2}: 50 seeds, slope error about 0.04."""
    net, data = network(), X.astype(np.float32)
    limit = wl.ntk(net).gram(X)
    errors, beside, wrong = [], [], []
    for width in WIDTHS:
        many = net.init_many(range(50), input_dim=3, width=width, output_dim=2)
        many = jax.tree.map(np.asarray, many)
        members = (jax.tree.map(lambda leaf: leaf[e], many) for e in range(50))  # noqa: B023
        kernels = np.stack([wl.empirical_ntk(net.apply, p).gram(data) for p in members]).astype(np.float64)
        errors.append(relative(kernels[..., 0, 0], limit))
        beside.append(relative(limit + kernels[..., 0, 1], limit))
        wrong.append(relative(kernels[..., 0, 0], 1.2 * limit))
    assert errors[-1] < 0.15
    for values in (errors, beside):
        assert -0.6 < slope(WIDTHS, values) < -0.4, slope(WIDTHS, values)
    assert not -0.6 < slope(WIDTHS, wrong) < -0.4  # a kernel that is 20 % off is no limit


RATE, STEPS = 0.1, 20


@functools.cache
def trained(parameterization, width):
    """30 networks after 0, 5, 10, 15, 20 steps of gradient descent, to t = 2, in one call."""
    net, data = network(parameterization), X.astype(np.float32)
    many = net.init_many(range(SEEDS), input_dim=3, width=width)
    rate = RATE * width if parameterization == "mean_field" else RATE
    return wl.train(
        net.apply,
        many,
        data,
        Y,
        ensemble=True,
        learning_rate=rate,
        steps=STEPS,
        record_every=5,
        probes=Z.astype(np.float32),
        kernel_points=8,
    ).history


def test_the_kernel_stands_still_in_wide_networks():
    """Remark 4.3 and Theorem 2 of Jacot et al. 2018: the drift of the kernel over training is O(width^{-1/2}).

    That is a bound. The rate is width^{-1} (Dyer and Gur-Ari 2020, arXiv 1909.11304; Huang and Yau 2020, arXiv
    1909.08156), and it is what is fitted here, within 0.15. Parameters move by O(1) in norm, and there are about
    width^2 of them: their relative movement goes like width^{-1} too. Mean-field networks do neither: the control.
    """
    histories = [trained("ntk", width) for width in WIDTHS]
    drifts = [history.kernel_drift[-1].mean() for history in histories]
    assert -1.15 < slope(WIDTHS, drifts) < -0.85, slope(WIDTHS, drifts)
    moves = [history.movement[-1].mean() for history in histories]
    assert -1.1 < slope(WIDTHS, moves) < -0.9, slope(WIDTHS, moves)
    widths = (64, 256)
    fields = [trained("mean_field", width).kernel_drift[-1].mean() for width in widths]
    assert slope(widths, fields) > -0.15, fields
    assert min(fields) > 0.1


def test_trained_networks_tend_to_kernel_descent_from_their_own_start():
    """Corollary 4.4: f_t against kernel gradient descent with Theta from the same f_0, at 5, 10, 15 and 20 steps."""
    k = wl.ntk(network())
    correlation, zero = [], []
    for width in WIDTHS:
        outputs = trained("ntk", width).outputs.astype(np.float64)  # (R, E, m)
        net, data = network(), np.concatenate([X, Z]).astype(np.float32)
        start = np.asarray(net.apply_many(net.init_many(range(SEEDS), input_dim=3, width=width), data))[..., 0]
        followed, from_zero = limits(k, start.astype(np.float64))
        correlation.append(np.sqrt(np.mean((outputs[1:] - followed) ** 2)))
        zero.append(np.sqrt(np.mean((outputs[1:] - from_zero) ** 2)))
    assert -0.65 < slope(WIDTHS, correlation) < -0.35, slope(WIDTHS, correlation)
    assert not -0.65 < slope(WIDTHS, zero) < -0.35  # from f_0 = 0 it is another function at every width


def limits(k, start):
    """Kernel descent at Z from the networks' own f_0, given at X and Z, and from 0: (R - 1, E, m), (R - 1, 1, m)."""
    steps = np.arange(5, STEPS + 1, 5)

    def run(f_0):
        """All networks at once: each is an output of its own, and the kernel does not mix outputs."""
        known = {row.tobytes(): i for i, row in enumerate(np.concatenate([X, Z]))}
        values = lambda A: f_0[:, [known[row.tobytes()] for row in A]].T  # noqa: E731
        targets = np.tile(Y[:, None], (1, len(f_0)))
        descent = wl.gradient_descent(k, X, targets, learning_rate=RATE, steps=steps, initial=values)
        return np.swapaxes(descent.predict(Z), 1, 2)

    return run(start), run(np.zeros((1, 13)))
