"""Figures draw a result on matplotlib Axes, in the house style; colours, sizes, frames and legends are set here.

Object-oriented: nothing here touches pyplot or its global state.
"""

import math
from typing import Any

import numpy as np

from widelimit import extras
from widelimit.inference.ensemble import Ensemble
from widelimit.inference.posterior import Posterior
from widelimit.shapes import Float
from widelimit.training.history import History
from widelimit.validation import Array

try:
    from matplotlib import colormaps
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.rcsetup import cycler
except ModuleNotFoundError as error:
    raise extras.explained(error, "a figure") from None

NORMAL_QUANTILE = 1.959963984540054
"""The 97.5 % quantile of N(0, 1)."""
BAYES, DESCENT, DATA = "#1b6ca8", "#c8553d", "#222222"
"""Colours: posterior, trained networks, data."""
PEERS = "#767676"
"""The colour of other libraries' results."""
LINES = (BAYES, DESCENT, "#d9a21b", "#7a33d1", "#6fb3e0")
"""Colours of lines without such a meaning, in this order: the colour-blind distinguish any two."""

Color = str | tuple[float, float, float, float]
PAGE, HALF_A_LINE = 5.0, 30
"""Width of a page's figure in inches; characters of 8 points in half of it."""
HOUSE: dict[str, Any] = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.labelsize": 9,
    "axes.prop_cycle": cycler(color=LINES),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "figure.constrained_layout.use": True,
    "figure.dpi": 150,
    "figure.figsize": (PAGE, 3.0),
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
}
"""The house style as settings of matplotlib, for figures of your own: `matplotlib.rc_context(plots.HOUSE)`."""


def band(
    axes: Axes,
    x: Float[np.ndarray, " m"],
    mean: Float[np.ndarray, " m"],
    variance: Float[np.ndarray, " m"],
    *,
    color: str,
    label: str,
) -> Axes:
    """Draw mean and mean +- 1.96 sd over x, which is drawn in ascending order."""
    order = np.argsort(x)
    x, mean, width = x[order], mean[order], NORMAL_QUANTILE * np.sqrt(variance[order])
    axes.fill_between(x, mean - width, mean + width, color=color, alpha=0.22, linewidth=0, label="95 % band")
    axes.plot(x, mean, color=color, linewidth=1.8, label=label)
    return axes


def points(axes: Axes, X: Float[np.ndarray, "n 1"], y: Float[np.ndarray, "n 1"]) -> Axes:
    """Draw training data as dots."""
    axes.plot(
        X[:, 0], y[:, 0], "o", color=DATA, markersize=4.5, markeredgecolor="white", markeredgewidth=0.8, label="data"
    )
    return axes


def posterior(post: Posterior, Z: Float[np.ndarray, "m 1"], *, axes: Axes) -> Axes:
    """Draw posterior mean and 95 % band of f (without the noise of an observation), and the data.

    Args:
        post: from `widelimit.posterior`, on one input feature and one output.
        Z: (m, 1) inputs.
        axes: where to draw; returned.

    Raises:
        ValueError: more than one feature or output.
    """
    _one_dimensional(post.data.X, post.data.y)
    mean, variance = _flat(post.mean(Z)), np.asarray(post.variance(Z))
    band(axes, Z[:, 0], mean, variance, color=BAYES, label="posterior mean")
    return points(axes, post.data.X, post.data.y)


def ensemble(trained: Ensemble, Z: Float[np.ndarray, "m 1"], t: float, *, axes: Axes) -> Axes:
    """Draw mean and 95 % band over random initialisations of networks trained to time t, and the data.

    Args:
        trained: from `widelimit.trained_ensemble`, on one input feature and one output.
        Z: (m, 1) inputs.
        t: a time in [0, inf], in the unit of d theta/dt = -grad C, C the mean squared error.
        axes: where to draw; returned.

    Raises: ValueError: more than one feature or output; a negative time.
    """
    data = trained.flow.data
    _one_dimensional(data.X, data.y)
    mean, variance = _flat(trained.mean(Z, t)), np.asarray(trained.variance(Z, t))
    band(axes, Z[:, 0], mean, variance, color=DESCENT, label="ensemble mean")
    return points(axes, data.X, data.y)


def learning(post: Posterior, trained: Ensemble, Z: Float[np.ndarray, "m 1"], times: Float[np.ndarray, " T"]) -> Figure:
    """Draw the NNGP posterior beside the trained ensemble at several times, on common axes, three panels a row.

    Args:
        post: from `widelimit.posterior`, on one input feature and one output.
        trained: from `widelimit.trained_ensemble`, on the same data.
        Z: (m, 1) inputs.
        times: (T,) times in [0, inf], as in `ensemble`.

    Raises: ValueError: more than one feature or output; a negative time.
    """
    rows = math.ceil((1 + len(times)) / 3)
    figure = Figure(figsize=(10, 0.6 + 2.7 * rows), layout="constrained")
    grid = figure.subplots(rows, 3, sharex=True, sharey=True, squeeze=False)
    panels = list(grid.flat)
    posterior(post, Z, axes=panels[0]).set_title("NNGP posterior")
    for t, axes in zip(times, panels[1:], strict=False):
        ensemble(trained, Z, float(t), axes=axes).set_title(f"trained networks, {time_text(float(t))}")
    for axes in panels[1 + len(times) :]:
        axes.set_visible(False)
    for axes in panels[: 1 + len(times)]:
        dress(axes)
    for axes in (panels[0], panels[len(times)]):
        axes.legend(loc="upper left", frameon=False, fontsize=8)
    low, high = post.data.y.min(), post.data.y.max()
    margin = 0.7 * (high - low if high > low else 1.0)  # the prior's band may leave it
    panels[0].set(xlim=(Z.min(), Z.max()), ylim=(low - margin, high + margin))
    figure.supxlabel("input x", fontsize=10)
    figure.supylabel("output f(x)", fontsize=10)
    return figure


