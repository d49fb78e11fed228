"""Eigenvectors of a kernel matrix stay on a device, and so do the matrices made of them."""

from dataclasses import dataclass
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np

from widelimit.compute import devices, linalg
from widelimit.compute.device_rows import DeviceRows, cross_product, first, whole
from widelimit.compute.implicit import product

EIGEN = 5
"""Matrices in memory during a decomposition: tiles, the matrix made of them, its vectors and their workspace."""


_eigh = jax.jit(lambda matrix: jnp.linalg.eigh(matrix, symmetrize_input=False), donate_argnums=0)


@jax.jit
def by_modes(vectors: jax.Array, scale: jax.Array, b: jax.Array) -> jax.Array:
    """Compute diag(scale) V^T b for b (N, m), N >= n."""
    return scale[..., None] * product(vectors.T, b[: len(vectors)])


of_modes = jax.jit(product)


@final
@dataclass(frozen=True, eq=False)
class DeviceModes:
    """The eigenvectors V (n, n) of K(X, X) are on a device."""

    rows: DeviceRows
    vectors: jax.Array

    __getstate__, __setstate__ = devices.get_state, devices.set_state

    def of(self, values: np.ndarray) -> np.ndarray:
        """Compute V^T values, (n, c)."""
        with self.rows.location.running():
            found = cross_product(self.vectors, devices.to_device(values, self.rows.location))
            return devices.to_host(found, self.rows.location)

    def sum(self, coefficients: np.ndarray) -> np.ndarray:
        """Compute V coefficients, (n, c)."""
        with self.rows.location.running():
            return devices.to_host(
                of_modes(self.vectors, devices.to_device(coefficients, self.rows.location)), self.rows.location
            )

    def whole(self) -> np.ndarray:
        """Move V to the host."""
        return devices.to_host(self.vectors, self.rows.location)

    def turned(self, other: DeviceRows) -> Any:
        """Compute V^T Sigma(X, X) V of another kernel of the same rows, symmetric."""
        matrix, _ = other.matrix(np.zeros(()))
        with self.rows.location.running():
            return _turn(self.vectors, whole(other.form, matrix))

    def project(self, rows: DeviceRows, Z: np.ndarray) -> list[tuple[slice, jax.Array]]:
        """Compute V^T K(X, Z) of a kernel of the same rows for parts of Z, (n, m)."""
        with self.rows.location.running():
            one = devices.to_device(np.ones(()), self.rows.location)
            return [(part, by_modes(self.vectors, one, K)) for part, K in rows.columns(Z)]


@jax.jit
def law_squares(
    gain: jax.Array, tangent: jax.Array, between: jax.Array, modes: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Compute the diagonals of `law_products`, (m,) each."""
    moved = gain[:, None] * tangent
    return jnp.sum(moved * between, axis=0), jnp.sum(moved * product(modes, moved), axis=0)


@jax.jit
def law_products(gain: jax.Array, tangent: Any, between: Any, modes: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Compute M N^T and M C M^T for M^T = gain V^T K(X, Z), N^T = V^T Sigma(X, Z), in parts, and C (n, n)."""
    moved = gain[:, None] * jnp.concatenate(tangent, axis=1)
    return product(moved.T, jnp.concatenate(between, axis=1)), product(moved.T, product(modes, moved))


@jax.jit
def _turn(vectors: jax.Array, matrix: jax.Array) -> jax.Array:
    found = product(product(vectors.T, matrix), vectors)
    return (found + found.T) / 2


def eigenpairs(rows: DeviceRows, noise: np.ndarray) -> tuple[np.ndarray, jax.Array]:
    """Compute eigenvalues (ascending) and eigenvectors (n, n) of K(X, X) + diag(noise) on the first device.

    Raises: MemoryError: no room; ValueError: as `linalg.eigenpairs`.
    """
    n, rows = rows.form.n, first(rows)
    rows.location.require(8.0 * EIGEN * n * n, f"the eigenvectors of a {n} x {n} matrix")
    matrix, diagonal = rows.matrix(noise)
    with rows.location.running():
        values, vectors = _eigh(whole(rows.form, matrix))
        found = devices.to_host(values, rows.location)
    if not np.isfinite(found).all():
        raise ValueError(
            f"the kernel matrix has no eigenvalues: an entry is NaN or infinite ({diagonal.max():.3g} on "
            "the diagonal, at most); scale X or the weights down."
        )
    linalg.refuse_negative(found)
    return found, vectors


def modes(rows: DeviceRows) -> tuple[np.ndarray, DeviceModes]:
    """Compute the eigenvalues of K(X, X), ascending, and its eigenvectors. Raises: as `eigenpairs`."""
    values, vectors = eigenpairs(rows, np.zeros(()))
    return values, DeviceModes(first(rows), vectors)
