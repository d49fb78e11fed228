"""Rows of data have a tangent kernel K = F F^T, which is used by products with vectors, without its matrix."""

import abc
import functools
from typing import Any, Literal, NamedTuple, final

import numpy as np

from widelimit import memory, validation
from widelimit.compute import linalg, threads
from widelimit.shapes import Float
from widelimit.tangents.batches import Batch
from widelimit.tangents.gradients import Gradients

Output = Literal["full", "trace"]
EXACT = 1024
"""Size of K up to which its eigenvalues are computed instead of estimates by random vectors."""
PROBES = 32
"""Random vectors in an estimate."""
STRIP = 256
"""Rows at once in products, which store no gradients of single rows."""


class Estimate(NamedTuple):
    """An estimate has a standard error, 0 where the value is exact."""

    value: float
    error: float


class TangentRows(abc.ABC):
    """The rows have K(x, x')[a, b] = df_a(x)/dtheta . df_b(x')/dtheta, a matrix of (n c, n c) values ("full").

    Value (i, a) stands at i c + a. With output="trace" it is the mean over outputs, (1/c) sum_a K(x, x')[a, a], (n, n).
    """

    model: Gradients
    signature: tuple[Any, ...]
    values: Float[np.ndarray, "n c"]
    """f at the rows."""
    output: Output

    @property
    def size(self) -> int:
        """Return N: n c for "full", n for "trace"."""
        return self.values.size if self.output == "full" else len(self.values)

    @abc.abstractmethod
    def diag(self) -> Float[np.ndarray, " N"]:
        """Compute the diagonal of `matrix`."""

    @abc.abstractmethod
    def matrix(self, other: Any = None) -> Float[np.ndarray, "N M"]:
        """Compute K with other rows of the same model and kind, these rows themselves unless given.

        Raises: ValueError: rows of another model or kind; MemoryError: it does not fit.
        """

    @abc.abstractmethod
    def times(self, v: Float[np.ndarray, "N s"]) -> Float[np.ndarray, "N s"]:
        """Compute `product` of checked vectors."""

    @abc.abstractmethod
    def spectrum(self) -> Float[np.ndarray, " r"] | None:
        """Compute all eigenvalues of K that may differ from 0; None where that takes a large matrix."""

    def product(self, v: Float[np.ndarray, "N *s"]) -> Float[np.ndarray, "N *s"]:
        """Compute K v without K, (N,) or (N, s). Raises: TypeError, ValueError: v."""
        values = np.asarray(validation.as_finite_floats("v", validation.concrete("v", v)))
        if values.ndim not in (1, 2) or len(values) != self.size or values.size == 0:
            raise ValueError(f"v must have shape ({self.size},) or ({self.size}, s), got {values.shape}.")
        columns, exponent = linalg.normalise(np.asarray(values.reshape(self.size, -1), np.float64))
        found = linalg.rescale(np.asarray(self.times(columns), np.float64), exponent)
        if not np.isfinite(found).all():
            self.diag()  # which names the row whose gradient is no number
            raise ValueError("K v leaves the range of a float; scale v down.")
        return found.reshape(values.shape)

    def require_same(self, other: Any) -> None:
        """Refuse rows that have no kernel with these. Raises: TypeError, ValueError."""
        if type(other) is not type(self):
            raise TypeError(f"other rows must be of the same kind, {type(self).__name__}; got {type(other).__name__}.")
        if other.model is not self.model and other.model.fingerprint() != self.model.fingerprint():
            raise ValueError("the rows are of two models, or of one model at two times of training; use one model.")
        if other.signature != self.signature or other.output != self.output:
            raise ValueError(
                f"the rows differ in form: {other.signature[1:]}, output={other.output!r}, and {self.signature[1:]}, "
                f"output={self.output!r}; shapes of a row, dtypes and output must agree."
            )

    def eigenpairs(self, count: int) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, "N k"]]:
        """Compute the leading eigenvalues of K, largest first, and eigenvectors, by Lanczos (ARPACK).

        Args:
            count: k, from 1 to N - 1.

        Raises: TypeError, ValueError: count; ArithmeticError: not converged.
        """
        count = validation.integer("count", count, at_least=1, below=self.size)
        from scipy.sparse.linalg import ArpackNoConvergence, eigsh

        start = np.random.default_rng(0).standard_normal(self.size)
        tol = 1e-12 if self.values.dtype == np.float64 else 1e-6
        try:
            values, vectors = eigsh(self._operator(), k=count, which="LA", v0=start, tol=tol)
        except ArpackNoConvergence as error:
            raise ArithmeticError(f"the eigenvalues did not converge; ask for fewer. {error}") from error
        return values[::-1], np.ascontiguousarray(vectors[:, ::-1])

    def _operator(self, noise: float = 0.0) -> Any:
        from scipy.sparse.linalg import LinearOperator

        def product(v: np.ndarray) -> np.ndarray:
            return np.asarray(self.times(v.reshape(self.size, -1)).reshape(v.shape) + noise * v, np.float64)

        return LinearOperator((self.size, self.size), matvec=product, matmat=product, dtype=np.float64)

    def alignment(self, y: Float[np.ndarray, "n *c"], *, seed: int = 0) -> Estimate:
        """y^T K y/(|K| |y|^2), norms of Frobenius: the alignment of the kernel with the targets, in [0, 1].

        |K| from eigenvalues where those take no large matrix, else from |K z| of 32 random sign vectors z. Source:
        Cristianini et al. 2002, not centred.

        Args:
            y: (n,) or (n, c) targets; "trace" takes any number of columns.
            seed: of the random vectors.

        Raises: TypeError, ValueError: y; a kernel that is 0 everywhere.
        """
        columns, signs = self.targets("y", y), self._signs(seed)
        if not columns.any():
            raise ValueError("y is 0 at every row: no kernel is aligned with it.")
        columns, _ = linalg.normalise(columns, axis=None)
        found = float(np.sum(columns * self.times(columns)))
        size = float(np.linalg.norm(columns.T @ columns))
        values = self.spectrum()
        if values is not None:
            norm = float(np.linalg.norm(values))
            _require_some(norm)
            return Estimate(found / (norm * size), 0.0)
        squares = np.sum(np.square(self.times(signs), dtype=np.float64), axis=0)
        norm, error = squares.mean() ** 0.5, squares.std(ddof=1) / PROBES**0.5
        _require_some(norm)
        value = found / (norm * size)
        return Estimate(float(value), float(value * error / (2 * norm**2)))

    def effective_dimension(self, noise: float, *, seed: int = 0) -> Estimate:
        """tr K (K + noise)^{-1}: how many directions of the targets the kernel fits at this noise.

        From eigenvalues where those take no large matrix; else the mean of z^T K (K + noise)^{-1} z over 32 random sign
        vectors, by conjugate gradients, and its standard error.

        Args:
            noise: > 0, in the unit of K.
            seed: of the random vectors.

        Raises: TypeError, ValueError: noise; ArithmeticError: the solves did not converge.
        """
        noise = float(validation.finite_scalar("noise", noise, above=0.0))
        signs, values = self._signs(seed), self.spectrum()
        if values is not None:
            values = np.maximum(values, 0.0)
            return Estimate(float(np.sum(values / (values + noise))), 0.0)
        from scipy.sparse.linalg import cg

        found = []
        for z in signs.T:
            solved, failed = cg(self._operator(noise), z, rtol=1e-6, maxiter=10 * self.size)
            if failed:
                raise ArithmeticError(f"K + noise was not solved in {10 * self.size} steps; pass a larger noise.")
            found.append(self.size - noise * float(z @ solved))
        return Estimate(float(np.mean(found)), float(np.std(found, ddof=1) / PROBES**0.5))

    def _signs(self, seed: int) -> np.ndarray:
        rng = np.random.default_rng(validation.integer("seed", seed, at_least=0))
        return rng.choice([-1.0, 1.0], (self.size, PROBES))

    def targets(self, name: str, y: Any) -> Float[np.ndarray, "N s"]:
        """Return targets as K acts on them: (n c, 1) for "full", (n, s) for "trace". Raises: TypeError, ValueError."""
        values = validation.targets(name, y, len(self.values))
        if self.output == "full" and values.size != self.values.size:
            raise ValueError(f"{name} must have the shape of the outputs, {self.values.shape}; got {values.shape}.")
        return values.reshape(self.size, -1)


