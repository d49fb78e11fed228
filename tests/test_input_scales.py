"""One learned scale an input: the objective, its gradient, and what is learned."""

import json

import numpy as np
import pytest
from sklearn.base import clone

import widelimit as wl
from widelimit.estimators import classifiers, model_file
from widelimit.inference import input_scales, noise_level, scaled_evidence
from widelimit.inference.average_gradient import gradient_scales, mean_squared_gradient
from widelimit.inference.input_scales import FIRST, Search
from widelimit.inference.noise_level import SURPRISES, left_out_noise
from widelimit.inference.scaled_evidence import Family

FAMILIES = [
    *(Family("nngp", "erf", 2), Family("nngp", "relu", 3), Family("ntk", "relu", 3), Family("ntk", "erf", 2)),
    *(Family("nngp", "rbf", 2), Family("ntk", "rbf", 2)),
]
D = 3


def table(n=40, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, D))
    return X, np.stack([np.sin(2 * X[:, 0]) + 0.1 * rng.standard_normal(n), X[:, 1] * X[:, 2]], axis=1)


def coordinates(scales=(1.0, 0.5, 2.0), others=(1.3, 0.4, 1.7, 0.05)):
    """z, padded as the rows are."""
    return np.log(np.concatenate([scales, np.ones(scaled_evidence.COLUMNS - D), others]))


def kernel_of(family, scales, weight_std, bias_std, amplitude):
    net = wl.mlp(depth=family.depth, activation=family.activation, weight_std=weight_std, bias_std=bias_std)
    return amplitude * wl.scale_inputs(getattr(wl, family.kind)(net), scales)


def exact(family, X, y, weights, noise=0.05):
    k = kernel_of(family, np.array([1.0, 0.5, 2.0]), 1.3, 0.4, 1.7)
    return wl.posterior(k, X, y, noise=noise / weights).log_marginal_likelihood()


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f"{f.kind}-{f.activation}-{f.depth}")
def test_the_objective_is_that_of_the_library_and_has_its_gradient(family):
    """Against the posterior, whose kernels carry correlations without cancellation, and central differences."""
    X, y = table()
    rows = scaled_evidence.padded(X, y, np.ones(len(X)), np.arange(D))
    z = coordinates()
    for objective in ("marginal_likelihood", "leave_one_out"):
        value, slope = scaled_evidence.value_and_gradient(family, objective, D, rows, z)
        if objective == "marginal_likelihood":
            assert value == pytest.approx(exact(family, X, y, np.ones(len(X))), rel=1e-11)
            assert abs(value - exact(family, X, y, np.ones(len(X)), noise=0.0501)) > 1e-3
        else:
            assert value == pytest.approx(_left_out(family, X, y), rel=1e-10)
        for i in [*range(D), *range(-4, 0)]:
            h = 1e-5 * np.eye(len(z))[i]
            above, below = (
                scaled_evidence.value_and_gradient(family, objective, D, rows, z + sign * h)[0] for sign in (1, -1)
            )
            assert slope[i] == pytest.approx((above - below) / 2e-5, rel=1e-6, abs=1e-6 * np.abs(slope).max())


def _left_out(family, X, y):
    """By as many fits as rows."""
    k = kernel_of(family, np.array([1.0, 0.5, 2.0]), 1.3, 0.4, 1.7)
    K, total = k.gram(X), 0.0
    for i in range(len(X)):
        rest = np.arange(len(X)) != i
        solved = np.linalg.solve(K[np.ix_(rest, rest)] + 0.05 * np.eye(len(X) - 1), K[rest, i])
        variance = K[i, i] + 0.05 - K[i, rest] @ solved
        total += -np.sum((y[i] - solved @ y[rest]) ** 2 / variance + np.log(2 * np.pi * variance)) / 2
    return total


def test_a_weight_is_a_repetition():
    """Equal rows, and targets that differ there: the density of all rows, from the places alone."""
    X, y = table()
    weights = np.random.default_rng(1).integers(1, 4, len(X)).astype(float)
    repeated = np.repeat(X, weights.astype(int), axis=0), np.repeat(y, weights.astype(int), axis=0)
    noisy = repeated[1] + 0.1 * np.random.default_rng(2).standard_normal(repeated[1].shape)

    def value(X, y, weights):
        rows = scaled_evidence.padded(X, y, weights, np.arange(D))
        return scaled_evidence.value_and_gradient(FAMILIES[0], "marginal_likelihood", D, rows, coordinates())[0]

    ones = np.ones(len(repeated[0]))
    assert value(X, y, weights) == pytest.approx(value(*repeated, ones), rel=1e-12)
    assert value(repeated[0], noisy, ones) == pytest.approx(exact(FAMILIES[0], repeated[0], noisy, ones), rel=1e-10)


