"""`widelimit learning-curve`: the prediction for a table, as text, JSON and a picture."""

import json

import numpy as np
import pytest
from sklearn.datasets import load_diabetes, load_iris
from typer.testing import CliRunner

import widelimit as wl
from widelimit.cli.app import app


@pytest.fixture
def diabetes(tmp_path):
    frame = load_diabetes(as_frame=True).frame
    frame.to_csv(tmp_path / "d.csv", index=False)
    return tmp_path / "d.csv", frame


def run(*args):
    return CliRunner().invoke(app, ["learning-curve", *map(str, args)])


def test_the_curve_of_a_table_is_that_of_its_standardised_columns(diabetes, tmp_path):
    path, frame = diabetes
    done = run(
        path, "--target", "target", "--size", 50, "--size", 200, "--draws", 3, "--json", "--figure", tmp_path / "c.png"
    )
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    X = frame.drop(columns="target").to_numpy()
    y = frame["target"].to_numpy()
    X, y = (X - X.mean(axis=0)) / X.std(axis=0), (y - y.mean()) / y.std()
    k = wl.nngp(wl.mlp(depth=3))
    curve = wl.generalization(k, X, y, sizes=[50, 200], noise=0.1)
    np.testing.assert_allclose(found["test_error"], curve.test_error, rtol=1e-6)
    assert found["drawn"]["test_error"][0] == pytest.approx(curve.test_error[0], rel=0.3)
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    (frame * 1e200).to_csv(tmp_path / "large.csv", index=False)
    large = run(tmp_path / "large.csv", "--target", "target", "--size", 50, "--size", 200, "--json")
    np.testing.assert_allclose(json.loads(large.stdout)["test_error"], found["test_error"], rtol=1e-6)


def test_classes_and_sizes_are_found(tmp_path):
    frame = load_iris(as_frame=True).frame
    frame["target"] = frame["target"].map({0: "a", 1: "b", 2: "c"})
    frame.to_csv(tmp_path / "i.csv", index=False)
    done = run(tmp_path / "i.csv", "--target", "target")
    assert done.exit_code == 0, done.output
    lines = [line.split() for line in done.stdout.splitlines() if line.strip()[:1].isdigit()]
    assert len(lines) == 8
    assert float(lines[0][1]) > float(lines[-1][1])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--size", "442"], "below the number of rows"),
        (["--figure", "x.pdf"], ".png"),
        (["--target", "tarqet"], "target"),
        (["--draws", "1"], "draws"),
    ],
)
def test_what_is_wrong_is_one_line(diabetes, args, message):
    path, _ = diabetes
    done = run(path, *(["--target", "target"] if "--target" not in args else []), *args)
    assert done.exit_code == 2, done.output
    assert message in done.output
    assert "Traceback" not in done.output
