"""Loaded by the workers of a simulated cluster: they log each tile that they compute, and fail as they are told to."""

import errno
import itertools
import json
import os
import signal
import time
from pathlib import Path
from threading import local

from widelimit.compute import tile_cholesky, tile_tasks, tiles
from widelimit.compute.places import Place

FOLDER = "WIDELIMIT_TEST_CLUSTER"
"""Environment variable: the folder with `log`, and with `faults.json` while there are faults."""
here = local()
writes = itertools.count(1)


def faults():
    try:
        return json.loads(Path(os.environ[FOLDER], "faults.json").read_text())
    except FileNotFoundError:
        return {}


def log(line):
    descriptor = os.open(Path(os.environ[FOLDER], "log"), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{line}\n".encode())
    os.close(descriptor)


def install(name):
    write_tile, tile_of, encode, put = tile_tasks.write_tile, tiles.tile_of, tile_tasks.Work.encode, Place.put

    def logged(source, i, j):
        here.at = i, j
        write_tile(source, i, j)

    def slow(kernel, x, y):
        if len(x.diagonal) > tile_tasks.PROBED:  # the probe's little tile does not count
            log("tile {} {}".format(*here.at))
            told = faults()
            time.sleep(told.get("seconds", 0) * (5 if name == 0 else 1))
            if here.at == (1, 0) and Path(os.environ[FOLDER], "log").read_text().count("died") < told.get("deaths", 0):
                log("died")
                time.sleep(1)  # Dask does not replace a worker that is killed before it has said that it started
                os.kill(os.getpid(), signal.SIGKILL)
        return tile_of(kernel, x, y)

    compute_tile = tile_cholesky.compute_tile

    def factored(store, matrix, noise, i, j):
        log(f"tile {i} {j}")
        time.sleep(faults().get("seconds", 0))
        compute_tile(store, matrix, noise, i, j)

    def greedy(work, i):
        if faults().get("all rows in memory"):
            here.rows = work.X[:] + 0.0
        return encode(work, i)

    def failing(place, key, value):
        told = faults() if key.startswith("c/") else {}
        if told.get("full disk") and len(list(place.folder.glob("c/*/*"))) >= told["full disk"]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if told.get("failing every") and next(writes) % told["failing every"] == 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        put(place, key, value)

    tile_cholesky.compute_tile = factored
    tile_tasks.write_tile, tiles.tile_of, tile_tasks.Work.encode, Place.put = logged, slow, greedy, failing


def dask_setup(worker):
    """Called by Dask when a worker starts."""
    install(worker.name)
