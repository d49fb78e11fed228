"""`widelimit kernel`: files in, a Zarr array out, one line for every mistake."""

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


def test_the_matrix_is_written_and_found_again(folder):
    out = folder / "K.zarr"
    first = invoke(folder / "x.npy", "--out", out, "--json", *OPTIONS)
    assert (first.exit_code, first.stderr) == (0, "")
    facts = json.loads(first.stdout)
    assert facts == {"path": str(out), "shape": [12, 12], "dtype": "float64", "tile": 16}
    expected = wl.ntk(wl.mlp(depth=2, bias_std=0.3)).gram(X)
    np.testing.assert_array_equal(zarr.open_array(out, mode="r")[:], expected)
    again = invoke(folder / "x.parquet", "--drop", "target", "--out", out, *OPTIONS)
    assert (again.exit_code, again.stdout) == (0, f"ntk of 12 inputs: 1.07e-06 GiB of float64 in {out}\n")


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
        (["holes.csv", "--drop", "target"], 2, "missing values; fill or drop those rows"),
        (["x.npy", "--activation", "rulu"], 2, "unknown activation 'rulu'"),
        (["x.npy", "--weight-std", "0"], 2, "weight_std must be > 0"),
        (["x.npy", "--budget", "0.001"], 2, "too small for one tile"),
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
    assert "no folder" in invoke(folder / "x.npy", "--out", folder / "no" / "K.zarr").stderr

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(wl, "stored_gram", interrupted)
    result = invoke(folder / "x.npy", "--out", out)
    assert result.exit_code == 130
    assert "interrupted; the finished tiles" in result.stderr
