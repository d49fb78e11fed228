"""This package contains the command line.

Importing it loads nothing else: the command listens for signals before it imports anything, and `widelimit --help`
loads neither NumPy nor JAX: commands load what they need.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["main"]


def _open_closed_streams() -> None:
    """Open the standard streams that the caller has closed, which files would take the place of: stdout to fail."""
    import os
    import sys

    for descriptor, name, mode in ((0, "stdin", os.O_RDONLY), (1, "stdout", os.O_RDONLY), (2, "stderr", os.O_WRONLY)):
        if getattr(sys, name) is None:
            os.open(os.devnull, mode)  # the lowest that is free
            setattr(sys, name, open(descriptor, "w" if descriptor else "r", closefd=False))  # noqa: SIM115


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the `widelimit` command as a process of its own: it ends with the exit code, whatever signals come."""
    _open_closed_streams()  # before anything opens a pipe
    from widelimit.cli import interruption

    interruption.listen()
    from widelimit.cli import app

    try:
        app.main(arguments)
    except SystemExit as stop:
        interruption.leave(int(stop.code or 0))
