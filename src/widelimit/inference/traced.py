"""Inference inside jit, vmap and grad: in data, test points, noise, time and every leaf of a kernel.

`posterior`, `gradient_flow` and `trained_ensemble` return the objects of this module where JAX traces their arguments,
and what they return otherwise hands test points and times that are traced to them. Values cannot be checked under a
trace: where the doors would refuse labels that cannot be interpolated, the result is NaN.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np

from widelimit import validation
from widelimit.arithmetic import arithmetic
from widelimit.compute import implicit
from widelimit.compute.implicit import product
from widelimit.inference.training_set import Prediction, TrainingSet, scalar_kernel
from widelimit.kernels.base import Kernel
from widelimit.pytrees import pytree
from widelimit.shapes import Float
from widelimit.validation import Array

BLOCK = 64
"""Rows of a kernel matrix that are differentiated at once."""


def is_traced(*values: Any) -> bool:
    """Return True if JAX traces any leaf of the values."""
    return validation.traced(*jax.tree.leaves(values))


@final
@pytree
class TracedData:
    """The data are X (n, d), y (n, c) and the kernel, in one dtype."""

    kernel: Kernel
    X: Array
    y: Array
    single: bool = field(metadata={"static": True})

    @property
    def settings(self) -> AbstractContextManager[None]:
        """Return the settings of JAX for the dtype of the data."""
        return arithmetic(self.X.dtype == np.float64)

    def gram(self) -> jax.Array:
        """Compute K(X, X), by blocks of rows whose derivatives are computed from the rows again, not from memory."""
        X, n = jnp.asarray(self.X), len(self.X)
        if n <= BLOCK:
            return jnp.asarray(self.kernel.gram(X))
        own = jnp.asarray(self.kernel.diag(X))
        kernel = self.kernel

        @jax.checkpoint
        def block(kernel: Kernel, X: jax.Array, own: jax.Array, rows: jax.Array) -> jax.Array:
            values = jnp.asarray(kernel.cross(X[rows], X))
            return jnp.where(rows[:, None] == jnp.arange(n), own, values)

        rows = jnp.minimum(jnp.arange(-(-n // BLOCK) * BLOCK), n - 1).reshape(-1, BLOCK)
        blocks = jax.lax.map(lambda some: block(kernel, X, own, some), rows)
        return jnp.asarray(blocks.reshape(-1, n)[:n])

    def cross(self, points: jax.Array) -> jax.Array:
        """Compute K(Z, X)."""
        return jnp.asarray(self.kernel.cross(points, jnp.asarray(self.X)))

    def inputs(self, Z: Any) -> jax.Array:
        """Return test inputs (m, d) in the dtype of the data. Raises: TypeError, ValueError."""
        points = self.kernel.points("Z", Z)
        validation.same_features("Z", points, "X", self.X)
        if self.X.dtype == np.float64:
            _require_wide("Z", points)
        with self.settings:
            return jnp.asarray(points, self.X.dtype)

    def outputs(self, values: jax.Array) -> jax.Array:
        """Return (..., c) results, without the last axis if y had none."""
        return jnp.asarray(values[..., 0] if self.single else values)


def _wide() -> bool:
    """Return True where JAX has float64."""
    return bool(jax.dtypes.canonicalize_dtype(np.float64) == np.float64)


def _require_wide(name: str, value: Array) -> None:
    """Refuse values of a trace in float32 beside data in float64. Raises: TypeError."""
    if not _wide():
        raise TypeError(
            f"jax is tracing (jit, grad or vmap) and the data are float64, but float64 is off in JAX, so that {name} "
            f"is {value.dtype}: put the whole transformation under `with jax.enable_x64():`."
        )


def traced_data(kernel: Any, X: Any, y: Any) -> TracedData:
    """Check shapes and dtypes of data that JAX traces. Raises: TypeError, ValueError."""
    kernel = scalar_kernel(kernel)
    X, y = kernel.points("X", X), validation.as_float_array("y", y)
    if y.ndim not in (1, 2) or len(y) != len(X) or 0 in y.shape:
        raise ValueError(f"y must have shape ({len(X)},) or ({len(X)}, c) for {len(X)} rows of X, got shape {y.shape}.")
    dtype = np.result_type(X.dtype, y.dtype)
    if dtype == np.float64 and not _wide():
        raise TypeError(
            "jax is tracing (jit, grad or vmap), X or y is float64, and float64 is off in JAX: put the whole "
            "transformation under `with jax.enable_x64():`, or pass float32 arrays."
        )
    with arithmetic(dtype == np.float64):
        return TracedData(kernel, jnp.asarray(X, dtype), jnp.asarray(y, dtype).reshape(len(X), -1), y.ndim == 1)


@final
@pytree
class TracedPosterior:
    """The posterior is f | y for f ~ GP(0, K), y = f(X) + N(0, noise), as `Posterior`, inside a trace."""

    data: TracedData
    noise: Array
    factor: implicit.Factor | None
    """None after conjugate gradients."""
    weights: Array
    """(K(X, X) + noise)^+ y, (n, c); NaN where y is not in the range of a singular matrix."""
    matrix: Array | None
    """K(X, X) + noise; None where it does not depend on what is traced."""

    def _solve(self, B: jax.Array) -> jax.Array:
        if self.factor is None:
            raise ValueError(
                "conjugate gradients have no factor, which variances at test points that jax traces need: pass "
                'solver="cholesky" to posterior.'
            )
        if self.matrix is None:
            return self.factor.solve(B)
        return implicit.solve(jnp.asarray(self.matrix), self.factor, B)

    @property
    def residual(self) -> jax.Array:
        """Return |y - (K(X, X) + noise) weights|/|y|, the largest over outputs."""
        with self.data.settings:
            y = jnp.asarray(self.data.y)
            unit = jnp.max(jnp.abs(y), axis=0)
            unit = jnp.where(unit > 0, unit, 1)  # squares of y itself may overflow, or vanish
            left = jnp.linalg.norm((y - product(self.matrix, self.weights)) / unit, axis=0)
            size = jnp.linalg.norm(y / unit, axis=0)
            return jnp.max(left / jnp.where(size > 0, size, 1))

    def mean(self, Z: Float[Array, "m d"]) -> Float[jax.Array, "m *c"]:
        """Compute K(Z, X) (K(X, X) + noise)^{-1} y: (m, d) -> (m,) or (m, c)."""
        points = self.data.inputs(Z)
        with self.data.settings:
            return self.data.outputs(product(self.data.cross(points), self.weights))

    def variance(self, Z: Float[Array, "m d"]) -> Float[jax.Array, " m"]:
        """Compute the diagonal of `covariance`, (m,); 0 where no more than its rounding is left."""
        return jnp.asarray(self.predict(Z).variance)

    def predict(self, Z: Float[Array, "m d"]) -> Prediction:
        """Compute `mean` and `variance`, with K(Z, X) once: (m,) or (m, c), and (m,)."""
        points = self.data.inputs(Z)
        with self.data.settings:
            cross = self.data.cross(points)
            prior = jnp.asarray(self.data.kernel.diag(points))
            rest = self._known(prior - jnp.sum(cross.T * self._solve(cross.T), axis=0), prior)
            return Prediction(self.data.outputs(product(cross, self.weights)), rest)

    def covariance(self, Z: Float[Array, "m d"]) -> Float[jax.Array, "m m"]:
        """Compute K(Z, Z) - K(Z, X) (K(X, X) + noise)^{-1} K(X, Z): (m, d) -> (m, m)."""
        points = self.data.inputs(Z)
        with self.data.settings:
            cross, prior = self.data.cross(points), jnp.asarray(self.data.kernel.gram(points))
            rest = prior - product(cross, self._solve(cross.T))
            own = self._known(jnp.diagonal(rest), jnp.diagonal(prior))
            return jnp.asarray(jnp.fill_diagonal((rest + rest.T) / 2, own, inplace=False))

    def _known(self, variance: jax.Array, prior: jax.Array) -> jax.Array:
        """Return the variances, 0 up to n eps of the prior's."""
        rounding = len(self.data.X) * np.finfo(prior.dtype).eps * prior
        return jnp.where(jnp.abs(variance) <= rounding, 0, variance)

    def log_marginal_likelihood(self) -> jax.Array:
        """Compute log N(y; 0, K(X, X) + noise), summed over outputs; NaN where that matrix is singular."""
        n, c = self.data.y.shape
        with self.data.settings:
            quadratic = jnp.sum(self.data.y * self.weights)
            volume = implicit.log_determinant(jnp.asarray(self.matrix), self.factor)
            return jnp.asarray(-(quadratic + c * (volume + n * math.log(2 * math.pi))) / 2)

    def leave_one_out(self) -> Prediction:
        """Compute mean and variance of f(x_i) from all other points, as `Posterior`; NaN of a singular matrix."""
        with self.data.settings:
            own = jnp.diagonal(self._solve(jnp.eye(len(self.data.X), dtype=self.data.X.dtype)))
            regular = self.factor is None or self.factor.regular
            left = 1 / jnp.where(regular, own, jnp.nan)
            mean = self.data.y - self.weights * left[:, None]
            return Prediction(self.data.outputs(jnp.asarray(mean)), self._known(left - self.noise, left + self.noise))


