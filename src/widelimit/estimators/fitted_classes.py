"""A fitted Dirichlet classifier's functions as plain arrays."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

import numpy as np
from jaxtyping import Float, Int

from widelimit.estimators.networks import Design, cross_times
from widelimit.inference.dirichlet import DirichletPosterior, dirichlet_labels, dirichlet_offset, dirichlet_posterior
from widelimit.inference.early_stopping import StoppedFlow, stopped_flow
from widelimit.kernels.network import nngp


@final
@dataclass(eq=False)
class FittedClasses:
    """One latent function a class; what variances need is made again when they are asked for."""

    design: Design
    X: Float[np.ndarray, "n d"]
    labels: Int[np.ndarray, " n"]
    scale: float
    classes: int
    alpha_epsilon: float
    weights: Float[np.ndarray, " n"]
    time: float
    ensemble: bool
    coefficients: Float[np.ndarray, "n c"] | None = None

    def __post_init__(self) -> None:
        if self.coefficients is None:
            law = self.law
            if isinstance(law, DirichletPosterior):
                self.coefficients = law.coefficients
            else:
                self.coefficients = np.hstack([flow.coefficients for flow in law])

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "law"}

    @property
    def offset(self) -> float:
        """Prior mean of every latent function."""
        return dirichlet_offset(self.classes, self.alpha_epsilon)

    @cached_property
    def law(self) -> DirichletPosterior | tuple[StoppedFlow, ...]:
        """The Gaussian law of the functions."""
        if self.time == np.inf and not self.ensemble:
            return dirichlet_posterior(
                self.design.kernel(),
                self.X,
                self.labels,
                classes=self.classes,
                scale=self.scale,
                alpha_epsilon=self.alpha_epsilon,
                weights=self.weights,
            )
        return tuple(self._stopped(j) for j in range(self.classes))

    def _stopped(self, j: int) -> StoppedFlow:
        shape, own = dirichlet_labels(self.alpha_epsilon), self.labels == j
        target = (np.where(own, shape.own, shape.other) - self.offset) / self.scale
        return stopped_flow(
            self.design.kernel(),
            self.X,
            target[:, None],
            time=self.time,
            noise=shape.noise_other / self.scale**2,
            weights=self.weights * np.where(own, shape.noise_other / shape.noise_own, 1.0),
            prior=nngp(self.design.network()) if self.ensemble else None,
        )

    def mean(self, Z: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m c"]:
        """Mean of the latent functions."""
        assert self.coefficients is not None
        return self.offset + self.scale * cross_times(self.design.kernel(), Z, self.X, self.coefficients)

    def variance(self, Z: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m c"]:
        """Variance of the latent functions."""
        if isinstance(self.law, DirichletPosterior):
            return self.law.variance(Z)
        return self.scale**2 * np.stack([flow.variance(Z) for flow in self.law], axis=1)
