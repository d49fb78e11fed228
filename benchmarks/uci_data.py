"""The small UCI sets of Fernandez-Delgado et al. 2014 are .npz files, with two ways to tune and test on them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.model_selection import ShuffleSplit, StratifiedShuffleSplit

FOLDS = 4
PROTOCOLS = ("published", "honest")


Fold = tuple[np.ndarray, np.ndarray]
"""Numbers of the training rows and of the test rows."""


@dataclass(frozen=True)
class Split:
    """A split has a fold of rows on which hyper-parameters are chosen, and those on which the choice is scored."""

    tuning: Fold
    folds: tuple[Fold, ...]


@dataclass(frozen=True)
class DataSet:
    """A data set has inputs (n, d), standardised over all rows by their source, labels (n,) and a protocol's splits."""

    name: str
    X: np.ndarray
    y: np.ndarray
    splits: list[Split]


def _published(z: dict[str, np.ndarray], folds: list[Fold]) -> list[Split]:
    """Return one choice on one split in halves, which shares its rows with the four test sets (Arora et al. 2020)."""
    return [Split((z["tune_train"], z["tune_val"]), tuple(folds))]


def _honest(z: dict[str, np.ndarray], folds: list[Fold]) -> list[Split]:
    """Return a choice for every fold, on its training rows in halves: a test row is never seen before it is scored."""
    splits = []
    for train, test in folds:
        rare = np.unique(z["y"][train], return_counts=True)[1].min() < 2
        halves = (ShuffleSplit if rare else StratifiedShuffleSplit)(n_splits=1, test_size=0.5, random_state=0)
        first, second = next(halves.split(train, z["y"][train]))
        splits.append(Split((train[first], train[second]), ((train, test),)))
    return splits


def load(path: Path, protocol: str) -> DataSet:
    """Load the set in one file: X, y, tune_train, tune_val, cv_train_0 .. 3, cv_test_0 .. 3 (row numbers)."""
    with np.load(path, allow_pickle=False) as archive:
        z = dict(archive)
    folds = [(z[f"cv_train_{k}"], z[f"cv_test_{k}"]) for k in range(FOLDS)]
    splits = {"published": _published, "honest": _honest}[protocol](z, folds)
    return DataSet(path.stem, z["X"].astype(np.float64), z["y"], splits)


def options(
    about: str | None, methods: Sequence[str], *, largest: int, protocols: Sequence[str] = ()
) -> argparse.Namespace:
    """Read the command line: `run DATA OUT` with options, or `report OUT`; the first protocol is the default."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    runner = commands.add_parser("run", help="score methods on the sets of a folder")
    runner.add_argument("data", type=Path, help="folder of .npz files; keys as in uci_data.load")
    runner.add_argument("out", type=Path, help="folder of the results, one file a method")
    runner.add_argument("--methods", nargs="+", choices=methods, default=methods)
    if protocols:
        runner.add_argument("--protocol", choices=protocols, default=protocols[0])
    runner.add_argument("--largest", type=int, default=largest, help="rows of the largest set (default: %(default)s)")
    commands.add_parser("report", help="the tables from stored results").add_argument("out", type=Path)
    return parser.parse_args()
