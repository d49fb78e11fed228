"""Long work shows its progress: bars on stderr, only where that is a terminal."""

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Report = Callable[[str, float, float], None]
"""Called as report(stage, done, total): a total of 0 is unknown."""
KERNEL, FACTOR = "kernel matrix", "factorisation"
"""Stages that several layers report."""
LONG = 4000
"""Points above which a solve takes seconds, and shows its progress."""
NAME, BAR, REST = 22, 30, 52
"""Characters of a name, of a bar at most, and of all but the bar."""


def no_progress(*_: object) -> None:
    """Report nothing."""


@functools.cache
def _screen() -> Any:
    """Return the console that all bars share: a bar that starts while another runs is drawn under it."""
    from rich.console import Console

    return Console(stderr=True)


@contextmanager
def progress_bar(requested: bool, *, unit: str = "") -> Iterator[Report]:
    """Yield a function that moves a bar on stderr if `requested` and stderr is a terminal, else one that does nothing.

    A report with a smaller `done` than before starts a new stage, whose time counts from 0. With a unit the bar shows
    "done/total unit", else per cent. The bar is erased at the end.
    """
    if not (requested and sys.stderr is not None and sys.stderr.isatty()):
        yield no_progress
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.table import Column

    console = _screen()
    name = TextColumn("{task.description}", table_column=Column(width=NAME, no_wrap=True, overflow="ellipsis"))
    counts = TextColumn("{task.fields[count]}", table_column=Column(no_wrap=True))
    bars = BarColumn(max(8, min(BAR, console.width - REST)))
    columns, both = (name, bars, counts, TimeElapsedColumn(), TimeRemainingColumn(compact=True)), sys.stdout.isatty()
    with Progress(
        *columns, console=console, transient=True, redirect_stdout=both
    ) as progress:  # rich would write to a pipe, too
        task = progress.add_task("", total=None, count="")

        def report(stage: str, done: float, total: float) -> None:
            nonlocal task
            if done < progress.tasks[0].completed or not total:
                progress.remove_task(task)
                task = progress.add_task("", total=None, count="")
            count = (f"{done:g}/{total:g} {unit}" if unit else f"{done / total:.0%}") if total else ""
            progress.update(task, description=stage, completed=done, total=total or None, count=count)
            if not done:  # the work that follows may hold the interpreter, so that nothing is drawn before its end
                progress.refresh()

        yield report
