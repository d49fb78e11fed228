"""Gradient flow of the squared error runs without eigenvectors: a Lanczos basis of the residual bounds its error."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

import numpy as np

from widelimit import memory, validation
from widelimit.compute import device_rows, iterative, linalg, operators
from widelimit.compute.checkpoints import SolverCheckpoint
from widelimit.compute.krylov import STEPS, Lanczos
from widelimit.compute.operators import StoredOperator
from widelimit.inference import solvers
from widelimit.inference.numerical_flow import Flow
from widelimit.inference.training_set import Function, TrainingSet, scalar_kernel
from widelimit.kernels.matrix_valued import MatrixKernel
from widelimit.shapes import Float
from widelimit.validation import Array


@final
@dataclass(frozen=True)
class KrylovFlow(Flow):
    """df/dt = -(2/n) K(., X) (f(X) - y) from f_0 by Lanczos: made by `gradient_flow` with solver="krylov".

    f_t = f_0 + K(., X) alpha_t with alpha_t = gain_t(K(X, X)) (y - f_0(X)), gain_t(x) = (1 - exp(-2 x t/n))/x, and
    l = |f - y|^2 in C. The basis grows until `bound` meets the tolerance at every time asked for, and is kept for the
    next question; t = inf is a linear solve.
    """

    data: TrainingSet
    initial: Function | None
    basis: Lanczos
    height: float
    """The largest K(x, x) on the training set."""
    tolerance: float
    max_steps: int
    stored: StoredOperator | None = None
    """K(X, X), where somebody has stored it."""
    checkpoint: SolverCheckpoint | None = None

    @functools.cached_property
    def _start_residual(self) -> tuple[np.ndarray, np.ndarray]:
        """Return y - f_0(X), folded, in units of 2^exponent, and the exponents, (c,)."""
        return linalg.normalise(self.data.rest(self.data.start(self.initial, self.data.X)))

    @property
    def _residual(self) -> np.ndarray:
        return self._start_residual[0]

    @functools.cached_property
    def _limit(self) -> tuple[np.ndarray, np.ndarray]:
        """Return alpha_t and y - f_t(X) at t = inf, folded and in units of 2^exponent."""
        if isinstance(self.data.kernel, MatrixKernel):
            factor = linalg.factorise(self.data.gram())
            return factor.solve(self._residual), factor.outside(self._residual)
        rest = self.data._replace(y=self._residual)
        request = solvers.SolverRequest(rest, np.zeros(()), tolerance=self.tolerance)
        if self.stored is not None:
            request = replace(request, matrix=self.stored.rows, client=self.stored.client)
        fit = solvers.fit(request)
        if not fit.converged:
            iterative.warn(fit.message)
        return fit.weights, fit.factor.outside(self._residual)

    def bound(self, t: float | Float[Array, " T"]) -> Float[np.ndarray, "*T c"]:
        """Bound the error: |f_t(z) - `predict`| <= bound sqrt(K(z, z)/max_i K(x_i, x_i)) for every z, but for rounding.

        (c,), or (T, c), in y's unit, for the basis as it is grown to meet the tolerance at these times; 0 at t = inf.
        With e = |error of alpha_t| and e' = |error of f_t(X)|, both bounded as in Lanczos's exponential, the error's
        squared RKHS norm is at most e e', and |f(z)| <= |f|_K sqrt(K(z, z)).
        """
        times = validation.times(t)
        finite = np.atleast_1d(np.where(np.isfinite(times), times, 0.0))
        self._grow(finite)
        bounds = linalg.rescale(self._bounds(finite), self._start_residual[1])
        return bounds if times.ndim else bounds[0]

    def _clock(self, times: np.ndarray) -> np.ndarray:
        return np.asarray(2 * (times / len(self.data.X)))

    def _bounds(self, times: np.ndarray) -> np.ndarray:
        gain, decayed = self.basis.errors(self._clock(times))
        return np.asarray(np.sqrt(self.height * gain * 2 * decayed))

    def _grow(self, times: np.ndarray) -> None:
        """Add Lanczos steps until every bound is below tolerance times the root mean square of y - f_0(X)."""
        allowed = self.tolerance * self.basis.size / np.sqrt(len(self._residual))
        while True:
            if self.basis.steps:
                excess = self._bounds(times) - allowed
                if (excess <= 0).all():
                    return
            if self.basis.steps >= self.max_steps:
                worst = float(times[np.argmax(excess.max(axis=1))])
                bound = float(linalg.rescale(self._bounds(times), self._start_residual[1]).max())
                raise ArithmeticError(
                    f"t = {worst:g} was not reached: {self.basis.steps} Lanczos steps bound the error only by "
                    f'{bound:.2g}. Pass a larger max_steps or tolerance, t = inf, or solver="eigh".'
                )
            self.basis.extend()
            if self.checkpoint:
                self.checkpoint.save(self.basis.state())

    def _states(self, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Compute alpha_t and y - f_t(X), folded, (T, N, c) each."""
        finite = np.isfinite(times)
        coefficients = np.zeros((len(times), *self._residual.shape))
        residual = np.broadcast_to(self._residual, coefficients.shape).copy()
        moving = finite & (times > 0)
        if moving.any():
            self._grow(times[moving])
            for j in range(self._residual.shape[1]):
                found = self.basis.evaluate(j, self._clock(times[moving]))
                coefficients[moving, :, j], residual[moving, :, j] = found.gain, found.decayed
        if not finite.all():
            coefficients[~finite], residual[~finite] = self._limit
        exponent = self._start_residual[1]
        return linalg.rescale(coefficients, exponent), linalg.rescale(residual, exponent)

    def _functions(self, points: np.ndarray, times: np.ndarray) -> np.ndarray:
        return self.data.functions(self.initial, self.data.unfold(self._states(times)[0]), points)

    def _losses(self, times: np.ndarray) -> np.ndarray:
        residual, exponent = linalg.normalise(self._states(times)[1], axis=None)
        return linalg.rescale(np.einsum("tnc,tnc->t", residual, residual) / len(self.data.X), 2 * exponent)

    def coefficients(self, t: float) -> Float[np.ndarray, "n *c"]:
        """Return alpha_t with f_t = f_0 + K(., X) alpha_t, of the shape of y; t as in `predict`."""
        values = self.data.unfold(self._states(np.atleast_1d(validation.one_time(t)))[0][0])
        return values[:, 0] if self.data.single else values


