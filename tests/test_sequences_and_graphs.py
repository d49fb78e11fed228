"""Networks of sequences and graphs: against 60 digits, laws of masks and nodes, published kernels, bad input."""

import functools
import re

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
import scipy.sparse

import by_numpy
import site_oracle
import widelimit as wl
from widelimit.architecture import surveys
from widelimit.layers import Aggregate, Concatenate, Conv, Dense, Flatten, GlobalAveragePool, GlobalSumPool, LayerNorm

EPS = np.finfo(float).eps
RNG = np.random.default_rng(0)
SERIES = [RNG.standard_normal((t, 2)) for t in (4, 2, 3)]


def edges(n, rng=RNG, weights=False):
    upper = np.triu(rng.random((n, n)) < 0.6, 1) * (rng.random((n, n)) if weights else 1.0)
    return upper + upper.T


GRAPHS = [(RNG.standard_normal((n, 2)), edges(n)) for n in (3, 4, 1)]  # the last is an isolated node
ADJACENCIES = [A for _, A in GRAPHS]
W = 1.3, 0.2


def mixing(normalize=None, loops=True):
    return "mix", site_oracle.aggregate(ADJACENCIES, normalize, loops)


READOUT = GlobalSumPool()
MEAN = ("mix", site_oracle.average)
SUM = ("mix", functools.partial(site_oracle.average, weight=lambda n: mp.mpf(1)))
NETWORKS = {
    "a sequence, mean": (
        wl.Sequence(6, 2), SERIES,
        [Dense(*W), "erf", Conv(3, *W), "relu", GlobalAveragePool(), Dense(*W)],
        [("dense", *W), ("erf",), ("conv", 3, 1, *W), ("relu",), MEAN, ("dense", *W)],
    ),
    "a sequence, strided": (
        wl.Sequence(5, 2), SERIES,
        [Conv(2, *W, stride=2), "relu", GlobalSumPool(), Dense()],
        [("conv", 2, 2, *W), ("relu",), SUM, ("dense",)],
    ),
    "a graph": (
        wl.Graph(5, 2), GRAPHS,
        [Aggregate(), Dense(*W), "relu", Dense(1.4), Aggregate(), "erf", GlobalSumPool(), Dense(*W)],
        [mixing(), ("dense", *W), ("relu",), ("dense", 1.4), mixing(), ("erf",), SUM, ("dense", *W)],
    ),
    "a graph, mean": (
        wl.Graph(4, 2), GRAPHS,
        [Aggregate(normalize="mean"), Dense(*W), "relu", Aggregate(normalize="mean"), GlobalAveragePool(), Dense()],
        [mixing("mean"), ("dense", *W), ("relu",), mixing("mean"), MEAN, ("dense",)],
    ),
    "a graph, symmetric, no loops": (
        wl.Graph(6, 2), GRAPHS,
        [Dense(*W), "relu", Aggregate(normalize="symmetric", self_loops=False), Dense(*W), "erf", READOUT, Dense()],
        [("dense", *W), ("relu",), mixing("symmetric", False), ("dense", *W), ("erf",), SUM, ("dense",)],
    ),
}  # fmt: skip


BOUNDS = {"a graph, mean": 2e-8}
"""Nodes with the same neighbours have equal signals: Theta of relu keeps the root of the rounding of their gap."""


def signals_of(data):
    return [one if isinstance(one, np.ndarray) else one[0] for one in data]


def distance(got, expected):
    """The largest error over the root of the product of the diagonals."""
    scale = np.sqrt(np.outer(np.diag(expected), np.diag(expected)).astype(float))
    return np.max(np.abs((got - expected).astype(float)) / scale)


@functools.cache
def computed(name):
    inputs, data, layers, _ = NETWORKS[name]
    return wl.limits(wl.network(*layers, inputs=inputs)).gram(data)


@pytest.mark.parametrize("name", NETWORKS)
def test_kernels_agree_with_60_digits(name):
    _, data, _, steps = NETWORKS[name]
    for got, expected in zip(computed(name), site_oracle.kernels(signals_of(data), steps), strict=True):
        assert distance(got, expected) < BOUNDS.get(name, 64 * EPS)


@pytest.mark.parametrize("wrong", [mixing("mean"), mixing(None, False)])
def test_another_matrix_is_rejected(wrong):
    _, data, _, steps = NETWORKS["a graph"]
    for got, expected in zip(
        computed("a graph"), site_oracle.kernels(signals_of(data), [wrong, *steps[1:]]), strict=True
    ):
        assert distance(got, expected) > 1e-3


