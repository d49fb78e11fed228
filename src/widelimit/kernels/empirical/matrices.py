"""Matrices of an empirical kernel are computed block by block, for all parameters together or by label."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from widelimit import memory, validation
from widelimit.arithmetic import arithmetic, outside
from widelimit.compute import tiles
from widelimit.kernels.empirical.agreement import checked_plan
from widelimit.kernels.empirical.model import Model
from widelimit.kernels.empirical.plan import (
    ContractionPlan,
    KernelSettings,
    PairSizes,
    block_rows,
    pairs_of,
    plan,
    rows_of_pair,
)
from widelimit.kernels.empirical.rows import require_finite

_pairwise = jax.jit(lambda pair, x, y: pair.pairwise(x, y))
_diagonal = jax.jit(lambda pair, x: pair.diagonal(x))


def plan_pairs(
    f: Model, settings: KernelSettings, inputs: Any, *, whole: bool = False, diagonal: bool = False
) -> tuple[Model, ContractionPlan]:
    """Return the function in the dtype of the inputs, and the plan for all pairs of one or two arrays of rows.

    whole: plan one block of all pairs. diagonal: plan K(x, x) only.
    """
    dtype = np.result_type(*(X.dtype for X in inputs))
    f = f.of_dtype(dtype)
    features = inputs[0].shape[1]
    n, m = len(inputs[0]), len(inputs[-1])
    c = rows_of_pair(settings.output, f.cost(features, dtype).outputs)
    down, across = (n, m) if whole else (block_rows(n, c), block_rows(m, c))
    return f, plan(f, settings, PairSizes(n, m, down, across, len(inputs) == 1, diagonal), features, dtype)


def _blocks(X: np.ndarray, rows: int) -> list[jax.Array]:
    filled = np.resize(X, (-(-len(X) // rows) * rows, X.shape[1]))
    return [jnp.asarray(filled[i : i + rows]) for i in range(0, len(filled), rows)]


def matrix(f: Model, settings: KernelSettings, X: Any, Y: Any) -> np.ndarray:
    """Compute K(X, Y) block by block; if Y is X, one triangle is mirrored, so it is symmetric to the bit."""
    return next(iter(matrices(f, settings, X, Y).values()))


@outside
def matrices(
    f: Model, settings: KernelSettings, X: Any, Y: Any, label: Callable[[str], str] | None = None
) -> dict[str, np.ndarray]:
    """Compute `matrix` for the parameters of each label; label: a function of their names, without it all together."""
    f, same = f.at("X", X), Y is X
    X = f.points("X", X)
    X, Y = validation.two_blocks(X, X if same else f.points("Y", Y))
    f, found = plan_pairs(f, settings, (X,) if same else (X, Y))
    found = checked_plan(f, settings, found, X, Y)
    groups = {} if label is None else _groups(found, label)
    pair = pairs_of(f, settings, found)
    with arithmetic(X.dtype == np.float64):
        rows = [pair.encode(block) for block in _blocks(X, found.sizes.down)]
        columns = rows if same else [pair.encode(block) for block in _blocks(Y, found.sizes.across)]
        if label is None:
            return {"": _assemble(f, pair, found, X, Y, rows, columns)}
        values = {}
        for name, places in groups.items():
            parts = [[[block[k] for k in places] for block in side] for side in (rows, columns)]
            values[name] = _assemble(f, pair, found, X, Y, parts[0], parts[0] if same else parts[1])
        return values


def _groups(found: ContractionPlan, label: Callable[[str], str]) -> dict[str, list[int]]:
    """Return the numbers of the factors of each label. Raises: MemoryError: the factors or kernels do not fit."""
    names = [label(layer.name) for layer in found.layers if layer.way != "none"]
    groups = {name: [k for k, other in enumerate(names) if other == name] for name in names}
    need = found.chosen.work + found.blocks + found.result * len(groups)
    if not found.chosen.stored or need > found.budget:
        raise MemoryError(
            f"{len(groups)} kernels and the factors of all rows take at least {memory.text(need)}; the budget is "
            f"{memory.text(found.budget)}. Use fewer rows, by='block', or another memory=GiB."
        )
    return groups


def _assemble(
    f: Model, pair: tiles.PairKernel, found: ContractionPlan, X: Any, Y: Any, rows: list[Any], columns: list[Any]
) -> np.ndarray:
    """Compute the matrix of encoded blocks of rows and columns."""
    same, down, across = columns is rows, found.sizes.down, found.sizes.across
    out = np.empty((len(X), len(Y), *found.tail), X.dtype)
    for i, x in enumerate(rows):
        here = slice(i * down, (i + 1) * down)
        for j, y in enumerate(columns[: i + 1] if same else columns):
            there = slice(j * across, (j + 1) * across)
            target = out[here, there]
            values = np.asarray(_pairwise(pair, x, y))[: target.shape[0], : target.shape[1]]
            if same and i == j:
                target[:] = (values + _mirror(values)) / 2
                index = np.arange(len(target))
                target[index, index] = _diagonal_block(pair, x)[: len(target)]
            elif same:
                target[:], out[there, here] = values, _mirror(values)
            else:
                target[:] = values
            require_finite(f, target, X=X[here], Y=Y[there])
    return out


def _mirror(values: np.ndarray) -> np.ndarray:
    """Compute K(x', x) from K(x, x')."""
    mirror = np.swapaxes(values, 0, 1)
    return mirror if values.ndim < 4 else np.swapaxes(mirror, 2, 3)


@outside
def diagonal(f: Model, settings: KernelSettings, X: Any) -> np.ndarray:
    """Compute K(x, x) for all rows of X, (n, *c)."""
    f = f.at("X", X)
    points = validation.concrete_points("X", f.points("X", X))
    f, found = plan_pairs(f, settings, (points,), diagonal=True)
    found = checked_plan(f, settings, found, points)
    pair = pairs_of(f, settings, found)
    with arithmetic(points.dtype == np.float64):
        parts = [_diagonal_block(pair, pair.encode(block)) for block in _blocks(points, found.sizes.down)]
    values = np.concatenate(parts)[: len(points)]
    require_finite(f, values, X=points)
    return values


def _diagonal_block(pair: tiles.PairKernel, x: Any) -> np.ndarray:
    """Compute K(x, x) of a block of rows, (n, ...); matrices of outputs are symmetric to the bit."""
    values = np.asarray(_diagonal(pair, x))
    return (values + np.swapaxes(values, 1, 2)) / 2 if values.ndim in (3, 4) else values
