"""Seconds of an NTK Gram matrix for every activation, beside relu's.

python benchmarks/activations.py [n] [depth]

Inputs of equal and of unequal norm (standard normal, 20 features). The second of two runs is shown, relu before and
after each activation (the mean of both is its peer); the first run, with compilation, stands in parentheses.
"""

import os
import sys
import time

import numpy as np

import widelimit as wl

NAMES = ["erf", "gelu", "sin", "snake", "rbf", "hermite", "tanh", "sigmoid", "silu", "softplus", "mish", "elu"]


def seconds(activation: str, depth: int, X: np.ndarray) -> tuple[float, float]:
    """Of the first gram and of the next."""
    k = wl.ntk(wl.mlp(depth=depth, activation=activation, weight_std=1.2, bias_std=0.2))
    times = []
    for _ in range(2):
        start = time.perf_counter()
        k.gram(X)
        times.append(time.perf_counter() - start)
    return times[0], times[1]


def main() -> None:
    """The table, row by row."""
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 4000
    depth = int(sys.argv[2]) if len(sys.argv) > 2 else 4
    X = np.random.default_rng(0).standard_normal((n, 20))
    U = X / np.linalg.norm(X, axis=1, keepdims=True) * np.sqrt(20)
    print(f"n = {n}, depth {depth}, float64, OPENBLAS_CORETYPE = {os.environ.get('OPENBLAS_CORETYPE', 'unset')}")
    for label, data in (("equal norms", U), ("unequal norms", X)):
        seconds("relu", depth, data)
        for name in NAMES:
            before = seconds("relu", depth, data)[1]
            first, again = seconds(name, depth, data)
            relu = (before + seconds("relu", depth, data)[1]) / 2
            row = f"{label:14} {name:10} {again:6.2f} s ({first:5.2f}), relu {relu:5.2f} s, ratio {again / relu:5.2f}"
            print(row, flush=True)


if __name__ == "__main__":
    main()
