"""Noise and scale of regressors: what is chosen, what is given, and what intervals cover."""

import json

import numpy as np
import pytest
from scipy.stats import norm
from scipy.stats import t as student
from sklearn.base import clone

import widelimit as wl
from widelimit.estimators import model_file
from widelimit.estimators.parameters import LATER
from widelimit.estimators.preparation import standardise_robustly
from widelimit.inference import intervals, noise_level, noise_models
from widelimit.inference.early_stopping import stopped_flow
from widelimit.inference.left_out import left_out

NET = wl.mlp(depth=2, bias_std=0.5)


def table(n=60, noise=0.3, d=2, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, d))
    return X, np.sin(2 * X[:, 0]) + noise * rng.standard_normal(n)


def coverage(model, X, y, level=1.959964):
    mean, deviation = model.predict(X, return_std=True, include_noise=True)
    return np.mean(np.abs(y - mean) < level * deviation)


@pytest.mark.parametrize("cls", [wl.NNGPRegressor, wl.NTKRegressor])
def test_the_scale_is_fitted_for_a_given_noise_and_the_mean_is_not_changed(cls):
    X, y = table(80, noise=0.0)
    given, fixed = (cls(noise=1e-8, output_scale=scale).fit(X[:60], y[:60]) for scale in ("auto", 1.0))
    np.testing.assert_allclose(given.predict(X), fixed.predict(X), rtol=1e-9, atol=1e-9)
    y_scale = given.y_scale_[0] / fixed.y_scale_[0]
    post = fixed.fitted_.law
    assert y_scale == pytest.approx(np.sqrt(np.mean(fixed.y_train_ * post.weights)), rel=1e-8)
    assert fixed.y_scale_[0] == pytest.approx(np.std(y[:60]))
    best = given.log_marginal_likelihood()
    for factor in (0.8, 1.25):
        assert cls(noise=1e-8, output_scale=factor * y_scale).fit(X[:60], y[:60]).log_marginal_likelihood() < best


def test_a_given_scale_is_used_with_an_automatic_noise_and_bad_ones_are_refused():
    X, y = table()
    auto, given = wl.NNGPRegressor().fit(X, y), wl.NNGPRegressor(output_scale=2.0).fit(X, y)
    assert given.y_scale_[0] == pytest.approx(2 * np.std(y))
    assert auto.y_scale_[0] != pytest.approx(given.y_scale_[0], rel=0.01)
    for bad in (0.0, -1.0, np.nan, "one"):
        with pytest.raises(ValueError, match="output_scale"):
            wl.NNGPRegressor(output_scale=bad).fit(X, y)
    with pytest.raises(ValueError, match='leave output_scale="auto"'):
        wl.WideRegressor(output_scale=1.0).fit(X, y)


def test_a_rough_kernel_needs_the_prior_and_has_error_bars_at_rows_of_the_table(monkeypatch):
    """New observations at the same rows, noise 0.1: without a prior the NLPD is huge."""
    X, y = table(60, noise=0.1, d=3)
    again = np.sin(2 * X[:, 0]) + 0.1 * np.random.default_rng(1).standard_normal(60)

    assert density(wl.NTKRegressor(input_scales=None).fit(X, y), X, again) < 0.5
    monkeypatch.setattr(noise_level, "PRIOR", (0.0, np.inf))
    with pytest.warns(UserWarning, match="function without noise"):
        assert density(wl.NTKRegressor(input_scales=None).fit(X, y), X, again) > 1e3


def test_smooth_data_without_noise_get_less_than_1e_8_and_a_warning():
    X, y = table(60, noise=0.0, d=1)
    model = wl.NNGPRegressor(activation="erf", input_scales=None)
    with pytest.warns(UserWarning, match="function without noise"):
        model.fit(X, y)
    assert model.noise_ * model.y_scale_[0] ** 2 < 1e-8 * np.var(y)
    largest = wl.nngp(wl.mlp(depth=3, activation="erf", bias_std=0.5)).diag(model.X_train_).max()
    assert model.noise_ >= noise_level.FLOOR * 60 * np.finfo(float).eps * largest
    noisy = y + 1e-3 * np.random.default_rng(2).standard_normal(60)
    assert wl.NNGPRegressor(activation="erf", input_scales=None).fit(X, noisy).noise_ > 1e4 * model.noise_


def test_targets_without_a_function_are_said_to_be_so():
    rng = np.random.default_rng(3)
    with pytest.warns(UserWarning, match="do not seem to depend on X"):
        model = wl.NNGPRegressor().fit(rng.standard_normal((80, 3)), rng.standard_normal(80))
    assert coverage(model, rng.standard_normal((400, 3)), rng.standard_normal(400)) > 0.9


