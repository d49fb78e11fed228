"""Results of long benchmarks are stored line by line: a run that was stopped goes on where it was."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Scores = dict[str, dict[str, Any]]
"""Method -> what is stored of it."""


def stored(folder: Path, prefix: str = "") -> list[dict[str, Any]]:
    """Read the rows of all result files in a folder whose names begin with `prefix`; a cut-off last line is skipped."""
    return [row for path in sorted(folder.glob(f"{prefix}*.jsonl")) for row in _rows(path)]


def _rows(file: Path) -> list[dict[str, Any]]:
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [row for line in lines if line.endswith("\n") for row in json.loads(line)]


def _without_cut_line(file: Path) -> None:
    """End the file at its last whole line, so that the next one starts a line of its own."""
    if file.exists():
        content = file.read_bytes()
        file.write_bytes(content[: content.rfind(b"\n") + 1])


def extend(folder: Path, name: str, paths: Sequence[Path], work: Callable[[Path], Scores]) -> None:
    """Append to NAME.jsonl one line, a list of rows (one a method), for every data set that it does not hold yet."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.jsonl"
    _without_cut_line(file)
    done = {row["set"] for row in _rows(file)}
    for path in paths:
        if path.stem in done:
            continue
        start = time.process_time()
        scores = work(path)
        used = round(time.process_time() - start, 2)
        with np.load(path, allow_pickle=False) as archive:
            facts = {"set": path.stem, "n": len(archive["y"]), "cpu_seconds": used}
        rows = [{"method": method, **facts, **score} for method, score in scores.items()]
        with file.open("a") as stream:
            stream.write(json.dumps(rows, allow_nan=False) + "\n")
        shown = (f"{method}: {np.mean(score['folds'], axis=0).round(4)}" for method, score in scores.items())
        print(name, path.stem, f"{used} s", *shown, flush=True)


def extend_tasks(
    folder: Path, name: str, tasks: Iterable[dict[str, Any]], work: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    """Append to NAME.jsonl one line, a list of one row, for every task (facts by name) that it does not hold yet.

    A task that fails is stored with its error, so that a table can say how many did.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.jsonl"
    _without_cut_line(file)
    done = _rows(file)
    for task in tasks:
        if any(task.items() <= row.items() for row in done):
            continue
        start, wall = time.process_time(), time.perf_counter()
        try:
            found = work(task)
        except Exception as error:
            found = {"error": f"{type(error).__name__}: {error}"}
        used = {"cpu_seconds": time.process_time() - start, "wall_seconds": time.perf_counter() - wall}
        row = task | found | {key: round(value, 2) for key, value in used.items()}
        with file.open("a") as stream:
            stream.write(json.dumps([row], allow_nan=False) + "\n")
        print(
            name,
            *(f"{key} {value:.4g}" if isinstance(value, float) else value for key, value in row.items()),
            flush=True,
        )


def by_size(folder: Path, largest: int) -> list[Path]:
    """Sort the .npz files with at most `largest` rows of y, the smallest first.

    Raises:
        SystemExit: there is none.
    """
    sizes: dict[Path, int] = {}
    for path in sorted(folder.glob("*.npz")):
        with np.load(path, allow_pickle=False) as archive:
            sizes[path] = len(archive["y"])
    found = sorted((path for path in sizes if sizes[path] <= largest), key=lambda path: sizes[path])
    if not found:
        raise SystemExit(f"{folder} has no .npz file with at most {largest} rows.")
    return found