def test_a_rough_kernel_and_copies_of_rows_leave_the_noise_above_0(monkeypatch):
    """The noise is 0.1. Without a prior the NTK explains it, and its error bars at rows of the table are 0."""
    X, y = table(60)
    model = wl.WideRegressor(kernel="ntk", activation="relu", depth=2)

    def noise(X, y):
        fitted = model.fit(X, y)
        return fitted.y_scale_[0] * fitted.noise_**0.5

    assert 0.03 < noise(X, y[:, 0]) < 0.3
    assert 0.03 < noise(np.tile(X, (2, 1)), np.tile(y[:, 0], 2)) < 0.3
    monkeypatch.setattr(input_scales, "PRIOR", np.array([*input_scales.PRIOR[:-1], np.inf]))
    monkeypatch.setattr(noise_level, "SURPRISES", 0.0)
    assert noise(X, y[:, 0]) < 1e-3


def test_left_out_rows_raise_noise_and_scale_as_refits_say():
    (X, y), weights = table(25), np.tile([1.0, 2.0, 0.5, 1.0, 1.0], 5)
    k, noise = wl.nngp(wl.mlp(depth=2, activation="erf", weight_std=3.0)), 1e-6
    counts = np.minimum(weights, 1)
    y = 1.3 * (y - np.average(y, axis=0, weights=weights))

    def refits(noise, again=1.0):
        """Squared errors of rows that are left out, also of the mean of the targets, and their expectation."""
        for i in range(25):
            rest = np.arange(25) != i
            mean = again * np.average(y, axis=0, weights=weights - counts * ~rest)
            post = wl.posterior(k, X[rest], y[rest] - mean, noise=noise / weights[rest])
            yield (mean + post.mean(X[[i]])[0] - y[i]) ** 2, post.variance(X[[i]])[0] + noise / weights[i]

    error = counts @ np.mean([e for e, _ in refits(noise)], axis=1) / counts.sum()
    least = SURPRISES / (SURPRISES + counts.sum()) * error
    factor = np.average([e / v for e, v in refits(least)], axis=0, weights=counts)
    assert noise < least
    assert (factor > 1.1).any()
    found = left_out_noise(np.array(k.gram(X)), y, weights, noise)
    assert found[0] == pytest.approx(least, rel=1e-6)
    np.testing.assert_allclose(found[1], np.maximum(factor, 1), rtol=1e-5)
    stays = np.average([e / v for e, v in refits(least, 0.0)], axis=0, weights=counts)
    assert not np.allclose(np.maximum(stays, 1), found[1], rtol=1e-3)  # with the mean of all rows
    kept, one = left_out_noise(np.array(k.gram(X)), y / 100, weights, 1.0)[:2]
    assert kept == 1.0
    np.testing.assert_array_equal(one, 1)  # error bars never shrink
    small = left_out_noise(np.array(k.gram(X)), y, weights / 1000, noise / 1000)  # weights in another unit
    np.testing.assert_allclose(np.hstack(small[:2]), np.hstack([found[0] / 1000, found[1]]), rtol=1e-9)
    plain = left_out_noise(np.array(k.gram(X)), y, np.ones(25), noise)  # the negative control
    assert plain[0] != pytest.approx(least, rel=1e-2)


def test_two_rows_are_predicted_by_one_another():
    X, y = np.array([[0.0, 1.0], [1.0, 0.0]]), np.array([1.0, 3.0])
    for model in (wl.WideRegressor(kernel="nngp", activation="rbf", depth=2), wl.NNGPRegressor(activation="rbf")):
        model.fit(X, y)
        assert 1.9 < model.predict([[30.0, -20.0]], return_std=True, include_noise=True)[1][0] < 2.6  # |y_1 - y_2| = 2
        assert model.predict(X, return_std=True, include_noise=True)[1].min() > 0.5


def test_error_bars_of_plateaus_are_no_surprise_to_left_out_rows():
    """Evidence takes the plateaus of the target for absence of noise."""
    X = np.random.default_rng(8).uniform(size=(60, D))
    y = np.where(X[:, 0] > 0.6, np.floor(3 * X[:, 1]), 0.0)
    model = wl.WideRegressor(kernel="nngp", activation="erf", depth=2).fit(X, y)
    left = model.fitted_.left_out()
    assert model.noise_ >= SURPRISES / (60 + SURPRISES) * np.mean(left.error**2) * 0.5
    assert np.mean(left.scores**2) < 1.001


