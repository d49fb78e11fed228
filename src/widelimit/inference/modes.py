"""Training by squared error, mode by mode."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Float

from widelimit import validation
from widelimit.validation import Array


@final
@dataclass(frozen=True)
class Modes:
    """C(f_t) = sum_i (power_i/n) exp(-4 lambda_i t/n): made by `GradientFlow.modes`, largest eigenvalue first.

    Eigenvalues are those of K(X, X) (of the (n c, n c) matrix of a matrix-valued kernel). One that cannot be told from
    0 is 0: its mode is never learned.
    """

    eigenvalues: Float[np.ndarray, " N"]
    """lambda_i >= 0."""
    power: Float[np.ndarray, " N"]
    """Square of the residual y - f_0(X) along the mode, summed over outputs; in the square of y's unit."""
    vectors: Float[np.ndarray, "N N"]
    """Eigenvectors, one a column; rows are training points (of a matrix-valued kernel: points times outputs)."""
    points: int
    """n, the number of training points."""

    @property
    def shares(self) -> Float[np.ndarray, " N"]:
        """power_i/sum power: the part of the target (y - f_0(X)) in each mode; sums to 1. All 0 for y = f_0(X)."""
        total = self.power.sum()
        return np.asarray(self.power / total if total > 0 else np.zeros_like(self.power))

    @property
    def times(self) -> Float[np.ndarray, " N"]:
        """n/(2 lambda_i): the time, of d theta/dt = -grad C, in which a mode's residual falls to 1/e; inf for null."""
        with np.errstate(divide="ignore", over="ignore"):
            return np.asarray(self.points / (2 * self.eigenvalues))

    def loss(self, t: float | Float[Array, " T"]) -> Float[np.ndarray, "*T N"]:
        """Each mode's term of C(f_t); their sum is `GradientFlow.loss`. t as there, in [0, inf]."""
        times = validation.times(t)
        lam = self.eigenvalues
        with np.errstate(invalid="ignore", over="ignore"):
            decay = np.where(lam > 0, np.exp(-4 * lam * np.atleast_1d(times)[:, None] / self.points), 1.0)
        terms = np.asarray(decay * (self.power / self.points))
        return terms if times.ndim else terms[0]
