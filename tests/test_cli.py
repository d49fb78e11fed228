import itertools
import json
import math
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from sklearn.gaussian_process.kernels import RBF
from sklearn.linear_model import Ridge

from commands import invoke, listening
from widelimit.cli import app as cli
from widelimit.cli import baselines, scores, terminal
from widelimit.cli import demonstration as demo
from widelimit.cli.baselines import Fold, GaussianPrediction, one_hot
from widelimit.cli.comparison import ModelScores, SplitData, compare
from widelimit.inference.class_probabilities import largest_probability
from widelimit.messages import did_you_mean
from widelimit.writing import atomic_write

SMALL = {"diabetes": 172, "digits": 130}
HEAVY = {"jax", "numpy", "scipy", "sklearn", "matplotlib", "polars", "rich", "tomllib"}


@pytest.fixture(scope="module")
def small_demo(tmp_path_factory):
    """`widelimit demo --json` on parts of the data sets: the command's result and its figure."""
    figure = tmp_path_factory.mktemp("demo") / "figure.png"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "SETS", SMALL)
        return invoke("demo", "--json", "--out", figure), figure


@pytest.fixture
def quick(monkeypatch):
    """A demo with one model on one small data set."""
    monkeypatch.setattr(demo, "SETS", {"diabetes": SMALL["diabetes"]})
    monkeypatch.setattr(demo, "REGRESSION", {"ridge": baselines.ridge})


# --- the commands


def test_demo_json_is_complete(small_demo):
    result, figure = small_demo
    assert (result.exit_code, result.stderr) == (0, "")
    document = json.loads(result.stdout)
    assert document["figure"] == str(figure)
    assert document["network"]["activation"] == "relu"
    assert [d["name"] for d in document["datasets"]] == ["diabetes", "digits"]
    known = [("rmse", demo.REGRESSION), ("accuracy", demo.CLASSIFICATION)]
    for dataset, (score, models) in zip(document["datasets"], known, strict=True):
        assert [m["model"] for m in dataset["models"]] == list(models)
        for model in dataset["models"]:
            numbers = [model[key] for key in (score, "nlpd", "coverage_95", "seconds")]
            assert all(math.isfinite(number) for number in numbers)
            assert 0 <= model["coverage_95"] <= 1
            assert model["chosen"]


def test_demo_models_are_sane(small_demo):
    diabetes, digits = ({m["model"]: m for m in d["models"]} for d in json.loads(small_demo[0].stdout)["datasets"])
    problem = demo.load("diabetes", seed=0, size=SMALL["diabetes"])
    known, truth = (problem.target[rows] for rows in problem.splits[0])
    constant = scores.gaussian_nlpd(known.mean(), known.std(), truth)
    for name in ("NNGP", "NTK-GP", "NTK ensemble"):
        assert diabetes[name]["rmse"] < 0.95 * truth.std()
        assert diabetes[name]["nlpd"] < constant
        assert diabetes[name]["coverage_95"] > 0.7
        assert digits[name]["accuracy"] > 0.85
        assert digits[name]["nlpd"] < 0.25 * math.log(10)
        assert digits[name]["coverage_95"] > 0.9
    assert digits["conv NNGP"]["accuracy"] > 0.9
    assert digits["conv NNGP"]["nlpd"] < 0.15 * math.log(10)


def test_demo_figure_is_a_picture(small_demo):
    picture = small_demo[1].read_bytes()
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    assert picture.endswith(b"IEND\xaeB`\x82")
    assert len(picture) > 30_000
    assert [p.name for p in small_demo[1].parent.iterdir()] == ["figure.png"]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("suffix", ["pdf", "SVG"])
def test_demo_table(tmp_path, suffix):
    figure = tmp_path / f"figure.{suffix}"
    result = invoke("demo", "--out", figure)
    assert (result.exit_code, result.stderr) == (0, "")
    assert "diabetes: regression, 120 training and 52 test points, 10 inputs" in result.stdout
    assert re.search(r"ridge +\d+\.\d +\d\.\d{3} +[01]\.\d{3} +0\.\d +alpha \d+", result.stdout)
    assert f"Figure: {figure}" in result.stdout
    assert {"pdf": b"%PDF", "SVG": b"<?xml"}[suffix] == figure.read_bytes()[: 4 if suffix == "pdf" else 5]


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("missing/figure.png", "mkdir -p"),
        ("figure.gif", ".png, .pdf, .svg"),
        ("figure", ".png, .pdf, .svg"),
        ("folder.png", "name of a file"),
    ],
)
def test_demo_refuses_a_bad_path_at_once(tmp_path, monkeypatch, name, remedy):
    monkeypatch.setattr(demo, "run", lambda **_: pytest.fail("the work began before the path was checked"))
    (tmp_path / "folder.png").mkdir()
    result = invoke("demo", "--out", tmp_path / name)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith(f"widelimit: --out {tmp_path / name}")
    assert remedy in result.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["folder.png"]


