"""Rows of a kernel are on devices, which compute its matrices: only vectors move between host and devices."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from widelimit.compute import device_cholesky, devices
from widelimit.compute.device_cholesky import LARGEST, Layout, rows_of_tile
from widelimit.compute.device_tiles import diagonal_of
from widelimit.compute.devices import Location
from widelimit.compute.implicit import product
from widelimit.compute.operators import Operator
from widelimit.compute.pair_kernel import PairKernel

PANELS = 4
"""Panels of block columns that a factorisation holds beside the matrix, at most."""


@jax.jit
def _encode(kernel: PairKernel, X: jax.Array) -> tuple[Any, jax.Array]:
    features = kernel.encode(X)
    return features, kernel.diagonal(features)


_add = jax.jit(lambda own, noise: own + noise[:, 0])


@functools.partial(jax.jit, static_argnums=0)
def _columns(form: Layout, kernel: PairKernel, x: Any, z: Any) -> jax.Array:
    """Compute K(X, Z), (N, m), 0 in rows beyond n; a tile of rows at a time."""

    def tile(i: jax.Array) -> jax.Array:
        rows = jax.tree.map(lambda leaf: rows_of_tile(leaf, i, form.edge), x)
        values = kernel.pairwise(rows, z)
        return jnp.where((i * form.edge + jnp.arange(form.edge))[:, None] < form.n, values, 0)

    values = lax.map(tile, jnp.arange(form.blocks))
    return jnp.asarray(values.reshape(form.rows, -1))


cross_product = jax.jit(lambda a, b: product(a.T, b))


@functools.partial(jax.jit, static_argnums=0)
def whole(form: Layout, A: jax.Array) -> jax.Array:
    """Return the (n, n) matrix of a buffer on one device, symmetric to the bit."""
    lower = jnp.tril(A[0, : form.n, : form.n])
    return lower + jnp.tril(lower, -1).T


like = jax.jit(lambda b, lower: b.astype(lower.dtype))


@final
@dataclass(frozen=True, eq=False)
class DeviceRows:
    """The rows X (n, d) of a kernel are on devices, padded with copies of some of them: made by `rows_on`."""

    kernel: Any
    """Unprepared: tables and series are those of the rows in use."""
    X: np.ndarray
    there: jax.Array
    form: Layout
    location: Location

    __getstate__, __setstate__ = devices.get_state, devices.set_state

    def diagonal(self, Z: np.ndarray) -> np.ndarray:
        """Compute K(z, z), (m,)."""
        count = 1 << max(len(Z) - 1, 7).bit_length()
        with self.location.running():
            kernel = devices.to_device(self.kernel.prepared(Z), self.location)
            points = devices.to_device(np.resize(Z, (count, Z.shape[1])), self.location)
            return devices.to_host(self.encode(kernel, points)[1], self.location)[: len(Z)]

    def cross(self, Z: np.ndarray) -> np.ndarray:
        """Compute K(Z, X), (m, n), and move it to the host."""
        out = np.empty((len(Z), self.form.n))
        with self.location.running():
            for part, K in self.columns(Z):
                out[part] = devices.to_host(K, self.location)[: self.form.n, : part.stop - part.start].T
        return out

    def gram(self, Z: np.ndarray) -> np.ndarray:
        """Compute K(Z, Z), (m, m), and move it to the host."""
        other = first(rows_on(self.location, self.kernel, Z))
        matrix, _ = other.matrix(np.zeros(()))
        with self.location.running():
            return np.array(devices.to_host(whole(other.form, matrix), self.location))

    def encode(self, kernel: PairKernel, X: jax.Array) -> Any:
        """Encode rows on the devices; also K(x, x)."""
        if kernel.traceable:
            return _encode(kernel, X)
        features = kernel.encode(X)
        return features, diagonal_of(kernel, features)

    def padded(self, b: np.ndarray, dtype: Any = np.float64) -> jax.Array:
        """Move (n, c) numbers there, with rows of 0 up to N."""
        out = np.zeros((self.form.rows, b.shape[1]), dtype)
        out[: len(b)] = b
        return devices.to_device(out, self.location)  # type: ignore[no-any-return]

    def matrix(self, noise: np.ndarray, dtype: Any = np.float64) -> tuple[jax.Array, np.ndarray]:
        """Make K(X, X) + diag(noise) there, rounded to the dtype, and return its buffer and its diagonal, (n,)."""
        form, location = self.form, self.location
        location.require(np.dtype(dtype).itemsize * buffer_numbers(form), f"a {form.n} x {form.n} kernel matrix")
        with location.running():
            kernel = devices.to_device(self.kernel.prepared(self.X), location)
            features, own = self.encode(kernel, self.there)
            own = _add(own, self.padded(np.broadcast_to(noise, form.n)[:, None]))
            buffer = device_cholesky.empty(location.placed(devices.AXIS), form, np.dtype(dtype))
            filled = device_cholesky.fill(self.mesh, form, buffer, kernel, features, own)
            return filled, devices.to_host(own, location)[: form.n]

    def columns(self, Z: np.ndarray) -> Iterator[tuple[slice, jax.Array]]:
        """Compute K(X, Z) for parts of Z, (N, m): columns beyond the part repeat its points."""
        kernel = devices.to_device(self.kernel.prepared(self.X, Z), self.location)
        width = self.form.edge if self.kernel.numbers_per_pair > 1 else LARGEST
        width = min(width, 1 << max(len(Z) - 1, 7).bit_length())
        features, _ = self.encode(kernel, self.there)
        for start in range(0, len(Z), width):
            part = slice(start, min(start + width, len(Z)))
            points = devices.to_device(np.resize(Z[part], (width, Z.shape[1])), self.location)
            yield part, _columns(self.form, kernel, features, self.encode(kernel, points)[0])

    def block_column(self, j: int) -> Any:
        """Compute K(X, X[j]) of the rows of block j, (N, edge); what is beyond n repeats rows."""
        edge, kernel = self.form.edge, devices.to_device(self.kernel.prepared(self.X), self.location)
        points = np.resize(self.X[j * edge :][:edge] if j * edge < len(self.X) else self.X, (edge, self.X.shape[1]))
        there = devices.to_device(points, self.location)
        return _columns(self.form, kernel, self.encode(kernel, self.there)[0], self.encode(kernel, there)[0])

    def expansion(self, Z: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Compute K(Z, X) weights, (m, c)."""
        out = np.empty((len(Z), weights.shape[1]))
        with self.location.running():
            there = self.padded(weights)
            for part, K in self.columns(Z):
                out[part] = devices.to_host(cross_product(K, there), self.location)[: part.stop - part.start]
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
    return DeviceRows(kernel, X, devices.to_device(np.resize(X, (form.rows, X.shape[1])), location), form, location)


