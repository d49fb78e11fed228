"""JAX's threads do not survive a fork: in a process that was forked, a compiled program would never return."""

import os
import sys
from typing import final


@final
class _State:
    started = False
    """JAX had begun to work when this process was last forked."""
    forked = False
    """This process is a child of one in which JAX had."""


def _before_fork() -> None:
    _State.started = _jax_started()


def _in_child() -> None:
    _State.forked = _State.forked or _State.started


def _jax_started() -> bool:
    """Return True if JAX has a backend, and so threads; also where a later JAX does not say."""
    if "jax" not in sys.modules:
        return False
    try:
        from jax._src.xla_bridge import backends_are_initialized
    except ImportError:
        return True
    return bool(backends_are_initialized())


if sys.platform != "win32":
    os.register_at_fork(before=_before_fork, after_in_child=_in_child)


def refuse_forked() -> None:
    """Refuse to compute in a forked process, where a compiled program would never return. The check reads one flag.

    Raises: RuntimeError: this process was forked from one that had used JAX.
    """
    if _State.forked:
        raise RuntimeError(
            "this process was forked from one that had used JAX, whose threads do not survive a fork: a computation "
            'would hang for ever. Start processes by spawn: multiprocessing.get_context("spawn"), '
            'multiprocessing_context="spawn" of a DataLoader, or joblib\'s own backend, loky.'
        )