def test_nodes_have_no_numbers():
    net = wl.network(*NETWORKS["a graph"][2], inputs=wl.Graph(5, 2))
    order = [2, 0, 3, 1]
    x, A = GRAPHS[1]
    turned = [GRAPHS[0], (x[order], A[np.ix_(order, order)]), GRAPHS[2]]
    half = [GRAPHS[0], (x[order], A), GRAPHS[2]]
    for got, same, other in zip(
        computed("a graph"), wl.limits(net).gram(turned), wl.limits(net).gram(half), strict=True
    ):
        assert distance(same, got) < 64 * EPS
        assert distance(other, got) > 1e-3


def test_padding_and_neighbours_in_a_batch_change_nothing():
    for name, more in (("a sequence, mean", wl.Sequence(9, 2)), ("a graph", wl.Graph(7, 2))):
        inputs, data, layers, _ = NETWORKS[name]
        K = computed(name).ntk
        assert distance(by_numpy.gram(wl.ntk(wl.network(*layers, inputs=more)), data), K) < 64 * EPS
        alone = wl.limits(wl.network(*layers, inputs=inputs))  # has the programs of `computed`
        assert distance(np.array([[alone.cross(data[:1], [y]).ntk[0, 0] for y in data[1:]]]), K[:1, 1:]) < 64 * EPS
    inputs, _, layers, _ = NETWORKS["a sequence, mean"]
    filled = np.stack([np.pad(x, ((0, 6 - len(x)), (0, 0))) for x in SERIES])
    unmasked = wl.limits(wl.network(*layers, inputs=inputs)).gram(filled).ntk
    assert distance(unmasked, computed("a sequence, mean").ntk) > 1e-3


def test_heavy_edges_stay_within_the_tables():
    """Edges of weight 8 before Dense(1) are edges of weight 1 before Dense(8); tables had been made for the latter."""
    x, ring = np.random.default_rng(0).normal(size=(3, 2)) / 8, 1 - np.eye(3)

    def kernels_at(std, weight):
        layers = wl.layers.Aggregate(self_loops=False), wl.layers.Dense(std), "tanh", wl.layers.GlobalSumPool()
        net = wl.network(wl.layers.Dense(), *layers, wl.layers.Dense(), inputs=wl.Graph(3, 2))
        return np.array(wl.limits(net).gram([(x, weight * ring), (x[:2], weight * ring[:2, :2])]))

    np.testing.assert_allclose(kernels_at(1.0, 8.0), kernels_at(8.0, 1.0), rtol=1e-9)


@pytest.mark.parametrize("layer", [wl.layers.Aggregate(), wl.layers.GlobalSumPool(), wl.layers.Attention()])
def test_equal_sites_have_a_range_before_tables(layer):
    """Equal deviations before a layer that adds sites are an interval behind it; there it was [0, 0]."""
    net = wl.network(Dense(), layer, Dense(), "tanh", GlobalAveragePool(), Dense(), inputs=wl.Graph(2, 1))
    (equal,), (near,) = (surveys.survey(net.body, low, 1.0, 1.0).values() for low in (1.0, 1 - 1e-9))
    assert equal[1] == pytest.approx(near[1], rel=1e-6)


def test_what_is_behind_a_mask_has_no_influence():
    inputs, data, layers, _ = NETWORKS["a sequence, mean"]
    net = wl.network(*layers, inputs=inputs)
    padded = np.full((3, 6, 2), np.nan)
    for row, x in zip(padded, data, strict=True):
        row[: len(x)] = x
    rows = inputs.pack(padded, lengths=[len(x) for x in data])
    assert np.array_equal(rows, inputs.pack(data))
    assert np.array_equal(rows, inputs.pack(padded, mask=~np.isnan(padded[..., 0])))
    masked = rows.copy()
    masked[1, 4:12] = 7.0  # behind the mask of the second, which has two sites of two features
    params = net.init(0, width=8, dtype=np.float64)
    assert np.array_equal(wl.limits(net).gram(masked).ntk, wl.limits(net).gram(rows).ntk)
    assert np.array_equal(net.apply(params, masked), net.apply(params, rows))
    rows[1, 3] += 1e-3
    assert not np.array_equal(net.apply(params, masked), net.apply(params, rows))


