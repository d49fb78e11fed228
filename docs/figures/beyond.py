"""This script draws the figures of docs/beyond.md: python docs/figures/beyond.py (some minutes)."""

from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import widelimit as wl
from widelimit import plots
from widelimit.claims import mean_field_limit, proportional_width
from widelimit.claims import training_at_finite_width as claim
from widelimit.claims.base import Effort

HERE = Path(__file__).parent
RATES = 2.0 ** np.arange(-4, 4)
WIDTHS = (64, 512, 2048)
RNG = np.random.default_rng(0)
X = RNG.standard_normal((20, 4)).astype(np.float32)
Y = (np.sin(2 * X[:, 0]) + X[:, 1] * X[:, 2]).astype(np.float32)


def measured() -> dict[str, dict[str, np.ndarray]]:
    """Train networks of the claim's widths."""
    return {name: claim.study(name, Effort.QUICK) for name in claim.PROBLEMS}


def finite_width_training(axes: Axes, found: dict[str, dict[str, np.ndarray]]) -> None:
    """Draw the measured drift of the kernel over the predicted one."""
    widths = claim.WIDTHS[Effort.QUICK].astype(float)
    axes.axhline(1.0, color=plots.BAYES, linewidth=0.8, label="predicted, first order")
    for i, (name, color) in enumerate(zip(found, (plots.DESCENT, plots.DATA), strict=True)):
        plots.error_bars(axes, widths * (1 + 0.03 * i), found[name]["ratio"][0], color=color, label=name)
    axes.set_xscale("log")
    axes.set_xticks(widths, [f"{width:g}" for width in widths])
    axes.set_xticks([], minor=True)
    plots.finish(axes, xlabel="width", ylabel="measured/predicted", title="Mean drift of the tangent kernel")


def losses(parameterization: str) -> np.ndarray:
    """Return the loss after 15 steps at every width and learning rate, inf where training diverges."""
    base = {"base_width": 64} if parameterization == "mup" else {}
    net = wl.mlp(depth=3, activation="erf", weight_std=1.4, parameterization=parameterization, **base)
    found = np.full((len(WIDTHS), len(RATES)), np.inf)
    for i, width in enumerate(WIDTHS):
        params = net.init(0, input_dim=4, width=width)
        for j, rate in enumerate(RATES.tolist()):
            rate = rate / 64 if parameterization == "standard" else rate  # of the same order at width 64
            found[i, j] = _loss(net, params, rate)
    return found


def _loss(net: wl.Network, params: object, rate: float) -> float:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # rates that diverge are part of the figure
        run = wl.train(net.apply, params, X, Y, learning_rate=rate, steps=15, kernel_points=0, progress=False)
    return float(run.history.loss[-1]) if run.finished else np.inf


def learning_rates(axes: Axes, found: dict[str, np.ndarray]) -> None:
    """Draw the loss over the learning rate for every width."""
    for name, style in (("mup", "o-"), ("standard", "x:")):
        for row, width, color in zip(found[name], WIDTHS, plots.palette(len(WIDTHS)), strict=True):
            seen = row < 3
            axes.plot(RATES[seen], row[seen], style, color=color, markersize=4, label=f"{name}, width {width}")
    axes.set(xscale="log", yscale="log")
    plots.finish(
        axes, xlabel="learning rate (standard: times 64)", ylabel="loss after 15 steps", title="One rate at all widths"
    )


def write(name: str, draw: object, found: object) -> None:
    """Write one file, the same bytes every time."""
    with rc_context({"svg.hashsalt": "widelimit", "svg.fonttype": "none"}):
        figure = Figure(figsize=(4.5, 3.0), layout="constrained")
        draw(figure.subplots(), found)  # type: ignore[operator]
        figure.savefig(HERE / f"{name}.svg", metadata={"Date": None})


def write_claim(name: str, module: object) -> None:
    """Write the figure of a claim."""
    with rc_context({"svg.hashsalt": "widelimit", "svg.fonttype": "none"}):
        figure = module.draw(module.measure(Effort.QUICK).data, {})  # type: ignore[attr-defined]
        figure.savefig(HERE / f"{name}.svg", metadata={"Date": None})


if __name__ == "__main__":
    write("finite_width_training", finite_width_training, measured())
    write("learning_rates", learning_rates, {name: losses(name) for name in ("mup", "standard")})
    write_claim("mean_field_limit", mean_field_limit)
    write_claim("proportional_width", proportional_width)