def first(rows: DeviceRows) -> DeviceRows:
    """Return the rows on the first device alone."""
    place = rows.location
    return rows if len(place.ids) == 1 else rows_on(replace(place, ids=place.ids[:1]), rows.kernel, rows.X)


@final
@dataclass(frozen=True, eq=False)
class DeviceOperator(Operator):
    """K(X, X) is multiplied on devices: vectors go there and come back."""

    rows: DeviceRows
    matrix: jax.Array | None
    """The buffer of the matrix; None: each product computes the entries again, a tile of columns at a time."""
    own: np.ndarray

    __getstate__, __setstate__ = devices.get_state, devices.set_state

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
            there = like(rows.padded(v), self.matrix)
            found = device_cholesky.multiply(rows.mesh, rows.form, self.matrix, there)
            return devices.to_host(found, rows.location)[: len(v)].astype(np.float64)


def operator(rows: DeviceRows, dtype: Any = np.float64) -> DeviceOperator:
    """Keep K(X, X) on the devices in a dtype if there is room for it; else keep nothing."""
    form = rows.form
    if np.dtype(dtype).itemsize * buffer_numbers(form) > rows.location.free():
        return DeviceOperator(rows, None, rows.diagonal(rows.X))
    return DeviceOperator(rows, *rows.matrix(np.zeros(form.n), dtype))
