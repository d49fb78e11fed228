"""Kernel matrices and their factors stay on devices: rows of numbers go there and come back, and no (n, n) matrix."""

import abc
import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from widelimit.compute import device_cholesky, devices, linalg
from widelimit.compute.device_cholesky import LARGEST, Layout
from widelimit.compute.devices import Location, to_device, to_host
from widelimit.compute.implicit import product
from widelimit.compute.linalg import EPS, Factor
from widelimit.compute.operators import Operator
from widelimit.compute.pair_kernel import PairKernel

PANELS = 4
"""Panels of block columns that a factorisation holds beside the matrix, at most."""
DIFFERENTIATED = 256
"""Columns of a kernel matrix that are differentiated at once."""
EIGEN = 5
"""Matrices that a decomposition holds: tiles, the matrix made of them, its vectors and their workspace."""


@jax.jit
def _encode(kernel: PairKernel, X: jax.Array) -> tuple[Any, jax.Array]:
    features = kernel.encode(X)
    return features, kernel.diagonal(features)


_own = jax.jit(lambda kernel, features: kernel.diagonal(features))
_add = jax.jit(jnp.add)


@functools.partial(jax.jit, static_argnums=0)
def _columns(form: Layout, kernel: PairKernel, x: Any, z: Any) -> jax.Array:
    """Compute K(X, Z), (N, m), 0 in rows beyond n; a tile of rows at a time."""

    def tile(i: jax.Array) -> jax.Array:
        rows = jax.tree.map(lambda leaf: lax.dynamic_slice_in_dim(leaf, i * form.edge, form.edge), x)
        values = kernel.pairwise(rows, z)
        return jnp.where((i * form.edge + jnp.arange(form.edge))[:, None] < form.n, values, 0)

    values = lax.map(tile, jnp.arange(form.blocks))
    return jnp.asarray(values.reshape(form.rows, -1))


@jax.jit
def _moments(K: jax.Array, weights: jax.Array, white: jax.Array) -> tuple[jax.Array, jax.Array]:
    return product(K.T, weights), _squares(white)


_squares = jax.jit(lambda white: jnp.sum(jnp.square(white), axis=0))

_cross_product = jax.jit(lambda a, b: product(a.T, b))
_sizes = jax.jit(lambda solved: 1 + jnp.sum(jnp.abs(solved), axis=0))


@functools.partial(jax.jit, static_argnums=0)
def _whole(form: Layout, A: jax.Array) -> jax.Array:
    """Return the (n, n) matrix of a buffer on one device, symmetric to the bit."""
    lower = jnp.tril(A[0, : form.n, : form.n])
    return lower + jnp.tril(lower, -1).T


_eigh = jax.jit(lambda matrix: jnp.linalg.eigh(matrix, symmetrize_input=False), donate_argnums=0)


@jax.jit
def _by_modes(vectors: jax.Array, scale: jax.Array, b: jax.Array) -> jax.Array:
    """Compute diag(scale) V^T b for b (N, m), N >= n."""
    return scale[:, None] * product(vectors.T, b[: len(vectors)])


_of_modes = jax.jit(product)