def traced_posterior(kernel: Any, X: Any, y: Any, noise: Any) -> TracedPosterior:
    """Condition on data of which JAX traces something. Raises: TypeError, ValueError: wrong shapes and dtypes."""
    data = traced_data(kernel, X, y)
    variance = validation.as_float_array("noise", noise)
    if not is_traced(noise):
        variance = validation.noise(noise, len(data.X))
    elif variance.shape not in ((), data.X.shape[:1]):
        raise ValueError(f"noise must be a number or of shape ({len(data.X)},), got shape {variance.shape}.")
    with data.settings:
        noises = jnp.asarray(variance, data.X.dtype)
        noises = jnp.where((noises >= 0) & (noises < jnp.inf), noises, jnp.nan)
        matrix = data.gram()
        matrix = matrix + jnp.where(jnp.eye(len(matrix), dtype=bool), noises, 0)  # a scatter's derivative would copy it
        factor = implicit.factorise(matrix)
        weights = implicit.solve(matrix, factor, jnp.asarray(data.y))
        interpolating = jnp.where(factor.regular, weights, _interpolating(matrix, weights, data.y))
        return TracedPosterior(data, noises, factor, interpolating, matrix)


def _interpolating(matrix: jax.Array, weights: jax.Array, y: Array) -> jax.Array:
    """Return the weights, NaN for labels off the range of a singular matrix by more than half of their digits."""
    matrix, y = jax.lax.stop_gradient((matrix, jnp.asarray(y)))
    missed = jnp.max(jnp.abs(y - product(matrix, jax.lax.stop_gradient(weights))), axis=0)
    bound = jnp.sqrt(np.finfo(y.dtype).eps) * jnp.max(jnp.abs(y), axis=0)
    return jnp.where(missed <= bound, weights, jnp.nan)


