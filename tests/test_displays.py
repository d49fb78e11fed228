"""Displays of fitted estimators: each number that is drawn has an oracle, and each figure its labels."""

import itertools

import matplotlib
import numpy as np
import pandas as pd
import polars as pl
import pytest
from matplotlib.figure import Figure
from scipy.stats import t as student_t
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.calibration import CalibrationDisplay
from sklearn.compose import make_column_transformer
from sklearn.inspection import partial_dependence, permutation_importance
from sklearn.linear_model import Ridge
from sklearn.model_selection import LearningCurveDisplay
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OrdinalEncoder, StandardScaler

import widelimit as wl
from widelimit.displays import dependence, rows
from widelimit.displays.axes import label
from widelimit.estimators import base
from widelimit.estimators.choice import HyperparameterChoice

matplotlib.use("Agg")
N = 40
pytestmark = pytest.mark.usefixtures("short_searches")
RNG = np.random.default_rng(0)
X = RNG.standard_normal((N, 3))
Y = np.sin(2 * X[:, 0]) + 0.5 * X[:, 1] + 0.1 * RNG.standard_normal(N)
LABELS = np.where(Y > 0.5, "high", np.where(Y < -0.5, "low", "middle"))
NAMES = ["alpha", "beta", "gamma"]


@pytest.fixture(autouse=True)
def _closed_figures():
    yield
    import matplotlib.pyplot as plt

    plt.close("all")


@pytest.fixture(scope="module")
def regressor():
    return wl.NNGPRegressor(depth=2, noise=0.02).fit(pd.DataFrame(X, columns=NAMES), Y)


@pytest.fixture(scope="module")
def plain():
    return wl.NNGPRegressor(depth=2, noise=0.02).fit(X, Y)


@pytest.fixture
def scaled(monkeypatch):
    """A fit whose learned scales are 3, 1/2 and 1/100."""

    def choice(designs, data, *_, **__):
        scales = np.array([3.0, 0.5, 0.01])[: data.points.shape[1]]
        return HyperparameterChoice(designs[0], 0.02, np.ones(data.y.shape[1]), scales)

    monkeypatch.setattr(base, "choose_scaled", choice)
    return wl.WideRegressor(kernel="nngp", activation="erf", depth=2)


def texts(axes):
    """What is written at the ticks of the vertical axis, from above."""
    return [tick.get_text() for tick in axes.get_yticklabels()]


# --- importance


def test_learned_scales_are_drawn_with_the_names_of_the_columns(scaled):
    weights = np.arange(N) % 3 + 1.0
    frame = pd.DataFrame(5 + 7 * X, columns=NAMES)
    shown = wl.plot_importance(scaled.fit(frame, Y, weights))
    np.testing.assert_allclose(shown.importances, [3.0, 0.5, 0.01], rtol=1e-12)
    assert texts(shown.ax_) == NAMES
    assert [bar.get_width() for bar in shown.ax_.patches] == pytest.approx([3.0, 0.5, 0.01])
    assert shown.ax_.get_figure() is shown.figure_
    assert "scale" in shown.ax_.get_xlabel()
    reversed_ = wl.ImportanceDisplay.from_estimator(scaled.fit(frame[NAMES[::-1]], Y), max_features=2)
    assert texts(reversed_.ax_) == ["gamma", "beta"]
    assert reversed_.ax_.get_title() == "the largest 2 of 3 columns"


def test_scales_of_a_pipeline_and_of_a_constant_column(scaled):
    flat = np.c_[X[:, :2], np.full(N, 4.0)]
    shown = wl.plot_importance(make_pipeline(StandardScaler(), scaled).fit(flat, Y))
    np.testing.assert_allclose(shown.importances, [3.0, 0.5, 0.0], atol=1e-12)
    assert texts(shown.ax_) == ["x0", "x1", "x2"]