def test_copies_of_a_row_that_is_hard_to_predict_do_not_widen_all_error_bars():
    """One outlier stands in the table 200 times: left out, all its copies are, and a new row finds them there."""
    X, y = table(60)
    y = y[:, 0].copy()
    y[0] += 3.0
    k, weights = wl.nngp(wl.mlp(depth=2, activation="erf", weight_std=3.0)), np.ones(60)
    once = left_out_noise(np.array(k.gram(X)), y[:, None], weights, 0.01)
    weights[0] = 200.0
    often = left_out_noise(np.array(k.gram(X)), y[:, None], weights, 0.01)
    assert often[0] < 2 * once[0]
    assert often[1][0] < 2 * once[1][0]


def test_data_without_noise_get_next_to_none_and_a_warning():
    X = table(60)[0]
    with pytest.warns(UserWarning, match="at a bound of noise"):
        fitted = wl.WideRegressor(kernel="nngp", activation="erf", depth=2).fit(X, np.sin(2 * X[:, 0]))
    assert fitted.y_scale_[0] * fitted.noise_**0.5 < 1e-3


def test_scales_find_the_inputs_that_matter():
    """The field's question: y = |x_j - 4| + noise of 1, one of eight inputs; without scales the RMSE is above 3."""
    rng = np.random.default_rng(0)
    X = rng.uniform(-40, 40, (820, 8))
    y = np.abs(X[:, 2] - 4) + rng.standard_normal(820)
    model = wl.WideRegressor(kernel="nngp", activation="erf", depth=2).fit(X[:420], y[:420])

    def rmse(model):
        return np.sqrt(np.mean((model.predict(X[420:]) - y[420:]) ** 2))

    assert rmse(model) < 1.15
    assert rmse(wl.NNGPRegressor(input_scales=None).fit(X[:420], y[:420])) > 3
    scales = np.std(X[:420], axis=0) / model.inputs_.scale
    assert scales[2] > 10 * np.delete(scales, 2).max()
    mean, deviation = model.predict(X[420:], return_std=True, include_noise=True)
    assert 0.9 <= np.mean(np.abs(mean - y[420:]) < 1.96 * deviation) <= 0.98


def test_a_search_that_gains_nothing_ends(monkeypatch):
    """The last gains on a long ridge are lost in rounding, as those of targets without noise.

    Where a search ends depends on the last bits of a processor; so 120 roundings are compared, and their means.
    """

    def value_and_gradient(*given):
        trials.append(given[-1])
        z, steep = given[-1], np.logspace(0, 4, given[-1].size)
        rounding = 1e-3 * np.sin(1e7 * z.sum() + len(scores[-1]))
        return -1000 - np.sum(steep * (z - 1) ** 2) + rounding, -2 * steep * (z - 1)

    monkeypatch.setattr(scaled_evidence, "value_and_gradient", value_and_gradient)
    search = Search(*table(), np.ones(40), np.arange(D), "marginal_likelihood")
    scores, counts = [], []
    for patience, line in ((input_scales.PATIENCE, input_scales.LINE), (1000, 20), (1, 20)):
        monkeypatch.setattr(input_scales, "PATIENCE", patience)
        monkeypatch.setattr(input_scales, "LINE", line)
        trials = []
        scores.append([])
        for _ in range(120):
            scores[-1].append(search.run(FAMILIES[0], search.start(FIRST), 150).score)
        counts.append(len(trials))
    lost, too_early = np.array(scores[1]) - scores[0], np.array(scores[1]) - scores[2]
    assert np.mean(lost < 0.01) > 0.65, lost
    assert abs(np.mean(lost)) < 0.025 < np.mean(too_early), (np.mean(lost), np.mean(too_early))
    assert counts[0] < 0.8 * counts[1], counts


