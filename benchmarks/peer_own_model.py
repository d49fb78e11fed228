"""The script own_model_jax.py asks neural-tangents here: seconds of one jitted call, after one that compiles."""

import json
import sys
import time

import jax
import neural_tangents as nt
import numpy as np
from jax._src import source_info_util as source_info
from own_model_nets import network

# Where neural-tangents 0.6.5 looks for them, for its structured derivatives; JAX 0.5 moved them.
jax.interpreters.ad.source_info_util, jax.interpreters.ad.config = source_info, jax.config
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
    try:
        found = answer(**json.loads(line))
    except Exception as error:  # out of memory, or a step that it does not know
        found = {"error": str(error).strip().split("\n")[0][:150]}
    print(json.dumps(found), flush=True)
