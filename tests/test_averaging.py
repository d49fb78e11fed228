"""WideRegressor averages the networks that its race leaves: a mixture of their laws, weighted by left-out rows."""

import itertools
import json
import pickle

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import norm

import widelimit as wl
from test_persistence import forged
from widelimit.cli import held_out, models
from widelimit.estimators import averaging, model_file, scaled_choice, wide
from widelimit.estimators.averaging import FittedAverage
from widelimit.estimators.networks import Fitted
from widelimit.estimators.scaled_choice import PRIOR_ROWS, stacking_shares
from widelimit.inference.input_scales import ScaledFit
from widelimit.inference.posterior import Posterior

pytestmark = pytest.mark.usefixtures("short_searches")
SETTINGS = {"kernel": "nngp", "depth": 2}
RNG = np.random.default_rng(0)
X, Z = RNG.standard_normal((30, 2)), RNG.standard_normal((4, 2))
Y = np.stack([np.sin(2 * X[:, 0]), X[:, 1] * X[:, 0]], axis=1) + 0.1 * RNG.standard_normal((30, 2))
LEVELS = np.array([0.05, 0.5, 0.9])


@pytest.fixture(scope="module")
def model():
    return wl.WideRegressor(**SETTINGS).fit(X, Y)


@pytest.fixture(scope="module")
def single():
    return wl.WideRegressor(**SETTINGS, average=False).fit(X, Y)


def laws(model, rows, at, centre=None):
    """(share, mean, covariance, noise) of each network, in units of the targets, fitted anew to these rows."""
    average, points, new = model.fitted_, model.inputs_(X)[rows], model.inputs_(np.atleast_2d(at))
    centre = model.y_mean_ if centre is None else centre
    target = (Y[rows] - centre) / model.y_scale_
    for k, member in enumerate(average.members):
        scale, factor = average.scales[k], average.factors[k]
        post = wl.posterior(member.training.design.kernel(), points * factor, target / scale, noise=member.noise)
        unit = model.y_scale_ * scale
        mean = centre + unit * np.asarray(post.mean(new * factor))
        covariance = np.asarray(post.covariance(new * factor))[:, :, None] * unit**2
        yield average.shares[k], mean, covariance, member.noise * unit**2


def moments(model, rows=slice(None), at=Z):
    """Mean, covariance of f, and variance of the noise: of the mixture, by E[f f'] - E[f] E[f]'."""
    mean, second, noise = 0.0, 0.0, 0.0
    for share, m, covariance, own in laws(model, rows, at):
        mean, noise = mean + share * m, noise + share * own
        second = second + share * (covariance + m[:, None] * m)
    return mean, second - mean[:, None] * mean, noise


def test_three_networks_remain_and_are_named(model):
    assert isinstance(model.fitted_, FittedAverage)
    assert [family.activation for family in model.families_] == ["erf", "rbf", "relu"] or len(set(model.families_)) == 3
    assert model.family_ == model.families_[0]
    assert model.shares_.sum() == pytest.approx(1)
    assert models.shares(model)["average"].startswith(f"{model.shares_[0]:.2f} nngp {model.family_.activation} 2 + ")


def test_moments_are_those_of_the_mixture(model, monkeypatch):
    mean, covariance, noise = moments(model)
    variance = np.einsum("iic->ic", covariance)
    np.testing.assert_allclose(model.predict(Z), mean, rtol=1e-9)
    np.testing.assert_allclose(model.predict(Z, return_std=True)[1], np.sqrt(variance), rtol=1e-8)
    np.testing.assert_allclose(
        model.predict(Z, return_std=True, include_noise=True)[1], np.sqrt(variance + noise), rtol=1e-8
    )
    np.testing.assert_allclose(model.predict(Z, return_cov=True)[1], covariance, rtol=1e-7, atol=1e-10)
    planted = averaging.FittedAverage._sum  # a variance without the spread of the means
    monkeypatch.setattr(
        FittedAverage, "_mixed", lambda self, m, v: (planted(self, m), planted(self, [*map(np.asarray, v)]))
    )
    assert np.abs(model.predict(Z, return_std=True)[1] / np.sqrt(variance) - 1).max() > 1e-3


