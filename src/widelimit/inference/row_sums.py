"""Sums over rows hold all that inducing points know of the data: one pass, which goes on where it was interrupted."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, final

import numpy as np
import scipy.linalg

from widelimit import memory
from widelimit.compute import linalg, threads, tiles
from widelimit.compute.checkpoints import SolverCheckpoint
from widelimit.inference.rows import Rows
from widelimit.inference.training_set import Function, check_finite
from widelimit.kernels.base import Kernel
from widelimit.progress import Report, no_progress
from widelimit.shapes import Float

Approximation = Literal["dtc", "fitc"]
Precision = Literal["double", "mixed"]
BLOCK = 2**21
"""Numbers of K(rows, inducing points) that are held at once: memory that is used again, and not new for each block."""
ROWS_AT_LEAST = 4096
"""Rows of a block, however many inducing points there are: the m^2 sums are read and written for each block."""
LOST = 1e-6
"""Variance that rounding may add to f at a row, in units of the noise: a thousandth of its deviation."""
STRIP = 512
"""Columns that are added at once where one triangle counts."""
STAGE = "rows"
SECONDS = 120.0
"""Between two states that are written: they hold m^2 numbers."""
FORMAT = "sums over rows, format 1"


class RowSums(NamedTuple):
    """The sums over rows x_i, phi_i = L^{-1} K(L, x_i), w_i = 1/Lambda_i, hold all that the posterior needs."""

    information: Float[np.ndarray, "m m"]
    """sum_i w_i phi_i phi_i^T; one triangle."""
    moments: Float[np.ndarray, "m c"]
    """sum_i w_i phi_i y_i^T."""
    squares: Float[np.ndarray, " c"]
    """sum_i w_i y_i^2."""
    log_noise: float
    """sum_i log Lambda_i."""
    rest: float
    """sum_i (K(x_i, x_i) - |phi_i|^2)/noise_i: what the inducing points leave, in units of the noise."""


@final
@dataclass(frozen=True)
class RowData:
    """The data are rows, targets in units of 2^exponent, and the noise of each row."""

    X: Rows
    y: Rows
    exponent: np.ndarray
    noise: np.ndarray

    def targets(self, part: slice) -> np.ndarray:
        """Return the targets of some rows, in their units."""
        return np.asarray(np.ldexp(self.y[part], -self.exponent))


@final
@dataclass(frozen=True)
class Features:
    """phi(x) = L^{-1} K(L, x), L L^T = K(points, points): phi(x).phi(x') = Q(x, x')."""

    kernel: Kernel
    points: Float[np.ndarray, "m d"]
    root: linalg.Cholesky
    evaluations: tuple[Function, Function]
    dtype: Any
    """The dtype of K(x, points) and of phi."""

    @property
    def error(self) -> float:
        """Return the rounding of |phi(x)|^2 in float64, in units of K(x, x)."""
        return linalg.rounding(len(self.points), 1.0) * self.root.spread

    def of(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Compute phi, (m, b), and K(x, x), (b,)."""
        between, itself = self.evaluations
        lower = self.root.lower.T.astype(self.dtype, copy=False)
        solve = scipy.linalg.blas.dtrsm if self.dtype == np.float64 else scipy.linalg.blas.strsm
        cross = np.ascontiguousarray(between(rows.astype(self.dtype, copy=False)), self.dtype)
        with threads.limit(threads.work(len(lower), len(lower), len(rows))):
            return solve(1.0, lower, cross.T, trans_a=1, overwrite_b=1), itself(rows)


def features(kernel: Kernel, X: Rows, points: np.ndarray, root: linalg.Cholesky, dtype: Any) -> Features:
    """Make the features; the kernel is prepared once for all rows that are in memory, where it can be."""
    known = points.astype(dtype)
    if type(kernel).cross is not Kernel.cross or not X.checked or X.values.dtype != np.float64:
        both = (lambda rows: np.asarray(kernel.cross(rows, known)), lambda rows: np.asarray(kernel.diag(rows)))
        return Features(kernel, points, root, both, dtype)
    pairs = kernel.prepared(X.values, points)
    both = (lambda rows: tiles.cross(pairs, rows, known), lambda rows: tiles.diagonal(pairs, rows, beside=len(points)))
    return Features(kernel, points, root, both, dtype)


def rounding_in_single(double: Features, single: Features, rows: np.ndarray, noise: np.ndarray) -> float:
    """Return the mean of |phi_32(x_i) - phi_64(x_i)|^2/noise_i over some rows: the variance that rounding adds to f."""
    with np.errstate(over="ignore", invalid="ignore"):  # a kernel beyond float32's range: NaN, which is refused
        off = double.of(rows)[0] - single.of(rows)[0]
        return float(np.mean(np.sum(off**2, axis=0) / noise))


