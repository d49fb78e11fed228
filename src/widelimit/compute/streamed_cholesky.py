"""A matrix that is larger than the memory of a device is factorised there: block columns of L stay on the host.

A = K(X, X) + noise is never stored: a block column of it is computed on the device, what the finished columns of L take
from it is subtracted as they come from the host one after another, and what is left is factorised and goes back. The
device holds a few block columns, the host one triangle.
"""

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from widelimit import memory
from widelimit.compute import devices
from widelimit.compute.device_cholesky import Layout, rows_of_tile
from widelimit.compute.device_factors import DeviceFactor
from widelimit.compute.device_rows import PANELS, DeviceRows, first
from widelimit.compute.implicit import product
from widelimit.compute.linalg import EPS
from widelimit.progress import FACTOR, Report, no_progress


def _below(form: Layout, j: jax.Array) -> jax.Array:
    return jnp.arange(form.rows)[:, None] >= (j + 1) * form.edge


_solved = functools.partial(lax.linalg.triangular_solve, lower=True)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _begin(form: Layout, panel: jax.Array, own: jax.Array, j: jax.Array) -> jax.Array:
    """Put the diagonal of A, (N, 1), into block column j of K; 1 beyond n."""
    rows, columns = jnp.arange(form.rows)[:, None], j * form.edge + jnp.arange(form.edge)
    inside = jnp.where(columns < form.n, panel, 0)
    return jnp.where(rows == columns, jnp.where(rows < form.n, own, 1), inside)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _subtract(form: Layout, panel: jax.Array, column: jax.Array, j: jax.Array) -> jax.Array:
    return panel - product(column, rows_of_tile(column, j, form.edge).T)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _divide(form: Layout, panel: jax.Array, j: jax.Array) -> jax.Array:
    """Compute block column j of L; 0 above the diagonal."""
    corner = jnp.tril(lax.linalg.cholesky(rows_of_tile(panel, j, form.edge), symmetrize_input=False))
    below = jnp.where(_below(form, j), _solved(corner, panel, transpose_a=True), 0)
    return lax.dynamic_update_slice_in_dim(below, corner, j * form.edge, axis=0)


@functools.partial(jax.jit, static_argnums=0)
def _forward(form: Layout, column: jax.Array, x: jax.Array, j: jax.Array) -> jax.Array:
    part = _solved(rows_of_tile(column, j, form.edge), rows_of_tile(x, j, form.edge), left_side=True)
    taken = jnp.where(_below(form, j), product(column, part), 0)
    return lax.dynamic_update_slice_in_dim(x - taken, part, j * form.edge, axis=0)


@functools.partial(jax.jit, static_argnums=0)
def _backward(form: Layout, column: jax.Array, x: jax.Array, j: jax.Array) -> jax.Array:
    known = product(jnp.where(_below(form, j), column, 0).T, x)
    corner = rows_of_tile(column, j, form.edge)
    part = _solved(corner, rows_of_tile(x, j, form.edge) - known, left_side=True, transpose_a=True)
    return lax.dynamic_update_slice_in_dim(x, part, j * form.edge, axis=0)


def _sent(rows: DeviceRows, held: list[np.ndarray], k: int) -> jax.Array:
    """Move block column k of L to the device, (N, edge)."""
    column = np.zeros((rows.form.rows, rows.form.edge))
    column[k * rows.form.edge :] = held[k]
    return devices.to_device(column, rows.location)  # type: ignore[no-any-return]


@final
@dataclass(frozen=True, eq=False)
class StreamedCholesky(DeviceFactor):
    """A = L L^T, block columns of L from the diagonal down on the host: solves read them in turn."""

    rows: DeviceRows
    held: list[np.ndarray]
    pivots: np.ndarray
    rank: int
    spread: float

    def whiten_there(self, b: jax.Array) -> jax.Array:
        return self._through(_forward, range(len(self.held)), b)

    def solve_there(self, b: jax.Array) -> jax.Array:
        return self._through(_backward, reversed(range(len(self.held))), self.whiten_there(b))

    def _through(self, step: Callable[..., jax.Array], order: Iterable[int], x: jax.Array) -> jax.Array:
        for k in order:
            at = devices.to_device(np.int64(k), self.rows.location)
            x = step(self.rows.form, _sent(self.rows, self.held, k), x, at)
        return x

    def log_determinant(self) -> float:
        return float(2 * np.sum(np.log(self.pivots)))


def bytes_there(form: Layout) -> float:
    """Return the bytes of the block columns that the device holds."""
    return 8.0 * PANELS * form.rows * form.edge


def bytes_here(form: Layout) -> float:
    """Return the bytes of the columns of L on the host."""
    return 4.0 * form.rows * (form.rows + form.edge)


def factorise(rows: DeviceRows, noise: np.ndarray, *, report: Report = no_progress) -> StreamedCholesky | int:
    """Factorise K(X, X) + diag(noise) on the first device, or return the first row whose pivot is not above rounding.

    Raises: MemoryError: no room for a few block columns there, or for one triangle here.
    """
    rows = first(rows)
    form, place = rows.form, rows.location
    place.require(bytes_there(form), f"{PANELS} block columns of a {form.n} x {form.n} matrix")
    memory.require(bytes_here(form), f"one triangle of a {form.n} x {form.n} float64 kernel matrix")
    diagonal = rows.diagonal(rows.X) + noise
    held: list[np.ndarray] = []
    pivots = np.empty(0)
    with place.running():
        own = rows.padded(diagonal[:, None])
        for j in range(form.blocks):
            at = devices.to_device(np.int64(j), place)
            panel = _begin(form, rows.block_column(j), own, at)
            for k in range(j):
                panel = _subtract(form, panel, _sent(rows, held, k), at)
            column = devices.to_host(_divide(form, panel, at), place)[j * form.edge :].copy()
            held.append(column)
            pivots = np.concatenate([pivots, np.diagonal(column)])[: form.n]
            weak = ~(pivots**2 > form.n * EPS * diagonal[: len(pivots)])
            if weak.any():
                return int(np.argmax(weak))
            report(FACTOR, j + 1, form.blocks)
    return StreamedCholesky(rows, held, pivots, form.n, float(np.sqrt((diagonal / pivots**2).max())))
