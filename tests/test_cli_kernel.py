"""`widelimit kernel`: files in, a Zarr array out, one line for every mistake."""

import datetime
import json

import numpy as np
import polars as pl
import pytest
import zarr

import widelimit as wl
from commands import invoke as run
from widelimit.cli.matrices import read_matrix

X = np.random.default_rng(3).standard_normal((12, 3))
OPTIONS = ["--depth", "2", "--bias-std", "0.3"]


def invoke(*arguments):
    return run("kernel", *arguments)


@pytest.fixture
def folder(tmp_path):
    np.save(tmp_path / "x.npy", X)
    np.savez(tmp_path / "one.npz", X=X)
    np.savez(tmp_path / "two.npz", X=X, Y=X[:2])
    frame = pl.DataFrame({"a": X[:, 0], "b": X[:, 1], "c": X[:, 2], "target": ["u"] * 12})
    frame.write_csv(tmp_path / "x.csv")
    frame.write_parquet(tmp_path / "x.parquet")
    frame.with_columns(a=pl.when(pl.col("a") > 0).then(pl.col("a"))).write_csv(tmp_path / "holes.csv")
    (tmp_path / "text.npy").write_text("no array")
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1")
    np.savez_compressed(tmp_path / "cut.npz", X=np.zeros((500, 3)))
    raw = bytearray((tmp_path / "cut.npz").read_bytes())
    raw[60:70] = b"\xff" * 10
    (tmp_path / "cut.npz").write_bytes(raw)
    for name, array in {
        "complex": X + 1j,
        "texts": X.astype(str),
        "dates": X.astype("datetime64[s]"),
        "spans": X.astype("timedelta64[s]"),
        "records": np.zeros(3, [("a", float)]),
        "longdouble": X.astype(np.longdouble),
        "big": np.array([[2**53 + 1, 0], [1, 2]]),
        "biggest": np.array([[2**64 - 1, 0], [1, 2]], np.uint64),
        "huge": 1e300 * X,
        "nan": np.where(X > 1, np.nan, X),
    }.items():
        np.save(tmp_path / f"{name}.npy", array)
    np.savez(tmp_path / "complex.npz", X=X + 1j)
    (tmp_path / "plain.csv").write_text("1,2\n3,4\n5,6\n")
    (tmp_path / "twice.csv").write_text("1,1\n3,4\n5,6\n")
    (tmp_path / "blank.csv").write_text("a,b\n1,2\n\n3,4\n")
    (tmp_path / "bigint.csv").write_text("a,b\n9007199254740993,2\n3,4\n")
    (tmp_path / "commas.csv").write_text('a,b\n"1,014",2\n"2,000",4\n')
    pl.DataFrame({"a": [datetime.date(2020, 1, 1)]}).write_parquet(tmp_path / "date.parquet")
    return tmp_path


def test_every_format_gives_the_numbers(folder):
    for name, options in {
        "x.npy": {},
        "one.npz": {},
        "two.npz": {"array": "X"},
        "x.csv": {"drop": ["target"]},
        "x.parquet": {"drop": ["target"]},
    }.items():
        np.testing.assert_array_equal(read_matrix(folder / name, **options), X)


def test_the_file_is_the_one_that_is_named(tmp_path):
    names = ["data[1].csv", "d*.csv", "d?.csv", "data1.csv"]
    for i, name in enumerate(names):
        (tmp_path / name).write_text(f"a,b\n{i},2\n3,4\n")
        np.save(tmp_path / name.replace(".csv", ".npy"), np.full((2, 2), float(i)))
        pl.DataFrame({"a": [float(i)]}).write_parquet(tmp_path / name.replace(".csv", ".parquet"))
    for i, name in enumerate(names):
        for suffix in (".csv", ".npy", ".parquet"):
            assert read_matrix(tmp_path / name.replace(".csv", suffix))[0, 0] == i


def test_row_numbers_are_no_feature(tmp_path):
    (tmp_path / "x.csv").write_text(",a,b\n0,1,true\n1,3,false\n")
    with pytest.warns(UserWarning, match=r"x.csv: the column without a name is left out"):
        found = read_matrix(tmp_path / "x.csv")
    np.testing.assert_array_equal(found, [[1, 1], [3, 0]])
    code, _, err = invoke(tmp_path / "x.csv", "--out", tmp_path / "K.zarr", "--depth", 1)
    assert (code, err) == (0, "note: x.csv: the column without a name is left out: it holds row numbers\n")


