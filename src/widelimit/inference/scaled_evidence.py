"""The evidence of a wide network with one scale an input, and its gradient, in one compiled step.

K_z(x, x') = a K(s x, s x') with K the NNGP or NTK kernel of a network of erf or relu; z holds the logarithms of s (one
for each group of inputs), of the standard deviations of weights and biases, of the amplitude a and of the noise. A
search evaluates this some hundred times on one set of rows, so that it works in covariances and lets near duplicates
lose digits; the kernel that is fitted in the end does not.

log p(y | X, z) = -y^T A^-1 y/2 - log det(A)/2 - n log(2 pi)/2 for each output, A = K_z(X, X) + noise/weights, and
sum_i log p(y_i | y without i, z) as in Rasmussen and Williams 2006, equations (2.30) and (5.10) to (5.13).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from widelimit import series
from widelimit.architecture.network import Network
from widelimit.arithmetic import arithmetic
from widelimit.compute import tiles
from widelimit.inference.coordinates import searched, with_numbers
from widelimit.inference.noise_level import Objective
from widelimit.kernels.network import nngp, ntk

ROWS = 64
"""Rows are filled up to a multiple of it: few programs serve all tables."""
COLUMNS = 8
"""Inputs are filled up to this number, twice as many, ...; outputs to a power of two."""
COPIES = 1e-24
"""Targets at one place that differ by less than the root of this, in standard deviations, are copies."""
PARTS = 4
"""Blocks along the diagonal of a triangle whose zeros are left out: .6 of the time of one block; more gain little."""
Activation = Literal["erf", "relu", "rbf"]


class Family(NamedTuple):
    """A family is the kernels of one architecture, for all scales and variances."""

    kind: Literal["nngp", "ntk"]
    activation: Activation
    depth: int

    @property
    def numbers(self) -> tuple[str, ...]:
        """Name the numbers that a search changes."""
        return "weight_std", "bias_std"


class NetworkFamily(NamedTuple):
    """A family is the kernels of one tree of layers, for all values of its positive numbers."""

    kind: Literal["nngp", "ntk"]
    network: Network

    @property
    def numbers(self) -> tuple[str, ...]:
        """Name the numbers that a search changes."""
        return searched(self.network)


AnyFamily = Family | NetworkFamily


class Rows(NamedTuple):
    """The rows are padded: those beyond the data have weight 0."""

    X: np.ndarray
    """(n, d) inputs."""
    y: np.ndarray
    """(n, c) targets; 0 beyond the data."""
    noise: np.ndarray
    """(n,): 1/weight, the noise of a row in units of the common one."""
    real: np.ndarray
    """(n,): 1, and 0 beyond the data."""
    groups: np.ndarray
    """(d,): the number of the scale of each input."""
    repeated: np.ndarray
    """Rows beyond the first at the places where targets differ: exact copies of a row say nothing on the noise."""
    spread: np.ndarray
    """Sum of squares of the targets about their mean at each place."""
    outputs: np.ndarray
    """The number of targets that count: the others are 0."""


def merge(X: np.ndarray, y: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return the places among the rows, sorted, and at each the mean targets, the sum of weights and the spread."""
    places, at = np.unique(X, axis=0, return_inverse=True)
    at = at.ravel()
    total = np.bincount(at, weights)
    means = np.stack([np.bincount(at, weights * column) for column in y.T], axis=1) / total[:, None]
    return places, means, total, np.bincount(at, weights * np.sum((y - means[at]) ** 2, axis=1))


