"""A fitted function is kept as plain arrays; its law, with a factorisation, is computed again on request."""

from __future__ import annotations

import abc
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, final

import numpy as np

from widelimit import validation
from widelimit.compute import linalg, threads
from widelimit.estimators.design import Design
from widelimit.estimators.model_state import ModelState
from widelimit.estimators.parameters import Solver
from widelimit.estimators.preparation import align, set_frozen
from widelimit.inference import intervals
from widelimit.inference.conditioning import posterior
from widelimit.inference.early_stopping import StoppedFlow, stopped_flow
from widelimit.inference.left_out import DistinctRows, LeftOutRows, distinct_rows, left_out
from widelimit.inference.posterior import Posterior
from widelimit.inference.training_set import check_finite, expansion
from widelimit.progress import LONG, progress_bar
from widelimit.shapes import Float


@final
@dataclass(frozen=True)
class FittedTraining:
    """The object holds a network, its training rows, and the way of training."""

    design: Design
    X: Float[np.ndarray, "n d"]
    weights: Float[np.ndarray, " n"]
    time: float
    ensemble: bool
    solver: Solver
    verbose: bool
    inducing: int
    """Inducing points of the solver nystrom, at most."""

    def __post_init__(self) -> None:
        set_frozen(self, vars(self))

    def __setstate__(self, state: dict[str, Any]) -> None:
        set_frozen(self, state)

    @property
    def is_linear_system(self) -> bool:
        """Return True if the fit is a linear system, and not a flow that takes eigenvectors."""
        return self.time == np.inf and not self.ensemble

    def flow(self, y: Float[np.ndarray, "n c"], noise: float, weights: Float[np.ndarray, " n"]) -> StoppedFlow:
        """Compute the flow on some targets, where the fit is not a linear system."""
        with progress_bar(self.verbose and len(y) > LONG) as report:
            report("eigenvectors", 0, 0)
            prior = replace(self.design, kind="nngp").kernel() if self.ensemble else None
            kernel = self.design.kernel()
            return stopped_flow(kernel, self.X, y, time=self.time, noise=noise, weights=weights, prior=prior)

    def merge(self, y: Float[np.ndarray, "n c"]) -> tuple[DistinctRows, FittedTraining]:
        """Return the distinct rows with these targets, and the training on them: itself where all rows are."""
        rows = distinct_rows(self.X, y, self.weights)
        if len(rows.first) == len(y):
            return rows, self
        return rows, replace(self, X=self.X[rows.first], weights=rows.weights)

    def state(self) -> ModelState:
        """Return the part that a file holds; the rest follows from the estimator's parameters."""
        return ModelState({"design": self.design.document()}, {"X": self.X, "weights": self.weights})

    @linalg.ignore_overflow()
    def function(self, Z: Float[np.ndarray, "m d"], coefficients: Float[np.ndarray, "n c"]) -> np.ndarray:
        """Compute K(Z, X) coefficients: (m, c)."""
        kernel = self.design.kernel()
        return check_finite(expansion(lambda rows: np.asarray(kernel.cross(rows, self.X)), Z, coefficients), Z)


