"""This package contains the command line.

Importing it loads nothing else: the command listens for signals before it imports anything, and `widelimit --help`
loads neither NumPy nor JAX: commands load what they need.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the `widelimit` command as a process of its own: it ends with the exit code, whatever signals come."""
    from widelimit.cli import interruption

    interruption.listen()
    from widelimit.cli import app

    try:
        app.main(arguments)
    except SystemExit as stop:
        interruption.leave(int(stop.code or 0))
