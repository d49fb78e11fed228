"""Finite networks are trained by gradient descent and its relatives, or by the exact gradient flow."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from widelimit import validation
from widelimit.arithmetic import arithmetic
from widelimit.kernels.empirical.model import Apply
from widelimit.shapes import Float
from widelimit.training import checkpoints, room
from widelimit.training.checkpoints import TrainingCheckpoint
from widelimit.training.flow import slope_size
from widelimit.training.history import Recorder, recorder
from widelimit.training.loop import Training, TrainingRun, by_flow, by_steps, marks, run
from widelimit.training.optimisers import State, UpdateRule, first_update, largest_eigenvalue, rule, start
from widelimit.training.problem import TrainingProblem, problem
from widelimit.validation import Array

RECORDS = 100
"""Records along a run, unless record_every is given."""

TOLERANCE = 1e-5
"""A flow is solved to this tolerance: float32 leaves no more than two digits beyond it."""

ROUNDING = 16
"""A tolerance is at least this many eps: below it the solver measures rounding."""

MAX_STEPS = 100_000
"""A flow's solver takes at most this many steps between two records."""


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

    The outputs then move by the empirical NTK, df/dt = -(1/n) Theta d: equation (3.3) of the paper; how still it stands
    is recorded. One step of "gd" is learning_rate of the flow's time, as in `gradient_flow` and `gradient_descent`.

    Args:
        apply: f(params, X), (n, d) -> (n, c) or (n,), written with jax.numpy: net.apply, or any function.
        params: theta_0, a pytree of float32 or float64 arrays, or an Equinox module.
        X: (n, d) inputs, of the parameters' dtype.
        y: (n,) or (n, c) targets; taken in the parameters' dtype.
        ensemble: params are those of E networks, each leaf with a leading axis (E,), as net.init_many makes them; all
            are trained at once, on the same batches, in one compiled program. `apply` is that of one network.
        loss: as for `gradient_flow`.
        optimizer: "gd" (all examples at every step), "sgd" (batches), "momentum" (heavy ball), "adam", or an optax
            transformation, which has its own learning rate.
        learning_rate: eta > 0, in the unit of time of d theta/dt = -grad C for all but "adam".
        steps: how many, an integer >= 0. Give this or flow_time.
        flow_time: t >= 0: solve d theta/dt = -grad C to this time, by an adaptive solver; optimizer and learning_rate
            are not used.
        momentum: mu in [0, 1), of optimizer="momentum".
        batch_size: examples a step, for all but "gd"; each epoch has an order of its own and leaves out the n mod
            batch_size last of it.
        seed: of the orders of the examples.
        probes: (m, d) inputs at which outputs are recorded.
        kernel_points: on how many training points, evenly spaced in X, the empirical NTK is recorded; 0 for none.
        record_every: steps (or time) between records; a hundredth of the whole unless given.
        checkpoint: path of a file. If it is there, training goes on where it stands, to the same bits; it must be of
            the same run. More steps (or time) than it was written for are fine if record_every is the same.
        checkpoint_seconds: seconds between writes of the checkpoint; it is also written at the end.
        tolerance: of a flow, in [16 eps, 1e-2]: local errors in units of the first step that the kernel allows.
        max_steps: of a flow's solver between two records: what bounds every solve.
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
    _check(tolerance, max_steps, checkpoint_seconds, progress, ensemble)
    given = problem(apply, params, X, y, loss, many=bool(ensemble), copies=room.copies(flow_time))
    folder = None if checkpoint is None else _place(checkpoint)
    with arithmetic(given.dtype == np.float64):
        chosen = rule(optimizer, learning_rate, momentum, batch_size, len(given.X)) if flow_time is None else None
        room.require(given, chosen, probes)
        recording = recorder(given, probes, kernel_points)
        if chosen is None:
            what, state, choices = _flow(given, recording, flow_time, record_every, tolerance, max_steps, steps)
        else:
            what, state, choices = _steps(given, recording, chosen, steps, record_every, seed)
        kept = None if folder is None else TrainingCheckpoint(folder, checkpoints.settings(recording, choices))
        trained = run(given, what, state, kept, float(checkpoint_seconds), progress)
    if not trained.finished:
        warnings.warn(trained.message, stacklevel=2)
    return trained


