"""The logistic likelihood, and what classifiers do with weights, rare classes, constant columns and bad labels."""

import itertools

import numpy as np
import pytest
from scipy.special import expit, log_expit
from sklearn.base import clone

import widelimit as wl
from widelimit import memory
from widelimit.estimators import model_file
from widelimit.estimators.fitted_classes import FittedClasses
from widelimit.estimators.persistence import restore_model
from widelimit.inference.class_probabilities import expected_softmax
from widelimit.inference.dirichlet import ALPHAS, SCALES
from widelimit.inference.expectation_propagation import (
    law,
    logistic_posterior,
    logistic_probabilities,
    tilted_moments,
)

RNG = np.random.default_rng(0)
X, Z = RNG.standard_normal((40, 3)), RNG.standard_normal((12, 3))
WEIGHTS = RNG.uniform(0.5, 2, 40)
K = wl.nngp(wl.mlp(depth=2, activation="erf"))
THREE = (X[:, 0] > 0.3).astype(int) + (X[:, 1] > 0.5)
NAMES = np.array(["a", "b", "c"], dtype="U4")[THREE]
SCALE = 3.0


@pytest.mark.parametrize(
    ("sign", "weight", "m", "v"),
    [
        (1, 1, 0, 1),
        (1, 1000, -50, 1),
        (1, 1, 100, 4096),
        (-1, 0.01, 3, 4096),
        (1, 2.5, -200, 65536),
        (-1, 1e3, 5, 1e-3),
    ],
)
def test_tilted_moments_equal_a_fine_sum(sign, weight, m, v):
    found = [part[0] for part in tilted_moments(*(np.array([float(value)]) for value in (sign, weight, m, v)))]

    def summed(weight):
        f = found[1] + np.sqrt(v) * np.linspace(-12, 12, 400_001)
        log_p = weight * log_expit(sign * f) - (f - m) ** 2 / (2 * v)
        p = np.exp(log_p - log_p.max())
        mean = p @ f / p.sum()
        total = log_p.max() + np.log(p.sum() * (f[1] - f[0]) / np.sqrt(2 * np.pi * v))
        return np.array([total, mean / np.sqrt(v), np.log(p @ (f - mean) ** 2 / p.sum())])

    ours = np.array([found[0], found[1] / np.sqrt(v), np.log(found[2])])
    np.testing.assert_allclose(ours, summed(weight), rtol=1e-8, atol=1e-7)
    assert np.abs(ours - summed(1.01 * weight)).max() > 1e-6  # negative control


def test_a_posterior_of_three_rows_equals_a_sum_over_a_grid():
    rows, labels, weights = X[:3], np.array([0, 1, 1]), np.array([1.0, 2.0, 0.5])
    post = logistic_posterior(K, rows, labels, classes=2, scale=SCALE, weights=weights)
    nodes, w = np.polynomial.hermite_e.hermegauss(60)
    w = w / w.sum()
    root = np.linalg.cholesky(SCALE**2 * K.gram(rows))
    f = np.array(list(itertools.product(nodes, repeat=3))) @ root.T
    p = np.prod(list(itertools.product(w, repeat=3)), axis=1) * np.exp(log_expit(np.array([-1, 1, 1]) * f) @ weights)
    mean = p @ f / p.sum()
    deviation = np.sqrt(p @ (f - mean) ** 2 / p.sum())
    np.testing.assert_allclose(post.mean(rows)[:, 0], mean, atol=0.02 * deviation.min())
    np.testing.assert_allclose(np.sqrt(post.variance(rows)[:, 0]), deviation, rtol=0.02)
    assert post.log_marginal_likelihood == pytest.approx(np.log(p.sum()), abs=2e-3)
    other = logistic_posterior(K, rows, labels, classes=2, scale=1.1 * SCALE, weights=weights)
    assert np.abs(other.mean(rows)[:, 0] - mean).max() > 0.02 * deviation.min()


