"""Functions in the space of a kernel are sums sum_i a_i K(., x_i)."""

from dataclasses import dataclass, replace
from typing import Any, Self, final

import jax
import numpy as np

from widelimit import validation
from widelimit.compute import linalg, threads
from widelimit.compute.plan import require_matrices
from widelimit.inference.conditioning import posterior
from widelimit.inference.training_set import points_of, prediction_like, scalar_kernel, training_set
from widelimit.kernels.base import Kernel
from widelimit.shapes import Float
from widelimit.validation import Array


@final
@dataclass(frozen=True)
class Function:
    """f = sum_i a_i K(., x_i), with <f, g> = sum_ij a_i b_j K(x_i, z_j) and <f, K(., x)> = f(x).

    Functions of one kernel form a vector space: f + g, f - g, 2.0 * f. Of several outputs, (n, c) coefficients, inner
    products are summed over outputs. Computed in float64.

    Args:
        kernel: K.
        centers: x_i, (n, d).
        coefficients: a_i, (n,) or (n, c).

    Raises:
        TypeError, ValueError: not a kernel; centers or coefficients that are not finite or do not agree.
    """

    kernel: Kernel
    centers: Float[Array, "n d"]
    coefficients: Float[Array, "n *c"]

    def __post_init__(self) -> None:
        scalar_kernel(self.kernel)
        centers = np.asarray(points_of(self.kernel, "centers", self.centers), np.float64)
        a = np.asarray(validation.as_finite_floats("coefficients", self.coefficients), np.float64)
        if a.ndim not in (1, 2) or len(a) != len(centers):
            raise ValueError(f"coefficients must have shape ({len(centers)},) or ({len(centers)}, c), got {a.shape}.")
        object.__setattr__(self, "centers", validation.owned(centers))
        object.__setattr__(self, "coefficients", validation.owned(a))

    @linalg.ignore_overflow()
    def __call__(self, Z: Float[Array, "m d"]) -> Float[Array, "m *c"]:
        """f(Z) = K(Z, X) a: (m, d) -> (m,) or (m, c)."""
        points = np.asarray(points_of(self.kernel, "Z", Z), np.float64)
        return prediction_like(
            threads.product(np.asarray(self.kernel.cross(points, self.centers)), np.asarray(self.coefficients)), Z
        )

    def __add__(self, other: Self) -> Self:
        """Return f + g; centers that both have are merged, so that f - f has the norm 0."""
        self._check(other)
        centers = np.vstack([self.centers, other.centers])
        coefficients = np.concatenate([self.coefficients, other.coefficients])
        distinct, places = np.unique(centers, axis=0, return_inverse=True)
        merged = np.zeros((len(distinct), *coefficients.shape[1:]))
        np.add.at(merged, places.ravel(), coefficients)
        return replace(self, centers=distinct, coefficients=merged)

    def __sub__(self, other: Self) -> Self:
        return self + (-1.0) * other

    def __neg__(self) -> Self:
        return (-1.0) * self

    def __mul__(self, factor: float) -> Self:
        number = float(validation.finite_scalar("the factor of a function", factor))
        return replace(self, coefficients=number * np.asarray(self.coefficients))

    __rmul__ = __mul__

    def inner(self, other: Self) -> float:
        """<f, g>_K = sum_ij a_i K(x_i, z_j) b_j = a^T K(X, Z) b, summed over outputs.

        Raises: TypeError, ValueError: not a function of the same kernel and number of outputs.
        """
        self._check(other)
        (a, mine), (b, theirs) = (linalg.normalise(np.asarray(f.coefficients), axis=None) for f in (self, other))
        values = threads.product(np.asarray(self.kernel.cross(self.centers, other.centers)), b)
        return float(linalg.rescale(np.sum(a * values), mine + theirs))

    def squared_norm(self) -> float:
        """<f, f>_K = a^T K(X, X) a >= 0 (section 4.2 of the paper, where it is printed as the norm).

        A value smaller than its own rounding, n eps sum_ij |a_i| |K_ij| |a_j|, is 0; one beyond float64's range is inf.

        Raises: ArithmeticError: negative beyond rounding: the kernel is not positive semi-definite.
        """
        square, exponent = self._square()
        return float(linalg.rescale(square, 2 * exponent))

    def _square(self) -> tuple[np.ndarray, np.ndarray]:
        """Return <f, f> in units of 4^exponent, and the exponent."""
        require_matrices(len(self.centers), 2, "a norm")
        a, exponent = linalg.normalise(np.asarray(self.coefficients), axis=None)
        gram = np.asarray(self.kernel.gram(self.centers))
        square = np.array([np.sum(a * threads.product(gram, a))])
        error = linalg.rounding(len(a), 1.0) * np.sum(np.abs(a) * threads.product(np.abs(gram), np.abs(a)))
        return linalg.non_negative(square, np.array([error]))[0], exponent

    def norm(self) -> float:
        """|f|_K = sqrt(<f, f>_K). Raises: as `squared_norm`."""
        square, exponent = self._square()
        return float(linalg.rescale(np.sqrt(square), exponent))

    def distance(self, other: Self) -> float:
        """Return |f - g|_K. Raises: as `inner` and `squared_norm`."""
        self._check(other)
        return (self - other).norm()

    def _check(self, other: Self) -> None:
        if not isinstance(other, Function):
            raise TypeError(f"other: a wl.rkhs.Function is needed, got {validation.shown(other)}.")
        if not _equal(self.kernel, other.kernel):
            raise ValueError("the functions belong to different kernels; only functions of one space can be combined.")
        validation.same_features("the one function", np.asarray(self.centers), "the other", np.asarray(other.centers))
        if np.shape(self.coefficients)[1:] != np.shape(other.coefficients)[1:]:
            raise ValueError(
                f"the functions have outputs of shapes {np.shape(self.coefficients)[1:]} and "
                f"{np.shape(other.coefficients)[1:]}; they must agree."
            )


