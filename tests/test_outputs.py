"""Several outputs that share a search: those that say nothing of it must not steer it, wherever they stand."""

import numpy as np
import pytest

import widelimit as wl
from widelimit.estimators import choice
from widelimit.inference import noise_level
from widelimit.inference.dirichlet import most_likely_scale
from widelimit.inference.outputs import distinct_columns

RNG = np.random.default_rng(3)
X, Z = RNG.standard_normal((40, 2)), RNG.standard_normal((20, 2))
Y = np.sin(2 * X[:, 0]) + 0.05 * RNG.standard_normal(40)
OTHER = X[:, 0] * X[:, 1] + 0.1 * RNG.standard_normal(40)
FIVE, NONE = np.full(40, 5.1), np.zeros(40)
BESIDE = {
    "constant last": ([Y, FIVE], 0),
    "constants around it": ([NONE, Y, FIVE], 1),
    "twice": ([Y, Y], 0),
    "again in other units": ([Y, 1e6 - 1e6 * Y], 0),
}
OBJECTIVES = ("marginal_likelihood", "leave_one_out")


@pytest.mark.parametrize("how", OBJECTIVES)
@pytest.mark.parametrize("cls", [wl.NNGPRegressor, wl.NTKRegressor])
def test_outputs_without_news_do_not_change_how_the_others_are_fitted(cls, how):
    alone = cls(depth=2, hyperparameters=how).fit(X, Y)
    expected = alone.predict(Z, return_std=True)
    for columns, place in BESIDE.values():
        model = cls(depth=2, hyperparameters=how).fit(X, np.column_stack(columns))
        mean, deviation = model.predict(Z, return_std=True)
        np.testing.assert_allclose(mean[:, place], expected[0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(deviation[:, place], expected[1], rtol=1e-5)
        for j, column in enumerate(columns):
            if np.ptp(column) == 0:
                assert (mean[:, j] == column[0]).all()
    news = cls(depth=2, hyperparameters=how).fit(X, np.column_stack([Y, OTHER])).predict(Z)[:, 0]
    assert np.abs(news - expected[0]).max() > 1e-4  # an output with news is heard


@pytest.mark.parametrize("how", OBJECTIVES)
def test_predictions_scale_with_the_unit_of_an_output(how):
    def predicted(factor):
        model = wl.NNGPRegressor(depth=2, hyperparameters=how)
        return model.fit(X, np.column_stack([Y, factor * OTHER])).predict(Z, return_std=True)

    for one, other in zip(predicted(1.0), predicted(1e6), strict=True):
        np.testing.assert_allclose(other / [1, 1e6], one, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("how", OBJECTIVES)
def test_fit_hyperparameters_hears_each_output_once_in_its_own_unit(how):
    def fitted(*columns):
        common = {"start": {"length_scale": 1.0}, "noise": 0.1, "restarts": 0, "max_steps": 20}
        return wl.fit_hyperparameters(wl.rbf, X, np.column_stack(columns), objective=how, **common)

    alone = fitted(Y).values
    for columns in ([Y, FIVE], [NONE, Y, FIVE], [Y, Y], [Y, -1e6 * Y]):
        assert fitted(*columns).values == pytest.approx(alone, rel=1e-6)
    both = fitted(Y, OTHER)
    assert both.values["length_scale"] != pytest.approx(alone["length_scale"], rel=1e-3)
    assert both.posterior.mean(Z).shape == (20, 2)
    same = OTHER * np.sqrt(np.mean(Y**2) / np.mean(OTHER**2))
    for factor in (1e-3, 1.0, 3.0, 50.0, 1e6):
        assert fitted(Y, factor * OTHER).values == pytest.approx(fitted(Y, same).values, rel=1e-6)


def test_heard_outputs():
    columns = [NONE, Y, FIVE, -3 * Y, OTHER, Y + 1, 1e300 * OTHER]
    assert distinct_columns(np.column_stack(columns)).tolist() == [1, 4, 5]
    assert distinct_columns(np.column_stack([FIVE, NONE])).tolist() == [0, 1]
    assert distinct_columns(np.column_stack([Y, Y + 1e-5 * OTHER])).tolist() == [0, 1]


def test_many_outputs_are_heard_by_the_rule_of_one_after_the_other():
    rng = np.random.default_rng(5)
    own = rng.standard_normal((20, 400))
    y = own[:, rng.integers(0, 400, 700)] * rng.choice([-1e3, 1.0, 0.1], 700)
    y[:, rng.integers(0, 700, 30)] = 4.0
    directions = y / np.linalg.norm(y, axis=0)
    expected = []
    for j in np.flatnonzero(np.ptp(y, axis=0) > 0):
        if not (np.abs(directions[:, expected].T @ directions[:, j]) > 1 - 1e-12).any():
            expected.append(j)
    assert 300 < len(expected) < 400
    assert distinct_columns(y).tolist() == expected


def test_a_search_compares_the_outputs_once(monkeypatch):
    calls = []
    for module in (choice, noise_level):
        monkeypatch.setattr(
            module, "distinct_columns", lambda y: calls.append(y.shape) or distinct_columns(y), raising=False
        )
    model = wl.NNGPRegressor(noise=0.1, hyperparameters="marginal_likelihood")
    model.fit(X, np.column_stack([Y, OTHER]))
    assert calls == [(len(X), 2)]


def test_a_class_that_does_not_occur_has_no_say_in_the_scale():
    labels = (Y > 0).astype(int)
    post = most_likely_scale(wl.nngp(wl.mlp(depth=2)), X, labels, classes=3, weights=np.ones(40))
    terms = [
        -(t @ c + np.linalg.slogdet(post.data.gram() + np.diag(e))[1] + 40 * np.log(2 * np.pi * post.scale**2)) / 2
        for t, c, e in zip(post.targets.T, post.coefficients.T, post.noise.T, strict=True)
    ]
    assert post.log_marginal_likelihood == pytest.approx(terms[0] + terms[1], rel=1e-9)
    assert post.log_marginal_likelihood != pytest.approx(sum(terms), rel=1e-3)


@pytest.mark.parametrize("likelihood", ["dirichlet", "least_squares"])
def test_a_class_of_one_member_does_not_ruin_the_others(likelihood):
    labels = (Y > 0).astype(int)
    rare = np.append(labels, 2)
    far = np.vstack([X, [[30.0, 30.0]]])
    settings = {"depth": 2, "likelihood": likelihood, "hyperparameters": "marginal_likelihood", "normalize": None}
    alone, both = wl.NNGPClassifier(**settings).fit(X, labels), wl.NNGPClassifier(**settings).fit(far, rare)
    truth = (np.sin(2 * Z[:, 0]) > 0).astype(int)
    assert np.mean(both.predict(Z) == truth) >= np.mean(alone.predict(Z) == truth) - 0.1
