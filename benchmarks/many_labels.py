"""This benchmark measures classification through inducing points on many rows, beside gradient boosting.

python benchmarks/many_labels.py mnist.npz [ROWS]         images: X_train, y_train, X_test, y_test
python benchmarks/many_labels.py chess-krvk.npz [ROWS]    a table: X, y; every fifth row is held out

Seconds are processor seconds of the fit and of the predictions, in one process. `calibration` is the mean distance of
the largest probability from the share of rows that are right, in ten bins of equal size.
"""

import resource
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from common import report
from sklearn.ensemble import HistGradientBoostingClassifier

import widelimit as wl

POINTS = 2000


def table(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Read rows and labels to fit, and those held out."""
    data = np.load(path)
    if "X_train" in data:
        X, Z = (data[name].reshape(len(data[name]), -1) / 255.0 for name in ("X_train", "X_test"))
        return X, data["y_train"], Z, data["y_test"]
    order = np.random.default_rng(0).permutation(len(data["y"]))
    held = order % 5 == 0
    X, y = data["X"].astype(np.float64), data["y"]
    return X[~held], y[~held], X[held], y[held]


def seconds() -> float:
    """Return the processor seconds of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def row(name: str, model: Any, X: np.ndarray, y: np.ndarray, Z: np.ndarray, t: np.ndarray) -> dict[str, Any]:
    """Measure one method."""
    start = seconds()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that there are many rows
        p = model.fit(X, y).predict_proba(Z)
    spent, own = seconds() - start, p[np.arange(len(t)), np.searchsorted(model.classes_, t)]
    right, sure = model.classes_[p.argmax(axis=1)] == t, p.max(axis=1)
    bins = np.array_split(np.argsort(sure), 10)
    found = {
        "method": name,
        "rows": len(X),
        "cpu_seconds": spent,
        "accuracy": float(right.mean()),
        "log_loss": float(-np.log(np.maximum(own, 1e-15)).mean()),
        "calibration": float(np.mean([abs(sure[b].mean() - right[b].mean()) for b in bins])),
    }
    print(found, flush=True)
    return found


def main() -> None:
    """Measure the methods on one table."""
    path = Path(sys.argv[1])
    X, y, Z, t = table(path)
    if len(sys.argv) > 2:
        some = np.random.default_rng(1).permutation(len(X))[: int(sys.argv[2])]
        X, y = X[some], y[some]
    models = {
        "NNGPClassifier": wl.NNGPClassifier(solver="nystrom", inducing=POINTS),
        "NTKClassifier": wl.NTKClassifier(solver="nystrom", inducing=POINTS),
        "WideClassifier": wl.WideClassifier(inducing=POINTS),
        "boosting": HistGradientBoostingClassifier(random_state=0),
    }
    rows = [row(name, model, X, y, Z, t) for name, model in models.items()]
    report(f"many_labels_{path.stem}", rows, inducing=POINTS)


if __name__ == "__main__":
    main()
