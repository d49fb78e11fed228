"""Estimators and commands that are given a network: the same fits, searches by name, files, and what is refused."""

import json
import pickle

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.utils import estimator_checks

import widelimit as wl
from commands import invoke
from test_persistence import forged
from widelimit.estimators import model_file
from widelimit.estimators.wide import kinds
from widelimit.inference import input_scales, scaled_evidence
from widelimit.inference.coordinates import numbers, with_numbers
from widelimit.inference.scaled_evidence import NetworkFamily
from widelimit.layers import Conv, Dense, Dropout, Flatten, Frozen, LayerNorm, Repeat, Residual

RNG = np.random.default_rng(0)
X, Z = RNG.standard_normal((40, 3)), RNG.standard_normal((7, 3))
Y = np.abs(X[:, 0]) + 0.1 * RNG.standard_normal(40)
DENSE = "Dense(weight_std=1.3, bias_std=0.1)"
TEXT = f"network(Dense(weight_std=1.3), Residual(Activate('relu'), {DENSE}), Dense())"
NET = wl.read_network(TEXT)
PLACES = ("layers[0]", "layers[1].branch[1]", "layers[2]")
NAMES = [f"{place}.{name}" for place in PLACES for name in ("weight_std", "bias_std")]
SEARCHED = [NAMES[0], NAMES[2], NAMES[3], NAMES[4]]
USUAL = wl.mlp(depth=3, weight_std=np.sqrt(2), bias_std=0.5)


def answers(model):
    return (
        model.predict_proba(Z) if "Classifier" in type(model).__name__ else np.stack(model.predict(Z, return_std=True))
    )


def targets(model):
    return X[:, 0] > 0 if "Classifier" in type(model).__name__ else Y


@pytest.mark.filterwarnings("ignore:the search ended at a bound")
@pytest.mark.parametrize(
    "name",
    [
        *("parameters_default_constructible", "no_attributes_set_in_init", "get_params_invariance", "set_params"),
        *("estimators_overwrite_params", "dict_unchanged", "estimators_pickle", "fit_idempotent"),
    ],
)
def test_scikit_learn_checks_of_parameters(name):
    model = wl.NNGPRegressor(network=USUAL)
    getattr(estimator_checks, f"check_{name}")("NNGPRegressor", model)


@pytest.mark.parametrize(
    "model",
    [
        *(
            wl.NNGPRegressor(input_scales=None),
            wl.NTKRegressor(ensemble=True, time=3.0, input_scales=None),
            wl.NTKClassifier(input_scales=None),
            wl.NTKRegressor(solver="cg", input_scales=None),
        ),
    ],
    ids=lambda model: type(model).__name__,
)
def test_a_given_network_fits_as_its_parameters_do(model):
    model = clone(model).fit(X, targets(model))
    given, other = wl.mlp(depth=3, weight_std=model.weight_std, bias_std=model.bias_std), wl.mlp(depth=3)
    again = clone(model).set_params(network=given).fit(X, targets(model))
    np.testing.assert_array_equal(answers(again), answers(model))
    assert not np.allclose(
        answers(clone(again).set_params(network=other).fit(X, targets(model))), answers(model), rtol=1e-3
    )
    assert repr(again.network_) == repr(model.network_) == repr(given)
    assert model.hyperparameters_ == {"weight_std": model.weight_std, "bias_std": model.bias_std}
    assert list(again.hyperparameters_)[2:] == ["layers[1].block[1].weight_std", "layers[1].block[1].bias_std"]


def test_features_take_a_network():
    again = wl.NTKFeatures(5, network=USUAL).fit(X).transform(Z)
    np.testing.assert_array_equal(again, wl.NTKFeatures(5).fit(X).transform(Z))
    assert not np.allclose(again, wl.NTKFeatures(5, network=NET).fit(X).transform(Z))


