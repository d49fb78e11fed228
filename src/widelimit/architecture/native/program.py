"""The pair map of a network of images is traced to operations on one pair of sites, and sums over patches."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from widelimit.architecture.chain import Combined
from widelimit.architecture.convolution import Conv
from widelimit.architecture.locally_connected import LocallyConnected
from widelimit.architecture.sites import Windows
from widelimit.architecture.state import Layer, PairState
from widelimit.interpreter import CALLED, CALLS
from widelimit.pytrees import changed
from widelimit.signals import EXPONENT_LIMIT, Correlation, Variance

_SAME = {"stop_gradient", "copy", "copy_p", "optimization_barrier"}


class Unknown(Exception):
    """An operation that is not known here; the text names it."""


class Constant(NamedTuple):
    """The value is a number known before compilation."""

    value: Any
    dtype: str


class Number(NamedTuple):
    """The value is the k-th number of the network: a hyper-parameter."""

    place: int
    dtype: str


class Memo(NamedTuple):
    """The value is a number of one input at a site."""

    side: int
    """0 for the first input of a pair, 1 for the second."""
    leaf: int
    at: tuple[int, ...]
    """Place in the leading axes of the leaf."""
    dtype: str


@final
@dataclass(eq=False)
class Operation:
    """The operation has `results` of one pair of sites; a sum over patches is called "patches"."""

    name: str
    given: list[Any]
    parameters: dict[str, Any]
    dtypes: list[str]
    nest: int
    """The nest that it belongs to; -1 if it depends on single inputs only."""
    order: int
    needed: set[int] = field(default_factory=set)


class Result(NamedTuple):
    """The value is a result of an operation."""

    operation: Operation
    place: int

    @property
    def dtype(self) -> str:
        """Return the dtype of the value."""
        return self.operation.dtypes[self.place]


class Stack(NamedTuple):
    """The value is an array of values."""

    values: tuple[Any, ...]
    dtype: str


def _primitive(name: str, results: int) -> Any:
    made: Any = core.Primitive(name)
    made.multiple_results = True
    made.def_abstract_eval(lambda *given, **_: [given[-1]] * results)
    return made


_patches, _largest, _total = _primitive("patches", 3), _primitive("largest", 1), _primitive("total", 1)


@final
@dataclass(frozen=True)
class _Traced:
    """The windows of a convolution whose sums over patches appear as one operation in the trace."""

    windows: Windows

    def sum_patches(self, x: Any, y: Any, state: Any) -> Any:
        """Return the sums of `Windows.sum_patches` as results of one operation."""
        return _patches.bind(*x, *y, *state, windows=self.windows)

    @property
    def count(self) -> int:
        """Return the number of sites of a window."""
        return self.windows.count

    def total(self, array: jax.Array) -> jax.Array:
        """Return `Windows.total` as one operation."""
        return _total.bind(array, windows=self.windows)[0]  # type: ignore[no-any-return]

    def highest(self, signal: Variance) -> jax.Array:
        """Return `Windows.highest` with one operation."""
        power = jnp.where(signal.value > 0, signal.exponent, -2 * EXPONENT_LIMIT).astype(signal.value.dtype)
        found = _largest.bind(power, windows=self.windows)[0]
        return jnp.where(found > -2 * EXPONENT_LIMIT, found, 0).astype(signal.exponent.dtype)

    def choose(self, far: jax.Array, rare: Any, usual: Any, value: jax.Array, below: jax.Array) -> Any:
        """Do what is usual, which leaves NaN where something else is needed."""
        return usual(jnp.where(far, jnp.nan, value), below)


def form(shape: tuple[int, ...], dtype: Any) -> Any:
    """Return what a trace takes for an array."""
    return jax.ShapeDtypeStruct(shape, dtype)  # type: ignore[no-untyped-call]


def with_windows(change: Callable[[Windows], Any]) -> Callable[[Layer, tuple[Any, ...]], Layer]:
    """Return the function that gives the convolutions in a layer other windows. Raises: Unknown."""

    def changed_in(layer: Layer, path: tuple[Any, ...]) -> Layer:
        if isinstance(layer, Combined):
            return layer.map_layers(changed_in, path)
        if isinstance(layer, LocallyConnected):
            if layer.conv.placed.across:
                raise Unknown("weights of each site before an average over sites")
            layer = layer.conv
        return changed(layer, windows=change(layer.placed)) if isinstance(layer, Conv) else layer

    return changed_in


def at_own_sites(layers: Layer) -> Layer:
    """Return layers for states in which each site meets its own, also where a later layer averages over sites."""
    return with_windows(lambda windows: replace(windows, across=False))(layers, ())


@final
class Program:
    """Operations in nests: one nest reads pixels or patches, then computes on the same pair of sites.

    Attributes:
        sources: the operation that every nest begins with.
        outputs: 1 - rho, 1 + rho, and Theta/(s s') of the last nest.
        padding: the windows by which a leaf of the memos is read, if it is.
    """

    def __init__(self, function: Any, layers: Layer, memos: Any, dtype: Any, source: str) -> None:
        kind = np.dtype(dtype).name
        self.sources = [Operation(source, [], {}, [kind] * 3, 0, 0)]
        self.padding: dict[int, Windows] = {}
        self._count = 0
        self.numbers = [np.asarray(leaf) for leaf in jax.tree.leaves(layers)]
        one = form((), dtype)
        traced = with_windows(_Traced)(layers, ())
        try:
            closed = jax.make_jaxpr(function)(traced, memos, memos, one, one, one)
        except (TypeError, ValueError, IndexError) as error:
            raise Unknown(f"layers whose pair map is not elementwise: {error}") from error
        count = len(jax.tree.leaves(memos))
        given: list[Any] = [Number(k, kind) for k in range(len(self.numbers))]
        given += [Memo(side, leaf, (), kind) for side in (0, 1) for leaf in range(count)]
        given += [Result(self.sources[0], k) for k in (0, 1, 2)]
        given[-1] = Constant(np.zeros((), kind), kind) if source == "pixels" else given[-1]
        forms: list[Any] = [v.aval for v in closed.jaxpr.invars]
        given = [
            v._replace(dtype=a.dtype.name) if isinstance(v, Number) else v for v, a in zip(given, forms, strict=True)
        ]
        self.outputs = self._run(closed, given)

    def _run(self, closed: Any, given: list[Any]) -> list[Any]:
        jaxpr = closed.jaxpr
        known = dict(zip(jaxpr.invars, given, strict=True))
        for name, value in zip(jaxpr.constvars, closed.consts, strict=True):
            known[name] = _constant(value)

        def of(v: Any) -> Any:
            literal: Any = v
            return _constant(literal.val, literal.aval.dtype) if isinstance(v, core.Literal) else known[v]

        for equation in jaxpr.eqns:
            found = self._apply(equation, [of(v) for v in equation.invars])
            known.update(zip(equation.outvars, found, strict=True))
        return [of(v) for v in jaxpr.outvars]

    def _apply(self, equation: Any, given: list[Any]) -> list[Any]:
        name, parameters = equation.primitive.name, equation.params
        if name in CALLS:
            inner = next(parameters[key] for key in CALLED if key in parameters)
            return self._run(inner if isinstance(inner, core.ClosedJaxpr) else core.ClosedJaxpr(inner, ()), given)
        if name in _SAME:
            return given
        if name == "scan":
            return self._scan(parameters, given)
        if name == "cond":
            return self._branches(parameters, given)
        first = given[0] if given else None
        if isinstance(first, Memo | Constant) and name in _VIEWS and equation.invars[0].aval.shape:
            return [_VIEWS[name](first, parameters)]
        if isinstance(first, Stack) and name in _VIEWS:
            return [_VIEWS[name](first, parameters)]
        if isinstance(first, Memo | Constant | Stack) and name == "split":
            return _split(first, parameters)
        if any(math.prod(v.aval.shape) > 1 for v in (*equation.invars, *equation.outvars)):
            raise Unknown(f"the operation {name!r} on arrays")
        if name in (*_VIEWS, "dynamic_slice") or (name.startswith("reduce_") and name != "reduce_precision"):
            return given[:1]
        return self._add(name, given, parameters, [v.aval.dtype.name for v in equation.outvars])

    def _add(self, name: str, given: list[Any], parameters: dict[str, Any], dtypes: list[str]) -> list[Any]:
        if name == "mul" and (
            zero := next((v for v in given if isinstance(v, Constant) and not np.any(v.value)), None)
        ):
            return [zero]
        nest = max((v.operation.nest for v in given if isinstance(v, Result)), default=-1)
        self._count += 1
        operation = Operation(name, given, parameters, dtypes, nest, self._count)
        results: list[Any] = [Result(operation, k) for k in range(len(dtypes))]
        if name in ("patches", "largest", "total"):
            operation.nest = len(self.sources)
            self.sources.append(operation)
        if name == "patches":
            for memo in (given[0], given[2]):
                if self.padding.setdefault(memo.leaf, parameters["windows"]) != parameters["windows"]:
                    raise Unknown("one signal in patches of two kinds")
            if isinstance(given[6], Constant) and given[6].value == 0:
                results[2] = given[6]
            if any(isinstance(v, Memo | Number) or (isinstance(v, Result) and v.operation.nest < 0) for v in given[4:]):
                raise Unknown("a patch of what depends on single inputs alone")
        return results

    def _scan(self, parameters: dict[str, Any], given: list[Any]) -> list[Any]:
        fixed, carried = parameters["num_consts"], parameters["num_consts"] + parameters["num_carry"]
        carry, along = given[fixed:carried], given[carried:]
        if parameters["reverse"]:
            raise Unknown("a scan in reverse")
        stacks = []
        for i in range(parameters["length"]):
            found = self._run(parameters["jaxpr"], given[:fixed] + carry + [_at(v, i) for v in along])
            carry = found[: parameters["num_carry"]]
            stacks.append(found[parameters["num_carry"] :])
        return carry + [Stack(values, values[0].dtype) for values in zip(*stacks, strict=True)]

    def _branches(self, parameters: dict[str, Any], given: list[Any]) -> list[Any]:
        if len(parameters["branches"]) != 2:
            raise Unknown("a choice of several branches")
        kind = given[0].dtype
        zero = Constant(np.zeros((), kind), kind)
        chosen = given[0] if kind == "bool" else self._add("ne", [given[0], zero], {}, ["bool"])[0]
        no, yes = (self._run(branch, given[1:]) for branch in parameters["branches"])
        pairs = zip(no, yes, strict=True)
        return [a if a is b else self._add("select_n", [chosen, a, b], {}, [a.dtype])[0] for a, b in pairs]

    def mark(self, needed: Sequence[int]) -> None:
        """Mark the results that these outputs need."""
        values = [self.outputs[k] for k in needed]
        while values:
            value = values.pop()
            if not isinstance(value, Result) or value.place in value.operation.needed:
                continue
            operation = value.operation
            operation.needed.add(value.place)
            values += operation.given if 2 in operation.needed or operation.name != "patches" else operation.given[:6]


def pair(layers: Layer, x: Any, y: Any, one_minus: jax.Array, one_plus: jax.Array, tangent: jax.Array) -> Any:
    """Apply the layers to a pair of sites."""
    state = layers.pair(x, y, PairState(Correlation(one_minus, one_plus), tangent))
    return *state.correlation, state.tangent


def _constant(value: Any, dtype: Any = None) -> Constant:
    array = np.asarray(value, dtype)
    return Constant(array, array.dtype.name)


def _at(value: Any, *place: int) -> Any:
    """Return a memo, or an array of constants, at these places of its leading axes."""
    if isinstance(value, Memo):
        return value._replace(at=(*value.at, *place))
    if isinstance(value, Stack):
        return value.values[place[0]] if len(place) == 1 else _at(value.values[place[0]], *place[1:])
    return Constant(np.asarray(value.value)[place], value.dtype)


def _slice(value: Any, parameters: dict[str, Any]) -> Any:
    starts, ends = parameters["start_indices"], parameters["limit_indices"]
    if isinstance(value, Constant):
        return Constant(
            value.value[tuple(map(slice, starts, ends, parameters["strides"] or [1] * len(ends)))], value.dtype
        )
    if any(a + 1 != b for a, b in zip(starts[:1], ends[:1], strict=True)) or any(starts[1:]):
        raise Unknown("a slice of a memo")
    return _at(value, starts[0])


def _split(value: Any, parameters: dict[str, Any]) -> list[Any]:
    count = len(parameters["sizes"])
    if set(parameters["sizes"]) != {1} or parameters["axis"] != 0:
        raise Unknown("parts of a memo")
    if isinstance(value, Constant):
        return [Constant(part, value.dtype) for part in np.split(value.value, count)]
    return [_at(value, k) for k in range(count)]


def _squeeze(value: Any, parameters: dict[str, Any]) -> Any:
    return (
        Constant(np.squeeze(value.value, tuple(parameters["dimensions"])), value.dtype)
        if isinstance(value, Constant)
        else value
    )


_VIEWS: dict[str, Callable[[Any, dict[str, Any]], Any]] = {
    "slice": _slice,
    "squeeze": _squeeze,
    "reshape": lambda value, _: value,
    "broadcast_in_dim": lambda value, _: value,
}
