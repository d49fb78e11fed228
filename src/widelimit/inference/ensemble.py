"""Infinitely wide networks have a law: that of the trained outputs over random initialisations."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, cast, final

import numpy as np

from widelimit import memory, validation
from widelimit.architecture.network import Network
from widelimit.compute import devices, linalg, threads
from widelimit.compute.device_modes import DeviceModes, law_products, law_squares
from widelimit.compute.device_rows import DeviceRows, rows_on
from widelimit.compute.devices import Device
from widelimit.compute.plan import require_matrices
from widelimit.inference.early_stopping import combined_covariance, combined_variance, law_covariance, law_variance
from widelimit.inference.gradient_flow import GradientFlow, closed_form
from widelimit.inference.traced import TracedEnsemble, is_traced, known_data, traced_ensemble
from widelimit.inference.training_set import EIGENVECTORS, prediction_like, training_set
from widelimit.kernels.base import Kernel
from widelimit.kernels.network import nngp, ntk
from widelimit.shapes import Float
from widelimit.validation import Array


@final
@dataclass(frozen=True)
class TrainedEnsemble:
    """f_t(z) = f_0(z) + B_t(z) (y - f_0(X)), f_0 ~ GP(0, Sigma), B_t = Theta(z, X) V gain(t) V^T.

    Made by `trained_ensemble`. Outputs are independent with one covariance. Times as in `GradientFlow`:
    d theta/dt = -grad C, C = (1/n) sum |f(x_i) - y_i|^2.
    """

    flow: GradientFlow
    prior: Kernel
    modes: Any
    """V^T Sigma(X, X) V, a NumPy array, or one of JAX on the flow's device."""

    __getstate__, __setstate__ = devices.get_state, devices.set_state

    def __post_init__(self) -> None:
        validation.sealed(self)

    def mean(self, Z: Float[Array, "m d"], t: float | Float[Array, " T"]) -> Float[Array, "*T m *c"]:
        """Compute B_t(Z) y: the flow of the NTK from f_0 = 0. Shapes and times as `GradientFlow.predict`."""
        return self.flow.predict(Z, t)

    @linalg.ignore_overflow()
    def covariance(self, Z: Float[Array, "m d"], t: float | Float[Array, " T"]) -> Float[Array, "*T m m"]:
        """Compute Sigma(Z, Z) - B Sigma(X, Z) - (B Sigma(X, Z))^T + B Sigma(X, X) B^T, B = B_t(Z).

        (m, m), or (T, m, m) for an array of times.
        t = 0 is the NNGP prior. Source: Lee et al. 2019, arXiv 1902.06720, section 2.3.
        """
        if validation.traced(Z, t):
            return self._traced.covariance(Z, t)
        points, times = self.flow.data.inputs(Z), validation.times(t)
        if self._there is not None:
            return self._on_device(self._there, points, times, Z, law_products, combined_covariance)
        m, n = len(points), len(self.modes)
        memory.require(8.0 * ((times.size + 4) * m * m + 4 * m * n), f"{times.size} covariances of {m} points")
        prior = np.asarray(self.prior.gram(points))
        tangent, between = self._projections(points)
        out = np.empty((times.size, len(points), len(points)))
        for i, gain in enumerate(self.flow.gain(np.atleast_1d(times))):
            out[i] = law_covariance(prior, tangent * gain, between, self.modes)
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
        if self._there is not None:
            return self._on_device(self._there, points, times, Z, law_squares, combined_variance)
        memory.require(8.0 * (times.size + 3 * len(self.modes)) * len(points), f"variances of {len(points)} points")
        prior = np.asarray(self.prior.diag(points))
        tangent, between = self._projections(points)
        out = np.empty((times.size, len(points)))
        for i, gain in enumerate(self.flow.gain(np.atleast_1d(times))):
            out[i] = law_variance(prior, tangent * gain, between, self.modes)
        return prediction_like(out if times.ndim else out[0], Z)

    @functools.cached_property
    def _there(self) -> DeviceRows | None:
        """Return the rows of the prior where the flow's lie on a device."""
        vectors = self.flow.vectors
        if not isinstance(vectors, DeviceModes):
            return None
        return rows_on(vectors.rows.location, self.prior, self.flow.data.X)

    def _on_device(
        self, rows: DeviceRows, points: np.ndarray, times: np.ndarray, Z: Any, law: Any, combine: Any
    ) -> Array:
        """Compute covariances or variances from products that a program `law` makes on the device."""
        vectors, whole = self.flow.vectors, law is law_products
        assert isinstance(vectors, DeviceModes)
        place = vectors.rows.location
        prior = rows.gram(points) if whole else rows.diagonal(points)
        tangent, between = vectors.project(vectors.rows, points), vectors.project(rows, points)
        out = np.empty((times.size, *prior.shape))
        for i, gain in enumerate(self.flow.gain(np.atleast_1d(times))):
            scale = devices.to_device(gain, place)
            with place.running():
                if whole:
                    parts = [law(scale, *([part for _, part in each] for each in (tangent, between)), self.modes)]
                else:
                    parts = [law(scale, a, b, self.modes) for (_, a), (_, b) in zip(tangent, between, strict=True)]
            found = zip(*parts, strict=True)
            crossing, square = (np.concatenate([devices.to_host(part, place) for part in each]) for each in found)
            inside = np.ix_(*map(range, prior.shape))
            out[i] = combine(len(self.modes), prior, crossing[inside], square[inside])
        return prediction_like(out if times.ndim else out[0], Z)

    @property
    def _traced(self) -> TracedEnsemble:
        vectors = self.flow.host_vectors
        own = threads.product(threads.product(vectors, np.asarray(self.modes)), vectors.T)
        return TracedEnsemble(self.flow.traced(), known_data(self.flow.data._replace(kernel=self.prior)), own)

    def _projections(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Compute Theta(Z, X) V and Sigma(Z, X) V."""
        between = threads.product(np.asarray(self.prior.cross(points, self.flow.data.X)), self.flow.host_vectors)
        return self.flow.projected(points), between


def trained_ensemble(
    net: Network, X: Float[Array, "n d"], y: Float[Array, "n *c"], *, device: Device = None
) -> TrainedEnsemble:
    """Compute the Gaussian law, over initialisations, of infinitely wide networks trained by gradient flow to time t.

    Mean B_t(Z) y and covariance as in `TrainedEnsemble`; at t = 0 the NNGP prior, at t = inf interpolation. One
    eigendecomposition serves every time. Computed in float64. Source: Lee et al. 2019, arXiv 1902.06720, section 2.3.

    Args:
        net: a network.
        X: (n, d) inputs.
        y: (n,) or (n, c) targets.
        device: where work runs, and the matrices stay, as of `posterior`; of several devices the first.

    Returns:
        A `TrainedEnsemble` with mean, covariance and variance at (Z, t).

    Raises:
        TypeError, ValueError: bad data; MemoryError: the kernel matrices or the eigenvectors do not fit.
    """
    tangent, prior = ntk(net), nngp(net)
    if is_traced(net, X, y):
        if device is not None:
            raise TypeError("device: not where jax traces the data or the network; leave that out.")
        return cast(TrainedEnsemble, traced_ensemble(tangent, prior, X, y))  # it has those methods
    data = training_set(tangent, X, y, devices.choose(device, X=X, y=y))
    if data.rows is None:
        require_matrices(len(data.X), 2 + EIGENVECTORS, "an ensemble")
    flow = closed_form(data, None)
    if isinstance(flow.vectors, DeviceModes):
        there = rows_on(flow.vectors.rows.location, prior, data.X)
        return TrainedEnsemble(flow, prior, flow.vectors.turned(there))
    own = flow.data._replace(kernel=prior).gram()
    modes = threads.product(threads.product(flow.vectors.T, own), flow.vectors)
    return TrainedEnsemble(flow, prior, (modes + modes.T) / 2)
