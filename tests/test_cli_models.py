"""`widelimit fit`, `predict` and `benchmark`, on tables of a few rows."""

import itertools
import json
import math
import pathlib
import re
import signal

import numpy as np
import polars as pl
import pytest
import typer
from sklearn.model_selection import KFold
from threadpoolctl import threadpool_limits

import widelimit as wl
from commands import invoke, listening
from widelimit import memory
from widelimit.cli import baselines, benchmark_report, comparison, demonstration, fit, models, reporting, scores
from widelimit.cli.app import app
from widelimit.cli.baselines import ClassPrediction, Fold, GaussianPrediction
from widelimit.cli.comparison import ModelRecord, ModelScores
from widelimit.cli.options import TableChoices
from widelimit.cli.training_data import TargetTable
from widelimit.estimators.parameters import (
    AverageParameters,
    ClassParameters,
    EnsembleParameters,
    RegressorParameters,
    WideParameters,
    by_name,
)
from widelimit.estimators.persistence import read

pytestmark = pytest.mark.usefixtures("short_searches")
ROWS = 40


def table(rows=ROWS, seed=0):
    """Numbers, categories, a target of numbers and one of texts."""
    rng = np.random.default_rng(seed)
    size, kind = rng.uniform(1, 3, rows), rng.choice(["a", "b"], rows)
    y = np.sin(size) + (kind == "b") + 0.1 * rng.standard_normal(rows)
    label = np.where(y > np.median(y), "high", "low")
    return pl.DataFrame({"size": size, "kind": kind, "id": np.arange(rows), "y": y, "label": label})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """train.csv, new.csv, and the models m.npz (numbers) and c.npz (classes) that `fit` makes of them."""
    folder = tmp_path_factory.mktemp("models")
    table().write_csv(folder / "train.csv")
    table(10, seed=1).drop("y", "label").write_csv(folder / "new.csv")
    return folder


@pytest.fixture(scope="module")
def fitted(folder):
    options = ["--drop", "id", "--drop", "label", "--estimator", "ntk", "--depth", 2, "--noise", 0.01]
    return invoke("fit", folder / "train.csv", "--target", "y", "--model", folder / "m.npz", *options)


@pytest.fixture(scope="module")
def classes(folder):
    options = ["--drop", "id", "--drop", "y", "--depth", 2, "--estimator", "nngp", "--json"]
    return invoke("fit", folder / "train.csv", "--target", "label", "--model", folder / "c.npz", *options)


def matrix(frame):
    """The inputs, made by hand."""
    kind = frame["kind"].to_numpy()
    return np.stack([frame["size"].to_numpy(), kind == "a", kind == "b"], axis=1).astype(float)


# --- fit


def test_fit_says_what_it_did(folder, fitted):
    code, out, err = fitted
    assert (code, err) == (0, "")
    assert "train.csv: 40 rows, 3 inputs from 2 columns" in out
    assert "regression (y has 40 different numbers)" in out
    assert "NTKRegressor: depth 2, activation relu, weight_std " in out
    assert "noise_std 0." in out
    assert str(folder / "m.npz") in out
    assert max(map(len, out.replace(str(folder), "").splitlines())) <= 80


def test_fit_in_json(folder, classes):
    code, out, err = classes
    assert (code, err) == (0, "")
    document = json.loads(out)
    assert (document["task"], document["estimator"]) == ("classification", "NNGPClassifier")
    assert document["inputs"] == ["size", "kind=a", "kind=b"]
    assert document["model"] == str(folder / "c.npz")


def test_fit_writes_the_estimator_of_python(folder, fitted):
    assert fitted.exit_code == 0
    stored = read(folder / "m.npz")
    train = table()
    expected = wl.NTKRegressor(depth=2, noise=0.01).fit(train[["size", "kind"]], train["y"].to_numpy())
    new = table(10, seed=1)
    Z, means = matrix(new), expected.predict(new)
    np.testing.assert_array_equal(stored.model.predict(Z), means)
    np.testing.assert_array_equal(stored.model.predict(new[["kind", "size"]]), means)  # a loaded model takes tables
    assert not np.array_equal(means, wl.NTKRegressor(depth=2).fit(Z, Z[:, 0]).predict(Z))


@pytest.mark.parametrize(("estimator", "task"), models.ESTIMATORS)
def test_options_reach_the_estimator(estimator, task):
    given = {
        "depth": 4,
        "activation": "erf",
        "weight_std": 1.5,
        "bias_std": 0.2,
        "noise": 0.3,
        "time": 5.0,
        "solver": "cg",
        "hyperparameters": "leave_one_out",
        "normalize": "none",
        "random_state": 7,
    }
    made = models.build(estimator, task, given).get_params()
    assert {name: made[name] for name in given} == {**given, "normalize": None}
    untouched = models.build(estimator, task, dict.fromkeys(given)).get_params()
    assert untouched == models.ESTIMATORS[estimator, task]().get_params()


