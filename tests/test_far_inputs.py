"""New inputs at any distance: finite answers, or one error at the door that names the row."""

import jax.numpy as jnp
import numpy as np
import pytest

import widelimit as wl
from later import Later
from widelimit.compute import linalg
from widelimit.inference.class_probabilities import WIDE, expected_softmax
from widelimit.inference.dirichlet import dirichlet_posterior
from widelimit.inference.early_stopping import stopped_flow

RNG = np.random.default_rng(2)
X, Y = RNG.standard_normal((20, 2)), RNG.standard_normal(20)
LABELS = (Y > 0).astype(int)
NET = wl.mlp(depth=2, activation="relu", bias_std=0.2)
K, T = wl.nngp(NET), wl.ntk(NET)
FAR = (1e100, 1e153, 1e154, 1e200, 1e307)
POST = Later(lambda: wl.posterior(K, X, Y, noise=0.1))
CG = Later(lambda: wl.posterior(K, X, Y, noise=0.1, solver="cg"))
FLOW = Later(lambda: wl.gradient_flow(T, X, Y, solver="eigh"))
KRYLOV = Later(lambda: wl.gradient_flow(T, X, Y, solver="krylov"))
STOPPED = Later(lambda: stopped_flow(T, X, Y, time=3.0, noise=0.1, prior=K))
ENSEMBLE = Later(lambda: wl.trained_ensemble(NET, X, Y))
CLASSES = Later(lambda: dirichlet_posterior(K, X, LABELS, classes=2, scale=3.0))
REGRESSOR = Later(lambda: wl.NNGPRegressor(noise=0.1, depth=2).fit(X, Y))
PREDICT = {
    "mean": POST.mean,
    "predict": POST.predict,
    "variance": POST.variance,
    "covariance": POST.covariance,
    "sample": lambda A: POST.sample(A, 3),
    "cg": CG.predict,
    "gradient_flow": lambda A: FLOW.predict(A, [0.0, 1.0, np.inf]),
    "krylov": lambda A: KRYLOV.predict(A, [1.0, np.inf]),
    "gradient_descent": Later(lambda: wl.gradient_descent(T, X, Y, learning_rate=0.1, steps=10).predict),
    "ensemble": lambda A: ENSEMBLE.mean(A, 1.0),
    "ensemble, variance": lambda A: ENSEMBLE.variance(A, [0.0, 1.0]),
    "ensemble, covariance": lambda A: ENSEMBLE.covariance(A, 1.0),
    "stopped": STOPPED.mean,
    "stopped, variance": STOPPED.variance,
    "stopped, covariance": STOPPED.covariance,
    "stopped, sample": lambda A: STOPPED.sample(A, 2),
    "dirichlet": CLASSES.mean,
    "dirichlet, variance": CLASSES.variance,
    "interpolant": Later(lambda: wl.rkhs.ridge(K, X, Y, regularization=0.1)),
    "power_function": lambda A: wl.rkhs.power_function(K, X, A),
    "condition": Later(lambda: wl.GaussianProcess(K).condition(X, Y, noise=0.1).mean),
    "regressor": lambda A: REGRESSOR.predict(A, return_std=True),
    "regressor, covariance": lambda A: REGRESSOR.predict(A, return_cov=True),
    "regressor, draws": lambda A: REGRESSOR.sample_y(A, 2),
    "sphere": Later(lambda: wl.NTKRegressor(noise=0.1, depth=2, normalize="sphere").fit(X, Y).predict),
    "ensemble of networks": lambda A: wl.NTKRegressor(noise=0.1, depth=2, ensemble=True).fit(X, Y).predict(A, True),
    "linear model": lambda A: wl.LinearModel().predict(np.array([2.0, 3.0]), A),
    "classifier": Later(lambda: wl.NNGPClassifier(depth=2).fit(X, LABELS).predict_proba),
    "least squares": Later(
        lambda: wl.NNGPClassifier(depth=2, noise=0.1, likelihood="least_squares").fit(X, LABELS).predict_proba
    ),
    "features": Later(lambda: wl.NTKFeatures(5, depth=2).fit(X).transform),
}


def answer(predict, Z):
    """What is predicted, and the message of the error in its place."""
    try:
        return predict(Z), ""
    except ValueError as error:
        return (), str(error)


@pytest.mark.parametrize("name", PREDICT)
def test_far_inputs_are_answered_or_refused_by_their_row(name):
    for scale in FAR:
        Z = np.vstack([X[:2], scale * X[2:3], X[3:4]])
        values, message = answer(PREDICT[name], Z)
        for part in values if isinstance(values, tuple) else (values,):
            assert np.isfinite(part).all()
        if message:
            assert "row 2 of" in message
            assert "too far" in message
            assert len(message) < 400
            assert scale > 1e150


def test_near_rows_are_answered_as_before_beside_a_far_one():
    Z = np.vstack([X[:3] + 0.1, 1e120 * X[3:4]])
    for a, b in zip(POST.predict(Z), POST.predict(Z[:3]), strict=True):
        np.testing.assert_allclose(a[:3], b, rtol=1e-12)
    with pytest.raises(ValueError, match="row 1 of the new inputs"):
        POST.variance(jnp.asarray(np.array([[1.0, 1.0], [1e30, 1e30]], np.float32)))  # finite in float64 only


def test_on_the_sphere_only_the_direction_counts():
    model = wl.NTKRegressor(noise=0.1, depth=2, normalize="sphere").fit(X, Y)
    np.testing.assert_allclose(model.predict(1e200 * X[:4]), model.predict(1e100 * X[:4]), rtol=1e-9)


def test_a_variance_that_overflowed_is_not_taken_as_zero():
    with linalg.ignore_overflow():
        found = linalg.non_negative(np.array([np.inf, 1.0, -np.inf, 1e-20]), np.array([np.inf, 1e-9, 1e-9, 1e-9]))
    np.testing.assert_array_equal(found, [np.nan, 1.0, np.nan, 0.0])
    with pytest.raises(ArithmeticError):
        linalg.non_negative(np.array([np.nan, -1.0]), np.array([0.0, 1e-9]))


def test_wide_outputs_have_the_probabilities_of_the_largest():
    mean, variance = np.array([[0.5, -0.2, 0.1]]), np.array([[1.0, 1.5, 0.7]])
    assert expected_softmax(1e90 * mean, 1e180 * variance).sum() == pytest.approx(1)
    draws = WIDE * 1.5 * (mean + np.sqrt(variance) * RNG.standard_normal((400_000, 3)))
    p = np.exp(draws - draws.max(axis=1, keepdims=True))
    expected = (p / p.sum(axis=1, keepdims=True)).mean(axis=0)
    found = expected_softmax(1.5 * WIDE * mean, (1.5 * WIDE) ** 2 * variance)[0]
    np.testing.assert_allclose(found, expected, atol=4e-3)  # five standard errors of the draws
    assert np.abs(expected_softmax(mean, variance)[0] - expected).max() > 0.02
