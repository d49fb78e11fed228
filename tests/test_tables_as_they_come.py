"""Tables as they come: too few rows, too many columns, columns that say nothing or everything, targets in any unit."""

import warnings

import numpy as np
import pandas as pd
import pytest
import scipy.sparse

import widelimit as wl
from widelimit.estimators import leaks

pytestmark = [
    pytest.mark.filterwarnings("ignore:the search ended at a bound"),
    pytest.mark.usefixtures("short_searches"),
]
SETTINGS = {"kernel": "nngp", "activation": "erf", "depth": 2}


def table(n=40, d=4):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n, d))
    return X, np.sin(2 * X[:, 0]) + 0.1 * rng.standard_normal(n)


def predicted(X, y, at=None, **settings):
    return wl.WideRegressor(**SETTINGS).fit(X, y, **settings).predict(X if at is None else at)


@pytest.mark.parametrize("rows", [1, 2])
def test_one_row_and_two_rows_are_fitted(rows):
    X, y = table()
    mean, std = wl.WideRegressor(**SETTINGS).fit(X[:rows], y[:rows]).predict(X, return_std=True)
    assert np.isfinite(mean).all()
    assert np.isfinite(std).all()
    assert mean.min() >= y[:rows].min() - 2
    assert mean.max() <= y[:rows].max() + 2


def test_more_columns_than_rows_are_better_than_the_mean():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((130, 120))
    y = X[:, 0] + X[:, 1] + X[:, 2] + 0.1 * rng.standard_normal(130)
    assert np.std(predicted(X[:30], y[:30], X[30:]) - y[30:]) < np.std(y[30:])


def test_columns_that_say_nothing_change_nothing():
    """A constant column leaves the predictions, and a shuffled one in its place does not."""
    X, y = table()
    plain = predicted(X, y)
    for constant in (0.0, 1e9, 0.1):
        wide = np.column_stack([X, np.full(len(X), constant)])
        assert np.abs(predicted(wide, y) - plain).max() < 0.05
    noise = np.column_stack([X, np.random.default_rng(5).permutation(X[:, 0])])
    assert np.abs(predicted(noise, y) - plain).max() > 1e-4


def test_a_column_twice_leaves_about_the_same_function():
    X, y = table()
    assert np.abs(predicted(np.column_stack([X, X[:, 0]]), y) - predicted(X, y)).max() < 0.1


@pytest.mark.parametrize("unit", [1e-6, 1e6, 2.0**40])
def test_other_units_of_the_target_give_the_same_predictions(unit):
    X, y = table()
    np.testing.assert_allclose(predicted(X, unit * y + 3 * unit) / unit - 3, predicted(X, y), atol=1e-6)


def test_a_constant_target_is_predicted_exactly():
    X, _ = table()
    mean, std = wl.WideRegressor(**SETTINGS).fit(X, np.full(len(X), 2.5)).predict(X + 1, return_std=True)
    assert (mean == 2.5).all()
    assert np.isfinite(std).all()


def test_a_weight_is_a_repetition_for_the_estimator():
    X, y = table()
    weights = np.random.default_rng(1).integers(0, 4, len(X))
    weighted = predicted(X, y, sample_weight=weights)
    np.testing.assert_allclose(weighted, predicted(np.repeat(X, weights, 0), np.repeat(y, weights), X), atol=1e-5)
    assert np.abs(weighted - predicted(X, y)).max() > 1e-3


@pytest.mark.parametrize(
    ("leak", "named"),
    [
        (lambda y: 3 * y + 1, True),
        (lambda y: -y + 1e-4 * np.sin(40 * y), True),
        (lambda y: np.exp(3 * y), True),
        (lambda y: y + 0.2 * np.sin(40 * np.arange(len(y))), False),
    ],
)
def test_a_leaked_target_is_named(leak, named):
    X, y = table()
    X[:, 2] = leak(y)
    assert leaks.repeating(X, y[:, None]).tolist() == [2] * named
    assert leaks.repeating(np.zeros_like(X), y[:, None]).tolist() == []


def test_a_fit_names_the_column_that_repeats_the_target():
    pandas = pytest.importorskip("pandas")
    X, y = table()
    frame = pandas.DataFrame(X, columns=["a", "b", "answer", "d"]).assign(answer=y)
    with pytest.warns(UserWarning, match="column 'answer' of X repeats the target"):
        wl.WideRegressor(**SETTINGS).fit(frame, y)
    labels = np.array(["no", "yes"])[(y > 0).astype(int)]
    with pytest.warns(UserWarning, match="column 2 of X repeats the target"):
        wl.WideClassifier(**SETTINGS).fit(frame.assign(answer=y > 0).to_numpy(np.float64), labels)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "column")
        wl.WideClassifier(**SETTINGS).fit(X, labels)


