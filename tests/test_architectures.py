"""Trees of layers: both limits against high precision, and against finite networks; what has no limit is refused."""

import functools
import itertools

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest

import by_numpy
import oracles
import widelimit as wl
from tree_oracle import B, W, after, exact, worst
from widelimit.architecture.stacking import unstacked
from widelimit.claims.finite import one_network
from widelimit.kernels.sphere import Sphere
from widelimit.layers import Concatenate, Dense, Dropout, Frozen, LayerNorm, Repeat, Residual, Scale, Serial, Sum

# name: (layers of the library, the same as the oracle reads it)
TREES = {
    "residual": (
        [Dense(W, B), Repeat([Residual("relu", Dense(W, B))], 4), Dense()],
        ["d", *[["sum", [], ["relu", "d"]]] * 4, "d1"],
    ),
    "post-activation residual": (
        [Dense(W, B), "gelu", Repeat([Residual(Dense(W, B), "relu")], 3), Dense(W, B)],
        ["d", "gelu", *[["sum", [], ["d", "relu"]]] * 3, "d"],
    ),
    "two means": (
        [Dense(W, B), Sum([Dense(), "relu"], [Dense(W, B), "gelu"], [Dense(W, B), "erf"]), Dense(W, B)],
        ["d", ["sum", ["d1", "relu"], ["d", "gelu"], ["d", "erf"]], "d"],
    ),
    "normalised": (
        [Dense(W, B), LayerNorm(), "gelu", LayerNorm(), Dense(W, B), "relu", Dense(W, B)],
        ["d", "norm", "gelu", "norm", "d", "relu", "d"],
    ),
    "normalised residual": (
        [Dense(W, B), Repeat([Residual(LayerNorm(), "gelu", Dense(W, B), Scale(0.5))], 2), Dense()],
        ["d", *[["sum", [], ["norm", "gelu", "d", "half"]]] * 2, "d1"],
    ),
    "side by side": (
        [Dense(W, B), Concatenate([Dense(), "relu"], [Dense(W, B), "gelu"], shares=(0.25, 0.75)), Dense(W, B)],
        ["d", ["beside", 0.25, ["d1", "relu"], 0.75, ["d", "gelu"]], "d"],
    ),
    "waves": (
        [Dense(W, B), wl.Sin(), Dense(W, B), "relu", Dense(W, B), wl.Cos(), Dense(W, B), "relu", Dense(W, B)],
        ["d", "sine", "d", "relu", "d", "cosine", "d", "relu", "d"],
    ),
    "dense-connected": (
        [
            Dense(W, B),
            Concatenate(Serial(), ["relu", Dense(W, B)]),
            Concatenate(Serial(), ["gelu", Dense(W, B)], shares=(2 / 3, 1 / 3)),
            "erf",
            Dense(),
        ],
        [
            "d",
            [
                "beside",
                *(1 / 3, ["erf"], 1 / 3, ["relu", "d", "erf"]),
                *(1 / 3, [["beside", 0.5, ["gelu"], 0.5, ["relu", "d", "gelu"]], "d", "erf"]),
            ],
            "d1",
        ],
    ),
    "sum of parts": (
        [
            Dense(W, B),
            Sum(
                Concatenate([Dense(), "relu"], [Dense(W, B), "erf"]),
                Concatenate([Dense(W, B), "gelu"], [Dense(), "relu"]),
            ),
            Dense(W, B),
        ],
        [
            "d",
            ["beside", 0.5, [["sum", ["d1", "relu"], ["d", "gelu"]]], 0.5, [["sum", ["d", "erf"], ["d1", "relu"]]]],
            "d",
        ],
    ),
    "scaled by layer": (
        [Dense(2.5, 0.1), "relu", Dense(0.3, 1.5), Residual(Scale(0.5), LayerNorm(), "gelu", Dense(0.7, 0.0)), Dense()],
        [["d", 2.5, 0.1], "relu", ["d", 0.3, 1.5], ["sum", [], ["half", "norm", "gelu", ["d", 0.7, 0.0]]], "d1"],
    ),
    "repeated after a mean": (
        [Dense(W, B), "relu", Repeat([LayerNorm()], 2), "identity", Repeat([Dense(W, B)], 5), Dense()],
        ["d", "relu", "norm", *["d"] * 5, "d1"],
    ),
    "repeated after parts": (
        [Dense(W, B), Concatenate(Dense(), Dense(3.0, B)), Repeat(["relu", Dense(W, B)], 2), Dense()],
        ["d", ["beside", 0.5, ["d1", "relu"], 0.5, [["d", 3.0, B], "relu"]], "d", "relu", "d", "d1"],
    ),
    "alike but for numbers": (
        [Dense(W, B), *[layer for k in range(5) for layer in ("relu", Dense(1 + k / 10, B))]],
        ["d", *[layer for k in range(5) for layer in ("relu", ["d", 1 + k / 10, B])]],
    ),
    "identity keeps means": (
        [Dense(W, B), "relu", "identity", LayerNorm(), Dense(W, B)],
        ["d", "relu", "norm", "d"],
    ),
    "mixed": (
        [Dense(W, B), "relu", Dense(), "erf", Dense(W, B), "gelu", Dense()],
        ["d", "relu", "d1", "erf", "d", "gelu", "d1"],
    ),
    "doubled": ([Dense(W, B), Sum(Serial(), Serial()), "relu", Dense()], ["d", "double", "relu", "d1"]),
    "frozen": ([Frozen(Dense(W, B)), "relu", Frozen(Dense(W, B)), "relu", Dense()], ["f", "relu", "f", "relu", "d1"]),
}


