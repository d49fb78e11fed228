"""The product of balanced layers moves as the layers themselves, solved one by one, say."""

import numpy as np
import pytest
from scipy.integrate import solve_ivp

import widelimit as wl

RNG = np.random.default_rng(1)
X, Y = RNG.standard_normal((6, 3)), RNG.standard_normal((6, 2))
START = 0.4 * RNG.standard_normal((3, 2))


def layers(W, depth):
    """Balanced factors of W, of width 2."""
    U, s, Vt = np.linalg.svd(W, full_matrices=False)
    root = np.diag(s ** (1 / depth))
    return [U @ root, *[root] * (depth - 2), root @ Vt]


def trained(factors, t):
    """The product of layers after gradient flow on each of them."""
    shapes, ends = [A.shape for A in factors], np.cumsum([A.size for A in factors])[:-1]

    def split(state):
        return [part.reshape(shape) for part, shape in zip(np.split(state, ends), shapes, strict=True)]

    def speed(_, state):
        own = split(state)
        G = 2 / len(X) * X.T @ (X @ np.linalg.multi_dot([np.eye(3), *own]) - Y)
        found = []
        for j in range(len(own)):
            before, after = (
                np.linalg.multi_dot([np.eye(len(part[0])), *part])
                for part in ([np.eye(3), *own[:j]], [*own[j + 1 :], np.eye(2)])
            )
            found.append((before.T @ G @ after.T).ravel())
        return -np.concatenate(found)

    end = solve_ivp(
        speed, (0, t), np.concatenate([A.ravel() for A in factors]), rtol=1e-11, atol=1e-12, method="DOP853"
    )
    return np.linalg.multi_dot([np.eye(3), *split(end.y[:, -1])])


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_the_product_moves_as_its_layers_say(depth):
    times = [0.3, 2.0, 0.0]
    flow = wl.deep_linear_flow(X, Y, depth=depth, start=START, times=times)
    for W, t in zip(flow.weights[:2], times, strict=False):
        np.testing.assert_allclose(W, trained(layers(START, depth), t), atol=1e-8)
    np.testing.assert_array_equal(flow.weights[2], START)
    np.testing.assert_allclose(flow.outputs, X @ flow.weights, rtol=1e-12)
    np.testing.assert_allclose(flow.loss, np.mean(np.sum((flow.outputs - Y) ** 2, axis=2), axis=1), rtol=1e-12)
    first, *middle, last = layers(START, depth)
    unbalanced = trained([3 * first, *middle, last / 3], times[0])  # the same product
    assert np.max(abs(unbalanced - flow.weights[0])) > 0.01


def test_singular_values_of_whitened_data_follow_their_closed_form():
    """s_t = s* e/(e - 1 + s*/s_0), e = exp(4 s* t), at depth 2; at depth 3 the time is the integral of 1/speed."""
    Q = np.sqrt(6) * np.linalg.qr(RNG.standard_normal((6, 3)))[0]
    U, s, Vt = np.linalg.svd(Q.T @ Y / 6, full_matrices=False)
    start, t = 0.01, 1.5
    flow = wl.deep_linear_flow(Q, Y, depth=2, start=start * U @ Vt, times=t)
    e = np.exp(4 * s * t)
    np.testing.assert_allclose(np.diag(U.T @ flow.weights[0] @ Vt.T), s * e / (e - 1 + s / start), rtol=1e-7)
    from scipy.integrate import quad

    deep = wl.deep_linear_flow(Q, Y, depth=3, start=start * U @ Vt, times=t)
    for aim, value in zip(s, np.diag(U.T @ deep.weights[0] @ Vt.T), strict=True):
        assert quad(lambda v, aim=aim: 1 / (6 * v ** (4 / 3) * (aim - v)), start, value)[0] == pytest.approx(
            t, rel=1e-6
        )


def test_depth_one_is_linear_regression_and_its_kernel_stays():
    flow = wl.deep_linear_flow(X, Y[:, 0], depth=1, start=START[:, 0], times=[0.5, 4.0], probes=X[:2])
    np.testing.assert_allclose(flow.outputs, flow.lazy, atol=1e-8)
    k = wl.linear()
    found = wl.gradient_flow(k, X, Y[:, 0] - X @ START[:, 0]).predict(X[:2], 4.0)
    scale = np.asarray(k.gram(X))[0, 0] / (X[0] @ X[0])
    found = wl.gradient_flow(k, X, Y[:, 0] - X @ START[:, 0]).predict(X[:2], 4.0 / scale)
    np.testing.assert_allclose(flow.outputs[1, :, 0], X[:2] @ START[:, 0] + np.asarray(found), atol=1e-8)


def test_the_lazy_prediction_keeps_the_kernel_of_the_start():
    """df/dt = -(2/n) Theta_0 (f - y), Theta_0 = J J^T with J the derivatives by all layers, here by differences."""
    depth, step = 3, 1e-6
    own = layers(START, depth)
    flow = wl.deep_linear_flow(X, Y, depth=depth, start=START, times=0.7)
    J = []
    for A in own:
        for i in np.ndindex(*A.shape):
            A[i] += step
            up = X @ np.linalg.multi_dot(own)
            A[i] -= 2 * step
            J.append((up - X @ np.linalg.multi_dot(own)).ravel() / (2 * step))
            A[i] += step
    theta = np.transpose(J) @ J
    values, Q = np.linalg.eigh(2 / 6 * theta)
    r = Q @ (np.exp(-np.maximum(values, 0) * 0.7) * (Q.T @ (X @ START - Y).ravel()))
    np.testing.assert_allclose(flow.lazy[0], Y + r.reshape(6, 2), atol=1e-6)
    assert np.max(abs(flow.lazy - flow.outputs)) > 0.02


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"start": np.zeros((3, 2))}, "zero"),
        ({"start": np.ones(3)}, "shape"),
        ({"start": np.full((3, 2), np.nan)}, "finite"),
        ({"times": np.inf}, "finite"),
        ({"depth": 0}, "depth"),
        ({"y": 1e200 * Y}, "too many steps|finite"),
    ],
)
def test_what_has_no_flow_is_refused(given, message):
    settings = {"X": X, "y": Y, "depth": 3, "start": START, "times": 1.0} | given
    with pytest.raises((TypeError, ValueError, ArithmeticError), match=message):
        wl.deep_linear_flow(**settings)
