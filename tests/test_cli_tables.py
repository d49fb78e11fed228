"""Files to tables, tables to numbers."""

import datetime
import math
import re
import time

import numpy as np
import polars as pl
import pytest
from sklearn.preprocessing import OneHotEncoder

from widelimit import memory
from widelimit.cli import models, schema, tables, targets, training_data
from widelimit.cli.options import TableChoices
from widelimit.cli.schema import Column


@pytest.fixture
def write(tmp_path):
    """A function that writes bytes or text to a file and returns its path."""

    def written(content, name="table.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return written


# --- reading


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("a,b\n1,x\n2,y\n", {"a": [1.0, 2.0], "b": ["x", "y"]}),
        ("a;b\n1;2.5\n", {"a": [1.0], "b": [2.5]}),
        ("a\tb|c\n1\t2\n", {"a": [1.0], "b|c": [2.0]}),
        ('"a,x;y;z",b\n1,2\n', {"a,x;y;z": [1.0], "b": [2.0]}),
        ("\ufeffa, b \r\n 1, x \r\n", {"a": [1.0], "b": ["x"]}),
        ("a,b\n1,\nNA,?\n3,null\n", {"a": [1.0, None, 3.0], "b": [None, None, None]}),
        ("a,b\n1,True\n\n2,false\n\n", {"a": [1.0, 2.0], "b": ["True", "false"]}),
        ("a,b\n1e3,-.5\n+2,1e-300\n", {"a": [1000.0, 2.0], "b": [-0.5, 1e-300]}),
        ("a\n1\nx\n", {"a": ["1", "x"]}),
        ('a\n"1,5"\n', {"a": ["1,5"]}),
    ],
)
def test_text_is_read(write, content, expected):
    assert tables.read(write(content)).to_dict(as_series=False) == expected


@pytest.mark.parametrize("name", ["", "Unnamed: 0", "__index_level_0__"])
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_row_numbers_are_left_out_with_a_word(tmp_path, name, suffix):
    path, table = tmp_path / f"t.{suffix}", pl.DataFrame({name: [0, 1], "a": [5, 6]})
    table.write_csv(path) if suffix == "csv" else table.write_parquet(path)
    if name or suffix == "csv":
        called = repr(name) if name else "without a name"
        with pytest.warns(UserWarning, match=f"column {called} is left out"):
            assert tables.read(path).columns == ["a"]


def test_every_number_is_read_to_the_bit(write):
    numbers = np.random.default_rng(0).standard_normal(1000) * 10.0 ** np.random.default_rng(1).integers(
        -300, 300, 1000
    )
    text = "a\n" + "\n".join(map(repr, numbers.tolist()))
    np.testing.assert_array_equal(tables.read(write(text))["a"].to_numpy(), numbers)


