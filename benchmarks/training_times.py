"""Predictions at 10 training times are timed: Lanczos beside an eigendecomposition, ours and neural-tangents'.

python benchmarks/training_times.py [--n 10000] [--features 20] [--neural-tangents PYTHON] [--eigh]

float64, NTK of a relu network of three layers, 1000 test points, times from 1 to 10^4 of d theta/dt = -grad C. Gram
matrices are part of every figure; first_s is a first call, compilation included, `seconds` the second one. The error is
relative to the largest prediction at each time, against the eigendecomposition (--eigh, ours) or neural-tangents.
"""

import argparse
import time

import numpy as np
from common import report
from solvers import peer

import widelimit as wl


def main() -> None:
    """Measure the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--features", type=int, default=20)
    parser.add_argument("--last", type=float, default=1e4, help="the last time")
    parser.add_argument("--neural-tangents", help="an interpreter that has it")
    parser.add_argument("--eigh", action="store_true", help="our own eigendecomposition too")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    X, Z = rng.standard_normal((options.n, options.features)), rng.standard_normal((1000, options.features))
    y = np.sin(X[:, 0]) + X[:, 1] * X[:, 2] + 0.1 * rng.standard_normal(len(X))
    times = np.logspace(0, np.log10(options.last), 10)
    k = wl.ntk(wl.mlp(depth=3, activation="relu", weight_std=1.4, bias_std=0.2))
    rows, predictions = [], []
    for solver in ["krylov", *(["eigh"] if options.eigh else [])]:
        seconds = []
        for _ in range(2):
            start = time.perf_counter()
            flow = wl.gradient_flow(k, X, y, solver=solver)
            values = flow.predict(Z, times)
            seconds.append(time.perf_counter() - start)
        predictions.append(values)
        row = {"work": f"widelimit {solver}", "first_s": seconds[0], "seconds": seconds[1]}
        if isinstance(flow, wl.KrylovFlow):
            row |= {"steps": flow.basis.steps, "largest_bound": float(flow.bound(times).max())}
        rows.append(row)
    if options.neural_tangents:
        found = peer("neural-tangents-times", options.neural_tangents, {"X": X, "y": y, "Z": Z, "times": times})
        times_taken = {"first_s": float(found["first"]), "seconds": float(found["seconds"])}
        rows.append({"work": "neural-tangents", **times_taken})
        predictions.append(found["mean"])
    for row, values in zip(rows, predictions, strict=True):
        off = np.abs(values - predictions[0]).max(axis=1) / np.abs(values).max(axis=1)
        row |= {"ratio": row["seconds"] / rows[0]["seconds"], "krylov_off": float(off.max())}
    report("training_times", rows, n=options.n, features=options.features, times=times.tolist(), test=len(Z))


if __name__ == "__main__":
    main()