RNG = np.random.default_rng(0)
BASE = RNG.standard_normal((3, 4))
HARD = np.stack([BASE[0], BASE[1], BASE[0] * (1 + 1e-9), BASE[0] + 1e-11, -1e5 * BASE[1], np.zeros(4)])


def both_grams(net, X):
    """In float64 by the programs that test_uses_of_trees.py needs too; in float32 by one for both kernels."""
    return (wl.nngp(net).gram(X), wl.ntk(net).gram(X)) if X.dtype == np.float64 else wl.limits(net).gram(X)


@pytest.mark.parametrize("name", TREES)
@pytest.mark.parametrize("dtype", [np.float64, pytest.param(np.float32, marks=pytest.mark.claims)])
def test_both_kernels_to_64_eps(name, dtype):
    layers, described = TREES[name]
    X, net = HARD.astype(dtype), wl.network(*layers)
    found, planted = worst(described, X, both_grams(net, X))
    assert found <= 64 * np.finfo(dtype).eps < planted


def built_and_right(layers, described):
    """The network, whose kernels by NumPy are right to 64 eps, and a planted error larger."""
    net = wl.network(*layers)
    found, planted = worst(described, HARD, by_numpy.limits(net, HARD))
    assert found <= 64 * np.finfo(float).eps < planted
    return net


@pytest.mark.parametrize("name", TREES)
def test_both_kernels_of_every_tree_without_compilation(name):
    """The same operations, one by one in NumPy: those that the test above has compiled."""
    built_and_right(*TREES[name])


def operations(program):
    """In a compiled program, over those that it was compiled from: work that is written out again for every use."""
    return len(program.compile().as_text().splitlines()) / len(program.as_text().splitlines())


def test_programs_grow_like_the_networks_they_compute():
    """XLA would write the layers before a layer out again in each of its fused loops: 14 times the operations."""
    connected = [
        Concatenate(Serial(), ["relu", Dense(W, B)], shares=((k + 1) / (k + 2), 1 / (k + 2))) for k in range(3)
    ]
    kernel = wl.ntk(wl.network(Dense(W, B), *connected, Dense()))
    X = jnp.asarray(BASE)
    encode = jax.jit(lambda kernel, X: kernel.encode(X))
    assert operations(encode.lower(kernel, X)) < 6
    kernel = wl.ntk(wl.network(Dense(W, B), *[Residual("relu", Dense(W, B))] * 3, Dense()))
    features = encode(kernel, X)
    slope = jax.jit(jax.grad(lambda x: kernel.pairwise(x, x).sum(), allow_int=True))
    assert operations(slope.lower(features)) < 4
    assert len(wl.mlp(depth=50, weight_std=[W] * 50)._compact.layers) == 1


def test_equal_layers_are_drawn_at_once_with_the_bits_of_each():
    """One draw for the layers of all blocks, however many; slices outside the program (50 ms each to compile)."""
    net = wl.resmlp(blocks=10, bias_std=0.1)
    params, sizes = net.init(3, input_dim=4, width=3), net._sizes(4, 3, 1)
    keys = jax.random.split(jax.random.key(3), len(net.units))
    for own, unit, key, shape in zip(params, net.units, keys, sizes, strict=True):
        for found, known in zip(*map(jax.tree.leaves, (own, unit.draw(key, shape, np.float32))), strict=True):
            assert np.array_equal(found, known)
    many = net.init_many([5, 3], input_dim=4, width=3)
    assert all(np.array_equal(a[1], b) for a, b in zip(*map(jax.tree.leaves, (many, params)), strict=True))

    def lines(blocks, change):
        net = wl.resmlp(blocks=blocks)
        draw = jax.jit(lambda key: change(net.whole.draw(key, net._sizes(4, 3, 1), np.float32)))
        return len(draw.lower(jax.random.key(0)).as_text().splitlines())

    assert lines(40, lambda params: params) == lines(10, lambda params: params)
    assert lines(40, unstacked) > lines(10, unstacked) + 60  # the same, divided inside


