"""Dot-product kernels on spheres have one eigenvalue for each degree of spherical harmonics (Funk and Hecke)."""

import math
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import scipy.special

from widelimit import validation
from widelimit.compute.linalg import EPS
from widelimit.inference.training_set import scalar_kernel
from widelimit.kernels.base import Kernel
from widelimit.shapes import Float

_FIRST, _LAST = 128, 1024
"""Quadrature nodes in theta beyond the number of degrees: in the first rule, and in the last that is doubled."""
_TOLERANCE = 1e-13
"""Agreement of two rules, relative to K(x, x), that ends refinement: some hundred roundings of the kernel's values."""
_RESOLVED = 1e-8
"""K(x, x) as interpolated from the nodes: a peak narrower than their spacing would be missed by every rule alike."""


@final
@dataclass(frozen=True)
class SphericalSpectrum:
    """K(x, x') = sum_k lambda_k sum_j Y_kj(x) Y_kj(x') on the sphere, Y orthonormal for the uniform probability.

    Made by `spherical_eigenvalues`.
    """

    degrees: np.ndarray
    eigenvalues: Float[np.ndarray, " D"]
    """lambda_k, in the kernel's unit."""
    multiplicities: Float[np.ndarray, " D"]
    """The number of harmonics of the degree k: sum_k multiplicity lambda_k = K(x, x)."""
    error: float
    """The error is absolute, for every eigenvalue: the last refinement's change, or rounding of the kernel's values."""
    trace: float
    """K(x, x)."""

    @property
    def times(self) -> Float[np.ndarray, " D"]:
        """Return 1/(2 lambda_k): the time in which gradient flow on many uniform points learns the degree to 1/e.

        In the unit of d theta/dt = -grad C, C the mean squared error. inf where lambda_k is within its error of 0:
        these frequencies are never learned.
        """
        lam = np.where(self.eigenvalues > self.error, self.eigenvalues, 0.0)
        with np.errstate(divide="ignore"):
            return np.asarray(1 / (2 * lam))

    @property
    def covered(self) -> float:
        """Return the share of K(x, x) in the degrees listed."""
        return float(np.sum(self.multiplicities * self.eigenvalues) / self.trace)

    def positive(self) -> Float[np.ndarray, " D"]:
        """Return True where an eigenvalue is above its error: all are, if the kernel is definite on the sphere."""
        return np.asarray(self.eigenvalues > self.error)


def multiplicity(dimension: int, degree: int) -> float:
    """Return the number of spherical harmonics of a degree in R^dimension: C(d+k-1, k) - C(d+k-3, k-2)."""
    d, k = dimension, degree
    return float(math.comb(d + k - 1, k) - (math.comb(d + k - 3, k - 2) if k >= 2 else 0))


def _legendre(dimension: int, highest: int, t: np.ndarray) -> np.ndarray:
    """Compute P_k(t) in R^dimension with P_k(1) = 1, (highest + 1, nodes): Gegenbauer polynomials, normalised.

    (k + d - 2) P_{k+1} = (2 k + d - 2) t P_k - k P_{k-1}; Mueller 1966, page 33.
    """
    values = np.ones((highest + 1, t.size))
    if highest >= 1:
        values[1] = t
    for k in range(1, highest):
        values[k + 1] = ((2 * k + dimension - 2) * t * values[k] - k * values[k - 1]) / (k + dimension - 2)
    return values


def _integrals(profile: Any, dimension: int, highest: int, nodes: int) -> tuple[np.ndarray, float]:
    """Compute lambda_k, and K(0) as the nodes see it.

    By Gauss-Legendre in theta, where kernels of kinked networks are analytic on [0, pi] (not in cos theta). The rule is
    symmetric about pi/2, so that even and odd parts do not mix. K(0) by the interpolating polynomial (barycentric):
    where it is not K(x, x), the nodes have missed something.
    """
    x, weights = np.polynomial.legendre.leggauss(nodes)
    theta = (x + 1) * (math.pi / 2)
    log_density = (dimension - 2) * np.log(np.sin(theta))
    log_total = scipy.special.gammaln((dimension - 1) / 2) - scipy.special.gammaln(dimension / 2)
    measure = weights * (math.pi / 2) * np.exp(log_density - log_total) / math.sqrt(math.pi)
    values = profile(theta)
    signs = np.where(np.arange(nodes) % 2, -1.0, 1.0)
    shares = signs * np.sqrt((1 - x**2) * weights) / (1 + x)
    at_zero = float(np.sum(shares * values) / np.sum(shares))
    return _legendre(dimension, highest, np.sin(-x * math.pi / 2)) @ (measure * values), at_zero


