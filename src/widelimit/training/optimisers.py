"""Discrete steps use named optimisers and optax's, batches, the largest stable learning rate, and free memory."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from widelimit import validation
from widelimit.arithmetic import arithmetic
from widelimit.compute.krylov import STEPS, Lanczos
from widelimit.inference.gradient_descent import check_momentum
from widelimit.memory import require
from widelimit.training.problem import TrainingProblem

NAMED = ("gd", "sgd", "momentum", "adam")

PRODUCTS = 20
"""Products with the kernel for its largest eigenvalue: to a few per cent for any spectrum of 1e4 points."""
CACHE = 2**24
"""Bytes of a processor's shared cache. An ensemble beyond it would go through memory at every step."""
COPIES = 3
"""Parameters, their gradient and their update."""
KEPT = 1 / 3
"""The derivative stores at least this share of the numbers that a forward pass makes; fused steps store none."""
MOVED = 2
"""Copies of the parameters in a step beside theta_0 and theta: the gradient, and theta after it."""
STAGES = 14
"""Copies of the parameters that the flow's solver of order 5 holds."""
WIDEST = 2
"""Results of its largest step that a forward pass holds at once."""
REMEDY = "use a smaller width, fewer rows (batch_size, probes), fewer networks, or float32"


class OptimiserState(NamedTuple):
    """The state holds all that the next step depends on."""

    params: Any
    memory: Any
    """The optimiser's own state, such as its momentum."""
    step: jax.Array


class UpdateRule(NamedTuple):
    """The rule is theta <- theta + rate * update(gradient): made by `update_rule`."""

    name: str
    transformation: optax.GradientTransformation
    rate: float
    momentum: float
    batch: int
    """Examples a step; 0 for all of them."""

    @property
    def clock(self) -> float:
        """Return the time of the gradient flow that a step stands for; NaN for optimisers that do not follow it."""
        return -self.rate if self.name in ("gd", "sgd") else math.nan


@functools.lru_cache(maxsize=64)
def _transformation(name: str, momentum: float) -> optax.GradientTransformation:
    """Cache the transformation: a compiled program is found again only if it is the same object."""
    if name == "momentum":
        return optax.trace(momentum)
    return optax.scale_by_adam() if name == "adam" else optax.identity()


def update_rule(optimizer: Any, learning_rate: Any, momentum: Any, batch_size: Any, n: int) -> UpdateRule:
    """Check the optimiser and its settings. Raises: TypeError, ValueError."""
    batch = 0 if batch_size is None else validation.integer("batch_size", batch_size, at_least=1, below=n + 1)
    if isinstance(optimizer, optax.GradientTransformation):
        if learning_rate is not None:
            raise ValueError("an optax transformation has its learning rate in it; leave learning_rate out.")
        return UpdateRule("optax", optimizer, 1.0, 0.0, batch)
    if not isinstance(optimizer, str) or optimizer not in NAMED:
        known = f"one of {', '.join(NAMED)} or an optax transformation"
        raise ValueError(f"optimizer must be {known}, got {validation.shown(optimizer)}.")
    if learning_rate is None:
        raise ValueError(f"optimizer={optimizer!r} needs a learning_rate.")
    rate = float(validation.finite_scalar("learning_rate", learning_rate, above=0.0))
    if optimizer == "gd" and batch:
        raise ValueError("'gd' takes all examples at every step; for batches pass optimizer='sgd'.")
    if optimizer == "sgd" and not batch:
        raise ValueError("'sgd' needs a batch_size; for all examples at every step pass optimizer='gd'.")
    mass = check_momentum(momentum)
    mass = mass if optimizer == "momentum" else 0.0
    return UpdateRule(optimizer, _transformation(optimizer, mass), -rate, mass, batch)


def start_state(problem: TrainingProblem, rule: UpdateRule) -> OptimiserState:
    """Return theta_0 and an optimiser that has seen nothing."""
    memory = problem.for_each(rule.transformation.init)(problem.f.params)
    return OptimiserState(problem.f.params, memory, jnp.zeros((), jnp.int32))