def test_demo_reports_a_full_disk_in_one_line(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(demo, "draw", full)
    result = invoke("demo", "--out", tmp_path / "figure.png")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "widelimit: failed: [Errno 28] No space left on device\n"


@pytest.mark.usefixtures("quick")
def test_interrupt_while_writing_leaves_the_old_file(tmp_path, monkeypatch):
    class Figure:
        def savefig(self, stream, **_):
            stream.write(b"half a picture")
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(demo.plots, "learning", lambda *_: Figure())
    figure = tmp_path / "figure.png"
    figure.write_bytes(b"old")
    with listening():
        result = invoke("demo", "--out", figure)
    assert (result.exit_code, result.stderr) == (130, "widelimit: interrupted.\n")
    assert figure.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [figure]


def test_interrupt_in_a_model_leaves_a_whole_figure(tmp_path, monkeypatch):
    def interrupted(*_):
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(demo, "REGRESSION", {"slow": interrupted})
    with listening():
        result = invoke("demo", "--out", tmp_path / "figure.png")
    assert result == (130, "", "widelimit: interrupted.\n")
    assert [p.name for p in tmp_path.iterdir()] == ["figure.png"]


def test_whole_file_replaces_or_leaves(tmp_path):
    path = tmp_path / "data"
    with atomic_write(path) as stream:
        stream.write(b"first")
        assert not path.exists()
    with pytest.raises(TypeError, match="bytes-like"), atomic_write(path) as stream:
        stream.writelines([b"second", 3])
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (["fit"], "Missing argument 'TABLE'. (see widelimit fit --help)"),
        (["fit", "a.csv", "--model", "m.npz"], "Missing option '--target'."),
        (["fti"], "Did you mean 'fit'? (see widelimit --help)"),
        (["demo", "--figure", "a.png"], "No such option: --figure"),
        (["demo", "--seed", "-1"], "'--seed'"),
        (["demo", "--seed", "x"], "'--seed'"),
        (["fit", "a.csv", "--target", "y", "--model", "m.npz", "--noise", "loud"], "a number or auto, not 'loud'"),
        (["fit", "a.csv", "--target", "y", "--model", "m.npz", "--task", "guess"], "'--task'"),
    ],
)
def test_bad_usage_is_one_line_and_exits_2(arguments, remedy):
    code, out, err = invoke(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("widelimit: ")
    assert err.count("\n") == 1
    assert remedy in err


def test_no_command_prints_the_help():
    code, _, err = invoke()
    assert code == 2
    assert "benchmark" in err


def test_version():
    result = invoke("--version")
    assert result.exit_code == 0
    assert result.stdout == f"widelimit {cli.version()}\n"


def test_info():
    facts = json.loads(invoke("info", "--json").stdout)
    assert facts["numpy"] == np.__version__
    assert {"abs", "erf", "relu", "tanh"} <= set(facts["activations"])
    assert facts["cores"] >= 1
    assert facts["memory_available_bytes"] > 2**20
    assert facts["devices"]
    assert all(blas["version"] for blas in facts["blas"])
    result = invoke("info")
    assert (result.exit_code, result.stderr) == (0, "")
    for expected in (np.__version__, "leaky_relu", "GiB", *facts["devices"]):
        assert expected in result.stdout


def test_help_is_quick_and_loads_nothing_heavy():
    code = "import sys, widelimit.cli.app; print(*{m.partition('.')[0] for m in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert "typer" in loaded.split()
    assert not HEAVY & set(loaded.split())
    seconds = []
    for _ in range(5):
        start = os.times()
        command = [sys.executable, "-m", "widelimit", "--help"]
        shown = subprocess.run(command, check=True, capture_output=True, text=True)
        end = os.times()  # time of the processor: a machine with other work to do delays the help, but not this figure
        seconds.append(end.children_user + end.children_system - start.children_user - start.children_system)
    assert "demo" in shown.stdout
    assert min(seconds) < 0.3, seconds


@pytest.mark.parametrize(
    ("arguments", "near"),
    [
        (["fti"], "Did you mean 'fit'?"),
        (["fit", "--targt", "y"], "--target"),
        (
            ["fit", "t.csv", "--target", "Colour", "--model", "m.npz"],
            "no such column; the table has a, colour; did you",
        ),
        (["kernel", "t.csv", "--drop", "coluor", "--out", "K"], "it has a, colour; did you mean 'colour'?"),
        (["kernel", "x.npy", "--out", "K", "--activation", "ReLu"], "did you mean 'relu'?"),
        (["verify", "--only", "gram_matrix"], "verify --list); did you mean 'gram_matrices'?"),
    ],
)
def test_a_name_that_is_nearly_right_is_named(tmp_path, monkeypatch, arguments, near):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.csv").write_text("a,colour\n1,2\n2,1\n3,3\n")
    np.save("x.npy", np.eye(2))
    code, _, err = invoke(*arguments)
    assert (code, err.count("\n")) == (2, 1)
    assert near in err
    assert len(err) < 400


def test_only_near_names_are_suggested():
    assert did_you_mean("Relu", ["selu", "relu"]) == "; did you mean 'relu'?"
    assert did_you_mean("tahn", ["cos", "tanh"]) == "; did you mean 'tanh'?"
    assert did_you_mean("polynomial", ["cos", "tanh"]) == "."
    assert did_you_mean("a", []) == "."


def test_shells_complete_commands_and_options(monkeypatch):
    monkeypatch.setenv("_WIDELIMIT_COMPLETE", "complete_bash")
    for words, place, found in (("widelimit f", 1, "fit"), ("widelimit fit --mod", 2, "--model")):
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(place))
        assert invoke()[:2] == (0, f"{found}\n")


