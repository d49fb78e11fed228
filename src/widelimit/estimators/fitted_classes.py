"""A fitted Dirichlet classifier's functions are kept as plain arrays."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import final

import numpy as np

from widelimit.estimators.model_state import ModelState
from widelimit.estimators.networks import FittedFunction, FittedTraining
from widelimit.inference.dirichlet import DirichletPosterior, dirichlet_labels, dirichlet_offset, dirichlet_posterior
from widelimit.inference.early_stopping import StoppedFlow
from widelimit.shapes import Float, Int


@final
@dataclass(eq=False)
class FittedClasses(FittedFunction):
    """Every class has one latent function, fitted to transformed labels."""

    training: FittedTraining
    labels: Int[np.ndarray, " n"]
    scale: float
    classes: int
    alpha_epsilon: float
    coefficients: Float[np.ndarray, "n c"] | None = None

    def solve(self) -> np.ndarray:
        """Compute the coefficients of the means, (n, c), from the laws."""
        if isinstance(self.law, DirichletPosterior):
            return self.law.coefficients
        return np.hstack([flow.coefficients for flow in self.law])

    @property
    def offset(self) -> float:
        """Return the prior mean of every latent function."""
        return dirichlet_offset(self.classes, self.alpha_epsilon)

    @cached_property
    def law(self) -> DirichletPosterior | tuple[StoppedFlow, ...]:
        """Return the Gaussian law of the functions."""
        how = self.training
        if not how.is_linear_system:
            return tuple(self._class_flow(j) for j in range(self.classes))
        return dirichlet_posterior(
            how.design.kernel(),
            how.X,
            self.labels,
            classes=self.classes,
            scale=self.scale,
            alpha_epsilon=self.alpha_epsilon,
            weights=how.weights,
            progress=how.verbose,
        )

    def _class_flow(self, j: int) -> StoppedFlow:
        shape, own = dirichlet_labels(self.alpha_epsilon), self.labels == j
        target = (np.where(own, shape.own, shape.other) - self.offset) / self.scale
        weights = self.training.weights * np.where(own, shape.noise_other / shape.noise_own, 1.0)
        return self.training.flow(target[:, None], shape.noise_other / self.scale**2, weights)

    def state(self) -> ModelState:
        """Return the part of the functions that a file holds."""
        own = {"scale": self.scale, "alpha_epsilon": self.alpha_epsilon}
        return FittedFunction.state(self) | ModelState(own, {"labels": self.labels.astype(np.int64)})

    def mean(self, Z: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m c"]:
        """Compute the mean of the latent functions."""
        return self.offset + self.scale * self.expansion(Z)

    def variance(self, Z: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m c"]:
        """Compute the variance of the latent functions."""
        if isinstance(self.law, DirichletPosterior):
            return self.law.variance(Z)
        return self.scale**2 * np.stack([flow.variance(Z) for flow in self.law], axis=1)
