"""Training by squared error is seen mode by mode."""

from dataclasses import dataclass
from typing import final

import numpy as np

from widelimit import validation
from widelimit.compute import linalg
from widelimit.shapes import Float
from widelimit.validation import Array


@final
@dataclass(frozen=True)
class Modes:
    """C(f_t) = sum_i (power_i/n) exp(-4 lambda_i t/n): made by `GradientFlow.modes`, largest eigenvalue first.

    Eigenvalues are those of K(X, X) (of the (n c, n c) matrix of a matrix-valued kernel). One that is 0 to
    rounding is set to 0: its mode is never learned.
    """

    eigenvalues: Float[np.ndarray, " N"]
    """lambda_i >= 0."""
    residual: Float[np.ndarray, "N c"]
    """y - f_0(X) along the mode; in y's unit."""
    vectors: Float[np.ndarray, "N N"]
    """Eigenvectors, one a column; rows are training points (of a matrix-valued kernel: points times outputs)."""
    points: int
    """n, the number of training points."""

    @property
    def power(self) -> Float[np.ndarray, " N"]:
        """Return the square of the residual along the mode, summed over outputs; in y's unit squared, or inf."""
        square, exponent = self._square()
        return linalg.rescale(square, 2 * exponent)

    def _square(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the power in units of 4^exponent, and the exponent."""
        residual, exponent = linalg.normalise(self.residual, axis=None)
        return np.asarray(np.sum(residual**2, axis=1)), exponent

    @property
    def shares(self) -> Float[np.ndarray, " N"]:
        """Return power_i/sum power: the part of y - f_0(X) in each mode; sums to 1. All 0 for y = f_0(X)."""
        square, _ = self._square()
        total = square.sum()
        return np.asarray(square / total if total > 0 else square)

    @property
    def times(self) -> Float[np.ndarray, " N"]:
        """n/(2 lambda_i): the time, of d theta/dt = -grad C, in which a mode's residual falls to 1/e; inf for null."""
        with np.errstate(divide="ignore", over="ignore"):
            return np.asarray(self.points / (2 * self.eigenvalues))

    def loss(self, t: float | Float[Array, " T"]) -> Float[np.ndarray, "*T N"]:
        """Return each mode's term of C(f_t); their sum is `GradientFlow.loss`. t as there; inf if it overflows."""
        times = validation.times(t)
        lam = self.eigenvalues
        with np.errstate(invalid="ignore", over="ignore"):
            decay = np.where(lam > 0, np.exp(-4 * lam * np.atleast_1d(times)[:, None] / self.points), 1.0)
        square, exponent = self._square()
        terms = linalg.rescale(decay * (square / self.points), 2 * exponent)
        return terms if times.ndim else terms[0]