def test_a_table_has_the_scales_of_its_inputs_and_the_importance_of_its_columns(scaled):
    frame = pl.DataFrame({"colour": np.where(X[:, 1] > 0, "blue", "red"), "x": X[:, 0]})
    model = scaled.fit(frame, Y)
    shown = wl.plot_importance(model)
    assert shown.feature_names == ["colour=blue", "colour=red", "x"]
    assert shown.importances[2] == pytest.approx(0.01, rel=1e-9)
    assert wl.plot_importance(model, frame, Y, n_repeats=1).feature_names == ["colour", "x"]
    found = wl.DependenceDisplay.from_estimator(model, frame, "colour").dependences[0]
    assert found.grid.tolist() == ["blue", "red"]
    mean, covariance = model.predict(frame.with_columns(pl.lit("red").alias("colour")), return_cov=True)
    assert (found.mean[1], found.std[1]) == pytest.approx((mean.mean(), np.sqrt(covariance.mean())), rel=1e-9)


def by_hand(model, frame, y, j, repeats=5):
    """The loss of R^2 when column j is shuffled, by scikit-learn's generator."""
    found = permutation_importance(model, frame, y, n_repeats=repeats, random_state=0)
    return found.importances_mean[j], found.importances_std[j]


@pytest.mark.parametrize("kind", ["numpy", "pandas", "polars"])
def test_permutation_importance_is_that_of_scikit_learn(kind, regressor, plain):
    frame = {
        "numpy": X,
        "pandas": pd.DataFrame(X, columns=NAMES),
        "polars": pl.DataFrame(dict(zip(NAMES, X.T, strict=True))),
    }
    model = plain if kind == "numpy" else regressor
    shown = wl.plot_importance(model, frame[kind], Y)
    for j in range(3):
        expected = by_hand(plain, X, Y, j)
        assert (shown.importances[j], shown.std[j]) == pytest.approx(expected, rel=1e-9)
    names = ["x0", "x1", "x2"] if kind == "numpy" else NAMES
    assert texts(shown.ax_) == [names[j] for j in np.argsort(-shown.importances)]
    assert "loss of score" in shown.ax_.get_xlabel()


def test_tables_of_pyarrow_are_read():
    frame = pl.DataFrame(dict(zip(NAMES, X.T, strict=True)))
    arrow = type("Table", (), {"__module__": "pyarrow.lib", "__arrow_c_stream__": frame.__arrow_c_stream__})
    assert rows.table(arrow()).equals(frame)


def test_importance_takes_a_score_and_any_estimator():
    ridge = Ridge().fit(X, Y)
    shown = wl.plot_importance(ridge, X, Y, scoring="neg_mean_absolute_error", feature_names=NAMES)
    assert "neg_mean_absolute_error" in shown.ax_.get_xlabel()
    assert shown.importances[2] < shown.importances[0]
    with pytest.raises(TypeError, match="Ridge has no learned scales; pass X and y"):
        wl.plot_importance(ridge)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"X": X}, "X and y go together"),
        ({"X": X[:0], "y": Y[:0]}, "X must have shape"),
        ({"X": X, "y": Y, "feature_names": ["a"]}, "feature_names must have 3"),
        ({"X": X, "y": Y, "feature_names": "abc"}, "feature_names must be a list"),
        ({"X": X, "y": Y, "max_features": 0}, "max_features must be at least 1"),
        ({"X": X, "y": Y, "n_repeats": 0}, "n_repeats must be at least 1"),
        ({"X": X, "y": Y, "ax": "here"}, "ax must be matplotlib Axes"),
        ({}, "input_scales"),
    ],
)
def test_importance_refuses(arguments, message, plain):
    with pytest.raises((TypeError, ValueError), match=message):
        wl.plot_importance(plain, **arguments)


def overlaps(axes):
    """Whether two names at the vertical axis overlap, or one leaves the figure."""
    figure = axes.get_figure()
    figure.draw_without_rendering()
    boxes = [tick.get_window_extent() for tick in axes.get_yticklabels()]
    outside = any(box.x0 < 0 or box.x1 > figure.bbox.width for box in boxes)
    return outside or any(a.overlaps(b) for a, b in itertools.pairwise(boxes))


def test_many_columns_with_long_names_do_not_overlap():
    names = [f"the $concentration$ of\n component number {j} in the sample, milligrams per litre" for j in range(60)]
    importances = np.arange(60.0)[::-1]
    shown = wl.ImportanceDisplay(importances, feature_names=names, std=np.ones(60)).plot()
    assert len(texts(shown.ax_)) == 20
    assert max(map(len, texts(shown.ax_))) <= 36
    assert len(set(texts(shown.ax_))) == 20
    assert not overlaps(shown.ax_)
    few = Figure(figsize=(3, 1.2), layout="constrained").subplots()
    assert overlaps(wl.ImportanceDisplay(importances, feature_names=names).plot(few).ax_)


