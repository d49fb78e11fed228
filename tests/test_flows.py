"""Kernel gradient descent for any loss and any kernel, against other algorithms, with planted errors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.linalg
import scipy.optimize
import scipy.special
from sklearn.linear_model import LogisticRegression

import cases
import widelimit as wl
from compiled import quick_jit
from widelimit.inference import numerical_flow

RNG = np.random.default_rng(0)
N = 14
X, Z = RNG.standard_normal((N, 3)), RNG.standard_normal((5, 3))
K = wl.rbf(1.5) + 0.3 * wl.linear()
GRAM = K.gram(X)
NOISY = X @ [1.0, -1.0, 0.5] + RNG.standard_normal(N)
SIGNS = np.where(NOISY > 0, 1.0, -1.0)
SHARES = scipy.special.softmax(2 * RNG.standard_normal((N, 3)), axis=1)
CLASSES = np.eye(3)[RNG.integers(0, 3, N)]
COUNTS = RNG.poisson(2.0, N).astype(float)
INF = np.inf


def quartic(f, y):
    return jnp.sum((f - y) ** 2 + (f - y) ** 4)


LOSSES = {  # of the names in cases.LOSSES, with targets for these inputs
    "squared error": ("squared_error", NOISY),
    "weighted": (wl.WeightedSquaredError(RNG.uniform(0.1, 2, N)), NOISY),
    "huber": (wl.Huber(0.5), NOISY),
    "logistic": ("logistic", SIGNS),
    "softmax": ("softmax_cross_entropy", SHARES),
    "poisson": (wl.Poisson(), COUNTS),
    "custom": (quartic, NOISY),
}


def initial(A):
    return 0.3 * np.cos(A[:, 0])


def start(y):
    return (lambda A: np.tile(initial(A)[:, None], (1, y.shape[1]))) if y.ndim == 2 else initial


# --- every loss


@pytest.mark.parametrize("name", cases.LOSSES)
def test_the_loss_falls_at_the_squared_norm_of_its_derivative(name):
    """dC/dt = -|d|_K^2 = -(1/n^2) d^T K d along the trajectory; central differences, step 1e-2 t: right to 1e-4."""
    loss, y = LOSSES[name]
    flow = wl.gradient_flow(K, X, y, loss=loss, initial=start(y))
    objective = flow.objective if isinstance(flow, wl.NumericalFlow) else wl.SquaredError()
    for t in (0.2, 2.0):
        earlier, later = flow.loss([0.99 * t, 1.01 * t])
        rate = (later - earlier) / (0.02 * t)
        d = objective.gradient(flow.predict(X, t), y)
        expected = -np.sum(d * (GRAM @ d)) / N**2
        assert abs(rate / expected - 1) < 3e-4
        assert abs(rate / -np.sqrt(-expected) - 1) > 3e-4  # as printed in section 3.4
    times = 0.0 if name in ("squared error", "huber") else [0.0, 0.2]  # time 0 alone is a program of its own
    assert np.ravel(flow.loss(times))[0] == pytest.approx(objective.value(np.reshape(start(y)(X), y.shape), y))


@pytest.mark.parametrize("name", cases.LOSSES)
def test_flow_equals_euler_steps_with_extrapolation(name):
    """Steps of 1/4000 and half of it, extrapolated: second order, error (1/4000)^2 times the curvature squared."""
    loss, y = LOSSES[name]
    flow = wl.gradient_flow(K, X, y, loss=loss, initial=start(y))
    h = 1 / 4000

    def euler(h, steps):
        return wl.gradient_descent(K, X, y, learning_rate=h, steps=steps, loss=loss, initial=start(y)).predict(Z)

    expected = 2 * euler(h / 2, 16_000) - euler(h, 8_000)
    np.testing.assert_allclose(flow.predict(Z, 2.0), expected, rtol=0, atol=2e-6)
    assert np.abs(flow.predict(Z, 1.98) - expected).max() > 1e-4


def test_cross_entropy_flow_equals_a_plain_euler_integration():
    """NumPy only. Step 1e-3 and 5e-4, extrapolated; the time unit is that of C = (1/n) sum l, not of sum l."""
    everything = np.vstack([X, Z])
    matrix = K.cross(everything, X)

    def euler(h):
        f = np.zeros((N + 5, 3))
        for _ in range(round(3 / h)):
            f = f - (h / N) * matrix @ (scipy.special.softmax(f[:N], axis=1) - CLASSES)
        return f

    expected = 2 * euler(5e-4) - euler(1e-3)
    flow = wl.gradient_flow(K, X, CLASSES, loss="softmax_cross_entropy")
    np.testing.assert_allclose(flow.predict(everything, 3.0), expected, rtol=0, atol=1e-6)
    assert np.abs(flow.predict(everything, 3.0 / N) - expected).max() > 1e-2


def test_cross_entropy_flow_equals_a_linear_softmax_model_trained_by_optax():
    """Rate 1e-3, 4000 steps: off by O(rate) from the flow at t = 4; halving the rate halves the difference."""
    with jax.enable_x64(True):
        inputs, labels = jnp.asarray(X), jnp.asarray(CLASSES)

        def objective(w):
            return optax.softmax_cross_entropy(inputs @ w, labels).mean()

        @quick_jit
        def train(rate, steps):
            optimiser = optax.sgd(rate)

            def step(_, state):
                w, inner = state
                updates, inner = optimiser.update(jax.grad(objective)(w), inner)
                return optax.apply_updates(w, updates), inner

            w = jnp.zeros((3, 3))
            return jax.lax.fori_loop(0, steps, step, (w, optimiser.init(w)))[0]

        coarse, fine = Z @ np.asarray(train(1e-3, 4000)), Z @ np.asarray(train(5e-4, 8000))
    flow = wl.gradient_flow(wl.linear(), X, CLASSES, loss="softmax_cross_entropy").predict(Z, 4.0)
    assert np.abs(fine - flow).max() < 1e-4
    np.testing.assert_allclose(coarse - flow, 2 * (fine - flow), rtol=0.02, atol=1e-7)
    np.testing.assert_allclose(2 * fine - coarse, flow, rtol=0, atol=1e-6)


def test_the_limit_is_the_minimiser_found_by_another_algorithm():
    """Labels with a finite minimiser. scipy's trust region on f(X); the flow's tolerance is 1e-8 of the derivative."""
    for name in ("huber", "softmax", "poisson", "custom"):
        loss, y = LOSSES[name]
        flow = wl.gradient_flow(K, X, y, loss=loss)
        found = flow.solution(INF)
        assert found.converged, name
        assert "converged at t = " in found.message
        best = scipy.optimize.minimize(
            lambda f, y=y, flow=flow: flow.objective.value(f.reshape(y.shape), y),
            np.zeros(y.size),
            jac=lambda f, y=y, flow=flow: flow.objective.gradient(f.reshape(y.shape), y).ravel() / N,
            method="BFGS",
            options={"gtol": 1e-10},
        ).fun
        assert flow.loss(INF) == pytest.approx(best, rel=1e-8, abs=1e-10)
        assert flow.loss(0.2) > 1.001 * best
        np.testing.assert_allclose(flow.predict(X, INF), GRAM @ np.squeeze(found.coefficients[0]), atol=1e-8)


def test_logistic_flow_on_a_rank_deficient_kernel_is_logistic_regression():
    """14 points, rank 3: the flow converges to the projection, which scikit-learn finds by Newton's method."""
    peer = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-12, solver="newton-cholesky").fit(X, SIGNS)
    flow = wl.gradient_flow(wl.linear(), X, SIGNS, loss=wl.Logistic())
    assert len(flow.values) == 3
    np.testing.assert_allclose(flow.predict(Z, INF), Z @ peer.coef_[0], rtol=1e-6)
    assert np.abs(flow.predict(Z, 5.0) - Z @ peer.coef_[0]).max() > 1e-3