@pytest.mark.parametrize("classes", [2, 3])
def test_the_factors_match_moments(classes):
    """By whole matrices: the law (K^-1 + T)^-1 has at each row the moments of its cavity times the likelihood."""
    labels = np.minimum(THREE, classes - 1)
    post = logistic_posterior(K, X, labels, classes=classes, scale=SCALE, weights=WEIGHTS)
    for j in range(post.precision.shape[1]):
        tau, nu = post.precision[:, j], post.shift[:, j]
        covariance = np.linalg.inv(np.linalg.inv(SCALE**2 * K.gram(X)) + np.diag(tau))
        mean, own = covariance @ nu, np.diagonal(covariance)
        np.testing.assert_allclose(post.mean(X)[:, j], mean, atol=1e-8)
        np.testing.assert_allclose(post.variance(X)[:, j], own, rtol=1e-8)
        v = 1 / (1 / own - tau)
        m = v * (mean / own - nu)
        np.testing.assert_allclose(post.leave_one_out()[0][:, j], m, rtol=1e-6, atol=1e-8)
        sign = np.where(labels == (1 if classes == 2 else j), 1.0, -1.0)
        found = tilted_moments(sign, WEIGHTS, m, v)
        np.testing.assert_allclose(found.mean, mean, atol=1e-3)
        np.testing.assert_allclose(found.variance, own, rtol=2e-3)
        assert np.abs(tilted_moments(sign, 1.1 * WEIGHTS, m, v).mean - mean).max() > 1e-2


@pytest.mark.parametrize("classes", [2, 3])
def test_leave_one_out_is_near_refits(classes):
    labels = np.minimum(THREE, classes - 1)
    whole = logistic_posterior(K, X, labels, classes=classes, scale=SCALE)
    left, seen = (
        logistic_probabilities(*whole.leave_one_out()),
        logistic_probabilities(whole.mean(X), whole.variance(X)),
    )
    refits = []
    for i in range(10):
        rest = np.arange(40) != i
        post = logistic_posterior(K, X[rest], labels[rest], classes=classes, scale=SCALE)
        refits.append(logistic_probabilities(post.mean(X[[i]]), post.variance(X[[i]]))[0])
    assert np.abs(left[:10] - refits).max() < np.abs(seen[:10] - refits).max() / 5
    p = left[np.arange(40), labels]
    assert whole.leave_one_out_score(labels, WEIGHTS) == pytest.approx(WEIGHTS @ np.log(p))


def test_the_most_likely_scale():
    best = logistic_posterior(K, X, THREE, classes=3)
    for factor in (2.0, 0.5):
        other = logistic_posterior(K, X, THREE, classes=3, scale=factor * best.scale)
        assert other.log_marginal_likelihood < best.log_marginal_likelihood
    again = law(best.data, best.data.gram(), best.scale, best.precision, best.shift)
    assert (again.variance(Z) == best.variance(Z)).all()


def test_probabilities_are_expectations():
    rng = np.random.default_rng(1)
    mean, variance = rng.standard_normal((4, 3)), rng.uniform(0.1, 9, (4, 3))
    nodes, w = np.polynomial.hermite_e.hermegauss(100)
    own = expit(mean[..., None] + np.sqrt(variance)[..., None] * nodes) @ (w / w.sum())
    np.testing.assert_allclose(logistic_probabilities(mean, variance), own / own.sum(axis=1, keepdims=True), atol=1e-6)
    np.testing.assert_allclose(logistic_probabilities(mean[:, :1], variance[:, :1])[:, 1], own[:, 0], atol=1e-6)


# --- estimators

LOGISTIC = {"likelihood": "logistic", "depth": 2}


