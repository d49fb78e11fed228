"""Remark 4.3: the tangent kernel is constant in training for large width; in the mean-field scaling it is not."""

import numpy as np
from matplotlib.figure import Figure

import widelimit as wl
from widelimit import plots
from widelimit.claims.base import Claim, Data, Effort, Measurement, at_most, slope_check
from widelimit.claims.finite import parameters, train_many
from widelimit.claims.statistics import mean_and_error, power_law

SEED = 4301
SLOPE = 0.2
"""Next orders in 1/width, and the statistical error over seeds."""
TIME = 2.0
"""The time of training, d theta/dt = -grad C, is such that most of the loss is gone."""
STEPS = 20
WIDTHS = {Effort.QUICK: np.array([64, 128, 256]), Effort.FULL: np.array([64, 128, 256, 512])}
"""Widths of both hidden layers."""


def problem() -> tuple[np.ndarray, np.ndarray]:
    """Return eight points in three dimensions and a smooth target."""
    X = np.random.default_rng(SEED).standard_normal((8, 3))
    return X, np.sin(2 * X[:, 0]) + X[:, 1]


def study(effort: Effort, parameterization: str) -> dict[str, np.ndarray]:
    """Compute relative drift of the kernel, mean over networks and standard error, (2, widths); the last losses."""
    X, y = problem()
    drifts, losses = [], []
    for width in WIDTHS[effort].tolist():
        net = wl.mlp(depth=3, activation="erf", weight_std=1.2, bias_std=0.3, parameterization=parameterization)
        rng, count = np.random.default_rng(SEED + width), effort.pick(quick=32, full=64)
        params = parameters(net, (3, width, width, 1), count=count, rng=rng)
        # In the mean-field scaling the kernel at the start is 1/width of the other: so is time.
        rate = TIME / STEPS * (width if parameterization == "mean_field" else 1)
        run = train_many(net, params, X, y, learning_rate=rate, steps=STEPS, record_every=STEPS, kernel_points=8)
        drifts.append(mean_and_error(run.history.kernel_drift[-1]))
        losses.append((run.history.loss[0].mean(), run.history.loss[-1].mean()))
    return {"widths": WIDTHS[effort], "drift": np.array(drifts).T, "losses": np.array(losses).T}


def measure(effort: Effort) -> Measurement:
    """Measure the drift against width."""
    found = study(effort, "ntk")
    line = power_law(found["widths"].astype(float), *found["drift"])
    left = (found["losses"][1] / found["losses"][0]).max()
    checks = (
        slope_check("slope of the kernel's drift", line, -1.0, SLOPE),
        at_most("loss at the end over that at the start", left, 0.5, "trained"),
    )
    return Measurement(checks, found)


def violate(effort: Effort) -> Measurement:
    """Use the mean-field parameterisation."""
    found = study(effort, "mean_field")
    line = power_law(found["widths"].astype(float), *found["drift"])
    return Measurement((slope_check("slope of the drift, mean field", line, -1.0, SLOPE),), found)


def draw(data: Data, control: Data) -> Figure:
    """Draw drift against width."""
    figure, (axes,) = plots.panels(1)
    x = data["widths"]
    axes.plot(x, data["drift"][0, 0] * x[0] / x, color=plots.BAYES, label="1/width")
    axes.plot(x, data["drift"][0, 0] * (x / x[0]) ** -0.5, ":", color=plots.BAYES, label="width$^{-1/2}$, the bound")
    plots.error_bars(axes, x, data["drift"], label="NTK parameterisation")
    plots.error_bars(axes, x, control["drift"], "x", color=plots.DESCENT, label="control: mean field")
    ylabel, title = r"$|\Theta_t - \Theta_0|/|\Theta_0|$", f"Change of the kernel in training to t = {TIME:g}"
    plots.finish_over_widths(axes, x, ylabel=ylabel, title=title)
    return figure


CLAIM = Claim(
    title="The tangent kernel stands still in training",
    statement="During training to any fixed time the tangent kernel of a wide network changes by O(width^-1/2), "
    "relative to itself: so the theorem, which is an upper bound. The change itself is of order 1/width, as the terms "
    "of the larger order are odd in the output weights and average out. In the mean-field scaling, whose output is "
    "divided by another root of the width, it is of order 1: features are learned.",
    source="Remark 4.3 of the paper; Jacot et al. 2018, Theorem 2; Dyer and Gur-Ari 2020, arXiv 1909.11304, and Huang "
    "and Yau 2020, arXiv 1909.08156, for the order 1/width; Mei et al. 2018 for the mean field.",
    prediction="A slope of -1 in log width of the relative drift, within the theorem's bound of -1/2, for erf "
    "networks of depth 3 trained until more than half of the loss is gone.",
    tolerance="Slope within 0.2: next orders in 1/width, and the error over 32 or 64 seeds.",
    control="The mean-field parameterisation, learning rates times the width.",
    seed=SEED,
    measure=measure,
    violate=violate,
    draw=draw,
)
