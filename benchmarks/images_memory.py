"""Peak memory of `gram` of images with a pool between convolutions, beside what `explain` predicts.

python benchmarks/images_memory.py [images] [size]     (2000 images of 16 x 16 x 3 unless given; Linux)
"""

import sys

import numpy as np

import widelimit as wl
from widelimit.layers import AveragePool, Conv, Dense, GlobalAveragePool


def peak() -> float:
    """Return the highest resident memory of the process so far, in MiB."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def main() -> None:
    """Measure one matrix."""
    n, size = [*map(int, sys.argv[1:]), *(2000, 16)[len(sys.argv) - 1 :]]
    layers = [Conv(3), "relu", AveragePool(2), Conv(3), "relu", GlobalAveragePool(), Dense()]
    k = wl.nngp(wl.network(*layers, inputs=wl.Image(size, size, 3)))
    X = np.random.default_rng(0).standard_normal((n, size, size, 3)).astype(np.float32)
    k.gram(X[:40])
    before = peak()
    print(k.explain(X), flush=True)
    K = k.gram(X)
    found = (peak() - before, K.nbytes / 2**20)
    print("gram of {} images: peak {:.0f} MiB above the start, of which the matrix {:.0f}".format(n, *found))


if __name__ == "__main__":
    main()