@pytest.mark.parametrize("likelihood", ["dirichlet", "least_squares", "logistic"])
@pytest.mark.parametrize("labels", [NAMES, X[:, 0] > 0], ids=["three", "two"])
def test_class_weight_multiplies_sample_weight(likelihood, labels):
    make = lambda **settings: wl.NNGPClassifier(likelihood=likelihood, depth=2, **settings)  # noqa: E731
    first, count = np.unique(labels, return_counts=True)
    weighed = make(class_weight={first[0]: 3.0}).fit(X, labels, sample_weight=WEIGHTS).predict_proba(Z)
    same = make().fit(X, labels, sample_weight=WEIGHTS * np.where(labels == first[0], 3.0, 1.0)).predict_proba(Z)
    np.testing.assert_array_equal(weighed, same)
    assert np.abs(make().fit(X, labels, sample_weight=WEIGHTS).predict_proba(Z) - same).max() > 1e-3
    balanced = make(class_weight="balanced").fit(X, labels).predict_proba(Z)
    factors = dict(zip(first, 40 / len(first) / count, strict=True))  # scikit-learn's formula
    np.testing.assert_allclose(balanced, make(class_weight=factors).fit(X, labels).predict_proba(Z), atol=1e-9)


def test_balanced_weights_count_repeated_rows():
    weights = RNG.integers(1, 3, 40)
    rows = np.repeat(np.arange(40), weights)
    make = lambda: wl.NNGPClassifier(class_weight="balanced", **LOGISTIC)  # noqa: E731
    a = make().fit(X, NAMES, sample_weight=weights.astype(float)).predict_proba(Z)
    b = make().fit(X[rows], NAMES[rows]).predict_proba(Z)
    np.testing.assert_allclose(a, b, atol=1e-9)
    unweighted = make().fit(X, NAMES).predict_proba(Z)
    assert np.abs(a - unweighted).max() > 1e-3


@pytest.mark.parametrize("likelihood", ["dirichlet", "least_squares", "logistic"])
@pytest.mark.parametrize("labels", [NAMES, X[:, 0] > 0], ids=["three", "two"])
def test_latent_functions(likelihood, labels):
    model = wl.NNGPClassifier(likelihood=likelihood, depth=2).fit(X, labels)
    mean, std = model.predict_latent(Z, return_std=True)
    assert mean.shape == std.shape == (12, len(model.classes_))
    assert (std > 0).all()
    assert (model.predict_latent(Z) == mean).all()
    assert (model.classes_[mean.argmax(axis=1)] == model.predict(Z)).mean() > 0.8
    if likelihood == "logistic":
        f, v = (getattr(model.fitted_.law, name)(model.inputs_(Z)) for name in ("mean", "variance"))
        np.testing.assert_allclose(mean, np.hstack([-f, f]) if len(model.classes_) == 2 else f, atol=1e-10)
        np.testing.assert_allclose(std**2, np.broadcast_to(v, std.shape), rtol=1e-10)
    elif likelihood == "dirichlet":
        np.testing.assert_allclose(expected_softmax(mean, std**2), model.predict_proba(Z), atol=1e-12)


@pytest.mark.parametrize("likelihood", ["dirichlet", "least_squares", "logistic"])
def test_constant_columns_change_nothing(likelihood):
    make = lambda: wl.NNGPClassifier(likelihood=likelihood, depth=2, normalize="standardize")  # noqa: E731
    more = [np.hstack([points, np.full((len(points), 2), [7.0, 1e9])]) for points in (X, Z)]
    p = make().fit(X, NAMES).predict_proba(Z)
    wide = make().fit(more[0], NAMES)
    assert np.isfinite(wide.predict_proba(more[1])).all()
    scaled = wl.WideClassifier(kernel="nngp", activation="erf", depth=2, likelihood=likelihood).fit(more[0], NAMES)
    plain = wl.WideClassifier(kernel="nngp", activation="erf", depth=2, likelihood=likelihood).fit(X, NAMES)
    np.testing.assert_allclose(wide.predict_proba(more[1]), p, atol=1e-10)
    np.testing.assert_allclose(scaled.predict_proba(more[1]), plain.predict_proba(Z), atol=1e-10)


@pytest.mark.parametrize("likelihood", ["dirichlet", "least_squares", "logistic"])
def test_a_class_of_one_row(likelihood):
    """It is known, improbable away from its row, and the other classes are as probable as without it."""
    labels = NAMES.copy()
    labels[0] = "rare"
    model = wl.NNGPClassifier(likelihood=likelihood, depth=2).fit(X, labels)
    p = model.predict_proba(Z)
    rare = list(model.classes_).index("rare")
    assert p.shape == (12, 4)
    assert (p[:, rare] < 0.3).all()
    rest = wl.NNGPClassifier(likelihood=likelihood, depth=2).fit(X[1:], labels[1:]).predict_proba(Z)
    others = np.delete(p, rare, axis=1)
    moved = np.abs(others / others.sum(axis=1, keepdims=True) - rest).max()
    # The noise of least squares is one for all classes, so that a class that no input explains raises it.
    assert moved < (0.3 if likelihood == "least_squares" else 0.2)


