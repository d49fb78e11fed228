"""This benchmark compares a Gram matrix stored by worker processes with one in memory; it kills workers of Dask.

.venv-cluster/bin/python benchmarks/cluster.py [n]     (20000 unless given: 3 GiB in memory, 3 GiB on disk)

The environment of `make test-cluster` has Dask; without it workers are not killed.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from common import report

import widelimit as wl

SMALL = True
GOAL = 1.5
"""Times the in-memory time that two warm workers may take."""
KILLS = 20
TESTS = Path(__file__).resolve().parents[1] / "tests"


def main() -> None:
    """Measure the rows, each in a new folder."""
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    X = np.random.default_rng(0).standard_normal((n, 100))
    k = wl.ntk(wl.mlp(depth=4, activation="relu", weight_std=2**0.5, bias_std=0.1))
    with tempfile.TemporaryDirectory(dir=".") as folder:
        rows = [*_times(k, X, Path(folder)), *_bits(k, X[:3000], Path(folder)), *_kills(k, X[:3000], Path(folder))]
    report("cluster", rows, n=n, d=X.shape[1], goal=GOAL)


def _measured(work: Callable[[], Any], processes: list[psutil.Process]) -> tuple[float, float]:
    """Measure wall seconds, and those of all processors in these processes."""

    def used() -> float:
        return sum(sum(process.cpu_times()[:2]) for process in processes)

    start, before = time.perf_counter(), used()
    work()
    return time.perf_counter() - start, used() - before


def _times(k: Any, X: np.ndarray, folder: Path) -> list[dict[str, Any]]:
    """Measure in turns, twice; the first call of each compiles."""
    here, rows = psutil.Process(), []
    k.gram(X[:2100])
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        for i in range(2):  # one of the two could do all of a single one
            wl.stored_gram(k, X[:2100], folder / f"warm{i}.zarr", pool)
        workers = here.children()
        for turn in range(2):
            memory = _measured(lambda: k.gram(X), [here])
            before = [process.memory_info().rss for process in workers]
            for process in workers:
                Path(f"/proc/{process.pid}/clear_refs").write_text("5")
            path = folder / "K.zarr"
            stored = _measured(lambda path=path: wl.stored_gram(k, X, path, pool), [here, *workers])
            peaks = [_peak(process.pid) - rss for process, rss in zip(workers, before, strict=False)]
            shutil.rmtree(path)
            rows.append(
                {
                    "what": f"n = {len(X)}, 2 workers, turn {turn + 1}",
                    "memory_seconds": memory[0],
                    "stored_seconds": stored[0],
                    "ratio": stored[0] / memory[0],
                    "ratio_of_cpu": stored[1] / memory[1],
                    "worker_peak_mib": max(peaks) / 2**20,
                }
            )
    return rows


def _peak(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def _bits(k: Any, X: np.ndarray, folder: Path) -> list[dict[str, Any]]:
    expected = wl.stored_gram(k, X, folder / "threads.zarr", budget=2**22)[:]
    same = []
    for count in (1, 2, 3):
        with ProcessPoolExecutor(count, mp_context=get_context("spawn")) as pool:
            same.append(bool((wl.stored_gram(k, X, folder / f"{count}.zarr", pool, budget=2**22)[:] == expected).all()))
    return [{"what": "bits of 1, 2 and 3 workers as of threads", "equal": str(same)}]


def _kills(k: Any, X: np.ndarray, folder: Path) -> list[dict[str, Any]]:
    """Kill workers of Dask, which log the tiles that they compute as the tests' workers do."""
    try:
        import dask
        from distributed import Client, LocalCluster
    except ImportError:
        return []
    sys.path.append(str(TESTS))
    import cluster_hooks

    os.environ[cluster_hooks.FOLDER] = str(folder.resolve())
    hooks, done, ended = str(TESTS / "cluster_hooks.py"), [], threading.Event()
    with (
        dask.config.set(
            {
                "distributed.worker.multiprocessing-method": "forkserver",
                "distributed.deploy.lost-worker-timeout": "1h",  # at 15 s workers may be given up
            }
        ),
        LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, preload=hooks, silence_logs=50, memory_limit=0
        ) as cluster,
        Client(cluster) as client,
    ):

        def kill() -> None:
            rng = np.random.default_rng(0)
            while len(done) < KILLS and not ended.wait(rng.uniform(0.2, 1.0)):
                alive = [nanny.process.pid for nanny in cluster.workers.values() if nanny.process and nanny.process.pid]
                if alive and len(client.nthreads()) == 2:  # those that were killed before compute again
                    done.append(int(rng.choice(alive)))
                    os.kill(done[-1], signal.SIGKILL)

        killer = threading.Thread(target=kill)
        (folder / "faults.json").write_text('{"seconds": 0.3}')  # a tile takes long enough to be hit
        killer.start()
        found = wl.stored_gram(k, X, folder / "killed.zarr", client, budget=2**22)[:]
        ended.set()
        killer.join()
    tiles = [line for line in (folder / "log").read_text().splitlines() if line.startswith("tile")]
    equal = bool((found == wl.stored_gram(k, X, folder / "threads.zarr", budget=2**22)[:]).all())
    again = len(tiles) - len(set(tiles))
    return [
        {"what": f"{len(done)} workers killed", "tiles": len(set(tiles)), "computed_again": again, "equal": str(equal)}
    ]


if __name__ == "__main__":
    main()
