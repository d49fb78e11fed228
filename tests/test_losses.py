"""Losses: values against textbook formulas in NumPy, derivatives against differences, domains."""

import numpy as np
import pytest

import widelimit as wl
from cases import COUNTS, LOSSES, WEIGHTS, quartic
from cases import OUTPUTS as F
from cases import TARGETS as Y

RNG = np.random.default_rng(0)
N = len(F)


@pytest.mark.parametrize("name", LOSSES)
def test_value_gradient_convexity_and_curvature(name):
    """Central differences with step 1e-5 are right to 1e-10 of the third derivative, here below 100."""
    loss, y, oracle = LOSSES[name]
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