def test_quantiles_are_those_of_the_mixture(model):
    found = model.predict_quantiles(Z, LEVELS)
    parts = [(p, m, np.sqrt(np.einsum("iic->ic", c) + n)) for p, m, c, n in laws(model, slice(None), Z)]
    for i, j, k in np.ndindex(found.shape):
        expected = brentq(
            lambda y, i=i, j=j, k=k: sum(p * norm.cdf(y, m[i, j], s[i, j]) for p, m, s in parts) - LEVELS[k], -99, 99
        )
        assert found[i, j, k] == pytest.approx(expected, abs=1e-9)
    np.testing.assert_allclose(model.predict_interval(Z, 0.9), model.predict_quantiles(Z, [0.05, 0.95]), rtol=1e-13)
    gaussian = moments(model)[0] + norm.ppf(0.05) * model.predict(Z, return_std=True, include_noise=True)[1]
    assert np.abs(found[:, :, 0] - gaussian).max() > 1e-4  # the negative control: a normal law of the same moments


def test_draws_have_the_moments_and_one_network_each(model):
    count = 4000
    draws = model.sample_y(Z, count, random_state=1)
    np.testing.assert_array_equal(draws, model.sample_y(Z, count, random_state=1))
    mean, covariance, _ = moments(model)
    for j in range(2):
        away = draws[:, j] - mean[:, [j]]
        expected = covariance[:, :, j]
        spread = np.sqrt(np.diagonal(expected) / count)
        assert (np.abs(away.mean(axis=1)) < 5 * spread).all()
        assert np.abs(np.cov(draws[:, j]) - expected).max() < 10 * expected.max() / np.sqrt(count)


def test_left_out_rows_are_those_of_refits(model):
    """Means and variances of observations, for recalibration and reports; and intervals without each row."""
    left = model.fitted_.left_out()
    closed, variance = model.fitted_.leave_one_out()
    steps = dict(zip(("center", "deviation"), next(iter(model.fitted_.without(model.inputs_(Z), left))), strict=True))
    for i in (0, 7, 29):
        rest = np.arange(30) != i
        mean, covariance, noise = moments(model, rest, X[i])
        expected = (covariance[0, 0] + noise) / model.y_scale_**2
        np.testing.assert_allclose(left.expected[i], expected, rtol=1e-7)
        np.testing.assert_allclose(left.error[i] * model.y_scale_, (Y[i] - mean)[0], rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(variance[i], expected, rtol=1e-7)
        np.testing.assert_allclose(model.y_mean_ + model.y_scale_ * closed[i], mean[0], rtol=1e-7)
        mean, covariance, noise = moments(model, rest)
        np.testing.assert_allclose(model.y_mean_[0] + model.y_scale_[0] * steps["center"][:, i], mean[:, 0], rtol=1e-7)
        total = np.diagonal(covariance[:, :, 0]) + noise[0]
        np.testing.assert_allclose(model.y_scale_[0] * steps["deviation"][:, i], np.sqrt(total), rtol=1e-7)
    assert model.predict_interval(Z, 0.9, method="conformal").shape == (4, 2, 2)
    assert model.predict_quantiles(Z, 0.5, recalibrate=True).shape == (4, 2, 1)


def test_reports_predict_rows_in_closed_form():
    one = wl.WideRegressor(**SETTINGS).fit(X, Y[:, 0])
    found = held_out.held_out(one, X, Y[:, 0])
    assert "in closed form" in found.how
    left = one.fitted_.left_out()
    np.testing.assert_allclose(Y[:, 0] - found.mean, (left.error * one.y_scale_)[:, 0], atol=1e-9)
    np.testing.assert_allclose(found.std, np.sqrt(left.expected[:, 0]) * one.y_scale_[0], rtol=1e-9)


def test_shares_are_the_best_of_a_grid():
    """Against all weights in steps of 1/60; the weights of the sums of densities, as if one were true, fail."""
    rng = np.random.default_rng(3)
    log_density, counts = rng.normal([-1.0, -1.1, -2.0], 0.8, (80, 3)), rng.uniform(0.2, 1.0, 80)

    def value(shares, prior=PRIOR_ROWS):
        return counts @ np.log(np.exp(log_density) @ shares) + prior * np.log(shares).sum()

    steps = [(i, j, 60 - i - j) for i, j in itertools.product(range(1, 59), repeat=2) if i + j < 60]
    grid = np.array(steps) / 60
    best = max(grid, key=value)
    found = stacking_shares(log_density + rng.normal(size=(80, 1)), counts)  # factors of rows change nothing
    assert value(found) >= value(best)
    np.testing.assert_allclose(found, best, atol=1 / 60)
    sums = np.exp(counts @ log_density - (counts @ log_density).max())
    assert value(np.maximum(sums / sums.sum(), 1e-9)) < value(best) - 1
    assert np.abs(max(grid, key=lambda s: value(s, 0.0)) - found).max() > 2 / 60  # nor without the prior


def test_densities_of_left_out_rows_are_those_of_refits(model, monkeypatch):
    kept = []
    monkeypatch.setattr(scaled_choice, "stacking_shares", lambda d, c: kept.append((d, c)) or stacking_shares(d, c))
    monkeypatch.setattr(wide.settings, "MOST_AVERAGED", 30)
    again = wl.WideRegressor(**SETTINGS).fit(X, Y)
    np.testing.assert_array_equal(again.shares_, model.shares_)
    log_density, counts = kept[0]
    assert (counts == 1).all()
    for i in (3, 20):
        rows = np.arange(30) != i
        own = laws(again, rows, X[i], centre=Y[rows].mean(axis=0))  # the mean of the targets leaves the row out too
        expected = [
            norm.logpdf(Y[i], mean[0], np.sqrt(covariance[0, 0] + noise)).sum() for _, mean, covariance, noise in own
        ]
        np.testing.assert_allclose(np.diff(log_density[i]), np.diff(expected), rtol=1e-7)


def test_a_prediction_evaluates_each_network_once(model, monkeypatch):
    calls = []

    def counted(owner, name):
        own = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda self, Z: calls.append(name) or own(self, Z))

    for name in ("predict", "mean", "variance", "covariance"):
        counted(Posterior, name)
    counted(Fitted, "mean")
    for ask, expected in [
        (lambda: model.predict(Z, return_std=True), ["predict"] * 3),
        (lambda: model.predict_quantiles(Z, 0.5), ["predict"] * 3),
        (lambda: model.predict(Z), ["mean"] * 3),
        (lambda: model.predict(Z, return_cov=True), ["covariance"] * 3 + ["mean"] * 3),
    ]:
        calls.clear()
        ask()
        assert sorted(calls) == expected


