"""Conjugate gradients solve for many right-hand sides until the true residual, in float64, is as small as requested."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, final

import numpy as np

from widelimit.compute import threads
from widelimit.compute.checkpoints import SolverCheckpoint
from widelimit.compute.linalg import EPS, Factor, normalise, rescale
from widelimit.compute.operators import Operator
from widelimit.compute.preconditioners import Precondition
from widelimit.progress import Report, no_progress

MAX_ITERATIONS = 1000
"""Most products with the matrix in one solve."""
DEPTH = 1e-5
"""A refinement with float32 products reduces the residual by this factor; then the recursion's residual is wrong."""
PATIENCE = 50
"""Iterations without a smaller residual after which float32 products cannot reduce it further."""
VARIANCES = 256
"""Right-hand sides of variances taken at once."""

CGState = dict[str, np.ndarray]
Observer = Callable[[np.ndarray], None]
"""A function that is called with the norms of a residual, (c,)."""


class IterativeSolution(NamedTuple):
    """The result says what a solve found, and how it ended."""

    x: np.ndarray
    residual: float
    """|b - A x|/|b|, the largest over right-hand sides, from products in float64."""
    iterations: int
    resumed: int
    """Iterations that a checkpoint had already."""
    converged: bool
    message: str


class NotPositiveSemidefinite(ArithmeticError):
    """The error is raised if p^T A p < 0 beyond rounding."""


def bytes_needed(n: int, columns: int) -> float:
    """Return the bytes of the vectors of a solve: its state, and the products in work."""
    return 8.0 * 12 * n * columns


def _norms(v: np.ndarray) -> np.ndarray:
    return np.asarray(np.sqrt(np.einsum("ij,ij->j", v, v)))


