"""Corrections of order 1/width at initialisation, beside random networks drawn with NumPy and known values."""

import itertools
import math

import numpy as np
import pytest

import widelimit as wl

X = np.array([[1.0, -2.0, 0.5]])
W, B = 1.5, 0.2
RELU, TANH = (lambda u: np.maximum(u, 0), lambda u: (u > 0) * 1.0), (np.tanh, lambda u: 1 - np.tanh(u) ** 2)


def draws(depth, functions, n, count, seed=0):
    """The conditional variance of the output and the tangent kernel at X of random networks, (count,) each."""
    rng, (phi, slope) = np.random.default_rng(seed), functions
    found = []
    for _ in range(count):
        sizes, a, inputs, signals, weights = [3, *[n] * (depth - 1), 1], X[0], [], [], []
        for fan_in, fan_out in itertools.pairwise(sizes):
            weights.append(W / math.sqrt(fan_in) * rng.standard_normal((fan_out, fan_in)))
            inputs.append(a)
            signals.append(weights[-1] @ a + B * rng.standard_normal(fan_out))
            a = phi(signals[-1])
        theta, delta = 0.0, np.ones(1)
        for i in reversed(range(depth)):
            theta += (W**2 * np.mean(inputs[i] ** 2) + B**2) * np.sum(delta**2)
            delta = (weights[i].T @ delta) * slope(signals[i - 1]) if i else delta
        found.append((W**2 * np.mean(inputs[-1] ** 2) + B**2, theta))
    return np.array(found).T


@pytest.mark.parametrize(("activation", "functions", "depth"), [("relu", RELU, 3), ("tanh", TANH, 4)])
def test_corrections_are_those_of_random_networks(activation, functions, depth):
    n, count = 100, 3000
    net = wl.mlp(depth=depth, activation=activation, weight_std=W, bias_std=B)
    found = wl.finite_width(net, X, width=n)
    G, theta = draws(depth, functions, n, count)
    assert found.limit[0] == pytest.approx(wl.nngp(net).diag(X)[0], rel=1e-12)
    assert found.tangent[0] == pytest.approx(wl.ntk(net).diag(X)[0], rel=1e-10)
    assert abs(found.variance[0] - G.mean()) < 4 * G.std() / math.sqrt(count)
    for predicted, values, size in (
        (found.conditional, G, found.limit),
        (found.tangent_deviation, theta, found.tangent),
    ):
        spread = (values - values.mean()) ** 2 / size[0] ** 2
        z = (predicted[0] ** 2 - spread.mean()) / (spread.std() / math.sqrt(count))
        assert abs(z) < 4
        assert abs((1.3 * predicted[0] ** 2 - spread.mean()) / (spread.std() / math.sqrt(count))) > 4
    assert found.excess_kurtosis[0] == 3 * found.conditional[0] ** 2


def test_relu_that_keeps_the_variance_has_five_over_the_width_for_each_layer():
    widths = (100, 200, 50)
    net = wl.mlp(depth=4, weight_std=math.sqrt(2))
    found = wl.finite_width(net, X, width=widths)
    assert found.conditional[0] ** 2 == pytest.approx(5 * sum(1 / n for n in widths), rel=1e-12)
    assert found.variance[0] == pytest.approx(found.limit[0], rel=1e-12)
    narrow = found.width_for(0.1)
    shares = [narrow * n // 50 for n in widths]
    again = wl.finite_width(net, X, width=shares)
    assert 0.098 < max(again.conditional[0], again.tangent_deviation[0]) <= 0.1


def test_a_linear_network_of_one_hidden_layer_is_known_exactly():
    """f = w a/sqrt(n), a Gaussian of variance K: G = w^2 K chi^2_n/n."""
    net = wl.mlp(depth=2, activation="identity", weight_std=W)
    found = wl.finite_width(net, X, width=40)
    assert found.conditional[0] == pytest.approx(math.sqrt(2 / 40), rel=1e-12)
    assert found.variance[0] == pytest.approx(found.limit[0], rel=1e-12)
    assert found.tangent_deviation[0] == pytest.approx(math.sqrt(4 / 40) / 2, rel=1e-12)


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_inputs_of_any_size_have_the_corrections_of_homogeneous_networks(activation):
    """gelu(u) is u/2 for small u and relu(u) for large u: V/K^2 is 2/n or 5/n for each of two layers."""
    found = wl.finite_width(wl.mlp(depth=3, activation=activation), X * np.array([[1e-80], [1e80]]), width=100)
    small = 2 if activation == "gelu" else 5
    np.testing.assert_allclose(found.conditional**2 * 50, [small, 5], rtol=1e-9)
    one = wl.finite_width(wl.mlp(depth=3, activation="identity" if small == 2 else "relu"), X, width=100)
    assert found.tangent_deviation[0] == pytest.approx(one.tangent_deviation[0], rel=1e-9)


def test_an_exponential_has_its_closed_form_or_is_refused():
    """E e^{4u}/(E e^{2u})^2 - 1 = e^{4K} - 1."""
    net, K = wl.mlp(depth=2, activation="exp"), np.sum((X / 2) ** 2) / 3
    found = wl.finite_width(net, X / 2, width=64)
    assert found.conditional[0] ** 2 * 64 == pytest.approx(math.expm1(4 * K), rel=1e-6)
    for depth, activation, size in ((3, "exp", 1.0), (2, "exp", 3.0), (2, "sin", 1e8)):
        with pytest.raises(ArithmeticError, match="not resolved"):
            wl.finite_width(wl.mlp(depth=depth, activation=activation), size * X)


def test_an_activation_that_jumps_has_no_tangent_kernel():
    found = wl.finite_width(wl.mlp(depth=2, activation="step"), X, width=100)
    assert found.conditional[0] ** 2 == pytest.approx(1 / 100, rel=1e-12)
    assert np.isinf(found.tangent[0])
    with pytest.raises(ValueError, match="jumps"):
        found.width_for(0.1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: wl.finite_width(wl.resmlp(blocks=2), X), "Dense"),
        (lambda: wl.finite_width(wl.mlp(depth=2, parameterization="standard"), X), "NTK parameterisation"),
        (lambda: wl.finite_width(wl.mlp(depth=3), X, width=[3]), "hidden layers"),
        (lambda: wl.finite_width(wl.mlp(depth=3), X, width=0), "width"),
        (lambda: wl.finite_width(wl.mlp(depth=2), 0 * X), "0 at an input"),
        (lambda: wl.finite_width(wl.mlp(depth=2), X).width_for(0.0), "error"),
        (lambda: wl.finite_width(wl.mlp(depth=2), X).width_for(1e-200), "give a larger one"),
        (lambda: wl.finite_width(wl.mlp(depth=2), 1e160 * X), "scale X down"),
    ],
)
def test_what_has_no_correction_is_refused(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()