def test_without_average_there_is_the_first_network_to_the_bit(model, single):
    assert single.families_ == [single.family_] == [model.family_]
    np.testing.assert_array_equal(single.shares_, [1.0])
    first = model.fitted_.members[0]
    np.testing.assert_array_equal(first.coefficients, single.fitted_.coefficients)
    np.testing.assert_array_equal(first.training.X, single.fitted_.training.X)
    assert (first.noise, first.training.design) == (single.noise_, single.fitted_.training.design)
    assert model.log_marginal_likelihood() == single.log_marginal_likelihood()
    np.testing.assert_array_equal(model.y_scale_, single.y_scale_)
    for settings in ({"noise": 0}, {"noise_model": "per_output"}, {"solver": "nystrom"}, {"activation": "erf"}):
        assert len(wl.WideRegressor(**SETTINGS | settings).fit(X, Y).shares_) == 1


def test_many_rows_and_little_memory_leave_one_network(monkeypatch):
    monkeypatch.setattr(wide.settings, "MOST_AVERAGED", 29)
    assert len(wl.WideRegressor(**SETTINGS).fit(X, Y).shares_) == 1
    monkeypatch.undo()
    require = wide.preparation.require_room
    monkeypatch.setattr(wide.preparation, "require_room", lambda n, matrices: require(n * 10**7 * (matrices > 1), 1))
    assert not wl.WideRegressor(**SETTINGS)._averages(30)


def test_a_network_without_a_share_is_left_out(monkeypatch):
    monkeypatch.setattr(scaled_choice, "LEAST_SHARE", 0.9)
    assert len(wl.WideRegressor(**SETTINGS).fit(X, Y).shares_) == 1


