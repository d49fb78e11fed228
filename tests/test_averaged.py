"""Kernels averaged over mirror images and shifts, against the mean over all moved images by hand."""

import numpy as np
import pytest

import widelimit as wl
from widelimit.layers import AveragePool, Conv, Dense, Flatten

RNG = np.random.default_rng(0)
NETS = {
    "odd patches": wl.network(Conv(3, bias_std=0.2), "relu", Flatten(), Dense(), inputs=wl.Image(4, 5, 2)),
    "even patches": wl.network(Conv(2), "relu", Flatten(), Dense(), inputs=wl.Image(4, 5, 2)),
}


def moves(X, flips, shifts):
    """All moves of images, by np.roll and zeros."""
    axes = range(1, X.ndim - 1)
    found = [X, X[..., ::-1, :]] if flips else [X]
    for axis in axes:
        moved = []
        for images in found:
            for step in range(-shifts, shifts + 1):
                rolled = np.roll(images, step, axis)
                at = [slice(None)] * X.ndim
                at[axis] = slice(None, step) if step > 0 else slice(step, None) if step < 0 else slice(0)
                rolled[tuple(at)] = 0
                moved.append(rolled)
        found = moved
    return found


@pytest.mark.parametrize(
    ("name", "flips", "shifts"),
    [("odd patches", True, 0), ("even patches", True, 1)],
)
def test_the_mean_over_all_moves(name, flips, shifts):
    net = NETS[name]
    X = RNG.standard_normal((3, *net.inputs.shape))
    moved = moves(X, flips, shifts)
    for kernel in [wl.ntk(net) if shifts else wl.nngp(net)]:
        k = wl.averaged(kernel, flips=flips, shifts=shifts)
        K = k.gram(X)
        cross = kernel.cross(np.concatenate(moved), np.concatenate(moved))
        known = cross.reshape(len(moved), 3, len(moved), 3).mean((0, 2))
        assert np.allclose(K, known, rtol=1e-13, atol=0)
        assert np.array_equal(K, K.T)
        assert np.array_equal(np.diag(K), k.diag(X))
        assert np.allclose(k.cross(X[:1], X[1:].reshape(2, -1)), K[:1, 1:], rtol=1e-14)
        assert (np.abs(K - kernel.gram(X)) > 1e-3 * np.abs(K)).any()
        if flips:
            assert np.allclose(k.cross(X[:, :, ::-1], X), K, rtol=1e-13)


def test_one_mean_suffices_where_a_network_does_not_know_left_from_right():
    def once(*layers, width=5):
        return wl.averaged(wl.nngp(wl.network(*layers, inputs=wl.Image(4, width, 2))), flips=True).once

    end = ["relu", Flatten(), Dense()]
    assert once(Conv(3), *end)
    assert once(Conv(3, padding="valid", stride=2), *end)
    assert once(Conv(3), "relu", AveragePool((2, 1)), Conv(1), *end)
    assert not once(Conv(2), *end)
    assert not once(Conv(3, stride=2), *end, width=6)
    assert not once(Conv(3), "relu", AveragePool(2), Conv(1), *end)
    assert not wl.averaged(2.0 * wl.nngp(NETS["odd patches"]), flips=True).once


def test_an_averaged_kernel_is_a_kernel():
    net = NETS["odd patches"]
    X, y = RNG.standard_normal((6, 4, 5, 2)), RNG.standard_normal(6)
    k = 0.5 * wl.averaged(wl.nngp(net), flips=True)
    mean = wl.posterior(k, X, y, noise=0.1).predict(X).mean
    assert np.allclose(mean, wl.posterior(k, X[:, :, ::-1], y, noise=0.1).predict(X).mean)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda k: wl.averaged(k), r"nothing to average"),
        (lambda k: wl.averaged(k, shifts=4), r"out of sight"),
        (lambda k: wl.averaged(wl.rbf(), flips=True), r"network of images"),
        (lambda k: wl.averaged(wl.nngp(wl.mlp(depth=2)), flips=True), r"network of images"),
    ],
)
def test_bad_averages_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(wl.nngp(NETS["odd patches"]))