def test_layers_at_every_node_see_the_range_of_numbers_there():
    """Tables of activations, means and a norm, behind nodes without neighbours and masked ones."""
    layers = [
        Dense(1.0, 0.1), "tanh", Aggregate(normalize="mean", self_loops=False), Dense(*W), "gelu", LayerNorm(),
        Concatenate([Dense()], [Dense(), "relu"]), Aggregate(normalize="mean"), GlobalAveragePool(), Dense(),
    ]  # fmt: skip
    small, large = (by_numpy.gram(wl.ntk(wl.network(*layers, inputs=wl.Graph(n, 2))), GRAPHS) for n in (4, 6))
    assert distance(small, large) < 64 * EPS
    assert np.linalg.eigvalsh(small)[0] > 0


def du_2019(graphs, blocks, mlp_layers, scale, jumping):
    """The GNTK by Kronecker products in float64, from formulas of arXiv 1905.13192, section 3, with self loops."""
    x = np.concatenate([signals for signals, _ in graphs])
    B = scipy.sparse.block_diag([A + np.eye(len(A)) for _, A in graphs]).toarray()
    B = B / B.sum(axis=1, keepdims=True) if scale == "degree" else B
    S = x @ x.T
    total = S * jumping
    S = (np.kron(B, B) @ S.ravel()).reshape(S.shape)
    T = S
    for block in range(blocks):
        if block:
            S, T = ((np.kron(B, B) @ M.ravel()).reshape(M.shape) for M in (S, T))
        for _ in range(mlp_layers):
            s = np.sqrt(np.outer(np.diag(S), np.diag(S)))
            angle = np.arccos(np.clip(S / s, -1, 1))
            S, slope = s / np.pi * (np.sin(angle) + (np.pi - angle) * np.cos(angle)), (np.pi - angle) / np.pi
            T = T * slope + S
        total = total + T * (jumping or block == blocks - 1)
    readout = scipy.sparse.block_diag([np.ones((1, len(signals))) for signals, _ in graphs]).toarray()
    return 2 * readout @ total @ readout.T


@pytest.mark.parametrize(("scale", "jumping"), [("degree", True), ("uniform", False)])
def test_the_kernel_of_du_2019(scale, jumping):
    given = {"blocks": 2, "mlp_layers": 2, "scale": scale, "jumping_knowledge": jumping}
    K = wl.ntk(wl.du_2019(inputs=wl.Graph(4, 2), **given)).gram(GRAPHS)
    assert distance(K, du_2019(GRAPHS, 2, 2, scale, jumping)) < 1e-7  # arc cosines in float64 near rho = 1
    assert distance(K, du_2019(GRAPHS, 2, 2, scale, not jumping)) > 1e-2


def test_a_graph_network_by_name():
    one = {"blocks": 2, "mlp_layers": 2, "bias_std": 0.1, "readout": "mean", "normalize": "symmetric"}
    net = wl.gnn(inputs=wl.Graph(4, 2), **one)
    assert wl.read_network(repr(net)) == net
    summed = wl.gnn(inputs=wl.Graph(4, 2), jumping_knowledge=True, **one)
    params = summed.init(0, width=8, dtype=np.float64)
    assert summed.apply(params, GRAPHS).shape == (3, 1)
    assert distance(by_numpy.gram(wl.nngp(summed), GRAPHS), by_numpy.gram(wl.nngp(net), GRAPHS)) > 1e-2


def test_graphs_of_any_form():
    inputs = wl.Graph(4, 2)
    sparse = [(x, scipy.sparse.csr_array(A)) for x, A in GRAPHS]
    assert np.array_equal(inputs.pack(sparse), inputs.pack(GRAPHS))
    assert inputs.pack([(x.astype(np.float32), A.astype(np.float32)) for x, A in GRAPHS]).dtype == np.float32


def test_sequences_and_graphs_are_learned():
    """Estimators take lists; a finite network is trained on the rows, and has an empirical kernel."""
    net = wl.gnn(inputs=wl.Graph(4, 2), blocks=1, bias_std=0.1)
    model = wl.NNGPRegressor(network=net, noise=1e-6).fit(GRAPHS, [1.0, -1.0, 2.0])
    assert np.allclose(model.predict(GRAPHS), [1.0, -1.0, 2.0], atol=1e-3)
    assert np.array_equal(model.predict(GRAPHS), model.predict(net.inputs.pack(GRAPHS)))
    params = net.init(0, width=16, dtype=np.float64)
    run = wl.train(
        net.apply, params, net.inputs.pack(GRAPHS), [1.0, -1.0, 2.0], learning_rate=0.01, steps=50, progress=False
    )
    assert run.history.loss[-1] < run.history.loss[0] / 2
    theta = wl.empirical_ntk(net.apply, params)
    assert theta.gram(GRAPHS).shape == (3, 3, 1, 1)


