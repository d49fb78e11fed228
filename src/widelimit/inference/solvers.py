"""This module chooses the solver of a linear system K(X, X) + noise, with the reason."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from widelimit.compute import iterative, linalg, memory, operators, packed, plan, preconditioners
from widelimit.compute.checkpoints import SolverCheckpoint
from widelimit.compute.iterative import Iterative, System
from widelimit.compute.operators import Operator, Shifted
from widelimit.compute.tiles import PairKernel
from widelimit.inference.training_set import TrainingSet, scalar_kernel
from widelimit.progress import Report, silent

Solver = Literal["auto", "cholesky", "cg"]
Precision = Literal["double", "mixed"]
DIRECT = 65_000
"""Points up to which "auto" factorises if it can: n^3/3 flops are a quarter of an hour at 1e11 a second."""
PROBED = 8
"""Rows at which a kernel is compared with what was stored of it."""
KERNEL, FACTOR = "kernel matrix", "factorisation"
"""Stages, as progress names them."""
DOUBLE, SINGLE = np.dtype(np.float64), np.dtype(np.float32)


class SolverSettings(NamedTuple):
    """A choice is a solver, the place of its matrix, and the reason."""

    solver: Literal["cholesky", "cg"]
    storage: Literal["full", "packed", "tiles", "recomputed", "stored"]
    why: str


class Fit(NamedTuple):
    """The fit is a solved system: (K(X, X) + noise) weights = y."""

    factor: linalg.Factor
    weights: np.ndarray
    choice: SolverSettings
    residual: float | None
    """The residual is set where the solver measured it."""
    iterations: int
    resumed: int
    converged: bool
    message: str
    trace: float = math.nan
    """Of K(X, X) + noise, where that was factorised."""


def _gib(size: float) -> str:
    return f"{size / memory.GIB:.3g} GiB"


def choose(n: int, solver: Solver, precision: Precision, *, stored: bool = False, kept: bool = False) -> SolverSettings:
    """Choose by n and free memory.

    A full matrix that leaves as much free as it takes; else one triangle; else iterations.
    """
    free, itemsize = memory.available(), 4 if precision == "mixed" else 8
    full, half = 8.0 * n * n, itemsize * n * (n + 1) / 2
    state = f"n = {n}, {_gib(free)} free"
    if stored:
        return SolverSettings("cg", "stored", "K(X, X) is given as stored rows")
    if solver == "cg":
        return _iterative(n, itemsize, f'solver="cg" was asked for ({state})')
    if solver == "auto" and kept:
        return _iterative(n, itemsize, f"a checkpoint was asked for ({state})")
    if solver == "auto" and n > DIRECT:
        return _iterative(n, itemsize, f"n^3/3 flops take too long above n = {DIRECT} ({state})")
    if precision == "double" and 2 * full <= free:
        return SolverSettings("cholesky", "full", f"{state}: the full matrix, {_gib(full)}, fits twice")
    if half + operators.RESERVE <= free or solver == "cholesky":
        dtype = "float32" if precision == "mixed" else "float64"
        return SolverSettings("cholesky", "packed", f"{state}: one triangle in {dtype} takes {_gib(half)}")
    return _iterative(n, itemsize, f"{state}: one triangle, {_gib(half)}, does not fit")


def _iterative(n: int, itemsize: int, why: str) -> SolverSettings:
    dtype = SINGLE if itemsize == 4 else DOUBLE
    if operators.fits(n, dtype):
        return SolverSettings("cg", "tiles", why)
    mend = '; precision="mixed" needs half of the memory' if itemsize == 8 and operators.fits(n, SINGLE) else ""
    return SolverSettings(
        "cg", "recomputed", f"{why}; its tiles do not fit, and every product computes the kernel again{mend}"
    )


def _require(choice: SolverSettings, n: int, c: int, precision: Precision) -> None:
    """Refuse a solve whose arrays do not fit, before anything is computed. Raises: MemoryError."""
    dtype = SINGLE if precision == "mixed" else DOUBLE
    if choice.storage == "packed":
        return packed.require(n, dtype)
    if choice.storage == "full":
        return plan.require(n, n, DOUBLE)
    held = operators.triangle_bytes(n, dtype) if choice.storage == "tiles" else 0
    size = held + preconditioners.bytes_needed(n, preconditioners.default_rank(n)) + iterative.bytes_needed(n, c)
    memory.require(
        size,
        f"conjugate gradients on {n} points with {c} outputs",
        remedy="use fewer points, or a sparse model such as wl.NTKFeatures with a linear one",
    )
    return None


def fit(
    data: TrainingSet,
    noise: np.ndarray,
    *,
    solver: Solver,
    precision: Precision,
    tolerance: float,
    matrix: Any = None,
    checkpoint: str | Path | None = None,
    report: Report = silent,
) -> Fit:
    """Solve (K(X, X) + noise) weights = y; the arguments are those of `posterior`, checked, and `report` for progress.

    Raises:
        MemoryError, ValueError: as `posterior`; singular matrices are found by the factor's rank where possible.
    """
    y, exponent = linalg.scaled(data.y)
    found = _fit(
        data._replace(y=y),
        noise,
        solver=solver,
        precision=precision,
        tolerance=tolerance,
        matrix=matrix,
        checkpoint=checkpoint,
        report=report,
    )
    weights = linalg.restored(found.weights, exponent)
    if not np.isfinite(weights).all():
        largest = float(np.abs(data.y).max())
        raise ValueError(f"the weights leave float64's range, as y reaches {largest:.3g}: scale y, or raise the noise.")
    return found._replace(weights=weights)


def _fit(
    data: TrainingSet,
    noise: np.ndarray,
    *,
    solver: Solver,
    precision: Precision,
    tolerance: float,
    matrix: Any,
    checkpoint: str | Path | None,
    report: Report,
) -> Fit:
    """Call `fit` for y of order 1."""
    choice = choose(len(data.X), solver, precision, stored=matrix is not None, kept=checkpoint is not None)
    _require(choice, len(data.X), data.y.shape[1], precision)
    report(KERNEL, 0, 0)
    own = data.check_diagonal()
    file = SolverCheckpoint(Path(checkpoint), fingerprint(data, noise, precision, tolerance)) if checkpoint else None
    if choice.solver == "cg":
        return _by_iterations(data, own, noise, choice, precision, tolerance, matrix, file, report)
    trace = float(np.sum(own + noise))
    if choice.storage == "full":
        return _full(data, noise, choice, report)._replace(trace=trace)
    each = _solve_each(noise, len(data.X))
    if precision == "mixed":
        return _mixed(data, each, choice, tolerance, report)
    blocks = operators.blocks(*_prepared(data, DOUBLE), progress=partial(report, KERNEL))
    try:
        factor = packed.factorise(blocks, each, DOUBLE, progress=partial(report, FACTOR))
        return _direct(data, factor, choice)._replace(trace=trace)
    except packed.NotPositiveDefinite as error:
        raise ValueError(_singular(error.order, len(data.X))) from None


def _direct(data: TrainingSet, factor: linalg.Factor, choice: SolverSettings) -> Fit:
    return Fit(factor, factor.solve(data.y), choice, None, 0, 0, True, "factorised")


def _full(data: TrainingSet, noise: np.ndarray, choice: SolverSettings, report: Report) -> Fit:
    made, told = partial(report, KERNEL), partial(report, FACTOR)
    factor: linalg.Factor | None = linalg.cholesky(_with(data.lower_gram(progress=made), noise, report), progress=told)
    if factor is None:
        factor = linalg.eigen(_with(data.gram(progress=made), noise, report))
    return _direct(data, factor, choice)


def factorised(matrix: np.ndarray, noise: np.ndarray, report: Report) -> linalg.Factor:
    """Factorise K + diag(noise) in the place of K. Raises: as `linalg.factorise`."""
    return linalg.factorise(_with(matrix, noise, report), progress=partial(report, FACTOR))


def _with(matrix: np.ndarray, noise: np.ndarray, report: Report) -> np.ndarray:
    """Add the noise in place; what follows is the factorisation."""
    matrix[np.diag_indices(len(matrix))] += noise
    report(FACTOR, 0, 0)
    return matrix


def _prepared(data: TrainingSet, dtype: np.dtype) -> tuple[PairKernel, np.ndarray]:
    """The kernel for these inputs, and the inputs, in a dtype; blocks check themselves, and `_fit` the diagonal."""
    X = data.X.astype(dtype, copy=False)
    return scalar_kernel(data.kernel).prepared(X), X


def _solve_each(noise: np.ndarray, n: int) -> np.ndarray:
    return np.array(np.broadcast_to(noise, n))


def _singular(order: int, n: int) -> str:
    return (
        f"K(X, X) + noise is singular to rounding, or not positive semi-definite, at row {order - 1} of {n}, and no "
        'room is there for its eigenvectors. Pass a noise, drop duplicate rows, or pass solver="cg", which takes '
        "consistent labels."
    )


def _mixed(data: TrainingSet, noise: np.ndarray, choice: SolverSettings, tolerance: float, report: Report) -> Fit:
    """Precondition by a float32 factor; where it breaks or the residual is not reached, by the float64 one."""
    n = len(noise)
    made = partial(report, KERNEL)
    entries = operators.choose_operator(*_prepared(data, DOUBLE), DOUBLE, beside=2 * n * (n + 1), progress=made)
    exact = Shifted(entries, noise)
    if isinstance(entries, operators.Tiles):
        held: Iterable[operators.RowBlock] = entries.held
    else:
        held = operators.blocks(*_prepared(data, SINGLE), progress=made)
    try:
        rough = packed.factorise(held, noise, SINGLE, progress=partial(report, FACTOR))
    except packed.NotPositiveDefinite as error:
        reason = f"the float32 factor broke at row {error.order - 1}"
    else:
        system = System(exact, exact, linalg.EPS, rough.solve, tolerance, iterative.MAX_ITERATIONS)
        solved = system.solve(data.y, progress=partial(report, "refinement"))
        if solved.converged:
            factor = Iterative(system, rough.rank, rough.spread)
            return Fit(factor, solved.x, choice, solved.residual, solved.iterations, 0, True, solved.message)
        reason = f"float32 factor, {solved.message}"
        del rough, system
    del entries, exact, held
    double = fit(data, noise, solver="cholesky", precision="double", tolerance=tolerance, report=report)
    return double._replace(message=f"{reason}; factorised in float64 instead")


def _by_iterations(
    data: TrainingSet,
    own: np.ndarray,
    noise: np.ndarray,
    choice: SolverSettings,
    precision: Precision,
    tolerance: float,
    matrix: Any,
    checkpoint: SolverCheckpoint | None,
    report: Report,
) -> Fit:
    n, each = len(data.X), _solve_each(noise, len(data.X))
    dtype = SINGLE if precision == "mixed" else DOUBLE
    if (own < 0).any():
        raise ValueError(f"the kernel matrix is not positive semi-definite: K(x, x) is {own.min():.3g} at some row.")
    fast: Operator
    if matrix is None:
        fast = operators.choose_operator(*_prepared(data, DOUBLE), dtype, progress=partial(report, KERNEL))
    else:
        fast = _stored(data, matrix)
    precise = precision == "double" or matrix is not None
    exact = fast if precise else operators.Recomputed(*_prepared(data, DOUBLE))
    rank, told = preconditioners.default_rank(n), partial(report, "preconditioner")
    precondition = preconditioners.low_rank(fast, each, rank=rank, progress=told)
    eps = float(np.finfo(DOUBLE if precise else SINGLE).eps)
    shifted = (Shifted(exact, each), Shifted(fast, each))
    system = System(*shifted, eps, precondition, tolerance, iterative.MAX_ITERATIONS)
    try:
        solved = system.solve(data.y, checkpoint, progress=partial(report, "conjugate gradients"))
    except iterative.NotPositiveSemidefinite:
        raise ValueError("the kernel matrix is not positive semi-definite: x^T K x < 0 for some x.") from None
    if not np.isfinite(solved.residual):
        raise ValueError(_not_finite(given=matrix is not None))
    spread = float(np.sqrt(shifted[1].diagonal().max() / precondition.shift))
    factor = Iterative(system, n, spread)
    detail = f"{solved.message}, preconditioner of rank {precondition.vectors.shape[1]}"
    return Fit(factor, solved.x, choice, solved.residual, solved.iterations, solved.resumed, solved.converged, detail)


def _not_finite(*, given: bool) -> str:
    """Why iterations came to NaN, for a matrix that was given or computed."""
    if given:
        return "matrix has NaN or infinite entries, see np.argwhere(~np.isfinite(matrix)); compute these rows again."
    return "products with the kernel matrix leave the range of a float: scale X down, or the kernel."


def _stored(data: TrainingSet, matrix: Any) -> Operator:
    """Use rows of K(X, X) that somebody stored, a few of them compared with the kernel."""
    n = len(data.X)
    shape, dtype = getattr(matrix, "shape", None), getattr(matrix, "dtype", None)
    if shape != (n, n) or dtype not in (DOUBLE, SINGLE):
        raise ValueError(
            f"matrix must be K(X, X), a float32 or float64 array of shape ({n}, {n}) (NumPy, memmap, Zarr); got shape "
            f"{shape}, dtype {dtype}."
        )
    rows = _spread(n)
    there = operators.StoredOperator(matrix).columns(rows).astype(np.float64)
    wanted = data.cross(data.X[rows]).T
    # Entries near the rounding of the dtype stored, or of one computed in it, not more: another kernel, or other data.
    off = float(np.abs(there - wanted).max())
    if not off <= 1e3 * float(np.finfo(dtype).eps) * float(np.abs(wanted).max()):
        raise ValueError(
            f"matrix is not K(X, X): its rows differ from the kernel's by {off:.3g}; it was stored for "
            "another kernel, other data or another order of rows."
        )
    return operators.StoredOperator(matrix).marked()


def _spread(n: int) -> np.ndarray:
    """A few rows of n at which a kernel is probed."""
    return np.unique(np.linspace(0, n - 1, PROBED).astype(int))


def fingerprint(data: TrainingSet, noise: np.ndarray, precision: str, tolerance: float) -> str:
    """A hash of everything that the answer depends on; addresses of functions in memory are left out."""
    leaves, structure = jax.tree.flatten(data.kernel)
    digest = hashlib.sha256(re.sub(r"0x[0-9a-f]+", "", str(structure)).encode())
    # Two functions of one name differ by their values only.
    values = np.asarray(data.kernel.gram(data.X[_spread(len(data.X))]))
    for array in (data.X, data.y, noise, *leaves, values, np.float64(tolerance)):
        value = np.ascontiguousarray(array)
        digest.update(f"{value.dtype} {value.shape} ".encode() + value.tobytes())
    digest.update(precision.encode())
    return digest.hexdigest()