def test_a_classifier_takes_its_options_and_says_where_a_solver_does_not_apply(folder, tmp_path):
    arguments = ["fit", folder / "train.csv", "--target", "label", "--model", tmp_path / "m.npz", "--drop", "id"]
    arguments += ["--estimator", "ntk"]
    assert invoke(*arguments, "--drop", "y", "--alpha-epsilon", 0.001, "--depth", 2).exit_code == 0
    assert read(tmp_path / "m.npz").model.alpha_epsilon == 0.001
    assert invoke(*arguments, "--drop", "y", "--alpha-epsilon", "auto", "--depth", 2).exit_code == 0
    assert read(tmp_path / "m.npz").model.alpha_epsilon == "auto"
    code, _, err = invoke(*arguments, "--solver", "cg")
    assert (code, err.count("\n")) == (2, 1)
    assert "least_squares" in err


def test_options_that_an_estimator_has_not_are_refused():
    with pytest.raises(
        ValueError, match="--ensemble is no option of NNGPRegressor; say --estimator ntk, or leave it out"
    ):
        models.build("nngp", "regression", {"ensemble": True})
    with pytest.raises(ValueError, match="--likelihood is no option of NTKRegressor"):
        models.build("ntk", "regression", {"likelihood": "dirichlet"})
    with pytest.raises(ValueError, match="--alpha-epsilon is no option of NNGPRegressor"):
        models.build("nngp", "regression", {"alpha_epsilon": 0.1})
    for kind, given in (("wide", {}), ("ntk", {"likelihood": "logistic"}), ("nngp", {"likelihood": "least_squares"})):
        made = models.build(kind, "classification", {"alpha_epsilon": 0.1, **given})
        with pytest.raises(ValueError, match=r"alpha_epsilon=0.1 does not apply to likelihood=\"l.*dirichlet"):
            made.fit(np.eye(3), [0, 1, 1])
    assert models.build("wide", "classification", {"alpha_epsilon": "auto", "likelihood": "dirichlet"})


@pytest.mark.parametrize("old", [None, b"old"])
def test_interrupt_leaves_no_half_model(folder, monkeypatch, tmp_path, old):
    path = tmp_path / "m.npz"
    if old:
        path.write_bytes(old)

    def half(stream, **_):
        stream.write(b"half")
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(np, "savez", half)
    with listening():
        outcome = invoke(
            *("fit", folder / "train.csv", "--target", "y", "--model", path, "--drop", "id", "--drop", "label"),
            *("--estimator", "ntk"),
        )
    assert outcome == (130, "", "widelimit: interrupted.\n")
    assert [p.read_bytes() for p in tmp_path.iterdir()] == ([old] if old else [])


# --- predict


def test_predictions_go_to_stdout(folder, fitted):
    assert fitted.exit_code == 0
    code, out, err = invoke("predict", folder / "m.npz", folder / "new.csv", "--std")
    assert code == 0
    assert err == "note: columns that the model does not use: id\n"
    frame = pl.read_csv(out.encode())
    assert frame.columns == ["y", "y_std"]
    model, Z = read(folder / "m.npz").model, matrix(table(10, seed=1))
    mean, deviation = model.predict(Z, return_std=True, include_noise=True)
    # The order of sums may differ: n eps of the values.
    np.testing.assert_allclose(frame["y"], mean, rtol=1000 * ROWS * np.finfo(float).eps)
    np.testing.assert_allclose(frame["y_std"], deviation, rtol=1000 * ROWS * np.finfo(float).eps)
    _, without = model.predict(Z, return_std=True)
    assert (frame["y_std"].to_numpy() > without).all()
    assert invoke("predict", folder / "m.npz", folder / "new.csv", "--quiet").stdout.startswith("y\n")


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_predictions_go_to_a_file_and_are_scored(folder, classes, tmp_path, suffix):
    assert classes.exit_code == 0
    path = tmp_path / f"p.{suffix}"
    code, out, err = invoke("predict", folder / "c.npz", folder / "train.csv", "--std", "--out", path)
    assert (code, out) == (0, "")
    frame = (pl.read_csv if suffix == "csv" else pl.read_parquet)(path)
    assert frame.columns == ["label", "p_high", "p_low"]
    np.testing.assert_allclose(frame["p_high"] + frame["p_low"], 1, rtol=1e-12)
    train = table()
    right = np.mean(frame["label"].to_numpy() == train["label"].to_numpy())
    p = np.where(train["label"].to_numpy() == "high", frame["p_high"], frame["p_low"])
    assert f"accuracy {right:.4g}, log_loss {-np.log(p).mean():.4g}" in err
    assert right > 0.8
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_predictions_in_json(folder, fitted):
    assert fitted.exit_code == 0
    code, out, err = invoke("predict", folder / "m.npz", folder / "train.csv", "--std", "--json", "--quiet")
    document = json.loads(out)
    assert (code, err, document["rows"]) == (0, "", ROWS)
    y, mean, deviation = (np.array(v) for v in (table()["y"], *document["predictions"].values()))
    assert document["scores"]["rmse"] == pytest.approx(scores.rmse(mean, y))
    assert document["scores"]["nlpd"] == pytest.approx(scores.gaussian_nlpd(mean, deviation, y))
    assert document["scores"]["coverage_95"] == scores.interval_coverage(mean, deviation, y)


