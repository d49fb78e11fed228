"""scikit-learn estimators: its own checks, its Gaussian process, explicit formulas, and what users do with them."""

import dataclasses
import pathlib
import pickle
import re
import warnings
from types import SimpleNamespace

import cloudpickle
import jax.numpy as jnp
import numpy as np
import pandas
import polars
import pytest
from scipy.special import softmax
from sklearn import config_context
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessClassifier, GaussianProcessRegressor
from sklearn.gaussian_process.kernels import WhiteKernel
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import Ridge
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.svm import SVC
from sklearn.utils.estimator_checks import parametrize_with_checks

import widelimit as wl
from cases import ESTIMATORS
from searches import shorten_searches
from widelimit import memory
from widelimit.estimators import choice, preparation
from widelimit.estimators.design import Design
from widelimit.estimators.parameters import ClassParameters, EnsembleParameters, RegressorParameters, by_name
from widelimit.inference.class_probabilities import expected_softmax, largest_probability
from widelimit.inference.dirichlet import dirichlet_labels, dirichlet_offset, dirichlet_posterior
from widelimit.inference.early_stopping import stopped_flow
from widelimit.inference.noise_level import noise_level

REGRESSORS = [wl.NNGPRegressor, wl.NTKRegressor]
CLASSIFIERS = [wl.NNGPClassifier, wl.NTKClassifier]
EPS = np.finfo(np.float64).eps


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    X, Z = rng.standard_normal((60, 3)), rng.standard_normal((16, 3))
    return X, np.sin(2 * X[:, 0]) + 0.3 * rng.standard_normal(60), Z


@pytest.mark.filterwarnings("ignore:the search ended at a bound")  # the checks have tables without noise
@parametrize_with_checks(ESTIMATORS)
def test_scikit_learn_checks(estimator, check, monkeypatch):
    shorten_searches(monkeypatch)
    check(estimator)


NET = {"depth": 3, "weight_std": 1.3, "bias_std": 0.4}


