"""Sums of products are computed in chunks of one size, as a loop: one program serves series of many lengths.

A chunk has some columns and, for each, the coefficients of 16 functions of the angle: y^(8 q + j) and x y^(8 q + j),
j < 8, y = 2 x^2 - 1, q its block. A pair costs several times as much as in an unrolled sum; so this is for terms
beyond the lengths that a compiled program unrolls.
"""

from typing import final

import jax
import jax.numpy as jnp
import numpy as np

from widelimit import series
from widelimit.activations.tabulated.expansions import PLACES, Expansion, ExpansionMemo, in_slices
from widelimit.pytrees import pytree

LENGTH = 16
LONGEST = 4 * LENGTH
"""Functions of the angle of the longest expansion that is cut into chunks."""


@final
@pytree
class Chunks:
    """G chunks hold the expansions of both parts of phi, in powers of the halves."""

    rows: np.ndarray
    """(G, C LENGTH, PLACES)"""
    columns: np.ndarray
    """(G, C, PLACES)"""
    block: np.ndarray
    """(G,): q, or -1 for an empty chunk"""
    even: np.ndarray
    """(G,): 1 for the even part of phi, whose sign is that of rho; else 0."""


def cut(odd: Expansion | None, even: Expansion | None, *, width: int) -> Chunks:
    """Cut both parts into chunks of `width` columns; chunks of zeros are left out."""
    places = next((part.rows.shape[-1] for part in (odd, even) if part), PLACES)
    rows, columns = [np.zeros((0, width * LENGTH, places))], [np.zeros((0, width, places))]
    blocks: list[int] = []
    parities: list[int] = []
    for parity, expansion in ((0, odd), (1, even)):
        if expansion is None:
            continue
        parts = np.split(expansion.rows, np.cumsum(expansion.pattern)[:-1])
        for first in range(0, len(parts), width):
            own = parts[first : first + width]
            for block in range(-(-max(map(len, own)) // LENGTH)):
                chunk = np.zeros((width, LENGTH, places))
                for b, part in enumerate(own):
                    piece = part[block * LENGTH : (block + 1) * LENGTH]
                    chunk[b, : len(piece)] = piece
                if not chunk.any():
                    continue
                at = expansion.columns[first : first + width]
                rows.append(chunk.reshape(1, -1, places))
                columns.append(np.pad(at, ((0, width - len(at)), (0, 0)))[None])
                blocks.append(block)
                parities.append(parity)
    return Chunks(np.concatenate(rows), np.concatenate(columns), np.array(blocks, int), np.array(parities, int))


def fill(chunks: Chunks, count: int) -> Chunks:
    """Append empty chunks up to that number; the loop skips them."""
    more = count - len(chunks.block)
    rows, columns, even = (
        np.pad(v, ((0, more), *[(0, 0)] * (v.ndim - 1))) for v in (chunks.rows, chunks.columns, chunks.even)
    )
    return Chunks(rows, columns, np.pad(chunks.block, (0, more), constant_values=-1), even)


def chunks_memo(chunks: Chunks, polynomials: jax.Array) -> ExpansionMemo:
    """Evaluate the chunks at the inputs whose T_j are given, (PLACES or more, ..)."""
    polynomials = polynomials[: chunks.rows.shape[-1]]
    return ExpansionMemo(
        *(jnp.tensordot(matrix, polynomials, 1, precision="highest") for matrix in (chunks.rows, chunks.columns))
    )


def mean_and_slope_by_x(
    chunks: Chunks, x: ExpansionMemo, y: ExpansionMemo, at: jax.Array, sign: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Compute H and dH/dx at the places `at` of the angles, psi 4/pi - 1."""
    square = 2 * at**2 - 1
    seventh = square**7
    eighth = seventh * square
    start = jnp.zeros(jnp.broadcast_shapes(at.shape, x.columns.shape[2:], y.columns.shape[2:]), at.dtype)

    def add(total: jax.Array, rows: jax.Array, columns: jax.Array, block: jax.Array, parity: jax.Array) -> jax.Array:
        coefficients = _unroll(rows, columns)
        (even, even_slope), (odd, odd_slope) = (
            series.polynomial_and_slope(coefficients[half::2], square) for half in (0, 1)
        )
        value, change = even + at * odd, odd + 4 * at * (even_slope + at * odd_slope)
        lower = jnp.where(block == 1, 1, jnp.where(block == 2, eighth, eighth**2))
        power = jnp.where(block == 0, 1, lower * eighth)
        by_square = jnp.where(block == 0, 0, 8 * block * lower * seventh)
        weight = jnp.where(parity == 1, sign, jnp.ones_like(sign))
        change = weight * (power * change + 4 * at * by_square * value)
        return total + jax.lax.complex(weight * power * value, change)

    def step(total: jax.Array, chunk: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        # XLA does not fuse across a branch: fused with the looking up of a chunk, the arithmetic takes five times as
        # long.
        return jax.lax.cond(chunk[2] >= 0, add, lambda total, *_: total, total, *chunk), None

    along = (x.rows, y.columns, jnp.asarray(chunks.block), jnp.asarray(chunks.even))
    total = jax.lax.scan(step, jax.lax.complex(start, start), along)[0]
    return total.real, total.imag


def _unroll(rows: jax.Array, columns: jax.Array) -> list[jax.Array]:
    """Sum over columns the products of rows (C LENGTH, ..) times columns (C, ..)."""
    of_rows, of_columns = in_slices(rows), in_slices(columns)
    terms = [[of_rows[b * LENGTH + k] * column for b, column in enumerate(of_columns)] for k in range(LENGTH)]
    return [jax.lax.squeeze(sum(row[1:], row[0]), (0,)) for row in terms]