@pytest.mark.parametrize("lost", [False, True])
def test_a_norm_over_parts_keeps_the_mean_of_each(lost):
    """Side by side, a relu and an erf have means of their own; less that of the width, they add up part by part."""
    beside = Concatenate([Dense(W, B), "relu"], [Dense(W, B), "erf"])
    net = wl.network(Dense(W, B), Sum([beside, LayerNorm()], beside), Dense())
    x, y = ([mp.mpf(float(v)) for v in point] for point in BASE[:2])
    start = [mp.fdot(a, b) / 4 for a, b in ((x, x), (x, y), (y, y))]
    parts = [after(["d", "d", phi], (*start, mp.mpf(0), mp.mpf(0), mp.mpf(0))) for phi in ("relu", "erf")]
    q, c, p, theta, m, n = (mp.fsum(column) / 2 for column in zip(*parts, strict=True))
    s, t = mp.sqrt(q - m**2), mp.sqrt(p - n**2)
    means = [
        [(a - b) / u for a in ends]
        for ends, b, u in zip(list(zip(*parts, strict=True))[4:], (m, n), (s, t), strict=True)
    ]
    cross = mp.fsum(means[0][k] * parts[k][5] + parts[k][4] * means[1][k] for k in (0, 1)) / 2
    sigma = (c - m * n) / (s * t) + c + (0 if lost else cross)
    found = [float(both[0, 1]) for both in by_numpy.limits(net, BASE[:2])]
    known = [float(sigma), float(sigma + theta / (s * t) + theta)]
    close = np.allclose(found, known, rtol=64 * np.finfo(float).eps, atol=0)
    assert close != lost


def normalised(x):
    """(x - mean)/deviation in high precision, as the floats given."""
    x = [mp.mpf(float(v)) for v in x]
    mean = mp.fsum(x) / len(x)
    deviation = mp.sqrt(mp.fsum((v - mean) ** 2 for v in x) / len(x))
    return [(v - mean) / deviation if deviation else mp.mpf(0) for v in x]


@pytest.mark.parametrize("scale", [1.0, 1e150])
def test_layers_without_parameters_before_the_first(scale):
    """Rows less their mean over their deviation, then a network; Scale(2) doubles weight_std; finite networks too."""
    X = scale * np.stack([BASE[0], BASE[1], BASE[0] * (1 + 1e-9), BASE[0] + 1e-8 * BASE[2], 1e3 + BASE[1], np.ones(4)])
    net = wl.network(LayerNorm(), Scale(2.0), Dense(W, B), "relu", Dense(W, B))
    assert isinstance(wl.nngp(net).prepared(X[:5]), Sphere)
    for part in (X, X[:5]):
        both = wl.limits(net).gram(part)
        for i, j in ((1, 0), (2, 0), (3, 0), (4, 1), (len(part) - 1, 0)):
            u, v = normalised(part[i]), normalised(part[j])
            start = [4 * mp.fdot(a, b) / 4 for a, b in ((u, u), (u, v), (v, v))]
            state = after(["d", "relu", "d"], (*start, mp.mpf(0), mp.mpf(0), mp.mpf(0)))
            room = 64 * np.finfo(float).eps * float(both.ntk.max())
            for found, known in ((both.nngp[i, j], state[1]), (both.ntk[i, j], state[3])):
                assert abs(mp.mpf(float(found)) - known) < room
                assert abs(1.001 * found - known) > room
    plain = wl.network(Dense(2 * W, B), "relu", Dense(W, B))
    rows = np.array([[float(v) for v in normalised(x)] for x in X])
    params = net.init(0, input_dim=4, width=8, dtype=np.float64)
    with jax.enable_x64(True):
        found = np.asarray(net.apply(params, X))
        np.testing.assert_allclose(found, np.asarray(plain.apply(params[2:], rows)), rtol=1e-9, atol=1e-9)
    kernels = [wl.empirical_ntk(n.apply, p).gram(x) for n, p, x in ((net, params, X), (plain, params[2:], rows))]
    np.testing.assert_allclose(*kernels, rtol=1e-8, atol=1e-8)
    assert repr(wl.read_network(repr(net))) == repr(net)
    assert np.isnan(LayerNorm().apply((), jnp.asarray([[1.0, np.nan, 2.0]]))).all()


@pytest.mark.parametrize(
    "layers",
    [
        [Dense(W), Concatenate(Dense(W), [Dense(W), "relu"]), LayerNorm()],
        [Dense(W), wl.Cos(), LayerNorm()],
        [Dense(W), Concatenate("gelu", [Dense(W), Concatenate(Serial(), "gelu"), LayerNorm()]), LayerNorm()],
        [Dense(W), "gelu", Repeat([LayerNorm()], 5)],
    ],
)
def test_a_norm_of_equal_signals_is_zero(layers):
    """At the input 0 all signals of these networks are equal, and their deviation is 0: as in finite networks."""
    kernel = wl.nngp(wl.network(*layers, Dense(1.0, 0.5)))
    found = kernel.diag(np.stack([np.zeros(4), BASE[0]]))
    np.testing.assert_allclose(found, [0.25, 1.25], rtol=1e-15)