def test_a_weight_is_a_repetition():
    weights = np.tile([1, 2, 1], 10)
    once = wl.WideRegressor(**SETTINGS).fit(X, Y, sample_weight=weights)
    twice = wl.WideRegressor(**SETTINGS).fit(np.repeat(X, weights, axis=0), np.repeat(Y, weights, axis=0))
    np.testing.assert_allclose(once.shares_, twice.shares_, rtol=1e-6)
    for a, b in zip(once.predict(Z, return_std=True), twice.predict(Z, return_std=True), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    plain = wl.WideRegressor(**SETTINGS).fit(X, Y)
    assert np.abs(plain.predict(Z) - once.predict(Z)).max() > 1e-4


def answers(model):
    mean, std = model.predict(Z, return_std=True)
    return [
        mean,
        std,
        model.predict_quantiles(Z, LEVELS),
        model.sample_y(Z, 3),
        model.predict_interval(Z, 0.9, "conformal"),
    ]


def test_saved_and_pickled_models_answer_the_same_bits(model, tmp_path):
    model.save(tmp_path / "m.npz")
    for again in (wl.load(tmp_path / "m.npz"), pickle.loads(pickle.dumps(model))):
        assert again.families_ == model.families_
        np.testing.assert_array_equal(again.shares_, model.shares_)
        for a, b in zip(answers(again), answers(model), strict=True):
            np.testing.assert_array_equal(a, b)


def test_forged_averages_are_refused(model, tmp_path):
    path = tmp_path / "m.npz"
    model.save(path)
    header, arrays = model_file.contents(path)
    forged(path, header, arrays)
    assert len(wl.load(path).shares_) == 3  # the forger's file without a forgery is taken

    def refused(change, **other):
        text = json.loads(json.dumps(header))
        change(text)
        forged(path, text, arrays | other)
        with pytest.raises(ValueError, match="damaged or edited"):
            wl.load(path)

    def other(key, value):
        return lambda text: text["state"]["others"][0].update({key: value})

    for key, value in [
        ("family", ["nngp", "relu", 3]),
        ("family", "nngp"),
        ("noise", -1.0),
        ("noise", "1"),
        ("design", {"weight_std": -1.0, "bias_std": 1.0}),
        ("design", {"weight_std": "x", "bias_std": 1.0}),
        ("more", 1),
    ]:
        refused(other(key, value))
    refused(lambda text: text["parameters"].update(average=False))
    refused(lambda text: text["parameters"].update(average="yes"))
    refused(lambda text: text["parameters"].update(noise_model="per_output"))
    refused(lambda text: text["state"].update(others=text["state"]["others"] * 2))
    refused(lambda text: text["state"].update(others=[]))
    for name, array in [
        ("shares", 2 * arrays["shares"]),
        ("shares", -arrays["shares"]),
        ("factors", arrays["factors"] * 2),
        ("factors", np.where(np.arange(3)[:, None] > 0, 1e200, arrays["factors"])),
        ("scales", arrays["scales"][:, :1]),
        ("others.coefficients", arrays["others.coefficients"] * np.nan),
    ]:
        refused(lambda text: None, **{name: array})


def test_files_without_the_parameter_are_read(single, tmp_path):
    single.save(tmp_path / "m.npz")
    header, arrays = model_file.contents(tmp_path / "m.npz")
    del header["parameters"]["average"]
    forged(tmp_path / "m.npz", header, arrays)
    np.testing.assert_array_equal(wl.load(tmp_path / "m.npz").predict(Z), single.predict(Z))


def test_networks_of_a_tree_are_averaged_and_saved(tmp_path, monkeypatch):
    """Their search takes long: it is left out."""

    def finalists(_, families, **__):
        return tuple(
            ScaledFit(
                family, np.array([1.0, 0.5]) + k, dict.fromkeys(family.numbers, 1.2), 1.0, 0.1, 0.0, (), np.empty(0)
            )
            for k, family in enumerate(families)
        )

    monkeypatch.setattr(scaled_choice, "fit_finalists", finalists)
    tree = wl.WideRegressor(network=wl.mlp(depth=2, activation="erf")).fit(X, Y[:, 0])
    assert [family.kind for family in tree.families_] == ["nngp", "ntk"]
    tree.save(tmp_path / "m.npz")
    np.testing.assert_array_equal(wl.load(tmp_path / "m.npz").predict_quantiles(Z, 0.3), tree.predict_quantiles(Z, 0.3))