@pytest.mark.parametrize(("cls", "kernel"), [(wl.NNGPRegressor, wl.nngp), (wl.NTKRegressor, wl.ntk)])
def test_regressors_equal_scikit_learns_gaussian_process_with_the_same_kernel(cls, kernel, data):
    X, y, Z = data
    theirs = GaussianProcessRegressor(
        wl.sklearn_kernel(kernel(wl.mlp(**NET))), alpha=0.03, optimizer=None, normalize_y=True
    ).fit(X, y)
    ours = cls(**NET, noise=0.03, normalize=None, output_scale=1.0).fit(X, y)
    for a, b in zip(ours.predict(Z, return_std=True), theirs.predict(Z, return_std=True), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(ours.predict(Z, return_cov=True)[1], theirs.predict(Z, return_cov=True)[1], atol=1e-9)
    assert ours.log_marginal_likelihood() == pytest.approx(theirs.log_marginal_likelihood_value_, rel=1e-8)
    scaled = cls(**NET, noise=0.03, normalize=None).fit(X, y)  # the same mean, and the most likely scale
    np.testing.assert_allclose(scaled.predict(Z), ours.predict(Z), rtol=1e-12)
    assert scaled.log_marginal_likelihood() > ours.log_marginal_likelihood() + 0.1
    planted = cls(**{**NET, "weight_std": 1.301}, noise=0.03, normalize=None).fit(X, y)
    assert np.abs(planted.predict(Z) - theirs.predict(Z)).max() > 1e-6


def test_each_output_has_its_own_scale(data):
    X, y, Z = data
    Y = np.column_stack([y, 1000 * y + 5, X[:, 1]])
    both = wl.NNGPRegressor(noise=0.1).fit(X, Y)
    mean, std = both.predict(Z, return_std=True)
    for j in range(3):
        alone = wl.NNGPRegressor(noise=0.1).fit(X, Y[:, j]).predict(Z, return_std=True)
        np.testing.assert_allclose(mean[:, j], alone[0], rtol=1e-9, atol=1e-9 * np.abs(Y[:, j]).max())
        np.testing.assert_allclose(std[:, j], alone[1], rtol=1e-9)
    assert both.predict(Z, return_cov=True)[1].shape == (16, 16, 3)
    assert both.sample_y(Z, 4).shape == (16, 3, 4)


def test_noise_is_added_when_asked_for_and_only_then(data):
    X, y, Z = data
    model = wl.NNGPRegressor().fit(X, y)
    quiet, loud = (model.predict(Z, return_std=True, include_noise=flag)[1] for flag in (False, True))
    np.testing.assert_allclose(loud**2 - quiet**2, model.noise_ * model.y_scale_[0] ** 2, rtol=1e-10)
    draws = model.sample_y(Z, 4000, random_state=1)
    z = (draws.mean(axis=1) - model.predict(Z)) / (quiet / np.sqrt(4000))
    assert np.abs(z).max() < 4  # 16 standard normal numbers
    assert (model.sample_y(Z, 2, random_state=1) == model.sample_y(Z, 2, random_state=1)).all()


@pytest.mark.parametrize("cls", REGRESSORS)
@pytest.mark.parametrize("settings", [{}, {"time": 3.0, "noise": 0.05}, {"noise": 0.05}], ids=["auto", "time", "noise"])
def test_weight_two_is_the_row_twice(cls, settings, data):
    X, y, Z = data
    weights = np.random.default_rng(1).integers(0, 3, len(X)).astype(float)
    rows = np.repeat(np.arange(len(X)), weights.astype(int))
    a = cls(**settings).fit(X, y, sample_weight=weights).predict(Z, return_std=True)
    b = cls(**settings).fit(X[rows], y[rows]).predict(Z, return_std=True)
    for u, v in zip(a, b, strict=True):
        np.testing.assert_allclose(u, v, rtol=1e-7, atol=1e-9)


def test_the_automatic_noise_is_the_most_likely(data):
    X, y, _ = data
    kernel, target = wl.nngp(wl.mlp(**NET)), (y - y.mean())[:, None]
    found = noise_level(kernel.gram(X), target, np.ones(len(X)))

    def likelihood(noise, scale):
        return wl.posterior(kernel, X, target / scale, noise=noise).log_marginal_likelihood() - len(X) * np.log(scale)

    best = likelihood(found.noise, found.scale[0])
    for factor in (0.5, 2.0):
        assert likelihood(found.noise * factor, found.scale[0]) < best
        assert likelihood(found.noise, found.scale[0] * factor) < best
    prior = -((np.log(found.noise * found.scale[0] ** 2 / np.mean(target**2)) - np.log(0.1)) ** 2) / 18
    assert best + prior == pytest.approx(found.score - len(X) * (np.log(2 * np.pi)) / 2, rel=1e-10)


def test_an_automatic_noise_by_leave_one_out_equals_refits(data):
    X, y, _ = data
    X, target, kernel = X[:20], y[:20, None], wl.nngp(wl.mlp(**NET))
    found = noise_level(kernel.gram(X), target, np.ones(20), objective="leave_one_out", noise=0.1)
    score, total, s = found.score, 0.0, found.scale[0]
    target = target / s
    for i in range(20):
        rest = np.arange(20) != i
        post = wl.posterior(kernel, X[rest], target[rest], noise=0.1)
        variance = post.variance(X[[i]])[0] + 0.1
        total -= ((target[i, 0] - post.mean(X[[i]])[0, 0]) ** 2 / variance + np.log(variance * s**2)) / 2
    assert score == pytest.approx(total, rel=1e-9)


def test_a_stopped_flow_is_the_prior_the_posterior_and_the_trained_ensemble(data):
    X, y, Z = data
    net = wl.mlp(**NET)
    start = stopped_flow(wl.nngp(net), X, y, time=0.0, noise=0.1)
    np.testing.assert_array_equal(start.mean(Z), np.zeros(len(Z)))
    np.testing.assert_allclose(start.covariance(Z), wl.nngp(net).gram(Z), rtol=1e-13)
    end, post = stopped_flow(wl.nngp(net), X, y, time=np.inf, noise=0.1), wl.posterior(wl.nngp(net), X, y, noise=0.1)
    np.testing.assert_allclose(end.mean(Z), post.mean(Z), atol=1e-10)
    np.testing.assert_allclose(end.covariance(Z), post.covariance(Z), atol=1e-10)
    np.testing.assert_allclose(end.variance(Z), post.variance(Z), atol=1e-10)
    ours, theirs = stopped_flow(wl.ntk(net), X, y, time=5.0, prior=wl.nngp(net)), wl.trained_ensemble(net, X, y)
    np.testing.assert_allclose(ours.mean(Z), theirs.mean(Z, 5.0), atol=1e-10)
    np.testing.assert_allclose(ours.covariance(Z), theirs.covariance(Z, 5.0), atol=1e-10)
    assert ours.sample(Z, 3).shape == (3, len(Z))


def test_a_stopped_flow_with_a_ridge_follows_small_euler_steps(data):
    X, y, Z = data
    k, noise, t = wl.ntk(wl.mlp(**NET)), 0.5, 4.0
    w = np.linspace(0.5, 2, len(X))
    K, alpha, steps = k.gram(X), np.zeros(len(X)), 40000
    for _ in range(steps):
        alpha -= t / steps * 2 / w.sum() * (w * (K @ alpha - y) + noise * alpha)
    mean = stopped_flow(k, X, y, time=t, noise=noise, weights=w).mean(Z)
    # Euler's error is of first order in the step, with a constant near the largest rate.
    np.testing.assert_allclose(mean, k.cross(Z, X) @ alpha, atol=2e-3)
    assert np.abs(mean - stopped_flow(k, X, y, time=2 * t, noise=noise, weights=w).mean(Z)).max() > 0.01


@pytest.mark.parametrize("variance", [0.0, 0.01, 1.0, 16.0])
def test_expected_softmax_against_samples_and_limits(variance):
    rng = np.random.default_rng(0)
    mean, spread = 3 * rng.standard_normal((5, 4)), np.full((5, 4), variance) * rng.uniform(0.2, 1, (5, 4))
    p = expected_softmax(mean, spread)
    np.testing.assert_allclose(p.sum(axis=1), 1, atol=8 * EPS)
    if variance == 0:
        np.testing.assert_allclose(p, softmax(mean, axis=1), rtol=1e-8)
        return
    draws = softmax(mean + np.sqrt(spread) * rng.standard_normal((100_000, 5, 4)), axis=2)
    z = (p - draws.mean(axis=0)) / (draws.std(axis=0) / np.sqrt(len(draws)))
    assert np.abs(z).max() < 4.5  # 20 numbers
    assert np.abs(p - softmax(mean, axis=1)).max() > 1e-4


def test_expected_softmax_of_two_classes_against_a_fine_sum():
    f = np.linspace(-12, 12, 200_001)
    gap, variance = 1.3, 2.0  # f_1 - f_0 ~ N(gap, variance)
    weight = np.exp(-f * f / 2)
    expected = np.sum(weight / (1 + np.exp(-(gap + np.sqrt(variance) * f)))) / weight.sum()
    p = expected_softmax(np.array([[0.0, gap]]), np.array([[0.5, 1.5]]))
    assert p[0, 1] == pytest.approx(expected, abs=1e-9)


def test_the_rows_beside_it_do_not_move_a_rows_probabilities(data):
    rng = np.random.default_rng(1)
    mean, variance = rng.standard_normal((6, 3)), 10.0 ** np.linspace(-3, 3, 6)[:, None] * rng.uniform(0.5, 1, (6, 3))
    alone = np.concatenate([expected_softmax(mean[[i]], variance[[i]]) for i in range(6)])
    np.testing.assert_allclose(expected_softmax(mean, variance), alone, rtol=1e-13, atol=8 * EPS)
    moved = np.concatenate([expected_softmax(mean[[i]] + 1e-11, variance[[i]] * (1 + 1e-11)) for i in range(6)])
    assert np.abs(moved - alone).max() > 100 * EPS
    X, y = data[0], (data[1] > 0).astype(int) + (data[0][:, 0] > 1)
    model, far = wl.NTKClassifier().fit(X, y), np.full((1, X.shape[1]), 30.0)
    np.testing.assert_allclose(model.predict_proba(np.r_[X[:3], far])[:3], model.predict_proba(X[:3]), atol=1e-13)


def test_largest_probability_against_samples():
    rng = np.random.default_rng(0)
    mean, variance = rng.standard_normal((4, 3)), rng.uniform(0.1, 2, (4, 3))
    p = largest_probability(mean, variance)
    draws = (mean + np.sqrt(variance) * rng.standard_normal((100_000, 4, 3))).argmax(axis=2)
    share = np.stack([(draws == k).mean(axis=0) for k in range(3)], axis=1)
    assert (np.abs(p - share) < 4.5 * np.sqrt(p * (1 - p) / len(draws)) + 1e-4).all()


def test_the_dirichlet_posterior_is_one_gaussian_process_a_class(data):
    X, y, Z = data
    k, scale, weights = wl.nngp(wl.mlp(**NET)), 3.0, np.linspace(0.5, 2, len(X))
    labels, shape, offset = np.digitize(y, [-0.4, 0.4]), dirichlet_labels(), dirichlet_offset(3)
    post = dirichlet_posterior(k, X, labels, classes=3, scale=scale, weights=weights)
    left = post.leave_one_out()
    total = 0.0
    for j in range(3):
        own = labels == j
        target = np.where(own, shape.own, shape.other) - offset
        noise = np.where(own, shape.noise_own, shape.noise_other) / weights
        one = wl.posterior(scale**2 * k, X, target, noise=noise)
        np.testing.assert_allclose(post.mean(Z)[:, j], offset + one.mean(Z), rtol=1e-10)
        np.testing.assert_allclose(post.variance(Z)[:, j], one.variance(Z), rtol=1e-9)
        np.testing.assert_allclose(left[0][:, j], offset + one.leave_one_out().mean, rtol=1e-9)
        np.testing.assert_allclose(left[1][:, j], one.leave_one_out().variance, rtol=1e-8)
        total += one.log_marginal_likelihood()
    assert post.log_marginal_likelihood == pytest.approx(total, rel=1e-10)


def test_dirichlet_labels_have_the_moments_of_the_lognormal():
    shape = dirichlet_labels(0.05)
    for mean, variance, alpha in ((shape.own, shape.noise_own, 1.05), (shape.other, shape.noise_other, 0.05)):
        assert np.exp(mean + variance / 2) == pytest.approx(alpha)  # mean of Gamma(alpha, 1)
        assert np.expm1(variance) * np.exp(2 * mean + variance) == pytest.approx(alpha)  # and its variance


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return train_test_split(X, y, test_size=0.3, stratify=y, random_state=0)


def calibration_error(p, y, bins=15):
    """sum over bins of confidence of |share right - mean confidence|, weighted."""
    sure, right = p.max(axis=1), p.argmax(axis=1) == y
    place = np.minimum((sure * bins).astype(int), bins - 1)
    parts = [place == b for b in range(bins) if (place == b).any()]
    return sum(abs(right[part].mean() - sure[part].mean()) * part.mean() for part in parts)


@pytest.mark.parametrize("cls", CLASSIFIERS)
def test_digits(cls, digits):
    X, Z, y, truth = digits
    forest = RandomForestClassifier(300, random_state=0, n_jobs=1).fit(X, y)
    model = cls().fit(X, y)
    p = model.predict_proba(Z)
    assert np.mean(p.argmax(axis=1) == truth) >= 0.985
    assert log_loss(truth, p) < log_loss(truth, forest.predict_proba(Z))
    assert calibration_error(p, truth) < calibration_error(forest.predict_proba(Z), truth)


@pytest.mark.parametrize("likelihood", ["dirichlet", "least_squares"])
@pytest.mark.parametrize("settings", [{}, {"time": 5.0}, {"ensemble": True}], ids=["posterior", "time", "ensemble"])
def test_classifiers_by_every_way(likelihood, settings, data):
    X, y, Z = data
    labels = np.array(["a", "b", "c"])[np.digitize(y, [-0.4, 0.4])]
    model = wl.NTKClassifier(likelihood=likelihood, **settings).fit(X, labels)
    p = model.predict_proba(Z)
    np.testing.assert_allclose(p.sum(axis=1), 1, atol=8 * EPS)
    assert (model.predict(Z) == model.classes_[p.argmax(axis=1)]).all()
    assert model.decision_function(Z).shape == (16, 3)
    assert model.score(X, labels) > 0.7


@pytest.mark.parametrize("cls", CLASSIFIERS)
def test_one_class_is_certain(cls):
    model = cls().fit(np.eye(3), ["x", "x", "x"])
    assert model.predict_proba(np.zeros((2, 3))).tolist() == [[1.0], [1.0]]
    assert model.predict(np.zeros((2, 3))).tolist() == ["x", "x"]


def score(model, objective, **changes):
    """The objective of a fitted estimator's hyper-parameters, at others too: its noise and scale stay."""
    fitted = model.fitted_
    kernel, rows = dataclasses.replace(fitted.training.design, **changes).kernel(), fitted.training.X
    marginal = objective == "marginal_likelihood"
    if isinstance(model, wl.NNGPClassifier):
        law = dirichlet_posterior(
            kernel, rows, fitted.labels, classes=2, scale=fitted.scale, weights=np.ones(len(rows))
        )
        return law.log_marginal_likelihood if marginal else law.leave_one_out_score(fitted.labels, np.ones(len(rows)))
    law = wl.posterior(kernel, rows, model.y_train_, noise=model.noise_)
    left = law.leave_one_out()
    variance = left.variance[:, None] + model.noise_
    density = -((model.y_train_ - left.mean) ** 2 / variance + np.log(2 * np.pi * variance)) / 2
    found = law.log_marginal_likelihood() if marginal else np.sum(density)
    return found - len(rows) * np.log(model.y_scale_[0])


@pytest.mark.parametrize("objective", ["marginal_likelihood", "leave_one_out"])
@pytest.mark.parametrize(
    "model",
    [
        wl.NNGPRegressor(activation="erf", input_scales=None),
        wl.NNGPClassifier(activation="erf", input_scales=None, alpha_epsilon=0.01),
    ],
)
def test_hyperparameters_improve_their_objective(model, objective, data):
    """To the search's tolerance in the objective, 0.01: neither twice nor half of one of them is better."""
    X, y, Z = data
    model = clone(model).set_params(hyperparameters=objective)
    target = y if isinstance(model, wl.NNGPRegressor) else y > 0
    model.fit(X, target)
    assert np.isfinite(model.predict(Z).astype(float)).all()
    design, best = model.fitted_.training.design, score(model, objective)
    still = clone(model).set_params(hyperparameters="fixed").fit(X, target)
    assert score(still, objective) < best - 0.1
    assert score(model, objective, weight_std=model.weight_std, bias_std=model.bias_std) < best - 0.1
    for name in ("weight_std", "bias_std"):
        for factor in (0.5, 2.0):
            assert score(model, objective, **{name: factor * getattr(design, name)}) < best + 0.01


@pytest.mark.parametrize("frame", [pandas.DataFrame, polars.DataFrame])
def test_names_of_a_data_frame_are_kept_and_checked(frame, data):
    X, y, _ = data
    table = frame(dict(zip("abc", X.T, strict=True)))
    model = wl.NNGPRegressor().fit(table, y)
    assert model.feature_names_in_.tolist() == ["a", "b", "c"]
    np.testing.assert_array_equal(model.predict(table), wl.NNGPRegressor().fit(X, y).predict(X))
    with pytest.raises(ValueError, match="feature names"):
        model.predict(frame(dict(zip("axc", X.T, strict=True))))
    features = wl.NTKFeatures(5).fit(table)
    assert features.get_feature_names_out().tolist() == [f"ntkfeatures{i}" for i in range(5)]


@pytest.mark.filterwarnings("ignore:the search ended at a bound")  # a linear function does not fit
def test_grid_search_pickle_clone_and_html(data):
    X, y, Z = data
    search = GridSearchCV(wl.NNGPRegressor(), {"depth": [1, 3], "noise": ["auto", 0.1]}, cv=3).fit(X, y)
    assert search.best_params_["depth"] == 3
    model = search.best_estimator_
    again = pickle.loads(pickle.dumps(model))
    for a, b in zip(model.predict(Z, return_std=True), again.predict(Z, return_std=True), strict=True):
        np.testing.assert_array_equal(a, b)
    assert "NNGPRegressor" in model._repr_html_()
    assert clone(model).get_params() == model.get_params()
    with config_context(enable_metadata_routing=True):
        routed = wl.NNGPRegressor().set_fit_request(sample_weight=True).set_score_request(sample_weight=True)
        assert routed.get_metadata_routing().fit.requests == {"sample_weight": True}
        search = GridSearchCV(routed, {"depth": [2]}, cv=2).fit(X, y, sample_weight=np.linspace(0.1, 2, len(y)))
        plain = GridSearchCV(wl.NNGPRegressor(), {"depth": [2]}, cv=2).fit(X, y)
        assert np.abs(search.predict(Z) - plain.predict(Z)).max() > 1e-3


def bent(u):
    """An activation of a user's own, where a pickle finds it."""
    return u + jnp.sin(u)


def test_a_function_for_an_activation_is_pickled_by_its_name(data):
    X, y, Z = data
    model = wl.NNGPRegressor(depth=2, activation=bent, noise=0.1).fit(X, y)
    again = pickle.loads(pickle.dumps(model))
    assert again.activation is bent
    for a, b in zip(model.predict(Z, return_std=True), again.predict(Z, return_std=True), strict=True):
        np.testing.assert_array_equal(a, b)
    nameless = wl.NNGPRegressor(activation=lambda u: u)
    with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):
        pickle.dumps(nameless)
    assert cloudpickle.loads(cloudpickle.dumps(nameless)).activation(3.0) == 3.0  # as joblib does between processes