def test_weighted_squared_error_with_unit_weights_is_the_closed_form():
    closed = wl.gradient_flow(K, X, NOISY, initial=initial)
    solved = wl.gradient_flow(K, X, NOISY, loss=wl.WeightedSquaredError(np.ones(N)), initial=initial)
    times = [0.0, 0.5, 20.0, 1e4, INF]
    # the solver's tolerance is 1e-8 of the size of f in the kernel's space, a few hundred steps
    np.testing.assert_allclose(solved.predict(Z, times), closed.predict(Z, times), atol=1e-6)
    np.testing.assert_allclose(solved.loss(times[:3]), closed.loss(times[:3]), rtol=1e-6)


def test_a_loss_that_is_straight_at_the_start_is_no_obstacle():
    """All residuals beyond delta: constant velocity, where one root finder of diffrax rejects every step."""
    flow = wl.gradient_flow(K, X, SIGNS, loss=wl.Huber(0.5))
    early = flow.predict(Z, 1e-3)
    np.testing.assert_allclose(early, 1e-3 / N * K.cross(Z, X) @ SIGNS, rtol=1e-7)
    assert flow.solution(INF).converged
    np.testing.assert_allclose(flow.predict(X, INF), SIGNS, atol=1e-6)


def test_the_start_of_a_flow_is_the_program_of_its_other_times():
    flow = wl.gradient_flow(K, X, SIGNS, loss=wl.Huber(0.5))
    flow.loss(1.0)
    before = numerical_flow._solve._cache_size()
    assert flow.loss(0.0) == wl.Huber(0.5).value(np.zeros(N), SIGNS)
    assert numerical_flow._solve._cache_size() == before


