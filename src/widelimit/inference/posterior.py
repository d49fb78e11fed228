"""Bayesian inference starts from a Gaussian-process prior."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from widelimit import memory, validation
from widelimit.arithmetic import arithmetic, outside
from widelimit.compute import devices, linalg, threads
from widelimit.compute.device_factors import DeviceFactor
from widelimit.compute.iterative import Iterative
from widelimit.compute.operators import Shifted
from widelimit.compute.plan import require_matrices
from widelimit.inference.coordinates import named_numbers
from widelimit.inference.solvers import SolverFit
from widelimit.inference.traced import TracedPosterior, at_traced_points
from widelimit.inference.training_set import (
    Prediction,
    TrainingSet,
    at_location,
    check_finite,
    prediction_like,
    row_blocks,
)
from widelimit.kernels.base import Kernel
from widelimit.shapes import Float
from widelimit.validation import Array

GRADIENT = 8
"""(n, n) matrices, at least, that a derivative through K(X, X) holds at once."""


class LeaveOneOut(NamedTuple):
    """The predictions are of each training point from all of the others."""

    mean: Float[np.ndarray, "n *c"]
    variance: Float[np.ndarray, " n"]
    """The variance is that of f, without observation noise, as `Posterior.variance`."""


class LikelihoodGradient(NamedTuple):
    """The gradient is the slope of the log marginal likelihood in every hyper-parameter."""

    kernel: Kernel
    """A pytree like the kernel: every leaf holds the derivative with respect to that hyper-parameter."""
    noise: Float[np.ndarray, "*n"]
    """The derivative with respect to the noise, () or (n,), as the noise is."""


@jax.jit
def _contraction(kernel: Kernel, X: jax.Array, weights: jax.Array) -> Kernel:
    """Compute the gradient of sum_ij weights_ij K(x_i, x_j) in every leaf of the kernel."""

    def total(kernel: Kernel) -> jax.Array:
        return jnp.sum(weights * kernel.gram(X))

    gradient: Callable[[Kernel], Kernel] = jax.grad(total)
    return gradient(kernel)


@final
@dataclass(frozen=True)
class Posterior:
    """The posterior is f | y for f ~ GP(0, K), y = f(X) + N(0, noise): made by `posterior`.

    Every output is an independent process with this covariance, so variance and covariance have no output axis.
    """

    data: TrainingSet
    noise: np.ndarray
    fit: SolverFit

    def __post_init__(self) -> None:
        validation.seal(self.fit.weights)

    @property
    def factor(self) -> linalg.Factor:
        """Return K(X, X) + noise, solved for."""
        return self.fit.factor

    @property
    def weights(self) -> Float[np.ndarray, "n c"]:
        """Return (K(X, X) + noise)^{-1} y."""
        return self.fit.weights

    @functools.cached_property
    @at_location
    def residual(self) -> float:
        """Return |y - (K(X, X) + noise) weights|/|y|, the largest over outputs, from products in float64.

        Conjugate gradients and mixed precision have measured it; for a factor it is computed when first asked for, at
        the cost of the kernel matrix.
        """
        if self.fit.residual is not None:
            return self.fit.residual
        exact = Shifted(self.data.matrix(), np.broadcast_to(self.noise, len(self.data.X)))
        y, exponent = linalg.normalise(self.data.y)
        return linalg.relative_size(y - exact.product(linalg.rescale(self.weights, -exponent)), y)

    def explain(self) -> str:
        """Explain which solver found the weights of which kernel, where the matrix was kept, why, and how exactly."""
        choice = self.fit.choice
        name = {"cholesky": "Cholesky factorisation", "cg": "conjugate gradients"}[choice.solver]
        outcome = "converged" if self.fit.converged else "not converged"
        lines = [
            f"{name}, storage {choice.storage}, {self.data.y.shape[1]} right-hand sides",
            f"why: {choice.why}",
            f"runs on: {(self.data.location or devices.choose()).describe()}",
            f"outcome: {self.fit.message} ({outcome})",
            f"relative residual: {self.residual:.2g}",
        ]
        if self.factor.rank < len(self.data.X):
            lines.append(f"numerical rank {self.factor.rank} of {len(self.data.X)}: the minimum-norm solution")
        if numbers := named_numbers(self.data.kernel):
            lines.append(f"hyper-parameters: {numbers}")
        return "\n".join(lines)

    @functools.cached_property
    def _at_traced_points(self) -> TracedPosterior:
        root = None if isinstance(self.factor, Iterative) else outside(self.factor.whiten)(np.eye(len(self.data.X)))
        return at_traced_points(self.data, self.noise, root, self.weights)

    @linalg.ignore_overflow()
    def mean(self, Z: Float[Array, "m d"]) -> Float[Array, "m *c"]:
        """Compute K(Z, X) (K(X, X) + noise)^{-1} y: (m, d) -> (m,), or (m, c) for y of shape (n, c)."""
        if validation.traced(Z):
            return self._at_traced_points.mean(Z)
        points = self.data.inputs(Z)
        return self.data.outputs(self._mean(points), Z)

    def _mean(self, points: np.ndarray) -> np.ndarray:
        return self.data.expansion(points, self.weights)

    def _rounding(self, prior: np.ndarray) -> np.ndarray:
        return np.asarray(linalg.rounding(len(self.data.X), 1.0) * self.factor.spread * prior)

    def _known(self, variance: np.ndarray, prior: np.ndarray, points: np.ndarray) -> np.ndarray:
        """Return the variances, 0 where a difference left no more than its rounding. Raises: as `linalg.non_negative`.

        The bound by the condition number holds for any right-hand side. A row below it gets its own: with |w| the sum
        of its weights' sizes, w = A^{-1} K(X, z), changes of K by eps change the difference by eps max K (1 + |w|)^2;
        n of them with random signs add up to sqrt(n) times that.
        """
        out, n = linalg.non_negative(variance, self._rounding(prior)), len(self.data.X)
        close = np.flatnonzero(variance <= self._rounding(prior))
        if self.factor.rank == n:
            for rows in (close[part] for part in row_blocks(len(close))):
                size = self._sizes(points[rows])
                largest = np.maximum(prior[rows], self.data.diagonal(self.data.X).max())
                out[rows] = np.where(variance[rows] > n**0.5 * linalg.EPS * largest * size**2, variance[rows], 0.0)
        return out

    @at_location
    def _sizes(self, points: np.ndarray) -> np.ndarray:
        """Compute 1 + |A^{-1} K(X, z)|_1, (m,)."""
        if isinstance(self.factor, DeviceFactor):
            return self.factor.sizes(points)
        return np.asarray(1 + np.abs(self.factor.solve(self.data.cross(points).T)).sum(axis=0))

    @at_location
    def _moments(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Compute the mean, (m, c), and K(z, X) A^+ K(X, z), (m,)."""
        if isinstance(self.factor, DeviceFactor):
            return self.factor.moments(points, self.weights)
        mean, squares = np.empty((len(points), self.weights.shape[1])), np.empty(len(points))
        for part in row_blocks(len(points)):
            cross = self.data.cross(points[part])
            # By SciPy's BLAS, as the squares: NumPy's has threads of its own, which would still spin beside them.
            with threads.limit(threads.work(len(cross), cross.shape[1], self.weights.shape[1])):
                mean[part] = scipy.linalg.blas.dgemm(1.0, cross.T, self.weights, trans_a=1)
            squares[part] = self.factor.squares(cross.T)
            del cross  # overwritten by its own squares, and as large as the next one
        return mean, squares

    def variance(self, Z: Float[Array, "m d"]) -> Float[Array, " m"]:
        """Compute the diagonal of `covariance`, (m, d) -> (m,), of f without observation noise; never negative.

        A variance smaller than the rounding error of the difference it comes from is 0.

        Raises: ArithmeticError: negative beyond rounding: the kernel is not positive semi-definite.
        """
        return self.predict(Z).variance

    @linalg.ignore_overflow()
    def predict(self, Z: Float[Array, "m d"]) -> Prediction:
        """Compute `mean` and `variance` in one pass, with K(Z, X) once: (m, d) -> (m,) or (m, c), and (m,).

        Raises: the errors of `variance`.
        """
        if validation.traced(Z):
            return self._at_traced_points.predict(Z)
        points = self.data.inputs(Z)
        prior = self.data.diagonal(points)
        mean, squares = self._moments(points)
        variance = self._known(prior - squares, prior, points)
        return Prediction(self.data.outputs(mean, Z), prediction_like(variance, Z))

    @linalg.ignore_overflow()
    def covariance(self, Z: Float[Array, "m d"]) -> Float[Array, "m m"]:
        """Compute K(Z, Z) - K(Z, X) (K(X, X) + noise)^{-1} K(X, Z): (m, d) -> (m, m), of f without noise.

        The result is symmetric to the bit.
        """
        if validation.traced(Z):
            return self._at_traced_points.covariance(Z)
        return prediction_like(self._covariance(self.data.inputs(Z)), Z)

    @at_location
    def _covariance(self, points: np.ndarray) -> np.ndarray:
        m, n = len(points), len(self.data.X)
        memory.require(8.0 * (4 * m * m + 2 * m * n), f"the covariance of {m} points")
        if isinstance(self.factor, DeviceFactor):
            covariance = self.factor.rows.gram(points)
            prior = np.diagonal(covariance).copy()
            covariance -= self.factor.reduction(points)
        else:
            covariance = np.asarray(self.data.kernel.gram(points))
            prior = np.diagonal(covariance).copy()
            covariance -= self.factor.form(self.data.cross(points).T)
        covariance = np.asarray((covariance + covariance.T) / 2)
        np.fill_diagonal(covariance, self._known(np.diagonal(covariance), prior, points))
        return covariance

    @linalg.ignore_overflow()
    def sample(self, Z: Float[Array, "m d"], count: int, *, seed: int = 0) -> Float[Array, "count m *c"]:
        """Draw f(Z) from the posterior (without noise): (count, m), or (count, m, c) for y of shape (n, c).

        Args:
            Z: (m, d) test inputs.
            count: number of draws, >= 1.
            seed: seed of NumPy's default generator.
        """
        count, seed = validation.integer("count", count, at_least=1), validation.integer("seed", seed, at_least=0)
        points = self.data.inputs(Z)
        m, c = len(points), self.weights.shape[1]
        memory.require(8.0 * (3 * count * m * c + 4 * m * m), f"{count} draws of {m} x {c} values")
        prior = self.data.diagonal(points)
        error = m * float(self._rounding(prior).max() + self.data.error * prior.max())
        covariance = check_finite(self._covariance(points), points)
        return self.data.outputs(linalg.gaussian_draws(self._mean(points), covariance, error, count, seed), Z)

    def log_marginal_likelihood(self) -> float:
        """Return log N(y; 0, K(X, X) + noise), summed over outputs: -y.alpha/2 - log det/2 - (n/2) log(2 pi).

        -inf where y is so large that y.alpha leaves float64's range.

        Raises: ValueError: the covariance is singular, so that y has no density; pass a noise.
        """
        n, c = self.data.y.shape
        if self.factor.rank < n:
            raise ValueError(
                f"K(X, X) + noise has numerical rank {self.factor.rank} of {n}: y has no density. Pass a larger noise."
            )
        y, exponent = linalg.normalise(self.data.y)
        squares = np.sum(y * linalg.rescale(self.weights, -exponent), axis=0)
        quadratic = float(linalg.rescale(squares, 2 * exponent).sum())
        normaliser = self.factor.log_determinant() + n * math.log(2 * math.pi)
        return float(-(quadratic + c * normaliser) / 2)

    def _require_inverse(self) -> None:
        n = len(self.data.X)
        if self.factor.rank < n:
            raise ValueError(
                f"K(X, X) + noise has numerical rank {self.factor.rank} of {n} and no inverse. Pass a larger noise."
            )

    def _inverse_diagonal(self) -> np.ndarray:
        if not isinstance(self.factor, DeviceFactor):
            return np.diagonal(self.precision())
        self._require_inverse()
        return self.factor.inverse_diagonal()

    def precision(self) -> Float[np.ndarray, "n n"]:
        """Return (K(X, X) + noise)^{-1}, (n, n), on the host. Raises: ValueError: singular."""
        n = len(self.data.X)
        self._require_inverse()
        require_matrices(n, 3, "the inverse")
        whitener = self.factor.whiten(np.eye(n))
        return threads.product(whitener.T, whitener)

    def leave_one_out(self) -> LeaveOneOut:
        """mu_i = y_i - alpha_i/Q_ii, sigma_i^2 = 1/Q_ii - noise_i with Q = (K(X, X) + noise)^{-1}, alpha = Q y.

        Mean and variance of f(x_i) given all points but the i-th, as from n refits, at the cost of one inverse.
        Source: Rasmussen and Williams 2006, equation (5.12).

        Returns:
            mean, (n,) or (n, c), and variance, (n,), as NumPy arrays; a variance smaller than its rounding error is 0.

        Raises: ValueError: K(X, X) + noise is singular.
        """
        own = self._inverse_diagonal()
        y, exponent = linalg.normalise(self.data.y)
        mean = linalg.rescale(y - linalg.rescale(self.weights, -exponent) / own[:, None], exponent)
        return LeaveOneOut(mean[:, 0] if self.data.single else mean, self.variance_without(own))

    def variance_without(self, own: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """1/Q_ii - noise_i, the variance of f(x_i) given all points but the i-th, from the diagonal of `precision`."""
        error = linalg.rounding(len(own), 1.0) * self.factor.spread * (1 / own + self.noise)
        return linalg.non_negative(1 / own - self.noise, error)

    def require_squares(self) -> None:
        """Refuse weights whose squares overflow. Raises: ValueError."""
        with np.errstate(over="ignore"):
            if np.isfinite(np.square(self.weights).sum()):
                return
        largest = float(np.abs(self.data.y).max())
        raise ValueError(f"the slope of the likelihood leaves float64's range, as y reaches {largest:.3g}: scale y.")

    @at_location
    def log_marginal_likelihood_gradient(self) -> LikelihoodGradient:
        """d log N(y; 0, A)/d theta = tr((alpha alpha^T - c A^{-1}) dA/d theta)/2, A = K(X, X) + noise.

        With respect to every hyper-parameter: the leaves of the kernel (for nngp(net): weight_std and bias_std of the
        first and of the repeated layers, and the activation's parameters) by automatic differentiation, and the noise.
        Source: Rasmussen and Williams 2006, equation (5.9).

        Raises:
            TypeError: the kernel cannot be traced. `fit_hyperparameters(..., gradient="differences")` takes differences
                instead. Tabulated activations such as tanh give NaN for signals of standard deviations beyond 8.
            ValueError: K(X, X) + noise is singular.
        """
        if isinstance(self.factor, DeviceFactor):
            self.require_squares()
            self._require_inverse()
            slopes, each = self.factor.slopes(self.data.kernel, self.weights)
            return LikelihoodGradient(slopes, each if self.noise.ndim else np.asarray(each.sum()))
        require_matrices(len(self.data.X), GRADIENT, "the gradient of the likelihood")
        weights = self.sensitivity()
        with arithmetic(True):
            kernel = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), self.data.kernel)
            slopes = _contraction(kernel, jnp.asarray(self.data.X), jnp.asarray(weights))
            slopes = jax.tree.map(np.asarray, slopes)
        each = np.diagonal(weights)
        return LikelihoodGradient(slopes, each.copy() if self.noise.ndim else np.asarray(each.sum()))

    def sensitivity(self) -> Float[np.ndarray, "n n"]:
        """(alpha alpha^T - c A^{-1})/2, the derivative of the log marginal likelihood in A = K(X, X) + noise.

        Raises: ValueError: it leaves float64's range, or A is singular.
        """
        self.require_squares()
        return np.asarray((threads.product(self.weights, self.weights.T) - self.data.y.shape[1] * self.precision()) / 2)
