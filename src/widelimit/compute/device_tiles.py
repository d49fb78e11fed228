"""Kernel matrices of JAX arrays are made of large tiles, by one compiled program, in their place in one array.

Blocks of rows have one size, so that nothing is filled up: the last one begins before the end of the one before it.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from widelimit.arithmetic import arithmetic, lenient
from widelimit.compute import devices, tiles
from widelimit.compute.pair_kernel import Features, PairKernel
from widelimit.compute.plan import require
from widelimit.validation import traced

EDGE = 4096
"""Rows of a tile, at most: enough work for a whole GPU, in few tiles."""
WHOLE = 512
"""Rows up to which a symmetric matrix is one tile; of a larger one a little more than half is computed."""
MULTIPLE = 128
ROOM = 2**31
"""Bytes that the pairs of one tile may take."""
COPIES = 3


def blocks(n: int, largest: int, *, least: int = 1) -> tuple[int, np.ndarray]:
    """Return the rows of a block and where blocks begin: at least `least` blocks, of about the same size."""
    count = max(least, -(-n // largest))
    edge = min(n, -(-n // count // MULTIPLE) * MULTIPLE)
    return edge, np.minimum(np.arange(-(-n // edge)) * edge, n - edge).astype(np.int32)


def largest_edge(kernel: PairKernel, itemsize: int) -> int:
    """Return the rows of a tile at most, for the numbers that a pair takes."""
    edge = EDGE
    while edge > MULTIPLE and edge**2 * kernel.numbers_per_pair * itemsize * COPIES > ROOM:
        edge //= 2
    return edge


def _rows(features: Features, start: jax.Array, edge: int) -> Features:
    return jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start, edge), features)


@partial(jax.jit, static_argnames=("edges", "symmetric"), donate_argnames="out")
def _fill(
    out: jax.Array, kernel: PairKernel, x: Features, y: Features, diagonal: jax.Array, starts: jax.Array, count: int,
    edges: tuple[int, int], *, symmetric: bool,
) -> jax.Array:  # fmt: skip
    """Write K(x, y) to `out`, by the tiles that begin at `starts` (T, 2), `count` of them; if `symmetric`, x is y.

    Then each tile comes with its mirror image, those on the diagonal last: what lies in two tiles is symmetric too.
    """

    def values(x: Features, y: Features, same: jax.Array) -> jax.Array:
        return jnp.asarray(kernel.pairwise(x, y, same=same))

    below = jnp.tri(*edges, -1, dtype=bool)

    def step(k: int, out: jax.Array) -> jax.Array:
        s, t = starts[k]
        given = _rows(x, s, edges[0]), _rows(y, t, edges[1]), jnp.asarray(symmetric) & (s == t)
        # The branch is always taken: the tile is not fused, and so not computed again, with what writes it.
        tile = jax.lax.cond(k < count, values, lambda *_: jnp.zeros(edges, out.dtype), *given)
        if symmetric:
            own = jax.lax.dynamic_slice_in_dim(diagonal, s, edges[0])
            around = jnp.where(below, tile, jnp.where(below.T, tile.T, own))
            tile = jnp.where(s == t, around, tile)
            out = jax.lax.dynamic_update_slice(out, tile.T, (t, s))
        return jax.lax.dynamic_update_slice(out, tile, (s, t))

    return jnp.asarray(jax.lax.fori_loop(0, count, step, out))


def _square(kernel: PairKernel, x: Features, diagonal: jax.Array) -> jax.Array:
    """Compute K(x, x), (n, n): one triangle and its mirror image, around this diagonal (n,)."""
    n = len(diagonal)
    edge, begin = blocks(n, largest_edge(kernel, diagonal.dtype.itemsize), least=1 if n <= WHOLE else 2)
    order = [(s, t) for i, s in enumerate(begin) for t in begin[:i]] + [(s, s) for s in begin]
    starts = np.array(order, np.int32)
    out = jnp.zeros((n, n), diagonal.dtype)
    return jnp.asarray(_fill(out, kernel, x, x, diagonal, starts, len(starts), (edge, edge), symmetric=True))


def _rectangle(kernel: PairKernel, x: Features, y: Features, out: jax.Array) -> jax.Array:
    """Compute K(x, y) in the memory of `out`, (n, m)."""
    (n, m), largest = out.shape, largest_edge(kernel, out.dtype.itemsize)
    (rows, begin), (columns, left) = blocks(n, largest), blocks(m, largest)
    starts = np.array([(s, t) for s in begin for t in left], np.int32)
    return jnp.asarray(_fill(out, kernel, x, y, jnp.zeros(0), starts, len(starts), (rows, columns), symmetric=False))


_whole = jax.jit(lambda kernel, x, y: kernel.pairwise(x, y))
diagonal_of = jax.jit(lambda kernel, features: kernel.diagonal(features))
"""Compute K(x, x) of encoded rows in a program of its own."""


@jax.jit
def _whole_symmetric(kernel: PairKernel, x: Features, diagonal: jax.Array) -> jax.Array:
    """Compute K(x, x): one triangle, mirrored, around the diagonal given.

    `diagonal` is compiled separately: in this function the compiler could round it in another way than `diag` does.
    """
    block = jnp.tril(kernel.pairwise(x, x, same=True), -1)
    return block + block.T + jnp.diag(diagonal)


def _require(X: jax.Array, Y: jax.Array) -> None:
    """Refuse K(X, Y) that does not fit where both lie. Raises: MemoryError; ValueError: they are on two devices."""
    put = {name: a for name, a in (("X", X), ("Y", Y)) if not traced(a) and a.committed}  # JAX moves the others there
    place = devices.choose(None, **(put or {"X": X}))
    if place.host or traced(X, Y):
        require(len(X), len(Y), X.dtype)
    else:
        place.require(X.dtype.itemsize * len(X) * len(Y), f"a {len(X)} x {len(Y)} {X.dtype} kernel matrix")


def _traceable(call: Callable[..., jax.Array], kernel: PairKernel, *arrays: jax.Array) -> jax.Array:
    """Run on JAX arrays in their own dtype, whether x64 is on or off; of float32 and a traced kernel it stays so."""
    wide = any(a.dtype == jnp.float64 for a in arrays)
    if not wide and traced(*jax.tree.leaves(kernel)):
        with lenient():
            return call()
    with arithmetic(wide):
        return _beside(call(), next((a for a in arrays if not traced(a) and a.committed), arrays[0]))


def _beside(found: jax.Array, X: jax.Array) -> jax.Array:
    """Put values where the rows X lie: machine code made them on the host, or they do not depend on the rows."""
    if traced(found, X) or len(X.devices()) > 1 or found.devices() == X.devices():
        return found
    return jnp.asarray(jax.device_put(found, *X.devices()))


def gram(kernel: PairKernel, X: jax.Array) -> jax.Array:
    """Compute `tiles.gram` of a JAX array, traced or not, where it lies."""
    _require(X, X)
    if kernel.eager:
        return _traceable(lambda: jnp.asarray(tiles.gram(kernel, np.asarray(X))), kernel, X)

    def compute() -> jax.Array:
        features = kernel.encode(X)
        own = diagonal_of(kernel, features)
        if len(X) <= WHOLE or traced(X, *jax.tree.leaves(kernel)):  # a loop has no derivatives backward
            return jnp.asarray(_whole_symmetric(kernel, features, own))
        return _square(kernel, features, own)

    return _traceable(compute, kernel, X)


def cross(kernel: PairKernel, X: jax.Array, Y: jax.Array) -> jax.Array:
    """Compute `tiles.cross` of JAX arrays, traced or not, where they lie."""
    _require(X, Y)
    if kernel.eager:
        return _traceable(lambda: jnp.asarray(tiles.cross(kernel, np.asarray(X), np.asarray(Y))), kernel, X)

    def compute() -> jax.Array:
        x, y = kernel.encode(X), kernel.encode(Y)
        largest = largest_edge(kernel, X.dtype.itemsize)
        if max(len(X), len(Y)) <= largest or traced(X, Y, *jax.tree.leaves(kernel)):
            return jnp.asarray(_whole(kernel, x, y))
        return _rectangle(kernel, x, y, jnp.zeros((len(X), len(Y)), kernel.result_dtype(X.dtype)))

    return _traceable(compute, kernel, X, Y)


def diagonal(kernel: PairKernel, X: jax.Array) -> jax.Array:
    """Compute `tiles.diagonal` of a JAX array, traced or not, where it lies."""
    if kernel.eager:
        return _traceable(lambda: jnp.asarray(tiles.diagonal(kernel, np.asarray(X))), kernel, X)
    return _traceable(lambda: diagonal_of(kernel, kernel.encode(X)), kernel, X)
