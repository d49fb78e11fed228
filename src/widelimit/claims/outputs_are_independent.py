"""Theorem 2.6: the outputs of a wide random network are independent; at finite width they are only uncorrelated."""

import numpy as np
from matplotlib.figure import Figure

import widelimit as wl
from widelimit import plots
from widelimit.claims.base import Check, Claim, Data, Effort, Measurement, at_most, slope_check
from widelimit.claims.finite import outputs
from widelimit.claims.statistics import power_law

SEED = 2602
NET = wl.mlp(depth=3, activation="relu", weight_std=2**0.5, bias_std=0.3)
POINT = np.array([[0.7, -1.1, 0.4]])
OUTPUTS = 64
SLOPE = 0.2
"""The exponent may differ by this: next orders in 1/width move it by about 0.1 from width 32; the rest is chance."""
LEVEL = 5.0
WIDTHS = {Effort.QUICK: np.array([32, 64, 128]), Effort.FULL: np.array([32, 64, 128, 256])}
"""Widths of both hidden layers."""


def correlations(f: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute mean correlation of different outputs, and of their squares; with standard errors over 20 batches.

    f: (networks, OUTPUTS). Sums over all pairs of outputs follow from sums over outputs, and need no pairs.
    """
    c = f.shape[1]

    def of(values: np.ndarray) -> np.ndarray:
        total = values.sum(axis=1)
        pairs = (total**2 - np.sum(values**2, axis=1)) / (c * (c - 1))
        return np.asarray(pairs.reshape(20, -1).mean(axis=1) / np.mean(values**2))

    found = [of(f), of(f**2 - np.mean(f**2))]
    return np.array([v.mean() for v in found]), np.array([v.std(ddof=1) / np.sqrt(20) for v in found])


def study(effort: Effort, *, shared: float) -> dict[str, np.ndarray]:
    """Compute both correlations for every width; `shared`: the part of the first output, mixed into all others."""
    values, errors = [], []
    for width in WIDTHS[effort].tolist():
        count = effort.pick(quick=4000, full=20_000)
        f = outputs(NET, POINT, widths=(width, width), output_dim=OUTPUTS, count=count, seed=SEED + width)[:, 0]
        f = np.sqrt(1 - shared**2) * f + shared * f[:, :1] if shared else f
        value, error = correlations(f)
        values.append(value)
        errors.append(error)
    return {"widths": WIDTHS[effort], "values": np.array(values).T, "errors": np.array(errors).T}


def check_squares(found: dict[str, np.ndarray]) -> Check:
    """Check the slope of the squares' correlation in log width."""
    line = power_law(found["widths"].astype(float), np.abs(found["values"][1]), found["errors"][1])
    return slope_check("slope of the correlation of squares", line, -1.0, SLOPE)


def measure(effort: Effort) -> Measurement:
    """Measure correlations against width."""
    found = study(effort, shared=0.0)
    off = np.abs(found["values"][0] / found["errors"][0]).max()
    checks = (
        at_most("correlation of outputs, largest over the widths", off, LEVEL, "standard errors: it is 0 always"),
        check_squares(found),
        at_most("... at the largest width", found["values"][1, -1], 0.1, "small there"),
    )
    return Measurement(checks, found)


def violate(effort: Effort) -> Measurement:
    """Use outputs that share a part."""
    found = study(effort, shared=0.5)
    off = np.abs(found["values"][0] / found["errors"][0]).max()
    return Measurement((at_most("correlation of outputs", off, LEVEL, "standard errors"), check_squares(found)), found)


def draw(data: Data, control: Data) -> Figure:
    """Draw correlations against width."""
    figure, (axes,) = plots.panels(1)
    x = data["widths"]
    axes.plot(x, data["values"][1, 0] * x[0] / x, color=plots.BAYES, label="1/width")
    plots.error_bars(axes, x, np.stack([data["values"][1], data["errors"][1]]), label="squares")
    size, error = np.abs(data["values"][0]), data["errors"][0]
    axes.errorbar(x, size, error, fmt="s", color=plots.DATA, mfc="white", capsize=2, label="outputs, in size")
    found = np.stack([control["values"][1], control["errors"][1]])
    plots.error_bars(axes, x, found, "x", color=plots.DESCENT, label="control, squares: shared part")
    title = "Uncorrelated at every width, independent in the limit"
    plots.finish_over_widths(axes, x, ylabel="correlation of two outputs", title=title).set_ylim(1e-6, 1)
    return figure


CLAIM = Claim(
    title="Outputs are independent in the limit",
    statement="The outputs of a random network share its hidden layers. They are uncorrelated at every width, as "
    "their last weights are independent, but their squares are correlated; in the limit the outputs are independent "
    "processes.",
    source="Theorem 2.6 of the paper.",
    prediction="Correlation 0 at every width; correlation of squares proportional to 1/width.",
    tolerance="Standard errors over 20 batches of networks; next orders in 1/width move the slope by less than 0.1.",
    control="Outputs that share a quarter of their variance.",
    seed=SEED,
    measure=measure,
    violate=violate,
    draw=draw,
)
