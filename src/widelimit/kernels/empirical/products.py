"""Products of the Jacobian with vectors give the NTK without the Jacobian, and the NTK times a vector."""

from dataclasses import field
from typing import Any, final

import jax
import jax.numpy as jnp

from widelimit.compute.tiles import PairKernel
from widelimit.kernels.empirical.derivatives import along, linearize
from widelimit.kernels.empirical.model import Model
from widelimit.kernels.empirical.outputs import Output
from widelimit.pytrees import pytree
from widelimit.shapes import Float


@final
@pytree
class VectorProducts(PairKernel):
    """Column (y, b) of the kernel is the derivative of f(X) in the direction df_b(y)/dtheta; `columns` at once."""

    model: Model
    output: Output = field(metadata={"static": True})
    columns: int = field(metadata={"static": True})

    def _direction(self, y: jax.Array, b: jax.Array, outputs: int) -> Any:
        _, pull = jax.vjp(lambda params: self.model.row(params, y), self.model.params)
        return pull(jax.nn.one_hot(b, outputs, dtype=y.dtype))[0]

    def _outputs(self, x: jax.Array) -> int:
        return int(jax.eval_shape(self.model, self.model.params, x).shape[1])

    def pairwise(self, x: Any, y: Any, *, same: bool | jax.Array = False) -> Float[jax.Array, "n m *c"]:
        c = self._outputs(x)
        push = linearize(lambda params: self.model(params, x), self.model.params)

        def column(i: jax.Array) -> jax.Array:
            moved: jax.Array = push(self._direction(y[i // c], i % c, c))
            return moved if self.output == "full" else moved[:, i % c]

        columns = jax.lax.map(column, jnp.arange(len(y) * c), batch_size=self.columns)
        columns = columns.reshape(len(y), c, *columns.shape[1:])  # (m, b, n) or (m, b, n, a)
        if self.output == "full":
            return jnp.transpose(columns, (2, 0, 3, 1))
        return jnp.mean(columns, axis=1).T if self.output == "trace" else jnp.transpose(columns, (2, 0, 1))

    def diagonal(self, x: Any) -> Float[jax.Array, "n *c"]:
        c = self._outputs(x)

        def column(i: jax.Array) -> jax.Array:
            direction = self._direction(x[i // c], i % c, c)
            moved: jax.Array = along(lambda p: self.model.row(p, x[i // c]), self.model.params, direction)[1]
            return moved

        columns = jax.lax.map(column, jnp.arange(len(x) * c), batch_size=self.columns)
        full = jnp.swapaxes(columns.reshape(len(x), c, c), 1, 2)
        if self.output == "full":
            return full
        own = jnp.diagonal(full, axis1=1, axis2=2)
        return jnp.mean(own, axis=1) if self.output == "trace" else own


@jax.jit
def pull(model: Model, Y: Float[jax.Array, "k m d"], v: Float[jax.Array, "s k m c"]) -> Any:
    """Compute sum_y v(y)^T df(y)/dtheta for s vectors, over k chunks of inputs: a pytree like params, with (s, ...)."""

    def add(total: Any, chunk: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
        _, pull = jax.vjp(lambda params: model(params, chunk[0]), model.params)
        return jax.tree.map(jnp.add, total, jax.vmap(pull)(chunk[1])[0]), None

    start = jax.tree.map(lambda leaf: jnp.zeros((len(v), *leaf.shape), leaf.dtype), model.params)
    return jax.lax.scan(add, start, (Y, jnp.moveaxis(v, 1, 0)))[0]


@jax.jit
def push(model: Model, X: Float[jax.Array, "k n d"], directions: Any) -> Float[jax.Array, "s kn c"]:
    """Compute the derivative of f(X) along s directions, over k chunks of inputs."""

    def chunk(x: jax.Array) -> jax.Array:
        push = linearize(lambda params: model(params, x), model.params)
        return jnp.asarray(jax.vmap(push)(directions))

    moved = jnp.moveaxis(jax.lax.map(chunk, X), 1, 0)
    return jnp.reshape(moved, (len(moved), -1, moved.shape[-1]))