def padded(X: np.ndarray, y: np.ndarray, weights: np.ndarray, groups: np.ndarray) -> Rows:
    """Merge rows at one place, and fill rows and inputs up to the sizes of a compiled program.

    A row of weight w counts as w rows, whose mean has 1/w of the noise.
    """
    X, y, weights, spread = merge(X, y, weights)
    differ = spread > COPIES * weights
    n, d = X.shape
    rows, columns = -(-n // ROWS) * ROWS - n, COLUMNS * _power_of_two(-(-d // COLUMNS)) - d
    outputs = y.shape[1]
    return Rows(
        np.pad(X, ((0, rows), (0, columns))),
        np.pad(y, ((0, rows), (0, _power_of_two(outputs) - outputs))),
        np.pad(1 / weights, (0, rows), constant_values=1.0),
        np.pad(np.ones(n), (0, rows)),
        np.pad(groups, (0, columns)),
        np.sum((weights - 1)[differ]),
        np.sum(spread[differ]),
        np.asarray(float(outputs)),
    )


def _power_of_two(count: int) -> int:
    """Return the smallest power of two that is not below the count."""
    return 1 << (count - 1).bit_length()


def _erf(c: jax.Array, q: jax.Array, r: jax.Array) -> tuple[jax.Array, jax.Array]:
    """E[erf(u) erf(v)] and E[erf'(u) erf'(v)] for variances q, r and covariance c (Williams 1997)."""
    product = (1 + 2 * q) * (1 + 2 * r)
    return (2 / math.pi) * jnp.arcsin(2 * c / jnp.sqrt(product)), (4 / math.pi) / jnp.sqrt(product - 4 * c**2)


def _rbf(c: jax.Array, q: jax.Array, r: jax.Array) -> tuple[jax.Array, jax.Array]:
    """E[phi(u) phi(v)] and E[phi'(u) phi'(v)] for phi = sqrt(2) sin(sqrt(2) u + pi/4) (Rahimi and Recht 2007)."""
    value = jnp.exp(2 * c - q - r)
    return value, 2 * value


@jax.custom_jvp
def _relu(c: jax.Array, q: jax.Array, r: jax.Array) -> tuple[jax.Array, jax.Array]:
    """E[u_+ v_+] and P(u > 0, v > 0) for variances q, r and covariance c (Cho and Saul 2009)."""
    size = jnp.sqrt(q * r)
    rho = jnp.clip(c / size, -1, 1)
    gap = 1 - jnp.abs(rho)
    psi = series.angle_from_gap(gap)[0]
    obtuse = jnp.where(rho >= 0, math.pi - psi, psi)  # pi - theta
    return size * (jnp.sqrt(gap * (2 - gap)) + obtuse * rho) / (2 * math.pi), obtuse / (2 * math.pi)


@_relu.defjvp
def _relu_jvp(primals: Any, tangents: Any) -> Any:
    """d first/dc = second; the first is homogeneous of degree 1/2 in each variance, the second of degree 0 in all."""
    c, q, r = primals
    first, second = _relu(c, q, r)
    along = tangents[1] / (2 * q) + tangents[2] / (2 * r)
    sine = 2 * math.pi * series.safe_sqrt(jnp.maximum(q * r - c**2, 0))
    change = series.safe_divide(tangents[0] - c * along, sine)
    return (first, second), (second * (tangents[0] - c * along) + first * along, change)


_DUALS: dict[str, Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]]
_DUALS = {"erf": _erf, "relu": _relu, "rbf": _rbf}


