"""Gradient descent runs in function space, in discrete time."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np

from widelimit import memory, validation
from widelimit.arithmetic import arithmetic
from widelimit.compute import linalg, threads
from widelimit.inference.losses import Loss, SquaredError, resolve
from widelimit.inference.training_set import EIGENVECTORS, Function, TrainingSet, array_like, inputs_alone, training_set
from widelimit.kernels.base import Kernel
from widelimit.kernels.matrix_valued import MatrixKernel
from widelimit.shapes import Float, Int
from widelimit.validation import Array


@final
@dataclass(frozen=True)
class GradientDescent:
    """f_{s+1} = f_s - (eta/n) sum_i K(., x_i) d_i + mu (f_s - f_{s-1}): made by `gradient_descent`.

    A leading axis (S,) stands for an array of steps.
    """

    data: TrainingSet
    objective: Loss
    initial: Function | None
    steps: int | np.ndarray
    alphas: np.ndarray
    """(S, n, c): f_s = f_0 + K(., X) alpha_s."""
    outputs: np.ndarray
    """(S, n, c): f_s(X)."""

    def __post_init__(self) -> None:
        validation.sealed(self)

    def coefficients(self) -> Float[np.ndarray, "*S n *c"]:
        """Return alpha_s with f_s = f_0 + K(., X) alpha_s, of y's shape: equations (3.6) and (3.7) of the paper."""
        values = self.alphas[..., 0] if self.data.single else self.alphas
        return values if isinstance(self.steps, np.ndarray) else values[0]

    @linalg.ignore_overflow()
    def predict(self, Z: Float[Array, "m d"]) -> Float[Array, "*S m *c"]:
        """f_s(Z) = f_0(Z) + K(Z, X) alpha_s: (m,), or (m, c) for y of shape (n, c). Raises: ValueError: bad Z."""
        points = self.data.inputs(Z)
        values = self.data.functions(self.initial, self.alphas, points)
        values = values if isinstance(self.steps, np.ndarray) else values[0]
        if np.isfinite(self.alphas).all():
            return self.data.outputs(values, Z)
        return array_like(values[..., 0] if self.data.single else values, Z)  # a descent that diverged has warned

    def loss(self) -> Float[np.ndarray, "*S"] | float:
        """C(f_s) = (1/n) sum_i l(f_s(x_i), y_i) on the training set; inf where the iterates have overflowed."""
        losses = np.full(len(self.outputs), math.inf)
        for i, f in enumerate(self.outputs):
            if np.isfinite(f).all():
                losses[i] = self.objective.value(f, self.data.y)
        return losses if isinstance(self.steps, np.ndarray) else float(losses[0])


def polynomial_gain(values: np.ndarray, rate: float, steps: int, momentum: float) -> np.ndarray:
    """Return q_s(lambda), of degree s - 1, alpha_s = q_s(K) (y - f_0(X)), for eigenvalues (N,) and rate = 2 eta/n.

    Without momentum q_s = (1 - (1 - rate lambda)^s)/lambda, by expm1 where that cancels. With momentum from the s-th
    power of the 3 x 3 matrix that makes (alpha_{s+1}, alpha_s, 1) of (alpha_s, alpha_{s-1}, 1), by repeated squaring.
    """
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        if momentum == 0:
            x = rate * values
            small = np.where((x > 0) & (x < 1), x, 0.5)
            safe = np.where(values > 0, values, 1.0)
            gain = np.where(x < 1, -np.expm1(steps * np.log1p(-small)), 1 - (1 - x) ** steps) / safe
            return np.asarray(np.where(values > 0, gain, rate * steps))
        step = np.zeros((len(values), 3, 3))
        step[:, 0] = np.stack(np.broadcast_arrays(1 + momentum - rate * values, -momentum, rate), 1)
        step[:, 1, 0] = step[:, 2, 2] = 1
        return np.asarray(np.linalg.matrix_power(step, steps)[:, 0, 2])