def test_features_approach_the_kernel_and_serve_a_linear_model(data):
    X, y, Z = data
    whole = wl.NTKFeatures(len(X), normalize=None, **NET).fit(X)
    kernel = wl.ntk(wl.mlp(**NET))
    np.testing.assert_allclose(whole.transform(X) @ whole.transform(X).T, kernel.gram(X), atol=1e-10)
    exact = KernelRidge(kernel=wl.sklearn_kernel(kernel), alpha=0.1).fit(X, y).predict(Z)
    features = make_pipeline(whole, Ridge(alpha=0.1, fit_intercept=False)).fit(X, y).predict(Z)
    np.testing.assert_allclose(features, exact, atol=1e-8)
    part = wl.NTKFeatures(20, normalize=None, **NET).fit(X).transform(X)
    below = kernel.gram(X) - part @ part.T
    assert np.linalg.eigvalsh(below).min() > -1e-10
    assert np.abs(below).max() > 1e-3
    error = wl.NTKFeatures(20, normalize=None, **NET).fit(X).kernel_error(X)
    assert error == pytest.approx(np.linalg.norm(below) / np.linalg.norm(kernel.gram(X)), rel=1e-9)
    assert whole.kernel_error(X) < 1e-12


def test_a_scikit_learn_kernel_has_exact_gradients_and_serves_its_estimators(data):
    X, y, _ = data
    X, y = X[:30], y[:30]
    kernel = wl.sklearn_kernel(wl.nngp(wl.mlp(**NET)), bounds=(0.05, 10.0))
    matrix, gradient = kernel(X, eval_gradient=True)
    np.testing.assert_array_equal(matrix, wl.nngp(wl.mlp(**NET)).gram(X))
    for i, unit in enumerate(np.eye(4)):
        up, down = (kernel.clone_with_theta(kernel.theta + h * unit)(X) for h in (1e-5, -1e-5))
        # Central differences: 1e-10 of truncation, and eps/1e-5 of rounding, of entries of order 10.
        np.testing.assert_allclose(gradient[..., i], (up - down) / 2e-5, atol=1e-8)
    fixed = wl.sklearn_kernel(wl.nngp(wl.mlp(**NET)), fixed=("net.first.weight_std", "net.first.bias_std"))
    assert fixed.n_dims == 2
    start = GaussianProcessRegressor(fixed + WhiteKernel(0.1), optimizer=None).fit(X, y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # scikit-learn tells that the best bias is at its bound
        fitted = GaussianProcessRegressor(fixed + WhiteKernel(0.1)).fit(X, y)
    best, slope = fitted.log_marginal_likelihood(fitted.kernel_.theta, eval_gradient=True)
    assert best == fitted.log_marginal_likelihood_value_ > start.log_marginal_likelihood_value_ + 10
    free = np.abs(fitted.kernel_.theta[:, None] - fitted.kernel_.bounds).min(axis=1) > 1e-6
    assert np.abs(slope[free]).max() < 1e-3 < np.abs(start.log_marginal_likelihood(start.kernel_.theta, True)[1]).max()
    assert clone(kernel) == kernel
    assert pickle.loads(pickle.dumps(kernel)) == kernel
    assert SVC(kernel=kernel).fit(X, y > 0).score(X, y > 0) > 0.8
    assert GaussianProcessClassifier(kernel, optimizer=None).fit(X, y > 0).score(X, y > 0) > 0.8
    tanh = wl.sklearn_kernel(wl.nngp(wl.mlp(depth=2, activation="tanh")), gradient="differences")
    assert np.isfinite(tanh(X[:5], eval_gradient=True)[1]).all()


@pytest.mark.parametrize("cls", REGRESSORS)
def test_conjugate_gradients_fit_what_cholesky_fits(cls, data):
    X, y, Z = data
    targets = np.column_stack([y, X[:, 1]])
    weights = np.linspace(0.5, 2, len(X))
    direct, steps = (
        cls(solver=s, input_scales=None).fit(X, targets, sample_weight=weights) for s in ("cholesky", "cg")
    )
    assert direct.fitted_.law.fit.choice.solver == "cholesky"
    assert steps.fitted_.law.fit.choice.solver == "cg"
    # Residual 1e-10 and noise >= 1e-4 of the diagonal, whose condition number is below 60/1e-4.
    for a, b in zip(direct.predict(Z, return_std=True), steps.predict(Z, return_std=True), strict=True):
        np.testing.assert_allclose(b, a, atol=1e-6)
    np.testing.assert_allclose(steps.predict(Z, return_cov=True)[1], direct.predict(Z, return_cov=True)[1], atol=1e-6)
    assert np.abs(cls(solver="cg", noise=1.0).fit(X, targets).predict(Z) - direct.predict(Z)).max() > 1e-3
    assert np.isfinite(direct.log_marginal_likelihood())
    assert steps.log_marginal_likelihood_value_ is None
    with pytest.raises(ValueError, match='solver="cholesky"'):
        steps.log_marginal_likelihood()


def test_conjugate_gradients_classify_by_least_squares(data):
    X, y, Z = data
    labels = np.digitize(y, [-0.4, 0.4])
    direct, steps = (wl.NTKClassifier(likelihood="least_squares", solver=s).fit(X, labels) for s in ("cholesky", "cg"))
    assert steps.fitted_.law.fit.choice.solver == "cg"
    np.testing.assert_allclose(steps.predict_proba(Z), direct.predict_proba(Z), atol=1e-6)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            wl.NNGPRegressor(solver="cg", time=3.0),
            r"solver='cg' is for time=inf without ensemble.*leave solver=\"auto\"",
        ),
        (wl.NTKRegressor(solver="cholesky", ensemble=True), "take eigenvectors"),
        (wl.NTKClassifier(solver="cg"), r"Dirichlet likelihood.*solver=\"auto\".*least_squares"),
        (wl.NNGPClassifier(solver="cg", likelihood="least_squares", time=1.0), "take eigenvectors"),
    ],
    ids=["time", "ensemble", "dirichlet", "stopped least squares"],
)
def test_a_solver_that_does_not_apply_is_refused(model, message, data):
    X, y, _ = data
    with pytest.raises(ValueError, match=message):
        model.fit(X, y > 0)


