"""Products of an empirical kernel with vectors are computed without the kernel."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from widelimit import memory, validation
from widelimit.arithmetic import arithmetic
from widelimit.kernels.empirical.model import Cost, Model
from widelimit.kernels.empirical.plan import KernelSettings
from widelimit.kernels.empirical.products import pull, push
from widelimit.kernels.empirical.rows import check_rows, require_finite

CHUNK = 256
"""Rows at once, at most; more do not run faster."""

_outputs = jax.jit(Model.__call__)


def matvec(f: Model, settings: KernelSettings, X: Any, v: Any, Y: Any) -> np.ndarray:
    """Compute K(X, Y) v for the kernel that `settings` describes."""
    x = f.points("X", X)
    x, y = validation.two_blocks(x, x if Y is None else f.points("Y", Y))
    vector = np.asarray(validation.as_finite_floats("v", validation.concrete("v", v)))
    dtype = np.result_type(x, y, vector)
    x, y, vector = (a.astype(dtype, copy=False) for a in (x, y, vector))
    f = f.of_dtype(dtype)
    cost = f.cost(x.shape[1], dtype)
    stack = _stack(vector, len(y), cost.outputs, settings)
    check_rows(f, x, y)
    with arithmetic(dtype == np.float64):
        moved = _moments(f, x, y, stack) if settings.kind == "nngp" else _tangents(f, settings, cost, x, y, stack)
    require_finite(f, moved, X=x, Y=y)
    return _unstack(moved, settings).reshape(len(x), *vector.shape[1:])


def _stack(v: np.ndarray, m: int, c: int, settings: KernelSettings) -> np.ndarray:
    """Return v as (s, m, c): s vectors that the full kernel acts on."""
    trace = settings.output == "trace"
    shapes = [(m,), (m, *v.shape[1:2])] if trace else [(m, c), *([(m,)] if c == 1 else [])]
    if v.shape not in shapes or v.size == 0:
        required = f"({m},) or ({m}, k)" if trace else f"({m}, {c})"
        raise ValueError(f"v must have shape {required} here, got {v.shape}.")
    columns = v.reshape(m, -1)
    if settings.output == "full":
        return columns[None]
    if settings.output == "diagonal":
        return np.asarray(np.eye(c, dtype=v.dtype)[:, None, :] * columns)
    every = columns.T[:, None, :, None] * np.eye(c, dtype=v.dtype)[:, None, :]
    return np.asarray(every.reshape(-1, m, c))


def _unstack(moved: np.ndarray, settings: KernelSettings) -> np.ndarray:
    """Return (s, n, c) products in the form of the requested kernel."""
    if settings.output == "full":
        return np.asarray(moved[0])
    c = moved.shape[2]
    if settings.output == "diagonal":
        return np.asarray(np.einsum("ana->na", moved))
    by_output = moved.reshape(-1, c, *moved.shape[1:])
    return np.asarray(np.einsum("kana->nk", by_output) / c)


def _chunks(X: np.ndarray, rows: int) -> np.ndarray:
    """Reshape (n, d) to (k, rows, d), padded with leading rows, as the function need not be defined at 0."""
    count = -(-len(X) // rows)
    return np.resize(X, (count * rows, X.shape[1])).reshape(count, rows, X.shape[1])


def _tangents(
    f: Model, settings: KernelSettings, cost: Cost, x: np.ndarray, y: np.ndarray, stack: np.ndarray
) -> np.ndarray:
    """Compute the product for as many vectors, then as many rows at once, as the budget allows.

    A direction of the parameters is in memory three times.
    """
    budget = memory.budget(settings.memory)
    direction, row = 3.0 * cost.parameters * cost.itemsize, 4.0 * cost.signals * cost.itemsize
    remedy = "pass another memory=GiB, or float32"
    memory.require(direction + row, "a product with the kernel", limit=budget, remedy=remedy)
    group = int(max(1, min(len(stack), budget / 2 // (direction + row))))
    rows = int(max(1, min(CHUNK, (budget - group * direction) // (group * row))))
    chunk, parts = min(rows, len(y)), []
    for i in range(0, len(stack), group):
        v = np.pad(stack[i : i + group], ((0, 0), (0, -len(y) % chunk), (0, 0)))
        chunked = v.reshape(len(v), -1, chunk, cost.outputs)
        along = pull(f, jnp.asarray(_chunks(y, chunk)), jnp.asarray(chunked))
        parts.append(np.asarray(push(f, jnp.asarray(_chunks(x, min(rows, len(x)))), along))[:, : len(x)])
    return np.concatenate(parts)


def _moments(f: Model, x: np.ndarray, y: np.ndarray, stack: np.ndarray) -> np.ndarray:
    at_x, at_y = (np.asarray(_outputs(f, f.params, jnp.asarray(points))) for points in (x, y))
    return np.asarray(np.einsum("smb,mb->s", stack, at_y)[:, None, None] * at_x)