def test_explicit_steps_for_many_unknowns_agree_with_implicit_ones(monkeypatch):
    flow = wl.gradient_flow(K, X, SIGNS, loss=wl.Huber(0.5))
    implicit = flow.predict(Z, [0.3, 5.0])
    monkeypatch.setattr("widelimit.inference.numerical_flow.IMPLICIT", 0)
    np.testing.assert_allclose(flow.predict(Z, [0.3, 5.0]), implicit, rtol=0, atol=1e-6)
    assert np.abs(flow.predict(Z, [0.31, 5.1]) - implicit).max() > 1e-4


def test_a_flow_without_a_limit_is_explained():
    labels = np.where(X[:, 0] > 0, 1.0, -1.0)
    flow = wl.gradient_flow(wl.linear(), X, labels, loss="logistic")
    found = flow.solution([1.0, INF])
    assert not found.converged
    assert found.reached.tolist() == [True, False]
    assert "no minimum at a finite f (separable classes, say)" in found.message
    assert (flow.predict(X, 100.0) * labels > 0).all()
    with pytest.warns(UserWarning, match=r"t = inf stands for t = .*: stopped at"):
        flow.predict(Z, INF)
    short = wl.gradient_flow(K, X, SIGNS, loss="logistic", max_steps=5)
    assert "max_steps = 5 is used up" in short.solution(INF).message
    with pytest.raises(ArithmeticError, match=r"t = 100 was not reached: stopped at .* max_steps = 5 is used up"):
        short.loss(100.0)
    still = wl.gradient_flow(K, X, NOISY, loss="huber", initial=lambda A: NOISY if len(A) == N else np.zeros(len(A)))
    assert still.solution(INF).converged
    assert still.loss(INF) == 0.0


