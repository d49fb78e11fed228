"""These estimators choose their network: kernel, depth, activation and one scale an input, by evidence."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, final, get_args

import numpy as np
from sklearn.utils.validation import check_is_fitted

from widelimit import validation
from widelimit.architecture.network import Network
from widelimit.estimators import averaging, class_weights, preparation, settings
from widelimit.estimators.averaging import FittedAverage
from widelimit.estimators.base import KernelEstimator
from widelimit.estimators.choice import HyperparameterChoice
from widelimit.estimators.classifiers import KernelClassifier
from widelimit.estimators.design import Design, Kind
from widelimit.estimators.fitted_classes import FittedMixture, LatentClasses, mixture_shares
from widelimit.estimators.fitted_sparse import FittedSparse, FittedSparseClasses
from widelimit.estimators.model_state import ModelState
from widelimit.estimators.networks import Fitted, FittedGaussian, FittedTraining
from widelimit.estimators.parameters import (
    Architecture,
    AverageParameters,
    Likelihood,
    WideParameters,
    estimator,
    parameter,
)
from widelimit.estimators.regressors import KernelRegressor
from widelimit.estimators.scaled_choice import LEFT_OUT_ROWS
from widelimit.estimators.settings import given_network
from widelimit.inference.input_scales import FINALISTS
from widelimit.inference.scaled_evidence import Activation, AnyFamily, Family, NetworkFamily
from widelimit.inference.training_set import evenly
from widelimit.kernels.network import ntk

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
    family_: AnyFamily

    def _architecture(self) -> tuple[Kind, int, Any]:
        family = vars(self).get("family_")
        if family is None or isinstance(family, NetworkFamily) != (self.network is not None):  # of an earlier fit
            family = self._families()[0]
        if isinstance(family, NetworkFamily):
            return family.kind, self.depth, self.activation
        return family.kind, family.depth, family.activation

    def _families(self) -> Sequence[AnyFamily]:
        """Return the families that the parameters put into a race. Raises: TypeError, ValueError."""
        net = given_network(self)
        if net is not None:
            validation.choice("kernel", self.kernel, get_args(Architecture))
            return [NetworkFamily(kind, net) for kind in (kinds(net) if self.kernel == "auto" else [self.kernel])]
        allowed = self._allowed()
        return [f for f in self._raced if f in allowed] or [f for f in FAMILIES if f in allowed] or allowed

    def _allowed(self) -> list[Family]:
        """Return the families that agree with the parameters. Raises: TypeError, ValueError."""
        validation.choice("kernel", self.kernel, get_args(Architecture))
        validation.choice("activation", self.activation, ("auto", *get_args(Activation)))
        if not (isinstance(self.depth, str) and self.depth == "auto"):
            validation.integer("depth", self.depth, at_least=2)
        given = {"kind": self.kernel, "activation": self.activation, "depth": self.depth}
        values = ({"auto": sorted({getattr(f, k) for f in FAMILIES})}.get(v, [v]) for k, v in given.items())
        return [Family(*each) for each in itertools.product(*values)]

    def _designs(self) -> list[Design]:
        own = self._own_design()
        return [
            replace(own, kind=f.kind, depth=f.depth, activation=f.activation)
            if isinstance(f, Family)
            else replace(own, kind=f.kind)
            for f in self._families()
        ]

    def _set_design(self, design: Design) -> None:
        self.family_ = replace(design, given=given_network(self)).family

    def _architecture_state(self) -> ModelState:
        family = vars(self).get("family_")
        return ModelState({"family": family and averaging.family_document(family)}, {})

    def _restore_architecture(self, state: ModelState) -> None:
        if state.values["family"] is None:
            return
        kind, *others = state.values["family"]
        net = given_network(self)
        if net is None:
            activation, depth = others
            family: AnyFamily = Family(kind, activation, validation.integer("depth", depth, at_least=2))
            allowed = family in self._allowed()
        else:
            family = NetworkFamily(kind, net)
            allowed = family in self._families()
        if not allowed:
            raise ValueError("another network than the parameters allow")
        self.family_ = family


def kinds(net: Network) -> tuple[Kind, ...]:
    """Return the kinds of kernels that a network has."""
    try:
        ntk(net)
    except ValueError:
        return ("nngp",)
    return "nngp", "ntk"


@final
@estimator
class WideRegressor(WideEstimator, KernelRegressor, AverageParameters):
    """f | y for y_j = mean_j + scale_j (f_j(s x) + e), f_j ~ GP(0, K), e ~ N(0, noise/sample_weight).

    K is the NNGP or NTK kernel of an infinitely wide network. Kernel, depth, activation, the scales s of the inputs,
    those of weights, biases and outputs, and the noise have the largest marginal likelihood (with a weak prior on s).

    With `average`, f | y is a mixture of such laws, of this network and of up to two others: those that were left with
    it in the race, with scales of their own. Mean, covariance and quantiles are those of the mixture, and a draw is of
    one network. Its weights make the rows, each left out, the most likely, with a prior of 5 rows for each network
    (stacking: Yao et al. 2018, Bayesian Analysis 13). A weight below 0.01 counts as 0. The attributes below are those
    of the network with the largest marginal likelihood, but for the first two.

    Args:
        {}

    Attributes:
        families_: (kernel, activation, depth) of the networks of the average, `family_` first; one without average.
        shares_: (k,) their weights; their sum is 1.
        family_: (kernel, activation, depth) of the network; (kernel, network) with `network`.
        network_, hyperparameters_: the network, and its numbers by name.
        inputs_: the map of the columns, with the learned scales in it.
        noise_, y_mean_, y_scale_: y_j = y_mean_j + y_scale_j (f_j + e), e ~ N(0, noise_/sample_weight).
        weight_std_, bias_std_: the network's; None with `network`.
        log_marginal_likelihood_value_: that of the standardised targets; None with conjugate gradients.
        n_features_in_, feature_names_in_: as scikit-learn has them.
    """

    def _averages(self, n: int) -> bool:
        if not settings.may_average(self, n):
            return False
        try:
            preparation.require_room(n, FINALISTS * self.matrix_count())
        except MemoryError:
            return False
        return True

    def _with_others(
        self, fitted: FittedGaussian, scale: np.ndarray, chosen: HyperparameterChoice | None
    ) -> FittedGaussian | FittedAverage:
        if chosen is None or not chosen.others:
            return fitted
        assert isinstance(fitted, Fitted)
        return averaging.fit_average(fitted, scale, chosen)

    def _restore_others(self, fitted: FittedGaussian, state: ModelState) -> FittedGaussian | FittedAverage:
        if "others" not in state.values:
            return fitted
        if not isinstance(fitted, Fitted) or not settings.may_average(self, len(fitted.y)):
            raise ValueError("an average that the parameters do not allow")
        n, weights = len(fitted.y), fitted.training.weights

        def restore(kept: dict[str, Any], X: np.ndarray) -> FittedTraining:
            family = next((f for f in self._families() if averaging.family_document(f) == kept["family"]), None)
            if family is None:
                raise ValueError("another network than the parameters allow")
            depth, activation = (self.depth, self.activation) if isinstance(family, NetworkFamily) else family[:0:-1]
            own = ModelState(kept, {"X": X, "weights": weights})
            return self._restore_training(own, n, (family.kind, depth, activation))

        return averaging.restore_average(state, fitted, restore)

    @property
    def families_(self) -> list[AnyFamily]:
        """Return the networks of the average, the most likely one first: one without average."""
        check_is_fitted(self)
        if isinstance(self.fitted_, FittedAverage):
            return [member.training.design.family for member in self.fitted_.members]
        return [self.fitted_.training.design.family]

    @property
    def shares_(self) -> np.ndarray:
        """Return their weights."""
        check_is_fitted(self)
        return self.fitted_.shares if isinstance(self.fitted_, FittedAverage) else np.ones(1)


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
        family_: (kernel, activation, depth) of the first network; (kernel, network) with `network`.
        network_, hyperparameters_: that network, and its numbers by name.
        classes_: (c,) the labels, sorted.
        inputs_: the map of the columns, with the learned scales in it.
        n_features_in_, feature_names_in_: as scikit-learn has them.
    """

    _raced = CLASS_FAMILIES
    likelihood: Likelihood = parameter(
        "logistic", "Likelihood of classes.", "See NNGPClassifier.", choices=get_args(Likelihood)
    )

    def _fit_latent(
        self, points: np.ndarray, labels: np.ndarray, weights: np.ndarray, chosen: HyperparameterChoice | None
    ) -> LatentClasses:
        if chosen is None or chosen.input_scales is None or not self._is_linear_system():
            return self._fit_one(points, labels, weights, chosen)
        rows = points / chosen.input_scales
        sparse = settings.solver(self, len(points)) == "nystrom"
        if self.likelihood == "logistic" and not sparse:
            rows, labels, weights = class_weights.merge(rows, labels, weights)
        plain = replace(chosen.design, given=given_network(self))
        if plain.given is None:
            family = PLAIN if PLAIN in self._families() else self.family_
            assert isinstance(family, Family)
            plain = Design(family.kind, family.depth, family.activation, math.sqrt(2), 0.5)
        factors = np.stack([np.ones_like(chosen.input_scales), 1 / chosen.input_scales])
        scaled = self._fit_one(rows * chosen.input_scales, labels, weights, chosen)
        other = self._fit_one(rows, labels, weights, replace(chosen, design=plain))
        some = evenly(len(rows), LEFT_OUT_ROWS) if sparse else np.arange(len(rows))
        rows, labels, weights = rows[some], labels[some], weights[some]

        def density(member: LatentClasses, factor: np.ndarray) -> np.ndarray:
            if isinstance(member, FittedSparseClasses):
                p = member.left_out(rows * factor, labels, weights)
            else:
                p = member.leave_one_out()
            return np.asarray(np.maximum(p[np.arange(len(labels)), labels], np.finfo(np.float64).tiny))

        both = [
            density(member, factor * chosen.input_scales)
            for member, factor in zip((scaled, other), factors, strict=True)
        ]
        return FittedMixture((scaled, other), mixture_shares(np.stack(both, axis=1), weights), factors)

    def _restore_fitted(self, state: ModelState) -> Fitted | FittedSparse | LatentClasses:
        if state.values["fitted"] != "FittedMixture":
            return self._restore_one(state)
        members: list[LatentClasses] = []
        for i, values in enumerate(state.values["members"]):
            own = {name.split(".", 1)[1]: a for name, a in state.arrays.items() if name.startswith(f"{i}.")}
            member = self._restore_one(ModelState(values, own), values["family"])
            if not isinstance(member, LatentClasses):
                raise TypeError("a member that has no latent functions")
            members.append(member)
        k, d = len(members), int(self.inputs_.kept.sum())
        return FittedMixture(tuple(members), state.positive("shares", k), state.positive("factors", k, d))