def spherical_eigenvalues(k: Kernel, *, dimension: int, degree: int, radius: float = 1.0) -> SphericalSpectrum:
    """lambda_k = (1/B) int_0^pi K(theta) P_k(cos theta) sin(theta)^(d-2) dtheta, B = int_0^pi sin(theta)^(d-2) dtheta.

    The eigenvalues of f -> E K(x, x') f(x') over x' uniform on the sphere of a radius in R^d, whose eigenfunctions are
    the spherical harmonics of degree k (Funk and Hecke). Gradient flow learns degrees in the order of lambda_k; the
    kernel is positive definite on the sphere if all are positive. The NTK of relu of depth 2 without bias has none of
    odd degree >= 3 (Bietti and Mairal 2019, arXiv 1905.12173; Basri et al. 2019, arXiv 1906.00425).

    Args:
        k: a kernel that depends only on the angle, on a sphere: of a network, linear, polynomial, rbf, laplace.
        dimension: d >= 2.
        degree: the highest, >= 0.
        radius: radius of the sphere, > 0, in the unit of the inputs.

    Returns:
        A `SphericalSpectrum` of the degrees 0 to `degree`.

    Raises:
        TypeError, ValueError: bad arguments; a kernel that is not a function of the angle.
        ArithmeticError: the integrals do not converge with 2048 nodes on top of the degrees.
    """
    scalar_kernel(k)
    dimension = validation.integer("dimension", dimension, at_least=2, below=2**20)
    degree = validation.integer("degree", degree, at_least=0, below=2**16)
    radius = float(validation.finite_scalar("radius", radius, above=0.0))

    def profile(theta: np.ndarray) -> np.ndarray:
        points = np.zeros((theta.size, dimension))
        points[:, 0], points[:, 1] = radius * np.cos(theta), radius * np.sin(theta)
        pole = np.zeros((1, dimension))
        pole[0, 0] = radius
        return np.asarray(k.cross(points, pole))[:, 0]

    trace = _check_zonal(k, profile, dimension, radius)
    nodes = _FIRST + degree
    before, _ = _integrals(profile, dimension, degree, nodes)
    while nodes <= _LAST + degree:
        nodes *= 2
        found, at_zero = _integrals(profile, dimension, degree, nodes)
        change = float(np.abs(found - before).max())
        if change <= _TOLERANCE * trace and abs(at_zero - trace) <= _RESOLVED * trace:
            degrees = np.arange(degree + 1)
            counts = np.array([multiplicity(dimension, i) for i in degrees.tolist()])
            error = max(change, 8 * EPS * trace)
            return SphericalSpectrum(degrees, found, counts, error, trace)
        before = found
    raise ArithmeticError(
        f"the eigenvalues still change by {change / trace:.1g} of K(x, x) with {nodes} nodes: the kernel is too rough "
        f"in the angle (a deep chaotic network, a short length scale)."
    )


def _check_zonal(k: Kernel, profile: Any, dimension: int, radius: float) -> float:
    """Return K(x, x) of a kernel that is the same for three random pairs of points and for those of `profile`."""
    U = np.random.default_rng(0).standard_normal((6, dimension))
    U *= radius / np.linalg.norm(U, axis=1, keepdims=True)
    diagonal = np.asarray(k.diag(U))
    trace = float(diagonal[0])
    if not np.isfinite(trace) or trace <= 0:
        raise ValueError(f"K(x, x) is {trace} on the sphere of radius {radius:g}; a positive finite number is needed.")
    cosines = np.clip(np.sum(U[:3] * U[3:], axis=1) / radius**2, -1, 1)
    here = np.diagonal(np.asarray(k.cross(U[:3], U[3:])))
    there = profile(np.arccos(cosines))
    # the angle from arccos of a rounded cosine is right to sqrt(eps) at worst, and kernels are Lipschitz in it
    gap = max(float(np.abs(here - there).max()), float(np.abs(diagonal - trace).max()))
    refuse_other_kernels(f"sphere of radius {radius:g}", gap, trace)
    return trace


def refuse_other_kernels(domain: str, gap: float, trace: float) -> None:
    """Refuse a kernel whose values at pairs of one angle differ by a gap beyond rounding. Raises: ValueError."""
    if gap > math.sqrt(EPS) * 10 * trace:
        raise ValueError(
            f"the kernel is no function of the angle on the {domain}: pairs at one angle differ by {gap:.3g} (a length "
            f"scale for each feature, a feature map, a precomputed matrix)."
        )