@pytest.mark.parametrize("name", ["residual", "dense-connected", "scaled by layer"])
@pytest.mark.parametrize(("dtype", "size"), [(np.float64, 100), (np.float32, 15)])
def test_inputs_of_any_scale(name, dtype, size):
    """Times 10^+-100, 10^+-15. Left out: erf of large near duplicates is a jump, which rounding of the inputs moves."""
    layers, described = TREES[name]
    net = wl.network(*layers)
    for sign in (1, -1):
        X = (HARD * [[1], [1], [1], [0], [0], [0]] * 10.0 ** (sign * size)).astype(dtype)
        grams = both_grams(net, X)
        with mp.workdps(60 + 4 * size):
            pairs = [(0, 0), (1, 0), (1, 1), (2, 1), (2, 2)] + [(2, 0)] * (
                sign < 0 or name in ("residual", "two means")
            )
            known = {(i, j): exact(described, X[i], X[j]) for i, j in pairs}
            for (i, j), values in known.items():
                for kind in (0, 1):
                    scale = mp.sqrt(known[i, i][kind] * known[j, j][kind])
                    error = abs(mp.mpf(float(grams[kind][i, j])) - values[kind])
                    assert error <= 64 * np.finfo(dtype).eps * scale
                    assert i != j or abs(2 * grams[kind][i, j] - values[kind]) > 64 * np.finfo(dtype).eps * scale


@pytest.mark.parametrize(
    "lost",
    [
        ["d", ["sum", ["d1", "relu"], ["d", "gelu"]], "d"],  # a branch
        ["d", ["sum", ["d1", "relu"], ["d", "gelu"], ["d1", "erf"]], "d"],  # a scale
    ],
)
def test_other_trees_have_other_kernels(lost):
    right, other = (exact(layers, BASE[0], BASE[1]) for layers in (TREES["two means"][1], lost))
    assert all(abs(a - b) > 1e-3 * abs(a) for a, b in zip(right, other, strict=True))


STANDARD = {"parameterization": "standard", "base_width": 16.0}
TREE = [Dense(W, B), Residual("erf", Dense(0.9, 0.4)), "relu", Dense(W, B)]


def test_the_kernel_of_standard_networks_at_a_base_width():
    """Theta <- w^2 Theta~ + N E[a a'] + 1, and x.x' + 1 first: depth 2 in closed form; without bias no 1."""
    for bias in (B, 0.0):
        net = wl.network(Dense(W, bias), "relu", Dense(W, bias), **STANDARD)
        for i, j in ((0, 0), (1, 0), (2, 1)):
            q, c, p = (W**2 * BASE[a] @ BASE[b] / 4 + bias**2 for a, b in ((i, i), (i, j), (j, j)))
            value, slope = map(float, oracles.DUALS["relu"](*map(mp.mpf, (q, c, p))))
            one = float(bias > 0)
            expected = W**2 * slope * (BASE[i] @ BASE[j] + one) + 16 * value + one
            np.testing.assert_allclose(wl.ntk(net).cross(BASE[[i]], BASE[[j]])[0, 0], expected, rtol=1e-12)
            usual = wl.network(Dense(W, bias), "relu", Dense(W, bias))
            assert abs(wl.ntk(usual).cross(BASE[[i]], BASE[[j]])[0, 0] - expected) > 0.1


@pytest.mark.parametrize("more", [{}, STANDARD], ids=["ntk", "standard"])
def test_learning_rates_multiply_the_part_of_each_layer(more):
    """Theta is the sum over layers of the kernels with all others frozen; so it is in finite networks."""
    first, residual, relu, last = wl.network(*TREE).layers
    alone = [
        [first, Frozen(residual), relu, Frozen(last)],
        [Frozen(first), residual, relu, Frozen(last)],
        [Frozen(first), Frozen(residual), relu, last],
    ]
    parts = [by_numpy.gram(wl.ntk(wl.network(*layers, **more)), BASE) for layers in alone]
    rates = (0.5, 2.0, 3.0)
    net = wl.network(*TREE, learning_rates=rates, **more)
    expected = sum(rate * part for rate, part in zip(rates, parts, strict=True))
    np.testing.assert_allclose(wl.ntk(net).gram(BASE), expected, rtol=1e-13)
    assert np.abs(expected - sum(parts)).max() > 0.1 * expected.max()
    names = {name: getattr(wl.layers, name) for name in wl.layers.__all__}
    assert eval(repr(net), names | {"network": wl.network}) == net
    found = []
    with jax.enable_x64(True):
        for seed in range(12):
            params = net.init(seed, input_dim=4, width=128, dtype=np.float64)
            found.append(wl.empirical_ntk(net.apply, params, output="trace").gram(BASE))
    mean, error = np.mean(found, axis=0), np.std(found, axis=0, ddof=1) / np.sqrt(12)
    assert (np.abs(mean - expected) < 5 * error + 5 / 128 * expected.max()).all()
    assert (np.abs(mean - sum(parts)) > 5 * error + 5 / 128 * expected.max()).any()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"base_width": 4.0}, "base_width is the width at which"),
        ({**STANDARD, "base_width": 0.0}, "base_width"),
        ({"learning_rates": [1.0]}, "learning_rates has 1 numbers, and the network 3 dense layers"),
        ({"learning_rates": [1.0, 0.0, 1.0]}, r"learning_rates\[1\]"),
    ],
)
def test_bad_parameterisations(more, words):
    with pytest.raises(ValueError, match=words):
        wl.network(*TREE, **more)
    for given in ({"parameterization": "standard"}, {"parameterization": "mean_field"}):
        with pytest.raises(ValueError, match=r"tangent kernel|Theta of"):
            wl.ntk(wl.network(*TREE, **given))


