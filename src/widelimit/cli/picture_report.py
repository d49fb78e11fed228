"""The report of a fit to images shows which parts matter to the model, and the images that it predicts worst."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from widelimit import plots
from widelimit.cli import scores
from widelimit.cli.held_out import HeldOut
from widelimit.cli.models import FitResult
from widelimit.displays.axes import label
from widelimit.pages import digits, picture, table

IMAGES, CELLS, SECONDS = 60, 8, 120.0
"""Images whose parts are shuffled, parts along an axis, and seconds that this may take, at most."""
WORST = 8
"""Images that are shown because they are predicted worst."""


def loss_of_parts(result: FitResult, score: Any) -> np.ndarray | float:
    """Return the loss of score if a part of each image is replaced by that of another; or the seconds, if too long."""
    data = result.data
    rows, order = (np.random.default_rng(k).permutation(len(data.images))[:IMAGES] for k in (0, 1))
    X, others, y = data.images[rows], data.images[order], np.asarray(data.target)[rows]
    start = time.perf_counter()
    whole = score(result.estimator, X, y)
    seconds = time.perf_counter() - start
    edges = [np.linspace(0, n, min(n, CELLS) + 1).astype(int) for n in data.shape[:2]]
    loss = np.zeros([len(edge) - 1 for edge in edges])
    if loss.size * seconds > SECONDS:
        return loss.size * seconds
    for i, j in np.ndindex(*loss.shape):
        moved = X.copy()
        part = np.s_[:, edges[0][i] : edges[0][i + 1], edges[1][j] : edges[1][j + 1]]
        moved[part] = others[part]
        loss[i, j] = whole - score(result.estimator, moved, y)
    return loss


def importance(result: FitResult, score: Any, what: str) -> str:
    """Draw the loss of score for each part of the images."""
    found = loss_of_parts(result, score)
    head = "<h2>Which parts of the images matter</h2>"
    if not isinstance(found, np.ndarray):
        return f"{head}<p>Left out: predictions of changed images would take some {found:.0f} s.</p>"
    figure, (axes,) = plots.panels(1)
    largest = max(abs(found).max(), np.finfo(float).tiny)
    height, width = result.data.shape[:2]
    shown = axes.imshow(found, cmap="RdBu_r", vmin=-largest, vmax=largest, extent=(0, width, height, 0))
    figure.colorbar(shown, label=f"loss of {what}")
    axes.set_xlabel("pixel", fontsize=9)
    return (
        f"{head}<p>How much worse up to {IMAGES} training images are predicted when a part of each is that of another "
        "image. It says what the model uses.</p>" + picture(figure, "importance of the parts of the images")
    )


def worst(found: HeldOut, y: np.ndarray, result: FitResult) -> str:
    """Show the images that are predicted worst."""
    order, texts = _described(found, y, getattr(result.estimator, "classes_", None))
    figure, (axes,) = plots.panels(1)
    axes.set_axis_off()
    for k, i in enumerate(order[:WORST]):
        image = result.data.images[found.rows[i]].astype(np.float64)
        image = (image - image.min()) / max(np.ptp(image), np.finfo(float).tiny)
        panel = axes.inset_axes((k % 4 / 4, 0.5 - k // 4 / 2, 0.23, 0.42))
        panel.imshow(image if image.shape[-1] == 3 else image[..., 0], cmap="gray")
        panel.set_axis_off()
        panel.set_title(label(texts[i], 18), fontsize=8)
    names = result.data.names or list(map(str, range(len(result.data.images))))
    lines = [(names[found.rows[i]], texts[i]) for i in order[:WORST]]
    return (
        "<h3>Images with the largest errors</h3><p>Look whether their labels are right. Images are counted from 0.</p>"
        + picture(figure, "images with the largest errors")
        + table(("image", "observed, predicted"), lines)
    )


def _described(found: HeldOut, y: np.ndarray, classes: np.ndarray | None) -> tuple[np.ndarray, list[str]]:
    """Return the order of the rows, the worst first, and a caption for each."""
    if classes is None:
        z = np.abs(scores.standardised(y, found.mean, found.std))
        return np.argsort(-z, kind="stable"), [f"{digits(a)}, {digits(b)}" for a, b in zip(y, found.mean, strict=True)]
    own = found.mean[np.arange(len(y)), np.searchsorted(classes, y)]
    guesses = zip(y, classes[found.mean.argmax(1)], found.mean.max(1), strict=True)
    return np.argsort(own, kind="stable"), [f"{a}, {b} ({p:.2f})" for a, b, p in guesses]
