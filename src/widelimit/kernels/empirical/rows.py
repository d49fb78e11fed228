"""An empirical kernel assumes that a function's output for a row depends on that row alone; this is checked here.

A kernel entry is an inner product of df(x)/dtheta of single rows. So outputs at a few rows, and their derivatives in
one direction of the parameters, are computed for each row alone and for all together: if they differ by more than
rounding, the function is refused. (If a gate is 0, the derivatives still show what it hides from the outputs.)
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from widelimit import validation
from widelimit.arithmetic import arithmetic
from widelimit.kernels.empirical.derivatives import along
from widelimit.kernels.empirical.model import Model, float_sizes
from widelimit.kernels.empirical.plan import network_of
from widelimit.messages import first_line

ROWS = 3
"""Rows that are compared: of two, one could be the largest of the batch and the other equal to it after all."""
ROUNDING = 256
"""Bound in eps of the largest output: sums of about 10^4 terms in another order, in about ten layers."""
NUDGE = 16
"""eps by which inputs are moved, to see how much the function itself amplifies rounding errors."""
SEARCHED = 1024
"""Rows that are searched for different ones, at most."""
REMEMBERED = 256
"""Functions that are remembered as checked, at most."""
CHUNK = 256
"""Rows searched at once for one that is not finite."""


class Probe(NamedTuple):
    """A probe has values at a few rows, (r, k): all rows together, each alone, and each alone with nudged inputs."""

    together: np.ndarray
    alone: np.ndarray
    nudge: np.ndarray


def choose_rows(*inputs: Any, integers: np.ndarray | None = None) -> np.ndarray:
    """Choose up to `ROWS` different rows: the first, the furthest from it, the first that is neither.

    If all rows are equal, others of the same size are made of the first; for traced inputs rows are drawn from N(0, 1).
    integers: (d,), True for columns of integers, which then hold those of the row in another order, or 0 and 1.
    """
    if validation.traced(*inputs):
        shape, dtype = inputs[0].shape, np.dtype(inputs[0].dtype)
        made = np.random.default_rng(0).standard_normal((ROWS, *shape[1:])).astype(dtype)
        return made if integers is None else np.where(integers, made > 0, made).astype(dtype)
    first = np.asarray(inputs[0][:1])
    found = [first]
    for X in (np.asarray(X[:: max(1, len(X) // SEARCHED)]) for X in inputs):
        distance = np.max(np.abs(X.reshape(len(X), -1) - first.reshape(1, -1)), axis=1)
        order = [int(np.argmax(distance)), int(np.argmax(distance > 0))]
        found += [X[i : i + 1] for i in order if all((X[i : i + 1] != row).any() for row in found)]
    while len(found) < 2:
        size = np.max(np.abs(first)) or 1
        moved = np.random.default_rng(0).uniform(0.25, 0.5, first.shape) * size
        made = first - np.where(first > 0, moved, -moved)
        if integers is not None:
            made[:, integers] = np.roll(first[:, integers], 1, axis=1)
        found.append(made.astype(first.dtype))
    return np.concatenate(found[:ROWS]).astype(np.result_type(*(X.dtype for X in inputs)), copy=False)


def nudge(rows: np.ndarray, integers: np.ndarray | None = None) -> np.ndarray:
    """Move the entries of rows by `NUDGE` eps, up and down in turn, except in columns of integers."""
    signs = np.resize([1, -1], rows.shape)
    if integers is not None:
        signs[:, integers] = 0
    return np.asarray(rows * (1 + NUDGE * np.finfo(rows.dtype).eps * signs), rows.dtype)


def require_rowwise(name: str, probe: Probe, dtype: Any) -> None:
    """Refuse a function whose values alone and together differ by more than rounding.

    The bound is 256 eps of the largest value plus 16 times the change by a nudge of the inputs by 16 eps, as deep
    networks amplify rounding errors without mixing rows.

    Raises: ValueError: it mixes rows, or gives a finite output for several rows together and not for one alone.
    """
    finite = [np.isfinite(part) for part in probe]
    broken = finite[0] & ~finite[1]
    seen = finite[0] & finite[1] & finite[2]
    together, alone, near = (np.where(seen, part, 0).astype(np.float64) for part in probe)
    scale = max(np.abs(together).max(initial=0), np.abs(alone).max(initial=0))
    spread = np.abs(near - alone).max(initial=0)
    gap = np.abs(together - alone)
    if not broken.any() and gap.max(initial=0) <= ROUNDING * float(np.finfo(dtype).eps) * scale + 16 * spread:
        return
    i, k = np.unravel_index(np.argmax(np.where(broken, np.inf, gap)), gap.shape)
    raise ValueError(
        f"{name} mixes rows: a row gives {probe.alone[i, k]:.3g} alone and {probe.together[i, k]:.3g} beside others. "
        f"A tangent kernel needs outputs that depend on one row only, without means, batch normalisation in training "
        f"mode, dropout or attention over the rows: use evaluation mode with stored statistics."
    )


def _flat(tree: Any, rows: int) -> jax.Array:
    """Return all outputs, (rows, k)."""
    return jnp.concatenate([jnp.reshape(leaf, (rows, -1)) for leaf in jax.tree.leaves(tree)], axis=1)


@jax.jit
def _probe(f: Model, direction: Any, rows: jax.Array, moved: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Compute outputs and their derivatives along a direction of the parameters, (r, 2 k)."""

    def both(X: jax.Array) -> jax.Array:
        value, slope = along(lambda p: f.outputs(p, X), f.params, direction)
        return jnp.concatenate([_flat(value, len(X)), _flat(slope, len(X))], axis=1)

    def alone(X: jax.Array) -> jax.Array:
        return jnp.asarray(jax.lax.map(lambda x: both(x[None])[0], X))

    return both(rows), alone(rows), alone(moved)