SLOW = ("waves", "sum of parts", "scaled by layer", "repeated after parts", "alike but for numbers")


@pytest.mark.parametrize("name", [name for name in TREES if name not in SLOW])
def test_finite_networks_tend_to_both_kernels(name):
    """20 networks of width 256; the mean of Theta within 5 standard errors and a bias of 5/width."""
    layers, _ = TREES[name]
    net, width, X = wl.network(*layers), 256, BASE
    found = []
    with jax.enable_x64(True):
        jacobian_of = jax.jit(jax.jacrev(net.signals_of))
        sizes, rng = (4, *[width] * net.whole.hidden, 1), np.random.default_rng(0)
        for _ in range(20):
            params = one_network(net, sizes, rng=rng)
            jacobian = jacobian_of(params, X)
            rows = [np.asarray(leaf).reshape(len(X), -1) for leaf in jax.tree.leaves(jacobian)]
            found.append(sum(row @ row.T for row in rows))
        assert jax.eval_shape(net.apply, params, X).shape == (3, 1)
    mean, error = np.mean(found, axis=0), np.std(found, axis=0, ddof=1) / np.sqrt(20)
    limit = wl.ntk(net).gram(X)
    room = 5 * error + 5 / width * np.abs(limit).max()
    assert (np.abs(mean - limit) < room).all()
    assert (np.abs(mean - 2 * limit) > room).any()


def test_a_norm_after_an_activation_that_is_nearly_constant():
    """cos(u) is nearly 1 for small u: its variance is computed without the mean."""
    net = wl.network(Dense(), "cos", LayerNorm(), Dense())

    def rho(x, y):
        q, r, c = (
            mp.fdot([mp.mpf(float(a)) for a in u], [mp.mpf(float(b)) for b in v]) / 4
            for u, v in ((x, x), (y, y), (x, y))
        )
        return (
            mp.exp(-(q + r) / 2) * (mp.cosh(c) - 1) / mp.sqrt(mp.fprod(mp.exp(-v) * (mp.cosh(v) - 1) for v in (q, r)))
        )

    for scale in (1.0, 0.05, 1e-5):
        X = scale * BASE
        found = wl.nngp(net).gram(X)[1, 0]
        assert abs(found / rho(X[1], X[0]) - 1) < 1e-13 < abs(1.001 * found / rho(X[1], X[0]) - 1)
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    (a, b), weights = BASE[:2], np.outer(weights, weights) / (2 * np.pi)
    s, t, c = np.sqrt(a @ a / 4), np.sqrt(b @ b / 4), a @ b / 4
    u = s * nodes[:, None] + 0 * nodes
    v = c / s * nodes[:, None] + np.sqrt(t**2 - (c / s) ** 2) * nodes
    f, g = (np.logaddexp(0, w) for w in (u, v))
    f, g = f - np.sum(weights * f), g - np.sum(weights * g)
    expected = np.sum(weights * f * g) / np.sqrt(np.sum(weights * f**2) * np.sum(weights * g**2))
    found = wl.nngp(wl.network(Dense(), "softplus", LayerNorm(), Dense())).gram(BASE)[0, 1]
    assert abs(found - expected) < 1e-9 < abs(1.001 * found - expected)


@pytest.mark.parametrize("act", ["relu", "tanh"])
def test_branches_that_read_rows(act):
    """A sum of dense layers is one of the root of the sum of squares; halves of the width have the mean kernel."""
    end = Dense(1.3, B)
    X = np.concatenate([BASE, BASE[:1] * (1 + 1e-9)])
    summed = wl.network(Sum(Dense(1.2, 0.3), [Scale(0.5), Dense(0.8, 0.4)]), act, end)
    beside = wl.network(Concatenate([Dense(1.2, 0.3), "relu"], [Dense(0.7), act]), end)
    for rows in (X, X / np.linalg.norm(X, axis=1, keepdims=True)):
        first, second = (
            wl.limits(wl.network(dense, phi, end)).gram(rows)
            for dense, phi in ((Dense(1.2, 0.3), "relu"), (Dense(0.7), act))
        )
        pairs = [
            *zip(
                wl.limits(summed).gram(rows),
                wl.limits(wl.network(Dense(1.6**0.5, 0.5), act, end)).gram(rows),
                strict=True,
            ),
            *((k, (a + b) / 2) for k, a, b in zip(wl.limits(beside).gram(rows), first, second, strict=True)),
        ]
        room = 64 * np.finfo(float).eps if act == "relu" else 1e-10
        for found, expected in pairs:
            assert np.abs(found - expected).max() < room * expected.max() < np.abs(found * 1.001 - expected).max()
    members = beside.init_many(range(2_000), input_dim=4, width=8, dtype=np.float64)
    outputs = np.asarray(beside.apply_many(members, BASE))[:, :, 0]
    products = outputs[:, :, None] * outputs[:, None]  # of one hidden layer: their mean is the limit at every width
    miss = np.abs(products.mean(axis=0) - wl.nngp(beside).gram(BASE)) / (products.std(axis=0) / 2_000**0.5)
    other = np.abs(products.mean(axis=0) - first.nngp[:3, :3]) / (products.std(axis=0) / 2_000**0.5)
    assert miss.max() < 4.5 < other.max()
    assert wl.read_network(repr(beside)) == beside
    with pytest.raises(ValueError, match="were made for"):
        beside.apply(jax.tree.map(lambda leaf: leaf[0], members), BASE[:, :3])
    with pytest.raises(ValueError, match="base_width is for"):
        wl.network(Sum(Dense(), Dense()), act, Dense(), parameterization="standard", base_width=64)