@final
class ExactRows(TangentRows):
    """The kernel of the rows is exact, from gradients of some rows at a time; made by `Tangents.at`."""

    def __init__(self, model: Gradients, batch: Batch, output: Output, values: np.ndarray, rows: int) -> None:
        self.model, self.batch, self.output, self.values, self.rows = model, batch, output, values, rows
        self.signature = batch.signature

    def parts(self, step: int, within: slice | None = None) -> list[slice]:
        """Cut the rows, or those of a slice, into parts of `step`."""
        start, stop = (0, self.batch.rows) if within is None else (within.start, within.stop)
        return [slice(i, min(i + step, stop)) for i in range(start, stop, step)]

    def _places(self, rows: slice) -> slice:
        c = self.values.shape[1] if self.output == "full" else 1
        return slice(rows.start * c, rows.stop * c)

    def factors(self, rows: slice) -> tuple[slice, list[np.ndarray]]:
        """Return places in K of some rows, and their parts of F in float64, one a parameter.

        K of float32 gradients is summed in float64: it stays semi-definite.
        """
        blocks = self.model.finite_gradients(self.batch.take(rows), rows.start)
        return self._places(rows), [np.asarray(fold(block, self.output), np.float64) for block in blocks]

    def diag(self) -> Float[np.ndarray, " N"]:
        self.model.require_unchanged()
        found = (self.factors(rows)[1] for rows in self.parts(self.rows))
        return np.concatenate([sum(np.einsum("np,np->n", f, f) for f in parts) for parts in found])

    def matrix(self, other: Any = None) -> Float[np.ndarray, "N M"]:
        right = self if other is None else other
        self.require_same(right)
        for side in (self, right):
            side.model.require_unchanged()
        memory.require(8.0 * self.size * right.size, "the kernel of these rows")
        out = np.empty((self.size, right.size))
        for strip in self.parts(max(self.rows, self.model.rows(self.batch) // 2)):
            left = [self.factors(rows) for rows in self.parts(self.rows, strip)]
            for columns in right.parts(right.rows):
                if other is None and columns.start >= strip.stop:
                    break
                inside = other is None and columns.start >= strip.start
                known = [part for part in left if inside and part[0] == self._places(columns)]
                there, parts = known[0] if known else right.factors(columns)
                for here, factors in left:
                    out[here, there] = sum(threads.product(a, b.T) for a, b in zip(factors, parts, strict=True))
        return np.tril(out) + np.tril(out, -1).T if other is None else out

    def times(self, v: Float[np.ndarray, "N s"]) -> Float[np.ndarray, "N s"]:
        self.model.require_unchanged()
        columns = np.asarray(v, self.values.dtype)
        return np.stack([self._column(column) for column in columns.T], axis=1)

    def _column(self, v: np.ndarray) -> np.ndarray:
        n, c = self.values.shape
        if self.output == "full":
            return self._whole(v.reshape(n, c)).ravel()
        each = (self._whole(v[:, None] * (np.arange(c) == a))[:, a] for a in range(c))
        return np.asarray(sum(each) / c)

    def _whole(self, u: np.ndarray) -> np.ndarray:
        """Compute J J^T u, (n, c)."""
        parts = self.parts(STRIP)
        along = sum(self.model.pull(self.batch.take(rows), u[rows]) for rows in parts)
        return np.concatenate([self.model.push(self.batch.take(rows), np.asarray(along)) for rows in parts])

    @functools.cached_property
    def _eigenvalues(self) -> np.ndarray:
        return linalg.eigenvalues(np.asarray(self.matrix(), np.float64))

    def spectrum(self) -> Float[np.ndarray, " r"] | None:
        return self._eigenvalues if self.size <= EXACT else None


def require_rows(name: str, rows: Any) -> None:
    """Refuse what is no rows of tangents. Raises: TypeError."""
    if not isinstance(rows, TangentRows):
        raise TypeError(f"{name} must be rows of tangents(...).at(X) or .sketch(X), got {validation.shown(rows)}.")


def _require_some(norm: float) -> None:
    """Refuse a kernel without size. Raises: ValueError."""
    if norm == 0:
        raise ValueError("the kernel of these rows is 0 everywhere: it is aligned with nothing.")


def fold(block: Float[np.ndarray, "r c p"], output: Output) -> Float[np.ndarray, "N q"]:
    """Return factors F of a block of K = F F^T: (r c, p) for "full", (r, c p)/sqrt(c) for "trace"."""
    r, c, p = block.shape
    return block.reshape(r * c, p) if output == "full" else block.reshape(r, c * p) / np.asarray(c**0.5, block.dtype)