def krylov_flow(
    data: TrainingSet,
    initial: Function | None,
    *,
    tolerance: float,
    max_steps: int,
    stored: StoredOperator | None = None,
    path: Path | None = None,
) -> KrylovFlow:
    """Compute the flow of the squared error by Lanczos; arguments as `gradient_flow`."""
    tolerance = float(validation.finite_scalar("tolerance", tolerance, at_least=1e-12, at_most=1e-2))
    max_steps = validation.integer("max_steps", max_steps, at_least=1)
    if isinstance(data.kernel, MatrixKernel):
        matrix: operators.Operator = StoredOperator(data.gram())
    else:
        n, c = data.y.shape
        memory.require(8.0 * c * (2 * STEPS + 2) * n, f"{2 * STEPS} Lanczos vectors of {n} points for {c} outputs")
        data.check_diagonal()
        if stored is None and data.rows is not None:
            matrix = device_rows.operator(data.rows)
        else:
            pairs = scalar_kernel(data.kernel).prepared(data.X)
            matrix = stored or operators.choose_operator(pairs, data.X, data.X.dtype)
    height = float(matrix.diagonal().max())
    residual, _ = linalg.normalise(data.rest(data.start(initial, data.X)))
    basis, checkpoint = Lanczos(matrix.product, residual), None
    if path is not None:
        request = solvers.SolverRequest(data._replace(y=residual), np.zeros(()))
        checkpoint = SolverCheckpoint(path, solvers.fingerprint(request))
        if state := checkpoint.load():
            basis.restore(state)
    return KrylovFlow(data, initial, basis, height, tolerance, max_steps, stored, checkpoint)


def coefficients_toward(flow: KrylovFlow, y: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Compute alpha_t of the flow from f_0 = 0 to other targets y (n, c), by the same matrix: (T,) -> (T, n, c)."""
    basis = Lanczos(flow.basis.product, linalg.normalise(y)[0])
    data = flow.data._replace(y=y, single=False)
    other = replace(flow, data=data, initial=None, basis=basis, checkpoint=None)
    return np.stack([other.coefficients(t) for t in times])
