"""This benchmark measures accuracy, log-loss and calibration of class probabilities on 90 small UCI sets.

python benchmarks/uci_probabilities.py run DATA OUT [--methods wide forest ...] [--largest 1500]
python benchmarks/uci_probabilities.py report OUT

`run` adds one line a set to OUT/probabilities-METHOD.jsonl and leaves out what is there. Every method is fitted to the
training rows of each of the four splits and scored on its test rows (the honest protocol of uci.py). `report` writes
results/uci_probabilities.json; its accuracies of "SVM, NTK", which has no probabilities, are those of
results/uci_honest.json.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, report
from lines import Scores, by_size, extend, stored
from scipy.stats import rankdata
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.svm import SVC
from uci_data import DataSet, Split, load, options

import widelimit as wl

TREES = 500
LEAST = 1e-6
"""Probability that is added to every class, of all methods: a class without training rows has no other."""
BINS = 15
GRID = [{"C": C, "gamma": gamma} for gamma in (0.1, 1.0, 10.0) for C in (1.0, 10.0, 100.0)]
"""Of support vector machines; gamma in units of 1/d."""
REFERENCE = "SVM, NTK"
"""The best row of the table of accuracies."""


def forest(data: DataSet, split: Split) -> Any:
    """Fit a random forest; its shares of trees get a pseudo-count of one tree."""
    train = split.folds[0][0]
    model = RandomForestClassifier(TREES, random_state=0).fit(data.X[train], data.y[train])

    def probabilities(X: np.ndarray) -> np.ndarray:
        p = model.predict_proba(X)
        return np.asarray((TREES * p + 1 / p.shape[1]) / (TREES + 1))

    return model.classes_, probabilities


def machine(data: DataSet, split: Split) -> Any:
    """Fit a support vector machine, Gaussian kernel, tuned on halves of the training rows; Platt's probabilities."""
    tune, validate = split.tuning
    unit = 1 / data.X.shape[1]

    def make(setting: dict[str, float], **more: Any) -> SVC:
        return SVC(C=setting["C"], gamma=setting["gamma"] * unit, **more)

    best = max(GRID, key=lambda s: make(s).fit(data.X[tune], data.y[tune]).score(data.X[validate], data.y[validate]))
    train = split.folds[0][0]
    model = make(best, probability=True, random_state=0).fit(data.X[train], data.y[train])
    return model.classes_, model.predict_proba


def fitted(make: Callable[[], Any]) -> Callable[[DataSet, Split], Any]:
    """Fit an estimator that needs no tuning rows."""

    def fit(data: DataSet, split: Split) -> Any:
        train = split.folds[0][0]
        model = make().fit(data.X[train], data.y[train])
        return model.classes_, model.predict_proba

    return fit


METHODS: dict[str, tuple[str, Callable[[DataSet, Split], Any]]] = {
    "wide": ("WideClassifier()", fitted(lambda: wl.WideClassifier())),
    "ntk": ("NTKClassifier()", fitted(lambda: wl.NTKClassifier(input_scales=None, alpha_epsilon=0.01))),
    "ntk_logistic": (
        "NTKClassifier, logistic",
        fitted(lambda: wl.NTKClassifier(input_scales=None, likelihood="logistic")),
    ),
    "ntk_least": (
        "NTKClassifier, least squares",
        fitted(lambda: wl.NTKClassifier(input_scales=None, likelihood="least_squares")),
    ),
    "forest": ("random forest", forest),
    "machine": ("SVM, RBF, Platt", machine),
    "boosting": ("histogram boosting", fitted(lambda: HistGradientBoostingClassifier(random_state=0))),
}


def calibration_error(p: np.ndarray, right: np.ndarray) -> float:
    """Compute sum over bins of confidence of |share right - mean confidence|, weighted by rows."""
    sure = p.max(axis=1)
    place = np.minimum((sure * BINS).astype(int), BINS - 1)
    parts = [place == b for b in np.unique(place)]
    return float(sum(abs(right[part].mean() - sure[part].mean()) * part.mean() for part in parts))


