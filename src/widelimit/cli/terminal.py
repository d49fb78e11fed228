"""Progress on stderr and tables on stdout, 80 columns wide where there is no terminal."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

WIDTH = 80
"""Columns of a table that does not go to a terminal."""


def console() -> Console:
    """Where results are printed: stdout as it is now, without markup."""
    out = Console(file=sys.stdout, highlight=False, markup=False, emoji=False)
    if not out.is_terminal:
        out.width = WIDTH
    return out


def grid() -> Table:
    """A table with a rule under its head and no other lines."""
    return Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)


@contextmanager
def progress(steps: int, *, shown: bool) -> Iterator[Callable[[str], None]]:
    """A function to call before each step with its name; it moves a bar on stderr if `shown`, else does nothing."""
    bar = Progress(
        TextColumn("{task.description:24}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(file=sys.stderr),
        transient=True,
        disable=not shown,
    )
    with bar:
        task, done = bar.add_task("", total=steps), itertools.count()
        yield lambda name: bar.update(task, completed=next(done), description=name)


@contextmanager
def waiting(text: str, *, shown: bool) -> Iterator[None]:
    """A spinner and the seconds on stderr, if `shown`, while work of unknown length goes on."""
    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        console=Console(file=sys.stderr),
        transient=True,
        disable=not shown,
    )
    with bar:
        bar.add_task(text, total=None)
        yield


def shown_on_terminal(*, quiet: bool) -> bool:
    """Whether progress is shown: stderr is a terminal, and nobody said --quiet."""
    return sys.stderr.isatty() and not quiet


def short(value: float) -> str:
    """About two digits: 0.39, 500, 1e5, 9.5e-7, inf."""
    if 100 <= value < 10_000:
        return f"{value:.0f}"
    mantissa, e, exponent = f"{value:.2g}".partition("e")
    return mantissa + e + (str(int(exponent)) if e else "")
