"""Functions of two standard deviations and an angle are written as sums of products, cheap for every pair.

What depends on one input only is looked up once an input. A pair has few products left: the functions of the second
deviation are the principal ones (a singular value decomposition of the coefficients), fewer than polynomials.
"""

import functools
from dataclasses import field
from typing import NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np

from widelimit import series
from widelimit.pytrees import pytree

PLACES = 40
"""Columns of a table, 0 beyond the points it took: so shapes do not depend on the range."""
MOST_PLACES = 96
"""Columns of a table that took more points than `PLACES`."""


def in_places(coefficients: np.ndarray) -> np.ndarray:
    """Append columns of 0 up to PLACES, or MOST_PLACES, to an array (.., m)."""
    count = coefficients.shape[-1]
    more = (PLACES if count <= PLACES else MOST_PLACES) - count
    return np.pad(coefficients, [(0, 0)] * (coefficients.ndim - 1) + [(0, more)])


@final
@pytree
class Expansion:
    """The expansion is sum_b column_b(t) sum_k row_(b, k)(s) f_k: Chebyshev matrices, f_k functions of the angle."""

    rows: np.ndarray
    """(terms, PLACES)"""
    columns: np.ndarray
    """(p, PLACES)"""
    pattern: tuple[int, ...] = field(metadata={"static": True})
    """Each column has this number of functions of the angle; terms is their sum."""


class ExpansionMemo(NamedTuple):
    """The memo holds an expansion's rows and columns at the deviations of n inputs: arrays (.., n)."""

    rows: jax.Array
    columns: jax.Array


def expansion_memo(expansion: Expansion, polynomials: jax.Array) -> ExpansionMemo:
    """Evaluate the expansion at the inputs whose T_j are given, (m, .., n), as many or more."""
    polynomials = polynomials[: expansion.rows.shape[-1]]
    flat = polynomials.reshape(len(polynomials), -1)
    shape = (-1, *polynomials.shape[1:])
    return ExpansionMemo(
        *(
            jnp.matmul(matrix, flat, precision="highest").reshape(shape)
            for matrix in (expansion.rows, expansion.columns)
        )
    )


def contract(expansion: Expansion, x: ExpansionMemo, y: ExpansionMemo) -> list[jax.Array]:
    """Compute for every pair the coefficients of the functions of the angle.

    If all columns have the same number of them, by a matrix product: written out, these sums take most of the seconds
    to compile where kinks coincide.
    """
    if max(expansion.pattern) > 1 and _rectangular(expansion) and _matrices(x, y):
        return list(contract_rectangle(expansion, x, y))
    starts, rows, columns = np.concatenate([[0], np.cumsum(expansion.pattern)]), in_slices(x.rows), in_slices(y.columns)
    sums = [
        [rows[starts[b] + k] * columns[b] for b, n in enumerate(expansion.pattern) if k < n]
        for k in range(max(expansion.pattern))
    ]
    return [jax.lax.squeeze(functools.reduce(jnp.add, terms), (0,)) for terms in sums]


def in_slices(array: jax.Array) -> list[jax.Array]:
    """Return array[k : k + 1] for every k, by one operation: two for each would be most of what JAX traces."""
    return list(jax.lax.split(array, (1,) * len(array)))


def contract_rectangle(expansion: Expansion, x: ExpansionMemo, y: ExpansionMemo) -> jax.Array:
    """Compute `contract` as one array (length, ..); all columns have the same number of functions of the angle."""
    parts = x.rows.reshape(len(expansion.pattern), -1, *x.rows.shape[1:])
    if _matrices(x, y):
        return jnp.einsum("bkn,bm->knm", parts[..., 0], y.columns[:, 0], precision="highest")
    return jnp.sum(parts * y.columns[:, None], axis=0)


def _rectangular(expansion: Expansion) -> bool:
    return len(set(expansion.pattern)) == 1


def _matrices(x: ExpansionMemo, y: ExpansionMemo) -> bool:
    """Return True for all pairs of n and m inputs: arrays (.., n, 1) and (.., 1, m)."""
    return x.rows.ndim == 3 and x.rows.shape[2] == 1 and y.columns.shape[1:-1] == (1,)


def expand(coefficients: np.ndarray, threshold: float, *, step: int, weights: np.ndarray | float = 1.0) -> Expansion:
    """Expand coefficients (m, m, K); terms below the threshold after multiplication by weights (K,) are left out.

    Lengths are multiples of `step` and do not increase, so that few programs are compiled.
    """
    m, _, count = coefficients.shape
    matrix = np.moveaxis(coefficients, 2, 1)
    weighted = (matrix * np.reshape(weights, (-1, 1))).reshape(m * count, m)
    sizes, directions = np.linalg.svd(weighted, full_matrices=False)[1:]
    columns = directions[: max(1, np.count_nonzero(sizes > threshold))]
    rows = matrix @ columns.T
    pattern = _pattern(np.abs(rows).max(axis=0).T * weights, threshold, step)
    of_rows = np.concatenate([rows[:, :n, b].T for b, n in enumerate(pattern)])
    return Expansion(in_places(of_rows), in_places(columns[: len(pattern)]), pattern)


def _pattern(sizes: np.ndarray, threshold: float, step: int) -> tuple[int, ...]:
    required = [int(np.max(np.nonzero(row > threshold)[0], initial=0)) + 1 for row in sizes]
    if max(required) == 1:
        step = 1
    longest = np.maximum.accumulate(required[::-1])[::-1]
    return tuple(int(-(-n // step) * step) for n in longest)


def in_powers(expansion: Expansion, *, halved: bool) -> Expansion:
    """Return Chebyshev series in x as power series, which give the slope as well: in x, or (halved) in y = 2 x^2 - 1.

    The halves a, b of `series.chebyshev_halves` follow each other, coefficient by coefficient. Coefficients of the
    functions at hand fall faster than those of the powers in T_k rise (by 2.4 a degree).
    """
    blocks = np.split(expansion.rows, np.cumsum(expansion.pattern)[:-1])
    powers = [_halves_in_powers(block) if halved and len(block) > 1 else _powers(block) for block in blocks]
    return Expansion(np.concatenate(powers), expansion.columns, expansion.pattern)


def _powers(block: np.ndarray) -> np.ndarray:
    return np.asarray(_power_coefficients(len(block)) @ block)


@functools.cache
def _power_coefficients(count: int) -> np.ndarray:
    """Return the coefficients of T_k in powers, k < count, as columns."""
    matrix = [np.polynomial.chebyshev.cheb2poly(row) for row in np.eye(count)]
    return np.array([np.pad(row, (0, count - len(row))) for row in matrix]).T


def _halves_in_powers(block: np.ndarray) -> np.ndarray:
    halves = [_powers(half) for half in series.chebyshev_halves(block)]
    return np.stack(halves, axis=1).reshape(block.shape)