@pytest.mark.parametrize("objective", ["marginal_likelihood", "leave_one_out"])
def test_a_search_improves_the_numbers_of_the_network_by_name(objective):
    model = wl.NNGPRegressor(network=NET, hyperparameters=objective).fit(X, Y)
    found = model.hyperparameters_
    assert list(found) == NAMES
    assert [found[name] for name in NAMES if name not in SEARCHED] == [0.0, 0.0]  # what is 0 stays
    assert all(found[name] not in (1.0, 1.3, 0.1) for name in SEARCHED)
    assert model.network_ == with_numbers(NET, found)
    assert model.weight_std_ is None

    def score(net):
        law = wl.posterior(wl.nngp(net), model.X_train_, model.y_train_, noise=model.noise_)
        left = law.leave_one_out()
        variance = left.variance[:, None] + model.noise_
        density = -((model.y_train_ - left.mean) ** 2 / variance + np.log(2 * np.pi * variance)) / 2
        return law.log_marginal_likelihood() if objective == "marginal_likelihood" else np.sum(density)

    best = score(model.network_)
    assert score(NET) < best - 0.1
    for name in SEARCHED:
        moved = [score(with_numbers(model.network_, {name: factor * found[name]})) for factor in (0.2, 5.0)]
        assert max(moved) < best + 0.1, name
    assert "hyper-parameters: net.first.weight_std" in model.fitted_.law.explain()
    assert f"net.{NAMES[2]} {found[NAMES[2]]:.4g}" in model.fitted_.law.explain()


def test_a_repeated_block_is_one_number():
    net = wl.network(Dense(bias_std=0.1), Repeat([Residual("relu", Dense())], 2), Dense())
    found = wl.NNGPRegressor(network=net, hyperparameters="marginal_likelihood").fit(X, Y).hyperparameters_
    changed = {name for name, value in numbers(net).items() if found[name] != value}
    assert changed == {
        *("layers[0].weight_std", "layers[0].bias_std"),
        *("layers[1].block[0].branch[1].weight_std", "layers[2].weight_std"),
    }


D = X.shape[1]


def test_the_objective_with_scales_is_that_of_the_library_and_has_its_gradient():
    """Rows that fill up a program are 0, where a network without a first bias has no correlation."""
    family, scales = NetworkFamily("nngp", NET), np.array([1.0, 0.5, 2.0])
    rows = scaled_evidence.padded(X, Y[:, None], np.ones(len(X)), np.arange(D))
    values = dict(zip(family.numbers, np.linspace(0.4, 1.6, len(family.numbers)), strict=True))
    spare = np.zeros(scaled_evidence.COLUMNS - D)
    z = np.concatenate([np.log(scales), spare, np.log([*values.values(), 1.7, 0.05])])
    kernel = 1.7 * wl.scale_inputs(wl.nngp(with_numbers(NET, values)), scales)
    value, slope = scaled_evidence.value_and_gradient(family, "marginal_likelihood", D, rows, z)
    assert value == pytest.approx(wl.posterior(kernel, X, Y, noise=0.05).log_marginal_likelihood(), rel=1e-10)
    assert abs(value - wl.posterior(kernel, X, Y, noise=0.0501).log_marginal_likelihood()) > 1e-4
    for i in (*range(D), *range(scaled_evidence.COLUMNS, len(z))):
        h = 1e-5 * np.eye(len(z))[i]
        ends = [
            scaled_evidence.value_and_gradient(family, "marginal_likelihood", D, rows, z + sign * h)[0]
            for sign in (1, -1)
        ]
        assert slope[i] == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-4, abs=1e-5)


@pytest.fixture
def few_steps(monkeypatch):
    for name in ("RACE_STEPS", "STEPS"):
        monkeypatch.setattr(input_scales, name, 6)