def _over(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return a/b, 0 where b is not positive."""
    return np.asarray(np.divide(a, b, out=np.zeros_like(a), where=b > 0))


def _start(b: np.ndarray) -> CGState:
    """Return all that the next iteration needs, and so all that a checkpoint holds."""
    zero = np.zeros_like(b)
    counts = {name: np.zeros((), int) for name in ("inner", "total")}
    return {"x": zero, "r": b.copy(), **_restart(b), **counts, "before": np.asarray(np.inf)}


def _restart(r: np.ndarray) -> CGState:
    zero = np.zeros_like(r)
    return {"dx": zero.copy(), "s": r.copy(), "p": zero, "rho": np.zeros(r.shape[1]), "inner": np.zeros((), int)}


@final
@dataclass(frozen=True)
class System:
    """A x = b, A symmetric positive semi-definite: by `exact` products the residual, by `fast` ones the iterations."""

    exact: Operator
    fast: Operator
    eps: float
    """The rounding is that of the dtype of `fast`."""
    precondition: Precondition
    tolerance: float
    max_iterations: int

    def solve(
        self,
        b: np.ndarray,
        checkpoint: SolverCheckpoint | None = None,
        *,
        stage: str = "conjugate gradients",
        report: Report = no_progress,
    ) -> IterativeSolution:
        """Find x with |b - A x| <= tolerance |b| in every column, or the reason of a failure; (n, c) -> (n, c).

        Every column is solved for at a size near 1, and its own is put back: no norm leaves float64's range. A column
        of b that is not finite gives NaN and stops no other.

        report: called in every iteration with `stage` and the share log(residual)/log(tolerance), by the recursion's
            smallest residual.

        Raises: NotPositiveSemidefinite: a direction of negative curvature was met; ValueError: a checkpoint that is
        damaged or another problem's.
        """
        lost = ~np.isfinite(b).all(axis=0)
        b, exponent = normalise(np.where(lost, 0.0, b) if lost.any() else b)
        state = self._begin(b, checkpoint)
        resumed = int(state["total"])
        size = _norms(b)
        observe = self._observer(size, stage, report)
        while True:
            residual = float(_over(_norms(state["r"]), size).max())
            if residual <= self.tolerance:
                why = ""
            elif not math.isfinite(residual):
                why = "stopped, as products with the kernel matrix are not finite"
            elif int(state["total"]) >= self.max_iterations:
                why = f"stopped after {self.max_iterations} iterations"
            elif residual > float(state["before"]) / 2 and int(state["inner"]) == 0:
                why = "stopped, as refinement no longer lowers the residual"
            else:
                self._refine(b, state, checkpoint, observe)
                continue
            if checkpoint and math.isfinite(residual):
                checkpoint.save(state, now=True)
            message = f"relative residual {residual:.2g}, {int(state['total'])} iterations"
            if why:
                message = f"{why}: relative residual {residual:.2g}, tolerance {self.tolerance:.2g}"
            x = np.where(lost, np.nan, rescale(state["x"], exponent)) if lost.any() else rescale(state["x"], exponent)
            return IterativeSolution(x, residual, int(state["total"]), resumed, not why, message)

    def _begin(self, b: np.ndarray, checkpoint: SolverCheckpoint | None) -> CGState:
        """Return the state to start from. The residual of a checkpoint is measured again: it may end the solve."""
        stored = checkpoint.load() if checkpoint else None
        if stored is None:
            return _start(b)
        if int(stored["inner"]) == 0:
            r = b - self.exact.product(stored["x"])
            stored.update(_restart(r), r=r)
        return stored

    def _observer(self, size: np.ndarray, stage: str, report: Report) -> Observer:
        """Make a function that reports progress from the norms of a residual of right-hand sides with these norms."""
        best = 1.0

        def observe(norms: np.ndarray) -> None:
            nonlocal best
            best = min(best, float(_over(norms, size).max()))
            report(stage, math.log(max(best, self.tolerance)) / math.log(self.tolerance), 1)

        return observe

    def _refine(self, b: np.ndarray, state: CGState, checkpoint: SolverCheckpoint | None, observe: Observer) -> None:
        """Solve A dx = r to the accuracy of `fast`, then return x + dx and its residual."""
        rough = self.eps > EPS
        r = _norms(state["r"])
        # Half of the tolerance leaves room for the drift of the recursion's residual from the true one.
        target = np.maximum(self.tolerance * _norms(b) / 2, (DEPTH if rough else 0.0) * r)
        before = float(_over(r, _norms(b)).max())
        self._iterate(state, target, PATIENCE if rough else self.max_iterations, checkpoint, observe)
        state["x"] = state["x"] + state["dx"]
        state["r"] = b - self.exact.product(state["x"])
        state.update(_restart(state["r"]), before=np.asarray(before))

    def _iterate(
        self, state: CGState, target: np.ndarray, patience: int, checkpoint: SolverCheckpoint | None, observe: Observer
    ) -> None:
        """Run preconditioned conjugate gradients (Hestenes, Stiefel 1952) on A dx = r, each column to |s| <= target."""
        size = float(self.fast.diagonal().max(initial=0.0))
        best, since = np.inf, 0
        while int(state["total"]) < self.max_iterations and since < patience:
            norms = _norms(state["s"])
            observe(norms)
            live = np.flatnonzero(norms > target)
            if not len(live):
                return
            s = state["s"][:, live]
            z = self.precondition(s)
            rho = np.einsum("ij,ij->j", s, z)
            p = z + _over(rho, state["rho"][live]) * state["p"][:, live]
            q = self.fast.product(p)
            curvature = np.einsum("ij,ij->j", p, q)
            if (curvature < -len(s) * self.eps * size * np.einsum("ij,ij->j", p, p)).any():
                raise NotPositiveSemidefinite
            step = _over(rho, curvature)
            state["dx"][:, live] += step * p
            state["s"][:, live] = s - step * q
            state["p"][:, live], state["rho"][live] = p, rho
            state["inner"], state["total"] = state["inner"] + 1, state["total"] + 1
            worst = float((norms[live] / target[live]).max()) if (target[live] > 0).all() else np.inf
            best, since = (worst, 0) if worst < 0.99 * best else (best, since + 1)
            if checkpoint:
                checkpoint.save(state)
            if not step.any():
                return


def warn(message: str, *, stacklevel: int = 3) -> None:
    """Warn of a solve that fell short of its tolerance."""
    remedy = 'Pass a larger noise or tolerance, or solver="cholesky".'
    warnings.warn(f"the solve did not converge: {message}. {remedy}", stacklevel=stacklevel)


@final
@dataclass(frozen=True)
class Iterative(Factor):
    """A is never factorised in float64: every method solves its system by iterations."""

    system: System
    rank: int
    spread: float

    def solve(self, b: np.ndarray) -> np.ndarray:
        self.system.exact.verify()
        solved = self.system.solve(b)
        if not solved.converged:
            warn(solved.message)
        return solved.x

    def whiten(self, b: np.ndarray) -> np.ndarray:
        raise _no_factor("a whitened matrix (leave_one_out, gradients of the likelihood, conditioning)")

    def form(self, b: np.ndarray) -> np.ndarray:
        x = self.solve(b)
        return np.asarray(threads.product(b.T, x) + threads.product(x.T, b - self.product(x)))

    def squares(self, b: np.ndarray) -> np.ndarray:
        """Return b.x + x.r: its error, -r^T A^{-1} r, is of second order and never makes a variance smaller."""
        out = np.empty(b.shape[1])
        for i in range(0, b.shape[1], VARIANCES):
            part = b[:, i : i + VARIANCES]
            x = self.solve(part)
            out[i : i + VARIANCES] = np.einsum("ij,ij->j", x, 2 * part - self.product(x))
        return out

    def outside(self, b: np.ndarray) -> np.ndarray:
        self.system.exact.verify()
        b, exponent = normalise(b)
        return rescale(b - self.product(self.system.solve(b).x), exponent)

    def product(self, x: np.ndarray) -> np.ndarray:
        return self.system.exact.product(x)

    def log_determinant(self) -> float:
        raise _no_factor("the log-determinant (log_marginal_likelihood)")


def _no_factor(what: str) -> ValueError:
    return ValueError(
        f'{what} needs a factor in float64, which this posterior has not: pass solver="cholesky", precision="double".'
    )
