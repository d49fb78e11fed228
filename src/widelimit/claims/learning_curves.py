"""The test error of kernel regression on random training sets is predicted from the kernel and the targets alone."""

import math

import numpy as np
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

import widelimit as wl
from widelimit import plots
from widelimit.claims.base import Check, Claim, Data, Effort, Measurement, within
from widelimit.validation import Array

SEED = 2502
SHARES = (0.1, 0.05, 0.05)
"""Agreement of prediction and measurement in each case, of the error; or three standard errors if they are more."""
CASES = ((0.0, math.inf), (0.3, math.inf), (0.0, 100.0))
"""Noise and time of training: the interpolant, ridge regression, and gradient flow that is stopped."""
NAMES = ("interpolation", "noise 0.3", "time 100")


def digits(effort: Effort) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Return images, targets -0.1 and 0.9, and sizes of training sets."""
    rows, sizes = effort.pick(quick=(500, [30, 100, 300]), full=(1500, [10, 30, 100, 300, 1000]))
    X, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(SEED).permutation(len(X))[:rows]
    return (X[order] - X.mean(axis=0)) / 16, np.where(labels[order, None] == np.arange(10), 0.9, -0.1), sizes


def compare(effort: Effort, predicted_for: Array | None, name: str) -> tuple[list[Check], Data]:
    """Compare the curves predicted for some targets with the errors that random training sets have."""
    X, y, sizes = digits(effort)
    k, draws = wl.ntk(wl.mlp(depth=2, bias_std=0.3)), effort.pick(quick=8, full=30)
    checks, predicted, measured = [], [], []
    for (noise, time), case, share in zip(CASES, NAMES, SHARES, strict=True):
        drawn = wl.generalization(k, X, y, sizes=sizes, noise=noise, time=time, draws=draws, key=SEED)
        curve = (
            drawn
            if predicted_for is None
            else wl.generalization(k, X, predicted_for, sizes=sizes, noise=noise, time=time)
        )
        found = drawn.measured
        assert found is not None
        for n, value, mean, error in zip(sizes, curve.test_error, found.test_error, found.standard_error, strict=True):
            reason = f"{100 * share:g} % or 3 standard errors of {error:.2g}"
            checks.append(
                within(f"{name}{case}, n = {n}: predicted error", value, mean, max(share * mean, 3 * error), reason)
            )
        predicted.append(curve.test_error)
        measured.append([found.test_error, found.standard_error])
    return checks, {"sizes": np.array(sizes), "predicted": np.array(predicted), "measured": np.array(measured)}


def measure(effort: Effort) -> Measurement:
    """Predict the curves of digits, and fit random training sets."""
    checks, data = compare(effort, None, "")
    return Measurement(tuple(checks), data)


def violate(effort: Effort) -> Measurement:
    """Predict them from labels in another order, which have the same mean and variance."""
    _, y, _ = digits(effort)
    checks, data = compare(effort, np.random.default_rng(SEED + 1).permutation(y), "shuffled labels, ")
    return Measurement(tuple(checks), data)


def draw(data: Data, control: Data) -> Figure:
    """Draw both curves."""
    figure, (axes,) = plots.panels(1)
    for i, (case, color) in enumerate(zip(NAMES, plots.palette(3), strict=True)):
        axes.loglog(data["sizes"], data["predicted"][i], color=color, label=case)
        axes.loglog(data["sizes"], control["predicted"][i], color=color, linestyle=":", linewidth=0.8)
        plots.error_bars(axes, data["sizes"], data["measured"][i], color=color)
    plots.finish(
        axes, xlabel="training rows", ylabel="test error", title="Lines predicted, points measured; dotted: control"
    )
    return figure


CLAIM = Claim(
    title="Learning curves are predicted",
    statement="The mean test error of kernel regression on n random rows follows from the eigenvalues of the kernel "
    "and the squares of the target in its eigenfunctions: n/(n - sum L^2) (sum (1 - L)^2 v^2 + noise), L = "
    "lambda/(lambda + kappa). Traces over given rows hold the same sums, for gradient flow that is stopped at a time "
    "too.",
    source="Bordelon, Canatar and Pehlevan 2020, arXiv 2002.02561; Simon et al. 2021, arXiv 2110.03922.",
    prediction="On digits the predicted error is the mean over random training sets, for the interpolant, with noise, "
    "and for gradient flow at a time.",
    tolerance="5 % of the error, 10 % for the interpolant, whose error with 30 and 100 rows is predicted some 6 % too "
    "low; or 3 standard errors of the mean over training sets where they are more.",
    control="Labels in another order: every predicted error must be outside.",
    seed=SEED,
    measure=measure,
    violate=violate,
    draw=draw,
)
