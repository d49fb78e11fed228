"""A fit of 420 rows costs little more while other processes do the same: small matrices get one BLAS thread.

python benchmarks/busy.py

Processes that are warm fit at the same moment, alone, two and four of them in turns. Each column is the slowest of the
processes in its best round, so other work on the machine counts as little as it can; a ratio beyond the number of
processes over the number of cores is lost to threads that wait for one another.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from common import report

import widelimit as wl

SMALL = True
ROWS, COLUMNS = 420, 8
ROUNDS = 5
GOALS = {2: 2.5, 4: 5.0}
"""Processes at once: how many times the seconds alone each may take."""
MODELS = ("NNGPRegressor", "NTKRegressor")


def work(name: str) -> None:
    """Fit when asked on stdin, and say in how many seconds."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((ROWS, COLUMNS))
    y = np.sin(X[:, 0]) + X[:, 1] * X[:, 2] + 0.1 * rng.standard_normal(ROWS)

    def fit() -> None:
        getattr(wl, name)(hyperparameters="marginal_likelihood").fit(X, y).predict(X)

    fit()
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        fit()
        print(time.perf_counter() - start, flush=True)


def measured(name: str) -> dict[str, float | str]:
    """Measure seconds alone and the ratios, of one estimator."""
    command = [sys.executable, str(Path(__file__).resolve()), name]
    workers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(max(GOALS))
    ]
    try:
        for worker in workers:
            answer(worker)
        best = dict.fromkeys((1, *GOALS), np.inf)
        for _ in range(ROUNDS):
            for count in best:
                best[count] = min(best[count], together(workers[:count]))
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    ratios = {f"{count} at once / alone": best[count] / best[1] for count in GOALS}
    goals = {f"goal for {count}": goal for count, goal in GOALS.items()}
    return {"what": f"{name}, marginal likelihood, {ROWS} x {COLUMNS}", "alone_s": best[1], **ratios, **goals}


def together(workers: list[subprocess.Popen[str]]) -> float:
    """Measure seconds of the slowest of these processes, started at the same moment."""
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    return max(float(answer(worker)) for worker in workers)


def answer(worker: subprocess.Popen[str]) -> str:
    """Read the next line of a process."""
    assert worker.stdout is not None
    line = worker.stdout.readline()
    if not line:
        raise RuntimeError("a process of the benchmark ended.")
    return line


def main() -> None:
    """Measure one row an estimator."""
    report("busy", [measured(name) for name in MODELS])


if __name__ == "__main__":
    work(sys.argv[1]) if len(sys.argv) > 1 else main()
