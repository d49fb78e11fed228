"""This benchmark measures exact inference through matrices on disk, by worker processes, beside the one in memory.

python benchmarks/stored_posterior.py                     20,000 drawn rows of 20 features, two workers, one BLAS thread
python benchmarks/stored_posterior.py --rows 6000 --workers 3 --turns 1

In turns: `wl.posterior` in memory, with all cores; `wl.stored_gram` and `wl.posterior(..., matrix=, checkpoint=)` with
warm workers, from an empty folder; the same call again, which finds all tiles; conjugate gradients on the stored
matrix. `warm_GiB` and `peak_GiB` are of each worker, before and after; `least` is the smallest ratio of seconds in one
turn, of the second method to the first. Predictions are of 500 rows, by conjugate gradients of 3.
"""

import argparse
import multiprocessing
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from common import report
from many_rows import NOISE, drawn

import widelimit as wl

SMALL = False
KERNEL = wl.nngp(wl.mlp(depth=3, activation="erf", weight_std=1.4, bias_std=0.3))
Data = tuple[np.ndarray, np.ndarray]


def peak(_: int) -> tuple[int, float]:
    """Return the process and its peak of memory, in GiB."""
    time.sleep(0.2)  # so that every worker gets one
    return os.getpid(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def peaks(pool: ProcessPoolExecutor, workers: int) -> dict[int, float]:
    """Return the peak of every worker."""
    return dict(pool.map(peak, range(4 * workers)))


def warm(pool: ProcessPoolExecutor, folder: Path, data: Data) -> None:
    """Let every worker import and compile, on few rows."""
    few = 2100
    stored(pool, folder / "warm", (data[0][:few], data[1][:few]))


def stored(client: Any, folder: Path, data: Data, **options: Any) -> wl.Posterior:
    """Compute the matrix and the posterior in a folder, or what is missing there."""
    folder.mkdir(exist_ok=True)
    matrix = wl.stored_gram(KERNEL, data[0], folder / "K.zarr", client)
    settings = {"checkpoint": folder / "L.zarr", **options}
    return wl.posterior(KERNEL, *data, noise=NOISE**2, matrix=matrix, client=client, **settings)


def timed(name: str, call: Callable[[], wl.Posterior], Z: np.ndarray) -> dict[str, Any]:
    """Measure one method: fit, and predictions of some rows."""
    start = time.perf_counter()
    post = call()
    fitted = time.perf_counter()
    mean, variance = post.predict(Z)
    ended = time.perf_counter()
    found = {"method": name, "rows": len(post.data.X), "seconds": fitted - start, "predict_seconds": ended - fitted}
    print(found, flush=True)
    return {**found, "residual": post.residual, "mean": mean, "variance": variance}


def turn(pool: ProcessPoolExecutor, folder: Path, data: Data, Z: np.ndarray) -> list[dict[str, Any]]:
    """Measure all methods once."""
    place = folder / "run"
    shutil.rmtree(place, ignore_errors=True)
    found = [
        timed("memory", lambda: wl.posterior(KERNEL, *data, noise=NOISE**2), Z),
        timed("disk", lambda: stored(pool, place, data), Z),
        timed("disk again", lambda: stored(pool, place, data), Z),
        timed("disk, cg", lambda: stored(pool, place, data, checkpoint=None, solver="cg", tolerance=1e-8), Z[:3]),
    ]
    expected = found[0]
    for row in found:
        row["ratio"] = row["seconds"] / expected["seconds"]
        mean, variance = (expected[name][: len(row["mean"])] for name in ("mean", "variance"))
        row["off"] = float(np.abs(row["mean"] - mean).max() / np.abs(mean).max())
        row["variance_off"] = float(np.abs(row["variance"] / variance - 1).max())
    return [{name: value for name, value in row.items() if name not in ("mean", "variance")} for row in found]


def main() -> None:
    """Measure in turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="of the matrices; a temporary one unless given")
    options = parser.parse_args()
    X, y = drawn(options.rows + 500)
    data, Z = (X[:-500], y[:-500]), X[-500:]
    context = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory(dir=options.folder) as folder,
        ProcessPoolExecutor(options.workers, mp_context=context) as pool,
    ):
        warm(pool, Path(folder), data)
        before = peaks(pool, options.workers)
        rows = [row for _ in range(options.turns) for row in turn(pool, Path(folder), data, Z)]
        after = peaks(pool, options.workers)
    least = min(row["ratio"] for row in rows if row["method"] == "disk")
    facts = {"workers": options.workers, "least": least, "warm_GiB": list(before.values())}
    report("stored_posterior", rows, **facts, peak_GiB=list(after.values()))


if __name__ == "__main__":
    main()
