"""Empirical kernels against explicit Jacobians, a formula by hand, finite differences; their algorithms and budget."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import widelimit as wl
from compiled import quick_jit
from widelimit import memory
from widelimit.claims.finite import one_network
from widelimit.kernels.empirical import plan
from widelimit.kernels.empirical.matrices import _pairwise

EPS = np.finfo(np.float64).eps
RNG = np.random.default_rng(0)
N = 7
METHODS = ("jacobian", "vector_products", "layerwise")
L = wl.layers


class Convolution(eqx.Module):
    """Two convolutions on 6 x 6 images and a dense layer; its input is a row of 36."""

    first: eqx.nn.Conv2d
    second: eqx.nn.Conv2d
    last: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 3)
        self.first = eqx.nn.Conv2d(1, 3, 3, key=keys[0])
        self.second = eqx.nn.Conv2d(3, 2, 3, stride=2, key=keys[1])
        self.last = eqx.nn.Linear(2, 3, key=keys[2])

    def __call__(self, x):
        signals = jax.nn.gelu(self.first(x.reshape(1, 6, 6)))
        return self.last(jnp.mean(jnp.tanh(self.second(signals)), axis=(1, 2)))


class Attention(eqx.Module):
    """Self-attention over 4 tokens of 5 features, then a dense layer; its input is a row of 20."""

    attention: eqx.nn.MultiheadAttention
    norm: eqx.nn.LayerNorm
    last: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key)
        self.attention = eqx.nn.MultiheadAttention(1, 5, key=keys[0])
        self.norm = eqx.nn.LayerNorm(5)
        self.last = eqx.nn.Linear(5, 2, key=keys[1])

    def __call__(self, x):
        tokens = x.reshape(4, 5)
        return self.last(jnp.mean(jax.vmap(self.norm)(tokens + self.attention(tokens, tokens, tokens)), axis=0))


def module(net, X):
    return jax.vmap(net)(X)


def two_layers(params, X):
    """One output, of shape (n,); written without this library."""
    return jnp.tanh(X @ params["w"] + params["b"]) @ params["v"]


def network(depth, activation, parameterization="ntk", outputs=3):
    net = wl.mlp(depth=depth, activation=activation, weight_std=1.3, bias_std=0.4, parameterization=parameterization)
    return net.apply, one_network(net, (4, *[6, 9, 5][: depth - 1], outputs), rng=RNG), 4


def tree(*layers, width, outputs=3):
    net = wl.network(L.Dense(1.3, 0.4), *layers)
    widths = [width] * net.whole.hidden if isinstance(width, int) else width
    return net.apply, one_network(net, (4, *widths, outputs), rng=RNG), 4


def drawn(module):
    """A module of equinox with random parameters, which NumPy draws: nothing is compiled while tests are collected."""
    shapes = eqx.filter_eval_shape(lambda: module(jax.random.key(0)))
    return jax.tree.map(
        lambda leaf: RNG.uniform(-0.5, 0.5, leaf.shape) if isinstance(leaf, jax.ShapeDtypeStruct) else leaf, shapes
    )


def trees():
    """Sums, a block that repeats, branches side by side, a frozen layer, a last scale, a frozen last layer."""
    dense = L.Dense(1.3, 0.4)
    return {
        "residual": tree(L.Repeat([L.Residual("relu", dense, L.Scale(0.5))], 2), L.LayerNorm(), L.Dense(), width=6),
        "side by side": tree(
            L.Concatenate([dense, "relu"], ["tanh", dense], shares=(0.25, 0.75)),
            L.Dense(),
            L.Sum([dense, "erf"], ["relu", dense, "erf"]),
            dense,
            L.Scale(2.0),
            width=[5, 8, 7, 6],
        ),
        "frozen within": tree("relu", L.Frozen(dense), "erf", dense, width=6, outputs=1),
        "frozen last": tree(L.Residual("relu", dense), L.Frozen(dense), width=6),
    }


TREES = trees()


def cases():
    with jax.enable_x64(True):
        plain = {"w": RNG.standard_normal((4, 6)), "b": RNG.standard_normal(6), "v": RNG.standard_normal(6)}
        return {
            "relu": network(4, "relu"),
            "tanh, standard": network(3, "tanh", "standard"),
            "erf, mean field, one output": network(3, "erf", "mean_field", 1),
            "depth 1": network(1, "relu"),
            "plain": (two_layers, plain, 4),
            "convolution": (module, drawn(Convolution), 36),
            "attention": (module, drawn(Attention), 20),
            **TREES,
        }


CASES = cases()


def inputs(features):
    rng = np.random.default_rng(features)
    return rng.standard_normal((N, features)), rng.standard_normal((N, features))


def jacobian(apply, params, X):
    """(n, c, P), forward mode, all rows at once: none of the library's ways."""
    with jax.enable_x64(True):
        trained, rest = eqx.partition(params, eqx.is_inexact_array)
        found = quick_jit(jax.jacfwd(lambda p: apply(eqx.combine(p, rest), jnp.asarray(X))))(trained)
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(found)]
    count = leaves[0].shape[1] if isinstance(params, (tuple, eqx.Module)) else 1
    return np.concatenate([leaf.reshape(len(X), count, -1) for leaf in leaves], axis=2)