def test_a_class_for_each_row_is_in_no_column():
    X, y = table()
    assert leaks.naming(X, np.arange(40)).tolist() == []
    X[:, 1] = y > 0
    assert leaks.naming(X, y > 0).tolist() == [1]


@pytest.mark.parametrize("rows", [1, 4])
def test_a_value_far_from_all_others_is_named(rows):
    """As -999999 for a missing value: the column is standardised by it, and says nothing more."""
    X, y = table()
    assert [leaks.far_value(column) for column in X.T] == [None] * 4
    assert leaks.far_value(np.where(np.arange(40) < 1, 1.0, 0.0)) is None  # a rare category
    assert leaks.far_value(1e3 * X[:, 0] ** 5) is None
    X[:rows, 0] = -999999.0
    with pytest.warns(UserWarning, match=f"column 0 of X has the value -999999 in {rows} rows, and -2.* to 1.8"):
        predicted(X, y)


def test_names_of_columns_are_all_text_or_none_and_differ():
    X, y = table()
    model = wl.NNGPRegressor(depth=2, noise=0.1)
    with pytest.raises(ValueError, match=r"^the table has 2 columns called 'a'; rename one\.$"):
        model.fit(pd.DataFrame(X, columns=["a", "b", "a", "c"]), y)
    with pytest.raises(TypeError, match=r"names are not \(1\); make all of them text: X.rename\(columns=str\)"):
        model.fit(pd.DataFrame(X, columns=["a", 1, "b", "c"]), y)
    with pytest.raises(ValueError, match="the table has 2 columns called '0'; rename one"):
        model.fit(pd.concat([pd.DataFrame(X), pd.DataFrame(X[:, :1])], axis=1), y)
    numbered = pd.DataFrame(X)
    np.testing.assert_array_equal(model.fit(numbered, y).predict(numbered), model.fit(X, y).predict(X))


def test_ordered_categories_of_a_million_levels_are_refused_at_once():
    levels = pd.Categorical(["1", "2"] * 20, categories=np.arange(10**5).astype(str), ordered=True)
    with pytest.raises(ValueError, match="column 'k' is an ordered category of 100000 levels, at most 10000"):
        wl.TableEncoder().fit(pd.DataFrame({"k": levels}))


@pytest.mark.parametrize(
    "column",
    [
        pd.array([True, None] * 20, dtype="boolean"),
        pd.period_range("2024-01", periods=40, freq="M"),
        [1e200, 3e200] * 20,
    ],
    ids=["boolean with gaps", "periods", "huge numbers"],
)
def test_columns_that_pandas_has_beside_numbers_and_text_are_read(column):
    frame = pd.DataFrame({"a": np.linspace(-1, 1, 40), "b": column})
    model = wl.NNGPRegressor(depth=2, noise=0.1).fit(frame, frame["a"])
    assert np.abs(model.predict(frame) - frame["a"]).max() < 0.3
    shared = wl.NNGPRegressor(depth=2, noise=0.1, input_groups=[0, 0])
    huge = np.stack([np.linspace(-1e200, 1e200, 40), np.tile([1e199, -1e199], 20)], axis=1)
    assert np.abs(shared.fit(huge, frame["a"]).predict(huge) - frame["a"]).max() < 0.3


@pytest.mark.parametrize(
    ("labels", "error", "words"),
    [
        (["u", None], ValueError, r"20 missing labels, the first at \[1\]"),
        (["u", float("nan")], ValueError, "20 missing labels"),
        (pd.Series(["u", pd.NA] * 20), ValueError, "20 missing labels"),
        (["u", 1], TypeError, "text and numbers as labels"),
        (np.array(["u", True] * 20, dtype=object), TypeError, "text and numbers as labels"),
    ],
)
def test_labels_of_two_kinds_and_missing_ones_are_refused(labels, error, words):
    labels = labels * 20 if isinstance(labels, list) else labels
    with pytest.raises(error, match=words):
        wl.NNGPClassifier(depth=2).fit(np.arange(40.0)[:, None], labels)


def test_a_table_without_columns_and_sparse_rows_are_named():
    y = np.arange(40.0)
    with pytest.raises(ValueError, match="X has no columns"):
        wl.NNGPRegressor().fit(pd.DataFrame(index=range(40)), y)
    with pytest.raises(TypeError, match=r"^Sparse data was passed for X"):
        wl.NNGPRegressor().fit(scipy.sparse.eye(40), y)