def _own(activation: str, q: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Compute the same for a signal with itself: the limits of the formulas above."""
    if activation == "relu":
        return q / 2, jnp.full_like(q, 0.5)
    return _DUALS[activation](q, q, q)


def _gram(family: AnyFamily, X: jax.Array, inputs: jax.Array, logs: jax.Array) -> jax.Array:
    """Compute K(X, X), (n, n), from logarithms of the numbers; `inputs` is the number of columns of X that count."""
    if isinstance(family, NetworkFamily):
        net = with_numbers(family.network, dict(zip(family.numbers, jnp.exp(logs), strict=True)))
        return jnp.asarray((ntk if family.kind == "ntk" else nngp)(net).gram(X * jnp.sqrt(X.shape[1] / inputs)))
    weight, bias = jnp.exp(2 * logs[0]), jnp.exp(2 * logs[1])
    dual = _DUALS[family.activation]
    itself = jnp.eye(len(X), dtype=bool)
    c = weight * jnp.matmul(X, X.T, precision="highest") / inputs + bias
    q = weight * jnp.sum(X**2, axis=1) / inputs + bias
    tangent, own_tangent = c, q
    for _ in range(family.depth - 1):
        after, slope = dual(jnp.where(itself, 0.0, c), q[:, None], q)
        own, own_slope = _own(family.activation, q)
        c, q = weight * after + bias, weight * own + bias
        tangent, own_tangent = weight * slope * tangent + c, weight * own_slope * own_tangent + q
    off, diagonal = (tangent, own_tangent) if family.kind == "ntk" else (c, q)
    return jnp.where(itself, diagonal[:, None], off)


class Coordinates(NamedTuple):
    """The coordinates z are logarithms: of the scales, then of these."""

    scales: jax.Array
    numbers: jax.Array
    """Standard deviations of weights and biases, or the numbers of a network."""
    amplitude: jax.Array
    noise: jax.Array


def coordinates(z: jax.Array, scales: int) -> Coordinates:
    """Return the parts of z by name, still as logarithms."""
    return Coordinates(z[:scales], z[scales:-2], z[-2], z[-1])


def _covariance(family: AnyFamily, inputs: jax.Array, rows: Rows, z: jax.Array) -> jax.Array:
    at = coordinates(z, rows.X.shape[1])
    scaled = jnp.asarray(rows.X) * jnp.exp(at.scales)[rows.groups]
    K = jnp.exp(at.amplitude) * _gram(family, scaled, inputs, at.numbers)
    K = K * rows.real[:, None] * rows.real
    return K + jnp.diag(jnp.where(rows.real > 0, jnp.exp(at.noise) * rows.noise, 1.0))


def _marginal(Q: jax.Array, alpha: jax.Array, log_det: jax.Array, rows: Rows) -> tuple[jax.Array, jax.Array]:
    """Compute the log evidence and its derivative in A, from Q = A^-1 and alpha = Q y."""
    c = rows.outputs
    score = -jnp.sum(rows.y * alpha) / 2 - c * log_det / 2 - c * jnp.sum(rows.real) * math.log(2 * math.pi) / 2
    return score, (jnp.matmul(alpha, alpha.T, precision="highest") - c * Q) / 2


def _leave_one_out(Q: jax.Array, alpha: jax.Array, _: jax.Array, rows: Rows) -> tuple[jax.Array, jax.Array]:
    """Compute the leave-one-out log density and its derivative in A."""
    own, c = jnp.diagonal(Q), rows.outputs
    terms = c * jnp.log(own) / 2 - jnp.sum(alpha**2, axis=1) / (2 * own) - c * math.log(2 * math.pi) / 2
    by_own = rows.real * (c / (2 * own) + jnp.sum(alpha**2, axis=1) / (2 * own**2))
    by_alpha = -alpha / own[:, None] * rows.real[:, None]
    slope = -jnp.matmul(jnp.matmul(Q, by_alpha), alpha.T) - jnp.matmul(Q * by_own, Q)
    return jnp.sum(rows.real * terms), (slope + slope.T) / 2


_OBJECTIVES = {"marginal_likelihood": _marginal, "leave_one_out": _leave_one_out}


def _inverse(L: jax.Array, least: int) -> jax.Array:
    """Compute L^-1 of a lower triangle by blocks, down to so many rows: [[P, 0], [-S L_21 P, S]]."""
    if len(L) <= least:
        return jax.scipy.linalg.solve_triangular(L, jnp.eye(len(L)), lower=True)
    half = len(L) // 2
    P, S = _inverse(L[:half, :half], least), _inverse(L[half:, half:], least)
    below = -_product(S, _product(L[half:, :half], P))
    return jnp.block([[P, jnp.zeros((half, len(L) - half))], [below, S]])


def _squares(T: jax.Array, least: int) -> jax.Array:
    """Compute T^T T of a lower triangle by the same blocks, without those that are 0."""
    if len(T) <= least:
        return _product(T.T, T)
    half = len(T) // 2
    P, R, S = T[:half, :half], T[half:, :half], T[half:, half:]
    across = _product(R.T, S)
    return jnp.block([[_squares(P, least) + _product(R.T, R), across], [across.T, _squares(S, least)]])


def _product(A: jax.Array, B: jax.Array) -> jax.Array:
    return jnp.matmul(A, B, precision="highest")


def _value_and_gradient(
    family: AnyFamily, objective: Objective, inputs: jax.Array, rows: Rows, z: jax.Array
) -> tuple[jax.Array, jax.Array]:
    A, pull_back = jax.vjp(lambda z: _covariance(family, inputs, rows, z), z)
    L = jnp.linalg.cholesky(A)
    Q = _squares(_inverse(L, len(A) // PARTS), len(A) // PARTS)
    alpha = jnp.matmul(Q, rows.y, precision="highest")
    score, by_A = _OBJECTIVES[objective](Q, alpha, 2 * jnp.sum(jnp.log(jnp.diagonal(L))), rows)
    slope = pull_back(by_A)[0]
    # The rows at one place differ by noise alone.
    count, squares = rows.outputs, rows.spread * jnp.exp(-z[-1])
    score += (count * (jnp.sum(jnp.log(rows.noise)) - rows.repeated * (z[-1] + math.log(2 * math.pi))) - squares) / 2
    return score, slope.at[-1].add((squares - count * rows.repeated) / 2)


# Most of the work is a factorisation and products: the quick program of our own families is as fast.
_programs = [
    jax.jit(_value_and_gradient, static_argnames=("family", "objective"), compiler_options=options)
    for options in ({}, tiles.QUICK)
]


def value_and_gradient(
    family: AnyFamily, objective: Objective, inputs: int, rows: Rows, z: np.ndarray
) -> tuple[float, np.ndarray]:
    """Compute the objective at z, in nats, and its gradient; NaN where A is not positive definite in float64."""
    with arithmetic(True):
        program = _programs[isinstance(family, Family)]
        score, gradient = program(family, objective, float(inputs), rows, z)
        return float(score), np.asarray(gradient)
