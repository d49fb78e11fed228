"""Functions with several outputs that depend on each other have kernels whose value K(x, x') is a c x c matrix."""

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self, final

import numpy as np

from widelimit import memory, validation
from widelimit.compute import threads
from widelimit.compute.linalg import EPS
from widelimit.kernels.base import Kernel, require_kernel
from widelimit.kernels.standard import ASYMMETRY, symmetric
from widelimit.shapes import Float
from widelimit.validation import Array


class MatrixKernel(abc.ABC):
    """K(x, x') in R^{c x c} has K(x, x')^T = K(x', x): the multi-dimensional kernel of section 3.4 of the paper.

    K(x, x')[a, b] is the covariance of output a at x with output b at x'. Results are NumPy arrays.
    """

    @property
    @abc.abstractmethod
    def outputs(self) -> int:
        """Return c, the number of outputs."""

    @abc.abstractmethod
    def block(self, X: np.ndarray, Y: np.ndarray) -> Float[np.ndarray, "n m c c"]:
        """Compute K for all pairs of rows of two arrays of inputs."""

    def at(self, X: Any) -> Self:
        """Return the kernel for inputs of the form of X; only kernels of a user's function take other than arrays."""
        return self

    def points(self, name: str, X: Any) -> Array:
        """Return inputs as rows (n, d) of floats; kernels of networks of images take images too."""
        return validation.points(name, X)

    def prepared(self, *inputs: Float[Array, "n d"]) -> Self:
        """Return the kernel with the data that only inputs determine, or itself if it needs none."""
        return self

    def gram(self, X: Float[Array, "n d"]) -> Float[np.ndarray, "n n c c"]:
        """Compute K(x_i, x_j): (n, d) -> (n, n, c, c), with gram[i, j] = gram[j, i]^T to the bit.

        Raises:
            TypeError, ValueError: bad inputs, or a kernel that is not symmetric or not finite.
            MemoryError: the result does not fit.
        """
        values = self.cross(X, X)
        mirror = values.transpose(1, 0, 3, 2)
        gap, largest = float(np.abs(values - mirror).max()), float(np.abs(values).max())
        if gap > ASYMMETRY * float(np.finfo(values.dtype).eps) * largest:
            raise ValueError(f"K(x, x')^T and K(x', x) differ by {gap:g}, the largest entry is {largest:g}.")
        return np.asarray((values + mirror) / 2)

    def cross(self, X: Float[Array, "n d"], Y: Float[Array, "m d"]) -> Float[np.ndarray, "n m c c"]:
        """Compute K(x_i, y_j): (n, d), (m, d) -> (n, m, c, c). Raises: as `gram`."""
        x = self.points("X", X)
        points = validation.two_blocks(x, x if Y is X else self.points("Y", Y))
        kernel = self.prepared(*points)
        shape = (len(points[0]), len(points[1]), kernel.outputs, kernel.outputs)
        memory.require(8.0 * np.prod(shape, dtype=float), f"a {' x '.join(map(str, shape))} kernel")
        values = kernel.block(*points)
        if values.shape != shape:
            raise ValueError(f"a kernel of {shape[-1]} outputs must return shape {shape} here, got {values.shape}.")
        return np.asarray(validation.as_finite_floats("K(X, Y)", values))

    def diag(self, X: Float[Array, "n d"]) -> Float[np.ndarray, "n c c"]:
        """Compute K(x_i, x_i): (n, d) -> (n, c, c). Raises: as `gram`."""
        rows = np.asarray(self.points("X", X))
        return np.concatenate([self.gram(row[None])[0] for row in rows])


@final
@dataclass(frozen=True)
class Separable(MatrixKernel):
    """The kernel is K(x, x') B; made by `separable`."""

    kernel: Kernel
    mixing: np.ndarray

    @property
    def outputs(self) -> int:
        return len(self.mixing)

    def points(self, name: str, X: Any) -> Array:
        return self.kernel.points(name, X)

    def block(self, X: np.ndarray, Y: np.ndarray) -> Float[np.ndarray, "n m c c"]:
        scalar = self.kernel.gram(X) if X is Y else self.kernel.cross(X, Y)
        return np.asarray(np.asarray(scalar)[:, :, None, None] * self.mixing)


@final
@dataclass(frozen=True)
class MatrixFunction(MatrixKernel):
    """A matrix-valued kernel is made from a function by `matrix_valued`."""

    function: Callable[[np.ndarray, np.ndarray], Any]
    count: int

    @property
    def outputs(self) -> int:
        return self.count

    def block(self, X: np.ndarray, Y: np.ndarray) -> Float[np.ndarray, "n m c c"]:
        return np.asarray(self.function(X, Y))


def separable(k: Kernel, mixing: Float[Array, "c c"]) -> Separable:
    """K(x, x') = k(x, x') B: outputs that share a kernel and have the covariance B.

    The NTK of an infinitely wide network with c outputs is the case B = identity.

    Args:
        k: a kernel.
        mixing: B, (c, c), symmetric positive semi-definite to 64 eps.

    Raises:
        TypeError, ValueError: not a kernel; B not symmetric positive semi-definite.
    """
    require_kernel(k)
    given = validation.concrete_points("mixing", mixing).astype(np.float64, copy=False)
    matrix = np.asarray(symmetric("mixing", given))
    with threads.limit_decomposition(len(matrix)):
        smallest = float(np.linalg.eigvalsh(matrix)[0])
    if smallest < -ASYMMETRY * EPS * float(np.abs(matrix).max()):
        raise ValueError(f"mixing must be positive semi-definite, its smallest eigenvalue is {smallest:g}.")
    return Separable(k, matrix)


def matrix_valued(function: Callable[[np.ndarray, np.ndarray], Any], *, outputs: int) -> MatrixFunction:
    """Make K(x, x') in R^{c x c} from a function of two blocks of inputs.

    Args:
        function: maps (n, d) and (m, d) inputs to (n, m, c, c) with K(x, x')^T = K(x', x), such as the empirical NTK
            sum_p df_a(x)/dp df_b(x')/dp.
        outputs: c >= 1.

    Raises:
        TypeError, ValueError: not a function; outputs not an integer >= 1.
    """
    if not callable(function):
        raise TypeError(f"a function of two blocks of inputs is needed, got {type(function).__name__}.")
    return MatrixFunction(function, validation.integer("outputs", outputs, at_least=1))
