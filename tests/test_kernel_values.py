"""Kernel entries against high-precision arithmetic: at most 64 eps of sqrt(K(x, x) K(y, y)), where representable."""

import mpmath as mp
import numpy as np
import pytest

import widelimit as wl
from cases import DTYPES, KERNELS, hard_pairs
from oracles import errors, kernels
from widelimit.compute import tiles

BOUND = 64  # eps of the dtype


def worst(dtype, kind, pairs, got, **net):
    """(error in eps, name) of the worst pair, leaving out results beyond the dtype's range."""
    eps, largest = float(np.finfo(dtype).eps), float(np.finfo(dtype).max)
    found = []
    for (name, x, y), value in zip(pairs, got, strict=True):
        error, reference = errors(value, x, y, kind=kind, **net)
        if abs(reference) > largest:
            assert np.isinf(value), (name, value)
            continue
        found.append((error / eps, name))
    return max(found)


def computed(dtype, kind, pairs, **net):
    X, Y = (np.stack([pair[i] for pair in pairs]) for i in (1, 2))
    values = np.diagonal(KERNELS[kind](wl.mlp(**net)).cross(X, Y))
    assert values.dtype == dtype
    assert not np.isnan(values).any()
    return values


GRID = [
    {"depth": depth, "activation": activation, "weight_std": weight_std, "bias_std": bias_std}
    for activation in ("relu", "erf")
    for depth in (2, 3, 10, 50)
    for weight_std in (1.0, 2**0.5, 2.0)
    for bias_std in (0.0, 0.1, 1.0)
]
COMMON = {"weight_std": 2**0.5, "bias_std": 0.1}
"""These of the depths 2 and 50 are in `make test`, all of them in `make test-claims`, which compiles as users do."""
CHAOTIC = [net for net in GRID if net["activation"] == "erf" and net["depth"] == 50 and net["weight_std"] > 1]


def marked(nets):
    """The networks as parameters of a test."""
    for net in nets:
        common = net.items() >= COMMON.items() and net["depth"] in (2, 50)
        yield pytest.param(net, id=name_of(net), marks=() if common else pytest.mark.claims)


def name_of(net):
    return "-".join(f"{value:.3g}" if isinstance(value, float) else str(value) for value in net.values())


@pytest.mark.parametrize("net", list(marked(net for net in GRID if net not in CHAOTIC)))
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_entries_are_right_to_64_eps(dtype, net):
    pairs = hard_pairs(dtype, every=1 if net["depth"] < 50 else 3)
    for kind in KERNELS:
        error, name = worst(dtype, kind, pairs, computed(dtype, kind, pairs, **net), **net)
        assert error <= BOUND, (kind, name)


@pytest.mark.parametrize("activation", ["identity", "leaky_relu", "abs"])
@pytest.mark.parametrize("dtype", [np.float64, pytest.param(np.float32, marks=pytest.mark.claims)])
def test_the_other_closed_forms(dtype, activation):
    for depth, bias_std in ((2, 0.0), (20, 0.1)):
        net = {"depth": depth, "activation": activation, "weight_std": 1.2, "bias_std": bias_std}
        pairs = hard_pairs(dtype, every=3)
        for kind in KERNELS:
            error, name = worst(dtype, kind, pairs, computed(dtype, kind, pairs, **net), **net)
            assert error <= BOUND, (kind, name, depth)


def condition(x, y, kind, **net):
    """sum_i |x_i dK/dx_i| / sqrt(K(x, x) K(y, y)): how much the entry magnifies relative errors of the input."""
    index = list(KERNELS).index(kind)
    step = mp.mpf(2) ** -80
    base, total = kernels(x, y, **net)[index], mp.mpf(0)
    for i in range(len(x)):
        nudged = [mp.mpf(float(v)) * (1 + step * (i == j)) for j, v in enumerate(x)]
        total += abs(kernels(nudged, y, **net)[index] - base) / step
    return float(total / mp.sqrt(kernels(x, x, **net)[index] * kernels(y, y, **net)[index]))


@pytest.mark.parametrize("net", list(marked(CHAOTIC)))
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_chaotic_networks(dtype, net):
    """erf, depth 50, in the chaotic phase: near inputs part by up to chi^49 ~ 1e9, and so does a rounding of an input.

    There the bound is 64 eps times the condition number of the entry, which is measured; where that is below 1, 64 eps.
    """
    pairs = hard_pairs(dtype, every=3)
    eps = float(np.finfo(dtype).eps)
    for kind in KERNELS:
        for (name, x, y), value in zip(pairs, computed(dtype, kind, pairs, **net), strict=True):
            error = errors(value, x, y, kind=kind, **net)[0] / eps
            if error > BOUND:
                assert error <= BOUND * condition(x, y, kind, **net), (kind, name)


def test_the_oracle_rejects_planted_errors():
    net = {"depth": 3, "activation": "relu", "weight_std": 1.4, "bias_std": 0.1}
    pairs = hard_pairs(np.float64, every=3)
    for kind in KERNELS:
        values = computed(np.float64, kind, pairs, **net)
        assert worst(np.float64, kind, pairs, values, **net)[0] <= BOUND
        assert worst(np.float64, kind, pairs, values * (1 + 1e-13), **net)[0] > BOUND
        assert worst(np.float64, kind, pairs, -values, **net)[0] > BOUND
        other = computed(np.float64, kind, pairs, **{**net, "bias_std": 0.1 + 1e-12})
        assert worst(np.float64, kind, pairs, other, **net)[0] > BOUND


def test_the_textbook_recursion_fails_where_this_one_does_not():
    """cos(theta) carried in float64 loses half of the digits at near duplicates: the case list can tell."""
    x = np.random.default_rng(0).standard_normal(6)
    y = x + 1e-7 * np.random.default_rng(1).standard_normal(6)
    net = {"depth": 2, "activation": "relu", "weight_std": 1.0, "bias_std": 0.0}
    q1, c, q2 = x @ x / 6, x @ y / 6, y @ y / 6
    theta = np.arccos(min(c / np.sqrt(q1 * q2), 1.0))
    dual = np.sqrt(q1 * q2) * (np.sin(theta) + (np.pi - theta) * np.cos(theta)) / (2 * np.pi)
    textbook = c * (np.pi - theta) / (2 * np.pi) + dual
    eps = np.finfo(np.float64).eps
    assert errors(np.float64(textbook), x, y, kind="ntk", **net)[0] > 1e4 * eps
    ours = wl.ntk(wl.mlp(**net)).cross(x[None], y[None])[0, 0]
    assert errors(ours, x, y, kind="ntk", **net)[0] < BOUND * eps


@pytest.mark.claims
@pytest.mark.parametrize("activation", ["tanh", "elu", "relu", "hard_tanh"])
def test_more_rows_are_compiled_in_another_way_and_keep_the_digits(activation):
    """From two patches on, XLA's older emitters write the program of such kernels."""
    k, X = (
        wl.ntk(wl.mlp(depth=3, activation=activation, bias_std=0.1)),
        np.random.default_rng(0).standard_normal((200, 4)),
    )
    X[1], X[2] = X[0] * (1 + 1e-9), -X[0]
    k = wl.ntk(wl.mlp(depth=3, activation=activation, bias_std=0.1)).prepared(X)  # one table for both
    several, one = tiles.gram(k, X)[:100, :100], tiles.gram(k, X[:100])
    scale = np.sqrt(np.outer(one.diagonal(), one.diagonal())) * np.finfo(float).eps
    assert (np.abs(several - one) / scale).max() <= 8
    assert (np.abs(several * (1 + 1e-14) - one) / scale).max() > 8
