"""Fit, mean and variance of 1000 points are timed: our solvers beside scikit-learn, GPyTorch and neural-tangents.

python benchmarks/solvers.py [--n 10000] [--features 20] [--neural-tangents PYTHON] [--gpytorch PYTHON]

float64, noise 1e-2. Ours is the NNGP kernel of a relu network of three layers; scikit-learn and GPyTorch (exact, by
Cholesky) have a fixed RBF kernel, which is cheaper. Everything runs twice, ours and the peers, each of these in a fresh
process of the interpreter given: first_s is a user's first call, compilation included, `seconds` the second one. The
factorisation stands beside LAPACK's dpotrf on a plain matrix of the same size, in the same process.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import scipy.linalg
from common import report

import widelimit as wl
from widelimit.compute import linalg, operators, packed

NOISE = 1e-2


def peer(name: str, interpreter: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the results of peers_solvers.py."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "inputs.npz", Path(folder) / "output.npz"
        np.savez(source, **inputs)
        script = Path(__file__).parent / "peers_solvers.py"
        subprocess.run([interpreter, str(script), name, str(source), str(target)], check=True)
        with np.load(target) as file:
            return dict(file)


def ours(data: dict[str, np.ndarray], **options: str) -> dict[str, object]:
    """Measure the second of two calls."""
    first = fit_and_predict(data, **options)
    return {"work": first["work"], "first_s": first["seconds"], **fit_and_predict(data, **options)}


def fit_and_predict(data: dict[str, np.ndarray], **options: str) -> dict[str, object]:
    """Fit and predict by one solver; without variances for conjugate gradients, where each is a solve of its own."""
    k = wl.nngp(wl.mlp(depth=3, activation="relu", weight_std=1.4, bias_std=0.2))
    start = time.perf_counter()
    post = wl.posterior(k, data["X"], data["y"], noise=NOISE, **options)
    fitted = time.perf_counter()
    if options.get("solver") == "cg":
        mean, variance = post.mean(data["Z"]), None
    else:
        mean, variance = post.predict(data["Z"])
    end = time.perf_counter()
    return {
        "work": "widelimit " + " ".join([post.fit.choice.storage, *options.values()]),
        "seconds": end - start,
        "fit_s": fitted - start,
        "predict_s": end - fitted,
        "residual": post.residual,
        "iterations": post.fit.iterations,
        "mean": mean,
        "variance": variance,
    }


def rates(n: int) -> list[dict[str, object]]:
    """Measure our factorisations beside dpotrf, in GFlop/s, on one well-conditioned matrix; the best of three.

    Each has its own copy of the matrix, made before the clock starts; the packed ones fold it, which counts.
    """
    rng = np.random.default_rng(0)
    root = rng.standard_normal((n, 64))
    matrix = root @ root.T
    matrix[np.diag_indices(n)] += 64.0
    noise, size = np.zeros(n), operators.SIZE

    def half(copy: np.ndarray, dtype: type) -> packed.Packed:
        corners = ((i, j) for i in range(0, n, size) for j in range(0, i + 1, size))
        parts = (operators.RowBlock(i, j, copy[i : i + size, j : j + size]) for i, j in corners)
        return packed.factorise(parts, noise, np.dtype(dtype))

    work = {
        "dpotrf": lambda copy: scipy.linalg.lapack.dpotrf(copy.T, lower=1, clean=0, overwrite_a=1),
        "factorise": linalg.cholesky,
        "packed float64": lambda copy: half(copy, np.float64),
        "packed float32": lambda copy: half(copy, np.float32),
    }
    best = dict.fromkeys(work, np.inf)
    for _ in range(3):
        for name, call in work.items():
            copy = matrix.copy()
            start = time.perf_counter()
            call(copy)
            best[name] = min(best[name], time.perf_counter() - start)
    return [
        {"work": name, "seconds": s, "gflops": n**3 / 3 / s / 1e9, "of_dpotrf": best["dpotrf"] / s}
        for name, s in best.items()
    ]


def main() -> None:
    """Measure the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--features", type=int, default=20)
    parser.add_argument("--neural-tangents", help="an interpreter that has it")
    parser.add_argument("--gpytorch", help="an interpreter that has it")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    X, Z = rng.standard_normal((options.n, options.features)), rng.standard_normal((1000, options.features))
    y = np.sin(X[:, 0]) + X[:, 1] * X[:, 2] + 0.1 * rng.standard_normal(len(X))
    data = {"X": X, "y": y, "Z": Z, "noise": np.asarray(NOISE)}
    rows = [
        ours(data),
        ours(data, solver="cholesky", precision="mixed"),
        ours(data, solver="cg"),
        ours(data, solver="cg", precision="mixed"),
    ]
    first = rows[0]
    peers = {"scikit-learn": sys.executable, "gpytorch": options.gpytorch, "neural-tangents": options.neural_tangents}
    for name, interpreter in peers.items():
        if interpreter:
            found = peer(name, interpreter, data)
            times = {"first_s": float(found["first"]), "seconds": float(found["seconds"])}
            rows.append({"work": name, **times, "mean": found["mean"], "variance": found["variance"]})
    for row in rows:
        row["ratio"] = row["seconds"] / first["seconds"]
        same_kernel = row["work"].startswith(("widelimit", "neural-tangents"))
        for what in ("mean", "variance"):
            values = row.pop(what) if row is not first else row[what]
            if same_kernel and values is not None:
                row[f"{what}_off"] = float(np.abs(values - first[what]).max())
    for what in ("mean", "variance"):
        del first[what]
    report("solvers", rows + rates(options.n), n=options.n, features=options.features, noise=NOISE, test=len(Z))


if __name__ == "__main__":
    main()
