"""Saved models: the same bits in another process, and nothing but this library's own whole files is loaded."""

import copy
import gzip
import json
import pickle
import subprocess
import sys
import tracemalloc
import zipfile

import jax.numpy as jnp
import numpy as np
import pandas
import polars
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

import widelimit as wl
from widelimit.estimators import files, model_file, persistence
from widelimit.estimators.parameters import LATER

pytestmark = [
    *(pytest.mark.filterwarnings(f"ignore:{text}") for text in ("column .* repeats the target", "the search ended at")),
    pytest.mark.usefixtures("short_searches"),
]
RNG = np.random.default_rng(0)
X, Z = RNG.standard_normal((40, 3)), RNG.standard_normal((7, 3))
Y = np.column_stack([X[:, 0], 3 * X[:, 1]])
TEXT = np.array(["no", "yes", "perhaps"])[np.digitize(X[:, 0], [-0.5, 0.5])]
MODELS = {
    "nngp": (wl.NNGPRegressor(), Y[:, 0]),
    "ntk, two outputs, stopped": (wl.NTKRegressor(time=3.0, noise=0.1, normalize="sphere"), Y),
    "ntk, ensemble, tuned": (wl.NTKRegressor(ensemble=True, hyperparameters="leave_one_out"), Y[:, 0]),
    "ntk, conjugate gradients": (wl.NTKRegressor(solver="cg"), Y),
    "dirichlet": (wl.NNGPClassifier(depth=2), TEXT),
    "dirichlet of integers, erf": (wl.NTKClassifier(activation="erf"), (X[:, 0] > 0).astype(int)),
    "least squares of booleans": (wl.NTKClassifier(likelihood="least_squares"), X[:, 0] > 0),
    "text as objects": (wl.NNGPClassifier(), TEXT.astype(object)),
    "one class": (wl.NNGPClassifier(), np.full(40, "a")),
}
PREDICT = """
import sys, numpy as np, widelimit as wl
model, Z = wl.load(sys.argv[1]), np.load(sys.argv[2])
out = model.predict_proba(Z) if "Classifier" in type(model).__name__ else np.array(model.predict(Z, return_std=True))
np.save(sys.argv[3], out)
"""


def predictions(model):
    if isinstance(model, (wl.NNGPClassifier, wl.NTKClassifier)):
        return model.predict_proba(Z)
    return np.array(model.predict(Z, return_std=True))


@pytest.mark.parametrize("name", MODELS)
def test_a_loaded_model_is_the_saved_one(name, tmp_path):
    model, y = MODELS[name]
    model.fit(X, y)
    model.save(tmp_path / "m.npz")
    again = wl.load(tmp_path / "m.npz")
    assert type(again) is type(model)
    assert again.get_params() == model.get_params()
    np.testing.assert_array_equal(predictions(again), predictions(model))
    np.testing.assert_array_equal(again.predict(Z), model.predict(Z))
    assert again.predict(Z).dtype == model.predict(Z).dtype
    assert set(vars(again)) == set(vars(model))
    assert [p.name for p in tmp_path.iterdir()] == ["m.npz"]


def read_by_predictions(model):
    training = model.fitted_.training
    return {"X": training.X, "weights": training.weights, "coefficients": model.fitted_.coefficients}


