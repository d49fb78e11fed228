"""The demo's result as tables on stdout, its progress on stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table as Grid

from widelimit.cli.demo import Result, Table
from widelimit.cli.demo_models import ALPHAS, FEW, FOLDS, NET, NOISES, TIMES, TREES, short

WIDTH = 80
"""Columns of a table that does not go to a terminal."""


def numbers(values: Iterable[float]) -> str:
    """A grid as text."""
    return " ".join(short(value) for value in values)


LEGEND = {
    "NNGP": f"Bayesian posterior of the infinitely wide network. Noise/scale^2 in {numbers(NOISES)} and the best scale "
    "for each, by the marginal likelihood of the training set.",
    "NTK-GP": "the same with the NTK for a covariance.",
    "NTK ensemble": "infinitely wide networks after gradient descent to time t: mean and spread over random "
    f"initialisations, plus noise. t in {numbers(TIMES)}, scale and noise by the predictive density of held-out "
    f"folds ({FOLDS}) of the training set.",
    "RBF GP": "scikit-learn's GaussianProcessRegressor, amplitude x RBF + white noise, by marginal likelihood "
    f"(best of 3 starts on {FEW} training points, then all).",
    "ridge": f"RidgeCV; {len(ALPHAS)} penalties and the noise by leave-one-out.",
    "random forest": f"{TREES} trees; noise by out-of-bag residuals; class probabilities at least 1/({TREES} + classes).",
}
NOTES = (
    f"Networks: {NET['depth']} layers, {NET['activation']}, weight_std sqrt(2), bias_std {NET['bias_std']}. "
    "Noise and scale in standardised units; t in the unit of d theta/dt = -grad(mean squared error).",
    "NLPD: mean negative log predictive density (of the true class) on the test set, smaller is better. Coverage: of "
    "the 95 % interval, noise included; for classes of the smallest set that holds 95 % probability.",
    "Classes: every Gaussian model regresses on one-hot targets; p_k is the probability that output k is the largest.",
)


@contextmanager
def progress(steps: int, *, shown: bool) -> Iterator[Callable[[str], None]]:
    """A function to call before each step with its name; it moves a bar on stderr if `shown`, else does nothing."""
    bar = Progress(
        TextColumn("{task.description:24}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(file=sys.stderr),
        transient=True,
        disable=not shown,
    )
    with bar:
        task = bar.add_task("", total=steps, completed=-1)
        yield lambda name: bar.update(task, advance=1, description=name)


def grid(table: Table) -> Grid:
    """One data set as a table of at most 80 columns."""
    problem = table.problem
    task = f"{problem.classes} classes" if problem.classes else "regression"
    title = f"{problem.name}: {task}, {len(problem.X)} training and {len(problem.Z)} test points, {problem.X.shape[1]} inputs"
    out = Grid(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    out.add_column("model", no_wrap=True)
    for name in ("accuracy" if problem.classes else "RMSE", "NLPD", "coverage", "time/s"):
        out.add_column(name, justify="right", no_wrap=True)
    out.add_column("chosen", style="dim")
    for row in table.rows:
        first = f"{row.scores['accuracy']:.3f}" if problem.classes else f"{row.scores['rmse']:.1f}"
        scores = (first, f"{row.scores['nlpd']:.3f}", f"{row.scores['coverage_95']:.3f}", f"{row.seconds:.1f}")
        out.add_row(row.model, *scores, row.chosen)
    return out


def show(result: Result) -> None:
    """Print tables, legend, remarks and the name of the figure."""
    console = Console(file=sys.stdout, highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = WIDTH
    for table in result.tables:
        console.print(grid(table))
    for name, text in LEGEND.items():
        console.print(f"{name}: {text}")
    console.print()
    for text in NOTES:
        console.print(text)
    remarks = [
        f"{table.problem.name}, {row.model}: scikit-learn remarks: {remark}"
        for table in result.tables
        for row in table.rows
        for remark in row.remarks
    ]
    for text in remarks:
        console.print(text)
    console.print(f"\nFigure: {result.figure}   ({result.seconds:.0f} s in all)", soft_wrap=True)
