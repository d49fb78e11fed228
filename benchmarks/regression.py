"""Regressors are compared on the same few hundred rows of many tables: error, density, coverage, seconds.

python benchmarks/regression.py run DATA OUT [--rows 400] [--splits 0 1 ...] [--methods gp_ard wide ...] [--sets ...]
python benchmarks/regression.py report OUT [OUT ...] [--rows 400] [--splits ...] [--methods ...]

DATA holds .npz files with X (n, d), y (n,) and test_mask (n, 10): in split k the rows with test_mask[:, k] are the test
set. A fixed seed draws at most --rows training rows and TEST_ROWS test rows; X and y are standardised with the drawn
training rows' statistics for every method. `run` adds to OUT and can be stopped and started again; methods whose
package is missing are skipped. `report` writes the results of one folder or of several (a later one counts where both
have a result) to results/, and `tables.py` the page of the documentation.
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from common import report
from lines import by_size, extend_tasks, stored
from regressors import METHODS, Fold
from scipy.stats import rankdata

SEED, TEST_ROWS, QUANTILE = 0, 1000, 1.959964
"""95 % of a Gaussian lie within QUANTILE deviations."""

SCORES = ("rmse", "nlpd", "coverage")

Table = dict[tuple[str, int], dict[str, dict[str, Any]]]
"""(set, split) -> method -> row."""


def draw(path: Path, split: int, rows: int) -> Fold:
    """Draw a split's training and test rows by a fixed seed; 400 drawn rows are the first of 1000 drawn rows."""
    with np.load(path, allow_pickle=False) as z:
        X, y, test = z["X"].astype(np.float64), z["y"].astype(np.float64), z["test_mask"][:, split]
    random = np.random.default_rng([SEED, split])
    train, held = (random.permutation(np.flatnonzero(mask)) for mask in (~test, test))
    train, held = train[:rows], held[:TEST_ROWS]
    centre, scale, middle, unit = X[train].mean(axis=0), X[train].std(axis=0), y[train].mean(), float(y[train].std())
    inputs, outputs = (X - centre) / np.where(scale > 0, scale, 1), (y - middle) / unit
    return Fold(inputs[train], outputs[train], inputs[held], outputs[held], unit)


def scores(fold: Fold, mean: np.ndarray, deviation: np.ndarray) -> dict[str, float]:
    """Return RMSE and mean negative log density of a Gaussian, in the raw units of y, and its 95 % intervals' coverage.

    Raises:
        ValueError: a mean that is not finite, or a deviation that is not positive.
    """
    if not (np.isfinite(mean).all() and np.isfinite(deviation).all() and (deviation > 0).all()):
        raise ValueError("a prediction that is no Gaussian.")
    error, spread = (fold.y_test - mean) * fold.unit, deviation * fold.unit
    density = 0.5 * math.log(2 * math.pi) + np.log(spread) + (error / spread) ** 2 / 2
    return {
        "rmse": float(np.sqrt(np.mean(error**2))),
        "nlpd": float(np.mean(density)),
        "coverage": float(np.mean(np.abs(error) <= QUANTILE * spread)),
    }


def tasks(paths: list[Path], splits: list[int], rows: int, method: str) -> Iterator[dict[str, Any]]:
    """Name every task: all sets of a split, then those of the next."""
    for split in splits:
        for path in paths:
            yield {"set": path.stem, "split": split, "rows": rows, "method": method}


def evaluate(folder: Path, task: dict[str, Any]) -> dict[str, Any]:
    """Score a method on a split of a set."""
    fold = draw(folder / f"{task['set']}.npz", task["split"], task["rows"])
    sizes = {"n": len(fold.y), "d": fold.X.shape[1], "n_test": len(fold.y_test)}
    return sizes | scores(fold, *METHODS[task["method"]].predict(fold))


def by_task(rows: list[dict[str, Any]]) -> Table:
    """Group rows by set and split."""
    found: Table = defaultdict(dict)
    for row in rows:
        found[row["set"], row["split"]][row["method"]] = row
    return dict(found)


def ratios(table: Table, method: str, reference: str) -> dict[str, float]:
    """Return set -> geometric mean over the splits that both have of RMSE over the reference's."""
    found = defaultdict(list)
    for (name, _), row in table.items():
        if all("rmse" in row.get(each, {}) for each in (method, reference)):
            found[name].append(math.log(row[method]["rmse"] / row[reference]["rmse"]))
    return {name: math.exp(float(np.mean(values))) for name, values in found.items()}


def ranks(table: Table, methods: list[str], score: str) -> tuple[dict[str, float], int]:
    """Return the mean rank of each method, 1 is the best, over the tasks that all were run on, and their number.

    A failed task has the last rank.
    """
    whole = [row for row in table.values() if set(methods) <= set(row)]
    found = [rankdata([row[method].get(score, math.inf) for method in methods]) for row in whole]
    return dict(zip(methods, np.mean(found, axis=0), strict=True)) if found else {}, len(found)


