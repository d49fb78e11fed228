"""AutoGluon, and so TabArena, can fit this library's estimators: `WideModel` has the interface of AutoGluon's models.

It needs the package autogluon.tabular (tried with 1.6.3), and this folder on PYTHONPATH. A table with AutoGluon:

    TabularPredictor(label="y").fit(data, hyperparameters={WideModel: {}})

With TabArena: ConfigGenerator(model_cls=WideModel, manual_configs=[{}], search_space={}). Hyper-parameters are those of
`WideRegressor` and `WideClassifier`. Missing numbers become the column's median with a flag; categories become columns
of 0 and 1, of which a level that was unseen at fit has none.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from autogluon.core.models import AbstractModel
from sklearn.compose import make_column_selector, make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import OneHotEncoder
from threadpoolctl import threadpool_limits

import widelimit as wl

PROBLEMS = ["binary", "multiclass", "regression"]
LARGEST = 20_000
"""Rows of training; AutoGluon leaves the model out above them."""


class WideModel(AbstractModel):  # type: ignore[misc]
    """AutoGluon's model of WideRegressor and WideClassifier."""

    ag_key, ag_name = "WIDE", "Wide"
    seed_name = "random_state"
    _supported_problem_types = PROBLEMS
    _encoder: Any = None

    @classmethod
    def supported_problem_types(cls) -> list[str]:
        """Return AutoGluon's names of the tasks."""
        return PROBLEMS

    def _get_default_auxiliary_params(self) -> dict[str, Any]:
        kinds = {"valid_raw_types": ["int", "float", "category"], "max_rows": LARGEST}
        return super()._get_default_auxiliary_params() | kinds

    def _preprocess(self, X: Any, is_train: bool = False, **kwargs: Any) -> np.ndarray:
        X = super()._preprocess(X, **kwargs)
        if is_train:
            numbers, others = (make_column_selector(**{f"dtype_{end}": "number"}) for end in ("include", "exclude"))
            self._encoder = make_column_transformer(
                (SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True), numbers),
                (OneHotEncoder(handle_unknown="ignore", sparse_output=False), others),
            ).fit(X)
        return np.asarray(self._encoder.transform(X), np.float64)

    def _fit(self, X: Any, y: Any, sample_weight: Any = None, num_cpus: Any = None, **kwargs: Any) -> None:
        model = wl.WideRegressor if self.problem_type == "regression" else wl.WideClassifier
        weights = None if sample_weight is None else np.asarray(sample_weight, np.float64)
        rows = self.preprocess(X, is_train=True)
        with threadpool_limits(num_cpus if isinstance(num_cpus, int) else None):
            self.model = model(**self._get_model_params()).fit(rows, np.asarray(y), sample_weight=weights)

    def _estimate_memory_usage(self, X: Any, **kwargs: Any) -> int:
        """Return bytes: a few kernel matrices and JAX."""
        return 4 * 8 * len(X) ** 2 + 500 * 2**20
