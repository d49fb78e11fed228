"""This script draws the figures of docs/architectures.md: python docs/figures/architectures.py."""

from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import widelimit as wl
from widelimit import plots
from widelimit.layers import Concatenate, Dense, LayerNorm, Repeat, Residual

HERE = Path(__file__).parent
BLOCKS = np.array([1, 3, 10, 30, 100, 300, 1000])
RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 3))
W = 1.3


def one_minus_rho(net: wl.Network) -> float:
    """Return 1 - rho of two inputs."""
    K = wl.nngp(net).gram(X)
    return float(1 - K[0, 1] / np.sqrt(K[0, 0] * K[1, 1]))


def residual_depth(axes: Axes) -> None:
    """Draw correlations against the depth, with branches of 1/sqrt(L) and of 1."""
    for scale, color, label in (("depth", plots.BAYES, "branches of 1/sqrt(L)"), ("one", plots.DESCENT, "of 1")):
        nets = [wl.resmlp(blocks=L, branch_scale=scale, weight_std=W).layers[:-1] for L in BLOCKS.tolist()]
        values = [one_minus_rho(wl.network(*layers, LayerNorm(), Dense())) for layers in nets]
        axes.plot(BLOCKS, values, "o-", color=color, markersize=4, label=label)
    axes.set(xscale="log", yscale="log")
    plots.finish(axes, xlabel="blocks L", ylabel=r"$1 - \rho$ of two inputs", title="Residual blocks of relu")


def normalised(axes: Axes) -> None:
    """Draw variances of the output against the depth, with a layer norm in each branch and without."""
    depths = BLOCKS[:-1]
    for first, color, label in (
        (["relu"], plots.DESCENT, "a + f(a)"),
        ([LayerNorm(), "relu"], plots.BAYES, "a + f(norm(a))"),
    ):
        nets = [wl.network(Dense(W), Repeat([Residual(*first, Dense(W))], L), Dense()) for L in depths.tolist()]
        axes.plot(depths, [wl.nngp(net).diag(X)[0] for net in nets], "o-", color=color, markersize=4, label=label)
    axes.set(xscale="log", yscale="log")
    plots.finish(axes, xlabel="blocks L", ylabel="K(x, x)", title="A norm in the branch: linear growth")


def mixed(axes: Axes) -> None:
    """Draw the posterior of sines beside relus, on data with a trend and waves."""
    x = np.linspace(-2.0, 1.0, 25)[:, None]
    y = x + 0.3 * np.sin(6 * x)
    net = wl.network(
        Dense(1.0, 1.0), Concatenate([Dense(4.0), "sin"], [Dense(2.0), "relu"], shares=(0.25, 0.75)), Dense(2.0)
    )
    plots.posterior(wl.posterior(wl.nngp(net), x, y, noise=1e-3), np.linspace(-2, 3, 300)[:, None], axes=axes)
    plots.finish(axes, xlabel="x", ylabel="f(x)", title="Sines beside relus")


def main() -> None:
    """Write one file a figure, the same bytes every time."""
    with rc_context({"svg.hashsalt": "widelimit", "svg.fonttype": "none"}):
        for draw in (residual_depth, normalised, mixed):
            figure = Figure(figsize=(4.5, 3.0), layout="constrained")
            draw(figure.subplots())
            figure.savefig(HERE / f"{draw.__name__}.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