USED = {
    "attention": (wl.Sequence(4, 2), SERIES, [Dense(), wl.layers.Attention(heads=2, head_size=3), GlobalAveragePool()]),
    "recurrence": (wl.Sequence(4, 2), SERIES, [wl.layers.Recurrent("relu", weight_std=1.2, readout="last")]),
    "graphs": (wl.Graph(4, 2), GRAPHS, [Aggregate(), Dense(), "relu", GlobalSumPool()]),
}  # fmt: skip


@pytest.mark.claims
@pytest.mark.slow
@pytest.mark.parametrize("name", USED)
def test_lists_are_used_as_rows_are(name):
    """Training, empirical kernels and inference take lists: the numbers of rows, those of plain Jacobians."""
    inputs, data, layers = USED[name]
    net, y = wl.network(*layers, Dense(), inputs=inputs), np.array([1.0, -1.0, 2.0])
    params, rows = net.init(0, width=6, dtype=np.float64), inputs.pack(data)

    def trained(X):
        return wl.train(net.apply, params, X, y, learning_rate=0.01, steps=5, progress=False).history.loss

    assert np.array_equal(trained(data), trained(rows))
    theta = wl.empirical_ntk(net.apply, params).gram(data)[..., 0, 0]
    with jax.enable_x64(True):
        leaves = jax.tree.leaves(jax.jacrev(net.signals_of)(params, jnp.asarray(rows)))
        flat = [np.asarray(leaf).reshape(len(rows), -1) for leaf in leaves]
    assert distance(theta, sum(J @ J.T for J in flat)) < 64 * EPS
    assert distance(theta, sum(J @ J.T for J in flat[:-1])) > 1e-3
    flow = wl.gradient_flow(wl.ntk(net), data, y)
    assert np.array_equal(flow.predict(data, 1.0), flow.predict(rows, 1.0))
    model = wl.NTKRegressor(network=net, noise=0.1, hyperparameters="fixed").fit(data, y)
    assert np.array_equal(model.predict(data), model.predict(rows))


def shifted(length, last):
    """Branches that read the sites 0 .. last - 1 and 2 .. last + 1, whose masks differ."""
    parts = [[wl.layers.Select(list(range(k, k + last))), Dense(1.2, 0.1)] for k in (0, 2)]
    layers = [wl.layers.Sum(*parts), "relu", GlobalAveragePool(), Dense(*W)]
    return wl.network(Dense(*W), *layers, inputs=wl.Sequence(length, 2))


def test_branches_that_leave_different_sites():
    """A site is there that all branches leave: as if the sequence filled its array. The first mask had been taken."""
    net, data = shifted(5, 3), [RNG.standard_normal((t, 2)) for t in (5, 4)]
    full = shifted(4, 2)
    K, alone = by_numpy.gram(wl.ntk(net), data), by_numpy.gram(wl.ntk(full), data[1][None])
    assert abs(alone[0, 0] / K[1, 1] - 1) < 64 * EPS
    params = net.init(0, width=8, dtype=np.float64)
    assert np.allclose(full.apply(params, data[1][None]), net.apply(params, data)[1], rtol=1e-13)


@pytest.mark.parametrize("kind", [wl.layers.Sum, wl.layers.Product, Concatenate])
def test_branches_without_a_common_site(kind):
    net = wl.network(
        Dense(), kind(*([wl.layers.Select(sites), Dense()] for sites in ([0, 3], [3, 0]))),
        GlobalAveragePool(), Dense(), inputs=wl.Sequence(4, 2),
    )  # fmt: skip
    net.rows("X", SERIES[:1])
    with pytest.raises(ValueError, match=r"X\[1\] has no site that all branches of \w+\(.* leave") as error:
        net.rows("X", SERIES[:2])
    assert len(str(error.value)) < 400


def network(*layers, inputs):
    return wl.network(*layers, inputs=inputs)