def _equal(a: Kernel, b: Kernel) -> bool:
    structures: list[Any] = [jax.tree.structure(a), jax.tree.structure(b)]
    if structures[0] != structures[1]:
        return False
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def interpolant(k: Kernel, X: Float[Array, "n d"], y: Float[Array, "n *c"]) -> Function:
    """Return K(., X) K(X, X)^+ y, the function of smallest norm among all with f(x_i) = y_i.

    The limit of `gradient_flow` from f_0 = 0 (Proposition 4.5 of the paper, corrected), and of `ridge` as its
    regularisation tends to 0.

    Args:
        k: a kernel; one that is only positive semi-definite will do for labels that it can interpolate.
        X: (n, d) inputs.
        y: (n,) or (n, c) values.

    Raises:
        TypeError, ValueError: bad data; values that cannot be interpolated (duplicate rows with different values, or
            off the range of a singular kernel matrix).
    """
    return ridge(k, X, y, regularization=0.0)


def ridge(k: Kernel, X: Float[Array, "n d"], y: Float[Array, "n *c"], *, regularization: float) -> Function:
    """Find argmin of (1/n) sum |f(x_i) - y_i|^2 + regularization |f|^2: K(., X) (K(X, X) + n regularization)^{-1} y.

    Over all functions of the space. The posterior mean of a Gaussian process with noise = n regularization.

    Args:
        k: a kernel.
        X: (n, d) inputs.
        y: (n,) or (n, c) values.
        regularization: >= 0; 0 is the interpolant.

    Raises:
        TypeError, ValueError: as `interpolant`.
    """
    weight = float(validation.finite_scalar("regularization", regularization, at_least=0.0))
    data = training_set(scalar_kernel(k), X, y)
    post = posterior(k, data.X, data.y, noise=len(data.X) * weight)
    return Function(k, data.X, post.weights[:, 0] if data.single else post.weights)
