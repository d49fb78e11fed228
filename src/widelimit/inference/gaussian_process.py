"""Gaussian processes are distributions of functions."""

import math
from dataclasses import dataclass, replace
from typing import Any, Self, final

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from widelimit import memory, validation
from widelimit.compute import linalg, threads, tiles
from widelimit.compute.plan import require_matrices
from widelimit.inference.conditioning import posterior
from widelimit.inference.training_set import Function, difference, evaluate, points_of, prediction_like, scalar_kernel
from widelimit.kernels.base import Kernel
from widelimit.pytrees import pytree
from widelimit.shapes import Float
from widelimit.validation import Array


def _whiten(kernel: tiles.PairKernel, x: Any, known: Any, whitener: jax.Array) -> jax.Array:
    """Compute K(x, X) W^T, (n, rank)."""
    return jnp.matmul(kernel.pairwise(x, known), whitener.T, precision="highest")


_compiled_whiten = jax.jit(_whiten)


@final
@pytree
class Conditioned(Kernel):
    """The kernel is K(x, x') - K(x, X) (K(X, X) + noise)^{-1} K(X, x'): made by `GaussianProcess.condition`.

    A value on the diagonal that is smaller than the rounding error of this difference is 0.
    """

    kernel: tiles.PairKernel
    X: np.ndarray
    whitener: np.ndarray
    """W with W^T W = (K(X, X) + noise)^+, (rank, n)."""
    error: float
    """Rounding of the difference, relative to K(x, x)."""

    def prepared(self, *inputs: Float[Array, "n d"]) -> tiles.PairKernel:
        if not isinstance(self.kernel, Kernel):
            return self
        prepared: tiles.PairKernel = replace(self, kernel=self.kernel.prepared(*inputs, self.X.astype(inputs[0].dtype)))
        return prepared

    @property
    def operands(self) -> tuple[tiles.PairKernel, ...]:
        return (self.kernel,)

    def numbers_per_input(self, d: int) -> int:
        return self.kernel.numbers_per_input(d) + len(self.whitener)

    def encode(self, X: Float[jax.Array, "n d"]) -> Any:
        features, known = self.kernel.encode(X), self.kernel.encode(jnp.asarray(self.X, X.dtype))
        whiten = _whiten if self.eager else _compiled_whiten
        return features, whiten(self.kernel, features, known, jnp.asarray(self.whitener, X.dtype))

    def pairwise(self, x: Any, y: Any, *, same: bool | jax.Array = False) -> Float[jax.Array, "n m"]:
        explained = jnp.matmul(x[1], y[1].T, precision="highest")
        return self.kernel.pairwise(x[0], y[0], same=same) - explained

    def diagonal(self, x: Any) -> Float[jax.Array, " n"]:
        prior = self.kernel.diagonal(x[0])
        rest = prior - jnp.sum(x[1] ** 2, axis=1)
        return jnp.where(jnp.abs(rest) <= jnp.asarray(self.error, prior.dtype) * prior, 0, rest)


