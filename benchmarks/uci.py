"""This benchmark measures accuracy on 90 small UCI sets: support vector machines on NTKs, this library's classifiers.

python benchmarks/uci.py run DATA OUT [--methods ntk forest ...] [--protocol published] [--largest 5000]
python benchmarks/uci.py report OUT

`run` adds one line a set to OUT/PROTOCOL-METHOD.jsonl (both-METHOD.jsonl if the method needs no tuning rows: its folds
are the same in both protocols) and leaves out what is there: it can be stopped and started again, and several may run
beside each other with different methods. `report` writes the results to results/, and `tables.py` the page of the
documentation.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import uci_kernels as kernels
from common import report
from lines import Scores, by_size, extend, stored
from scipy.stats import rankdata
from sklearn.ensemble import RandomForestClassifier
from uci_data import PROTOCOLS, DataSet, load, options

import widelimit as wl


def _machines(data: DataSet, candidates: Any, groups: Mapping[str, kernels.Group]) -> Scores:
    """Fit support vector machines, tuned over the groups' kernels and C."""
    effort = kernels.Effort()
    found = kernels.search(candidates, data.y, data.splits, groups, effort)
    scores = {
        name: {
            "folds": kernels.folds_of(best, data.y, data.splits, effort),
            "choice": [{"kernel": one.key, "C": one.cost, "tuning accuracy": one.score} for one in best],
        }
        for name, best in found.items()
    }
    return {name: {**score, **vars(effort)} for name, score in scores.items()}


def svm_ntk(data: DataSet) -> Scores:
    """Run the method of Arora et al. 2020, and the same search among its five NNGP kernels alone."""
    groups = {"SVM, NTK": kernels.all_of, "SVM, NNGP": kernels.nngp_of}
    return _machines(data, kernels.partly_trained(data.X), groups)


def svm_rbf(data: DataSet) -> Scores:
    """Run Gaussian kernels of eight widths."""
    return _machines(data, kernels.gaussian(data.X), {"SVM, RBF": kernels.all_of})


def _fitted(data: DataSet, name: str, make: Callable[[], Any]) -> Scores:
    """Fit a classifier that needs no tuning rows to the training rows of every fold."""
    folds = [
        float(make().fit(data.X[train], data.y[train]).score(data.X[test], data.y[test]))
        for split in data.splits
        for train, test in split.folds
    ]
    return {name: {"folds": folds}}


TUNED = "marginal_likelihood"
PLAIN: dict[str, Any] = {"input_scales": None, "alpha_epsilon": 0.01}
"""The defaults of version 0.1."""

METHODS: dict[str, Callable[[DataSet], Scores]] = {
    "ntk": svm_ntk,
    "forest": lambda data: _fitted(data, "random forest", lambda: RandomForestClassifier(500, random_state=0)),
    "rbf": svm_rbf,
    "ntk_default": lambda data: _fitted(data, "NTKClassifier()", lambda: wl.NTKClassifier(**PLAIN)),
    "nngp_default": lambda data: _fitted(data, "NNGPClassifier()", lambda: wl.NNGPClassifier(**PLAIN)),
    "ntk_tuned": lambda data: _fitted(
        data, "NTKClassifier, tuned", lambda: wl.NTKClassifier(hyperparameters=TUNED, **PLAIN)
    ),
    "nngp_tuned": lambda data: _fitted(
        data, "NNGPClassifier, tuned", lambda: wl.NNGPClassifier(hyperparameters=TUNED, **PLAIN)
    ),
}


SEARCHES = ("ntk", "rbf")
"""The methods that need tuning rows."""

ORDER = (
    "SVM, NTK",
    "SVM, NNGP",
    "SVM, RBF",
    "random forest",
    "NTKClassifier()",
    "NNGPClassifier()",
    "NTKClassifier, tuned",
    "NNGPClassifier, tuned",
)
"""The methods are in this order in the tables."""


def accuracies(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return method -> set -> mean accuracy over the folds, in per cent."""
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for row in rows:
        found[row["method"]][row["set"]] = 100 * float(np.mean(row["folds"]))
    return {method: found[method] for method in ORDER if method in found}


def summary(table: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    """Make one row a method, over the sets that all of them have.

    P90 and P95: the share of sets on which a method reaches 90 and 95 % of the best accuracy among the methods; PMA:
    the mean of accuracy over best accuracy; Friedman rank: the mean over the sets of the rank among the methods, 1 is
    the best.
    """
    common = sorted(set.intersection(*(set(scores) for scores in table.values())))
    values = np.array([[scores[name] for name in common] for scores in table.values()])
    share = values / values.max(axis=0)
    ranks = rankdata(-values, axis=0)
    return [
        {
            "sets": len(common),
            "method": method,
            "accuracy": round(float(values[i].mean()), 2),
            "± over sets": round(float(values[i].std(ddof=1)), 2),
            "P90": round(100 * float(np.mean(share[i] >= 0.9)), 2),
            "P95": round(100 * float(np.mean(share[i] >= 0.95)), 2),
            "PMA": round(100 * float(share[i].mean()), 2),
            "Friedman rank": round(float(ranks[i].mean()), 2),
        }
        for i, method in enumerate(table)
    ]


def report_protocol(out: Path, protocol: str) -> None:
    """Write results/uci_PROTOCOL.json: the methods with all sets; then those with fewer too, on their common sets."""
    scored = stored(out, f"{protocol}-")
    scored += stored(out, "both-") if scored else []
    table = accuracies(scored)
    rows = []
    for sets in sorted({len(scores) for scores in table.values()}, reverse=True):
        rows += summary({method: scores for method, scores in table.items() if len(scores) >= sets})
    for row in rows:
        own = [one["cpu_seconds"] for one in scored if one["method"] == row["method"]]
        row["CPU minutes, own sets"] = f"{sum(own) / 60:.1f}, {len(own)}"
    solver = [one for one in scored if one["method"] in ("SVM, NTK", "SVM, RBF")]
    if rows:
        report(
            f"uci_{protocol}",
            rows,
            accuracy_by_set={
                method: {name: round(v, 2) for name, v in scores.items()} for method, scores in table.items()
            },
            rows_by_set={one["set"]: one["n"] for one in scored},
            solver={key: sum(one[key] for one in solver) for key in ("fits", "stopped", "skipped")},
        )


def main() -> None:
    """Run the command line."""
    chosen = options(__doc__, list(METHODS), largest=5000, protocols=PROTOCOLS)
    if chosen.command == "report":
        for protocol in PROTOCOLS:
            report_protocol(chosen.out, protocol)
        return
    for method in chosen.methods:

        def work(path: Path, method: str = method) -> Scores:
            return METHODS[method](load(path, chosen.protocol))

        kind = chosen.protocol if method in SEARCHES else "both"
        extend(chosen.out, f"{kind}-{method}", by_size(chosen.data, chosen.largest), work)


if __name__ == "__main__":
    main()
