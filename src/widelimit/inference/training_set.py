"""Training data are checked here, as all inference takes them."""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, NamedTuple, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from widelimit import memory, validation
from widelimit.arithmetic import arithmetic
from widelimit.compute import devices, linalg, threads, tiles
from widelimit.compute.device_rows import DeviceRows, operator, rows_on
from widelimit.compute.operators import Operator, Recomputed, StoredOperator
from widelimit.compute.plan import require_matrices
from widelimit.kernels.base import Kernel, require_kernel
from widelimit.kernels.matrix_valued import MatrixKernel
from widelimit.lossless import is_sparse
from widelimit.progress import Report, no_progress
from widelimit.shapes import Float
from widelimit.validation import Array

EIGENVECTORS = 3
"""Matrices that `linalg.eigenpairs` takes beside the one that it overwrites."""
ROWS = 2048
"""Test points whose kernel with the training points is held at once."""
Function = Callable[[np.ndarray], Any]
P = ParamSpec("P")
R = TypeVar("R")


class Prediction(NamedTuple):
    """A prediction is mean and variance of f at test points."""

    mean: Float[Array, "m *c"]
    variance: Float[Array, " m"]
    """The variance is that of f, without observation noise, as `Posterior.variance`."""


class TrainingSet(NamedTuple):
    """The data are X (n, d) and y (n, c), checked, in float64, read-only copies; `single` says that y came as (n,).

    The kernel of c independent outputs is one (n, n) matrix that acts on (n, c) values. A matrix-valued kernel is one
    (n c, n c) matrix that acts on the same values folded to (n c, 1).
    """

    kernel: Kernel | MatrixKernel
    X: np.ndarray
    y: np.ndarray
    single: bool
    rows: DeviceRows | None = None
    """The rows lie on devices, which compute and keep all matrices; None: the host does."""
    location: devices.Location | None = None
    """The place where work runs was chosen when the data were given."""

    @property
    def here(self) -> AbstractContextManager[Any]:
        """Return a context in which JAX computes NumPy arrays at the location."""
        return nullcontext() if self.location is None else self.location.default()

    @property
    def coupled(self) -> int:
        """Return the number of outputs that the kernel's matrix couples: c for a matrix-valued kernel, else 1."""
        return self.kernel.outputs if isinstance(self.kernel, MatrixKernel) else 1

    @property
    def error(self) -> float:
        """Return `table_error` of the kernel."""
        return self.kernel.table_error if isinstance(self.kernel, Kernel) else 0.0

    def fold(self, values: np.ndarray) -> np.ndarray:
        """Fold (m, c) values as the kernel's matrix acts on them: (m, c) or (m c, 1)."""
        return values.reshape(len(values) * self.coupled, -1)

    def unfold(self, values: np.ndarray) -> np.ndarray:
        """Unfold values (..., m, c) from folded ones."""
        return values.reshape(*values.shape[:-2], -1, self.y.shape[1])

    def expansion(self, points: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
        """Compute K(Z, X) coefficients, (n, c) -> (m, c)."""
        return (
            expansion(self.cross, points, coefficients)
            if self.rows is None
            else self.rows.expansion(points, coefficients)
        )

    def inputs(self, Z: Any) -> np.ndarray:
        """Return test inputs (m, d) in float64, checked against X."""
        if self.rows is not None:
            devices.require_here("Z", Z, self.rows.location)
        Z = points_of(self.kernel, "Z", Z)
        validation.same_features("Z", Z, "X", self.X)
        return np.asarray(Z, np.float64)

    def gram(self, *, beside: float = 0.0, report: Report = no_progress) -> np.ndarray:
        """Compute K(X, X), (n, n) or (n c, n c), checked: a kernel that leaves float64's range is refused.

        beside: matrices of this size that what follows needs, EIGENVECTORS say. Raises: MemoryError: they do not fit.
        """
        require_matrices(len(self.X) * self.coupled, 1 + beside, "what follows from the kernel matrix")
        if isinstance(self.kernel, MatrixKernel):
            with self.here:
                return _flat(self.kernel.gram(self.X))
        self.check_diagonal()
        matrix = self._compute(tiles.gram, report)
        linalg.refuse_non_finite(matrix)
        return matrix

    def lower_gram(self, *, report: Report = no_progress) -> np.ndarray:
        """Compute the lower triangle of `gram` in an (n, n) array; `check_diagonal` and `linalg.cholesky` check it."""
        return self._compute(tiles.lower_gram, report)

    @property
    def has_only_pairs(self) -> bool:
        """Return True if the kernel has no quicker way to a whole matrix than pairs."""
        return isinstance(self.kernel, Kernel) and type(self.kernel).gram is Kernel.gram

    def _compute(self, form: Callable[..., np.ndarray], report: Report) -> np.ndarray:
        kernel = scalar_kernel(self.kernel)
        with self.here:
            if self.has_only_pairs:
                return form(kernel.prepared(self.X), self.X, report=report)
            return np.array(kernel.gram(self.X))

    def matrix(self) -> Operator:
        """Return K(X, X) to be multiplied with, computed again: as a whole where that is quicker and fits."""
        if self.rows is not None:
            return operator(self.rows)
        kernel = scalar_kernel(self.kernel)
        if self.has_only_pairs or 8 * len(self.X) ** 2 > memory.available():
            return Recomputed(kernel.prepared(self.X), self.X)
        return StoredOperator(kernel.gram(self.X))

    def check_diagonal(self) -> np.ndarray:
        """Compute K(x, x) of all rows, (n,). Raises: ValueError: the kernel leaves float64's range there."""
        with self.here:
            diagonal = np.asarray(self.kernel.diag(self.X)) if self.rows is None else self.rows.diagonal(self.X)
        if np.isnan(diagonal).any():
            raise ValueError(f"K(x, x) is NaN at row {int(np.argmax(np.isnan(diagonal)))} of X.")
        if not np.isfinite(diagonal).all():
            raise ValueError(f"K(x, x) is {diagonal.max()} at row {int(np.argmax(diagonal))} of X; scale X down.")
        if not diagonal.any() and self.X.any():
            raise ValueError(
                "K(x, x) underflows to 0 at every row of X; scale X up. If all layers of the network are Frozen, its "
                "NTK is 0: take the NNGP."
            )
        return diagonal

    def cross(self, points: np.ndarray) -> np.ndarray:
        """Compute K(Z, X) for (m, d) test inputs, (m, n) or (m c, n c)."""
        if self.rows is not None:
            return self.rows.cross(points)
        with self.here:
            values = np.asarray(self.kernel.cross(points, self.X))
        return _flat(values) if isinstance(self.kernel, MatrixKernel) else values

    def diagonal(self, points: np.ndarray) -> np.ndarray:
        """Compute K(z, z) for (m, d) test inputs, (m,)."""
        if self.rows is not None:
            return self.rows.diagonal(points)
        with self.here:
            return tiles.diagonal(scalar_kernel(self.kernel).prepared(points), points, beside=len(self.X))

    def outputs(self, values: np.ndarray, Z: Any) -> Array:
        """Return (..., c) results, without the last axis if y had none; then as `prediction_like`."""
        return prediction_like(values[..., 0] if self.single else values, Z)

    def rest(self, start: np.ndarray) -> np.ndarray:
        """Return y - start, folded, for (n, c) values of f_0. Raises: ValueError: it leaves float64's range."""
        return self.fold(difference("y - f_0(X)", self.y, start))

    def start(self, initial: Function | None, points: np.ndarray) -> np.ndarray:
        """Compute f_0 at (m, d) points, (m, c); 0 unless given."""
        count = self.y.shape[1]
        if initial is None:
            return np.zeros((len(points), count))
        return evaluate("initial", initial, points, count=count, single=self.single)

    def functions(self, initial: Function | None, alphas: np.ndarray, points: np.ndarray) -> np.ndarray:
        """Compute f_0(Z) + K(Z, X) alpha for every alpha of (T, n, c) at (m, d) points: (T, m, c)."""
        count, columns = len(alphas), self.y.shape[1] // self.coupled
        joined = alphas.reshape(count, -1, columns).transpose(1, 0, 2).reshape(-1, count * columns)
        moved = self.expansion(points, np.ascontiguousarray(joined)).reshape(-1, count, columns)
        return np.asarray(self.start(initial, points) + self.unfold(moved.transpose(1, 0, 2)))


def at_location(method: Callable[P, R]) -> Callable[P, R]:
    """Return a method of an object that has `data`: JAX computes NumPy arrays where these are."""

    @functools.wraps(method)
    def run(*arguments: P.args, **settings: P.kwargs) -> R:
        owner: Any = arguments[0]
        with owner.data.here:
            return method(*arguments, **settings)

    return run


def row_blocks(count: int) -> list[slice]:
    """Cut `count` rows into blocks of ROWS."""
    return [slice(i, i + ROWS) for i in range(0, count, ROWS)]


def expansion(cross: Callable[[np.ndarray], np.ndarray], points: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    """Compute K(Z, X) coefficients, where cross(Z) is K(Z, X), ROWS of Z at a time."""
    return np.concatenate([threads.product(cross(points[part]), coefficients) for part in row_blocks(len(points))])


def _flat(blocks: np.ndarray) -> np.ndarray:
    """Reshape (n, m, c, c) blocks to one (n c, m c) matrix."""
    n, m, c, _ = blocks.shape
    return np.asarray(blocks.transpose(0, 2, 1, 3).reshape(n * c, m * c), np.float64)


def evaluate(name: str, function: Function, points: np.ndarray, *, count: int, single: bool) -> np.ndarray:
    """Evaluate a user's function at (m, d) points, checked, (m, count)."""
    shape = (len(points), count)
    values = np.asarray(validation.as_float_array(f"the result of {name}", function(points)), np.float64)
    if values.shape != shape and not (single and values.shape == shape[:1]):
        raise ValueError(
            f"{name} must map ({shape[0]}, {points.shape[1]}) inputs to shape "
            f"{shape[:1] if single else shape}, as y has; it returned shape {values.shape}."
        )
    if not np.isfinite(values).all():
        raise ValueError(f"{name} returned NaN or infinite values.")
    return values.reshape(shape)


def difference(name: str, y: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return y - values, (n, c). Raises: ValueError: it leaves float64's range, or a sum over it does."""
    with np.errstate(over="ignore"):
        rest = y - values
    validation.refuse_unsummable(name, rest)
    return np.asarray(rest)


def prediction_like(values: np.ndarray, Z: Any) -> Array:
    """Return the values as a JAX array where Z is one (of its dtype), else as they are. Raises: as `check_finite`."""
    if validation.is_jax(Z):
        with linalg.ignore_overflow():
            values = np.asarray(values, Z.dtype)
    return array_like(check_finite(values, Z), Z)


def array_like(values: np.ndarray, Z: Any) -> Array:
    """Convert as `prediction_like`, finite or not."""
    if not validation.is_jax(Z):
        return values
    with arithmetic(Z.dtype == np.float64):
        found = jnp.asarray(values, Z.dtype)
        one = Z.committed and len(Z.devices()) == 1
        return jax.device_put(found, *Z.devices()) if one else found


def check_finite(values: np.ndarray, Z: Any) -> np.ndarray:
    """Return the values at test inputs Z, if they are finite; a row of Z is of any shape, or what a network packs.

    Raises: ValueError: they are not, and which row of Z is the farthest.
    """
    if np.isfinite(values).all():
        return values
    size = [_largest(row) for row in (Z if isinstance(Z, list | tuple) else np.asarray(Z))]
    row = int(np.argmax(size))
    raise ValueError(
        f"the prediction leaves the range of a float: row {row} of the new inputs, with an entry of size "
        f"{size[row]:.3g}, is too far from the training inputs (or y is too large). Leave it out, or check its unit."
    )


def _largest(row: Any) -> float:
    """Return the largest absolute entry of an input: an array, (signals, adjacency) or a networkx graph."""
    if type(row).__module__.startswith("networkx"):
        return _largest([value for _, value in row.nodes(data="features")])
    if isinstance(row, list | tuple):
        return max(map(_largest, row), default=0.0)
    if row is None or is_sparse(row):
        return 0.0
    return float(np.max(np.abs(np.asarray(row, np.float64)), initial=0.0))


def scalar_kernel(kernel: Any) -> Kernel:
    """Return the kernel, if it is one of scalar values. Raises: TypeError."""
    if isinstance(kernel, MatrixKernel):
        raise TypeError(f"{type(kernel).__name__} is matrix-valued; here the outputs are independent: pass its kernel.")
    return require_kernel(kernel)


def points_of(kernel: Any, name: str, X: Any) -> Array:
    """Return the inputs of a kernel as rows (n, d), not traced. Raises: TypeError, ValueError."""
    X = validation.concrete(name, X)
    return kernel.points(name, X) if isinstance(kernel, Kernel | MatrixKernel) else validation.points(name, X)


def training_set(
    kernel: Kernel | MatrixKernel, X: Any, y: Any, location: devices.Location | None = None
) -> TrainingSet:
    """Check and copy everything that training needs; the rows to a location that is not the host.

    Raises: TypeError, ValueError, MemoryError, as `Kernel.gram`.
    """
    kernel = kernel.at(X) if isinstance(kernel, Kernel | MatrixKernel) else kernel
    X = points_of(kernel, "X", X)
    memory.require(8.0 * X.size, f"a copy of X, {X.shape[0]} x {X.shape[1]} numbers,")
    X = validation.owned(X, np.float64)
    kernel = kernel.prepared(X) if isinstance(kernel, MatrixKernel) else scalar_kernel(kernel)
    targets = validation.targets("y", y, len(X))
    data = TrainingSet(kernel, X, targets.reshape(len(X), -1), targets.ndim == 1)
    if data.coupled not in (1, data.y.shape[1]) or (data.single and data.coupled > 1):
        raise ValueError(f"the kernel has {data.coupled} outputs and y has shape {targets.shape}; they must agree.")
    if location is None or location.host:
        return data._replace(location=location)
    with location.default():
        elsewhere = not data.has_only_pairs or scalar_kernel(kernel).prepared(X).eager
    if elsewhere:
        why = "whose code computes this kernel, and which keeps its matrix"
        return data._replace(location=replace(devices.choose("cpu"), host=True, why=why))
    return data._replace(rows=rows_on(location, kernel, X), location=location)


def inputs_alone(kernel: Kernel | MatrixKernel, X: Any) -> TrainingSet:
    """Check inputs that have no targets; y is 0. Raises: as `training_set`."""
    kernel = kernel.at(X) if isinstance(kernel, Kernel | MatrixKernel) else kernel
    points = np.asarray(points_of(kernel, "X", X), np.float64)
    outputs = kernel.prepared(points).outputs if isinstance(kernel, MatrixKernel) else 1
    return training_set(kernel, points, np.zeros((len(points), outputs)))


def evenly(n: int, count: int) -> np.ndarray:
    """Return at most `count` of n row numbers, evenly spaced."""
    return np.arange(n) if n <= count else np.linspace(0, n - 1, count).round().astype(int)
