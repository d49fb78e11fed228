"""The first order in 1/width of training: its tensors by finite differences, its integrals by another solver."""

import math

import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.special import erf

import widelimit as wl
from widelimit.theory.hierarchy import Expansion, Tensors, kernels, tensors

W, B = 1.5, 0.3
X = np.random.default_rng(0).standard_normal((2, 3))
NET = wl.mlp(depth=2, activation="erf", weight_std=W, bias_std=B)


def slopes(theta, n):
    """Outputs of an erf network with one hidden layer at X, and their gradients, (2,) and (2, P)."""
    U, c, a, b = np.split(theta, [3 * n, 4 * n, 5 * n])
    z = W / math.sqrt(3) * X @ U.reshape(n, 3).T + B * c
    h = erf(z)
    back = W / math.sqrt(n) * a * 2 / math.sqrt(math.pi) * np.exp(-(z**2))
    by_U = back[:, :, None] * X[:, None] * W / math.sqrt(3)
    return h @ a * W / math.sqrt(n) + B * b, np.hstack(
        [by_U.reshape(2, -1), B * back, W / math.sqrt(n) * h, B * np.ones((2, 1))]
    )


def test_tensors_are_derivatives_of_the_kernel_along_gradients():
    """Theta along d theta = -c grad f_w ds has the second derivative O4 c c; the mean of O3 f_0 is Stein's."""
    n, step, c = 5, 0.02, np.array([0.7, -1.2])
    found = tensors(NET, X, trained=2, width=n, draws=4, seed=3)
    own = NET.init(3, input_dim=3, width=n, dtype=np.float64)
    theta = np.concatenate([np.ravel(leaf) for layer in own if layer for leaf in (layer["weight"], layer["bias"])])

    def kernel_after(s):
        flow = solve_ivp(lambda _, p: -c @ slopes(p, n)[1], (0, s), theta, rtol=1e-12, atol=1e-12)
        J = slopes(flow.y[:, -1], n)[1]
        return J @ J.T

    there, here, back = (kernel_after(s) for s in (step, 1e-12, -step))
    np.testing.assert_allclose(kernels(NET, X, width=n, seeds=range(3, 7))[0], here, rtol=1e-9)
    second = (there + back - 2 * here) / step**2
    predicted = np.einsum("azwu,w,u->az", found.fourth[0], c, c) / n
    np.testing.assert_allclose(second, predicted, rtol=2e-3)
    assert np.max(abs(second - 1.05 * predicted) / abs(second)) > 0.04


def test_a_linear_network_of_one_hidden_layer_has_its_closed_form():
    """n E[O3_abc f_d] = w^4 (2 S_ab S_cd + S_ac S_bd + S_bc S_ad), S the kernel of the first layer."""
    w, n, draws = 1.3, 8, 400
    net, S = wl.mlp(depth=2, activation="identity", weight_std=w), w**2 * X @ X.T / 3
    found = tensors(net, X, trained=2, width=n, draws=draws, seed=0).third
    exact = w**4 * sum(
        factor * np.einsum(how, S, S) for factor, how in ((2, "ab,cd->abcd"), (1, "ac,bd->abcd"), (1, "bc,ad->abcd"))
    )
    error = found.std(axis=0) / math.sqrt(draws)
    assert np.max(abs(found.mean(axis=0) - exact) / error) < 4
    assert np.max(abs(found.mean(axis=0) - 1.25 * exact) / error) > 4