# --- gradient descent


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_descent_is_the_polynomial_that_its_steps_make(momentum):
    """Plain steps on alpha, NumPy; 300 steps, each with a few eps of rounding, of iterates that grow to 10."""
    rate = 0.7 * wl.max_learning_rate(K, X)
    alpha, before = np.zeros(N), np.zeros(N)
    for _ in range(300):
        d = 2 * (initial(X) + GRAM @ alpha - NOISY)
        alpha, before = alpha - (rate / N) * d + momentum * (alpha - before), alpha
    common = {"learning_rate": rate, "momentum": momentum, "initial": initial}
    descent = wl.gradient_descent(K, X, NOISY, steps=300, **common)
    np.testing.assert_allclose(descent.coefficients(), alpha, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(descent.predict(Z), initial(Z) + K.cross(Z, X) @ alpha, rtol=0, atol=1e-11)
    weights = wl.WeightedSquaredError(np.ones(N))
    stepped = wl.gradient_descent(K, X, NOISY, steps=np.array([300, 0, 10]), loss=weights, **common)
    np.testing.assert_allclose(stepped.coefficients()[0], alpha, rtol=1e-10, atol=1e-10)
    np.testing.assert_array_equal(stepped.predict(Z)[1], initial(Z))
    np.testing.assert_allclose(descent.loss(), stepped.loss()[0], rtol=1e-9)
    planted = wl.gradient_descent(K, X, NOISY, steps=299, **common)
    assert np.abs(planted.coefficients() - alpha).max() > 1e-6


def test_small_steps_are_the_flow_and_many_steps_its_limit():
    flow = wl.gradient_flow(K, X, NOISY)
    fine = wl.gradient_descent(K, X, NOISY, learning_rate=1e-6, steps=3_000_000).predict(Z)
    np.testing.assert_allclose(fine, flow.predict(Z, 3.0), rtol=0, atol=1e-4 * np.abs(fine).max())
    rate = wl.max_learning_rate(K, X)
    last = wl.gradient_descent(K, X, NOISY, learning_rate=0.5 * rate, steps=10**12).predict(Z)
    np.testing.assert_allclose(last, flow.predict(Z, INF), rtol=1e-7)


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_the_largest_learning_rate_is_sharp(momentum):
    bound = wl.max_learning_rate(K, X, momentum=momentum)
    assert bound == pytest.approx((1 + momentum) * N / np.linalg.eigvalsh(GRAM)[-1])
    below = wl.gradient_descent(K, X, NOISY, learning_rate=0.99 * bound, steps=20_000, momentum=momentum)
    assert below.loss() < 0.2 * np.mean(NOISY**2)
    with pytest.warns(UserWarning, match=f"is above the bound {bound:.6g} = wl.max_learning_rate.* diverges"):
        above = wl.gradient_descent(K, X, NOISY, learning_rate=1.01 * bound, steps=2000, momentum=momentum)
    assert above.loss() > 1e6
    assert wl.max_learning_rate(K, X, loss="logistic") == pytest.approx(8 * wl.max_learning_rate(K, X))


# --- modes


def test_modes_are_the_loss_term_by_term():
    flow = wl.gradient_flow(K, X, np.column_stack([NOISY, COUNTS]), initial=None)
    modes = flow.modes()
    assert (np.diff(modes.eigenvalues) <= 0).all()
    np.testing.assert_allclose(modes.shares.sum(), 1.0, rtol=1e-14)
    times = np.array([0.0, 0.3, 5.0, INF])
    residual = flow.predict(X, times) - np.column_stack([NOISY, COUNTS])
    losses = np.sum(residual**2, axis=(1, 2)) / N
    np.testing.assert_allclose(modes.loss(times).sum(1), losses, rtol=1e-10, atol=1e-20)
    first = modes.times[0]
    along = modes.vectors[:, 0] @ (flow.predict(X, first) - np.column_stack([NOISY, COUNTS]))
    np.testing.assert_allclose(np.sum(along**2), modes.power[0] * np.exp(-2), rtol=1e-10)
    assert abs(modes.loss(first)[0] * N / modes.power[0] - np.exp(-1)) > 0.1  # the loss falls twice as fast
    flat = wl.gradient_flow(wl.linear(), X, NOISY).modes()
    assert (flat.times[3:] == INF).all()
    assert np.isfinite(flat.times[:3]).all()


# --- matrix-valued kernels


def test_separable_kernels_flow_as_their_kronecker_product():
    mixing = np.array([[1.0, 0.6], [0.6, 0.8]])
    k = wl.separable(K, mixing)
    y = np.column_stack([NOISY, COUNTS])
    flow = wl.gradient_flow(k, X, y)
    decay = scipy.linalg.expm(-2 * 1.3 / N * np.kron(GRAM, mixing))
    expected = y - (decay @ y.ravel()).reshape(N, 2)
    np.testing.assert_allclose(flow.predict(X, 1.3), expected, atol=1e-12)
    apart = wl.gradient_flow(wl.separable(K, np.eye(2)), X, y).predict(Z, [1.3, INF])
    np.testing.assert_allclose(apart, wl.gradient_flow(K, X, y).predict(Z, [1.3, INF]), rtol=1e-9, atol=1e-10)
    assert np.abs(apart[0] - flow.predict(Z, 1.3)).max() > 1e-2
    np.testing.assert_allclose(flow.modes().loss(1.3).sum(), flow.loss(1.3), rtol=1e-12)
    np.testing.assert_allclose(flow.loss(1.3), np.sum((expected - y) ** 2) / N, rtol=1e-10)
    assert k.gram(X).shape == (N, N, 2, 2)
    np.testing.assert_array_equal(k.diag(X)[3], k.gram(X)[3, 3])


def test_the_empirical_tangent_kernel_is_descent_on_the_linearised_network():
    """theta <- theta - eta grad C of the network linearised at its start, step by step, is descent with its kernel."""
    net = wl.mlp(depth=2, activation="erf", bias_std=0.3)
    with jax.enable_x64(True):
        params = jax.tree.map(lambda p: jnp.asarray(p, jnp.float64), net.init(0, input_dim=3, width=7, output_dim=2))

        slopes = jax.jit(lambda A: jax.jacobian(lambda p: net.apply(p, A))(params))

        def jacobian(A):
            rows = slopes(jnp.asarray(A))
            return np.concatenate([np.asarray(leaf).reshape(len(A), 2, -1) for leaf in jax.tree.leaves(rows)], axis=2)

        def f0(A):
            with jax.enable_x64(True):
                return np.asarray(net.apply(params, jnp.asarray(A)))

        at_data, at_test = np.split(jacobian(np.vstack([X, Z])), [N])

    def tangent(A, B):
        rows = [at_data if len(V) == N else at_test for V in (A, B)]
        return np.einsum("iap,jbp->ijab", *rows)

    y = np.column_stack([NOISY, COUNTS])
    move = np.zeros(at_data.shape[2])
    for _ in range(40):
        residual = f0(X) + at_data @ move - y
        move = move - 0.05 * (2 / N) * np.einsum("iap,ia->p", at_data, residual)
    k = wl.matrix_valued(tangent, outputs=2)
    common = {"learning_rate": 0.05, "steps": 40, "initial": f0}
    descent = wl.gradient_descent(k, X, y, **common)
    np.testing.assert_allclose(descent.predict(Z), f0(Z) + at_test @ move, atol=1e-11)
    planted = wl.gradient_descent(wl.matrix_valued(lambda A, B: 1.01 * tangent(A, B), outputs=2), X, y, **common)
    assert np.abs(planted.predict(Z) - f0(Z) - at_test @ move).max() > 1e-4
    smooth = wl.gradient_flow(k, X, y, loss=wl.Huber(0.5), initial=f0)
    euler = wl.gradient_descent(k, X, y, learning_rate=1e-4, steps=5000, loss=wl.Huber(0.5), initial=f0)
    np.testing.assert_allclose(smooth.predict(Z, 0.5), euler.predict(Z), atol=1e-3)


# --- bad input


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (
            lambda: wl.gradient_flow(K, X, NOISY, loss="logistic"),
            ValueError,
            "labels of the logistic loss are -1 and 1",
        ),
        (lambda: wl.gradient_flow(K, X, NOISY, loss="hubr"), ValueError, "unknown loss 'hubr'; known: squared_error"),
        (lambda: wl.gradient_flow(K, X, NOISY, loss=3), TypeError, "loss must be a name"),
        (lambda: wl.gradient_flow(K, X, NOISY, loss=wl.Huber), TypeError, "loss must be a name"),
        (lambda: wl.gradient_flow(K, X, NOISY, loss="huber", max_steps=0), ValueError, "max_steps must be at least 1"),
        (lambda: wl.gradient_flow(K, X, NOISY, loss="huber", tolerance=0.0), ValueError, "tolerance must be >= 1e-12"),
        (
            lambda: wl.gradient_flow(K, X, NOISY, loss="huber").predict(Z, -1.0),
            ValueError,
            r"times must be in \[0, inf",
        ),
        (
            lambda: wl.gradient_flow(K, X, CLASSES, loss="huber", initial=initial),
            ValueError,
            r"initial must map \(14, 3\) inputs to shape \(14, 3\), as y has; it returned shape \(14,\)",
        ),
        (
            lambda: wl.gradient_descent(K, X, NOISY, learning_rate=-0.1, steps=1),
            ValueError,
            "learning_rate must be > 0",
        ),
        (lambda: wl.gradient_descent(K, X, NOISY, learning_rate=0.1, steps=-1), ValueError, "steps must be at least 0"),
        (lambda: wl.gradient_descent(K, X, NOISY, learning_rate=0.1, steps=1.5), TypeError, "steps must be an integer"),
        (
            lambda: wl.gradient_descent(K, X, NOISY, learning_rate=0.1, steps=1, momentum=1.0),
            ValueError,
            r"momentum must be in \[0, 1\)",
        ),
        (lambda: wl.max_learning_rate(K, X, loss="poisson"), ValueError, "second derivative of Poisson has no bound"),
        (lambda: wl.separable(K, [[1.0, 2.0], [2.0, 1.0]]), ValueError, "mixing must be positive semi-definite"),
        (lambda: wl.separable(K, [[1.0, 2.0], [0.0, 1.0]]), ValueError, "mixing is not symmetric"),
        (lambda: wl.gradient_flow(wl.separable(K, np.eye(2)), X, NOISY), ValueError, "the kernel has 2 outputs and y"),
        (lambda: wl.posterior(wl.separable(K, np.eye(2)), X, NOISY), TypeError, "Separable is matrix-valued"),
        (
            lambda: wl.gradient_flow(wl.matrix_valued(lambda *_: np.ones((2, 2)), outputs=1), X, NOISY),
            ValueError,
            r"must return shape \(14, 14, 1, 1\) here, got \(2, 2\)",
        ),
        (
            lambda: wl.gradient_flow(wl.matrix_valued(lambda *_: np.full((14, 14, 1, 1), np.nan), outputs=1), X, NOISY),
            ValueError,
            "196 entries that are NaN",
        ),
        (
            lambda: wl.matrix_valued(
                lambda A, B: (A @ np.triu(np.ones((3, 3))) @ B.T)[:, :, None, None], outputs=1
            ).gram(X),
            ValueError,
            r"K\(x, x'\)\^T and K\(x', x\) differ by",
        ),
    ],
)
def test_bad_input(call, kind, words):
    with pytest.raises(kind, match=words):
        call()
