"""Recurrent networks, gates, and linear maps over sites: oracles of 60 digits, laws, bad input."""

import itertools

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest

import by_numpy
import cases
import image_oracle
import oracles
import widelimit as wl
from compiled import quick_jit
from widelimit.layers import (
    Conv,
    Dense,
    Dropout,
    Flatten,
    Frozen,
    GlobalAveragePool,
    Mix,
    Product,
    Recurrent,
    Resize,
    Select,
    Serial,
)

RNG = np.random.default_rng(0)
SEQUENCES = [RNG.standard_normal((t, 2)) for t in (3, 2, 3, 1)]
SEQUENCES[2] = SEQUENCES[0] * (1 + 1e-9)
STDS = {"input_std": 1.3, "weight_std": 1.2, "bias_std": 0.3}
A = RNG.standard_normal((2, 3))
INPUTS = wl.Sequence(3, 2)


def start(x, y):
    """Sigma, and Theta = 0, of the signals of two sequences: {(input, time, input, time): number}."""
    both = {"x": x, "y": y}
    times = [(a, t) for a in "xy" for t in range(len(both[a]))]
    pairs = [(*first, *second) for first, second in itertools.product(times, repeat=2)]
    sigma = {
        (a, t, c, u): mp.fdot(*[[mp.mpf(float(v)) for v in both[k][s]] for k, s in ((a, t), (c, u))]) / 2
        for a, t, c, u in pairs
    }
    return sigma, dict.fromkeys(sigma, mp.mpf(0))


def recur(state, name, *, shared=True, trained=True):
    """Both kernels after phi; with weights of its own at every time (`shared` False) 0 between different times."""
    (u, w, b), dual = (mp.mpf(STDS[k]) ** 2 for k in STDS), oracles.DUALS[name]
    z, after = ({}, {}), ({}, {})
    for key in sorted(
        state[0], key=lambda key: (max(key[1], key[3]), key[:2] != key[2:])
    ):  # earlier, and variances, first
        a, t, c, s = key
        h = [part.get((a, t - 1, c, s - 1), mp.mpf(0)) for part in after]
        z[0][key] = (w * h[0] + u * state[0][key] + b) * (shared or t == s)
        z[1][key] = (w * h[1] + u * state[1][key]) * (shared or t == s) + trained * z[0][key]
        value, slope = dual(z[0][a, t, a, t], z[0][key], z[0][c, s, c, s])
        after[0][key], after[1][key] = value, z[1][key] * slope
    return after


def last(state):
    ends = {a: max(key[1] for key in state[0] if key[0] == a) for a in "xy"}
    places = list(itertools.product("xy", repeat=2))
    return tuple({(a, 0, c, 0): part[a, ends[a], c, ends[c]] for a, c in places} for part in state)


def mix(state, matrix):
    """Sigma <- A Sigma A^T; sites that are not there are 0, and so are sums without any."""
    new = ({}, {})
    for part, out in zip(state, new, strict=True):
        for a, i, c, j in itertools.product("xy", range(len(matrix)), "xy", range(len(matrix))):
            out[a, i, c, j] = mp.fsum(
                mp.mpf(float(matrix[i, t])) * mp.mpf(float(matrix[j, u])) * part[a, t, c, u]
                for t, u in itertools.product(range(matrix.shape[1]), repeat=2)
                if (a, t, c, u) in part
            )
    return new


def dense(state, w=1.0, b=0.0):
    w, b = mp.mpf(w) ** 2, mp.mpf(b) ** 2
    sigma = {key: w * value + b for key, value in state[0].items()}
    return sigma, {key: w * state[1][key] + sigma[key] for key in sigma}


def mean_of_sites(state):
    count = {a: len({key[1] for key in state[0] if key[0] == a}) for a in "xy"}
    return tuple(
        {
            (a, 0, c, 0): mp.fsum(v for key, v in part.items() if key[::2] == (a, c)) / (count[a] * count[c])
            for a, c in itertools.product("xy", repeat=2)
        }
        for part in state
    )


def product(x, y):
    sigma = {key: x[0][key] * y[0][key] for key in x[0]}
    return sigma, {key: x[1][key] * y[0][key] + x[0][key] * y[1][key] for key in sigma}