_passed: dict[Any, None] = {}
"""Functions, with the shapes of their arguments, that were found not to mix rows."""


def check_rows(f: Model, *inputs: Any) -> None:
    """Refuse a function that mixes rows; networks of this library are not checked. Raises: ValueError."""
    if network_of(f) is not None or validation.traced(*jax.tree.leaves((f.params, f.fixed))):
        return
    shown = form_of(f, inputs[0])
    if shown in _passed:
        return
    _compare(f, choose_rows(*inputs, integers=integer_columns(f)))
    _passed[shown] = None
    if len(_passed) > REMEMBERED:
        _passed.pop(next(iter(_passed)), None)


def form_of(f: Model, X: Any) -> tuple[Any, ...]:
    """Return the key under which a function is remembered: itself, and the shapes and dtypes of its arguments."""
    leaves, structure = jax.tree.flatten(f)
    return structure, tuple((np.shape(leaf), np.dtype(leaf.dtype).name) for leaf in (*leaves, X[:1]))


def integer_columns(f: Model) -> np.ndarray | None:
    """Return (d,), True for the columns of rows that hold integers; None if there are none."""
    return None if f.signature is None else f.signature.columns()


def _compare(f: Model, rows: np.ndarray) -> None:
    wide, exact = arithmetic(_wide(f, rows)), jax.default_matmul_precision("highest")
    with wide, exact, jax.ensure_compile_time_eval():  # also inside a trace
        shapes = _shapes(f, rows)
        found = _probe(f, _direction(f), jnp.asarray(rows), jnp.asarray(nudge(rows, integer_columns(f))))
        made = float_sizes(jax.make_jaxpr(lambda X: f.outputs(f.params, X))(jnp.asarray(rows)).jaxpr)
        short = min(made, default=8) == 4  # a float64 function that computes in float32 inside rounds like float32
        dtype = jnp.float32 if short else jnp.result_type(*jax.tree.leaves(shapes))
    value, slope = zip(*(np.split(np.asarray(part), 2, axis=1) for part in found), strict=True)
    for kind in (value, slope):  # each by its own size
        require_rowwise("apply(params, X)", Probe(*kind), dtype)


def _shapes(f: Model, rows: np.ndarray) -> Any:
    try:
        shapes = jax.eval_shape(lambda X: f.outputs(f.params, X), jnp.asarray(rows))
    except (TypeError, ValueError, IndexError, KeyError, AttributeError) as error:
        raise ValueError(
            f"apply(params, X) fails for X of shape {rows.shape}: {type(error).__name__}: {first_line(error)}"
        ) from error
    found = {leaf.shape for leaf in jax.tree.leaves(shapes)}
    if any(shape[:1] != rows.shape[:1] for shape in found):
        raise ValueError(
            f"apply(params, X) must give a row of outputs for every row of inputs; for {rows.shape} it gave {found}."
        )
    return shapes


def _direction(f: Model) -> Any:
    leaves, structure = jax.tree.flatten(f.params)
    rng = np.random.default_rng(0)
    return jax.tree.unflatten(structure, [jnp.asarray(rng.standard_normal(v.shape), v.dtype) for v in leaves])


def _wide(f: Model, X: Any) -> bool:
    return any(leaf.dtype == np.float64 for leaf in (X, *jax.tree.leaves(f.params)))


@jax.jit
def _finite(f: Model, direction: Any, X: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return True where the output and its derivative are finite, (n,) each."""

    def row(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        value, slope = along(lambda p: f.outputs(p, x[None]), f.params, direction)
        return jnp.isfinite(_flat(value, 1)).all(), jnp.isfinite(_flat(slope, 1)).all()

    return jax.vmap(row)(X)


def _parameters(f: Model, x: jax.Array) -> str:
    """Return the names of parameters by which the derivative of the sum of outputs is not finite, as text."""
    found = jax.tree.leaves(jax.jit(jax.grad(lambda params: jnp.sum(f.row(params, x))))(f.params))
    names = [name for name, leaf in zip(f.names(), found, strict=True) if not np.isfinite(np.asarray(leaf)).all()]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f" in {', '.join(names[:3])}{more}" if names else ""


def require_finite(f: Model, values: Any, **inputs: Any) -> None:
    """Refuse values that are NaN or infinite; the error names their row of the inputs. Raises: ValueError: some are."""
    if validation.traced(values, *inputs.values(), *jax.tree.leaves(f.params)) or np.isfinite(np.asarray(values)).all():
        return
    for name, X in inputs.items():
        points = np.asarray(X)
        with arithmetic(_wide(f, points)):
            for i in range(0, len(points), CHUNK):
                found = _finite(f, _direction(f), jnp.asarray(points[i : i + CHUNK]))
                for kind, fine in zip(("output", "Jacobian df/dtheta"), map(np.asarray, found), strict=True):
                    if not fine.all():
                        row = i + int(np.argmin(fine))
                        where = "" if kind == "output" else _parameters(f, jnp.asarray(points[row]))
                        raise ValueError(
                            f"the {kind} of apply(params, X) at row {row} of {name} is NaN or infinite{where}. Usual "
                            f"causes: sqrt, norm or log at 0, a division by 0, an overflow."
                        )
    raise ValueError("the kernel overflows: scale the outputs of apply down, or pass X in float64.")
