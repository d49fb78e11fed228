"""The solver of K(X, X) + noise, and the place of its matrix, are chosen by the size and the memory that is free."""

import os
from typing import Any, Literal, NamedTuple

import numpy as np

from widelimit import memory
from widelimit.compute import operators
from widelimit.compute.device_rows import DeviceRows, buffer_numbers
from widelimit.compute.streamed_cholesky import bytes_here, bytes_there

Solver = Literal["auto", "cholesky", "cg"]
SOLVERS = ("auto", "cholesky", "cg")
Precision = Literal["double", "mixed"]
DIRECT = 65_000
"""Points up to which "auto" factorises if it can: n^3/3 flops are a quarter of an hour at 1e11 a second."""
ZARR = ".zarr"
"""A checkpoint of this ending is the store of a factor; any other is the file of iterations."""
DOUBLE, SINGLE = np.dtype(np.float64), np.dtype(np.float32)


class SolverSettings(NamedTuple):
    """A choice is a solver, the place of its matrix, and the reason."""

    solver: Literal["cholesky", "cg"]
    storage: Literal["full", "packed", "tiles", "recomputed", "stored", "disk", "device", "host"]
    why: str


def choose(n: int, solver: Solver, precision: Precision, *, kept: bool = False) -> SolverSettings:
    """Choose by n and free memory.

    A full matrix that leaves as much free as it takes; else one triangle; else iterations.
    """
    free, itemsize = memory.available(), 4 if precision == "mixed" else 8
    full, half = 8.0 * n * n, itemsize * n * (n + 1) / 2
    state = f"n = {n}, {memory.text(free)} free"
    if solver == "cg":
        return _iterative(n, itemsize, f'solver="cg" was asked for ({state})')
    if solver == "auto" and kept:
        return _iterative(n, itemsize, f"a checkpoint was asked for ({state})")
    if solver == "auto" and n > DIRECT:
        return _iterative(n, itemsize, f"n^3/3 flops take too long above n = {DIRECT} ({state})")
    if precision == "double" and 2 * full <= free:
        return SolverSettings("cholesky", "full", f"{state}: the full matrix, {memory.text(full)}, fits twice")
    if half + operators.RESERVE <= free or solver == "cholesky":
        dtype = "float32" if precision == "mixed" else "float64"
        return SolverSettings("cholesky", "packed", f"{state}: one triangle in {dtype} takes {memory.text(half)}")
    return _iterative(n, itemsize, f"{state}: one triangle, {memory.text(half)}, does not fit")


def choose_there(rows: DeviceRows, solver: Solver, precision: Precision, *, kept: bool = False) -> SolverSettings:
    """Choose by the memory of the devices: a factor there; else iterations, with the matrix there or computed again."""
    dtype = SINGLE if precision == "mixed" else DOUBLE
    size = dtype.itemsize * buffer_numbers(rows.form)
    state = f"n = {rows.form.n}, {memory.text(rows.location.free())} free on {rows.location.name}"
    fits = size <= rows.location.free()
    iterative = solver == "cg" or (solver == "auto" and (kept or not fits))
    why = f"{state}: the {dtype} matrix takes {memory.text(size)}" + (" and does not fit" * (not fits))
    here, triangle = memory.available(), bytes_here(rows.form)
    room = triangle + operators.RESERVE <= here and bytes_there(rows.form) <= rows.location.free()
    if not (fits or solver == "cg" or kept or precision == "mixed") and (solver == "cholesky" or room):
        return SolverSettings("cholesky", "host", f"{why}: its factor, {memory.text(triangle)}, is kept on the host")
    if not iterative:
        return SolverSettings("cholesky", "device", why)
    return SolverSettings("cg", "device" if fits else "recomputed", why)


def is_factor(checkpoint: Any) -> bool:
    """Return True for the place of a factor's tiles, False for the file of a solve's state, and for None."""
    return checkpoint is not None and os.fspath(checkpoint).rstrip("/").endswith(ZARR)


def _iterative(n: int, itemsize: int, why: str) -> SolverSettings:
    dtype = SINGLE if itemsize == 4 else DOUBLE
    if operators.fits(n, dtype):
        return SolverSettings("cg", "tiles", why)
    remedy = '; precision="mixed" needs half of the memory' if itemsize == 8 and operators.fits(n, SINGLE) else ""
    again = f"its tiles do not fit, and every product computes the kernel again{remedy}"
    return SolverSettings("cg", "recomputed", f"{why}; {again}")
