"""Tasks of a command run in threads, in processes of this machine, or on the workers of a Dask scheduler."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from widelimit import extras, memory
from widelimit.cli.reporting import note

WAIT = 5
"""Seconds in which a scheduler must answer."""
PROCESS = 200 * 2**20
"""Bytes that a process takes without any data: Python, JAX and compiled programs."""


@contextmanager
def connected(workers: int, scheduler: str, *, quiet: bool) -> Iterator[Any]:
    """Yield the client of `stored_gram`: None unless a number of processes or a scheduler is given.

    Raises: ValueError: both are given; no scheduler is at the address; Dask is not installed. MemoryError: too many.
    """
    if workers and scheduler:
        raise ValueError(f"--workers {workers} --scheduler {scheduler}: give one of them.")
    if scheduler:
        with _dask(scheduler) as client:
            note(f"{len(client.nthreads())} workers at {scheduler}; dashboard: {client.dashboard_link}", quiet=quiet)
            yield client
    elif workers:
        memory.require(workers * PROCESS, f"--workers {workers}", remedy="give fewer, about as many as there are cores")
        with _processes(workers) as pool:
            yield pool
    else:
        yield None


def _dask(address: str) -> Any:
    try:
        from distributed import Client
    except ImportError:
        raise ValueError(extras.needed("distributed", "--scheduler")) from None
    try:
        return Client(address, timeout=WAIT)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"--scheduler {address}: no Dask scheduler answers there within {WAIT} s ({error}). Write its address as "
            "`dask scheduler` prints it, such as tcp://host:8786."
        ) from None


@contextmanager
def _processes(count: int) -> Iterator[Any]:
    """Yield an executor whose processes ignore Ctrl-C: they end with the command, which prints the message."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import active_children, get_context, resource_tracker

    from widelimit.compute.workers import end_with_parent

    sys.warnoptions.append("ignore:resource_tracker")  # it would complain of semaphores where a signal ends the command
    resource_tracker.ensure_running()
    sys.warnoptions.pop()

    before = None
    if sys.platform != "win32":  # the processes inherit what this thread blocks; another thread waits for the signal
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with ProcessPoolExecutor(count, mp_context=get_context("spawn"), initializer=end_with_parent) as pool:
            try:
                yield pool
            except TimeoutError:  # the pool would wait for a process that hangs
                for process in active_children():
                    process.kill()
                raise
    finally:
        if before is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