@pytest.mark.usefixtures("few_steps")
@pytest.mark.filterwarnings("ignore:the search ended at a bound")
@pytest.mark.parametrize(
    "model",
    [
        *(wl.WideRegressor(network=NET, kernel="nngp"), wl.WideRegressor(network=NET, kernel="ntk")),
        *(wl.NTKRegressor(network=NET, input_scales="agop"), wl.WideClassifier(network=NET, kernel="nngp")),
    ],
    ids=["nngp", "ntk", "agop", "classes"],
)
def test_scales_are_learned_with_a_network_and_kept_in_files(model, tmp_path):
    model = clone(model).fit(X, targets(model))
    scales = 1 / model.inputs_.scale * X.std(axis=0)
    assert scales[0] > 1.3 * max(scales[1:])
    assert np.ptp(1 / wl.NNGPRegressor(network=NET).fit(X, Y).inputs_.scale * X.std(axis=0)) < 1e-12
    if hasattr(model, "family_"):
        assert model.family_ in (NetworkFamily("nngp", NET), NetworkFamily("ntk", NET))
    model.save(tmp_path / "m.npz")
    for again in (wl.load(tmp_path / "m.npz"), pickle.loads(pickle.dumps(model))):
        np.testing.assert_array_equal(answers(again), answers(model))
        assert again.get_params() == model.get_params()
        assert again.network_ == model.network_
    if isinstance(model, wl.WideRegressor):  # no network of one fit stays in the next
        assert model.set_params(network=None, activation="erf", depth=2)._own_design().family == (
            model.kernel,
            "erf",
            2,
        )


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"network": TEXT}, TypeError, "wl.read_network makes one of a text"),
        ({"network": Dense()}, TypeError, "network must be a network"),
        ({"network": NET, "depth": 2}, ValueError, "leave depth at its default, 3"),
        ({"network": NET, "activation": jnp.tanh}, ValueError, "leave activation at its default, 'relu'"),
        ({"network": NET, "weight_std": 1.0}, ValueError, "leave weight_std at its default"),
        ({"network": NET, "bias_std": np.ones(3)}, ValueError, "leave bias_std at its default"),
        ({"network": wl.mlp(depth=3, activation="sign")}, ValueError, "no neural tangent kernel"),
        ({"network": wl.mlp(depth=3, parameterization="mean_field")}, ValueError, "mean"),
        ({"network": wl.network(Frozen(Dense()), "relu", Frozen(Dense()))}, ValueError, "all layers .* are Frozen"),
        (
            {"network": wl.network(Conv(3), "relu", Flatten(), Dense(), inputs=wl.Image(4, 1))},
            ValueError,
            "an image of the network has",
        ),
        ({"network": wl.network(Dense(1e150), "relu", Dense(1e100))}, ValueError, "is (inf|nan) at row.* down"),
    ],
)
def test_what_does_not_go_with_a_network_is_refused(settings, error, words):
    with pytest.raises(error, match=words) as caught:
        wl.NTKRegressor(**settings).fit(X, Y)
    assert len(str(caught.value)) < 400


def test_a_network_without_a_tangent_kernel_leaves_its_other_one():
    net = wl.mlp(depth=2, activation="sign")
    assert (kinds(net), kinds(NET)) == (("nngp",), ("nngp", "ntk"))
    with pytest.raises(ValueError, match="no neural tangent kernel"):
        wl.WideRegressor(network=net, kernel="ntk").fit(X, Y)


DROPPED = [wl.LeakyRelu(1 / 3), LayerNorm(), Dense(0.1 + 0.2, 1 / 3)]
TREES = {
    "dropout": wl.network(Dense(1.3), Repeat([Residual(*DROPPED)], 3), Dense(), Dropout(0.9), Dense()),
    "tied": wl.mlp(depth=3, weight_std=jnp.float32(1.1), parameterization="standard"),
}


@pytest.mark.parametrize("name", TREES)
def test_any_tree_is_saved_as_text(name, tmp_path):
    model = wl.NNGPRegressor(network=TREES[name]).fit(X, Y)
    model.save(tmp_path / "m.npz")
    again = wl.load(tmp_path / "m.npz")
    np.testing.assert_array_equal(answers(again), answers(model))
    header = model_file.contents(tmp_path / "m.npz")[0]
    assert header["parameters"]["network"] == {"network": repr(TREES[name])} == header["state"]["design"]


