"""Factors of kernel matrices stay on devices, with the rows that they belong to."""

import abc
import functools
from dataclasses import dataclass
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from widelimit.compute import device_cholesky, devices, linalg
from widelimit.compute.device_cholesky import Layout
from widelimit.compute.device_modes import by_modes, eigenpairs, of_modes
from widelimit.compute.device_rows import DeviceRows, cross_product, first, like
from widelimit.compute.implicit import product
from widelimit.compute.linalg import EPS, Factor

DIFFERENTIATED = 256
"""Columns of a kernel matrix that are differentiated at once."""


@jax.jit
def _moments(K: jax.Array, weights: jax.Array, white: jax.Array) -> tuple[jax.Array, jax.Array]:
    return product(K.T, weights), _squares(white)


_squares = jax.jit(lambda white: jnp.sum(jnp.square(white), axis=0))


_sizes = jax.jit(lambda solved: 1 + jnp.sum(jnp.abs(solved), axis=0))


class DeviceFactor(Factor, abc.ABC):
    """The factor of K(X, X) + noise lies on devices; so do K(X, z) of test points z, whose forms alone come back."""

    rows: DeviceRows
    __getstate__, __setstate__ = devices.get_state, devices.set_state

    @abc.abstractmethod
    def whiten_there(self, b: jax.Array) -> jax.Array:
        """Compute W b with W^T W = A^+; (N, m) -> (r, m)."""

    @abc.abstractmethod
    def solve_there(self, b: jax.Array) -> jax.Array:
        """Compute A^+ b; (N, m) -> (N, m) or (n, m)."""

    def solve(self, b: np.ndarray) -> np.ndarray:
        with self.rows.location.running():
            return devices.to_host(self.solve_there(self.rows.padded(b)), self.rows.location)[: self.rows.form.n]

    def whiten(self, b: np.ndarray) -> np.ndarray:
        with self.rows.location.running():
            return devices.to_host(self.whiten_there(self.rows.padded(b)), self.rows.location)[: self.rows.form.n]

    def moments(self, Z: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Compute K(Z, X) weights, (m, c), and the squares of W K(X, z), (m,)."""
        mean, squares = np.empty((len(Z), weights.shape[1])), np.empty(len(Z))
        with self.rows.location.running():
            there = self.rows.padded(weights)
            for part, K in self.rows.columns(Z):
                found = _moments(K, there, self.whiten_there(K))
                count = part.stop - part.start
                mean[part], squares[part] = (devices.to_host(each, self.rows.location)[:count] for each in found)
        return mean, squares

    def sizes(self, Z: np.ndarray) -> np.ndarray:
        """Compute 1 + |A^{-1} K(X, z)|_1, (m,)."""
        out = np.empty(len(Z))
        with self.rows.location.running():
            for part, K in self.rows.columns(Z):
                out[part] = devices.to_host(_sizes(self.solve_there(K)), self.rows.location)[: part.stop - part.start]
        return out

    def reduction(self, Z: np.ndarray) -> np.ndarray:
        """Compute K(Z, X) A^+ K(X, Z), (m, m)."""
        out = np.empty((len(Z), len(Z)))
        with self.rows.location.running():
            white = [(part, self.whiten_there(K)) for part, K in self.rows.columns(Z)]
            for a, left in white:
                for b, right in white:
                    block = devices.to_host(cross_product(left, right), self.rows.location)
                    out[a, b] = block[: a.stop - a.start, : b.stop - b.start]
        return out

    def inverse_diagonal(self) -> np.ndarray:
        """Compute the diagonal of A^{-1}, (n,), from columns of an identity."""
        form, place = self.rows.form, self.rows.location
        parts = []
        with place.running():
            for start in range(0, form.n, form.edge):
                unit = _unit(form, devices.to_device(np.int64(start), place))
                parts.append(devices.to_host(_squares(self.whiten_there(unit)), place))
        return np.concatenate(parts)[: form.n]

    def slopes(self, kernel: Any, weights: np.ndarray) -> tuple[Any, np.ndarray]:
        """Compute the slope of sum_ij W_ij K(x_i, x_j) in the leaves of the kernel, and W_ii, (n,).

        W = (alpha alpha^T - c A^{-1})/2 for weights alpha (n, c), a block of its columns at a time.
        """
        form, place = self.rows.form, self.rows.location
        found, parts = None, []
        with place.running():
            there, leaves = self.rows.padded(weights), devices.to_device(jax.tree.map(np.float64, kernel), place)
            for start in range(0, form.n, form.edge):
                at = devices.to_device(np.int64(start), place)
                inverse = self.solve_there(_unit(form, at))
                slope, own = _slopes(form, leaves, self.rows.there, there, inverse, at)
                found = slope if found is None else _add_trees(found, slope)
                parts.append(devices.to_host(own, place))
        return jax.tree.map(lambda leaf: devices.to_host(leaf, place), found), np.concatenate(parts)[: form.n]


_add_trees = jax.jit(lambda a, b: jax.tree.map(jnp.add, a, b))


@functools.partial(jax.jit, static_argnums=0)
def _slopes(
    form: Layout, kernel: Any, X: jax.Array, alpha: jax.Array, inverse: jax.Array, start: jax.Array
) -> tuple[Any, jax.Array]:
    """Compute `DeviceFactor.slopes` for the columns from `start` of A^{-1}, (N, edge), a few at once."""
    width = min(form.edge, DIFFERENTIATED)
    place = jnp.arange(form.rows)[:, None]

    def step(k: Any, state: tuple[Any, jax.Array]) -> tuple[Any, jax.Array]:
        total, own = state
        first = start + k * width
        points, left = (lax.dynamic_slice_in_dim(values, first, width) for values in (X, alpha))
        known = lax.dynamic_slice_in_dim(inverse, k * width, width, axis=1)
        column = first + jnp.arange(width)
        weights = (product(alpha, left.T) - alpha.shape[1] * known) / 2
        weights = jnp.where((place < form.n) & (column < form.n), weights, 0)

        def moved(kernel: Any) -> jax.Array:
            values = jnp.where(place == column, kernel.diag(points), kernel.cross(X, points))
            return jnp.sum(weights * values)

        at = jnp.sum(jnp.where(place == column, weights, 0), axis=0)
        own = lax.dynamic_update_slice_in_dim(own, at, k * width, axis=0)
        return jax.tree.map(jnp.add, total, jax.grad(moved)(kernel)), own

    zero = jax.tree.map(jnp.zeros_like, kernel), jnp.zeros(form.edge)
    total, own = lax.fori_loop(0, form.edge // width, step, zero)
    return total, own


@functools.partial(jax.jit, static_argnums=0)
def _unit(form: Layout, start: jax.Array) -> jax.Array:
    """Return columns of an identity, (N, edge)."""
    return jnp.asarray(jnp.arange(form.rows)[:, None] == start + jnp.arange(form.edge), jnp.float64)


@final
@dataclass(frozen=True, eq=False)
class DeviceCholesky(DeviceFactor):
    """A = L L^T, L in the tiles of a buffer; float64, or float32 to precondition."""

    rows: DeviceRows
    lower: jax.Array
    pivots: np.ndarray
    rank: int
    spread: float

    def whiten_there(self, b: jax.Array) -> jax.Array:
        return self._run(device_cholesky.whiten, b)

    def solve_there(self, b: jax.Array) -> jax.Array:
        return self._run(device_cholesky.solve, b)

    def _run(self, program: Any, b: jax.Array) -> jax.Array:
        return program(self.rows.mesh, self.rows.form, self.lower, like(b, self.lower))  # type: ignore[no-any-return]

    def log_determinant(self) -> float:
        return float(2 * np.sum(np.log(self.pivots)))


@final
@dataclass(frozen=True, eq=False)
class DeviceEigen(DeviceFactor):
    """A = V diag(values) V^T over the eigenvalues above their rounding; all of V (n, n) is kept there."""

    rows: DeviceRows
    values: np.ndarray
    """(n,), ascending."""
    vectors: jax.Array
    rank: int
    spread: float

    @property
    def _scale(self) -> np.ndarray:
        scale = np.zeros(len(self.values))
        scale[len(scale) - self.rank :] = 1 / np.sqrt(self.values[len(scale) - self.rank :])
        return scale

    def whiten_there(self, b: jax.Array) -> Any:
        return by_modes(self.vectors, devices.to_device(self._scale, self.rows.location), b)

    def solve_there(self, b: jax.Array) -> Any:
        return of_modes(self.vectors, by_modes(self.vectors, devices.to_device(self._scale**2, self.rows.location), b))

    def outside(self, b: np.ndarray) -> np.ndarray:
        kept = devices.to_device((self._scale > 0).astype(float), self.rows.location)
        with self.rows.location.running():
            inside = of_modes(self.vectors, by_modes(self.vectors, kept, self.rows.padded(b)))
            return np.asarray(b - devices.to_host(inside, self.rows.location))

    def log_determinant(self) -> float:
        return float(np.sum(np.log(self.values))) if self.rank == len(self.values) else -np.inf


def cholesky(rows: DeviceRows, noise: np.ndarray, dtype: Any = np.float64) -> DeviceCholesky | None:
    """Factorise K(X, X) + diag(noise) on its devices; None as `linalg.cholesky`, in float32 where a pivot is not > 0.

    Raises: MemoryError: the devices have no room.
    """
    matrix, diagonal = rows.matrix(noise, dtype)
    with rows.location.running():
        lower = device_cholesky.factorise(rows.mesh, rows.form, matrix)
        pivots = devices.to_host(device_cholesky.diagonal(rows.mesh, rows.form, lower), rows.location)[: rows.form.n]
    pivots = pivots.astype(np.float64)
    least = len(diagonal) * EPS * diagonal if dtype == np.float64 else 0.0
    if not (pivots**2 > least).all():  # nor is NaN
        return None
    return DeviceCholesky(rows, lower, pivots, rows.form.n, float(np.sqrt((diagonal / pivots**2).max())))


def eigen(rows: DeviceRows, noise: np.ndarray) -> DeviceEigen:
    """Factorise K(X, X) + diag(noise) of any rank on the first device. Raises: as `eigenpairs`."""
    values, vectors = eigenpairs(rows, noise)
    kept = values[values > linalg.rounding(len(values), values[-1])]
    spread = float(np.sqrt(kept[-1] / kept[0])) if len(kept) else 1.0
    return DeviceEigen(first(rows), values, vectors, len(kept), spread)
