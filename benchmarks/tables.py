"""The tables of the documentation come from results/: `python benchmarks/tables.py` writes them into docs/*.md.

A page says where: what stands between `<!-- results NAME -->` and `<!-- end -->` is the table of results/NAME.json. A
test fails while a page and its results differ.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from common import RESULTS

DOCS = Path(__file__).parents[1] / "docs"
PLACE = re.compile(r"(<!-- results (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def table(document: dict[str, Any]) -> str:
    """Write a document of results as a Markdown table, and the machine that it was measured on."""
    rows, facts = document["rows"], document["machine"]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [columns, ["---"] * len(columns), *([_text(row.get(column, "")) for column in columns] for row in rows)]
    versions = ", ".join(f"{key} {facts[key]}" for key in ("python", "jax", "numpy", "scikit-learn"))
    machine = f"{facts['processor']}, {facts['cores']} cores, OPENBLAS_CORETYPE {facts['openblas_coretype']}"
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{facts['date']}, {machine}; {versions}.\n"


def filled(page: str, results: Path = RESULTS) -> str:
    """Write the page with all of its tables as the results have them.

    Raises:
        FileNotFoundError: a table is asked for that has no results.
    """

    def fill(place: re.Match[str]) -> str:
        document = json.loads((results / f"{place[2]}.json").read_text())
        return f"{place[1]}\n{table(document)}\n{place[3]}"

    return PLACE.sub(fill, page)


def main() -> None:
    """Write every page."""
    for path in sorted(DOCS.glob("*.md")):
        path.write_text(filled(path.read_text()))


if __name__ == "__main__":
    main()