def test_predictions_of_parts_are_those_of_the_whole(folder, fitted, monkeypatch):
    assert fitted.exit_code == 0
    stored = models.load(folder / "m.npz", quiet=True)
    whole = models.predict(folder / "m.npz", stored, folder / "train.csv", std=True, quiet=True).frame
    monkeypatch.setattr(models, "PREDICTED_ROWS", 25)
    parts = models.predict(folder / "m.npz", stored, folder / "train.csv", std=True, quiet=True).frame
    # The order of sums may differ: n eps of the values.
    np.testing.assert_allclose(parts.to_numpy(), whole.to_numpy(), rtol=1000 * ROWS * np.finfo(float).eps)


def test_a_row_is_predicted_as_if_it_were_alone(folder, fitted, tmp_path):
    """Up to rounding, wherever it stands among others; a blank line is a row."""
    assert fitted.exit_code == 0
    header, *rows = (folder / "new.csv").read_text().splitlines()
    _, out, _ = invoke("predict", folder / "m.npz", folder / "new.csv", "--std")
    for chosen in ([3], [9, 0], [4, 5, 6, 1, 2]):
        (tmp_path / "some.csv").write_text("\n".join([header, *(rows[i] for i in chosen)]))
        _, some, _ = invoke("predict", folder / "m.npz", tmp_path / "some.csv", "--std")
        some, expected = (pl.read_csv(text.encode()).to_numpy() for text in (some, out))
        np.testing.assert_allclose(some, expected[chosen], rtol=1e-12)
    (tmp_path / "blank.csv").write_text("\n".join([header, rows[0], "", rows[1], "", ""]))
    code, some, err = invoke("predict", folder / "m.npz", tmp_path / "blank.csv")
    assert (code, some.count("\n")) == (0, 4)
    assert "note: missing values imputed: size (1), kind (1)\n" in err


def test_names_of_outputs_are_unique_and_classes_as_written(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.standard_normal(30)
    for name, classes, first in (
        ("p_01", ["01", "1"], "p_01_"),
        ("p_a", ["a", "a_"], "p_a__"),
        ("y", ["b", "c"], "p_b"),
    ):
        label = np.where(x > 0, *classes)
        (tmp_path / "t.csv").write_text(f"x,{name}\n" + "".join(f"{u},{c}\n" for u, c in zip(x, label, strict=True)))
        arguments = ["fit", tmp_path / "t.csv", "--target", name, "--model", tmp_path / "m.npz", "--depth", 1]
        arguments += ["--estimator", "ntk"]
        assert invoke(*arguments, "--likelihood", "least_squares", "--noise", 0.1).exit_code == 0
        code, out, err = invoke("predict", tmp_path / "m.npz", tmp_path / "t.csv", "--std")
        assert code == 0
        frame = pl.read_csv(out.encode(), infer_schema=False)
        assert frame.columns == [name, first, f"p_{classes[1]}"]
        assert set(frame[name]) == set(classes)
        p = frame[:, 1:].cast(pl.Float64).to_numpy()
        np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-12)
        assert (np.array(classes)[p.argmax(axis=1)] == frame[name].to_numpy()).all()
        assert "accuracy 0.9" in err or "accuracy 1" in err
        assert "log_loss" in err


