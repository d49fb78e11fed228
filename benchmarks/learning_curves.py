"""This benchmark compares predicted learning curves with the errors of random training sets.

python benchmarks/learning_curves.py [kin40k.npz] [--only sphere kin40k]

The file has X and y. Lines are written after every set, so that a run may be stopped.
"""

import argparse
from pathlib import Path

import numpy as np
from common import report
from sklearn.datasets import load_digits

import widelimit as wl

SMALL = False
DRAWS = 30
ROWS = 2600
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
        "circle": on_sphere(2, ROWS),
        "sphere": on_sphere(10, ROWS),
        "digits": ((images - images.mean(axis=0)) / 4, np.where(labels[:, None] == np.arange(10), 0.9, -0.1)),
    }
    if path is not None:
        table = np.load(path)
        order = np.random.default_rng(0).permutation(len(table["y"]))[:ROWS]
        X, y = table["X"][order].astype(np.float64), table["y"][order].astype(np.float64).ravel()
        sets[path.stem] = (X - X.mean(axis=0)) / X.std(axis=0), (y - y.mean()) / y.std()
    return sets


def agreement(name: str, X: np.ndarray, y: np.ndarray, noise: float) -> list[dict[str, str]]:
    """Predict the errors of all sizes, and draw training sets."""
    sizes = [n for n in SIZES if n <= 0.8 * len(X)]
    curve = wl.generalization(KERNEL, X, y, sizes=sizes, noise=noise, draws=DRAWS)
    assert curve.measured is not None
    lines = []
    for n, predicted, mean, error in zip(
        sizes, curve.test_error, curve.measured.test_error, curve.measured.standard_error, strict=True
    ):
        line = {
            "data": name,
            "noise": f"{noise:g}",
            "n": str(n),
            "method": curve.method,
            "predicted": f"{predicted:.4g}",
            "drawn": f"{mean:.4g} +- {error:.2g}",
            "gap": f"{100 * (predicted / mean - 1):+.1f} %",
            "agrees": "yes" if abs(predicted - mean) <= max(0.05 * mean, 3 * error) else "no",
        }
        print(*line.values(), sep="  ", flush=True)
        lines.append(line)
    return lines


def main() -> None:
    """Compare curves, and write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", nargs="?", type=Path)
    parser.add_argument("--only", nargs="*")
    given = parser.parse_args()
    lines: list[dict[str, str]] = []
    for name, (X, y) in data(given.table).items():
        if given.only is None or name in given.only:
            for noise in NOISES:
                lines += agreement(name, X, y, noise)
                report("learning_curves", lines, table_rows=ROWS)


if __name__ == "__main__":
    main()
