"""The demo's result as tables on stdout, its progress on stderr."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table as Grid

from widelimit.cli.demo import Result, Table
from widelimit.cli.demo_models import ACTIVATION, ALPHAS, BIAS_STD, DEPTH, FEW, FOLDS, NOISES, TIMES, TREES

WIDTH = 80
"""Columns of a table that does not go to a terminal."""


def short(value: float) -> str:
    """About two digits: 0.39, 500, 1e5, 9.5e-7, inf."""
    if 100 <= value < 10_000:
        return f"{value:.0f}"
    mantissa, e, exponent = f"{value:.2g}".partition("e")
    return mantissa + e + (str(int(exponent)) if e else "")


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
    "random forest": f"{TREES} trees; noise by out-of-bag residuals; class probabilities are votes, "
    f"none below 1/({TREES} + classes).",
}
NOTES = (
    f"Networks: {DEPTH} layers, {ACTIVATION}, weight_std sqrt(2), bias_std {BIAS_STD}; noise (a variance) and scale in "
    "standardised units; t in the unit of d theta/dt = -grad(mean squared error).",
    "nlpd: mean negative log predictive density (of the true class) on the test set; smaller is better.",
    "cov95: share of the test set within the 95 % interval, noise included; for classes, within the smallest set of "
    "classes that holds 95 % probability.",
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
        task, done = bar.add_task("", total=steps), itertools.count()
        yield lambda name: bar.update(task, completed=next(done), description=name)


def title(table: Table) -> str:
    """What the data set is."""
    problem = table.problem
    task = f"{problem.classes} classes" if problem.classes else "regression"
    (n, d), m = problem.X.shape, len(problem.Z)
    return f"{problem.name}: {task}, {n} training and {m} test points, {d} inputs"


def grid(table: Table) -> Grid:
    """One data set as a table of at most 80 columns."""
    first, digits = ("accuracy", 3) if table.problem.classes else ("rmse", 1)
    out = Grid(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    out.add_column("model", no_wrap=True)
    for name in (first, "nlpd", "cov95", "time/s"):
        out.add_column(name, justify="right", no_wrap=True)
    out.add_column("chosen", style="dim")
    for row in table.rows:
        scores = (
            f"{row.scores[first]:.{digits}f}",
            f"{row.scores['nlpd']:.3f}",
            f"{row.scores['coverage_95']:.3f}",
            f"{row.seconds:.1f}",
        )
        out.add_row(row.model, *scores, ", ".join(f"{name} {short(value)}" for name, value in row.chosen.items()))
    return out


def show(result: Result) -> None:
    """Print tables, legend, remarks and the name of the figure."""
    console = Console(file=sys.stdout, highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = WIDTH
    for table in result.tables:
        console.print(title(table), style="bold")
        console.print(grid(table))
        console.print()
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
