"""exp(-s A) b and its integral, for many s at once, come from a Lanczos basis, with a bound on the error.

With A Q = Q T + beta q e_m^T after m steps from b, exp(-s A) b is approximated by |b| Q exp(-s T) e_1. The error solves
an inhomogeneous equation whose source is beta |b| [exp(-u T)]_{m 1} q; A has no negative eigenvalue, so

    |error| <= beta |b| int_0^s |[exp(-u T)]_{m 1}| du = beta |b| |[gain_s(T)]_{m 1}|,   gain_s(x) = (1 - exp(-s x))/x

The integral is that simple as [exp(-u T)]_{m 1} never changes its sign: with every other basis vector negated, -T
has no negative entry off its diagonal. One more integration gives the bound for gain_s(A) b. Nothing is estimated;
rounding is not covered.
Source of the representation: Saad 1992 (SIAM J. Numer. Anal. 29), section 3; the sign argument is this library's.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, final

import numpy as np
import scipy.linalg

from widelimit import memory
from widelimit.compute import threads
from widelimit.compute.linalg import EPS

STEPS = 10
"""Lanczos steps between two checks of the error: a check costs an (m, m) eigenproblem, less than these products."""


def gain(values: Any, clock: Any, null: Any, fading: Any, xp: Any = np) -> Any:
    """Compute (1 - exp(-clock lambda))/lambda for every time and eigenvalue, (T,), (r,) -> (T, r), by expm1.

    An eigenvalue marked as null cannot be distinguished from 0: its gain is clock while that is short against
    1/fading, fades as exp(-clock fading), and is 0 at infinity. xp: NumPy, or jax.numpy for derivatives.
    """
    times = clock[:, None]
    lam = xp.where(null, 1, values)
    finite = xp.where(xp.isinf(times), 0, times)
    with np.errstate(over="ignore"):
        learned = xp.where(xp.isinf(times), 1, -xp.expm1(-finite * lam))  # infinity has no derivative in lambda
        return xp.where(null, finite * xp.exp(-finite * fading), learned / lam)


def _integrated_gain(values: np.ndarray, s: np.ndarray) -> np.ndarray:
    """int_0^s gain_u(lambda) du = (s - gain_s)/lambda, (T,), (r,) -> (T, r), by its series where s lambda is small."""
    x = s[:, None] * values
    small = np.abs(x) < 1e-2  # the fourth term of the series is then below 1e-8 of the first: enough for a bound
    safe = np.where(small, 1.0, x)
    return np.asarray(s[:, None] ** 2 * np.where(small, 0.5 - x / 6 + x**2 / 24, (safe + np.expm1(-safe)) / safe**2))


class Evaluation(NamedTuple):
    """The functions of A are evaluated for one right-hand side b and times s (T,)."""

    gain: np.ndarray
    """gain_s(A) b, (T, n)."""
    decayed: np.ndarray
    """exp(-s A) b, (T, n)."""
    gain_error: np.ndarray
    """Bound of |error of `gain`|, (T,)."""
    decayed_error: np.ndarray
    """Bound of |error of `decayed`|, (T,)."""


@final
class Lanczos:
    """The class holds an orthonormal basis of span(b, A b, ..., A^{m-1} b) for every column of b; it can grow."""

    def __init__(self, product: Callable[[np.ndarray], np.ndarray], b: np.ndarray) -> None:
        """`product` computes A v, (n, c) -> (n, c) float64; each column may have a matrix of its own."""
        self.product = product
        self.size = np.sqrt(np.einsum("ij,ij->j", b, b))
        n, c = b.shape
        room = STEPS + 1
        memory.require(8.0 * c * room * n, f"{room} Lanczos vectors of {n} points for {c} outputs")
        self.diagonal = np.empty((0, c))
        self.off = np.empty((0, c))
        self.basis = np.empty((c, room, n))
        self.basis[:, 0] = np.divide(b, self.size, out=np.zeros_like(b), where=self.size > 0).T

    @property
    def steps(self) -> int:
        """Return m, the number of products made."""
        return len(self.diagonal)

    def state(self) -> dict[str, np.ndarray]:
        """Return the basis and its coefficients, for a checkpoint."""
        return {"diagonal": self.diagonal, "off": self.off, "basis": self.basis[:, : self.steps + 1]}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Go on from what `state` has returned for the same matrix and b."""
        self.diagonal, self.off, self.basis = state["diagonal"], state["off"], state["basis"]

    def extend(self) -> None:
        """Add STEPS vectors, each made orthogonal to all before it, twice."""
        for _ in range(STEPS):
            self._step()

    def _step(self) -> None:
        m, (c, room, n) = self.steps, self.basis.shape
        if m + 2 > room:
            memory.require(8.0 * c * 2 * room * n, f"{2 * room} Lanczos vectors of {n} points for {c} outputs")
            self.basis = np.concatenate([self.basis, np.empty((c, room, n))], axis=1)
        w = np.array(self.product(self.basis[:, m].T).T, order="C")
        diagonal, off = np.empty(c), np.empty(c)
        for j in range(c):
            known = self.basis[j, : m + 1]
            diagonal[j] = known[m] @ w[j]
            scale = max(float(np.linalg.norm(w[j])), float(np.abs(self.diagonal[:, j]).max(initial=0.0)))
            for _ in range(2):
                w[j] -= threads.product(threads.product(known, w[j]), known)
            off[j] = np.linalg.norm(w[j])
            if off[j] <= n * EPS * scale:
                off[j] = 0.0  # the space is invariant: what is left is rounding
        self.basis[:, m + 1] = np.divide(w, off[:, None], out=np.zeros_like(w), where=off[:, None] > 0)
        self.diagonal = np.vstack([self.diagonal, diagonal])
        self.off = np.vstack([self.off, off])

    def largest_eigenvalue(self) -> float:
        """Bound the largest eigenvalue from below, over all columns; NaN where a product was not finite."""
        if not (np.isfinite(self.diagonal).all() and np.isfinite(self.off).all()):
            return math.nan
        pairs = zip(self.diagonal.T, self.off[:-1].T, strict=True)
        return max(float(scipy.linalg.eigvalsh_tridiagonal(*pair)[-1]) for pair in pairs)

    def evaluate(self, column: int, s: np.ndarray) -> Evaluation:
        """Evaluate the functions of A at times s >= 0, (T,), finite."""
        small, m = self._small(column, s)
        basis = self.basis[column, :m]
        return Evaluation(small.gain @ basis, small.decayed @ basis, small.gain_error, small.decayed_error)

    def errors(self, s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Bound the errors of `gain` and `decayed`, (T, c) each."""
        all_of = [self._small(j, s)[0] for j in range(len(self.size))]
        return np.stack([e.gain_error for e in all_of], 1), np.stack([e.decayed_error for e in all_of], 1)

    def _small(self, column: int, s: np.ndarray) -> tuple[Evaluation, int]:
        """Evaluate in the coordinates of the basis; also return how many vectors came before it was invariant."""
        ended = np.flatnonzero(self.off[:, column] == 0)
        m = int(ended[0]) + 1 if len(ended) else self.steps
        off = self.off[:m, column]
        with threads.limit(float(m) ** 3):
            values, vectors = scipy.linalg.eigh_tridiagonal(self.diagonal[:m, column], off[:-1])
        largest = max(float(values[-1]), 0.0)
        null = values <= len(self.basis[0, 0]) * EPS * largest
        gains = gain(values, s, null, float(np.sqrt(EPS)) * largest)
        decays = np.exp(-s[:, None] * np.where(null, 0.0, values))
        start, end = self.size[column] * vectors[0], vectors[-1]
        source = float(off[-1])
        integrated = _integrated_gain(np.where(null, 0.0, values), s)
        return Evaluation(
            (gains * start) @ vectors.T,
            (decays * start) @ vectors.T,
            source * np.abs((integrated * start) @ end),
            source * np.abs((gains * start) @ end),
        ), m