def oracle(apply, params, X, Y):
    J = jacobian(apply, params, np.vstack([X, Y]))
    return np.einsum("nap,mbp->nmab", J[: len(X)], J[len(X) :])


def close(values, wanted):
    """64 eps of the largest entry: sums of P products of which each is right to a few eps."""
    assert values.shape == wanted.shape
    assert values.dtype == np.float64
    return np.abs(values - wanted).max() <= 64 * EPS * np.abs(wanted).max()


@pytest.mark.parametrize("name", CASES)
def test_all_algorithms_and_outputs_give_the_explicit_contraction(name):
    apply, params, features = CASES[name]
    X, Y = inputs(features)
    rows = jacobian(apply, params, np.vstack([X, Y]))
    everything = np.einsum("nap,mbp->nmab", rows[:N], rows)
    own, full = everything[:, :N], everything[:, N:]
    for method in METHODS:
        k = wl.empirical_ntk(apply, params, method=method)
        trace = wl.empirical_ntk(apply, params, method=method, output="trace")
        diagonal = wl.empirical_ntk(apply, params, method=method, output="diagonal")
        assert k.explain(X).method == method
        assert close(k.cross(X, Y), full)
        assert close(k.diag(X), np.stack([own[i, i] for i in range(N)]))
        assert close(trace.cross(X, Y), np.einsum("nmaa->nm", full) / full.shape[2])
        assert close(diagonal.cross(X, Y), np.einsum("nmaa->nma", full))
        gram = k.gram(X)
        assert close(gram, own)
        np.testing.assert_array_equal(gram, gram.transpose(1, 0, 3, 2))


@pytest.mark.parametrize(("name", "bias_std"), [("relu", 0.4), ("attention", 1.0)])
def test_the_oracle_rejects_planted_errors(name, bias_std):
    apply, params, features = CASES[name]
    X, Y = inputs(features)
    full = oracle(apply, params, X, Y)
    values = wl.empirical_ntk(apply, params).cross(X, Y)
    assert not close(1.01 * values, full)
    assert not close(values.transpose(0, 1, 3, 2), full)
    assert not close(values - bias_std**2 * np.eye(values.shape[2]), full)  # the last bias forgotten


def test_diag_and_gram_of_the_other_outputs():
    apply, params, features = CASES["relu"]
    X, _ = inputs(features)
    own = oracle(apply, params, X, X)
    for method in METHODS:
        trace = wl.empirical_ntk(apply, params, method=method, output="trace")
        diagonal = wl.empirical_ntk(apply, params, method=method, output="diagonal")
        np.testing.assert_array_equal(np.diag(trace.gram(X)), trace.diag(X))
        assert close(trace.gram(X), np.einsum("nmaa->nm", own) / 3)
        assert close(diagonal.gram(X), np.einsum("nmaa->nma", own))
        assert close(diagonal.diag(X), np.einsum("nnaa->na", own))


def test_a_formula_by_hand():
    """df/dv = tanh(z), df/db = v tanh'(z), df/dw = x v tanh'(z)."""
    _, params, _ = CASES["plain"]
    X, Y = inputs(4)

    def parts(Z):
        hidden = np.tanh(Z @ params["w"] + params["b"])
        return hidden, params["v"] * (1 - hidden**2)

    (a, da), (b, db) = parts(X), parts(Y)
    by_hand = a @ b.T + (da @ db.T) * (X @ Y.T + 1)
    values = wl.empirical_ntk(two_layers, params, output="trace").cross(X, Y)
    assert close(values, by_hand)
    assert not close(values, a @ b.T + (da @ db.T) * (X @ Y.T))  # the bias forgotten


