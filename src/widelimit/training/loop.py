"""Training goes from record to record, by steps or by a flow, with checkpoints; it always returns its records."""

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np

from widelimit import memory
from widelimit.progress import progress_bar
from widelimit.training import checkpoints
from widelimit.training.checkpoints import TrainingCheckpoint
from widelimit.training.flow import flow
from widelimit.training.history import History, Recorder, concatenate
from widelimit.training.optimisers import OptimiserState, UpdateRule, advance, group_size
from widelimit.training.problem import TrainingProblem

SAME_RUN = 1e-3
"""The loss at theta_0 may differ by this share from that of a checkpoint of the same run on another machine; that of
another function or loss differs by more."""
NUMBERS = 14
"""Numbers of a record without probes, and its copy where records are joined."""


@final
@dataclass(frozen=True)
class Training:
    """The result of `train` is the trained parameters, the records, and the reason for the end."""

    params: Any
    """The last finite parameters, in the form given (NumPy in, NumPy out); for an ensemble with a leading axis (E,)."""
    history: History
    finished: bool
    message: str


class Segment(NamedTuple):
    """A segment ends at the next record; or, after a failure, at the last good state, with what went wrong."""

    state: OptimiserState
    steps: int
    failure: str


SegmentRunner = Callable[[OptimiserState, int, float, float], Segment]
"""(state, steps so far, mark where it stands, next mark) -> Segment; marks are steps, or times of a flow."""


def by_steps(problem: TrainingProblem, rule: UpdateRule, key: jax.Array) -> SegmentRunner:
    """Train by discrete steps."""
    rate, group = jnp.asarray(rule.rate, problem.X.dtype), group_size(problem, rule.batch)

    def run(state: OptimiserState, end: int) -> tuple[OptimiserState, np.ndarray]:
        settings = {"transformation": rule.transformation, "batch": rule.batch, "group": group}
        moved, losses = advance(problem, state, rate, jnp.asarray(end), key, **settings)
        return moved._replace(step=jnp.min(moved.step)), np.asarray(losses)

    def move(state: OptimiserState, steps: int, mark: float, next_mark: float) -> Segment:  # noqa: ARG001, as for flows
        moved, losses = run(state, int(next_mark))
        reached = int(moved.step)
        whole = np.isfinite(losses).all()
        last = np.asarray(_cost(problem, moved.params)) if whole else losses
        if np.isfinite(last).all():
            return Segment(moved, reached, "")
        # The parameters before the step whose loss is not finite are bad; one step before, they still were not.
        good = max(int(state.step), reached - (1 if whole else 2))
        return Segment(run(state, good)[0], good, _explain(last, good, problem, rule))

    return move


def _explain(losses: np.ndarray, good: int, problem: TrainingProblem, rule: UpdateRule) -> str:
    found = float(losses[~np.isfinite(losses)].flat[0])
    members = f" of members {np.flatnonzero(~np.isfinite(losses)).tolist()}" if problem.many else ""
    rate = f"learning_rate={-rule.rate:g}" if rule.rate < 0 else "the transformation's learning rate"
    return (
        f"the loss{members} became {found} after step {good}; the parameters of step {good}, the last good ones, are "
        f"returned. The likely cause is that {rate} is too large: take a smaller one."
    )


_cost = jax.jit(
    lambda problem, params: problem.for_each(lambda p: problem.cost(p, problem.X, problem.y, problem.loss))(params)
)
"""C on all training points, (*E,)."""


def by_flow(problem: TrainingProblem, error: np.ndarray, max_steps: int) -> SegmentRunner:
    """Train in continuous time, with local errors |dtheta| <= error (*E,)."""

    def move(state: OptimiserState, steps: int, mark: float, next_mark: float) -> Segment:
        duration = jnp.asarray(next_mark - mark, problem.X.dtype)
        params, taken, arrived = flow(
            problem, state.params, duration, jnp.asarray(error, problem.X.dtype), max_steps=max_steps
        )
        if np.asarray(arrived).all() and np.isfinite(np.asarray(_cost(problem, params))).all():
            return Segment(OptimiserState(params, (), state.step + 1), steps + int(np.max(taken)), "")
        late = f" of members {np.flatnonzero(~np.asarray(arrived)).tolist()}" if problem.many else ""
        failure = (
            f"the flow{late} did not get from t = {mark:g} to t = {next_mark:g} within max_steps = {max_steps} steps "
            f"of the solver; the parameters at t = {mark:g} are returned. Its steps are about 3 n/lambda_max long: "
            f"pass a larger max_steps, a larger tolerance or a shorter flow_time."
        )
        return Segment(state, steps, failure)

    return move