def test_a_function_cannot_be_saved(tmp_path):
    model = wl.NNGPRegressor(network=NET, noise=0.1).fit(X, Y)
    model._fitted_with["network"] = wl.network(Dense(), jnp.sin, Dense())  # as a fit with it, which takes seconds
    with pytest.raises(TypeError, match=r"layers\[1\]: .* cannot be written as text"):
        model.save(tmp_path / "m.npz")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "text",
    [
        *("mlp(depth=1000000000)", TEXT.replace("1.3", "-1"), TEXT.replace("1.3", "1e999"), TEXT.replace("1.3", "nan")),
        *("__import__('os').system('touch planted')", TEXT.replace("relu", "erf"), TEXT.replace("0.1", "0.2")),
        *(TEXT + " " * 2_000_000, "Dense()", "", None, 3, ["x"]),
        "network(Dense(), Repeat(['relu', Dense()], times=1000000000), Dense())",
    ],
    ids=range(14),
)
@pytest.mark.parametrize("place", ["parameters", "state"])
def test_forged_texts_are_refused(text, place, forgeable, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    header, arrays = json.loads(json.dumps(forgeable[0])), forgeable[1]
    header[place]["network" if place == "parameters" else "design"] = {"network": text}
    forged(tmp_path / "m.npz", header, arrays)
    with pytest.raises(ValueError, match="damaged or edited"):
        wl.load(tmp_path / "m.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["m.npz"]


def test_a_search_changes_numbers_of_the_network_alone(forgeable, tmp_path):
    header, arrays = json.loads(json.dumps(forgeable[0])), forgeable[1]
    header["parameters"]["hyperparameters"] = "marginal_likelihood"
    header["state"]["design"] = {"network": TEXT.replace("1.3", "2.5")}
    forged(tmp_path / "m.npz", header, arrays)
    assert wl.load(tmp_path / "m.npz").hyperparameters_[NAMES[2]] == 2.5
    header["state"]["design"] = {"network": TEXT.replace("relu", "erf")}
    forged(tmp_path / "m.npz", header, arrays)
    with pytest.raises(ValueError, match="another network than was given"):
        wl.load(tmp_path / "m.npz")


@pytest.fixture(scope="module")
def forgeable(tmp_path_factory):
    path = tmp_path_factory.mktemp("forged") / "m.npz"
    wl.NNGPRegressor(network=NET, noise=0.1, input_scales=None).fit(X, Y).save(path)
    header, arrays = model_file.contents(path)
    forged(path, header, arrays)
    assert wl.load(path).network == NET  # the forger's file without a forgery is taken
    return header, arrays


@pytest.fixture
def folder(tmp_path):
    np.savetxt(tmp_path / "t.csv", np.column_stack([X, Y]), delimiter=",", header="a,b,c,y", comments="")
    (tmp_path / "net.txt").write_text(f"# mine\nwl.{TEXT}\n")
    return tmp_path


def test_commands_read_the_network_of_a_file(folder):
    fit = ["fit", folder / "t.csv", "--target", "y", "--estimator", "nngp", "--model", folder / "m.npz"]
    code, out, err = invoke(*fit, "--network", folder / "net.txt", "--json")
    assert code == 0, err
    chosen = json.loads(out)["chosen"]
    assert chosen["network"] == TEXT
    assert list(chosen)[1:7] == NAMES
    np.testing.assert_array_equal(
        wl.load(folder / "m.npz").predict(np.loadtxt(folder / "t.csv", delimiter=",", skiprows=1)[:, :3]),
        wl.NNGPRegressor(network=NET).fit(X, Y).predict(X),
    )
    kernel = ["kernel", folder / "t.csv", "--drop", "y", "--out", folder / "k.zarr", "--network", folder / "net.txt"]
    assert invoke(*kernel).exit_code == 0
    import zarr

    np.testing.assert_allclose(zarr.open_array(folder / "k.zarr", mode="r")[:], wl.ntk(NET).gram(X), rtol=1e-12)


@pytest.mark.parametrize(
    ("content", "more", "words"),
    [
        (TEXT, ["--depth", 3], "--depth does not apply beside --network"),
        (TEXT, ["--bias-std", 0.5], "--bias-std does not apply beside --network"),
        (None, [], "cannot be read"),
        ("network(Dense(), os.x)", [], "line 1, column 18: 'os.x' is no value"),
        ("", [], "line 1, column 1"),
        (b"\xff\xfe\x00", [], "is no text of UTF-8"),
        (b" " * 5_000_000, [], "has at most 1048576 characters"),
    ],
)
@pytest.mark.parametrize("command", ["fit", "kernel", "benchmark"])
def test_a_mistake_beside_a_network_is_one_line(command, content, more, words, folder):
    path = folder / "other.txt"
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    own = {"fit": ["--target", "y", "--model", folder / "m.npz"], "benchmark": ["--target", "y"]}
    own["kernel"] = ["--drop", "y", "--out", folder / "k.zarr"]
    code, out, err = invoke(command, folder / "t.csv", *own[command], "--network", path, *more)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert words in err
    assert not (folder / "m.npz").exists()
    assert not (folder / "k.zarr").exists()