@pytest.mark.parametrize("cls", [wl.NNGPRegressor, wl.NTKClassifier])
def test_predictions_read_arrays_of_one_form_in_a_fitted_and_in_a_loaded_model(cls, tmp_path):
    """Matrix products of 3 or more outputs round in another way for another order."""
    rng = np.random.default_rng(2)
    rows, new = rng.standard_normal((300, 5)), rng.standard_normal((150, 5))
    y = rows[:, :3] if "Regressor" in cls.__name__ else np.argmax(rows, axis=1)
    settings = {"noise": 0.1} if "Regressor" in cls.__name__ else {}
    model = cls(depth=2, **settings).fit(np.asfortranarray(rows), y)
    model.save(tmp_path / "m.npz")
    for again in (wl.load(tmp_path / "m.npz"), pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        for part in (new, new[:1], new[:107]):
            np.testing.assert_array_equal(again.fitted_.mean(part), model.fitted_.mean(part))
            np.testing.assert_array_equal(again.predict(part), model.predict(part))
        for name, array in read_by_predictions(again).items():
            assert array.flags.c_contiguous, name
            assert array.ctypes.data % 64 == 0, name
    for name, array in read_by_predictions(model).items():
        assert array.flags.c_contiguous, name
        assert array.ctypes.data % 64 == 0, name


@pytest.mark.parametrize(
    ("model", "later"),
    [
        (wl.NNGPRegressor(depth=2), {"depth": 5, "activation": "erf", "noise": 3.0, "normalize": None, "time": 1.0}),
        (wl.NTKRegressor(depth=2, noise=0.1), {"depth": -1, "activation": jnp.sin, "noise": "loud", "ensemble": True}),
        (wl.NNGPClassifier(depth=2), {"likelihood": "least_squares", "alpha_epsilon": 0.5, "noise": 0.3}),
        (wl.NTKClassifier(depth=2, likelihood="least_squares"), {"likelihood": "dirichlet", "weight_std": 9.0}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_saved_model_is_the_fitted_one_whatever_its_parameters_have_become(model, later, tmp_path):
    model = clone(model).fit(X, Y[:, 0] if "Regressor" in type(model).__name__ else TEXT)
    fitted, expected, answer = model.get_params(), predictions(model), model.predict(Z)
    model.set_params(**later)
    if "Regressor" in type(model).__name__:
        del model.fitted_.law  # made again when it is asked for, as it was fitted
    np.testing.assert_array_equal(predictions(model), expected)
    model.save(tmp_path / "m.npz")
    again = wl.load(tmp_path / "m.npz")
    assert again.get_params() == fitted
    np.testing.assert_array_equal(predictions(again), expected)
    np.testing.assert_array_equal(again.predict(Z), answer)
    again.set_params(**later).save(tmp_path / "n.npz")
    assert wl.load(tmp_path / "n.npz").get_params() == fitted


@pytest.mark.parametrize("cls", [wl.NNGPRegressor, wl.NTKClassifier])
def test_a_fit_that_fails_leaves_the_fit_that_was_there(cls, monkeypatch):
    model = cls(depth=2).fit(X, X[:, 0] > 0)
    expected = model.predict(Z)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cls, "_training", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.set_params(depth=3).fit(10 * X[:, :2], X[:, 1] > 1)
    np.testing.assert_array_equal(model.predict(Z), expected)
    assert model._fitted_with["depth"] == 2


@pytest.mark.parametrize("name", ["nngp", "dirichlet"])
def test_a_new_process_predicts_the_same_bits(name, tmp_path):
    model, y = MODELS[name]
    wl.save(model.fit(X, y), tmp_path / "m.npz")
    np.save(tmp_path / "z.npy", Z)
    paths = [str(tmp_path / p) for p in ("m.npz", "z.npy", "out.npy")]
    subprocess.run([sys.executable, "-c", PREDICT, *paths], check=True)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), predictions(model))


def test_names_and_extras_are_kept(tmp_path):
    import pandas

    table = pandas.DataFrame(X, columns=["a", "b", "c"])
    wl.save(wl.NNGPRegressor().fit(table, Y[:, 0]), tmp_path / "m.npz", extra={"target": "price", "levels": [1, None]})
    stored = persistence.read(tmp_path / "m.npz")
    assert stored.extra == {"target": "price", "levels": [1, None]}
    assert stored.model.feature_names_in_.tolist() == ["a", "b", "c"]
    stored.model.predict(table)
    with pytest.raises(ValueError, match="feature names"):
        stored.model.predict(table.rename(columns={"a": "z"}))


@pytest.mark.parametrize(
    "settings",
    [
        {"weight_std": np.float32(1.3), "bias_std": np.float16(0.1), "time": np.float32(np.inf)},
        {"weight_std": jnp.float32(1.3), "depth": np.array(2), "random_state": jnp.array(3)},
        {"noise": jnp.float32(0.1), "time": jnp.array(2.0), "depth": jnp.array(2), "bias_std": jnp.array(1)},
    ],
)
def test_scalars_of_numpy_and_jax_are_saved_as_numbers(settings, tmp_path):
    model = wl.NTKRegressor(**settings).fit(X, Y[:, 0])
    wl.save(model, tmp_path / "m.npz")
    loaded = wl.load(tmp_path / "m.npz")
    assert {name: getattr(loaded, name) for name in settings} == {
        name: value.item() for name, value in settings.items()
    }
    np.testing.assert_array_equal(loaded.predict(X), model.predict(X))


def test_what_cannot_be_saved(tmp_path):
    path = tmp_path / "m.npz"
    with pytest.raises(NotFittedError):
        wl.save(wl.NNGPRegressor(), path)
    fitted = wl.NNGPRegressor(activation=wl.LeakyRelu(0.3), noise=0.1).fit(X, Y)
    with pytest.raises(TypeError, match="only names can be stored"):
        wl.save(fitted, path)
    fitted._fitted_with["activation"] = jnp.sin  # as a fit with it would have it, which takes seconds
    with pytest.raises(TypeError, match="only names can be stored"):
        wl.save(fitted, path)
    with pytest.raises(TypeError, match="save takes NNGPRegressor"):
        wl.save(wl.NTKFeatures(3).fit(X), path)
    with pytest.raises(TypeError, match="extra must be of what JSON can hold"):
        wl.save(wl.NNGPRegressor().fit(X, Y), path, extra={"a": X})
    assert not list(tmp_path.iterdir())
    with pytest.raises(OSError, match="missing"):
        wl.save(wl.NNGPRegressor().fit(X, Y), tmp_path / "missing" / "m.npz")


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "m.npz"
    wl.save(wl.NNGPRegressor().fit(X, Y[:, 0]), path)
    return path


def parts(path):
    with np.load(path) as archive:
        return {key: archive[key] for key in archive.files}


def rewritten(path, *, header=None, forge=False, **arrays):
    """The file with some of its parts replaced; `forge` makes descriptions and checksum match."""
    content = parts(path) | arrays
    changed = json.loads(bytes(content.pop("header")).decode()) | (header or {})
    if forge:
        changed["arrays"] = {key: [a.dtype.str, list(a.shape)] for key, a in content.items()}
        changed["checksum"] = model_file.checksum(changed, content)
    np.savez(path, header=np.frombuffer(json.dumps(changed).encode(), np.uint8), **content)


class Trap:
    """Unpickling it leaves a mark."""

    def __reduce__(self):
        return (exec, ("import builtins; builtins.sprung = True",))


def test_a_truncated_file_is_refused_at_every_length(saved):
    whole = saved.read_bytes()
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 100, len(whole) - 1):
        saved.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"m.npz: (this is not a model|the file is truncated)"):
            wl.load(saved)


