"""Networks of images by name: their text, finite maps and kernels; those of a publication against its recursion."""

import mpmath as mp
import numpy as np
import pytest

import image_oracle
import widelimit as wl

SMALL = {
    "convnet": wl.convnet(inputs=wl.Image(4, 4, 2), depth=3, bias_std=0.1, activation="erf", padding="circular"),
    "shallow": wl.convnet(inputs=wl.Image(6, 1), depth=1, size=(3,), end="pool"),
    "resnet": wl.resnet(inputs=wl.Image(4, 4, 1), blocks=(2, 1), end="pool"),
    "myrtle": wl.myrtle(7, inputs=wl.Image(4, 4, 3), parameterization="standard"),
    "residual": wl.garriga_alonso_2019("residual", inputs=wl.Image(2, 3, 1)),
    "published": wl.garriga_alonso_2019("residual", inputs=wl.Image(2, 3, 1), uncentred_sums=True),
    "resnet32": wl.garriga_alonso_2019("resnet32"),
}


@pytest.mark.parametrize("name", SMALL)
def test_networks_by_name_are_text(name):
    assert wl.read_network(repr(SMALL[name])) == SMALL[name]


@pytest.mark.parametrize("name", ["convnet", "residual"])
def test_finite_networks_by_name(name):
    net = SMALL[name]
    X = np.ones((2, *net.inputs.shape))
    assert net.apply(net.init(0, width=3, output_dim=2, dtype=np.float64), X).shape == (2, 2)


def test_depths():
    assert wl.convnet(inputs=wl.Image(4, 4, 1), depth=5).depth == 6
    assert [wl.myrtle(depth).depth for depth in (5, 7, 10)] == [5, 7, 10]
    assert wl.resnet(inputs=wl.Image(32, 32, 3), blocks=(5, 5, 5)).depth == 32
    assert wl.garriga_alonso_2019("convnet").depth == 8


def test_a_builder_in_a_text():
    text = 'wl.convnet(inputs=Image(4, 4, 1), depth=2, end="pool")'
    assert wl.read_network(text) == wl.convnet(inputs=wl.Image(4, 4, 1), depth=2, end="pool")


def residual_sums(x, y, *, centred):
    """8 times a + relu(conv(a)) over two images, as published; centred: with the means that it leaves out."""
    state, shape = image_oracle.start(x, y)
    conv = {"w": mp.sqrt(mp.mpf("7.27")) * 4, "b": mp.sqrt(mp.mpf("4.69"))}
    means = dict.fromkeys([key[:2] for key in state[0]], mp.mpf(0))
    for _ in range(8):
        inside = image_oracle.convolve(state, shape, 4, **conv)[0]
        after = image_oracle.activate(inside, "relu")
        own = {key: mp.sqrt(inside[0][*key, *key] / (2 * mp.pi)) for key in means}
        state = image_oracle.add([state, after])
        for a, p, c, q in state[0]:
            if centred:
                state[0][a, p, c, q] += means[a, p] * own[c, q] + own[a, p] * means[c, q]
        means = {key: means[key] + own[key] for key in means}
    end = {"w": mp.sqrt(mp.mpf("7.27")), "b": mp.sqrt(mp.mpf("4.69"))}
    steps = [("conv", 4, conv), "relu", "flatten", ("dense", end)]
    sigma = image_oracle.run(steps, state, shape)[0][0]
    return [float(sigma["x", (0, 0), other, (0, 0)]) for other in "xy"]


def test_the_published_sums_and_the_limit():
    X = np.random.default_rng(0).uniform(size=(2, 2, 3, 1))
    X[1, :, :1] = 0
    known = {name: wl.nngp(SMALL[name]).gram(X)[0] for name in ("residual", "published")}
    with mp.workdps(30):
        for name, centred in (("residual", True), ("published", False)):
            assert np.allclose(known[name], residual_sums(*X, centred=centred), rtol=1e-13, atol=0)
    assert (np.abs(known["residual"] / known["published"] - 1) > 0.1).all()


def test_uncentred_sums_are_said_in_the_text():
    assert "uncentred=True" in repr(SMALL["published"])
    assert "uncentred" not in repr(SMALL["residual"])
    two = [
        wl.layers.Sum([wl.layers.Dense(), "relu"], [wl.layers.Dense(), "relu"], uncentred=on) for on in (True, False)
    ]
    grams = [wl.nngp(wl.network(wl.layers.Dense(), s, wl.layers.Dense())).gram(np.eye(2) + 1) for s in two]
    assert (grams[1] > 1.1 * grams[0]).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: wl.myrtle(6), r"5, 7, 10"),
        (lambda: wl.myrtle(5, inputs=wl.Image(2, 2, 1)), r"leaves nothing"),
        (lambda: wl.convnet(inputs=wl.Image(8, 8, 1), end="dense"), r"end must be one of flatten, pool"),
        (lambda: wl.convnet(inputs=wl.Image(4, 4, 1), depth=3, padding="valid"), r"leaves nothing|changes the sites"),
        (lambda: wl.convnet(inputs=wl.Rows()), r"needs images"),
        (lambda: wl.resnet(inputs=wl.Image(8, 8, 1), blocks=3), r"blocks must be"),
        (lambda: wl.garriga_alonso_2019("convnet", uncentred_sums=True), r"uncentred_sums is for"),
        (lambda: wl.garriga_alonso_2019("lenet"), r"convnet, residual, resnet32"),
    ],
)
def test_bad_arguments_of_networks_by_name(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()
