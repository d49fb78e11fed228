"""Infinitely wide networks have a law: that of the trained outputs over random initialisations."""

from __future__ import annotations

import abc
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast, final

import numpy as np

from widelimit import memory, validation
from widelimit.architecture.network import Network
from widelimit.compute import device_rows, devices, linalg, operators, threads
from widelimit.compute.device_modes import DeviceModes, law_products, law_squares
from widelimit.compute.device_rows import DeviceRows, rows_on
from widelimit.compute.devices import Device
from widelimit.compute.operators import Operator
from widelimit.compute.plan import require_matrices
from widelimit.inference.early_stopping import combined_covariance, combined_variance, law_covariance, law_variance
from widelimit.inference.gradient_flow import EIGH, GradientFlow, check_solver, closed_form, stored
from widelimit.inference.krylov_flow import KrylovFlow, coefficients_toward, krylov_flow
from widelimit.inference.numerical_flow import MAX_STEPS, TOLERANCE
from widelimit.inference.traced import TracedEnsemble, is_traced, known_data, traced_ensemble
from widelimit.inference.training_set import EIGENVECTORS, TrainingSet, prediction_like, training_set
from widelimit.kernels.base import Kernel
from widelimit.kernels.network import nngp, ntk
from widelimit.shapes import Float
from widelimit.validation import Array

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from distributed import Client

COLUMNS = 32
"""Test points whose Lanczos bases grow together: each product reads the matrix once for all."""