def first_update(problem: TrainingProblem, rule: UpdateRule) -> float:
    """Return the size of the first update on all examples: it distinguishes optax transformations."""

    def member(params: Any) -> jax.Array:
        slope = jax.grad(problem.cost)(params, problem.X, problem.y, problem.loss)
        update, _ = rule.transformation.update(slope, rule.transformation.init(params), params)
        return jnp.asarray(optax.tree.norm(update))

    return float(jnp.linalg.norm(problem.for_each(member)(problem.f.params)))


def _order(problem: TrainingProblem, key: jax.Array, epoch: jax.Array) -> jax.Array:
    """Order the examples in an epoch by the seed and the epoch alone, so that nothing needs to be stored."""
    return jax.random.permutation(jax.random.fold_in(key, epoch), len(problem.X))


def _batch(problem: TrainingProblem, order: jax.Array, turn: jax.Array, batch: int) -> tuple[jax.Array, jax.Array, Any]:
    """Take examples, targets and loss of one batch; per-example parameters of the loss (weights) are sliced too."""
    rows = jax.lax.dynamic_slice_in_dim(order, turn * batch, batch)
    own = len(problem.X)
    loss = jax.tree.map(lambda leaf: leaf[rows] if jnp.shape(leaf)[:1] == (own,) else leaf, problem.loss)
    return problem.X[rows], problem.y[rows], loss


def _step(problem: TrainingProblem, transformation: optax.GradientTransformation, rate: jax.Array) -> Any:
    """Make (theta, memory, X, y, loss) -> theta and memory one step later and the cost before it, of all members."""

    def member(params: Any, memory: Any, X: jax.Array, y: jax.Array, loss: Any) -> tuple[Any, Any, jax.Array]:
        value, slope = jax.value_and_grad(problem.cost)(params, X, y, loss)
        update, memory = transformation.update(slope, memory, params)
        moved = jax.tree.map(lambda p, u: p + jnp.asarray(rate, p.dtype) * u, params, update)
        return moved, memory, value

    return problem.for_each(member, shared=3)


@functools.partial(jax.jit, static_argnames=("transformation", "batch", "group"))
def advance(
    problem: TrainingProblem,
    state: OptimiserState,
    rate: jax.Array,
    end: jax.Array,
    key: jax.Array,
    *,
    transformation: optax.GradientTransformation,
    batch: int,
    group: int,
) -> tuple[OptimiserState, jax.Array]:
    """Go to step `end`, or past the first step whose loss (before it) was not finite; returns the losses there (*E,).

    An ensemble goes through all steps `group` members at a time; `step` of the state is then that of every group.
    """
    turns = len(problem.X) // batch if batch else 1
    step = _step(problem, transformation, rate)

    def continues(carry: tuple[OptimiserState, jax.Array, jax.Array]) -> jax.Array:
        return jnp.asarray((carry[0].step < end) & jnp.all(jnp.isfinite(carry[1])))

    def body(carry: tuple[OptimiserState, jax.Array, jax.Array]) -> tuple[OptimiserState, jax.Array, jax.Array]:
        (params, memory, done), _, order = carry
        examples = problem.X, problem.y, problem.loss
        if batch:
            turn, epoch = done % turns, done // turns
            order = jax.lax.cond(turn == 0, lambda: _order(problem, key, epoch), lambda: order)
            examples = _batch(problem, order, turn, batch)
        params, memory, value = step(params, memory, *examples)
        return OptimiserState(params, memory, done + 1), value, order

    def through(members: tuple[Any, Any]) -> tuple[OptimiserState, jax.Array]:
        order = _order(problem, key, state.step // turns) if batch else jnp.zeros((), jnp.int32)
        values = jnp.zeros((group,) if problem.many else (), problem.X.dtype)
        first = (OptimiserState(*members, state.step), values, order)
        return jax.lax.while_loop(continues, body, first)[:2]

    if not problem.many:
        return through((state.params, state.memory))
    groups = jax.tree.map(lambda leaf: leaf.reshape(-1, group, *leaf.shape[1:]), (state.params, state.memory))
    moved, values = jax.lax.map(through, groups)
    params, memory = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), (moved.params, moved.memory))
    return OptimiserState(params, memory, moved.step), values.ravel()


