"""These kernels are sums of products of two factors, one of each input: from Jacobians, layers or outputs."""

import abc
from collections.abc import Callable
from dataclasses import field
from typing import Any, Literal, final

import jax
import jax.numpy as jnp

from widelimit.architecture.layers import Dense
from widelimit.architecture.network import Network
from widelimit.compute.tiles import PairKernel
from widelimit.kernels.empirical.model import Model
from widelimit.pytrees import pytree
from widelimit.shapes import Float
from widelimit.signals import sum_terms

Output = Literal["full", "trace", "diagonal"]
OUTPUTS: tuple[Output, ...] = ("full", "trace", "diagonal")
PAIRS = {"full": "nap,mbp->nmab", "trace": "nap,map->nm", "diagonal": "nap,map->nma"}
SELF = {"full": "nap,nbp->nab", "trace": "nap,nap->n", "diagonal": "nap,nap->na"}


class Factors(abc.ABC):
    """K(x, x') is a contraction of factors of x with factors of x'; a pytree of pure JAX functions."""

    @abc.abstractmethod
    def of(self, X: Float[jax.Array, "n d"]) -> Any:
        """Compute the factors of every row: a pytree of arrays of leading length n."""

    @abc.abstractmethod
    def pairs(self, x: Any, y: Any, output: Output) -> Float[jax.Array, "n m *c"]:
        """Compute K for all pairs."""

    @abc.abstractmethod
    def diagonal(self, x: Any, output: Output) -> Float[jax.Array, "n *c"]:
        """Compute K of every row with itself."""


@final
@pytree
class Jacobian(Factors):
    """The factors are the rows df_a(x)/dtheta of the Jacobian, an array a leaf of the parameters: (n, c, leaf size)."""

    model: Model

    def of(self, X: Float[jax.Array, "n d"]) -> Any:
        def row(x: jax.Array) -> list[jax.Array]:
            leaves = jax.tree.leaves(jax.jacrev(self.model.row)(self.model.params, x))
            return [leaf.reshape(len(leaf), -1) for leaf in leaves]

        return jax.vmap(row)(X)

    def pairs(self, x: Any, y: Any, output: Output) -> Float[jax.Array, "n m *c"]:
        return sum(_pairs(a, b, output) for a, b in zip(x, y, strict=True))  # type: ignore[return-value]

    def diagonal(self, x: Any, output: Output) -> Float[jax.Array, "n *c"]:
        return sum(_diagonal(a, output) for a in x)  # type: ignore[return-value]


@final
@pytree
class Outputs(Factors):
    """The factors are the outputs f(x), (n, c, 1)."""

    model: Model

    def of(self, X: Float[jax.Array, "n d"]) -> Any:
        return self.model(self.model.params, X)[:, :, None]

    def pairs(self, x: Any, y: Any, output: Output) -> Float[jax.Array, "n m *c"]:
        return _pairs(x, y, output)

    def diagonal(self, x: Any, output: Output) -> Float[jax.Array, "n *c"]:
        return _diagonal(x, output)