def test_finite_differences():
    """Central differences with step h: error h^2 of the third derivative, eps/h of rounding."""
    _, params, _ = CASES["plain"]
    X, _ = inputs(4)
    h, rows = EPS ** (1 / 3), []
    for name, leaf in params.items():
        for i in np.ndindex(leaf.shape):
            step = np.zeros_like(leaf)
            step[i] = h
            ends = [np.asarray(_plain({**params, name: leaf + sign * step}, X)) for sign in (1, -1)]
            rows.append((ends[0] - ends[1]) / (2 * h))
    J = np.stack(rows, axis=1)
    values = wl.empirical_ntk(two_layers, params, output="trace").gram(X)
    assert np.abs(values - J @ J.T).max() <= 100 * h**2 * np.abs(values).max()
    assert np.abs(1.01 * values - J @ J.T).max() > 100 * h**2 * np.abs(values).max()


def _plain(params, X):
    return np.tanh(X @ params["w"] + params["b"]) @ params["v"]


@pytest.mark.parametrize("method", METHODS)
def test_blocks_and_chunks_under_a_budget_give_the_same(method):
    apply, params, features = CASES["relu"]
    X, Y = inputs(features)
    Y = Y[:5]
    full = oracle(apply, params, X, Y)
    whole = wl.empirical_ntk(apply, params, method=method).explain(X, Y)
    # Between what it cannot do without and what it would take at most.
    budget = (
        whole.result + whole.blocks + (whole.chosen.work - whole.chosen.least) / 3 + whole.chosen.least
    ) / memory.GIB
    k = wl.empirical_ntk(apply, params, method=method, memory=budget)
    found = k.explain(X, Y)
    assert found.method == method
    assert not found.chosen.stored
    assert found.chosen.rows < max(N, plan.COLUMNS)
    assert close(k.cross(X, Y), full)
    assert close(k.diag(X), np.einsum("nnab->nab", oracle(apply, params, X, X)))


def test_many_rows_are_cut_into_blocks():
    """c = 512 outputs leave two rows a block: seven rows are four blocks, the last one filled up."""
    weights = np.random.default_rng(5).standard_normal((3, 512))

    def linear(params, X):
        return X @ params

    X = np.random.default_rng(6).standard_normal((N, 3))
    k = wl.empirical_ntk(linear, weights, output="diagonal")
    assert k.explain(X).sizes.down == 2
    assert close(k.gram(X), np.repeat((X @ X.T)[:, :, None], 512, axis=2))
    assert close(k.cross(X, X[:3] + 1), np.repeat((X @ (X[:3] + 1).T)[:, :, None], 512, axis=2))


NETS = {"mlp": wl.mlp(depth=3, bias_std=0.1), "residual": wl.resmlp(blocks=2, bias_std=0.1)}


@pytest.mark.parametrize(
    ("method", "share", "name"), [*((m, s, "mlp") for m in METHODS for s in (1.0, 0.2)), ("layerwise", 1.0, "residual")]
)
def test_the_compiled_program_stays_within_the_estimate(method, share, name):
    """What XLA reserves for one block, beside inputs, is at most the estimate."""
    net = NETS[name]
    params = net.init(0, input_dim=8, width=256, output_dim=2, dtype=np.float64)
    X = np.random.default_rng(0).standard_normal((64, 8))
    k = wl.empirical_ntk(net.apply, params, method=method)
    if share < 1:
        e = k.explain(X)
        k = wl.empirical_ntk(
            net.apply,
            params,
            method=method,
            memory=(e.result + e.blocks + max(share * e.chosen.work, e.chosen.least)) / memory.GIB,
        )
    found = k.explain(X)
    with jax.enable_x64(True):
        pair = plan.pairs_of(k.model, k.settings, found)
        block = jnp.asarray(X[: found.sizes.down])
        features = pair.encode(block)
        used = _pairwise.lower(pair, features, features).compile().memory_analysis().temp_size_in_bytes
        kept = sum(leaf.nbytes for leaf in jax.tree.leaves(features)) if found.chosen.stored else 0
    assert used + kept <= found.chosen.work + found.blocks
    assert found.chosen.work + found.result + found.blocks <= found.budget