def scores(p: np.ndarray, classes: np.ndarray, known: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Score probabilities (m, k) of the k known classes, on labels y among `classes`."""
    every = np.zeros((len(p), len(classes)))
    every[:, np.searchsorted(classes, known)] = p
    every = (every + LEAST) / (1 + LEAST * len(classes))
    right = classes[every.argmax(axis=1)] == y
    own = every[np.arange(len(y)), np.searchsorted(classes, y)]
    return {
        "folds": float(right.mean()),
        "log_loss": float(-np.log(own).mean()),
        "calibration": calibration_error(every, right),
    }


def work(path: Path, method: str) -> Scores:
    """Score a method on the four splits of one set."""
    data, (name, fit) = load(path, "honest"), METHODS[method]
    classes, found = np.unique(data.y), []
    for split in data.splits:
        test = split.folds[0][1]
        known, probabilities = fit(data, split)
        found.append(scores(probabilities(data.X[test]), classes, known, data.y[test]))
    return {name: {key: [one[key] for one in found] for key in found[0]}}


def summary(rows: Sequence[dict[str, Any]], accuracy: dict[str, float], sets: Sequence[str]) -> list[dict[str, Any]]:
    """Make one row a method, over the given sets; `accuracy` is the reference's, in per cent."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    at = {(row["method"], row["set"]): row for row in rows}
    table = {
        key: np.array([[np.mean(at[m, s][key]) for s in sets] for m in methods])
        for key in ("folds", "log_loss", "calibration")
    }
    right = np.vstack([100 * table["folds"], [accuracy[s] for s in sets]])
    ranks, loss_ranks = rankdata(-right.round(2), axis=0), rankdata(table["log_loss"], axis=0)
    out = []
    for i, method in enumerate([*methods, REFERENCE]):
        row: dict[str, Any] = {"sets": len(sets), "method": method, "accuracy": round(float(right[i].mean()), 2)}
        row["Friedman rank"] = round(float(ranks[i].mean()), 2)
        if i < len(methods):
            row["log-loss"] = round(float(table["log_loss"][i].mean()), 4)
            row["rank of log-loss"] = round(float(loss_ranks[i].mean()), 2)
            row["calibration error"] = round(float(table["calibration"][i].mean()), 4)
            row["CPU minutes"] = round(sum(at[method, s]["cpu_seconds"] for s in sets) / 60, 1)
        else:
            row |= dict.fromkeys(("log-loss", "rank of log-loss", "calibration error", "CPU minutes"), "")
        out.append(row)
    return out


def write_report(out: Path) -> None:
    """Write the table over all sets that every method has, and the two halves of them that development parted."""
    rows = stored(out, "probabilities-")
    reference = json.loads((RESULTS / "uci_honest.json").read_text())["settings"]["accuracy_by_set"][REFERENCE]
    has = [{row["set"] for row in rows if row["method"] == method} for method in {row["method"] for row in rows}]
    sets, every = sorted(set.intersection(*has)), sorted(reference)
    table = []
    for half, chosen in (("all", every), ("development", every[::2]), ("report", every[1::2])):
        kept = [name for name in sets if name in chosen]
        table += [{"half": half} | row for row in summary(rows, reference, kept)]
    report("uci_probabilities", table, largest=max(row["n"] for row in rows if row["set"] in sets))


def main() -> None:
    """Run the command line."""
    chosen = options(__doc__, list(METHODS), largest=1500)
    if chosen.command == "report":
        write_report(chosen.out)
        return
    for method in chosen.methods:
        extend(
            chosen.out,
            f"probabilities-{method}",
            by_size(chosen.data, chosen.largest),
            lambda path, method=method: work(path, method),
        )


if __name__ == "__main__":
    main()