def training(history: History) -> Figure:
    """Draw loss, and the change of kernel and parameters, along training; an ensemble's members are faint lines.

    The horizontal axis is the time of d theta/dt = -grad C where the optimiser follows it, else steps.

    Args:
        history: the history of a `Training`.
    """
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True)
    timed = bool(np.isfinite(history.times).all())
    x = history.times if timed else history.steps
    along(left, x, history.loss, color=DATA, label="loss")
    for values, color, label in ((history.kernel_drift, BAYES, "kernel"), (history.movement, DESCENT, "parameters")):
        if np.isfinite(values).any():
            along(right, x, values, color=color, label=label)
    left.set(yscale="log", ylabel="loss $C$ (unit of the loss)", title="loss")
    right.set(ylabel="relative change from the start", title="kernel and parameters", ylim=(0, None))
    if right.lines:
        right.legend(loc="upper left", frameon=False, fontsize=8)
    for axes in (left, right):
        dress(axes).set_xlabel("time t = learning rate x steps" if timed else "steps", fontsize=10)
    return figure


def along(axes: Axes, x: Float[np.ndarray, " R"], values: Float[np.ndarray, "R *E"], *, color: str, label: str) -> Axes:
    """Draw one line over x; for an ensemble, a faint line for each member, and their mean."""
    if values.ndim == 2:
        axes.plot(x, values, color=color, linewidth=0.6, alpha=0.3)
        values = values.mean(axis=1)
    axes.plot(x, values, color=color, linewidth=1.8, label=label)
    return axes


def time_text(t: float) -> str:
    """Format a time for a title."""
    return "$t = \\infty$" if math.isinf(t) else f"$t = {t:g}$"


def dress(axes: Axes, *, xlabel: str = "", ylabel: str = "") -> Axes:
    """Draw a plain frame: two spines, a light grid, small labels where they are given."""
    if xlabel:
        axes.set_xlabel(xlabel, fontsize=9)
    if ylabel:
        axes.set_ylabel(ylabel, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=HOUSE["grid.alpha"], linewidth=HOUSE["grid.linewidth"])
    axes.title.set_fontsize(HOUSE["axes.titlesize"])
    axes.tick_params(labelsize=HOUSE["xtick.labelsize"], which="both")
    return axes


def panels(count: int) -> tuple[Figure, list[Axes]]:
    """Make a column of panels for a page: 5 inches wide, so that a phone's screen shows its text at full size."""
    figure = Figure(figsize=(PAGE, 3.0 * count), layout=ConstrainedLayoutEngine(h_pad=0.15))
    return figure, list(figure.subplots(count, 1, squeeze=False)[:, 0])


def legend_below(axes: Axes) -> Axes:
    """Put a legend under the panel, where it hides nothing; the figure grows by its height. No labels, no legend."""
    labels = axes.get_legend_handles_labels()[1]
    if not labels:
        return axes
    columns = 2 if max(map(len, labels)) <= HALF_A_LINE else 1
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.22), frameon=False, fontsize=8, ncols=columns, columnspacing=1.2
    )
    figure = axes.get_figure(root=True)
    if figure is not None:
        figure.set_figheight(figure.get_figheight() + 0.2 * math.ceil(len(labels) / columns))
    return axes


def finish(axes: Axes, *, xlabel: str = "", ylabel: str = "", title: str = "") -> Axes:
    """Set the labels of a panel that is drawn, its frame, and its legend below."""
    axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
    return legend_below(dress(axes))


def error_bars(
    axes: Axes, x: np.ndarray, found: np.ndarray, marker: str = "o", *, color: Color = DATA, label: str = ""
) -> None:
    """Draw values and their errors, (2, k), over x."""
    axes.errorbar(x, found[0], found[1], fmt=marker, color=color, markersize=4, capsize=2, label=label)


def _flat(values: Float[Array, "m *c"]) -> Float[np.ndarray, " m"]:
    return np.asarray(values).reshape(len(values))


def _one_dimensional(X: np.ndarray, y: np.ndarray) -> None:
    if X.shape[1] != 1 or y.shape[1] != 1:
        raise ValueError(
            f"a band can be drawn over one input feature for one output; the training data have {X.shape[1]} features "
            f"and {y.shape[1]} outputs: fit one of each, or draw a slice with plots.band."
        )


def palette(count: int) -> list[tuple[float, float, float, float]]:
    """Return `count` colours from dark to light, distinguished in greyscale too."""
    return [tuple(color) for color in colormaps["viridis"](np.linspace(0.0, 0.85, count))]


def finish_over_widths(axes: Axes, widths: Float[np.ndarray, " k"], *, ylabel: str, title: str = "") -> Axes:
    """Finish a panel with two logarithmic axes, the horizontal one with the widths that were measured as its ticks."""
    axes.set(xscale="log", yscale="log")
    axes.set_xticks(widths, [f"{width:g}" for width in widths])
    axes.set_xticks([], minor=True)
    return finish(axes, xlabel="width", ylabel=ylabel, title=title)