BLOCKS = {
    "first": ([Repeat([Dense(W, B), "relu"], 3), Dense(W, B)], [*["d", "relu"] * 3, "d"]),
    "in branches": (
        [Sum([Repeat([Scale(0.5), Dense(W, B), "gelu"], 2)], Dense(0.7)), Dense(W, B)],
        [["sum", ["half", "d", "gelu"] * 2, [["d", 0.7, 0]]], "d"],
    ),
    "of branches": (
        [Scale(0.5), Repeat([Concatenate(Dense(W, B), Dense(0.7)), LayerNorm(), "relu"], 2), Dense(W, B)],
        ["half", *[["beside", 0.5, ["d"], 0.5, [["d", 0.7, 0]]], "norm", "relu"] * 2, "d"],
    ),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_repeated_blocks_that_read_rows(name):
    net = built_and_right(*BLOCKS[name])
    params = net.init(0, input_dim=4, width=4, output_dim=2)
    assert jax.eval_shape(net.apply, params, BASE.astype(np.float32)).shape == (3, 2)
    assert wl.read_network(repr(net)) == net


def test_an_activation_of_masked_signals_is_one_of_scaled_signals_masked():
    a, key = jnp.asarray(BASE), jax.random.key(0)
    found = jnp.tanh(Dropout(0.6).draw_and_apply((), a, key))
    np.testing.assert_allclose(found, Dropout(0.6).draw_and_apply((), 0.6 * jnp.tanh(a / 0.6), key), rtol=1e-6)
    assert np.abs(found - Dropout(0.6).draw_and_apply((), jnp.tanh(a), key)).max() > 0.1


def test_dropout_divides_the_variance_of_an_input_alone():
    plain, dropped = (wl.network(Dense(W, B), "relu", *more, Dense()) for more in ([], [Dropout(0.8)]))
    X = BASE
    off = ~np.eye(3, dtype=bool)
    for kernel in (wl.nngp, wl.ntk):
        a, b = kernel(plain).gram(X), kernel(dropped).gram(X)
        np.testing.assert_allclose(b[off], a[off], rtol=1e-14)
    np.testing.assert_allclose(wl.nngp(dropped).diag(X), wl.nngp(plain).diag(X) / 0.8, rtol=1e-14)
    assert np.abs(np.diag(wl.nngp(dropped).cross(X, X)) - wl.nngp(dropped).diag(X)).min() > 0.01


def test_masks_of_dropout_have_the_moments_of_the_limit():
    """1,000 networks of width 8, a mask each: with one hidden layer the products of outputs have its mean exactly."""
    net = wl.network(Dense(W, B), Residual("relu", Dropout(0.6), Dense(W, B)), Dense())
    exact_one = wl.network(Dense(W, B), "relu", Dropout(0.6), Dense())
    params = exact_one.init_many(range(1_000), input_dim=4, width=8, dtype=np.float64)
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(1), 1_000)
        found = np.asarray(jax.jit(jax.vmap(lambda p, k: exact_one.signals_of(p, jnp.asarray(BASE), k)))(params, keys))
    products = found[:, :, 0][:, :, None] * found[:, :, 0][:, None]
    mean, error = products.mean(axis=0), products.std(axis=0, ddof=1) / 1_000**0.5
    limit = wl.nngp(exact_one).gram(BASE)
    assert (np.abs(mean - limit) < 4.5 * error).all()
    assert (np.abs(mean - wl.nngp(exact_one).cross(BASE, BASE)) > 4.5 * error).any()
    params, key = net.init(0, input_dim=4, width=8, dtype=np.float64), jax.random.key(0)
    once, again = net.apply(params, BASE, key=key), net.apply(params, BASE, key=key)
    assert (once == again).all()
    assert (np.abs(once - net.apply(params, BASE)) > 1e-3).any()
    assert (once != net.apply(params, BASE, key=jax.random.key(1))).any()
    with pytest.raises(TypeError, match="key must be one key of JAX"):
        net.apply(params, BASE, key=3)
    with pytest.raises(ValueError, match="draws no masks"):
        wl.train(net.apply, params, BASE, BASE[:, 0], learning_rate=0.1, steps=1)


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ([], "layers[0]: a network begins with"),
        (["relu", Dense()], "layers[0]: a network begins with"),
        ([LayerNorm(), "relu", Dense()], "layers[1]: a network begins with"),
        ([Residual(Dense()), Dense()], "layers[0].branch[0]: a branch that reads rows begins with"),
        ([Concatenate(Dense(), ["relu", Dense()]), Dense()], "layers[0].branch[1][0]: a branch that reads rows"),
        (
            [Sum(Dense(), [Scale(2.0), Sum(Dense(), [LayerNorm(), Dense()])]), Dense()],
            "layers[0].branch[1][1].branch[1][0]: a",
        ),
        ([Repeat(["relu", Dense()], 2), Dense()], "layers[0].block[0]: a block that reads rows begins with"),
        ([Sum(Dense(), [Repeat([Residual(Dense())], 2)]), Dense()], "layers[0].branch[1][0].block[0].branch[0]: a"),
        ([Dense(), "relu"], "layers[1]: a network ends with"),
        ([Dense(), "relu", "gelu", Dense()], "layers[2]: an activation needs Gaussian signals"),
        ([Dense(), Residual("relu"), Dense()], "layers[1]: Residual(Activate('relu')) adds signals to a function of"),
        ([Dense(), Sum("relu", "erf"), Dense()], "layers[1]: the branches [0, 1]"),
        ([Dense(), ["relu", Dense()]], "layers[1]: neither a layer"),
        ([Dense(), wl.mlp(depth=2), Dense()], "of a network *net.layers"),
        ([Dense(), Dropout(0.5), "relu", Dense()], "layers[2]: an activation needs Gaussian signals"),
        (
            [Dense(), Residual("relu", Dense(learning_rate=2.0)), Dense()],
            "layers[1].branch[1][1]: learning_rate=2.0 is",
        ),
        ([Dense(), *wl.mlp(depth=2, parameterization="standard").layers], "layers[1]: standard=True is set"),
        ([Dense(), Concatenate(Serial(), "relu", shares=(0.25, 0.75)), Dense()], "layers[1]: branches without random"),
        ([Dense(), Concatenate(Dense(), "relu"), "relu", Dense()], "layers[2]: an activation needs Gaussian"),
        ([Dense(), Repeat([Residual(Dense(), "relu")], 3), "relu", Dense()], "layers[2]: an activation needs Gaussian"),
        ([Dense(), 3, Dense()], "layers[1]: neither a layer of wl.layers nor"),
        ([Dense(), "rleu", Dense()], "layers[1]: unknown activation"),
        ([Dense(), LayerNorm, Dense()], "layers[1]: a layer is needed, not its class; write wl.layers.LayerNorm"),
        ([Dense(), functools.reduce(lambda f, _: Residual(Dense(), f), range(400), Dense()), Dense()], "nested too"),
    ],
)
def test_what_has_no_limit_is_refused_with_its_place(layers, words):
    with pytest.raises((TypeError, ValueError)) as caught:
        wl.network(*layers)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 400 + 700 * ("known:" in str(caught.value))


