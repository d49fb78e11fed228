"""Loss, kernel, parameters and outputs are recorded along the training of a network."""

from __future__ import annotations

import functools
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np
import optax

from widelimit import validation
from widelimit.kernels.empirical.model import Model
from widelimit.kernels.empirical.plan import ContractionPlan, KernelSettings, PairSizes, pairs_of, plan
from widelimit.shapes import Float, Int
from widelimit.training.problem import TrainingProblem

WORK = 2.0
"""GiB that recording the kernel may take; with less the slower algorithms for it are chosen."""


@final
@dataclass(frozen=True)
class History:
    """The history holds R records of training; an ensemble's have an axis (E,) after the first, but steps and times."""

    steps: Int[np.ndarray, " R"]
    """Steps taken; for a flow those of the solver, of the slowest member."""
    times: Float[np.ndarray, " R"]
    """Time of d theta/dt = -grad C: learning_rate * steps for "gd" and "sgd", the flow's own; NaN for the others."""
    loss: Float[np.ndarray, "R *E"]
    """C = (1/n) sum_i l(f(x_i), y_i) on all training points."""
    movement: Float[np.ndarray, "R *E"]
    """|theta_t - theta_0|/|theta_0|, over all parameters."""
    kernel_drift: Float[np.ndarray, "R *E"]
    """|Theta_t - Theta_0|/|Theta_0| (Frobenius) of the empirical NTK on the kernel points, all outputs; NaN without."""
    alignment: Float[np.ndarray, "R *E"]
    """y^T Theta_t y/(|Theta_t| |y|^2) on the kernel points, at most 1; NaN without points or where y = 0."""
    outputs: Float[np.ndarray, "R *E m *c"]
    """f_t at the probes, of the form of y."""

    def __len__(self) -> int:
        return len(self.steps)


class Recorder(NamedTuple):
    """A recorder measures networks, and compares them with the kernel at theta_0; made by `recorder`."""

    problem: TrainingProblem
    probes: jax.Array
    points: jax.Array
    """Training points of the kernel, (k, d)."""
    labels: np.ndarray
    """The targets at these points, (k c,)."""
    method: ContractionPlan | None
    kernel: np.ndarray
    """Theta_0, (*E, k c, k c)."""

    def record(self, params: Any, steps: int, time: float) -> History:
        """Make one record, R = 1."""
        loss, movement, outputs, kernel = _measure(self.problem, params, self.probes, self.points, method=self.method)
        theta = np.asarray(kernel, np.float64)
        with np.errstate(all="ignore"):  # parameters that overflow make NaN here, and are explained where they stop
            drift = _norm(theta - self.kernel) / _norm(self.kernel)
            squares = np.einsum("...ij,i,j->...", theta, self.labels, self.labels)
            alignment = squares / (_norm(theta) * (self.labels @ self.labels))
        values = np.asarray(outputs)[..., 0] if self.problem.single else np.asarray(outputs)
        cost, moved = np.asarray(loss, np.float64), np.asarray(movement, np.float64)
        record = np.array(steps), np.array(float(time)), cost, moved, drift, alignment, values
        return History(*(np.asarray(value)[None] for value in record))


def concatenate(parts: list[History]) -> History:
    """Join records in one history."""
    return History(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(History)))


def _norm(matrices: np.ndarray) -> np.ndarray:
    """Compute the Frobenius norm; NaN for matrices of size 0, which are those of no kernel points."""
    return np.linalg.norm(matrices, axis=(-2, -1)) if matrices.size else np.full(matrices.shape[:-2], np.nan)


def _kernel(f: Model, X: jax.Array, method: ContractionPlan) -> jax.Array:
    """Compute Theta(X, X) of one member, (k c, k c)."""
    pair = pairs_of(f, KernelSettings("ntk", "full", "auto", WORK), method)
    factors = pair.encode(X)
    blocks = pair.pairwise(factors, factors, same=True)
    k, c = blocks.shape[0], blocks.shape[-1]
    return jnp.reshape(jnp.transpose(blocks, (0, 2, 1, 3)), (k * c, k * c))


@functools.partial(jax.jit, static_argnames="method")
def _measure(
    problem: TrainingProblem, params: Any, probes: jax.Array, points: jax.Array, *, method: ContractionPlan | None
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Measure loss, movement, outputs at the probes and kernel, of every member."""

    def member(params: Any, start: Any) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        f = replace(problem.f, params=params)
        loss = problem.cost(params, problem.X, problem.y, problem.loss)
        moved = optax.tree.norm(jax.tree.map(jnp.subtract, params, start)) / optax.tree.norm(start)
        empty = jnp.zeros((0, problem.y.shape[1]), problem.X.dtype)
        outputs = f(params, probes) if len(probes) else empty
        kernel = jnp.zeros((0, 0), problem.X.dtype) if method is None else _kernel(f, points, method)
        return loss, moved, outputs, kernel

    return problem.for_each(member)(params, problem.f.params)  # type: ignore[no-any-return]


def recorder(problem: TrainingProblem, probes: Any, kernel_points: Any) -> Recorder:
    """Check what to record; evaluates the kernel at theta_0.

    Raises: TypeError, ValueError: probes that are not points like X; kernel_points not an integer >= 0; MemoryError:
    the kernel does not fit.
    """
    size = validation.integer("kernel_points", kernel_points, at_least=0)
    n, d = problem.X.shape
    at = np.zeros((0, d), problem.dtype)
    if probes is not None:
        at = validation.concrete_points("probes", problem.f.points("probes", probes))
        validation.same_features("probes", at, "X", np.asarray(problem.X))
        if at.dtype != problem.dtype:
            raise TypeError(f"probes is {at.dtype} and X is {problem.dtype}; pass probes.astype('{problem.dtype}').")
    rows = np.linspace(0, n - 1, min(size, n)).astype(int)
    points, labels = problem.X[rows], np.asarray(problem.y, np.float64)[rows].ravel()
    method = _kernel_plan(problem, len(rows)) if size else None
    kernel = _measure(problem, problem.f.params, jnp.asarray(at), points, method=method)[3]
    return Recorder(problem, jnp.asarray(at), points, labels, method, np.asarray(kernel, np.float64))


def _kernel_plan(problem: TrainingProblem, k: int) -> ContractionPlan:
    """Choose the algorithm for the kernel, without figures that change from call to call: it is part of a program."""
    f, (_, d) = problem.one(), problem.X.shape
    settings = KernelSettings("ntk", "full", "auto", WORK / problem.members)
    sizes = PairSizes(n=k, m=k, down=k, across=k, same=True, diagonal=False)
    found = plan(f, settings, sizes, d, problem.dtype)
    return replace(found, estimates=(found.chosen,), result=0.0, budget=0.0)
