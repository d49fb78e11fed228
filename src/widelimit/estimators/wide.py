"""The estimators that choose their network: kernel, depth, activation and one scale an input, by evidence."""

from __future__ import annotations

import itertools
from typing import Any, final, get_args

from widelimit import validation
from widelimit.estimators.base import KernelEstimator
from widelimit.estimators.classifiers import KernelClassifier
from widelimit.estimators.model_state import ModelState
from widelimit.estimators.networks import Design, Kind
from widelimit.estimators.parameters import Architecture, WideParameters, estimator
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
    family_: Family

    def _architecture(self) -> tuple[Kind, int, Any]:
        family = vars(self).get("family_", self._families()[0])
        return family.kind, family.depth, family.activation

    def _families(self) -> list[Family]:
        """Return the families that agree with the parameters. Raises: TypeError, ValueError."""
        validation.choice("kernel", self.kernel, get_args(Architecture))
        validation.choice("activation", self.activation, ("auto", *get_args(Activation)))
        if not (isinstance(self.depth, str) and self.depth == "auto"):
            validation.integer("depth", self.depth, at_least=2)
        given = {"kind": self.kernel, "activation": self.activation, "depth": self.depth}
        values = ({"auto": sorted({getattr(f, k) for f in FAMILIES})}.get(v, [v]) for k, v in given.items())
        wished = [Family(*each) for each in itertools.product(*values)]
        return [family for family in FAMILIES if family in wished] or wished

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
            if family not in self._families():
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


@final
@estimator
class WideClassifier(WideEstimator, KernelClassifier):
    """p(class k) = E[softmax(f)_k], f_k | labels for f_k ~ GP(offset, scale^2 K), K of a chosen wide network.

    Kernel, depth, activation and the scales of the inputs have the largest marginal likelihood for one-hot labels.

    Args:
        {}

    Attributes:
        family_: (kernel, activation, depth) of the network.
        classes_: (c,) the labels, sorted.
        inputs_: the map of the columns, with the learned scales in it.
        n_features_in_, feature_names_in_: as scikit-learn has them.
    """
