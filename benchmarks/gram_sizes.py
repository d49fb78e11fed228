"""This benchmark measures nanoseconds per entry of an NTK Gram matrix, n = 1,000 to 32,000; the goal is a flat line.

python benchmarks/gram_sizes.py [largest n] [float32 | float64]     (32000 float64 unless given: 8 GiB)
"""

import sys
import time

import numpy as np
from common import report

import widelimit as wl
from widelimit import memory

SMALL = False
SIZES = [1_000, 2_000, 4_000, 8_000, 16_000, 32_000]


def main() -> None:
    """Measure a row a size; the shortest of several calls, more of them where they are short."""
    largest = int(sys.argv[1]) if len(sys.argv) > 1 else SIZES[-1]
    dtype = sys.argv[2] if len(sys.argv) > 2 else "float64"
    X = np.random.default_rng(0).standard_normal((largest, 100)).astype(dtype)
    k = wl.ntk(wl.mlp(depth=4, activation="relu", weight_std=2**0.5, bias_std=0.1))
    rows: list[dict] = []
    for n in (n for n in SIZES if n <= largest):
        if X.itemsize * n * n > memory.available():
            print(f"n = {n} is left out: {memory.available() / 2**30:.1f} GiB are free")
            break
        K = k.gram(X[:n])
        times = []
        while len(times) < 3 or (sum(times) < 1 and len(times) < 30):
            del K  # the pages are used again: touching new ones is the machine's time
            start = time.perf_counter()
            K = k.gram(X[:n])
            times.append(time.perf_counter() - start)
        rows.append({"n": n, "dtype": dtype, "seconds": min(times), "ns_per_entry": min(times) / n**2 * 1e9})
        del K
    smallest = min(row["ns_per_entry"] for row in rows)
    for row in rows:
        row |= {"over_the_smallest": row["ns_per_entry"] / smallest, "goal": 1.3}
    report("gram_sizes", rows)


if __name__ == "__main__":
    main()