def test_parquet_is_read(tmp_path):
    frame = pl.DataFrame(
        {
            "integer": [1, None, 3],
            "float": [1.5, math.nan, None],
            "text": ["x", " ", "NA"],
            "logical": [True, False, None],
            "date": [datetime.date(2020, 1, 1)] * 3,
            "digits": ["1", "2", "3"],
        }
    ).with_columns(pl.col("digits").cast(pl.Categorical).alias("kind"))
    frame.write_parquet(tmp_path / "table.parquet")
    got = tables.read(tmp_path / "table.parquet").to_dict(as_series=False)
    assert got["integer"] == [1.0, None, 3.0]
    assert got["float"] == [1.5, None, None]
    assert got["text"] == ["x", None, None]
    assert got["logical"] == ["true", "false", None]
    assert got["date"] == [datetime.date(2020, 1, 1)] * 3
    assert got["digits"] == [1.0, 2.0, 3.0]
    assert got["kind"] == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("name", "content", "remedy"),
    [
        ("table.csv", b"", "is empty"),
        ("table.csv", b"a,b\n", "no rows"),
        ("table.csv", b"a,b\n\n\n", "no rows"),
        ("table.csv", b",\n1,2\n", "names no columns"),
        ("table.csv", b"a,b,a\n1,2,3\n", "'a' is there 2 times; rename one"),
        ("table.csv", b"a,b\n1,2,3\n", "more fields than the header"),
        ("table.csv", b'a,b\n"1,2\n3,4\n', "quotation mark is not closed"),
        ("table.csv", b"\x7fELF\x02\x01\x00\x00" * 100, "binary file"),
        ("table.csv", "a,b\n1,é\n".encode("latin1"), "iconv -f latin1 -t utf-8"),
        ("table.csv", "é,b\n1,2\n".encode("latin1"), "iconv -f latin1 -t utf-8"),
        ("table.csv", b"PAR1" + b"\0" * 100, "must end in .parquet"),
        ("table.parquet", b"PAR1 and more", "not a table that can be read"),
        ("table.parquet", b"", "not a table that can be read"),
        ("table.xlsx", b"PK", "tables end in .csv"),
    ],
)
def test_bad_files_are_refused_in_one_line(write, name, content, remedy):
    path = write(content, name)
    with pytest.raises(ValueError, match=re.escape(remedy)) as caught:
        tables.read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        tables.read(tmp_path / "absent.csv")
    with pytest.raises(ValueError, match="is not a file"):
        tables.read(tmp_path)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_file_larger_than_memory_is_not_read(tmp_path, monkeypatch, suffix):
    path = tmp_path / f"table.{suffix}"
    frame = pl.DataFrame({"a": np.arange(1000.0)})
    frame.write_csv(path) if suffix == "csv" else frame.write_parquet(path)
    monkeypatch.setattr(memory, "available", lambda: 4000)
    for reader in ("read_csv", "read_parquet"):
        monkeypatch.setattr(pl, reader, lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(MemoryError, match="cut the file"):
        tables.read(path)


# --- learning


def frame(**columns):
    return pl.DataFrame({name: tables.infer_type(pl.Series(name, values)) for name, values in columns.items()})


def learn(table, **options):
    return schema.learn(table, target="y", task="regression", **options)


def test_columns_are_learned():
    table = frame(a=[1, 2, 4], b=["x", "z", "x"], empty=[None] * 3, same=[7, 7, 7], one=["k", "k", None], y=[1, 2, 3])
    found, notes = learn(table, impute=True)
    assert found.columns == (Column("a", (), 2.0), Column("b", ("x", "z"), "x", "category"))
    assert found.inputs == ["a", "b=x", "b=z"]
    assert notes == ["left out, empty: empty", "left out, constant: same, one"]
    assert schema.from_document(found.document()) == found


def test_missing_values_are_counted_or_imputed():
    table = frame(a=[1, None, 3, 10], b=["x", "x", None, None], y=[1, 2, 3, 4], c=["p", "q", "p", "q"])
    with pytest.raises(ValueError, match=r"of 4 rows\): a \(1\); --impute"):
        learn(table, impute=False)
    table = frame(a=[1, None, 3, 10], b=["x", "w", "x", None], y=[1, 2, 3, 4])
    found, notes = learn(table, impute=True)
    assert notes == ["missing values imputed: a (1), b (1)"]
    X, notes = schema.encode(found, table)
    assert found.inputs == ["a", "missingindicator_a", "b=w", "b=x", "missingindicator_b"]
    np.testing.assert_array_equal(X, [[1, 0, 0, 1, 0], [3, 1, 1, 0, 0], [3, 0, 0, 1, 0], [10, 0, 0, 1, 1]])
    assert notes == ["missing values imputed: a (1), b (1)"]
    # A new table is filled from the training table, not from itself.
    X, _ = schema.encode(found, frame(a=[None, 100.0, 100.0], b=["w", None, "w"]))
    np.testing.assert_array_equal(X, [[3, 1, 1, 0, 0], [100, 0, 0, 1, 1], [100, 0, 1, 0, 0]])


def test_one_hot_agrees_with_scikit_learn():
    rng = np.random.default_rng(0)
    kinds, sizes = rng.choice(["red", "green", "blue"], 50), rng.choice(["s", "m"], 50)
    table = frame(kind=kinds.tolist(), size=sizes.tolist(), y=rng.standard_normal(50).tolist())
    found, _ = learn(table)
    X, _ = schema.encode(found, table)
    encoder = OneHotEncoder(sparse_output=False)
    expected = encoder.fit_transform(np.stack([kinds, sizes], axis=1))
    np.testing.assert_array_equal(X, expected)
    assert found.inputs == [f"{n}={c}" for n, cs in zip(["kind", "size"], encoder.categories_, strict=True) for c in cs]
    with pytest.raises(AssertionError):  # the comparison tells a shifted block
        np.testing.assert_array_equal(np.roll(X, 1, axis=1), expected)


def test_unseen_categories_and_other_columns_are_reported():
    found, _ = learn(frame(a=[1, 2, 3], b=["x", "z", "x"], y=[1, 2, 3]))
    X, notes = schema.encode(found, frame(b=["z", "new"], id=[7, 8], a=[5, 6]))
    np.testing.assert_array_equal(X, [[5, 0, 1], [6, 0, 0]])
    assert notes == [
        "columns that the model does not use: id",
        "column 'b': no such category in training (1 rows), all its inputs are 0: new",
    ]


def test_numbers_can_be_categories():
    table = frame(zip=[10, 20, 10, 30], y=[1, 2, 3, 4])
    found, _ = learn(table, categorical=["zip"])
    assert found.inputs == ["zip=10", "zip=20", "zip=30"]
    X, _ = schema.encode(found, frame(zip=[30, 10]))
    np.testing.assert_array_equal(X, [[0, 0, 1], [1, 0, 0]])


@pytest.mark.parametrize(
    ("columns", "remedy"),
    [
        (
            {"a": ["1", "2", "oops", "4"]},
            "row 3 has the text 'oops' (1 such rows); correct it, make the column one of categories (command line",
        ),
        ({"a": ["1,5", "2,5", "3", "4,5"]}, "write 1.5 for 1,5"),
        ({"a": [1.0, math.inf, 2.0, 3.0]}, "infinite in row 2"),
        ({"a": [5, 5, 5, 5]}, "no column is left"),
        (
            {"a": [[1], [2], [3], [4]]},
            "has the type List(Int64); turn it into numbers, or leave it out (command line: --drop a)",
        ),
    ],
)
def test_bad_columns_are_refused(columns, remedy):
    with pytest.raises(ValueError, match=re.escape(remedy)) as caught:
        learn(frame(**columns, y=[1, 2, 3, 4]))
    assert "'a'" in str(caught.value) or "no column" in remedy


def test_identifiers_are_refused():
    names = [f"name {i}" for i in range(20)]
    with pytest.raises(ValueError, match="--drop name"):
        learn(frame(name=names, y=list(range(20))))
    kinds = [f"kind {i % 10}" for i in range(20)]
    assert len(learn(frame(name=kinds, y=list(range(20))))[0].inputs) == 10


@pytest.mark.parametrize("option", ["drop", "categorical"])
def test_options_name_columns(option):
    with pytest.raises(ValueError, match=f"--{option} b: no such column; the table has a, y"):
        learn(frame(a=[1, 2], y=[1, 2]), **{option: ["b"]})


def test_a_missing_header_is_suspected():
    with pytest.raises(ValueError, match="is there a header line"):
        schema.learn(frame(**{"1.5": [1, 2], "7": [1, 2]}), target="y", task="regression")


@pytest.mark.parametrize(
    ("new", "remedy"),
    [
        ({"b": ["x"]}, "lacks 1 of the 2 columns that the model was fitted to: a; it has b; give a table with all"),
        ({"B": ["x"], "z": [1], "A ": [1]}, "fitted to: a, b; it has B, z, A ; rename 'A ' to 'a', 'B' to 'b'."),
        ({"a": ["one"], "b": ["x"]}, "'a' was of numbers in training, but row 1 has the text 'one'"),
        ({"a": [None], "b": ["x"]}, "missing values (of 1 rows): a (1); fill them, or fit the model with --impute"),
        ({"a": [math.inf], "b": ["x"]}, "infinite in row 1"),
        ({"a": [datetime.date(2020, 1, 1)], "b": ["x"]}, "has the type Date"),
    ],
)
def test_new_tables_that_do_not_fit_are_refused(new, remedy):
    found, _ = learn(frame(a=[1, 2, 3], b=["x", "z", "x"], y=[1, 2, 3]), impute=False)
    with pytest.raises(ValueError, match=re.escape(remedy)):
        schema.encode(found, frame(**new))


@pytest.mark.parametrize("document", [{}, {"columns": 3}, {"columns": [{}], "target": "y", "task": "regression"}])
def test_a_damaged_schema_is_refused(document):
    with pytest.raises(ValueError, match="damaged"):
        schema.from_document(document)
    with pytest.raises(ValueError, match="its task is 'x'"):
        schema.from_document({"target": "y", "task": "x", "columns": []})


def test_rows_of_a_fold_are_learned_by_themselves():
    table = frame(a=[1, 2, 3, 90], b=["x", "x", "x", "z"], y=[1, 2, 3, 4])
    whole, _ = learn(table, impute=True)
    assert schema.learn_again(whole, table) == whole
    assert schema.learn_again(whole, table[:3]).columns == (Column("a", (), 2.0),)


# --- targets


@pytest.mark.parametrize(
    ("values", "task", "labels"),
    [
        (["yes", "no", "yes"], "classification", ["yes", "no", "yes"]),
        ([True, False, True], "classification", ["true", "false", "true"]),
        ([0, 1, 1], "classification", [0, 1, 1]),
        ([0.0, 2.0, 2.0], "classification", [0, 2, 2]),
        ([0.5, 1.0, 2.0], "regression", [0.5, 1.0, 2.0]),
        (list(range(11)), "regression", list(range(11))),
    ],
)
def test_the_target_decides_the_task(values, task, labels):
    column = frame(y=values)["y"]
    assert targets.decide_task(column)[0] == task
    assert targets.target_values(column, task).tolist() == labels


def test_task_can_be_overridden():
    few = frame(y=[3, 4, 5])["y"]
    assert targets.target_values(few, "regression").dtype == float
    many = frame(y=[0.5, 1.5, 1.5])["y"]
    assert targets.target_values(many, "classification").tolist() == ["0.5", "1.5", "1.5"]


@pytest.mark.parametrize(
    ("values", "task", "remedy"),
    [
        ([1, None, 3], "regression", "is missing in 1 of 3 rows (first: row 2); remove"),
        (["a", "b", "a"], "regression", "say --task classification"),
        (["1", "2", "x"], "regression", "row 3 has the text 'x'"),
        (["1", "2", "x"], "classification", "row 3 has the text 'x'"),
        ([1.0, math.inf], "regression", "infinite in row 2"),
        ([f"t{i}" for i in range(12)], "classification", "12 different texts"),
    ],
)
def test_bad_targets_are_refused(values, task, remedy):
    with pytest.raises(ValueError, match=re.escape(remedy)):
        targets.target_values(frame(y=values)["y"], task)


# --- training tables


def test_rows_are_drawn_with_the_seed(write):
    path = write("a,y\n" + "\n".join(f"{i},{i}.5" for i in range(100)))
    first, again, other = (
        training_data.load(path, TableChoices("y", rows=20, seed=seed)).target.tolist() for seed in (0, 0, 1)
    )
    assert first == again != other
    assert len(set(first)) == 20


def test_conflicting_duplicates_are_reported(write):
    path = write("a,y\n1,2.5\n1,2.5\n2,1\n2,3\n3,1\n")
    choices = TableChoices("y")
    data = training_data.encode(training_data.load(path, choices), choices)
    assert data.notes == ["2 rows share their inputs with rows of another value"]


def test_one_row_is_refused(write):
    with pytest.raises(ValueError, match="has 1 row"):
        training_data.load(write("a,y\n1,2\n"), TableChoices("y"))


def test_a_million_rows_are_refused_before_allocation(tmp_path):
    path = tmp_path / "large.csv"
    values = np.arange(10**6)
    pl.DataFrame({"a": values, "y": values / 7}).write_csv(path)
    start = time.perf_counter()
    with pytest.raises(MemoryError, match=r"an exact fit to 1000000 rows needs 3725.3 GiB .* --rows \d+"):
        models.fit(path, TableChoices("y"), "ntk", {}, tmp_path / "m.npz", quiet=True)
    assert time.perf_counter() - start < 20
    assert training_data.load(path, TableChoices("y", rows=50)).rows == 10**6


# --- what a value means is settled at fit


def fitted(path, **choices):
    """Schema and inputs of a training table."""
    data = training_data.encode(training_data.load(path, TableChoices("y", **choices)), TableChoices("y", **choices))
    return data.schema, data.X


CODES = ["01", "1", "1e5", "x"]


@pytest.mark.parametrize("left", [[], ["x"], ["x", "1e5"], ["01"], ["01", "x"]])
@pytest.mark.parametrize("categorical", [(), ("c",)])
def test_categories_do_not_depend_on_other_rows(write, left, categorical):
    codes = CODES if not categorical else CODES[:3]
    rows = "".join(f"{code},{i},{i}.5\n" for i, code in enumerate(codes * 4))
    known, X = fitted(write("c,u,y\n" + (rows if categorical else rows.replace("1e5", "k"))), categorical=categorical)
    codes = codes if categorical else ["01", "1", "k", "x"]
    assert known.columns[0].categories == tuple(sorted(codes))
    new = [code for code in codes if code not in left]
    got, notes = schema.encode(known, tables.read_raw(write("c,u\n" + "".join(f"{code},0\n" for code in new))))
    np.testing.assert_array_equal(got[:, : len(codes)], X[[codes.index(code) for code in new], : len(codes)])
    assert notes == []


def test_codes_of_digits_stay_what_is_written(write):
    known, X = fitted(write("c,y\n01,1.5\n1,2.5\n001,3.5\n"), categorical=["c"])
    assert known.inputs == ["c=001", "c=01", "c=1"]
    np.testing.assert_array_equal(X, [[0, 1, 0], [0, 0, 1], [1, 0, 0]])


@pytest.mark.parametrize(
    ("written", "column"),
    [
        (["True", "False"], [True, False]),
        (["true", "false"], [True, False]),
        (["TRUE", "FALSE"], ["true", "False"]),
        (["3", "4"], [3, 4]),
        (["3.0", "4.0"], [3, 4]),
        (["3", "4"], [3.0, 4.0]),
        (["03", "4"], ["03", "4"]),
    ],
)
def test_the_same_value_in_another_format_is_the_same_category(write, tmp_path, written, column):
    known, X = fitted(write("c,y\n" + f"{written[0]},1.5\n{written[1]},2.5\n" * 3), categorical=["c"])
    pl.DataFrame({"c": column}).write_parquet(tmp_path / "new.parquet")
    got, notes = schema.encode(known, tables.read_raw(tmp_path / "new.parquet"))
    np.testing.assert_array_equal(got, X[:2])
    assert notes == []


def test_texts_that_differ_stay_different(write):
    known, _ = fitted(write("c,y\nTrue,1.5\ntrue,2.5\n1,3.5\n"))
    got, notes = schema.encode(known, tables.read_raw(write("c\ntrue\nTrue\nTRUE\n01\n1e0\n")))
    np.testing.assert_array_equal(got, [[0, 0, 1], [0, 1, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]])
    assert "no such category in training (3 rows), all its inputs are 0: 01, 1e0, TRUE" in notes[0]


def test_what_is_no_number_in_a_column_of_numbers_is_named(write, tmp_path):
    known, _ = fitted(write("a,y\n1,1.5\n2,2.5\n3,3\n"))
    for content, remedy in {
        "a\n1\nx\n": "'a' was of numbers in training, but row 2 has the text 'x'",
        'a\n"1,014"\n': "it looks like thousands separators or decimal commas ('1,014' in row 1); write 1014 or 1.014",
        "a\n9007199254740993\n": "9007199254740993 in row 1 is an integer beyond 2^53",
    }.items():
        with pytest.raises(ValueError, match=re.escape(remedy)):
            schema.encode(known, tables.read_raw(write(content, "new.csv")))
    pl.DataFrame({"a": [True, False]}).write_parquet(tmp_path / "new.parquet")
    with pytest.raises(ValueError, match="row 1 has the text 'true'"):
        schema.encode(known, tables.read_raw(tmp_path / "new.parquet"))


@pytest.mark.parametrize(
    ("written", "labels"),
    [
        (["01", "1", "01"], ["01", "1", "01"]),
        (["1e5", "2", "2"], ["1e5", "2", "2"]),
        (["9007199254740993", "9007199254740992"], ["9007199254740993", "9007199254740992"]),
        (["0.0", "1.0", "1"], [0, 1, 1]),
        (["-1", "1"], [-1, 1]),
        (["True", "False"], ["True", "False"]),
    ],
)
def test_classes_are_what_is_written(write, written, labels):
    rows = "".join(f"{i},{text}\n" for i, text in enumerate(written))
    table = training_data.load(write("a,y\n" + rows), TableChoices("y", "classification"))
    assert table.target.tolist() == labels


BIG = 2**53


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize(("values", "refused"), [((BIG, BIG + 1), True), ((-BIG - 1, 3), True), ((BIG, 2**60), False)])
def test_integers_that_floats_would_merge_are_refused(tmp_path, suffix, values, refused):
    path = tmp_path / f"t.{suffix}"
    table = pl.DataFrame({"id": values * 3, "u": range(6), "y": [0.5, 1.5] * 3})
    table.write_csv(path) if suffix == "csv" else table.write_parquet(path)
    if refused:
        with pytest.raises(ValueError, match=r"column 'id': .* beyond 2\^53.* --categorical id or --drop id"):
            fitted(path)
    else:
        assert fitted(path)[1].shape == (6, 2)
    known, X = fitted(path, categorical=["id"])
    assert known.inputs[:2] == sorted(f"id={value}" for value in values)
    assert X[:2, :2].sum() == 2
    assert fitted(path, drop=["id"])[0].inputs == ["u"]
    table.with_columns(y=pl.col("id")).write_parquet(tmp_path / "target.parquet")
    if refused:
        with pytest.raises(ValueError, match="--task classification"):
            fitted(tmp_path / "target.parquet", task="regression", drop=["id"])


@pytest.mark.parametrize(
    ("values", "advice"),
    [
        (["1,014", "2,000", "1,999"], "thousands separators or decimal commas ('1,014' in row 1); write 1014 or 1.014"),
        (["14", "2,000", "1,999"], "thousands separators or decimal commas ('2,000' in row 2)"),
        (["14", "25", "1,999"], "it looks like thousands separators or decimal commas ('1,999' in row 3)"),
        (["1,014,500", "2,000"], "thousands separators ('1,014,500' in row 1); write 1014500"),
        (["1,014.5", "2,000.25"], "thousands separators ('1,014.5' in row 1); write 1014.5"),
        (["1 014", "2 000"], "thousands separators ('1 014' in row 1); write 1014"),
        (["1,5", "2,25"], "decimal commas ('1,5' in row 1); write 1.5 for 1,5"),
        (["1.014,5", "2,25"], "decimal commas"),
        (["1,014", "2,25"], "decimal commas"),
    ],
)
def test_separators_are_distinguished(values, advice):
    with pytest.raises(ValueError, match=re.escape(advice)) as caught:
        learn(frame(a=values, y=[i / 3 for i in range(len(values))]))
    assert ("thousand" in str(caught.value)) == ("thousand" in advice)


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        ("x\n1\n\n2\n", ["1", None, "2"]),
        ("x,z\n1,a\n\n2,b\n", ["1", None, "2"]),
        ("x,z\n1,a\n,\n2,b\n,\n", ["1", None, "2", None]),
        ("x\n1\n\n\n\n", ["1"]),
        ("x,z\r\n1,a\r\n\r\n2,b\r\n\r\n\r\n", ["1", None, "2"]),
        ("x\n1\n  \n2\n   \n", ["1", "  ", "2"]),
        ('x\n"1"\n""\n', ["1", ""]),
        ('x,z\n1,"a\n\n"\n\n', ["1"]),
        ("x,z\n1,a\n2", ["1", "2"]),
    ],
)
def test_blank_lines_are_rows_but_at_the_end(write, content, rows):
    assert tables.read_raw(write(content))["x"].to_list() == rows