@final
@pytree
class Layers(Factors):
    """The factors are the signals into each trained dense layer and the backward signals df_a/dz out of it.

    z = w W a + b v, so that the layer's parameters give (df_a/dz . df_b/dz') (w^2 a.a' + b^2), wherever in the tree it
    stands. Arrays (w a, b), (n, 1, inputs + 1), and (n, c, outputs). After the last dense layer df_a/dz is a multiple
    of the identity, which is not kept.
    """

    net: Network
    params: tuple[Any, ...]

    def of(self, X: Float[jax.Array, "n d"]) -> Any:
        dense: list[Dense] = []

        def outputs(taps: list[jax.Array]) -> tuple[jax.Array, list[jax.Array]]:
            signals: list[jax.Array] = []

            def watch(layer: Dense, before: jax.Array, after: jax.Array) -> jax.Array:
                w, b = layer.scales(before.shape[1])
                bias = jnp.full((len(before), 1), b, before.dtype)
                signals.append(jnp.concatenate([w * before, bias], axis=1)[:, None])
                dense.append(layer)
                return after + taps[len(signals) - 1]

            params = jax.tree.map(lambda own: own | {"watch": watch}, self.params, is_leaf=is_dense)
            return self.net.signals_of(params, X), signals

        own = jax.tree.leaves(self.params, is_leaf=is_dense)
        taps = [jnp.zeros((len(X), layer["weight"].shape[0]), X.dtype) for layer in own]
        after, pull, signals = jax.vjp(outputs, taps, has_aux=True)
        each = jnp.broadcast_to(jnp.eye(after.shape[1], dtype=X.dtype)[:, None], (after.shape[1], *after.shape))
        (back,) = jax.vmap(pull, out_axes=1)(each)
        factors: list[tuple[jax.Array, ...]] = [
            (a, gradient) for layer, a, gradient in zip(dense, signals, back, strict=True) if layer.trained
        ]
        if dense[-1].trained:
            factors[-1] = (signals[-1] * back[-1][:, :1, :1],)
        return factors

    def pairs(self, x: Any, y: Any, output: Output) -> Float[jax.Array, "n m *c"]:
        return self._sum(x, y, _pairs, output)

    def diagonal(self, x: Any, output: Output) -> Float[jax.Array, "n *c"]:
        return self._sum(x, x, lambda a, _, kind: _diagonal(a, kind), output)

    def _sum(self, x: Any, y: Any, inner: Callable[[Any, Any, Output], jax.Array], output: Output) -> jax.Array:
        axes = {"full": 2, "trace": 0, "diagonal": 1}[output]
        outputs = jax.tree.leaves(self.params, is_leaf=is_dense)[-1]["weight"].shape[0]
        last = jnp.eye(outputs) if output == "full" else jnp.ones((outputs,) * axes)
        terms = []
        for left, right in zip(x, y, strict=True):
            gram = inner(left[0], right[0], "trace")
            gram = gram.reshape(gram.shape + (1,) * axes)
            terms.append(gram * (inner(left[1], right[1], output) if len(left) == 2 else last.astype(gram.dtype)))
        return sum_terms(terms)


def is_dense(params: Any) -> bool:
    """Return True for the parameters of a dense layer, in a tree of layers without other parameters."""
    return isinstance(params, dict)


def _pairs(x: jax.Array, y: jax.Array, output: Output, rules: dict[str, str] = PAIRS) -> jax.Array:
    total = jnp.einsum(rules[output], x, y, precision="highest")
    return total / x.shape[1] if output == "trace" else total


def _diagonal(x: jax.Array, output: Output) -> jax.Array:
    return _pairs(x, x, output, SELF)


_of = jax.jit(lambda factors, X: factors.of(X))


@final
@pytree
class Contraction(PairKernel):
    """The kernel uses factors that are kept for every row (`stored`), or made again for `rows` rows at a time."""

    factors: Any
    output: Output = field(metadata={"static": True})
    rows: int = field(metadata={"static": True})
    stored: bool = field(metadata={"static": True})

    def encode(self, X: Float[jax.Array, "n d"]) -> Any:
        return _of(self.factors, X) if self.stored else X

    def pairwise(self, x: Any, y: Any, *, same: bool | jax.Array = False) -> Float[jax.Array, "n m *c"]:
        if self.stored:
            return self.factors.pairs(x, y, self.output)  # type: ignore[no-any-return]
        columns: Any = _chunks(y, self.rows)

        def strip(chunk: jax.Array) -> Any:
            kept = self.factors.of(chunk)
            return jax.lax.map(lambda y: self.factors.pairs(kept, self.factors.of(y), self.output), columns)

        blocks: Any = jnp.moveaxis(jax.lax.map(strip, _chunks(x, self.rows)), 2, 1)
        down, height, across, width = blocks.shape[:4]
        return jnp.asarray(blocks.reshape(down * height, across * width, *blocks.shape[4:])[: len(x), : len(y)])

    def diagonal(self, x: Any) -> Float[jax.Array, "n *c"]:
        if self.stored:
            return self.factors.diagonal(x, self.output)  # type: ignore[no-any-return]
        values: Any = jax.lax.map(
            lambda chunk: self.factors.diagonal(self.factors.of(chunk), self.output), _chunks(x, self.rows)
        )
        return jnp.asarray(values.reshape(-1, *values.shape[2:])[: len(x)])


def _chunks(X: jax.Array, rows: int) -> jax.Array:
    """Reshape (n, d) to (k, rows, d), filled up with leading rows."""
    count = -(-len(X) // rows)
    return jnp.resize(X, (count * rows, X.shape[1])).reshape(count, rows, X.shape[1])
