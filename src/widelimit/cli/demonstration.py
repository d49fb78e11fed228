"""The demonstration is the benchmark on sets that scikit-learn ships, and a figure of how a wide network learns."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
from sklearn.datasets import load_diabetes, load_digits
from sklearn.gaussian_process.kernels import RBF
from sklearn.model_selection import train_test_split
from threadpoolctl import threadpool_limits

import widelimit as wl
from widelimit import plots
from widelimit.cli import baselines, terminal
from widelimit.cli.baselines import library_model, one_hot, process_regression
from widelimit.cli.benchmark_report import grid
from widelimit.cli.comparison import ModelScores, SplitData, compare
from widelimit.cli.files import save_figure
from widelimit.cli.models import plain

SETS = {"diabetes": 442, "digits": 1797}
"""Rows of each set: disease progression of patients from 10 measurements, and images of digits, 8 x 8 pixels."""
TEST_SHARE = 0.3
NETWORK = {"depth": 3, "activation": "relu", "weight_std": math.sqrt(2), "bias_std": 0.1}
"""Every network has these settings; sqrt(2) keeps the variance of relu signals."""
CONVNET = wl.convnet(inputs=wl.Image(8, 8, 1), depth=2, weight_std=math.sqrt(2), bias_std=0.1)
"""The network for the digits."""
SCORES = {
    "regression": ("rmse", "nlpd", "coverage_95"),
    "classification": ("accuracy", "nlpd", "coverage_95", "set_size"),
}
FIGURE_TIMES = np.array([0.0, 0.1, 1.0, 10.0, np.inf])
FIGURE_NOISE = 0.1
"""Standard deviation of the noise in the figure's data."""


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
LEGEND = {
    "conv NNGP": f"NNGP of {CONVNET.depth - 1} convolutions with patches of 3 x 3, relu, and a weight for every site: "
    "the digits are images.",
    "NNGP": "Bayesian posterior of the infinitely wide network; noise and scale by the marginal likelihood of the "
    "training set.",
    "NTK-GP": "the same with the NTK for a covariance.",
    "NTK ensemble": "infinitely wide networks after gradient descent: mean and spread over random initialisations, "
    "plus the noise of NTK-GP.",
    "RBF GP": "scikit-learn's GaussianProcessRegressor, amplitude x RBF + white noise, by marginal likelihood on "
    f"{baselines.FEW} training points at most.",
    "ridge": f"RidgeCV; {len(baselines.ALPHAS)} penalties and the noise by leave-one-out.",
    "SVM": f"support vectors, SVC with an RBF kernel; penalty and width by {baselines.FOLDS} folds, sigmoids for the "
    "probabilities.",
    "random forest": f"{baselines.TREES} trees; noise by out-of-bag residuals; class probabilities are votes, "
    f"none below 1/({baselines.TREES} + classes).",
}
NOTES = (
    f"Networks: {NETWORK['depth']} layers, {NETWORK['activation']}, weight_std sqrt(2), bias_std "
    f"{NETWORK['bias_std']}; noise_std in the unit of the target.",
    "nlpd: mean negative log predictive density (of the true class) on the test set; smaller is better.",
    "cov95: share of the test set within the 95 % interval, noise included; for classes, within the smallest set of "
    "classes that holds 95 % probability.",
    "Classes: every model but the last two regresses on one-hot targets; p_k is the probability that output k is the "
    "largest.",
)


def load(name: str, *, seed: int, size: int) -> SplitData:
    """Load the first `size` rows of a set, split 70/30 and standardised by training statistics.

    Pixels are divided by their common spread, so that one that is nearly always blank keeps its scale.
    """
    classes = name == "digits"
    X, y = (load_digits if classes else load_diabetes)(return_X_y=True)
    strata = y[:size] if classes else None
    split = train_test_split(np.arange(size), test_size=TEST_SHARE, random_state=seed, stratify=strata)

    def standardise(inside: np.ndarray, outside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        centre = X[inside].mean(axis=0)
        spread = (X[inside] - centre).std(axis=None if classes else 0)
        return (X[inside] - centre) / spread, (X[outside] - centre) / spread

    return SplitData("classification" if classes else "regression", y[:size], [tuple(split)], standardise)


@final
@dataclass(frozen=True)
class DemoTable:
    """A table has the scores of all models on one data set."""

    name: str
    data: SplitData
    rows: list[ModelScores]

    def sizes(self) -> tuple[int, int, int]:
        """Return the numbers of training rows, test rows and inputs."""
        inside, outside = self.data.splits[0]
        return len(inside), len(outside), self.data.standardise(inside, outside)[0].shape[1]

    def title(self) -> str:
        """Describe the data set."""
        train, test, features = self.sizes()
        task = f"{self.data.target.max() + 1} classes" if self.data.task == "classification" else "regression"
        return f"{self.name}: {task}, {train} training and {test} test points, {features} inputs"

    def document(self) -> dict[str, Any]:
        """Return the table in JSON."""
        train, test, features = self.sizes()
        sizes = {"train": train, "test": test, "features": features}
        return {"name": self.name, "task": self.data.task, **sizes, "models": [row_document(row) for row in self.rows]}


@final
@dataclass(frozen=True)
class DemoResult:
    """The result has all tables of the demonstration, and the seconds it took."""

    seed: int
    tables: tuple[DemoTable, ...]
    figure: Path
    seconds: float

    def document(self) -> dict[str, Any]:
        """Return the result in JSON."""
        return {
            "seed": self.seed,
            "network": NETWORK,
            "convolutional_network": repr(CONVNET),
            "datasets": [table.document() for table in self.tables],
            "figure": str(self.figure),
            "seconds": self.seconds,
        }


def row_document(row: ModelScores) -> dict[str, Any]:
    """Return a row in JSON."""
    return {
        "model": row.model,
        **{name: float(values[0]) for name, values in row.scores.items()},
        "seconds": float(row.seconds[0]),
        "chosen": {name: plain(value) for name, value in row.chosen.items()},
        "remarks": list(row.remarks),
    }


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


def run(*, out: Path, seed: int, quiet: bool) -> DemoResult:
    """Draw the figure, then compare the models on every data set.

    Raises:
        OSError: the figure cannot be written.
    """
    start, tables = time.perf_counter(), []
    sets = {name: load(name, seed=seed, size=size) for name, size in SETS.items()}
    with terminal.progress(1 + sum(len(models(data)) for data in sets.values()), "steps", quiet=quiet) as advance:
        advance("figure")
        with threadpool_limits(limits=1, user_api="blas"):
            draw(out)
        for name, data in sets.items():
            step = lambda model, name=name: advance(f"{name}: {model}")  # noqa: E731
            rows = compare(data, models(data), SCORES[data.task], seed=seed, advance=step)
            tables.append(DemoTable(name, data, rows))
    return DemoResult(seed, tuple(tables), out, time.perf_counter() - start)


def show(result: DemoResult) -> None:
    """Print tables, legend, remarks and the name of the figure."""
    console = terminal.console()
    for table in result.tables:
        console.print(table.title(), style="bold")
        console.print(grid(table.rows, [score for score in table.rows[0].scores if score != "set_size"]))
        console.print()
    for name, text in LEGEND.items():
        console.print(f"{name}: {text}")
    console.print()
    for text in NOTES:
        console.print(text)
    for table in result.tables:
        for row in table.rows:
            for remark in row.remarks:
                console.print(f"{table.name}, {row.model}: remarks: {remark}")
    console.print(f"\nFigure: {result.figure}   ({result.seconds:.0f} s in all)", soft_wrap=True)
