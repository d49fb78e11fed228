"""`widelimit fit --report`: one page, whose numbers are those of rows that were left out."""

import html
import json
import re
import warnings
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import polars as pl
import pytest
from sklearn.model_selection import KFold

import widelimit as wl
from commands import invoke
from widelimit.cli import fit_report, held_out, models
from widelimit.cli.options import TableChoices
from widelimit.estimators.fitted_classes import FittedClasses
from widelimit.inference.expectation_propagation import logistic_posterior, logistic_probabilities
from widelimit.pages import digits

pytestmark = pytest.mark.usefixtures("short_searches")
N = 40
TARGET = "price <in> $ & €"
KIND = "kind <b>"
OUTLIER = 7


def table():
    rng = np.random.default_rng(0)
    size, kind = rng.uniform(1, 3, N), rng.choice(["a<i>", "b", "c"], N)
    y = np.sin(2 * size) + (kind == "b") + 0.1 * rng.standard_normal(N)
    y[OUTLIER] += 3
    frame = pl.DataFrame({"size": size, KIND: kind, "noise": rng.standard_normal(N), "same": np.ones(N), TARGET: y})
    label = pl.Series("label", np.where(y > np.median(y), "<high>", "low"))
    return frame.with_columns(pl.when(pl.col("size") > 2.9).then(None).otherwise(pl.col("noise")).alias("noise"), label)


