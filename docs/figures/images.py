"""This script draws the figures of docs/images.md: python docs/figures/images.py (a minute or two)."""

import json
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

import widelimit as wl
from widelimit import plots
from widelimit.cli import baselines
from widelimit.cli.comparison import score
from widelimit.cli.demonstration import CLASSIFICATION, SETS, load

HERE = Path(__file__).parent
SIZES = np.array([100, 200, 400, 800, 1257])
MODELS = {"conv NNGP": plots.BAYES, "NNGP": plots.DESCENT, "SVM": plots.PEERS}
IMAGE = wl.Image(8, 8, 1)


def digits(figure: Figure) -> None:
    """Draw error and log-loss on 540 digits against the number of training images."""
    data = load("digits", seed=0, size=SETS["digits"])
    inside, outside = data.splits[0]
    panels = figure.subplots(1, 2)
    for name, color in MODELS.items():
        found = []
        for n in SIZES:
            X, Z = data.standardise(inside[:n], outside)
            fold = baselines.Fold(X, data.target[inside[:n]], Z, 0)
            found.append(score(CLASSIFICATION[name](fold), data.target[outside]))
        panels[0].plot(SIZES, [100 * (1 - s["accuracy"]) for s in found], "o-", color=color, markersize=4, label=name)
        panels[1].plot(SIZES, [s["log_loss"] for s in found], "o-", color=color, markersize=4, label=name)
    for axes, label in zip(panels, ("test error in %", "log-loss"), strict=True):
        axes.set(xscale="log", yscale="log")
        plots.finish(axes, xlabel="training images", ylabel=label, title="8 x 8 digits")


def shifts(figure: Figure) -> None:
    """Draw the correlation of an image with itself moved to the right."""
    axes = figure.subplots()
    image = np.zeros((8, 8, 1))
    image[1:7, 2:6] = load_digits().images[0, 1:7, 2:6, None] / 16
    moved = np.stack([np.roll(image, k, 1) for k in range(-2, 3)])
    flat, pool = (wl.nngp(wl.convnet(inputs=IMAGE, depth=2, bias_std=0.1, end=end)) for end in ("flatten", "pool"))
    kernels = {"end='flatten'": flat, "end='pool'": pool, "flatten, averaged, shifts=1": wl.averaged(flat, shifts=1)}
    for (name, k), style in zip(kernels.items(), ("o-", "s-", "^--"), strict=True):
        K = k.gram(moved)
        values = K[2] / np.sqrt(K[2, 2] * np.diag(K))
        axes.plot(range(-2, 3), values, style, markersize=4, label=name)
    axes.set(xticks=range(-2, 3))
    plots.finish(axes, xlabel="sites moved", ylabel="correlation with the image", title="A digit that moves")


def photographs(figure: Figure) -> None:
    """Draw accuracies on CIFAR-10 against the number of training images, from benchmarks/results."""
    path = HERE.parent.parent / "benchmarks" / "results" / "images_accuracy_cifar10.json"
    rows = json.loads(path.read_text())["rows"]
    names = list(dict.fromkeys(row["network"] for row in rows))
    panels = figure.subplots(1, 2, sharey=True)
    for axes, kind in zip(panels, ("nngp", "ntk"), strict=True):
        for name, color in zip(names, plots.palette(len(names)), strict=True):
            own = [row for row in rows if row["network"] == name]
            axes.plot([row["n"] for row in own], [100 * row[kind] for row in own], "o-", color=color, label=name)
        sizes = sorted({row["n"] for row in rows})
        axes.set(xscale="log")
        axes.set_xticks(sizes, [str(n) for n in sizes])
        axes.minorticks_off()
        plots.finish(axes, xlabel="training images", ylabel="test accuracy in %", title=f"CIFAR-10, {kind.upper()}")


FIGURES = (("digits", digits, (7.5, 3.2)), ("shifts", shifts, (4.8, 3.2)), ("photographs", photographs, (7.5, 3.4)))


def main() -> None:
    """Write all figures."""
    with rc_context({"svg.hashsalt": "widelimit", "svg.fonttype": "none"}):
        for name, draw, size in FIGURES:
            figure = Figure(figsize=size, layout="constrained")
            draw(figure)
            figure.savefig(HERE / f"{name}.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
