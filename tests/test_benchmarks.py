"""The accuracy benchmarks on tiny data made here: their kernels, search, scores, and that they run, stop and resume."""

import json
import math
import pathlib
import sys

import numpy as np
import pytest
from sklearn.dummy import DummyClassifier
from sklearn.svm import SVC

import widelimit as wl

ROOT = pathlib.Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks"))

import common  # noqa: E402
import lines  # noqa: E402
import regression  # noqa: E402
import regressors  # noqa: E402
import tables  # noqa: E402
import uci  # noqa: E402
import uci_data  # noqa: E402
import uci_kernels as kernels  # noqa: E402
import uci_probabilities  # noqa: E402


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Where the benchmarks write their results in a test."""
    monkeypatch.setattr(common, "RESULTS", tmp_path / "results")
    return tmp_path / "results"


def classes(n, seed):
    """Two noisy classes in the plane, split as the UCI files are."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, 2)).astype(np.float32)
    y = (X[:, 0] * X[:, 1] + 0.3 * rng.standard_normal(n) > 0).astype(np.int32)
    order = rng.permutation(n)
    arrays = {"X": X, "y": y, "tune_train": order[: n // 2], "tune_val": order[n // 2 :]}
    for k in range(4):
        order = rng.permutation(n)
        arrays |= {f"cv_train_{k}": order[n // 4 :], f"cv_test_{k}": order[: n // 4]}
    return arrays


@pytest.fixture
def sets(tmp_path):
    folder = tmp_path / "sets"
    folder.mkdir()
    np.savez(folder / "larger.npz", **classes(60, 0))
    np.savez(folder / "smaller.npz", **classes(40, 1))
    return folder


def by_hand(X, depth, fixed):
    """The sum over trained layers l > fixed of Sigma^l prod_{j = l}^{depth - 1} (pi - theta_j)/(2 pi)."""
    sigma, total = X @ X.T, np.zeros((len(X), len(X)))
    for layer in range(1, depth + 1):
        total += sigma * (layer > fixed)
        if layer < depth:
            s = np.sqrt(np.diag(sigma))
            theta = np.arccos(np.clip(sigma / np.outer(s, s), -1, 1))
            total = total * (math.pi - theta) / (2 * math.pi)
            sigma = np.outer(s, s) * (np.sin(theta) + (math.pi - theta) * np.cos(theta)) / (2 * math.pi)
    return total


def test_the_fifteen_kernels():
    X = np.random.default_rng(0).standard_normal((12, 3))
    found = {key: K.copy() for key, K in kernels.partly_trained(X)}
    assert list(found) == [(depth, fixed) for depth in range(1, 6) for fixed in range(depth)]
    # arccos of a correlation that is off by eps is off by sqrt(2 eps) = 2e-8 at equal inputs
    for (depth, fixed), K in found.items():
        np.testing.assert_allclose(K, by_hand(X, depth, fixed), rtol=1e-6, atol=1e-7)
    net = wl.mlp(depth=3, activation="relu", weight_std=1.0, bias_std=0.0)
    np.testing.assert_allclose(found[3, 0], 3 * wl.ntk(net).gram(X), rtol=1e-13)
    np.testing.assert_allclose(found[3, 2], 3 * wl.nngp(net).gram(X), rtol=1e-13)
    assert np.abs(found[3, 1] / found[3, 0] - 1).max() > 0.1  # a fixed layer makes another kernel


def test_the_search_leaves_out_only_what_cannot_matter(sets):
    data = uci_data.load(sets / "larger.npz", "published")
    effort = kernels.Effort()
    pairs = [(key, K.copy()) for key, K in kernels.partly_trained(data.X)]
    (best,) = kernels.search(pairs, data.y, data.splits, {"all": kernels.all_of}, effort)["all"]
    train, test = data.splits[0].tuning
    scores = {}
    for key, K in pairs:
        for cost in kernels.COSTS:
            machine = SVC(kernel="precomputed", C=cost).fit(K[np.ix_(train, train)], data.y[train])
            scores[key, cost] = machine.score(K[np.ix_(test, train)], data.y[test])
    assert (best.key, best.cost) == max(scores, key=scores.__getitem__)  # the first of the best
    assert best.score == max(scores.values()) > 0.7
    assert effort.skipped > 0
    assert effort.skipped + effort.fits == len(scores)


def test_tuning_and_test_rows_overlap_only_in_the_published_protocol(sets):
    published, honest = (uci_data.load(sets / "larger.npz", protocol).splits for protocol in uci_data.PROTOCOLS)
    assert len(published) == 1
    assert len(honest) == 4
    for split in published:
        assert all(np.isin(test, np.concatenate(split.tuning)).all() for _, test in split.folds)
    for split in honest:
        ((train, test),) = split.folds
        np.testing.assert_array_equal(np.sort(np.concatenate(split.tuning)), np.sort(train))
        assert not np.isin(test, train).any()


def test_the_summary_by_hand():
    rows = uci.summary({"a": {"s": 100.0, "t": 50.0, "u": 80.0}, "b": {"s": 92.0, "t": 60.0, "u": 80.0, "v": 1.0}})
    a, b = rows
    assert (a["sets"], a["accuracy"], a["P90"], a["P95"]) == (3, 76.67, 66.67, 66.67)
    assert (b["accuracy"], b["P90"], b["P95"], b["PMA"]) == (77.33, 100.0, 66.67, 97.33)
    assert (a["Friedman rank"], b["Friedman rank"]) == (1.5, 1.5)


def run(monkeypatch, script, *arguments):
    monkeypatch.setattr(sys, "argv", ["benchmark", *map(str, arguments)])
    script.main()


def test_uci_runs_resumes_and_reports(sets, results, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    monkeypatch.setattr(uci, "RandomForestClassifier", lambda *_, **__: SVC())
    for protocol in uci_data.PROTOCOLS:
        command = ("run", sets, out, "--protocol", protocol, "--methods")
        run(monkeypatch, uci, *command, "forest", "rbf", "ntk", "--largest", 50)
        run(monkeypatch, uci, *command, *uci.METHODS)
        done = [line.split()[1] for line in capsys.readouterr().out.splitlines()]
        ran = len(uci.METHODS if protocol == "published" else uci.SEARCHES)  # the folds of the others are the same
        assert sorted(done) == ["larger"] * ran + ["smaller"] * ran
        run(monkeypatch, uci, *command, *uci.METHODS)
        assert capsys.readouterr().out == ""
    run(monkeypatch, uci, "report", out)
    for protocol in uci_data.PROTOCOLS:
        document = json.loads((results / f"uci_{protocol}.json").read_text())
        assert len(document["rows"]) == len(uci.METHODS) + 1
        assert all(row["sets"] == 2 and row["accuracy"] > 50 for row in document["rows"])


@pytest.fixture
def waves(tmp_path):
    """A folder with a noisy sine in other units; its noise has deviation 1."""
    rng = np.random.default_rng(0)
    X = rng.uniform(-2, 2, (90, 2))
    y = 100 + 10 * (np.sin(2 * X[:, 0]) + 0.1 * rng.standard_normal(90))
    masks = np.arange(90)[:, None] % 3 == np.arange(2)
    folder = tmp_path / "waves"
    folder.mkdir()
    np.savez(folder / "waves.npz", X=X, y=y, test_mask=masks)
    return folder


def constant(deviation):
    """A method that predicts 0 with a deviation, in standardised units."""
    predict = lambda fold: (np.zeros(len(fold.y_test)), np.full(len(fold.y_test), deviation))  # noqa: E731
    return regressors.Method(f"constant {deviation}", predict)


def test_regression_runs_resumes_and_reports(waves, results, tmp_path, monkeypatch, capsys):
    absent = constant(1.0)._replace(package="a_package_that_is_not_there")
    methods = {"gp_ard": regressors.METHODS["gp_ard"], "even": constant(1.0), "broken": constant(0.0), "absent": absent}
    monkeypatch.setattr(regression, "METHODS", methods)
    command = ("run", waves, tmp_path / "out", "--rows", 50, "--splits", 0, 1, "--methods", *methods)
    run(monkeypatch, regression, *command)
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 7
    assert "absent: skipped, a_package_that_is_not_there" in shown[-1]
    run(monkeypatch, regression, *command)
    assert len(capsys.readouterr().out.splitlines()) == 1
    run(monkeypatch, regression, "report", tmp_path / "out", "--rows", 50)
    process, even, broken = json.loads((results / "regression_50.json").read_text())["rows"]
    assert (process["RMSE ratio"], process["failed"], even["failed"], broken["failed"]) == (1.0, 0, 0, 2)
    assert [row["rank, RMSE (2 fits)"] for row in (process, even, broken)] == [1.0, 2.0, 3.0]
    by_set = {s: json.loads((results / f"regression_50_{s}.json").read_text())["rows"][0] for s in regression.SCORES}
    rmse = by_set["rmse"]["GP, RBF, scales"]
    assert 0.5 < rmse < 2  # the noise is 1 in raw units
    # a Gaussian of the deviation of the errors has this mean negative log density, in the same units
    assert abs(by_set["nlpd"]["GP, RBF, scales"] - (math.log(rmse) + 0.5 * math.log(2 * math.pi) + 0.5)) < 0.5
    assert even["RMSE ratio"] == pytest.approx(by_set["rmse"]["constant 1.0"] / rmse, rel=0.1)


def test_every_method_sees_the_same_rows_and_no_test_row(waves):
    path = waves / "waves.npz"
    few, more, whole = (regression.draw(path, 1, rows) for rows in (20, 40, 90))
    assert (len(few.y), len(more.y), len(whole.y), len(few.y_test)) == (20, 40, 60, 30)
    assert np.abs(more.X.mean(axis=0)).max() < 1e-12  # standardised with the drawn rows
    ratio = np.diff(few.X[:, 0]) / np.diff(more.X[:20, 0])
    assert np.ptp(ratio) < 1e-9  # the same rows first, in another unit
    assert len(np.unique(np.concatenate([whole.X, whole.X_test])[:, 0].round(9))) == 90


def test_scores_by_hand():
    fold = regression.Fold(np.zeros((2, 1)), np.zeros(2), np.zeros((4, 1)), np.array([0.0, 1.5, -2.0, 3.0]), 10.0)
    found = regression.scores(fold, np.zeros(4), np.ones(4))
    assert found["rmse"] == pytest.approx(10 * math.sqrt(15.25 / 4))
    assert found["nlpd"] == pytest.approx(0.5 * math.log(2 * math.pi * 100) + 15.25 / 8)
    assert found["coverage"] == 0.5
    with pytest.raises(ValueError, match="no Gaussian"):
        regression.scores(fold, np.zeros(4), np.zeros(4))


def test_ratios_and_ranks_by_hand():
    row = lambda a, b: {"a": {"rmse": a}, "b": {"rmse": b}}  # noqa: E731
    table = {("s", 0): row(1.0, 2.0), ("s", 1): row(1.0, 8.0), ("t", 0): row(3.0, 1.5), ("t", 1): {"a": {"rmse": 1.0}}}
    assert regression.ratios(table, "b", "a") == pytest.approx({"s": 4.0, "t": 0.5})
    found, fits = regression.ranks(table, ["a", "b"], "rmse")
    assert (found, fits) == (pytest.approx({"a": 4 / 3, "b": 5 / 3}), 3)


def test_peers_without_a_density_have_that_of_their_errors(waves):
    fold = regression.draw(waves / "waves.npz", 0, 60)
    mean, deviation = regressors.METHODS["kernel_ridge"].predict(fold)
    assert np.ptp(deviation) == 0
    assert regression.scores(fold, mean, deviation)["coverage"] > 0.8
    assert 0.5 < deviation[0] * fold.unit < 3  # that of errors in the training rows would be less than the noise


def test_this_library_predicts_new_observations(waves):
    fold = regression.draw(waves / "waves.npz", 0, 60)
    assert 0.8 < regression.scores(fold, *regressors.METHODS["nngp"].predict(fold))["coverage"] <= 1


def test_a_line_that_was_cut_off_is_made_again(sets):
    (sets / "a.jsonl").write_text('[{"set": "larger"}]\n[{"set": "smaller"')
    lines.extend(sets, "a", lines.by_size(sets, 100), lambda path: {path.stem: {"folds": [1.0]}})
    assert [row["set"] for row in lines.stored(sets)] == ["larger", "smaller"]


def test_the_tables_of_the_documentation_are_those_of_the_results():
    for path in (ROOT / "docs").glob("*.md"):
        page = path.read_text()
        assert tables.filled(page) == page, f"{path.name}: run python benchmarks/tables.py"


def test_scores_of_probabilities_by_hand():
    p, classes = np.array([[0.8, 0.2], [0.4, 0.6]]), np.array([1, 2, 3])
    found = uci_probabilities.scores(p, classes, np.array([1, 3]), np.array([1, 2]))  # 2 has no training row
    least = uci_probabilities.LEAST
    assert found["folds"] == 0.5
    assert found["log_loss"] == pytest.approx(-np.log([0.8, least]).mean(), abs=1e-5)
    assert found["calibration"] == pytest.approx((0.2 + 0.6) / 2, abs=1e-5)


def test_uci_probabilities_run_resume_and_report(sets, results, tmp_path, monkeypatch, capsys):
    majority = uci_probabilities.fitted(lambda: DummyClassifier(strategy="prior"))
    monkeypatch.setattr(uci_probabilities, "METHODS", {"prior": ("prior", majority)})
    monkeypatch.setattr(uci_probabilities, "RESULTS", results)
    results.mkdir()
    table = {"accuracy_by_set": {uci_probabilities.REFERENCE: {"larger": 50.0, "smaller": 50.0}}}
    (results / "uci_honest.json").write_text(json.dumps({"settings": table}))
    run(monkeypatch, uci_probabilities, "run", sets, tmp_path / "out")
    assert len(capsys.readouterr().out.splitlines()) == 2
    run(monkeypatch, uci_probabilities, "run", sets, tmp_path / "out")
    assert capsys.readouterr().out == ""
    run(monkeypatch, uci_probabilities, "report", tmp_path / "out")
    rows = json.loads((results / "uci_probabilities.json").read_text())["rows"]
    assert [(row["half"], row["sets"], row["method"]) for row in rows[:2]] == [
        ("all", 2, "prior"),
        ("all", 2, uci_probabilities.REFERENCE),
    ]
    assert 0.5 < rows[0]["log-loss"] < 0.8
