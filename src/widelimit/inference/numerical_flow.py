"""Gradient flow for losses without a closed form is an ODE in the coordinates of the kernel's eigenvectors."""

from __future__ import annotations

import abc
import functools
import warnings
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optimistix

from widelimit import memory, validation
from widelimit.arithmetic import arithmetic
from widelimit.compute import devices, linalg, threads
from widelimit.inference.losses import Loss
from widelimit.inference.traced import TracedFlow
from widelimit.inference.training_set import EIGENVECTORS, Function, TrainingSet, at_location
from widelimit.shapes import Float
from widelimit.validation import Array

TOLERANCE = 1e-8
MAX_STEPS = 20_000
IMPLICIT = 512
"""Unknowns up to which steps are implicit: a factorisation of their square matrix is then cheaper than the many small
steps that an explicit method takes (the stiffness is the condition number of the kernel)."""
HORIZON = 1e6
"""t = inf is n/lambda times this for the smallest eigenvalue: a loss with any curvature has long converged."""
SHORTEST = 1e-3
"""The shortest time of a solve is in units of n/lambda_max: earlier times are interpolated within its first steps."""
_BATCH = 8
"""Times are padded to a multiple of this, so that few programs are compiled."""


class Flow(abc.ABC):
    """The flow is f_t under kernel gradient descent: made by `gradient_flow`.

    t is the time of d theta/dt = -grad C with C(f) = (1/n) sum_i l(f(x_i), y_i), n the number of training points.
    """

    data: TrainingSet

    @linalg.ignore_overflow()
    def predict(self, Z: Float[Array, "m d"], t: float | Float[Array, " T"]) -> Float[Array, "*T m *c"]:
        """Compute f_t(Z).

        Args:
            Z: (m, d) test inputs.
            t: a time in [0, inf] or an array (T,) of times; inf is the limit.

        Returns:
            (m,), or (m, c) for y of shape (n, c); with a leading axis (T,) for an array of times.

        Raises:
            ValueError: a negative or NaN time, or bad Z.
            ArithmeticError: a finite time is not reached within max_steps of the ODE's solver or of Lanczos.

        Warns:
            UserWarning: the flow does not come to rest; t = inf then stands for the last time reached.
        """
        if validation.traced(Z, t) and (flow := self.traced()) is not None:
            return flow.predict(Z, t)
        points, times = self.data.inputs(Z), validation.times(t)
        values = self._functions(points, np.atleast_1d(times))
        return self.data.outputs(values if times.ndim else values[0], Z)

    def loss(self, t: float | Float[Array, " T"]) -> Float[Array, "*T"] | float:
        """Compute C(f_t) on the training set; inf beyond float64's range. Times, errors, warnings: as `predict`."""
        times = validation.times(t)
        losses = self._losses(np.atleast_1d(times))
        return losses if times.ndim else float(losses[0])

    def traced(self) -> TracedFlow | None:
        """Return the flow for test points or times that JAX traces; None where there is no closed form."""
        return None

    @abc.abstractmethod
    def _functions(self, points: np.ndarray, times: np.ndarray) -> np.ndarray:
        """Compute f_t at (m, d) points, (T, m, c)."""

    @abc.abstractmethod
    def _losses(self, times: np.ndarray) -> np.ndarray:
        """Compute C(f_t), (T,)."""


class Solution(NamedTuple):
    """The solution holds what the solver found, and how it ended: never an exception."""

    times: Float[np.ndarray, " T"]
    coefficients: Float[np.ndarray, "T n c"]
    """alpha_t with f_t = f_0 + K(., X) alpha_t; for a time not reached, of the last time that was."""
    outputs: Float[np.ndarray, "T n c"]
    """f_t(X)."""
    reached: Float[np.ndarray, " T"]
    """True where the time was reached; t = inf is where the flow converged."""
    converged: bool
    """True if the flow came to rest: neither d|_f nor the speed on a logarithmic clock is above the tolerance."""
    end: float
    """The time at which the solver stopped, in the unit of d theta/dt = -grad C."""
    steps: int
    message: str


class _FlowProblem(NamedTuple):
    """b' = -sqrt(s) V^T d(f_0(X) + V sqrt(s) b), s = lambda/lambda_max: time in units of n/lambda_max. Pytree."""

    loss: Loss
    roots: jax.Array
    vectors: jax.Array
    start: jax.Array
    y: jax.Array
    tolerance: jax.Array
    first: jax.Array
    """Size of V^T d at the start."""


def _norm(v: jax.Array) -> jax.Array:
    """Compute |v|, of any size: no square leaves the range of a float."""
    largest = jnp.max(jnp.abs(v), initial=0.0)
    unit = jnp.where(largest > 0, largest, 1.0)
    return jnp.asarray(unit * jnp.linalg.norm(v / unit))


