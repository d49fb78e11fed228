"""Features of this library and four others, each checked by code that runs in that library's environment.

PEERS=.venv-peers python benchmarks/comparison.py writes results/comparison.json and docs/comparison.md; --page writes
the page again from stored results. benchmarks/peers.sh makes the environments.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from common import RESULTS, report
from comparison_features import FEATURES
from peers import FOLDER

SMALL = False
HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "comparison.md"
LIBRARIES = {
    "widelimit": "",
    "neural-tangents": "nt",
    "BoTorch": "gpytorch",
    "GPyTorch": "gpytorch",
    "scikit-learn": "",
}
"""Library: its environment in the peers' folder; empty: that of this script."""
SOURCES = {
    "neural-tangents": "https://github.com/google/neural-tangents",
    "BoTorch": "https://botorch.org/v/latest/tutorials/ibnn_bo",
    "GPyTorch": "https://raw.githubusercontent.com/cornellius-gp/gpytorch/main/README.md",
    "scikit-learn": "https://scikit-learn.org/1.3/modules/generated/sklearn.gaussian_process.GaussianProcessRegressor.html",
}
RUNNER = """
import contextlib, importlib.metadata, io, json, sys
name, checks = json.load(sys.stdin)
found = {}
for feature, code in checks.items():
    with contextlib.redirect_stdout(io.StringIO()) as text:
        exec(code, {"__name__": "check"})
    found[feature] = text.getvalue().strip()
print(json.dumps([importlib.metadata.version(name), found]))
"""
"""Runs all checks of one library in one process, in their order."""


def python_of(environment: str) -> Path:
    """Return the interpreter of a library. Raises: SystemExit: its environment is not there."""
    python = FOLDER / environment / "bin" / "python" if environment else Path(sys.executable)
    if not python.exists():
        raise SystemExit(f"there is no {python}: run benchmarks/peers.sh first (or set PEERS to its folder)")
    return python


def answers(library: str) -> tuple[str, dict[str, str]]:
    """Return the library's version, and what each of its checks prints. Raises: SystemExit: one failed."""
    checks = {feature: codes[library] for feature, codes in FEATURES.items() if library in codes}
    run = subprocess.run(
        [python_of(LIBRARIES[library]), "-W", "ignore", "-c", RUNNER],
        input=json.dumps([library.lower(), checks]),
        capture_output=True,
        text=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        check=False,
    )
    if run.returncode:
        raise SystemExit(f"{library}: a check failed:\n{run.stderr[-3000:]}")
    version, found = json.loads(run.stdout.strip().split("\n")[-1])
    return version, found


def measure() -> None:
    """Run every check, and store the answers with the versions."""
    with ThreadPoolExecutor() as pool:
        found = dict(zip(LIBRARIES, pool.map(answers, LIBRARIES), strict=True))
    rows = [{"feature": f, **{name: found[name][1].get(f, "") for name in LIBRARIES}} for f in FEATURES]
    report("comparison", rows, **{name: version for name, (version, _) in found.items()})


def features(document: dict[str, Any]) -> str:
    """Format the table of features."""
    head = ["", *(f"{name} {document['settings'][name]}" for name in LIBRARIES)]
    lines = [head, ["---"] * len(head)]
    lines += [[row["feature"], *(row[name] or "not checked" for name in LIBRARIES)] for row in document["rows"]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def speeds() -> str:
    """Format what was measured beside neural-tangents, and the solvers beside GPyTorch's."""
    gram, solvers = (json.loads((RESULTS / f"{name}.json").read_text()) for name in ("gram", "solvers"))
    lines = [
        "| n | features | hidden layers | dtype | rows of one norm | widelimit, s | neural-tangents, s | ratio |",
        "|---" * 8 + "|",
    ]
    for row in gram["rows"]:
        cells = (row["n"], row["d"], row["hidden"], row["dtype"], "yes" if row["equal_norms"] else "no")
        times = (row["widelimit_s"], row["neural_tangents_s"], row["ratio"])
        lines.append(f"| {' | '.join(map(str, cells))} | {' | '.join(f'{time:.3g}' for time in times)} |")
    machine = gram["machine"]
    text = (
        f"NTK Gram matrices of relu networks, {machine['date']}, {machine['cores']} cores of {machine['processor']}; "
        f"{gram['settings']['peer']}.\n\n" + "\n".join(lines)
    )
    settings, machine = solvers["settings"], solvers["machine"]
    lines = ["| solver | seconds | residual | mean off by |", "|---|---|---|---|"]
    for row in solvers["rows"]:
        cells = (
            f"{row[key]:.3g}" if key in row and row[key] != "" else "" for key in ("seconds", "residual", "mean_off")
        )
        lines.append(f"| {row['work']} | {' | '.join(cells)} |")
    return text + (
        f"\n\nExact regression on {settings['n']:,} rows of {settings['features']} features, {settings['test']:,} test rows, "
        f"{machine['date']}.\n\n" + "\n".join(lines)
    )


def page() -> str:
    """Return the whole page."""
    document = json.loads((RESULTS / "comparison.json").read_text())
    sources = "\n".join(f"- {name}: <{address}>" for name, address in SOURCES.items())
    return f"""# Comparison

This page compares widelimit with libraries that are used for the same work. `python benchmarks/comparison.py` makes it: every
entry of the first table is the result of code that ran in that library's environment on {document["machine"]["date"]}
(`benchmarks/comparison_features.py` has the code); the times are those of [benchmarks](benchmarks.md).

{features(document)}

"no" means that the code looked for the feature among the public names of the library, or used what comes nearest to it, and did not
find it. One can write most of these by hand on top of each library; the table says what is there. The last rows are what others have and
this library has not.

## Speed

{speeds()}

The accuracy on data sets, beside scikit-learn, GPyTorch, CatBoost, LightGBM and xRFM, is in
[accuracy of models of tables](benchmarks_tables.md). [From neural-tangents](migration.md) has the call here for every function there.

## Documentation of the others

{sources}
"""


if __name__ == "__main__":
    if "--page" not in sys.argv[1:]:
        measure()
    PAGE.write_text(page())
    print(f"wrote {PAGE}")
