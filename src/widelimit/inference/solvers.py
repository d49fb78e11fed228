"""This module chooses the solver of a linear system K(X, X) + noise, with the reason."""

import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, final

import jax
import numpy as np

from widelimit import memory
from widelimit.compute import (
    device_factors,
    iterative,
    linalg,
    operators,
    packed,
    plan,
    preconditioners,
    streamed_cholesky,
)
from widelimit.compute.checkpoints import SolverCheckpoint
from widelimit.compute.device_rows import DeviceOperator, DeviceRows, buffer_numbers, operator
from widelimit.compute.iterative import Iterative, IterativeSolution, System
from widelimit.compute.operators import Operator, Shifted
from widelimit.compute.tiles import PairKernel
from widelimit.fingerprints import sha256
from widelimit.inference.solver_choice import (
    DOUBLE,
    SINGLE,
    Precision,
    Solver,
    SolverSettings,
    choose,
    choose_there,
    is_factor,
)
from widelimit.inference.solver_choice import (
    SOLVERS as SOLVERS,
)
from widelimit.inference.training_set import TrainingSet, scalar_kernel
from widelimit.progress import FACTOR, KERNEL, Report, no_progress

PROBED = 8
"""Rows at which a kernel is compared with what was stored of it."""
REFINED, REFINEMENTS = 1e-10, 2
"""Steps of iterative refinement, at most, of a solve by a stored factor that left a larger relative residual."""
BACKWARD = 1e-12
"""The residual of a right factor is smaller, in units of trace(A) |weights|: 1e-17 for any condition number."""


@final
@dataclass(frozen=True)
class SolverRequest:
    """The request is (K(X, X) + noise) weights = y and how to solve it: the arguments of `posterior`, checked."""

    data: TrainingSet
    noise: np.ndarray
    solver: Solver = "auto"
    precision: Precision = "double"
    tolerance: float = 1e-10
    matrix: Any = None
    checkpoint: str | os.PathLike[str] | None = None
    client: Any = None
    report: Report = no_progress

    @property
    def dtype(self) -> np.dtype:
        """Return the dtype of the factor, or of the products of iterations."""
        return SINGLE if self.precision == "mixed" else DOUBLE

    @property
    def noise_of_rows(self) -> np.ndarray:
        """Return the noise of every training point, (n,)."""
        return np.array(np.broadcast_to(self.noise, len(self.data.X)))

    def in_dtype(self, dtype: np.dtype) -> tuple[PairKernel, np.ndarray]:
        """Return kernel and inputs in a dtype; `operators.blocks` checks its entries, `fit` the diagonal."""
        X = self.data.X.astype(dtype, copy=False)
        return scalar_kernel(self.data.kernel).prepared(X), X


class SolverFit(NamedTuple):
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
    """The trace of K(X, X) + noise, where that was factorised."""


def _stored_choice(request: SolverRequest) -> SolverSettings:
    factored = is_factor(request.checkpoint)
    why = "K(X, X) is given as stored rows"
    if request.solver == "cholesky" or (request.solver == "auto" and factored):
        return SolverSettings("cholesky", "disk", f"{why}, and {request.checkpoint} keeps the factor")
    return SolverSettings("cg", "stored", why)


def _require(request: SolverRequest, choice: SolverSettings) -> None:
    """Refuse a solve whose arrays do not fit, before anything is computed. Raises: MemoryError."""
    (n, c), dtype, rows = request.data.y.shape, request.dtype, request.data.rows
    if rows is not None:
        kept = dtype.itemsize * buffer_numbers(rows.form) if choice.storage == "device" else 0.0
        return rows.location.require(kept + iterative.bytes_needed(n, c), f"a {n} x {n} {dtype} kernel matrix")
    if choice.storage == "packed":
        return packed.require(n, dtype)
    if choice.storage == "full":
        return plan.require(n, n, DOUBLE)
    size = iterative.bytes_needed(n, c)
    if choice.storage == "disk":
        return memory.require(size, f"the weights of {n} points with {c} outputs")
    size += operators.triangle_bytes(n, dtype) if choice.storage == "tiles" else 0
    size += preconditioners.bytes_needed(n, preconditioners.default_rank(n))
    remedy = "use fewer points, or a sparse model such as wl.NTKFeatures with a linear one"
    memory.require(size, f"conjugate gradients on {n} points with {c} outputs", remedy=remedy)
    return None