def test_numbers_of_a_table_are_plain():
    """A price is 284940, and no power of ten."""
    found = [digits(v, 5) for v in (284940, -20834.44, 0.25, 3e-7, 2e9, 0.0)]
    assert found == ["284940", "-20834", "0.25", "3e-07", "2e+09", "0"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    table().write_csv(folder / "t.csv")
    return folder


OPTIONS = ["--estimator", "nngp", "--depth", 2, "--impute"]


@pytest.fixture(scope="module")
def regression(folder):
    """Exit code, stdout, stderr and page of a regression."""
    options = ["--target", TARGET, "--drop", "label", "--noise", 0.05, "--model", folder / "m.npz", *OPTIONS]
    outcome = invoke("fit", folder / "t.csv", "--report", folder / "r.html", *options)
    return outcome, (folder / "r.html").read_text()


class Balance(HTMLParser):
    """Tags that are open, with their content counted; `faults` of those that do not close in order."""

    EMPTY = ("meta", "img", "br")

    def __init__(self):
        HTMLParser.__init__(self)
        self.open, self.faults, self.links = [], [], []

    def handle_starttag(self, tag, attrs):
        self.links += [value for name, value in attrs if name in ("src", "href")]
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.faults.append(tag)


def faults(page):
    """What is wrong with a page: tags that do not close, and links out of it."""
    parser = Balance()
    parser.feed(page)
    parser.close()
    out = [link for link in parser.links if not link.startswith("data:image/png;base64,")]
    return parser.faults + parser.open + out


def text(page):
    """The words of a page, one line a row of a table."""
    page = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    return html.unescape(re.sub(r"<[^>]+>", " ", re.sub(r"</(tr|p|li|h\d)>", "\n", page)))


def lines(page, start):
    """The lines of a page that begin so."""
    found = [" ".join(line.split()) for line in text(page).splitlines()]
    return [line for line in found if line.startswith(start)]


def test_the_page_is_whole_and_escapes_names(regression, folder):
    (code, out, err), page = regression
    assert code == 0
    assert out.splitlines()[-1] == f"report {folder / 'r.html'}"
    assert "missing values imputed" in err
    assert faults(page) == []
    for name in (TARGET, KIND, "a<i>"):
        assert html.escape(name) in page
        assert name not in page
    assert page.count("<img") == 5
    assert faults(page.replace("</table>", "", 1))
    assert faults(page + f"<b>{KIND}")
    assert faults(page.replace("data:image", "http://image", 1))


def test_the_page_has_data_model_and_notes(regression):
    _, page = regression
    assert lines(page, "rows ") == ["rows 40"]
    assert lines(page, "columns 3 used, which make ")
    kind, noise = lines(page, KIND)[0], lines(page, "noise numbers")[0]
    assert kind.startswith(f"{KIND} categories 0 3 ")
    missing = table()["noise"].null_count()
    assert missing > 0
    assert noise.startswith(f"noise numbers {missing} {N - missing} ")
    assert lines(page, "left out, constant: same")
    assert lines(page, "depth 2 number of affine layers")
    assert lines(page, "noise_std ")


def test_every_setting_that_is_chosen_is_explained():
    for cls in models.ESTIMATORS.values():
        result = models.FitResult.__new__(models.FitResult)
        table_ = type("Table", (), {"task": "regression"})()
        estimator = cls(depth=2, activation="erf")
        vars(estimator).update(y_scale_=np.ones(1), noise_=0.1)
        vars(result).update(estimator=estimator, table=table_)
        assert set(models.FitResult.chosen(result)) <= set(fit_report.MEANINGS)


def encoded():
    """Rows as the model has them, and the target."""
    frame = table()
    fill = frame["noise"].fill_null(frame["noise"].median())
    kinds = [(frame[KIND] == kind).to_numpy() for kind in ("a<i>", "b", "c")]
    return np.stack([frame["size"], *kinds, fill], axis=1).astype(float), frame[TARGET].to_numpy()


def test_scores_are_those_of_refits_without_each_row(regression, folder):
    _, page = regression
    y, model = table()[TARGET].to_numpy(), wl.load(folder / "m.npz")
    found = held_out.held_out(model, np.empty((N, 0)), y)
    shift, scale = model.y_mean_[0], model.y_scale_[0]
    k, points = model.fitted_.training.design.kernel(), model.X_train_
    for i in (0, OUTLIER, 33):
        rest = np.arange(N) != i
        post = wl.posterior(k, points[rest], model.y_train_[rest, 0], noise=0.05)
        mean, variance = post.predict(points[[i]])
        assert found.mean[i] == pytest.approx(shift + scale * mean[0], rel=1e-9)
        assert found.std[i] == pytest.approx(scale * np.sqrt(variance[0] + 0.05), rel=1e-9)
    rmse = np.sqrt(np.mean((y - found.mean) ** 2))
    assert lines(page, "RMSE")[0].startswith(f"RMSE {rmse:.4g} ")
    mean = shift + scale * model.fitted_.mean(points)[:, 0]
    seen = np.sqrt(np.mean((y - mean) ** 2))  # the negative control: rows that the model has seen
    assert not lines(page, "RMSE")[0].startswith(f"RMSE {seen:.4g} ")
    assert lines(page, f"{OUTLIER + 1} ")[0].startswith(f"{OUTLIER + 1} {y[OUTLIER]:.5g} {found.mean[OUTLIER]:.5g} ")


def test_noise_that_depends_on_the_row_is_that_of_the_row():
    X, y = encoded()
    model = wl.NNGPRegressor(depth=2, noise=0.05, noise_model="input").fit(X, y)
    found, fitted = held_out.held_out(model, X, y), model.fitted_
    points, noise = model.X_train_, (fitted.noise / fitted.factors)[:, 0]
    assert np.ptp(noise) > 0.1 * noise.min()
    rest = np.arange(N) != OUTLIER
    k = fitted.training.design.kernel()
    post = wl.posterior(k, points[rest], fitted.y[rest, 0], noise=noise[rest])
    mean, variance = post.predict(points[[OUTLIER]])
    assert found.mean[OUTLIER] == pytest.approx((model.y_mean_ + model.y_scale_ * mean)[0], rel=1e-7)
    expected = model.y_scale_[0] * np.sqrt(variance[0] + noise[OUTLIER])
    assert found.std[OUTLIER] == pytest.approx(expected, rel=1e-7)


def test_probabilities_are_those_of_refits_without_each_row():
    X, y = encoded()
    labels = np.where(y > np.median(y), "high", "low")
    dirichlet = wl.NTKClassifier(depth=2).fit(X, labels)
    found, fitted = held_out.held_out(dirichlet, X, labels), dirichlet.fitted_
    rest = np.arange(N) != 3
    how = fitted.training
    part = replace(how, X=how.X[rest], weights=how.weights[rest])
    dirichlet.fitted_ = FittedClasses(part, fitted.labels[rest], fitted.scale, 2, fitted.alpha_epsilon)
    np.testing.assert_allclose(found.mean[3], dirichlet.predict_proba(X[[3]])[0], rtol=1e-7)
    assert "closed form" in found.how
    squares = wl.NNGPClassifier(depth=2, likelihood="least_squares", noise=0.1).fit(X, labels)
    p = held_out.held_out(squares, X, labels).mean
    np.testing.assert_allclose(p.sum(axis=1), 1)
    assert not np.allclose(p, squares.predict_proba(X), atol=0.05)


def test_logistic_classes_are_those_of_refits_without_each_row(monkeypatch):
    X, y = encoded()
    labels = np.where(y > np.median(y), "high", "low")
    X, labels = np.vstack([X, X[:2]]), np.append(labels, labels[:2])  # two copies
    model = wl.NNGPClassifier(depth=2, likelihood="logistic", input_scales=None).fit(X, labels)
    inside = model.predict_proba(X)
    monkeypatch.setattr(held_out, "_folds", None)
    found, fitted = held_out.held_out(model, X, labels), model.fitted_
    assert "closed form" in found.how
    k, points, own = fitted.training.design.kernel(), model.inputs_(X), (labels == "low").astype(int)
    refitted = []
    for i in range(N):
        rest = (points != points[i]).any(axis=1)
        post = logistic_posterior(k, points[rest], own[rest], classes=2, scale=fitted.scale)
        refitted.append(logistic_probabilities(post.mean(points[[i]]), post.variance(points[[i]]))[0])

    def loss(p):
        return -np.mean(np.log(p[np.arange(N), own[:N]]))

    assert loss(found.mean) == pytest.approx(loss(np.array(refitted)), rel=0.1)
    assert loss(inside) < 0.7 * loss(found.mean)  # the negative control: rows that the model has seen
    assert np.abs(found.mean[:N] - refitted).mean() < 0.03
    assert np.abs(found.mean[:N][::-1] - refitted).mean() > 0.2  # the negative control: rows in another order
    np.testing.assert_array_equal(found.mean[:2], found.mean[-2:])


def test_what_has_no_closed_form_is_fitted_again_without_each_fold():
    X, y = encoded()
    model = wl.NTKRegressor(depth=2, noise=0.0, ensemble=True).fit(X, y)
    found = held_out.held_out(model, X, y)
    assert "5 folds" in found.how
    points, targets, net = model.X_train_, model.y_train_[:, 0], model.fitted_.training.design.network()
    for inside, outside in KFold(held_out.FOLDS, shuffle=True, random_state=0).split(X):
        law = wl.trained_ensemble(net, points[inside], targets[inside])
        mean, variance = law.mean(points[outside], np.inf), law.variance(points[outside], np.inf)
        np.testing.assert_allclose(found.mean[outside], model.y_mean_ + model.y_scale_ * mean, rtol=1e-6)
        np.testing.assert_allclose(found.std[outside], model.y_scale_ * np.sqrt(variance), rtol=1e-5)
    assert not np.allclose(found.mean, y, atol=0.05)  # the ensemble of all rows interpolates


def test_folds_of_many_rows_and_of_classes(monkeypatch):
    X, y = encoded()
    monkeypatch.setattr(held_out, "FOLD_ROWS", 30)
    labels = np.where(y > np.median(y), "high", "low")
    found = held_out.held_out(wl.NTKClassifier(depth=2, time=5.0).fit(X, labels), X, labels)
    assert "of 30 rows drawn at random" in found.how
    assert "not possible: leave-one-out is for time=inf without ensemble." in found.how
    assert found.mean.shape == (30, 2)
    np.testing.assert_allclose(found.mean.sum(axis=1), 1)
    assert len(set(found.rows)) == 30
    assert np.mean(np.where(found.mean[:, 0] > 0.5, "high", "low") == labels[found.rows]) > 0.7


def test_all_inputs_of_a_column_are_shuffled_together(folder):
    choices = TableChoices(target=TARGET, drop=("label",), impute=True)
    result = models.fit(folder / "t.csv", choices, "nngp", {"depth": 2, "noise": 0.05}, folder / "s.npz", quiet=True)
    seen = []
    score = wl.NNGPRegressor.score

    def watched(self, X, y, sample_weight=None):
        seen.append(X)
        return score(self, X, y, sample_weight)

    wl.NNGPRegressor.score, plain = watched, score
    try:
        found = fit_report.shuffled_importance(result)
    finally:
        wl.NNGPRegressor.score = plain
    assert found.feature_names == ["size", KIND, "noise"]
    assert found.importances[1] > 3 * abs(found.importances[2])
    assert len(seen) == 1 + 3 * fit_report.REPEATS
    for X in seen:
        assert (X[:, 1:4].sum(axis=1) == 1).all()


def test_a_report_of_classes_and_of_warnings(folder, monkeypatch):
    fit = wl.NNGPClassifier.fit

    def warned(self, X, y, sample_weight=None):
        warnings.warn("the search ended at a bound of <noise>", stacklevel=1)
        return fit(self, X, y, sample_weight)

    monkeypatch.setattr(wl.NNGPClassifier, "fit", warned)
    options = ["--target", "label", "--drop", TARGET, "--model", folder / "c.npz", "--json", *OPTIONS]
    code, out, err = invoke("fit", folder / "t.csv", "--report", folder / "c.html", *options)
    page = (folder / "c.html").read_text()
    assert code == 0
    assert json.loads(out)["report"] == str(folder / "c.html")
    assert err.count("the search ended at a bound of <noise>") == 1
    assert lines(page, "the search ended at a bound of <noise>")
    assert faults(page) == []
    assert "<high>" not in page
    assert lines(page, "accuracy 0.")
    assert lines(page, "Confusion")
    assert lines(page, "Reliability")


@pytest.mark.parametrize(
    ("name", "message"),
    [("r.txt", "end the name in .html"), ("no/r.html", "there is no folder"), (".", "no such format")],
)
def test_a_report_that_cannot_be_written_is_refused_before_the_work(name, message, folder):
    options = ["--target", TARGET, "--model", folder / "never.npz", *OPTIONS]
    code, out, err = invoke("fit", folder / "t.csv", "--report", folder / name, *options)
    assert (code, out) == (2, "")
    assert "--report" in err
    assert message in err
    assert not (folder / "never.npz").exists()


def remarks(y, mean, std):
    """What the page remarks on predictions of a regression."""
    found = held_out.HeldOut(np.arange(len(y)), mean, std, "")
    return " ".join(held_out.assess_regression(found, y, unit="y").remarks)


def test_the_page_says_what_looks_wrong():
    rng = np.random.default_rng(0)
    truth = rng.standard_normal(200)
    mean = truth + 0.5 * rng.standard_normal(200)
    assert remarks(truth, mean, np.full(200, 0.5)) == ""
    assert "error bars are too small" in remarks(truth, mean, np.full(200, 0.25))
    assert "error bars are too large" in remarks(truth, mean, np.full(200, 2.0))
    assert "does a column hold it in other words" in remarks(truth, truth + 1e-4, np.full(200, 1e-4))
    assert "no better than the mean" in remarks(truth, rng.permutation(truth), np.full(200, 1.4))


def test_the_page_says_what_looks_wrong_with_classes():
    classes, labels = np.array(["a", "b", "c"]), np.array(["a"] * 20 + ["b"] * 20 + ["c"] * 3)
    own = labels[:, None] == classes

    def remarks(p):
        score = held_out.assess_classes(held_out.HeldOut(np.arange(43), p, np.empty(0), ""), labels, classes)
        return " ".join(score.remarks)

    good = np.where(own, 0.8, 0.1)
    good[::5] = good[::5][:, ::-1]
    rare = "Classes of fewer than 5 rows, which are hardly enough to learn: 'c'."
    assert remarks(good) == rare
    assert "does a column hold it in other words" in remarks(np.where(own, 0.8, 0.1))
    assert "no better than the shares" in remarks(np.full((43, 3), 1 / 3))
