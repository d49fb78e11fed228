"""A user's function f(params, X) is examined: its differentiated and fixed parts, and the cost of a row."""

import fnmatch
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import field, replace
from typing import Any, NamedTuple, Self, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr

from widelimit import validation
from widelimit.architecture.network import Network
from widelimit.arithmetic import arithmetic
from widelimit.kernels.empirical.signature import Signature
from widelimit.messages import first_line
from widelimit.pytrees import pytree
from widelimit.shapes import Float

Apply = Callable[[Any, Any], Any]
Select = Callable[[Any, Any], Any]
Names = Sequence[str] | Callable[[str], bool]

_struct: Any = jax.ShapeDtypeStruct


class Cost(NamedTuple):
    """The cost describes a function and one row of its inputs."""

    outputs: int
    parameters: int
    flops: float
    """Floating-point operations of the forward pass of one row."""
    signals: float
    """Numbers that the forward pass of one row makes."""
    largest: float
    """Numbers that the largest step of that pass makes."""
    itemsize: int


@final
@pytree
class Model:
    """The model is f(params, X) -> (n, c) with its parameters; made by `model`.

    A tree of parameters is split: the arrays to differentiate are `params`, other arrays `fixed`, all else `structure`.
    Inputs are rows, which `signature` unpacks. Outputs of any form, after `select`, are joined to c numbers for a row.
    """

    params: Any
    fixed: Any
    apply: Apply = field(metadata={"static": True})
    structure: Any = field(metadata={"static": True})
    select: Select | None = field(default=None, metadata={"static": True})
    signature: Signature | None = field(default=None, metadata={"static": True})

    def whole(self, params: Any) -> Any:
        """Return the parameters as the user's function takes them."""
        return params if self.structure is None else eqx.combine(params, self.fixed, self.structure)

    def outputs(self, params: Any, X: Float[jax.Array, "n d"]) -> Any:
        """Compute the outputs as a tree of arrays (n, ...), for inputs in rows."""
        inputs = X if self.signature is None else self.signature.inputs(X)
        values = self.apply(self.whole(params), inputs)
        return values if self.select is None else self.select(values, inputs)

    def __call__(self, params: Any, X: Float[jax.Array, "n d"]) -> Float[jax.Array, "n c"]:
        leaves = [jnp.asarray(leaf).reshape(len(X), -1) for leaf in jax.tree.leaves(self.outputs(params, X))]
        return leaves[0] if len(leaves) == 1 else jnp.concatenate(leaves, axis=1)

    def at(self, name: str, X: Any) -> Self:
        """Return the model for rows in which inputs of the form of X are packed, if it has no form yet."""
        if self.signature is not None or isinstance(getattr(self.apply, "__self__", None), Network):
            return self
        return replace(self, signature=Signature.of(name, X))

    def points(self, name: str, X: Any) -> validation.Array:
        """Return inputs as rows (n, d), including images if the function is `apply` of a network of images."""
        net = getattr(self.apply, "__self__", None)
        if isinstance(net, Network):
            return net.rows(name, X)
        if self.signature is not None:
            return self.signature.rows(name, X, np.result_type(*(leaf.dtype for leaf in jax.tree.leaves(self.params))))
        if (form := Signature.of(name, X)) is not None:
            raise ValueError(f"{name} has the form {form}, but rows (n, d) are needed here: pass k.at({name}) for k.")
        return validation.points(name, X)

    def row(self, params: Any, x: Float[jax.Array, " d"]) -> Float[jax.Array, " c"]:
        """Evaluate f at one input."""
        return self(params, x[None])[0]

    def of_dtype(self, dtype: Any) -> Self:
        """Return the model with its parameters in the dtype of the inputs, which must keep every digit.

        Raises: TypeError: float64 parameters and float32 inputs.
        """
        leaves = jax.tree.leaves(self.params)
        if dtype == np.float32 and any(leaf.dtype == np.float64 for leaf in leaves):
            raise TypeError("X is float32 and the parameters are float64; pass X.astype('float64').")
        frozen = [leaf for leaf in jax.tree.leaves(self.fixed) if _is_float(leaf)]
        if all(leaf.dtype == dtype and isinstance(leaf, jax.Array) for leaf in (*leaves, *frozen)):
            return self
        with arithmetic(dtype == np.float64), jax.ensure_compile_time_eval():  # numbers stay numbers within a trace
            params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), self.params)
            fixed = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype) if _is_float(leaf) else leaf, self.fixed)
            return replace(self, params=params, fixed=fixed)

    def names(self) -> list[str]:
        """Return the dotted names of the parameters, in the order of their leaves."""
        return [dotted(path) for path, _ in jax.tree_util.tree_leaves_with_path(self.params)]

    def cost(self, features: int, dtype: Any) -> Cost:
        """Find the cost of rows with this many features by tracing the function, without running it.

        Raises: TypeError, ValueError: the function fails on such rows, or returns another shape or dtype.
        """
        leaves, structure = self.structs()
        with arithmetic(dtype == np.float64):
            return _cost(leaves, structure, features, np.dtype(dtype))

    def output_shapes(self, X: Float[validation.Array, "n d"]) -> tuple[list[tuple[int, ...]], Any]:
        """Return the shapes of the outputs without the axis of the rows, and their tree. Raises: as `cost`."""
        f = self.of_dtype(X.dtype)
        f.cost(X.shape[1], X.dtype)
        with arithmetic(X.dtype == np.float64):
            made = jax.eval_shape(f.outputs, f.params, _struct((1, X.shape[1]), X.dtype))
        leaves, structure = jax.tree.flatten(made)
        return [leaf.shape[1:] for leaf in leaves], structure

    def structs(self) -> tuple[tuple[Any, ...], Any]:
        """Return shapes and dtypes of all arrays, and the tree they are the leaves of."""
        leaves, structure = jax.tree.flatten(jax.tree.map(lambda leaf: _struct(leaf.shape, leaf.dtype), self))
        return tuple(leaves), structure