def known_data(data: TrainingSet) -> TracedData:
    """Return data that are known, for test points or times that JAX traces."""
    return TracedData(scalar_kernel(data.kernel), data.X, data.y, data.single)


def at_traced_points(
    data: TrainingSet, noise: np.ndarray, root: np.ndarray | None, weights: np.ndarray
) -> TracedPosterior:
    """Return the posterior of data that are known, for test points that JAX traces."""
    factor = None if root is None else implicit.Factor(root, np.zeros((), bool))
    return TracedPosterior(known_data(data), noise, factor, weights, None)


@final
@dataclass(frozen=True)
class Smoother:
    """The smoother is gain_t(K) = (1 - exp(-2 K t/n))/K for the matrix K, or for its spectrum where that is known."""

    points: int
    """n, the number of training points."""
    matrix: jax.Array | None
    spectrum: implicit.Spectrum | None

    def __call__(self, B: Any, times: jax.Array) -> jax.Array:
        """Compute gain_t(K) B, (n, c), (T,) -> (T, n, c)."""
        clock = 2 * times / self.points
        if self.spectrum is None:
            return implicit.smoothed(self.matrix, B, clock)
        return implicit.smoothed_by(self.spectrum, B, clock)


def _times(t: Any, dtype: Any) -> jax.Array:
    times = jnp.asarray(t if validation.traced(t) else validation.times(t), dtype)
    if times.ndim > 1:
        raise ValueError(f"t must be a number or a one-dimensional array of times, got shape {times.shape}.")
    return jnp.where(times >= 0, times, jnp.nan)


