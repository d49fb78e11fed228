"""Each row is predicted from all others in closed form, at the hyper-parameters of the fit."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from widelimit.compute import threads
from widelimit.inference.early_stopping import StoppedFlow
from widelimit.inference.posterior import Posterior
from widelimit.shapes import Float


class DistinctRows(NamedTuple):
    """The rows are merged where inputs and targets are equal: copies of an observation say nothing on its noise."""

    first: np.ndarray
    """(k,) the first row of each, ascending."""
    at: np.ndarray
    """(n,) where each row went."""
    weights: Float[np.ndarray, " k"]
    """Sums of the weights."""


def distinct_rows(
    X: Float[np.ndarray, "n d"], y: Float[np.ndarray, "n c"], weights: Float[np.ndarray, " n"]
) -> DistinctRows:
    """Merge equal rows."""
    _, first, at = np.unique(np.hstack([X, y]), axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)
    place = np.empty(len(order), int)
    place[order] = np.arange(len(order))
    at = place[at.ravel()]
    return DistinctRows(first[order], at, np.bincount(at, weights))


class LeftOut(NamedTuple):
    """The predictions of rows that are left out, in the unit of the kernel: y_i = f(x_i) + e_i, f_i by the others.

    Without row i the mean at z is E f(z) - b_i error_i, b = K(z, X) operator, and the variance grows by b_i^2 loss_i.
    """

    error: Float[np.ndarray, "n c"]
    """y_i - E[f(x_i) | the others]."""
    variance: Float[np.ndarray, " n"]
    """Variances of f(x_i), by the others."""
    operator: Float[np.ndarray, "n n"]
    loss: Float[np.ndarray, " n"]
    """0 for a flow: its variance without row i has no such form."""


class LeftOutRows(NamedTuple):
    """Each distinct training row is predicted from all others, in units of the kernel."""

    X: Float[np.ndarray, "k d"]
    outputs: tuple[LeftOut, ...]
    """One for each output, or one for all of them together."""
    expected: Float[np.ndarray, "k c"]
    """The variance of the observation at the row, by the others."""
    members: tuple[LeftOutRows, ...] = ()
    """For an average, the predictions of each of its networks."""

    @property
    def error(self) -> Float[np.ndarray, "k c"]:
        """Return observations less predictions."""
        return np.hstack([left.error for left in self.outputs])

    @property
    def scores(self) -> Float[np.ndarray, "k c"]:
        """Return errors in units of their deviations."""
        return np.asarray(self.error / np.sqrt(np.maximum(self.expected, np.finfo(np.float64).tiny)))


def left_out(law: Posterior | StoppedFlow) -> LeftOut:
    """Leave out each row.

    With Q = (K + N)^{-1}, alpha = Q y: error = alpha/Q_ii, variance = 1/Q_ii - noise_i (Rasmussen and Williams 2006,
    equation 5.12). A flow is the linear smoother H = T A_t, for which error = (y - H y)_i/(1 - H_ii) is exact at
    t = inf.

    Raises:
        ValueError: the matrix is singular; or conjugate gradients have no inverse.
    """
    return _of_posterior(law) if isinstance(law, Posterior) else _of_flow(law)


def _of_posterior(post: Posterior) -> LeftOut:
    Q = post.precision()
    own = np.diagonal(Q)
    return LeftOut(post.weights / own[:, None], post.variance_without(own), Q, 1 / own)


def _of_flow(flow: StoppedFlow) -> LeftOut:
    weights = np.sum(flow.modes**2, axis=1)
    start = flow.modes * flow.remaining
    start /= weights[:, None]  # 1 - H in modes
    left = np.einsum("ik,ik->i", start, flow.modes)  # 1 - H_ii
    left = np.where(left > 0, left, 1.0)
    error = threads.product(start, threads.product(flow.modes.T, flow.data.y)) / left[:, None]
    if flow.prior is flow.data.kernel:
        labels = flow.modes**2 @ (1 - flow.remaining) ** 2 / weights**2 - (1 - left) ** 2 / weights
        variance = start**2 @ (np.diagonal(flow.spread) - flow.noise) + flow.noise * labels
    else:
        variance = np.einsum("ij,ij->i", threads.product(start, flow.spread), start)
    del start  # as large as the next one
    operator = threads.product(flow.modes * flow.gain, flow.modes.T)
    return LeftOut(error, np.maximum(variance, 0.0) / left**2, operator, np.zeros(len(left)))