# --- the report


def test_tables_fit_80_columns_and_progress_prints_nothing_off_a_terminal(capsys):
    scores = {"rmse": 123.4, "accuracy": 0.999, "nlpd": 9.123, "coverage_95": 1.0, "set_size": 1.0}
    chosen = {"noise": 9.5e-7, "scale": 0.062, "t": 1e5}
    tables = []
    for name, size in demo.SETS.items():
        problem = demo.load(name, seed=0, size=size)
        values = {score: np.array([scores[score]]) for score in demo.SCORES[problem.task]}
        seconds, remarks = np.array([123.4]), ("a remark " * 20,)
        rows = [ModelScores(model, values, seconds, chosen, remarks) for model in demo.models(problem)]
        tables.append(demo.DemoTable(name, problem, rows))
    demo.show(demo.DemoResult(0, tuple(tables), "figure.png", 12.0))
    printed = capsys.readouterr().out
    assert max(len(line) for line in printed.splitlines()) <= 80
    assert printed.count("noise 9.5e-7, scale 0.062, t 1e5") == len(demo.REGRESSION) + len(demo.CLASSIFICATION)
    assert all(f"{name}:" in printed for name in {**demo.REGRESSION, **demo.CLASSIFICATION})
    for quiet in (False, True):
        with terminal.progress(2, "steps", quiet=quiet) as advance, terminal.busy_bar("text", quiet=quiet):
            advance("one")
            advance("two")
        assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.394, "0.39"), (500.0, "500"), (1e5, "1e5"), (9.54e-7, "9.5e-7"), (math.inf, "inf"), (10.0, "10"), (0.1, "0.1")],
)
def test_short(value, text):
    assert terminal.short(value) == text


def test_infinite_time_in_json():
    row = ModelScores("m", {}, np.zeros(1), {"t": math.inf, "noise": 1.0}, ())
    assert json.loads(json.dumps(demo.row_document(row), allow_nan=False))["chosen"] == {"t": "inf", "noise": 1.0}


# --- data


