"""Progress of long work, on a terminal only."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@contextmanager
def progress(total: float, unit: str, *, shown: bool) -> Iterator[Callable[[float, str], None]]:
    """A function of how much is done and a note; it moves a bar on stderr if that is a terminal, else does nothing."""
    bar = Progress(
        TextColumn("training"),
        BarColumn(),
        TextColumn("{task.completed:g}/{task.total:g} " + unit),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(file=sys.stderr),
        transient=True,
        disable=not (shown and sys.stderr.isatty()),
    )
    with bar:
        task = bar.add_task("", total=total)
        yield lambda done, note: bar.update(task, completed=done, description=note)
