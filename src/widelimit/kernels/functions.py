"""Any function of two points, or of two blocks of points, becomes a kernel."""

import functools
import math
from collections.abc import Callable
from dataclasses import field
from typing import Any, Self, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from widelimit import validation
from widelimit.arithmetic import arithmetic, outside
from widelimit.kernels.base import Kernel
from widelimit.messages import first_line
from widelimit.pytrees import pytree
from widelimit.references import Reference, referenced, resolved
from widelimit.shapes import Float
from widelimit.validation import Array

TRIED = 4
"""Rows at which a function is tried before it is taken for a kernel."""


@final
class _Bound(eqx.Module):
    """The function has arguments beside the two points; floats among them are hyper-parameters."""

    function: Callable[..., Any] = eqx.field(static=True)
    names: tuple[str, ...] = eqx.field(static=True)
    arguments: tuple[Any, ...]
    keywords: tuple[Any, ...]

    def __call__(self, x: Any, y: Any) -> Any:
        return self.function(*self.arguments, x, y, **dict(zip(self.names, self.keywords, strict=True)))

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (Reference(self.function), self.names, referenced(self.arguments), referenced(self.keywords))


def _rebuilt(*fields: Any) -> _Bound:
    return _Bound(*resolved(fields))


@final
@pytree
class FunctionKernel(Kernel):
    """K(x, x') = function(x, x'); made by `kernel`."""

    parameters: Any
    """The floats of the function: its hyper-parameters."""
    structure: Any = field(metadata={"static": True})
    blocks: bool = field(metadata={"static": True})

    def prepared(self, *inputs: Float[Array, "n d"]) -> Self:
        if not validation.traced(*inputs, *jax.tree.leaves(self.parameters)):
            rows = np.concatenate([np.asarray(X[:TRIED]) for X in inputs])[: 2 * TRIED]
            _check_values(_values(self, rows))
        return self

    def pairwise(self, x: Any, y: Any, *, same: bool | jax.Array = False) -> Float[jax.Array, "n m"]:
        f = self._of(x.dtype)
        if self.blocks:
            return _call(f, x, y, (len(x), len(y)))
        return jnp.asarray(jax.lax.map(lambda a: jax.vmap(lambda b: _call(f, a, b, ()))(y), x))

    def diagonal(self, x: Any) -> Float[jax.Array, " n"]:
        f = self._of(x.dtype)
        if self.blocks:
            return jax.vmap(lambda a: _call(f, a[None], a[None], (1, 1))[0, 0])(x)
        return jax.vmap(lambda a: _call(f, a, a, ()))(x)

    def _of(self, dtype: Any) -> Callable[[Any, Any], Any]:
        """Return the function with its parameters in the dtype of the inputs."""
        cast = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), self.parameters)
        return eqx.combine(cast, self.structure)  # type: ignore[no-any-return]


def _call(f: Callable[[Any, Any], Any], x: jax.Array, y: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    try:
        value = jnp.asarray(f(x, y))
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError) as error:
        raise TypeError(
            "the function of a kernel must be written with jax.numpy, without NumPy, float() or if on values. A matrix "
            "that other code computes: wl.precomputed(matrix)."
        ) from error
    except (TypeError, ValueError, IndexError) as error:
        raise ValueError(
            f"the function fails for inputs of shapes {x.shape}, {y.shape}: {first_line(error)}"
        ) from error
    if value.shape != shape:
        needed = "(n, d), (m, d) to (n, m)" if shape else "two points (d,), (d,) to a number"
        other = "" if shape else "; blocks=True for a function of two blocks"
        raise ValueError(f"the function must map {needed}; {x.shape}, {y.shape} gave shape {value.shape}{other}.")
    if value.dtype != x.dtype:
        raise TypeError(f"the function gave {value.dtype} for {x.dtype} inputs; it must keep the dtype.")
    return value


@jax.jit
def _try_rows(k: FunctionKernel, rows: jax.Array) -> jax.Array:
    """Compute the kernel of the rows, with one row appended to the second block so that the blocks differ in size."""
    return k.pairwise(rows, jnp.concatenate([rows, rows[:1]]))[:, :-1]


@outside
def _values(k: FunctionKernel, rows: np.ndarray) -> np.ndarray:
    with arithmetic(rows.dtype == np.float64):
        return np.asarray(_try_rows(k, jnp.asarray(rows)))


def _check_values(values: np.ndarray) -> None:
    if not np.isfinite(values).all():
        raise ValueError(f"the function gave {values[~np.isfinite(values)][0]} at the inputs; it must be finite.")
    # An asymmetry is of the order of K itself; rounding may take half of the digits where the function cancels.
    gap, size = np.abs(values - values.T), np.abs(values).max()
    if gap.max() > math.sqrt(float(np.finfo(values.dtype).eps)) * size:
        i, j = np.unravel_index(np.argmax(gap), gap.shape)
        raise ValueError(
            f"the function is not symmetric: K(x, x') is {values[i, j]:g} and K(x', x) is {values[j, i]:g}. A kernel "
            f"is; with blocks=True entry (i, j) belongs to row i of the first block and row j of the second."
        )
    if np.diagonal(values).min() < 0:
        raise ValueError(f"the function gave K(x, x) = {np.diagonal(values).min():g}; a kernel is >= 0 there.")


def _is_parameter(leaf: Any) -> bool:
    floats = isinstance(leaf, np.ndarray) and leaf.dtype.kind == "f"
    return floats or isinstance(leaf, (float, np.floating)) or eqx.is_inexact_array(leaf)


def kernel(function: Callable[..., Any], *, blocks: bool = False) -> FunctionKernel:
    """K(x, x') = function(x, x'), any symmetric positive semi-definite function as a kernel.

    It is tried at a few rows of the inputs: its shape, dtype, symmetry and finiteness. Whether it is positive
    semi-definite is found by what uses it.

    Args:
        function: of two points, (d,), (d,) -> number, written with jax.numpy. Its hyper-parameters, the leaves of the
            kernel, are the floats and float arrays that `functools.partial` binds (by name, or before the two
            points), or those of an Equinox module that is called. NumPy arrays are copied.
        blocks: the function takes two blocks instead, (n, d), (m, d) -> (n, m).

    Raises:
        TypeError: not a function, or bound arguments that are neither floats nor hashable; at the inputs: a function
            that is not written with jax.numpy or changes the dtype.
        ValueError: parameters that are not finite; at the inputs: another shape, a function that is not symmetric or
            not finite.
    """
    validation.function("function", function, "a function of two points")
    validation.flag("blocks", blocks)
    whole: Any = function
    if isinstance(function, functools.partial):
        named = dict(sorted(function.keywords.items()))
        whole = _Bound(function.func, tuple(named), function.args, tuple(named.values()))
    elif not isinstance(function, eqx.Module):
        whole = _Bound(function, (), (), ())
    parameters, structure = eqx.partition(whole, _is_parameter)
    for path, leaf in jax.tree_util.tree_leaves_with_path(parameters):
        if not validation.traced(leaf):
            validation.as_finite_floats(f"the parameter {jax.tree_util.keystr(path)}", leaf)
    try:
        hash(structure)
    except TypeError:
        raise TypeError("what functools.partial binds must be floats, float arrays or hashable values.") from None
    return FunctionKernel(jax.tree.map(validation.owned_leaf, parameters), structure, blocks)
