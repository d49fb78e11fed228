"""A function is expanded around its parameters: the linearised network and Taylor polynomials."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from widelimit import validation
from widelimit.arithmetic import arithmetic
from widelimit.kernels.empirical import derivatives
from widelimit.kernels.empirical.model import Apply, model
from widelimit.kernels.empirical.rows import check_rows, require_finite
from widelimit.validation import Array


def linearize(apply: Apply, params: Any) -> Apply:
    """Return f_0(x) + df(x)/dtheta|_0 . (theta - theta_0): its training is that of its kernel at theta_0.

    Source: section 2.1 of Lee et al. 2019 (arXiv 1902.06720); the paper's linearisation by Theta.

    Args: as `taylor`. Returns: as `taylor`, of order 1.
    """
    return taylor(apply, params, 1)


def taylor(apply: Apply, params: Any, order: int) -> Apply:
    """Return sum_{k <= order} (1/k!) d^k/dt^k f(theta_0 + t (theta - theta_0), x) at t = 0.

    Args:
        apply: f(params, X), as for `empirical_ntk`.
        params: theta_0, a pytree of float32 or float64 arrays, or an Equinox module.
        order: an integer >= 0; 0 is f_0, 1 the linearised function. The cost grows like 2^order.

    Returns:
        A function of (params, X) like `apply`; it is exact if f is a polynomial of this degree in its parameters.

    Raises:
        TypeError, ValueError: not a function, parameters that are not finite floats, an order below 0; of the function
            returned: parameters of another form than theta_0, a function that mixes rows, a value that is NaN, with its
            row.
    """
    f = model(apply, params)
    order = validation.integer("order", order, at_least=0)

    def expansion(params: Any, X: Any) -> Any:
        moved = model(apply, params).params
        shapes = [jax.tree.map(np.shape, tree) for tree in (moved, f.params)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"parameters of another form than those expanded around: {shapes[0]}, not {shapes[1]}.")
        here = f.at("X", X)
        points = _points(X) if here.signature is None else here.points("X", X)
        check_rows(here, points)
        wide = any(leaf.dtype == np.float64 for leaf in jax.tree.leaves((moved, f.params)))
        with arithmetic(wide):
            start = jax.tree.map(jnp.asarray, f.params)
            step = jax.tree.map(jnp.subtract, moved, start)

            def along(t: jax.Array) -> Any:
                return here.outputs(
                    jax.tree.map(lambda a, d: a + t.astype(d.dtype) * d, start, step), jnp.asarray(points)
                )

            values = _sum(along, jnp.zeros((), jax.tree.leaves(step)[0].dtype), order)
        for leaf in jax.tree.leaves(values):
            require_finite(here, leaf, X=points)
        return values

    return expansion


def _points(X: Any) -> Array:
    points = X if isinstance(X, jax.Array) else np.asarray(X)
    if points.ndim == 0 or points.size == 0:
        raise ValueError(f"X must hold at least one row of inputs, (n, ...), got shape {points.shape}.")
    return points


def _sum(along: Callable[[jax.Array], Any], zero: jax.Array, order: int) -> Any:
    """Sum the Taylor polynomial of a function of one number, at 1 around 0."""
    derivative, terms = along, []
    for k in range(order + 1):
        terms.append(jax.tree.map(lambda value: value / math.factorial(k), derivative(zero)))  # noqa: B023
        derivative = _derivative(derivative)
    return jax.tree.map(lambda *values: sum(values[1:], start=values[0]), *terms)


def _derivative(function: Callable[[jax.Array], Any]) -> Callable[[jax.Array], Any]:
    return lambda t: derivatives.along(function, t, jnp.ones_like(t))[1]