def fit(request: SolverRequest) -> SolverFit:
    """Solve (K(X, X) + noise) weights = y.

    Raises: MemoryError, ValueError: as `posterior`; singular matrices are found by the factor's rank where possible.
    """
    y, exponent = linalg.normalise(request.data.y)
    with request.data.here:
        found = _fit(replace(request, data=request.data._replace(y=y)))
    weights = linalg.rescale(found.weights, exponent)
    if not np.isfinite(weights).all():
        largest = float(np.abs(request.data.y).max())
        raise ValueError(f"the weights leave float64's range, as y reaches {largest:.3g}: scale y, or raise the noise.")
    return found._replace(weights=weights)


def _fit(request: SolverRequest) -> SolverFit:
    """Solve as `fit` does, for y that is already of order 1."""
    kept = request.checkpoint is not None
    if request.matrix is not None:
        choice = _stored_choice(request)
    elif request.data.rows is not None:
        choice = choose_there(request.data.rows, request.solver, request.precision, kept=kept)
    else:
        choice = choose(len(request.data.X), request.solver, request.precision, kept=kept)
    _require(request, choice)
    request.report(KERNEL, 0, 0)
    diagonal = request.data.check_diagonal()
    if choice.solver == "cg":
        return _by_iterations(request, choice, diagonal)
    trace = float(np.sum(diagonal + request.noise))
    if choice.storage == "disk":
        return _on_disk(request, choice, diagonal)._replace(trace=trace)
    if request.data.rows is not None and request.precision == "double":
        return _on_device(request, choice, request.data.rows)._replace(trace=trace)
    solve = _full if choice.storage == "full" else _mixed if request.precision == "mixed" else _packed
    return solve(request, choice)._replace(trace=trace)


def _direct(request: SolverRequest, choice: SolverSettings, factor: linalg.Factor) -> SolverFit:
    return SolverFit(factor, factor.solve(request.data.y), choice, None, 0, 0, True, "factorised")


def _full(request: SolverRequest, choice: SolverSettings) -> SolverFit:
    data, noise, report = request.data, request.noise, request.report
    factor: linalg.Factor | None = linalg.cholesky(_add(data.lower_gram(report=report), noise, report), report=report)
    if factor is None:
        factor = linalg.eigen(_add(data.gram(report=report), noise, report), data.error)
    return _direct(request, choice, factor)


def _on_device(request: SolverRequest, choice: SolverSettings, rows: DeviceRows) -> SolverFit:
    if choice.storage == "host":
        streamed = streamed_cholesky.factorise(rows, request.noise, report=request.report)
        if isinstance(streamed, int):
            block = range(streamed, min(streamed + rows.form.edge, len(rows.X)))  # a device says no more
            row = next((i for i in block if (rows.X[:i] == rows.X[i]).all(axis=1).any()), streamed)
            raise _singular(rows.X, packed.NotPositiveDefinite(row + 1))
        return _direct(request, choice, streamed)
    factor: linalg.Factor | None = device_factors.cholesky(rows, request.noise)
    if factor is None:
        factor = device_factors.eigen(rows, request.noise)
    return _direct(request, choice, factor)


def _packed(request: SolverRequest, choice: SolverSettings) -> SolverFit:
    blocks = operators.blocks(*request.in_dtype(DOUBLE), report=request.report)
    try:
        factor = packed.factorise(blocks, request.noise_of_rows, DOUBLE, report=request.report)
    except packed.NotPositiveDefinite as error:
        raise _singular(request.data.X, error) from None
    return _direct(request, choice, factor)


def _singular(X: np.ndarray, error: packed.NotPositiveDefinite) -> ValueError:
    row = error.order - 1
    same = np.flatnonzero((X[:row] == X[row]).all(axis=1))
    cause = f" (it equals row {same[0]})" if len(same) else ""
    return ValueError(
        f"K(X, X) + noise is singular to rounding, or not positive semi-definite, at row {row} of {len(X)}{cause}, and "
        "no room is there for its eigenvectors. Pass a noise, drop duplicate rows, or pass "
        'solver="cg", which takes consistent labels.'
    )


