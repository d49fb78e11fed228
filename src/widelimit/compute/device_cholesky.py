"""Matrices on devices are made, factorised and solved with by tiles, in place: one matrix and a few panels of memory.

A symmetric (n, n) matrix, filled up by an identity to whole tiles, is one buffer (p, N, N/p): device r of p has the
block columns r, r + p, r + 2 p, ..., of which the tiles on and below the diagonal count. Every program takes it as a
whole and gives it back in its place; loops over tiles run inside, so that few programs are compiled whatever n is. A
panel goes to all devices, each of which updates its own block columns in one order: the factor's bits do not depend on
how many there are.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from widelimit.compute.devices import AXIS
from widelimit.compute.implicit import product
from widelimit.compute.pair_kernel import Features, PairKernel

LARGEST, SMALLEST = 2048, 32
"""Rows of a tile: a product of two takes a third of a millisecond on an H100, far longer than to start it."""
BUFFER, WHOLE = PartitionSpec(AXIS), PartitionSpec()  # type: ignore[no-untyped-call]


class Layout(NamedTuple):
    """A matrix has `blocks` x `blocks` tiles of `edge` rows, on `devices`."""

    n: int
    edge: int
    blocks: int
    devices: int

    @property
    def rows(self) -> int:
        """Return N, the rows of all tiles."""
        return self.edge * self.blocks

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return the shape of the buffer."""
        return self.devices, self.rows, self.rows // self.devices


