"""The GNTK of 100 graphs with 30 nodes is timed beside the authors' way: a Kronecker product of each pair of graphs.

python benchmarks/graphs.py [repeats] [graphs]     (3 and 100 unless given)

In turns, CPU seconds of the Gram matrix of `du_2019` (2 blocks, 2 dense layers each, jumping knowledge), all float64:
ours from packed rows, and plain NumPy with SciPy's sparse Kronecker products, as Du et al. 2019 (arXiv 1905.13192)
compute it: each pair i <= j once, standard deviations of every graph once. Goal: 10 times.
"""

import itertools
import sys
import time

import numpy as np
import scipy.sparse

import widelimit as wl

BLOCKS, LAYERS, NODES = 2, 2, 30


def relu(S, s, t):
    """Return 2 E[relu relu] and 2 E[relu' relu'] for deviations s, t."""
    rho = np.clip(S / s[:, None] / t[None], -1, 1)
    angle = np.pi - np.arccos(rho)
    return (rho * angle + np.sqrt(1 - rho * rho)) / np.pi * s[:, None] * t[None], angle / np.pi


def pair(x, y, deviations=None):
    """Return the kernel of two graphs; without deviations those of one graph, for each layer."""
    (u, A), (v, B) = x, y
    block = scipy.sparse.kron(A, B).tocsr()
    scale = 1 / np.outer(A.sum(axis=1), B.sum(axis=1))

    def spread(M):
        return (block @ M.ravel()).reshape(M.shape) * scale

    S = u @ v.T
    total, S, found = S.sum(), spread(S), []
    T = S
    for k in range(BLOCKS):
        if k:
            S, T = spread(S), spread(T)
        for layer in range(LAYERS):
            if deviations is None:
                found.append(np.sqrt(np.diag(S)))
                s = t = found[-1]
            else:
                s, t = (own[k * LAYERS + layer] for own in deviations)
            S, slope = relu(S, s, t)
            T = T * slope + S
        total += T.sum()
    return 2 * total if deviations else found


def theirs(graphs):
    """Return the Gram matrix."""
    loops = [(x, scipy.sparse.csr_array(A + np.eye(len(A)))) for x, A in graphs]
    own = [pair(graph, graph) for graph in loops]
    K = np.empty((len(graphs),) * 2)
    for i, j in itertools.combinations_with_replacement(range(len(graphs)), 2):
        K[i, j] = K[j, i] = pair(loops[i], loops[j], (own[i], own[j]))
    return K


def main(repeats=3, count=100):
    """Print the first call of ours, and CPU seconds of both."""
    rng = np.random.default_rng(0)
    graphs = []
    for _ in range(count):
        upper = np.triu(rng.random((NODES, NODES)) < 0.15, 1)
        graphs.append((np.eye(8)[rng.integers(8, size=NODES)], (upper + upper.T).astype(float)))
    kernel = wl.ntk(wl.du_2019(inputs=wl.Graph(NODES, 8), blocks=BLOCKS, mlp_layers=LAYERS))
    rows = kernel.net.inputs.pack(graphs)
    ways = {"ours": lambda: kernel.gram(rows), "theirs": lambda: theirs(graphs)}
    start = time.perf_counter()
    kernel.gram(rows)
    print(f"first call {time.perf_counter() - start:.2f} s")
    seconds, found = {name: [] for name in ways}, {}
    for _ in range(repeats):
        for name, way in ways.items():
            start = time.process_time()
            found[name] = way()
            seconds[name].append(time.process_time() - start)
    best = {name: min(each) for name, each in seconds.items()}
    apart = np.max(np.abs(found["ours"] / found["theirs"] - 1))
    print(f"{count} graphs, CPU s: {best}, ratio {best['theirs'] / best['ours']:.1f}, largest difference {apart:.1e}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
