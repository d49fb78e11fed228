"""AutoGluon, and so TabArena, can fit this library's estimators: `WideModel` has the interface of AutoGluon's models.

It needs the package autogluon.tabular (tried with 1.6.3), and this folder on PYTHONPATH. A table with AutoGluon:

    TabularPredictor(label="y").fit(data, hyperparameters={WideModel: {}})

With TabArena: ConfigGenerator(model_cls=WideModel, manual_configs=[{}], search_space={}). Hyper-parameters are those of
`WideRegressor` and `WideClassifier`, which encode categories and missing values.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from autogluon.core.models import AbstractModel
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

    @classmethod
    def supported_problem_types(cls) -> list[str]:
        """Return AutoGluon's names of the tasks."""
        return PROBLEMS

    def _get_default_auxiliary_params(self) -> dict[str, Any]:
        kinds = {"valid_raw_types": ["int", "float", "category"], "max_rows": LARGEST}
        return super()._get_default_auxiliary_params() | kinds

    def _fit(self, X: Any, y: Any, sample_weight: Any = None, num_cpus: Any = None, **kwargs: Any) -> None:
        model = wl.WideRegressor if self.problem_type == "regression" else wl.WideClassifier
        weights = None if sample_weight is None else np.asarray(sample_weight, np.float64)
        with threadpool_limits(num_cpus if isinstance(num_cpus, int) else None):
            fresh = model(**self._get_model_params())
            self.model = fresh.fit(self.preprocess(X), np.asarray(y), sample_weight=weights)

    def _estimate_memory_usage(self, X: Any, **kwargs: Any) -> int:
        """Return bytes: a few kernel matrices and JAX."""
        return 4 * 8 * len(X) ** 2 + 500 * 2**20