@pytest.mark.parametrize("scale", [1e154, 1e200, 1e307])
@pytest.mark.parametrize("std", [[], ["--std"]])
def test_far_rows_give_finite_numbers_or_an_error(folder, fitted, classes, tmp_path, scale, std):
    assert fitted.exit_code == classes.exit_code == 0
    table(3).with_columns(pl.col("size") * scale).drop("y", "label").write_csv(tmp_path / "far.csv")
    for model in ("m.npz", "c.npz"):
        code, out, err = invoke(
            "predict", folder / model, tmp_path / "far.csv", *std, "--out", tmp_path / "p.csv", "--quiet"
        )
        assert (code, out) in ((0, ""), (2, ""))
        assert (tmp_path / "p.csv").exists() == (code == 0)
        if code == 0:
            numbers = pl.read_csv(tmp_path / "p.csv").select(pl.selectors.float())
            assert np.isfinite(numbers.to_numpy()).all()
            (tmp_path / "p.csv").unlink()
        else:
            assert err.count("\n") == 1
        assert [p.name for p in tmp_path.iterdir()] == ["far.csv"]


def test_numbers_that_are_not_finite_are_never_written(folder, fitted, tmp_path, monkeypatch):
    assert fitted.exit_code == 0
    arguments = ["predict", folder / "m.npz", folder / "new.csv", "--std", "--out", tmp_path / "p.csv", "--quiet"]
    for value in (math.nan, math.inf):
        bad = pl.DataFrame({"y": np.ones(64), "y_std": np.where(np.arange(64) == 6, value, 1.0)})
        monkeypatch.setattr(models, "columns", lambda *_, bad=bad, **__: bad)
        code, out, err = invoke(*arguments)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert "the prediction of row 7 is not a finite number" in err

    def overflow(*_, **__):
        raise OverflowError("too large")

    monkeypatch.setattr(models, "columns", overflow)
    assert invoke(*arguments).exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_a_constant_target_is_reported(tmp_path):
    (tmp_path / "t.csv").write_text("x,y\n" + "".join(f"{i},4\n" for i in range(12)))
    arguments = ["fit", tmp_path / "t.csv", "--target", "y", "--model", tmp_path / "m.npz", "--depth", 1]
    arguments += ["--estimator", "nngp"]
    for more in ([], ["--task", "regression"]):
        code, out, err = invoke(*arguments, *more, "--json")
        notes = [note for note in json.loads(out)["notes"] if "constant" in note]
        assert (code, len(notes)) == (0, 1)
        assert f"note: {notes[0]}\n" in err


def test_a_class_seen_only_in_the_new_table_is_reported(folder, classes, tmp_path):
    assert classes.exit_code == 0
    frame = table(10, seed=1).with_columns(pl.Series("label", ["high"] * 9 + ["huge"]))
    frame.write_csv(tmp_path / "new.csv")
    code, out, err = invoke("predict", folder / "c.npz", tmp_path / "new.csv", "--std")
    assert code == 0
    assert "note: classes that training has not seen, counted as wrong: huge" in err
    assert "accuracy" in err
    assert "log_loss" not in err
    assert "huge" not in out


def test_a_target_that_cannot_be_compared_is_reported(folder, fitted, tmp_path):
    assert fitted.exit_code == 0
    table(10).with_columns(y=pl.lit("unknown")).write_csv(tmp_path / "new.csv")
    code, _, err = invoke("predict", folder / "m.npz", tmp_path / "new.csv")
    assert code == 0
    assert "note: not scored: the target 'y' is text" in err


def test_a_model_that_python_fitted_to_a_table_is_taken(folder, fitted, tmp_path):
    train = table()[["size", "kind", "y"]]
    wl.save(wl.NTKRegressor(depth=2, noise=0.01).fit(train[["size", "kind"]], train["y"]), tmp_path / "p.npz")
    code, out, _ = invoke("predict", tmp_path / "p.npz", folder / "new.csv", "--std")
    assert code == fitted.exit_code == 0
    same = invoke("predict", folder / "m.npz", folder / "new.csv", "--std").stdout
    assert out == same.replace("y,y_std", "prediction,prediction_std")


def test_only_models_of_tables_are_taken(folder, fitted, tmp_path):
    assert fitted.exit_code == 0
    array = matrix(table())
    wl.save(wl.NNGPRegressor(depth=1, noise=0.1).fit(array, array[:, 0]), tmp_path / "bare.npz")
    (tmp_path / "text.npz").write_text("no model")
    (tmp_path / "cut.npz").write_bytes((folder / "m.npz").read_bytes()[:-500])
    for name, remedy in [
        ("bare.npz", "use wl.load"),
        ("text.npz", "not a model"),
        ("cut.npz", ""),
        ("no.npz", "no such file"),
    ]:
        code, out, err = invoke("predict", tmp_path / name, folder / "new.csv")
        assert (code, out, err.count("\n")) == (2, "", 1), name
        assert remedy in err
        assert err.startswith(f"widelimit: {tmp_path / name}: ")


