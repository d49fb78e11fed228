"""Gradient flow by Lanczos against eigenvectors, and the bound of its error against the error."""

import numpy as np
import pytest

import widelimit as wl
from widelimit.compute import krylov, operators
from widelimit.inference import gradient_flow as flows

RNG = np.random.default_rng(0)
N = 200
X = RNG.standard_normal((N, 4))
Z = RNG.standard_normal((7, 4))
Y = np.column_stack([np.sin(2 * X[:, 0]) + X[:, 1], X[:, 2] ** 2])
K = wl.ntk(wl.mlp(depth=3, weight_std=1.4, bias_std=0.2))
TIMES = np.r_[0.0, np.logspace(-3, 6, 10), np.inf]
COPIES = np.r_[0:150, 0:50]


def f0(A):
    return np.column_stack([A[:, 0], np.ones(len(A))])


def exact(values, vectors, b, s):
    """exp(-s A) b and its integral over [0, s], by the eigenvectors."""
    along = vectors.T @ b
    gain = -np.expm1(-s[:, None] * values) / values
    return np.exp(-s[:, None] * values) * along @ vectors.T, gain * along @ vectors.T


@pytest.mark.parametrize("steps", [10, 20, 40])
def test_the_bounds_hold_and_are_not_vacuous(steps):
    """At every time the error is below its bound, and at some within a factor of 10 of it: a lesser one would fail."""
    matrix = K.gram(X)
    values, vectors = np.linalg.eigh(matrix)
    basis = krylov.Lanczos(operators.StoredOperator(matrix).product, Y)
    while basis.steps < steps:
        basis.extend()
    s = np.logspace(-3, 2, 30)
    tight = []
    for j in range(2):
        found = basis.evaluate(j, s)
        size = np.linalg.norm(Y[:, j])
        for value, bound, truth in zip(
            (found.decayed, found.gain),
            (found.decayed_error, found.gain_error),
            exact(values, vectors, Y[:, j], s),
            strict=True,
        ):
            error = np.linalg.norm(value - truth, axis=1)
            rounding = 1e-12 * size * np.maximum(s, 1)  # of 200 terms, and of gains as large as s
            assert (error <= bound + rounding).all()
            seen = error > 100 * rounding
            tight += list(error[seen] / bound[seen])
    assert max(tight) > 0.1


@pytest.mark.parametrize("rows", [np.arange(N), COPIES], ids=["distinct", "duplicates"])
def test_krylov_equals_eigenvectors(rows):
    data, labels = X[rows], Y[rows]
    exact_flow = wl.gradient_flow(K, data, labels, initial=f0)
    flow = wl.gradient_flow(K, data, labels, initial=f0, solver="krylov")
    assert isinstance(flow, wl.KrylovFlow)
    expected = exact_flow.predict(Z, TIMES)
    np.testing.assert_allclose(flow.predict(Z, TIMES), expected, atol=1e-8)
    np.testing.assert_allclose(flow.loss(TIMES), exact_flow.loss(TIMES), rtol=1e-8, atol=1e-15)
    for t in (10.0, np.inf):
        np.testing.assert_allclose(flow.coefficients(t), exact_flow.coefficients(t), atol=1e-6)
    error = np.abs(flow.predict(Z, TIMES) - expected).max(axis=1)
    reach = np.sqrt((K.diag(Z) / K.diag(data).max()).max())
    assert (error <= flow.bound(TIMES) * reach + 1e-10).all()
    assert flow.bound(TIMES).max() <= 1e-8 * np.sqrt(np.mean((labels - f0(data)) ** 2, axis=0)).max()
    planted = flow.predict(Z, TIMES / 2)  # the other time unit in use
    assert np.abs(planted - expected).max() > 0.01


def test_shapes_and_single_outputs():
    flow = wl.gradient_flow(K, X, Y[:, 0], solver="krylov")
    whole = wl.gradient_flow(K, X, Y, solver="krylov")
    assert flow.predict(Z, 1.0).shape == (7,)
    assert flow.predict(Z, [1.0, 2.0]).shape == (2, 7)
    assert whole.predict(Z, [1.0, 2.0]).shape == (2, 7, 2)
    assert flow.coefficients(1.0).shape == (N,)
    assert whole.bound([1.0, 2.0, np.inf]).shape == (3, 2)
    assert whole.bound(1.0).shape == (2,)
    assert isinstance(flow.loss(1.0), float)
    np.testing.assert_allclose(whole.predict(Z, 2.0)[:, 0], flow.predict(Z, [1.0, 2.0])[1], atol=1e-8)


def test_matrix_valued_kernels():
    coupled = wl.separable(K, [[1.0, 0.5], [0.5, 2.0]])
    few = slice(80)
    exact_flow = wl.gradient_flow(coupled, X[few], Y[few])
    flow = wl.gradient_flow(coupled, X[few], Y[few], solver="krylov")
    np.testing.assert_allclose(flow.predict(Z, TIMES), exact_flow.predict(Z, TIMES), atol=1e-8)


def test_conflicting_labels_end_at_the_least_squares_fit():
    labels = Y[COPIES].copy()
    labels[150:] += 0.5
    exact_flow, flow = (wl.gradient_flow(K, X[COPIES], labels, solver=s) for s in ("eigh", "krylov"))
    np.testing.assert_allclose(flow.predict(Z, [1e3, np.inf]), exact_flow.predict(Z, [1e3, np.inf]), atol=1e-7)
    np.testing.assert_allclose(flow.loss(np.inf), exact_flow.loss(np.inf), rtol=1e-9)


def test_the_space_that_ends_early_is_exact():
    """Labels in an invariant subspace: a kernel of rank 4, a zero residual."""
    k = wl.linear()
    flow, exact_flow = (wl.gradient_flow(k, X, X[:, :2], solver=s) for s in ("krylov", "eigh"))
    np.testing.assert_allclose(flow.predict(Z, TIMES), exact_flow.predict(Z, TIMES), atol=1e-8)
    still = wl.gradient_flow(K, X, np.zeros(N), solver="krylov")
    np.testing.assert_array_equal(still.predict(Z, [0.0, 5.0]), 0)


def test_the_choice_and_its_limits(monkeypatch):
    assert isinstance(wl.gradient_flow(K, X, Y), wl.GradientFlow)
    monkeypatch.setattr(flows, "EIGH", 100)
    assert isinstance(wl.gradient_flow(K, X, Y), wl.KrylovFlow)
    assert isinstance(wl.gradient_flow(K, X, Y, solver="eigh"), wl.GradientFlow)
    with pytest.raises(ValueError, match='solver must be "auto", "eigh" or "krylov", got \'cg\''):
        wl.gradient_flow(K, X, Y, solver="cg")
    with pytest.raises(ValueError, match=r"krylov.* is for the squared error"):
        wl.gradient_flow(K, X, np.sign(Y), loss="logistic", solver="krylov")
    with pytest.raises(ValueError, match="times must be"):
        wl.gradient_flow(K, X, Y, solver="krylov").predict(Z, -1.0)
    short = wl.gradient_flow(K, X, Y, solver="krylov", max_steps=20)
    assert np.isfinite(short.predict(Z, 1.0)).all()
    with pytest.raises(ArithmeticError, match=r"t = 1e\+06 was not reached: 20 Lanczos steps bound the error only by"):
        short.predict(Z, 1e6)
