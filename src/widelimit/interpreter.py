"""JAX functions are evaluated by NumPy, without XLA: compilation costs more than work that is done once.

A function is traced to a jaxpr, a list of primitive operations, and NumPy does each. One operation takes about a
microsecond and its arrays; a compiled program of a few hundred operations takes 0.1 to 3 seconds to make.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend import core

Values = list[Any]
Parameters = dict[str, Any]


def interpreted(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function with the values of `function` (to rounding), computed by NumPy.

    For work on up to some 100,000 numbers that is done once. What was traced is remembered by the function, and by the
    structures and types of its arguments: pass module-level functions, and numbers as arguments. Arguments and results
    are pytrees of arrays; arguments are taken in the dtypes that JAX would take them in, results are NumPy arrays. A
    primitive that is not known here is done by JAX, which compiles it.
    """

    def call(*arguments: Any) -> Any:
        leaves, structure = jax.tree.flatten(arguments)
        key = structure, tuple(map(jax.typeof, leaves)), jax.dtypes.canonicalize_dtype(np.float64).name
        try:
            closed, form = _trace(function, *key)
        except TypeError:  # a function without a hash; or its own error, which is raised again
            closed, form = _trace.__wrapped__(function, *key)
        with np.errstate(all="ignore"):
            values = _run(closed, leaves)
        return jax.tree.unflatten(form, values)

    return call


@functools.lru_cache(maxsize=256)
def _trace(function: Callable[..., Any], structure: Any, forms: tuple[Any, ...], _: str) -> tuple[Any, Any]:
    """Return the jaxpr of a function and the structure of its result; the last argument is JAX's default float."""
    leaves = [jax.ShapeDtypeStruct(form.shape, form.dtype, weak_type=form.weak_type) for form in forms]  # type: ignore[no-untyped-call]
    closed, form = jax.make_jaxpr(function, return_shape=True)(*jax.tree.unflatten(structure, leaves))
    return closed, jax.tree.structure(form)


class _Step(NamedTuple):
    """A step is one operation on numbered places."""

    work: Callable[[Values], Sequence[Any]]
    given: list[int]
    results: list[tuple[int, Any]]
    """Places and dtypes."""
    dropped: list[int]
    """Places whose value was used for the last time."""


class _Program(NamedTuple):
    """A program is a jaxpr ready to run, with the functions that it calls in line."""

    start: Values
    """Constants in their places; None in the others."""
    given: list[tuple[int, Any]]
    steps: list[_Step]
    results: list[int]


@functools.lru_cache(maxsize=1024)
def _program(closed: Any) -> _Program:
    start: Values = []
    steps: list[_Step] = []

    def place(value: Any = None) -> int:
        start.append(value)
        return len(start) - 1

    def add(jaxpr: Any, constants: Sequence[Any], given: list[int]) -> list[int]:
        at = {v: place(np.asarray(x, v.aval.dtype)) for v, x in zip(jaxpr.constvars, constants, strict=True)}
        at.update(zip(jaxpr.invars, given, strict=True))

        def of(v: Any) -> int:
            literal: Any = v
            return place(np.asarray(literal.val, literal.aval.dtype)) if isinstance(v, core.Literal) else at[v]

        for equation in jaxpr.eqns:
            inputs = [of(v) for v in equation.invars]
            if equation.primitive.name in CALLS:
                inner = next(equation.params[key] for key in CALLED if key in equation.params)
                whole = isinstance(inner, core.ClosedJaxpr)
                found = add(inner.jaxpr if whole else inner, inner.consts if whole else (), inputs)
            else:
                found = [place() for _ in equation.outvars]
                results = [(i, v.aval.dtype) for i, v in zip(found, equation.outvars, strict=True)]
                steps.append(_Step(_work(equation), inputs, results, []))
            at.update(zip(equation.outvars, found, strict=True))
        return [of(v) for v in jaxpr.outvars]

    given = [(place(), v.aval.dtype) for v in closed.jaxpr.invars]
    results = add(closed.jaxpr, closed.consts, [i for i, _ in given])
    kept = {i for i, x in enumerate(start) if x is not None} | {*results}
    return _Program(start, given, _dropping(steps, kept), results)


def _dropping(steps: list[_Step], kept: set[int]) -> list[_Step]:
    """Return the steps with the places whose values each drops."""
    last = {i: number for number, step in enumerate(steps) for i in (*step.given, *(i for i, _ in step.results))}
    for i, number in last.items():
        if i not in kept:
            steps[number].dropped.append(i)
    return steps