def _outputs(problem: _FlowProblem, b: jax.Array) -> jax.Array:
    moved = problem.vectors @ (problem.roots[:, None] * b.reshape(len(problem.roots), -1))
    return problem.start + moved.reshape(problem.start.shape)


def _slope(problem: _FlowProblem, b: jax.Array) -> jax.Array:
    """Compute V^T d|_f, (r, q)."""
    derivative = problem.loss.derivative(_outputs(problem, b), problem.y)
    return problem.vectors.T @ derivative.reshape(len(problem.vectors), -1)


def _velocity(t: Any, b: jax.Array, problem: _FlowProblem) -> jax.Array:  # noqa: ARG001, the solver passes t
    return (-problem.roots[:, None] * _slope(problem, b)).ravel()


def _at_rest(t: Any, b: jax.Array, problem: _FlowProblem, **_: Any) -> jax.Array:
    slope = _slope(problem, b)
    speed = t * _norm(problem.roots[:, None] * slope)
    flat = _norm(slope) <= problem.tolerance * problem.first
    return jnp.asarray(flat & (speed <= problem.tolerance * _norm(b)))


@jax.jit
def _begin(given: _FlowProblem) -> _FlowProblem:
    """Return the problem from one with eigenvalues over the largest, whose roots are taken here, as `roots`."""
    problem = given._replace(roots=jnp.sqrt(given.roots))
    still = jnp.zeros(len(problem.roots) * (problem.start.size // len(problem.vectors)))
    return problem._replace(first=_norm(_slope(problem, still)))


def _implicit() -> diffrax.Kvaerno5:
    """Make Kvaerno's method of order 5, its equations by a chord iteration that ends where nothing changes.

    Not by diffrax's VeryChord: it judges by the rate of convergence, and where the first guess is exact (a loss that is
    straight there, as Huber's is far from the target) two roundings of one size look like divergence (diffrax 0.7.2).
    """
    return diffrax.Kvaerno5(root_finder=diffrax.with_stepsize_controller_tols(optimistix.Chord)())


@functools.partial(jax.jit, static_argnames=("implicit", "max_steps"))
def _solve(
    problem: _FlowProblem, times: jax.Array, horizon: jax.Array, *, implicit: bool, max_steps: int
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]:
    """Compute states at the times (inf where not reached) and at the end; the end; steps; if the flow came to rest."""
    size = len(problem.roots) * (problem.start.size // len(problem.vectors))
    start = jnp.zeros(size, problem.roots.dtype)
    scale = _norm(_velocity(0.0, start, problem))
    tolerance = problem.tolerance / 100  # local errors, of which several hundred steps make a global one
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(_velocity),
        _implicit() if implicit else diffrax.Tsit5(),
        t0=0.0,
        t1=horizon,
        dt0=None,
        y0=start,
        args=problem,
        saveat=diffrax.SaveAt(subs=[diffrax.SubSaveAt(ts=times), diffrax.SubSaveAt(t1=True)]),
        stepsize_controller=diffrax.PIDController(rtol=tolerance, atol=tolerance * scale),
        event=diffrax.Event(_at_rest),
        max_steps=max_steps,
        throw=False,
    )
    states, last = solution.ys
    assert solution.ts is not None
    rest = solution.result == diffrax.RESULTS.event_occurred
    return states, last[-1], solution.ts[1][-1], solution.stats["num_steps"], rest


@final
@dataclass(frozen=True)
class NumericalFlow(Flow):
    """df/dt = -(1/n) sum_i K(., x_i) d_i by an adaptive ODE solver (diffrax): made by `gradient_flow`.

    f_t = f_0 + K(., X) alpha_t with alpha_t in the range of K(X, X), so that a kernel that is only positive
    semi-definite is no special case. Every question is one solve from t = 0 to the last time, of at most max_steps
    steps; ask for several times at once.
    """

    data: TrainingSet
    objective: Loss
    initial: Function | None
    values: np.ndarray
    vectors: np.ndarray
    """Eigenpairs of K(X, X) that are not null to rounding."""
    start: np.ndarray
    tolerance: float
    max_steps: int

    def __post_init__(self) -> None:
        validation.sealed(self)

    def solution(self, t: float | Float[Array, " T"]) -> Solution:
        """Compute the flow at times t in [0, inf] (a number counts as one time), and how the solver ended.

        A time that was not reached within max_steps steps, or a flow that does not come to rest (a minimum at infinity:
        separable classes, say), is reported in `reached`, `converged` and `message`; it is not an error.
        """
        times = np.atleast_1d(validation.times(t))
        q = self.start.size // len(self.vectors)
        memory.require(16.0 * times.size * self.start.size, f"the flow at {times.size} times")
        problem, unit = self._problem()
        if not float(problem.first) > 0:
            states = np.zeros((times.size, len(self.values) * q))
            return self._describe(times, states, np.ones(times.size, bool), 0.0, 0, rest=True)
        horizon = HORIZON * float(self.values[0] / self.values[-1])
        ends = np.minimum(times / unit, horizon)
        distinct, places = np.unique(ends, return_inverse=True)
        padded = np.resize(distinct, -(-distinct.size // _BATCH) * _BATCH)
        padded[distinct.size :] = distinct[-1]
        last = max(distinct[-1], np.float64(SHORTEST))  # a Python float would be another type to the compiler
        with arithmetic(True):
            implicit = len(self.values) * q <= IMPLICIT
            found = _solve(problem, padded, last, implicit=implicit, max_steps=self.max_steps)
            states, final_state, end, steps, rest = (np.asarray(v) for v in found)
        states = states[: distinct.size][places.ravel()]
        before = np.asarray(np.isfinite(states).all(axis=1))
        states = np.where(before[:, None], states, final_state)
        reached = np.asarray(np.where(np.isinf(times), bool(rest), before | bool(rest)))
        return self._describe(times, states, reached, float(end) * unit, int(steps), rest=bool(rest))

    def _problem(self) -> tuple[_FlowProblem, float]:
        """Return the problem in units of its own, and the unit of time, n/lambda_max."""
        largest = self.values[0] if len(self.values) else np.float64(1.0)
        loss = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), self.objective)
        with arithmetic(True):
            given = self.values / largest, self.vectors, self.start, self.data.y, np.float64(self.tolerance), 0.0
            problem = _begin(_FlowProblem(loss, *given))  # type: ignore[arg-type]
        if not np.isfinite(float(problem.first)):
            raise ValueError("the loss's derivative at f_0 is NaN or infinite; start elsewhere, or scale y.")
        return problem, len(self.data.X) / float(largest)

    def _describe(
        self, times: np.ndarray, states: np.ndarray, reached: np.ndarray, end: float, steps: int, *, rest: bool
    ) -> Solution:
        largest = float(self.values[0]) if len(self.values) else 1.0
        modes = states.reshape(len(states), len(self.values), -1)
        roots = np.sqrt(self.values / largest)[:, None]
        outputs = self.start + self.data.unfold(threads.product(self.vectors, roots * modes))
        coefficients = self.data.unfold(threads.product(self.vectors, modes / (roots * largest)))
        message = f"converged at t = {end:.4g} in {steps} steps" if rest else f"stopped at t = {end:.4g}, {steps} steps"
        if not reached.all() and steps >= self.max_steps:
            message += f": max_steps = {self.max_steps} is used up; pass a larger max_steps, or a larger tolerance."
        elif not reached.all():
            message += (
                ": f still grows, as the loss has no minimum at a finite f (separable classes, say), or the solver "
                "found no step that keeps the tolerance. Ask for a finite time, or soften the labels."
            )
        return Solution(times, coefficients, outputs, reached, rest, end, steps, message)

    @at_location
    def _require_reached(self, t: Any) -> Solution:
        """Return the solution; an error for a finite time that was not reached, a warning for a limit."""
        found = self.solution(t)
        missed = ~found.reached & np.isfinite(found.times)
        if missed.any():
            raise ArithmeticError(f"t = {found.times[missed].min():g} was not reached: {found.message}")
        if not found.reached.all():
            warnings.warn(f"t = inf stands for t = {found.end:.4g}: {found.message}", stacklevel=4)
        return found

    def _functions(self, points: np.ndarray, times: np.ndarray) -> np.ndarray:
        return self.data.functions(self.initial, self._require_reached(times).coefficients, points)

    def _losses(self, times: np.ndarray) -> np.ndarray:
        return np.array([self.objective.value(f, self.data.y) for f in self._require_reached(times).outputs])


def numerical_flow(
    data: TrainingSet, loss: Loss, initial: Function | None, *, tolerance: float, max_steps: int
) -> NumericalFlow:
    """Compute the flow of any loss; arguments as `gradient_flow`."""
    tolerance = validation.finite_scalar("tolerance", tolerance, at_least=1e-12, at_most=1e-2)
    max_steps = validation.integer("max_steps", max_steps, at_least=1)
    if data.rows is not None:  # the ODE's solver runs on the host
        data = data._replace(rows=None, location=devices.choose("cpu"))
    values, vectors = linalg.eigenpairs(data.gram(beside=EIGENVECTORS), data.error)
    kept = values > linalg.rounding(len(values), values[-1])
    start = data.start(initial, data.X)
    return NumericalFlow(
        data, loss, initial, values[kept][::-1], vectors[:, kept][:, ::-1].copy(), start, float(tolerance), max_steps
    )
