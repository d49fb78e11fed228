"""Finite networks written again in NumPy, their gradients by hand: nothing of the library's maps is used."""

import numpy as np
import pytest

import widelimit as wl
from widelimit.layers import Concatenate, Dense, LayerNorm, Serial, Sum

W, B = 1.3, 0.2
PHI = {
    "relu": (lambda u: np.maximum(u, 0), lambda u: (u > 0).astype(float)),
    "cos": (np.cos, lambda u: -np.sin(u)),
}
X = np.random.default_rng(3).standard_normal((3, 5))
WIDTH, NETWORKS = 768, 16
L = [Dense(W, B), Dense(1.0, 0.5)]

TREES = {
    "means add up": (
        [L[0], Sum([L[1], "relu"], [L[0], wl.Cos()]), L[0]],
        [(W, B), ("sum", [(1.0, 0.5), "relu"], [(W, B), "cos"]), (W, B)],
    ),
    "residual after relu": (
        [L[0], "relu", Sum(Serial(), [L[0], "relu"]), L[1], "relu", L[0]],
        [(W, B), "relu", ("sum", [], [(W, B), "relu"]), (1.0, 0.5), "relu", (W, B)],
    ),
    "norm over parts": (
        [L[0], Concatenate([L[1], "relu"], [L[0], wl.Cos()], shares=(0.25, 0.75)), LayerNorm(), L[1], "relu", L[0]],
        [(W, B), ("beside", (0.25, [(1.0, 0.5), "relu"]), (0.75, [(W, B), "cos"])), "norm", (1.0, 0.5), "relu", (W, B)],
    ),
    "dense connections": (
        [
            L[0],
            Concatenate(Serial(), ["relu", L[0]]),
            Concatenate(Serial(), ["relu", L[1]], shares=(2 / 3, 1 / 3)),
            LayerNorm(),
            "relu",
            L[0],
        ],
        [
            (W, B),
            ("kept beside", ["relu", (W, B)]),
            ("kept beside", ["relu", (1.0, 0.5)]),
            "norm",
            "relu",
            (W, B),
        ],
    ),
}


def dense(a, weight, bias, outputs, rng, kernel):
    w = rng.standard_normal((outputs, a.shape[1]))
    scale = weight / a.shape[1] ** 0.5

    def back(g):
        kernel.append((g @ g.T) * (scale**2 * (a @ a.T) + bias**2))
        return scale * (g @ w)

    return scale * (a @ w.T) + bias * rng.standard_normal(outputs), back


def norm(a):
    centred = a - a.mean(1, keepdims=True)
    s = np.sqrt(np.mean(centred**2, axis=1, keepdims=True))
    y = centred / s
    return y, lambda g: (g - g.mean(1, keepdims=True) - y * (g * y).mean(1, keepdims=True)) / s


def run(layers, a, width, rng, kernel):
    """(signals after the layers, the function that takes gradients back and appends each layer's part of Theta)."""
    backs = []
    for layer in layers:
        if layer == "norm":
            a, back = norm(a)
        elif isinstance(layer, str):
            (phi, slope), before = PHI[layer], a
            a, back = phi(a), lambda g, u=before, slope=slope: g * slope(u)
        elif layer[0] == "sum":
            ends = [run(branch, a, width, rng, kernel) for branch in layer[1:]]
            a, back = sum(end[0] for end in ends), lambda g, ends=ends: sum(end[1](g) for end in ends)
        elif layer[0] in ("beside", "kept beside"):
            parts = layer[1:] if layer[0] == "beside" else ((None, []), (1.0, layer[1]))
            ends = [run(branch, a, round((share or 1) * width), rng, kernel) for share, branch in parts]
            cuts = np.cumsum([end[0].shape[1] for end in ends])[:-1]
            a = np.concatenate([end[0] for end in ends], axis=1)

            def back(g, ends=ends, cuts=cuts):
                return sum(end[1](part) for end, part in zip(ends, np.split(g, cuts, axis=1), strict=True))
        else:
            a, back = dense(a, *layer, width, rng, kernel)
        backs.append(back)

    def whole(g):
        for back in backs[::-1]:
            g = back(g)
        return g

    return a, whole


def both_kernels(layers, width, rng):
    """K over the last layer's weights, and Theta, of one network with one output."""
    kernel = []
    a, back = run(layers[:-1], X, width, rng, kernel)
    weight, bias = layers[-1]
    K = weight**2 * a @ a.T / a.shape[1] + bias**2
    _, last = dense(a, weight, bias, 1, rng, kernel)
    back(last(np.ones((len(X), 1))))
    return K, sum(kernel)


def z_scores(name, width, networks):
    layers, described = TREES[name]
    rng = np.random.default_rng(0)
    found = np.array([both_kernels(described, width, rng) for _ in range(networks)])
    mean, error = found.mean(0), found.std(0, ddof=1) / networks**0.5
    limit = np.stack(wl.limits(wl.network(*layers)).gram(X))
    return (mean - limit) / error, (mean - 1.1 * limit) / error


@pytest.mark.parametrize("name", TREES)
def test_finite_networks_of_another_hand_have_both_limits(name):
    z, planted = z_scores(name, WIDTH, NETWORKS)
    assert np.abs(z).max() < 5
    assert np.abs(planted).max(axis=(1, 2)).min() > 5  # ten per cent, in either kernel


if __name__ == "__main__":  # the same at width 4096
    for name in TREES:
        z, planted = z_scores(name, 4096, 8)
        print(name, "largest |z|", np.abs(z).max(), "mean of z^2", np.mean(z**2), "planted", np.abs(planted).max())