def test_the_matrix_is_written_and_found_again(folder):
    out = folder / "K.zarr"
    first = invoke(folder / "x.npy", "--out", out, "--json", *OPTIONS)
    assert (first.exit_code, first.stderr) == (0, "")
    facts = json.loads(first.stdout)
    assert facts == {"path": str(out), "shape": [12, 12], "dtype": "float64", "tile": 16}
    expected = wl.ntk(wl.mlp(depth=2, bias_std=0.3)).gram(X)
    np.testing.assert_array_equal(zarr.open_array(out, mode="r")[:], expected)
    again = invoke(folder / "x.parquet", "--drop", "target", "--out", out, *OPTIONS)
    assert (again.exit_code, again.stdout) == (0, f"ntk of 12 inputs: 1.1 KiB of float64 in {out}\n")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nothing.npy"], 2, "there is no such file"),
        (["x.xlsx"], 2, "no data format '.xlsx'; give a file that ends in .npy, .npz, .csv, .parquet"),
        (["two.npz"], 2, "it has 2 arrays (X, Y); choose one by --array"),
        (["two.npz", "--array", "Z"], 2, "no array 'Z', but X, Y"),
        (["text.npy"], 2, "text.npy: "),
        (["objects.npy"], 2, "objects.npy: "),
        (["damaged.parquet"], 2, "is not a table that can be read"),
        (["x.csv"], 2, "column 'target' is not numeric (String); encode it, or leave it out by --drop"),
        (["x.csv", "--drop", "goal"], 2, "there is no column 'goal' to drop; it has a, b, c, target"),
        (["holes.csv", "--drop", "target"], 2, "missing values (first: row 2); fill or drop those rows"),
        (["complex.npy"], 2, "holds complex numbers (complex128)"),
        (["complex.npz"], 2, "holds complex numbers (complex128)"),
        (["texts.npy"], 2, "holds text"),
        (["dates.npy"], 2, "holds dates"),
        (["spans.npy"], 2, "holds times"),
        (["records.npy"], 2, "holds records"),
        (["longdouble.npy"], 2, "long doubles"),
        (["big.npy"], 2, "9007199254740993 is an integer beyond 2^53"),
        (["biggest.npy"], 2, "18446744073709551615 is an integer beyond 2^53"),
        (["nan.npy"], 2, "X"),
        (["cut.npz"], 2, "cut.npz: "),
        (["huge.npy"], 2, "row 1 of the inputs is so large that its kernel is beyond the range of float64"),
        (["huge.npy", "--dtype", "float32"], 2, "is beyond its range; scale the inputs"),
        (["plain.csv"], 2, "its first line holds numbers (1, 2)"),
        (["twice.csv"], 2, "is there a header line?"),
        (["blank.csv"], 2, "1 missing values (first: row 2)"),
        (["bigint.csv"], 2, "an integer beyond 2^53, which a float rounds to 9007199254740992; leave it out: --drop a"),
        (["commas.csv"], 2, "column 'a' is not numeric"),
        (["date.parquet"], 2, "column 'a' is not numeric (Date)"),
        (["x.npy", "--drop", "a"], 2, "--drop a: is for tables"),
        (["one.npz", "--drop", "a"], 2, "--drop a: is for tables"),
        (["x.npy", "--array", "X"], 2, "--array X is for .npz"),
        (["x.csv", "--array", "X"], 2, "--array X: is for .npz"),
        (["x.parquet", "--array", "X"], 2, "--array X: is for .npz"),
        (["x.csv", "--drop", "a", "--drop", "b", "--drop", "c", "--drop", "target"], 2, "no column is left"),
        (["x.npy", "--depth", "2", "--depth", "3"], 2, "--depth is given 2 times"),
        (["x.npy", "--activation", "rulu"], 2, "unknown activation 'rulu'"),
        (["x.npy", "--weight-std", "0"], 2, "weight_std must be > 0"),
        (["x.npy", "--budget", "0.001"], 2, "too small for one tile"),
        (["x.npy", "--workers", "10000000"], 2, "--workers 10000000 needs 1953125.0 GiB and"),
    ],
)
def test_a_mistake_is_one_line(folder, arguments, code, message):
    result = invoke(folder / arguments[0], *arguments[1:], "--out", folder / "K.zarr")
    assert (result.exit_code, result.stdout) == (code, "")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (folder / "K.zarr").exists()


def test_other_stores_and_interruptions(folder, monkeypatch):
    out = folder / "K.zarr"
    invoke(folder / "x.npy", "--out", out, *OPTIONS)
    other = invoke(folder / "x.npy", "--out", out, "--kind", "nngp", *OPTIONS)
    assert other.exit_code == 2
    assert "of another kernel" in other.stderr
    assert len(other.stderr) < 400 + len(str(folder))
    assert "no folder" in invoke(folder / "x.npy", "--out", folder / "no" / "K.zarr").stderr

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(wl, "stored_gram", interrupted)
    result = invoke(folder / "x.npy", "--out", out)
    assert result.exit_code == 130
    assert "interrupted; the finished tiles" in result.stderr
