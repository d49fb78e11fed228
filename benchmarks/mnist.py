"""Exact NNGP and NTK regression runs on MNIST: one-hot targets (-0.1, 0.9), one solve, accuracy on the test images.

python benchmarks/mnist.py --data mnist.npz [--train 60000] [--kernel nngp] [--solver cholesky] [--precision double]

The file holds X_train (60000, 28, 28), y_train, X_test and y_test. Images are scaled to norm sqrt(784); one hidden
layer of relu, weight variance 0.10, bias variance 0.48 (the best of Lee et al. 2018, arXiv 1711.00165, table 1, for
50,000 images). Memory is the peak of the process. With --solver cg --precision mixed the products are float32; the
residual is measured in float64 whatever the solver.
"""

import argparse
import resource
import time

import numpy as np
from common import report

import widelimit as wl


def images(values: np.ndarray) -> np.ndarray:
    """Return rows of norm sqrt(784)."""
    rows = values.reshape(len(values), -1).astype(np.float64)
    return rows * np.sqrt(rows.shape[1]) / np.linalg.norm(rows, axis=1, keepdims=True)


def main() -> None:
    """Measure one fit, one row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="an .npz with X_train, y_train, X_test, y_test")
    parser.add_argument("--train", type=int, default=60_000)
    parser.add_argument("--kernel", choices=["nngp", "ntk"], default="nngp")
    parser.add_argument("--solver", choices=["auto", "cholesky", "cg"], default="auto")
    parser.add_argument("--precision", choices=["double", "mixed"], default="double")
    parser.add_argument("--noise", type=float, default=0.0)
    parser.add_argument("--tolerance", type=float, default=1e-10)
    options = parser.parse_args()

    with np.load(options.data) as file:
        X, Z = images(file["X_train"][: options.train]), images(file["X_test"])
        labels, wanted = file["y_train"][: options.train], file["y_test"]
    y = np.eye(10)[labels] - 0.1
    net = wl.mlp(depth=2, activation="relu", weight_std=np.sqrt(0.10), bias_std=np.sqrt(0.48))
    k = wl.nngp(net) if options.kernel == "nngp" else wl.ntk(net)

    start = time.perf_counter()
    post = wl.posterior(
        k,
        X,
        y,
        noise=options.noise,
        solver=options.solver,
        precision=options.precision,
        tolerance=options.tolerance,
    )
    fitted = time.perf_counter()
    mean = np.concatenate([post.mean(part) for part in np.array_split(Z, 10)])
    done = time.perf_counter()
    residual = post.residual
    row = {
        "kernel": options.kernel,
        "n": len(X),
        "solver": post.fit.choice.solver,
        "storage": post.fit.choice.storage,
        "precision": options.precision,
        "noise": options.noise,
        "fit_s": fitted - start,
        "predict_s": done - fitted,
        "residual_s": time.perf_counter() - done,
        "residual": residual,
        "iterations": post.fit.iterations,
        "accuracy": float(np.mean(mean.argmax(1) == wanted)),
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }
    print(post.explain())
    name = f"mnist_{options.kernel}_{row['solver']}_{options.precision}_{len(X)}"
    report(name, [row], tolerance=options.tolerance, test=len(Z))


if __name__ == "__main__":
    main()