def test_a_block_may_be_one_layer_and_shares_must_be_a_list():
    assert repr(Repeat("relu", 2)) == "Repeat([Activate('relu')], times=2)"
    with pytest.raises(TypeError, match="shares must be a sequence of real numbers"):
        Concatenate(Dense(), Dense(), shares=0.5)


@pytest.mark.parametrize(
    ("layer", "described"),
    [
        (Residual(), ["double"]),
        (Sum(Residual(), Serial(), Residual(Scale(0.5), Scale(2.0)), [Scale(3.0)]), ["double"] * 3),
        (Residual(Residual(Dense(W, B))), [["sum", ["double"], ["d"]]]),
        (Sum(Serial(), [Residual(Scale(0.5), Scale(2.0)), Dense(W, B)]), [["sum", [], ["double", "d"]]]),
    ],
)
def test_a_shared_signal_is_added_as_itself(layer, described):
    """x + x is 2 x, through any nesting; where random weights are added to it, these alone are independent."""
    net = wl.network(Dense(W, B), layer, Dense())
    known = exact(["d", *described, "d1"], *BASE[:2])
    found = [kernel(net).cross(BASE[:1], BASE[1:2])[0, 0] for kernel in (wl.nngp, wl.ntk)]
    np.testing.assert_allclose(found, [float(value) for value in known], rtol=1e-14)
    for other in ([Residual(LayerNorm())], [Sum(Serial(), [Residual(Dense()), Scale(0.5)])]):
        with pytest.raises(ValueError, match=r"functions of the same signals|a function of themselves"):
            wl.network(Dense(), *other, Dense())


def test_the_mean_field_output_is_that_of_a_dense_layer():
    with pytest.raises(ValueError, match="scales a last"):
        wl.network(Dense(), "relu", Dense(), Scale(2.0), parameterization="mean_field")
    assert wl.network(Dense(), "relu", Dense(), parameterization="mean_field").depth == 2