def errors(net, steps, pairs=((0, 1), (0, 2), (1, 3)), data=SEQUENCES):
    """The largest errors of Sigma and Theta over sqrt(K(x, x) K(x', x')), in eps."""
    grams = wl.limits(net).gram(data)
    worst = [0.0, 0.0]
    with mp.workdps(60):
        for i, j in pairs:
            found = steps(start(data[i], data[j]))
            for kind, gram in enumerate(grams):
                known = {at: found[kind][at] for at in itertools.product("x", [0], "xy", [0])}
                size = mp.sqrt(found[kind]["x", 0, "x", 0] * found[kind]["y", 0, "y", 0])
                for (_, _, c, _), value in known.items():
                    error = abs(mp.mpf(float(gram[i, i if c == "x" else j])) - value) / size
                    worst[kind] = max(worst[kind], float(error))
    return np.array(worst) / np.finfo(float).eps


def network(*layers, inputs=INPUTS):
    return wl.network(*layers, inputs=inputs)


LAST = network(Recurrent("relu", **STDS, readout="last"), Dense(1.1, 0.2))
ALL = network(Recurrent("erf", **STDS), Dense(0.9, 0.1), GlobalAveragePool(), Dense())
CASES = {
    "last": (LAST, lambda s, **more: dense(last(recur(s, "relu", **more)), 1.1, 0.2)),
    "all": (ALL, lambda s, **more: dense(mean_of_sites(dense(recur(s, "erf", **more), 0.9, 0.1)))),
    "two": (
        network(Recurrent("relu", **STDS), Frozen(Recurrent("erf", **STDS, readout="last")), Dense()),
        lambda s, **more: dense(last(recur(recur(s, "relu", **more), "erf", trained=False, **more))),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_recurrent_kernels_to_64_eps(name):
    net, steps = CASES[name]
    assert max(errors(net, steps)) <= 64
    assert min(errors(net, lambda state: steps(state, shared=False))) > 1e12  # weights of its own at every time


def test_mixed_sites_to_64_eps():
    net = network(Dense(1.3, 0.3), "relu", Mix(A), Dense(1.1, 0.2), "relu", Mix([[0.5, -2.0]]), Dense())

    def steps(state, matrix=A):
        state = image_oracle.activate(dense(state, 1.3, 0.3), "relu")
        state = image_oracle.activate(dense(mix(state, matrix), 1.1, 0.2), "relu")
        return dense(mix(state, np.array([[0.5, -2.0]])))

    assert max(errors(net, steps, pairs=((0, 1), (1, 3)))) <= 64
    assert min(errors(net, lambda state: steps(state, abs(A)), pairs=((0, 1),))) > 1e10


def test_gates_to_64_eps():
    net = network(
        Dense(1.3, 0.3), Product(Dense(1.2, 0.1), [Dense(0.9), "relu"]), Dense(1.1, 0.2), "relu", Select(0), Dense()
    )

    def steps(state, factor=1):
        state = dense(state, 1.3, 0.3)
        gate = image_oracle.activate(dense(state, 0.9), "relu")
        sigma, theta = product(dense(state, 1.2, 0.1), gate)
        after = image_oracle.activate(dense((sigma, {k: factor * v for k, v in theta.items()}), 1.1, 0.2), "relu")
        return dense(mix(after, np.array([[1.0, 0.0, 0.0]])))

    assert max(errors(net, steps)) <= 64
    assert errors(net, lambda state: steps(state, factor=2), pairs=((0, 1),))[1] > 1e12


def test_padding_and_what_is_masked_have_no_influence():
    for layers in (ALL.layers, LAST.layers):
        K = by_numpy.gram(wl.ntk(network(*layers, inputs=wl.Sequence(3, 2))), SEQUENCES)
        longer = wl.ntk(network(*layers, inputs=wl.Sequence(5, 2)))
        assert np.abs(by_numpy.gram(longer, SEQUENCES) - K).max() <= 64 * np.finfo(float).eps * K.max()
    padded = np.full((4, 5, 2), np.nan)
    mask = np.zeros((4, 5), bool)
    for row, there, values in zip(padded, mask, SEQUENCES, strict=True):  # holes: their times are skipped
        there[[0, 2, 3][: len(values)]] = True
        row[there] = values
    rows = longer.net.inputs.pack(padded, mask=mask)
    assert np.abs(by_numpy.gram(longer, rows) - K).max() <= 64 * np.finfo(float).eps * K.max()


def test_a_single_time_is_a_multilayer_perceptron():
    net = network(Recurrent("tanh", weight_std=1.2, bias_std=0.3, readout="last"), Dense(1.1, 0.2))
    alone = wl.network(Dense(1.0, 0.3), "tanh", Dense(1.1, 0.2))
    found, known = by_numpy.limits(net, SEQUENCES), wl.limits(alone).gram(SEQUENCES[3])
    for a, b in zip(found, known, strict=True):
        assert a[3, 3] == pytest.approx(b[0, 0], rel=1e-9)
        assert np.linalg.eigvalsh(a).min() > -1e-9


def test_finite_maps_skip_what_is_masked():
    params = LAST.init(0, width=16, output_dim=2)
    each = [LAST.apply(params, [x.astype(np.float32)]) for x in SEQUENCES]
    together = LAST.apply(params, [x.astype(np.float32) for x in SEQUENCES])
    assert np.allclose(np.concatenate(each), together, rtol=1e-5, atol=1e-6)
    W, U, b = (np.asarray(params[0][name]) for name in ("recurrent", "weight", "bias"))
    h = np.zeros(16)
    for x in SEQUENCES[0]:
        h = np.maximum(0, 1.2 / 4 * W @ h + 1.3 / 2**0.5 * U @ x + 0.3 * b)
    out = 1.1 / 4 * np.asarray(params[1]["weight"]) @ h + 0.2 * np.asarray(params[1]["bias"])
    assert np.allclose(together[0], out, rtol=1e-4, atol=1e-5)


IMAGES = RNG.standard_normal((3, 4, 3, 2))
HEAD = [Conv(2, 1.2, 0.3), "relu"]


POOLED = (GlobalAveragePool(), Dense())


def of_images(*layers, end=POOLED):
    return wl.limits(network(*HEAD, *layers, *end, inputs=wl.Image(4, 3, 2))).gram(IMAGES)


def by_jax(*layers, end=POOLED):
    return by_numpy.limits(network(*HEAD, *layers, *end, inputs=wl.Image(4, 3, 2)), IMAGES)


def test_fixed_maps_that_are_other_layers():
    flat = (Flatten(), Dense())
    pooled = of_images()
    pairs = [
        (of_images(end=(Mix(np.full((1, 12), 1 / 12)), Dense())), pooled),
        (by_jax(Select([3, 1]), Select(0, axis=1), end=flat), by_jax(Mix(np.eye(12)[[9, 3]]), end=flat)),
        (by_jax(Resize((2, 3))), by_jax(Mix(LINEAR, axis=0))),
    ]
    for found, known in pairs:
        for a, b in zip(found, known, strict=True):
            assert np.abs(a - b).max() <= 64 * np.finfo(float).eps * b.max()
    assert np.abs(by_jax(Mix(1.01 * np.eye(12)))[1] - pooled.ntk).max() > 1e-3


LINEAR = np.array([[3.0, 3.0, 1.0, 0.0], [0.0, 1.0, 3.0, 3.0]]) / 7


@pytest.mark.parametrize("method", ["nearest", "linear"])
def test_resize_is_that_of_jax(method):
    for sites in ((2, 5), (7, 3), (4, 2)):
        layer = network(Conv(1), Resize(sites, method), Flatten(), Dense(), inputs=wl.Image(4, 3, 2)).layers[1]
        known = jax.image.resize(IMAGES.astype(np.float32), (3, *sites, 2), method)
        assert np.allclose(layer.apply((), jnp.asarray(IMAGES, jnp.float32)), known, rtol=1e-5, atol=1e-6)


def test_one_network_on_two_inputs():
    """f(x) - f(z) with the same weights: K(x, x') - K(x, z') - K(z, x') + K(z, z') of the network of each."""
    body = [Dense(1.3, 0.3), "relu", Dense()]
    pairs = RNG.standard_normal((4, 2, 3))
    both = network(Dense(1.3, 0.3), "relu", Mix([[1.0, -1.0]]), Dense(), inputs=wl.Image(2, 3))
    one = wl.nngp(network(*body, inputs=wl.Rows()))
    x, z = pairs[:, 0], pairs[:, 1]
    known = one.gram(x) - one.cross(x, z) - one.cross(z, x) + one.gram(z)
    assert np.allclose(wl.nngp(both).gram(pairs), known, rtol=1e-12, atol=1e-14)


def test_networks_are_text_and_have_gradients():
    others = [wl.network(*layers, inputs=inputs) for inputs, layers in cases.MIXED_NETWORKS.values()]
    for net in (LAST, ALL, *others):
        assert wl.read_network(repr(net)) == net


def test_kernels_have_gradients():
    rows = jnp.asarray(INPUTS.rows("X", SEQUENCES[:2]), jnp.float32)

    def value(w):
        return wl.nngp(network(Recurrent("erf", weight_std=w, readout="last"), Dense())).cross(rows[:1], rows[1:])[0, 0]

    both, step = quick_jit(jax.value_and_grad(value)), 1e-2
    slope, known = both(1.2)[1], both(1.2 + step)[0] - both(1.2 - step)[0]
    assert float(slope) == pytest.approx(float(known) / (2 * step), rel=1e-2)


def test_what_has_no_limit_or_does_not_fit_is_refused():
    flat = wl.Image(4, 3, 2)
    for message, make in {
        "one axis of sites": lambda: network(Recurrent(), Flatten(), Dense(), inputs=flat),
        "input_std": lambda: Recurrent(input_std=0.0),
        "weight_std": lambda: Recurrent(weight_std=-1.0),
        "readout": lambda: Recurrent(readout="first"),
        "activation": lambda: network(Recurrent(), "relu", GlobalAveragePool(), Dense()),
        "NTK parameterisation": lambda: wl.network(*LAST.layers, inputs=INPUTS, parameterization="standard"),
        "columns": lambda: network(Dense(), Mix(np.eye(2)), Flatten(), Dense()),
        "12 sites": lambda: network(Conv(1), Mix(np.eye(2)), Flatten(), Dense(), inputs=flat),
        "sites before": lambda: Mix([1.0, 2.0]),
        "matrix": lambda: Mix([[np.nan]]),
        "reads the site 3": lambda: network(Dense(), Select(3), Dense()),
        "is empty": lambda: Select([]),
        "each of sites": lambda: Select(0.5),
        "method": lambda: Resize(2, "cubic"),
        "nodes of graphs": lambda: network(Dense(), Select(0), Dense(), inputs=wl.Graph(3, 2)),
        "not independent": lambda: network(Dense(), Product("relu", "erf"), Dense(), inputs=wl.Rows()),
        "needs Gaussian": lambda: network(Dense(), Product(Dense(), Dense()), "relu", Dense(), inputs=wl.Rows()),
        "at least one branch": Product,
        "Dropout": lambda: network(Dense(), Dropout(0.5), Recurrent(readout="last"), Dense()),
        "too short": lambda: wl.nngp(network(Dense(), Select(2), Dense())).gram(SEQUENCES),
    }.items():
        with pytest.raises((ValueError, TypeError), match=message) as found:
            make()
        assert len(str(found.value)) < 400, message


def test_a_product_of_one_branch_is_the_branch():
    X, layers = RNG.standard_normal((3, 2)), [Dense(1.2), "relu"]
    one, known = (wl.ntk(wl.network(Dense(), part, Dense())).gram(X) for part in (Product(layers), Serial(*layers)))
    assert np.allclose(one, known, rtol=1e-14)


@pytest.mark.claims
@pytest.mark.slow
def test_a_step_of_a_gated_unit_has_the_kernel_of_independent_gates():
    """z h + (1 - z) n with one gate z, from 2e6 Gaussian draws; a candidate that is a function of h has another one."""
    gate = [Dense(1.1, 0.3), "sigmoid"]
    step = wl.layers.Sum(Product(gate, Serial()), Product(gate, [Dense(1.4, 0.2), "tanh"]))
    X, n, rng = np.array([[1.0, 0.5, -0.3], [0.2, -1.0, 0.8]]), 2_000_000, np.random.default_rng(0)
    K, S = by_numpy.gram(wl.nngp(wl.network(Dense(1.2, 0.4), step, Dense())), X), 1.2**2 * X @ X.T / 3 + 0.4**2

    def signal(weight, bias):
        return rng.multivariate_normal(np.zeros(2), weight**2 * S + bias**2, n)

    def largest(candidate):
        signals = z * h + (1 - z) * np.tanh(candidate)
        product = signals[:, :, None] * signals[:, None]
        return np.max(np.abs(product.mean(axis=0) - K) / product.std(axis=0) * np.sqrt(n))

    h, z = signal(1, 0), 1 / (1 + np.exp(-signal(1.1, 0.3)))
    assert largest(signal(1.4, 0.2)) < 4
    assert largest(1.4 * h + rng.normal(0, 0.2, (n, 1))) > 20