# --- bad tables, by every command that reads one


BAD = {
    "no target": ("a,b\n1,2\n2,3\n", "--target y: no such column"),
    "text among numbers": ("a,y\n1,0.5\n2,1\nthree,2\n4,3\n5,0.2\n", "row 3 has the text 'three'"),
    "constant": ("a,b,y\n1,2,0.5\n1,2,1\n1,2,3\n", "no column is left"),
    "one row": ("a,y\n1,2\n", "has 1 row; a model needs at least 2"),
    "missing": ("a,b,y\n1,,0.5\n,3,1\n3,4,2.5\n,5,0.1\n", "(of 4 rows): a (2), b (1); --impute"),
    "missing target": ("a,y\n1,0.5\n2,\n3,2.5\n", "is missing in 1 of 3 rows (first: row 2)"),
    "empty": ("", "is empty"),
    "binary": ("\0\1\2", "binary file"),
}


@pytest.mark.parametrize("command", ["fit", "benchmark"])
@pytest.mark.parametrize("name", BAD)
def test_bad_tables_are_one_line(tmp_path, command, name):
    content, remedy = BAD[name]
    (tmp_path / "t.csv").write_text(content)
    rest = ["--model", tmp_path / "m.npz"] if command == "fit" else []
    rest += ["--no-impute"] * (name == "missing")
    code, out, err = invoke(command, tmp_path / "t.csv", "--target", "y", *rest)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert err.startswith("widelimit: ")
    assert remedy in err
    assert [p.name for p in tmp_path.iterdir()] == ["t.csv"]


def test_too_many_rows_are_refused(folder, monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "available", lambda: 20_000)
    arguments = ["fit", folder / "train.csv", "--model", tmp_path / "m.npz", "--estimator", "ntk", "--target"]
    code, _, err = invoke(*arguments, "label")
    assert (code, err.count("\n")) == (2, 1)
    assert "fit to a random part: --rows 28" in err  # three matrices
    code, _, err = invoke(*arguments, "y", "--time", 3)
    assert code == 2
    assert "--rows 25" in err  # four


def test_conflicting_duplicates(tmp_path):
    """With a noise they are told; without, refused with the remedy."""
    frame = pl.concat([table(20), table(20).with_columns(pl.col("y") + 1)]).drop("id", "label")
    frame.write_csv(tmp_path / "t.csv")
    arguments = ["fit", tmp_path / "t.csv", "--target", "y", "--model", tmp_path / "m.npz", "--depth", 2]
    arguments += ["--estimator", "ntk"]
    code, _, err = invoke(*arguments, "--noise", 0.01)
    assert (code, err) == (0, "note: 40 rows share their inputs with rows of another value\n")
    (tmp_path / "m.npz").unlink()
    code, out, err = invoke(*arguments, "--noise", 0)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "noise" in err
    assert [p.name for p in tmp_path.iterdir()] == ["t.csv"]


@pytest.mark.parametrize("path", ["absent/m.npz", "m.txt"])
def test_a_bad_model_path_is_refused_before_the_work(folder, tmp_path, path):
    code, _, err = invoke("fit", folder / "train.csv", "--target", "y", "--model", tmp_path / path)
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith(f"widelimit: --model {tmp_path / path}")


def test_debug_shows_the_traceback(tmp_path):
    arguments = ["fit", tmp_path / "absent.csv", "--target", "y", "--model", tmp_path / "m.npz"]
    plain, debug = invoke(*arguments), invoke(*arguments, "--debug")
    assert plain.exit_code == debug.exit_code == 2
    assert "Traceback" not in plain.stderr
    assert "Traceback" in debug.stderr
    assert debug.stderr.endswith(plain.stderr)


def test_errors_that_nobody_foresaw_are_one_line(folder, monkeypatch, tmp_path):
    def broken(*_, **__):
        raise ZeroDivisionError("division\nby zero")

    monkeypatch.setattr(models, "fit", broken)
    outcome = invoke("fit", folder / "train.csv", "--target", "y", "--model", tmp_path / "m.npz")
    assert outcome == (1, "", "widelimit: failed: ZeroDivisionError: division by zero (--debug shows where)\n")


def test_warnings_become_notes(capsys):
    import warnings

    with reporting.warnings_as_notes(quiet=False):
        for text in ("first\nline", "second", "second"):
            warnings.warn(text, UserWarning, stacklevel=1)
    assert capsys.readouterr().err == "note: first line\nnote: second\n"


# --- configuration


@pytest.fixture
def config(tmp_path):
    def written(text):
        path = tmp_path / "widelimit.toml"
        path.write_text(text)
        return path

    return written


