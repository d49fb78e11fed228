"""This benchmark compares predicted costs with measured ones, in processor seconds, whatever else runs.

python benchmarks/costs.py
"""

import os

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # threads that wait for one another would count

import resource
from collections.abc import Callable
from typing import Any

import numpy as np
from common import report

import widelimit as wl


def seconds(work: Callable[[], Any]) -> float:
    """Measure the processor time of a call."""

    def spent() -> float:
        used = resource.getrusage(resource.RUSAGE_SELF)
        return used.ru_utime + used.ru_stime

    start = spent()
    work()
    return spent() - start


def data(n: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw rows and targets."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n, d))
    return X, np.sin(X[:, 0]) + 0.3 * rng.standard_normal(n)


def main() -> None:
    """Measure each kind of work at two sizes or more."""
    erf = wl.nngp(wl.mlp(depth=3, activation="erf", weight_std=1.4, bias_std=0.3))
    relu = wl.ntk(wl.mlp(depth=2, weight_std=1.4, bias_std=0.3))
    rows = []
    for k, name in ((erf, "erf"), (relu, "relu")):
        for work, n, d, m in (
            *(("gram", n, 20, 0) for n in (3000, 6000)),
            *(("cholesky", n, 20, 0) for n in (3000, 6000)),
            *(("cg", n, 20, 0) for n in (3000, 6000)),
            *(("nystrom", n, 20, m) for n, m in ((20_000, 500), (60_000, 500), (20_000, 1500))),
        ):
            X, y = data(n, d)
            steps = 0

            def run(work: str = work, k: Any = k, X: np.ndarray = X, y: np.ndarray = y, m: int = m) -> None:
                nonlocal steps
                if work == "gram":
                    k.gram(X)
                    return
                more = {"inducing": m} if work == "nystrom" else {}
                post = wl.posterior(k, X, y, noise=0.09, solver=work, **more)
                steps = post.fit.iterations if work == "cg" else 0

            run()
            spent = min(seconds(run) for _ in range(3))
            cost = wl.predict_cost(work, k, n, d, inducing=m or 1, iterations=max(steps, 1))
            rows.append(
                {"kernel": name, "work": work, "n": n, "m": m, "cpu_seconds": spent, "predicted": cost.core_seconds}
            )
            rows[-1]["ratio"] = spent / cost.core_seconds
            print(rows[-1], steps, flush=True)
    report("costs", rows)


if __name__ == "__main__":
    main()