def _check(tolerance: Any, max_steps: Any, seconds: Any, progress: Any, ensemble: Any) -> None:
    """Refuse settings of a flow's solver, of checkpoints, and flags, whether they are used or not."""
    validation.flag("ensemble", ensemble)
    validation.finite_scalar("checkpoint_seconds", seconds, at_least=0.0)
    validation.finite_scalar("tolerance", tolerance, above=0.0, at_most=1e-2)
    validation.integer("max_steps", max_steps, at_least=1)
    validation.flag("progress", progress)


def _steps(
    given: TrainingProblem, recording: Recorder, chosen: UpdateRule, steps: Any, record_every: Any, seed: Any
) -> tuple[TrainingRun, State, dict[str, Any]]:
    """Train in discrete steps; warns of a learning rate above the bound."""
    if steps is None:
        raise ValueError("give steps, how many to take, or flow_time, the time of the exact gradient flow.")
    count = validation.integer("steps", steps, at_least=0, below=2**31)
    every = max(1, count // RECORDS)
    if record_every is not None:
        every = validation.integer("record_every", record_every, at_least=1, below=2**31)
    key = jax.random.key(validation.integer("seed", seed, at_least=0, below=2**63))
    _warn_if_unstable(given, chosen, key)
    what = TrainingRun(marks(count, every).astype(int), by_steps(given, chosen, key), recording, chosen.clock, "steps")
    name = f"optax, first update {first_update(given, chosen):.3e}" if chosen.name == "optax" else chosen.name
    choices = {
        "optimizer": name,
        "learning_rate": chosen.rate,
        "momentum": chosen.momentum,
        "batch_size": chosen.batch,
        "seed": seed if chosen.batch else 0,
    }
    return what, start(given, chosen), choices


def _flow(
    given: TrainingProblem,
    recording: Recorder,
    flow_time: Any,
    record_every: Any,
    tolerance: Any,
    max_steps: Any,
    steps: Any,
) -> tuple[TrainingRun, State, dict[str, Any]]:
    """Train by the gradient flow."""
    if steps is not None:
        raise ValueError("give steps or flow_time, not both.")
    end = float(validation.finite_scalar("flow_time", flow_time, at_least=0.0))
    every = end / RECORDS if end > 0 else 1.0
    if record_every is not None:
        every = float(validation.finite_scalar("record_every", record_every, above=0.0))
    least = ROUNDING * float(np.finfo(given.dtype).eps)
    share = float(validation.finite_scalar("tolerance", tolerance, at_least=least, at_most=1e-2))
    most = validation.integer("max_steps", max_steps, at_least=1)
    largest = largest_eigenvalue(given, jax.random.key(0), 0)
    # |grad C| n/lambda_max is how far the first stable step goes; what is learned by it is of the size of y - f_0.
    reach = len(given.X) / largest if largest > 0 else 1.0
    error = share * reach * np.maximum(np.asarray(slope_size(given), np.float64), float(np.finfo(given.dtype).tiny))
    what = TrainingRun(marks(end, every), by_flow(given, error, most), recording, 1.0, "time")
    return what, State(given.f.params, (), jnp.zeros((), jnp.int32)), {"optimizer": "flow", "tolerance": share}


def _warn_if_unstable(given: TrainingProblem, chosen: UpdateRule, key: jax.Array) -> None:
    kappa = float(given.loss.curvature)
    if chosen.name not in ("gd", "sgd", "momentum") or not math.isfinite(kappa):
        return
    largest = largest_eigenvalue(given, key, chosen.batch)
    examples = chosen.batch or len(given.X)
    bound = 2 * (1 + chosen.momentum) * examples / (kappa * largest) if largest > 0 else math.inf
    if -chosen.rate > bound:
        warnings.warn(
            f"learning_rate={-chosen.rate:g} is above the bound {bound:.3g} = 2 (1 + mu) n/(kappa lambda_max) of the "
            f"tangent kernel at the initial parameters: training may diverge.",
            stacklevel=4,
        )


def _place(path: Any) -> Path:
    """Return the path of a checkpoint, in a folder that exists."""
    if not isinstance(path, (str, Path)):
        raise TypeError(f"checkpoint must be a path, got {validation.shown(path)}.")
    place = Path(path)
    if place.is_dir() or not place.parent.is_dir():
        raise ValueError(f"checkpoint={str(path)!r} must be a file in a folder that exists.")
    return place