@pytest.mark.parametrize("settings", [{}, {"noise": 0.05}, {"time": 20.0}], ids=str)
def test_an_ensemble_covers_what_it_says(settings):
    X, y = table(600)
    model = wl.NTKRegressor(ensemble=True, **settings).fit(X[:100], y[:100])
    assert 0.90 <= coverage(model, X[100:], y[100:]) <= 0.98
    mean, deviation = model.predict(X[100:], return_std=True)
    assert np.mean(np.abs(y[100:] - mean) < 1.96 * deviation) < 0.85  # of the function alone


def refitted(law, X, y, i):
    """Mean and variance at row i of a fit to the others."""
    rest = np.arange(len(y)) != i
    post = law(X[rest], y[rest])
    return post.mean(X[[i]])[0], post.variance(X[[i]])[0]


LAWS = {
    "posterior": lambda X, y: wl.posterior(wl.ntk(NET), X, y, noise=0.1),
    "flow": lambda X, y: stopped_flow(wl.ntk(NET), X, y, time=np.inf, noise=0.1),
    "ensemble": lambda X, y: stopped_flow(wl.ntk(NET), X, y, time=np.inf, noise=0.1, prior=wl.nngp(NET)),
    "interpolating ensemble": lambda X, y: stopped_flow(wl.ntk(NET), X, y, time=np.inf, prior=wl.nngp(NET)),
}


@pytest.mark.parametrize("name", LAWS)
def test_rows_left_out_are_predicted_as_by_refits(name):
    X, y = table(16)
    law = LAWS[name](X, y)
    left = left_out(law)
    for i in (0, 7):
        mean, variance = refitted(LAWS[name], X, y, i)
        assert left.error[i, 0] == pytest.approx(y[i] - mean, rel=1e-7)
        assert left.variance[i] == pytest.approx(variance, rel=1e-6)
        rest = np.arange(16) != i
        Z = X[:3] + 0.1
        moved = law.mean(Z) - (wl.ntk(NET).cross(Z, X) @ left.operator)[:, i] * left.error[i, 0]
        np.testing.assert_allclose(moved, LAWS[name](X[rest], y[rest]).mean(Z), rtol=1e-6, atol=1e-9)
        assert np.abs(moved - law.mean(Z)).max() > 1e-6


def test_a_model_of_an_older_file_has_the_scale_1_for_a_given_noise(tmp_path, monkeypatch):
    X, y = table()
    for noise, expected in ((0.1, 1.0), ("auto", "auto")):
        model = wl.NNGPRegressor(noise=noise, output_scale=expected).fit(X, y)
        kept = model._stored_parameters()
        monkeypatch.setattr(
            model, "_stored_parameters", lambda kept=kept: {k: v for k, v in kept.items() if k not in LATER}
        )
        model.save(tmp_path / "m.npz")
        header, _ = model_file.contents(tmp_path / "m.npz")
        assert "output_scale" not in json.dumps(header)
        again = wl.load(tmp_path / "m.npz")
        assert again.output_scale == expected
        np.testing.assert_array_equal(again.predict(X), model.predict(X))


def regions(n=150, seed=0):
    """A function of two inputs whose noise is 0.05 on the left and 0.55 on the right."""
    rng = np.random.default_rng(seed)
    X = rng.uniform(-2, 2, (n, 2))
    return X, np.sin(2 * X[:, 0]) + 0.5 * X[:, 1] + (0.05 + 0.5 * (X[:, 0] > 0)) * rng.standard_normal(n)


def density(model, X, y):
    mean, deviation = model.predict(X, return_std=True, include_noise=True)
    return np.mean(((y - mean) / deviation) ** 2 + np.log(2 * np.pi * deviation**2)) / 2


def test_noise_that_depends_on_the_input_is_found_where_it_is():
    X, y = regions()
    Z, v = regions(1000, seed=1)
    model, constant = (wl.NNGPRegressor(noise_model=name).fit(X, y) for name in ("input", "constant"))
    _, quiet = model.predict(Z, return_std=True)
    _, loud = model.predict(Z, return_std=True, include_noise=True)
    noise = np.sqrt(loud**2 - quiet**2)
    assert 0.03 < noise[Z[:, 0] < -0.3].mean() < 0.1
    assert 0.4 < noise[Z[:, 0] > 0.3].mean() < 0.7
    assert density(model, Z, v) < density(constant, Z, v) - 0.3
    for side in (Z[:, 0] < -0.3, Z[:, 0] > 0.3):
        assert 0.88 < coverage(model, Z[side], v[side]) < 0.99
    assert coverage(constant, Z[Z[:, 0] < -0.3], v[Z[:, 0] < -0.3]) > 0.99  # the control: too wide on the left
    even = table(150, 0.3)
    factors = wl.NNGPRegressor(noise_model="input").fit(*even).fitted_.factors
    assert np.ptp(np.log(factors)) < 1.5  # equal noise everywhere is found nearly equal


