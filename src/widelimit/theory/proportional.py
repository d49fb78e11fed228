"""The posterior of networks whose width is comparable with the number of rows: their kernel has a random scale.

`proportional_posterior` is the public function, `ProportionalPosterior` its result; `scale_mixtures` has the law of
the scale.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, final

import numpy as np
import scipy.linalg

from widelimit import memory, validation
from widelimit.activations.base import Activation
from widelimit.activations.tabulated.moments import mean_shares
from widelimit.architecture.builders import network
from widelimit.architecture.network import Network
from widelimit.arithmetic import arithmetic
from widelimit.compute import linalg
from widelimit.inference.training_set import Prediction
from widelimit.interpreter import interpreted
from widelimit.kernels.network import nngp
from widelimit.shapes import Float
from widelimit.theory.finite_width import dense_steps, hidden_widths
from widelimit.theory.requests import probes_beside, require_one_output
from widelimit.theory.scale_mixtures import SMALLEST, posterior_scales, saddle_point
from widelimit.validation import Array

WIDEST = 10**7
"""Units of a hidden layer, at most; wider networks have the posterior of infinite width."""
_ODD = 1e-10
"""Means below this share of the root mean square are rounding: the activation is odd, and its mean 0."""
_LOST = 100.0
"""Noise below this multiple of the rounding of F is refused: eigenvalues of K relative to F + noise have no digits."""
_PROBED = np.multiply.outer([-1.0, 1.0], np.geomspace(1e-6, 1e6, 97)).ravel()
"""Arguments at which an activation is compared with the identity, or with its own multiple."""


@final
@dataclass(frozen=True)
class ProportionalPosterior:
    """The output sqrt(Q) g + h, g ~ GP(0, K), h ~ GP(0, F), has this posterior at m points."""

    width: tuple[int, ...]
    """The width of each hidden layer."""
    exact: bool
    """True if all activations are the identity; otherwise the law of the scale Q is an approximation."""
    mean: Float[np.ndarray, " m"]
    """The posterior mean of f, over networks of this width."""
    variance: Float[np.ndarray, " m"]
    """The posterior variance of f, without the noise of the targets."""
    scale: float
    """E[Q | y], the factor by which the data renormalise K; 1 at infinite width."""
    log_evidence: float
    """ln p(y)."""
    order_parameters: Float[np.ndarray, " L"]
    """q_l of each hidden layer in the proportional limit, where Q = prod_l q_l."""
    limit: Prediction
    """Mean and variance in the proportional limit, Q = prod_l q_l: width and rows grow at a fixed ratio."""
    infinite: Prediction
    """Mean and variance at infinite width, Q = 1."""


class _Data(NamedTuple):
    """y ~ N(0, Q K + F + noise) is N(0, Q diag(values) + unit) in the coordinates in which both parts are diagonal."""

    values: Float[np.ndarray, " n"]
    """The eigenvalues of K in these coordinates; 0 for those that K does not reach."""
    unit: float
    """1, the variance of F + noise in these coordinates; 0 without noise."""
    y: Float[np.ndarray, " n"]
    constant: float
    """The part of ln p(y | Q) that does not depend on Q."""
    scaled: Float[np.ndarray, "n m"]
    """Cov(y, f) at the points is Q scaled + fixed."""
    fixed: Float[np.ndarray, "n m"]
    variance: Float[np.ndarray, " m"]
    """Var f at the points is Q variance + fixed_variance."""
    fixed_variance: Float[np.ndarray, " m"]

    def log_likelihood(self, Q: Float[np.ndarray, " S"]) -> Float[np.ndarray, " S"]:
        """Compute the part of ln p(y | Q) that depends on Q."""
        reached = self.values > 0
        variance = np.multiply.outer(np.clip(Q, SMALLEST, 1 / SMALLEST), self.values[reached]) + self.unit
        with np.errstate(over="ignore"):
            return np.asarray(-np.sum(np.log(variance) + self.y[reached] ** 2 / variance, axis=1) / 2)

    def action_slope(self, Q: float) -> float:
        """Compute dS/d ln Q of the action S = -2 ln p(y | Q)."""
        scaled = min(max(Q, SMALLEST), 1 / SMALLEST) * self.values
        variance = scaled + self.unit
        with np.errstate(over="ignore"):
            return float(np.sum(scaled / variance * (1 - self.y**2 / variance)))

    def predict(self, Q: Float[np.ndarray, " S"], weights: Float[np.ndarray, " S"]) -> Prediction:
        """Compute mean and variance of f at the m points, averaged over values of Q with these weights."""
        inverse = 1 / (np.multiply.outer(Q, self.values) + self.unit)
        means = (Q[:, None] * inverse * self.y) @ self.scaled + (inverse * self.y) @ self.fixed
        by_0, by_1, by_2 = (np.asarray((weights * Q**power) @ inverse)[:, None] for power in range(3))
        explained = np.sum(by_2 * self.scaled**2 + 2 * by_1 * self.scaled * self.fixed + by_0 * self.fixed**2, axis=0)
        mean = weights @ means
        prior = float(weights @ Q) * self.variance + self.fixed_variance
        return Prediction(mean, np.maximum(prior - explained, 0.0) + weights @ (means - mean) ** 2)


def proportional_posterior(
    net: Network,
    X: Float[Array, "n d"],
    y: Float[Array, " n"],
    *,
    width: int | Sequence[int],
    noise: float,
    probes: Float[Array, "m d"] | None = None,
) -> ProportionalPosterior:
    """n_l (1 - q_l) = tr C^{-1} Q K - y^T C^{-1} Q K C^{-1} y, C = Q K + F + noise, Q = prod_l q_l.

    Computes the Bayesian posterior of networks with weights from N(0, 1) and any number of hidden units n_l, comparable
    with the number of rows or not. The output of a deep linear network is exactly sqrt(Q) g + h: g is the Gaussian
    process of infinite width with kernel K, Q = prod_l chi^2(n_l)/n_l, and h the bias of the last layer with kernel F.
    Its posterior is an integral over Q alone, and its evidence a Meijer G function (Hanin and Zlokapa 2023, arXiv
    2212.14457). If widths and rows grow together, Q tends to the solution of the equation above (Li and Sompolinsky
    2021, PRX 11, 031059). For other activations this is an approximation. It takes hidden signals for Gaussian vectors
    (Pacelli et al. 2023, arXiv 2209.04882). With one hidden layer it also puts the mean of the signals into F, as if
    that part of f were independent of Q, which is right to O(1/width) only: networks of few units differ.

    Args:
        net: layers Dense, activation, Dense, .. in the NTK parameterisation, on rows: one hidden layer with any
            activation; or several with activations of degree 1 (identity, relu) and no bias between the first and the
            last dense layer.
        X: (n, d) training inputs.
        y: (n,) targets.
        width: n_l, one number for all hidden layers or one for each, 1 to 1e7.
        noise: variance of the targets' noise, >= 0, as in `posterior`; above the rounding of F if F is not 0.
        probes: (m, d) inputs at which f is predicted; X unless given.

    Returns:
        A `ProportionalPosterior`.

    Raises:
        TypeError, ValueError: another kind of network, targets of several outputs, noise below the rounding of F,
            noise = 0 with a singular kernel or targets that are all 0.
        MemoryError: the matrices do not fit. ArithmeticError: the posterior of Q is not resolved.
    """
    counts = _checked(net, width)
    rows = np.asarray(net.rows("X", validation.concrete_points("X", X)), np.float64)
    targets = np.asarray(validation.targets("y", y, len(rows)), np.float64).reshape(len(rows), -1)
    require_one_output(targets)
    variance_of_noise = float(validation.finite_scalar("noise", noise, at_least=0.0))
    points = rows if probes is None else probes_beside(net, rows, probes)
    n, m = len(rows), len(points)
    numbers = 5 * n * n + 4 * n * m + 9000 * n + 3000 * m + 4e6
    memory.require(8.0 * numbers, f"a kernel of {n} rows", remedy="use fewer rows")
    data = _data(net, rows, targets[:, 0], variance_of_noise, points)
    widths = np.array(counts, np.float64)
    nodes, weights, log_integral = posterior_scales(widths, data.log_likelihood)
    q = saddle_point(widths, data.action_slope, lambda Q: -2 * float(data.log_likelihood(np.array([Q]))[0]))
    one, evidence = np.ones(1), log_integral + data.constant
    mean, variance = map(np.asarray, data.predict(nodes, weights))
    limit, infinite = data.predict(np.prod(q, keepdims=True), one), data.predict(one, one)
    exact = all(is_identity(step.phi) for step in dense_steps(net)[1])
    return ProportionalPosterior(counts, exact, mean, variance, float(weights @ nodes), evidence, q, limit, infinite)


def _checked(net: Any, width: Any) -> tuple[int, ...]:
    """Return the widths of the hidden layers. Raises: TypeError, ValueError: another network or widths."""
    _, steps = dense_steps(net)
    if not steps:
        raise ValueError("net has no hidden layer, and its posterior no width: take wl.posterior(wl.nngp(net), X, y).")
    counts = hidden_widths(width, len(steps))
    if max(counts) > WIDEST:
        raise ValueError(f"width must be at most {WIDEST:g}, got {max(counts)}; take wl.posterior(wl.nngp(net), X, y).")
    inner = any(float(step.after.bias_std) for step in steps[:-1])
    if len(steps) > 1 and (inner or not all(_degree_one(step.phi) for step in steps)):
        raise ValueError(
            "a network of several hidden layers needs activations of degree 1 (identity, relu), and no bias between "
            "its first and its last dense layer; any other network must have one hidden layer."
        )
    return counts


def _degree_one(phi: Activation) -> bool:
    """Return whether phi(2 u) = 2 phi(u), with kinks at 0 only."""
    return set(phi.kinks) <= {0.0} and bool(np.array_equal(_values(phi, 2 * _PROBED), 2 * _values(phi, _PROBED)))


def is_identity(phi: Activation) -> bool:
    """Return whether phi(u) = u, with kinks at 0 only."""
    return _degree_one(phi) and bool(np.array_equal(_values(phi, _PROBED), _PROBED))


def _values(phi: Activation, u: np.ndarray) -> np.ndarray:
    """Compute phi(u) in float64, without compilation."""
    with arithmetic(True):
        return np.asarray(interpreted(phi)(u))


def _data(net: Network, X: np.ndarray, y: np.ndarray, noise: float, probes: np.ndarray) -> _Data:
    """Diagonalise K and F + noise together. Raises: ValueError: noise = 0 where it has to be larger."""
    *layers, _ = net.units
    last = dense_steps(net)[1][-1].after
    k = nngp(network(*layers, replace(last, bias_std=0.0), inputs=net.inputs))
    gram, cross = np.array(k.gram(X)), np.asarray(k.cross(X, probes))
    diagonal, at_rows = np.asarray(k.diag(probes)), np.diagonal(gram)
    features, of_probes = (_fixed_features(net, Z, squares) for Z, squares in ((X, at_rows), (probes, diagonal)))
    root = _root(features @ features.T, noise)

    def whitened(b: np.ndarray) -> np.ndarray:
        return np.asarray(scipy.linalg.solve_triangular(root, b, lower=True))

    means, means_of_probes = features[:, 1:], of_probes[:, 1:]
    values, vectors = linalg.eigenpairs(whitened(whitened(gram - means @ means.T).T), k.table_error)
    if not noise and not (values[0] > linalg.rounding(len(X), float(values[-1])) and y.any()):
        raise ValueError("noise must be > 0 where K(X, X) is singular, or all targets are 0.")
    values = np.where(values > linalg.rounding(len(X), float(values[-1])), values, 0.0)
    scaled, fixed = cross - means @ means_of_probes.T, features @ of_probes.T
    rotated_y, scaled, fixed = (vectors.T @ whitened(b) for b in (y, scaled, fixed))
    scaled[values == 0] = 0  # g has no variance there, so no covariance
    constant = -float(np.sum(rotated_y[values == 0] ** 2) + len(X) * math.log(2 * math.pi)) / 2
    constant -= float(np.sum(np.log(np.diagonal(root))))
    variance, fixed_variance = diagonal - np.sum(means_of_probes**2, axis=1), np.sum(of_probes**2, axis=1)
    return _Data(values, 1.0 if noise else 0.0, rotated_y, constant, scaled, fixed, variance, fixed_variance)


def _root(F: Float[np.ndarray, "n n"], noise: float) -> Float[np.ndarray, "n n"]:
    """Return the Cholesky factor of F + noise; 1 if noise = 0. Raises: ValueError: noise is rounding of F."""
    if 0 < noise < SMALLEST:
        raise ValueError(f"noise must be 0, or at least {SMALLEST:g}, got {noise:g}.")
    least = _LOST * linalg.rounding(len(F), float(np.trace(F)))
    if noise <= least and F.any():
        raise ValueError(
            f"noise must be > 0 and here above {least:.1e}, got {noise:g}: the last layer has a bias, or hidden units "
            f"have a mean (as with relu), and {_LOST:g} times the rounding of that part of the kernel is {least:.1e}."
        )
    return np.linalg.cholesky(noise * np.eye(len(F)) + F) if noise else np.eye(len(F))


def _fixed_features(net: Network, X: np.ndarray, squares: Float[np.ndarray, " n"]) -> Float[np.ndarray, "n 2"]:
    """Return the bias of the last layer, and the mean of the signals of hidden units: F is their Gram matrix.

    The mean is split off for one hidden layer only, and 0 for several. squares: the mean squares of these signals.
    """
    first, steps = dense_steps(net)
    phi, last = steps[0]
    found = np.zeros((len(X), 2))
    found[:, 0] = float(last.bias_std)
    if len(steps) == 1:
        variance = float(first.weight_std) ** 2 * np.mean(X**2, axis=1) + float(first.bias_std) ** 2
        shares = mean_shares(phi, phi.kinks, np.sqrt(variance))
        found[:, 1] = np.sqrt(squares) * np.where(abs(shares) > _ODD, shares, 0.0)
    return found
