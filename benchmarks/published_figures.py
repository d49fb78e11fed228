"""This benchmark computes figures of four papers again, beside the equations that those papers print.

python benchmarks/published_figures.py    a minute on one core; also writes docs/figures/published_figures.svg
"""

import itertools
from pathlib import Path

import numpy as np
from common import report
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.optimize import brentq

import widelimit as wl
from widelimit import plots

SMALL = False
FIGURE = Path(__file__).parents[1] / "docs" / "figures" / "published_figures.svg"
Line = dict[str, str]
HANIN, SIMON = "Hanin and Nica 2019, arXiv 1909.05989", "Simon et al. 2021, arXiv 2110.03922"
SAXE = "Saxe et al. 2014, arXiv 1312.6120"


def line(paper: str, what: str, theirs: float, ours: float, source: str) -> Line:
    """Return one row of the table."""
    gap = f"{100 * (ours / theirs - 1):+.2g} %"
    return {
        "paper": paper,
        "what": what,
        "theirs": f"{theirs:.4g}",
        "ours": f"{ours:.4g}",
        "gap": gap,
        "ours is": source,
    }


def deep_linear_curves(axes: Axes) -> list[Line]:
    """Saxe et al. 2014: a singular value of two layers moves as s e/(e - 1 + s/s_0), e = exp(4 s t) in our unit."""
    rng = np.random.default_rng(0)
    X = np.sqrt(12) * np.linalg.qr(rng.standard_normal((12, 4)))[0]
    U, V = np.linalg.qr(rng.standard_normal((4, 4)))[0], np.linalg.qr(rng.standard_normal((3, 3)))[0]
    s, start, times = np.array([3.0, 1.5, 0.5]), 0.01, np.linspace(0.01, 4, 60)
    y = X @ U[:, :3] * s @ V
    flow = wl.deep_linear_flow(X, y, depth=2, start=start * U[:, :3] @ V, times=times)
    found = np.einsum("dk,tdc,kc->tk", U[:, :3], flow.weights, V)
    e = np.exp(4 * s * times[:, None])
    theirs = s * e / (e - 1 + s / start)
    for k, color in enumerate(plots.palette(3)):
        axes.plot(times, theirs[:, k], color=color, label=f"their sigmoid, s = {s[k]:g}")
        axes.plot(times[::4], found[::4, k], "o", color=color, markersize=3)
    plots.finish(axes, xlabel="time t", ylabel="singular value", title="Saxe et al. 2014")
    at = 15
    return [
        line(SAXE, f"mode {s[k]:g} at t = {times[at]:.2f}", theirs[at, k], found[at, k], "deep_linear_flow")
        for k in range(3)
    ]


def spread_of_relu_networks(axes: Axes) -> list[Line]:
    """Hanin and Nica 2019: E G^2/(E G)^2 of the squared signals of a relu network is exp(5 beta), beta = sum 1/n."""
    rng = np.random.default_rng(1)
    width, depths, draws = 32, (2, 4, 8), 8_000
    lines, shown = [], []
    for depth in depths:
        h = np.ones((draws, 1))
        for _ in range(depth):  # given a layer, signals of the next are independent with its mean square
            h = np.maximum(rng.standard_normal((draws, width)) * np.sqrt(2 * np.mean(h**2, axis=1, keepdims=True)), 0)
        G = 2 * np.mean(h**2, axis=1)
        parts = np.array([np.mean(p**2) / np.mean(p) ** 2 for p in np.split(G, 20)])
        theirs = np.exp(5 * depth / width)
        law = wl.finite_width(wl.mlp(depth=depth + 1, weight_std=np.sqrt(2)), np.ones((1, 3)), width=width)
        what = f"relu, {depth} hidden layers of {width}"
        first = float(law.conditional[0]) ** 2
        lines.append(line(HANIN, what, theirs, float(parts.mean()), "drawn networks"))
        lines.append(line(HANIN, what, theirs, 1 + first, "finite_width, first order"))
        shown.append((depth / width, parts.mean() - 1, parts.std() / np.sqrt(20), first))
    beta, found, error, first = np.array(shown).T
    plots.error_bars(axes, beta, np.array([found, error]), color=plots.DATA, label="drawn networks")
    axes.plot(beta, np.exp(5 * beta) - 1, color=plots.BAYES, label="their exp(5 beta) - 1")
    axes.plot(beta, first, ":", color=plots.DESCENT, label="finite_width, first order")
    axes.set(xscale="log", yscale="log")
    plots.finish(axes, xlabel="beta = depth/width", ylabel="relative variance", title="Hanin and Nica 2019")
    return lines


