"""Both kernels of convolutional networks classify small parts of CIFAR-10, beside fully connected ones.

python benchmarks/images_accuracy.py --data cifar10.npz --folder OUT [--end flatten pool] [--depth 3 11] [--train 4000]
    [--test 1000] [--dtype float32]

The file holds X_train (n, 32, 32, 3), y_train, X_test and y_test. Channels are standardised by the training images;
targets are one-hot less 0.1; regression by the kernel with noise 1e-4 of its mean diagonal. Networks: depth - 1 times
(3 x 3 convolution, relu), weight_std sqrt(2), no bias, then all sites side by side or their average, then dense; depth
counts affine layers as in Arora et al. 2019 (arXiv 1904.11955), whose last layer is not trained. A run that is stopped
goes on: blocks of kernels lie in the folder. Times are wall seconds of the blocks that were computed.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import scipy.linalg
from common import report

import widelimit as wl

SIZES = (250, 500, 1000, 2000, 4000)
NOISE = 1e-4
BLOCK = {"flatten": 500, "pool": 50, "fully connected": 1000}


def network(end: str, depth: int) -> wl.Network:
    """Return the network of an end and a depth."""
    if end == "fully connected":
        return wl.mlp(depth=depth, activation="relu", weight_std=2**0.5)
    body = [wl.layers.Conv(3, weight_std=2**0.5), "relu"] * (depth - 1)
    last = wl.layers.Flatten() if end == "flatten" else wl.layers.GlobalAveragePool()
    return wl.network(*body, last, wl.layers.Dense(), inputs=wl.Image(32, 32, 3))


def block(path: Path, compute: object) -> tuple[np.ndarray, float]:
    """Return (both kernels, seconds) of a block from its file, or compute and write it, whole or not at all."""
    if not path.exists():
        start = time.perf_counter()
        both = np.stack(compute())
        unfinished = path.with_suffix(".part")
        with unfinished.open("wb") as file:
            np.savez(file, both=both, seconds=time.perf_counter() - start)
        unfinished.rename(path)
        print(path.name, flush=True)
    with np.load(path) as file:
        return file["both"], float(file["seconds"])


def kernels(end: str, depth: int, X: np.ndarray, Z: np.ndarray, folder: Path) -> tuple[np.ndarray, np.ndarray, float]:
    """Return both kernels of the training images, (2, n, n), those with the test images, (2, m, n), and seconds."""
    k, step, total = wl.limits(network(end, depth)), BLOCK[end], 0.0
    folder = folder / f"{end}_{depth}_{X.dtype}_{len(X)}_{len(Z)}".replace(" ", "_")
    folder.mkdir(parents=True, exist_ok=True)
    gram, cross = np.empty((2, len(X), len(X)), X.dtype), np.empty((2, len(Z), len(X)), X.dtype)
    for i in range(0, len(X), step):
        for j in range(0, i + 1, step):
            own, other = X[i : i + step], X[j : j + step]
            both, spent = block(
                folder / f"gram_{i}_{j}.npz",
                lambda own=own, other=other, i=i, j=j: k.gram(own) if i == j else k.cross(own, other),
            )
            gram[:, i : i + step, j : j + step] = both
            gram[:, j : j + step, i : i + step] = both.transpose(0, 2, 1)
            total += spent
        for j in range(0, len(Z), step):
            rows, own = Z[j : j + step], X[i : i + step]
            both, spent = block(folder / f"cross_{j}_{i}.npz", lambda rows=rows, own=own: k.cross(rows, own))
            cross[:, j : j + step, i : i + step] = both
            total += spent
    return gram, cross, total


def accuracy(gram: np.ndarray, cross: np.ndarray, labels: np.ndarray, known: np.ndarray) -> float:
    """Return the accuracy of regression on one-hot targets."""
    A = gram.astype(np.float64)
    A[np.diag_indices(len(A))] += NOISE * np.trace(A) / len(A)
    targets = np.eye(labels.max() + 1)[labels] - 0.1
    f = cross.astype(np.float64) @ scipy.linalg.solve(A, targets, assume_a="pos")
    return float(np.mean(f.argmax(1) == known))


def main() -> None:
    """Measure all networks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="an .npz with X_train, y_train, X_test, y_test")
    parser.add_argument("--folder", required=True, type=Path, help="where blocks of kernels are kept")
    parser.add_argument("--end", nargs="+", default=["fully connected", "flatten", "pool"], choices=list(BLOCK))
    parser.add_argument("--depth", nargs="+", type=int, default=[3, 11])
    parser.add_argument("--train", type=int, default=1000)
    parser.add_argument("--test", type=int, default=500)
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64"])
    parser.add_argument("--name", default="images_accuracy", help="of the result")
    options = parser.parse_args()
    with np.load(options.data) as file:
        X, Z = (file[key][:n].astype(np.float64) for key, n in (("X_train", options.train), ("X_test", options.test)))
        labels, known = file["y_train"][: options.train], file["y_test"][: options.test]
    centre, spread = X.mean((0, 1, 2)), X.std((0, 1, 2))
    X, Z = (((part - centre) / spread).reshape(len(part), -1).astype(options.dtype) for part in (X, Z))
    rows = []
    for end in options.end:
        for depth in options.depth:
            gram, cross, spent = kernels(end, depth, X, Z, options.folder)
            pairs = len(X) * (len(X) + 1) / 2 + len(X) * len(Z)
            for n in [size for size in SIZES if size < len(X)] + [len(X)]:
                found = [accuracy(gram[i, :n, :n], cross[i, :, :n], labels[:n], known) for i in (0, 1)]
                rows.append({"end": end, "depth": depth, "n": n, "nngp": found[0], "ntk": found[1]})
            rows[-1] |= {"seconds": spent, "ms_a_pair": 1e3 * spent / pairs}
            print(rows[-1], flush=True)
    report(options.name, rows, test=len(Z), dtype=options.dtype, noise=NOISE)


if __name__ == "__main__":
    main()