def dotted(path: Any) -> str:
    """Return the name of a leaf by its place in the tree, such as "layers.0.weight"."""
    return jax.tree_util.keystr(path, simple=True, separator=".") or "params"


def _is_float(leaf: Any) -> bool:
    return np.dtype(leaf.dtype) in (np.float32, np.float64)


def model(apply: Apply, params: Any, parameters: Names | None = None, select: Select | None = None) -> Model:
    """Check a function and its parameters; those that `parameters` names are differentiated, all unless given.

    Raises: TypeError: not a function, not hashable, parameters that are not float32 or float64 arrays; ValueError: no
    parameters, or some that are not finite.
    """
    if not callable(apply):
        raise TypeError(f"apply must be a function apply(params, X), got {type(apply).__name__}.")
    if select is not None:
        validation.function("of", select, "a function of the outputs and X")
    for name, function in (("apply", apply), ("of", select)):
        try:
            hash(function)
        except TypeError:
            raise TypeError(f"{name} must be hashable, as functions are: pass a lambda around it.") from None
    if parameters is not None or isinstance(params, eqx.Module):
        trained, rest = eqx.partition(params, _mask(params, parameters))
        fixed, structure = eqx.partition(rest, eqx.is_array)
    else:
        trained, fixed, structure = params, None, None
    trained, fixed = (jax.tree.map(validation.owned_leaf, tree) for tree in (trained, fixed))
    named = jax.tree_util.tree_leaves_with_path(trained)
    if not named:
        raise ValueError("params holds no arrays: there is nothing to differentiate.")
    for path, leaf in named:
        _check_leaf("params" + jax.tree_util.keystr(path), leaf)
    return Model(trained, fixed, apply, structure, select)


def _mask(params: Any, parameters: Names | None) -> Any:
    """Return a tree of True for the leaves to differentiate. Raises: ValueError: a pattern that names none."""
    module, named = isinstance(params, eqx.Module), jax.tree_util.tree_leaves_with_path(params)
    names = [dotted(path) for path, leaf in named if eqx.is_inexact_array(leaf) or not module]
    if parameters is None:
        chosen = set(names)
    elif callable(parameters):
        chosen = {name for name in names if parameters(name)}
    elif isinstance(parameters, str) or not isinstance(parameters, Sequence):
        raise TypeError(
            f"parameters must be a list of patterns, such as ['head.*'], or a function of a name, got "
            f"{validation.shown(parameters)}."
        )
    else:
        chosen = set()
        for pattern in parameters:
            if not isinstance(pattern, str):
                raise TypeError(f"parameters holds {validation.shown(pattern)}; patterns are text, such as 'head.*'.")
            found = fnmatch.filter(names, pattern)
            if not found:
                known = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
                raise ValueError(
                    f"no parameter has a name like {validation.shown(pattern)} of parameters=; the names are {known}."
                )
            chosen |= set(found)
    return jax.tree_util.tree_map_with_path(lambda path, _: dotted(path) in chosen, params)


def _check_leaf(name: str, leaf: Any) -> None:
    dtype = leaf.dtype if isinstance(leaf, (np.ndarray, np.generic, jax.Array)) else None
    if dtype not in (np.float32, np.float64):
        found = f"is {type(leaf).__name__}" if dtype is None else f"has dtype {dtype}"
        raise TypeError(
            f"{name} {found}; parameters are float32 or float64 arrays. Keep what is not trained out of params, e.g. "
            f"lambda params, X: apply((params, rest), X)."
        )
    if not validation.traced(leaf):
        validation.as_finite_floats(name, leaf)


