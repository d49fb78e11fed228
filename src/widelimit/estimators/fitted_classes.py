"""A fitted classifier's latent functions are kept as plain arrays."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from functools import cached_property
from typing import final

import numpy as np

from widelimit.estimators.model_state import ModelState
from widelimit.estimators.networks import FittedFunction, FittedTraining
from widelimit.estimators.preparation import set_frozen
from widelimit.inference import expectation_propagation
from widelimit.inference.class_probabilities import expected_softmax
from widelimit.inference.dirichlet import DirichletPosterior, dirichlet_labels, dirichlet_offset, dirichlet_posterior
from widelimit.inference.early_stopping import StoppedFlow
from widelimit.inference.expectation_propagation import LogisticPosterior, logistic_probabilities
from widelimit.inference.training_set import training_set
from widelimit.shapes import Float, Int


class LatentClasses(abc.ABC):
    """A fitted classifier predicts by one latent function a class."""

    training: FittedTraining
    classes: int

    @abc.abstractmethod
    def state(self) -> ModelState:
        """Return the part of the functions that a file holds."""

    @abc.abstractmethod
    def probabilities(self, Z: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m c"]:
        """Compute the expected probability of each class."""

    @abc.abstractmethod
    def leave_one_out(self) -> Float[np.ndarray, "n c"]:
        """Compute the probabilities of each training row by all others."""

    @abc.abstractmethod
    def mean(self, Z: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m c"]:
        """Compute the mean of each class's latent function."""

    @abc.abstractmethod
    def variance(self, Z: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m c"]:
        """Compute the variance of each class's latent function."""


@final
@dataclass(eq=False)
class FittedClasses(FittedFunction, LatentClasses):
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

    def probabilities(self, Z: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m c"]:
        """Compute E[softmax(f)] of independent functions."""
        return expected_softmax(self.mean(Z), self.variance(Z))

    def leave_one_out(self) -> Float[np.ndarray, "n c"]:
        """Compute the probabilities of each training row by all others. Raises: ValueError: a flow, which has none."""
        if not isinstance(self.law, DirichletPosterior):
            raise ValueError("leave-one-out is for time=inf without ensemble.")
        return expected_softmax(*self.law.leave_one_out())

    def mean(self, Z: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m c"]:
        """Compute the mean of the latent functions, log concentrations."""
        return self.offset + self.scale * self.expansion(Z)

    def variance(self, Z: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m c"]:
        """Compute the variance of the latent functions."""
        if isinstance(self.law, DirichletPosterior):
            return self.law.variance(Z)
        return self.scale**2 * np.stack([flow.variance(Z) for flow in self.law], axis=1)


@final
@dataclass(eq=False)
class FittedLogistic(FittedFunction, LatentClasses):
    """The latent functions are log odds: one for two classes, else one a class against all others."""

    training: FittedTraining
    scale: float
    classes: int
    precision: Float[np.ndarray, "n k"]
    """Precisions of the Gaussian factors of expectation propagation."""
    shift: Float[np.ndarray, "n k"]
    coefficients: Float[np.ndarray, "n k"] | None = None

    def solve(self) -> np.ndarray:
        """Compute the coefficients of the means, (n, k), from the law."""
        return self.law.coefficients

    @cached_property
    def law(self) -> LogisticPosterior:
        """Return the Gaussian law of the functions, from its factors."""
        how = self.training
        expectation_propagation.require_room(len(how.X), self.classes)
        data = training_set(how.design.kernel(), how.X, np.zeros((len(how.X), self.classes)))
        return expectation_propagation.law(data, data.gram(), self.scale, self.precision, self.shift)

    def state(self) -> ModelState:
        """Return the part of the functions that a file holds."""
        own = ModelState({"scale": self.scale}, {"precision": self.precision, "shift": self.shift})
        return FittedFunction.state(self) | own

    def probabilities(self, Z: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m c"]:
        """Compute E[sigma(f)], over the sum of the classes if there are more than two."""
        return logistic_probabilities(self.scale**2 * self.expansion(Z), self.law.variance(Z))

    def leave_one_out(self) -> Float[np.ndarray, "n c"]:
        """Compute the probabilities of each training row by all others."""
        return logistic_probabilities(*self.law.leave_one_out())

    def mean(self, Z: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m c"]:
        """Compute the means of the log odds of each class against all others."""
        f = self.scale**2 * self.expansion(Z)
        return np.hstack([-f, f]) if self.classes == 2 else f

    def variance(self, Z: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m c"]:
        """Compute the variances of the same."""
        return np.broadcast_to(self.law.variance(Z), (len(Z), self.classes))


PRIOR_ROWS = 20.0
"""Rows that speak for each member of a mixture before the data do."""


def mixture_shares(
    density: Float[np.ndarray, "n k"], weights: Float[np.ndarray, " n"], *, prior: float = PRIOR_ROWS
) -> Float[np.ndarray, " k"]:
    """Return argmax over shares of sum_i w_i log(density_i . shares) + prior sum_k log share_k, by EM.

    density: what each member gives each label, or target, by the other rows, up to a factor for each row.
    """
    count = density.shape[1]
    shares = np.full(count, 1 / count)
    for _ in range(200):
        own = density * shares
        own /= own.sum(axis=1, keepdims=True)
        shares = (weights @ own + prior) / (weights.sum() + count * prior)
    return shares


@final
@dataclass(eq=False)
class FittedMixture(LatentClasses):
    """The probabilities are the mean, with shares, of those of members, each with scales of its own for the inputs."""

    members: tuple[LatentClasses, ...]
    shares: Float[np.ndarray, " k"]
    factors: Float[np.ndarray, "k d"]
    """Factors of the estimator's inputs, for each member."""

    def __post_init__(self) -> None:
        set_frozen(self, vars(self))
        self.training, self.classes = self.members[0].training, self.members[0].classes

    def state(self) -> ModelState:
        """Return the part of the functions that a file holds."""
        parts = [member.state() for member in self.members]
        designs = [member.training.design for member in self.members]
        families = [[design.kind, design.depth, design.activation] for design in designs]
        values = {
            "fitted": type(self).__name__,
            "members": [part.values | {"family": own} for part, own in zip(parts, families, strict=True)],
        }
        arrays = {f"{i}.{name}": array for i, part in enumerate(parts) for name, array in part.arrays.items()}
        return ModelState(values, arrays | {"shares": self.shares, "factors": self.factors})

    def _of_members(self, name: str, Z: np.ndarray) -> np.ndarray:
        return np.stack([getattr(m, name)(Z * own) for m, own in zip(self.members, self.factors, strict=True)])

    def probabilities(self, Z: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m c"]:
        """Compute the mean of the members' probabilities."""
        return np.tensordot(self.shares, self._of_members("probabilities", Z), 1)

    def leave_one_out(self) -> Float[np.ndarray, "n c"]:
        """Compute the mean of the members' probabilities of each training row by all others, shares as they are."""
        return np.tensordot(self.shares, np.stack([member.leave_one_out() for member in self.members]), 1)

    def mean(self, Z: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m c"]:
        """Compute the mean of the mixture of the latent functions."""
        return np.tensordot(self.shares, self._of_members("mean", Z), 1)

    def variance(self, Z: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m c"]:
        """Compute the variance of the mixture of the latent functions."""
        means = self._of_members("mean", Z)
        center = np.tensordot(self.shares, means, 1)
        return np.tensordot(self.shares, self._of_members("variance", Z) + (means - center) ** 2, 1)
