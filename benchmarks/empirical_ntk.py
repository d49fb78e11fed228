"""The empirical NTK of a dense network is timed: this library beside PyTorch's recipes and neural-tangents.

.venv-torch/bin/python benchmarks/empirical_ntk.py [python of an environment with neural-tangents 0.6.5 and jax 0.5.3]

A relu network of depth 4 and width 1024, 100 features, 10 outputs, all 10 x 10 output blocks, float32, the same weights
for all. Each way runs in a process of its own, whose peak memory is shown; seconds are those of the shortest of three
calls after a first one, or of the only call after a smaller first one where a call takes long (`calls`).

The peers hold the Jacobians of all rows at once (16 GiB for 200 rows), or a vector of parameters for every pair and
output: they are given 5 x 5 pairs at a time, on 10 x 10 pairs, and compute both triangles of the symmetric matrix.
Their time goes by the pair; the layerwise method does 10 x 10 and 200 x 200.
"""

import itertools
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

FEATURES, WIDTH, OUTPUTS, DEPTH = 100, 1024, 10, 4
SMALL, N = 10, 200
ROWS = 5
"""The peers take this many times as many pairs at once."""


def weights(width=WIDTH, outputs=OUTPUTS, dtype=np.float32):
    """Draw (weight, bias) of every layer, in the standard parameterisation."""
    rng = np.random.default_rng(0)
    sizes = [FEATURES, *[width] * (DEPTH - 1), outputs]
    pairs = itertools.pairwise(sizes)
    return [
        ((rng.standard_normal((b, a)) * np.sqrt(2 / a)).astype(dtype), (0.1 * rng.standard_normal(b)).astype(dtype))
        for a, b in pairs
    ]


def inputs(n, dtype=np.float32):
    """Draw (n, features), standard normal."""
    return np.random.default_rng(1).standard_normal((n, FEATURES)).astype(dtype)


def ours(method, width=WIDTH, outputs=OUTPUTS, dtype=np.float32):
    """Compute this library's kernel of two arrays of inputs."""
    import widelimit as wl

    net = wl.mlp(depth=DEPTH, activation="relu", bias_std=0.1, parameterization="standard")
    params = []
    for weight, bias in weights(width, outputs, dtype):
        params += [{"weight": weight, "bias": bias}, ()]
    k = wl.empirical_ntk(net.apply, tuple(params[:-1]), method=method, memory=4)
    return lambda X, Y: k.gram(X) if X is Y else k.cross(X, Y)


def torch_recipe(method):
    """Compute the two recipes of PyTorch's tutorial on tangent kernels: vmap of jacrev; of vjp and jvp."""
    import torch
    from torch.func import functional_call, jacrev, jvp, vjp, vmap

    layers = []
    for weight, bias in weights():
        layer = torch.nn.Linear(*weight.shape[::-1])
        layer.weight.data, layer.bias.data = torch.tensor(weight), torch.tensor(bias)
        layers += [layer, torch.nn.ReLU()]
    net = torch.nn.Sequential(*layers[:-1])
    params = {name: p.detach() for name, p in net.named_parameters()}

    def f(params, x):
        return functional_call(net, params, (x[None],))[0]

    def contraction(X, Y):
        left, right = (vmap(jacrev(f), (None, 0))(params, Z) for Z in (X, Y))
        pairs = [(left[name].flatten(2), right[name].flatten(2)) for name in params]
        return sum(torch.einsum("nap,mbp->nmab", a, b) for a, b in pairs)

    def products(X, Y):
        def pair(x, y):
            _, pull = vjp(lambda p: f(p, x), params)

            def row(a):
                return jvp(lambda p: f(p, y), (params,), pull(a))[1]

            return vmap(row)(torch.eye(OUTPUTS))

        return vmap(vmap(pair, (None, 0)), (0, None))(X, Y)

    block = {"jacobian": contraction, "vector_products": products}[method]
    return lambda X, Y: in_blocks(lambda a, b: block(torch.tensor(a), torch.tensor(b)).detach().numpy(), X, Y)