def group_size(problem: TrainingProblem, batch: int) -> int:
    """Return the number of members that step together: a divisor of E, such that their data stay in the cache."""
    cost = problem.one().cost(problem.X.shape[1], problem.dtype)
    rows = batch or len(problem.X)
    size = cost.itemsize * (COPIES * cost.parameters + 2 * rows * cost.signals)
    most = max(1, int(CACHE / size))
    return max(g for g in range(1, problem.members + 1) if problem.members % g == 0 and g <= most)


@functools.partial(jax.jit, static_argnames=("batch",))
def _kernel_times(problem: TrainingProblem, key: jax.Array, v: jax.Array, *, batch: int) -> jax.Array:
    """Compute Theta_0 v of the first batch for every member, (E, b c) -> (E, b c)."""
    X = problem.X[_order(problem, key, jnp.zeros((), jnp.int32))[:batch]] if batch else problem.X

    def member(params: Any, v: jax.Array) -> jax.Array:
        outputs, pull = jax.vjp(lambda p: problem.f(p, X), params)
        moved = jax.jvp(lambda p: problem.f(p, X), (params,), pull(v.reshape(outputs.shape)))[1]
        return jnp.ravel(moved)

    found = problem.for_each(member)(problem.f.params, v if problem.many else v[0])
    return jnp.reshape(found, v.shape)


def largest_eigenvalue(problem: TrainingProblem, key: jax.Array, batch: int) -> float:
    """Bound lambda_max of the empirical NTK at theta_0 on a step's examples from below; the largest over members."""

    def product(v: np.ndarray) -> np.ndarray:
        with arithmetic(problem.dtype == np.float64):
            found = _kernel_times(problem, key, jnp.asarray(v.T, problem.dtype), batch=batch)
        return np.asarray(found, np.float64).T

    size = (batch or len(problem.X)) * problem.y.shape[1]
    start = np.random.default_rng(0).standard_normal((size, 1))
    basis = Lanczos(product, np.tile(start, problem.members))
    for _ in range(-(-min(size, PRODUCTS) // STEPS)):
        basis.extend()
    return basis.largest_eigenvalue()


def copies_held(flow_time: Any) -> int:
    """Return the copies of the parameters that training, by steps or for a time, holds at least, theta_0 included."""
    return 1 + (MOVED if flow_time is None else STAGES)


def require_room(problem: TrainingProblem, rule: UpdateRule | None, probes: Any) -> None:
    """Refuse training, by steps or (without a rule) by the flow, whose arrays do not fit. Raises: MemoryError."""
    cost = problem.one().cost(problem.X.shape[1], problem.dtype)
    n, members = len(problem.X), problem.members
    held = 0.0  # the optimiser's own memory, before and after a step
    if rule:
        made = jax.eval_shape(problem.for_each(rule.transformation.init), problem.f.params)
        held = 2.0 * sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(made))
    rows = (rule.batch if rule else 0) or n
    together = group_size(problem, rule.batch) if rule else members
    step = together * rows * max(KEPT * cost.signals, WIDEST * cost.largest)
    # Probes that are no array are refused later, by `recorder`.
    probed = sum(np.shape(probes)[:1]) if isinstance(probes, (np.ndarray, jax.Array)) else 0
    records = members * max(n, probed) * WIDEST * cost.largest
    size = held + cost.itemsize * (members * cost.parameters * (MOVED if rule else STAGES) + max(step, records))
    what = f"training {members} networks with {cost.parameters} parameters each on {rows} rows a step"
    require(size, what, remedy=REMEDY)