def test_a_network_reads_like_the_code_that_makes_it():
    net = wl.network(*TREES["normalised residual"][0])
    names = {name: getattr(wl.layers, name) for name in wl.layers.__all__}
    again = eval(repr(net), names | {"network": wl.network})
    assert jax.tree.structure(again) == jax.tree.structure(net)
    assert jax.tree.leaves(again) == jax.tree.leaves(net)


def test_lists_untie_the_layers_of_mlp():
    net = wl.mlp(depth=3, activation=["relu", "abs"], weight_std=[1.0, 1.3, 0.7], bias_std=0.1)
    assert len(jax.tree.leaves(net)) == 6
    assert len(jax.tree.leaves(wl.mlp(depth=7))) == 4
    tied, untied = wl.mlp(depth=3, weight_std=1.3), wl.mlp(depth=3, weight_std=[1.3] * 3)
    np.testing.assert_array_equal(wl.ntk(tied).gram(BASE), wl.ntk(untied).gram(BASE))
    with pytest.raises(ValueError, match="activation has 1 values"):
        wl.mlp(depth=3, activation=["relu"])


def test_depth_of_a_residual_network_keeps_correlations():
    """With branches of 1/sqrt(L) the kernel has a limit in L; with branches of 1 the variance grows as (1 + 1/2)^L."""
    grams = [wl.nngp(wl.resmlp(blocks=L, branch_scale="depth")).gram(BASE) for L in (50, 200, 800)]
    steps = [np.abs(b - a).max() / np.abs(a).max() for a, b in itertools.pairwise(grams)]
    assert steps[1] < 0.3 * steps[0] < 0.03
    grown = wl.nngp(wl.resmlp(blocks=20)).diag(BASE) / wl.nngp(wl.resmlp(blocks=10)).diag(BASE)
    np.testing.assert_allclose(grown, 1.5**10, rtol=1e-12)


@pytest.mark.parametrize("name", ["residual", "two means", "dropped out"])
@pytest.mark.parametrize("sphere", [False, True])
def test_limits_are_both_kernels(name, sphere):
    layers = TREES[name][0] if name in TREES else [Dense(W, B), "relu", Dropout(0.8), Dense()]
    X = BASE / np.linalg.norm(BASE, axis=1, keepdims=True) if sphere else BASE
    net = wl.network(*layers)
    for method, data in (("gram", (X,)), ("cross", (X, X[:2])), ("diag", (X,))):
        both = getattr(wl.limits(net), method)(*data)
        for found, kernel in zip(both, (wl.nngp(net), wl.ntk(net)), strict=True):
            expected = getattr(kernel, method)(*data)
            np.testing.assert_allclose(found, expected, rtol=1e-14)
            assert found.dtype == expected.dtype
    assert np.abs(both.nngp - both.ntk).max() > 0.1
    with pytest.raises(ValueError, match="no neural tangent kernel"):
        wl.limits(wl.mlp(depth=2, activation="sign"))


@pytest.mark.parametrize(
    ("layers", "more"),
    [
        (TREES["frozen"][0], {}),
        (TREES["two means"][0], {"learning_rates": [0.5, 2.0, 1.0, 0.3, 1.5]}),
        ([Dense(W, B), Dropout(0.8), Dense()], {}),
        (TREE, STANDARD | {"learning_rates": [0.5, 2.0, 3.0]}),
    ],
)
def test_the_series_for_equal_norms_is_that_of_the_layers(layers, more):
    """A row of another norm leads the kernel through the layers; a frozen first layer adds nothing in both."""
    X = BASE / np.linalg.norm(BASE, axis=1, keepdims=True)
    net = wl.network(*layers, **more)
    assert isinstance(wl.ntk(net).prepared(X), Sphere)
    both = wl.limits(net)
    for found, expected in zip(both.gram(X), both.gram(np.vstack([X, 2 * X[:1]])), strict=True):
        np.testing.assert_allclose(found, expected[:3, :3], rtol=1e-13)


@pytest.mark.parametrize("name", ["residual", "frozen", "normalised"])
def test_empirical_kernels_see_every_parameter_once(name):
    """Whatever method is chosen: the explicit Jacobian is the oracle, with a frozen layer's columns 0."""
    net = wl.network(*TREES[name][0])
    params = net.init(0, input_dim=4, width=8, dtype=np.float64)
    with jax.enable_x64(True):
        jacobian = jax.jit(jax.jacrev(net.signals_of))(params, jnp.asarray(BASE))
        rows = [np.asarray(leaf).reshape(len(BASE), -1) for leaf in jax.tree.leaves(jacobian)]
    expected = sum(row @ row.T for row in rows)
    np.testing.assert_allclose(wl.empirical_ntk(net.apply, params, output="trace").gram(BASE), expected, rtol=1e-10)
    assert np.abs(expected - rows[0] @ rows[0].T).max() > 1e-3 * np.abs(expected).max()