@pytest.fixture
def seen(monkeypatch):
    """What `fit` is called with, in place of its work."""
    calls = []

    def fit(*arguments, **_):
        calls.append(arguments)
        raise ValueError("stop")

    monkeypatch.setattr(models, "fit", fit)
    return calls


def test_config_gives_options_and_the_command_line_wins(config, seen, tmp_path):
    path = config(
        '[fit]\ntarget = "y"\ndepth = 5\nweight-std = 1.5\ndrop = ["a"]\nimpute = true\ntask = "regression"\n'
        'solver = "cg"\nalpha_epsilon = 0.001\n'
    )
    invoke("fit", "t.csv", "--model", tmp_path / "m.npz", "--config", path, "--depth", 2)
    _, choices, _, given, _ = seen[0]
    assert choices == TableChoices("y", "regression", ["a"], (), True, None, 0)
    assert (given["depth"], given["weight_std"], given["bias_std"]) == (2, 1.5, None)
    assert (given["solver"], given["alpha_epsilon"]) == ("cg", 0.001)


@pytest.mark.parametrize(
    ("arguments", "text", "value"),
    [(["--no-average"], "", False), (["--average"], "average = false", True), ([], "average = false", False)],
)
def test_an_average_can_be_turned_off(config, seen, tmp_path, arguments, text, value):
    invoke(
        "fit",
        "t.csv",
        "--target",
        "y",
        "--model",
        tmp_path / "m.npz",
        "--config",
        config(f"[fit]\n{text}\n"),
        *arguments,
    )
    given = seen[0][3]
    assert given["average"] is value
    assert given["ensemble"] is None
    assert models.build("wide", "regression", given).average is value
    with pytest.raises(ValueError, match="--average is no option of NTKRegressor; say --estimator wide"):
        models.build("ntk", "regression", given)


def test_config_may_name_a_column_by_a_number_or_one_without_a_list(config, seen, tmp_path):
    path = config('[fit]\ntarget = 2020\ndrop = "ab"\ncategorical = [1, "b"]\n')
    invoke("fit", "t.csv", "--model", tmp_path / "m.npz", "--config", path)
    _, choices, *_ = seen[0]
    assert (choices.target, choices.drop, choices.categorical) == ("2020", ["ab"], ["1", "b"])


def test_other_commands_read_options_from_a_file(config, tmp_path, monkeypatch):
    seeds = []

    def run(*, seed, **_):
        seeds.append(seed)
        raise ValueError("stop")

    monkeypatch.setattr(demonstration, "run", run)
    path = config("[demo]\nseed = 5\n")
    assert invoke("demo", "--config", path, "--out", tmp_path / "a.png").stderr == "widelimit: stop\n"
    assert seeds == [5]
    assert "No such option: --config" in invoke("info", "--config", path).stderr


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("[fit]\ndeph = 3\n", "[fit] has no option 'deph'; did you mean 'depth'?"),
        ("[fti]\ndepth = 3\n", "[fti] is no command; did you mean 'fit'?"),
        ("depth = 3\n", "[depth] is no command"),
        ("fit = 3\n", "write a table [fit]"),
        ("[fit\n", "is no TOML"),
        ('[fit]\ndepth = "deep"\n', "'--depth'"),
        ('[fit]\nsolver = "qr"\n', "'--solver'"),
        ("[fit]\nconfig = 3\n", "no option 'config'"),
        ('[fit]\nnetwork = ["a", "b"]\n', "[fit] network = ['a', 'b']: write one value."),
        ("[fit]\nactivation = true\n", "[fit] activation = True: write one value."),
        ("[fit]\nensemble = 1\n", "[fit] ensemble = 1: write true or false."),
        ("[fit]\ndrop = {a = 1}\n", "[fit] drop = {'a': 1}: write a list of texts."),
        ('[fit]\ndrop = [["a"]]\n', "write a list of texts."),
    ],
)
def test_bad_configuration_is_one_line(config, seen, tmp_path, text, remedy):
    code, out, err = invoke("fit", "t.csv", "--target", "y", "--model", tmp_path / "m.npz", "--config", config(text))
    assert (code, out, err.count("\n"), seen) == (2, "", 1, [])
    assert remedy in err


def test_absent_configuration(tmp_path):
    code, _, err = invoke("fit", "t.csv", "--target", "y", "--config", tmp_path / "absent.toml")
    assert (code, err.count("\n")) == (2, 1)
    assert "cannot be read" in err


# --- benchmark