def test_few_rows_do_not_decide_on_as_many_scales():
    """90 rows, 9 inputs that matter equally: scales cost at most a quarter of the error of one scale for all."""
    rng = np.random.default_rng(0)
    X = rng.uniform(-1, 1, (590, 9))
    f = np.linalg.norm(X, axis=1)
    y = (f + 0.1 * f.std() * rng.standard_normal(590) - f[:90].mean()) / f[:90].std()
    error = []
    for groups in (np.arange(9), np.zeros(9, int)):
        search = Search(X[:90] / X[:90].std(0), y[:90, None], np.ones(90), groups, "marginal_likelihood")
        found = input_scales.fit_input_scales(search, FAMILIES[:1])
        k = kernel_of(found.family, found.scales, **found.values, amplitude=found.amplitude)
        post = wl.posterior(k, search.X, y[:90], noise=found.noise)
        error.append(np.sqrt(np.mean((post.mean(X[90:] / X[:90].std(0)) - y[90:]) ** 2)))
    assert error[0] < 1.25 * error[1] < 1.25 * np.std(y[90:])
    assert len(np.unique(found.scales)) == 1


def test_scales_of_noise_do_not_differ_where_rows_are_few_for_them(monkeypatch):
    """16 rows of 8 inputs say nothing: the prior keeps predictions near the mean, which a wide one does not."""
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((216, 8)), rng.standard_normal(216)

    def error():
        model = wl.NNGPRegressor(depth=2, activation="erf").fit(X[:16], y[:16])
        return np.sqrt(np.mean((model.predict(X[16:]) - y[16:]) ** 2)) / np.std(y[16:])

    assert error() < 1.05
    monkeypatch.setattr(input_scales, "PER_SCALE", 0.1)
    assert error() > 1.3


def test_the_estimators_whose_network_is_given_learn_scales_and_keep_its_numbers():
    X, y = table()
    target, others = y[:, 0], {"depth": 2, "activation": "erf", "weight_std": 1.3, "bias_std": 0.0}
    for cls in (wl.NNGPRegressor, wl.NTKRegressor):
        model, plain = cls(**others).fit(X, target), cls(**others, input_scales=None).fit(X, target)
        assert model.hyperparameters_ == plain.hyperparameters_ == {"weight_std": 1.3, "bias_std": 0.0}
        learned = X.std(axis=0) / model.inputs_.scale
        assert learned[0] > 2 * learned[1:].max()
        np.testing.assert_allclose(plain.inputs_.scale, X.std(axis=0))
        assert model.log_marginal_likelihood_value_ > plain.log_marginal_likelihood_value_ + 0.5
    searched = wl.NNGPRegressor(**others | {"bias_std": 0.1}, hyperparameters="marginal_likelihood").fit(X, target)
    assert abs(np.log(searched.weight_std_ / 1.3)) > 0.01


@pytest.mark.parametrize("noise", ["auto", 0.05])
def test_the_unit_of_all_weights_is_that_of_the_noise(noise):
    """Of distinct rows: half of the table stands there twice, and rows at one place differ."""
    X, y = table()
    X[20:30] = X[:10]
    X, y, weights = np.tile(X, (2, 1)), np.tile(y[:, 0], 2), np.tile(np.linspace(1, 2, 40), 2)
    model = wl.WideRegressor(kernel="nngp", activation="erf", depth=2)
    one = clone(model).set_params(noise=noise).fit(X, y, weights)
    many = clone(model).set_params(noise=noise if noise == "auto" else 1e6 * noise).fit(X, y, 1e6 * weights)
    assert many.noise_ == pytest.approx(1e6 * one.noise_, rel=1e-6)
    for a, b in zip(many.predict(X, return_std=True), one.predict(X, return_std=True), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-8)


def test_where_scales_are_not_learned_every_column_counts_the_same(monkeypatch):
    """A given noise, or scale of the output, keeps its unit: that of a kernel whose inputs nothing scales."""
    X, y = table()
    settings = (
        *({"activation": "sign"}, {"normalize": "sphere"}, {"noise": 0.1}, {"output_scale": 2.0}),
        {"network": wl.mlp(depth=2)},
    )
    for each in settings:
        model, plain = (wl.NNGPRegressor(**each, input_scales=how).fit(X, y) for how in ("auto", None))
        np.testing.assert_array_equal(model.predict(X), plain.predict(X))
    proba = [wl.NTKClassifier(input_scales=how).fit(X, y[:, 0] > 0).predict_proba(X) for how in ("auto", None)]
    assert np.abs(proba[0] - proba[1]).max() > 0.01
    monkeypatch.setattr(classifiers, "LABEL_SCALES", D - 1)
    np.testing.assert_array_equal(wl.NTKClassifier().fit(X, y[:, 0] > 0).predict_proba(X), proba[1])


