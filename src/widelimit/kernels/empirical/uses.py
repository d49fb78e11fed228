"""A traced function is read step by step, to find where a parameter enters a product, convolution or table look-up.

At such a step (a site) the array that multiplies the parameter is the signal. Zeros (a tap) are added to the result of
the step: the derivative by these is the backward signal. The program is that of one row; more rows are a vmap of it.
"""

import functools
import math
from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Any, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from widelimit.arithmetic import arithmetic
from widelimit.kernels.empirical.factors import Use
from widelimit.kernels.empirical.model import Model

INLINED = ("jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint")
RESHAPED = ("reshape", "transpose", "squeeze", "expand_dims", "convert_element_type", "copy", "copy_p", "neg")


class View(NamedTuple):
    """A view is a value with the entries of a parameter, reordered and times one number."""

    leaf: int
    """The number of the parameter among all leaves."""
    form: tuple[Hashable, ...]
    """The steps that made the view: two views of equal forms have their entries in the same order."""
    scale: Any


class Site(NamedTuple):
    """A site is one use of a parameter, in one step of the program."""

    leaf: int
    form: tuple[Hashable, ...]
    """Two sites of equal forms are one site with more positions."""
    use: Use
    groups: int
    """Number of independent products, as in grouped convolutions; signals are (groups, S, I)."""
    table: bool
    """True for a look-up in a table."""
    signals: Callable[[], tuple[Any, Any]]
    """Computes the signals, or tokens (1, S), and the factor of the backward signals."""
    arrange: Callable[[Any], Any]
    """Brings a derivative by the step's result to (groups, S, O)."""


@final
class Reader:
    """A reader evaluates a program and collects the sites of its parameters.

    taps: the array that is added to the result of each site, by the site's number; without taps nothing is added.
    """

    def __init__(self, taps: dict[int, Any] | None = None) -> None:
        self.taps = taps or {}
        self.sites: list[Site] = []
        self.shapes: list[tuple[Any, Any]] = []
        self.unknown: set[int] = set()

    def run(self, program: Jaxpr, constants: Any, values: Any, views: list[View | None]) -> tuple[Any, Any]:
        """Evaluate a program; return its results, and the view that each is, or None."""
        known: dict[Any, tuple[Any, View | None]] = {
            v: (c, None) for v, c in zip(program.constvars, constants, strict=True)
        }
        known |= {v: pair for v, *pair in zip(program.invars, values, views, strict=True)}  # type: ignore[misc]

        def read(v: Any) -> tuple[Any, View | None]:
            return (v.val, None) if isinstance(v, Literal) else known[v]

        for step in program.eqns:
            given, shown = zip(*map(read, step.invars), strict=True) if step.invars else ((), ())
            made, now = self._step(step, list(given), list(shown))
            known |= {v: pair for v, *pair in zip(step.outvars, made, now, strict=True)}  # type: ignore[misc]
        results = [read(v) for v in program.outvars]
        return [value for value, _ in results], [view for _, view in results]

    def _step(self, step: Any, values: list[Any], views: list[View | None]) -> tuple[Any, Any]:
        """Evaluate one step: a parameter in it gives a view or a site, or is used in an unknown way."""
        name, found = step.primitive.name, [i for i, view in enumerate(views) if view is not None]
        nothing = [None] * len(step.outvars)
        if not found or name == "stop_gradient":
            return _evaluate(step, values), nothing
        if name in INLINED:
            inner = step.params["jaxpr"]
            closed = inner if isinstance(inner, ClosedJaxpr) else ClosedJaxpr(inner, ())
            return self.run(closed.jaxpr, closed.consts, values, views)
        if not _real(step):
            self.unknown |= {view.leaf for view in views if view is not None}
            return _evaluate(step, values), nothing
        if (view := self._viewed(step, values, views)) is not None:
            self.unknown |= {v.leaf for v in views if v is not None and v.leaf != view.leaf}
            return _evaluate(step, values), [view]
        if len(found) == 1 and (site := _site(step, found[0], values, views[found[0]])) is not None:
            return self._tapped(site, _evaluate(step, values)[0]), nothing
        self.unknown |= {view.leaf for view in views if view is not None}
        return _evaluate(step, values), nothing

    def _viewed(self, step: Any, values: list[Any], views: list[View | None]) -> View | None:
        """Return the result as a view if it has the entries of a parameter times one number, else None."""
        name, size = step.primitive.name, math.prod(step.outvars[0].aval.shape)
        same = [v for v in views if v is not None and math.prod(step.invars[views.index(v)].aval.shape) == size]
        key = (
            name,
            tuple(step.invars[0].aval.shape),
            tuple(step.outvars[0].aval.shape),
            step.params.get("permutation"),
        )
        if name in RESHAPED or (name == "broadcast_in_dim" and same):
            view = views[0]
            return (
                None
                if view is None
                else View(view.leaf, (*view.form, key), -view.scale if name == "neg" else view.scale)
            )
        if name not in ("mul", "div") or size == 1:
            return None
        for i in (0, 1) if name == "mul" else (0,):
            view, other = views[i], values[1 - i]
            if view is not None and jnp.size(other) == 1 and view in same:
                factor = jnp.reshape(other, ())
                scale = view.scale * factor if name == "mul" else view.scale / factor
                return View(view.leaf, view.form, scale)
        return None

    def _tapped(self, site: Site, result: Any) -> list[Any]:
        tap = self.taps.get(len(self.sites))
        self.sites.append(site)
        self.shapes.append((result.shape, result.dtype))
        return [result if tap is None else result + tap]