def test_a_flipped_byte_anywhere_is_refused_or_harmless(saved):
    whole, expected = saved.read_bytes(), wl.load(saved).predict(Z)
    refused = 0
    for place in np.linspace(0, len(whole) - 1, 200).astype(int):
        saved.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            loaded = wl.load(saved)
        except ValueError:
            refused += 1
        else:
            np.testing.assert_array_equal(loaded.predict(Z), expected)
    assert refused > 100


@pytest.mark.parametrize("key", ["X", "coefficients", "y_scale", "inputs.mean"])
def test_edited_numbers_are_refused(saved, key):
    rewritten(saved, **{key: parts(saved)[key] * 1.0000001})
    with pytest.raises(ValueError, match="checksum does not match"):
        wl.load(saved)


def test_edited_numbers_with_a_forged_checksum_are_validated(saved):
    arrays = parts(saved)
    for change in ({"X": arrays["X"][:-1]}, {"X": arrays["X"] * np.nan}, {"y": arrays["y"].astype(np.float32)}):
        rewritten(saved, forge=True, **change)
        with pytest.raises(ValueError, match="damaged or edited"):
            wl.load(saved)


@pytest.mark.parametrize(
    "header",
    [
        {"class": "os.system"},
        {"class": ["NNGPRegressor"]},
        {"parameters": {"depht": 3}},
        {"parameters": {"depth": "3"}},
        {"parameters": {"activation": "__import__('os')"}},
        {"parameters": None},
        {"state": {}},
        {"state": None},
        {"extra": 3},
    ],
)
def test_an_edited_header_is_refused(saved, header):
    whole = saved.read_bytes()
    for forge in (False, True):
        saved.write_bytes(whole)
        rewritten(saved, header=header, forge=forge)
        with pytest.raises(ValueError, match="damaged or edited"):
            wl.load(saved)