@pytest.mark.parametrize("name", demo.SETS)
def test_split_uses_training_statistics_only(name):
    size = demo.SETS[name]
    problem, again, other = (demo.load(name, seed=seed, size=size) for seed in (0, 0, 1))
    inside, outside = problem.splits[0]
    np.testing.assert_array_equal(outside, again.splits[0][1])
    assert not np.array_equal(outside, other.splits[0][1])
    assert len(outside) == math.ceil(0.3 * size)
    assert sorted([*inside, *outside]) == list(range(size))
    X, Z = problem.standardise(inside, outside)
    eps = np.finfo(float).eps
    assert np.abs(X.mean(axis=0)).max() < size * eps
    assert abs((X**2).mean() - 1) < size * eps
    # The spread of a test set's mean is about 1/sqrt(m): were it standardised by itself it would be 0.
    assert np.abs(Z.mean(axis=0)).max() > 0.01


# --- scores


@pytest.fixture
def gaussians():
    rng = np.random.default_rng(0)
    mean, sd = rng.normal(size=4000), rng.uniform(0.1, 2, 4000)
    return mean, sd, rng.normal(mean, sd)


def test_scores_without_noise_are_infinite_and_quiet(recwarn):
    mean, sd = np.array([1.0, 2.0]), np.array([0.0, 1.0])
    assert scores.gaussian_nlpd(mean, sd, mean) == -math.inf
    assert scores.gaussian_nlpd(mean, sd, mean + 1) == math.inf
    assert math.copysign(1, scores.class_nlpd(np.zeros((2, 1)), np.array([0, 0]))) == 1
    assert not recwarn.list


def test_gaussian_nlpd(gaussians):
    mean, sd, y = gaussians
    expected = -scipy.stats.norm.logpdf(y, mean, sd).mean()
    assert scores.gaussian_nlpd(mean, sd, y) == pytest.approx(expected, rel=1e-12)
    assert scores.gaussian_nlpd(mean, sd**2, y) > expected + 0.1


def test_interval_coverage(gaussians):
    mean, sd, y = gaussians
    spread = math.sqrt(0.95 * 0.05 / len(y))
    assert abs(scores.interval_coverage(mean, sd, y) - 0.95) < 4 * spread
    assert abs(scores.interval_coverage(mean, 1.1 * sd, y) - 0.95) > 4 * spread
    assert pytest.approx(scipy.stats.norm.ppf(0.975), rel=1e-15) == scores.NORMAL_QUANTILE


def test_rmse():
    assert scores.rmse(np.array([1.0, 2.0]), np.array([4.0, 6.0])) == pytest.approx(math.sqrt(12.5))


def log_probabilities(mean, sd):
    """Those of the largest of independent normal outputs, of one deviation a row."""
    return np.log(largest_probability(mean, np.broadcast_to(sd[:, None] ** 2, mean.shape)))


def test_class_probabilities_against_monte_carlo():
    rng = np.random.default_rng(1)
    mean, sd, draws = rng.normal(size=(6, 4)), rng.uniform(0.2, 2, 6), 100_000
    counts = np.empty((6, 4))
    for i in range(6):
        winners = (mean[i] + sd[i] * rng.standard_normal((draws, 4))).argmax(axis=1)
        counts[i] = np.bincount(winners, minlength=4)

    def z_score(p):
        return np.abs((counts - draws * p) / np.sqrt(draws * p * (1 - p) + 1)).max()

    assert z_score(np.exp(log_probabilities(mean, sd))) < 4.5
    assert z_score(np.exp(log_probabilities(mean, 1.05 * sd))) > 4.5


def test_class_probabilities_against_quadrature():
    mean, sd = np.array([[0.0, 0.3, -1.0], [9.0, 0.0, 1.0], [0.0, 0.0, 0.0]]), np.array([0.7, 1.1, 1e-3])
    p = np.exp(log_probabilities(mean, sd))
    for i, k in itertools.product(range(3), range(3)):

        def integrand(z, i=i, k=k):
            others = np.delete(mean[i], k)
            return scipy.stats.norm.pdf(z) * np.prod(scipy.stats.norm.cdf(z + (mean[i, k] - others) / sd[i]))

        expected = scipy.integrate.quad(integrand, -12, 12, epsabs=0, epsrel=1e-12, limit=200)[0]
        assert p[i, k] == pytest.approx(expected, rel=1e-8)
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-14)


def test_class_probabilities_of_two_classes():
    gap = np.array([-6.0, -1.0, 0.0, 3.0])
    log_p = log_probabilities(np.stack([gap, 0 * gap], axis=1), np.ones(4))
    np.testing.assert_allclose(log_p[:, 0], scipy.stats.norm.logcdf(gap / math.sqrt(2)), rtol=1e-10, atol=1e-12)