def test_room_is_asked_for_what_the_solver_holds(monkeypatch):
    """Of 10,000 rows: one triangle for a linear system, four matrices for eigenvectors."""
    asked = []

    def require(size, what, *, remedy):
        asked.append(size / 8e8)
        raise MemoryError(f"{what} needs much; {remedy}.")

    monkeypatch.setattr(memory, "require", require)
    X, y = np.zeros((10_000, 1)), np.arange(10_000) % 2
    models = [wl.NNGPRegressor(solver="cg"), wl.NTKRegressor(), wl.NTKRegressor(time=1.0), wl.NTKClassifier()]
    for model in models:
        with pytest.raises(MemoryError, match="NTKFeatures"):
            model.fit(X, y)
    assert asked == [0.5, 0.5, 4, 3]


def test_noise_of_a_large_table_is_chosen_on_rows_spread_over_it(monkeypatch):
    rng = np.random.default_rng(1)
    X, Z = rng.standard_normal((240, 2)), rng.standard_normal((9, 2))
    # Noise by row number: the first quarter has none, so that its noise is not that of the table.
    y = np.sin(2 * X[:, 0]) + 0.4 * (np.arange(240) >= 60) * rng.standard_normal(240)
    whole = wl.NNGPRegressor(input_scales=None).fit(X, y)
    monkeypatch.setattr(choice, "NOISE_ROWS", 60)
    part = wl.NNGPRegressor(input_scales=None).fit(X, y)
    # 60 rows tell a noise to about sqrt(2/60) = 18 %, and neighbours in the grid are 78 % apart: two of its steps.
    assert abs(np.log10(part.noise_ / whole.noise_)) < 0.51
    fitted = wl.NNGPRegressor(noise=part.noise_).fit(X, y)
    np.testing.assert_allclose(part.predict(Z), fitted.predict(Z), rtol=1e-10)
    assert part.fitted_.law.fit.choice.solver == "cholesky"
    assert len(part.fitted_.coefficients) == 240
    again = wl.NNGPRegressor(input_scales=None).fit(X, y)
    assert (again.noise_, again.y_scale_) == (part.noise_, part.y_scale_)
    monkeypatch.setattr(choice, "evenly", lambda _, count: np.arange(count))
    assert abs(np.log10(wl.NNGPRegressor(input_scales=None).fit(X, y).noise_ / whole.noise_)) > 0.51