def test_outliers_move_student_t_noise_little_and_gaussian_noise_much():
    X, y = table(80, 0.1)
    Z, v = table(400, 0.0, seed=1)
    far = y.copy()
    far[[3, 40, 70]] += [1e6, -1e6, 3e5]

    def error(model, target):
        return np.sqrt(np.mean((model.fit(X, target).predict(Z) - v) ** 2))

    clean = error(wl.NNGPRegressor(), y)
    model = wl.NNGPRegressor(noise_model="student_t")
    assert error(model, y) < 1.05 * clean
    assert error(model, far) < 1.3 * clean
    assert (model.fitted_.factors[[3, 40, 70]] < 1e-9).all()
    assert np.median(model.fitted_.factors) > 0.5
    noisy = v + 0.1 * np.random.default_rng(5).standard_normal(400)
    inside = model.predict_interval(Z)
    assert np.mean((inside[:, 0] < noisy) & (noisy < inside[:, 1])) > 0.93
    assert np.median(np.diff(inside)) < 4  # 1e6 would be that of the control
    with pytest.warns(UserWarning, match="do not seem to depend"):
        assert error(wl.NNGPRegressor(), far) > 100 * clean
    with pytest.raises(ValueError, match="marginal likelihood"):
        model.log_marginal_likelihood()


def test_the_bound_of_student_t_noise_is_the_evidence_of_a_mixture():
    """One row, f known to be 0: log t_nu(y; sigma) is the maximum of the bound over q(u)."""
    for nu, y in ((3.0, 0.5), (5.0, 4.0)):
        factor = noise_models._expected(nu, np.array([y**2]))
        gaussian = norm.logpdf(y, scale=1.0)  # with u = 1; the bound replaces y^2 by u y^2 and adds the rest
        bound = gaussian - (factor[0] - 1) * y**2 / 2 + noise_models._mixture(nu, factor)
        assert bound == pytest.approx(student.logpdf(y, nu), rel=1e-12)
        wrong = noise_models._mixture(nu, 1.2 * factor) + gaussian - (1.2 * factor[0] - 1) * y**2 / 2
        assert wrong < bound


def test_outputs_have_noise_of_their_own():
    X, y = table(100, 0.5)
    Y = np.column_stack([y, np.sin(2 * X[:, 0]) + 0.02 * np.random.default_rng(4).standard_normal(100)])
    model = wl.NNGPRegressor(input_scales=None)
    own, shared = (clone(model).set_params(noise_model=name).fit(X, Y) for name in ("per_output", "constant"))
    assert own.noise_.shape == (2,)
    for j in range(2):
        alone = clone(model).fit(X, Y[:, j])
        assert own.noise_[j] == pytest.approx(alone.noise_, rel=1e-9)
        for a, b in zip(own.predict(X, True, False, True), alone.predict(X, True, False, True), strict=True):
            np.testing.assert_allclose(a[:, j], b, rtol=1e-8, atol=1e-10)
    ratio = own.noise_ * own.y_scale_**2
    assert ratio[0] > 50 * ratio[1]
    assert isinstance(shared.noise_, float)
    assert own.predict(X, return_cov=True, include_noise=True)[1].shape == (100, 100, 2)
    assert own.sample_y(X[:5], 3).shape == (5, 2, 3)


def test_robust_units_are_those_of_repeated_rows_and_of_most_values():
    rng = np.random.default_rng(0)
    y, weights = rng.standard_normal((101, 2)), np.ones(101)
    y[:3] = 1e9
    y[20:90, 1] = 4.0  # most are equal
    _, middle, scale = standardise_robustly(y, weights)
    assert scale[0] == pytest.approx(1, abs=0.25)
    assert middle[1] == 4
    assert 1 < scale[1] < 10
    weights[50:] = 2.0
    rows = np.repeat(np.arange(101), weights.astype(int))
    for a, b in zip(standardise_robustly(y, weights)[1:], standardise_robustly(y[rows], np.ones(152))[1:], strict=True):
        np.testing.assert_array_equal(a, b)
    _, other, same = standardise_robustly(-y[:100], np.ones(100))  # an even number: the mean of two middle ones
    np.testing.assert_array_equal(other, -standardise_robustly(y[:100], np.ones(100))[1])
    np.testing.assert_array_equal(same, standardise_robustly(y[:100], np.ones(100))[2])
    flat = standardise_robustly(np.full((5, 1), 3.0), np.ones(5))
    assert [values.ravel()[0] for values in flat] == [0, 3, 1]