def test_names_are_no_formulas():
    assert label("a $x$ price\n in $") == r"a \$x\$ price in \$"
    short = label("x" * 20 + "y" * 20, 12)
    assert (len(short), short[0], short[-1]) == (12, "x", "y")


# --- dependence


def direct(model, frame, j, value):
    """Mean and standard deviation of the average, from the joint covariance of the rows."""
    moved = np.array(frame, float)
    moved[:, j] = value
    mean, covariance = model.predict(moved, return_cov=True)
    share = np.full(len(moved), 1 / len(moved))
    return share @ mean, np.sqrt(share @ covariance @ share)


def test_dependence_has_the_mean_of_scikit_learn_and_the_deviation_of_the_joint_law(plain):
    shown = wl.DependenceDisplay.from_estimator(plain, X, [0, 2], grid_resolution=4)
    found = shown.dependences[0]
    np.testing.assert_allclose(found.grid[[0, -1]], np.quantile(X[:, 0], [0.05, 0.95]))
    theirs = partial_dependence(plain, X, [0], custom_values={0: found.grid}, kind="average")
    np.testing.assert_allclose(found.mean, theirs["average"][0], rtol=1e-9)
    for value, mean, std in zip(found.grid, found.mean, found.std, strict=True):
        assert (mean, std) == pytest.approx(direct(plain, X, 0, value), rel=1e-9)
    # the negative control: rows that vary independently would have a far smaller deviation
    _, std = plain.predict(X, return_std=True)
    assert np.sqrt(np.sum(std**2)) / N < 0.7 * found.std.min()
    assert [axes.get_xlabel() for axes in shown.axes_] == ["x0", "x2"]
    assert shown.axes_[0].get_ylim() == shown.axes_[1].get_ylim()
    assert shown.figure_.get_supylabel() == "mean prediction, 95 % band"
    assert shown.ax_ is shown.axes_[0]


def test_the_deviation_is_that_of_draws(plain):
    found = wl.DependenceDisplay.from_estimator(plain, X, 1, grid_resolution=2).dependences[0]
    moved = X.copy()
    moved[:, 1] = found.grid[0]
    averages = plain.sample_y(moved, 4000).mean(axis=0)
    assert averages.std() == pytest.approx(found.std[0], rel=5 / np.sqrt(2 * 4000))
    assert averages.mean() == pytest.approx(found.mean[0], abs=5 * found.std[0] / np.sqrt(4000))


def test_dependence_of_frames_pipelines_and_outputs(regressor):
    frame = pd.DataFrame(X, columns=NAMES)
    one = wl.DependenceDisplay.from_estimator(regressor, frame, "beta", grid_resolution=3)
    other = wl.DependenceDisplay.from_estimator(regressor, pl.DataFrame(frame.to_dict("list")), 1, grid_resolution=3)
    np.testing.assert_allclose(one.dependences[0].std, other.dependences[0].std, rtol=1e-12)
    assert one.ax_.get_xlabel() == other.ax_.get_xlabel() == "beta"
    pipeline = make_pipeline(StandardScaler(), wl.NTKRegressor(depth=2, noise=0.02)).fit(X, np.c_[Y, -3 * Y])
    first, second = (
        wl.DependenceDisplay.from_estimator(pipeline, X, 0, target=t, grid_resolution=3).dependences[0] for t in (0, 1)
    )
    np.testing.assert_allclose(second.mean, -3 * first.mean, rtol=1e-6)
    np.testing.assert_allclose(second.std, 3 * first.std, rtol=1e-6)
    with pytest.raises(ValueError, match="several outputs: choose one by target"):
        wl.DependenceDisplay.from_estimator(pipeline, X, 0)
    with pytest.raises(ValueError, match="target must be below 2"):
        wl.DependenceDisplay.from_estimator(pipeline, X, 0, target=2)


