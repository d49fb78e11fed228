"""The library computes under its own settings of JAX, whatever those of the caller are; they hold for a thread."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

import jax
import numpy as np

P = ParamSpec("P")
R = TypeVar("R")
NOTHING = np.zeros((), bool)
"""What is sent to JAX to see whether it comes back as a value."""


@contextmanager
def lenient() -> Iterator[None]:
    """Broadcast rows to matrices, and compute NaN where `where` leaves it out, in the caller's float64 setting."""
    with jax.numpy_rank_promotion("allow"), jax.debug_nans(False):
        yield


@contextmanager
def arithmetic(wide: bool) -> Iterator[None]:
    """Use the same settings with float64 on or off."""
    with jax.enable_x64(wide), jax.numpy_rank_promotion("allow"), jax.debug_nans(False):
        yield


def outside(function: Callable[P, R]) -> Callable[P, R]:
    """The same function of values, which runs at once where it is called inside of a function that JAX traces.

    It then has a thread of its own, where nothing is traced. (With `jax.ensure_compile_time_eval` here, programs would
    be traced in another way, in many pieces.) Calls outside of a trace cost no more than before.
    """

    @functools.wraps(function)
    def run(*arguments: P.args, **settings: P.kwargs) -> R:
        try:
            return function(*arguments, **settings)
        except (TypeError, ValueError):
            if not isinstance(jax.device_put(NOTHING), jax.core.Tracer):
                raise
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(function, *arguments, **settings).result()

    return run
