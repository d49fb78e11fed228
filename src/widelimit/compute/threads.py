"""BLAS threads follow the size of the work: a small computation gets one.

OpenBLAS's threads spin while they wait for one another. Beside other processes that makes a factorisation of 400 rows
up to 75 times slower on two threads than on one, and on an idle machine two gain little there.
"""

from __future__ import annotations

import itertools
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple, final

import numpy as np
from threadpoolctl import ThreadpoolController

SMALL = 1e9
"""Multiply-adds that one thread does: up to a tenth of a second, a Cholesky factor of 1,400 rows."""
READ = 64
"""Multiply-adds that an entry read counts for: a product that is bound by memory is small below 128 MB."""

EIGEN = 3
"""An (n, n) decomposition in products of such matrices, about."""


class _Pool(NamedTuple):
    """The pool holds a library's threads."""

    threads: Callable[[], int]
    limit: Callable[[int], Any]


_known: dict[bool, list[_Pool]] = {}


@final
class _Limit:
    """The process has one limit: in force while small computations run, in any threads, and no large one."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start without any computation: as in a forked child, whose other threads are gone."""
        self.lock = threading.RLock()  # a signal's handler may compute, in the thread that holds it
        self.running = [0, 0]
        self.before: list[tuple[_Pool, int]] = []

    def change(self, small: bool, by: int) -> None:
        """A computation begins (by = 1) or ends (-1)."""
        with self.lock:
            self.running[small] += by
            limited = self.running[True] > 0 and self.running[False] == 0
            if limited and not self.before:
                self.before = [(pool, count) for pool in _pools() if (count := pool.threads()) != 1]
                for pool, _ in self.before:
                    pool.limit(1)
            elif not limited:
                self._restore()

    def forked(self) -> None:
        """Reset the state in a forked child."""
        self._restore()
        self.reset()

    def _restore(self) -> None:
        for pool, count in self.before:
            pool.limit(count)
        self.before = []


def _pools() -> list[_Pool]:
    """Return the pools of NumPy's and SciPy's OpenBLAS: searched once, and once more when SciPy's is there."""
    scipy_too = "scipy.linalg" in sys.modules
    if scipy_too not in _known:
        found = ThreadpoolController().select(internal_api="openblas").lib_controllers
        _known[scipy_too] = [pool for library in found for pool in _pool(library)]
    return _known[scipy_too]


def _pool(library: Any) -> list[_Pool]:
    """Return the library's functions themselves, as threadpoolctl 3.8 lets one thread of Python alone change a number.

    None where the number is one of each thread (OpenMP), so that a limit cannot be lifted by another one.
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


_limit = _Limit()
if sys.platform != "win32":
    os.register_at_fork(after_in_child=_limit.forked)


@contextmanager
def following(work: float) -> Iterator[None]:
    """BLAS has one thread inside, if the work, in multiply-adds, is at most SMALL; afterwards as many as before."""
    small = work <= SMALL
    _limit.change(small, 1)
    try:
        yield
    finally:
        _limit.change(small, -1)


def work(m: int, k: int, n: int) -> float:
    """Return the multiply-adds, reads counted, of an (m, k) times a (k, n) matrix, or of m rows of a solve."""
    return float(m) * k * n + READ * (float(m) * k + float(k) * n + float(m) * n)


def decomposing(n: int) -> AbstractContextManager[None]:
    """Apply `following` to the eigenvectors, singular vectors or least squares of an (n, n) matrix."""
    return following(EIGEN * work(n, n, n))


def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a @ b by as many threads as it is worth; (m, k), (k, ...) or (k, n), (..., k, n) -> as `np.matmul`."""
    with following(work(a.size // max(a.shape[-1], 1), a.shape[-1], max(b.size // max(a.shape[-1], 1), 1))):
        return np.asarray(a @ b)
