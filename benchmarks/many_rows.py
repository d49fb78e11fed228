"""This benchmark measures regression through inducing points on many rows, beside gradient boosting, in one process.

python benchmarks/many_rows.py                       100,000 drawn rows of 20 features
python benchmarks/many_rows.py million               and a million
python benchmarks/many_rows.py large [mixed]         a million from files, 10,000 points, with a checkpoint; float32
python benchmarks/many_rows.py DATA [set ...]        kin40k, protein, keggdirected of a folder of NAME.npz, split 0

POINTS=8000 before the command takes so many inducing points of tables. `exact` is WideRegressor on 5000 of the rows.
Drawn rows: y = sin(a.x) + tanh(b.x) c.x + noise of deviation 0.3, the NNGP of erf at depth 3 as it comes, true noise.
Sets: WideRegressor as it comes, search included. Seconds are of fit and of predictions with deviations; `coverage`
is that of 95 % intervals of new observations; boosting: scikit-learn's HistGradientBoostingRegressor, stopped early.
"""

import os
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import report
from sklearn.ensemble import HistGradientBoostingRegressor

import widelimit as wl

NOISE = 0.3
POINTS = int(os.environ.get("POINTS", "2000"))
LARGE = 10_000
SUBSET = 5000
SETS = ["kin40k", "protein", "keggdirected"]
KERNEL = wl.nngp(wl.mlp(depth=3, activation="erf", weight_std=1.4, bias_std=0.3))
Law = tuple[np.ndarray, np.ndarray]


def drawn(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw rows and targets."""
    rng = np.random.default_rng(0)
    X, (a, b, c) = rng.standard_normal((n, 20)), rng.standard_normal((3, 20)) / 4
    return X, np.sin(X @ a) + np.tanh(X @ b) * (X @ c) + NOISE * rng.standard_normal(n)


def by_posterior(X: np.ndarray, y: np.ndarray, Z: np.ndarray) -> Law:
    """Fit the kernel as it comes; return mean and deviation of new observations."""
    post = wl.posterior(KERNEL, X, y, noise=NOISE**2, solver="nystrom", inducing=POINTS)
    mean, variance = post.predict(Z)
    return np.asarray(mean), np.sqrt(variance + NOISE**2)


def by_files(X: np.ndarray, y: np.ndarray, Z: np.ndarray) -> Law:
    """Fit to rows on disk with more points; the sums are kept in a file on the way."""
    precision: Any = "mixed" if "mixed" in sys.argv else "double"
    print(wl.predict_cost("nystrom", KERNEL, *X.shape, inducing=LARGE).explain(), flush=True)
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", ".")) as folder:
        files = [
            np.lib.format.open_memmap(Path(folder) / name, "w+", np.float64, a.shape)
            for name, a in (("X", X), ("y", y))
        ]
        for file, values in zip(files, (X, y), strict=True):
            file[:] = values
        how: Any = {
            "solver": "nystrom",
            "inducing": LARGE,
            "precision": precision,
            "checkpoint": Path(folder) / "sums.npz",
        }
        post = wl.posterior(KERNEL, *files, noise=NOISE**2, **how)
        print(post.explain(), flush=True)
        mean, variance = post.predict(Z)
    return np.asarray(mean), np.sqrt(variance + NOISE**2)


def by_estimator(X: np.ndarray, y: np.ndarray, Z: np.ndarray) -> Law:
    """Fit an estimator that chooses network, scales and noise."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that there are many rows
        model = wl.WideRegressor(inducing=POINTS).fit(X, y)
    mean, deviation = model.predict(Z, return_std=True, include_noise=True)
    return mean, deviation


def by_exact(X: np.ndarray, y: np.ndarray, Z: np.ndarray) -> Law:
    """Fit the same estimator, exactly, to some of the rows."""
    some = np.random.default_rng(0).permutation(len(X))[:SUBSET]
    mean, deviation = wl.WideRegressor().fit(X[some], y[some]).predict(Z, return_std=True, include_noise=True)
    return mean, deviation


def by_boosting(X: np.ndarray, y: np.ndarray, Z: np.ndarray) -> Law:
    """Fit the peer, which has no deviations."""
    model = HistGradientBoostingRegressor(max_iter=1000, early_stopping=True, random_state=0).fit(X, y)
    return model.predict(Z), np.full(len(Z), np.nan)


def row(name: str, method: Callable[..., Law], train: Law, test: Law) -> dict[str, Any]:
    """Measure one method on one table."""
    start = time.perf_counter()
    mean, deviation = method(*train, test[0])
    spent = time.perf_counter() - start
    error = mean - test[1]
    found: dict[str, Any] = {"table": name, "method": method.__name__[3:], "rows": len(train[0]), "seconds": spent}
    found["rmse"] = float(np.sqrt(np.mean(error**2)))
    if not np.isnan(deviation).any():
        found["coverage"] = float(np.mean(np.abs(error) < 1.959964 * deviation))
        found["nlpd"] = float(np.mean(0.5 * (error / deviation) ** 2 + np.log(deviation) + 0.5 * np.log(2 * np.pi)))
    found["peak_GiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(found, flush=True)
    return found


def main() -> None:
    """Measure drawn rows, or sets."""
    rows = []
    if sys.argv[1:2] == ["large"]:
        X, y = drawn(1_010_000)
        both = (X[:-10_000], y[:-10_000]), (X[-10_000:], y[-10_000:])
        report("many_rows_large", [row("drawn, 1,000,000 rows", by_files, *both)], inducing=LARGE, features=20)
        return
    if sys.argv[1:] in ([], ["million"]):
        sizes = [100_000, 1_000_000][: len(sys.argv)]
        test = drawn(sizes[-1] + 10_000)
        for n in sizes:
            train = test[0][:n], test[1][:n]
            new = test[0][-10_000:], test[1][-10_000:]
            rows += [row(f"drawn, {n:,} rows", method, train, new) for method in (by_posterior, by_boosting)]
        report("many_rows", rows, inducing=POINTS, features=20, noise=NOISE)
        return
    for name in sys.argv[2:] or SETS:
        data = np.load(Path(sys.argv[1]) / f"{name}.npz")
        held = data["test_mask"][:, 0].astype(bool)
        X, y = data["X"].astype(np.float64), data["y"].astype(np.float64)
        y = (y - y[~held].mean()) / y[~held].std()
        both = (X[~held], y[~held]), (X[held], y[held])
        rows += [row(name, method, *both) for method in (by_estimator, by_exact, by_boosting)]
    report("many_rows_tables", rows, inducing=POINTS, split=0)


if __name__ == "__main__":
    main()
