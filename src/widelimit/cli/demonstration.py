"""The demonstration is the benchmark on bundled data, with one split, and a figure of how a wide network learns."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
from sklearn.gaussian_process.kernels import RBF
from threadpoolctl import threadpool_limits

import widelimit as wl
from widelimit import plots
from widelimit.cli import baselines, demo_data
from widelimit.cli.baselines import library_model, one_hot, process_regression
from widelimit.cli.comparison import ModelScores, SplitData, compare
from widelimit.cli.files import save_figure
from widelimit.cli.models import plain

NETWORK = {"depth": 3, "activation": "relu", "weight_std": math.sqrt(2), "bias_std": 0.1}
"""Every network has these settings; sqrt(2) keeps the variance of relu signals."""


def library_models(task: str, **given: Any) -> dict[str, Callable[..., Any]]:
    """Return this library's models, by name."""
    settings = {**NETWORK, "normalize": "none", **given}  # the inputs are standardised already
    return {
        "NNGP": library_model("nngp", task, settings),
        "NTK-GP": library_model("ntk", task, settings),
        "NTK ensemble": library_model("ntk", task, {**settings, "ensemble": True}),
    }


REGRESSION: dict[str, Callable[..., Any]] = {
    **library_models("regression"),
    "RBF GP": process_regression(RBF),
    "ridge": baselines.ridge,
    "random forest": baselines.forest,
}
CONVNET = wl.convnet(inputs=wl.Image(8, 8, 1), depth=2, weight_std=math.sqrt(2), bias_std=0.1)
"""For the digits."""
CLASSIFICATION: dict[str, Callable[..., Any]] = {
    "conv NNGP": library_model(
        "nngp", "classification", {"network": CONVNET, "normalize": "none", "likelihood": "least_squares"}
    ),
    **library_models("classification", likelihood="least_squares"),
    "RBF GP": one_hot(process_regression(RBF)),
    "ridge": one_hot(baselines.ridge),
    "random forest": baselines.forest_classes,
    "SVM": baselines.support_vectors,
}
SCORES = {
    "regression": ("rmse", "nlpd", "coverage_95"),
    "classification": ("accuracy", "nlpd", "coverage_95", "set_size"),
}
FIGURE_TIMES = np.array([0.0, 0.1, 1.0, 10.0, np.inf])
FIGURE_NOISE = 0.1
"""Standard deviation of the noise in the figure's data."""


@final
@dataclass(frozen=True)
class DemoTable:
    """A table holds all models on one data set."""

    name: str
    data: SplitData
    rows: list[ModelScores]

    def sizes(self) -> tuple[int, int, int]:
        """Return the numbers of training rows, test rows and inputs."""
        inside, outside = self.data.splits[0]
        return len(inside), len(outside), self.data.standardise(inside, outside)[0].shape[1]


@final
@dataclass(frozen=True)
class DemoResult:
    """The result holds everything that the demo found, and the seconds it took."""

    seed: int
    tables: tuple[DemoTable, ...]
    figure: Path
    seconds: float


def models(data: SplitData) -> Mapping[str, Callable[..., Any]]:
    """Return the models for a data set, by name."""
    return CLASSIFICATION if data.task == "classification" else REGRESSION


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
    save_figure(plots.learning(post, wl.trained_ensemble(net, X, y), Z, FIGURE_TIMES), path)


def step_count() -> int:
    """Count the steps that `run` announces."""
    return 1 + sum(len(CLASSIFICATION if name == "digits" else REGRESSION) for name in demo_data.SETS)


def run(*, out: Path, seed: int, advance: Callable[[str], None]) -> DemoResult:
    """Draw the figure, then compare the models on every data set; `advance` is called before each step with its name.

    Raises:
        OSError: the figure cannot be written.
    """
    start = time.perf_counter()
    advance("figure")
    with threadpool_limits(limits=1, user_api="blas"):
        draw(out)
    tables = tuple(
        table(name, load(seed=seed, size=size), seed, advance) for name, (load, size) in demo_data.SETS.items()
    )
    return DemoResult(seed, tables, out, time.perf_counter() - start)


def table(name: str, data: SplitData, seed: int, advance: Callable[[str], None]) -> DemoTable:
    """Compare the models on one data set."""
    scores = SCORES[data.task]
    rows = compare(data, models(data), scores, seed=seed, advance=lambda model: advance(f"{name}: {model}"))
    return DemoTable(name, data, rows)


def row_document(row: ModelScores) -> dict[str, Any]:
    """Return a row in JSON."""
    return {
        "model": row.model,
        **{name: float(values[0]) for name, values in row.scores.items()},
        "seconds": float(row.seconds[0]),
        "chosen": {name: plain(value) for name, value in row.chosen.items()},
        "remarks": list(row.remarks),
    }


def table_document(table: DemoTable) -> dict[str, Any]:
    """Return a table in JSON."""
    train, test, features = table.sizes()
    return {
        "name": table.name,
        "task": table.data.task,
        "train": train,
        "test": test,
        "features": features,
        "models": [row_document(row) for row in table.rows],
    }


def document(result: DemoResult) -> dict[str, Any]:
    """Return the result in JSON."""
    return {
        "seed": result.seed,
        "network": NETWORK,
        "convolutional_network": repr(CONVNET),
        "datasets": [table_document(table) for table in result.tables],
        "figure": str(result.figure),
        "seconds": result.seconds,
    }