def climbing(heights):
    """A search whose ends are known: (steps of the race, later) of each depth; None: the start has no value."""

    def run(_, family, z, steps):
        height = heights[family.depth][steps > input_scales.RACE_STEPS]
        if height is None:
            raise ValueError("the evidence is not finite at the start")
        return input_scales.ScaledFit(family, np.ones(D), {}, 1.0, 0.1, height, (), z)

    return run


def test_a_family_that_starts_slowly_wins_in_the_end(monkeypatch):
    families = [Family("nngp", "erf", depth) for depth in (2, 3, 4, 5)]
    search = Search(*table(), np.ones(40), np.arange(D), "marginal_likelihood")
    monkeypatch.setattr(Search, "run", climbing({2: (5, 6), 3: (4, 9), 4: (3, None), 5: (None, 99)}))
    assert input_scales.fit_input_scales(search, families).family.depth == 3
    monkeypatch.setattr(input_scales, "FINALISTS", 1)
    assert input_scales.fit_input_scales(search, families).family.depth == 2
    monkeypatch.setattr(Search, "run", climbing(dict.fromkeys((2, 3, 4, 5), (None, None))))
    with pytest.raises(ValueError, match="not finite"):
        input_scales.fit_input_scales(search, families)


def test_functions_that_grow_must_be_more_likely():
    """Rows do not say how a function goes on beyond them: at nearly equal evidence the bounded network is chosen."""
    X, y = table()
    search = Search(X, y, np.ones(len(X)), np.arange(D), "marginal_likelihood")
    for family, less in ((FAMILIES[1], input_scales.GROWTH), (FAMILIES[0], 0.0)):
        found = search.run(family, search.start(FIRST), 3)
        k = kernel_of(family, found.scales, **found.values, amplitude=found.amplitude)
        away = (found.z - search.start(FIRST)) / np.concatenate([np.full(D, 1.5), input_scales.PRIOR[1:]])
        evidence = wl.posterior(k, X, y, noise=found.noise).log_marginal_likelihood() - away @ away / 2
        assert found.score == pytest.approx(evidence - less, abs=1e-6)


def test_inputs_of_one_group_share_a_scale():
    X, y = table()
    search = Search(X, y, np.ones(len(X)), np.array([0, 1, 1]), "leave_one_out")
    found = search.run(FAMILIES[0], search.start(FIRST), 5)
    assert found.scales[1] == found.scales[2] != found.scales[0]


@pytest.mark.parametrize("scales", ["auto", "agop"])
def test_columns_of_one_number_share_a_scale(scales, tmp_path):
    """Two columns of one category matter unequally; they share what an estimator learns, in a saved model too."""
    X, y = table()
    settings = {"activation": "erf", "depth": 2, "input_scales": scales}
    model = wl.NNGPRegressor(**settings, input_groups=np.array([7, -1, -1])).fit(X, y[:, 0])
    learned = X.std(axis=0) / model.inputs_.scale
    assert learned[1] == pytest.approx(learned[2], rel=1e-12)
    assert learned[0] > 3 * learned[1]
    free = X.std(axis=0) / wl.NNGPRegressor(**settings).fit(X, y[:, 0]).inputs_.scale
    assert abs(free[1] / free[2] - 1) > 1e-3
    wl.save(model, tmp_path / "m.npz")
    loaded = wl.load(tmp_path / "m.npz")
    assert loaded.input_groups == [7, -1, -1]
    np.testing.assert_array_equal(loaded.predict(X), clone(model).fit(X, y[:, 0]).predict(X))
    with pytest.raises(ValueError, match="2 numbers and X has 3 columns"):
        wl.NNGPRegressor(input_groups=[0, 1]).fit(X, y)


def test_a_file_from_before_a_parameter_has_its_default(tmp_path):
    X, y = table()
    wl.save(wl.NNGPRegressor(depth=2, noise=0.1).fit(X, y), tmp_path / "m.npz")
    header, arrays = model_file.contents(tmp_path / "m.npz")
    for name, loads in (("input_groups", True), ("input_scales", True), ("noise", False)):
        del header["parameters"][name]
        rewrite(tmp_path / "old.npz", header, arrays)
        if loads:
            old = wl.load(tmp_path / "old.npz")
            np.testing.assert_array_equal(old.predict(X), wl.load(tmp_path / "m.npz").predict(X))
            assert old.input_scales == ("auto" if name == "input_groups" else None)
        else:
            with pytest.raises(ValueError, match="other parameters"):
                wl.load(tmp_path / "old.npz")


