"""Gaussian processes classify many rows on transformed labels, through inducing points."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from widelimit import memory, validation
from widelimit.compute import linalg
from widelimit.inference import inducing_points
from widelimit.inference.class_probabilities import expected_softmax
from widelimit.inference.dirichlet import dirichlet_labels, dirichlet_offset
from widelimit.inference.inducing import factorise, from_whitened, whitened_rows
from widelimit.inference.row_sums import Features, RowData, RowSums, features, require_memory, sum_rows
from widelimit.inference.rows import Rows, input_rows
from widelimit.inference.training_set import check_finite, evenly
from widelimit.kernels.base import Kernel
from widelimit.progress import LONG, Report, progress_bar
from widelimit.shapes import Float, Int

LEFT_OUT_ROWS = 500
"""Training rows that are left out to choose a scale."""


@final
@dataclass(frozen=True)
class SparseDirichlet:
    """The posterior is that of `DirichletPosterior` where each f_k depends on the labels through inducing points only.

    f_k = offset + scale g_k, g_k ~ GP(0, K). Made by `sparse_dirichlet`; "dtc", as `SparsePosterior`.
    """

    kernel: Kernel
    inducing: Float[np.ndarray, "m d"]
    root: linalg.Cholesky
    """The factor L L^T of K(inducing, inducing)."""
    factors: Float[np.ndarray, "c m m"]
    """Lower triangles, those of I + the information of each class."""
    weights: Float[np.ndarray, "m c"]
    """mean(z) = offset + scale K(z, inducing) weights."""
    scale: float
    alpha_epsilon: float

    def __post_init__(self) -> None:
        validation.sealed(self)

    @linalg.ignore_overflow()
    def _parts(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return mean and variance of g_k within the span of the inducing points, (m, c) each, and K - Q, (m,)."""
        mean, within = np.empty((2, len(points), len(self.factors)))
        left = np.empty(len(points))
        for part, cross, phi, rest in whitened_rows(self.kernel, self.inducing, self.root, points):
            left[part] = rest
            mean[part] = cross @ self.weights
            for k, lower in enumerate(self.factors):
                within[part, k] = linalg.Cholesky(lower, len(lower), 1.0).squares(phi.copy(order="F"))
        return check_finite(mean, points), check_finite(within, points), left

    def law(self, points: Float[np.ndarray, "m d"]) -> tuple[Float[np.ndarray, "m c"], Float[np.ndarray, "m c"]]:
        """Compute mean and variance of each f_k."""
        mean, within, left = self._parts(points)
        offset = dirichlet_offset(len(self.factors), self.alpha_epsilon)
        return offset + self.scale * mean, self.scale**2 * (within + left[:, None])

    def leave_one_out(
        self, points: Float[np.ndarray, "k d"], labels: Int[np.ndarray, " k"], weights: Float[np.ndarray, " k"]
    ) -> tuple[Float[np.ndarray, "k c"], Float[np.ndarray, "k c"]]:
        """Compute `law` at some of the training rows, each without the row itself; its label and weight are given."""
        mean, within, left = self._parts(points)
        c, shape = len(self.factors), dirichlet_labels(self.alpha_epsilon)
        own = labels[:, None] == np.arange(c)
        noise = np.where(own, shape.noise_own, shape.noise_other) / self.scale**2 / weights[:, None]
        offset = dirichlet_offset(c, self.alpha_epsilon)
        target = (np.where(own, shape.own, shape.other) - offset) / self.scale
        rest = 1 - within / noise  # > 0: a row does not say more of itself than all rows do
        mean, variance = (mean - target * within / noise) / rest, within / rest
        return offset + self.scale * mean, self.scale**2 * (variance + left[:, None])


