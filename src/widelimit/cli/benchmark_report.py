"""The benchmark is shown as a table on stdout and as a figure."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from matplotlib.figure import Figure
from rich.table import Table as Grid

from widelimit import plots
from widelimit.cli import baselines, terminal
from widelimit.cli.comparison import SCORES, BenchmarkResult, ModelScores
from widelimit.cli.files import save_figure

LABELS = {"rmse": "rmse", "nlpd": "nlpd", "coverage_95": "cov95", "accuracy": "accuracy", "log_loss": "log loss"}
MEANINGS = {
    "rmse": "root mean squared error, in the target's unit (smaller is better)",
    "nlpd": "mean negative log predictive density (smaller is better)",
    "coverage_95": "share of the test rows within the 95 % interval (0.95 is right)",
    "accuracy": "share of the test rows whose most probable class is right",
    "log_loss": "mean negative log probability of the true class (smaller is better)",
}
LIBRARY = ("NTK", "NNGP", "conv NNGP")
SETTINGS = {
    "regression": (
        f"GPs: scikit-learn, hyper-parameters by marginal likelihood on {baselines.FEW} training rows at most",
        f"random forest: {baselines.TREES} trees, noise by out-of-bag residuals",
        f"boosting: histogram gradient boosting, defaults; noise by {baselines.FOLDS} inner folds",
        "ridge: penalty and noise by leave-one-out",
    ),
    "classification": (
        f"GPs: scikit-learn, hyper-parameters by marginal likelihood on {baselines.FEW_CLASSES} training rows",
        f"random forest: {baselines.TREES} trees; no probability below 1/({baselines.TREES} + classes)",
        "boosting: histogram gradient boosting, defaults",
        f"logistic: penalty by {baselines.FOLDS} inner folds",
        f"SVM: support vectors, RBF kernel; penalty and width by {baselines.FOLDS} inner folds, sigmoids",
    ),
}


ONE_SPLIT = {"rmse": 1}
"""Decimals of scores on a single split, which has no error; 3 of the others."""


def decimals(rows: Sequence[ModelScores], score: str) -> int:
    """Return the decimals of a column: two digits of its median standard error."""
    errors = [row.error(score) for row in rows if 0 < row.error(score) < math.inf]
    return min(max(1 - math.floor(math.log10(median(errors))), 0), 6) if errors else ONE_SPLIT.get(score, 3)


def cell(row: ModelScores, score: str, digits: int) -> str:
    """Return mean and standard error of a score; of a single split, its value."""
    mean = f"{row.mean(score):.{digits}f}"
    return mean if len(row.seconds) == 1 else f"{mean} ± {row.error(score):.{digits}f}"


def title(result: BenchmarkResult) -> str:
    """Return the title: the table's name, size and task."""
    table = result.table
    drawn = f" of {table.rows}" if table.rows != table.frame.height else ""
    return (
        f"{table.path.name}: {table.frame.height} rows{drawn}, {result.inputs} inputs, {result.folds} folds\n"
        f"{table.task} ({table.reason})"
    )


def grid(rows: Sequence[ModelScores], scores: Sequence[str]) -> Grid:
    """Make a table with one line for each model; after a single split, with its chosen hyper-parameters."""
    out, single = terminal.grid(), len(rows[0].seconds) == 1
    out.add_column("model", no_wrap=True)
    for name in (*(LABELS[score] for score in scores), "time/s" if single else "s/fold"):
        out.add_column(name, justify="right", no_wrap=True)
    if single:
        out.add_column("chosen", style="dim")
    digits = {score: decimals(rows, score) for score in scores}
    for row in rows:
        cells = [cell(row, score, digits[score]) for score in scores]
        chosen = [", ".join(f"{name} {terminal.short(value)}" for name, value in row.chosen.items())] * single
        seconds = f"{row.seconds.mean():.{1 if single else 2}f}"
        out.add_row(row.model, *cells, seconds, *chosen, style="bold" if row.model in LIBRARY else "")
    return out


def show(result: BenchmarkResult, figure: Path | None) -> None:
    """Print the table, what its columns mean, and remarks."""
    console = terminal.console()
    console.print(title(result), style="bold")
    console.print(grid(result.rows, SCORES[result.table.task]))
    console.print()
    console.print("Mean over folds ± its standard error; seconds of fit and prediction.")
    for score in SCORES[result.table.task]:
        console.print(f"{LABELS[score]}: {MEANINGS[score]}")
    names = {row.model for row in result.rows}
    names |= {"GPs"} if "RBF GP" in names else set()
    for text in SETTINGS[result.table.task]:
        if text.partition(":")[0] in names:
            console.print(text)
    for row in result.rows:
        for remark in row.remarks:
            console.print(f"{row.model} remarks: {remark}")
    if figure:
        console.print(f"Figure: {figure}", soft_wrap=True)


def draw(result: BenchmarkResult, path: Path) -> None:
    """Draw a panel for each score, with the mean and the standard error of each model.

    Raises:
        OSError: the figure cannot be written.
    """
    scores = SCORES[result.table.task]
    rows = result.rows[::-1]
    figure = Figure(figsize=(3.4 * len(scores) + 1.0, 0.42 * len(rows) + 1.5), layout="constrained")
    panels = figure.subplots(1, len(scores), sharey=True, squeeze=False)[0]
    for axes, score in zip(panels, scores, strict=True):
        for place, row in enumerate(rows):
            mean, error = row.mean(score), row.error(score)
            if math.isfinite(mean):
                color = plots.BAYES if row.model in LIBRARY else plots.PEERS
                axes.errorbar(mean, place, xerr=error, fmt="o", color=color, capsize=3, markersize=5)
        if score == "coverage_95":
            axes.axvline(0.95, color=plots.DATA, linewidth=0.8, linestyle=":")
        plots.dress(axes, xlabel=textwrap.fill(MEANINGS[score], 36))
    panels[0].set_yticks(range(len(rows)), [row.model for row in rows])
    figure.suptitle(
        f"{result.table.path.name}: {result.table.frame.height} rows, {result.folds} folds; mean ± standard error",
        fontsize="medium",
    )
    save_figure(figure, path)
