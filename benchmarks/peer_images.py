"""The script images.py asks neural-tangents here: seconds of one jitted call to host memory, warm."""

import json
import sys
import time

import jax
import numpy as np
from images_data import BIAS, STD, images
from neural_tangents import stax

compiled = {}


def answer(*, n: int, layers: int, end: str, dtype: str) -> dict:
    """Return seconds of the NTK of the first n images with the next n, of the first call too, and one entry."""
    X = images(2 * n, dtype)
    key, first = (n, layers, end, dtype), None
    if key not in compiled:
        body = [stax.Conv(1, (3, 3), padding="SAME", W_std=STD, b_std=BIAS), stax.Relu()] * layers
        last = stax.GlobalAvgPool() if end == "pool" else stax.Flatten()
        kernel = stax.serial(*body, last, stax.Dense(1))[2]
        compiled[key] = jax.jit(lambda x, y: kernel(x, y, "ntk"))
        start = time.perf_counter()
        np.asarray(compiled[key](X[:n], X[n:]))
        first = time.perf_counter() - start
    start = time.perf_counter()
    K = np.asarray(compiled[key](X[:n], X[n:]))
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "first": first, "entry": float(K[0, 0]), "dtype": str(K.dtype)}


for line in sys.stdin:
    print(json.dumps(answer(**json.loads(line))), flush=True)