def _run(closed: Any, arguments: Sequence[Any]) -> Values:
    """Compute the outputs of a closed jaxpr; a value is dropped after its last use."""
    program = _program(closed)
    values = program.start.copy()
    for (i, dtype), x in zip(program.given, arguments, strict=True):
        values[i] = np.asarray(x, dtype)
    for step in program.steps:
        found = step.work([values[i] for i in step.given])
        for (i, dtype), x in zip(step.results, found, strict=True):
            values[i] = np.asarray(x, dtype)
        for i in step.dropped:
            values[i] = None
    return [values[i] for i in program.results]


def _work(equation: Any) -> Callable[[Values], Sequence[Any]]:
    """Return the function of one operation, from its inputs to its outputs."""
    primitive, name, parameters = equation.primitive, equation.primitive.name, equation.params
    if name in _CONTROL:
        return lambda given: _CONTROL[name](given, parameters)
    if name in _PLAIN and not (name == "mul" and parameters.get("out_dtype") is not None):
        return lambda given: (_PLAIN[name](*given),)
    if name == "split":
        places = np.cumsum(parameters["sizes"])[:-1]
        return lambda given: np.split(given[0], places, parameters["axis"])

    def work(given: Values) -> Sequence[Any]:
        result = _WITH_PARAMETERS[name](given, parameters) if name in _WITH_PARAMETERS else None
        if result is not None:
            return (result,)
        found = primitive.bind(*given, **parameters)
        return found if primitive.multiple_results else (found,)

    return work


def _scan(given: Values, parameters: Parameters) -> Values:
    constants, carried, length = parameters["num_consts"], parameters["num_carry"], parameters["length"]
    fixed, carry, along = given[:constants], given[constants : constants + carried], given[constants + carried :]
    steps: list[Values] = []
    turn = -1 if parameters["reverse"] else 1
    for i in range(length)[::turn]:
        out = _run(parameters["jaxpr"], [*fixed, *carry, *(x[i] for x in along)])
        carry = out[:carried]
        steps.append(out[carried:])
    forms = parameters["jaxpr"].jaxpr.outvars[carried:]
    empty = [np.zeros((0, *v.aval.shape), v.aval.dtype) for v in forms]
    return [*carry, *(map(np.stack, zip(*steps[::turn], strict=True)) if steps else empty)]


def _while(given: Values, parameters: Parameters) -> Values:
    first, second = parameters["cond_nconsts"], parameters["body_nconsts"]
    for_condition, for_body, state = given[:first], given[first : first + second], given[first + second :]
    while _run(parameters["cond_jaxpr"], [*for_condition, *state])[0]:
        state = _run(parameters["body_jaxpr"], [*for_body, *state])
    return state


def _cond(given: Values, parameters: Parameters) -> Values:
    branches = parameters["branches"]
    return _run(branches[int(np.clip(int(given[0]), 0, len(branches) - 1))], given[1:])


def _select(which: Any, *cases: Any) -> Any:
    return np.where(which, cases[1], cases[0]) if which.dtype == bool else np.choose(which, cases)


