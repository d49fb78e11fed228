"""The demo's result is printed as tables on stdout."""

from __future__ import annotations

from widelimit.cli import baselines, terminal
from widelimit.cli.benchmark_report import grid
from widelimit.cli.demonstration import CONVNET, NETWORK, DemoResult, DemoTable

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


def title(table: DemoTable) -> str:
    """Describe the data set."""
    train, test, features = table.sizes()
    task = f"{table.data.target.max() + 1} classes" if table.data.task == "classification" else "regression"
    return f"{table.name}: {task}, {train} training and {test} test points, {features} inputs"


def show(result: DemoResult) -> None:
    """Print tables, legend, remarks and the name of the figure."""
    console = terminal.console()
    for table in result.tables:
        console.print(title(table), style="bold")
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