MODELS = ("per_output", "input", "student_t")


def test_the_unit_of_all_weights_is_that_of_the_noise():
    X, y = table(40)
    one, many = (wl.NNGPRegressor().fit(X, y, sample_weight=np.full(40, w)) for w in (1, 1e6))
    assert many.noise_ == pytest.approx(1e6 * one.noise_, rel=1e-3)
    np.testing.assert_allclose(many.predict(X), one.predict(X), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", MODELS)
def test_noise_models_with_weights_are_those_of_repeated_rows_and_survive_a_file(name, tmp_path):
    X, y = regions(50)
    y[7] += 20 * (name == "student_t")
    weights = np.random.default_rng(1).integers(0, 3, 50).astype(float)
    rows = np.repeat(np.arange(50), weights.astype(int))
    Z = regions(5, seed=2)[0]
    model = wl.NNGPRegressor(noise_model=name).fit(X, y, sample_weight=weights)
    twice = wl.NNGPRegressor(noise_model=name).fit(X[rows], y[rows])
    for a, b in zip(model.predict(Z, True, False, True), twice.predict(Z, True, False, True), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-8)
    for settings in ({"method": "conformal"}, {}):
        np.testing.assert_allclose(
            model.predict_interval(Z, 0.8, **settings), twice.predict_interval(Z, 0.8, **settings), rtol=1e-5
        )
    np.testing.assert_allclose(
        model.predict_quantiles(Z, [0.1, 0.6], recalibrate=True),
        twice.predict_quantiles(Z, [0.1, 0.6], recalibrate=True),
        rtol=1e-5,
    )
    model.save(tmp_path / "m.npz")
    again = wl.load(tmp_path / "m.npz")
    for a, b in zip(model.predict(Z, True, False, True), again.predict(Z, True, False, True), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(model.predict_interval(Z), again.predict_interval(Z))


def test_a_wide_network_takes_a_noise_model_after_its_scales():
    X, y = table(60, 0.1)
    y[5] += 1e6
    fixed = {"kernel": "nngp", "activation": "erf", "depth": 2}
    model = wl.WideRegressor(noise_model="student_t", **fixed).fit(X, y)
    Z, v = table(200, 0.0, seed=1)
    assert np.sqrt(np.mean((model.predict(Z) - v) ** 2)) < 0.1
    assert model.family_ == ("nngp", "erf", 2)
    scales = 1 / model.inputs_.scale
    assert scales[0] > 2 * scales[1]


@pytest.mark.filterwarnings("ignore:the search ended at a bound")
@pytest.mark.parametrize("name", ["constant", *MODELS])
@pytest.mark.parametrize("n", [1, 2])
def test_one_row_or_two(name, n):
    X, y = table(2)
    model = wl.NNGPRegressor(noise_model=name).fit(X[:n], y[:n])
    mean, deviation = model.predict(X, return_std=True, include_noise=True)
    assert np.isfinite(mean + deviation).all()
    assert model.predict_interval(X).shape == (2, 2)
    with pytest.raises(ValueError, match=r"needs at least 19 distinct training rows for level=0\.95, got"):
        model.predict_interval(X, method="conformal")


def skewed(n, seed):
    rng = np.random.default_rng(seed)
    X = rng.uniform(-2, 2, (n, 1))
    return X, np.sin(2 * X[:, 0]) + 0.5 * rng.exponential(size=n)


def inside(ends, y):
    return np.mean((ends[:, 0] <= y) & (y <= ends[:, 1]))


def test_intervals_of_skewed_noise():
    """80 % of 1,000 new observations, to 0.09: 3 deviations of what 200 rows tell."""
    X, y = skewed(200, 0)
    Z, v = skewed(1000, 1)
    model = wl.NNGPRegressor().fit(X, y)
    assert inside(model.predict_interval(Z, 0.8, method="conformal"), v) == pytest.approx(0.8, abs=0.09)
    assert inside(model.predict_interval(Z, 0.8), v) > 0.89  # the control: 0.9 by the law of the noise
    raw, right = (model.predict_quantiles(Z, [0.1, 0.5, 0.9], recalibrate=flag) for flag in (False, True))
    below = [np.mean(v[:, None] < ends, axis=0) for ends in (raw, right)]
    np.testing.assert_allclose(below[1], [0.1, 0.5, 0.9], atol=0.06)
    assert below[0][0] < 0.03


@pytest.mark.parametrize("settings", [{}, {"ensemble": True}, {"time": 30.0}], ids=str)
def test_conformal_intervals_of_every_way_of_training(settings):
    """To 0.12: three deviations of what 100 rows tell, sqrt(0.16/100) each."""
    X, y = skewed(100, 0)
    Z, v = skewed(1000, 1)
    model = wl.NTKRegressor(**settings).fit(X, y)
    assert inside(model.predict_interval(Z, 0.8, method="conformal"), v) == pytest.approx(0.8, abs=0.12)


def test_jackknife_plus_is_that_of_refits():
    """Order statistics of predictions without each row, from as many fits."""
    X, y = table(24)
    model = wl.NNGPRegressor(noise=0.1, output_scale=1.0, normalize=None).fit(X, y)
    k, Z = model.fitted_.training.design.kernel(), X[:4] + 0.3
    low, high = [], []
    t = model.y_train_[:, 0]
    for i in range(24):
        rest = np.arange(24) != i
        post = wl.posterior(k, X[rest], t[rest], noise=0.1)
        mean, variance = post.mean(np.vstack([X[[i]], Z])), post.variance(np.vstack([X[[i]], Z])) + 0.1
        reach = np.sqrt(variance[1:]) * abs(t[i] - mean[0]) / np.sqrt(variance[0])
        low.append(mean[1:] - reach)
        high.append(mean[1:] + reach)
    place = 20  # ceil(0.8 * 25)
    ends = np.column_stack([np.sort(low, axis=0)[24 - place], np.sort(high, axis=0)[place - 1]])
    found = (model.predict_interval(Z, 0.8, method="conformal") - model.y_mean_) / model.y_scale_
    np.testing.assert_allclose(found, ends, rtol=1e-7)
    assert (
        np.abs(np.column_stack([np.sort(low, axis=0)[25 - place], np.sort(high, axis=0)[place - 2]]) - found).max()
        > 1e-3
    )


def test_quantiles_of_the_laws():
    X, y = table(60)
    Y = np.column_stack([y, 3 * y + 1])
    model = wl.NNGPRegressor().fit(X, Y)
    mean, deviation = model.predict(X[:4], return_std=True, include_noise=True)
    q = model.predict_quantiles(X[:4], [0.9, 0.1])
    assert q.shape == (4, 2, 2)
    np.testing.assert_allclose(q[..., 0], mean + deviation * norm.ppf(0.9), rtol=1e-10)
    assert model.predict_interval(X[:4]).shape == (4, 2, 2)
    assert model.predict_interval(X[:4], 0.5, method="conformal").shape == (4, 2, 2)
    zero, levels = np.zeros(1), np.array([0.001, 0.3, 0.975])
    pure = intervals.quantiles(zero, zero, np.full(1, 4.0), 3.0, levels)
    np.testing.assert_allclose(pure[0], 2 * student.ppf(levels, 3), rtol=1e-8)
    draws = np.random.default_rng(0)
    sums = 1.5 * draws.standard_normal(400_000) + draws.standard_t(5, 400_000)
    mixed = intervals.quantiles(zero, np.full(1, 2.25), np.ones(1), 5.0, levels[1:])
    np.testing.assert_allclose([np.mean(sums < x) for x in mixed[0]], levels[1:], atol=0.003)  # 4 deviations


def test_bad_levels_and_settings_are_refused():
    X, y = table()
    model = wl.NNGPRegressor().fit(X, y)
    for bad in (0.0, 1.0, 95, -0.5, np.nan):
        with pytest.raises(ValueError, match="level must be"):
            model.predict_interval(X, bad)
        with pytest.raises(ValueError, match="q must be"):
            model.predict_quantiles(X, [0.5, bad])
    with pytest.raises(ValueError, match="method must be"):
        model.predict_interval(X, method="exact")
    with pytest.raises(ValueError, match="q must be"):
        model.predict_quantiles(X, [])
    for settings, message in (
        ({"noise_model": "huber"}, "noise_model must be one of"),
        ({"noise_model": "input", "time": 3.0}, "is for time=inf without ensemble"),
        ({"noise_model": "student_t", "noise": 0.0}, "needs a noise > 0"),
        ({"noise_model": "per_output", "output_scale": 1.0}, "finds the scale of the output"),
    ):
        with pytest.raises(ValueError, match=message):
            wl.NNGPRegressor(**settings).fit(X, y)