@final
@dataclass(frozen=True, eq=False)
class DeviceRows:
    """The rows X (n, d) of a kernel lie on devices, filled up with rows of their own: made by `rows_on`."""

    kernel: Any
    """Unprepared: tables and series are those of the rows in use."""
    X: np.ndarray
    there: jax.Array
    form: Layout
    location: Location

    def diagonal(self, Z: np.ndarray) -> np.ndarray:
        """Compute K(z, z), (m,)."""
        kernel, count = to_device(self.kernel.prepared(Z), self.location), 1 << max(len(Z) - 1, 7).bit_length()
        with self.location.running():
            points = to_device(np.resize(Z, (count, Z.shape[1])), self.location)
            return to_host(self.encode(kernel, points)[1], self.location)[: len(Z)]

    def cross(self, Z: np.ndarray) -> np.ndarray:
        """Compute K(Z, X), (m, n), and move it to the host."""
        out = np.empty((len(Z), self.form.n))
        with self.location.running():
            for part, K in self.columns(Z):
                out[part] = to_host(K, self.location)[: self.form.n, : part.stop - part.start].T
        return out

    def gram(self, Z: np.ndarray) -> np.ndarray:
        """Compute K(Z, Z), (m, m), and move it to the host."""
        other = first(rows_on(self.location, self.kernel, Z))
        matrix, _ = other.matrix(np.zeros(()))
        with self.location.running():
            return np.array(to_host(_whole(other.form, matrix), self.location))

    def encode(self, kernel: PairKernel, X: jax.Array) -> tuple[Any, jax.Array]:
        """Encode rows on the devices; also K(x, x)."""
        if kernel.traceable:
            return _encode(kernel, X)
        features = kernel.encode(X)
        return features, _own(kernel, features)

    def padded(self, b: np.ndarray, dtype: Any = np.float64) -> jax.Array:
        """Move (n, c) numbers there, with rows of 0 up to N."""
        out = np.zeros((self.form.rows, b.shape[1]), dtype)
        out[: len(b)] = b
        return to_device(out, self.location)  # type: ignore[no-any-return]

    def matrix(self, noise: np.ndarray, dtype: Any = np.float64) -> tuple[jax.Array, np.ndarray]:
        """Make K(X, X) + diag(noise) there, rounded to the dtype, and return its buffer and its diagonal, (n,)."""
        form, location = self.form, self.location
        location.require(np.dtype(dtype).itemsize * buffer_numbers(form), f"a {form.n} x {form.n} kernel matrix")
        kernel = to_device(self.kernel.prepared(self.X), location)
        with location.running():
            features, own = self.encode(kernel, self.there)
            own = _add(own, to_device(np.pad(np.broadcast_to(noise, form.n), (0, form.rows - form.n)), location))
            buffer = device_cholesky.empty(location.placed(devices.AXIS), form, np.dtype(dtype))
            filled = device_cholesky.fill(self.mesh, form, buffer, kernel, features, own)
            return filled, to_host(own, location)[: form.n]

    def columns(self, Z: np.ndarray) -> Iterator[tuple[slice, jax.Array]]:
        """Compute K(X, Z) for parts of Z, (N, m): columns beyond the part repeat its points."""
        kernel = to_device(self.kernel.prepared(self.X, Z), self.location)
        width = self.form.edge if self.kernel.numbers_per_pair > 1 else LARGEST
        width = min(width, 1 << max(len(Z) - 1, 7).bit_length())
        features, _ = self.encode(kernel, self.there)
        for start in range(0, len(Z), width):
            part = slice(start, min(start + width, len(Z)))
            points = to_device(np.resize(Z[part], (width, Z.shape[1])), self.location)
            yield part, _columns(self.form, kernel, features, self.encode(kernel, points)[0])

    def expansion(self, Z: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Compute K(Z, X) weights, (m, c)."""
        out = np.empty((len(Z), weights.shape[1]))
        with self.location.running():
            there = self.padded(weights)
            for part, K in self.columns(Z):
                out[part] = to_host(_cross_product(K, there), self.location)[: part.stop - part.start]
        return out

    @property
    def mesh(self) -> Any:
        """Return the devices as JAX takes them."""
        return self.location.sharding.mesh


def buffer_numbers(form: Layout) -> float:
    """Return the numbers that a matrix takes on each device, its panels included."""
    return form.rows * (form.rows / form.devices + PANELS * form.edge)


def rows_on(location: Location, kernel: Any, X: np.ndarray) -> DeviceRows:
    """Move rows (n, d) to devices."""
    form = device_cholesky.layout(len(X), len(location.ids), kernel.numbers_per_pair)
    return DeviceRows(kernel, X, to_device(np.resize(X, (form.rows, X.shape[1])), location), form, location)


class DeviceFactor(Factor, abc.ABC):
    """The factor of K(X, X) + noise lies on devices; so do K(X, z) of test points z, whose forms alone come back."""

    rows: DeviceRows

    @abc.abstractmethod
    def whiten_there(self, b: jax.Array) -> jax.Array:
        """Compute W b with W^T W = A^+; (N, m) -> (r, m)."""

    @abc.abstractmethod
    def solve_there(self, b: jax.Array) -> jax.Array:
        """Compute A^+ b; (N, m) -> (N, m) or (n, m)."""

    def solve(self, b: np.ndarray) -> np.ndarray:
        with self.rows.location.running():
            return to_host(self.solve_there(self.rows.padded(b)), self.rows.location)[: self.rows.form.n]

    def whiten(self, b: np.ndarray) -> np.ndarray:
        with self.rows.location.running():
            return to_host(self.whiten_there(self.rows.padded(b)), self.rows.location)[: self.rows.form.n]

    def moments(self, Z: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Compute K(Z, X) weights, (m, c), and the squares of W K(X, z), (m,)."""
        mean, squares = np.empty((len(Z), weights.shape[1])), np.empty(len(Z))
        with self.rows.location.running():
            there = self.rows.padded(weights)
            for part, K in self.rows.columns(Z):
                found = _moments(K, there, self.whiten_there(K))
                count = part.stop - part.start
                mean[part], squares[part] = (to_host(each, self.rows.location)[:count] for each in found)
        return mean, squares

    def sizes(self, Z: np.ndarray) -> np.ndarray:
        """Compute 1 + |A^{-1} K(X, z)|_1, (m,)."""
        out = np.empty(len(Z))
        with self.rows.location.running():
            for part, K in self.rows.columns(Z):
                out[part] = to_host(_sizes(self.solve_there(K)), self.rows.location)[: part.stop - part.start]
        return out

    def reduction(self, Z: np.ndarray) -> np.ndarray:
        """Compute K(Z, X) A^+ K(X, Z), (m, m)."""
        out = np.empty((len(Z), len(Z)))
        with self.rows.location.running():
            white = [(part, self.whiten_there(K)) for part, K in self.rows.columns(Z)]
            for a, left in white:
                for b, right in white:
                    block = to_host(_cross_product(left, right), self.rows.location)
                    out[a, b] = block[: a.stop - a.start, : b.stop - b.start]
        return out

    def inverse_diagonal(self) -> np.ndarray:
        """Compute the diagonal of A^{-1}, (n,), from columns of an identity."""
        form, place = self.rows.form, self.rows.location
        parts = []
        with place.running():
            for start in range(0, form.n, form.edge):
                unit = _unit(form, to_device(np.int64(start), place))
                parts.append(to_host(_squares(self.whiten_there(unit)), place))
        return np.concatenate(parts)[: form.n]


    def slopes(self, kernel: Any, weights: np.ndarray) -> tuple[Any, np.ndarray]:
        """Compute the slope of sum_ij W_ij K(x_i, x_j) in the leaves of the kernel, and W_ii, (n,).

        W = (alpha alpha^T - c A^{-1})/2 for weights alpha (n, c), a block of its columns at a time.
        """
        form, place = self.rows.form, self.rows.location
        found, parts = None, []
        with place.running():
            there, leaves = self.rows.padded(weights), to_device(jax.tree.map(np.float64, kernel), place)
            for start in range(0, form.n, form.edge):
                at = to_device(np.int64(start), place)
                inverse = self.solve_there(_unit(form, at))
                slope, own = _slopes(form, leaves, self.rows.there, there, inverse, at)
                found = slope if found is None else _add_trees(found, slope)
                parts.append(to_host(own, place))
        return jax.tree.map(lambda leaf: to_host(leaf, place), found), np.concatenate(parts)[: form.n]


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
        return program(self.rows.mesh, self.rows.form, self.lower, _like(b, self.lower))  # type: ignore[no-any-return]

    def log_determinant(self) -> float:
        return float(2 * np.sum(np.log(self.pivots)))


_like = jax.jit(lambda b, lower: b.astype(lower.dtype))


@final
@dataclass(frozen=True, eq=False)
class DeviceModes:
    """V, the eigenvectors (n, n) of K(X, X), lies on a device."""

    rows: DeviceRows
    vectors: jax.Array

    def of(self, values: np.ndarray) -> np.ndarray:
        """Compute V^T values, (n, c)."""
        with self.rows.location.running():
            found = _cross_product(self.vectors, to_device(values, self.rows.location))
            return to_host(found, self.rows.location)

    def sum(self, coefficients: np.ndarray) -> np.ndarray:
        """Compute V coefficients, (n, c)."""
        with self.rows.location.running():
            return to_host(_of_modes(self.vectors, to_device(coefficients, self.rows.location)), self.rows.location)

    def whole(self) -> np.ndarray:
        """Move V to the host."""
        return to_host(self.vectors, self.rows.location)

    def turned(self, other: DeviceRows) -> jax.Array:
        """Compute V^T Sigma(X, X) V of another kernel of the same rows, symmetric."""
        matrix, _ = other.matrix(np.zeros(()))
        with self.rows.location.running():
            return _turn(self.vectors, _whole(other.form, matrix))


@jax.jit
def _turn(vectors: jax.Array, matrix: jax.Array) -> jax.Array:
    found = product(product(vectors.T, matrix), vectors)
    return (found + found.T) / 2


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

    def whiten_there(self, b: jax.Array) -> jax.Array:
        return _by_modes(self.vectors, to_device(self._scale, self.rows.location), b)

    def solve_there(self, b: jax.Array) -> jax.Array:
        return _of_modes(self.vectors, _by_modes(self.vectors, to_device(self._scale**2, self.rows.location), b))

    def outside(self, b: np.ndarray) -> np.ndarray:
        kept = to_device((self._scale > 0).astype(float), self.rows.location)
        with self.rows.location.running():
            inside = _of_modes(self.vectors, _by_modes(self.vectors, kept, self.rows.padded(b)))
            return b - to_host(inside, self.rows.location)

    def log_determinant(self) -> float:
        return float(np.sum(np.log(self.values))) if self.rank == len(self.values) else -np.inf


def cholesky(rows: DeviceRows, noise: np.ndarray, dtype: Any = np.float64) -> DeviceCholesky | None:
    """Factorise K(X, X) + diag(noise) on its devices; None as `linalg.cholesky`, in float32 where a pivot is not > 0.

    Raises: MemoryError: the devices have no room.
    """
    matrix, diagonal = rows.matrix(noise, dtype)
    with rows.location.running():
        lower = device_cholesky.factorise(rows.mesh, rows.form, matrix)
        pivots = to_host(device_cholesky.diagonal(rows.mesh, rows.form, lower), rows.location)[: rows.form.n]
    pivots = pivots.astype(np.float64)
    least = len(diagonal) * EPS * diagonal if dtype == np.float64 else 0.0
    if not (pivots**2 > least).all():  # nor is NaN
        return None
    return DeviceCholesky(rows, lower, pivots, rows.form.n, float(np.sqrt((diagonal / pivots**2).max())))


def first(rows: DeviceRows) -> DeviceRows:
    """Return the rows on the first device alone."""
    place = rows.location
    return rows if len(place.ids) == 1 else rows_on(replace(place, ids=place.ids[:1]), rows.kernel, rows.X)


def eigenpairs(rows: DeviceRows, noise: np.ndarray) -> tuple[np.ndarray, jax.Array]:
    """Compute eigenvalues (ascending) and eigenvectors (n, n) of K(X, X) + diag(noise) on the first device.

    Raises: MemoryError: no room; ValueError: as `linalg.eigenpairs`.
    """
    n, rows = rows.form.n, first(rows)
    rows.location.require(8.0 * EIGEN * n * n, f"the eigenvectors of a {n} x {n} matrix")
    matrix, diagonal = rows.matrix(noise)
    with rows.location.running():
        values, vectors = _eigh(_whole(rows.form, matrix))
        found = to_host(values, rows.location)
    if not np.isfinite(found).all():
        raise ValueError(
            f"the kernel matrix has no eigenvalues: an entry is NaN or infinite ({diagonal.max():.3g} on "
            "the diagonal, at most); scale X or the weights down."
        )
    linalg.refuse_negative(found)
    return found, vectors


def eigen(rows: DeviceRows, noise: np.ndarray) -> DeviceEigen:
    """Factorise K(X, X) + diag(noise) of any rank on the first device. Raises: as `eigenpairs`."""
    values, vectors = eigenpairs(rows, noise)
    kept = values[values > linalg.rounding(len(values), values[-1])]
    spread = float(np.sqrt(kept[-1] / kept[0])) if len(kept) else 1.0
    return DeviceEigen(first(rows), values, vectors, len(kept), spread)


@final
@dataclass(frozen=True, eq=False)
class DeviceOperator(Operator):
    """K(X, X) is multiplied on devices: vectors go there and come back."""

    rows: DeviceRows
    matrix: jax.Array | None
    """Its buffer; None: every product computes its entries again, a tile of columns at a time."""
    own: np.ndarray

    def diagonal(self) -> np.ndarray:
        return self.own

    def columns(self, index: np.ndarray) -> np.ndarray:
        out = self.rows.cross(self.rows.X[index]).T
        out[index, np.arange(len(index))] = self.own[index]
        return out

    def product(self, v: np.ndarray) -> np.ndarray:
        rows = self.rows
        with rows.location.running():
            if self.matrix is None:
                return rows.expansion(rows.X, v)
            there = _like(rows.padded(v), self.matrix)
            found = device_cholesky.multiply(rows.mesh, rows.form, self.matrix, there)
            return to_host(found, rows.location)[: len(v)].astype(np.float64)


def operator(rows: DeviceRows, dtype: Any = np.float64) -> DeviceOperator:
    """Keep K(X, X) on the devices in a dtype where there is room; else keep none of it."""
    form = rows.form
    if np.dtype(dtype).itemsize * buffer_numbers(form) > rows.location.free():
        return DeviceOperator(rows, None, rows.diagonal(rows.X))
    return DeviceOperator(rows, *rows.matrix(np.zeros(form.n), dtype))