@final
@dataclass
class _Totals:
    """The sums over the first `done` rows."""

    total: np.ndarray
    moments: np.ndarray
    squares: np.ndarray
    log_noise: float = 0.0
    rest: float = 0.0
    done: int = 0

    def state(self) -> dict[str, np.ndarray]:
        return {name: np.asarray(value) for name, value in vars(self).items()}

    def add(self, made: Features, data: RowData, part: slice, approximation: Approximation) -> None:
        """Add a block of rows. Raises: ValueError: the kernel leaves the range of a float."""
        rows, noise = data.X[part], data.noise[part]
        phi, diagonal = made.of(rows)
        left = diagonal - np.einsum("ij,ij->j", phi, phi, dtype=np.float64)
        check_finite(left, rows)  # which it is not where an entry of phi is not
        if made.dtype == np.float64:
            left = linalg.non_negative(left, made.error * diagonal)
        own = noise + (np.maximum(left, 0.0) if approximation == "fitc" else 0.0)
        root = 1 / np.sqrt(own)
        phi *= root.astype(phi.dtype)
        weighted = data.targets(part) * root[:, None]
        with threads.limit(threads.work(len(phi), len(phi), len(rows))):
            self._add_products(phi)
            self.moments += phi @ weighted.astype(phi.dtype)
        self.squares += np.sum(weighted**2, axis=0)
        self.log_noise += float(np.sum(np.log(own)))
        self.rest += float(np.sum(left / noise))
        self.done = part.stop

    def _add_products(self, phi: np.ndarray) -> None:
        """Add phi phi^T to one triangle of the total, in float64."""
        if phi.dtype == np.float64:
            self.total = scipy.linalg.blas.dsyrk(1.0, phi, 1.0, self.total, overwrite_c=1)
            return
        block = scipy.linalg.blas.ssyrk(1.0, phi)
        for i in range(0, len(block), STRIP):
            self.total[: i + STRIP, i : i + STRIP] += block[: i + STRIP, i : i + STRIP]


@final
@dataclass(frozen=True)
class SumsFile:
    """The sums over the rows so far are kept in one file, with the points, for one problem only."""

    file: SolverCheckpoint
    facts: dict[str, str]
    """Fingerprints of all that the sums depend on, by name."""

    def load(self) -> dict[str, np.ndarray] | None:
        """Load the last state; None if there is no file. Raises: ValueError: damaged, or of another problem."""
        state = self.file.load()
        if state is None:
            return None
        known = json.loads(str(state.pop("facts")))
        others = [name for name, value in self.facts.items() if known.get(name) != value]
        if others:
            raise ValueError(
                f"the checkpoint {self.file.path} is of another problem: it differs in {', '.join(others)}. Remove it "
                "to start again, or give another path."
            )
        return state

    def save(self, totals: _Totals, points: np.ndarray, *, now: bool) -> None:
        """Replace the file, at most every SECONDS unless `now`."""
        self.file.save({**totals.state(), "points": points, "facts": np.asarray(json.dumps(self.facts))}, now=now)


def sums_file(path: Path, facts: dict[str, str]) -> SumsFile:
    """Name the file of a pass."""
    return SumsFile(SolverCheckpoint(path, FORMAT, seconds=SECONDS), facts)


def require_memory(n: int, m: int, c: int) -> None:
    """Refuse sums that do not fit. Raises: MemoryError."""
    size = 8.0 * (3 * m * m + 2 * m * c + 3 * m * min(n, rows_at_once(m)))
    memory.require(size, f"the sums over {n} rows for {m} inducing points", remedy="use fewer inducing points")


def rows_at_once(m: int) -> int:
    """Return the rows of a block."""
    return max(ROWS_AT_LEAST, BLOCK // m)


def sum_rows(
    made: Features,
    data: RowData,
    approximation: Approximation,
    file: SumsFile | None = None,
    state: dict[str, np.ndarray] | None = None,
    report: Report = no_progress,
) -> RowSums:
    """Add up all rows, block by block, from the state that a file held on."""
    m, c, n = len(made.points), data.y.shape[1], data.X.shape[0]
    totals = _Totals(np.zeros((m, m), order="F"), np.zeros((m, c)), np.zeros(c))
    if state is not None:
        numbers = float(state["log_noise"]), float(state["rest"]), int(state["done"])
        totals = _Totals(np.asfortranarray(state["total"]), state["moments"], state["squares"], *numbers)
    report(STAGE, totals.done, n)
    for part in data.X.blocks(rows_at_once(m), totals.done):
        totals.add(made, data, part, approximation)
        report(STAGE, totals.done, n)
        if file is not None:
            file.save(totals, made.points, now=totals.done == n)
    return RowSums(totals.total.T, totals.moments, totals.squares, totals.log_noise, totals.rest)