@pytest.mark.parametrize("bound", [1.5, 100.0])
def test_a_search_that_fails_everywhere_but_at_its_start_warns(bound, recwarn):
    start = Design("nngp", 2, "relu", 1.5, 0.0)

    def score(design):
        if design.weight_std > bound + 1e-9 or (bound < 2 and design.weight_std < bound - 1e-9):
            raise ValueError("no such kernel")
        return -((np.log(design.weight_std) - 1) ** 2)

    found = choice.search(start, score)
    texts = [str(warning.message) for warning in recwarn]
    if bound > 2:
        assert found.weight_std == pytest.approx(np.e, rel=0.05)
        assert texts == []
    else:
        assert found.weight_std == pytest.approx(1.5)
        assert [text[-16:] for text in texts] == ["(no such kernel)"]


def test_a_million_rows_are_refused_before_anything_is_allocated(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 24 * memory.GIB)
    X = np.zeros((1_000_000, 1))
    for model in (wl.NNGPRegressor(), wl.NTKClassifier()):
        with pytest.raises(MemoryError, match=r"GiB.*NTKFeatures.*Ridge"):
            model.fit(X, np.arange(1_000_000) % 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depth": 0}, "depth must be at least 1"),
        ({"activation": "rely"}, "unknown activation"),
        ({"noise": -1.0}, "noise must be >= 0"),
        ({"noise": "none"}, 'or "auto"'),
        ({"time": -1.0}, "times must be in"),
        ({"normalize": "minmax"}, "normalize must be one of"),
        ({"hyperparameters": "guess"}, "hyperparameters must be one of"),
        ({"solver": "magic"}, "solver must be one of"),
        ({"bias_std": -0.1}, "bias_std must be >= 0"),
    ],
)
def test_bad_settings_name_the_remedy(settings, message, data):
    X, y, _ = data
    with pytest.raises(ValueError, match=message):
        wl.NNGPRegressor(**settings).fit(X, y)