@pytest.fixture
def quick(monkeypatch):
    """A benchmark of the mean and of ridge regression, or of the shares of classes and logistic regression."""

    def mean(fold):
        return GaussianPrediction(np.full(len(fold.Z), fold.y.mean()), np.full(len(fold.Z), fold.y.std()))

    def shares(fold):
        return ClassPrediction(np.tile(np.bincount(fold.y) / len(fold.y), (len(fold.Z), 1)))

    monkeypatch.setattr(baselines, "regression", lambda _: {"mean": mean, "ridge": baselines.ridge})
    monkeypatch.setattr(baselines, "classification", lambda _: {"shares": shares, "logistic": baselines.logistic})


@pytest.mark.usefixtures("quick")
def test_benchmark_scores_are_those_of_a_loop_by_hand(folder):
    arguments = ["benchmark", folder / "train.csv", "--target", "y", "--drop", "id", "--drop", "label", "--json"]
    code, out, err = invoke(*arguments, "--folds", 4, "--seed", 3)
    assert (code, err) == (0, "")
    document = json.loads(out)
    assert [row["model"] for row in document["models"]] == ["ridge", "mean"]
    y, errors, densities = table()["y"].to_numpy(), [], []
    for inside, outside in KFold(4, shuffle=True, random_state=3).split(y):
        centre, spread = y[inside].mean(), y[inside].std()
        errors.append(math.sqrt(np.mean((y[outside] - centre) ** 2)))
        z = (y[outside] - centre) / spread
        densities.append(np.mean(z**2 / 2 + np.log(spread * math.sqrt(2 * math.pi))))
    row = document["models"][1]
    for name, values in (("rmse", errors), ("nlpd", densities)):
        np.testing.assert_allclose(row[name]["folds"], values, rtol=1e-12)
        assert row[name]["mean"] == pytest.approx(np.mean(values))
        assert row[name]["standard_error"] == pytest.approx(np.std(values, ddof=1) / 2)
    assert document["models"][0]["rmse"]["mean"] < 0.7 * row["rmse"]["mean"]


@pytest.mark.usefixtures("quick")
def test_benchmark_prints_a_table_and_draws(folder, tmp_path):
    figure = tmp_path / "b.png"
    arguments = ["benchmark", folder / "train.csv", "--target", "label", "--drop", "id", "--drop", "y", "--out", figure]
    code, out, err = invoke(*arguments)
    assert (code, err) == (0, "")
    assert max(map(len, out.replace(str(tmp_path), "").splitlines())) <= 80
    assert "train.csv: 40 rows, 3 inputs, 5 folds\nclassification (label is text with 2 different values)" in out
    assert out.index("\nlogistic ") < out.index("\nshares ")
    assert figure.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert [p.name for p in tmp_path.iterdir()] == ["b.png"]


@pytest.fixture
def quicker(monkeypatch):
    """Fewer trees, and no threads that wait for each other."""
    monkeypatch.setattr(baselines, "TREES", 50)
    with threadpool_limits(limits=1):
        yield


@pytest.mark.usefixtures("quicker")
def test_every_model_is_sane_on_numbers():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((60, 2))
    y = 5 + X[:, 0] + 0.1 * rng.standard_normal(60)
    fold = Fold(X[:40], y[:40], X[40:], 0)
    for name, model in baselines.regression({"depth": 2}).items():
        record = ModelRecord([], [], {})
        record.add(model, fold, y[40:])
        smooth = name in ("NTK", "NNGP", "RBF GP", "Matern GP", "ridge")
        assert record.scores[0]["rmse"] < (0.3 if smooth else 0.9), name
        assert record.scores[0]["coverage_95"] > 0.7, name


@pytest.mark.usefixtures("quicker")
def test_every_model_is_sane_on_classes():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((90, 2))
    labels = (X[:, 0] > 0.5).astype(int) + (X[:, 0] > -0.5)
    fold = Fold(X[:60], labels[:60], X[60:], 0)

    def whole(found):
        np.testing.assert_allclose(found.probabilities.sum(axis=1), 1, rtol=1e-9)
        return found

    for name, model in baselines.classification({"depth": 2}).items():
        record = ModelRecord([], [], {})
        record.add(lambda fold, model=model: whole(model(fold)), fold, labels[60:])
        assert record.scores[0]["accuracy"] > 0.7, name
        assert record.scores[0]["log_loss"] < 0.8 * math.log(3), name


def test_costly_models_are_left_out_and_reported():
    assert baselines.costly(300, 3) == []
    assert baselines.costly(1797, 10) == ["RBF GP", "Matern GP"]
    large = TargetTable("t.csv", pl.DataFrame(), np.arange(2000) % 3, "classification", "", 2000)
    known, notes = comparison.models(large, {}, costly=False)
    assert "RBF GP" not in known
    assert "--all" in notes[0]
    assert len(comparison.models(large, {}, costly=True)[0]) == 7