def layout(n: int, devices: int, per_pair: int = 1) -> Layout:
    """Choose the tiles of an (n, n) matrix: a power of two of rows, and as many block columns for every device.

    per_pair: numbers that a pair takes while it is computed; a tile of pairs takes what one of LARGEST rows does.
    """
    largest = max(SMALLEST, 1 << (math.isqrt(LARGEST**2 // per_pair).bit_length() - 1))
    edge = min(largest, max(SMALLEST, 1 << (-(-n // devices) - 1).bit_length()))
    return Layout(n, edge, -(-n // (edge * devices)) * devices, devices)


def _number() -> jax.Array:
    """Return r, the number of the device that runs this."""
    return jnp.asarray(lax.axis_index(AXIS), int)


def _tile(A: jax.Array, i: Any, column: Any, edge: int) -> jax.Array:
    return lax.dynamic_slice(A, (i * edge, column * edge), (edge, edge))


def rows_of_tile(values: jax.Array, i: Any, edge: int) -> jax.Array:
    """Return the rows of tile i."""
    return lax.dynamic_slice_in_dim(values, i * edge, edge)


def _put(values: jax.Array, rows: jax.Array, i: Any, edge: int) -> jax.Array:
    return lax.dynamic_update_slice_in_dim(values, rows, i * edge, axis=0)


def _shared(values: jax.Array, own: Any, devices: int) -> jax.Array:
    """Give the values of the device that owns them to all: the others add zeros, which changes no bit."""
    if devices == 1:
        return values
    return _total(jnp.where(own, values, 0), devices)


def _total(values: jax.Array, devices: int) -> jax.Array:
    """Add up what the devices have."""
    return values if devices == 1 else lax.psum(values, AXIS)  # type: ignore[no-untyped-call]


def _divide(corner: jax.Array, tile: jax.Array, *, left: bool, transpose: bool) -> jax.Array:
    return jnp.asarray(lax.linalg.triangular_solve(corner, tile, left_side=left, lower=True, transpose_a=transpose))


def program(*, donate: bool = False) -> Callable[..., Any]:
    """Compile a function (form, local buffer, arrays that all devices have) over the devices of a mesh.

    donate: the buffer is given back in its place; else what is returned is known to all devices.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=(2,) if donate else ())
        def run(mesh: Mesh, form: Layout, A: jax.Array, *arrays: Any) -> Any:
            def local(A: jax.Array, *arrays: Any) -> Any:
                found = function(form, A[0], *arrays)
                return found[None] if donate else found

            specs = (BUFFER, *(WHOLE for _ in arrays))
            out = BUFFER if donate else WHOLE
            return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=out, check_vma=False)(A, *arrays)

        return run

    return decorate


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def empty(sharding: Any, form: Layout, dtype: Any) -> Any:
    """Make a buffer."""
    return lax.with_sharding_constraint(jnp.zeros(form.shape, dtype), sharding)  # type: ignore[no-untyped-call]


@program(donate=True)
def fill(form: Layout, A: jax.Array, kernel: PairKernel, features: Features, diagonal: jax.Array) -> Any:
    """Write K(X, X) of encoded rows, with this diagonal (N,), into the tiles on and below the diagonal.

    Rows beyond n are those of an identity.
    """
    edge, p, place = form.edge, form.devices, jnp.arange(form.edge)
    one = _number()

    def block(i: Any) -> Features:
        return jax.tree.map(lambda leaf: rows_of_tile(leaf, i, edge), features)

    def pairs(x: Features, y: Features, same: jax.Array) -> jax.Array:
        return kernel.pairwise(x, y, same=same).astype(A.dtype)

    def nothing(*_: Any) -> jax.Array:
        return jnp.zeros((edge, edge), A.dtype)

    def column(c: Any, A: jax.Array) -> Any:
        g = c * p + one
        of_column, columns = block(g), g * edge + place

        def tile(i: Any, A: jax.Array) -> Any:
            rows = i * edge + place
            # The branch is always taken: the tile is not fused, and so not computed again, with what writes it.
            values = lax.cond(i < form.blocks, pairs, nothing, block(i), of_column, i == g)
            inside = (rows[:, None] < form.n) & (columns < form.n)
            own = jnp.where(rows < form.n, rows_of_tile(diagonal, i, edge), 1)[:, None]
            values = jnp.where(rows[:, None] == columns, own, jnp.where(inside, values, 0))
            return lax.dynamic_update_slice(A, values.astype(A.dtype), (i * edge, c * edge))

        return lax.fori_loop(g, form.blocks, tile, A)

    return lax.fori_loop(0, form.blocks // p, column, A)


@program(donate=True)
def factorise(form: Layout, A: jax.Array) -> Any:
    """Find L with A = L L^T in the place of A's lower triangle, block column by block column; NaN from where it breaks.

    A column is shared, factorised by every device, and taken from the columns behind it.
    """
    edge, p, blocks = form.edge, form.devices, form.blocks
    one = _number()

    def step(j: Any, A: jax.Array) -> Any:
        c, own = j // p, j % p == one
        before = lax.dynamic_slice_in_dim(A, c * edge, edge, axis=1)
        panel = _shared(before, own, p)
        corner = lax.linalg.cholesky(rows_of_tile(panel, j, edge), symmetrize_input=False)
        panel = _put(panel, jnp.tril(corner), j, edge)

        def below(i: Any, panel: jax.Array) -> Any:
            return _put(panel, _divide(corner, rows_of_tile(panel, i, edge), left=False, transpose=True), i, edge)

        panel = lax.fori_loop(j + 1, blocks, below, panel)
        A = lax.dynamic_update_slice_in_dim(A, jnp.where(own, panel, before), c * edge, axis=1)

        def column(c: Any, A: jax.Array) -> Any:
            g = c * p + one
            right = rows_of_tile(panel, g, edge).T

            def tile(i: Any, A: jax.Array) -> Any:
                left = _tile(A, i, c, edge) - product(rows_of_tile(panel, i, edge), right)
                return lax.dynamic_update_slice(A, left, (i * edge, c * edge))

            return lax.fori_loop(g, blocks, tile, A)

        return lax.fori_loop((j - one) // p + 1, blocks // p, column, A)

    return lax.fori_loop(0, blocks, step, A)


@program()
def diagonal(form: Layout, A: jax.Array) -> Any:
    """Return the diagonal, (N,)."""
    edge, p = form.edge, form.devices
    one = _number()

    def own(j: Any, out: jax.Array) -> jax.Array:
        values = _shared(jnp.diagonal(_tile(A, j, j // p, edge)), j % p == one, p)
        return _put(out, values, j, edge)

    return lax.fori_loop(0, form.blocks, own, jnp.zeros(form.rows, A.dtype))


def _forward(form: Layout, A: jax.Array, b: jax.Array) -> Any:
    edge, p, blocks = form.edge, form.devices, form.blocks
    one = _number()

    def step(j: Any, state: tuple[jax.Array, jax.Array]) -> Any:
        x, taken = state
        c, own = j // p, j % p == one
        corner = _shared(_tile(A, j, c, edge), own, p)
        known = _total(rows_of_tile(taken, j, edge), p)
        part = _divide(corner, rows_of_tile(x, j, edge) - known, left=True, transpose=False)

        def below(i: Any, taken: jax.Array) -> Any:
            return _put(taken, rows_of_tile(taken, i, edge) + product(_tile(A, i, c, edge), part), i, edge)

        return _put(x, part, j, edge), lax.fori_loop(j + 1, jnp.where(own, blocks, 0), below, taken)

    return lax.fori_loop(0, blocks, step, (b, jnp.zeros_like(b)))[0]


def _backward(form: Layout, A: jax.Array, b: jax.Array) -> Any:
    edge, p, blocks = form.edge, form.devices, form.blocks
    one = _number()

    def step(k: Any, x: jax.Array) -> Any:
        j = blocks - 1 - k
        c, own = j // p, j % p == one
        corner = _shared(_tile(A, j, c, edge), own, p)

        def below(i: Any, known: jax.Array) -> Any:
            return known + product(_tile(A, i, c, edge).T, rows_of_tile(x, i, edge))

        known = lax.fori_loop(j + 1, jnp.where(own, blocks, 0), below, jnp.zeros_like(rows_of_tile(x, 0, edge)))
        part = _divide(corner, rows_of_tile(x, j, edge) - _shared(known, own, p), left=True, transpose=True)
        return _put(x, part, j, edge)

    return lax.fori_loop(0, blocks, step, b)


@program()
def whiten(form: Layout, A: jax.Array, b: jax.Array) -> Any:
    """Compute L^{-1} b, (N, c) -> (N, c)."""
    return _forward(form, A, b)


@program()
def solve(form: Layout, A: jax.Array, b: jax.Array) -> Any:
    """Compute A^{-1} b = L^{-T} L^{-1} b, (N, c) -> (N, c)."""
    return _backward(form, A, _forward(form, A, b))


@program()
def multiply(form: Layout, A: jax.Array, b: jax.Array) -> Any:
    """Compute A b, (N, c) -> (N, c), from the tiles on and below the diagonal of a matrix that is not factorised."""
    edge, p, blocks = form.edge, form.devices, form.blocks
    one = _number()

    def column(c: Any, out: jax.Array) -> Any:
        g = c * p + one

        def tile(i: Any, out: jax.Array) -> Any:
            values = _tile(A, i, c, edge)
            values = jnp.where(i == g, jnp.tril(values), values)
            out = _put(out, rows_of_tile(out, i, edge) + product(values, rows_of_tile(b, g, edge)), i, edge)
            mirror = jnp.where(i == g, jnp.tril(values, -1), values).T
            return _put(out, rows_of_tile(out, g, edge) + product(mirror, rows_of_tile(b, i, edge)), g, edge)

        return lax.fori_loop(g, blocks, tile, out)

    return _total(lax.fori_loop(0, blocks // p, column, jnp.zeros_like(b)), p)