class FittedFunction(abc.ABC):
    """A fitted function is kept as plain arrays; its law, with a factorisation, is computed again on request."""

    training: FittedTraining
    coefficients: Float[np.ndarray, "n c"] | None

    def __post_init__(self) -> None:
        set_frozen(self, vars(self))
        if self.coefficients is None:
            self.coefficients = align(self.solve())
        validation.sealed(self)

    def __getstate__(self) -> dict[str, Any]:
        kept = vars(self).items()
        return {name: value for name, value in kept if not isinstance(vars(type(self)).get(name), cached_property)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        set_frozen(self, state)

    def solve(self) -> np.ndarray:
        """Compute the coefficients of the mean, (n, c), from the law, where they are not given."""
        raise ValueError("a fitted function without coefficients")

    def expansion(self, Z: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m c"]:
        """Compute K(Z, X) coefficients."""
        assert self.coefficients is not None
        return self.training.function(Z, self.coefficients)

    def state(self) -> ModelState:
        """Return the part that a file holds of every fitted function."""
        assert self.coefficients is not None
        kind, arrays = {"fitted": type(self).__name__}, {"coefficients": self.coefficients}
        return ModelState(kind, {}) | self.training.state() | ModelState({}, arrays)


class FittedGaussian(FittedFunction):
    """A fitted function of each output has a Gaussian law, or all have one."""

    y: Any
    noise: Any

    @property
    @abc.abstractmethod
    def laws(self) -> tuple[Any, ...]:
        """Return the law of each output, or the one that all outputs share."""

    @abc.abstractmethod
    def mean(self, Z: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m c"]:
        """Compute the mean of f, in units of the kernel as all below."""

    @abc.abstractmethod
    def noise_variance(self, Z: Float[np.ndarray, "m d"], *, moment: bool = True) -> Float[np.ndarray, "m c"]:
        """Compute the variance of the noise of a new observation."""

    @abc.abstractmethod
    def left_out(self) -> LeftOutRows:
        """Predict each distinct row from all others. Raises: ValueError."""

    @property
    def degrees(self) -> Float[np.ndarray, " c"]:
        """Return the degrees of freedom of the noise of every output."""
        return np.full(self.y.shape[1], np.inf)

    def variance(self, Z: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m c"]:
        """Compute the variance of f: (m, c), or (m, 1) if outputs share it."""
        return np.stack([np.asarray(law.variance(Z)) for law in self.laws], axis=1)

    def moments(self, Z: Float[np.ndarray, "m d"]) -> tuple[np.ndarray, np.ndarray]:
        """Compute mean and variance of f."""
        return self.mean(Z), self.variance(Z)

    def covariance(self, Z: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m m c"]:
        """Compute the covariance of f: (m, m, c), or (m, m, 1) if outputs share it."""
        return np.stack([np.asarray(law.covariance(Z)) for law in self.laws], axis=2)

    def joint(self, Z: Float[np.ndarray, "m d"]) -> tuple[np.ndarray, np.ndarray]:
        """Compute mean and covariance of f."""
        return self.mean(Z), self.covariance(Z)

    def sample(self, Z: Float[np.ndarray, "m d"], count: int, seed: int) -> Float[np.ndarray, "count m c"]:
        """Draw f."""
        draws = [np.asarray(law.sample(Z, count, seed=seed + j)) for j, law in enumerate(self.laws)]
        return np.concatenate(draws, axis=2)

    def quantiles(self, Z: Float[np.ndarray, "m d"], levels: Float[np.ndarray, " k"]) -> Float[np.ndarray, "m c k"]:
        """Compute quantiles of a new observation."""
        mean, variance = self.moments(Z)
        variance, noise = np.broadcast_to(variance, mean.shape), self.noise_variance(Z, moment=False)
        columns = zip(mean.T, variance.T, noise.T, self.degrees, strict=True)
        return np.stack([intervals.quantiles(*column, levels) for column in columns], axis=1)

    def without(
        self, Z: Float[np.ndarray, "m d"], left: LeftOutRows
    ) -> Iterator[tuple[Float[np.ndarray, "m n"], Float[np.ndarray, "m n"]]]:
        """Yield, for each output, mean and deviation of new observations without each of the rows that are left out."""
        (mean, variance), noise = self.moments(Z), self.noise_variance(Z, moment=False)
        error = left.error
        cross = np.asarray(self.training.design.kernel().cross(Z, left.X))
        for j in range(mean.shape[1]):
            at = min(j, len(left.outputs) - 1)
            b = threads.product(cross, left.outputs[at].operator)
            deviation = np.sqrt(variance[:, [at]] + noise[:, [j]] + b**2 * left.outputs[at].loss)
            yield mean[:, [j]] - b * error[:, j], deviation


@final
@dataclass(eq=False)
class Fitted(FittedGaussian):
    """This function is fitted to targets y with noise of one variance."""

    training: FittedTraining
    y: Float[np.ndarray, "n c"]
    noise: float
    coefficients: Float[np.ndarray, "n c"] | None = None

    def solve(self) -> np.ndarray:
        """Compute the coefficients of the mean, (n, c), from the law."""
        return self.law.weights if isinstance(self.law, Posterior) else self.law.coefficients

    @cached_property
    def law(self) -> Posterior | StoppedFlow:
        """Return the Gaussian law of the function."""
        how = self.training
        if not how.is_linear_system:
            return how.flow(self.y, self.noise, how.weights)
        noise = self.noise / how.weights
        assert how.solver != "nystrom"  # is FittedSparse
        return posterior(how.design.kernel(), how.X, self.y, noise=noise, solver=how.solver, progress=how.verbose)

    def state(self) -> ModelState:
        """Return the part of the function that a file holds."""
        return FittedFunction.state(self) | ModelState({"noise": self.noise}, {"y": self.y})

    mean = FittedFunction.expansion

    def moments(self, Z: Float[np.ndarray, "m d"]) -> tuple[np.ndarray, np.ndarray]:
        """Compute mean and variance of f, with K(Z, X) once."""
        law = self.law
        if not isinstance(law, Posterior):
            return FittedGaussian.moments(self, Z)
        assert self.coefficients is not None
        to_the_bit_of_a_file = law.fit._replace(weights=self.coefficients)
        mean, variance = replace(law, fit=to_the_bit_of_a_file).predict(Z)
        return check_finite(np.asarray(mean), Z), np.asarray(variance)[:, None]

    @property
    def laws(self) -> tuple[Posterior | StoppedFlow, ...]:
        """Return the law that all outputs share."""
        return (self.law,)

    def noise_variance(self, Z: Float[np.ndarray, "m d"], *, moment: bool = True) -> Float[np.ndarray, "m c"]:
        """Return the variance of the noise of a new observation, in units of the kernel."""
        return np.full((len(Z), self.y.shape[1]), self.noise)

    def left_out(self) -> LeftOutRows:
        """Predict each distinct row from all others. Raises: ValueError: as `left_out.left_out`."""
        rows, merged = self.training.merge(self.y)
        fitted = self if merged is self.training else Fitted(merged, self.y[rows.first], self.noise)
        left = left_out(fitted.law)
        expected = left.variance + self.noise / rows.weights
        return LeftOutRows(fitted.training.X, (left,), np.broadcast_to(expected[:, None], left.error.shape))

    def scale(self) -> Float[np.ndarray, " c"]:
        """Find the scale of each output at which its targets are as likely as they can be; 1 of one that is 0.

        s^2 = y^T (K + N)^{-1} y/n of a posterior, and sum_i (y_i - f_i)^2/(v_i + noise_i)/n with f_i, v_i predicted
        without row i of a flow. Equal rows count once.
        """
        y, law = self.y, self.law
        if isinstance(law, Posterior):
            assert self.coefficients is not None
            singular = law.fit.choice.solver == "cholesky" and law.factor.rank < len(y)
            distinct = len(distinct_rows(self.training.X, y, self.training.weights).first)
            square = np.sum(y * self.coefficients, axis=0) / max(law.factor.rank if singular else distinct, 1)
        else:
            left = self.left_out()
            square = _mean_ratio(left.error**2, left.expected)
        return np.where((square > 0) & y.any(axis=0), np.sqrt(np.maximum(square, 0.0)), 1.0)

    def rescaled(self, scale: Float[np.ndarray, " c"]) -> Fitted:
        """Return the same fit to targets in units of these scales."""
        assert self.coefficients is not None
        y, weights, law = self.y / scale, self.coefficients / scale, self.law
        data = law.data._replace(y=y)
        found = Fitted(self.training, y, self.noise, weights)
        if isinstance(law, Posterior):
            found.law = replace(law, data=data, fit=law.fit._replace(weights=weights))
        else:
            found.law = replace(law, data=data)
        return found


def _mean_ratio(squares: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Compute the mean over rows of squares/expected, (n, c), of rows that others do not determine."""
    known = expected > linalg.EPS * expected.max(initial=0.0)
    ratio = np.divide(squares, expected, out=np.zeros_like(squares), where=known)
    return np.asarray(ratio.sum(axis=0) / np.maximum(known.sum(axis=0), 1))
