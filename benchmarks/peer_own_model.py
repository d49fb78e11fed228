"""The script own_model_jax.py asks neural-tangents here: seconds of one jitted call, after one that compiles."""

import json
import sys
import time

import jax
import neural_tangents as nt
import numpy as np
from own_model_nets import network

functions = {}


def answer(*, name: str, n: int, implementation: int, output: str) -> dict:
    """Return wall and CPU seconds, and some entries."""
    apply, params, X = network(name, n)
    key = (name, n, implementation, output)
    first = 0.0
    if key not in functions:
        axes = (-1,) if output == "trace" else ()
        kernel = nt.empirical_ntk_fn(apply, trace_axes=axes, vmap_axes=0, implementation=implementation)
        functions[key] = jax.jit(lambda X, params: kernel(X, None, params))
        start = time.perf_counter()
        np.asarray(functions[key](X, params))
        first = time.perf_counter() - start
    start, cpu = time.perf_counter(), time.process_time()
    K = np.asarray(functions[key](X, params))
    found = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu, "first": first}
    return found | {"entries": np.asarray(K[0, :2], np.float64).ravel()[:3].tolist(), "version": jax.__version__}


for line in sys.stdin:
    print(json.dumps(answer(**json.loads(line))), flush=True)