def test_dependence_of_classes_is_a_probability():
    model = wl.NNGPClassifier(depth=2, likelihood="least_squares", noise=0.1).fit(X, LABELS)
    shown = wl.DependenceDisplay.from_estimator(model, X, [0], target="high", grid_resolution=3)
    found = shown.dependences[0]
    moved = X.copy()
    moved[:, 0] = found.grid[1]
    assert found.mean[1] == pytest.approx(model.predict_proba(moved)[:, 0].mean())
    assert np.isnan(found.std).all()
    assert not shown.ax_.collections
    assert shown.ax_.get_ylabel() == "mean probability of high"
    with pytest.raises(ValueError, match="target must be one of the 3 classes"):
        wl.DependenceDisplay.from_estimator(model, X, 0)
    with pytest.raises(ValueError, match="target='none' is no class"):
        wl.DependenceDisplay.from_estimator(model, X, 0, target="none")


def test_columns_of_text_have_error_bars():
    frame = pd.DataFrame({"colour": pd.Categorical(np.where(X[:, 0] > 0, "blue", "red")), "beta": X[:, 1]})
    encoder = make_column_transformer((OrdinalEncoder(), ["colour"]), remainder="passthrough")
    model = make_pipeline(encoder, wl.NNGPRegressor(depth=2, noise=0.02)).fit(frame, Y)
    shown = wl.DependenceDisplay.from_estimator(model, frame, "colour")
    found = shown.dependences[0]
    assert found.grid.tolist() == ["blue", "red"]
    expected = [direct(model[-1], np.c_[X[:, 0], X[:, 1]], 0, code) for code in (0.0, 1.0)]
    np.testing.assert_allclose(np.c_[found.mean, found.std], expected, rtol=1e-9)
    assert [tick.get_text() for tick in shown.ax_.get_xticklabels()] == ["blue", "red"]


def test_dependence_takes_few_rows_and_own_axes(plain, monkeypatch):
    sizes = []
    seen = dependence._average

    def watched(estimator, drawn, target):
        sizes.append(len(drawn))
        return seen(estimator, drawn, target)

    monkeypatch.setattr(dependence, "_average", watched)
    figure = Figure()
    axes = figure.subplots(1, 2)
    shown = wl.DependenceDisplay.from_estimator(plain, X, [0, 1], max_rows=7, grid_resolution=2, ax=axes)
    assert sizes == [7]
    assert shown.figure_ is figure
    assert (rows.sample(X, 7, 0) == rows.sample(X, 7, 0)).all()
    with pytest.raises(ValueError, match="ax must hold 1 Axes"):
        shown.__class__(shown.dependences[:1]).plot(axes)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ("delta", "there is no column 'delta'; the columns are x0, x1, x2"),
        (3, "features must be below 3"),
        (-1, "features must be at least 0"),
        ([], "features is empty"),
        (1.0, "features must be an integer"),
    ],
)
def test_dependence_refuses(features, message, plain):
    with pytest.raises((TypeError, ValueError), match=message):
        wl.DependenceDisplay.from_estimator(plain, X, features)


def test_what_has_no_covariance_is_referred_to_scikit_learn():
    with pytest.raises(TypeError, match=r"Ridge.predict has no return_cov.*PartialDependenceDisplay"):
        wl.DependenceDisplay.from_estimator(Ridge().fit(X, Y), X, 0)


# --- calibration


def test_coverage_is_counted_at_every_level():
    truth, std = np.array([0.0, 1.0, 2.0, -3.0]), np.array([1.0, 1.0, 2.0, 1.0])
    shown = wl.CalibrationDisplay.from_predictions(truth, np.zeros(4), std)
    at = dict(zip(shown.levels.round(2), shown.coverage, strict=True))
    assert (at[0.05], at[0.65], at[0.7], at[0.95], at[0.99]) == (0.25, 0.25, 0.75, 0.75, 0.75)
    line = shown.ax_.lines[-1]
    np.testing.assert_array_equal(line.get_xydata(), np.c_[shown.levels, shown.coverage])
    assert "4 rows" in shown.ax_.get_legend().get_texts()[0].get_text()