def _divide(a: Any, b: Any) -> Any:
    """Divide as JAX does: integers towards zero."""
    if a.dtype.kind not in "iu":
        return a / b
    return np.where(b == 0, -1, (a - np.fmod(a, np.where(b == 0, 1, b))) // np.where(b == 0, 1, b))


def _to_type(given: Values, parameters: Parameters) -> Any:
    x, dtype = given[0], np.dtype(parameters["new_dtype"])
    if x.dtype.kind == "f" and dtype.kind in "iu":
        info: Any = np.iinfo(dtype.name)  # JAX saturates
        inside = np.clip(np.nan_to_num(x, nan=0.0), float(info.min), np.nextafter(float(info.max), 0))
        return np.where(x >= float(info.max), info.max, inside.astype(dtype))
    return x.astype(dtype)


def _reduce_precision(given: Values, parameters: Parameters) -> Any:
    """Round to fewer digits, to the nearest, ties to even; None (JAX does it) for fewer exponents."""
    x = given[0]
    info = np.finfo(x.dtype)
    drop = info.nmant - parameters["mantissa_bits"]
    if parameters["exponent_bits"] < info.iexp or drop < 0:
        return None
    if drop == 0:
        return x
    kind = np.dtype(f"u{x.dtype.itemsize}").type
    bits = np.ascontiguousarray(x).view(kind)
    half = kind((1 << (drop - 1)) - 1) + ((bits >> kind(drop)) & kind(1))
    rounded = ((bits + half) & ~kind((1 << drop) - 1)).view(x.dtype)
    return np.where(np.isfinite(x), rounded, x).reshape(x.shape)


def _broadcast(given: Values, parameters: Parameters) -> Any:
    shape, places = parameters["shape"], parameters["broadcast_dimensions"]
    if any(isinstance(size, jax.Array) for size in shape) or len(given) > 1:
        return None
    form = [1] * len(shape)
    for size, place in zip(given[0].shape, places, strict=True):
        form[place] = size
    out = np.empty(shape, given[0].dtype)  # np.broadcast_to takes ten times as long for small arrays
    out[...] = given[0].reshape(form)
    return out


def _contract(given: Values, parameters: Parameters) -> Any:
    (first, second), (batch_first, batch_second) = parameters["dimension_numbers"]
    x, y = given
    if parameters["preferred_element_type"] not in (None, x.dtype) or x.dtype != y.dtype:
        return None
    if not batch_first:
        return np.tensordot(x, y, (list(first), list(second)))
    names = iter(range(x.ndim + y.ndim))
    of_x = [next(names) for _ in range(x.ndim)]
    of_y = [-1] * y.ndim
    for a, b in ((first, second), (batch_first, batch_second)):
        for i, j in zip(a, b, strict=True):
            of_y[j] = of_x[i]
    of_y = [next(names) if v < 0 else v for v in of_y]
    shared = [of_x[i] for i in batch_first]
    out = shared + [v for v in of_x if v not in shared and v not in of_y] + [v for v in of_y if v not in of_x]
    return np.einsum(x, of_x, y, of_y, out, optimize=True)


def _slice(given: Values, parameters: Parameters) -> Any:
    steps = parameters["strides"] or [1] * given[0].ndim
    bounds = zip(parameters["start_indices"], parameters["limit_indices"], steps, strict=True)
    return given[0][tuple(slice(*bound) for bound in bounds)]


def _starts(x: Any, sizes: Sequence[int], starts: Sequence[Any]) -> tuple[slice, ...]:
    kept = [max(0, min(int(at), whole - n)) for at, whole, n in zip(starts, x.shape, sizes, strict=True)]
    return tuple(slice(at, at + n) for at, n in zip(kept, sizes, strict=True))


def _update(given: Values, _: Parameters) -> Any:
    x, block, *starts = given
    out = x.copy()
    out[_starts(x, block.shape, starts)] = block
    return out


def _iota(_: Values, parameters: Parameters) -> Any:
    shape, axis = parameters["shape"], parameters["dimension"]
    form = [-1 if i == axis else 1 for i in range(len(shape))]
    return np.broadcast_to(np.arange(shape[axis]).reshape(form), shape).astype(parameters["dtype"])


def _along(function: np.ufunc) -> Callable[[Values, Parameters], Any]:
    def call(given: Values, parameters: Parameters) -> Any:
        x, axes = given[0], tuple(parameters["axes"])
        if len(axes) == 1 and 0 < x.shape[axes[0]] <= 4:  # NumPy takes each of these sums as a loop of its own
            return functools.reduce(function, np.moveaxis(x, axes[0], 0))
        return function.reduce(x, axis=axes)

    return call


def _cumulative(function: Callable[..., Any]) -> Callable[[Values, Parameters], Any]:
    def call(given: Values, parameters: Parameters) -> Any:
        x, axis = given[0], parameters["axis"]
        return np.flip(function(np.flip(x, axis), axis=axis), axis) if parameters["reverse"] else function(x, axis=axis)

    return call


def _special(name: str) -> Callable[[Any], Any]:
    """Import SciPy's function of that name when it is called: that takes a third of the time of `import jax`."""

    def evaluate(x: Any) -> Any:
        from scipy import special

        return getattr(special, name)(x)

    return evaluate


_CONTROL: dict[str, Callable[[Values, Parameters], Values]] = {"scan": _scan, "while": _while, "cond": _cond}

CALLS = {
    "jit", "pjit", "closed_call", "core_call", "checkpoint", "custom_jvp_call", "custom_vjp_call", "custom_vmap_call",
}  # fmt: skip
"""Primitives that compute another jaxpr as it is."""
CALLED = ("jaxpr", "call_jaxpr", "fun_jaxpr", "call")
"""The parameters that may hold it."""

_PLAIN: dict[str, Callable[..., Any]] = {
    "add": np.add, "add_any": np.add, "sub": np.subtract, "mul": np.multiply, "div": _divide, "rem": np.fmod,
    "max": np.maximum, "min": np.minimum, "neg": np.negative, "abs": np.abs, "sign": np.sign, "pow": np.power,
    "sqrt": np.sqrt, "rsqrt": lambda x: 1 / np.sqrt(x), "cbrt": np.cbrt, "square": np.square, "exp": np.exp,
    "exp2": np.exp2, "log": np.log, "log1p": np.log1p, "expm1": np.expm1, "sin": np.sin, "cos": np.cos, "tan": np.tan,
    "asin": np.arcsin, "acos": np.arccos, "atan": np.arctan, "atan2": np.arctan2, "sinh": np.sinh, "cosh": np.cosh,
    "tanh": np.tanh, "asinh": np.arcsinh, "acosh": np.arccosh, "atanh": np.arctanh, "logistic": _special("expit"),
    "erf": _special("erf"), "erfc": _special("erfc"), "erf_inv": _special("erfinv"), "lgamma": _special("gammaln"),
    "digamma": _special("digamma"), "floor": np.floor, "ceil": np.ceil, "is_finite": np.isfinite, "eq": np.equal,
    "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor, "not": np.invert, "shift_left": np.left_shift,
    "shift_right_arithmetic": np.right_shift, "select_n": _select, "stop_gradient": lambda x: x,
    "clamp": lambda low, x, high: np.minimum(np.maximum(x, low), high),
    "copy": lambda x: x, "copy_p": lambda x: x, "real": np.real, "imag": np.imag, "conj": np.conj,
    "complex": lambda a, b: a + 1j * b, "nextafter": np.nextafter,
}  # fmt: skip

_WITH_PARAMETERS: dict[str, Callable[[Values, Parameters], Any]] = {
    "integer_pow": lambda x, p: x[0] ** p["y"],
    "round": lambda x, p: np.round(x[0]) if int(p["rounding_method"]) else np.copysign(
        np.floor(np.abs(x[0])) + (np.abs(x[0]) - np.floor(np.abs(x[0])) >= 0.5), x[0]
    ),
    "convert_element_type": _to_type,
    "bitcast_convert_type": lambda x, p: np.ascontiguousarray(x[0]).view(p["new_dtype"]).reshape(x[0].shape)
    if np.dtype(p["new_dtype"]).itemsize == x[0].dtype.itemsize else None,
    "reduce_precision": _reduce_precision,
    "broadcast_in_dim": _broadcast,
    "reshape": lambda x, p: x[0].reshape(p["new_sizes"]) if p["dimensions"] is None and len(x) == 1 else None,
    "squeeze": lambda x, p: np.squeeze(x[0], tuple(p["dimensions"])),
    "expand_dims": lambda x, p: np.expand_dims(x[0], tuple(p["dimensions"])),
    "transpose": lambda x, p: np.transpose(x[0], p["permutation"]),
    "concatenate": lambda x, p: np.concatenate(x, axis=p["dimension"]),
    "stack": lambda x, p: np.stack(x, axis=p["axis"]),
    "slice": _slice,
    "dynamic_slice": lambda x, p: x[0][_starts(x[0], p["slice_sizes"], x[1:])] if len(x) == 1 + x[0].ndim else None,
    "dynamic_update_slice": _update,
    "rev": lambda x, p: np.flip(x[0], tuple(p["dimensions"])),
    "iota": _iota,
    "sort": lambda x, p: np.sort(x[0], axis=p["dimension"], kind="stable") if len(x) == 1 else None,
    "dot_general": _contract,
    "reduce_sum": _along(np.add), "reduce_max": _along(np.maximum), "reduce_min": _along(np.minimum),
    "reduce_prod": _along(np.multiply), "reduce_and": _along(np.bitwise_and), "reduce_or": _along(np.bitwise_or),
    "argmax": lambda x, p: np.argmax(x[0], axis=p["axes"][0]),
    "argmin": lambda x, p: np.argmin(x[0], axis=p["axes"][0]),
    "cumsum": _cumulative(np.cumsum), "cumprod": _cumulative(np.cumprod),
    "cummax": _cumulative(np.maximum.accumulate), "cummin": _cumulative(np.minimum.accumulate),
}  # fmt: skip