def test_integrals_over_time_are_those_of_the_hierarchy():
    """f' = -Theta r, Theta' = -e O3 r, O3' = -O4 r for a tiny e, averaged over starts with the moments of f_0."""
    rng, p, t, tau, tiny = np.random.default_rng(5), 3, 2, 1.7, 1e-6
    A = rng.standard_normal((p, p))
    theta, y = (A @ A.T + np.eye(p)) / 3, rng.standard_normal(t)
    L = np.linalg.cholesky(theta[:t, :t] / 2 + 0.1 * np.eye(t))
    full = Tensors(*rng.standard_normal((2, p, t, t, t)))
    square = [(T[:t] + T[:t].swapaxes(0, 1)) / 2 for T in full]  # the kernel among trained points is symmetric
    full = Tensors(*(np.concatenate([part, T[t:]])[None] for part, T in zip(square, full, strict=True)))
    expansion = Expansion(theta[:, :t], L @ L.T, y)
    drift, learned = expansion.drift(tau, full)

    def after(f_0, size):
        third = np.einsum("azwu,u->azw", full.third[0], np.linalg.solve(L @ L.T, f_0))
        start = np.concatenate([[*f_0, *[0.0] * (p - t)], theta[:, :t].ravel(), third.ravel()])

        def speed(_, state):
            f, k, o = np.split(state, [p, p + p * t])
            r = f[:t] - y
            moved = -size * np.einsum("azw,w->az", o.reshape(p, t, t), r)
            third_moved = -np.einsum("azwu,u->azw", full.fourth[0], r)
            return np.concatenate([-k.reshape(p, t) @ r, moved.ravel(), third_moved.ravel()])

        end = solve_ivp(speed, (0, tau), start, method="DOP853", rtol=1e-13, atol=1e-14).y[:, -1]
        return end[:p], end[p : p + p * t].reshape(p, t)

    starts = [sign * math.sqrt(t) * column for column in L.T for sign in (1, -1)]
    moved = [[np.subtract(a, b) / tiny for a, b in zip(after(f, tiny), after(f, 0), strict=True)] for f in starts]
    np.testing.assert_allclose(np.mean([m[0] for m in moved], axis=0), learned[0], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(np.mean([m[1] for m in moved], axis=0), drift[0], rtol=1e-5, atol=1e-7)
    assert np.max(abs(drift[0])) > 0.1
    np.testing.assert_allclose(expansion.limit(tau), np.mean([after(f, 0)[0] for f in starts], axis=0), atol=1e-9)


def test_fluctuations_of_the_first_kernel_count_to_second_order():
    """y (1 - exp(-Theta tau)) at one point."""
    one, tau, y = Expansion(np.array([[0.8]]), np.array([[1.0]]), np.array([2.0])), 1.5, 2.0
    first, second = one.start(tau, np.array([[[0.3]]]))
    assert first[0, 0] == pytest.approx(y * tau * math.exp(-0.8 * tau) * 0.3, rel=1e-7)
    assert second[0, 0] == pytest.approx(-y * tau**2 * math.exp(-0.8 * tau) * 0.3**2 / 2, rel=1e-5)


@pytest.fixture(scope="module")
def found():
    settings = {"times": [0.0, 1.0], "draws": 4, "sample_width": 5}
    return [wl.finite_width_training(NET, X, X[:, 0], width=width, **settings) for width in (64, 128)]


def test_corrections_fall_like_one_over_the_width(found):
    wide = found[1]
    np.testing.assert_allclose(2 * wide.kernel_drift, found[0].kernel_drift, rtol=1e-12)
    np.testing.assert_allclose(wide.limit, wl.gradient_flow(wl.ntk(NET), X, X[:, 0]).predict(X, [0.0, 1.0]), atol=1e-9)
    np.testing.assert_allclose(2 * (wide.output - wide.limit), found[0].output - found[0].limit, rtol=1e-9)
    assert not wide.kernel_drift[0].any()
    assert np.all(wide.kernel_drift_error[1] > 0)
    np.testing.assert_allclose(wide.kernel, wl.ntk(NET).gram(X), rtol=1e-10)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: wl.finite_width_training(wl.mlp(depth=2), X, X[:, 0], times=1.0), "kinks"),
        (lambda: wl.finite_width_training(wl.resmlp(blocks=1, activation="erf"), X, X[:, 0], times=1.0), "Dense"),
        (lambda: wl.finite_width_training(NET, X, X, times=1.0), "one output"),
        (lambda: wl.finite_width_training(NET, X, X[:, 0], times=np.inf), "finite"),
        (lambda: wl.finite_width_training(NET, X, X[:, 0], times=1.0, draws=1), "draws"),
        (lambda: wl.finite_width_training(NET, np.ones((300, 3)), np.ones(300), times=1.0), "fewer points"),
    ],
)
def test_what_has_no_expansion_is_refused(call, message):
    with pytest.raises((TypeError, ValueError, MemoryError), match=message):
        call()