@pytest.mark.filterwarnings("ignore:the search ended at a bound of noise")  # of least squares
@pytest.mark.parametrize("likelihood", ["dirichlet", "least_squares", "logistic"])
def test_two_rows_and_more_columns_than_rows(likelihood):
    wide = np.random.default_rng(2).standard_normal((8, 30))
    for points, labels in ((X[:2], ["a", "b"]), (wide, list("aabbccab"))):
        model = wl.NTKClassifier(likelihood=likelihood, depth=2).fit(points, labels)
        p = model.predict_proba(points)
        np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-12)
        if likelihood != "least_squares":  # whose noise may explain all labels
            assert (model.predict(points) == np.array(labels)).all()


ERRORS = [
    ({"class_weight": {"b": 2.0, "d": 1.0}}, ValueError, "class_weight has the label 'd'.*no row"),
    ({"class_weight": {"a": np.nan}}, ValueError, "class_weight of 'a' must be > 0, got nan"),
    ({"class_weight": {"a": 0}}, ValueError, "must be > 0"),
    ({"class_weight": {"a": "1"}}, TypeError, "class_weight of 'a'"),
    ({"class_weight": "balance"}, ValueError, 'None, "balanced" or'),
    ({"class_weight": [1.0, 2.0]}, TypeError, 'None, "balanced" or'),
    ({"likelihood": "logistic", "noise": 0.1}, ValueError, "leave noise"),
    ({"likelihood": "logistic", "time": 1.0}, ValueError, "leave time=inf"),
    ({"likelihood": "logistic", "solver": "cg"}, ValueError, 'solver="auto"'),
]


@pytest.mark.parametrize(("settings", "kind", "message"), ERRORS)
def test_bad_settings_are_refused(settings, kind, message):
    with pytest.raises(kind, match=message) as error:
        wl.NNGPClassifier(depth=2, **settings).fit(X, NAMES)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("labels", [X[:, 0], X[:, 0] + 0.5])
def test_numbers_that_are_no_classes_are_refused(labels):
    with pytest.raises(ValueError, match=r"(?i)continuous|unknown label type"):
        wl.NNGPClassifier(depth=2).fit(X, labels)


def test_a_single_class_has_a_latent_function_of_zeros():
    model = wl.NNGPClassifier(**LOGISTIC).fit(X, ["x"] * 40)
    assert model.predict_proba(Z).tolist() == [[1.0]] * 12
    assert not np.any(model.predict_latent(Z, return_std=True))


def test_too_many_rows_for_the_logistic_likelihood_are_refused(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 8 * 6 * 40**2)
    with pytest.raises(MemoryError, match=r"3 latent functions at 40 rows.*likelihood=\"dirichlet\""):
        wl.NNGPClassifier(**LOGISTIC).fit(X, NAMES)


@pytest.mark.parametrize("labels", [NAMES, X[:, 0] > 0], ids=["three", "two"])
def test_a_logistic_model_is_saved_with_its_class_weights(labels, tmp_path):
    weights = {labels[0]: 2.0}
    model = wl.NTKClassifier(class_weight=weights, **LOGISTIC).fit(X, labels)
    model.save(tmp_path / "m.npz")
    again = wl.load(tmp_path / "m.npz")
    assert (again.predict_proba(Z) == model.predict_proba(Z)).all()
    assert again.class_weight == weights


def test_models_of_before_class_weight_are_loaded(tmp_path):
    model = wl.NNGPClassifier(depth=2).fit(X, NAMES)
    model.save(tmp_path / "m.npz")
    header, arrays = model_file.contents(tmp_path / "m.npz")
    for name in ("class_weight", "input_scales"):
        del header["parameters"][name]
    assert (restore_model(header, arrays).predict_proba(Z) == model.predict_proba(Z)).all()
    del header["parameters"]["depth"]
    with pytest.raises(ValueError, match="other parameters"):
        restore_model(header, arrays)