@functools.lru_cache(maxsize=256)
def _cost(leaves: tuple[Any, ...], structure: Any, features: int, dtype: np.dtype[Any]) -> Cost:
    f: Model = jax.tree.unflatten(structure, leaves)
    one, two = (_trace(f, rows, features, dtype) for rows in (1, 2))
    outputs = one.out_avals[0].shape[1]
    (flops, signals), (flops2, signals2) = _work(one.jaxpr), _work(two.jaxpr)
    parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(f.params))
    # Work that does not grow with the rows (a transposed weight) is not part of the cost of a row.
    largest = max((b - a for a, b in zip(_sizes(one.jaxpr), _sizes(two.jaxpr), strict=False)), default=0)
    made = max(signals2 - signals, outputs)
    return Cost(outputs, parameters, max(flops2 - flops, 1.0), made, max(largest, outputs), dtype.itemsize)


def _trace(f: Model, rows: int, features: int, dtype: np.dtype[Any]) -> ClosedJaxpr:
    form = f"shape ({rows}, {features})" if f.signature is None else f"form {f.signature} with n = {rows}"
    try:
        made = jax.eval_shape(lambda f, X: f.outputs(f.params, X), f, _struct((rows, features), dtype))
        leaves = [(np.shape(leaf), jnp.result_type(leaf)) for leaf in jax.tree.leaves(made)]
    except (TypeError, ValueError, IndexError, KeyError, AttributeError) as error:
        raise ValueError(
            f"apply(params, X) fails for X of {form}: {type(error).__name__}: {first_line(error)} "
            f"Are the parameters those of this architecture, and made for {features} features?"
        ) from error
    for shape, found in leaves or [((), dtype)]:
        if shape[:1] != (rows,) or 0 in shape:
            raise ValueError(
                f"apply(params, X) must map X of {form} to outputs ({rows}, c) or ({rows},), or with more axes "
                f"after the rows; it returned shape {shape}."
            )
        if found != dtype:
            raise TypeError(
                f"apply(params, X) returned {found} for {dtype} parameters and inputs; it must keep the dtype."
            )
    return jax.make_jaxpr(Model.__call__)(f, f.params, _struct((rows, features), dtype))


def _work(program: Jaxpr) -> tuple[float, float]:
    """Count flops of a program and the numbers that its steps write; the body of a scan counts once per iteration."""
    flops = signals = 0.0
    steps: Any = program.eqns
    for step in steps:
        written = sum(math.prod(v.aval.shape) for v in step.outvars)
        inner = list(inner_programs(step.params.values()))
        turns = step.params.get("length", 1) if step.primitive.name == "scan" else 1
        for part in inner:
            more = _work(part)
            flops, signals = flops + turns * more[0], signals + turns * more[1]
        if not inner:
            flops, signals = flops + written * _per_number(step), signals + written
    return flops, signals


def _sizes(program: Jaxpr) -> Iterator[int]:
    """Yield how many numbers each step of a program writes; a step with inner programs is replaced by their steps."""
    steps: Any = program.eqns
    for step in steps:
        inner = list(inner_programs(step.params.values()))
        for part in inner:
            yield from _sizes(part)
        if not inner:
            yield sum(math.prod(v.aval.shape) for v in step.outvars)


def inner_programs(values: Any) -> Iterator[Jaxpr]:
    """Yield the programs among the parameters of a step."""
    for value in values:
        if isinstance(value, ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, Jaxpr):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from inner_programs(value)


def _per_number(step: Any) -> float:
    """Return the flops per written number of a step: twice the length of the sum for products, else 1."""
    if step.primitive.name == "dot_general":
        (contracted, _), _ = step.params["dimension_numbers"]
        return float(2 * math.prod(step.invars[0].aval.shape[i] for i in contracted))
    if step.primitive.name == "conv_general_dilated":
        filters = step.invars[1].aval.shape
        return float(2 * math.prod(filters) / filters[step.params["dimension_numbers"].rhs_spec[0]])
    return 1.0


def float_sizes(program: Jaxpr) -> set[int]:
    """Return the bytes of all real floats that a program makes."""
    steps: Any = program.eqns
    dtypes = [getattr(v.aval, "dtype", None) for step in steps for v in step.outvars]
    sizes = {dtype.itemsize for dtype in dtypes if dtype is not None and jnp.issubdtype(dtype, jnp.floating)}
    return sizes.union(*(float_sizes(part) for step in steps for part in inner_programs(step.params.values())))