def neural_tangents(implementation):
    """Compute the kernel of neural-tangents by one of its implementations."""
    import jax
    import jax.numpy as jnp
    import neural_tangents as nt

    params = weights()

    def f(params, X):
        for weight, bias in params[:-1]:
            X = jax.nn.relu(X @ weight.T + bias)
        return X @ params[-1][0].T + params[-1][1]

    kernel = nt.empirical_ntk_fn(f, trace_axes=(), vmap_axes=0, implementation=implementation)
    block = jax.jit(lambda a, b: kernel(a, b, params))
    return lambda X, Y: in_blocks(lambda a, b: np.asarray(block(jnp.asarray(a), jnp.asarray(b))), X, Y)


def in_blocks(block, X, Y):
    """Compute a kernel from blocks of ROWS x ROWS pairs."""
    strips = [[block(X[i : i + ROWS], Y[j : j + ROWS]) for j in range(0, len(Y), ROWS)] for i in range(0, len(X), ROWS)]
    return np.concatenate([np.concatenate(strip, axis=1) for strip in strips])


WAYS = {
    "widelimit, layerwise": lambda: ours("layerwise"),
    "widelimit, vector_products": lambda: ours("vector_products"),
    "torch.func, vector products": lambda: torch_recipe("vector_products"),
    "torch.func, Jacobian contraction": lambda: torch_recipe("jacobian"),
    "neural-tangents, 2 (vector products)": lambda: neural_tangents(2),
    "neural-tangents, 1 (Jacobian contraction)": lambda: neural_tangents(1),
}
LARGE = "widelimit, layerwise, width 4096, 1 output, float64"
FIRST = "widelimit, layerwise"


def measure(way, m, calls):
    """Run in the process of one way: prints seconds, peak GiB and a part of the values."""
    if way == LARGE:
        call, X = ours("auto", 4096, 1, np.float64), inputs(m, np.float64)
    else:
        call, X = WAYS[way](), inputs(m)
    call(X if calls > 1 else X[:ROWS], X)
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        values = call(X, X)
        times.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    corner = np.asarray(values[:3, :3], np.float64).ravel().tolist()
    print(json.dumps({"seconds": min(times), "peak": peak, "calls": calls, "corner": corner}))


def row(python, way, m, calls, reference):
    """Measure one row of the table, from a process of its own."""
    run = subprocess.run([python, __file__, way, str(m), str(calls)], capture_output=True, text=True, check=False)
    if run.returncode:
        return {"way": way, "pairs": f"{m} x {m}", "error": run.stderr.strip().split("\n")[-1][:200]}
    found = json.loads(run.stdout.strip().split("\n")[-1])
    values = np.array(found["corner"])
    wanted = reference.setdefault("corner", values) if way != LARGE else values
    return {
        "way": way,
        "pairs": f"{m} x {m}",
        "seconds": found["seconds"],
        "ms a pair": 1000 * found["seconds"] / m**2,
        "peak GiB": found["peak"],
        "calls": calls,
        "difference": float(np.abs(values - wanted).max() / np.abs(wanted).max()),
    }


def main():
    """Measure the table: all ways on 10 x 10 pairs, then the layerwise method on 200 x 200, then the large width."""
    from common import report

    peer = sys.argv[1] if len(sys.argv) > 1 else ""
    rows, reference = [], {}

    def add(way, m, calls):
        python = peer if way.startswith("neural") else sys.executable
        if python:
            rows.append(row(python, way, m, calls, reference))
            print(rows[-1], file=sys.stderr, flush=True)

    for way in WAYS:
        add(way, SMALL, 3 if way == FIRST else 1)
    add(FIRST, N, 3)
    add(LARGE, 1000, 3)
    settings = {"width": WIDTH, "depth": DEPTH, "outputs": OUTPUTS, "dtype": "float32"}
    report("empirical_ntk", rows, **settings)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    if len(sys.argv) == 4:
        measure(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    else:
        main()