def test_a_changed_parameter_is_an_edit(saved):
    rewritten(saved, header={"parameters": {"noise": 0.5}})
    with pytest.raises(ValueError, match="checksum does not match"):
        wl.load(saved)


def test_a_newer_format_asks_for_an_upgrade(saved):
    rewritten(saved, header={"format": model_file.FORMAT + 1, "widelimit": "9.9"})
    with pytest.raises(ValueError, match=r"format 2, written by widelimit '9.9'.*Upgrade"):
        wl.load(saved)


HOSTILE = [
    *(None, True, False, -1, 0, 1, 3.5, 10**9, 10**400, 1e300, -1e300, 5e-324, float("nan"), float("inf"), -0.5),
    *("x", "", "auto", "object", "<U99999999", "__import__('os')", "\ud800", [], [[]], [1, "a"], [-1.0] * 3, {}),
    *({"float": "nan"}, {"float": "-inf"}, {"float": "x"}, {"float": "inf", "a": 1}, {"weight_std": 1, "bias_std": -1}),
    *({"network": "mlp(depth=2)"}, {"network": 3}),
]
"""Values of a forged field."""
POSITIVE = ("weights", "inputs.scale", "y_scale")
SMALL = {
    "regressor": (wl.NTKRegressor(depth=2, noise=0.1, input_scales=None), X[:12, 0]),
    "dirichlet": (wl.NNGPClassifier(depth=2, normalize=None, input_scales=None), TEXT[:12]),
    "least squares": (
        wl.NTKClassifier(depth=2, likelihood="least_squares", noise=0.3, input_scales=None),
        X[:12, 0] > 0,
    ),
    "one class": (wl.NNGPClassifier(input_scales=None), np.full(12, "a")),
    "network": (wl.NNGPRegressor(network=wl.mlp(depth=2, bias_std=0.1), noise=0.1, input_scales=None), X[:12, 0]),
}
VALID = {
    ("parameters", "time"): lambda value: type(value) in (int, float) and 0 <= value < np.inf,
    ("parameters", "depth"): lambda value: type(value) is int and value == 1,
    ("state", "scale"): lambda value: type(value) in (int, float) and value > 0,
    ("parameters", "ensemble"): lambda value: value is True,
    ("state", "single"): lambda value: value is False,
}
"""Another value that is as good as the one that was saved: no forgery that a check could see."""


def fields(header):
    """The paths of all fields in a header, except for the checksum."""
    for key, value in header.items():
        if key != "checksum":
            yield (key,)
        if isinstance(value, dict) and key not in ("arrays", "extra"):
            yield from ((key, *rest) for rest in fields(value))


def forged(path, header, arrays):
    """A file with these parts and a checksum that fits."""
    header = header | {"arrays": {key: [a.dtype.str, list(a.shape)] for key, a in arrays.items()}}
    header["checksum"] = model_file.checksum(header, arrays)
    np.savez(path, header=np.frombuffer(json.dumps(header).encode(), np.uint8), **arrays)


def loads_as(path, expected):
    """Whether the file loads, as a model that predicts so; a ValueError of one short line is a refusal."""
    try:
        model = wl.load(path)
    except ValueError as error:
        text = str(error)
    else:
        np.testing.assert_array_equal(predictions(model), expected)
        return True
    assert len(text) <= 400 + len(str(path)), text
    assert "\n" not in text
    return False


@pytest.mark.parametrize("name", SMALL)
def test_every_forged_field_is_refused_or_harmless(name, tmp_path):
    model, y = SMALL[name]
    path = tmp_path / "m.npz"
    wl.save(model.fit(X[:12], y), path)
    expected, arrays = predictions(model), parts(path)
    header = json.loads(bytes(arrays.pop("header")).decode())
    forged(path, header, arrays)
    assert loads_as(path, expected)
    for place in fields(header):
        for value in HOSTILE:
            if place in VALID and VALID[place](value):
                continue
            changed = copy.deepcopy(header)
            part = changed
            for key in place[:-1]:
                part = part[key]
            part[place[-1]] = value
            forged(path, changed, arrays)
            loads_as(path, expected)
        del part[place[-1]]
        forged(path, changed, arrays)
        assert not loads_as(path, expected) or place == ("arrays",) or place[-1] in LATER, place
        part["another"] = 1
        forged(path, changed | {"another": 1}, arrays)
        assert not loads_as(path, expected)