def test_other_bad_calls_name_the_remedy(data):
    X, y, Z = data
    model = wl.NTKRegressor(ensemble=True, noise=0.1).fit(X, y)
    with pytest.raises(ValueError, match="without ensemble"):
        model.log_marginal_likelihood()
    with pytest.raises(ValueError, match="at most one"):
        model.predict(Z, return_std=True, return_cov=True)
    with pytest.raises(ValueError, match="least_squares"):
        wl.NNGPClassifier(noise=0.1).fit(X, y > 0)
    with pytest.raises(ValueError, match="the hyper-parameters are"):
        wl.sklearn_kernel(wl.linear() + wl.rbf(), fixed=("sigma",))
    with pytest.raises(ValueError, match="rows 0 and 1"):
        wl.NNGPRegressor(noise=0.0).fit(X[[0, 0, 1]], y[:3])
    constant = wl.NNGPRegressor().fit(np.ones((5, 2)), np.full(5, 3.0)).predict(np.ones((1, 2)), return_std=True)
    assert constant[0][0] == 3.0


@pytest.mark.parametrize("n", [1, 2, 30])
@pytest.mark.parametrize("value", [5.0, -1e9, 0.0])
def test_a_target_that_does_not_vary_leaves_its_scale_open(n, value, monkeypatch):
    """n copies of a row have the noise r = n K(x, x) and s = |y|/sqrt(1 + n): f has the variance s^2 K r/(n K + r)."""
    X, y = np.ones((n, 2)), np.full(n, value)
    expected = (abs(value) or 1.0) / np.sqrt(1 + n)

    def deviations(model):
        means, std = model.predict(X[:1], return_std=True)
        assert means == value
        return np.array([std[0], model.predict(X[:1], return_std=True, include_noise=True)[1][0]])

    model = wl.NNGPRegressor().fit(X, y)
    size = float(np.asarray(wl.nngp(model.network_).diag(model.inputs_(X[:1])))[0])
    np.testing.assert_allclose(model.y_scale_, expected)
    assert model.noise_ == pytest.approx(n * size)
    np.testing.assert_allclose(deviations(model), expected * np.sqrt([size / 2, size / 2 + n * size]), rtol=1e-9)
    wide = deviations(wl.WideRegressor().fit(X, y))
    assert min(wide) > 0.1 * expected / np.sqrt(n)
    given = wl.NNGPRegressor(noise=0.1).fit(X, y)
    np.testing.assert_allclose([given.noise_, given.y_scale_[0]], [0.1, expected])
    planted = preparation.standardise
    monkeypatch.setattr(preparation, "standardise_targets", lambda y, weights, robust=False: planted(y, weights))
    assert abs(np.log(wl.NNGPRegressor().fit(X, y).y_scale_[0] / expected)) > 0.1


