"""Kernels of convolutional networks classify MNIST and CIFAR-10, or parts of them, beside published results.

python benchmarks/images_accuracy.py --data DATA.npz --folder OUT [--network NAME ...] [--train N] [--test M]

The file holds X_train (n, height, width[, channels]), y_train, X_test and y_test. Names: `convnet`, `residual`,
`residual-uncentred` and `resnet32` of Garriga-Alonso et al. 2019 (arXiv 1808.05587; MNIST, NNGP, published errors of
1.03, -, 0.96 and 0.84 % from 50,000 images), `dense-D`, `flatten-D` and `pool-D` with D affine layers: D - 1 times
(3 x 3 convolution or dense, relu), weight_std sqrt(2), no bias, then all sites side by side or averaged, then dense, as
in Arora et al. 2019 (arXiv 1904.11955), whose last layer is not trained. Pixels of MNIST are divided by 255, those of
CIFAR-10 standardised by the training images; targets are one-hot less 0.1; regression with noise 1e-4 (MNIST: 1e-8) of
the mean diagonal. A run that is stopped goes on: blocks of kernels lie in the folder. With `--predict` only the time of
the whole is predicted, from one block. Seconds are those of all blocks, by wall time.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy.linalg
from common import report

import widelimit as wl

SIZES = (250, 500, 1000, 2000, 4000, 10_000)
BLOCK = {"dense": 1000, "pool": 50}
"""Images of a block; 500 of the others."""


def network(name: str, shape: tuple[int, ...]) -> wl.Network:
    """Return the network of a name."""
    kind, _, depth = name.rpartition("-")
    if kind == "dense":
        return wl.mlp(depth=int(depth), activation="relu", weight_std=2**0.5)
    inputs = wl.Image(*shape)
    if kind in ("flatten", "pool"):
        return wl.convnet(inputs=inputs, depth=int(depth) - 1, end=kind)
    if name == "residual-uncentred":
        return wl.garriga_alonso_2019("residual", inputs=inputs, uncentred_sums=True)
    return wl.garriga_alonso_2019(name, inputs=inputs)


def block(path: Path, compute: Callable[[], np.ndarray]) -> tuple[np.ndarray, float]:
    """Return (both kernels, seconds) of a block from its file, or compute and write it, whole or not at all."""
    if not path.exists():
        start = time.perf_counter()
        both = compute()
        unfinished = path.with_suffix(".part")
        with unfinished.open("wb") as file:
            np.savez(file, both=both, seconds=time.perf_counter() - start)
        unfinished.rename(path)
        print(path.name, flush=True)
    with np.load(path) as file:
        return file["both"], float(file["seconds"])


def kernels(name: str, X: np.ndarray, Z: np.ndarray, folder: Path, predict: bool) -> tuple[list[np.ndarray], float]:
    """Return [Gram matrices (kinds, n, n), those with the test images (kinds, m, n)], and seconds.

    Kinds are the NNGP and, but for Garriga-Alonso's networks, the NTK. With `predict` the matrices are empty.
    """
    net = network(name, X.shape[1:])
    k = wl.limits(net) if name[-1].isdigit() and "-" in name else wl.nngp(net)
    step, total = BLOCK.get(name.partition("-")[0], 500), 0.0
    folder = folder / f"{name}_{X.dtype}_{len(X)}_{len(Z)}"
    folder.mkdir(parents=True, exist_ok=True)
    rows = {"gram": X, "cross": Z}
    parts = [
        (kind, i, j) for kind, own in rows.items() for i in range(0, len(own), step) for j in range(0, len(X), step)
        if kind == "cross" or j <= i
    ]  # fmt: skip
    found = []
    for kind, i, j in parts:
        one, other = rows[kind][i : i + step], X[j : j + step]
        same = kind == "gram" and i == j

        def compute(one: np.ndarray = one, other: np.ndarray = other, same: bool = same) -> np.ndarray:
            values = k.gram(one) if same else k.cross(one, other)
            return np.stack(values) if isinstance(values, tuple) else values[None]

        both, spent = block(folder / f"{kind}_{i}_{j}.npz", compute)
        total += spent
        found.append(both)
        if predict and len(found) == 4:  # the first compiles, the second is a Gram matrix again
            return [], spent * len(parts)
    out = [np.empty((len(found[0]), len(own), len(X)), X.dtype) for own in rows.values()]
    for (kind, i, j), both in zip(parts, found, strict=True):
        matrix = out[list(rows).index(kind)]
        matrix[:, i : i + both.shape[1], j : j + both.shape[2]] = both
        if kind == "gram":
            matrix[:, j : j + both.shape[2], i : i + both.shape[1]] = both.transpose(0, 2, 1)
    return out, total


def accuracy(gram: np.ndarray, cross: np.ndarray, labels: np.ndarray, known: np.ndarray, noise: float) -> float:
    """Return the accuracy of regression on one-hot targets."""
    A = gram.astype(np.float64)
    A[np.diag_indices(len(A))] += noise * np.trace(A) / len(A)
    targets = np.eye(labels.max() + 1)[labels] - 0.1
    f = cross.astype(np.float64) @ scipy.linalg.solve(A, targets, assume_a="pos", overwrite_a=True)
    return float(np.mean(f.argmax(1) == known))


def read(path: str, train: int, test: int, dtype: str) -> tuple[np.ndarray, ...]:
    """Return images and labels for training and test, scaled."""
    with np.load(path) as file:
        X, Z = (file[key][:n].astype(np.float64) for key, n in (("X_train", train), ("X_test", test)))
        labels, known = file["y_train"][:train], file["y_test"][:test]
    if X.ndim == 3:
        X, Z = X[..., None] / 255, Z[..., None] / 255
    else:
        centre, spread = X.mean((0, 1, 2)), X.std((0, 1, 2))
        X, Z = (X - centre) / spread, (Z - centre) / spread
    return X.astype(dtype), labels, Z.astype(dtype), known


def main() -> None:
    """Measure all networks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="an .npz with X_train, y_train, X_test, y_test")
    parser.add_argument("--folder", required=True, type=Path, help="where blocks of kernels are kept")
    parser.add_argument("--network", nargs="+", default=["dense-3", "flatten-3", "flatten-11", "pool-3"])
    parser.add_argument("--train", type=int, default=1000)
    parser.add_argument("--test", type=int, default=500)
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64"])
    parser.add_argument("--name", default="images_accuracy", help="of the result")
    parser.add_argument("--predict", action="store_true", help="predict the time only")
    options = parser.parse_args()
    X, labels, Z, known = read(options.data, options.train, options.test, options.dtype)
    noise = 1e-8 if X.shape[3] == 1 else 1e-4
    pairs, rows = len(X) * (len(X) + 1) / 2 + len(X) * len(Z), []
    for name in options.network:
        wide = [part.reshape(len(part), -1) if name.startswith("dense") else part for part in (X, Z)]
        found, spent = kernels(name, *wide, options.folder, options.predict)
        if options.predict:
            print(f"{name}: {spent:.0f} s for all blocks")
            continue
        for n in [size for size in SIZES if size < len(X)] + [len(X)]:
            each = [accuracy(K[:n, :n], C[:, :n], labels[:n], known, noise) for K, C in zip(*found, strict=True)]
            rows.append({"network": name, "n": n, **dict(zip(("nngp", "ntk"), each, strict=False))})
        rows[-1] |= {"seconds": spent, "us_a_pair": 1e6 * spent / pairs}
        print(rows[-1], flush=True)
    if rows:
        report(options.name, rows, test=len(Z), dtype=options.dtype, noise=noise)


if __name__ == "__main__":
    main()
