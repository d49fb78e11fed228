"""This module computes features of an infinitely wide network's kernel, for linear models on tables with many rows."""

from __future__ import annotations

import math
from typing import Any, final

import numpy as np
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from widelimit import validation
from widelimit.estimators import preparation
from widelimit.estimators.networks import Design, Kind
from widelimit.inference.nystrom import nystrom


@final
class NTKFeatures(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """phi(x), (k,), has phi(x).phi(x') = K(x, L) K(L, L)^+ K(L, x') for k rows L of the training set (Nystrom).

    A linear model on these features approximates kernel ridge regression with the kernel K at O(n k^2) cost and O(n k)
    memory, where the exact estimators take O(n^3) and O(n^2). Source: Williams and Seeger 2001.

    Args:
        n_components: k >= 1; at most the number of training rows are used.
        kernel: "ntk" or "nngp".
        depth: L >= 1, affine layers.
        activation: a name, a `widelimit.Activation` or a function.
        weight_std: > 0.
        bias_std: >= 0.
        normalize: "standardize" (columns), "sphere" (then rows to norm sqrt(d)) or None.
        random_state: seed or generator of the choice of rows.

    Attributes:
        components_: (k, d) the rows L, normalised.
        inputs_: the normalisation of the columns.
    """

    def __init__(
        self,
        n_components: int = 300,
        *,
        kernel: Kind = "ntk",
        depth: int = 3,
        activation: Any = "relu",
        weight_std: float = math.sqrt(2),
        bias_std: float = 0.5,
        normalize: str | None = "standardize",
        random_state: Any = 0,
    ) -> None:
        self.n_components = n_components
        self.kernel = kernel
        self.depth = depth
        self.activation = activation
        self.weight_std = weight_std
        self.bias_std = bias_std
        self.normalize = normalize
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> NTKFeatures:
        """Choose k rows of X (n, d) at random, without replacement; y is ignored. Raises: TypeError, ValueError."""
        count = validation.integer("n_components", self.n_components, at_least=1)
        validation.choice("kernel", self.kernel, ("ntk", "nngp"))
        validation.choice("normalize", self.normalize, preparation.NORMALIZE)
        preparation.refuse_random_state(self.random_state)
        preparation.refuse_rows(X)
        with preparation.shorten_errors("X"):
            X = validate_data(self, X, dtype=np.float64, order="C")
        inputs = preparation.normalisation(self.normalize, X, np.ones(len(X)))
        count = min(count, len(X))
        rows = check_random_state(self.random_state).permutation(len(X))[:count]
        design = Design(self.kernel, self.depth, self.activation, self.weight_std, self.bias_std)
        self._map = nystrom(design.kernel(), inputs(X[np.sort(rows)]))
        self.inputs_ = inputs
        self.components_ = self._map.landmarks
        self._n_features_out = count
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Compute phi(X), (m, k), the feature of the largest eigenvalue first."""
        check_is_fitted(self)
        preparation.refuse_rows(X)
        with preparation.shorten_errors("X"):
            rows = validate_data(self, X, dtype=np.float64, order="C", reset=False)
        return self._map(self.inputs_(rows))
