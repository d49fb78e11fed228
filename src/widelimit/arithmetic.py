"""The library computes under its own settings of JAX, whatever those of the caller are; they hold for a thread."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import jax


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
