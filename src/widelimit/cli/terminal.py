"""Steps are printed on stderr and tables on stdout, 80 columns wide where there is no terminal."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import final

from rich import box
from rich.console import Console
from rich.table import Table

from widelimit.progress import progress_bar

WIDTH = 80
"""Columns of a table that does not go to a terminal."""


@final
class _Console(Console):
    """The console leaves a closed pipe to the caller, which knows the exit code."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def console() -> Console:
    """Return a console on the current stdout, without markup."""
    out = _Console(file=sys.stdout, highlight=False, markup=False, emoji=False)
    if not out.is_terminal:
        out.width = WIDTH
    return out


def grid() -> Table:
    """Make a table with a rule under its head and no other lines."""
    return Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)


@contextmanager
def progress(steps: int, unit: str, *, quiet: bool) -> Iterator[Callable[[str], None]]:
    """Yield a function to call before each step with its name; it moves a bar, as `widelimit.progress` shows it."""
    done = itertools.count()
    with progress_bar(not quiet, unit=unit) as report:
        yield lambda name: report(name, next(done), steps)


@contextmanager
def busy_bar(text: str, *, quiet: bool) -> Iterator[None]:
    """Show a bar that only moves, while work of unknown length goes on."""
    with progress_bar(not quiet) as report:
        report(text, 0, 0)
        yield


def short(value: float) -> str:
    """Format about two digits: 0.39, 500, 1e5, 9.5e-7, inf."""
    if 100 <= value < 10_000:
        return f"{value:.0f}"
    mantissa, e, exponent = f"{value:.2g}".partition("e")
    return mantissa + e + (str(int(exponent)) if e else "")
