"""All benchmarks share the machine's facts, timing, and results as JSON with a printed table."""

from __future__ import annotations

import datetime
import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from widelimit.cli import info

RESULTS = Path(__file__).parent / "results"


def seconds(work: Callable[[], Any], *, repeats: int = 3) -> float:
    """Measure the shortest wall time of `repeats` calls, after one that is not counted (it compiles)."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def machine() -> dict[str, Any]:
    """Return processor, cores, versions and the BLAS setting: without them a figure means nothing."""
    facts = info.collect("")
    names = [line.split(":", 1)[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    kept = ("python", "jax", "numpy", "scipy", "scikit-learn", "blas", "cores", "devices")
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "processor": names[0] if names else platform.processor(),
        "openblas_coretype": facts["openblas_coretype"] or "unset",
        **{key: facts[key] for key in kept},
    }


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def report(name: str, rows: Sequence[Mapping[str, Any]], *, keep: bool = True, **settings: Any) -> None:
    """Print the rows as a table; `keep` writes results/NAME.json: {"name", "settings", "machine", "rows"}."""
    document = {"name": name, "settings": settings, "machine": machine(), "rows": [dict(row) for row in rows]}
    if keep:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.json").write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")
    facts = document["machine"]
    print(f"{name}: {facts['processor']}, {facts['cores']} cores, OPENBLAS_CORETYPE {facts['openblas_coretype']}")
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = [columns, *([_text(row.get(column, "")) for column in columns] for row in rows)]
    widths = [max(len(line[i]) for line in table) for i in range(len(columns))]
    for line in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
