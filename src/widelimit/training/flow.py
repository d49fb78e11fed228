"""The exact gradient flow of the parameters, d theta/dt = -grad C, is solved by an adaptive solver (diffrax)."""

import functools
import math
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from widelimit.training.problem import TrainingProblem


@jax.jit
def slope_size(problem: TrainingProblem) -> jax.Array:
    """Compute |grad C| at theta_0, (*E,)."""

    def member(params: Any) -> jax.Array:
        return jnp.asarray(optax.tree.norm(jax.grad(problem.cost)(params, problem.X, problem.y, problem.loss)))

    return jnp.asarray(problem.for_each(member)(problem.f.params))


@functools.partial(jax.jit, static_argnames=("max_steps",))
def flow(
    problem: TrainingProblem, params: Any, duration: jax.Array, error: jax.Array, *, max_steps: int
) -> tuple[Any, jax.Array, jax.Array]:
    """Return the parameters after `duration`, steps taken, and True if the solver arrived; errors |dtheta| <= error.

    Solved for the displacement: in float32 the parameters themselves would round away the small steps.
    """

    def member(params: Any, error: jax.Array) -> tuple[Any, jax.Array, jax.Array]:
        start, whole = ravel_pytree(params)

        def velocity(t: Any, moved: jax.Array, args: Any) -> jax.Array:  # noqa: ARG001, the solver passes them
            slope = jax.grad(problem.cost)(whole(start + moved), problem.X, problem.y, problem.loss)
            return -ravel_pytree(slope)[0]

        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(velocity),
            diffrax.Tsit5(),
            t0=jnp.zeros((), error.dtype),
            t1=duration,
            dt0=None,
            y0=jnp.zeros_like(start),
            saveat=diffrax.SaveAt(t1=True),
            stepsize_controller=diffrax.PIDController(rtol=0.0, atol=error / math.sqrt(start.size)),
            max_steps=max_steps,
            throw=False,
        )
        assert solution.ys is not None
        return (
            whole(start + solution.ys[-1]),
            solution.stats["num_steps"],
            solution.result == diffrax.RESULTS.successful,
        )

    return problem.for_each(member)(params, error)  # type: ignore[no-any-return]
