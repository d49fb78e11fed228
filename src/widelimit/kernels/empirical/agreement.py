"""Factors read layer by layer are checked against automatic differentiation of the whole function, once per function.

At a few rows the gradient of a randomly weighted sum of the outputs by each parameter is taken both ways. Factors may
have the entries of a parameter in another order, so inner products of the gradients of two rows are compared.
"""

import functools
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr

from widelimit import validation
from widelimit.arithmetic import arithmetic
from widelimit.kernels.empirical.contraction import Layerwise, Way
from widelimit.kernels.empirical.factors import Affine, Factor, Lookup
from widelimit.kernels.empirical.model import Model, float_sizes
from widelimit.kernels.empirical.plan import ContractionPlan, KernelSettings, network_of, plan
from widelimit.kernels.empirical.rows import REMEMBERED, check_rows, choose_rows, form_of, integer_columns

BOUNDS = {8: 1e-9, 4: 1e-3}
"""Differences that are taken for rounding, as a share of the largest gradient, by the bytes of the shortest float."""
SHORT = 0.1
"""The same bound for floats of 2 bytes or less."""

_compared: dict[Any, tuple[str, Way]] = {}
"""For each function the parameter whose factors are wrong, and their form; the name is empty if all are right."""


def checked_plan(f: Model, settings: KernelSettings, found: ContractionPlan, *inputs: Any) -> ContractionPlan:
    """Return the plan, or one without "layerwise" if factors read layer by layer are wrong for this function.

    Raises: ValueError: the function mixes rows; method="layerwise" was asked for and is wrong for it.
    """
    check_rows(f, *inputs)
    if found.method != "layerwise":
        return found
    name, way = _misread(f, found, *inputs)
    if not name:
        return found
    if settings.method == "layerwise" or way == "none":
        other = "vector_products" if way == "none" else "jacobian"
        raise ValueError(
            f'method="layerwise" differs from automatic differentiation in the parameter {name}: '
            f'pass method="{other}" for this function.'
        )
    return plan(f, settings, found.sizes, inputs[0].shape[1], np.result_type(*(X.dtype for X in inputs)), layers=False)


def _misread(f: Model, found: ContractionPlan, *inputs: Any) -> tuple[str, Way]:
    """Return the first parameter whose gradients differ, and its way; the comparison is made once per function."""
    if network_of(f) is not None or validation.traced(*jax.tree.leaves((f.params, f.fixed))):
        return "", "none"
    shown = form_of(f, inputs[0])
    if shown not in _compared:
        _compared[shown] = _compare(f, found, choose_rows(*inputs, integers=integer_columns(f)))
        if len(_compared) > REMEMBERED:
            _compared.pop(next(iter(_compared)), None)
    return _compared[shown]


def _compare(f: Model, found: ContractionPlan, rows: np.ndarray) -> tuple[str, Way]:
    # Explicit factors come from automatic differentiation themselves, and need no check.
    ways: tuple[Way, ...] = tuple("none" if layer.way == "explicit" else layer.way for layer in found.layers)
    if not any(way != "none" for way in ways):
        return "", "none"
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((len(rows), found.cost.outputs)).astype(rows.dtype)
    wide, exact = arithmetic(rows.dtype == np.float64), jax.default_matmul_precision("highest")
    there = jax.tree.map(lambda leaf: _open(np.asarray(leaf), rng), f.params)
    with wide, exact:
        bound = _bound(jax.make_jaxpr(f.row)(there, rows[0]).jaxpr)
        compiled = _products.lower(f, there, ways, rows, weights).compile()
        with jax.ensure_compile_time_eval():  # inside of a trace, too
            values = compiled(f, there, rows, weights)
            whole, read = (np.asarray(part, np.float64) for part in values)
    seen = np.isfinite(whole)
    sizes = np.sqrt(np.max(np.where(seen, np.abs(whole), 0), axis=(1, 2)))
    error = bound * sizes.max(initial=0)
    gaps = np.where(seen, np.nan_to_num(np.abs(read - whole), nan=np.inf, posinf=np.inf), 0).max(axis=(1, 2))
    for layer, gap, size in zip(found.layers, gaps, sizes, strict=True):
        if layer.way != "explicit" and gap > error * (2 * size + error):
            return layer.name, layer.way
    return "", "none"


def _open(leaf: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a parameter with its zeros replaced, as a gate at 0 would hide the layers that it multiplies."""
    return np.where(leaf == 0, rng.uniform(0.05, 0.15, leaf.shape), leaf).astype(leaf.dtype)


@functools.partial(jax.jit, static_argnames="ways")
def _products(
    f: Model, params: Any, ways: tuple[Way, ...], rows: jax.Array, weights: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Compute inner products of the gradients of rows, (parameters, r, r): by reverse mode, and by factors."""
    layers = Layerwise(replace(f, params=params), ways)

    def row(given: tuple[jax.Array, jax.Array]) -> tuple[list[jax.Array], list[jax.Array]]:
        x, weight = given
        whole = jax.tree.leaves(jax.vjp(lambda p: f.row(p, x), params)[1](weight)[0])
        factors = iter(layers.of_row(x, weight[None]))
        read = [jnp.zeros(1, weight.dtype) if way == "none" else _gradient(next(factors)) for way in ways]
        return [jnp.ravel(leaf).astype(weight.dtype) for leaf in whole], [jnp.ravel(leaf) for leaf in read]

    found = jax.lax.map(row, (rows, weights))
    whole, read = (jnp.stack([leaf @ leaf.T for leaf in part]) for part in found)
    return whole, read


def _gradient(factor: Factor) -> jax.Array:
    """Return the Jacobian of a factor of one row and one output, its entries in the order of the factor."""
    if isinstance(factor, Affine):
        return jnp.einsum("so,si->oi", factor.backward[:, 0], factor.signals)
    if isinstance(factor, Lookup):
        back = factor.backward[:, 0]
        return jnp.zeros((factor.rows, back.shape[1]), back.dtype).at[factor.tokens].add(back)
    return factor.jacobian  # type: ignore[no-any-return]


def _bound(program: Jaxpr) -> float:
    return BOUNDS.get(min(float_sizes(program), default=8), SHORT)