def test_blank_rows_are_predicted_or_named(write):
    plain, _ = fitted(write("x,y\n1,1.5\n2,2.5\n3,3\n"), impute=False)
    new = tables.read_raw(write("x\n1\n\n2\n"))
    with pytest.raises(ValueError, match=re.escape("(of 3 rows): x (1); fill them") + ".*row 2"):
        schema.encode(plain, new)
    filling, _ = fitted(write("x,y\n1,1.5\n2,2.5\n3,3\n"))
    np.testing.assert_array_equal(schema.encode(filling, new)[0][:, 0], [1, 2, 2])


# --- what the user says about columns


@pytest.mark.parametrize(
    ("choices", "remedy"),
    [
        ({"drop": ["y"]}, "--drop y: is the target"),
        ({"drop": ["a"], "categorical": ["a"]}, "--drop a and --categorical a: choose one"),
        ({"categorical": ["y"]}, "say --task classification"),
        ({"drop": ["b"]}, "--drop b: no such column"),
    ],
)
def test_a_column_is_one_thing(write, choices, remedy):
    with pytest.raises(ValueError, match=re.escape(remedy)):
        fitted(write("a,y\n1,1.5\n2,2.5\n"), **choices)


def test_a_constant_target_is_reported(write):
    path = write("a,y\n" + "".join(f"{i},4\n" for i in range(6)))
    for task in (None, "regression"):
        choices = TableChoices("y", task)
        (note,) = training_data.encode(training_data.load(path, choices), choices).notes
        assert "the target 'y' is constant (4" in note
    with pytest.raises(ValueError, match="'y' is infinite in row 2"):
        training_data.load(write("a,y\n1,2\n2,inf\n3,4\n"), TableChoices("y"))
