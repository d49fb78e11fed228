"""A fit with inducing points is kept as plain arrays: nothing in it grows with the rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import final

import numpy as np

from widelimit import validation
from widelimit.compute import linalg
from widelimit.estimators.fitted_classes import LatentClasses
from widelimit.estimators.model_state import ModelState
from widelimit.estimators.networks import FittedFunction, FittedGaussian, FittedTraining
from widelimit.inference.class_probabilities import expected_softmax
from widelimit.inference.conditioning import posterior
from widelimit.inference.inducing import Evidence, SparsePosterior
from widelimit.inference.left_out import LeftOutRows
from widelimit.inference.sparse_dirichlet import SparseDirichlet, sparse_dirichlet
from widelimit.shapes import Float, Int

FACTORS = (1.0, 0.5, 2.0, 4.0)
"""Scales of latent functions that are tried with all rows, in units of the one that some rows ask for."""


@final
@dataclass(eq=False)
class FittedSparse(FittedGaussian):
    """This function depends on the targets through its values at inducing points only (`SparsePosterior`)."""

    training: FittedTraining
    """Its rows are the inducing points."""
    noise: float
    factor: Float[np.ndarray, "m m"]
    """The lower triangle L, L L^T = I + information."""
    evidence: Evidence
    coefficients: Float[np.ndarray, "m c"]

    @cached_property
    def law(self) -> SparsePosterior:
        """Return the Gaussian law of the function."""
        kernel, points = self.training.design.kernel(), self.training.X
        root = _root(self.training)
        factor = linalg.Cholesky(self.factor, len(points), 1.0)
        return SparsePosterior(kernel, points, root, factor, self.coefficients, self.evidence, "dtc", single=False)

    @cached_property
    def y(self) -> Float[np.ndarray, "m c"]:
        """Return the mean at the inducing points."""
        return self.mean(self.training.X)

    mean = FittedFunction.expansion

    @property
    def laws(self) -> tuple[SparsePosterior, ...]:
        """Return the law that all outputs share."""
        return (self.law,)

    def noise_variance(self, Z: Float[np.ndarray, "m d"], *, moment: bool = True) -> Float[np.ndarray, "m c"]:
        """Return the variance of the noise of a new observation, in units of the kernel."""
        return np.full((len(Z), self.coefficients.shape[1]), self.noise)

    def left_out(self) -> LeftOutRows:
        """Refuse: the rows are not kept. Raises: ValueError."""
        raise ValueError(
            "a fit with inducing points keeps no training rows, and so predicts none of them from the others: take "
            'method="gaussian" and recalibrate=False, or solver="cholesky".'
        )

    def scale(self) -> Float[np.ndarray, " c"]:
        """sqrt(y^T (Q + noise)^{-1} y/n): the most likely scale of each output; 1 of one that is 0."""
        squares = self.evidence.squares
        if np.isnan(squares).any():
            raise ValueError(
                "the scale of f is lost in rounding: the noise is too small for inducing points; raise it."
            )
        return np.where(squares > 0, np.sqrt(squares / self.evidence.rows), 1.0)

    def rescaled(self, scale: Float[np.ndarray, " c"]) -> FittedSparse:
        """Return the same fit to targets in units of these scales."""
        evidence = self.evidence._replace(squares=self.evidence.squares / scale**2)
        return replace(self, evidence=evidence, coefficients=self.coefficients / scale)

    def state(self) -> ModelState:
        """Return the part of the function that a file holds."""
        squares, *numbers = self.evidence
        values = {"noise": self.noise, "evidence": numbers}
        return FittedFunction.state(self) | ModelState(values, {"factor": self.factor, "squares": squares})


def _root(training: FittedTraining) -> linalg.Cholesky:
    """Factorise the kernel matrix of the inducing points."""
    root = linalg.cholesky(np.array(training.design.kernel().gram(training.X)))
    if root is None:
        raise ValueError("the kernel matrix of the inducing points of this model is singular on this machine.")
    return root


@final
@dataclass(eq=False)
class FittedSparseClasses(FittedFunction, LatentClasses):
    """Every class has one latent function, which depends on the labels through inducing points (`SparseDirichlet`)."""

    training: FittedTraining
    """Its rows are the inducing points."""
    scale: float
    classes: int
    alpha_epsilon: float
    factors: Float[np.ndarray, "c m m"]
    coefficients: Float[np.ndarray, "m c"]

    @cached_property
    def law(self) -> SparseDirichlet:
        """Return the Gaussian law of the functions."""
        state = _root(self.training), self.factors, self.coefficients, self.scale, self.alpha_epsilon
        return SparseDirichlet(self.training.design.kernel(), self.training.X, *state)

    def probabilities(self, Z: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m c"]:
        """Compute E[softmax(f)] of independent functions."""
        return expected_softmax(*self.law.law(Z))

    def mean(self, Z: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m c"]:
        """Compute the mean of the latent functions, log concentrations."""
        return self.law.law(Z)[0]

    def variance(self, Z: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m c"]:
        """Compute the variance of the latent functions."""
        return self.law.law(Z)[1]

    def leave_one_out(self) -> Float[np.ndarray, "n c"]:
        """Refuse: the rows are not kept. Raises: ValueError."""
        raise ValueError("a fit with inducing points keeps no training rows, and so predicts none of them from others.")

    def left_out(
        self, points: Float[np.ndarray, "k d"], labels: Int[np.ndarray, " k"], weights: Float[np.ndarray, " k"]
    ) -> Float[np.ndarray, "k c"]:
        """Compute the probabilities of some training rows, each by all others."""
        return expected_softmax(*self.law.leave_one_out(points, labels, weights))

    def state(self) -> ModelState:
        """Return the part of the functions that a file holds."""
        own = {"scale": self.scale, "alpha_epsilon": self.alpha_epsilon}
        return FittedFunction.state(self) | ModelState(own, {"factors": self.factors})


def fit_sparse_classes(
    training: FittedTraining, labels: np.ndarray, classes: int, scale: float, alphas: Sequence[float]
) -> FittedSparseClasses:
    """Fit to all rows of the training, with its number of inducing points; `scale` is where the search of it begins."""
    found = sparse_dirichlet(
        *(training.design.kernel(), training.X, labels),
        classes=classes,
        scale=scale,
        alphas=alphas,
        factors=FACTORS,
        weights=training.weights,
        inducing=min(training.inducing, len(training.X)),
        progress=training.verbose,
    )
    points = replace(training, X=found.inducing, weights=np.ones(len(found.inducing)))
    state = found.scale, classes, found.alpha_epsilon, np.tril(found.factors), found.weights
    return FittedSparseClasses(points, *state)


def restore_sparse_classes(state: ModelState, training: FittedTraining, m: int, c: int) -> FittedSparseClasses:
    """Restore what `FittedSparseClasses.state` returns. Raises: one of model_state.INVALID."""
    factors = state.array("factors", c, m, m)
    if np.triu(factors, 1).any() or not (np.diagonal(factors, axis1=1, axis2=2) > 0).all():
        raise ValueError("a factor that is no factor")
    scale = float(validation.deviation("scale", state.values["scale"]))
    alpha = float(validation.finite_scalar("alpha_epsilon", state.values["alpha_epsilon"], above=0.0))
    return FittedSparseClasses(training, scale, c, alpha, factors, state.array("coefficients", m, c))


def fit_sparse(training: FittedTraining, y: np.ndarray, noise: float) -> FittedSparse:
    """Fit to all rows of the training, with its number of inducing points."""
    count = min(training.inducing, len(training.X))
    found = posterior(
        *(training.design.kernel(), training.X, y),
        noise=noise / training.weights,
        solver="nystrom",
        inducing=count,
        progress=training.verbose,
    )
    points = replace(training, X=found.inducing, weights=np.ones(len(found.inducing)))
    lower = np.tril(found.factor.lower)
    return FittedSparse(points, noise, lower, found.evidence, found.weights)


def restore_sparse(state: ModelState, training: FittedTraining, noise: float, m: int, c: int) -> FittedSparse:
    """Restore what `FittedSparse.state` returns. Raises: one of model_state.INVALID."""
    factor, squares = state.array("factor", m, m), state.array("squares", c)
    if np.triu(factor, 1).any() or not (np.diagonal(factor) > 0).all() or (squares < 0).any():
        raise ValueError("a factor that is no factor")
    log_determinant, rest, rows = state.values["evidence"]
    validation.finite_scalar("log_determinant", log_determinant)
    validation.finite_scalar("rest", rest, at_least=0.0)
    evidence = Evidence(squares, log_determinant, rest, validation.integer("rows", rows, at_least=m))
    return FittedSparse(training, noise, factor, evidence, state.array("coefficients", m, c))