def _on_disk(request: SolverRequest, choice: SolverSettings, diagonal: np.ndarray) -> SolverFit:
    """Factorise a stored matrix tile by tile in a store, and refine the solution by products with the matrix."""
    from widelimit.compute import tile_cholesky  # they import Zarr
    from widelimit.compute.places import find_place

    noise, y, place = request.noise_of_rows, request.data.y, find_place(request.checkpoint)
    exact = Shifted(stored_operator(request.data, request.matrix, request.client), noise)
    try:
        factor = tile_cholesky.factorise(place, request.matrix, noise, diagonal, request.client, report=request.report)
    except packed.NotPositiveDefinite as error:
        raise _singular(request.data.X, error) from None
    weights, steps = factor.solve(y), 0
    left = y - exact.product(weights)
    while (residual := linalg.relative_size(left, y)) > REFINED and steps < REFINEMENTS:
        refined = weights + factor.solve(left)
        rest = y - exact.product(refined)
        if not linalg.relative_size(rest, y) < residual:
            break
        weights, left, steps = refined, rest, steps + 1
    message = f"factorised, {steps} steps of refinement"
    size = float(np.sum(diagonal + noise)) * np.linalg.norm(weights)
    if not (sound := bool(np.linalg.norm(left) <= BACKWARD * size)):
        message += f"; {place.name} is not the factor of this matrix, which was changed later: remove it and call again"
    return SolverFit(factor, weights, choice, residual, steps, 0, sound, message)


def factorise(matrix: np.ndarray, noise: np.ndarray, report: Report) -> linalg.Factor:
    """Factorise K + diag(noise) in the place of K. Raises: as `linalg.factorise`."""
    return linalg.factorise(_add(matrix, noise, report), report=report)


def _add(matrix: np.ndarray, noise: np.ndarray, report: Report) -> np.ndarray:
    """Add the noise in place; what follows is the factorisation."""
    matrix[np.diag_indices(len(matrix))] += noise
    report(FACTOR, 0, 0)
    return matrix


def _mixed(request: SolverRequest, choice: SolverSettings) -> SolverFit:
    """Precondition by a float32 factor; where it breaks or the residual is not reached, by the float64 one."""
    exact, rough = (_rough if request.data.rows is None else _rough_there)(request)
    if isinstance(rough, str):
        reason = rough
    else:
        system = System(exact, exact, linalg.EPS, rough.solve, request.tolerance, iterative.MAX_ITERATIONS)
        solved = system.solve(request.data.y, stage="refinement", report=request.report)
        if solved.converged:
            return _of_iterations(Iterative(system, rough.rank, rough.spread), solved, choice)
        reason = f"float32 factor, {solved.message}"
        del system
    del exact, rough
    try:
        double = fit(replace(request, solver="cholesky", precision="double"))
    except MemoryError as error:
        raise MemoryError(f"{reason}: the matrix is too ill-conditioned for float32, and {error}") from None
    return double._replace(message=f"{reason}; factorised in float64 instead")


def _recomputed(request: SolverRequest) -> Operator:
    """Return K(X, X) in float64, of which no entry is kept."""
    rows = request.data.rows
    if rows is not None:
        return DeviceOperator(rows, None, rows.diagonal(rows.X))
    return operators.Recomputed(*request.in_dtype(DOUBLE))


def _rough(request: SolverRequest) -> tuple[Shifted, packed.Packed | str]:
    """Return the matrix, and its float32 factor or why there is none."""
    noise, report = request.noise_of_rows, request.report
    n = len(noise)
    entries = operators.choose_operator(*request.in_dtype(DOUBLE), DOUBLE, beside=2 * n * (n + 1), report=report)
    if isinstance(entries, operators.Tiles):
        held: Iterable[operators.RowBlock] = entries.held
    else:
        held = operators.blocks(*request.in_dtype(SINGLE), report=report)
    try:
        return Shifted(entries, noise), packed.factorise(held, noise, SINGLE, report=report)
    except packed.NotPositiveDefinite as error:
        return Shifted(entries, noise), f"the float32 factor broke at row {error.order - 1}"


def _rough_there(request: SolverRequest) -> tuple[Shifted, linalg.Factor | str]:
    """Do the same on devices: products compute the entries in float64 again."""
    noise, rows = request.noise_of_rows, request.data.rows
    assert rows is not None
    factor = device_factors.cholesky(rows, noise, SINGLE)
    return Shifted(_recomputed(request), noise), factor or "the float32 factor broke"


