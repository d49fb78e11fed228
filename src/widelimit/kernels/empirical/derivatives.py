"""Derivatives in directions of the parameters are computed, even for functions with a rule for reverse mode only."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr

from widelimit.kernels.empirical.model import inner_programs

Function = Callable[[Any], Any]


def along(function: Function, params: Any, direction: Any) -> tuple[Any, Any]:
    """Compute a function of the parameters, and its derivative along one direction of them."""
    if not _reverse_only(function, params):
        return jax.jvp(function, (params,), (direction,))
    value, push = _transposed(function, params)
    return value, push(direction)


def linearize(function: Function, params: Any) -> Function:
    """Return the derivative of the function as a map of directions, as `jax.linearize`."""
    if not _reverse_only(function, params):
        return jax.linearize(function, params)[1]
    return _transposed(function, params)[1]


def _transposed(function: Function, params: Any) -> tuple[Any, Function]:
    """Return the value, and the forward derivative as the reverse mode of reverse mode, which is linear in signals."""
    value, pull = jax.vjp(function, params)
    _, push = jax.vjp(lambda signals: pull(signals)[0], jax.tree.map(jnp.zeros_like, value))
    return value, lambda direction: push(direction)[0]


def _reverse_only(function: Function, params: Any) -> bool:
    """Return True if a step of the function is a `jax.custom_vjp`, which has no forward mode."""
    return _has_rule(jax.make_jaxpr(function)(params).jaxpr)


def _has_rule(program: Jaxpr) -> bool:
    steps: Any = program.eqns
    return any(
        step.primitive.name.startswith("custom_vjp_call") or any(map(_has_rule, inner_programs(step.params.values())))
        for step in steps
    )
