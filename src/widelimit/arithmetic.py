"""The library computes under its own settings of JAX, whatever the caller's are; they apply to the current thread."""

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
"""While JAX is tracing, this array comes back from `jax.device_put` as a tracer."""


@contextmanager
def lenient() -> Iterator[None]:
    """Allow rank promotion, and NaN in the branch that `where` drops; float64 stays as the caller has set it.

    Products keep all digits: a GPU would round the operands of float32 products to 11 bits (TF32).
    """
    with jax.numpy_rank_promotion("allow"), jax.debug_nans(False), jax.default_matmul_precision("highest"):
        yield


@contextmanager
def arithmetic(wide: bool) -> Iterator[None]:
    """Use the settings of `lenient`, with float64 on if `wide`, else off."""
    with jax.enable_x64(wide), lenient():
        yield


def outside(function: Callable[P, R]) -> Callable[P, R]:
    """Return a function that computes on concrete values at once, also when it is called while JAX is tracing.

    It then runs in another thread, where nothing is traced. (With `jax.ensure_compile_time_eval` here, programs would
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
