"""Sequences and graphs on the command line: every form of a file, a session of the documentation, what is refused."""

import json
import pathlib
import re

import numpy as np
import polars as pl
import pytest
import scipy.sparse
import zarr

import widelimit as wl
from commands import invoke
from widelimit.cli import structured

pytestmark = pytest.mark.usefixtures("short_searches")
RNG = np.random.default_rng(0)
SERIES = [RNG.normal(size=(t, 2)) for t in (3, 1, 5, 2)]
LENGTHS = np.array([len(x) for x in SERIES])
OFFSETS = np.concatenate([[0], np.cumsum(LENGTHS)])
GRAPHS = [(x, (A + A.T).astype(float)) for x in SERIES for A in [np.triu(RNG.random((len(x), len(x))) < 0.7, 1)]]
SEQUENCE, GRAPH = wl.Sequence(6, 2), wl.Graph(6, 2)
Y = np.array([0.5, 1.5, -1.0, 2.0])


def padded(fill=np.nan):
    X, A = np.full((4, 5, 2), fill), np.zeros((4, 5, 5))
    for i, (x, adjacency) in enumerate(GRAPHS):
        X[i, : len(x)], A[i, : len(x), : len(x)] = x, adjacency
    return X, A


X, A = padded()
ROW = np.concatenate(SERIES)
MASK = ~np.isnan(X[..., 0])
CSR = scipy.sparse.block_diag([adjacency for _, adjacency in GRAPHS], format="csr")
PARTS = {"A_data": CSR.data, "A_indices": CSR.indices, "A_indptr": CSR.indptr}
ENDS = [("X", X), ("lengths", LENGTHS), ("y", Y)]
FORMS = {
    "lengths": (SEQUENCE, {"X": X, "lengths": LENGTHS}),
    "a mask": (SEQUENCE, {"X": X, "mask": MASK}),
    "offsets": (SEQUENCE, {"X": ROW, "offsets": OFFSETS}),
    "packed": (SEQUENCE, {"X": SEQUENCE.pack(SERIES)}),
    "training arrays": (SEQUENCE, {f"{name}_train": value for name, value in ENDS} | {"X_test": X, "length_test": 0}),
    "a dense graph": (GRAPH, {"X": X, "lengths": LENGTHS, "A": A}),
    "a masked graph": (GRAPH, {"X": X[:, ::-1], "mask": MASK[:, ::-1], "A": A[:, ::-1, ::-1]}),
    "edges of all graphs": (GRAPH, {"X": ROW, "offsets": OFFSETS, **PARTS}),
    "padded nodes, edges of all": (GRAPH, {"X": X, "lengths": LENGTHS, **PARTS}),
    "packed graphs": (GRAPH, {"X": GRAPH.pack(GRAPHS)}),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_a_file_is_the_same_rows(tmp_path, name):
    inputs, arrays = FORMS[name]
    np.savez(tmp_path / "a.npz", **arrays)
    found = structured.read(tmp_path / "a.npz", inputs).X
    expected = inputs.pack(SERIES if inputs is SEQUENCE else GRAPHS)
    if name == "a masked graph":  # its nodes in another order
        expected = inputs.pack([(x[::-1], adjacency[::-1, ::-1]) for x, adjacency in GRAPHS])
    assert np.array_equal(found, expected)


TABLES = {
    "a column a feature": pl.DataFrame({name: [x[:, k].tolist() for x in SERIES] for k, name in enumerate("ba")}),
    "lists of lists": pl.DataFrame({"s": [x.tolist() for x in SERIES]}),
    "lists of arrays": pl.DataFrame({"s": SERIES}, schema={"s": pl.List(pl.Array(pl.Float64, 2))}),
}


@pytest.mark.parametrize("name", TABLES)
def test_list_columns_are_the_same_rows(tmp_path, name):
    TABLES[name].with_columns(y=Y).write_parquet(tmp_path / "t.parquet")
    found = structured.read(tmp_path / "t.parquet", SEQUENCE, "y")
    assert np.array_equal(found.X, SEQUENCE.pack(SERIES))
    assert found.target.to_list() == Y.tolist()


def test_a_sequence_of_one_feature_may_be_flat(tmp_path):
    one, columns = wl.Sequence(5, 1), {"s": [x[:, 0].tolist() for x in SERIES]}
    np.savez(tmp_path / "a.npz", X=X[..., 0], lengths=LENGTHS)
    np.savez(tmp_path / "b.npz", X=ROW[:, 0], offsets=OFFSETS)
    pl.DataFrame(columns).write_parquet(tmp_path / "c.parquet")
    for name in ("a.npz", "b.npz", "c.parquet"):
        assert np.array_equal(structured.read(tmp_path / name, one).X, one.pack([x[:, 0] for x in SERIES]))


def test_fit_predict_and_kernel_of_a_table(tmp_path, monkeypatch):
    """The columns of the fit are taken by name, whatever the order; a table of others is another prediction."""
    monkeypatch.chdir(tmp_path)
    net = wl.network(wl.layers.Dense(), "relu", wl.layers.Flatten(), wl.layers.Dense(), inputs=SEQUENCE)
    pathlib.Path("net.txt").write_text(repr(net))
    table = TABLES["a column a feature"].with_columns(y=Y)
    table.write_parquet("t.parquet")
    fit = ["fit", "t.parquet", "--target", "y", "--network", "net.txt", "--model", "m.npz", "--noise", 0.1, "--json"]
    result = invoke(*fit, "--hyperparameters", "fixed", "--report", "r.html")
    assert json.loads(result.stdout)["sequence"] == [6, 2], result.stderr
    assert "Sequence(6, 2)" in pathlib.Path("r.html").read_text()
    table.select("a", "b", extra=1).write_parquet("turned.parquet")
    result = invoke("predict", "m.npz", "turned.parquet", "--json")
    found = json.loads(result.stdout)["predictions"]["y"]
    assert np.allclose(found, wl.load("m.npz").predict(SERIES), rtol=1e-12)
    assert "columns extra are not used" in result.stderr
    np.savez("p.npz", X=X, lengths=LENGTHS, y=Y)
    assert "scores of the predictions: rmse" in invoke("predict", "m.npz", "p.npz").stderr
    kernel = ["kernel", "t.parquet", "--network", "net.txt", "--out", "K.zarr", "--drop", "y"]
    assert "4 inputs" in invoke(*kernel).stdout
    assert np.array_equal(zarr.open("K.zarr")[:], wl.ntk(net).gram(SERIES))


def test_the_session_of_the_documentation(tmp_path, monkeypatch):
    page = (pathlib.Path(__file__).parents[1] / "docs" / "command_line.md").read_text()
    section = page.split("## sequences and graphs")[1].split("\n## ")[0]
    monkeypatch.chdir(tmp_path)
    exec(section.split("<<'END'\n")[1].split("END\n")[0], {})
    for line in re.findall(r"\$ widelimit (.*)", section):
        result = invoke(*line.split())
        assert result.exit_code == 0, result.stderr
    guessed = pl.read_csv("predictions.csv")
    assert guessed.columns == ["y", "p_0", "p_1"]
    assert (guessed["y"] == pl.Series(np.arange(30) % 2)).mean() >= 0.9
    assert zarr.open("graphs.zarr").shape == (30, 30)


FALLING = CSR.indptr.astype(np.uint32)
FALLING[5] = 0


def lists(**columns):
    return pl.DataFrame(columns)


BAD = {
    "no X": (SEQUENCE, {"y": Y}, r"no array X or X_train of sequences, but y"),
    "lengths beyond": (SEQUENCE, {"X": X, "lengths": LENGTHS + 1}, r"lengths\[2\] is 6, and X has room for 1 to 5"),
    "lengths beyond the network": (wl.Sequence(4, 2), {"X": X, "lengths": LENGTHS}, r"X\[2\] has 5 sites"),
    "a misspelt name": (SEQUENCE, {"X": np.zeros((4, 5, 2)), "length": LENGTHS}, "did you mean 'lengths'"),
    "one without its end": (SEQUENCE, {"X_train": np.zeros((4, 5, 2)), "lengths": LENGTHS}, "mean 'lengths_train'"),
    "NaN that is there": (SEQUENCE, {"X": X}, "NaN or infinite"),
    "two masks": (SEQUENCE, {"X": X, "lengths": LENGTHS, "mask": MASK}, "lengths and mask"),
    "a mask of twos": (SEQUENCE, {"X": X, "mask": MASK * 2}, "True and False"),
    "fractions of sites": (SEQUENCE, {"X": X, "lengths": LENGTHS / 2}, "4 integers"),
    "no offsets": (SEQUENCE, {"X": ROW[:, 0]}, "an array offsets is needed"),
    "offsets beyond": (SEQUENCE, {"X": ROW, "offsets": OFFSETS + 1}, "begin with 0, end with 11"),
    "an empty sequence": (SEQUENCE, {"X": ROW, "offsets": [0, 3, 3, 11]}, "at least one site"),
    "rows": (SEQUENCE, {"X": ROW}, r"padded \(n, sites, 2\)"),
    "objects": (SEQUENCE, {"X": np.array([None, 1])}, "objects"),
    "text": (SEQUENCE, {"X": np.array([["a"]])}, "text"),
    "other labels": (SEQUENCE, {"X": X, "lengths": LENGTHS, "y": Y[:3]}, "one label each"),
    "no edges": (GRAPH, {"X": X, "lengths": LENGTHS}, "it has none of them"),
    "edges twice": (GRAPH, {"X": X, "lengths": LENGTHS, "A": A, **PARTS}, "edges are one array A"),
    "asymmetric": (GRAPH, {"X": X, "lengths": LENGTHS, "A": np.triu(A)}, "not symmetric"),
    "negative": (GRAPH, {"X": X, "lengths": LENGTHS, "A": -A}, "below 0"),
    "edges of no node": (GRAPH, {"X": X, "lengths": [2, 1, 5, 2], "A": A + np.ones((5, 5))}, "nodes that are not"),
    "few nodes": (GRAPH, {"X": X, "lengths": LENGTHS, "A": A[:, :4, :4]}, r"A has shape \(4, 4, 4\)"),
    "no CSR": (GRAPH, {"X": ROW, "offsets": OFFSETS, **PARTS, "A_indptr": CSR.indptr[:-1]}, "no CSR matrix of 11"),
    "ends that fall": (GRAPH, {"X": ROW, "offsets": OFFSETS, **PARTS, "A_indptr": FALLING}, "must not fall"),
    "none at all": (GRAPH, {"X": X[:0], "lengths": LENGTHS[:0], "A": A[:0]}, "at least one graph"),
    "a node beyond": (GRAPH, {"X": ROW, "offsets": OFFSETS, **PARTS, "A_indices": CSR.indices + 5}, "0 to 10"),
    "an edge between": (GRAPH, {"X": ROW, "offsets": [0, 2, 4, 9, 11], **PARTS}, "of the graphs 0 and 1"),
    "a graph table": (GRAPH, lists(a=[[1.0]]), "graphs are read from .npz"),
    "no lists": (SEQUENCE, lists(a=[1.0]), "column 'a' holds no lists .* --drop a"),
    "unequal lists": (SEQUENCE, lists(a=[[1.0], [1.0]], b=[[1.0], [1.0, 2.0]]), "row 2 has 1 values in 'a' and 2 in"),
    "an empty list": (SEQUENCE, lists(a=[[1.0], []], b=[[1.0], []]), "no values in row 2"),
    "a missing list": (SEQUENCE, lists(a=[[1.0], None], b=[[1.0], [2.0]]), "no values in row 2"),
    "a missing number": (SEQUENCE, lists(a=[[1.0, None]], b=[[1.0, 2.0]]), "1 missing numbers"),
    "three columns": (SEQUENCE, lists(a=[[1.0]], b=[[1.0]], c=[[1.0]]), "has 3 list columns"),
    "three numbers": (SEQUENCE, lists(a=[[[1.0, 2.0, 3.0]]]), "has 3 numbers"),
    "lists of text": (SEQUENCE, lists(a=[["x"]], b=[["y"]]), "lists of String"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused_in_one_line(tmp_path, name):
    inputs, data, message = BAD[name]
    path = tmp_path / ("a.parquet" if isinstance(data, pl.DataFrame) else "a.npz")
    data.write_parquet(path) if isinstance(data, pl.DataFrame) else np.savez(path, **data)
    with pytest.raises(ValueError, match=message) as error:
        structured.read(path, inputs)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) - len(str(path)) < 400


def test_commands_that_do_not_fit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("net.txt").write_text(repr(wl.gnn(inputs=GRAPH)))
    pathlib.Path("t.csv").write_text("a,y\n1,2\n2,3\n")
    np.savez("g.npz", X=X, lengths=LENGTHS, A=A)
    np.savez("o.npz", X=np.array([None, 1]))
    for file, options, message in (
        ("t.csv", [], "graphs are read from .npz files"),
        ("none.npz", [], "there is no such file"),
        ("g.npz", [], "has no labels"),
        ("g.npz", ["--target", "z"], "has no such array"),
        ("g.npz", ["--estimator", "wide"], "say nngp or ntk"),
        ("g.npz", ["--categorical", "a"], "--categorical is for tables"),
        ("g.npz", ["--drop", "a"], "--drop a: is for the columns of tables"),
        ("g.npz", ["--depth", 2], "does not apply beside --network"),
        ("o.npz", [], "objects"),
    ):
        result = invoke("fit", file, "--network", "net.txt", "--model", "m.npz", *options)
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1), result.stderr
        assert message in result.stderr
    assert not pathlib.Path("m.npz").exists()
