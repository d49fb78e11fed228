"""Regressors and classifiers share this base."""

from __future__ import annotations

import abc
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted, validate_data

from widelimit import validation
from widelimit.estimators import preparation
from widelimit.estimators.networks import Design, FittedTraining, Kind, SolverChoice, choose
from widelimit.estimators.preparation import Inputs
from widelimit.inference.solvers import Solver
from widelimit.references import referenced, resolved
from widelimit.shapes import Float

SOLVERS = ("auto", "cholesky", "cg")
HYPERPARAMETERS = ("fixed", "marginal_likelihood", "leave_one_out")


class KernelEstimator(BaseEstimator, abc.ABC):
    """An infinitely wide network becomes an estimator. Fitted state is plain arrays and numbers."""

    _kind: ClassVar[Kind]
    depth: int
    activation: Any
    weight_std: float
    bias_std: float
    noise: float | Literal["auto"]
    time: float
    normalize: str | None
    hyperparameters: Literal["fixed", "marginal_likelihood", "leave_one_out"]
    solver: Solver
    random_state: Any
    verbose: bool

    inputs_: Inputs
    n_features_in_: int
    _fitted_with: dict[str, Any]
    """Parameters at the time of the fit: `set_params` changes the next fit, not this one."""

    @contextmanager
    def _fitting(self) -> Iterator[None]:
        """Fit whole or not at all: an error or Ctrl-C on the way leaves the fit that was there."""
        before = dict(vars(self))
        try:
            yield
        except BaseException:
            self.__dict__.clear()
            self.__dict__.update(before)
            raise
        self._fitted_with = self.get_params(deep=False)

    def _check_settings(self) -> None:
        """Refuse parameters that are wrong whatever the data. Raises: TypeError, ValueError."""
        self._design(self.weight_std, self.bias_std).network()
        validation.choice("hyperparameters", self.hyperparameters, HYPERPARAMETERS)
        validation.choice("solver", self.solver, SOLVERS)
        validation.choice("normalize", self.normalize, preparation.NORMALIZE)
        validation.flag("verbose", self.verbose)
        validation.flag("ensemble", self._ensemble())
        preparation.refuse_random_state(self.random_state)
        preparation.refuse_noise(self.noise)
        preparation.refuse_time(self.time)
        if self.solver != "auto" and not self._solved():
            raise ValueError(
                f"solver={self.solver!r} is for time=inf without ensemble; a finite time and an ensemble take "
                'eigenvectors: leave solver="auto".'
            )

    def _design(self, weight_std: float, bias_std: float) -> Design:
        """The network of these settings, in numbers of Python: a file holds them, and gives them back, as such."""
        numbers = (validation.plain(value) for value in (weight_std, bias_std))
        return Design(self._kind, self.depth, self.activation, *numbers)

    def _choose(self, points: np.ndarray, y: np.ndarray, weights: np.ndarray) -> SolverChoice:
        """Choose network, noise and scales for standardised targets, by `hyperparameters`."""
        design = self._design(self.weight_std, self.bias_std)
        return choose(design, points, y, weights, self.noise, self.hyperparameters, self.verbose)

    def _training(self, design: Design, points: np.ndarray, weights: np.ndarray) -> FittedTraining:
        """Describe the training of this estimator on these rows."""
        ensemble, verbose = self._ensemble(), bool(self.verbose)
        return FittedTraining(design, points, weights, float(self.time), ensemble, self.solver, verbose)

    def _solved(self) -> bool:
        """Return True if the fit is one linear system, rather than a flow that takes eigenvectors."""
        return float(self.time) == math.inf and not self._ensemble()

    def _matrices(self) -> float:
        """Count the (n, n) matrices of a fit: one triangle for a linear system; or kernel, eigenvectors, workspace."""
        return 0.5 if self._solved() else 4

    def _ensemble(self) -> bool:
        return getattr(self, "ensemble", False)

    def _prepared(self, X: Any) -> Float[np.ndarray, "m d"]:
        """Return new rows, validated, as the kernel takes them."""
        check_is_fitted(self)
        preparation.refuse_rows(X)
        with preparation.brief("X"):
            rows = validate_data(self, X, dtype=np.float64, order="C", reset=False)
        return self.inputs_(rows)

    def _normalised(self, X: np.ndarray, weights: np.ndarray) -> Float[np.ndarray, "n d"]:
        """Return training rows as the kernel takes them; the normalisation is stored."""
        self.inputs_ = preparation.inputs(self.normalize, X, weights)
        return self.inputs_(X)

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = referenced(BaseEstimator.__getstate__(self))
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        BaseEstimator.__setstate__(self, resolved(state))

    def save(self, path: Any, *, extra: dict[str, Any] | None = None) -> None:
        """Write this fitted estimator to one file: `wl.save(self, path, extra=extra)`."""
        from widelimit.estimators.persistence import save

        save(self, path, extra=extra)
