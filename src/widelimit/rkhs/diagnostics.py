"""Diagnostics of a kernel on given points are definiteness, spectrum, power function, effective dimension."""

from dataclasses import dataclass
from typing import final

import numpy as np
import scipy.linalg

from widelimit import validation
from widelimit.compute import linalg, threads
from widelimit.inference.conditioning import posterior
from widelimit.inference.training_set import inputs_alone, points_of, prediction_like, scalar_kernel
from widelimit.kernels.base import Kernel
from widelimit.kernels.matrix_valued import MatrixKernel
from widelimit.shapes import Float
from widelimit.validation import Array


@final
@dataclass(frozen=True)
class Certificate:
    """The certificate shows if K(X, X) is positive semi-definite: v^T K v = eigenvalue for the unit vector v.

    Its truth value is `positive`. A negative eigenvalue on one set of points proves that the function is no kernel; a
    positive answer holds for these points only.
    """

    positive: bool
    eigenvalue: float
    """The smallest."""
    vector: Float[np.ndarray, " n"]
    largest: float
    tolerance: float
    """Rounding of the eigenvalues, 10 n eps times the largest: what is above its negative counts as 0."""

    def __bool__(self) -> bool:
        return self.positive


def is_positive_semidefinite(k: Kernel | MatrixKernel, X: Float[Array, "n d"]) -> Certificate:
    """Check sum_ij v_i v_j K(x_i, x_j) >= 0 for all v, by the smallest eigenvalue of K(X, X).

    A symmetric function for which this holds at all points is a reproducing kernel (Moore and Aronszajn); tanh(x.x') is
    none.

    Args:
        k: a kernel, or a matrix-valued one.
        X: (n, d) inputs.

    Returns:
        A `Certificate`: true or false, with the most negative eigenvalue and its vector.

    Raises:
        TypeError, ValueError: bad inputs; a kernel that is NaN or infinite there.
    """
    matrix = inputs_alone(k, X).gram(beside=3)
    with threads.limit_decomposition(len(matrix)):
        values, vectors = scipy.linalg.eigh(matrix, overwrite_a=True, check_finite=False, driver="evd")
    tolerance = 10 * linalg.rounding(len(values), max(float(values[-1]), 0.0))
    return Certificate(
        not linalg.indefinite(values), float(values[0]), vectors[:, 0].copy(), float(values[-1]), tolerance
    )


def eigenvalues(k: Kernel | MatrixKernel, X: Float[Array, "n d"]) -> Float[np.ndarray, " n"]:
    """Compute eigenvalues of K(X, X), largest first: the mode of lambda is learned in the time n/(2 lambda).

    Nothing is clipped: eigenvalues that should be 0 are rounding of either sign, up to n eps of the largest.

    Raises: TypeError, ValueError: bad inputs, or a kernel that is not positive semi-definite.
    """
    return linalg.eigenvalues(inputs_alone(k, X).gram(beside=1))[::-1]


def power_function(k: Kernel, X: Float[Array, "n d"], Z: Float[Array, "m d"]) -> Float[Array, " m"]:
    """P(z) = distance of K(., z) from the span of the K(., x_i) = sup over |f| <= 1, f(X) = 0, of |f(z)|.

    The standard deviation of the noiseless posterior: |f(z) - interpolant(z)| <= P(z) |f|_K for every f of the space.
    Source: Wu and Schaback 1993.

    Args:
        k: a kernel.
        X: (n, d) centers.
        Z: (m, d) inputs.

    Returns:
        (m,), >= 0; 0 at the centers.

    Raises:
        TypeError, ValueError: bad inputs; ArithmeticError: the kernel is not positive semi-definite.
    """
    points = np.asarray(points_of(k, "X", X), np.float64)
    post = posterior(scalar_kernel(k), points, np.zeros(len(points)))
    values = np.asarray(points_of(k, "Z", Z), np.float64)
    return prediction_like(np.sqrt(np.asarray(post.variance(values))), Z)


def effective_dimension(k: Kernel | MatrixKernel, X: Float[Array, "n d"], *, regularization: float) -> float:
    """tr K (K + n regularization)^{-1} = sum_i lambda_i/(lambda_i + n regularization), K = K(X, X).

    The degrees of freedom of `ridge`; the rank for regularization = 0. Source: Zhang 2005; Caponnetto and De Vito 2007.

    Args:
        k: a kernel, or a matrix-valued one.
        X: (n, d) inputs.
        regularization: >= 0.

    Raises:
        TypeError, ValueError: bad inputs, or a kernel that is not positive semi-definite.
    """
    weight = float(validation.finite_scalar("regularization", regularization, at_least=0.0))
    data = inputs_alone(k, X)
    values = linalg.eigenvalues(data.gram(beside=1))
    kept = values[values > linalg.rounding(len(values), values[-1])]
    return float(np.sum(kept / (kept + len(data.X) * weight)))
