"""This benchmark measures the peak memory of a Gram matrix, over the size of its result.

python benchmarks/gram_memory.py [n]     (20000 unless given: 3 GiB)
"""

import resource
import sys
import threading
import time

import numpy as np
import psutil
from common import report

import widelimit as wl

SMALL = True


def main() -> None:
    """Measure one row in a fresh process: the highest resident memory, less the memory at the start."""
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    X = np.random.default_rng(0).standard_normal((n, 100))
    k = wl.ntk(wl.mlp(depth=4, activation="relu", weight_std=2**0.5, bias_std=0.1))
    k.gram(X[:2100])  # the programs are compiled, whose memory is no matter of n
    process, before, peak, ended = psutil.Process(), 0, 0, threading.Event()
    before = process.memory_info().rss

    def watch() -> None:
        nonlocal peak
        while not ended.wait(0.005):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    K = k.gram(X)
    seconds = time.perf_counter() - start
    ended.set()
    watcher.join()
    peak = max(peak, process.memory_info().rss) - before
    whole = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    report(
        "gram_memory",
        [
            {
                "n": n,
                "dtype": str(K.dtype),
                "result_gib": K.nbytes / 2**30,
                "peak_gib": peak / 2**30,
                "ratio": peak / K.nbytes,
                "goal": 1.1,
                "beyond_the_result_mib": (peak - K.nbytes) / 2**20,
                "process_peak_gib": whole / 2**30,
                "seconds": seconds,
            }
        ],
    )


if __name__ == "__main__":
    main()
