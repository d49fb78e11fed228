"""Tables of every kind go into the estimators as they are: kinds of columns, missing values, and bad tables."""

import datetime
import decimal
import json
import math
import pickle
import re

import numpy as np
import pandas
import polars
import pytest
from sklearn.base import clone
from sklearn.compose import make_column_transformer
from sklearn.linear_model import Ridge
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder

import widelimit as wl
from commands import invoke
from widelimit.columns import column
from widelimit.columns.column import Column
from widelimit.estimators.preparation import normalisation

N = 40
pytestmark = pytest.mark.usefixtures("short_searches")
RNG = np.random.default_rng(0)
SIZES = ["s", "m", "l"]
TABLE = pandas.DataFrame(
    {
        "area": RNG.uniform(20, 120, N),
        "heating": RNG.choice(["gas", "oil", "district"], N),
        "size": pandas.Categorical(RNG.choice(SIZES, N), categories=SIZES, ordered=True),
        "new": RNG.random(N) > 0.5,
        "sold": pandas.date_range("2018-01-01", periods=N, freq="30D"),
        "age": pandas.array([3, None, 5, 8] * (N // 4), dtype="Int64"),
        "zip": pandas.Categorical([10, 20, 30, 10] * (N // 4)),
        "empty_for": pandas.to_timedelta(RNG.integers(0, 90, N), unit="D"),
    }
)
PRICE = TABLE["area"] / 50 + (TABLE["heating"] == "gas") + 0.1 * RNG.standard_normal(N)
NAMES = [
    *("area", "heating=district", "heating=gas", "heating=oil", "size", "new", "sold", "sold_year_sin"),
    *("sold_year_cos", "age", "missingindicator_age", "zip=10", "zip=20", "zip=30", "empty_for"),
]


def as_polars(table=TABLE):
    """The same table of polars, without pyarrow."""
    columns = {name: table[name].tolist() for name in table if name not in ("size", "age", "zip")}
    ages = [None if value is pandas.NA else value for value in table["age"]]
    ordered = polars.Series("size", table["size"].tolist(), polars.Enum(SIZES))
    codes = polars.Series("zip", [str(value) for value in table["zip"]], polars.Categorical)
    return polars.DataFrame(columns).with_columns(ordered, polars.Series("age", ages), codes).select(table.columns)


def as_pyarrow(table=TABLE):
    return pytest.importorskip("pyarrow").Table.from_pandas(table)


def fitted(table=TABLE, y=PRICE, **settings):
    return wl.NNGPRegressor(noise=0.1, depth=2, **settings).fit(table, y)


# --- kinds


def test_each_column_becomes_what_scikit_learn_and_the_calendar_say():
    encoder = wl.TableEncoder().fit(TABLE)
    X = dict(zip(encoder.get_feature_names_out(), encoder.transform(TABLE).T, strict=True))
    assert list(X) == NAMES
    one_hot = OneHotEncoder(sparse_output=False).fit_transform(TABLE[["heating", "zip"]])
    got = np.stack([X[name] for name in NAMES if "=" in name], axis=1)
    np.testing.assert_array_equal(got, one_hot)
    with pytest.raises(AssertionError):  # the comparison tells a shifted block
        np.testing.assert_array_equal(np.roll(got, 1, axis=1), one_hot)
    np.testing.assert_array_equal(X["size"], OrdinalEncoder(categories=[SIZES]).fit_transform(TABLE[["size"]])[:, 0])
    np.testing.assert_array_equal(X["area"], TABLE["area"])
    np.testing.assert_array_equal(X["new"], TABLE["new"])
    np.testing.assert_array_equal(X["age"], TABLE["age"].fillna(5).astype(float))
    np.testing.assert_array_equal(X["missingindicator_age"], TABLE["age"].isna())
    np.testing.assert_array_equal(X["empty_for"], TABLE["empty_for"].dt.days)
    np.testing.assert_array_equal(X["sold"], [(day - datetime.datetime(1970, 1, 1)).days for day in TABLE["sold"]])
    angle = np.unwrap(np.arctan2(X["sold_year_sin"], X["sold_year_cos"]))
    np.testing.assert_allclose(np.diff(angle), 2 * np.pi * 30 / 365.2425, rtol=1e-9)


def test_inputs_of_one_category_and_of_one_cycle_share_a_scale():
    encoder = wl.TableEncoder().fit(TABLE)
    assert encoder.input_groups == [0, 1, 1, 1, 2, 3, 4, 5, 5, 6, 7, 8, 8, 8, 9]
    X = encoder.transform(TABLE)
    for groups in (encoder.input_groups, list(range(15))):
        Z = normalisation("standardize", X, np.ones(N), np.array(groups))(X)
        sums = np.bincount(groups, Z.var(axis=0))
        np.testing.assert_allclose(sums, 1, rtol=1e-9)
        same = np.ptp(normalisation("standardize", X, np.ones(N), np.array(groups)).scale[1:4])
        assert (same == 0) == (groups[1] == groups[3])


@pytest.mark.parametrize("make", [as_polars, as_pyarrow])
def test_packages_agree(make):
    table, expected = make(), fitted()
    model = fitted(table)
    assert model.encoder_.columns_ == expected.encoder_.columns_
    np.testing.assert_array_equal(model.predict(table), expected.predict(TABLE))
    np.testing.assert_array_equal(expected.predict(table), expected.predict(TABLE))


@pytest.mark.parametrize(
    ("values", "kind", "numbers"),
    [
        (["2020-01-01", "2020-01-03T12:00"], "date", [18262, 18264.5]),
        (["2020-01-01 00:00:00Z", "2020-01-01T12:00+06:00"], "instant", [18262, 18262.25]),
        ([datetime.date(2020, 1, 1), None], "date", [18262, 18262]),
        ([datetime.time(12, 30), datetime.time(1)], "time", [12.5, 1]),
        ([decimal.Decimal("1.5"), 2], "number", [1.5, 2]),
        ([True, None], "rank", [1, 1]),
        (["TRUE", "false"], "rank", [1, 0]),
        ([1, 2.5], "number", [1, 2.5]),
        ([np.float32(0.5), None], "number", [0.5, 0.5]),
    ],
)
def test_objects_and_texts_are_recognised(values, kind, numbers):
    objects = pandas.DataFrame({"a": pandas.Series(values, dtype=object)})
    for table in (objects, polars.DataFrame({"a": values}, strict=False)):
        encoder = wl.TableEncoder().fit(table)
        assert encoder.columns_[0].kind == kind
        np.testing.assert_allclose(encoder.transform(table)[:, 0], numbers, rtol=1e-12)


def test_categories_of_pandas_begin_with_a_gap():
    for first in (None, "b"):
        column = pandas.Categorical([first, "a", "b", "c", "a", None])
        encoder = wl.TableEncoder().fit(pandas.DataFrame({"a": column}))
        assert encoder.columns_[0].categories == ("a", "b", "c")
        made = encoder.transform(pandas.DataFrame({"a": column}))
        assert made[0].tolist() == ([1, 0, 0, 1] if first is None else [0, 1, 0, 0])


@pytest.mark.parametrize("dtype", [polars.Decimal(20, 2), polars.Int128, polars.Int8, polars.Float32])
def test_numbers_of_polars_of_any_type_are_numbers(dtype):
    values = polars.Series("z", np.arange(ROWS) % 11)
    table = polars.DataFrame({"x": X1, "z": values})
    settings = {"depth": 1, "noise": 0.1, "input_scales": None}
    expected = wl.NNGPRegressor(**settings).fit(table, X1 + values.to_numpy())
    other = table.with_columns(values.cast(dtype))
    model = wl.NNGPRegressor(**settings).fit(other, X1 + values.to_numpy())
    np.testing.assert_array_equal(model.predict(other), expected.predict(table))
    np.testing.assert_array_equal(expected.predict(other), expected.predict(table))


def test_cycles_are_those_that_the_rows_show():
    day = np.arange(0, 1500.0)
    assert column.periods(day) == ("year", "week")
    assert column.periods(day[::30]) == ("year",)
    assert column.periods(day[:30] / 24) == ()
    assert column.periods(np.arange(0, 30, 1 / 24)) == ("week", "day")
    assert column.periods(np.ones(5)) == ()


# --- the estimators


def test_a_table_of_numbers_is_an_array_to_the_bit():
    rng = np.random.default_rng(1)
    X, y = rng.standard_normal((30, 3)), rng.standard_normal(30)
    logical = fitted(pandas.DataFrame({"a": X[:, 0], "b": X[:, 1] > 0}), y)
    array = np.column_stack([X[:, 0], X[:, 1] > 0])
    with pytest.warns(UserWarning, match="valid feature names"):  # scikit-learn's, of arrays after tables
        np.testing.assert_array_equal(logical.predict(array), fitted(array, y).predict(array))
    expected = fitted(X, y).predict(X)
    for make in (pandas.DataFrame, polars.DataFrame):
        table = make(dict(zip("abc", X.T, strict=True)))
        model = fitted(table, y)
        np.testing.assert_array_equal(model.predict(table), expected)
        assert model.encoder_.is_identity
    late = table.with_columns(a=polars.when(polars.int_range(30) == 4).then(None).otherwise("a"))
    with pytest.warns(UserWarning, match="column 'a' is missing in 1 of 30 rows, and in no training row"):
        filled = model.predict(late)
    X[4, 0] = np.median(X[:, 0])
    np.testing.assert_array_equal(filled, model.predict(polars.DataFrame(dict(zip("abc", X.T, strict=True)))))


def test_a_table_is_read_by_its_names_and_kept_in_the_file(tmp_path):
    model = fitted()
    expected = model.predict(TABLE)
    assert model.feature_names_in_.tolist() == list(TABLE)
    assert model.n_features_in_ == len(TABLE.columns)
    np.testing.assert_array_equal(model.predict(TABLE[TABLE.columns[::-1]].assign(other=1)), expected)
    model.save(tmp_path / "m.npz")
    for again in (wl.load(tmp_path / "m.npz"), pickle.loads(pickle.dumps(model))):
        np.testing.assert_array_equal(again.predict(TABLE), expected)
        assert again.encoder_.columns_ == model.encoder_.columns_
        with pytest.raises(TypeError, match="the model was fitted to a table"):
            again.predict(TABLE.to_numpy())
    assert clone(model).encoder_ is None


def test_classifiers_scales_and_scikit_learns_tools_take_tables():
    label = np.where(PRICE.to_numpy() > 2, "dear", "cheap")
    model = wl.NNGPClassifier(depth=2).fit(TABLE, label)
    assert model.score(TABLE, label) > 0.9
    wide = wl.WideRegressor(kernel="nngp", activation="erf", depth=2).fit(TABLE[["area", "heating", "new"]], PRICE)
    scales = 1 / wide.inputs_.scale
    assert np.ptp(scales[1:4]) == 0
    assert wide.score(TABLE, PRICE) > 0.8
    few = TABLE[["area", "heating"]]
    assert cross_val_score(wl.NNGPRegressor(depth=2, noise=0.1), few, PRICE, cv=3).mean() > 0.7
    pipe = make_pipeline(wl.TableEncoder(), Ridge(0.01)).fit(few, PRICE)
    own = make_column_transformer((wl.TableEncoder(), ["heating"]), remainder="passthrough").fit(few)
    assert pipe.score(few, PRICE) > 0.8
    assert own.get_feature_names_out().tolist()[0] == "tableencoder__heating=district"


def test_weight_two_is_the_row_twice_in_a_table():
    weights = np.random.default_rng(2).integers(0, 3, N).astype(float)
    rows = np.repeat(np.arange(N), weights.astype(int))
    a, b = wl.NNGPRegressor(depth=2), wl.NNGPRegressor(depth=2)
    a.fit(TABLE, PRICE, sample_weight=weights)
    b.fit(TABLE.iloc[rows], PRICE.iloc[rows])
    assert a.encoder_.columns_ == b.encoder_.columns_
    assert a.encoder_.columns_ != fitted().encoder_.columns_
    np.testing.assert_allclose(a.predict(TABLE), b.predict(TABLE), rtol=1e-7)


@pytest.mark.parametrize("seed", range(5))
def test_the_weighted_median_is_that_of_repeated_values(seed):
    rng = np.random.default_rng(seed)
    values, weights = rng.integers(0, 9, 12).astype(float), rng.integers(1, 4, 12)
    assert column.weighted_median(values, weights.astype(float)) == np.median(np.repeat(values, weights))
    assert column.frequent(np.array(["b", "a", "c"]), np.array([2.0, 2.0, 1.0])) == "a"


def test_old_descriptions_of_columns_are_read():
    old = {"name": "heating", "categories": ["gas", "oil"], "fill": "gas"}
    assert column.from_document(old) == Column("heating", ("gas", "oil"), "gas", "category")
    assert column.from_document({"name": "a", "categories": [], "fill": None}) == Column("a", (), None)
    for change in (
        *({"kind": "colour"}, {"kind": "number"}, {"flag": 1}, {"fill": 3.0}, {"categories": ["gas", "gas"]}),
        *({"periods": ["month"]}, {"periods": ["year"]}, {"kind": "rank", "fill": math.nan}),
    ):
        with pytest.raises((TypeError, ValueError)):
            column.from_document(old | change)


# --- bad tables, through both doors

ROWS = 24
X1 = np.random.default_rng(3).standard_normal(ROWS).round(6)
KINDS = np.random.default_rng(4).choice(["r", "g"], ROWS)
Y1 = (np.sin(X1) + (KINDS == "r") + 0.1 * np.random.default_rng(5).standard_normal(ROWS)).round(6)


def plain(rows=ROWS, **more):
    return pandas.DataFrame({"x": X1[:rows], "k": KINDS[:rows], **more})


REFUSED = {
    "infinite": (plain(z=np.where(np.arange(ROWS) == 3, np.inf, X1)), "column 'z' is infinite in row 4"),
    "identifiers": (
        plain(z=[f"id {i}" for i in range(ROWS)]),
        "column 'z' has 24 different texts in 24 rows: no categories, but an identifier or free text; leave it out",
    ),
    "large integers": (plain(z=2**53 + 1), "column 'z': 9007199254740993 in row 1 is an integer beyond 2^53"),
    "text among numbers": (
        plain(z=[*map(str, range(ROWS - 1)), "oops"]),
        "column 'z' is of numbers, but row 24 has the text 'oops'",
    ),
    "a date that is none": (
        plain(z=[f"2020-02-{i + 7:02d}" for i in range(ROWS)]),
        "column 'z' is of dates, but row 24 has the text '2020-02-30'",
    ),
    "dates of another form": (plain(z=[f"{i + 1}.5.2020" for i in range(ROWS)]), "write 2026-12-31"),
    "nothing": (pandas.DataFrame({"z": [None] * ROWS}), "no column is left"),
}


def command_line(tmp_path, table, y, *options):
    """The outcome of `widelimit fit` on the same table."""
    frame = table.assign(y=y)
    frame.to_csv(tmp_path / "t.csv", index=False)
    options = options or ("--estimator", "nngp", "--noise", 0.1, "--depth", 2)
    return invoke("fit", tmp_path / "t.csv", "--target", "y", "--model", tmp_path / "m.npz", *options)


@pytest.mark.filterwarnings("ignore:left out, without any value")
@pytest.mark.parametrize("name", REFUSED)
def test_bad_columns_are_refused_by_name(name, tmp_path):
    table, words = REFUSED[name]
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        fitted(table, Y1)
    assert len(str(caught.value)) < 400
    code, out, err = command_line(tmp_path, table, Y1)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert words in err


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (plain(z=[1, "a", 2, 3] * 6), "column 'z' is of numbers, but row 2 (the first row is 1) has 'a' (6 such rows)"),
        (plain(z=[[1]] * ROWS), "column 'z': row 1 is [1]"),
        (plain(z=1j * X1), "column 'z': row 1 is"),
        (polars.DataFrame({"z": [{"a": 1}] * ROWS}), "column 'z' has the type Struct"),
        (pandas.concat([plain(), plain()], axis=1), "the table has 2 columns called 'x'"),
        (plain()[:0], "X is empty: shape (0, 2)"),
    ],
)
def test_objects_of_no_kind_are_refused_by_name(table, words):
    with pytest.raises((TypeError, ValueError), match=re.escape(words)):
        fitted(table, Y1)


def test_a_million_identifiers_are_refused_at_once():
    many = polars.DataFrame({"id": polars.int_range(10**6, eager=True).cast(polars.String) + "x"})
    with pytest.raises(ValueError, match="column 'id' has 1000000 different texts in 1000000 rows"):
        wl.NNGPRegressor().fit(many, np.zeros(10**6))


@pytest.mark.parametrize(("levels", "rows", "accepted"), [(150, 600, True), (150, 596, False), (1001, 5000, False)])
def test_hundreds_of_categories_with_a_few_rows_each_are_categories(levels, rows, accepted):
    texts = polars.DataFrame({"k": [f"c{i % levels}" for i in range(rows)]})
    if accepted:
        assert wl.TableEncoder().fit_transform(texts).shape == (rows, levels)
    else:
        with pytest.raises(ValueError, match=f"{levels} different texts in {rows} rows"):
            wl.TableEncoder().fit(texts)


def test_constant_and_empty_columns_steer_nothing(tmp_path):
    expected = fitted(plain(), Y1).predict(plain())
    constant = plain(c="one", d=3.0)
    np.testing.assert_array_equal(fitted(constant, Y1).predict(plain()), expected)
    still = constant[["c", "d"]]
    np.testing.assert_allclose(fitted(still, Y1).predict(still), Y1.mean(), rtol=1e-9)
    empty = plain(e=[None] * ROWS)
    with pytest.warns(UserWarning, match="left out, without any value: e"):
        np.testing.assert_array_equal(fitted(empty, Y1).predict(empty), expected)
    code, _, err = command_line(tmp_path, constant.assign(e=None), Y1)
    assert code == 0
    assert err == "note: left out, empty: e\nnote: left out, constant: c, d\n"
    np.testing.assert_array_equal(wl.load(tmp_path / "m.npz").predict(plain()), expected)


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_few_rows_and_more_features_than_rows(rows, tmp_path):
    features = {f"f{j}": np.random.default_rng(j).standard_normal(rows).round(6) for j in range(9)}
    for table in (plain(rows), plain(rows, **features)):
        assert np.isfinite(fitted(table, Y1[:rows]).predict(table)).all()
        code, _, err = command_line(tmp_path, table, Y1[:rows])
        assert (code, "has 1 row; a model needs at least 2" in err) == ((2, True) if rows == 1 else (0, False))


@pytest.mark.filterwarnings("ignore:the search ended at a bound")
def test_a_column_with_the_target_in_it_is_named(tmp_path):
    small = {"kernel": "nngp", "activation": "erf", "depth": 2}
    own = ("--kernel", "nngp", "--activation", "erf", "--depth", 2, "--json")
    words = "column 'z' of X repeats the target"
    with pytest.warns(UserWarning, match=words):
        wl.WideRegressor(**small).fit(plain(z=-2 * Y1), Y1)
    three = np.array(["a", "b", "c"])[np.arange(ROWS) % 3]
    with pytest.warns(UserWarning, match=words):
        wl.WideClassifier(**small).fit(plain(z=np.char.upper(three)), three)
    code, out, err = command_line(tmp_path, plain(z=2 * Y1), Y1, *own)
    assert code == 0
    assert f"note: {words}" in err
    assert any(note.startswith(words) for note in json.loads(out)["notes"])


def test_what_training_has_not_seen_is_reported(tmp_path):
    model = fitted(plain(), Y1)
    new = plain()
    new.loc[[2, 5], "k"] = "blue"
    words = "column 'k': no such category in training (2 rows), all its inputs are 0: blue"
    with pytest.warns(UserWarning, match=re.escape(words)):
        mean = model.predict(new)
    assert np.isfinite(mean).all()
    assert (mean != model.predict(plain()))[[2, 5]].all()
    for table, problem in (
        (plain().drop(columns="k"), "the table lacks 1 of the 2 columns that the model was fitted to: k; it has x"),
        (plain().assign(x=np.inf), "column 'x' is infinite in row 1"),
        (plain().assign(x="a"), "column 'x' was of numbers in training, but row 1 has the text 'a'"),
        (plain().assign(x=pandas.Timestamp("2020-01-01")), "column 'x' has the type Datetime"),
        (plain().assign(k=pandas.Timedelta("1D")), "column 'k' has the type Duration"),
    ):
        with pytest.raises(ValueError, match=re.escape(problem)):
            model.predict(table)
    command_line(tmp_path, plain(), Y1)
    new.loc[3, "x"] = math.nan
    new.to_csv(tmp_path / "new.csv", index=False)
    code, out, err = invoke("predict", tmp_path / "m.npz", tmp_path / "new.csv")
    assert (code, out.count("\n")) == (0, ROWS + 1)
    assert err == f"note: missing values imputed: x (1)\nnote: {words}\n"


def test_targets_as_text_are_refused_with_the_remedy(tmp_path):
    for labels in (KINDS, pandas.Series(KINDS), pandas.Series(KINDS, dtype="category")):
        with pytest.raises(TypeError, match="Classes are for a classifier"):
            fitted(plain(), labels)
    code, _, err = command_line(tmp_path, plain(), KINDS, "--task", "regression")
    assert code == 2
    assert "say --task classification" in err


# --- the command line


def test_dates_and_ordered_categories_on_the_command_line(tmp_path):
    ranks = np.random.default_rng(6).choice(SIZES, ROWS)
    table = plain(size=ranks, day=[f"2020-{i % 12 + 1:02d}-01" for i in range(ROWS)], new=X1 > 0)
    own = ("--estimator", "nngp", "--noise", 0.1, "--depth", 2, "--ordered", "size=s,m,l", "--json")
    code, out, err = command_line(tmp_path, table, Y1, *own)
    assert (code, err) == (0, "")
    assert json.loads(out)["inputs"] == ["x", "k=g", "k=r", "size", "day", "new"]
    same = table.assign(size=pandas.Categorical(ranks, categories=SIZES, ordered=True))
    np.testing.assert_array_equal(wl.load(tmp_path / "m.npz").predict(table), fitted(same, Y1).predict(same))
    for wrong, words in {
        "size": "write the column and its categories",
        "size=s,m": "row 2 has 'l', which is none of s, m; name all categories" if ranks[1] == "l" else "none of s, m",
        "lost=a,b": "--ordered lost: no such column",
        "y=1,2": "--ordered y: is the target",
    }.items():
        code, _, err = command_line(tmp_path, table, Y1, "--ordered", wrong)
        assert code == 2
        assert words in err


def test_the_default_is_chosen_by_evidence_and_refuses_many_rows_of_an_exact_fit_at_once(tmp_path):
    code, out, _ = command_line(tmp_path, plain(), Y1, "--activation", "erf", "--depth", 2, "--kernel", "nngp")
    assert code == 0
    assert "WideRegressor: kernel nngp, depth 2, activation erf" in out
    path = tmp_path / "large.csv"
    polars.DataFrame({"a": np.arange(20_001), "y": np.arange(20_001) / 7}).write_csv(path)
    (tmp_path / "m.npz").unlink()
    code, _, err = invoke("fit", path, "--target", "y", "--model", tmp_path / "m.npz", "--solver", "cholesky")
    assert (code, err.count("\n")) == (2, 1)
    words = "takes at most 20000 rows, and there are 20001: they need 1.5 GiB, and 1.0 times as long as 20000; fit"
    assert words in err
    assert "--rows 20000, or a network that you give, --estimator nngp or ntk" in err
    with pytest.raises(ValueError, match=re.escape(words)):
        wl.WideRegressor(solver="cholesky").fit(np.zeros((20_001, 1)), np.zeros(20_001))
