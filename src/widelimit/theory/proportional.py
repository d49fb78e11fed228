"""Bayesian networks whose width is comparable with the number of rows: the limit's kernel times a random scale."""

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
_ODD = 1e-10
"""Mean over root mean square of signals that is rounding: the activation is odd."""
_LOST = 100.0
"""Noise below this multiple of the rounding of F is refused: eigenvalues beside both have lost their digits."""
_PROBED = np.multiply.outer([-1.0, 1.0], np.geomspace(1e-6, 1e6, 97)).ravel()


@final
@dataclass(frozen=True)
class ProportionalPosterior:
    """The output sqrt(Q) g + h, g ~ GP(0, K), h ~ GP(0, F), has this posterior at m points."""

    width: tuple[int, ...]
    """Of each hidden layer."""
    exact: bool
    """Whether the activations are the identity; otherwise the scale Q is an approximation."""
    mean: Float[np.ndarray, " m"]
    """Of f, over networks of this width."""
    variance: Float[np.ndarray, " m"]
    """Of f, without the noise of the targets."""
    scale: float
    """E[Q | y]: K is renormalised by it; 1 at infinite width."""
    log_evidence: float
    """ln p(y)."""
    order_parameters: Float[np.ndarray, " L"]
    """q of each hidden layer in the proportional limit, where Q is their product."""
    limit: Prediction
    """Mean and variance with that Q: the width and the number of rows grow, and their ratio stays."""
    infinite: Prediction
    """Mean and variance at infinite width, Q = 1."""


