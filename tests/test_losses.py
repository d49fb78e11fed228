"""Losses: values against textbook formulas in NumPy, derivatives against differences, domains."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

import widelimit as wl

RNG = np.random.default_rng(0)
N = 6
F = 1.5 * RNG.standard_normal((N, 3))
Y = RNG.standard_normal((N, 3))
SIGNS = np.where(Y > 0, 1.0, -1.0)
SHARES = scipy.special.softmax(Y, axis=1)
COUNTS = RNG.poisson(2.0, (N, 3)).astype(float)
WEIGHTS = RNG.uniform(0, 2, N)


def quartic(f, y):
    return jnp.sum((f - y) ** 4)


def _huber(f, y):
    r = np.abs(f - y)
    return np.where(r <= 0.8, r**2, 0.8 * (2 * r - 0.8)).sum(1)


CASES = {
    "squared error": (wl.SquaredError(), Y, lambda f, y: ((f - y) ** 2).sum(1)),
    "weighted": (wl.WeightedSquaredError(WEIGHTS), Y, lambda f, y: WEIGHTS * ((f - y) ** 2).sum(1)),
    "huber": (wl.Huber(0.8), Y, _huber),
    "logistic": (wl.Logistic(), SIGNS, lambda f, y: np.log1p(np.exp(-y * f)).sum(1)),
    "softmax": (wl.SoftmaxCrossEntropy(), SHARES, lambda f, y: -(y * np.log(scipy.special.softmax(f, axis=1))).sum(1)),
    "poisson": (wl.Poisson(), COUNTS, lambda f, y: (np.exp(f) - y * f).sum(1)),
    "custom": (wl.CustomLoss(quartic, convex=True), Y, lambda f, y: ((f - y) ** 4).sum(1)),
}
"""{name: (loss, targets, l by another formula)}."""


@pytest.mark.parametrize("name", CASES)
def test_value_gradient_convexity_and_curvature(name):
    """Central differences with step 1e-5 are right to 1e-10 of the third derivative, here below 100."""
    loss, y, oracle = CASES[name]
    value = np.mean(oracle(F, y))
    np.testing.assert_allclose(loss.value(F, y), value, rtol=1e-14)
    gradient = loss.gradient(F, y)
    for i, j in [(0, 0), (3, 1), (5, 2)]:
        step = np.zeros_like(F)
        step[i, j] = 1e-5
        slope = N * np.mean(oracle(F + step, y) - oracle(F - step, y)) / 2e-5
        assert abs(gradient[i, j] - slope) < 1e-7
        assert abs(1.01 * gradient[i, j] - slope) > 1e-7
    other = F + RNG.standard_normal(F.shape)
    midpoint = loss.value((F + other) / 2, y)
    assert midpoint <= (loss.value(F, y) + value_at(loss, other, y)) / 2
    change = (loss.gradient(other, y) - gradient) / (other - F)
    if name != "softmax":  # there the second derivative is a matrix; its largest eigenvalue is tested below
        assert change.max() <= loss.curvature * (1 + 1e-12)
    assert change.min() >= -1e-12 or name == "softmax"
    single = loss.gradient(F[:, 0], y[:, 0]) if name != "softmax" else None
    if single is not None:
        np.testing.assert_allclose(single, gradient[:, 0], rtol=1e-14)


def value_at(loss, f, y):
    return loss.value(f, y)


def test_the_curvature_of_softmax_is_reached():
    p = np.array([0.5, 0.5, 0.0])
    assert np.linalg.eigvalsh(np.diag(p) - np.outer(p, p))[-1] == pytest.approx(wl.SoftmaxCrossEntropy().curvature)


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda: wl.Logistic().value(F[:, 0], (Y[:, 0] > 0).astype(float)), ValueError, "are -1 and 1, got 0; pass 2 "),
        (lambda: wl.SoftmaxCrossEntropy().value(F, Y), ValueError, r"rows of y must be probabilities .* np.eye\(c\)"),
        (lambda: wl.SoftmaxCrossEntropy().value(F[:, 0], np.arange(6)), ValueError, r"pass np.eye\(c\)\[y\]"),
        (lambda: wl.Poisson().value(F, Y), ValueError, "are counts 0, 1, 2"),
        (lambda: wl.Poisson().value(F, COUNTS - 9), ValueError, "are counts"),
        (lambda: wl.WeightedSquaredError(-WEIGHTS), ValueError, "weights must be >= 0"),
        (lambda: wl.WeightedSquaredError(0 * WEIGHTS), ValueError, "not all 0"),
        (lambda: wl.WeightedSquaredError(F), ValueError, "one for each training point"),
        (lambda: wl.WeightedSquaredError(WEIGHTS[1:]).value(F, Y), ValueError, "5 entries and y has 6 rows"),
        (lambda: wl.Huber(0.0), ValueError, "delta must be > 0"),
        (lambda: wl.SquaredError().value(F, Y[:, :2]), ValueError, r"f has shape \(6, 3\) and y has \(6, 2\)"),
        (lambda: wl.SquaredError().value(np.nan * F, Y), ValueError, "NaN"),
        (lambda: wl.CustomLoss(3), TypeError, "a loss is a function"),
        (lambda: wl.CustomLoss(lambda f, y: f - y).value(F, Y), ValueError, "one number for each example"),
        (lambda: wl.CustomLoss(quartic, curvature=-1.0), ValueError, "curvature must be > 0"),
    ],
)
def test_bad_input(call, kind, words):
    with pytest.raises(kind, match=words):
        call()