def test_class_scores():
    p = np.array([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]])
    labels = np.array([0, 1])
    assert scores.accuracy(np.log(p), labels) == 0.5
    assert scores.class_nlpd(np.log(p), labels) == pytest.approx(-(math.log(0.7) + math.log(0.3)) / 2)


def test_class_sets_are_the_smallest():
    p = np.random.default_rng(2).dirichlet(np.full(5, 0.5), size=50)
    sets = scores.class_sets(np.log(p))
    for row, chosen in zip(p, sets, strict=True):
        assert row[chosen].sum() >= 0.95
        smaller = itertools.combinations(range(5), chosen.sum() - 1)
        assert all(row[list(subset)].sum() < 0.95 for subset in smaller)
    labels = p.argmin(axis=1)
    assert scores.set_coverage(np.log(p), labels) == sets[np.arange(50), labels].mean()
    assert scores.mean_set_size(np.log(p)) == sets.sum() / 50
    np.testing.assert_array_equal(scores.class_sets(np.log([[0.05, 0.95]])), [[False, True]])


# --- models


@pytest.fixture(scope="module")
def problem():
    return demo.load("diabetes", seed=0, size=SMALL["diabetes"])


def fold(data):
    """Its one split, and what is true of the test rows."""
    inside, outside = data.splits[0]
    X, Z = data.standardise(inside, outside)
    return Fold(X, data.target[inside], Z, 0), data.target[outside]


def test_a_split_is_what_its_models_see(problem):
    seen = []

    def model(fold):
        seen.append(fold)
        return GaussianPrediction(np.zeros(len(fold.Z)), np.ones(len(fold.Z)), {"a": 1.0})

    steps = []
    data = SplitData(problem.task, problem.target, problem.splits * 2, problem.standardise)
    (row,) = compare(data, {"zero": model}, ("rmse",), seed=3, advance=steps.append)
    known, truth = fold(problem)
    for shown in seen:
        np.testing.assert_array_equal(shown.X, known.X)
        np.testing.assert_array_equal(shown.y, known.y)
        np.testing.assert_array_equal(shown.Z, known.Z)
    assert (len(seen), seen[0].seed, steps) == (2, 3, ["fold 1: zero", "fold 2: zero"])
    assert (row.model, row.chosen) == ("zero", {"a": 1.0})
    np.testing.assert_allclose(row.scores["rmse"], math.sqrt(np.mean(truth**2)))


def test_ridge_noise_is_leave_one_out(problem):
    known, _ = fold(problem)
    fitted = baselines.ridge(known)
    misses = []
    centred = known.y - known.y.mean()
    for i in range(len(known.X)):
        rest = np.arange(len(known.X)) != i
        model = Ridge(fitted.chosen["alpha"]).fit(known.X[rest], centred[rest])
        misses.append(centred[i] - model.predict(known.X[[i]])[0])
    np.testing.assert_allclose(fitted.deviation**2, np.mean(np.square(misses)), rtol=1e-9)


def test_rbf_variance_includes_the_noise(problem):
    fitted = baselines.process_regression(RBF)(fold(problem)[0])
    assert (fitted.deviation > fitted.chosen["noise_std"]).all()


def test_forest_probabilities_have_a_floor():
    known, truth = fold(demo.load("digits", seed=0, size=150))
    p = baselines.forest_classes(known).probabilities
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-14)
    floor = 1 / (baselines.TREES + 10)
    assert floor / (1 + 10 * floor) <= p.min() <= floor
    assert scores.accuracy(np.log(p), truth) > 0.7


def test_one_hot_regression_gives_the_probability_of_the_largest_output():
    known, truth = fold(demo.load("digits", seed=0, size=150))
    means = np.eye(10)[truth]
    for deviation in (np.full(len(truth), 0.3), np.full((len(truth), 10), 0.3)):
        seen = []

        def model(fold, seen=seen, deviation=deviation):
            seen.append(fold.y)
            return GaussianPrediction(means, deviation, {"a": 1.0})

        found = one_hot(model)(known)
        np.testing.assert_array_equal(seen[0], np.eye(10)[known.y])
        np.testing.assert_allclose(np.log(found.probabilities), log_probabilities(means, np.full(len(truth), 0.3)))
        assert found.chosen == {"a": 1.0}
        assert scores.accuracy(np.log(found.probabilities), truth) == 1
