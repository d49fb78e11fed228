"""The demo's result is printed as tables on stdout."""

from __future__ import annotations

from collections.abc import Iterable

from rich.table import Table as Grid

from widelimit.cli import terminal
from widelimit.cli.demo import DemoResult, DemoTable
from widelimit.cli.demo_models import ACTIVATION, ALPHAS, BIAS_STD, DEPTH, FEW, FOLDS, NOISES, TIMES, TREES
from widelimit.cli.terminal import short


def numbers(values: Iterable[float]) -> str:
    """Format a grid as text."""
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


def title(table: DemoTable) -> str:
    """Describe the data set."""
    problem = table.problem
    task = f"{problem.classes} classes" if problem.classes else "regression"
    (n, d), m = problem.X.shape, len(problem.Z)
    return f"{problem.name}: {task}, {n} training and {m} test points, {d} inputs"


def grid(table: DemoTable) -> Grid:
    """Format one data set as a table of at most 80 columns."""
    first, digits = ("accuracy", 3) if table.problem.classes else ("rmse", 1)
    out = terminal.grid()
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


def show(result: DemoResult) -> None:
    """Print tables, legend, remarks and the name of the figure."""
    console = terminal.console()
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