def learnability(axes: Axes) -> list[Line]:
    """Simon et al. 2021: parities of a hypercube are learned by L = lambda/(lambda + kappa), where sum L = n."""
    rng = np.random.default_rng(2)
    d, sizes, draws = 8, np.array([8, 16, 32, 64, 128]), 40
    k = wl.ntk(wl.mlp(depth=3, weight_std=np.sqrt(2)))
    X = np.array(list(itertools.product((-1.0, 1.0), repeat=d)))
    K, parities = np.asarray(k.gram(X)), np.stack([np.prod(X[:, :j], axis=1) for j in range(4)], axis=1)
    spectrum = wl.rkhs.spectrum(k, on="hypercube", dimension=d, degree=d, radius=np.sqrt(d))
    ours = wl.generalization(spectrum, powers=np.ones(d + 1), sizes=sizes).modes
    assert ours is not None
    values, counts = np.asarray(spectrum.eigenvalues), np.asarray(spectrum.multiplicities)
    lines = []
    for i, n in enumerate(sizes.tolist()):

        def missing(log_kappa: float, n: int = n) -> float:
            return float(np.sum(counts * values / (values + np.exp(log_kappa)))) - n

        theirs = values / (values + np.exp(brentq(missing, -60, 60)))
        shares = []
        for _ in range(draws):
            rows = rng.permutation(len(X))[:n]
            fit = K[:, rows] @ np.linalg.solve(K[np.ix_(rows, rows)], parities[rows])
            shares.append(np.mean(fit * parities, axis=0))
        mean, error = np.mean(shares, axis=0), np.std(shares, axis=0) / np.sqrt(draws)
        for j, color in zip((1, 2, 3), plots.palette(3), strict=True):
            label = {"label": f"degree {j}"} if i == 0 else {}
            axes.plot(n, theirs[j], "_", color=color, markersize=14, **label)
            axes.errorbar(n, mean[j], error[j], fmt="o", color=color, markersize=3)
        for j in (1, 2):
            what = f"parity of {j} bits, {n} of 256 corners"
            lines.append(line(SIMON, what, theirs[j], float(mean[j]), f"mean of {draws} fits, +- {error[j]:.2g}"))
            lines.append(line(SIMON, what, theirs[j], float(ours[i, j]), "generalization"))
    axes.set_xscale("log")
    plots.finish(axes, xlabel="training rows", ylabel="learnability", title="Simon et al. 2021 (their L: dashes)")
    return lines


def order_parameter(axes: Axes) -> list[Line]:
    """Li and Sompolinsky 2021: 1 - u = (P/N) (1 - r/u), one hidden layer, here solved as a quadratic equation."""
    rng = np.random.default_rng(3)
    rows = 40
    X = rng.standard_normal((rows, 60))
    net = wl.mlp(depth=2, activation="identity")
    K = X @ X.T / 60
    y = 1.5 * np.linalg.cholesky(K) @ rng.standard_normal(rows)
    r = float(y @ np.linalg.solve(K, y)) / rows
    widths = np.array([10, 20, 40, 80, 160, 640])
    theirs, found, means = [], [], []
    for width in widths.tolist():
        law = wl.proportional_posterior(net, X, y, width=width, noise=0.0)
        a = rows / width
        theirs.append(((1 - a) + np.sqrt((1 - a) ** 2 + 4 * a * r)) / 2)
        found.append(float(law.order_parameters[0]))
        means.append(law.scale)
    axes.semilogx(widths, theirs, color=plots.BAYES, label="their equation")
    axes.semilogx(widths, means, "o", color=plots.DATA, label="E[Q | y] at this width")
    plots.finish(axes, xlabel="width N", ylabel="scale of the kernel", title=f"Li and Sompolinsky 2021, P = {rows}")
    paper = "Li and Sompolinsky 2021, PRX 11, 031059"
    return [
        line(paper, f"P = {rows}, N = {width}", theirs[i], value, source)
        for i, width in enumerate(widths.tolist())
        for value, source in ((found[i], "order_parameters"), (means[i], "scale at finite N"))
    ]


def main() -> None:
    """Compute all figures and their table."""
    with rc_context({"svg.hashsalt": "widelimit", "svg.fonttype": "none"}):
        figure = Figure(figsize=(9.0, 6.4), layout="constrained")
        axes = figure.subplots(2, 2).ravel()
        parts = (deep_linear_curves, spread_of_relu_networks, learnability, order_parameter)
        lines = [row for part, own in zip(parts, axes, strict=True) for row in part(own)]
        figure.savefig(FIGURE, metadata={"Date": None})
    report("published_figures", lines)


if __name__ == "__main__":
    main()