@jax.jit
def _advance(
    loss: Loss,
    matrix: jax.Array,
    start: jax.Array,
    y: jax.Array,
    state: tuple[jax.Array, jax.Array],
    rate: jax.Array,
    momentum: jax.Array,
    count: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Compute (alpha_s, alpha_{s-1}), folded, after `count` more steps."""

    def step(_: Any, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        alpha, before = state
        outputs = start + (matrix @ alpha).reshape(start.shape)
        slope = loss.derivative(outputs, y).reshape(alpha.shape)
        return alpha - rate * slope + momentum * (alpha - before), alpha

    return jax.lax.fori_loop(0, count, step, state)  # type: ignore[no-any-return]


def _iterate(
    data: TrainingSet,
    loss: Loss,
    matrix: np.ndarray,
    start: np.ndarray,
    steps: np.ndarray,
    rate: float,
    momentum: float,
) -> np.ndarray:
    """Compute alpha_s (S, N, q), folded, for any loss, by as many steps as the largest of `steps`."""
    order = np.argsort(steps)
    with arithmetic(True):
        objective = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), loss)
        fixed = [jnp.asarray(v) for v in (matrix, start, data.y)]
        zero = jnp.zeros(data.fold(start).shape)
        state, done, found = (zero, zero), 0, {}
        for i in order.tolist():
            count = int(steps[i]) - done
            state = _advance(objective, *fixed, state, jnp.asarray(rate), jnp.asarray(momentum), jnp.asarray(count))
            done, found[i] = int(steps[i]), np.asarray(state[0])
    return np.stack([found[i] for i in range(len(steps))])


def gradient_descent(
    k: Kernel | MatrixKernel,
    X: Float[Array, "n d"],
    y: Float[Array, "n *c"],
    *,
    learning_rate: float,
    steps: int | Int[np.ndarray, " S"],
    momentum: float = 0.0,
    loss: Any = "squared_error",
    initial: Function | None = None,
) -> GradientDescent:
    """alpha_{s+1} = alpha_s - (eta/n) d(f_s(X)) + mu (alpha_s - alpha_{s-1}), f_s = f_0 + K(., X) alpha_s.

    Kernel gradient descent on C(f) = (1/n) sum l(f(x_i), y_i); with k = ntk(net), full-batch training of an infinitely
    wide network by theta <- theta - learning_rate grad C, with heavy-ball momentum. One step is learning_rate of the
    time of `gradient_flow`. For the squared error the iterate is a polynomial of the kernel, exact for any number of
    steps at the cost of one eigendecomposition; for another loss the steps are taken. Equations (3.6) to (3.8) of the
    paper, corrected. Computed in float64.

    Args:
        k: a kernel, or a matrix-valued one of c outputs.
        X: (n, d) inputs.
        y: (n,) or (n, c) targets.
        learning_rate: eta > 0, in the unit of time of d theta/dt = -grad C.
        steps: number of steps, an integer >= 0, or an array (S,) of them, which results then have as their leading
            axis.
        momentum: mu in [0, 1).
        loss: the loss, as in `gradient_flow`.
        initial: f_0, as for `gradient_flow`.

    Returns:
        A `GradientDescent` with predict, loss and coefficients.

    Raises:
        TypeError, ValueError: bad data, a learning rate or momentum out of range.

    Warns:
        UserWarning: the learning rate is above `max_learning_rate`, which is named.
    """
    data, kind = training_set(k, X, y), resolve(loss)
    if initial is not None:
        validation.function("initial", initial, "a function of (m, d) inputs")
    kind.check(data.y)
    eta = float(validation.finite_scalar("learning_rate", learning_rate, above=0.0))
    momentum = check_momentum(momentum)
    counts = _steps(steps)
    memory.require(16.0 * counts.size * data.y.size, f"the iterates after {counts.size} numbers of steps")
    start, matrix = data.start(initial, data.X), data.gram(beside=1 + EIGENVECTORS)
    rate = eta / len(data.X)
    if isinstance(kind, SquaredError):
        values, vectors = linalg.eigenpairs(matrix.copy(), data.error)
        target, exponent = linalg.normalise(data.rest(start))
        residual = threads.product(vectors.T, target)
        lam = np.where(values > linalg.rounding(len(values), values[-1]), values, 0.0)
        _warn_if_divergent(eta, kind, values[-1], len(data.X), momentum)
        gains = np.stack([polynomial_gain(lam, 2 * rate, int(s), momentum) for s in counts.ravel()])
        with np.errstate(over="ignore", invalid="ignore"):
            folded = linalg.rescale(threads.product(vectors, gains[:, :, None] * residual), exponent)
            moved = linalg.rescale(threads.product(vectors, (gains * lam)[:, :, None] * residual), exponent)
    else:
        _warn_if_divergent(eta, kind, linalg.eigenvalues(matrix.copy(), data.error)[-1], len(data.X), momentum)
        folded = _iterate(data, kind, matrix, start, counts.ravel(), rate, momentum)
        with np.errstate(over="ignore", invalid="ignore"):
            moved = threads.product(matrix, folded)
    if not np.isfinite(folded).all():
        warnings.warn("gradient descent has overflowed; pass a smaller learning_rate.", stacklevel=2)
    alphas, outputs = data.unfold(folded), start + data.unfold(moved)
    return GradientDescent(data, kind, initial, counts if counts.ndim else int(counts), alphas, outputs)


def max_learning_rate(
    k: Kernel | MatrixKernel, X: Float[Array, "n d"], *, loss: Any = "squared_error", momentum: float = 0.0
) -> float:
    """Return 2 (1 + mu) n/(kappa lambda_max(K(X, X))), kappa a bound of l'' (2 for |f - y|^2): below, it converges.

    For the squared error without momentum n/lambda_max; sharp there: above it the iterates diverge. For other convex
    losses it is sufficient. Source: Polyak 1964 for momentum.

    Args:
        k: a kernel, or a matrix-valued one.
        X: (n, d) inputs.
        loss: the loss, as in `gradient_flow`; its second derivative must be bounded.
        momentum: mu in [0, 1).

    Returns:
        The learning rate, in the unit of time of d theta/dt = -grad C; inf for a kernel that is 0 on X.

    Raises:
        TypeError, ValueError: bad data; a loss without a bound of its second derivative (Poisson).
    """
    kind = resolve(loss)
    data = inputs_alone(k, X)
    if not math.isfinite(kind.curvature):
        raise ValueError(
            f"the second derivative of {type(kind).__name__} has no bound, and no learning rate is safe for every f; "
            f"wl.gradient_flow needs none."
        )
    return stable_rate(
        kind, float(linalg.eigenvalues(data.gram(beside=1), data.error)[-1]), len(data.X), check_momentum(momentum)
    )


def stable_rate(loss: Loss, largest: float, n: int, momentum: float) -> float:
    """Return 2 (1 + mu) n/(kappa lambda_max), a loss's bound of the learning rate; inf for a kernel that is 0."""
    return 2 * (1 + momentum) * n / (float(loss.curvature) * largest) if largest > 0 else math.inf


def check_momentum(value: Any) -> float:
    """Return mu in [0, 1). Raises: TypeError, ValueError."""
    momentum = float(validation.finite_scalar("momentum", value, at_least=0.0))
    if momentum >= 1:
        raise ValueError(f"momentum must be in [0, 1), got {momentum:g}.")
    return momentum


def _steps(value: Any) -> np.ndarray:
    if np.ndim(value) == 0:
        return np.asarray(validation.integer("steps", value, at_least=0, below=2**62))
    counts = np.asarray(value)
    if counts.ndim != 1 or counts.size == 0 or counts.dtype.kind not in "iu":
        raise TypeError(f"steps must be an integer or a one-dimensional array of them, got {validation.shown(value)}.")
    if counts.min() < 0:
        raise ValueError(f"steps must be at least 0, got {counts.min()}.")
    return validation.owned(counts)


def _warn_if_divergent(eta: float, loss: Loss, largest: float, n: int, momentum: float) -> None:
    bound = stable_rate(loss, float(largest), n, momentum)
    if math.isfinite(loss.curvature) and eta > bound:
        ends = "diverges" if isinstance(loss, SquaredError) else "may diverge"
        name = "wl.max_learning_rate(k, X, ...)"
        message = f"learning_rate={eta:g} is above the bound {bound:.6g} = {name}: gradient descent {ends}."
        warnings.warn(message, stacklevel=3)
