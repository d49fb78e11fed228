"""The product of the layers of a deep linear network follows an exact equation of motion if layers are balanced."""

from dataclasses import dataclass
from typing import Any, final

import numpy as np

from widelimit import memory, validation
from widelimit.compute.krylov import gain
from widelimit.shapes import Float
from widelimit.theory.ode import integrate
from widelimit.theory.requests import finite_times
from widelimit.validation import Array

TOLERANCE = 1e-10
"""Relative tolerance of the solution of the ODE."""
DEEPEST = 1000
"""Layers, at most: the right side of the ODE is a sum over them."""


@final
@dataclass(frozen=True)
class DeepLinearFlow:
    """The training of a deep linear network, at T times and m points, with c outputs. Made by `deep_linear_flow`."""

    times: Float[np.ndarray, " T"]
    weights: Float[np.ndarray, "T d c"]
    """The product of all layers."""
    outputs: Float[np.ndarray, "T m c"]
    loss: Float[np.ndarray, " T"]
    """The cost on the training points."""
    lazy: Float[np.ndarray, "T m c"]
    """The outputs that a constant tangent kernel, that at the start, predicts."""


def deep_linear_flow(
    X: Float[Array, "n d"],
    y: Float[Array, "n *c"],
    *,
    depth: int,
    start: Float[Array, "d *c"],
    times: Any,
    probes: Float[Array, "m d"] | None = None,
) -> DeepLinearFlow:
    """dW/dt = -sum_j (W W^T)^((j-1)/L) G (W^T W)^((L-j)/L), G = dC/dW: train f(x) = x W, W = A_1 A_2 .. A_L, exactly.

    The layers are trained by gradient flow from a balanced start, A_j^T A_j = A_{j+1} A_{j+1}^T, and stay balanced; any
    width from the smaller of d and c on gives the same W (Arora, Cohen and Hazan 2018, arXiv 1802.06509, Theorem 1). C
    is the mean of |f - y|^2. With whitened inputs and a start along singular vectors of the data, each singular value
    moves independently, ds/dt = 2 L s^(2 - 2/L) (s* - s) (Saxe, McClelland and Ganguli 2014, arXiv 1312.6120). The
    tangent kernel is sum_j x (W W^T)^((j-1)/L) x'^T (W^T W)^((L-j)/L): it grows with W, so training from a small start
    is far from lazy.

    Args:
        X: (n, d) training inputs.
        y: (n,) or (n, c) targets.
        depth: L, 1 to 1000; 1 is linear regression.
        start: (d,) or (d, c), the product of the layers at the start; not zero, which training would not leave.
        times: (T,) or one number, finite, >= 0, in the unit of dA/dt = -grad C.
        probes: (m, d) inputs at which the outputs are computed; X unless given.

    Returns:
        A `DeepLinearFlow`.

    Raises:
        TypeError, ValueError: arrays of other shapes, a start of zeros, times that are not finite.
        ArithmeticError: the weights move too fast for the integrator. MemoryError: they do not fit.
    """
    rows = np.asarray(validation.concrete_points("X", X), np.float64)
    targets = np.asarray(validation.targets("y", y, len(rows)), np.float64).reshape(len(rows), -1)
    L = validation.integer("depth", depth, at_least=1, below=DEEPEST + 1)
    until = finite_times(times, "the weights are integrated step by step")
    more = rows if probes is None else np.asarray(validation.concrete_points("probes", probes), np.float64)
    validation.same_features("probes", more, "X", rows)
    d, c = rows.shape[1], targets.shape[1]
    W = _start(start, d, c)
    memory.require(
        8.0 * (20 * d * d + 20 * c * c + 30 * d * c + len(until) * c * (2 * d + 3 * len(rows) + 2 * len(more))),
        f"{d} x {c} weights",
        remedy="use fewer features",
    )
    C, h = 2 / len(rows) * rows.T @ rows, 2 / len(rows) * rows.T @ targets

    def rate(state: np.ndarray) -> np.ndarray:
        now = state.reshape(d, c)
        return -preconditioned(now, C @ now - h, L).ravel()

    found, now, at = {}, W, 0.0
    for t in np.unique(until).tolist():
        now, at = integrate(rate, now.ravel(), t - at, TOLERANCE).reshape(d, c), t
        found[t] = now
    weights = np.stack([found[t] for t in until.tolist()])
    frozen = _frozen(W, C, h, L, until)
    loss = np.mean(np.sum((rows @ weights - targets) ** 2, axis=2), axis=1)
    return DeepLinearFlow(until, weights, more @ weights, loss, more @ frozen)


def preconditioned(W: Float[np.ndarray, "d c"], G: Float[np.ndarray, "d c"], depth: int) -> Float[np.ndarray, "d c"]:
    """Compute sum_j (W W^T)^((j-1)/L) G (W^T W)^((L-j)/L)."""
    U, shares, Vt = _factors(W, depth)
    return np.asarray(U @ (shares * (U.T @ G @ Vt.T)) @ Vt)


def _factors(W: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return U, sum_j s_a^(2 (j-1)/L) s_b^(2 (L-j)/L) for all pairs (d, c), V^T; the power 0 of 0 is 1."""
    U, s, Vt = np.linalg.svd(W)
    left, right = (np.concatenate([s, np.zeros(n - len(s))]) for n in W.shape)
    powers = [2 * j / depth for j in range(depth)]
    shares = sum(np.outer(left**p, right**q) for p, q in zip(powers, powers[::-1], strict=True))
    return U, np.asarray(shares), Vt


def _frozen(W: np.ndarray, C: np.ndarray, h: np.ndarray, depth: int, until: np.ndarray) -> np.ndarray:
    """Compute W at all times for a constant tangent kernel, that at the start: a linear equation, in closed form."""
    U, shares, Vt = _factors(W, depth)
    rotated, aim, now = U.T @ C @ U, U.T @ h @ Vt.T, U.T @ W @ Vt.T
    found = np.empty((len(until), *W.shape))
    for b, root in enumerate(np.sqrt(shares).T):
        values, Q = np.linalg.eigh(root[:, None] * rotated * root)
        values = np.maximum(values, 0.0)
        force = Q.T @ (root * (aim[:, b] - rotated @ now[:, b]))
        learned = gain(values, until, values * until[:, None] < 1e-12, 0.0)
        found[:, :, b] = now[:, b] + root * ((learned * force) @ Q.T)
    return np.asarray(U @ found @ Vt)


def _start(start: Any, d: int, c: int) -> np.ndarray:
    """Return (d, c) weights. Raises: TypeError, ValueError."""
    array = np.asarray(validation.as_float_array("start", validation.concrete("start", start)), np.float64)
    if array.shape not in ((d, c), (d,) if c == 1 else (d, c)):
        raise ValueError(f"start must have shape ({d}, {c}), features and outputs, got {array.shape}.")
    if not np.isfinite(array).all():
        raise ValueError("start must be finite.")
    if not array.any():
        raise ValueError("start must not be zero: gradient flow does not move a product of layers that are zero.")
    return array.reshape(d, c)