@final
@dataclass(frozen=True)
class TracedFlow:
    """df/dt = -(2/n) K(., X) (f(X) - y) from f_0 = 0, as `GradientFlow`, inside a trace.

    t is the time of d theta/dt = -grad C with C(f) = (1/n) sum_i |f(x_i) - y_i|^2.
    """

    data: TracedData
    smoother: Smoother

    def predict(self, Z: Float[Array, "m d"], t: float | Float[Array, " T"]) -> Float[jax.Array, "*T m *c"]:
        """Compute f_t(Z) for times in [0, inf]: (m,) or (m, c), with a leading axis (T,) for an array of times."""
        points = self.data.inputs(Z)
        with self.data.settings:
            times = _times(t, self.data.X.dtype)
            moved = product(self.data.cross(points), self.smoother(self.data.y, jnp.atleast_1d(times)))
            return self.data.outputs(moved if times.ndim else moved[0])

    def loss(self, t: float | Float[Array, " T"]) -> Float[jax.Array, "*T"]:
        """Compute C(f_t) on the training set."""
        with self.data.settings:
            times = _times(t, self.data.X.dtype)
            alphas = self.smoother(self.data.y, jnp.atleast_1d(times))
            rest = product(self.smoother.matrix, alphas) - self.data.y
            losses = jnp.sum(rest**2, axis=(1, 2)) / len(self.data.X)
            return losses if times.ndim else losses[0]


def traced_flow(kernel: Any, X: Any, y: Any) -> TracedFlow:
    """Start a flow of the squared error from 0, of which JAX traces something. Raises: TypeError, ValueError."""
    data = traced_data(kernel, X, y)
    with data.settings:
        return TracedFlow(data, Smoother(len(data.X), data.gram(), None))


@final
@dataclass(frozen=True)
class TracedEnsemble:
    """f_t(z) = f_0(z) + B_t(z) (y - f_0(X)), f_0 ~ GP(0, Sigma), as `TrainedEnsemble`, inside a trace."""

    flow: TracedFlow
    prior: TracedData
    own: Array
    """Sigma(X, X)."""

    def mean(self, Z: Float[Array, "m d"], t: float | Float[Array, " T"]) -> Float[jax.Array, "*T m *c"]:
        """Compute B_t(Z) y, as `TracedFlow.predict`."""
        return self.flow.predict(Z, t)

    def variance(self, Z: Float[Array, "m d"], t: float | Float[Array, " T"]) -> Float[jax.Array, "*T m"]:
        """Compute the diagonal of `covariance`, (m,) or (T, m)."""
        points = self.flow.data.inputs(Z)
        with self.flow.data.settings:
            between, moved, times = self._parts(points, t)
            prior = jnp.asarray(self.prior.kernel.diag(points))
            square = jnp.sum(moved * product(moved, self.own), axis=2)
            out = prior - 2 * jnp.sum(moved * between, axis=2) + square
            return out if times.ndim else out[0]

    def covariance(self, Z: Float[Array, "m d"], t: float | Float[Array, " T"]) -> Float[jax.Array, "*T m m"]:
        """Compute Sigma(Z, Z) - B Sigma(X, Z) - (B Sigma(X, Z))^T + B Sigma(X, X) B^T, B = B_t(Z)."""
        points = self.flow.data.inputs(Z)
        with self.flow.data.settings:
            between, moved, times = self._parts(points, t)
            crossing = product(moved, between.T)
            square = product(product(moved, self.own), moved.swapaxes(1, 2))
            out = jnp.asarray(self.prior.kernel.gram(points)) + (square - crossing - crossing.swapaxes(1, 2))
            return out if times.ndim else out[0]

    def _parts(self, points: jax.Array, t: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Compute Sigma(Z, X) (m, n), B_t(Z) (T, m, n) and the times."""
        times = _times(t, points.dtype)
        smooth = self.flow.smoother(self.flow.data.cross(points).T, jnp.atleast_1d(times))
        return self.prior.cross(points), smooth.swapaxes(1, 2), times


def traced_ensemble(tangent: Kernel, prior: Kernel, X: Any, y: Any) -> TracedEnsemble:
    """Start the law of trained networks, of which JAX traces something. Raises: TypeError, ValueError."""
    flow, before = traced_flow(tangent, X, y), traced_data(prior, X, y)
    with flow.data.settings:
        return TracedEnsemble(flow, before, before.gram())
