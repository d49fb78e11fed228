"""BLAS threads follow the size of the work: a small computation gets one.

OpenBLAS's threads spin while they wait for one another. Beside other processes that makes a factorisation of 400 rows
up to 75 times slower on two threads than on one, and on an idle machine two gain little there.
"""

import itertools
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, final
from weakref import WeakSet

import numpy as np
from threadpoolctl import ThreadpoolController

SMALL = 1e9
"""Multiply-adds that one thread does: up to a tenth of a second, a Cholesky factor of 1,400 rows."""
READ = 64
"""Multiply-adds that an entry read counts for: a product that is bound by memory is small below 128 MB."""
SINGLE = 2
"""Kind of a computation that runs beside others like it; large ones are of kind 0, small ones of kind 1."""
EIGEN = 3
"""Cost of decomposing an (n, n) matrix, in products of two such matrices, about."""


@final
@dataclass(frozen=True, eq=False)
class _Pool:
    """The functions read and set the number of threads of one library."""

    threads: Callable[[], int]
    limit: Callable[[int], Any]


_known: dict[bool, list[_Pool]] = {}


@final
class _Computation:
    """The computation is in the set of those that run until it ends, or until nothing refers to it any more."""

    __slots__ = ("__weakref__", "kind")

    def __init__(self, kind: int) -> None:
        self.kind = kind


@final
class _ThreadLimit:
    """The limit is one for the process, in force while small computations run, in any thread, and no large one.

    A computation that is one of many side by side is single: while it runs, large ones have one thread too.

    Ctrl-C may end any of its methods between two instructions. So nothing is counted up and down: the set of what runs
    is looked at each time, and whatever was left undone is done by the next call.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start without any computation: as in a forked child, whose other threads are gone."""
        self.lock = threading.RLock()  # a signal's handler may compute, in the thread that holds it
        self.running: tuple[WeakSet[_Computation], ...] = WeakSet(), WeakSet(), WeakSet()  # large, small, SINGLE
        self.before: dict[_Pool, int] = {}

    def begin(self, computation: _Computation) -> None:
        """Count the computation among those that run."""
        with self.lock:
            self.running[computation.kind].add(computation)
            self._apply()

    def end(self, computation: _Computation) -> None:
        """Count it no more, if it was."""
        with self.lock:
            self.running[computation.kind].discard(computation)
            self._apply()

    def _apply(self) -> None:
        large, small, single = self.running
        if not single and (large or not small):
            self._restore()
            return
        for pool in _pools():
            if (count := pool.threads()) != 1:
                self.before.setdefault(pool, count)
                pool.limit(1)

    def reset_in_child(self) -> None:
        """Reset the state in a forked child."""
        self._restore()
        self.reset()

    def _restore(self) -> None:
        for pool, count in tuple(self.before.items()):
            pool.limit(count)
        self.before = {}


def _pools() -> list[_Pool]:
    """Return the pools of NumPy's and SciPy's OpenBLAS: searched once, and once more when SciPy's is there."""
    scipy_too = "scipy.linalg" in sys.modules
    if scipy_too not in _known:
        found = ThreadpoolController().select(internal_api="openblas").lib_controllers
        _known[scipy_too] = [pool for library in found for pool in _pool(library)]
    return _known[scipy_too]


def _pool(library: Any) -> list[_Pool]:
    """Return the library's own get and set functions: threadpoolctl 3.8 lets only one Python thread change the number.

    Empty where every thread has a number of its own (OpenMP), so that another thread could not lift a limit.
    """
    if library.threading_layer != "pthreads":
        return []
    for prefix, suffix in itertools.product(("", "scipy_"), ("", "64_", "_64")):
        names = [f"{prefix}openblas_{verb}_num_threads{suffix}" for verb in ("get", "set")]
        try:
            return [_Pool(*(getattr(library.dynlib, name) for name in names))]
        except AttributeError:
            continue
    return []


_thread_limit = _ThreadLimit()
if sys.platform != "win32":
    os.register_at_fork(after_in_child=_thread_limit.reset_in_child)


def limit(work: float) -> AbstractContextManager[None]:
    """Give BLAS one thread inside, if the work, in multiply-adds, is at most SMALL; afterwards as many as before."""
    return _running(work <= SMALL)


def single() -> AbstractContextManager[None]:
    """Give BLAS one thread inside, whatever the work: others run beside it, and bits must not depend on threads."""
    return _running(SINGLE)


@contextmanager
def _running(kind: int) -> Iterator[None]:
    computation = _Computation(kind)
    try:
        _thread_limit.begin(computation)
        yield
    finally:
        _thread_limit.end(computation)


def work(m: int, k: int, n: int) -> float:
    """Return the multiply-adds, reads counted, of an (m, k) times a (k, n) matrix, or of m rows of a solve."""
    return float(m) * k * n + READ * (float(m) * k + float(k) * n + float(m) * n)


def limit_decomposition(n: int) -> AbstractContextManager[None]:
    """Apply `limit` to the eigenvectors, singular vectors or least squares of an (n, n) matrix."""
    return limit(EIGEN * work(n, n, n))


def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Compute a @ b by as many threads as it is worth; (m, k), (k, ...) or (k, n), (..., k, n) -> as `np.matmul`."""
    with limit(work(a.size // max(a.shape[-1], 1), a.shape[-1], max(b.size // max(a.shape[-1], 1), 1))):
        return np.asarray(a @ b)
