"""A fitted regression whose outputs have noise of their own, of any law, is kept as plain arrays."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import final

import numpy as np

from widelimit.estimators.choice import warn_at_bounds
from widelimit.estimators.model_state import ModelState
from widelimit.estimators.networks import FittedFunction, FittedGaussian, FittedTraining
from widelimit.inference.conditioning import posterior
from widelimit.inference.left_out import LeftOutRows, distinct_rows, left_out
from widelimit.inference.noise_level import Objective
from widelimit.inference.noise_models import NoiseModel, NoiseSearch
from widelimit.inference.posterior import Posterior
from widelimit.kernels.base import Kernel
from widelimit.shapes import Float


@final
@dataclass(eq=False)
class FittedOutputs(FittedGaussian):
    """Output j has noise N(0, noise_j exp(g_j(x))/(weight u)), g_j(z) = K(z, X) slopes_j, u ~ Gamma(nu/2, nu/2)."""

    training: FittedTraining
    y: Float[np.ndarray, "n c"]
    noise: Float[np.ndarray, " c"]
    factors: Float[np.ndarray, "n c"]
    """E[u]/exp(g) at the rows."""
    slopes: Float[np.ndarray, "n c"]
    tails: Float[np.ndarray, " c"]
    """1/nu; 0: Gaussian."""
    coefficients: Float[np.ndarray, "n c"] | None = None

    def solve(self) -> np.ndarray:
        """Compute the coefficients of the mean, (n, c), from the laws."""
        return np.hstack([law.weights for law in self.laws])

    @cached_property
    def laws(self) -> tuple[Posterior, ...]:
        """Return the Gaussian law of every output, at the noise of its rows."""
        how = self.training
        k = how.design.kernel()
        assert how.solver != "nystrom"  # refused with a noise model
        rows = self.noise / (how.weights[:, None] * self.factors)
        return tuple(
            posterior(k, how.X, y[:, None], noise=noise, solver=how.solver, progress=how.verbose)
            for y, noise in zip(self.y.T, rows.T, strict=True)
        )

    @property
    def degrees(self) -> Float[np.ndarray, " c"]:
        """Return nu."""
        with np.errstate(divide="ignore"):
            return np.asarray(1 / self.tails)

    def state(self) -> ModelState:
        """Return the part of the functions that a file holds."""
        own = {name: getattr(self, name) for name in ("y", "noise", "factors", "slopes", "tails")}
        return FittedFunction.state(self) | ModelState({}, {f"own.{name}": value for name, value in own.items()})

    mean = FittedFunction.expansion

    def noise_variance(self, Z: Float[np.ndarray, "m d"], *, moment: bool = True) -> Float[np.ndarray, "m c"]:
        """Compute the variance of the noise of a new observation, in units of the kernel.

        moment: for Student's t return the variance, sigma^2 nu/(nu - 2), instead of sigma^2.
        """
        noise = self.noise / (1 - 2 * self.tails) if moment else self.noise
        if not self.slopes.any():
            return np.tile(noise, (len(Z), 1))
        return np.asarray(noise * np.exp(self.training.function(Z, self.slopes)))

    def left_out(self) -> LeftOutRows:
        """Predict each distinct row from all others, every output at the noise of its rows."""
        rows, merged = self.training.merge(self.y)
        fitted = self
        if merged is not self.training:
            y, factors = self.y[rows.first], self.factors[rows.first]
            fitted = FittedOutputs(merged, y, self.noise, factors, np.zeros_like(y), self.tails)
        lefts = tuple(left_out(law) for law in fitted.laws)
        own = np.where(self.slopes.any(axis=0), self.noise / fitted.factors, self.noise) / rows.weights[:, None]
        return LeftOutRows(fitted.training.X, lefts, np.stack([left.variance for left in lefts], axis=1) + own)


def fit_outputs(
    training: FittedTraining, y: np.ndarray, model: NoiseModel, objective: Objective, noise: float | None
) -> tuple[FittedOutputs, np.ndarray]:
    """Fit every standardised target with noise of this law, searched unless given; return the scales as well.

    Warns: UserWarning: a noise is at a bound of its search.
    """
    rows, kernel = distinct_rows(training.X, y, training.weights), training.design.kernel()
    search = NoiseSearch(kernel, training.X[rows.first], rows.weights, objective, noise)
    found = [search.run(model, column) for column in y[rows.first].T]
    warn_at_bounds(*(each.level.bound for each in found))
    slopes = np.zeros(y.shape)
    slopes[rows.first] = np.stack([each.slopes for each in found], axis=1)
    factors = np.stack([each.factors for each in found], axis=1)[rows.at]
    scale, tails = np.array([each.scale for each in found]), np.array([1 / each.degrees for each in found])
    variance = np.array([each.noise for each in found])
    return FittedOutputs(training, y / scale, variance, factors, slopes, tails), scale


def outlier_factors(kernel: Kernel, X: np.ndarray, y: np.ndarray, weights: np.ndarray) -> Float[np.ndarray, " n"]:
    """Find factors of the weights, at most 1, that keep outliers of any output from steering a search."""
    rows = distinct_rows(X, y, weights)
    search = NoiseSearch(kernel, X[rows.first], rows.weights, "marginal_likelihood", None)
    factors = [search.run("student_t", column).factors for column in y[rows.first].T]
    return np.asarray(np.minimum(np.min(factors, axis=0), 1.0)[rows.at])


def restore_outputs(state: ModelState, training: FittedTraining, n: int, c: int) -> FittedOutputs:
    """Restore what `FittedOutputs.state` returns. Raises: one of model_state.INVALID."""
    noise, tails, slopes = state.array("own.noise", c), state.array("own.tails", c), state.array("own.slopes", n, c)
    if not ((noise >= 0).all() and (tails >= 0).all() and (tails < 0.5).all()):
        raise ValueError("a noise that is no noise")
    y, factors = state.array("own.y", n, c), state.positive("own.factors", n, c)
    return FittedOutputs(training, y, noise, factors, slopes, tails, state.array("coefficients", n, c))
