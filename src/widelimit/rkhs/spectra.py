"""The spectrum of a kernel: eigenvalues of f -> E K(x, x') f(x') over random inputs x'."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import numpy as np
import scipy.special

from widelimit import validation
from widelimit.compute import linalg
from widelimit.compute.linalg import EPS
from widelimit.inference.training_set import scalar_kernel
from widelimit.kernels.base import Kernel
from widelimit.rkhs.diagnostics import eigenvalues
from widelimit.rkhs.spherical import refuse_other_kernels, spherical_eigenvalues
from widelimit.shapes import Float
from widelimit.validation import Array

DOMAINS = ("circle", "sphere", "hypercube")
_WIDEST = 1000
"""Dimension of a hypercube, whose binomials a float64 holds."""


@final
@dataclass(frozen=True)
class Spectrum:
    """K(x, x') = sum_i lambda_i sum_j phi_ij(x) phi_ij(x'), with phi_ij orthonormal under the law of the inputs.

    Made by `spectrum`, or by whoever knows the eigenvalues.

    Args:
        eigenvalues: lambda_i, (D,), >= 0, in the kernel's unit.
        multiplicities: number of eigenfunctions of each eigenvalue, (D,), > 0; 1 unless given.
        unseen: the share of E K(x, x) that is in no eigenvalue listed, in the kernel's unit, >= 0.
        error: absolute error of each eigenvalue.

    Raises:
        TypeError, ValueError: not such numbers, or shapes that do not agree.
    """

    eigenvalues: Float[np.ndarray, " D"]
    multiplicities: Float[np.ndarray, " D"] | None = None
    unseen: float = 0.0
    error: float = 0.0

    def __post_init__(self) -> None:
        values = validation.owned(validation.as_finite_floats("eigenvalues", self.eigenvalues), np.float64)
        counts = np.ones(values.shape) if self.multiplicities is None else self.multiplicities
        counts = validation.owned(validation.as_finite_floats("multiplicities", counts), np.float64)
        if values.ndim != 1 or not len(values) or (values < 0).any():
            raise ValueError(
                "eigenvalues must be numbers >= 0 of shape (D,); negative ones are rounding, or no kernel."
            )
        if counts.shape != values.shape or (counts <= 0).any():
            raise ValueError(f"multiplicities must be numbers > 0 of shape {values.shape}, got {counts.shape}.")
        object.__setattr__(self, "eigenvalues", values)
        object.__setattr__(self, "multiplicities", counts)
        for name in ("unseen", "error"):
            object.__setattr__(self, name, float(validation.finite_scalar(name, getattr(self, name), at_least=0.0)))
        with linalg.ignore_overflow():
            if not math.isfinite(self.trace):
                raise ValueError("the sum of multiplicities times eigenvalues leaves float64's range; check both.")

    @property
    def trace(self) -> float:
        """Return E K(x, x)."""
        return float(self.multiplicities @ self.eigenvalues) + self.unseen


def spectrum(
    k: Kernel,
    X: Float[Array, "n d"] | None = None,
    *,
    on: str | None = None,
    dimension: int = 2,
    degree: int = 100,
    radius: float = 1.0,
) -> Spectrum:
    """Compute lambda_i phi_i(x) = E K(x, x') phi_i(x'), exactly on a circle, a sphere or a hypercube, else from rows.

    On the circle and the sphere of R^dimension, for inputs uniform there, the levels are degrees of harmonics; on the
    corners of a hypercube, {-radius/sqrt(dimension), +radius/sqrt(dimension)}^dimension, they are degrees of parities
    (O'Donnell 2014). From n rows the eigenvalues are those of K(X, X)/n, largest first: the leading ones are right to
    a share of about 1/sqrt(n), those far down are too small.

    Args:
        k: a kernel; on a sphere or a hypercube one that depends on the angle alone.
        X: (n, d) rows of the inputs' law, where `on` is None.
        on: "circle", "sphere" or "hypercube".
        dimension: dimension of the inputs, >= 2, up to 1000 for a hypercube; 2 for the circle.
        degree: the highest, >= 0; a hypercube has `dimension` at most.
        radius: norm of the inputs, > 0, in their unit.

    Returns:
        A `Spectrum`; where higher degrees exist, `unseen` is their share of K(x, x).

    Raises:
        TypeError, ValueError: bad arguments; rows and a domain at once, or neither; a kernel that is not positive
            semi-definite, or not a function of the angle.
        ArithmeticError: as `spherical_eigenvalues`.
    """
    scalar_kernel(k)
    if (X is None) == (on is None):
        raise TypeError('spectrum needs rows X, or on="circle", "sphere" or "hypercube": one of the two.')
    if X is not None:
        values = eigenvalues(k, X)
        values = values / len(values)
        return Spectrum(np.maximum(values, 0.0), error=linalg.rounding(len(values), float(values[0])))
    validation.choice("on", on, DOMAINS)
    if on == "circle" and dimension != 2:
        raise ValueError(f'on="circle" has dimension=2, got {validation.shown(dimension)}; on="sphere" has others.')
    if on == "hypercube":
        return _on_hypercube(k, dimension, degree, radius)
    found = spherical_eigenvalues(k, dimension=dimension, degree=degree, radius=radius)
    if (found.eigenvalues < -found.error).any():
        raise ValueError(f"an eigenvalue is {found.eigenvalues.min():.3g}: the function is no kernel on the sphere.")
    values = np.where(found.eigenvalues > found.error, found.eigenvalues, 0.0)
    unseen = max(found.trace - float(found.multiplicities @ values), 0.0)
    return Spectrum(values, found.multiplicities, unseen, found.error)


def _on_hypercube(k: Kernel, dimension: int, degree: int, radius: float) -> Spectrum:
    """lambda_k = 2^-d sum_h K(h) sum_j (-1)^j C(k, j) C(d - k, h - j), h the number of signs that differ."""
    d = validation.integer("dimension", dimension, at_least=2, below=_WIDEST + 1)
    highest = min(validation.integer("degree", degree, at_least=0), d)
    side = float(validation.finite_scalar("radius", radius, above=0.0)) / math.sqrt(d)
    corners = side * np.where(np.arange(d + 1)[:, None] > np.arange(d), -1.0, 1.0)
    profile = np.asarray(k.cross(corners, corners[:1]), np.float64)[:, 0]
    _refuse_other_differences(k, corners, profile)
    log_share = scipy.special.gammaln(d + 1) - d * math.log(2)
    h = np.arange(d + 1)
    share = np.exp(log_share - scipy.special.gammaln(h + 1) - scipy.special.gammaln(d - h + 1))
    # P_k(h) = Krawtchouk's polynomial over its value at 0: |P| <= 1, (d - k) P_{k+1} = (d - 2 h) P_k - k P_{k-1}
    values, before, now = [], np.zeros(d + 1), np.ones(d + 1)
    for k_ in range(highest + 1):
        values.append(float(np.sum(share * profile * now)))
        before, now = now, ((d - 2 * h) * now - k_ * before) / max(d - k_, 1)
    trace, found = float(profile[0]), np.array(values)
    error = 8 * EPS * d * abs(trace)
    if (found < -error).any():
        raise ValueError(f"an eigenvalue is {found.min():.3g}: the function is no kernel on the hypercube.")
    found = np.where(found > error, found, 0.0)
    counts = np.array([float(math.comb(d, i)) for i in range(highest + 1)])
    unseen = trace - float(counts @ found)
    return Spectrum(found, counts, unseen if unseen > error else 0.0, error)


def _refuse_other_differences(k: Kernel, corners: np.ndarray, profile: np.ndarray) -> None:
    """Refuse a kernel that is not a function of the number of signs that differ, at 32 random pairs."""
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (64, corners.shape[1])) * abs(corners[0, 0])
    here = np.diagonal(np.asarray(k.cross(signs[:32], signs[32:])))
    there = profile[np.sum(signs[:32] != signs[32:], axis=1)]
    refuse_other_kernels("hypercube", float(np.abs(here - there).max()), abs(float(profile[0])))