@pytest.mark.parametrize(("factor", "calibrated"), [(1.0, True), (0.7, False), (1.5, False)])
def test_calibrated_predictions_are_in_the_band_and_others_are_not(factor, calibrated):
    rng = np.random.default_rng(1)
    std = rng.uniform(0.5, 2, 400)
    shown = wl.CalibrationDisplay.from_predictions(std * rng.standard_normal(400), np.zeros(400), factor * std)
    low, high = shown.band()
    inside = (shown.coverage >= low) & (shown.coverage <= high)
    assert inside.all() if calibrated else inside.mean() < 0.4
    assert (low < shown.levels).all()
    assert (high > shown.levels).all()


def test_the_band_holds_95_percent_of_what_chance_gives():
    shown = wl.CalibrationDisplay(np.array([0.5, 0.8]), np.array([0.5, 0.8]), rows=400)
    low, high = shown.band()
    drawn = np.random.default_rng(3).binomial(400, shown.levels, (4000, 2)) / 400
    share = ((drawn >= low) & (drawn <= high)).mean(axis=0)  # a little more than 95 %, as counts are whole
    assert ((share > 0.945) & (share < 0.97)).all()


def test_calibration_is_of_observations_with_their_noise(plain):
    new = np.random.default_rng(2).standard_normal((30, 3))
    shown = wl.CalibrationDisplay.from_estimator(plain, new, new[:, 0])
    mean, std = plain.predict(new, return_std=True, include_noise=True)
    same = wl.CalibrationDisplay.from_predictions(new[:, 0], mean, std)
    np.testing.assert_array_equal(shown.coverage, same.coverage)
    without = wl.CalibrationDisplay.from_predictions(new[:, 0], *plain.predict(new, return_std=True))
    assert (without.coverage < shown.coverage).any()
    assert shown.name == "NNGPRegressor"


class Heavy(RegressorMixin, BaseEstimator):
    """An observation is Student's t of three degrees of freedom."""

    def fit(self):
        return self

    def __sklearn_is_fitted__(self):
        return True

    def predict(self, X, return_std=False, include_noise=False):
        mean = np.zeros(len(X))
        return (mean, np.full(len(X), student_t(3).std())) if return_std and include_noise else mean

    def predict_quantiles(self, X, q):
        return np.tile(student_t(3).ppf(q), (len(X), 1))


def test_intervals_are_those_of_the_noise_whatever_its_law():
    truth = student_t(3).rvs(size=2000, random_state=0)
    shown = wl.CalibrationDisplay.from_estimator(Heavy(), np.zeros((2000, 1)), truth)
    low, high = shown.band()
    assert ((shown.coverage >= low) & (shown.coverage <= high)).all()
    gaussian = wl.CalibrationDisplay.from_predictions(
        truth, *Heavy().predict(truth, return_std=True, include_noise=True)
    )
    assert ((gaussian.coverage < low) | (gaussian.coverage > high)).mean() > 0.5
    with pytest.raises(ValueError, match="y must have shape"):
        wl.CalibrationDisplay.from_estimator(Heavy(), np.zeros((5, 1)), truth)


def test_what_knows_no_noise_is_refused():
    with pytest.raises(TypeError, match=r"Ridge.predict has no include_noise.*from_predictions"):
        wl.CalibrationDisplay.from_estimator(Ridge().fit(X, Y), X, Y)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((Y, Y, -np.ones(N)), "std must be >= 0, got -1"),
        ((Y, Y[:5], np.ones(N)), "mean must have shape"),
        ((np.c_[Y, Y], Y, Y), r"y must have shape \(m,\).*from_predictions\(y\[:, j\]"),
        ((Y, Y * np.nan, np.ones(N)), "mean"),
    ],
)
def test_calibration_refuses(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        wl.CalibrationDisplay.from_predictions(*arguments)


# --- scikit-learn's own displays, which take our estimators as they are


def test_learning_curves_and_reliability_are_scikit_learns():
    model = wl.NNGPRegressor(depth=2, noise=0.02)
    curve = LearningCurveDisplay.from_estimator(model, X, Y, train_sizes=[12, 24], cv=3, scoring="r2")
    assert curve.test_scores.shape == (2, 3)
    assert curve.test_scores[1].mean() > curve.test_scores[0].mean()
    binary = wl.NNGPClassifier(depth=2, likelihood="least_squares", noise=0.1).fit(X, Y > 0)
    assert CalibrationDisplay.from_estimator(binary, X, Y > 0).line_.get_xydata().min() >= 0
