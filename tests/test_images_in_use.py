"""Images in estimators, inference and training: arrays (n, height, width, channels) and rows are the same data."""

import numpy as np
import pytest
from sklearn.base import clone

import widelimit as wl
from widelimit.layers import Conv, Dense, Flatten

SHAPE = (4, 3, 2)
NET = wl.network(Conv(3, bias_std=0.3), "erf", Flatten(), Dense(), inputs=wl.Image(*SHAPE))
RNG = np.random.default_rng(0)
X = RNG.uniform(0, 255, size=(40, *SHAPE)).round()
X[..., 1] = X[..., 1] * 1e-3 + 7
X[:, 0, 0, 0] = 3  # a pixel that is constant, and is not left out
Y = X[:, 1, 1, 0] / 255 + RNG.normal(size=40) / 10
LABELS = np.where(X[:, 2, 1, 0] > 128, "b", "a")
Z = X[:7] + 1
ROWS = X.reshape(40, -1)


@pytest.mark.parametrize("cls", [wl.NNGPClassifier, wl.NTKClassifier])
def test_classifiers_of_images(cls, tmp_path):
    model = cls(network=NET).fit(X, LABELS)
    p = model.predict_proba(Z)
    assert np.allclose(p.sum(1), 1)
    assert np.array_equal(p, clone(model).fit(ROWS, LABELS).predict_proba(Z.reshape(7, -1)))
    assert (model.predict(X) == LABELS).mean() > 0.9
    model.save(tmp_path / "model.npz")
    assert np.array_equal(wl.load(tmp_path / "model.npz").predict_proba(Z), p)


@pytest.mark.parametrize("cls", [wl.NNGPRegressor, wl.NTKRegressor])
def test_regressors_of_images(cls, tmp_path):
    model = cls(network=NET).fit(X, Y)
    mean, std = model.predict(Z, return_std=True)
    assert mean.shape == std.shape == (7,)
    assert (std > 0).all()
    wl.save(model, tmp_path / "model.npz")
    again = wl.load(tmp_path / "model.npz").predict(Z.reshape(7, -1), return_std=True)
    assert np.array_equal(again[0], mean)
    assert np.array_equal(again[1], std)


def test_images_are_standardised_by_channel():
    inputs = wl.NNGPRegressor(network=NET).fit(X, Y).inputs_
    pixels = X.reshape(-1, 2)
    assert np.allclose(inputs.mean, np.tile(pixels.mean(0), 12))
    assert np.allclose(inputs.scale, np.tile(pixels.std(0), 12))
    points = inputs(ROWS).reshape(-1, 2)
    assert np.allclose(points.mean(0), 0, atol=1e-12)
    assert np.allclose(points.std(0), 1)
    points, y = points.reshape(X.shape), (Y - Y.mean()) / Y.std()
    by_hand = wl.posterior(wl.nngp(NET), points, y, noise=0.1).predict(points).mean
    assert np.allclose(by_hand, wl.NNGPRegressor(network=NET, noise=0.1, output_scale=1.0).fit(X, y).predict(X))


def test_a_weight_of_two_is_an_image_twice():
    weights = np.ones(40)
    weights[:5] = 2
    twice = np.concatenate([X, X[:5]]), np.concatenate([Y, Y[:5]])
    model = wl.NNGPRegressor(network=NET, noise=0.1)
    one, two = model.fit(X, Y, weights).predict(Z), clone(model).fit(*twice).predict(Z)
    assert np.allclose(one, two)


def test_bytes_and_constant_images():
    bytes_ = X.astype(np.uint8)
    model = wl.NNGPClassifier(network=NET).fit(bytes_, LABELS)
    assert np.array_equal(model.predict_proba(bytes_), clone(model).fit(bytes_ / 1.0, LABELS).predict_proba(bytes_))
    flat = np.concatenate([bytes_[:5], np.full((2, *SHAPE), 9, np.uint8)])
    assert np.isfinite(model.predict_proba(flat)).all()
    same = wl.NNGPClassifier(network=NET).fit(np.ones((6, *SHAPE)), ["a", "b"] * 3)
    assert np.allclose(same.predict_proba(np.ones((1, *SHAPE))), 0.5, atol=0.01)
    with pytest.warns(UserWarning, match=r"bytes \(uint8"):
        raw = wl.nngp(NET).gram(bytes_)
    assert np.array_equal(raw, wl.nngp(NET).gram(bytes_.astype(float)))
    with pytest.warns(UserWarning, match=r"bytes \(uint8"):
        wl.NNGPClassifier(network=NET, normalize=None).fit(bytes_, LABELS)
    grey = wl.Image(4, 3, 1)
    assert np.array_equal(grey.rows("X", X[..., 0]), grey.rows("X", X[..., :1]))