def _real(step: Any) -> bool:
    """Return True for a step of real numbers: integers have no derivative, complex numbers one of another kind."""
    dtypes: list[Any] = [getattr(v.aval, "dtype", None) for v in (*step.invars, *step.outvars)]
    complex_ = any(dtype is not None and jnp.issubdtype(dtype, jnp.complexfloating) for dtype in dtypes)
    return not complex_ and all(jnp.issubdtype(dtype, jnp.floating) for dtype in dtypes[len(step.invars) :])


def _evaluate(step: Any, values: list[Any]) -> list[Any]:
    bound = step.primitive.get_bind_params(step.params)
    functions, params = bound if isinstance(bound, tuple) else ((), bound)  # JAX up to 0.9, and after
    made = step.primitive.bind(*functions, *values, **params)
    return list(made) if step.primitive.multiple_results else [made]


def _site(step: Any, place: int, values: list[Any], view: Any) -> Site | None:
    name = step.primitive.name
    if name == "dot_general":
        return _product(step, place, values[1 - place], view)
    if name == "conv_general_dilated" and place == 1 and step.params["batch_group_count"] == 1:
        return _convolution(step, values[0], view)
    if name == "gather" and place == 0:
        return _lookup(step, values[1], view)
    return None


def _product(step: Any, place: int, other: Any, view: View) -> Site:
    contracted, batched = step.params["dimension_numbers"]
    weight = step.invars[place].aval.shape
    inner, groups = contracted[place], batched[place]
    free = [i for i in range(len(weight)) if i not in (*inner, *groups)]
    there, beside = contracted[1 - place], batched[1 - place]
    rest = [i for i in range(other.ndim) if i not in (*there, *beside)]
    g, i, o = (math.prod(weight[k] for k in axes) for axes in (groups, inner, free))
    s = math.prod(other.shape[k] for k in rest)

    def arrange(back: Any) -> Any:
        return jnp.swapaxes(back.reshape(g, o, s), 1, 2) if place == 0 else back.reshape(g, s, o)

    def signals() -> tuple[Any, Any]:
        return jnp.transpose(other, (*beside, *rest, *there)).reshape(g, s, i) * view.scale, 1

    form = (*view.form, "product", tuple(inner), tuple(groups))
    return Site(view.leaf, form, Use(s, i, o), g, False, signals, arrange)