@pytest.mark.parametrize("name", SMALL)
def test_every_forged_array_is_refused(name, tmp_path):
    model, y = SMALL[name]
    path = tmp_path / "m.npz"
    wl.save(model.fit(X[:12], y), path)
    arrays = parts(path)
    header = json.loads(bytes(arrays.pop("header")).decode())
    for key, array in arrays.items():
        wrong = [array[:0], array[:-1], array[None], np.float64(1.0), array.astype(np.float32), array.astype(str)]
        wrong += [np.concatenate([array, array]), array + 0j, array.astype(">f8"), array.astype(np.uint8)]
        if array.dtype == np.float64:
            wrong += [np.full_like(array, np.nan), np.full_like(array, np.inf)]
        if key in POSITIVE:
            wrong += [-array, 0 * array]
        if key == "labels":
            wrong += [array - 1, array + 1, 0 * array]
        if key == "X":
            wrong += [1e200 * array]
        if key.startswith("inputs.") and model.normalize is None:
            wrong += [array + 1]
        for value in wrong:
            forged(path, header, arrays | {key: np.asarray(value)})
            assert not loads_as(path, None), (key, value)
        forged(path, header, {other: value for other, value in arrays.items() if other != key})
        assert not loads_as(path, None), key
    forged(path, header, arrays | {"another": X})
    assert not loads_as(path, None)


def test_random_bytes_are_refused_or_harmless(saved):
    whole, expected = saved.read_bytes(), predictions(wl.load(saved))
    rng = np.random.default_rng(5)
    for _ in range(150):
        damaged = np.frombuffer(whole, np.uint8).copy()
        start = int(rng.choice([0, len(whole) - 300, rng.integers(len(whole))]))
        places = start + rng.integers(0, 200, rng.integers(1, 4))
        damaged[places % len(whole)] = rng.integers(0, 256, len(places))
        saved.write_bytes(damaged.tobytes())
        loads_as(saved, expected)


def test_headers_that_overflow_the_reader_are_refused(saved):
    content = parts(saved)
    for text in (
        "[" * 200_000,
        '{"magic": "widelimit.model", "extra": ' + "[" * 900 + "]" * 900 + "}",
        "9" * 10_000,
        "NaN",
        '"\\ud800"',
    ):
        np.savez(saved, **(content | {"header": np.frombuffer(text.encode(), np.uint8)}))
        assert not loads_as(saved, None)


def huge_member(path, *, compressed):
    """An archive of 200 MB of zeros in 200 kB, or one whose array says that it is longer than the file."""
    head = (
        b"\x93NUMPY\x01\x00v\x00"
        + b"{'descr': '<f8', 'fortran_order': False, 'shape': (260000000,), }".ljust(117)
        + b"\n"
    )
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED) as archive:
        archive.writestr("header.npy", b"")
        with archive.open("X.npy", "w", force_zip64=True) as member:
            member.write(head)
            for _ in range(13 if compressed else 1):
                member.write(bytes(16_000_000 if compressed else 1000))


