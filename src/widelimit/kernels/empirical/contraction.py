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
    """The factors are the signals into each dense layer, (n, 1, inputs), and the backward signals df_a/dz out of it.

    The backward signals are (n, c, outputs).

    z = w W a + b v, so that the layer's parameters give (df_a/dz . df_b/dz') (w^2 a.a' + b^2). After the last layer
    df_a/dz is a multiple of the identity, which is not kept.
    """

    net: Network
    params: tuple[Any, ...]

    def _layers(self) -> list[tuple[Any, Any]]:
        return list(zip(self.net.units, self.params, strict=True))

    def of(self, X: Float[jax.Array, "n d"]) -> Any:
        signals, forward, back = X, [], []
        for layer, params in self._layers():
            after, pull = jax.vjp(lambda a, layer=layer, params=params: layer.apply(params, a), signals)
            back.append(jax.vmap(pull, in_axes=1, out_axes=1))
            forward.append(signals)
            signals = after
        outputs = signals.shape[1]
        last = self.net.output_scale(self.params) * jnp.eye(outputs, dtype=X.dtype)
        gradient = jnp.broadcast_to(last, (len(X), outputs, outputs))
        factors: list[tuple[jax.Array, ...]] = []
        for (layer, _), a, pull in zip(reversed(self._layers()), reversed(forward), reversed(back), strict=True):
            if isinstance(layer, Dense):
                factors.append((a[:, None], gradient) if factors else (a[:, None],))
            (gradient,) = pull(gradient)
        return factors[::-1]

    def pairs(self, x: Any, y: Any, output: Output) -> Float[jax.Array, "n m *c"]:
        return self._sum(x, y, _pairs, output)

    def diagonal(self, x: Any, output: Output) -> Float[jax.Array, "n *c"]:
        return self._sum(x, x, lambda a, _, kind: _diagonal(a, kind), output)

    def _sum(self, x: Any, y: Any, inner: Callable[[Any, Any, Output], jax.Array], output: Output) -> jax.Array:
        extra = {"full": 2, "trace": 0, "diagonal": 1}[output]
        outputs = self.params[-1]["weight"].shape[0]
        total: jax.Array | float = 0.0
        dense = [(layer, params) for layer, params in self._layers() if isinstance(layer, Dense)]
        for (layer, params), left, right in zip(dense, x, y, strict=True):
            w, b = layer.scales(params["weight"].shape[1])
            gram = w**2 * inner(left[0], right[0], "trace") + b**2
            gram = gram.reshape(gram.shape + (1,) * extra)
            if len(left) == 2:
                total = total + inner(left[1], right[1], output) * gram
            else:
                last = self.net.output_scale(self.params) ** 2 * gram
                total = total + (last * jnp.eye(outputs, dtype=gram.dtype) if output == "full" else last)
        count = () if output == "trace" else (outputs,) * extra
        total = jnp.asarray(total)
        return jnp.broadcast_to(total, total.shape[: total.ndim - extra] + count)


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
