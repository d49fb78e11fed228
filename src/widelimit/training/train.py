"""Finite networks are trained by gradient descent and its relatives, or by the exact gradient flow."""

import math
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from widelimit import validation
from widelimit.arithmetic import arithmetic
from widelimit.inference.gradient_descent import stable_rate
from widelimit.kernels.empirical.model import Apply
from widelimit.shapes import Float
from widelimit.training import checkpoints, optimisers
from widelimit.training.checkpoints import TrainingCheckpoint
from widelimit.training.flow import slope_size
from widelimit.training.history import Recorder, recorder
from widelimit.training.loop import Training, TrainingRun, by_flow, by_steps, marks, run
from widelimit.training.optimisers import OptimiserState, UpdateRule
from widelimit.training.problem import TrainingProblem, training_problem
from widelimit.validation import Array

RECORDS = 100
"""Records along a run, unless record_every is given."""
TOLERANCE = 1e-5
"""A flow is solved to this tolerance: float32 leaves no more than two digits beyond it."""
ROUNDING = 16
"""A tolerance is at least this many eps: below it the solver measures rounding."""
MAX_STEPS = 100_000
"""A flow's solver takes at most this many steps between two records."""


class DescentSettings(NamedTuple):
    """The settings of a descent are those of `train`: by steps, or by the flow if it has a time."""

    optimizer: Any
    learning_rate: float | None
    momentum: float
    batch_size: int | None
    steps: int | None
    seed: int
    flow_time: float | None
    tolerance: float
    max_steps: int
    record_every: float | None

    def check(self) -> None:
        """Refuse settings of a flow's solver, whether they are used or not. Raises: TypeError, ValueError."""
        validation.finite_scalar("tolerance", self.tolerance, above=0.0, at_most=1e-2)
        validation.integer("max_steps", self.max_steps, at_least=1)

    def marks(self) -> np.ndarray:
        """Return the steps, or the times of a flow, of the records. Raises: TypeError, ValueError, MemoryError."""
        if self.flow_time is None:
            if self.steps is None:
                raise ValueError("give steps, how many to take, or flow_time, the time of the exact gradient flow.")
            count = validation.integer("steps", self.steps, at_least=0, below=2**31)
            interval = max(1, count // RECORDS)
            if self.record_every is not None:
                interval = validation.integer("record_every", self.record_every, at_least=1, below=2**31)
            return marks(count, interval).astype(int)
        if self.steps is not None:
            raise ValueError("give steps or flow_time, not both.")
        end = float(validation.finite_scalar("flow_time", self.flow_time, at_least=0.0))
        spacing = end / RECORDS if end > 0 else 1.0
        if self.record_every is not None:
            spacing = float(validation.finite_scalar("record_every", self.record_every, above=0.0))
        return marks(end, spacing)

    def rule(self, n: int) -> UpdateRule:
        """Return the rule of a step on n points."""
        return optimisers.update_rule(self.optimizer, self.learning_rate, self.momentum, self.batch_size, n)


def train(
    apply: Apply,
    params: Any,
    X: Float[Array, "n d"],
    y: Float[Array, "n *c"],
    *,
    ensemble: bool = False,
    loss: Any = "squared_error",
    optimizer: Any = "gd",
    learning_rate: float | None = None,
    steps: int | None = None,
    flow_time: float | None = None,
    momentum: float = 0.9,
    batch_size: int | None = None,
    seed: int = 0,
    probes: Float[Array, "m d"] | None = None,
    kernel_points: int = 32,
    record_every: float | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_seconds: float = 10.0,
    tolerance: float = TOLERANCE,
    max_steps: int = MAX_STEPS,
    progress: bool = True,
) -> Training:
    """theta <- theta - learning_rate grad C(theta), or d theta/dt = -grad C, C = (1/n) sum_i l(f(theta, x_i), y_i).

    The outputs then move by the empirical NTK, df/dt = -(1/n) Theta d: equation (3.3) of the paper; how much it changes
    is recorded. One step of "gd" is learning_rate of the flow's time, as in `gradient_flow` and `gradient_descent`.

    Args:
        apply: f(params, X), (n, d) -> (n, c) or (n,), written with jax.numpy: net.apply, or any function.
        params: theta_0, a pytree of float32 or float64 arrays, or an Equinox module.
        X: (n, d) inputs, of the parameters' dtype.
        y: (n,) or (n, c) targets; taken in the parameters' dtype.
        ensemble: params are those of E networks, each leaf with a leading axis (E,), as net.init_many makes them; all
            are trained at once, on the same batches, in one compiled program. `apply` is that of one network.
        loss: the loss, as in `gradient_flow`.
        optimizer: "gd" (all examples at every step), "sgd" (batches), "momentum" (heavy ball), "adam", or an optax
            transformation, which has its own learning rate.
        learning_rate: eta > 0, in the unit of time of d theta/dt = -grad C for all but "adam".
        steps: number of steps, an integer >= 0. Give this or flow_time.
        flow_time: t >= 0: solve d theta/dt = -grad C to this time, by an adaptive solver; optimizer and learning_rate
            are not used.
        momentum: mu in [0, 1), of optimizer="momentum".
        batch_size: examples a step, for all but "gd"; each epoch has an order of its own and leaves out the n mod
            batch_size last of it.
        seed: seed of the orders of the examples.
        probes: (m, d) inputs at which outputs are recorded.
        kernel_points: on how many training points, evenly spaced in X, the empirical NTK is recorded; 0 for none.
        record_every: steps (or time) between records; a hundredth of the whole unless given.
        checkpoint: path of a file. If it is there, training goes on where it stands, to the same bits; it must be of
            the same run. More steps (or time) than it was written for are fine if record_every is the same.
        checkpoint_seconds: seconds between writes of the checkpoint; it is also written at the end.
        tolerance: tolerance of a flow, in [16 eps, 1e-2]: local errors in units of the first step that the kernel
            allows.
        max_steps: most steps of a flow's solver between two records.
        progress: a bar on stderr where that is a terminal.

    Returns:
        A `Training` with params, history (`History`), finished and message.

    Raises:
        TypeError, ValueError: bad data; a function of another shape; parameters that are not floats, or of another
            architecture; contradictory settings; a checkpoint that is damaged or of another run.
        MemoryError: parameters, signals, records or the kernel on kernel_points do not fit; nothing is computed then.

    Warns:
        UserWarning: the learning rate is above the bound 2 (1 + mu) n/(kappa lambda_max) of the kernel at theta_0 (see
            `max_learning_rate`), which is named; training stopped at a loss that is not finite, or a flow at max_steps.
    """
    settings = DescentSettings(
        optimizer, learning_rate, momentum, batch_size, steps, seed, flow_time, tolerance, max_steps, record_every
    )
    settings.check()
    many, progress = validation.flag("ensemble", ensemble), validation.flag("progress", progress)
    seconds = float(validation.finite_scalar("checkpoint_seconds", checkpoint_seconds, at_least=0.0))
    problem = training_problem(apply, params, X, y, loss, many=many, copies=optimisers.copies_held(flow_time))
    path = _checkpoint_path(checkpoint)
    with arithmetic(problem.dtype == np.float64):
        rule = settings.rule(len(problem.X)) if flow_time is None else None
        marked = settings.marks()
        optimisers.require_room(problem, rule, probes)
        records = recorder(problem, probes, kernel_points)
        plan = _flow(records, settings, marked) if rule is None else _steps(records, rule, settings, marked)
        kept = None if path is None else TrainingCheckpoint(path, checkpoints.settings(records, plan.choices), seconds)
        return _warn_if_unfinished(run(plan, kept, progress=progress))


def _warn_if_unfinished(trained: Training) -> Training:
    if not trained.finished:
        warnings.warn(trained.message, stacklevel=3)
    return trained


def _steps(records: Recorder, rule: UpdateRule, settings: DescentSettings, marked: np.ndarray) -> TrainingRun:
    """Plan discrete steps; warns of a learning rate above the bound."""
    problem = records.problem
    key = jax.random.key(validation.integer("seed", settings.seed, at_least=0))
    _warn_if_unstable(problem, rule, key)
    name = f"optax, first update {optimisers.first_update(problem, rule):.3e}" if rule.name == "optax" else rule.name
    choices = {
        "optimizer": name,
        "learning_rate": rule.rate,
        "momentum": rule.momentum,
        "batch_size": rule.batch,
        "seed": settings.seed if rule.batch else 0,
    }
    start = optimisers.start_state(problem, rule)
    return TrainingRun(records, start, marked, by_steps(problem, rule, key), rule.clock, "steps", choices)


def _flow(records: Recorder, settings: DescentSettings, marked: np.ndarray) -> TrainingRun:
    """Plan the gradient flow."""
    problem = records.problem
    least = ROUNDING * float(np.finfo(problem.dtype).eps)
    tolerance = float(validation.finite_scalar("tolerance", settings.tolerance, at_least=least, at_most=1e-2))
    largest = optimisers.largest_eigenvalue(problem, jax.random.key(0), 0)
    # |grad C| n/lambda_max is how far the first stable step goes; what is learned by it is of the size of y - f_0.
    reach = len(problem.X) / largest if largest > 0 else 1.0
    slope = np.maximum(np.asarray(slope_size(problem), np.float64), float(np.finfo(problem.dtype).tiny))
    move = by_flow(problem, tolerance * reach * slope, int(settings.max_steps))
    start = OptimiserState(problem.f.params, (), jnp.zeros((), jnp.int32))
    choices = {"optimizer": "flow", "tolerance": tolerance}
    return TrainingRun(records, start, marked, move, 1.0, "time", choices)


def _warn_if_unstable(problem: TrainingProblem, rule: UpdateRule, key: jax.Array) -> None:
    if rule.name not in ("gd", "sgd", "momentum") or not math.isfinite(float(problem.loss.curvature)):
        return
    largest = optimisers.largest_eigenvalue(problem, key, rule.batch)
    bound = stable_rate(problem.loss, largest, rule.batch or len(problem.X), rule.momentum)
    if -rule.rate > bound:
        warnings.warn(
            f"learning_rate={-rule.rate:g} is above the bound {bound:.3g} = 2 (1 + mu) n/(kappa lambda_max) of the "
            f"tangent kernel at the initial parameters: training may diverge.",
            stacklevel=4,
        )


def _checkpoint_path(path: Any) -> Path | None:
    """Return the path of a checkpoint, in a folder that exists; None for none."""
    if path is None:
        return None
    place = validation.path("checkpoint", path)
    if place.is_dir() or not place.parent.is_dir():
        raise ValueError(f"checkpoint={str(path)!r} must be a file in a folder that exists.")
    return place
