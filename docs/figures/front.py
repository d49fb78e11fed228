"""This script draws the figure of the README and of the site's first page: python docs/figures/front.py."""

from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

import widelimit as wl
from widelimit import plots

HERE = Path(__file__).parent
X = np.array([[-1.8], [-1.1], [-0.2], [0.4], [1.5]])
Y = np.sin(2 * X[:, 0])
Z = np.linspace(-2.6, 2.6, 131)[:, None]
NET = wl.mlp(depth=3, activation="erf", weight_std=1.6, bias_std=0.4)


def draw() -> Figure:
    """Draw networks at initialisation, networks after training, and the posterior, over one input."""
    figure = Figure(figsize=(9, 2.7), layout="constrained")
    left, middle, right = figure.subplots(1, 3, sharey=True)
    prior = wl.GaussianProcess(wl.nngp(NET))
    sd = wl.nngp(NET).diag(Z) ** 0.5
    left.fill_between(Z[:, 0], -1.96 * sd, 1.96 * sd, color=plots.DATA, alpha=0.1, linewidth=0)
    left.plot(Z[:, 0], prior.sample(Z, 5, seed=3).T, linewidth=1.2)
    plots.ensemble(wl.trained_ensemble(NET, X, Y), Z, np.inf, axes=middle)
    plots.posterior(wl.posterior(wl.nngp(NET), X, Y, noise=1e-6), Z, axes=right)
    titles = ("random networks", "trained by gradient descent", "Bayesian posterior")
    for axes, title in zip((left, middle, right), titles, strict=True):
        axes.set(title=title, xlim=(Z.min(), Z.max()), ylim=(-3.2, 3.2))
        plots.dress(axes, xlabel="input x")
    plots.dress(left, ylabel="output f(x), width = infinity")
    return figure


if __name__ == "__main__":
    with rc_context({**plots.HOUSE, "svg.hashsalt": "widelimit", "svg.fonttype": "path"}):
        draw().savefig(HERE / "front.svg", metadata={"Date": None})
