"""Graphs of networkx itself, which PyTorch brings along (make test-torch)."""

import numpy as np
import pytest

import widelimit as wl

networkx = pytest.importorskip("networkx")
INPUTS = wl.Graph(5, 2)


def drawn(n, make):
    """A graph with weights on its edges, whose nodes have names and were added in another order, and its arrays."""
    rng, graph = np.random.default_rng(n), networkx.Graph()
    names = [f"node {k}" for k in rng.permutation(n)]
    x = rng.normal(size=(n, 2))
    graph.add_nodes_from((name, {"features": row}) for name, row in zip(names, x, strict=True))
    A = np.zeros((n, n))
    for i, j in make(n).edges:
        A[i, j] = A[j, i] = weight = rng.random()
        graph.add_edge(names[i], names[j], weight=weight)
    return graph, (x, A)


GRAPHS, ARRAYS = zip(
    drawn(5, networkx.cycle_graph), drawn(3, networkx.path_graph), drawn(1, networkx.path_graph), strict=True
)


def test_graphs_of_networkx_are_those_of_arrays():
    """Nodes are in the order of the graph, whatever their names; edges without a weight count 1."""
    assert np.array_equal(INPUTS.pack(list(GRAPHS)), INPUTS.pack(list(ARRAYS)))
    plain = networkx.path_graph(3)
    networkx.set_node_attributes(plain, 1.0, "features")
    path = np.diag([1.0, 1.0], 1) + np.diag([1.0, 1.0], -1)
    assert np.array_equal(wl.Graph(3, 1).pack([plain]), wl.Graph(3, 1).pack([(np.ones((3, 1)), path)]))


def test_what_networkx_has_and_kernels_do_not():
    nameless = networkx.path_graph(3)
    for graph, match in (
        (nameless, r'X\[0\]: every node of a networkx graph needs the attribute "features"'),
        (networkx.Graph(), "has 0 nodes"),
        (networkx.cycle_graph(6), "features"),
    ):
        with pytest.raises(ValueError, match=match):
            INPUTS.pack([graph])
    directed = networkx.DiGraph([(0, 1)])
    networkx.set_node_attributes(directed, {0: [1.0, 2.0], 1: [0.0, 1.0]}, "features")
    with pytest.raises(ValueError, match="not symmetric"):
        INPUTS.pack([directed])


def test_an_estimator_takes_them():
    net = wl.gnn(inputs=INPUTS, blocks=1, bias_std=0.1)
    model = wl.NNGPRegressor(network=net, noise=0.1, hyperparameters="fixed").fit(list(GRAPHS), [1.0, 2.0, 3.0])
    assert np.array_equal(model.predict(list(GRAPHS)), model.predict(list(ARRAYS)))
