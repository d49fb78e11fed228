"""Kernels are contracted from the factors of their two inputs: those of layers (NTK) or the outputs (NNGP)."""

import abc
from dataclasses import field, replace
from typing import Any, Literal, final

import jax
import jax.numpy as jnp

from widelimit.compute.tiles import PairKernel
from widelimit.kernels.empirical.factors import SCRATCH, Affine, Explicit, Factor, Lookup, Use
from widelimit.kernels.empirical.model import Model
from widelimit.kernels.empirical.outputs import PAIRS, SELF, Output, Split
from widelimit.kernels.empirical.uses import Reader, Site, View, examine, row_program
from widelimit.pytrees import pytree
from widelimit.shapes import Float

for _kind, _static in ((Affine, ()), (Lookup, ("rows",)), (Explicit, ())):
    _arrays = [name for name in _kind.__dataclass_fields__ if name not in _static]
    jax.tree_util.register_dataclass(_kind, _arrays, list(_static))

Way = Literal["signals", "jacobian", "explicit", "none"]
"""The factor of a parameter is its forward and backward "signals", the "jacobian" made of them, the "explicit" Jacobian
of reverse mode, or "none" if it is not used."""


class Factors(abc.ABC):
    """K(x, x') is a contraction of factors of x with factors of x'; a pytree of pure JAX functions."""

    @abc.abstractmethod
    def of(self, X: Float[jax.Array, "n d"]) -> list[Factor]:
        """Compute the factors of every row."""


@final
@pytree
class Outputs(Factors):
    """The factors are the outputs f(x), (n, c, 1)."""

    model: Model

    def of(self, X: Float[jax.Array, "n d"]) -> list[Factor]:
        return [Explicit(self.model(self.model.params, X)[:, :, None])]


@final
@pytree
class Layerwise(Factors):
    """There is one factor for each parameter that is used, in the order of the leaves, each in its own way."""

    model: Model
    ways: tuple[Way, ...] = field(metadata={"static": True})

    def of(self, X: Float[jax.Array, "n d"]) -> list[Factor]:
        return jax.vmap(self.of_row)(X)

    def of_row(self, x: Float[jax.Array, " d"], weights: Any = None) -> list[Factor]:
        """Compute the factors of one row, for all outputs or for k weighted sums of them, weights (k, c)."""
        leaves, fixed = jax.tree.leaves(self.model.params), jax.tree.leaves(self.model.fixed)
        program = row_program(self.model, leaves, fixed, x)
        views = [View(i, (), 1.0) if self.ways[i] in ("signals", "jacobian") else None for i in range(len(leaves))]
        views += [None] * (len(fixed) + 1)
        sites: list[Site] = []

        def outputs(taps: Any, explicit: dict[int, Any]) -> tuple[jax.Array, list[Any]]:
            values = [explicit.get(i, leaf) for i, leaf in enumerate(leaves)]
            reader = Reader(taps)
            ((found,), _) = reader.run(program.jaxpr, program.consts, [*values, *fixed, x], views)
            sites[:] = reader.sites
            return found, [site.signals() for site in sites]

        shapes = examine(program, [*leaves, *fixed, x], views).shapes
        taps = {k: jnp.zeros(shape, dtype) for k, (shape, dtype) in enumerate(shapes)}
        explicit = {i: leaf for i, leaf in enumerate(leaves) if self.ways[i] == "explicit"}
        after, pull, signals = jax.vjp(outputs, taps, explicit, has_aux=True)
        each = jnp.eye(len(after), dtype=after.dtype) if weights is None else weights
        back, rows = jax.vmap(pull)(each)
        return [
            Explicit(rows[i].reshape(len(each), -1).astype(after.dtype))
            if way == "explicit"
            else _factor([(s, signals[k], back[k]) for k, s in enumerate(sites) if s.leaf == i], way, after.dtype)
            for i, way in enumerate(self.ways)
            if way != "none"
        ]


def _factor(found: list[tuple[Site, Any, Any]], way: Way, dtype: Any) -> Factor:
    """Return the factor of one parameter for one row, with the positions of all its sites."""
    signals = jnp.concatenate([a for _, (a, _), _ in found], axis=1)  # (groups, S, I), tokens (groups, S)
    arranged = [jax.vmap(site.arrange)(back) * weight for site, (_, weight), back in found]
    backward = jnp.moveaxis(jnp.concatenate(arranged, axis=2), 0, 2).astype(dtype)  # (groups, S, c, O)
    site = found[0][0]
    if site.table:
        return Lookup(signals[0], backward[0], site.use.inputs)
    signals = signals.astype(dtype)
    if way == "signals":
        return Affine(signals[0], backward[0])
    jacobian = jnp.einsum("gsi,gsco->cgoi", signals, backward, precision="highest")
    return Explicit(jacobian.reshape(len(jacobian), -1))


def pairs(x: list[Factor], y: list[Factor], output: Output | Split, *, itself: bool = False) -> jax.Array:
    """Compute K for all pairs of rows, (n, m, *c), or with `itself` for every row with itself, (n, *c)."""
    with jax.default_matmul_precision("highest"):
        total = sum(_contract(a, b, output, itself) for a, b in zip(x, y, strict=True))
    mean = output.trace if isinstance(output, Split) else _outputs(x[0]) if output == "trace" else 1
    return jnp.asarray(total / mean if mean > 1 else total)