def test_an_output_that_does_not_vary_beside_one_that_does():
    X = np.random.default_rng(0).standard_normal((20, 2))
    model = wl.NNGPRegressor(input_scales=None).fit(X, np.stack([X[:, 0] ** 2, np.full(20, 1e3)], axis=1))
    mean, std = model.predict(X[:1] + 1, return_std=True)
    assert mean[0, 1] == 1e3
    assert model.y_scale_[1] == pytest.approx(1e3 / np.sqrt(21))
    assert std[0, 1] > 1


def documented(parameter):
    """The row of the documentation for a parameter."""
    default = "sqrt 2" if parameter.name == "weight_std" else parameter.default
    text = " ".join([parameter.metadata["text"], parameter.metadata["more"]]).strip().replace("|", r"\|")
    return f"| `{parameter.name}` | {default} | {text} |"


PARAMETERS = by_name(RegressorParameters, EnsembleParameters, ClassParameters)


def test_the_documentation_has_the_parameters():
    page = (pathlib.Path(__file__).parents[1] / "docs" / "estimators.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| `") and line.split("`")[1] in PARAMETERS]
    assert rows == [documented(parameter) for parameter in PARAMETERS.values()]
    assert rows != [documented(replaced("0.5", parameter)) for parameter in PARAMETERS.values()]


def replaced(default, parameter):
    """A parameter with another default."""
    return SimpleNamespace(name=parameter.name, default=default, metadata=parameter.metadata)


@pytest.mark.parametrize("cls", [wl.NNGPRegressor, wl.NTKRegressor, wl.NNGPClassifier, wl.NTKClassifier])
def test_the_docstring_has_the_parameters(cls):
    names = set(cls().get_params())
    left_out = (
        {"likelihood", "alpha_epsilon", "class_weight"}
        if "Regressor" in cls.__name__
        else {"output_scale", "noise_model"}
    )
    assert names == set(PARAMETERS) - left_out - ({"ensemble"} if "NNGP" in cls.__name__ else set())
    assert set(re.findall(r"(?m)^        (\w+): ", cls.__doc__.partition("Attributes:")[0])) == names
    assert "{}" not in cls.__doc__
    assert max(map(len, cls.__doc__.splitlines())) <= 120
