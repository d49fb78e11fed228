"""Corollary 4.4: a wide network in training is kernel gradient descent from the same f_0."""

import numpy as np
from matplotlib.figure import Figure

import widelimit as wl
from widelimit import plots
from widelimit.claims.base import Check, Claim, Data, Effort, Measurement, at_most, slope_check
from widelimit.claims.finite import parameters, train_many
from widelimit.claims.statistics import mean_and_error, power_law

SEED = 4402
SLOPE = 0.15
"""Next orders in 1/width, and the statistical error over seeds."""
NET = wl.mlp(depth=3, activation="erf", weight_std=1.2, bias_std=0.3)
STEPS, RATE = 50, 0.1
MARKS = np.array([0.2, 0.4, 1.0])
"""Outputs are compared at these times of the training."""
WIDTHS = {Effort.QUICK: np.array([64, 128, 256]), Effort.FULL: np.array([64, 128, 256, 512])}
"""Widths of both hidden layers."""


def problem() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return eight training points in three dimensions, their targets, five other points."""
    rng = np.random.default_rng(SEED)
    X, Z = rng.standard_normal((8, 3)), rng.standard_normal((5, 3))
    return X, np.sin(2 * X[:, 0]) + X[:, 1], Z


def finite(width: int, effort: Effort) -> tuple[np.ndarray, np.ndarray]:
    """Compute outputs of trained networks at Z, (marks, seeds, 5), and f_0 at X and Z, (seeds, 13)."""
    X, y, Z = problem()
    everything = np.vstack([X, Z])
    rng, count = np.random.default_rng(SEED + width), effort.pick(quick=32, full=64)
    params = parameters(NET, (3, width, width, 1), count=count, rng=rng)
    run = train_many(NET, params, X, y, learning_rate=RATE, steps=STEPS, record_every=STEPS // 10, probes=everything)
    places = np.round(MARKS * 10).astype(int)
    return run.history.outputs[places][:, :, len(X) :], run.history.outputs[0]


def infinite(start: np.ndarray, k: wl.Kernel, *, slower: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Compute kernel descent and kernel flow from every f_0, (marks, seeds, 5) each.

    Both are linear: f_t = f_0 + (descent from 0 on y - f_0(X)), one column a network.
    """
    X, y, Z = problem()
    targets, rest = (y - start[:, : len(X)]).T, start[:, len(X) :]
    steps = np.round(MARKS * STEPS / slower).astype(int)
    descent = wl.gradient_descent(k, X, targets, learning_rate=RATE, steps=steps)
    flow = wl.gradient_flow(k, X, targets)
    moved = np.asarray(descent.predict(Z)), np.asarray(flow.predict(Z, MARKS * STEPS * RATE / slower))
    return rest + moved[0].transpose(0, 2, 1), rest + moved[1].transpose(0, 2, 1)


def study(effort: Effort, k: wl.Kernel, *, slower: float = 1.0) -> dict[str, np.ndarray]:
    """Compute gaps between networks and kernel descent, (marks, 2, widths); between descent and flow, (marks,)."""
    found, steps = [], np.zeros(len(MARKS))
    for width in WIDTHS[effort].tolist():
        outputs, start = finite(width, effort)
        descent, flow = infinite(start, k, slower=slower)
        gaps = np.sqrt(np.mean((outputs - descent) ** 2, axis=2))
        found.append([mean_and_error(gap) for gap in gaps])
        steps = np.sqrt(np.mean((flow - descent) ** 2, axis=(1, 2)))
    return {"widths": WIDTHS[effort], "gaps": np.array(found).transpose(1, 2, 0), "steps": steps}


def slopes(found: dict[str, np.ndarray], text: str) -> list[Check]:
    """Check the slope at every mark."""
    checks = []
    for mark, gaps in zip(MARKS, found["gaps"], strict=True):
        line = power_law(found["widths"].astype(float), *gaps)
        name = f"slope of the gap at t = {mark * STEPS * RATE:g}{text}"
        checks.append(slope_check(name, line, -0.5, SLOPE))
    return checks


def measure(effort: Effort) -> Measurement:
    """Measure slopes at three times; steps against flow."""
    found = study(effort, wl.ntk(NET))
    X, _, _ = problem()
    bound = wl.max_learning_rate(wl.ntk(NET), X)
    checks = [
        *slopes(found, ""),
        at_most("learning rate over the largest stable one", RATE / bound, 0.25, "small steps"),
        at_most("gap between steps and flow, largest", found["steps"].max(), 0.05, "of order rate/bound"),
    ]
    return Measurement(tuple(checks), found)


def violate(effort: Effort) -> Measurement:
    """Use half the time; and the NNGP kernel in the place of the NTK."""
    half, other = study(effort, wl.ntk(NET), slower=2.0), study(effort, wl.nngp(NET))
    checks = [slopes(half, ", half the time")[0], *slopes(other, ", NNGP kernel")]
    return Measurement(tuple(checks), {"widths": half["widths"], "half": half["gaps"], "other": other["gaps"]})


def draw(data: Data, control: Data) -> Figure:
    """Draw gaps against width at three times."""
    figure, (axes,) = plots.panels(1)
    x = data["widths"]
    for mark, gaps, color in zip(MARKS, data["gaps"], plots.palette(len(MARKS)), strict=True):
        axes.plot(x, gaps[0, 0] * (x / x[0]) ** -0.5, color=color, linewidth=0.8)
        plots.error_bars(axes, x, gaps, color=color, label=f"t = {mark * STEPS * RATE:g}")
    half, other = "control: half the time, t = 1", "control: NNGP kernel, t = 5"
    plots.error_bars(axes, x, control["half"][0], "x", color=plots.DESCENT, label=half)
    plots.error_bars(axes, x, control["other"][-1], "+", color=plots.DESCENT, label=other)
    title = "Trained networks against kernel descent; lines: width$^{-1/2}$"
    plots.finish_over_widths(axes, x, ylabel="rms gap of outputs", title=title)
    return figure


CLAIM = Claim(
    title="A trained network is kernel gradient descent",
    statement="As the width grows, the outputs of a network in training at any fixed time tend to those of kernel "
    "gradient descent with the limiting tangent kernel from the same f_0; small steps to those of the flow.",
    source="Corollary 4.4 of the paper; Lee et al. 2019, arXiv 1902.06720, for the rate.",
    prediction="A gap off the training set that falls as width^-1/2 at t = 1, 2 and 5; steps of a quarter of the "
    "stable rate or less stay within 0.05 of the flow.",
    tolerance="Slopes within 0.15: next orders in 1/width, and the error over 32 or 64 seeds.",
    control="Half the time; the NNGP kernel in the place of the tangent kernel.",
    seed=SEED,
    measure=measure,
    violate=violate,
    draw=draw,
)
