"""Regressors are compared by ten-fold root mean square error and negative log predictive density, in raw units.

python benchmarks/regression.py run DATA OUT [--methods gp boosting ...] [--largest 2000]
python benchmarks/regression.py report OUT

DATA holds .npz files with X (n, d), y (n,) and test_mask (n, 10): in fold k the rows with test_mask[:, k] are the test
set. X and y are standardised with the training rows' statistics for every method. `run` adds to OUT and can be stopped
and started again; `report` writes the results to results/, and `tables.py` the page of the documentation.
"""

from __future__ import annotations

import argparse
import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from common import report
from lines import Scores, by_size, extend, stored
from sklearn.ensemble import GradientBoostingRegressor, HistGradientBoostingRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, Matern, WhiteKernel
from sklearn.model_selection import cross_val_predict

import widelimit as wl

PARTS = 5
"""The error of a method without a predictive density is taken from predictions across folds of the training rows."""


class Fold(NamedTuple):
    """A fold holds standardised training and test rows, and the units of y."""

    X: np.ndarray
    y: np.ndarray
    X_test: np.ndarray
    y_test: np.ndarray
    unit: float


Predictor = Callable[[Fold], tuple[np.ndarray, np.ndarray]]
"""A fold -> mean and standard deviation of the test rows' observations, in units of the standardised y."""


def folds(path: Path) -> Iterator[Fold]:
    """Make the ten folds of a file, standardised with the training rows' means and deviations."""
    with np.load(path, allow_pickle=False) as z:
        X, y, masks = z["X"].astype(np.float64), z["y"].astype(np.float64), z["test_mask"]
    for test in masks.T:
        centre, scale = X[~test].mean(axis=0), X[~test].std(axis=0)
        inputs = (X - centre) / np.where(scale > 0, scale, 1)
        unit = float(y[~test].std())
        outputs = (y - y[~test].mean()) / unit
        yield Fold(inputs[~test], outputs[~test], inputs[test], outputs[test], unit)


def scores(fold: Fold, mean: np.ndarray, deviation: np.ndarray) -> list[float]:
    """Return [RMSE, mean negative log density of a Gaussian], both in the raw units of y."""
    error, spread = (fold.y_test - mean) * fold.unit, deviation * fold.unit
    density = 0.5 * math.log(2 * math.pi) + np.log(spread) + (error / spread) ** 2 / 2
    return [float(np.sqrt(np.mean(error**2))), float(np.mean(density))]


def gaussian_process(kernel: Any) -> Predictor:
    """Fit scikit-learn's process: hyper-parameters by marginal likelihood from its default start and a random one."""

    def predict(fold: Fold) -> tuple[np.ndarray, np.ndarray]:
        prior = ConstantKernel() * kernel + WhiteKernel(0.1)
        model = GaussianProcessRegressor(prior, n_restarts_optimizer=1, random_state=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(fold.X, fold.y)
        return model.predict(fold.X_test, return_std=True)

    return predict


def boosting(model: Any) -> Predictor:
    """Predict the mean by the model; one deviation for all rows, that of its errors in cross-validation."""

    def predict(fold: Fold) -> tuple[np.ndarray, np.ndarray]:
        error = fold.y - cross_val_predict(model, fold.X, fold.y, cv=PARTS)
        mean = model.fit(fold.X, fold.y).predict(fold.X_test)
        return mean, np.full(len(mean), np.sqrt(np.mean(error**2)))

    return predict


def wide(make: Callable[[], Any]) -> Predictor:
    """Predict by a regressor of this library: mean and deviation of new observations."""

    def predict(fold: Fold) -> tuple[np.ndarray, np.ndarray]:
        return make().fit(fold.X, fold.y).predict(fold.X_test, return_std=True, include_noise=True)

    return predict


TUNED = "marginal_likelihood"

METHODS: dict[str, dict[str, Predictor]] = {
    "ntk_default": {"NTKRegressor()": wide(lambda: wl.NTKRegressor())},
    "nngp_default": {"NNGPRegressor()": wide(lambda: wl.NNGPRegressor())},
    "ntk_tuned": {"NTKRegressor, tuned": wide(lambda: wl.NTKRegressor(hyperparameters=TUNED, random_state=0))},
    "nngp_tuned": {"NNGPRegressor, tuned": wide(lambda: wl.NNGPRegressor(hyperparameters=TUNED, random_state=0))},
    "boosting": {
        "gradient boosting": boosting(GradientBoostingRegressor(random_state=0)),
        "histogram gradient boosting": boosting(HistGradientBoostingRegressor(random_state=0)),
    },
    "rbf": {"GP, RBF": gaussian_process(RBF())},
    "matern": {"GP, Matern 5/2": gaussian_process(Matern(nu=2.5))},
}


def evaluate(path: Path, predictors: dict[str, Predictor]) -> Scores:
    """Compute both scores of every predictor in every fold of a set."""
    with np.load(path, allow_pickle=False) as z:
        d = z["X"].shape[1]
    return {
        name: {"d": d, "folds": [scores(fold, *predictor(fold)) for fold in folds(path)]}
        for name, predictor in predictors.items()
    }


def _with_error(values: np.ndarray) -> str:
    return f"{values.mean():.4g} ± {values.std(ddof=1) / math.sqrt(len(values)):.1g}"


def table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Make two rows a set, the smallest sets first: mean and standard error over the folds of each method's scores."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for place, score in enumerate(("RMSE", "NLPD")):
        for row in rows:
            facts = {"set": row["set"], "n": row["n"], "d": row["d"], "score": score}
            values = np.array(row["folds"])[:, place]
            found.setdefault((row["set"], score), facts)[row["method"]] = _with_error(values)
    order = ["set", "n", "d", "score", *(method for part in METHODS.values() for method in part)]
    whole = sorted(found.values(), key=lambda row: (row["n"], row["set"]))
    return [{key: row[key] for key in order if key in row} for row in whole]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    runner = commands.add_parser("run", help="score methods on the sets of a folder")
    runner.add_argument("data", type=Path)
    runner.add_argument("out", type=Path)
    runner.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    runner.add_argument("--largest", type=int, default=2000, help="rows of the largest set (default: 2000)")
    commands.add_parser("report", help="the tables from stored results").add_argument("out", type=Path)
    chosen = parser.parse_args()
    if chosen.command == "report":
        rows = stored(chosen.out)
        report("regression", table(rows), folds_by_set={f"{r['set']}: {r['method']}": r["folds"] for r in rows})
        return
    for method in chosen.methods:

        def work(path: Path, method: str = method) -> Scores:
            return evaluate(path, METHODS[method])

        extend(chosen.out, method, by_size(chosen.data, chosen.largest), work)


if __name__ == "__main__":
    main()