def sparse_dirichlet(
    k: Kernel,
    X: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, " n"],
    *,
    classes: int,
    scale: float,
    alphas: Sequence[float],
    weights: Float[np.ndarray, " n"],
    inducing: int,
    factors: Sequence[float] = (1.0,),
    progress: bool = False,
) -> SparseDirichlet:
    """Compute `SparseDirichlet` in one pass over the rows: n m^2 flops for all classes together, c m^2 numbers.

    The noise of a label depends on its class. So the pass adds up phi phi^T of each class's own rows, and the
    information of class k is s^2 (sum of its own rows/noise_own + sum of all others/noise_other), s the scale.
    Arguments as of `dirichlet_posterior`; inducing: how many points are drawn, seed 0. Of several alphas, and then of
    the scales factor x scale, those are taken that make the labels of LEFT_OUT_ROWS rows, each left out, the most
    likely: the sums serve all of them.

    Raises:
        TypeError, ValueError: bad data; a kernel that is 0.
        MemoryError: the sums of all classes do not fit.
    """
    rows = input_rows(k, X)
    drawn = rows.values[inducing_points.candidates(len(X), inducing, 0)]
    with progress_bar(progress and len(X) > LONG) as report:
        chosen, root = inducing_points.choose(k, drawn, inducing, 0, report)
        _require_memory(len(X), len(chosen), classes)
        made = features(k, rows, chosen, root, np.float64)
        parts = [_sums(made, rows.values[labels == j], weights[labels == j], report) for j in range(classes)]
    some = evenly(len(X), LEFT_OUT_ROWS)

    def left_out(post: SparseDirichlet) -> float:
        p = expected_softmax(*post.leave_one_out(rows.values[some], labels[some], weights[some]))
        return float(weights[some] @ np.log(np.maximum(p[np.arange(len(some)), labels[some]], np.finfo(float).tiny)))

    best = max((_condition(made, parts, scale, alpha) for alpha in alphas), key=left_out)
    tried = (_condition(made, parts, scale * factor, best.alpha_epsilon) for factor in factors if factor != 1)
    return max(itertools.chain([best], tried), key=left_out) if len(factors) > 1 else best


def _require_memory(n: int, m: int, c: int) -> None:
    require_memory(n, m, 1)
    remedy = 'use fewer inducing points, or likelihood="least_squares", which has one sum for all classes'
    memory.require(8.0 * (4 * c + 3) * m * m, f"the sums of {c} classes for {m} inducing points", remedy=remedy)


def _sums(made: Features, points: np.ndarray, weights: np.ndarray, report: Report) -> RowSums:
    """Add up the rows of one class; the moments are sum_i w_i phi_i."""
    ones = Rows("y", np.ones((len(points), 1)), (len(points), 1), None, True)
    data = RowData(Rows("X", points, points.shape, None, True), ones, np.zeros(1, int), 1 / weights)
    return sum_rows(made, data, "dtc", report=report)


def _condition(made: Features, parts: list[RowSums], scale: float, alpha_epsilon: float) -> SparseDirichlet:
    """Condition each class's process on the sums of all."""
    shape, offset = dirichlet_labels(alpha_epsilon), dirichlet_offset(len(parts), alpha_epsilon)
    own, other = scale**2 / shape.noise_own, scale**2 / shape.noise_other
    everywhere = np.sum([part.information for part in parts], axis=0)
    moments = np.sum([part.moments[:, 0] for part in parts], axis=0)
    targets = (shape.own - offset) / scale, (shape.other - offset) / scale
    factors, inner = np.empty((len(parts), *everywhere.shape)), np.empty((len(moments), len(parts)))
    for j, part in enumerate(parts):
        np.multiply(part.information, own - other, out=factors[j])
        factors[j] += other * everywhere
        factor = factorise(factors[j], np.array([1 / own]))
        sums = own * targets[0] * part.moments[:, 0] + other * targets[1] * (moments - part.moments[:, 0])
        inner[:, j] = factor.solve(sums[:, None])[:, 0]
    weights = from_whitened(made.root, inner)
    return SparseDirichlet(made.kernel, made.points, made.root, factors, weights, scale, alpha_epsilon)
