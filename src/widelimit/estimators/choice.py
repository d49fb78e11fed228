"""The most likely network, noise and scales are chosen on training rows."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import numpy as np
import scipy.optimize

from widelimit.estimators.design import Design
from widelimit.estimators.parameters import Hyperparameters
from widelimit.inference.left_out import distinct_rows
from widelimit.inference.noise_level import Objective, noise_level
from widelimit.inference.outputs import distinct_columns
from widelimit.inference.training_set import evenly
from widelimit.messages import first_line
from widelimit.progress import LONG, progress_bar
from widelimit.shapes import Float

SEARCH_ROWS = 800
"""Training rows that hyper-parameters are chosen on: a trial costs a kernel matrix and its eigenvectors."""
NOISE_ROWS = 4000
"""Training rows that noise and scales are chosen on: eigenvectors, at about 30 times the cost of the fit itself."""
TRIALS, TRIALS_EACH, MOST_TRIALS = 40, 20, 400
"""Networks tried in a search, at least, for each of its numbers, and at most."""


@final
@dataclass(frozen=True)
class HyperparameterChoice:
    """A choice is made on standardised targets y_j = scale_j (f + e), f ~ GP(0, K), e ~ N(0, noise/weights)."""

    design: Design
    noise: float
    scale: Float[np.ndarray, " c"] | None
    """None if the fit chooses it."""
    input_scales: Float[np.ndarray, " d"] | None = None
    """Factors of the standardised inputs."""
    others: tuple[HyperparameterChoice, ...] = ()
    """Other choices that are averaged with this one."""
    shares: Float[np.ndarray, " k"] | None = None
    """Weights in that average, of this choice and of the others."""


class SearchData(NamedTuple):
    """Hyper-parameters are chosen on these rows."""

    points: Float[np.ndarray, "n d"]
    """Inputs as the kernel takes them."""
    y: Float[np.ndarray, "n c"]
    """Standardised targets."""
    weights: Float[np.ndarray, " n"]
    noise: float | None
    """The given noise; None if it is chosen."""
    hyperparameters: Hyperparameters
    verbose: bool

    @property
    def objective(self) -> Objective:
        """Return the objective of scales and noise."""
        return "marginal_likelihood" if self.hyperparameters == "fixed" else self.hyperparameters

    def some(self, count: int) -> SearchData:
        """Return at most `count` rows, spread evenly."""
        rows = evenly(len(self.points), count)
        return self._replace(points=self.points[rows], y=self.y[rows], weights=self.weights[rows])

    def distinct(self) -> SearchData:
        """Return each row once, with the sum of its weights."""
        rows = distinct_rows(self.points, self.y, self.weights)
        return self._replace(points=self.points[rows.first], y=self.y[rows.first], weights=rows.weights)


def choose(design: Design, data: SearchData) -> HyperparameterChoice:
    """Choose network, noise (unless given) and scales: the most likely ones, of rows spread evenly over a table."""
    data = data.distinct()
    if data.hyperparameters != "fixed" and data.y.any():
        design = choose_design(design, data)
    if data.noise is not None and data.objective == "marginal_likelihood":
        return HyperparameterChoice(design, data.noise, None)
    some = data.some(NOISE_ROWS)
    with progress_bar(data.verbose and len(data.points) > LONG) as report:
        report("noise", 0, 0)
        kernel = design.kernel()
        settings: dict[str, Any] = {"objective": data.objective, "error": kernel.table_error}
        found = noise_level(np.asarray(kernel.gram(some.points)), some.y, some.weights, noise=data.noise, **settings)
    warn_at_bounds(found.bound)
    return HyperparameterChoice(design, found.noise, found.scale)


def choose_design(design: Design, data: SearchData) -> Design:
    """Search the scales of weights and biases, each trial at its best noise, on SEARCH_ROWS rows."""
    some = data.some(SEARCH_ROWS)
    settings: dict[str, Any] = {"objective": data.objective, "noise": data.noise, "columns": distinct_columns(some.y)}

    def score(candidate: Design) -> float:
        kernel = candidate.kernel()
        gram = np.asarray(kernel.gram(some.points))
        return noise_level(gram, some.y, some.weights, error=kernel.table_error, **settings).score

    return search(design, score)


def warn_at_bounds(*ends: str) -> None:
    """Warn in plain words of a noise at the "lower" or "upper" end of those that were tried."""
    if "lower" in ends:
        warnings.warn(
            "the search ended at a bound of noise: the smallest that arithmetic can distinguish from 0. The targets "
            "look like a function without noise; if one column is the target in other words, leave it out.",
            stacklevel=7,
        )
    if "upper" in ends:
        warnings.warn(
            "the search ended at a bound of noise: at least 50 times the variance of the function. The targets do not "
            "seem to depend on X, and predictions are near their mean.",
            stacklevel=7,
        )


def search(design: Design, score: Callable[[Design], float]) -> Design:
    """Search the numbers of the largest score, by Nelder and Mead's method in logarithms; those that are 0 stay 0.

    A kernel at which the score cannot be computed loses. Warns: UserWarning: all but the given one do.
    """
    causes: list[str] = []
    names = design.searched
    start = np.log([design.values[name] for name in names])

    def at(z: np.ndarray) -> Design:
        return design.changed(dict(zip(names, np.exp(z).tolist(), strict=True)))

    def loss(z: np.ndarray) -> float:
        try:
            return -score(at(z))
        except (ValueError, ArithmeticError) as error:
            causes.append(first_line(error))
            return np.inf

    score(design)  # errors in the data are reported here
    simplex = np.vstack([start, start + math.log(3) * np.eye(len(names))])
    bounds = [(float(z) - math.log(100), float(z) + math.log(100)) for z in start]
    trials = min(max(TRIALS, TRIALS_EACH * len(names)), MOST_TRIALS)
    options = {"initial_simplex": simplex, "maxfev": trials, "adaptive": len(names) > 2, "xatol": 0.05, "fatol": 0.01}
    found = scipy.optimize.minimize(loss, start, method="Nelder-Mead", bounds=bounds, options=options)
    if causes and len(causes) >= found.nfev - 1:
        warnings.warn(
            f"the network keeps its numbers: with all others that were tried the objective fails ({causes[-1]})",
            stacklevel=7,
        )
    return at(found.x)