class _Data(NamedTuple):
    """y ~ N(0, Q K + F + noise) is N(0, Q D + unit) in these coordinates."""

    values: Float[np.ndarray, " n"]
    unit: float
    y: Float[np.ndarray, " n"]
    constant: float
    """What ln p(y) has beside `log_likelihood`: of the coordinates, and of those that K does not reach."""
    scaled: Float[np.ndarray, "n m"]
    """Cov(y, f) at the points is Q scaled + fixed."""
    fixed: Float[np.ndarray, "n m"]
    variance: Float[np.ndarray, " m"]
    """Var f at the points is Q variance + fixed_variance."""
    fixed_variance: Float[np.ndarray, " m"]

    def log_likelihood(self, Q: Float[np.ndarray, " S"]) -> Float[np.ndarray, " S"]:
        """Compute what of ln p(y | Q) depends on Q."""
        moves = self.values > 0
        own = np.multiply.outer(np.clip(Q, SMALLEST, 1 / SMALLEST), self.values[moves]) + self.unit
        with np.errstate(over="ignore"):
            return np.asarray(-np.sum(np.log(own) + self.y[moves] ** 2 / own, axis=1) / 2)

    def pull(self, Q: float) -> float:
        """Compute -2 d ln p(y | Q)/d ln Q."""
        scaled = min(max(Q, SMALLEST), 1 / SMALLEST) * self.values
        own = scaled + self.unit
        with np.errstate(over="ignore"):
            return float(np.sum(scaled / own * (1 - self.y**2 / own)))

    def predict(self, Q: Float[np.ndarray, " S"], weights: Float[np.ndarray, " S"]) -> Prediction:
        """Compute mean and variance of f at the points, averaged over values of Q with these weights."""
        inverse = 1 / (np.multiply.outer(Q, self.values) + self.unit)
        means = (Q[:, None] * inverse * self.y) @ self.scaled + (inverse * self.y) @ self.fixed
        none, one, two = (np.asarray((weights * Q**power) @ inverse)[:, None] for power in range(3))
        gone = np.sum(two * self.scaled**2 + 2 * one * self.scaled * self.fixed + none * self.fixed**2, axis=0)
        mean = weights @ means
        within, between = float(weights @ Q) * self.variance + self.fixed_variance - gone, weights @ (means - mean) ** 2
        return Prediction(mean, np.maximum(within, 0.0) + between)


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

    The posterior of networks with weights from N(0, 1), as many units as rows, or any number. The output of a deep
    linear network is exactly sqrt(Q) g, a Gaussian process of the infinite width, with Q = prod_l chi^2(n_l)/n_l, and
    a bias of the last layer, F. Its posterior is an integral over Q alone, and the evidence a Meijer G function (Hanin
    and Zlokapa 2023, arXiv 2212.14457). Where widths and rows grow together Q tends to the solution of the equation (Li
    and Sompolinsky 2021, PRX 11, 031059). For other activations the same is an approximation: hidden signals are
    taken for Gaussian vectors (Pacelli et al. 2023, arXiv 2209.04882), and of one hidden layer their mean is part of
    F, as if what it adds to f were independent of Q, which holds to O(1/width) only: networks of few units differ.

    Args:
        net: layers Dense, activation, Dense, .. in the NTK parameterisation, on rows: one hidden layer with any
            activation; or several with activations of degree 1 (identity, relu) and no bias between the first and the
            last dense layer.
        X: (n, d) training inputs.
        y: (n,) targets.
        width: n_l of all hidden layers, or of each, 1 to 1e7.
        noise: variance of the targets' noise, >= 0, as in `posterior`; above the rounding of F where there is one.
        probes: (m, d) inputs at which f is predicted; X unless given.

    Returns:
        A `ProportionalPosterior`.

    Raises:
        TypeError, ValueError: another network, targets of several outputs, noise below the rounding of F, noise = 0
            with a singular kernel or targets that are 0.
        MemoryError: the matrices do not fit. ArithmeticError: the posterior of Q is not resolved.
    """
    counts = _checked(net, width)
    rows = np.asarray(net.rows("X", validation.concrete_points("X", X)), np.float64)
    targets = np.asarray(validation.targets("y", y, len(rows)), np.float64).reshape(len(rows), -1)
    require_one_output(targets)
    spread = float(validation.finite_scalar("noise", noise, at_least=0.0))
    more = rows if probes is None else probes_beside(net, rows, probes)
    n, m = len(rows), len(more)
    held = 5 * n * n + 4 * n * m + 9000 * n + 3000 * m + 4e6
    memory.require(8.0 * held, f"a kernel of {n} rows", remedy="use fewer rows")
    data = _data(net, rows, targets[:, 0], spread, more)
    widths = np.array(counts, np.float64)
    nodes, weights, moving = posterior_scales(widths, data.log_likelihood)
    q = saddle_point(widths, data.pull, lambda Q: -2 * float(data.log_likelihood(np.array([Q]))[0]))
    one, evidence = np.ones(1), moving + data.constant
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
            "several hidden layers take activations of degree 1 (identity, relu) and no bias between the first and the "
            "last dense layer; of other networks take one hidden layer."
        )
    return counts


def _degree_one(phi: Activation) -> bool:
    """Return whether phi(2 u) = 2 phi(u), with kinks at 0 only."""
    return set(phi.kinks) <= {0.0} and bool(np.array_equal(_values(phi, 2 * _PROBED), 2 * _values(phi, _PROBED)))


def is_identity(phi: Activation) -> bool:
    """Return whether phi(u) = u, with kinks at 0 only."""
    return _degree_one(phi) and bool(np.array_equal(_values(phi, _PROBED), _PROBED))


def _values(phi: Activation, u: np.ndarray) -> np.ndarray:
    with arithmetic(True):
        return np.asarray(interpreted(phi)(u))


def _data(net: Network, X: np.ndarray, y: np.ndarray, noise: float, probes: np.ndarray) -> _Data:
    """Diagonalise K beside noise and F. Raises: ValueError: noise = 0 where it has to be larger."""
    *layers, _ = net.units
    last = dense_steps(net)[1][-1].after
    k = nngp(network(*layers, replace(last, bias_std=0.0), inputs=net.inputs))
    gram, cross = np.array(k.gram(X)), np.asarray(k.cross(X, probes))
    own, own_there = np.asarray(k.diag(probes)), np.diagonal(gram)
    there, at_probes = (_fixed_features(net, Z, sizes) for Z, sizes in ((X, own_there), (probes, own)))
    root = _root(there @ there.T, noise)

    def turned(b: np.ndarray) -> np.ndarray:
        return np.asarray(scipy.linalg.solve_triangular(root, b, lower=True))

    means, means_there = there[:, 1:], at_probes[:, 1:]
    values, vectors = linalg.eigenpairs(turned(turned(gram - means @ means.T).T), k.table_error)
    if not noise and not (values[0] > linalg.rounding(len(X), float(values[-1])) and y.any()):
        raise ValueError("noise must be > 0 where K(X, X) is singular, or all targets are 0.")
    values = np.where(values > linalg.rounding(len(X), float(values[-1])), values, 0.0)
    scaled, fixed = cross - means @ means_there.T, there @ at_probes.T
    turned_y, scaled, fixed = (vectors.T @ turned(b) for b in (y, scaled, fixed))
    scaled[values == 0] = 0  # g has no variance there, so no covariance
    constant = -float(np.sum(turned_y[values == 0] ** 2) + len(X) * math.log(2 * math.pi)) / 2
    constant -= float(np.sum(np.log(np.diagonal(root))))
    left, gone = np.sum(at_probes**2, axis=1), np.sum(means_there**2, axis=1)
    return _Data(values, 1.0 if noise else 0.0, turned_y, constant, scaled, fixed, own - gone, left)


def _root(F: Float[np.ndarray, "n n"], noise: float) -> Float[np.ndarray, "n n"]:
    """Return the Cholesky factor of F + noise, or 1 without both. Raises: ValueError: noise is lost beside F."""
    if 0 < noise < SMALLEST:
        raise ValueError(f"noise must be 0, or at least {SMALLEST:g}, got {noise:g}.")
    least = _LOST * linalg.rounding(len(F), float(np.trace(F)))
    if noise <= least and F.any():
        raise ValueError(
            f"noise must be > 0 where the last layer has a bias, or hidden units have a mean, as of relu; here above "
            f"{least:.1e}, {_LOST:g} times the rounding of that part of the kernel, got {noise:g}."
        )
    return np.linalg.cholesky(noise * np.eye(len(F)) + F) if noise else np.eye(len(F))


def _fixed_features(net: Network, X: np.ndarray, sizes: Float[np.ndarray, " n"]) -> Float[np.ndarray, "n 2"]:
    """Return the bias of the last layer, and the mean of what a hidden unit adds to it: F is their Gram matrix.

    The mean is split off for one hidden layer only. sizes: the mean square of what a hidden unit adds.
    """
    first, steps = dense_steps(net)
    phi, last = steps[0]
    found = np.zeros((len(X), 2))
    found[:, 0] = float(last.bias_std)
    if len(steps) == 1:
        variance = float(first.weight_std) ** 2 * np.mean(X**2, axis=1) + float(first.bias_std) ** 2
        shares = mean_shares(phi, phi.kinks, np.sqrt(variance))
        found[:, 1] = np.sqrt(sizes) * np.where(abs(shares) > _ODD, shares, 0.0)
    return found