@pytest.mark.parametrize("name", ["side by side", "frozen within"])
def test_trees_train_and_record_the_drift_of_their_kernel(name):
    """One width a layer: the drift is that of the explicit Jacobians before and after; a frozen layer stays."""
    apply, params, _ = TREES[name]
    X, _ = inputs(4)
    y = np.cos(np.arange(N * (1 if name == "frozen within" else 3))).reshape(N, -1)
    assert wl.empirical_ntk(apply, params).explain(X).method == "layerwise"
    run = wl.train(apply, params, X, y, learning_rate=0.02, steps=3, record_every=3, kernel_points=N, progress=False)
    assert run.history.loss[-1] < run.history.loss[0]
    before, after = (oracle(apply, p, X, X) for p in (params, run.params))
    drift = np.linalg.norm(after - before) / np.linalg.norm(before)
    np.testing.assert_allclose(run.history.kernel_drift, [0, drift], rtol=1e-10)
    assert drift > 1e-3
    moved = [
        not np.array_equal(a["weight"], b["weight"]) for a, b in zip(params, run.params, strict=True) if "weight" in a
    ]
    assert all(moved) == (name != "frozen within")


def test_the_cost_model_chooses_and_tells():
    apply, params, features = CASES["relu"]
    X, _ = inputs(features)
    found = wl.empirical_ntk(apply, params).explain(X)
    assert found.method == "layerwise"
    assert [e.method for e in found.estimates] == list(METHODS)
    text = str(found)
    for word in (*METHODS, "Gflop", "GiB", "<- chosen", "fewest flops", f"{N} x {N} pairs", "3 outputs"):
        assert word in text
    # A function that the library did not make has the same layers, and costs the same.
    assert wl.empirical_ntk(lambda p, X: apply(p, X), params).explain(X).layers == found.layers
    # Weights shared by many positions make a forward pass dear and the Jacobian short.
    shared, net, features = CASES["convolution"]
    layers = wl.empirical_ntk(shared, net, output="trace").explain(inputs(features)[0]).layers
    assert [layer.way for layer in layers if layer.name.startswith("first")] == ["jacobian", "explicit"]


def test_flops_are_counted():
    """A matrix product, a convolution, a scan of products."""
    dense = wl.empirical_ntk(lambda p, X: X @ p, np.ones((5, 3))).explain(np.ones((2, 5)))
    assert dense.cost.flops == 2 * 5 * 3

    def scanned(p, X):
        return jax.lax.scan(lambda a, _: (a @ p, None), X, None, length=4)[0]

    assert wl.empirical_ntk(scanned, np.ones((5, 5))).explain(np.ones((2, 5))).cost.flops == 4 * 2 * 5 * 5

    def convolved(p, X):
        return jax.lax.conv(X.reshape(-1, 1, 4, 4), p, (1, 1), "VALID").reshape(len(X), -1)

    cost = wl.empirical_ntk(convolved, np.ones((2, 1, 3, 3))).explain(np.ones((2, 16))).cost
    assert 2 * 9 * 8 <= cost.flops <= 1.2 * 2 * 9 * 8  # reshapes count one a number


def test_over_the_budget_is_refused_with_all_estimates(monkeypatch):
    apply, params, features = CASES["relu"]
    X, _ = inputs(features)
    with pytest.raises(MemoryError, match=r'(?s)output="trace".*cross\(X\[i:j\], Y\).*layerwise'):
        wl.empirical_ntk(apply, params, memory=1e-6).gram(X)
    with pytest.raises(MemoryError, match="over the budget"):
        wl.empirical_ntk(apply, params, method="jacobian", memory=2e-5).gram(X)
    k = wl.empirical_ntk(apply, params, output="trace")
    with pytest.raises(MemoryError, match=r"[GMK]iB"):
        wl.empirical_ntk(apply, params, memory=1e-9).matvec(X, np.ones((N, 3)))
    monkeypatch.setattr(memory, "available", lambda: 1000)
    with pytest.raises(MemoryError):
        k.gram(X)
