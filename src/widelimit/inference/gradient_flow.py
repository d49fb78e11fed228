"""Gradient descent in function space, in continuous time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from jaxtyping import Float

from widelimit import validation
from widelimit.compute import linalg, memory
from widelimit.inference.training_set import TrainingSet, training_set
from widelimit.kernels.base import Kernel
from widelimit.validation import Array

Function = Callable[[np.ndarray], Any]


@final
@dataclass(frozen=True)
class GradientFlow:
    """df/dt = -(2/n) K(., X) (f(X) - y) from f_0: made by `gradient_flow`.

    t is the time of d theta/dt = -grad C with C(f) = (1/n) sum_i |f(x_i) - y_i|^2 (n: number of training points; the
    sum goes over outputs too). The residual of the mode with eigenvalue lambda of K(X, X) decays as exp(-2 lambda t/n).
    """

    data: TrainingSet
    initial: Function | None
    values: np.ndarray
    vectors: np.ndarray
    residual: np.ndarray

    @property
    def _null(self) -> np.ndarray:
        """Modes whose eigenvalue cannot be told from 0."""
        return self.values <= linalg.rounding(len(self.values), self.values[-1])

    def gain(self, t: np.ndarray) -> np.ndarray:
        """(1 - exp(-2 lambda t/n))/lambda for every time and mode, (T,) -> (T, n), by expm1; 2 t/n at lambda = 0.

        A mode that cannot be told from a null one (lambda <= n eps lambda_max) is left out at t = inf, where the flow
        is the minimum-norm solution. Before, its gain fades as exp(-2 sqrt(eps) lambda_max t/n): the rounding in
        K(z, X) v, which the gain multiplies, then never exceeds sqrt(eps) of the result.
        """
        n = len(self.values)
        null = self._null
        clock = 2 * (t[:, None] / n)
        fading = np.sqrt(linalg.EPS) * self.values[-1]
        lam = np.where(null, 1.0, self.values)
        finite = np.where(np.isfinite(clock), clock, 0.0)
        with np.errstate(over="ignore"):
            return np.where(null, finite * np.exp(-finite * fading), -np.expm1(-clock * lam) / lam)

    def projected(self, points: np.ndarray) -> np.ndarray:
        """K(Z, X) V: the kernel between test points and modes, (m, n)."""
        return np.asarray(self.data.cross(points) @ self.vectors)

    def predict(self, Z: Float[Array, "m d"], t: float | Float[Array, " T"]) -> Float[Array, "*T m *c"]:
        """f_t(Z) = f_0(Z) + K(Z, X) V gain(t) V^T (y - f_0(X)), K(X, X) = V diag(lambda) V^T.

        Args:
            Z: (m, d) test inputs.
            t: a time in [0, inf] or an array (T,) of times, in the unit of d theta/dt = -grad C; inf is the
                minimum-norm limit.

        Returns:
            (m,), or (m, c) for y of shape (n, c); with a leading axis (T,) for an array of times.

        Raises:
            ValueError: a negative or NaN time, or bad Z.
        """
        points, times = self.data.inputs(Z), validation.times(t)
        size = times.size * self.residual.shape[1] * (len(points) + 2 * len(self.values))
        memory.require(8 * size, f"predictions at {times.size} times")
        weighted = self.gain(np.atleast_1d(times))[:, :, None] * self.residual
        moved = np.einsum("mn,tnc->tmc", self.projected(points), weighted, optimize=True)
        values = _start(self.data, self.initial, points) + moved
        return self.data.outputs(values if times.ndim else values[0], Z)

    def loss(self, t: float | Float[Array, " T"]) -> Float[Array, "*T"] | float:
        """C(f_t) = (1/n) sum_i |f_t(x_i) - y_i|^2 on the training set, in the square of y's unit; t as in `predict`."""
        times = validation.times(t)
        power = np.sum(self.residual**2, axis=1)
        lam = np.where(self._null, 0.0, self.values)
        with np.errstate(invalid="ignore", over="ignore"):
            decay = np.where(lam > 0, np.exp(-4 * lam * np.atleast_1d(times)[:, None] / len(lam)), 1.0)
        losses = decay @ power / len(lam)
        return losses if times.ndim else float(losses[0])


def gradient_flow(
    k: Kernel,
    X: Float[Array, "n d"],
    y: Float[Array, "n *c"],
    *,
    loss: str = "squared_error",
    initial: Function | None = None,
) -> GradientFlow:
    """f_t(X) - y = exp(-2 K(X, X) t/n) (f_0(X) - y): kernel gradient descent on C(f) = (1/n) sum |f(x_i) - y_i|^2.

    With k = ntk(net) this is gradient descent on an infinitely wide network (Corollary 4.4 of the paper). One
    eigendecomposition, about 9 n^3 flops, serves every time. Computed in float64; results are NumPy float64 arrays, or
    JAX arrays where Z is one.

    Args:
        k: a kernel.
        X: (n, d) inputs.
        y: (n,) or (n, c) targets.
        loss: "squared_error".
        initial: f_0, a function of (m, d) NumPy inputs that returns the shape y has; 0 unless given.

    Returns:
        A `GradientFlow` with predict and loss. At t = inf: f_0(z) + K(z, X) K(X, X)^+ (y - f_0(X)), from f_0 = 0 the
        interpolant of smallest RKHS norm, or, where labels conflict, the least-squares fit of smallest norm.

    Raises:
        TypeError, ValueError: bad data, an unknown loss, an initial function of a wrong shape, a kernel that is not
            positive semi-definite.
        MemoryError: the kernel matrix or its eigenvectors do not fit.
    """
    data = training_set(k, X, y)
    if loss != "squared_error":
        raise ValueError(f'loss must be "squared_error", got {loss!r}.')
    if initial is not None and not callable(initial):
        raise TypeError(f"initial must be a function of (m, d) inputs, got {type(initial).__name__}.")
    values, vectors = linalg.eigenpairs(data.gram())
    residual = vectors.T @ (data.y - _start(data, initial, data.X))
    return GradientFlow(data, initial, values, vectors, residual)


def _start(data: TrainingSet, initial: Function | None, points: np.ndarray) -> np.ndarray:
    """f_0 at (m, d) points, (m, c)."""
    shape = (len(points), data.y.shape[1])
    if initial is None:
        return np.zeros(shape)
    values = np.asarray(validation.as_float_array("the result of initial", initial(points)), np.float64)
    if values.shape != shape and not (data.single and values.shape == shape[:1]):
        raise ValueError(
            f"initial must map ({shape[0]}, {points.shape[1]}) inputs to shape "
            f"{shape[:1] if data.single else shape}, as y has; it returned shape {values.shape}."
        )
    if not np.isfinite(values).all():
        raise ValueError("initial returned NaN or infinite values.")
    return values.reshape(shape)
