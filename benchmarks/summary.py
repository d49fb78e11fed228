"""This script writes docs/benchmarks.md from benchmarks/results/*.json: no figure is typed by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "benchmarks.md"
HEAD = """# Benchmarks

This page lists all measured speeds and memory. `python benchmarks/summary.py` makes it from `benchmarks/results/`;
`benchmarks/README.md` says how to run the benchmarks. A ratio compares two programs in one run on one machine. A column
`goal` is the value that was set before the measurement, reached or not. `_s` is in seconds, `ms` in milliseconds.
"""


def text(value: Any) -> str:
    """Format a cell: four digits of a fraction."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def script_of(name: str) -> Path:
    """Return the script that wrote a result: the result's name, or its first words, are the script's."""
    words = name.split("_")
    paths = [HERE / f"{'_'.join(words[:count])}.py" for count in range(len(words), 0, -1)]
    return next(path for path in paths if path.exists())


def section(document: dict[str, Any]) -> str:
    """Format the script's first sentence, the machine, the rows; results by single sets stay in the JSON."""
    machine = document["machine"]
    blas = "; ".join(
        f"{b['internal_api']} {b['version']}, {b['architecture']}, {b['num_threads']} threads" for b in machine["blas"]
    )
    columns = list(dict.fromkeys(key for row in document["rows"] for key in row))
    table = [columns, ["---"] * len(columns)]
    table += [[text(row.get(column, "")) for column in columns] for row in document["rows"]]
    plain = {key: value for key, value in document["settings"].items() if not isinstance(value, dict | list)}
    settings = "".join(f"; {key} {text(value)}" for key, value in plain.items())
    about = script_of(document["name"]).read_text().split('"""')[1].split("\n\n")[0].strip()
    return (
        f"\n## {document['name']}\n\n{about}\n\n"
        f"{machine['processor']}, {machine['cores']} cores; Python {machine['python']}, JAX {machine['jax']}, NumPy "
        f"{machine['numpy']}, SciPy {machine['scipy']}; {blas}; OPENBLAS_CORETYPE {machine['openblas_coretype']}; "
        f"{machine['date']}{settings}.\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in table) + "\n"
    )


def page() -> str:
    """Write the whole page."""
    found = [json.loads(path.read_text()) for path in sorted((HERE / "results").glob("*.json"))]
    return HEAD + "".join(section(document) for document in found)


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"wrote {PAGE}")
