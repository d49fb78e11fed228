"""Input scales of an estimator are chosen by the gradients of what it fits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from widelimit.estimators.design import Design
from widelimit.estimators.networks import SEARCH_ROWS, HyperparameterChoice, choose
from widelimit.estimators.parameters import Hyperparameters
from widelimit.inference.average_gradient import gradient_scales
from widelimit.inference.training_set import evenly
from widelimit.progress import progress_bar


def choose_by_gradients(
    designs: Sequence[Design],
    points: np.ndarray,
    y: np.ndarray,
    weights: np.ndarray,
    groups: np.ndarray,
    noise: float | None,
    hyperparameters: Hyperparameters,
    verbose: bool,
) -> HyperparameterChoice:
    """Choose one of these networks and input scales by gradients and leave-one-out; the rest as `choose` does."""
    rows = evenly(len(points), SEARCH_ROWS)
    some = points[rows], y[rows], weights[rows], groups
    with progress_bar(verbose) as report:
        found = [gradient_scales(design.kernel(), *some, noise=noise, progress=report) for design in designs]
    best = max(range(len(found)), key=lambda i: found[i].score)
    scales = found[best].scales
    chosen = choose(designs[best], points * scales, y, weights, noise, hyperparameters, verbose)
    return replace(chosen, input_scales=scales)
