"""Images on the command line: arrays, folders of pictures, what is refused, and what is said."""

import json
import pathlib
import re

import numpy as np
import polars as pl
import pytest
from PIL import Image
from sklearn.datasets import load_digits

import widelimit as wl
from commands import invoke
from widelimit.cli import matrices, picture_models, picture_report, pictures, verification
from widelimit.cli.models import FitResult
from widelimit.cli.training_data import TargetTable

pytestmark = pytest.mark.usefixtures("short_searches")
DIGITS = load_digits(n_class=2)
X, Y = DIGITS.images[:60].astype(np.uint8), DIGITS.target[:60]
SMALL = X[:40, 2:6, 2:6]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Arrays, a folder of pictures by class, and a model of it."""
    path = tmp_path_factory.mktemp("pictures")
    np.savez(path / "small.npz", X_train=SMALL, y_train=Y[:40], X_test=X[40:, 2:6, 2:6], y_test=Y[40:])
    np.save(path / "X.npy", SMALL)
    np.save(path / "y.npy", Y[:40] / 7)
    for i, (image, label) in enumerate(zip(SMALL[:30], Y, strict=False)):
        (path / "classes" / ["zero", "one"][label]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image * 15).save(path / "classes" / ["zero", "one"][label] / f"{i}.png")
    result = invoke("fit", path / "classes", "--model", path / "classes.npz", "--depth", 1, "--json")
    assert result.exit_code == 0, result.stderr
    return path


def test_a_folder_by_class(folder):
    result = invoke("predict", folder / "classes.npz", folder / "classes", "--std")
    frame = pl.read_csv(result.stdout.encode())
    assert frame.columns == ["file", "class", "p_one", "p_zero"]
    assert "classes has the labels class; scores of the predictions: accuracy 1" in result.stderr
    assert (frame["file"].str.split("/").list[0] == frame["class"]).all()
    one = next((folder / "classes" / "one").iterdir())
    assert invoke("predict", folder / "classes.npz", one).stdout.splitlines()[1] == f"{one.name},one"


def test_arrays_of_npz(folder):
    model = folder / "small-model.npz"
    result = invoke("fit", folder / "small.npz", "--model", model, "--network", "convnet", "--depth", 1, "--json")
    document = json.loads(result.stdout)
    assert (document["rows"], document["image"], document["task"]) == (40, [4, 4, 1], "classification")
    assert "bytes" in document["notes"][0]
    result = invoke("predict", model, folder / "small.npz", "--std", "--json")
    found = json.loads(result.stdout)
    assert found["rows"] == 20  # of X_test
    assert found["scores"]["accuracy"] > 0.9
    loaded = wl.load(model)
    p = loaded.predict_proba(X[40:, 2:6, 2:6])
    assert np.allclose(p[:, 1], found["predictions"]["p_1"])


def test_the_task_of_labels():
    def task(*labels):
        return picture_models.decide_task(pathlib.Path("a.npz"), pl.Series("y", labels))[0]

    assert task(*range(20), *range(20)) == "classification"  # above 10 integers, that a table takes for numbers
    assert task(*range(20)) == "regression"
    assert task(0.5, 0.7, 0.9) == "regression"
    assert task("a", "b", "a") == "classification"


def test_regression_on_npy(folder):
    model, named = folder / "npy.npz", ["--target", folder / "y.npy", "--task", "regression"]
    (folder / "net.txt").write_text(repr(wl.convnet(inputs=wl.Image(4, 4, 1), depth=1, bias_std=0.1)))
    result = invoke("fit", folder / "X.npy", *named, "--model", model, "--network", folder / "net.txt", "--noise", 0.1)
    assert result.exit_code == 0, result.stderr
    assert "40 images of 4 x 4 x 1" in result.stdout
    out = pl.read_csv(invoke("predict", model, folder / "X.npy", "--std").stdout.encode())
    assert out.columns == ["y", "y_std"]
    assert (out["y_std"] > 0).all()


def test_benchmark_of_pictures(folder):
    result = invoke("benchmark", folder / "small.npz", "--folds", 2, "--depth", 1, "--json")
    document = json.loads(result.stdout)
    assert {row["model"] for row in document["models"]} == {"conv NNGP", "NNGP", "random forest", "SVM", "logistic"}
    assert document["inputs"] == 16


def test_pictures_of_every_kind(tmp_path):
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 255, (5, 4)).astype(np.uint8)
    modes = {
        "L": Image.fromarray(grey),
        "P": Image.fromarray(grey).convert("RGB").convert("P"),
        "RGB": Image.fromarray(np.stack([grey] * 3, -1)),
        "RGBA": Image.fromarray(np.stack([grey] * 4, -1)),
        "LA": Image.fromarray(grey).convert("LA"),
        "16": Image.fromarray(grey.astype(np.uint16) * 257),
    }
    for name, image in modes.items():
        image.save(tmp_path / f"{name}.png")
    found = pictures.read(tmp_path)
    assert found.shape == (5, 4, 3)
    assert found.target is None
    known = {"16": "16 bits", "alpha": "2 pictures have an alpha", "grey": "3 pictures are grey"}
    for text in known.values():
        assert any(text in note for note in found.notes), (text, found.notes)
    exact = [i for i, name in enumerate(found.names) if name != "P.png"]
    assert np.allclose(found.images[exact], grey[None, ..., None])


def test_grey_pictures_for_a_model_of_colours(tmp_path, folder):
    colours = np.stack([SMALL] * 3, -1)
    np.savez(tmp_path / "c.npz", X=colours, y=Y[:40])
    model = tmp_path / "m.npz"
    assert invoke("fit", tmp_path / "c.npz", "--model", model, "--depth", 1).exit_code == 0
    whole = invoke("predict", model, tmp_path / "c.npz", "--std").stdout
    assert invoke("predict", model, folder / "X.npy", "--std").stdout == whole


def write(path, kind):
    """Write something bad."""
    if kind == "sizes":
        for name, size in (("a", 4), ("b", 5)):
            (path / "in" / name).mkdir(parents=True)
            Image.fromarray(np.zeros((size, 4), np.uint8)).save(path / "in" / name / f"{name}.png")
        return path / "in"
    if kind == "small":
        return np.savez(path / "in.npz", X=np.zeros((4, 3, 3)), y=[0, 1, 0, 1]) or path / "in.npz"
    if kind in ("empty", "beside", "broken"):
        (path / "in" / "a").mkdir(parents=True)
        if kind != "empty":
            Image.fromarray(SMALL[0]).save(path / "in" / "a" / "1.png")
            (path / "in" / ("1.png" if kind == "beside" else "a/2.png")).write_bytes(b"no picture")
        return path / "in"
    arrays = {
        "first": {"X": np.zeros((5, 3, 8, 8)), "y": np.arange(5)},
        "nan": {"X": np.full((5, 3, 3, 1), np.nan), "y": np.arange(5)},
        "rows": {"X": np.zeros((5, 9)), "y": np.arange(5)},
        "labels": {"X": np.zeros((5, 3, 3)), "y": np.arange(4)},
        "no labels": {"X": np.zeros((5, 3, 3))},
        "no images": {"a": np.zeros((5, 3, 3))},
        "objects": {"X": np.array([None, 1])},
        "one": {"X": np.zeros((1, 3, 3)), "y": [0]},
    }
    np.savez(path / "in.npz", **arrays[kind])
    return path / "in.npz"


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("sizes", r"b.png: is 5 x 4 pixels, and a.png 4 x 4"),
        ("empty", r"no pictures"),
        ("beside", r"1.png: lies beside the subfolders"),
        ("broken", r"2.png: is no picture"),
        ("first", r"np.moveaxis"),
        ("nan", r"5 images hold NaN"),
        ("rows", r"are a table"),
        ("labels", r"labels of shape \(4,\)"),
        ("no labels", r"has no labels"),
        ("no images", r"no array X"),
        ("objects", r"no file of arrays"),
        ("one", r"at least 2"),
    ],
)
def test_bad_pictures_are_refused(tmp_path, kind, message):
    result = invoke("fit", write(tmp_path, kind), "--model", tmp_path / "m.npz")
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert re.search(message, result.stderr), result.stderr
    assert len(result.stderr) < 500
    assert not (tmp_path / "m.npz").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--estimator", "wide"], "say nngp or ntk"),
        (["--network", "alexnet"], "by name: convnet"),
        (["--network", "myrtle5", "--depth", "3"], "--depth is for"),
        (["--drop", "a"], "--drop is for the columns of tables"),
        (["--target", "labels"], "--target labels"),
    ],
)
def test_options_that_do_not_fit_images(folder, monkeypatch, options, message):
    monkeypatch.chdir(folder)
    result = invoke("fit", "small.npz", "--model", "never.npz", *options)
    assert result.exit_code == 2
    assert message in result.stderr


def test_models_and_data_that_do_not_fit(folder, tmp_path):
    np.save(tmp_path / "large.npy", np.zeros((3, 5, 5)))
    result = invoke("predict", folder / "classes.npz", tmp_path / "large.npy")
    assert result.exit_code == 2
    assert "(5, 5, 1)" in result.stderr
    pl.DataFrame({"a": [1.0, 2.0, 4.0], "y": [0.1, 0.3, 0.2]}).write_csv(tmp_path / "t.csv")
    assert invoke("predict", folder / "classes.npz", tmp_path / "t.csv").exit_code == 2
    options = ["--target", "y", "--model", tmp_path / "t.npz", "--estimator", "nngp", "--noise", 0.1]
    assert invoke("fit", tmp_path / "t.csv", *options).exit_code == 0
    assert "fitted to a table" in invoke("predict", tmp_path / "t.npz", folder / "X.npy").stderr


def test_a_report_shows_where_the_model_looks_and_its_worst_images(tmp_path):
    drawn = np.random.default_rng(0).normal(size=(60, 4, 4, 1))
    np.savez(tmp_path / "drawn.npz", X=drawn, y=drawn[:, 0, 3, 0])
    fit = ("fit", tmp_path / "drawn.npz", "--model", tmp_path / "m.npz", "--depth", 1)
    result = invoke(*fit, "--report", tmp_path / "r.html")
    assert result.exit_code == 0, result.stderr
    page = (tmp_path / "r.html").read_text()
    for text in (
        "60 images",
        "4 x 4 pixels",
        "importance of the parts",
        "coverage of intervals",
        "images with the larg",
    ):
        assert text in page
    data = pictures.read(tmp_path / "drawn.npz")
    table = TargetTable(tmp_path, pl.DataFrame(), data.target, "regression", "", 60)
    fitted = FitResult(table, data, wl.load(tmp_path / "m.npz"), tmp_path, 0.0)
    loss = picture_report.loss_of_parts(fitted, lambda model, X, y: model.score(X, y))
    assert np.unravel_index(loss.argmax(), loss.shape) == (0, 3)
    assert loss.max() > 3 * np.sort(loss.ravel())[-2]


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_damaged_arrays_are_one_line_for_every_command_that_reads_them(tmp_path, suffix):
    """400 files with one to three bytes changed: NumPy ends in 10 kinds of errors."""
    path, rng = tmp_path / f"a.{suffix}", np.random.default_rng(0)
    X = rng.normal(size=(3, 4, 4))
    np.save(path, X) if suffix == "npy" else np.savez_compressed(path, X_train=X)
    whole, refused = path.read_bytes(), 0
    for _ in range(400):
        raw = bytearray(whole)
        for place in rng.integers(0, min(len(raw), 140), rng.integers(1, 4)):
            raw[place] = rng.integers(256)
        path.write_bytes(raw)
        for read in (matrices.read_matrix, pictures.read, verification.read_mnist):
            try:
                read(path)
            except (ValueError, MemoryError) as error:
                refused += "can be read" in str(error) and "\n" not in str(error)
    assert refused > 300


def test_predict_names_a_model_that_does_not_fit_its_data(tmp_path):
    np.savez(tmp_path / "i.npz", X=np.random.default_rng(0).normal(size=(8, 2, 2)), y=np.arange(8.0))
    (tmp_path / "t.csv").write_text("a,y\n1,2\n2,3\n3,4\n")
    assert invoke("fit", tmp_path / "i.npz", "--model", tmp_path / "m.npz", "--depth", 1).exit_code == 0
    for model, rows, text in (
        ("m.npz", "t.csv", "m.npz: was fitted to images; give images, .npz, .npy or a folder."),
        ("none.npz", "i.npz", "none.npz: there is no such file"),
        ("none.npz", "t.csv", "none.npz: there is no such file"),
        ("", "i.npz", "is not a file; give the name of one."),
        ("", "t.csv", "is not a file; give the name of one."),
    ):
        code, _, err = invoke("predict", tmp_path / model, tmp_path / rows)
        assert (code, err.count("\n")) == (2, 1)
        assert text in err