class TrainingRun(NamedTuple):
    """A run trains from its start through its marks, the steps or times of its records, by `move`."""

    recorder: Recorder
    start: OptimiserState
    marks: np.ndarray
    move: SegmentRunner
    clock: float
    """Time of the flow that one unit of a mark stands for."""
    unit: str
    """Unit of the marks: "steps" or "time"."""
    choices: dict[str, Any]
    """The settings in which two runs from one start differ."""


def run(plan: TrainingRun, checkpoint: TrainingCheckpoint | None, *, progress: bool) -> Training:
    """Run through the marks, from where a checkpoint stands if there is one."""
    marks, failure = plan.marks, ""
    state, history = _begin(plan, checkpoint)
    written = time.monotonic()
    with progress_bar(progress, unit=plan.unit) as report:
        report("training", 0, 0)
        for before, mark in itertools.pairwise(marks[len(history) - 1 :]):
            steps = int(history.steps[-1])
            moved = plan.move(state, steps, float(before), float(mark))
            failure = moved.failure
            if failure and moved.steps == steps:
                break
            at = moved.steps * plan.clock if plan.unit == "steps" else float(mark)
            record = plan.recorder.record(moved.state.params, moved.steps, at)
            state, history = moved.state, concatenate([history, record])
            report(f"training, loss {np.mean(record.loss):.2g}", float(mark), float(marks[-1]))
            if failure:
                break
            if checkpoint and (mark == marks[-1] or time.monotonic() - written >= checkpoint.seconds):
                checkpoints.save(checkpoint, state, history)
                written = time.monotonic()
    message = failure or f"{plan.unit} {marks[-1]:g} reached, loss {np.mean(history.loss[-1]):.6g}"
    return Training(plan.recorder.problem.as_given(state.params), history, not failure, message)


def _begin(plan: TrainingRun, checkpoint: TrainingCheckpoint | None) -> tuple[OptimiserState, History]:
    """Return the state to start from, and the records so far: at least that of theta_0."""
    first = plan.recorder.record(plan.start.params, 0, 0 * plan.clock)
    if not np.isfinite(first.loss).all():
        raise ValueError("the loss at the initial parameters is NaN or infinite; scale X or y, or start elsewhere.")
    if checkpoint is None or not checkpoint.path.exists():
        return plan.start, first
    state, found = checkpoints.load(checkpoint, plan.start)
    _require_same_run(checkpoint, found, first, plan)
    return state, found


def _require_same_run(checkpoint: TrainingCheckpoint, found: History, first: History, plan: TrainingRun) -> None:
    """Refuse records that are not the beginning of this run."""
    advice = "It was left as it is; pass another path to start again."
    if not np.allclose(found.loss[0], first.loss[0], rtol=SAME_RUN, atol=0.0):
        raise ValueError(
            f"{checkpoint.path} was written by another run: the loss at the start was {np.mean(found.loss[0]):g} and "
            f"is {np.mean(first.loss[0]):g}, so that apply or the loss is another. {advice}"
        )
    at = found.times if plan.unit == "time" else found.steps
    if len(at) > len(plan.marks) or not np.array_equal(at, plan.marks[: len(at)]):
        raise ValueError(
            f"{checkpoint.path} has records up to {at[-1]:g} {plan.unit} at other places than this run would; pass the "
            f"record_every of that run, and an end that is not before them. {advice}"
        )


def marks(end: float, step: float) -> np.ndarray:
    """Return 0, step, 2 step, ..., and the end. Raises: MemoryError: their records do not fit."""
    memory.require(8.0 * NUMBERS * end / step, f"{end / step:.3g} records", remedy="pass a larger record_every")
    count = max(0, math.ceil(end / step * (1 - 1e-12)) - 1)
    return np.concatenate([np.arange(count + 1) * step, [end] if end > 0 else []])
