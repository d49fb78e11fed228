"""Solves, determinants and functions of a symmetric positive semi-definite matrix, for JAX to trace.

Derivatives are those of the implicit equations, so that none goes through a factorisation: d(A^+ b) = A^+ (db - dA x),
d log det A = tr(A^{-1} dA), and for a function g of a matrix V g(lambda) V^T the divided differences of g (Daleckii and
Krein 1965). Everything stays on the device of the arrays, in their dtype.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from widelimit.compute import krylov

Matrix = jax.Array
INVERSE_BLOCKS = 8
"""Blocks of rows of an inverse, one computed after another."""
SERIES = 20
"""Terms of a power series up to arguments of 1: the next one is below 1e-19."""


def product(a: Any, b: Any) -> jax.Array:
    """Compute a b at full precision."""
    return jnp.matmul(a, b, precision="highest")


class Factor(NamedTuple):
    """A is factorised, without derivatives."""

    root: jax.Array | np.ndarray
    """L with A = L L^T, lower triangular; or W with W^T W = A^+, which has rows of 0 where A is 0 to rounding."""
    regular: jax.Array | np.ndarray
    """True where root is L."""

    @property
    def log_determinant(self) -> jax.Array:
        """Return log det A; NaN where A is singular to rounding."""
        return jnp.where(self.regular, 2 * jnp.sum(jnp.log(jnp.diagonal(self.root))), jnp.nan)

    def solve(self, B: Any) -> jax.Array:
        """Compute A^+ B, (n, c) -> (n, c)."""
        solution: jax.Array = jax.lax.cond(self.regular, self._by_triangles, self._by_whitener, B)
        return solution

    def _by_triangles(self, B: jax.Array) -> jax.Array:
        solved = functools.partial(jax.lax.linalg.triangular_solve, self.root, left_side=True, lower=True)
        return jnp.asarray(solved(solved(B), transpose_a=True))

    def _by_whitener(self, B: jax.Array) -> jax.Array:
        return product(jnp.asarray(self.root).T, product(self.root, B))


def factorise(A: Matrix) -> Factor:
    """Factorise A: by Cholesky, or by eigenvectors where a pivot is not above its rounding."""
    A = jax.lax.stop_gradient(A)
    rounding = len(A) * np.finfo(A.dtype).eps
    # A^T, as LAPACK and cuSOLVER read by columns: no copy is made to turn it.
    lower = jax.lax.linalg.cholesky(A.T, symmetrize_input=False)
    regular = jnp.all(jnp.square(jnp.diagonal(lower)) > rounding * jnp.diagonal(A))  # False of NaN too

    def whitener(_: None) -> jax.Array:
        vectors, values = jax.lax.linalg.eigh(A.T, symmetrize_input=False)
        kept = values > rounding * values[-1]
        scale = jnp.where(kept, jax.lax.rsqrt(jnp.where(kept, values, 1)), 0)
        return jnp.asarray(scale[:, None] * vectors.T)

    return Factor(jax.lax.cond(regular, lambda _: lower, whitener, None), regular)


def solve(A: Matrix, factor: Factor, B: jax.Array) -> jax.Array:
    """Compute A^+ B, (n, c) -> (n, c), with one step of refinement."""
    fixed = jax.lax.stop_gradient(A)

    def solved(_: Any, B: jax.Array) -> jax.Array:
        first = factor.solve(B)
        return first + factor.solve(B - product(fixed, first))

    solution: jax.Array = jax.lax.custom_linear_solve(lambda V: product(A, V), B, solved, symmetric=True)
    return solution


@jax.custom_jvp
def log_determinant(A: Matrix, factor: Factor) -> jax.Array:
    """Return log det A from its factor; NaN where A is singular to rounding."""
    del A
    return factor.log_determinant


@log_determinant.defjvp
def _slope_of_log_determinant(at: tuple[Matrix, Factor], along: tuple[Matrix, Factor]) -> tuple[Matrix, Matrix]:
    A, factor = at
    return factor.log_determinant, jnp.sum(inverse(A, factor) * along[0])


def inverse(A: Matrix, factor: Factor) -> jax.Array:
    """Compute A^{-1}, (n, n), by blocks of rows: of all and their refinement at once, four matrices would be held."""
    n = len(A)
    width = -(-n // INVERSE_BLOCKS)

    def block(rows: jax.Array) -> jax.Array:
        unit = (jnp.arange(n)[:, None] == rows).astype(A.dtype)  # 0 beyond the last row
        return solve(A, factor, unit).T

    return jnp.asarray(jax.lax.map(block, jnp.arange(INVERSE_BLOCKS * width).reshape(-1, width)).reshape(-1, n)[:n])


class Spectrum(NamedTuple):
    """K = V diag(values) V^T; eigenvalues that are 0 to rounding are `null`, and set to 0."""

    values: jax.Array | np.ndarray
    vectors: jax.Array | np.ndarray
    null: jax.Array | np.ndarray
    fading: jax.Array | float
    """The rate at which the gain of null modes fades, as in `krylov.gain`."""


def spectrum(K: Matrix) -> Spectrum:
    """Compute the eigenvalues, ascending, and the eigenvectors."""
    values, vectors = jnp.linalg.eigh(K)
    eps = np.finfo(K.dtype).eps
    null = values <= len(K) * eps * values[-1]
    return Spectrum(jnp.where(null, 0, values), vectors, null, jnp.sqrt(eps) * values[-1])


def gain(at: Spectrum, clock: jax.Array) -> jax.Array:
    """(1 - exp(-clock lambda))/lambda, (T,) -> (T, n)."""
    return jnp.asarray(krylov.gain(at.values, clock, at.null, at.fading, jnp))


def _speed(at: Spectrum, clock: jax.Array) -> jax.Array:
    """Compute the derivative of `gain` in the clock, (T, n); 0 at infinity."""
    times = clock[:, None]
    finite = jnp.where(jnp.isinf(times), 0, times)
    fading = finite * at.fading
    speed = jnp.where(at.null, (1 - fading) * jnp.exp(-fading), jnp.exp(-finite * at.values))
    return jnp.where(jnp.isinf(times), 0, speed)


def _mean_decay(x: jax.Array) -> jax.Array:
    """g(x) = (1 - exp(-x))/x, x >= 0, with g(0) = 1."""
    safe = jnp.where(x > 0, x, 1)
    return jnp.where(x > 0, -jnp.expm1(-safe) / safe, 1)


def _mean_decay_difference(x: jax.Array, y: jax.Array) -> jax.Array:
    """(g(x) - g(y))/(x - y) for x, y >= 0; g'(x) at x = y.

    From g(x) x = 1 - exp(-x) by the product rule of divided differences, divided by the larger argument; below 1 by the
    power series, as the difference would cancel.
    """
    low, high = jnp.minimum(x, y), jnp.maximum(x, y)
    small = high < 1
    safe = jnp.where(small, 1, high)
    far = (jnp.exp(-low) * _mean_decay(high - low) - _mean_decay(low)) / safe
    a, b = jnp.where(small, low, 0), jnp.where(small, high, 0)
    total, symmetric, power, coefficient = jnp.zeros_like(a), jnp.ones_like(a), jnp.ones_like(a), 1.0
    for k in range(1, SERIES):
        coefficient = -coefficient / (k + 1)
        total = total + coefficient * symmetric  # sum over i + j = k - 1 of a^i b^j
        power = power * b
        symmetric = a * symmetric + power
    return jnp.where(small, total, far)


def _gain_differences(at: Spectrum, clock: jax.Array) -> jax.Array:
    """Compute (gain(lambda_i) - gain(lambda_j))/(lambda_i - lambda_j) at one time, (n, n)."""
    infinite = jnp.isinf(clock)
    time = jnp.where(infinite, 1, clock)
    x, y = at.values[:, None], at.values[None, :]
    gains = gain(at, clock[None])[0]
    kept = ~at.null[:, None] & ~at.null[None, :]
    both = at.null[:, None] & at.null[None, :]
    safe = jnp.where(kept, x * y, 1)
    regular = jnp.where(infinite, -1 / safe, time**2 * _mean_decay_difference(time * x, time * y))
    one = (gains[:, None] - gains[None, :]) / jnp.where(kept | both, 1, x - y)
    none = jnp.where(infinite, 0, -(time**2) / 2 * jnp.exp(-time * at.fading))
    return jnp.where(kept, regular, jnp.where(both, none, one))


@jax.custom_jvp
def smoothed(K: Matrix, B: jax.Array, clock: jax.Array) -> jax.Array:
    """V gain(clock) V^T B for K = V diag(lambda) V^T: (n, c), (T,) -> (T, n, c).

    Second derivatives in K need distinct eigenvalues.
    """
    return smoothed_by(spectrum(K), B, clock)


def smoothed_by(at: Spectrum, B: Any, clock: jax.Array) -> jax.Array:
    """Compute `smoothed` from the spectrum."""
    return product(at.vectors, gain(at, clock)[:, :, None] * product(at.vectors.T, B))


@smoothed.defjvp
def _slope_of_smoothed(
    at: tuple[Matrix, jax.Array, jax.Array], along: tuple[Matrix, jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (K, B, clock), (dK, dB, dclock) = at, along
    eigen = spectrum(K)
    modes = product(eigen.vectors.T, B)
    turned = product(product(eigen.vectors.T, (dK + dK.T) / 2), eigen.vectors)
    of_matrix = jax.lax.map(lambda time: product(_gain_differences(eigen, time) * turned, modes), clock)
    of_time = jnp.where(jnp.isfinite(clock), dclock, 0)[:, None, None] * _speed(eigen, clock)[:, :, None] * modes
    moved = product(eigen.vectors, of_matrix + of_time)
    return smoothed_by(eigen, B, clock), moved + smoothed_by(eigen, dB, clock)