def _convolution(step: Any, images: Any, view: View) -> Site:
    spec, filters = step.params["dimension_numbers"], step.invars[1].aval.shape
    window = [filters[k] for k in spec.rhs_spec[2:]]
    g, o = step.params["feature_group_count"], filters[spec.rhs_spec[0]]
    i = math.prod(filters) // o
    result = step.outvars[0].aval.shape
    s = math.prod(result) // o

    def arrange(back: Any) -> Any:
        channels_last = jnp.transpose(back, (spec.out_spec[0], *spec.out_spec[2:], spec.out_spec[1]))
        return jnp.moveaxis(channels_last.reshape(s, g, o // g), 1, 0)

    def signals() -> tuple[Any, Any]:
        found = _patches(jnp.transpose(images, spec.lhs_spec), window, step.params)  # (N, C, *sites, *window)
        count = len(window)
        grouped = found.reshape(len(found), g, -1, *found.shape[2:])
        order = (1, 0, *range(3, 3 + count), 2, *range(3 + count, 3 + 2 * count))
        return jnp.transpose(grouped, order).reshape(g, s, i) * view.scale, 1

    form = (*view.form, "convolution", spec.rhs_spec, g)
    return Site(view.leaf, form, Use(s, i, o // g), g, False, signals, arrange)


def _patches(images: Any, window: list[int], params: Any) -> Any:
    """Cut (N, C, *sites) images in what each position of a convolution's result sees, (N, C, *positions, *window)."""
    spread = zip(params["padding"], params["lhs_dilation"], strict=True)
    images = jax.lax.pad(
        images, jnp.zeros((), images.dtype), [(0, 0, 0)] * 2 + [(*pad, far - 1) for pad, far in spread]
    )
    for k, (size, apart, stride) in enumerate(
        zip(window, params["rhs_dilation"], params["window_strides"], strict=True)
    ):
        axis, reach = 2 + k, apart * (size - 1)
        stop = images.shape[axis] - reach
        parts = [jax.lax.slice_in_dim(images, j * apart, j * apart + stop, stride, axis) for j in range(size)]
        images = jnp.stack(parts, axis=-1)
    return images


def _lookup(step: Any, tokens: Any, view: View) -> Site | None:
    rules, table = step.params["dimension_numbers"], step.invars[0].aval.shape
    plain = not rules.operand_batching_dims and rules.start_index_map == (0,) and rules.collapsed_slice_dims == (0,)
    if not plain or step.params["slice_sizes"] != (1, *table[1:]):
        return None
    mode, (v, *rest) = step.params["mode"], table
    o, s = math.prod(rest), math.prod(tokens.shape) // tokens.shape[-1]
    flat = tokens.reshape(1, s)
    dropped = mode == jax.lax.GatherScatterMode.FILL_OR_DROP

    def arrange(back: Any) -> Any:
        leading = [k for k in range(back.ndim) if k not in rules.offset_dims]
        return jnp.transpose(back, (*leading, *rules.offset_dims)).reshape(1, s, o)

    def signals() -> tuple[Any, Any]:
        inside = (flat >= 0) & (flat < v) | (not dropped)
        return jnp.clip(flat, 0, v - 1), inside[:, :, None] * view.scale

    return Site(view.leaf, (*view.form, "table"), Use(s, v, o), 1, True, signals, arrange)


class Part(NamedTuple):
    """A part says how the program of one row uses one parameter."""

    name: str
    size: int
    use: Use | None
    """The sizes of all its sites together; None if a step that is not known uses it."""
    groups: int
    table: bool
    used: bool


def row_program(f: Model, leaves: list[Any], fixed: list[Any], x: Any) -> ClosedJaxpr:
    """Trace the function at one row, with its parameters and fixed arrays as a flat list."""
    trees = [jax.tree.structure(tree) for tree in (f.params, f.fixed)]

    def row(leaves: Any, fixed: Any, x: jax.Array) -> jax.Array:
        there = replace(f, fixed=jax.tree.unflatten(trees[1], fixed))
        return there.row(jax.tree.unflatten(trees[0], leaves), x)

    return jax.make_jaxpr(row)(leaves, fixed, x)


def parts_of(f: Model, features: int, dtype: Any) -> tuple[Part, ...]:
    """Return how a function of rows with this many features uses each parameter, without running it."""
    leaves, structure = f.structs()
    with arithmetic(dtype == np.float64):
        return _parts(leaves, structure, features, np.dtype(dtype))


@functools.lru_cache(maxsize=256)
def _parts(structs: tuple[Any, ...], structure: Any, features: int, dtype: np.dtype[Any]) -> tuple[Part, ...]:
    f: Model = jax.tree.unflatten(structure, structs)
    leaves, fixed = jax.tree.leaves(f.params), jax.tree.leaves(f.fixed)
    x: Any = jax.ShapeDtypeStruct
    given = [*leaves, *fixed, x((features,), dtype)]
    program = row_program(f, leaves, fixed, given[-1])
    views = [View(i, (), 1.0) for i in range(len(leaves))] + [None] * (len(fixed) + 1)
    reader = examine(program, given, views)
    parts = tuple(_part(i, name, leaf, reader) for i, (name, leaf) in enumerate(zip(f.names(), leaves, strict=True)))
    return parts if any(part.used for part in parts) else tuple(part._replace(used=True) for part in parts)


def _part(i: int, name: str, leaf: Any, reader: Reader) -> Part:
    sites, size = [site for site in reader.sites if site.leaf == i], math.prod(leaf.shape)
    if i in reader.unknown or len({site.form for site in sites}) > 1:
        return Part(name, size, None, 1, False, True)
    if not sites:
        return Part(name, size, None, 1, False, False)
    first = sites[0]
    use = first.use._replace(positions=sum(site.use.positions for site in sites))
    return Part(name, size, use, first.groups, first.table, True)


def examine(program: ClosedJaxpr, given: list[Any], views: list[View | None]) -> Reader:
    """Read a program without running it."""
    reader = Reader()

    def run(*values: Any) -> Any:
        found, shown = reader.run(program.jaxpr, program.consts, list(values), views)
        reader.unknown |= {view.leaf for view in shown if view is not None}
        return found

    jax.eval_shape(run, *given)
    return reader