def labelled(labels):
    return TargetTable("t.csv", pl.DataFrame(), np.array(labels), "classification", "", len(labels))


def test_each_class_is_in_the_training_rows_of_each_fold():
    target = np.array(["a"] * 30 + ["b"] * 2 + ["c"] * 3)
    for seed, folds in itertools.product(range(5), (2, 3, 5, 10)):
        for inside, _ in comparison.splits(labelled(target), folds, seed):
            assert set(target[inside]) == {"a", "b", "c"}


@pytest.mark.parametrize(
    ("labels", "folds", "remedy"),
    [
        (["a", "b"] * 4, 5, "5 folds need at least 10 rows, and there are 8; say --folds 4"),
        (["a"] * 20, 5, "one class, a"),
        (["a", "b"] * 10 + ["c", "d"], 5, "a single row has the class c, d"),
    ],
)
def test_folds_that_cannot_be_made_are_refused(labels, folds, remedy):
    with pytest.raises(ValueError, match=remedy):
        comparison.splits(labelled(labels), folds, 0)


def test_a_fold_is_standardised_by_its_training_rows():
    frame = table().drop("id", "label")
    known, _ = models.schema.learn(frame, target="y", task="regression")
    X, Z = comparison.standardise(known, frame[:30], frame[30:])
    np.testing.assert_allclose(X.mean(axis=0), 0, atol=1e-14)
    np.testing.assert_allclose(X.std(axis=0), 1, rtol=1e-12)
    assert np.abs(Z.mean(axis=0)).max() > 0.01


def test_probability_zero_is_an_infinite_loss_in_json():
    scores = comparison.score(ClassPrediction(np.array([[1.0, 0.0]])), np.array([1]))
    row = ModelScores("m", {name: np.array([value, 1.0]) for name, value in scores.items()}, np.ones(2), {}, ())
    document = comparison.row_document(row)
    assert document["log_loss"]["mean"] == "inf"
    json.dumps(document, allow_nan=False)


def test_the_library_is_distinguished_in_the_figure():
    assert set(benchmark_report.LIBRARY) - {"conv NNGP"} < set(baselines.regression({}))
    assert set(benchmark_report.LIBRARY) - {"conv NNGP"} < set(baselines.classification({}))


@pytest.mark.parametrize("command", ["fit", "predict", "benchmark"])
def test_the_documentation_names_every_option(command):
    page = (pathlib.Path(__file__).parents[1] / "docs" / "command_line.md").read_text()
    parameters = typer.main.get_command(app).commands[command].params
    options = {option for parameter in parameters for option in parameter.opts if option.startswith("--")}
    assert {"--json", "--quiet", "--debug", "--config"} < options
    assert {option for option in options if not re.search(rf"{option}\b", page)} == set()


def test_options_of_the_estimators_are_their_parameters():
    tables = (AverageParameters, ClassParameters, EnsembleParameters, RegressorParameters, WideParameters)
    names = set(by_name(*tables))
    names -= {"random_state", "verbose", "input_groups"}
    assert set(fit.PARAMETERS.options) == names
    assert all(option.default in (None, False) for option in fit.PARAMETERS.options.values())
    assert wl.NTKClassifier().alpha_epsilon == "auto"


def test_a_network_chosen_by_evidence_is_named(tmp_path):
    path, rng = tmp_path / "table.csv", np.random.default_rng(0)
    rows = rng.standard_normal((40, 3))
    rows[:, 2] = np.sin(rows[:, 0]) + 0.1 * rows[:, 2]
    np.savetxt(path, rows, delimiter=",", header="a,b,y", comments="")
    model = ("--estimator", "wide", "--activation", "erf", "--depth", 2, "--model", tmp_path / "m.npz")
    code, out, err = invoke("fit", path, "--target", "y", *model)
    assert code == 0, err
    assert "WideRegressor: kernel" in out
    assert "depth 2, activation erf" in out


@pytest.mark.parametrize("options", [["--noise", "0"], ["--time", "5"], ["--input-scales", "none"]])
def test_an_average_that_does_not_apply_is_refused(options, tmp_path):
    path = tmp_path / "table.csv"
    np.savetxt(path, np.random.default_rng(0).standard_normal((20, 3)), delimiter=",", header="a,b,y", comments="")
    code, _, err = invoke("fit", path, "--target", "y", "--model", tmp_path / "m.npz", "--average", *options)
    assert code == 2
    assert "--average is for" in err