class Ensemble(abc.ABC):
    """f_t(z) = f_0(z) + B_t(z) (y - f_0(X)), f_0 ~ GP(0, Sigma), B_t = Theta(z, X) gain_t(Theta(X, X)).

    Made by `trained_ensemble`. Outputs are independent with one covariance. Times as in `GradientFlow`:
    d theta/dt = -grad C, C = (1/n) sum |f(x_i) - y_i|^2.
    """

    flow: Any
    prior: Kernel

    @abc.abstractmethod
    def _terms(self, points: np.ndarray, times: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yield M, N, M C, (m, n) each, for every time: B Sigma(X, Z) = M N^T and B Sigma(X, X) B^T = M C M^T."""

    @abc.abstractmethod
    def _laws(self, points: np.ndarray, times: np.ndarray, *, whole: bool) -> np.ndarray:
        """Compute covariances (T, m, m) if `whole`, else variances (T, m)."""

    @property
    @abc.abstractmethod
    def _traced(self) -> TracedEnsemble:
        """Return the law for test points or times that JAX traces. Raises: TypeError."""

    def mean(self, Z: Float[Array, "m d"], t: float | Float[Array, " T"]) -> Float[Array, "*T m *c"]:
        """Compute B_t(Z) y: the flow of the NTK from f_0 = 0. Shapes and times as `GradientFlow.predict`."""
        return self.flow.predict(Z, t)  # type: ignore[no-any-return]

    @linalg.ignore_overflow()
    def covariance(self, Z: Float[Array, "m d"], t: float | Float[Array, " T"]) -> Float[Array, "*T m m"]:
        """Compute Sigma(Z, Z) - B Sigma(X, Z) - (B Sigma(X, Z))^T + B Sigma(X, X) B^T, B = B_t(Z).

        (m, m), or (T, m, m) for an array of times.
        t = 0 is the NNGP prior. Source: Lee et al. 2019, arXiv 1902.06720, section 2.3.
        """
        if validation.traced(Z, t):
            return self._traced.covariance(Z, t)
        points, times = self.flow.data.inputs(Z), validation.times(t)
        out = self._laws(points, np.atleast_1d(times), whole=True)
        return prediction_like(out if times.ndim else out[0], Z)

    @linalg.ignore_overflow()
    def variance(self, Z: Float[Array, "m d"], t: float | Float[Array, " T"]) -> Float[Array, "*T m"]:
        """Compute the diagonal of `covariance`, (m,) or (T, m), at O(m n^2) for each time; never negative.

        A variance smaller than the rounding error of the sum it comes from is 0.

        Raises: ArithmeticError: negative beyond rounding.
        """
        if validation.traced(Z, t):
            return self._traced.variance(Z, t)
        points, times = self.flow.data.inputs(Z), validation.times(t)
        out = self._laws(points, np.atleast_1d(times), whole=False)
        return prediction_like(out if times.ndim else out[0], Z)

    def _by_terms(self, points: np.ndarray, times: np.ndarray, *, whole: bool) -> np.ndarray:
        """Compute covariances or variances from `_terms`, on the host."""
        m, n = len(points), len(self.flow.data.X)
        size = (times.size + 4) * m * m + 4 * m * n if whole else (times.size + 3 * n) * m
        memory.require(8.0 * size, f"{times.size} {'co' * whole}variances of {m} points")
        with self.flow.data.here:
            prior = np.asarray(self.prior.gram(points) if whole else self.prior.diag(points))
            out, combine = np.empty((times.size, *prior.shape)), law_covariance if whole else law_variance
            for i, terms in enumerate(self._terms(points, times)):
                out[i] = combine(prior, *terms)
        return out


@final
@dataclass(frozen=True)
class TrainedEnsemble(Ensemble):
    """The law comes from the eigenvectors V of Theta(X, X), for every time: made by `trained_ensemble`."""

    flow: GradientFlow
    prior: Kernel
    modes: Any
    """V^T Sigma(X, X) V, a NumPy array, or one of JAX on the flow's device."""

    __getstate__, __setstate__ = devices.get_state, devices.set_state

    def __post_init__(self) -> None:
        validation.sealed(self)

    @property
    def _traced(self) -> TracedEnsemble:
        vectors = self.flow.host_vectors
        own = threads.product(threads.product(vectors, np.asarray(self.modes)), vectors.T)
        return TracedEnsemble(self.flow.traced(), known_data(self.flow.data._replace(kernel=self.prior)), own)

    def _terms(self, points: np.ndarray, times: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        tangent = self.flow.projected(points)
        between = threads.product(np.asarray(self.prior.cross(points, self.flow.data.X)), self.flow.host_vectors)
        for gain in self.flow.gain(times):
            moved = tangent * gain
            yield moved, between, threads.product(moved, self.modes)

    @functools.cached_property
    def _there(self) -> DeviceRows:
        """Return the rows of the prior on the flow's device."""
        vectors = self.flow.vectors
        assert isinstance(vectors, DeviceModes)
        return rows_on(vectors.rows.location, self.prior, self.flow.data.X)

    def _laws(self, points: np.ndarray, times: np.ndarray, *, whole: bool) -> np.ndarray:
        vectors = self.flow.vectors
        if not isinstance(vectors, DeviceModes):
            return self._by_terms(points, times, whole=whole)
        place, rows = vectors.rows.location, self._there
        prior = rows.gram(points) if whole else rows.diagonal(points)
        tangent, between = vectors.project(vectors.rows, points), vectors.project(rows, points)
        out = np.empty((times.size, *prior.shape))
        for i, gain in enumerate(self.flow.gain(times)):
            scale = devices.to_device(gain, place)
            with place.running():
                if whole:
                    both = ([part for _, part in each] for each in (tangent, between))
                    parts = [law_products(scale, *both, self.modes)]
                else:
                    pairs = zip(tangent, between, strict=True)
                    parts = [law_squares(scale, a, b, self.modes) for (_, a), (_, b) in pairs]
            found = zip(*parts, strict=True)
            crossing, square = (np.concatenate([devices.to_host(part, place) for part in each]) for each in found)
            inside = np.ix_(*map(range, prior.shape))
            combine = combined_covariance if whole else combined_variance
            out[i] = combine(len(self.modes), prior, crossing[inside], square[inside])
        return out


@final
@dataclass(frozen=True)
class KrylovEnsemble(Ensemble):
    """The law comes from products with Theta(X, X) and Sigma(X, X): made by `trained_ensemble` with solver="krylov".

    Each test point has a Lanczos basis of its own, some tens of products; all points share them, COLUMNS at a time.
    """

    flow: KrylovFlow
    prior: Kernel
    own: Operator
    """Sigma(X, X)."""

    @property
    def _traced(self) -> TracedEnsemble:
        raise TypeError('solver="krylov" cannot be traced by jax (jit, grad or vmap): pass solver="eigh".')

    def _terms(self, points: np.ndarray, times: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        data = self.flow.data
        memory.require(8.0 * (times.size + 3) * len(points) * len(data.X), f"{times.size} times {len(points)} points")
        parts = [data.cross(points[i : i + COLUMNS]).T for i in range(0, len(points), COLUMNS)]
        moved = np.concatenate([coefficients_toward(self.flow, part, times) for part in parts], axis=2)
        start = np.asarray(self.prior.cross(points, data.X))
        for each in moved:
            yield each.T, start, self.own.product(each).T

    def _laws(self, points: np.ndarray, times: np.ndarray, *, whole: bool) -> np.ndarray:
        return self._by_terms(points, times, whole=whole)


def trained_ensemble(
    net: Network,
    X: Float[Array, "n d"],
    y: Float[Array, "n *c"],
    *,
    solver: Literal["auto", "eigh", "krylov"] = "auto",
    matrix: Any = None,
    prior_matrix: Any = None,
    client: Executor | Client | None = None,
    device: Device = None,
) -> TrainedEnsemble | KrylovEnsemble:
    """Compute the Gaussian law, over initialisations, of infinitely wide networks trained by gradient flow to time t.

    Mean B_t(Z) y and covariance as in `TrainedEnsemble`; at t = 0 the NNGP prior, at t = inf interpolation. One
    eigendecomposition serves every time, or Lanczos for each test point. Computed in float64. Source: Lee et al. 2019,
    arXiv 1902.06720, section 2.3.

    Args:
        net: a network.
        X: (n, d) inputs.
        y: (n,) or (n, c) targets.
        solver: "eigh" (it holds four (n, n) matrices), "krylov", which reads stored matrices block by block and whose
            law is exact to 1e-8, or "auto": "krylov" with `matrix` above EIGH points.
        matrix: Theta(X, X), the NTK, stored already, as in `gradient_flow`.
        prior_matrix: Sigma(X, X), the NNGP, stored already; computed unless given.
        client: who computes products with `matrix`, as in `gradient_flow`.
        device: where work runs, and the matrices stay, as in `posterior`; eigenvectors are those of one device.

    Returns:
        A `TrainedEnsemble`, or a `KrylovEnsemble`, with mean, covariance and variance at (Z, t).

    Raises:
        TypeError, ValueError: bad data; a matrix that is not that of this kernel and these inputs.
        MemoryError: the kernel matrices or the eigenvectors do not fit.
    """
    tangent, prior = ntk(net), nngp(net)
    check_solver(solver, matrix if matrix is not None else prior_matrix, client)
    if is_traced(net, X, y):
        if solver == "krylov" or not (matrix is prior_matrix is device is None):
            raise TypeError(
                'where jax traces the data or the network, trained_ensemble has solver="eigh", no matrix and no device.'
            )
        return cast(TrainedEnsemble, traced_ensemble(tangent, prior, X, y))  # it has those methods
    given = matrix if matrix is not None else prior_matrix
    data = training_set(tangent, X, y, devices.choose_unless_stored(device, given, X, y))
    before = data._replace(kernel=prior)
    theta, sigma = stored(data, matrix, client), stored(before, prior_matrix, client, "prior_matrix")
    if solver == "krylov" or (solver == "auto" and theta is not None and len(data.X) > EIGH):
        with data.here:
            flow = krylov_flow(data, None, tolerance=TOLERANCE, max_steps=MAX_STEPS, stored=theta)
            return KrylovEnsemble(flow, prior, sigma or _operator(data, prior))
    if data.rows is None:
        require_matrices(len(data.X), 2 + EIGENVECTORS, "an ensemble")
    known = closed_form(data, None, theta)
    if isinstance(known.vectors, DeviceModes):
        return TrainedEnsemble(known, prior, known.vectors.turned(rows_on(known.vectors.rows.location, prior, data.X)))
    own_gram = sigma.dense() if sigma else before.gram()
    modes = threads.product(threads.product(known.vectors.T, own_gram), known.vectors)
    return TrainedEnsemble(known, prior, (modes + modes.T) / 2)


def _operator(data: TrainingSet, prior: Kernel) -> Operator:
    """Keep Sigma(X, X) where the data's matrix is kept."""
    if data.rows is not None:
        return device_rows.operator(rows_on(data.rows.location, prior, data.X))
    return operators.choose_operator(prior.prepared(data.X), data.X, data.X.dtype)