def test_little_is_decompressed(tmp_path):
    for compressed in (True, False):
        path = tmp_path / "m.npz"
        huge_member(path, compressed=compressed)
        tracemalloc.start()
        with pytest.raises(ValueError, match=r"m\.npz: the file is truncated or damaged"):
            wl.load(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2 * path.stat().st_size + 2**20


def written(path, content):
    path.write_bytes(content)
    return path


def test_a_file_that_is_no_model_is_called_by_its_name(tmp_path):
    table = pandas.DataFrame({"a": [1, 2], "b": ["x", "y"]})
    table.to_csv(tmp_path / "a.csv")
    table.to_json(tmp_path / "a.json")
    polars.DataFrame({"a": [1, 2]}).write_parquet(tmp_path / "a.parquet")
    np.savez(tmp_path / "a.npz", X=X)
    np.savez_compressed(tmp_path / "b.npz", X=X)
    np.save(tmp_path / "a.npy", X)
    (tmp_path / "folder").mkdir()
    with zipfile.ZipFile(tmp_path / "a.xlsx", "w") as archive:
        archive.writestr("xl/workbook.xml", "")
    for path, words in (
        (tmp_path / "a.csv", "a CSV file"),
        (tmp_path / "a.json", "a JSON file"),
        (tmp_path / "a.parquet", "a Parquet file"),
        (tmp_path / "a.npz", "a NumPy archive that holds no widelimit model"),
        (tmp_path / "b.npz", "a NumPy archive that holds no widelimit model"),
        (tmp_path / "a.npy", r"a NumPy array \(\.npy\)"),
        (tmp_path / "folder", "a folder"),
        (tmp_path / "a.xlsx", "an Excel workbook"),
        (written(tmp_path / "empty", b""), "an empty file"),
        (written(tmp_path / "zeros", bytes(1000)), "a file of zeros"),
        (written(tmp_path / "p.pkl", pickle.dumps(X)), "a pickle"),
        (written(tmp_path / "t.tsv", b"a\tb\n1\t2\n"), "a TSV file"),
        (written(tmp_path / "t.txt", b"hello\n"), "a text file"),
        (written(tmp_path / "i.png", b"\x89PNG\r\n\x1a\n" + bytes(99)), "an image"),
        (written(tmp_path / "z.gz", gzip.compress(b"a,b")), "a gzip archive"),
        (written(tmp_path / "r.bin", np.random.default_rng(0).bytes(999)), "a file of a kind unknown"),
    ):
        with pytest.raises(ValueError, match=f"not a model saved by widelimit.*but {words}"):
            wl.load(path)
    with pytest.raises(FileNotFoundError):
        wl.load(tmp_path / "none.npz")
    for bad in (None, 3, [saved], X):
        with pytest.raises(TypeError, match="path must be"):
            wl.load(bad)


def test_foreign_files_are_refused(tmp_path):
    path = tmp_path / "m.npz"
    np.savez(path, X=X)
    with pytest.raises(ValueError, match="not a model saved by widelimit"):
        wl.load(path)
    np.savez(path, header=np.arange(3.0))
    with pytest.raises(ValueError, match="not a model saved by widelimit"):
        wl.load(path)
    with path.open("wb") as stream:
        np.save(stream, X)
    with pytest.raises(ValueError, match="not a model saved by widelimit"):
        wl.load(path)
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="not a model saved by widelimit"):
        wl.load(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hello.txt", "hello")
    with pytest.raises(ValueError, match="not a model saved by widelimit"):
        wl.load(path)
    with pytest.raises(FileNotFoundError):
        wl.load(tmp_path / "none.npz")


def test_a_pickle_inside_is_never_opened(saved):
    import builtins

    content = parts(saved)
    np.savez(saved, **content, trap=np.array([Trap()], dtype=object))
    with pytest.raises(ValueError, match="pickled objects"):
        wl.load(saved)
    np.savez(saved, **{**content, "X": np.array([Trap()], dtype=object)})
    with pytest.raises(ValueError, match="pickled objects"):
        wl.load(saved)
    saved.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ValueError, match=r"m\.npz"):
        wl.load(saved)
    assert "sprung" not in vars(builtins)


@pytest.mark.parametrize("where", ["arrays", "restored"])
def test_a_lack_of_memory_is_no_damage(saved, monkeypatch, where):
    def full(*_):
        raise MemoryError("Unable to allocate 8 GiB")

    if where == "arrays":
        monkeypatch.setattr(files, "array", full)
    else:
        monkeypatch.setattr(persistence, "restore_model", full)
    with pytest.raises(MemoryError, match="8 GiB"):
        wl.load(saved)


def test_a_model_of_an_older_version_loads(tmp_path, monkeypatch):
    X = np.linspace(0, 1, 8)[:, None]
    model = wl.NNGPRegressor(noise=0.1, output_scale=1.0, input_scales=None).fit(X, X[:, 0])
    with monkeypatch.context() as before:
        before.setattr(model_file, "__version__", "0.1.0")
        wl.save(model, tmp_path / "old.npz")
    assert wl.__version__ != "0.1.0"
    np.testing.assert_array_equal(wl.load(tmp_path / "old.npz").predict(X), model.predict(X))
    monkeypatch.setattr(model_file, "FORMAT", 0)  # of the files that are read
    with pytest.raises(ValueError, match=r"has format 1, written by widelimit '?0\.1\.0"):
        wl.load(tmp_path / "old.npz")
