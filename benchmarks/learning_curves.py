"""This benchmark compares predicted learning curves with the errors of random training sets.

python benchmarks/learning_curves.py [kin40k.npz]    X, y: the table beside the circle, the sphere and digits
"""

import sys
import time
from pathlib import Path

import numpy as np
from common import report
from sklearn.datasets import load_digits

import widelimit as wl

SMALL = False
DRAWS = 30
SIZES = [10, 30, 100, 300, 1000, 2000]
NOISES = (0.0, 0.1)
KERNEL = wl.ntk(wl.mlp(depth=3, bias_std=0.2))


def on_sphere(dimension: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw uniform points and a target of low degrees with noise of deviation 0.2."""
    rng = np.random.default_rng(dimension)
    X = rng.standard_normal((rows, dimension))
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    size = dimension**0.5
    target = size * X[:, 0] + 0.5 * size**2 * X[:, 0] * X[:, 1]
    return X * size, target + 0.2 * rng.standard_normal(rows)


def data(path: Path | None) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return inputs and targets by name."""
    images, labels = load_digits(return_X_y=True)
    sets = {
        "circle": on_sphere(2, 2600),
        "sphere in 10 dimensions": on_sphere(10, 2600),
        "digits": ((images - images.mean(axis=0)) / 4, np.where(labels[:, None] == np.arange(10), 0.9, -0.1)),
    }
    if path is not None:
        table = np.load(path)
        order = np.random.default_rng(0).permutation(len(table["y"]))[:4000]
        X, y = table["X"][order].astype(np.float64), table["y"][order].astype(np.float64).ravel()
        sets[path.stem] = (X - X.mean(axis=0)) / X.std(axis=0), (y - y.mean()) / y.std()
    return sets


def main() -> None:
    """Compare curves, and write them."""
    lines = []
    for name, (X, y) in data(Path(sys.argv[1]) if len(sys.argv) > 1 else None).items():
        sizes = [n for n in SIZES if n <= 0.8 * len(X)]
        for noise in NOISES:
            start = time.perf_counter()
            curve = wl.generalization(KERNEL, X, y, sizes=sizes, noise=noise)
            seconds = time.perf_counter() - start
            found = wl.generalization(KERNEL, X, y, sizes=sizes, noise=noise, method="modes", draws=DRAWS).measured
            assert found is not None
            for n, predicted, mean, error in zip(
                sizes, curve.test_error, found.test_error, found.standard_error, strict=True
            ):
                gap = predicted / mean - 1
                agrees = abs(predicted - mean) <= max(0.05 * mean, 3 * error)
                lines.append(
                    {
                        "data": name,
                        "noise": f"{noise:g}",
                        "n": str(n),
                        "method": curve.method,
                        "predicted": f"{predicted:.4g}",
                        "drawn": f"{mean:.4g} +- {error:.2g}",
                        "gap": f"{100 * gap:+.1f} %",
                        "agrees": "yes" if agrees else "no",
                        "seconds": f"{seconds:.1f}",
                    }
                )
                print(*lines[-1].values(), sep="  ", flush=True)
    report("learning_curves", lines)


if __name__ == "__main__":
    main()