def _contract(x: Any, y: Any, output: Output | Split, itself: bool) -> Any:
    if not isinstance(output, Split):
        return _rows_at_a_time(x, y, output, itself)
    f, d, t = output
    form = output.contraction[0]

    def cut(factor: Any) -> tuple[Any, Any]:
        """Give outputs paired with themselves an axis of their own; if some outputs are full, all the others."""
        axis = 1 if isinstance(factor, Explicit) else 2
        back = factor.jacobian if isinstance(factor, Explicit) else factor.backward
        shape = (*back.shape[:axis], *((d, t) if f == 1 else (f, d * t)), *back.shape[axis + 1 :])
        back = jnp.moveaxis(back.reshape(shape), axis + (f > 1), 0)
        if isinstance(factor, Explicit):
            return Explicit(back), Explicit(0)
        none = jax.tree.map(lambda _: None, factor)
        return replace(factor, backward=back), replace(none, backward=0)

    (a, over_a), (b, over_b) = cut(x), cut(y)
    values = jax.vmap(lambda a, b: _rows_at_a_time(a, b, form, itself), (over_a, over_b), out_axes=-1)(a, b)
    return values[..., None, None, :] if f == 1 else jnp.sum(values.reshape(*values.shape[:-1], d, t), axis=-1)


def _outputs(factor: Any) -> int:
    return int(factor.jacobian.shape[1] if isinstance(factor, Explicit) else factor.backward.shape[2])


def _rows_at_a_time(x: Any, y: Any, output: Output, itself: bool) -> Any:
    """Contract in a loop over rows on the left, so that arrays of all pairs of positions stay small."""
    if isinstance(x, Explicit):
        return jnp.einsum((SELF if itself else PAIRS)[output], x.jacobian, y.jacobian)
    if itself:
        one = jax.vmap(lambda a, b: _from_signals(_with_rows(a), _with_rows(b), output)[0, 0])
        return one(x, y)  # type: ignore[no-untyped-call]
    n, m = len(x.backward), len(y.backward)
    s, c, o = x.backward.shape[1:]
    held = Use(s, 0, o).signals(n * m, c, output)[2] * x.backward.dtype.itemsize
    step = next(k for k in range(n, 0, -1) if n % k == 0 and (k == 1 or held * k / n <= SCRATCH))
    if step == n:
        return _from_signals(x, y, output)
    parts = jax.tree.map(lambda leaf: leaf.reshape(n // step, step, *leaf.shape[1:]), x)
    values = jax.lax.map(lambda part: _from_signals(part, y, output), parts)
    return values.reshape(n, *values.shape[2:])


def _with_rows(factor: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[None], factor)


def _from_signals(x: Any, y: Any, output: Output) -> jax.Array:
    """Contract signals (n, S, I) and backward signals (n, S, c, O) of both sides, at all pairs of positions."""
    g, h = x.backward, y.backward
    if isinstance(x, Lookup):
        alike = (x.tokens[:, :, None, None] == y.tokens).astype(g.dtype)
    else:
        alike = jnp.einsum("nsi,mti->nsmt", x.signals, y.signals)
    if output == "trace":
        return jnp.sum(alike * jnp.einsum("nsao,mtao->nsmt", g, h), axis=(1, 3))
    if output == "diagonal":
        return jnp.sum(alike[..., None] * jnp.einsum("nsao,mtao->nsmta", g, h), axis=(1, 3))
    s, c, o = g.shape[1:]
    if Use(s, 0, o).signals(1, c, output)[0] == "mixed":  # the sum over positions of one side first
        mixed = jnp.einsum("nsmt,mtbo->nsmbo", alike, h)
        return jnp.einsum("nsao,nsmbo->nmab", g, mixed)
    return jnp.einsum("nsmt,nsamtb->nmab", alike, jnp.einsum("nsao,mtbo->nsamtb", g, h))


_of = jax.jit(lambda factors, X: factors.of(X))


@final
@pytree
class Contraction(PairKernel):
    """The kernel uses factors that are stored for every row (`stored`), or computed again for `rows` rows at a time."""

    factors: Any
    output: Output | Split = field(metadata={"static": True})
    rows: int = field(metadata={"static": True})
    stored: bool = field(metadata={"static": True})

    def encode(self, X: Float[jax.Array, "n d"]) -> Any:
        return _of(self.factors, X) if self.stored else X

    def pairwise(self, x: Any, y: Any, *, same: bool | jax.Array = False) -> Float[jax.Array, "n m *c"]:
        if self.stored:
            return pairs(x, y, self.output)
        columns: Any = _chunks(y, self.rows)

        def strip(chunk: jax.Array) -> Any:
            kept = self.factors.of(chunk)
            return jax.lax.map(lambda y: pairs(kept, self.factors.of(y), self.output), columns)

        blocks: Any = jnp.moveaxis(jax.lax.map(strip, _chunks(x, self.rows)), 2, 1)
        down, height, across, width = blocks.shape[:4]
        return jnp.asarray(blocks.reshape(down * height, across * width, *blocks.shape[4:])[: len(x), : len(y)])

    def diagonal(self, x: Any) -> Float[jax.Array, "n *c"]:
        if self.stored:
            return pairs(x, x, self.output, itself=True)

        def chunk(rows: jax.Array) -> jax.Array:
            kept = self.factors.of(rows)
            return pairs(kept, kept, self.output, itself=True)

        values: Any = jax.lax.map(chunk, _chunks(x, self.rows))
        return jnp.asarray(values.reshape(-1, *values.shape[2:])[: len(x)])


def _chunks(X: jax.Array, rows: int) -> jax.Array:
    """Reshape (n, d) to (k, rows, d), filled up with leading rows."""
    count = -(-len(X) // rows)
    return jnp.resize(X, (count * rows, X.shape[1])).reshape(count, rows, X.shape[1])