def rewrite(path, header, arrays):
    header = {key: value for key, value in header.items() if key != "checksum"}
    text = json.dumps(header | {"checksum": model_file.checksum(header, arrays)})
    np.savez(path, **{model_file.HEADER: np.frombuffer(text.encode(), np.uint8)}, **arrays)


def test_the_gradient_of_a_fit_is_that_of_its_formula():
    """f(x) = sum_i exp(-gamma |x - x_i|^2) a_i, summed over outputs and weighted over rows; another gamma is seen."""
    X, y = table(30)
    weights = np.arange(1.0, 31.0)
    fitted = wl.posterior(wl.rbf(1.25**0.5), X, y, noise=0.1)
    apart = X[:, None] - X

    def expected(gamma):
        kernel = np.exp(-0.4 * np.sum(apart**2, axis=2))
        slope = np.einsum("mid,mi,ic->mcd", -2 * gamma * apart, kernel, fitted.weights)
        return weights @ np.sum(slope**2, axis=1) / weights.sum()

    found = mean_squared_gradient(fitted, X, weights)
    np.testing.assert_allclose(found, expected(0.4), rtol=1e-6)
    assert np.abs(found / expected(0.401) - 1).min() > 1e-3


def test_gradients_find_the_two_inputs_of_ten_that_matter():
    """With scales the error is less than half; inputs that all matter keep scales of one order."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((360, 10))
    y = np.sin(2 * X[:, 3]) + X[:, 7] ** 2 / 2 + 0.1 * rng.standard_normal(360)
    settings = {"depth": 2, "bias_std": 0.5}
    model = wl.NTKRegressor(**settings, input_scales="agop").fit(X[:160], y[:160])
    plain = wl.NTKRegressor(**settings, input_scales=None).fit(X[:160], y[:160])

    def rmse(model):
        return np.sqrt(np.mean((model.predict(X[160:]) - y[160:]) ** 2))

    assert rmse(model) < 0.5 * rmse(plain)
    scales = X[:160].std(axis=0) / model.inputs_.scale
    assert min(scales[3], scales[7]) > 5 * np.delete(scales, [3, 7]).max()
    even = gradient_scales(wl.ntk(wl.mlp(depth=2)), X, X.sum(axis=1)[:, None], np.ones(360), np.arange(10)).scales
    assert even.max() < 2 * even.min()


def test_a_saved_model_predicts_the_same_bits_and_a_forged_family_is_refused(tmp_path):
    X, y = table()
    model = wl.WideRegressor(activation="erf", depth=2).fit(X, y)
    assert model.family_ == FAMILIES[0]
    wl.save(model, tmp_path / "m.npz")
    loaded = wl.load(tmp_path / "m.npz")
    np.testing.assert_array_equal(loaded.predict(X), model.predict(X))
    assert loaded.family_ == model.family_
    state = loaded._state()
    state.values["family"] = ["nngp", "relu", 2]
    with pytest.raises(ValueError, match="another network"):
        wl.WideRegressor(activation="erf", depth=2).restore(state)


def test_what_the_search_does_not_know_is_refused():
    X, y = table()
    for model in (wl.NNGPRegressor(normalize="sphere", input_scales="agop"), wl.WideRegressor(normalize="sphere")):
        with pytest.raises(ValueError, match='normalize="standardize"'):
            model.fit(X, y)
    with pytest.raises(ValueError, match="activation must be"):
        wl.WideRegressor(activation="tanh").fit(X, y)
    with pytest.raises(ValueError, match="depth must be"):
        wl.WideRegressor(depth=1).fit(X, y)


def test_scales_by_gradients_serve_classifiers_and_chosen_networks():
    X, y = table()
    model = wl.NTKClassifier(depth=2, input_scales="agop").fit(X, y[:, 0] > 0)
    plain = wl.NTKClassifier(depth=2, input_scales=None).fit(X, y[:, 0] > 0)
    scales = X.std(axis=0) / model.inputs_.scale
    assert scales[0] > 2 * scales[1:].max()
    assert np.abs(model.predict_proba(X) - plain.predict_proba(X)).max() > 0.01
    chosen = wl.WideRegressor(depth=2, activation="relu", input_scales="agop").fit(X, y[:, 0])
    assert chosen.family_ in (Family("nngp", "relu", 2), Family("ntk", "relu", 2))
    assert X.std(axis=0)[0] / chosen.inputs_.scale[0] > 1.5