def coverages(table: Table, method: str) -> dict[str, float]:
    """Return set -> mean over its splits of the coverage."""
    found = defaultdict(list)
    for (name, _), row in table.items():
        if "coverage" in row.get(method, {}):
            found[name].append(row[method]["coverage"])
    return {name: float(np.mean(values)) for name, values in found.items()}


def summary(table: Table) -> list[dict[str, Any]]:
    """Make one row a method, in the order of METHODS, of which the first is the reference."""
    methods = [method for method in METHODS if any(method in row for row in table.values())]
    reference = methods[0]
    rank, made = {}, 0
    for score in ("rmse", "nlpd"):
        rank[score], made = ranks(table, methods, score)
    rows = []
    for method in methods:
        own = [row[method] for row in table.values() if method in row]
        ratio, covered = ratios(table, method, reference), coverages(table, method)
        found: dict[str, Any] = {"method": METHODS[method].title, "fits": len(own), "sets": len(ratio)}
        found["failed"] = sum("error" in row for row in own)
        if ratio:
            worst = max(ratio, key=ratio.__getitem__)
            found["RMSE ratio"] = math.exp(float(np.mean(np.log(list(ratio.values())))))
            found["worst ratio"] = f"{ratio[worst]:.3f} ({worst})"
            found["coverage over sets"] = f"{min(covered.values()):.3f} to {max(covered.values()):.3f}"
            found["sets in .90 to .98"] = sum(0.9 <= value <= 0.98 for value in covered.values())
        found |= {f"rank, {s.upper()} ({made} fits)": rank[s][method] for s in rank if made}
        found["CPU s a fit"] = float(np.median([row["cpu_seconds"] for row in own]))
        rows.append(found)
    return rows


def by_set(table: Table, score: str) -> list[dict[str, Any]]:
    """Make one row a set: the mean over its splits of each method's score."""
    rows = []
    for name in sorted({name for name, _ in table}):
        splits = [row for (each, _), row in table.items() if each == name]
        sizes = next(one for row in splits for one in row.values() if "n" in one)
        found: dict[str, Any] = {"set": name, "n": sizes["n"], "d": sizes["d"]}
        for method in METHODS:
            values = [row[method][score] for row in splits if score in row.get(method, {})]
            if values:
                found[METHODS[method].title] = float(np.mean(values))
        rows.append(found)
    return rows


FACTS = ("set", "split", "method", *SCORES, "cpu_seconds", "wall_seconds", "error")


def write_report(folders: list[Path], rows: int, methods: list[str], splits: list[int]) -> None:
    """Write results/regression_ROWS*.json: the summary with every fit as a line, and each score by set."""
    found = [row for folder in folders for row in stored(folder) if row["rows"] == rows]
    table = by_task([row for row in found if row["method"] in methods and row["split"] in splits])
    made = ", ".join(str(split) for split in sorted({split for _, split in table}))
    values = [[row.get(key, "") for key in FACTS] for each in table.values() for row in each.values()]
    fits = [", ".join(f"{v:.6g}" if isinstance(v, float) else str(v) for v in line) for line in [FACTS, *values]]
    packages = sorted({METHODS[method].package for method in methods if not METHODS[method].missing} - {"sklearn"})
    peers = ", ".join(f"{package} {version(package)}" for package in packages)
    report(f"regression_{rows}", summary(table), splits=made, peers=peers, fits=fits)
    for score in SCORES:
        report(f"regression_{rows}_{score}", by_set(table, score), splits=made)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    runner = commands.add_parser("run", help="score methods on the sets of a folder")
    runner.add_argument("data", type=Path)
    runner.add_argument("out", type=Path)
    runner.add_argument("--sets", nargs="+", help="names of the sets (default: all)")
    reporter = commands.add_parser("report", help="the tables from stored results")
    reporter.add_argument("out", type=Path, nargs="+")
    for command in (runner, reporter):
        command.add_argument("--rows", type=int, default=400, help="training rows at most (default: 400)")
        command.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
        command.add_argument("--splits", nargs="+", type=int, default=list(range(10)))
    chosen = parser.parse_args()
    if chosen.command == "report":
        write_report(chosen.out, chosen.rows, chosen.methods, chosen.splits)
        return
    paths = [path for path in by_size(chosen.data, 10**9) if chosen.sets is None or path.stem in chosen.sets]
    for method in chosen.methods:
        if METHODS[method].missing:
            print(f"{method}: skipped, {METHODS[method].package} is not installed (benchmarks/peers.sh)")
            continue
        each = tasks(paths, chosen.splits, chosen.rows, method)
        extend_tasks(chosen.out, f"{method}_{chosen.rows}", each, lambda task: evaluate(chosen.data, task))


if __name__ == "__main__":
    main()