def test_a_classifier_that_hardly_tells_left_from_right(tmp_path):
    model = wl.NNGPClassifier(network=NET, invariance="flips").fit(X, LABELS)
    p, mirrored = model.predict_proba(Z), model.predict_proba(Z[:, :, ::-1])
    assert np.allclose(p, mirrored)
    assert not np.allclose(p, wl.NNGPClassifier(network=NET).fit(X, LABELS).predict_proba(Z), atol=1e-3)
    model.save(tmp_path / "model.npz")
    assert np.array_equal(wl.load(tmp_path / "model.npz").predict_proba(Z), p)
    with pytest.raises(ValueError, match=r"invariance='flips' moves images"):
        wl.NNGPClassifier(invariance="flips").fit(X.reshape(40, -1), LABELS)


def test_images_in_another_unit_than_those_of_the_fit():
    bytes_ = np.repeat(X[..., :1], 2, axis=-1).astype(np.uint8)
    for fitted, new in ((bytes_, bytes_ / 255), (bytes_ / 255, bytes_)):
        with pytest.warns(UserWarning, match=r"another unit"):
            wl.NNGPClassifier(network=NET).fit(fitted, LABELS).predict(new)


def test_features_of_images():
    features = wl.NTKFeatures(8, network=NET).fit(X)
    assert np.array_equal(features.transform(Z), wl.NTKFeatures(8, network=NET).fit(ROWS).transform(Z.reshape(7, -1)))


def test_inference_takes_images():
    x, z, k = X / 100, Z / 100, wl.ntk(NET)
    rows, new = x.reshape(40, -1), z.reshape(7, -1)
    pairs = [
        (wl.posterior(k, x, Y, noise=0.1).predict(z).mean, wl.posterior(k, rows, Y, noise=0.1).predict(new).mean),
        (wl.gradient_flow(k, x, Y).predict(z, 1.0), wl.gradient_flow(k, rows, Y).predict(new, 1.0)),
        ((2.0 * k + k).gram(z), (2.0 * k + k).gram(new)),
        (wl.GaussianProcess(k).sample(z, 2), wl.GaussianProcess(k).sample(new, 2)),
    ]
    for images, flat in pairs:
        assert np.array_equal(images, flat)
    with pytest.raises(ValueError, match=r"shape \(7, 24\)|\(n, d\)"):
        wl.posterior(wl.rbf(), x, Y)


def test_finite_networks_take_images():
    x = X[:5].astype(np.float32) / 100
    params = NET.init(0, width=4)
    kernels = [wl.empirical_ntk(NET.apply, params).gram(form) for form in (x, x.reshape(5, -1))]
    assert np.array_equal(*kernels)
    runs = [
        wl.train(NET.apply, params, form, Y[:5], learning_rate=0.1, steps=2, kernel_points=0, progress=False)
        for form in (x, x.reshape(5, -1))
    ]
    assert np.array_equal(*(run.history.loss for run in runs))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.moveaxis(X, -1, 1), r"moveaxis"),
        (X[0], r"one image is X\[None\]"),
        (X[:, :3], r"images of shape \(3, 3, 2\)"),
        (ROWS[:, :23], r"4 x 3 x 2 = 24"),
        (X * np.nan, r"NaN"),
        (X[:0], r"empty"),
        (np.ma.masked_greater(X, 3), r"mask"),
        (X.astype(complex), r"[Cc]omplex"),
        (X.astype(str), r"text|dtype"),
        (None, r"None"),
    ],
)
def test_bad_images_are_refused(bad, message):
    model = wl.NNGPClassifier(network=NET).fit(X, LABELS)
    for call in (lambda: clone(model).fit(bad, LABELS), lambda: model.predict(bad)):
        with pytest.raises((ValueError, TypeError), match=message) as refused:
            call()
        assert len(str(refused.value)) < 400


def test_images_without_a_network_that_reads_them():
    with pytest.raises(ValueError, match=r"network=wl.convnet\(inputs=wl.Image\(4, 3, 2\)\)"):
        wl.NNGPClassifier().fit(X, LABELS)


def test_one_pixel_and_channels_first():
    pixel, net = X[:, 1:2, 1:2, :1], wl.convnet(inputs=wl.Image(1, 1, 1), depth=1, end="pool", bias_std=1.0)
    one = wl.NNGPRegressor(network=net).fit(pixel, Y)
    assert np.corrcoef(one.predict(pixel), Y)[0, 1] > 0.9
    with pytest.warns(UserWarning, match=r"Image\(8, 8, 3\)"):
        wl.Image(3, 8, 8)


def test_scales_of_single_pixels_are_refused():
    for model in (wl.WideClassifier(network=NET), wl.NNGPClassifier(network=NET, input_scales="agop")):
        with pytest.raises(ValueError, match=r"pixels of a channel share"):
            model.fit(X, LABELS)


def test_numbers_of_a_network_of_images_are_searched():
    model = wl.NNGPRegressor(network=NET, hyperparameters="marginal_likelihood").fit(X, Y)
    assert model.hyperparameters_ != wl.NNGPRegressor(network=NET).fit(X, Y).hyperparameters_
