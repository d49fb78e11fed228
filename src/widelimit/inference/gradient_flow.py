"""Gradient descent runs in function space, in continuous time; the squared error is seen mode by mode."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, final

import numpy as np

from widelimit import memory, validation
from widelimit.compute import device_modes, devices, krylov, linalg, threads
from widelimit.compute.device_modes import DeviceModes
from widelimit.compute.devices import Device
from widelimit.compute.implicit import Spectrum
from widelimit.compute.operators import StoredOperator
from widelimit.compute.workers import require_client
from widelimit.inference import solvers
from widelimit.inference.krylov_flow import krylov_flow
from widelimit.inference.losses import Loss, SquaredError, resolve
from widelimit.inference.numerical_flow import MAX_STEPS, TOLERANCE, Flow, numerical_flow
from widelimit.inference.traced import Smoother, TracedFlow, is_traced, known_data, traced_flow
from widelimit.inference.training_set import EIGENVECTORS, Function, TrainingSet, scalar_kernel, training_set
from widelimit.kernels.base import Kernel
from widelimit.kernels.matrix_valued import MatrixKernel
from widelimit.shapes import Float
from widelimit.validation import Array

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from distributed import Client

EIGH = 3000
"""Unknowns up to which "auto" takes eigenvectors: some seconds, and every time afterwards at once."""


@final
@dataclass(frozen=True)
class Modes:
    """C(f_t) = sum_i (power_i/n) exp(-4 lambda_i t/n): made by `GradientFlow.modes`, largest eigenvalue first.

    Eigenvalues are those of K(X, X) (of the (n c, n c) matrix of a matrix-valued kernel). One that is 0 to
    rounding is set to 0: its mode is never learned.
    """

    eigenvalues: Float[np.ndarray, " N"]
    """lambda_i >= 0."""
    residual: Float[np.ndarray, "N c"]
    """y - f_0(X) along the mode; in y's unit."""
    vectors: Float[np.ndarray, "N N"]
    """Eigenvectors, one a column; rows are training points (of a matrix-valued kernel: points times outputs)."""
    points: int
    """n, the number of training points."""

    @property
    def power(self) -> Float[np.ndarray, " N"]:
        """Return the square of the residual along the mode, summed over outputs; in y's unit squared, or inf."""
        square, exponent = self._square()
        return linalg.rescale(square, 2 * exponent)

    def _square(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the power in units of 4^exponent, and the exponent."""
        residual, exponent = linalg.normalise(self.residual, axis=None)
        return np.asarray(np.sum(residual**2, axis=1)), exponent

    @property
    def shares(self) -> Float[np.ndarray, " N"]:
        """Return power_i/sum power: the part of y - f_0(X) in each mode; sums to 1. All 0 for y = f_0(X)."""
        square, _ = self._square()
        total = square.sum()
        return np.asarray(square / total if total > 0 else square)

    @property
    def times(self) -> Float[np.ndarray, " N"]:
        """Return n/(2 lambda_i), the time (of d theta/dt = -grad C) in which a residual falls to 1/e, or inf."""
        with np.errstate(divide="ignore", over="ignore"):
            return np.asarray(self.points / (2 * self.eigenvalues))

    def loss(self, t: float | Float[Array, " T"]) -> Float[np.ndarray, "*T N"]:
        """Return each mode's term of C(f_t); their sum is `GradientFlow.loss`. t as there; inf if it overflows."""
        times = validation.times(t)
        lam = self.eigenvalues
        with np.errstate(invalid="ignore", over="ignore"):
            decay = np.where(lam > 0, np.exp(-4 * lam * np.atleast_1d(times)[:, None] / self.points), 1.0)
        square, exponent = self._square()
        terms = linalg.rescale(decay * (square / self.points), 2 * exponent)
        return terms if times.ndim else terms[0]


@final
@dataclass(frozen=True)
class GradientFlow(Flow):
    """df/dt = -(2/n) K(., X) (f(X) - y) from f_0: made by `gradient_flow`.

    t is the time of d theta/dt = -grad C with C(f) = (1/n) sum_i |f(x_i) - y_i|^2 (n: number of training points; the
    sum goes over outputs too). The residual of the mode with eigenvalue lambda of K(X, X) decays as exp(-2 lambda t/n).
    """

    data: TrainingSet
    initial: Function | None
    values: np.ndarray
    vectors: np.ndarray | DeviceModes
    residual: np.ndarray

    def __post_init__(self) -> None:
        validation.sealed(self)

    @property
    def _null(self) -> np.ndarray:
        """Find modes whose eigenvalue cannot be distinguished from 0."""
        return self.values <= linalg.rounding(len(self.values), self.values[-1])

    @property
    def _fading(self) -> float:
        return float(np.sqrt(linalg.EPS) * self.values[-1])

    def gain(self, t: np.ndarray) -> np.ndarray:
        """Compute (1 - exp(-2 lambda t/n))/lambda by expm1, (T,) -> (T, n): times and modes; 2 t/n at lambda = 0.

        A mode that is null to rounding (lambda <= n eps lambda_max) is left out at t = inf, where the flow
        is the minimum-norm solution. Before, its gain fades as exp(-2 sqrt(eps) lambda_max t/n): the rounding in
        K(z, X) v, which the gain multiplies, then never exceeds sqrt(eps) of the result.
        """
        return np.asarray(krylov.gain(self.values, 2 * (t / len(self.data.X)), self._null, self._fading))

    def traced(self) -> TracedFlow:
        """Return the flow for test points or times that JAX traces. Raises: TypeError: f_0 is not 0."""
        if self.initial is not None:
            raise TypeError("initial is a function of NumPy arrays, which jax cannot trace: add it to the prediction.")
        null = self._null
        vectors = self.vectors.vectors if isinstance(self.vectors, DeviceModes) else self.vectors
        known = Spectrum(np.where(null, 0.0, self.values), vectors, null, self._fading)
        return TracedFlow(known_data(self.data), Smoother(len(self.data.X), None, known))

    def projected(self, points: np.ndarray) -> np.ndarray:
        """Compute K(Z, X) V: the kernel between test points and modes, (m, n)."""
        return threads.product(self.data.cross(points), self.host_vectors)

    @property
    def host_vectors(self) -> np.ndarray:
        """Return V, (n, n), on the host."""
        return self.vectors.whole() if isinstance(self.vectors, DeviceModes) else self.vectors

    def _functions(self, points: np.ndarray, times: np.ndarray) -> np.ndarray:
        """f_t(Z) = f_0(Z) + K(Z, X) V gain(t) V^T (y - f_0(X)), K(X, X) = V diag(lambda) V^T."""
        size = times.size * self.residual.shape[1] * (len(points) * self.data.coupled + 2 * len(self.values))
        memory.require(8 * size, f"predictions at {times.size} times")
        residual, exponent = linalg.normalise(self.residual)
        weighted = self.gain(times)[:, :, None] * residual
        if isinstance(self.vectors, DeviceModes):  # K(Z, X) (V gain V^T y): the rounding is bounded as that of K V
            alphas = np.stack([self.vectors.sum(each) for each in weighted])
            return self.data.functions(self.initial, linalg.rescale(alphas, exponent), points)
        projected = self.projected(points)
        with threads.limit(threads.work(len(projected), projected.shape[1], weighted[:, 0].size)):
            moved = np.einsum("mn,tnc->tmc", projected, weighted, optimize=True)
        moved = linalg.rescale(moved, exponent)
        return np.asarray(self.data.start(self.initial, points) + self.data.unfold(moved))

    def _losses(self, times: np.ndarray) -> np.ndarray:
        return np.asarray(self._modes(np.empty((0, 0))).loss(times).sum(axis=1))

    def coefficients(self, t: float) -> Float[np.ndarray, "n *c"]:
        """Return alpha_t with f_t = f_0 + K(., X) alpha_t, of the shape of y; t as in `predict`."""
        times = np.atleast_1d(validation.one_time(t))
        residual, exponent = linalg.normalise(self.residual)
        weighted = self.gain(times)[0][:, None] * residual
        vectors = self.vectors
        folded = vectors.sum(weighted) if isinstance(vectors, DeviceModes) else threads.product(vectors, weighted)
        values = self.data.unfold(linalg.rescale(folded, exponent))
        return values[:, 0] if self.data.single else values

    def modes(self) -> Modes:
        """Split the loss over the eigenvectors of K(X, X): eigenvalue, share of the target, time to learn."""
        return self._modes(self.host_vectors[:, ::-1])

    def _modes(self, vectors: np.ndarray) -> Modes:
        lam = np.where(self._null, 0.0, self.values)[::-1]
        return Modes(lam, self.residual[::-1], vectors, len(self.data.X))


def gradient_flow(
    k: Kernel | MatrixKernel,
    X: Float[Array, "n d"],
    y: Float[Array, "n *c"],
    *,
    loss: Any = "squared_error",
    initial: Function | None = None,
    solver: Literal["auto", "eigh", "krylov"] = "auto",
    tolerance: float = TOLERANCE,
    max_steps: int = MAX_STEPS,
    matrix: Any = None,
    checkpoint: str | Path | None = None,
    client: Executor | Client | None = None,
    device: Device = None,
) -> Flow:
    """df/dt = -(1/n) sum_i K(., x_i) d_i, d = dl/df: kernel gradient descent on C(f) = (1/n) sum l(f(x_i), y_i).

    Equations (3.3) and (3.14) of the paper. With k = ntk(net) this is gradient descent on an infinitely wide network
    (Corollary 4.4). For the squared error f_t(X) - y = exp(-2 K(X, X) t/n) (f_0(X) - y): one eigendecomposition, about
    9 n^3 flops, serves every time; or Lanczos, 2 n^2 flops for each step and output, with a bound of its error. For any
    other loss the decomposition, and an ODE on the training outputs; elsewhere the function follows by the dual
    coefficients. Computed in float64; results are NumPy float64 arrays, or JAX arrays where Z is one.

    Args:
        k: a kernel, or a matrix-valued one of c outputs.
        X: (n, d) inputs.
        y: (n,) or (n, c) targets.
        loss: a name ("squared_error", "huber", "logistic", "softmax_cross_entropy", "poisson"), a `Loss`, or a function
            l(f, y) of one example's outputs (c,) and targets (c,), written with jax.numpy.
        initial: f_0, a function of (m, d) NumPy inputs that returns the shape y has; 0 unless given.
        solver: for the squared error: "eigh" (its flow has `modes`), "krylov", or "auto": "eigh" up to EIGH points.
        tolerance: relative tolerance of the ODE's solution; of Lanczos, relative to the root mean square of y - f_0(X);
            in [1e-12, 1e-2]. No part of the closed form by eigenvectors.
        max_steps: steps of the ODE's solver or of Lanczos in one solve, at most, >= 1.
        matrix: K(X, X), stored already, as in `posterior`. "krylov" reads it block by block whenever a new time needs
            more of its basis; "eigh" reads it once, and holds it.
        checkpoint: of "krylov" (which "auto" takes then): a file in which the basis is kept, and from which a later
            call with the same arguments goes on.
        client: with `matrix`, who computes its products, as in `posterior`. The bits do not depend on it.
        device: where work runs, and the matrix stays, as of `posterior`; eigenvectors are those of one device. An ODE
            runs on the host.

    Returns:
        A `Flow` with predict and loss: a `GradientFlow` or a `KrylovFlow` for the squared error, a `NumericalFlow` for
        any other; with predict and loss only where jax traces the data or the kernel.
        For the squared error at t = inf: f_0(z) + K(z, X) K(X, X)^+ (y - f_0(X)), from f_0 = 0 the
        interpolant of smallest RKHS norm, or, where labels conflict, the least-squares fit of smallest norm.

    Raises:
        TypeError, ValueError: bad data, an unknown loss, labels outside of its domain, an initial function of a wrong
            shape, a kernel that is not positive semi-definite.
        MemoryError: the kernel matrix or its eigenvectors do not fit.
    """
    if is_traced(k, X, y):
        plain = initial is None and solver != "krylov" and matrix is checkpoint is client is device is None
        if not (plain and isinstance(resolve(loss), SquaredError)):
            raise TypeError(
                "where jax traces the data or the kernel (jit, grad or vmap), gradient_flow has the squared error, "
                'f_0 = 0 (subtract it from y), solver="auto" or "eigh", and no matrix, checkpoint, client or device.'
            )
        return cast(Flow, traced_flow(k, X, y))  # it has predict and loss
    data, kind = training_set(k, X, y, devices.choose_unless_stored(device, matrix, X, y)), resolve(loss)
    _check(data, kind, initial)
    check_solver(solver, matrix, client)
    path = None if checkpoint is None else validation.path("checkpoint", checkpoint)
    validation.finite_scalar("tolerance", tolerance, at_least=1e-12, at_most=1e-2)
    validation.integer("max_steps", max_steps, at_least=1)
    if not isinstance(kind, SquaredError):
        if solver == "krylov" or matrix is not None or path is not None:
            raise ValueError('solver="krylov", a matrix or a checkpoint is for the squared error: leave that out.')
        return numerical_flow(data, kind, initial, tolerance=tolerance, max_steps=max_steps)
    rows, many = stored(data, matrix, client), len(data.X) * data.coupled > EIGH
    if solver == "krylov" or (solver == "auto" and (many or path is not None)):
        return krylov_flow(data, initial, tolerance=tolerance, max_steps=max_steps, stored=rows, path=path)
    if path is not None:
        raise ValueError('solver="eigh" keeps no state: leave checkpoint out, or pass solver="krylov".')
    return closed_form(data, initial, rows)


def _check(data: TrainingSet, kind: Loss, initial: Any) -> None:
    """Refuse labels outside of the loss's domain, and a start that is no function. Raises: TypeError, ValueError."""
    if initial is not None:
        validation.function("initial", initial, "a function of (m, d) inputs")
    kind.check(data.y)


def check_solver(solver: Any, matrix: Any, client: Any) -> None:
    """Refuse an unknown solver, and a client without a matrix. Raises: TypeError, ValueError."""
    if not isinstance(solver, str) or solver not in ("auto", "eigh", "krylov"):
        raise ValueError(f'solver must be "auto", "eigh" or "krylov", got {validation.shown(solver)}.')
    require_client(client)
    if client is not None and matrix is None:
        raise ValueError('client computes with a stored matrix: pass matrix=wl.stored_gram(k, X, "K.zarr") too.')


def stored(data: TrainingSet, matrix: Any, client: Any, name: str = "matrix") -> StoredOperator | None:
    """Open a matrix of `stored_gram`, or take the user's, if one is given. Raises: ValueError, TypeError: no such."""
    if matrix is None:
        return None
    scalar_kernel(data.kernel)
    return solvers.stored_operator(data, solvers.open_matrix(matrix, name), client, name)


def closed_form(data: TrainingSet, initial: Function | None, rows: StoredOperator | None = None) -> GradientFlow:
    """Compute the flow of the squared error; rows: K(X, X), where it is stored."""
    vectors: np.ndarray | DeviceModes
    if data.rows is None:
        values, vectors = linalg.eigenpairs(rows.dense() if rows else data.gram(beside=EIGENVECTORS), data.error)
    else:
        values, vectors = device_modes.modes(data.rows)
    residual, exponent = linalg.normalise(data.rest(data.start(initial, data.X)))
    residual = linalg.rescale(
        vectors.of(residual) if isinstance(vectors, DeviceModes) else threads.product(vectors.T, residual), exponent
    )
    return GradientFlow(data, initial, values, vectors, residual)