def _by_iterations(request: SolverRequest, choice: SolverSettings, diagonal: np.ndarray) -> SolverFit:
    data, noise, report, n = request.data, request.noise_of_rows, request.report, len(diagonal)
    if (diagonal < 0).any():
        raise ValueError(f"the kernel matrix is not positive semi-definite: K(x, x) is {diagonal.min():.3g} somewhere.")
    given = request.matrix is not None
    fast: Operator
    if given:
        fast = stored_operator(request.data, request.matrix, request.client).marked()
    elif data.rows is not None:
        fast = operator(data.rows, request.dtype)
    else:
        fast = operators.choose_operator(*request.in_dtype(DOUBLE), request.dtype, report=report)
    precise = given or request.dtype == DOUBLE
    exact = fast if precise else _recomputed(request)
    precondition = preconditioners.low_rank(fast, noise, rank=preconditioners.default_rank(n), report=report)
    eps = float(np.finfo(DOUBLE if precise else SINGLE).eps)
    shifted = (Shifted(exact, noise), Shifted(fast, noise))
    system = System(*shifted, eps, precondition, request.tolerance, iterative.MAX_ITERATIONS)
    later = system
    if isinstance(fast, operators.StoredOperator):  # the client may be closed by then
        here = Shifted(replace(fast, client=None), noise)
        later = replace(system, exact=here, fast=here)
    try:
        place = request.checkpoint
        checkpoint = None if place is None else SolverCheckpoint(Path(place), fingerprint(request))
        solved = system.solve(request.data.y, checkpoint, report=report)
    except iterative.NotPositiveSemidefinite:
        raise ValueError("the kernel matrix is not positive semi-definite: x^T K x < 0 for some x.") from None
    if not np.isfinite(solved.residual) and given:
        raise ValueError(
            "matrix has NaN or infinite entries, see np.argwhere(~np.isfinite(matrix)); compute them again."
        )
    if not np.isfinite(solved.residual):
        raise ValueError("products with the kernel matrix leave the range of a float: scale X down, or the kernel.")
    spread = float(np.sqrt(shifted[1].diagonal().max() / precondition.shift))
    detail = f"{solved.message}, preconditioner of rank {precondition.vectors.shape[1]}"
    return _of_iterations(Iterative(later, n, spread), solved, choice)._replace(message=detail)


def _of_iterations(factor: Iterative, solved: IterativeSolution, choice: SolverSettings) -> SolverFit:
    outcome = solved.iterations, solved.resumed, solved.converged, solved.message
    return SolverFit(factor, solved.x, choice, solved.residual, *outcome)


def open_matrix(matrix: Any, name: str = "matrix") -> Any:
    """Open a path of `stored_gram`; anything else is returned as it is. Raises: ValueError: there is no matrix."""
    if not isinstance(matrix, str | os.PathLike):
        return matrix
    from widelimit.kernels.stored import open_gram  # it imports Zarr

    return open_gram(matrix, name)


def stored_operator(data: TrainingSet, matrix: Any, client: Any, name: str = "matrix") -> operators.StoredOperator:
    """Use rows of K(X, X) that somebody stored, a few of them compared with the kernel. Raises: ValueError."""
    n = len(data.X)
    shape, dtype = getattr(matrix, "shape", None), getattr(matrix, "dtype", None)
    if shape != (n, n) or dtype not in (DOUBLE, SINGLE):
        raise ValueError(
            f"{name} must be K(X, X), a float32 or float64 array of shape ({n}, {n}) (NumPy, memmap, Zarr); got shape "
            f"{shape}, dtype {dtype}."
        )
    rows = _spread(n)
    stored = operators.StoredOperator(matrix, client=client)
    there = stored.columns(rows).astype(np.float64)
    computed = data.cross(data.X[rows]).T
    # Rows may differ by about the rounding of the stored dtype; if by more, it is another kernel, or other data.
    off = float(np.abs(there - computed).max())
    if not off <= 1e3 * float(np.finfo(dtype).eps) * float(np.abs(computed).max()):
        raise ValueError(
            f"{name} is not K(X, X): its rows differ from the kernel's by {off:.3g}; it was stored for "
            "another kernel, other data or another order of rows."
        )
    return stored


def _spread(n: int) -> np.ndarray:
    """Return a few rows of n at which a kernel is probed."""
    return np.unique(np.linspace(0, n - 1, PROBED).astype(int))


def fingerprint(request: SolverRequest) -> str:
    """Hash everything that the answer depends on; addresses of functions in memory are left out."""
    data = request.data
    leaves, structure = jax.tree.flatten(data.kernel)
    values = data.kernel.gram(data.X[_spread(len(data.X))])  # two functions of one name differ by these only
    arrays = map(np.ascontiguousarray, (data.X, data.y, request.noise, *leaves, values, request.tolerance))
    parts = [part for array in arrays for part in (f"{array.dtype} {array.shape} ", array.tobytes())]
    return sha256(re.sub(r"0x[0-9a-f]+", "", str(structure)), *parts, request.precision)
