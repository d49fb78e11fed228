"""The command `widelimit demo` runs every model on every data set, and draws the figure."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
from threadpoolctl import threadpool_limits

import widelimit as wl
from widelimit import plots
from widelimit.cli import demo_data, demo_models, scores
from widelimit.cli.demo_data import DemoProblem
from widelimit.cli.demo_models import Classes, GaussianPrediction
from widelimit.writing import atomic_write

Fit = Callable[[np.ndarray, np.ndarray, np.ndarray], GaussianPrediction | Classes]
Advance = Callable[[str], None]
"""Called before each step, with its name."""

OUTPUTS: dict[str, Fit] = {
    "NNGP": demo_models.nngp,
    "NTK-GP": demo_models.ntk,
    "NTK ensemble": demo_models.ensemble,
    "RBF GP": demo_models.rbf,
    "ridge": demo_models.ridge,
}
"""Models of Gaussian outputs, for regression and, on one-hot targets, for classes."""
REGRESSION: dict[str, Fit] = {**OUTPUTS, "random forest": demo_models.forest}
CLASSIFICATION: dict[str, Fit] = {**OUTPUTS, "random forest": demo_models.forest_classes}

FIGURE_TIMES = np.array([0.0, 0.1, 1.0, 10.0, np.inf])
FIGURE_NOISE = 0.1
"""Standard deviation of the noise in the figure's data."""


@final
@dataclass(frozen=True)
class DemoRow:
    """A row is one model on one data set."""

    model: str
    scores: dict[str, float]
    seconds: float
    """Choice of hyper-parameters, fit and prediction, compilation included."""
    chosen: dict[str, float]
    remarks: tuple[str, ...]


@final
@dataclass(frozen=True)
class DemoTable:
    """A table holds all models on one data set."""

    problem: DemoProblem
    rows: tuple[DemoRow, ...]


@final
@dataclass(frozen=True)
class DemoResult:
    """The result holds all that the demo found; `seconds` of all of it."""

    seed: int
    tables: tuple[DemoTable, ...]
    figure: Path
    seconds: float


def models(problem: DemoProblem) -> dict[str, Fit]:
    """Return the models for a data set, by name."""
    return CLASSIFICATION if problem.classes else REGRESSION


def regression_scores(problem: DemoProblem, fitted: GaussianPrediction) -> dict[str, float]:
    """Compute scores of y = offset + scale (standardised y), in y's own unit."""
    mean = problem.offset[0] + problem.scale * fitted.mean[:, 0]
    sd = problem.scale * np.sqrt(fitted.variance)
    return {
        "rmse": scores.rmse(mean, problem.truth),
        "nlpd": scores.gaussian_nlpd(mean, sd, problem.truth),
        "coverage_95": scores.interval_coverage(mean, sd, problem.truth),
    }


def class_log_p(problem: DemoProblem, fitted: GaussianPrediction | Classes) -> np.ndarray:
    """Return a model's own log-probabilities, or those of the common rule for Gaussian outputs on one-hot targets."""
    if isinstance(fitted, Classes):
        return fitted.log_p
    mean = problem.offset + problem.scale * fitted.mean
    return scores.class_log_probabilities(mean, problem.scale * np.sqrt(fitted.variance))


def class_scores(problem: DemoProblem, fitted: GaussianPrediction | Classes) -> dict[str, float]:
    """Compute scores of predicted classes."""
    log_p = class_log_p(problem, fitted)
    return {
        "accuracy": scores.accuracy(log_p, problem.truth),
        "nlpd": scores.class_nlpd(log_p, problem.truth),
        "coverage_95": scores.set_coverage(log_p, problem.truth),
        "set_size": scores.mean_set_size(log_p),
    }


def row(problem: DemoProblem, name: str) -> DemoRow:
    """Fit one model, time it, score it."""
    start = time.perf_counter()
    fitted = models(problem)[name](problem.X, problem.y, problem.Z)
    seconds = time.perf_counter() - start
    if problem.classes:
        scores = class_scores(problem, fitted)
    else:
        assert isinstance(fitted, GaussianPrediction)
        scores = regression_scores(problem, fitted)
    return DemoRow(name, scores, seconds, fitted.chosen, fitted.remarks)


def figure_data() -> tuple[np.ndarray, np.ndarray]:
    """Draw twelve noisy points of sin(2 x) with a gap in the middle: x (12, 1) of mean 0 and variance 1, y (12,)."""
    x = np.concatenate([np.linspace(-1.45, -0.5, 6), np.linspace(0.5, 1.45, 6)])
    x /= x.std()
    noise = FIGURE_NOISE * np.random.default_rng(1).standard_normal(len(x))
    return x[:, None], np.sin(2 * x) + noise


def draw(path: Path) -> None:
    """Write the figure: the NNGP posterior, and the ensemble of trained networks at FIGURE_TIMES."""
    net = wl.mlp(depth=4, activation="relu", weight_std=2**0.5, bias_std=0.3)
    X, y = figure_data()
    Z = np.linspace(-2.2, 2.2, 301)[:, None]
    post = wl.posterior(wl.nngp(net), X, y, noise=FIGURE_NOISE**2)
    figure = plots.learning(post, wl.trained_ensemble(net, X, y), Z, FIGURE_TIMES)
    with atomic_write(path) as stream:
        figure.savefig(stream, format=path.suffix[1:].lower(), dpi=150)


def table(problem: DemoProblem, advance: Advance) -> DemoTable:
    """Run all models on one data set."""
    rows = []
    for name in models(problem):
        advance(f"{problem.name}: {name}")
        rows.append(row(problem, name))
    return DemoTable(problem, tuple(rows))


def step_count() -> int:
    """Count the steps that `run` announces."""
    return 1 + len(demo_data.SETS) * len(REGRESSION)


def run(*, out: Path, seed: int, advance: Advance) -> DemoResult:
    """Draw the figure, then fit every model to every data set.

    Raises:
        OSError: the figure cannot be written.
    """
    start = time.perf_counter()
    # At n = 1000 a second BLAS thread gains little; where cores are shared, threads that spin cost many times that.
    with threadpool_limits(limits=1, user_api="blas"):
        advance("figure")
        draw(out)
        tables = []
        for load, size in demo_data.SETS.values():
            problem = load(seed=seed, size=size)
            tables.append(table(problem, advance))
    return DemoResult(seed, tuple(tables), out, time.perf_counter() - start)


def row_document(row: DemoRow) -> dict[str, Any]:
    """Return a row in JSON; an infinite time, for which JSON has no number, is "inf"."""
    chosen = {name: value if np.isfinite(value) else str(value) for name, value in row.chosen.items()}
    return {
        "model": row.model,
        **row.scores,
        "seconds": row.seconds,
        "chosen": chosen,
        "remarks": list(row.remarks),
    }


def table_document(table: DemoTable) -> dict[str, Any]:
    """Return a table in JSON."""
    problem = table.problem
    return {
        "name": problem.name,
        "task": "classification" if problem.classes else "regression",
        "train": len(problem.X),
        "test": len(problem.Z),
        "features": problem.X.shape[1],
        "models": [row_document(row) for row in table.rows],
    }


def document(result: DemoResult) -> dict[str, Any]:
    """Return the result in JSON."""
    return {
        "seed": result.seed,
        "network": {
            "depth": demo_models.DEPTH,
            "activation": demo_models.ACTIVATION,
            "weight_std": demo_models.WEIGHT_STD,
            "bias_std": demo_models.BIAS_STD,
        },
        "datasets": [table_document(table) for table in result.tables],
        "figure": str(result.figure),
        "seconds": result.seconds,
    }