SEQUENCE, GRAPH = wl.Sequence(4, 2), wl.Graph(4, 2)
x, A = GRAPHS[0]
BAD = {
    "no sequences": (lambda: SEQUENCE.pack([]), "X is empty"),
    "an empty sequence": (lambda: SEQUENCE.pack([np.zeros((0, 2))]), "has 0 sites"),
    "a long sequence": (lambda: SEQUENCE.pack([np.zeros((5, 2))]), r"wl.Sequence\(5, 2\)"),
    "other features": (lambda: SEQUENCE.pack([np.zeros((3, 1))]), "takes"),
    "lengths beyond": (lambda: SEQUENCE.pack(np.zeros((2, 4, 2)), lengths=[4, 5]), "integers from 1 to 4"),
    "a length of 0": (lambda: SEQUENCE.pack(np.zeros((2, 4, 2)), lengths=[4, 0]), "integers from 1 to 4"),
    "all masked": (lambda: SEQUENCE.pack(np.zeros((2, 4, 2)), mask=np.eye(2, 4) * [[1], [0]]), "not masked"),
    "NaN": (lambda: SEQUENCE.pack(np.full((1, 4, 2), np.nan), lengths=[1]), "NaN or infinite"),
    "rows of another length": (lambda: SEQUENCE.rows("X", np.zeros((1, 8))), "packs an input to 12"),
    "a mask of twos": (lambda: SEQUENCE.rows("X", np.full((1, 12), 2.0)), "0 or 1"),
    "an empty graph": (lambda: GRAPH.pack([(np.zeros((0, 2)), np.zeros((0, 0)))]), "has 0 nodes"),
    "asymmetric": (lambda: GRAPH.pack([(x, np.triu(A))]), r"not symmetric; .*\(A \+ A.T\) / 2"),
    "negative": (lambda: GRAPH.pack([(x, -A)]), "below 0"),
    "other nodes": (lambda: GRAPH.pack([(x, A[:2, :2])]), "there are 3 nodes"),
    "NaN in an edge": (lambda: GRAPH.pack([(x, A * np.nan)]), "NaN or infinite"),
    "no pairs": (lambda: GRAPH.pack([x]), "signals, adjacency"),
    "not a list": (lambda: GRAPH.pack(3), "list of graphs"),
    "no size": (lambda: wl.Sequence(0, 2), "length of Sequence"),
    "windows in a graph": (lambda: network(Conv(3), Flatten(), Dense(), inputs=GRAPH), "no order"),
    "neighbours in a sequence": (lambda: network(Dense(), Aggregate(), inputs=SEQUENCE), "wl.Graph"),
    "a circle": (lambda: network(Conv(3, padding="circular"), Flatten(), Dense(), inputs=SEQUENCE), "common circle"),
    "a norm over all": (lambda: network(Dense(), LayerNorm(over="all"), Dense(), inputs=SEQUENCE), "each site"),
    "too short": (
        lambda: wl.nngp(
            network(Conv(3, padding="valid"), GlobalAveragePool(), Dense(), inputs=SEQUENCE)
        ).gram([np.ones((4, 2)), np.ones((2, 2))]),
        r"X\[1\] is too short",
    ),
    "pairs of many sites": (
        lambda: wl.nngp(
            network(Dense(), GlobalSumPool(), Dense(), inputs=wl.Sequence(10**6, 1))
        ).gram(np.ones((1, 10**6, 1))),
        "pairs of 1000000 sites",
    ),
    "random scores": (lambda: wl.gnn(inputs=GRAPH, readout="attention"), "not Gaussian; take"),
    "no graph": (lambda: wl.gnn(inputs=SEQUENCE), "wl.Graph"),
    "sphere": (
        lambda: wl.NNGPRegressor(network=wl.gnn(inputs=GRAPH), normalize="sphere").fit(GRAPHS, [1.0, 2.0, 3.0]),
        "standardize",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_at_the_door(name):
    call, match = BAD[name]
    with pytest.raises((ValueError, TypeError, MemoryError), match=match) as error:
        call()
    assert len(str(error.value)) < 400


def test_pairs_of_sites_go_through_one_layer_at_a_time() -> None:
    """XLA fuses nothing across a branch: work of one layer is not done again for each sum of a later one."""
    net = wl.gnn(inputs=wl.Graph(3, 2), mlp_layers=2)
    with jax.enable_x64(True):
        x = jax.eval_shape(net.encode, jnp.zeros((1, net.inputs.size)))
        traced = str(jax.make_jaxpr(lambda x: net.pairwise(x, x, same=False))(x))
    assert traced.count("cond[") >= len(net.layers)
    first, second = (layer for layer in net.layers if isinstance(layer, wl.layers.Aggregate))
    assert (first.weighted, second.weighted) == (False, True)


def test_explain_says_memory_and_seconds():
    text = wl.nngp(wl.gnn(inputs=wl.Graph(4, 2), blocks=1)).explain(GRAPHS[:3])
    assert re.search(r"state: 0.38 KiB a pair; \S+ \S+ an input, .* all\ntime: \S+ s a pair, \S+ s for 3 inputs", text)
