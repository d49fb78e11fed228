"""This module computes features of an infinitely wide network's kernel, for linear models on tables with many rows."""

from __future__ import annotations

from typing import Any, final, get_args

import numpy as np
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from widelimit import validation
from widelimit.compute import threads
from widelimit.estimators import preparation
from widelimit.estimators.design import Design, Kind
from widelimit.estimators.parameters import NetworkParameters, estimator, parameter
from widelimit.estimators.settings import given_network, image_of
from widelimit.inference.nystrom import nystrom
from widelimit.inference.training_set import evenly

ERROR_ROWS = 1000
"""Rows on which the error of the features is measured."""


@final
@estimator
class NTKFeatures(ClassNamePrefixFeaturesOutMixin, TransformerMixin, NetworkParameters, BaseEstimator):
    """phi(x), (k,), has phi(x).phi(x') = K(x, L) K(L, L)^+ K(L, x') for k rows L of the training set (Nystrom).

    A linear model on these features approximates kernel ridge regression with the kernel K at O(n k^2) cost and O(n k)
    memory, where the exact estimators take O(n^3) and O(n^2). Source: Williams and Seeger 2001.

    Args:
        {}

    Attributes:
        components_: (k, d) the rows L, normalised.
        inputs_: the normalisation of the columns.
    """

    n_components: int = parameter(300, "Number k >= 1 of features; at most that of the training rows.", kw_only=False)
    kernel: Kind = parameter("ntk", 'Kernel, "ntk" or "nngp".', choices=get_args(Kind))
    random_state: Any = parameter(0, "Seed or generator of the choice of rows.")

    def fit(self, X: Any, y: Any = None) -> NTKFeatures:
        """Choose k rows of X (n, d) at random, without replacement; y is ignored. Raises: TypeError, ValueError."""
        count = validation.integer("n_components", self.n_components, at_least=1)
        preparation.check_choices(self)
        preparation.refuse_random_state(self.random_state)
        self._network = self.network
        X = preparation.validate_rows(self, self._rows(X), reset=True)
        ones, each = np.ones(len(X)), np.arange(X.shape[1])
        inputs = preparation.normalisation(self.normalize, X, ones, each, image_of(self.network))
        count = min(count, len(X))
        rows = check_random_state(self.random_state).permutation(len(X))[:count]
        numbers = self.depth, self.activation, self.weight_std, self.bias_std
        design = Design(self.kernel, *numbers, given_network(self))
        self._map = nystrom(design.kernel(), inputs(X[np.sort(rows)]))
        self.inputs_ = inputs
        self.components_ = self._map.landmarks
        self._n_features_out = count
        return self

    def _rows(self, X: Any) -> Any:
        """Return images as rows, where the network of the fit reads images."""
        return preparation.image_rows(image_of(vars(self).get("_network")), X, self.normalize)

    def transform(self, X: Any) -> np.ndarray:
        """Compute phi(X), (m, k), the feature of the largest eigenvalue first."""
        check_is_fitted(self)
        return self._map(self.inputs_(preparation.validate_rows(self, self._rows(X), reset=False)))

    def kernel_error(self, X: Any) -> float:
        """Measure |K - phi phi^T|/|K| (Frobenius norms) on at most 1000 rows of X, evenly spaced.

        The features of all training rows have the error 0 there; K - phi phi^T is positive semi-definite.
        """
        check_is_fitted(self)
        points = self.inputs_(preparation.validate_rows(self, self._rows(X), reset=False))
        points = points[evenly(len(points), ERROR_ROWS)]
        phi, matrix = self._map(points), np.asarray(self._map.kernel.gram(points))
        return float(np.linalg.norm(matrix - threads.product(phi, phi.T)) / np.linalg.norm(matrix))
