"""This benchmark measures small problems: a Gram matrix of 50 x 5 after warm-up, and the import.

python benchmarks/small_problems.py
"""

import subprocess
import sys
import time

import numpy as np
from common import report

import widelimit as wl

SMALL = True
REPEATS = 5


def import_seconds(code: str) -> float:
    """Measure the import of a new Python, the shortest of a few."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    """Measure two kinds of rows."""
    X = np.random.default_rng(0).standard_normal((50, 5))
    rows = []
    for name, k in (
        ("gram of 50 x 5, relu NTK, 2 hidden layers", wl.ntk(wl.mlp(depth=3, bias_std=0.1))),
        ("gram of 50 x 5, RBF", wl.rbf(1.0)),
    ):
        k.gram(X)
        times = []
        for _ in range(200):
            start = time.perf_counter()
            k.gram(X)
            times.append(time.perf_counter() - start)
        rows.append({"what": name, "ms": 1e3 * float(np.median(times)), "goal_ms": 1.0})
    jax = import_seconds("import jax")
    used = "import widelimit as wl; wl.ntk(wl.mlp(depth=3))"
    rows.append({"what": "import jax", "ms": 1e3 * jax})
    for name, code in (
        ("import widelimit, over import jax", "import jax, widelimit"),
        (f"{used}, over import jax", used),
    ):
        rows.append({"what": name, "ms": 1e3 * (import_seconds(code) - jax), "goal_ms": 300.0})
    report("small_problems", rows)


if __name__ == "__main__":
    main()
