"""The estimators that choose their network: kernel, depth, activation and one scale an input, by evidence."""

from __future__ import annotations

import itertools
import math
from dataclasses import field, replace
from typing import Any, ClassVar, final, get_args

import numpy as np

from widelimit import validation
from widelimit.estimators import class_weights
from widelimit.estimators.base import KernelEstimator
from widelimit.estimators.classifiers import KernelClassifier
from widelimit.estimators.fitted_classes import FittedMixture, LatentClasses, mixture_shares
from widelimit.estimators.model_state import ModelState
from widelimit.estimators.networks import Design, Fitted, HyperparameterChoice, Kind
from widelimit.estimators.parameters import Architecture, Likelihood, WideParameters, about, estimator
from widelimit.estimators.regressors import KernelRegressor
from widelimit.inference.scaled_evidence import Activation, Family

FAMILIES = (
    Family("nngp", "erf", 2),
    Family("nngp", "rbf", 2),
    Family("nngp", "relu", 3),
    Family("ntk", "relu", 3),
    Family("nngp", "erf", 3),
    Family("nngp", "relu", 2),
    Family("ntk", "relu", 2),
)
"""Families in a race; the NTK of erf is left out, as no table preferred it."""


class WideEstimator(WideParameters, KernelEstimator):
    """The network of the estimator is one of FAMILIES, restricted to what the parameters say."""

    _kind = "nngp"
    _raced: ClassVar[tuple[Family, ...]] = FAMILIES
    family_: Family

    def _architecture(self) -> tuple[Kind, int, Any]:
        family = vars(self).get("family_", self._families()[0])
        return family.kind, family.depth, family.activation

    def _families(self) -> list[Family]:
        """Return the families that the parameters put into a race. Raises: TypeError, ValueError."""
        wished = self._wished()
        return [f for f in self._raced if f in wished] or [f for f in FAMILIES if f in wished] or wished

    def _wished(self) -> list[Family]:
        """Return the families that agree with the parameters. Raises: TypeError, ValueError."""
        validation.choice("kernel", self.kernel, get_args(Architecture))
        validation.choice("activation", self.activation, ("auto", *get_args(Activation)))
        if not (isinstance(self.depth, str) and self.depth == "auto"):
            validation.integer("depth", self.depth, at_least=2)
        given = {"kind": self.kernel, "activation": self.activation, "depth": self.depth}
        values = ({"auto": sorted({getattr(f, k) for f in FAMILIES})}.get(v, [v]) for k, v in given.items())
        return [Family(*each) for each in itertools.product(*values)]

    def _designs(self) -> list[Design]:
        return [Design(f.kind, f.depth, f.activation, self.weight_std, self.bias_std) for f in self._families()]

    def _set_design(self, design: Design) -> None:
        self.family_ = Family(design.kind, design.activation, design.depth)

    def _architecture_state(self) -> ModelState:
        family = vars(self).get("family_")
        return ModelState({"family": None if family is None else list(family)}, {})

    def _restore_architecture(self, state: ModelState) -> None:
        if state.values["family"] is not None:
            kind, activation, depth = state.values["family"]
            family = Family(kind, activation, validation.integer("depth", depth, at_least=2))
            if family not in self._wished():
                raise ValueError("another network than the parameters allow")
            self.family_ = family


@final
@estimator
class WideRegressor(WideEstimator, KernelRegressor):
    """f | y for y_j = mean_j + scale_j (f_j(s x) + e), f_j ~ GP(0, K), e ~ N(0, noise/sample_weight).

    K is the NNGP or NTK kernel of an infinitely wide network. Kernel, depth, activation, the scales s of the inputs,
    those of weights, biases and outputs, and the noise have the largest marginal likelihood (with a weak prior on s).

    Args:
        {}

    Attributes:
        family_: (kernel, activation, depth) of the network.
        inputs_: the map of the columns, with the learned scales in it.
        noise_, y_mean_, y_scale_: y_j = y_mean_j + y_scale_j (f_j + e), e ~ N(0, noise_/sample_weight).
        weight_std_, bias_std_: the network's.
        log_marginal_likelihood_value_: of the standardised targets; None with conjugate gradients.
        n_features_in_, feature_names_in_: as scikit-learn has them.
    """


CLASS_FAMILIES = (Family("nngp", "erf", 2), Family("ntk", "relu", 3))
"""Families in a race by labels, by which the others hardly differ."""
PLAIN = Family("ntk", "relu", 3)
"""The member of a classifier without scales of the inputs, if the parameters allow it."""


@final
@estimator
class WideClassifier(WideEstimator, KernelClassifier):
    """p(class k) = sum_j share_j p_j(class k), two Gaussian processes with kernels of wide networks.

    The first has learned scales of the inputs, and the kernel, depth and activation of the largest marginal likelihood
    for one-hot labels; the second has all scales 1 and the NTK of relu. The shares are those of the largest
    leave-one-out likelihood, with a prior of 20 rows each. With likelihood="least_squares", or a finite time, there is
    the first alone.

    Args:
        {}

    Attributes:
        family_: (kernel, activation, depth) of the first network.
        classes_: (c,) the labels, sorted.
        inputs_: the map of the columns, with the learned scales in it.
        n_features_in_, feature_names_in_: as scikit-learn has them.
    """

    _raced = CLASS_FAMILIES
    likelihood: Likelihood = field(
        default="logistic",
        metadata=about("Likelihood of classes.", "See NNGPClassifier.", choices=get_args(Likelihood)),
    )

    def _fit_latent(
        self, points: np.ndarray, labels: np.ndarray, weights: np.ndarray, chosen: HyperparameterChoice | None
    ) -> LatentClasses:
        if chosen is None or chosen.input_scales is None or not self._is_linear_system():
            return self._fit_one(points, labels, weights, chosen)
        rows = points / chosen.input_scales
        if self.likelihood == "logistic":
            rows, labels, weights = class_weights.merge(rows, labels, weights)
        family = PLAIN if PLAIN in self._families() else self.family_
        plain = Design(family.kind, family.depth, family.activation, math.sqrt(2), 0.5)
        factors = np.stack([np.ones_like(chosen.input_scales), 1 / chosen.input_scales])
        scaled = self._fit_one(rows * chosen.input_scales, labels, weights, chosen)
        other = self._fit_one(rows, labels, weights, replace(chosen, design=plain))
        at = np.arange(len(labels)), labels
        density = np.stack([member.leave_one_out()[at] for member in (scaled, other)], axis=1)
        shares = mixture_shares(np.maximum(density, np.finfo(np.float64).tiny), weights)
        return FittedMixture((scaled, other), shares, factors)

    def _restore_fitted(self, state: ModelState) -> Fitted | LatentClasses:
        if state.values["fitted"] != "FittedMixture":
            return self._restore_one(state)
        members: list[LatentClasses] = []
        for i, values in enumerate(state.values["members"]):
            own = {name.split(".", 1)[1]: a for name, a in state.arrays.items() if name.startswith(f"{i}.")}
            member = self._restore_one(ModelState(values, own), values["family"])
            assert isinstance(member, LatentClasses)
            members.append(member)
        k, d = len(members), int(self.inputs_.kept.sum())
        return FittedMixture(tuple(members), state.positive("shares", k), state.positive("factors", k, d))