def test_an_automatic_pseudo_count_has_the_largest_leave_one_out_density(tmp_path):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((240, 2))
    labels = (X[:, 0] > 0).astype(int) ^ (rng.random(240) < 0.25)
    model = wl.NTKClassifier(depth=2).fit(X[:80], labels[:80])
    plain, fitted = wl.NTKClassifier(depth=2, alpha_epsilon=0.01).fit(X[:80], labels[:80]), model.fitted_
    unit = np.sqrt(np.diagonal(fitted.training.design.kernel().gram(fitted.training.X)).mean())

    def density(scale, alpha):
        p = FittedClasses(fitted.training, fitted.labels, scale, 2, alpha).leave_one_out()
        return np.log(p[np.arange(80), fitted.labels]).sum()

    every = [density(scale, alpha) for scale in SCALES / unit for alpha in ALPHAS]
    assert density(fitted.scale, fitted.alpha_epsilon) == pytest.approx(max(every), rel=1e-9)
    assert density(plain.fitted_.scale, plain.alpha_epsilon) < max(every) - 1  # the negative control

    def loss(model):
        return -np.mean(np.log(model.predict_proba(X[80:])[np.arange(160), labels[80:]]))

    assert loss(model) < loss(plain) - 0.02
    wl.save(model, tmp_path / "m.npz")
    np.testing.assert_array_equal(wl.load(tmp_path / "m.npz").predict_proba(X), model.predict_proba(X))
    with pytest.raises(ValueError, match="alpha_epsilon"):
        wl.NTKClassifier(alpha_epsilon="best").fit(X, labels)


def test_a_pseudo_count_that_does_nothing_or_drowns_the_labels_is_refused(tmp_path):
    X, labels = np.random.default_rng(0).standard_normal((12, 2)), np.arange(12) % 2
    for likelihood in ("least_squares", "logistic"):
        for value in (0.5, 0.01):
            model = wl.NNGPClassifier(likelihood=likelihood, alpha_epsilon=value)
            with pytest.raises(ValueError, match=f'does not apply to likelihood="{likelihood}".*dirichlet'):
                model.fit(X, labels)
    for value, bound in ((1e300, "<= 1e\\+06"), (5e-324, ">= 1e-100")):
        with pytest.raises(ValueError, match=f"alpha_epsilon must be {bound}"):
            wl.NTKClassifier(alpha_epsilon=value).fit(X, labels)
    for value in (1e6, 1e-100):
        model = wl.NTKClassifier(alpha_epsilon=value, input_scales=None).fit(X, labels)
        assert np.isfinite(model.predict_proba(X)).all()
    wl.save(wl.NNGPClassifier(likelihood="least_squares").fit(X, labels), tmp_path / "m.npz")
    header, arrays = model_file.contents(tmp_path / "m.npz")
    header["parameters"]["alpha_epsilon"] = 0.5  # a file of 0.1.0, where it did nothing
    assert restore_model(header, arrays).alpha_epsilon == "auto"


@pytest.mark.parametrize(
    "settings", [{"alpha_epsilon": "auto"}, {"hyperparameters": "leave_one_out"}], ids=["pseudo-count", "network"]
)
def test_a_row_is_left_out_with_its_copies(settings):
    rng = np.random.default_rng(0)
    X, times = rng.standard_normal((40, 2)), rng.integers(1, 4, 40)
    labels = (X[:, 0] > 0) ^ (rng.random(40) < 0.25)
    model = wl.NTKClassifier(depth=2, **settings)
    weighted = clone(model).fit(X, labels, sample_weight=times).predict_proba(Z[:, :2])
    copied = clone(model).fit(np.repeat(X, times, axis=0), np.repeat(labels, times)).predict_proba(Z[:, :2])
    np.testing.assert_allclose(copied, weighted, rtol=1e-6)