@final
@dataclass(frozen=True)
class GaussianProcess:
    """f is a process: (f(x_1), ..., f(x_n)) ~ N(m(X), K(X, X)) for all x_1, ..., x_n (Definition 2.3 of the paper).

    The covariance may be degenerate: samples and densities live on its support, and `rank` gives the dimension.

    Args:
        kernel: K, shared by all outputs.
        mean: m, a function of (n, d) NumPy inputs that returns (n,), or (n, c); 0 unless given.
        outputs: shape of one value: () for a scalar, (c,) for c independent outputs (Theorem 2.6).

    Raises:
        TypeError, ValueError: not a kernel, not a function, not () or (c,) with c >= 1.
    """

    kernel: Kernel
    mean: Function | None = None
    outputs: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        scalar_kernel(self.kernel)
        if self.mean is not None:
            validation.function("mean", self.mean, "a function of (n, d) inputs")
        if not isinstance(self.outputs, tuple) or len(self.outputs) > 1:
            raise TypeError(
                f"outputs must be () or (c,), the shape of one value, got {validation.shown(self.outputs)}."
            )
        for count in self.outputs:
            validation.integer("the number of outputs", count, at_least=1)

    def rank(self, X: Float[Array, "n d"]) -> int:
        """Return the dimension of the support of f(X): the pivots of K(X, X) above their own rounding, <= n."""
        return self._root(_inputs(self.kernel, "X", X)).rank

    def sample(self, X: Float[Array, "n d"], count: int, *, seed: int = 0) -> Float[Array, "count n *c"]:
        """Draw f(X) = m(X) + R z with R R^T = K(X, X), z ~ N(0, 1): (count, n) or (count, n, c).

        R is a pivoted Cholesky factor of as many columns as the rank, so that a degenerate covariance (duplicate
        inputs, a linear kernel on more points than features) is no special case (Definition 2.2 of the paper).

        Args:
            X: (n, d) inputs.
            count: number of draws, >= 1.
            seed: seed of NumPy's default generator, >= 0.

        Raises: TypeError, ValueError: bad inputs or counts; ArithmeticError: the kernel is not positive semi-definite.
        """
        count = validation.integer("count", count, at_least=1)
        seed = validation.integer("seed", seed, at_least=0)
        points = _inputs(self.kernel, "X", X)
        columns = math.prod(self.outputs)
        memory.require(2 * 8.0 * count * len(points) * columns, f"{count} draws of {len(points)} x {columns} values")
        root = self._root(points)
        normal = np.random.default_rng(seed).standard_normal((count, root.rank, columns))
        draws = self._mean(points) + threads.product(root.root, normal)
        return prediction_like(draws if self.outputs else draws[..., 0], X)

    def log_density(self, X: Float[Array, "n d"], y: Float[Array, "n *c"]) -> float:
        """Compute the log of (2 pi)^(-r/2) pdet(S)^(-1/2) exp(-(y - m)^T S^+ (y - m)/2), S = K(X, X) of rank r.

        Summed over outputs. The density of Definition 2.2, with its normalisation corrected. For a degenerate S it is
        that with respect to the Lebesgue measure on the support m + im(S) (pdet: the product of the nonzero
        eigenvalues); -inf for y off the support by more than sqrt(eps) of the largest |y - m|.

        Args:
            X: (n, d) inputs.
            y: values, (n,), or (n, c) for outputs=(c,).

        Raises: TypeError, ValueError: bad data; ArithmeticError: the kernel is not positive semi-definite.
        """
        points = _inputs(self.kernel, "X", X)
        residual, exponent = linalg.normalise(
            difference("y - mean(X)", self._targets(y, len(points)), self._mean(points))
        )
        pivoted = self._root(points)
        with threads.limit_decomposition(len(points)):
            basis, upper = np.linalg.qr(pivoted.root)
        along = threads.product(basis.T, residual)
        off = np.abs(residual - threads.product(basis, along)).max(axis=0, initial=0.0)
        if (off > math.sqrt(linalg.EPS) * np.abs(residual).max(axis=0, initial=0.0)).any():
            return -math.inf
        with threads.limit(threads.work(len(upper), len(upper), along.shape[1])):
            white = scipy.linalg.solve_triangular(upper, along) if pivoted.rank else along
        log_volume = float(np.sum(np.log(np.abs(np.diagonal(upper)))))
        normaliser = pivoted.rank * math.log(2 * math.pi) / 2 + log_volume
        square = float(linalg.rescale(np.sum(white**2, axis=0), 2 * exponent).sum())
        return float(-square / 2 - residual.shape[1] * normaliser)

    def condition(
        self, X: Float[Array, "n d"], y: Float[Array, "n *c"], *, noise: float | Float[Array, " n"] = 0.0
    ) -> Self:
        """Return the law of f | f(X) + e = y, e ~ N(0, noise): again a Gaussian process, section 2.4 of the paper.

        Mean m(z) + K(z, X) (K(X, X) + noise)^{-1} (y - m(X)), covariance K(z, z') - K(z, X) (...)^{-1} K(X, z'). A
        process may be conditioned again on more data.

        Args:
            X: (n, d) inputs.
            y: values, (n,), or (n, c) for outputs=(c,).
            noise: variance of the observation noise, >= 0, one number or (n,).

        Raises: TypeError, ValueError: bad data; values that cannot be interpolated, as `posterior`.
        """
        points = validation.owned(_inputs(self.kernel, "X", X))
        prior = self._mean(points)
        residual = difference("y - mean(X)", self._targets(y, len(points)), prior)
        post = posterior(self.kernel, points, residual, noise=noise, solver="cholesky")
        error = linalg.rounding(len(points), 1.0) * post.factor.spread
        whitener = validation.seal(post.factor.whiten(np.eye(len(points))))
        kernel = Conditioned(self.kernel, points, whitener, error)

        def mean(Z: np.ndarray) -> np.ndarray:
            values = np.asarray(self._mean(Z) + np.asarray(post.mean(Z)))
            return values if self.outputs else values[:, 0]

        return replace(self, kernel=kernel, mean=mean)

    def _mean(self, points: np.ndarray) -> np.ndarray:
        """Compute m at (n, d) points, (n, c)."""
        count = math.prod(self.outputs)
        if self.mean is None:
            return np.zeros((len(points), count))
        return evaluate("mean", self.mean, points, count=count, single=not self.outputs)

    def _targets(self, y: Any, n: int) -> np.ndarray:
        values = validation.targets("y", y, n)
        if values.shape[1:] != self.outputs:
            raise ValueError(
                f"y must have shape {(n, *self.outputs)} for outputs={self.outputs}, got shape {values.shape}."
            )
        return values.reshape(n, -1)

    def _root(self, points: np.ndarray) -> linalg.PivotedCholesky:
        require_matrices(len(points), 4, "a root of the covariance")
        covariance = np.asarray(self.kernel.gram(points))
        if not np.isfinite(covariance).all():
            raise ValueError("the kernel is NaN or infinite at some rows of X; scale X down.")
        return linalg.pivoted_cholesky(covariance, _rounding(self.kernel, points, np.diagonal(covariance)))


def _rounding(kernel: Kernel, points: np.ndarray, diagonal: np.ndarray) -> np.ndarray:
    """Bound the rounding error of each K(x, x), (n,): a prior's, and that of the difference that makes a posterior."""
    if isinstance(kernel, Conditioned) and isinstance(kernel.kernel, Kernel):
        prior = np.asarray(kernel.kernel.diag(points))
        before = _rounding(kernel.kernel, points, prior)
        return np.asarray(np.maximum(before, kernel.error * prior))
    return np.asarray(linalg.rounding(len(points), 1.0) * np.abs(diagonal))


def _inputs(kernel: Any, name: str, X: Any) -> np.ndarray:
    return np.asarray(points_of(kernel, name, X), np.float64)
